//! `--config FILE`: options of the run in TOML, under the names that they have on the command line.
//!
//! # Theory of operation
//!
//! A key is the long name of an option, and its value is read by the option's own reader: the file is turned into the arguments that would say the
//! same, in front of those that were typed, and all of them are parsed together. So the file can say what the command line can, in the same
//! bounds, and nothing else. What is typed, or in the environment, wins: the file's value for it is left out. Which keys there
//! are, and of which types, comes out of the grammar.
//!
//! An option that repeats is an array; one without a value is true or false; numbers are numbers; everything else is text. There are no sections.
//! Each key is tried by itself first, so that what is refused is refused with its line. A value may hold a password: it is repeated as little as one
//! on the command line.

use super::options::Secret;
use super::refusal::{self, Refusal, shown};
use super::{Cli, Error, value};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory};
use std::any::TypeId;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// The id of the option that names the file.
const CONFIG: &str = "config";
/// Keys that name a proxy, and its password.
const PROXY: &str = "socks5";
const PASSWORD_FILE: &str = "socks5-password-file";
/// Octets of a file: far more than all options.
const LONGEST: u64 = 1 << 20;

/// What the file adds to the command line.
#[derive(Debug)]
pub(super) struct Merged {
    /// The arguments of both.
    pub(super) args: Vec<OsString>,
    /// What is to be said once there is a log.
    pub(super) warnings: Vec<String>,
}

/// One key of a file.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: usize,
    /// The same as on the command line.
    pub(super) args: Vec<OsString>,
}

/// The command line together with the file that it names; `None` when it names none.
pub(super) fn merged(args: &[OsString], matches: &ArgMatches) -> Result<Option<Merged>, Error> {
    let (name, typed) = match matches.subcommand() {
        Some((name, typed)) => (Some(name), typed),
        None => (None, matches),
    };
    let router = Cli::command();
    let command = name.and_then(|name| router.find_subcommand(name)).unwrap_or(&router);
    if !command.get_arguments().any(|arg| arg.get_id() == CONFIG) {
        return Ok(None);
    }
    let Some(file) = typed.get_one::<PathBuf>(CONFIG) else { return Ok(None) };
    let (text, open) = read(file)?;
    let entries = entries(&file.display().to_string(), &text)?;
    // The place of what the file says is in front of what was typed for the same command. The values of the options of the log, which alone
    // may stand before a command, are no commands.
    let place = match name {
        Some(name) => args.iter().skip(1).position(|arg| arg.as_os_str() == name).map_or(1, |at| at + 2),
        None => 1,
    };
    let (before, after) = args.split_at(place.min(args.len()));
    let own_proxy = overridden(command, typed, PROXY).is_some();
    let mut added = Vec::new();
    let mut passwords = false;
    for entry in entries {
        // An option of the router that the command does not have has no meaning for it.
        if !command
            .get_arguments()
            .chain(globals(&router))
            .any(|arg| arg.get_long() == Some(entry.key.as_str()))
        {
            continue;
        }
        let unused = entry.key == PASSWORD_FILE && own_proxy && !wants_password(typed);
        if overridden(command, typed, &entry.key).is_none() && !unused {
            passwords |= entry.key == PROXY && entry.args.iter().any(holds_password);
            added.extend(entry.args);
        }
    }
    let mut warnings = Vec::new();
    if passwords && open {
        warnings
            .push("the file of --config has a password and can be read by other users: chmod 600 it".into());
    }
    Ok(Some(Merged { args: [before, &added, after].concat(), warnings }))
}

/// The options that every command has.
fn globals(router: &Command) -> impl Iterator<Item = &Arg> {
    router.get_arguments().filter(|arg| arg.is_global_set())
}

/// Where an option of the command was given besides the file, if it was.
fn overridden(command: &Command, typed: &ArgMatches, key: &str) -> Option<ValueSource> {
    let router = Cli::command();
    let known = command.get_arguments().chain(globals(&router)).find(|arg| arg.get_long() == Some(key))?;
    let source = typed.value_source(known.get_id().as_str())?;
    matches!(source, ValueSource::CommandLine | ValueSource::EnvVariable).then_some(source)
}

