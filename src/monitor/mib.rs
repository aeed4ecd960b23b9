//! What the tables of Windows' IP Helper (netioapi.h) say of a network, without the system: rows in, [`NetworkState`](super::NetworkState) out.

use super::debounce::Clocks;
use super::{DefaultRoute, IfIndex, Interface, Noticed, Path};
use core::time::Duration;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// AF_INET and AF_INET6 of Windows.
const AF_INET: u16 = 2;
const AF_INET6: u16 = 23;
/// IfOperStatusUp (ifdef.h).
const UP: i32 = 1;
/// MediaConnectStateDisconnected (ifdef.h).
const DISCONNECTED: i32 = 2;
/// FilterInterface in the flags of a MIB_IF_ROW2: no interface of its own, but a layer of another.
const FILTER: u8 = 1 << 1;
/// MibDeleteInstance.
const DELETED: i32 = 2;

/// The address in a SOCKADDR_INET: family, then an IPv4 address behind the port, or an IPv6 address behind port and flow.
pub(super) fn address(octets: &[u8]) -> Option<IpAddr> {
    let family = u16::from_le_bytes(*octets.first_chunk()?);
    match family {
        AF_INET => Some(Ipv4Addr::from(*octets.get(4..)?.first_chunk::<4>()?).into()),
        AF_INET6 => Some(Ipv6Addr::from(*octets.get(8..)?.first_chunk::<16>()?).into()),
        _ => None,
    }
}

/// A SOCKADDR_INET with this address, and no port.
pub(super) fn socket_address(addr: IpAddr) -> [u8; 28] {
    let mut octets = [0; 28];
    let (family, at, addr): (u16, usize, &[u8]) = match &addr {
        IpAddr::V4(addr) => (AF_INET, 4, &addr.octets()),
        IpAddr::V6(addr) => (AF_INET6, 8, &addr.octets()),
    };
    octets[..2].copy_from_slice(&family.to_le_bytes());
    octets[at..at + addr.len()].copy_from_slice(addr);
    octets
}

/// Of a MIB_IPFORWARD_ROW2.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    pub(super) interface: u32,
    pub(super) to: [u8; 28],
    pub(super) prefix: u8,
    pub(super) next_hop: [u8; 28],
    pub(super) metric: u32,
    pub(super) loopback: bool,
}

/// The route to everywhere that it is, if it is one. Windows adds the metric of the interface to that of the route.
pub(super) fn default_route(route: &Route, interface_metric: u32) -> Option<DefaultRoute> {
    let to = address(&route.to)?;
    if route.prefix != 0 || !to.is_unspecified() || route.loopback {
        return None;
    }
    Some(DefaultRoute {
        v6: to.is_ipv6(),
        interface: IfIndex(route.interface),
        gateway: address(&route.next_hop).filter(|gateway| !gateway.is_unspecified()),
        source: None,
        metric: route.metric.saturating_add(interface_metric),
    })
}

/// Of a MIB_IF_ROW2.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link<'a> {
    pub(super) index: u32,
    /// UTF-16, ended by a zero.
    pub(super) alias: &'a [u16],
    pub(super) flags: u8,
    pub(super) status: i32,
    pub(super) media: i32,
}

/// The interface; `None` for a layer of another one.
pub(super) fn interface(link: &Link<'_>) -> Option<Interface> {
    if link.flags & FILTER != 0 {
        return None;
    }
    let end = link.alias.iter().position(|unit| *unit == 0).unwrap_or(link.alias.len());
    Some(Interface {
        index: IfIndex(link.index),
        name: String::from_utf16_lossy(&link.alias[..end]),
        running: link.status == UP && link.media != DISCONNECTED,
    })
}

/// The way that GetBestRoute2 has answered with, for a packet to `to`.
pub(super) fn path(route: &Route, to: IpAddr) -> Path {
    if route.loopback || to.is_loopback() { Path::Local } else { Path::Leaves(IfIndex(route.interface)) }
}

/// What a system thread is told of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Told {
    Interface,
    Address,
    Route,
}

/// What it means, when it is of the interface `index` and of the kind `notification` (MIB_NOTIFICATION_TYPE).
pub(super) fn meaning(told: Told, index: u32, own: Option<u32>, notification: i32) -> Noticed {
    if own == Some(index) {
        // What is ours is passed over, as long as it does not go.
        return Noticed { own: notification == DELETED, ..Noticed::NOTHING };
    }
    match told {
        Told::Interface | Told::Address => Noticed { state: true, ..Noticed::NOTHING },
        Told::Route => Noticed { routes: true, ..Noticed::NOTHING },
    }
}

/// News as one octet, so that a system thread can add to what waits without a lock.
pub(super) fn to_bits(noticed: Noticed) -> u8 {
    let Noticed { state, routes, resolver, own, woke } = noticed;
    [state, routes, resolver, own, woke].iter().rev().fold(0, |bits, set| bits << 1 | u8::from(*set))
}

/// And back.
pub(super) fn from_bits(bits: u8) -> Noticed {
    let is = |place: u8| bits >> place & 1 == 1;
    Noticed { state: is(0), routes: is(1), resolver: is(2), own: is(3), woke: is(4) }
}

