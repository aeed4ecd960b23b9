//! Octets between the sockets' streams and the engine: reads into the engine's rings, writes out of them, each up to a budget.
//!
//! A read that gives less than there was room for has emptied the socket, and a write that takes less has filled it: the next octet, or the next
//! room, is an event of its own (epoll(7), question 9), and no second call is made to hear EAGAIN. What comes without octets does not show
//! in a short read: an end of file, or an error, that the last event told of is read until it appears. At an urgent mark a read stops short of what is
//! behind it, so a socket that has shown one is read until EAGAIN.

use super::queue::Turn;
use super::wakeup::{self, Advice};
use super::{Driver, Io, OsSocket, backlog, errors, options};
use crate::engine::SocketId;
use crate::time::Instant;
use crate::tun::Device;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};

impl<D: Device> Driver<D> {
    pub(super) fn os_socket(&mut self, id: SocketId) -> Option<&mut OsSocket> {
        self.sockets.get_mut(id)
    }

    pub(super) fn socket_event(&mut self, id: SocketId, event: &mio::event::Event) {
        let Some(socket) = self.os_socket(id) else { return };
        socket.ending |= event.is_read_closed() || event.is_error() || event.is_priority();
        socket.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        socket.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
        self.enqueue(id, Turn::First);
    }

    /// Has the socket served, unless it is to be already.
    pub(super) fn enqueue(&mut self, id: SocketId, turn: Turn) {
        if let Some(socket) = self.os_socket(id)
            && !socket.queued
        {
            socket.queued = true;
            self.queue.push(id, turn);
        }
    }

    /// Serves the sockets whose turn it is.
    pub(super) fn serve_ready(&mut self, now: Instant) {
        self.queue.begin_turn();
        while let Some(id) = self.queue.pop() {
            let Some(socket) = self.os_socket(id) else { continue };
            socket.queued = false;
            match socket.io {
                Io::Tcp { .. } => {
                    if self.complete_connect(id, now) {
                        self.write_stream(id, now);
                        self.read_stream(id, now);
                    }
                }
                Io::Udp(_) => self.read_datagrams(id, now),
            }
        }
    }

    /// Whether the connection is established; tells the engine when it has just become so, or failed.
    pub(super) fn complete_connect(&mut self, id: SocketId, now: Instant) -> bool {
        let Some(socket) = self.os_socket(id) else { return false };
        let (writable, failed) = (socket.writable, socket.ending);
        let Io::Tcp { stream, connected } = &mut socket.io else { return false };
        if *connected || !writable {
            return *connected;
        }
        // A connection that is under way is not writable (tcp(7)), and one that has failed is told as such: there is nothing to ask. Other systems
        // promise less.
        if failed || !cfg!(target_os = "linux") {
            match established(stream) {
                Ok(true) => {}
                Ok(false) => {
                    socket.writable = false;
                    return false;
                }
                Err(error) => {
                    self.engine.handle_socket_error(id, errors::classify(&error), now);
                    return false;
                }
            }
        }
        *connected = true;
        self.engine.handle_connected(id, now);
        true
    }

    /// Goes on at once where the other end is so near that it has answered while it was dialled.
    pub(super) fn connected_at_once(&mut self, id: SocketId, now: Instant) {
        if let Some(socket) = self.os_socket(id)
            && let Io::Tcp { stream, connected: false } = &socket.io
            && stream.peer_addr().is_ok()
        {
            socket.writable = true;
            self.complete_connect(id, now);
        }
    }

