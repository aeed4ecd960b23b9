//! Ends the process when a loop that was asked to stop does not end, with the machine restored.
//!
//! # Theory of operation
//!
//! A thread of its own sleeps on a pipe that the signals are written to as well. From the first signal on the loop has [`GRACE`] to stop; a second
//! signal leaves it [`FORCED_GRACE`]. Then the thread undoes the changes to the machine itself, out of the journal and the kernel's tables, as
//! `ztun restore` does after a `kill -9`, and ends the process with the status of a forced end. It shares nothing with the loop but the descriptor of the lock,
//! whatever the loop may hang in: a system call, a log that nobody reads. Therefore it logs nothing.

use super::cleanup::{Cleanup, CleanupItem, CleanupReport, CleanupResult};
use crate::config::HostPlanConfig;
use crate::driver::{Clock, Signals, Waiter, Waker, Woken};
use crate::host;
use crate::time::{Duration, Instant};
use std::io;
use std::thread::JoinHandle;

/// What a loop that was asked to stop has, L-6: with what a restoration takes, the process is gone after 3.5 s.
const GRACE: Duration = Duration::from_millis(3_000);
/// What it has from the second signal on.
const FORCED_GRACE: Duration = Duration::from_millis(1_000);
/// Exit status: it had to be forced.
const FORCED: i32 = 9;

/// The thread; dropped without [`Watchdog::disarm`] it goes on watching.
#[derive(Debug)]
pub(super) struct Watchdog {
    disarm: Waker,
    thread: JoinHandle<()>,
}

impl Watchdog {
    /// Watches a run on `host`.
    ///
    /// # Errors
    ///
    /// The system refuses a thread or a pipe.
    pub(super) fn start(host: &HostPlanConfig) -> io::Result<Watchdog> {
        let signals = Signals::new()?;
        let asked = signals.waiter()?;
        let (disarm, disarmed) = Waiter::pair()?;
        let host = host.clone();
        let body = move || watch(signals, &asked, &disarmed, &host);
        #[allow(clippy::disallowed_methods, reason = "what watches the loop cannot run in it")]
        let thread = std::thread::Builder::new().name("ztun-watchdog".into()).spawn(body)?;
        Ok(Watchdog { disarm, thread })
    }

    /// The run is over: the thread ends.
    pub(super) fn disarm(self) {
        drop(self.disarm);
        if self.thread.join().is_err() {
            log::debug!("the watchdog had panicked");
        }
    }
}

/// Waits for the end of the run, or for the end of its time.
fn watch(mut signals: Signals, asked: &Waiter, disarmed: &Waiter, host: &HostPlanConfig) {
    let clock = Clock::new();
    let mut deadline = None;
    loop {
        let left = deadline.map(|at: Instant| at.since(clock.now()));
        match asked.wait_with(disarmed, left) {
            Ok(Woken::Here) => {
                signals.drain();
                let now = clock.now();
                deadline = Some(deadline.map_or(now + GRACE, |at| at.min(now + FORCED_GRACE)));
            }
            Ok(Woken::Late) => break,
            Ok(Woken::There) | Err(_) => return,
        }
    }
    // The loop may hold the lock of the log for ever.
    log::set_max_level(log::LevelFilter::Off);
    restore(host, clock);
    host::process::exit_now(FORCED)
}

/// Undoes what a run on `host` in this process has changed, without its help.
pub(super) fn restore(host: &HostPlanConfig, clock: Clock) -> CleanupReport {
    let mut cleanup = Cleanup::begin(clock);
    match host::restore_own(&host.tun, host.no_route) {
        Ok(report) => {
            for step in &report.steps {
                cleanup.add(CleanupItem::of(step, |_| CleanupResult::Forced));
            }
        }
        Err(error) => {
            let result = CleanupResult::Error(error.to_string());
            cleanup.add(CleanupItem { kind: "host", id: host.tun.clone(), result, ms: 0 });
        }
    }
    cleanup.finish(0, 0)
}
