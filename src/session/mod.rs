//! One run of the router on this machine: start, run, stop, in order.
//!
//! # Theory of operation
//!
//! **Start.** Signals are taken over first: one that comes during the set-up is kept and ends the run as soon as the loop begins. Then
//! the proxy's processes are looked for if it is on this machine, the device is opened, the machine changed (journalled by `host`), and
//! the loop built. `ready` is said when traffic flows.
//!
//! **Stop.** The loop ends its flows and closes its sockets; then the changes to the machine are undone, the latest first; then the device goes.
//! A step that fails does not skip the next. A panic takes the same way, by the drops of the same values.

#[cfg(target_os = "linux")]
pub mod exec;
mod notify;
mod probe;

use crate::config::Config;
use crate::driver::{Clock, Driver, EgressBinding, Exit, Owner, Parts, Signals, limits};
use crate::engine::Engine;
use crate::host::{self, HostError, LocalProxy};
use crate::outbound::rule::Proto;
use crate::tun::{Device, OpenError, Tun};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;

/// How a run that was asked to stop has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Everything was closed and undone in order.
    Stopped,
    /// It was asked twice: flows were cut off; the machine is restored all the same.
    Forced,
}

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
        remedy: String,
    },
    /// `--require-proxy`, and no proxy answers.
    Proxy {
        /// What each of them said.
        why: String,
    },
    /// The loop failed while running.
    Loop(io::Error),
    /// A process of ours ended with this status; it has said why.
    Child(u8),
    /// Standard output is closed.
    Output(io::Error),
    /// The run is over, but something that it changed could not be undone.
    Cleanup {
        /// What is left.
        report: String,
    },
}

impl RunError {
    /// What the user can try.
    pub fn remedy(&self) -> Option<&str> {
        match self {
            RunError::Machine { remedy, .. } => Some(remedy),
            RunError::Proxy { .. } => Some(
                "check the address, and user and password; without --require-proxy ztun waits for the proxy",
            ),
            RunError::Child(_) | RunError::Output(_) => None,
            RunError::Loop(_) => {
                Some("start again; if the device was deleted by another program, stop that one")
            }
            RunError::Cleanup { .. } => Some("run `sudo ztun restore`"),
        }
    }

    /// The exit status of the contract of the command line.
    pub fn exit_code(&self) -> u8 {
        match self {
            RunError::Loop(_) | RunError::Cleanup { .. } | RunError::Output(_) => 1,
            RunError::Child(code) => *code,
            RunError::Machine { .. } => 3,
            RunError::Proxy { .. } => 4,
        }
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Machine { what, .. } => f.write_str(what),
            RunError::Proxy { why } => write!(f, "no proxy can be used: {why}"),
            RunError::Loop(_) => f.write_str("the event loop failed"),
            RunError::Child(code) => write!(f, "a process of this run ended with status {code}"),
            RunError::Output(_) => f.write_str("cannot write to standard output"),
            RunError::Cleanup { report } => write!(f, "not everything could be undone: {report}"),
        }
    }
}

impl std::error::Error for RunError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            RunError::Machine { source, .. } | RunError::Loop(source) | RunError::Output(source) => {
                Some(source)
            }
            RunError::Proxy { .. } | RunError::Cleanup { .. } | RunError::Child(_) => None,
        }
    }
}

impl From<HostError> for RunError {
    fn from(error: HostError) -> RunError {
        RunError::Machine { what: error.what, source: error.source, remedy: error.remedy }
    }
}

impl From<OpenError> for RunError {
    fn from(error: OpenError) -> RunError {
        RunError::Machine { what: error.what, source: error.source, remedy: error.remedy }
    }
}

fn machine(what: &str, remedy: &str) -> impl FnOnce(io::Error) -> RunError {
    let (what, remedy) = (what.to_owned(), remedy.to_owned());
    move |source| RunError::Machine { what, source, remedy }
}

/// Runs the router until it is asked to stop.
///
/// # Errors
///
/// See [`RunError`]. Whatever it is, what had been changed on the machine has been undone, but for [`RunError::Cleanup`].
pub fn run(config: &Config) -> Result<Ended, RunError> {
    let signals = take_signals()?;
    raise_limits();
    let binding = binding(config)?;
    if config.require_proxy {
        probe::any(&config.engine.proxies, &binding, config.engine.connect_timeout)
            .map_err(|why| RunError::Proxy { why })?;
    }
    let locals = local_proxies(config)?;
    let device = open_device(config)?;
    let name = device.name().to_owned();
    let mut applied = host::up(&config.host, &name, &proxy_addresses(config), locals.first())?;
    let owner = owner(config, locals);
    let engine = engine(config, &device, owner.is_some())?;
    let parts = Parts { device, engine, binding, owner, watch: None, services: Vec::new() };
    let mut driver = build(parts, signals)?;
    log::info!("ready: {}", routed(config, &name));
    notify::ready();
    let result = driver.run();
    notify::stopping();
    log_totals(driver.engine());
    let (services, device) = driver.into_parts();
    drop(services);
    let report = applied.down();
    drop(device);
    log::info!("{}", report.summary());
    let ended = match result.map_err(RunError::Loop)? {
        Exit::Stopped | Exit::Watched => Ended::Stopped,
        Exit::Forced => Ended::Forced,
    };
    if report.is_ok() { Ok(ended) } else { Err(RunError::Cleanup { report: report.to_string() }) }
}

