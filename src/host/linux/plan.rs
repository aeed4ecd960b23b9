//! Which changes make the machine send its packets into the device: pure.
//!
//! # Theory of operation
//!
//! The machine's own routes are never touched. A table of our own ([`TABLE`]) leads into the device, and one block of policy rules,
//! asked before the machine's own, decides who looks into it. From the first rule to the last:
//!
//! | preference | packets | outcome |
//! |---|---|---|
//! | 5200 | with our mark: ztun's own sockets | the machine's main table |
//! | 5201 | with our mark, where main has no route | unreachable: they never fall through into the device, so there is no loop |
//! | 5202 | that came out of the device | main: what is for a container or a forwarded client must not come back |
//! | 5203 | to and from a proxy (which may be in a container of this machine), of the local proxy's user when that user runs nothing else, and to a host that `--bypass` names alone | main |
//! | 5204 | to port 53 | the table that leads into the device: a resolver that DHCP gave does not get the names, also when its network is bypassed |
//! | 5205 | from an address of the machine that is not the device's; where IPv6 is refused, or may be, only TCP from ports of services | main: answers of services and connections made before keep their path. A new connection has no source address yet when its route is looked up |
//! | 5206 | to link-local and multicast networks, and to those of `--bypass` | main |
//! | 5210 | all | the table that leads into the device; what it does not cover goes on as if ztun was not there |
//! | 5211 | to what is captured, with `--kill-switch` | unreachable: sockets bound to another device, for which the table has no route, find no router either |
//!
//! Main is asked for nothing else: a more specific route that someone pushes into it captures nothing.
//!
//! **Kill switch.** Each captured network has a second route in the table, of the greatest metric there is, which refuses. It belongs to no
//! device: when the device dies with ztun, it takes the routes into it along, and this one and the rules stay. What was captured fails at once.
//!
//! **IPv6 beside IPv4 alone** (RFC 7359). When all of IPv4 is captured and IPv6 is not asked for, it would pass the tunnel by.
//! Then the table gets a route that refuses all of it, and the same rules as for IPv4.
//!
//! **Probing** (CVE-2019-14899). What comes in for the device's addresses by another interface is dropped, so that the local network can neither find
//! out which they are nor make the machine answer for connections through the tunnel.
//!
//! Linux answers a refusal for IPv6 by choosing one of the machine's addresses as source, and looking the route up again with it. Preference 5205 would
//! let that out. So where a route refuses, it is for IPv6 only for what services answer: TCP from ports that new connections do not have.
//!
//! The order of the plan is the order of application: the device, the filters, the routes that refuse, the rules that keep packets outside, the routes
//! into the device, and last the rules that capture. Undone in reverse, capturing ends first.
//!
//! An address of the device brings no route into main (`noprefixroute`): a marked packet to its network would find one there and loop.
//! The network is routed in the table of ours instead.

use super::change::{
    Action, Address, Change, Filter, Hook, MAIN_TABLE, Route, Rule, Selector, TABLE, Transport, Unreachable,
};
use super::dns::{self, Situation};
use crate::config::Cidr;
use crate::host::reversible::{Found, Reversible};
use crate::host::want::{DEFAULT_V4, DEFAULT_V6, Family, Want, covers, network};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The first preference of the block.
pub const FIRST_PREFERENCE: u32 = 5200;
/// The last preference of the block: up to here rules with our protocol number are ours.
pub const LAST_PREFERENCE: u32 = 5299;

const MARKED: u32 = FIRST_PREFERENCE;
const MARKED_WITHOUT_ROUTE: u32 = 5201;
const FROM_DEVICE: u32 = 5202;
const EXEMPT: u32 = 5203;
const NAMES: u32 = 5204;
const FROM_OWN_ADDRESS: u32 = 5205;
const TO_OUTSIDE: u32 = 5206;
const CAPTURE: u32 = 5210;
const CAPTURED_WITHOUT_ROUTE: u32 = 5211;

