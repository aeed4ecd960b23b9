//! The stack under any packets, any calls and any time: no panic, tables within their limits, every drop counted, everything it sends
//! valid, and one good connection that nothing disturbs.

use super::packets::{Apps, offloaded, write_checksum};
use super::source::Source;
use std::net::IpAddr;
use ztun::flow::FlowId;
use ztun::stack::{
    Ingress, Offload, OffloadLevel, Packet, Refusal, Stack, StackConfig, StackEvent, TcpConfig, Transmit,
    datagrams,
};
use ztun::time::{Duration, Instant};
use ztun::wire::icmp::{IcmpMessage, Unreachable};
use ztun::wire::ip::{IpHeader, IpPacket, protocol};
use ztun::wire::tcp::{TcpFlags, TcpOptions, TcpSegment};
use ztun::wire::udp::UdpDatagram;
use ztun::wire::{Endpoint, SeqNumber, ip};

const MTU: u16 = 1_500;
const MAX_FLOWS: usize = 12;

pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let mut harness = Harness::new(OffloadLevel::ALL[usize::from(source.u8() % 4)]);
    while !source.is_empty() {
        harness.step(&mut source);
    }
    harness.finish();
}

/// Small limits, so that they are met.
pub fn config(offload: OffloadLevel) -> StackConfig {
    StackConfig {
        mtu: MTU,
        offload,
        reassembly_entries: 4,
        reassembly_octets: 4_000,
        error_rate: 50,
        tcp: TcpConfig {
            max_flows: MAX_FLOWS,
            max_syn: 6,
            receive_buffer: 70_000,
            send_buffer: 70_000,
            buffer_budget: 300_000,
            ..TcpConfig::default()
        },
        ..StackConfig::default()
    }
}

/// The app of the connection that is to be left alone.
fn good_app() -> IpAddr {
    "198.18.7.7".parse().expect("address")
}

fn good_target() -> IpAddr {
    "203.0.113.77".parse().expect("address")
}

/// A connection with an app that behaves.
struct Good {
    port: u16,
    flow: Option<FlowId>,
    snd_nxt: SeqNumber,
    rcv_nxt: SeqNumber,
    received: Vec<u8>,
}

pub struct Harness {
    stack: Stack,
    now: Instant,
    offload: OffloadLevel,
    apps: Apps,
    flows: Vec<FlowId>,
    good: Good,
    syn_of_good: bool,
}

impl Harness {
    pub fn new(offload: OffloadLevel) -> Harness {
        let mut harness = Harness {
            stack: Stack::new(config(offload), [4; 16]),
            now: Instant::from_millis(1_000),
            offload,
            apps: Apps::default(),
            flows: Vec::new(),
            good: good(60_000),
            syn_of_good: false,
        };
        harness.connect();
        harness.exchange();
        harness
    }

    pub fn step(&mut self, source: &mut Source<'_>) {
        match source.u8() {
            0..=139 => self.packet(source),
            140..=159 => self.open(source),
            160..=199 => self.call(source),
            200..=219 => self.datagram(source),
            220..=247 => self.wait(source),
            _ => self.exchange(),
        }
        self.settle();
        assert!(self.stack.tcp_flows().count() <= MAX_FLOWS);
    }

    /// After it all: the good connection lives, everything else can be ended, and a new connection works.
    pub fn finish(mut self) {
        self.exchange();
        let others: Vec<FlowId> =
            self.stack.tcp_flows().filter(|flow| Some(*flow) != self.good.flow).collect();
        for flow in others {
            self.stack.tcp(flow).expect("listed").abort(self.now);
        }
        self.settle();
        self.exchange();
        self.good = good(60_001);
        self.connect();
        self.exchange();
        assert_eq!(self.stack.tcp_flows().count(), 2);
    }

    fn packet(&mut self, source: &mut Source<'_>) {
        let octets = self.apps.packet(source);
        if ip::ends(&octets).is_some_and(|(src, _)| src == good_app()) {
            return;
        }
        if let Some(packet) = offloaded(&octets, source) {
            self.give(packet, source.u8());
        }
    }

