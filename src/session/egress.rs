//! By which interface ztun's own connections leave, so that they never fall into the device.
//!
//! Where sockets carry a mark a routing rule sees to that, whatever the routes are. Where the system knows no marks each socket is bound to an interface: that by
//! which the proxy is reached, if a route besides those into the device says one, and else that of the default route. It is followed when the network changes. While there
//! is none, sockets are bound to a number that no interface has: nothing leaves then, and nothing goes round in a circle.

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

    /// What sockets are to be bound to in a network that is like this; `None` to leave them as they are. `proxy` is one that is not on this machine, if
    /// there is any.
    pub(super) fn interface(
        &self,
        state: &NetworkState,
        proxy: Option<IpAddr>,
        monitor: &mut impl Monitor,
    ) -> Option<NonZeroU32> {
        match self {
            Egress::Routed => None,
            // Without one the old number stays, by which nothing leaves.
            Egress::Named(name) => state.index_of(name).and_then(|index| NonZeroU32::new(index.0)),
            Egress::Followed => {
                let found =
                    proxy.and_then(|proxy| towards(proxy, state, monitor)).or_else(|| state.way_out());
                Some(found.and_then(|index| NonZeroU32::new(index.0)).unwrap_or(NOWHERE))
            }
        }
    }
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

    fn followed(state: &NetworkState, proxy: Option<Path>) -> Option<u32> {
        let to = Some("203.0.113.1".parse().unwrap());
        Egress::Followed.interface(state, to, &mut Answers(proxy)).map(NonZeroU32::get)
    }

    #[test]
    fn a_mark_needs_no_interface_and_a_name_decides_everywhere() {
        let mut nobody = Answers(None);
        let name = "Ethernet".to_owned();
        assert_eq!(Egress::of(None, true).interface(&state(true), None, &mut nobody), None);
        for marks in [false, true] {
            let named = Egress::of(Some(&name), marks);
            assert_eq!(named.interface(&state(true), None, &mut nobody), NonZeroU32::new(CABLE.0));
            assert_eq!(named.interface(&NetworkState::default(), None, &mut nobody), None);
        }
        assert_eq!(Egress::of(None, false), Egress::Followed);
    }

    #[test]
    fn without_marks_the_default_route_that_carries_is_followed() {
        assert_eq!(followed(&state(true), None), Some(WIFI.0));
        assert_eq!(followed(&state(false), None), Some(CABLE.0));
        assert_eq!(followed(&NetworkState::default(), None), Some(u32::MAX), "nothing leaves");
    }

    #[test]
    fn a_proxy_that_has_a_route_of_its_own_is_reached_by_that() {
        assert_eq!(followed(&state(true), Some(Path::Leaves(CABLE))), Some(CABLE.0));
        // Into the device, which sockets must never take.
        assert_eq!(followed(&state(true), Some(Path::Leaves(TUN))), Some(WIFI.0));
        assert_eq!(followed(&state(true), Some(Path::Local)), Some(WIFI.0));
    }
}
