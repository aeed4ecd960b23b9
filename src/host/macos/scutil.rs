//! scutil(8): what [`names`](super::names) has built is said to it, and what it answers is given back.
//!
//! The framework that scutil uses would have to be linked with, for which there is nothing where ztun is built for other systems; and the text is what an
//! administrator would type.

use super::names::{self, Names};
use crate::host::{DnsCheck, Outcome};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Whatever the environment says: it is run with all rights.
const SCUTIL: &str = "/usr/sbin/scutil";
/// How long it may be silent, milliseconds.
const PATIENCE: libc::c_int = 2_000;
/// More than it answers.
const LONGEST: usize = 64 << 10;
/// Times that ours is put back before it is left to others.
const PUT_BACKS: u32 = 10;

/// Makes `names` the machine's.
pub(super) fn set(names: &Names) -> io::Result<Outcome> {
    let said = run(&names.set())?;
    // It ends well whatever becomes of what it was told.
    if names::shown(&run(&names::show())?).as_ref() == Some(names) {
        return Ok(Outcome::Done);
    }
    Err(refused(&said))
}

/// Takes ours away.
pub(super) fn remove() -> io::Result<Outcome> {
    if leftovers()?.is_none() {
        return Ok(Outcome::Already);
    }
    let said = run(&names::remove())?;
    if leftovers()?.is_none() { Ok(Outcome::Done) } else { Err(refused(&said)) }
}

/// Ours, if they are there.
pub(super) fn leftovers() -> io::Result<Option<Names>> {
    Ok(names::shown(&run(&names::show())?))
}

/// The resolvers that the machine asks.
pub(in crate::host) fn name_servers() -> Vec<IpAddr> {
    let shown = run(&names::show_machine()).map(|text| names::shown(&text));
    match shown {
        Ok(names) => names.map(|names| names.servers).unwrap_or_default(),
        Err(error) => {
            log::debug!("{SCUTIL}: {error}");
            Vec::new()
        }
    }
}

fn refused(said: &str) -> io::Error {
    let said = said.trim();
    let kind =
        if said.contains("ermission") { io::ErrorKind::PermissionDenied } else { io::ErrorKind::Other };
    io::Error::new(
        kind,
        format!("{SCUTIL} did not do it: {}", if said.is_empty() { "no reason" } else { said }),
    )
}

/// Keeps the machine's name servers.
#[derive(Debug)]
pub(in crate::host) struct Upkeep {
    names: Names,
    put_backs: u32,
}

impl Upkeep {
    /// Keeps `names`, which are set.
    pub(super) fn new(names: Names) -> Upkeep {
        Upkeep { names, put_backs: 0 }
    }

    /// Looks whether they still are, and sets them again where not.
    pub(in crate::host) fn check(&mut self) -> DnsCheck {
        match leftovers() {
            Ok(Some(names)) if names == self.names => return DnsCheck::Kept,
            Ok(_) if self.put_backs >= PUT_BACKS => return DnsCheck::LeftToOthers,
            Ok(_) => {}
            Err(error) => {
                log::debug!("the machine's name servers cannot be looked at: {error}");
                return DnsCheck::LeftToOthers;
            }
        }
        self.put_backs += 1;
        match set(&self.names) {
            Ok(_) => {
                log::info!("another program had taken away the tunnel's name servers: put back");
                DnsCheck::PutBack
            }
            Err(error) => {
                log::warn!("the tunnel's name servers are gone and cannot be put back: {error}");
                DnsCheck::LeftToOthers
            }
        }
    }
}

/// Says `input` to scutil, and gives what it answers.
fn run(input: &str) -> io::Result<String> {
    let mut child = Command::new(SCUTIL)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // Signals of the terminal are for us.
        .process_group(0)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take()
        // Shorter than a pipe: this never waits.
        && let Err(error) = stdin.write_all(input.as_bytes())
    {
        log::debug!("{SCUTIL}: {error}");
    }
    let answer = child.stdout.take().map_or_else(|| Ok(String::new()), read);
    if answer.is_err() {
        child.kill()?;
    }
    let status = child.wait()?;
    log::trace!("{SCUTIL}: {status}");
    answer
}

/// Reads what is answered, to its end.
fn read(mut answer: impl Read + AsRawFd) -> io::Result<String> {
    let mut octets = Vec::new();
    let mut buffer = [0; 4096];
    while octets.len() < LONGEST {
        let mut watched = libc::pollfd { fd: answer.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the pointer is to one live pollfd, as the count says.
        match unsafe { libc::poll(&raw mut watched, 1, PATIENCE) } {
            0 => return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{SCUTIL} does not answer"))),
            1.. => {}
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            },
        }
        match answer.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => octets.extend(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(String::from_utf8_lossy(&octets).into_owned())
}
