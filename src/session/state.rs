//! The five states of a session, and who may change them.
//!
//! # Theory of operation
//!
//! ```text
//! Idle ─▶ Starting ─▶ Running ─▶ Stopping ─▶ Stopped ─▶ Starting …
//!             └──────────────────────▲
//! ```
//!
//! A state changes by compare-and-exchange only, so that of any number of threads that want the same step exactly one takes it. Who has taken the step
//! to Starting is the owner of the run until it has set Stopped; who has taken the step to Stopping cancels the run and waits for that.
//!
//! A run that does not end in time is forced: whoever waits for it has its resources released ([`Work::force`]), and sets Stopped itself. Each
//! run has a number, and one that was given up cannot touch the state any more when it ends after all.

use super::cleanup::CleanupReport;
use super::token::CancelToken;
use crate::driver::{Clock, Signals};
use crate::time::{Duration, Instant};
use std::any::Any;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// How long a stop that nothing else limits waits for the run before it forces it.
pub const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How long a restart waits for the run before it, L-2.
pub const RESTART_LIMIT: Duration = Duration::from_secs(5);

/// Where a session stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// It was never started.
    Idle,
    /// It is being started.
    Starting,
    /// Traffic flows.
    Running,
    /// It was asked to stop.
    Stopping,
    /// It has ended, and everything of it is undone.
    Stopped,
}

impl State {
    const ALL: [State; 5] = [State::Idle, State::Starting, State::Running, State::Stopping, State::Stopped];

    fn of(octet: u8) -> State {
        State::ALL.get(usize::from(octet)).copied().unwrap_or(State::Stopped)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A state that several threads see.
#[derive(Debug)]
struct StateCell(AtomicU8);

impl StateCell {
    fn get(&self) -> State {
        State::of(self.0.load(Ordering::Acquire))
    }

    /// Takes the step, if the state is `from`; else tells the state that it is.
    fn exchange(&self, from: State, to: State) -> Result<(), State> {
        self.0
            .compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
            .map_err(State::of)
    }
}

/// Why a session was not started.
#[derive(Debug)]
pub enum StartError<E> {
    /// It is in this state already; nothing was changed.
    AlreadyRunning(State),
    /// The system refuses a thread or a pipe.
    System(std::io::Error),
    /// It ended before traffic flowed.
    Failed(E),
}

impl<E: fmt::Display> fmt::Display for StartError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::AlreadyRunning(state) => write!(f, "the session is {state} already"),
            StartError::System(error) => write!(f, "cannot start a session: {error}"),
            StartError::Failed(error) => error.fmt(f),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for StartError<E> {}

/// What a session does.
pub trait Work: Send + Sync + 'static {
    /// How a run ends.
    type End: Send + fmt::Debug + 'static;

    /// Runs until `signals`, which the session's token feeds too, ask to stop; says once when traffic flows. What it gives back is
    /// closed and undone.
    fn run(&self, signals: Signals, ready: &dyn Fn()) -> (Self::End, CleanupReport);

    /// Releases what a run that does not end holds, from another thread.
    fn force(&self) -> CleanupReport;
}

/// One session: at most one run of a [`Work`] at a time.
#[derive(Debug)]
pub struct Lifecycle<W: Work> {
    shared: Arc<Shared<W>>,
    clock: Clock,
}

#[derive(Debug)]
struct Shared<W: Work> {
    state: StateCell,
    run: Mutex<Run<W::End>>,
    changed: Condvar,
}

/// The current run, or the last.
#[derive(Debug)]
struct Run<E> {
    number: u64,
    /// Traffic has flowed.
    was_ready: bool,
    token: Option<CancelToken>,
    end: Option<E>,
    report: CleanupReport,
    force: Option<ForceSlot>,
    /// What it said when it panicked, on a thread of its own.
    panic: Option<String>,
    /// It was given up.
    forced: bool,
}

/// The work of the current run, for whoever has to force it.
struct ForceSlot(Box<dyn Fn() -> CleanupReport + Send>);

impl fmt::Debug for ForceSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ForceSlot")
    }
}