/// Whether a proxy that was typed has a user, so that the file's password may be its.
fn wants_password(typed: &ArgMatches) -> bool {
    typed.get_many::<Secret>(PROXY).into_iter().flatten().any(|Secret(text)| text.contains('@'))
}

/// Whether `--socks5=..` holds a password.
fn holds_password(arg: &OsString) -> bool {
    let text = arg.to_string_lossy();
    let (_, value) = text.split_once('=').unwrap_or_default();
    let place = value.split_once("://").map_or(value, |(_, rest)| rest);
    place.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
}

/// The file's text, and whether others may read it.
fn read(path: &Path) -> Result<(String, bool), Error> {
    let failed = |error: &io::Error| {
        let what = format!("--config: cannot read {}", shown(&path.display().to_string()));
        Error::system(super::USAGE, &what, error, "name a file of options, as contrib/ztun.toml is one")
    };
    let file = File::open(path).map_err(|error| failed(&error))?;
    #[cfg(unix)]
    let open = {
        use std::os::unix::fs::MetadataExt;
        let found = file.metadata().map_err(|error| failed(&error))?;
        found.is_file() && found.mode() & 0o077 != 0
    };
    #[cfg(not(unix))]
    let open = false;
    let mut text = String::new();
    let octets = file.take(LONGEST).read_to_string(&mut text).map_err(|error| failed(&error))?;
    if u64::try_from(octets).is_ok_and(|octets| octets < LONGEST) {
        return Ok((text, open));
    }
    Err(failed(&io::Error::new(io::ErrorKind::FileTooLarge, "it has a megabyte or more")))
}

/// The file's options, in its order, each tried by itself. `name` is the file's, for what is refused.
pub(super) fn entries(name: &str, text: &str) -> Result<Vec<Entry>, Error> {
    let line = |at: usize| text.get(..at).unwrap_or(text).matches('\n').count() + 1;
    let refused =
        |at: usize, what: &str, remedy: String| Error::usage(format!("{name}:{}: {what}", line(at)), remedy);
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        // A line may hold a password; the reader's words do not repeat it, and should they, they are not repeated either.
        let what = if error.message().contains('@') { "this is not TOML" } else { error.message() };
        refused(at, what.lines().next().unwrap_or_default(), "KEY = VALUE, with texts in quotes".into())
    })?;
    let router = Cli::command();
    let mut found: Vec<_> = table.get_ref().iter().collect();
    found.sort_by_key(|(key, _)| key.span().start);
    let mut entries = Vec::new();
    for (key, value) in found {
        let (at, key) = (key.span().start, key.get_ref().as_ref());
        let Some(arg) = keys(&router).find(|arg| arg.get_long() == Some(key)) else {
            let what = format!("there is no option {}", shown(key));
            return Err(refused(at, &what, nearest(&router, key)));
        };
        let args = arguments(arg, value.get_ref()).map_err(|wanted| {
            let what = format!("{key} is {}", kind(value.get_ref()));
            refused(at, &what, format!("{key} = {wanted}"))
        })?;
        if let Some(error) = tried(&args).or_else(|| tried_proxies(key, &args)) {
            let what = error.what.strip_prefix("--").unwrap_or(&error.what);
            return Err(refused(at, what, error.remedy.unwrap_or_else(|| "`ztun --help`".into())));
        }
        entries.push(Entry { key: key.into(), line: line(at), args });
    }
    Ok(entries)
}

/// The options that may stand in a file: all that the router has.
fn keys(router: &Command) -> impl Iterator<Item = &Arg> {
    let action = |arg: &&Arg| {
        matches!(arg.get_action(), ArgAction::Set | ArgAction::Append | ArgAction::SetTrue)
            && arg.get_id() != CONFIG
    };
    router.get_arguments().filter(|arg| arg.get_long().is_some()).filter(action)
}

/// What `key` may have been meant to be, else all that it could be.
fn nearest(router: &Command, key: &str) -> String {
    let dashed = key.replace('_', "-").to_ascii_lowercase();
    let mut all: Vec<&str> = keys(router).filter_map(Arg::get_long).collect();
    all.sort_unstable();
    match all.iter().find(|name| **name == dashed) {
        Some(name) => (*name).to_owned(),
        None => format!("one of {}", all.join(", ")),
    }
}

