//! Opens and ends TCP flows: from SYN to relay, and from either end's close to nothing left.
//!
//! ```text
//! SYN ─▶ identify ─▶ route ─┬─ reject, drop ─▶ refused
//!        (local proxy only) └─ proxy, direct ─▶ dial ─▶ handshake ─▶ SYN-ACK ─▶ relay      (--accept late)
//!                                              SYN-ACK ─▶ app's ACK ─▶ dial ─▶ handshake ─▶ relay  (--accept early)
//! ```
//!
//! With late accept the app sees what the target said: a refused port is a RST, an unreachable host an ICMP error, and a second
//! address gets tried. The SYN waits in the stack's SYN queue meanwhile and costs next to nothing.

use super::association::{NoAssociation, Way};
use super::guard::Attempt;
use super::inspect::FlowPhase;
use super::links::{Link, Opening, Phase};
use super::network::Network;
use super::pipeline::understood;
use super::pool::ProxyTrouble;
use super::socket::{Early, Half, Purpose, Socket, Stage, TcpSocket, Via};
use super::{Asker, Command, Egress, Engine, SocketError, SocketId};
use crate::config::Accept;
use crate::flow::FlowId;
use crate::outbound::Denial;
use crate::outbound::rule::{Proto, Route};
use crate::outbound::socks5::{Failure, Progress, denial};
use crate::stack::{Closed, Refusal};
use crate::time::Instant;
use crate::wire::Endpoint;
use crate::wire::icmp::Unreachable;
use crate::wire::socks5::Command as Request;

/// The engine's words for a failure on the way to the target, in the stack's.
pub(super) fn refusal(denial: Denial) -> Refusal {
    match denial {
        Denial::Refused | Denial::ProxyDown => Refusal::Reset,
        Denial::Network => Refusal::Icmp(Unreachable::Network),
        Denial::Host | Denial::TimedOut => Refusal::Icmp(Unreachable::Host),
        Denial::Prohibited => Refusal::Icmp(Unreachable::Prohibited),
    }
}

impl Engine {
    /// How far a flow has come, and which way; for reports.
    pub(super) fn flow_phase(&self, flow: FlowId) -> (FlowPhase, Option<Via>) {
        let via = |socket: SocketId| self.sockets.tcp(socket).map(|tcp| tcp.via);
        match self.links.get(flow) {
            None => (FlowPhase::Finishing, None),
            Some(Link::Relaying(socket)) => (FlowPhase::Relaying, via(*socket)),
            Some(Link::Opening(opening)) => match opening.phase {
                Phase::Identifying => (FlowPhase::Identifying, None),
                Phase::Accepted(via) => (FlowPhase::Opening, Some(via)),
                Phase::Parked => (FlowPhase::Parked, None),
                Phase::Opening(socket) => (FlowPhase::Opening, via(socket)),
            },
        }
    }

    /// Gives flows that wait for their ACK and were to go through a proxy another one: `places` tells for each of the old proxies its place
    /// among the new.
    pub(super) fn move_accepted(&mut self, places: &[Option<usize>]) {
        for opening in self.links.all_opening() {
            if let Phase::Accepted(Via::Proxy(proxy)) = &mut opening.phase {
                *proxy = places.get(*proxy).copied().flatten().unwrap_or(0);
            }
        }
    }

    fn set_link(&mut self, flow: FlowId, remote: Endpoint, phase: Phase) {
        self.links.set(flow, Link::Opening(Box::new(Opening { remote, phase })));
    }

    fn is_parked(&self, flow: FlowId) -> bool {
        self.links.opening(flow).is_some_and(|opening| opening.phase == Phase::Parked)
    }

    fn set_phase(&mut self, flow: FlowId, phase: Phase) {
        self.links.set_phase(flow, phase);
    }

    pub(super) fn has_link(&self, flow: FlowId) -> bool {
        self.links.get(flow).is_some()
    }

    pub(super) fn unlink(&mut self, flow: FlowId) {
        self.links.remove(flow);
    }

