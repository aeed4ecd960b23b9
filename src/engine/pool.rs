//! Dials proxies: which one, and on which connection.
//!
//! A few connections wait past the method negotiation, so that a new flow costs one round trip to the proxy instead of two or
//! three. The pool is filled only by use: each request that is made starts the replacement of the connection it took. A pooled connection that
//! turns out to be dead before it has answered anything is replaced by a fresh one, unseen by the app; one that nobody used for
//! [`MAX_AGE`] is closed, so that an idle machine holds nothing at the proxy.
//!
//! Of several proxies the first that is not known to be down is used; one that could not be reached is tried again after [`RETRY_AFTER`].

use super::network::Network;
use super::pipeline::Manners;
use super::socket::{Purpose, Socket, Stage, TcpSocket, Via};
use super::{Command, Egress, Engine, SocketError, SocketId};
use crate::outbound::socks5::Failure;
use crate::time::{Duration, Instant};
use crate::wire::Endpoint;
use crate::wire::socks5::Command as Request;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::collections::VecDeque;

/// How long a connection may wait in the pool. Below the negotiation time-out of common servers (dante: 30 s).
const MAX_AGE: Duration = Duration::from_secs(20);
/// How long a proxy that could not be reached is passed over while there are others.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// How long datagrams are refused at once after the proxy said that it does not carry UDP.
const UDP_RETRY_AFTER: Duration = Duration::from_secs(60);

/// How long names go over TCP before datagrams are tried again.
const NAMES_RETRY_AFTER: Duration = Duration::from_secs(300);
/// Queries in a row whose datagrams brought no answer before names go over TCP.
const NAMES_UNANSWERED: u32 = 3;

/// Warm connections and what is known of the proxies.
#[derive(Debug)]
pub(super) struct Pool {
    size: usize,
    proxies: Vec<State>,
    udp_refused: Option<Instant>,
    /// Since when names go over TCP.
    names_by_stream: Option<Instant>,
    /// Queries in a row without an answer by datagram.
    names_unanswered: u32,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) down_since: Option<Instant>,
    /// Whether a connection to it was ever made.
    pub(super) reached: bool,
    /// What went wrong last, until something goes right.
    pub(super) trouble: Option<ProxyTrouble>,
    pub(super) warm: VecDeque<SocketId>,
    /// Connections on their way into the pool.
    pub(super) filling: usize,
    /// How it takes what is said at once.
    pub(super) manners: Manners,
}

/// What went wrong with a proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProxyTrouble {
    /// It could not be connected to.
    Connect(SocketError),
    /// It did not take the user and password, or none of the methods offered.
    Access(Failure),
}

impl Pool {
    /// What is known of each proxy, in the order of the configuration.
    pub(super) fn states(&self) -> &[State] {
        &self.proxies
    }

    pub(super) fn state(&mut self, proxy: usize) -> Option<&mut State> {
        self.proxies.get_mut(proxy)
    }

    /// The same pool for other proxies: `places` tells for each of the old ones its place among the `proxies` new ones. Gives the warm connections
    /// to those that have none.
    pub(super) fn rearrange(&mut self, proxies: usize, places: &[Option<usize>]) -> Vec<SocketId> {
        let mut old = core::mem::replace(self, Pool::new(self.size, proxies));
        let mut orphans = Vec::new();
        for (state, place) in old.proxies.drain(..).zip(places) {
            match place.and_then(|place| self.proxies.get_mut(place)) {
                // Two of the old ones may be the same.
                Some(kept) => {
                    let warm = core::mem::take(&mut kept.warm);
                    let filling = kept.filling;
                    *kept = state;
                    kept.warm.extend(warm);
                    kept.filling += filling;
                }
                None => orphans.extend(state.warm),
            }
        }
        orphans
    }

    /// The proxy has opened a way (`None`), or refuses whoever asks.
    pub(super) fn note(&mut self, proxy: usize, trouble: Option<ProxyTrouble>) {
        if let Some(state) = self.proxies.get_mut(proxy) {
            state.trouble = trouble;
        }
    }

    pub(super) fn new(size: usize, proxies: usize) -> Pool {
        Pool {
            size,
            proxies: (0..proxies).map(|_| State::default()).collect(),
            udp_refused: None,
            names_by_stream: None,
            names_unanswered: 0,
        }
    }

