//! `ztun exec`: a command in a private network namespace whose only way out is the tunnel.
//!
//! The device is opened inside, the loop stays outside: nothing loops, nothing on the machine is changed, and nothing has to be undone. Without
//! a proxy of the user's, the embedded one runs in a process of its own, and ends with this one.

use super::egress::Egress;
use super::setup::{build, engine, log_totals, machine, proxies, raise_limits};
use super::{RunError, network, probe};
use crate::config::{Config, Credentials, Proxy};
use crate::driver::{
    Clock, DRAIN_PATIENCE, EgressBinding, Exit, Parts, STOP_PATIENCE, Service, Signals, limits,
};
use crate::host::HostError;
use crate::host::change::PROTOCOL;
use crate::host::netns::{self, Inside};
use crate::host::process::{Child, end_on_signals, fork, has_terminal, ignore_terminal_signals};
use crate::monitor::Own;
use crate::proxy::{ProxyConfig, Server};
use crate::time::Duration;
use crate::tun::{OpenError, Tun};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

/// Asked for names when the machine's own resolver is on loopback, where the command cannot reach it (see `docs/adr`).
const PUBLIC_RESOLVERS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9)), IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1))];

/// How it went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// The command ended with this status, as a shell gives it.
    Ended(u8),
    /// Likewise, after somebody had asked to stop.
    Stopped(u8),
    /// A second signal did not wait for it.
    Forced,
}

impl Outcome {
    /// The exit status.
    pub(crate) fn code(self) -> u8 {
        match self {
            Outcome::Ended(code) | Outcome::Stopped(code) => code,
            Outcome::Forced => 9,
        }
    }
}

/// Runs `command` until it ends; gives its exit status, as a shell would.
///
/// # Errors
///
/// See [`RunError`]; the command has not been run then, or has been killed.
pub fn run(config: &Config, command: &[OsString]) -> Result<u8, RunError> {
    let mut config = config.clone();
    let embedded = match config.engine.proxies.as_slice() {
        [] => Some(EmbeddedProxy::start(&mut config)?),
        [_, ..] => None,
    };
    if config.require_proxy {
        probe::any(&config.engine.proxies, &EgressBinding::default(), config.engine.connect_timeout)
            .map_err(|why| RunError::Proxy { why })?;
    }
    let nameservers = match config.engine.dns_server {
        Some(server) => vec![server.ip()],
        None => netns::nameservers(&PUBLIC_RESOLVERS),
    };
    config.engine.dns_machine.clone_from(&nameservers);
    let outcome = in_namespace(&config, nameservers, || netns::become_program(command))?;
    if let Some(embedded) = embedded {
        match outcome {
            Outcome::Ended(_) => embedded.finish(None)?,
            Outcome::Stopped(_) => embedded.finish(Some(STOP_PATIENCE))?,
            Outcome::Forced => {}
        }
    }
    Ok(outcome.code())
}

