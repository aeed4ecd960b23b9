//! Opens the sockets that the engine asks for, so that they leave the machine outside the tunnel.

use crate::engine::{Egress, SocketError};
use mio::net::{TcpStream, UdpSocket};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

/// Room for datagrams that wait for the loop, octets a socket.
const DATAGRAM_BUFFER: usize = 1 << 20;

/// How ztun's own sockets are told from the machine's.
#[derive(Clone, Debug, Default)]
pub struct EgressBinding {
    /// SO_MARK, matched by a routing rule. `None` where there is nothing to loop (a private namespace) or no privilege.
    pub mark: Option<u32>,
    /// Interface index for SO_BINDTOIFINDEX; loopback destinations are left alone.
    pub interface: Option<NonZeroU32>,
    /// Sockets have descriptors below this number; the others are kept for what is no flow's ([`for_flows`](super::limits::for_flows)).
    pub below: Option<RawFd>,
}

impl EgressBinding {
    fn apply(&self, socket: &Socket, to: Option<SocketAddr>, egress: Egress) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        {
            if let Some(mark) = self.mark {
                socket.set_mark(mark)?;
            }
            let loopback = to.is_some_and(|to| to.ip().is_loopback());
            if let (Some(index), false) = (self.interface, loopback) {
                match to {
                    Some(SocketAddr::V6(_)) => socket.bind_device_by_index_v6(Some(index))?,
                    Some(SocketAddr::V4(_)) | None => socket.bind_device_by_index_v4(Some(index))?,
                }
            }
        }
        log::trace!("socket opened for {egress:?}");
        Ok(())
    }

    /// A socket, unless its descriptor is one of those that are not for flows: the kernel gives the lowest that is free, so there is no other.
    fn socket(&self, to: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(to), kind.nonblocking().cloexec(), Some(protocol))?;
        match self.below {
            Some(below) if socket.as_raw_fd() >= below => Err(io::Error::from_raw_os_error(libc::EMFILE)),
            Some(_) | None => Ok(socket),
        }
    }

    /// Whether the system lets a socket be bound so.
    pub fn check(&self) -> io::Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
        self.apply(&socket, None, Egress::Direct)
    }

    /// Starts a connection. It is established, or has failed, when the socket becomes writable.
    pub fn dial(&self, to: SocketAddr, egress: Egress) -> io::Result<TcpStream> {
        let socket = self.socket(to, Type::STREAM, Protocol::TCP)?;
        self.apply(&socket, Some(to), egress)?;
        // The relay decides what a segment is; Nagle would only add latency (RFC 1928 says nothing, every peer does it).
        socket.set_tcp_nodelay(true)?;
        if egress == Egress::Proxy {
            speak_first(&socket);
        }
        match socket.connect(&SockAddr::from(to)) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
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
        self.apply(&socket, peer.or(Some(any)), egress)?;
        socket.bind(&SockAddr::from(any))?;
        if let Some(peer) = peer {
            socket.connect(&SockAddr::from(peer))?;
        }
        Ok(UdpSocket::from_std(std::net::UdpSocket::from(socket)))
    }
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
    let borrowed = BorrowedSocket::new(socket);
    match to {
        Some(to) => borrowed.0.send_to_vectored(slices, &SockAddr::from(to))?,
        None => borrowed.0.send_vectored(slices)?,
    };
    Ok(())
}

/// Has the kernel tell of a connection's octets only when there are so many (SO_RCVLOWAT), or none will follow.
pub(super) fn wake_at(stream: &TcpStream, octets: usize) -> io::Result<()> {
    set_option(stream, libc::SOL_SOCKET, libc::SO_RCVLOWAT, octets)
}

/// Has the kernel take at most so many octets ahead of what it can send (TCP_NOTSENT_LOWAT); 0: what the system says.
pub(super) fn keep_ahead(stream: &TcpStream, octets: u32) -> io::Result<()> {
    set_option(stream, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, octets as usize)
}