impl<W: Work> Shared<W> {
    fn lock(&self) -> MutexGuard<'_, Run<W::End>> {
        // A thread that panicked left nothing half-written: every field is set whole.
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run `number` says that traffic flows.
    fn ready(&self, number: u64) {
        let mut run = self.lock();
        run.was_ready |= run.number == number;
        if run.number == number && self.state.exchange(State::Starting, State::Running).is_ok() {
            log::debug!("session: {} -> {}", State::Starting, State::Running);
        }
        self.changed.notify_all();
    }

    /// The run `number` has ended.
    fn ended(&self, number: u64, end: W::End, report: CleanupReport) {
        let mut run = self.lock();
        if run.number != number {
            log::warn!("a run that was given up has ended after all");
            return;
        }
        run.end = Some(end);
        self.close(&mut run, report);
    }

    /// The run `number` has panicked; what it held went with its values.
    fn panicked(&self, number: u64, payload: &(dyn Any + Send)) {
        let said = payload.downcast_ref::<&str>().copied();
        let said = said.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let said = said.unwrap_or("it did not say why");
        log::error!("the run has panicked: {said}");
        let mut run = self.lock();
        if run.number == number {
            run.panic = Some(said.to_owned());
            self.close(&mut run, CleanupReport::default());
        }
    }

    /// Sets Stopped from whatever state.
    fn close(&self, run: &mut Run<W::End>, report: CleanupReport) {
        run.token = None;
        run.force = None;
        run.report = report;
        for from in [State::Starting, State::Running] {
            if self.state.exchange(from, State::Stopping).is_ok() {
                log::debug!("session: {from} -> {}", State::Stopping);
            }
        }
        if self.state.exchange(State::Stopping, State::Stopped).is_ok() {
            log::debug!("session: {} -> {}", State::Stopping, State::Stopped);
        }
        self.changed.notify_all();
    }
}

impl<W: Work> Default for Lifecycle<W> {
    fn default() -> Lifecycle<W> {
        Lifecycle::new()
    }
}

impl<W: Work> Lifecycle<W> {
    /// An idle session.
    pub fn new() -> Lifecycle<W> {
        Lifecycle {
            shared: Arc::new(Shared {
                state: StateCell(AtomicU8::new(State::Idle as u8)),
                run: Mutex::new(Run {
                    number: 0,
                    was_ready: false,
                    token: None,
                    end: None,
                    report: CleanupReport::default(),
                    force: None,
                    panic: None,
                    forced: false,
                }),
                changed: Condvar::new(),
            }),
            clock: Clock::new(),
        }
    }

    /// The state.
    pub fn state(&self) -> State {
        self.shared.state.get()
    }

    /// Takes the step to Starting: the number of the run.
    fn claim(&self, work: &Arc<W>, signals: &Signals) -> Result<u64, StartError<W::End>> {
        let token = CancelToken::new(signals).map_err(StartError::System)?;
        let mut run = self.shared.lock();
        let from = |from| self.shared.state.exchange(from, State::Starting).map(|()| from);
        let claimed = from(State::Idle).or_else(|state| match state {
            State::Stopped => from(State::Stopped),
            State::Idle | State::Starting | State::Running | State::Stopping => Err(state),
        });
        let from = claimed.map_err(StartError::AlreadyRunning)?;
        log::debug!("session: {from} -> {}", State::Starting);
        let work = Arc::clone(work);
        run.number += 1;
        run.was_ready = false;
        run.token = Some(token);
        run.end = None;
        run.panic = None;
        run.forced = false;
        run.force = Some(ForceSlot(Box::new(move || work.force())));
        Ok(run.number)
    }

