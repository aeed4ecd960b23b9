//! The kernel's side of a change: what there is, and how each change is made.
//!
//! A change is idempotent where that is safe. Deleting what is not there is no error, and neither is adding what is there and ours; what
//! another program made is neither taken over nor deleted. A route is deleted only where the table shows it as ours: a request names a destination, and
//! would delete whatever leads there.

use super::change::{Change, Route, Way};
use super::plan::Have;
use super::request::{self, Request};
use crate::config::Cidr;
use crate::host::Outcome;
pub use crate::host::interface::{find, index_of};
use crate::route_socket::system::{self, Table};
use crate::route_socket::{self as messages, Destination, Gateway, Message, RouteMessage};
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;

/// What requests are made through.
#[derive(Debug)]
pub(super) struct Kernel {
    routes: File,
    /// Any sockets of the two families.
    v4: UdpSocket,
    v6: Option<UdpSocket>,
}

fn name_of(index: u16) -> Option<String> {
    let mut name = [0; libc::IFNAMSIZ];
    // SAFETY: the buffer has IFNAMSIZ octets, as the call wants.
    if unsafe { libc::if_indextoname(index.into(), name.as_mut_ptr()) }.is_null() {
        return None;
    }
    // SAFETY: the call has put a string that ends with NUL into the buffer.
    Some(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
}

/// Whether `addr` is one of this machine's addresses.
pub(super) fn is_own_address(addr: IpAddr) -> io::Result<bool> {
    let all = system::dump(Table::Interfaces)?;
    let own = |message| matches!(message, Message::Address { addr: Some(own), .. } if own == addr);
    Ok(addr.is_loopback() || messages::messages(&all).any(own))
}

/// Names of interfaces, each asked for once.
#[derive(Debug, Default)]
struct InterfaceNames(BTreeMap<u16, Option<String>>);

impl InterfaceNames {
    fn of(&mut self, index: u16) -> Option<String> {
        self.0.entry(index).or_insert_with(|| name_of(index)).clone()
    }

    /// The route of a message; `None` where it is none of IP, or by an interface that has just gone.
    fn route(&mut self, message: &RouteMessage) -> Option<Route> {
        let route = message.route.as_ref()?;
        let way = match route.gateway {
            _ if route.refuses => Way::Reject,
            Gateway::Addr(addr) => Way::Gateway { addr, zone: None },
            Gateway::LinkLocal(addr, _) => {
                Way::Gateway { addr: addr.into(), zone: Some(self.of(message.index)?) }
            }
            Gateway::Link(_) => Way::Link(self.of(message.index)?),
        };
        Some(Route { to: Cidr::new(route.to.addr, route.to.prefix)?, way })
    }
}

impl Kernel {
    pub(super) fn open() -> io::Result<Kernel> {
        let routes = system::open()?;
        // Nobody reads the answers. Where they come all the same they are lost for want of room.
        // SAFETY: the call takes an open descriptor and a number.
        if unsafe { libc::shutdown(routes.as_raw_fd(), libc::SHUT_RD) } < 0 {
            log::debug!("the routing socket goes on listening: {}", io::Error::last_os_error());
        }
        let v4 = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        Ok(Kernel { routes, v4, v6: UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).ok() })
    }

    /// The machine and the device, which need not exist (`--dry-run`): then it is taken to be like one just made.
    pub(super) fn snapshot(&mut self, device: &str) -> io::Result<Have> {
        let index = find(device)?.and_then(|index| u16::try_from(index).ok());
        // `utun_ctl_connect` of XNU makes it so.
        let (mut mtu, mut up) = (1500, true);
        if index.is_some() {
            mtu = request::value(&self.ask(request::get_mtu(device))?);
            up = request::is_up(&self.ask(request::get_flags(device))?);
        }
        let mut addresses = Vec::new();
        for message in messages::messages(&system::dump(Table::Interfaces)?) {
            if let Message::Address { gone: false, index: owner, addr: Some(addr), prefix } = message
                && Some(owner) == index
            {
                addresses.extend(Cidr::new(addr, prefix));
            }
        }
        let mut routes = Vec::new();
        let mut names = InterfaceNames::default();
        each_route(|message| {
            let scoped = message.route.as_ref().is_some_and(|route| route.scope.is_some() || route.refuses);
            let usable = message.up && !message.ours && !message.follows && !scoped;
            if usable && Some(message.index) != index {
                routes.extend(names.route(message));
            }
        })?;
        Ok(Have { ipv6: self.v6.is_some(), mtu, up, addresses, routes })
    }

    /// The deletions of all routes that are ours: capturing ends first, and what lets out goes last.
    pub(super) fn leftovers(&self) -> io::Result<Vec<Route>> {
        let mut found = Vec::new();
        let mut names = InterfaceNames::default();
        each_route(|message| {
            if message.ours {
                found.extend(names.route(message));
            }
        })?;
        found.sort_by_key(|route| match route.way {
            Way::Link(_) => 0,
            Way::Reject => 1,
            Way::Gateway { .. } => 2,
        });
        Ok(found)
    }

    /// Makes one change of those that the kernel makes.
    pub(super) fn apply(&mut self, change: &Change) -> io::Result<Outcome> {
        match change {
            Change::MtuSet { device, mtu, .. } => {
                self.ask(request::set_mtu(device, *mtu)).map(|_| Outcome::Done)
            }
            Change::AddressAdd(address) => {
                self.ask(request::add_address(&address.device, &address.address)).map(|_| Outcome::Done)
            }
            Change::AddressDelete(address) => {
                deleted(self.ask(request::delete_address(&address.device, &address.address)).map(drop))
            }
            Change::LinkUp { device } => self.set_up(device, true).map(|()| Outcome::Done),
            Change::LinkDown { device } => deleted(self.set_up(device, false)),
            Change::RouteAdd(route) => self.add_route(route),
            Change::RouteDelete(route) => self.delete_route(route),
            Change::DnsSet(_) | Change::DnsRestore(_) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "not a matter of the kernel"))
            }
        }
    }

    fn set_up(&self, device: &str, up: bool) -> io::Result<()> {
        let answer = self.ask(request::get_flags(device))?;
        self.ask(request::set_up(device, &answer, up)).map(drop)
    }

    fn add_route(&mut self, route: &Route) -> io::Result<Outcome> {
        let raw = raw(route)?;
        let added = system::change(&mut self.routes, messages::Request::Add(&raw));
        match added {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                let there = self.leftovers()?.into_iter().find(|other| other.to == route.to);
                match there {
                    Some(same) if same == *route => Ok(Outcome::Already),
                    // Another way to the same place, of a network that was left.
                    Some(other) => {
                        self.delete_route(&other)?;
                        system::change(&mut self.routes, messages::Request::Add(&raw))?;
                        Ok(Outcome::Done)
                    }
                    None => Err(error),
                }
            }
            Err(error) => Err(error),
            Ok(()) => Ok(Outcome::Done),
        }
    }

    fn delete_route(&mut self, route: &Route) -> io::Result<Outcome> {
        if !self.leftovers()?.contains(route) {
            return Ok(Outcome::Already);
        }
        let raw = raw(route);
        deleted(raw.and_then(|raw| system::change(&mut self.routes, messages::Request::Delete(&raw))))
    }

    /// Makes a request, and gives what the kernel has written over it.
    fn ask(&self, mut request: Request) -> io::Result<Vec<u8>> {
        let socket = match &self.v6 {
            Some(v6) if request.v6 => v6,
            None if request.v6 => return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
            Some(_) | None => &self.v4,
        };
        // SAFETY: the structure is as long as the request's number says, lives through the call, and nothing else uses it meanwhile.
        if unsafe { libc::ioctl(socket.as_raw_fd(), request.number, request.octets.as_mut_ptr()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(request.octets)
    }
}

fn each_route(mut see: impl FnMut(&RouteMessage)) -> io::Result<()> {
    for message in messages::messages(&system::dump(Table::Routes)?) {
        if let Message::Route(message) = message {
            see(&message);
        }
    }
    Ok(())
}

/// A route as the kernel is asked for it.
fn raw(route: &Route) -> io::Result<messages::Route> {
    let index =
        |name: &str| u16::try_from(index_of(name)?).map_err(|_| io::Error::from_raw_os_error(libc::ENXIO));
    let gateway = match &route.way {
        Way::Link(interface) => Gateway::Link(index(interface)?),
        Way::Gateway { addr: IpAddr::V6(addr), zone: Some(zone) } => Gateway::LinkLocal(*addr, index(zone)?),
        Way::Gateway { addr, .. } => Gateway::Addr(*addr),
        Way::Reject if route.to.addr.is_ipv4() => Gateway::Addr(Ipv4Addr::LOCALHOST.into()),
        Way::Reject => Gateway::Addr(Ipv6Addr::LOCALHOST.into()),
    };
    let to = Destination { addr: route.to.addr, prefix: route.to.prefix };
    Ok(messages::Route { to, gateway, scope: None, refuses: route.way == Way::Reject })
}

/// The result of a deletion: what is not there needs none.
fn deleted(result: io::Result<()>) -> io::Result<Outcome> {
    match result {
        Ok(()) => Ok(Outcome::Done),
        Err(error) => match error.raw_os_error() {
            Some(libc::ESRCH | libc::ENXIO | libc::ENODEV | libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT) => {
                Ok(Outcome::Already)
            }
            _ => Err(error),
        },
    }
}
