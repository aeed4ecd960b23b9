//! The sans-IO whole: stack, flows, DNS table and outbounds, wired together.
//!
//! # Theory of operation
//!
//! The engine decides; the driver carries. Into the engine go packets from the TUN, what happened to
//! sockets, and time. Out of it come [`Command`]s (open, read, write, close a socket), packets for the TUN, and
//! for payload that can be passed on at once an [`Output`] that borrows it from the packet.
//!
//! The order of calls in one turn:
//!
//! 1. [`Engine::handle_packet`] for each packet, acting on its [`Output`] before the next;
//! 2. `handle_*` for each socket event; [`Engine::read_space`] / [`Engine::read_done`] and
//!    [`Engine::write_slices`] / [`Engine::write_done`] move stream octets without a queue in between: what is
//!    read from a socket lands in the flow's send buffer, what is written comes out of its receive buffer;
//! 3. [`Engine::handle_timeout`];
//! 4. [`Engine::poll_command`] until `None`, then [`Engine::poll_transmit`] until `None`.
//!
//! Back-pressure is the TCP window: a socket is read only while its flow has room ([`Command::Read`] tells when
//! there is room again), and a flow's window closes while its socket does not take octets.
//!
//! # Files
//!
//! `inspect` is what reports are made of, `reconfigure` what may change while it runs, `network` follows the machine's network; `tcp` opens and
//! ends TCP flows, `relay` moves their octets, `udp` keeps associations, `pool` dials proxies and keeps warm connections, `pipeline` finds out how to speak to them, `guard` stops loops,
//! `dns` finds a server for names, `socket` names sockets.

mod association;
mod dns;
mod guard;
mod inspect;
mod links;
mod network;
mod outbox;
mod pipeline;
mod pool;
mod reconfigure;
mod relay;
mod socket;
mod streams;
mod tcp;
mod udp;

pub use inspect::{FlowInfo, FlowPage, FlowPhase, Memory, Outbound, ProxyInfo, Snapshot};
pub use network::NetworkLoss;
pub use pool::ProxyTrouble;
pub use socket::SocketId;
pub use udp::{Arrived, Ends};

use crate::config::EngineConfig;
use crate::dns::streams::StreamId;
use crate::dns::{DnsTable, Streams};
use crate::flow::{FlowId, FlowTable, LruList, TimerWheel};
use crate::outbound::rule::Proto;
use crate::outbound::socks5::associate::Rejections;
use crate::rng::{Rng, SEED_LEN};
use crate::stack::{Ingress, Packet, Stack, StackEvent, Transmit};
use crate::time::Instant;
use crate::wire::Endpoint;
use association::{Association, NatKey};
use core::net::SocketAddr;
use guard::LoopGuard;
use links::Links;
use network::Network;
use outbox::Outbox;
use pool::Pool;
use socket::{Half, Purpose, Socket, Sockets, Stage, TcpSocket, Via};
use std::collections::VecDeque;

/// Octets read from a connection at once while SOCKS5 is spoken on it.
const HANDSHAKE_SPACE: usize = 512;

/// How a socket of the driver leaves the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Egress {
    /// Towards the proxy.
    Proxy,
    /// Towards the target, bound to the egress interface.
    Direct,
}

/// Who wants to know whose socket a flow comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asker {
    /// A TCP flow.
    Tcp(FlowId),
    /// A UDP association.
    Udp(FlowId),
}

/// What the driver is to do.
#[derive(PartialEq, Eq, Debug)]
pub enum Command {
    /// Find out whether the socket bound to `local` belongs to the local proxy; answer with [`Engine::handle_owner`].
    Identify {
        /// To be handed back.
        asker: Asker,
        /// TCP or UDP.
        proto: Proto,
        /// The app's end.
        local: Endpoint,
        /// The other end.
        remote: Endpoint,
    },
    /// Open a TCP connection; answer with [`Engine::handle_connected`] or [`Engine::handle_socket_error`].
    Dial {
        /// Its name.
        socket: SocketId,
        /// Where to.
        to: SocketAddr,
        /// How.
        egress: Egress,
    },
    /// Open a UDP socket; answer with [`Engine::handle_udp_open`] or [`Engine::handle_socket_error`].
    OpenUdp {
        /// Its name.
        socket: SocketId,
        /// Connect it to this address, so that nobody else can send to it.
        peer: Option<SocketAddr>,
        /// Family, when there is no peer.
        v6: bool,
        /// How.
        egress: Egress,
    },
    /// Send a datagram that had to wait for its association.
    SendDatagram {
        /// The socket.
        socket: SocketId,
        /// Destination; `None` for a connected socket.
        to: Option<SocketAddr>,
        /// The datagram.
        octets: Vec<u8>,
    },
    /// There is room again: read the socket if it is readable.
    Read {
        /// The socket.
        socket: SocketId,
    },
    /// There are octets again: write the socket if it is writable.
    Write {
        /// The socket.
        socket: SocketId,
    },
    /// No more octets will be written: shutdown(2) of the writing half.
    Shutdown {
        /// The socket.
        socket: SocketId,
    },
    /// Close the socket and forget it.
    Close {
        /// The socket.
        socket: SocketId,
        /// With RST (SO_LINGER 0).
        abort: bool,
    },
}