/// The port of DNS (RFC 1035 section 4.2).
const DNS: u16 = 53;

/// Whether the machine speaks IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ipv6 {
    /// Not at all: nothing can leak and nothing is set up.
    Absent,
    /// It does, but new devices are born without it.
    OffOnDevice,
    /// It does.
    On,
}

/// The machine and the device before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Have {
    /// Whether the machine speaks IPv6.
    pub ipv6: Ipv6,
    /// MTU of the device, octets.
    pub mtu: u32,
    /// Whether the device is up.
    pub up: bool,
    /// Addresses of the device.
    pub addresses: Vec<Cidr>,
    /// Addresses of all other devices but loopback that are valid beyond their link.
    pub own_addresses: Vec<IpAddr>,
    /// The machine's DNS; `None` when it was not looked at, and is not changed.
    pub dns: Option<Situation>,
}

impl Found<Change> for Have {
    fn shows(&self, change: &Change, shown: &[Change]) -> bool {
        match change {
            Change::Ipv6On { .. } => self.ipv6 != Ipv6::OffOnDevice,
            Change::Ipv6Off { .. } => self.ipv6 != Ipv6::On,
            Change::AddressAdd(address) => self.addresses.contains(&address.address),
            Change::AddressDelete(address) => !self.addresses.contains(&address.address),
            Change::MtuSet { mtu, .. } => self.mtu == *mtu,
            Change::LinkUp { .. } => self.up,
            Change::LinkDown { .. } => !self.up,
            Change::RouteAdd(_) | Change::UnreachableAdd(_) | Change::RuleAdd(_) => {
                shown.contains(&change.undo())
            }
            Change::RouteDelete(_) | Change::UnreachableDelete(_) | Change::RuleDelete(_) => {
                !shown.contains(change)
            }
            Change::FilterAdd(filter) => has_filter(shown, filter.hook),
            Change::FilterDelete(filter) => !has_filter(shown, filter.hook),
            // Others may write there too, and what they write may have to stand: see `dns::Upkeep`.
            Change::DnsSet(_) | Change::DnsRestore(_) => true,
        }
    }

    fn without(mut self, changes: &[Change]) -> Have {
        for change in changes {
            match change {
                Change::Ipv6On { .. } if self.ipv6 == Ipv6::On => self.ipv6 = Ipv6::OffOnDevice,
                Change::AddressAdd(address) => self.addresses.retain(|other| *other != address.address),
                Change::MtuSet { was, .. } => self.mtu = *was,
                Change::LinkUp { .. } => self.up = false,
                Change::Ipv6On { .. }
                | Change::Ipv6Off { .. }
                | Change::AddressDelete(_)
                | Change::LinkDown { .. }
                | Change::RouteAdd(_)
                | Change::RouteDelete(_)
                | Change::UnreachableAdd(_)
                | Change::UnreachableDelete(_)
                | Change::RuleAdd(_)
                | Change::RuleDelete(_)
                | Change::FilterAdd(_)
                | Change::FilterDelete(_)
                | Change::DnsSet(_)
                | Change::DnsRestore(_) => {}
            }
        }
        self
    }
}

/// Whether the filter of this kind is there, of which the machine shows no more than that.
fn has_filter(shown: &[Change], hook: Hook) -> bool {
    shown.iter().any(|undo| matches!(undo, Change::FilterDelete(filter) if filter.hook == hook))
}

