//! The numbered statements on IP, ICMP, UDP and DNS: a packet in, packets out, through the seams that the driver uses.
//!
//! A test is named by what must hold and quotes its statement (`conformance N`, see `docs/PROTOCOLS.md`). What does not depend on the
//! address family is tried over both. Packets are made here octet by octet, by [`packet`], and what comes out is read by [`Seen`].

#[path = "engine_sim/world.rs"]
#[allow(dead_code, reason = "shared with the simulation of the engine")]
mod world;

use std::net::{IpAddr, SocketAddr};
use world::World;
use ztun::config::{EngineConfig, Proxy};
use ztun::engine::Output;
use ztun::stack::{DropReason, EchoMode, Ingress, Packet, Stack, StackConfig, StackEvent};
use ztun::time::{Duration, Instant};
use ztun::wire::Endpoint;
use ztun::wire::SeqNumber;
use ztun::wire::checksum::Checksum;
use ztun::wire::icmp::{IcmpMessage, Unreachable};
use ztun::wire::ip::{IpHeader, IpPacket, protocol};
use ztun::wire::tcp::{TcpFlags, TcpOptions, TcpSegment};

const MTU: usize = 1500;

fn addr(text: &str) -> IpAddr {
    text.parse().expect("address")
}

/// The app and a target, in each family.
fn families() -> [(IpAddr, IpAddr); 2] {
    [(addr("198.18.0.1"), addr("203.0.113.5")), (addr("fd7a:7a74:756e::1"), addr("2001:db8::5"))]
}

fn stack() -> Stack {
    Stack::new(StackConfig::default(), [7; 16])
}

fn at(millis: u64) -> Instant {
    Instant::from_millis(millis)
}

/// A whole packet.
fn packet(src: IpAddr, dst: IpAddr, protocol: u8, upper: &[u8]) -> Vec<u8> {
    let header = IpHeader { src, dst, protocol, hop_limit: 64, fragment: None, id: 1, dont_fragment: false };
    let mut octets = vec![0; header.header_len()];
    header.emit(&mut octets, upper.len());
    octets.extend_from_slice(upper);
    octets
}

fn udp(src: IpAddr, dst: IpAddr, data: &[u8]) -> Vec<u8> {
    let mut octets = vec![0; 8];
    ztun::wire::udp::emit_header(&mut octets, (src, 4_000), (dst, 5_000), data);
    octets.extend_from_slice(data);
    octets
}

fn icmp(src: IpAddr, dst: IpAddr, message: &IcmpMessage<'_>) -> Vec<u8> {
    let mut octets = vec![0; message.buffer_len()];
    message.emit(src, dst, &mut octets);
    let protocol = if src.is_ipv6() { protocol::ICMPV6 } else { protocol::ICMP };
    packet(src, dst, protocol, &octets)
}

/// Everything that the stack has to send.
fn sent(stack: &mut Stack, now: Instant) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    while let Some(transmit) = stack.poll_transmit(now) {
        packets.push([transmit.header, transmit.payload[0], transmit.payload[1]].concat());
    }
    packets
}

/// What became of a packet: why it was dropped, and what was answered.
fn give(stack: &mut Stack, octets: &[u8], now: Instant) -> (Option<DropReason>, Vec<Vec<u8>>) {
    let dropped = stack.handle_packet(Packet::new(octets), now).err();
    (dropped, sent(stack, now))
}

/// An ICMP error in a packet that was sent.
fn error(octets: &[u8]) -> (IpAddr, IpAddr, Unreachable, Vec<u8>) {
    let ip = IpPacket::parse(octets).expect("a packet");
    let message = IcmpMessage::parse(ip.src, ip.dst, ip.payload).expect("ICMP with its checksum right");
    let IcmpMessage::Unreachable { why: Some(why), quoted } = message else { panic!("{message:?}") };
    (ip.src, ip.dst, why, quoted.to_vec())
}