/// What a packet asks the driver to do at once, while its octets are at hand.
#[derive(Debug)]
pub enum Output<'p> {
    /// Nothing.
    None,
    /// Feed this packet in again: a datagram put together from fragments.
    Reassembled(Vec<u8>),
    /// Write `payload` to the socket as far as it goes, then call [`Engine::stream_written`].
    Stream {
        /// The socket.
        socket: SocketId,
        /// To be handed back.
        flow: FlowId,
        /// The octets.
        payload: &'p [u8],
    },
    /// Send `header` and `payload` as one datagram, or each datagram of a train behind the header; a failure loses it, as datagrams are lost.
    Datagram {
        /// The socket.
        socket: SocketId,
        /// Destination; `None` for a connected socket.
        to: Option<SocketAddr>,
        /// SOCKS5 UDP header; empty for the direct outbound.
        header: DatagramHeader,
        /// The data.
        payload: &'p [u8],
        /// A train: octets of each datagram but the last ([`datagrams`](crate::stack::datagrams)); 0: it is one.
        segment_size: u16,
    },
}

/// The SOCKS5 UDP header of a datagram to an IP address: at most 22 octets.
#[derive(Clone, Copy, Debug, Default)]
pub struct DatagramHeader {
    octets: [u8; 22],
    len: u8,
}

impl DatagramHeader {
    /// The octets.
    pub fn as_slice(&self) -> &[u8] {
        &self.octets[..usize::from(self.len)]
    }
}

/// Why a socket failed, as far as it matters to the app.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SocketError {
    /// ECONNREFUSED.
    Refused,
    /// ECONNRESET, EPIPE.
    Reset,
    /// ENETUNREACH, ENETDOWN, EADDRNOTAVAIL.
    Network,
    /// EHOSTUNREACH.
    Host,
    /// ETIMEDOUT.
    TimedOut,
    /// EMFILE, ENFILE, ENOBUFS, ENOMEM: the machine is out of something.
    Exhausted,
    /// EACCES, EPERM.
    Prohibited,
    /// Anything else.
    Other,
}

/// Counters of the engine.
#[derive(Clone, Debug, Default)]
pub struct EngineStats {
    /// Connections dialled.
    pub dials: u64,
    /// Dials or handshakes that failed.
    pub dials_failed: u64,
    /// Requests made on a connection out of the pool.
    pub pool_hits: u64,
    /// Connections out of the pool that turned out to be dead and were replaced.
    pub pool_stale: u64,
    /// Pipelined dialogues that the proxy did not take, made again step by step.
    pub pipeline_fallbacks: u64,
    /// Flows refused to the app.
    pub refused: u64,
    /// Flows of the local proxy that were kept outside the tunnel.
    pub kept_outside: u64,
    /// Loops detected.
    pub loops: u64,
    /// Octets from apps that sockets took, or that were swallowed since the target takes none any more.
    pub upload_octets: u64,
    /// Octets to apps.
    pub download_octets: u64,
    /// Datagrams from apps.
    pub datagrams_out: u64,
    /// Datagrams to apps.
    pub datagrams_in: u64,
    /// Datagrams dropped: fragmented by the proxy (FRAG != 0), malformed, or with nowhere to go.
    pub datagrams_dropped: u64,
    /// Associations thrown out because the table was full.
    pub associations_evicted: u64,
}

/// The engine. See the module's theory of operation.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    stack: Stack,
    dns: DnsTable,
    /// Queries that go over TCP.
    streams: Streams,
    /// The socket of each of their connections.
    stream_sockets: Vec<Option<(StreamId, SocketId)>>,
    /// Their answers.
    outbox: Outbox,
    sockets: Sockets,
    /// Connect time-outs and ages of pooled connections, by socket index.
    socket_timers: TimerWheel,
    links: Links,
    nat: FlowTable<NatKey, Association>,
    /// Idle time of associations, by NAT index.
    nat_timers: TimerWheel,
    nat_order: LruList,
    /// Octets of datagrams that wait for their association.
    nat_queued: usize,
    pool: Pool,
    network: Network,
    /// Sockets that the driver does not have.
    held: usize,
    guard: LoopGuard,
    /// Whether flows are identified before they are routed (a proxy runs on this machine).
    identify: bool,
    commands: VecDeque<Command>,
    scratch: [u8; HANDSHAKE_SPACE],
    stopping: bool,
    rejections: Rejections,
    stats: EngineStats,
}

