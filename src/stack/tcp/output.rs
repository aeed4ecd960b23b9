//! What a connection sends next, and when it wants to be asked again.

use super::tcb::{Ack, Fin, Forced, LossTimer, Recovery, Tcb};
use crate::stack::{Closed, Stats, TcpConfig};
use crate::time::{Duration, Instant};
use crate::wire::SeqNumber;

/// A segment to be built: text is `[seq, seq + len)` of the send ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Segment {
    pub(super) seq: SeqNumber,
    pub(super) len: u32,
    pub(super) fin: bool,
    pub(super) push: bool,
}

/// RFC 8985 7.2: the peer's delayed acknowledgement, added when one segment is out. Linux delays at least 40 ms.
const PEER_ACK_DELAY: Duration = Duration::from_millis(50);
/// Retransmissions or probes that must go unanswered, beside R2, before a connection is given up.
const LEAST_UNANSWERED: u8 = 6;
/// No tail loss probe sooner than this: the peer is on this machine and timers count in milliseconds.
const LEAST_PROBE: Duration = Duration::from_millis(5);

impl Tcb {
    /// The next segment, at most `limit` octets of text (a super-segment when more than the MSS); `None` when there is
    /// nothing to send now.
    pub(super) fn next_segment(&mut self, limit: u32, stats: &mut Stats, now: Instant) -> Option<Segment> {
        let forced = self.forced;
        // With a gap, SACK blocks are what helps the app most; they need a segment of their own.
        let blocks_due = matches!(self.ack, Ack::Now(_)) && self.receive.has_gap();
        let segment = if blocks_due { self.bare(Forced::No) } else { None };
        let segment = segment
            .or_else(|| self.retransmission(forced, stats, now))
            .or_else(|| self.new_text(forced, limit, now))
            .or_else(|| self.tail(forced, stats, now))
            .or_else(|| self.bare(forced));
        if !blocks_due {
            self.forced = Forced::No;
        }
        if segment.is_some_and(|segment| segment.len > 0 || segment.fin) {
            self.last_active = now;
            if self.loss_timer == LossTimer::Off || matches!(self.loss_timer, LossTimer::Persist(_)) {
                self.restart_loss_timer(None, now);
            }
        }
        if segment.is_none() && self.loss_timer == LossTimer::Off {
            // What waits for a window must be probed for (RFC 9293 3.8.6.1).
            self.restart_loss_timer(None, now);
        }
        segment
    }

    /// Whether a call of [`Tcb::next_segment`] may give something: the flow belongs in the queue.
    pub(super) fn wants_to_send(&self) -> bool {
        matches!(self.ack, Ack::Now(_))
            || self.forced != Forced::No
            || self.flight.has_lost()
            || self.unsent() > 0
            || self.fin == Fin::Queued
    }

    fn retransmission(&mut self, forced: Forced, stats: &mut Stats, now: Instant) -> Option<Segment> {
        if !self.flight.has_lost() {
            return None;
        }
        let pipe = self.flight.pipe();
        if forced != Forced::Retransmit && pipe > 0 && pipe + self.mss > self.cubic.window() {
            return None;
        }
        let sent = self.flight.retransmit(self.mss, now)?;
        stats.retransmits += 1;
        Some(self.segment(sent.start, sent.len))
    }

    /// A stretch of sequence space that was sent before, as a segment.
    fn segment(&self, seq: SeqNumber, len: u32) -> Segment {
        let fin = matches!(self.fin, Fin::Sent(fin) if fin == seq + len - 1);
        let len = len - u32::from(fin);
        let end = seq + len;
        let push = end.distance_from(self.snd_una) as usize >= self.send.len();
        Segment { seq, len, fin, push }
    }

    fn new_text(&mut self, forced: Forced, limit: u32, now: Instant) -> Option<Segment> {
        let unsent = self.unsent();
        let fin_waits = self.fin == Fin::Queued;
        if (unsent == 0 && !fin_waits) || self.flight.is_full() {
            return None;
        }
        let usable = self.usable_window();
        let pipe = self.flight.pipe();
        let allowed = match forced {
            Forced::WindowProbe => usable.max(1),
            Forced::TailProbe => usable.min(self.mss),
            Forced::No | Forced::Retransmit | Forced::KeepAlive => usable.min(self.congestion_room(pipe)),
        };
        let mut len = unsent.min(allowed).min(limit);
        if len > self.mss {
            // A super-segment is cut into full segments only, unless it ends the text.
            len = if len == unsent { len } else { len - len % self.mss };
        }
        let ends = len == unsent;
        let fin = fin_waits && ends && (usable > len || self.flight.is_empty());
        if len == 0 && !fin {
            return None;
        }
        // Sender's silly window avoidance (RFC 9293 3.8.6.2.1): a full segment, the end of the text, or half the largest window.
        let silly = len < self.mss && !ends && len < self.max_snd_wnd / 2 && !self.flight.is_empty();
        if silly && forced == Forced::No {
            return None;
        }
        if self.flight.is_empty() {
            // R2 counts from here: silence before was owed to nobody (RFC 9293 3.8.3).
            self.last_heard = now;
        }
        let seq = self.snd_nxt;
        self.snd_nxt += len;
        if fin {
            self.fin = Fin::Sent(self.snd_nxt);
            self.active_close = !self.receive.fin_in_order();
            self.snd_nxt += 1;
        }
        self.flight.sent(seq, len + u32::from(fin), now);
        Some(Segment { seq, len, fin, push: ends })
    }

    /// Octets that the congestion window leaves, in whole segments, so that it does not chop the stream; one segment may always be on
    /// its way.
    fn congestion_room(&self, pipe: u32) -> u32 {
        let room = self.cubic.window().saturating_sub(pipe);
        if pipe == 0 { room.max(self.mss) } else { room - room % self.mss }
    }

