//! The router as a session's work: sets up, runs the loop, and takes everything down in order.

use super::cleanup::{Cleanup, CleanupItem, CleanupReport, CleanupResult, Descriptors};
use super::device::Machine;
use super::embedded::{Embedded, Embedding};
use super::keeper::Keeper;
use super::names::Names;
use super::outside::Asked;
use super::setup::{self, binding, local_proxies, log_totals, owner, routed};
use super::state::{Work, nested};
use super::watchdog;
use super::{Ended, RunError, network, notify, probe, replace};
use crate::config::Config;
use crate::driver::{Clock, Driver, EgressBinding, Exit, Parts, Service, Signals, Waiter};
use crate::engine::Engine;
use crate::host::PROTOCOL;
use crate::host::{self, LocalProxy};
use crate::monitor::Own;
use crate::time::Duration;
use crate::tun::lifecycle::{LifecycleError, ManagedTun, Options};
use crate::tun::{Device, Tun};
use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::rc::Rc;

/// How long everything may take from the moment somebody asked to stop, L-6.
const SIGNAL_LIMIT: Duration = Duration::from_secs(3);

/// The router of one configuration.
#[derive(Debug)]
pub struct Router {
    config: Config,
    clock: Clock,
    /// The program that it runs inside of, if it does.
    embedded: Option<Embedded>,
}

/// What a set-up has made.
struct SetUp {
    driver: Driver<Tun>,
    tun: Rc<RefCell<ManagedTun<Machine>>>,
    /// Why the keeper has given the device up.
    lost: Rc<RefCell<Option<io::Error>>>,
}

impl Router {
    /// The router of `config`.
    pub fn new(config: Config, clock: Clock) -> Router {
        Router { config, clock, embedded: None }
    }

    /// The router of `config` inside another program, on the device of that: nothing outside of the run is changed.
    pub fn embedded(mut config: Config, embedding: Embedding, clock: Clock) -> Router {
        let embedded = Some(Embedded::new(&mut config, embedding));
        Router { config, clock, embedded }
    }

