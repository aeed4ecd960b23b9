//! What clap refuses, in the words of the contract: what failed, why, what to try.
//!
//! A value may be a password in the wrong place: one with an `@` is never repeated. Options, commands and values that the contract names and that
//! this version does not have are refused by name, so that nobody takes them for a typing error.

use super::{Cli, Error};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory};
use std::ffi::OsString;

/// Options and commands of the contract that this version does not have.
const NOT_BUILT: [&str; 1] = ["split"];

/// Options that were thought of, measured and rejected, and why.
const REJECTED: [(&str, &str); 1] = [(
    "--workers",
    "more than one loop breaks UDP and showed no clear gain: the kernel would hand one socket's datagrams to several of them",
)];

/// Values of the contract that this version does not have.
const VALUES_NOT_BUILT: [(&str, &[&str]); 2] = [("--dns", &["fake"]), ("--icmp", &["direct"])];

/// Octets of a value that are repeated.
const SHOWN: usize = 64;

/// Why nothing is run.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Help or version was asked for: this text.
    Answer(String),
    /// Bad usage.
    Error(Error),
}

/// Makes a refusal of clap's error; `args` are those that it is about.
#[allow(clippy::wildcard_enum_match_arm, reason = "clap adds kinds of errors; the last arm is for those")]
pub(super) fn refusal(error: &clap::Error, args: &[OsString]) -> Refusal {
    let arg = context(error, ContextKind::InvalidArg).unwrap_or_default();
    // `--tun <NAME>` is how clap calls an option that takes a value.
    let name = arg.split(' ').next().unwrap_or_default();
    let value = context(error, ContextKind::InvalidValue).unwrap_or_default();
    let allowed = context(error, ContextKind::ValidValue).map(|values| format!("one of {values}"));
    let help = help(args);
    let told = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            return Refusal::Answer(error.render().to_string());
        }
        ErrorKind::UnknownArgument if NOT_BUILT.contains(&name) => not_built(name, help),
        ErrorKind::UnknownArgument if rejected(name).is_some() => {
            let why = rejected(name).unwrap_or_default();
            Error::usage(format!("there is no option {name}: {why}"), format!("the same without {name}"))
        }
        ErrorKind::UnknownArgument => {
            let what = if name.starts_with('-') {
                format!("there is no option {} here", shown(name))
            } else {
                format!("{} is not expected here", shown(&arg))
            };
            let near = context(error, ContextKind::SuggestedArg);
            Error::usage(what, near.map_or(help, |near| near.split(' ').next().unwrap_or(&near).to_owned()))
        }
        ErrorKind::InvalidSubcommand => {
            let command = context(error, ContextKind::InvalidSubcommand).unwrap_or_default();
            if NOT_BUILT.contains(&command.as_str()) {
                not_built(&command, help)
            } else {
                let near = context(error, ContextKind::SuggestedSubcommand);
                let what = format!("there is no command {}", shown(&command));
                Error::usage(what, near.map_or(help, |near| format!("`ztun {near}`")))
            }
        }
        ErrorKind::InvalidValue if value.is_empty() => {
            Error::usage(format!("{name} needs a value"), allowed.unwrap_or(help))
        }
        ErrorKind::InvalidValue if value_is_planned(name, &value) => {
            not_built(&format!("{name} {value}"), allowed.unwrap_or(help))
        }
        ErrorKind::InvalidValue => {
            Error::usage(format!("{name}: {} is no choice", shown(&value)), allowed.unwrap_or(help))
        }
        ErrorKind::ValueValidation => Error::usage(format!("{name}: {}", reason(error, &value)), help),
        ErrorKind::MissingRequiredArgument => Error::usage(format!("{arg} is missing"), help),
        ErrorKind::ArgumentConflict => {
            let other = context(error, ContextKind::PriorArg).unwrap_or_default();
            let what = if other == arg {
                format!("{name} is given twice")
            } else {
                format!("{name} cannot be used with {other}")
            };
            Error::usage(what, help)
        }
        ErrorKind::TooManyValues => Error::usage(format!("{name} takes no value"), name),
        ErrorKind::InvalidUtf8 => Error::usage("an argument, or ZTUN_SOCKS5, is not UTF-8", help),
        kind => Error::usage(kind.to_string(), help),
    };
    Refusal::Error(told)
}

/// An option of the router that stands before a command, where it would be lost.
pub(super) fn misplaced(matches: &ArgMatches) -> Option<Error> {
    let command = matches.subcommand_name()?;
    let router = Cli::command();
    let arg = router.get_arguments().find(|arg| {
        let source = matches.value_source(arg.get_id().as_str());
        !arg.is_global_set() && source == Some(ValueSource::CommandLine)
    })?;
    let option = arg.get_long().unwrap_or_default();
    let taken = router
        .find_subcommand(command)
        .is_some_and(|command| command.get_arguments().any(|other| other.get_id() == arg.get_id()));
    let remedy = if taken {
        format!("`ztun {command} --{option} ...`")
    } else {
        format!("`ztun {command} --help` lists the options that it takes")
    };
    Some(Error::usage(format!("--{option} stands before `{command}`, where it has no meaning"), remedy))
}

/// A value as it may be repeated: not when it may hold a password, and not without end.
pub(super) fn shown(value: &str) -> String {
    if value.contains('@') {
        return "a value with an @ (not repeated here)".into();
    }
    let end = value.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= SHOWN).last();
    let start = &value[..end.unwrap_or(0)];
    let more = if start.len() < value.len() { "..." } else { "" };
    format!("'{start}{more}'")
}

fn not_built(what: &str, remedy: String) -> Error {
    Error::usage(
        format!("`{what}` is planned, and not in this version ({})", env!("CARGO_PKG_VERSION")),
        remedy,
    )
}

fn rejected(name: &str) -> Option<&'static str> {
    REJECTED.iter().find(|(option, _)| *option == name).map(|(_, why)| *why)
}

fn value_is_planned(name: &str, value: &str) -> bool {
    VALUES_NOT_BUILT.iter().any(|(option, values)| *option == name && values.contains(&value))
}

/// What the reader of the value said.
fn reason(error: &clap::Error, value: &str) -> String {
    let said = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    if said.is_empty() || said.contains('@') || value.contains('@') {
        return format!("{} is not understood", shown(value));
    }
    said
}

#[allow(clippy::wildcard_enum_match_arm, reason = "clap adds kinds of values; only texts are of use")]
fn context(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => Some(texts.join(", ")),
        _ => None,
    }
}

/// Where the command that was meant says what it takes.
fn help(args: &[OsString]) -> String {
    let router = Cli::command();
    let command = args.iter().skip(1).filter_map(|arg| arg.to_str()).find(|arg| {
        let known = router.find_subcommand(arg);
        known.is_some()
    });
    match command {
        Some(command) => format!("`ztun {command} --help`"),
        None => "`ztun --help`".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_hold_a_password_is_not_repeated() {
        assert!(!shown("u:secret@h").contains("secret"));
        assert_eq!(shown("plain"), "'plain'");
        assert_eq!(shown(""), "''");
    }

    #[test]
    fn a_long_value_is_cut_between_characters() {
        let text = shown(&"é".repeat(100));
        assert_eq!(text, format!("'{}...'", "é".repeat(32)));
    }
}
