//! Keeps a routing loop from filling the tables.
//!
//! When the proxy's own connections come back into the tunnel, each attempt to reach a target makes
//! the proxy try the same target again: attempts to one destination pile up and none is ever answered. The same happens to the direct way
//! out when another program deletes the rules that keep ztun's own packets outside. So
//! the number of unanswered attempts to one destination by one way is bounded. Beyond the bound a new attempt is parked: it
//! is made when an earlier one was answered, either way. If the earlier ones all time out with others parked behind
//! them, the destination is dead or there is a loop; both end here with a refusal instead of a full table.
//!
//! A busy destination never notices: its attempts are answered and make room for each other.
//!
//! Datagrams loop in the same way, each round by a socket of its own, but nothing says that a datagram is ever answered: a
//! collector of logs answers none. So beyond the bound new senders to one silent destination are let through at a small rate
//! ([`NEW_SENDERS`]): a loop turns that slowly, and others are not cut off.

use super::association::Way;
use crate::flow::FlowId;
use crate::rng::KeyedHash;
use crate::time::{Duration, Instant};
use crate::wire::Endpoint;
use std::collections::{HashMap, VecDeque};

/// Unanswered attempts to one destination before further ones are parked.
pub(super) const UNANSWERED_LIMIT: usize = 256;

/// Attempts to one destination that wait: one destination must not fill the SYN queue.
pub(super) const PARKED_LIMIT: usize = 2048;

/// New senders to one destination in a [`PERIOD`] while [`UNANSWERED_LIMIT`] others wait for its answer.
pub(super) const NEW_SENDERS: u32 = 64;

/// What [`NEW_SENDERS`] counts in.
const PERIOD: Duration = Duration::from_secs(1);

/// A loop is said at most once in this time.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// What becomes of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(super) enum Attempt {
    /// It is made, and counted until it is answered.
    Go,
    /// It comes out of [`LoopGuard::answered`] or [`LoopGuard::timed_out`] later.
    Parked,
    /// It is not made: the app may repeat its SYN.
    TooMany,
}

#[derive(Debug, Default)]
struct Attempts {
    unanswered: usize,
    parked: VecDeque<FlowId>,
}

/// Who sent datagrams to one destination and has heard nothing.
#[derive(Debug)]
struct Senders {
    unheard: usize,
    /// New ones since `since`, beyond the limit.
    new: u32,
    since: Instant,
}

/// Attempts under way by destination and way. Bounded by the flow tables, since each entry belongs to a flow or an association.
#[derive(Debug)]
pub(super) struct LoopGuard {
    destinations: HashMap<(Endpoint, Way), Attempts, KeyedHash>,
    senders: HashMap<Endpoint, Senders, KeyedHash>,
    said: Option<Instant>,
}

impl LoopGuard {
    pub(super) fn new(hash: KeyedHash, senders: KeyedHash) -> LoopGuard {
        LoopGuard {
            destinations: HashMap::with_hasher(hash),
            senders: HashMap::with_hasher(senders),
            said: None,
        }
    }

    /// Asks to make an attempt for `flow`.
    pub(super) fn attempt(&mut self, remote: Endpoint, way: Way, flow: FlowId) -> Attempt {
        let attempts = self.destinations.entry((remote, way)).or_default();
        if attempts.unanswered < UNANSWERED_LIMIT {
            attempts.unanswered += 1;
            Attempt::Go
        } else if attempts.parked.len() < PARKED_LIMIT {
            attempts.parked.push_back(flow);
            Attempt::Parked
        } else {
            Attempt::TooMany
        }
    }

    /// An attempt has been answered, or given up by the app: gives a parked flow that may now try (its attempt is counted).
    pub(super) fn answered(&mut self, remote: Endpoint, way: Way) -> Option<FlowId> {
        let attempts = self.destinations.get_mut(&(remote, way))?;
        if let Some(next) = attempts.parked.pop_front() {
            return Some(next);
        }
        attempts.unanswered = attempts.unanswered.saturating_sub(1);
        if attempts.unanswered == 0 {
            self.destinations.remove(&(remote, way));
        }
        None
    }

    /// An attempt has timed out without an answer. With others parked behind a full set of unanswered attempts this is the
    /// signature of a loop: gives the parked flows, to be refused.
    pub(super) fn timed_out(&mut self, remote: Endpoint, way: Way) -> VecDeque<FlowId> {
        let attempts = self.destinations.get_mut(&(remote, way));
        let parked = attempts.map(|attempts| core::mem::take(&mut attempts.parked));
        let none = self.answered(remote, way);
        debug_assert!(none.is_none(), "the parked flows were just taken");
        parked.unwrap_or_default()
    }

