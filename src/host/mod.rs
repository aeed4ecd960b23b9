//! The only code that changes the machine around the tunnel, and undoes it.
//!
//! # Theory of operation
//!
//! [`plan`](mod@plan) turns what there is and what is wanted into a list of [`Change`](change::Change)s, without touching anything.
//! [`up`] takes the locks, undoes what a run that died left, plans, makes the changes one by one, and asks whether they are there: the undo of each is
//! in the journal, synced, before it is made. [`Applied::refresh`] makes the difference when the network or the device has changed.
//! [`Applied::down`] undoes them in reverse; a step that fails never skips the next. [`restore`] does the same for a run that died, from its journal, and then from the kernel's tables: every route and rule of ours
//! carries a protocol number and lies in a table or block of preferences of ours, so they are found without any journal.
//!
//! What a process that dies takes along by itself (the device, its addresses, the routes into it) and what stays (the rules, which then lead
//! into an empty table and so on to the machine's own) is in `docs/HOST-CHANGES.md`.
//!
//! [`owner`] tells whether a flow comes from a proxy on this machine. [`netns`] gives a program a network of its own, in a [`process`] of its own.
//! Nothing here knows the engine.

pub mod change;
pub mod dns;
pub mod plan;

#[cfg(target_os = "linux")]
mod existing;
#[cfg(target_os = "linux")]
mod journal;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
mod lock;
#[cfg(target_os = "linux")]
mod machine;
#[cfg(target_os = "linux")]
pub mod netns;
#[cfg(target_os = "linux")]
mod nft;
#[cfg(target_os = "linux")]
pub mod observe;
#[cfg(target_os = "linux")]
pub mod owner;
#[cfg(target_os = "linux")]
pub mod privilege;
#[cfg_attr(not(target_os = "linux"), path = "process_plain.rs")]
pub mod process;
#[cfg(target_os = "linux")]
mod remedy;
mod report;
#[cfg(target_os = "linux")]
mod run;
#[cfg(target_os = "linux")]
mod session;
#[cfg(target_os = "linux")]
mod socket;
#[cfg(target_os = "linux")]
mod standin;
#[cfg(target_os = "linux")]
pub use existing::{reset_existing, stays_outside};
#[cfg(target_os = "linux")]
pub use linux::{find as find_interface, index_of as interface_index};
#[cfg(target_os = "linux")]
pub use lock::{Holder, RunDir};
#[cfg(target_os = "linux")]
pub use owner::LocalProxy;
pub use report::{Outcome, Refreshed, Report, Step};
#[cfg(target_os = "linux")]
pub use session::{
    Applied, dry_run, holder, left_behind, name_servers, restore, restore_in, restore_own, up, up_in,
};
#[cfg(target_os = "linux")]
pub use standin::stand_in_name;

#[cfg(not(target_os = "linux"))]
mod unsupported;
#[cfg(not(target_os = "linux"))]
pub use unsupported::{
    Applied, Holder, LocalProxy, RunDir, dry_run, find_interface, holder, interface_index, left_behind,
    name_servers, reset_existing, restore, restore_own, stand_in_name, stays_outside, up,
};

#[cfg(target_os = "linux")]
use crate::netlink;
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
