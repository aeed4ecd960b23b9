//! One change to the machine: what it is, what undoes it, and its text.
//!
//! The text is one line, in the words of iproute2 where it has them. `--dry-run` prints it and the journal keeps it, so it is
//! parsed back without loss. Every change is undone by exactly one other, whose undo is the first again.

use super::dns::Dns;
use crate::config::Cidr;
use crate::host::reversible::{ParseError, Reversible};
pub use crate::host::want::{Family, PROTOCOL};
use core::fmt;
use core::net::IpAddr;
use core::ops::RangeInclusive;
use core::str::FromStr;
use std::io;

/// The table that leads into the device: "zt".
pub const TABLE: u32 = 0x7a74;

/// The machine's own table (RT_TABLE_MAIN).
pub const MAIN_TABLE: u32 = 254;

/// A table of nf_tables that drops what comes in, by other interfaces than the device and loopback, for these addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter {
    /// What it drops.
    pub hook: Hook,
    /// The device; empty in what is found of a run that died.
    pub device: String,
    /// The addresses; empty under the same condition.
    pub addresses: Vec<IpAddr>,
}

/// What a [`Filter`] drops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// IPv4 and IPv6 packets.
    Packets,
    /// ARP.
    Arp,
}

/// A change that is made to the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Lets the device speak IPv6 where the system's default for new devices is not to.
    Ipv6On {
        /// The device.
        device: String,
    },
    /// Undoes [`Change::Ipv6On`].
    Ipv6Off {
        /// The device.
        device: String,
    },
    /// Gives the device an address.
    AddressAdd(Address),
    /// Takes an address from the device.
    AddressDelete(Address),
    /// Sets the MTU; its own undo, with the two values exchanged.
    MtuSet {
        /// The device.
        device: String,
        /// The new value, octets.
        mtu: u32,
        /// The value before, octets.
        was: u32,
    },
    /// Brings the device up.
    LinkUp {
        /// The device.
        device: String,
    },
    /// Brings the device down.
    LinkDown {
        /// The device.
        device: String,
    },
    /// Adds a route into the device.
    RouteAdd(Route),
    /// Deletes a route into the device.
    RouteDelete(Route),
    /// Adds a route that refuses what no better one leads into the device.
    UnreachableAdd(Unreachable),
    /// Deletes a route that refuses.
    UnreachableDelete(Unreachable),
    /// Adds a policy rule.
    RuleAdd(Rule),
    /// Deletes a policy rule.
    RuleDelete(Rule),
    /// Drops what comes in for the device's addresses from elsewhere.
    FilterAdd(Filter),
    /// Lets it in.
    FilterDelete(Filter),
    /// Gives the machine its name servers.
    DnsSet(Dns),
    /// Puts back what was before [`Change::DnsSet`].
    DnsRestore(Dns),
}

/// An address of the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    /// The device.
    pub device: String,
    /// Address and prefix length.
    pub address: Cidr,
    /// Whether the kernel may add the route to the address's network to the machine's own table.
    pub prefix_route: bool,
}

/// A route into the device, with [`PROTOCOL`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// The destination; host bits are 0.
    pub destination: Cidr,
    /// The device.
    pub device: String,
    /// The table.
    pub table: u32,
}

/// A route with [`PROTOCOL`] and [`LAST_METRIC`] whose destinations cannot be reached. It belongs to no device, so it outlives the one that the
/// other routes of its table lead into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreachable {
    /// The destination; host bits are 0.
    pub destination: Cidr,
    /// The table.
    pub table: u32,
}

/// The metric (RTA_PRIORITY) that every other route to the same destination wins over.
pub const LAST_METRIC: u32 = u32::MAX;

/// A policy rule with [`PROTOCOL`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// The version of IP it is for.
    pub family: Family,
    /// Rules are asked in this order, small ones first.
    pub preference: u32,
    /// Which packets it is for.
    pub selector: Selector,
    /// What happens to them.
    pub action: Action,
}

/// Which packets a rule is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Selector {
    /// All.
    All,
    /// With this mark.
    Mark(u32),
    /// That come in through this device.
    Iif(String),
    /// With a source in this network.
    From(Cidr),
    /// Of TCP, with a source in this network and a source port of [`SERVICES`].
    Services(Cidr),
    /// With a destination in this network.
    To(Cidr),
    /// Of sockets of this user.
    Uid(u32),
    /// Of this protocol with this destination port.
    Port(Transport, u16),
}