    pub(super) fn read_stream(&mut self, id: SocketId, now: Instant) {
        let share = self.queue.share();
        let mut budget = share;
        while budget > 0 {
            let Some(socket) = self.sockets.get_mut(id) else { return };
            let Io::Tcp { stream, connected: true } = &mut socket.io else { return };
            if !socket.readable {
                return;
            }
            let Some((first, second)) = self.engine.read_space(id) else { return };
            let first = up_to(first, budget);
            let second = up_to(second, budget - first.len());
            let room = first.len() + second.len();
            let read = stream.read_vectored(&mut [IoSliceMut::new(first), IoSliceMut::new(second)]);
            self.queue.charge(*read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => {
                    socket.readable = false;
                    return self.engine.read_eof(id, now);
                }
                Ok(octets) => {
                    budget -= octets.min(budget);
                    let emptied = octets < room && !socket.ending;
                    socket.readable &= !emptied;
                    self.engine.read_done(id, octets, now);
                    if emptied {
                        return self.moderate(id, share - budget, now);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    socket.readable = false;
                    // The room that was lent is given back: an idle flow holds no buffer.
                    self.engine.read_done(id, 0, now);
                    return self.moderate(id, share - budget, now);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    socket.readable = false;
                    return self.engine.handle_socket_error(id, errors::classify(&error), now);
                }
            }
        }
        self.go_on(id, |socket| socket.readable);
    }

    /// A share is used up: the rest has to wait.
    fn go_on(&mut self, id: SocketId, able: fn(&OsSocket) -> bool) {
        if self.os_socket(id).is_some_and(|socket| able(socket)) {
            self.enqueue(id, Turn::InCircle);
        }
    }

    /// Octets went the other way.
    fn sent(&mut self, id: SocketId) {
        if let Some(socket) = self.os_socket(id) {
            let advice = socket.wakeup.wrote();
            self.heed(id, advice);
        }
    }

    /// Decides how soon the kernel is to tell of the next octets, after `octets` were read until there were no more.
    fn moderate(&mut self, id: SocketId, octets: usize, now: Instant) {
        let Some(socket) = self.os_socket(id) else { return };
        let advice = socket.wakeup.read(octets, now);
        self.heed(id, advice);
        self.look_later(id);
    }

    /// Notes when to look at the connection, once.
    fn look_later(&mut self, id: SocketId) {
        if let Some(socket) = self.os_socket(id)
            && !socket.looked_for
            && let Some(at) = socket.wakeup.look_at()
        {
            socket.looked_for = true;
            self.looks.push_back((at, id));
        }
    }

    fn heed(&mut self, id: SocketId, advice: Advice) {
        let octets = match advice {
            Advice::Keep => return,
            Advice::Enough => wakeup::ENOUGH,
            Advice::Each => 1,
        };
        if let Some(OsSocket { io: Io::Tcp { stream, .. }, .. }) = self.os_socket(id)
            && let Err(error) = options::wake_at(stream, octets)
        {
            log::debug!("SO_RCVLOWAT: {error}");
        }
    }

    /// Reads the connections whose moment has come: the end of a burst wakes nobody.
    pub(super) fn look_again(&mut self, now: Instant) {
        while let Some((at, id)) = self.looks.front().copied() {
            if at > now {
                return;
            }
            self.looks.pop_front();
            let Some(socket) = self.os_socket(id) else { continue };
            socket.looked_for = false;
            match socket.wakeup.look_at() {
                Some(at) if at <= now => {
                    socket.readable = true;
                    self.enqueue(id, Turn::First);
                }
                // It has been read meanwhile.
                Some(_) => self.look_later(id),
                None => {}
            }
        }
    }

    pub(super) fn write_stream(&mut self, id: SocketId, now: Instant) {
        let mut waited = false;
        let mut budget = self.queue.share();
        while budget > 0 {
            let Some(socket) = self.sockets.get_mut(id) else { return };
            let Io::Tcp { stream, connected: true } = &mut socket.io else { return };
            if !socket.writable {
                return;
            }
            let Some((first, second)) = self.engine.write_slices(id) else { return };
            let waiting = first.len() + second.len();
            if !core::mem::replace(&mut waited, true)
                && let Some(slow) = socket.backlog.waited(now)
                && let Err(error) = options::keep_ahead(stream, if slow { backlog::LITTLE } else { 0 })
            {
                log::debug!("TCP_NOTSENT_LOWAT: {error}");
            }
            let written = stream.write_vectored(&[IoSlice::new(first), IoSlice::new(second)]);
            self.queue.charge(*written.as_ref().unwrap_or(&0));
            match written {
                Ok(octets) => {
                    budget = budget.saturating_sub(octets.max(1));
                    socket.writable = octets == waiting;
                    socket.backlog.wrote(octets);
                    self.engine.write_done(id, octets, now);
                    self.sent(id);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    socket.writable = false;
                    return;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    socket.writable = false;
                    return self.engine.handle_write_error(id, errors::classify(&error), now);
                }
            }
        }
        self.go_on(id, |socket| socket.writable);
    }

    /// Writes octets that are at hand; how many were taken.
    pub(super) fn write_now(&mut self, id: SocketId, octets: &[u8]) -> io::Result<usize> {
        let Some(socket) = self.os_socket(id) else { return Ok(0) };
        let Io::Tcp { stream, connected: true } = &mut socket.io else { return Ok(0) };
        if !socket.writable {
            return Ok(0);
        }
        let taken = loop {
            match stream.write(octets) {
                Ok(taken) => break taken,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break 0,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        };
        socket.writable = taken == octets.len();
        socket.backlog.wrote(taken);
        let advice = socket.wakeup.wrote();
        if advice != Advice::Keep {
            self.heed(id, advice);
        }
        Ok(taken)
    }
}

fn up_to(room: &mut [u8], octets: usize) -> &mut [u8] {
    let len = room.len().min(octets);
    room.split_at_mut(len).0
}

/// Whether a connection that was under way is established; the error that it has ended with.
fn established(stream: &mio::net::TcpStream) -> io::Result<bool> {
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    match stream.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}