impl Engine {
    /// An engine with its configuration and its seed. `identify`: ask whose socket each new flow comes from, because the
    /// proxy runs on this machine.
    pub fn new(config: EngineConfig, identify: bool, seed: [u8; SEED_LEN]) -> Engine {
        let mut rng = Rng::new(seed);
        let mut stack_seed = [0; SEED_LEN];
        stack_seed[..8].copy_from_slice(&rng.next_u64().to_le_bytes());
        stack_seed[8..].copy_from_slice(&rng.next_u64().to_le_bytes());
        Engine {
            stack: Stack::new(config.stack.clone(), stack_seed),
            dns: DnsTable::new(config.max_dns, rng.keyed_hash()),
            streams: Streams::new(config.max_dns, &mut rng),
            stream_sockets: Vec::new(),
            outbox: Outbox::default(),
            sockets: Sockets::default(),
            socket_timers: TimerWheel::new(),
            links: Links::default(),
            nat: FlowTable::new(config.max_udp, rng.keyed_hash()),
            nat_timers: TimerWheel::new(),
            nat_order: LruList::new(),
            nat_queued: 0,
            pool: Pool::new(config.pool, config.proxies.len()),
            network: Network::Unwatched,
            held: 0,
            guard: LoopGuard::new(rng.keyed_hash(), rng.keyed_hash()),
            identify,
            commands: VecDeque::new(),
            scratch: [0; HANDSHAKE_SPACE],
            stopping: false,
            rejections: Rejections::default(),
            stats: EngineStats::default(),
            config,
        }
    }

