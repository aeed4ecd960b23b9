//! The code that ships on every system, with a Windows and a journal that are values: killed at every step, and undone from what is left.

use super::change::{Change, Outside, Policy};
use super::guard::{Guard, Kind};
use super::plan::{self, Have, MachineRoute};
use super::rows::Settings;
use crate::config::HostPlanConfig;
use crate::host::Outcome;
use crate::host::reversible::Reversible;
use crate::host::run::journal::read;
use crate::host::run::{Host, Journal, Pending, Run, Snapshot, restore_from};
use crate::host::want::{Family, Want};
use std::cell::RefCell;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;

const DEVICE: &str = "ztun0";
const ETHERNET: u64 = 0x6_0080_0000_0000;

/// Everything of a machine that a run could leave changed.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Windows {
    /// The device's index, while there is one.
    index: Option<u32>,
    have: Have,
    servers: Vec<IpAddr>,
    outside: Vec<Outside>,
    policy: Option<Policy>,
    guards: Vec<Guard>,
}

impl Windows {
    /// A machine without a device.
    fn new() -> Windows {
        let own = |destination: &str, hop: &str| MachineRoute {
            destination: destination.parse().unwrap(),
            luid: ETHERNET,
            next_hop: hop.parse().ok(),
            metric: 25,
        };
        let machine =
            vec![own("0.0.0.0/0", "192.168.1.1"), own("192.168.1.0/24", "-"), own("::/0", "fe80::1")];
        let have = Have { luid: 0, v4: None, v6: None, addresses: Vec::new(), captured: Vec::new(), machine };
        Windows {
            index: None,
            have,
            servers: Vec::new(),
            outside: Vec::new(),
            policy: None,
            guards: Vec::new(),
        }
    }

    fn with_device(mut self, index: u32) -> Windows {
        let settings = Some(Settings { mtu: 65_535, metric: None });
        self.index = Some(index);
        self.have.luid = index.into();
        (self.have.v4, self.have.v6) = (settings, settings);
        self
    }

    /// The process dies, and the device and its session with it.
    fn lose_process(&mut self) {
        self.guards.retain(|guard| guard.kind.outlives_process());
        self.lose_device();
    }

    fn lose_device(&mut self) {
        self.index = None;
        let machine = core::mem::take(&mut self.have.machine);
        self.have = Have { machine, ..Windows::new().have };
        self.servers.clear();
    }

    fn guard(&self, kind: Kind) -> Option<&Guard> {
        self.guards.iter().find(|guard| guard.kind == kind)
    }

    fn settings(&mut self, family: Family) -> &mut Option<Settings> {
        match family {
            Family::V4 => &mut self.have.v4,
            Family::V6 => &mut self.have.v6,
        }
    }

    fn change(&mut self, change: &Change) -> io::Result<()> {
        if change.device().is_some() && self.index.is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let have = &mut self.have;
        match change {
            Change::InterfaceSet { family, now, .. } => *self.settings(*family) = Some(*now),
            Change::AddressAdd(address) => have.addresses.push(address.address),
            Change::AddressDelete(address) => have.addresses.retain(|other| *other != address.address),
            Change::RouteAdd(route) => {
                have.captured.retain(|other| *other != route.destination);
                have.captured.push(route.destination);
            }
            Change::RouteDelete(route) => have.captured.retain(|other| *other != route.destination),
            Change::OutsideAdd(route) => {
                self.outside.retain(|other| other != route);
                self.outside.push(*route);
            }
            Change::OutsideDelete(route) => self.outside.retain(|other| other != route),
            Change::ServersSet(servers) => self.servers.clone_from(&servers.servers),
            Change::ServersReset(_) => self.servers.clear(),
            Change::PolicyAdd(policy) => self.policy = Some(policy.clone()),
            Change::PolicyDelete(_) => self.policy = None,
            Change::GuardAdd(guard) => {
                self.guards.retain(|other| other.kind != guard.kind);
                self.guards.push(guard.clone());
            }
            Change::GuardDelete(guard) => self.guards.retain(|other| !guard.covers(other)),
        }
        Ok(())
    }
}

/// The machine, its disk, and what is to go wrong.
#[derive(Debug)]
struct World {
    windows: Windows,
    journal: Option<String>,
    /// Steps until the process dies.
    left: usize,
    /// Whether the step at which it dies still has its effect.
    effect: bool,
    /// Whether a kill switch must be up after every step.
    guarded: bool,
}

