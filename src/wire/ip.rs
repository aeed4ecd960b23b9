//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers, with the IPv6 extension chain walked to the upper layer.

use super::WireError;
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

/// The longest header that [`emit`] writes: IPv6 with a fragment header.
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
    pub fn parse(_octets: &'p [u8]) -> Result<IpPacket<'p>, WireError> {
        todo!()
    }
}

/// What [`emit`] needs to know to write a header.
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
        todo!()
    }

    /// Writes the header for `payload_len` octets of upper layer into the front of `buffer`, with the
    /// IPv4 checksum in place; gives the header length.
    pub fn emit(&self, _buffer: &mut [u8], _payload_len: usize) -> usize {
        todo!()
    }
}
