//! The life of a TUN device: six states, and what leads from one to the next.
//!
//! # Theory of operation
//!
//! ```text
//! Uninitialized ─▶ Initializing ─▶ Ready ─▶ Stopping ─▶ Stopped
//!                       │           │ ▲         │
//!                       └────────▶ Error ◀──────┘
//! ```
//!
//! Every other step is refused and changes nothing. A device is used in Ready only. Error is left by recovery, back to Ready; Stopped is final: who wants
//! a device again makes a new [`ManagedTun`].
//!
//! What a step does to the machine is a [`Backend`]'s business: opening, configuring, closing, and looking at the kernel's tables afterwards, because
//! what is gone is verified, not assumed. Opening is tried again, after pauses that double, when the error is one that can pass; all
//! others fail at once. [`ManagedTun::force_cleanup`] is for when the order of states does not matter any more: it works from any of them, and
//! may be called again.
//!
//! The clock and the pauses are the backend's too, so that all of this runs in virtual time.

use crate::time::{Duration, Instant};
use core::fmt;
use std::io;

/// Clean-ups that failed in a row before it is a warning that somebody should look into it.
const FAILURES_WORTH_A_WARNING: u32 = 3;

/// The states of 002.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TunState {
    /// Nothing was done yet.
    Uninitialized,
    /// It is being opened and configured.
    Initializing,
    /// It carries packets.
    Ready,
    /// It is being cleaned up.
    Stopping,
    /// It is gone, which was verified.
    Stopped,
    /// It is gone or half there: recovery or [`ManagedTun::force_cleanup`].
    Error,
}

impl TunState {
    /// All of them.
    pub const ALL: [TunState; 6] = [
        TunState::Uninitialized,
        TunState::Initializing,
        TunState::Ready,
        TunState::Stopping,
        TunState::Stopped,
        TunState::Error,
    ];

    /// Whether the step from this state to `to` is one of the eight that there are.
    pub const fn leads_to(self, to: TunState) -> bool {
        matches!(
            (self, to),
            (TunState::Uninitialized, TunState::Initializing)
                | (TunState::Initializing, TunState::Ready | TunState::Error)
                | (TunState::Ready, TunState::Stopping | TunState::Error)
                | (TunState::Stopping, TunState::Stopped | TunState::Error)
                | (TunState::Error, TunState::Ready)
        )
    }
}

impl fmt::Display for TunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// How patient a device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// How often opening is tried, the first time included.
    pub retry_attempts: u32,
    /// The pause after the first try; each later one is twice as long.
    pub retry_delay: Duration,
    /// How long a clean-up may take.
    pub cleanup_timeout: Duration,
    /// Whether the state is compared with the real device.
    pub validate_state: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            retry_attempts: 5,
            retry_delay: Duration::from_millis(200),
            cleanup_timeout: Duration::from_secs(10),
            validate_state: true,
        }
    }
}

/// What a backend was doing when it failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Making the device.
    Open,
    /// Its addresses, MTU and state, and the routes and rules that lead into it.
    Configure,
}

/// Why a step failed.
#[derive(Debug)]
pub struct StepError {
    /// What was tried.
    pub what: String,
    /// The system's answer.
    pub source: io::Error,
    /// What to try next.
    pub remedy: String,
}

impl StepError {
    /// Whether trying again may help: somebody else has it for a moment, or the system is short of something.
    fn can_pass(&self) -> bool {
        super::can_pass(&self.source)
    }
}

/// What a device can refuse.
#[derive(Debug)]
pub enum LifecycleError {
    /// There is no such step; the state is what it was.
    InvalidStateTransition {
        /// The state.
        from: TunState,
        /// The state that was asked for.
        to: TunState,
    },
    /// The device cannot be used in this state.
    InterfaceNotReady {
        /// The state.
        state: TunState,
    },
    /// A clean-up was not done in time; the state is Error.
    CleanupTimeout {
        /// How long it was waited for.
        limit: Duration,
    },
    /// The device could not be made or configured; what had been done is undone, and the state is Error.
    ConfigurationFailed {
        /// What was being done.
        step: Step,
        /// Why it failed.
        error: StepError,
    },
    /// Somebody asked to stop meanwhile; what had been done is undone, and the state is Error.
    Cancelled,
    /// Something is still there after a clean-up; the state is Error.
    Left {
        /// What it is.
        what: Vec<String>,
    },
}