/// conformance 45
#[test]
fn what_is_no_packet_is_dropped_without_a_word() {
    for (app, target) in families() {
        let mut stack = stack();
        let good = packet(app, target, protocol::UDP, &udp(app, target, b"data"));
        assert!(matches!(
            stack.handle_packet(Packet::new(&good), at(0)).expect("a datagram"),
            Ingress::Datagram { payload: b"data", .. }
        ));
        let mut bad: Vec<Vec<u8>> = (0..good.len()).map(|len| good[..len].to_vec()).collect();
        let mut change = |at: usize, octet: u8| {
            let mut octets = good.clone();
            octets[at] = octet;
            bad.push(octets);
        };
        change(0, 0x05);
        change(0, 0xf5);
        if app.is_ipv4() {
            change(0, 0x44);
            change(0, 0x4f);
            change(2, 0xff);
            change(3, 19);
            change(10, !good[10]);
        } else {
            change(4, 0xff);
        }
        for octets in bad {
            let (dropped, answered) = give(&mut stack, &octets, at(0));
            assert_eq!((dropped, answered.len()), (Some(DropReason::BadIp), 0), "{octets:02x?}");
        }
    }
}

/// conformance 47, 48: refused datagrams are told of once, within the quoting rules, by the address that was addressed; and never is an
/// error told of, or anything that is not from one host to one host.
#[test]
fn errors_quote_the_packet_and_nobody_is_told_about_errors_or_groups() {
    for (app, target) in families() {
        let mut stack = stack();
        let (local, remote) = (Endpoint::new(app, 4_000), Endpoint::new(target, 5_000));
        let data = vec![0x55; 1_400];
        stack.refuse_datagram(local, remote, &data, Unreachable::Port, at(0));
        let packets = sent(&mut stack, at(0));
        assert_eq!(packets.len(), 1);
        assert_eq!(packets[0].len(), if app.is_ipv4() { 576 } else { 1_280 });
        let (from, to, why, quoted) = error(&packets[0]);
        assert_eq!((from, to, why), (target, app, Unreachable::Port));
        let original = packet(app, target, protocol::UDP, &udp(app, target, &data));
        let header = if app.is_ipv4() { 20 } else { 40 };
        assert_eq!(quoted[header..], original[header..quoted.len()]);
        // An unknown protocol is told of; the same in an ICMP error, to a group, or in a later fragment is not.
        let unknown = packet(app, target, 99, b"12345678");
        let (dropped, answered) = give(&mut stack, &unknown, at(1));
        assert_eq!((dropped, answered.len()), (Some(DropReason::Protocol), 1));
        assert_eq!(error(&answered[0]).2, Unreachable::Protocol);
        let about_error = icmp(app, target, &IcmpMessage::Unreachable { why: None, quoted: &unknown });
        assert_eq!(give(&mut stack, &about_error, at(2)).1.len(), 0);
        let group = if app.is_ipv4() { addr("224.0.0.5") } else { addr("ff02::5") };
        assert_eq!(
            give(&mut stack, &packet(app, group, 99, b"12345678"), at(3)),
            (Some(DropReason::Noise), vec![])
        );
    }
}

/// conformance 48: the rate.
#[test]
fn errors_are_limited_in_rate() {
    let (app, target) = families()[0];
    let mut stack = Stack::new(StackConfig { error_rate: 10, ..StackConfig::default() }, [7; 16]);
    let unknown = packet(app, target, 99, b"12345678");
    let told = |stack: &mut Stack, now| (0..100).map(|_| give(stack, &unknown, now).1.len()).sum::<usize>();
    assert_eq!(told(&mut stack, at(0)), 10);
    assert_eq!(told(&mut stack, at(1_000)), 10);
    assert_eq!(stack.stats().icmp_errors_limited, 180);
}

