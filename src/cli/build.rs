//! Options put together into a configuration; names resolved, once, before anything leads into the tunnel.

use super::Error;
use super::options::{
    AcceptChoice, Auto, DnsChoice, ExecOptions, IcmpChoice, Ipv6Choice, OffloadChoice, PipelineChoice,
    ProxyServerOptions, RunOptions, Secret, UdpChoice, WayOptions,
};
use super::refusal::shown;
use super::value::{self, ProxyUrl, User};
use crate::config::{
    Accept, Cidr, CidrError, Config, Credentials, DnsMode, EngineConfig, HostPlanConfig, OffloadLevel,
    Pipeline, Proxy, UdpMode, resolver_addresses,
};
use crate::outbound::rule::{Route, Rule};
use crate::stack::{EchoMode, StackConfig, TcpConfig};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::Path;

/// Octets that are read of a file with a password, which has 255 at most: enough to tell that it is too long.
const LONGEST_LINE: u64 = 1_024;

/// What is done with names of hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Names {
    /// The system's resolver is asked.
    Resolved,
    /// They are errors: nothing is asked.
    Refused,
}

/// The configuration of the router.
pub(super) fn config(options: &RunOptions, names: Names) -> Result<Config, Error> {
    if options.way.socks5.is_empty() {
        return Err(Error::usage(
            "no proxy is given",
            "`sudo ztun --socks5 127.0.0.1:1080`; `ztun demo` needs none, and `ztun proxy` is one",
        ));
    }
    config_without_proxy(options, names)
}

/// Likewise, and a proxy may be missing (`ztun doctor`).
pub(super) fn config_without_proxy(options: &RunOptions, names: Names) -> Result<Config, Error> {
    if options.tun_fd.is_some() && options.interface.as_deref() == Some(options.tun.as_str()) {
        return Err(Error::usage("--interface names the tunnel's own device", "name the one that leads out"));
    }
    let mut bypass = Vec::new();
    for text in &options.bypass {
        bypass.extend(bypassed(text, names)?);
    }
    let mut host = HostPlanConfig {
        tun: options.tun.clone(),
        tun_fd: options.tun_fd,
        bypass,
        no_route: options.no_route,
        interface: options.interface.clone(),
        mark: options.mark,
        local_proxy: options.local_proxy == Auto::Auto,
        kill_switch: options.kill_switch,
        ..device(&options.way)
    };
    if !options.route.is_empty() {
        host.routes.clone_from(&options.route);
    }
    let engine = engine(&options.way, names)?;
    match engine.dns {
        DnsMode::Auto | DnsMode::Udp | DnsMode::Tcp => host.dns.clone_from(&engine.dns_local),
        // Names are asked for where the machine asks for them.
        DnsMode::Direct | DnsMode::Off => {}
    }
    Ok(Config {
        require_proxy: options.way.require_proxy,
        replace: options.replace,
        reset_existing: options.reset_existing,
        control: options.control.clone(),
        metrics: options.metrics,
        ..Config::new(engine, host)
    })
}

/// The configuration of `ztun exec`. Without a proxy `proxies` is empty: the embedded one is to be used.
pub(super) fn exec_config(options: &ExecOptions, names: Names) -> Result<Config, Error> {
    let way = &options.way;
    let host = HostPlanConfig { tun: "tun0".into(), no_route: true, ..device(way) };
    Ok(Config { require_proxy: way.require_proxy, ..Config::new(engine(way, names)?, host) })
}

/// Who `ztun proxy` lets in.
pub(super) fn server_credentials(options: &ProxyServerOptions) -> Result<Option<Credentials>, Error> {
    let (Some(name), Some(file)) = (&options.user, &options.password_file) else { return Ok(None) };
    let user = User { name: name.clone(), password: None };
    let credentials = user.credentials(&password(file, "--password-file")?);
    credentials.map(Some).map_err(|why| Error::usage(why, "choose another --user or --password-file"))
}

