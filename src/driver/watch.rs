//! The process with whose end the loop ends, held by a descriptor (pidfd).

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// A process that the loop watches.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl From<OwnedFd> for Watch {
    /// Of a pidfd, which becomes readable when the process ends.
    fn from(pidfd: OwnedFd) -> Watch {
        Watch(pidfd)
    }
}

impl Watch {
    pub(super) fn register(&self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut SourceFd(&self.0.as_raw_fd()), token, Interest::READABLE)
    }

    pub(super) fn deregister(&self, registry: &Registry) -> io::Result<()> {
        registry.deregister(&mut SourceFd(&self.0.as_raw_fd()))
    }

    /// Asks the process to end: SIGTERM.
    pub(super) fn terminate(&self) {
        // SAFETY: plain system call on a descriptor that is open; no pointer is passed but the null siginfo that the call allows.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                libc::SIGTERM,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if result != 0 {
            log::debug!("pidfd_send_signal: {}", io::Error::last_os_error());
        }
    }
}
