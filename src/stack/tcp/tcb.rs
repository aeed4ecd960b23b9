//! The transmission control block: the state of one synchronised connection (RFC 9293 3.3.1).
//!
//! The names are the RFC's. What belongs to one direction lives in a type of its own: [`Receiver`] for what the app sends,
//! the send ring with [`Flight`] for what it is sent. The states of RFC 9293 3.3.2 are not stored but follow from how far the two
//! FINs have come, so that no combination can contradict itself ([`Tcb::state`]).
//!
//! A connection with nothing under way has no block: [`rest`](super::rest).

use super::cubic::Cubic;
use super::flight::Flight;
use super::recv::Receiver;
use super::ring::{Pool, Ring};
use super::rtt::Rtt;
use crate::stack::TcpConfig;
use crate::time::{Duration, Instant};
use crate::wire::SeqNumber;

/// How far our FIN has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fin {
    /// The caller may still send.
    None,
    /// To be sent after everything in the ring.
    Queued,
    /// Sent with this sequence number.
    Sent(SeqNumber),
    /// Acknowledged.
    Acked,
}

/// The states of RFC 9293 3.3.2 that a synchronised connection can be in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Established,
    FinWait1,
    FinWait2,
    CloseWait,
    Closing,
    LastAck,
    /// Both FINs are exchanged and ours is acknowledged, after we closed first.
    TimeWait,
    /// Both FINs are exchanged and ours is acknowledged, after the app closed first.
    Closed,
}

/// What the timer of the sending half is waiting for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LossTimer {
    /// Nothing.
    Off,
    /// RFC 6298 5.
    Retransmit(Instant),
    /// RFC 8985 7.2: the tail loss probe.
    Probe(Instant),
    /// RFC 8985 6.2: the reordering window.
    Reorder(Instant),
    /// RFC 9293 3.8.6.1: the zero-window probe.
    Persist(Instant),
}

impl LossTimer {
    pub(super) fn deadline(self) -> Option<Instant> {
        match self {
            LossTimer::Off => None,
            LossTimer::Retransmit(at)
            | LossTimer::Probe(at)
            | LossTimer::Reorder(at)
            | LossTimer::Persist(at) => Some(at),
        }
    }
}

/// A segment that leaves although a window forbids it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Forced {
    /// None does.
    No,
    /// One new octet into a closed window.
    WindowProbe,
    /// New data beyond the congestion window, or else the last segment again.
    TailProbe,
    /// The first lost segment.
    Retransmit,
    /// A segment without text before the window.
    KeepAlive,
}

/// Whether the app is owed an acknowledgement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ack {
    /// No.
    None,
    /// By this time, unless something else carries it before (RFC 9293 3.8.6.3).
    By(Instant),
    /// At once, this many of them: out-of-order segments get one each (RFC 5681 4.2).
    Now(u8),
}

/// A time of loss: until everything sent before is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Recovery {
    /// SND.NXT when it began.
    pub(super) point: SeqNumber,
    /// Begun by a time-out: the window may grow meanwhile (RFC 5681 3.1).
    pub(super) timeout: bool,
}

/// Timestamps, when both SYNs had the option (RFC 7323 3).
#[derive(Clone, Copy, Debug)]
pub(super) struct TimestampState {
    /// TS.Recent.
    pub(super) recent: u32,
    /// Last.ACK.sent.
    pub(super) last_ack_sent: SeqNumber,
    /// Added to our clock: no two connections show the same (RFC 7323 7.1 leaves the offset free).
    pub(super) offset: u32,
}

/// Challenge ACKs of one connection in the current second (RFC 5961 7, per connection because of CVE-2016-5696).
#[derive(Clone, Copy, Debug)]
pub(super) struct ChallengeLimit {
    since: Instant,
    sent: u32,
}

/// Challenge ACKs in a second (RFC 5961 7 proposes 10 in 5 s as an example).
const CHALLENGES: u32 = 10;

impl ChallengeLimit {
    pub(super) fn allow(&mut self, now: Instant) -> bool {
        if now.since(self.since) >= Duration::from_secs(1) {
            *self = ChallengeLimit { since: now, sent: 0 };
        }
        self.sent += 1;
        self.sent <= CHALLENGES
    }
}

