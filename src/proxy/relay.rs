//! Octets from one TCP connection to another, both ways, each direction with its own end.
//!
//! A direction reads only while the receiver takes: through the shared buffer straight into the
//! receiver, and only what a partial write leaves is held, so that back-pressure is the sender's
//! window and an idle connection owns no buffer. FIN from one side, when all before it is
//! written, becomes FIN to the other, while the other direction goes on (half-close); an error on
//! either side becomes RST to both.

use mio::event::Event;
use mio::net::TcpStream;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;

/// Octets read at once, and so the most that a direction holds.
pub const CHUNK: usize = 256 * 1024;
/// Octets that one direction may move before others get their turn: what a word of another connection waits for.
const BUDGET: usize = CHUNK;
/// Reading and writing costs as much as this many octets do, however few they are.
const CALLS: usize = 8 * 1024;
/// Buffers kept for the next direction that is blocked.
const MAX_SPARE: usize = 32;

/// Memory shared by all connections of the loop.
#[derive(Debug)]
pub(super) struct Scratch {
    /// Where octets are for the time of one read and write.
    pub(super) buffer: Box<[u8]>,
    spare: Vec<Vec<u8>>,
}

impl Scratch {
    pub(super) fn new() -> Scratch {
        Scratch { buffer: vec![0; CHUNK].into_boxed_slice(), spare: Vec::new() }
    }

    fn hold(spare: &mut Vec<Vec<u8>>, octets: &[u8]) -> Vec<u8> {
        let mut held = spare.pop().unwrap_or_default();
        held.extend_from_slice(octets);
        held
    }

    fn give_back(&mut self, mut held: Vec<u8>) {
        if self.spare.len() < MAX_SPARE {
            held.clear();
            self.spare.push(held);
        }
    }
}

/// A TCP connection and what the poll said about it last. Readiness is edge-triggered: a flag falls only
/// when the socket itself says that it would block.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) stream: TcpStream,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The connection was reset or timed out.
    pub(super) failed: bool,
}

impl Side {
    pub(super) fn new(stream: TcpStream) -> Side {
        Side { stream, readable: false, writable: false, failed: false }
    }

    /// Records what the poll says.
    pub(super) fn notice(&mut self, event: &Event) {
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        self.failed |= event.is_error();
    }

    /// Reads once; `None` when there is nothing now.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        if !self.readable {
            return Ok(None);
        }
        retry(|| self.stream.read(buffer), &mut self.readable)
    }

    /// Writes once; `None` when there is no room now.
    pub(super) fn write(&mut self, octets: &[u8]) -> io::Result<Option<usize>> {
        if !self.writable {
            return Ok(None);
        }
        retry(|| self.stream.write(octets), &mut self.writable)
    }

    /// Lets the close that follows be an RST (RFC 9293 3.10.5 ABORT).
    pub(super) fn abort_on_close(&self) {
        if let Err(error) = socket2::SockRef::from(&self.stream).set_linger(Some(std::time::Duration::ZERO)) {
            log::debug!("cannot reset a connection, closing it: {error}");
        }
    }
}

/// Calls `operation` until it is not interrupted; `None`, and `ready` falls, when it would block.
fn retry(mut operation: impl FnMut() -> io::Result<usize>, ready: &mut bool) -> io::Result<Option<usize>> {
    loop {
        match operation() {
            Ok(octets) => return Ok(Some(octets)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                *ready = false;
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
    }
}

/// How far one direction is.
#[derive(Debug, PartialEq, Eq)]
enum Flow {
    /// The sender may send.
    Open,
    /// The sender has ended; what is held is still to be written.
    Ending,
    /// The end was passed on.
    Ended,
}

/// One direction.
#[derive(Debug)]
struct Pipe {
    flow: Flow,
    /// What the receiver did not take: `held[written..]`.
    held: Vec<u8>,
    written: usize,
}

impl Pipe {
    fn new(held: Vec<u8>) -> Pipe {
        Pipe { flow: Flow::Open, held, written: 0 }
    }

    /// Moves octets until one side blocks, the end, or the budget; `moved` tells whether any moved, the result
    /// whether there may be more at once.
    fn pump(
        &mut self,
        from: &mut Side,
        to: &mut Side,
        scratch: &mut Scratch,
        moved: &mut bool,
    ) -> io::Result<bool> {
        let mut budget = BUDGET;
        while budget > 0 {
            if !self.flush(to, scratch, moved)? {
                return Ok(false);
            }
            match self.flow {
                Flow::Open => {}
                Flow::Ending => {
                    // The peer may have gone meanwhile: then its reading side says so, or nothing is lost.
                    match to.stream.shutdown(Shutdown::Write) {
                        Ok(()) => {}
                        Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                        Err(error) => return Err(error),
                    }
                    self.flow = Flow::Ended;
                    *moved = true;
                    return Ok(false);
                }
                Flow::Ended => return Ok(false),
            }
            if !to.writable {
                return Ok(false);
            }
            let Some(octets) = from.read(&mut scratch.buffer)? else { return Ok(false) };
            *moved = true;
            budget = budget.saturating_sub(octets.max(CALLS));
            if octets == 0 {
                self.flow = Flow::Ending;
                continue;
            }
            let mut rest = scratch.buffer.get(..octets).unwrap_or_default();
            while !rest.is_empty() {
                let Some(taken) = to.write(rest)? else {
                    self.held = Scratch::hold(&mut scratch.spare, rest);
                    break;
                };
                rest = rest.get(taken..).unwrap_or_default();
            }
        }
        Ok(true)
    }

    /// Writes what is held; true when nothing is left.
    fn flush(&mut self, to: &mut Side, scratch: &mut Scratch, moved: &mut bool) -> io::Result<bool> {
        while let Some(rest) = self.held.get(self.written..).filter(|rest| !rest.is_empty()) {
            let Some(taken) = to.write(rest)? else { return Ok(false) };
            self.written = self.written.saturating_add(taken);
            *moved = true;
        }
        if !self.held.is_empty() {
            scratch.give_back(core::mem::take(&mut self.held));
            self.written = 0;
        }
        Ok(true)
    }
}

/// What [`Relay::pump`] came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pumped {
    /// Both directions wait for the poll; whether anything moved.
    Blocked { moved: bool },
    /// A budget was used up: there may be more at once.
    More,
    /// Both directions have ended.
    Ended,
}

/// A granted CONNECT.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) target: Side,
    up: Pipe,
    down: Pipe,
}

impl Relay {
    /// Joins the client to `target`: `early` are octets of the client for it, `reply` goes to the client first.
    pub(super) fn new(target: Side, early: Vec<u8>, reply: &[u8]) -> Relay {
        Relay { target, up: Pipe::new(early), down: Pipe::new(reply.to_vec()) }
    }

    /// Whether the client's end has not been passed on yet.
    pub(super) fn is_sending(&self) -> bool {
        self.up.flow != Flow::Ended
    }

    /// Moves what can be moved.
    pub(super) fn pump(&mut self, client: &mut Side, scratch: &mut Scratch) -> io::Result<Pumped> {
        let mut moved = false;
        let up = self.up.pump(client, &mut self.target, scratch, &mut moved)?;
        let down = self.down.pump(&mut self.target, client, scratch, &mut moved)?;
        Ok(if self.up.flow == Flow::Ended && self.down.flow == Flow::Ended {
            Pumped::Ended
        } else if up || down {
            Pumped::More
        } else {
            Pumped::Blocked { moved }
        })
    }
}
