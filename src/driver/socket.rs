//! Opens the sockets that the engine asks for, so that they leave the machine outside the tunnel.

use super::{errors, limits, options};
use crate::engine::Egress;
use mio::net::{TcpStream, UdpSocket};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Room for datagrams that wait for the loop, octets a socket.
const DATAGRAM_BUFFER: usize = 1 << 20;

/// Asks somebody else to keep a socket outside the tunnel, as Android's `VpnService.protect` does; `false` when that failed.
#[derive(Clone)]
pub struct Protect(Arc<Protector>);

struct Protector {
    ask: Box<dyn Fn(limits::Number) -> bool + Send + Sync>,
    revoked: AtomicBool,
}

impl Protect {
    /// Each socket is given to `ask` before it is connected or bound, on the thread of the loop. The descriptor stays ztun's.
    pub fn new(ask: impl Fn(limits::Number) -> bool + Send + Sync + 'static) -> Protect {
        Protect(Arc::new(Protector { ask: Box::new(ask), revoked: AtomicBool::new(false) }))
    }

    /// Nobody is asked any more, and no socket is protected: from any thread, for a loop that hangs.
    pub fn revoke(&self) {
        self.0.revoked.store(true, Ordering::Release);
    }

    fn ask(&self, socket: &Socket) -> io::Result<()> {
        match !self.0.revoked.load(Ordering::Acquire) && (self.0.ask)(limits::number(socket)) {
            true => Ok(()),
            // Unprotected, its packets would come back through the tunnel.
            false => Err(errors::prohibited()),
        }
    }
}

impl std::fmt::Debug for Protect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Protect(..)")
    }
}

/// Whether the system knows marks, so that a routing rule keeps sockets outside the tunnel; else they have to be bound to an interface.
pub const MARKS: bool = options::MARKS;

/// How ztun's own sockets are told from the machine's.
#[derive(Clone, Debug, Default)]
pub struct EgressBinding {
    /// SO_MARK, matched by a routing rule. `None` where there is nothing to loop (a private namespace) or no privilege.
    pub mark: Option<u32>,
    /// Interface index for SO_BINDTOIFINDEX; loopback destinations are left alone.
    pub interface: Option<NonZeroU32>,
    /// Destinations with an interface of their own, in place of that.
    pub ways: Vec<(IpAddr, NonZeroU32)>,
    /// Sockets have descriptors below this number; the others are kept for what is no flow's ([`for_flows`](limits::for_flows)).
    pub below: Option<limits::Number>,
    /// Who has to agree to each socket: a program that ztun is a library of.
    pub protect: Option<Protect>,
}

impl EgressBinding {
    /// The interface that a socket to this address is bound to.
    pub fn interface_to(&self, to: IpAddr) -> Option<NonZeroU32> {
        let own = self.ways.iter().find(|(addr, _)| *addr == to.to_canonical());
        own.map(|(_, interface)| *interface).or(self.interface).filter(|_| !to.is_loopback())
    }

    fn apply(&self, socket: &Socket, to: Option<SocketAddr>, egress: Egress) -> io::Result<()> {
        if let Some(mark) = self.mark {
            options::mark(socket, mark)?;
        }
        let interface = to.map_or(self.interface, |to| self.interface_to(to.ip()));
        if interface.is_some() {
            options::bind_to(socket, interface, to.is_some_and(|to| to.is_ipv6()))?;
        }
        log::trace!("socket opened for {egress:?}");
        Ok(())
    }

    /// Asks for the socket's protection, where somebody gives that.
    fn protect(&self, socket: &Socket) -> io::Result<()> {
        self.protect.as_ref().map_or(Ok(()), |protect| protect.ask(socket))
    }

    /// A socket, unless its descriptor is one of those that are not for flows: the kernel gives the lowest that is free, so there is no other.
    fn socket(&self, to: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let socket = options::socket(Domain::for_address(to), kind, protocol)?;
        match self.below {
            Some(below) if limits::number(&socket) >= below => Err(errors::exhausted()),
            Some(_) | None => Ok(socket),
        }
    }

    /// Whether the system lets a socket be bound so.
    pub fn check(&self) -> io::Result<()> {
        let socket = options::socket(Domain::IPV4, Type::DGRAM, Protocol::UDP)?;
        self.apply(&socket, None, Egress::Direct)
    }

