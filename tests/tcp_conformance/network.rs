//! Statements 45 to 51 and 53: IP, ICMP and UDP at the stack's seam.

use crate::dsl::*;
use std::net::IpAddr;
use ztun::stack::{DropReason, Ingress, Packet, Refusal, StackConfig};
use ztun::wire::checksum::Checksum;
use ztun::wire::icmp::{IcmpMessage, Unreachable};
use ztun::wire::ip::{Fragment, IpHeader, IpPacket, protocol};
use ztun::wire::{Endpoint, udp};

fn header(family: Family, protocol: u8, fragment: Option<Fragment>) -> IpHeader {
    IpHeader {
        src: family.app(),
        dst: family.target(),
        protocol,
        hop_limit: 64,
        id: fragment.map_or(0, |fragment| fragment.id as u16),
        dont_fragment: fragment.is_none(),
        fragment,
    }
}

fn whole(header: IpHeader, upper: &[u8]) -> Vec<u8> {
    let mut octets = vec![0; header.header_len()];
    header.emit(&mut octets, upper.len());
    octets.extend_from_slice(upper);
    octets
}

fn datagram(family: Family, data: &[u8]) -> Vec<u8> {
    let mut upper = vec![0; udp::HEADER];
    udp::emit_header(&mut upper, (family.app(), 40_000), (family.target(), 53), data);
    upper.extend_from_slice(data);
    whole(header(family, protocol::UDP, None), &upper)
}

fn icmp(family: Family, message: &IcmpMessage<'_>) -> Vec<u8> {
    let proto = if family == Family::V4 { protocol::ICMP } else { protocol::ICMPV6 };
    let header = header(family, proto, None);
    let mut upper = vec![0; message.buffer_len()];
    message.emit(header.src, header.dst, &mut upper);
    whole(header, &upper)
}

