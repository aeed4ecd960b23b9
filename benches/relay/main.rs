//! ztun beside hev-socks5-tunnel, tun2proxy, pasta, a SOCKS5 server without a tunnel, and a plain relay: one run, real kernels, network namespaces.
//!
//! # Theory of operation
//!
//! The orchestrator ([`orchestrate`]) needs root. It makes one namespace for the servers and one for each contestant ([`net`]), joined by veth
//! pairs, starts the contestants in them ([`programs`]), and starts itself again in those namespaces in two other roles: [`target`], the servers at
//! the far end, and [`load`], the app whose connections are carried. Each contestant is measured for each row before the next row begins, and
//! all rows ([`rows`]) are measured again in every round, so that a disturbance of the machine hits all alike; the tables ([`report`]) hold medians, and
//! what is to be reached is computed from them ([`reach`]). A contestant that is not installed is left out, with the reason in the document; a row that fails says so.
//!
//! CPU time is what `/proc/PID/stat` says of a contestant's processes ([`process`]) before and after a row. Idle connections and datagrams end in a SOCKS5 server that is its
//! own target ([`target`]): each connection costs one descriptor in every process, so that more of them fit where few files may be open, and datagrams take
//! no way through a server that would be the slowest part of all.
//!
//! Load and servers use threads, one for each stream: they stand for programs of their own, and the contestants keep the machine's
//! cores busy in any case. Nothing of them is part of the product.
//!
//! `cargo bench --bench relay -- --help` names the options. It writes to docs/benchmarks.md unless told otherwise.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that measures: it reads the clock, waits, uses threads and talks to its caller on standard output"
)]

mod batch;
mod connections;
mod crowd;
mod load;
mod names;
mod net;
mod orchestrate;
mod plain;
mod process;
mod programs;
mod reach;
mod report;
mod rows;
mod socks;
mod target;

use std::error::Error;
use std::process::ExitCode;

/// A result whose error is for a person.
type Res<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// How an error on standard error begins.
const ERROR: &str = "relay bench: ";

const USAGE: &str = "\
usage: cargo bench --bench relay -- [OPTIONS]      (root)
  --quick             one short round, printed and not written: does it still work?
  --rounds N          rounds; the table holds medians [default: 5]
  --seconds S         how long one row of one program is measured [default: 1.5]
  --server NAME       the SOCKS5 server of the streams: embedded, danted or microsocks [default: embedded]
  --only A,B          groups of rows: bulk, latency, connections, idle, udp, dns
  --programs A,B      contestants: ztun, hev, tun2proxy, none, ztun-8500, hev-8500, tun2proxy-8500, direct, relay, pasta
  --ztun PATH         another ztun than the one that cargo has built
  --print             print the table, write nothing
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let result = match args.first().map(String::as_str) {
        Some("--help") => {
            print!("{USAGE}");
            Ok(())
        }
        Some("role-target") => target::run(&args[1..]),
        Some("role-relay") => plain::run(&args[1..]),
        Some("role-load") => load::run(&args[1..]),
        _ => orchestrate::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{ERROR}{error}");
            ExitCode::FAILURE
        }
    }
}

/// The value behind `--name`, where it is given.
fn option<'a>(args: &'a [String], name: &str) -> Option<&'a str> {
    let at = args.iter().position(|arg| arg == name)?;
    args.get(at + 1).map(String::as_str)
}

/// The value behind `--name`, read as `T`.
fn parsed<T: std::str::FromStr>(args: &[String], name: &str) -> Res<Option<T>> {
    let Some(text) = option(args, name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| format!("{name}: cannot read '{text}'").into())
}
