//! ICMP (RFC 792, RFC 1191, RFC 1812) and ICMPv6 (RFC 4443) under one set of names.

use super::WireError;
use super::checksum::Checksum;
use super::ip::protocol;
use core::net::IpAddr;

/// What an error message reports, in the words common to both versions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Unreachable {
    /// No route (v4 3/0, v6 1/0).
    Network,
    /// Address unreachable (v4 3/1, v6 1/3).
    Host,
    /// Protocol unreachable (v4 3/2, v6 4/1).
    Protocol,
    /// Port unreachable (v4 3/3, v6 1/4).
    Port,
    /// Administratively prohibited (v4 3/13, v6 1/1).
    Prohibited,
}

/// An ICMP message.
#[derive(Clone, Copy, Debug)]
pub enum IcmpMessage<'p> {
    /// Echo request: identifier, sequence number, data.
    EchoRequest {
        /// Identifier.
        id: u16,
        /// Sequence number.
        seq: u16,
        /// Data to be echoed.
        data: &'p [u8],
    },
    /// Echo reply.
    EchoReply {
        /// Identifier.
        id: u16,
        /// Sequence number.
        seq: u16,
        /// Data echoed.
        data: &'p [u8],
    },
    /// Destination unreachable, quoting the packet that could not be delivered.
    Unreachable {
        /// Which kind; `None` for codes without a common name (soft errors).
        why: Option<Unreachable>,
        /// The quoted packet, possibly cut short.
        quoted: &'p [u8],
    },
    /// Fragmentation needed / packet too big (RFC 1191 4, RFC 4443 3.2).
    PacketTooBig {
        /// Next-hop MTU.
        mtu: u32,
        /// The quoted packet.
        quoted: &'p [u8],
    },
    /// Time exceeded.
    TimeExceeded {
        /// Whether it was reassembly (code 1) rather than transit (code 0).
        reassembly: bool,
        /// The quoted packet.
        quoted: &'p [u8],
    },
    /// Anything else: neighbour discovery, router advertisements, source quench, redirects, unknown types.
    Other {
        /// ICMP type.
        kind: u8,
        /// ICMP code.
        code: u8,
    },
}

