//! Octets to meaning and back: no state, no time, no allocation on parse, no panic on any input.
//!
//! Headers are read and written octet by octet, never by laying a struct over the buffer. A parsed
//! value borrows its payload from the input. `parse` accepts what the RFC accepts and names what
//! it refuses; `emit` writes into a buffer that is at least `header_len()` long.

pub mod checksum;
pub mod icmp;
pub mod ip;
pub mod seq;
pub mod socks5;
pub mod tcp;
pub mod udp;

pub use seq::SeqNumber;

use core::fmt;
use core::net::{IpAddr, SocketAddr};

/// One end of a conversation: an address and a port, without the scope and flow label that make
/// `SocketAddr` large.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The address.
    pub addr: IpAddr,
    /// The port; the identifier for ICMP echo.
    pub port: u16,
}

impl Endpoint {
    /// The endpoint `addr`:`port`.
    pub const fn new(addr: IpAddr, port: u16) -> Endpoint {
        Endpoint { addr, port }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(addr: SocketAddr) -> Endpoint {
        Endpoint { addr: addr.ip(), port: addr.port() }
    }
}

impl From<Endpoint> for SocketAddr {
    fn from(endpoint: Endpoint) -> SocketAddr {
        SocketAddr::new(endpoint.addr, endpoint.port)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why octets are not what they claim to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WireError {
    /// Fewer octets than the header or its length field says.
    Truncated,
    /// An IP version other than 4 and 6, or a SOCKS version other than the expected.
    Version,
    /// A header length field that is impossible.
    HeaderLength,
    /// A total or payload length field that contradicts the octets.
    Length,
    /// A checksum that does not hold.
    Checksum,
    /// An IPv6 extension header chain that is malformed, too long, or not understood.
    Extension,
    /// A field whose value has no meaning here.
    Value,
}
