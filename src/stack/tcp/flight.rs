//! Segments in flight: the scoreboard of SACK (RFC 2018, RFC 6675) and the loss detection of RACK (RFC 8985).
//!
//! Every segment sent and not cumulatively acknowledged has a record, in sequence order without gaps. RACK judges by time of transmission: when a
//! segment that was sent later is known to have arrived, one sent earlier by more than the reordering window is lost, retransmissions
//! included. Without SACK, three duplicate ACKs condemn the first segment (RFC 5681 3.2) and a partial ACK the next (RFC 6582 3.2).
//!
//! SACKed octets stay in the send buffer until they are cumulatively acknowledged: the receiver may renege (RFC 2018 8).

use super::rtt::Rtt;
use crate::time::{Duration, Instant};
use crate::wire::SeqNumber;
use crate::wire::tcp::SackBlocks;
use std::collections::VecDeque;

/// Records of one flow; no new segment is sent beyond. Bounds memory and the cost of a SACK (CVE-2019-11478).
pub(super) const MAX_RECORDS: usize = 2_048;
/// Records whose memory a block keeps while it has nothing in flight: half a kilobyte.
const KEPT_RECORDS: usize = 16;
/// RFC 5681 3.2, RFC 6675 2: DupThresh.
const DUP_THRESH: u32 = 3;

/// One segment in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) start: SeqNumber,
    /// Sequence space: octets of text, and one for FIN.
    pub(super) len: u32,
    sent_at: Instant,
    sacked: bool,
    lost: bool,
    retransmitted: bool,
}

impl Sent {
    fn end(&self) -> SeqNumber {
        self.start + self.len
    }
}

/// What an acknowledgement has brought.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Acked {
    /// Octets newly acknowledged, cumulatively or selectively.
    pub(super) octets: u32,
    /// A round-trip time, when a segment sent once was acknowledged.
    pub(super) rtt: Option<Duration>,
}

/// RACK's view: the segment sent last of those known to have arrived (RFC 8985 5.2).
#[derive(Clone, Copy, Debug)]
struct Rack {
    sent_at: Instant,
    end: SeqNumber,
    rtt: Duration,
}

/// Segments in flight and what is known of them.
#[derive(Debug, Default)]
pub(super) struct Flight {
    records: VecDeque<Sent>,
    octets: u32,
    sacked: u32,
    lost: u32,
    rack: Option<Rack>,
    /// The highest sequence number known to have arrived: below it an original arriving late is reordering.
    fack: Option<SeqNumber>,
    reordering_seen: bool,
    dup_acks: u32,
}

impl Flight {
    /// An empty flight with the memory of this one, for another connection.
    pub(super) fn reset(self, reordering_seen: bool) -> Flight {
        let mut records = self.records;
        records.clear();
        Flight { records, reordering_seen, ..Flight::default() }
    }

    /// Whether the path is known to reorder; all else that is known is of segments in flight.
    pub(super) fn reordering_seen(&self) -> bool {
        self.reordering_seen
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.records.len() >= MAX_RECORDS
    }

    /// Octets believed to be on the way: neither acknowledged, SACKed, nor lost (RFC 6675 4, "pipe").
    pub(super) fn pipe(&self) -> u32 {
        self.octets - self.sacked - self.lost
    }

    /// Octets between SND.UNA and SND.NXT.
    pub(super) fn outstanding(&self) -> u32 {
        self.octets
    }

    /// Whether anything waits to be retransmitted.
    pub(super) fn has_lost(&self) -> bool {
        self.lost > 0
    }

    /// Sequence space of the oldest segment; 0 when nothing is in flight.
    pub(super) fn first_len(&self) -> u32 {
        self.records.front().map_or(0, |sent| sent.len)
    }

    /// A new segment has been sent.
    pub(super) fn sent(&mut self, start: SeqNumber, len: u32, now: Instant) {
        self.octets += len;
        self.records.push_back(Sent {
            start,
            len,
            sent_at: now,
            sacked: false,
            lost: false,
            retransmitted: false,
        });
    }

    /// The first lost segment, at most `limit` octets of it; it counts as on the way again.
    pub(super) fn retransmit(&mut self, limit: u32, now: Instant) -> Option<Sent> {
        if self.lost == 0 {
            return None;
        }
        let index = self.records.iter().position(|sent| sent.lost)?;
        Some(self.send_again(index, limit, now))
    }

