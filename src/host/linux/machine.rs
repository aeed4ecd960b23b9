//! This machine as a [`Host`]: every part of the system that a change is made in.

use super::change::{Change, Filter};
use super::dns::{self, Places, Situation};
use super::kernel;
use super::nft::Nft;
use super::plan::{self, Have};
use crate::host::Outcome;
use crate::host::run::{Host, Snapshot};
use crate::host::want::Want;
use crate::netlink::Netlink;
use std::io;

/// This machine, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(in crate::host) struct Machine {
    netlink: Netlink,
    /// The filters go with it.
    nft: Option<Nft>,
}

impl Machine {
    pub(in crate::host) fn open() -> io::Result<Machine> {
        Ok(Machine { netlink: Netlink::route()?, nft: None })
    }

    fn nft(&mut self) -> io::Result<&mut Nft> {
        let nft = match self.nft.take() {
            Some(nft) => nft,
            None => Nft::open()?,
        };
        Ok(self.nft.insert(nft))
    }
}

impl Host for Machine {
    type Change = Change;
    type Have = Have;
    type Names = Situation;

    fn snapshot(&mut self, device: &str) -> io::Result<Snapshot<Have>> {
        let index = match kernel::index_of(device) {
            Ok(index) => Some(index),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => None,
            Err(error) => return Err(error),
        };
        Ok(Snapshot { index, have: kernel::snapshot(&mut self.netlink, device)? })
    }

    fn names(&mut self) -> Situation {
        dns::observe(&Places::standard())
    }

    fn plan(have: Have, names: Option<Situation>, want: &Want) -> Vec<Change> {
        plan::plan(&Have { dns: names, ..have }, want)
    }

    fn apply(&mut self, change: &Change) -> io::Result<Outcome> {
        match change {
            Change::FilterAdd(filter) => self.nft()?.add(filter).map(|()| Outcome::Done),
            Change::FilterDelete(filter) => {
                let gone = self.nft().and_then(|nft| nft.delete(filter.hook));
                match gone {
                    Ok(true) => Ok(Outcome::Done),
                    Ok(false) => Ok(Outcome::Already),
                    Err(error) if is_unknown(&error) => Ok(Outcome::Already),
                    Err(error) => Err(error),
                }
            }
            Change::DnsSet(names) => Ok(dns::set(&Places::standard(), names)),
            Change::DnsRestore(names) => dns::restore(&Places::standard(), names),
            Change::Ipv6On { .. }
            | Change::Ipv6Off { .. }
            | Change::AddressAdd(_)
            | Change::AddressDelete(_)
            | Change::MtuSet { .. }
            | Change::LinkUp { .. }
            | Change::LinkDown { .. }
            | Change::RouteAdd(_)
            | Change::RouteDelete(_)
            | Change::UnreachableAdd(_)
            | Change::UnreachableDelete(_)
            | Change::RuleAdd(_)
            | Change::RuleDelete(_) => kernel::apply(&mut self.netlink, change),
        }
    }

    fn leftovers(&mut self) -> io::Result<Vec<Change>> {
        let names = dns::leftovers(&Places::standard());
        let mut found: Vec<Change> = names.into_iter().map(Change::DnsRestore).collect();
        found.extend(kernel::leftovers(&mut self.netlink)?);
        let tables = match self.nft().and_then(Nft::tables) {
            // Whoever may not look cannot have made one either.
            Err(error) if is_unknown(&error) || error.kind() == io::ErrorKind::PermissionDenied => Vec::new(),
            result => result?,
        };
        let filter = |hook| Filter { hook, device: String::new(), addresses: Vec::new() };
        found.extend(tables.into_iter().map(|hook| Change::FilterDelete(filter(hook))));
        Ok(found)
    }
}

/// Whether a kernel without nf_tables has answered.
fn is_unknown(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL)
    )
}