    /// Takes one packet from the TUN.
    #[must_use]
    pub fn handle_packet<'p>(&mut self, packet: Packet<'p>, now: Instant) -> Output<'p> {
        match self.stack.handle_packet(packet, now) {
            Ok(Ingress::Consumed) => Output::None,
            Ok(Ingress::Reassembled(octets)) => Output::Reassembled(octets),
            Ok(Ingress::Stream { flow, payload }) => self.offer(flow, payload, now),
            Ok(Ingress::Datagram { local, remote, payload, segment_size: 0 }) => {
                self.datagram_from_app(local, remote, payload, now)
            }
            Ok(Ingress::Datagram { local, remote, payload, segment_size }) => {
                self.train_from_app(local, remote, payload, segment_size, now)
            }
            Err(reason) => {
                log::trace!("packet dropped: {reason:?}");
                Output::None
            }
        }
    }

    /// See [`Stack::end_of_batch`].
    pub fn end_of_batch(&mut self, more: bool, now: Instant) {
        self.stack.end_of_batch(more, now);
    }

    /// Runs every timer that is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.stack.handle_timeout(now);
        self.names_timeout(now);
        self.streams_timeout(now);
        while let Some(index) = self.socket_timers.pop(now) {
            if let Some(socket) = self.sockets.id_at(index) {
                self.socket_timed_out(socket, now);
            }
        }
        while let Some(index) = self.nat_timers.pop(now) {
            if let Some(association) = self.nat.id_at(index) {
                self.association_idle(association, now);
            }
        }
    }

    /// When [`Engine::handle_timeout`] is wanted next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [
            self.stack.poll_timeout(),
            self.dns.poll_timeout(),
            self.streams.poll_timeout(),
            self.socket_timers.next_deadline(),
            self.nat_timers.next_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The next thing for the driver to do.
    #[must_use]
    pub fn poll_command(&mut self, now: Instant) -> Option<Command> {
        loop {
            if let Some(command) = self.commands.pop_front() {
                return Some(command);
            }
            if self.outbox.has_room_again() {
                self.read_streams();
                continue;
            }
            match self.stack.poll_event()? {
                StackEvent::Syn { flow } => self.flow_asked_for(flow, now),
                StackEvent::Established { flow } => self.flow_established(flow, now),
                StackEvent::Readable { flow } => self.flow_readable(flow, now),
                StackEvent::Writable { flow } => self.flow_writable(flow),
                StackEvent::Closed { flow, why } => self.flow_closed(flow, why, now),
            }
        }
    }

    /// The next packet for the TUN.
    #[must_use]
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit<'_>> {
        if self.outbox.is_empty() {
            self.outbox.reuse();
            return self.stack.poll_transmit(now);
        }
        self.outbox.next()
    }

    /// The answer to [`Command::Identify`].
    pub fn handle_owner(&mut self, asker: Asker, local_proxy: bool, now: Instant) {
        match asker {
            Asker::Tcp(flow) => self.flow_identified(flow, local_proxy, now),
            Asker::Udp(association) => self.association_identified(association, local_proxy, now),
        }
    }

    /// A dialled connection is established.
    pub fn handle_connected(&mut self, socket: SocketId, now: Instant) {
        self.connected(socket, now);
    }

    /// A socket could not be opened, or failed. A [`Command::Close`] for it follows.
    pub fn handle_socket_error(&mut self, socket: SocketId, error: SocketError, now: Instant) {
        match self.sockets.get(socket) {
            Some(Socket::Tcp(_)) => self.tcp_socket_failed(socket, error, now),
            Some(Socket::Udp(association)) => {
                let association = *association;
                self.association_socket_failed(association, error, now);
            }
            None => {}
        }
    }

    /// Stops: SYNs are refused from here on, every TCP flow gets FIN, associations and pooled connections are closed.
    pub fn shutdown(&mut self, now: Instant) {
        self.stopping = true;
        let flows: Vec<FlowId> = self.stack.tcp_flows().collect();
        for flow in flows {
            if let Some(mut tcp) = self.stack.tcp(flow) {
                tcp.shutdown(now);
            }
        }
        let associations: Vec<FlowId> = self.nat.ids().collect();
        for association in associations {
            self.remove_association(association);
        }
        self.close_streams();
        self.close_pool();
    }

    /// What apps have sent and no socket has taken yet: octets of TCP flows, and datagrams that wait for their association. Cost: the
    /// whole table.
    pub fn upload_waiting(&mut self) -> usize {
        let flows: Vec<FlowId> = self.stack.tcp_flows().collect();
        let octets = flows.into_iter().filter_map(|flow| {
            let tcp = self.stack.tcp(flow)?;
            let (first, second) = tcp.recv();
            Some(first.len() + second.len())
        });
        octets.sum::<usize>() + self.nat_queued
    }

    /// Ends what [`Engine::shutdown`] left: every TCP flow gets RST, every socket is closed. A socket that was given everything that its app
    /// had to send is closed without RST, so that the system still delivers what it has of it.
    pub fn abort(&mut self, now: Instant) {
        let flows: Vec<FlowId> = self.stack.tcp_flows().collect();
        for flow in flows {
            if let Some(tcp) = self.stack.tcp(flow) {
                tcp.abort(now);
            }
        }
        self.links = Links::default();
        for socket in self.sockets.ids() {
            let complete = matches!(
                self.sockets.tcp(socket).map(|tcp| &tcp.stage),
                Some(Stage::Relay { upload: Half::Finished, .. })
            );
            self.close_socket(socket, !complete);
        }
    }

    /// TCP flows that are not over.
    pub fn tcp_flows(&self) -> usize {
        self.stack.tcp_flows().count()
    }

    /// Sockets the driver holds for the engine.
    pub fn sockets(&self) -> usize {
        self.sockets.len().saturating_sub(self.held)
    }

    /// UDP associations.
    pub fn associations(&self) -> usize {
        self.nat.len()
    }

    /// Counters of the engine.
    pub fn stats(&self) -> &EngineStats {
        &self.stats
    }

    /// The stack, for its counters.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// The DNS table, for its counters.
    pub fn dns(&self) -> &DnsTable {
        &self.dns
    }

    /// Datagrams of relays that were dropped, by reason.
    pub fn rejections(&self) -> &Rejections {
        &self.rejections
    }

    /// Forgets a socket and has the driver close it.
    fn close_socket(&mut self, socket: SocketId, abort: bool) {
        let Some(removed) = self.sockets.remove(socket) else { return };
        self.socket_timers.cancel(socket.index());
        if let Socket::Tcp(TcpSocket { stage: Stage::Held, .. }) = removed {
            self.held = self.held.saturating_sub(1);
            return;
        }
        self.commands.push_back(Command::Close { socket, abort });
        let Socket::Tcp(TcpSocket { purpose, via: Via::Proxy(proxy), stage }) = removed else { return };
        match purpose {
            Purpose::Pool if matches!(stage, Stage::Dialling | Stage::Handshake { .. }) => {
                self.pool_fill_failed(proxy);
            }
            Purpose::Trial => self.trial_over(proxy),
            Purpose::Pool | Purpose::Flow(_) | Purpose::Association(_) | Purpose::Names(_) => {}
        }
    }
}
