//! The virtio-net header: what the kernel says about a packet of a device with `IFF_VNET_HDR`, and what it is told.
//!
//! `struct virtio_net_hdr` (virtio 1.2, 5.1.6), 10 octets in front of each packet, integers in the octet order of this machine:
//!
//! ```text
//!  0        1         2           4          6            8
//!  flags    gso_type  hdr_len     gso_size   csum_start   csum_offset
//! ```
//!
//! It comes from the kernel and is checked all the same. [`parse`] believes only what the packet itself bears out: a kind that was not asked for,
//! sizes that cannot be, or a place for the checksum outside of the packet make it malformed; a place that is not that of the
//! transport's checksum means that nobody vouches for that one, so it is verified. `hdr_len` is a hint for a device that copies headers apart
//! (5.1.6.3.1); it is written exactly and never read.

use crate::stack::Offload;

/// Octets of the header.
pub const HEADER: usize = 10;

/// The checksum field holds the sum of the pseudo-header only.
const NEEDS_CSUM: u8 = 1;
/// The checksum was verified.
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Stands beside a TCP type: the first segment has CWR set.
const GSO_ECN: u8 = 0x80;

/// Where in their headers TCP and UDP have the checksum.
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;
const TCP: u8 = 6;
const UDP: u8 = 17;
const UDP_HEADER: usize = 8;
const IPV6_HEADER: usize = 40;

/// Datagrams in one train that the kernel makes at most (`UDP_MAX_SEGMENTS`; 64 before Linux 6.10).
const MOST_DATAGRAMS: usize = 128;

/// What is known of a packet besides its octets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meta {
    /// Whether the transport's checksum has to be verified.
    pub verify_checksum: bool,
    /// Octets of payload in each segment of a super-segment, or in each datagram of a train; 0: it is one.
    pub segment_size: u16,
}

/// Why a header cannot be true of its packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// No kind that was asked for, or not that of the packet.
    Kind,
    /// `gso_size` is 0, or makes more datagrams than there can be.
    Size,
    /// The checksum would lie outside of the packet.
    Checksum,
}

/// Reads the header of `packet`, which starts with its IP header and may be of any length.
pub fn parse(header: &[u8; HEADER], packet: &[u8]) -> Result<Meta, Malformed> {
    let [flags, kind, _, _, size_0, size_1, start_0, start_1, offset_0, offset_1] = *header;
    let gso_size = u16::from_ne_bytes([size_0, size_1]);
    let checksum_start = u16::from_ne_bytes([start_0, start_1]);
    let checksum_offset = u16::from_ne_bytes([offset_0, offset_1]);
    let ends = transport(packet);
    let partial = flags & NEEDS_CSUM != 0;
    if partial && usize::from(checksum_start) + usize::from(checksum_offset) + 2 > packet.len() {
        return Err(Malformed::Checksum);
    }
    let summed = ends.as_ref().is_some_and(|ends| {
        let field = match ends.protocol {
            TCP => Some(TCP_CHECKSUM),
            UDP => Some(UDP_CHECKSUM),
            _ => None,
        };
        usize::from(checksum_start) == ends.start && Some(checksum_offset) == field
    });
    let verify_checksum = !(partial && summed || !partial && flags & DATA_VALID != 0);
    let meta = |segment_size| Ok(Meta { verify_checksum, segment_size });
    if kind == GSO_NONE {
        return meta(0);
    }
    let version = packet.first().map_or(0, |octet| octet >> 4);
    let Some(Transport { start, protocol }) = ends else { return Err(Malformed::Kind) };
    let header_len = match (kind, kind & !GSO_ECN, version, protocol) {
        (_, GSO_TCPV4, 4, TCP) | (_, GSO_TCPV6, 6, TCP) => tcp_header(packet, start),
        (GSO_UDP_L4, _, 4 | 6, UDP) => Some(UDP_HEADER),
        _ => None,
    };
    let payload = header_len.and_then(|len| packet.len().checked_sub(start + len)).ok_or(Malformed::Kind)?;
    if gso_size == 0 {
        return Err(Malformed::Size);
    }
    let size = usize::from(gso_size);
    if protocol == UDP && payload.div_ceil(size) > MOST_DATAGRAMS {
        return Err(Malformed::Size);
    }
    // What fits one segment is one, as it is for the kernel.
    meta(if payload > size { gso_size } else { 0 })
}

