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

mod ask;
mod build;
mod doctor;
mod embedded;
mod file;
mod logging;
mod man;
mod options;
mod refusal;
#[cfg(any(windows, test))]
mod service;
#[cfg(windows)]
mod service_windows;
mod top;
mod value;

pub use embedded::config as embedded_config;
pub(crate) use logging::printable;
pub use options::{Cli, Command};

use crate::proxy::{ProxyConfig, Server};
use crate::session::{self, Ended, RunError};
use clap::{CommandFactory, FromArgMatches};
use options::{ExecOptions, ProxyServerOptions, RunOptions};
use refusal::Refusal;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};

/// Exit status: bad usage or configuration.
const USAGE: u8 = 2;
/// Exit status: it had to be forced.
const FORCED: u8 = 9;

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
        write!(f, "error: {}", printable(&self.what))?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n  try: {}", printable(remedy)),
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
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    let Parsed { cli, warnings } = match parse(&args) {
        Ok(parsed) => parsed,
        Err(Refusal::Answer(text)) => return print(|out| out.write_all(text.as_bytes())),
        Err(Refusal::Error(error)) => return Err(error),
    };
    let quiet = matches!(cli.command, Some(Command::Exec(_) | Command::Demo));
    // A service has no standard error, and begins a log of its own.
    if !matches!(&cli.command, Some(command) if command.is_for_the_system()) {
        logging::start(&cli.log, quiet);
    }
    warnings.iter().for_each(|warning| log::warn!("{warning}"));
    perform(cli)
}

/// Does what a command line says that was read; gives the exit status.
fn perform(cli: Cli) -> Result<u8, Error> {
    match cli.command {
        None => route(&cli.run),
        Some(Command::Exec(options)) => exec(&options),
        Some(Command::Demo) => demo(),
        Some(Command::Proxy(options)) => proxy(&options),
        Some(Command::Doctor(options)) => doctor::run(*options),
        Some(Command::Restore { tun }) => restore(&tun),
        #[cfg(windows)]
        Some(Command::Service(command)) => service_windows::run(command),
        Some(Command::Status(options)) => ask::status(&options),
        Some(Command::Flows(options)) => ask::flows(&options),
        Some(Command::Top(place)) => top::top(&place),
        Some(Command::Completions { shell }) => print(|out| {
            clap_complete::generate(shell, &mut Cli::command(), "ztun", out);
            Ok(())
        }),
        Some(Command::Man) => print(|out| man::write(out)),
    }
}

/// Parses `args` and puts a configuration together, as far as that needs no system; whether there is one. For tests that look for panics.
#[doc(hidden)]
pub fn parse_only(args: &[OsString]) -> bool {
    parse(args).is_ok_and(|parsed| match parsed.cli.command {
        None => build::config(&parsed.cli.run, build::Names::Refused).is_ok(),
        Some(Command::Exec(options)) => build::exec_config(&options, build::Names::Refused).is_ok(),
        Some(Command::Doctor(options)) => {
            build::config_without_proxy(&options.run, build::Names::Refused).is_ok()
        }
        Some(_) => true,
    })
}

/// What was typed, and what the file that it names adds.
#[derive(Debug)]
struct Parsed {
    cli: Cli,
    /// What is to be said once there is a log.
    warnings: Vec<String>,
}

fn parse(args: &[OsString]) -> Result<Parsed, Refusal> {
    let refused = |error: clap::Error| refusal::refusal(&error, args);
    let mut matches = Cli::command().try_get_matches_from(args).map_err(refused)?;
    if let Some(error) = refusal::misplaced(&matches) {
        return Err(Refusal::Error(error));
    }
    let mut warnings = Vec::new();
    if let Some(merged) = file::merged(args, &matches).map_err(Refusal::Error)? {
        matches = Cli::command().try_get_matches_from(merged.args).map_err(refused)?;
        warnings = merged.warnings;
    }
    let cli = Cli::from_arg_matches(&matches).map_err(refused)?;
    Ok(Parsed { cli, warnings })
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
        max_connections: build::size(options.max_connections),
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
    if options.user.is_none() && !addr.ip().to_canonical().is_loopback() {
        log::warn!("whoever reaches {addr} may use it: --user and --password-file let in only who may");
    }
    server.run(|| log::info!("ready: SOCKS5 at {addr}")).map_err(|error| {
        failed("the server failed", &error, "raise the limit on open files (`ulimit -n`) and start again")
    })?;
    Ok(0)
}

fn restore(tun: &str) -> Result<u8, Error> {
    let report = crate::host::restore(tun).map_err(RunError::from)?;
    print(|out| writeln!(out, "{report}"))?;
    Ok(u8::from(!report.is_ok()))
}

#[cfg(target_os = "linux")]
fn exec(options: &ExecOptions) -> Result<u8, Error> {
    let config = build::exec_config(options, build::Names::Resolved)?;
    Ok(session::exec::run(&config, &options.command)?)
}

