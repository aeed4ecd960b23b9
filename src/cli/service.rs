//! `ztun service install`: what the service is started with, before any system is asked.
//!
//! A service is started by Windows, without a person: its command line is written down, where every user of the machine can read it. So no password may be in it, and
//! nothing of the environment is there later. Paths are meant as they were typed: the directory comes along.

use super::options::Secret;
use super::{Cli, Error, build, parse};
use crate::cli::refusal::Refusal;
use clap::CommandFactory;
use clap::parser::ValueSource;
use std::ffi::OsString;
use std::path::Path;

/// The arguments that Windows starts the program with, for the options of the router that were typed in `directory`.
///
/// # Errors
///
/// They are none of the router, or cannot be written down.
pub(super) fn launch(
    options: &[OsString],
    directory: &Path,
    names: build::Names,
) -> Result<Vec<OsString>, Error> {
    let cli = router(options)?;
    typed_only(options)?;
    build::config(&cli.run, names)?;
    let head = ["service", "run", "--directory"].map(OsString::from);
    let mut launch = Vec::from(head);
    launch.extend([directory.into(), "--".into()]);
    launch.extend_from_slice(options);
    Ok(launch)
}

/// The router's options, read as those of `ztun` itself.
///
/// # Errors
///
/// They are refused, or name a command.
pub(super) fn router(options: &[OsString]) -> Result<Cli, Error> {
    let args = with_name(options);
    let cli = match parse(&args) {
        Ok(parsed) => parsed.cli,
        Err(Refusal::Error(error)) => return Err(error),
        Err(Refusal::Answer(_)) => return Err(only_the_router()),
    };
    if cli.command.is_none() { Ok(cli) } else { Err(only_the_router()) }
}

fn with_name(options: &[OsString]) -> Vec<OsString> {
    core::iter::once("ztun".into()).chain(options.iter().cloned()).collect()
}

fn only_the_router() -> Error {
    Error::usage("the service runs the router", "`ztun service install -- --socks5 HOST:PORT`")
}

/// Refuses a password that was typed, and a proxy that only the environment names.
fn typed_only(options: &[OsString]) -> Result<(), Error> {
    let Ok(matches) = Cli::command().try_get_matches_from(with_name(options)) else { return Ok(()) };
    let source = matches.value_source("socks5");
    if source == Some(ValueSource::EnvVariable) {
        return Err(Error::usage(
            "ZTUN_SOCKS5 is not set where the service runs",
            "--socks5 HOST:PORT after the `--`",
        ));
    }
    let mut proxies = matches.get_many::<Secret>("socks5").into_iter().flatten();
    let secret = |proxy: &Secret| proxy.0.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'));
    if source == Some(ValueSource::CommandLine) && proxies.any(secret) {
        return Err(Error::usage(
            "every user of this machine can read the command line of a service, and the password in it",
            "--socks5 USER@HOST:PORT with --socks5-password-file FILE, which only administrators can read",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launched(options: &[&str]) -> Result<Vec<String>, Error> {
        let options: Vec<OsString> = options.iter().map(OsString::from).collect();
        let launch = launch(&options, Path::new("/here and there"), build::Names::Refused)?;
        Ok(launch.into_iter().map(|arg| arg.into_string().unwrap()).collect())
    }

    #[test]
    fn the_options_are_carried_over_as_they_were_typed_with_the_directory() {
        let options = ["--socks5", "127.0.0.1:1080", "--kill-switch", "--rule", "dst=10.0.0.0/8 -> direct"];
        let launch = launched(&options).unwrap();
        assert_eq!(launch[..5], ["service", "run", "--directory", "/here and there", "--"]);
        assert_eq!(launch[5..], options);
        let again: Vec<OsString> = launch[5..].iter().map(OsString::from).collect();
        assert!(router(&again).unwrap().run.kill_switch);
    }

    #[test]
    fn a_password_is_not_written_down() {
        let refused = launched(&["--socks5", "alice:hush@127.0.0.1:1080"]).unwrap_err();
        assert_eq!(refused.code, 2);
        assert!(!refused.to_string().contains("hush"), "{refused}");
        assert!(refused.to_string().contains("--socks5-password-file"));
    }

    #[test]
    fn what_is_not_the_router_is_refused() {
        for options in [&["demo"][..], &["--help"], &["--no-such-option"], &[]] {
            assert_eq!(launched(options).unwrap_err().code, 2, "{options:?}");
        }
    }
}
