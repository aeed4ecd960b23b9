//! Which resolvers the machine asks, and which of them the proxies are asked about.

use super::check::Check;
use crate::config::{DNS_UPSTREAM, DnsMode, EngineConfig};
use crate::dns::address::is_local;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Whom systemd-resolved asks, when the file above names only itself.
const UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";
const DNS: u16 = 53;

/// Whom the proxies are asked about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Resolver {
    /// Its address.
    pub(super) asked: SocketAddr,
}

/// What the machine's files say.
pub(super) struct Names {
    /// The nameservers of resolv.conf.
    servers: io::Result<Vec<IpAddr>>,
    /// Those behind a stub on this machine.
    upstream: Vec<IpAddr>,
}

impl Names {
    /// Reads the machine's files.
    pub(super) fn read() -> Names {
        let servers = fs::read_to_string(RESOLV_CONF).map(|text| parse(&text));
        let upstream = fs::read_to_string(UPSTREAM).map(|text| parse(&text));
        Names { servers, upstream: upstream.unwrap_or_default() }
    }

    /// Whom the proxies are asked about, and what is to be said of it.
    pub(super) fn judge(&self, config: &EngineConfig) -> (Resolver, Check) {
        let id = "resolvers";
        let resolver = |asked| Resolver { asked };
        if let Some(server) = config.dns_server.filter(|_| config.dns != DnsMode::Direct) {
            return (
                resolver(server),
                Check::ok(id, format!("queries go to {server}, as --dns-server says")),
            );
        }
        let servers = match &self.servers {
            Ok(servers) => servers,
            Err(error) => {
                let check = Check::warn(
                    id,
                    format!("cannot read {RESOLV_CONF}: {error}"),
                    "without it programs find no names: write one",
                );
                return (resolver(DNS_UPSTREAM), check);
            }
        };
        let Some(first) = servers.first() else {
            let why = format!("{RESOLV_CONF} names no resolver");
            return (resolver(DNS_UPSTREAM), Check::warn(id, why, "write `nameserver 9.9.9.9` there"));
        };
        let stub = servers.iter().all(IpAddr::is_loopback) && !self.upstream.is_empty();
        let behind = if stub { format!("{first}, a stub on this machine, asks ") } else { String::new() };
        let list = if stub { &self.upstream } else { servers };
        let effective = *list.first().unwrap_or(first);
        let list = behind + &list.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
        let (asked, check) = through(config, effective, &list);
        (resolver(asked), check)
    }
}

/// What becomes of queries to `effective`, the first of `list`.
fn through(config: &EngineConfig, effective: IpAddr, list: &str) -> (SocketAddr, Check) {
    let id = "resolvers";
    let itself = SocketAddr::new(effective, DNS);
    if config.dns == DnsMode::Direct {
        return (
            DNS_UPSTREAM,
            Check::ok(id, format!("{list}, asked outside the tunnel, as --dns direct says")),
        );
    }
    if config.dns_local.contains(&effective) {
        let why = format!("{list}, the tunnel's own, as a run has set it; it stands for {DNS_UPSTREAM}");
        return (DNS_UPSTREAM, Check::ok(id, why));
    }
    if effective.is_loopback() {
        let why = format!("{list}, a resolver on this machine; what it asks others goes into the tunnel");
        return (DNS_UPSTREAM, Check::ok(id, why));
    }
    match config.dns {
        DnsMode::Off if is_local(effective) => {
            let check = Check::warn(
                id,
                format!(
                    "{list} is private, and with --dns off asked through the proxy, which may not reach it"
                ),
                "--dns auto asks 1.1.1.1 instead, or name one with --dns-server",
            );
            (itself, check)
        }
        DnsMode::Auto | DnsMode::Udp | DnsMode::Tcp if is_local(effective) => {
            let instead = DNS_UPSTREAM.ip();
            let why = format!(
                "{list} is private, so {instead} is asked instead, through the proxy; --dns-server names another"
            );
            (DNS_UPSTREAM, Check::ok(id, why))
        }
        DnsMode::Auto | DnsMode::Udp | DnsMode::Tcp | DnsMode::Off | DnsMode::Direct => {
            (itself, Check::ok(id, format!("{list}, asked through the proxy")))
        }
    }
}

