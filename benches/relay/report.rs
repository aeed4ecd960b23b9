//! Medians, and the tables that they make.

use crate::Res;
use crate::programs::Program;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

/// A row of a table.
#[derive(Debug)]
pub(crate) struct Row {
    /// The name of its values.
    key: &'static str,
    label: &'static str,
    /// Whether more is better.
    more: bool,
    decimals: usize,
}

const fn row(key: &'static str, label: &'static str, more: bool, decimals: usize) -> Row {
    Row { key, label, more, decimals }
}

/// Rows of all tables, where there are values for them. What stands before the first full stop of a key names the measurement.
const ROWS: &[Row] = &[
    row("up1", "upload, 1 stream, Gb/s", true, 2),
    row("up10", "upload, 10 streams, Gb/s", true, 2),
    row("down1", "download, 1 stream, Gb/s", true, 2),
    row("down10", "download, 10 streams, Gb/s", true, 2),
    row("up1.cpu", "its own CPU s/GB, upload, 1 stream", false, 3),
    row("up10.cpu", "its own CPU s/GB, upload, 10 streams", false, 3),
    row("down1.cpu", "its own CPU s/GB, download, 1 stream", false, 3),
    row("down10.cpu", "its own CPU s/GB, download, 10 streams", false, 3),
    row("up1.total", "CPU s/GB of all processes, upload, 1 stream", false, 3),
    row("up10.total", "CPU s/GB of all processes, upload, 10 streams", false, 3),
    row("down1.total", "CPU s/GB of all processes, download, 1 stream", false, 3),
    row("down10.total", "CPU s/GB of all processes, download, 10 streams", false, 3),
    row("up10.spread", "upload, most over least of the 10 streams", false, 2),
    row("down10.spread", "download, most over least of the 10 streams", false, 2),
    row("conn", "new connections/s, 50 at once", true, 0),
    row("conn.cpu", "its own CPU µs per connection", false, 1),
    row("conn.failed", "connections failed, of 10,000", false, 1),
    row("echo.p50", "echo of 64 octets, p50 µs", false, 1),
    row("echo.p99", "echo of 64 octets, p99 µs", false, 1),
    row("paced.p50", "echo beside a download of 0.5 Gb/s, p50 µs", false, 1),
    row("paced.p99", "echo beside a download of 0.5 Gb/s, p99 µs", false, 1),
    row("loaded.p50", "echo beside a download as fast as it goes, p50 µs", false, 1),
    row("loaded.p99", "echo beside a download as fast as it goes, p99 µs", false, 1),
    row("crowd.p50", "echo of 1,000 slow flows beside an upload and a download, p50 µs", false, 1),
    row("crowd.p99", "echo of 1,000 slow flows beside an upload and a download, p99 µs", false, 1),
    row("crowd.up", "that upload, Gb/s", true, 2),
    row("crowd.down", "that download, Gb/s", true, 2),
    row("idle.rss.0", "resident KB, no connection", false, 0),
    row("idle.rss.1k", "resident KB, 1,000 idle connections", false, 0),
    row("idle.rss.10k", "resident KB, 10,000 idle connections", false, 0),
    row("idle.flow.1k", "KB per idle connection, at 1,000", false, 2),
    row("idle.flow.10k", "KB per idle connection, at 10,000", false, 2),
    row("idle.flow.most", "KB per idle connection, at {most}", false, 2),
    row("idle.cpu", "CPU with 10,000 idle connections, % of a core", false, 2),
    row("udp", "UDP echo of 64 octets, one flow, < 1 % loss, packets/s", true, 0),
    row("udp.loss", "its loss, %", false, 2),
    row("udp.cpu", "its own CPU µs per packet there and back", false, 2),
    row("dns", "DNS, dnsperf, queries/s", true, 0),
    row("dns.lost", "queries lost, %", false, 2),
    row("names", "DNS, each query from a new socket, 50 at once, queries/s", true, 0),
    row("names.lost", "queries lost, %", false, 2),
];

/// All values of a run.
#[derive(Debug, Default)]
pub(crate) struct Values {
    values: BTreeMap<(&'static str, Program), Vec<f64>>,
    /// How often a measurement failed.
    failed: BTreeMap<(String, Program), usize>,
    /// What went wrong, with how often.
    failures: BTreeMap<String, usize>,
    /// What could not be measured here, and why.
    notes: Vec<String>,
    /// Idle connections of the largest row.
    pub(crate) most: u64,
}

impl Values {
    /// Adds a value of the row `key`.
    ///
    /// # Panics
    ///
    /// When there is no such row.
    pub(crate) fn add(&mut self, key: &str, program: Program, value: f64) {
        let row = ROWS.iter().find(|row| row.key == key);
        let row = row.unwrap_or_else(|| panic!("there is no row '{key}'"));
        self.values.entry((row.key, program)).or_default().push(value);
    }

    /// The measurement `name` has failed.
    pub(crate) fn fail(&mut self, name: &str, program: Program, error: &dyn std::fmt::Display) {
        *self.failed.entry((name.to_owned(), program)).or_default() += 1;
        *self.failures.entry(format!("{}: {name}: {error}", program.name())).or_default() += 1;
    }