    /// The last segment again, as a probe (RFC 8985 7.3).
    fn tail(&mut self, forced: Forced, stats: &mut Stats, now: Instant) -> Option<Segment> {
        if forced != Forced::TailProbe {
            return None;
        }
        let sent = self.flight.probe(self.mss, now)?;
        stats.retransmits += 1;
        Some(self.segment(sent.start, sent.len))
    }

    /// A segment without text: an acknowledgement, or a keep-alive, which lies before the window (RFC 9293 3.8.4).
    fn bare(&self, forced: Forced) -> Option<Segment> {
        let empty = |seq| Some(Segment { seq, len: 0, fin: false, push: false });
        match self.ack {
            _ if forced == Forced::KeepAlive => empty(self.snd_nxt - 1),
            Ack::Now(_) => empty(self.snd_nxt),
            Ack::None | Ack::By(_) => None,
        }
    }

    /// A segment with the acknowledgement has left.
    pub(super) fn acknowledged(&mut self) {
        self.ack = match self.ack {
            Ack::Now(count) if count > 1 => Ack::Now(count - 1),
            Ack::Now(_) | Ack::By(_) | Ack::None => Ack::None,
        };
        self.unacknowledged = 0;
        if let Some(timestamps) = &mut self.timestamps {
            timestamps.last_ack_sent = self.receive.nxt;
        }
    }

    /// Sets the timer of the sending half anew (RFC 6298 5, RFC 8985 7.2, RFC 9293 3.8.6.1). `reorder`: when RACK wants to look again.
    pub(super) fn restart_loss_timer(&mut self, reorder: Option<Instant>, now: Instant) {
        let rto = now + self.rtt.rto(self.backoffs);
        self.loss_timer = if self.flight.is_empty() {
            if self.unsent() > 0 || self.fin == Fin::Queued {
                LossTimer::Persist(rto)
            } else {
                LossTimer::Off
            }
        } else if let Some(at) = reorder {
            LossTimer::Reorder(at)
        } else {
            match self.probe_after().map(|after| now + after) {
                Some(at) if at < rto => LossTimer::Probe(at),
                Some(_) | None => LossTimer::Retransmit(rto),
            }
        };
    }

    /// The probe time-out, when a probe makes sense: nothing is known to be lost and none is out.
    fn probe_after(&self) -> Option<Duration> {
        if !self.sack || self.recovery.is_some() || self.probing || self.backoffs > 0 {
            return None;
        }
        let srtt = self.rtt.srtt()?;
        let delay = if self.flight.outstanding() <= self.mss { PEER_ACK_DELAY } else { Duration::ZERO };
        Some((2 * srtt + delay).max(LEAST_PROBE))
    }

    /// Runs the timers that are due; `Some` when the connection is over.
    pub(super) fn handle_timeout(
        &mut self,
        config: &TcpConfig,
        stats: &mut Stats,
        now: Instant,
    ) -> Option<Closed> {
        if now >= self.last_active + self.idle_limit(config) {
            return Some(Closed::Idle);
        }
        if let Ack::By(at) = self.ack
            && now >= at
        {
            self.ack_now();
        }
        if let Some(every) = config.keepalive
            && now >= self.last_active + every * u32::from(self.keepalives + 1)
        {
            self.keepalives = self.keepalives.saturating_add(1);
            // RFC 9293 3.8.4 leaves the number open; nine is what kernels use.
            if self.keepalives > 9 {
                return Some(Closed::TimedOut);
            }
            self.forced = Forced::KeepAlive;
        }
        if self.loss_timer.deadline().is_some_and(|at| now >= at) {
            return self.loss_timeout(config, stats, now);
        }
        None
    }

    fn loss_timeout(&mut self, config: &TcpConfig, stats: &mut Stats, now: Instant) -> Option<Closed> {
        let timer = core::mem::replace(&mut self.loss_timer, LossTimer::Off);
        match timer {
            LossTimer::Off => {}
            LossTimer::Reorder(_) => {
                let outstanding = self.flight.outstanding();
                let (found, again) = self.flight.detect(&self.rtt, self.recovery.is_some(), now);
                if found {
                    self.enter_recovery(outstanding);
                }
                self.restart_loss_timer(again, now);
            }
            LossTimer::Probe(_) => {
                self.probing = true;
                self.forced = Forced::TailProbe;
                self.loss_timer = LossTimer::Retransmit(now + self.rtt.rto(self.backoffs));
            }
            LossTimer::Persist(_) => {
                self.backoffs += 1;
                self.forced = Forced::WindowProbe;
                self.loss_timer = LossTimer::Persist(now + self.rtt.rto(self.backoffs));
            }
            LossTimer::Retransmit(_) => {
                // R2 (RFC 9293 3.8.3). A peer that acknowledges a closed window is alive, however long (MUST-37).
                // Where a minute lies between two probes, R2 alone would make an end of it after two lost ones.
                if now.since(self.last_heard) >= config.give_up && self.unanswered >= LEAST_UNANSWERED {
                    return Some(Closed::TimedOut);
                }
                self.unanswered = self.unanswered.saturating_add(1);
                stats.timeouts += 1;
                let outstanding = self.flight.outstanding();
                if self.snd_wnd == 0 {
                    self.flight.lose_first();
                } else {
                    self.flight.lose_all();
                    self.cubic.timed_out(outstanding, self.mss, self.backoffs == 0);
                    self.recovery = Some(Recovery { point: self.snd_nxt, timeout: true });
                }
                self.backoffs += 1;
                self.forced = Forced::Retransmit;
                self.loss_timer = LossTimer::Retransmit(now + self.rtt.rto(self.backoffs));
            }
        }
        None
    }
}
