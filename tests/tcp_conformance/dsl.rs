//! What the statements are written in: an app's kernel whose every segment is chosen by the test.
//!
//! [`Peer`] is the app's end of one connection. `peer.give(..)` hands a segment to the stack; `peer.take()` gives what the stack
//! has sent since, each packet parsed and its checksums verified. Time only passes by [`Peer::wait`], which runs every timer at its
//! own moment and gives what was sent with the time it was sent.

use std::net::IpAddr;
use ztun::flow::FlowId;
use ztun::stack::{DropReason, Ingress, Packet, Stack, StackConfig, StackEvent, Tcp, TcpConfig};
use ztun::time::{Duration, Instant};
use ztun::wire::checksum::Checksum;
use ztun::wire::ip::{IpHeader, IpPacket, protocol};
use ztun::wire::tcp::{SackBlocks, TcpFlags, TcpOptions, TcpSegment, Timestamps};
use ztun::wire::{Endpoint, SeqNumber};

pub const FIN: TcpFlags = TcpFlags::FIN;
pub const SYN: TcpFlags = TcpFlags::SYN;
pub const RST: TcpFlags = TcpFlags::RST;
pub const PSH: TcpFlags = TcpFlags::PSH;
pub const ACK: TcpFlags = TcpFlags::ACK;
pub const URG: TcpFlags = TcpFlags::URG;
pub const NONE: TcpFlags = TcpFlags(0);

/// The app's initial sequence number, in the upper half (many stacks have died there).
pub const ISS: SeqNumber = SeqNumber(0xfff0_0000);

/// Address family of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn app(self) -> IpAddr {
        match self {
            Family::V4 => addr("198.18.0.1"),
            Family::V6 => addr("fd7a:7a74:756e::1"),
        }
    }

    pub fn target(self) -> IpAddr {
        match self {
            Family::V4 => addr("203.0.113.5"),
            Family::V6 => addr("2001:db8::5"),
        }
    }

    /// Octets of IP and TCP header without options.
    pub fn headers(self) -> u16 {
        match self {
            Family::V4 => 40,
            Family::V6 => 60,
        }
    }
}

/// Runs a statement over IPv4 and over IPv6.
pub fn both(statement: impl Fn(Family)) {
    statement(Family::V4);
    statement(Family::V6);
}

pub fn addr(text: &str) -> IpAddr {
    text.parse().expect("address")
}

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// `len` octets of a stream, from `at` on: any two places that are near each other differ.
pub fn text(at: usize, len: usize) -> Vec<u8> {
    (at..at + len).map(|n| (n % 251) as u8 ^ (n / 251) as u8).collect()
}

/// A segment to be given to the stack.
#[derive(Clone, Debug)]
pub struct Give {
    pub src: Endpoint,
    pub dst: Endpoint,
    pub seq: SeqNumber,
    pub ack: SeqNumber,
    pub flags: TcpFlags,
    pub window: u16,
    pub urgent: u16,
    pub options: TcpOptions,
    pub raw_options: Vec<u8>,
    pub data: Vec<u8>,
}

impl Give {
    pub fn flags(mut self, flags: TcpFlags) -> Give {
        self.flags = flags;
        self
    }

    pub fn seq(mut self, seq: SeqNumber) -> Give {
        self.seq = seq;
        self
    }

    pub fn ack(mut self, ack: SeqNumber) -> Give {
        self.ack = ack;
        self
    }

    pub fn urgent(mut self, urgent: u16) -> Give {
        self.flags = self.flags | URG;
        self.urgent = urgent;
        self
    }

    pub fn data(mut self, data: &[u8]) -> Give {
        self.data = data.to_vec();
        self
    }

    pub fn options(mut self, options: TcpOptions) -> Give {
        self.options = options;
        self
    }

    pub fn timestamps(mut self, value: u32, echo: u32) -> Give {
        self.options.timestamps = Some(Timestamps { value, echo });
        self
    }

    pub fn sack(mut self, blocks: &[(SeqNumber, SeqNumber)]) -> Give {
        self.options.sack = SackBlocks::default();
        blocks.iter().for_each(|(left, right)| self.options.sack.push(*left, *right));
        self
    }

