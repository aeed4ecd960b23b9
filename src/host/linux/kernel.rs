//! The kernel's side of a change: what there is, and how each change is made.
//!
//! A change is idempotent where that is safe. Deleting what is not there, or what went with its device, is no error. Adding what is there is an
//! error unless it is exactly ours, by its protocol number: what another program made is neither taken over nor deleted later.

#![allow(clippy::wildcard_enum_match_arm, reason = "the attributes are the kernel's, and it adds to them")]

use super::change::{
    Action, Address, Change, Family, LAST_METRIC, PROTOCOL, Route, Rule, SERVICES, Selector, TABLE,
    Transport, Unreachable,
};
use super::plan::{FIRST_PREFERENCE, Have, Ipv6, LAST_PREFERENCE};
use super::standin;
use crate::config::Cidr;
use crate::host::Outcome;
use crate::host::Reversible;
pub use crate::host::interface::{find, index_of};
use crate::netlink::Netlink;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange, RuleUidRange};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};
use std::fs;
use std::io;
use std::net::IpAddr;

/// The kernel's settings for IPv6; the directory is missing when the kernel has none.
const IPV6_SETTINGS: &str = "/proc/sys/net/ipv6/conf";

/// The machine and the device, which need not exist (`--dry-run`): then it is taken to be like one just made.
pub(super) fn snapshot(netlink: &mut Netlink, device: &str) -> io::Result<Have> {
    let index = find(device)?;
    let (mut mtu, mut up) = (1500, false);
    if let Some(index) = index {
        let mut request = LinkMessage::default();
        request.header.index = index;
        if let Some(RouteNetlinkMessage::NewLink(link)) =
            netlink.one(RouteNetlinkMessage::GetLink(request))?
        {
            up = link.header.flags.contains(LinkFlags::Up);
            let given = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Mtu(mtu) => Some(*mtu),
                _ => None,
            });
            mtu = given.unwrap_or(mtu);
        }
    }
    let (mut addresses, mut own_addresses) = (Vec::new(), Vec::new());
    for (owner, scope, address) in all_addresses(netlink)? {
        if Some(owner) == index {
            addresses.push(address);
        } else if matches!(scope, AddressScope::Universe | AddressScope::Site)
            && !address.addr.is_loopback()
            && !own_addresses.contains(&address.addr)
        {
            own_addresses.push(address.addr);
        }
    }
    Ok(Have { ipv6: ipv6(device), mtu, up, addresses, own_addresses, dns: None })
}

/// Every address of the machine, with its interface's index and its scope.
pub(super) fn all_addresses(netlink: &mut Netlink) -> io::Result<Vec<(u32, AddressScope, Cidr)>> {
    let mut all = Vec::new();
    for message in netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
        let RouteNetlinkMessage::NewAddress(message) = message else { continue };
        // On a point-to-point link ADDRESS is the peer's and LOCAL ours; IPv6 often gives only ADDRESS.
        let (mut local, mut address) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(addr) => local = Some(*addr),
                AddressAttribute::Address(addr) => address = Some(*addr),
                _ => {}
            }
        }
        let net = local.or(address).and_then(|addr| Cidr::new(addr, message.header.prefix_len));
        all.extend(net.map(|net| (message.header.index, message.header.scope, net)));
    }
    Ok(all)
}

/// Whether `addr` is one of this machine's addresses.
pub(super) fn is_own_address(netlink: &mut Netlink, addr: IpAddr) -> io::Result<bool> {
    Ok(addr.is_loopback() || all_addresses(netlink)?.iter().any(|(_, _, net)| net.addr == addr))
}

fn ipv6(device: &str) -> Ipv6 {
    let disabled = |name: &str| {
        fs::read_to_string(format!("{IPV6_SETTINGS}/{name}/disable_ipv6")).map(|text| text.trim() != "0")
    };
    match (disabled("all"), disabled(device).or_else(|_| disabled("default"))) {
        (Ok(false), Ok(false)) => Ipv6::On,
        (Ok(false), Ok(true) | Err(_)) => Ipv6::OffOnDevice,
        (Ok(true) | Err(_), _) => Ipv6::Absent,
    }
}

