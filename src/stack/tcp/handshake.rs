//! Connections that are not synchronised yet, and those that are over: the SYN queue and TIME-WAIT.
//!
//! An entry of the SYN queue is small and has no buffers: a flood of SYNs costs what [`MAX_SYN_ENTRY`] says, times the limit of the
//! queue, and no more. The caller is told of each SYN and answers with accept or refuse; until then retransmitted SYNs are absorbed. After
//! accept the SYN-ACK is sent, and sent again by RFC 6298, until the app's ACK completes the handshake.

use super::tcb::{Settled, TimestampState};
use crate::flow::FlowKey;
use crate::stack::{StackConfig, TcpConfig};
use crate::time::{Duration, Instant};
use crate::wire::SeqNumber;
use crate::wire::tcp::{SackBlocks, TcpFlags, TcpOptions, TcpSegment, Timestamps};

/// Octets of an entry of the SYN queue.
pub(super) const MAX_SYN_ENTRY: usize = 104;
const _: () = assert!(size_of::<SynEntry>() <= MAX_SYN_ENTRY);

/// The smallest MSS that is believed: smaller ones would be a storm of headers (CVE-2019-11479).
const LEAST_MSS: u16 = 64;
/// RFC 9293 3.7.1: what an absent option means.
const DEFAULT_MSS_V4: u16 = 536;
const DEFAULT_MSS_V6: u16 = 1220;
/// RFC 7323 2.3: larger shifts count as this.
const MAX_SCALE: u8 = 14;

/// The sender is on this machine: its kernel answers a SYN-ACK in microseconds.
const OVERDUE: Duration = Duration::from_secs(1);

/// A connection in SYN-RECEIVED, or one whose SYN-ACK still waits for the caller.
#[derive(Clone, Copy, Debug)]
pub(in crate::stack) struct SynEntry {
    pub(super) iss: SeqNumber,
    pub(super) irs: SeqNumber,
    mss: u16,
    scale: Option<u8>,
    sack: bool,
    timestamps: Option<TimestampState>,
    pub(super) arrived: Instant,
    /// When the SYN-ACK was sent last, and how often; `None` until accepted.
    pub(super) answered: Option<Answered>,
    /// Challenge ACKs are not sent more often than this (RFC 5961 7).
    pub(super) challenged: Instant,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Answered {
    first: Instant,
    next: Instant,
    times: u32,
}

/// What our own SYN-ACK offers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    pub(super) mss: u16,
    pub(super) scale: u8,
    pub(super) window: u16,
}

impl Offer {
    pub(super) fn new(config: &StackConfig, v6: bool) -> Offer {
        let headers = if v6 { 60 } else { 40 };
        let limit = config.tcp.receive_buffer;
        let mut scale = 0;
        while scale < MAX_SCALE && limit >> scale > usize::from(u16::MAX) {
            scale += 1;
        }
        Offer { mss: config.mtu.saturating_sub(headers), scale, window: super::recv::initial_window(limit) }
    }
}

impl SynEntry {
    pub(super) fn new(
        syn: &TcpSegment<'_>,
        iss: SeqNumber,
        ts_offset: u32,
        v6: bool,
        now: Instant,
    ) -> SynEntry {
        let default = if v6 { DEFAULT_MSS_V6 } else { DEFAULT_MSS_V4 };
        let timestamps = syn.options.timestamps.map(|timestamps| TimestampState {
            recent: timestamps.value,
            last_ack_sent: syn.seq + 1,
            offset: ts_offset,
        });
        SynEntry {
            iss,
            irs: syn.seq,
            mss: syn.options.mss.unwrap_or(default).max(LEAST_MSS),
            scale: syn.options.window_scale.map(|shift| shift.min(MAX_SCALE)),
            sack: syn.options.sack_permitted,
            timestamps,
            arrived: now,
            answered: None,
            challenged: Instant::ZERO,
        }
    }