    /// Options octet by octet, behind those of `options`; a multiple of four.
    pub fn raw_options(mut self, octets: &[u8]) -> Give {
        assert!(octets.len().is_multiple_of(4), "the header ends on a word");
        self.raw_options = octets.to_vec();
        self
    }

    /// The packet, checksums in place.
    pub fn octets(&self) -> Vec<u8> {
        let segment = TcpSegment {
            src_port: self.src.port,
            dst_port: self.dst.port,
            seq: self.seq,
            ack: self.ack,
            flags: self.flags,
            window: self.window,
            urgent: self.urgent,
            options: self.options,
            payload: &[],
        };
        let mut tcp = vec![0; segment.header_len()];
        segment.emit_header(&mut tcp);
        tcp.extend_from_slice(&self.raw_options);
        tcp[12] = ((tcp.len() / 4) << 4) as u8;
        tcp.extend_from_slice(&self.data);
        packet(self.src.addr, self.dst.addr, &tcp)
    }
}

/// An IP packet around a TCP header and text; the checksum of both layers is written.
pub fn packet(src: IpAddr, dst: IpAddr, tcp: &[u8]) -> Vec<u8> {
    let ip = IpHeader {
        src,
        dst,
        protocol: protocol::TCP,
        hop_limit: 64,
        id: 0,
        dont_fragment: true,
        fragment: None,
    };
    let mut octets = vec![0; ip.header_len()];
    ip.emit(&mut octets, tcp.len());
    let at = octets.len();
    octets.extend_from_slice(tcp);
    sum(&mut octets, at);
    octets
}

/// Writes the TCP checksum of a packet whose TCP header starts `at`.
pub fn sum(octets: &mut [u8], at: usize) {
    let (src, dst) = ztun::wire::ip::ends(octets).expect("an IP header");
    octets[at + 16..at + 18].fill(0);
    let tcp = &octets[at..];
    let sum = Checksum::pseudo_header(src, dst, protocol::TCP, tcp.len() as u32).with(tcp).finish();
    octets[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
}

/// A segment of the stack.
#[derive(Clone, PartialEq, Eq)]
pub struct Seg {
    pub src: Endpoint,
    pub dst: Endpoint,
    pub seq: SeqNumber,
    pub ack: SeqNumber,
    pub flags: TcpFlags,
    pub window: u16,
    pub options: TcpOptions,
    pub data: Vec<u8>,
    /// Octets of the whole packet.
    pub packet: usize,
}

impl std::fmt::Debug for Seg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Seg { seq, ack, flags, window, options, data, .. } = self;
        write!(f, "<{flags:?} seq={} len={} ack={} wnd={window}", seq.0, data.len(), ack.0)?;
        write!(f, " {:?} {:?}>", options.timestamps, options.sack.as_slice())
    }
}

impl Seg {
    pub fn parse(octets: &[u8]) -> Seg {
        let ip = IpPacket::parse(octets).expect("the stack sends valid packets");
        assert_eq!(ip.header.len() + ip.payload.len(), octets.len(), "nothing behind the packet");
        assert_eq!(ip.protocol, protocol::TCP, "a segment");
        let tcp =
            TcpSegment::parse(ip.src, ip.dst, ip.payload, true).expect("the stack sends valid segments");
        Seg {
            src: Endpoint::new(ip.src, tcp.src_port),
            dst: Endpoint::new(ip.dst, tcp.dst_port),
            seq: tcp.seq,
            ack: tcp.ack,
            flags: tcp.flags,
            window: tcp.window,
            options: tcp.options,
            data: tcp.payload.to_vec(),
            packet: octets.len(),
        }
    }

    /// Where the text ends.
    pub fn end(&self) -> SeqNumber {
        self.seq + self.data.len() as u32
    }

    pub fn is_bare_ack(&self) -> bool {
        self.flags == ACK && self.data.is_empty()
    }
}

