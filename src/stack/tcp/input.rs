//! A segment arrives for a synchronised connection: RFC 9293 3.10.7.4, in its order, with RFC 5961 and RFC 7323 woven in.

use super::recv::Taken;
use super::ring::Pool;
use super::tcb::{Ack, Fin, Forced, LossTimer, Recovery, State, Tcb};
use crate::stack::{Closed, DropReason, Stats, TcpConfig};
use crate::time::{Duration, Instant};
use crate::wire::SeqNumber;
use crate::wire::tcp::{SackBlocks, TcpSegment};

/// RFC 7323 5.5: TS.Recent is void when the connection was silent for longer than this.
const TS_RECENT_VALID: Duration = Duration::from_secs(24 * 24 * 3600);

/// What the layer has to do after a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Outcome {
    /// Text to be offered to the caller: octets of the segment's payload to skip, and their number.
    pub(super) offered: Option<(usize, usize)>,
    /// Tell the caller that there is something to read.
    pub(super) readable: bool,
    /// The connection is over.
    pub(super) closed: Option<Closed>,
}

/// What a segment needs beside the connection.
pub(super) struct Context<'a> {
    pub(super) config: &'a TcpConfig,
    pub(super) pool: &'a mut Pool,
    pub(super) stats: &'a mut Stats,
    pub(super) now: Instant,
}

