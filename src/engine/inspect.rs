//! What the engine holds, for reports: nothing here changes anything.
//!
//! [`Engine::snapshot`] is sums, and costs no walk over flows. [`Engine::flows`] lists flows a page at a time, and looks at a bounded number of slots
//! for each, so that neither the number of flows nor of empty slots between them holds up the loop: the caller goes on with the cursor that
//! came with the page. A flow that lasts all the while is in the list exactly once; others may be or not.

use super::Engine;
use super::pool::ProxyTrouble;
use super::socket::Via;
use crate::outbound::rule::Proto;
use crate::stack::{TcpCounts, TcpState};
use crate::time::Instant;
use crate::wire::Endpoint;
use core::net::SocketAddr;

/// Slots of tables that one page looks at.
const SLOTS_OF_A_PAGE: u32 = 4_096;
/// From here on a cursor counts UDP associations; below TCP flows.
const UDP: u64 = 1 << 32;

/// How far a flow has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlowPhase {
    /// The owner of the app's socket is being looked for.
    Identifying,
    /// It waits: too many attempts to its destination are unanswered.
    Parked,
    /// The way to the target is being opened.
    Opening,
    /// Data flow.
    Relaying,
    /// The target's side is over; the app's kernel has still to take or acknowledge something.
    Finishing,
}

impl FlowPhase {
    /// In one word.
    pub const fn name(self) -> &'static str {
        match self {
            FlowPhase::Identifying => "identifying",
            FlowPhase::Parked => "parked",
            FlowPhase::Opening => "opening",
            FlowPhase::Relaying => "relaying",
            FlowPhase::Finishing => "finishing",
        }
    }
}

/// Which way a flow leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outbound {
    /// Not decided, or not known any more.
    Unknown,
    /// Out of the egress interface.
    Direct,
    /// To this proxy.
    Proxy(SocketAddr),
    /// To a proxy that has since been replaced by another ([`Engine::set_proxies`]).
    FormerProxy,
}

/// A TCP flow or a UDP association.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowInfo {
    /// TCP or UDP.
    pub proto: Proto,
    /// The app's end.
    pub local: Endpoint,
    /// The other end; of an association the one that the app addressed last.
    pub remote: Endpoint,
    /// Which way it goes.
    pub outbound: Outbound,
    /// How far it has come.
    pub phase: FlowPhase,
    /// State of the connection with the app, for TCP.
    pub tcp: Option<TcpState>,
    /// Octets of data from the app.
    pub upload_octets: u64,
    /// Octets of data to the app; of TCP those that its kernel has acknowledged.
    pub download_octets: u64,
    /// When it began.
    pub opened: Instant,
    /// When anything last came or went.
    pub last_active: Instant,
}

/// Some of the flows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowPage {
    /// These.
    pub flows: Vec<FlowInfo>,
    /// Where to go on; `None` when this was the last page. A page may be empty although others follow.
    pub next: Option<u64>,
}

/// What is known of a proxy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProxyInfo {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Whether user and password are offered to it.
    pub credentials: bool,
    /// `None`: nobody has tried yet.
    pub reachable: Option<bool>,
    /// Since when it cannot be reached.
    pub down_since: Option<Instant>,
    /// What went wrong last, until something goes right.
    pub trouble: Option<ProxyTrouble>,
    /// Connections that wait for a request.
    pub pooled: usize,
}

/// Memory of the tables, in octets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Memory {
    /// Buffers of TCP flows in use.
    pub buffers: usize,
    /// Buffers of TCP flows at most.
    pub buffer_budget: usize,
    /// The table of TCP flows with their blocks.
    pub tcp_table: usize,
    /// Datagrams that wait for their association.
    pub queued_datagrams: usize,
}

/// The engine at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// TCP connections with apps.
    pub tcp: TcpCounts,
    /// UDP associations.
    pub associations: usize,
    /// UDP associations at most.
    pub association_capacity: usize,
    /// Sockets that the driver holds for the engine.
    pub sockets: usize,
    /// DNS transactions in flight.
    pub dns_in_flight: usize,
    /// Proxies in order of preference.
    pub proxies: Vec<ProxyInfo>,
    /// Memory.
    pub memory: Memory,
    /// Whether it is being wound up.
    pub stopping: bool,
}

impl Snapshot {
    /// Connections to proxies that wait for a request.
    pub fn pooled(&self) -> usize {
        self.proxies.iter().map(|proxy| proxy.pooled).sum()
    }
}

impl Engine {
    /// Sums. Cost: the number of proxies, and a look at each page of the tables.
    pub fn snapshot(&self) -> Snapshot {
        let tcp = self.stack.tcp_counts();
        let proxies = self.config.proxies.iter().zip(self.pool.states()).map(|(proxy, state)| ProxyInfo {
            addr: proxy.addr,
            credentials: proxy.credentials.is_some(),
            reachable: if state.down_since.is_some() { Some(false) } else { state.reached.then_some(true) },
            down_since: state.down_since,
            trouble: state.trouble,
            pooled: state.warm.len(),
        });
        Snapshot {
            tcp,
            associations: self.nat.len(),
            association_capacity: self.association_capacity(),
            sockets: self.sockets(),
            dns_in_flight: self.dns.len() + self.streams.len(),
            proxies: proxies.collect(),
            memory: Memory {
                buffers: tcp.buffer_octets,
                buffer_budget: tcp.buffer_budget,
                tcp_table: tcp.table_octets + self.links.octets(),
                queued_datagrams: self.nat_queued + self.streams.octets(),
            },
            stopping: self.stopping,
        }
    }

    /// At most `most` flows from `cursor` on; 0 begins. Any number is a cursor: one that was never given finds what it finds.
    /// Cost: at most [`SLOTS_OF_A_PAGE`] slots.
    pub fn flows(&self, cursor: u64, most: usize) -> FlowPage {
        let mut flows = Vec::new();
        let mut looked_at = 0;
        let mut cursor = cursor;
        loop {
            let index = u32::try_from(cursor % UDP).unwrap_or(u32::MAX);
            let (tcp, slots) = match cursor {
                0..UDP => (true, self.stack.tcp_slots()),
                UDP.. => (false, self.association_slots()),
            };
            if cursor >= 2 * UDP || (!tcp && index >= slots) {
                return FlowPage { flows, next: None };
            }
            if tcp && index >= slots {
                cursor = UDP;
                continue;
            }
            if looked_at >= SLOTS_OF_A_PAGE || flows.len() >= most {
                return FlowPage { flows, next: Some(cursor) };
            }
            flows.extend(if tcp { self.tcp_flow_at(index) } else { self.association_at(index) });
            looked_at += 1;
            cursor += 1;
        }
    }

    fn tcp_flow_at(&self, index: u32) -> Option<FlowInfo> {
        let info = self.stack.tcp_at(index)?;
        let (phase, via) = self.flow_phase(info.flow);
        Some(FlowInfo {
            proto: Proto::Tcp,
            local: info.key.local,
            remote: info.key.remote,
            outbound: self.outbound(via),
            phase,
            tcp: Some(info.state),
            upload_octets: info.upload_octets,
            download_octets: info.download_octets,
            opened: info.opened,
            last_active: info.last_active,
        })
    }

    pub(super) fn outbound(&self, via: Option<Via>) -> Outbound {
        match via {
            None => Outbound::Unknown,
            Some(Via::Direct) => Outbound::Direct,
            Some(Via::Proxy(proxy)) => match self.config.proxies.get(proxy) {
                Some(proxy) => Outbound::Proxy(proxy.addr),
                None => Outbound::FormerProxy,
            },
        }
    }
}
