//! The sockets that the loop owns, by the engine's names for them.

use super::backlog::Backlog;
use super::wakeup::Wakeup;
use super::{Io, outgoing};
use crate::engine::SocketId;
use crate::flow::Paged;

/// One socket, and what is known of its readiness.
#[derive(Debug)]
pub(super) struct OsSocket {
    pub(super) id: SocketId,
    pub(super) io: Io,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// An end of file or an error is behind what can be read.
    pub(super) ending: bool,
    /// Stands in `queue`.
    pub(super) queued: bool,
    pub(super) wakeup: Wakeup,
    pub(super) backlog: Backlog,
    /// Stands in `looks`.
    pub(super) looked_for: bool,
}

/// What mio adds to a socket: to check its own use, and on Windows to make events of edges.
const CHECKS: usize = if cfg!(debug_assertions) { 16 } else { 0 } + if cfg!(windows) { 16 } else { 0 };
/// What a socket costs here, beside the kernel's part.
const _: () = assert!(size_of::<Option<OsSocket>>() <= 64 + CHECKS);

/// All of them, in pages.
#[derive(Debug)]
pub(super) struct OsSockets {
    entries: Paged<Option<OsSocket>>,
}

impl OsSockets {
    pub(super) fn new() -> OsSockets {
        OsSockets { entries: Paged::new(|| None) }
    }

    #[inline]
    pub(super) fn get(&self, id: SocketId) -> Option<&OsSocket> {
        self.entries.get(id.index())?.as_ref().filter(|socket| socket.id == id)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: SocketId) -> Option<&mut OsSocket> {
        self.entries.get_mut(id.index())?.as_mut().filter(|socket| socket.id == id)
    }

    /// A UDP socket.
    pub(super) fn udp(&mut self, id: SocketId) -> Option<&mut outgoing::Udp> {
        match &mut self.get_mut(id)?.io {
            Io::Udp(udp) => Some(udp),
            Io::Tcp { .. } => None,
        }
    }

    /// Takes a socket in; the engine names no two alike.
    pub(super) fn insert(&mut self, socket: OsSocket) {
        let index = socket.id.index();
        match self.entries.get_mut(index) {
            Some(entry @ Some(_)) => *entry = Some(socket),
            Some(None) | None => *self.entries.claim(index) = Some(socket),
        }
    }

    pub(super) fn remove(&mut self, id: SocketId) -> Option<OsSocket> {
        self.get(id)?;
        self.entries.release(id.index())
    }

    /// Each of them. Cost: the whole table.
    pub(super) fn iter(&self) -> impl Iterator<Item = &OsSocket> {
        self.entries.iter().flatten()
    }
}