/// The changes that lead from `have` to `want`, in their order.
pub fn plan(have: &Have, want: &Want) -> Vec<Change> {
    let device = &want.device;
    let mut changes = Vec::new();
    let families: &[Family] = match have.ipv6 {
        Ipv6::Absent => &[Family::V4],
        Ipv6::OffOnDevice | Ipv6::On => &[Family::V4, Family::V6],
    };
    let mut addresses = want.addresses.clone();
    for (family, address) in [(Family::V4, DEFAULT_V4), (Family::V6, DEFAULT_V6)] {
        // Captured packets without an address of the device would take another device's and leave by rule 5205.
        if want.is_routed(family) && !addresses.iter().any(|net| Family::of(net) == family) {
            addresses.push(address);
        }
    }
    addresses.retain(|address| families.contains(&Family::of(address)));

    if have.ipv6 == Ipv6::OffOnDevice && addresses.iter().any(|net| Family::of(net) == Family::V6) {
        changes.push(Change::Ipv6On { device: device.clone() });
    }
    if have.mtu != want.mtu {
        changes.push(Change::MtuSet { device: device.clone(), mtu: want.mtu, was: have.mtu });
    }
    for &address in addresses.iter().filter(|address| !have.addresses.contains(address)) {
        let prefix_route = want.routes.is_empty();
        changes.push(Change::AddressAdd(Address { device: device.clone(), address, prefix_route }));
    }
    if !have.up {
        changes.push(Change::LinkUp { device: device.clone() });
    }
    if want.routes.iter().any(|net| families.contains(&Family::of(net))) {
        changes.extend(filters(device, &addresses).into_iter().map(Change::FilterAdd));
    }
    let involved =
        || families.iter().copied().filter(|&family| want.is_routed(family) || want.is_refused(family));
    changes.extend(involved().flat_map(|family| refusals(want, family)).map(Change::UnreachableAdd));
    changes.extend(involved().flat_map(|family| outside(have, want, family)).map(Change::RuleAdd));
    changes.extend(involved().flat_map(|family| routes(want, &addresses, family)).map(Change::RouteAdd));
    changes.extend(involved().flat_map(|family| capture(want, family)).map(Change::RuleAdd));
    if let Some(situation) = &have.dns {
        let reached = |server: &&IpAddr| {
            let family = Family::of(&Cidr::host(**server));
            families.contains(&family) && want.is_routed(family)
        };
        let servers: Vec<IpAddr> = want.dns.iter().filter(reached).copied().collect();
        changes.extend(dns::plan(situation, device, &servers).map(Change::DnsSet));
    }
    changes
}

/// What keeps the local network from the device's addresses.
fn filters(device: &str, addresses: &[Cidr]) -> Vec<Filter> {
    let filter = |hook, addresses: Vec<IpAddr>| Filter { hook, device: device.into(), addresses };
    let all = || addresses.iter().map(|net| net.addr);
    let filters =
        [filter(Hook::Packets, all().collect()), filter(Hook::Arp, all().filter(IpAddr::is_ipv4).collect())];
    filters.into_iter().filter(|filter| !filter.addresses.is_empty()).collect()
}

/// The routes that refuse.
fn refusals(want: &Want, family: Family) -> Vec<Unreachable> {
    let destinations = if want.is_refused(family) {
        vec![Cidr { addr: Ipv6Addr::UNSPECIFIED.into(), prefix: 0 }]
    } else if want.kill_switch {
        want.destinations(family)
    } else {
        Vec::new()
    };
    destinations.into_iter().map(|destination| Unreachable { destination, table: TABLE }).collect()
}

/// The routes into the device.
fn routes(want: &Want, addresses: &[Cidr], family: Family) -> Vec<Route> {
    if want.is_refused(family) {
        return Vec::new();
    }
    let mut destinations = want.destinations(family);
    for net in addresses.iter().filter(|net| Family::of(net) == family).map(network) {
        if !destinations.iter().any(|other| covers(other, &net)) {
            destinations.push(net);
        }
    }
    destinations
        .into_iter()
        .map(|destination| Route { destination, device: want.device.clone(), table: TABLE })
        .collect()
}