    /// The last segment, for a tail loss probe (RFC 8985 7.3); `None` when it was SACKed.
    pub(super) fn probe(&mut self, limit: u32, now: Instant) -> Option<Sent> {
        let index = self.records.len().checked_sub(1).filter(|index| !self.records[*index].sacked)?;
        let last = self.records[index];
        if last.len > limit {
            self.split(index, last.end() - limit);
            return Some(self.send_again(index + 1, limit, now));
        }
        Some(self.send_again(index, limit, now))
    }

    fn send_again(&mut self, index: usize, limit: u32, now: Instant) -> Sent {
        if self.records[index].len > limit {
            let at = self.records[index].start + limit;
            self.split(index, at);
        }
        let sent = &mut self.records[index];
        if sent.lost {
            self.lost -= sent.len;
        }
        sent.lost = false;
        sent.retransmitted = true;
        sent.sent_at = now;
        *sent
    }

    /// Cuts a record in two at `at`, which lies inside it.
    fn split(&mut self, index: usize, at: SeqNumber) {
        let sent = &mut self.records[index];
        let tail = Sent { start: at, len: sent.end().distance_from(at), ..*sent };
        sent.len -= tail.len;
        self.records.insert(index + 1, tail);
    }

    /// Takes a cumulative acknowledgement up to `una` and SACK blocks into account. `una` and `nxt` are SND.UNA (after the
    /// acknowledgement) and SND.NXT; blocks outside are ignored.
    pub(super) fn acknowledge(
        &mut self,
        una: SeqNumber,
        nxt: SeqNumber,
        blocks: &SackBlocks,
        now: Instant,
    ) -> Acked {
        let mut acked = Acked::default();
        let mut ambiguous = false;
        while let Some(sent) = self.records.front().copied() {
            if sent.end().le(una) {
                self.records.pop_front();
                self.octets -= sent.len;
                ambiguous |= sent.retransmitted;
                self.arrived(&sent, &mut acked, now);
                if sent.sacked {
                    self.sacked -= sent.len;
                }
                if sent.lost {
                    self.lost -= sent.len;
                }
            } else if sent.start.lt(una) {
                self.split(0, una);
            } else {
                break;
            }
        }
        if ambiguous {
            // What lay behind a hole that a retransmission has filled was waiting there: its time is no round trip (Karn, RFC 6298 3).
            acked.rtt = None;
        }
        for &(left, right) in blocks.as_slice() {
            if left.lt(right) && left.ge(una) && right.le(nxt) && left.lt(nxt) {
                self.sack(left, right, &mut acked, now);
            }
        }
        if acked.octets > 0 {
            self.dup_acks = 0;
        }
        acked
    }

    fn sack(&mut self, left: SeqNumber, right: SeqNumber, acked: &mut Acked, now: Instant) {
        let mut index = self.records.partition_point(|sent| sent.end().le(left));
        while let Some(sent) = self.records.get(index).copied() {
            if sent.start.ge(right) {
                return;
            }
            if sent.sacked {
                index += 1;
            } else if sent.start.lt(left) && !self.is_full() {
                self.split(index, left);
                index += 1;
            } else if sent.end().gt(right) && !self.is_full() {
                self.split(index, right);
            } else if sent.start.ge(left) && sent.end().le(right) {
                self.records[index].sacked = true;
                self.sacked += sent.len;
                if sent.lost {
                    self.records[index].lost = false;
                    self.lost -= sent.len;
                }
                self.arrived(&sent, acked, now);
                index += 1;
            } else {
                index += 1;
            }
        }
    }

    /// A segment is known to have arrived: RFC 8985 6.2, steps 1 to 3.
    fn arrived(&mut self, sent: &Sent, acked: &mut Acked, now: Instant) {
        if sent.sacked {
            return;
        }
        acked.octets += sent.len;
        let rtt = now.since(sent.sent_at);
        if !sent.retransmitted {
            acked.rtt = Some(acked.rtt.map_or(rtt, |least| least.min(rtt)));
            if self.fack.is_some_and(|fack| sent.end().lt(fack)) {
                self.reordering_seen = true;
            }
        }
        self.fack = Some(self.fack.map_or(sent.end(), |fack| fack.max(sent.end())));
        // An acknowledgement of a retransmission that came too soon is for the original (RFC 8985 6.2, step 2).
        let spurious = sent.retransmitted && self.rack.is_some_and(|rack| rtt < rack.rtt / 2);
        let later =
            self.rack.is_none_or(|rack| sent_after((sent.sent_at, sent.end()), (rack.sent_at, rack.end)));
        if later && !spurious {
            self.rack = Some(Rack { sent_at: sent.sent_at, end: sent.end(), rtt });
        }
    }

