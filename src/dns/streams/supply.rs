//! Servers and the connections to them: who takes a query, when another connection is opened, and which one makes room.

use super::stream::{Stream, WINDOW};
use super::{Effect, IDLE, STALL, StreamId, Streams};
use crate::flow::FlowId;
use crate::time::Instant;
use crate::wire::Endpoint;
use std::collections::VecDeque;

/// Octets that one connection may have to write.
const MAX_BACKLOG: usize = 64 << 10;
/// Connections to one server at once.
const MAX_OF_SERVER: usize = 4;
/// Connections at once, and servers.
const MAX_STREAMS: usize = 64;
/// A server with queries that wait, or connections.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) addr: Endpoint,
    /// Queries that wait for a connection; some may be over.
    pub(super) queue: VecDeque<FlowId>,
    /// Queries that it takes by one connection, as far as is known.
    pub(super) quota: u32,
    /// Connections that it takes at once, as far as is known.
    pub(super) connections: usize,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) generation: u32,
    pub(super) server: Endpoint,
    pub(super) open: bool,
    pub(super) stream: Stream,
}

impl Streams {
    pub(super) fn connection(&self, id: StreamId) -> Option<&Connection> {
        let connection = self.connections.get(id.index as usize)?.as_ref()?;
        (connection.generation == id.generation).then_some(connection)
    }

    pub(super) fn connection_mut(&mut self, id: StreamId) -> Option<&mut Connection> {
        find(&mut self.connections, id)
    }

    pub(super) fn of_server(&self, server: Endpoint) -> impl Iterator<Item = &Connection> {
        self.connections.iter().flatten().filter(move |connection| connection.server == server)
    }

    pub(super) fn server_mut(&mut self, addr: Endpoint) -> Option<&mut Server> {
        self.servers.iter_mut().find(|server| server.addr == addr)
    }

    /// Whether there is room for a server: an idle one makes it.
    pub(super) fn find_or_add_server(&mut self, addr: Endpoint) -> bool {
        if self.server_mut(addr).is_some() {
            return true;
        }
        while self.servers.len() >= MAX_STREAMS {
            if !self.close_idle() {
                return false;
            }
        }
        self.servers.push(Server {
            addr,
            queue: VecDeque::new(),
            quota: u32::MAX,
            connections: MAX_OF_SERVER,
        });
        true
    }

    /// Closes a connection that does nothing.
    pub(super) fn close_idle(&mut self) -> bool {
        let idle = self.connections().find(|id| {
            self.connection(*id)
                .is_some_and(|connection| connection.open && connection.stream.in_flight() == 0)
        });
        let Some(id) = idle else { return false };
        self.effects.push_back(Effect::Close(id));
        if let Some(connection) = self.remove(id) {
            self.retire(connection.server);
        }
        true
    }

    /// Forgets a server that nothing waits for and nothing leads to.
    pub(super) fn retire(&mut self, addr: Endpoint) {
        if self.of_server(addr).next().is_none() {
            self.servers.retain(|server| server.addr != addr || !server.queue.is_empty());
        }
    }

    pub(super) fn remove(&mut self, id: StreamId) -> Option<Connection> {
        self.connection(id)?;
        self.timers.cancel(id.index);
        self.connections.get_mut(id.index as usize)?.take()
    }

    /// Puts what waits for `addr` on its connections, and opens another one where that is not enough.
    pub(super) fn pump(&mut self, addr: Endpoint, now: Instant) {
        loop {
            let Some(server) = self.servers.iter_mut().find(|server| server.addr == addr) else { return };
            let Some(&id) = server.queue.front() else { break };
            let Some(query) = self.queries.get_mut(id) else {
                server.queue.pop_front();
                continue;
            };
            let quota = server.quota;
            let takes = |connection: &Connection| {
                let stream = &connection.stream;
                connection.server == addr
                    && connection.open
                    && stream.in_flight() < WINDOW
                    && stream.sent() < quota
                    && stream.backlog() < MAX_BACKLOG
            };
            let mut places = (0u32..).zip(&mut self.connections);
            let place = places.find_map(|(index, place)| {
                let connection = place.as_mut().filter(|connection| takes(connection))?;
                Some((index, connection))
            });
            let Some((index, connection)) = place else { break };
            server.queue.pop_front();
            let stream = StreamId { index, generation: connection.generation };
            let idle = connection.stream.in_flight() == 0;
            let written = connection.stream.backlog() == 0;
            if connection.stream.push(id, &query.message) {
                query.stream = Some(stream);
                if written {
                    self.effects.push_back(Effect::Write(stream));
                }
                if idle {
                    self.timers.set(index, now + STALL);
                }
            }
        }
        self.open_more(addr);
        self.retire(addr);
    }

    pub(super) fn open_more(&mut self, addr: Endpoint) {
        let Some(server) = self.servers.iter().find(|server| server.addr == addr) else { return };
        let limit = server.connections;
        let (open, opening) = self.of_server(addr).fold((0, 0), |(open, opening), connection| {
            if connection.open { (open + 1, opening) } else { (open, opening + 1) }
        });
        if server.queue.is_empty() || opening > 0 || open >= limit {
            return;
        }
        if self.connections.iter().flatten().count() >= MAX_STREAMS && !self.close_idle() {
            // The next connection that ends, or has nothing to do, makes room.
            self.starved |= open == 0;
            return;
        }
        self.generation = self.generation.wrapping_add(1);
        let turn = self.rng.next_u16().to_be_bytes()[0];
        let connection =
            Connection { generation: self.generation, server: addr, open: false, stream: Stream::new(turn) };
        let index = match self.connections.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                self.connections.push(None);
                self.connections.len() - 1
            }
        };
        let stream = StreamId { index: index as u32, generation: self.generation };
        if let Some(place) = self.connections.get_mut(index) {
            *place = Some(connection);
            self.effects.push_back(Effect::Open { stream, server: addr });
        }
    }

    /// Lets those servers have a connection that found no room for one.
    pub(super) fn pump_starved(&mut self, now: Instant) {
        if !core::mem::take(&mut self.starved) {
            return;
        }
        let waiting: Vec<Endpoint> =
            self.servers.iter().filter(|server| !server.queue.is_empty()).map(|server| server.addr).collect();
        for addr in waiting {
            self.pump(addr, now);
        }
    }

    /// After something has come: how long to wait for more.
    pub(super) fn rest(&mut self, id: StreamId, now: Instant) {
        let Some(connection) = self.connection(id) else { return };
        let quota =
            self.servers.iter().find(|server| server.addr == connection.server).map(|server| server.quota);
        let stream = &connection.stream;
        if stream.in_flight() > 0 {
            self.timers.set(id.index, now + STALL);
        } else if self.starved || quota.is_some_and(|quota| stream.sent() >= quota) {
            // Spent, or its place is wanted.
            self.effects.push_back(Effect::Close(id));
            self.remove(id);
            self.pump_starved(now);
        } else {
            self.timers.set(id.index, now + IDLE);
        }
    }
}

/// The connection, unless it is gone.
pub(super) fn find(connections: &mut [Option<Connection>], id: StreamId) -> Option<&mut Connection> {
    let connection = connections.get_mut(id.index as usize)?.as_mut()?;
    (connection.generation == id.generation).then_some(connection)
}
