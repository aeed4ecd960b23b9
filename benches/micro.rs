//! What single operations of the core cost: parse, checksum, lookup, timers, segments and datagrams in and out, SOCKS5 replies.
//!
//! The core has no clock and no socket, so each of these is a function call. `cargo bench --bench micro` takes under a minute.

#![allow(clippy::disallowed_methods, reason = "criterion reads the clock")]

#[path = "common/mod.rs"]
mod common;

use common::{APP, PORT, REMOTE, segment, tcp_packet, udp_packet};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use ztun::flow::{FlowId, FlowKey, FlowTable, TimerWheel};
use ztun::outbound::socks5::Client;
use ztun::rng::Rng;
use ztun::stack::{Ingress, OffloadLevel, Packet, Stack, StackConfig, StackEvent};
use ztun::time::Instant;
use ztun::wire::Endpoint;
use ztun::wire::checksum::{Checksum, update_u16};
use ztun::wire::ip::IpPacket;
use ztun::wire::socks5::{self, Command};
use ztun::wire::tcp::{TcpFlags, TcpOptions, TcpSegment};
use ztun::wire::udp::UdpDatagram;

const APP_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd7a, 0x7a74, 0x756e, 0, 0, 0, 0, 1));
const REMOTE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 5));
const SEED: [u8; 16] = [7; 16];

/// Payload of a full packet and of a super-segment.
const SIZES: [usize; 2] = [1_448, 62_264];

/// Octets of headers of a segment without options over IPv4.
const HEADERS: usize = 40;

/// The app's kernel, as far as it takes to drive one connection.
struct App {
    stack: Stack,
    now: u64,
}

/// An established connection: what the app sends next, and what it has acknowledged.
struct Connection {
    flow: FlowId,
    port: u16,
    seq: u32,
    ack: u32,
}

impl App {
    fn new() -> App {
        App {
            stack: Stack::new(StackConfig { offload: OffloadLevel::Full, ..StackConfig::default() }, SEED),
            now: 1_000_000,
        }
    }

    /// Each look is 10 µs after the last.
    fn now(&mut self) -> Instant {
        self.now += 10;
        Instant::from_micros(self.now)
    }

    /// A packet in of which nothing is to be carried; whether it was acted on.
    fn give(&mut self, packet: &[u8]) -> bool {
        let now = self.now();
        matches!(
            self.stack.handle_packet(Packet { octets: packet, verify_checksum: false, segment_size: 0 }, now),
            Ok(Ingress::Consumed)
        )
    }

    fn connect(&mut self, port: u16) -> Connection {
        let mut syn = segment(port, 99, 0, TcpFlags::SYN, &[]);
        syn.options = TcpOptions {
            mss: Some(1_460),
            window_scale: Some(10),
            sack_permitted: true,
            ..TcpOptions::default()
        };
        assert!(self.give(&tcp_packet((APP, REMOTE), &syn)));
        let event = self.stack.poll_event();
        let Some(StackEvent::Syn { flow }) = event else { panic!("a SYN gives {event:?}") };
        let now = self.now();
        self.stack.tcp(flow).expect("it waits").accept(now);
        let answer = self.stack.poll_transmit(now).expect("the SYN-ACK");
        let answer = IpPacket::parse(answer.header).expect("it is a packet");
        let answer =
            TcpSegment::parse(answer.src, answer.dst, answer.payload, false).expect("it is a segment");
        let ack = answer.seq.0.wrapping_add(1);
        assert!(self.give(&tcp_packet((APP, REMOTE), &segment(port, 100, ack, TcpFlags::ACK, &[]))));
        while self.stack.poll_event().is_some() {}
        Connection { flow, port, seq: 100, ack }
    }

