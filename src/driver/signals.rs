//! Signals as readiness of a file descriptor: the handler writes one octet into a pipe, the loop reads it.

use mio::net::UnixStream;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::{self, Read};

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

    fn take(signals: &[i32]) -> io::Result<Signals> {
        let (pipe, write) = std::os::unix::net::UnixStream::pair()?;
        pipe.set_nonblocking(true)?;
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

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            signal_hook::low_level::unregister(id);
        }
    }
}