    /// Runs `work` on this thread until it ends.
    ///
    /// # Errors
    ///
    /// [`StartError::AlreadyRunning`] and [`StartError::System`]; nothing was changed.
    pub fn run_here(&self, work: W, signals: Signals) -> Result<(W::End, CleanupReport), StartError<W::End>> {
        let work = Arc::new(work);
        let number = self.claim(&work, &signals)?;
        let (end, report) = work.run(signals, &|| self.shared.ready(number));
        let mut run = self.shared.lock();
        if run.number == number {
            self.shared.close(&mut run, report.clone());
        }
        Ok((end, report))
    }

    /// Runs `work` on a thread of its own; comes back when traffic flows.
    ///
    /// # Errors
    ///
    /// See [`StartError`]: whatever it is, nothing of this start is left.
    pub fn start(&self, work: W) -> Result<(), StartError<W::End>> {
        let signals = Signals::none().map_err(StartError::System)?;
        let work = Arc::new(work);
        let number = self.claim(&work, &signals)?;
        let shared = Arc::clone(&self.shared);
        let body = move || {
            // Who waits for the run is told of its end in any case. Its values are dropped by then, and nobody sees them again.
            let run = || work.run(signals, &|| shared.ready(number));
            match panic::catch_unwind(AssertUnwindSafe(run)) {
                Ok((end, report)) => shared.ended(number, end, report),
                Err(payload) => shared.panicked(number, payload.as_ref()),
            }
        };
        #[allow(clippy::disallowed_methods, reason = "a library's session must not take the caller's thread")]
        let spawned = std::thread::Builder::new().name("ztun-session".into()).spawn(body);
        let mut run = self.shared.lock();
        if let Err(error) = spawned {
            self.shared.close(&mut run, CleanupReport::default());
            return Err(StartError::System(error));
        }
        while run.number == number && self.state() == State::Starting {
            run = self.shared.changed.wait(run).unwrap_or_else(PoisonError::into_inner);
        }
        // One that was stopped again meanwhile has been started all the same.
        if run.number != number || run.was_ready {
            return Ok(());
        }
        match (run.end.take(), &run.panic) {
            (Some(end), _) => Err(StartError::Failed(end)),
            (None, Some(said)) => {
                Err(StartError::System(std::io::Error::other(format!("the run has panicked: {said}"))))
            }
            (None, None) => Ok(()),
        }
    }

    /// Stops the run, if there is one, and waits until everything is closed and undone; after `limit` that is forced. All callers get the report
    /// of the one clean-up.
    pub fn stop(&self, limit: Duration) -> CleanupReport {
        let deadline = self.clock.now() + limit;
        let mut run = self.shared.lock();
        if self.state() == State::Idle {
            return CleanupReport::default();
        }
        let number = run.number;
        for from in [State::Starting, State::Running] {
            if self.shared.state.exchange(from, State::Stopping).is_ok() {
                log::debug!("session: {from} -> {}", State::Stopping);
                if let Some(token) = &run.token {
                    token.cancel();
                }
            }
        }
        while run.number == number && self.state() != State::Stopped {
            let left = deadline.since(self.clock.now());
            if left.is_zero() {
                return self.force(run);
            }
            run = self
                .shared
                .changed
                .wait_timeout(run, left)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(run, _)| run);
        }
        run.report.clone()
    }

    /// Gives the run up and releases what it holds.
    fn force(&self, mut run: MutexGuard<'_, Run<W::End>>) -> CleanupReport {
        log::warn!("the session does not end: what it holds is released by force");
        run.number += 1;
        run.forced = true;
        let report = run.force.take().map_or_else(CleanupReport::default, |ForceSlot(force)| force());
        self.shared.close(&mut run, report.clone());
        report
    }

    /// Stops the run, by force after [`RESTART_LIMIT`], and starts `work`.
    ///
    /// # Errors
    ///
    /// See [`StartError`].
    pub fn restart(&self, work: W) -> Result<CleanupReport, StartError<W::End>> {
        let report = self.stop(RESTART_LIMIT);
        self.start(work)?;
        Ok(report)
    }

    /// Whether the last run did not end in time, so that it was given up.
    pub fn was_forced(&self) -> bool {
        self.shared.lock().forced
    }

    /// What the last run said when it panicked, on a thread of its own ([`Lifecycle::start`]); once.
    pub fn take_panic(&self) -> Option<String> {
        self.shared.lock().panic.take()
    }

    /// How the last run has ended; once.
    pub fn take_end(&self) -> Option<W::End> {
        self.shared.lock().end.take()
    }
}