/// A connection with one app, and the stack it is with.
pub struct Peer {
    pub stack: Stack,
    pub family: Family,
    pub now: Instant,
    pub local: Endpoint,
    pub remote: Endpoint,
    /// The next octet the app sends.
    pub snd_nxt: SeqNumber,
    /// The next octet the app expects.
    pub rcv_nxt: SeqNumber,
    /// The window the app offers, as in the header.
    pub window: u16,
    /// Options of the app's SYN.
    pub syn_options: TcpOptions,
    /// The app's TSval, when it sends timestamps; and the last TSval it saw.
    pub clock: Option<u32>,
    pub echo: u32,
    /// The stack's ISS.
    pub iss: SeqNumber,
    pub flow: Option<FlowId>,
    /// Octets that the caller's socket takes.
    pub room: usize,
    /// What it has taken.
    pub received: Vec<u8>,
    pub events: Vec<StackEvent>,
    /// Answer each SYN with accept.
    pub accepting: bool,
}

impl Peer {
    pub fn new(family: Family) -> Peer {
        Peer::with(family, StackConfig::default())
    }

    pub fn with(family: Family, config: StackConfig) -> Peer {
        Peer::at(family, config, Instant::from_millis(5_000))
    }

    pub fn with_tcp(family: Family, tcp: TcpConfig) -> Peer {
        Peer::with(family, StackConfig { tcp, ..StackConfig::default() })
    }

    /// A run that starts at `now`.
    pub fn at(family: Family, config: StackConfig, now: Instant) -> Peer {
        Peer {
            stack: Stack::new(config, [9; 16]),
            family,
            now,
            local: Endpoint::new(family.app(), 40_000),
            remote: Endpoint::new(family.target(), 80),
            snd_nxt: ISS,
            rcv_nxt: SeqNumber(0),
            window: 0xffff,
            syn_options: TcpOptions { mss: Some(1460), ..TcpOptions::default() },
            clock: None,
            echo: 0,
            iss: SeqNumber(0),
            flow: None,
            room: usize::MAX,
            received: Vec::new(),
            events: Vec::new(),
            accepting: true,
        }
    }

    /// A run whose connection gets the ISS `iss`: the ISN clock (RFC 6528) makes one of them due every 4 microseconds.
    pub fn with_iss(family: Family, config: StackConfig, iss: SeqNumber) -> Peer {
        let zero = Peer::at(family, config.clone(), Instant::ZERO).open().iss;
        Peer::at(family, config, Instant::from_micros(u64::from(iss.distance_from(zero)) * 4))
    }

    /// A segment of the app: ACK of everything, at the right place, with the window on offer and timestamps when negotiated.
    pub fn seg(&self) -> Give {
        let timestamps = self.clock.map(|value| Timestamps { value, echo: self.echo });
        Give {
            src: self.local,
            dst: self.remote,
            seq: self.snd_nxt,
            ack: self.rcv_nxt,
            flags: ACK,
            window: self.window,
            urgent: 0,
            options: TcpOptions { timestamps, ..TcpOptions::default() },
            raw_options: Vec::new(),
            data: Vec::new(),
        }
    }

    pub fn syn(&self) -> Give {
        self.seg().flags(SYN).ack(SeqNumber(0)).options(self.syn_options)
    }

    /// Hands a segment to the stack.
    pub fn give(&mut self, segment: &Give) -> Result<(), DropReason> {
        self.give_octets(&segment.octets())
    }

    /// The same, for one that is expected to be taken.
    pub fn feed(&mut self, segment: &Give) {
        self.give(segment).expect("the segment is acceptable");
    }

    pub fn give_octets(&mut self, octets: &[u8]) -> Result<(), DropReason> {
        self.give_packet(Packet::new(octets))
    }

