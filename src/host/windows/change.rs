//! One change to a machine that runs Windows: what it is, what undoes it, and its text.
//!
//! The text is one line. `--dry-run` prints it and the journal keeps it, so it is parsed back without loss. Interfaces other than the device are named by
//! their LUID, in hexadecimal digits.

use super::guard::Guard;
use super::rows::Settings;
use crate::config::Cidr;
use crate::host::reversible::{ParseError, Reversible};
use crate::host::want::Family;
use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;
use std::io;

/// The metric of the routes that keep something outside. By it they are recognised, whoever made them: programs and DHCP give small ones, and over another
/// interface nothing else tells a route of ours. It decides nothing, since a route that is as specific as they are is not looked for beside them.
pub const OUTSIDE_METRIC: u32 = 7674;

/// A change that is made to the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Sets MTU and metric of the device in one family; its own undo, with the two exchanged.
    InterfaceSet {
        /// The device.
        device: String,
        /// The family.
        family: Family,
        /// What is set.
        now: Settings,
        /// What it was before.
        was: Settings,
    },
    /// Gives the device an address.
    AddressAdd(Address),
    /// Takes an address from the device.
    AddressDelete(Address),
    /// Adds a route into the device.
    RouteAdd(Route),
    /// Deletes a route into the device.
    RouteDelete(Route),
    /// Adds a route over the interface and the next hop that the machine has for a network itself.
    OutsideAdd(Outside),
    /// Deletes it.
    OutsideDelete(Outside),
    /// Gives the device name servers.
    ServersSet(Servers),
    /// Takes them away.
    ServersReset(Servers),
    /// Makes the machine ask these for all names, whatever name servers its interfaces have.
    PolicyAdd(Policy),
    /// Ends that.
    PolicyDelete(Policy),
    /// Has the Windows Filtering Platform refuse what must not leave.
    GuardAdd(Guard),
    /// Ends that.
    GuardDelete(Guard),
}

/// An address of the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    /// The device.
    pub device: String,
    /// Address and prefix length.
    pub address: Cidr,
}

/// A route into the device, of metric 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// The device.
    pub device: String,
    /// The destination; host bits are 0.
    pub destination: Cidr,
}

/// A route past the device, with [`OUTSIDE_METRIC`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outside {
    /// The destination; host bits are 0.
    pub destination: Cidr,
    /// The interface.
    pub luid: u64,
    /// Who passes it on; `None` when the destination is on the link.
    pub next_hop: Option<IpAddr>,
}

/// Name servers of the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Servers {
    /// The device.
    pub device: String,
    /// Their addresses.
    pub servers: Vec<IpAddr>,
}

/// The rule of the name resolution policy table for all names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Who is asked; empty in what is found of a run that died, when that does not tell.
    pub servers: Vec<IpAddr>,
}

impl Reversible for Change {
    fn undo(&self) -> Change {
        match self.clone() {
            Change::InterfaceSet { device, family, now, was } => {
                Change::InterfaceSet { device, family, now: was, was: now }
            }
            Change::AddressAdd(address) => Change::AddressDelete(address),
            Change::AddressDelete(address) => Change::AddressAdd(address),
            Change::RouteAdd(route) => Change::RouteDelete(route),
            Change::RouteDelete(route) => Change::RouteAdd(route),
            Change::OutsideAdd(route) => Change::OutsideDelete(route),
            Change::OutsideDelete(route) => Change::OutsideAdd(route),
            Change::ServersSet(servers) => Change::ServersReset(servers),
            Change::ServersReset(servers) => Change::ServersSet(servers),
            Change::PolicyAdd(policy) => Change::PolicyDelete(policy),
            Change::PolicyDelete(policy) => Change::PolicyAdd(policy),
            Change::GuardAdd(guard) => Change::GuardDelete(guard),
            Change::GuardDelete(guard) => Change::GuardAdd(guard),
        }
    }

    fn device(&self) -> Option<&str> {
        match self {
            Change::InterfaceSet { device, .. } => Some(device),
            Change::AddressAdd(address) | Change::AddressDelete(address) => Some(&address.device),
            Change::RouteAdd(route) | Change::RouteDelete(route) => Some(&route.device),
            Change::ServersSet(servers) | Change::ServersReset(servers) => Some(&servers.device),
            // Name a device by its LUID, but do not go with it.
            Change::GuardAdd(_)
            | Change::GuardDelete(_)
            | Change::OutsideAdd(_)
            | Change::OutsideDelete(_)
            | Change::PolicyAdd(_)
            | Change::PolicyDelete(_) => None,
        }
    }

    fn outlives_device(&self) -> bool {
        matches!(self, Change::GuardAdd(guard) | Change::GuardDelete(guard) if guard.kind.outlives_process())
    }

