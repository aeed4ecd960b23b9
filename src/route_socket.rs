//! Messages of Darwin's routing socket (PF_ROUTE): octets to meaning and back, nothing else.
//!
//! A message is a header and, behind it, one socket address for each bit of `rtm_addrs`, the lowest bit first, each padded to four octets; one whose
//! length octet is 0 takes four as well (`ROUNDUP32` and `rt_msg1` of XNU's `rtsock.c`). Masks are cut short behind their last octet that is not
//! zero, and what stands in place of their family means nothing. Link-local addresses carry the number of their interface in their second group, as
//! everywhere in a kernel of KAME's descent. Lengths come from the kernel and are checked like any input: what is cut off ends the list.
//!
//! The kernel keeps no protocol number with a route, as Linux does. What it keeps untouched is the metric of hops (`rmx_hopcount`), which nothing
//! reads, and the flag that is left to routing programs (RTF_PROTO1, which netstat(1) shows as `1`): by both together ztun's routes are known.
//!
//! The layout is the same on x86_64 and aarch64: `struct rt_msghdr` 92 octets, `if_msghdr` 112, `ifa_msghdr` 20, all little-endian.

mod answer;
#[cfg(target_os = "macos")]
pub(crate) mod system;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `RTM_VERSION`.
const VERSION: u8 = 5;
const RT_MSGHDR: usize = 92;
const IF_MSGHDR: usize = 112;
const IFA_MSGHDR: usize = 20;

const RTM_ADD: u8 = 1;
const RTM_DELETE: u8 = 2;
const RTM_CHANGE: u8 = 3;
const RTM_GET: u8 = 4;
const RTM_NEWADDR: u8 = 12;
const RTM_DELADDR: u8 = 13;
const RTM_IFINFO: u8 = 14;

const RTF_UP: u32 = 0x1;
const RTF_GATEWAY: u32 = 0x2;
const RTF_HOST: u32 = 0x4;
const RTF_REJECT: u32 = 0x8;
const RTF_LLINFO: u32 = 0x400;
const RTF_STATIC: u32 = 0x800;
const RTF_BLACKHOLE: u32 = 0x1000;
const RTF_PROTO1: u32 = 0x8000;
const RTF_WASCLONED: u32 = 0x2_0000;
const RTF_LOCAL: u32 = 0x20_0000;
const RTF_IFSCOPE: u32 = 0x100_0000;

const RTA_DST: u32 = 0x1;
const RTA_GATEWAY: u32 = 0x2;
const RTA_NETMASK: u32 = 0x4;
const RTA_IFP: u32 = 0x10;
const RTA_IFA: u32 = 0x20;
/// The metric of hops is given (`rtm_inits`), and where it and that stand in the header.
const RTV_HOPCOUNT: u32 = 0x2;
const INITS: usize = 32;
const HOPCOUNT: usize = 44;
/// Hops to ztun's routes: "zt".
const MARK: u32 = 0x7a74;
/// Addresses that a message may have (`RTAX_MAX`).
const MOST_ADDRESSES: u32 = 8;

const IFF_UP: u32 = 0x1;
const IFF_RUNNING: u32 = 0x40;

const AF_INET: u8 = 2;
const AF_LINK: u8 = 18;
const AF_INET6: u8 = 30;
const SOCKADDR_IN: usize = 16;
const SOCKADDR_IN6: usize = 28;
const SOCKADDR_DL: usize = 20;

/// A destination: an address, and how many bits of it count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Destination {
    /// Its other bits are zero.
    pub(crate) addr: IpAddr,
    /// At most 32 or 128.
    pub(crate) prefix: u8,
}

/// Where a route leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Gateway {
    /// To this neighbour.
    Addr(IpAddr),
    /// To the neighbour of this link-local address on the link of the interface with this number.
    LinkLocal(Ipv6Addr, u16),
    /// Onto the link of the interface with this number.
    Link(u16),
}

