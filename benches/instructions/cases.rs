//! The cases: each makes its surroundings and gives a closure that does one operation.

use crate::common::{APP, REMOTE, segment, tcp_packet, udp_packet};
use crate::harness::{Connection, ISN, World, syn};
use crate::measured;
use ztun::engine::SocketError;
use ztun::wire::tcp::TcpFlags;

/// One case.
pub(crate) struct Case {
    /// As in the file of budgets.
    pub(crate) name: &'static str,
    /// What one operation is.
    pub(crate) what: &'static str,
    /// Sets up; the closure is one operation.
    pub(crate) make: fn() -> Box<dyn FnMut()>,
}

/// All cases.
pub(crate) const ALL: [Case; 7] = [
    Case { name: "tcp-in", what: "super-segment of 61,320 octets, to its socket, ACKed", make: tcp_in },
    Case { name: "tcp-out", what: "61,320 octets of a socket, as one super-segment", make: tcp_out },
    Case { name: "ack", what: "its ACK by the app", make: ack },
    Case { name: "syn", what: "SYN, up to the dial", make: syn_case },
    Case { name: "connection", what: "connection, from SYN over grant and SYN-ACK to RST", make: connection },
    Case { name: "udp-out", what: "datagram of the app", make: datagram_out },
    Case { name: "udp-in", what: "datagram for the app", make: datagram_in },
];

/// 42 segments of an MSS: a whole number of them, so that no rest waits.
const SIZE: usize = 42 * 1_460;

/// IPv4 and TCP without options.
const HEADERS: usize = 40;

/// Where sequence number and acknowledgment are in such a packet.
const SEQ_AT: usize = 24;
const ACK_AT: usize = 28;

fn put(packet: &mut [u8], at: usize, number: u32) {
    packet[at..at + 4].copy_from_slice(&number.to_be_bytes());
}

fn packet_of(connection: &Connection, flags: TcpFlags, payload: &[u8]) -> Vec<u8> {
    let Connection { port, seq, ack, .. } = *connection;
    tcp_packet((APP, REMOTE), &segment(port, seq, ack, flags, payload))
}

fn tcp_in() -> Box<dyn FnMut()> {
    let mut world = World::new();
    let mut connection = world.connect(5_000);
    let mut packet = packet_of(&connection, TcpFlags::ACK, &vec![7; SIZE]);
    Box::new(move || {
        let now = world.now();
        put(&mut packet, SEQ_AT, connection.seq);
        connection.seq = connection.seq.wrapping_add(SIZE as u32);
        measured::tcp_in(&mut world.engine, &packet, now);
    })
}

/// A connection that has left slow start behind, with one super-segment sent and acknowledged by each of two closures.
fn warm_download() -> (World, Connection, Vec<u8>) {
    let mut world = World::new();
    let mut connection = world.connect(5_000);
    let mut ack = packet_of(&connection, TcpFlags::ACK, &[]);
    loop {
        let now = world.now();
        let room =
            world.engine.read_space(connection.socket).map_or(0, |(front, back)| front.len() + back.len());
        world.engine.read_done(connection.socket, room.min(SIZE), now);
        world.settle(now);
        let packets = world.drain(now);
        connection.ack = packets
            .iter()
            .fold(connection.ack, |ack, packet| ack.wrapping_add((packet.len() - HEADERS) as u32));
        put(&mut ack, ACK_AT, connection.ack);
        world.give(&ack, now);
        world.settle(now);
        if let [packet] = &packets[..]
            && packet.len() == SIZE + HEADERS
        {
            return (world, connection, ack);
        }
    }
}

fn tcp_out() -> Box<dyn FnMut()> {
    let (mut world, mut connection, mut ack) = warm_download();
    Box::new(move || {
        let now = world.now();
        let sent = measured::tcp_out(&mut world.engine, connection.socket, SIZE, now);
        assert_eq!(sent, SIZE + HEADERS, "one packet");
        connection.ack = connection.ack.wrapping_add(SIZE as u32);
        put(&mut ack, ACK_AT, connection.ack);
        world.give(&ack, now);
        world.settle(now);
    })
}

fn ack() -> Box<dyn FnMut()> {
    let (mut world, mut connection, mut ack) = warm_download();
    Box::new(move || {
        let now = world.now();
        world.engine.read_space(connection.socket).expect("there is room");
        world.engine.read_done(connection.socket, SIZE, now);
        world.settle(now);
        while world.engine.poll_transmit(now).is_some() {}
        connection.ack = connection.ack.wrapping_add(SIZE as u32);
        put(&mut ack, ACK_AT, connection.ack);
        measured::consumed(&mut world.engine, &ack, now);
    })
}

/// A port that no flow has.
fn next(port: u16) -> u16 {
    if port == u16::MAX { 1_024 } else { port + 1 }
}

fn syn_case() -> Box<dyn FnMut()> {
    let mut world = World::new();
    let mut port = 1_024;
    Box::new(move || {
        port = next(port);
        let packet = syn(APP, port);
        let now = world.now();
        let socket = measured::syn(&mut world.engine, &packet, now);
        world.engine.handle_socket_error(socket, SocketError::Refused, now);
        world.settle(now);
        world.drain(now);
    })
}

fn connection() -> Box<dyn FnMut()> {
    let mut world = World::new();
    let mut port = 1_024;
    Box::new(move || {
        port = next(port);
        let of = |flags| tcp_packet((APP, REMOTE), &segment(port, ISN + 1, 0, flags, &[]));
        let now = world.now();
        let (syn, mut ack, reset) = (syn(APP, port), of(TcpFlags::ACK), of(TcpFlags::RST));
        measured::connection(&mut world.engine, &syn, &mut ack, &reset, now);
        assert_eq!(world.engine.tcp_flows(), 0, "it is over");
    })
}

/// Any port but that of names.
const UDP_PORT: u16 = 4_433;

/// An association that is open, the app's datagram, and the relay's socket.
fn association() -> (World, Vec<u8>, ztun::engine::SocketId) {
    let mut world = World::new();
    let packet = udp_packet((APP, REMOTE), UDP_PORT, &[7; 64]);
    let now = world.now();
    world.give(&packet, now);
    let opened = world.settle(now);
    let [_control, socket] = opened[..] else { panic!("a datagram opens {opened:?}") };
    (world, packet, socket)
}

fn datagram_out() -> Box<dyn FnMut()> {
    let (mut world, packet, _) = association();
    Box::new(move || {
        let now = world.now();
        measured::datagram_out(&mut world.engine, &packet, now);
    })
}

fn datagram_in() -> Box<dyn FnMut()> {
    let (mut world, _, socket) = association();
    let mut octets = vec![0, 0, 0, 1, 203, 0, 113, 5];
    octets.extend_from_slice(&UDP_PORT.to_be_bytes());
    octets.extend_from_slice(&[7; 64]);
    Box::new(move || {
        let now = world.now();
        measured::datagram_in(&mut world.engine, socket, None, &octets, now);
    })
}
