//! A hundred thousand of everything in one engine: what each costs in memory, that no work grows with their number, and that the memory comes back.
//!
//! The allocator is the test's own and counts octets and allocations of its thread. Time is virtual and nothing is timed: that an operation costs the same
//! among many as alone is asserted of what can be counted, here of allocations and of the moments at which the engine wants to be woken; what
//! searches and timers look at is counted next to `flow`, and instructions in `benches/instructions`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../benches/common/mod.rs"]
#[allow(dead_code, reason = "shared with the benchmarks")]
mod common;

#[allow(dead_code, reason = "shared with other tests")]
mod counting;

#[path = "../benches/instructions/harness.rs"]
#[allow(dead_code, reason = "shared with the benchmarks")]
mod harness;

use common::{APP, PORT, REMOTE, segment, tcp_packet};
use counting::{allocations, live};
use harness::{ISN, World};
use std::net::{IpAddr, Ipv4Addr};
use ztun::config::{EngineConfig, Pipeline};
use ztun::engine::{Output, SocketId};
use ztun::stack::{Packet, StackConfig, TcpConfig};
use ztun::time::{Duration, Instant};
use ztun::wire::ip::{IpHeader, IpPacket, protocol};
use ztun::wire::tcp::{TcpFlags, TcpSegment};
use ztun::wire::udp;

/// Flows of each kind.
const MANY: usize = 100_000;

/// Octets of an idle TCP flow in stack and engine, all tables together: the aim of 400 less what the driver keeps of its socket.
const TCP_FLOW: isize = 360;
/// Octets of an idle UDP mapping in the engine, with its two sockets there.
const UDP_MAPPING: isize = 400;
/// What may stay behind when all are gone: a page of each table, queues that have seen a burst, blocks for the next connections.
const LEFT_BEHIND: isize = 512 << 10;

fn world() -> World {
    let tcp = TcpConfig { max_flows: MANY, ..TcpConfig::default() };
    World::with(EngineConfig {
        stack: StackConfig { tcp, ..StackConfig::default() },
        max_udp: MANY,
        // No trials of the proxy among the flows.
        pipeline: Pipeline::Off,
        udp_idle: Duration::from_secs(300),
        ..EngineConfig::default()
    })
}

/// Ports of an app's address that are used.
const PORTS: usize = 50_000;

/// The end of flow `number`: its address and port.
fn end(number: usize) -> (IpAddr, u16) {
    let IpAddr::V4(app) = APP else { unreachable!("the app has an IPv4 address") };
    let addr = Ipv4Addr::from_bits(app.to_bits() + (number / PORTS) as u32);
    (addr.into(), (10_000 + number % PORTS) as u16)
}

/// One TCP flow of an app.
#[derive(Clone, Copy)]
struct Flow {
    number: usize,
    seq: u32,
    ack: u32,
    socket: Option<SocketId>,
}

impl Flow {
    fn packet(&self, flags: TcpFlags, payload: &[u8]) -> Vec<u8> {
        let (addr, port) = end(self.number);
        tcp_packet((addr, REMOTE), &segment(port, self.seq, self.ack, flags, payload))
    }
}

fn syn(number: usize) -> Vec<u8> {
    let (addr, port) = end(number);
    harness::syn(addr, port)
}

/// What the stack sends at `now`: acknowledgement number and octets of text of the last segment.
fn sent(world: &mut World, now: Instant) -> (u32, usize) {
    let mut last = None;
    for packet in world.drain(now) {
        let ip = IpPacket::parse(&packet).unwrap();
        let segment = TcpSegment::parse(ip.src, ip.dst, ip.payload, false).unwrap();
        last = Some((segment.seq.0, segment.payload.len()));
    }
    last.unwrap()
}

/// Opens a connection and has an echo go through it.
fn connect(world: &mut World, number: usize) -> Flow {
    let now = world.now();
    world.give(&syn(number), now);
    let [socket] = world.settle(now)[..] else { panic!("a SYN dials") };
    let (isn, _) = sent(world, now);
    let mut flow = Flow { number, seq: ISN + 1, ack: isn.wrapping_add(1), socket: Some(socket) };
    world.give(&flow.packet(TcpFlags::ACK, &[]), now);
    world.settle(now);
    echo(world, &mut flow);
    flow
}

/// A few octets to the socket, as many back.
fn echo(world: &mut World, flow: &mut Flow) {
    let now = world.now();
    let packet = flow.packet(TcpFlags::ACK, b"question");
    flow.seq = flow.seq.wrapping_add(8);
    let given = Packet { verify_checksum: false, ..Packet::new(&packet) };
    let Output::Stream { flow: id, payload, .. } = world.engine.handle_packet(given, now) else {
        panic!("text is for the socket");
    };
    world.engine.stream_written(id, payload, payload.len(), now);
    let (front, _) = world.engine.read_space(flow.socket.unwrap()).unwrap();
    front[..8].copy_from_slice(b"answered");
    world.engine.read_done(flow.socket.unwrap(), 8, now);
    world.settle(now);
    assert_eq!(sent(world, now).1, 8);
    flow.ack = flow.ack.wrapping_add(8);
    world.give(&flow.packet(TcpFlags::ACK, &[]), now);
    world.settle(now);
    world.engine.handle_timeout(now);
}

/// Lets `time` pass from `now`; how often the engine wanted to be woken.
fn pass(world: &mut World, now: Instant, time: Duration) -> usize {
    let end = now + time;
    let mut wakes = 0;
    while let Some(next) = world.engine.poll_timeout().filter(|next| *next <= end) {
        world.engine.handle_timeout(next);
        world.settle(next);
        while world.engine.poll_transmit(next).is_some() {}
        wakes += 1;
        assert!(wakes <= 10 * MANY, "woken for ever");
    }
    wakes
}

