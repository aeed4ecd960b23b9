//! Two tables of nf_tables that keep the local network from finding out, or using, the device's addresses (CVE-2019-14899).
//!
//! # Theory of operation
//!
//! Linux answers for all of its addresses on all of its links. So a neighbour can try out which addresses the tunnel has, and then, by how the machine
//! answers packets to them, which connections go through it. Two drops end that:
//!
//! - table `inet ztun`, chain `prerouting`, priority -300: packets to an address of the device that come in by another interface than the device itself
//!   and loopback;
//! - table `arp ztun`, chain `input`: ARP for those addresses. (For IPv6 the kernel answers only by the link that has the address, RFC 4861 section 7.2.3.)
//!
//! The tables belong to the socket that made them (NFT_TABLE_F_OWNER, Linux 5.12): other programs cannot flush them with everything else, and
//! the kernel deletes them when the process ends, whatever way. Where it does not know the flag, they are found by their name.
//!
//! Messages are built by pure functions, for the kernel's netlink interface (linux/netfilter/nf_tables.h); a batch of them is made as a whole or not at all.

use super::change::{Filter, Hook};
use netlink_sys::{Socket, SocketAddr};
use std::io;
use std::net::IpAddr;

/// The name of both tables.
const TABLE: &str = "ztun";

const NETLINK_NETFILTER: isize = 12;

// linux/netfilter/nfnetlink.h
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const SUBSYSTEM: u16 = 10;

// enum nf_tables_msg_types
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;

// linux/netlink.h
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;

/// NFT_TABLE_F_OWNER.
const OWNER: u32 = 0x2;

// enum nft_table_attributes
const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_OWNER: u16 = 7;

/// The register that expressions hand values on in (NFT_REG_1): 16 octets.
const REGISTER: u32 = 1;

// enum nft_meta_keys
const META_IIFNAME: u32 = 6;
const META_NFPROTO: u32 = 15;

// enum nft_cmp_ops
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// Where a family's chain hooks in, and how its tables are called.
struct Family {
    /// NFPROTO_*.
    protocol: u8,
    chain: &'static str,
    /// NF_INET_PRE_ROUTING, NF_ARP_IN.
    hook: u32,
    priority: i32,
}

impl Hook {
    fn family(self) -> Family {
        match self {
            Hook::Packets => Family { protocol: 1, chain: "prerouting", hook: 0, priority: -300 },
            Hook::Arp => Family { protocol: 3, chain: "input", hook: 0, priority: 0 },
        }
    }

    fn of(protocol: u8) -> Option<Hook> {
        [Hook::Packets, Hook::Arp].into_iter().find(|hook| hook.family().protocol == protocol)
    }
}

/// A netlink message, or the attributes in it, as octets.
#[derive(Default)]
struct Octets(Vec<u8>);

