//! A hierarchical timer wheel: one deadline for each slab index.
//!
//! # Theory of operation
//!
//! Time is counted in ticks of 1 ms. A deadline is rounded up to a tick and the present down, so nothing fires early.
//! A tick is read as digits to the base 64, and there is a wheel of 64 slots for each digit. `elapsed` is the
//! tick up to which time was followed. A deadline lies on the wheel of the highest digit in which it differs
//! from `elapsed`, in the slot of its own digit there; one that does not differ is due. Hence:
//!
//! - all deadlines of one slot of wheel 0 are the same tick;
//! - every deadline on a wheel is earlier than every one on the next wheel, so the first occupied slot of
//!   the first occupied wheel holds the earliest: two looks at bitmaps;
//! - when `elapsed` reaches the start of a slot of a higher wheel, the slot's deadlines move to lower wheels
//!   ("cascade"), each at most once per wheel of its life.
//!
//! Eight digits hold nine thousand years; what is further is due then.
//!
//! A slot is a circular list through the nodes, which are indexed by slab index: setting and cancelling unlink and
//! link in constant time. 16 octets for each index that has a deadline, in pages.

use super::paged::Paged;
use crate::time::Instant;
use core::fmt;

/// Bits of a digit.
const BITS: u32 = 6;
/// Slots of one wheel.
const SLOTS: usize = 1 << BITS;
/// Wheels: a digit each.
const WHEELS: usize = 8;
/// The end of time.
const LAST_TICK: u64 = (1 << (BITS * WHEELS as u32)) - 1;
/// No node.
const NIL: u32 = u32::MAX;
/// In [`Node::place`]: no deadline.
const UNSET: u16 = u16::MAX;

const _: () = assert!(LAST_TICK >> 48 == 0, "a tick fits in 48 bits");
const _: () = assert!(WHEELS * SLOTS < UNSET as usize, "a place fits in 16 bits");
/// What a deadline costs.
const _: () = assert!(size_of::<Node>() == 16);

#[derive(Clone, Copy)]
struct Node {
    /// The deadline, a tick.
    tick_low: u32,
    tick_high: u16,
    /// Wheel and slot, or [`UNSET`].
    place: u16,
    /// Neighbours in the circle of the slot.
    prev: u32,
    next: u32,
}

const IDLE: Node = Node { tick_low: 0, tick_high: 0, place: UNSET, prev: NIL, next: NIL };

impl Node {
    fn tick(&self) -> u64 {
        u64::from(self.tick_high) << 32 | u64::from(self.tick_low)
    }

    /// The same for another tick, which is at most [`LAST_TICK`].
    fn with_tick(self, tick: u64) -> Node {
        Node { tick_low: tick as u32, tick_high: (tick >> 32) as u16, ..self }
    }
}

/// A tick: at most the last one.
fn tick_of(millis: u64) -> u64 {
    millis.min(LAST_TICK)
}

/// Deadlines by slab index, rounded up to a millisecond.
pub struct TimerWheel {
    /// Claimed while they have a deadline.
    nodes: Paged<Node>,
    /// The first node of each slot, or [`NIL`]; wheel after wheel.
    heads: Box<[u32]>,
    /// Which slots of a wheel have nodes.
    occupied: [u64; WHEELS],
    /// Which wheels have occupied slots.
    wheels: u16,
    /// The tick up to which time was followed.
    elapsed: u64,
    steps: u64,
}

impl Default for TimerWheel {
    fn default() -> TimerWheel {
        TimerWheel::new()
    }
}

impl fmt::Debug for TimerWheel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimerWheel").field("next_deadline", &self.next_deadline()).finish_non_exhaustive()
    }
}

impl TimerWheel {
    /// An empty wheel.
    pub fn new() -> TimerWheel {
        TimerWheel {
            nodes: Paged::new(|| IDLE),
            heads: vec![NIL; WHEELS * SLOTS].into_boxed_slice(),
            occupied: [0; WHEELS],
            wheels: 0,
            elapsed: 0,
            steps: 0,
        }
    }

