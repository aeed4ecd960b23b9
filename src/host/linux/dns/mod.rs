//! The machine's DNS while a run lasts: names are asked for in the tunnel, and everything is byte-equal afterwards.
//!
//! # Theory of operation
//!
//! Queries to port 53 of any address are captured by the routing rules, whatever stands in `/etc/resolv.conf`. What this module adds is
//! that programs ask a name server that exists behind the tunnel, instead of one that is right in the machine's own network only, and that a
//! resolver which binds its queries to a link (systemd-resolved does) sends them to the tunnel's.
//!
//! [`choose`] picks the [`Way`] from what was seen of the machine (a [`Situation`]): purely.
//!
//! - [`Way::Resolved`]: name servers of the device's link, told to systemd-resolved by `resolvectl`. They die with the link.
//! - [`Way::Resolvconf`]: a record of resolvconf (Debian's or openresolv), deletable by its name.
//! - [`Way::File`]: `/etc/resolv.conf` itself. The file back end has its own theory.
//!
//! Where all name servers are public addresses and `/etc/resolv.conf` is asked directly, nothing is changed: queries to them go through the tunnel.
//!
//! A network namespace that shares `/etc` with process 1 (as `ip netns exec` has it) is another machine with the same file: the file stays
//! as it is, and neither systemd-resolved nor resolvconf, which serve process 1's, are told anything.
//!
//! No run fails for DNS's sake: what cannot be changed is a warning, because captured queries are answered all the same.

use super::change::Change;
use core::fmt;
use core::net::IpAddr;

mod command;
mod file;
mod machine;
mod text;
pub use machine::{Places, Upkeep};
pub(super) use machine::{leftovers, observe, restore, set};

/// Name servers for the machine, and how it is told of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dns {
    /// How.
    pub way: Way,
    /// The device behind which they are; empty in what is found of a run that died, when that does not tell.
    pub device: String,
    /// The name servers; empty under the same condition.
    pub servers: Vec<IpAddr>,
}

/// How the machine is told of its name servers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// By systemd-resolved, for the device's link.
    Resolved,
    /// By a record of resolvconf.
    Resolvconf,
    /// By `/etc/resolv.conf`.
    File,
}

impl Dns {
    /// The device with which the change ends by itself; `None` when it outlives the device.
    pub(super) fn bound_to(&self) -> Option<&str> {
        match self.way {
            Way::Resolved => Some(&self.device),
            Way::Resolvconf | Way::File => None,
        }
    }

    /// Reads what [`fmt::Display`] writes, split at spaces.
    pub(super) fn parse(words: &[&str]) -> Option<Dns> {
        let [servers, "by", way, "dev", device] = *words else { return None };
        let way = match way {
            "resolved" => Way::Resolved,
            "resolvconf" => Way::Resolvconf,
            "file" => Way::File,
            _ => return None,
        };
        let device = if device == UNKNOWN { "" } else { device };
        let servers: Option<Vec<IpAddr>> = match servers {
            UNKNOWN => Some(Vec::new()),
            _ => servers.split(',').map(|server| server.parse().ok()).collect(),
        };
        Some(Dns { way, device: device.into(), servers: servers? })
    }
}

/// Stands for what is not known.
const UNKNOWN: &str = "?";

impl fmt::Display for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<String> = self.servers.iter().map(IpAddr::to_string).collect();
        let known = |text: String| if text.is_empty() { UNKNOWN.to_owned() } else { text };
        let (servers, device) = (known(servers.join(",")), known(self.device.clone()));
        write!(f, "{servers} by {} dev {device}", self.way)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Resolved => "resolved",
            Way::Resolvconf => "resolvconf",
            Way::File => "file",
        })
    }
}

/// What was seen of the machine's DNS.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Situation {
    /// Whether `/etc/resolv.conf` is of this network namespace: not also that of process 1 in another one.
    pub own_file: bool,
    /// Whether the file leads to systemd-resolved, which answers `resolvectl` and serves this network namespace.
    pub resolved: bool,
    /// Whether resolvconf makes the file, is there, and serves this network namespace.
    pub resolvconf: bool,
    /// The name servers in the file.
    pub servers: Vec<IpAddr>,
}

/// What is to be done about the machine's DNS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// It is changed in this way.
    Change(Way),
    /// Nothing: the file belongs to process 1's network namespace as well.
    LeaveToOthers,
    /// Nothing: its name servers are reached through the tunnel as they are.
    LeaveAsIs,
}

/// What is to be done in this situation.
pub fn choose(situation: &Situation) -> Choice {
    if !situation.own_file {
        return Choice::LeaveToOthers;
    }
    // Also when all servers behind it are public: it binds queries to the link that a server came with, past all routing rules.
    if situation.resolved {
        return Choice::Change(Way::Resolved);
    }
    if !situation.servers.is_empty() && situation.servers.iter().all(|&server| is_public(server)) {
        return Choice::LeaveAsIs;
    }
    Choice::Change(if situation.resolvconf { Way::Resolvconf } else { Way::File })
}

