//! Any packets, in any order, at any time: nothing panics, memory is bounded, every drop is counted, and good connections go on.
//!
//! The mixtures of packets, calls and time are those of the fuzz targets (`tests/fuzz/targets`), here driven by proptest, which shrinks
//! what fails. The floods that follow are watched by an allocator that counts the octets of its own thread.

#![allow(unreachable_pub, reason = "a module of a test has nobody outside")]

#[allow(dead_code, reason = "shared with other tests")]
mod counting;

#[path = "fuzz/targets/mod.rs"]
#[allow(dead_code, reason = "shared with the fuzzer")]
mod targets;

use counting::most_live;
use proptest::prelude::*;
use std::net::IpAddr;
use ztun::config::{EngineConfig, Proxy};
use ztun::engine::{Command, Engine, Output};
use ztun::stack::{DropReason, Ingress, Packet, Stack, StackConfig, TcpConfig};
use ztun::time::{Duration, Instant};
use ztun::wire::SeqNumber;
use ztun::wire::ip::{Fragment, IpHeader, protocol};
use ztun::wire::tcp::{TcpFlags, TcpOptions, TcpSegment};
use ztun::wire::udp;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// F2, F3, F13, F14
    #[test]
    fn any_packets_calls_and_times_leave_the_stack_whole(data in proptest::collection::vec(any::<u8>(), 0..6_000)) {
        targets::stack::run(&data);
    }

    /// F2, F3, F10, F14
    #[test]
    fn any_packets_sockets_and_times_leave_the_engine_whole(data in proptest::collection::vec(any::<u8>(), 0..6_000)) {
        targets::engine::run(&data);
    }

    /// conformance 2, 45, 53: every parser, and what is written back.
    #[test]
    fn any_octets_are_parsed_without_a_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
        targets::wire::run(&data);
        targets::socks5::run(&data);
        targets::dns::run(&data);
    }
}

const APP: &str = "198.18.0.1";
const TARGET: &str = "203.0.113.5";