    /// The proxy to ask, from index `from` on: the first that is not known to be down, else the first at all.
    pub(super) fn choose(&self, from: usize, now: Instant) -> Option<usize> {
        let usable = |state: &State| state.down_since.is_none_or(|since| now.since(since) >= RETRY_AFTER);
        let up = self.proxies.iter().enumerate().skip(from).find(|(_, state)| usable(state));
        up.map(|(index, _)| index).or((from < self.proxies.len()).then_some(from))
    }

    /// The proxy was reached; whether that is news.
    pub(super) fn reachable(&mut self, proxy: usize) -> bool {
        let Some(state) = self.proxies.get_mut(proxy) else { return false };
        state.reached = true;
        state.down_since.take().is_some()
    }

    /// The proxy was not reached; whether that is news.
    pub(super) fn unreachable(&mut self, proxy: usize, error: SocketError, now: Instant) -> bool {
        let Some(state) = self.proxies.get_mut(proxy) else { return false };
        state.trouble = Some(ProxyTrouble::Connect(error));
        state.down_since.replace(now).is_none()
    }

    /// The proxy does not carry UDP.
    pub(super) fn udp_refused(&mut self, now: Instant) {
        self.udp_refused = Some(now);
    }

    /// What was found out on another network counts no more.
    pub(super) fn forgive(&mut self) {
        self.udp_refused = None;
        self.names_by_stream = None;
        self.names_unanswered = 0;
        for state in &mut self.proxies {
            state.forgive();
        }
    }

    /// Whether it is worth asking for an association.
    pub(super) fn udp_usable(&self, now: Instant) -> bool {
        self.udp_refused.is_none_or(|since| now.since(since) >= UDP_RETRY_AFTER)
    }

    /// Datagrams do not carry names: they go over TCP for a while. Whether that is news.
    pub(super) fn names_fall_back(&mut self, now: Instant) -> bool {
        self.names_unanswered = 0;
        self.names_by_stream.replace(now).is_none()
    }

    /// Whether it is worth asking for names by datagrams.
    pub(super) fn names_by_datagram(&self, now: Instant) -> bool {
        self.udp_usable(now) && self.names_by_stream.is_none_or(|since| now.since(since) >= NAMES_RETRY_AFTER)
    }

    /// A datagram has brought an answer. Whether it is news that they do.
    pub(super) fn names_answered(&mut self, now: Instant) -> bool {
        self.names_unanswered = 0;
        self.names_by_datagram(now) && self.names_by_stream.take().is_some()
    }

    /// So many datagrams have brought none; whether that is enough to give them up.
    pub(super) fn names_silent(&mut self, queries: u32) -> bool {
        self.names_unanswered = self.names_unanswered.saturating_add(queries);
        self.names_unanswered >= NAMES_UNANSWERED
    }

    fn forget(&mut self, socket: SocketId) {
        for state in &mut self.proxies {
            state.warm.retain(|warm| *warm != socket);
        }
    }
}

impl Engine {
    /// Opens a TCP connection for `purpose`.
    pub(super) fn dial(
        &mut self,
        purpose: Purpose,
        via: Via,
        to: SocketAddr,
        egress: Egress,
        now: Instant,
    ) -> SocketId {
        self.stats.dials += 1;
        let socket = self.sockets.insert(Socket::Tcp(TcpSocket { purpose, via, stage: Stage::Dialling }));
        self.socket_timers.set(socket.index(), now + self.config.connect_timeout);
        self.commands.push_back(Command::Dial { socket, to, egress });
        socket
    }

    /// Opens a connection to `proxy` that does not come out of the pool.
    pub(super) fn dial_fresh(&mut self, purpose: Purpose, proxy: usize, now: Instant) -> SocketId {
        let to = self.config.proxies[proxy].addr;
        self.dial(purpose, Via::Proxy(proxy), to, Egress::Proxy, now)
    }