/// Issue of scale: memory of an idle flow is bounded, and an idle flow asks for nothing.
#[test]
fn a_hundred_thousand_idle_connections() {
    let mut world = world();
    // What the first one takes, everything else will use too.
    let mut flows = vec![connect(&mut world, 0)];
    flows.reserve(MANY);
    let empty = live();
    for number in 1..MANY {
        flows.push(connect(&mut world, number));
    }
    assert_eq!(world.engine.tcp_flows(), MANY);
    let now = world.now();
    pass(&mut world, now, Duration::from_secs(2));
    let each = (live() - empty) / (MANY - 1) as isize;
    assert!(each <= TCP_FLOW, "{each} octets a flow");
    // An hour: only steps of the wheels.
    let now = now + Duration::from_secs(2);
    let wakes = pass(&mut world, now, Duration::from_secs(3_600));
    assert!(wakes <= 100, "{wakes} wake-ups of {MANY} idle flows in an hour");

    // One that wakes among the many takes a block, its buffer, and nothing when it goes on; the same as it would alone.
    let now = now + Duration::from_secs(3_600);
    let behind = now.since(world.now());
    world.skip(behind);
    let mut flow = flows[MANY / 2];
    echo(&mut world, &mut flow);
    let mut alone = self::world();
    let mut only = connect(&mut alone, 0);
    let among_many = allocations(|| echo(&mut world, &mut flow));
    assert_eq!(among_many, allocations(|| echo(&mut alone, &mut only)));
    flows[MANY / 2] = flow;

    // The table is full: one more is refused at once, and costs nothing.
    let before = live();
    let now = world.now();
    let packet = syn(MANY);
    let refused = world.engine.handle_packet(Packet { verify_checksum: false, ..Packet::new(&packet) }, now);
    assert!(matches!(refused, Output::None));
    assert!(world.settle(now).is_empty(), "nothing is dialled");
    let reset = world.drain(now);
    let ip = IpPacket::parse(&reset[0]).unwrap();
    assert!(TcpSegment::parse(ip.src, ip.dst, ip.payload, false).unwrap().flags.rst());
    assert_eq!(world.engine.tcp_flows(), MANY);
    drop((packet, reset));
    assert!(live() <= before + 4_096, "{} octets for a refused SYN", live() - before);

    // All end: the memory comes back.
    for flow in &flows {
        let now = world.now();
        world.give(&flow.packet(TcpFlags::RST, &[]), now);
        world.settle(now);
    }
    assert_eq!((world.engine.tcp_flows(), world.engine.sockets()), (0, 0));
    let left = live() - empty;
    assert!(left <= LEFT_BEHIND, "{left} octets stay behind");
}

fn datagram(number: usize) -> Vec<u8> {
    let (src, port) = end(number);
    let header = IpHeader {
        src,
        dst: REMOTE,
        protocol: protocol::UDP,
        hop_limit: 64,
        id: 0,
        dont_fragment: true,
        fragment: None,
    };
    let payload = b"datagram";
    let mut packet = vec![0; header.header_len() + udp::HEADER + payload.len()];
    let start = header.emit(&mut packet, udp::HEADER + payload.len());
    let at = start + udp::emit_header(&mut packet[start..], (src, port), (REMOTE, PORT), payload);
    packet[at..].copy_from_slice(payload);
    packet
}

/// An answer of the remote through the relay.
fn answer() -> Vec<u8> {
    let IpAddr::V4(remote) = REMOTE else { unreachable!("the remote has an IPv4 address") };
    let mut octets = vec![0, 0, 0, 1];
    octets.extend_from_slice(&remote.octets());
    octets.extend_from_slice(&PORT.to_be_bytes());
    octets.extend_from_slice(b"answer");
    octets
}

#[test]
fn a_hundred_thousand_udp_mappings() {
    let mut world = world();
    let answer = answer();
    let open = |world: &mut World, number: usize| {
        let now = world.now();
        world.give(&datagram(number), now);
        let opened = world.settle(now);
        let [control, socket] = opened[..] else { panic!("a datagram opens {opened:?}") };
        assert!(world.engine.handle_datagram(socket, None, &answer, now).is_some());
        world.engine.handle_timeout(now);
        (control, socket)
    };
    open(&mut world, 0);
    let empty = live();
    for number in 1..MANY {
        open(&mut world, number);
    }
    assert_eq!((world.engine.associations(), world.engine.sockets()), (MANY, 2 * MANY));
    let each = (live() - empty) / (MANY - 1) as isize;
    assert!(each <= UDP_MAPPING, "{each} octets a mapping");

    // A datagram either way among the many allocates nothing.
    let now = world.now();
    let packet = datagram(MANY / 2);
    let mut datagrams = || {
        let given = Packet { verify_checksum: false, ..Packet::new(&packet) };
        assert!(matches!(world.engine.handle_packet(given, now), Output::Datagram { .. }));
        assert!(world.engine.poll_command(now).is_none());
    };
    datagrams();
    assert_eq!(allocations(datagrams), 0);

    // One more than there is room for takes the place of the one that was used least recently.
    let before = live();
    open(&mut world, MANY);
    assert_eq!((world.engine.associations(), world.engine.sockets()), (MANY, 2 * MANY));
    assert_eq!(world.engine.stats().associations_evicted, 1);
    assert!(live() <= before + 4_096, "{} octets for an evicted mapping", live() - before);

    // Idle for their time, all end: the memory comes back.
    let now = world.now();
    pass(&mut world, now, Duration::from_secs(301));
    assert_eq!((world.engine.associations(), world.engine.sockets()), (0, 0));
    let left = live() - empty;
    assert!(left <= LEFT_BEHIND, "{left} octets stay behind");
}
