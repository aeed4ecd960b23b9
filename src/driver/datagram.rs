//! Datagrams between the sockets and the engine: many at once where there are many ([`outgoing`], [`incoming`](super::incoming)), one at once where
//! there is one.

use super::incoming::{Inbox, Train};
use super::outgoing::{self, Datagram};
use super::queue::Turn;
use super::{DATAGRAM_BUDGET, Driver, OsSocket, Refused, errors, socket};
use crate::engine::{Arrived, Ends, SocketId};
use crate::stack::datagrams;
use crate::time::Instant;
use crate::tun::Device;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::SocketAddr;

impl<D: Device> Driver<D> {
    /// Takes what a packet holds for a socket: one datagram, or a train of them. It leaves with the others of the turn.
    pub(super) fn take_datagrams(
        &mut self,
        socket: SocketId,
        to: Option<SocketAddr>,
        header: &[u8],
        payload: &[u8],
        segment_size: u16,
    ) {
        if segment_size > 0 || payload.len() > outgoing::LARGE {
            self.flush_datagrams();
            return self.send_train(socket, to, header, payload, segment_size);
        }
        if self.outgoing.is_first() {
            return self.send_datagram(socket, to, header, payload);
        }
        if !self.outgoing.push(socket, to, header, payload) {
            self.flush_datagrams();
            self.outgoing.push(socket, to, header, payload);
        }
    }

    /// Sends what waits.
    pub(super) fn flush_datagrams(&mut self) {
        if self.outgoing.is_empty() {
            return;
        }
        let sockets = &mut self.sockets;
        self.outgoing.drain(|id, datagrams| {
            if let Some(udp) = sockets.udp(id) {
                outgoing::send(udp, datagrams);
            }
        });
    }

    fn send_train(
        &mut self,
        socket: SocketId,
        to: Option<SocketAddr>,
        header: &[u8],
        payload: &[u8],
        segment_size: u16,
    ) {
        let Some(udp) = self.sockets.udp(socket) else { return };
        let mut train = datagrams(payload, segment_size);
        loop {
            let mut some = [Datagram { to, header, payload: &[] }; outgoing::MOST];
            let mut count = 0;
            for (place, payload) in some.iter_mut().zip(&mut train) {
                place.payload = payload;
                count += 1;
            }
            outgoing::send(udp, some.get(..count).unwrap_or_default());
            if count < outgoing::MOST {
                return;
            }
        }
    }

    /// Sends one datagram at once.
    pub(super) fn send_datagram(
        &mut self,
        socket: SocketId,
        to: Option<SocketAddr>,
        header: &[u8],
        payload: &[u8],
    ) {
        let Some(udp) = self.sockets.udp(socket) else { return };
        // An ICMP error for an earlier datagram is reported by the next send: that one is tried once more.
        for _ in 0..2 {
            match socket::send_datagram(&udp.socket, to, header, payload) {
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
        let mut inbox = core::mem::take(&mut self.inbox);
        let drained = self.read_datagrams_into(id, &mut inbox, now);
        self.inbox = inbox;
        if !drained {
            self.enqueue(id, Turn::InCircle);
        }
    }

    fn read_datagrams_into(&mut self, id: SocketId, inbox: &mut Inbox, now: Instant) -> bool {
        let mut budget = DATAGRAM_BUDGET;
        while budget > 0 && self.queue.share() > 0 {
            if !self.tun_pending.is_empty() || self.device.is_none() {
                // The socket's own queue holds what comes until the TUN takes packets again.
                self.held.push(id);
                return true;
            }
            let Some(OsSocket { readable, io: super::Io::Udp(udp), .. }) = self.os_socket(id) else {
                return true;
            };
            if !*readable {
                return true;
            }
            match inbox.read(udp) {
                // What comes from now on is a new event.
                Ok(drained) => *readable = !drained,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    *readable = false;
                    self.queue.charge(0);
                    return true;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    budget -= 1;
                    // A socket that has nothing but errors is looked at again when something comes.
                    *readable = budget > 0;
                    self.queue.charge(0);
                    self.engine.handle_socket_error(id, errors::classify(&error), now);
                    continue;
                }
            }
            let (count, packets) = self.give_datagrams(id, inbox, now);
            self.queue.charge_calls(packets + 1, inbox.len());
            budget = budget.saturating_sub(count);
        }
        false
    }

    /// Gives what was read of a socket to the TUN: how many datagrams, in how many packets.
    fn give_datagrams(&mut self, id: SocketId, inbox: &Inbox, now: Instant) -> (usize, usize) {
        let mut train = Train::new();
        let (mut count, mut packets) = (0, 0);
        for (from, octets) in inbox.datagrams() {
            count += 1;
            let Some(arrived) = self.engine.receive_datagram(id, from, octets, now) else { continue };
            let Arrived { ends, payload } = arrived;
            if !train.push(ends, payload) {
                packets += self.give_train(&mut train, now);
                train.push(ends, payload);
            }
        }
        packets += self.give_train(&mut train, now);
        (count, packets)
    }

    /// Gives datagrams of one sender to the TUN, as one packet where that is possible: how many packets. The train is empty afterwards.
    fn give_train(&mut self, train: &mut Train<'_, Ends>, now: Instant) -> usize {
        let Some((ends, pieces)) = train.take() else { return 0 };
        let Some(device) = &mut self.device else { return 0 };
        if pieces.len() > 1
            && let Some(packet) = self.engine.deliver_train(ends, pieces)
        {
            let sent = match self.tun_pending.is_empty() {
                true => device.send_train(packet.header, pieces, packet.offload),
                false => Err(ErrorKind::WouldBlock.into()),
            };
            match sent {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let octets = [&[packet.header], pieces].concat().concat();
                    self.tun_pending.push_back(Refused { octets, offload: Some(packet.offload) });
                }
                Err(error) => log::debug!("{} datagrams to the TUN lost: {error}", pieces.len()),
            }
            return 1;
        }
        let mut packets = 0;
        for payload in pieces {
            let Some(mut datagram) = self.engine.deliver_datagram(ends, payload, now) else { continue };
            while let Some(packet) = datagram.next_packet() {
                packets += 1;
                Self::transmit(device, &mut self.tun_pending, &packet);
            }
        }
        packets
    }

    /// Offers the TUN what it has refused, in order.
    pub(super) fn retry_pending(&mut self) {
        let Some(device) = &mut self.device else { return };
        let mut pending = core::mem::take(&mut self.tun_pending);
        let mut still = VecDeque::new();
        while let Some(Refused { octets, offload }) = pending.pop_front() {
            let packet = crate::stack::Transmit { header: &octets, payload: [&[], &[]], offload };
            if !Self::transmit(device, &mut still, &packet) {
                break;
            }
        }
        still.append(&mut pending);
        self.tun_pending = still;
        if self.tun_pending.is_empty() {
            for id in core::mem::take(&mut self.held) {
                self.enqueue(id, Turn::First);
            }
        }
    }
}
