//! Options of sockets on other systems.

pub(super) use super::without::{MARKS, STREAM, is_stuck, keep_ahead, mark, socket, speak_first, wake_at};
use socket2::Socket;
use std::io;
use std::num::NonZeroU32;

/// Sockets leave by the interface that the routes say; another is refused.
pub(super) fn bind_to(_socket: &Socket, interface: Option<NonZeroU32>, _v6: bool) -> io::Result<()> {
    interface.map_or(Ok(()), |_| Err(io::ErrorKind::Unsupported.into()))
}

/// A datagram that one receiver has refused is no error for the others.
pub(super) fn keep_errors_apart(_socket: &Socket) -> io::Result<()> {
    Ok(())
}

/// A port whose last connections are in TIME-WAIT is free anyway.
pub(super) fn share_time_wait(_socket: &Socket) -> io::Result<()> {
    Ok(())
}
