//! Packets as an app's kernel makes them.

use std::net::{IpAddr, Ipv4Addr};
use ztun::wire::SeqNumber;
use ztun::wire::checksum::Checksum;
use ztun::wire::ip::{IpHeader, protocol};
use ztun::wire::tcp::{TcpFlags, TcpOptions, TcpSegment};
use ztun::wire::udp;

/// The app.
pub(crate) const APP: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1));
/// Whom it talks to.
pub(crate) const REMOTE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 5));
/// Its TCP port there.
pub(crate) const PORT: u16 = 443;

fn ip_header((src, dst): (IpAddr, IpAddr), protocol: u8) -> IpHeader {
    IpHeader { src, dst, protocol, hop_limit: 64, id: 0, dont_fragment: true, fragment: None }
}

/// A whole packet with its checksum in place.
pub(crate) fn tcp_packet(ends: (IpAddr, IpAddr), segment: &TcpSegment<'_>) -> Vec<u8> {
    let upper = segment.header_len() + segment.payload.len();
    let header = ip_header(ends, protocol::TCP);
    let mut packet = vec![0; header.header_len() + upper];
    let start = header.emit(&mut packet, upper);
    let at = start + segment.emit_header(&mut packet[start..]);
    packet[at..].copy_from_slice(segment.payload);
    let sum = Checksum::pseudo_header(ends.0, ends.1, protocol::TCP, upper as u32).with(&packet[start..]);
    packet[start + 16..start + 18].copy_from_slice(&sum.finish().to_be_bytes());
    packet
}

/// A datagram from port 5000 to `port`.
pub(crate) fn udp_packet(ends: (IpAddr, IpAddr), port: u16, payload: &[u8]) -> Vec<u8> {
    let header = ip_header(ends, protocol::UDP);
    let mut packet = vec![0; header.header_len() + udp::HEADER + payload.len()];
    let start = header.emit(&mut packet, udp::HEADER + payload.len());
    let at = start + udp::emit_header(&mut packet[start..], (ends.0, 5_000), (ends.1, port), payload);
    packet[at..].copy_from_slice(payload);
    packet
}

/// A segment to [`PORT`] without options.
pub(crate) fn segment(port: u16, seq: u32, ack: u32, flags: TcpFlags, payload: &[u8]) -> TcpSegment<'_> {
    TcpSegment {
        src_port: port,
        dst_port: PORT,
        seq: SeqNumber(seq),
        ack: SeqNumber(ack),
        flags,
        window: 0xffff,
        urgent: 0,
        options: TcpOptions::default(),
        payload,
    }
}
