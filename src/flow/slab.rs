//! Entries named by slot and generation.
//!
//! # Theory of operation
//!
//! Slots lie in pages. The free ones of a page are a list through the slots themselves, and the lowest page with room takes the next
//! entry: a slab from which many have gone fills from the front, its last pages empty themselves, and an empty page is given back. One empty
//! page is kept, so that one entry that comes and goes takes and gives no memory.
//!
//! A slot that is given up moves on to its next generation: an id that outlives its entry, in a timer or in a poll token, resolves to
//! nothing instead of to the successor. A page that was given back leaves its highest generation behind, where the slots of a page that comes
//! start. A slot whose generations are used up is retired, and a page that has used up half of them is never given back, so all that
//! holds without end.
//!
//! Cost: constant for each operation, up to one look at a bit for each page.

use super::paged::{PAGE, page, place};
use super::table::FlowId;
use core::fmt;

/// Ends the list of free slots.
const NIL: u32 = u32::MAX;

/// The first generation of a slot: not 0, so that no small number taken for [`FlowId::to_bits`] names an entry.
const FIRST_GENERATION: u32 = 1;

/// The last generation: the one behind it is nobody's, for poll tokens that name no entry.
const LAST_GENERATION: u32 = u32::MAX - 1;

/// Beyond this generation a page stays.
const LAST_GIVEN_BACK: u32 = u32::MAX / 2;

/// What a slot holds.
enum Content<T> {
    /// An entry.
    Live(T),
    /// Nothing; the place of the next free slot of the page, or [`NIL`].
    Free(u32),
}

struct Slot<T> {
    /// Of the entry, or of the next one when there is none.
    generation: u32,
    content: Content<T>,
}

struct Page<T> {
    slots: Box<[Slot<T>; PAGE]>,
    /// The first free slot.
    free: u32,
    /// Entries, and retired slots.
    taken: u32,
    /// The highest generation that an id out of this page may have.
    highest: u32,
}

impl<T> Page<T> {
    fn new(generation: u32) -> Page<T> {
        let slot = |place: u32| {
            let next = if place as usize + 1 < PAGE { place + 1 } else { NIL };
            Slot { generation, content: Content::Free(next) }
        };
        Page { slots: page(slot), free: 0, taken: 0, highest: generation }
    }
}

/// Entries of type `T`.
pub struct Slab<T> {
    pages: Vec<Option<Page<T>>>,
    /// A bit for each page that has room, or is not there.
    room: Vec<u64>,
    /// All words before this one are zero.
    first_room: usize,
    /// A page without entries.
    vacant: Option<usize>,
    /// Where the generations of a new page start.
    generation: u32,
    len: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab::new()
    }
}

impl<T> fmt::Debug for Slab<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slab").field("len", &self.len).finish_non_exhaustive()
    }
}

impl<T> Slab<T> {
    /// An empty slab.
    pub const fn new() -> Slab<T> {
        Slab {
            pages: Vec::new(),
            room: Vec::new(),
            first_room: 0,
            vacant: None,
            generation: FIRST_GENERATION,
            len: 0,
        }
    }

    /// Adds an entry. Gives it back when there is no index left.
    #[inline]
    pub fn insert(&mut self, value: T) -> Result<FlowId, T> {
        let Some(number) = self.page_with_room() else { return Err(value) };
        let page = self.pages[number].get_or_insert_with(|| Page::new(self.generation));
        let place = page.free;
        let slot = &mut page.slots[place as usize];
        if let Content::Free(next) = core::mem::replace(&mut slot.content, Content::Live(value)) {
            page.free = next;
        }
        let id = FlowId::new(number as u32 * PAGE as u32 + place, slot.generation);
        page.taken += 1;
        if page.free == NIL {
            self.room[number / 64] &= !(1 << (number % 64));
        }
        if self.vacant == Some(number) {
            self.vacant = None;
        }
        self.len += 1;
        Ok(id)
    }

    /// The lowest page that takes an entry; it may have to be made.
    fn page_with_room(&mut self) -> Option<usize> {
        while let Some(word) = self.room.get(self.first_room) {
            if *word != 0 {
                return Some(self.first_room * 64 + word.trailing_zeros() as usize);
            }
            self.first_room += 1;
        }
        let number = self.pages.len();
        // The largest index is none's.
        if number >= NIL as usize / PAGE {
            return None;
        }
        self.pages.push(None);
        self.room.resize(number / 64 + 1, 0);
        self.has_room(number);
        Some(number)
    }

