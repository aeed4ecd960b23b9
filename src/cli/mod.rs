//! The command line: what was typed, made into a [`Config`](crate::config::Config), and what each command does with it.
//!
//! # Theory of operation
//!
//! [`options`] is the grammar, for clap: help, man page and completions come out of it. [`value`] reads single values, [`build`] puts them together
//! and resolves names, once and outside the tunnel. A value that may hold a password is never given to clap to judge, since clap repeats what it
//! refuses.
//!
//! Whatever goes wrong is an [`Error`]: what failed, why, what to try, and the exit status of the contract. Options that the contract
//! names and that this version does not have are refused by name, not taken for a typing error.

mod build;
mod logging;
mod options;
mod value;

pub use options::{Cli, Command};

use crate::proxy::{ProxyConfig, Server};
use crate::session::{self, Ended, RunError};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};
use options::{ExecOptions, ProxyServerOptions, RunOptions};
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};

/// Exit status: bad usage or configuration.
const USAGE: u8 = 2;
/// Exit status: it had to be forced.
const FORCED: u8 = 9;

/// Options and commands of the contract that this version refuses.
const NOT_BUILT: [&str; 11] = [
    "--config",
    "--replace",
    "--kill-switch",
    "--control",
    "--metrics",
    "--json",
    "doctor",
    "status",
    "flows",
    "top",
    "split",
];

/// What failed, why, and what to try.
#[derive(Debug)]
pub struct Error {
    /// Exit status.
    pub code: u8,
    /// What failed and why, in one line.
    pub what: String,
    /// What to try.
    pub remedy: Option<String>,
}

impl Error {
    /// Bad usage.
    fn usage(what: impl Into<String>, remedy: impl Into<String>) -> Error {
        Error { code: USAGE, what: what.into(), remedy: Some(remedy.into()) }
    }

    /// A failure of the system, with its own words.
    fn system(code: u8, what: &str, why: &io::Error, remedy: &str) -> Error {
        Error { code, what: format!("{what}: {why}"), remedy: Some(remedy.into()) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n  try: {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

impl From<RunError> for Error {
    fn from(error: RunError) -> Error {
        let mut what = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(source) = cause {
            what.push_str(&format!(": {source}"));
            cause = source.source();
        }
        Error { code: error.exit_code(), what, remedy: error.remedy().map(str::to_owned) }
    }
}

/// Tells an error on standard error; gives its exit status.
pub fn print_error(error: &Error) -> u8 {
    // Nobody can be told that standard error is closed.
    let _ = writeln!(io::stderr().lock(), "{error}");
    error.code
}

/// Does what `args` say (the program's name first); gives the exit status.
///
/// # Errors
///
/// See [`Error`]: the caller prints it and exits with its code.
pub fn run<I, T>(args: I) -> Result<u8, Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return refused(&error),
    };
    let quiet = matches!(cli.command, Some(Command::Exec(_) | Command::Demo));
    logging::start(&cli.log, quiet);
    match cli.command {
        None => route(&cli.run),
        Some(Command::Exec(options)) => exec(&options),
        Some(Command::Demo) => demo(),
        Some(Command::Proxy(options)) => proxy(&options),
        Some(Command::Restore { tun }) => restore(&tun),
        Some(Command::Completions { shell }) => print(|out| {
            clap_complete::generate(shell, &mut Cli::command(), "ztun", out);
            Ok(())
        }),
        Some(Command::Man) => print(|out| clap_mangen::Man::new(Cli::command()).render(out)),
    }
}

/// Parses `args` and throws the outcome away: for tests that look for panics.
#[doc(hidden)]
pub fn parse_only(args: &[OsString]) -> bool {
    Cli::try_parse_from(args).is_ok_and(|cli| build::config(&cli.run, build::Names::Refused).is_ok())
}

/// Help and version are no errors. What this version does not have is named.
#[allow(clippy::wildcard_enum_match_arm, reason = "clap adds kinds of errors; all but two are refusals")]
fn refused(error: &clap::Error) -> Result<u8, Error> {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => print(|out| out.write_all(text.as_bytes())),
        _ => {
            let given = [ContextKind::InvalidArg, ContextKind::InvalidSubcommand].map(|kind| error.get(kind));
            let missing = given.into_iter().flatten().find_map(|value| match value {
                ContextValue::String(name) => NOT_BUILT.iter().find(|known| *known == name),
                _ => None,
            });
            match missing {
                Some(name) => Err(Error::usage(
                    format!("`{name}` is planned, and not in this version ({})", env!("CARGO_PKG_VERSION")),
                    "`ztun --help` lists what is there",
                )),
                None => {
                    let text = text.trim_end().strip_prefix("error: ").unwrap_or(text.trim_end());
                    Err(Error { code: USAGE, what: text.into(), remedy: None })
                }
            }
        }
    }
}

/// Writes to standard output. A reader that has gone away (`ztun man | head`) is no error.
fn print(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> Result<u8, Error> {
    let mut text = Vec::new();
    let written = write(&mut text).and_then(|()| io::stdout().lock().write_all(&text));
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::system(1, "cannot write to standard output", &error, "look where it leads to"))
        }
        Ok(()) | Err(_) => Ok(0),
    }
}