/// What is asked of the device; the rest as documented.
fn device(way: &WayOptions) -> HostPlanConfig {
    let offload = match way.offload {
        OffloadChoice::Auto => OffloadLevel::Full,
        OffloadChoice::Tcp => OffloadLevel::Tcp,
        OffloadChoice::Checksum => OffloadLevel::Checksum,
        OffloadChoice::Off => OffloadLevel::Off,
    };
    let mut host = HostPlanConfig { mtu: way.mtu, offload, ..HostPlanConfig::default() };
    if !way.address.is_empty() {
        host.addresses.clone_from(&way.address);
    }
    host
}

fn engine(way: &WayOptions, names: Names) -> Result<EngineConfig, Error> {
    let mut rules = way.rule.clone();
    if way.ipv6 == Ipv6Choice::Off {
        let dst = Some(Cidr { addr: Ipv6Addr::UNSPECIFIED.into(), prefix: 0 });
        rules.insert(0, Rule { dst, ports: None, proto: None, route: Route::Reject });
    }
    Ok(EngineConfig {
        stack: StackConfig {
            echo: match way.icmp {
                IcmpChoice::Reply => EchoMode::Reply,
                IcmpChoice::Drop => EchoMode::Drop,
            },
            tcp: TcpConfig { max_flows: size(way.max_tcp), idle: way.tcp_idle, ..TcpConfig::default() },
            ..StackConfig::default()
        },
        proxies: proxies(way, names)?,
        rules,
        accept: match way.accept {
            AcceptChoice::Late => Accept::Late,
            AcceptChoice::Early => Accept::Early,
        },
        udp: match way.udp {
            UdpChoice::Auto => UdpMode::Auto,
            UdpChoice::Socks5 => UdpMode::Socks5,
            UdpChoice::Direct => UdpMode::Direct,
            UdpChoice::Reject => UdpMode::Reject,
        },
        dns: dns(way)?,
        dns_server: way.dns_server,
        dns_local: resolver_addresses(&device(way).addresses),
        max_udp: size(way.max_udp),
        udp_idle: way.udp_idle,
        connect_timeout: way.connect_timeout,
        pool: way.pool.into(),
        pipeline: match way.pipeline {
            PipelineChoice::Auto => Pipeline::Auto,
            PipelineChoice::On => Pipeline::On,
            PipelineChoice::Off => Pipeline::Off,
        },
        ..EngineConfig::default()
    })
}

fn dns(way: &WayOptions) -> Result<DnsMode, Error> {
    if way.dns == DnsChoice::Off && way.dns_server.is_some() {
        return Err(Error::usage(
            "--dns-server names a server that --dns off does not ask",
            "--dns auto, or no --dns-server",
        ));
    }
    Ok(match way.dns {
        DnsChoice::Auto => DnsMode::Auto,
        DnsChoice::Udp => DnsMode::Udp,
        DnsChoice::Tcp => DnsMode::Tcp,
        DnsChoice::Direct => DnsMode::Direct,
        DnsChoice::Off => DnsMode::Off,
    })
}

