//! A sans-IO endpoint for layers 3 and 4: it plays the remote end of every flow that leaves the machine through the TUN.
//!
//! # Theory of operation
//!
//! The stack owns no address: it answers for every destination that the kernel routes into the TUN.
//! Direction is in the names: *ingress* comes from the TUN (the app's kernel speaks), *egress* goes to it.
//!
//! The caller feeds packets to [`Stack::handle_packet`], time to [`Stack::handle_timeout`], then
//! takes [`Stack::poll_event`] and [`Stack::poll_transmit`] until both are empty, and calls again at
//! [`Stack::poll_timeout`]. A packet that is not acted on is an `Err(DropReason)`, counted, and never more than that.
//!
//! Payload is borrowed in both directions. In-order TCP octets are offered as [`Ingress::Stream`] straight
//! out of the packet ("cut-through"): the caller hands them to its socket and MUST then call [`Tcp::keep`] with the
//! number that the socket took; the rest is buffered. Datagrams are never queued here in either direction.
//!
//! A fragment that completes a datagram gives [`Ingress::Reassembled`]: the caller feeds the packet in again.

mod control;
mod egress;
mod icmp;
mod ingress;
mod limit;
mod reassembly;
mod stats;
mod tcp;
mod udp;

pub use egress::{Datagram, TrainHeader};
pub use stats::{DropReason, Stats};
pub use tcp::Tcp;
pub use tcp::inspect::{TcpCounts, TcpInfo, TcpState};
pub use udp::datagrams;

use crate::flow::FlowId;
use crate::rng::{Rng, SEED_LEN};
use crate::time::{Duration, Instant};
use crate::wire::Endpoint;
use crate::wire::icmp::{IcmpMessage, Unreachable};
use crate::wire::ip::{IpPacket, protocol};
use control::ControlQueue;
use core::net::IpAddr;
use egress::Scratch;
use icmp::Verdict;
use reassembly::Reassembler;
use tcp::TcpLayer;

/// One IP packet, or one TCP super-segment, as the device gave it.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'p> {
    /// From the first octet of the IP header on.
    pub octets: &'p [u8],
    /// Whether the transport checksum has to be verified; a device says no for `NEEDS_CSUM` and `DATA_VALID`.
    pub verify_checksum: bool,
    /// Octets of payload in each segment of a super-segment, or in each datagram of a train; 0: it is one.
    pub segment_size: u16,
}

impl<'p> Packet<'p> {
    /// One packet, whose checksums are all to be verified.
    pub fn new(octets: &'p [u8]) -> Packet<'p> {
        Packet { octets, verify_checksum: true, segment_size: 0 }
    }
}

/// What a device does that the stack would have to do otherwise. Each level has all of the one before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum OffloadLevel {
    /// Nothing: packets are summed, and no longer than the MTU.
    #[default]
    Off,
    /// It sums, TCP and UDP.
    Checksum,
    /// It cuts super-segments of TCP, and hands over such.
    Tcp,
    /// It cuts trains of datagrams, and hands over such.
    Full,
}

impl OffloadLevel {
    /// All of them, the least first.
    pub const ALL: [OffloadLevel; 4] =
        [OffloadLevel::Off, OffloadLevel::Checksum, OffloadLevel::Tcp, OffloadLevel::Full];

    /// Whether the checksums of TCP and UDP are left to the device.
    pub fn sums(self) -> bool {
        self >= OffloadLevel::Checksum
    }

    /// Whether it takes super-segments of TCP.
    pub fn segments(self) -> bool {
        self >= OffloadLevel::Tcp
    }

    /// Whether it takes trains of datagrams.
    pub fn trains(self) -> bool {
        self >= OffloadLevel::Full
    }
}

/// What is to be segmented or summed behind this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offload {
    /// Where the transport header starts: octets from the front of the packet (`csum_start`).
    pub checksum_start: u16,
    /// Where in the transport header the checksum is (`csum_offset`): 16 for TCP, 6 for UDP.
    pub checksum_offset: u16,
    /// Octets of payload in each segment (`gso_size`); 0 when it is one packet.
    pub segment_size: u16,
}

/// A packet for the device, in up to three pieces that are not copied together.
#[derive(Clone, Copy, Debug)]
pub struct Transmit<'a> {
    /// IP and transport headers; for small packets the whole packet.
    pub header: &'a [u8],
    /// Payload by reference; unused slices are empty.
    pub payload: [&'a [u8]; 2],
    /// `None`: all checksums are in place and the packet fits the MTU.
    pub offload: Option<Offload>,
}

