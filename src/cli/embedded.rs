//! The options of a router that runs inside another program: the text of a file of `--config`, without the file, and with nothing typed.
//!
//! The grammar, its bounds and its refusals are those of the file. What says how this machine is to be changed, or how a program logs, has no meaning
//! there, and is refused, so that nobody counts on it. The environment is not looked at.

use super::refusal::{self, Refusal};
use super::{Cli, Error, build, file};
use crate::config::Config;
use clap::builder::Resettable;
use clap::{CommandFactory, FromArgMatches};
use std::ffi::OsString;

/// What stands for the name of the file in what is refused.
const NAME: &str = "config";

/// Keys without a meaning, and what to do instead.
const MEANINGLESS: [(&str, &str); 12] = [
    ("tun", "give the device its name where it is opened"),
    ("tun-fd", "hand over the descriptor with the call"),
    ("route", "set the routes where the device is opened"),
    ("bypass", "a rule, as in 'dst=10.0.0.0/8 -> direct'"),
    ("no-route", "leave it out: no routes are touched"),
    ("local-proxy", "leave it out: keep a proxy on this machine out of the device by its routes"),
    ("replace", "stop the other session"),
    ("kill-switch", "leave it out: what is sent into the device depends on its routes alone"),
    ("reset-existing", "leave it out"),
    ("dry-run", "leave it out: the machine is not changed"),
    ("log-level", "the level is given with the log callback"),
    ("log-format", "the log goes to the callback"),
];

/// The configuration that `text` (TOML, as in `contrib/ztun.toml`) says. Names of hosts are resolved, with the system's resolver, which may take its time.
///
/// # Errors
///
/// The same as for the file, with the line; and for a key that has no meaning inside another program.
pub fn config(text: &str) -> Result<Config, Error> {
    let mut args = vec![OsString::from("ztun")];
    for entry in file::entries(NAME, text)? {
        if let Some((key, remedy)) = MEANINGLESS.iter().find(|(key, _)| *key == entry.key) {
            let what = format!("{NAME}:{}: {key} has no meaning in a library", entry.line);
            return Err(Error::usage(what, *remedy));
        }
        args.extend(entry.args);
    }
    let command = Cli::command().mut_arg("socks5", |arg| arg.env(Resettable::Reset));
    let parsed = command.try_get_matches_from(&args).and_then(|matches| Cli::from_arg_matches(&matches));
    match parsed {
        Ok(cli) => build::config(&cli.run, build::Names::Resolved),
        Err(error) => Err(match refusal::refusal(&error, &args) {
            Refusal::Error(error) => error,
            // No key asks for help or version.
            Refusal::Answer(text) => Error::usage(text, "`ztun --help`"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::options::RunOptions;
    use clap::Args;

    fn refused(text: &str) -> Error {
        let error = config(text).expect_err(text);
        assert_eq!(error.code, 2, "{error}");
        error
    }

    #[test]
    fn a_text_is_read_as_the_file_is() {
        let read =
            config("socks5 = ['u:p@127.0.0.1:1080', '[::1]:1081']\nmtu = 1400\ndns = 'tcp'\n").unwrap();
        assert_eq!((read.engine.proxies.len(), read.host.mtu), (2, 1400));
        assert!(read.engine.proxies[0].credentials.is_some());
        assert_eq!(read.engine.dns, crate::config::DnsMode::Tcp);
    }

    #[test]
    fn what_the_file_refuses_is_refused_in_the_same_words() {
        assert!(refused("socks5 = ['127.0.0.1:1']\nmtu = 1\n").what.starts_with("config:2: mtu: "));
        assert_eq!(refused("sock5 = []").what, "config:1: there is no option 'sock5'");
        assert_eq!(refused("socks5 = 1").what, "config:1: socks5 is a number here");
        assert!(refused("socks5 = [").what.starts_with("config:1: "));
        let secret = refused("socks5 = ['u:hunter2@']");
        assert!(!secret.to_string().contains("hunter2"), "{secret}");
        for no_proxy in ["", "mtu = 1400"] {
            assert_eq!(refused(no_proxy).what, "no proxy is given");
        }
    }

    #[test]
    fn what_would_change_the_machine_is_refused_by_name() {
        let router = RunOptions::augment_args(clap::Command::new("ztun"));
        for (key, remedy) in MEANINGLESS {
            let known = router.get_arguments().any(|arg| arg.get_long() == Some(key));
            assert!(known || key.starts_with("log-"), "{key} is no option");
            let value = match key {
                "tun" => "'ztun5'",
                "tun-fd" => "5",
                "route" | "bypass" => "['10.0.0.0/8']",
                "local-proxy" => "'off'",
                "log-level" => "'debug'",
                "log-format" => "'json'",
                _ => "true",
            };
            let error = refused(&format!("socks5 = ['127.0.0.1:1080']\n{key} = {value}\n"));
            assert_eq!(error.what, format!("config:2: {key} has no meaning in a library"));
            assert_eq!(error.remedy.as_deref(), Some(remedy));
        }
    }
}