pub(super) fn size(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn proxies(way: &WayOptions, names: Names) -> Result<Vec<Proxy>, Error> {
    let mut urls = Vec::new();
    for Secret(text) in &way.socks5 {
        let refused = |why| Error::usage(format!("--socks5: {why}"), "[socks5://][USER:PASS@]HOST:PORT");
        urls.push(value::proxy(text).map_err(refused)?);
    }
    let file = match &way.socks5_password_file {
        Some(_) if !urls.iter().any(ProxyUrl::wants_password) => {
            return Err(Error::usage(
                "--socks5-password-file is given, and no proxy with a user and without a password",
                "--socks5 USER@HOST:PORT",
            ));
        }
        file => file.as_deref().map(|file| password(file, "--socks5-password-file")).transpose()?,
    };
    let mut proxies = Vec::new();
    for url in &urls {
        let credentials = credentials(url, file.as_deref())?;
        for addr in resolved(&url.host, url.port, "--socks5", names)? {
            reachable(addr.ip())?;
            let proxy = Proxy { addr, credentials: credentials.clone() };
            if !proxies.contains(&proxy) {
                proxies.push(proxy);
            }
        }
    }
    Ok(proxies)
}

/// Refuses what is no address of one host.
fn reachable(addr: IpAddr) -> Result<(), Error> {
    let broadcast = addr == IpAddr::V4(Ipv4Addr::BROADCAST);
    if addr.is_unspecified() || addr.is_multicast() || broadcast {
        return Err(Error::usage(
            format!("--socks5: {addr} is no address to connect to"),
            "the address of the proxy, as in 127.0.0.1:1080 for one on this machine",
        ));
    }
    Ok(())
}

fn credentials(url: &ProxyUrl, file: Option<&str>) -> Result<Option<Credentials>, Error> {
    let Some(user) = &url.user else { return Ok(None) };
    let password = user.password.as_deref().or(file).ok_or_else(|| {
        Error::usage(
            "--socks5 names a user without a password",
            "USER:PASS@HOST:PORT, or --socks5-password-file",
        )
    })?;
    let credentials = user.credentials(password);
    credentials.map(Some).map_err(|why| Error::usage(format!("--socks5: {why}"), "choose another password"))
}

/// The first line of a file. Its name is not repeated: it may be a password in the wrong place.
fn password(file: &Path, option: &str) -> Result<String, Error> {
    let failed = |error: &io::Error| {
        let what = format!("{option}: cannot read the password");
        Error::system(super::USAGE, &what, error, "name a file whose first line is the password")
    };
    let file = File::open(file).map_err(|error| failed(&error))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let found = file.metadata().map_err(|error| failed(&error))?;
        if found.is_file() && found.mode() & 0o077 != 0 {
            log::warn!("the file of {option} can be read by other users: chmod 600 it");
        }
    }
    let mut line = String::new();
    BufReader::new(file.take(LONGEST_LINE)).read_line(&mut line).map_err(|error| failed(&error))?;
    let line = line.trim_end_matches(['\n', '\r']);
    if line.is_empty() {
        let what = format!("{option}: the first line of the file is empty");
        return Err(Error::usage(what, "write the password there"));
    }
    Ok(line.into())
}

fn bypassed(text: &str, names: Names) -> Result<Vec<Cidr>, Error> {
    let net = match text.parse::<Cidr>() {
        Ok(net) => return Ok(vec![net]),
        Err(error) => error,
    };
    let what = match net {
        CidrError::Prefix { .. } => format!("--bypass: {net}"),
        CidrError::Address(_) => format!("--bypass: {} is neither a network nor a host", shown(text)),
    };
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if text.is_empty() || !text.chars().all(name) || text.split('.').all(|part| part.parse::<u32>().is_ok()) {
        return Err(Error::usage(what, "an address, a network as in 192.168.0.0/16, or the name of a host"));
    }
    let found = resolved(text, 0, "--bypass", names)?;
    Ok(found.into_iter().map(|addr| Cidr::host(addr.ip())).collect())
}

