//! Which changes make a machine that runs Windows send its packets into the device: pure.
//!
//! # Theory of operation
//!
//! Windows has one table of routes and no rules beside it: the most specific route wins, then the one of the least metric. So what is captured whole is routed
//! in halves, which win over any default route without touching it, and what stays outside gets a route of its own over the interface and the next hop that
//! the machine has for it at that moment ([`outside`]); where the machine has one that is as specific, it needs none. All routes into the device belong to it and go
//! with it. Those past it stay, and are known by their metric.
//!
//! Networks that are directly connected have routes more specific than what is captured, and so stay outside; with a kill switch they are refused, unless
//! `--bypass` names them. (On Linux they are captured.)
//!
//! Routes are no bounds, so [guards](super::guard) refuse what passes them by: queries for names, IPv6 beside IPv4 alone, and with a kill switch everything
//! that is captured.
//!
//! Names: the device has the name servers in the tunnel, and a rule of the name resolution policy table makes the system's resolver, which else asks
//! those of all interfaces at once, ask them alone.
//!
//! The order of the plan is the order of application: the device, what refuses, the routes that keep something outside, the routes that capture, and last the names.
//! Undone in reverse, a kill switch ends last but for the device.

use super::change::{Address, Change, Outside, Policy, Route, Servers};
use super::guard::{Guard, Kind, local_networks};
use super::rows::Settings;
use crate::config::Cidr;
use crate::host::reversible::{Found, Reversible};
use crate::host::want::{DEFAULT_V4, DEFAULT_V6, Family, Want, covers, network};
use core::cmp::Reverse;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The metric of the device: its name servers and routes come first.
const DEVICE_METRIC: u32 = 0;

/// The machine and the device before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Have {
    /// The device; 0 when there is none.
    pub luid: u64,
    /// Its settings for IPv4; `None` when it has none.
    pub v4: Option<Settings>,
    /// For IPv6.
    pub v6: Option<Settings>,
    /// Its addresses.
    pub addresses: Vec<Cidr>,
    /// Where the routes into it lead.
    pub captured: Vec<Cidr>,
    /// The routes of all other interfaces, without ours.
    pub machine: Vec<MachineRoute>,
}

/// A route of the machine's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MachineRoute {
    /// The destination.
    pub destination: Cidr,
    /// The interface.
    pub luid: u64,
    /// Who passes it on; `None` when the destination is on the link.
    pub next_hop: Option<IpAddr>,
    /// Its metric and its interface's, added.
    pub metric: u64,
}

impl Have {
    fn settings(&self, family: Family) -> Option<Settings> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// The route that the machine takes to a network.
    fn route_to(&self, net: &Cidr) -> Option<&MachineRoute> {
        let leads = |route: &&MachineRoute| covers(&route.destination, net);
        self.machine
            .iter()
            .filter(leads)
            .max_by_key(|route| (route.destination.prefix, Reverse(route.metric)))
    }
}

impl Found<Change> for Have {
    fn shows(&self, change: &Change, shown: &[Change]) -> bool {
        match change {
            Change::InterfaceSet { family, now, .. } => self.settings(*family) == Some(*now),
            Change::AddressAdd(address) => self.addresses.contains(&address.address),
            Change::AddressDelete(address) => !self.addresses.contains(&address.address),
            Change::RouteAdd(route) => self.captured.contains(&route.destination),
            Change::RouteDelete(route) => !self.captured.contains(&route.destination),
            Change::OutsideAdd(_) | Change::PolicyAdd(_) | Change::GuardAdd(_) => {
                shown.contains(&change.undo())
            }
            Change::OutsideDelete(_) | Change::PolicyDelete(_) | Change::GuardDelete(_) => {
                !shown.contains(change)
            }
            // The system does not tell.
            Change::ServersSet(_) | Change::ServersReset(_) => true,
        }
    }

    fn without(mut self, changes: &[Change]) -> Have {
        for change in changes {
            match change {
                Change::InterfaceSet { family, was, .. } => {
                    let settings = match family {
                        Family::V4 => &mut self.v4,
                        Family::V6 => &mut self.v6,
                    };
                    if settings.is_some() {
                        *settings = Some(*was);
                    }
                }
                Change::AddressAdd(address) => self.addresses.retain(|other| *other != address.address),
                Change::RouteAdd(route) => self.captured.retain(|other| *other != route.destination),
                Change::AddressDelete(_)
                | Change::RouteDelete(_)
                | Change::OutsideAdd(_)
                | Change::OutsideDelete(_)
                | Change::ServersSet(_)
                | Change::ServersReset(_)
                | Change::PolicyAdd(_)
                | Change::PolicyDelete(_)
                | Change::GuardAdd(_)
                | Change::GuardDelete(_) => {}
            }
        }
        self
    }
}