/// Makes one change of those that routing netlink and the kernel's settings make.
pub(super) fn apply(netlink: &mut Netlink, change: &Change) -> io::Result<Outcome> {
    let create = NLM_F_CREATE | NLM_F_EXCL;
    match change {
        Change::Ipv6On { device } => set_ipv6(device, "0"),
        Change::Ipv6Off { device } => deleted(set_ipv6(device, "1").map(drop)),
        Change::AddressAdd(address) => {
            let message = address_message(address)?;
            netlink.acknowledged(RouteNetlinkMessage::NewAddress(message), create)?;
            Ok(Outcome::Done)
        }
        Change::AddressDelete(address) => deleted(
            address_message(address)
                .and_then(|message| netlink.acknowledged(RouteNetlinkMessage::DelAddress(message), 0)),
        ),
        Change::MtuSet { device, mtu, .. } => set_link(netlink, device, |message| {
            message.attributes.push(LinkAttribute::Mtu(*mtu));
        }),
        Change::LinkUp { device } => set_link(netlink, device, |message| {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }),
        Change::LinkDown { device } => {
            deleted(set_link(netlink, device, |message| message.header.change_mask = LinkFlags::Up).map(drop))
        }
        Change::RouteAdd(route) => {
            let message = route_message(route)?;
            let result = netlink.acknowledged(RouteNetlinkMessage::NewRoute(message), create);
            added(netlink, change, result)
        }
        Change::RouteDelete(route) => deleted(
            route_message(route)
                .and_then(|message| netlink.acknowledged(RouteNetlinkMessage::DelRoute(message), 0)),
        ),
        Change::UnreachableAdd(route) => {
            let message = RouteNetlinkMessage::NewRoute(unreachable_message(route));
            let result = netlink.acknowledged(message, create);
            added(netlink, change, result)
        }
        Change::UnreachableDelete(route) => {
            deleted(netlink.acknowledged(RouteNetlinkMessage::DelRoute(unreachable_message(route)), 0))
        }
        Change::RuleAdd(rule) => {
            let result = netlink.acknowledged(RouteNetlinkMessage::NewRule(rule_message(rule)), create);
            added(netlink, change, result)
        }
        Change::RuleDelete(rule) => {
            deleted(netlink.acknowledged(RouteNetlinkMessage::DelRule(rule_message(rule)), 0))
        }
        Change::FilterAdd(_) | Change::FilterDelete(_) | Change::DnsSet(_) | Change::DnsRestore(_) => {
            Err(io::Error::new(io::ErrorKind::Unsupported, "not a matter of routing netlink"))
        }
    }
}

/// The result of a deletion: what is not there needs none.
fn deleted(result: io::Result<()>) -> io::Result<Outcome> {
    match result {
        Ok(()) => Ok(Outcome::Done),
        Err(error) => match error.raw_os_error() {
            // Without an address family (IPv6 switched off meanwhile) there is nothing of it either.
            Some(
                libc::ENOENT
                | libc::ESRCH
                | libc::ENODEV
                | libc::ENXIO
                | libc::EADDRNOTAVAIL
                | libc::EAFNOSUPPORT,
            ) => Ok(Outcome::Already),
            _ => Err(error),
        },
    }
}

/// The result of an addition: what is there already must be ours.
fn added(netlink: &mut Netlink, change: &Change, result: io::Result<()>) -> io::Result<Outcome> {
    match result {
        Ok(()) => Ok(Outcome::Done),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            if leftovers(netlink)?.contains(&change.undo()) { Ok(Outcome::Already) } else { Err(error) }
        }
        Err(error) => Err(error),
    }
}

pub(super) fn set_ipv6(device: &str, value: &str) -> io::Result<Outcome> {
    fs::write(format!("{IPV6_SETTINGS}/{device}/disable_ipv6"), value).map(|()| Outcome::Done)
}

pub(super) fn set_link(
    netlink: &mut Netlink,
    device: &str,
    set: impl FnOnce(&mut LinkMessage),
) -> io::Result<Outcome> {
    let mut message = LinkMessage::default();
    message.header.index = index_of(device)?;
    set(&mut message);
    netlink.acknowledged(RouteNetlinkMessage::SetLink(message), 0).map(|()| Outcome::Done)
}

fn family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

pub(super) fn address_message(address: &Address) -> io::Result<AddressMessage> {
    let net = &address.address;
    let mut message = AddressMessage::default();
    message.header.family = family(Family::of(net));
    message.header.prefix_len = net.prefix;
    message.header.index = index_of(&address.device)?;
    message.attributes.extend([AddressAttribute::Local(net.addr), AddressAttribute::Address(net.addr)]);
    // There is nobody on the link who could have the same address.
    let mut flags = AddressFlags::Nodad;
    if !address.prefix_route {
        flags |= AddressFlags::Noprefixroute;
    }
    message.attributes.push(AddressAttribute::Flags(flags));
    Ok(message)
}

pub(super) fn route_message(route: &Route) -> io::Result<RouteMessage> {
    let net = &route.destination;
    let mut message = RouteMessage::default();
    message.header.address_family = family(Family::of(net));
    message.header.destination_prefix_length = net.prefix;
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.kind = RouteType::Unicast;
    // Not LINK, as a route without a gateway usually has: the gateway of a route that someone else adds meanwhile is looked up with scope LINK,
    // through all rules, and must not be found behind the device. This route has a wider scope and is passed over then.
    message.header.scope = RouteScope::Universe;
    message.attributes.extend([
        RouteAttribute::Destination(net.addr.into()),
        RouteAttribute::Oif(index_of(&route.device)?),
        RouteAttribute::Table(route.table),
    ]);
    Ok(message)
}

