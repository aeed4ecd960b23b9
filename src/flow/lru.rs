//! The order in which slab indices were last used.

/// An intrusive doubly linked list over slab indices, oldest first.
#[derive(Debug, Default)]
pub struct LruList {}

impl LruList {
    /// An empty list.
    pub fn new() -> LruList {
        todo!()
    }

    /// Makes `index` the most recently used, adding it when new.
    pub fn touch(&mut self, _index: u32) {
        todo!()
    }

    /// Takes `index` out, if it is in.
    pub fn remove(&mut self, _index: u32) {
        todo!()
    }

    /// The least recently used index.
    pub fn oldest(&self) -> Option<u32> {
        todo!()
    }
}