/// What [`run`] would change on the machine, and the undo of each change; nothing is changed and no privilege is needed.
pub fn dry_run(config: &Config) -> Result<String, RunError> {
    egress_index(config)?;
    let locals = local_proxies(config)?;
    let changes = host::dry_run(&config.host, &config.host.tun, &proxy_addresses(config), locals.first())?;
    Ok(match config.host.tun_fd {
        Some(_) => changes,
        None => format!(
            "device add {0}\n    undo: device del {0}, by the kernel when ztun ends\n{changes}",
            config.host.tun
        ),
    })
}

/// Signals are taken over before anything is changed.
pub(crate) fn take_signals() -> Result<Signals, RunError> {
    Signals::new()
        .map_err(machine("cannot take over the signals", "raise the limit on open files (`ulimit -n`)"))
}

/// Raises the limit on descriptors as far as the system lets it.
pub(crate) fn raise_limits() {
    if let Err(error) = limits::raise_open_files() {
        log::warn!("cannot raise the limit on open files: {error}");
    }
}

/// UDP mappings that leave half of `limit` descriptors to TCP: a mapping through the proxy has two, its datagrams' and its connection's.
/// So a spray of datagrams evicts old mappings instead of eating up what new connections need.
fn most_mappings(max_udp: usize, limit: u64) -> usize {
    let fitting = usize::try_from(limit / 4).unwrap_or(usize::MAX).max(1);
    if fitting < max_udp {
        log::info!(
            "{limit} open files are allowed: {fitting} UDP mappings at once (raise the limit with ulimit -Hn)"
        );
    }
    max_udp.min(fitting)
}

/// The engine for `device`.
pub(crate) fn engine(config: &Config, device: &impl Device, identify: bool) -> Result<Engine, RunError> {
    let seed =
        limits::seed().map_err(machine("cannot read randomness from the system", "look at /dev/urandom"))?;
    let mut engine = config.engine.clone();
    // Raised already; a system that cannot tell has no bound that we know.
    engine.max_udp = most_mappings(engine.max_udp, limits::raise_open_files().unwrap_or(u64::MAX));
    engine.stack.mtu = device.mtu();
    engine.stack.offload = device.offload();
    engine.stack.broadcasts = broadcasts(config);
    Ok(Engine::new(engine, identify, seed))
}

/// The loop out of its parts.
pub(crate) fn build<D: Device>(parts: Parts<D>, signals: Signals) -> Result<Driver<D>, RunError> {
    Driver::new(parts, signals, Clock::new())
        .map_err(machine("cannot build the event loop", "raise the limit on open files (`ulimit -n`)"))
}

/// Totals of a run, one line.
pub(crate) fn log_totals(engine: &Engine) {
    let stats = engine.stats();
    log::info!(
        "carried {} octets up and {} down, {} datagrams out and {} in; {} flows refused, {} dials failed",
        stats.upload_octets,
        stats.download_octets,
        stats.datagrams_out,
        stats.datagrams_in,
        stats.refused,
        stats.dials_failed
    );
    log::debug!("{stats:?}");
}

fn open_device(config: &Config) -> Result<Tun, RunError> {
    let host = &config.host;
    Ok(match host.tun_fd {
        Some(fd) => Tun::from_raw(fd, host.mtu)?,
        None => Tun::open(&host.tun, host.mtu, host.offload)?,
    })
}

fn routed(config: &Config, device: &str) -> String {
    let way = if config.host.no_route { "no routes set, " } else { "" };
    format!("{way}{device} leads to socks5 {}", proxies(config))
}

fn proxies(config: &Config) -> String {
    let proxies: Vec<String> = config.engine.proxies.iter().map(|proxy| proxy.addr.to_string()).collect();
    proxies.join(", ")
}

/// The index of the interface that was asked for.
fn egress_index(config: &Config) -> Result<Option<NonZeroU32>, RunError> {
    let Some(name) = &config.host.interface else { return Ok(None) };
    let index = host::interface_index(name)
        .map_err(machine(&format!("cannot use the interface {name}"), "see `ip link` for the names"))?;
    Ok(NonZeroU32::new(index))
}

