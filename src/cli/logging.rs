//! The log: lines to standard error, for people or as JSON.
//!
//! The level that was asked for at the start can be another one while a run lasts (`log-level` over the control socket), for which the facade's own
//! threshold, [`log::max_level`], is what counts: until somebody changes it the directives of the start decide, `RUST_LOG` with its modules among
//! them; from then on it alone does, for all modules.

use super::options::{LogFormat, LogLevel, LogOptions};
use env_logger::fmt::Formatter;
use log::{LevelFilter, Log, Metadata, Record};
use std::io::{self, Write};

/// Starts logging. `RUST_LOG` counts where no level was given; `quiet`: for a command whose own output counts, warnings only.
pub(super) fn start(options: &LogOptions, quiet: bool) {
    start_with(env_logger::Builder::new, options, quiet);
}

/// Starts logging into a file, for a process without a standard error.
#[cfg(windows)]
pub(super) fn start_in(options: &LogOptions, file: std::fs::File) {
    let file = std::sync::Arc::new(file);
    let builder = move || {
        let mut builder = env_logger::Builder::new();
        builder.target(env_logger::Target::Pipe(Box::new(std::sync::Arc::clone(&file))));
        builder
    };
    start_with(builder, options, false);
}

/// Starts logging by what `new` makes.
fn start_with(new: impl Fn() -> env_logger::Builder, options: &LogOptions, quiet: bool) {
    let mut builder = new();
    builder.filter_level(if quiet { LevelFilter::Warn } else { LevelFilter::Info });
    match options.log_level {
        Some(level) => {
            builder.filter_level(filter(level));
        }
        None => {
            builder.parse_default_env();
        }
    }
    let form = match options.log_format {
        LogFormat::Text => text,
        LogFormat::Json => json,
    };
    let directed = builder.format(form).build();
    let start = directed.filter();
    let every = new().filter_level(LevelFilter::Trace).format(form).build();
    // A second start (tests) keeps the first.
    match log::set_boxed_logger(Box::new(Switch { directed, every, start })) {
        Ok(()) => log::set_max_level(start),
        Err(error) => log::debug!("{error}"),
    }
}

/// Two loggers: one for the directives of the start, and one for a level that was changed since.
struct Switch {
    directed: env_logger::Logger,
    every: env_logger::Logger,
    /// The threshold of the start.
    start: LevelFilter,
}

impl Switch {
    fn current(&self) -> &env_logger::Logger {
        if log::max_level() == self.start { &self.directed } else { &self.every }
    }
}

impl Log for Switch {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.current().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        self.current().log(record);
    }

    fn flush(&self) {
        self.current().flush();
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::Off,
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    }
}

fn text(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let time = out.timestamp_millis();
    writeln!(out, "{time} {:<5} {}", record.level(), printable(&record.args().to_string()))
}

/// One line whatever it holds, that a terminal takes no orders from.
pub(crate) fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut line, c| {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
        line
    })
}

fn json(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let time = out.timestamp_millis();
    let level = record.level().as_str().to_ascii_lowercase();
    let (target, message) = (quoted(record.target()), quoted(&record.args().to_string()));
    writeln!(out, "{{\"ts\":\"{time}\",\"level\":\"{level}\",\"target\":{target},\"msg\":{message}}}")
}

/// A JSON string (RFC 8259 7).
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if u32::from(c) < 0x20 || c == '\u{7f}' => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_cannot_break_out_of_its_string() {
        assert_eq!(quoted("a\"b\\c\nd\u{1}é"), "\"a\\\"b\\\\c\\u000ad\\u0001é\"");
    }

    #[test]
    fn a_message_stays_one_line_without_orders_to_the_terminal() {
        assert_eq!(printable("a\nb\u{1b}[2Jé"), "a\\nb\\u{1b}[2Jé");
    }
}