    /// A duplicate acknowledgement without news; `true` when it is the third (RFC 5681 3.2): the first segment is then lost.
    pub(super) fn duplicate(&mut self) -> bool {
        self.dup_acks += 1;
        self.dup_acks == DUP_THRESH && self.lose_first()
    }

    /// Condemns the first segment; `true` unless it is lost, SACKed or absent.
    pub(super) fn lose_first(&mut self) -> bool {
        match self.records.front_mut() {
            Some(sent) if !sent.sacked && !sent.lost => {
                sent.lost = true;
                self.lost += sent.len;
                true
            }
            Some(_) | None => false,
        }
    }

    /// Condemns what RACK says is lost (RFC 8985 6.2, step 5). Gives whether anything newly was, and when to look again.
    pub(super) fn detect(&mut self, rtt: &Rtt, recovering: bool, now: Instant) -> (bool, Option<Instant>) {
        // Nothing arrived ahead of a hole: the common case costs nothing.
        if self.sacked == 0 {
            return (false, None);
        }
        let Some(rack) = self.rack else { return (false, None) };
        // RFC 8985 6.2, step 4: no waiting when no reordering was seen and the loss is plain.
        let plain = !self.reordering_seen && (recovering || self.sacked_segments() >= DUP_THRESH);
        let window = if plain { Duration::ZERO } else { (rtt.min_rtt() / 4).max(Duration::from_millis(1)) };
        let mut found = false;
        let mut again: Option<Instant> = None;
        for sent in &mut self.records {
            if sent.sacked || sent.lost || !sent_after((rack.sent_at, rack.end), (sent.sent_at, sent.end())) {
                continue;
            }
            let deadline = sent.sent_at + rack.rtt + window;
            if deadline <= now {
                sent.lost = true;
                self.lost += sent.len;
                found = true;
            } else {
                again = Some(again.map_or(deadline, |earlier| earlier.max(deadline)));
            }
        }
        (found, again)
    }

    fn sacked_segments(&self) -> u32 {
        self.records.iter().filter(|sent| sent.sacked).take(DUP_THRESH as usize).count() as u32
    }

    /// The retransmission timer has run out: everything is lost, and what SACK said is forgotten (RFC 2018 8).
    pub(super) fn lose_all(&mut self) {
        for sent in &mut self.records {
            sent.lost = true;
            sent.sacked = false;
        }
        self.lost = self.octets;
        self.sacked = 0;
        self.dup_acks = 0;
    }

    /// Gives back the memory of a large flight that is over; that of a small one stays, so that a dialogue allocates nothing.
    pub(super) fn release_if_empty(&mut self) {
        if self.records.is_empty() && self.records.capacity() > KEPT_RECORDS {
            self.records = VecDeque::new();
        }
    }
}

