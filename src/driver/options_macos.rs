//! Options of sockets on macOS.

pub(super) use super::without::{MARKS, STREAM, is_stuck, keep_ahead, mark, socket, speak_first, wake_at};
use socket2::Socket;
use std::io;
use std::num::NonZeroU32;

/// Has a socket leave by this interface only, or by the one that the routes say (IP_BOUND_IF, IPV6_BOUND_IF).
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

/// Has a port whose last connections are in TIME-WAIT be free (SO_REUSEADDR; L5).
pub(super) fn share_time_wait(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_address(true)
}