/// Whether the device has this family, or the machine has no routes of it. Loopback has it also where it is turned off for everything else.
pub(super) fn is_settled(have: &Have, family: Family) -> bool {
    let leads_out = |route: &MachineRoute| {
        let addr = route.destination.addr;
        Family::of(&route.destination) == family && !addr.is_loopback() && !addr.is_multicast()
    };
    have.settings(family).is_some() || !have.machine.iter().any(leads_out)
}

/// The changes that lead from `have` to `want`, in their order. The machine's name servers are changed with `names` only.
pub(super) fn plan(have: &Have, names: bool, want: &Want) -> Vec<Change> {
    let device = &want.device;
    let families = || [Family::V4, Family::V6].into_iter().filter(|family| have.settings(*family).is_some());
    let mut changes = Vec::new();
    for family in families() {
        let Some(was) = have.settings(family) else { continue };
        let metric = if want.is_routed(family) { Some(DEVICE_METRIC) } else { was.metric };
        let now = Settings { mtu: want.mtu, metric };
        if now != was {
            changes.push(Change::InterfaceSet { device: device.clone(), family, now, was });
        }
    }
    let mut addresses = want.addresses.clone();
    for (family, address) in [(Family::V4, DEFAULT_V4), (Family::V6, DEFAULT_V6)] {
        // Captured packets need an address to come from.
        if want.is_routed(family) && !addresses.iter().any(|net| Family::of(net) == family) {
            addresses.push(address);
        }
    }
    addresses.retain(|net| families().any(|family| family == Family::of(net)));
    for address in addresses.into_iter().filter(|address| !have.addresses.contains(address)) {
        changes.push(Change::AddressAdd(Address { device: device.clone(), address }));
    }
    let captured: Vec<Cidr> = families().flat_map(|family| captured(want, family)).collect();
    if want.routes.is_empty() {
        return changes;
    }
    changes.extend(refused(have, want).map(|kind| Change::GuardAdd(guard(have, want, kind))));
    changes.extend(outside(have, want, &captured).into_iter().map(Change::OutsideAdd));
    let route = |destination| Change::RouteAdd(Route { device: device.clone(), destination });
    changes.extend(captured.into_iter().map(route));
    if names {
        changes.extend(plan_names(have, want));
    }
    changes
}

/// What of `family` is routed into the device: nothing that lies in what stays outside, and halves for the whole.
fn captured(want: &Want, family: Family) -> Vec<Cidr> {
    let mut captured = Vec::new();
    for net in want.destinations(family) {
        if want.bypass.iter().map(network).any(|outer| covers(&outer, &net)) {
            continue;
        }
        let halves = match (family, net.prefix) {
            (Family::V4, 0) => [Ipv4Addr::UNSPECIFIED.into(), IpAddr::from([128, 0, 0, 0])],
            (Family::V6, 0) => {
                [Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x8000, 0, 0, 0, 0, 0, 0, 0).into()]
            }
            (Family::V4 | Family::V6, _) => {
                captured.push(net);
                continue;
            }
        };
        captured.extend(halves.map(|addr| Cidr { addr, prefix: 1 }));
    }
    captured.dedup();
    captured
}

/// What stays outside by its address, each network once: the proxies, and what `--bypass` names.
fn exempt(want: &Want) -> Vec<Cidr> {
    let proxies = want.proxies.iter().filter(|addr| !addr.is_loopback()).map(|addr| Cidr::host(*addr));
    let mut nets: Vec<Cidr> = Vec::new();
    for net in proxies.chain(want.bypass.iter().map(network)) {
        if !nets.contains(&net) {
            nets.push(net);
        }
    }
    nets
}

/// The routes that keep something outside: for what would go into the device, over what the machine has for it.
fn outside(have: &Have, want: &Want, captured: &[Cidr]) -> Vec<Outside> {
    let mut routes = Vec::new();
    for destination in exempt(want) {
        let capturing = captured.iter().filter(|net| covers(net, &destination)).map(|net| net.prefix).max();
        let Some((capturing, own)) = capturing.zip(have.route_to(&destination)) else { continue };
        if own.destination.prefix <= capturing && own.destination != destination {
            routes.push(Outside { destination, luid: own.luid, next_hop: own.next_hop });
        }
    }
    routes
}

