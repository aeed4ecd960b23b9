//! The order in which slab indices were last used.
//!
//! # Theory of operation
//!
//! A doubly linked list through one link for each slab index that is in it: whatever is touched moves to the newest end, in constant time.

use super::paged::Paged;
use core::fmt;

/// No neighbour.
const NIL: u32 = u32::MAX;
/// In [`Link::older`]: not in the list.
const ABSENT: u32 = u32::MAX - 1;

#[derive(Clone, Copy)]
struct Link {
    older: u32,
    newer: u32,
}

const OUTSIDE: Link = Link { older: ABSENT, newer: NIL };

/// An intrusive doubly linked list over slab indices, oldest first.
pub struct LruList {
    /// Claimed while they are in the list.
    links: Paged<Link>,
    oldest: u32,
    newest: u32,
    len: usize,
}

impl Default for LruList {
    fn default() -> LruList {
        LruList::new()
    }
}

impl fmt::Debug for LruList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LruList").field("oldest", &self.oldest()).finish_non_exhaustive()
    }
}

impl LruList {
    /// An empty list.
    pub fn new() -> LruList {
        LruList { links: Paged::new(|| OUTSIDE), oldest: NIL, newest: NIL, len: 0 }
    }

    /// Makes `index` the most recently used, adding it when new.
    /// Slab indices are dense; the two largest numbers are not indices and are ignored.
    pub fn touch(&mut self, index: u32) {
        if index == self.newest || index >= ABSENT {
            return;
        }
        match self.link(index) {
            Some(link) => self.unlink(link),
            None => {
                self.links.claim(index);
                self.len += 1;
            }
        }
        let older = self.newest;
        self.links[index] = Link { older, newer: NIL };
        match older {
            NIL => self.oldest = index,
            older => self.links[older].newer = index,
        }
        self.newest = index;
    }

    /// The link of an index that is in the list.
    fn link(&self, index: u32) -> Option<Link> {
        self.links.get(index).filter(|link| link.older != ABSENT).copied()
    }

    /// Closes the gap that `link` leaves.
    fn unlink(&mut self, link: Link) {
        let Link { older, newer } = link;
        match older {
            NIL => self.oldest = newer,
            older => self.links[older].newer = newer,
        }
        match newer {
            NIL => self.newest = older,
            newer => self.links[newer].older = older,
        }
    }

    /// Takes `index` out, if it is in.
    pub fn remove(&mut self, index: u32) {
        if let Some(link) = self.link(index) {
            self.unlink(link);
            self.links.release(index);
            self.len -= 1;
        }
    }

    /// Octets of its memory.
    pub fn octets(&self) -> usize {
        self.links.octets()
    }

    /// The least recently used index.
    pub fn oldest(&self) -> Option<u32> {
        (self.oldest != NIL).then_some(self.oldest)
    }

    /// Indices in the list.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_touched_last_goes_last() {
        let mut list = LruList::new();
        assert_eq!(list.oldest(), None);
        for index in [4, 1, 3, 4] {
            list.touch(index);
        }
        let mut order = Vec::new();
        while let Some(index) = list.oldest() {
            order.push(index);
            list.remove(index);
        }
        assert_eq!(order, [1, 3, 4]);
    }

    #[test]
    fn numbers_that_are_no_indices_are_ignored() {
        let mut list = LruList::new();
        list.touch(u32::MAX);
        list.touch(u32::MAX - 1);
        list.remove(u32::MAX);
        assert_eq!(list.oldest(), None);
        assert_eq!(list.octets(), 0);
    }

    proptest! {
        #[test]
        fn the_list_agrees_with_a_vector(operations in prop::collection::vec((any::<bool>(), 0u32..12), 0..200)) {
            let mut list = LruList::new();
            let mut model: Vec<u32> = Vec::new();
            for (touch, index) in operations {
                model.retain(|other| *other != index);
                if touch {
                    list.touch(index);
                    model.push(index);
                } else {
                    list.remove(index);
                }
                prop_assert_eq!(list.oldest(), model.first().copied());
                prop_assert_eq!((list.len(), list.is_empty()), (model.len(), model.is_empty()));
            }
            for index in model {
                prop_assert_eq!(list.oldest(), Some(index));
                list.remove(index);
            }
            prop_assert_eq!(list.oldest(), None);
        }
    }
}
