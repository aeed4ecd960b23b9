//! A proxy on this machine, and which flows are its own.
//!
//! # Theory of operation
//!
//! A proxy on this machine sends what it is asked for where the routes lead, into the tunnel: a loop, unless its own connections stay outside. A Mac has
//! no rule that would see to that by the proxy's user. So each flow is looked for among the sockets of the proxy's processes ([`LocalProxy::owns`]),
//! which libproc tells: one call for each socket.
//!
//! The proxy's processes are those that hold the listening socket, and their descendants. A process is known by its number and the time of its start
//! together. One that comes to serve the address after the last search is looked for when there are other processes than then.

use super::processes::{self, sockets};
use super::{kernel, sockets::Socket};
use crate::outbound::rule::Proto;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

/// The processes that serve a listening address of this machine.
#[derive(Debug)]
pub struct LocalProxy {
    listen: SocketAddr,
    /// By number, with the time of its start.
    processes: BTreeMap<u32, u64>,
    /// All processes at the last search, sorted.
    searched: Vec<u32>,
}

impl LocalProxy {
    /// Finds who serves `listen`; `None` when that is no address of this machine. Nobody may serve it yet ([`LocalProxy::is_running`]): who does
    /// later is found then.
    ///
    /// # Errors
    ///
    /// The system does not tell of its processes.
    pub fn find(listen: SocketAddr) -> io::Result<Option<LocalProxy>> {
        if !kernel::is_own_address(listen.ip().to_canonical())? {
            return Ok(None);
        }
        let mut proxy = LocalProxy { listen, processes: BTreeMap::new(), searched: Vec::new() };
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

    /// No route is by user here.
    pub fn exclusive_uid(&self) -> Option<u32> {
        None
    }

    /// Whether the socket bound to `local` that sends to `remote` belongs to the proxy. When the system cannot tell, it does not.
    pub fn owns(&mut self, proto: Proto, local: SocketAddr, remote: SocketAddr) -> bool {
        if proto == Proto::Icmp {
            return false;
        }
        if let Err(error) = self.look_for_new() {
            log::debug!("cannot look for new processes of the local proxy: {error}");
        }
        self.processes.keys().any(|pid| sockets(*pid).any(|socket| socket.sends(proto, local, remote)))
    }

    /// Lets go of processes that have ended, and takes in new ones.
    fn look_for_new(&mut self) -> io::Result<()> {
        self.processes.retain(|pid, started| {
            processes::process(*pid).is_some_and(|process| !process.ended && process.started == *started)
        });
        if self.processes.is_empty() {
            let mut all = processes::all()?;
            all.sort_unstable();
            if all != self.searched {
                return self.search();
            }
        }
        self.adopt()
    }

    /// Finds all of the proxy's processes anew.
    fn search(&mut self) -> io::Result<()> {
        self.searched = processes::all()?;
        self.searched.sort_unstable();
        self.processes.clear();
        for pid in &self.searched {
            let serves = |socket: Socket| socket.serves(self.listen);
            if let Some(process) = processes::process(*pid)
                && sockets(*pid).any(serves)
            {
                self.processes.insert(*pid, process.started);
            }
        }
        self.adopt()
    }

    /// Takes in the descendants of those that are known. Process 1 is everybody's ancestor: when it holds the socket, for a service that it starts on
    /// demand, its descendants are not the proxy's for that.
    fn adopt(&mut self) -> io::Result<()> {
        let mut rest: Vec<u32> = self.processes.keys().copied().filter(|pid| *pid != 1).collect();
        while let Some(pid) = rest.pop() {
            // One without children has an empty list, which is told as a failure.
            for child in processes::children(pid).unwrap_or_default() {
                if let Some(process) = processes::process(child)
                    && self.processes.insert(child, process.started).is_none()
                {
                    rest.push(child);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn what_this_process_serves_and_sends_is_its_own() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = listener.local_addr().unwrap();
        let mut proxy = LocalProxy::find(listen).unwrap().unwrap();
        assert!(proxy.is_running() && proxy.pids().any(|pid| pid == std::process::id()));
        let stream = TcpStream::connect(listen).unwrap();
        let local = stream.local_addr().unwrap();
        assert!(proxy.owns(Proto::Tcp, local, listen));
        assert!(!proxy.owns(Proto::Udp, local, listen));
        let other = SocketAddr::new(local.ip(), 9);
        assert!(!proxy.owns(Proto::Tcp, other, listen));
    }

    #[test]
    fn a_proxy_elsewhere_is_none_of_ours_and_one_that_nobody_runs_is_not_running() {
        assert!(LocalProxy::find("192.0.2.1:1080".parse().unwrap()).unwrap().is_none());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = listener.local_addr().unwrap();
        drop(listener);
        assert!(!LocalProxy::find(listen).unwrap().unwrap().is_running());
    }
}