/// What is refused from before the first packet is captured.
fn refused(have: &Have, want: &Want) -> impl Iterator<Item = Kind> {
    let kill_switch = want.kill_switch.then_some(Kind::KillSwitch);
    // A device can be without IPv6 on a machine that has it: what was to be captured would pass it by.
    let not_captured = want.is_routed(Family::V6) && have.v6.is_none();
    // A kill switch refuses it as well.
    let ipv6 = ((want.is_refused(Family::V6) || not_captured) && !want.kill_switch).then_some(Kind::Ipv6);
    kill_switch.into_iter().chain(ipv6)
}

fn guard(have: &Have, want: &Want, kind: Kind) -> Guard {
    let whole_v6 = Cidr { addr: Ipv6Addr::UNSPECIFIED.into(), prefix: 0 };
    let mut inside: Vec<Cidr> =
        [Family::V4, Family::V6].into_iter().flat_map(|family| want.destinations(family)).collect();
    let mut outside = exempt(want);
    match kind {
        Kind::KillSwitch => {
            inside.extend(want.is_refused(Family::V6).then_some(whole_v6));
            outside.extend(local_networks());
        }
        Kind::Ipv6 => {
            inside = if want.is_refused(Family::V6) { vec![whole_v6] } else { want.destinations(Family::V6) };
            outside.extend(local_networks());
            outside.retain(|net| Family::of(net) == Family::V6);
        }
        // A resolver that DHCP gave does not get the names, also when its network is bypassed, but for one that is named alone.
        Kind::Names => outside.retain(|net| *net == Cidr::host(net.addr)),
    }
    Guard { kind, luid: have.luid, inside, outside }
}

