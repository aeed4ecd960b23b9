//! Connections that were opened before the machine's packets went into the tunnel, and go on past it: closing them makes programs open them again.
//!
//! The system closes connections of IPv4 alone (`SetTcpEntry`); those of IPv6 go on until they end.

use super::helper;
use super::rows::closing_row;
use super::sockets::Around;
use crate::host::want::Family;
use std::io;
use std::net::SocketAddr;

/// Closes the TCP connections of this machine that pass the tunnel by, but for those that `keep` (local end, remote end) is true for. To be called when
/// the machine's packets go into `device`. Gives the number of those it closed.
///
/// # Errors
///
/// The system does not list them, or there is no such device.
pub fn reset_existing(device: &str, keep: &dyn Fn(SocketAddr, SocketAddr) -> bool) -> io::Result<usize> {
    let luid = helper::luid_of(device)?.ok_or(io::ErrorKind::NotFound)?;
    let (mut own, mut of_device) = (Vec::new(), Vec::new());
    for seen in helper::addresses()? {
        own.push(seen.address.addr);
        of_device.extend((seen.luid == luid).then_some(seen.address.addr));
    }
    let sockets = helper::tcp_sockets(Family::V4)?;
    let mut listening = helper::tcp_sockets(Family::V6)?;
    listening.extend(&sockets);
    listening.retain(|socket| socket.listens);
    let around = Around { listening, own, device: of_device, process: std::process::id() };
    let mut closed = 0;
    for socket in sockets.iter().filter(|socket| around.passes_by(socket)) {
        let (SocketAddr::V4(local), SocketAddr::V4(remote)) = (socket.local, socket.remote) else { continue };
        if keep(socket.local, socket.remote) {
            continue;
        }
        match helper::close_connection(&closing_row(local, remote)) {
            Ok(()) => closed += 1,
            // It has gone by itself.
            Err(error) => log::debug!("the connection of {local} to {remote} is not closed: {error}"),
        }
    }
    Ok(closed)
}
