//! One run of the router on this machine: start, run, stop, restart, in order.
//!
//! # Theory of operation
//!
//! A [`Session`] is in one of five states (`state`), and has at most one run at a time: the [`Router`], on the caller's thread ([`run`]) or on one
//! of its own ([`Session::start`]); inside another program it leaves the machine alone (`embedded`).
//!
//! **Start.** Signals are taken over first: one that comes during the set-up is kept and ends the run as soon as the loop begins. Then
//! the proxy's processes are looked for if it is on this machine, the device is opened and the machine changed (`device`, journalled by `host`), and
//! the loop built (`setup`). `ready` is said when traffic flows.
//!
//! **While it runs** the `keeper` makes a device anew that somebody has deleted; flows are kept. `network` follows the machine's network.
//!
//! **Stop.** In this order: nobody new is listened to, UDP associations end, TCP flows get FIN and then RST, sockets are closed, the changes to the machine
//! are undone, the latest first, and the device goes; then it is verified that nothing is left (`cleanup`). A step that fails does not
//! skip the next. A panic takes the same way, by the drops of the same values. A loop that hangs does not: for that there is the `watchdog`.

mod cleanup;
mod device;
mod egress;
mod embedded;
mod error;
#[cfg(target_os = "linux")]
pub mod exec;
mod keeper;
mod names;
mod network;
#[cfg_attr(windows, path = "notify_windows.rs")]
#[cfg_attr(not(any(target_os = "linux", windows)), path = "notify_plain.rs")]
mod notify;
mod outside;
mod probe;
mod replace;
mod router;
#[cfg(windows)]
pub mod service;
mod setup;
mod state;
mod token;
mod watchdog;

pub use cleanup::{CleanupItem, CleanupReport, CleanupResult};
pub use embedded::Embedding;
pub use error::RunError;
pub use router::Router;
pub use state::{Lifecycle, RESTART_LIMIT, STOP_LIMIT, StartError, State, Work, nested};
pub use token::CancelToken;

use crate::config::Config;
use crate::driver::{Clock, Signals};
use crate::host;
use setup::{egress_index, local_proxies, machine, proxy_addresses, raise_limits};
use watchdog::Watchdog;

/// How a run that was asked to stop has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Everything was closed and undone in order.
    Stopped,
    /// It was asked twice: flows were cut off; the machine is restored all the same.
    Forced,
}

/// The router as a session: start, stop, restart, from any thread.
pub type Session = Lifecycle<Router>;

/// Runs the router on this thread until a signal asks it to stop. From the first signal on the process is gone in 3.5 s, whatever hangs.
///
/// # Errors
///
/// See [`RunError`]. Whatever it is, what had been changed on the machine has been undone, but for [`RunError::Cleanup`].
pub fn run(config: &Config) -> Result<Ended, RunError> {
    let descriptors = "raise the limit on open files (`ulimit -n`)";
    // With all privileges that there are: the hard limit is raised with one that is given up.
    raise_limits(config);
    confine(config);
    let signals = Signals::new().map_err(machine("cannot take over the signals", descriptors))?;
    let watchdog =
        Watchdog::start(&config.host).map_err(machine("cannot start the watchdog", descriptors))?;
    let ran = Session::new().run_here(Router::new(config.clone(), Clock::new()), signals);
    watchdog.disarm();
    match ran {
        Ok((end, _)) => end,
        Err(StartError::Failed(end)) => end,
        Err(StartError::System(error)) => Err(machine("cannot start a session", descriptors)(error)),
        Err(StartError::AlreadyRunning(_)) => unreachable!("a session of our own"),
    }
}

/// Gives up what the run of `config` will not use of what this process may do. Done without where it cannot be done: that makes no run worse.
#[cfg(target_os = "linux")]
fn confine(config: &Config) {
    use crate::host::privilege;
    if !privilege::has_one_thread() {
        // The other threads would keep what this one gives up.
        return log::debug!("privileges are kept: this process has threads of its own");
    }
    match privilege::confine(privilege::needed(&config.host, config.metrics)) {
        Ok(kept) => log::debug!("privileges kept: {kept}"),
        Err(error) => log::warn!("cannot give up privileges that are not needed: {error}"),
    }
}

/// Privileges cannot be given up one by one here.
#[cfg(not(target_os = "linux"))]
fn confine(_: &Config) {}

/// What [`run`] would change on the machine, and the undo of each change; nothing is changed and no privilege is needed.
pub fn dry_run(config: &Config) -> Result<String, RunError> {
    egress_index(config)?;
    let locals = local_proxies(config)?;
    let changes = host::dry_run(&config.host, &config.host.tun, &proxy_addresses(config), locals.first())?;
    if config.host.tun_fd.is_some() {
        return Ok(changes);
    }
    let host = &config.host;
    let device = |name: &str| {
        format!("device add {name}\n    undo: device del {name}, by the kernel when ztun ends\n")
    };
    let stand_in = host::stand_in_name(&host.tun).filter(|_| !host.no_route && !host.kill_switch);
    Ok(device(&host.tun) + &changes + &stand_in.map_or_else(String::new, |name| device(&name)))
}
