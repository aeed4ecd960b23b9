//! Octets of one direction of a flow, in a ring whose memory comes from a shared pool.
//!
//! A ring without octets holds no memory: an idle flow costs its state and nothing else. Sizes are powers of two
//! from [`SMALLEST`] to [`LARGEST`], so that positions wrap by a mask and buffers of ended flows fit new ones. The pool has a budget
//! for all flows together, and what one flow should have falls with the square of what is left of it ([`Pool::share`]): thousands that stand
//! still leave room for one that moves. When it is spent all the same, [`Pool::take`] gives nothing and the caller drops what would not fit (the peer
//! sends it again) or offers no room.

/// The smallest buffer.
pub(super) const SMALLEST: usize = 4 << 10;
/// The largest buffer.
pub(super) const LARGEST: usize = 4 << 20;
/// Size classes.
const CLASSES: usize = (LARGEST / SMALLEST).ilog2() as usize + 1;
/// Octets of unused buffers that are kept for reuse.
const KEPT: usize = 16 << 20;

/// Buffers in use and kept.
#[derive(Debug)]
pub(super) struct Pool {
    free: [Vec<Box<[u8]>>; CLASSES],
    kept: usize,
    used: usize,
    budget: usize,
}

fn class(len: usize) -> usize {
    (len.max(SMALLEST).next_power_of_two() / SMALLEST).ilog2() as usize
}

impl Pool {
    pub(super) fn new(budget: usize) -> Pool {
        Pool { free: [const { Vec::new() }; CLASSES], kept: 0, used: 0, budget }
    }

    /// A buffer of at least `len` octets; `None` when `len` is beyond the largest or the budget is spent.
    fn take(&mut self, len: usize) -> Option<Box<[u8]>> {
        if len > LARGEST {
            return None;
        }
        let class = class(len);
        let size = SMALLEST << class;
        if self.used + size > self.budget {
            return None;
        }
        self.used += size;
        match self.free[class].pop() {
            Some(buffer) => {
                self.kept -= size;
                Some(buffer)
            }
            None => Some(vec![0; size].into_boxed_slice()),
        }
    }

    fn give(&mut self, buffer: Box<[u8]>) {
        let size = buffer.len();
        if size == 0 {
            return;
        }
        self.used -= size;
        if self.kept + size <= KEPT {
            self.kept += size;
            self.free[class(size)].push(buffer);
        }
    }

    /// The largest buffer that one flow should have at present: less the less there is, and never nothing.
    pub(super) fn share(&self) -> usize {
        let left = self.budget.saturating_sub(self.used) as u64;
        let share = left.saturating_mul(left) / (self.budget as u64).max(1) / 64;
        1 << share.clamp(SMALLEST as u64, LARGEST as u64).ilog2()
    }

    /// Octets of buffers in use.
    pub(super) fn used(&self) -> usize {
        self.used
    }
}

/// A ring of octets.
#[derive(Debug, Default)]
pub(super) struct Ring {
    buffer: Box<[u8]>,
    head: usize,
    len: usize,
}

impl Ring {
    /// Octets stored.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Octets that fit without growing.
    pub(super) fn capacity(&self) -> usize {
        self.buffer.len()
    }

    fn wrap(&self, position: usize) -> usize {
        position & self.buffer.len().wrapping_sub(1)
    }

    /// `len` octets from `offset` behind the head, in two slices, whether stored or not yet.
    fn span(&self, offset: usize, len: usize) -> (core::ops::Range<usize>, core::ops::Range<usize>) {
        debug_assert!(offset + len <= self.capacity());
        if len == 0 {
            return (0..0, 0..0);
        }
        let start = self.wrap(self.head + offset);
        let first = len.min(self.capacity() - start);
        (start..start + first, 0..len - first)
    }

    /// Stored octets `[offset, offset + len)`, cut to what is stored.
    pub(super) fn slices(&self, offset: usize, len: usize) -> (&[u8], &[u8]) {
        let len = len.min(self.len.saturating_sub(offset));
        let (first, second) = self.span(offset.min(self.len), len);
        (&self.buffer[first], &self.buffer[second])
    }

    /// Free space behind what is stored, at most `limit` octets.
    pub(super) fn free_slices(&mut self, limit: usize) -> (&mut [u8], &mut [u8]) {
        let len = limit.min(self.capacity() - self.len);
        let (first, second) = self.span(self.len, len);
        if second.is_empty() {
            return (&mut self.buffer[first], &mut []);
        }
        let (front, back) = self.buffer.split_at_mut(first.start);
        (&mut back[..first.len()], &mut front[second])
    }

