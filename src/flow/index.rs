//! From the hash of a key to the index of its slot, for keys that lie in a slab already.
//!
//! Open addressing with linear probing: a bucket holds 32 bits of the hash and the index, so that other entries are seldom looked at, and what
//! is removed closes its gap at once, so that a search never grows longer than what is there makes it. The number of buckets is a power of
//! two, doubled when thirteen in sixteen are taken and halved when only one in eight is: ten to twenty octets for an entry.

/// No slot.
const NIL: u32 = u32::MAX;

/// Buckets at least, once there is an entry.
const FEWEST: usize = 16;

#[derive(Clone, Copy)]
struct Bucket {
    hash: u32,
    slot: u32,
}

const FREE: Bucket = Bucket { hash: 0, slot: NIL };

/// Slots by hash.
#[derive(Default)]
pub(super) struct HashIndex {
    buckets: Box<[Bucket]>,
    len: usize,
}

impl HashIndex {
    /// What `look` finds in one of the slots under `hash`.
    #[inline]
    pub(super) fn find<T>(&self, hash: u32, mut look: impl FnMut(u32) -> Option<T>) -> Option<T> {
        let mask = self.buckets.len().checked_sub(1)?;
        let mut at = hash as usize & mask;
        loop {
            // Some buckets are always free.
            let bucket = self.buckets[at];
            if bucket.slot == NIL {
                return None;
            }
            if bucket.hash == hash
                && let Some(found) = look(bucket.slot)
            {
                return Some(found);
            }
            at = (at + 1) & mask;
        }
    }

    /// Adds a slot whose key is not there yet.
    pub(super) fn insert(&mut self, hash: u32, slot: u32) {
        if (self.len + 1) * 16 > self.buckets.len() * 13 {
            self.resize((self.buckets.len() * 2).max(FEWEST));
        }
        self.len += 1;
        self.put(Bucket { hash, slot });
    }

    fn put(&mut self, bucket: Bucket) {
        let mask = self.buckets.len() - 1;
        let mut at = bucket.hash as usize & mask;
        while self.buckets[at].slot != NIL {
            at = (at + 1) & mask;
        }
        self.buckets[at] = bucket;
    }

    /// Removes `slot`, which is under `hash`.
    pub(super) fn remove(&mut self, hash: u32, slot: u32) {
        let Some(mask) = self.buckets.len().checked_sub(1) else { return };
        let mut gap = hash as usize & mask;
        while self.buckets[gap].slot != slot {
            if self.buckets[gap].slot == NIL {
                return;
            }
            gap = (gap + 1) & mask;
        }
        // What comes behind moves up, unless that would put it before the place where it is looked for first.
        let mut at = gap;
        loop {
            at = (at + 1) & mask;
            let bucket = self.buckets[at];
            if bucket.slot == NIL {
                break;
            }
            let home = bucket.hash as usize & mask;
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(gap) & mask {
                self.buckets[gap] = bucket;
                gap = at;
            }
        }
        self.buckets[gap] = FREE;
        self.len -= 1;
        if self.len * 8 < self.buckets.len() && self.buckets.len() > FEWEST {
            self.resize(self.buckets.len() / 2);
        }
    }

    fn resize(&mut self, buckets: usize) {
        let old = core::mem::replace(&mut self.buckets, vec![FREE; buckets].into_boxed_slice());
        for bucket in old.iter().filter(|bucket| bucket.slot != NIL) {
            self.put(*bucket);
        }
    }

    /// Buckets that a search for a slot looks at.
    #[cfg(test)]
    fn probes(&self, hash: u32, slot: u32) -> usize {
        let mask = self.buckets.len() - 1;
        let end = (hash as usize..).position(|at| self.buckets[at & mask].slot == slot);
        end.expect("the slot is there") + 1
    }

    /// Entries.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.len
    }

    /// Octets of all buckets.
    pub(super) fn octets(&self) -> usize {
        size_of_val(&*self.buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn memory_follows_what_is_in_use() {
        let mut index = HashIndex::default();
        for slot in 0..100_000u32 {
            index.insert(slot.wrapping_mul(0x9e37_79b9), slot);
        }
        assert!(index.octets() <= 100_000 * 20, "{}", index.octets());
        for slot in 0..100_000u32 {
            let look = |found: u32| (found == slot).then_some(());
            assert!(index.find(slot.wrapping_mul(0x9e37_79b9), look).is_some());
            index.remove(slot.wrapping_mul(0x9e37_79b9), slot);
        }
        assert_eq!((index.len(), index.octets()), (0, FEWEST * 8));
    }

    /// Issue 4: a search among a hundred thousand looks at as many buckets as one among a thousand.
    #[test]
    fn a_search_looks_at_a_few_buckets_however_many_entries_there_are() {
        use crate::rng::{Rng, SEED_LEN};
        use core::hash::BuildHasher;
        let hash = Rng::new([9; SEED_LEN]).keyed_hash();
        for entries in [1_000u32, 10_000, 100_000] {
            let mut index = HashIndex::default();
            let of = |slot: u32| hash.hash_one(slot) as u32;
            (0..entries).for_each(|slot| index.insert(of(slot), slot));
            let probes: Vec<usize> = (0..entries).map(|slot| index.probes(of(slot), slot)).collect();
            let all: usize = probes.iter().sum();
            assert!(all <= 4 * entries as usize, "{all} buckets for {entries} searches");
            assert!(probes.iter().all(|probes| *probes <= 256), "{:?}", probes.iter().max());
        }
    }

    proptest! {
        /// Few hashes and many slots, so that probes collide and wrap around the end.
        #[test]
        fn the_index_agrees_with_a_list(operations in prop::collection::vec((any::<bool>(), 0u32..64, 0u32..24), 0..400)) {
            let mut index = HashIndex::default();
            let mut model: Vec<(u32, u32)> = Vec::new();
            for (insert, slot, hash) in operations {
                // Hashes near the end of every table.
                let hash = u32::MAX - hash / 3;
                let known = model.iter().position(|(_, other)| *other == slot);
                match (insert, known) {
                    (true, None) => {
                        index.insert(hash, slot);
                        model.push((hash, slot));
                    }
                    (false, Some(at)) => {
                        let (hash, slot) = model.swap_remove(at);
                        index.remove(hash, slot);
                    }
                    (true, Some(_)) => {}
                    // Not there: nothing happens.
                    (false, None) => index.remove(hash, slot),
                }
                prop_assert_eq!(index.len(), model.len());
                for (hash, slot) in &model {
                    prop_assert!(index.find(*hash, |found| (found == *slot).then_some(())).is_some());
                }
                prop_assert_eq!(index.find(hash, |_| None::<()>), None);
            }
        }
    }
}
