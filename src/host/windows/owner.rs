//! A proxy on this machine, and which flows are its own.
//!
//! A proxy on this machine sends what it is asked for through the machine's routes, which lead into the tunnel: a loop, unless its own connections stay
//! outside. The system lists all sockets with the processes that have them (`GetExtendedTcpTable`, `GetExtendedUdpTable`), so whose a flow is, is asked flow by
//! flow. The proxy's processes are those that have a listening socket at its address; one that took over the number of one that has
//! ended was started at another time. A proxy that is restarted is found again by its address.

use super::helper;
use super::process::start_time;
use super::sockets::{listeners, owner};
use crate::host::want::Family;
use crate::outbound::rule::Proto;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

/// The processes that serve a listening address of this machine.
#[derive(Debug)]
pub struct LocalProxy {
    listen: SocketAddr,
    /// When each was started, by its number.
    processes: BTreeMap<u32, u64>,
}

impl LocalProxy {
    /// Finds who serves `listen`; `None` when that is no address of this machine. Nobody may serve it yet ([`LocalProxy::is_running`]): who does
    /// later is found then.
    ///
    /// # Errors
    ///
    /// The system does not list its addresses or its sockets.
    pub fn find(listen: SocketAddr) -> io::Result<Option<LocalProxy>> {
        let own = |seen: &super::rows::SeenAddress| seen.address.addr == listen.ip();
        if !listen.ip().is_loopback() && !helper::addresses()?.iter().any(own) {
            return Ok(None);
        }
        let mut proxy = LocalProxy { listen, processes: BTreeMap::new() };
        proxy.search()?;
        Ok(Some(proxy))
    }

    /// The address that they are the processes of.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Whether anybody serves the address whose processes can be seen.
    pub fn is_running(&self) -> bool {
        !self.processes.is_empty()
    }

    /// The proxy's processes, by their numbers.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.processes.keys().copied()
    }

    /// No route asks for a user here.
    pub fn exclusive_uid(&self) -> Option<u32> {
        None
    }

    /// Whether the socket bound to `local` that sends to `remote` belongs to the proxy. When the system cannot tell, it does not.
    pub fn owns(&mut self, proto: Proto, local: SocketAddr, remote: SocketAddr) -> bool {
        let pid = match socket_owner(proto, local, remote) {
            Ok(Some(pid)) => pid,
            Ok(None) => return false,
            Err(error) => {
                log::debug!("cannot ask whose a socket is: {error}");
                return false;
            }
        };
        if self.is_of(pid) {
            return true;
        }
        // Another one may serve the address by now.
        if let Err(error) = self.search() {
            log::debug!("cannot look for the processes of the local proxy: {error}");
        }
        self.is_of(pid)
    }

    fn is_of(&self, pid: u32) -> bool {
        self.processes.get(&pid).is_some_and(|started| start_time(pid) == Some(*started))
    }

    fn search(&mut self) -> io::Result<()> {
        let mut sockets = helper::tcp_sockets(Family::V4)?;
        sockets.extend(helper::tcp_sockets(Family::V6)?);
        let found = listeners(&sockets, self.listen);
        self.processes = found.into_iter().filter_map(|pid| Some((pid, start_time(pid)?))).collect();
        Ok(())
    }
}

fn socket_owner(proto: Proto, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
    let family = if local.is_ipv4() { Family::V4 } else { Family::V6 };
    match proto {
        Proto::Tcp => Ok(owner(&helper::tcp_sockets(family)?, local, Some(remote))),
        Proto::Udp => {
            let mut sockets = helper::udp_sockets(family)?;
            if family == Family::V4 {
                // A socket of both families is listed as one of IPv6.
                sockets.extend(helper::udp_sockets(Family::V6)?);
            }
            Ok(owner(&sockets, local, None))
        }
        Proto::Icmp => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    /// Wine tells of no processes here.
    #[test]
    fn on_windows_sockets_of_this_process_are_those_of_a_proxy_that_it_is() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut proxy = LocalProxy::find(listener.local_addr().unwrap()).unwrap().unwrap();
        assert_eq!(proxy.pids().collect::<Vec<_>>(), [std::process::id()]);
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let remote = target.local_addr().unwrap();
        let stream = TcpStream::connect(remote).unwrap();
        let local = stream.local_addr().unwrap();
        assert!(proxy.owns(Proto::Tcp, local, remote));
        assert!(!proxy.owns(Proto::Tcp, remote, "203.0.113.9:443".parse().unwrap()));
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(proxy.owns(Proto::Udp, socket.local_addr().unwrap(), remote));
    }

    #[test]
    fn an_address_that_is_not_this_machines_has_no_proxy() {
        assert!(LocalProxy::find("203.0.113.9:1080".parse().unwrap()).unwrap().is_none());
    }

    #[test]
    fn an_address_that_nobody_serves_has_none_yet() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let proxy = LocalProxy::find(free).unwrap().unwrap();
        assert!(!proxy.is_running());
    }
}