    fn has_room(&mut self, number: usize) {
        self.room[number / 64] |= 1 << (number % 64);
        self.first_room = self.first_room.min(number / 64);
    }

    /// The entry, unless it is gone.
    #[inline]
    pub fn get(&self, id: FlowId) -> Option<&T> {
        let (number, place) = place(id.index());
        let page = self.pages.get(number)?.as_ref()?;
        match &page.slots[place] {
            Slot { generation, content: Content::Live(value) } if *generation == id.generation() => {
                Some(value)
            }
            Slot { .. } => None,
        }
    }

    /// The entry, unless it is gone.
    #[inline]
    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut T> {
        let (number, place) = place(id.index());
        let page = self.pages.get_mut(number)?.as_mut()?;
        match &mut page.slots[place] {
            Slot { generation, content: Content::Live(value) } if *generation == id.generation() => {
                Some(value)
            }
            Slot { .. } => None,
        }
    }

    /// The live id at an index, as a timer wheel gives it back.
    #[inline]
    pub fn id_at(&self, index: u32) -> Option<FlowId> {
        self.entry_at(index).map(|(id, _)| id)
    }

    /// The live id at an index, and its entry.
    #[inline]
    pub(super) fn entry_at(&self, index: u32) -> Option<(FlowId, &T)> {
        let (number, place) = place(index);
        let page = self.pages.get(number)?.as_ref()?;
        match &page.slots[place] {
            Slot { generation, content: Content::Live(value) } => {
                Some((FlowId::new(index, *generation), value))
            }
            Slot { content: Content::Free(_), .. } => None,
        }
    }

    /// Removes an entry.
    pub fn remove(&mut self, id: FlowId) -> Option<T> {
        let (number, place) = place(id.index());
        let page = self.pages.get_mut(number)?.as_mut()?;
        let slot = &mut page.slots[place];
        if slot.generation != id.generation() || matches!(slot.content, Content::Free(_)) {
            return None;
        }
        let content = core::mem::replace(&mut slot.content, Content::Free(NIL));
        self.len -= 1;
        // A slot without a generation left stays empty and outside the list for good.
        if slot.generation < LAST_GENERATION {
            slot.generation += 1;
            let next = slot.generation;
            slot.content = Content::Free(page.free);
            page.free = place as u32;
            page.taken -= 1;
            page.highest = page.highest.max(next);
            let vacant = page.taken == 0;
            self.has_room(number);
            if vacant {
                self.vacated(number);
            }
        }
        match content {
            Content::Live(value) => Some(value),
            Content::Free(_) => None,
        }
    }

    /// A page has lost its last entry: of two such pages one is given back.
    fn vacated(&mut self, number: usize) {
        let Some(other) = self.vacant.replace(number).filter(|other| *other != number) else { return };
        // What is filled first is the lower one.
        let (kept, gone) = (number.min(other), number.max(other));
        let worn = |page: &Option<Page<T>>| page.as_ref().is_none_or(|page| page.highest > LAST_GIVEN_BACK);
        if !worn(&self.pages[gone]) {
            self.vacant = Some(kept);
            if let Some(page) = self.pages[gone].take() {
                self.generation = self.generation.max(page.highest);
            }
        }
        while matches!(self.pages.last(), Some(None)) {
            self.pages.pop();
            let number = self.pages.len();
            self.room[number / 64] &= !(1 << (number % 64));
        }
    }

    /// Entries at present.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One more than the largest index in use, or a little more: where a walk by [`Slab::id_at`] ends.
    pub fn slots(&self) -> u32 {
        // Inserting stops before indices run out.
        (self.pages.len() * PAGE) as u32
    }

