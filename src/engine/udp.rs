//! UDP associations: who sends datagrams, and the way they go.
//!
//! One local address and port keeps one association for all destinations (endpoint-independent mapping, RFC 4787 REQ-1), per way
//! out: an association with the proxy is a control connection and a UDP socket connected to the relay; a direct one is a UDP socket bound to
//! the egress. Replies carry the true remote address to the app.
//!
//! Datagrams that come before the association is open wait, a few of each and a bounded number of octets in all. When no
//! association can be had the app is told by ICMP (RFC 5508 REQ-8). An association ends after the idle time, when its control
//! connection ends (RFC 1928 7), or, the least recently used first, when the table is full.

use super::association::{Association, DNS_IDLE, NatKey, NoAssociation, State, Traffic, Waiting, Way};
use super::dns::Leave;
use super::socket::{Purpose, Socket, Stage};
use super::{Asker, Command, DatagramHeader, Egress, Engine, Output, SocketId};
use crate::dns::Course;
use crate::flow::FlowId;
use crate::outbound::rule::Proto;
use crate::outbound::socks5::associate;
use crate::stack::{Datagram, TrainHeader, datagrams};
use crate::time::Instant;
use crate::wire::Endpoint;
use crate::wire::icmp::Unreachable;
use crate::wire::socks5::Command as Request;
use core::net::SocketAddr;
use std::collections::VecDeque;

/// Datagrams that wait for one association to open.
const QUEUE_LEN: usize = 16;
/// Octets of datagrams that wait in all.
const QUEUE_OCTETS: usize = 4 << 20;
/// A datagram for an app.
#[derive(Clone, Copy, Debug)]
pub struct Arrived<'a> {
    /// Between whom.
    pub ends: Ends,
    /// The data.
    pub payload: &'a [u8],
}

/// Who sent a datagram, and for whom it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    /// Who sent it, as the app knows them.
    pub remote: Endpoint,
    /// The app.
    pub local: Endpoint,
}