/// What the command line would say; what the file should say when it says something of another type.
fn arguments(arg: &Arg, value: &DeValue<'_>) -> Result<Vec<OsString>, String> {
    let long = arg.get_long().unwrap_or_default();
    let one = |value: &DeValue<'_>| Some(OsString::from(format!("--{long}={}", scalar(arg, value)?)));
    let wanted = || example(arg);
    match (arg.get_action(), value) {
        (ArgAction::SetTrue, DeValue::Boolean(true)) => Ok(vec![format!("--{long}").into()]),
        (ArgAction::SetTrue, DeValue::Boolean(false)) => Ok(Vec::new()),
        (ArgAction::Append, DeValue::Array(values)) => {
            values.iter().map(|value| one(value.get_ref())).collect::<Option<_>>().ok_or_else(wanted)
        }
        (ArgAction::Set, value) => Ok(vec![one(value).ok_or_else(wanted)?]),
        (_, _) => Err(wanted()),
    }
}

/// The text of a value of the option's type.
fn scalar(arg: &Arg, value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) if !is_number(arg) => Some(text.clone().into_owned()),
        DeValue::Integer(number) if is_number(arg) => {
            i128::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string())
        }
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => None,
    }
}

/// Whether the option's reader makes a number of its text.
fn is_number(arg: &Arg) -> bool {
    let numbers = [
        TypeId::of::<u8>(),
        TypeId::of::<u16>(),
        TypeId::of::<u32>(),
        TypeId::of::<u64>(),
        TypeId::of::<usize>(),
        TypeId::of::<i32>(),
    ];
    let read = arg.get_value_parser().type_id();
    numbers.into_iter().any(|number| read == number)
}

/// A value of the option's type, for whoever wrote another.
fn example(arg: &Arg) -> String {
    let name = arg.get_value_names().and_then(|names| names.first()).map_or("VALUE", |name| name.as_str());
    let value = if is_number(arg) { format!("NUMBER ({name})") } else { format!("\"{name}\"") };
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return "true or false".into();
    }
    if matches!(arg.get_action(), ArgAction::Append) { format!("[{value}, ...]") } else { value }
}

/// The type of a value, for people; an array may fail for what is in it.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text here",
        DeValue::Integer(_) => "a number here",
        DeValue::Float(_) => "a number with a point here",
        DeValue::Boolean(_) => "true or false here",
        DeValue::Datetime(_) => "a date here",
        DeValue::Array(_) => "a list of something else here",
        DeValue::Table(_) => "a section here, and there are none",
    }
}

/// What the option's own reader says against the arguments.
fn tried(args: &[OsString]) -> Option<Error> {
    let args: Vec<OsString> = core::iter::once("ztun".into()).chain(args.iter().cloned()).collect();
    let error = Cli::command().try_get_matches_from(&args).err()?;
    match refusal::refusal(&error, &args) {
        Refusal::Error(error) => Some(error),
        Refusal::Answer(_) => None,
    }
}

