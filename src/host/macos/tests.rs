//! The code that ships on every system, with a Mac and a journal that are values: killed at every step, and undone from what is left.

#![cfg(any(target_os = "linux", target_os = "macos"))]

use super::change::{Change, Route, Way};
use super::plan::{self, Have};
use crate::config::{Cidr, HostPlanConfig};
use crate::host::Outcome;
use crate::host::reversible::Reversible;
use crate::host::run::{Host, Journal, Pending, Run, Snapshot, restore_from};
use crate::host::want::Want;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;

const DEVICE: &str = "utun122";

/// Everything of a Mac that a run could leave changed.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Mac {
    /// The device's number, while there is one.
    index: Option<u32>,
    mtu: u32,
    up: bool,
    addresses: Vec<Cidr>,
    /// Others' routes.
    foreign: Vec<Route>,
    ours: Vec<Route>,
    names: Option<super::names::Names>,
}

impl Mac {
    /// A laptop whose device has just been made.
    fn new() -> Mac {
        let route = |text: &str| {
            let Ok(Change::RouteAdd(route)) = text.parse() else { panic!("{text}") };
            route
        };
        Mac {
            index: Some(9),
            mtu: 1380,
            up: false,
            addresses: Vec::new(),
            foreign: vec![
                route("route add 0.0.0.0/0 via 192.168.1.1"),
                route("route add 192.168.1.0/24 dev en0"),
                route("route add ::/0 via fe80::1%en0"),
            ],
            ours: Vec::new(),
            names: None,
        }
    }

    /// The process dies, and the device with it.
    fn lose_device(&mut self) {
        self.index = None;
        self.mtu = 1380;
        self.up = false;
        self.addresses.clear();
        self.ours.retain(|route| route.way != Way::Link(DEVICE.into()));
    }

    /// Where a packet to this address goes.
    fn way(&self, to: &str) -> Option<&Way> {
        let to = to.parse().unwrap();
        let all = self.foreign.iter().chain(&self.ours);
        all.filter(|route| route.to.contains(to)).max_by_key(|route| route.to.prefix).map(|route| &route.way)
    }
}

/// The Mac and its disk.
#[derive(Debug)]
struct World {
    mac: Mac,
    journal: Option<Vec<String>>,
    /// Steps until the process dies.
    left: usize,
}

impl World {
    fn step(&mut self) -> io::Result<()> {
        self.left = self.left.checked_sub(1).ok_or_else(|| io::Error::other("dead"))?;
        Ok(())
    }
}

#[derive(Clone, Debug)]
struct Shared(Rc<RefCell<World>>);

impl Shared {
    fn new(mac: Mac) -> Shared {
        Shared(Rc::new(RefCell::new(World { mac, journal: None, left: usize::MAX })))
    }
}

impl Host for Shared {
    type Change = Change;
    type Have = Have;
    type Names = ();

    fn snapshot(&mut self, _device: &str) -> io::Result<Snapshot<Have>> {
        let mac = &self.0.borrow().mac;
        let have = Have {
            ipv6: true,
            mtu: mac.mtu,
            up: mac.up,
            addresses: mac.addresses.clone(),
            routes: mac.foreign.clone(),
        };
        Ok(Snapshot { index: mac.index, have })
    }

    fn names(&mut self) {}

    fn plan(have: Have, names: Option<()>, want: &Want) -> Vec<Change> {
        plan::plan(&have, names.is_some(), want)
    }

    fn apply(&mut self, change: &Change) -> io::Result<Outcome> {
        let mut world = self.0.borrow_mut();
        world.step()?;
        let mac = &mut world.mac;
        match change {
            Change::MtuSet { mtu, .. } => mac.mtu = *mtu,
            Change::AddressAdd(address) => mac.addresses.push(address.address),
            Change::AddressDelete(address) => mac.addresses.retain(|other| *other != address.address),
            Change::LinkUp { .. } => mac.up = true,
            Change::LinkDown { .. } => mac.up = false,
            Change::RouteAdd(route) => {
                if mac.foreign.iter().any(|other| other.to == route.to) {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                mac.ours.retain(|other| other.to != route.to);
                mac.ours.push(route.clone());
            }
            Change::RouteDelete(route) => mac.ours.retain(|other| other != route),
            Change::DnsSet(names) => mac.names = Some(names.clone()),
            Change::DnsRestore(_) => mac.names = None,
        }
        Ok(Outcome::Done)
    }

    fn leftovers(&mut self) -> io::Result<Vec<Change>> {
        let mac = &self.0.borrow().mac;
        let names = mac.names.iter().cloned().map(Change::DnsRestore);
        Ok(names.chain(mac.ours.iter().cloned().map(Change::RouteDelete)).collect())
    }
}

impl Journal<Change> for Shared {
    fn pending(&mut self) -> io::Result<Pending<Change>> {
        let world = self.0.borrow();
        let Some(lines) = &world.journal else { return Ok(Pending::default()) };
        let undos = lines.iter().rev().map(|line| line.parse().unwrap()).collect();
        Ok(Pending { index: Some(9), undos, unreadable: 0 })
    }

    fn begin(&mut self, _index: u32, undos: &[Change]) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        world.step()?;
        world.journal = Some(undos.iter().map(Change::to_string).collect());
        Ok(())
    }

    fn record(&mut self, undo: &Change) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        world.step()?;
        world.journal.as_mut().unwrap().push(undo.to_string());
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        self.0.borrow_mut().journal = None;
        Ok(())
    }
}