    /// The SYN-ACK. Its window is not scaled, and options are offered only in reply (RFC 7323 2.2, 3.2; RFC 2018 2).
    pub(super) fn syn_ack(&self, key: FlowKey, offer: Offer, now: Instant) -> TcpSegment<'static> {
        TcpSegment {
            src_port: key.remote.port,
            dst_port: key.local.port,
            seq: self.iss,
            ack: self.irs + 1,
            flags: TcpFlags::SYN | TcpFlags::ACK,
            window: offer.window,
            urgent: 0,
            options: TcpOptions {
                mss: Some(offer.mss),
                window_scale: self.scale.map(|_| offer.scale),
                sack_permitted: self.sack,
                timestamps: self.timestamps.map(|state| state.option(now)),
                sack: SackBlocks::default(),
            },
            payload: &[],
        }
    }

    /// Whether the SYN-ACK should have been answered long ago.
    pub(super) fn overdue(&self, now: Instant) -> bool {
        self.answered.is_some_and(|answered| now.since(answered.first) >= OVERDUE)
    }

    /// The SYN-ACK has been sent (again); gives when it is due next.
    pub(super) fn sent(&mut self, config: &TcpConfig, now: Instant) -> Instant {
        let answered = self.answered.get_or_insert(Answered { first: now, next: now, times: 0 });
        let rto = config.rto_initial.saturating_mul(1 << answered.times.min(16)).min(config.rto_max);
        answered.times += 1;
        answered.next = now + rto;
        answered.next
    }

    /// When the entry wants to be looked at.
    pub(super) fn deadline(&self, config: &TcpConfig) -> Instant {
        match self.answered {
            None => self.arrived + config.syn_timeout,
            Some(answered) => answered.next,
        }
    }

    /// Whether the handshake is given up (RFC 9293 3.8.3: R2 of a SYN is at least 3 minutes).
    pub(super) fn expired(&self, config: &TcpConfig, now: Instant) -> bool {
        match self.answered {
            None => now >= self.arrived + config.syn_timeout,
            Some(answered) => now.since(answered.first) >= config.give_up_syn,
        }
    }

    /// What was agreed, when `ack` completes the handshake.
    pub(super) fn settle(&self, ack: &TcpSegment<'_>, offer: Offer, now: Instant) -> Settled {
        let rtt =
            self.answered.filter(|answered| answered.times == 1).map(|answered| now.since(answered.first));
        Settled {
            iss: self.iss,
            irs: self.irs,
            mss: self.mss.min(offer.mss),
            scale: self.scale.map(|scale| (scale, offer.scale)),
            sack: self.sack,
            timestamps: self.timestamps,
            window: ack.window,
            rtt,
        }
    }

    /// PAWS already holds during the handshake (RFC 7323 3.2, 5.3).
    pub(super) fn timestamps_old(&self, segment: &TcpSegment<'_>) -> bool {
        match (self.timestamps, segment.options.timestamps) {
            (Some(state), Some(timestamps)) => SeqNumber(timestamps.value).lt(SeqNumber(state.recent)),
            (Some(_), None) => true,
            (None, _) => false,
        }
    }
}

impl TimestampState {
    /// The option of a segment that leaves now: a clock of milliseconds (RFC 7323 5.4).
    pub(super) fn option(&self, now: Instant) -> Timestamps {
        Timestamps { value: (now.as_millis() as u32).wrapping_add(self.offset), echo: self.recent }
    }
}

/// A connection that is over: what is needed to answer a retransmitted FIN, and to tell a new SYN from an old one.
#[derive(Clone, Copy, Debug)]
pub(in crate::stack) struct TimeWait {
    pub(super) snd_nxt: SeqNumber,
    pub(super) rcv_nxt: SeqNumber,
    pub(super) timestamps: Option<TimestampState>,
    pub(super) until: Instant,
    pub(super) answered: Instant,
}

/// The least time between two answers of a connection in TIME-WAIT: two ends that both believe in it must not answer each other.
const ANSWER_EVERY: Duration = Duration::from_millis(100);

impl TimeWait {
    /// Whether a SYN may start a new connection (RFC 9293 3.10.7.4, RFC 6191): its sequence number or its timestamp is newer.
    pub(super) fn superseded_by(&self, syn: &TcpSegment<'_>) -> bool {
        let newer = match (self.timestamps, syn.options.timestamps) {
            (Some(state), Some(timestamps)) => SeqNumber(timestamps.value).gt(SeqNumber(state.recent)),
            (_, _) => false,
        };
        newer || syn.seq.gt(self.rcv_nxt)
    }

    /// The acknowledgement of a retransmitted FIN; `None` when one was just sent.
    pub(super) fn answer(&mut self, key: FlowKey, now: Instant) -> Option<TcpSegment<'static>> {
        if self.answered > Instant::ZERO && now.since(self.answered) < ANSWER_EVERY {
            return None;
        }
        self.answered = now;
        Some(TcpSegment {
            src_port: key.remote.port,
            dst_port: key.local.port,
            seq: self.snd_nxt,
            ack: self.rcv_nxt,
            flags: TcpFlags::ACK,
            window: 0,
            urgent: 0,
            options: TcpOptions {
                timestamps: self.timestamps.map(|state| state.option(now)),
                ..TcpOptions::default()
            },
            payload: &[],
        })
    }
}
