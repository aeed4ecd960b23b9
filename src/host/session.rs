//! Making a plan's changes, and undoing them, whoever died in between.

use super::HostError;
use super::change::Change;
use super::dns::{self, Check, Places, Upkeep};
use super::journal::{Journal, Lock, LockError, RunDir};
use super::linux::{self, Outcome};
use super::netlink::Netlink;
use super::owner::LocalProxy;
use super::plan::{Want, plan};
use crate::config::HostPlanConfig;
use core::fmt;
use std::io;
use std::net::IpAddr;

/// One undo and what came of it.
#[derive(Debug)]
pub struct Step {
    /// The undo.
    pub change: Change,
    /// What came of it.
    pub result: io::Result<Outcome>,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cleanup res={} id=\"{}\" result=", self.change.kind(), self.change)?;
        match &self.result {
            Ok(Outcome::Done) => f.write_str("ok"),
            Ok(Outcome::Already) => f.write_str("skipped"),
            Err(error) => write!(f, "error err=\"{error}\""),
        }
    }
}

/// What was undone.
#[derive(Debug, Default)]
pub struct Report {
    /// Each undo, in the order in which it was tried.
    pub steps: Vec<Step>,
    /// Lines of the journal that described no change; the kernel's tables were searched instead, as always.
    pub unreadable: usize,
    /// What kept the tables or the journal from being read or the journal from being deleted.
    pub problems: Vec<String>,
}

impl Report {
    /// Whether nothing is left behind.
    pub fn is_ok(&self) -> bool {
        self.problems.is_empty() && self.steps.iter().all(|step| step.result.is_ok())
    }

    /// Undos that had something to undo.
    pub fn undone(&self) -> usize {
        self.steps.iter().filter(|step| matches!(step.result, Ok(Outcome::Done))).count()
    }

    /// Undos that failed.
    pub fn failed(&self) -> usize {
        self.steps.iter().filter(|step| step.result.is_err()).count()
    }

    /// What it came to, in one line.
    pub fn summary(&self) -> String {
        let skipped = self.steps.len() - self.undone() - self.failed();
        let (undone, failed) = (self.undone(), self.failed() + self.problems.len());
        format!("cleanup done ok={undone} skipped={skipped} err={failed}")
    }

    fn log(&self) {
        for step in &self.steps {
            if step.result.is_ok() {
                log::debug!("{step}");
            } else {
                log::error!("{step}");
            }
        }
        for problem in &self.problems {
            log::error!("cleanup: {problem}");
        }
    }
}

impl fmt::Display for Report {
    /// One line for each undo that did something or failed, and a last one that sums up.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in self.steps.iter().filter(|step| !matches!(step.result, Ok(Outcome::Already))) {
            writeln!(f, "{step}")?;
        }
        for problem in &self.problems {
            writeln!(f, "{problem}")?;
        }
        if self.steps.is_empty() && self.is_ok() {
            return f.write_str("nothing was left behind");
        }
        f.write_str(&self.summary())
    }
}

/// The changes of a run. Dropped without [`Applied::down`], they are undone all the same.
#[derive(Debug)]
pub struct Applied {
    netlink: Netlink,
    journal: Journal,
    /// What was changed, in its order.
    changes: Vec<Change>,
    /// Keeps the machine's name servers.
    dns: Option<Upkeep>,
    /// Whether anything is, or may be, left to undo.
    dirty: bool,
    /// Whether the table and the rules are this run's to search.
    routed: bool,
    /// Released after everything else, in this order.
    _locks: (Option<Lock>, Lock),
}

impl Applied {
    /// What was changed and has not been undone.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Makes again what went with a device that was deleted and made anew.
    pub fn refresh(&mut self, device: &str) -> Result<(), HostError> {
        let _ = device;
        for change in &self.changes.clone() {
            let _ = linux::apply(&mut self.netlink, change);
        }
        Ok(())
    }

    /// Looks whether the machine still uses the name servers that it was given, and sees to it that it does. To be called when
    /// [`Applied::dns_watch`]'s descriptor becomes readable, when the network has changed, and every 30 s.
    pub fn dns_check(&mut self) -> Check {
        self.dns.as_mut().map_or(Check::Kept, Upkeep::check)
    }

    /// Sees that another program may have changed the machine's name servers; `None` when they were not changed, or cannot be watched.
    pub fn dns_watch(&self) -> Option<dns::Watch> {
        let watch = self.dns.as_ref()?.watch();
        watch.inspect_err(|error| log::debug!("the name servers are not watched: {error}")).ok()
    }

    /// Undoes everything, the latest first, then searches the kernel's tables for anything of ours. What fails is logged, is in the report, and
    /// stays in the journal for [`restore`]. Calling it again tries again what has failed, and does nothing if nothing has.
    pub fn down(&mut self) -> Report {
        if !self.dirty {
            return Report::default();
        }
        self.dns = None;
        let undos = self.changes.iter().rev().map(Change::undo).collect();
        let report = undo_all(&mut self.netlink, &mut self.journal, undos, self.routed);
        if report.is_ok() {
            self.changes.clear();
            self.dirty = false;
        }
        report
    }
}

