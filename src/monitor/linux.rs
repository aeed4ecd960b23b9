//! Routing netlink: multicast groups tell that something has happened, dumps tell what there is.
//!
//! Groups: links, addresses, routes and rules, of both versions of IP. When news come faster than they are taken the kernel drops some and says so
//! (ENOBUFS); then everything may have changed. Not all that happens is told: the IPv4 routes of an interface that goes down go without a word,
//! so an event of a link stands for its routes too.
//!
//! The name servers and the clock have descriptors of their own ([`descriptors`](super::descriptors)). A machine that has no more of those to
//! give is watched without them.

#![allow(clippy::wildcard_enum_match_arm, reason = "the attributes are the kernel's, and it adds to them")]

use super::debounce::Clocks;
use super::descriptors::{ClockWatch, ResolverWatch, clocks};
use super::{DefaultRoute, IfIndex, Interface, Monitor, NetworkState, Noticed, Own, Path, Question};
use crate::netlink::{Netlink, Notice, Notices};
use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType,
};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};

/// RTNLGRP_* of rtnetlink.h: LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE.
const GROUPS: [u32; 7] = [1, 5, 7, 8, 9, 11, 19];

/// RT_TABLE_LOCAL: the kernel's own table, which follows the addresses.
const LOCAL_TABLE: u32 = 255;

/// The network of the namespace in which it was opened.
#[derive(Debug)]
pub struct SystemMonitor {
    own: Own,
    /// Where the device is, while there is one.
    own_index: Option<IfIndex>,
    notices: Notices,
    netlink: Netlink,
    clock: Option<ClockWatch>,
    resolver: Option<ResolverWatch>,
}

impl SystemMonitor {
    /// Watches the calling thread's network namespace, in which `own` are ztun's own things.
    ///
    /// # Errors
    ///
    /// The system's, when it has no more descriptors to give or no routing netlink.
    pub fn new(own: Own) -> io::Result<SystemMonitor> {
        let optional = |what, error| log::debug!("{what} is not watched: {error}");
        let mut monitor = SystemMonitor {
            own,
            own_index: None,
            // Before anything is read, so that what changes meanwhile is told.
            notices: Notices::join(&GROUPS)?,
            netlink: Netlink::route()?,
            clock: ClockWatch::new().map_err(|error| optional("the clock", error)).ok(),
            resolver: ResolverWatch::new().map_err(|error| optional("resolv.conf", error)).ok(),
        };
        monitor.interfaces()?;
        Ok(monitor)
    }

    fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let clock = self.clock.as_ref().map(AsRawFd::as_raw_fd);
        let resolver = self.resolver.as_ref().map(AsRawFd::as_raw_fd);
        core::iter::once(self.notices.as_raw_fd()).chain(clock).chain(resolver)
    }

    /// All interfaces but the device, which is looked for.
    fn interfaces(&mut self) -> io::Result<Vec<Interface>> {
        let mut interfaces = Vec::new();
        self.own_index = None;
        for message in self.netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
            let RouteNetlinkMessage::NewLink(link) = message else { continue };
            let (index, name) = (IfIndex(link.header.index), name_of(&link).unwrap_or_default());
            if name == self.own.device {
                self.own_index = Some(index);
                continue;
            }
            // RUNNING is UP with a carrier, as far as the driver can tell (RFC 2863 operational state).
            let running = link.header.flags.contains(LinkFlags::Up | LinkFlags::Running);
            interfaces.push(Interface { index, name: name.into(), running });
        }
        interfaces.sort_unstable_by_key(|interface| interface.index);
        Ok(interfaces)
    }

    fn addresses(&mut self) -> io::Result<Vec<(IfIndex, IpAddr)>> {
        let mut addresses = Vec::new();
        for message in self.netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
            let RouteNetlinkMessage::NewAddress(message) = message else { continue };
            let index = IfIndex(message.header.index);
            if Some(index) != self.own_index {
                addresses.extend(usable_address(&message).map(|addr| (index, addr)));
            }
        }
        addresses.sort_unstable();
        Ok(addresses)
    }

    fn defaults(&mut self) -> io::Result<Vec<DefaultRoute>> {
        let mut defaults = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let first = defaults.len();
            let routes = match self.netlink.dump(RouteNetlinkMessage::GetRoute(request)) {
                Ok(routes) => routes,
                // A kernel without IPv6.
                Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => continue,
                Err(error) => return Err(error),
            };
            for message in routes {
                if let RouteNetlinkMessage::NewRoute(route) = message {
                    default_routes(&route, &mut defaults);
                }
            }
            // Stable: of equal metrics the kernel's order counts.
            defaults[first..].sort_by_key(|route| route.metric);
        }
        defaults.retain(|route| Some(route.interface) != self.own_index);
        Ok(defaults)
    }
}

