//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers, with the IPv6 extension chain walked to the upper layer.

use super::WireError;
use super::checksum::Checksum;
use core::net::IpAddr;

/// Upper-layer protocol numbers (IANA) that the stack handles.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// The longest header that [`IpHeader::emit`] writes: IPv6 with a fragment header.
pub const MAX_HEADER: usize = 48;

/// Where a fragment belongs (RFC 791 2.3, RFC 8200 4.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// Identification: 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// Octets from the start of the fragmentable part.
    pub offset: u32,
    /// Whether more fragments follow.
    pub more: bool,
}

/// A validated IP packet. `payload` is trimmed to what the length field says.
#[derive(Clone, Copy, Debug)]
pub struct IpPacket<'p> {
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same family as `src`.
    pub dst: IpAddr,
    /// Upper-layer protocol, after IPv6 extension headers.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// DSCP and ECN: the TOS octet or the traffic class.
    pub traffic_class: u8,
    /// IPv4 "don't fragment"; true for IPv6.
    pub dont_fragment: bool,
    /// Set when this is a fragment; then `payload` is its part of the upper layer.
    pub fragment: Option<Fragment>,
    /// Octets in front of `payload` (for IPv6 with all extension headers).
    pub header: &'p [u8],
    /// The upper layer.
    pub payload: &'p [u8],
}

impl<'p> IpPacket<'p> {
    /// Reads and checks one packet: version, header length, total length, IPv4 header checksum,
    /// IPv6 extension chain (hop-by-hop, destination options, routing with no segments left,
    /// fragment; bounded). Octets after the total length are ignored (RFC 1122 3.2.1).
    /// IPv4 source-route options are refused with [`WireError::Value`]; other options are ignored.
    pub fn parse(octets: &'p [u8]) -> Result<IpPacket<'p>, WireError> {
        match octets.first().ok_or(WireError::Truncated)? >> 4 {
            4 => parse_v4(octets),
            6 => parse_v6(octets),
            _ => Err(WireError::Version),
        }
    }
}

fn parse_v4(octets: &[u8]) -> Result<IpPacket<'_>, WireError> {
    let fixed: &[u8; 20] = octets.first_chunk().ok_or(WireError::Truncated)?;
    let header_len = usize::from(fixed[0] & 0x0f) * 4;
    if header_len < 20 {
        return Err(WireError::HeaderLength);
    }
    let header = octets.get(..header_len).ok_or(WireError::Truncated)?;
    let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    let payload = octets.get(header_len..total).ok_or(WireError::Length)?;
    if Checksum::new().with(header).finish() != 0 {
        return Err(WireError::Checksum);
    }
    if header_len > 20 && has_source_route(&header[20..]) {
        return Err(WireError::Value);
    }
    let flags = u16::from_be_bytes([fixed[6], fixed[7]]);
    let offset = u32::from(flags & 0x1fff) * 8;
    let more = flags & 0x2000 != 0;
    let id = u32::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    Ok(IpPacket {
        src: IpAddr::from([fixed[12], fixed[13], fixed[14], fixed[15]]),
        dst: IpAddr::from([fixed[16], fixed[17], fixed[18], fixed[19]]),
        protocol: fixed[9],
        hop_limit: fixed[8],
        traffic_class: fixed[1],
        dont_fragment: flags & 0x4000 != 0,
        fragment: (offset != 0 || more).then_some(Fragment { id, offset, more }),
        header,
        payload,
    })
}

/// Loose (131) and strict (137) source route: nothing may steer a packet around the tunnel (RFC 6274 3.13.2). An option with an
/// impossible length ends the search.
fn has_source_route(mut options: &[u8]) -> bool {
    loop {
        match options {
            [] | [0, ..] => return false,
            [131 | 137, ..] => return true,
            [1, rest @ ..] => options = rest,
            [_, len, ..] if *len >= 2 => options = options.get(usize::from(*len)..).unwrap_or_default(),
            [_, ..] => return false,
        }
    }
}

fn parse_v6(octets: &[u8]) -> Result<IpPacket<'_>, WireError> {
    let fixed: &[u8; 40] = octets.first_chunk().ok_or(WireError::Truncated)?;
    // A payload length of zero means a jumbogram (RFC 2675) or nothing at all; neither has an upper layer here.
    let length = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    let packet = octets.get(..40 + length).ok_or(WireError::Length)?;
    let mut src = [0; 16];
    src.copy_from_slice(&fixed[8..24]);
    let mut dst = [0; 16];
    dst.copy_from_slice(&fixed[24..40]);
    let chain = walk_extensions(fixed[6], &packet[40..])?;
    let header_len = 40 + chain.len;
    Ok(IpPacket {
        src: IpAddr::from(src),
        dst: IpAddr::from(dst),
        protocol: chain.protocol,
        hop_limit: fixed[7],
        traffic_class: fixed[0] << 4 | fixed[1] >> 4,
        dont_fragment: true,
        fragment: chain.fragment,
        header: &packet[..header_len],
        payload: &packet[header_len..],
    })
}

