//! By which interface ztun's own connections leave, so that they never fall into the device.
//!
//! Where sockets carry a mark a routing rule sees to that, whatever the routes are. Where the system knows no marks each socket is bound to an interface: that of the
//! default route, which is followed when the network changes. A proxy that another route leads to, in a second network or behind another tunnel, is reached by that
//! one's. While there is no default route, sockets are bound to a number that no interface has: nothing leaves then, and nothing goes round in a circle.

use crate::monitor::{IfIndex, Monitor, NetworkState, Path, Question};
use std::net::IpAddr;
use std::num::NonZeroU32;

/// No interface.
const NOWHERE: NonZeroU32 = NonZeroU32::MAX;

/// What decides on the interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Egress {
    /// The routes, by the mark.
    Routed,
    /// The person who started it, by name.
    Named(String),
    /// The default route, as it changes.
    Followed,
}

impl Egress {
    /// What decides where `interface` was asked for, on a system that knows `marks` or not.
    pub(super) fn of(interface: Option<&String>, marks: bool) -> Egress {
        match interface {
            Some(name) => Egress::Named(name.clone()),
            None if marks => Egress::Routed,
            None => Egress::Followed,
        }
    }

    /// What sockets are to be bound to in a network that is like this; `None` to leave them as they are.
    pub(super) fn interface(&self, state: &NetworkState) -> Option<NonZeroU32> {
        match self {
            Egress::Routed => None,
            // Without one the old number stays, by which nothing leaves.
            Egress::Named(name) => state.index_of(name).and_then(number),
            Egress::Followed => Some(state.way_out().and_then(number).unwrap_or(NOWHERE)),
        }
    }

    /// The proxies that are reached by another interface than all else, and which that is.
    pub(super) fn ways(
        &self,
        proxies: &[IpAddr],
        state: &NetworkState,
        monitor: &mut impl Monitor,
    ) -> Vec<(IpAddr, NonZeroU32)> {
        match self {
            Egress::Routed | Egress::Named(_) => Vec::new(),
            Egress::Followed => {
                let usual = self.interface(state);
                let remote = proxies.iter().filter(|addr| !addr.is_loopback());
                let ways = remote.filter_map(|addr| Some((*addr, number(towards(*addr, state, monitor)?)?)));
                ways.filter(|(_, interface)| Some(*interface) != usual).collect()
            }
        }
    }

    /// The interface that a socket with the address `local` is bound to, where those that are opened now are bound to `bound`: perhaps one that was followed before.
    pub(super) fn of_socket(
        &self,
        local: IpAddr,
        bound: Option<IfIndex>,
        state: &NetworkState,
    ) -> Option<IfIndex> {
        match self {
            Egress::Routed | Egress::Named(_) => bound,
            Egress::Followed => state.interface_of(local).or(bound),
        }
    }
}

fn number(index: IfIndex) -> Option<NonZeroU32> {
    NonZeroU32::new(index.0)
}

/// The interface by which an address is reached; `None` when that is by the device, or not at all.
fn towards(to: IpAddr, state: &NetworkState, monitor: &mut impl Monitor) -> Option<IfIndex> {
    let question = Question { to, from: None, interface: None, mark: None };
    match monitor.path(question) {
        // The device is none of the state's.
        Ok(Some(Path::Leaves(index))) => Some(index).filter(|index| state.is_running(*index)),
        Ok(Some(Path::Local) | None) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::debounce::Clocks;
    use crate::monitor::{DefaultRoute, Interface, Noticed};
    use mio::event::Source;
    use mio::{Interest, Registry, Token};
    use std::io;

    const WIFI: IfIndex = IfIndex(2);
    const CABLE: IfIndex = IfIndex(3);
    /// The device.
    const TUN: IfIndex = IfIndex(9);

    /// One that answers every question alike.
    struct Answers(Option<Path>);

    impl Source for Answers {
        fn register(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
            Ok(())
        }

        fn reregister(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
            Ok(())
        }

        fn deregister(&mut self, _: &Registry) -> io::Result<()> {
            Ok(())
        }
    }

    impl Monitor for Answers {
        fn drain(&mut self) -> io::Result<Noticed> {
            Ok(Noticed::NOTHING)
        }

        fn state(&mut self) -> io::Result<NetworkState> {
            Ok(NetworkState::default())
        }

        fn path(&mut self, _: Question) -> io::Result<Option<Path>> {
            Ok(self.0)
        }

        fn clocks(&self) -> Clocks {
            Clocks { wall: Default::default(), boot: Default::default() }
        }
    }

    /// Wi-Fi has the better default route; whether it carries.
    fn state(wifi: bool) -> NetworkState {
        let route =
            |interface, metric| DefaultRoute { v6: false, interface, gateway: None, source: None, metric };
        let interface = |index, name: &str, running| Interface { index, name: name.into(), running };
        NetworkState {
            defaults: vec![route(WIFI, 10), route(CABLE, 20)],
            interfaces: vec![interface(WIFI, "Wi-Fi", wifi), interface(CABLE, "Ethernet", true)],
            ..NetworkState::default()
        }
    }

    fn followed(state: &NetworkState) -> Option<u32> {
        Egress::Followed.interface(state).map(NonZeroU32::get)
    }

    #[test]
    fn a_mark_needs_no_interface_and_a_name_decides_everywhere() {
        let name = "Ethernet".to_owned();
        assert_eq!(Egress::of(None, true).interface(&state(true)), None);
        for marks in [false, true] {
            let named = Egress::of(Some(&name), marks);
            assert_eq!(named.interface(&state(true)), number(CABLE));
            assert_eq!(named.interface(&NetworkState::default()), None);
        }
        assert_eq!(Egress::of(None, false), Egress::Followed);
    }

    #[test]
    fn without_marks_the_default_route_that_carries_is_followed() {
        assert_eq!(followed(&state(true)), Some(WIFI.0));
        assert_eq!(followed(&state(false)), Some(CABLE.0));
        assert_eq!(followed(&NetworkState::default()), Some(u32::MAX), "nothing leaves");
    }

    #[test]
    fn a_proxy_that_has_a_route_of_its_own_is_reached_by_that() {
        let proxies: Vec<IpAddr> = ["10.1.2.3", "127.0.0.1"].map(|addr| addr.parse().unwrap()).into();
        let ways = |egress: &Egress, path| egress.ways(&proxies, &state(true), &mut Answers(path));
        let by_cable = Some(Path::Leaves(CABLE));
        assert_eq!(ways(&Egress::Followed, by_cable), [(proxies[0], number(CABLE).unwrap())]);
        // As all else; into the device, which sockets must never take; on this machine; nowhere.
        for path in [Some(Path::Leaves(WIFI)), Some(Path::Leaves(TUN)), Some(Path::Local), None] {
            assert!(ways(&Egress::Followed, path).is_empty(), "{path:?}");
        }
        for egress in [Egress::Routed, Egress::Named("Wi-Fi".into())] {
            assert!(ways(&egress, by_cable).is_empty());
        }
    }

    #[test]
    fn a_socket_stays_with_the_interface_of_its_address() {
        let (old, other): (IpAddr, IpAddr) = ("10.0.0.5".parse().unwrap(), "10.0.0.6".parse().unwrap());
        let state = NetworkState { addresses: vec![(CABLE, old)], ..state(true) };
        assert_eq!(Egress::Followed.of_socket(old, Some(WIFI), &state), Some(CABLE));
        assert_eq!(Egress::Followed.of_socket(other, Some(WIFI), &state), Some(WIFI));
        assert_eq!(Egress::Routed.of_socket(old, None, &state), None);
    }
}
