//! One change to a Mac: what it is, what undoes it, and its text.
//!
//! The text is one line, in the words of route(8) and ifconfig(8) where they have them. `--dry-run` prints it and the journal keeps it, so it is
//! parsed back without loss. Every change is undone by exactly one other, whose undo is the first again.

use super::names::Names;
use crate::config::Cidr;
use crate::host::reversible::{ParseError, Reversible};
use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;
use std::io;

/// A change that is made to the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Sets the MTU; its own undo, with the two values exchanged.
    MtuSet {
        /// The device.
        device: String,
        /// The new value, octets.
        mtu: u32,
        /// The value before, octets.
        was: u32,
    },
    /// Gives the device an address.
    AddressAdd(Address),
    /// Takes an address from the device.
    AddressDelete(Address),
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
    /// Adds a route.
    RouteAdd(Route),
    /// Deletes a route.
    RouteDelete(Route),
    /// Gives the machine its name servers.
    DnsSet(Names),
    /// Takes them away: what was before [`Change::DnsSet`] is what is left.
    DnsRestore(Names),
}

/// An address of the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    /// The device.
    pub device: String,
    /// Address and prefix length.
    pub address: Cidr,
}

/// A route of ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// The destination; host bits are 0.
    pub to: Cidr,
    /// Where it leads.
    pub way: Way,
}

/// Where a route leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Way {
    /// Onto the link of this interface, with which it goes: the device's, or that of another tunnel.
    Link(String),
    /// To a neighbour.
    Gateway {
        /// Its address.
        addr: IpAddr,
        /// The interface on whose link a link-local address is; nothing with any other.
        zone: Option<String>,
    },
    /// Nowhere: who sends is told at once. It leads to loopback, so it outlives every device.
    Reject,
}

impl Reversible for Change {
    fn undo(&self) -> Change {
        match self.clone() {
            Change::MtuSet { device, mtu, was } => Change::MtuSet { device, mtu: was, was: mtu },
            Change::AddressAdd(address) => Change::AddressDelete(address),
            Change::AddressDelete(address) => Change::AddressAdd(address),
            Change::LinkUp { device } => Change::LinkDown { device },
            Change::LinkDown { device } => Change::LinkUp { device },
            Change::RouteAdd(route) => Change::RouteDelete(route),
            Change::RouteDelete(route) => Change::RouteAdd(route),
            Change::DnsSet(names) => Change::DnsRestore(names),
            Change::DnsRestore(names) => Change::DnsSet(names),
        }
    }

    fn device(&self) -> Option<&str> {
        match self {
            Change::MtuSet { device, .. } | Change::LinkUp { device } | Change::LinkDown { device } => {
                Some(device)
            }
            Change::AddressAdd(address) | Change::AddressDelete(address) => Some(&address.device),
            Change::RouteAdd(route) | Change::RouteDelete(route) => match &route.way {
                Way::Link(interface) => Some(interface),
                Way::Gateway { .. } | Way::Reject => None,
            },
            Change::DnsSet(_) | Change::DnsRestore(_) => None,
        }
    }

    fn outlives_device(&self) -> bool {
        match self {
            Change::RouteAdd(route) | Change::RouteDelete(route) => !matches!(route.way, Way::Link(_)),
            Change::MtuSet { .. }
            | Change::AddressAdd(_)
            | Change::AddressDelete(_)
            | Change::LinkUp { .. }
            | Change::LinkDown { .. }
            | Change::DnsSet(_)
            | Change::DnsRestore(_) => false,
        }
    }

    fn is_optional(&self) -> bool {
        match self {
            // ztun's own sockets are bound to the interface that they leave by; the route is for other programs' way to the same place.
            Change::RouteAdd(route) => matches!(route.way, Way::Gateway { .. }),
            // Captured queries are answered all the same.
            Change::DnsSet(_) => true,
            Change::MtuSet { .. }
            | Change::AddressAdd(_)
            | Change::AddressDelete(_)
            | Change::LinkUp { .. }
            | Change::LinkDown { .. }
            | Change::RouteDelete(_)
            | Change::DnsRestore(_) => false,
        }
    }

    fn is_made_once(&self) -> bool {
        matches!(self, Change::DnsSet(_))
    }

    fn is_replaced_by(&self, other: &Change) -> bool {
        // There is one route to a destination.
        matches!((self, other), (Change::RouteAdd(old), Change::RouteAdd(new)) if old.to == new.to && old != new)
    }