/// Ports that services have and that new connections are not given by themselves (RFC 6335; Linux gives those above). 0, which a new connection has
/// while its route is looked up, is not among them.
pub const SERVICES: RangeInclusive<u16> = 1..=32767;

/// A protocol with ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What a rule does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// The route is looked up in this table; if it has none, the next rule is asked.
    Lookup(u32),
    /// There is no route: the sender is told at once.
    Unreachable,
}

impl Reversible for Change {
    fn undo(&self) -> Change {
        match self.clone() {
            Change::Ipv6On { device } => Change::Ipv6Off { device },
            Change::Ipv6Off { device } => Change::Ipv6On { device },
            Change::AddressAdd(address) => Change::AddressDelete(address),
            Change::AddressDelete(address) => Change::AddressAdd(address),
            Change::MtuSet { device, mtu, was } => Change::MtuSet { device, mtu: was, was: mtu },
            Change::LinkUp { device } => Change::LinkDown { device },
            Change::LinkDown { device } => Change::LinkUp { device },
            Change::RouteAdd(route) => Change::RouteDelete(route),
            Change::RouteDelete(route) => Change::RouteAdd(route),
            Change::UnreachableAdd(route) => Change::UnreachableDelete(route),
            Change::UnreachableDelete(route) => Change::UnreachableAdd(route),
            Change::RuleAdd(rule) => Change::RuleDelete(rule),
            Change::RuleDelete(rule) => Change::RuleAdd(rule),
            Change::FilterAdd(filter) => Change::FilterDelete(filter),
            Change::FilterDelete(filter) => Change::FilterAdd(filter),
            Change::DnsSet(dns) => Change::DnsRestore(dns),
            Change::DnsRestore(dns) => Change::DnsSet(dns),
        }
    }

    fn device(&self) -> Option<&str> {
        match self {
            Change::Ipv6On { device }
            | Change::Ipv6Off { device }
            | Change::MtuSet { device, .. }
            | Change::LinkUp { device }
            | Change::LinkDown { device } => Some(device),
            Change::AddressAdd(address) | Change::AddressDelete(address) => Some(&address.device),
            Change::RouteAdd(route) | Change::RouteDelete(route) => Some(&route.device),
            Change::DnsSet(dns) | Change::DnsRestore(dns) => dns.bound_to(),
            Change::UnreachableAdd(_)
            | Change::UnreachableDelete(_)
            | Change::RuleAdd(_)
            | Change::RuleDelete(_)
            | Change::FilterAdd(_)
            | Change::FilterDelete(_) => None,
        }
    }

    fn outlives_device(&self) -> bool {
        matches!(
            self,
            Change::UnreachableAdd(_)
                | Change::UnreachableDelete(_)
                | Change::RuleAdd(_)
                | Change::RuleDelete(_)
        )
    }

    fn is_optional(&self) -> bool {
        match self {
            // Since Linux 4.17.
            Change::RuleAdd(rule) => matches!(rule.selector, Selector::Port(..) | Selector::Services(_)),
            // Not every kernel has nf_tables.
            Change::FilterAdd(_) => true,
            Change::Ipv6On { .. }
            | Change::Ipv6Off { .. }
            | Change::AddressAdd(_)
            | Change::AddressDelete(_)
            | Change::MtuSet { .. }
            | Change::LinkUp { .. }
            | Change::LinkDown { .. }
            | Change::RouteAdd(_)
            | Change::RouteDelete(_)
            | Change::UnreachableAdd(_)
            | Change::UnreachableDelete(_)
            | Change::RuleDelete(_)
            | Change::FilterDelete(_)
            | Change::DnsSet(_)
            | Change::DnsRestore(_) => false,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Change::Ipv6On { .. } | Change::Ipv6Off { .. } => "ipv6",
            Change::AddressAdd(_) | Change::AddressDelete(_) => "address",
            Change::MtuSet { .. } => "mtu",
            Change::LinkUp { .. } | Change::LinkDown { .. } => "link",
            Change::RouteAdd(_)
            | Change::RouteDelete(_)
            | Change::UnreachableAdd(_)
            | Change::UnreachableDelete(_) => "route",
            Change::RuleAdd(_) | Change::RuleDelete(_) => "rule",
            Change::FilterAdd(_) | Change::FilterDelete(_) => "filter",
            Change::DnsSet(_) | Change::DnsRestore(_) => "dns",
        }
    }

    // Others' names that were there before are put back last.
    fn is_made_once(&self) -> bool {
        matches!(self, Change::DnsSet(_))
    }

