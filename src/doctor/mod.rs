//! Proves a set-up without changing anything: what a run would meet, check by check.
//!
//! # Theory of operation
//!
//! [`examine`] takes the configuration of a run, and asks the machine (`system`, `network`, `names`) and the proxies (`proxy`, by `ask`)
//! what the run would depend on. Each answer is a [`Check`]: ok, a warning, a failure, or skipped; why, in the system's own words; and what to do.
//!
//! Nothing is changed: files are read, the kernel's tables are dumped, `/dev/net/tun` is opened without making a device, a namespace is tried in a
//! child that ends with it, and no lock is taken. What is sent goes to the proxies, marked as a run would mark it. The questions to
//! the proxies have short times, and are asked side by side: the whole takes less than fifteen seconds when everything is dead.
//!
//! Facts and judgements are apart: a judgement is a function of what was found, so that a machine that cannot be built for a test is a value.

mod ask;
mod check;
mod names;
mod network;
mod proxy;
mod query;
mod system;

pub use check::{Check, Report, Status};

use crate::config::Config;
use crate::driver::EgressBinding;
use crate::host;
use names::Names;
use network::Network;
use std::num::NonZeroU32;

/// What a proxy is asked to connect to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// A name or an address.
    pub host: String,
    /// A TCP port.
    pub port: u16,
}

/// What the doctor is asked besides.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// What a proxy is asked to connect to.
    pub target: Target,
    /// Whether proxies are asked for IPv6 at all.
    pub ipv6: bool,
}

/// The checks of a run with `config`. Without a proxy those of proxies are skipped.
pub fn examine(config: &Config, options: &Options) -> Vec<Check> {
    let mut checks = system::examine(config);
    let mut ipv6 = options.ipv6;
    match Network::read(&config.host.tun) {
        Ok(network) => {
            ipv6 &= network.has_ipv6();
            checks.extend(network.examine(config, &network::routes(config)));
        }
        Err(error) => checks.push(Check::fail(
            "network",
            format!("cannot read this machine's network over netlink: {error}"),
            "a kernel with CONFIG_NETLINK and CONFIG_IP_MULTIPLE_TABLES; in a container, allow AF_NETLINK",
        )),
    }
    let (resolver, resolvers) = Names::read().judge(&config.engine);
    checks.push(resolvers);
    if config.engine.proxies.is_empty() {
        let ids = [
            "local-proxy",
            "loop",
            "proxy",
            "method",
            "mtu",
            "connect-name",
            "connect-address",
            "udp",
            "udp-relay",
            "dns",
            "ipv6-proxy",
        ];
        checks.extend(ids.map(|id| Check::skipped(id, "no --socks5 is given")));
        return checks;
    }
    checks.extend(system::local_proxy(config));
    let options = Options { ipv6, ..options.clone() };
    match proxy::examine(config, &options, &resolver, &binding(config)) {
        Ok(found) => checks.extend(found),
        Err(error) => checks.push(Check::fail(
            "proxy",
            format!("cannot ask: {error}"),
            "raise the limit on open files (`ulimit -n`)",
        )),
    }
    checks
}

/// As a run's, without the mark where that takes a privilege that is missing: then a run that lives may carry the questions, which it leaves
/// outside by the proxy's address.
fn binding(config: &Config) -> EgressBinding {
    let index = config.host.interface.as_deref().and_then(|name| host::interface_index(name).ok());
    let interface = index.and_then(NonZeroU32::new);
    let marked = EgressBinding { mark: Some(config.host.mark), interface, ..EgressBinding::default() };
    match marked.check() {
        Ok(()) => marked,
        Err(error) => {
            log::debug!("sockets are not marked: {error}");
            EgressBinding { mark: None, ..marked }
        }
    }
}
