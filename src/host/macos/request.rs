//! Octets of the requests that give an interface its MTU, flags and addresses (ioctl(2)), and of what libproc tells of a socket: pure.
//!
//! The layouts are those of XNU's `net/if.h`, `netinet/in_var.h`, `netinet6/in6_var.h` and `sys/proc_info.h`, the same on x86_64 and aarch64. The number
//! of a request has its direction, the length of its structure, a group and a number (`sys/ioccom.h`).

use crate::config::Cidr;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest name of an interface, its NUL included (IFNAMSIZ).
const NAME: usize = 16;
/// `struct ifreq`, `ifaliasreq`, `in6_ifreq` and `in6_aliasreq`.
const IFREQ: usize = 32;
const IFALIASREQ: usize = 64;
const IN6_IFREQ: usize = 288;
const IN6_ALIASREQ: usize = 128;
const SOCKADDR_IN: usize = 16;
const SOCKADDR_IN6: usize = 28;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 30;
/// Nobody on the link could have the same address (`IN6_IFF_NODAD`).
const NODAD: u32 = 0x20;
/// `ND6_INFINITE_LIFETIME`.
const FOREVER: u32 = u32::MAX;
/// Up (`IFF_UP`).
const UP: u16 = 0x1;

const IN: u32 = 0x8000_0000;
const IN_OUT: u32 = 0xc000_0000;

// The structures against the headers.
#[cfg(target_os = "macos")]
const _: () = {
    use core::mem::offset_of;
    use libc::{c_char, c_int, in6_addrlifetime, sockaddr_in6};
    /// `struct in6_aliasreq`, which libc does not have.
    #[repr(C)]
    #[allow(dead_code, reason = "it is measured only")]
    struct In6AliasReq {
        name: [c_char; libc::IFNAMSIZ],
        ends: [sockaddr_in6; 2],
        mask: sockaddr_in6,
        flags: c_int,
        lifetime: in6_addrlifetime,
    }
    assert!(NAME == libc::IFNAMSIZ && NAME == offset_of!(libc::ifreq, ifr_ifru));
    assert!(IFREQ == size_of::<libc::ifreq>() && IFALIASREQ == size_of::<libc::ifaliasreq>());
    assert!(offset_of!(libc::ifaliasreq, ifra_broadaddr) == NAME + SOCKADDR_IN);
    assert!(offset_of!(libc::ifaliasreq, ifra_mask) == NAME + 2 * SOCKADDR_IN);
    assert!(IN6_IFREQ == size_of::<libc::in6_ifreq>() && NAME == offset_of!(libc::in6_ifreq, ifr_ifru));
    assert!(IN6_ALIASREQ == size_of::<In6AliasReq>());
    assert!(offset_of!(In6AliasReq, mask) == NAME + 2 * SOCKADDR_IN6);
    assert!(offset_of!(In6AliasReq, flags) == NAME + 3 * SOCKADDR_IN6);
    let lifetime = offset_of!(In6AliasReq, lifetime) + offset_of!(in6_addrlifetime, ia6t_vltime);
    assert!(lifetime == NAME + 3 * SOCKADDR_IN6 + 4 + 16);
    assert!(offset_of!(in6_addrlifetime, ia6t_pltime) == offset_of!(in6_addrlifetime, ia6t_vltime) + 4);
    assert!(number(IN_OUT, IFREQ, 33) == libc::SIOCGIFADDR);
    assert!(UP as c_int == libc::IFF_UP);
};

/// A number of `sys/ioccom.h` in the group of interfaces.
const fn number(direction: u32, length: usize, number: u8) -> u64 {
    // A structure is some hundred octets long.
    (direction | (length as u32) << 16 | (b'i' as u32) << 8 | number as u32) as u64
}

/// A request: its number, and the structure that it is made with, which the answer is written over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Request {
    pub(super) number: u64,
    pub(super) octets: Vec<u8>,
    /// Whether a socket of IPv6 takes it.
    pub(super) v6: bool,
}

