//! Keeps the machine's name servers: looks now and then whether another program has replaced them, see [`Applied::dns_check`].
//!
//! Most changes are seen at once by whoever watches the network. The look every 30 s is for what nothing tells, and a second one soon after is
//! for a file that was missing at the first.

use crate::driver::{Clock, Scene, Service, Tokens};
use crate::host::Applied;
use crate::host::DnsCheck;
use crate::time::{Duration, Instant};
use crate::tun::Tun;
use mio::Registry;
use mio::event::Event;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;

/// How often it looks.
const LOOK: Duration = Duration::from_secs(30);
/// When it looks again at what another program may be at.
const AGAIN: Duration = Duration::from_secs(1);

/// The service.
#[derive(Debug)]
pub(super) struct Names {
    applied: Rc<RefCell<Applied>>,
    next: Instant,
}

impl Names {
    /// Keeps those that `applied` has set.
    pub(super) fn new(applied: Rc<RefCell<Applied>>, clock: Clock) -> Names {
        Names { applied, next: clock.now() + LOOK }
    }
}

impl Service<Tun> for Names {
    fn register(&mut self, _: &Registry, _: Tokens) -> io::Result<()> {
        Ok(())
    }

    fn handle_event(&mut self, _: u16, _: &Event, _: &mut Scene<'_, Tun>, _: Instant) {}

    fn poll_timeout(&self) -> Option<Instant> {
        Some(self.next)
    }

    fn handle_timeout(&mut self, _: &mut Scene<'_, Tun>, now: Instant) {
        let pause = match self.applied.borrow_mut().dns_check() {
            DnsCheck::Unsettled => AGAIN,
            DnsCheck::Kept | DnsCheck::PutBack | DnsCheck::LeftToOthers => LOOK,
        };
        self.next = now + pause;
    }
}
