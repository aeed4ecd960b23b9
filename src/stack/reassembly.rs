//! Fragments put together (RFC 791 3.2, RFC 8200 4.5), in any order, within bounds.
//!
//! A datagram under reassembly is known by source, destination, protocol and identification. Its octets are collected in one buffer that
//! grows to where the last fragment ends. A fragment that overlaps another in anything but being its exact copy condemns the whole
//! datagram (RFC 5722 for IPv6; the same is safe for IPv4, where only attackers overlap). Octets and datagrams are bounded: the oldest
//! gives way. A datagram that is not complete in time is dropped, with an ICMP error if its first fragment had come (RFC 1122 3.3.2).

use super::control::ControlQueue;
use super::{DropReason, Stats};
use crate::flow::{FlowId, FlowTable, LruList, TimerWheel};
use crate::rng::KeyedHash;
use crate::time::{Duration, Instant};
use crate::wire::ip::{Fragment, IpHeader, IpPacket};
use core::net::IpAddr;

/// Fragments of one datagram: 65,535 octets in the smallest pieces that make sense.
const MAX_FRAGMENTS: usize = 128;
/// The largest upper layer.
const MAX_DATAGRAM: usize = 65_535;
/// Octets of the first fragment that an error quotes: header and more than the 8 octets asked for.
const QUOTED: usize = 128;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    id: u32,
}

#[derive(Debug)]
struct Partial {
    octets: Vec<u8>,
    /// Filled stretches `[start, end)`, in order; never touching ones merged, so that an exact copy can be told.
    filled: Vec<(u32, u32)>,
    /// Length of the upper layer, once the last fragment has come.
    whole: Option<u32>,
    hop_limit: u8,
    /// Front of the first fragment.
    first: Vec<u8>,
    /// An overlap was seen: the rest of it is swallowed.
    condemned: bool,
    deadline: Instant,
}

/// All datagrams under reassembly.
#[derive(Debug)]
pub(super) struct Reassembler {
    table: FlowTable<Key, Partial>,
    timers: TimerWheel,
    order: LruList,
    octets: usize,
    most_octets: usize,
    timeout: Duration,
}

impl Reassembler {
    pub(super) fn new(entries: usize, octets: usize, timeout: Duration, hash: KeyedHash) -> Reassembler {
        Reassembler {
            table: FlowTable::new(entries, hash),
            timers: TimerWheel::new(),
            order: LruList::new(),
            octets: 0,
            most_octets: octets,
            timeout,
        }
    }

    /// Takes a fragment; gives the whole packet, unfragmented, when it was the last one missing.
    pub(super) fn handle_fragment(
        &mut self,
        packet: &IpPacket<'_>,
        fragment: Fragment,
        now: Instant,
    ) -> Result<Option<Vec<u8>>, DropReason> {
        let start = fragment.offset as usize;
        let end = start + packet.payload.len();
        // RFC 8200 4.5: pieces but the last hold a multiple of 8 octets; nothing exceeds a packet.
        let ragged = fragment.more && !packet.payload.len().is_multiple_of(8);
        if packet.payload.is_empty() || ragged || end > MAX_DATAGRAM - packet.header.len().min(60) {
            return Err(DropReason::BadFragment);
        }
        // RFC 7112 and RFC 1858: the first piece shows what upper layer it is.
        if start == 0 && packet.payload.len() < 8 {
            return Err(DropReason::BadFragment);
        }
        let protocol = if packet.src.is_ipv6() { 0 } else { packet.protocol };
        let key = Key { src: packet.src, dst: packet.dst, protocol, id: fragment.id };
        let id = match self.table.find(&key) {
            Some(id) => id,
            None => self.begin(key, packet.hop_limit, now)?,
        };
        if !self.store(id, packet, fragment, start as u32, end as u32) {
            return Err(DropReason::BadFragment);
        }
        self.make_room(id);
        let complete = self.table.get(id).is_some_and(Partial::is_complete);
        if !complete {
            return Ok(None);
        }
        let Some((key, partial)) = self.take(id) else { return Ok(None) };
        Ok(Some(whole_packet(key, packet.protocol, &partial)))
    }