    /// Sets or moves the deadline of `index`. A deadline before the `now` of the last [`TimerWheel::pop`] is
    /// taken for that `now`. Indices are dense (of a slab); `u32::MAX` is none and is ignored.
    pub fn set(&mut self, index: u32, deadline: Instant) {
        if index == NIL {
            return;
        }
        let tick = tick_of(deadline.as_micros().div_ceil(1_000)).max(self.elapsed);
        match self.node(index) {
            // Moving a deadline to where it is costs nothing: a busy flow sets the same one for each packet.
            Some(node) if node.tick() == tick => return,
            Some(node) => self.unlink(index, node),
            None => {
                self.nodes.claim(index);
            }
        }
        self.link(index, tick);
    }

    /// The node of an index that has a deadline.
    fn node(&self, index: u32) -> Option<Node> {
        self.nodes.get(index).filter(|node| node.place != UNSET).copied()
    }

    /// Removes the deadline of `index`, if it has one.
    pub fn cancel(&mut self, index: u32) {
        if let Some(node) = self.node(index) {
            self.unlink(index, node);
            self.nodes.release(index);
        }
    }

    /// How often a deadline was put into a slot so far: the work that was done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Octets of its memory.
    pub fn octets(&self) -> usize {
        self.nodes.octets() + size_of_val(&*self.heads)
    }

    /// The deadline of `index`.
    pub fn deadline(&self, index: u32) -> Option<Instant> {
        self.node(index).map(|node| Instant::from_millis(node.tick()))
    }

