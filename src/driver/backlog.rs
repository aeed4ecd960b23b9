//! How much of an upload waits in the kernel behind what it has sent.
//!
//! A kernel's send buffer grows to several round trips' worth, and what was written to it leaves in order: on a slow path seconds lie between what
//! the app writes and what leaves, and the app, which is told that all of it is gone, can put nothing before it. So the kernel is asked to take
//! no more than [`LITTLE`] ahead of what it can send (TCP_NOTSENT_LOWAT, tcp(7)) while a path is slow. On a fast one that would cost a wake-up
//! for every few segments and buy no time worth having: there the kernel's own measure stays.

use crate::time::{Duration, Instant};

/// Octets ahead on a slow path.
pub(super) const LITTLE: u32 = 128 << 10;
/// A path that takes as many octets in a second is fast: [`LITTLE`] is four milliseconds.
const FAST: u64 = 32 << 20;
/// How long a path is watched before it is judged.
const WATCHED: Duration = Duration::from_millis(50);
/// Octets do not wait that long for each other: the app was silent meanwhile.
const SILENCE: Duration = Duration::from_secs(10);

/// How fast one connection takes what is written to it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backlog {
    since: Instant,
    written: u32,
    slow: bool,
}

impl Backlog {
    /// The socket took so many octets.
    pub(super) fn wrote(&mut self, octets: usize) {
        self.written = self.written.saturating_add(u32::try_from(octets).unwrap_or(u32::MAX));
    }

    /// Octets have waited for the socket, so that it is what bounds the stream: whether the path is slow, if that is news.
    pub(super) fn waited(&mut self, now: Instant) -> Option<bool> {
        let watched = now.since(self.since);
        if self.written == 0 || watched >= SILENCE {
            (self.since, self.written) = (now, 0);
            return None;
        }
        if watched < WATCHED {
            return None;
        }
        let slow = u64::from(self.written) * 1_000_000 / (watched.as_micros() as u64) < FAST;
        (self.since, self.written) = (now, 0);
        let news = slow != self.slow;
        self.slow = slow;
        news.then_some(slow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said while `per_ms` octets are taken in each of 200 ms from `start` on.
    fn said(backlog: &mut Backlog, start: u64, per_ms: usize) -> Vec<bool> {
        let each = |ms| {
            let news = backlog.waited(Instant::from_millis(start + ms));
            backlog.wrote(per_ms);
            news
        };
        (0..200).filter_map(each).collect()
    }

    #[test]
    fn a_path_is_judged_by_what_it_takes_and_a_change_is_said_once() {
        let mut backlog = Backlog::default();
        assert!(said(&mut backlog, 0, 1_000_000).is_empty());
        assert_eq!(said(&mut backlog, 200, 2_500), [true]);
        assert_eq!(said(&mut backlog, 400, 1_000_000), [false]);
    }

    #[test]
    fn silence_is_not_held_against_a_path() {
        let mut backlog = Backlog::default();
        backlog.wrote(4 << 20);
        assert_eq!(backlog.waited(Instant::from_millis(1_000_000)), None);
        assert!(said(&mut backlog, 1_000_000, 1_000_000).is_empty());
        assert!(said(&mut backlog, 2_000_000, 1_000_000).is_empty());
    }
}
