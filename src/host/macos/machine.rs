//! This Mac as a [`Host`]: the kernel, and the dynamic store of configd.

use super::change::Change;
use super::kernel::{self, Kernel};
use super::names::Names;
use super::plan::{self, Have};
use super::scutil;
use crate::host::Outcome;
use crate::host::run::{Host, Snapshot};
use crate::host::want::Want;
use std::io;

/// This machine.
#[derive(Debug)]
pub(in crate::host) struct Machine {
    kernel: Kernel,
}

impl Machine {
    pub(in crate::host) fn open() -> io::Result<Machine> {
        Ok(Machine { kernel: Kernel::open()? })
    }
}

impl Host for Machine {
    type Change = Change;
    type Have = Have;
    /// That it is to be changed: what there was stays beside it.
    type Names = ();

    fn snapshot(&mut self, device: &str) -> io::Result<Snapshot<Have>> {
        Ok(Snapshot { index: kernel::find(device)?, have: self.kernel.snapshot(device)? })
    }

    fn names(&mut self) {}

    fn plan(have: Have, names: Option<()>, want: &Want) -> Vec<Change> {
        plan::plan(&have, names.is_some(), want)
    }

    fn apply(&mut self, change: &Change) -> io::Result<Outcome> {
        match change {
            Change::DnsSet(names) => scutil::set(names),
            Change::DnsRestore(_) => scutil::remove(),
            Change::MtuSet { .. }
            | Change::AddressAdd(_)
            | Change::AddressDelete(_)
            | Change::LinkUp { .. }
            | Change::LinkDown { .. }
            | Change::RouteAdd(_)
            | Change::RouteDelete(_) => self.kernel.apply(change),
        }
    }

    fn leftovers(&mut self) -> io::Result<Vec<Change>> {
        // Where scutil does not answer there may be some: whoever takes them away finds out. Routes follow the network, and are deleted, all the same.
        let names = scutil::leftovers().unwrap_or_else(|error| {
            log::debug!("the name servers of an earlier run are not told: {error}");
            Some(Names { servers: Vec::new() })
        });
        let mut found: Vec<Change> = names.into_iter().map(Change::DnsRestore).collect();
        found.extend(self.kernel.leftovers()?.into_iter().map(Change::RouteDelete));
        Ok(found)
    }
}