impl Source for SystemMonitor {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.descriptors().try_for_each(|fd| registry.register(&mut SourceFd(&fd), token, interests))
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.descriptors().try_for_each(|fd| registry.reregister(&mut SourceFd(&fd), token, interests))
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.descriptors().try_for_each(|fd| registry.deregister(&mut SourceFd(&fd)))
    }
}

impl Monitor for SystemMonitor {
    fn drain(&mut self) -> io::Result<Noticed> {
        let SystemMonitor { own, own_index, notices, .. } = self;
        let mut noticed = Noticed::NOTHING;
        notices.drain(|notice| {
            noticed = noticed.and(match notice {
                Notice::Message(message) => classify(own, own_index, &message),
                Notice::Unknown => Noticed::ANYTHING,
            });
        })?;
        noticed.woke = self.clock.as_mut().is_some_and(ClockWatch::drain);
        noticed.resolver |= self.resolver.as_mut().is_some_and(ResolverWatch::drain);
        Ok(noticed)
    }

    fn state(&mut self) -> io::Result<NetworkState> {
        let interfaces = self.interfaces()?;
        let addresses = self.addresses()?;
        let defaults = self.defaults()?;
        let resolver = self.resolver.as_mut().and_then(ResolverWatch::fingerprint);
        Ok(NetworkState { defaults, interfaces, addresses, resolver })
    }

    fn path(&mut self, question: Question) -> io::Result<Option<Path>> {
        let answer = match self.netlink.one(RouteNetlinkMessage::GetRoute(route_question(question))) {
            Ok(answer) => answer,
            Err(error) => {
                return match error.raw_os_error() {
                    // Without a route, with one that says so, by an interface or from an address that is not there.
                    Some(
                        libc::ENETUNREACH
                        | libc::EHOSTUNREACH
                        | libc::ENETDOWN
                        | libc::EACCES
                        | libc::EINVAL
                        | libc::ENODEV
                        | libc::ENXIO
                        | libc::EADDRNOTAVAIL
                        | libc::EAFNOSUPPORT,
                    ) => Ok(None),
                    _ => Err(error),
                };
            }
        };
        let Some(RouteNetlinkMessage::NewRoute(route)) = answer else { return Ok(None) };
        Ok(match (route.header.kind, outgoing(&route.attributes)) {
            (RouteType::Local, _) => Some(Path::Local),
            (RouteType::Unicast, Some(index)) => {
                question.interface.is_none_or(|wanted| wanted == index).then_some(Path::Leaves(index))
            }
            _ => None,
        })
    }

    fn clocks(&self) -> Clocks {
        clocks()
    }
}

