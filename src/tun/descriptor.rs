//! Descriptors of devices that somebody else has opened, as every Unix has them.

use super::OpenError;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes the descriptor of this number, as `--tun-fd` gives it; it is to be that of `kind`. It is this process's from here on.
pub(super) fn claim(raw: RawFd, kind: &str) -> Result<OwnedFd, OpenError> {
    // SAFETY: F_GETFD takes no argument and touches no memory of ours.
    if raw <= libc::STDERR_FILENO || unsafe { libc::fcntl(raw, libc::F_GETFD) } < 0 {
        return Err(OpenError {
            what: format!("cannot use descriptor {raw} as {kind}"),
            source: io::Error::from_raw_os_error(libc::EBADF),
            remedy: "it must be open in this process: whoever starts ztun has to pass it on".into(),
        });
    }
    // SAFETY: the descriptor is open and above the standard ones; nothing else in this process knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// `O_NONBLOCK` and `FD_CLOEXEC`, which a descriptor from elsewhere may lack.
pub(super) fn set_flags(fd: RawFd) -> io::Result<()> {
    // SAFETY: F_GETFL takes no argument and touches no memory of ours.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_SETFL takes an integer and touches no memory of ours.
    if unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_SETFD takes an integer and touches no memory of ours.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
