//! What the loop and the thread that waits for a driver say to each other, where the poll cannot wait for it itself (Wintun).
//!
//! # Theory of operation
//!
//! The driver's ring is the queue: bounded, in order, shared with the kernel, read by the loop alone. The thread never touches a packet. It waits for the driver's
//! event and has to decide one thing: whether the loop sleeps, and must be woken, or will look at the ring by itself. So both share one word:
//!
//! ```text
//!   loop                                     thread
//!   look: nothing                            the driver's event
//!   asleep = true                            was asleep, and is no more: wake the loop
//!   look again: nothing  ─▶ sleep
//! ```
//!
//! A packet that came before `asleep` was set is seen by the second look; one that came after finds it set. Both sides read and write the word in one step,
//! so one of the two sees the other. While the loop is busy the thread wakes nobody, however many packets come.
//!
//! A ring that has no room for what is sent says so, and does not tell when it has: the thread is asked to wake the loop a moment later.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// See the module's theory of operation.
#[derive(Debug, Default)]
pub(super) struct Handover {
    /// The loop has found nothing and is to be woken.
    asleep: AtomicBool,
    /// The loop has something to send for which there was no room.
    full: AtomicBool,
    /// The thread is to end.
    ended: AtomicBool,
}

impl Handover {
    /// For the loop: what `look` finds, or [`io::ErrorKind::WouldBlock`]; from then on the loop is woken for what comes.
    pub(super) fn take<T>(&self, mut look: impl FnMut() -> io::Result<Option<T>>) -> io::Result<T> {
        if let Some(found) = look()? {
            return Ok(found);
        }
        // Reads what the thread has written, if that came first, and with it sees the packet of which the thread had heard.
        self.asleep.swap(true, Ordering::AcqRel);
        look()?.ok_or(io::ErrorKind::WouldBlock.into())
    }

    /// For the thread, when the driver has told of something: whether to wake the loop.
    pub(super) fn must_wake(&self) -> bool {
        self.asleep.swap(false, Ordering::AcqRel)
    }

    /// For the loop: there was no room.
    pub(super) fn wait_for_room(&self) {
        self.full.store(true, Ordering::Release);
    }

    /// For the thread: whether the loop waits for room; it is not told so again.
    pub(super) fn waits_for_room(&self) -> bool {
        self.full.swap(false, Ordering::AcqRel)
    }

    /// For the loop: the thread is not needed any more.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// For the thread: whether it is to end.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::sync::atomic::AtomicU32;
    use std::sync::{Arc, Condvar, Mutex};

    /// A driver, its event and the thread, one step at a time. The loop is the real code, which is interrupted wherever it looks.
    #[derive(Default)]
    struct World {
        ring: VecDeque<u32>,
        next: u32,
        packets: u32,
        event: bool,
        /// Wake-ups that the loop has not taken.
        woken: u32,
        /// The digits of which say how many steps of the others fall into each gap of the loop's.
        schedule: u32,
        choices: u32,
    }

    impl World {
        /// The driver puts a packet, or the thread takes the event, whichever `which` says; `false` when that cannot be.
        fn step(&mut self, which: u32, handover: &Handover) -> bool {
            match which {
                0 if self.next < self.packets => {
                    self.ring.push_back(self.next);
                    self.next += 1;
                    self.event = true;
                    true
                }
                1 if self.event => {
                    self.event = false;
                    self.woken += u32::from(handover.must_wake());
                    true
                }
                _ => false,
            }
        }

        /// What happens in a gap: nothing, or up to two steps, as the next digit of the schedule says.
        fn gap(&mut self, handover: &Handover) {
            let digit = self.schedule % 7;
            self.schedule /= 7;
            self.choices += 1;
            let steps: &[u32] = [&[][..], &[0], &[1], &[0, 0], &[0, 1], &[1, 0], &[1, 1]][digit as usize];
            for which in steps {
                self.step(*which, handover);
            }
        }
    }

