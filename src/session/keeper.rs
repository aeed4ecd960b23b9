//! Keeps the device: looks now and then whether it is still there, and makes it anew when it is not.
//!
//! A device that somebody deletes is an error of the next read, so it is noticed at once; the look every 30 s is for what no read tells. The
//! flows are kept: their state is the engine's, the apps' addresses and routes are made again as they were, and what was lost meanwhile is sent again as
//! any loss is. A device that cannot be made again after [`TRIES`] is the end of the run, in order.

use super::device::{Machine, gone};
use crate::config::OffloadLevel;
use crate::driver::{Clock, Scene, Service, Tokens};
use crate::time::{Duration, Instant};
use crate::tun::lifecycle::ManagedTun;
use crate::tun::{Device, Tun};
use mio::Registry;
use mio::event::Event;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;

/// How often the state is compared with the real device, T-8.
const LOOK: Duration = Duration::from_secs(30);
/// The pause after the first try to make a device anew; each later one is twice as long, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Tries before the run is over.
const TRIES: u32 = 12;

/// The keeper.
#[derive(Debug)]
pub(super) struct Keeper {
    tun: Rc<RefCell<ManagedTun<Machine>>>,
    name: String,
    /// The engine counts on it.
    offload: OffloadLevel,
    /// When it looks again.
    next: Instant,
    /// Tries to make a device anew since it was lost.
    tries: u32,
    /// Why there is no device and will be none: the end of the run.
    failed: Rc<RefCell<Option<io::Error>>>,
}

impl Keeper {
    /// A keeper of `tun`, which is Ready. `failed` is where it says why the run is over.
    pub(super) fn new(
        tun: Rc<RefCell<ManagedTun<Machine>>>,
        device: &Tun,
        failed: Rc<RefCell<Option<io::Error>>>,
        clock: Clock,
    ) -> Keeper {
        let (name, offload) = (device.name().to_owned(), device.offload());
        Keeper { tun, name, offload, next: clock.now() + LOOK, tries: 0, failed }
    }

    /// Makes the device anew, if it is time to try.
    fn renew(&mut self, scene: &mut Scene<'_, Tun>, now: Instant) {
        let tun = Rc::clone(&self.tun);
        let mut tun = tun.borrow_mut();
        if tun.validate().is_ok() {
            // The loop has lost a device that looks whole: it is of no use to it.
            if let Err(error) = tun.fail() {
                log::debug!("{error}");
            }
        }
        match tun.recover() {
            Ok(device) if device.offload() >= self.offload => {
                log::info!("the device {} was made anew; flows go on", device.name());
                *scene.device = Some(device);
                tun.machine().stand_by_again();
                self.tries = 0;
                self.next = now + LOOK;
            }
            Ok(_) => self.give_up(&"the kernel does not offload as much any more", scene),
            Err(error) => {
                self.tries += 1;
                log::debug!("the device is not there yet: {error}");
                if self.tries >= TRIES {
                    return self.give_up(&error, scene);
                }
                let pause = FIRST_PAUSE.saturating_mul(1 << self.tries.min(8)).min(LONGEST_PAUSE);
                self.next = now + pause;
            }
        }
    }

    fn give_up(&self, why: &dyn std::fmt::Display, scene: &mut Scene<'_, Tun>) {
        *self.failed.borrow_mut() = Some(gone(&self.name, why));
        scene.ask_to_stop();
    }
}

impl Service<Tun> for Keeper {
    fn register(&mut self, _: &Registry, _: Tokens) -> io::Result<()> {
        Ok(())
    }

    fn handle_event(&mut self, _: u16, _: &Event, _: &mut Scene<'_, Tun>, _: Instant) {}

    fn poll_timeout(&self) -> Option<Instant> {
        Some(self.next)
    }

    fn handle_timeout(&mut self, scene: &mut Scene<'_, Tun>, now: Instant) {
        if self.failed.borrow().is_some() {
            self.next = now + LOOK;
        } else if scene.device.is_none() {
            if now >= self.next || self.tries == 0 {
                self.renew(scene, now);
            }
        } else if self.tun.borrow_mut().validate().is_ok() {
            self.tun.borrow_mut().machine().stand_by_again();
            self.next = now + LOOK;
        } else {
            scene.drop_device();
            self.next = now;
        }
    }

    fn renews_device(&self) -> bool {
        true
    }
}
