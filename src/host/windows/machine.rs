//! This machine as a [`Host`]: every part of the system that a change is made in.

use super::change::{Change, OUTSIDE_METRIC, Outside, Policy};
use super::helper;
use super::plan::{self, Have, MachineRoute};
use super::resolver;
use super::rows::{SeenInterface, SeenRoute, Settings, address_row, interface_set, route_row};
use super::wfp::Wfp;
use crate::config::Cidr;
use crate::host::Outcome;
use crate::host::run::{Host, Snapshot};
use crate::host::want::{Family, Want};
use std::io;
use windows_sys::Win32::Foundation::{ERROR_NOT_FOUND, ERROR_OBJECT_ALREADY_EXISTS};
use windows_sys::Win32::System::Threading::Sleep;

/// What a device has before it is set up, as far as a plan without one can tell.
const NEW_DEVICE: Settings = Settings { mtu: 65_535, metric: None };

/// How often, and how many milliseconds apart, a new device is looked at until it has all that it is going to have.
const LOOKS: usize = 100;
const LOOK_EVERY: u32 = 50;

/// This machine.
#[derive(Debug)]
pub(in crate::host) struct Machine {
    wfp: Wfp,
    /// The device that was waited for.
    settled: Option<u64>,
}

impl Machine {
    pub(in crate::host) fn open() -> io::Result<Machine> {
        Ok(Machine { wfp: Wfp::default(), settled: None })
    }

    /// What the device has, once it has all that it is going to have: the system gives a new one its IPv4 and its IPv6 some time after it is there, and
    /// what is planned before captures nothing of that family. A device may be without one for good, so each is waited for once.
    fn have(&mut self, luid: Option<u64>) -> io::Result<Have> {
        let mut have = have(luid)?;
        if luid.is_none() || self.settled == luid {
            return Ok(have);
        }
        for _ in 0..LOOKS {
            if [Family::V4, Family::V6].iter().all(|family| plan::is_settled(&have, *family)) {
                break;
            }
            // SAFETY: a number only.
            unsafe { Sleep(LOOK_EVERY) };
            have = self::have(luid)?;
        }
        if !plan::is_settled(&have, Family::V4) {
            let text = "Windows does not give the device IPv4";
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        self.settled = luid;
        Ok(have)
    }
}

/// What the IP Helper tells of the machine and of the device, if there is one.
fn have(luid: Option<u64>) -> io::Result<Have> {
    let interfaces = helper::interfaces()?;
    let of = |luid: u64, family: Family| {
        interfaces.iter().find(move |seen| seen.luid == luid && seen.family == family)
    };
    let settings = |family: Family| match luid {
        Some(luid) => of(luid, family).map(|seen| seen.settings),
        // A machine that speaks the family at all gives it to new devices.
        None => interfaces.iter().any(|seen: &SeenInterface| seen.family == family).then_some(NEW_DEVICE),
    };
    let is_device = |other: u64| luid == Some(other);
    let (own, others): (Vec<SeenRoute>, Vec<SeenRoute>) =
        helper::routes()?.into_iter().partition(|route| is_device(route.luid));
    let machine_route = |route: &SeenRoute| {
        let interface = of(route.luid, Family::of(&route.destination))?;
        Some(MachineRoute {
            destination: route.destination,
            luid: route.luid,
            next_hop: route.next_hop,
            metric: u64::from(route.metric) + u64::from(interface.metric),
        })
    };
    let machine = others.iter().filter(|route| route.metric != OUTSIDE_METRIC).filter_map(machine_route);
    let addresses = helper::addresses()?.into_iter().filter(|seen| is_device(seen.luid));
    Ok(Have {
        luid: luid.unwrap_or(0),
        v4: settings(Family::V4),
        v6: settings(Family::V6),
        addresses: addresses.map(|seen| seen.address).collect(),
        captured: own
            .iter()
            .filter(|route| route.next_hop.is_none())
            .map(|route| route.destination)
            .collect(),
        machine: machine.collect(),
    })
}

/// The device's LUID.
fn device(name: &str) -> io::Result<u64> {
    let gone = || io::Error::from_raw_os_error(ERROR_NOT_FOUND.cast_signed());
    helper::luid_of(name)?.ok_or_else(gone)
}

/// With the device gone, what is to be taken from it is gone too.
fn on_device(name: &str, take: impl FnOnce(u64) -> io::Result<Outcome>) -> io::Result<Outcome> {
    helper::luid_of(name)?.map_or(Ok(Outcome::Already), take)
}

fn set_interface(name: &str, family: Family, settings: Settings) -> io::Result<Outcome> {
    let Some((row, seen)) = helper::interface(device(name)?, family)? else {
        return Err(io::Error::from_raw_os_error(ERROR_NOT_FOUND.cast_signed()));
    };
    if seen.settings == settings {
        return Ok(Outcome::Already);
    }
    helper::set_interface(interface_set(row, settings)).map(|()| Outcome::Done)
}

fn add_address(name: &str, address: &Cidr) -> io::Result<Outcome> {
    let luid = device(name)?;
    match helper::add_address(&address_row(luid, address)) {
        Err(error) if exists(&error) => {
            let ours = |seen: &super::rows::SeenAddress| seen.luid == luid && seen.address == *address;
            if helper::addresses()?.iter().any(ours) { Ok(Outcome::Already) } else { Err(error) }
        }
        result => result.map(|()| Outcome::Done),
    }
}

fn exists(error: &io::Error) -> bool {
    error.raw_os_error() == Some(ERROR_OBJECT_ALREADY_EXISTS.cast_signed())
}

fn add_route(
    luid: u64,
    destination: &Cidr,
    next_hop: Option<std::net::IpAddr>,
    metric: u32,
) -> io::Result<Outcome> {
    let row = route_row(luid, destination, next_hop, metric);
    match helper::add_route(&row) {
        Err(error) if exists(&error) => {
            if helper::route_metric(&row)? == Some(metric) {
                Ok(Outcome::Already)
            } else {
                Err(error)
            }
        }
        result => result.map(|()| Outcome::Done),
    }
}

/// Deletes a route of ours; one of somebody else's to the same destination stays.
fn delete_outside(route: &Outside) -> io::Result<Outcome> {
    let row = route_row(route.luid, &route.destination, route.next_hop, OUTSIDE_METRIC);
    if helper::route_metric(&row)? == Some(OUTSIDE_METRIC) {
        helper::delete_route(&row)
    } else {
        Ok(Outcome::Already)
    }
}

impl Host for Machine {
    type Change = Change;
    type Have = Have;
    type Names = ();

