//! The receiving half of a flow: what the app sends.
//!
//! Octets in order with nothing buffered before them are not stored at all: they are offered to the caller out of the packet, and only
//! what he does not take is kept. Octets out of order are written into the ring at the place where they belong, ahead of what is stored;
//! [`Ranges`] remembers which places are filled. The ring ends at the right edge of the largest window ever offered, so there is room
//! for everything that the app may send, memory permitting.
//!
//! # The window
//!
//! The app is on this machine: what it is offered need not cover the path to the target, whose kernels do that, but only the time until
//! the loop turns. More would be stored here, twice copied, whenever the reader is slower than the app, and stand between what the
//! app writes and what leaves. So the window follows what the reader takes ([`Pace`]), with the square root: what a flow gets of a busy device
//! is in proportion to its window, and were the window in proportion to what it got, who has little would keep little.

use super::ring::{Pool, Ring};
use crate::time::{Duration, Instant};
use crate::wire::SeqNumber;
use crate::wire::tcp::SackBlocks;

/// Separate stretches of out-of-order octets that one flow may have; a segment that would make one more is dropped
/// and sent again by the app. Keeps the cost of a segment small whatever comes (CVE-2018-5390).
pub(super) const MAX_RANGES: usize = 32;

/// Stretches of sequence space, in order, neither touching nor overlapping.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    ranges: Vec<(SeqNumber, SeqNumber)>,
    /// Where the most recent segment was stored: its stretch is the first SACK block (RFC 2018 4).
    latest: SeqNumber,
}

impl Ranges {
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Adds `[left, right)`; `false` when it would be one stretch too many.
    pub(super) fn insert(&mut self, left: SeqNumber, right: SeqNumber) -> bool {
        // Stretches that touch or overlap the new one are contiguous in the list.
        let first = self.ranges.partition_point(|(_, end)| end.lt(left));
        let last = self.ranges.partition_point(|(start, _)| start.le(right));
        if first == last {
            if self.ranges.len() >= MAX_RANGES {
                return false;
            }
            self.ranges.insert(first, (left, right));
        } else {
            let merged = (self.ranges[first].0.min(left), self.ranges[last - 1].1.max(right));
            self.ranges.splice(first..last, [merged]);
        }
        self.latest = left;
        true
    }

    /// Takes the stretch that begins at or before `nxt` out, if there is one: its end.
    fn take_contiguous(&mut self, nxt: SeqNumber) -> Option<SeqNumber> {
        let (start, end) = *self.ranges.first()?;
        if start.gt(nxt) {
            return None;
        }
        self.ranges.remove(0);
        Some(end)
    }

    /// Where the last stretch ends.
    fn end(&self) -> Option<SeqNumber> {
        self.ranges.last().map(|(_, end)| *end)
    }

    fn clear(&mut self) {
        self.ranges = Vec::new();
    }

    /// SACK blocks: the most recent first (RFC 2018 4).
    pub(super) fn blocks(&self) -> SackBlocks {
        let mut blocks = SackBlocks::default();
        let recent =
            self.ranges.iter().position(|(start, end)| start.le(self.latest) && self.latest.lt(*end));
        if let Some((left, right)) = recent.and_then(|index| self.ranges.get(index)) {
            blocks.push(*left, *right);
        }
        for (index, (left, right)) in self.ranges.iter().enumerate() {
            if Some(index) != recent {
                blocks.push(*left, *right);
            }
        }
        blocks
    }
}

/// How long the reader is watched before he is judged: longer than a socket takes from one burst of writes to the next.
const WATCHED: Duration = Duration::from_millis(50);
/// Time that the window covers at the reader's rate, many turns of the loop, where that makes it [`BALANCE`]; less at higher rates, more at lower.
const COVERED: Duration = Duration::from_millis(4);
/// Octets.
const BALANCE: u64 = 256 << 10;
/// The unit of a window, and the smallest that a slow reader is judged to need: one super-segment.
const UNIT: u64 = 64 << 10;
/// A window beyond what is allowed: nobody was judged yet.
const UNJUDGED: u8 = u8::MAX;

