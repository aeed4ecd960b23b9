//! UDP associations themselves: what is known of one, and how it ends.

use super::inspect::{FlowInfo, FlowPhase, Outbound};
use super::{Engine, SocketError, SocketId};
use crate::flow::FlowId;
use crate::outbound::rule::Proto;
use crate::outbound::socks5::Failure;
use crate::time::{Duration, Instant};
use crate::wire::Endpoint;
use crate::wire::icmp::Unreachable;
use crate::wire::socks5::Reply;
use std::collections::VecDeque;

/// Idle time of an association that only asked names and has its answers (RFC 4787 REQ-5 lets port 53 be shorter).
pub(super) const DNS_IDLE: Duration = Duration::from_secs(5);

/// Which way an association leads.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Way {
    Proxy,
    Direct,
    /// Through the proxy over TCP, for names: there is nothing to open.
    Names,
}

/// One association to a local endpoint and way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct NatKey {
    pub(super) local: Endpoint,
    pub(super) way: Way,
    /// Family of the socket: of the targets where it is not connected to a relay, and names may be asked of a server of the other one.
    pub(super) v6: bool,
}

impl NatKey {
    pub(super) fn new(local: Endpoint, way: Way, target: Endpoint) -> NatKey {
        let v6 = match way {
            Way::Proxy | Way::Names => local.addr.is_ipv6(),
            Way::Direct => target.addr.is_ipv6(),
        };
        NatKey { local, way, v6 }
    }
}

#[derive(Debug)]
pub(super) struct Waiting {
    /// Whom the app addressed.
    pub(super) asked: Endpoint,
    /// Where it goes.
    pub(super) target: Endpoint,
    pub(super) octets: Vec<u8>,
}

/// A local endpoint's way out.
#[derive(Debug)]
pub(super) struct Association {
    pub(super) state: State,
    pub(super) last_used: Instant,
    /// Queries without their answers while only port 53 was addressed; `None` once another port was.
    pub(super) names_asked: Option<u32>,
    /// It belongs to the local proxy, whose way is not a matter of rules.
    pub(super) outside: bool,
    /// Where its first datagram went, until the first answer.
    pub(super) unheard: Option<Endpoint>,
    /// Where the app believes that its names are asked, when `--dns-server` sends them elsewhere.
    pub(super) asked_of: Option<Endpoint>,
    /// For reports.
    pub(super) traffic: Traffic,
}

/// What a UDP mapping costs here, beside its sockets.
const _: () = assert!(size_of::<(NatKey, Association)>() <= 192);

/// What an association has carried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traffic {
    pub(super) opened: Instant,
    /// Whom the app addressed last.
    pub(super) remote: Endpoint,
    /// Octets of data from the app, and to it.
    pub(super) upload_octets: u64,
    pub(super) download_octets: u64,
}

#[derive(Debug)]
pub(super) enum State {
    /// The driver is looking for the owner of the app's socket.
    Identifying { queue: VecDeque<Waiting> },
    /// The proxy was asked.
    Asking { control: SocketId, queue: VecDeque<Waiting> },
    /// The driver is opening the UDP socket.
    Opening { control: Option<SocketId>, socket: SocketId, queue: VecDeque<Waiting> },
    /// Datagrams go to and fro.
    Open { control: Option<SocketId>, socket: SocketId },
    /// It only says that its datagrams are nobody's but an app's: each is a query, and goes over TCP.
    Names,
}

/// Why there is no association.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoAssociation {
    /// The proxy has said so.
    Refused(Failure),
    /// The proxy did not answer.
    TimedOut,
    /// The proxy has granted one, and named no relay that can be reached.
    NoRelay,
    /// The proxy cannot be reached, or this machine has no socket for it.
    Unreachable,
}

impl NoAssociation {
    /// Whether the proxy may well carry TCP.
    fn is_about_udp(self) -> bool {
        match self {
            NoAssociation::Refused(Failure::Refused(_))
            | NoAssociation::TimedOut
            | NoAssociation::NoRelay => true,
            NoAssociation::Refused(
                Failure::NoMethod | Failure::WrongMethod(_) | Failure::Denied | Failure::Protocol,
            )
            | NoAssociation::Unreachable => false,
        }
    }
}

impl Association {
    /// Whether datagrams go to and fro.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// What it holds of the driver's, the UDP socket first.
    pub(super) fn sockets(&self) -> impl Iterator<Item = SocketId> + use<> {
        let (control, socket) = match self.state {
            State::Identifying { .. } | State::Names => (None, None),
            State::Asking { control, .. } => (Some(control), None),
            State::Opening { control, socket, .. } | State::Open { control, socket } => {
                (control, Some(socket))
            }
        };
        [socket, control].into_iter().flatten()
    }

    pub(super) fn take_queue(&mut self) -> VecDeque<Waiting> {
        match &mut self.state {
            State::Identifying { queue } | State::Asking { queue, .. } | State::Opening { queue, .. } => {
                core::mem::take(queue)
            }
            State::Open { .. } | State::Names => VecDeque::new(),
        }
    }
}

