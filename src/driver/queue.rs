//! Whose turn it is: the sockets that have something to do, and how much of it may be done before it is time for other things.
//!
//! The theory is in the loop's own words ([`super`]).

use crate::engine::SocketId;
use std::collections::VecDeque;

/// Octets read from all sockets, and octets of rings written to them, in one turn: half a millisecond of a core.
const TURN_OCTETS: usize = 1 << 20;
/// Octets of one socket before another is served.
pub(super) const SHARE: usize = 256 << 10;
/// A system call costs as much as this many octets do.
const CALL: usize = 4 << 10;

/// When a socket is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Turn {
    /// Before those that have had a share: an event has told of it.
    First,
    /// After all others that wait.
    InCircle,
}

/// The sockets that wait.
#[derive(Debug, Default)]
pub(super) struct Queue {
    first: VecDeque<SocketId>,
    circle: VecDeque<SocketId>,
    /// Octets that are left in this turn.
    left: usize,
    /// One of the circle was served in this turn.
    circled: bool,
}

impl Queue {
    pub(super) fn begin_turn(&mut self) {
        self.left = TURN_OCTETS;
        self.circled = false;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.circle.is_empty()
    }

    pub(super) fn push(&mut self, id: SocketId, turn: Turn) {
        match turn {
            Turn::First => self.first.push_back(id),
            Turn::InCircle => self.circle.push_back(id),
        }
    }

    /// Who is served next; nobody when the turn is over.
    pub(super) fn pop(&mut self) -> Option<SocketId> {
        if self.left > 0
            && let Some(id) = self.first.pop_front()
        {
            return Some(id);
        }
        let id = self.circle.front().copied().filter(|_| self.left > 0 || !self.circled)?;
        // However many events there are, they do not starve the circle.
        if !self.circled {
            self.circled = true;
            self.left = self.left.max(SHARE);
        }
        self.circle.pop_front();
        Some(id)
    }

    /// How much may be read or written for one socket now.
    pub(super) fn share(&self) -> usize {
        self.left.min(SHARE)
    }

    /// A system call has moved so many octets, or none.
    pub(super) fn charge(&mut self, octets: usize) {
        self.charge_calls(1, octets);
    }

    /// So many system calls have moved so many octets together.
    pub(super) fn charge_calls(&mut self, calls: usize, octets: usize) {
        self.left = self.left.saturating_sub(octets.max(calls.saturating_mul(CALL)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> SocketId {
        SocketId::from_bits(number)
    }

    #[test]
    fn those_that_an_event_told_of_come_first() {
        let mut queue = Queue::default();
        queue.push(id(1), Turn::InCircle);
        queue.push(id(2), Turn::First);
        queue.push(id(3), Turn::First);
        queue.begin_turn();
        let order: Vec<_> = core::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [id(2), id(3), id(1)]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_turn_ends_with_its_octets_and_one_of_the_circle_is_served_in_each() {
        let mut queue = Queue::default();
        for number in 0..10 {
            queue.push(id(number), Turn::First);
        }
        queue.push(id(100), Turn::InCircle);
        queue.push(id(101), Turn::InCircle);
        queue.begin_turn();
        let mut served = Vec::new();
        while let Some(next) = queue.pop() {
            queue.charge(queue.share());
            served.push(next);
        }
        let shares = (TURN_OCTETS / SHARE) as u64;
        let expected: Vec<_> = (0..shares).chain([100]).map(id).collect();
        assert_eq!(served, expected);
        queue.begin_turn();
        assert_eq!(queue.pop(), Some(id(shares)));
    }

    #[test]
    fn small_calls_end_a_turn_too() {
        let mut queue = Queue::default();
        for number in 0..1_000 {
            queue.push(id(number), Turn::First);
        }
        queue.begin_turn();
        let served = core::iter::from_fn(|| queue.pop().inspect(|_| queue.charge(1))).count();
        assert_eq!(served, TURN_OCTETS / CALL);
    }
}