/// A connection whose app has acknowledged nothing of what it was sent: its ends, and its first segment.
fn with_octets_in_flight(app: IpAddr, target: IpAddr, stack: &mut Stack) -> (ztun::flow::FlowId, Vec<u8>) {
    let options = TcpOptions { mss: Some(1_460), sack_permitted: true, ..TcpOptions::default() };
    let segment = |seq, ack, flags, options| {
        let header = TcpSegment {
            src_port: 4_000,
            dst_port: 80,
            seq,
            ack,
            flags,
            window: 65_535,
            urgent: 0,
            options,
            payload: &[],
        };
        let mut octets = vec![0; header.header_len()];
        header.emit_header(&mut octets);
        let sum =
            Checksum::pseudo_header(app, target, protocol::TCP, octets.len() as u32).with(&octets).finish();
        octets[16..18].copy_from_slice(&sum.to_be_bytes());
        packet(app, target, protocol::TCP, &octets)
    };
    stack
        .handle_packet(Packet::new(&segment(SeqNumber(9), SeqNumber(0), TcpFlags::SYN, options)), at(0))
        .expect("a SYN");
    let Some(StackEvent::Syn { flow }) = stack.poll_event() else { panic!("no SYN") };
    stack.tcp(flow).expect("a flow").accept(at(0));
    let syn_ack = sent(stack, at(0)).pop().expect("a SYN-ACK");
    let iss = TcpSegment::parse(target, app, IpPacket::parse(&syn_ack).expect("IP").payload, true)
        .expect("TCP")
        .seq;
    let ack = segment(SeqNumber(10), iss + 1, TcpFlags::ACK, TcpOptions::default());
    stack.handle_packet(Packet::new(&ack), at(1)).expect("the ACK");
    assert_eq!(stack.poll_event(), Some(StackEvent::Established { flow }));
    let mut tcp = stack.tcp(flow).expect("a flow");
    let (first, _) = tcp.send_buf();
    assert!(first.len() >= 8_000);
    tcp.commit(8_000, at(1));
    let packets = sent(stack, at(1));
    assert_eq!(packets[0].len(), MTU, "full segments");
    (flow, packets[0].clone())
}

/// conformance 49: only about what is in flight, and never below what every link carries.
#[test]
fn packet_too_big_is_believed_about_octets_in_flight_only() {
    for (app, target) in families() {
        let mut stack = stack();
        let (_, first) = with_octets_in_flight(app, target, &mut stack);
        let ip_header = if app.is_ipv4() { 20 } else { 40 };
        let mut foreign = first.clone();
        foreign[ip_header + 4] ^= 0x40; // another sequence number
        let tell = |stack: &mut Stack, mtu, quoted: &[u8], now| {
            let told = IcmpMessage::PacketTooBig { mtu, quoted: &quoted[..ip_header + 20] };
            let (dropped, answered) = give(stack, &icmp(app, target, &told), now);
            (dropped, answered.iter().map(Vec::len).max())
        };
        assert_eq!(tell(&mut stack, 1_300, &foreign, at(2)), (Some(DropReason::IcmpIgnored), None));
        // What was cut off is sent again at once, in pieces that fit.
        let (dropped, largest) = tell(&mut stack, 1_300, &first, at(3));
        assert_eq!((dropped, largest), (None, Some(1_300)));
        // A router cannot ask for less than the smallest link has, nor for more than before.
        assert_eq!(tell(&mut stack, 1_400, &first, at(4)).0, Some(DropReason::IcmpIgnored));
        let (_, largest) = tell(&mut stack, 1, &first, at(5));
        assert_eq!(largest.expect("sent again"), if app.is_ipv4() { 68 } else { 1_280 });
    }
}

/// conformance 50
#[test]
fn unreachable_time_exceeded_and_source_quench_do_not_end_a_connection() {
    for (app, target) in families() {
        let mut stack = stack();
        let (flow, first) = with_octets_in_flight(app, target, &mut stack);
        let quoted = &first[..64];
        for why in [
            Unreachable::Network,
            Unreachable::Host,
            Unreachable::Protocol,
            Unreachable::Port,
            Unreachable::Prohibited,
        ] {
            let told = icmp(app, target, &IcmpMessage::Unreachable { why: Some(why), quoted });
            assert_eq!(give(&mut stack, &told, at(2)), (Some(DropReason::IcmpIgnored), vec![]), "{why:?}");
        }
        let told = icmp(app, target, &IcmpMessage::TimeExceeded { reassembly: false, quoted });
        assert_eq!(give(&mut stack, &told, at(2)).0, Some(DropReason::IcmpIgnored));
        let quench = icmp(app, target, &IcmpMessage::Other { kind: 4, code: 0 });
        assert!(give(&mut stack, &quench, at(2)).0.is_some());
        assert!(stack.tcp(flow).is_some() && stack.poll_event().is_none());
    }
}

