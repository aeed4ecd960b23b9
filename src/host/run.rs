//! Making a plan's changes, keeping them, and undoing them, whoever died in between: on any [`Host`], with any [`Journal`].
//!
//! # Theory of operation
//!
//! **Start.** What a run that died left is undone, then the plan's changes are made one by one, each undo durable in the journal before its change
//! is made. Then the machine is asked whether they are all there. On an error what was made is undone.
//!
//! **Kill switch.** What a run that died left keeps packets from leaving, and must do so until the next run captures them. So rules and
//! routes that belong to no device are made first, or kept as they are where they are the same; then the rest of what is left is undone. A start that
//! fails leaves them.
//!
//! **Refresh.** The plan is made again for the machine as it would be without this run's changes. What is planned and not there is made, what is there and
//! not planned is undone, additions first. The journal is written anew then: in the plan's order, and for the device's index if that is another.
//!
//! **End.** Undos in reverse, whatever each of them comes to, then what the machine shows to be left, then a look whether anything still is.
//!
//! At any instant the journal, or what the machine itself shows, has the undo of everything that is made. All undos are idempotent, so one too many does
//! no harm.

use super::HostError;
use super::report::{Outcome, Refreshed, Report, Step};
use super::reversible::{Found, Reversible};
use super::want::Want;
use std::io;

mod applied;
#[cfg_attr(windows, path = "run/files_windows.rs")]
mod files;
pub(super) mod journal;
pub(super) mod lock;
mod remedy;
#[cfg_attr(windows, path = "run/socket_windows.rs")]
mod socket;
pub use applied::{
    Applied, dry_run, holder, left_behind, name_servers, restore, restore_in, restore_own, up, up_in,
};
pub use lock::{Holder, RunDir};

/// The machine and one device, at one time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Snapshot<T> {
    /// The device's interface index; `None` when there is none of that name.
    pub(super) index: Option<u32>,
    /// What a plan starts from.
    pub(super) have: T,
}

/// A machine.
pub(super) trait Host {
    /// What is changed on it.
    type Change: Reversible;

    /// What a plan starts from.
    type Have: Found<Self::Change>;

    /// What there is of DNS before a run has changed it.
    type Names: Clone;

    /// What there is.
    fn snapshot(&mut self, device: &str) -> io::Result<Snapshot<Self::Have>>;

    /// What there is of DNS, before this run has changed it.
    fn names(&mut self) -> Self::Names;

    /// The changes that lead from `have` to `want`, in their order; the machine's DNS is left alone without `names`.
    fn plan(have: Self::Have, names: Option<Self::Names>, want: &Want) -> Vec<Self::Change>;

    /// Makes one change. Deleting what is not there is no error, and neither is adding what is there and ours.
    fn apply(&mut self, change: &Self::Change) -> io::Result<Outcome>;

    /// The undos of everything on the machine that is recognisably ours, whoever left it, in the order in which they are applied.
    fn leftovers(&mut self) -> io::Result<Vec<Self::Change>>;
}

/// What a journal says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Pending<C> {
    /// Interface index of the device that the run had; `None` when the first line cannot be read.
    pub(super) index: Option<u32>,
    /// Undos, the latest change's first: the order in which they are applied.
    pub(super) undos: Vec<C>,
    /// Complete lines that describe no change.
    pub(super) unreadable: usize,
}

impl<C> Default for Pending<C> {
    fn default() -> Pending<C> {
        Pending { index: None, undos: Vec::new(), unreadable: 0 }
    }
}

/// Where undos outlive the process.
pub(super) trait Journal<C> {
    /// What a run that died has left to undo; nothing when there is no journal.
    fn pending(&mut self) -> io::Result<Pending<C>>;

    /// Makes the journal say that these undos, the earliest change's first, belong to a run on the device with this interface index: all of it or,
    /// on an error, nothing.
    fn begin(&mut self, index: u32, undos: &[C]) -> io::Result<()>;

    /// Makes `undo` durable; the change itself is made after that. On an error the journal is as before.
    fn record(&mut self, undo: &C) -> io::Result<()>;

    /// Deletes the journal: nothing is left to undo.
    fn clear(&mut self) -> io::Result<()>;
}

