//! The device of a run, and what leads into it: what the states of [`ManagedTun`](crate::tun::lifecycle::ManagedTun) do to this machine.

use super::cleanup::{CleanupItem, CleanupResult};
use super::setup::proxy_addresses;
use crate::config::{Config, OffloadLevel};
use crate::driver::{Clock, Waiter};
use crate::host::{self, Applied, HostError, LocalProxy};
use crate::time::{Duration, Instant};
use crate::tun::lifecycle::{Backend, StepError};
use crate::tun::{Device, Handed, OpenError, Tun};
use std::cell::RefCell;
use std::io;
use std::rc::Rc;

/// This machine.
#[derive(Debug)]
pub(super) struct Machine {
    config: Config,
    /// A proxy of this machine that a routing rule keeps outside, if one does.
    local: Option<LocalProxy>,
    clock: Clock,
    waiter: Waiter,
    applied: Option<Rc<RefCell<Applied>>>,
    name: String,
    /// The kernel's number of the device: another one under the same name is another device.
    index: Option<u32>,
    /// What takes the device's place while it is gone.
    stand_in: Option<Tun>,
    /// What became of each change, for the report.
    items: Vec<CleanupItem>,
    /// The device of the program that this is a library of: the machine is that program's business.
    handed: Option<Handed>,
}

impl Machine {
    /// Nothing is done yet.
    pub(super) fn new(
        config: &Config,
        handed: Option<Handed>,
        local: Option<LocalProxy>,
        clock: Clock,
        waiter: Waiter,
    ) -> Machine {
        Machine {
            name: config.host.tun.clone(),
            config: config.clone(),
            local,
            clock,
            waiter,
            applied: None,
            index: None,
            stand_in: None,
            items: Vec::new(),
            handed,
        }
    }

    /// The changes, for whoever makes them follow the network.
    pub(super) fn applied(&self) -> Option<Rc<RefCell<Applied>>> {
        self.applied.clone()
    }

    /// The device's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether a device that is gone can be made again: one that was handed to us cannot.
    pub(super) fn renewable(&self) -> bool {
        self.config.host.tun_fd.is_none()
    }

    /// What became of each change since the last call.
    pub(super) fn take_items(&mut self) -> Vec<CleanupItem> {
        core::mem::take(&mut self.items)
    }

    /// The local proxy again, for who tells its flows.
    pub(super) fn take_local(&mut self) -> Option<LocalProxy> {
        self.local.take()
    }

    /// Has a second device ready for when the first is gone. Without it the run is the same but for that moment.
    fn stand_by(&mut self, applied: &Applied) {
        let host = &self.config.host;
        if host.no_route || host.kill_switch || !self.renewable() {
            return;
        }
        let Some(name) = host::stand_in_name(&self.name) else { return };
        let made = Tun::open(&name, host.mtu, OffloadLevel::Off).map_err(|error| error.to_string()).and_then(
            |tun| {
                applied.stand_in(tun.name()).map_err(|error| error.to_string())?;
                Ok(tun)
            },
        );
        match made {
            Ok(tun) => self.stand_in = Some(tun),
            Err(error) => log::warn!(
                "no device to stand in for {}: {error}; if somebody deletes that one, packets pass the tunnel by until it is made anew",
                self.name
            ),
        }
    }

    /// Has the second device again where somebody has taken away that, or what leads into it.
    pub(super) fn stand_by_again(&mut self) {
        let Some(applied) = self.applied.clone() else { return };
        let applied = applied.borrow();
        if let Some(tun) = &self.stand_in
            && !applied.is_stood_in(tun.name()).unwrap_or(true)
        {
            log::info!("{} does not stand in for {} any more: made anew", tun.name(), self.name);
            self.stand_in = None;
            self.stand_by(&applied);
        }
    }

    /// Whether the kernel still has the device, under the name that it had.
    fn is_there(&self) -> io::Result<bool> {
        Ok(self.index.is_some() && host::find_interface(&self.name)? == self.index)
    }