/// Z9, conformance 51: identifier, sequence number and data come back whole from the address that was asked, in fragments when they do not fit.
#[test]
fn echo_is_answered_with_everything_it_had() {
    for (app, target) in families() {
        let mut stack = stack();
        for len in [0, 1, 56, 1_400] {
            let data: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let request =
                icmp(app, target, &IcmpMessage::EchoRequest { id: 0xbeef, seq: 0xfffe, data: &data });
            let (dropped, answered) = give(&mut stack, &request, at(0));
            assert_eq!((dropped, answered.len()), (None, 1));
            let ip = IpPacket::parse(&answered[0]).expect("a packet");
            assert_eq!((ip.src, ip.dst), (target, app));
            let reply = IcmpMessage::parse(ip.src, ip.dst, ip.payload).expect("ICMP");
            assert!(
                matches!(reply, IcmpMessage::EchoReply { id: 0xbeef, seq: 0xfffe, data: echoed } if echoed == data)
            );
        }
        let large = icmp(app, target, &IcmpMessage::EchoRequest { id: 1, seq: 1, data: &[9; 4_000] });
        let (_, answered) = give(&mut stack, &large, at(0));
        assert_eq!(answered.len(), 3);
        assert!(
            answered
                .iter()
                .all(|packet| packet.len() <= MTU && IpPacket::parse(packet).expect("IP").fragment.is_some())
        );
        // A request with a wrong checksum is none; and the mode may be "drop".
        let mut wrong = icmp(app, target, &IcmpMessage::EchoRequest { id: 1, seq: 1, data: b"x" });
        *wrong.last_mut().expect("data") ^= 1;
        assert_eq!(give(&mut stack, &wrong, at(0)), (Some(DropReason::BadChecksum), vec![]));
        let mut deaf = Stack::new(StackConfig { echo: EchoMode::Drop, ..StackConfig::default() }, [7; 16]);
        let request = icmp(app, target, &IcmpMessage::EchoRequest { id: 1, seq: 1, data: b"x" });
        assert_eq!(give(&mut deaf, &request, at(0)), (Some(DropReason::EchoOff), vec![]));
    }
}

/// conformance 53
#[test]
fn a_datagram_with_a_wrong_length_or_checksum_is_dropped() {
    for (app, target) in families() {
        let mut stack = stack();
        let good = udp(app, target, b"four");
        let with = |at: usize, value: u16| {
            let mut octets = good.clone();
            octets[at..at + 2].copy_from_slice(&value.to_be_bytes());
            packet(app, target, protocol::UDP, &octets)
        };
        let (length, checksum) = (4, 6);
        for (octets, why) in [
            (with(length, 7), DropReason::BadUdp),
            (with(length, 13), DropReason::BadUdp),
            (with(length, 0), DropReason::BadUdp),
            (with(checksum, 0x1234), DropReason::BadChecksum),
            (with(0, 0), DropReason::BadChecksum),
            (packet(app, target, protocol::UDP, &good[..7]), DropReason::BadUdp),
        ] {
            assert_eq!(give(&mut stack, &octets, at(0)), (Some(why), vec![]), "{octets:02x?}");
        }
        let unsummed = with(checksum, 0);
        let taken = stack.handle_packet(Packet::new(&unsummed), at(0)).is_ok();
        assert_eq!(taken, app.is_ipv4(), "RFC 8200 8.1: none in IPv6");
    }
}

// ---- the engine ----