/// The header for a packet to the kernel that begins with `front`: at least its IP and transport headers.
pub fn describe(front: &[u8], offload: Option<Offload>) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let Some(Offload { checksum_start, checksum_offset, segment_size }) = offload else { return header };
    header[0] = NEEDS_CSUM;
    if segment_size > 0 {
        let start = usize::from(checksum_start);
        let v6 = front.first().is_some_and(|octet| octet >> 4 == 6);
        let (kind, len) = match (checksum_offset, v6) {
            (UDP_CHECKSUM, _) => (GSO_UDP_L4, UDP_HEADER),
            (_, false) => (GSO_TCPV4, tcp_header(front, start).unwrap_or(0)),
            (_, true) => (GSO_TCPV6, tcp_header(front, start).unwrap_or(0)),
        };
        header[1] = kind;
        let headers = u16::try_from(start + len).unwrap_or(u16::MAX);
        header[2..4].copy_from_slice(&headers.to_ne_bytes());
        header[4..6].copy_from_slice(&segment_size.to_ne_bytes());
    }
    header[6..8].copy_from_slice(&checksum_start.to_ne_bytes());
    header[8..10].copy_from_slice(&checksum_offset.to_ne_bytes());
    header
}

/// The transport header of a packet.
struct Transport {
    /// Where it starts.
    start: usize,
    protocol: u8,
}

/// Finds the transport header, behind IPv6 extension headers too.
fn transport(packet: &[u8]) -> Option<Transport> {
    let first = packet.first()?;
    match first >> 4 {
        4 => {
            let start = usize::from(first & 15) * 4;
            let protocol = *packet.get(9)?;
            (start >= 20).then_some(Transport { start, protocol })
        }
        6 => {
            let (mut start, mut protocol) = (IPV6_HEADER, *packet.get(6)?);
            // Hop-by-hop options, routing, destination options (RFC 8200 4.3, 4.4, 4.6).
            while matches!(protocol, 0 | 43 | 60) {
                let [next, len] = *packet.get(start..)?.first_chunk()?;
                protocol = next;
                start += 8 + 8 * usize::from(len);
            }
            Some(Transport { start, protocol })
        }
        _ => None,
    }
}

