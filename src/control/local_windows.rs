//! The control socket of Windows: a named pipe, for the user that the router runs as and for administrators.
//!
//! # Theory of operation
//!
//! A pipe is in no directory. So that a router is found as on other systems, a file stands at the control socket's path as long as somebody listens; the pipe
//! is named after the path. A client asks for the file first: whoever cannot write where it stands cannot pass for a router by a pipe of that name.
//! The pipe's security descriptor keeps other users out, and the pipe refuses other machines.
//!
//! A pipe has one client. The instance that waits becomes the client's connection, and another one waits from then on. So the listener keeps the poll's
//! registry, which it was registered with.

use super::pipe_name;
use crate::driver::pipe;
use crate::time::Duration;
use mio::event::Source;
use mio::windows::NamedPipe;
use mio::{Events, Interest, Poll, Registry, Token};
use std::cell::Cell;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// A client's pipe, as the router has it.
pub(super) type Stream = NamedPipe;

/// Connects to the router whose control socket is at `path`.
pub(super) fn connect(path: &Path) -> io::Result<Connection> {
    let name = named(path)?;
    if !is_pipe(path, &name) {
        fs::metadata(path)?;
    }
    let mut pipe = pipe::open(&name)?;
    let poll = Poll::new()?;
    poll.registry().register(&mut pipe, Token(0), Interest::READABLE | Interest::WRITABLE)?;
    Ok(Connection {
        pipe,
        poll,
        events: Events::with_capacity(4),
        read: Cell::default(),
        write: Cell::default(),
    })
}

fn named(path: &Path) -> io::Result<String> {
    let text = path.to_str().ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "no name of a pipe"))?;
    Ok(pipe_name::of(text))
}

/// Whether the path is that of a pipe itself, of which no file tells.
fn is_pipe(path: &Path, name: &str) -> bool {
    path.to_str() == Some(name)
}

/// The same as the client has it, who waits for what it asks.
#[derive(Debug)]
pub(super) struct Connection {
    pipe: NamedPipe,
    poll: Poll,
    events: Events,
    read: Cell<Option<Duration>>,
    write: Cell<Option<Duration>>,
}

impl Connection {
    /// How long a read waits for the next octets; `None` for ever.
    pub(super) fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.read.set(limit);
        Ok(())
    }

    /// How long a write waits for room; `None` for ever.
    pub(super) fn set_write_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.write.set(limit);
        Ok(())
    }

    /// Does what may have to wait.
    fn patiently(
        &mut self,
        limit: Option<Duration>,
        mut step: impl FnMut(&mut NamedPipe) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match step(&mut self.pipe) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            match self.poll.poll(&mut self.events, limit) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(()) if self.events.is_empty() => return Err(ErrorKind::WouldBlock.into()),
                polled => polled?,
            }
        }
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.patiently(self.read.get(), |pipe| pipe.read(buffer))
    }
}

impl Write for Connection {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.patiently(self.write.get(), |pipe| pipe.write(octets))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A pipe that waits for clients, and the file that tells of it, which goes with it.
#[derive(Debug)]
pub struct Listener {
    name: String,
    descriptor: String,
    /// The instance that the next client gets; `None` when the system had none to give.
    waits: Option<NamedPipe>,
    poll: Option<(Registry, Token, Interest)>,
    /// `None` when the path is the pipe's own.
    file: Option<PathBuf>,
}

impl Listener {
    /// Listens at `path`.
    ///
    /// # Errors
    ///
    /// The system's; [`ErrorKind::AddrInUse`] when somebody listens there already, [`ErrorKind::AlreadyExists`] when there is something else.
    pub fn bind(path: &Path) -> io::Result<Listener> {
        let name = named(path)?;
        let file = (!is_pipe(path, &name)).then(|| path.to_owned());
        // One that a process left behind that died is empty.
        if let Some(found) = file.as_ref().and_then(|file| fs::symlink_metadata(file).ok())
            && (!found.is_file() || found.len() > 0)
        {
            return Err(io::Error::new(ErrorKind::AlreadyExists, "there is something that is no socket"));
        }
        let descriptor = pipe_name::descriptor(&pipe::own_user()?);
        let waits = pipe::create(&name, &descriptor, true).map_err(|error| {
            let taken = error.kind() == ErrorKind::PermissionDenied;
            if taken { io::Error::new(ErrorKind::AddrInUse, "another ztun listens there") } else { error }
        })?;
        if let Some(file) = &file {
            fs::write(file, b"")?;
        }
        Ok(Listener { name, descriptor, waits: Some(waits), poll: None, file })
    }

    /// What to register with the poll.
    pub(super) fn source(&mut self) -> &mut dyn Source {
        self
    }