impl Transmit<'_> {
    /// Octets in all.
    pub fn len(&self) -> usize {
        self.header.len() + self.payload[0].len() + self.payload[1].len()
    }

    /// Whether there are none, which the stack never gives.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What became of a packet.
#[derive(Debug)]
pub enum Ingress<'p> {
    /// Dealt with; there may be events and packets to send.
    Consumed,
    /// A UDP datagram, or a train of them, for the caller, who may answer with [`Stack::send_datagram`] or [`Stack::refuse_datagram`].
    Datagram {
        /// The app.
        local: Endpoint,
        /// Whom it addressed.
        remote: Endpoint,
        /// The data.
        payload: &'p [u8],
        /// A train of datagrams: octets of each but the last, which may be shorter ([`datagrams`]); 0: it is one.
        segment_size: u16,
    },
    /// In-order octets of a TCP flow with nothing buffered before them. [`Tcp::keep`] must be called for the flow before the
    /// next packet is handled.
    Stream {
        /// The flow.
        flow: FlowId,
        /// The octets, never empty.
        payload: &'p [u8],
    },
    /// A datagram was completed by this fragment: hand it to [`Stack::handle_packet`] as a packet of its own
    /// (its transport checksum is to be verified).
    Reassembled(Vec<u8>),
}

/// What the caller has to know. `flow` names a TCP flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StackEvent {
    /// A SYN is in the SYN queue: [`Tcp::accept`] or [`Tcp::refuse`] it. Unanswered, it is dropped after `syn_timeout`
    /// with `Closed`.
    Syn {
        /// The new flow.
        flow: FlowId,
    },
    /// The three-way handshake is complete.
    Established {
        /// The flow.
        flow: FlowId,
    },
    /// [`Tcp::recv`] has octets again, or [`Tcp::recv_finished`] became true.
    Readable {
        /// The flow.
        flow: FlowId,
    },
    /// [`Tcp::send_buf`] has space again after it had none or too little.
    Writable {
        /// The flow.
        flow: FlowId,
    },
    /// The flow is over and its id is dead: the last event of a flow, not given for one that the caller itself
    /// refused or aborted.
    Closed {
        /// The flow.
        flow: FlowId,
        /// How it ended.
        why: Closed,
    },
}

/// How a TCP flow ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closed {
    /// Both directions were finished and acknowledged (TIME-WAIT goes on inside the stack).
    Finished,
    /// The app's side sent RST.
    Reset,
    /// Retransmission gave up (R2) or the handshake was not completed.
    TimedOut,
    /// Nothing was heard for the idle time.
    Idle,
}

/// How a SYN is refused (RFC 5508 REQ-8: never silence).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// RST: connection refused.
    Reset,
    /// An ICMP error.
    Icmp(Unreachable),
    /// Nothing at all: for the `drop` outbound only.
    Silent,
}

/// What to do with echo requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EchoMode {
    /// Answer them here (`--icmp reply`).
    #[default]
    Reply,
    /// Drop and count them.
    Drop,
}

/// Limits and timers of the stack. `Default` gives what the command line documents.
#[derive(Clone, Debug)]
pub struct StackConfig {
    /// MTU of the device, octets; at least 1280.
    pub mtu: u16,
    /// What the device does of summing and segmenting (then [`Transmit::offload`] may be set).
    pub offload: OffloadLevel,
    /// Largest super-segment payload, octets (where the device takes such).
    pub max_segment: usize,
    /// Echo requests.
    pub echo: EchoMode,
    /// Broadcast addresses of the device's IPv4 networks, beside 255.255.255.255.
    pub broadcasts: Vec<IpAddr>,
    /// Fragments held in all, octets.
    pub reassembly_octets: usize,
    /// Datagrams under reassembly.
    pub reassembly_entries: usize,
    /// Time for a datagram to complete (RFC 1122 3.3.2: 60 to 120 s).
    pub reassembly_timeout: Duration,
    /// ICMP errors and stray RSTs a second, with a burst of the same size.
    pub error_rate: u32,
    /// TCP.
    pub tcp: TcpConfig,
}

