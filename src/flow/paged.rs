//! Values by slab index, in pages: what belongs to an index that is in use, beside the slab itself.
//!
//! A page comes with the first of its indices that is claimed and goes with the last that is released. So nothing is ever moved when
//! more come, memory follows what is in use in both directions, and no more is taken than a page too much. The page that became
//! vacant last is kept: one index that comes and goes takes and gives no memory.

use core::fmt;
use core::ops::{Index, IndexMut};

/// Indices in a page.
pub(super) const PAGE: usize = 128;

/// `PAGE` values made by `make`, which is told their places in the page.
pub(super) fn page<T>(make: impl FnMut(u32) -> T) -> Box<[T; PAGE]> {
    let values: Box<[T]> = (0..PAGE as u32).map(make).collect();
    match values.try_into() {
        Ok(page) => page,
        Err(_) => unreachable!("as many values as places"),
    }
}

/// The page of an index, and the place in it.
pub(super) const fn place(index: u32) -> (usize, usize) {
    (index as usize / PAGE, index as usize % PAGE)
}

struct Page<T> {
    values: Box<[T; PAGE]>,
    claimed: u32,
}

/// Values by index; those that nobody has claimed are all the same and cost nothing.
pub struct Paged<T> {
    pages: Vec<Option<Page<T>>>,
    /// All as unclaimed.
    vacant: Option<Box<[T; PAGE]>>,
    unclaimed: fn() -> T,
}

impl<T> fmt::Debug for Paged<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pages = self.pages.iter().flatten().count();
        f.debug_struct("Paged").field("pages", &pages).finish_non_exhaustive()
    }
}

impl<T> Paged<T> {
    /// No index is claimed; `unclaimed` makes the value of each.
    pub const fn new(unclaimed: fn() -> T) -> Paged<T> {
        Paged { pages: Vec::new(), vacant: None, unclaimed }
    }

    /// Makes place for `index`, which is not claimed, and gives its value.
    pub fn claim(&mut self, index: u32) -> &mut T {
        let (page, place) = place(index);
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, || None);
        }
        let (vacant, unclaimed) = (&mut self.vacant, self.unclaimed);
        let page = self.pages[page].get_or_insert_with(|| {
            let values = vacant.take().unwrap_or_else(|| self::page(|_| unclaimed()));
            Page { values, claimed: 0 }
        });
        page.claimed += 1;
        &mut page.values[place]
    }

    /// Takes back the place of `index`, which is claimed; gives its value.
    pub fn release(&mut self, index: u32) -> T {
        let (number, place) = place(index);
        let Some(Some(page)) = self.pages.get_mut(number) else { return (self.unclaimed)() };
        let value = core::mem::replace(&mut page.values[place], (self.unclaimed)());
        page.claimed = page.claimed.saturating_sub(1);
        if page.claimed == 0 {
            self.vacant = self.pages[number].take().map(|page| page.values);
            while matches!(self.pages.last(), Some(None)) {
                self.pages.pop();
            }
        }
        value
    }

    /// Values of claimed indices, and unclaimed ones among them. Cost: the whole.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.pages.iter().flatten().flat_map(|page| page.values.iter())
    }

    /// Values of claimed indices, and unclaimed ones among them. Cost: the whole.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.pages.iter_mut().flatten().flat_map(|page| page.values.iter_mut())
    }

    /// Octets of all pages.
    pub fn octets(&self) -> usize {
        let pages = self.pages.iter().flatten().count() + usize::from(self.vacant.is_some());
        pages * size_of::<[T; PAGE]>() + self.pages.len() * size_of::<Option<Page<T>>>()
    }

    /// The value of an index.
    #[inline]
    pub fn get(&self, index: u32) -> Option<&T> {
        let (page, place) = place(index);
        self.pages.get(page)?.as_ref().map(|page| &page.values[place])
    }

    /// The value of an index, to be changed if it is claimed.
    #[inline]
    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        let (page, place) = place(index);
        self.pages.get_mut(page)?.as_mut().map(|page| &mut page.values[place])
    }
}

impl<T> Index<u32> for Paged<T> {
    type Output = T;

    /// Of an index that is claimed; panics where there is no page.
    fn index(&self, index: u32) -> &T {
        self.get(index).expect("a claimed index has its page")
    }
}

impl<T> IndexMut<u32> for Paged<T> {
    fn index_mut(&mut self, index: u32) -> &mut T {
        self.get_mut(index).expect("a claimed index has its page")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn one_index_that_comes_and_goes_takes_one_page_of_memory() {
        let mut paged = Paged::new(|| 0_u8);
        for _ in 0..3 {
            *paged.claim(200) = 7;
            let page = paged.get(200).map(std::ptr::from_ref);
            assert_eq!(paged.release(200), 7);
            assert_eq!(paged.claim(5), &0);
            assert_eq!(paged.get(200 % PAGE as u32).map(std::ptr::from_ref), page);
            paged.release(5);
        }
        assert_eq!((paged.octets(), paged.get(5)), (PAGE, None));
    }

    #[test]
    fn memory_follows_what_is_in_use() {
        let mut paged = Paged::new(|| 0_u64);
        for index in 0..10_000 {
            paged.claim(index);
        }
        let most = paged.octets();
        assert!(most <= (10_000 + PAGE) * 9, "{most}");
        for index in (0..10_000).filter(|index| *index != 7_777) {
            paged.release(index);
        }
        assert!(paged.octets() <= 2 * PAGE * 8 + 10_000 / PAGE * 32, "{}", paged.octets());
    }

    proptest! {
        #[test]
        fn values_are_those_of_a_map(operations in prop::collection::vec((any::<bool>(), 0u32..700, any::<u8>()), 0..300)) {
            let mut paged = Paged::new(|| 0);
            let mut model = BTreeMap::new();
            for (set, index, value) in operations {
                if set {
                    if model.insert(index, value).is_none() {
                        paged.claim(index);
                    }
                    paged[index] = value;
                } else if let Some(value) = model.remove(&index) {
                    prop_assert_eq!(paged.release(index), value);
                }
                for index in 0..700 {
                    prop_assert_eq!(paged.get(index).copied().unwrap_or(0), model.get(&index).copied().unwrap_or(0));
                }
            }
        }
    }
}
