//! SOCKS5 messages (RFC 1928) and user/password authentication (RFC 1929).
//!
//! Every parser works on a prefix of a stream: `Ok(None)` means that more octets are needed,
//! `Ok(Some((value, used)))` that the first `used` octets were the message; what follows belongs to the reader.

use super::{Endpoint, WireError};
use core::net::{IpAddr, Ipv4Addr};

/// The longest domain name that an address can carry.
pub const MAX_DOMAIN: usize = 255;
/// The longest UDP request header: RSV, FRAG, ATYP, 1 + 255, port.
pub const MAX_UDP_HEADER: usize = 262;

/// An authentication method (RFC 1928 3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// 0x00: no authentication.
    None,
    /// 0x02: user and password.
    Password,
    /// 0xff: none acceptable.
    NoneAcceptable,
    /// Any other number.
    Other(u8),
}

/// A command (RFC 1928 4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// 0x01.
    Connect,
    /// 0x02.
    Bind,
    /// 0x03.
    UdpAssociate,
    /// Any other number.
    Other(u8),
}

/// The reply field (RFC 1928 6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// 0x00.
    Succeeded,
    /// 0x01.
    GeneralFailure,
    /// 0x02.
    NotAllowed,
    /// 0x03.
    NetworkUnreachable,
    /// 0x04.
    HostUnreachable,
    /// 0x05.
    ConnectionRefused,
    /// 0x06.
    TtlExpired,
    /// 0x07.
    CommandNotSupported,
    /// 0x08.
    AddressTypeNotSupported,
    /// Any other number: a failure.
    Other(u8),
}

/// What a parser makes of octets from the network: a value and the octets that it took, `None` while more are needed.
pub type Parsed<T> = Result<Option<(T, usize)>, WireError>;

/// An address field: ATYP, address, port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Address<'a> {
    /// ATYP 1 or 4.
    Ip(Endpoint),
    /// ATYP 3: the name's octets as sent (1 to 255) and the port.
    Domain(&'a [u8], u16),
}

impl<'a> Address<'a> {
    /// Reads ATYP, address and port from the front of `octets`. ATYP other than 1, 3, 4 is
    /// [`WireError::Value`], a domain of no octets too.
    pub fn parse(octets: &'a [u8]) -> Parsed<Address<'a>> {
        let Some((kind, rest)) = octets.split_first() else { return Ok(None) };
        match *kind {
            ATYP_V4 => Ok(rest.first_chunk::<6>().map(|[a, b, c, d, p, q]| {
                let addr = IpAddr::from([*a, *b, *c, *d]);
                (Address::Ip(Endpoint::new(addr, u16::from_be_bytes([*p, *q]))), 7)
            })),
            ATYP_V6 => Ok(rest.split_first_chunk::<16>().and_then(|(addr, port)| {
                let port = u16::from_be_bytes(*port.first_chunk::<2>()?);
                Some((Address::Ip(Endpoint::new(IpAddr::from(*addr), port)), 19))
            })),
            ATYP_DOMAIN => match rest.split_first() {
                None => Ok(None),
                Some((0, _)) => Err(WireError::Value),
                Some((len, rest)) => {
                    let len = usize::from(*len);
                    Ok(rest.split_at_checked(len).and_then(|(name, port)| {
                        let port = u16::from_be_bytes(*port.first_chunk::<2>()?);
                        Some((Address::Domain(name, port), 4 + len))
                    }))
                }
            },
            _ => Err(WireError::Value),
        }
    }

    /// Octets that [`Address::emit`] writes.
    pub fn buffer_len(&self) -> usize {
        match self {
            Address::Ip(endpoint) if endpoint.addr.is_ipv4() => 7,
            Address::Ip(_) => 19,
            Address::Domain(name, _) => 4 + name.len().min(MAX_DOMAIN),
        }
    }

    /// Writes ATYP, address, port into the front of `buffer`; gives the length. A name is cut at 255 octets, which no name from
    /// [`Address::parse`] reaches beyond.
    pub fn emit(&self, buffer: &mut [u8]) -> usize {
        let len = self.buffer_len();
        let port = match self {
            Address::Ip(Endpoint { addr: IpAddr::V4(v4), port }) => {
                buffer[0] = ATYP_V4;
                buffer[1..5].copy_from_slice(&v4.octets());
                port
            }
            Address::Ip(Endpoint { addr: IpAddr::V6(v6), port }) => {
                buffer[0] = ATYP_V6;
                buffer[1..17].copy_from_slice(&v6.octets());
                port
            }
            Address::Domain(name, port) => {
                let octets = len - 4;
                buffer[0] = ATYP_DOMAIN;
                buffer[1] = octets as u8;
                buffer[2..2 + octets].copy_from_slice(&name[..octets]);
                port
            }
        };
        buffer[len - 2..len].copy_from_slice(&port.to_be_bytes());
        len
    }
}

const ATYP_V4: u8 = 1;
const ATYP_DOMAIN: u8 = 3;
const ATYP_V6: u8 = 4;
/// The protocol version.
pub const VERSION: u8 = 5;

impl From<u8> for Reply {
    fn from(number: u8) -> Reply {
        match number {
            0 => Reply::Succeeded,
            1 => Reply::GeneralFailure,
            2 => Reply::NotAllowed,
            3 => Reply::NetworkUnreachable,
            4 => Reply::HostUnreachable,
            5 => Reply::ConnectionRefused,
            6 => Reply::TtlExpired,
            7 => Reply::CommandNotSupported,
            8 => Reply::AddressTypeNotSupported,
            other => Reply::Other(other),
        }
    }
}

/// A reply to a request: `VER REP RSV ATYP BND.ADDR BND.PORT`, measured by its own ATYP.
/// A reply with REP != 0 is complete as soon as its second octet is known (`used` is then what was
/// given), since servers cut failures short; its address is the unspecified one.
pub fn parse_reply(octets: &[u8]) -> Parsed<(Reply, Address<'_>)> {
    if octets.first().is_some_and(|version| *version != VERSION) {
        return Err(WireError::Version);
    }
    let Some(reply) = octets.get(1).map(|number| Reply::from(*number)) else { return Ok(None) };
    if reply != Reply::Succeeded {
        let nowhere = Address::Ip(Endpoint::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0));
        return Ok(Some(((reply, nowhere), octets.len())));
    }
    let Some(rest) = octets.get(3..) else { return Ok(None) };
    Ok(Address::parse(rest)?.map(|(address, used)| ((reply, address), 3 + used)))
}

