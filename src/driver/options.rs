//! Options of sockets that are Linux's own.

use mio::Interest;
use mio::net::TcpStream;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::num::NonZeroU32;
use std::os::fd::AsRawFd;

/// What is asked of the poll for a connection: an urgent mark too.
pub(super) const STREAM: Interest = Interest::READABLE.add(Interest::WRITABLE).add(Interest::PRIORITY);

/// Whether sockets carry marks, which routing rules know.
pub(super) const MARKS: bool = true;

/// A socket that never blocks and that no other program inherits.
pub(super) fn socket(domain: Domain, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    Socket::new(domain, kind.nonblocking().cloexec(), Some(protocol))
}

/// Has what leaves the socket carry this mark, by which a routing rule knows it (SO_MARK).
pub(super) fn mark(socket: &Socket, mark: u32) -> io::Result<()> {
    socket.set_mark(mark)
}

/// Has a socket leave by this interface only, or by the one that the routes say (SO_BINDTOIFINDEX).
pub(super) fn bind_to(socket: &Socket, interface: Option<NonZeroU32>, v6: bool) -> io::Result<()> {
    match v6 {
        true => socket.bind_device_by_index_v6(interface),
        false => socket.bind_device_by_index_v4(interface),
    }
}

/// A datagram that one receiver has refused is no error for the others.
pub(super) fn keep_errors_apart(_socket: &Socket) -> io::Result<()> {
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

/// Has a port whose last connections are in TIME-WAIT be free (SO_REUSEADDR; L5).
pub(super) fn share_time_wait(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_address(true)
}

/// Leaves the last ACK of the handshake to the first octets, which follow at once: a packet less. On the side that connects this is what the kernel
/// makes of TCP_DEFER_ACCEPT; should nothing follow, the ACK leaves as a delayed one.
pub(super) fn speak_first(socket: &Socket) {
    if let Err(error) = set_option(socket, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 1) {
        log::debug!("TCP_DEFER_ACCEPT: {error}");
    }
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

/// Whether octets that wait for an acknowledgement were sent again so often (TCP_INFO).
pub(super) fn is_stuck(socket: &Socket, resent: u8) -> io::Result<bool> {
    // SAFETY: the struct is plain numbers, for which zeros are a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    // The struct has a few hundred octets.
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: both pointers are to live, writable values of the types that the call expects, and the length is that of the struct.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(info.tcpi_unacked > 0 && info.tcpi_retransmits >= resent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::SockRef;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    /// Its opposite is seen in `tests/netns/network.rs`.
    #[test]
    fn a_connection_that_is_acknowledged_is_not_stuck() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let mut stream = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        stream.write_all(b"x").expect("write");
        assert!(!is_stuck(&SockRef::from(&stream), 5).expect("TCP_INFO"));
    }
}
