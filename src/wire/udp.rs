//! UDP datagrams (RFC 768; RFC 8200 8.1 for the zero checksum).

use super::WireError;
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
    pub fn parse(_src: IpAddr, _dst: IpAddr, _octets: &'p [u8], _verify_checksum: bool) -> Result<UdpDatagram<'p>, WireError> {
        todo!()
    }
}

/// Writes a header for `payload` with its checksum (0 is sent as 0xffff) into the front of `buffer`; gives 8.
/// `payload` must be at most 65,527 octets.
pub fn emit_header(_buffer: &mut [u8], _src: (IpAddr, u16), _dst: (IpAddr, u16), _payload: &[u8]) -> usize {
    todo!()
}
