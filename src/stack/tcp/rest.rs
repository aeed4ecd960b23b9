//! What an established connection is while nothing of it is under way.
//!
//! A connection with something in flight, buffered, owed or timed needs a whole [`Tcb`]. One at rest needs only what the next segment
//! is judged by, and that is all that is kept: [`Resting`] lies in the table itself, and the block goes back to be used by another
//! ([`Blocks`]). It rests when it is looked at and there is nothing left to do, and wakes with the first segment or call.
//!
//! [`Tcb::rest`] names every variable of a block: one that is added does not compile until it is decided whether it is kept, or keeps the
//! connection awake.

use super::cubic::Cubic;
use super::flight::Flight;
use super::recv::RestingReceiver;
use super::rtt::{Measured, Rtt};
use super::tcb::{Ack, ChallengeLimit, Fin, Forced, LossTimer, Tcb, TimestampState};
use crate::stack::TcpConfig;
use crate::time::Instant;
use crate::wire::SeqNumber;

/// An established connection at rest: everything sent is acknowledged, everything received is read, nobody has closed.
#[derive(Debug)]
pub(in crate::stack) struct Resting {
    /// SND.UNA and SND.NXT.
    snd_nxt: SeqNumber,
    snd_wnd: u32,
    snd_wl1: SeqNumber,
    snd_wl2: SeqNumber,
    max_snd_wnd: u32,
    mss: u32,
    snd_scale: u8,
    sack: bool,
    keepalives: u8,
    reordering_seen: bool,
    pub(super) delivered: u64,
    cubic: Cubic,
    measured: Option<Measured>,
    pub(super) receive: RestingReceiver,
    timestamps: Option<TimestampState>,
    challenge: ChallengeLimit,
    pub(super) opened: Instant,
    pub(super) last_active: Instant,
}

impl Tcb {
    /// The connection at rest; `None` while anything is under way.
    pub(super) fn rest(&mut self) -> Option<Resting> {
        let Tcb {
            snd_una,
            snd_nxt,
            snd_wnd,
            snd_wl1,
            snd_wl2,
            max_snd_wnd,
            snd_scale,
            mss,
            send,
            delivered,
            flight,
            fin,
            active_close: _,
            cubic,
            rtt,
            recovery,
            backoffs,
            loss_timer,
            probing: _,
            forced,
            receive,
            sack,
            timestamps,
            ack,
            unacknowledged,
            challenge,
            last_heard: _,
            unanswered: _,
            opened,
            last_active,
            keepalives,
            write_blocked,
            queued,
        } = self;
        let quiet = flight.is_empty()
            && *ack == Ack::None
            && !*queued
            && *loss_timer == LossTimer::Off
            && send.capacity() == 0
            && snd_una == snd_nxt
            && *fin == Fin::None
            && *forced == Forced::No
            && recovery.is_none()
            && *backoffs == 0
            && *unacknowledged == 0
            && !*write_blocked;
        if !quiet {
            return None;
        }
        let receive = receive.rest()?;
        Some(Resting {
            snd_nxt: *snd_nxt,
            snd_wnd: *snd_wnd,
            snd_wl1: *snd_wl1,
            snd_wl2: *snd_wl2,
            max_snd_wnd: *max_snd_wnd,
            mss: *mss,
            snd_scale: *snd_scale,
            sack: *sack,
            keepalives: *keepalives,
            reordering_seen: flight.reordering_seen(),
            delivered: *delivered,
            cubic: cubic.take(),
            measured: rtt.measured(),
            receive,
            timestamps: *timestamps,
            challenge: *challenge,
            opened: *opened,
            last_active: *last_active,
        })
    }
}

impl Resting {
    /// The block of the connection, with the memory of `flight`.
    fn wake(&mut self, config: &TcpConfig, flight: Flight) -> Tcb {
        let mut rtt = Rtt::new(config.rto_initial, config.rto_min, config.rto_max);
        rtt.resume(self.measured);
        Tcb {
            snd_una: self.snd_nxt,
            snd_nxt: self.snd_nxt,
            snd_wnd: self.snd_wnd,
            snd_wl1: self.snd_wl1,
            snd_wl2: self.snd_wl2,
            max_snd_wnd: self.max_snd_wnd,
            snd_scale: self.snd_scale,
            mss: self.mss,
            send: Default::default(),
            delivered: self.delivered,
            flight: flight.reset(self.reordering_seen),
            fin: Fin::None,
            active_close: false,
            cubic: self.cubic.take(),
            rtt,
            recovery: None,
            backoffs: 0,
            loss_timer: LossTimer::Off,
            probing: false,
            forced: Forced::No,
            receive: self.receive.wake(),
            sack: self.sack,
            timestamps: self.timestamps,
            ack: Ack::None,
            unacknowledged: 0,
            challenge: self.challenge,
            // Nothing is owed: what is sent next sets it.
            last_heard: self.last_active,
            unanswered: 0,
            opened: self.opened,
            last_active: self.last_active,
            keepalives: self.keepalives,
            write_blocked: false,
            queued: false,
        }
    }