/// RFC 8985 6.2: sent later, or at the same time further right.
fn sent_after(a: (Instant, SeqNumber), b: (Instant, SeqNumber)) -> bool {
    a.0 > b.0 || (a.0 == b.0 && a.1.gt(b.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000;

    fn at(ms: u64) -> Instant {
        Instant::from_micros(ms * MS)
    }

    fn rtt() -> Rtt {
        let mut rtt = Rtt::new(Duration::from_secs(1), Duration::from_millis(200), Duration::from_secs(60));
        rtt.sample(Duration::from_millis(10));
        rtt
    }

    fn flight(segments: u32) -> Flight {
        let mut flight = Flight::default();
        for n in 0..segments {
            flight.sent(SeqNumber(n * 100), 100, at(0));
        }
        flight
    }

    fn blocks(ranges: &[(u32, u32)]) -> SackBlocks {
        let mut blocks = SackBlocks::default();
        ranges.iter().for_each(|(left, right)| blocks.push(SeqNumber(*left), SeqNumber(*right)));
        blocks
    }

    #[test]
    fn three_segments_sacked_behind_a_hole_condemn_it() {
        let mut flight = flight(5);
        flight.acknowledge(SeqNumber(0), SeqNumber(500), &blocks(&[(100, 200)]), at(10));
        let (found, again) = flight.detect(&rtt(), false, at(10));
        assert!(
            !found && again == Some(at(10) + Duration::from_micros(2_500)),
            "one may be reordering: {again:?}"
        );
        flight.acknowledge(SeqNumber(0), SeqNumber(500), &blocks(&[(100, 400)]), at(10));
        assert_eq!(flight.detect(&rtt(), false, at(10)), (true, None));
        let sent = flight.retransmit(1_000, at(11)).expect("the hole");
        assert_eq!((sent.start, sent.len), (SeqNumber(0), 100));
        assert!(flight.retransmit(1_000, at(11)).is_none());
        assert_eq!(flight.pipe(), 200);
    }

    #[test]
    fn a_lost_retransmission_is_found_by_time() {
        let mut flight = flight(6);
        flight.acknowledge(SeqNumber(0), SeqNumber(600), &blocks(&[(100, 400)]), at(10));
        flight.detect(&rtt(), false, at(10));
        flight.retransmit(1_000, at(11)).expect("the hole");
        flight.sent(SeqNumber(600), 100, at(12));
        // What was sent after the retransmission arrives, the retransmission does not.
        flight.acknowledge(SeqNumber(0), SeqNumber(700), &blocks(&[(100, 700)]), at(25));
        let (found, _) = flight.detect(&rtt(), true, at(25));
        assert!(found);
        assert_eq!(flight.retransmit(1_000, at(25)).expect("again").start, SeqNumber(0));
    }

    /// conformance 34
    #[test]
    fn three_duplicates_condemn_the_first_segment_once() {
        let mut flight = flight(3);
        assert!(!flight.duplicate() && !flight.duplicate());
        assert!(flight.duplicate());
        assert!(!flight.duplicate());
        assert_eq!(flight.retransmit(50, at(5)).expect("cut to the limit").len, 50);
        assert_eq!(flight.retransmit(50, at(5)).expect("the rest").start, SeqNumber(50));
    }

    /// conformance 31: the receiver may renege.
    #[test]
    fn a_time_out_forgets_what_was_sacked() {
        let mut flight = flight(3);
        flight.acknowledge(SeqNumber(0), SeqNumber(300), &blocks(&[(100, 300)]), at(10));
        flight.lose_all();
        assert_eq!((flight.pipe(), flight.outstanding()), (0, 300));
        let again: Vec<u32> =
            std::iter::from_fn(|| flight.retransmit(1_000, at(20))).map(|sent| sent.start.0).collect();
        assert_eq!(again, [0, 100, 200]);
    }

    #[test]
    fn blocks_that_make_no_sense_are_ignored() {
        let mut flight = flight(3);
        let acked = flight.acknowledge(
            SeqNumber(0),
            SeqNumber(300),
            &blocks(&[(200, 100), (250, 900), (u32::MAX - 5, 50), (7, 7)]),
            at(10),
        );
        assert_eq!(acked.octets, 0);
        assert_eq!(flight.pipe(), 300);
    }

    proptest! {
        /// Against a model that knows of every octet whether it was acknowledged.
        #[test]
        fn the_scoreboard_agrees_with_a_naive_model(base: u32, steps in proptest::collection::vec((0u8..5, 0u32..1_200, 1u32..400), 1..60)) {
            let mut flight = Flight::default();
            let origin = SeqNumber(base);
            let (mut una, mut nxt) = (0u32, 0u32);
            let mut sacked = std::collections::BTreeSet::new();
            let mut now = 0;
            for (kind, a, b) in steps {
                now += 1;
                match kind {
                    0 => { flight.sent(origin + nxt, b, at(now)); nxt += b; }
                    1 => {
                        una = una.max(a.min(nxt));
                        flight.acknowledge(origin + una, origin + nxt, &SackBlocks::default(), at(now));
                    }
                    2 => {
                        let (left, right) = (a, a + b);
                        let mut one = SackBlocks::default();
                        one.push(origin + left, origin + right);
                        flight.acknowledge(origin + una, origin + nxt, &one, at(now));
                        if left >= una && right <= nxt { sacked.extend(left..right); }
                    }
                    3 => { flight.detect(&rtt(), true, at(now)); }
                    _ => { flight.retransmit(b, at(now)); }
                }
                sacked.retain(|octet| *octet >= una);
                prop_assert_eq!(flight.outstanding(), nxt - una);
                prop_assert_eq!(flight.sacked as usize, sacked.len());
                let lost: u32 = flight.records.iter().filter(|sent| sent.lost).map(|sent| sent.len).sum();
                prop_assert_eq!(flight.lost, lost);
                prop_assert!(flight.records.iter().all(|sent| !(sent.lost && sent.sacked) && sent.len > 0));
                let contiguous = flight.records.iter().zip(flight.records.iter().skip(1)).all(|(a, b)| a.end() == b.start);
                prop_assert!(contiguous);
                prop_assert!(flight.records.front().is_none_or(|first| first.start == origin + una));
            }
        }
    }
}
