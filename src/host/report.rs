//! What undoing came to: for the log, for programs, and for people.

use super::change::Change;
use super::run::Outcome;
use core::fmt;
use std::io;

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
    /// What kept the tables or the journal from being read or the journal from being deleted, and what is still there after its undo.
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

    /// Whether `undo` was tried and failed.
    pub(super) fn has_failed(&self, undo: &Change) -> bool {
        self.steps.iter().any(|step| step.change == *undo && step.result.is_err())
    }

    pub(super) fn log(&self) {
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