    /// The socket that carries, or is to carry, a flow.
    pub(super) fn link_socket(&self, flow: FlowId) -> Option<SocketId> {
        match self.links.get(flow)? {
            Link::Relaying(socket) => Some(*socket),
            Link::Opening(opening) => match opening.phase {
                Phase::Opening(socket) => Some(socket),
                Phase::Identifying | Phase::Accepted(_) | Phase::Parked => None,
            },
        }
    }

    /// RST to the app; nothing of the flow is left.
    pub(super) fn abort_flow(&mut self, flow: FlowId, now: Instant) {
        if let Some(tcp) = self.stack.tcp(flow) {
            tcp.abort(now);
        }
    }

    /// Refuses a flow whose SYN waits, resets one that was accepted early.
    pub(super) fn refuse_flow(&mut self, flow: FlowId, why: Refusal, now: Instant) {
        self.stats.refused += 1;
        self.unlink(flow);
        if let Some(tcp) = self.stack.tcp(flow) {
            tcp.refuse(why, now);
        }
    }

    /// A SYN has come.
    pub(super) fn flow_asked_for(&mut self, flow: FlowId, now: Instant) {
        let Some(tcp) = self.stack.tcp(flow) else { return };
        let key = tcp.key();
        if self.stopping {
            return self.refuse_flow(flow, Refusal::Reset, now);
        }
        if self.config.proxies.iter().any(|proxy| Endpoint::from(proxy.addr) == key.remote) {
            self.stats.loops += 1;
            log::error!(
                "routing loop: a connection to the proxy came back into the tunnel and was refused; keep the proxy outside it (--bypass, or another --mark)"
            );
            return self.refuse_flow(flow, Refusal::Reset, now);
        }
        if self.identify {
            self.set_link(flow, key.remote, Phase::Identifying);
            let asker = Asker::Tcp(flow);
            self.commands.push_back(Command::Identify {
                asker,
                proto: Proto::Tcp,
                local: key.local,
                remote: key.remote,
            });
        } else {
            self.route_flow(flow, key.remote, now);
        }
    }

    /// The owner of the app's socket is known.
    pub(super) fn flow_identified(&mut self, flow: FlowId, local_proxy: bool, now: Instant) {
        let Some(&Opening { remote, phase: Phase::Identifying }) = self.links.opening(flow) else { return };
        if local_proxy {
            self.stats.kept_outside += 1;
            self.admit(flow, self.outside_target(remote), Via::Direct, now);
        } else {
            self.route_flow(flow, remote, now);
        }
    }

    fn route_flow(&mut self, flow: FlowId, remote: Endpoint, now: Instant) {
        let (route, remote) = self.flow_route(remote);
        match route {
            Route::Proxy => match self.pool.choose(0, now) {
                Some(proxy) => self.admit(flow, remote, Via::Proxy(proxy), now),
                None => self.refuse_flow(flow, Refusal::Reset, now),
            },
            Route::Direct => self.admit(flow, remote, Via::Direct, now),
            Route::Reject => self.refuse_flow(flow, Refusal::Reset, now),
            Route::Drop => self.refuse_flow(flow, Refusal::Silent, now),
        }
    }

    fn admit(&mut self, flow: FlowId, remote: Endpoint, via: Via, now: Instant) {
        match self.config.accept {
            Accept::Late => self.open(flow, remote, via, now),
            Accept::Early => {
                self.set_link(flow, remote, Phase::Accepted(via));
                if let Some(mut tcp) = self.stack.tcp(flow) {
                    tcp.accept(now);
                }
            }
        }
    }

    /// Opens the way to the target, unless too many attempts wait for an answer already.
    fn open(&mut self, flow: FlowId, remote: Endpoint, via: Via, now: Instant) {
        self.set_link(flow, remote, Phase::Parked);
        match self.guard.attempt(remote, way(via), flow) {
            Attempt::Go => match via {
                Via::Direct => self.dial_target(flow, remote, now),
                Via::Proxy(proxy) => self.dial_through(flow, remote, proxy, now),
            },
            Attempt::Parked => {}
            Attempt::TooMany => self.refuse_flow(flow, Refusal::Silent, now),
        }
    }