struct Chain {
    protocol: u8,
    fragment: Option<Fragment>,
    len: usize,
}

/// Extension headers in front of the upper layer; more than this many are refused (RFC 8504 5.3 allows a limit).
const MAX_EXTENSIONS: usize = 8;

fn walk_extensions(first: u8, octets: &[u8]) -> Result<Chain, WireError> {
    let mut chain = Chain { protocol: first, fragment: None, len: 0 };
    for position in 0..=MAX_EXTENSIONS {
        let rest = octets.get(chain.len..).ok_or(WireError::Extension)?;
        let len = match chain.protocol {
            // Hop-by-hop options stand first or nowhere (RFC 8200 4.1).
            extension::HOP_BY_HOP if position > 0 => return Err(WireError::Extension),
            extension::HOP_BY_HOP | extension::DESTINATION => options_len(rest)?,
            extension::ROUTING => {
                // Segments left would make this node a router (RFC 8200 4.4; RFC 5095 forbids type 0).
                if rest.get(3).ok_or(WireError::Extension)? != &0 {
                    return Err(WireError::Value);
                }
                options_len(rest)?
            }
            extension::FRAGMENT => {
                let header: &[u8; 8] = rest.first_chunk().ok_or(WireError::Extension)?;
                let field = u16::from_be_bytes([header[2], header[3]]);
                let id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                let fragment = Fragment { id, offset: u32::from(field & 0xfff8), more: field & 1 != 0 };
                chain.protocol = header[0];
                chain.len += 8;
                // A fragment that is the whole ("atomic") is no fragment (RFC 6946).
                if fragment.offset != 0 || fragment.more {
                    chain.fragment = Some(fragment);
                    return Ok(chain);
                }
                continue;
            }
            _ => return Ok(chain),
        };
        chain.protocol = rest[0];
        chain.len += len;
    }
    Err(WireError::Extension)
}

/// Length of an extension header that carries its own: in units of 8 octets, not counting the first 8.
fn options_len(rest: &[u8]) -> Result<usize, WireError> {
    let len = (usize::from(*rest.get(1).ok_or(WireError::Extension)?) + 1) * 8;
    if len > rest.len() { Err(WireError::Extension) } else { Ok(len) }
}

mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const DESTINATION: u8 = 60;
}

/// Source and destination out of the fixed header alone, whatever the rest looks like; for the front of a packet, as ICMP quotes it.
pub fn ends(octets: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match octets.first()? >> 4 {
        4 => {
            let ends: &[u8; 8] = octets.get(12..20)?.try_into().ok()?;
            let [a, b, c, d, e, f, g, h] = *ends;
            Some((IpAddr::from([a, b, c, d]), IpAddr::from([e, f, g, h])))
        }
        6 => {
            let src: [u8; 16] = octets.get(8..24)?.try_into().ok()?;
            let dst: [u8; 16] = octets.get(24..40)?.try_into().ok()?;
            Some((IpAddr::from(src), IpAddr::from(dst)))
        }
        _ => None,
    }
}

/// What [`IpHeader::emit`] needs to know to write a header.
#[derive(Clone, Copy, Debug)]
pub struct IpHeader {
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// Upper-layer protocol.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// IPv4 identification (RFC 6864: only meaningful when fragmented); IPv6 uses `fragment.id`.
    pub id: u16,
    /// IPv4 "don't fragment" bit.
    pub dont_fragment: bool,
    /// Write this as a fragment.
    pub fragment: Option<Fragment>,
}

impl IpHeader {
    /// Octets that [`IpHeader::emit`] writes: 20, 40, or 48 for an IPv6 fragment.
    pub fn header_len(&self) -> usize {
        match (self.src, self.dst, self.fragment) {
            (IpAddr::V4(_), IpAddr::V4(_), _) => 20,
            (_, _, None) => 40,
            (_, _, Some(_)) => 48,
        }
    }