/// Leaves the last ACK of the handshake to the first octets, which follow at once: a packet less. On the side that connects this is what the kernel
/// makes of TCP_DEFER_ACCEPT; should nothing follow, the ACK leaves as a delayed one.
fn speak_first(socket: &Socket) {
    #[cfg(target_os = "linux")]
    if let Err(error) = set_option(socket, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 1) {
        log::debug!("TCP_DEFER_ACCEPT: {error}");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = socket;
}

fn set_option(
    socket: &impl AsRawFd,
    level: libc::c_int,
    option: libc::c_int,
    value: usize,
) -> io::Result<()> {
    let value = libc::c_int::try_from(value).unwrap_or(libc::c_int::MAX);
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the descriptor is open, and the option's value is one int that outlives the call.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes a connection with RST: unsent octets are thrown away (SO_LINGER 0).
pub(super) fn abort(stream: TcpStream) {
    let borrowed = BorrowedSocket::new(&stream);
    if let Err(error) = borrowed.0.set_linger(Some(std::time::Duration::ZERO)) {
        log::debug!("SO_LINGER: {error}");
    }
}

/// A `socket2::Socket` over a descriptor that someone else owns and closes.
pub(super) struct BorrowedSocket(pub(super) std::mem::ManuallyDrop<Socket>);

impl BorrowedSocket {
    pub(super) fn new(owner: &impl AsRawFd) -> BorrowedSocket {
        // SAFETY: the descriptor is open for as long as `owner` is borrowed by the caller, and `ManuallyDrop` never closes it.
        BorrowedSocket(std::mem::ManuallyDrop::new(unsafe { Socket::from_raw_fd(owner.as_raw_fd()) }))
    }
}

/// The engine's name for an error of the operating system.
pub(super) fn classify(error: &io::Error) -> SocketError {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => SocketError::Refused,
        Some(libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED) => SocketError::Reset,
        // ENODEV: the interface that the socket is bound to has gone.
        Some(
            libc::ENETUNREACH | libc::ENETDOWN | libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT | libc::ENODEV,
        ) => SocketError::Network,
        Some(libc::EHOSTUNREACH | libc::EHOSTDOWN) => SocketError::Host,
        Some(libc::ETIMEDOUT) => SocketError::TimedOut,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN) => {
            SocketError::Exhausted
        }
        Some(libc::EACCES | libc::EPERM) => SocketError::Prohibited,
        _ => SocketError::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_are_told_apart() {
        let of = |code| classify(&io::Error::from_raw_os_error(code));
        assert_eq!(of(libc::ECONNREFUSED), SocketError::Refused);
        assert_eq!(of(libc::EMFILE), SocketError::Exhausted);
        assert_eq!(of(libc::EHOSTUNREACH), SocketError::Host);
        assert_eq!(classify(&io::Error::other("else")), SocketError::Other);
    }

    #[test]
    fn descriptors_that_are_not_for_flows_are_left_alone() {
        let binding = EgressBinding { below: Some(3), ..EgressBinding::default() };
        let to = (Ipv4Addr::LOCALHOST, 9).into();
        let refused = binding.dial(to, Egress::Direct).expect_err("no descriptor below 3 is free");
        assert_eq!(classify(&refused), SocketError::Exhausted);
        let refused = binding.open_udp(None, false, Egress::Direct).expect_err("none is free");
        assert_eq!(classify(&refused), SocketError::Exhausted);
    }

    /// L-8, `docs/adr/0005-no-reuseaddr-on-ephemeral-udp.md`
    #[test]
    fn an_ephemeral_port_is_never_shared() {
        for v6 in [false, true] {
            let socket = EgressBinding::default().open_udp(None, v6, Egress::Direct).expect("socket");
            let options = socket2::SockRef::from(&socket);
            assert!(!options.reuse_address().expect("SO_REUSEADDR"));
            assert!(!options.reuse_port().expect("SO_REUSEPORT"));
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