/// Runs `body` in a private namespace, and the loop here until it has ended and what it sent is gone.
pub(crate) fn in_namespace(
    config: &Config,
    nameservers: Vec<IpAddr>,
    body: impl FnOnce() -> u8,
) -> Result<Outcome, RunError> {
    let host = &config.host;
    let inside =
        Inside { device: host.tun.clone(), addresses: host.addresses.clone(), mtu: host.mtu, nameservers };
    let open = || Tun::open(&host.tun, host.mtu, host.offload).map(OwnedFd::from).map_err(host_error);
    let waiting = netns::enter(&inside, open, body)?;
    // The command keeps the limit that it was started with.
    raise_limits(config);
    // From here on a signal ends the command first, then the loop. What a terminal sends the command has got itself.
    let signals = if has_terminal() {
        ignore_terminal_signals();
        Signals::for_command()
    } else {
        Signals::new()
    };
    let signals = signals
        .map_err(machine("cannot take over the signals", "raise the limit on open files (`ulimit -n`)"))?;
    let descriptors = machine("cannot watch the command", "raise the limit on open files (`ulimit -n`)");
    let device = Tun::from_fd(waiting.device.try_clone().map_err(descriptors)?, host.mtu, host.offload)?;
    let mut engine = engine(config, &device, false)?;
    let clock = Clock::new();
    // Nothing on this machine is ztun's: the command's network is another.
    let own = Own { device: String::new(), protocol: PROTOCOL };
    let mut services: Vec<Box<dyn Service<Tun>>> = Vec::new();
    if let Some(network) = network::follow(own, None, None, Egress::Routed, &mut engine, clock.now()) {
        services.push(Box::new(network));
    }
    let mut child = waiting.go().map_err(machine("the command's process has gone", "run it again"))?;
    let watch =
        child.pidfd().map_err(machine("cannot watch the command", "a kernel from 5.3 on is needed"))?;
    let parts = Parts {
        device,
        engine,
        binding: EgressBinding::default(),
        owner: None,
        watch: Some(watch.into()),
        services,
    };
    let mut driver = build(parts, signals, clock)?;
    log::info!("ready: the command's only way out is {}, to socks5 {}", host.tun, proxies(config));
    let exit = driver.run().map_err(RunError::Loop)?;
    log_totals(driver.engine());
    match exit {
        Exit::Forced => Ok(Outcome::Forced),
        Exit::Stopped | Exit::Watched => {
            let status = child.wait().map_err(machine("cannot wait for the command", "run it again"))?;
            let ended = if exit == Exit::Stopped { Outcome::Stopped } else { Outcome::Ended };
            Ok(ended(status.code()))
        }
    }
}

fn host_error(error: OpenError) -> HostError {
    HostError { what: error.what, source: error.source, remedy: error.remedy }
}

/// The embedded proxy in a process of its own.
#[derive(Debug)]
struct EmbeddedProxy(Child);

impl EmbeddedProxy {
    /// Starts it and makes `config` use it. Nobody else on this machine can: it wants a password that was just made up.
    fn start(config: &mut Config) -> Result<EmbeddedProxy, RunError> {
        let failed = || machine("cannot start the embedded proxy", "give a proxy with --socks5");
        let seed = limits::seed().map_err(failed())?;
        let password = seed.iter().map(|octet| format!("{octet:02x}")).collect();
        let credentials = Credentials { user: "ztun".into(), password };
        let proxy = ProxyConfig {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            credentials: Some(credentials.clone()),
            // Each flow and each association is a client, and so is each warm connection.
            max_connections: config.engine.stack.tcp.max_flows + config.engine.max_udp + config.engine.pool,
            connect_timeout: config.engine.connect_timeout,
            ..ProxyConfig::default()
        };
        let mut server = Server::bind(proxy).map_err(failed())?;
        let addr = server.local_addr().map_err(failed())?;
        let bounds = config.clone();
        let child = fork(move || {
            raise_limits(&bounds);
            // SIGINT may be meant for the command alone, and it may go on: only SIGTERM ends this.
            let served = server.run(ignore_terminal_signals);
            end_on_signals();
            u8::from(served.and_then(|()| server.finish(DRAIN_PATIENCE)).is_err())
        });
        config.engine.proxies.push(Proxy { addr, credentials: Some(credentials) });
        child.map(EmbeddedProxy).map_err(failed())
    }

    /// Lets it write what it still has, as long as targets take it, and at most for `limit`. A signal meanwhile ends both processes at once.
    fn finish(mut self, limit: Option<Duration>) -> Result<(), RunError> {
        end_on_signals();
        let ended = self.0.terminate().and_then(|()| match limit {
            Some(limit) => self.0.wait_for(limit),
            None => self.0.wait().map(Some),
        });
        if ended.map_err(machine("cannot wait for the embedded proxy", "run it again"))?.is_none() {
            log::warn!("what targets have not taken of what the command had sent is lost");
        }
        Ok(())
    }
}
