//! What libproc tells of a process and its sockets: octets to meaning, nothing else.
//!
//! The layouts are those of XNU's `sys/proc_info.h`, the same on x86_64 and aarch64. Numbers are little-endian, but for ports, which stand in
//! network order in the lower half of an `int`, and addresses. An IPv4 address is the last four octets of sixteen.

use super::request::u32_at;
use crate::outbound::rule::Proto;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// `struct proc_fdinfo`: a descriptor's number and its type.
pub(super) const FD: usize = 8;
/// PROX_FDTYPE_SOCKET.
const TYPE_SOCKET: u32 = 2;

/// `struct socket_fdinfo`: `proc_fileinfo` of 24 octets, and `socket_info`, which begins with a `vinfo_stat` of 136.
pub(super) const SOCKET: usize = 792;
const FAMILY: usize = 24 + 160;
const KIND: usize = 24 + 232;
/// `struct in_sockinfo`.
const PROTOCOL: usize = 24 + 240;
const REMOTE_PORT: usize = PROTOCOL;
const LOCAL_PORT: usize = PROTOCOL + 4;
const VERSIONS: usize = PROTOCOL + 24;
const REMOTE: usize = PROTOCOL + 32;
const LOCAL: usize = PROTOCOL + 48;
/// `tcpsi_state`, behind the `in_sockinfo`.
const TCP_STATE: usize = PROTOCOL + 80;
const LISTEN: u32 = 1;

/// SOCKINFO_IN and SOCKINFO_TCP.
const KIND_IN: u32 = 1;
const KIND_TCP: u32 = 2;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 30;
/// INI_IPV4.
const IPV4: u8 = 1;

/// `struct proc_bsdinfo`: where the parent's number is, and the time of its start in seconds and microseconds.
pub(super) const PROCESS: usize = 136;
const PARENT: usize = 16;
const STATUS: usize = 4;
const ZOMBIE: u32 = 5;
const START_SECONDS: usize = 120;
const START_MICROSECONDS: usize = 128;

// What libc has of them; `socket_fdinfo` it has not.
#[cfg(target_os = "macos")]
const _: () = {
    use core::mem::offset_of;
    use libc::{proc_bsdinfo, proc_fdinfo};
    assert!(FD == size_of::<proc_fdinfo>() && offset_of!(proc_fdinfo, proc_fdtype) == 4);
    assert!(TYPE_SOCKET as libc::c_int == libc::PROX_FDTYPE_SOCKET);
    assert!(PROCESS == size_of::<proc_bsdinfo>() && PARENT == offset_of!(proc_bsdinfo, pbi_ppid));
    assert!(STATUS == offset_of!(proc_bsdinfo, pbi_status) && ZOMBIE == libc::SZOMB);
    assert!(START_SECONDS == offset_of!(proc_bsdinfo, pbi_start_tvsec));
    assert!(START_MICROSECONDS == offset_of!(proc_bsdinfo, pbi_start_tvusec));
};

/// A socket of TCP or UDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Socket {
    pub(super) proto: Proto,
    /// Its own end; with an unspecified address, any of the machine's. A socket of IPv6 that has none takes IPv4 as well.
    pub(super) local: SocketAddr,
    /// The other end; `None` while it has none.
    pub(super) remote: Option<SocketAddr>,
    /// Whether it waits for connections.
    pub(super) listens: bool,
}

/// A process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Process {
    pub(super) parent: u32,
    /// Microseconds since 1970; no two processes of one number have the same.
    pub(super) started: u64,
    /// It has ended, and nobody has waited for it yet.
    pub(super) ended: bool,
}

/// The numbers of the sockets among a process's descriptors.
pub(super) fn socket_numbers(octets: &[u8]) -> impl Iterator<Item = i32> {
    let records = octets.chunks_exact(FD);
    records
        .filter(|record| u32_at(record, 4) == Some(TYPE_SOCKET))
        .filter_map(|record| Some(u32_at(record, 0)?.cast_signed()))
}