/// What is wrong with a proxy, whose text clap does not judge.
fn tried_proxies(key: &str, args: &[OsString]) -> Option<Error> {
    let texts = args.iter().filter(|_| key == PROXY).filter_map(|arg| arg.to_str()?.split_once('='));
    let why = texts.map(|(_, text)| value::proxy(text)).find_map(Result::err)?;
    Some(Error::usage(format!("--{key}: {why}"), "[socks5://][USER:PASS@]HOST:PORT"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::parse;
    use std::fs;

    const EXAMPLE: &str = include_str!("../../contrib/ztun.toml");

    fn refused(text: &str) -> (String, String) {
        let error = entries("z.toml", text).expect_err(text);
        assert_eq!(error.code, 2);
        (error.what, error.remedy.unwrap_or_default())
    }

    /// The options of `args` with `text` as the file that they name.
    fn cli(text: &str, args: &[&str]) -> Cli {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("z.toml");
        fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap();
        let args = args.iter().map(|arg| arg.replace("FILE", path).into());
        let args: Vec<OsString> = core::iter::once("ztun".into()).chain(args).collect();
        parse(&args).unwrap().cli
    }

    #[test]
    fn every_option_of_the_run_is_a_key_of_the_example_and_so_of_the_file() {
        let router = Cli::command();
        for arg in router.get_arguments() {
            let Some(long) = arg.get_long().filter(|long| !["config", "help", "version"].contains(long))
            else {
                continue;
            };
            assert!(keys(&router).any(|key| key.get_long() == Some(long)), "{long} is no key");
            let shown =
                EXAMPLE.lines().any(|line| line.trim_start_matches('#').starts_with(&format!("{long} = ")));
            assert!(shown, "{long} is not in contrib/ztun.toml");
        }
    }

    #[test]
    fn the_example_is_read_as_it_is_and_with_every_option_switched_on() {
        entries("example", EXAMPLE).unwrap();
        let on: Vec<&str> = EXAMPLE
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
            .collect();
        let entries = entries("example", &on.join("\n")).unwrap();
        assert_eq!(entries.len(), keys(&Cli::command()).count());
    }

    #[test]
    fn values_have_the_types_of_their_options() {
        let text = "mtu = 1400\nmark = 0x10\nsocks5 = ['10.0.0.1:1', '10.0.0.2:2']\nno-route = true\nreplace = false\ntcp-idle = '5s'\n";
        let run = cli(text, &["--config", "FILE"]).run;
        assert_eq!((run.way.mtu, run.mark, run.way.socks5.len()), (1400, 16, 2));
        assert!(run.no_route && !run.replace);
        assert_eq!(run.way.tcp_idle.as_secs(), 5);
    }

    #[test]
    fn the_command_line_wins() {
        let text = "mtu = 1400\nsocks5 = ['10.0.0.1:1']\nsocks5-password-file = '/nowhere'\nlog-level = 'debug'\nroute = ['10.0.0.0/8', '11.0.0.0/8']\n";
        let cli = cli(
            text,
            &[
                "--mtu",
                "1300",
                "--config=FILE",
                "--socks5",
                "10.0.0.9:9",
                "--route",
                "12.0.0.0/8",
                "--log-level",
                "warn",
            ],
        );
        let way = &cli.run.way;
        assert_eq!((way.mtu, cli.run.route.len()), (1300, 1));
        assert_eq!(way.socks5, [Secret("10.0.0.9:9".into())]);
        assert_eq!(way.socks5_password_file, None, "it belongs to the proxies of the file");
        assert_eq!(cli.log.log_level, Some(super::super::options::LogLevel::Warn));
    }

    #[test]
    fn the_files_password_is_for_a_user_that_is_typed() {
        let text = "socks5-password-file = '/somewhere'\n";
        let cli = cli(text, &["--config=FILE", "--socks5", "u@10.0.0.9:9"]);
        assert_eq!(cli.run.way.socks5_password_file, Some("/somewhere".into()));
    }

    #[test]
    fn commands_take_what_is_theirs() {
        let text = "mtu = 1400\ntun = 'z9'\nlog-level = 'debug'\n";
        let exec = cli(text, &["exec", "--config", "FILE", "--", "exec", "x"]);
        assert_eq!(exec.log.log_level, Some(super::super::options::LogLevel::Debug));
        match exec.command {
            Some(super::super::Command::Exec(options)) => {
                assert_eq!((options.way.mtu, options.command.len()), (1400, 2));
            }
            other => panic!("{other:?}"),
        }
        let doctor = cli(text, &["--log-format", "json", "doctor", "--json", "--config", "FILE"]);
        match doctor.command {
            Some(super::super::Command::Doctor(options)) => {
                assert_eq!((options.run.way.mtu, options.run.tun.as_str()), (1400, "z9"));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_refused_has_file_line_key_and_what_is_allowed() {
        for (text, what, remedy) in [
            ("\nmtu = 1400\nfrob = 1\n", "z.toml:3: there is no option 'frob'", "one of accept, "),
            ("max_tcp = 1\n", "z.toml:1: there is no option 'max_tcp'", "max-tcp"),
            ("config = 'x'\n", "z.toml:1: there is no option 'config'", "one of "),
            ("help = true\n", "z.toml:1: there is no option 'help'", "one of "),
            ("mtu = '1400'\n", "z.toml:1: mtu is a text here", "mtu = NUMBER (1280..65535)"),
            ("mtu = 1400.0\n", "z.toml:1: mtu is a number with a point here", "mtu = NUMBER"),
            ("tun = 7\n", "z.toml:1: tun is a number here", "tun = \"NAME\""),
            ("no-route = 'yes'\n", "z.toml:1: no-route is a text here", "no-route = true or false"),
            (
                "socks5 = '10.0.0.1:1'\n",
                "z.toml:1: socks5 is a text here",
                "socks5 = [\"[USER:PASS@]HOST:PORT\", ...]",
            ),
            ("route = [1]\n", "z.toml:1: route is a list of something else here", "route = [\"CIDR\", ...]"),
            ("\n[tun]\nname = 'x'\n", "z.toml:2: tun is a section here", "tun = \"NAME\""),
            ("[router]\n", "z.toml:1: there is no option 'router'", "one of "),
            ("mtu = 1\n", "z.toml:1: mtu: ", "`ztun --help`"),
            ("mtu = -1\n", "z.toml:1: mtu: ", "`ztun --help`"),
            (
                "pool = 1\nsocks5 = ['10.0.0.1']\n",
                "z.toml:2: socks5: the proxy's port is missing",
                "HOST:PORT",
            ),
            ("accept = 'soon'\n", "z.toml:1: accept: 'soon' is no choice", "one of late, early"),
            ("mtu = 1400\nmtu = 1500\n", "z.toml:2: duplicate key", "KEY = VALUE"),
            ("tun = ztun0\n", "z.toml:1: ", "quotes"),
        ] {
            let (found, try_this) = refused(text);
            assert!(found.starts_with(what), "{text}: {found}");
            assert!(try_this.contains(remedy), "{text}: {try_this}");
        }
    }

    #[test]
    fn a_password_is_never_repeated() {
        for text in [
            "socks5 = alice:hush@10.0.0.1:1\n",
            "socks5 = 'alice:hush@10.0.0.1:1'\n",
            "socks5 = ['alice:hush@10.0.0.1:1\n",
            "socks5 = { alice = 'hush' }\n",
            "'alice:hush@h:1' = 1\n",
            "socks5 = ['alice:hush@10.0.0.1:99999']\n",
            "tun = 'alice:hush@h:1'\n",
            "accept = 'alice:hush@h:1'\n",
            "log-level = 'alice:hush@h:1'\n",
        ] {
            let (what, remedy) = refused(text);
            assert!(!what.contains("hush") && !remedy.contains("hush"), "{what}: {remedy}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_password_in_a_file_that_others_can_read_is_warned_of() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("z.toml");
        let warnings = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let args = ["ztun", "--config", path.to_str().unwrap()].map(OsString::from);
            parse(&args).unwrap().warnings.len()
        };
        assert_eq!(warnings("socks5 = ['u:p@10.0.0.1:1']\n", 0o644), 1);
        assert_eq!(warnings("socks5 = ['u:p@10.0.0.1:1']\n", 0o600), 0);
        assert_eq!(warnings("socks5 = ['socks5://10.0.0.1:1', 'u@10.0.0.1:1']\n", 0o644), 0);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_bad_usage() {
        let dir = tempfile::tempdir().unwrap();
        let large = dir.path().join("large");
        fs::write(&large, "#".repeat(1 << 20)).unwrap();
        let binary = dir.path().join("binary");
        fs::write(&binary, [0xff, 0xfe]).unwrap();
        for path in [Path::new("/nonexistent"), dir.path(), &large, &binary] {
            let args = ["ztun", "--config", path.to_str().unwrap()].map(OsString::from);
            match parse(&args) {
                Err(Refusal::Error(error)) => assert_eq!(error.code, 2, "{error}"),
                other => panic!("{path:?}: {other:?}"),
            }
        }
    }
}