    /// A connection as it is opened every day.
    fn open(&mut self, source: &mut Source<'_>) {
        let (index, syn) = self.apps.syn(source);
        self.give(Packet::new(&syn), 0);
        self.settle();
        if let Some(mut tcp) = self.flows.last().and_then(|flow| self.stack.tcp(*flow)) {
            tcp.accept(self.now);
        }
        self.settle();
        let ack = self.apps.ack(index);
        self.give(Packet::new(&ack), 0);
    }

    fn give(&mut self, packet: Packet<'_>, taste: u8) {
        let before = self.stack.stats().clone();
        let again = match self.stack.handle_packet(packet, self.now) {
            Ok(Ingress::Stream { flow, payload }) => {
                let taken = if Some(flow) == self.good.flow {
                    self.good.received.extend_from_slice(payload);
                    payload.len()
                } else {
                    payload.len() * usize::from(taste) / 255
                };
                self.stack.tcp(flow).expect("a flow that offers is alive").keep(payload, taken, self.now);
                None
            }
            Ok(Ingress::Datagram { local, remote, payload, segment_size }) => {
                let pieces = datagrams(payload, segment_size);
                assert!(segment_size == 0 || pieces.len() > 1);
                assert_eq!(pieces.map(<[u8]>::len).sum::<usize>(), payload.len());
                if taste > 128 {
                    let why = [Unreachable::Port, Unreachable::Prohibited, Unreachable::Host]
                        [usize::from(taste) % 3];
                    self.stack.refuse_datagram(local, remote, payload, why, self.now);
                }
                None
            }
            Ok(Ingress::Reassembled(octets)) => Some(octets),
            Ok(Ingress::Consumed) => None,
            Err(reason) => {
                let counted = self.stack.stats().drops[reason as usize];
                assert_eq!(counted, before.drops[reason as usize] + 1, "a drop is counted once: {reason:?}");
                None
            }
        };
        assert_eq!(self.stack.stats().packets_in, before.packets_in + 1);
        if let Some(octets) = again {
            assert!(IpPacket::parse(&octets).is_ok_and(|packet| packet.fragment.is_none()));
            self.give(Packet::new(&octets), taste);
        }
    }

    /// A call on some flow, dead or alive.
    fn call(&mut self, source: &mut Source<'_>) {
        let kind = source.u8();
        let amount = usize::from(source.u16());
        if self.flows.is_empty() {
            return;
        }
        let flow = self.flows[usize::from(source.u8()) % self.flows.len()];
        let now = self.now;
        let Some(mut tcp) = self.stack.tcp(flow) else { return };
        match kind % 12 {
            0..=2 => tcp.accept(now),
            3..=5 => {
                let (first, second) = tcp.send_buf();
                let len = amount.min(first.len() + second.len());
                first.iter_mut().chain(second).take(len).enumerate().for_each(|(n, slot)| *slot = n as u8);
                tcp.commit(len, now);
            }
            6..=8 => {
                let (first, second) = tcp.recv();
                let len = amount.min(first.len() + second.len());
                tcp.consume(len, now);
            }
            9 => tcp.shutdown(now),
            10 => match amount % 4 {
                0 => tcp.refuse(Refusal::Reset, now),
                1 => tcp.refuse(Refusal::Icmp(Unreachable::Host), now),
                2 => tcp.refuse(Refusal::Silent, now),
                _ => tcp.abort(now),
            },
            // Too much of it.
            _ => {
                tcp.consume(amount, now);
                assert!(tcp.send_queue() <= 1 << 20 && tcp.key().local.port > 0);
            }
        }
    }

