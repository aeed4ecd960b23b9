//! One run of the router on this machine: start, run, stop, in order.
//!
//! Start: signals are taken over first, so that one that comes during set-up is not lost; then the local proxy is looked for, the TUN
//! opened, the machine changed (journalled by `host`), and the loop built. `ready` is said when traffic flows.
//!
//! Stop: the loop ends its flows and closes its sockets, then the host changes are undone, then the device goes. A step that fails
//! does not skip the next.

use crate::config::Config;
use crate::driver::{Clock, Driver, EgressBinding, Exit, Owner, Parts, Signals, limits};
use crate::engine::Engine;
use crate::host::{self, HostError};
use crate::host::owner::LocalProxy;
use crate::outbound::rule::Proto;
use crate::tun::{self, Device};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

/// Why a run failed.
#[derive(Debug)]
pub enum RunError {
    /// The machine refuses what the router needs: privilege, device, interface.
    Machine {
        /// What was being done.
        what: String,
        /// The system's words.
        source: io::Error,
        /// What to try.
        hint: String,
    },
    /// Routes, rules or addresses could not be set.
    Host(HostError),
    /// The loop failed while running.
    Loop(io::Error),
    /// `--require-proxy`, and no proxy answers.
    Proxy(String),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Machine { what, .. } => write!(f, "{what}"),
            RunError::Host(error) => error.fmt(f),
            RunError::Loop(_) => write!(f, "the event loop failed"),
            RunError::Proxy(why) => write!(f, "no proxy can be used: {why}"),
        }
    }
}

impl std::error::Error for RunError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            RunError::Machine { source, .. } | RunError::Loop(source) => Some(source),
            RunError::Host(error) => Some(error),
            RunError::Proxy(_) => None,
        }
    }
}

impl Owner for LocalProxy {
    fn owns(&mut self, proto: Proto, local: SocketAddr, remote: SocketAddr) -> bool {
        LocalProxy::owns(self, proto, local, remote)
    }
}
