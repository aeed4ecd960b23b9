//! The code that ships, on a machine and with a journal that are values: killed at every step, refused anything, and looked at after every step.

use super::journal::read;
use super::*;
use crate::config::{Cidr, HostPlanConfig};
use crate::host::linux::change::{
    Action, Address, Change, Family, Filter, Hook, Rule, Selector, TABLE, Unreachable,
};
use crate::host::linux::dns::Dns;
use crate::host::linux::dns::Situation;
use crate::host::linux::plan::{Have, Ipv6, plan};
use crate::host::system::Machine;
use proptest::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;

const DEVICE: &str = "ztun0";

/// A device as the kernel has it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Link {
    index: u32,
    mtu: u32,
    up: bool,
    ipv6: bool,
    addresses: Vec<Cidr>,
}

/// Everything that a run could leave changed, in no order.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Kernel {
    ipv6: Ipv6,
    link: Option<Link>,
    own_addresses: Vec<std::net::IpAddr>,
    /// Our name servers in /etc/resolv.conf.
    names: Option<Dns>,
    /// Rules and routes with our protocol number, as the changes that make them.
    ours: Vec<Change>,
}

impl Kernel {
    fn sorted(mut self) -> Kernel {
        self.ours.sort_by_key(Change::to_string);
        if let Some(link) = &mut self.link {
            link.addresses.sort_by_key(Cidr::to_string);
        }
        self
    }

    fn has(&self, change: &Change) -> bool {
        self.ours.contains(change)
    }

    /// Whether packets to the internet of this family are kept from leaving by the machine's own routes.
    fn guards(&self, family: Family) -> bool {
        let all = if family == Family::V4 { "0.0.0.0/0" } else { "::/0" }.parse().unwrap();
        let rule = |preference, action| {
            self.has(&Change::RuleAdd(Rule { family, preference, selector: Selector::All, action }))
        };
        let refused = self.has(&Change::UnreachableAdd(Unreachable { destination: all, table: TABLE }));
        (rule(5210, Action::Lookup(TABLE)) && refused) || rule(5211, Action::Unreachable)
    }
}

/// When the process dies: at which step, and whether that step still has its effect.
#[derive(Clone, Copy, Debug)]
struct Death {
    step: usize,
    effect: bool,
}

/// The machine, its disk, and what is to go wrong.
#[derive(Debug)]
struct World {
    kernel: Kernel,
    journal: Option<String>,
    steps: usize,
    death: Option<Death>,
    dead: bool,
    /// The step of the journal's that finds the disk full.
    full: Option<usize>,
    /// Changes that the kernel refuses.
    refuses: Vec<Change>,
    /// Families that must be guarded after every step.
    guarded: Vec<Family>,
}

#[derive(Clone, Debug)]
struct Fake(Rc<RefCell<World>>);

fn error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

impl World {
    /// A step of the process: false when it is dead before the effect.
    fn step(&mut self, effect: impl FnOnce(&mut World)) -> io::Result<()> {
        if self.dead {
            return Err(error(libc::EIO));
        }
        let step = self.steps;
        self.steps += 1;
        if let Some(death) = self.death.filter(|death| death.step == step) {
            self.dead = true;
            if death.effect {
                effect(self);
            }
            return Err(error(libc::EIO));
        }
        effect(self);
        for &family in &self.guarded {
            assert!(self.kernel.guards(family), "{family:?} leaks after step {step}: {:?}", self.kernel.ours);
        }
        Ok(())
    }