fn want(kill_switch: bool) -> Want {
    let config = HostPlanConfig {
        kill_switch,
        bypass: vec!["10.0.0.0/8".parse().unwrap()],
        dns: vec!["198.18.0.2".parse().unwrap()],
        ..HostPlanConfig::default()
    };
    Want::new(&config, DEVICE, &["203.0.113.9".parse().unwrap()], None)
}

fn start(shared: &Shared, kill_switch: bool) -> Result<Run<Shared, Shared>, crate::host::HostError> {
    Run::start(shared.clone(), shared.clone(), want(kill_switch), true)
}

fn tunnel() -> Way {
    Way::Link(DEVICE.into())
}

#[test]
fn every_plan_is_made_and_undone() {
    for kill_switch in [false, true] {
        let before = Mac::new();
        let shared = Shared::new(before.clone());
        let mut run = start(&shared, kill_switch).unwrap();
        {
            let mac = &shared.0.borrow().mac;
            assert_eq!(mac.way("8.8.8.8"), Some(&tunnel()));
            assert_eq!(mac.way("2606:4700::1111"), Some(&tunnel()));
            assert_ne!(mac.way("203.0.113.9"), Some(&tunnel()));
            assert_ne!(mac.way("10.1.2.3"), Some(&tunnel()));
            assert_eq!(mac.way("192.168.1.77"), Some(&Way::Link("en0".into())));
            assert!(mac.names.is_some());
        }
        assert!(run.refresh(DEVICE).unwrap().is_unchanged());
        let report = run.down();
        assert!(report.is_ok(), "{report}");
        let world = shared.0.borrow();
        assert_eq!((&world.mac, &world.journal), (&before, &None));
    }
}

/// L-14: whatever a run that is killed at any step has made, is found, with the journal and without it.
#[test]
fn what_a_killed_run_leaves_is_undone_with_and_without_its_journal() {
    for kill_switch in [false, true] {
        for steps in 0.. {
            let shared = Shared::new(Mac::new());
            shared.0.borrow_mut().left = steps;
            let run = start(&shared, kill_switch);
            let lived = run.is_ok();
            // Nothing of a process that is killed runs any more.
            core::mem::forget(run);
            for journal in [true, false] {
                let mut left = World { mac: shared.0.borrow().mac.clone(), journal: None, left: usize::MAX };
                if journal {
                    left.journal.clone_from(&shared.0.borrow().journal);
                }
                left.mac.lose_device();
                let after = Shared(Rc::new(RefCell::new(left)));
                let report = restore_from(&mut after.clone(), &mut after.clone(), DEVICE, true);
                assert!(report.is_ok(), "{report}");
                let mut before = Mac::new();
                before.lose_device();
                assert_eq!(after.0.borrow().mac, before, "{steps} steps");
            }
            if lived {
                break;
            }
        }
    }
}

/// F19
#[test]
fn with_the_kill_switch_what_was_captured_is_refused_when_the_process_is_gone() {
    let shared = Shared::new(Mac::new());
    core::mem::forget(start(&shared, true).unwrap());
    shared.0.borrow_mut().mac.lose_device();
    let mac = shared.0.borrow().mac.clone();
    for captured in ["8.8.8.8", "1.1.1.1", "223.255.255.254", "2606:4700::1111", "64:ff9b::8.8.8.8"] {
        assert_eq!(mac.way(captured), Some(&Way::Reject), "{captured}");
    }
    assert_eq!(mac.way("192.168.1.77"), Some(&Way::Link("en0".into())));
    // The next run takes over without a gap, and undoes it all in the end.
    shared.0.borrow_mut().mac.index = Some(9);
    let mut run = start(&shared, true).unwrap();
    assert_eq!(shared.0.borrow().mac.way("8.8.8.8"), Some(&tunnel()));
    assert!(run.down().is_ok());
    assert_eq!(shared.0.borrow().mac, Mac::new());
}

#[test]
fn routes_that_lead_out_follow_the_default_route() {
    let shared = Shared::new(Mac::new());
    let mut run = start(&shared, false).unwrap();
    let gateway = |addr: &str| Way::Gateway { addr: addr.parse().unwrap(), zone: None };
    assert_eq!(shared.0.borrow().mac.way("203.0.113.9"), Some(&gateway("192.168.1.1")));
    shared.0.borrow_mut().mac.foreign[0].way = gateway("10.20.30.1");
    assert!(!run.refresh(DEVICE).unwrap().is_unchanged());
    assert_eq!(shared.0.borrow().mac.way("203.0.113.9"), Some(&gateway("10.20.30.1")));
    assert!(run.refresh(DEVICE).unwrap().is_unchanged());
    assert!(run.down().is_ok());
    assert!(shared.0.borrow().mac.ours.is_empty());
}

#[test]
fn a_route_that_another_program_has_taken_away_is_made_again() {
    let shared = Shared::new(Mac::new());
    let mut run = start(&shared, false).unwrap();
    shared.0.borrow_mut().mac.ours.retain(|route| route.to != "128.0.0.0/1".parse().unwrap());
    let refreshed = run.refresh(DEVICE).unwrap();
    assert_eq!(refreshed.made.iter().map(Change::kind).collect::<Vec<_>>(), ["route"]);
    assert_eq!(shared.0.borrow().mac.way("203.0.114.1"), Some(&tunnel()));
}
