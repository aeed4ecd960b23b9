//! What Linux's sockets have besides, and others do without.

use mio::Interest;
use mio::net::TcpStream;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;

/// What is asked of the poll for a connection.
pub(super) const STREAM: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// There are no marks: sockets are kept outside the tunnel, where they are, by the interface that they leave by.
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

/// Every octet that comes is told of.
pub(super) fn wake_at(_stream: &TcpStream, _octets: usize) -> io::Result<()> {
    Ok(())
}

/// The kernel takes what its buffer holds.
pub(super) fn keep_ahead(_stream: &TcpStream, _octets: u32) -> io::Result<()> {
    Ok(())
}

/// The last ACK of the handshake leaves at once.
pub(super) fn speak_first(_socket: &Socket) {}

/// Nobody tells: what is dead is found by the probes, or by the system's own patience.
pub(super) fn is_stuck(_socket: &Socket, _resent: u8) -> io::Result<bool> {
    Ok(false)
}
