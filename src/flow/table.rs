//! A slab with a keyed-hash index and generations.

use crate::rng::KeyedHash;
use core::hash::Hash;

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

/// Entries of type `T`, found by key or by id, at most `capacity` of them.
#[derive(Debug)]
pub struct FlowTable<K, T> {
    _p: core::marker::PhantomData<(K, T)>,
}

impl<K: Hash + Eq + Copy, T> FlowTable<K, T> {
    /// An empty table for at most `capacity` entries, indexed under `hash`.
    /// Memory is taken as entries come, not beforehand.
    pub fn new(_capacity: usize, _hash: KeyedHash) -> FlowTable<K, T> {
        todo!()
    }

    /// Adds an entry. Gives it back when the table is full or the key is taken.
    pub fn insert(&mut self, _key: K, _value: T) -> Result<FlowId, T> {
        todo!()
    }

    /// The id under `key`.
    pub fn find(&self, _key: &K) -> Option<FlowId> {
        todo!()
    }

    /// The entry, unless it is gone.
    pub fn get(&self, _id: FlowId) -> Option<&T> {
        todo!()
    }

    /// The entry, unless it is gone.
    pub fn get_mut(&mut self, _id: FlowId) -> Option<&mut T> {
        todo!()
    }

    /// The key of an entry.
    pub fn key(&self, _id: FlowId) -> Option<&K> {
        todo!()
    }

    /// The live id at a slab index, as a timer wheel gives it back.
    pub fn id_at(&self, _index: u32) -> Option<FlowId> {
        todo!()
    }

    /// Removes an entry.
    pub fn remove(&mut self, _id: FlowId) -> Option<(K, T)> {
        todo!()
    }

    /// Entries at present.
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the next insert is refused.
    pub fn is_full(&self) -> bool {
        todo!()
    }

    /// All ids in slab order. Cost: the whole slab; for shutdown and for reports.
    pub fn ids(&self) -> impl Iterator<Item = FlowId> + '_ {
        core::iter::empty()
    }
}