fn unreachable_message(route: &Unreachable) -> RouteMessage {
    let net = &route.destination;
    let mut message = RouteMessage::default();
    message.header.address_family = family(Family::of(net));
    message.header.destination_prefix_length = net.prefix;
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.kind = RouteType::Unreachable;
    message.header.scope = RouteScope::Universe;
    message.attributes.extend([
        RouteAttribute::Destination(net.addr.into()),
        RouteAttribute::Priority(LAST_METRIC),
        RouteAttribute::Table(route.table),
    ]);
    message
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.family);
    message.attributes.extend([
        RuleAttribute::Priority(rule.preference),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ]);
    match rule.action {
        Action::Lookup(table) => {
            message.header.action = RuleAction::ToTable;
            message.attributes.push(RuleAttribute::Table(table));
        }
        Action::Unreachable => message.header.action = RuleAction::Unreachable,
    }
    match &rule.selector {
        Selector::All => {}
        Selector::Mark(mark) => {
            message.attributes.extend([RuleAttribute::FwMark(*mark), RuleAttribute::FwMask(u32::MAX)])
        }
        Selector::Iif(device) => message.attributes.push(RuleAttribute::Iifname(device.clone())),
        // A network of all addresses is no condition, and the kernel wants none.
        Selector::From(net) | Selector::To(net) if net.prefix == 0 => {}
        Selector::From(net) => {
            message.header.src_len = net.prefix;
            message.attributes.push(RuleAttribute::Source(net.addr));
        }
        Selector::Services(net) => {
            if net.prefix > 0 {
                message.header.src_len = net.prefix;
                message.attributes.push(RuleAttribute::Source(net.addr));
            }
            message.attributes.extend([
                RuleAttribute::IpProtocol(IpProtocol::Tcp),
                RuleAttribute::SourcePortRange(RulePortRange {
                    start: *SERVICES.start(),
                    end: *SERVICES.end(),
                }),
            ]);
        }
        Selector::To(net) => {
            message.header.dst_len = net.prefix;
            message.attributes.push(RuleAttribute::Destination(net.addr));
        }
        Selector::Uid(uid) => {
            message.attributes.push(RuleAttribute::UidRange(RuleUidRange { start: *uid, end: *uid }));
        }
        Selector::Port(transport, port) => {
            let protocol = match transport {
                Transport::Tcp => IpProtocol::Tcp,
                Transport::Udp => IpProtocol::Udp,
            };
            message.attributes.extend([
                RuleAttribute::IpProtocol(protocol),
                RuleAttribute::DestinationPortRange(RulePortRange { start: *port, end: *port }),
            ]);
        }
    }
    message
}

/// The deletions of everything in the kernel's tables that is recognisably ours, whoever left it: capturing ends first.
pub(super) fn leftovers(netlink: &mut Netlink) -> io::Result<Vec<Change>> {
    let mut found = Vec::new();
    let mut rules = Vec::new();
    for message in netlink.dump(RouteNetlinkMessage::GetRule(RuleMessage::default()))? {
        if let RouteNetlinkMessage::NewRule(message) = message {
            rules.extend(own_rule(&message));
        }
    }
    rules.sort_by_key(|rule: &Rule| core::cmp::Reverse(rule.preference));
    found.extend(rules.into_iter().map(Change::RuleDelete));
    for message in netlink.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))? {
        if let RouteNetlinkMessage::NewRoute(message) = message {
            found.extend(own_route(&message));
        }
    }
    Ok(found)
}

/// The rule, if it is one of ours.
fn own_rule(message: &RuleMessage) -> Option<Rule> {
    let family = match message.header.family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    let (mut preference, mut table, mut protocol) = (0, u32::from(message.header.table), None);
    let mut selector = Selector::All;
    let (mut transport, mut port, mut services) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(value) => preference = *value,
            RuleAttribute::Table(value) => table = *value,
            RuleAttribute::Protocol(value) => protocol = Some(u8::from(*value)),
            RuleAttribute::FwMark(mark) => selector = Selector::Mark(*mark),
            RuleAttribute::Iifname(device) => selector = Selector::Iif(device.clone()),
            RuleAttribute::Source(addr) => {
                selector = Selector::From(Cidr::new(*addr, message.header.src_len)?);
            }
            RuleAttribute::Destination(addr) => {
                selector = Selector::To(Cidr::new(*addr, message.header.dst_len)?);
            }
            RuleAttribute::UidRange(range) => selector = Selector::Uid(range.start),
            RuleAttribute::IpProtocol(IpProtocol::Tcp) => transport = Some(Transport::Tcp),
            RuleAttribute::IpProtocol(IpProtocol::Udp) => transport = Some(Transport::Udp),
            RuleAttribute::DestinationPortRange(range) => port = Some(range.start),
            RuleAttribute::SourcePortRange(_) => services = true,
            _ => {}
        }
    }
    if let (Some(transport), Some(port)) = (transport, port) {
        selector = Selector::Port(transport, port);
    }
    if services && let Selector::From(net) = selector {
        selector = Selector::Services(net);
    }
    let action = match message.header.action {
        RuleAction::ToTable => Action::Lookup(table),
        RuleAction::Unreachable => Action::Unreachable,
        _ => return None,
    };
    let ours = protocol == Some(PROTOCOL) && (FIRST_PREFERENCE..=LAST_PREFERENCE).contains(&preference);
    ours.then_some(Rule { family, preference, selector, action })
}

