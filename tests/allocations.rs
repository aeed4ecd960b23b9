//! No allocation per packet in the steady state: counted by an allocator of the test's own.
//!
//! A connection is brought up and used for a while, so that every ring, list and table has the size it needs; then the same again is counted.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "shared with the conformance tests")]
#[allow(unreachable_pub, reason = "a module of a test has nobody outside")]
#[path = "tcp_conformance/dsl.rs"]
mod dsl;

use dsl::{Family, Peer, both, ms};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use ztun::stack::{Ingress, Packet};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is handed on to the system's allocator as it came; counting touches a number of the thread's own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread while `act` runs.
fn allocations(act: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    act();
    COUNT.get() - before
}

const ROUNDS: usize = 2_000;

#[test]
fn the_allocator_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![0_u8; 10]))), 1);
}

/// Takes what the stack sends; the octets of text in it.
fn taken(peer: &mut Peer) -> usize {
    let mut octets = 0;
    while let Some(packet) = peer.stack.poll_transmit(peer.now) {
        octets += packet.payload[0].len() + packet.payload[1].len();
    }
    octets
}

fn give(peer: &mut Peer, octets: &[u8]) {
    if let Ok(Ingress::Stream { flow, payload }) = peer.stack.handle_packet(Packet::new(octets), peer.now) {
        peer.stack.tcp(flow).unwrap().keep(payload, payload.len(), peer.now);
    }
    while peer.stack.poll_event().is_some() {}
}

/// Segments of text from the app, handed over at once, and their acknowledgements.
#[test]
fn an_upload_allocates_nothing() {
    both(|family| {
        let mut peer = Peer::new(family).like_a_kernel().open();
        let mut segments = Vec::new();
        for _ in 0..2 * ROUNDS {
            segments.push(peer.seg().data(&[7; 1_000]).octets());
            peer.snd_nxt += 1_000;
        }
        let (first, second) = segments.split_at(ROUNDS);
        let mut act = |segments: &[Vec<u8>]| {
            for segment in segments {
                give(&mut peer, segment);
                peer.now = peer.now + ms(1);
                peer.stack.handle_timeout(peer.now);
                taken(&mut peer);
            }
        };
        act(first);
        assert_eq!(allocations(|| act(second)), 0, "{family:?}");
    });
}

/// Text to the app, and the app's acknowledgements.
#[test]
fn a_download_allocates_nothing() {
    both(|family: Family| {
        let mut peer = Peer::new(family).open();
        let size = 1_000;
        let mut acks = Vec::new();
        for _ in 0..2 * ROUNDS {
            peer.rcv_nxt += size;
            acks.push(peer.seg().octets());
        }
        let (first, second) = acks.split_at(ROUNDS);
        let text = vec![9; size as usize];
        let mut act = |acks: &[Vec<u8>]| {
            for ack in acks {
                assert_eq!(peer.write(&text), text.len());
                assert_eq!(taken(&mut peer), text.len());
                peer.now = peer.now + ms(1);
                give(&mut peer, ack);
                peer.stack.handle_timeout(peer.now);
            }
        };
        act(first);
        assert_eq!(allocations(|| act(second)), 0, "{family:?}");
    });
}