/// An ICMP message of the stack: source, octets of the packet, and what `look` makes of it.
fn sent_icmp<T>(octets: &[u8], look: impl FnOnce(IcmpMessage<'_>) -> T) -> (IpAddr, T) {
    let packet = IpPacket::parse(octets).expect("valid");
    let message = IcmpMessage::parse(packet.src, packet.dst, packet.payload).expect("valid, checksum right");
    (packet.src, look(message))
}

fn write_ip_checksum(octets: &mut [u8]) {
    octets[10..12].fill(0);
    let sum = Checksum::new().with(&octets[..20]).finish();
    octets[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// conformance 45
#[test]
fn malformed_and_truncated_packets_are_dropped_in_silence() {
    both(|family| {
        let mut peer = Peer::new(family);
        let good = peer.syn().octets();
        let mut bad: Vec<Vec<u8>> = (0..good.len()).map(|len| good[..len].to_vec()).collect();
        for version in [0u8, 5, 7, 15] {
            let mut octets = good.clone();
            octets[0] = octets[0] & 0x0f | version << 4;
            bad.push(octets);
        }
        if family == Family::V4 {
            for ihl in 0..5 {
                let mut octets = good.clone();
                octets[0] = 0x40 | ihl;
                bad.push(octets);
            }
            let mut octets = good.clone();
            octets[11] ^= 1;
            bad.push(octets);
            for total in [0u16, 19, 41, u16::MAX] {
                let mut octets = good.clone();
                octets[2..4].copy_from_slice(&total.to_be_bytes());
                write_ip_checksum(&mut octets);
                if usize::from(total) != octets.len() {
                    bad.push(octets);
                }
            }
        }
        for octets in bad {
            assert!(peer.give_octets(&octets).is_err(), "{octets:02x?}");
            peer.take_nothing();
        }
        assert_eq!((peer.events.len(), peer.stack.tcp_flows().count()), (0, 0));
        peer.feed(&peer.syn());
    });
}

/// conformance 46
#[test]
fn fragments_in_any_order_make_the_datagram_and_an_overlap_ends_it() {
    both(|family| {
        let data = text(0, 3_000);
        let upper = datagram(family, &data)[usize::from(family.headers()) - 20..].to_vec();
        let piece = |id: u32, from: usize, to: usize| {
            let fragment = Fragment { id, offset: from as u32, more: to < upper.len() };
            whole(header(family, protocol::UDP, Some(fragment)), &upper[from..to])
        };
        let cuts = [(0, 1_000), (1_000, 2_000), (2_000, upper.len())];
        for (id, order) in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]].into_iter().enumerate() {
            let mut peer = Peer::new(family);
            for (n, index) in order.into_iter().enumerate() {
                let (from, to) = cuts[index];
                let octets = piece(id as u32, from, to);
                let Ok(result) = peer.stack.handle_packet(Packet::new(&octets), peer.now) else {
                    panic!("a fragment is taken");
                };
                match result {
                    Ingress::Consumed => assert!(n < 2),
                    Ingress::Reassembled(packet) => {
                        assert_eq!(n, 2);
                        let again = peer.stack.handle_packet(Packet::new(&packet), peer.now);
                        assert!(matches!(again, Ok(Ingress::Datagram { payload, .. }) if payload == data));
                    }
                    Ingress::Datagram { .. } | Ingress::Stream { .. } => panic!("a fragment"),
                }
            }
        }
        // An overlap condemns the whole datagram, in silence (RFC 5722 4).
        let mut peer = Peer::new(family);
        assert_eq!(peer.give_octets(&piece(9, 0, 1_000)), Ok(()));
        assert_eq!(peer.give_octets(&piece(9, 904, 2_000)), Err(DropReason::BadFragment));
        assert_eq!(peer.give_octets(&piece(9, 2_000, upper.len())), Err(DropReason::BadFragment));
        assert!(peer.take_octets().is_empty());
    });
}

/// conformance 46
#[test]
fn a_datagram_that_is_not_complete_in_time_is_dropped_and_told_of() {
    both(|family| {
        let upper = datagram(family, &text(0, 3_000))[usize::from(family.headers()) - 20..].to_vec();
        for first in [true, false] {
            let mut peer = Peer::new(family);
            let (offset, part) = if first { (0, &upper[..1_000]) } else { (1_000, &upper[1_000..2_000]) };
            let fragment = Fragment { id: 1, offset, more: true };
            peer.give_octets(&whole(header(family, protocol::UDP, Some(fragment)), part)).expect("taken");
            peer.now = peer.now + ms(59_900);
            peer.stack.handle_timeout(peer.now);
            assert!(peer.take_octets().is_empty(), "60 s are not over");
            peer.now = peer.now + secs(61);
            peer.stack.handle_timeout(peer.now);
            let errors = peer.take_octets();
            // RFC 1122 3.3.2: only when the first fragment has come.
            assert_eq!(errors.len(), usize::from(first));
            for error in errors {
                let (src, exceeded) = sent_icmp(&error, |message| {
                    matches!(message, IcmpMessage::TimeExceeded { reassembly: true, .. })
                });
                assert_eq!((src, exceeded), (family.target(), true));
            }
            assert_eq!(peer.stack.poll_timeout(), None);
        }
    });
}

/// conformance 47
#[test]
fn no_error_is_sent_about_errors_groups_later_fragments_and_bad_sources() {
    both(|family| {
        let unknown = 253;
        let mut peer = Peer::new(family);
        // An unknown protocol is answered ...
        assert_eq!(
            peer.give_octets(&whole(header(family, unknown, None), &[1; 20])),
            Err(DropReason::Protocol)
        );
        let error = peer.take_octets();
        assert_eq!(error.len(), 1);
        // ... but none of these is.
        let later = Fragment { id: 1, offset: 800, more: false };
        let mut group = header(family, unknown, None);
        group.dst = addr(if family == Family::V4 { "224.0.0.5" } else { "ff02::5" });
        let mut bad_source = header(family, unknown, None);
        bad_source.src = addr(if family == Family::V4 { "127.0.0.1" } else { "::1" });
        let quoted = datagram(family, b"x");
        let errors = [
            whole(header(family, unknown, Some(later)), &[1; 20]),
            whole(group, &[1; 20]),
            whole(bad_source, &[1; 20]),
            icmp(family, &IcmpMessage::Unreachable { why: Some(Unreachable::Port), quoted: &quoted }),
            icmp(family, &IcmpMessage::TimeExceeded { reassembly: false, quoted: &quoted }),
        ];
        for octets in errors {
            let _dropped_or_held = peer.give_octets(&octets);
            assert!(peer.take_octets().is_empty());
        }
    });
}

/// conformance 48
#[test]
fn errors_quote_what_the_rfcs_say_and_come_at_a_limited_rate() {
    both(|family| {
        let config = StackConfig { error_rate: 10, ..StackConfig::default() };
        let mut peer = Peer::with(family, config);
        let original = datagram(family, &text(0, 1_400));
        let most = if family == Family::V4 { 576 } else { 1_280 };
        let local = Endpoint::new(family.app(), 40_000);
        let remote = Endpoint::new(family.target(), 53);
        for _ in 0..100 {
            peer.stack.refuse_datagram(local, remote, &text(0, 1_400), Unreachable::Port, peer.now);
        }
        let errors = peer.take_octets();
        assert_eq!(errors.len(), 10);
        assert_eq!(errors[0].len(), most);
        let (src, same) = sent_icmp(&errors[0], |message| match message {
            IcmpMessage::Unreachable { why: Some(Unreachable::Port), quoted } => {
                // But for the identification, which means nothing in a packet that is not fragmented.
                quoted.len() >= usize::from(family.headers()) - 20 + 8
                    && original.ends_with(&text(0, 1_400))
                    && quoted[usize::from(family.headers()) - 20..]
                        == original[usize::from(family.headers()) - 20..quoted.len()]
            }
            IcmpMessage::EchoRequest { .. }
            | IcmpMessage::EchoReply { .. }
            | IcmpMessage::Unreachable { .. }
            | IcmpMessage::PacketTooBig { .. }
            | IcmpMessage::TimeExceeded { .. }
            | IcmpMessage::Other { .. } => false,
        });
        assert_eq!((src, same), (family.target(), true));
        peer.now = peer.now + secs(1);
        peer.stack.refuse_datagram(local, remote, b"later", Unreachable::Port, peer.now);
        assert_eq!(peer.take_octets().len(), 1);
    });
}

/// conformance 48, 52: a refused SYN may be answered by ICMP, which quotes it.
#[test]
fn a_syn_refused_by_icmp_is_quoted() {
    both(|family| {
        let mut peer = Peer::new(family);
        peer.accepting = false;
        peer.feed(&peer.syn());
        let (flow, now) = (peer.flow.expect("a SYN"), peer.now);
        peer.stack.tcp(flow).expect("waiting").refuse(Refusal::Icmp(Unreachable::Host), now);
        let errors = peer.take_octets();
        assert_eq!(errors.len(), 1);
        let syn = peer.syn().octets();
        let upper = usize::from(family.headers()) - 20;
        let (src, same) = sent_icmp(&errors[0], |message| {
            // Ports and sequence number, by which the app's kernel finds its socket.
            matches!(message, IcmpMessage::Unreachable { why: Some(Unreachable::Host), quoted }
                if quoted[upper..upper + 8] == syn[upper..upper + 8])
        });
        assert_eq!((src, same), (family.target(), true));
    });
}

/// A peer with data in flight: the first packet as sent, and its segments.
fn in_flight(family: Family) -> (Peer, Vec<u8>, Vec<Seg>) {
    let mut peer = Peer::new(family).with_sack().open();
    peer.write(&text(0, 14_000));
    let packets = peer.take_octets();
    let segments = packets.iter().map(|octets| Seg::parse(octets)).collect();
    (peer, packets[0].clone(), segments)
}

/// conformance 49, RFC 5927 4.1
#[test]
fn packet_too_big_is_believed_only_about_octets_in_flight() {
    both(|family| {
        let (mut peer, first, segments) = in_flight(family);
        let upper = usize::from(family.headers()) - 20;
        let mut forged = first.clone();
        forged[upper + 4..upper + 8].copy_from_slice(&(peer.iss - 5).0.to_be_bytes());
        let blind = icmp(family, &IcmpMessage::PacketTooBig { mtu: 1_300, quoted: &forged[..upper + 8] });
        assert_eq!(peer.give_octets(&blind), Err(DropReason::IcmpIgnored));
        peer.take_nothing();

        let mut other = first.clone();
        other[upper + 2] ^= 1;
        let nobody = icmp(family, &IcmpMessage::PacketTooBig { mtu: 1_300, quoted: &other[..upper + 8] });
        assert_eq!(peer.give_octets(&nobody), Err(DropReason::IcmpIgnored));

        let honest = icmp(family, &IcmpMessage::PacketTooBig { mtu: 1_300, quoted: &first[..upper + 8] });
        assert_eq!(peer.give_octets(&honest), Ok(()));
        let again = peer.take();
        assert_eq!(again[0].seq, segments[0].seq, "sent again at once");
        assert!(again.iter().all(|segment| segment.packet <= 1_300), "{again:?}");
        peer.ack(segments.last().expect("segments").end());
        peer.take();
        // Larger again: not by an error.
        let larger = icmp(family, &IcmpMessage::PacketTooBig { mtu: 1_400, quoted: &first[..upper + 8] });
        assert_eq!(peer.give_octets(&larger), Err(DropReason::IcmpIgnored));
    });
}

/// conformance 49: never below the smallest MTU of the family.
#[test]
fn packet_too_big_does_not_make_segments_absurdly_small() {
    both(|family| {
        for mtu in [0, 1, 67] {
            let (mut peer, first, segments) = in_flight(family);
            let tiny = icmp(family, &IcmpMessage::PacketTooBig { mtu, quoted: &first });
            let taken = peer.give_octets(&tiny);
            let least = if family == Family::V4 { 68 } else { 1_280 };
            let mut sent = peer.take();
            sent.extend(peer.wait(ms(500)).into_iter().map(|(_, segment)| segment));
            let first_again: Vec<&Seg> =
                sent.iter().filter(|segment| segment.seq == segments[0].seq).collect();
            assert!(
                taken.is_err() || first_again.iter().all(|segment| segment.packet >= least),
                "{first_again:?}"
            );
            assert!(peer.is_alive());
        }
    });
}

/// conformance 50
#[test]
fn soft_errors_and_source_quench_never_end_a_connection() {
    both(|family| {
        let (mut peer, first, segments) = in_flight(family);
        let quoted = &first[..];
        let mut messages: Vec<IcmpMessage<'_>> = [
            Unreachable::Network,
            Unreachable::Host,
            Unreachable::Protocol,
            Unreachable::Port,
            Unreachable::Prohibited,
        ]
        .into_iter()
        .map(|why| IcmpMessage::Unreachable { why: Some(why), quoted })
        .collect();
        messages.push(IcmpMessage::TimeExceeded { reassembly: false, quoted });
        messages.push(IcmpMessage::TimeExceeded { reassembly: true, quoted });
        messages.push(IcmpMessage::Other { kind: 4, code: 0 });
        for message in &messages {
            assert!(peer.give_octets(&icmp(family, message)).is_err(), "{message:?}");
            peer.take_nothing();
        }
        assert!(peer.is_alive());
        peer.ack(segments.last().expect("segments").end());
        assert_eq!(peer.tcp().send_queue(), 0);
    });
}

