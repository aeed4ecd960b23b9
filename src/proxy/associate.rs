//! A granted UDP ASSOCIATE (RFC 1928 7): one socket to the client, one to the world for each family.
//!
//! The client's port is learnt from its first datagram; from then on nobody else is heard on the
//! relay, and before it nobody but the client's address. The sockets to the world keep their port
//! for all targets and let answers in from anywhere (endpoint-independent, RFC 4787 REQ-1 and REQ-8). A
//! datagram that cannot be sent at once is dropped and counted, as any router would.

use super::connection::{Port, Shared};
use super::dial::{Resolved, Resolving, any_port};
use super::session::Target;
use crate::time::Instant;
use crate::wire::Endpoint;
use crate::wire::socks5::{Address, Reply, UdpHeader};
use core::net::{IpAddr, SocketAddr};
use mio::Interest;
use mio::net::UdpSocket;
use socket2::SockRef;
use std::io;

/// Datagrams that one socket may move before others get their turn.
const BUDGET: usize = 64;
/// Times [`BUDGET`] that are moved for a client that has ended: what the relay's receive buffer holds of small datagrams.
const LAST_ROUNDS: usize = 64;
/// The longest header in front of a datagram to the client, whose source is an address.
const HEADROOM: usize = 4 + 16 + 2;
/// The longest datagram there can be.
const MAX_DATAGRAM: usize = 65_535;

/// Room for a burst of datagrams, octets: a dozen of the largest ones.
const RECEIVE_BUFFER: usize = 1 << 20;

/// A socket and what the poll said about it last.
#[derive(Debug)]
struct Socket {
    socket: UdpSocket,
    readable: bool,
}

impl Socket {
    fn open(addr: SocketAddr, port: Port, key: usize, shared: &Shared) -> io::Result<Socket> {
        let mut socket = UdpSocket::bind(addr)?;
        // The kernel grants what net.core.rmem_max allows; with less, a burst loses more.
        if let Err(error) = SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER) {
            log::debug!("SO_RCVBUF: {error}");
        }
        shared.registry.register(&mut socket, port.token(key), Interest::READABLE)?;
        Ok(Socket { socket, readable: false })
    }

    /// The next datagram; `None` when there is none now.
    fn recv(&mut self, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
        while self.readable {
            match self.socket.recv_from(buffer) {
                Ok(received) => return Some(received),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                // An ICMP error of an earlier datagram, told once.
                Err(error) => log::trace!("relay socket: {error}"),
            }
        }
        None
    }
}

/// A datagram that waits for the address of its target's name.
#[derive(Debug)]
struct Waiting {
    name: Box<str>,
    port: u16,
    data: Vec<u8>,
    resolving: Resolving,
}

/// The association.
#[derive(Debug)]
pub(super) struct Association {
    relay: Socket,
    /// The address of the control connection's other end, and the port once it is known.
    peer: IpAddr,
    client: Option<SocketAddr>,
    out_v4: Option<Socket>,
    out_v6: Option<Socket>,
    /// At most one name is resolved at a time, and the last one is remembered.
    waiting: Option<Box<Waiting>>,
    named: Option<(Box<str>, IpAddr)>,
}

impl Association {
    /// Opens the relay on `local`, the address at which the client reached us, for the client at `peer`.
    pub(super) fn open(local: IpAddr, peer: IpAddr, key: usize, shared: &Shared) -> io::Result<Association> {
        let relay = Socket::open(SocketAddr::new(local.to_canonical(), 0), Port::Relay, key, shared)?;
        let peer = peer.to_canonical();
        Ok(Association { relay, peer, client: None, out_v4: None, out_v6: None, waiting: None, named: None })
    }

    /// Where the client is to send its datagrams.
    pub(super) fn bound(&self) -> io::Result<Endpoint> {
        self.relay.socket.local_addr().map(Endpoint::from)
    }

    /// The poll says that a socket is readable.
    pub(super) fn notice(&mut self, port: Port) {
        match port {
            Port::Relay => self.relay.readable = true,
            Port::OutV4 => self.out_v4.iter_mut().for_each(|out| out.readable = true),
            Port::OutV6 => self.out_v6.iter_mut().for_each(|out| out.readable = true),
            Port::Resolver => self.waiting.iter_mut().for_each(|waiting| waiting.resolving.readable = true),
            Port::Client | Port::Target => {}
        }
    }