/// How ztun's own sockets leave: with the mark that the routing rules know, and by the interface that was asked for.
fn binding(config: &Config) -> Result<EgressBinding, RunError> {
    let interface = egress_index(config)?;
    let binding = EgressBinding { mark: Some(config.host.mark), interface };
    match binding.check() {
        Ok(()) => Ok(binding),
        // Without routes of ours nothing depends on the mark.
        Err(error) if config.host.no_route && error.kind() == io::ErrorKind::PermissionDenied => {
            log::debug!("sockets are not marked: {error}");
            Ok(EgressBinding { mark: None, interface })
        }
        Err(error) => Err(machine("cannot mark sockets", "run as root or with CAP_NET_ADMIN")(error)),
    }
}

fn proxy_addresses(config: &Config) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for proxy in &config.engine.proxies {
        let addr = proxy.addr.ip().to_canonical();
        if !addresses.contains(&addr) {
            addresses.push(addr);
        }
    }
    addresses
}

/// The proxies that run on this machine; one that a routing rule keeps outside comes first.
fn local_proxies(config: &Config) -> Result<Vec<LocalProxy>, RunError> {
    let mut locals = Vec::new();
    if !config.host.local_proxy || config.host.no_route {
        return Ok(locals);
    }
    for proxy in &config.engine.proxies {
        let found = LocalProxy::find(proxy.addr).map_err(machine(
            "cannot look for the proxy's process on this machine",
            "the kernel needs CONFIG_INET_DIAG; --local-proxy off goes without, for a proxy that keeps itself outside",
        ))?;
        let Some(local) = found else { continue };
        if !local.is_running() {
            log::warn!("nobody listens at {} yet: its process is looked for when flows come", proxy.addr);
        }
        locals.push(local);
    }
    locals.sort_by_key(|local| local.exclusive_uid().is_none());
    Ok(locals)
}

/// Who tells the flows of local proxies; nobody when a routing rule does.
fn owner(config: &Config, locals: Vec<LocalProxy>) -> Option<Box<dyn Owner>> {
    let by_rule = usize::from(locals.first().is_some_and(|local| local.exclusive_uid().is_some()));
    // One that nobody runs yet has been spoken of already.
    for (index, local) in locals.iter().enumerate().filter(|(_, local)| local.is_running()) {
        let pids: Vec<String> = local.pids().map(|pid| pid.to_string()).collect();
        let how = if index < by_rule { "by its user" } else { "flow by flow" };
        log::info!(
            "the proxy on this machine (process {}) is kept outside the tunnel {how}",
            pids.join(", ")
        );
    }
    let rest: Vec<LocalProxy> = locals.into_iter().skip(by_rule).collect();
    let wanted = !rest.is_empty() && !config.host.no_route;
    wanted.then(|| Box::new(LocalProxies(rest)) as Box<dyn Owner>)
}

/// All local proxies that are told flow by flow.
struct LocalProxies(Vec<LocalProxy>);

impl Owner for LocalProxies {
    fn owns(&mut self, proto: Proto, local: SocketAddr, remote: SocketAddr) -> bool {
        self.0.iter_mut().any(|proxy| proxy.owns(proto, local, remote))
    }
}

/// The broadcast addresses of the device's IPv4 networks.
fn broadcasts(config: &Config) -> Vec<IpAddr> {
    let broadcast = |net: &crate::config::Cidr| match net.addr {
        // A network of one or two addresses has none (RFC 3021).
        IpAddr::V4(addr) if net.prefix < 31 => {
            let hosts = u32::MAX.checked_shr(net.prefix.into()).unwrap_or(0);
            Some(IpAddr::V4(Ipv4Addr::from_bits(addr.to_bits() | hosts)))
        }
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    };
    config.host.addresses.iter().filter_map(broadcast).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_leave_half_of_the_descriptors_to_connections() {
        assert_eq!(most_mappings(16_384, 1 << 20), 16_384);
        assert_eq!(most_mappings(16_384, 20_000), 5_000);
        assert_eq!(most_mappings(16_384, 0), 1);
        assert_eq!(most_mappings(10, u64::MAX), 10);
    }

    #[test]
    fn broadcasts_are_those_of_networks_that_have_one() {
        let mut config = Config::new(Default::default(), Default::default());
        assert_eq!(broadcasts(&config), ["198.18.255.255".parse::<IpAddr>().unwrap()]);
        config.host.addresses =
            ["10.0.0.1/31", "10.0.0.3/32", "10.1.2.3/0"].map(|net| net.parse().unwrap()).to_vec();
        assert_eq!(broadcasts(&config), ["255.255.255.255".parse::<IpAddr>().unwrap()]);
    }
}
