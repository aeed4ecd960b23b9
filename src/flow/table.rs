//! A slab with a keyed-hash index and generations.
//!
//! # Theory of operation
//!
//! Entries live in slots of one vector and are named by slot and generation ([`FlowId`]). A slot that is
//! given up goes to the head of a free list that runs through the slots themselves, and its generation
//! moves on: an id that outlives its entry, in a timer or in a poll token, resolves to nothing instead of to the
//! successor. A slot whose generations are used up is retired, so that holds without end.
//!
//! The index maps keys to slots. Its hash is keyed, since keys hold addresses and ports that others choose, and
//! the index is never walked: its order would differ from run to run.
//!
//! Cost: one hash for insert, find and remove, none for access by id. Memory grows with the largest number of
//! entries ever held at once and is kept.

use crate::rng::KeyedHash;
use core::fmt;
use core::hash::Hash;
use std::collections::HashMap;
use std::collections::hash_map;

/// Ends the free list.
const NIL: u32 = u32::MAX;

/// The first generation of a slot: not 0, so that no small number taken for [`FlowId::to_bits`] names an entry.
const FIRST_GENERATION: u32 = 1;

/// Names an entry of a [`FlowTable`] for as long as it lives: index and generation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowId {
    index: u32,
    generation: u32,
}

impl FlowId {
    /// The slab index: dense, reused after the entry is gone; what a [`super::TimerWheel`] takes.
    pub const fn index(self) -> u32 {
        self.index
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

/// What a slot holds.
enum Content<K, T> {
    /// An entry.
    Live(K, T),
    /// Nothing; the next free slot, or [`NIL`].
    Free(u32),
}

struct Slot<K, T> {
    /// Of the entry, or of the next one when there is none.
    generation: u32,
    content: Content<K, T>,
}

/// Entries of type `T`, found by key or by id, at most `capacity` of them.
pub struct FlowTable<K, T> {
    slots: Vec<Slot<K, T>>,
    index: HashMap<K, u32, KeyedHash>,
    free: u32,
    capacity: usize,
}

impl<K, T> fmt::Debug for FlowTable<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowTable")
            .field("len", &self.index.len())
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

impl<K: Hash + Eq + Copy, T> FlowTable<K, T> {
    /// An empty table for at most `capacity` entries, indexed under `hash`.
    /// Memory is taken as entries come, not beforehand.
    pub fn new(capacity: usize, hash: KeyedHash) -> FlowTable<K, T> {
        FlowTable { slots: Vec::new(), index: HashMap::with_hasher(hash), free: NIL, capacity }
    }

    /// Adds an entry. Gives it back when the table is full or the key is taken.
    pub fn insert(&mut self, key: K, value: T) -> Result<FlowId, T> {
        // Retired slots alone could bring the slab to the end of its indices, after 2^64 removals.
        if self.is_full() || (self.free == NIL && self.slots.len() >= NIL as usize) {
            return Err(value);
        }
        let hash_map::Entry::Vacant(place) = self.index.entry(key) else {
            return Err(value);
        };
        let content = Content::Live(key, value);
        let id = match self.slots.get_mut(self.free as usize) {
            Some(slot) => {
                let id = FlowId { index: self.free, generation: slot.generation };
                if let Content::Free(next) = core::mem::replace(&mut slot.content, content) {
                    self.free = next;
                }
                id
            }
            None => {
                let id = FlowId { index: self.slots.len() as u32, generation: FIRST_GENERATION };
                self.slots.push(Slot { generation: FIRST_GENERATION, content });
                id
            }
        };
        place.insert(id.index);
        Ok(id)
    }

    /// The id under `key`.
    pub fn find(&self, key: &K) -> Option<FlowId> {
        self.id_at(*self.index.get(key)?)
    }

    /// The entry, unless it is gone.
    pub fn get(&self, id: FlowId) -> Option<&T> {
        self.entry(id).map(|(_, value)| value)
    }

    /// The entry, unless it is gone.
    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut T> {
        match self.slots.get_mut(id.index as usize) {
            Some(Slot { generation, content: Content::Live(_, value) }) if *generation == id.generation => {
                Some(value)
            }
            Some(_) | None => None,
        }
    }

    /// The key of an entry.
    pub fn key(&self, id: FlowId) -> Option<&K> {
        self.entry(id).map(|(key, _)| key)
    }

    /// The live id at a slab index, as a timer wheel gives it back.
    pub fn id_at(&self, index: u32) -> Option<FlowId> {
        let slot = self.slots.get(index as usize)?;
        match slot.content {
            Content::Live(..) => Some(FlowId { index, generation: slot.generation }),
            Content::Free(_) => None,
        }
    }

    /// Removes an entry.
    pub fn remove(&mut self, id: FlowId) -> Option<(K, T)> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation || matches!(slot.content, Content::Free(_)) {
            return None;
        }
        let content = core::mem::replace(&mut slot.content, Content::Free(NIL));
        // A slot without a generation left stays empty and outside the free list for good.
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            slot.content = Content::Free(self.free);
            self.free = id.index;
        }
        match content {
            Content::Live(key, value) => {
                self.index.remove(&key);
                Some((key, value))
            }
            Content::Free(_) => None,
        }
    }

    /// Entries at present.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One more than the largest index ever in use: where a walk by [`FlowTable::id_at`] ends.
    pub fn slots(&self) -> u32 {
        // Inserting stops before indices run out.
        self.slots.len() as u32
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
        (0u32..).zip(&self.slots).filter_map(|(index, slot)| match slot.content {
            Content::Live(..) => Some(FlowId { index, generation: slot.generation }),
            Content::Free(_) => None,
        })
    }

    fn entry(&self, id: FlowId) -> Option<(&K, &T)> {
        match self.slots.get(id.index as usize) {
            Some(Slot { generation, content: Content::Live(key, value) }) if *generation == id.generation => {
                Some((key, value))
            }
            Some(_) | None => None,
        }
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
    fn a_slot_without_generations_left_is_retired() {
        let mut table = table(1);
        let id = table.insert(1, 10).unwrap();
        table.slots[0].generation = u32::MAX;
        let last = FlowId { index: id.index, generation: u32::MAX };
        assert_eq!(table.remove(last), Some((1, 10)));
        assert_eq!(table.get(last), None);
        let next = table.insert(1, 11).unwrap();
        assert_eq!(next.index(), 1);
        assert_eq!(table.ids().collect::<Vec<_>>(), [next]);
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
