//! When a connection that trickles in a stream of small pieces wakes the loop.
//!
//! A proxy that writes a thousand octets at a time wakes its reader for each of them: a read, a packet to the TUN and an ACK from
//! there for a thousand octets. While such a stream lasts, the kernel is asked (SO_RCVLOWAT, socket(7)) to wake the loop only when more has
//! come together; and since the end of a burst may be less, the loop looks by itself after a moment.
//!
//! A stream is many small reads, each soon after the one before, with nothing sent the other way in between: a dialogue never is one. What a
//! stream's last piece waits for at most is [`PATIENCE`]; a piece that had to wait for it ends the stream.

use crate::time::{Duration, Instant};

/// Octets for which the loop is woken while a stream lasts.
pub(super) const ENOUGH: usize = 32 << 10;
/// How long less than that may wait. The poll counts in milliseconds.
const PATIENCE: Duration = Duration::from_millis(1);

/// A read of fewer octets is a small one.
const SMALL: usize = 16 << 10;
/// The next piece of a stream comes within this time.
const SOON: Duration = Duration::from_micros(200);
/// Small reads that make a stream.
const RUN: u8 = 32;

/// What is to be asked of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Advice {
    /// Nothing new.
    Keep,
    /// Wake the loop for [`ENOUGH`] octets only, and look when [`Wakeup::look_at`] says.
    Enough,
    /// Wake the loop for every octet.
    Each,
}

/// How one connection's octets have been coming.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wakeup {
    /// When it was read last.
    last: Instant,
    /// Small reads in a row.
    run: u8,
    /// Whether the kernel waits for [`ENOUGH`].
    stream: bool,
}

impl Wakeup {
    /// `octets` were read, until there were no more.
    pub(super) fn read(&mut self, octets: usize, now: Instant) -> Advice {
        let soon = now.since(self.last) <= SOON;
        self.last = now;
        if self.stream {
            if octets >= SMALL {
                return Advice::Keep;
            }
            *self = Wakeup { last: now, ..Wakeup::default() };
            return Advice::Each;
        }
        let piece = (1..SMALL).contains(&octets) && soon;
        self.run = if piece { self.run.saturating_add(1) } else { 0 };
        if self.run < RUN {
            return Advice::Keep;
        }
        self.stream = true;
        Advice::Enough
    }

    /// Something was sent the other way: a dialogue.
    pub(super) fn wrote(&mut self) -> Advice {
        self.run = 0;
        if core::mem::take(&mut self.stream) { Advice::Each } else { Advice::Keep }
    }

    /// When to look for octets that the kernel may be keeping back.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.stream.then(|| self.last + PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Instant {
        Instant::from_micros(micros)
    }

    /// Small pieces, one every 20 µs, until something is advised.
    fn streaming() -> Wakeup {
        let mut wakeup = Wakeup::default();
        let advice: Vec<Advice> = (1..=32).map(|piece| wakeup.read(1_024, at(piece * 20))).collect();
        assert_eq!(advice.iter().filter(|advice| **advice != Advice::Keep).count(), 1);
        assert_eq!(wakeup.look_at(), Some(at(32 * 20) + PATIENCE));
        wakeup
    }

    #[test]
    fn a_run_of_small_reads_is_a_stream() {
        streaming();
    }

    #[test]
    fn a_stream_lasts_while_enough_comes_together() {
        let mut wakeup = streaming();
        assert_eq!(wakeup.read(ENOUGH, at(1_000)), Advice::Keep);
        assert_eq!(wakeup.look_at(), Some(at(1_000) + PATIENCE));
        assert_eq!(wakeup.read(100, at(2_000)), Advice::Each);
        assert_eq!(wakeup.look_at(), None);
    }

    #[test]
    fn a_dialogue_is_never_a_stream() {
        let mut wakeup = Wakeup::default();
        for turn in 0..1_000 {
            assert_eq!(wakeup.read(100, at(turn * 50)), Advice::Keep);
            assert_eq!(wakeup.wrote(), Advice::Keep);
        }
        let mut wakeup = streaming();
        assert_eq!(wakeup.wrote(), Advice::Each);
    }

    #[test]
    fn large_reads_and_slow_ones_are_none_either() {
        let mut wakeup = Wakeup::default();
        for turn in 0..1_000 {
            assert_eq!(wakeup.read(SMALL, at(turn * 20)), Advice::Keep);
        }
        for turn in 0..1_000 {
            assert_eq!(wakeup.read(100, at(100_000 + turn * 300)), Advice::Keep);
        }
    }
}