/// What the handshake has settled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settled {
    pub(super) iss: SeqNumber,
    pub(super) irs: SeqNumber,
    /// Octets of text that fit in a segment to the app, options not yet subtracted.
    pub(super) mss: u16,
    /// Window scale of both, when both SYNs had it.
    pub(super) scale: Option<(u8, u8)>,
    pub(super) sack: bool,
    pub(super) timestamps: Option<TimestampState>,
    /// SEG.WND of the ACK that completes the handshake, not scaled.
    pub(super) window: u16,
    /// A round trip of the handshake, when the SYN-ACK was sent once.
    pub(super) rtt: Option<Duration>,
}

/// The transmission control block.
#[derive(Debug)]
pub(in crate::stack) struct Tcb {
    /// SND.UNA, SND.NXT, SND.WND, SND.WL1, SND.WL2, MAX.SND.WND.
    pub(super) snd_una: SeqNumber,
    pub(super) snd_nxt: SeqNumber,
    pub(super) snd_wnd: u32,
    pub(super) snd_wl1: SeqNumber,
    pub(super) snd_wl2: SeqNumber,
    pub(super) max_snd_wnd: u32,
    pub(super) snd_scale: u8,
    /// Octets of text in a full segment, options that every segment carries subtracted.
    pub(super) mss: u32,
    pub(super) send: Ring,
    /// Octets of text that the app has acknowledged since the start.
    pub(super) delivered: u64,
    pub(super) flight: Flight,
    pub(super) fin: Fin,
    /// Our FIN was sent before the app's was received.
    pub(super) active_close: bool,
    pub(super) cubic: Cubic,
    pub(super) rtt: Rtt,
    pub(super) recovery: Option<Recovery>,
    pub(super) backoffs: u32,
    pub(super) loss_timer: LossTimer,
    /// A tail loss probe is out: no second one before news.
    pub(super) probing: bool,
    pub(super) forced: Forced,
    pub(super) receive: Receiver,
    pub(super) sack: bool,
    pub(super) timestamps: Option<TimestampState>,
    pub(super) ack: Ack,
    /// Octets received since the last acknowledgement was sent.
    pub(super) unacknowledged: u32,
    pub(super) challenge: ChallengeLimit,
    /// When the app was last heard to acknowledge anything, or began to owe that.
    pub(super) last_heard: Instant,
    /// Time-outs since then.
    pub(super) unanswered: u8,
    /// When the handshake was completed.
    pub(super) opened: Instant,
    /// When anything last came or went.
    pub(super) last_active: Instant,
    pub(super) keepalives: u8,
    /// The caller found no room and waits for `Writable`.
    pub(super) write_blocked: bool,
    /// Stands in the layer's queue of flows with something to send.
    pub(super) queued: bool,
}

/// Send buffer offered before the congestion window is known to need more.
const FIRST_BUFFER: usize = 32 << 10;

impl Tcb {
    pub(super) fn new(settled: &Settled, config: &TcpConfig, now: Instant) -> Tcb {
        let (snd_scale, rcv_scale) = settled.scale.unwrap_or((0, 0));
        // RFC 7323 appendix A: 12 octets in every segment.
        let options = if settled.timestamps.is_some() { 12 } else { 0 };
        let mss = u32::from(settled.mss).saturating_sub(options).max(1);
        let mut rtt = Rtt::new(config.rto_initial, config.rto_min, config.rto_max);
        if let Some(sample) = settled.rtt {
            rtt.sample(sample);
        }
        let nxt = settled.iss + 1;
        let snd_wnd = u32::from(settled.window) << snd_scale;
        Tcb {
            snd_una: nxt,
            snd_nxt: nxt,
            snd_wnd,
            snd_wl1: settled.irs,
            snd_wl2: nxt,
            max_snd_wnd: snd_wnd,
            snd_scale,
            mss,
            send: Ring::default(),
            delivered: 0,
            flight: Flight::default(),
            fin: Fin::None,
            active_close: false,
            cubic: Cubic::new(mss),
            rtt,
            recovery: None,
            backoffs: 0,
            loss_timer: LossTimer::Off,
            probing: false,
            forced: Forced::No,
            receive: Receiver::new(settled.irs, config.receive_buffer, rcv_scale),
            sack: settled.sack,
            timestamps: settled.timestamps,
            ack: Ack::None,
            unacknowledged: 0,
            challenge: ChallengeLimit { since: now, sent: 0 },
            last_heard: now,
            unanswered: 0,
            opened: now,
            last_active: now,
            keepalives: 0,
            write_blocked: false,
            queued: false,
        }
    }