impl Drop for Applied {
    fn drop(&mut self) {
        self.down();
    }
}

/// Makes the machine send what `config` says into `device`, which exists and has been opened by this process. `proxies` stay outside, and so
/// does the user of `local_proxy` when that user runs nothing else.
///
/// What a run that died left behind is undone first. On an error everything that was changed has been undone.
pub fn up(
    config: &HostPlanConfig,
    device: &str,
    proxies: &[IpAddr],
    local_proxy: Option<&LocalProxy>,
) -> Result<Applied, HostError> {
    up_in(&RunDir::standard(), config, device, proxies, local_proxy)
}

/// [`up`] with its files in `dir`.
pub fn up_in(
    dir: &RunDir,
    config: &HostPlanConfig,
    device: &str,
    proxies: &[IpAddr],
    local_proxy: Option<&LocalProxy>,
) -> Result<Applied, HostError> {
    let (routes, lock) = locks(dir, device, !config.no_route)?;
    let mut netlink = open_netlink()?;
    let mut journal = Journal::new(dir, device);
    let routed = routes.is_some();
    let healed = heal(&mut netlink, &mut journal, device, routed)?;
    if !healed.is_ok() {
        return Err(HostError {
            what: "cannot undo what an earlier run left behind".into(),
            source: io::Error::other(healed.to_string()),
            remedy: "look at the lines above, then run `sudo ztun restore`".into(),
        });
    }
    if !healed.steps.is_empty() {
        log::info!("an earlier run ended without cleaning up: {} changes undone", healed.undone());
    }
    let local_uid = local_proxy.and_then(LocalProxy::exclusive_uid);
    let want = Want::new(config, device, proxies, local_uid);
    let mut have = linux::snapshot(&mut netlink, device)
        .map_err(|source| failed("cannot read the machine's network configuration", source))?;
    have.dns = (!want.dns.is_empty()).then(|| dns::observe(&Places::standard()));
    let index = linux::index_of(device).map_err(|source| HostError {
        what: format!("cannot find the device {device}"),
        source,
        remedy: "a device from another network namespace is set up there: use --no-route here".into(),
    })?;
    journal.begin(index).map_err(|source| HostError {
        what: "cannot write the journal".into(),
        source,
        remedy: "nothing is changed that could not be undone: make room in /run/ztun, or set ZTUN_RUN_DIR"
            .into(),
    })?;
    // From here on the drop of `applied` undoes what was made.
    let mut applied = Applied {
        netlink,
        journal,
        changes: Vec::new(),
        dns: None,
        dirty: true,
        routed,
        _locks: (routes, lock),
    };
    for change in plan(&have, &want) {
        log::debug!("change: {change}");
        applied
            .journal
            .record(&change.undo())
            .map_err(|source| failed("cannot write the journal", source))?;
        // One that is refused is not undone: what stands in its way is someone else's.
        linux::apply(&mut applied.netlink, &change).map_err(|error| refused(&change, error))?;
        if let Change::DnsSet(dns) = &change {
            applied.dns = Upkeep::new(Places::standard(), dns.clone());
        }
        applied.changes.push(change);
    }
    Ok(applied)
}

/// Undoes what a run on `device` that died left behind; also without its journal, or with a spoilt one. A run that lives is an error.
pub fn restore(device: &str) -> Result<Report, HostError> {
    restore_in(&RunDir::standard(), device)
}

/// [`restore`] with its files in `dir`.
pub fn restore_in(dir: &RunDir, device: &str) -> Result<Report, HostError> {
    let _locks = locks(dir, device, true)?;
    let mut netlink = open_netlink()?;
    heal(&mut netlink, &mut Journal::new(dir, device), device, true)
}

/// What a run of this process on `device` has changed is undone without its help, and without its lock: that run hangs.
pub fn restore_own(device: &str, no_route: bool) -> Result<Report, HostError> {
    let mut journal = Journal::new(&RunDir::standard(), device);
    heal(&mut open_netlink()?, &mut journal, device, !no_route)
}

/// What the kernel's tables show of ours: the undo of each, most of all after a clean-up, when there must be none.
pub fn left_behind() -> io::Result<Vec<Change>> {
    linux::leftovers(&mut Netlink::route()?)
}

/// What [`up`] would change, each change with its undo; nothing is changed, and no privilege is needed.
pub fn dry_run(
    config: &HostPlanConfig,
    device: &str,
    proxies: &[IpAddr],
    local_proxy: Option<&LocalProxy>,
) -> Result<String, HostError> {
    let mut have = linux::snapshot(&mut open_netlink()?, device)
        .map_err(|source| failed("cannot read the machine's network configuration", source))?;
    let want = Want::new(config, device, proxies, local_proxy.and_then(LocalProxy::exclusive_uid));
    have.dns = (!want.dns.is_empty()).then(|| dns::observe(&Places::standard()));
    let mut text = String::new();
    for change in plan(&have, &want) {
        text.push_str(&format!("{change}\n    undo: {}\n", change.undo()));
    }
    Ok(text)
}

