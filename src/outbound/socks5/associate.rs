//! UDP ASSOCIATE (RFC 1928 7): where the relay is, and the header around each datagram.
//!
//! The association itself is a [`Client`](super::Client) whose request is
//! [`Command::UdpAssociate`](crate::wire::socks5::Command::UdpAssociate) for the unspecified
//! address and port 0 (our source is not known yet), and whose connection stays open for as long as
//! the relay is to work. What is here are pure functions over one reply and one datagram.

use crate::wire::socks5::{Address, UdpHeader};
use crate::wire::{Endpoint, WireError};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// The header of a datagram to or from an IPv6 endpoint, which is the longest that [`encapsulate`] writes.
pub const MAX_HEADER: usize = 4 + 16 + 2;

/// Why a datagram of the relay is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Rejected {
    /// FRAG other than 0: "an implementation that does not support fragmentation MUST drop" (RFC 1928 7).
    Fragment,
    /// RSV other than 0.
    Reserved,
    /// The source is a domain name: there is no address to deliver it from.
    Domain,
    /// Shorter than its own header.
    Truncated,
    /// An address type that does not exist, or a name of no octets.
    Malformed,
}

impl Rejected {
    /// All of them, in the order of [`Rejections`].
    pub const ALL: [Rejected; 5] =
        [Rejected::Fragment, Rejected::Reserved, Rejected::Domain, Rejected::Truncated, Rejected::Malformed];
}

/// A count of each [`Rejected`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Rejections {
    counts: [u64; Rejected::ALL.len()],
}

impl Rejections {
    /// Counts one.
    pub fn count(&mut self, rejected: Rejected) {
        let count = &mut self.counts[rejected as usize];
        *count = count.saturating_add(1);
    }

    /// How many there were for this reason.
    pub fn get(&self, rejected: Rejected) -> u64 {
        self.counts[rejected as usize]
    }

    /// How many there were in all.
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }
}

/// The target of a UDP ASSOCIATE request: the unspecified address of the proxy's family, port 0
/// (RFC 1928 6, "MUST use a port number and address of all zeros" when the source is not known).
pub fn associate_target(proxy: SocketAddr) -> Endpoint {
    let addr = match proxy.ip().to_canonical() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    Endpoint::new(addr, 0)
}

/// Where datagrams go after a granted UDP ASSOCIATE (Z5, conformance 59): BND.ADDR, or `proxy`'s address
/// where BND.ADDR cannot be reached from here; always BND.PORT.
///
/// An address cannot be reached when it is unspecified or multicast, or when it is private, loopback
/// or link-local while the proxy was reached at an address of another kind: it then belongs to the
/// proxy's side of a NAT. `None` when there is no port: BND was a domain name (`bound` is `None`), or port 0.
pub fn relay_address(bound: Option<Endpoint>, proxy: SocketAddr) -> Option<SocketAddr> {
    let bound = bound.filter(|bound| bound.port != 0)?;
    let addr = bound.addr.to_canonical();
    let reachable = match Kind::of(addr) {
        Kind::Nowhere => false,
        Kind::Global => true,
        kind @ (Kind::Loopback | Kind::LinkLocal | Kind::Private) => {
            kind == Kind::of(proxy.ip().to_canonical())
        }
    };
    if !reachable {
        let mut relay = proxy;
        relay.set_port(bound.port);
        return Some(relay);
    }
    Some(match (addr, proxy) {
        // A link-local address means something on one link only: the one that leads to the proxy.
        (IpAddr::V6(addr), SocketAddr::V6(proxy)) if addr.is_unicast_link_local() => {
            SocketAddr::V6(SocketAddrV6::new(addr, bound.port, 0, proxy.scope_id()))
        }
        (addr, _) => SocketAddr::new(addr, bound.port),
    })
}

/// Writes the header of a datagram to `target` into the front of `buffer`, which is at least
/// [`MAX_HEADER`] long; gives its length. The data follows it unchanged.
pub fn encapsulate(target: Endpoint, buffer: &mut [u8]) -> usize {
    UdpHeader { frag: 0, address: Address::Ip(target) }.emit(buffer)
}

/// Splits a datagram of the relay into the remote end it came from and its data.
pub fn decapsulate(datagram: &[u8]) -> Result<(Endpoint, &[u8]), Rejected> {
    let (header, data) = UdpHeader::parse(datagram).map_err(|error| match error {
        WireError::Truncated => Rejected::Truncated,
        WireError::Value if datagram.iter().take(2).any(|&octet| octet != 0) => Rejected::Reserved,
        WireError::Version
        | WireError::HeaderLength
        | WireError::Length
        | WireError::Checksum
        | WireError::Extension
        | WireError::Value => Rejected::Malformed,
    })?;
    if header.frag != 0 {
        return Err(Rejected::Fragment);
    }
    match header.address {
        // A relay on a dual-stack socket may write an IPv4 source in its IPv6 form.
        Address::Ip(remote) => Ok((Endpoint::new(remote.addr.to_canonical(), remote.port), data)),
        Address::Domain(..) => Err(Rejected::Domain),
    }
}