    // There is one filter of a kind.
    fn is_replaced_by(&self, other: &Change) -> bool {
        matches!((self, other), (Change::FilterAdd(old), Change::FilterAdd(new)) if old.hook == new.hook)
    }

    fn remedy(&self, error: &io::Error) -> Option<&'static str> {
        match (self, error.raw_os_error()) {
            (Change::AddressAdd(_), Some(libc::EEXIST)) => {
                Some("the address is in use on this machine: choose another with --address")
            }
            (Change::RouteAdd(_) | Change::UnreachableAdd(_), Some(libc::EEXIST)) => {
                Some("another program uses routing table 31348: see `ip route show table 31348`")
            }
            (Change::RuleAdd(_), Some(libc::EEXIST)) => {
                Some("another program has the same rule: see `ip rule`")
            }
            (Change::RuleAdd(_), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => Some(
                "the kernel lacks policy routing (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES)",
            ),
            (_, Some(libc::ENODEV)) => Some("the device has gone: another program may have deleted it"),
            (Change::MtuSet { .. }, Some(libc::EINVAL)) => Some("choose an --mtu from 1280 to 65535"),
            _ => None,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Ipv6On { device } => write!(f, "ipv6 on dev {device}"),
            Change::Ipv6Off { device } => write!(f, "ipv6 off dev {device}"),
            Change::AddressAdd(address) => write!(f, "address add {address}"),
            Change::AddressDelete(address) => write!(f, "address del {address}"),
            Change::MtuSet { device, mtu, was } => write!(f, "mtu set {mtu} was {was} dev {device}"),
            Change::LinkUp { device } => write!(f, "link up dev {device}"),
            Change::LinkDown { device } => write!(f, "link down dev {device}"),
            Change::RouteAdd(route) => write!(f, "route add {route}"),
            Change::RouteDelete(route) => write!(f, "route del {route}"),
            Change::UnreachableAdd(route) => write!(f, "route add {route}"),
            Change::UnreachableDelete(route) => write!(f, "route del {route}"),
            Change::RuleAdd(rule) => write!(f, "rule add {rule}"),
            Change::RuleDelete(rule) => write!(f, "rule del {rule}"),
            Change::FilterAdd(filter) => write!(f, "filter add {filter}"),
            Change::FilterDelete(filter) => write!(f, "filter del {filter}"),
            Change::DnsSet(dns) => write!(f, "dns set {dns}"),
            Change::DnsRestore(dns) => write!(f, "dns restore {dns}"),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = if self.prefix_route { "" } else { " noprefixroute" };
        write!(f, "{} dev {}{suffix}", self.address, self.device)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {} table {}", self.destination, self.device, self.table)
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unreachable {} table {} metric {LAST_METRIC}", self.destination, self.table)
    }
}

/// Stands for what is not known.
const UNKNOWN: &str = "?";

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hook = match self.hook {
            Hook::Packets => "packets",
            Hook::Arp => "arp",
        };
        let addresses: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
        let known = |text: String| if text.is_empty() { UNKNOWN.to_owned() } else { text };
        write!(f, "{hook} to {} not by dev {}", known(addresses.join(",")), known(self.device.clone()))
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::V4 => "v4",
            Family::V6 => "v6",
        };
        write!(f, "{family} pref {} ", self.preference)?;
        match &self.selector {
            Selector::All => f.write_str("all "),
            Selector::Mark(mark) => write!(f, "fwmark {mark:#x} "),
            Selector::Iif(device) => write!(f, "iif {device} "),
            Selector::From(net) => write!(f, "from {net} "),
            Selector::Services(net) => {
                write!(f, "from {net} ipproto tcp sport {}-{} ", SERVICES.start(), SERVICES.end())
            }
            Selector::To(net) => write!(f, "to {net} "),
            Selector::Uid(uid) => write!(f, "uid {uid} "),
            Selector::Port(transport, port) => write!(f, "ipproto {transport} dport {port} "),
        }?;
        match self.action {
            Action::Lookup(MAIN_TABLE) => f.write_str("lookup main"),
            Action::Lookup(table) => write!(f, "lookup {table}"),
            Action::Unreachable => f.write_str("unreachable"),
        }
    }
}

impl FromStr for Change {
    type Err = ParseError;

    fn from_str(line: &str) -> Result<Change, ParseError> {
        Change::read(line, parse)
    }
}

