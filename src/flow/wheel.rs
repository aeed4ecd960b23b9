//! A hierarchical timer wheel: one deadline for each slab index.

use crate::time::Instant;

/// Deadlines by slab index, rounded up to a millisecond.
#[derive(Debug, Default)]
pub struct TimerWheel {}

impl TimerWheel {
    /// An empty wheel.
    pub fn new() -> TimerWheel {
        todo!()
    }

    /// Sets or moves the deadline of `index`.
    pub fn set(&mut self, _index: u32, _deadline: Instant) {
        todo!()
    }

    /// Removes the deadline of `index`, if it has one.
    pub fn cancel(&mut self, _index: u32) {
        todo!()
    }

    /// The deadline of `index`.
    pub fn deadline(&self, _index: u32) -> Option<Instant> {
        todo!()
    }

    /// When [`TimerWheel::pop`] should be called next: never later than the earliest deadline; it may be earlier.
    pub fn next_deadline(&self) -> Option<Instant> {
        todo!()
    }

    /// Takes one index whose deadline is not after `now`; none left gives `None`.
    pub fn pop(&mut self, _now: Instant) -> Option<u32> {
        todo!()
    }
}