    /// Packets that wait to be sent, and their octets.
    fn drain(&mut self, now: Instant) -> (u32, usize) {
        let (mut packets, mut octets) = (0, 0);
        while let Some(packet) = self.stack.poll_transmit(now) {
            packets += 1;
            octets += packet.len();
        }
        (packets, octets)
    }
}

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    let payload = [7; 1_448];
    for (name, ends) in [("tcp4", (APP, REMOTE)), ("tcp6", (APP_V6, REMOTE_V6))] {
        let packet = tcp_packet(ends, &segment(5_000, 1, 1, TcpFlags::ACK, &payload));
        for (kind, verify) in [("", false), ("+checksum", true)] {
            group.bench_function(format!("{name}{kind}"), |b| {
                b.iter(|| {
                    let ip = IpPacket::parse(black_box(&packet)).expect("a packet");
                    TcpSegment::parse(ip.src, ip.dst, ip.payload, verify).expect("a segment").payload.len()
                });
            });
        }
    }
    let packet = udp_packet((APP, REMOTE), 53, &[7; 64]);
    group.bench_function("udp4+checksum", |b| {
        b.iter(|| {
            let ip = IpPacket::parse(black_box(&packet)).expect("a packet");
            UdpDatagram::parse(ip.src, ip.dst, ip.payload, true).expect("a datagram").payload.len()
        });
    });
}

fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    let octets = vec![7; 65_536];
    for len in [40, 1_500, 65_536] {
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_with_input(BenchmarkId::from_parameter(len), &octets[..len], |b, octets| {
            b.iter(|| Checksum::new().with(black_box(octets)).finish());
        });
    }
    group.throughput(Throughput::Elements(1));
    group.bench_function("update", |b| b.iter(|| update_u16(black_box(0x1234), black_box(1), black_box(2))));
}

fn key(number: u32) -> FlowKey {
    let [_, a, b, c] = number.to_be_bytes();
    let local = Endpoint::new(APP, (number % 50_000) as u16 + 1_024);
    FlowKey { local, remote: Endpoint::new(IpAddr::V4(Ipv4Addr::new(10, a, b, c)), PORT) }
}

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("flow");
    for flows in [1_000u32, 100_000] {
        let mut table = FlowTable::new(200_000, Rng::new(SEED).keyed_hash());
        for number in 0..flows {
            table.insert(key(number), u64::from(number)).expect("there is room");
        }
        // A stride that is prime to both sizes visits all of them, far from the one before.
        let mut number = 0;
        group.bench_function(BenchmarkId::new("find", flows), |b| {
            b.iter(|| {
                number = (number + 7_919) % flows;
                let id = table.find(black_box(&key(number)))?;
                table.get(id).copied()
            });
        });
        group.bench_function(BenchmarkId::new("insert+remove", flows), |b| {
            b.iter(|| {
                let id = table.insert(black_box(key(flows)), 0).expect("there is room");
                table.remove(id)
            });
        });
    }
}

fn timers(c: &mut Criterion) {
    let mut group = c.benchmark_group("timers");
    for timers in [1_000u32, 100_000] {
        let mut wheel = TimerWheel::new();
        let mut now = 0;
        for index in 0..timers {
            wheel.set(index, Instant::from_millis(1_000 + u64::from(index)));
        }
        let mut index = 0;
        group.bench_function(BenchmarkId::new("move", timers), |b| {
            b.iter(|| {
                index = (index + 7_919) % timers;
                now += 1;
                wheel.set(index, Instant::from_micros(200_000_000 + now));
            });
        });
        group.bench_function(BenchmarkId::new("expire+set", timers), |b| {
            b.iter(|| {
                let next = wheel.next_deadline().expect("there are timers");
                let due = wheel.pop(next);
                if let Some(index) = due {
                    wheel.set(index, next + Duration::from_secs(60));
                }
                due
            });
        });
    }
}