    /// Everything up to the point where traffic flows. `None` when somebody asked to stop meanwhile: nothing is left then.
    fn set_up(&self, signals: Signals) -> Result<Option<SetUp>, RunError> {
        let config = &self.config;
        let handed = self.embedded.as_ref().map(Embedded::enter).transpose()?;
        let waiter = || signals.waiter().map_err(setup::machine("cannot watch for signals", LIMIT));
        let asked = waiter()?;
        let binding = binding(config, self.embedded.as_ref())?;
        if config.require_proxy {
            probe::any(&config.engine.proxies, &binding, config.engine.connect_timeout)
                .map_err(|why| RunError::Proxy { why })?;
        }
        let mut locals = local_proxies(config)?;
        let first = if locals.is_empty() { None } else { Some(locals.remove(0)) };
        if stop_asked(&asked) {
            return Ok(None);
        }
        // A device that was handed to us has a name of its own, and nobody else has it.
        let host = &config.host;
        if host.tun_fd.is_none() && !replace::clear(&host.tun, config.replace, host.kill_switch)? {
            return Ok(None);
        }
        // After the one that is replaced has let go of them, and before anything is changed.
        let outside = Asked::listen(config, &binding, self.clock)?;
        // Before they are changed.
        let name_servers = host::name_servers();
        let machine = Machine::new(config, handed, first, self.clock, waiter()?);
        let tun = Rc::new(RefCell::new(ManagedTun::new(machine, Options::default())));
        let device = match tun.borrow_mut().initialize() {
            Ok(device) => device,
            Err(LifecycleError::Cancelled) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if let Ok(machine) = tun.borrow_mut().backend() {
            locals.splice(..0, machine.take_local());
        }
        let built = self.build(device, &tun, locals, outside, binding, signals, name_servers);
        if built.is_err() {
            // Not left to a drop, which keeps a kill switch in place.
            if let Err(error) = tun.borrow_mut().force_cleanup(None) {
                log::error!("{error}");
            }
        }
        built.map(Some)
    }

    /// The loop on a device that is up.
    fn build(
        &self,
        device: Tun,
        tun: &Rc<RefCell<ManagedTun<Machine>>>,
        mut locals: Vec<LocalProxy>,
        outside: Asked,
        binding: EgressBinding,
        signals: Signals,
        name_servers: Vec<IpAddr>,
    ) -> Result<SetUp, RunError> {
        let mut config = self.config.clone();
        config.engine.dns_machine = name_servers;
        let config = &config;
        if config.reset_existing {
            setup::reset_existing(config, device.name(), &mut locals)?;
        }
        let locals = setup::told_by_flow(config, locals);
        let identify = !locals.borrow().is_empty();
        let mut engine = setup::engine(config, &device, identify)?;
        let lost = Rc::new(RefCell::new(None));
        let mut services = self.services(tun, &device, &lost, &mut engine);
        let embedded = self.embedded.as_ref();
        services.extend(outside.services(
            config,
            tun.borrow_mut().machine(),
            &locals,
            embedded.is_some(),
            self.clock,
        ));
        services.extend(embedded.and_then(|embedded| embedded.inquiry.service(self.clock.now())));
        let owner = Some(owner(&locals));
        let parts = Parts { device, engine, binding, owner, watch: None, services };
        let driver = setup::build(parts, signals, self.clock)?;
        Ok(SetUp { driver, tun: Rc::clone(tun), lost })
    }

    /// What the loop drives besides packets and sockets.
    fn services(
        &self,
        tun: &Rc<RefCell<ManagedTun<Machine>>>,
        device: &Tun,
        lost: &Rc<RefCell<Option<io::Error>>>,
        engine: &mut Engine,
    ) -> Vec<Box<dyn Service<Tun>>> {
        let mut services: Vec<Box<dyn Service<Tun>>> = Vec::new();
        if tun.borrow_mut().backend().is_ok_and(|machine| machine.renewable()) {
            services.push(Box::new(Keeper::new(Rc::clone(tun), device, Rc::clone(lost), self.clock)));
        }
        let applied = tun.borrow_mut().machine().applied();
        if let Some(applied) = &applied {
            services.push(Box::new(Names::new(Rc::clone(applied), self.clock)));
        }
        let own = Own { device: device.name().to_owned(), protocol: PROTOCOL };
        let egress = setup::egress(&self.config, self.embedded.as_ref());
        let word = self.embedded.as_ref().and_then(Embedded::take_network);
        if let Some(network) = network::follow(own, word, applied, egress, engine, self.clock.now()) {
            services.push(Box::new(network));
        }
        services
    }

    /// Closes and undoes everything, in order.
    fn take_down(&self, set_up: SetUp, exit: Option<Exit>, before: &Descriptors) -> CleanupReport {
        let SetUp { driver, tun, lost: _ } = set_up;
        let mut cleanup = Cleanup::begin(self.clock);
        let now = self.clock.now();
        let limit = nested(Options::default().cleanup_timeout, now + SIGNAL_LIMIT, now);
        let closed = driver.closed();
        let flows = if exit == Some(Exit::Forced) || closed.reset > 0 {
            CleanupResult::Forced
        } else {
            CleanupResult::Ok
        };
        cleanup.step("udp", &format!("{} associations", closed.associations), || CleanupResult::Ok);
        cleanup.step("tcp", &format!("{} flows, {} reset", closed.tcp_flows, closed.reset), || flows);
        let mut parts = None;
        cleanup.step("proxy", "its connections", || {
            parts = Some(driver.into_parts());
            CleanupResult::Ok
        });
        let (services, device) = parts.unwrap_or_default();
        cleanup.step("control", &format!("{} services", services.len()), || {
            drop(services);
            CleanupResult::Ok
        });
        let begun = self.clock.now();
        let (cleaned, items, name) = {
            let mut tun = tun.borrow_mut();
            let cleaned = match device {
                Some(device) => tun.cleanup(device, limit),
                None => tun.force_cleanup(None),
            };
            (cleaned, tun.machine().take_items(), tun.machine().name().to_owned())
        };
        // The last of it: with the changes go their locks.
        drop(tun);
        for item in items {
            cleanup.add(item);
        }
        let result =
            cleaned.map_or_else(|error| CleanupResult::Error(error.to_string()), |()| CleanupResult::Ok);
        let ms = self.clock.now().since(begun).as_millis().try_into().unwrap_or(u64::MAX);
        cleanup.add(CleanupItem { kind: "device", id: name, result, ms });
        let ports = self.config.metrics.filter(|addr| addr.port() != 0 && TcpListener::bind(addr).is_err());
        cleanup.finish(before.leaked(), ports.into_iter().count())
    }
}

const LIMIT: &str = "raise the limit on open files (`ulimit -n`)";

fn stop_asked(waiter: &Waiter) -> bool {
    matches!(waiter.wait(Duration::ZERO), Ok(true))
}

impl Work for Router {
    type End = Result<Ended, RunError>;

    fn run(&self, signals: Signals, ready: &dyn Fn()) -> (Result<Ended, RunError>, CleanupReport) {
        let before = Descriptors::open();
        let mut set_up = match self.set_up(signals) {
            Ok(Some(set_up)) => set_up,
            Ok(None) => return (Ok(Ended::Stopped), CleanupReport::default()),
            Err(error) => return (Err(error), CleanupReport::default()),
        };
        let name = set_up.tun.borrow_mut().machine().name().to_owned();
        log::info!("ready: {}", routed(&self.config, &name));
        let alone = self.embedded.is_none();
        if alone {
            notify::ready();
        }
        ready();
        let result = set_up.driver.run();
        if alone {
            notify::stopping();
        }
        log_totals(set_up.driver.engine());
        let lost = set_up.lost.borrow_mut().take();
        let report = self.take_down(set_up, result.as_ref().ok().copied(), &before);
        log::info!("{}", report.summary());
        let ended = match (result, lost) {
            (Err(error), _) | (Ok(_), Some(error)) => Err(RunError::Loop(error)),
            (Ok(Exit::Stopped | Exit::Watched), None) => Ok(Ended::Stopped),
            (Ok(Exit::Forced), None) => Ok(Ended::Forced),
        };
        let ended = match ended {
            Ok(_) if !report.is_ok() => Err(RunError::Cleanup { report: report.to_string() }),
            ended => ended,
        };
        (ended, report)
    }

    fn force(&self) -> CleanupReport {
        let Some(embedded) = &self.embedded else { return watchdog::restore(&self.config.host, self.clock) };
        // The machine was not changed; only whoever protects sockets can be let go.
        if let Some(protect) = &embedded.protect {
            protect.revoke();
        }
        CleanupReport::default()
    }
}
