//! Which changes make a Mac send its packets into the device: pure.
//!
//! # Theory of operation
//!
//! A Mac has one table of routes and no rules, so what is captured is so by routes that are more specific than the default route, which is never
//! touched. Everything that has a route more specific still stays outside: the networks that the machine is on, and what other tunnels lead to.
//!
//! **Pieces.** No route of ours has the destination `0.0.0.0` or `::`, whatever its prefix. The kernel takes a route to these addresses for the default
//! route (`SA_DEFAULT` of XNU's `route.c` looks at no mask): the device would become the primary interface, and sockets that are bound to
//! another one, ztun's own among them, would find no way out (`node_lookup_default`). So all of IPv4 is captured as 1.0.0.0/8, 2.0.0.0/7 and so on to
//! 128.0.0.0/1; what is left, 0.0.0.0/8, is nobody's address. All of IPv6 is captured from 1::/16 to 8000::/1, and of what is left the kernel
//! sends nothing. A piece to which another program already has a route is cut in two as well.
//!
//! **Outside.** ztun's own sockets are bound to the interface of the default route (IP_BOUND_IF), and so find no route into the device. For other
//! programs a proxy and what `--bypass` names get a route of their own to where packets for them went before; a piece inside of what
//! is bypassed is left out.
//!
//! **Kill switch.** The routes into the device go with the device. So each piece is routed twice: its two halves into the device, and
//! the whole to loopback with RTF_REJECT, which outlives the device and is found by whoever finds no half any more. It is a route through a gateway,
//! 127.0.0.1 or ::1: so ztun's own sockets pass it over, being bound, while a route onto loopback itself would be kept for them too (`rt_lookup_common`).
//! One address has no halves, and is not held by a kill switch.
//!
//! **IPv6 beside IPv4 alone** (RFC 7359). When all of IPv4 is captured and IPv6 is not asked for, it would pass the tunnel by. Then the pieces of all
//! IPv6 are refused.
//!
//! The order of the plan is the order of application: the device, what stays outside, the routes that refuse, the routes into the device, and last
//! the name servers. Undone in reverse, names are asked for as before while capturing still lasts, and capturing ends next.

use super::change::{Address, Change, Route, Way};
use super::names::Names;
use crate::config::Cidr;
use crate::host::reversible::{Found, Reversible};
use crate::host::want::{DEFAULT_V4, DEFAULT_V6, Family, Want, covers, network};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A captured network with the address 0 is cut until its first piece has this prefix; that piece is left out.
const NOBODYS_V4: u8 = 8;
const NOBODYS_V6: u8 = 16;

/// The machine and the device before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Have {
    /// Whether the machine speaks IPv6.
    pub ipv6: bool,
    /// MTU of the device, octets.
    pub mtu: u32,
    /// Whether the device is up.
    pub up: bool,
    /// Addresses of the device.
    pub addresses: Vec<Cidr>,
    /// Routes that others have made and that packets of any socket may take. A default route has the prefix 0.
    pub routes: Vec<Route>,
}

impl Found<Change> for Have {
    fn shows(&self, change: &Change, shown: &[Change]) -> bool {
        match change {
            Change::MtuSet { mtu, .. } => self.mtu == *mtu,
            Change::AddressAdd(address) => self.addresses.contains(&address.address),
            Change::AddressDelete(address) => !self.addresses.contains(&address.address),
            Change::LinkUp { .. } => self.up,
            Change::LinkDown { .. } => !self.up,
            Change::RouteAdd(_) => shown.contains(&change.undo()),
            Change::RouteDelete(_) => !shown.contains(change),
            // Whoever keeps it sees to it.
            Change::DnsSet(_) | Change::DnsRestore(_) => true,
        }
    }

    fn without(mut self, changes: &[Change]) -> Have {
        for change in changes {
            match change {
                Change::MtuSet { was, .. } => self.mtu = *was,
                Change::AddressAdd(address) => self.addresses.retain(|other| *other != address.address),
                Change::LinkUp { .. } => self.up = false,
                Change::AddressDelete(_)
                | Change::LinkDown { .. }
                | Change::RouteAdd(_)
                | Change::RouteDelete(_)
                | Change::DnsSet(_)
                | Change::DnsRestore(_) => {}
            }
        }
        self
    }
}

impl Have {
    /// The route that a packet to anywhere in `net` takes without ztun: the most specific one that covers it.
    fn covering(&self, net: &Cidr) -> Option<&Route> {
        let covers = |route: &&Route| covers(&route.to, net);
        self.routes.iter().filter(covers).max_by_key(|route| route.to.prefix)
    }

    fn has_route_to(&self, net: &Cidr) -> bool {
        self.routes.iter().any(|route| route.to == *net)
    }
}

/// The changes that lead from `have` to `want`, in their order. The machine's DNS is left alone without `names`.
pub fn plan(have: &Have, names: bool, want: &Want) -> Vec<Change> {
    let device = &want.device;
    let families: &[Family] = if have.ipv6 { &[Family::V4, Family::V6] } else { &[Family::V4] };
    let mut addresses = want.addresses.clone();
    for (family, address) in [(Family::V4, DEFAULT_V4), (Family::V6, DEFAULT_V6)] {
        // A route into the device needs an address of its family there.
        if want.is_routed(family) && !addresses.iter().any(|net| Family::of(net) == family) {
            addresses.push(address);
        }
    }
    addresses.retain(|address| families.contains(&Family::of(address)));

    let mut changes = Vec::new();
    if have.mtu != want.mtu {
        changes.push(Change::MtuSet { device: device.clone(), mtu: want.mtu, was: have.mtu });
    }
    for &address in addresses.iter().filter(|address| !have.addresses.contains(address)) {
        changes.push(Change::AddressAdd(Address { device: device.clone(), address }));
    }
    if !have.up {
        changes.push(Change::LinkUp { device: device.clone() });
    }
    let mut routes = Routes::default();
    for &family in families {
        routes.capture(have, want, family);
    }
    routes.cover_own_network(want, &addresses);
    routes.let_out(have, want, families);
    changes.extend(routes.in_order(device).map(Change::RouteAdd));

    let reached = |server: &&IpAddr| {
        let family = Family::of(&Cidr::host(**server));
        families.contains(&family) && want.is_routed(family)
    };
    let servers: Vec<IpAddr> = want.dns.iter().filter(reached).copied().collect();
    // Also where the machine's own are public: it binds what it asks them to the interface that they came with.
    if names && !servers.is_empty() {
        changes.push(Change::DnsSet(Names { servers }));
    }
    changes
}