fn parse(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| line.trim_start().strip_prefix("nameserver"))
        .filter(|rest| rest.starts_with([' ', '\t']))
        .filter_map(|rest| rest.split_whitespace().next()?.split('%').next()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn judged(servers: &str, upstream: &str, config: &EngineConfig) -> (String, Status, String) {
        let names = Names { servers: Ok(parse(servers)), upstream: parse(upstream) };
        let (resolver, check) = names.judge(config);
        assert_eq!(check.status == Status::Ok, check.remedy.is_none());
        (resolver.asked.to_string(), check.status, check.why)
    }

    fn mode(dns: DnsMode) -> EngineConfig {
        EngineConfig { dns, ..EngineConfig::default() }
    }

    #[test]
    fn a_public_resolver_is_asked_and_a_private_one_stands_for_the_upstream() {
        let (asked, status, _) = judged("nameserver 9.9.9.9\n", "", &mode(DnsMode::Auto));
        assert_eq!((asked.as_str(), status), ("9.9.9.9:53", Status::Ok));
        for private in ["192.168.1.1", "100.64.0.1", "fe80::1%eth0", "fd00::1"] {
            let file = format!("nameserver {private}\n");
            let (asked, status, why) = judged(&file, "", &mode(DnsMode::Auto));
            assert_eq!((asked.as_str(), status), ("1.1.1.1:53", Status::Ok), "{why}");
            assert!(why.contains("private"), "{why}");
            assert_eq!(judged(&file, "", &mode(DnsMode::Off)).1, Status::Warn);
        }
        let named = EngineConfig { dns_server: Some("9.9.9.9:5353".parse().unwrap()), ..mode(DnsMode::Auto) };
        assert_eq!(judged("nameserver 192.168.1.1\n", "", &named).0, "9.9.9.9:5353");
    }

    #[test]
    fn behind_a_stub_it_is_the_one_that_the_stub_asks_that_counts() {
        let stub = "nameserver 127.0.0.53\n";
        let (asked, _, why) = judged(stub, "nameserver 9.9.9.9\n", &mode(DnsMode::Auto));
        assert_eq!(asked, "9.9.9.9:53");
        assert!(why.contains("127.0.0.53") && why.contains("9.9.9.9"), "{why}");
        assert_eq!(judged(stub, "nameserver 10.0.0.1\n", &mode(DnsMode::Auto)).0, "1.1.1.1:53");
        assert_eq!(judged("nameserver 127.0.0.1\n", "", &mode(DnsMode::Auto)).1, Status::Ok);
    }

    #[test]
    fn direct_leaves_names_out_of_the_tunnel() {
        let direct =
            EngineConfig { dns_server: Some("9.9.9.9:53".parse().unwrap()), ..mode(DnsMode::Direct) };
        assert!(judged("nameserver 10.0.0.1\n", "", &direct).2.contains("outside the tunnel"));
    }

    #[test]
    fn the_tunnels_own_resolver_is_known() {
        let dns_local = vec!["198.18.0.2".parse().unwrap()];
        let config = EngineConfig { dns_local, ..mode(DnsMode::Auto) };
        assert!(judged("nameserver 198.18.0.2\n", "", &config).2.contains("tunnel's own"));
    }

    #[test]
    fn nobody_to_ask_is_worth_a_word() {
        assert_eq!(judged("# nothing\n", "", &mode(DnsMode::Auto)).1, Status::Warn);
        let missing = io::Error::from(io::ErrorKind::NotFound);
        let names = Names { servers: Err(missing), upstream: Vec::new() };
        assert_eq!(names.judge(&mode(DnsMode::Auto)).1.status, Status::Warn);
    }
}
