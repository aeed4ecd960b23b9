//! What the engine does when the machine's network changes.
//!
//! # Theory of operation
//!
//! The caller watches the network, and judges which sockets can carry nothing any more ([`Engine::handle_network_change`]). Everything else is left
//! alone: a connection that the system still has a way for lives on, however little of the old network is left. Of the dead
//! ones, what can be made again without the app noticing is made again: a connection that was being opened, one that waited in the pool, an association.
//! Only a flow that octets have gone through is over, and its app hears so at once.
//!
//! While the machine has no way out ([`Engine::pause`]) nothing is torn down, for the way that comes back may be the same. What an app asks for
//! meanwhile is held ([`Stage::Held`]) for as long as a connection may take to be opened, since apps take a refusal for final and a change
//! of networks takes some seconds. [`Engine::resume`] dials what was held, and what was dialled into the void, at once.
//!
//! Between the moment when the way has gone and the moment when the caller knows, dials fail for want of a route. They are held too, if there
//! is a caller that watches ([`Engine::watch_network`]): else they would wait for nobody.

use super::association::NoAssociation;
use super::socket::{Purpose, Socket, Stage, TcpSocket, Via};
use super::{Engine, SocketId};
use crate::flow::FlowId;
use crate::outbound::Denial;
use crate::time::Instant;

/// What is known of the way out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Network {
    /// Nobody watches: what fails for want of a route is refused.
    Unwatched,
    /// There is one.
    Here,
    /// There is none.
    Gone,
}

/// What a change of the network has cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NetworkLoss {
    /// TCP flows that were reset.
    pub flows: usize,
    /// UDP associations that ended, to be opened again by the next datagram.
    pub associations: usize,
    /// Connections that waited in the pool.
    pub pooled: usize,
    /// Connections that were being opened, and are being opened again.
    pub redialled: usize,
}

impl Engine {
    /// Somebody watches the network, and will tell of changes.
    pub fn watch_network(&mut self) {
        if self.network == Network::Unwatched {
            self.network = Network::Here;
        }
    }

    /// Whether there is no way out.
    pub fn is_paused(&self) -> bool {
        self.network == Network::Gone
    }

    /// Whether a socket can be replaced by another, and no app notices: nothing of a flow has gone through it.
    pub fn is_replaceable(&self, socket: SocketId) -> bool {
        match self.sockets.tcp(socket).map(|tcp| &tcp.stage) {
            Some(
                Stage::Dialling
                | Stage::Held
                | Stage::Handshake { .. }
                | Stage::Warm { .. }
                // Its queries are asked again.
                | Stage::Names,
            ) => true,
            Some(Stage::Relay { .. } | Stage::Control) | None => false,
        }
    }

    /// There is no way out of the machine from here on.
    pub fn pause(&mut self) {
        self.network = Network::Gone;
    }

    /// There is a way out again: what was held, and what was being dialled, is dialled; gives their number. Cost: all sockets once.
    pub fn resume(&mut self, now: Instant) -> usize {
        self.network = Network::Here;
        self.pool.forgive();
        self.redial_all(true, now)
    }

    /// The network has changed, and `dead` sockets can carry nothing any more. What was held is dialled again unless there is no way out. Cost: all
    /// sockets once.
    pub fn handle_network_change(&mut self, dead: &[SocketId], now: Instant) -> NetworkLoss {
        let mut loss = NetworkLoss::default();
        if self.network != Network::Gone {
            self.pool.forgive();
        }
        for &socket in dead {
            // An earlier one may have taken it along: an association has two.
            match self.sockets.get(socket) {
                Some(Socket::Tcp(TcpSocket { purpose, stage, .. })) => {
                    let purpose = *purpose;
                    match stage {
                        Stage::Relay { .. } => {
                            loss.flows += 1;
                            if let Purpose::Flow(flow) = purpose {
                                self.relay_failed(socket, flow, now);
                            }
                        }
                        Stage::Control => {
                            loss.associations += 1;
                            if let Purpose::Association(association) = purpose {
                                self.association_lost(association, now);
                            }
                        }
                        // Its queries are asked again.
                        Stage::Names => {
                            if let Purpose::Names(stream) = purpose {
                                self.close_socket(socket, true);
                                self.stream_lost(stream, now);
                            }
                        }
                        Stage::Warm { .. } => {
                            loss.pooled += 1;
                            self.pool_lost(socket);
                        }
                        Stage::Dialling | Stage::Held | Stage::Handshake { .. } => {
                            loss.redialled += usize::from(self.redial_socket(socket, now));
                        }
                    }
                }
                Some(&Socket::Udp(association)) => {
                    loss.associations += 1;
                    self.association_lost(association, now);
                }
                None => {}
            }
        }
        if self.network != Network::Gone {
            self.redial_all(false, now);
        }
        loss
    }

