//! From a target to a connected socket: name, addresses, one attempt after the other.

use super::connection::{Port, Shared};
use super::relay::Side;
use super::resolve::{Lookup, Step};
use crate::time::Instant;
use crate::wire::socks5::Reply;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use mio::Interest;
use mio::net::{TcpStream, UdpSocket};
use std::io;

/// The longest answer that a name server gives without being asked for more (RFC 1035 4.2.1), with room for
/// those that do all the same.
const MAX_ANSWER: usize = 1_232;

/// A [`Lookup`] with its socket.
#[derive(Debug)]
pub(super) struct Resolving {
    lookup: Lookup,
    socket: Option<UdpSocket>,
    pub(super) readable: bool,
}

/// What a [`Resolving`] came to.
#[derive(Debug)]
pub(super) enum Resolved {
    Pending,
    Found(Vec<IpAddr>),
    Failed(Reply),
}

impl Resolving {
    /// Starts to resolve `name`; an error when it is no name or no socket can be had.
    pub(super) fn start(
        name: &str,
        key: usize,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<Resolving, Reply> {
        let lookup =
            Lookup::new(name, shared.files.servers(), &mut shared.rng, now).ok_or(Reply::HostUnreachable)?;
        let mut resolving = Resolving { lookup, socket: None, readable: false };
        match resolving.act(Step::Ask, key, shared, now) {
            Resolved::Failed(reply) => Err(reply),
            Resolved::Pending | Resolved::Found(_) => Ok(resolving),
        }
    }

    /// When [`Resolving::advance`] is due, whatever the socket says.
    pub(super) fn deadline(&self) -> Instant {
        self.lookup.deadline()
    }

    /// Reads what has come and acts on the time.
    pub(super) fn advance(&mut self, key: usize, shared: &mut Shared, now: Instant) -> Resolved {
        while self.readable {
            let Some(socket) = &self.socket else { break };
            let mut datagram = [0; MAX_ANSWER];
            let step = match socket.recv(&mut datagram) {
                Ok(octets) => {
                    let datagram = datagram.get(..octets).unwrap_or_default();
                    self.lookup.handle_datagram(datagram, &mut shared.rng, now)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    break;
                }
                Err(_) => self.lookup.handle_unreachable(&mut shared.rng, now),
            };
            match self.act(step, key, shared, now) {
                Resolved::Pending => {}
                end @ (Resolved::Found(_) | Resolved::Failed(_)) => return end,
            }
        }
        let step = self.lookup.handle_timeout(&mut shared.rng, now);
        self.act(step, key, shared, now)
    }

    fn act(&mut self, mut step: Step, key: usize, shared: &mut Shared, now: Instant) -> Resolved {
        loop {
            match step {
                Step::Wait => return Resolved::Pending,
                Step::Found(addresses) => return Resolved::Found(addresses),
                Step::Failed(_) => return Resolved::Failed(Reply::HostUnreachable),
                Step::Ask => match self.ask(key, shared) {
                    Ok(()) => return Resolved::Pending,
                    Err(error) if is_exhaustion(&error) => return Resolved::Failed(Reply::GeneralFailure),
                    Err(error) => {
                        log::debug!("cannot ask a name server: {error}");
                        step = self.lookup.handle_unreachable(&mut shared.rng, now);
                    }
                },
            }
        }
    }

    /// Asks on a new socket, whose random port only the server of this attempt knows (RFC 5452 9.2).
    fn ask(&mut self, key: usize, shared: &mut Shared) -> io::Result<()> {
        self.socket = None;
        let server = self.lookup.server();
        let mut socket = UdpSocket::bind(any_port(server.ip()))?;
        socket.connect(server)?;
        shared.registry.register(&mut socket, Port::Resolver.token(key), Interest::READABLE)?;
        for query in self.lookup.queries() {
            match socket.send(&query) {
                Ok(_) => {}
                // As good as lost on the way: the attempt's time runs.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        // What arrived before the registration gives an event too.
        self.readable = false;
        self.socket = Some(socket);
        Ok(())
    }
}

/// A TCP connection being opened to the first of several addresses that takes it.
#[derive(Debug)]
pub(super) struct Dialling {
    pub(super) target: Side,
    /// Addresses not tried yet, the next one last.
    addresses: Vec<SocketAddr>,
    /// When the attempt under way is given up.
    attempt: Instant,
    /// When all of it is.
    limit: Instant,
}

/// What a [`Dialling`] came to.
#[derive(Debug)]
pub(super) enum Dialled {
    Pending,
    Connected,
    Failed(Reply),
}

impl Dialling {
    /// Starts with the first of `addresses`.
    pub(super) fn start(
        mut addresses: Vec<SocketAddr>,
        limit: Instant,
        key: usize,
        shared: &Shared,
        now: Instant,
    ) -> Result<Dialling, Reply> {
        addresses.reverse();
        let mut why = Reply::HostUnreachable;
        while let Some(address) = addresses.pop() {
            match connect(address, key, shared) {
                Ok(target) => {
                    let attempt = share_of_time(limit, addresses.len(), now);
                    return Ok(Dialling { target, addresses, attempt, limit });
                }
                Err(error) => why = reply_for(&error),
            }
        }
        Err(why)
    }

    /// When [`Dialling::advance`] is due, whatever the socket says.
    pub(super) fn deadline(&self) -> Instant {
        self.attempt
    }

    /// Looks whether the attempt under way has ended.
    pub(super) fn advance(&mut self, key: usize, shared: &Shared, now: Instant) -> Dialled {
        match self.outcome(now) {
            Ok(false) => Dialled::Pending,
            Ok(true) => Dialled::Connected,
            Err(error) => {
                let why = reply_for(&error);
                let mut addresses = core::mem::take(&mut self.addresses);
                if addresses.is_empty() || now >= self.limit {
                    return Dialled::Failed(why);
                }
                addresses.reverse();
                match Dialling::start(addresses, self.limit, key, shared, now) {
                    Ok(next) => {
                        *self = next;
                        Dialled::Pending
                    }
                    Err(reply) => Dialled::Failed(reply),
                }
            }
        }
    }

    fn outcome(&mut self, now: Instant) -> io::Result<bool> {
        if self.target.writable {
            let stream = &self.target.stream;
            if let Some(error) = stream.take_error()? {
                return Err(error);
            }
            match stream.peer_addr() {
                // A connection of a port to itself, which TCP allows on one machine: nobody listens there.
                Ok(peer) if stream.local_addr()? == peer => {
                    self.target.abort_on_close();
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                Ok(_) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::NotConnected => self.target.writable = false,
                Err(error) => return Err(error),
            }
        }
        if now >= self.attempt { Err(io::ErrorKind::TimedOut.into()) } else { Ok(false) }
    }
}

fn connect(address: SocketAddr, key: usize, shared: &Shared) -> io::Result<Side> {
    let mut stream = TcpStream::connect(address)?;
    shared.registry.register(
        &mut stream,
        Port::Target.token(key),
        Interest::READABLE | Interest::WRITABLE,
    )?;
    if let Err(error) = stream.set_nodelay(true) {
        log::debug!("TCP_NODELAY refused: {error}");
    }
    let mut side = Side::new(stream);
    // A target on this machine, or next to it, has answered by now.
    side.writable = side.stream.peer_addr().is_ok();
    Ok(side)
}

/// An even share of the time that is left for this attempt and `others` after it.
fn share_of_time(limit: Instant, others: usize, now: Instant) -> Instant {
    let attempts = u32::try_from(others).unwrap_or(u32::MAX).saturating_add(1);
    now + limit.since(now) / attempts
}

/// Any free port on any address of the family of `peer`.
pub(super) fn any_port(peer: IpAddr) -> SocketAddr {
    match peer {
        IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    }
}

/// Whether the process or the machine has run out of something that comes back.
pub(super) fn is_exhaustion(error: &io::Error) -> bool {
    #[cfg(unix)]
    {
        matches!(
            error.raw_os_error(),
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN)
        )
    }
    #[cfg(not(unix))]
    {
        error.kind() == io::ErrorKind::OutOfMemory
    }
}

/// REP for an error of the dial (RFC 1928 6).
fn reply_for(error: &io::Error) -> Reply {
    use io::ErrorKind;
    #[cfg(unix)]
    if error.raw_os_error() == Some(libc::EAFNOSUPPORT) {
        return Reply::AddressTypeNotSupported;
    }
    let kind = error.kind();
    if kind == ErrorKind::ConnectionRefused || kind == ErrorKind::ConnectionReset {
        Reply::ConnectionRefused
    } else if kind == ErrorKind::NetworkUnreachable || kind == ErrorKind::NetworkDown {
        Reply::NetworkUnreachable
    } else if kind == ErrorKind::HostUnreachable {
        Reply::HostUnreachable
    } else if kind == ErrorKind::TimedOut {
        Reply::TtlExpired
    } else if kind == ErrorKind::PermissionDenied {
        Reply::NotAllowed
    } else {
        Reply::GeneralFailure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_dial_have_their_reply() {
        for (kind, reply) in [
            (io::ErrorKind::ConnectionRefused, Reply::ConnectionRefused),
            (io::ErrorKind::NetworkUnreachable, Reply::NetworkUnreachable),
            (io::ErrorKind::HostUnreachable, Reply::HostUnreachable),
            (io::ErrorKind::TimedOut, Reply::TtlExpired),
            (io::ErrorKind::PermissionDenied, Reply::NotAllowed),
            (io::ErrorKind::Other, Reply::GeneralFailure),
        ] {
            assert_eq!(reply_for(&kind.into()), reply);
        }
        #[cfg(unix)]
        {
            assert_eq!(reply_for(&io::Error::from_raw_os_error(libc::EMFILE)), Reply::GeneralFailure);
            assert!(is_exhaustion(&io::Error::from_raw_os_error(libc::EMFILE)));
            assert_eq!(
                reply_for(&io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
                Reply::AddressTypeNotSupported
            );
        }
    }

    #[test]
    fn several_addresses_share_the_time() {
        let limit = Instant::from_millis(10_000);
        assert_eq!(share_of_time(limit, 0, Instant::ZERO), limit);
        assert_eq!(share_of_time(limit, 3, Instant::ZERO), Instant::from_millis(2_500));
        assert_eq!(
            share_of_time(limit, 3, limit + limit.since(Instant::ZERO)),
            limit + limit.since(Instant::ZERO)
        );
    }
}