    fn change(&mut self, change: &Change) -> io::Result<Outcome> {
        if self.refuses.contains(change) {
            return Err(error(libc::EPERM));
        }
        let before = self.kernel.clone();
        let kernel = &mut self.kernel;
        let link = || error(libc::ENODEV);
        match change {
            Change::Ipv6On { .. } => kernel.link.as_mut().ok_or_else(link)?.ipv6 = true,
            Change::Ipv6Off { .. } => kernel.link.iter_mut().for_each(|link| link.ipv6 = false),
            Change::AddressAdd(Address { address, .. }) => {
                let addresses = &mut kernel.link.as_mut().ok_or_else(link)?.addresses;
                if addresses.contains(address) {
                    return Err(error(libc::EEXIST));
                }
                addresses.push(*address);
            }
            Change::AddressDelete(Address { address, .. }) => {
                kernel.link.iter_mut().for_each(|link| link.addresses.retain(|other| other != address));
            }
            Change::MtuSet { mtu, .. } => kernel.link.as_mut().ok_or_else(link)?.mtu = *mtu,
            Change::LinkUp { .. } => kernel.link.as_mut().ok_or_else(link)?.up = true,
            Change::LinkDown { .. } => {
                kernel.link.iter_mut().for_each(|link| link.up = false);
                kernel.ours.retain(|change| !matches!(change, Change::RouteAdd(_)));
            }
            Change::RouteAdd(_) if !kernel.link.as_ref().is_some_and(|link| link.up) => {
                return Err(error(libc::ENETDOWN));
            }
            Change::RouteAdd(_) | Change::UnreachableAdd(_) | Change::RuleAdd(_) => {
                if !kernel.has(change) {
                    kernel.ours.push(change.clone());
                }
            }
            Change::FilterAdd(filter) => {
                let same =
                    |change: &Change| matches!(change, Change::FilterAdd(other) if other.hook == filter.hook);
                kernel.ours.retain(|change| !same(change));
                kernel.ours.push(change.clone());
            }
            Change::FilterDelete(filter) => {
                let same =
                    |change: &Change| matches!(change, Change::FilterAdd(other) if other.hook == filter.hook);
                kernel.ours.retain(|change| !same(change));
            }
            Change::DnsSet(dns) => kernel.names = Some(dns.clone()),
            Change::DnsRestore(_) => kernel.names = None,
            Change::RouteDelete(_) | Change::UnreachableDelete(_) | Change::RuleDelete(_) => {
                kernel.ours.retain(|other| other.undo() != *change);
            }
        }
        Ok(if self.kernel == before { Outcome::Already } else { Outcome::Done })
    }

    /// The process is gone, and so is its device.
    fn reboot(&mut self) {
        (self.dead, self.death) = (false, None);
        self.delete_link();
    }

    fn delete_link(&mut self) {
        self.kernel.link = None;
        self.kernel.ours.retain(|change| !matches!(change, Change::RouteAdd(_)));
    }

    fn new_link(&mut self, index: u32) {
        let ipv6 = self.kernel.ipv6 == Ipv6::On;
        self.kernel.link = Some(Link { index, mtu: 1400, up: false, ipv6, addresses: Vec::new() });
    }
}

impl Host for Fake {
    type Change = Change;
    type Have = Have;
    type Names = Situation;

    fn plan(have: Have, names: Option<Situation>, want: &Want) -> Vec<Change> {
        Machine::plan(have, names, want)
    }

    fn snapshot(&mut self, _device: &str) -> io::Result<Snapshot<Have>> {
        let world = self.0.borrow();
        let kernel = &world.kernel;
        let (mtu, up, addresses) = kernel
            .link
            .as_ref()
            .map_or((1500, false, Vec::new()), |link| (link.mtu, link.up, link.addresses.clone()));
        let ipv6 = match kernel.ipv6 {
            Ipv6::Absent => Ipv6::Absent,
            Ipv6::OffOnDevice | Ipv6::On if kernel.link.as_ref().is_some_and(|link| link.ipv6) => Ipv6::On,
            Ipv6::OffOnDevice | Ipv6::On => Ipv6::OffOnDevice,
        };
        let have = Have { ipv6, mtu, up, addresses, own_addresses: kernel.own_addresses.clone(), dns: None };
        Ok(Snapshot { index: kernel.link.as_ref().map(|link| link.index), have })
    }

    fn names(&mut self) -> Situation {
        assert_eq!(self.0.borrow().kernel.names, None, "ours are taken for the machine's");
        Situation { own_file: true, servers: vec!["192.168.1.1".parse().unwrap()], ..Default::default() }
    }