    /// Dials what is held, and with `dialling` what is being dialled; gives their number.
    fn redial_all(&mut self, dialling: bool, now: Instant) -> usize {
        let waits =
            |engine: &Engine, socket: &SocketId| match engine.sockets.tcp(*socket).map(|tcp| &tcp.stage) {
                Some(Stage::Held) => true,
                Some(Stage::Dialling) => dialling,
                Some(
                    Stage::Handshake { .. }
                    | Stage::Warm { .. }
                    | Stage::Relay { .. }
                    | Stage::Control
                    | Stage::Names,
                )
                | None => false,
            };
        let mut waiting = self.sockets.ids();
        waiting.retain(|socket| waits(self, socket));
        waiting.into_iter().filter(|socket| self.redial_socket(*socket, now)).count()
    }

    /// Makes what a socket was opened for again, on another; whether anybody waits for it.
    fn redial_socket(&mut self, socket: SocketId, now: Instant) -> bool {
        let Some(&TcpSocket { purpose, via, .. }) = self.sockets.tcp(socket) else { return false };
        self.close_socket(socket, true);
        match (purpose, via, self.pool.choose(0, now)) {
            (Purpose::Flow(flow), Via::Direct, _) => self.redial_target(flow, now),
            (Purpose::Flow(_) | Purpose::Association(_) | Purpose::Names(_), Via::Proxy(_), Some(proxy)) => {
                self.redial(purpose, proxy, now);
            }
            // It is dialled when it is used.
            (Purpose::Pool | Purpose::Trial, _, _) => return false,
            (Purpose::Flow(_), Via::Proxy(_), None) | (Purpose::Association(_) | Purpose::Names(_), _, _) => {
                self.refuse_held(purpose, via, now);
            }
        }
        true
    }

    /// A socket of an association is dead, and not by the proxy's doing: what waits for the association is kept and asked for again. One that was
    /// open ends without a word; the next datagram opens another.
    fn association_lost(&mut self, id: FlowId, now: Instant) {
        let Some(association) = self.nat.get(id) else { return };
        if association.is_open() {
            return self.remove_association(id);
        }
        for socket in association.sockets() {
            self.close_socket(socket, true);
        }
        self.open_association(id, now);
    }

    /// Keeps what failed for want of a route until there is one, or its time is over.
    pub(super) fn hold(&mut self, purpose: Purpose, via: Via, now: Instant) {
        if matches!(purpose, Purpose::Pool | Purpose::Trial) {
            return;
        }
        let socket = self.sockets.insert(Socket::Tcp(TcpSocket { purpose, via, stage: Stage::Held }));
        self.held += 1;
        self.socket_timers.set(socket.index(), now + self.config.connect_timeout);
        match purpose {
            Purpose::Flow(flow) => self.opening(flow, socket),
            Purpose::Association(association) => self.asking(association, socket),
            Purpose::Names(stream) => self.set_stream_socket(stream, socket),
            Purpose::Pool | Purpose::Trial => {}
        }
    }

    /// The time of what was held is over.
    pub(super) fn held_too_long(&mut self, socket: SocketId, purpose: Purpose, via: Via, now: Instant) {
        self.close_socket(socket, true);
        self.refuse_held(purpose, via, now);
    }

    fn refuse_held(&mut self, purpose: Purpose, via: Via, now: Instant) {
        match purpose {
            Purpose::Flow(flow) => self.flow_denied(flow, via, Denial::Network, now),
            Purpose::Association(association) => {
                self.association_denied(association, NoAssociation::Unreachable, now);
            }
            Purpose::Names(stream) => self.stream_lost(stream, now),
            Purpose::Pool | Purpose::Trial => {}
        }
    }
}
