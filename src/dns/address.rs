//! Resolvers that only the app's own machine or network can reach.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether a resolver at `addr` means something to this machine or its network only, and somebody else, or nobody, to a proxy: private
/// (RFC 1918, RFC 6598, RFC 4193, and RFC 3879 which some systems still fall back to), link-local, loopback, or unspecified.
pub fn is_local(addr: IpAddr) -> bool {
    match addr.to_canonical() {
        IpAddr::V4(v4) => v4.is_private() || is_shared(v4) || is_bound(addr),
        IpAddr::V6(v6) => v6.is_unique_local() || is_site_local(v6) || is_bound(addr),
    }
}

/// Whether an address is bound to one machine or one link: link-local, loopback, or unspecified.
pub fn is_bound(addr: IpAddr) -> bool {
    match addr.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_loopback() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_loopback() || v6.is_unspecified(),
    }
}

/// 100.64.0.0/10 (RFC 6598).
fn is_shared(v4: Ipv4Addr) -> bool {
    let [a, b, ..] = v4.octets();
    a == 100 && b & 0xc0 == 64
}

/// fec0::/10 (RFC 3879).
fn is_site_local(v6: Ipv6Addr) -> bool {
    let [a, b, ..] = v6.octets();
    a == 0xfe && b & 0xc0 == 0xc0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_resolvers_are_told_from_public_ones() {
        let local = |text: &str| is_local(text.parse().expect(text));
        for text in ["169.254.1.1", "127.0.0.53", "0.0.0.0", "fe80::1", "::1", "::", "::ffff:127.0.0.1"] {
            assert!(is_bound(text.parse().expect(text)), "{text}");
        }
        for text in ["10.0.0.1", "192.168.1.1", "100.64.0.1", "fd00::1", "fec0::1", "9.9.9.9"] {
            assert!(!is_bound(text.parse().expect(text)), "{text}");
        }
        for text in [
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "100.127.255.255",
            "169.254.1.1",
            "127.0.0.53",
            "0.0.0.0",
            "fd00::1",
            "fc00::1",
            "fe80::1",
            "fec0:0:0:ffff::1",
            "::1",
            "::",
            "::ffff:192.168.1.1",
        ] {
            assert!(local(text), "{text}");
        }
        for text in [
            "1.1.1.1",
            "172.15.0.1",
            "172.32.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "198.18.0.2",
            "2606:4700:4700::1111",
        ] {
            assert!(!local(text), "{text}");
        }
    }
}