/// The routes of a plan.
#[derive(Debug, Default)]
struct Routes {
    outside: Vec<Route>,
    refused: Vec<Cidr>,
    tunnelled: Vec<Cidr>,
}

impl Routes {
    /// What of `family` is captured or refused.
    fn capture(&mut self, have: &Have, want: &Want, family: Family) {
        if want.is_refused(family) {
            let everything = Cidr { addr: Ipv6Addr::UNSPECIFIED.into(), prefix: 0 };
            self.refused.extend(pieces(have, want, everything));
            return;
        }
        for net in want.destinations(family) {
            for piece in pieces(have, want, net) {
                match halves(piece).filter(|_| want.kill_switch) {
                    Some(halves) => {
                        push(&mut self.refused, piece);
                        for half in halves.into_iter().flat_map(|half| pieces(have, want, half)) {
                            push(&mut self.tunnelled, half);
                        }
                    }
                    None => push(&mut self.tunnelled, piece),
                }
            }
        }
        // One that is captured as a whole may have been asked for in part as well, which is then not refused.
        let tunnelled = &self.tunnelled;
        self.refused.retain(|net| !tunnelled.contains(net));
    }

    /// The network of the device's address, where nothing else leads there. In IPv6 the kernel adds it with the address.
    fn cover_own_network(&mut self, want: &Want, addresses: &[Cidr]) {
        for net in addresses.iter().filter(|net| net.addr.is_ipv4()).map(network) {
            let covered = self.tunnelled.iter().chain(&self.refused).any(|other| covers(other, &net));
            // The address itself is routed by the kernel.
            let alone = net == Cidr::host(net.addr);
            if want.is_routed(Family::V4) && !covered && !alone && !stays_outside(want, &net) {
                self.tunnelled.push(net);
            }
        }
    }

    /// The proxies and what is bypassed keep the way that they have, where a route of ours would take it.
    fn let_out(&mut self, have: &Have, want: &Want, families: &[Family]) {
        for net in exempt(want).filter(|net| families.contains(&Family::of(net))) {
            let Some(before) = have.covering(&net) else { continue };
            let takes = |ours: &Cidr| covers(ours, &net) && ours.prefix >= before.to.prefix;
            let known = self.outside.iter().any(|other| other.to == net);
            if !known && self.tunnelled.iter().chain(&self.refused).any(takes) {
                self.outside.push(Route { to: net, way: before.way.clone() });
            }
        }
    }

    fn in_order(self, device: &str) -> impl Iterator<Item = Route> {
        let refused = self.refused.into_iter().map(|to| Route { to, way: Way::Reject });
        let tunnelled = self.tunnelled.into_iter().map(|to| Route { to, way: Way::Link(device.to_owned()) });
        self.outside.into_iter().chain(refused).chain(tunnelled)
    }
}

fn push(nets: &mut Vec<Cidr>, net: Cidr) {
    if !nets.contains(&net) {
        nets.push(net);
    }
}

/// The proxies that are not on loopback, and what is bypassed.
fn exempt(want: &Want) -> impl Iterator<Item = Cidr> {
    let proxies = want.proxies.iter().filter(|addr| !addr.is_loopback()).map(|&addr| Cidr::host(addr));
    proxies.chain(want.bypass.iter().map(network))
}

/// Whether all of `net` is exempt.
fn stays_outside(want: &Want, net: &Cidr) -> bool {
    exempt(want).any(|outside| covers(&outside, net))
}

/// What `net` is captured as, the least specific first.
fn pieces(have: &Have, want: &Want, net: Cidr) -> Vec<Cidr> {
    let mut pieces = Vec::new();
    let mut rest = vec![net];
    while let Some(net) = rest.pop() {
        let nobodys = if net.addr.is_ipv4() { NOBODYS_V4 } else { NOBODYS_V6 };
        let zero = net.addr.is_unspecified();
        if stays_outside(want, &net) || (zero && net.prefix >= nobodys) {
            continue;
        }
        match halves(net).filter(|_| zero || have.has_route_to(&net)) {
            Some(halves) => rest.extend(halves),
            None => pieces.push(net),
        }
    }
    pieces
}

/// The two halves of a network; one address has none.
fn halves(net: Cidr) -> Option<[Cidr; 2]> {
    let prefix = net.prefix.checked_add(1)?;
    let second = match net.addr {
        IpAddr::V4(addr) => {
            let bit = 1u32.checked_shl(32u32.checked_sub(prefix.into())?)?;
            IpAddr::from(Ipv4Addr::from_bits(addr.to_bits() | bit))
        }
        IpAddr::V6(addr) => {
            let bit = 1u128.checked_shl(128u32.checked_sub(prefix.into())?)?;
            IpAddr::from(Ipv6Addr::from_bits(addr.to_bits() | bit))
        }
    };
    Some([Cidr { addr: net.addr, prefix }, Cidr { addr: second, prefix }])
}

#[cfg(test)]
mod tests;