/// How fast the reader takes what the app sends.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// The window that suits him, in [`UNIT`]s.
    units: u8,
    /// Taken since then; the clock starts with the first of it, so that silence is not held against him.
    taken: u32,
    since: Instant,
}

impl Pace {
    fn new(units: u8) -> Pace {
        Pace { units, taken: 0, since: Instant::ZERO }
    }

    fn took(&mut self, octets: usize, now: Instant) {
        if self.taken == 0 {
            self.since = now;
        }
        self.taken = self.taken.saturating_add(u32::try_from(octets).unwrap_or(u32::MAX));
        let watched = now.since(self.since);
        if watched >= WATCHED {
            let covered = u64::from(self.taken) * COVERED.as_micros() as u64 / watched.as_micros() as u64;
            let units = (covered * BALANCE).isqrt().div_ceil(UNIT);
            self.units = u8::try_from(units).unwrap_or(UNJUDGED).max(1);
            self.taken = 0;
        }
    }

    fn window(self) -> usize {
        match self.units {
            UNJUDGED => usize::MAX,
            units => usize::from(units) * UNIT as usize,
        }
    }
}

/// What became of the text of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Taken {
    /// Offered to the caller: the text from this offset on.
    Offered,
    /// Stored in order; the flag tells whether there was nothing readable before.
    InOrder {
        /// The reader has to be told.
        first: bool,
    },
    /// Stored ahead of a gap.
    OutOfOrder,
    /// No memory, or too many gaps: dropped, to be sent again.
    Dropped,
}

/// Variables and buffer of the receiving half.
#[derive(Debug)]
pub(super) struct Receiver {
    /// RCV.NXT.
    pub(super) nxt: SeqNumber,
    /// The right edge of the window offered: RCV.NXT + RCV.WND. Never moves left (RFC 9293 3.8.6, SHLD-14).
    edge: SeqNumber,
    /// Sequence number of the app's FIN, once seen in or out of order.
    pub(super) fin: Option<SeqNumber>,
    /// Octets offered by the last segment and not yet kept.
    offered: u32,
    /// Octets of text that came in order since the start.
    pub(super) octets: u64,
    limit: usize,
    scale: u8,
    pace: Pace,
    ring: Ring,
    ahead: Ranges,
}

/// The receiving half while nothing is stored, offered or closed.
#[derive(Clone, Copy, Debug)]
pub(super) struct RestingReceiver {
    pub(super) nxt: SeqNumber,
    edge: SeqNumber,
    pub(super) octets: u64,
    limit: u32,
    scale: u8,
    /// [`Pace::units`].
    pace: u8,
}

impl RestingReceiver {
    pub(super) fn wake(&self) -> Receiver {
        let RestingReceiver { nxt, edge, octets, limit, scale, pace } = *self;
        Receiver {
            nxt,
            edge,
            fin: None,
            offered: 0,
            octets,
            limit: limit as usize,
            scale,
            pace: Pace::new(pace),
            ring: Ring::default(),
            ahead: Ranges::default(),
        }
    }
}

impl Receiver {
    /// The half at rest; `None` when anything is stored, offered or closed.
    pub(super) fn rest(&self) -> Option<RestingReceiver> {
        let Receiver { nxt, edge, fin, offered, octets, limit, scale, pace, ring, ahead } = self;
        let quiet = fin.is_none() && *offered == 0 && ring.capacity() == 0 && ahead.is_empty();
        // A window has 30 bits at most (RFC 7323 2.3).
        let limit = u32::try_from(*limit).ok().filter(|_| quiet)?;
        Some(RestingReceiver {
            nxt: *nxt,
            edge: *edge,
            octets: *octets,
            limit,
            scale: *scale,
            pace: pace.units,
        })
    }