impl Octets {
    /// An attribute: length, type, value, and padding to 4 octets.
    fn put(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(value.len() + 4).expect("an attribute here has a few hundred octets");
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn put_name(&mut self, kind: u16, name: &str) {
        let mut value = name.as_bytes().to_vec();
        value.push(0);
        self.put(kind, &value);
    }

    /// nf_tables has its numbers in network order.
    fn put_number(&mut self, kind: u16, number: u32) {
        self.put(kind, &number.to_be_bytes());
    }

    fn put_nested(&mut self, kind: u16, fill: impl FnOnce(&mut Octets)) {
        let mut inner = Octets::default();
        fill(&mut inner);
        self.put(kind | NESTED, &inner.0);
    }

    /// An expression of a rule.
    fn put_expression(&mut self, name: &str, fill: impl FnOnce(&mut Octets)) {
        self.put_nested(1, |element| {
            element.put_name(1, name);
            element.put_nested(2, fill);
        });
    }

    fn load_meta(&mut self, key: u32) {
        self.put_expression("meta", |data| {
            data.put_number(2, key);
            data.put_number(1, REGISTER);
        });
    }

    /// Octets of the packet, counted from its network header.
    fn load_payload(&mut self, offset: u32, len: u32) {
        self.put_expression("payload", |data| {
            data.put_number(1, REGISTER);
            data.put_number(2, 1);
            data.put_number(3, offset);
            data.put_number(4, len);
        });
    }

    /// Goes on with the rule only if the register is, or is not, `value`.
    fn compare(&mut self, operation: u32, value: &[u8]) {
        self.put_expression("cmp", |data| {
            data.put_number(1, REGISTER);
            data.put_number(2, operation);
            data.put_nested(3, |inner| inner.put(1, value));
        });
    }

    fn drop_packet(&mut self) {
        self.put_expression("immediate", |data| {
            data.put_number(1, 0);
            // A verdict, whose code is NF_DROP.
            data.put_nested(2, |inner| inner.put_nested(2, |verdict| verdict.put_number(1, 0)));
        });
    }
}

/// A message: `struct nlmsghdr`, `struct nfgenmsg`, attributes.
fn message(kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, attributes: &Octets) -> Vec<u8> {
    let len = u32::try_from(attributes.0.len() + 20).expect("a message here has a few hundred octets");
    let mut octets = Vec::new();
    octets.extend_from_slice(&len.to_ne_bytes());
    octets.extend_from_slice(&kind.to_ne_bytes());
    octets.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
    octets.extend_from_slice(&sequence.to_ne_bytes());
    octets.extend_from_slice(&[0; 4]);
    octets.extend_from_slice(&[family, 0]);
    octets.extend_from_slice(&resource.to_be_bytes());
    octets.extend_from_slice(&attributes.0);
    octets
}

/// Requests between a begin and an end; the kernel makes all of them or none. Sequence numbers count up from `first`.
fn batch(requests: &[(u16, u16, Octets)], family: u8, first: u32) -> Vec<u8> {
    let none = Octets::default();
    let mut octets = message(BATCH_BEGIN, 0, first, 0, SUBSYSTEM, &none);
    let mut sequence = first;
    for (kind, flags, attributes) in requests {
        sequence = sequence.wrapping_add(1);
        octets.extend(message(SUBSYSTEM << 8 | kind, flags | ACK, sequence, family, 0, attributes));
    }
    octets.extend(message(BATCH_END, 0, sequence.wrapping_add(1), 0, SUBSYSTEM, &none));
    octets
}

fn table(flags: u32) -> Octets {
    let mut attributes = Octets::default();
    attributes.put_name(TABLE_NAME, TABLE);
    attributes.put_number(TABLE_FLAGS, flags);
    attributes
}

fn chain(family: &Family) -> Octets {
    let mut attributes = Octets::default();
    attributes.put_name(1, TABLE);
    attributes.put_name(3, family.chain);
    attributes.put_name(7, "filter");
    // NF_ACCEPT.
    attributes.put_number(5, 1);
    attributes.put_nested(4, |hook| {
        hook.put_number(1, family.hook);
        hook.put_number(2, family.priority.cast_unsigned());
    });
    attributes
}

/// The rule that drops what comes in for `addr`.
fn rule(family: &Family, filter: &Filter, addr: IpAddr) -> Octets {
    let mut attributes = Octets::default();
    attributes.put_name(1, TABLE);
    attributes.put_name(2, family.chain);
    attributes.put_nested(4, |expressions| {
        match (filter.hook, addr) {
            (Hook::Packets, addr) => {
                for name in [filter.device.as_str(), "lo"] {
                    expressions.load_meta(META_IIFNAME);
                    expressions.compare(NOT_EQUAL, &interface_name(name));
                }
                expressions.load_meta(META_NFPROTO);
                match addr {
                    IpAddr::V4(addr) => {
                        expressions.compare(EQUAL, &[2]);
                        expressions.load_payload(16, 4);
                        expressions.compare(EQUAL, &addr.octets());
                    }
                    IpAddr::V6(addr) => {
                        expressions.compare(EQUAL, &[10]);
                        expressions.load_payload(24, 16);
                        expressions.compare(EQUAL, &addr.octets());
                    }
                }
            }
            (Hook::Arp, IpAddr::V4(addr)) => {
                // The target's protocol address (RFC 826) behind two hardware addresses of 6 octets and the sender's.
                expressions.load_payload(24, 4);
                expressions.compare(EQUAL, &addr.octets());
            }
            // There is no ARP for IPv6: the rule would match every packet.
            (Hook::Arp, IpAddr::V6(_)) => return,
        }
        expressions.drop_packet();
    });
    attributes
}

/// A name as the kernel compares it: 16 octets, the rest zero.
fn interface_name(name: &str) -> [u8; 16] {
    let mut octets = [0; 16];
    for (to, from) in octets.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    octets
}

/// What makes the table, its chain and its rules.
fn requests(filter: &Filter, flags: u32) -> Vec<(u16, u16, Octets)> {
    let family = filter.hook.family();
    let mut requests = vec![(NEW_TABLE, CREATE, table(flags)), (NEW_CHAIN, CREATE, chain(&family))];
    for &addr in &filter.addresses {
        if filter.hook == Hook::Packets || addr.is_ipv4() {
            requests.push((NEW_RULE, CREATE | APPEND, rule(&family, filter, addr)));
        }
    }
    requests
}

/// A connection to nf_tables. The tables made over it go with it.
#[derive(Debug)]
pub(super) struct Nft {
    socket: Socket,
    /// The kernel's name for the socket.
    port: u32,
    sequence: u32,
}

impl Nft {
    /// A connection in the calling thread's network namespace.
    pub(super) fn open() -> io::Result<Nft> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        let address = socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // The kernel has answered when the request has been sent.
        socket.set_non_blocking(true)?;
        Ok(Nft { socket, port: address.port_number(), sequence: 0 })
    }