    /// Writes the header for `payload_len` octets of upper layer into the front of `buffer`, with the
    /// IPv4 checksum in place; gives the header length. `buffer` must be at least that long and the packet at most 65,535 octets.
    pub fn emit(&self, buffer: &mut [u8], payload_len: usize) -> usize {
        let len = self.header_len();
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let total = len_u16(len + payload_len);
                let header = &mut buffer[..20];
                let (offset, more) =
                    self.fragment.map_or((0, false), |fragment| (fragment.offset, fragment.more));
                let flags = (offset / 8) as u16 & 0x1fff
                    | u16::from(more) << 13
                    | u16::from(self.dont_fragment) << 14;
                header[..2].copy_from_slice(&[0x45, 0]);
                header[2..4].copy_from_slice(&total.to_be_bytes());
                header[4..6].copy_from_slice(&self.id.to_be_bytes());
                header[6..8].copy_from_slice(&flags.to_be_bytes());
                header[8..12].copy_from_slice(&[self.hop_limit, self.protocol, 0, 0]);
                header[12..16].copy_from_slice(&src.octets());
                header[16..20].copy_from_slice(&dst.octets());
                let checksum = Checksum::new().with(header).finish();
                header[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            (IpAddr::V6(_) | IpAddr::V4(_), _) => {
                let length = len_u16(len - 40 + payload_len);
                let next = if self.fragment.is_some() { extension::FRAGMENT } else { self.protocol };
                let header = &mut buffer[..len];
                header[..4].copy_from_slice(&[0x60, 0, 0, 0]);
                header[4..6].copy_from_slice(&length.to_be_bytes());
                header[6..8].copy_from_slice(&[next, self.hop_limit]);
                header[8..24].copy_from_slice(&v6_octets(self.src));
                header[24..40].copy_from_slice(&v6_octets(self.dst));
                if let Some(fragment) = self.fragment {
                    let field = fragment.offset as u16 & 0xfff8 | u16::from(fragment.more);
                    header[40..42].copy_from_slice(&[self.protocol, 0]);
                    header[42..44].copy_from_slice(&field.to_be_bytes());
                    header[44..48].copy_from_slice(&fragment.id.to_be_bytes());
                }
            }
        }
        len
    }
}

