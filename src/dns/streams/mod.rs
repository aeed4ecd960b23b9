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

/// Who takes datagrams for apps.
pub type Apps<'a> = dyn FnMut(Answer<'_>) + 'a;

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
        answer: &mut Apps<'_>,
        now: Instant,
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
            self.retire(server);
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
    pub fn closed(&mut self, stream: StreamId, stats: &mut DnsStats, answer: &mut Apps<'_>, now: Instant) {
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
        answer: &mut Apps<'_>,
        now: Instant,
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
                return self.closed(stream, stats, answer, now);
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
        answer: &mut Apps<'_>,
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
    pub fn handle_timeout(&mut self, stats: &mut DnsStats, answer: &mut Apps<'_>, now: Instant) {
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
            self.closed(stream, stats, answer, now);
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
    fn fail(&mut self, id: FlowId, stats: &mut DnsStats, answer: &mut Apps<'_>) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Rng, SEED_LEN};
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    const CAPACITY: usize = 40;

    fn course(n: u16) -> Course {
        let end = |addr: &str, port| Endpoint::new(addr.parse().unwrap(), port);
        let server = end(&format!("192.0.2.{}", n % 70), 53);
        Course { local: end("198.18.0.1", 1_000 + n % 3), asked: server, server, carrier: Carrier::Tcp }
    }

    fn question(n: u16) -> Vec<u8> {
        let [high, low] = n.to_be_bytes();
        vec![0, low % 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2, high, low, 0, 0, 1, 0, 1]
    }

    /// The far ends: connections, and the queries that were written to them.
    #[derive(Default)]
    struct Far {
        opening: BTreeSet<u32>,
        open: BTreeMap<u32, (StreamId, VecDeque<Vec<u8>>)>,
        ids: BTreeMap<u32, StreamId>,
    }

    impl Far {
        fn obey(&mut self, streams: &mut Streams, now: Instant) {
            while let Some(effect) = streams.poll_effect() {
                match effect {
                    Effect::Open { stream, server } => {
                        assert_eq!(streams.server(stream), Some(server));
                        assert!(
                            self.opening.insert(stream.index()) && !self.open.contains_key(&stream.index())
                        );
                        self.ids.insert(stream.index(), stream);
                    }
                    Effect::Write(stream) => {
                        let Some((_, queries)) = self.open.get_mut(&stream.index()) else { continue };
                        let mut octets = streams.output(stream).to_vec();
                        streams.wrote(stream, octets.len(), now);
                        while !octets.is_empty() {
                            let len = usize::from(u16::from_be_bytes([octets[0], octets[1]]));
                            queries.push_back(octets[2..2 + len].to_vec());
                            octets.drain(..2 + len);
                        }
                    }
                    Effect::Close(stream) => {
                        assert_eq!(self.ids.remove(&stream.index()), Some(stream));
                        self.opening.remove(&stream.index());
                        self.open.remove(&stream.index());
                    }
                }
            }
            assert!(self.ids.len() <= 64, "connections are bounded");
            assert_eq!(
                self.ids.values().copied().collect::<Vec<_>>(),
                streams.connections().collect::<Vec<_>>()
            );
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask(u16),
        Open(prop::sample::Index),
        Answer(prop::sample::Index, bool),
        Noise(prop::sample::Index, Vec<u8>),
        End(prop::sample::Index),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let index = any::<prop::sample::Index>;
        prop_oneof![
            5 => (0u16..300).prop_map(Step::Ask),
            3 => index().prop_map(Step::Open),
            4 => (index(), any::<bool>()).prop_map(|(at, last)| Step::Answer(at, last)),
            1 => (index(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(at, octets)| Step::Noise(at, octets)),
            1 => index().prop_map(Step::End),
            2 => (0u64..6_000).prop_map(Step::Wait),
        ]
    }

    fn receive(
        streams: &mut Streams,
        stream: StreamId,
        octets: &[u8],
        stats: &mut DnsStats,
        apps: &mut Apps<'_>,
        now: Instant,
    ) {
        for octet in octets {
            let Some(space) = streams.space(stream) else { return };
            space[0] = *octet;
            streams.received(stream, 1, stats, apps, now);
        }
    }

    proptest! {
        /// Z3, Z7: whatever servers and connections do, each query has exactly one end, within its time, and nothing is left.
        #[test]
        fn every_query_ends_once(steps in prop::collection::vec(step(), 0..250)) {
            let mut streams = Streams::new(CAPACITY, &mut Rng::new([4; SEED_LEN]));
            let mut stats = DnsStats::default();
            let mut far = Far::default();
            let mut now = Instant::from_millis(1_000);
            // Queries without an end, by app, id, server and question; with the time when each was asked last.
            let mut open: BTreeMap<(Endpoint, Endpoint, Vec<u8>), Instant> = BTreeMap::new();
            for step in steps.into_iter().chain((0..8).map(|_| Step::Wait(5_000))) {
                let mut ended: Vec<(Endpoint, Endpoint, Vec<u8>)> = Vec::new();
                let mut apps = |answer: Answer<'_>| {
                    let mut message = answer.message.to_vec();
                    message[2..4].copy_from_slice(&[1, 0]);
                    ended.push((answer.local, answer.asked, message));
                };
                let chosen = |far: &Far, at: prop::sample::Index| {
                    let all: Vec<StreamId> = far.open.values().map(|(stream, _)| *stream).collect();
                    (!all.is_empty()).then(|| all[at.index(all.len())])
                };
                match step {
                    Step::Ask(n) => {
                        let Course { local, asked, .. } = course(n);
                        open.insert((local, asked, question(n)), now);
                        streams.submit(course(n), &question(n), &mut stats, &mut apps, now);
                    }
                    Step::Open(at) => {
                        let all: Vec<u32> = far.opening.iter().copied().collect();
                        if !all.is_empty() {
                            let index = all[at.index(all.len())];
                            far.opening.remove(&index);
                            far.open.insert(index, (far.ids[&index], VecDeque::new()));
                            streams.opened(far.ids[&index], now);
                        }
                    }
                    Step::Answer(at, last) => {
                        if let Some(stream) = chosen(&far, at)
                            && let Some((_, queries)) = far.open.get_mut(&stream.index())
                            && let Some(mut message) = if last { queries.pop_back() } else { queries.pop_front() }
                        {
                            message[2] = 0x81;
                            let octets = [&[0, message.len() as u8][..], &message].concat();
                            receive(&mut streams, stream, &octets, &mut stats, &mut apps, now);
                        }
                    }
                    Step::Noise(at, octets) => {
                        if let Some(stream) = chosen(&far, at) {
                            receive(&mut streams, stream, &octets, &mut stats, &mut apps, now);
                        }
                    }
                    Step::End(at) => {
                        let all: Vec<StreamId> = far.ids.values().copied().collect();
                        if !all.is_empty() {
                            let stream = all[at.index(all.len())];
                            far.ids.remove(&stream.index());
                            far.opening.remove(&stream.index());
                            far.open.remove(&stream.index());
                            streams.closed(stream, &mut stats, &mut apps, now);
                        }
                    }
                    Step::Wait(millis) => {
                        now = now + Duration::from_millis(millis);
                        streams.handle_timeout(&mut stats, &mut apps, now);
                        prop_assert!(streams.poll_timeout().is_none_or(|next| next > now));
                    }
                }
                far.obey(&mut streams, now);
                for end in ended {
                    prop_assert!(open.remove(&end).is_some(), "an end for what is open: {end:?}");
                }
                prop_assert_eq!(streams.len(), open.len());
                prop_assert!(streams.len() <= CAPACITY);
                prop_assert!(open.values().all(|asked| now.since(*asked) < PATIENCE));
                let ends = stats.answers + stats.servfails;
                prop_assert_eq!(stats.queries - stats.repeated, ends + streams.len() as u64);
                prop_assert_eq!(streams.octets(), 20 * streams.len());
            }
            // All that is left are connections on their way, which their own time-out ends.
            prop_assert!(far.open.is_empty(), "idle connections are closed");
            prop_assert!(streams.is_empty());
            for stream in core::mem::take(&mut far.ids).into_values() {
                streams.closed(stream, &mut stats, &mut |_| {}, now);
            }
            far.opening.clear();
            far.obey(&mut streams, now);
            prop_assert!(streams.servers.is_empty() && streams.poll_timeout().is_none());
        }
    }
}
