//! What of a session speaks to the outside: the control socket, the metrics, the service manager; and what follows on this machine when somebody
//! changes the proxies over the control socket.

use super::device::Machine;
use super::setup::{Locals, distinct_addresses, machine};
use super::{RunError, notify};
use crate::config::Config;
use crate::control::{self, Listener, Surroundings};
use crate::driver::{Clock, EgressBinding, Service};
use crate::engine::Engine;
use crate::host::{Applied, LocalProxy, RunDir};
use crate::tun::Tun;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;

/// What was asked for by name, before anything on the machine is changed: a socket that cannot be had is an error then.
pub(super) struct Asked {
    control: Option<Listener>,
    metrics: Option<Box<dyn Service<Tun>>>,
}

impl Asked {
    /// Listens where `--control` and `--metrics` say.
    ///
    /// # Errors
    ///
    /// A socket that was asked for cannot be had.
    pub(super) fn listen(config: &Config, binding: &EgressBinding, clock: Clock) -> Result<Asked, RunError> {
        let mut asked = Asked { control: None, metrics: None };
        if let Some(path) = &config.control {
            let what = format!("cannot listen at the control socket {path}");
            let remedy = "another --control, in a directory that is there";
            asked.control = Some(Listener::bind(Path::new(path)).map_err(machine(&what, remedy))?);
        }
        if let Some(addr) = config.metrics {
            let service = control::metrics_service(addr, binding.mark, clock.now());
            let what = format!("cannot serve metrics at {addr}");
            let remedy = "another --metrics, with an address of this machine and a port that is free";
            asked.metrics = Some(service.map_err(machine(&what, remedy))?);
        }
        Ok(asked)
    }

    /// The services of a run on the device of `machine`. The control socket that nobody asked for is done without when it cannot be had, and the
    /// service manager is told nothing, inside another program.
    pub(super) fn services(
        self,
        config: &Config,
        machine: &Machine,
        locals: &Locals,
        embedded: bool,
        clock: Clock,
    ) -> Vec<Box<dyn Service<Tun>>> {
        let standard = || {
            let path = RunDir::standard().control_socket(machine.name());
            let refused = |error| {
                log::warn!(
                    "no control socket, so `ztun status` has nobody to ask: {}: {error}",
                    path.display()
                );
            };
            Listener::bind(&path).map_err(refused).ok()
        };
        let listener = if embedded { self.control } else { self.control.or_else(standard) };
        let mut services: Vec<Box<dyn Service<Tun>>> = Vec::new();
        if let Some(listener) = listener {
            let follow = Follow {
                applied: machine.applied(),
                device: machine.name().to_owned(),
                locals: (config.host.local_proxy && !config.host.no_route).then(|| Rc::clone(locals)),
            };
            services.push(control::service(listener, Box::new(follow), clock.now()));
        }
        services.extend(self.metrics);
        if !embedded {
            services.extend(notify::service(clock.now()));
        }
        services
    }
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