impl Engine {
    /// The association at a slab index, for reports.
    pub(super) fn association_at(&self, index: u32) -> Option<FlowInfo> {
        let id = self.nat.id_at(index)?;
        let (key, association) = (self.nat.key(id)?, self.nat.get(id)?);
        let (phase, control) = match association.state {
            State::Identifying { .. } => (FlowPhase::Identifying, None),
            State::Asking { control, .. } => (FlowPhase::Opening, Some(control)),
            State::Opening { control, .. } => (FlowPhase::Opening, control),
            State::Open { control, .. } => (FlowPhase::Relaying, control),
            State::Names => (FlowPhase::Relaying, None),
        };
        let via = control.and_then(|control| self.sockets.tcp(control)).map(|tcp| tcp.via);
        let outbound = match key.way {
            Way::Direct => Outbound::Direct,
            Way::Proxy | Way::Names => self.outbound(via),
        };
        let Traffic { opened, remote, upload_octets, download_octets } = association.traffic;
        Some(FlowInfo {
            proto: Proto::Udp,
            local: key.local,
            remote,
            outbound,
            phase,
            tcp: None,
            upload_octets,
            download_octets,
            opened,
            last_active: association.last_used,
        })
    }

    /// Where a walk by [`Engine::association_at`] ends.
    pub(super) fn association_slots(&self) -> u32 {
        self.nat.slots()
    }

    /// How many associations there may be.
    pub(super) fn association_capacity(&self) -> usize {
        self.nat.capacity()
    }

    /// The association's timer: over when it was idle all the while.
    pub(super) fn association_idle(&mut self, id: FlowId, now: Instant) {
        let Some(association) = self.nat.get(id) else { return };
        let idle = if association.names_asked == Some(0) || matches!(association.state, State::Names) {
            DNS_IDLE.min(self.config.udp_idle)
        } else {
            self.config.udp_idle
        };
        let deadline = association.last_used + idle;
        if deadline > now {
            // Looked at again when a mapping that only asked names could be over.
            let look =
                if association.names_asked.is_some() { deadline.min(now + DNS_IDLE) } else { deadline };
            self.nat_timers.set(id.index(), look);
        } else {
            self.remove_association(id);
        }
    }

    /// No association can be had: every datagram that waits is answered with ICMP, but for queries that may go over TCP.
    pub(super) fn association_denied(&mut self, id: FlowId, why: NoAssociation, now: Instant) {
        if why == NoAssociation::Refused(Failure::Refused(Reply::CommandNotSupported)) {
            self.pool.udp_refused(now);
            log::warn!(
                "the proxy does not carry UDP (UDP ASSOCIATE refused): datagrams are answered with ICMP unreachable"
            );
        }
        let Some(NatKey { local, way, .. }) = self.nat.key(id).copied() else { return };
        if let Some(association) = self.nat.get_mut(id) {
            let queue = association.take_queue();
            let by_stream = way == Way::Proxy && why.is_about_udp();
            if by_stream {
                self.names_fall_back("grants no UDP association", now);
            }
            for Waiting { asked, target, octets } in queue {
                self.nat_queued = self.nat_queued.saturating_sub(octets.len());
                if by_stream && self.may_stream(asked, &octets) {
                    self.dns.withdraw(local, target, &octets);
                    self.ask_by_stream(local, asked, target, &octets, now);
                    continue;
                }
                self.stack.refuse_datagram(local, asked, &octets, Unreachable::Prohibited, now);
                self.stats.refused += 1;
            }
        }
        self.remove_association(id);
    }

    /// The UDP socket of an association failed. An ICMP error for one datagram is not the end of the mapping (RFC 4787 REQ-12); a socket that
    /// could not be opened is.
    pub(super) fn association_socket_failed(&mut self, id: FlowId, error: SocketError, now: Instant) {
        let Some(association) = self.nat.get(id) else { return };
        match association.state {
            State::Opening { .. } => self.association_denied(id, NoAssociation::Unreachable, now),
            State::Identifying { .. } | State::Asking { .. } | State::Open { .. } | State::Names => {
                log::debug!("UDP socket: {error:?}")
            }
        }
    }

    /// Ends an association with everything that belongs to it.
    pub(super) fn remove_association(&mut self, id: FlowId) {
        let Some((_, association)) = self.nat.remove(id) else { return };
        self.nat_timers.cancel(id.index());
        self.nat_order.remove(id.index());
        self.forget(&association);
        for socket in association.sockets() {
            self.close_socket(socket, false);
        }
    }

    /// What the engine's totals count of an association that is gone.
    pub(super) fn forget(&mut self, association: &Association) {
        if let Some(first) = association.unheard {
            self.guard.heard(first);
        }
        let queue = match &association.state {
            State::Identifying { queue } | State::Asking { queue, .. } | State::Opening { queue, .. } => {
                queue
            }
            State::Open { .. } | State::Names => return,
        };
        let octets: usize = queue.iter().map(|waiting| waiting.octets.len()).sum();
        self.nat_queued = self.nat_queued.saturating_sub(octets);
    }
}