    fn is_optional(&self) -> bool {
        match self {
            // Queries that pass it by are refused, or captured.
            Change::ServersSet(_) | Change::PolicyAdd(_) => true,
            // Ours are bound to their interface.
            Change::OutsideAdd(_) => true,
            Change::GuardAdd(guard) => guard.kind.is_optional(),
            Change::InterfaceSet { .. }
            | Change::AddressAdd(_)
            | Change::AddressDelete(_)
            | Change::RouteAdd(_)
            | Change::RouteDelete(_)
            | Change::OutsideDelete(_)
            | Change::ServersReset(_)
            | Change::PolicyDelete(_)
            | Change::GuardDelete(_) => false,
        }
    }

    fn is_made_once(&self) -> bool {
        false
    }

    fn is_replaced_by(&self, other: &Change) -> bool {
        let (Change::GuardAdd(old), Change::GuardAdd(new)) = (self, other) else { return false };
        old.kind == new.kind
    }

    fn kind(&self) -> &'static str {
        match self {
            Change::InterfaceSet { .. } => "interface",
            Change::AddressAdd(_) | Change::AddressDelete(_) => "address",
            Change::RouteAdd(_)
            | Change::RouteDelete(_)
            | Change::OutsideAdd(_)
            | Change::OutsideDelete(_) => "route",
            Change::ServersSet(_)
            | Change::ServersReset(_)
            | Change::PolicyAdd(_)
            | Change::PolicyDelete(_) => "dns",
            Change::GuardAdd(_) | Change::GuardDelete(_) => "filter",
        }
    }

    fn remedy(&self, error: &io::Error) -> Option<&'static str> {
        /// ERROR_OBJECT_ALREADY_EXISTS.
        const EXISTS: i32 = 5010;
        match (self, error.raw_os_error()) {
            (Change::AddressAdd(_), Some(EXISTS)) => {
                Some("the address is in use on this machine: choose another with --address")
            }
            (Change::RouteAdd(_), Some(EXISTS)) => {
                Some("another program routes into the device: see `route print`")
            }
            (Change::GuardAdd(_), _) => Some("the Base Filtering Engine has to run: see `sc query bfe`"),
            _ => None,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::InterfaceSet { device, family, now, was } => {
                write!(f, "interface set {family} {now} was {was} dev {device}")
            }
            Change::AddressAdd(address) => write!(f, "address add {address}"),
            Change::AddressDelete(address) => write!(f, "address del {address}"),
            Change::RouteAdd(route) => write!(f, "route add {route}"),
            Change::RouteDelete(route) => write!(f, "route del {route}"),
            Change::OutsideAdd(route) => write!(f, "route add {route}"),
            Change::OutsideDelete(route) => write!(f, "route del {route}"),
            Change::ServersSet(servers) => write!(f, "dns set {servers}"),
            Change::ServersReset(servers) => write!(f, "dns reset {servers}"),
            Change::PolicyAdd(policy) => write!(f, "dns policy add {policy}"),
            Change::PolicyDelete(policy) => write!(f, "dns policy del {policy}"),
            Change::GuardAdd(guard) => write!(f, "guard add {guard}"),
            Change::GuardDelete(guard) => write!(f, "guard del {guard}"),
        }
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.metric {
            Some(metric) => write!(f, "mtu {} metric {metric}", self.mtu),
            None => write!(f, "mtu {} metric auto", self.mtu),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.address, self.device)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.destination, self.device)
    }
}

impl fmt::Display for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.next_hop {
            Some(hop) => write!(f, "{} via {hop} luid {:#x}", self.destination, self.luid),
            None => write!(f, "{} onlink luid {:#x}", self.destination, self.luid),
        }
    }
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", list(&self.servers), self.device)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for all names", list(&self.servers))
    }
}

/// Stands for a list that is empty, or not known.
const NONE: &str = "-";

/// Things with commas between them; the reverse is [`parse_list`].
pub(super) fn list<T: fmt::Display>(things: &[T]) -> String {
    if things.is_empty() {
        return NONE.into();
    }
    let words: Vec<String> = things.iter().map(T::to_string).collect();
    words.join(",")
}

pub(super) fn parse_list<T: FromStr>(word: &str) -> Option<Vec<T>> {
    if word == NONE {
        return Some(Vec::new());
    }
    word.split(',').map(|word| word.parse().ok()).collect()
}

impl FromStr for Change {
    type Err = ParseError;

    fn from_str(line: &str) -> Result<Change, ParseError> {
        Change::read(line, parse)
    }
}

