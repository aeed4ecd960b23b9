//! An allocator that counts what its own thread allocates: how often, how many octets live, and how many lived at most.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[derive(Clone, Copy)]
struct Counts {
    allocations: u64,
    live: isize,
    most: isize,
}

thread_local! {
    static COUNTS: Cell<Counts> = const { Cell::new(Counts { allocations: 0, live: 0, most: 0 }) };
}

struct Counting;

fn count(allocations: u64, octets: isize) {
    // A thread that ends may free after its storage is gone; that is nobody's measurement.
    let _gone = COUNTS.try_with(|counts| {
        let Counts { allocations: before, live, most } = counts.get();
        let live = live + octets;
        counts.set(Counts { allocations: before + allocations, live, most: most.max(live) });
    });
}

// SAFETY: every call is handed on to the system's allocator as it came, which keeps the contract; counting neither allocates
// (const-initialised storage without a destructor) nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as isize);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as isize);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, -(layout.size() as isize));
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(1, size as isize - layout.size() as isize);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread so far.
pub(crate) fn so_far() -> u64 {
    COUNTS.get().allocations
}

/// Allocations of this thread while `act` runs.
pub(crate) fn allocations(act: impl FnOnce()) -> u64 {
    let before = so_far();
    act();
    so_far() - before
}

/// Octets that this thread has allocated less those that it has freed, also of what others had allocated.
pub(crate) fn live() -> isize {
    COUNTS.get().live
}

/// The most octets that were live at once while `run` ran, beyond those live before.
pub(crate) fn most_live<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let before = COUNTS.get();
    COUNTS.set(Counts { most: before.live, ..before });
    let result = run();
    (result, usize::try_from(COUNTS.get().most - before.live).unwrap_or(0))
}

#[test]
fn the_allocator_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![0_u8; 10]))), 1);
    let before = live();
    let (kept, most) = most_live(|| {
        drop(std::hint::black_box(vec![0_u8; 1_000]));
        std::hint::black_box(vec![0_u8; 100])
    });
    assert_eq!((live() - before, most), (100, 1_000));
    drop(kept);
}
