//! `ztun demo`: the whole way of a packet on this machine, without root where the system allows it, without a proxy, and without any change to it.
//!
//! ```text
//!  private namespace "apps"             private namespace "internet"
//!  ------------------------             ----------------------------------------------
//!  kernel sockets ─▶ TUN ─────────────▶ ztun ─▶ embedded proxy ─▶ targets on 203.0.113.10
//!                                                                 and 2001:db8::10
//! ```
//!
//! Each box is a process or more; this one only waits. All of them end with it, and the namespaces with them.

mod client;
mod targets;

use crate::config::{Cidr, Config, EngineConfig, HostPlanConfig, Proxy};
use crate::host::netns;
use crate::host::process::{fork, ignore_terminal_signals};
use crate::proxy::{ProxyConfig, Server};
use crate::session::RunError;
use crate::session::exec::{Outcome, in_namespace};
use crate::time::Duration;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Where the targets are (RFC 5737, RFC 3849: addresses for documentation).
const TARGETS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10)),
];
const PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1080);

/// Shows it on `out`; whether everything worked.
///
/// # Errors
///
/// The system refuses the namespaces or the device.
pub fn run(out: &mut impl Write) -> Result<bool, RunError> {
    let said = |written: io::Result<()>| written.map_err(RunError::Output);
    said(writeln!(
        out,
        "apps -> TUN -> ztun -> SOCKS5 -> targets, in private namespaces of this machine:\n"
    ))?;
    said(out.flush())?;
    let refused = |source| RunError::Machine {
        what: "cannot start a process".into(),
        source,
        remedy: "raise the limit on processes (`ulimit -u`)".into(),
    };
    // The internet is a process of its own: this one keeps the machine's network.
    let status = fork(|| internet().unwrap_or_else(|error| crate::cli::print_error(&error.into())))
        .and_then(|mut child| child.wait())
        .map_err(refused)?
        .code();
    match status {
        0 => {
            said(writeln!(
                out,
                "\nEverything worked. Nothing on this machine was changed: it all happened in namespaces that are gone."
            ))?;
            Ok(true)
        }
        client::FAILED => {
            said(writeln!(out, "\nSomething did not work: see above. Nothing on this machine was changed."))?;
            Ok(false)
        }
        code => Err(RunError::Child(code)),
    }
}

/// The namespace of targets, proxy and ztun; gives the status of the apps.
fn internet() -> Result<u8, RunError> {
    let hosts = TARGETS.map(Cidr::host);
    netns::alone(&hosts)?;
    let failed = |source| RunError::Machine {
        what: "cannot start the targets".into(),
        source,
        remedy: "raise the limits on processes and open files".into(),
    };
    ignore_terminal_signals();
    let mut children = Vec::new();
    for addr in TARGETS {
        children.extend(targets::start(addr).map_err(failed)?);
    }
    let mut proxy = Server::bind(ProxyConfig { listen: PROXY, ..ProxyConfig::default() }).map_err(failed)?;
    children.push(fork(move || u8::from(proxy.serve().is_err())).map_err(failed)?);
    let engine = EngineConfig {
        proxies: vec![Proxy { addr: PROXY, credentials: None }],
        connect_timeout: Duration::from_secs(5),
        ..EngineConfig::default()
    };
    let host = HostPlanConfig { tun: "tun0".into(), no_route: true, ..HostPlanConfig::default() };
    let config = Config::new(engine, host);
    let outcome = in_namespace(&config, Vec::new(), || client::run(&mut io::stdout().lock()));
    drop(children);
    outcome.map(Outcome::code)
}