    pub fn give_packet(&mut self, packet: Packet<'_>) -> Result<(), DropReason> {
        let before = self.stack.stats().drops.iter().sum::<u64>();
        let result = match self.stack.handle_packet(packet, self.now) {
            Ok(Ingress::Stream { flow, payload }) => {
                let taken = self.room.min(payload.len());
                self.room -= taken;
                self.received.extend_from_slice(&payload[..taken]);
                self.stack.tcp(flow).expect("a flow that offers is alive").keep(payload, taken, self.now);
                Ok(())
            }
            Ok(Ingress::Consumed) => Ok(()),
            Ok(other @ (Ingress::Datagram { .. } | Ingress::Reassembled(_))) => {
                panic!("not of TCP: {other:?}")
            }
            Err(reason) => {
                assert!(
                    self.stack.stats().drops.iter().sum::<u64>() > before,
                    "a drop is counted: {reason:?}"
                );
                Err(reason)
            }
        };
        self.settle();
        result
    }

    /// Acts on events.
    pub fn settle(&mut self) {
        while let Some(event) = self.stack.poll_event() {
            self.events.push(event);
            match event {
                StackEvent::Syn { flow } => {
                    self.flow = Some(flow);
                    if self.accepting {
                        let now = self.now;
                        self.tcp().accept(now);
                    }
                }
                StackEvent::Readable { .. } => self.read(),
                StackEvent::Established { .. } | StackEvent::Writable { .. } | StackEvent::Closed { .. } => {}
            }
        }
    }

    /// Reads what is buffered, as far as there is room.
    pub fn read(&mut self) {
        let now = self.now;
        let Some(mut tcp) = self.flow.and_then(|flow| self.stack.tcp(flow)) else { return };
        let (first, second) = tcp.recv();
        let octets: Vec<u8> = first.iter().chain(second).copied().take(self.room).collect();
        tcp.consume(octets.len(), now);
        self.room -= octets.len();
        self.received.extend(octets);
    }

    /// More room in the caller's socket, used at once.
    pub fn drain(&mut self, room: usize) {
        self.room = self.room.saturating_add(room);
        self.read();
        self.settle();
    }

    /// Everything the stack has to send at present, as it is.
    pub fn take_octets(&mut self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        while let Some(transmit) = self.stack.poll_transmit(self.now) {
            packets.push([transmit.header, transmit.payload[0], transmit.payload[1]].concat());
            assert!(packets.len() < 100_000, "the stack comes to rest");
        }
        packets
    }

    /// Everything the stack has to send at present.
    pub fn take(&mut self) -> Vec<Seg> {
        let segments: Vec<Seg> = self.take_octets().iter().map(|octets| Seg::parse(octets)).collect();
        for segment in &segments {
            if let Some(timestamps) = segment.options.timestamps {
                self.echo = timestamps.value;
            }
        }
        self.settle();
        segments
    }

    /// The one segment the stack has to send.
    pub fn take_one(&mut self) -> Seg {
        let mut segments = self.take();
        assert_eq!(segments.len(), 1, "one segment: {segments:?}");
        segments.remove(0)
    }

    pub fn take_nothing(&mut self) {
        assert_eq!(self.take(), [], "nothing is sent");
    }

    /// Lets time pass, each timer run at its own moment; what was sent, and when.
    pub fn wait(&mut self, duration: Duration) -> Vec<(Duration, Seg)> {
        let start = self.now;
        let end = start + duration;
        let mut sent: Vec<(Duration, Seg)> = Vec::new();
        loop {
            let next = self.stack.poll_timeout().unwrap_or(end).min(end).max(self.now);
            self.now = next;
            self.stack.handle_timeout(self.now);
            self.settle();
            let at = self.now.since(start);
            let segments = self.take();
            sent.extend(segments.into_iter().map(|segment| (at, segment)));
            if self.now >= end {
                return sent;
            }
            if self.stack.poll_timeout().is_some_and(|due| due <= self.now) {
                // A timer that is due again at once must not stop time.
                self.now = self.now + Duration::from_micros(1);
            }
        }
    }

