//! The only code that changes the machine around the tunnel, and undoes it.
//!
//! # Theory of operation
//!
//! A folder for each system (`linux`, `macos`, `windows`) has its vocabulary of [`Change`]s, the plan that turns what there is and what is [wanted](Want) into a list of them
//! without touching anything, and the hands that make them. `run` is what all systems share: journal, locks, and the life of a run.
//! [`up`] takes the locks, undoes what a run that died left, plans, makes the changes one by one, and asks whether they are there: the undo of each is
//! in the journal, synced, before it is made. [`Applied::refresh`] makes the difference when the network or the device has changed.
//! [`Applied::down`] undoes them in reverse; a step that fails never skips the next. [`restore`] does the same for a run that died, from its journal, and then from the kernel's tables: every route and rule of ours
//! carries a protocol number and lies in a table or block of preferences of ours, so they are found without any journal.
//!
//! What a process that dies takes along by itself (the device, its addresses, the routes into it) and what stays (the rules, which then lead
//! into an empty table and so on to the machine's own) is in `docs/HOST-CHANGES.md`.
//!
//! [`LocalProxy`] tells whether a flow comes from a proxy on this machine. On Linux `netns` gives a program a network of its own, in a [`process`] of its
//! own.
//! Nothing here knows the engine.

#[cfg(any(target_os = "linux", target_os = "macos", windows))]
mod run;
#[cfg(any(target_os = "linux", target_os = "macos", windows))]
pub use run::{
    Applied, Holder, RunDir, dry_run, holder, left_behind, name_servers, restore, restore_in, restore_own,
    up, up_in,
};

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as system;
#[cfg(target_os = "linux")]
pub use linux::{change, dns, netns, observe, plan, privilege, process};

#[cfg(any(target_os = "macos", test))]
#[cfg_attr(not(target_os = "macos"), allow(unreachable_pub, reason = "compiled for its tests"))]
mod macos;
#[cfg(target_os = "macos")]
use macos as system;
#[cfg(target_os = "macos")]
pub use macos::{change, names, plan, process};

#[cfg(any(windows, test))]
#[cfg_attr(not(windows), allow(unreachable_pub, dead_code, reason = "compiled for its tests"))]
mod windows;
#[cfg(windows)]
use windows as system;
#[cfg(windows)]
pub use windows::{change, guard, plan, process, program_is_open_to, rows};

#[cfg(not(any(target_os = "linux", target_os = "macos", windows)))]
#[path = "process_plain.rs"]
pub mod process;
#[cfg(not(any(target_os = "linux", target_os = "macos", windows)))]
mod unsupported;
#[cfg(not(any(target_os = "linux", target_os = "macos", windows)))]
use unsupported as system;
#[cfg(not(any(target_os = "linux", target_os = "macos", windows)))]
pub use unsupported::{
    Applied, Holder, RunDir, dry_run, holder, left_behind, name_servers, restore, restore_own, up,
};

#[cfg(any(target_os = "linux", target_os = "macos"))]
mod interface;
mod report;
mod reversible;
#[cfg_attr(
    not(any(target_os = "linux", target_os = "macos", windows)),
    allow(dead_code, reason = "only a run asks what is wanted")
)]
mod want;

pub use report::{DnsCheck, Outcome};
pub use reversible::{Found, ParseError, Reversible};
pub use system::{Change, LocalProxy, find_interface, interface_index, reset_existing, stand_in_name};
pub use want::{Family, PROTOCOL, Want, stays_outside};

/// One undo on this system, and what came of it.
pub type Step = report::Step<Change>;

/// What was undone on this system.
pub type Report = report::Report<Change>;

/// What a refresh found to do on this system.
pub type Refreshed = report::Refreshed<Change>;

use core::fmt;
use std::io;

/// What failed, why, and what to try.
#[derive(Debug)]
pub struct HostError {
    /// What was tried.
    pub what: String,
    /// The system's answer.
    pub source: io::Error,
    /// What to try next.
    pub remedy: String,
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.what, self.source, self.remedy)
    }
}

impl core::error::Error for HostError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        Some(&self.source)
    }
}