    /// The half behind a SYN whose sequence number was `irs`. `scale` is 0 when not negotiated.
    pub(super) fn new(irs: SeqNumber, limit: usize, scale: u8) -> Receiver {
        let nxt = irs + 1;
        // The window field of a SYN-ACK is not scaled (RFC 7323 2.2).
        let edge = nxt + initial_window(limit).into();
        Receiver {
            nxt,
            edge,
            fin: None,
            offered: 0,
            octets: 0,
            limit,
            scale,
            pace: Pace::new(UNJUDGED),
            ring: Ring::default(),
            ahead: Ranges::default(),
        }
    }

    /// RCV.WND.
    pub(super) fn window(&self) -> u32 {
        self.edge.distance_from(self.nxt)
    }

    /// Moves the right edge as far as buffer, reader and `share` allow, unless by a silly amount (RFC 9293 3.8.6.2.2), and gives the window
    /// field. `share`: what one flow should have of the memory of all.
    pub(super) fn advertise(&mut self, mss: u32, share: usize) -> u16 {
        let edge = self.possible_edge(share);
        let gain = edge.distance_from(self.edge);
        if edge.gt(self.edge) && gain >= mss.min(self.target(share) as u32 / 2).max(1 << self.scale) {
            self.edge = edge;
        }
        // The field counts in units of the shift. Rounded down it would take back what was offered before (RFC 7323 2.4), so it is rounded
        // up while there is memory for that.
        let up = self.window().next_multiple_of(1 << self.scale);
        if up as usize <= self.free() {
            self.edge = self.nxt + up;
        }
        u16::try_from(self.window() >> self.scale).unwrap_or(u16::MAX)
    }

    fn free(&self) -> usize {
        self.limit.saturating_sub(self.ring.len())
    }

    /// The buffer that is to be filled at most: the window when nothing is stored.
    fn target(&self, share: usize) -> usize {
        self.limit.min(self.pace.window()).min(share)
    }

    /// The right edge to be offered, less what rounding up may cost until the reader takes something.
    fn possible_edge(&self, share: usize) -> SeqNumber {
        let reserve = if self.scale > 0 { self.limit / 32 } else { 0 };
        let room = self.target(share).saturating_sub(self.ring.len());
        let free = self.free().saturating_sub(reserve).min(room).min(usize::from(u16::MAX) << self.scale);
        self.nxt + free as u32
    }

    /// Octets that are taken from `seq` on: up to the window's edge, and up to FIN once it is known.
    pub(super) fn room_at(&self, seq: SeqNumber) -> u32 {
        let end = self.fin.map_or(self.edge, |fin| fin.min(self.edge));
        if seq.lt(end) { end.distance_from(seq) } else { 0 }
    }

    /// FIN was seen, in or out of order. The first one counts, unless text beyond it has come: then the app contradicts itself.
    pub(super) fn note_fin(&mut self, fin: SeqNumber) {
        if self.fin.is_none() && self.ahead.end().is_none_or(|end| end.le(fin)) {
            self.fin = Some(fin);
        }
    }

    /// Whether the app should be told of a larger window without being asked: it may be waiting for it.
    pub(super) fn update_due(&self, mss: u32, share: usize) -> bool {
        let edge = self.possible_edge(share);
        let half = self.target(share) as u32 / 2;
        edge.gt(self.edge) && self.window() < half && edge.distance_from(self.edge) >= half.min(2 * mss)
    }

    /// Whether FIN has come and everything before it was consumed.
    pub(super) fn finished(&self) -> bool {
        self.offered == 0 && self.ring.len() == 0 && self.fin_in_order()
    }

    /// Whether FIN and everything before it have come.
    pub(super) fn fin_in_order(&self) -> bool {
        self.fin.is_some_and(|fin| self.nxt.gt(fin))
    }