/// What a piece of news means.
fn classify(own: &Own, own_index: &mut Option<IfIndex>, message: &RouteNetlinkMessage) -> Noticed {
    let state = Noticed { state: true, ..Noticed::NOTHING };
    let routes = Noticed { routes: true, ..Noticed::NOTHING };
    let gone = Noticed { own: true, ..Noticed::NOTHING };
    match message {
        RouteNetlinkMessage::NewLink(link) if is_own(own, *own_index, link) => {
            *own_index = Some(IfIndex(link.header.index));
            // A device that is down has lost its routes, without a word of IPv4's.
            if link.header.flags.contains(LinkFlags::Up) { Noticed::NOTHING } else { gone }
        }
        // A port that leaves a bridge is not an interface that goes.
        RouteNetlinkMessage::DelLink(link)
            if is_own(own, *own_index, link) && link.header.interface_family == AddressFamily::Unspec =>
        {
            *own_index = None;
            gone
        }
        RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelLink(_) => state,
        RouteNetlinkMessage::NewAddress(address) if Some(IfIndex(address.header.index)) == *own_index => {
            Noticed::NOTHING
        }
        RouteNetlinkMessage::DelAddress(address) if Some(IfIndex(address.header.index)) == *own_index => gone,
        RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => state,
        RouteNetlinkMessage::NewRoute(route) if u8::from(route.header.protocol) == own.protocol => {
            Noticed::NOTHING
        }
        RouteNetlinkMessage::DelRoute(route) if u8::from(route.header.protocol) == own.protocol => gone,
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            // Entries of the kernel's cache, and of its own table, follow others that are told.
            let follows = route.header.flags.contains(RouteFlags::Cloned) || table_of(route) == LOCAL_TABLE;
            let by_device = own_index.is_some() && outgoing(&route.attributes) == *own_index;
            if follows || by_device { Noticed::NOTHING } else { routes }
        }
        RouteNetlinkMessage::NewRule(rule) if is_own_rule(own, rule) => Noticed::NOTHING,
        RouteNetlinkMessage::DelRule(rule) if is_own_rule(own, rule) => gone,
        RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => routes,
        _ => Noticed::NOTHING,
    }
}

fn is_own(own: &Own, own_index: Option<IfIndex>, link: &LinkMessage) -> bool {
    Some(IfIndex(link.header.index)) == own_index || name_of(link) == Some(&own.device)
}

fn is_own_rule(own: &Own, rule: &RuleMessage) -> bool {
    rule.attributes.iter().any(
        |attribute| matches!(attribute, RuleAttribute::Protocol(protocol) if u8::from(*protocol) == own.protocol),
    )
}

fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

/// The machine's end of an address; `None` when somebody else on the link has it too.
fn usable_address(message: &AddressMessage) -> Option<IpAddr> {
    // On a point-to-point link ADDRESS is the peer's and LOCAL ours; IPv6 often gives only ADDRESS.
    let (mut local, mut address, mut failed) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(addr) => local = Some(*addr),
            AddressAttribute::Address(addr) => address = Some(*addr),
            AddressAttribute::Flags(flags) => failed = flags.contains(AddressFlags::Dadfailed),
            _ => {}
        }
    }
    local.or(address).filter(|_| !failed)
}

fn table_of(route: &RouteMessage) -> u32 {
    let table = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or(route.header.table.into())
}

fn outgoing(attributes: &[RouteAttribute]) -> Option<IfIndex> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(IfIndex(*index)),
        _ => None,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(addr) => Some((*addr).into()),
        RouteAddress::Inet6(addr) => Some((*addr).into()),
        _ => None,
    }
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(addr) => ip(addr),
        _ => None,
    })
}

/// Adds the routes to everywhere that `route` stands for: one, or one for each of its next hops.
fn default_routes(route: &RouteMessage, defaults: &mut Vec<DefaultRoute>) {
    let header = &route.header;
    let everywhere = header.destination_prefix_length == 0 && header.kind == RouteType::Unicast;
    if !everywhere || table_of(route) != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return;
    }
    let (mut metric, mut source) = (0, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::PrefSource(addr) => source = ip(addr),
            _ => {}
        }
    }
    let v6 = header.address_family == AddressFamily::Inet6;
    let mut add = |interface, gateway| {
        defaults.push(DefaultRoute { v6, interface, gateway, source, metric });
    };
    if let Some(interface) = outgoing(&route.attributes) {
        add(interface, gateway(&route.attributes));
    }
    for attribute in &route.attributes {
        if let RouteAttribute::MultiPath(hops) = attribute {
            hops.iter().for_each(|hop| add(IfIndex(hop.interface_index), gateway(&hop.attributes)));
        }
    }
}