/// The machine's names, with the name servers that can be reached through the device.
fn plan_names(have: &Have, want: &Want) -> Vec<Change> {
    let reached = |server: &&IpAddr| {
        let family = Family::of(&Cidr::host(**server));
        have.settings(family).is_some() && want.is_routed(family)
    };
    let servers: Vec<IpAddr> = want.dns.iter().filter(reached).copied().collect();
    if servers.is_empty() {
        return Vec::new();
    }
    vec![
        Change::ServersSet(Servers { device: want.device.clone(), servers: servers.clone() }),
        Change::PolicyAdd(Policy { servers }),
        Change::GuardAdd(guard(have, want, Kind::Names)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: u64 = 0x35_0000_0100_0000;
    const ETHERNET: u64 = 0x6_0080_0000_0000;

    fn net(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn nets(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().map(|text| net(text)).collect()
    }

    fn own(destination: &str, next_hop: &str, metric: u64) -> MachineRoute {
        let next_hop = next_hop.parse().ok();
        MachineRoute { destination: net(destination), luid: ETHERNET, next_hop, metric }
    }

    fn have() -> Have {
        let settings = Some(Settings { mtu: 65535, metric: None });
        Have {
            luid: DEVICE,
            v4: settings,
            v6: settings,
            addresses: nets(&["fe80::1/64"]),
            captured: Vec::new(),
            machine: vec![
                own("0.0.0.0/0", "192.168.1.1", 25),
                MachineRoute { luid: 9, ..own("0.0.0.0/0", "10.9.9.9", 60) },
                own("192.168.1.0/24", "-", 281),
                own("192.168.1.5/32", "-", 281),
                own("::/0", "fe80::1", 281),
                own("2001:db8::/64", "-", 281),
            ],
        }
    }

    fn want() -> Want {
        Want {
            device: "ztun0".into(),
            mtu: 1500,
            addresses: nets(&["198.18.0.1/16", "fd7a:7a74:756e::1/64"]),
            routes: nets(&["0.0.0.0/0", "::/0"]),
            bypass: nets(&["192.168.1.77/24", "10.0.0.0/8"]),
            mark: 0x7a74,
            proxies: vec!["203.0.113.9".parse().unwrap(), "127.0.0.1".parse().unwrap()],
            local_uid: None,
            kill_switch: false,
            dns: ["198.18.0.2", "fd7a:7a74:756e::2"].map(|server| server.parse().unwrap()).into(),
        }
    }

    fn text(changes: &[Change]) -> String {
        changes.iter().map(|change| format!("{change}\n")).collect()
    }

    #[test]
    fn the_plan_for_a_whole_machine() {
        let golden = "\
interface set v4 mtu 1500 metric 0 was mtu 65535 metric auto dev ztun0
interface set v6 mtu 1500 metric 0 was mtu 65535 metric auto dev ztun0
address add 198.18.0.1/16 dev ztun0
address add fd7a:7a74:756e::1/64 dev ztun0
route add 203.0.113.9/32 via 192.168.1.1 luid 0x6008000000000
route add 10.0.0.0/8 via 192.168.1.1 luid 0x6008000000000
route add 0.0.0.0/1 dev ztun0
route add 128.0.0.0/1 dev ztun0
route add ::/1 dev ztun0
route add 8000::/1 dev ztun0
dns set 198.18.0.2,fd7a:7a74:756e::2 dev ztun0
dns policy add 198.18.0.2,fd7a:7a74:756e::2 for all names
guard add names luid 0x35000001000000 to 0.0.0.0/0,::/0 outside 203.0.113.9/32
";
        assert_eq!(text(&plan(&have(), true, &want())), golden);
    }

    #[test]
    fn a_kill_switch_comes_before_all_that_captures() {
        let want = Want { kill_switch: true, ..want() };
        let plan = plan(&have(), true, &want);
        let at = |text: &str| plan.iter().position(|change| change.to_string().starts_with(text)).unwrap();
        let golden = "guard add kill-switch luid 0x35000001000000 to 0.0.0.0/0,::/0 outside \
            203.0.113.9/32,192.168.1.0/24,10.0.0.0/8,169.254.0.0/16,224.0.0.0/4,255.255.255.255/32,fe80::/10,ff00::/8";
        assert_eq!(plan[at("guard add kill-switch")].to_string(), golden);
        assert!(at("address add fd7a") < at("guard add kill-switch"));
        assert!(at("guard add kill-switch") < at("route add 203.0.113.9/32"));
        let outliving: Vec<&Change> = plan.iter().filter(|change| change.outlives_device()).collect();
        assert_eq!(outliving, [&plan[at("guard add kill-switch")]]);
    }

    #[test]
    fn ipv6_beside_ipv4_alone_is_refused() {
        let want =
            Want { routes: nets(&["0.0.0.0/0"]), proxies: vec!["2001:db8::9".parse().unwrap()], ..want() };
        let text_of = |want: &Want| text(&plan(&have(), true, want));
        let alone = text_of(&want);
        let guard =
            "guard add ipv6 luid 0x35000001000000 to ::/0 outside 2001:db8::9/128,fe80::/10,ff00::/8\n";
        assert!(alone.contains(guard), "{alone}");
        assert!(!alone.contains("route add ::"), "{alone}");
        assert!(alone.contains("dns set 198.18.0.2 dev"), "{alone}");
        let killed = text_of(&Want { kill_switch: true, ..want });
        assert!(!killed.contains("guard add ipv6"), "{killed}");
        assert!(
            killed.contains("guard add kill-switch luid 0x35000001000000 to 0.0.0.0/0,::/0 "),
            "{killed}"
        );
    }

    #[test]
    fn without_routes_the_device_is_set_up_and_nothing_else() {
        let want = Want { routes: Vec::new(), dns: Vec::new(), ..want() };
        let golden = "\
interface set v4 mtu 1500 metric auto was mtu 65535 metric auto dev ztun0
interface set v6 mtu 1500 metric auto was mtu 65535 metric auto dev ztun0
address add 198.18.0.1/16 dev ztun0
address add fd7a:7a74:756e::1/64 dev ztun0
";
        assert_eq!(text(&plan(&have(), false, &want)), golden);
    }

    #[test]
    fn a_machine_without_ipv6_gets_none() {
        let have = Have { v6: None, ..have() };
        let text = text(&plan(&have, true, &want()));
        let past_guards = text.lines().filter(|line| !line.starts_with("guard"));
        assert!(past_guards.clone().all(|line| !line.contains("::")), "{text}");
        assert!(past_guards.count() > 5, "{text}");
    }

    #[test]
    fn a_device_is_waited_for_until_it_has_each_family_of_the_machine() {
        let settled = |have: &Have| [Family::V4, Family::V6].map(|family| is_settled(have, family));
        assert_eq!(settled(&have()), [true, true]);
        assert_eq!(settled(&Have { v6: None, ..have() }), [true, false]);
        assert_eq!(settled(&Have { v4: None, ..have() }), [false, true]);
        let off =
            vec![own("0.0.0.0/0", "192.168.1.1", 25), own("::1/128", "-", 331), own("ff00::/8", "-", 331)];
        assert_eq!(settled(&Have { v6: None, machine: off, ..have() }), [true, true]);
    }

    #[test]
    fn what_a_device_without_ipv6_cannot_capture_is_refused() {
        let have = Have { v6: None, ..have() };
        let guards = |want: Want| {
            let plan = plan(&have, false, &want);
            let guards = plan.into_iter().filter(|change| matches!(change, Change::GuardAdd(_)));
            guards.map(|guard| guard.to_string()).collect::<Vec<_>>()
        };
        let whole = guards(want());
        assert_eq!(whole.len(), 1, "{whole:?}");
        assert!(whole[0].starts_with("guard add ipv6 luid 0x35000001000000 to ::/0 outside "), "{whole:?}");
        let part = guards(Want { routes: nets(&["0.0.0.0/0", "2001:db8:5::/48"]), ..want() });
        assert!(part[0].starts_with("guard add ipv6 luid 0x35000001000000 to 2001:db8:5::/48 "), "{part:?}");
        let killed = guards(Want { kill_switch: true, ..want() });
        assert!(killed.len() == 1 && killed[0].starts_with("guard add kill-switch "), "{killed:?}");
    }

    #[test]
    fn what_the_machine_routes_as_exactly_needs_no_route_of_ours() {
        let to = |bypass: &str, routes: &[&str]| {
            let want = Want { bypass: nets(&[bypass]), proxies: Vec::new(), routes: nets(routes), ..want() };
            let plan = plan(&have(), false, &want);
            let outside = plan.iter().filter(|change| matches!(change, Change::OutsideAdd(_)));
            outside.map(Change::to_string).collect::<Vec<_>>()
        };
        let all = ["0.0.0.0/0", "::/0"];
        assert_eq!(to("192.168.1.0/24", &all), [""; 0]);
        assert_eq!(to("192.168.1.7", &all), [""; 0]);
        assert_eq!(
            to("192.168.0.0/16", &all),
            ["route add 192.168.0.0/16 via 192.168.1.1 luid 0x6008000000000"]
        );
        // As exact as the network that is captured, which would win by its metric.
        let link = ["route add 192.168.1.7/32 onlink luid 0x6008000000000"];
        assert_eq!(to("192.168.1.7", &["192.168.1.0/24"]), link);
        assert_eq!(to("172.16.0.0/12", &["10.0.0.0/8"]), [""; 0]);
        assert_eq!(
            to("2001:db8:1::/48", &all),
            ["route add 2001:db8:1::/48 via fe80::1 luid 0x6008000000000"]
        );
    }

    #[test]
    fn what_stays_outside_is_not_captured_in_parts() {
        let want =
            Want { routes: nets(&["10.1.0.0/16", "172.16.0.0/12"]), bypass: nets(&["10.0.0.0/8"]), ..want() };
        let text = text(&plan(&have(), false, &want));
        assert!(!text.contains("10.1.0.0"), "{}", text);
        assert!(text.contains("route add 172.16.0.0/12 dev ztun0\n"), "{text}");
    }

    #[test]
    fn names_are_kept_from_a_bypassed_network_but_not_from_a_host_that_is_named_alone() {
        let want = Want { bypass: nets(&["192.168.0.0/16", "192.168.1.1"]), proxies: Vec::new(), ..want() };
        let text = text(&plan(&have(), true, &want));
        assert!(text.ends_with("to 0.0.0.0/0,::/0 outside 192.168.1.1/32\n"), "{text}");
    }

    #[test]
    fn a_plan_that_is_made_is_not_planned_again() {
        let changes = plan(&have(), true, &want());
        let mut after = have();
        for change in &changes {
            if let Change::InterfaceSet { family, now, .. } = change {
                let settings = if *family == Family::V4 { &mut after.v4 } else { &mut after.v6 };
                *settings = Some(*now);
            }
            if let Change::AddressAdd(address) = change {
                after.addresses.push(address.address);
            }
            if let Change::RouteAdd(route) = change {
                after.captured.push(route.destination);
            }
        }
        let shown: Vec<Change> = changes.iter().map(Change::undo).collect();
        assert!(changes.iter().all(|change| after.shows(change, &shown)));
        assert!(
            !changes.iter().any(|change| matches!(change, Change::RouteAdd(_)) && have().shows(change, &[]))
        );
        assert_eq!(after.without(&changes), have());
    }
}