    /// Starts a connection. It is established, or has failed, when the socket becomes writable.
    pub fn dial(&self, to: SocketAddr, egress: Egress) -> io::Result<TcpStream> {
        let socket = self.socket(to, Type::STREAM, Protocol::TCP)?;
        self.apply(&socket, Some(to), egress)?;
        self.protect(&socket)?;
        // The relay decides what a segment is; Nagle would only add latency (RFC 1928 says nothing, every peer does it).
        socket.set_tcp_nodelay(true)?;
        if egress == Egress::Proxy {
            options::speak_first(&socket);
        }
        match socket.connect(&SockAddr::from(to)) {
            Ok(()) => {}
            Err(error) if errors::is_in_progress(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(TcpStream::from_std(std::net::TcpStream::from(socket)))
    }

    /// Opens a UDP socket on an ephemeral port, never with SO_REUSEADDR: a port shared by accident would hand one app's datagrams
    /// to another.
    pub fn open_udp(&self, peer: Option<SocketAddr>, v6: bool, egress: Egress) -> io::Result<UdpSocket> {
        let v6 = peer.map_or(v6, |peer| peer.is_ipv6());
        let any: SocketAddr =
            if v6 { (Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() };
        let socket = self.socket(any, Type::DGRAM, Protocol::UDP)?;
        if v6 {
            socket.set_only_v6(true)?;
        }
        // The kernel grants what net.core.rmem_max allows; with less, a burst of answers loses more.
        if let Err(error) = socket.set_recv_buffer_size(DATAGRAM_BUFFER) {
            log::debug!("SO_RCVBUF: {error}");
        }
        if peer.is_none() {
            options::keep_errors_apart(&socket)?;
        }
        self.apply(&socket, peer.or(Some(any)), egress)?;
        self.protect(&socket)?;
        socket.bind(&SockAddr::from(any))?;
        if let Some(peer) = peer {
            socket.connect(&SockAddr::from(peer))?;
        }
        Ok(UdpSocket::from_std(std::net::UdpSocket::from(socket)))
    }
}

/// A socket to listen with at `addr`, whose answers carry `mark`.
pub(crate) fn listening(addr: SocketAddr, mark: Option<u32>) -> io::Result<Socket> {
    let socket = options::socket(Domain::for_address(addr), Type::STREAM, Protocol::TCP)?;
    options::share_time_wait(&socket)?;
    if let Some(mark) = mark {
        options::mark(&socket, mark)?;
    }
    Ok(socket)
}

/// Sends `header` and `payload` as one datagram without copying them together.
pub(super) fn send_datagram(
    socket: &UdpSocket,
    to: Option<SocketAddr>,
    header: &[u8],
    payload: &[u8],
) -> io::Result<()> {
    let slices = [IoSlice::new(header), IoSlice::new(payload)];
    let slices = if header.is_empty() { &slices[1..] } else { &slices[..] };
    let borrowed = SockRef::from(socket);
    match to {
        Some(to) => borrowed.send_to_vectored(slices, &SockAddr::from(to))?,
        None => borrowed.send_vectored(slices)?,
    };
    Ok(())
}

/// Closes a connection with RST: unsent octets are thrown away (SO_LINGER 0).
pub(super) fn abort(stream: TcpStream) {
    if let Err(error) = SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)) {
        log::debug!("SO_LINGER: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::SocketError;

    #[cfg(unix)]
    #[test]
    fn descriptors_that_are_not_for_flows_are_left_alone() {
        let binding = EgressBinding { below: Some(3), ..EgressBinding::default() };
        let to = (Ipv4Addr::LOCALHOST, 9).into();
        let refused = binding.dial(to, Egress::Direct).expect_err("no descriptor below 3 is free");
        assert_eq!(errors::classify(&refused), SocketError::Exhausted);
        let refused = binding.open_udp(None, false, Egress::Direct).expect_err("none is free");
        assert_eq!(errors::classify(&refused), SocketError::Exhausted);
    }

    #[test]
    fn a_destination_may_have_an_interface_of_its_own_and_loopback_has_none() {
        let (default, other) = (NonZeroU32::new(4), NonZeroU32::new(5).expect("not 0"));
        let proxy: IpAddr = "10.1.2.3".parse().expect("address");
        let binding =
            EgressBinding { interface: default, ways: vec![(proxy, other)], ..EgressBinding::default() };
        assert_eq!(binding.interface_to(proxy), Some(other));
        assert_eq!(binding.interface_to("::ffff:10.1.2.3".parse().expect("address")), Some(other));
        assert_eq!(binding.interface_to("10.1.2.4".parse().expect("address")), default);
        assert_eq!(binding.interface_to(Ipv4Addr::LOCALHOST.into()), None);
        assert_eq!(EgressBinding::default().interface_to(proxy), None);
    }

    #[test]
    fn a_socket_that_is_not_protected_is_not_used() {
        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        let asked = Arc::clone(&seen);
        let protect = Protect::new(move |fd| {
            asked.lock().expect("lock").push(fd);
            asked.lock().expect("lock").len() < 3
        });
        let binding = EgressBinding { protect: Some(protect.clone()), ..EgressBinding::default() };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let to = listener.local_addr().expect("address");
        let stream = binding.dial(to, Egress::Proxy).expect("protected");
        let socket = binding.open_udp(None, false, Egress::Direct).expect("protected");
        let numbers = [limits::number(&SockRef::from(&stream)), limits::number(&SockRef::from(&socket))];
        assert_eq!(*seen.lock().expect("lock"), numbers);
        for refused in [
            binding.dial(to, Egress::Direct).map(drop).expect_err("not protected"),
            binding.open_udp(Some(to), false, Egress::Proxy).map(drop).expect_err("not protected"),
        ] {
            assert_eq!(errors::classify(&refused), SocketError::Prohibited);
        }
        assert_eq!(seen.lock().expect("lock").len(), 4);
        protect.revoke();
        binding.open_udp(None, false, Egress::Direct).map(drop).expect_err("nobody is asked any more");
        assert_eq!(seen.lock().expect("lock").len(), 4);
    }

    /// L-8, `docs/adr/0005-no-reuseaddr-on-ephemeral-udp.md`
    #[test]
    fn an_ephemeral_port_is_never_shared() {
        for v6 in [false, true] {
            let socket = EgressBinding::default().open_udp(None, v6, Egress::Direct).expect("socket");
            let shared = SockRef::from(&socket);
            assert!(!shared.reuse_address().expect("SO_REUSEADDR"));
            #[cfg(unix)]
            assert!(!shared.reuse_port().expect("SO_REUSEPORT"));
        }
    }

    #[test]
    fn two_pieces_leave_as_one_datagram() {
        let receiver = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let to = receiver.local_addr().expect("address");
        let sender = EgressBinding::default().open_udp(None, false, Egress::Direct).expect("socket");
        send_datagram(&sender, Some(to), b"head", b"tail").expect("send");
        let mut buffer = [0; 16];
        let octets = receiver.recv(&mut buffer).expect("receive");
        assert_eq!(&buffer[..octets], b"headtail");
    }
}
