//! UDP datagrams (RFC 768; RFC 8200 8.1 for the zero checksum).

use super::WireError;
use super::checksum::Checksum;
use super::ip::protocol;
use core::net::IpAddr;

/// Octets of a UDP header.
pub const HEADER: usize = 8;

/// A validated UDP datagram.
#[derive(Clone, Copy, Debug)]
pub struct UdpDatagram<'p> {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// The octets of data, as long as the length field says.
    pub payload: &'p [u8],
}

impl<'p> UdpDatagram<'p> {
    /// Reads a datagram from the upper layer of an IP packet. Length < 8 or beyond the packet is
    /// refused; a zero checksum is accepted over IPv4 and refused over IPv6.
    pub fn parse(
        src: IpAddr,
        dst: IpAddr,
        octets: &'p [u8],
        verify_checksum: bool,
    ) -> Result<UdpDatagram<'p>, WireError> {
        let header: &[u8; HEADER] = octets.first_chunk().ok_or(WireError::Truncated)?;
        let length = u16::from_be_bytes([header[4], header[5]]);
        let payload = octets.get(HEADER..usize::from(length)).ok_or(WireError::Length)?;
        let checksum = u16::from_be_bytes([header[6], header[7]]);
        if verify_checksum {
            if checksum == 0 && src.is_ipv6() {
                return Err(WireError::Checksum);
            }
            let sum =
                Checksum::pseudo_header(src, dst, protocol::UDP, length.into()).with(header).with(payload);
            if checksum != 0 && sum.finish() != 0 {
                return Err(WireError::Checksum);
            }
        }
        Ok(UdpDatagram {
            src_port: u16::from_be_bytes([header[0], header[1]]),
            dst_port: u16::from_be_bytes([header[2], header[3]]),
            payload,
        })
    }
}

/// Writes a header for `len` octets of payload into the front of `buffer`, with the sum of the pseudo-header where the checksum stands: whoever
/// sums the rest, or cuts it into datagrams, writes that. Gives 8. `len` must be at most 65,527.
pub fn emit_partial(buffer: &mut [u8], src: (IpAddr, u16), dst: (IpAddr, u16), len: usize) -> usize {
    debug_assert!(len <= usize::from(u16::MAX) - HEADER, "the caller checks the size");
    let length = u16::try_from(HEADER + len).unwrap_or(u16::MAX);
    let sum = Checksum::pseudo_header(src.0, dst.0, protocol::UDP, length.into()).partial();
    let header = &mut buffer[..HEADER];
    header[..2].copy_from_slice(&src.1.to_be_bytes());
    header[2..4].copy_from_slice(&dst.1.to_be_bytes());
    header[4..6].copy_from_slice(&length.to_be_bytes());
    header[6..8].copy_from_slice(&sum.to_be_bytes());
    HEADER
}

/// Writes a header for `payload` with its checksum (0 is sent as 0xffff) into the front of `buffer`; gives 8.
/// `payload` must be at most 65,527 octets.
pub fn emit_header(buffer: &mut [u8], src: (IpAddr, u16), dst: (IpAddr, u16), payload: &[u8]) -> usize {
    debug_assert!(payload.len() <= usize::from(u16::MAX) - HEADER, "the caller checks the size");
    let length = u16::try_from(HEADER + payload.len()).unwrap_or(u16::MAX);
    let header = &mut buffer[..HEADER];
    header[..2].copy_from_slice(&src.1.to_be_bytes());
    header[2..4].copy_from_slice(&dst.1.to_be_bytes());
    header[4..6].copy_from_slice(&length.to_be_bytes());
    header[6..8].fill(0);
    let sum = Checksum::pseudo_header(src.0, dst.0, protocol::UDP, length.into())
        .with(header)
        .with(payload)
        .finish();
    // RFC 768: a sum of zero is sent as all ones, since zero means that none was computed.
    let sum = if sum == 0 { 0xffff } else { sum };
    header[6..8].copy_from_slice(&sum.to_be_bytes());
    HEADER
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addrs(v6: bool) -> (IpAddr, IpAddr) {
        let (src, dst) = if v6 { ("2001:db8::1", "2001:db8::2") } else { ("192.0.2.1", "198.51.100.2") };
        (src.parse().expect("address"), dst.parse().expect("address"))
    }

    fn datagram(v6: bool, payload: &[u8]) -> Vec<u8> {
        let (src, dst) = addrs(v6);
        let mut octets = vec![0; HEADER];
        emit_header(&mut octets, (src, 1_000), (dst, 53), payload);
        octets.extend_from_slice(payload);
        octets
    }

    /// conformance 53
    #[test]
    fn a_zero_checksum_is_fine_over_ipv4_only() {
        for v6 in [false, true] {
            let (src, dst) = addrs(v6);
            let mut octets = datagram(v6, b"data");
            octets[6..8].fill(0);
            assert_eq!(UdpDatagram::parse(src, dst, &octets, true).is_ok(), !v6);
        }
    }

    /// conformance 53
    #[test]
    fn impossible_lengths_and_wrong_checksums_are_refused() {
        let (src, dst) = addrs(false);
        let good = datagram(false, b"data");
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut octets = good.clone();
            change(&mut octets);
            UdpDatagram::parse(src, dst, &octets, true).map(|_| ()).expect_err("refused")
        };
        assert_eq!(refused(&|octets| octets[5] = 7), WireError::Length);
        assert_eq!(refused(&|octets| octets[5] = 13), WireError::Length);
        assert_eq!(refused(&|octets| octets.truncate(7)), WireError::Truncated);
        assert_eq!(refused(&|octets| octets[9] ^= 4), WireError::Checksum);
        let mut padded = good.clone();
        padded.extend_from_slice(b"padding");
        assert_eq!(UdpDatagram::parse(src, dst, &padded, true).expect("valid").payload, b"data");
    }

    #[test]
    fn a_sum_of_zero_is_sent_as_all_ones() {
        // The payload is chosen as the complement of the sum of everything else.
        let bare = datagram(false, &[0, 0]);
        let sum = u16::from_be_bytes([bare[6], bare[7]]);
        let octets = datagram(false, &sum.to_be_bytes());
        assert_eq!(octets[6..8], [0xff, 0xff]);
        let (src, dst) = addrs(false);
        assert!(UdpDatagram::parse(src, dst, &octets, true).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed_back(v6: bool, payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (src, dst) = addrs(v6);
            let octets = datagram(v6, &payload);
            let parsed = UdpDatagram::parse(src, dst, &octets, true).expect("valid");
            prop_assert_eq!((parsed.src_port, parsed.dst_port, parsed.payload), (1_000, 53, &payload[..]));
        }

        #[test]
        fn arbitrary_octets_never_panic(v6: bool, octets in proptest::collection::vec(any::<u8>(), 0..60)) {
            let (src, dst) = addrs(v6);
            let _outcome = UdpDatagram::parse(src, dst, &octets, true);
        }
    }
}