/// The addresses of `host`, which may be one already.
fn resolved(host: &str, port: u16, option: &str, names: Names) -> Result<Vec<SocketAddr>, Error> {
    if let Ok(addr) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(addr.to_canonical(), port)]);
    }
    let what = format!("{option}: cannot resolve {}", shown(host));
    if names == Names::Refused {
        return Err(Error::usage(what, "an address"));
    }
    let found = (host, port)
        .to_socket_addrs()
        .map_err(|error| Error::system(1, &what, &error, "give its address, or look at /etc/resolv.conf"))?;
    let mut addrs = Vec::new();
    for addr in found {
        if !addrs.contains(&addr) {
            addrs.push(addr);
        }
    }
    if addrs.is_empty() {
        return Err(Error {
            code: 1,
            what: format!("{what}: it has no address"),
            remedy: Some("give its address".into()),
        });
    }
    Ok(addrs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    fn built(args: &[&str]) -> Result<Config, Error> {
        let args = core::iter::once("ztun").chain(args.iter().copied());
        config(&Cli::try_parse_from(args).unwrap().run, Names::Resolved)
    }

    #[test]
    fn the_defaults_are_the_contracts() {
        let config = built(&["--socks5", "127.0.0.1:1080"]).unwrap();
        assert_eq!(config.engine.proxies[0].addr, "127.0.0.1:1080".parse().unwrap());
        assert_eq!(config.host.tun, "ztun0");
        assert_eq!(config.host.mtu, 1500);
        assert_eq!(config.host.mark, 0x7a74);
        let texts = |nets: &[Cidr]| nets.iter().map(Cidr::to_string).collect::<Vec<_>>();
        assert_eq!(texts(&config.host.addresses), ["198.18.0.1/16", "fd7a:7a74:756e::1/64"]);
        assert_eq!(texts(&config.host.routes), ["0.0.0.0/0", "::/0"]);
        assert!(
            config.host.local_proxy && config.host.offload == OffloadLevel::Full && !config.host.no_route
        );
        assert_eq!(config.engine.stack.tcp.max_flows, 65_536);
        assert_eq!(config.engine.max_udp, 16_384);
        assert_eq!(config.engine.pool, 4);
        assert_eq!(config.engine.pipeline, Pipeline::Auto);
        assert_eq!(config.engine.accept, Accept::Late);
        assert_eq!(config.engine.dns, DnsMode::Auto);
        let resolvers: Vec<String> = config.engine.dns_local.iter().map(ToString::to_string).collect();
        assert_eq!(resolvers, ["198.18.0.2", "fd7a:7a74:756e::2"]);
    }

    #[test]
    fn proxies_keep_their_order_and_get_the_password_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "hush\nmore\n").unwrap();
        let file = file.to_str().unwrap();
        let args = ["--socks5", "u@10.0.0.1:1", "--socks5", "v:w@10.0.0.2:2", "--socks5-password-file", file];
        let config = built(&args).unwrap();
        let credentials =
            |user: &str, password: &str| Some(Credentials { user: user.into(), password: password.into() });
        assert_eq!(config.engine.proxies[0].credentials, credentials("u", "hush"));
        assert_eq!(config.engine.proxies[1].credentials, credentials("v", "w"));
        assert!(built(&["--socks5", "u@10.0.0.1:1"]).unwrap_err().what.contains("without a password"));
    }

    #[test]
    fn what_is_missing_or_wrong_is_bad_usage() {
        for args in [
            &[][..],
            &["--socks5", "nonsense"],
            &["--socks5", ""],
            &["--socks5", "0.0.0.0:1080"],
            &["--socks5", "[::]:1080"],
            &["--socks5", "224.0.0.1:1080"],
            &["--socks5", "127.0.0.1:1", "--socks5-password-file", "/nonexistent"],
            &["--socks5", "127.0.0.1:1", "--bypass", "10.0.0.0/40"],
            &["--socks5", "127.0.0.1:1", "--bypass", "10.0.0.300"],
            &["--socks5", "u@127.0.0.1:1", "--socks5-password-file", "/nonexistent"],
            &["--socks5", "127.0.0.1:1", "--dns", "off", "--dns-server", "9.9.9.9"],
        ] {
            let error = built(args).unwrap_err();
            assert_eq!(error.code, 2, "{error}");
            assert!(error.remedy.is_some());
        }
    }

    #[test]
    fn without_ipv6_everything_of_it_is_refused_first() {
        let args = ["--socks5", "127.0.0.1:1", "--rule", "any -> direct", "--ipv6", "off"];
        let config = built(&args).unwrap();
        assert_eq!(config.engine.rules.len(), 2);
        assert_eq!(config.engine.rules[0].route, Route::Reject);
    }
}