impl fmt::Display for LifecycleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LifecycleError::InvalidStateTransition { from, to } => {
                write!(f, "the device is {from} and cannot become {to}")
            }
            LifecycleError::InterfaceNotReady { state } => write!(f, "the device is {state}, not Ready"),
            LifecycleError::CleanupTimeout { limit } => {
                write!(f, "the device was not cleaned up in {} ms", limit.as_millis())
            }
            LifecycleError::ConfigurationFailed { step, error } => {
                write!(f, "{step:?}: {}: {} ({})", error.what, error.source, error.remedy)
            }
            LifecycleError::Cancelled => f.write_str("asked to stop"),
            LifecycleError::Left { what } => write!(f, "still there: {}", what.join(", ")),
        }
    }
}

impl std::error::Error for LifecycleError {}

/// What the states do to the machine.
pub trait Backend {
    /// What is used in Ready.
    type Device;

    /// The present.
    fn now(&self) -> Instant;

    /// Pauses; `false` when somebody asked to stop instead.
    fn pause(&mut self, pause: Duration) -> bool;

    /// Makes the device.
    fn open(&mut self) -> Result<Self::Device, StepError>;

    /// Gives it addresses, MTU and routes. On an error all of it has been undone.
    fn configure(&mut self, device: &Self::Device) -> Result<(), StepError>;

    /// Gives a device that was made anew what the old one had.
    fn reconfigure(&mut self, device: &Self::Device) -> Result<(), StepError>;

    /// Brings the device down and takes away what [`Backend::configure`] gave. Gives what could not be.
    fn unconfigure(&mut self) -> Vec<String>;

    /// Closes the device.
    fn close(&mut self, device: Self::Device);

    /// Looks at the kernel's tables: what there still is of the device, its addresses, routes and rules.
    fn left(&mut self) -> Vec<String>;

    /// Whether the real device is there, and the one that was opened.
    fn is_whole(&mut self) -> bool;
}

/// How often what happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Clean-ups that left nothing.
    pub cleanups: u64,
    /// Clean-ups that failed.
    pub cleanup_failures: u64,
    /// Devices that were made anew.
    pub recoveries: u64,
}

/// A device with its state. The device itself is lent out while it is Ready: the loop reads and writes it without asking here.
#[derive(Debug)]
pub struct ManagedTun<B: Backend> {
    state: TunState,
    options: Options,
    backend: B,
    counters: Counters,
    /// Clean-ups that failed since the last one that did not.
    failures: u32,
}

impl<B: Backend> ManagedTun<B> {
    /// Nothing is done yet.
    pub fn new(backend: B, options: Options) -> ManagedTun<B> {
        ManagedTun {
            state: TunState::Uninitialized,
            options,
            backend,
            counters: Counters::default(),
            failures: 0,
        }
    }

    /// The state.
    pub fn state(&self) -> TunState {
        self.state
    }

    /// What was counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How patient it is.
    pub fn options(&self) -> Options {
        self.options
    }

    /// The backend, in Ready only.
    ///
    /// # Errors
    ///
    /// [`LifecycleError::InterfaceNotReady`].
    pub fn backend(&mut self) -> Result<&mut B, LifecycleError> {
        if self.state == TunState::Ready {
            Ok(&mut self.backend)
        } else {
            Err(LifecycleError::InterfaceNotReady { state: self.state })
        }
    }

    /// The machine, in any state: for what is not the device's use.
    pub fn machine(&mut self) -> &mut B {
        &mut self.backend
    }

    /// Takes the step to `to`, if there is one.
    fn become_(&mut self, to: TunState) -> Result<(), LifecycleError> {
        let from = self.state;
        if !from.leads_to(to) {
            return Err(LifecycleError::InvalidStateTransition { from, to });
        }
        log::debug!("device: {from} -> {to}");
        self.state = to;
        Ok(())
    }

