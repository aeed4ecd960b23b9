//! Android and iOS tell an app nothing of routes and no change of them. The program that ztun is a library of hears of changes by means of its own, and passes
//! the word on; what the network is like is read from the interfaces and their addresses, which an app may read.
//!
//! An interface that carries and has an address beyond its link is taken to lead out, since nobody tells which one does. The way of a packet cannot be
//! asked for.

use super::debounce::Clocks;
use super::system::clock;
use super::{DefaultRoute, IfIndex, Interface, Monitor, NetworkState, Noticed, Own, Path, Question};
use mio::event::Source;
use mio::{Interest, Registry, Token};
use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The network, as far as an app may look.
#[derive(Debug)]
pub struct SystemMonitor {
    /// The device's name.
    device: String,
}

impl SystemMonitor {
    /// Looks at everything but `own`.
    ///
    /// # Errors
    ///
    /// None.
    pub fn new(own: Own) -> io::Result<SystemMonitor> {
        Ok(SystemMonitor { device: own.device })
    }
}

impl Source for SystemMonitor {
    fn register(&mut self, _registry: &Registry, _token: Token, _interests: Interest) -> io::Result<()> {
        // Nothing comes by itself.
        Ok(())
    }

    fn reregister(&mut self, _registry: &Registry, _token: Token, _interests: Interest) -> io::Result<()> {
        Ok(())
    }

    fn deregister(&mut self, _registry: &Registry) -> io::Result<()> {
        Ok(())
    }
}

impl Monitor for SystemMonitor {
    fn drain(&mut self) -> io::Result<Noticed> {
        Ok(Noticed::NOTHING)
    }

    fn state(&mut self) -> io::Result<NetworkState> {
        Ok(network(&links()?, &self.device))
    }

    fn path(&mut self, _question: Question) -> io::Result<Option<Path>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn clocks(&self) -> Clocks {
        // The time of day runs on while the machine sleeps, and one clock that does is enough.
        let wall = clock(libc::CLOCK_REALTIME);
        Clocks { wall, boot: wall }
    }
}

/// An interface, and one of its addresses if the entry is about one.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Link {
    interface: Interface,
    addr: Option<IpAddr>,
}

/// What the links make up, without the device.
fn network(links: &[Link], device: &str) -> NetworkState {
    let mut state = NetworkState::default();
    for Link { interface, addr } in links.iter().filter(|link| link.interface.name != device) {
        if !state.interfaces.contains(interface) {
            state.interfaces.push(interface.clone());
        }
        let Some(addr) = *addr else { continue };
        state.addresses.push((interface.index, addr));
        let way = DefaultRoute {
            v6: addr.is_ipv6(),
            interface: interface.index,
            gateway: None,
            source: None,
            metric: 0,
        };
        if interface.running && leads_out(addr) && !state.defaults.contains(&way) {
            state.defaults.push(way);
        }
    }
    state.interfaces.sort_unstable_by_key(|interface| interface.index);
    state.addresses.sort_unstable();
    state.defaults.sort_by_key(|way| (way.v6, way.interface));
    state
}

/// Whether it is an address beyond the link.
fn leads_out(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => !addr.is_loopback() && !addr.is_link_local(),
        IpAddr::V6(addr) => !addr.is_loopback() && !addr.is_unicast_link_local(),
    }
}

/// What getifaddrs(3) has to free.
struct List(*mut libc::ifaddrs);

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: the list came from getifaddrs, and nobody has it any more.
        unsafe { libc::freeifaddrs(self.0) }
    }
}

/// All interfaces and their addresses.
fn links() -> io::Result<Vec<Link>> {
    let mut list = List(std::ptr::null_mut());
    // SAFETY: the pointer is to a place for a list.
    if unsafe { libc::getifaddrs(&raw mut list.0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut links = Vec::new();
    let mut next = list.0;
    // SAFETY: the entries of the list are whole as long as it is there, and the last one leads to NULL.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        // SAFETY: an entry's name ends with NUL and lives as long as the list.
        let (name, index) = unsafe { (CStr::from_ptr(entry.ifa_name), libc::if_nametoindex(entry.ifa_name)) };
        // One that has gone meanwhile has no number.
        if index == 0 {
            continue;
        }
        let carries = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_uint;
        let interface = Interface {
            index: IfIndex(index),
            name: name.to_string_lossy().into_owned(),
            running: entry.ifa_flags & carries == carries,
        };
        // SAFETY: an entry's address is NULL or whole.
        links.push(Link { interface, addr: unsafe { address(entry.ifa_addr) } });
    }
    Ok(links)
}

/// The address, if it is one of IP.
///
/// # Safety
///
/// `addr` is NULL or leads to an address that is as long as its family says.
unsafe fn address(addr: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: the function's own contract.
    match libc::c_int::from(unsafe { addr.as_ref() }?.sa_family) {
        libc::AF_INET => {
            // SAFETY: likewise; it may stand anywhere.
            let addr = unsafe { addr.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(Ipv4Addr::from(addr.sin_addr.s_addr.to_ne_bytes()).into())
        }
        libc::AF_INET6 => {
            // SAFETY: likewise.
            let addr = unsafe { addr.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(Ipv6Addr::from(addr.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, running: bool, addr: &str) -> Link {
        let interface = Interface { index: IfIndex(index), name: name.into(), running };
        Link { interface, addr: addr.parse().ok() }
    }

    #[test]
    fn what_carries_and_has_an_address_beyond_its_link_leads_out() {
        let links = [
            link(3, "rmnet0", true, "100.64.0.5"),
            link(2, "wlan0", true, ""),
            link(2, "wlan0", true, "192.168.1.5"),
            link(2, "wlan0", true, "fe80::5"),
            link(1, "lo", true, "127.0.0.1"),
            link(1, "lo", true, "::1"),
            link(4, "eth0", false, "10.0.0.5"),
            link(5, "wlan1", true, "169.254.1.1"),
            link(9, "tun0", true, "198.18.0.1"),
        ];
        let state = network(&links, "tun0");
        let ways: Vec<_> = state.defaults.iter().map(|way| (way.v6, way.interface.0)).collect();
        assert_eq!(ways, [(false, 2), (false, 3)]);
        let names: Vec<_> = state.interfaces.iter().map(|interface| interface.name.as_str()).collect();
        assert_eq!(names, ["lo", "wlan0", "rmnet0", "eth0", "wlan1"]);
        assert!(state.has_address("10.0.0.5".parse().unwrap()), "it has it all the same");
        assert!(!state.has_address("198.18.0.1".parse().unwrap()), "the device's");
        assert_eq!(state.index_of("tun0"), None);
    }

    #[test]
    fn what_this_machine_has_is_read() {
        let own = Own { device: "no-such-device".into(), protocol: 0 };
        let state = SystemMonitor::new(own).unwrap().state().unwrap();
        let home = state.interface_of(Ipv4Addr::LOCALHOST.into()).expect("the loopback interface");
        assert_eq!(state.index_of(&state.interfaces[0].name), Some(state.interfaces[0].index));
        assert!(state.is_running(home));
        assert!(state.defaults.iter().all(|way| way.interface != home));
        assert_eq!(state, network(&links().unwrap(), ""), "the order is always the same");
    }
}
