//! How many instructions the core spends on one packet of each kind, held to a budget: it does not depend on how busy the machine is.
//!
//! # Theory of operation
//!
//! The program runs itself under `valgrind --tool=callgrind`, once for each case with N operations and once with 2N: the difference
//! over N is what one operation costs when everything is warm. Callgrind collects only within the functions of [`measured`]; what makes the packets is
//! not counted ([`cases`]). Only instructions of this program's own file are counted ([`profile`]), since the C library has a `memcpy`
//! for each kind of processor; its calls are counted instead, so that a new copy or allocation shows as well.
//!
//! The budgets are in `benches/instructions.toml`. They are raised by editing that file, and not otherwise. Counts belong to a
//! compiler and a processor's instruction set: another compiler has a wider tolerance, another instruction set is shown and not judged.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that measures and talks to its caller"
)]

#[path = "../common/mod.rs"]
mod common;

mod cases;
mod harness;
mod measured;
mod profile;

use profile::Counts;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

type Res<T> = Result<T, Box<dyn Error>>;

/// Operations of the shorter run.
const OPERATIONS: u32 = 400;

const USAGE: &str = "\
usage: cargo bench --bench instructions [-- CASE...]
  counts the instructions of each case (of all, unless some are named) and compares them with benches/instructions.toml
";

/// The budgets, as they are written down.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Budgets {
    /// The compiler that they were counted with.
    rustc: String,
    /// By how much a count may exceed its budget.
    tolerance: f64,
    /// The same for any other compiler.
    tolerance_other_rustc: f64,
    cases: BTreeMap<String, Budget>,
}

/// What one operation may cost.
#[derive(Deserialize, Clone, Copy, Debug)]
#[serde(deny_unknown_fields)]
struct Budget {
    instructions: f64,
    /// Calls into libraries: copies and allocations.
    calls: f64,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let result = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--help"] => {
            print!("{USAGE}");
            Ok(true)
        }
        ["run", case, operations] => run(case, operations).map(|()| true),
        _ => guard(&args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one case so many times; what callgrind looks at.
fn run(case: &str, operations: &str) -> Res<()> {
    let make = cases::ALL.iter().find(|known| known.name == case).ok_or("no such case")?.make;
    let mut operation = make();
    for _ in 0..operations.parse::<u32>()? {
        operation();
    }
    Ok(())
}

/// Counts and compares; whether all is within its budget.
fn guard(names: &[String]) -> Res<bool> {
    let known = |name: &&String| !cases::ALL.iter().any(|case| case.name == *name);
    if let Some(name) = names.iter().find(known) {
        return Err(
            format!("no case '{name}'; there are {}", cases::ALL.map(|case| case.name).join(", ")).into()
        );
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.toml");
    let budgets: Budgets = toml::from_str(&std::fs::read_to_string(path)?)?;
    let rustc = rustc()?;
    let tolerance = if rustc == budgets.rustc { budgets.tolerance } else { budgets.tolerance_other_rustc };
    let judged = cfg!(all(target_arch = "x86_64", target_os = "linux"));
    println!("rustc {rustc} (budgets: {}), tolerance {:.0} %", budgets.rustc, tolerance * 100.0);
    println!(
        "{:<12} {:>12} {:>8} {:>7}   {:>6} {:>6}   of one",
        "", "instructions", "budget", "", "calls", "budget"
    );
    let mut within = true;
    for case in &cases::ALL {
        if !names.is_empty() && !names.iter().any(|name| name == case.name) {
            continue;
        }
        let counts = count(case.name)?;
        let budget = *budgets
            .cases
            .get(case.name)
            .ok_or_else(|| format!("{}: no budget in benches/instructions.toml", case.name))?;
        let change = |now: f64, then: f64| now / then.max(1.0) - 1.0;
        let verdict = match change(counts.instructions, budget.instructions) {
            _ if !judged => "not judged here",
            over if over > tolerance => "TOO MANY INSTRUCTIONS",
            _ if counts.calls > budget.calls * (1.0 + tolerance) => "TOO MANY CALLS",
            under if under < -budgets.tolerance => "within; its budget may be lowered",
            _ => "within",
        };
        within &= !verdict.starts_with("TOO");
        println!(
            "{:<12} {:>12.1} {:>8} {:>+6.1}%   {:>6.2} {:>6}   {}: {verdict}",
            case.name,
            counts.instructions,
            budget.instructions,
            change(counts.instructions, budget.instructions) * 100.0,
            counts.calls,
            budget.calls,
            case.what,
        );
    }
    if !within {
        println!(
            "a budget is exceeded: find out why, or raise it in benches/instructions.toml and say why in the commit"
        );
    }
    Ok(within)
}

/// The compiler, as `1.95`.
fn rustc() -> Res<String> {
    let compiler = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let output = Command::new(compiler).arg("--version").output()?;
    let text = String::from_utf8(output.stdout)?;
    let version = text.split_whitespace().nth(1).ok_or("rustc does not say its version")?;
    Ok(version.split('.').take(2).collect::<Vec<_>>().join("."))
}

/// What one operation costs.
fn count(case: &str) -> Res<Counts> {
    let dir = tempfile::tempdir()?;
    let own = std::env::current_exe()?;
    let profile = |operations: u32| -> Res<Counts> {
        let file = dir.path().join(operations.to_string());
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*measured*"])
            .arg(format!("--callgrind-out-file={}", file.display()))
            .arg(&own)
            .args(["run", case, &operations.to_string()])
            .stdout(Stdio::null())
            .output()
            .map_err(|error| format!("valgrind: {error}; ./build-all.sh deps installs it"))?;
        if !output.status.success() {
            return Err(format!("{case}: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
        }
        profile::read(&std::fs::read_to_string(file)?, &own.to_string_lossy())
    };
    let (once, twice) = (profile(OPERATIONS)?, profile(2 * OPERATIONS)?);
    let each = |once: f64, twice: f64| (twice - once) / f64::from(OPERATIONS);
    let counts = Counts {
        instructions: each(once.instructions, twice.instructions),
        calls: each(once.calls, twice.calls),
    };
    // A guard that sees nothing must not say that all is well.
    if counts.instructions < 50.0 {
        return Err(format!("{case}: {:.1} instructions cannot be", counts.instructions).into());
    }
    Ok(counts)
}