    /// The next client. All that come may: the descriptor has kept out the others.
    pub(super) fn accept(&mut self) -> io::Result<Option<Stream>> {
        if self.waits.is_none() {
            self.wait_for_another()?;
        }
        let Some(waits) = &self.waits else { return Err(ErrorKind::WouldBlock.into()) };
        waits.connect()?;
        let Some(mut client) = self.waits.take() else { return Err(ErrorKind::WouldBlock.into()) };
        if let Err(error) = self.wait_for_another() {
            log::debug!("no further instance of the control socket's pipe: {error}");
        }
        if let Some((registry, ..)) = &self.poll {
            registry.deregister(&mut client)?;
        }
        // What went wrong while it was connected.
        Ok(client.take_error()?.is_none().then_some(client))
    }

    /// Has an instance wait for the next client.
    fn wait_for_another(&mut self) -> io::Result<()> {
        let mut waits = pipe::create(&self.name, &self.descriptor, false)?;
        if let Some((registry, token, interests)) = &self.poll {
            registry.register(&mut waits, *token, *interests)?;
            begin(&waits)?;
        }
        self.waits = Some(waits);
        Ok(())
    }
}

/// Has a registered instance wait. A client that is there already is told of as any other.
fn begin(waits: &NamedPipe) -> io::Result<()> {
    match waits.connect() {
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Source for Listener {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.poll = Some((registry.try_clone()?, token, interests));
        match &mut self.waits {
            Some(waits) => {
                registry.register(waits, token, interests)?;
                begin(waits)
            }
            None => Ok(()),
        }
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.poll = Some((registry.try_clone()?, token, interests));
        self.waits.as_mut().map_or(Ok(()), |waits| registry.reregister(waits, token, interests))
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.poll = None;
        self.waits.as_mut().map_or(Ok(()), |waits| registry.deregister(waits))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(file) = &self.file
            && let Err(error) = fs::remove_file(file)
        {
            log::debug!("{} stays: {error}", file.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Option<Duration> = Some(Duration::from_secs(10));

    /// Polls until the listener gives a client.
    fn accept(listener: &mut Listener, poll: &mut Poll) -> Stream {
        let mut events = Events::with_capacity(8);
        loop {
            match listener.accept() {
                Ok(Some(client)) => return client,
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    poll.poll(&mut events, LIMIT).unwrap();
                    assert!(!events.is_empty(), "nobody comes");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn a_router_is_found_by_its_file_and_answers_one_client_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ztun0.sock");
        assert_eq!(connect(&path).unwrap_err().kind(), ErrorKind::NotFound);
        let mut listener = Listener::bind(&path).unwrap();
        let mut poll = Poll::new().unwrap();
        let registry = poll.registry().try_clone().unwrap();
        registry.register(listener.source(), Token(0), Interest::READABLE).unwrap();
        for word in [b"one", b"two"] {
            let mut asks = connect(&path).unwrap();
            asks.set_read_timeout(LIMIT).unwrap();
            asks.write_all(word).unwrap();
            let mut client = accept(&mut listener, &mut poll);
            registry.register(&mut client, Token(1), Interest::READABLE | Interest::WRITABLE).unwrap();
            let mut heard = [0; 3];
            let mut events = Events::with_capacity(8);
            let mut had = 0;
            while had < 3 {
                match client.read(&mut heard[had..]) {
                    Ok(read) => had += read,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        poll.poll(&mut events, LIMIT).unwrap();
                        assert!(!events.is_empty(), "nothing comes");
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!(&heard, word);
            assert_eq!(client.write(b"answer").unwrap(), 6);
            let mut answer = [0; 6];
            asks.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"answer");
            drop(client);
            // What was under way on it is over when the poll has heard of it.
            asks.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
            let mut end = asks.read(&mut answer);
            for _ in 0..1_000 {
                if end.is_ok() {
                    break;
                }
                poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
                end = asks.read(&mut answer);
            }
            assert_eq!(end.unwrap(), 0, "the end");
        }
        drop(listener);
        assert!(!path.exists());
    }

    /// Wine 8.0 lets everybody be the first of a pipe.
    #[test]
    fn on_windows_a_router_that_listens_is_not_displaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ztun3.sock");
        let _listener = Listener::bind(&path).unwrap();
        assert_eq!(Listener::bind(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert!(path.exists());
    }

    #[test]
    fn an_answer_that_does_not_come_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ztun1.sock");
        let mut listener = Listener::bind(&path).unwrap();
        let mut poll = Poll::new().unwrap();
        let registry = poll.registry().try_clone().unwrap();
        registry.register(listener.source(), Token(0), Interest::READABLE).unwrap();
        let mut asks = connect(&path).unwrap();
        let _client = accept(&mut listener, &mut poll);
        asks.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        assert_eq!(asks.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ztun2.sock");
        fs::write(&path, "text").unwrap();
        assert_eq!(Listener::bind(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"text");
        // One that a process left behind which died.
        fs::write(&path, "").unwrap();
        drop(Listener::bind(&path).unwrap());
        assert!(!path.exists());
    }
}