/// What an address is reachable from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Unspecified, multicast, broadcast: no one host.
    Nowhere,
    Loopback,
    LinkLocal,
    /// RFC 1918, RFC 6598 (shared with carriers), RFC 4193.
    Private,
    Global,
}

impl Kind {
    fn of(addr: IpAddr) -> Kind {
        match addr {
            addr if addr.is_unspecified() || addr.is_multicast() => Kind::Nowhere,
            addr if addr.is_loopback() => Kind::Loopback,
            IpAddr::V4(addr) if addr.is_broadcast() => Kind::Nowhere,
            IpAddr::V4(addr) if addr.is_link_local() => Kind::LinkLocal,
            IpAddr::V4(addr) if addr.is_private() || is_shared(addr) => Kind::Private,
            IpAddr::V6(addr) if addr.is_unicast_link_local() => Kind::LinkLocal,
            IpAddr::V6(addr) if addr.is_unique_local() => Kind::Private,
            IpAddr::V4(_) | IpAddr::V6(_) => Kind::Global,
        }
    }
}

/// 100.64.0.0/10 (RFC 6598).
fn is_shared(addr: Ipv4Addr) -> bool {
    let [a, b, ..] = addr.octets();
    a == 100 && b & 0xc0 == 64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn relay(bound: &str, proxy: &str) -> Option<String> {
        let bound: SocketAddr = bound.parse().unwrap();
        relay_address(Some(bound.into()), proxy.parse().unwrap()).map(|addr| addr.to_string())
    }

    /// Z5, conformance 59
    #[test]
    fn an_unspecified_relay_is_at_the_proxy() {
        assert_eq!(relay("0.0.0.0:5000", "203.0.113.1:1080").unwrap(), "203.0.113.1:5000");
        assert_eq!(relay("[::]:5000", "203.0.113.1:1080").unwrap(), "203.0.113.1:5000");
        assert_eq!(relay("[::ffff:0.0.0.0]:5000", "203.0.113.1:1080").unwrap(), "203.0.113.1:5000");
        assert_eq!(relay("[::]:5000", "[2001:db8::1]:1080").unwrap(), "[2001:db8::1]:5000");
        assert_eq!(relay("0.0.0.0:5000", "127.0.0.1:1080").unwrap(), "127.0.0.1:5000");
    }

    /// Z5
    #[test]
    fn an_address_behind_the_proxys_nat_is_replaced_and_one_on_our_side_is_not() {
        for inside in ["10.0.0.5", "192.168.1.5", "172.16.0.5", "127.0.0.1", "169.254.1.1", "100.64.0.1"] {
            assert_eq!(relay(&format!("{inside}:5000"), "203.0.113.1:1080").unwrap(), "203.0.113.1:5000");
        }
        for inside in ["[fd00::5]", "[::1]", "[fe80::1]", "[ff02::1]"] {
            assert_eq!(relay(&format!("{inside}:5000"), "[2001:db8::1]:1080").unwrap(), "[2001:db8::1]:5000");
        }
        assert_eq!(relay("10.0.0.5:5000", "192.168.1.1:1080").unwrap(), "10.0.0.5:5000");
        assert_eq!(relay("127.0.0.1:5000", "127.0.0.1:1080").unwrap(), "127.0.0.1:5000");
        assert_eq!(relay("[::ffff:127.0.0.1]:5000", "127.0.0.1:1080").unwrap(), "127.0.0.1:5000");
        assert_eq!(relay("203.0.113.9:5000", "10.0.0.1:1080").unwrap(), "203.0.113.9:5000");
        assert_eq!(relay("[fd00::5]:5000", "[fd00::1]:1080").unwrap(), "[fd00::5]:5000");
    }

    /// The hostile list of conformance.md: BND = multicast, broadcast, port 0, a name.
    #[test]
    fn a_relay_that_cannot_be_one_host_is_replaced_and_one_without_a_port_is_none() {
        assert_eq!(relay("224.0.0.1:5000", "203.0.113.1:1080").unwrap(), "203.0.113.1:5000");
        assert_eq!(relay("255.255.255.255:5000", "10.0.0.1:1080").unwrap(), "10.0.0.1:5000");
        assert_eq!(relay("203.0.113.1:0", "203.0.113.1:1080"), None);
        assert_eq!(relay("0.0.0.0:0", "203.0.113.1:1080"), None);
        assert_eq!(relay_address(None, "203.0.113.1:1080".parse().unwrap()), None);
    }

    #[test]
    fn a_link_local_relay_keeps_the_link_of_the_proxy() {
        let proxy = SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().unwrap(), 1080, 0, 7));
        let bound = |addr: &str| Some(Endpoint::new(addr.parse().unwrap(), 5000));
        let relay = SocketAddr::V6(SocketAddrV6::new("fe80::2".parse().unwrap(), 5000, 0, 7));
        assert_eq!(relay_address(bound("fe80::2"), proxy), Some(relay));
        let repaired = SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().unwrap(), 5000, 0, 7));
        assert_eq!(relay_address(bound("::"), proxy), Some(repaired));
    }

    /// conformance 59
    #[test]
    fn an_association_asks_with_all_zeros() {
        assert_eq!(associate_target("203.0.113.1:1080".parse().unwrap()).to_string(), "0.0.0.0:0");
        assert_eq!(associate_target("[2001:db8::1]:1080".parse().unwrap()).to_string(), "[::]:0");
    }

    /// Z5: the UDP part of the hostile list.
    #[test]
    fn hostile_datagrams_are_rejected_for_the_right_reason_and_counted() {
        let good = [0, 0, 0, 1, 192, 0, 2, 1, 0, 53, b'x'];
        assert_eq!(decapsulate(&good), Ok((Endpoint::new("192.0.2.1".parse().unwrap(), 53), &b"x"[..])));
        let with = |at: usize, octet: u8| {
            let mut datagram = good;
            datagram[at] = octet;
            decapsulate(&datagram).unwrap_err()
        };
        let mut rejections = Rejections::default();
        for (expected, rejected) in [
            (Rejected::Fragment, with(2, 1)),
            (Rejected::Fragment, with(2, 0x80)),
            (Rejected::Reserved, with(0, 1)),
            (Rejected::Reserved, with(1, 0xff)),
            (Rejected::Malformed, with(3, 9)),
            (Rejected::Truncated, with(3, 4)),
            (Rejected::Domain, decapsulate(&[0, 0, 0, 3, 1, b'a', 0, 53, b'x']).unwrap_err()),
            (Rejected::Malformed, decapsulate(&[0, 0, 0, 3, 0, 0, 53, b'x']).unwrap_err()),
        ] {
            assert_eq!(rejected, expected);
            rejections.count(rejected);
        }
        for len in 0..10 {
            assert_eq!(decapsulate(&good[..len]), Err(Rejected::Truncated), "{len} octets");
            rejections.count(Rejected::Truncated);
        }
        assert_eq!(rejections.get(Rejected::Fragment), 2);
        assert_eq!(rejections.get(Rejected::Truncated), 11);
        assert_eq!(rejections.total(), 18);
        assert_eq!(Rejected::ALL.map(|rejected| rejected as usize), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn the_largest_datagram_and_an_empty_one_pass_whole() {
        let mut datagram = vec![0x5a; 65_507];
        let len = encapsulate(Endpoint::new("192.0.2.1".parse().unwrap(), 9), &mut datagram);
        assert_eq!(len, 10);
        assert_eq!(decapsulate(&datagram).unwrap().1.len(), 65_497);
        assert_eq!(decapsulate(&datagram[..10]).unwrap().1, b"");
    }

    #[test]
    fn a_mapped_source_is_the_ipv4_one() {
        let mut datagram = [0; 22];
        let mapped = Endpoint::new("::ffff:192.0.2.1".parse().unwrap(), 53);
        assert_eq!(encapsulate(mapped, &mut datagram), 22);
        assert_eq!(decapsulate(&datagram).unwrap().0, Endpoint::new("192.0.2.1".parse().unwrap(), 53));
    }

    proptest! {
        #[test]
        fn what_is_encapsulated_comes_back(
            addr: u128, v4: bool, port: u16, data in proptest::collection::vec(any::<u8>(), 0..64)
        ) {
            let addr = if v4 { IpAddr::V4(Ipv4Addr::from_bits(addr as u32)) } else { IpAddr::V6(Ipv6Addr::from_bits(addr)) };
            let target = Endpoint::new(addr.to_canonical(), port);
            let mut datagram = vec![0; MAX_HEADER];
            let len = encapsulate(target, &mut datagram);
            datagram.truncate(len);
            datagram.extend_from_slice(&data);
            prop_assert_eq!(decapsulate(&datagram), Ok((target, &data[..])));
        }

        #[test]
        fn no_datagram_panics(datagram in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok((_, data)) = decapsulate(&datagram) {
                prop_assert!(datagram.ends_with(data));
            }
        }

        #[test]
        fn a_relay_is_never_nowhere(addr: u128, v4: bool, port in 1u16.., proxy: u32) {
            let addr = if v4 { IpAddr::V4(Ipv4Addr::from_bits(addr as u32)) } else { IpAddr::V6(Ipv6Addr::from_bits(addr)) };
            let proxy = Ipv4Addr::from_bits(proxy);
            prop_assume!(Kind::of(IpAddr::V4(proxy)) != Kind::Nowhere);
            let relay = relay_address(Some(Endpoint::new(addr, port)), SocketAddr::from((proxy, 1080))).unwrap();
            prop_assert!(Kind::of(relay.ip()) != Kind::Nowhere);
            prop_assert_eq!(relay.port(), port);
        }
    }
}