    /// Takes a step that the code at hand has made sure of.
    fn step(&mut self, to: TunState) {
        let taken = self.become_(to);
        debug_assert!(taken.is_ok(), "{taken:?}");
    }

    /// Opens and configures the device: Uninitialized to Ready.
    ///
    /// # Errors
    ///
    /// [`LifecycleError::ConfigurationFailed`] and [`LifecycleError::Cancelled`], after which the state is Error and nothing is left;
    /// [`LifecycleError::InvalidStateTransition`] in any other state.
    pub fn initialize(&mut self) -> Result<B::Device, LifecycleError> {
        self.become_(TunState::Initializing)?;
        let made = self.open().and_then(|device| match self.backend.configure(&device) {
            Ok(()) => Ok(device),
            Err(error) => {
                self.backend.close(device);
                Err(LifecycleError::ConfigurationFailed { step: Step::Configure, error })
            }
        });
        self.step(if made.is_ok() { TunState::Ready } else { TunState::Error });
        made
    }

    /// Opens the device, again and again while the error can pass.
    fn open(&mut self) -> Result<B::Device, LifecycleError> {
        let mut pause = self.options.retry_delay;
        for attempt in 1.. {
            match self.backend.open() {
                Ok(device) => return Ok(device),
                Err(error) if error.can_pass() && attempt < self.options.retry_attempts => {
                    log::debug!("{}: {}; tried again in {} ms", error.what, error.source, pause.as_millis());
                }
                Err(error) => {
                    return Err(LifecycleError::ConfigurationFailed { step: Step::Open, error });
                }
            }
            if !self.backend.pause(pause) {
                break;
            }
            pause = pause.saturating_add(pause);
        }
        Err(LifecycleError::Cancelled)
    }

    /// The device has failed, or is not what it was: Ready to Error.
    ///
    /// # Errors
    ///
    /// [`LifecycleError::InvalidStateTransition`] in any other state.
    pub fn fail(&mut self) -> Result<(), LifecycleError> {
        self.become_(TunState::Error)
    }

    /// Compares the state with the real device: Ready stays Ready when it is whole, and becomes Error when not.
    ///
    /// # Errors
    ///
    /// [`LifecycleError::InterfaceNotReady`] when it was not Ready, or is not any more.
    pub fn validate(&mut self) -> Result<(), LifecycleError> {
        if self.state == TunState::Ready && (!self.options.validate_state || self.backend.is_whole()) {
            return Ok(());
        }
        if self.state == TunState::Ready {
            self.step(TunState::Error);
        }
        Err(LifecycleError::InterfaceNotReady { state: self.state })
    }

    /// Makes the device anew: Error to Ready. One try; the caller, who has a loop to run, decides when the next is.
    ///
    /// # Errors
    ///
    /// [`LifecycleError::ConfigurationFailed`], and the state is still Error; [`LifecycleError::InvalidStateTransition`] in any other state.
    pub fn recover(&mut self) -> Result<B::Device, LifecycleError> {
        if self.state != TunState::Error {
            return Err(LifecycleError::InvalidStateTransition { from: self.state, to: TunState::Ready });
        }
        let failed = |step| move |error| LifecycleError::ConfigurationFailed { step, error };
        let device = self.backend.open().map_err(failed(Step::Open))?;
        if let Err(error) = self.backend.reconfigure(&device) {
            self.backend.close(device);
            return Err(failed(Step::Configure)(error));
        }
        self.step(TunState::Ready);
        self.counters.recoveries += 1;
        Ok(device)
    }

