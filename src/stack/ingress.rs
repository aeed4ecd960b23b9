//! Which packets out of the TUN are worth looking at.
//!
//! The app's kernel speaks from its own unicast address to unicast addresses elsewhere. Everything else that a kernel sends into a
//! device of its own accord (router solicitations, multicast listener reports, mDNS, SSDP, broadcasts) is noise for a proxy: it is dropped,
//! counted, and never answered.

use super::DropReason;
use crate::wire::ip::IpPacket;
use core::net::{IpAddr, Ipv4Addr};

/// Whether an address is the limited broadcast address.
pub(super) fn is_broadcast(addr: IpAddr) -> bool {
    addr == IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// The bottom line for both ends of a packet (RFC 1122 3.2.1.3, RFC 9293 3.9.2.3, RFC 4291 2.5).
pub(super) fn check_ends(packet: &IpPacket<'_>, broadcasts: &[IpAddr]) -> Result<(), DropReason> {
    let group = |addr: IpAddr| addr.is_multicast() || is_broadcast(addr) || broadcasts.contains(&addr);
    let (src, dst) = (packet.src, packet.dst);
    if group(dst) || dst.is_unspecified() || dst.is_loopback() || is_link_local(dst) || is_this_network(dst) {
        return Err(DropReason::Noise);
    }
    if group(src)
        || src.is_unspecified()
        || src.is_loopback()
        || is_embedded_v4(src)
        || is_this_network(src)
        || src == dst
    {
        return Err(DropReason::BadSource);
    }
    if is_embedded_v4(dst) {
        return Err(DropReason::Noise);
    }
    Ok(())
}

fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// 0.0.0.0/8 (RFC 1122 3.2.1.3 b) and 240.0.0.0/4 (reserved).
fn is_this_network(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => v4.octets()[0] == 0 || v4.octets()[0] >= 240,
        IpAddr::V6(_) => false,
    }
}

/// ::ffff:a.b.c.d never stands in a packet (RFC 4942 2.2).
fn is_embedded_v4(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(src: &str, dst: &str) -> Result<(), DropReason> {
        let packet = IpPacket {
            src: src.parse().expect("address"),
            dst: dst.parse().expect("address"),
            protocol: 6,
            hop_limit: 64,
            traffic_class: 0,
            dont_fragment: false,
            fragment: None,
            header: &[],
            payload: &[],
        };
        check_ends(&packet, &["198.18.255.255".parse().expect("address")])
    }

    /// conformance 11
    #[test]
    fn nothing_comes_from_an_address_that_is_no_single_host() {
        for src in [
            "0.0.0.0",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.255.255",
            "203.0.113.5",
            "240.0.0.1",
        ] {
            assert_eq!(check(src, "203.0.113.5"), Err(DropReason::BadSource), "{src}");
        }
        for src in ["::", "::1", "ff02::1", "::ffff:192.0.2.1", "2001:db8::5"] {
            assert_eq!(check(src, "2001:db8::5"), Err(DropReason::BadSource), "{src}");
        }
    }

    /// conformance 11
    #[test]
    fn groups_and_neighbours_are_noise() {
        for dst in ["224.0.0.251", "255.255.255.255", "198.18.255.255", "169.254.1.1", "0.0.0.0", "127.0.0.1"]
        {
            assert_eq!(check("198.18.0.1", dst), Err(DropReason::Noise), "{dst}");
        }
        for dst in ["ff02::fb", "fe80::1", "::", "::1", "::ffff:1.2.3.4"] {
            assert_eq!(check("fd7a:7a74:756e::1", dst), Err(DropReason::Noise), "{dst}");
        }
        assert_eq!(check("198.18.0.1", "203.0.113.5"), Ok(()));
        assert_eq!(check("fd7a:7a74:756e::1", "2001:db8::5"), Ok(()));
    }
}
