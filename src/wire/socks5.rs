//! SOCKS5 messages (RFC 1928) and user/password authentication (RFC 1929).
//!
//! Every parser works on a prefix of a stream: `Ok(None)` means that more octets are needed,
//! `Ok(Some((value, used)))` that the first `used` octets were the message; what follows belongs to the reader.

use super::{Endpoint, WireError};

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
    pub fn parse(_octets: &'a [u8]) -> Result<Option<(Address<'a>, usize)>, WireError> {
        todo!()
    }

    /// Octets that [`Address::emit`] writes.
    pub fn buffer_len(&self) -> usize {
        todo!()
    }

    /// Writes ATYP, address, port into the front of `buffer`; gives the length.
    pub fn emit(&self, _buffer: &mut [u8]) -> usize {
        todo!()
    }
}

/// A reply to a request: `VER REP RSV ATYP BND.ADDR BND.PORT`, measured by its own ATYP.
/// A reply with REP != 0 is complete as soon as its second octet is known (`used` is then what was
/// given), since servers cut failures short; its address is the unspecified one.
pub fn parse_reply(_octets: &[u8]) -> Result<Option<((Reply, Address<'_>), usize)>, WireError> {
    todo!()
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
    pub fn parse(_datagram: &'a [u8]) -> Result<(UdpHeader<'a>, &'a [u8]), WireError> {
        todo!()
    }

    /// Writes the header into the front of `buffer`; gives its length.
    pub fn emit(&self, _buffer: &mut [u8]) -> usize {
        todo!()
    }
}