/// The change, if any, that makes `servers` behind `device` the machine's name servers.
pub(super) fn plan(situation: &Situation, device: &str, servers: &[IpAddr]) -> Option<Dns> {
    match choose(situation) {
        Choice::Change(way) if !servers.is_empty() => {
            Some(Dns { way, device: device.into(), servers: servers.to_vec() })
        }
        Choice::Change(_) | Choice::LeaveToOthers | Choice::LeaveAsIs => None,
    }
}

/// Keeps the name servers that `changes` gave the machine, if they did.
pub(in crate::host) fn upkeep(changes: &[Change]) -> Option<Upkeep> {
    let set =
        changes.iter().find_map(|change| if let Change::DnsSet(dns) = change { Some(dns) } else { None });
    set.and_then(|dns| Upkeep::new(Places::standard(), dns.clone()))
}

/// The name servers that this machine is set to ask, or was before a run changed it; none where the setting is also that of another network.
pub(in crate::host) fn name_servers() -> Vec<IpAddr> {
    machine::servers(&Places::standard())
}

/// Whether `addr` is one of the public Internet's: what is private, shared, reserved or local is right in one network only
/// (RFC 6890, RFC 6598, RFC 4193).
fn is_public(addr: IpAddr) -> bool {
    match addr.to_canonical() {
        IpAddr::V4(addr) => {
            let [a, b, c, _] = addr.octets();
            let special = addr.is_private()
                || addr.is_loopback()
                || addr.is_link_local()
                || addr.is_documentation()
                || matches!((a, b, c), (0, _, _) | (240.., _, _) | (192, 0, 0))
                || (a == 100 && (64..128).contains(&b))
                || (a == 198 && (18..20).contains(&b))
                || addr.is_multicast();
            !special
        }
        IpAddr::V6(addr) => {
            let [first, second, ..] = addr.segments();
            first & 0xe000 == 0x2000 && (first, second) != (0x2001, 0x0db8)
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in crate::host::linux) fn dns() -> impl Strategy<Value = Dns> {
        let way = proptest::sample::select(&[Way::Resolved, Way::Resolvconf, Way::File][..]);
        let server = prop_oneof![
            any::<[u8; 4]>().prop_map(IpAddr::from),
            // An IPv4 address in IPv6 clothes is written with dots and read as it was.
            any::<[u8; 16]>().prop_map(IpAddr::from),
        ];
        (way, "[a-z][a-z0-9.@_-]{0,14}", proptest::collection::vec(server, 0..4))
            .prop_map(|(way, device, servers)| Dns { way, device, servers })
    }

    fn situation(servers: &[&str]) -> Situation {
        Situation {
            own_file: true,
            servers: servers.iter().map(|server| server.parse().unwrap()).collect(),
            ..Situation::default()
        }
    }

    #[test]
    fn the_way_follows_from_who_makes_the_file() {
        let lan = situation(&["192.168.1.1"]);
        assert_eq!(choose(&lan), Choice::Change(Way::File));
        let made = Situation { resolvconf: true, ..lan.clone() };
        assert_eq!(choose(&made), Choice::Change(Way::Resolvconf));
        assert_eq!(choose(&Situation { resolved: true, ..made.clone() }), Choice::Change(Way::Resolved));
        assert_eq!(choose(&Situation { own_file: false, resolved: true, ..made }), Choice::LeaveToOthers);
        assert_eq!(choose(&Situation::default()), Choice::LeaveToOthers);
    }

    #[test]
    fn public_name_servers_need_no_change_and_one_that_is_not_does() {
        let public = situation(&["9.9.9.9", "2620:fe::fe"]);
        assert_eq!(choose(&public), Choice::LeaveAsIs);
        assert_eq!(choose(&Situation { resolvconf: true, ..public.clone() }), Choice::LeaveAsIs);
        assert_eq!(choose(&Situation { resolved: true, ..public }), Choice::Change(Way::Resolved));
        assert_eq!(choose(&situation(&["9.9.9.9", "127.0.0.1"])), Choice::Change(Way::File));
        assert_eq!(choose(&situation(&[])), Choice::Change(Way::File));
    }

    #[test]
    fn only_the_addresses_of_the_internet_are_public() {
        for text in ["8.8.8.8", "1.1.1.1", "100.128.0.1", "198.20.0.1", "2606:4700::1111", "::ffff:9.9.9.9"] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
        for text in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.53",
            "169.254.1.1",
            "172.16.0.1",
            "192.0.0.1",
            "192.0.2.1",
            "192.168.0.1",
            "198.18.0.2",
            "224.0.0.251",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "ff02::fb",
            "2001:db8::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn the_plan_names_servers_or_is_none() {
        let server = "198.18.0.2".parse().unwrap();
        let lan = situation(&["192.168.1.1"]);
        let text = plan(&lan, "ztun0", &[server]).unwrap().to_string();
        assert_eq!(text, "198.18.0.2 by file dev ztun0");
        assert_eq!(plan(&lan, "ztun0", &[]), None);
        assert_eq!(plan(&situation(&["9.9.9.9"]), "ztun0", &[server]), None);
        assert_eq!(plan(&Situation { own_file: false, ..lan }, "ztun0", &[server]), None);
    }

    proptest! {
        #[test]
        fn its_text_gives_it_back(dns in dns()) {
            let text = dns.to_string();
            prop_assert_eq!(Dns::parse(&text.split(' ').collect::<Vec<_>>()), Some(dns));
        }
    }
}
