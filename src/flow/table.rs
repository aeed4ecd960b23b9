//! Entries found by key or by id, at most so many of them.
//!
//! # Theory of operation
//!
//! Keys and entries lie in a [`Slab`] and are named by slot and generation ([`FlowId`]). A [`HashIndex`] leads from the hash of a key to
//! its slot; the key itself is there once. The hash is keyed, since keys hold addresses and ports that others choose, and the index is never
//! walked: its order would differ from run to run.
//!
//! Cost: one hash for insert, find and remove, none for access by id. Memory follows the number of entries, up and down.

use super::index::HashIndex;
use super::slab::Slab;
use crate::rng::KeyedHash;
use core::fmt;
use core::hash::{BuildHasher, Hash};

/// Names an entry of a [`FlowTable`] or a [`Slab`] for as long as it lives: index and generation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowId {
    index: u32,
    generation: u32,
}

impl FlowId {
    pub(super) const fn new(index: u32, generation: u32) -> FlowId {
        FlowId { index, generation }
    }

    /// The slab index: dense, reused after the entry is gone; what a [`super::TimerWheel`] takes.
    pub const fn index(self) -> u32 {
        self.index
    }

    /// Which of the entries at its index this is; never `u32::MAX`.
    pub(super) const fn generation(self) -> u32 {
        self.generation
    }

    /// Index and generation in one word, for a poll token.
    pub const fn to_bits(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    /// The inverse of [`FlowId::to_bits`].
    pub const fn from_bits(bits: u64) -> FlowId {
        FlowId { index: bits as u32, generation: (bits >> 32) as u32 }
    }
}

/// Entries of type `T`, found by key or by id, at most `capacity` of them.
pub struct FlowTable<K, T> {
    slab: Slab<(K, T)>,
    index: HashIndex,
    hash: KeyedHash,
    capacity: usize,
}

impl<K, T> fmt::Debug for FlowTable<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowTable")
            .field("len", &self.slab.len())
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

impl<K: Hash + Eq + Copy, T> FlowTable<K, T> {
    /// An empty table for at most `capacity` entries, indexed under `hash`.
    /// Memory is taken as entries come, not beforehand.
    pub fn new(capacity: usize, hash: KeyedHash) -> FlowTable<K, T> {
        FlowTable { slab: Slab::new(), index: HashIndex::default(), hash, capacity }
    }

    /// Adds an entry. Gives it back when the table is full or the key is taken.
    pub fn insert(&mut self, key: K, value: T) -> Result<FlowId, T> {
        let hash = self.hash_of(&key);
        if self.is_full() || self.find_hashed(hash, &key).is_some() {
            return Err(value);
        }
        let id = self.slab.insert((key, value)).map_err(|(_, value)| value)?;
        self.index.insert(hash, id.index());
        Ok(id)
    }

    fn hash_of(&self, key: &K) -> u32 {
        self.hash.hash_one(key) as u32
    }

    #[inline]
    fn find_hashed(&self, hash: u32, key: &K) -> Option<FlowId> {
        self.index.find(hash, |index| match self.slab.entry_at(index) {
            Some((id, (other, _))) if other == key => Some(id),
            Some(_) | None => None,
        })
    }

    /// The id under `key`.
    pub fn find(&self, key: &K) -> Option<FlowId> {
        self.find_hashed(self.hash_of(key), key)
    }

    /// The entry, unless it is gone.
    #[inline]
    pub fn get(&self, id: FlowId) -> Option<&T> {
        self.slab.get(id).map(|(_, value)| value)
    }

    /// The entry, unless it is gone.
    #[inline]
    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut T> {
        self.slab.get_mut(id).map(|(_, value)| value)
    }

    /// The key of an entry.
    pub fn key(&self, id: FlowId) -> Option<&K> {
        self.slab.get(id).map(|(key, _)| key)
    }

    /// The live id at a slab index, as a timer wheel gives it back.
    pub fn id_at(&self, index: u32) -> Option<FlowId> {
        self.slab.id_at(index)
    }

    /// Removes an entry.
    pub fn remove(&mut self, id: FlowId) -> Option<(K, T)> {
        let (key, value) = self.slab.remove(id)?;
        self.index.remove(self.hash_of(&key), id.index());
        Some((key, value))
    }

    /// Entries at present.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// One more than the largest index in use, or a little more: where a walk by [`FlowTable::id_at`] ends.
    pub fn slots(&self) -> u32 {
        self.slab.slots()
    }

    /// Entries at most.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether the next insert is refused.
    pub fn is_full(&self) -> bool {
        self.len() >= self.capacity
    }