fn socket(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

/// An app's socket whose association with the proxy is open, and the relay's socket.
fn associated(
    world: &mut World,
    first: &[u8],
    to: &str,
) -> (smoltcp::iface::SocketHandle, ztun::engine::SocketId) {
    let app = world.bind_udp();
    world.udp_app(app).send_slice(first, world::endpoint(socket(to))).expect("send");
    let control = world.accept_dialled();
    world.push(control, &[5, 0]);
    world.push(control, &[5, 0, 0, 1, 192, 0, 2, 10, 0x04, 0x38]);
    (app, *world.udp.last().expect("a UDP socket"))
}

fn config() -> EngineConfig {
    let proxy = Proxy { addr: socket("192.0.2.10:1080"), credentials: None };
    EngineConfig { proxies: vec![proxy], pool: 0, ..EngineConfig::default() }
}

/// conformance 55 (60 s, see `docs/adr/0008-udp-idle-times.md`): traffic either way refreshes a mapping, and an ICMP error does not end it.
#[test]
fn a_mapping_lives_while_it_is_used_in_either_direction() {
    let mut world = World::new(config(), false);
    let (app, relay) = associated(&mut world, b"one", "203.0.113.5:5000");
    for _ in 0..5 {
        world.advance(Duration::from_secs(50));
        world.udp_app(app).send_slice(b"out", world::endpoint(socket("203.0.113.5:5000"))).expect("send");
        world.settle();
        world.advance(Duration::from_secs(50));
        world.push_datagram(relay, None, &[&[0, 0, 0, 1, 203, 0, 113, 5, 0x13, 0x88][..], b"in"].concat());
        assert_eq!(world.udp_app(app).recv().expect("received").0, b"in");
    }
    let (local, remote) = (addr(world::APP), addr("203.0.113.5"));
    let quoted = packet(remote, local, protocol::UDP, &udp(remote, local, b"in"));
    let told =
        icmp(local, remote, &IcmpMessage::Unreachable { why: Some(Unreachable::Port), quoted: &quoted });
    assert!(matches!(world.engine.handle_packet(Packet::new(&told), world.now), Output::None));
    assert_eq!(world.engine.associations(), 1);
    world.advance(Duration::from_secs(61));
    assert_eq!(world.engine.associations(), 0);
}

/// conformance 56: whatever a message on port 53 is, it goes and comes octet by octet.
#[test]
fn what_goes_to_and_comes_from_port_53_is_not_altered() {
    let strange: [Vec<u8>; 5] = [
        // Every flag and opcode, a type that does not exist, EDNS with an unknown option.
        [&[0x12, 0x34, 0x7f, 0xff, 0, 1, 0, 0, 0, 0, 0, 1, 1, b'a', 0, 0xff, 0xfe, 0, 1][..], &[0; 40]]
            .concat(),
        // Larger than 512 octets.
        [&[0xab, 0xcd, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &[7; 1_300]].concat(),
        // A name that points at itself.
        vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1],
        // A header only, and less than one.
        vec![0, 8, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        vec![0xff],
    ];
    let mut world = World::new(config(), false);
    let (app, relay) = associated(&mut world, &strange[0], "203.0.113.53:53");
    for message in &strange[1..] {
        world.udp_app(app).send_slice(message, world::endpoint(socket("203.0.113.53:53"))).expect("send");
        world.settle();
    }
    let header = [0, 0, 0, 1, 203, 0, 113, 53, 0, 53];
    let sent: Vec<Vec<u8>> = world.fake(relay).datagrams.iter().map(|(_, octets)| octets.clone()).collect();
    assert_eq!(sent, strange.each_ref().map(|message| [&header[..], message].concat()));
    for message in &strange {
        // As an answer: QR and TC set where there are flags.
        let mut answer = message.clone();
        if let Some(flags) = answer.get_mut(2) {
            *flags |= 0x82;
        }
        world.push_datagram(relay, None, &[&header[..], &answer].concat());
        assert_eq!(world.udp_app(app).recv().expect("received").0, answer);
    }
}