    /// Takes everything away and verifies that it is gone: Ready to Stopped. At most until `deadline`, and no longer than the options allow.
    ///
    /// # Errors
    ///
    /// [`LifecycleError::CleanupTimeout`] and [`LifecycleError::Left`], after which the state is Error; [`LifecycleError::InvalidStateTransition`] in
    /// any other state.
    pub fn cleanup(&mut self, device: B::Device, deadline: Instant) -> Result<(), LifecycleError> {
        if let Err(error) = self.become_(TunState::Stopping) {
            self.backend.close(device);
            return Err(error);
        }
        let begun = self.backend.now();
        let limit = self.options.cleanup_timeout.min(deadline.since(begun));
        let mut left = self.backend.unconfigure();
        self.backend.close(device);
        left.extend(self.backend.left());
        let result = if self.backend.now().since(begun) > limit {
            Err(LifecycleError::CleanupTimeout { limit })
        } else if left.is_empty() {
            Ok(())
        } else {
            Err(LifecycleError::Left { what: left })
        };
        self.cleaned(result)
    }

    /// Takes away what is there, whatever the state; to Stopped, or to Error when something is left. May be called again.
    ///
    /// # Errors
    ///
    /// [`LifecycleError::Left`].
    pub fn force_cleanup(&mut self, device: Option<B::Device>) -> Result<(), LifecycleError> {
        if self.state == TunState::Stopped && device.is_none() {
            return Ok(());
        }
        // Not a step of the drawing: by force, from wherever it is.
        log::debug!("device: {} -> Stopping, by force", self.state);
        self.state = TunState::Stopping;
        let mut left = self.backend.unconfigure();
        if let Some(device) = device {
            self.backend.close(device);
        }
        left.extend(self.backend.left());
        let result = if left.is_empty() { Ok(()) } else { Err(LifecycleError::Left { what: left }) };
        self.cleaned(result)
    }

    fn cleaned(&mut self, result: Result<(), LifecycleError>) -> Result<(), LifecycleError> {
        if result.is_ok() {
            self.counters.cleanups += 1;
            self.failures = 0;
            self.step(TunState::Stopped);
        } else {
            self.counters.cleanup_failures += 1;
            self.failures += 1;
            if self.failures >= FAILURES_WORTH_A_WARNING {
                log::warn!("the device could not be cleaned up {} times in a row", self.failures);
            }
            self.step(TunState::Error);
        }
        result
    }
}