impl Engine {
    /// A datagram of an app, straight out of a packet.
    pub(super) fn datagram_from_app<'p>(
        &mut self,
        local: Endpoint,
        remote: Endpoint,
        payload: &'p [u8],
        now: Instant,
    ) -> Output<'p> {
        if self.stopping {
            return Output::None;
        }
        let (way, target) = match self.datagram_route(remote, payload, now) {
            Leave::By(way, target) => (way, target),
            Leave::Refused => {
                self.stack.refuse_datagram(local, remote, payload, Unreachable::Port, now);
                self.stats.refused += 1;
                return Output::None;
            }
            Leave::Dropped => {
                self.stats.datagrams_dropped += 1;
                return Output::None;
            }
        };
        self.stats.datagrams_out += 1;
        if way == Way::Names && !self.identify {
            self.ask_by_stream(local, remote, target, payload, now);
            return Output::None;
        }
        let key = NatKey::new(local, way, target);
        let Some((id, outside)) = self.find_association(key, remote) else {
            return self.first_datagram(key, remote, target, payload, now);
        };
        let target = if outside { self.outside_target(remote) } else { target };
        self.nat_order.touch(id.index());
        let is_name = self.is_name(remote);
        let Some(association) = self.nat.get_mut(id) else { return Output::None };
        association.last_used = now;
        association.traffic.remote = remote;
        association.traffic.upload_octets += payload.len() as u64;
        association.asked_of = (remote != target).then_some(remote).or(association.asked_of);
        association.names_asked = match association.names_asked {
            Some(asked) if is_name => Some(asked.saturating_add(1)),
            Some(_) | None => None,
        };
        let open = match &mut association.state {
            State::Open { control, socket } => Some((*socket, control.is_some())),
            State::Names => {
                self.ask_by_stream(local, remote, target, payload, now);
                return Output::None;
            }
            State::Identifying { queue } | State::Asking { queue, .. } | State::Opening { queue, .. } => {
                if queue.len() >= QUEUE_LEN || self.nat_queued + payload.len() > QUEUE_OCTETS {
                    self.stats.datagrams_dropped += 1;
                    return Output::None;
                }
                self.nat_queued += payload.len();
                queue.push_back(Waiting { asked: remote, target, octets: payload.to_vec() });
                None
            }
        };
        if !matches!(association.state, State::Identifying { .. }) {
            let way = if outside { Way::Direct } else { way };
            self.book(way, local, remote, target, payload, now);
        }
        match open {
            Some((socket, relayed)) => datagram_output(socket, relayed, target, payload),
            None => Output::None,
        }
    }

    /// A train of datagrams of an app: judged one by one, and sent on as the train it is.
    pub(super) fn train_from_app<'p>(
        &mut self,
        local: Endpoint,
        remote: Endpoint,
        train: &'p [u8],
        segment_size: u16,
        now: Instant,
    ) -> Output<'p> {
        let mut sent = None;
        let is_name = self.is_name(remote);
        for payload in datagrams(train, segment_size) {
            match self.datagram_from_app(local, remote, payload, now) {
                // Names go different ways, by what is asked; nobody asks so many at once that it mattered.
                Output::Datagram { socket, to, header, .. } if is_name => {
                    let octets = [header.as_slice(), payload].concat();
                    self.commands.push_back(Command::SendDatagram { socket, to, octets });
                }
                Output::Datagram { socket, to, header, .. } => sent = Some((socket, to, header)),
                Output::None | Output::Reassembled(_) | Output::Stream { .. } => {}
            }
        }
        match sent {
            Some((socket, to, header)) => {
                Output::Datagram { socket, to, header, payload: train, segment_size }
            }
            None => Output::None,
        }
    }

    /// The association of a local endpoint, and whether it is the local proxy's own: for those it does not matter what the rules say.
    fn find_association(&self, key: NatKey, asked: Endpoint) -> Option<(FlowId, bool)> {
        let outside = |id: FlowId| self.nat.get(id).is_some_and(|association| association.outside);
        let found = self.nat.find(&key).map(|id| (id, outside(id)));
        found.or_else(|| {
            let direct = NatKey::new(key.local, Way::Direct, self.outside_target(asked));
            self.nat.find(&direct).filter(|id| outside(*id)).map(|id| (id, true))
        })
    }

    /// Notes a query that is on its way.
    fn book(
        &mut self,
        way: Way,
        local: Endpoint,
        asked: Endpoint,
        target: Endpoint,
        payload: &[u8],
        now: Instant,
    ) {
        if self.is_name(asked) && way != Way::Names {
            let course = Course { local, asked, server: target, carrier: way.carrier() };
            self.dns.handle_query(course, payload, now);
        }
    }

    fn first_datagram<'p>(
        &mut self,
        key: NatKey,
        asked: Endpoint,
        target: Endpoint,
        payload: &'p [u8],
        now: Instant,
    ) -> Output<'p> {
        if key.way == Way::Proxy && !self.pool.udp_usable(now) {
            self.stack.refuse_datagram(key.local, asked, payload, Unreachable::Prohibited, now);
            self.stats.refused += 1;
            return Output::None;
        }
        let streams = key.way == Way::Names;
        if !streams && !self.guard.may_send(target, now) {
            self.loop_seen("senders of datagrams", super::guard::UNANSWERED_LIMIT, now);
            self.stack.refuse_datagram(key.local, asked, payload, Unreachable::Prohibited, now);
            self.stats.refused += 1;
            return Output::None;
        }
        if self.nat.is_full()
            && let Some(oldest) = self.nat_order.oldest().and_then(|index| self.nat.id_at(index))
        {
            self.stats.associations_evicted += 1;
            self.remove_association(oldest);
        }
        let queue = VecDeque::from([Waiting { asked, target, octets: payload.to_vec() }]);
        let asks_names = self.is_name(asked);
        let association = Association {
            state: State::Identifying { queue },
            last_used: now,
            names_asked: asks_names.then_some(1),
            outside: false,
            unheard: (!streams).then_some(target),
            asked_of: (asked != target).then_some(asked),
            traffic: Traffic {
                opened: now,
                remote: asked,
                upload_octets: payload.len() as u64,
                download_octets: 0,
            },
        };
        let Ok(id) = self.nat.insert(key, association) else {
            if !streams {
                self.guard.heard(target);
            }
            self.stats.datagrams_dropped += 1;
            return Output::None;
        };
        self.nat_queued += payload.len();
        self.nat_order.touch(id.index());
        let look = if asks_names { DNS_IDLE.min(self.config.udp_idle) } else { self.config.udp_idle };
        self.nat_timers.set(id.index(), now + look);
        if self.identify && key.way != Way::Direct {
            let asker = Asker::Udp(id);
            self.commands.push_back(Command::Identify {
                asker,
                proto: Proto::Udp,
                local: key.local,
                remote: target,
            });
        } else {
            self.book(key.way, key.local, asked, target, payload, now);
            self.open_association(id, now);
        }
        Output::None
    }

    /// The owner of the app's socket is known.
    pub(super) fn association_identified(&mut self, id: FlowId, local_proxy: bool, now: Instant) {
        let Some(association) = self.nat.get_mut(id) else { return };
        let State::Identifying { queue } = &mut association.state else { return };
        let mut queue = core::mem::take(queue);
        if local_proxy {
            self.stats.kept_outside += 1;
            for waiting in &mut queue {
                waiting.target = self.outside_target(waiting.asked);
            }
        }
        let Some(key) = self.nat.key(id).copied() else { return };
        let way = if local_proxy { Way::Direct } else { key.way };
        for Waiting { asked, target, octets } in &queue {
            self.book(way, key.local, *asked, *target, octets, now);
        }
        let first = queue.front().map(|waiting| waiting.target);
        if let Some(association) = self.nat.get_mut(id) {
            association.state = State::Identifying { queue };
        }
        match first {
            Some(target) if local_proxy => self.move_outside(id, NatKey::new(key.local, way, target), now),
            Some(_) | None => self.open_association(id, now),
        }
    }

    /// The local proxy's own datagrams go out directly: the association moves to the direct way.
    fn move_outside(&mut self, id: FlowId, key: NatKey, now: Instant) {
        let Some((_, mut association)) = self.nat.remove(id) else { return };
        self.nat_timers.cancel(id.index());
        self.nat_order.remove(id.index());
        association.outside = true;
        if let Some(there) = self.nat.find(&key) {
            return self.join(there, association, now);
        }
        match self.nat.insert(key, association) {
            Ok(id) => {
                self.nat_order.touch(id.index());
                self.nat_timers.set(id.index(), now + self.config.udp_idle);
                self.open_association(id, now);
            }
            Err(association) => self.forget(&association),
        }
    }

    /// The local proxy's socket has the direct way already, by a rule or by an earlier datagram: what waits goes by it, and what comes later.
    fn join(&mut self, id: FlowId, mut other: Association, now: Instant) {
        let waits = other.take_queue();
        self.forget(&other);
        self.nat_order.touch(id.index());
        let Some(association) = self.nat.get_mut(id) else { return };
        association.outside = true;
        association.last_used = now;
        association.names_asked =
            association.names_asked.zip(other.names_asked).map(|(here, there)| here.saturating_add(there));
        association.asked_of = other.asked_of.or(association.asked_of);
        association.traffic.remote = other.traffic.remote;
        association.traffic.upload_octets += other.traffic.upload_octets;
        for waiting in waits {
            let octets = waiting.octets.len();
            match &mut association.state {
                State::Identifying { queue } | State::Asking { queue, .. } | State::Opening { queue, .. }
                    if queue.len() < QUEUE_LEN =>
                {
                    queue.push_back(waiting);
                    continue;
                }
                State::Identifying { .. } | State::Asking { .. } | State::Opening { .. } | State::Names => {
                    self.stats.datagrams_dropped += 1;
                }
                State::Open { socket, .. } => {
                    let (socket, to) = (*socket, Some(waiting.target.into()));
                    self.commands.push_back(Command::SendDatagram { socket, to, octets: waiting.octets });
                }
            }
            self.nat_queued = self.nat_queued.saturating_sub(octets);
        }
    }

    pub(super) fn open_association(&mut self, id: FlowId, now: Instant) {
        let Some(way) = self.nat.key(id).map(|key| key.way) else { return };
        match way {
            Way::Direct => self.open_udp(id, None, None, Egress::Direct),
            Way::Names => self.open_names(id, now),
            Way::Proxy => match self.pool.choose(0, now) {
                Some(proxy) => {
                    let target = self.unspecified(proxy);
                    let control =
                        self.dial_proxy(Purpose::Association(id), proxy, Request::UdpAssociate, target, now);
                    self.asking(id, control);
                }
                None => self.association_denied(id, NoAssociation::Unreachable, now),
            },
        }
    }

    /// What waits goes over TCP, and what comes later.
    fn open_names(&mut self, id: FlowId, now: Instant) {
        let Some(local) = self.nat.key(id).map(|key| key.local) else { return };
        let Some(association) = self.nat.get_mut(id) else { return };
        let queue = association.take_queue();
        association.state = State::Names;
        for Waiting { asked, target, octets } in queue {
            self.nat_queued = self.nat_queued.saturating_sub(octets.len());
            self.ask_by_stream(local, asked, target, &octets, now);
        }
    }

    /// `control` is what the association waits for.
    pub(super) fn asking(&mut self, id: FlowId, control: SocketId) {
        if let Some(association) = self.nat.get_mut(id) {
            let queue = association.take_queue();
            association.state = State::Asking { control, queue };
        }
    }

    /// Asks again, through `proxy`.
    pub(super) fn association_redial(&mut self, id: FlowId, proxy: usize, now: Instant) {
        if self.nat.get(id).is_some() {
            let control = self.dial_fresh(Purpose::Association(id), proxy, now);
            self.asking(id, control);
        }
    }

    /// The proxy has opened a relay.
    pub(super) fn association_granted(
        &mut self,
        id: FlowId,
        control: SocketId,
        proxy: usize,
        bound: Option<Endpoint>,
        now: Instant,
    ) {
        self.socket_timers.cancel(control.index());
        if let Some(tcp) = self.sockets.tcp_mut(control) {
            tcp.stage = Stage::Control;
        }
        if self.nat.get(id).is_none() {
            return self.close_socket(control, false);
        }
        match associate::relay_address(bound, self.config.proxies[proxy].addr) {
            Some(relay) => self.open_udp(id, Some(control), Some(relay), Egress::Proxy),
            None => {
                log::warn!("the proxy granted UDP ASSOCIATE without naming a usable relay");
                self.association_denied(id, NoAssociation::NoRelay, now);
            }
        }
    }

    fn open_udp(&mut self, id: FlowId, control: Option<SocketId>, peer: Option<SocketAddr>, egress: Egress) {
        let Some(v6) = self.nat.key(id).map(|key| key.v6) else { return };
        let socket = self.sockets.insert(Socket::Udp(id));
        if let Some(association) = self.nat.get_mut(id) {
            let queue = association.take_queue();
            association.state = State::Opening { control, socket, queue };
        }
        self.commands.push_back(Command::OpenUdp { socket, peer, v6, egress });
    }

    /// The driver has opened a UDP socket: what waited is sent.
    pub fn handle_udp_open(&mut self, socket: SocketId, _now: Instant) {
        let Some(&Socket::Udp(id)) = self.sockets.get(socket) else { return };
        let Some(association) = self.nat.get_mut(id) else { return };
        let queue = association.take_queue();
        let State::Opening { control, .. } = association.state else { return };
        association.state = State::Open { control, socket };
        for Waiting { target, octets, .. } in queue {
            self.nat_queued = self.nat_queued.saturating_sub(octets.len());
            let (to, octets) = match control {
                Some(_) => {
                    let mut datagram = relay_header(target).as_slice().to_vec();
                    datagram.extend_from_slice(&octets);
                    (None, datagram)
                }
                None => (Some(target.into()), octets),
            };
            self.commands.push_back(Command::SendDatagram { socket, to, octets });
        }
    }

    /// A datagram has come to a UDP socket: what to give to the TUN.
    #[must_use]
    pub fn handle_datagram<'a>(
        &'a mut self,
        socket: SocketId,
        from: Option<SocketAddr>,
        octets: &'a [u8],
        now: Instant,
    ) -> Option<Datagram<'a>> {
        let Arrived { ends, payload } = self.receive_datagram(socket, from, octets, now)?;
        self.deliver_datagram(ends, payload, now)
    }

    /// The packets of a datagram that was [received](Engine::receive_datagram).
    #[must_use]
    pub fn deliver_datagram<'a>(
        &'a mut self,
        ends: Ends,
        payload: &'a [u8],
        now: Instant,
    ) -> Option<Datagram<'a>> {
        self.stack.send_datagram(ends.remote, ends.local, payload, now)
    }

    /// One packet for datagrams that were [received](Engine::receive_datagram), where the device takes such.
    #[must_use]
    pub fn deliver_train(&mut self, ends: Ends, pieces: &[&[u8]]) -> Option<TrainHeader<'_>> {
        self.stack.send_train(ends.remote, ends.local, pieces)
    }

    /// A datagram has come to a UDP socket: whose it is. `from` is not needed where the socket is connected.
    #[must_use]
    pub fn receive_datagram<'a>(
        &mut self,
        socket: SocketId,
        from: Option<SocketAddr>,
        octets: &'a [u8],
        now: Instant,
    ) -> Option<Arrived<'a>> {
        let Some(&Socket::Udp(id)) = self.sockets.get(socket) else { return None };
        let local = self.nat.key(id)?.local;
        let association = self.nat.get_mut(id)?;
        let State::Open { control, .. } = association.state else { return None };
        let (mut remote, payload) = match (control, from) {
            (Some(_), _) => match associate::decapsulate(octets) {
                Ok(decapsulated) => decapsulated,
                Err(rejected) => {
                    log::debug!("datagram of the relay dropped: {rejected:?}");
                    self.rejections.count(rejected);
                    self.stats.datagrams_dropped += 1;
                    return None;
                }
            },
            (None, Some(from)) => (Endpoint::from(from), octets),
            (None, None) => return None,
        };
        association.last_used = now;
        association.traffic.download_octets += payload.len() as u64;
        if let Some(first) = association.unheard.take() {
            self.guard.heard(first);
        }
        self.stats.datagrams_in += 1;
        let asked_of = association.asked_of;
        if self.is_name_server(remote) {
            let answered = self.dns.handle_answer(local, remote, payload, now);
            if answered.is_some() && control.is_some() && self.pool.names_answered(now) {
                log::info!("names are asked by datagrams through the proxy again");
            }
            // One that comes late, or twice, comes from whom the app asked last.
            remote = answered.map(|answered| answered.asked).or(asked_of).unwrap_or(remote);
            if let Some(association) = self.nat.get_mut(id) {
                association.names_asked = association.names_asked.map(|asked| asked.saturating_sub(1));
            }
        }
        self.nat_order.touch(id.index());
        Some(Arrived { ends: Ends { remote, local }, payload })
    }
}

fn relay_header(target: Endpoint) -> DatagramHeader {
    let mut header = DatagramHeader::default();
    header.len = associate::encapsulate(target, &mut header.octets) as u8;
    header
}

fn datagram_output(socket: SocketId, relayed: bool, target: Endpoint, payload: &[u8]) -> Output<'_> {
    match relayed {
        true => Output::Datagram { socket, to: None, header: relay_header(target), payload, segment_size: 0 },
        false => {
            let header = DatagramHeader::default();
            Output::Datagram { socket, to: Some(target.into()), header, payload, segment_size: 0 }
        }
    }
}