fn parse(words: &[&str]) -> Option<Change> {
    let change = match *words {
        [
            "interface",
            "set",
            family,
            "mtu",
            mtu,
            "metric",
            metric,
            "was",
            "mtu",
            mtu_was,
            "metric",
            metric_was,
            "dev",
            ref device @ ..,
        ] => Change::InterfaceSet {
            device: name(device)?,
            family: parse_family(family)?,
            now: parse_settings(mtu, metric)?,
            was: parse_settings(mtu_was, metric_was)?,
        },
        ["address", "add", ref rest @ ..] => Change::AddressAdd(parse_address(rest)?),
        ["address", "del", ref rest @ ..] => Change::AddressDelete(parse_address(rest)?),
        ["route", "add", destination, "dev", ref device @ ..] => {
            Change::RouteAdd(Route { device: name(device)?, destination: destination.parse().ok()? })
        }
        ["route", "del", destination, "dev", ref device @ ..] => {
            Change::RouteDelete(Route { device: name(device)?, destination: destination.parse().ok()? })
        }
        ["route", "add", ref rest @ ..] => Change::OutsideAdd(parse_outside(rest)?),
        ["route", "del", ref rest @ ..] => Change::OutsideDelete(parse_outside(rest)?),
        ["dns", "set", servers, "dev", ref device @ ..] => {
            Change::ServersSet(Servers { device: name(device)?, servers: parse_list(servers)? })
        }
        ["dns", "reset", servers, "dev", ref device @ ..] => {
            Change::ServersReset(Servers { device: name(device)?, servers: parse_list(servers)? })
        }
        ["dns", "policy", "add", servers, "for", "all", "names"] => {
            Change::PolicyAdd(Policy { servers: parse_list(servers)? })
        }
        ["dns", "policy", "del", servers, "for", "all", "names"] => {
            Change::PolicyDelete(Policy { servers: parse_list(servers)? })
        }
        ["guard", "add", ref rest @ ..] => Change::GuardAdd(Guard::parse(rest)?),
        ["guard", "del", ref rest @ ..] => Change::GuardDelete(Guard::parse(rest)?),
        _ => return None,
    };
    Some(change)
}

/// The name of a device, the last of a line: it may have blanks.
fn name(words: &[&str]) -> Option<String> {
    let name = words.join(" ");
    (!name.is_empty()).then_some(name)
}

fn parse_family(word: &str) -> Option<Family> {
    match word {
        "v4" => Some(Family::V4),
        "v6" => Some(Family::V6),
        _ => None,
    }
}

fn parse_settings(mtu: &str, metric: &str) -> Option<Settings> {
    let metric = if metric == "auto" { None } else { Some(metric.parse().ok()?) };
    Some(Settings { mtu: mtu.parse().ok()?, metric })
}

fn parse_address(words: &[&str]) -> Option<Address> {
    let [address, "dev", ref device @ ..] = *words else { return None };
    Some(Address { device: name(device)?, address: address.parse().ok()? })
}

fn parse_outside(words: &[&str]) -> Option<Outside> {
    let (destination, next_hop, luid) = match *words {
        [destination, "via", hop, "luid", luid] => (destination, Some(hop.parse().ok()?), luid),
        [destination, "onlink", "luid", luid] => (destination, None, luid),
        _ => return None,
    };
    Some(Outside { destination: destination.parse().ok()?, luid: parse_luid(luid)?, next_hop })
}