    /// The next `len` octets behind what is stored count as stored.
    pub(super) fn commit(&mut self, len: usize) {
        self.len += len.min(self.capacity() - self.len);
    }

    /// Copies octets to `offset` behind the head without counting them as stored; they must fit.
    pub(super) fn write_at(&mut self, offset: usize, octets: &[u8]) {
        let (first, second) = self.span(offset, octets.len());
        let (a, b) = octets.split_at(first.len());
        self.buffer[first].copy_from_slice(a);
        self.buffer[second].copy_from_slice(b);
    }

    /// Frees the first `len` octets.
    pub(super) fn consume(&mut self, len: usize) {
        let len = len.min(self.len);
        self.head = self.wrap(self.head + len);
        self.len -= len;
    }

    /// Makes room for `len` octets behind the head, keeping everything at its offset; `false` when the pool has none.
    pub(super) fn reserve(&mut self, len: usize, pool: &mut Pool) -> bool {
        if len <= self.capacity() {
            return true;
        }
        let Some(buffer) = pool.take(len) else { return false };
        let old = core::mem::replace(&mut self.buffer, buffer);
        let (a, b) = old.split_at(self.head);
        self.buffer[..b.len()].copy_from_slice(b);
        self.buffer[b.len()..b.len() + a.len()].copy_from_slice(a);
        self.head = 0;
        pool.give(old);
        true
    }

    /// Gives the memory back; what is stored is lost.
    pub(super) fn release(&mut self, pool: &mut Pool) {
        pool.give(core::mem::take(&mut self.buffer));
        self.head = 0;
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[test]
    fn the_budget_bounds_what_is_taken_and_is_given_back() {
        let mut pool = Pool::new(3 * SMALLEST);
        let mut ring = Ring::default();
        let mut other = Ring::default();
        assert!(ring.reserve(5_000, &mut pool));
        assert_eq!((ring.capacity(), pool.used()), (2 * SMALLEST, 2 * SMALLEST));
        assert!(!other.reserve(5_000, &mut pool));
        assert!(other.reserve(10, &mut pool));
        ring.release(&mut pool);
        assert_eq!(pool.used(), SMALLEST);
        assert!(!ring.reserve(LARGEST + 1, &mut pool));
    }

    #[test]
    fn flows_that_stand_still_leave_something_to_the_next() {
        let mut pool = Pool::new(512 << 20);
        let mut sizes = Vec::new();
        for _ in 0..5_000 {
            let mut ring = Ring::default();
            assert!(ring.reserve(pool.share(), &mut pool), "after {} flows", sizes.len());
            sizes.push(ring.capacity());
        }
        assert_eq!((sizes[0], sizes.iter().min()), (LARGEST, Some(&SMALLEST)));
        assert!(sizes.is_sorted_by(|a, b| a >= b));
    }

    proptest! {
        #[test]
        fn a_ring_is_a_queue(steps in proptest::collection::vec((0u8..3, 0usize..9_000), 1..60)) {
            let mut pool = Pool::new(64 << 20);
            let mut ring = Ring::default();
            let mut model = VecDeque::new();
            let mut next = 0u8;
            for (kind, amount) in steps {
                match kind {
                    0 => {
                        prop_assert!(ring.reserve(ring.len() + amount, &mut pool));
                        let (a, b) = ring.free_slices(amount);
                        prop_assert_eq!(a.len() + b.len(), amount);
                        for slot in a.iter_mut().chain(b) {
                            next = next.wrapping_add(1);
                            *slot = next;
                            model.push_back(next);
                        }
                        ring.commit(amount);
                    }
                    1 => {
                        let amount = amount.min(ring.len());
                        ring.consume(amount);
                        model.drain(..amount);
                    }
                    _ => {
                        // Ahead of what is stored, then stored.
                        prop_assert!(ring.reserve(ring.len() + amount, &mut pool));
                        let octets: Vec<u8> = (0..amount).map(|n| n as u8).collect();
                        ring.write_at(ring.len(), &octets);
                        ring.commit(amount);
                        model.extend(octets);
                    }
                }
                let (a, b) = ring.slices(0, usize::MAX);
                prop_assert!(a.iter().chain(b).eq(model.iter()));
            }
            ring.release(&mut pool);
            prop_assert_eq!(pool.used(), 0);
        }
    }
}
