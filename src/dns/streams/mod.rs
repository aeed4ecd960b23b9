//! Queries that apps send as datagrams, carried over TCP (RFC 7766).
//!
//! # Theory of operation
//!
//! A query is kept until it is answered, one way or another: each ends in exactly one of an answer of the server, SERVFAIL made here, or
//! [`Streams::clear`]. It waits in the queue of its server until a connection takes it. Connections are opened when there are queries that no open one
//! takes, one at a time for each server, and closed when none was in flight for [`IDLE`].
//!
//! ```text
//! submit ─▶ queue of the server ─▶ in flight on a connection ─▶ answer: id of the app put back, cut to what it takes
//!               ▲                        │ connection ends
//!               └── again, once ─────────┴──▶ SERVFAIL
//! ```
//!
//! A connection ends by the server's doing, by an error, because it could not be opened, or because nothing came for [`STALL`] while queries
//! were in flight. Those are asked again on another one, first of all. What counts against a query is an end without any answer:
//! the second is its last. An end after some answers is how servers behave that take a certain number of queries a connection: as many are sent on
//! the next ones, and that does not count, since each connection brings answers. After [`PATIENCE`] a query is over in any case.
//!
//! Everything is bounded: queries in number and octets, connections in all and for each server, what is in flight on each.
//! The caller names connections by [`StreamId`], does what [`Streams::poll_effect`] says, and gets answers by the closure that it passes in.

mod stream;
mod supply;

use super::message;
use super::table::{Carrier, Course, DnsStats};
use crate::flow::{FlowId, FlowKey, FlowTable, TimerWheel};
use crate::rng::{KeyedHash, Rng};
use crate::time::{Duration, Instant};
use crate::wire::Endpoint;
use std::collections::VecDeque;
use stream::Stream;
use supply::{Connection, Server, find};

/// How long a query is kept: what clients wait in all, rather than at once.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection without queries is kept (RFC 7766 6.2.3 asks for seconds).
pub const IDLE: Duration = Duration::from_secs(10);
/// How long nothing may come while queries are in flight. Below the five seconds after which resolvers ask again.
pub const STALL: Duration = Duration::from_secs(4);
/// Octets of queries at once.
const MAX_OCTETS: usize = 4 << 20;
/// Connections that may end on a query without any answer.
const MAX_TRIES: u8 = 2;
/// The largest datagram to an app.
const MAX_DATAGRAM: usize = 65_507;

/// Names a connection; never names its successor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StreamId {
    index: u32,
    generation: u32,
}

impl StreamId {
    /// Dense index, reused.
    pub const fn index(self) -> u32 {
        self.index
    }
}

/// What the caller is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Connect to the server; answer with [`Streams::opened`] or [`Streams::closed`].
    Open {
        /// The connection's name.
        stream: StreamId,
        /// Where to.
        server: Endpoint,
    },
    /// There is something to write.
    Write(StreamId),
    /// Close the connection and forget it; nothing more is told of it.
    Close(StreamId),
}

/// A datagram for an app.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer<'a> {
    /// The app.
    pub local: Endpoint,
    /// Whom it asked: the datagram comes from there.
    pub asked: Endpoint,
    /// The message.
    pub message: &'a [u8],
}

/// Names a query: who asked whom what.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    /// Remote is whom the app asked.
    tuple: FlowKey,
    /// Of the whole message.
    hash: u64,
}

#[derive(Debug)]
struct Query {
    message: Vec<u8>,
    /// The largest answer that the app takes.
    limit: usize,
    /// Connections that ended on it without any answer.
    tries: u8,
    /// The connection that it is in flight on.
    stream: Option<StreamId>,
}

/// All of it.
#[derive(Debug)]
pub struct Streams {
    queries: FlowTable<Key, Query>,
    deadlines: TimerWheel,
    octets: usize,
    servers: Vec<Server>,
    connections: Vec<Option<Connection>>,
    /// Idle and stall times by connection index.
    timers: TimerWheel,
    generation: u32,
    /// A server without a connection waits for room for one.
    starved: bool,
    effects: VecDeque<Effect>,
    hash: KeyedHash,
    rng: Rng,
    /// Messages that are made here.
    scratch: Vec<u8>,
}

impl Streams {
    /// At most `capacity` queries at once.
    pub fn new(capacity: usize, rng: &mut Rng) -> Streams {
        let mut seed = [0; crate::rng::SEED_LEN];
        seed[..8].copy_from_slice(&rng.next_u64().to_le_bytes());
        seed[8..].copy_from_slice(&rng.next_u64().to_le_bytes());
        Streams {
            queries: FlowTable::new(capacity.max(1), rng.keyed_hash()),
            deadlines: TimerWheel::new(),
            octets: 0,
            servers: Vec::new(),
            connections: Vec::new(),
            timers: TimerWheel::new(),
            generation: 0,
            starved: false,
            effects: VecDeque::new(),
            hash: rng.keyed_hash(),
            rng: Rng::new(seed),
            scratch: Vec::new(),
        }
    }

