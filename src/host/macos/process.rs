//! Other processes of ztun: waited for, asked to end, and killed.

use super::processes;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// A process that is not ours to wait for. Its end is told by a queue of the kernel's, so another process with the same number is never taken for it
/// once it is held.
#[derive(Debug)]
pub struct Other {
    pid: u32,
    started: u64,
    ended: OwnedFd,
}

impl Other {
    /// Holds the process `pid`; `None` when there is none.
    ///
    /// # Errors
    ///
    /// The system's, when it has no more descriptors.
    pub fn open(pid: u32) -> io::Result<Option<Other>> {
        let Some(process) = processes::process(pid).filter(|process| !process.ended) else { return Ok(None) };
        // SAFETY: the call has no arguments.
        let queue = unsafe { libc::kqueue() };
        if queue < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and nobody else has it. No child gets a queue.
        let ended = unsafe { OwnedFd::from_raw_fd(queue) };
        let wanted = libc::kevent {
            ident: pid as libc::uintptr_t,
            filter: libc::EVFILT_PROC,
            flags: libc::EV_ADD,
            fflags: libc::NOTE_EXIT,
            data: 0,
            udata: core::ptr::null_mut(),
        };
        // SAFETY: one live event is read, as the count says, and none is written.
        let added = unsafe {
            libc::kevent(ended.as_raw_fd(), &raw const wanted, 1, core::ptr::null_mut(), 0, core::ptr::null())
        };
        match added {
            0.. => Ok(Some(Other { pid, started: process.started, ended })),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Asks it to end.
    ///
    /// # Errors
    ///
    /// It is another user's.
    pub fn terminate(&self) -> io::Result<()> {
        self.signal(libc::SIGTERM)
    }

    /// Ends it.
    ///
    /// # Errors
    ///
    /// It is another user's.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(libc::SIGKILL)
    }

    fn signal(&self, signal: libc::c_int) -> io::Result<()> {
        if processes::start_time(self.pid) != Some(self.started) {
            return Ok(());
        }
        // SAFETY: the call takes numbers.
        if unsafe { libc::kill(self.pid.cast_signed(), signal) } == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            error => Err(error),
        }
    }

    /// Waits for its end, at most for `limit`; whether it came.
    ///
    /// # Errors
    ///
    /// `Interrupted` when a signal came first.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let milliseconds = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
        let mut watched = libc::pollfd { fd: self.ended.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the pointer is to one live pollfd, as the count says.
        match unsafe { libc::poll(&raw mut watched, 1, milliseconds) } {
            0 => Ok(false),
            1.. => Ok(true),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Ends this process at once, whatever its other threads do.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit takes a number and does not return.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_that_is_asked_to_end_has_ended_when_that_is_told() {
        let mut child = Command::new("/bin/sleep").arg("600").spawn().unwrap();
        let other = Other::open(child.id()).unwrap().unwrap();
        assert!(!other.wait(Duration::ZERO).unwrap());
        other.terminate().unwrap();
        assert!(other.wait(Duration::from_secs(60)).unwrap());
        child.wait().unwrap();
        assert!(Other::open(child.id()).unwrap().is_none());
    }
}