/// What a `socket_fdinfo` says; `None` for what is no socket of TCP or UDP.
pub(super) fn socket(octets: &[u8]) -> Option<Socket> {
    let family = u32_at(octets, FAMILY)?;
    let proto = match u32_at(octets, KIND)? {
        KIND_TCP => Proto::Tcp,
        KIND_IN => Proto::Udp,
        _ => return None,
    };
    if !matches!(family, AF_INET | AF_INET6) {
        return None;
    }
    // A socket of IPv6 that speaks IPv4 has an address of that.
    let v4 = family == AF_INET || *octets.get(VERSIONS)? == IPV4;
    let end = |addr: usize, port: usize| {
        let addr: [u8; 16] = octets.get(addr..addr + 16)?.try_into().ok()?;
        let [.., a, b, c, d] = addr;
        let addr = if v4 { Ipv4Addr::new(a, b, c, d).into() } else { IpAddr::from(unscoped(addr)) };
        let [high, low] = octets.get(port..port + 2)?.try_into().ok()?;
        Some(SocketAddr::new(addr.to_canonical(), u16::from_be_bytes([high, low])))
    };
    let (local, remote) = (end(LOCAL, LOCAL_PORT)?, end(REMOTE, REMOTE_PORT)?);
    let listens = proto == Proto::Tcp && u32_at(octets, TCP_STATE)? == LISTEN;
    Some(Socket { proto, local, remote: (remote.port() != 0).then_some(remote), listens })
}

/// A link-local address without the number of its interface, which the kernel keeps in its second group.
fn unscoped(octets: [u8; 16]) -> Ipv6Addr {
    let addr = Ipv6Addr::from(octets);
    if !addr.is_unicast_link_local() {
        return addr;
    }
    let mut segments = addr.segments();
    segments[1] = 0;
    segments.into()
}

/// What a `proc_bsdinfo` says.
pub(super) fn process(octets: &[u8]) -> Option<Process> {
    let u64_at = |at: usize| octets.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let seconds = u64_at(START_SECONDS)?.checked_mul(1_000_000)?;
    Some(Process {
        parent: u32_at(octets, PARENT)?,
        started: seconds.checked_add(u64_at(START_MICROSECONDS)?)?,
        ended: u32_at(octets, STATUS)? == ZOMBIE,
    })
}

impl Socket {
    /// Whether what it sends is what comes as from `local` to `remote`.
    pub(super) fn sends(&self, proto: Proto, local: SocketAddr, remote: SocketAddr) -> bool {
        let own = self.local.port() == local.port() && serves(self.local.ip(), local.ip());
        own && self.proto == proto && self.remote.is_none_or(|to| to == remote) && !self.listens
    }

    /// Whether connections to `addr` come to it.
    pub(super) fn serves(&self, addr: SocketAddr) -> bool {
        self.listens && self.local.port() == addr.port() && serves(self.local.ip(), addr.ip())
    }
}

