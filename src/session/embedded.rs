//! A router inside another program: what that program hands over, and what a run then leaves alone.
//!
//! The machine is the program's business: it has opened the device, given it addresses and sent traffic into it, and on a phone nobody else could. So
//! such a run changes nothing outside of itself: no addresses, routes and name servers, no limits, privileges and signals of the process, no
//! file and no socket by a name that was not asked for, no word to a service manager.

use super::RunError;
use super::setup::machine;
use crate::config::Config;
use crate::control::Inquiry;
use crate::driver::{Protect, Signals, signals};
use crate::tun::Handed;
use std::sync::{Mutex, PoisonError};

/// What the program hands over to a run.
#[derive(Debug)]
pub struct Embedding {
    /// The device; closed when the run ends.
    pub tun: Handed,
    /// The number by which the program knows it, for errors.
    pub number: i32,
    /// Who has to agree to each socket.
    pub protect: Option<Protect>,
    /// By which the run is asked how it is.
    pub inquiry: Inquiry,
    /// By which the program says that the machine's network is another.
    pub network: Signals,
}

/// What a [`Router`](super::Router) has of it.
#[derive(Debug)]
pub(super) struct Embedded {
    /// Taken by the run, so that it is closed when that ends.
    tun: Mutex<Option<Handed>>,
    pub(super) protect: Option<Protect>,
    pub(super) inquiry: Inquiry,
    network: Mutex<Option<Signals>>,
}

impl Embedded {
    /// Makes `config` that of a run which leaves the machine alone.
    pub(super) fn new(config: &mut Config, embedding: Embedding) -> Embedded {
        let Embedding { tun, number, protect, inquiry, network } = embedding;
        let host = &mut config.host;
        host.tun_fd = Some(number);
        host.no_route = true;
        host.kill_switch = false;
        host.dns = Vec::new();
        config.reset_existing = false;
        Embedded { tun: Mutex::new(Some(tun)), protect, inquiry, network: Mutex::new(Some(network)) }
    }

    /// Makes this thread the run's, and hands over the device.
    ///
    /// # Errors
    ///
    /// It has been taken: a router runs once.
    pub(super) fn enter(&self) -> Result<Handed, RunError> {
        signals::withhold_sigpipe().map_err(machine("cannot put off SIGPIPE", "start again"))?;
        let tun = self.tun.lock().unwrap_or_else(PoisonError::into_inner).take();
        let gone = || std::io::Error::other("it was handed over already");
        tun.ok_or_else(|| machine("cannot use the device a second time", "hand it over again")(gone()))
    }

    /// What the run listens to for a word of the network; once.
    pub(super) fn take_network(&self) -> Option<Signals> {
        self.network.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