    /// All ids in slab order. Cost: the whole slab; for shutdown and for reports.
    pub fn ids(&self) -> impl Iterator<Item = FlowId> + '_ {
        self.slab.ids()
    }

    /// Octets of slots and index.
    pub fn octets(&self) -> usize {
        self.slab.octets() + self.index.octets()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Rng, SEED_LEN};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn table(capacity: usize) -> FlowTable<u16, u32> {
        FlowTable::new(capacity, Rng::new([3; SEED_LEN]).keyed_hash())
    }

    #[test]
    fn an_id_never_names_the_successor_in_its_slot() {
        let mut table = table(1);
        let first = table.insert(1, 10).unwrap();
        assert_eq!(table.remove(first), Some((1, 10)));
        let second = table.insert(1, 20).unwrap();
        assert_eq!(first.index(), second.index());
        assert_eq!(table.get(first), None);
        assert_eq!(table.get_mut(first), None);
        assert_eq!(table.key(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.get(second), Some(&20));
        assert_eq!(table.id_at(second.index()), Some(second));
    }

    #[test]
    fn a_full_table_and_a_taken_key_give_the_value_back() {
        let mut table = table(2);
        table.insert(1, 10).unwrap();
        assert_eq!(table.insert(1, 11), Err(11));
        table.insert(2, 20).unwrap();
        assert!(table.is_full());
        assert_eq!(table.insert(3, 30), Err(30));
        assert_eq!(table.len(), 2);
        assert_eq!(table.find(&3), None);
    }

    #[test]
    fn bits_and_ids_are_the_same_thing() {
        let id = FlowId { index: 0x8000_0001, generation: 0xffff_fffe };
        assert_eq!(id.to_bits(), 0xffff_fffe_8000_0001);
        assert_eq!(FlowId::from_bits(id.to_bits()), id);
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Insert(u16, u32),
        Remove(prop::sample::Index),
        Change(prop::sample::Index, u32),
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            3 => (0u16..40, any::<u32>()).prop_map(|(key, value)| Operation::Insert(key, value)),
            2 => any::<prop::sample::Index>().prop_map(Operation::Remove),
            1 => (any::<prop::sample::Index>(), any::<u32>()).prop_map(|(at, value)| Operation::Change(at, value)),
        ]
    }

    proptest! {
        /// Whatever is done, the table holds what a map holds, and no id that was removed resolves.
        #[test]
        fn the_table_agrees_with_a_map(operations in prop::collection::vec(operation(), 0..300)) {
            let mut table = table(16);
            let mut model: BTreeMap<u16, u32> = BTreeMap::new();
            let mut ids: Vec<(u16, FlowId)> = Vec::new();
            let mut dead: Vec<FlowId> = Vec::new();
            for operation in operations {
                match operation {
                    Operation::Insert(key, value) => {
                        let refused = model.len() == 16 || model.contains_key(&key);
                        match table.insert(key, value) {
                            Ok(id) => {
                                prop_assert!(!refused);
                                model.insert(key, value);
                                ids.push((key, id));
                            }
                            Err(back) => {
                                prop_assert!(refused);
                                prop_assert_eq!(back, value);
                            }
                        }
                    }
                    Operation::Remove(at) => {
                        if !ids.is_empty() {
                            let (key, id) = ids.swap_remove(at.index(ids.len()));
                            let value = model.remove(&key).unwrap();
                            prop_assert_eq!(table.remove(id), Some((key, value)));
                            dead.push(id);
                        }
                    }
                    Operation::Change(at, value) => {
                        if !ids.is_empty() {
                            let (key, id) = ids[at.index(ids.len())];
                            *table.get_mut(id).unwrap() = value;
                            model.insert(key, value);
                        }
                    }
                }
                prop_assert_eq!(table.len(), model.len());
                prop_assert_eq!(table.is_full(), model.len() == 16);
                for (key, id) in &ids {
                    prop_assert_eq!(table.find(key), Some(*id));
                    prop_assert_eq!(table.get(*id), model.get(key));
                    prop_assert_eq!(table.key(*id), Some(key));
                    prop_assert_eq!(table.id_at(id.index()), Some(*id));
                }
                for id in &dead {
                    prop_assert_eq!(table.get(*id), None);
                    prop_assert_eq!(table.remove(*id), None);
                }
                let mut listed: Vec<FlowId> = table.ids().collect();
                prop_assert!(listed.is_sorted_by_key(|id| id.index()));
                let mut live: Vec<FlowId> = ids.iter().map(|(_, id)| *id).collect();
                listed.sort_by_key(|id| id.to_bits());
                live.sort_by_key(|id| id.to_bits());
                prop_assert_eq!(listed, live);
            }
        }
    }
}