    /// Makes the filter's table anew.
    pub(super) fn add(&mut self, filter: &Filter) -> io::Result<()> {
        self.delete(filter.hook)?;
        match self.make(filter, OWNER) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                log::debug!("a table of nf_tables that belongs to nobody: {error}");
                self.make(filter, 0)
            }
            result => result,
        }
    }

    fn make(&mut self, filter: &Filter, flags: u32) -> io::Result<()> {
        self.transact(&requests(filter, flags), filter.hook.family().protocol)
    }

    /// Deletes the table; false when there is none, or when it belongs to another socket, with which it will go.
    pub(super) fn delete(&mut self, hook: Hook) -> io::Result<bool> {
        let mut name = Octets::default();
        name.put_name(TABLE_NAME, TABLE);
        match self.transact(&[(DELETE_TABLE, 0, name)], hook.family().protocol) {
            Ok(()) => Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => Ok(false),
                Some(libc::EPERM) if !self.tables()?.contains(&hook) => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// Which of our tables there are, but for those that belong to another socket.
    pub(super) fn tables(&mut self) -> io::Result<Vec<Hook>> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = message(SUBSYSTEM << 8 | GET_TABLE, DUMP, self.sequence, 0, 0, &Octets::default());
        self.send(&request)?;
        let mut found = Vec::new();
        loop {
            let octets = self.receive()?;
            for answer in Messages(&octets).filter(|answer| answer.sequence == self.sequence) {
                match answer.kind {
                    DONE => return Ok(found),
                    ERROR => answer.error()?,
                    _ => found.extend(self.own_table(&answer)),
                }
            }
        }
    }

    fn own_table(&self, answer: &Message<'_>) -> Option<Hook> {
        let (&[family, ..], attributes) = answer.body.split_first_chunk::<4>()?;
        let (mut ours, mut owner) = (false, None);
        for (kind, value) in Attributes(attributes) {
            match kind {
                TABLE_NAME => ours = value == b"ztun\0",
                TABLE_OWNER => owner = Some(u32::from_be_bytes(value.try_into().ok()?)),
                _ => {}
            }
        }
        let mine = owner.is_none_or(|owner| owner == self.port);
        if ours && mine { Hook::of(family) } else { None }
    }

    /// Sends a batch, and takes the kernel's word for each request.
    fn transact(&mut self, requests: &[(u16, u16, Octets)], family: u8) -> io::Result<()> {
        let first = self.sequence.wrapping_add(1);
        let mut open = requests.len();
        self.sequence = first.wrapping_add(u32::try_from(open).unwrap_or(u32::MAX)).wrapping_add(1);
        self.send(&batch(requests, family, first))?;
        while open > 0 {
            let octets = self.receive()?;
            let range = self.sequence.wrapping_sub(first);
            let ours = |answer: &Message<'_>| answer.sequence.wrapping_sub(first) <= range;
            for answer in Messages(&octets).filter(|answer| answer.kind == ERROR).filter(ours) {
                // Another error of the same batch may follow; its number is passed over later.
                answer.error()?;
                open = open.saturating_sub(1);
            }
        }
        Ok(())
    }

    fn send(&self, octets: &[u8]) -> io::Result<()> {
        let sent = self.socket.send(octets, 0)?;
        if sent == octets.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        self.socket.recv_from_full().map(|(octets, _)| octets)
    }
}