    fn datagram(&mut self, source: &mut Source<'_>) {
        let v6 = source.u8() % 2 == 1;
        let len = if source.u8() > 200 { usize::from(source.u16()) } else { usize::from(source.u8()) };
        let payload = vec![7; len];
        let (app, target) =
            if v6 { ("fd7a:7a74:756e::1", "2001:db8::5") } else { ("198.18.0.1", "203.0.113.5") };
        let local = Endpoint::new(app.parse().expect("address"), 40_000);
        let remote = Endpoint::new(target.parse().expect("address"), 53);
        let mut packets = Vec::new();
        if let Some(mut datagram) = self.stack.send_datagram(remote, local, &payload, self.now) {
            while let Some(packet) = datagram.next_packet() {
                packets.push([packet.header, packet.payload[0], packet.payload[1]].concat());
            }
        }
        for packet in packets {
            assert!(packet.len() <= usize::from(MTU));
            let parsed = IpPacket::parse(&packet).expect("valid");
            assert_eq!((parsed.src, parsed.dst), (remote.addr, local.addr));
        }
    }

    /// Time passes: by a step that timers may be far behind, as after a suspended machine, or timer by timer.
    fn wait(&mut self, source: &mut Source<'_>) {
        self.exchange();
        let step = Duration::from_micros(u64::from(source.u16())) * source.pick(&[1, 100, 1_000, 20_000]);
        let end = self.now + step;
        if source.u8().is_multiple_of(2) {
            for _ in 0..200 {
                let Some(next) = self.stack.poll_timeout().filter(|next| *next < end) else { break };
                self.now = self.now.max(next);
                self.stack.handle_timeout(self.now);
                self.settle();
            }
        }
        self.now = end;
        self.stack.handle_timeout(self.now);
        self.settle();
        assert!(self.stack.poll_timeout().is_none_or(|next| next > self.now), "a timer that is due was run");
    }

    /// Events and packets until there are none.
    fn settle(&mut self) {
        loop {
            let mut events = 0;
            while let Some(event) = self.stack.poll_event() {
                events += 1;
                if let StackEvent::Syn { flow } = event {
                    if self.syn_of_good {
                        self.good.flow = Some(flow);
                    } else {
                        self.flows.push(flow);
                        if self.flows.len() > 16 {
                            self.flows.remove(0);
                        }
                    }
                }
                assert!(
                    !matches!(event, StackEvent::Closed { flow, .. } if Some(flow) == self.good.flow),
                    "the good connection was closed: {event:?}"
                );
            }
            let mut packets = Vec::new();
            while let Some(transmit) = self.stack.poll_transmit(self.now) {
                packets.push(checked(&transmit, self.offload));
                assert!(packets.len() < 20_000, "the stack comes to rest");
            }
            if packets.is_empty() && events == 0 {
                return;
            }
            for packet in packets {
                self.apps.saw(&packet);
                self.good_saw(&packet);
            }
        }
    }

    fn good_saw(&mut self, octets: &[u8]) {
        let packet = IpPacket::parse(octets).expect("checked");
        if packet.dst != good_app() || packet.protocol != protocol::TCP {
            return;
        }
        let segment = TcpSegment::parse(packet.src, packet.dst, packet.payload, false).expect("checked");
        if segment.dst_port != self.good.port {
            return;
        }
        assert!(!segment.flags.rst(), "the good connection was reset");
        if segment.flags.syn() {
            self.good.rcv_nxt = segment.seq;
        }
        if segment.seq == self.good.rcv_nxt {
            self.good.rcv_nxt = segment.seq + segment.len();
        }
    }

    fn good_segment(&self, flags: TcpFlags, data: &[u8]) -> Vec<u8> {
        let segment = TcpSegment {
            src_port: self.good.port,
            dst_port: 80,
            seq: self.good.snd_nxt,
            ack: self.good.rcv_nxt,
            flags,
            window: u16::MAX,
            urgent: 0,
            options: TcpOptions::default(),
            payload: &[],
        };
        let header = IpHeader {
            src: good_app(),
            dst: good_target(),
            protocol: protocol::TCP,
            hop_limit: 64,
            id: 0,
            dont_fragment: true,
            fragment: None,
        };
        let mut octets = vec![0; 40];
        header.emit(&mut octets, 20 + data.len());
        segment.emit_header(&mut octets[20..]);
        octets.extend_from_slice(data);
        write_checksum(&mut octets);
        octets
    }