    fn kind(&self) -> &'static str {
        match self {
            Change::MtuSet { .. } => "mtu",
            Change::AddressAdd(_) | Change::AddressDelete(_) => "address",
            Change::LinkUp { .. } | Change::LinkDown { .. } => "link",
            Change::RouteAdd(_) | Change::RouteDelete(_) => "route",
            Change::DnsSet(_) | Change::DnsRestore(_) => "dns",
        }
    }

    fn remedy(&self, error: &io::Error) -> Option<&'static str> {
        match (self, error.kind()) {
            (Change::RouteAdd(_), io::ErrorKind::AlreadyExists) => {
                Some("another program leads there already: stop it, or leave the network out of --route")
            }
            (Change::AddressAdd(_), io::ErrorKind::AlreadyExists | io::ErrorKind::AddrInUse) => {
                Some("another interface has it: choose another --address")
            }
            _ => None,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::MtuSet { device, mtu, was } => write!(f, "mtu set {mtu} was {was} dev {device}"),
            Change::AddressAdd(address) => write!(f, "address add {address}"),
            Change::AddressDelete(address) => write!(f, "address del {address}"),
            Change::LinkUp { device } => write!(f, "link up dev {device}"),
            Change::LinkDown { device } => write!(f, "link down dev {device}"),
            Change::RouteAdd(route) => write!(f, "route add {route}"),
            Change::RouteDelete(route) => write!(f, "route del {route}"),
            Change::DnsSet(names) => write!(f, "dns set {names}"),
            Change::DnsRestore(names) => write!(f, "dns restore {names}"),
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
        match &self.way {
            Way::Link(interface) => write!(f, "{} dev {interface}", self.to),
            Way::Gateway { addr, zone: None } => write!(f, "{} via {addr}", self.to),
            Way::Gateway { addr, zone: Some(zone) } => write!(f, "{} via {addr}%{zone}", self.to),
            Way::Reject => write!(f, "{} reject", self.to),
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
        ["mtu", "set", mtu, "was", was, "dev", device] => {
            Change::MtuSet { device: name(device)?, mtu: mtu.parse().ok()?, was: was.parse().ok()? }
        }
        ["address", "add", address, "dev", device] => Change::AddressAdd(self::address(address, device)?),
        ["address", "del", address, "dev", device] => Change::AddressDelete(self::address(address, device)?),
        ["link", "up", "dev", device] => Change::LinkUp { device: name(device)? },
        ["link", "down", "dev", device] => Change::LinkDown { device: name(device)? },
        ["route", "add", ref rest @ ..] => Change::RouteAdd(route(rest)?),
        ["route", "del", ref rest @ ..] => Change::RouteDelete(route(rest)?),
        ["dns", "set", ref rest @ ..] => Change::DnsSet(Names::parse(rest)?),
        ["dns", "restore", ref rest @ ..] => Change::DnsRestore(Names::parse(rest)?),
        _ => return None,
    };
    Some(change)
}

fn name(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.into())
}

fn address(address: &str, device: &str) -> Option<Address> {
    Some(Address { device: name(device)?, address: cidr(address)? })
}

/// A network as it is written here: always with its prefix.
fn cidr(text: &str) -> Option<Cidr> {
    text.contains('/').then(|| text.parse().ok()).flatten()
}

fn route(words: &[&str]) -> Option<Route> {
    let (to, way) = match *words {
        [to, "dev", interface] => (to, Way::Link(name(interface)?)),
        [to, "via", gateway] => {
            let (addr, zone) = match gateway.split_once('%') {
                Some((addr, zone)) => (addr, Some(name(zone)?)),
                None => (gateway, None),
            };
            (to, Way::Gateway { addr: addr.parse().ok()?, zone })
        }
        [to, "reject"] => (to, Way::Reject),
        _ => return None,
    };
    Some(Route { to: cidr(to)?, way })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nets() -> impl Strategy<Value = Cidr> {
        prop_oneof![
            (any::<[u8; 4]>(), 0u8..=32).prop_map(|(addr, prefix)| Cidr { addr: addr.into(), prefix }),
            (any::<[u8; 16]>(), 0u8..=128).prop_map(|(addr, prefix)| Cidr { addr: addr.into(), prefix }),
        ]
    }

    fn ways() -> impl Strategy<Value = Way> {
        let zone = proptest::option::of("[a-z]{1,5}[0-9]{1,3}");
        prop_oneof![
            "[a-z]{1,5}[0-9]{1,3}".prop_map(Way::Link),
            (any::<[u8; 16]>(), zone).prop_map(|(addr, zone)| Way::Gateway { addr: addr.into(), zone }),
            Just(Way::Reject),
        ]
    }

    pub(in crate::host::macos) fn changes() -> impl Strategy<Value = Change> {
        let device = "utun[0-9]{1,3}";
        prop_oneof![
            (device, any::<u32>(), any::<u32>()).prop_map(|(device, mtu, was)| Change::MtuSet {
                device,
                mtu,
                was
            }),
            (device, nets()).prop_map(|(device, address)| Change::AddressAdd(Address { device, address })),
            device.prop_map(|device| Change::LinkUp { device }),
            (nets(), ways()).prop_map(|(to, way)| Change::RouteAdd(Route { to, way })),
            proptest::collection::vec(any::<[u8; 4]>(), 0..3).prop_map(|servers| {
                Change::DnsSet(Names { servers: servers.into_iter().map(IpAddr::from).collect() })
            }),
        ]
    }

    proptest! {
        #[test]
        fn its_text_gives_a_change_back_and_its_undo_undoes_it(change in changes()) {
            for change in [change.undo(), change] {
                prop_assert_eq!(change.to_string().parse(), Ok(change.clone()));
                prop_assert_eq!(change.undo().undo(), change.clone());
                prop_assert!(!change.outlives_device() || change.device().is_none());
            }
        }

        #[test]
        fn no_line_makes_it_panic(line: String) {
            drop(line.parse::<Change>());
        }
    }

    #[test]
    fn a_line_that_is_cut_off_is_no_change() {
        for line in ["", "route", "route add", "route add 10.0.0.0", "route add 10.0.0.0/8", "link up dev "] {
            assert!(line.parse::<Change>().is_err(), "{line}");
        }
        assert!("route add 10.0.0.0/8 via fe80::1%".parse::<Change>().is_err());
    }

    #[test]
    fn a_route_takes_the_place_of_another_to_the_same_destination() {
        let route = |text: &str| text.parse::<Change>().unwrap();
        let old = route("route add 203.0.113.9/32 via 192.168.1.1");
        assert!(old.is_replaced_by(&route("route add 203.0.113.9/32 via 10.0.0.1")));
        assert!(!old.is_replaced_by(&old));
        assert!(!old.is_replaced_by(&route("route add 203.0.113.8/32 via 10.0.0.1")));
    }
}