/// Limits and timers of TCP.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    /// Flows at once, TIME-WAIT and the SYN queue included (`--max-tcp`).
    pub max_flows: usize,
    /// Entries of the SYN queue (SYN received, handshake not complete).
    pub max_syn: usize,
    /// Largest receive buffer of one flow, octets: the window offered.
    pub receive_buffer: usize,
    /// Largest send buffer of one flow, octets.
    pub send_buffer: usize,
    /// Octets of buffers of all flows together.
    pub buffer_budget: usize,
    /// Initial RTO (RFC 6298 2.1).
    pub rto_initial: Duration,
    /// Smallest RTO. The peer is the kernel on this machine: 200 ms, as kernels use it, instead of 1 s (RFC 6298 2.4, documented).
    pub rto_min: Duration,
    /// Largest RTO (RFC 6298 2.5: at least 60 s).
    pub rto_max: Duration,
    /// R2 for data (RFC 9293 3.8.3: at least 100 s).
    pub give_up: Duration,
    /// R2 for SYN-ACK (at least 3 min).
    pub give_up_syn: Duration,
    /// How long a SYN waits for [`Tcp::accept`].
    pub syn_timeout: Duration,
    /// Delayed ACK (RFC 9293 3.8.6.3: below 0.5 s).
    pub ack_delay: Duration,
    /// Idle time after which an established flow is dropped (`--tcp-idle`; RFC 5382 REQ-5: at least 2 h 4 min).
    pub idle: Duration,
    /// Idle time in a half-closed or closing state (RFC 5382 REQ-5: at least 4 min).
    pub idle_transitory: Duration,
    /// TIME-WAIT. 2 MSL with an MSL that fits a machine talking to itself.
    pub time_wait: Duration,
    /// Keep-alive probes after this idle time; off by default (RFC 9293 3.8.4).
    pub keepalive: Option<Duration>,
}

impl Default for StackConfig {
    fn default() -> StackConfig {
        StackConfig {
            mtu: 1500,
            offload: OffloadLevel::Off,
            max_segment: 65_000,
            echo: EchoMode::Reply,
            broadcasts: Vec::new(),
            reassembly_octets: 1 << 20,
            reassembly_entries: 256,
            reassembly_timeout: Duration::from_secs(60),
            error_rate: 1000,
            tcp: TcpConfig::default(),
        }
    }
}

impl Default for TcpConfig {
    fn default() -> TcpConfig {
        TcpConfig {
            max_flows: 65_536,
            max_syn: 4_096,
            receive_buffer: 1 << 20,
            send_buffer: 1 << 20,
            buffer_budget: 512 << 20,
            rto_initial: Duration::from_secs(1),
            rto_min: Duration::from_millis(200),
            rto_max: Duration::from_secs(60),
            give_up: Duration::from_secs(120),
            give_up_syn: Duration::from_secs(180),
            syn_timeout: Duration::from_secs(75),
            ack_delay: Duration::from_millis(40),
            idle: Duration::from_secs(2 * 3600 + 4 * 60),
            idle_transitory: Duration::from_secs(4 * 60),
            time_wait: Duration::from_secs(10),
            keepalive: None,
        }
    }
}

/// The endpoint. See the module's theory of operation.
#[derive(Debug)]
pub struct Stack {
    config: StackConfig,
    tcp: TcpLayer,
    control: ControlQueue,
    reassembler: Reassembler,
    rng: Rng,
    scratch: Scratch,
    stats: Stats,
}

impl Stack {
    /// A stack with its limits and its seed.
    pub fn new(config: StackConfig, seed: [u8; SEED_LEN]) -> Stack {
        let mut rng = Rng::new(seed);
        Stack {
            tcp: TcpLayer::new(&config, &mut rng),
            control: ControlQueue::new(config.error_rate),
            reassembler: Reassembler::new(
                config.reassembly_entries,
                config.reassembly_octets,
                config.reassembly_timeout,
                rng.keyed_hash(),
            ),
            rng,
            scratch: [0; _],
            stats: Stats::default(),
            config,
        }
    }