    fn begin(&mut self, key: Key, hop_limit: u8, now: Instant) -> Result<FlowId, DropReason> {
        if self.table.is_full()
            && let Some(oldest) = self.order.oldest().and_then(|index| self.table.id_at(index))
        {
            self.take(oldest);
        }
        let deadline = now + self.timeout;
        let partial = Partial {
            octets: Vec::new(),
            filled: Vec::new(),
            whole: None,
            hop_limit,
            first: Vec::new(),
            condemned: false,
            deadline,
        };
        let id = self.table.insert(key, partial).map_err(|_| DropReason::Full)?;
        self.order.touch(id.index());
        self.timers.set(id.index(), deadline);
        Ok(id)
    }

    /// Stores a piece; `false` when it does not fit what is there, which condemns the datagram.
    fn store(&mut self, id: FlowId, packet: &IpPacket<'_>, fragment: Fragment, start: u32, end: u32) -> bool {
        let Some(partial) = self.table.get_mut(id) else { return false };
        if partial.condemned {
            return false;
        }
        let before = partial.octets.len();
        let accepted = partial.insert(packet.payload, fragment.more, start, end);
        if accepted && start == 0 && partial.first.is_empty() {
            partial.first = packet.header.iter().chain(packet.payload).take(QUOTED).copied().collect();
        }
        if !accepted {
            // The entry stays until its time is up, so that late pieces are not taken for a new datagram.
            partial.condemned = true;
            partial.octets = Vec::new();
            partial.filled = Vec::new();
        }
        self.octets = self.octets - before + partial.octets.len();
        accepted
    }

    /// The oldest datagrams give way until the octets fit; the one just touched last.
    fn make_room(&mut self, keep: FlowId) {
        while self.octets > self.most_octets {
            let Some(oldest) = self.order.oldest().and_then(|index| self.table.id_at(index)) else { return };
            self.take(oldest);
            if oldest == keep {
                return;
            }
        }
    }

    fn take(&mut self, id: FlowId) -> Option<(Key, Partial)> {
        let (key, partial) = self.table.remove(id)?;
        self.timers.cancel(id.index());
        self.order.remove(id.index());
        self.octets -= partial.octets.len();
        Some((key, partial))
    }

    /// Drops what is not complete in time.
    pub(super) fn handle_timeout(&mut self, control: &mut ControlQueue, stats: &mut Stats, now: Instant) {
        while let Some(index) = self.timers.pop(now) {
            let Some(id) = self.table.id_at(index) else { continue };
            if self.table.get(id).is_some_and(|partial| partial.deadline > now) {
                continue;
            }
            let Some((_, partial)) = self.take(id) else { continue };
            stats.drops[DropReason::BadFragment as usize] += 1;
            if !partial.first.is_empty() && !partial.condemned {
                control.reassembly_exceeded(&partial.first, stats, now);
            }
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next_deadline()
    }
}

impl Partial {
    fn insert(&mut self, payload: &[u8], more: bool, start: u32, end: u32) -> bool {
        if !more && self.whole.is_some_and(|whole| whole != end) {
            return false;
        }
        if self.whole.is_some_and(|whole| end > whole)
            || (!more && self.filled.last().is_some_and(|(_, last)| *last > end))
        {
            return false;
        }
        let at = self.filled.partition_point(|(filled, _)| *filled < start);
        if self.filled.get(at) == Some(&(start, end)) {
            // An exact copy, which networks make; a different text in the same place is an attack.
            return self.octets.get(start as usize..end as usize) == Some(payload);
        }
        let overlaps_next = self.filled.get(at).is_some_and(|(next, _)| *next < end);
        let overlaps_last = at
            .checked_sub(1)
            .and_then(|before| self.filled.get(before))
            .is_some_and(|(_, last)| *last > start);
        if overlaps_next || overlaps_last || self.filled.len() >= MAX_FRAGMENTS {
            return false;
        }
        if !more {
            self.whole = Some(end);
        }
        if self.octets.len() < end as usize {
            self.octets.resize(end as usize, 0);
        }
        self.octets[start as usize..end as usize].copy_from_slice(payload);
        self.filled.insert(at, (start, end));
        true
    }

