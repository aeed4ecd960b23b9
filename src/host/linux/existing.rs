//! Connections that were opened before the machine's packets went into the tunnel, and go on past it: closing them makes programs open them again.
//!
//! # Theory of operation
//!
//! The kernel lists all TCP connections of the network namespace (sock_diag). Closed (SOCK_DESTROY: the program sees ECONNABORTED, the other end a
//! RST) are those that would be captured if they were opened now. Kept are
//!
//! - what stays on the machine: loopback, and the machine's own addresses at both ends;
//! - what goes through the tunnel already: its local address is the device's;
//! - what came in: a socket of the machine listens at its local address and port. So the user's ssh session into the machine survives;
//! - link-local ones, this process's own, and what the caller wants to keep: the proxies, and what `--bypass` leaves outside.

use super::kernel;
use super::owner::{request, serves};
use crate::netlink::Netlink;
use netlink_packet_core::{
    DecodeError, Emitable, NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_sock_diag::constants::IPPROTO_TCP;
use netlink_packet_sock_diag::inet::{InetRequest, InetResponseHeader, StateFlags};
use netlink_packet_sock_diag::{SOCK_DESTROY, SockDiagMessage};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A TCP connection as the kernel lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Connection {
    local: SocketAddr,
    remote: SocketAddr,
}

/// What decides on a connection.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Around {
    /// Where sockets of the machine listen.
    listening: Vec<SocketAddr>,
    /// The machine's addresses.
    own: Vec<IpAddr>,
    /// Those of them that are the device's.
    device: Vec<IpAddr>,
}

impl Around {
    /// Whether the connection passes the tunnel by, and would not if it were opened now.
    fn passes_by(&self, connection: &Connection) -> bool {
        let (local, remote) = (connection.local, connection.remote);
        let listens = |at: &SocketAddr| at.port() == local.port() && serves(at.ip(), local.ip());
        let inside = |addr: IpAddr| addr.is_loopback() || self.own.contains(&addr);
        !inside(remote.ip())
            && !local.ip().is_loopback()
            && !remote.ip().is_unspecified()
            && !self.device.contains(&local.ip())
            && !is_link_local(remote.ip())
            && !self.listening.iter().any(listens)
    }
}

fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_link_local(),
        IpAddr::V6(addr) => addr.is_unicast_link_local(),
    }
}

/// Closes the TCP connections of this network namespace that pass the tunnel by, but for those that `keep` (local end, remote end; IPv4 is never
/// dressed as IPv6) is true for. To be called when the machine's packets go into `device`. Gives the number of those it closed.
///
/// # Errors
///
/// The kernel cannot be asked, or cannot close connections: it lacks CONFIG_INET_DIAG_DESTROY (`Unsupported`).
pub fn reset_existing(device: &str, keep: &dyn Fn(SocketAddr, SocketAddr) -> bool) -> io::Result<usize> {
    let mut netlink = Netlink::sock_diag()?;
    let around = around(&mut netlink, device)?;
    let own = own_sockets()?;
    let states = StateFlags::all()
        - StateFlags::LISTEN
        - StateFlags::CLOSE
        - StateFlags::TIME_WAIT
        // Still being opened from outside.
        - StateFlags::SYN_RECV;
    let mut closed = 0;
    for header in sockets(&mut netlink, states)? {
        let connection = connection(&header);
        if !around.passes_by(&connection)
            || own.contains(&header.inode)
            || keep(connection.local, connection.remote)
        {
            continue;
        }
        closed += usize::from(destroy(&mut netlink, header)?);
    }
    Ok(closed)
}

fn connection(header: &InetResponseHeader) -> Connection {
    let id = &header.socket_id;
    let end = |addr: IpAddr, port| SocketAddr::new(addr.to_canonical(), port);
    Connection {
        local: end(id.source_address, id.source_port),
        remote: end(id.destination_address, id.destination_port),
    }
}

fn around(netlink: &mut Netlink, device: &str) -> io::Result<Around> {
    let mut around = Around::default();
    for header in sockets(netlink, StateFlags::LISTEN)? {
        // Not made canonical: a socket on `::` takes IPv4 as well.
        around.listening.push(SocketAddr::new(header.socket_id.source_address, header.socket_id.source_port));
    }
    let index = kernel::index_of(device)?;
    for (owner, _, net) in kernel::all_addresses(&mut Netlink::route()?)? {
        around.own.push(net.addr);
        if owner == index {
            around.device.push(net.addr);
        }
    }
    Ok(around)
}

