//! Systems whose console is not repainted: whoever asks is told so.

use crate::time::Duration;
use std::io;

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

/// A console that cannot be taken over.
#[derive(Debug)]
pub struct Terminal(());

impl Terminal {
    /// # Errors
    ///
    /// Always [`io::ErrorKind::Unsupported`].
    pub fn open() -> io::Result<Terminal> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// # Errors
    ///
    /// Always [`io::ErrorKind::Unsupported`].
    pub fn wait(&mut self, _time: Duration) -> io::Result<Wake> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Nothing was set.
    pub fn close(self) {}
}

/// Nobody knows.
pub fn size() -> Option<(usize, usize)> {
    None
}
