//! Every parser of `wire` on arbitrary octets; what parses is written again and must parse to the same.

use super::source::Source;
use std::net::IpAddr;
use ztun::wire::checksum::{Checksum, update_u16};
use ztun::wire::icmp::{self, IcmpMessage};
use ztun::wire::ip::{IpHeader, IpPacket};
use ztun::wire::tcp::{TcpOptions, TcpSegment};
use ztun::wire::udp::{self, UdpDatagram};

pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let v6 = source.u8() % 2 == 1;
    let verify = source.u8() % 2 == 1;
    let ends: (IpAddr, IpAddr) = if v6 {
        ("fd7a::1".parse().expect("address"), "2001:db8::5".parse().expect("address"))
    } else {
        ("198.18.0.1".parse().expect("address"), "203.0.113.5".parse().expect("address"))
    };
    let octets = source.all();
    internet(octets, verify);
    upper(ends, octets, verify);
    sums(octets);
}

fn internet(octets: &[u8], verify: bool) {
    let Ok(packet) = IpPacket::parse(octets) else { return };
    assert_eq!(packet.src.is_ipv4(), packet.dst.is_ipv4());
    assert!(packet.header.len() + packet.payload.len() <= octets.len());
    assert!(octets.starts_with(packet.header));
    assert_eq!(ztun::wire::ip::ends(octets), Some((packet.src, packet.dst)));
    let header = IpHeader {
        src: packet.src,
        dst: packet.dst,
        protocol: packet.protocol,
        hop_limit: packet.hop_limit,
        id: packet.fragment.map_or(0, |fragment| fragment.id as u16),
        dont_fragment: packet.dont_fragment,
        fragment: packet.fragment,
    };
    if header.header_len() + packet.payload.len() <= usize::from(u16::MAX) {
        let mut again = vec![0; header.header_len()];
        assert_eq!(header.emit(&mut again, packet.payload.len()), again.len());
        again.extend_from_slice(packet.payload);
        let parsed = IpPacket::parse(&again).expect("what is written is valid");
        assert_eq!((parsed.src, parsed.dst, parsed.protocol), (packet.src, packet.dst, packet.protocol));
        assert_eq!((parsed.fragment, parsed.payload), (packet.fragment, packet.payload));
    }
    upper((packet.src, packet.dst), packet.payload, verify);
}

fn upper((src, dst): (IpAddr, IpAddr), octets: &[u8], verify: bool) {
    if let Ok(segment) = TcpSegment::parse(src, dst, octets, verify) {
        assert!(octets.ends_with(segment.payload));
        let mut header = vec![0; segment.header_len()];
        assert!(header.len() <= ztun::wire::tcp::MAX_HEADER);
        assert_eq!(segment.emit_header(&mut header), header.len());
        let again = TcpSegment::parse(src, dst, &header, false).expect("what is written is valid");
        assert_eq!((again.seq, again.ack, again.flags), (segment.seq, segment.ack, segment.flags));
        let without_sack = |options: TcpOptions| TcpOptions { sack: Default::default(), ..options };
        assert_eq!(without_sack(again.options), without_sack(segment.options));
        assert!(segment.options.sack.as_slice().starts_with(again.options.sack.as_slice()));
    }
    if let Ok(datagram) = UdpDatagram::parse(src, dst, octets, verify) {
        let mut again = vec![0; udp::HEADER];
        udp::emit_header(&mut again, (src, datagram.src_port), (dst, datagram.dst_port), datagram.payload);
        again.extend_from_slice(datagram.payload);
        let parsed = UdpDatagram::parse(src, dst, &again, true).expect("what is written is valid");
        assert_eq!((parsed.src_port, parsed.payload), (datagram.src_port, datagram.payload));
    }
    if let Ok(message) = IcmpMessage::parse(src, dst, octets) {
        let mut again = vec![0; message.buffer_len()];
        assert_eq!(message.emit(src, dst, &mut again), again.len());
        assert!(IcmpMessage::parse(src, dst, &again).is_ok(), "{message:?}");
        let kind = octets.first().copied().expect("a message has a type");
        let error = matches!(
            message,
            IcmpMessage::Unreachable { .. }
                | IcmpMessage::PacketTooBig { .. }
                | IcmpMessage::TimeExceeded { .. }
        );
        assert!(!error || icmp::is_error(src.is_ipv6(), kind));
    }
}

/// The sum does not depend on how the octets are cut, and an incremental update agrees with a new sum.
fn sums(octets: &[u8]) {
    let cut = octets.first().map_or(0, |first| usize::from(*first).min(octets.len()));
    let (a, b) = octets.split_at(cut);
    let whole = Checksum::new().with(octets).finish();
    assert_eq!(Checksum::new().with(a).with(b).finish(), whole);
    let mut naive = 0u32;
    for pair in octets.chunks(2) {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        naive += u32::from(word);
        naive = (naive & 0xffff) + (naive >> 16);
    }
    assert_eq!(whole, !(naive as u16));
    if octets.len() >= 4 {
        let mut changed = octets.to_vec();
        changed.swap(0, 2);
        changed.swap(1, 3);
        changed[0] ^= 0x5a;
        let word = |octets: &[u8], at: usize| u16::from_be_bytes([octets[at], octets[at + 1]]);
        let first = update_u16(whole, word(octets, 0), word(&changed, 0));
        let both = update_u16(first, word(octets, 2), word(&changed, 2));
        let again = Checksum::new().with(&changed).finish();
        // One's complement has two zeros.
        assert!(both == again || (both ^ again == 0xffff && (both == 0 || again == 0)), "{both:x} {again:x}");
    }
}