    fn apply(&mut self, change: &Change) -> io::Result<Outcome> {
        let mut result = Ok(Outcome::Already);
        self.0.borrow_mut().step(|world| result = world.change(change))?;
        result
    }

    fn leftovers(&mut self) -> io::Result<Vec<Change>> {
        let kernel = &self.0.borrow().kernel;
        let names = kernel.names.iter().cloned().map(Change::DnsRestore);
        // Of a filter the kernel shows its kind only.
        let shown = |undo: Change| {
            if let Change::FilterDelete(filter) = undo {
                Change::FilterDelete(unknown(filter.hook))
            } else {
                undo
            }
        };
        let mut undos: Vec<Change> =
            kernel.ours.iter().map(|change| shown(change.undo())).chain(names).collect();
        undos.sort_by_key(|undo| (undo.kind() != "rule", core::cmp::Reverse(undo.to_string())));
        Ok(undos)
    }
}

fn unknown(hook: Hook) -> Filter {
    Filter { hook, device: String::new(), addresses: Vec::new() }
}

impl Fake {
    fn write(&mut self, write: impl FnOnce(&mut Option<String>)) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        if world.full == Some(world.steps) && !world.dead {
            world.steps += 1;
            return Err(error(libc::ENOSPC));
        }
        world.step(|world| write(&mut world.journal))
    }
}

impl Journal<Change> for Fake {
    fn pending(&mut self) -> io::Result<Pending<Change>> {
        Ok(self.0.borrow().journal.as_deref().map(read).unwrap_or_default())
    }

    fn begin(&mut self, index: u32, undos: &[Change]) -> io::Result<()> {
        let mut text = format!("ztun-journal 1 index {index}\n");
        undos.iter().for_each(|undo| text.push_str(&format!("{undo}\n")));
        self.write(|journal| *journal = Some(text))
    }

    fn record(&mut self, undo: &Change) -> io::Result<()> {
        assert!(self.0.borrow().journal.is_some() || self.0.borrow().dead, "recorded before it was begun");
        self.write(|journal| journal.iter_mut().for_each(|text| text.push_str(&format!("{undo}\n"))))
    }

    fn clear(&mut self) -> io::Result<()> {
        self.write(|journal| *journal = None)
    }
}

type FakeRun = Run<Fake, Fake>;

/// What a test goes through with.
#[derive(Clone, Copy, Debug)]
struct Case {
    ipv6: Ipv6,
    kill_switch: bool,
    no_route: bool,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for ipv6 in [Ipv6::Absent, Ipv6::OffOnDevice, Ipv6::On] {
        for (kill_switch, no_route) in [(false, false), (true, false), (false, true)] {
            cases.push(Case { ipv6, kill_switch, no_route });
        }
    }
    cases
}

impl Case {
    fn world(self) -> Fake {
        let own_addresses = vec!["192.168.1.5".parse().unwrap(), "2001:db8::5".parse().unwrap()];
        let kernel = Kernel { ipv6: self.ipv6, link: None, own_addresses, names: None, ours: Vec::new() };
        Fake(Rc::new(RefCell::new(World {
            kernel,
            journal: None,
            steps: 0,
            death: None,
            dead: false,
            full: None,
            refuses: Vec::new(),
            guarded: Vec::new(),
        })))
    }

    fn want(self) -> Want {
        let config = HostPlanConfig {
            kill_switch: self.kill_switch,
            no_route: self.no_route,
            dns: vec!["198.18.0.2".parse().unwrap(), "fd7a:7a74:756e::2".parse().unwrap()],
            ..Default::default()
        };
        Want::new(&config, DEVICE, &["203.0.113.9".parse().unwrap()], None)
    }

    /// A start on a device of this index, which is made first.
    fn start(self, fake: &Fake, index: u32) -> Result<FakeRun, HostError> {
        fake.0.borrow_mut().new_link(index);
        Run::start(fake.clone(), fake.clone(), self.want(), !self.no_route)
    }

