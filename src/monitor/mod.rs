//! Notices that the machine's network has changed, and tells what it is like; never changes it.
//!
//! # The contract
//!
//! - A [`Monitor`] is a [`Source`]: when it is readable, [`Monitor::drain`] takes everything that the system has told, and says what kind of
//!   things they were ([`Noticed`]). It never blocks, and an idle machine costs nothing: there is no polling.
//! - What was told is never used to patch a picture of the network. Events can be lost, and come in an order that is not theirs; so on a change
//!   the state is read again, whole, by [`Monitor::state`]. Losing events is a change of everything.
//! - What ztun itself does is no change: its device, and routes and rules with its protocol number, are passed over as long as they
//!   come. That they go is told ([`Noticed::own`]): then it has to be seen to that they are as they should be.
//! - [`Monitor::path`] asks the system which way it would send a packet, with all its rules: nothing of that is computed here.
//!
//! [`debounce`] makes one change out of a burst of events, and tells that the machine has slept. It is pure and the same everywhere. One file per
//! system does the rest.

pub mod debounce;

#[cfg(unix)]
mod system;

#[cfg(target_os = "linux")]
mod descriptors;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::SystemMonitor;

#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
pub use macos::SystemMonitor;

#[cfg(any(windows, test))]
mod mib;

#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub use windows::SystemMonitor;

#[cfg(any(target_os = "android", target_os = "ios", all(target_os = "linux", test)))]
#[cfg_attr(target_os = "linux", allow(unreachable_pub, reason = "only its tests are compiled here"))]
mod told;
#[cfg(any(target_os = "android", target_os = "ios"))]
pub use told::SystemMonitor;

#[cfg(not(any(
    target_os = "linux",
    target_os = "macos",
    target_os = "android",
    target_os = "ios",
    windows
)))]
mod unsupported;
#[cfg(not(any(
    target_os = "linux",
    target_os = "macos",
    target_os = "android",
    target_os = "ios",
    windows
)))]
pub use unsupported::SystemMonitor;

use debounce::Clocks;
use mio::event::Source;
use std::io;
use std::net::IpAddr;

/// The system's number of an interface. One that was deleted and made again has another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IfIndex(pub u32);

/// By what ztun's own things are known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Own {
    /// The device's name.
    pub device: String,
    /// The protocol number of its routes and rules.
    pub protocol: u8,
}

/// What kinds of things have happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Noticed {
    /// Interfaces or addresses, or merely something about them: whether the [`NetworkState`] differs tells.
    pub state: bool,
    /// Routes or rules by which ztun's own sockets may leave.
    pub routes: bool,
    /// The file that says which name servers the machine asks.
    pub resolver: bool,
    /// ztun's device, or routes or rules of its own, have gone.
    pub own: bool,
    /// A clock was set, or the machine has slept: [`debounce::SleepWatch`] tells which.
    pub woke: bool,
}

impl Noticed {
    /// Nothing.
    pub const NOTHING: Noticed =
        Noticed { state: false, routes: false, resolver: false, own: false, woke: false };
    /// Anything may have happened, since events were lost. The clock is not among what can be lost.
    pub const ANYTHING: Noticed =
        Noticed { state: true, routes: true, resolver: true, own: true, woke: false };

    /// Both.
    #[must_use]
    pub const fn and(self, other: Noticed) -> Noticed {
        Noticed {
            state: self.state || other.state,
            routes: self.routes || other.routes,
            resolver: self.resolver || other.resolver,
            own: self.own || other.own,
            woke: self.woke || other.woke,
        }
    }
}

/// A route to everywhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DefaultRoute {
    /// Whether it is for IPv6.
    pub v6: bool,
    /// The interface that it leaves by.
    pub interface: IfIndex,
    /// Whom packets are given to; `None` when everybody is on the link.
    pub gateway: Option<IpAddr>,
    /// The source address that it prescribes.
    pub source: Option<IpAddr>,
    /// The system prefers the lowest.
    pub metric: u32,
}

/// An interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its number.
    pub index: IfIndex,
    /// Its name.
    pub name: String,
    /// Whether it is up and has a carrier.
    pub running: bool,
}