    /// All ids in the order of their indices. Cost: the whole slab; for shutdown and for reports.
    pub fn ids(&self) -> impl Iterator<Item = FlowId> + '_ {
        (0..self.slots()).filter_map(|index| self.id_at(index))
    }

    /// Octets of all pages.
    pub fn octets(&self) -> usize {
        self.pages.iter().flatten().count() * size_of::<[Slot<T>; PAGE]>()
            + self.pages.capacity() * size_of::<Option<Page<T>>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_slot_without_generations_left_is_retired() {
        let mut slab = Slab::new();
        let id = slab.insert(10).unwrap();
        let page = slab.pages[0].as_mut().unwrap();
        page.slots[0].generation = LAST_GENERATION;
        let last = FlowId::new(id.index(), LAST_GENERATION);
        assert_eq!(slab.remove(last), Some(10));
        assert_eq!(slab.get(last), None);
        let next = slab.insert(11).unwrap();
        assert_eq!(next.index(), 1);
        assert_eq!(slab.ids().collect::<Vec<_>>(), [next]);
    }

    #[test]
    fn pages_are_given_back_but_for_one_and_ids_stay_dead() {
        let mut slab = Slab::new();
        let ids: Vec<FlowId> = (0..1_000).map(|value| slab.insert(value).unwrap()).collect();
        let most = slab.octets();
        for id in &ids {
            slab.remove(*id);
        }
        assert!(slab.is_empty() && slab.octets() < most / 4, "{} of {most}", slab.octets());
        assert_eq!(slab.slots() as usize, PAGE);
        let again: Vec<FlowId> = (0..1_000).map(|value| slab.insert(value).unwrap()).collect();
        assert!(ids.iter().all(|id| slab.get(*id).is_none()));
        let slots = |ids: &[FlowId]| {
            let mut slots: Vec<u32> = ids.iter().map(|id| id.index()).collect();
            slots.sort_unstable();
            slots
        };
        assert_eq!(slots(&ids), slots(&again));
    }

    #[test]
    fn one_entry_that_comes_and_goes_leaves_the_pages_alone() {
        let mut slab = Slab::new();
        let page: Vec<FlowId> = (0..PAGE).map(|value| slab.insert(value).unwrap()).collect();
        for _ in 0..3 {
            let id = slab.insert(0).unwrap();
            assert_eq!(id.index() as usize, PAGE);
            slab.remove(id);
            assert_eq!(slab.slots() as usize, 2 * PAGE);
        }
        assert!(page.iter().all(|id| slab.get(*id).is_some()));
    }

    #[test]
    fn a_worn_page_stays_so_that_new_ones_have_generations_left() {
        let mut slab = Slab::new();
        let ids: Vec<FlowId> = (0..3 * PAGE).map(|value| slab.insert(value).unwrap()).collect();
        slab.pages[2].as_mut().unwrap().highest = LAST_GIVEN_BACK + 1;
        for id in ids {
            slab.remove(id);
        }
        assert!(slab.pages[2].is_some());
        assert!(slab.generation <= LAST_GIVEN_BACK);
    }

    #[test]
    fn the_lowest_page_is_filled_first() {
        let mut slab = Slab::new();
        let ids: Vec<FlowId> = (0..4 * PAGE).map(|value| slab.insert(value).unwrap()).collect();
        for index in [3 * PAGE, PAGE + 5] {
            slab.remove(ids[index]);
        }
        assert_eq!(slab.insert(0).unwrap().index() as usize, PAGE + 5);
        assert_eq!(slab.insert(0).unwrap().index() as usize, 3 * PAGE);
        assert_eq!(slab.insert(0).unwrap().index() as usize, 4 * PAGE);
    }

    proptest! {
        /// Against a list of what lives, with every id that ever was.
        #[test]
        fn ids_name_what_they_were_given_for(operations in prop::collection::vec((0u8..3, any::<prop::sample::Index>(), 1usize..200), 1..40)) {
            let mut slab = Slab::new();
            let mut all: Vec<(FlowId, u32, bool)> = Vec::new();
            let mut next = 0;
            for (operation, which, count) in operations {
                for _ in 0..count {
                    if operation == 0 || all.is_empty() {
                        all.push((slab.insert(next).unwrap(), next, true));
                        next += 1;
                    } else {
                        let at = which.index(all.len());
                        let at = (at + next as usize) % all.len();
                        next += 1;
                        let (id, value, alive) = &mut all[at];
                        prop_assert_eq!(slab.remove(*id), alive.then_some(*value));
                        *alive = false;
                    }
                }
                for (id, value, alive) in &all {
                    prop_assert_eq!(slab.get(*id), alive.then_some(value));
                    prop_assert_eq!(slab.id_at(id.index()) == Some(*id), *alive);
                }
                let mut listed: Vec<u64> = slab.ids().map(FlowId::to_bits).collect();
                let mut live: Vec<u64> =
                    all.iter().filter(|(_, _, alive)| *alive).map(|(id, _, _)| id.to_bits()).collect();
                listed.sort_unstable();
                live.sort_unstable();
                prop_assert_eq!(slab.len(), live.len());
                prop_assert_eq!(listed, live);
            }
        }
    }
}