    /// Whether the measurement `name` has failed twice and never come off.
    pub(crate) fn is_hopeless(&self, name: &str, program: Program) -> bool {
        let of = |key: &str| key.split('.').next() == Some(name);
        self.failed.get(&(name.to_owned(), program)).is_some_and(|times| *times >= 2)
            && !self.values.keys().any(|(key, whose)| *whose == program && of(key))
    }

    /// Something cannot be measured here.
    pub(crate) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// The median of a row.
    pub(crate) fn median(&self, key: &'static str, program: Program) -> Option<f64> {
        let mut values = self.values.get(&(key, program))?.clone();
        values.sort_by(f64::total_cmp);
        let (half, odd) = (values.len() / 2, values.len() % 2 == 1);
        Some(if odd { values[half] } else { (values[half - 1] + values[half]) / 2.0 })
    }

    fn cell(&self, row: &Row, program: Program) -> String {
        let name = row.key.split('.').next().unwrap_or_default();
        let failed = self.failed.get(&(name.to_owned(), program)).copied().unwrap_or(0);
        match (self.median(row.key, program), failed) {
            (Some(value), 0) => format!("{value:.*}", row.decimals),
            (Some(value), times) => format!("{value:.*} ({times} failed)", row.decimals),
            (None, 0) => "-".into(),
            (None, _) => "failed".into(),
        }
    }

    /// A table of `subject` beside `others`, in the rows that `subject` has; the ratios are of the subject to each of them.
    pub(crate) fn table(&self, subject: Program, others: &[Program]) -> String {
        let mut text = format!("| | {} |", subject.title());
        for other in others {
            write!(text, " {} |", other.title()).ok();
        }
        for other in others {
            write!(text, " ÷ {} |", other.title()).ok();
        }
        text.push_str("\n|---|");
        text.push_str(&"--:|".repeat(1 + 2 * others.len()));
        text.push('\n');
        for row in ROWS {
            if self.cell(row, subject) == "-" {
                continue;
            }
            let label = row.label.replace("{most}", &self.most.to_string());
            let better = if row.more { "more" } else { "less" };
            write!(text, "| {label} ({better} is better) | {} |", self.cell(row, subject)).ok();
            for other in others {
                write!(text, " {} |", self.cell(row, *other)).ok();
            }
            for other in others {
                match (self.median(row.key, subject), self.median(row.key, *other)) {
                    (Some(own), Some(value)) if value > 0.0 => write!(text, " {:.2} |", own / value).ok(),
                    _ => write!(text, " - |").ok(),
                };
            }
            text.push('\n');
        }
        text
    }

    /// The rows in which `subject` is behind `other`.
    pub(crate) fn behind(&self, subject: Program, other: Program) -> Vec<&'static str> {
        let is_behind = |row: &&Row| match (self.median(row.key, subject), self.median(row.key, other)) {
            (Some(own), Some(value)) => {
                if row.more {
                    own < value
                } else {
                    own > value
                }
            }
            _ => false,
        };
        ROWS.iter().filter(is_behind).map(|row| row.label).collect()
    }

    /// What went wrong and what could not be measured, one line each.
    pub(crate) fn remarks(&self) -> String {
        let mut text = String::new();
        if !self.failures.is_empty() {
            text.push_str("\nWhat failed:\n\n");
            text.extend(self.failures.iter().map(|(what, times)| format!("- {times} x {what}\n")));
        }
        if !self.notes.is_empty() {
            text.push_str("\nNot measured:\n\n");
            text.extend(self.notes.iter().map(|note| format!("- {note}\n")));
        }
        text
    }
}

/// Of what all of it depends on: processor, cores, kernel, memory, day.
pub(crate) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let value = |text: &str, name: &str| -> String {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or("unknown", |(_, value)| value.trim()).to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = value(&read("/proc/meminfo"), "MemTotal");
    let gib = memory.trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / f64::from(1 << 20);
    format!(
        "{}, {cores} cores, {gib:.0} GiB, Linux {}, {}",
        value(&read("/proc/cpuinfo"), "model name"),
        read("/proc/sys/kernel/osrelease").trim(),
        said(Command::new("date").args(["-u", "+%Y-%m-%d"]))
    )
}

/// The first line that a command writes.
pub(crate) fn said(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or("unknown").trim().to_owned()
}

const BEGIN: &str = "<!-- relay: begin -->";
const END: &str = "<!-- relay: end -->";

/// Puts `text` between the markers of the document.
pub(crate) fn write(document: &Path, text: &str) -> Res<()> {
    let old = fs::read_to_string(document)?;
    let marked = old.split_once(BEGIN).and_then(|(front, rest)| Some((front, rest.split_once(END)?.1)));
    let (front, back) = marked.ok_or_else(|| format!("{}: its markers are missing", document.display()))?;
    Ok(fs::write(document, format!("{front}{BEGIN}\n{text}{END}{back}"))?)
}
