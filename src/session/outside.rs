//! What of a session speaks to the outside: the control socket, the metrics, the service manager; and what follows on this machine when somebody
//! changes the proxies over the control socket.

use super::device::Machine;
use super::setup::{Locals, distinct_addresses, machine};
use super::{RunError, notify};
use crate::config::Config;
use crate::control::{self, Surroundings};
use crate::driver::{Clock, EgressBinding, Service};
use crate::engine::Engine;
use crate::host::{Applied, LocalProxy, RunDir};
use crate::tun::Tun;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;

/// The services of a run on the device of `machine`.
///
/// # Errors
///
/// A socket that was asked for cannot be had. The control socket that nobody asked for is done without.
pub(super) fn services(
    config: &Config,
    machine_of: &Machine,
    locals: &Locals,
    binding: &EgressBinding,
    clock: Clock,
) -> Result<Vec<Box<dyn Service<Tun>>>, RunError> {
    let mut services: Vec<Box<dyn Service<Tun>>> = Vec::new();
    let name = machine_of.name();
    let follow = Box::new(Follow {
        applied: machine_of.applied(),
        device: name.to_owned(),
        locals: (config.host.local_proxy && !config.host.no_route).then(|| Rc::clone(locals)),
    });
    let asked = config.control.as_ref().map(PathBuf::from);
    let path = asked.clone().unwrap_or_else(|| RunDir::standard().control_socket(name));
    match (control::service(&path, follow, clock.now()), asked) {
        (Ok(service), _) => services.push(service),
        (Err(error), None) => {
            log::warn!("no control socket: {}: {error}; `ztun status` will not work", path.display());
        }
        (Err(error), Some(_)) => {
            let what = format!("cannot listen at the control socket {}", path.display());
            return Err(machine(&what, "another --control, in a directory that is there")(error));
        }
    }
    if let Some(addr) = config.metrics {
        let service = control::metrics_service(addr, binding.mark, clock.now());
        let what = format!("cannot serve metrics at {addr}");
        services.push(service.map_err(machine(&what, "another --metrics, with an address of this machine"))?);
    }
    services.extend(notify::service(clock.now()));
    Ok(services)
}

/// What follows a change of the proxies.
struct Follow {
    applied: Option<Rc<RefCell<Applied>>>,
    device: String,
    /// Local proxies that are told flow by flow; `None` where none are to be.
    locals: Option<Locals>,
}

impl Surroundings for Follow {
    fn proxies_changed(&mut self, proxies: &[SocketAddr], engine: &mut Engine) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(applied) = &self.applied {
            let mut applied = applied.borrow_mut();
            // The user whose flows a rule keeps outside stays so: flows through the proxy before may live on.
            applied.follow_proxies(&distinct_addresses(proxies));
            if let Err(error) = applied.refresh(&self.device) {
                warnings.push(format!("the routes do not follow the proxies: {error}"));
            }
        }
        if let Some(locals) = &self.locals {
            let mut locals = locals.borrow_mut();
            for proxy in proxies {
                match LocalProxy::find(*proxy) {
                    // Looked for anew: the one that is known may serve another address.
                    Ok(Some(local)) => {
                        if !local.is_running() {
                            warnings.push(format!("nobody listens at {proxy} yet"));
                        }
                        locals.push(local);
                    }
                    Ok(None) => {}
                    Err(error) => warnings.push(format!(
                        "cannot look for the process of {proxy}: if it is on this machine, its own connections may come back: {error}"
                    )),
                }
            }
            // One for each address; the latest is the one that was found just now.
            let mut seen = Vec::new();
            locals.reverse();
            locals.retain(|local| {
                let new = !seen.contains(&local.listen());
                seen.push(local.listen());
                new
            });
            if !locals.is_empty() {
                engine.identify_flows();
            }
        }
        warnings
    }
}