fn request(direction: u32, length: usize, last: u8, device: &str) -> Request {
    let mut octets = vec![0; length];
    // What is longer is no interface's name; the kernel does not find it.
    let name = &device.as_bytes()[..device.len().min(NAME - 1)];
    octets[..name.len()].copy_from_slice(name);
    Request { number: number(direction, length, last), octets, v6: false }
}

/// Asks for the MTU (SIOCGIFMTU), in what [`value`] reads.
pub(super) fn get_mtu(device: &str) -> Request {
    request(IN_OUT, IFREQ, 51, device)
}

/// Sets the MTU (SIOCSIFMTU).
pub(super) fn set_mtu(device: &str, mtu: u32) -> Request {
    let mut request = request(IN, IFREQ, 52, device);
    request.octets[NAME..NAME + 4].copy_from_slice(&mtu.to_le_bytes());
    request
}

/// Asks for the flags (SIOCGIFFLAGS), in what [`is_up`] reads.
pub(super) fn get_flags(device: &str) -> Request {
    request(IN_OUT, IFREQ, 17, device)
}

/// Sets the flags (SIOCSIFFLAGS) to what was asked for, but for whether the interface is up.
pub(super) fn set_up(device: &str, answer: &[u8], up: bool) -> Request {
    let mut request = request(IN, IFREQ, 16, device);
    let flags = flags(answer) & !UP | if up { UP } else { 0 };
    request.octets[NAME..NAME + 2].copy_from_slice(&flags.to_le_bytes());
    request
}

fn flags(answer: &[u8]) -> u16 {
    let octets = answer.get(NAME..NAME + 2).and_then(|octets| octets.try_into().ok());
    octets.map_or(0, u16::from_le_bytes)
}

/// Whether the interface is up, by the answer to [`get_flags`].
pub(super) fn is_up(answer: &[u8]) -> bool {
    flags(answer) & UP != 0
}

/// The number in an answer.
pub(super) fn value(answer: &[u8]) -> u32 {
    u32_at(answer, NAME).unwrap_or(0)
}

/// Adds an address (SIOCAIFADDR, SIOCAIFADDR_IN6). The other end of the link, which IPv4 needs one of, is the address itself.
pub(super) fn add_address(device: &str, address: &Cidr) -> Request {
    match address.addr {
        IpAddr::V4(addr) => {
            let mut request = request(IN, IFALIASREQ, 26, device);
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(address.prefix.into())).unwrap_or(0);
            put_v4(&mut request.octets[NAME..], addr);
            put_v4(&mut request.octets[NAME + SOCKADDR_IN..], addr);
            put_v4(&mut request.octets[NAME + 2 * SOCKADDR_IN..], Ipv4Addr::from_bits(mask));
            request
        }
        IpAddr::V6(addr) => {
            let mut request = request(IN, IN6_ALIASREQ, 26, device);
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(address.prefix.into())).unwrap_or(0);
            put_v6(&mut request.octets[NAME..], addr);
            put_v6(&mut request.octets[NAME + 2 * SOCKADDR_IN6..], Ipv6Addr::from_bits(mask));
            let flags = NAME + 3 * SOCKADDR_IN6;
            request.octets[flags..flags + 4].copy_from_slice(&NODAD.to_le_bytes());
            // Two times come first, which only the kernel writes.
            let lifetimes = flags + 4 + 16;
            request.octets[lifetimes..lifetimes + 4].copy_from_slice(&FOREVER.to_le_bytes());
            request.octets[lifetimes + 4..lifetimes + 8].copy_from_slice(&FOREVER.to_le_bytes());
            Request { v6: true, ..request }
        }
    }
}

/// Takes an address away (SIOCDIFADDR, SIOCDIFADDR_IN6).
pub(super) fn delete_address(device: &str, address: &Cidr) -> Request {
    match address.addr {
        IpAddr::V4(addr) => {
            let mut request = request(IN, IFREQ, 25, device);
            put_v4(&mut request.octets[NAME..], addr);
            request
        }
        IpAddr::V6(addr) => {
            let mut request = request(IN, IN6_IFREQ, 25, device);
            put_v6(&mut request.octets[NAME..], addr);
            Request { v6: true, ..request }
        }
    }
}

