//! Names over TCP: the connections of [`crate::dns::streams`] are made here, through the proxy, and their answers leave as datagrams.
//!
//! A connection to a name server is a CONNECT like any other: it comes out of the pool, goes to the next proxy when one is down, and waits for a network.
//! Between the proxy's reply and the end it is in [`Stage::Names`]. Whose it is stays with [`crate::dns::Streams`]; here is which
//! socket belongs to which.

use super::socket::{Purpose, Stage};
use super::{Command, Engine, SocketId};
use crate::dns::streams::{Apps, Effect, StreamId};
use crate::dns::{Carrier, Course, DnsStats, Streams};
use crate::time::Instant;
use crate::wire::Endpoint;
use crate::wire::socks5::Command as Request;

impl Engine {
    /// Does something to the queries that go over TCP; answers that come of it go to the apps.
    fn with_streams(&mut self, act: impl FnOnce(&mut Streams, &mut DnsStats, &mut Apps<'_>), now: Instant) {
        let Engine { streams, dns, outbox, stack, stats, .. } = self;
        act(streams, dns.stats_mut(), &mut |answer| {
            stats.datagrams_in += 1;
            outbox.push(stack, answer.asked, answer.local, answer.message, now);
        });
    }

    /// Carries a query over TCP.
    pub(super) fn ask_by_stream(
        &mut self,
        local: Endpoint,
        asked: Endpoint,
        server: Endpoint,
        payload: &[u8],
        now: Instant,
    ) {
        let course = Course { local, asked, server, carrier: Carrier::Tcp };
        self.with_streams(|streams, stats, apps| streams.submit(course, payload, stats, apps, now), now);
        self.obey_streams(now);
    }

    /// Runs the timers of names over TCP.
    pub(super) fn streams_timeout(&mut self, now: Instant) {
        self.with_streams(|streams, stats, apps| streams.handle_timeout(stats, apps, now), now);
        self.obey_streams(now);
    }

    /// A connection to a name server could not be opened, or has ended; its socket is closed.
    pub(super) fn stream_lost(&mut self, stream: StreamId, now: Instant) {
        self.take_stream_socket(stream);
        self.stream_closed(stream, now);
        self.obey_streams(now);
    }

    fn stream_closed(&mut self, stream: StreamId, now: Instant) {
        self.with_streams(|streams, stats, apps| streams.closed(stream, stats, apps, now), now);
    }

    /// The proxy has connected to a name server; `early` came with its reply.
    pub(super) fn stream_granted(&mut self, socket: SocketId, stream: StreamId, early: &[u8], now: Instant) {
        self.socket_timers.cancel(socket.index());
        if self.stream_socket(stream) != Some(socket) || self.streams.server(stream).is_none() {
            return self.close_socket(socket, true);
        }
        if let Some(tcp) = self.sockets.tcp_mut(socket) {
            tcp.stage = Stage::Names;
        }
        self.streams.opened(stream, now);
        let mut early = early;
        while !early.is_empty() {
            let Some(space) = self.streams.space(stream) else { break };
            let (octets, rest) = early.split_at(space.len().min(early.len()));
            space[..octets.len()].copy_from_slice(octets);
            early = rest;
            self.stream_input(stream, octets.len(), now);
        }
        self.obey_streams(now);
        // What came early may have ended it.
        if self.sockets.tcp(socket).is_some() {
            self.commands.push_back(Command::Read { socket });
        }
    }

    /// Octets of a name server have come.
    pub(super) fn stream_input(&mut self, stream: StreamId, octets: usize, now: Instant) {
        self.with_streams(|streams, stats, apps| streams.received(stream, octets, stats, apps, now), now);
        self.obey_streams(now);
    }

    /// Octets of queries were written.
    pub(super) fn stream_wrote(&mut self, stream: StreamId, octets: usize, now: Instant) {
        self.streams.wrote(stream, octets, now);
        self.obey_streams(now);
    }

    /// Opens, writes and closes what the queries ask for.
    fn obey_streams(&mut self, now: Instant) {
        while let Some(effect) = self.streams.poll_effect() {
            match effect {
                Effect::Open { stream, server } => match self.pool.choose(0, now) {
                    Some(proxy) => {
                        let purpose = Purpose::Names(stream);
                        let socket = self.dial_proxy(purpose, proxy, Request::Connect, server, now);
                        self.set_stream_socket(stream, socket);
                    }
                    None => self.stream_closed(stream, now),
                },
                Effect::Write(stream) => {
                    if let Some(socket) = self.stream_socket(stream) {
                        self.commands.push_back(Command::Write { socket });
                    }
                }
                Effect::Close(stream) => {
                    if let Some(socket) = self.take_stream_socket(stream) {
                        self.close_socket(socket, false);
                    }
                }
            }
        }
    }

    /// Asks for the same name server again, through `proxy`.
    pub(super) fn stream_redial(&mut self, stream: StreamId, proxy: usize, now: Instant) {
        if self.streams.server(stream).is_some() {
            let socket = self.dial_fresh(Purpose::Names(stream), proxy, now);
            self.set_stream_socket(stream, socket);
        }
    }

    /// There is room for answers again.
    pub(super) fn read_streams(&mut self) {
        for (_, socket) in self.stream_sockets.iter().flatten() {
            self.commands.push_back(Command::Read { socket: *socket });
        }
    }

    /// Ends every connection to a name server; what was asked stays unanswered.
    pub(super) fn close_streams(&mut self) {
        self.streams.clear();
        for (_, socket) in core::mem::take(&mut self.stream_sockets).into_iter().flatten() {
            self.close_socket(socket, false);
        }
    }

    pub(super) fn set_stream_socket(&mut self, stream: StreamId, socket: SocketId) {
        let index = stream.index() as usize;
        if index >= self.stream_sockets.len() {
            self.stream_sockets.resize(index + 1, None);
        }
        self.stream_sockets[index] = Some((stream, socket));
    }

    fn stream_socket(&self, stream: StreamId) -> Option<SocketId> {
        let (of, socket) = (*self.stream_sockets.get(stream.index() as usize)?)?;
        (of == stream).then_some(socket)
    }

    fn take_stream_socket(&mut self, stream: StreamId) -> Option<SocketId> {
        let socket = self.stream_socket(stream)?;
        self.stream_sockets[stream.index() as usize] = None;
        Some(socket)
    }
}