/// The machine's network without ztun's device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NetworkState {
    /// Default routes of the table that ztun's own sockets look into, the preferred ones first, by family.
    pub defaults: Vec<DefaultRoute>,
    /// Interfaces, by number.
    pub interfaces: Vec<Interface>,
    /// Addresses of this machine and where they are, by number of the interface.
    pub addresses: Vec<(IfIndex, IpAddr)>,
    /// Fingerprint of the file that names the machine's name servers; `None` without one.
    pub resolver: Option<u64>,
}

impl NetworkState {
    /// Whether `addr` is one of the machine's own.
    pub fn has_address(&self, addr: IpAddr) -> bool {
        self.addresses.iter().any(|(_, own)| *own == addr)
    }

    /// Where `addr` is.
    pub fn interface_of(&self, addr: IpAddr) -> Option<IfIndex> {
        self.addresses.iter().find(|(_, own)| *own == addr).map(|(index, _)| *index)
    }

    /// Whether packets can leave by the interface: it exists, is up, and has a carrier.
    pub fn is_running(&self, index: IfIndex) -> bool {
        self.interfaces.iter().any(|interface| interface.index == index && interface.running)
    }

    /// The interface of the preferred default route that carries, of IPv4 where there is one; `None` when there is no way out.
    pub fn way_out(&self) -> Option<IfIndex> {
        self.defaults.iter().map(|route| route.interface).find(|interface| self.is_running(*interface))
    }

    /// The number of the interface of this name.
    pub fn index_of(&self, name: &str) -> Option<IfIndex> {
        self.interfaces.iter().find(|interface| interface.name == name).map(|interface| interface.index)
    }
}

/// A packet whose way is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question {
    /// Its destination.
    pub to: IpAddr,
    /// Its source; `None` when that is still to be chosen.
    pub from: Option<IpAddr>,
    /// The interface that its socket is bound to. The answer is then a route that there is, never a guess that the destination is on the link.
    pub interface: Option<IfIndex>,
    /// The mark of its socket.
    pub mark: Option<u32>,
}

/// The way that the system would send a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Path {
    /// It stays on this machine.
    Local,
    /// It leaves by this interface.
    Leaves(IfIndex),
}

/// Watches the machine's network. The module's documentation is the contract.
pub trait Monitor: Source {
    /// Takes everything that has been told.
    ///
    /// # Errors
    ///
    /// The system's; nothing more will be told then.
    fn drain(&mut self) -> io::Result<Noticed>;

    /// Reads what the network is like.
    ///
    /// # Errors
    ///
    /// The system's.
    fn state(&mut self) -> io::Result<NetworkState>;

    /// Asks which way a packet would take; `None` when it would not be sent.
    ///
    /// # Errors
    ///
    /// The system did not answer.
    fn path(&mut self, question: Question) -> io::Result<Option<Path>>;

    /// What the clocks show that go on while the machine sleeps.
    fn clocks(&self) -> Clocks;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_kinds_of_news_are_both_told() {
        let own = Noticed { own: true, ..Noticed::NOTHING };
        assert_eq!(own.and(Noticed::NOTHING), own);
        let both = own.and(Noticed { woke: true, ..Noticed::NOTHING });
        assert_eq!(both, Noticed { own: true, woke: true, ..Noticed::NOTHING });
        assert_eq!(both.and(Noticed::ANYTHING), Noticed { woke: true, ..Noticed::ANYTHING });
    }

    #[test]
    fn a_state_tells_where_an_address_is_and_whether_its_interface_carries() {
        let addr: IpAddr = "192.0.2.1".parse().unwrap();
        let interface =
            |index, name: &str, running| Interface { index: IfIndex(index), name: name.into(), running };
        let state = NetworkState {
            interfaces: vec![interface(2, "eth0", true), interface(3, "wlan0", false)],
            addresses: vec![(IfIndex(3), addr)],
            ..NetworkState::default()
        };
        assert!(state.has_address(addr) && !state.has_address("192.0.2.2".parse().unwrap()));
        assert_eq!(state.interface_of(addr), Some(IfIndex(3)));
        assert_eq!(state.index_of("eth0"), Some(IfIndex(2)));
        assert!(
            state.is_running(IfIndex(2)) && !state.is_running(IfIndex(3)) && !state.is_running(IfIndex(4))
        );
    }
}