    pub fn tcp(&mut self) -> Tcp<'_> {
        let flow = self.flow.expect("a SYN was seen");
        self.stack.tcp(flow).expect("the flow is alive")
    }

    pub fn is_alive(&mut self) -> bool {
        self.flow.is_some_and(|flow| self.stack.tcp(flow).is_some())
    }

    /// Whether the caller was told that the flow is over, and how.
    pub fn closed(&self) -> Option<ztun::stack::Closed> {
        self.events.iter().find_map(|event| match event {
            StackEvent::Closed { why, .. } => Some(*why),
            StackEvent::Syn { .. }
            | StackEvent::Established { .. }
            | StackEvent::Readable { .. }
            | StackEvent::Writable { .. } => None,
        })
    }

    /// The handshake.
    pub fn open(mut self) -> Peer {
        self.half_open();
        self.complete();
        self
    }

    /// SYN and SYN-ACK; gives the SYN-ACK.
    pub fn half_open(&mut self) -> Seg {
        let syn = self.syn();
        self.feed(&syn);
        let answer = self.take_one();
        assert_eq!(answer.flags, SYN | ACK);
        assert_eq!(answer.ack, self.snd_nxt + 1);
        self.iss = answer.seq;
        self.snd_nxt += 1;
        self.rcv_nxt = answer.seq + 1;
        if let (Some(ours), Some(theirs)) = (self.syn_options.timestamps, answer.options.timestamps) {
            self.clock = Some(ours.value);
            self.echo = theirs.value;
        }
        answer
    }

    /// The ACK that completes the handshake.
    pub fn complete(&mut self) {
        let ack = self.seg();
        self.feed(&ack);
        assert!(self.tcp().is_established());
        self.take_nothing();
    }

    /// With these options in the app's SYN.
    pub fn syn_with(mut self, options: TcpOptions) -> Peer {
        self.syn_options = options;
        self
    }

    /// With SACK, timestamps, and window scale 7, as a kernel sends them.
    pub fn like_a_kernel(self) -> Peer {
        self.syn_with(TcpOptions {
            mss: Some(1460),
            window_scale: Some(7),
            sack_permitted: true,
            timestamps: Some(Timestamps { value: 0xffff_ff00, echo: 0 }),
            ..TcpOptions::default()
        })
    }

    /// With SACK only.
    pub fn with_sack(self) -> Peer {
        self.syn_with(TcpOptions { mss: Some(1460), sack_permitted: true, ..TcpOptions::default() })
    }

    /// The app sends octets in order, which are taken.
    pub fn say(&mut self, data: &[u8]) {
        let segment = self.seg().data(data);
        self.snd_nxt += data.len() as u32;
        self.feed(&segment);
    }

    /// The caller sends octets to the app; as many as there is room for.
    pub fn write(&mut self, data: &[u8]) -> usize {
        let now = self.now;
        let mut tcp = self.tcp();
        let (first, second) = tcp.send_buf();
        let len = data.len().min(first.len() + second.len());
        for (slot, octet) in first.iter_mut().chain(second).zip(data) {
            *slot = *octet;
        }
        tcp.commit(len, now);
        len
    }

    pub fn shutdown(&mut self) {
        let now = self.now;
        self.tcp().shutdown(now);
    }

    pub fn abort(&mut self) {
        let now = self.now;
        self.tcp().abort(now);
    }

    /// The app acknowledges everything up to `seq`.
    pub fn ack(&mut self, seq: SeqNumber) {
        self.rcv_nxt = seq;
        let segment = self.seg();
        self.feed(&segment);
    }

    /// Sends `data` to the app, which acknowledges everything at once; gives the segments.
    pub fn transfer(&mut self, data: &[u8]) -> Vec<Seg> {
        let mut sent = Vec::new();
        let (mut written, mut got) = (0, 0);
        while got < data.len() {
            written += self.write(&data[written..]);
            let segments = self.take();
            assert!(!segments.is_empty(), "progress after {got} octets");
            for segment in &segments {
                assert_eq!(segment.seq, self.rcv_nxt, "in order");
                self.rcv_nxt = segment.end();
                got += segment.data.len();
            }
            let ack = self.seg();
            self.feed(&ack);
            sent.extend(segments);
        }
        let octets: Vec<u8> = sent.iter().flat_map(|segment| segment.data.clone()).collect();
        assert_eq!(octets, data, "the octets written");
        sent
    }
}