fn addr(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn ip_header(protocol: u8, fragment: Option<Fragment>) -> IpHeader {
    IpHeader {
        src: addr(APP),
        dst: addr(TARGET),
        protocol,
        hop_limit: 64,
        id: fragment.map_or(0, |fragment| fragment.id as u16),
        dont_fragment: fragment.is_none(),
        fragment,
    }
}

fn packet(header: IpHeader, upper: &[u8]) -> Vec<u8> {
    let mut octets = vec![0; header.header_len()];
    header.emit(&mut octets, upper.len());
    octets.extend_from_slice(upper);
    octets
}

fn segment(port: u16, flags: TcpFlags, seq: SeqNumber, ack: SeqNumber, data: &[u8]) -> Vec<u8> {
    let options = TcpOptions { window_scale: flags.syn().then_some(7), ..TcpOptions::default() };
    let segment = TcpSegment {
        src_port: port,
        dst_port: 80,
        seq,
        ack,
        flags,
        window: 0xffff,
        urgent: 0,
        options,
        payload: &[],
    };
    let mut tcp = vec![0; segment.header_len()];
    segment.emit_header(&mut tcp);
    tcp.extend_from_slice(data);
    let mut octets = packet(ip_header(protocol::TCP, None), &tcp);
    targets::packets::write_checksum(&mut octets);
    octets
}

fn datagram(port: u16, remote_port: u16, data: &[u8]) -> Vec<u8> {
    let mut upper = vec![0; udp::HEADER];
    udp::emit_header(&mut upper, (addr(APP), port), (addr(TARGET), remote_port), data);
    upper.extend_from_slice(data);
    packet(ip_header(protocol::UDP, None), &upper)
}

fn start() -> Instant {
    Instant::from_millis(1_000)
}

/// Hands a packet to a stack whose caller takes nothing; whether it was dropped, and why.
fn give(stack: &mut Stack, octets: &[u8], now: Instant) -> Option<DropReason> {
    match stack.handle_packet(Packet::new(octets), now) {
        Ok(Ingress::Stream { flow, payload }) => {
            stack.tcp(flow).expect("alive").keep(payload, 0, now);
            None
        }
        Ok(Ingress::Consumed | Ingress::Datagram { .. } | Ingress::Reassembled(_)) => None,
        Err(reason) => Some(reason),
    }
}

fn drain(stack: &mut Stack, now: Instant) {
    while stack.poll_event().is_some() {}
    while stack.poll_transmit(now).is_some() {}
}

/// A connection from `port`, established: its next sequence numbers.
fn connect(stack: &mut Stack, port: u16, now: Instant) -> (SeqNumber, SeqNumber) {
    let iss = SeqNumber(0xffff_fff0);
    assert_eq!(give(stack, &segment(port, TcpFlags::SYN, iss, SeqNumber(0), &[]), now), None);
    let Some(ztun::stack::StackEvent::Syn { flow }) = stack.poll_event() else { panic!("a SYN is told of") };
    stack.tcp(flow).expect("waiting").accept(now);
    let header = stack.poll_transmit(now).expect("a SYN-ACK").header.to_vec();
    let ack = SeqNumber(u32::from_be_bytes(header[24..28].try_into().expect("four octets"))) + 1;
    assert_eq!(give(stack, &segment(port, TcpFlags::ACK, iss + 1, ack, &[]), now), None);
    drain(stack, now);
    (iss + 1, ack)
}

/// conformance 46: fragments of datagrams that are never complete.
#[test]
fn a_flood_of_fragments_is_held_within_its_bound() {
    let config =
        StackConfig { reassembly_octets: 256 << 10, reassembly_entries: 64, ..StackConfig::default() };
    let (mut stack, _) = most_live(|| Stack::new(config, [1; 16]));
    let ((), most) = most_live(|| {
        for n in 0..50_000u32 {
            // Far ahead, so that each costs as much as it can.
            let fragment = Fragment { id: n, offset: 8 * (n % 8_000), more: true };
            give(&mut stack, &packet(ip_header(protocol::UDP, Some(fragment)), &[7; 1_400]), start());
        }
    });
    assert!((256 << 10..2 << 20).contains(&most), "{most} octets for a bound of 256 KiB");
    // A datagram in fragments still gets through.
    let whole = datagram(4_000, 53, &[9; 2_000]);
    let (first, second) = whole[20..].split_at(1_000);
    let piece = |offset, more| ip_header(protocol::UDP, Some(Fragment { id: 77, offset, more }));
    assert_eq!(give(&mut stack, &packet(piece(0, true), first), start()), None);
    let last = packet(piece(1_000, false), second);
    let result = stack.handle_packet(Packet::new(&last), start());
    assert!(matches!(result, Ok(Ingress::Reassembled(octets)) if octets[20..] == whole[20..]));
}

/// F11: SYNs that nobody means.
#[test]
fn a_flood_of_syns_costs_what_the_queue_costs() {
    let tcp = TcpConfig { max_syn: 4_096, ..TcpConfig::default() };
    let (mut stack, _) = most_live(|| Stack::new(StackConfig { tcp, ..StackConfig::default() }, [1; 16]));
    let (snd, rcv) = connect(&mut stack, 9, start());
    let ((), most) = most_live(|| {
        for n in 0..60_000u32 {
            let now = start() + Duration::from_micros(u64::from(n) * 10);
            let port = 1_000 + (n % 64_000) as u16;
            give(&mut stack, &segment(port, TcpFlags::SYN, SeqNumber(n), SeqNumber(0), &[]), now);
            drain(&mut stack, now);
        }
    });
    assert!((200 << 10..4 << 20).contains(&most), "{most} octets for 4,096 entries");
    let refused = stack.stats().drops[DropReason::Full as usize];
    assert!(refused >= 60_000 - 4_096 - 1, "those that found no room are counted: {refused}");
    // The connection that was there goes on.
    let text = segment(9, TcpFlags::ACK, snd, rcv, b"still here");
    let result = stack.handle_packet(Packet::new(&text), start());
    assert!(matches!(result, Ok(Ingress::Stream { payload: b"still here", .. })));
}

/// F13, conformance 16
#[test]
fn octets_out_of_order_on_many_connections_stay_within_the_budget() {
    let tcp = TcpConfig { buffer_budget: 4 << 20, ..TcpConfig::default() };
    let (mut stack, _) = most_live(|| Stack::new(StackConfig { tcp, ..StackConfig::default() }, [1; 16]));
    let ends: Vec<_> = (0..200).map(|n| connect(&mut stack, 2_000 + n, start())).collect();
    let ((), most) = most_live(|| {
        for n in 0..20_000u32 {
            let at = (n % 200) as usize;
            let (snd, rcv) = ends[at];
            // A second octet each time, further and further ahead of the gap.
            let ahead = snd + 60_000 - (n / 200) * 2;
            give(&mut stack, &segment(2_000 + at as u16, TcpFlags::ACK, ahead, rcv, b"x"), start());
            drain(&mut stack, start());
        }
    });
    assert!((2 << 20..10 << 20).contains(&most), "{most} octets for a budget of 4 MiB");
    assert!(stack.stats().drops[DropReason::Full as usize] > 0, "what found no room is counted");
}

/// F12: datagrams to ever new ports, through the engine.
#[test]
fn a_spray_of_datagrams_is_held_within_its_bound() {
    let proxies = vec![Proxy { addr: "192.0.2.10:1080".parse().expect("address"), credentials: None }];
    let config = EngineConfig { proxies, pool: 0, max_udp: 1_000, ..EngineConfig::default() };
    let (mut engine, _) = most_live(|| Engine::new(config, false, [1; 16]));
    let mut open = 0u64;
    let ((), most) = most_live(|| {
        for n in 0..100_000u32 {
            let octets = datagram(1_000 + (n % 60_000) as u16, 5_000 + (n % 7) as u16, &[1; 1_200]);
            match engine.handle_packet(Packet::new(&octets), start()) {
                Output::None => {}
                open @ (Output::Reassembled(_) | Output::Stream { .. } | Output::Datagram { .. }) => {
                    panic!("nothing is open yet: {open:?}")
                }
            }
            while let Some(command) = engine.poll_command(start()) {
                match command {
                    Command::Dial { .. } | Command::OpenUdp { .. } => open += 1,
                    Command::Close { .. } => open -= 1,
                    Command::Identify { .. }
                    | Command::SendDatagram { .. }
                    | Command::Read { .. }
                    | Command::Write { .. }
                    | Command::Shutdown { .. } => {}
                }
            }
            while engine.poll_transmit(start()).is_some() {}
            assert!(engine.associations() <= 1_000 && open <= 1_001, "{open} sockets");
        }
    });
    assert!((1 << 20..24 << 20).contains(&most), "{most} octets for 1,000 associations");
    let stats = engine.stats();
    assert!(stats.associations_evicted > 90_000, "{stats:?}");
}

/// A control queue full of answers that nobody takes.
#[test]
fn answers_that_are_never_sent_are_bounded() {
    let (mut stack, _) = most_live(|| Stack::new(StackConfig::default(), [1; 16]));
    let echo = {
        let message = ztun::wire::icmp::IcmpMessage::EchoRequest { id: 1, seq: 2, data: &[0; 1_000] };
        let mut upper = vec![0; message.buffer_len()];
        message.emit(addr(APP), addr(TARGET), &mut upper);
        packet(ip_header(protocol::ICMP, None), &upper)
    };
    let ((), most) = most_live(|| {
        for n in 0..100_000u64 {
            let now = start() + Duration::from_micros(n * 50);
            give(&mut stack, &echo, now);
            give(&mut stack, &segment(7, TcpFlags::ACK, SeqNumber(1), SeqNumber(2), b"stray"), now);
        }
    });
    assert!((1 << 20..12 << 20).contains(&most), "{most} octets");
}