    fn snapshot(&mut self, device: &str) -> io::Result<Snapshot<Have>> {
        let luid = helper::luid_of(device)?;
        let index = luid.map(helper::index_of).transpose()?;
        Ok(Snapshot { index, have: self.have(luid)? })
    }

    /// Nothing of it has to be kept: what the device has is gone with it, and the rule stands beside what there was.
    fn names(&mut self) {}

    fn plan(have: Have, names: Option<()>, want: &Want) -> Vec<Change> {
        plan::plan(&have, names.is_some(), want)
    }

    fn apply(&mut self, change: &Change) -> io::Result<Outcome> {
        match change {
            Change::InterfaceSet { device, family, now, .. } => set_interface(device, *family, *now),
            Change::AddressAdd(address) => add_address(&address.device, &address.address),
            Change::AddressDelete(address) => on_device(&address.device, |luid| {
                helper::delete_address(&address_row(luid, &address.address))
            }),
            Change::RouteAdd(route) => add_route(device(&route.device)?, &route.destination, None, 0),
            Change::RouteDelete(route) => on_device(&route.device, |luid| {
                helper::delete_route(&route_row(luid, &route.destination, None, 0))
            }),
            Change::OutsideAdd(route) => {
                add_route(route.luid, &route.destination, route.next_hop, OUTSIDE_METRIC)
            }
            Change::OutsideDelete(route) => delete_outside(route),
            Change::ServersSet(servers) => {
                resolver::set_servers(device(&servers.device)?, &servers.servers, true)
                    .map(|()| Outcome::Done)
            }
            Change::ServersReset(servers) => on_device(&servers.device, |luid| {
                resolver::set_servers(luid, &servers.servers, false).map(|()| Outcome::Done)
            }),
            Change::PolicyAdd(policy) => resolver::add_rule(&policy.servers).map(|()| Outcome::Done),
            Change::PolicyDelete(_) => resolver::delete_rule(),
            Change::GuardAdd(guard) => self.wfp.set(guard).map(|()| Outcome::Done),
            Change::GuardDelete(guard) => self.wfp.clear(guard),
        }
    }

    fn leftovers(&mut self) -> io::Result<Vec<Change>> {
        let policy = resolver::rule()?.map(|servers| Change::PolicyDelete(Policy { servers }));
        let mut found: Vec<Change> = policy.into_iter().collect();
        for route in helper::routes()?.into_iter().filter(|route| route.metric == OUTSIDE_METRIC) {
            let SeenRoute { luid, destination, next_hop, .. } = route;
            found.push(Change::OutsideDelete(Outside { destination, luid, next_hop }));
        }
        found.extend(self.wfp.shown()?.into_iter().map(Change::GuardDelete));
        Ok(found)
    }
}