    /// Takes the data of a datagram, which must be a query (see [`message::is_query`]); where there is no room for it SERVFAIL is the answer.
    pub fn submit(
        &mut self,
        course: Course,
        payload: &[u8],
        stats: &mut DnsStats,
        now: Instant,
        answer: &mut impl FnMut(Answer<'_>),
    ) {
        let Course { local, asked, server, .. } = course;
        stats.queries += 1;
        stats.redirected += u64::from(asked != server);
        stats.carrier_mut(Carrier::Tcp).queries += 1;
        let key = Key { tuple: FlowKey { local, remote: asked }, hash: self.hash.strong(&payload) };
        if let Some(query) = self.queries.find(&key) {
            // TCP loses nothing: it is under way.
            stats.repeated += 1;
            self.deadlines.set(query.index(), now + PATIENCE);
            return;
        }
        let room = !self.queries.is_full()
            && self.octets.saturating_add(payload.len()) <= MAX_OCTETS
            && self.find_or_add_server(server);
        let query = Query {
            message: payload.to_vec(),
            limit: message::answer_limit(payload).min(MAX_DATAGRAM),
            tries: 0,
            stream: None,
        };
        let inserted = if room { self.queries.insert(key, query).ok() } else { None };
        let Some(id) = inserted else {
            stats.evicted += 1;
            stats.servfails += 1;
            self.scratch.clear();
            message::write_failure(payload, &mut self.scratch);
            answer(Answer { local, asked, message: &self.scratch });
            return;
        };
        self.octets += payload.len();
        self.deadlines.set(id.index(), now + PATIENCE);
        if let Some(found) = self.server_mut(server) {
            found.queue.push_back(id);
        }
        self.pump(server, now);
    }

    /// Who a connection is to lead to; `None` when it is not wanted any more.
    pub fn server(&self, stream: StreamId) -> Option<Endpoint> {
        self.connection(stream).map(|connection| connection.server)
    }

    /// A connection is open.
    pub fn opened(&mut self, stream: StreamId, now: Instant) {
        let Some(connection) = self.connection_mut(stream) else { return };
        connection.open = true;
        let server = connection.server;
        self.timers.set(stream.index, now + IDLE);
        self.pump(server, now);
    }

    /// A connection could not be opened, or has ended.
    pub fn closed(
        &mut self,
        stream: StreamId,
        stats: &mut DnsStats,
        now: Instant,
        answer: &mut impl FnMut(Answer<'_>),
    ) {
        let Some(connection) = self.remove(stream) else { return };
        let Connection { server, open, stream, .. } = connection;
        let answered = stream.answered();
        let mut lost: Vec<FlowId> = stream.queries().collect();
        if open
            && answered > 0
            && !lost.is_empty()
            && let Some(server) = self.server_mut(server)
        {
            server.quota = answered;
        }
        let others = self.of_server(server).filter(|other| other.open).count();
        if !open && let Some(server) = self.server_mut(server) {
            // It does not want more connections than it has; with none, nobody is about to take what waits.
            server.connections = others.max(1);
            if others == 0 {
                lost.extend(server.queue.drain(..));
            }
        }
        for id in lost.into_iter().rev() {
            let Some(query) = self.queries.get_mut(id) else { continue };
            query.stream = None;
            query.tries += u8::from(answered == 0);
            if query.tries >= MAX_TRIES {
                self.fail(id, stats, answer);
            } else if let Some(server) = self.server_mut(server) {
                server.queue.push_front(id);
            }
        }
        self.pump(server, now);
        self.pump_starved(now);
    }

    /// Octets to be written to a connection.
    pub fn output(&self, stream: StreamId) -> &[u8] {
        self.connection(stream).map_or(&[], |connection| connection.stream.output())
    }

    /// The first `octets` of [`Streams::output`] were written.
    pub fn wrote(&mut self, stream: StreamId, octets: usize, now: Instant) {
        let Some(connection) = self.connection_mut(stream) else { return };
        connection.stream.wrote(octets);
        let server = connection.server;
        self.pump(server, now);
    }

    /// Room for what comes by a connection; `None` when it is not open.
    pub fn space(&mut self, stream: StreamId) -> Option<&mut [u8]> {
        let connection = self.connection_mut(stream).filter(|connection| connection.open)?;
        Some(connection.stream.space())
    }

    /// The first `octets` of [`Streams::space`] were filled.
    pub fn received(
        &mut self,
        stream: StreamId,
        octets: usize,
        stats: &mut DnsStats,
        now: Instant,
        answer: &mut impl FnMut(Answer<'_>),
    ) {
        let Some(connection) = find(&mut self.connections, stream) else { return };
        connection.stream.received(octets);
        let server = connection.server;
        loop {
            let Some(connection) = find(&mut self.connections, stream) else { return };
            let Some(message) = connection.stream.next_message() else { break };
            let mut copy = core::mem::take(&mut self.scratch);
            copy.clear();
            copy.extend_from_slice(message);
            let Some(header) = message::header(&copy) else {
                // Not DNS: nothing that follows can be trusted.
                stats.malformed += 1;
                self.effects.push_back(Effect::Close(stream));
                return self.closed(stream, stats, now, answer);
            };
            let query = connection.stream.find(header.id);
            self.deliver(stream, query, header.id, &mut copy, stats, answer);
            self.scratch = copy;
        }
        self.rest(stream, now);
        self.pump(server, now);
    }

    /// Gives an answer to the app that asked.
    fn deliver(
        &mut self,
        stream: StreamId,
        query: Option<FlowId>,
        id: u16,
        message: &mut Vec<u8>,
        stats: &mut DnsStats,
        answer: &mut impl FnMut(Answer<'_>),
    ) {
        let found = query.and_then(|query| {
            let asked = self.queries.get(query)?;
            stream::answers(message, &asked.message).then_some(query)
        });
        let Some(query) = found else {
            stats.unmatched += 1;
            return;
        };
        if let Some(connection) = find(&mut self.connections, stream) {
            connection.stream.answer(id);
        }
        let Some((key, asked)) = self.take(query) else { return };
        stats.answers += 1;
        stats.carrier_mut(Carrier::Tcp).answers += 1;
        if let Some(header) = message::header(&asked.message) {
            message::set_id(message, header.id);
        }
        if message.len() > asked.limit {
            stats.truncated += 1;
            let mut short = Vec::new();
            message::write_truncated(message, &mut short);
            *message = short;
        }
        answer(Answer { local: key.tuple.local, asked: key.tuple.remote, message });
    }

    /// Runs the timers that are due.
    pub fn handle_timeout(
        &mut self,
        stats: &mut DnsStats,
        now: Instant,
        answer: &mut impl FnMut(Answer<'_>),
    ) {
        while let Some(index) = self.deadlines.pop(now) {
            let Some(id) = self.queries.id_at(index) else { continue };
            stats.timeouts += 1;
            stats.carrier_mut(Carrier::Tcp).timeouts += 1;
            self.fail(id, stats, answer);
        }
        while let Some(index) = self.timers.pop(now) {
            let Some(Some(connection)) = self.connections.get(index as usize) else { continue };
            let stream = StreamId { index, generation: connection.generation };
            self.effects.push_back(Effect::Close(stream));
            self.closed(stream, stats, now, answer);
        }
    }

    /// When [`Streams::handle_timeout`] is wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.deadlines.next_deadline(), self.timers.next_deadline()].into_iter().flatten().min()
    }

    /// The next thing for the caller to do.
    #[must_use]
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Forgets every query and connection; the caller closes what it has of them.
    pub fn clear(&mut self) {
        let ids: Vec<FlowId> = self.queries.ids().collect();
        for id in ids {
            self.take(id);
        }
        for index in 0..self.connections.len() {
            self.timers.cancel(u32::try_from(index).unwrap_or(u32::MAX));
        }
        self.connections.clear();
        self.servers.clear();
        self.effects.clear();
    }

    /// Queries at present.
    pub fn len(&self) -> usize {
        self.queries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.queries.is_empty()
    }

    /// Octets of queries at present.
    pub fn octets(&self) -> usize {
        self.octets
    }

    /// Connections at present, open or on their way.
    pub fn connections(&self) -> impl Iterator<Item = StreamId> + '_ {
        (0..).zip(&self.connections).filter_map(|(index, connection)| {
            let generation = connection.as_ref()?.generation;
            Some(StreamId { index, generation })
        })
    }

    // ---- within ----

    /// Ends a query with SERVFAIL.
    fn fail(&mut self, id: FlowId, stats: &mut DnsStats, answer: &mut impl FnMut(Answer<'_>)) {
        let Some((key, query)) = self.take(id) else { return };
        if let Some(connection) = query.stream.and_then(|stream| find(&mut self.connections, stream)) {
            connection.stream.forget(id);
        }
        stats.servfails += 1;
        self.scratch.clear();
        message::write_failure(&query.message, &mut self.scratch);
        answer(Answer { local: key.tuple.local, asked: key.tuple.remote, message: &self.scratch });
    }

    fn take(&mut self, id: FlowId) -> Option<(Key, Query)> {
        let (key, query) = self.queries.remove(id)?;
        self.deadlines.cancel(id.index());
        self.octets = self.octets.saturating_sub(query.message.len());
        Some((key, query))
    }
}
