//! Systems that send and receive one datagram with each system call.

use super::outgoing::Message;
use mio::net::UdpSocket;
use socket2::{SockAddr, SockRef};
use std::io;
use std::net::SocketAddr;

/// Messages in one call at most.
pub(super) const MOST: usize = 64;

/// A message that has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    /// Octets.
    pub(super) len: usize,
    /// Who sent it, if that was asked for.
    pub(super) from: Option<SocketAddr>,
    /// A train: octets of each datagram but the last; 0: it is one datagram.
    pub(super) segment_size: u16,
}

/// Sends the first of `messages`; gives 1. A train is refused.
pub(super) fn send(socket: &UdpSocket, messages: &[Message<'_>]) -> io::Result<usize> {
    let Some(message) = messages.first() else { return Ok(0) };
    if message.segment_size > 0 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let borrowed = SockRef::from(socket);
    match message.to {
        Some(to) => borrowed.send_to_vectored(message.slices, &SockAddr::from(to))?,
        None => borrowed.send_vectored(message.slices)?,
    };
    Ok(1)
}

/// Reads one message into the first of `buffers`.
pub(super) fn receive<'b>(
    socket: &UdpSocket,
    mut buffers: impl Iterator<Item = &'b mut [u8]>,
    named: bool,
    _trains: bool,
    arrivals: &mut Vec<Arrival>,
) -> io::Result<()> {
    let Some(buffer) = buffers.next() else { return Ok(()) };
    let (len, from) = socket.recv_from(buffer)?;
    arrivals.push(Arrival { len, from: named.then_some(from), segment_size: 0 });
    Ok(())
}

/// There are no trains.
pub(super) fn cuts(_socket: &UdpSocket) -> bool {
    false
}

/// There are no trains.
pub(super) fn take_trains(_socket: &UdpSocket) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
