//! Options of sockets on other systems: what Linux has besides is done without.

use mio::Interest;
use mio::net::TcpStream;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::num::NonZeroU32;

/// What is asked of the poll for a connection.
pub(super) const STREAM: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// There are no marks, and nothing that sockets could be bound to.
pub(super) const MARKS: bool = false;

/// A socket that never blocks and that no other program inherits.
pub(super) fn socket(domain: Domain, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(domain, kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// There are no marks.
pub(super) fn mark(_socket: &Socket, _mark: u32) -> io::Result<()> {
    Ok(())
}

/// Sockets leave by the interface that the routes say; another is refused.
pub(super) fn bind_to(_socket: &Socket, interface: Option<NonZeroU32>, _v6: bool) -> io::Result<()> {
    interface.map_or(Ok(()), |_| Err(io::ErrorKind::Unsupported.into()))
}

/// A datagram that one receiver has refused is no error for the others.
pub(super) fn keep_errors_apart(_socket: &Socket) -> io::Result<()> {
    Ok(())
}

/// Every octet that comes is told of.
pub(super) fn wake_at(_stream: &TcpStream, _octets: usize) -> io::Result<()> {
    Ok(())
}

/// The kernel takes what its buffer holds.
pub(super) fn keep_ahead(_stream: &TcpStream, _octets: u32) -> io::Result<()> {
    Ok(())
}

/// A port whose last connections are in TIME-WAIT is free anyway.
pub(super) fn share_time_wait(_socket: &Socket) -> io::Result<()> {
    Ok(())
}

/// The last ACK of the handshake leaves at once.
pub(super) fn speak_first(_socket: &Socket) {}

/// Nobody tells: what is dead is found by the probes, or by the system's own patience.
pub(super) fn is_stuck(_socket: &Socket, _resent: u8) -> io::Result<bool> {
    Ok(false)
}
