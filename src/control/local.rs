//! The control socket: `/run/ztun/NAME.sock`, for the user that the router runs as and for root.
//!
//! The socket is made with mode 0600 in a directory that only its owner can write to, and the kernel is asked who has connected: another
//! user is not even answered. A socket that nobody listens on was left by a process that died, and is replaced; one that somebody
//! listens on is another router's, and is left alone. At the end it is deleted, if it is still the one that was made.

use crate::driver::peer;
use core::time::Duration;
use mio::event::Source;
use mio::net::UnixListener;
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A client's socket, as the router has it.
pub(super) type Stream = mio::net::UnixStream;
/// The same as the client has it.
pub(super) type Connection = std::os::unix::net::UnixStream;

/// How long a router that hangs is waited for, with so many connections before it that no other is taken.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Connects to the socket at `path`.
pub(super) fn connect(path: &Path) -> io::Result<Connection> {
    connect_within(path, CONNECT_LIMIT)
}

/// unix(7): connecting waits for room as long as sending may.
fn connect_within(path: &Path, limit: Duration) -> io::Result<Connection> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(limit))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket.into())
}

/// A listening socket with a name in the file system, which goes with it.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the name.
    made: (u64, u64),
}

impl Listener {
    /// Listens at `path`.
    ///
    /// # Errors
    ///
    /// The system's; [`ErrorKind::AddrInUse`] when somebody listens there already, [`ErrorKind::AlreadyExists`] when there is something else.
    pub fn bind(path: &Path) -> io::Result<Listener> {
        make_room(path)?;
        let socket = UnixListener::bind(path)?;
        // Whoever connects before this is asked for all the same.
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        let found = fs::symlink_metadata(path)?;
        Ok(Listener { socket, path: path.to_owned(), made: (found.dev(), found.ino()) })
    }

    /// What to register with the poll.
    pub(super) fn source(&mut self) -> &mut dyn Source {
        &mut self.socket
    }

    /// The next client; `None` for one that is not served.
    pub(super) fn accept(&mut self) -> io::Result<Option<Stream>> {
        let (stream, _) = self.socket.accept()?;
        let user = peer::peer_user(&stream)?;
        let welcome = user == 0 || user == peer::own_user();
        if !welcome {
            log::warn!("user {user} has connected to the control socket and is refused");
        }
        Ok(welcome.then_some(stream))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = |found: &fs::Metadata| (found.dev(), found.ino()) == self.made;
        if fs::symlink_metadata(&self.path).is_ok_and(|found| ours(&found))
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::debug!("control socket {} stays: {error}", self.path.display());
        }
    }
}

/// Removes a socket that nobody listens on.
fn make_room(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "there is something that is no socket"));
    }
    match Connection::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        // One whose queue is full (EAGAIN) lives too.
        Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, "another ztun listens there")),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            Err(io::Error::new(ErrorKind::AddrInUse, "another ztun listens there"))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_that_takes_nobody_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hangs.sock");
        let hangs = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        hangs.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        hangs.listen(1).unwrap();
        let limit = Duration::from_millis(20);
        let mut taken = Vec::new();
        let full = loop {
            match connect_within(&path, limit) {
                Ok(connection) => taken.push(connection),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        assert!(!taken.is_empty());
    }

    #[test]
    fn a_socket_that_nobody_listens_on_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ztun0.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves it behind, as a process that dies does");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Listener::bind(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ztun0.sock");
        fs::write(&path, "text").unwrap();
        assert_eq!(Listener::bind(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"text");
        assert_eq!(Listener::bind(&dir.path().join("no/where")).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_successors_socket_is_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ztun0.sock");
        let first = Listener::bind(&path).unwrap();
        fs::rename(&path, dir.path().join("aside")).unwrap();
        let _second = Listener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }
}