    fn dial_target(&mut self, flow: FlowId, remote: Endpoint, now: Instant) {
        let socket = self.dial(Purpose::Flow(flow), Via::Direct, remote.into(), Egress::Direct, now);
        self.set_phase(flow, Phase::Opening(socket));
    }

    /// Asks `proxy` for the target, on a warm connection if there is one.
    fn dial_through(&mut self, flow: FlowId, remote: Endpoint, proxy: usize, now: Instant) {
        let socket = self.dial_proxy(Purpose::Flow(flow), proxy, Request::Connect, remote, now);
        self.set_phase(flow, Phase::Opening(socket));
    }

    /// An attempt was answered: a parked flow takes its place.
    fn attempt_answered(&mut self, remote: Endpoint, via: Via, now: Instant) {
        let way = way(via);
        while let Some(next) = self.guard.answered(remote, way) {
            let waits = self.is_parked(next);
            if waits {
                match (way, self.pool.choose(0, now)) {
                    (Way::Direct, _) => self.dial_target(next, remote, now),
                    (Way::Proxy | Way::Names, Some(proxy)) => self.dial_through(next, remote, proxy, now),
                    (Way::Proxy | Way::Names, None) => self.refuse_flow(next, Refusal::Reset, now),
                }
                return;
            }
        }
    }

    /// connect(2) has succeeded.
    pub(super) fn connected(&mut self, socket: SocketId, now: Instant) {
        let Some(tcp) = self.sockets.tcp_mut(socket) else { return };
        if !matches!(tcp.stage, Stage::Dialling) {
            return;
        }
        let (purpose, via) = (tcp.purpose, tcp.via);
        match (via, purpose) {
            (Via::Direct, Purpose::Flow(flow)) => self.granted(socket, flow, Vec::new(), now),
            (Via::Direct, Purpose::Association(_) | Purpose::Names(_) | Purpose::Pool | Purpose::Trial) => {
                self.close_socket(socket, false);
            }
            (Via::Proxy(proxy), _) => {
                if self.pool.reachable(proxy) {
                    log::info!("proxy {} can be reached again", proxy + 1);
                }
                self.greet(socket, proxy, purpose, now);
            }
        }
    }

    /// Octets of a SOCKS5 server have come into the scratch space.
    pub(super) fn handshake_input(&mut self, socket: SocketId, octets: usize, now: Instant) {
        let input = self.scratch;
        let Some(input) = input.get(..octets) else { return };
        let Some(tcp) = self.sockets.tcp_mut(socket) else { return };
        let (purpose, via) = (tcp.purpose, tcp.via);
        let Stage::Handshake { client, reused } = &mut tcp.stage else { return };
        *reused = false;
        match client.handle_input(input) {
            Ok(Progress::Pending) => self.commands.push_back(Command::Write { socket }),
            Ok(Progress::Negotiated) => self.negotiated(socket, now),
            Ok(Progress::Granted { bound, consumed }) => {
                let password = client.wants_password() == Some(true);
                if let Via::Proxy(proxy) = via {
                    self.pool.note(proxy, None);
                    self.note_granted(proxy, purpose, password, now);
                }
                let early = input.get(consumed..).unwrap_or_default();
                match (purpose, via) {
                    (Purpose::Flow(flow), _) => self.granted(socket, flow, early.to_vec(), now),
                    (Purpose::Association(association), Via::Proxy(proxy)) => {
                        self.association_granted(association, socket, proxy, bound, now);
                    }
                    (Purpose::Names(stream), Via::Proxy(_)) => {
                        self.stream_granted(socket, stream, early, now);
                    }
                    (Purpose::Association(_) | Purpose::Names(_), Via::Direct)
                    | (Purpose::Pool | Purpose::Trial, _) => self.close_socket(socket, true),
                }
            }
            Err(failure) => self.handshake_failed(socket, failure, now),
        }
    }