/// The tighter of two limits, the inner one counted from `now`: what runs inside something that has a deadline has no longer than that.
pub fn nested(own: Duration, outer: Instant, now: Instant) -> Instant {
    (now + own).min(outer)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "threads race here")]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    /// Work that waits for its token, and counts how many of it run at once.
    #[derive(Debug, Default, Clone)]
    struct Waiting {
        running: Arc<AtomicUsize>,
        overlaps: Arc<AtomicUsize>,
        runs: Arc<AtomicUsize>,
        /// Ends only when this is set.
        hangs: Option<Arc<AtomicBool>>,
        forced: Arc<AtomicUsize>,
        fails: bool,
    }

    impl Work for Waiting {
        type End = &'static str;

        fn run(&self, signals: Signals, ready: &dyn Fn()) -> (&'static str, CleanupReport) {
            if self.running.fetch_add(1, Ordering::SeqCst) > 0 {
                self.overlaps.fetch_add(1, Ordering::SeqCst);
            }
            self.runs.fetch_add(1, Ordering::SeqCst);
            if !self.fails {
                ready();
                assert!(signals.waiter().unwrap().wait(Duration::from_secs(3600)).unwrap());
            }
            while self.hangs.as_ref().is_some_and(|end| !end.load(Ordering::SeqCst)) {
                std::thread::yield_now();
            }
            self.running.fetch_sub(1, Ordering::SeqCst);
            ("ended", CleanupReport::default())
        }

        fn force(&self) -> CleanupReport {
            self.forced.fetch_add(1, Ordering::SeqCst);
            CleanupReport::default()
        }
    }

    /// Work that panics, before it was ready or when it is asked to stop.
    #[derive(Debug)]
    struct Panics {
        first: bool,
    }

    impl Work for Panics {
        type End = &'static str;

        fn run(&self, signals: Signals, ready: &dyn Fn()) -> (&'static str, CleanupReport) {
            if !self.first {
                ready();
                signals.waiter().unwrap().wait(Duration::from_secs(3600)).unwrap();
            }
            panic!("on purpose");
        }

        fn force(&self) -> CleanupReport {
            unreachable!("it ends")
        }
    }

    #[test]
    fn a_run_that_panics_is_a_run_that_has_ended() {
        let session = Lifecycle::new();
        let failed = session.start(Panics { first: true }).unwrap_err();
        assert!(failed.to_string().contains("on purpose"), "{failed}");
        assert_eq!(session.state(), State::Stopped);
        session.start(Panics { first: false }).unwrap();
        assert_eq!((session.state(), session.take_panic()), (State::Running, None));
        // It would be forced after an hour, if nobody were told.
        session.stop(Duration::from_secs(3600));
        assert_eq!((session.state(), session.take_panic().as_deref()), (State::Stopped, Some("on purpose")));
    }

    /// L-10, L-11
    #[test]
    fn a_session_starts_once_and_stops_as_often_as_it_is_asked() {
        let session = Lifecycle::new();
        session.stop(STOP_LIMIT);
        assert_eq!(session.state(), State::Idle);
        for _ in 0..3 {
            session.start(Waiting::default()).unwrap();
            assert_eq!(session.state(), State::Running);
            let refused = session.start(Waiting::default()).unwrap_err();
            assert!(matches!(refused, StartError::AlreadyRunning(State::Running)), "{refused}");
            session.stop(STOP_LIMIT);
            session.stop(STOP_LIMIT);
            assert_eq!(session.state(), State::Stopped);
            assert_eq!(session.take_end(), Some("ended"));
        }
    }

    #[test]
    fn a_run_that_ends_before_it_was_ready_is_an_error_of_the_start() {
        let session = Lifecycle::new();
        let failed = session.start(Waiting { fails: true, ..Waiting::default() }).unwrap_err();
        assert!(matches!(failed, StartError::Failed("ended")));
        assert_eq!(session.state(), State::Stopped);
        session.start(Waiting::default()).unwrap();
        session.stop(STOP_LIMIT);
    }

    /// L-10, L9: 1,000 starts and stops from 8 threads.
    #[test]
    fn of_racing_starts_exactly_one_wins_and_no_two_runs_overlap() {
        const THREADS: usize = 8;
        let session = Lifecycle::new();
        let work = Waiting::default();
        let won = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (session, work, won) = (&session, &work, &won);
                scope.spawn(move || {
                    for round in 0..1000 / THREADS {
                        if (thread + round) % 2 == 0 {
                            match session.start(work.clone()) {
                                Ok(()) => {
                                    won.fetch_add(1, Ordering::SeqCst);
                                }
                                Err(StartError::AlreadyRunning(_)) => {}
                                Err(error) => panic!("{error}"),
                            }
                        } else {
                            session.stop(STOP_LIMIT);
                        }
                    }
                });
            }
        });
        session.stop(STOP_LIMIT);
        assert_eq!(session.state(), State::Stopped);
        assert_eq!(work.overlaps.load(Ordering::SeqCst), 0);
        assert_eq!(work.running.load(Ordering::SeqCst), 0);
        // A start that was stopped before it saw Running has won as well.
        assert_eq!(work.runs.load(Ordering::SeqCst), won.load(Ordering::SeqCst));
    }

    /// L-2
    #[test]
    fn a_run_that_hangs_is_forced_and_cannot_touch_the_next() {
        let session = Lifecycle::new();
        let end = Arc::new(AtomicBool::new(false));
        let hanging = Waiting { hangs: Some(Arc::clone(&end)), ..Waiting::default() };
        session.start(hanging.clone()).unwrap();
        session.stop(Duration::from_millis(50));
        assert_eq!((session.state(), hanging.forced.load(Ordering::SeqCst)), (State::Stopped, 1));
        assert!(session.was_forced());
        let next = Waiting::default();
        session.start(next.clone()).unwrap();
        assert!(!session.was_forced());
        end.store(true, Ordering::SeqCst);
        while hanging.running.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
        assert_eq!(session.state(), State::Running);
        session.stop(STOP_LIMIT);
        assert_eq!(next.forced.load(Ordering::SeqCst), 0);
    }

    /// L-1
    #[test]
    fn a_restart_ends_one_run_before_it_starts_the_next() {
        let session = Lifecycle::new();
        let work = Waiting::default();
        session.start(work.clone()).unwrap();
        for _ in 0..50 {
            session.restart(work.clone()).unwrap();
        }
        session.stop(STOP_LIMIT);
        assert_eq!((work.overlaps.load(Ordering::SeqCst), work.runs.load(Ordering::SeqCst)), (0, 51));
    }

    /// L-11
    #[test]
    fn concurrent_stops_all_return_after_the_one_clean_up() {
        let session = Lifecycle::new();
        let work = Waiting::default();
        session.start(work.clone()).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    session.stop(STOP_LIMIT);
                    assert_eq!((session.state(), work.running.load(Ordering::SeqCst)), (State::Stopped, 0));
                });
            }
        });
    }

    /// D-1
    #[test]
    fn an_inner_deadline_is_never_later_than_the_outer_one() {
        let now = Instant::from_millis(1_000);
        let outer = Instant::from_millis(4_000);
        assert_eq!(nested(Duration::from_secs(10), outer, now), outer);
        assert_eq!(nested(Duration::from_secs(1), outer, now), Instant::from_millis(2_000));
        assert_eq!(nested(Duration::from_secs(1), now, outer), now);
    }
}