fn route_question(question: Question) -> RouteMessage {
    let Question { to, from, interface, mark } = question;
    let mut message = RouteMessage::default();
    let (family, bits) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = bits;
    message.attributes.push(RouteAttribute::Destination(to.into()));
    if let Some(from) = from {
        message.header.source_prefix_length = bits;
        message.attributes.push(RouteAttribute::Source(from.into()));
    }
    if let Some(IfIndex(index)) = interface {
        // Else IPv4 takes a destination without a route to be on the link.
        message.header.flags |= RouteFlags::FibMatch;
        message.attributes.push(RouteAttribute::Oif(index));
    }
    message.attributes.extend(mark.map(RouteAttribute::Mark));
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::route::RouteProtocol;

    const PROTOCOL: u8 = 122;
    const OWN_INDEX: u32 = 7;

    fn told(message: RouteNetlinkMessage) -> Noticed {
        let own = Own { device: "ztun0".into(), protocol: PROTOCOL };
        classify(&own, &mut Some(IfIndex(OWN_INDEX)), &message)
    }

    fn link(index: u32, name: &str, flags: LinkFlags) -> LinkMessage {
        let mut link = LinkMessage::default();
        (link.header.index, link.header.flags) = (index, flags);
        link.attributes.push(LinkAttribute::IfName(name.into()));
        link
    }

    fn route(protocol: u8, table: u32, index: u32) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.protocol = RouteProtocol::from(protocol);
        route.header.kind = RouteType::Unicast;
        route.attributes.extend([RouteAttribute::Table(table), RouteAttribute::Oif(index)]);
        route
    }

    fn rule(protocol: u8) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.attributes.push(RuleAttribute::Protocol(RouteProtocol::from(protocol)));
        rule
    }

    const STATE: Noticed = Noticed { state: true, ..Noticed::NOTHING };
    const ROUTES: Noticed = Noticed { routes: true, ..Noticed::NOTHING };
    const GONE: Noticed = Noticed { own: true, ..Noticed::NOTHING };

    #[test]
    fn what_the_router_makes_is_no_news_and_that_it_goes_is() {
        use RouteNetlinkMessage::{
            DelAddress, DelLink, DelRoute, DelRule, NewAddress, NewLink, NewRoute, NewRule,
        };
        let mut address = AddressMessage::default();
        address.header.index = OWN_INDEX;
        for (made, goes) in [
            (NewAddress(address.clone()), DelAddress(address)),
            (NewRoute(route(PROTOCOL, 31_348, OWN_INDEX)), DelRoute(route(PROTOCOL, 31_348, OWN_INDEX))),
            (NewRoute(route(PROTOCOL, 31_348, 0)), DelRoute(route(PROTOCOL, 31_348, 0))),
            (NewRule(rule(PROTOCOL)), DelRule(rule(PROTOCOL))),
            (
                NewLink(link(OWN_INDEX, "ztun0", LinkFlags::Up)),
                DelLink(link(OWN_INDEX, "ztun0", LinkFlags::empty())),
            ),
            (NewLink(link(9, "ztun0", LinkFlags::Up)), NewLink(link(9, "ztun0", LinkFlags::empty()))),
        ] {
            assert_eq!(told(made.clone()), Noticed::NOTHING, "{made:?}");
            assert_eq!(told(goes.clone()), GONE, "{goes:?}");
        }
    }

    #[test]
    fn what_others_do_is_told_by_kind() {
        use RouteNetlinkMessage::{
            DelAddress, DelLink, DelRoute, DelRule, NewAddress, NewLink, NewRoute, NewRule,
        };
        for (message, kind) in [
            (NewLink(link(2, "eth0", LinkFlags::Up)), STATE),
            (DelLink(link(2, "eth0", LinkFlags::empty())), STATE),
            (NewAddress(AddressMessage::default()), STATE),
            (DelAddress(AddressMessage::default()), STATE),
            (NewRoute(route(3, 254, 2)), ROUTES),
            (DelRoute(route(16, 254, 2)), ROUTES),
            (NewRule(rule(0)), ROUTES),
            (DelRule(RuleMessage::default()), ROUTES),
            (NewRoute(route(2, LOCAL_TABLE, 2)), Noticed::NOTHING),
            (NewRoute(route(2, 254, OWN_INDEX)), Noticed::NOTHING),
        ] {
            assert_eq!(told(message.clone()), kind, "{message:?}");
        }
    }

    #[test]
    fn a_device_made_again_is_followed_and_a_bridge_port_is_no_device() {
        let own = Own { device: "ztun0".into(), protocol: PROTOCOL };
        let mut index = Some(IfIndex(OWN_INDEX));
        let mut port = link(OWN_INDEX, "ztun0", LinkFlags::Up);
        port.header.interface_family = AddressFamily::Bridge;
        assert_eq!(classify(&own, &mut index, &RouteNetlinkMessage::DelLink(port)), STATE);
        let gone = link(OWN_INDEX, "ztun0", LinkFlags::empty());
        assert_eq!(classify(&own, &mut index, &RouteNetlinkMessage::DelLink(gone)), GONE);
        assert_eq!(index, None);
        let made = link(12, "ztun0", LinkFlags::Up);
        assert_eq!(classify(&own, &mut index, &RouteNetlinkMessage::NewLink(made)), Noticed::NOTHING);
        assert_eq!(index, Some(IfIndex(12)));
    }

    #[test]
    fn default_routes_are_those_of_main_each_next_hop_one() {
        use netlink_packet_route::route::RouteNextHop;
        let gateway: IpAddr = "192.0.2.1".parse().unwrap();
        let mut one = route(3, 254, 2);
        one.header.address_family = AddressFamily::Inet;
        one.attributes.extend([RouteAttribute::Gateway(gateway.into()), RouteAttribute::Priority(100)]);
        let mut elsewhere = route(3, 100, 2);
        elsewhere.header.address_family = AddressFamily::Inet;
        let mut narrow = one.clone();
        narrow.header.destination_prefix_length = 1;
        let mut blackhole = one.clone();
        blackhole.header.kind = RouteType::BlackHole;
        let mut two = RouteMessage::default();
        two.header.table = 254;
        two.header.kind = RouteType::Unicast;
        let hop = |index| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop
        };
        two.attributes.push(RouteAttribute::MultiPath(vec![hop(3), hop(4)]));
        let mut defaults = Vec::new();
        for route in [&one, &elsewhere, &narrow, &blackhole, &two] {
            default_routes(route, &mut defaults);
        }
        let seen: Vec<_> =
            defaults.iter().map(|route| (route.interface.0, route.gateway, route.metric)).collect();
        assert_eq!(seen, [(2, Some(gateway), 100), (3, None, 0), (4, None, 0)]);
    }

    #[test]
    fn the_state_of_this_machine_can_be_read_and_loopback_stays_on_it() {
        let own = Own { device: "ztun-none".into(), protocol: PROTOCOL };
        let mut monitor = SystemMonitor::new(own).unwrap();
        let state = monitor.state().unwrap();
        let loopback = "127.0.0.1".parse().unwrap();
        let index = state.interface_of(loopback).expect("loopback has its address");
        assert!(state.is_running(index), "{state:?}");
        let to_loopback = Question { to: loopback, from: None, interface: None, mark: None };
        assert_eq!(monitor.path(to_loopback).unwrap(), Some(Path::Local));
        let nowhere = Question { from: Some("192.0.2.77".parse().unwrap()), ..to_loopback };
        let by_none = Question { interface: Some(IfIndex(1 << 30)), ..to_loopback };
        assert_eq!(monitor.path(nowhere).unwrap(), None, "from an address that is not the machine's");
        assert_eq!(monitor.path(by_none).unwrap(), None, "by an interface that is not there");
    }
}