#[cfg(target_os = "linux")]
fn demo() -> Result<u8, Error> {
    match crate::demo::run(&mut io::stdout().lock()) {
        Ok(worked) => Ok(u8::from(!worked)),
        // It has said why.
        Err(RunError::Child(code)) => Ok(code),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn exec(_: &ExecOptions) -> Result<u8, Error> {
    Err(needs_namespaces("exec"))
}

#[cfg(not(target_os = "linux"))]
fn demo() -> Result<u8, Error> {
    Err(needs_namespaces("demo"))
}

#[cfg(not(target_os = "linux"))]
fn needs_namespaces(command: &str) -> Error {
    Error {
        code: 3,
        what: format!("`ztun {command}` needs network namespaces, which only Linux has"),
        remedy: Some("a Linux machine; here there are `ztun` and `ztun proxy`".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As [`run`], but for the log: a logger is the process's, and would have all other tests talk.
    fn refusal(args: &[&str]) -> Error {
        let args: Vec<OsString> =
            core::iter::once("ztun").chain(args.iter().copied()).map(Into::into).collect();
        match parse(&args) {
            Ok(Parsed { cli, .. }) => perform(cli).expect_err("refused"),
            Err(Refusal::Error(error)) => error,
            Err(Refusal::Answer(text)) => panic!("{text}"),
        }
    }

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_planned_is_refused_by_name() {
        for args in [&["split", "entry"][..], &["split", "exit"]] {
            let error = refusal(args);
            assert_eq!(error.code, USAGE);
            assert!(error.what.contains("not in this version") && error.what.contains(args[0]), "{error}");
        }
    }

    #[test]
    fn values_that_are_planned_are_refused_by_name() {
        for (option, value) in [("--dns", "fake"), ("--icmp", "direct")] {
            let error = refusal(&["--socks5", "127.0.0.1:1", option, value]);
            assert_eq!(error.code, USAGE);
            assert!(error.what.starts_with(&format!("`{option} {value}` is planned")), "{error}");
        }
        assert_eq!(refusal(&["--dns", "doh"]).what, "--dns: 'doh' is no choice");
    }

    #[test]
    fn a_typing_error_is_no_plan_and_gets_a_hint() {
        let error = refusal(&["--kil-switch"]);
        assert_eq!(error.code, USAGE);
        assert!(!error.what.contains("planned"), "{error}");
        assert_eq!(refusal(&["--sock5", "127.0.0.1:1"]).remedy.as_deref(), Some("--socks5"));
        assert_eq!(refusal(&["prxy"]).remedy.as_deref(), Some("`ztun proxy`"));
        assert_eq!(refusal(&["exec", "--sock"]).remedy.as_deref(), Some("--socks5"));
        assert_eq!(refusal(&["proxy", "--frob"]).remedy.as_deref(), Some("`ztun proxy --help`"));
    }

    #[test]
    fn an_option_that_would_be_lost_is_refused() {
        let error = refusal(&["--socks5", "127.0.0.1:1", "exec", "true"]);
        assert_eq!(error.remedy.as_deref(), Some("`ztun exec --socks5 ...`"));
        assert!(refusal(&["--dry-run", "restore"]).what.contains("--dry-run stands before `restore`"));
        let args = ["ztun", "--log-level", "debug", "exec", "--", "true"].map(OsString::from);
        let cli = parse(&args).unwrap().cli;
        assert_eq!(cli.log.log_level, Some(options::LogLevel::Debug));
    }

    #[test]
    fn what_follows_the_command_is_the_commands() {
        let args = ["ztun", "exec", "--udp", "reject", "curl", "--socks5", "-v", "--"].map(OsString::from);
        let Some(Command::Exec(options)) = parse(&args).unwrap().cli.command else { panic!("exec") };
        assert_eq!(options.command, ["curl", "--socks5", "-v", "--"]);
        assert!(options.way.socks5.is_empty());
        assert!(refusal(&["exec", "--no-such-option", "true"]).what.contains("no option '--no-such-option'"));
    }

    #[test]
    fn a_password_is_in_no_output() {
        let secret = "u:hunter2@127.0.0.1:1";
        let args = ["ztun", "--socks5", secret].map(OsString::from);
        assert!(!format!("{:?}", parse(&args).unwrap()).contains("hunter2"));
        for args in [
            &[secret][..],
            &["--socks5", "127.0.0.1:1", secret],
            &["--socks5", secret, "--mtu", "1"],
            &["--socks5", secret, secret],
            &["--socks5", secret, "exec", "true"],
            &["--bypass", secret],
            &["--route", secret],
            &["--rule", secret],
            &["--rule", "dst=u:hunter2@h -> proxy"],
            &["--dns-server", secret],
            &["--udp", secret],
            &["--tun", secret],
            &["--dry-run=u:hunter2@h"],
            &["--u:hunter2@h"],
            &["--socks5-password", "u:hunter2@h"],
            &["proxy", "--listen", secret],
            &["proxy", secret],
            &["help", secret],
            &["completions", secret],
        ] {
            let error = refusal(args);
            assert_eq!(error.code, USAGE, "{error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn an_error_takes_one_line_and_gives_a_terminal_no_orders() {
        let error = refusal(&["--udp", "\u{1b}]0;title\u{7}\n"]).to_string();
        assert!(!error.contains('\u{1b}') && error.lines().count() == 2, "{error:?}");
    }

    #[test]
    fn a_run_error_is_told_with_its_causes() {
        let source = io::Error::other("the system's words");
        let error = Error::from(RunError::Machine { what: "w".into(), source, remedy: "r".into() });
        assert_eq!(error.to_string(), "error: w: the system's words\n  try: r");
        assert_eq!(error.code, 3);
    }
}