fn segments(c: &mut Criterion) {
    let mut group = c.benchmark_group("segment");
    for size in SIZES {
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("in", size), |b| {
            let mut app = App::new();
            let mut connection = app.connect(5_000);
            let text = vec![7; size];
            let first = segment(connection.port, connection.seq, connection.ack, TcpFlags::ACK, &text);
            let mut packet = tcp_packet((APP, REMOTE), &first);
            b.iter(|| {
                let now = app.now();
                // The kernel has left the checksum to be filled in, so the number alone is new.
                packet[24..28].copy_from_slice(&connection.seq.to_be_bytes());
                connection.seq = connection.seq.wrapping_add(size as u32);
                let input = Packet { octets: &packet, verify_checksum: false, segment_size: 0 };
                let Ok(Ingress::Stream { flow, payload }) = app.stack.handle_packet(input, now) else {
                    panic!("the octets are next")
                };
                // The socket takes all.
                app.stack.tcp(flow).expect("it is open").keep(payload, payload.len(), now);
                app.drain(now)
            });
        });
        group.bench_function(BenchmarkId::new("out+ack", size), |b| {
            let mut app = App::new();
            let mut connection = app.connect(5_000);
            let mut ack = tcp_packet(
                (APP, REMOTE),
                &segment(connection.port, connection.seq, connection.ack, TcpFlags::ACK, &[]),
            );
            b.iter(|| {
                let now = app.now();
                let mut tcp = app.stack.tcp(connection.flow).expect("it is open");
                let (front, back) = tcp.send_buf();
                let len = size.min(front.len() + back.len());
                tcp.commit(len, now);
                let (packets, octets) = app.drain(now);
                connection.ack = connection.ack.wrapping_add(octets as u32 - packets * HEADERS as u32);
                ack[28..32].copy_from_slice(&connection.ack.to_be_bytes());
                assert!(app.give(&ack));
                while app.stack.poll_event().is_some() {}
                packets
            });
        });
    }
    group.throughput(Throughput::Elements(1));
    group.bench_function("connect+reset", |b| {
        let mut app = App::new();
        let mut port = 1_024;
        b.iter(|| {
            port = if port == u16::MAX { 1_024 } else { port + 1 };
            let connection = app.connect(port);
            let reset = segment(port, connection.seq, connection.ack, TcpFlags::RST, &[]);
            assert!(app.give(&tcp_packet((APP, REMOTE), &reset)));
            while app.stack.poll_event().is_some() {}
        });
    });
}

fn datagrams(c: &mut Criterion) {
    let mut group = c.benchmark_group("datagram");
    for size in [64, 1_400] {
        let packet = udp_packet((APP, REMOTE), 53, &vec![7; size]);
        let mut app = App::new();
        group.bench_function(BenchmarkId::new("in", size), |b| {
            b.iter(|| {
                let now = app.now();
                match app.stack.handle_packet(Packet::new(black_box(&packet)), now) {
                    Ok(Ingress::Datagram { payload, .. }) => payload.len(),
                    other => panic!("a datagram gives {other:?}"),
                }
            });
        });
        let payload = vec![7; size];
        let (remote, local) = (Endpoint::new(REMOTE, 53), Endpoint::new(APP, 5_000));
        group.bench_function(BenchmarkId::new("out", size), |b| {
            b.iter(|| {
                let now = app.now();
                let mut datagram =
                    app.stack.send_datagram(remote, local, black_box(&payload), now).expect("it fits");
                datagram.next_packet().map(|packet| packet.len())
            });
        });
    }
}

fn socks(c: &mut Criterion) {
    let mut group = c.benchmark_group("socks5");
    let reply = [5, 0, 0, 1, 127, 0, 0, 1, 0x1f, 0x90];
    group.bench_function("reply", |b| b.iter(|| socks5::parse_reply(black_box(&reply)).is_ok()));
    group.bench_function("handshake", |b| {
        b.iter(|| {
            let mut client = Client::new(None);
            client.request(Command::Connect, Endpoint::new(REMOTE, PORT));
            client.wrote(client.output().len());
            let method = client.handle_input(black_box(&[5, 0])).is_ok();
            client.wrote(client.output().len());
            method && client.handle_input(black_box(&reply)).is_ok()
        });
    });
}

criterion_group! {
    name = micro;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_millis(1_200));
    targets = parse, checksum, lookup, timers, segments, datagrams, socks
}
criterion_main!(micro);
