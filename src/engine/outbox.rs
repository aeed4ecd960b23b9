//! Datagrams for apps that come up away from any packet or socket: they wait, as finished packets, until the TUN takes them.
//!
//! One piece of memory holds them all and is used again when it is empty. It is bounded: what would make it grow further is lost, as datagrams
//! are, and who brings more is not read before it is empty ([`Outbox::is_full`]).

use crate::stack::{Offload, Stack, Transmit};
use crate::time::Instant;
use crate::wire::Endpoint;
use std::collections::VecDeque;
use std::ops::Range;

/// From how many octets on nobody is asked for more.
const FULL: usize = 256 << 10;
/// Octets at most: with one more read of any connection.
const MOST: usize = 1 << 20;
/// Octets that are kept for the next ones.
const KEPT: usize = 64 << 10;

/// Finished packets in order.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    octets: Vec<u8>,
    packets: VecDeque<(Range<usize>, Option<Offload>)>,
    /// It was full, and somebody may wait.
    awaited: bool,
}

impl Outbox {
    /// A datagram to `local` that comes from `remote`. Lost when there is no room.
    pub(super) fn push(
        &mut self,
        stack: &mut Stack,
        remote: Endpoint,
        local: Endpoint,
        payload: &[u8],
        now: Instant,
    ) {
        if self.octets.len() >= MOST {
            return;
        }
        let Some(mut datagram) = stack.send_datagram(remote, local, payload, now) else { return };
        while let Some(packet) = datagram.next_packet() {
            let start = self.octets.len();
            self.octets.extend_from_slice(packet.header);
            self.octets.extend(packet.payload.into_iter().flatten());
            self.packets.push_back((start..self.octets.len(), packet.offload));
        }
    }

    /// Whether there are too many to ask for more.
    pub(super) fn is_full(&mut self) -> bool {
        let full = self.octets.len() >= FULL;
        self.awaited |= full;
        full
    }

    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Whether it is empty, and somebody waits for that; tells so once.
    pub(super) fn has_room_again(&mut self) -> bool {
        self.is_empty() && core::mem::take(&mut self.awaited)
    }

    /// The next packet.
    pub(super) fn next(&mut self) -> Option<Transmit<'_>> {
        let (range, offload) = self.packets.pop_front()?;
        Some(Transmit { header: self.octets.get(range)?, payload: [&[], &[]], offload })
    }

    /// Uses the memory again, once every packet is taken.
    pub(super) fn reuse(&mut self) {
        if self.packets.is_empty() && !self.octets.is_empty() {
            self.octets.clear();
            self.octets.shrink_to(KEPT);
        }
    }
}