/// What the clocks show. `ticks` counts while the machine sleeps, `awake` does not; the loop's own clock counts on some machines and not on others. So the time slept is
/// added once more to the one that counts: it runs ahead of the loop's clock by what was slept, at least.
pub(super) fn clocks(wall: Duration, ticks: Duration, awake: Duration) -> Clocks {
    Clocks { wall, boot: ticks + ticks.saturating_sub(awake) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::debounce::SleepWatch;
    use crate::time::Instant;
    use proptest::prelude::*;

    const NOWHERE: &str = "0.0.0.0";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn route(to: &str, prefix: u8, next_hop: &str) -> Route {
        let (to, next_hop) = (socket_address(ip(to)), socket_address(ip(next_hop)));
        Route { interface: 12, to, prefix, next_hop, metric: 5, loopback: false }
    }

    #[test]
    fn addresses_are_read_where_the_structures_have_them() {
        // family, port, address; the last eight are padding of SOCKADDR_IN.
        let v4 = [2, 0, 0x1f, 0x90, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(address(&v4), Some(ip("192.0.2.1")));
        // family, port, flow, address, scope.
        let mut v6 = vec![23, 0, 0, 53, 9, 9, 9, 9];
        v6.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 3, 0, 0, 0]);
        assert_eq!(address(&v6), Some(ip("2001:db8::7")));
        assert_eq!(address(&[0; 28]), None, "AF_UNSPEC");
        assert_eq!(address(&v6[..23]), None);
    }

    proptest! {
        #[test]
        fn an_address_comes_back_as_it_went(addr: IpAddr) {
            prop_assert_eq!(address(&socket_address(addr)), Some(addr));
        }

        #[test]
        fn news_come_back_as_they_went(bits in 0u8..32) {
            prop_assert_eq!(to_bits(from_bits(bits)), bits);
        }

        #[test]
        fn no_octets_make_a_panic(octets in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = address(&octets);
        }
    }

    #[test]
    fn a_default_route_costs_what_it_and_its_interface_cost() {
        let found = default_route(&route("0.0.0.0", 0, "192.168.1.1"), 25).unwrap();
        assert_eq!((found.v6, found.interface, found.metric), (false, IfIndex(12), 30));
        assert_eq!(found.gateway, Some(ip("192.168.1.1")));
        let on_link = default_route(&route("::", 0, "::"), u32::MAX).unwrap();
        assert_eq!((on_link.v6, on_link.gateway, on_link.metric), (true, None, u32::MAX));
    }

    #[test]
    fn half_of_everywhere_is_no_default_route() {
        assert_eq!(default_route(&route("0.0.0.0", 1, NOWHERE), 0), None);
        assert_eq!(default_route(&route("10.0.0.0", 0, NOWHERE), 0), None);
        assert_eq!(default_route(&Route { loopback: true, ..route("0.0.0.0", 0, NOWHERE) }, 0), None);
    }

    #[test]
    fn an_interface_runs_when_it_is_up_and_its_medium_is_there() {
        let alias: Vec<u16> = "WLAN é\0rest".encode_utf16().collect();
        let link = Link { index: 7, alias: &alias, flags: 0b101, status: UP, media: 1 };
        let found = interface(&link).unwrap();
        assert_eq!((found.index, found.name.as_str(), found.running), (IfIndex(7), "WLAN é", true));
        assert!(!interface(&Link { media: DISCONNECTED, ..link }).unwrap().running);
        assert!(!interface(&Link { status: 2, ..link }).unwrap().running);
        assert!(interface(&Link { flags: FILTER, ..link }).is_none());
        assert_eq!(interface(&Link { alias: &alias[..4], ..link }).unwrap().name, "WLAN");
    }

    #[test]
    fn what_stays_on_the_machine_leaves_by_nothing() {
        let out = route("203.0.113.1", 32, NOWHERE);
        assert_eq!(path(&out, ip("203.0.113.1")), Path::Leaves(IfIndex(12)));
        assert_eq!(path(&Route { loopback: true, ..out }, ip("192.168.1.5")), Path::Local);
        assert_eq!(path(&out, ip("127.0.0.9")), Path::Local);
    }

    #[test]
    fn our_own_device_is_told_of_only_when_it_goes() {
        for told in [Told::Interface, Told::Address, Told::Route] {
            for (notification, own) in [(0, false), (1, false), (DELETED, true)] {
                let news = meaning(told, 9, Some(9), notification);
                assert_eq!(news, Noticed { own, ..Noticed::NOTHING });
            }
        }
        assert!(meaning(Told::Route, 8, Some(9), DELETED).routes);
        assert!(meaning(Told::Address, 8, None, 1).state && meaning(Told::Interface, 8, None, 0).state);
    }

    #[test]
    fn a_sleep_is_seen_whether_the_loops_clock_counts_it_or_not() {
        let at = |seconds: u64| Instant::from_millis(seconds * 1_000);
        let show =
            |ticks, awake| clocks(Duration::ZERO, Duration::from_secs(ticks), Duration::from_secs(awake));
        for loop_clock in [60, 660] {
            let mut watch = SleepWatch::new(show(1_000, 900), at(0));
            assert!(watch.slept(show(1_660, 960), at(loop_clock)), "ten minutes asleep, one awake");
        }
        let mut watch = SleepWatch::new(show(1_000, 900), at(0));
        assert!(!watch.slept(show(1_060, 960), at(60)), "a minute awake");
    }
}
