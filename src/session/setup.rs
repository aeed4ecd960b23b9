//! What a run is built from: limits, sockets' way out, the proxy's processes, engine and loop.

use super::RunError;
use super::egress::Egress;
use super::embedded::Embedded;
use crate::config::{Cidr, Config};
use crate::driver::{Clock, Driver, EgressBinding, MARKS, Owner, Parts, Signals, limits};
use crate::engine::Engine;
use crate::host::{self, LocalProxy};
use crate::monitor::{Monitor, Own, SystemMonitor};
use crate::outbound::rule::Proto;
use crate::tun::Device;
use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::rc::Rc;

pub(super) fn machine(what: &str, remedy: &str) -> impl FnOnce(io::Error) -> RunError {
    let (what, remedy) = (what.to_owned(), remedy.to_owned());
    move |source| RunError::Machine { what, source, remedy }
}

/// Raises the limit on descriptors to what the tables need, as far as the system lets it: the limit, where it is known. Before privileges are
/// given up it may go beyond the hard limit.
pub(super) fn raise_limits(config: &Config) -> Option<u64> {
    let engine = &config.engine;
    match limits::raise_open_files(limits::needed(engine.stack.tcp.max_flows, engine.max_udp)) {
        Ok(limit) => Some(limit),
        Err(error) => {
            log::warn!("cannot raise the limit on open files: {error}");
            None
        }
    }
}

/// UDP mappings that leave half of `limit` descriptors to TCP: a mapping through the proxy has two, its datagrams' and its connection's.
/// So a spray of datagrams evicts old mappings instead of eating up what new connections need. Says so when the limit is the bound of
/// anything.
fn most_mappings(max_tcp: usize, max_udp: usize, limit: u64) -> usize {
    let fitting = usize::try_from(limit / 4).unwrap_or(usize::MAX).max(1).min(max_udp);
    let needed = limits::needed(max_tcp, max_udp);
    if limit < needed {
        let tcp = usize::try_from(limit).unwrap_or(usize::MAX).min(max_tcp);
        log::info!(
            "{limit} open files are allowed, {needed} would be needed: at most {tcp} TCP flows without UDP, or {fitting} UDP mappings beside {} \
             (raise the limit with ulimit -Hn, or LimitNOFILE= in a systemd unit)",
            tcp.saturating_sub(2 * fitting)
        );
    }
    fitting
}

/// The engine for `device`.
pub(super) fn engine(config: &Config, device: &impl Device, identify: bool) -> Result<Engine, RunError> {
    let seed =
        limits::seed().map_err(machine("cannot read randomness from the system", "look at /dev/urandom"))?;
    let mut engine = config.engine.clone();
    // Raised already; a system that cannot tell has no bound that we know.
    let limit = limits::open_files().unwrap_or(u64::MAX);
    engine.max_udp = most_mappings(engine.stack.tcp.max_flows, engine.max_udp, limit);
    engine.stack.mtu = device.mtu();
    engine.stack.offload = device.offload();
    engine.stack.broadcasts = broadcasts(config);
    Ok(Engine::new(engine, identify, seed))
}

/// The loop out of its parts.
pub(super) fn build<D: Device>(
    parts: Parts<D>,
    signals: Signals,
    clock: Clock,
) -> Result<Driver<D>, RunError> {
    Driver::new(parts, signals, clock)
        .map_err(machine("cannot build the event loop", "raise the limit on open files (`ulimit -n`)"))
}