    /// Makes a request of `proxy`, on a warm connection if there is one.
    pub(super) fn dial_proxy(
        &mut self,
        purpose: Purpose,
        proxy: usize,
        request: Request,
        target: Endpoint,
        now: Instant,
    ) -> SocketId {
        let warm = self.pool.proxies.get_mut(proxy).and_then(|state| state.warm.pop_front());
        let socket = match warm {
            Some(socket) => {
                self.stats.pool_hits += 1;
                self.reuse(socket, purpose, request, target, now);
                socket
            }
            None => self.dial_fresh(purpose, proxy, now),
        };
        self.fill_pool(proxy, now);
        socket
    }

    fn reuse(
        &mut self,
        socket: SocketId,
        purpose: Purpose,
        request: Request,
        target: Endpoint,
        now: Instant,
    ) {
        let Some(tcp) = self.sockets.tcp_mut(socket) else { return };
        if let Stage::Warm { client } = &mut tcp.stage {
            client.request(request, target);
            let stage = core::mem::replace(&mut tcp.stage, Stage::Dialling);
            if let Stage::Warm { client } = stage {
                tcp.stage = Stage::Handshake { client, reused: true };
            }
            tcp.purpose = purpose;
        }
        self.socket_timers.set(socket.index(), now + self.config.connect_timeout);
        self.commands.push_back(Command::Write { socket });
    }

    /// Starts what is missing in the pool of `proxy`, one connection for each use: a burst of flows does not wait for it.
    fn fill_pool(&mut self, proxy: usize, now: Instant) {
        let size = self.pool.size;
        let Some(state) = self.pool.proxies.get_mut(proxy) else { return };
        if self.stopping
            || self.network == Network::Gone
            || state.down_since.is_some()
            || state.warm.len() + state.filling >= size
        {
            return;
        }
        state.filling += 1;
        self.dial_fresh(Purpose::Pool, proxy, now);
    }

    /// The connection to a proxy is established: says the greeting.
    pub(super) fn greet(&mut self, socket: SocketId, proxy: usize, purpose: Purpose, _now: Instant) {
        let request = self.request_of(purpose, proxy);
        if request.is_none() && purpose != Purpose::Pool {
            return self.close_socket(socket, true);
        }
        let mut client = self.new_client(proxy, purpose);
        if let Some((request, target)) = request {
            client.request(request, target);
        }
        if let Some(tcp) = self.sockets.tcp_mut(socket) {
            tcp.stage = Stage::Handshake { client, reused: false };
            self.commands.push_back(Command::Write { socket });
        }
    }

    /// The method negotiation of a pooled connection is over.
    pub(super) fn negotiated(&mut self, socket: SocketId, now: Instant) {
        let Some(tcp) = self.sockets.tcp_mut(socket) else { return };
        let (Purpose::Pool, Via::Proxy(proxy)) = (tcp.purpose, tcp.via) else { return };
        let stage = core::mem::replace(&mut tcp.stage, Stage::Dialling);
        if let Stage::Handshake { client, .. } = stage {
            tcp.stage = Stage::Warm { client };
        }
        self.socket_timers.set(socket.index(), now + MAX_AGE);
        if let Some(state) = self.pool.proxies.get_mut(proxy) {
            state.filling = state.filling.saturating_sub(1);
            state.warm.push_back(socket);
        }
    }

    /// A pooled connection has ended, by itself or by age.
    pub(super) fn pool_lost(&mut self, socket: SocketId) {
        self.pool.forget(socket);
        self.close_socket(socket, false);
    }

    /// A connection on its way into the pool has failed.
    pub(super) fn pool_fill_failed(&mut self, proxy: usize) {
        if let Some(state) = self.pool.proxies.get_mut(proxy) {
            state.filling = state.filling.saturating_sub(1);
        }
    }

    /// Closes every pooled connection.
    pub(super) fn close_pool(&mut self) {
        let warm: Vec<SocketId> =
            self.pool.proxies.iter_mut().flat_map(|state| state.warm.drain(..)).collect();
        for socket in warm {
            self.close_socket(socket, false);
        }
    }

    /// The unspecified address in the family that `proxy` is reached by: the target of UDP ASSOCIATE (RFC 1928 6).
    pub(super) fn unspecified(&self, proxy: usize) -> Endpoint {
        let addr = match self.config.proxies.get(proxy).map(|proxy| proxy.addr) {
            Some(SocketAddr::V6(_)) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            Some(SocketAddr::V4(_)) | None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        Endpoint::new(addr, 0)
    }
}