/// The changes of a run.
#[derive(Debug)]
pub(super) struct Run<H: Host, J> {
    host: H,
    journal: J,
    want: Want,
    /// Interface index of the device that the changes were made to.
    index: u32,
    /// What was changed and is not undone, in its order.
    changes: Vec<H::Change>,
    /// Undos that a run that died has left, as long as they are not applied.
    owed: Vec<H::Change>,
    /// What the machine refuses and the run can go without.
    refused: Vec<H::Change>,
    /// The machine's DNS before it was changed, when it is to be.
    names: Option<H::Names>,
    /// Whether anything is, or may be, left to undo.
    dirty: bool,
    /// Whether the machine's rules and tables are this run's to search.
    routed: bool,
}

impl<C: Reversible> Report<C> {
    /// Whether `undo` was tried and failed.
    fn has_failed(&self, undo: &C) -> bool {
        self.steps.iter().any(|step| step.change == *undo && step.result.is_err())
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

impl<H: Host, J: Journal<H::Change>> Run<H, J> {
    /// Makes the machine be as `want` says. With `routed` what the machine shows to be ours is this run's.
    pub(super) fn start(
        mut host: H,
        mut journal: J,
        want: Want,
        routed: bool,
    ) -> Result<Run<H, J>, HostError> {
        let snapshot = look(&mut host, &want.device)?;
        let index = snapshot.index.ok_or_else(|| remedy::no_device(&want.device))?;
        let pending =
            journal.pending().map_err(|source| remedy::failed("cannot read the journal", source))?;
        if pending.unreadable > 0 {
            log::warn!("{} lines of the journal cannot be read", pending.unreadable);
        }
        let mut inherited = undos_for(pending, Some(index));
        if routed {
            let left = host
                .leftovers()
                .map_err(|source| remedy::failed("cannot read the kernel's tables", source))?;
            let new: Vec<H::Change> = left.into_iter().filter(|undo| !inherited.contains(undo)).collect();
            inherited.extend(new);
        }
        let heir = !inherited.is_empty();
        let mut run = Run {
            host,
            journal,
            want,
            index,
            changes: Vec::new(),
            owed: inherited,
            refused: Vec::new(),
            names: None,
            dirty: true,
            routed,
        };
        match run.set_up(snapshot.have) {
            Ok(()) => Ok(run),
            Err(error) => Err(run.roll_back(heir, error)),
        }
    }

    fn set_up(&mut self, mut have: H::Have) -> Result<(), HostError> {
        if !self.owed.is_empty() {
            self.inherit(&have)?;
            have = look(&mut self.host, &self.want.device)?.have;
        }
        self.write_journal()?;
        if !self.want.dns.is_empty() {
            self.names = Some(self.host.names());
        }
        for change in H::plan(have, self.names.clone(), &self.want) {
            if !self.changes.contains(&change) {
                self.make(change)?;
            }
        }
        self.settle()
    }

    /// Takes over what a run that died left: see the module's theory of operation.
    fn inherit(&mut self, have: &H::Have) -> Result<(), HostError> {
        let undos: Vec<H::Change> = self.owed.iter().rev().cloned().collect();
        self.journal.begin(self.index, &undos).map_err(remedy::journal)?;
        if self.want.kill_switch {
            let plan = H::plan(have.clone(), None, &self.want);
            for change in plan.into_iter().filter(Reversible::outlives_device) {
                self.make(change)?;
            }
        }
        let kept: Vec<H::Change> = self.changes.iter().map(Reversible::undo).collect();
        self.owed.retain(|undo| !kept.contains(undo));
        let mut report = Report::default();
        for change in self.owed.clone() {
            let result = self.host.apply(&change);
            report.steps.push(Step { change, result });
        }
        self.owed.retain(|undo| report.has_failed(undo));
        report.log();
        if report.is_ok() {
            log::info!("an earlier run ended without cleaning up: {} changes undone", report.undone());
            return Ok(());
        }
        Err(HostError {
            what: "cannot undo what an earlier run left behind".into(),
            source: io::Error::other(report.to_string()),
            remedy: "look at the lines above, then run `sudo ztun restore`".into(),
        })
    }

    /// Makes one change, its undo first in the journal.
    fn make(&mut self, change: H::Change) -> Result<(), HostError> {
        log::debug!("change: {change}");
        self.journal.record(&change.undo()).map_err(remedy::journal)?;
        match self.host.apply(&change) {
            Ok(_) => self.changes.push(change),
            Err(error) if change.is_optional() => {
                log::warn!("going on without `{change}`: {error}");
                self.refused.push(change);
            }
            // It is not undone: what stands in its way is someone else's.
            Err(error) => return Err(remedy::refused(&change, error)),
        }
        Ok(())
    }

    /// L-2: asks whether what was made is there, and makes what is not once more.
    fn settle(&mut self) -> Result<(), HostError> {
        for change in self.missing()? {
            log::warn!("`{change}` was made and is not there: once more");
            self.host.apply(&change).map_err(|error| remedy::refused(&change, error))?;
        }
        let missing = self.missing()?;
        if missing.is_empty() { Ok(()) } else { Err(remedy::not_kept(&missing)) }
    }

    fn missing(&mut self) -> Result<Vec<H::Change>, HostError> {
        self.verify().map_err(|source| remedy::failed("cannot verify what was changed", source))
    }

    /// The changes of this run that the machine does not show.
    pub(super) fn verify(&mut self) -> io::Result<Vec<H::Change>> {
        let snapshot = self.host.snapshot(&self.want.device)?;
        let left = self.shown()?;
        let missing = self.changes.iter().filter(|change| !snapshot.have.shows(change, &left));
        Ok(missing.cloned().collect())
    }

    fn shown(&mut self) -> io::Result<Vec<H::Change>> {
        if self.routed { self.host.leftovers() } else { Ok(Vec::new()) }
    }

    /// Ends a start that failed. What keeps packets from leaving since an earlier run died stays with the kill switch.
    fn roll_back(&mut self, heir: bool, mut error: HostError) -> HostError {
        let blocked = heir && self.want.kill_switch;
        let report = if blocked {
            self.changes.retain(|change| !change.outlives_device());
            let mut report = Report::default();
            for change in self.changes.iter().rev().map(Reversible::undo) {
                let result = self.host.apply(&change);
                report.steps.push(Step { change, result });
            }
            report.log();
            report
        } else {
            self.down()
        };
        self.dirty = false;
        if !report.is_ok() {
            error.remedy.push_str("; what was changed could not all be undone: run `sudo ztun restore` then");
        } else if blocked {
            error
                .remedy
                .push_str("; the kill switch of an earlier run stays: `sudo ztun restore` takes it away");
        }
        error
    }

    /// Makes the difference between what is and what is wanted by now.
    pub(super) fn refresh(&mut self, device: &str) -> Result<Refreshed<H::Change>, HostError> {
        if device != self.want.device {
            return Err(remedy::no_device(&self.want.device));
        }
        let snapshot = look(&mut self.host, device)?;
        let index = snapshot.index.ok_or_else(|| remedy::no_device(device))?;
        let shown =
            self.shown().map_err(|source| remedy::failed("cannot read the kernel's tables", source))?;
        let mut refreshed = Refreshed { renewed: index != self.index, ..Refreshed::default() };
        if refreshed.renewed {
            // The old device has taken them along.
            self.changes.retain(|change| change.device().is_none());
            self.index = index;
            self.write_journal()?;
        }
        let desired = self.desired(snapshot.have.clone().without(&self.changes));
        for change in &desired {
            if !self.changes.contains(change) {
                self.make(change.clone())?;
            } else if snapshot.have.shows(change, &shown) {
                continue;
            } else {
                // Its undo is in the journal.
                log::debug!("change, once more: {change}");
                self.host.apply(change).map_err(|error| remedy::refused(change, error))?;
            }
            refreshed.made.push(change.clone());
        }
        self.changes.retain(|change| {
            desired.contains(change) || !desired.iter().any(|other| change.is_replaced_by(other))
        });
        for change in self.changes.iter().rev().filter(|change| !desired.contains(change)) {
            let undo = change.undo();
            let result = self.host.apply(&undo);
            refreshed.undone.push(Step { change: undo, result });
        }
        if !refreshed.is_unchanged() {
            let stays = |change: &H::Change| {
                refreshed.undone.iter().all(|step| step.change != change.undo() || step.result.is_err())
            };
            self.changes.retain(stays);
            // In the plan's order; what could not be undone comes first, and so is tried last.
            self.changes.sort_by_key(|change| desired.iter().position(|other| other == change));
            self.write_journal()?;
        }
        Ok(refreshed)
    }

    /// What the plan wants by now; `have` is the machine as it would be without this run's changes.
    fn desired(&self, have: H::Have) -> Vec<H::Change> {
        let made = self.changes.iter().find(|change| change.is_made_once());
        let mut desired = H::plan(have, self.names.clone(), &self.want);
        for change in &mut desired {
            if change.is_made_once()
                && let Some(made) = made
            {
                change.clone_from(made);
            }
        }
        desired.retain(|change| !self.refused.contains(change));
        desired
    }

    /// Makes the journal say what there is to undo, and nothing else.
    fn write_journal(&mut self) -> Result<(), HostError> {
        let undos: Vec<H::Change> = self.changes.iter().map(Reversible::undo).collect();
        self.journal.begin(self.index, &undos).map_err(remedy::journal)
    }

    /// Undoes everything. What fails stays in the journal. Calling it again tries again what has failed, and does nothing if nothing has.
    pub(super) fn down(&mut self) -> Report<H::Change> {
        if !self.dirty {
            return Report::default();
        }
        if let Ok(snapshot) = self.host.snapshot(&self.want.device)
            && snapshot.index != Some(self.index)
        {
            // The device is gone and has taken them along; one of the same name may be someone else's.
            self.changes.retain(|change| change.device().is_none());
        }
        let undos =
            self.changes.iter().rev().map(Reversible::undo).chain(self.owed.iter().cloned()).collect();
        let report = undo_all(&mut self.host, &mut self.journal, undos, self.routed);
        if report.is_ok() {
            self.changes.clear();
            self.owed.clear();
            self.dirty = false;
        }
        report
    }

    /// Whether anything is, or may be, left to undo.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// What was changed and has not been undone.
    pub(super) fn changes(&self) -> &[H::Change] {
        &self.changes
    }

    /// What is wanted, for the next refresh.
    pub(super) fn want_mut(&mut self) -> &mut Want {
        &mut self.want
    }
}

/// Undoes what a run on `device` left behind: what the journal says, then, with `search`, what the machine shows.
pub(super) fn restore_from<H: Host>(
    host: &mut H,
    journal: &mut impl Journal<H::Change>,
    device: &str,
    search: bool,
) -> Report<H::Change> {
    let (pending, problem) = match journal.pending() {
        Ok(pending) => (pending, None),
        Err(error) => (Pending::default(), Some(format!("cannot read the journal: {error}"))),
    };
    let unreadable = pending.unreadable;
    if unreadable > 0 {
        log::warn!("{unreadable} lines of the journal cannot be read");
    }
    let index = host.snapshot(device).ok().and_then(|snapshot| snapshot.index);
    let mut report = undo_all(host, journal, undos_for(pending, index), search);
    report.unreadable = unreadable;
    report.problems.extend(problem);
    report
}

/// The undos that are for this machine as it is: a device that was made again under the same name has none of the old one's addresses and settings,
/// and may be someone else's.
fn undos_for<C: Reversible>(pending: Pending<C>, index: Option<u32>) -> Vec<C> {
    let same = index.is_some() && pending.index == index;
    let mut undos: Vec<C> = Vec::new();
    for undo in pending.undos.into_iter().filter(|undo| same || undo.device().is_none()) {
        if !undos.contains(&undo) {
            undos.push(undo);
        }
    }
    undos
}

/// Applies all undos, whatever each of them comes to; with `search` also those that the machine shows to be missing. The journal is deleted when all
/// are done.
fn undo_all<H: Host>(
    host: &mut H,
    journal: &mut impl Journal<H::Change>,
    undos: Vec<H::Change>,
    search: bool,
) -> Report<H::Change> {
    let mut report = Report::default();
    for change in undos {
        let result = host.apply(&change);
        report.steps.push(Step { change, result });
    }
    if search {
        match host.leftovers() {
            Ok(found) => {
                for change in found {
                    if !report.has_failed(&change) {
                        let result = host.apply(&change);
                        report.steps.push(Step { change, result });
                    }
                }
            }
            Err(error) => report.problems.push(format!("cannot read the kernel's tables: {error}")),
        }
        // T-6: verified, not assumed.
        if !report.steps.is_empty()
            && let Ok(found) = host.leftovers()
        {
            let still = found.iter().filter(|undo| !report.has_failed(undo));
            let still: Vec<String> =
                still.map(|undo| format!("still to do after it was done: {undo}")).collect();
            report.problems.extend(still);
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

fn look<H: Host>(host: &mut H, device: &str) -> Result<Snapshot<H::Have>, HostError> {
    host.snapshot(device)
        .map_err(|source| remedy::failed("cannot read the machine's network configuration", source))
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests;
