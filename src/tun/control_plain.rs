//! On iOS only the system makes utun interfaces, for a packet tunnel provider, which hands them over.

use std::io;
use std::os::fd::OwnedFd;

/// Fails: no app may.
pub(super) fn create(_name: &str) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}