    fn remember(&mut self, device: &Tun) {
        device.name().clone_into(&mut self.name);
        self.index = host::interface_index(&self.name).ok();
    }
}

impl Backend for Machine {
    type Device = Tun;

    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn pause(&mut self, pause: Duration) -> bool {
        matches!(self.waiter.wait(pause), Ok(false))
    }

    fn open(&mut self) -> Result<Tun, StepError> {
        let host = &self.config.host;
        if let Some(handed) = &self.handed {
            let copy = handed.try_clone().map_err(|source| StepError {
                what: "cannot duplicate the device's descriptor".into(),
                source,
                remedy: "raise the limit on open files (`ulimit -n`)".into(),
            })?;
            let name = |error: OpenError| match host.tun_fd {
                // By the number that the program knows, not by that of the copy.
                Some(fd) => StepError {
                    what: format!("cannot use descriptor {fd} as a TUN device"),
                    ..open_error(error)
                },
                None => open_error(error),
            };
            return Tun::from_fd(copy, host.mtu, host.offload).map_err(name);
        }
        let opened = match host.tun_fd {
            Some(fd) => Tun::from_raw(fd, host.mtu, host.offload),
            None => Tun::open(&host.tun, host.mtu, host.offload),
        };
        opened.map_err(open_error)
    }

    fn configure(&mut self, device: &Tun) -> Result<(), StepError> {
        self.remember(device);
        if self.handed.is_some() {
            return Ok(());
        }
        let proxies = proxy_addresses(&self.config);
        let applied = host::up(&self.config.host, &self.name, &proxies, self.local.as_ref());
        let applied = applied.map_err(host_error)?;
        self.stand_by(&applied);
        self.applied = Some(Rc::new(RefCell::new(applied)));
        Ok(())
    }

    fn reconfigure(&mut self, device: &Tun) -> Result<(), StepError> {
        self.remember(device);
        let Some(applied) = &self.applied else { return Ok(()) };
        applied.borrow_mut().refresh(&self.name).map(drop).map_err(host_error)
    }

    fn unconfigure(&mut self) -> Vec<String> {
        self.stand_in = None;
        let Some(applied) = &self.applied else { return Vec::new() };
        let report = applied.borrow_mut().down();
        let mut failed = report.problems.clone();
        for step in &report.steps {
            if step.result.is_err() {
                failed.push(step.change.to_string());
            }
            self.items.push(CleanupItem::of(step, |outcome| match outcome {
                host::Outcome::Done => CleanupResult::Ok,
                host::Outcome::Already => CleanupResult::Skipped,
            }));
        }
        failed
    }

    fn close(&mut self, _dropped: Tun) {}

    fn left(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        if self.renewable() {
            match self.is_there() {
                Ok(true) => left.push(format!("the device {}", self.name)),
                Ok(false) => {}
                Err(error) => left.push(format!("perhaps the device {}: {error}", self.name)),
            }
        }
        if self.applied.is_none() || self.config.host.no_route {
            return left;
        }
        match host::left_behind() {
            Ok(found) => left.extend(found.iter().map(|undo| format!("what `{undo}` would undo"))),
            Err(error) => left.push(format!("what the kernel did not tell: {error}")),
        }
        left
    }

    fn is_whole(&mut self) -> bool {
        // A machine that cannot be asked for the moment says nothing about the device.
        self.is_there().unwrap_or(true)
    }
}

fn open_error(error: OpenError) -> StepError {
    StepError { what: error.what, source: error.source, remedy: error.remedy }
}

fn host_error(error: HostError) -> StepError {
    StepError { what: error.what, source: error.source, remedy: error.remedy }
}

/// An error of the loop that a device without a successor is.
pub(super) fn gone(name: &str, why: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("the device {name} is gone and cannot be made again: {why}"))
}