// Their errors are those of Unix systems.
#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// A machine with one device on it, in virtual time.
    #[derive(Debug, Default)]
    struct Fake {
        now: u64,
        pauses: Vec<u128>,
        /// What the next openings give: an error number, or 0 for success.
        openings: VecDeque<i32>,
        cancelled: bool,
        configure_fails: bool,
        open: bool,
        configured: bool,
        stuck: bool,
        /// Milliseconds that a clean-up takes.
        slow: u64,
        log: Vec<&'static str>,
    }

    fn failed(number: i32) -> StepError {
        StepError { what: "w".into(), source: io::Error::from_raw_os_error(number), remedy: "r".into() }
    }

    impl Backend for Fake {
        type Device = ();

        fn now(&self) -> Instant {
            Instant::from_micros(self.now)
        }

        fn pause(&mut self, pause: Duration) -> bool {
            self.pauses.push(pause.as_millis());
            !self.cancelled
        }

        fn open(&mut self) -> Result<(), StepError> {
            match self.openings.pop_front() {
                None | Some(0) => {
                    self.open = true;
                    Ok(())
                }
                Some(number) => Err(failed(number)),
            }
        }

        fn configure(&mut self, _: &()) -> Result<(), StepError> {
            if self.configure_fails {
                return Err(failed(libc::EPERM));
            }
            self.configured = true;
            Ok(())
        }

        fn reconfigure(&mut self, device: &()) -> Result<(), StepError> {
            self.configure(device)
        }

        fn unconfigure(&mut self) -> Vec<String> {
            self.log.push("unconfigure");
            self.now += self.slow * 1000;
            self.configured = self.stuck;
            Vec::new()
        }

        fn close(&mut self, (): ()) {
            self.log.push("close");
            self.open = false;
        }

        fn left(&mut self) -> Vec<String> {
            self.log.push("verify");
            let left = [(self.open, "device"), (self.configured, "route")];
            left.into_iter().filter(|(there, _)| *there).map(|(_, what)| what.to_owned()).collect()
        }

        fn is_whole(&mut self) -> bool {
            self.open && self.configured
        }
    }

    fn managed(fake: Fake) -> ManagedTun<Fake> {
        ManagedTun::new(fake, Options::default())
    }

    const FAR: Instant = Instant::from_micros(u64::MAX);

    /// T-1
    #[test]
    fn eight_of_the_36_pairs_of_states_are_steps_and_the_others_change_nothing() {
        use TunState::{Error, Initializing, Ready, Stopped, Stopping, Uninitialized};
        let legal = [
            (Uninitialized, Initializing),
            (Initializing, Ready),
            (Initializing, Error),
            (Ready, Stopping),
            (Ready, Error),
            (Stopping, Stopped),
            (Stopping, Error),
            (Error, Ready),
        ];
        for from in TunState::ALL {
            for to in TunState::ALL {
                let mut tun = managed(Fake::default());
                tun.state = from;
                match tun.become_(to) {
                    Ok(()) => assert!(legal.contains(&(from, to)) && tun.state() == to, "{from} {to}"),
                    Err(LifecycleError::InvalidStateTransition { from: was, to: asked }) => {
                        assert!(!legal.contains(&(from, to)), "{from} {to}");
                        assert_eq!((was, asked, tun.state()), (from, to, from));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    /// T-2
    #[test]
    fn a_device_is_used_in_ready_only_and_stopped_is_final() {
        for state in TunState::ALL {
            let mut tun = managed(Fake::default());
            tun.state = state;
            assert_eq!(tun.backend().is_ok(), state == TunState::Ready);
            assert_eq!(tun.initialize().is_ok(), state == TunState::Uninitialized);
        }
        let mut tun = managed(Fake::default());
        tun.initialize().unwrap();
        tun.cleanup((), FAR).unwrap();
        assert_eq!(tun.backend.log, ["unconfigure", "close", "verify"]);
        assert!(tun.initialize().is_err() && tun.recover().is_err() && tun.validate().is_err());
        assert_eq!(tun.state(), TunState::Stopped);
    }

    /// T-4
    #[test]
    fn errors_that_can_pass_are_waited_out_with_pauses_that_double() {
        for number in [libc::EBUSY, libc::EAGAIN, libc::EINTR, libc::ENODEV] {
            let mut tun = managed(Fake { openings: [number; 5].into(), ..Fake::default() });
            let error = tun.initialize().unwrap_err();
            assert!(matches!(error, LifecycleError::ConfigurationFailed { step: Step::Open, .. }), "{error}");
            assert_eq!(tun.backend.pauses, [200, 400, 800, 1600]);
            assert_eq!(tun.state(), TunState::Error);
        }
        let mut tun = managed(Fake { openings: [libc::EBUSY, libc::EBUSY, 0].into(), ..Fake::default() });
        tun.initialize().unwrap();
        assert_eq!((tun.backend.pauses.len(), tun.state()), (2, TunState::Ready));
    }

    /// T-4
    #[test]
    fn other_errors_fail_at_once_and_a_pause_can_be_cut_short() {
        for number in [libc::EPERM, libc::EINVAL] {
            let mut tun = managed(Fake { openings: [number].into(), ..Fake::default() });
            assert!(tun.initialize().is_err() && tun.backend.pauses.is_empty());
        }
        let mut tun = managed(Fake { openings: [libc::EBUSY; 5].into(), cancelled: true, ..Fake::default() });
        assert!(matches!(tun.initialize(), Err(LifecycleError::Cancelled)));
        assert_eq!(tun.backend.pauses, [200]);
    }

    /// T-3
    #[test]
    fn a_device_that_cannot_be_configured_is_closed_again() {
        let mut tun = managed(Fake { configure_fails: true, ..Fake::default() });
        let error = tun.initialize().unwrap_err();
        assert!(matches!(error, LifecycleError::ConfigurationFailed { step: Step::Configure, .. }));
        assert!(!tun.backend.open && tun.state() == TunState::Error);
    }

    /// T-5
    #[test]
    fn a_clean_up_that_takes_too_long_is_an_error_and_the_tighter_limit_counts() {
        for (slow, deadline, expected) in [(10_001, u64::MAX, 10_000), (3_001, 3_000_000, 3_000)] {
            let mut tun = managed(Fake { slow, ..Fake::default() });
            tun.initialize().unwrap();
            let error = tun.cleanup((), Instant::from_micros(deadline)).unwrap_err();
            let LifecycleError::CleanupTimeout { limit } = error else { panic!("{error}") };
            assert_eq!((limit.as_millis(), tun.state()), (expected, TunState::Error));
            // Everything was tried all the same.
            assert_eq!(tun.backend.log, ["unconfigure", "close", "verify"]);
        }
    }

    /// T-6, T-7
    #[test]
    fn what_is_left_is_an_error_until_force_finds_it_gone() {
        let mut tun = managed(Fake { stuck: true, ..Fake::default() });
        tun.initialize().unwrap();
        let error = tun.cleanup((), FAR).unwrap_err();
        assert_eq!(error.to_string(), "still there: route");
        assert_eq!(tun.state(), TunState::Error);
        assert!(tun.force_cleanup(None).is_err());
        tun.backend.stuck = false;
        tun.force_cleanup(None).unwrap();
        tun.force_cleanup(None).unwrap();
        assert_eq!(tun.state(), TunState::Stopped);
        assert_eq!(tun.counters(), Counters { cleanups: 1, cleanup_failures: 2, recoveries: 0 });
    }

    /// T-8
    #[test]
    fn a_device_that_is_not_what_it_was_is_made_anew() {
        let mut tun = managed(Fake::default());
        tun.initialize().unwrap();
        tun.validate().unwrap();
        tun.backend.open = false;
        assert!(tun.validate().is_err() && tun.state() == TunState::Error);
        tun.backend.openings = [libc::EPERM].into();
        assert!(tun.recover().is_err() && tun.state() == TunState::Error);
        tun.recover().unwrap();
        tun.validate().unwrap();
        assert_eq!(tun.counters().recoveries, 1);
    }

    #[derive(Clone, Copy, Debug)]
    enum Call {
        Initialize,
        Fail,
        Validate,
        Recover,
        Cleanup,
        Force,
        Vanish,
    }

    proptest! {
        /// L9: whatever is called in whatever order, a state is reached by legal steps or by force only, and Stopped means that nothing is there.
        #[test]
        fn any_order_of_calls_keeps_state_and_machine_in_step(
            calls in proptest::collection::vec(
                proptest::sample::select(vec![
                    Call::Initialize, Call::Fail, Call::Validate, Call::Recover, Call::Cleanup, Call::Force, Call::Vanish,
                ]),
                0..24,
            ),
            openings in proptest::collection::vec(
                proptest::sample::select(vec![0, 0, libc::EBUSY, libc::EPERM]), 0..12),
        ) {
            let mut tun = managed(Fake { openings: openings.into(), ..Fake::default() });
            let mut device = None;
            for call in calls {
                let before = tun.state();
                match call {
                    Call::Initialize => device = tun.initialize().ok().or(device),
                    Call::Fail => { let _ = tun.fail(); }
                    Call::Validate => { let _ = tun.validate(); }
                    Call::Recover => device = tun.recover().ok().or(device),
                    Call::Cleanup => {
                        if let Some(device) = device.take() {
                            let _ = tun.cleanup(device, FAR);
                        }
                    }
                    Call::Force => { let _ = tun.force_cleanup(device.take()); }
                    Call::Vanish => tun.backend.open = false,
                }
                if tun.state() == TunState::Stopped {
                    prop_assert!(!tun.backend.open && !tun.backend.configured);
                }
                if before == TunState::Stopped {
                    prop_assert_eq!(tun.state(), TunState::Stopped);
                }
            }
            tun.force_cleanup(device).unwrap();
            prop_assert!(!tun.backend.open && !tun.backend.configured);
        }
    }
}