fn route(options: &RunOptions) -> Result<u8, Error> {
    let config = build::config(options, build::Names::Resolved)?;
    if options.dry_run {
        let plan = session::dry_run(&config)?;
        return print(|out| out.write_all(plan.as_bytes()));
    }
    Ok(match session::run(&config)? {
        Ended::Stopped => 0,
        Ended::Forced => FORCED,
    })
}

fn proxy(options: &ProxyServerOptions) -> Result<u8, Error> {
    let config = ProxyConfig {
        listen: options.listen,
        credentials: build::server_credentials(options)?,
        max_connections: options.max_connections,
        connect_timeout: options.connect_timeout,
        ..ProxyConfig::default()
    };
    let failed = |what: &str, error: &io::Error, remedy: &str| Error::system(1, what, error, remedy);
    let mut server = Server::bind(config).map_err(|error| {
        let remedy = "choose another --listen, or stop the program that has it (`ss -ltnp`)";
        failed(&format!("cannot listen at {}", options.listen), &error, remedy)
    })?;
    let addr = server
        .local_addr()
        .map_err(|error| failed("cannot read the listening address", &error, "start again"))?;
    log::info!("ready: SOCKS5 at {addr}");
    server.run().map_err(|error| {
        failed("the server failed", &error, "raise the limit on open files (`ulimit -n`) and start again")
    })?;
    Ok(0)
}

fn restore(tun: &str) -> Result<u8, Error> {
    let report = crate::host::restore(tun).map_err(RunError::from)?;
    print(|out| writeln!(out, "{report}"))?;
    Ok(u8::from(!report.is_ok()))
}

fn exec(options: &ExecOptions) -> Result<u8, Error> {
    let config = build::exec_config(options)?;
    Ok(session::exec::run(&config, &options.command)?)
}

fn demo() -> Result<u8, Error> {
    match crate::demo::run(&mut io::stdout().lock()) {
        Ok(worked) => Ok(u8::from(!worked)),
        // It has said why.
        Err(RunError::Child(code)) => Ok(code),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(args: &[&str]) -> Error {
        let args = core::iter::once("ztun").chain(args.iter().copied());
        run(args).expect_err("refused")
    }

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_planned_is_refused_by_name() {
        for args in [&["--kill-switch"][..], &["--config", "x"], &["doctor"], &["split", "entry"]] {
            let error = refusal(args);
            assert_eq!(error.code, USAGE);
            assert!(error.what.contains("not in this version") && error.what.contains(args[0]), "{error}");
        }
    }

    #[test]
    fn a_typing_error_is_no_plan() {
        let error = refusal(&["--kil-switch"]);
        assert_eq!(error.code, USAGE);
        assert!(!error.what.contains("planned"), "{error}");
    }

    #[test]
    fn a_run_error_is_told_with_its_causes() {
        let source = io::Error::from_raw_os_error(1);
        let error = Error::from(RunError::Machine { what: "w".into(), source, remedy: "r".into() });
        assert_eq!(error.to_string(), "error: w: Operation not permitted (os error 1)\n  try: r");
        assert_eq!(error.code, 3);
    }
}
