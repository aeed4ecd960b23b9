//! ICMP (RFC 792, RFC 1191, RFC 1812) and ICMPv6 (RFC 4443) under one set of names.

use super::WireError;
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
    pub fn parse(_src: IpAddr, _dst: IpAddr, _octets: &'p [u8]) -> Result<IcmpMessage<'p>, WireError> {
        todo!()
    }

    /// Octets that [`IcmpMessage::emit`] writes.
    pub fn buffer_len(&self) -> usize {
        todo!()
    }

    /// Writes the whole message with its checksum into the front of `buffer`; gives its length.
    /// `Other` is not for sending and writes only its type, code and zeroes.
    pub fn emit(&self, _src: IpAddr, _dst: IpAddr, _buffer: &mut [u8]) -> usize {
        todo!()
    }
}

/// Whether an ICMP message of this type (first octet of the upper layer) is an error message; an
/// unknown type counts as an error, so that no error is ever sent about it (RFC 1812 4.3.2.7, RFC 4443 2.4).
pub fn is_error(_v6: bool, _kind: u8) -> bool {
    todo!()
}
