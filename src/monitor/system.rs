//! What the monitors of all Unix systems ask of them.

use core::time::Duration;
#[cfg(any(target_os = "linux", target_os = "macos"))]
use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
};

/// What a system call has just opened, or its error.
#[cfg(any(target_os = "linux", target_os = "macos"))]
pub(super) fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system call that gave it has just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What a clock shows; zero for one that there is not.
pub(super) fn clock(id: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live, writable struct of the type that the call expects.
    if unsafe { libc::clock_gettime(id, &raw mut time) } != 0 {
        return Duration::ZERO;
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanos.min(999_999_999))
}