impl Tcb {
    /// Takes one segment.
    pub(super) fn handle_segment(
        &mut self,
        segment: &TcpSegment<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Outcome, DropReason> {
        self.check_timestamps(segment, cx)?;
        // First, the sequence number (3.10.7.4).
        if !self.acceptable(segment) {
            return Err(self.unacceptable(segment, cx));
        }
        // Second, RST (RFC 5961 3.2).
        if segment.flags.rst() {
            if matches!(self.state(), State::TimeWait | State::Closed) {
                // Both FINs are acknowledged and only the caller has yet to read: there is nothing left to abort (RFC 1337). The app's kernel
                // has forgotten the connection and answers any late acknowledgement with this.
                return Err(DropReason::Unacceptable);
            }
            if segment.seq == self.receive.nxt {
                return Ok(Outcome { closed: Some(Closed::Reset), ..Outcome::default() });
            }
            self.challenge(cx);
            return Err(DropReason::Unacceptable);
        }
        // Fourth, SYN (RFC 5961 4.2).
        if segment.flags.syn() {
            self.challenge(cx);
            return Err(DropReason::Unacceptable);
        }
        // Fifth, ACK.
        if !segment.flags.ack() {
            return Err(DropReason::Unacceptable);
        }
        self.last_active = cx.now;
        self.keepalives = 0;
        self.check_ack(segment, cx)?;
        self.update_timestamps(segment);
        self.handle_ack(segment, cx);
        // Sixth, URG: the urgent mark is not passed on, its octets are part of the stream (RFC 9293 3.8.5, RFC 6093).
        // Seventh and eighth, text and FIN.
        let mut outcome = self.handle_text(segment, cx);
        outcome.closed = self.over();
        Ok(outcome)
    }

    /// The end of both directions: FINs exchanged and acknowledged, and everything read.
    pub(super) fn over(&self) -> Option<Closed> {
        let exchanged = matches!(self.state(), State::TimeWait | State::Closed);
        (exchanged && self.receive.finished()).then_some(Closed::Finished)
    }

    /// PAWS (RFC 7323 5.3) and the rule that every segment carries the option once negotiated (3.2). Never for RST, nor for SYN: an app
    /// that has started anew knows nothing of timestamps, and is to be challenged (RFC 5961 4.2).
    fn check_timestamps(&mut self, segment: &TcpSegment<'_>, cx: &mut Context<'_>) -> Result<(), DropReason> {
        let exempt = segment.flags.rst() || segment.flags.syn();
        let Some(state) = self.timestamps.filter(|_| !exempt) else { return Ok(()) };
        let Some(timestamps) = segment.options.timestamps else { return Err(DropReason::Paws) };
        let old = SeqNumber(timestamps.value).lt(SeqNumber(state.recent));
        if old && cx.now.since(self.last_active) < TS_RECENT_VALID {
            self.acknowledge_unacceptable(segment, cx);
            return Err(DropReason::Paws);
        }
        Ok(())
    }

    /// RFC 7323 4.3: TS.Recent follows segments that cover Last.ACK.sent.
    fn update_timestamps(&mut self, segment: &TcpSegment<'_>) {
        if let (Some(state), Some(timestamps)) = (&mut self.timestamps, segment.options.timestamps)
            && segment.seq.le(state.last_ack_sent)
        {
            state.recent = timestamps.value;
        }
    }

    /// The four cases of RFC 9293 3.4 (table 6). At a zero window a segment at RCV.NXT is still looked at, without its text: ACK and
    /// RST must be processed (MUST-66).
    fn acceptable(&self, segment: &TcpSegment<'_>) -> bool {
        let nxt = self.receive.nxt;
        let window = self.receive.window();
        let within = |seq: SeqNumber| seq.ge(nxt) && seq.lt(nxt + window);
        let control = segment.flags.rst() || segment.flags.syn();
        match (segment.len(), window) {
            (_, 0) => segment.seq == nxt,
            // An ACK of an app that has filled the window stands just behind it; kernels take it, or both ends would wait.
            (0, _) => within(segment.seq) || (!control && segment.seq == nxt + window),
            (len, _) => within(segment.seq) || within(segment.seq + (len - 1)),
        }
    }

    fn unacceptable(&mut self, segment: &TcpSegment<'_>, cx: &mut Context<'_>) -> DropReason {
        // RFC 9293 3.10.7.4: an acknowledgement is sent in reply, unless RST is set.
        if segment.flags.rst() {
            return DropReason::Unacceptable;
        }
        if segment.flags.syn() {
            self.challenge(cx);
            return DropReason::Unacceptable;
        }
        self.last_active = cx.now;
        // The ACK field of an old duplicate is still news (RFC 9293 leaves it open; a lost ACK of ours must not stall the app's).
        if segment.flags.ack() && self.check_ack(segment, cx).is_ok() && segment.seq.lt(self.receive.nxt) {
            self.handle_ack(segment, cx);
        }
        self.acknowledge_unacceptable(segment, cx);
        DropReason::Unacceptable
    }

    /// Text that was received before is acknowledged again each time; an empty segment only within the limit, or two confused ends would
    /// answer each other for ever.
    fn acknowledge_unacceptable(&mut self, segment: &TcpSegment<'_>, cx: &mut Context<'_>) {
        if segment.is_empty() {
            self.challenge(cx);
        } else {
            self.ack_now();
        }
    }

    fn challenge(&mut self, cx: &mut Context<'_>) {
        if self.challenge.allow(cx.now) {
            cx.stats.challenge_acks += 1;
            self.ack_now();
        }
    }

    /// RFC 5961 5.2: SND.UNA - MAX.SND.WND <= SEG.ACK <= SND.NXT.
    fn check_ack(&mut self, segment: &TcpSegment<'_>, cx: &mut Context<'_>) -> Result<(), DropReason> {
        let oldest = self.snd_una - self.max_snd_wnd;
        if segment.ack.gt(self.snd_nxt) || segment.ack.lt(oldest) {
            self.challenge(cx);
            return Err(DropReason::Unacceptable);
        }
        Ok(())
    }

    fn handle_ack(&mut self, segment: &TcpSegment<'_>, cx: &mut Context<'_>) {
        let now = cx.now;
        self.last_heard = now;
        self.unanswered = 0;
        let outstanding = self.flight.outstanding();
        let window_before = self.snd_wnd;
        let shut_out = self.backoffs > 0 && self.flight.first_len() > window_before;
        self.update_window(segment);
        let advanced = segment.ack.gt(self.snd_una);
        if advanced {
            self.advance_una(segment.ack);
            self.backoffs = 0;
            self.probing = false;
        }
        if segment.ack.lt(self.snd_una) {
            return;
        }
        // Blocks count only when they were negotiated (RFC 2018 2).
        let sack = if self.sack { segment.options.sack } else { SackBlocks::default() };
        let acked = self.flight.acknowledge(self.snd_una, self.snd_nxt, &sack, now);
        if let Some(rtt) = acked.rtt {
            self.rtt.sample(rtt);
        }
        // RFC 5681 2: a duplicate has data outstanding, no text, no news, the same window. The answer to a zero-window probe is none.
        let duplicate = !advanced
            && acked.octets == 0
            && segment.is_empty()
            && !self.flight.is_empty()
            && self.snd_wnd == window_before
            && self.snd_wnd > 0;
        let mut lost = duplicate && self.flight.duplicate();
        let (found, reorder) = self.flight.detect(&self.rtt, self.recovery.is_some(), now);
        lost |= found;
        if self.recovery.is_some_and(|recovery| self.snd_una.ge(recovery.point)) {
            self.recovery = None;
        }
        if advanced && self.recovery.is_some() && !self.flight.has_lost() && sack.is_empty() {
            // A partial acknowledgement without SACK: the next segment is missing too (RFC 6582 3.2).
            self.flight.lose_first();
        }
        if lost {
            self.enter_recovery(outstanding);
        }
        let growing = self.recovery.is_none_or(|recovery| recovery.timeout);
        if acked.octets > 0 && growing && outstanding.saturating_mul(2) >= self.cubic.window() {
            self.cubic.acked(acked.octets, self.mss, self.rtt.srtt().unwrap_or_default(), now);
        }
        if advanced || acked.octets > 0 || lost {
            self.restart_loss_timer(reorder, now);
        } else if shut_out && self.snd_wnd > window_before {
            // What was sent into a window too small for it, a probe at least, was not taken: it goes before anything new, and at once.
            self.flight.lose_all();
            self.recovery = Some(Recovery { point: self.snd_nxt, timeout: true });
            self.backoffs = 0;
            self.forced = Forced::Retransmit;
            self.restart_loss_timer(None, now);
        } else if self.snd_wnd > window_before {
            // A window that opens lets out what waited for it.
            self.loss_timer = if self.flight.is_empty() { LossTimer::Off } else { self.loss_timer };
        }
    }

    /// RFC 9293 3.10.7.4: SND.WND, SND.WL1, SND.WL2.
    fn update_window(&mut self, segment: &TcpSegment<'_>) {
        let newer =
            self.snd_wl1.lt(segment.seq) || (self.snd_wl1 == segment.seq && self.snd_wl2.le(segment.ack));
        if newer && segment.ack.ge(self.snd_una) {
            self.snd_wnd = u32::from(segment.window) << self.snd_scale;
            self.max_snd_wnd = self.max_snd_wnd.max(self.snd_wnd);
            self.snd_wl1 = segment.seq;
            self.snd_wl2 = segment.ack;
        }
    }

    fn advance_una(&mut self, ack: SeqNumber) {
        let mut octets = ack.distance_from(self.snd_una) as usize;
        if let Fin::Sent(fin) = self.fin
            && ack.gt(fin)
        {
            self.fin = Fin::Acked;
            octets -= 1;
        }
        self.send.consume(octets);
        self.delivered += octets as u64;
        self.snd_una = ack;
    }

    /// A loss was found by acknowledgements: once per window of data (RFC 6675 5).
    pub(super) fn enter_recovery(&mut self, outstanding: u32) {
        if self.recovery.is_none() {
            self.recovery = Some(Recovery { point: self.snd_nxt, timeout: false });
            self.cubic.lost(outstanding, self.mss);
            self.forced = Forced::Retransmit;
        }
    }

    fn handle_text(&mut self, segment: &TcpSegment<'_>, cx: &mut Context<'_>) -> Outcome {
        let mut outcome = Outcome::default();
        if self.receive.fin_in_order() {
            // RFC 9293 3.10.7.4, CLOSE-WAIT and later: nothing can come behind FIN; a repeated one is acknowledged.
            if !segment.is_empty() {
                self.ack_now();
            }
            return outcome;
        }
        let nxt = self.receive.nxt;
        let skip = if segment.seq.lt(nxt) { nxt.distance_from(segment.seq) as usize } else { 0 };
        let seq = segment.seq + skip as u32;
        let room = self.receive.room_at(seq) as usize;
        let text = segment.payload.get(skip..).unwrap_or_default();
        let complete = text.len() <= room;
        let text = &text[..text.len().min(room)];
        if segment.flags.fin() && complete {
            let fin = segment.seq + segment.payload.len() as u32;
            self.receive.note_fin(fin);
        }
        if !text.is_empty() {
            self.unacknowledged = self.unacknowledged.saturating_add(text.len() as u32);
            let gap = self.receive.has_gap();
            match self.receive.take(seq, text, cx.pool) {
                Taken::Offered => outcome.offered = Some((skip, text.len())),
                Taken::InOrder { first } => outcome.readable |= first,
                Taken::OutOfOrder => self.ack_duplicate(),
                Taken::Dropped => {
                    cx.stats.drops[DropReason::Full as usize] += 1;
                    self.ack_duplicate();
                }
            }
            if gap {
                // RFC 5681 4.2: also when the segment fills a gap, wholly or in part.
                self.ack_now();
            }
            self.schedule_ack(cx);
        }
        if !complete {
            self.ack_now();
        }
        if self.receive.take_fin() {
            if self.fin == Fin::None {
                // FIN counts as an octet does (RFC 9293 3.4), and nobody waits for its acknowledgement: the target's end mostly follows soon
                // and says it with the same segment.
                self.schedule_ack(cx);
            } else {
                self.ack_now();
            }
            // With octets on offer the end becomes visible when they were taken.
            outcome.readable |= outcome.offered.is_none();
        } else if segment.flags.fin() {
            self.ack_now();
        }
        outcome
    }

    /// RFC 9293 3.8.6.3: at once for the second full segment, else after a delay below half a second.
    fn schedule_ack(&mut self, cx: &Context<'_>) {
        if self.unacknowledged >= 2 * self.mss {
            self.ack_now();
        } else if self.ack == Ack::None {
            self.ack = Ack::By(cx.now + cx.config.ack_delay);
        }
    }
}