impl World {
    fn step(&mut self, effect: impl FnOnce(&mut World) -> io::Result<()>) -> io::Result<()> {
        let dead = || io::Error::other("dead");
        let Some(left) = self.left.checked_sub(1) else { return Err(dead()) };
        self.left = left;
        if left == 0 && !self.effect {
            return Err(dead());
        }
        let result = effect(self);
        let up = self.windows.guard(Kind::KillSwitch).is_some();
        assert!(up || !self.guarded, "it leaks: {:?}", self.windows);
        if left == 0 { Err(dead()) } else { result }
    }
}

#[derive(Clone, Debug)]
struct Shared(Rc<RefCell<World>>);

impl Shared {
    fn new(windows: Windows) -> Shared {
        let world = World { windows, journal: None, left: usize::MAX, effect: false, guarded: false };
        Shared(Rc::new(RefCell::new(world)))
    }

    fn windows(&self) -> Windows {
        self.0.borrow().windows.clone()
    }

    /// Another process, after the one before has died.
    fn reborn(&self) {
        let mut world = self.0.borrow_mut();
        world.left = usize::MAX;
        world.guarded = false;
        world.windows.lose_process();
    }

    fn start(&self, config: &HostPlanConfig) -> Result<Run<Shared, Shared>, crate::host::HostError> {
        let want = Want::new(config, DEVICE, &["203.0.113.9".parse().unwrap()], None);
        Run::start(self.clone(), self.clone(), want, true)
    }

    fn restore(&self) {
        let report = restore_from(&mut self.clone(), &mut self.clone(), DEVICE, true);
        assert!(report.is_ok(), "{report}");
    }
}

impl Host for Shared {
    type Change = Change;
    type Have = Have;
    type Names = ();

    fn snapshot(&mut self, _device: &str) -> io::Result<Snapshot<Have>> {
        let windows = self.windows();
        Ok(Snapshot { index: windows.index, have: windows.have })
    }

    fn names(&mut self) {}

    fn plan(have: Have, names: Option<()>, want: &Want) -> Vec<Change> {
        plan::plan(&have, names.is_some(), want)
    }

    fn apply(&mut self, change: &Change) -> io::Result<Outcome> {
        let mut world = self.0.borrow_mut();
        let before = world.windows.clone();
        world.step(|world| world.windows.change(change))?;
        Ok(if world.windows == before { Outcome::Already } else { Outcome::Done })
    }

    fn leftovers(&mut self) -> io::Result<Vec<Change>> {
        let windows = self.windows();
        let mut found: Vec<Change> = windows.policy.into_iter().map(Change::PolicyDelete).collect();
        found.extend(windows.outside.into_iter().map(Change::OutsideDelete));
        found.extend(windows.guards.into_iter().map(Change::GuardDelete));
        Ok(found)
    }
}

impl Journal<Change> for Shared {
    fn pending(&mut self) -> io::Result<Pending<Change>> {
        Ok(self.0.borrow().journal.as_deref().map(read).unwrap_or_default())
    }

    fn begin(&mut self, index: u32, undos: &[Change]) -> io::Result<()> {
        let mut text = format!("ztun-journal 1 index {index}\n");
        undos.iter().for_each(|undo| text.push_str(&format!("{undo}\n")));
        self.0.borrow_mut().step(|world| {
            world.journal = Some(text);
            Ok(())
        })
    }

    fn record(&mut self, undo: &Change) -> io::Result<()> {
        self.0.borrow_mut().step(|world| {
            world.journal.iter_mut().for_each(|text| text.push_str(&format!("{undo}\n")));
            Ok(())
        })
    }

    fn clear(&mut self) -> io::Result<()> {
        self.0.borrow_mut().step(|world| {
            world.journal = None;
            Ok(())
        })
    }
}

fn config(kill_switch: bool) -> HostPlanConfig {
    let dns = vec!["198.18.0.2".parse().unwrap(), "fd7a:7a74:756e::2".parse().unwrap()];
    let bypass = vec!["10.0.0.0/8".parse().unwrap()];
    HostPlanConfig { dns, bypass, kill_switch, ..HostPlanConfig::default() }
}

/// Configurations with every kind of change.
fn configs() -> Vec<HostPlanConfig> {
    let v4_only = HostPlanConfig { routes: vec!["0.0.0.0/0".parse().unwrap()], ..config(false) };
    vec![config(false), config(true), v4_only, HostPlanConfig { no_route: true, ..config(false) }]
}

#[test]
fn a_run_that_ends_leaves_everything_as_it_was() {
    for config in configs() {
        let before = Windows::new().with_device(7);
        let shared = Shared::new(before.clone());
        let mut run = shared.start(&config).unwrap();
        assert_ne!(shared.windows(), before);
        assert_eq!(run.verify().unwrap(), []);
        let report = run.down();
        assert!(report.is_ok(), "{report}");
        assert_eq!(shared.windows(), before);
        assert_eq!(shared.0.borrow().journal, None);
    }
}

