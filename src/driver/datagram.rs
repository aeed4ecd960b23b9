//! Datagrams between the sockets and the engine, each taken out of one side and given to the other at once.

use super::queue::Turn;
use super::{DATAGRAM_BUDGET, Driver, Io, OsSocket, socket};
use crate::engine::SocketId;
use crate::time::Instant;
use crate::tun::Device;
use std::io::ErrorKind;
use std::net::SocketAddr;

impl<D: Device> Driver<D> {
    pub(super) fn send_datagram(
        &mut self,
        socket: SocketId,
        to: Option<SocketAddr>,
        header: &[u8],
        payload: &[u8],
    ) {
        let Some(OsSocket { io: Io::Udp(udp), .. }) = self.os_socket(socket) else { return };
        // An ICMP error for an earlier datagram is reported by the next send: that one is tried once more.
        for _ in 0..2 {
            match socket::send_datagram(udp, to, header, payload) {
                Ok(()) => return,
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => {
                    log::debug!("datagram lost: {error}");
                    return;
                }
            }
        }
    }

    pub(super) fn read_datagrams(&mut self, id: SocketId, now: Instant) {
        let mut buffer = core::mem::take(&mut self.buffer);
        let drained = self.read_datagrams_into(id, &mut buffer, now);
        self.buffer = buffer;
        if !drained {
            self.enqueue(id, Turn::InCircle);
        }
    }

    pub(super) fn read_datagrams_into(&mut self, id: SocketId, buffer: &mut [u8], now: Instant) -> bool {
        for _ in 0..DATAGRAM_BUDGET {
            if self.tun_pending.is_some() || self.device.is_none() {
                // The socket's own queue holds what comes until the TUN takes packets again.
                self.held.push(id);
                return true;
            }
            self.queue.charge(0);
            let Some(socket) = self.os_socket(id) else { return true };
            if !socket.readable {
                return true;
            }
            let Io::Udp(udp) = &socket.io else { return true };
            let (octets, from) = match udp.recv_from(buffer) {
                Ok((octets, from)) => (octets, from),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    socket.readable = false;
                    return true;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.engine.handle_socket_error(id, socket::classify(&error), now);
                    continue;
                }
            };
            let payload = buffer.get(..octets).unwrap_or_default();
            if let Some(mut datagram) = self.engine.handle_datagram(id, Some(from), payload, now) {
                while let Some(packet) = datagram.next_packet() {
                    let Some(device) = &mut self.device else { break };
                    if !Self::transmit(device, &mut self.tun_pending, &packet) {
                        break;
                    }
                }
            }
        }
        false
    }
}