fn parse(words: &[&str]) -> Option<Change> {
    let change = match *words {
        ["ipv6", "on", "dev", device] => Change::Ipv6On { device: name(device)? },
        ["ipv6", "off", "dev", device] => Change::Ipv6Off { device: name(device)? },
        ["address", "add", ref rest @ ..] => Change::AddressAdd(parse_address(rest)?),
        ["address", "del", ref rest @ ..] => Change::AddressDelete(parse_address(rest)?),
        ["mtu", "set", mtu, "was", was, "dev", device] => {
            Change::MtuSet { device: name(device)?, mtu: mtu.parse().ok()?, was: was.parse().ok()? }
        }
        ["link", "up", "dev", device] => Change::LinkUp { device: name(device)? },
        ["link", "down", "dev", device] => Change::LinkDown { device: name(device)? },
        ["route", "add", "unreachable", ref rest @ ..] => Change::UnreachableAdd(parse_unreachable(rest)?),
        ["route", "del", "unreachable", ref rest @ ..] => Change::UnreachableDelete(parse_unreachable(rest)?),
        ["route", "add", ref rest @ ..] => Change::RouteAdd(parse_route(rest)?),
        ["route", "del", ref rest @ ..] => Change::RouteDelete(parse_route(rest)?),
        ["rule", "add", ref rest @ ..] => Change::RuleAdd(parse_rule(rest)?),
        ["rule", "del", ref rest @ ..] => Change::RuleDelete(parse_rule(rest)?),
        ["filter", "add", ref rest @ ..] => Change::FilterAdd(parse_filter(rest)?),
        ["filter", "del", ref rest @ ..] => Change::FilterDelete(parse_filter(rest)?),
        ["dns", "set", ref rest @ ..] => Change::DnsSet(Dns::parse(rest)?),
        ["dns", "restore", ref rest @ ..] => Change::DnsRestore(Dns::parse(rest)?),
        _ => return None,
    };
    Some(change)
}

fn name(word: &str) -> Option<String> {
    (!word.is_empty()).then(|| word.into())
}

fn parse_address(words: &[&str]) -> Option<Address> {
    let (address, device, prefix_route) = match *words {
        [address, "dev", device] => (address, device, true),
        [address, "dev", device, "noprefixroute"] => (address, device, false),
        _ => return None,
    };
    Some(Address { device: name(device)?, address: address.parse().ok()?, prefix_route })
}

fn parse_route(words: &[&str]) -> Option<Route> {
    let [destination, "dev", device, "table", table] = *words else { return None };
    Some(Route { destination: destination.parse().ok()?, device: name(device)?, table: table.parse().ok()? })
}

fn parse_unreachable(words: &[&str]) -> Option<Unreachable> {
    let [destination, "table", table, "metric", metric] = *words else { return None };
    let route = Unreachable { destination: destination.parse().ok()?, table: table.parse().ok()? };
    (metric.parse() == Ok(LAST_METRIC)).then_some(route)
}

fn parse_filter(words: &[&str]) -> Option<Filter> {
    let [hook, "to", addresses, "not", "by", "dev", device] = *words else { return None };
    let hook = match hook {
        "packets" => Hook::Packets,
        "arp" => Hook::Arp,
        _ => return None,
    };
    let addresses: Option<Vec<IpAddr>> = match addresses {
        UNKNOWN => Some(Vec::new()),
        _ => addresses.split(',').map(|addr| addr.parse().ok()).collect(),
    };
    let device = if device == UNKNOWN { String::new() } else { name(device)? };
    Some(Filter { hook, device, addresses: addresses? })
}

fn parse_rule(words: &[&str]) -> Option<Rule> {
    let [family, "pref", preference, ref rest @ ..] = *words else { return None };
    let family = match family {
        "v4" => Family::V4,
        "v6" => Family::V6,
        _ => return None,
    };
    let (selector, action) = match *rest {
        ["all", ref action @ ..] => (Selector::All, action),
        ["fwmark", mark, ref action @ ..] => {
            (Selector::Mark(u32::from_str_radix(mark.strip_prefix("0x")?, 16).ok()?), action)
        }
        ["iif", device, ref action @ ..] => (Selector::Iif(name(device)?), action),
        ["from", net, "ipproto", "tcp", "sport", ports, ref action @ ..]
            if ports == format!("{}-{}", SERVICES.start(), SERVICES.end()) =>
        {
            (Selector::Services(parse_net(family, net)?), action)
        }
        ["from", net, ref action @ ..] => (Selector::From(parse_net(family, net)?), action),
        ["to", net, ref action @ ..] => (Selector::To(parse_net(family, net)?), action),
        ["uid", uid, ref action @ ..] => (Selector::Uid(uid.parse().ok()?), action),
        ["ipproto", transport, "dport", port, ref action @ ..] => {
            (Selector::Port(parse_transport(transport)?, port.parse().ok()?), action)
        }
        _ => return None,
    };
    let action = match *action {
        ["lookup", "main"] => Action::Lookup(MAIN_TABLE),
        ["lookup", table] => Action::Lookup(table.parse().ok()?),
        ["unreachable"] => Action::Unreachable,
        _ => return None,
    };
    Some(Rule { family, preference: preference.parse().ok()?, selector, action })
}