    /// Takes one packet from the device.
    pub fn handle_packet<'p>(&mut self, packet: Packet<'p>, now: Instant) -> Result<Ingress<'p>, DropReason> {
        self.stats.packets_in += 1;
        let result = self.dispatch(packet, now);
        if let Err(reason) = &result {
            self.stats.drops[*reason as usize] += 1;
        }
        result
    }

    fn dispatch<'p>(&mut self, packet: Packet<'p>, now: Instant) -> Result<Ingress<'p>, DropReason> {
        let ip = IpPacket::parse(packet.octets).map_err(|_| DropReason::BadIp)?;
        ingress::check_ends(&ip, &self.config.broadcasts)?;
        if let Some(fragment) = ip.fragment {
            let whole = self.reassembler.handle_fragment(&ip, fragment, now)?;
            return Ok(whole.map_or(Ingress::Consumed, Ingress::Reassembled));
        }
        match (ip.protocol, ip.src.is_ipv6()) {
            (protocol::TCP, _) => {
                self.tcp.handle_segment(&ip, packet.verify_checksum, &mut self.control, &mut self.stats, now)
            }
            (protocol::UDP, _) => udp::datagram(&ip, packet),
            (protocol::ICMP, false) | (protocol::ICMPV6, true) => self.icmp(&ip, now),
            _ => {
                self.control.unreachable(packet.octets, Unreachable::Protocol, &mut self.stats, now);
                Err(DropReason::Protocol)
            }
        }
    }

    fn icmp<'p>(&mut self, ip: &IpPacket<'p>, now: Instant) -> Result<Ingress<'p>, DropReason> {
        match icmp::judge(ip, self.config.echo)? {
            Verdict::Echo { id, seq, data } => self.echo(ip, IcmpMessage::EchoReply { id, seq, data }),
            Verdict::Tcp { key, seq, error } => self.tcp.handle_icmp(key, seq, error, now)?,
        }
        Ok(Ingress::Consumed)
    }

    fn echo(&mut self, ip: &IpPacket<'_>, reply: IcmpMessage<'_>) {
        let mut message = vec![0; reply.buffer_len()];
        reply.emit(ip.dst, ip.src, &mut message);
        let id = self.rng.next_u32();
        let mut datagram = icmp::echo_reply(&mut self.scratch, &message, ip.dst, ip.src, self.config.mtu, id);
        while let Some(packet) = datagram.next_packet() {
            self.control.packet(packet.len(), |buffer| {
                let (header, payload) = buffer.split_at_mut(packet.header.len());
                header.copy_from_slice(packet.header);
                payload.copy_from_slice(packet.payload[0]);
            });
        }
        self.stats.echoes += 1;
    }

    /// Runs every timer that is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.tcp.handle_timeout(&mut self.control, &mut self.stats, now);
        self.reassembler.handle_timeout(&mut self.control, &mut self.stats, now);
    }

    /// The next packet for the device. What it borrows is only freed by an acknowledgement: a packet that the device refuses may be
    /// dropped, and the stack recovers as from any loss.
    #[must_use]
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit<'_>> {
        if let Some(packet) = self.control.pop() {
            self.stats.packets_out += 1;
            return Some(Transmit { header: packet, payload: [&[], &[]], offload: None });
        }
        let transmit = self.tcp.poll_transmit(&mut self.stats, now)?;
        self.stats.packets_out += 1;
        Some(transmit)
    }

    /// The next event.
    #[must_use]
    pub fn poll_event(&mut self) -> Option<StackEvent> {
        self.tcp.poll_event()
    }

    /// When [`Stack::handle_timeout`] is wanted next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.tcp.poll_timeout(), self.reassembler.poll_timeout()].into_iter().flatten().min()
    }

    /// A TCP flow that is alive (not in TIME-WAIT).
    pub fn tcp(&mut self, flow: FlowId) -> Option<Tcp<'_>> {
        self.tcp.handle(flow, &mut self.control, &mut self.stats)
    }

    /// All TCP flows alive, for shutdown and reports. Cost: the whole table.
    pub fn tcp_flows(&self) -> impl Iterator<Item = FlowId> + '_ {
        self.tcp.flows()
    }

    /// How many TCP connections there are, and the memory of their buffers. Cost: none.
    pub fn tcp_counts(&self) -> TcpCounts {
        self.tcp.counts()
    }

    /// The TCP connection at a slab index below [`Stack::tcp_slots`], if there is one. Cost: none.
    pub fn tcp_at(&self, index: u32) -> Option<TcpInfo> {
        self.tcp.info(index)
    }

    /// Where a walk by [`Stack::tcp_at`] ends.
    pub fn tcp_slots(&self) -> u32 {
        self.tcp.table.slots()
    }

    /// Counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }
}