    fn families(self) -> Vec<Family> {
        if self.ipv6 == Ipv6::Absent { vec![Family::V4] } else { vec![Family::V4, Family::V6] }
    }
}

fn kernel(fake: &Fake) -> Kernel {
    fake.0.borrow().kernel.clone().sorted()
}

fn set_death(fake: &Fake, death: Death) {
    let mut world = fake.0.borrow_mut();
    (world.steps, world.death) = (0, Some(death));
}

fn restored(fake: &Fake) -> Report<Change> {
    restore_from(&mut fake.clone(), &mut fake.clone(), DEVICE, true)
}

/// Steps of a whole run, from the start to the end of its clean-up.
fn steps(case: Case) -> usize {
    let fake = case.world();
    let mut run = case.start(&fake, 7).unwrap();
    assert!(run.verify().unwrap().is_empty());
    assert!(run.down().is_ok());
    fake.0.borrow().steps
}

/// Runs to the end or to `death`, whichever is first; the process is gone after it.
fn run_until(case: Case, fake: &Fake, death: Death) {
    set_death(fake, death);
    if let Ok(mut run) = case.start(fake, 7) {
        run.down();
    }
    fake.0.borrow_mut().reboot();
}

fn deaths(steps: usize) -> impl Iterator<Item = Death> {
    (0..=steps).flat_map(|step| [false, true].map(|effect| Death { step, effect }))
}

/// L-14, F19: killed at every step of set-up and clean-up; also restore is.
#[test]
fn killed_at_any_step_restore_leaves_the_machine_as_before_also_when_it_is_killed_itself() {
    for case in cases() {
        let before = kernel(&case.world());
        for death in deaths(steps(case)) {
            let fake = case.world();
            run_until(case, &fake, death);
            let left = (fake.0.borrow().kernel.clone(), fake.0.borrow().journal.clone());
            for second in deaths(left.0.ours.len() + 3) {
                (fake.0.borrow_mut().kernel, fake.0.borrow_mut().journal) = left.clone();
                set_death(&fake, second);
                restored(&fake);
                fake.0.borrow_mut().reboot();
                let report = restored(&fake);
                assert!(report.is_ok(), "{case:?} {death:?} {second:?}: {report}");
                assert_eq!(kernel(&fake), before, "{case:?} {death:?} {second:?}");
                assert_eq!(fake.0.borrow().journal, None);
            }
        }
    }
}

/// L-14, F19
#[test]
fn killed_at_any_step_the_next_start_works_and_ends_clean() {
    for case in cases() {
        let before = kernel(&case.world());
        let fresh = case.world();
        let _run = case.start(&fresh, 8).unwrap();
        let running = kernel(&fresh);
        for death in deaths(steps(case)) {
            let fake = case.world();
            run_until(case, &fake, death);
            let mut run = case.start(&fake, 8).unwrap();
            assert_eq!(kernel(&fake), running, "{case:?} {death:?}");
            assert!(run.down().is_ok());
            fake.0.borrow_mut().reboot();
            assert_eq!(kernel(&fake), before, "{case:?} {death:?}");
            assert_eq!(fake.0.borrow().journal, None);
        }
    }
}

/// F19: the device is not always gone with the run: someone else may hold it open.
#[test]
fn killed_while_the_device_lives_on_it_is_set_up_again_or_given_back_as_it_was() {
    for case in cases() {
        let fresh = case.world();
        let _run = case.start(&fresh, 7).unwrap();
        let running = kernel(&fresh);
        let plain = case.world();
        plain.0.borrow_mut().new_link(7);
        let before = kernel(&plain);
        for death in deaths(steps(case)) {
            for again in [false, true] {
                let fake = case.world();
                set_death(&fake, death);
                if let Ok(mut run) = case.start(&fake, 7) {
                    run.down();
                }
                (fake.0.borrow_mut().dead, fake.0.borrow_mut().death) = (false, None);
                if again {
                    let mut run =
                        Run::start(fake.clone(), fake.clone(), case.want(), !case.no_route).unwrap();
                    assert_eq!(kernel(&fake), running, "{case:?} {death:?}");
                    assert!(run.down().is_ok());
                } else {
                    assert!(restored(&fake).is_ok());
                }
                assert_eq!(kernel(&fake), before, "{case:?} {death:?} {again}");
            }
        }
    }
}