/// The rules that keep packets outside.
fn outside(have: &Have, want: &Want, family: Family) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut add = |preference, selector, action| {
        let rule = Rule { family, preference, selector, action };
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    };
    let main = Action::Lookup(MAIN_TABLE);
    add(MARKED, Selector::Mark(want.mark), main);
    add(MARKED_WITHOUT_ROUTE, Selector::Mark(want.mark), Action::Unreachable);
    add(FROM_DEVICE, Selector::Iif(want.device.clone()), main);
    // A proxy on loopback is reached through the local table, which comes before all others.
    let ours = |net: &Cidr| Family::of(net) == family;
    let proxies = || want.proxies.iter().filter(|addr| !addr.is_loopback()).map(|&addr| Cidr::host(addr));
    for net in proxies().filter(ours) {
        // A proxy in a container of this machine: what it sends is forwarded, and must not come back either.
        add(EXEMPT, Selector::From(net), main);
    }
    let (hosts, networks): (Vec<Cidr>, Vec<Cidr>) =
        want.bypass.iter().map(network).filter(ours).partition(|net| *net == Cidr::host(net.addr));
    for net in proxies().filter(ours).chain(hosts) {
        add(EXEMPT, Selector::To(net), main);
    }
    if let Some(uid) = want.local_uid {
        add(EXEMPT, Selector::Uid(uid), main);
    }
    // IPv6 takes no for no answer: where a lookup without a source is refused, the kernel chooses one of the machine's addresses and asks again with it
    // (RFC 6724).
    let refusing = family == Family::V6 && (want.kill_switch || want.is_refused(family));
    // The device's own addresses are on its stand-in as well.
    let given = || want.addresses.iter().chain([&DEFAULT_V4, &DEFAULT_V6]);
    let foreign = |addr: &&IpAddr| !given().any(|net| net.addr == **addr);
    for net in have.own_addresses.iter().filter(foreign).map(|&addr| Cidr::host(addr)).filter(ours) {
        add(FROM_OWN_ADDRESS, if refusing { Selector::Services(net) } else { Selector::From(net) }, main);
    }
    for net in noise(family).into_iter().chain(networks) {
        // A network of all addresses is no condition, and the kernel gives it back as none.
        add(TO_OUTSIDE, if net.prefix == 0 { Selector::All } else { Selector::To(net) }, main);
    }
    rules
}

/// The rules that lead into the device.
fn capture(want: &Want, family: Family) -> Vec<Rule> {
    let table = Action::Lookup(TABLE);
    let rule = |preference, selector, action| Rule { family, preference, selector, action };
    let mut rules = vec![
        rule(NAMES, Selector::Port(Transport::Udp, DNS), table),
        rule(NAMES, Selector::Port(Transport::Tcp, DNS), table),
        rule(CAPTURE, Selector::All, table),
    ];
    if want.kill_switch {
        for net in refusals(want, family).iter().map(|route| route.destination) {
            let selector = if net.prefix == 0 { Selector::All } else { Selector::To(net) };
            rules.push(rule(CAPTURED_WITHOUT_ROUTE, selector, Action::Unreachable));
        }
    }
    rules
}