/// All TCP sockets in these states.
fn sockets(netlink: &mut Netlink, states: StateFlags) -> io::Result<Vec<InetResponseHeader>> {
    let mut found = Vec::new();
    for any in [SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))] {
        let mut request = request(IPPROTO_TCP, any, any);
        request.states = StateFlags::from_bits_truncate(states.bits());
        match netlink.dump(SockDiagMessage::InetRequest(request)) {
            Ok(answers) => found.extend(answers.into_iter().filter_map(|answer| match answer {
                SockDiagMessage::InetResponse(response) => Some(response.header),
                SockDiagMessage::InetRequest(_)
                | SockDiagMessage::UnixRequest(_)
                | SockDiagMessage::UnixResponse(_) => None,
            })),
            // A kernel without IPv6 has none of these.
            Err(error) if any.is_ipv6() && error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Inodes of this process's own sockets.
fn own_sockets() -> io::Result<BTreeSet<u32>> {
    let mut inodes = BTreeSet::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        // One that has been closed meanwhile is no socket any more.
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let inode = target
            .to_str()
            .and_then(|target| target.strip_prefix("socket:["))
            .and_then(|rest| rest.strip_suffix(']'));
        inodes.extend(inode.and_then(|inode| inode.parse::<u32>().ok()));
    }
    Ok(inodes)
}

/// Closes a connection; false when it has gone by itself.
fn destroy(netlink: &mut Netlink, header: InetResponseHeader) -> io::Result<bool> {
    let request = InetRequest {
        family: header.family,
        protocol: IPPROTO_TCP,
        extensions: netlink_packet_sock_diag::inet::ExtensionFlags::empty(),
        states: StateFlags::all(),
        // With its cookie: no other connection that has the same ends by now.
        socket_id: header.socket_id,
    };
    match netlink.acknowledged(Destroy(request), 0) {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(false),
            Some(libc::EOPNOTSUPP) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the kernel cannot close connections: it lacks CONFIG_INET_DIAG_DESTROY",
            )),
            _ => Err(error),
        },
    }
}

/// The request to close what a request for it would find.
struct Destroy(InetRequest);

impl NetlinkSerializable for Destroy {
    fn message_type(&self) -> u16 {
        SOCK_DESTROY
    }

    fn buffer_len(&self) -> usize {
        Emitable::buffer_len(&self.0)
    }

    fn serialize(&self, buffer: &mut [u8]) {
        self.0.emit(buffer);
    }
}

impl NetlinkDeserializable for Destroy {
    type Error = DecodeError;

    fn deserialize(_header: &NetlinkHeader, _payload: &[u8]) -> Result<Destroy, DecodeError> {
        Err("the kernel only acknowledges it".into())
    }
}

impl From<Destroy> for NetlinkPayload<Destroy> {
    fn from(request: Destroy) -> NetlinkPayload<Destroy> {
        NetlinkPayload::InnerMessage(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around() -> Around {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Around {
            listening: ["[::]:22", "192.168.1.5:8080"].map(|text| text.parse().unwrap()).to_vec(),
            own: addresses(&["127.0.0.1", "192.168.1.5", "2001:db8::5", "198.18.0.1"]),
            device: addresses(&["198.18.0.1"]),
        }
    }

    #[test]
    fn what_was_opened_past_the_tunnel_is_closed_and_what_belongs_outside_is_kept() {
        for (local, remote, closed) in [
            ("192.168.1.5:50000", "203.0.113.1:443", true),
            ("[2001:db8::5]:50000", "[2606:4700::1111]:443", true),
            ("192.168.1.5:50000", "192.168.1.9:22", true),
            // It came in: somebody listens there.
            ("192.168.1.5:22", "203.0.113.1:50000", false),
            ("[2001:db8::5]:22", "[2606:4700::1111]:50000", false),
            ("192.168.1.5:8080", "203.0.113.1:50000", false),
            ("[2001:db8::5]:8080", "[2606:4700::1111]:50000", true),
            // It stays on the machine.
            ("127.0.0.1:50000", "127.0.0.1:80", false),
            ("192.168.1.5:50000", "192.168.1.5:80", false),
            // It is in the tunnel already.
            ("198.18.0.1:50000", "203.0.113.1:443", false),
            ("[fe80::1]:50000", "[fe80::2]:80", false),
            ("192.168.1.5:50000", "0.0.0.0:0", false),
        ] {
            let connection = Connection { local: local.parse().unwrap(), remote: remote.parse().unwrap() };
            assert_eq!(around().passes_by(&connection), closed, "{local} {remote}");
        }
    }
}