/// Issue 3 item 5: after a kill, and in no moment of the next start, also one that fails or is killed, does anything leave.
#[test]
fn the_kill_switch_has_no_gap() {
    for case in cases().into_iter().filter(|case| case.kill_switch) {
        let killed = || {
            let fake = case.world();
            let run = case.start(&fake, 7).unwrap();
            fake.0.borrow_mut().reboot();
            drop(run);
            fake.0.borrow_mut().guarded = case.families();
            fake
        };
        let whole = killed();
        set_death(&whole, Death { step: usize::MAX, effect: false });
        let mut run = case.start(&whole, 8).unwrap();
        let steps = whole.0.borrow().steps;
        whole.0.borrow_mut().guarded.clear();
        assert!(run.down().is_ok());
        for death in deaths(steps) {
            let fake = killed();
            set_death(&fake, death);
            drop(case.start(&fake, 8));
            fake.0.borrow_mut().reboot();
            for family in case.families() {
                assert!(fake.0.borrow().kernel.guards(family), "{case:?} {death:?}");
            }
            case.start(&fake, 9).unwrap();
        }
        for full in 0..steps {
            let fake = killed();
            (fake.0.borrow_mut().steps, fake.0.borrow_mut().full) = (0, Some(full));
            drop(case.start(&fake, 8));
            fake.0.borrow_mut().full = None;
            case.start(&fake, 9).unwrap();
        }
        for change in plan(&fresh_have(case), &case.want()) {
            let fake = killed();
            fake.0.borrow_mut().refuses = vec![change];
            drop(case.start(&fake, 8));
            fake.0.borrow_mut().refuses.clear();
            case.start(&fake, 9).unwrap();
        }
    }
}

fn fresh_have(case: Case) -> Have {
    let fake = case.world();
    fake.0.borrow_mut().new_link(7);
    fake.clone().snapshot(DEVICE).unwrap().have
}

/// F22: a full disk, at any of the journal's writes: nothing is half-applied.
#[test]
fn a_full_disk_changes_nothing() {
    for case in cases() {
        let plain = case.world();
        plain.0.borrow_mut().new_link(7);
        let before = kernel(&plain);
        for step in 0..steps(case) {
            let fake = case.world();
            fake.0.borrow_mut().full = Some(step);
            if let Err(error) = case.start(&fake, 7) {
                assert_eq!(error.source.raw_os_error(), Some(libc::ENOSPC), "{error}");
                assert!(error.remedy.contains("ZTUN_RUN_DIR"), "{error}");
                assert_eq!(kernel(&fake), before, "{case:?} {step}");
                assert_eq!(fake.0.borrow().journal, None);
            }
        }
    }
}

/// L-12: each undo is refused in turn; all others are made, and the refused one is tried again.
#[test]
fn an_undo_that_fails_skips_no_other_and_stays_in_the_journal() {
    for case in cases() {
        let count = {
            let fake = case.world();
            case.start(&fake, 7).unwrap().changes().len()
        };
        for failing in 0..count {
            let fake = case.world();
            let mut run = case.start(&fake, 7).unwrap();
            let undo = run.changes()[failing].undo();
            fake.0.borrow_mut().refuses = vec![undo.clone()];
            let report = run.down();
            // Bringing the link down takes the routes along: then there is nothing left to refuse.
            let others = report.steps.iter().filter(|step| step.change != undo);
            assert!(others.clone().all(|step| step.result.is_ok()), "{report}");
            assert!(others.count() >= count - 1 && report.failed() == 1, "{report}");
            let journal = fake.0.borrow().journal.clone().unwrap();
            assert!(journal.contains(&undo.to_string()), "{journal}");
            fake.0.borrow_mut().refuses.clear();
            assert!(run.down().is_ok());
            assert!(run.down().steps.is_empty());
            fake.0.borrow_mut().reboot();
            assert_eq!(kernel(&fake), kernel(&case.world()));
        }
    }
}