    /// When [`Association::pump`] is due, whatever the sockets say.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiting.as_ref().map(|waiting| waiting.resolving.deadline())
    }

    /// Moves datagrams; tells whether any moved and whether there may be more at once.
    pub(super) fn pump(&mut self, key: usize, shared: &mut Shared, now: Instant) -> (bool, bool) {
        self.resolve(key, shared, now);
        let mut buffer = core::mem::take(&mut shared.scratch.buffer);
        let mut moved = false;
        for _ in 0..BUDGET {
            let Some((octets, from)) = self.relay.recv(&mut buffer) else { break };
            moved = true;
            let datagram = buffer.get(..octets).unwrap_or_default();
            self.handle_client(datagram, from, key, shared, now);
        }
        for out in [&mut self.out_v4, &mut self.out_v6].into_iter().flatten() {
            for _ in 0..BUDGET {
                let space = buffer.get_mut(HEADROOM..HEADROOM + MAX_DATAGRAM).unwrap_or_default();
                let Some((octets, from)) = out.recv(space) else { break };
                moved = true;
                let Some(client) = self.client else { continue };
                let from = Endpoint::new(from.ip().to_canonical(), from.port());
                let header = UdpHeader { frag: 0, address: Address::Ip(from) };
                let mut octets_of_header = [0; HEADROOM];
                let len = header.emit(&mut octets_of_header);
                let start = HEADROOM - len;
                buffer[start..HEADROOM].copy_from_slice(&octets_of_header[..len]);
                let datagram = buffer.get(start..HEADROOM.saturating_add(octets)).unwrap_or_default();
                send(&self.relay.socket, datagram, client, shared);
            }
        }
        shared.scratch.buffer = buffer;
        let more =
            self.relay.readable || [&self.out_v4, &self.out_v6].into_iter().flatten().any(|out| out.readable);
        (moved, more)
    }

    /// Moves what a client that has ended sent before, of which the poll may not have told yet.
    pub(super) fn pump_last(&mut self, key: usize, shared: &mut Shared, now: Instant) -> (bool, bool) {
        self.relay.readable = true;
        let mut any = false;
        for _ in 0..LAST_ROUNDS {
            let (moved, more) = self.pump(key, shared, now);
            any |= moved;
            if !more {
                break;
            }
        }
        (any, false)
    }

    fn handle_client(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        key: usize,
        shared: &mut Shared,
        now: Instant,
    ) {
        let known = match self.client {
            Some(client) => client == from,
            None => from.ip().to_canonical() == self.peer,
        };
        let parsed = UdpHeader::parse(datagram).ok().filter(|(header, _)| known && header.frag == 0);
        let Some((target, data)) =
            parsed.and_then(|(header, data)| Target::new(header.address).map(|target| (target, data)))
        else {
            shared.dropped = shared.dropped.saturating_add(1);
            return;
        };
        self.client = Some(from);
        match target {
            Target::Ip(remote) => self.send_out(remote, data, key, shared),
            Target::Name(name, port) => self.send_to_name(name, port, data, key, shared, now),
        }
    }

    fn send_to_name(
        &mut self,
        name: Box<str>,
        port: u16,
        data: &[u8],
        key: usize,
        shared: &mut Shared,
        now: Instant,
    ) {
        let known = self.named.as_ref().filter(|(known, _)| *known == name).map(|&(_, addr)| addr);
        if let Some(addr) = known.or_else(|| shared.local_addresses(&name, now).first().copied()) {
            self.send_out(Endpoint::new(addr, port), data, key, shared);
            return;
        }
        if self.waiting.is_some() {
            shared.dropped = shared.dropped.saturating_add(1);
            return;
        }
        match Resolving::start(&name, key, shared, now) {
            Ok(resolving) => {
                self.waiting = Some(Box::new(Waiting { name, port, data: data.to_vec(), resolving }));
            }
            Err(_) => shared.dropped = shared.dropped.saturating_add(1),
        }
    }

    /// Goes on with the name that a datagram waits for.
    fn resolve(&mut self, key: usize, shared: &mut Shared, now: Instant) {
        let Some(mut waiting) = self.waiting.take() else { return };
        match waiting.resolving.advance(key, shared, now) {
            Resolved::Pending => self.waiting = Some(waiting),
            Resolved::Failed(_) => shared.dropped = shared.dropped.saturating_add(1),
            Resolved::Found(addresses) => {
                if let Some(&addr) = addresses.first() {
                    self.send_out(Endpoint::new(addr, waiting.port), &waiting.data, key, shared);
                    self.named = Some((waiting.name, addr));
                }
            }
        }
    }

    fn send_out(&mut self, remote: Endpoint, data: &[u8], key: usize, shared: &mut Shared) {
        let (out, port) = match remote.addr {
            IpAddr::V4(_) => (&mut self.out_v4, Port::OutV4),
            IpAddr::V6(_) => (&mut self.out_v6, Port::OutV6),
        };
        if out.is_none() {
            match Socket::open(any_port(remote.addr), port, key, shared) {
                Ok(socket) => *out = Some(socket),
                Err(error) => log::debug!("no socket for datagrams: {error}"),
            }
        }
        match out {
            Some(out) => send(&out.socket, data, remote.into(), shared),
            None => shared.dropped = shared.dropped.saturating_add(1),
        }
    }
}

fn send(socket: &UdpSocket, datagram: &[u8], to: SocketAddr, shared: &mut Shared) {
    if let Err(error) = socket.send_to(datagram, to) {
        log::trace!("datagram dropped: {error}");
        shared.dropped = shared.dropped.saturating_add(1);
    }
}

/// REP for a relay that could not be opened.
pub(super) fn reply_for(error: &io::Error) -> Reply {
    log::debug!("no relay socket: {error}");
    Reply::GeneralFailure
}