    /// Runs the loop until nothing can happen any more; what it has received.
    fn run(packets: u32, schedule: u32) -> (Vec<u32>, u32) {
        let handover = Handover::default();
        let world = RefCell::new(World { packets, schedule, ..World::default() });
        let mut received = Vec::new();
        loop {
            let look = || {
                world.borrow_mut().gap(&handover);
                let found = world.borrow_mut().ring.pop_front();
                world.borrow_mut().gap(&handover);
                Ok(found)
            };
            match handover.take(look) {
                Ok(packet) => received.push(packet),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    let mut world = world.borrow_mut();
                    // Asleep: only a wake-up ends it.
                    while world.woken == 0 && (world.step(1, &handover) || world.step(0, &handover)) {}
                    if world.woken == 0 {
                        assert!(world.ring.is_empty(), "asleep for ever beside {:?}", world.ring);
                        return (received, world.choices);
                    }
                    world.woken -= 1;
                }
            }
        }
    }

    #[test]
    fn in_every_order_of_steps_every_packet_comes_once_in_order_and_none_is_slept_over() {
        for packets in 0..4 {
            for schedule in 0..7_u32.pow(6) {
                let (received, choices) = run(packets, schedule);
                assert!(received.iter().copied().eq(0..packets), "{schedule}: {received:?}");
                assert!(choices >= 4);
            }
        }
    }

    #[test]
    fn a_busy_loop_is_woken_by_nobody() {
        let handover = Handover::default();
        assert!(!handover.must_wake());
        assert_eq!(handover.take(|| Ok(Some(7))).unwrap(), 7);
        assert!(!handover.must_wake());
        assert!(handover.take(|| Ok(None::<u8>)).is_err());
        assert!(handover.must_wake() && !handover.must_wake(), "once for each sleep");
    }

    #[test]
    fn an_error_of_the_driver_is_handed_on() {
        let error = Handover::default().take::<u8>(|| Err(io::ErrorKind::NotConnected.into())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
    }

    #[test]
    fn room_is_waited_for_once_for_each_time_that_there_was_none() {
        let handover = Handover::default();
        assert!(!handover.waits_for_room() && !handover.has_ended());
        handover.wait_for_room();
        assert!(handover.waits_for_room() && !handover.waits_for_room());
        handover.end();
        assert!(handover.has_ended());
    }

    /// A count that a thread can wait for.
    #[derive(Default)]
    struct Bell(Mutex<u32>, Condvar);

    impl Bell {
        fn ring(&self) {
            *self.0.lock().unwrap() += 1;
            self.1.notify_one();
        }

        fn wait(&self) {
            let mut rung = self.0.lock().unwrap();
            while *rung == 0 {
                rung = self.1.wait(rung).unwrap();
            }
            // As an event does that resets itself, however often it was set.
            *rung = 0;
        }
    }

    /// With real threads. A wake-up that is missed hangs the test.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "threads are what is tested")]
    fn threads_lose_nothing_and_put_nothing_out_of_order() {
        const PACKETS: u32 = 50_000;
        let (handover, told) = (Arc::new(Handover::default()), Arc::new(AtomicU32::new(0)));
        let (driver, poll) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
        let thread = {
            let (handover, driver, poll) = (Arc::clone(&handover), Arc::clone(&driver), Arc::clone(&poll));
            std::thread::spawn(move || {
                while !handover.has_ended() {
                    driver.wait();
                    if handover.must_wake() {
                        poll.ring();
                    }
                }
            })
        };
        let writer = {
            let (told, driver) = (Arc::clone(&told), Arc::clone(&driver));
            std::thread::spawn(move || {
                for _ in 0..PACKETS {
                    told.fetch_add(1, Ordering::Release);
                    driver.ring();
                }
            })
        };
        let mut taken = 0;
        while taken < PACKETS {
            let look = || Ok((told.load(Ordering::Acquire) > taken).then_some(()));
            match handover.take(look) {
                Ok(()) => taken += 1,
                Err(_) => poll.wait(),
            }
        }
        writer.join().unwrap();
        handover.end();
        driver.ring();
        thread.join().unwrap();
    }
}