fn v6_octets(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn len_u16(len: usize) -> u16 {
    debug_assert!(len <= usize::from(u16::MAX), "the caller fragments before");
    u16::try_from(len).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(v6: bool, fragment: Option<Fragment>) -> IpHeader {
        let (src, dst) = if v6 { ("2001:db8::1", "2001:db8::2") } else { ("192.0.2.1", "198.51.100.2") };
        IpHeader {
            src: src.parse().expect("address"),
            dst: dst.parse().expect("address"),
            protocol: protocol::UDP,
            hop_limit: 64,
            id: 0x1234,
            dont_fragment: !v6 && fragment.is_none(),
            fragment,
        }
    }

    fn packet(header: &IpHeader, payload: &[u8]) -> Vec<u8> {
        let mut octets = vec![0; header.header_len()];
        header.emit(&mut octets, payload.len());
        octets.extend_from_slice(payload);
        octets
    }

    fn with_checksum(mut octets: Vec<u8>, header_len: usize) -> Vec<u8> {
        octets[10..12].fill(0);
        let checksum = Checksum::new().with(&octets[..header_len]).finish();
        octets[10..12].copy_from_slice(&checksum.to_be_bytes());
        octets
    }

    #[test]
    fn octets_after_the_total_length_are_not_payload() {
        for v6 in [false, true] {
            let mut octets = packet(&header(v6, None), b"data");
            octets.extend_from_slice(b"padding");
            assert_eq!(IpPacket::parse(&octets).expect("valid").payload, b"data");
        }
    }

    /// conformance 45
    #[test]
    fn malformed_headers_are_named() {
        let good = packet(&header(false, None), b"data");
        assert_eq!(IpPacket::parse(&[]).map(|_| ()), Err(WireError::Truncated));
        assert_eq!(IpPacket::parse(&good[..19]).map(|_| ()), Err(WireError::Truncated));
        assert_eq!(IpPacket::parse(&good[..22]).map(|_| ()), Err(WireError::Length));
        let mut bad = good.clone();
        bad[0] = 0x55;
        assert_eq!(IpPacket::parse(&bad).map(|_| ()), Err(WireError::Version));
        bad[0] = 0x44;
        assert_eq!(IpPacket::parse(&bad).map(|_| ()), Err(WireError::HeaderLength));
        bad[0] = 0x45;
        bad[8] ^= 1;
        assert_eq!(IpPacket::parse(&bad).map(|_| ()), Err(WireError::Checksum));
        let mut short = good.clone();
        short[3] = 19;
        assert_eq!(IpPacket::parse(&with_checksum(short, 20)).map(|_| ()), Err(WireError::Length));
        let six = packet(&header(true, None), b"data");
        assert_eq!(IpPacket::parse(&six[..43]).map(|_| ()), Err(WireError::Length));
    }

    #[test]
    fn source_routes_are_refused_and_other_options_ignored() {
        let with = |options: [u8; 4]| {
            let mut octets = packet(&header(false, None), &[]);
            octets.extend_from_slice(&options);
            octets.extend_from_slice(b"data");
            octets[0] = 0x46;
            octets[3] = 28;
            with_checksum(octets, 24)
        };
        assert_eq!(IpPacket::parse(&with([1, 131, 3, 4])).map(|_| ()), Err(WireError::Value));
        assert_eq!(IpPacket::parse(&with([148, 4, 0, 0])).expect("router alert").payload, b"data");
        assert_eq!(IpPacket::parse(&with([148, 0, 131, 0])).expect("ends the search").payload, b"data");
    }

    #[test]
    fn an_extension_chain_is_walked_to_the_upper_layer() {
        let chain = |first: u8, octets: &[u8]| {
            let mut ip = header(true, None);
            ip.protocol = first;
            packet(&ip, octets)
        };
        // hop-by-hop, destination options, atomic fragment, UDP
        let octets =
            [&[60, 0, 1, 4, 0, 0, 0, 0][..], &[44, 0, 1, 4, 0, 0, 0, 0], &[17, 0, 0, 0, 0, 0, 0, 9], b"data"]
                .concat();
        let packet = chain(0, &octets);
        let parsed = IpPacket::parse(&packet).expect("valid");
        assert_eq!((parsed.protocol, parsed.payload, parsed.fragment), (17, &b"data"[..], None));
        let late = [&[0, 0, 1, 4, 0, 0, 0, 0][..], &[17, 0, 1, 4, 0, 0, 0, 0]].concat();
        assert_eq!(IpPacket::parse(&chain(60, &late)).map(|_| ()), Err(WireError::Extension));
        assert_eq!(
            IpPacket::parse(&chain(60, &[17, 9, 0, 0, 0, 0, 0, 0])).map(|_| ()),
            Err(WireError::Extension)
        );
        assert_eq!(
            IpPacket::parse(&chain(43, &[17, 0, 0, 1, 0, 0, 0, 0])).map(|_| ()),
            Err(WireError::Value)
        );
        let endless = [60, 0, 1, 4, 0, 0, 0, 0].repeat(20);
        assert_eq!(IpPacket::parse(&chain(60, &endless)).map(|_| ()), Err(WireError::Extension));
    }

    proptest! {
        #[test]
        fn arbitrary_octets_never_panic(octets in proptest::collection::vec(any::<u8>(), 0..200), version in 4u8..8) {
            let mut octets = octets;
            if let Some(first) = octets.first_mut() { *first = version << 4 | *first & 0x0f; }
            let _outcome = IpPacket::parse(&octets);
        }

        #[test]
        fn what_is_emitted_is_parsed_back(v6: bool, payload in proptest::collection::vec(any::<u8>(), 0..100), fragment in proptest::option::of((0u32..0x1fff, any::<bool>(), any::<u16>()))) {
            let fragment = fragment.map(|(offset, more, id)| Fragment { id: id.into(), offset: offset * 8, more })
                .filter(|fragment| fragment.offset != 0 || fragment.more);
            let mut wanted = header(v6, fragment);
            if let Some(fragment) = fragment { wanted.id = fragment.id as u16; }
            let octets = packet(&wanted, &payload);
            let parsed = IpPacket::parse(&octets).expect("valid");
            prop_assert_eq!((parsed.src, parsed.dst, parsed.protocol, parsed.hop_limit), (wanted.src, wanted.dst, wanted.protocol, 64));
            prop_assert_eq!(parsed.fragment, fragment);
            prop_assert_eq!(parsed.payload, &payload[..]);
        }

        /// etherparse, written by others, is the oracle.
        #[test]
        fn another_parser_agrees(payload in proptest::collection::vec(any::<u8>(), 0..100), flip: prop::sample::Index, mask: u8) {
            let mut octets = packet(&header(false, None), &payload);
            let at = flip.index(20);
            octets[at] ^= mask;
            let ours = IpPacket::parse(&octets);
            let other = etherparse::Ipv4HeaderSlice::from_slice(&octets);
            if let (Ok(ours), Ok(other)) = (&ours, &other) {
                prop_assert_eq!(ours.src, IpAddr::from(other.source()));
                prop_assert_eq!(ours.protocol, other.protocol().0);
                prop_assert_eq!(other.header_checksum(), other.to_header().calc_header_checksum());
            }
            prop_assert!(other.is_ok() || ours.is_err(), "we accept what the other refuses");
        }
    }
}
