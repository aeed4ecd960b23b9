//! The terminal of a program that repaints it: keys one by one, and everything as it was at the end.

use super::Signals;
use crate::time::Duration;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

const KEYS: Token = Token(0);
const SIGNALS: Token = Token(1);

/// What ended a wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wake {
    /// A key, as the octet that it sends.
    Key(u8),
    /// A signal that asks to stop.
    Signal,
    /// The time is over.
    Timeout,
}

/// Standard input as a source of keys. What was set on it is set back when this is dropped.
#[derive(Debug)]
pub struct Terminal {
    poll: Poll,
    signals: Signals,
    /// Standard input and how it was; none when it is no terminal.
    keys: Option<(OwnedFd, Before)>,
}

struct Before(libc::termios);

impl std::fmt::Debug for Before {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Before(..)")
    }
}

impl Terminal {
    /// Takes over keys and signals. Without a terminal on standard input there are no keys.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn open() -> io::Result<Terminal> {
        let poll = Poll::new()?;
        let mut signals = Signals::new()?;
        poll.registry().register(signals.source(), SIGNALS, Interest::READABLE)?;
        let stdin = io::stdin();
        let keys = if stdin.is_terminal() {
            let fd = stdin.as_fd().try_clone_to_owned()?;
            poll.registry().register(&mut SourceFd(&fd.as_raw_fd()), KEYS, Interest::READABLE)?;
            let before = one_by_one(&fd)?;
            Some((fd, before))
        } else {
            None
        };
        Ok(Terminal { poll, signals, keys })
    }

    /// Waits for a key, a signal, or the end of `time`.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn wait(&mut self, time: Duration) -> io::Result<Wake> {
        let mut events = Events::with_capacity(4);
        match self.poll.poll(&mut events, Some(time)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            Ok(()) | Err(_) => {}
        }
        if self.signals.drain() > 0 {
            return Ok(Wake::Signal);
        }
        if events.iter().any(|event| event.token() == KEYS)
            && let Some((fd, _)) = &self.keys
        {
            let mut octets = [0; 16];
            // More than one key at a time is an escape sequence: only the first octet is looked at.
            let read = File::from(fd.try_clone()?).read(&mut octets)?;
            // A terminal that is gone asks to stop too.
            return Ok(if read == 0 { Wake::Signal } else { Wake::Key(octets[0]) });
        }
        Ok(Wake::Timeout)
    }

    /// Sets back what was set.
    pub fn close(self) {}
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some((fd, before)) = &self.keys {
            // SAFETY: the descriptor is open, and the pointer is to a live, initialised struct that tcgetattr has filled.
            let result = unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSANOW, &raw const before.0) };
            if result != 0 {
                log::debug!("tcsetattr: {}", io::Error::last_os_error());
            }
        }
    }
}

/// Has a terminal give each key at once, unseen, Ctrl-C among them; how it was.
fn one_by_one(fd: &OwnedFd) -> io::Result<Before> {
    // SAFETY: termios is made of integers, for which zero is a value.
    let mut state: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and the pointer is to a live, writable struct of the type that the call expects.
    if unsafe { libc::tcgetattr(fd.as_raw_fd(), &raw mut state) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let before = Before(state);
    state.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG);
    state.c_cc[libc::VMIN] = 1;
    state.c_cc[libc::VTIME] = 0;
    // SAFETY: the descriptor is open, and the pointer is to a live, initialised struct of the type that the call expects.
    if unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSANOW, &raw const state) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(before)
}

/// Columns and rows of the terminal on standard output; `None` when it is none.
pub fn size() -> Option<(usize, usize)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the pointer is to a live, writable struct of the type that this request of ioctl fills.
    let result = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_col > 0 && size.ws_row > 0).then(|| (size.ws_col.into(), size.ws_row.into()))
}