/// F22: a right that is lost midway.
#[test]
fn a_change_that_is_refused_rolls_the_others_back() {
    for case in cases() {
        let plain = case.world();
        plain.0.borrow_mut().new_link(7);
        for change in plan(&fresh_have(case), &case.want()) {
            let fake = case.world();
            fake.0.borrow_mut().refuses = vec![change.clone()];
            match case.start(&fake, 7) {
                Ok(run) => {
                    assert!(change.is_optional(), "{change}");
                    assert!(!run.changes().contains(&change));
                }
                Err(error) => {
                    assert!(!change.is_optional() && error.what.contains(&change.to_string()), "{error}");
                    assert_eq!(kernel(&fake), kernel(&plain), "{change}");
                }
            }
        }
    }
}

#[test]
fn a_refresh_with_nothing_to_do_does_nothing() {
    for case in cases() {
        let fake = case.world();
        let mut run = case.start(&fake, 7).unwrap();
        let steps = fake.0.borrow().steps;
        for _ in 0..3 {
            assert!(run.refresh(DEVICE).unwrap().is_unchanged());
        }
        assert_eq!(fake.0.borrow().steps, steps);
    }
}

#[test]
fn a_device_that_is_not_there_is_an_error_and_changes_nothing() {
    for case in cases() {
        let fake = case.world();
        let mut run = case.start(&fake, 7).unwrap();
        fake.0.borrow_mut().delete_link();
        let without = kernel(&fake);
        assert_eq!(run.refresh(DEVICE).unwrap_err().source.raw_os_error(), Some(libc::ENODEV));
        assert_eq!(run.refresh("other").unwrap_err().source.raw_os_error(), Some(libc::ENODEV));
        assert_eq!(kernel(&fake), without);
        assert!(run.down().is_ok());
        assert_eq!(kernel(&fake), kernel(&case.world()));
    }
}

/// What happens to a machine while a run lasts.
#[derive(Clone, Debug)]
enum Event {
    /// The device is deleted, and made anew.
    Renewed,
    /// The device is taken down by someone.
    Down,
    /// Someone sets the MTU.
    Mtu(u32),
    /// The machine's addresses, by number.
    Addresses(Vec<u8>),
    /// IPv6 comes or goes.
    Ipv6(Ipv6),
    /// One rule or route of ours is deleted, by its number.
    Lost(prop::sample::Index),
    /// All of the device's addresses are.
    Unaddressed,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Renewed),
        Just(Event::Down),
        (1280..9000_u32).prop_map(Event::Mtu),
        proptest::collection::vec(1..5_u8, 0..4).prop_map(Event::Addresses),
        prop_oneof![Just(Ipv6::Absent), Just(Ipv6::On)].prop_map(Event::Ipv6),
        any::<prop::sample::Index>().prop_map(Event::Lost),
        Just(Event::Unaddressed),
    ]
}

fn happen(fake: &Fake, event: &Event) {
    let mut world = fake.0.borrow_mut();
    match event {
        Event::Renewed => {
            let index = world.kernel.link.as_ref().map_or(7, |link| link.index);
            world.delete_link();
            world.new_link(index + 1);
        }
        Event::Down => {
            world.kernel.link.iter_mut().for_each(|link| link.up = false);
            world.kernel.ours.retain(|change| !matches!(change, Change::RouteAdd(_)));
        }
        Event::Mtu(mtu) => world.kernel.link.iter_mut().for_each(|link| link.mtu = *mtu),
        Event::Addresses(numbers) => {
            let mut own: Vec<std::net::IpAddr> =
                numbers.iter().map(|&number| [192, 168, 1, number].into()).collect();
            own.dedup();
            world.kernel.own_addresses = own;
        }
        Event::Ipv6(ipv6) => {
            world.kernel.ipv6 = *ipv6;
            if *ipv6 == Ipv6::Absent {
                // The kernel flushes what it had of it.
                let v6 = |net: &Cidr| Family::of(net) == Family::V6;
                world.kernel.link.iter_mut().for_each(|link| link.addresses.retain(|net| !v6(net)));
                world.kernel.ours.retain(|change| !change.to_string().contains("::/0 dev"));
            }
            world.kernel.link.iter_mut().for_each(|link| link.ipv6 = *ipv6 == Ipv6::On);
        }
        Event::Lost(index) => {
            if !world.kernel.ours.is_empty() {
                let at = index.index(world.kernel.ours.len());
                world.kernel.ours.remove(at);
            }
        }
        Event::Unaddressed => world.kernel.link.iter_mut().for_each(|link| link.addresses.clear()),
    }
}