    /// RCV.NXT.
    pub(super) fn rcv_nxt(&self) -> SeqNumber {
        self.receive.nxt
    }

    /// SND.NXT.
    pub(super) fn snd_nxt(&self) -> SeqNumber {
        self.snd_nxt
    }
}

/// Blocks that wait to be used again, so that a connection that wakes and rests allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    #[allow(
        clippy::vec_box,
        reason = "it is the boxes that are kept: they go back into the table as they are"
    )]
    spare: Vec<Box<Tcb>>,
    used: usize,
}

/// More connections than this seldom wake in one turn of the loop.
const SPARE_BLOCKS: usize = 64;

impl Blocks {
    /// The block of a connection that wakes.
    pub(super) fn wake(&mut self, resting: &mut Resting, config: &TcpConfig) -> Box<Tcb> {
        self.used += 1;
        match self.spare.pop() {
            Some(mut block) => {
                let flight = core::mem::take(&mut block.flight);
                *block = resting.wake(config, flight);
                block
            }
            None => Box::new(resting.wake(config, Flight::default())),
        }
    }

    /// The block of a new connection.
    pub(super) fn open(&mut self, tcb: Tcb) -> Box<Tcb> {
        self.used += 1;
        match self.spare.pop() {
            Some(mut block) => {
                let flight = core::mem::take(&mut block.flight);
                *block = Tcb { flight: flight.reset(false), ..tcb };
                block
            }
            None => Box::new(tcb),
        }
    }

    /// A block that is not needed any more; its buffers were given back.
    pub(super) fn give(&mut self, block: Box<Tcb>) {
        self.used = self.used.saturating_sub(1);
        if self.spare.len() < SPARE_BLOCKS {
            self.spare.push(block);
        }
    }

    /// Blocks of connections that are awake.
    pub(super) fn used(&self) -> usize {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::tcp::ring::Pool;
    use crate::stack::tcp::tcb::Settled;
    use crate::time::Duration;

    fn established(config: &TcpConfig) -> Tcb {
        let settled = Settled {
            iss: SeqNumber(1_000),
            irs: SeqNumber(2_000),
            mss: 1_460,
            scale: Some((7, 5)),
            sack: true,
            timestamps: Some(TimestampState { recent: 7, last_ack_sent: SeqNumber(2_001), offset: 9 }),
            window: 500,
            rtt: Some(Duration::from_micros(80)),
        };
        Tcb::new(&settled, config, Instant::from_millis(5))
    }

    #[test]
    fn a_connection_that_has_rested_is_the_one_that_it_was() {
        let config = TcpConfig::default();
        let mut tcb = established(&config);
        tcb.delivered = 77;
        tcb.keepalives = 2;
        tcb.receive.octets = 99;
        let before = format!("{tcb:?}");
        let mut resting = tcb.rest().expect("nothing is under way");
        let mut blocks = Blocks::default();
        let mut woken = blocks.wake(&mut resting, &config);
        assert_eq!(format!("{woken:?}"), before);
        // The same in a block that another connection has left behind.
        let mut resting = woken.rest().expect("still nothing");
        woken.flight.sent(SeqNumber(5), 10, Instant::ZERO);
        blocks.give(woken);
        assert_eq!(format!("{:?}", blocks.wake(&mut resting, &config)), before);
    }

    #[test]
    fn whatever_is_under_way_keeps_a_connection_awake() {
        let config = TcpConfig::default();
        let busy: [fn(&mut Tcb); 10] = [
            |tcb| tcb.flight.sent(tcb.snd_nxt, 1, Instant::ZERO),
            |tcb| tcb.ack = Ack::By(Instant::ZERO),
            |tcb| tcb.ack_now(),
            |tcb| tcb.queued = true,
            |tcb| tcb.loss_timer = LossTimer::Persist(Instant::ZERO),
            |tcb| tcb.fin = Fin::Queued,
            |tcb| tcb.forced = Forced::KeepAlive,
            |tcb| tcb.write_blocked = true,
            |tcb| tcb.receive.note_fin(tcb.receive.nxt),
            |tcb| {
                let mut pool = Pool::new(1 << 20);
                tcb.receive.take(tcb.receive.nxt + 5, b"ahead", &mut pool);
            },
        ];
        for (index, act) in busy.into_iter().enumerate() {
            let mut tcb = established(&config);
            assert!(tcb.rest().is_some());
            let mut tcb = established(&config);
            act(&mut tcb);
            assert!(tcb.rest().is_none(), "{index}");
        }
    }
}