/// The deletion of the route, if it is one of ours.
fn own_route(message: &RouteMessage) -> Option<Change> {
    let mut table = u32::from(message.header.table);
    let (mut destination, mut index) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Oif(value) => index = Some(*value),
            // It dies with the process that made it.
            RouteAttribute::Priority(standin::METRIC) => return None,
            RouteAttribute::Destination(RouteAddress::Inet(addr)) => destination = Some(IpAddr::V4(*addr)),
            RouteAttribute::Destination(RouteAddress::Inet6(addr)) => destination = Some(IpAddr::V6(*addr)),
            _ => {}
        }
    }
    if table != TABLE || u8::from(message.header.protocol) != PROTOCOL {
        return None;
    }
    let unspecified = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(core::net::Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(core::net::Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let destination =
        Cidr::new(destination.unwrap_or(unspecified), message.header.destination_prefix_length)?;
    Some(match message.header.kind {
        RouteType::Unreachable => Change::UnreachableDelete(Unreachable { destination, table }),
        _ => Change::RouteDelete(Route { destination, device: name_of(index?)?, table }),
    })
}

fn name_of(index: u32) -> Option<String> {
    let mut buffer = [0_u8; libc::IFNAMSIZ];
    // SAFETY: the buffer has the IF_NAMESIZE octets that the call may write, NUL included.
    let name = unsafe { libc::if_indextoname(index, buffer.as_mut_ptr().cast()) };
    if name.is_null() {
        return None;
    }
    let name = std::ffi::CStr::from_bytes_until_nul(&buffer).ok()?;
    name.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(selector: Selector, action: Action) -> Rule {
        Rule { family: Family::V4, preference: FIRST_PREFERENCE, selector, action }
    }

    #[test]
    fn a_rule_of_ours_is_recognised_from_its_own_message() {
        let net = "10.0.0.0/8".parse().unwrap();
        for rule in [
            rule(Selector::All, Action::Lookup(TABLE)),
            rule(Selector::Mark(9), Action::Unreachable),
            rule(Selector::Iif("ztun0".into()), Action::Lookup(254)),
            rule(Selector::From(net), Action::Lookup(254)),
            rule(Selector::To(net), Action::Lookup(254)),
            rule(Selector::Uid(7), Action::Lookup(254)),
            rule(Selector::Services(net), Action::Lookup(254)),
            rule(Selector::Port(Transport::Udp, 53), Action::Lookup(TABLE)),
            rule(Selector::Port(Transport::Tcp, 53), Action::Lookup(TABLE)),
        ] {
            assert_eq!(own_rule(&rule_message(&rule)), Some(rule));
        }
    }

    #[test]
    fn a_rule_of_another_program_or_another_block_is_not_ours() {
        let mut other = rule_message(&rule(Selector::All, Action::Lookup(254)));
        other.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Protocol(_)));
        assert_eq!(own_rule(&other), None);
        let outside = Rule { preference: LAST_PREFERENCE + 1, ..rule(Selector::All, Action::Lookup(254)) };
        assert_eq!(own_rule(&rule_message(&outside)), None);
    }

    #[test]
    fn a_route_that_refuses_is_recognised_from_its_own_message() {
        for destination in ["0.0.0.0/0", "10.0.0.0/8", "::/0"] {
            let route = Unreachable { destination: destination.parse().unwrap(), table: TABLE };
            assert_eq!(own_route(&unreachable_message(&route)), Some(Change::UnreachableDelete(route)));
        }
    }

    #[test]
    fn what_is_gone_needs_no_deletion_and_other_errors_stay() {
        for gone in [libc::ENOENT, libc::ESRCH, libc::ENODEV, libc::EADDRNOTAVAIL] {
            assert_eq!(deleted(Err(io::Error::from_raw_os_error(gone))).unwrap(), Outcome::Already);
        }
        assert!(deleted(Err(io::Error::from_raw_os_error(libc::EPERM))).is_err());
    }
}
