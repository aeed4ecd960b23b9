//! This machine as a [`Host`]: every part of the system that a change is made in.

use super::change::Change;
use super::dns::{self, Places, Situation};
use super::linux;
use super::run::{Host, Outcome, Snapshot};
use crate::netlink::Netlink;
use std::io;

/// This machine, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Machine {
    netlink: Netlink,
}

impl Machine {
    pub(super) fn open() -> io::Result<Machine> {
        Ok(Machine { netlink: Netlink::route()? })
    }
}

impl Host for Machine {
    fn snapshot(&mut self, device: &str) -> io::Result<Snapshot> {
        let index = match linux::index_of(device) {
            Ok(index) => Some(index),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => None,
            Err(error) => return Err(error),
        };
        Ok(Snapshot { index, have: linux::snapshot(&mut self.netlink, device)? })
    }

    fn names(&mut self) -> Situation {
        dns::observe(&Places::standard())
    }

    fn apply(&mut self, change: &Change) -> io::Result<Outcome> {
        linux::apply(&mut self.netlink, change)
    }

    fn leftovers(&mut self) -> io::Result<Vec<Change>> {
        linux::leftovers(&mut self.netlink)
    }
}