    /// The way to the target is open.
    fn granted(&mut self, socket: SocketId, flow: FlowId, early: Vec<u8>, now: Instant) {
        self.socket_timers.cancel(socket.index());
        let Some(&Opening { remote, .. }) = self.links.opening(flow) else {
            return self.close_socket(socket, true);
        };
        let Some(tcp) = self.sockets.tcp_mut(socket) else { return };
        tcp.stage = Stage::Relay { early: Early::new(early), upload: Half::Open, download: Half::Open };
        let via = tcp.via;
        self.links.set(flow, Link::Relaying(socket));
        self.attempt_answered(remote, via, now);
        match self.config.accept {
            Accept::Late => {
                if let Some(mut tcp) = self.stack.tcp(flow) {
                    tcp.accept(now);
                }
            }
            Accept::Early => {
                self.begin_download(socket, flow, now);
                self.flow_readable(flow, now);
            }
        }
    }

    /// The app's ACK has completed the handshake.
    pub(super) fn flow_established(&mut self, flow: FlowId, now: Instant) {
        match self.links.get(flow) {
            Some(&Link::Relaying(socket)) => self.begin_download(socket, flow, now),
            Some(Link::Opening(opening)) => {
                let Opening { remote, phase } = **opening;
                if let Phase::Accepted(via) = phase {
                    self.open(flow, remote, via, now);
                }
            }
            None => {}
        }
    }

    fn begin_download(&mut self, socket: SocketId, flow: FlowId, now: Instant) {
        let flushed = self.flush_early(socket, now);
        let ended = self.sockets.tcp(socket).is_some_and(|tcp| {
            matches!(tcp.stage, Stage::Relay { download: Half::Finished | Half::Broken, .. })
        });
        if flushed
            && ended
            && let Some(mut tcp) = self.stack.tcp(flow)
        {
            tcp.shutdown(now);
        }
        self.commands.push_back(Command::Read { socket });
    }

    fn handshake_failed(&mut self, socket: SocketId, failure: Failure, now: Instant) {
        log::debug!("the proxy did not grant a request: {failure:?}");
        let Some(tcp) = self.sockets.tcp(socket) else { return };
        let (purpose, via) = (tcp.purpose, tcp.via);
        let again = match failure {
            Failure::NoMethod | Failure::WrongMethod(_) | Failure::Protocol => self.falls_back(socket),
            Failure::Denied | Failure::Refused(_) => false,
        };
        if let (Via::Proxy(proxy), Purpose::Trial) = (via, purpose) {
            self.tried(proxy, understood(&failure));
            return self.close_socket(socket, false);
        }
        if let (Via::Proxy(proxy), true) = (via, again) {
            self.close_socket(socket, false);
            return self.redial(purpose, proxy, now);
        }
        self.stats.dials_failed += 1;
        if let Via::Proxy(proxy) = via {
            self.pool.note(proxy, trouble(&failure));
        }
        self.close_socket(socket, false);
        match purpose {
            Purpose::Flow(flow) => self.flow_denied(flow, via, denial(&failure), now),
            Purpose::Association(association) => {
                self.association_denied(association, NoAssociation::Refused(failure), now);
            }
            Purpose::Names(stream) => self.stream_lost(stream, now),
            Purpose::Pool | Purpose::Trial => {}
        }
    }

    pub(super) fn flow_denied(&mut self, flow: FlowId, via: Via, denial: Denial, now: Instant) {
        let Some(&Opening { remote, .. }) = self.links.opening(flow) else { return };
        self.refuse_flow(flow, refusal(denial), now);
        if denial == Denial::TimedOut {
            let parked = self.guard.timed_out(remote, way(via));
            if !parked.is_empty() {
                self.loop_seen("connections", parked.len() + super::guard::UNANSWERED_LIMIT, now);
            }
            for flow in parked {
                if self.is_parked(flow) {
                    self.refuse_flow(flow, Refusal::Icmp(Unreachable::Host), now);
                }
            }
        } else {
            self.attempt_answered(remote, via, now);
        }
    }

