//! What became of everything that a run held: one line for each, and a sum.

use crate::driver::Clock;
use crate::host::{Outcome, Reversible, Step};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::PathBuf;

/// What became of one resource.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CleanupResult {
    /// It was closed or undone.
    Ok,
    /// There was nothing to do.
    Skipped,
    /// It was closed, but not in the way of peace: connections were reset.
    Forced,
    /// It is still there.
    Error(String),
}

/// One resource.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CleanupItem {
    /// Its kind.
    pub kind: &'static str,
    /// Which one.
    pub id: String,
    /// What became of it.
    pub result: CleanupResult,
    /// How long that took, milliseconds.
    pub ms: u64,
}

impl CleanupItem {
    /// A change to the machine that was undone; `done` is what it counts as when there was something to undo, or nothing to.
    pub(super) fn of(step: &Step, done: impl FnOnce(Outcome) -> CleanupResult) -> CleanupItem {
        let result = match &step.result {
            Ok(outcome) => done(*outcome),
            Err(error) => CleanupResult::Error(error.to_string()),
        };
        CleanupItem { kind: step.change.kind(), id: step.change.to_string(), result, ms: 0 }
    }
}

impl fmt::Display for CleanupItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = match &self.result {
            CleanupResult::Ok => "ok",
            CleanupResult::Skipped => "skipped",
            CleanupResult::Forced => "forced",
            CleanupResult::Error(_) => "error",
        };
        write!(f, "cleanup res={} id=\"{}\" result={result} ms={}", self.kind, self.id, self.ms)?;
        match &self.result {
            CleanupResult::Error(error) => write!(f, " err=\"{error}\""),
            CleanupResult::Ok | CleanupResult::Skipped | CleanupResult::Forced => Ok(()),
        }
    }
}

/// What became of everything, in the order in which it was closed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CleanupReport {
    /// Each resource.
    pub items: Vec<CleanupItem>,
    /// How long all of it took, milliseconds.
    pub total_ms: u64,
    /// Descriptors that are open and were not before the run.
    pub fds_leaked: usize,
    /// Ports of the run that cannot be bound again.
    pub ports_leaked: usize,
}

impl CleanupReport {
    /// Whether nothing is left. Descriptors do not count: other threads of the process open and close theirs.
    pub fn is_ok(&self) -> bool {
        self.ports_leaked == 0 && self.errors() == 0
    }

    fn errors(&self) -> usize {
        self.items.iter().filter(|item| matches!(item.result, CleanupResult::Error(_))).count()
    }

    /// One line that sums up.
    pub fn summary(&self) -> String {
        let count = |wanted: &CleanupResult| self.items.iter().filter(|item| item.result == *wanted).count();
        format!(
            "cleanup done ok={} skipped={} err={} forced={} total_ms={} fds_leaked={} ports_leaked={}",
            count(&CleanupResult::Ok),
            count(&CleanupResult::Skipped),
            self.errors(),
            count(&CleanupResult::Forced),
            self.total_ms,
            self.fds_leaked,
            self.ports_leaked
        )
    }
}

impl fmt::Display for CleanupReport {
    /// What is left, and the sum.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for item in self.items.iter().filter(|item| matches!(item.result, CleanupResult::Error(_))) {
            writeln!(f, "{item}")?;
        }
        f.write_str(&self.summary())
    }
}

/// A clean-up under way: a step that fails never skips the next, since each only says what became of it.
#[derive(Debug)]
pub(super) struct Cleanup {
    clock: Clock,
    begun: crate::time::Instant,
    report: CleanupReport,
}

impl Cleanup {
    pub(super) fn begin(clock: Clock) -> Cleanup {
        Cleanup { clock, begun: clock.now(), report: CleanupReport::default() }
    }

    /// Closes one resource.
    pub(super) fn step(&mut self, kind: &'static str, id: &str, close: impl FnOnce() -> CleanupResult) {
        let begun = self.clock.now();
        let result = close();
        let ms = self.clock.now().since(begun).as_millis().try_into().unwrap_or(u64::MAX);
        self.add(CleanupItem { kind, id: id.into(), result, ms });
    }

    /// Takes in what became of one that was closed elsewhere.
    pub(super) fn add(&mut self, item: CleanupItem) {
        match item.result {
            CleanupResult::Error(_) => log::error!("{item}"),
            CleanupResult::Ok | CleanupResult::Skipped | CleanupResult::Forced => log::debug!("{item}"),
        }
        self.report.items.push(item);
    }

    pub(super) fn finish(mut self, fds_leaked: usize, ports_leaked: usize) -> CleanupReport {
        (self.report.fds_leaked, self.report.ports_leaked) = (fds_leaked, ports_leaked);
        self.report.total_ms = self.clock.now().since(self.begun).as_millis().try_into().unwrap_or(u64::MAX);
        self.report
    }
}

/// The descriptors of this process at one moment: number, and what it leads to.
#[derive(Debug)]
pub(super) struct Descriptors(BTreeSet<(OsString, PathBuf)>);

impl Descriptors {
    /// Those that are open.
    pub(super) fn open() -> Descriptors {
        let Ok(entries) = fs::read_dir("/proc/self/fd") else { return Descriptors(BTreeSet::new()) };
        // That of the directory itself leads nowhere any more when it is asked for after the walk.
        let names: Vec<OsString> = entries.flatten().map(|entry| entry.file_name()).collect();
        let target = |name: OsString| {
            let link = fs::read_link(PathBuf::from("/proc/self/fd").join(&name)).ok()?;
            Some((name, link))
        };
        Descriptors(names.into_iter().filter_map(target).collect())
    }

    /// How many are open that were not at that moment.
    pub(super) fn leaked(&self) -> usize {
        let now = Descriptors::open();
        now.0
            .difference(&self.0)
            .inspect(|(number, target)| log::debug!("descriptor {number:?} to {} is new", target.display()))
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L-12, L-13
    #[test]
    fn a_step_that_fails_skips_none_and_the_sum_says_so() {
        let mut cleanup = Cleanup::begin(Clock::new());
        cleanup.step("udp", "3", || CleanupResult::Ok);
        cleanup.step("route", "a", || CleanupResult::Error("busy".into()));
        cleanup.step("device", "ztun0", || CleanupResult::Forced);
        let report = cleanup.finish(0, 0);
        assert!(!report.is_ok());
        let kinds: Vec<&str> = report.items.iter().map(|item| item.kind).collect();
        assert_eq!(kinds, ["udp", "route", "device"]);
        let summary = report.summary();
        assert!(summary.starts_with("cleanup done ok=1 skipped=0 err=1 forced=1 total_ms="), "{summary}");
        assert!(summary.ends_with(" fds_leaked=0 ports_leaked=0"), "{summary}");
        let text = report.to_string();
        assert!(text.starts_with("cleanup res=route id=\"a\" result=error ms="), "{text}");
        assert!(text.contains(" err=\"busy\"\ncleanup done"), "{text}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_descriptor_that_stays_open_is_counted() {
        // Other tests of this process open and close theirs meanwhile: only that it counts at all can be told.
        let before = Descriptors(BTreeSet::new());
        let _open = fs::File::open("/dev/null").unwrap();
        assert!(before.leaked() > 0);
        assert!(Descriptors::open().0.iter().any(|(_, target)| target.ends_with("null")));
    }

    #[test]
    fn what_leaks_is_not_ok() {
        assert!(CleanupReport::default().is_ok());
        assert!(!CleanupReport { ports_leaked: 1, ..CleanupReport::default() }.is_ok());
    }
}