/// Whether a socket bound to `bound` takes what is for `addr`.
fn serves(bound: IpAddr, addr: IpAddr) -> bool {
    let addr = addr.to_canonical();
    bound == addr || (bound.is_unspecified() && (bound.is_ipv6() || addr.is_ipv4()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// A `socket_fdinfo` with the pieces that are looked at, and 0xee in all others.
    fn fdinfo(family: u8, kind: u8, versions: u8, remote: (&[u8], u16), local: (&[u8], u16)) -> Vec<u8> {
        let mut octets = vec![0xee; SOCKET];
        octets[184..188].copy_from_slice(&[family, 0, 0, 0]);
        octets[256..260].copy_from_slice(&[kind, 0, 0, 0]);
        let port = |port: u16| [port.to_be_bytes().as_slice(), &[0, 0]].concat();
        octets[264..268].copy_from_slice(&port(remote.1));
        octets[268..272].copy_from_slice(&port(local.1));
        octets[288] = versions;
        for (place, addr) in [(296, remote.0), (312, local.0)] {
            octets[place..place + 16].fill(0);
            octets[place + 16 - addr.len()..place + 16].copy_from_slice(addr);
        }
        octets[344..348].copy_from_slice(&[2, 0, 0, 0]);
        octets
    }

    #[test]
    fn a_connection_of_tcp_has_two_ends() {
        let octets = fdinfo(2, 2, 1, (&[203, 0, 113, 9], 443), (&[192, 168, 1, 5], 50_000));
        let found = socket(&octets).unwrap();
        let expected = Socket {
            proto: Proto::Tcp,
            local: at("192.168.1.5:50000"),
            remote: Some(at("203.0.113.9:443")),
            listens: false,
        };
        assert_eq!(found, expected);
        assert!(found.sends(Proto::Tcp, at("192.168.1.5:50000"), at("203.0.113.9:443")));
        assert!(!found.sends(Proto::Udp, at("192.168.1.5:50000"), at("203.0.113.9:443")));
        assert!(!found.sends(Proto::Tcp, at("192.168.1.5:50000"), at("203.0.113.9:80")));
        assert!(!found.sends(Proto::Tcp, at("192.168.1.5:50001"), at("203.0.113.9:443")));
    }

    #[test]
    fn a_socket_of_ipv6_that_speaks_ipv4_is_one_of_ipv4() {
        let octets = fdinfo(30, 2, 1, (&[203, 0, 113, 9], 443), (&[192, 168, 1, 5], 50_000));
        assert_eq!(socket(&octets).unwrap().local, at("192.168.1.5:50000"));
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 1, 5];
        let octets = fdinfo(30, 2, 2, (&mapped, 443), (&mapped, 50_000));
        assert_eq!(socket(&octets).unwrap().local, at("192.168.1.5:50000"));
    }

    #[test]
    fn a_link_local_address_is_without_its_interface() {
        let addr = [0xfe, 0x80, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let octets = fdinfo(30, 1, 2, (&addr, 53), (&addr, 5353));
        assert_eq!(socket(&octets).unwrap().local, at("[fe80::1]:5353"));
    }

    #[test]
    fn a_socket_of_udp_without_another_end_sends_to_everyone() {
        let octets = fdinfo(30, 1, 3, (&[0; 16], 0), (&[0; 16], 5353));
        let found = socket(&octets).unwrap();
        assert_eq!(found.remote, None);
        assert!(found.sends(Proto::Udp, at("192.168.1.5:5353"), at("203.0.113.9:53")));
        assert!(found.sends(Proto::Udp, at("[2001:db8::5]:5353"), at("[2001:db8::9]:53")));
        assert!(!found.serves(at("192.168.1.5:5353")), "it is not of TCP");
    }

    #[test]
    fn a_listening_socket_serves_its_address_and_sends_nothing() {
        let mut octets = fdinfo(2, 2, 1, (&[0; 4], 0), (&[127, 0, 0, 1], 1080));
        octets[344] = 1;
        let found = socket(&octets).unwrap();
        assert!(found.serves(at("127.0.0.1:1080")) && !found.serves(at("127.0.0.2:1080")));
        assert!(!found.sends(Proto::Tcp, at("127.0.0.1:1080"), at("127.0.0.1:9")));
        octets[312..328].fill(0);
        assert!(socket(&octets).unwrap().serves(at("127.0.0.1:1080")));
        assert!(!socket(&octets).unwrap().serves(at("[::1]:1080")));
    }

    #[test]
    fn what_is_no_socket_of_tcp_or_udp_is_none() {
        assert_eq!(socket(&fdinfo(1, 3, 0, (&[], 0), (&[], 0))), None, "of the unix domain");
        assert_eq!(socket(&fdinfo(2, 1, 1, (&[0; 4], 0), (&[0; 4], 0))[..300]), None, "cut off");
    }

    #[test]
    fn sockets_are_found_among_descriptors() {
        let octets = [
            [3, 0, 0, 0, 1, 0, 0, 0],
            [7, 0, 0, 0, 2, 0, 0, 0],
            [8, 0, 0, 0, 5, 0, 0, 0],
            [0, 1, 0, 0, 2, 0, 0, 0],
        ]
        .concat();
        assert_eq!(socket_numbers(&octets).collect::<Vec<_>>(), [7, 256]);
        assert_eq!(socket_numbers(&octets[..15]).count(), 0);
    }

    #[test]
    fn a_process_has_a_parent_and_a_start() {
        let mut octets = vec![0; PROCESS];
        octets[4] = 2;
        octets[16..20].copy_from_slice(&77_u32.to_le_bytes());
        octets[120..128].copy_from_slice(&1_700_000_000_u64.to_le_bytes());
        octets[128..136].copy_from_slice(&250_001_u64.to_le_bytes());
        let expected = Process { parent: 77, started: 1_700_000_000_250_001, ended: false };
        assert_eq!(process(&octets), Some(expected));
        octets[4] = 5;
        assert!(process(&octets).unwrap().ended);
        assert_eq!(process(&octets[..135]), None);
    }

    proptest! {
        #[test]
        fn no_octets_make_it_panic(octets in proptest::collection::vec(any::<u8>(), 0..800)) {
            let _ = (socket(&octets), process(&octets));
            socket_numbers(&octets).for_each(drop);
        }
    }
}