fn parse_transport(word: &str) -> Option<Transport> {
    match word {
        "tcp" => Some(Transport::Tcp),
        "udp" => Some(Transport::Udp),
        _ => None,
    }
}

fn parse_net(family: Family, word: &str) -> Option<Cidr> {
    word.parse().ok().filter(|net| Family::of(net) == family)
}

#[cfg(test)]
pub(in crate::host) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn device() -> impl Strategy<Value = String> {
        proptest::collection::vec(proptest::sample::select(&b"abz019.-_"[..]), 1..15)
            .prop_map(|octets| String::from_utf8(octets).unwrap())
    }

    fn net(family: Family) -> BoxedStrategy<Cidr> {
        match family {
            Family::V4 => (any::<[u8; 4]>(), 0..=32_u8)
                .prop_map(|(addr, prefix)| Cidr { addr: IpAddr::from(addr), prefix })
                .boxed(),
            Family::V6 => (any::<[u8; 16]>(), 0..=128_u8)
                .prop_map(|(addr, prefix)| Cidr { addr: IpAddr::from(addr), prefix })
                .boxed(),
        }
    }

    fn family() -> impl Strategy<Value = Family> {
        prop_oneof![Just(Family::V4), Just(Family::V6)]
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let action = || prop_oneof![any::<u32>().prop_map(Action::Lookup), Just(Action::Unreachable)];
        family().prop_flat_map(move |family| {
            let selector = prop_oneof![
                Just(Selector::All),
                any::<u32>().prop_map(Selector::Mark),
                device().prop_map(Selector::Iif),
                net(family).prop_map(Selector::From),
                net(family).prop_map(Selector::To),
                net(family).prop_map(Selector::Services),
                any::<u32>().prop_map(Selector::Uid),
                any::<u16>().prop_map(|port| Selector::Port(Transport::Tcp, port)),
                any::<u16>().prop_map(|port| Selector::Port(Transport::Udp, port)),
            ];
            (any::<u32>(), selector, action()).prop_map(move |(preference, selector, action)| Rule {
                family,
                preference,
                selector,
                action,
            })
        })
    }

    /// Every change there is.
    pub(crate) fn change() -> impl Strategy<Value = Change> {
        let address = || {
            (device(), family().prop_flat_map(net), any::<bool>())
                .prop_map(|(device, address, prefix_route)| Address { device, address, prefix_route })
        };
        let route = || {
            (device(), family().prop_flat_map(net), any::<u32>())
                .prop_map(|(device, destination, table)| Route { destination, device, table })
        };
        let filter = || {
            let addresses =
                proptest::collection::vec(family().prop_flat_map(net).prop_map(|net| net.addr), 0..3);
            (prop_oneof![Just(Hook::Packets), Just(Hook::Arp)], device(), addresses)
                .prop_map(|(hook, device, addresses)| Filter { hook, device, addresses })
        };
        let unreachable = || {
            (family().prop_flat_map(net), any::<u32>())
                .prop_map(|(destination, table)| Unreachable { destination, table })
        };
        prop_oneof![
            device().prop_map(|device| Change::Ipv6On { device }),
            device().prop_map(|device| Change::Ipv6Off { device }),
            address().prop_map(Change::AddressAdd),
            address().prop_map(Change::AddressDelete),
            (device(), any::<u32>(), any::<u32>()).prop_map(|(device, mtu, was)| Change::MtuSet {
                device,
                mtu,
                was
            }),
            device().prop_map(|device| Change::LinkUp { device }),
            device().prop_map(|device| Change::LinkDown { device }),
            route().prop_map(Change::RouteAdd),
            route().prop_map(Change::RouteDelete),
            unreachable().prop_map(Change::UnreachableAdd),
            unreachable().prop_map(Change::UnreachableDelete),
            rule().prop_map(Change::RuleAdd),
            rule().prop_map(Change::RuleDelete),
            filter().prop_map(Change::FilterAdd),
            filter().prop_map(Change::FilterDelete),
            crate::host::linux::dns::tests::dns().prop_map(Change::DnsSet),
            crate::host::linux::dns::tests::dns().prop_map(Change::DnsRestore),
        ]
    }

    proptest! {
        #[test]
        fn the_text_of_a_change_is_one_line_and_gives_it_back(change in change()) {
            let text = change.to_string();
            prop_assert!(!text.contains('\n'));
            prop_assert_eq!(text.parse::<Change>(), Ok(change));
        }

        #[test]
        fn undoing_an_undo_is_the_change_itself(change in change()) {
            prop_assert_eq!(change.undo().undo(), change);
        }

        #[test]
        fn a_torn_line_is_never_read_as_a_change_of_another_kind(change in change(), at in 0..200_usize) {
            let text = change.to_string();
            if let Ok(other) = text[..at.min(text.len())].parse::<Change>() {
                prop_assert_eq!(other.kind(), change.kind());
            }
        }
    }

    /// docs/HOST-CHANGES.md lists every change with its undo, in these words: names of variants in the first two columns of its table for Linux.
    #[test]
    fn the_document_lists_every_change_with_its_undo() {
        let document = include_str!("../../../docs/HOST-CHANGES.md");
        let linux = document.lines().take_while(|line| !["## macOS", "## Windows"].contains(line));
        let mut listed: Vec<(String, String)> = Vec::new();
        for line in linux.filter(|line| line.starts_with("| `")) {
            let mut cells = line.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).skip(1);
            listed.push((cells.next().unwrap(), cells.next().unwrap()));
        }
        let mut coded = Vec::new();
        for change in one_of_each() {
            coded.push((variant(&change), variant(&change.undo())));
        }
        assert_eq!(listed, coded);
    }

    fn variant(change: &Change) -> String {
        let text = format!("{change:?}");
        text.split(|c: char| !c.is_alphanumeric()).next().unwrap().to_owned()
    }

    /// One change of every variant. The match makes a new variant fail to compile until it is listed.
    fn one_of_each() -> Vec<Change> {
        let device = || "ztun0".to_owned();
        let address =
            Address { device: device(), address: "10.0.0.1/8".parse().unwrap(), prefix_route: true };
        let route = Route { destination: "0.0.0.0/0".parse().unwrap(), device: device(), table: TABLE };
        let unreachable = Unreachable { destination: "0.0.0.0/0".parse().unwrap(), table: TABLE };
        let rule =
            Rule { family: Family::V4, preference: 1, selector: Selector::All, action: Action::Unreachable };
        let filter = Filter { hook: Hook::Packets, device: device(), addresses: Vec::new() };
        let dns = Dns {
            way: crate::host::linux::dns::Way::File,
            device: device(),
            servers: vec!["198.18.0.2".parse().unwrap()],
        };
        let mut all = Vec::new();
        let mut next = Some(Change::Ipv6On { device: device() });
        while let Some(change) = next {
            next = match change {
                Change::Ipv6On { .. } => Some(Change::Ipv6Off { device: device() }),
                Change::Ipv6Off { .. } => Some(Change::AddressAdd(address.clone())),
                Change::AddressAdd(_) => Some(Change::AddressDelete(address.clone())),
                Change::AddressDelete(_) => Some(Change::MtuSet { device: device(), mtu: 1, was: 2 }),
                Change::MtuSet { .. } => Some(Change::LinkUp { device: device() }),
                Change::LinkUp { .. } => Some(Change::LinkDown { device: device() }),
                Change::LinkDown { .. } => Some(Change::RouteAdd(route.clone())),
                Change::RouteAdd(_) => Some(Change::RouteDelete(route.clone())),
                Change::RouteDelete(_) => Some(Change::UnreachableAdd(unreachable)),
                Change::UnreachableAdd(_) => Some(Change::UnreachableDelete(unreachable)),
                Change::UnreachableDelete(_) => Some(Change::RuleAdd(rule.clone())),
                Change::RuleAdd(_) => Some(Change::RuleDelete(rule.clone())),
                Change::RuleDelete(_) => Some(Change::FilterAdd(filter.clone())),
                Change::FilterAdd(_) => Some(Change::FilterDelete(filter.clone())),
                Change::FilterDelete(_) => Some(Change::DnsSet(dns.clone())),
                Change::DnsSet(_) => Some(Change::DnsRestore(dns.clone())),
                Change::DnsRestore(_) => None,
            };
            all.push(change);
        }
        all
    }
}