/// A LUID in hexadecimal digits.
pub(super) fn parse_luid(word: &str) -> Option<u64> {
    u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
pub(in crate::host) mod tests {
    use super::*;
    use crate::host::windows::guard::tests::guard;
    use proptest::prelude::*;

    fn device() -> impl Strategy<Value = String> {
        proptest::collection::vec(proptest::sample::select(&b"abz019.-_"[..]), 1..15)
            .prop_map(|octets| String::from_utf8(octets).unwrap())
    }

    pub(in crate::host::windows) fn net() -> impl Strategy<Value = Cidr> {
        let v4 = (any::<[u8; 4]>(), 0..=32_u8)
            .prop_map(|(addr, prefix)| Cidr { addr: IpAddr::from(addr), prefix });
        let v6 = (any::<[u8; 16]>(), 0..=128_u8)
            .prop_map(|(addr, prefix)| Cidr { addr: IpAddr::from(addr), prefix });
        prop_oneof![v4, v6]
    }

    fn servers() -> impl Strategy<Value = Vec<IpAddr>> {
        proptest::collection::vec(net().prop_map(|net| net.addr), 0..3)
    }

    fn settings() -> impl Strategy<Value = Settings> {
        (any::<u32>(), any::<Option<u32>>()).prop_map(|(mtu, metric)| Settings { mtu, metric })
    }

    /// Every change there is.
    pub(in crate::host) fn change() -> impl Strategy<Value = Change> {
        let interface = (device(), any::<bool>(), settings(), settings());
        let outside =
            (net(), any::<u64>(), any::<bool>(), net()).prop_map(|(destination, luid, via, hop)| Outside {
                destination,
                luid,
                next_hop: via.then_some(hop.addr),
            });
        let forward = prop_oneof![
            interface.prop_map(|(device, v4, now, was)| {
                let family = if v4 { Family::V4 } else { Family::V6 };
                Change::InterfaceSet { device, family, now, was }
            }),
            (device(), net()).prop_map(|(device, address)| Change::AddressAdd(Address { device, address })),
            (device(), net())
                .prop_map(|(device, destination)| Change::RouteAdd(Route { device, destination })),
            outside.prop_map(Change::OutsideAdd),
            (device(), servers())
                .prop_map(|(device, servers)| Change::ServersSet(Servers { device, servers })),
            servers().prop_map(|servers| Change::PolicyAdd(Policy { servers })),
            guard().prop_map(Change::GuardAdd),
        ];
        (forward, any::<bool>()).prop_map(|(change, undo)| if undo { change.undo() } else { change })
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

    fn variant(change: &Change) -> String {
        let text = format!("{change:?}");
        text.split(|c: char| !c.is_alphanumeric()).next().unwrap().to_owned()
    }

    /// One change of every variant. The match makes a new variant fail to compile until it is listed.
    fn one_of_each() -> Vec<Change> {
        let mut all: Vec<Change> = Vec::new();
        let mut next = Some("interface set v4 mtu 1 metric 0 was mtu 2 metric auto dev ztun0");
        while let Some(change) = next.map(|text| text.parse().unwrap()) {
            next = match &change {
                Change::InterfaceSet { .. } => Some("address add 10.0.0.1/8 dev ztun0"),
                Change::AddressAdd(_) => Some("address del 10.0.0.1/8 dev ztun0"),
                Change::AddressDelete(_) => Some("route add 0.0.0.0/1 dev ztun0"),
                Change::RouteAdd(_) => Some("route del 0.0.0.0/1 dev ztun0"),
                Change::RouteDelete(_) => Some("route add 10.0.0.0/8 via 192.168.1.1 luid 0x1"),
                Change::OutsideAdd(_) => Some("route del 10.0.0.0/8 via 192.168.1.1 luid 0x1"),
                Change::OutsideDelete(_) => Some("dns set 198.18.0.2 dev ztun0"),
                Change::ServersSet(_) => Some("dns reset 198.18.0.2 dev ztun0"),
                Change::ServersReset(_) => Some("dns policy add 198.18.0.2 for all names"),
                Change::PolicyAdd(_) => Some("dns policy del 198.18.0.2 for all names"),
                Change::PolicyDelete(_) => Some("guard add names luid 0x1 to 0.0.0.0/0 outside -"),
                Change::GuardAdd(_) => Some("guard del names luid 0x1 to 0.0.0.0/0 outside -"),
                Change::GuardDelete(_) => None,
            };
            all.push(change);
        }
        all
    }

    /// docs/HOST-CHANGES.md lists every change with its undo, in these words: names of variants in the first two columns of its table for Windows.
    #[test]
    fn the_document_lists_every_change_with_its_undo() {
        let document = include_str!("../../../docs/HOST-CHANGES.md");
        let part = document.split("\n## ").find(|part| part.starts_with("Windows\n")).unwrap();
        let mut listed: Vec<(String, String)> = Vec::new();
        for line in part.lines().filter(|line| line.starts_with("| `")) {
            let mut cells = line.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).skip(1);
            listed.push((cells.next().unwrap(), cells.next().unwrap()));
        }
        let coded: Vec<(String, String)> =
            one_of_each().iter().map(|change| (variant(change), variant(&change.undo()))).collect();
        assert_eq!(listed, coded);
    }

    #[test]
    fn a_device_may_have_blanks_in_its_name() {
        let change = Change::RouteDelete(Route {
            device: "ztun of mine".into(),
            destination: "0.0.0.0/1".parse().unwrap(),
        });
        assert_eq!(change.to_string(), "route del 0.0.0.0/1 dev ztun of mine");
        assert_eq!(change.to_string().parse(), Ok(change));
    }

    #[test]
    fn only_a_kill_switch_decides_where_packets_go_when_the_device_is_gone() {
        let guard =
            |kind: &str| format!("guard add {kind} luid 0x1 to - outside -").parse::<Change>().unwrap();
        assert!(guard("kill-switch").outlives_device());
        assert!(guard("kill-switch").undo().outlives_device());
        assert!(!guard("names").outlives_device());
        let route: Change = "route add 203.0.113.9/32 via 192.168.1.1 luid 0x1".parse().unwrap();
        assert!(!route.outlives_device());
        assert_eq!(route.device(), None);
    }
}