impl<'p> IcmpMessage<'p> {
    /// Reads a message; `src` and `dst` give version and, for ICMPv6, the pseudo-header. The checksum is always verified.
    pub fn parse(src: IpAddr, dst: IpAddr, octets: &'p [u8]) -> Result<IcmpMessage<'p>, WireError> {
        let header: &[u8; HEADER] = octets.first_chunk().ok_or(WireError::Truncated)?;
        let v6 = src.is_ipv6();
        if sum(v6, src, dst, octets).finish() != 0 {
            return Err(WireError::Checksum);
        }
        let rest = &octets[HEADER..];
        let (kind, code) = (header[0], header[1]);
        let (id, seq) =
            (u16::from_be_bytes([header[4], header[5]]), u16::from_be_bytes([header[6], header[7]]));
        let word = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        Ok(match (v6, kind, code) {
            (false, 8, 0) | (true, 128, 0) => IcmpMessage::EchoRequest { id, seq, data: rest },
            (false, 0, 0) | (true, 129, 0) => IcmpMessage::EchoReply { id, seq, data: rest },
            (false, 3, 4) => IcmpMessage::PacketTooBig { mtu: seq.into(), quoted: rest },
            (true, 2, _) => IcmpMessage::PacketTooBig { mtu: word, quoted: rest },
            (false, 3, _) | (true, 1, _) => {
                IcmpMessage::Unreachable { why: reason(v6, kind, code), quoted: rest }
            }
            (true, 4, 1) => IcmpMessage::Unreachable { why: Some(Unreachable::Protocol), quoted: rest },
            (false, 11, 0 | 1) | (true, 3, 0 | 1) => {
                IcmpMessage::TimeExceeded { reassembly: code == 1, quoted: rest }
            }
            _ => IcmpMessage::Other { kind, code },
        })
    }

    /// Octets that [`IcmpMessage::emit`] writes.
    pub fn buffer_len(&self) -> usize {
        HEADER
            + match self {
                IcmpMessage::EchoRequest { data, .. } | IcmpMessage::EchoReply { data, .. } => data.len(),
                IcmpMessage::Unreachable { quoted, .. }
                | IcmpMessage::PacketTooBig { quoted, .. }
                | IcmpMessage::TimeExceeded { quoted, .. } => quoted.len(),
                IcmpMessage::Other { .. } => 0,
            }
    }

    /// Writes the whole message with its checksum into the front of `buffer`; gives its length.
    /// `Other` is not for sending and writes only its type, code and zeroes.
    pub fn emit(&self, src: IpAddr, dst: IpAddr, buffer: &mut [u8]) -> usize {
        let v6 = src.is_ipv6();
        let (kind, code, word, data): (u8, u8, u32, &[u8]) = match *self {
            IcmpMessage::EchoRequest { id, seq, data } => {
                (if v6 { 128 } else { 8 }, 0, u32::from(id) << 16 | u32::from(seq), data)
            }
            IcmpMessage::EchoReply { id, seq, data } => {
                (if v6 { 129 } else { 0 }, 0, u32::from(id) << 16 | u32::from(seq), data)
            }
            IcmpMessage::Unreachable { why, quoted } => {
                let (kind, code) = number(v6, why.unwrap_or(Unreachable::Host));
                // A v6 parameter problem points at the next-header field of the quoted packet (RFC 4443 3.4).
                let pointer = if v6 && why == Some(Unreachable::Protocol) { 6 } else { 0 };
                (kind, code, pointer, quoted)
            }
            IcmpMessage::PacketTooBig { mtu, quoted } if v6 => (2, 0, mtu, quoted),
            IcmpMessage::PacketTooBig { mtu, quoted } => (3, 4, mtu & 0xffff, quoted),
            IcmpMessage::TimeExceeded { reassembly, quoted } => {
                (if v6 { 3 } else { 11 }, u8::from(reassembly), 0, quoted)
            }
            IcmpMessage::Other { kind, code } => (kind, code, 0, &[]),
        };
        let len = HEADER + data.len();
        let message = &mut buffer[..len];
        message[..4].copy_from_slice(&[kind, code, 0, 0]);
        message[4..HEADER].copy_from_slice(&word.to_be_bytes());
        message[HEADER..].copy_from_slice(data);
        let checksum = sum(v6, src, dst, message).finish();
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        len
    }
}

/// Octets in front of the data or the quoted packet.
const HEADER: usize = 8;

fn sum(v6: bool, src: IpAddr, dst: IpAddr, octets: &[u8]) -> Checksum {
    let length = u32::try_from(octets.len()).unwrap_or(u32::MAX);
    let start =
        if v6 { Checksum::pseudo_header(src, dst, protocol::ICMPV6, length) } else { Checksum::new() };
    start.with(octets)
}

fn reason(v6: bool, kind: u8, code: u8) -> Option<Unreachable> {
    const ALL: [Unreachable; 5] = [
        Unreachable::Network,
        Unreachable::Host,
        Unreachable::Protocol,
        Unreachable::Port,
        Unreachable::Prohibited,
    ];
    ALL.into_iter().find(|why| number(v6, *why) == (kind, code))
}

/// Type and code.
fn number(v6: bool, why: Unreachable) -> (u8, u8) {
    match (v6, why) {
        (false, Unreachable::Network) => (3, 0),
        (false, Unreachable::Host) => (3, 1),
        (false, Unreachable::Protocol) => (3, 2),
        (false, Unreachable::Port) => (3, 3),
        (false, Unreachable::Prohibited) => (3, 13),
        (true, Unreachable::Network) => (1, 0),
        (true, Unreachable::Prohibited) => (1, 1),
        (true, Unreachable::Host) => (1, 3),
        (true, Unreachable::Port) => (1, 4),
        (true, Unreachable::Protocol) => (4, 1),
    }
}

/// Whether an ICMP message of this type (first octet of the upper layer) is an error message; an
/// unknown type counts as an error, so that no error is ever sent about it (RFC 1812 4.3.2.7, RFC 4443 2.4).
pub fn is_error(v6: bool, kind: u8) -> bool {
    match v6 {
        // RFC 4443 2.1: the high bit tells informational messages from errors.
        true => kind < 128,
        // Echo, router discovery, timestamp, information and address mask are the queries of RFC 792, 950, 1256.
        false => !matches!(kind, 0 | 8 | 9 | 10 | 13..=18),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addrs(v6: bool) -> (IpAddr, IpAddr) {
        let (src, dst) = if v6 { ("2001:db8::1", "2001:db8::2") } else { ("192.0.2.1", "198.51.100.2") };
        (src.parse().expect("address"), dst.parse().expect("address"))
    }

    fn emit(v6: bool, message: &IcmpMessage<'_>) -> Vec<u8> {
        let (src, dst) = addrs(v6);
        let mut octets = vec![0; message.buffer_len()];
        assert_eq!(message.emit(src, dst, &mut octets), octets.len());
        octets
    }

    #[test]
    fn errors_have_the_numbers_of_their_version() {
        let first = |v6, why| {
            let octets = emit(v6, &IcmpMessage::Unreachable { why: Some(why), quoted: b"quoted" });
            (octets[0], octets[1])
        };
        assert_eq!(first(false, Unreachable::Port), (3, 3));
        assert_eq!(first(true, Unreachable::Port), (1, 4));
        assert_eq!(first(false, Unreachable::Prohibited), (3, 13));
        assert_eq!(first(true, Unreachable::Prohibited), (1, 1));
        assert_eq!(first(true, Unreachable::Protocol), (4, 1));
    }

    #[test]
    fn errors_come_back_with_their_meaning() {
        for v6 in [false, true] {
            let (src, dst) = addrs(v6);
            for why in [
                Unreachable::Network,
                Unreachable::Host,
                Unreachable::Protocol,
                Unreachable::Port,
                Unreachable::Prohibited,
            ] {
                let octets = emit(v6, &IcmpMessage::Unreachable { why: Some(why), quoted: b"q" });
                let parsed = IcmpMessage::parse(src, dst, &octets).expect("valid");
                assert!(
                    matches!(parsed, IcmpMessage::Unreachable { why: Some(back), quoted: b"q" } if back == why),
                    "{parsed:?}"
                );
            }
            let octets = emit(v6, &IcmpMessage::PacketTooBig { mtu: 1_400, quoted: b"q" });
            assert!(matches!(
                IcmpMessage::parse(src, dst, &octets),
                Ok(IcmpMessage::PacketTooBig { mtu: 1_400, .. })
            ));
            let octets = emit(v6, &IcmpMessage::TimeExceeded { reassembly: true, quoted: b"q" });
            assert!(matches!(
                IcmpMessage::parse(src, dst, &octets),
                Ok(IcmpMessage::TimeExceeded { reassembly: true, .. })
            ));
        }
    }

    #[test]
    fn a_wrong_checksum_is_refused() {
        let (src, dst) = addrs(true);
        let mut octets = emit(true, &IcmpMessage::EchoRequest { id: 1, seq: 2, data: b"ping" });
        octets[8] ^= 1;
        assert_eq!(IcmpMessage::parse(src, dst, &octets).map(|_| ()), Err(WireError::Checksum));
    }

    #[test]
    fn unknown_types_count_as_errors() {
        assert!(is_error(false, 3) && is_error(false, 200) && !is_error(false, 8));
        assert!(is_error(true, 1) && is_error(true, 100) && !is_error(true, 128));
    }

    proptest! {
        /// Z9
        #[test]
        fn echo_is_parsed_back_whatever_its_data(v6: bool, id: u16, seq: u16, data in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (src, dst) = addrs(v6);
            let octets = emit(v6, &IcmpMessage::EchoReply { id, seq, data: &data });
            let parsed = IcmpMessage::parse(src, dst, &octets).expect("valid");
            let same = matches!(parsed, IcmpMessage::EchoReply { id: i, seq: s, data: d } if i == id && s == seq && d == data);
            prop_assert!(same);
        }

        #[test]
        fn arbitrary_octets_never_panic(v6: bool, octets in proptest::collection::vec(any::<u8>(), 0..60)) {
            let (src, dst) = addrs(v6);
            let mut octets = octets;
            if octets.len() >= 4 {
                octets[2..4].fill(0);
                let checksum = sum(v6, src, dst, &octets).finish();
                octets[2..4].copy_from_slice(&checksum.to_be_bytes());
            }
            let _outcome = IcmpMessage::parse(src, dst, &octets);
        }
    }
}