/// Totals of a run, one line.
pub(super) fn log_totals(engine: &Engine) {
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

pub(super) fn routed(config: &Config, device: &str) -> String {
    let way = if config.host.no_route { "no routes set, " } else { "" };
    format!("{way}{device} leads to socks5 {}", proxies(config))
}

pub(super) fn proxies(config: &Config) -> String {
    let proxies: Vec<String> = config.engine.proxies.iter().map(|proxy| proxy.addr.to_string()).collect();
    proxies.join(", ")
}

/// The index of the interface that was asked for.
pub(super) fn egress_index(config: &Config) -> Result<Option<NonZeroU32>, RunError> {
    let Some(name) = &config.host.interface else { return Ok(None) };
    let index = host::interface_index(name)
        .map_err(machine(&format!("cannot use the interface {name}"), "see `ip link` for the names"))?;
    Ok(NonZeroU32::new(index))
}

/// What decides by which interface ztun's own sockets leave. Inside another program that is the system's business, or the program's.
pub(super) fn egress(config: &Config, embedded: Option<&Embedded>) -> Egress {
    Egress::of(config.host.interface.as_ref(), MARKS || embedded.is_some())
}

/// What `binding` is bound to from the start, where the system knows no marks.
fn followed(config: &Config, binding: EgressBinding) -> Result<EgressBinding, RunError> {
    let failed = machine("cannot read the machine's network", "--interface names the way out");
    let own = Own { device: config.host.tun.clone(), protocol: host::PROTOCOL };
    let read = |mut monitor: SystemMonitor| {
        let state = monitor.state()?;
        let ways = Egress::Followed.ways(&proxy_addresses(config), &state, &mut monitor);
        Ok(EgressBinding { interface: Egress::Followed.interface(&state), ways, ..binding })
    };
    SystemMonitor::new(own).and_then(read).map_err(failed)
}

/// How ztun's own sockets leave: with the mark that the routing rules know, by the interface that was asked for, and with what the limit on descriptors,
/// which is raised, spares for flows.
pub(super) fn binding(config: &Config, embedded: Option<&Embedded>) -> Result<EgressBinding, RunError> {
    let limit = match embedded {
        None => raise_limits(config),
        // The limit is the whole program's.
        Some(_) => limits::open_files().ok(),
    };
    let below = limit.map(limits::for_flows);
    let protect = embedded.and_then(|embedded| embedded.protect.clone());
    let interface = egress_index(config)?;
    let binding =
        EgressBinding { mark: Some(config.host.mark), interface, below, protect, ..EgressBinding::default() };
    match binding.check() {
        Ok(()) if egress(config, embedded) == Egress::Followed => followed(config, binding),
        Ok(()) => Ok(binding),
        // Without routes of ours nothing depends on the mark.
        Err(error) if config.host.no_route && error.kind() == io::ErrorKind::PermissionDenied => {
            log::debug!("sockets are not marked: {error}");
            Ok(EgressBinding { mark: None, ..binding })
        }
        Err(error) => Err(machine("cannot mark sockets", "run as root or with CAP_NET_ADMIN")(error)),
    }
}

pub(super) fn proxy_addresses(config: &Config) -> Vec<IpAddr> {
    let proxies: Vec<SocketAddr> = config.engine.proxies.iter().map(|proxy| proxy.addr).collect();
    distinct_addresses(&proxies)
}

pub(super) fn distinct_addresses(proxies: &[SocketAddr]) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for proxy in proxies {
        let addr = proxy.ip().to_canonical();
        if !addresses.contains(&addr) {
            addresses.push(addr);
        }
    }
    addresses
}

/// The proxies that run on this machine; one that a routing rule keeps outside comes first.
pub(super) fn local_proxies(config: &Config) -> Result<Vec<LocalProxy>, RunError> {
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

/// Proxies of this machine whose flows are told flow by flow; more may come while a run lasts.
pub(super) type Locals = Rc<RefCell<Vec<LocalProxy>>>;

/// Closes the connections that pass the tunnel `device` by, but for those that are to, and those of `locals`.
pub(super) fn reset_existing(
    config: &Config,
    device: &str,
    locals: &mut [LocalProxy],
) -> Result<(), RunError> {
    let proxies = proxy_addresses(config);
    let locals = RefCell::new(locals);
    let keep = |local: SocketAddr, remote: SocketAddr| {
        host::stays_outside(&config.host, &proxies, remote.ip())
            || locals.borrow_mut().iter_mut().any(|proxy| proxy.owns(Proto::Tcp, local, remote))
    };
    let closed = host::reset_existing(device, &keep).map_err(machine(
        "cannot close the connections that were opened before",
        "start without --reset-existing: they go on outside the tunnel until their programs open new ones",
    ))?;
    log::info!(
        "{closed} connections that were opened before are closed, to be opened again through the tunnel"
    );
    Ok(())
}

/// The local proxies whose flows are to be told; none when a routing rule does that for them.
pub(super) fn told_by_flow(config: &Config, locals: Vec<LocalProxy>) -> Locals {
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
    let wanted = if config.host.no_route { usize::MAX } else { by_rule };
    Rc::new(RefCell::new(locals.into_iter().skip(wanted).collect()))
}

/// Who tells the flows of `locals`.
pub(super) fn owner(locals: &Locals) -> Box<dyn Owner> {
    Box::new(LocalProxies(Rc::clone(locals)))
}

/// All local proxies that are told flow by flow.
struct LocalProxies(Locals);

impl Owner for LocalProxies {
    fn owns(&mut self, proto: Proto, local: SocketAddr, remote: SocketAddr) -> bool {
        self.0.borrow_mut().iter_mut().any(|proxy| proxy.owns(proto, local, remote))
    }
}

/// The broadcast addresses of the device's IPv4 networks.
fn broadcasts(config: &Config) -> Vec<IpAddr> {
    let broadcast = |net: &Cidr| match net.addr {
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
        assert_eq!(most_mappings(65_536, 16_384, 1 << 20), 16_384);
        assert_eq!(most_mappings(65_536, 16_384, 20_000), 5_000);
        assert_eq!(most_mappings(65_536, 16_384, 0), 1);
        assert_eq!(most_mappings(65_536, 10, u64::MAX), 10);
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