fn put_v4(octets: &mut [u8], addr: Ipv4Addr) {
    octets[..2].copy_from_slice(&[SOCKADDR_IN as u8, AF_INET]);
    octets[4..8].copy_from_slice(&addr.octets());
}

fn put_v6(octets: &mut [u8], addr: Ipv6Addr) {
    octets[..2].copy_from_slice(&[SOCKADDR_IN6 as u8, AF_INET6]);
    octets[8..24].copy_from_slice(&addr.octets());
}

pub(super) fn u32_at(octets: &[u8], at: usize) -> Option<u32> {
    octets.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMED: [u8; 16] = *b"utun122\0\0\0\0\0\0\0\0\0";

    fn net(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn octets(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    /// SIOCSIFMTU is 0x80206934 and SIOCGIFMTU 0xc0206933 in every list of Darwin's requests.
    #[test]
    fn the_mtu_is_set_and_asked_for() {
        let set = set_mtu("utun122", 1500);
        assert_eq!(set.number, 0x8020_6934);
        assert_eq!(set.octets, octets(&[&NAMED, &[0xdc, 5, 0, 0], &[0; 12]]));
        let get = get_mtu("utun122");
        assert_eq!((get.number, get.octets), (0xc020_6933, octets(&[&NAMED, &[0; 16]])));
        assert_eq!(value(&set.octets), 1500);
        assert_eq!(value(&[0; 17]), 0);
    }

    #[test]
    fn the_other_flags_stay_as_they_are() {
        let answer = octets(&[&NAMED, &[0x50, 0x80], &[0; 14]]);
        assert!(!is_up(&answer));
        let up = set_up("utun122", &answer, true);
        assert_eq!(up.number, 0x8020_6910);
        assert_eq!(up.octets, octets(&[&NAMED, &[0x51, 0x80], &[0; 14]]));
        assert!(is_up(&up.octets) && !is_up(&set_up("utun122", &up.octets, false).octets));
        assert_eq!(get_flags("utun122").number, 0xc020_6911);
    }

    /// SIOCAIFADDR is 0x8040691a.
    #[test]
    fn an_ipv4_address_is_both_ends_of_its_link() {
        let add = add_address("utun122", &net("198.18.0.1/16"));
        assert_eq!((add.number, add.v6), (0x8040_691a, false));
        let own = [16, 2, 0, 0, 198, 18, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        let mask = [16, 2, 0, 0, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(add.octets, octets(&[&NAMED, &own, &own, &mask]));
        let delete = delete_address("utun122", &net("198.18.0.1/16"));
        assert_eq!((delete.number, delete.octets), (0x8020_6919, octets(&[&NAMED, &own])));
    }

    /// SIOCAIFADDR_IN6 is 0x8080691a, SIOCDIFADDR_IN6 0x81206919.
    #[test]
    fn an_ipv6_address_lasts_for_ever_and_is_not_probed_for() {
        let add = add_address("utun122", &net("fd7a:7a74:756e::1/64"));
        assert_eq!((add.number, add.v6), (0x8080_691a, true));
        let own = [
            28, 30, 0, 0, 0, 0, 0, 0, 0xfd, 0x7a, 0x7a, 0x74, 0x75, 0x6e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0,
            0, 0,
        ];
        let mask = octets(&[&[28, 30, 0, 0, 0, 0, 0, 0], &[0xff; 8], &[0; 12]]);
        let end = octets(&[&[0x20, 0, 0, 0], &[0; 16], &[0xff; 8]]);
        assert_eq!(add.octets, octets(&[&NAMED, &own, &[0; 28], &mask, &end]));
        let delete = delete_address("utun122", &net("fd7a:7a74:756e::1/64"));
        assert_eq!((delete.number, delete.v6), (0x8120_6919, true));
        assert_eq!(delete.octets, octets(&[&NAMED, &own, &[0; 244]]));
    }

    #[test]
    fn a_name_that_is_too_long_is_cut_and_ends_with_nul() {
        let request = get_mtu("a-name-that-no-interface-has");
        assert_eq!(request.octets[..16], *b"a-name-that-no-\0");
    }
}
