//! Which resolvers the machine asks, and which of them the proxies are asked about.

use super::check::Check;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Whom systemd-resolved asks, when the file above names only itself.
const UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";
const DNS: u16 = 53;
/// Asked through the proxies when the machine names nobody who could be.
const FALLBACK: IpAddr = IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1));

const NAME_ONE: &str = "--dns-server 9.9.9.9 sends the queries to one that every proxy reaches";

/// The resolver that the proxies are asked about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Resolver {
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

    /// Whom the proxies are asked about, and what is to be said of it. `wanted` is `--dns-server`.
    pub(super) fn judge(&self, wanted: Option<SocketAddr>) -> (Resolver, Check) {
        let id = "resolvers";
        let asked = |addr| Resolver { asked: SocketAddr::new(addr, DNS) };
        if let Some(asked) = wanted {
            return (
                Resolver { asked },
                Check::ok(id, format!("queries go to {asked}, as --dns-server says")),
            );
        }
        let servers = match &self.servers {
            Ok(servers) => servers,
            Err(error) => {
                let why = format!("cannot read {RESOLV_CONF}: {error}");
                return (
                    asked(FALLBACK),
                    Check::warn(id, why, "without it programs find no names: write one"),
                );
            }
        };
        let Some(first) = servers.first() else {
            let why = format!("{RESOLV_CONF} names no resolver");
            return (asked(FALLBACK), Check::warn(id, why, "write `nameserver 9.9.9.9` there"));
        };
        let stub = servers.iter().all(|server| server.is_loopback());
        let (behind, effective) = match self.upstream.first() {
            Some(upstream) if stub => (format!("{first}, a stub on this machine, asks "), *upstream),
            Some(_) | None => (String::new(), *first),
        };
        let list = if behind.is_empty() { servers } else { &self.upstream };
        let list = list.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
        if effective.is_loopback() {
            let why = format!("{list}: a resolver on this machine; what it asks others goes into the tunnel");
            return (asked(FALLBACK), Check::ok(id, why));
        }
        if is_private(effective) {
            let why = format!("{behind}{list}: private, so the proxy may not reach it");
            return (asked(effective), Check::warn(id, why, NAME_ONE));
        }
        (asked(effective), Check::ok(id, format!("{behind}{list}, asked through the proxy")))
    }
}

/// Whether it is an address that means something on a local network only.
pub(super) fn is_private(addr: IpAddr) -> bool {
    match addr.to_canonical() {
        IpAddr::V4(addr) => {
            let [a, b, ..] = addr.octets();
            // RFC 6598: shared with carriers.
            addr.is_private() || addr.is_link_local() || a == 100 && b & 0xc0 == 64
        }
        IpAddr::V6(addr) => addr.is_unique_local() || addr.is_unicast_link_local(),
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

    fn judged(servers: &str, upstream: &str, wanted: Option<&str>) -> (String, Status, String) {
        let names = Names { servers: Ok(parse(servers)), upstream: parse(upstream) };
        let (resolver, check) = names.judge(wanted.map(|addr| addr.parse().unwrap()));
        assert_eq!(check.status == Status::Ok, check.remedy.is_none());
        (resolver.asked.to_string(), check.status, check.why)
    }

    #[test]
    fn a_public_resolver_is_well_and_a_private_one_may_be_out_of_the_proxys_reach() {
        let (asked, status, _) = judged("nameserver 9.9.9.9\n", "", None);
        assert_eq!((asked.as_str(), status), ("9.9.9.9:53", Status::Ok));
        for private in ["192.168.1.1", "100.64.0.1", "fe80::1%eth0", "fd00::1"] {
            let (_, status, why) = judged(&format!("nameserver {private}\n"), "", None);
            assert_eq!(status, Status::Warn, "{why}");
        }
        let (asked, status, _) = judged("nameserver 192.168.1.1\n", "", Some("9.9.9.9:5353"));
        assert_eq!((asked.as_str(), status), ("9.9.9.9:5353", Status::Ok));
    }

    #[test]
    fn behind_a_stub_it_is_the_one_that_the_stub_asks_that_counts() {
        let (asked, status, why) = judged("nameserver 127.0.0.53\n", "nameserver 10.0.0.1\n", None);
        assert_eq!((asked.as_str(), status), ("10.0.0.1:53", Status::Warn));
        assert!(why.contains("127.0.0.53") && why.contains("10.0.0.1"), "{why}");
        assert_eq!(judged("nameserver 127.0.0.1\n", "", None).1, Status::Ok);
    }

    #[test]
    fn nobody_to_ask_is_worth_a_word() {
        assert_eq!(judged("# nothing\n", "", None).1, Status::Warn);
        let missing = io::Error::from(io::ErrorKind::NotFound);
        let names = Names { servers: Err(missing), upstream: Vec::new() };
        assert_eq!(names.judge(None).1.status, Status::Warn);
    }
}