fn any_case() -> impl Strategy<Value = Case> {
    proptest::sample::select(cases())
}

proptest! {
    /// Issue 3 items 2 and 6: after a refresh the machine is as if the run had just started on it; killed at any step of the refresh, it is given back.
    #[test]
    fn a_refresh_makes_the_machine_as_a_start_would_have(
        case in any_case(),
        rounds in proptest::collection::vec(proptest::collection::vec(event(), 0..4), 1..4),
        step in 0..60_usize,
        effect in any::<bool>(),
    ) {
        let fake = case.world();
        let mut run = case.start(&fake, 7).unwrap();
        for events in &rounds {
            events.iter().for_each(|event| happen(&fake, event));
            run.refresh(DEVICE).unwrap();
            prop_assert!(run.verify().unwrap().is_empty());
            prop_assert!(run.refresh(DEVICE).unwrap().is_unchanged());
            let fresh = case.world();
            {
                let kernel = fake.0.borrow().kernel.clone();
                let mut world = fresh.0.borrow_mut();
                (world.kernel.ipv6, world.kernel.own_addresses) = (kernel.ipv6, kernel.own_addresses);
            }
            let index = fake.0.borrow().kernel.link.as_ref().unwrap().index;
            let other = Case { ipv6: fake.0.borrow().kernel.ipv6, ..case };
            let _running = other.start(&fresh, index).unwrap();
            prop_assert_eq!(kernel(&fake).ours, kernel(&fresh).ours);
            let (ours, theirs) = (kernel(&fake).link.unwrap(), kernel(&fresh).link.unwrap());
            prop_assert_eq!((ours.up, ours.mtu, ours.addresses), (theirs.up, theirs.mtu, theirs.addresses));
        }
        // Once more, and killed in it.
        rounds[0].iter().for_each(|event| happen(&fake, event));
        set_death(&fake, Death { step, effect });
        let _ = run.refresh(DEVICE);
        let dead = fake.0.borrow().dead;
        if dead {
            fake.0.borrow_mut().reboot();
            prop_assert!(restored(&fake).is_ok());
        } else {
            fake.0.borrow_mut().death = None;
            prop_assert!(run.down().is_ok());
            fake.0.borrow_mut().reboot();
        }
        prop_assert!(kernel(&fake).ours.is_empty() && kernel(&fake).names.is_none());
        prop_assert_eq!(&fake.0.borrow().journal, &None);
    }

    /// F19: the journal lost, torn anywhere, or overwritten: what is on the machine is recognised without it.
    #[test]
    fn restore_needs_no_journal_and_believes_no_spoilt_one(
        case in any_case(),
        step in 0..80_usize,
        cut in any::<prop::sample::Index>(),
        rubbish in proptest::option::of("[ -~\n]{0,80}"),
    ) {
        let fake = case.world();
        run_until(case, &fake, Death { step, effect: true });
        let journal = fake.0.borrow().journal.clone().map(|text| {
            let torn = text[..cut.index(text.len() + 1)].to_owned();
            torn + rubbish.as_deref().unwrap_or("")
        });
        fake.0.borrow_mut().journal = journal;
        let report = restored(&fake);
        prop_assert!(report.is_ok(), "{}", report);
        prop_assert_eq!(kernel(&fake), kernel(&case.world()));
        prop_assert_eq!(&fake.0.borrow().journal, &None);
    }
}
