//! What changing and undoing came to: for the log, for programs, and for people.

use super::reversible::Reversible;
use core::fmt;
use std::io;

/// What a change came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was made.
    Done,
    /// There was nothing to do.
    Already,
}

/// One undo and what came of it.
#[derive(Debug)]
pub struct Step<C> {
    /// The undo.
    pub change: C,
    /// What came of it.
    pub result: io::Result<Outcome>,
}

impl<C: Reversible> fmt::Display for Step<C> {
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
#[derive(Debug)]
pub struct Report<C> {
    /// Each undo, in the order in which it was tried.
    pub steps: Vec<Step<C>>,
    /// Lines of the journal that described no change; the kernel's tables were searched instead, as always.
    pub unreadable: usize,
    /// What kept the tables or the journal from being read or the journal from being deleted, and what is still there after its undo.
    pub problems: Vec<String>,
}

impl<C> Default for Report<C> {
    fn default() -> Report<C> {
        Report { steps: Vec::new(), unreadable: 0, problems: Vec::new() }
    }
}

impl<C: Reversible> Report<C> {
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
}

/// What a refresh found to do.
#[derive(Debug)]
pub struct Refreshed<C> {
    /// Whether the device is another one of the same name.
    pub renewed: bool,
    /// Changes that were made: wanted anew, or lost.
    pub made: Vec<C>,
    /// Undos of what is not wanted any more.
    pub undone: Vec<Step<C>>,
}

impl<C> Default for Refreshed<C> {
    fn default() -> Refreshed<C> {
        Refreshed { renewed: false, made: Vec::new(), undone: Vec::new() }
    }
}

impl<C> Refreshed<C> {
    /// Whether everything was as it should be.
    pub fn is_unchanged(&self) -> bool {
        !self.renewed && self.made.is_empty() && self.undone.is_empty()
    }
}

impl<C: Reversible> fmt::Display for Report<C> {
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

/// What a look at the machine's DNS has shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DnsCheck {
    /// It is as it should be, or was never changed.
    Kept,
    /// Another program had replaced it. What that program wrote stands when the run has ended, and until then ours does.
    PutBack,
    /// It is missing, or empty, at this moment: another program may be at it. Look again in a second.
    Unsettled,
    /// It is left with what another program wrote, which does so again and again, or cannot be replaced.
    LeftToOthers,
}