    /// When [`TimerWheel::pop`] should be called next: never later than the earliest deadline; it may be earlier.
    /// A pop at that time or later gives an index or moves this on.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.first_slot().map(|(_, start)| Instant::from_millis(start))
    }

    /// Takes one index whose deadline is not after `now`; none left gives `None`. Earlier ticks come first, and
    /// within a tick no order is promised.
    pub fn pop(&mut self, now: Instant) -> Option<u32> {
        let now = tick_of(now.as_millis());
        while let Some((place, start)) = self.first_slot() {
            if start > now {
                break;
            }
            self.elapsed = start;
            let index = self.heads[usize::from(place)];
            if usize::from(place) < SLOTS {
                self.cancel(index);
                return Some(index);
            }
            self.cascade(place);
        }
        // No slot starts at or before `now`, so every deadline keeps its wheel when time moves there.
        self.elapsed = self.elapsed.max(now);
        None
    }

    /// The slot that holds the earliest deadline, and its first tick.
    fn first_slot(&self) -> Option<(u16, u64)> {
        if self.wheels == 0 {
            return None;
        }
        let wheel = self.wheels.trailing_zeros();
        let slot = self.occupied[wheel as usize].trailing_zeros();
        let shift = wheel * BITS;
        // Digits above the wheel's are those of `elapsed`; those below are zero.
        let above = self.elapsed >> (shift + BITS) << (shift + BITS);
        let place = (wheel << BITS) + slot;
        Some((place as u16, above | u64::from(slot) << shift))
    }

    /// Moves the deadlines of a slot whose time has come to lower wheels.
    fn cascade(&mut self, place: u16) {
        loop {
            let index = self.heads[usize::from(place)];
            if index == NIL {
                break;
            }
            let node = self.nodes[index];
            self.unlink(index, node);
            self.link(index, node.tick());
        }
    }

    /// Appends a node that is in no slot to the one for `tick`.
    fn link(&mut self, index: u32, tick: u64) {
        self.steps += 1;
        // At least one digit: equal ticks belong to wheel 0.
        let differing = (tick ^ self.elapsed) | (SLOTS as u64 - 1);
        let wheel = differing.ilog2() / BITS;
        let slot = tick >> (wheel * BITS) & (SLOTS as u64 - 1);
        let place = wheel as usize * SLOTS + slot as usize;
        let head = self.heads[place];
        let (prev, next) = if head == NIL {
            self.heads[place] = index;
            self.occupied[wheel as usize] |= 1 << slot;
            self.wheels |= 1 << wheel;
            (index, index)
        } else {
            let tail = core::mem::replace(&mut self.nodes[head].prev, index);
            self.nodes[tail].next = index;
            (tail, head)
        };
        self.nodes[index] = Node { prev, next, place: place as u16, ..IDLE }.with_tick(tick);
    }

    /// Takes `node`, that of `index`, out of its slot.
    fn unlink(&mut self, index: u32, node: Node) {
        let Node { prev, next, place, .. } = node;
        let place = usize::from(place);
        if next == index {
            let (wheel, slot) = (place / SLOTS, place % SLOTS);
            self.heads[place] = NIL;
            self.occupied[wheel] &= !(1 << slot);
            if self.occupied[wheel] == 0 {
                self.wheels &= !(1 << wheel);
            }
            return;
        }
        self.nodes[prev].next = next;
        self.nodes[next].prev = prev;
        if self.heads[place] == index {
            self.heads[place] = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Duration;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn drain(wheel: &mut TimerWheel, now: Instant) -> Vec<u32> {
        std::iter::from_fn(|| wheel.pop(now)).collect()
    }

    #[test]
    fn nothing_fires_early_and_a_past_deadline_fires_at_once() {
        let mut wheel = TimerWheel::new();
        wheel.set(0, Instant::from_micros(10_001));
        assert_eq!(wheel.deadline(0), Some(Instant::from_millis(11)));
        assert_eq!(wheel.pop(Instant::from_micros(10_999)), None);
        assert_eq!(wheel.pop(Instant::from_millis(11)), Some(0));
        assert_eq!(wheel.deadline(0), None);
        wheel.set(1, Instant::ZERO);
        assert_eq!(wheel.next_deadline(), Some(Instant::from_millis(11)));
        assert_eq!(wheel.pop(Instant::from_millis(11)), Some(1));
        assert_eq!(wheel.next_deadline(), None);
    }

    #[test]
    fn one_that_sleeps_until_the_next_deadline_gets_there_in_few_steps() {
        let far =
            [Duration::from_secs(7_440), Duration::from_secs(86_400 * 400), Duration::from_secs(1 << 37)];
        for wait in far {
            let mut wheel = TimerWheel::new();
            let mut now = Instant::from_micros(123_456_789);
            assert_eq!(wheel.pop(now), None);
            let deadline = now + wait;
            wheel.set(7, deadline);
            let mut steps = 0;
            loop {
                let next = wheel.next_deadline().unwrap();
                assert!(next > now, "a sleep of no length");
                now = next;
                if let Some(index) = wheel.pop(now) {
                    assert_eq!(index, 7);
                    break;
                }
                steps += 1;
                assert!(steps <= WHEELS, "a step for each wheel at most");
            }
            assert!(now >= deadline && now.since(deadline) < Duration::from_millis(1));
        }
    }

    /// Issue 4: what is done for one deadline does not depend on how many there are.
    #[test]
    fn a_deadline_among_a_hundred_thousand_costs_as_many_steps_as_one_alone() {
        const MANY: u32 = 100_000;
        let mut wheel = TimerWheel::new();
        // Two hours and four minutes from moments that lie an hour apart.
        let at = |index: u32| Instant::from_millis(u64::from(index) * 36 + 7_440_000);
        (0..MANY).for_each(|index| wheel.set(index, at(index)));
        assert_eq!(wheel.steps(), u64::from(MANY));
        for turn in 0..1_000 {
            let index = turn * 97;
            wheel.set(index, at(index) + Duration::from_secs(60));
            wheel.cancel(index);
            wheel.set(index, at(index));
        }
        assert_eq!(wheel.steps(), u64::from(MANY) + 2_000);
        // Time goes on to the last: each is moved once for each wheel at most.
        assert_eq!(drain(&mut wheel, at(MANY)).len(), MANY as usize);
        assert!(wheel.steps() <= u64::from(MANY) * WHEELS as u64 + 2_000, "{}", wheel.steps());
    }

    #[test]
    fn the_end_of_time_is_a_deadline_like_others() {
        let mut wheel = TimerWheel::new();
        wheel.set(0, Instant::from_micros(u64::MAX));
        assert_eq!(wheel.pop(Instant::from_millis(1 << 40)), None);
        assert_eq!(wheel.pop(Instant::from_micros(u64::MAX)), Some(0));
    }

    #[test]
    fn a_number_that_is_no_index_is_ignored() {
        let mut wheel = TimerWheel::new();
        wheel.set(u32::MAX, Instant::ZERO);
        wheel.cancel(u32::MAX);
        wheel.cancel(5);
        assert_eq!(wheel.deadline(u32::MAX), None);
        assert_eq!(wheel.next_deadline(), None);
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Set(u32, u64),
        Cancel(u32),
        Advance(u64),
        /// To where the wheel wants it.
        Sleep,
    }

    /// Distances in microseconds of every order of magnitude, so that all wheels are met.
    fn distance() -> impl Strategy<Value = u64> {
        (0u32..44).prop_flat_map(|bits| 0u64..1 << bits)
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            5 => (0u32..24, distance()).prop_map(|(index, at)| Operation::Set(index, at)),
            1 => (0u32..24).prop_map(Operation::Cancel),
            1 => distance().prop_map(Operation::Advance),
            4 => Just(Operation::Sleep),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        /// Against a map of deadlines: what is due comes out, earliest first, never before its time, and one that
        /// sleeps until `next_deadline` always gets on.
        #[test]
        fn the_wheel_agrees_with_a_map(
            start in distance(),
            past in 0u64..5_000,
            operations in prop::collection::vec(operation(), 0..120),
        ) {
            let mut wheel = TimerWheel::new();
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            let mut now = start;
            prop_assert_eq!(wheel.pop(Instant::from_micros(now)), None);
            for operation in operations {
                match operation {
                    Operation::Set(index, distance) => {
                        let at = (now + distance).saturating_sub(past);
                        wheel.set(index, Instant::from_micros(at));
                        model.insert(index, at.div_ceil(1_000).max(now / 1_000));
                    }
                    Operation::Cancel(index) => {
                        wheel.cancel(index);
                        model.remove(&index);
                    }
                    Operation::Advance(distance) => now += distance,
                    Operation::Sleep => {
                        if let Some(next) = wheel.next_deadline() {
                            now = now.max(next.as_micros());
                            let earliest = model.values().copied().min();
                            let popped = wheel.pop(Instant::from_micros(now));
                            if let Some(index) = popped {
                                prop_assert_eq!(model.remove(&index), earliest);
                            } else {
                                prop_assert!(wheel.next_deadline().is_none_or(|later| later > next));
                            }
                        }
                    }
                }
                let due = drain(&mut wheel, Instant::from_micros(now));
                let mut last = 0;
                for index in due {
                    let tick = model.remove(&index);
                    prop_assert!(tick.is_some_and(|tick| last <= tick && tick <= now / 1_000), "{index} {tick:?}");
                    last = tick.unwrap_or(0);
                }
                prop_assert!(model.values().all(|tick| *tick > now / 1_000));
                for index in 0..24 {
                    prop_assert_eq!(wheel.deadline(index), model.get(&index).map(|tick| Instant::from_millis(*tick)));
                }
                let next = wheel.next_deadline();
                prop_assert_eq!(next.is_some(), !model.is_empty());
                if let (Some(next), Some(earliest)) = (next, model.values().min()) {
                    prop_assert!(next <= Instant::from_millis(*earliest));
                    prop_assert!(next > Instant::from_micros(now));
                }
            }
        }
    }
}
