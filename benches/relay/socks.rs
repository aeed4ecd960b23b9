//! A blocking SOCKS5 client (RFC 1928): how an app without a tunnel reaches the targets.

use crate::Res;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::Duration;

/// How targets are reached.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// As any app does: by a connection to them.
    Kernel,
    /// Through the SOCKS5 server there.
    Socks(SocketAddrV4),
}

/// No step of a set-up takes longer than this on a machine that works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) const GREETING: [u8; 3] = [5, 1, 0];
const CONNECT: u8 = 1;
pub(crate) const ASSOCIATE: u8 = 3;

/// A request for an IPv4 address.
pub(crate) fn request(command: u8, target: SocketAddrV4) -> [u8; 10] {
    let mut octets = [5, command, 0, 1, 0, 0, 0, 0, 0, 0];
    octets[4..8].copy_from_slice(&target.ip().octets());
    octets[8..].copy_from_slice(&target.port().to_be_bytes());
    octets
}

/// A CONNECT request.
pub(crate) fn connect_request(target: SocketAddrV4) -> [u8; 10] {
    request(CONNECT, target)
}

fn negotiate(server: SocketAddrV4, command: u8, target: SocketAddrV4) -> Res<(TcpStream, SocketAddrV4)> {
    let mut stream = TcpStream::connect_timeout(&server.into(), PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&GREETING)?;
    let silent =
        |what| move |error| format!("the SOCKS5 server gives no {what} in {} s: {error}", PATIENCE.as_secs());
    let mut method = [0; 2];
    stream.read_exact(&mut method).map_err(silent("method"))?;
    stream.write_all(&request(command, target))?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).map_err(silent("reply"))?;
    if method != [5, 0] || reply[1] != 0 || reply[3] != 1 {
        return Err(format!("the SOCKS5 server says {method:?}, {reply:?}").into());
    }
    let addr = Ipv4Addr::new(reply[4], reply[5], reply[6], reply[7]);
    let port = u16::from_be_bytes([reply[8], reply[9]]);
    Ok((stream, SocketAddrV4::new(addr, port)))
}

/// A relay without an address of its own is at that of its server.
pub(crate) fn reachable(relay: SocketAddrV4, server: SocketAddrV4) -> SocketAddrV4 {
    if relay.ip().is_unspecified() { SocketAddrV4::new(*server.ip(), relay.port()) } else { relay }
}

/// A connection to `target`.
pub(crate) fn connect(way: Way, target: SocketAddrV4) -> Res<TcpStream> {
    let stream = match way {
        Way::Kernel => TcpStream::connect_timeout(&SocketAddr::V4(target), PATIENCE)?,
        Way::Socks(server) => negotiate(server, CONNECT, target)?.0,
    };
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A datagram socket that talks to one target.
#[derive(Debug)]
pub(crate) struct Datagrams {
    socket: UdpSocket,
    /// What stands before the data of each datagram (RFC 1928 7).
    header: Vec<u8>,
    /// The association lives as long as this connection.
    _association: Option<TcpStream>,
}

impl Datagrams {
    pub(crate) fn open(way: Way, target: SocketAddrV4) -> Res<Datagrams> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
        // What the kernel allows of it; the figure is about the tunnel, not about the app's buffer.
        socket.set_recv_buffer_size(4 << 20)?;
        socket.set_send_buffer_size(4 << 20)?;
        let socket = UdpSocket::from(socket);
        match way {
            Way::Kernel => {
                socket.connect(target)?;
                Ok(Datagrams { socket, header: Vec::new(), _association: None })
            }
            Way::Socks(server) => {
                let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
                let (control, relay) = negotiate(server, ASSOCIATE, any)?;
                let relay = reachable(relay, server);
                socket.connect(relay)?;
                let header = [&[0, 0, 0][..], &connect_request(target)[3..]].concat();
                Ok(Datagrams { socket, header, _association: Some(control) })
            }
        }
    }

    /// The socket, connected to the target or to the relay.
    pub(crate) fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// What stands before the data.
    pub(crate) fn header(&self) -> &[u8] {
        &self.header
    }
}
