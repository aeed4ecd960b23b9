//! Keeps a routing loop from filling the tables.
//!
//! When the proxy's own connections come back into the tunnel, each attempt to reach a target makes
//! the proxy try the same target again: attempts to one destination pile up and none is ever answered. So
//! the number of unanswered attempts to one destination is bounded. Beyond the bound a new attempt is parked: it
//! is made when an earlier one was answered, either way. If the earlier ones all time out with others parked behind
//! them, the destination is dead or there is a loop; both end here with a refusal instead of a full table.
//!
//! A busy destination never notices: its attempts are answered and make room for each other.

use crate::flow::FlowId;
use crate::rng::KeyedHash;
use crate::wire::Endpoint;
use std::collections::{HashMap, VecDeque};

/// Unanswered attempts to one destination before further ones are parked.
pub(super) const UNANSWERED_LIMIT: usize = 256;

/// Attempts to one destination that wait: one destination must not fill the SYN queue.
pub(super) const PARKED_LIMIT: usize = 2048;

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

/// Attempts under way by destination. Bounded by the flow table, since each entry belongs to a flow.
#[derive(Debug)]
pub(super) struct LoopGuard {
    destinations: HashMap<Endpoint, Attempts, KeyedHash>,
}

impl LoopGuard {
    pub(super) fn new(hash: KeyedHash) -> LoopGuard {
        LoopGuard { destinations: HashMap::with_hasher(hash) }
    }

    /// Asks to make an attempt for `flow`.
    pub(super) fn attempt(&mut self, remote: Endpoint, flow: FlowId) -> Attempt {
        let attempts = self.destinations.entry(remote).or_default();
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
    pub(super) fn answered(&mut self, remote: Endpoint) -> Option<FlowId> {
        let attempts = self.destinations.get_mut(&remote)?;
        if let Some(next) = attempts.parked.pop_front() {
            return Some(next);
        }
        attempts.unanswered = attempts.unanswered.saturating_sub(1);
        if attempts.unanswered == 0 {
            self.destinations.remove(&remote);
        }
        None
    }

    /// An attempt has timed out without an answer. With others parked behind a full set of unanswered attempts this is the
    /// signature of a loop: gives the parked flows, to be refused.
    pub(super) fn timed_out(&mut self, remote: Endpoint) -> VecDeque<FlowId> {
        let parked = self.destinations.get_mut(&remote).map(|attempts| core::mem::take(&mut attempts.parked));
        let none = self.answered(remote);
        debug_assert!(none.is_none(), "the parked flows were just taken");
        parked.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn guard() -> (LoopGuard, Endpoint) {
        let remote = Endpoint::new("192.0.2.1".parse().expect("address"), 80);
        (LoopGuard::new(Rng::new([1; 16]).keyed_hash()), remote)
    }

    #[test]
    fn attempts_beyond_the_limit_wait_until_one_is_answered() {
        let (mut guard, remote) = guard();
        for n in 0..UNANSWERED_LIMIT as u64 {
            assert_eq!(guard.attempt(remote, FlowId::from_bits(n)), Attempt::Go);
        }
        let waiting = FlowId::from_bits(9_999);
        assert_eq!(guard.attempt(remote, waiting), Attempt::Parked);
        assert_eq!(guard.answered(remote), Some(waiting));
        assert_eq!(guard.answered(remote), None);
        assert_eq!(guard.attempt(remote, waiting), Attempt::Go, "an answer makes room");
    }

    #[test]
    fn one_destination_parks_no_more_than_its_share() {
        let (mut guard, remote) = guard();
        let all = UNANSWERED_LIMIT + PARKED_LIMIT;
        let refused =
            (0..all as u64 + 5).filter(|n| guard.attempt(remote, FlowId::from_bits(*n)) == Attempt::TooMany);
        assert_eq!(refused.count(), 5);
        assert_eq!(guard.timed_out(remote).len(), PARKED_LIMIT);
    }

    #[test]
    fn a_time_out_with_flows_parked_gives_them_all_up() {
        let (mut guard, remote) = guard();
        for n in 0..UNANSWERED_LIMIT as u64 + 3 {
            assert_ne!(guard.attempt(remote, FlowId::from_bits(n)), Attempt::TooMany);
        }
        assert_eq!(guard.timed_out(remote).len(), 3);
        for _ in 1..UNANSWERED_LIMIT {
            assert!(guard.timed_out(remote).is_empty());
        }
        assert!(guard.destinations.is_empty(), "nothing is kept of a destination without attempts");
    }
}