    /// What has left the machine comes back in, or one destination is dead and much asked for.
    pub(super) fn loop_seen(&mut self, what: &str, number: usize, now: Instant) {
        self.stats.loops += 1;
        if self.guard.say(now) {
            log::error!(
                "no answer to any of {number} {what} to one destination: it is dead, or what should leave this machine comes back into the \
                 tunnel (a loop); keep the proxy outside it with --bypass or --local-proxy auto, and ztun's routing rules as they were made"
            );
        }
    }

    /// A TCP socket failed, in whatever stage.
    pub(super) fn tcp_socket_failed(&mut self, socket: SocketId, error: SocketError, now: Instant) {
        let Some(TcpSocket { purpose, via, stage }) = self.sockets.tcp(socket) else { return };
        let (purpose, via) = (*purpose, *via);
        let (dialling, reused) = match stage {
            Stage::Relay { .. } => {
                if let Purpose::Flow(flow) = purpose {
                    self.relay_failed(socket, flow, now);
                }
                return;
            }
            Stage::Control => {
                if let Purpose::Association(association) = purpose {
                    self.remove_association(association);
                }
                return;
            }
            Stage::Names => {
                self.close_socket(socket, true);
                if let Purpose::Names(stream) = purpose {
                    self.stream_lost(stream, now);
                }
                return;
            }
            Stage::Warm { .. } => return self.pool_lost(socket),
            Stage::Held => return self.held_too_long(socket, purpose, via, now),
            Stage::Dialling => (true, false),
            Stage::Handshake { reused, .. } => (false, *reused),
        };
        let again = self.falls_back(socket);
        self.stats.dials_failed += u64::from(!again);
        if let (Via::Proxy(proxy), Purpose::Trial, false) = (via, purpose, dialling) {
            self.tried(proxy, false);
        }
        self.close_socket(socket, true);
        let Via::Proxy(proxy) = via else {
            if self.network == Network::Gone && error == SocketError::Network {
                return self.hold(purpose, via, now);
            }
            if let Purpose::Flow(flow) = purpose {
                self.flow_denied(flow, via, dial_denial(error), now);
            }
            return;
        };
        if reused || again {
            self.stats.pool_stale += u64::from(reused);
            return self.redial(purpose, proxy, now);
        }
        // A machine out of descriptors says nothing about the proxy, nor does one without a network.
        if dialling && error != SocketError::Exhausted {
            let next = self.pool.choose(proxy + 1, now).filter(|next| *next > proxy);
            if next.is_none() && error == SocketError::Network && self.network != Network::Unwatched {
                return self.hold(purpose, via, now);
            }
            if self.network != Network::Gone && self.pool.unreachable(proxy, error, now) {
                log::warn!("proxy {} cannot be reached: {error:?}", proxy + 1);
            }
            if let Some(next) = next {
                return self.redial(purpose, next, now);
            }
        }
        match purpose {
            Purpose::Flow(flow) => self.flow_denied(flow, via, Denial::ProxyDown, now),
            Purpose::Association(association) => {
                self.association_denied(association, NoAssociation::Unreachable, now);
            }
            Purpose::Names(stream) => self.stream_lost(stream, now),
            Purpose::Pool | Purpose::Trial => {}
        }
    }

    /// Makes the same request again, through `proxy`.
    pub(super) fn redial(&mut self, purpose: Purpose, proxy: usize, now: Instant) {
        match purpose {
            Purpose::Flow(flow) => {
                let Some(&Opening { remote, .. }) = self.links.opening(flow) else { return };
                let socket = self.dial_fresh(Purpose::Flow(flow), proxy, now);
                self.set_phase(flow, Phase::Opening(socket));
                log::trace!("asking proxy {} for {remote}", proxy + 1);
            }
            Purpose::Association(association) => self.association_redial(association, proxy, now),
            Purpose::Names(stream) => self.stream_redial(stream, proxy, now),
            Purpose::Pool | Purpose::Trial => {}
        }
    }

    /// Dials the target of a flow that goes out directly again.
    pub(super) fn redial_target(&mut self, flow: FlowId, now: Instant) {
        if let Some(&Opening { remote, .. }) = self.links.opening(flow) {
            self.dial_target(flow, remote, now);
        }
    }

