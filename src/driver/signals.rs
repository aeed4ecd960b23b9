//! Signals as readiness of a file descriptor: the handler writes one octet into a pipe, the loop reads it.

use crate::time::Duration;
use mio::net::UnixStream;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// The read end of the pipe that SIGINT, SIGTERM and SIGHUP are written to.
#[derive(Debug)]
pub struct Signals {
    pipe: UnixStream,
    write: std::os::unix::net::UnixStream,
    ids: Vec<signal_hook::SigId>,
}

impl Signals {
    /// Takes over the signals that ask a program to stop.
    pub fn new() -> io::Result<Signals> {
        Signals::take(&[SIGINT, SIGTERM, SIGHUP])
    }

    /// Takes over those that are meant for this program when a command runs under it: a terminal sends SIGINT to the command too.
    pub fn for_command() -> io::Result<Signals> {
        Signals::take(&[SIGTERM, SIGHUP])
    }

    /// Takes over none: what asks to stop is a waker ([`Signals::waker`]).
    pub fn none() -> io::Result<Signals> {
        Signals::take(&[])
    }

    fn take(signals: &[i32]) -> io::Result<Signals> {
        let (pipe, write) = std::os::unix::net::UnixStream::pair()?;
        pipe.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        let mut taken = Signals { pipe: UnixStream::from_std(pipe), write, ids: Vec::new() };
        for &signal in signals {
            taken.add(signal)?;
        }
        Ok(taken)
    }

    /// Takes over SIGINT too: the command is gone, and what a terminal sends is meant for this program.
    pub fn add_interrupt(&mut self) -> io::Result<()> {
        self.add(SIGINT)
    }

    fn add(&mut self, signal: i32) -> io::Result<()> {
        self.ids.push(signal_hook::low_level::pipe::register(signal, self.write.try_clone()?)?);
        Ok(())
    }

    /// Who calls it counts as a signal.
    pub fn waker(&self) -> io::Result<Waker> {
        Ok(Waker { write: self.write.try_clone()?, _read: self.pipe.as_fd().try_clone_to_owned()? })
    }

    /// For whoever waits where there is no loop yet.
    pub fn waiter(&self) -> io::Result<Waiter> {
        // The read end: a copy of it is readable as long as nobody has taken the signals.
        Ok(Waiter(self.pipe.as_fd().try_clone_to_owned()?))
    }

    /// How many signals came since the last call.
    pub fn drain(&mut self) -> usize {
        let mut octets = [0; 16];
        let mut count = 0;
        while let Ok(read) = self.pipe.read(&mut octets) {
            if read == 0 {
                break;
            }
            count += read;
        }
        count
    }

    /// What to register with the poll.
    pub fn source(&mut self) -> &mut UnixStream {
        &mut self.pipe
    }
}

/// An end of the pipe.
#[derive(Debug)]
pub struct Waker {
    write: std::os::unix::net::UnixStream,
    /// Holds the other end open: to write where nobody reads is SIGPIPE, which a program that ztun is a library of need not have put off.
    _read: OwnedFd,
}

impl Waker {
    /// One signal more. A pipe that is full has woken whoever waits already.
    pub fn wake(&self) -> io::Result<()> {
        (&self.write).write(&[0]).map(drop)
    }
}

/// Keeps SIGPIPE from this thread: writing to a connection that the other end has reset is an error here, and the end of a program that has not said
/// otherwise. The rest of the process, and its other signals, stay as they are.
///
/// # Errors
///
/// The system's, which has no reason for one.
pub fn withhold_sigpipe() -> io::Result<()> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initialises the set that the pointer leads to, and the others read it; a null pointer asks for no old mask.
    let error = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut())
    };
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// Sees signals without taking them.
#[derive(Debug)]
pub struct Waiter(OwnedFd);

/// What ended a wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// What this waiter waits for.
    Here,
    /// What the other one waits for.
    There,
    /// Neither, in time.
    Late,
}

impl Waiter {
    /// Waits for `Waker`, or for its end.
    pub fn pair() -> io::Result<(Waker, Waiter)> {
        let (wake, wait) = std::os::unix::net::UnixStream::pair()?;
        let read = wait.try_clone()?.into();
        Ok((Waker { write: wake, _read: read }, Waiter(wait.into())))
    }

    /// Waits until there is a signal, or `limit` has passed: whether there is one.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let woken = poll(&[&self.0], Some(limit))?;
        Ok(woken == Some(0))
    }

    /// Waits for a signal and for `other`, at most for `limit`. When both are there it is the other that is told.
    pub fn wait_with(&self, other: &Waiter, limit: Option<Duration>) -> io::Result<Woken> {
        Ok(match poll(&[&other.0, &self.0], limit)? {
            Some(0) => Woken::There,
            Some(_) => Woken::Here,
            None => Woken::Late,
        })
    }
}

/// Waits until one of the descriptors is readable: the first that is.
fn poll(descriptors: &[&OwnedFd], limit: Option<Duration>) -> io::Result<Option<usize>> {
    let mut watched: Vec<libc::pollfd> = descriptors
        .iter()
        .map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    let milliseconds =
        limit.map_or(-1, |limit| libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX));
    loop {
        // SAFETY: the pointer is to as many live pollfds as the count says.
        let ready = unsafe { libc::poll(watched.as_mut_ptr(), watched.len() as libc::nfds_t, milliseconds) };
        match ready {
            0 => return Ok(None),
            1.. => return Ok(watched.iter().position(|fd| fd.revents != 0)),
            _ => {
                let error = io::Error::last_os_error();
                // A signal that is ours is in its pipe by then.
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            signal_hook::low_level::unregister(id);
        }
    }
}
