//! The manual page: clap's description of the options, with what it does not know around it.

use super::Cli;
use super::options::{EXAMPLES, EXIT_STATUS};
use clap::{Arg, Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use std::io::{self, Write};

const DESCRIPTION: [&str; 2] = [
    "ztun opens a TUN device, leads what this machine sends into it, and carries TCP, UDP and DNS through a SOCKS5 proxy. Connections end in ztun's own \
     stack; the proxy, also one on this machine, is kept outside the tunnel.",
    "When it is asked to stop (SIGINT, SIGTERM) the connections are closed and the changes to the machine undone, within three seconds; a second \
     signal does not wait. What a run that died left behind is undone by the next one, or by ztun restore.",
];

const ENVIRONMENT: [(&str, &str); 5] = [
    ("ZTUN_SOCKS5", "The proxy, where --socks5 is not given: keeps a password out of the list of processes."),
    ("RUST_LOG", "What is logged, where --log-level is not given, as in debug or ztun::engine=trace."),
    (
        "NOTIFY_SOCKET",
        "Where systemd is told that traffic flows (READY=1), how it goes (STATUS=) and that the run stops (STOPPING=1).",
    ),
    ("WATCHDOG_USEC", "The time in which systemd wants to be told twice that the loop turns (WATCHDOG=1)."),
    ("ZTUN_RUN_DIR", "Where journal, locks and control socket are kept, instead of /run/ztun."),
];

/// Writes the page.
pub(super) fn write(out: &mut dyn Write) -> io::Result<()> {
    let mut command = Cli::command();
    command.build();
    let page = Man::new(command.clone());
    page.render_title(out)?;
    page.render_name_section(out)?;
    synopsis(&command).to_writer(out)?;
    let mut description = Roff::new();
    description.control("SH", ["DESCRIPTION"]);
    for paragraph in DESCRIPTION {
        description.control("PP", []).text([roman(paragraph)]);
    }
    description.to_writer(out)?;
    page.render_options_section(out)?;
    commands(&command).to_writer(out)?;
    let mut rest = Roff::new();
    rest.control("SH", ["ENVIRONMENT"]);
    for (name, meaning) in ENVIRONMENT {
        rest.control("TP", []).text([bold(name)]).text([roman(meaning)]);
    }
    for (heading, text) in [("EXIT STATUS", EXIT_STATUS), ("EXAMPLES", EXAMPLES)] {
        rest.control("SH", [heading]).control("nf", []);
        for line in text.lines() {
            rest.text([roman(line.trim())]);
        }
        rest.control("fi", []);
    }
    rest.to_writer(out)
}

fn synopsis(command: &Command) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]).control("nf", []);
    for used in core::iter::once(usage(command)).chain(listed(command).map(usage)) {
        for line in used.lines() {
            roff.text([bold(line.trim())]);
        }
    }
    roff.control("fi", []);
    roff
}

/// The commands, each with the options that are its own.
fn commands(command: &Command) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["COMMANDS"]);
    let shared = |arg: &Arg| {
        command.get_arguments().any(|other| other.get_id() == arg.get_id() && !other.is_global_set())
    };
    for sub in listed(command) {
        roff.control("SS", [format!("ztun {}", sub.get_name()).as_str()]);
        roff.text([roman(format!("{}.", sub.get_about().map(ToString::to_string).unwrap_or_default()))]);
        let mut headings: Vec<&str> = Vec::new();
        for arg in sub.get_arguments().filter(|arg| !arg.is_global_set()) {
            match (arg.get_long(), arg.get_help_heading()) {
                (None, _) | (Some("help" | "version"), _) => {}
                (Some(_), Some(heading)) if shared(arg) => {
                    if !headings.contains(&heading) {
                        headings.push(heading);
                    }
                }
                (Some(long), _) => {
                    let name = match arg.get_value_names().unwrap_or_default() {
                        [] => format!("--{long}"),
                        names => format!(
                            "--{long} {}",
                            names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" ")
                        ),
                    };
                    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                    roff.control("TP", []).text([bold(name)]).text([roman(help)]);
                }
            }
        }
        if !headings.is_empty() {
            roff.control("PP", []);
            roff.text([roman(format!("Takes the options above under: {}.", headings.join(", ")))]);
        }
    }
    roff
}

fn listed(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|sub| sub.get_name() != "help")
}

fn usage(command: &Command) -> String {
    let usage = command.clone().render_usage().to_string();
    usage.strip_prefix("Usage: ").unwrap_or(&usage).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_option_and_command() {
        let mut page = Vec::new();
        write(&mut page).unwrap();
        let page = String::from_utf8(page).unwrap().replace("\\-", "-");
        let mut command = Cli::command();
        command.build();
        for arg in command.get_arguments().filter_map(Arg::get_long) {
            assert!(page.contains(&format!("--{arg}")), "--{arg}");
        }
        for sub in listed(&command) {
            let name = sub.get_name();
            assert!(page.contains(&format!(".SS \"ztun {name}\"")), "{name}");
        }
        assert!(page.contains("--max-connections") && page.contains("ZTUN_SOCKS5"));
    }
}
