//! Reads what callgrind wrote: lines of costs under the file (`ob=`) whose function was running.
//!
//! Names are written once, `ob=(3) /lib/libc.so.6`, and `ob=(3)` from then on. The line behind `calls=` is the cost of the callee, which is listed
//! by itself as well.

use crate::Res;
use std::collections::BTreeMap;

/// Counts of one run, or of one operation.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Instructions of the program's own file.
    pub(crate) instructions: f64,
    /// Its calls into other files: the C library's copies and allocations.
    pub(crate) calls: f64,
}

/// The counts of the file `own` in the profile `text`.
pub(crate) fn read(text: &str, own: &str) -> Res<Counts> {
    let mut counts = Counts::default();
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut resolve = |value: &str| -> String {
        let (number, name) = value.split_once(' ').unwrap_or((value, ""));
        if !name.is_empty() {
            names.insert(number.to_owned(), name.to_owned());
        }
        names.get(number).cloned().unwrap_or_default()
    };
    if !text.lines().any(|line| line == "events: Ir") {
        return Err("the profile does not count instructions".into());
    }
    let mut is_own = false;
    // The file of the function that is called next, where it is another one.
    let mut callee_is_own = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(object) = line.strip_prefix("ob=") {
            is_own = resolve(object) == own;
        } else if let Some(object) = line.strip_prefix("cob=") {
            callee_is_own = Some(resolve(object) == own);
        } else if let Some(calls) = line.strip_prefix("calls=") {
            let number = calls.split_whitespace().next().and_then(|number| number.parse::<f64>().ok());
            if is_own && callee_is_own == Some(false) {
                counts.calls += number.ok_or("the profile has a call without a number")?;
            }
            callee_is_own = None;
            lines.next();
        } else if is_own && line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            let cost = line.split_whitespace().nth(1).and_then(|cost| cost.parse::<f64>().ok());
            counts.instructions += cost.ok_or("the profile has a line without a cost")?;
        }
    }
    Ok(counts)
}
