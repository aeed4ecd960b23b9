//! `ztun exec`: a command in a private network namespace whose only way out is the tunnel.
//!
//! The device is opened inside, the loop stays outside: nothing loops, nothing on the machine is changed, and nothing has to be undone. Without
//! a proxy of the user's, the embedded one runs in a process of its own, and ends with this one.

use super::{RunError, build, engine, log_totals, machine, probe, raise_limits};
use crate::config::{Config, Proxy};
use crate::driver::{EgressBinding, Exit, Parts, Signals};
use crate::host::HostError;
use crate::host::netns::{self, Inside};
use crate::host::process::{Child, fork, ignore_terminal_signals};
use crate::proxy::{ProxyConfig, Server};
use crate::tun::{OpenError, Tun};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

/// Asked for names when the machine's own resolver is on loopback, where the command cannot reach it (see `docs/adr`).
const PUBLIC_RESOLVERS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9)), IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1))];

/// Exit status when a second signal did not wait for the command.
const FORCED: u8 = 9;

/// Runs `command` until it ends; gives its exit status, as a shell would.
///
/// # Errors
///
/// See [`RunError`]; the command has not been run then, or has been killed.
pub fn run(config: &Config, command: &[OsString]) -> Result<u8, RunError> {
    let mut config = config.clone();
    let embedded = if config.engine.proxies.is_empty() { Some(embedded_proxy(&mut config)?) } else { None };
    if config.require_proxy {
        probe::any(&config.engine.proxies, &EgressBinding::default(), config.engine.connect_timeout)
            .map_err(|why| RunError::Proxy { why })?;
    }
    let nameservers = match config.engine.dns_server {
        Some(server) => vec![server.ip()],
        None => netns::nameservers(&PUBLIC_RESOLVERS),
    };
    let status = in_namespace(&config, nameservers, || netns::become_program(command))?;
    drop(embedded);
    Ok(status)
}

/// Runs `body` in a private namespace, and the loop here until it ends; gives its exit status.
pub(crate) fn in_namespace(
    config: &Config,
    nameservers: Vec<IpAddr>,
    body: impl FnOnce() -> u8,
) -> Result<u8, RunError> {
    raise_limits();
    let host = &config.host;
    let inside =
        Inside { device: host.tun.clone(), addresses: host.addresses.clone(), mtu: host.mtu, nameservers };
    let open = || Tun::open(&host.tun, host.mtu, host.offload).map(OwnedFd::from).map_err(host_error);
    let waiting = netns::enter(&inside, open, body)?;
    // From here on a signal ends the command first, then the loop.
    let signals = Signals::for_command()
        .map_err(machine("cannot take over the signals", "raise the limit on open files (`ulimit -n`)"))?;
    ignore_terminal_signals();
    let descriptors = machine("cannot watch the command", "raise the limit on open files (`ulimit -n`)");
    let device = Tun::from_fd(waiting.device.try_clone().map_err(descriptors)?, host.mtu)?;
    let engine = engine(config, &device, false)?;
    let mut child = waiting.go().map_err(machine("the command's process has gone", "run it again"))?;
    let watch =
        child.pidfd().map_err(machine("cannot watch the command", "a kernel from 5.3 on is needed"))?;
    let parts = Parts { device, engine, binding: EgressBinding::default(), owner: None, watch: Some(watch) };
    let mut driver = build(parts, signals)?;
    log::info!("ready: the command's only way out is {}", super::routed(config, &host.tun));
    let exit = driver.run().map_err(RunError::Loop)?;
    log_totals(driver.engine());
    match exit {
        Exit::Forced => Ok(FORCED),
        Exit::Stopped | Exit::Watched => {
            let status = child.wait().map_err(machine("cannot wait for the command", "run it again"))?;
            Ok(status.code())
        }
    }
}

fn host_error(error: OpenError) -> HostError {
    HostError { what: error.what, source: error.source, remedy: error.remedy }
}

/// Starts the embedded proxy in a process of its own and makes `config` use it.
fn embedded_proxy(config: &mut Config) -> Result<Child, RunError> {
    let failed = || machine("cannot start the embedded proxy", "give a proxy with --socks5");
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut server = Server::bind(ProxyConfig { listen, ..ProxyConfig::default() }).map_err(failed())?;
    let addr = server.local_addr().map_err(failed())?;
    let child = fork(move || {
        ignore_terminal_signals();
        u8::from(server.serve().is_err())
    });
    config.engine.proxies.push(Proxy { addr, credentials: None });
    child.map_err(failed())
}
