//! What a change to a machine can do, whichever system it is of: be undone, be told and read back, and say what becomes of it.
//!
//! Each system has its own vocabulary of changes (`linux::change`); a run, its journal and its reports know no more of them than this.

use core::fmt;
use core::str::FromStr;
use std::io;

/// A change to the machine. Its text is one line: `--dry-run` prints it, and the journal keeps it and reads it back without loss.
pub trait Reversible: Clone + PartialEq + fmt::Debug + fmt::Display + FromStr {
    /// The change that undoes this one, whose undo is this one again.
    #[must_use]
    fn undo(&self) -> Self;

    /// The device that the change is made to, and which takes it along when it goes; `None` for what is the machine's and outlives it.
    fn device(&self) -> Option<&str>;

    /// Whether this decides where packets go while the device is gone: a kill switch makes it first, and a start that fails leaves it.
    fn outlives_device(&self) -> bool;

    /// Whether a run goes on, with a warning, where the system refuses this.
    fn is_optional(&self) -> bool;

    /// Whether it stays as it was made first, whatever a later plan says, because what was before is put back last. At most one change of a plan is so.
    fn is_made_once(&self) -> bool;

    /// Whether `other`, once made, has taken the place of this one, so that undoing this one would undo that.
    fn is_replaced_by(&self, other: &Self) -> bool;

    /// The kind, as reports name it.
    fn kind(&self) -> &'static str;

    /// What to try when the system refuses this with `error`, where there is something better to say than for any other change.
    fn remedy(&self, error: &io::Error) -> Option<&'static str>;

    /// The change that a line describes, by what its words mean.
    ///
    /// # Errors
    ///
    /// It describes none.
    fn read(line: &str, meaning: impl FnOnce(&[&str]) -> Option<Self>) -> Result<Self, ParseError> {
        let words: Vec<&str> = line.split(' ').collect();
        meaning(&words).ok_or_else(|| ParseError(line.into()))
    }
}

/// The machine and the device, as a plan finds them.
pub trait Found<C>: Clone {
    /// Whether what `change` makes is there; `shown` is what the machine shows of ours, as the undo of each.
    fn shows(&self, change: &C, shown: &[C]) -> bool;

    /// The machine as it would be without `changes`: what the plan that has made them started from.
    #[must_use]
    fn without(self, changes: &[C]) -> Self;
}

/// A line that is no change: torn, or written by another version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParseError(String);

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' describes no change", self.0)
    }
}

impl core::error::Error for ParseError {}