    fn connect(&mut self) {
        self.settle();
        self.syn_of_good = true;
        let syn = self.good_segment(TcpFlags::SYN, &[]);
        self.give(Packet::new(&syn), 0);
        self.settle();
        self.syn_of_good = false;
        self.good.snd_nxt += 1;
        let flow = self.good.flow.expect("a SYN is announced");
        self.stack.tcp(flow).expect("waiting").accept(self.now);
        self.settle();
        let ack = self.good_segment(TcpFlags::ACK, &[]);
        self.give(Packet::new(&ack), 0);
        self.settle();
        assert!(self.stack.tcp(flow).expect("alive").is_established());
    }

    /// Octets both ways over the good connection.
    fn exchange(&mut self) {
        let text = b"the good connection";
        let upload = self.good_segment(TcpFlags::ACK, text);
        self.good.snd_nxt += text.len() as u32;
        self.good.received.clear();
        self.give(Packet::new(&upload), 0);
        assert_eq!(self.good.received, text);
        self.settle();
        let flow = self.good.flow.expect("connected");
        let now = self.now;
        let before = self.good.rcv_nxt;
        let mut tcp = self.stack.tcp(flow).expect("alive");
        let (space, _) = tcp.send_buf();
        // The memory of all connections may be spent by the others.
        let len = text.len().min(space.len());
        space[..len].copy_from_slice(&text[..len]);
        tcp.commit(len, now);
        self.settle();
        assert_eq!(self.good.rcv_nxt, before + len as u32, "the octets came at once");
        let ack = self.good_segment(TcpFlags::ACK, &[]);
        self.give(Packet::new(&ack), 0);
        self.settle();
        assert_eq!(self.stack.tcp(flow).expect("alive").send_queue(), 0);
    }
}

fn good(port: u16) -> Good {
    Good { port, flow: None, snd_nxt: SeqNumber(0xffff_ff00), rcv_nxt: SeqNumber(0), received: Vec::new() }
}

/// A packet of the stack, after everything that can be said of any.
pub fn checked(transmit: &Transmit<'_>, offload: OffloadLevel) -> Vec<u8> {
    let octets = [transmit.header, transmit.payload[0], transmit.payload[1]].concat();
    assert_eq!(octets.len(), transmit.len());
    let packet = IpPacket::parse(&octets).expect("a valid packet");
    assert_eq!(packet.header.len() + packet.payload.len(), octets.len());
    assert!(!packet.src.is_multicast() && !packet.src.is_unspecified() && packet.src != packet.dst);
    match transmit.offload {
        None => assert!(octets.len() <= usize::from(MTU), "beyond the MTU: {}", octets.len()),
        Some(Offload { checksum_start, checksum_offset, segment_size }) => {
            assert!(offload.sums(), "offload was not asked for");
            assert!(segment_size == 0 || offload.segments(), "super-segments were not asked for");
            let field = if packet.protocol == protocol::UDP { 6 } else { 16 };
            assert_eq!((usize::from(checksum_start), checksum_offset), (packet.header.len(), field));
            assert!(segment_size > 0 || octets.len() <= usize::from(MTU));
        }
    }
    if packet.fragment.is_some() {
        return octets;
    }
    let verify = transmit.offload.is_none();
    match packet.protocol {
        protocol::TCP => {
            assert!(TcpSegment::parse(packet.src, packet.dst, packet.payload, verify).is_ok());
        }
        protocol::UDP => assert!(UdpDatagram::parse(packet.src, packet.dst, packet.payload, verify).is_ok()),
        protocol::ICMP | protocol::ICMPV6 => {
            assert!(IcmpMessage::parse(packet.src, packet.dst, packet.payload).is_ok());
        }
        other => panic!("protocol {other}"),
    }
    octets
}
