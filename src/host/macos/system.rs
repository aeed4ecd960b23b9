//! What every system answers for itself: remedies, and what this one does without.

use super::change::Change;
use super::scutil::Upkeep;
use std::io;
use std::net::SocketAddr;

/// Where journals and locks are kept. It is empty after a start of the machine, as everything that a run changes is.
pub(in crate::host) const RUN_DIR: &str = "/var/run/ztun";

/// What to try where a privilege is missing.
pub(in crate::host) const PRIVILEGE: &str = "run with sudo";

/// What to try where locks cannot be taken.
pub(in crate::host) const LOCK_REMEDY: &str = "run with sudo, or set ZTUN_RUN_DIR to a directory of your own";

/// What to try where there is no such device.
pub(in crate::host) const NO_DEVICE: &str =
    "devices are named utun and a number; `ifconfig -l` lists those that there are";

/// What to try where changes do not last.
pub(in crate::host) const NOT_KEPT: &str =
    "another program undoes them at once: stop it, or tell it to leave the device and its routes alone";

/// The system's answer where there is no such device.
pub(in crate::host) fn no_device() -> io::Error {
    io::Error::from_raw_os_error(libc::ENXIO)
}

/// What to try after an error that any request may end with.
pub(in crate::host) fn remedy(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => Some("raise the limit on open files (`ulimit -n`)"),
        _ => None,
    }
}

/// Keeps the name servers that `changes` have set.
pub(in crate::host) fn upkeep(changes: &[Change]) -> Option<Upkeep> {
    let set = changes
        .iter()
        .find_map(|change| if let Change::DnsSet(names) = change { Some(names.clone()) } else { None });
    set.map(Upkeep::new)
}

/// There is none: nobody but the process that has opened a utun can take it away.
pub fn stand_in_name(_device: &str) -> Option<String> {
    None
}

/// There is none.
///
/// # Errors
///
/// Always.
pub(in crate::host) fn stand_in(_device: &str, _changes: &[Change]) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "a utun needs no stand-in"))
}

/// None is missing.
///
/// # Errors
///
/// Never.
pub(in crate::host) fn is_stood_in(_device: &str, _changes: &[Change]) -> io::Result<bool> {
    Ok(true)
}

/// Nobody can close another program's connection on macOS.
///
/// # Errors
///
/// Always: `Unsupported`.
pub fn reset_existing(_device: &str, _keep: &dyn Fn(SocketAddr, SocketAddr) -> bool) -> io::Result<usize> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "macOS lets no program close the connections of another"))
}