fn locks(dir: &RunDir, device: &str, routes: bool) -> Result<(Option<Lock>, Lock), HostError> {
    let lock = Lock::device(dir, device).map_err(|error| {
        locked(error, &format!("the device {device}"), "stop it, or choose another --tun")
    })?;
    let routes = routes.then(|| Lock::routes(dir)).transpose().map_err(|error| {
        locked(error, "this machine's routes", "stop it, or leave the routes alone with --no-route")
    })?;
    Ok((routes, lock))
}

fn locked(error: LockError, what: &str, remedy: &str) -> HostError {
    match error {
        LockError::Held { pid } => {
            let pid = pid.map_or("unknown".into(), |pid| pid.to_string());
            HostError {
                what: format!("another ztun, process {pid}, has {what}"),
                source: io::Error::from_raw_os_error(libc::EBUSY),
                remedy: remedy.into(),
            }
        }
        LockError::Io(source) => HostError {
            what: "cannot take the lock in /run/ztun".into(),
            source,
            remedy: "run as root, or set ZTUN_RUN_DIR to a directory of your own".into(),
        },
    }
}

fn open_netlink() -> Result<Netlink, HostError> {
    Netlink::route().map_err(|source| failed("cannot talk to the kernel over netlink", source))
}

fn failed(what: &str, source: io::Error) -> HostError {
    let remedy = match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "run as root or with CAP_NET_ADMIN",
        Some(libc::ENOSPC | libc::EDQUOT | libc::EROFS) => "make room in /run/ztun, or set ZTUN_RUN_DIR",
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit on open files (`ulimit -n`)",
        _ => "run with --log-level debug for the step before it",
    };
    HostError { what: what.into(), source, remedy: remedy.into() }
}

fn refused(change: &Change, source: io::Error) -> HostError {
    let what = format!("the kernel refuses `{change}`");
    let remedy = match (change, source.raw_os_error()) {
        (Change::AddressAdd(_), Some(libc::EEXIST)) => {
            "the address is in use on this machine: choose another with --address"
        }
        (Change::RouteAdd(_), Some(libc::EEXIST)) => {
            "another program uses routing table 31348: see `ip route show table 31348`"
        }
        (Change::RuleAdd(_), Some(libc::EEXIST)) => "another program has the same rule: see `ip rule`",
        (Change::RuleAdd(_), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {
            "the kernel lacks policy routing (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES)"
        }
        (_, Some(libc::ENODEV)) => "the device has gone: another program may have deleted it",
        (Change::MtuSet { .. }, Some(libc::EINVAL)) => "choose an --mtu from 1280 to 65535",
        _ => return failed(&what, source),
    };
    HostError { what, source, remedy: remedy.into() }
}

/// Undoes what the journal says, then what the tables show.
fn heal(
    netlink: &mut Netlink,
    journal: &mut Journal,
    device: &str,
    routed: bool,
) -> Result<Report, HostError> {
    let (pending, problem) = match journal.pending() {
        Ok(pending) => (pending.unwrap_or_default(), None),
        Err(error) => (Default::default(), Some(format!("cannot read the journal: {error}"))),
    };
    if pending.unreadable > 0 {
        log::warn!("{} lines of the journal cannot be read", pending.unreadable);
    }
    // A device that was made again under the same name has none of the old one's addresses and settings, and may be someone else's.
    let same = pending.index.is_some() && pending.index == linux::index_of(device).ok();
    let undos = pending.undos.into_iter().filter(|undo| undo.device().is_none() || same).collect();
    let mut report = undo_all(netlink, journal, undos, routed);
    report.unreadable = pending.unreadable;
    report.problems.extend(problem);
    Ok(report)
}

/// Applies all undos, whatever each of them comes to; with `routed` also those that the kernel's tables show to be missing. The journal is deleted
/// when all are done.
fn undo_all(netlink: &mut Netlink, journal: &mut Journal, undos: Vec<Change>, routed: bool) -> Report {
    let mut report = Report::default();
    for change in undos {
        let result = linux::apply(netlink, &change);
        report.steps.push(Step { change, result });
    }
    if routed {
        match linux::leftovers(netlink) {
            Ok(found) => {
                for change in found {
                    if report.steps.iter().any(|step| step.change == change && step.result.is_err()) {
                        continue;
                    }
                    let result = linux::apply(netlink, &change);
                    report.steps.push(Step { change, result });
                }
            }
            Err(error) => report.problems.push(format!("cannot read the kernel's tables: {error}")),
        }
    }
    if report.is_ok()
        && let Err(error) = journal.clear()
    {
        report.problems.push(format!("cannot delete the journal: {error}"));
    }
    report.log();
    report
}