    /// Whether a new sender may send datagrams to `remote`; it is counted until [`LoopGuard::heard`].
    pub(super) fn may_send(&mut self, remote: Endpoint, now: Instant) -> bool {
        let senders = self.senders.entry(remote).or_insert(Senders { unheard: 0, new: 0, since: now });
        if senders.unheard >= UNANSWERED_LIMIT {
            if now.since(senders.since) >= PERIOD {
                (senders.since, senders.new) = (now, 0);
            }
            if senders.new >= NEW_SENDERS {
                return false;
            }
            senders.new += 1;
        }
        senders.unheard += 1;
        true
    }

    /// A sender to `remote` has its first answer, or is gone.
    pub(super) fn heard(&mut self, remote: Endpoint) {
        if let Some(senders) = self.senders.get_mut(&remote) {
            senders.unheard = senders.unheard.saturating_sub(1);
            if senders.unheard == 0 {
                self.senders.remove(&remote);
            }
        }
    }

    /// Whether a loop is to be said now: one message says it for all that it does in a while.
    pub(super) fn say(&mut self, now: Instant) -> bool {
        let due = self.said.is_none_or(|said| now.since(said) >= SAID_EVERY);
        if due {
            self.said = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn guard() -> (LoopGuard, Endpoint) {
        let remote = Endpoint::new("192.0.2.1".parse().expect("address"), 80);
        let mut rng = Rng::new([1; 16]);
        (LoopGuard::new(rng.keyed_hash(), rng.keyed_hash()), remote)
    }

    #[test]
    fn attempts_beyond_the_limit_wait_until_one_is_answered() {
        let (mut guard, remote) = guard();
        for n in 0..UNANSWERED_LIMIT as u64 {
            assert_eq!(guard.attempt(remote, Way::Proxy, FlowId::from_bits(n)), Attempt::Go);
        }
        let waiting = FlowId::from_bits(9_999);
        assert_eq!(guard.attempt(remote, Way::Proxy, waiting), Attempt::Parked);
        assert_eq!(guard.answered(remote, Way::Proxy), Some(waiting));
        assert_eq!(guard.answered(remote, Way::Proxy), None);
        assert_eq!(guard.attempt(remote, Way::Proxy, waiting), Attempt::Go, "an answer makes room");
    }

    #[test]
    fn one_destination_parks_no_more_than_its_share() {
        let (mut guard, remote) = guard();
        let all = UNANSWERED_LIMIT + PARKED_LIMIT;
        let refused = (0..all as u64 + 5)
            .filter(|n| guard.attempt(remote, Way::Proxy, FlowId::from_bits(*n)) == Attempt::TooMany);
        assert_eq!(refused.count(), 5);
        assert_eq!(guard.timed_out(remote, Way::Proxy).len(), PARKED_LIMIT);
    }

    #[test]
    fn a_time_out_with_flows_parked_gives_them_all_up() {
        let (mut guard, remote) = guard();
        for n in 0..UNANSWERED_LIMIT as u64 + 3 {
            assert_ne!(guard.attempt(remote, Way::Proxy, FlowId::from_bits(n)), Attempt::TooMany);
        }
        assert_eq!(guard.timed_out(remote, Way::Proxy).len(), 3);
        for _ in 1..UNANSWERED_LIMIT {
            assert!(guard.timed_out(remote, Way::Proxy).is_empty());
        }
        assert!(guard.destinations.is_empty(), "nothing is kept of a destination without attempts");
    }

    #[test]
    fn the_ways_out_are_counted_apart() {
        let (mut guard, remote) = guard();
        for n in 0..UNANSWERED_LIMIT as u64 {
            assert_eq!(guard.attempt(remote, Way::Proxy, FlowId::from_bits(n)), Attempt::Go);
        }
        let outside = FlowId::from_bits(9_999);
        assert_eq!(guard.attempt(remote, Way::Direct, outside), Attempt::Go, "the proxy's own connection");
        assert_eq!(guard.answered(remote, Way::Direct), None);
    }

    #[test]
    fn senders_to_a_silent_destination_come_slowly_beyond_the_limit() {
        let (mut guard, remote) = guard();
        let start = Instant::from_micros(5_000_000);
        let admitted =
            |guard: &mut LoopGuard, now| (0..1_000).filter(|_| guard.may_send(remote, now)).count();
        assert_eq!(admitted(&mut guard, start), UNANSWERED_LIMIT + NEW_SENDERS as usize);
        assert_eq!(admitted(&mut guard, start + PERIOD), NEW_SENDERS as usize);
        for _ in 0..UNANSWERED_LIMIT + 2 * NEW_SENDERS as usize {
            guard.heard(remote);
        }
        assert!(guard.senders.is_empty(), "nothing is kept of a destination that has answered");
        assert!(guard.may_send(remote, start));
    }

    #[test]
    fn a_loop_is_said_once_in_a_while() {
        let (mut guard, _) = guard();
        let start = Instant::from_micros(5_000_000);
        assert!(guard.say(start));
        assert!(!guard.say(start + Duration::from_secs(59)));
        assert!(guard.say(start + SAID_EVERY));
    }
}