    /// `socket` is what the flow waits for.
    pub(super) fn opening(&mut self, flow: FlowId, socket: SocketId) {
        self.set_phase(flow, Phase::Opening(socket));
    }

    /// The request that belongs to a purpose; `None` for a connection that only fills the pool, or whose flow is gone.
    pub(super) fn request_of(&self, purpose: Purpose, proxy: usize) -> Option<(Request, Endpoint)> {
        match purpose {
            Purpose::Flow(flow) => self.links.opening(flow).map(|opening| (Request::Connect, opening.remote)),
            Purpose::Association(_) | Purpose::Trial => {
                Some((Request::UdpAssociate, self.unspecified(proxy)))
            }
            Purpose::Names(stream) => self.streams.server(stream).map(|server| (Request::Connect, server)),
            Purpose::Pool => None,
        }
    }

    /// The connect time-out, or the age limit of a pooled connection.
    pub(super) fn socket_timed_out(&mut self, socket: SocketId, now: Instant) {
        let Some(Socket::Tcp(tcp)) = self.sockets.get(socket) else { return };
        let (purpose, via) = (tcp.purpose, tcp.via);
        self.dialogue_timed_out(socket);
        let Some(tcp) = self.sockets.tcp(socket) else { return };
        match (&tcp.stage, purpose) {
            (Stage::Warm { .. }, _) => self.pool_lost(socket),
            (Stage::Dialling | Stage::Held, _) => {
                self.tcp_socket_failed(socket, SocketError::TimedOut, now);
            }
            (Stage::Handshake { .. }, Purpose::Flow(flow)) => {
                self.stats.dials_failed += 1;
                self.close_socket(socket, true);
                self.flow_denied(flow, via, Denial::TimedOut, now);
            }
            (Stage::Handshake { .. }, Purpose::Association(association)) => {
                self.close_socket(socket, true);
                self.association_denied(association, NoAssociation::TimedOut, now);
            }
            (Stage::Handshake { .. }, Purpose::Names(stream)) => {
                self.stats.dials_failed += 1;
                self.close_socket(socket, true);
                self.stream_lost(stream, now);
            }
            (Stage::Handshake { .. }, Purpose::Pool) => self.close_socket(socket, true),
            (Stage::Handshake { .. }, Purpose::Trial) => {
                if let Via::Proxy(proxy) = via {
                    self.tried(proxy, false);
                }
                self.close_socket(socket, true);
            }
            (Stage::Relay { .. } | Stage::Control | Stage::Names, _) => {}
        }
    }

    /// The flow is over on the app's side.
    pub(super) fn flow_closed(&mut self, flow: FlowId, why: Closed, now: Instant) {
        match self.links.remove(flow) {
            Some(Link::Relaying(socket)) => self.close_socket(socket, why != Closed::Finished),
            Some(Link::Opening(opening)) => {
                if let Phase::Opening(socket) = opening.phase {
                    let via = self.sockets.tcp(socket).map_or(Via::Direct, |tcp| tcp.via);
                    self.close_socket(socket, true);
                    self.attempt_answered(opening.remote, via, now);
                }
            }
            None => {}
        }
    }
}

/// What a failure says about the proxy itself; a target that is refused says nothing.
fn trouble(failure: &Failure) -> Option<ProxyTrouble> {
    match failure {
        Failure::Refused(_) => None,
        Failure::NoMethod | Failure::WrongMethod(_) | Failure::Denied | Failure::Protocol => {
            Some(ProxyTrouble::Access(*failure))
        }
    }
}

fn way(via: Via) -> Way {
    match via {
        Via::Direct => Way::Direct,
        Via::Proxy(_) => Way::Proxy,
    }
}

/// What an error of connect(2) to the target itself means for the app.
fn dial_denial(error: SocketError) -> Denial {
    match error {
        SocketError::Refused | SocketError::Reset | SocketError::Other | SocketError::Exhausted => {
            Denial::Refused
        }
        SocketError::Network => Denial::Network,
        SocketError::Host => Denial::Host,
        SocketError::TimedOut => Denial::TimedOut,
        SocketError::Prohibited => Denial::Prohibited,
    }
}