/// A route, as it is added, and as it is told of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Route {
    pub(crate) to: Destination,
    pub(crate) gateway: Gateway,
    /// The interface that alone uses the route: sockets that are bound to it (RTF_IFSCOPE).
    pub(crate) scope: Option<u16>,
    /// What is sent there fails at once (RTF_REJECT), or is lost (RTF_BLACKHOLE).
    pub(crate) refuses: bool,
}

/// What is asked of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Request<'r> {
    Add(&'r Route),
    Delete(&'r Route),
    /// Which way a packet to this address would take; of a socket that is bound to the interface `scope`.
    Get {
        to: IpAddr,
        scope: Option<u16>,
    },
}

/// What the kernel tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Message {
    /// A route: of a dump, told of, or the answer to a request.
    Route(RouteMessage),
    /// An interface.
    Interface(InterfaceMessage),
    /// An address of an interface came or went; `prefix`: the bits of its network.
    Address { gone: bool, index: u16, addr: Option<IpAddr>, prefix: u8 },
    /// Something else.
    Other,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RouteMessage {
    pub(crate) kind: Kind,
    /// The interface that packets leave by.
    pub(crate) index: u16,
    /// Who asked, and his number for it; both 0 for what nobody asked.
    pub(crate) pid: i32,
    pub(crate) seq: i32,
    /// Why it was refused; 0: it was not.
    pub(crate) errno: i32,
    /// RTF_UP: one that is not is of no use.
    pub(crate) up: bool,
    /// An entry that the kernel has made for one neighbour or destination (RTF_LLINFO, RTF_WASCLONED), and for itself (RTF_LOCAL).
    pub(crate) follows: bool,
    /// RTF_LOCAL: the destination is this machine.
    pub(crate) local: bool,
    /// It is one that ztun has added.
    pub(crate) ours: bool,
    /// `None` when the kernel gave no destination or gateway of IP.
    pub(crate) route: Option<Route>,
    /// The source address that packets get.
    pub(crate) source: Option<IpAddr>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Added,
    Deleted,
    Changed,
    Got,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct InterfaceMessage {
    pub(crate) index: u16,
    /// Empty when the message does not say.
    pub(crate) name: String,
    /// Up, and with a carrier.
    pub(crate) running: bool,
}

// ---- writing ----

/// The message that asks for it. `seq` comes back with the answer.
pub(crate) fn encode(request: Request<'_>, seq: i32) -> Vec<u8> {
    let mut message = vec![0; RT_MSGHDR];
    let (kind, flags, index, addrs) = match request {
        Request::Add(route) | Request::Delete(route) => {
            let mut addrs = RTA_DST | RTA_GATEWAY;
            put_addr(&mut message, route.to.addr);
            match route.gateway {
                Gateway::Addr(gateway) => put_addr(&mut message, gateway),
                Gateway::LinkLocal(gateway, index) => {
                    let mut segments = gateway.segments();
                    segments[1] = index;
                    put_addr(&mut message, Ipv6Addr::from(segments).into());
                }
                Gateway::Link(index) => put_link(&mut message, index),
            }
            let host = route.to.prefix == bits(route.to.addr);
            if !host {
                addrs |= RTA_NETMASK;
                put_addr(&mut message, mask(route.to));
            }
            let kind = if matches!(request, Request::Add(_)) { RTM_ADD } else { RTM_DELETE };
            let gateway = match route.gateway {
                Gateway::Addr(_) | Gateway::LinkLocal(..) => RTF_GATEWAY,
                Gateway::Link(_) => 0,
            };
            put_mark(&mut message);
            let flags = RTF_UP
                | RTF_STATIC
                | RTF_PROTO1
                | gateway
                | if host { RTF_HOST } else { 0 }
                | if route.refuses { RTF_REJECT } else { 0 }
                | if route.scope.is_some() { RTF_IFSCOPE } else { 0 };
            (kind, flags, route.scope.unwrap_or(0), addrs)
        }
        Request::Get { to, scope } => {
            put_addr(&mut message, to);
            // An empty place for the interface asks for it, and for the source address with it.
            put_link(&mut message, 0);
            let scoped = if scope.is_some() { RTF_IFSCOPE } else { 0 };
            (RTM_GET, RTF_UP | RTF_HOST | scoped, scope.unwrap_or(0), RTA_DST | RTA_IFP)
        }
    };
    // A message is some hundred octets long.
    let len = (message.len() as u16).to_le_bytes();
    message[0..2].copy_from_slice(&len);
    message[2] = VERSION;
    message[3] = kind;
    message[4..6].copy_from_slice(&index.to_le_bytes());
    message[8..12].copy_from_slice(&flags.to_le_bytes());
    message[12..16].copy_from_slice(&addrs.to_le_bytes());
    message[20..24].copy_from_slice(&seq.to_le_bytes());
    message
}

fn put_addr(message: &mut Vec<u8>, addr: IpAddr) {
    let start = message.len();
    match addr {
        IpAddr::V4(addr) => {
            message.resize(start + SOCKADDR_IN, 0);
            message[start..start + 2].copy_from_slice(&[SOCKADDR_IN as u8, AF_INET]);
            message[start + 4..start + 8].copy_from_slice(&addr.octets());
        }
        IpAddr::V6(addr) => {
            message.resize(start + SOCKADDR_IN6, 0);
            message[start..start + 2].copy_from_slice(&[SOCKADDR_IN6 as u8, AF_INET6]);
            message[start + 8..start + 24].copy_from_slice(&addr.octets());
        }
    }
}

fn put_mark(message: &mut [u8]) {
    message[INITS..INITS + 4].copy_from_slice(&RTV_HOPCOUNT.to_le_bytes());
    message[HOPCOUNT..HOPCOUNT + 4].copy_from_slice(&MARK.to_le_bytes());
}

fn put_link(message: &mut Vec<u8>, index: u16) {
    let start = message.len();
    message.resize(start + SOCKADDR_DL, 0);
    message[start..start + 2].copy_from_slice(&[SOCKADDR_DL as u8, AF_LINK]);
    message[start + 2..start + 4].copy_from_slice(&index.to_le_bytes());
}

fn bits(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

fn mask(to: Destination) -> IpAddr {
    let prefix = u32::from(to.prefix);
    match to.addr {
        IpAddr::V4(_) => {
            Ipv4Addr::from_bits(u32::MAX.checked_shl(32_u32.saturating_sub(prefix)).unwrap_or(0)).into()
        }
        IpAddr::V6(_) => {
            Ipv6Addr::from_bits(u128::MAX.checked_shl(128_u32.saturating_sub(prefix)).unwrap_or(0)).into()
        }
    }
}

// ---- reading ----

/// The messages of what was read or dumped, one behind the other.
pub(crate) fn messages(octets: &[u8]) -> impl Iterator<Item = Message> {
    let mut rest = octets;
    core::iter::from_fn(move || {
        let len = usize::from(u16_at(rest, 0)?);
        // One that says it is shorter than what says so ends the list, as one that is cut off does.
        let message = rest.get(..len).filter(|message| message.len() >= 4)?;
        rest = &rest[len..];
        Some(parse(message))
    })
}

fn parse(message: &[u8]) -> Message {
    let parsed = match (message[2], message[3]) {
        (VERSION, RTM_IFINFO) => interface(message),
        (VERSION, kind @ (RTM_NEWADDR | RTM_DELADDR)) => address(message, kind == RTM_DELADDR),
        (VERSION, kind @ (RTM_ADD | RTM_DELETE | RTM_CHANGE | RTM_GET)) => route(message, kind),
        // RTM_GET of a dump says RTM_GET; what is missed, redirected and so on is no route that there is.
        _ => None,
    };
    parsed.unwrap_or(Message::Other)
}

fn route(message: &[u8], kind: u8) -> Option<Message> {
    let flags = u32_at(message, 8)?;
    let addresses = Addresses::of(message, RT_MSGHDR, u32_at(message, 12)?)?;
    let index = u16_at(message, 4)?;
    let route = addresses.ip(RTA_DST).and_then(|addr| {
        let gateway = match addresses.get(RTA_GATEWAY)? {
            octets if octets.get(1) == Some(&AF_LINK) => Gateway::Link(u16_at(octets, 2)?),
            octets => match ip(octets)? {
                // The kernel embeds the number that the message names as well.
                IpAddr::V6(addr) if addr.is_unicast_link_local() => Gateway::LinkLocal(addr, index),
                addr @ (IpAddr::V4(_) | IpAddr::V6(_)) => Gateway::Addr(addr),
            },
        };
        let prefix = match addresses.get(RTA_NETMASK) {
            Some(mask) if flags & RTF_HOST == 0 => prefix(mask, addr),
            None if flags & RTF_HOST == 0 && addr.is_unspecified() => 0,
            Some(_) | None => bits(addr),
        };
        let scope = (flags & RTF_IFSCOPE != 0).then_some(index);
        let refuses = flags & (RTF_REJECT | RTF_BLACKHOLE) != 0;
        Some(Route { to: Destination { addr, prefix }, gateway, scope, refuses })
    });
    let kind = match kind {
        RTM_ADD => Kind::Added,
        RTM_DELETE => Kind::Deleted,
        RTM_CHANGE => Kind::Changed,
        _ => Kind::Got,
    };
    Some(Message::Route(RouteMessage {
        kind,
        index,
        pid: u32_at(message, 16)?.cast_signed(),
        seq: u32_at(message, 20)?.cast_signed(),
        errno: u32_at(message, 24)?.cast_signed(),
        up: flags & RTF_UP != 0,
        follows: flags & (RTF_LLINFO | RTF_WASCLONED | RTF_LOCAL) != 0,
        local: flags & RTF_LOCAL != 0,
        // What the kernel clones from a route has its metrics, and not RTF_STATIC.
        ours: flags & (RTF_STATIC | RTF_PROTO1 | RTF_WASCLONED) == RTF_STATIC | RTF_PROTO1
            && u32_at(message, HOPCOUNT)? == MARK,
        route,
        source: addresses.ip(RTA_IFA),
    }))
}

fn interface(message: &[u8]) -> Option<Message> {
    let addresses = Addresses::of(message, IF_MSGHDR, u32_at(message, 4)?)?;
    let flags = u32_at(message, 8)?;
    // sdl_nlen octets of name stand behind eight of header.
    let name = addresses.get(RTA_IFP).and_then(|link| {
        let len = usize::from(*link.get(5)?);
        link.get(8..8 + len)
    });
    Some(Message::Interface(InterfaceMessage {
        index: u16_at(message, 12)?,
        name: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
        running: flags & (IFF_UP | IFF_RUNNING) == IFF_UP | IFF_RUNNING,
    }))
}

fn address(message: &[u8], gone: bool) -> Option<Message> {
    let addresses = Addresses::of(message, IFA_MSGHDR, u32_at(message, 4)?)?;
    let addr = addresses.ip(RTA_IFA);
    let prefix = addr.zip(addresses.get(RTA_NETMASK)).map_or(0, |(addr, mask)| prefix(mask, addr));
    Some(Message::Address { gone, index: u16_at(message, 12)?, addr, prefix })
}

/// The socket addresses of a message.
struct Addresses<'m> {
    octets: &'m [u8],
    /// `rtm_addrs`.
    present: u32,
}

impl<'m> Addresses<'m> {
    fn of(message: &'m [u8], header: usize, present: u32) -> Option<Addresses<'m>> {
        Some(Addresses { octets: message.get(header..)?, present })
    }

    /// The address of this bit; `None` when there is none, or it is cut off.
    fn get(&self, wanted: u32) -> Option<&'m [u8]> {
        let mut rest = self.octets;
        for bit in (0..MOST_ADDRESSES).map(|shift| 1 << shift).filter(|bit| self.present & bit != 0) {
            let len = usize::from(*rest.first()?);
            let addr = rest.get(..len)?;
            if bit == wanted {
                return Some(addr);
            }
            // The last one may come without its padding.
            rest = rest.get(len.next_multiple_of(4).max(4)..).unwrap_or_default();
        }
        None
    }

    fn ip(&self, wanted: u32) -> Option<IpAddr> {
        self.get(wanted).and_then(ip)
    }
}

/// The IP address in a socket address; link-local ones without the interface's number.
fn ip(addr: &[u8]) -> Option<IpAddr> {
    match *addr.get(1)? {
        AF_INET => {
            let octets: [u8; 4] = addr.get(4..8)?.try_into().ok()?;
            Some(octets.into())
        }
        AF_INET6 => {
            let mut octets: [u8; 16] = addr.get(8..24)?.try_into().ok()?;
            let link_local = octets[0] == 0xfe && octets[1] & 0xc0 == 0x80;
            let multicast = octets[0] == 0xff && matches!(octets[1] & 0xf, 1 | 2);
            if link_local || multicast {
                octets[2..4].fill(0);
            }
            Some(octets.into())
        }
        _ => None,
    }
}

/// How many bits of `addr` a mask keeps: its leading ones. What is cut off is zero.
fn prefix(mask: &[u8], addr: IpAddr) -> u8 {
    let (start, len) = if addr.is_ipv4() { (4, 4) } else { (8, 16) };
    let octets = mask.iter().skip(start).take(len);
    let mut ones = 0;
    for octet in octets {
        ones += octet.leading_ones() as u8;
        if *octet != 0xff {
            break;
        }
    }
    ones
}

fn u16_at(octets: &[u8], at: usize) -> Option<u16> {
    octets.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes)
}

fn u32_at(octets: &[u8], at: usize) -> Option<u32> {
    octets.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(kind: u8, flags: u32, index: u16, addrs: u32, seq: u8, len: u8) -> Vec<u8> {
        let mut header = vec![0; 92];
        header[0] = len;
        header[2] = 5;
        header[3] = kind;
        header[4..6].copy_from_slice(&index.to_le_bytes());
        header[8..12].copy_from_slice(&flags.to_le_bytes());
        header[12..16].copy_from_slice(&addrs.to_le_bytes());
        header[20] = seq;
        header
    }

    /// The header of one that adds or deletes: with the mark.
    fn marked(kind: u8, flags: u32, index: u16, addrs: u32, seq: u8, len: u8) -> Vec<u8> {
        let mut header = header(kind, flags, index, addrs, seq, len);
        header[32] = 2;
        header[44..46].copy_from_slice(b"tz");
        header
    }

    fn route(to: &str, prefix: u8, gateway: Gateway) -> Route {
        let to = Destination { addr: to.parse().unwrap(), prefix };
        Route { to, gateway, scope: None, refuses: false }
    }

    #[test]
    fn half_of_ipv4_goes_onto_the_link_of_a_device() {
        let encoded = encode(Request::Add(&route("128.0.0.0", 1, Gateway::Link(9))), 3);
        let mut expected = marked(1, 0x8801, 0, 0x7, 3, 144);
        expected.extend([16, 2, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([20, 18, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([16, 2, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(encoded, expected);
    }

    #[test]
    fn a_host_behind_a_gateway_needs_no_mask() {
        let gateway = Gateway::Addr("192.168.1.1".parse().unwrap());
        let encoded = encode(Request::Delete(&route("203.0.113.7", 32, gateway)), 4);
        let mut expected = marked(2, 0x8807, 0, 0x3, 4, 124);
        expected.extend([16, 2, 0, 0, 203, 0, 113, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([16, 2, 0, 0, 192, 168, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(encoded, expected);
    }

    #[test]
    fn a_scoped_route_names_its_interface_and_one_that_refuses_says_so() {
        let route = Route { scope: Some(4), refuses: true, ..route("8000::", 1, Gateway::Link(9)) };
        let encoded = encode(Request::Add(&route), 5);
        assert_eq!(encoded[..92], marked(1, 0x0100_8809, 4, 0x7, 5, 168));
        assert_eq!(encoded[92..102], [28, 30, 0, 0, 0, 0, 0, 0, 0x80, 0]);
        assert_eq!(encoded[140..150], [28, 30, 0, 0, 0, 0, 0, 0, 0x80, 0]);
    }

    #[test]
    fn a_question_asks_for_the_interface() {
        let encoded = encode(Request::Get { to: "203.0.113.7".parse().unwrap(), scope: None }, 6);
        let mut expected = header(4, 0x5, 0, 0x11, 6, 128);
        expected.extend([16, 2, 0, 0, 203, 0, 113, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([20, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(encoded, expected);
    }

    #[test]
    fn a_question_of_a_bound_socket_names_its_interface() {
        let encoded = encode(Request::Get { to: "::1".parse().unwrap(), scope: Some(7) }, 6);
        assert_eq!(encoded[..92], header(4, 0x0100_0005, 7, 0x11, 6, 140));
    }

    fn one(octets: &[u8]) -> Message {
        let mut all = messages(octets);
        let first = all.next().unwrap();
        assert_eq!(all.next(), None);
        first
    }

    /// The addresses are those of a real Mac's table (the tests of Go's x/net/route have them): a mask of 7 octets, whose family is 255.
    #[test]
    fn a_mask_is_cut_short_and_has_no_family() {
        let mut message = header(4, 0x101, 4, 0x7, 0, 135);
        message.extend([16, 2, 0, 0, 192, 168, 86, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        message.extend([20, 18, 4, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        message.extend([7, 255, 255, 255, 255, 255, 255]);
        let Message::Route(told) = one(&message) else { panic!("a route") };
        assert_eq!((told.kind, told.index, told.up), (Kind::Got, 4, true));
        assert_eq!(told.route, Some(route("192.168.86.0", 24, Gateway::Link(4))));
    }

    #[test]
    fn the_default_route_has_an_empty_mask_or_none() {
        for mask in [&[0, 0, 0, 0][..], &[]] {
            let addrs = if mask.is_empty() { 0x3 } else { 0x7 };
            let mut message = header(4, 0x803, 4, addrs, 0, 124 + mask.len() as u8);
            message.extend([16, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            message.extend([16, 2, 0, 0, 192, 168, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
            message.extend(mask);
            let Message::Route(told) = one(&message) else { panic!("a route") };
            let gateway = Gateway::Addr("192.168.1.1".parse().unwrap());
            assert_eq!(told.route, Some(route("0.0.0.0", 0, gateway)));
        }
    }

    #[test]
    fn the_number_inside_a_link_local_address_is_taken_out() {
        let mut message = header(1, 0x0100_0803, 4, 0x3, 0, 148);
        message.extend([28, 30]);
        message.extend([0; 26]);
        message.extend([
            28, 30, 0, 0, 0, 0, 0, 0, 0xfe, 0x80, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0,
        ]);
        let Message::Route(told) = one(&message) else { panic!("a route") };
        let gateway = Gateway::LinkLocal("fe80::1".parse().unwrap(), 4);
        assert_eq!(told.route, Some(Route { scope: Some(4), ..route("::", 0, gateway) }));
        assert!(!told.ours);
    }

    #[test]
    fn a_link_local_gateway_carries_the_number_of_its_interface() {
        let gateway = Gateway::LinkLocal("fe80::1".parse().unwrap(), 0x0104);
        let encoded = encode(Request::Add(&route("2001:db8::", 32, gateway)), 7);
        assert_eq!(encoded[..92], marked(1, 0x8803, 0, 0x7, 7, 176));
        let octets =
            [28, 30, 0, 0, 0, 0, 0, 0, 0xfe, 0x80, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        assert_eq!(encoded[120..148], octets);
    }

    #[test]
    fn what_refuses_leads_to_loopback_as_a_gateway() {
        let gateway = Gateway::Addr("127.0.0.1".parse().unwrap());
        let route = Route { refuses: true, ..route("128.0.0.0", 1, gateway) };
        assert_eq!(encode(Request::Add(&route), 8)[..92], marked(1, 0x880b, 0, 0x7, 8, 140));
    }

    /// RTF_STATIC goes when the kernel clones a route for one destination; the metrics stay.
    #[test]
    fn a_route_is_ours_by_flag_and_metric_together_and_no_clone_is() {
        let told = |damage: &dyn Fn(&mut Vec<u8>)| {
            let mut message = encode(Request::Add(&route("128.0.0.0", 1, Gateway::Link(9))), 1);
            damage(&mut message);
            let Message::Route(told) = one(&message) else { panic!("a route") };
            told.ours
        };
        assert!(told(&|_| {}));
        assert!(!told(&|message| message[44] = 0), "zebra's: the flag alone");
        assert!(!told(&|message| message[9] &= !0x80), "the metric alone");
        assert!(!told(&|message| message[9] &= !0x08), "without RTF_STATIC");
        assert!(!told(&|message| message[10] |= 0x02), "a clone");
    }

    #[test]
    fn an_interface_has_a_name_and_a_carrier_or_none() {
        for (flags, running) in [(0x8863_u32, true), (0x8823, false), (0x40, false)] {
            let mut message = vec![0; 112];
            message[0] = 132;
            message[2..4].copy_from_slice(&[5, 14]);
            message[4] = 0x10;
            message[8..12].copy_from_slice(&flags.to_le_bytes());
            message[12] = 4;
            message.extend([20, 18, 4, 0, 6, 3, 6, 0]);
            message.extend(b"en0\xaa\xbb\xcc\xdd\xee\xff\0\0\0");
            let expected = InterfaceMessage { index: 4, name: "en0".into(), running };
            assert_eq!(one(&message), Message::Interface(expected));
        }
    }

    #[test]
    fn an_address_that_goes_is_told_with_its_interface() {
        let mut message = vec![44, 0, 5, 13, 0x24, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0];
        message.extend([7, 255, 255, 255, 255, 255, 255, 0]);
        message.extend([16, 2, 0, 0, 192, 168, 1, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
        let addr = Some("192.168.1.7".parse().unwrap());
        assert_eq!(one(&message), Message::Address { gone: true, index: 4, addr, prefix: 24 });
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_again(v6: bool, bits: u128, prefix in 0u8..=128, index in 1u16.., scoped: bool, refuses: bool, by_link: bool) {
            let prefix = if v6 { prefix } else { prefix % 33 };
            let whole = if v6 { Ipv6Addr::from_bits(bits).into() } else { IpAddr::from(Ipv4Addr::from_bits(bits as u32)) };
            let addr = match (whole, mask(Destination { addr: whole, prefix })) {
                (IpAddr::V4(addr), IpAddr::V4(mask)) => IpAddr::from(addr & mask),
                (IpAddr::V6(addr), IpAddr::V6(mask)) => IpAddr::from(addr & mask),
                _ => unreachable!("of one family"),
            };
            let special = matches!(addr, IpAddr::V6(addr) if addr.segments()[0] & 0xffc0 == 0xfe80 || addr.segments()[0] & 0xff00 == 0xff00);
            prop_assume!(!special);
            let gateway = if by_link { Gateway::Link(index) } else { Gateway::Addr("192.0.2.1".parse().unwrap()) };
            let route = Route { to: Destination { addr, prefix }, gateway, scope: scoped.then_some(index), refuses };
            let Message::Route(told) = one(&encode(Request::Add(&route), 1)) else { panic!("a route") };
            prop_assert!(told.ours);
            prop_assert_eq!(told.route, Some(route));
        }

        #[test]
        fn no_octets_make_it_panic(octets in proptest::collection::vec(any::<u8>(), 0..400)) {
            messages(&octets).for_each(drop);
        }

        #[test]
        fn no_damage_makes_it_panic(at in 0usize..200, octet: u8, cut in 0usize..200) {
            let gateway = Gateway::Addr("fe80::1".parse().unwrap());
            let mut message = encode(Request::Add(&route("2001:db8::", 32, gateway)), 1);
            if let Some(place) = message.get_mut(at) {
                *place = octet;
            }
            message.truncate(cut);
            messages(&message).for_each(drop);
        }
    }
}