    fn is_complete(&self) -> bool {
        let mut next = 0;
        let contiguous = self.filled.iter().all(|(start, end)| core::mem::replace(&mut next, *end) == *start);
        contiguous && self.whole == Some(next)
    }
}

/// The datagram as one packet.
fn whole_packet(key: Key, protocol: u8, partial: &Partial) -> Vec<u8> {
    let header = IpHeader {
        src: key.src,
        dst: key.dst,
        protocol,
        hop_limit: partial.hop_limit,
        id: 0,
        dont_fragment: false,
        fragment: None,
    };
    let mut packet = vec![0; header.header_len()];
    header.emit(&mut packet, partial.octets.len());
    packet.extend_from_slice(&partial.octets);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use crate::wire::ip::protocol;
    use proptest::prelude::*;

    fn reassembler(octets: usize) -> Reassembler {
        Reassembler::new(4, octets, Duration::from_secs(60), Rng::new([1; 16]).keyed_hash())
    }

    fn fragment(v6: bool, id: u32, offset: u32, more: bool, payload: &[u8]) -> Vec<u8> {
        let (src, dst) = if v6 { ("2001:db8::1", "2001:db8::2") } else { ("192.0.2.1", "198.51.100.2") };
        let header = IpHeader {
            src: src.parse().expect("address"),
            dst: dst.parse().expect("address"),
            protocol: protocol::UDP,
            hop_limit: 64,
            id: id as u16,
            dont_fragment: false,
            fragment: Some(Fragment { id, offset, more }),
        };
        let mut octets = vec![0; header.header_len()];
        header.emit(&mut octets, payload.len());
        octets.extend_from_slice(payload);
        octets
    }

    fn give(
        reassembler: &mut Reassembler,
        octets: &[u8],
        now: Instant,
    ) -> Result<Option<Vec<u8>>, DropReason> {
        let packet = IpPacket::parse(octets).expect("valid");
        reassembler.handle_fragment(&packet, packet.fragment.expect("a fragment"), now)
    }

    /// conformance 46
    #[test]
    fn an_overlap_condemns_the_datagram_and_an_exact_copy_does_not() {
        for v6 in [false, true] {
            let mut reassembler = reassembler(1 << 20);
            let now = Instant::ZERO;
            assert_eq!(give(&mut reassembler, &fragment(v6, 1, 0, true, &[1; 16]), now), Ok(None));
            assert_eq!(give(&mut reassembler, &fragment(v6, 1, 0, true, &[1; 16]), now), Ok(None));
            assert_eq!(
                give(&mut reassembler, &fragment(v6, 1, 8, true, &[2; 16]), now),
                Err(DropReason::BadFragment)
            );
            assert_eq!(
                give(&mut reassembler, &fragment(v6, 1, 16, false, &[3; 4]), now),
                Err(DropReason::BadFragment),
                "swallowed"
            );
        }
    }

    #[test]
    fn pieces_that_cannot_be_are_refused() {
        let mut reassembler = reassembler(1 << 20);
        let now = Instant::ZERO;
        for bad in [
            fragment(true, 1, 0, true, &[1; 15]),
            fragment(true, 1, 0, true, &[]),
            fragment(true, 1, 65_528, false, &[1; 100]),
            fragment(false, 1, 0, false, &[1; 4]).tap(|octets| {
                octets[6] = 0x20;
                octets[10..12].fill(0);
                let sum = crate::wire::checksum::Checksum::new().with(&octets[..20]).finish();
                octets[10..12].copy_from_slice(&sum.to_be_bytes());
            }),
        ] {
            assert_eq!(give(&mut reassembler, &bad, now), Err(DropReason::BadFragment));
        }
    }

    trait Tap: Sized {
        fn tap(self, change: impl FnOnce(&mut Self)) -> Self;
    }

    impl Tap for Vec<u8> {
        fn tap(mut self, change: impl FnOnce(&mut Self)) -> Self {
            change(&mut self);
            self
        }
    }

    /// conformance 46
    #[test]
    fn memory_is_bounded_and_the_oldest_gives_way() {
        let mut reassembler = reassembler(4_000);
        for id in 0..100 {
            let _outcome = give(&mut reassembler, &fragment(false, id, 0, true, &[1; 1_000]), Instant::ZERO);
            assert!(reassembler.octets <= 4_000 && reassembler.table.len() <= 4);
        }
        // The newest is still there.
        let whole = give(&mut reassembler, &fragment(false, 99, 1_000, false, &[2; 8]), Instant::ZERO);
        assert!(matches!(whole, Ok(Some(_))));
        let far = give(&mut reassembler, &fragment(false, 7, 60_000, true, &[1; 1_000]), Instant::ZERO);
        assert_eq!(far, Ok(None));
        assert!(reassembler.octets <= 4_000);
    }

    /// conformance 46
    #[test]
    fn what_is_not_complete_in_time_is_dropped_and_told() {
        let mut reassembler = reassembler(1 << 20);
        let (mut control, mut stats) = (ControlQueue::new(10), Stats::default());
        give(&mut reassembler, &fragment(false, 1, 0, true, &[1; 16]), Instant::ZERO).expect("taken");
        give(&mut reassembler, &fragment(false, 2, 16, false, &[1; 16]), Instant::ZERO).expect("taken");
        reassembler.handle_timeout(&mut control, &mut stats, Instant::from_millis(59_900));
        assert_eq!(reassembler.table.len(), 2);
        reassembler.handle_timeout(&mut control, &mut stats, Instant::from_millis(60_001));
        assert_eq!(reassembler.table.len(), 0);
        assert_eq!(reassembler.octets, 0);
        assert!(control.pop().is_some(), "the one whose first piece had come");
        assert!(control.pop().is_none());
    }

    proptest! {
        /// conformance 46: any order, with copies.
        #[test]
        fn pieces_in_any_order_make_the_datagram(v6: bool, payload in proptest::collection::vec(any::<u8>(), 24..4_000), cuts in proptest::collection::btree_set(1usize..500, 0..20), order in any::<u64>(), copies in proptest::collection::vec(any::<prop::sample::Index>(), 0..5)) {
            let mut edges: Vec<usize> = cuts.into_iter().map(|cut| cut * 8).filter(|edge| *edge < payload.len() && *edge >= 8).collect();
            edges.insert(0, 0);
            edges.push(payload.len());
            edges.dedup();
            prop_assume!(edges.len() > 2);
            let mut pieces: Vec<Vec<u8>> = edges.windows(2).map(|edge| fragment(v6, 9, edge[0] as u32, edge[1] < payload.len(), &payload[edge[0]..edge[1]])).collect();
            let mut rng = Rng::new([order as u8; 16]);
            for index in (1..pieces.len()).rev() {
                pieces.swap(index, rng.next_u32() as usize % (index + 1));
            }
            let last = pieces.pop().expect("at least two");
            for copy in copies {
                let copied = copy.get(&pieces).clone();
                pieces.push(copied);
            }
            let mut reassembler = reassembler(1 << 20);
            for piece in &pieces {
                prop_assert_eq!(give(&mut reassembler, piece, Instant::ZERO), Ok(None));
            }
            let whole = give(&mut reassembler, &last, Instant::ZERO).expect("valid").expect("complete");
            let packet = IpPacket::parse(&whole).expect("valid");
            prop_assert_eq!(packet.payload, &payload[..]);
            prop_assert_eq!(packet.fragment, None);
            prop_assert_eq!(reassembler.octets, 0);
        }
    }
}
