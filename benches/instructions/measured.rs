//! What is counted: each function is what the driver asks of the engine for one packet. Callgrind knows them by the name of this module, so nothing else has
//! it, and they have no closures.

use std::net::SocketAddr;
use ztun::engine::{Command, Engine, Output, SocketId};
use ztun::stack::Packet;
use ztun::time::Instant;

/// Commands and packets until there are none, as at the end of each turn; octets of packets.
#[inline(always)]
fn give(engine: &mut Engine, now: Instant) -> usize {
    while engine.poll_command(now).is_some() {}
    let mut octets = 0;
    while let Some(packet) = engine.poll_transmit(now) {
        octets += packet.len();
    }
    octets
}

/// A segment whose octets go to the socket at once; the octets of its ACK.
#[inline(never)]
pub(crate) fn tcp_in(engine: &mut Engine, packet: &[u8], now: Instant) -> usize {
    // The kernel has left the checksum to be filled in.
    let Output::Stream { flow, payload, .. } =
        engine.handle_packet(Packet { verify_checksum: false, ..Packet::new(packet) }, now)
    else {
        panic!("the octets are next")
    };
    engine.stream_written(flow, payload, payload.len(), now);
    give(engine, now)
}

/// Octets of the socket, on their way to the app; the octets of their packets.
#[inline(never)]
pub(crate) fn tcp_out(engine: &mut Engine, socket: SocketId, octets: usize, now: Instant) -> usize {
    let Some((front, back)) = engine.read_space(socket) else { panic!("there is room") };
    let octets = octets.min(front.len() + back.len());
    engine.read_done(socket, octets, now);
    give(engine, now)
}

/// A packet that is dealt with inside: an ACK.
#[inline(never)]
pub(crate) fn consumed(engine: &mut Engine, packet: &[u8], now: Instant) -> usize {
    let Output::None = engine.handle_packet(Packet { verify_checksum: false, ..Packet::new(packet) }, now)
    else {
        panic!("there is nothing in it to carry")
    };
    give(engine, now)
}

/// A SYN, up to the connection that it asks for.
#[inline(never)]
pub(crate) fn syn(engine: &mut Engine, packet: &[u8], now: Instant) -> SocketId {
    let Output::None = engine.handle_packet(Packet { verify_checksum: false, ..Packet::new(packet) }, now)
    else {
        panic!("a SYN carries nothing")
    };
    match engine.poll_command(now) {
        Some(Command::Dial { socket, .. }) => socket,
        other => panic!("a SYN gives {other:?}"),
    }
}

/// A datagram of the app; its octets with the header that the proxy wants.
#[inline(never)]
pub(crate) fn datagram_out(engine: &mut Engine, packet: &[u8], now: Instant) -> usize {
    match engine.handle_packet(Packet { verify_checksum: false, ..Packet::new(packet) }, now) {
        Output::Datagram { header, payload, .. } => header.as_slice().len() + payload.len(),
        other @ (Output::None | Output::Reassembled(_) | Output::Stream { .. }) => {
            panic!("a datagram gives {other:?}")
        }
    }
}

/// A datagram for the app; the octets of its packet.
#[inline(never)]
pub(crate) fn datagram_in(
    engine: &mut Engine,
    socket: SocketId,
    from: Option<SocketAddr>,
    octets: &[u8],
    now: Instant,
) -> usize {
    let Some(mut datagram) = engine.handle_datagram(socket, from, octets, now) else {
        panic!("the datagram is for someone")
    };
    let mut octets = 0;
    while let Some(packet) = datagram.next_packet() {
        octets += packet.len();
    }
    octets
}

/// Where the ACK of the SYN-ACK says how far it has got, in a packet over IPv4 without options.
const ACK_AT: usize = 28;
const SEQ_AT: usize = 24;

/// A connection from its SYN to its RST: dialled, granted by the proxy, accepted, reset. `ack` and `reset` lack only the number that the
/// SYN-ACK tells.
#[inline(never)]
pub(crate) fn connection(engine: &mut Engine, syn: &[u8], ack: &mut [u8], reset: &[u8], now: Instant) {
    let Output::None = engine.handle_packet(Packet { verify_checksum: false, ..Packet::new(syn) }, now)
    else {
        panic!("a SYN carries nothing")
    };
    let socket = match engine.poll_command(now) {
        Some(Command::Dial { socket, .. }) => socket,
        other => panic!("a SYN gives {other:?}"),
    };
    engine.handle_connected(socket, now);
    write_all(engine, socket, now);
    read(engine, socket, &[5, 0], now);
    write_all(engine, socket, now);
    read(engine, socket, &[5, 0, 0, 1, 10, 0, 0, 1, 0x1f, 0x90], now);
    while engine.poll_command(now).is_some() {}
    let Some(answer) = engine.poll_transmit(now) else { panic!("the proxy has granted it: a SYN-ACK") };
    let number = u32::from_be_bytes([
        answer.header[SEQ_AT],
        answer.header[SEQ_AT + 1],
        answer.header[SEQ_AT + 2],
        answer.header[SEQ_AT + 3],
    ]);
    ack[ACK_AT..ACK_AT + 4].copy_from_slice(&number.wrapping_add(1).to_be_bytes());
    for packet in [&*ack, reset] {
        let Output::None =
            engine.handle_packet(Packet { verify_checksum: false, ..Packet::new(packet) }, now)
        else {
            panic!("there is nothing in it to carry")
        };
        give(engine, now);
    }
}

/// What SOCKS5 has to say goes to the socket.
#[inline(always)]
fn write_all(engine: &mut Engine, socket: SocketId, now: Instant) {
    while let Some((front, back)) = engine.write_slices(socket) {
        let octets = front.len() + back.len();
        if octets == 0 {
            return;
        }
        engine.write_done(socket, octets, now);
    }
}

#[inline(always)]
fn read(engine: &mut Engine, socket: SocketId, octets: &[u8], now: Instant) {
    let Some((front, _)) = engine.read_space(socket) else { panic!("an answer is waited for") };
    front[..octets.len()].copy_from_slice(octets);
    engine.read_done(socket, octets.len(), now);
}