#[test]
fn killed_at_any_step_it_leaves_nothing_that_is_not_undone() {
    for (config, effect) in configs().iter().flat_map(|config| [(config, false), (config, true)]) {
        let whole = Shared::new(Windows::new().with_device(7));
        whole.0.borrow_mut().left = 1000;
        let mut run = whole.start(config).unwrap();
        run.down();
        let steps = 1000 - whole.0.borrow().left;
        assert!(steps > 5, "{steps}");
        for step in 1..=steps {
            let shared = Shared::new(Windows::new().with_device(7));
            (shared.0.borrow_mut().left, shared.0.borrow_mut().effect) = (step, effect);
            if let Ok(mut run) = shared.start(config) {
                run.down();
            }
            shared.reborn();
            shared.restore();
            assert_eq!(shared.windows(), Windows::new(), "step {step} of {steps}, {effect}");
            assert_eq!(shared.0.borrow().journal, None);
        }
    }
}

#[test]
fn without_the_journal_the_machine_itself_shows_what_is_left() {
    for config in configs() {
        let shared = Shared::new(Windows::new().with_device(7));
        let run = shared.start(&config).unwrap();
        drop(run);
        shared.0.borrow_mut().journal = None;
        shared.reborn();
        shared.restore();
        assert_eq!(shared.windows(), Windows::new());
    }
}

#[test]
fn a_kill_switch_goes_over_to_the_next_run_without_a_gap() {
    let shared = Shared::new(Windows::new().with_device(7));
    drop(shared.start(&config(true)).unwrap());
    shared.reborn();
    assert!(shared.windows().guard(Kind::KillSwitch).is_some());
    // The new device may have another LUID.
    shared.0.borrow_mut().windows = shared.windows().with_device(8);
    shared.0.borrow_mut().guarded = true;
    let mut run = shared.start(&config(true)).unwrap();
    assert_eq!(shared.windows().guard(Kind::KillSwitch).unwrap().luid, 8);
    shared.0.borrow_mut().guarded = false;
    assert!(run.down().is_ok());
    assert_eq!(shared.windows(), Windows::new().with_device(8));
}

#[test]
fn what_stays_outside_follows_the_machines_route() {
    let before = Windows::new().with_device(7);
    let shared = Shared::new(before.clone());
    let mut run = shared.start(&config(false)).unwrap();
    assert!(run.refresh(DEVICE).unwrap().is_unchanged());
    let hop: IpAddr = "172.20.10.1".parse().unwrap();
    shared.0.borrow_mut().windows.have.machine[0].next_hop = Some(hop);
    let refreshed = run.refresh(DEVICE).unwrap();
    assert_eq!((refreshed.made.len(), refreshed.undone.len()), (2, 2));
    assert!(shared.windows().outside.iter().all(|route| route.next_hop == Some(hop)));
    assert!(run.down().is_ok());
    shared.0.borrow_mut().windows.have.machine.clone_from(&before.have.machine);
    assert_eq!(shared.windows(), before);
}

#[test]
fn guards_follow_a_device_that_is_made_anew() {
    let shared = Shared::new(Windows::new().with_device(7));
    let mut run = shared.start(&config(true)).unwrap();
    shared.0.borrow_mut().windows.lose_device();
    assert!(run.refresh(DEVICE).is_err());
    shared.0.borrow_mut().windows = shared.windows().with_device(9);
    shared.0.borrow_mut().guarded = true;
    assert!(run.refresh(DEVICE).unwrap().renewed);
    assert!(shared.windows().guards.iter().all(|guard| guard.luid == 9));
    assert_eq!(run.verify().unwrap(), []);
    shared.0.borrow_mut().guarded = false;
    assert!(run.down().is_ok());
    assert_eq!(shared.windows(), Windows::new().with_device(9));
}

#[test]
fn what_somebody_takes_away_is_made_again() {
    let shared = Shared::new(Windows::new().with_device(7));
    let mut run = shared.start(&config(false)).unwrap();
    let whole = shared.windows();
    {
        let windows = &mut shared.0.borrow_mut().windows;
        windows.policy = None;
        windows.outside.clear();
        windows.have.captured.clear();
        windows.guards.clear();
    }
    let refreshed = run.refresh(DEVICE).unwrap();
    assert_eq!(refreshed.made.len(), 8);
    assert_eq!(shared.windows(), whole);
    assert!(run.down().is_ok());
}