/// Octets of the TCP header at `start`.
fn tcp_header(packet: &[u8], start: usize) -> Option<usize> {
    let len = usize::from(packet.get(start + 12)? >> 4) * 4;
    (len >= 20).then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A packet with headers of both layers and `payload` octets.
    fn packet(v6: bool, protocol: u8, payload: usize) -> Vec<u8> {
        let (mut ip, header) = if v6 { (vec![0; 40], 6) } else { (vec![0; 20], 9) };
        ip[0] = if v6 { 0x60 } else { 0x45 };
        ip[header] = protocol;
        let transport = if protocol == TCP { 20 } else { 8 };
        let mut octets = [ip, vec![0; transport + payload]].concat();
        if protocol == TCP {
            let start = if v6 { 40 } else { 20 };
            octets[start + 12] = 0x50;
        }
        octets
    }

    fn header(flags: u8, kind: u8, fields: [u16; 4]) -> [u8; HEADER] {
        let mut header = [flags, kind, 0, 0, 0, 0, 0, 0, 0, 0];
        for (at, field) in fields.into_iter().enumerate() {
            header[2 + 2 * at..4 + 2 * at].copy_from_slice(&field.to_ne_bytes());
        }
        header
    }

    const WHOLE: Meta = Meta { verify_checksum: true, segment_size: 0 };

    #[test]
    fn what_the_kernel_gives_is_understood() {
        let vouched = |segment_size| Ok(Meta { verify_checksum: false, segment_size });
        for (v6, start, tcp) in [(false, 20, GSO_TCPV4), (true, 40, GSO_TCPV6)] {
            let segment = packet(v6, TCP, 3_000);
            assert_eq!(parse(&header(0, GSO_NONE, [0; 4]), &segment), Ok(WHOLE));
            assert_eq!(parse(&header(DATA_VALID, GSO_NONE, [0; 4]), &segment), vouched(0));
            assert_eq!(parse(&header(NEEDS_CSUM, GSO_NONE, [0, 0, start, 16]), &segment), vouched(0));
            for kind in [tcp, tcp | GSO_ECN] {
                let fields = [start + 20, 1_448, start, 16];
                assert_eq!(parse(&header(NEEDS_CSUM, kind, fields), &segment), vouched(1_448));
            }
            let train = packet(v6, UDP, 3_000);
            let fields = [start + 8, 1_000, start, 6];
            assert_eq!(parse(&header(NEEDS_CSUM, GSO_UDP_L4, fields), &train), vouched(1_000));
        }
    }

    /// The kernel leaves sums and segments of these to the device as it does of others.
    #[test]
    fn what_stands_behind_extension_headers_is_vouched_for() {
        for protocol in [TCP, UDP] {
            let mut octets = packet(true, protocol, 3_000);
            // Destination options (RFC 8200 4.6): eight octets, padded by PadN.
            octets.splice(40..40, [protocol, 0, 1, 4, 0, 0, 0, 0]);
            octets[6] = 60;
            let payload = u16::try_from(octets.len() - 40).unwrap();
            octets[4..6].copy_from_slice(&payload.to_be_bytes());
            let (kind, offset) = if protocol == TCP { (GSO_TCPV6, 16) } else { (GSO_UDP_L4, 6) };
            let judge = |kind| parse(&header(NEEDS_CSUM, kind, [0, 1_000, 48, offset]), &octets);
            assert_eq!(judge(kind), Ok(Meta { verify_checksum: false, segment_size: 1_000 }));
            assert_eq!(judge(GSO_NONE), Ok(Meta { verify_checksum: false, segment_size: 0 }));
        }
    }

    #[test]
    fn a_kind_that_was_not_asked_for_is_malformed() {
        let (v4, v6) = (packet(false, TCP, 3_000), packet(true, TCP, 3_000));
        let train = packet(false, UDP, 3_000);
        let judge = |kind, packet: &[u8]| parse(&header(NEEDS_CSUM, kind, [40, 1_000, 20, 6]), packet);
        for kind in [2, 3, 6, 7, 0x7f, GSO_ECN, GSO_ECN | GSO_UDP_L4, 0xff, GSO_TCPV6, GSO_UDP_L4] {
            assert_eq!(judge(kind, &v4), Err(Malformed::Kind), "{kind}");
        }
        assert_eq!(judge(GSO_TCPV4, &v6), Err(Malformed::Kind));
        assert_eq!(judge(GSO_TCPV4, &train), Err(Malformed::Kind));
        assert_eq!(judge(GSO_TCPV6, &train), Err(Malformed::Kind));
        // No IP header, and a TCP header that is cut or too short.
        assert_eq!(parse(&header(0, GSO_TCPV4, [0, 1_000, 0, 0]), &[]), Err(Malformed::Kind));
        assert_eq!(parse(&header(0, GSO_TCPV4, [0, 1_000, 0, 0]), &v4[..30]), Err(Malformed::Kind));
        let mut short = v4.clone();
        short[32] = 0x40;
        assert_eq!(parse(&header(0, GSO_TCPV4, [0, 1_000, 0, 0]), &short), Err(Malformed::Kind));
    }

    #[test]
    fn sizes_that_cannot_be_are_malformed_and_one_segment_is_no_train() {
        let judge = |size, payload| {
            parse(&header(NEEDS_CSUM, GSO_UDP_L4, [28, size, 20, 6]), &packet(false, UDP, payload))
                .map(|meta| meta.segment_size)
        };
        assert_eq!(judge(0, 100), Err(Malformed::Size));
        assert_eq!(judge(1, 129), Err(Malformed::Size));
        assert_eq!(judge(1, 128), Ok(1));
        assert_eq!(judge(100, 100), Ok(0));
        assert_eq!(judge(u16::MAX, 100), Ok(0));
        assert_eq!(judge(100, 0), Ok(0));
        let tcp =
            parse(&header(NEEDS_CSUM, GSO_TCPV4, [40, 0, 20, 16]), &packet(false, TCP, 100)).unwrap_err();
        assert_eq!(tcp, Malformed::Size);
    }

    #[test]
    fn a_checksum_elsewhere_is_not_vouched_for_and_one_outside_is_malformed() {
        let segment = packet(false, TCP, 100);
        for (start, offset) in [(20, 6), (21, 16), (0, 16), (20, 17), (40, 16)] {
            assert_eq!(parse(&header(NEEDS_CSUM, GSO_NONE, [0, 0, start, offset]), &segment), Ok(WHOLE));
            // The one flag does not stand for the other.
            let both = header(NEEDS_CSUM | DATA_VALID, GSO_NONE, [0, 0, start, offset]);
            assert_eq!(parse(&both, &segment), Ok(WHOLE));
        }
        for (start, offset) in [(20, 119), (139, 0), (u16::MAX, u16::MAX), (20, u16::MAX)] {
            let header = header(NEEDS_CSUM, GSO_NONE, [0, 0, start, offset]);
            assert_eq!(parse(&header, &segment), Err(Malformed::Checksum));
        }
        let other = packet(false, 1, 100);
        assert_eq!(parse(&header(NEEDS_CSUM, GSO_NONE, [0, 0, 20, 16]), &other), Ok(WHOLE));
    }

    #[test]
    fn the_length_of_the_headers_is_not_believed() {
        let train = packet(true, UDP, 3_000);
        for headers in [0, 1, 7, 47, 48, 49, 3_000, u16::MAX] {
            let meta = parse(&header(NEEDS_CSUM, GSO_UDP_L4, [headers, 1_000, 40, 6]), &train);
            assert_eq!(meta, Ok(Meta { verify_checksum: false, segment_size: 1_000 }));
        }
    }

    #[test]
    fn what_the_kernel_is_told_is_octet_for_octet_as_it_reads_it() {
        let mut segment = packet(false, TCP, 0);
        segment[32] = 0x80;
        segment.extend([0; 12]);
        let tcp = |segment_size| Offload { checksum_start: 20, checksum_offset: 16, segment_size };
        assert_eq!(describe(&segment, None), [0; HEADER]);
        assert_eq!(describe(&segment, Some(tcp(0))), header(1, 0, [0, 0, 20, 16]));
        assert_eq!(describe(&segment, Some(tcp(1_448))), header(1, 1, [52, 1_448, 20, 16]));
        let v6 = Offload { checksum_start: 40, checksum_offset: 16, segment_size: 1_440 };
        assert_eq!(describe(&packet(true, TCP, 9), Some(v6)), header(1, 4, [60, 1_440, 40, 16]));
        let train = Offload { checksum_start: 40, checksum_offset: 6, segment_size: 1_200 };
        assert_eq!(describe(&packet(true, UDP, 9), Some(train)), header(1, 5, [48, 1_200, 40, 6]));
        let train = Offload { checksum_start: 20, ..train };
        assert_eq!(describe(&packet(false, UDP, 9), Some(train)), header(1, 5, [28, 1_200, 20, 6]));
    }

    fn any_packet() -> impl Strategy<Value = Vec<u8>> {
        let noise = proptest::collection::vec(any::<u8>(), 0..200);
        let built =
            (any::<bool>(), prop_oneof![Just(TCP), Just(UDP), any::<u8>()], 0usize..4_000, 0usize..4_100)
                .prop_map(|(v6, protocol, payload, cut)| {
                    let mut octets = packet(v6, protocol, payload);
                    octets.truncate(cut);
                    octets
                });
        prop_oneof![noise, built]
    }

    proptest! {
        /// Any header on any packet, whole or cut: no panic, and what is believed is borne out by the packet.
        #[test]
        fn only_what_can_be_true_is_believed(octets: [u8; HEADER], packet in any_packet()) {
            let Ok(meta) = parse(&octets, &packet) else { return Ok(()) };
            if meta.segment_size > 0 {
                prop_assert!(packet.len() > usize::from(meta.segment_size));
                prop_assert_eq!(meta.segment_size, u16::from_ne_bytes([octets[4], octets[5]]));
                prop_assert_ne!(octets[1] & !GSO_ECN, GSO_NONE);
            }
            if !meta.verify_checksum {
                prop_assert!(octets[0] & (NEEDS_CSUM | DATA_VALID) != 0);
            }
        }

        /// The plausible ones, which arbitrary octets hardly ever are.
        #[test]
        fn nearly_right_headers_are_judged_without_a_panic(
            flags in 0u8..4, kind in prop_oneof![0u8..8, Just(0x81), Just(0x84), Just(0x85)], headers: u16,
            size in prop_oneof![0u16..3, 500u16..1_600, any::<u16>()], start in prop_oneof![Just(20u16), Just(40u16), any::<u16>()],
            offset in prop_oneof![Just(6u16), Just(16u16), any::<u16>()], packet in any_packet(),
        ) {
            let header = header(flags, kind, [headers, size, start, offset]);
            if let Ok(meta) = parse(&header, &packet) {
                prop_assert!(meta.segment_size == 0 || meta.segment_size == size);
            }
        }

        #[test]
        fn what_is_told_is_what_is_understood(v6: bool, udp: bool, payload in 2usize..3_000, size in 24u16..1_500) {
            let protocol = if udp { UDP } else { TCP };
            let octets = packet(v6, protocol, payload);
            let checksum_start = if v6 { 40 } else { 20 };
            let checksum_offset = if udp { 6 } else { 16 };
            let told = describe(&octets, Some(Offload { checksum_start, checksum_offset, segment_size: size }));
            let segment_size = if payload > usize::from(size) { size } else { 0 };
            prop_assert_eq!(parse(&told, &octets), Ok(Meta { verify_checksum: false, segment_size }));
        }
    }
}