/// Link-local, multicast and broadcast: they have no meaning behind a proxy.
fn noise(family: Family) -> Vec<Cidr> {
    let v4 = |a, b, prefix| Cidr { addr: Ipv4Addr::new(a, b, 0, 0).into(), prefix };
    let v6 = |a, prefix| Cidr { addr: Ipv6Addr::new(a, 0, 0, 0, 0, 0, 0, 0).into(), prefix };
    match family {
        Family::V4 => vec![v4(169, 254, 16), v4(224, 0, 4), Cidr::host(Ipv4Addr::BROADCAST.into())],
        Family::V6 => vec![v6(0xfe80, 10), v6(0xff00, 8)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HostPlanConfig;

    fn have() -> Have {
        Have {
            ipv6: Ipv6::On,
            mtu: 1400,
            up: false,
            addresses: Vec::new(),
            own_addresses: vec!["192.168.1.5".parse().unwrap(), "2001:db8::5".parse().unwrap()],
            dns: None,
        }
    }

    fn want() -> Want {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Want {
            device: "ztun0".into(),
            mtu: 1500,
            addresses: nets(&["198.18.0.1/16", "fd7a:7a74:756e::1/64"]),
            routes: nets(&["0.0.0.0/0", "::/0"]),
            bypass: nets(&["192.168.1.77/24"]),
            mark: 0x7a74,
            proxies: vec!["203.0.113.9".parse().unwrap(), "127.0.0.1".parse().unwrap()],
            local_uid: Some(115),
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
mtu set 1500 was 1400 dev ztun0
address add 198.18.0.1/16 dev ztun0 noprefixroute
address add fd7a:7a74:756e::1/64 dev ztun0 noprefixroute
link up dev ztun0
filter add packets to 198.18.0.1,fd7a:7a74:756e::1 not by dev ztun0
filter add arp to 198.18.0.1 not by dev ztun0
rule add v4 pref 5200 fwmark 0x7a74 lookup main
rule add v4 pref 5201 fwmark 0x7a74 unreachable
rule add v4 pref 5202 iif ztun0 lookup main
rule add v4 pref 5203 from 203.0.113.9/32 lookup main
rule add v4 pref 5203 to 203.0.113.9/32 lookup main
rule add v4 pref 5203 uid 115 lookup main
rule add v4 pref 5205 from 192.168.1.5/32 lookup main
rule add v4 pref 5206 to 169.254.0.0/16 lookup main
rule add v4 pref 5206 to 224.0.0.0/4 lookup main
rule add v4 pref 5206 to 255.255.255.255/32 lookup main
rule add v4 pref 5206 to 192.168.1.0/24 lookup main
rule add v6 pref 5200 fwmark 0x7a74 lookup main
rule add v6 pref 5201 fwmark 0x7a74 unreachable
rule add v6 pref 5202 iif ztun0 lookup main
rule add v6 pref 5203 uid 115 lookup main
rule add v6 pref 5205 from 2001:db8::5/128 lookup main
rule add v6 pref 5206 to fe80::/10 lookup main
rule add v6 pref 5206 to ff00::/8 lookup main
route add 0.0.0.0/0 dev ztun0 table 31348
route add ::/0 dev ztun0 table 31348
rule add v4 pref 5204 ipproto udp dport 53 lookup 31348
rule add v4 pref 5204 ipproto tcp dport 53 lookup 31348
rule add v4 pref 5210 all lookup 31348
rule add v6 pref 5204 ipproto udp dport 53 lookup 31348
rule add v6 pref 5204 ipproto tcp dport 53 lookup 31348
rule add v6 pref 5210 all lookup 31348
";
        assert_eq!(text(&plan(&have(), &want())), golden);
    }

    #[test]
    fn without_ipv6_on_the_machine_nothing_of_it_is_planned() {
        let changes = text(&plan(&Have { ipv6: Ipv6::Absent, ..have() }, &want()));
        assert!(!changes.contains("v6") && !changes.contains("::"), "{changes}");
    }

    #[test]
    fn a_device_born_without_ipv6_gets_it_before_its_addresses() {
        let changes = plan(&Have { ipv6: Ipv6::OffOnDevice, ..have() }, &want());
        assert_eq!(changes[0], Change::Ipv6On { device: "ztun0".into() });
    }

    #[test]
    fn no_route_leaves_only_the_device_to_set_up() {
        let changes = text(&plan(&have(), &Want { routes: Vec::new(), ..want() }));
        let golden = "\
mtu set 1500 was 1400 dev ztun0
address add 198.18.0.1/16 dev ztun0
address add fd7a:7a74:756e::1/64 dev ztun0
link up dev ztun0
";
        assert_eq!(changes, golden);
    }

    #[test]
    fn some_networks_only_and_the_devices_own() {
        let routes = vec!["10.9.8.7/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()];
        let changes = text(&plan(&have(), &Want { routes, ..want() }));
        let routes: Vec<&str> = changes.lines().filter(|line| line.starts_with("route")).collect();
        assert_eq!(
            routes,
            ["route add 10.0.0.0/8 dev ztun0 table 31348", "route add 198.18.0.0/16 dev ztun0 table 31348"]
        );
        assert!(!changes.contains("rule add v6"), "{changes}");
    }

    #[test]
    fn a_captured_family_always_has_an_address_on_the_device() {
        let addresses = vec!["10.0.0.1/24".parse().unwrap()];
        let changes = text(&plan(&have(), &Want { addresses, ..want() }));
        assert!(changes.contains("address add 10.0.0.1/24 dev ztun0 noprefixroute\n"), "{changes}");
        assert!(changes.contains("address add fd7a:7a74:756e::1/64 dev ztun0"), "{changes}");
        assert!(!changes.contains("198.18.0.1"), "{changes}");
    }

    #[test]
    fn what_is_there_already_is_not_changed_and_so_not_undone() {
        let have = Have { mtu: 1500, up: true, addresses: want().addresses, ..have() };
        let changes = text(&plan(&have, &want()));
        assert!(!changes.contains("mtu") && !changes.contains("address") && !changes.contains("link"));
    }

    #[test]
    fn names_are_asked_for_in_the_tunnel_last_of_all_and_only_by_families_that_go_there() {
        let dns = Some(Situation { own_file: true, ..Situation::default() });
        let last = |have: &Have, want: &Want| plan(have, want).pop().unwrap().to_string();
        let have = Have { dns, ..have() };
        assert_eq!(last(&have, &want()), "dns set 198.18.0.2,fd7a:7a74:756e::2 by file dev ztun0");
        let without_v6 = Have { ipv6: Ipv6::Absent, ..have.clone() };
        assert_eq!(last(&without_v6, &want()), "dns set 198.18.0.2 by file dev ztun0");
        let v4 = Want { routes: vec!["0.0.0.0/0".parse().unwrap()], ..want() };
        assert_eq!(last(&have, &v4), "dns set 198.18.0.2 by file dev ztun0");
        assert!(!text(&plan(&have, &Want { dns: Vec::new(), ..want() })).contains("dns"));
    }

    #[test]
    fn the_machines_dns_is_changed_only_when_everything_is_captured() {
        let config = |routes: &[&str]| HostPlanConfig {
            routes: routes.iter().map(|net| net.parse().unwrap()).collect(),
            dns: want().dns,
            ..HostPlanConfig::default()
        };
        let wanted = |config: &HostPlanConfig| !Want::new(config, "ztun0", &[], None).dns.is_empty();
        assert!(wanted(&config(&["0.0.0.0/0", "::/0"])) && wanted(&config(&["0.0.0.0/1", "128.0.0.0/1"])));
        assert!(!wanted(&config(&["10.0.0.0/8"])) && !wanted(&config(&["::/0"])));
        assert!(!wanted(&HostPlanConfig { no_route: true, ..config(&["0.0.0.0/0"]) }));
        assert!(!wanted(&HostPlanConfig { dns: Vec::new(), ..config(&["0.0.0.0/0"]) }));
    }

    #[test]
    fn capturing_starts_last_and_marked_packets_are_safe_before() {
        let changes = plan(&have(), &want());
        for family in [Family::V4, Family::V6] {
            let rules: Vec<&Rule> = changes
                .iter()
                .filter_map(|change| if let Change::RuleAdd(rule) = change { Some(rule) } else { None })
                .filter(|rule| rule.family == family)
                .collect();
            let captures = |rule: &Rule| rule.action == Action::Lookup(TABLE);
            assert!(rules.is_sorted_by_key(|rule| captures(rule)));
            let (inside, outside): (Vec<&Rule>, Vec<&Rule>) = rules.iter().partition(|rule| captures(rule));
            assert!(inside.is_sorted_by_key(|rule| rule.preference));
            assert!(outside.is_sorted_by_key(|rule| rule.preference));
            assert_eq!(inside.last().unwrap().selector, Selector::All);
            assert!(rules.iter().all(|rule| (FIRST_PREFERENCE..=LAST_PREFERENCE).contains(&rule.preference)));
        }
    }

    fn lines(want: &Want, start: &str) -> Vec<String> {
        let text = text(&plan(&have(), want));
        text.lines().filter(|line| line.starts_with(start)).map(str::to_owned).collect()
    }

    /// L-14; F19
    #[test]
    fn the_kill_switch_refuses_what_is_captured_and_nothing_else() {
        let whole = Want { kill_switch: true, ..want() };
        assert_eq!(
            lines(&whole, "route add unreachable"),
            [
                "route add unreachable 0.0.0.0/0 table 31348 metric 4294967295",
                "route add unreachable ::/0 table 31348 metric 4294967295"
            ]
        );
        assert_eq!(lines(&whole, "rule add v4 pref 5211"), ["rule add v4 pref 5211 all unreachable"]);
        let part = Want { routes: vec!["10.0.0.0/8".parse().unwrap()], ..whole };
        assert_eq!(
            lines(&part, "route add unreachable"),
            ["route add unreachable 10.0.0.0/8 table 31348 metric 4294967295"]
        );
        assert_eq!(
            lines(&part, "rule add v4 pref 5211"),
            ["rule add v4 pref 5211 to 10.0.0.0/8 unreachable"]
        );
        assert!(lines(&want(), "route add unreachable").is_empty());
    }

    /// RFC 7359; F23
    #[test]
    fn ipv6_beside_a_tunnel_for_all_of_ipv4_is_refused() {
        for v4 in [&["0.0.0.0/0"][..], &["0.0.0.0/1", "128.0.0.0/1"]] {
            let want = Want { routes: v4.iter().map(|net| net.parse().unwrap()).collect(), ..want() };
            assert_eq!(
                lines(&want, "route add unreachable"),
                ["route add unreachable ::/0 table 31348 metric 4294967295"]
            );
            assert!(lines(&want, "rule add v6").contains(&"rule add v6 pref 5210 all lookup 31348".into()));
            assert!(lines(&want, "route add fd7a").is_empty());
            let without = plan(&Have { ipv6: Ipv6::Absent, ..have() }, &want);
            assert!(!text(&without).contains("::"));
        }
        let half = Want { routes: vec!["0.0.0.0/1".parse().unwrap()], ..want() };
        assert!(lines(&half, "rule add v6").is_empty());
    }

    #[test]
    fn names_go_into_the_tunnel_before_networks_but_not_before_hosts_stay_outside() {
        let bypass =
            ["192.168.1.0/24", "192.168.1.1/32", "0.0.0.0/0"].map(|net| net.parse().unwrap()).to_vec();
        let rules = lines(&Want { bypass, ..want() }, "rule add v4");
        assert!(rules.contains(&"rule add v4 pref 5203 to 192.168.1.1/32 lookup main".into()), "{rules:?}");
        assert!(rules.contains(&"rule add v4 pref 5206 to 192.168.1.0/24 lookup main".into()), "{rules:?}");
        assert!(rules.contains(&"rule add v4 pref 5206 all lookup main".into()), "{rules:?}");
    }

    #[test]
    fn where_ipv6_is_refused_its_addresses_let_out_only_what_services_answer() {
        let from = "rule add v6 pref 5205 from 2001:db8::5/128";
        let services = [format!("{from} ipproto tcp sport 1-32767 lookup main")];
        let refused = Want { routes: vec!["0.0.0.0/0".parse().unwrap()], ..want() };
        for want in [Want { kill_switch: true, ..want() }, refused] {
            assert_eq!(lines(&want, from), services);
            assert_eq!(
                lines(&want, "rule add v4 pref 5205"),
                ["rule add v4 pref 5205 from 192.168.1.5/32 lookup main"]
            );
        }
        assert_eq!(lines(&want(), from), [format!("{from} lookup main")]);
    }
}