/// One message of an answer.
struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Message<'_> {
    /// The error that the message carries; an acknowledgement carries none.
    fn error(&self) -> io::Result<()> {
        let code = self.body.first_chunk::<4>().map_or(-libc::EIO, |code| i32::from_ne_bytes(*code));
        if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_neg())) }
    }
}

/// The messages in a datagram.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let (&[a, b, c, d, e, f, _, _, g, h, i, j, _, _, _, _], _) = self.0.split_first_chunk::<16>()?;
        let len = usize::try_from(u32::from_ne_bytes([a, b, c, d])).ok()?;
        let body = self.0.get(16..len)?;
        self.0 = self.0.get(len.checked_next_multiple_of(4)?..).unwrap_or_default();
        Some(Message { kind: u16::from_ne_bytes([e, f]), sequence: u32::from_ne_bytes([g, h, i, j]), body })
    }
}

/// The attributes of a message.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let (&[a, b, c, d], _) = self.0.split_first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.checked_next_multiple_of(4)?..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & !NESTED, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filter(hook: Hook) -> Filter {
        let addresses = vec!["198.18.0.1".parse().unwrap(), "fd7a:7a74:756e::1".parse().unwrap()];
        Filter { hook, device: "ztun0".into(), addresses }
    }

    fn hex(octets: &[u8]) -> String {
        octets
            .chunks(4)
            .map(|word| word.iter().map(|octet| format!("{octet:02x}")).collect::<String>() + " ")
            .collect()
    }

    /// As `nft --debug=mnl` prints what nft itself sends for `table inet ztun { flags owner; }`.
    #[test]
    #[cfg(target_endian = "little")]
    fn a_table_is_what_nft_sends() {
        let octets = batch(&[(NEW_TABLE, CREATE, table(OWNER))], 1, 0);
        assert_eq!(
            hex(&octets),
            "14000000 10000100 00000000 00000000 0000000a \
             28000000 000a0504 01000000 00000000 01000000 09000100 7a74756e 00000000 08000200 00000002 \
             14000000 11000100 02000000 00000000 0000000a "
        );
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_chain_has_its_hook_and_priority() {
        let octets = chain(&Hook::Packets.family());
        assert_eq!(
            hex(&octets.0),
            "09000100 7a74756e 00000000 0f000300 70726572 6f757469 6e670000 0b000700 66696c74 65720000 \
             08000500 00000001 14000480 08000100 00000000 08000200 fffffed4 "
        );
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_rule_for_arp_compares_the_target_and_drops() {
        let octets = rule(&Hook::Arp.family(), &filter(Hook::Arp), "198.18.0.1".parse().unwrap());
        assert_eq!(
            hex(&octets.0),
            "09000100 7a74756e 00000000 0a000200 696e7075 74000000 94000480 \
             34000180 0c000100 7061796c 6f616400 24000280 08000100 00000001 08000200 00000001 08000300 00000018 08000400 00000004 \
             2c000180 08000100 636d7000 20000280 08000100 00000001 08000200 00000000 0c000380 08000100 c6120001 \
             30000180 0e000100 696d6d65 64696174 65000000 1c000280 08000100 00000000 10000280 0c000280 08000100 00000000 "
        );
    }

    #[test]
    fn arp_is_for_ipv4_only() {
        assert_eq!(requests(&filter(Hook::Packets), OWNER).len(), 4);
        assert_eq!(requests(&filter(Hook::Arp), OWNER).len(), 3);
    }

    proptest! {
        #[test]
        fn no_octets_make_the_reader_panic(octets in proptest::collection::vec(any::<u8>(), 0..256)) {
            for answer in Messages(&octets) {
                let _ = answer.error();
                Attributes(answer.body).count();
            }
        }
    }
}
