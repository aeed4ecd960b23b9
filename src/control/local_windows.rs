//! The control socket of a system that has none yet: nobody listens, and whoever asks is told so.

use mio::event::Source;
use std::io;
use std::path::Path;

/// A client's socket, as the router would have it.
pub(super) type Stream = mio::net::TcpStream;
/// The same as the client would have it.
pub(super) type Connection = std::net::TcpStream;

/// Connects to nobody: always [`io::ErrorKind::Unsupported`].
pub(super) fn connect(_path: &Path) -> io::Result<Connection> {
    Err(io::ErrorKind::Unsupported.into())
}

/// A socket that cannot be.
#[derive(Debug)]
pub enum Listener {}

impl Listener {
    /// # Errors
    ///
    /// Always [`io::ErrorKind::Unsupported`].
    pub fn bind(_path: &Path) -> io::Result<Listener> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn source(&mut self) -> &mut dyn Source {
        match *self {}
    }

    pub(super) fn accept(&mut self) -> io::Result<Option<Stream>> {
        match *self {}
    }
}