    /// Whether octets ahead of a gap are stored.
    pub(super) fn has_gap(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// SACK blocks to report.
    pub(super) fn sack(&self) -> SackBlocks {
        self.ahead.blocks()
    }

    /// Takes the text of a segment, already cut to the window. `seq` is at or right of RCV.NXT.
    pub(super) fn take(&mut self, seq: SeqNumber, text: &[u8], pool: &mut Pool) -> Taken {
        let len = text.len() as u32;
        let offset = self.ring.len() + seq.distance_from(self.nxt) as usize;
        if seq == self.nxt && self.ring.len() == 0 && self.ahead.is_empty() {
            self.nxt += len;
            self.octets += u64::from(len);
            self.offered = len;
            return Taken::Offered;
        }
        if !self.ring.reserve(offset + text.len(), pool) {
            return Taken::Dropped;
        }
        if seq != self.nxt {
            if !self.ahead.insert(seq, seq + len) {
                self.release_if_empty(pool);
                return Taken::Dropped;
            }
            self.ring.write_at(offset, text);
            return Taken::OutOfOrder;
        }
        let first = self.ring.len() == 0;
        self.ring.write_at(offset, text);
        self.advance(len);
        while let Some(end) = self.ahead.take_contiguous(self.nxt) {
            if end.gt(self.nxt) {
                self.advance(end.distance_from(self.nxt));
            }
        }
        Taken::InOrder { first }
    }

    fn advance(&mut self, octets: u32) {
        self.ring.commit(octets as usize);
        self.nxt += octets;
        self.octets += u64::from(octets);
    }

    /// Counts the FIN once everything before it has come; `true` when it does so here.
    pub(super) fn take_fin(&mut self) -> bool {
        let in_order = self.fin == Some(self.nxt);
        if in_order {
            self.nxt += 1;
            // FIN occupies the place of an octet: the edge must not be left of RCV.NXT.
            self.edge = self.edge.max(self.nxt);
        }
        in_order
    }

    /// Ends an offer: the octets of `rest` were not taken. Without memory they are forgotten as if they had never come; nothing
    /// was acknowledged yet.
    pub(super) fn keep(&mut self, rest: &[u8], pool: &mut Pool, now: Instant) -> bool {
        let rest = &rest[rest.len() - rest.len().min(self.offered as usize)..];
        self.pace.took(self.offered as usize - rest.len(), now);
        self.offered = 0;
        if rest.is_empty() {
            return true;
        }
        let at = self.ring.len();
        if self.ring.reserve(at + rest.len(), pool) {
            self.ring.write_at(at, rest);
            self.ring.commit(rest.len());
            return true;
        }
        let behind_fin = u32::from(self.fin_in_order());
        self.nxt = self.nxt - behind_fin - rest.len() as u32;
        self.octets -= rest.len() as u64;
        self.fin = None;
        false
    }

    /// Whether octets in order wait for the reader.
    pub(super) fn has_unread(&self) -> bool {
        self.ring.len() > 0
    }

    /// Octets in order that wait for the reader.
    pub(super) fn readable(&self) -> (&[u8], &[u8]) {
        self.ring.slices(0, usize::MAX)
    }

    /// The reader has taken `octets`.
    pub(super) fn consume(&mut self, octets: usize, pool: &mut Pool, now: Instant) {
        self.pace.took(octets.min(self.ring.len()), now);
        self.ring.consume(octets);
        self.release_if_empty(pool);
    }

    fn release_if_empty(&mut self, pool: &mut Pool) {
        if self.ring.len() == 0 && self.ahead.is_empty() {
            self.ring.release(pool);
        }
    }

    /// Gives all memory back.
    pub(super) fn release(&mut self, pool: &mut Pool) {
        self.ahead.clear();
        self.ring.release(pool);
    }
}

/// The window of a SYN-ACK: what an unscaled field can say.
pub(super) fn initial_window(limit: usize) -> u16 {
    u16::try_from(limit).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool() -> Pool {
        Pool::new(64 << 20)
    }

    #[test]
    fn the_right_edge_never_moves_left() {
        let mut pool = pool();
        let mut receiver = Receiver::new(SeqNumber(9), 1 << 20, 5);
        receiver.advertise(1460, usize::MAX);
        let edge = receiver.nxt + receiver.window();
        receiver.take(receiver.nxt + 10, &[1; 100], &mut pool);
        receiver.take(receiver.nxt, &[1; 10], &mut pool);
        receiver.advertise(1460, usize::MAX);
        assert!((receiver.nxt + receiver.window()).ge(edge));
        assert_eq!(receiver.window() % 32, 0, "the field says all of it");
    }

    /// RFC 7323 2.4: single octets that nobody reads must not push the edge beyond the buffer.
    #[test]
    fn rounding_up_never_offers_more_than_the_buffer() {
        let mut pool = pool();
        let limit = 100_000;
        let mut receiver = Receiver::new(SeqNumber(9), limit, 7);
        receiver.advertise(1460, usize::MAX);
        let start = receiver.nxt;
        assert_eq!(receiver.take(start, &[1], &mut pool), Taken::Offered);
        receiver.keep(&[1], &mut pool, Instant::ZERO);
        while receiver.window() > 0 {
            assert_ne!(receiver.take(receiver.nxt, &[1], &mut pool), Taken::Dropped);
            receiver.advertise(1460, usize::MAX);
            assert!((receiver.nxt + receiver.window()).distance_from(start) as usize <= limit);
        }
    }

    #[test]
    fn octets_without_memory_are_as_if_they_had_never_come() {
        let mut none = Pool::new(0);
        let mut receiver = Receiver::new(SeqNumber(9), 1 << 20, 5);
        let nxt = receiver.nxt;
        assert_eq!(receiver.take(nxt, b"abcdef", &mut none), Taken::Offered);
        receiver.fin = Some(nxt + 6);
        assert!(receiver.take_fin());
        assert!(!receiver.keep(b"cdef", &mut none, Instant::ZERO));
        assert_eq!(receiver.nxt, nxt + 2);
        assert_eq!(receiver.fin, None);
        assert_eq!(receiver.take(nxt + 9, b"x", &mut none), Taken::Dropped);
    }

    /// Has the reader take `per_ms` octets in each of 1,500 ms; the window that the app sees then, nothing being stored.
    fn window_of(receiver: &mut Receiver, pool: &mut Pool, start: u64, per_ms: usize) -> u32 {
        for ms in 0..1_500 {
            for piece in vec![7; per_ms].chunks(16_000) {
                assert_eq!(receiver.take(receiver.nxt, piece, pool), Taken::Offered);
                let edge = receiver.edge;
                assert!(receiver.keep(&[], pool, Instant::from_millis(start + ms)));
                receiver.advertise(1460, usize::MAX);
                assert!(receiver.edge.ge(edge), "what was offered stays offered");
            }
        }
        receiver.window()
    }

    #[test]
    fn the_window_follows_what_the_reader_takes() {
        let mut pool = pool();
        let mut receiver = Receiver::new(SeqNumber(9), 1 << 20, 5);
        receiver.advertise(1460, usize::MAX);
        assert!(receiver.window() > 900_000, "nobody was judged yet: {}", receiver.window());
        let slow = window_of(&mut receiver, &mut pool, 0, 1_000);
        assert!((60_000..70_000).contains(&slow), "8 Mb/s: {slow}");
        // A minute without anything is not held against anyone.
        let fast = window_of(&mut receiver, &mut pool, 60_000, 1_000_000);
        assert!(fast > 900_000, "8 Gb/s: {fast}");
        let middling = window_of(&mut receiver, &mut pool, 70_000, 20_000);
        assert!((130_000..200_000).contains(&middling), "160 Mb/s: {middling}");
        let rested = receiver.rest().unwrap().wake();
        assert_eq!(rested.pace.window(), receiver.pace.window(), "known again after a rest");
    }

    /// A device that is busy gives each what is in proportion to its window.
    #[test]
    fn windows_of_equal_readers_become_equal() {
        let per_ms = 1_250_000;
        let mut paces: Vec<Pace> = [1, 2, 4, 16, 255].map(Pace::new).into();
        for ms in 0..1_000 {
            let windows: Vec<usize> = paces.iter().map(|pace| pace.window().min(1 << 20)).collect();
            let all: usize = windows.iter().sum();
            for (pace, window) in paces.iter_mut().zip(windows) {
                pace.took(per_ms * window / all, Instant::from_millis(ms));
            }
        }
        let units = || paces.iter().map(|pace| pace.units);
        assert!(units().max() <= units().min().map(|least| least + 1), "{paces:?}");
    }

    #[test]
    fn a_full_pool_makes_the_window_small() {
        let mut receiver = Receiver::new(SeqNumber(9), 1 << 20, 5);
        receiver.edge = receiver.nxt;
        receiver.advertise(1460, 8_192);
        assert_eq!(receiver.window(), 8_192);
    }

    /// conformance 31
    #[test]
    fn the_first_sack_block_is_the_newest() {
        let mut ranges = Ranges::default();
        for start in [10, 50, 30] {
            assert!(ranges.insert(SeqNumber(start), SeqNumber(start + 5)));
        }
        let blocks = ranges.blocks();
        assert_eq!(blocks.as_slice()[0], (SeqNumber(30), SeqNumber(35)));
        assert_eq!(blocks.as_slice().len(), 3);
    }

    /// conformance 16
    #[test]
    fn the_number_of_gaps_is_bounded() {
        let mut ranges = Ranges::default();
        let inserted = (0..1_000).filter(|n| ranges.insert(SeqNumber(n * 10), SeqNumber(n * 10 + 1))).count();
        assert_eq!(inserted, MAX_RANGES);
        assert!(ranges.insert(SeqNumber(1), SeqNumber(2)), "what only widens a stretch is taken");
    }

    proptest! {
        #[test]
        fn ranges_are_a_set(base: u32, inserts in proptest::collection::vec((0u32..300, 1u32..40), 1..40)) {
            let mut ranges = Ranges::default();
            let mut model = std::collections::BTreeSet::new();
            for (start, len) in inserts {
                if ranges.insert(SeqNumber(base) + start, SeqNumber(base) + start + len) {
                    model.extend(start..start + len);
                }
                let ours: Vec<u32> = ranges.ranges.iter().flat_map(|(l, r)| l.distance_from(SeqNumber(base))..r.distance_from(SeqNumber(base))).collect();
                prop_assert!(ours.iter().eq(model.iter()));
            }
        }

        /// conformance 14: any order, any overlap, any duplication.
        #[test]
        fn octets_are_delivered_once_and_in_order(irs: u32, pieces in proptest::collection::vec((0u32..2_000, 1usize..400), 1..80), reads in proptest::collection::vec(0usize..500, 80)) {
            let mut pool = pool();
            let mut receiver = Receiver::new(SeqNumber(irs), 1 << 16, 0);
            let start = receiver.nxt;
            let octet = |at: u32| (at % 251) as u8;
            let mut delivered = 0u32;
            for ((at, len), read) in pieces.into_iter().zip(reads) {
                let seq = start + at;
                let text: Vec<u8> = (at..at + len as u32).map(octet).collect();
                // As input does: cut what was received before.
                let skip = if seq.lt(receiver.nxt) { receiver.nxt.distance_from(seq) as usize } else { 0 };
                let Some(text) = text.get(skip..).filter(|text| !text.is_empty()) else { continue };
                if receiver.take(seq + skip as u32, text, &mut pool) == Taken::Offered {
                    let taken = read.min(text.len());
                    for octets in &text[..taken] {
                        prop_assert_eq!(*octets, octet(delivered));
                        delivered += 1;
                    }
                    prop_assert!(receiver.keep(&text[taken..], &mut pool, Instant::ZERO));
                }
                let (a, b) = receiver.readable();
                let got: Vec<u8> = a.iter().chain(b).copied().take(read).collect();
                for octets in &got {
                    prop_assert_eq!(*octets, octet(delivered));
                    delivered += 1;
                }
                receiver.consume(got.len(), &mut pool, Instant::ZERO);
            }
            let (a, b) = receiver.readable();
            prop_assert_eq!(start + delivered + (a.len() + b.len()) as u32, receiver.nxt);
            receiver.release(&mut pool);
            prop_assert_eq!(pool.used(), 0);
        }
    }
}