/// conformance 51
#[test]
fn an_echo_comes_back_with_everything_of_the_request() {
    both(|family| {
        for len in [0, 1, 56, 1_400, 5_000] {
            let mut peer = Peer::new(family);
            let data = text(0, len);
            let request = icmp(family, &IcmpMessage::EchoRequest { id: 0xabcd, seq: 0xfffe, data: &data });
            assert_eq!(peer.give_octets(&request), Ok(()));
            let replies = peer.take_octets();
            assert!(replies.iter().all(|octets| octets.len() <= 1_500), "in fragments when it came so");
            if replies.len() == 1 {
                let (src, same) = sent_icmp(
                    &replies[0],
                    |message| matches!(message, IcmpMessage::EchoReply { id: 0xabcd, seq: 0xfffe, data: back } if back == data),
                );
                assert_eq!((src, same), (family.target(), true));
            } else {
                assert_eq!((len, replies.len()), (5_000, 4));
            }
        }
    });
}

/// conformance 53
#[test]
fn datagrams_with_a_wrong_length_or_checksum_are_dropped() {
    both(|family| {
        let mut peer = Peer::new(family);
        let good = datagram(family, b"payload");
        let at = usize::from(family.headers()) - 20;
        for length in [0u16, 7, 16, u16::MAX] {
            let mut octets = good.clone();
            octets[at + 4..at + 6].copy_from_slice(&length.to_be_bytes());
            assert_eq!(peer.give_octets(&octets), Err(DropReason::BadUdp), "length {length}");
        }
        let mut octets = good.clone();
        octets[at + 8] ^= 1;
        assert_eq!(peer.give_octets(&octets), Err(DropReason::BadChecksum));
        let mut zero = good;
        zero[at + 6..at + 8].fill(0);
        let result = peer.stack.handle_packet(Packet::new(&zero), peer.now);
        match family {
            Family::V4 => assert!(matches!(result, Ok(Ingress::Datagram { payload: b"payload", .. }))),
            Family::V6 => assert!(matches!(result, Err(DropReason::BadChecksum))),
        }
        assert!(peer.take_octets().is_empty());
    });
}