/// A UDP request header: `RSV FRAG ATYP DST.ADDR DST.PORT` (RFC 1928 7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UdpHeader<'a> {
    /// Fragment number; anything but 0 is to be dropped.
    pub frag: u8,
    /// The remote end.
    pub address: Address<'a>,
}

impl<'a> UdpHeader<'a> {
    /// Splits a datagram into header and data. RSV != 0 is [`WireError::Value`].
    pub fn parse(datagram: &'a [u8]) -> Result<(UdpHeader<'a>, &'a [u8]), WireError> {
        let [a, b, frag, rest @ ..] = datagram else { return Err(WireError::Truncated) };
        if (*a, *b) != (0, 0) {
            return Err(WireError::Value);
        }
        let (address, used) = Address::parse(rest)?.ok_or(WireError::Truncated)?;
        Ok((UdpHeader { frag: *frag, address }, &rest[used..]))
    }

    /// Writes the header into the front of `buffer`; gives its length.
    pub fn emit(&self, buffer: &mut [u8]) -> usize {
        buffer[..3].copy_from_slice(&[0, 0, self.frag]);
        3 + self.address.emit(&mut buffer[3..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_ip() -> impl Strategy<Value = IpAddr> {
        prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
    }

    /// conformance 58
    #[test]
    fn a_reply_is_measured_by_its_own_address_type() {
        let reply = [5, 0, 0, 3, 2, b'a', b'b', 0, 80, b'd', b'a', b't', b'a'];
        let ((kind, address), used) = parse_reply(&reply).expect("valid").expect("complete");
        assert_eq!((kind, address, used), (Reply::Succeeded, Address::Domain(b"ab", 80), 9));
    }

    #[test]
    fn a_failure_is_complete_at_its_second_octet() {
        assert_eq!(parse_reply(&[5]), Ok(None));
        let ((kind, _), used) = parse_reply(&[5, 4]).expect("valid").expect("complete");
        assert_eq!((kind, used), (Reply::HostUnreachable, 2));
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(parse_reply(&[4]), Err(WireError::Version));
        assert_eq!(parse_reply(&[5, 0, 0, 9]), Err(WireError::Value));
        assert_eq!(parse_reply(&[5, 0, 0, 3, 0]), Err(WireError::Value));
        assert_eq!(UdpHeader::parse(&[0, 0, 0]).map(|_| ()), Err(WireError::Truncated));
        assert_eq!(UdpHeader::parse(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]).map(|_| ()), Err(WireError::Value));
    }

    proptest! {
        #[test]
        fn addresses_survive_the_round_trip_and_every_split(ip in any_ip(), port: u16, name in proptest::collection::vec(any::<u8>(), 1..=255), tail in proptest::collection::vec(any::<u8>(), 0..9)) {
            for address in [Address::Ip(Endpoint::new(ip, port)), Address::Domain(&name, port)] {
                let mut octets = vec![0; address.buffer_len()];
                prop_assert_eq!(address.emit(&mut octets), octets.len());
                for end in 0..octets.len() {
                    prop_assert_eq!(Address::parse(&octets[..end]), Ok(None));
                }
                let whole = octets.len();
                octets.extend_from_slice(&tail);
                prop_assert_eq!(Address::parse(&octets), Ok(Some((address, whole))));
                let header = UdpHeader { frag: 0, address };
                let mut datagram = vec![0; MAX_UDP_HEADER];
                let len = header.emit(&mut datagram);
                datagram.truncate(len);
                datagram.extend_from_slice(&tail);
                prop_assert_eq!(UdpHeader::parse(&datagram), Ok((header, &tail[..])));
            }
        }

        #[test]
        fn arbitrary_octets_never_panic(octets in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _address = Address::parse(&octets);
            let _reply = parse_reply(&octets);
            let _datagram = UdpHeader::parse(&octets);
        }
    }
}