    /// The state of RFC 9293 3.3.2.
    pub(super) fn state(&self) -> State {
        match (self.fin, self.receive.fin_in_order()) {
            (Fin::None | Fin::Queued, false) => State::Established,
            (Fin::None | Fin::Queued, true) => State::CloseWait,
            (Fin::Sent(_), false) => State::FinWait1,
            (Fin::Acked, false) => State::FinWait2,
            (Fin::Sent(_), true) if self.active_close => State::Closing,
            (Fin::Sent(_), true) => State::LastAck,
            (Fin::Acked, true) if self.active_close => State::TimeWait,
            (Fin::Acked, true) => State::Closed,
        }
    }

    /// Octets of text in the ring that were never sent.
    pub(super) fn unsent(&self) -> u32 {
        let text_sent = match self.fin {
            Fin::Sent(fin) => fin.distance_from(self.snd_una),
            Fin::None | Fin::Queued | Fin::Acked => self.snd_nxt.distance_from(self.snd_una),
        };
        (self.send.len() as u32).saturating_sub(text_sent)
    }

    /// Octets that the send window leaves; negative windows of a peer that has shrunk it count as none.
    pub(super) fn usable_window(&self) -> u32 {
        self.snd_wnd.saturating_sub(self.snd_nxt.distance_from(self.snd_una))
    }

    /// The size the send buffer should have at present.
    fn send_target(&self, largest: usize) -> usize {
        (2 * self.cubic.window() as usize).max(FIRST_BUFFER).next_power_of_two().min(largest)
    }

    /// Room that would be offered now; nothing rather than a sliver.
    pub(super) fn send_room(&self, largest: usize) -> usize {
        let target = self.send_target(largest);
        let room = target.saturating_sub(self.send.len());
        if self.fin != Fin::None || room < target / 4 { 0 } else { room }
    }

    /// Asks for an acknowledgement at once.
    pub(super) fn ack_now(&mut self) {
        self.ack = match self.ack {
            Ack::None | Ack::By(_) => Ack::Now(1),
            Ack::Now(count) => Ack::Now(count),
        };
    }

    /// Asks for one more acknowledgement at once, for an out-of-order segment.
    pub(super) fn ack_duplicate(&mut self) {
        self.ack = match self.ack {
            Ack::None | Ack::By(_) => Ack::Now(1),
            // What is behind the third duplicate tells the app nothing new.
            Ack::Now(count) => Ack::Now(count.saturating_add(1).min(3)),
        };
    }

    /// When this connection wants its timers run next.
    pub(super) fn deadline(&self, config: &TcpConfig) -> Instant {
        let ack = match self.ack {
            Ack::By(at) => Some(at),
            Ack::None | Ack::Now(_) => None,
        };
        let idle = self.last_active + self.idle_limit(config);
        let keepalive =
            config.keepalive.map(|every| self.last_active + every * u32::from(self.keepalives + 1));
        [self.loss_timer.deadline(), ack, keepalive].into_iter().flatten().fold(idle, Instant::min)
    }

    /// RFC 5382 REQ-5: established connections live at least 2 h 4 min without a segment, closing ones 4 min.
    pub(super) fn idle_limit(&self, config: &TcpConfig) -> Duration {
        match self.state() {
            State::Established | State::CloseWait => config.idle,
            // Not the app but the caller's socket is being waited for.
            _ if self.receive.has_unread() => config.idle,
            State::FinWait1
            | State::FinWait2
            | State::Closing
            | State::LastAck
            | State::TimeWait
            | State::Closed => config.idle_transitory,
        }
    }

    /// Gives all memory back to the pool.
    pub(super) fn release(&mut self, pool: &mut Pool) {
        self.send.release(pool);
        self.receive.release(pool);
    }
}
