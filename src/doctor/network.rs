//! What else shapes this machine's traffic: other VPNs, rules and routes of other programs, filters, and the way to the proxies.
//!
//! [`Network`] is read once; the judgements are functions of it. Everything that carries ztun's own protocol number is left out: it belongs to a
//! run that lives, or is among the leftovers.

use super::check::Check;
use crate::config::{Cidr, Config, HostPlanConfig};
use crate::dns::address::is_local;
use crate::host::change::{Family, MAIN_TABLE, TABLE};
use crate::host::observe::{self, Interface, SeenRoute, SeenRule};
use crate::host::plan::FIRST_PREFERENCE;
use crate::host::stand_in_name;
use std::fs;
use std::io;
use std::net::SocketAddr;

/// The rule of this preference captures: what comes before it, comes before ztun.
const CAPTURE: u32 = FIRST_PREFERENCE + 10;
/// The table of the machine's own addresses, which always comes first.
const LOCAL_TABLE: u32 = 255;
/// Kinds of interfaces that lead into a tunnel of somebody's.
const TUNNELS: [&str; 9] = ["tun", "wireguard", "ppp", "xfrm", "vti", "vti6", "gre", "ipip", "sit"];
const STRICT: u32 = 1;
const SETTINGS: &str = "/proc/sys/net";

/// The machine's network.
pub(super) struct Network {
    interfaces: Vec<Interface>,
    addresses: Vec<(u32, Cidr)>,
    routes: Vec<SeenRoute>,
    rules: Vec<SeenRule>,
    /// Strict reverse path filters: names of interfaces, or `all`.
    strict: Vec<String>,
    /// Whether IPv6 is switched off; an error when the kernel has none.
    ipv6_off: io::Result<bool>,
}

impl Network {
    /// Reads it, but for what a run on the device `tun` keeps ready for it.
    pub(super) fn read(tun: &str) -> io::Result<Network> {
        let mut interfaces = observe::interfaces()?;
        let stand_in = stand_in_name(tun);
        let hidden = interfaces
            .iter()
            .find(|interface| Some(&interface.name) == stand_in.as_ref())
            .map(|found| found.index);
        interfaces.retain(|interface| Some(interface.index) != hidden);
        let mut rules = observe::rules(Family::V4)?;
        // A kernel without IPv6 has none of its rules.
        rules.extend(observe::rules(Family::V6).unwrap_or_default());
        let setting = |path: &str| {
            let text = fs::read_to_string(format!("{SETTINGS}/{path}"))?;
            text.trim().parse::<u32>().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        };
        // The kernel takes the higher of both.
        let all = setting("ipv4/conf/all/rp_filter").unwrap_or(0);
        let is_strict = |interface: &&Interface| {
            let own = setting(&format!("ipv4/conf/{}/rp_filter", interface.name)).unwrap_or(0);
            own.max(all) == STRICT && !interface.loopback
        };
        let strict = interfaces.iter().filter(is_strict).map(|interface| interface.name.clone()).collect();
        let ipv6_off = setting("ipv6/conf/all/disable_ipv6").map(|value| value != 0);
        let (mut addresses, mut routes) = (observe::addresses()?, observe::routes()?);
        addresses.retain(|(index, _)| Some(*index) != hidden);
        routes.retain(|route| route.interface.is_none() || route.interface != hidden);
        Ok(Network { interfaces, addresses, routes, rules, strict, ipv6_off })
    }

    fn interface(&self, index: u32) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.index == index)
    }

    fn named(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }

    /// Interfaces by which a default route of `table` leads, halves of it included, as some programs set them.
    fn defaults(&self, table: u32) -> Vec<&Interface> {
        let wide = self
            .routes
            .iter()
            .filter(|route| route.table == table && route.leads && route.destination.prefix <= 1);
        let mut found: Vec<&Interface> = Vec::new();
        for interface in wide.filter_map(|route| self.interface(route.interface?)) {
            if !found.contains(&interface) {
                found.push(interface);
            }
        }
        found
    }

    /// Whether a packet out of an app's own accord leaves by IPv6 beyond its link.
    pub(super) fn has_ipv6(&self) -> bool {
        matches!(self.ipv6_off, Ok(false)) && self.addresses.iter().any(|(_, net)| net.addr.is_ipv6())
    }

    /// All checks. `routes` says how ztun's own connections to each proxy leave.
    pub(super) fn examine(
        &self,
        config: &Config,
        routes: &[(SocketAddr, io::Result<SeenRoute>)],
    ) -> Vec<Check> {
        let host = &config.host;
        let mut checks = vec![self.device(host), self.egress(host), self.vpn(host)];
        if host.no_route {
            let why = "--no-route: ztun sets no rules and no routes";
            checks.extend(["rules", "table", "mark", "rp-filter"].map(|id| Check::skipped(id, why)));
        } else {
            checks.extend([self.rules(), self.table(), self.mark(host.mark), self.rp_filter(host)]);
        }
        checks.push(self.ipv6());
        checks.extend(self.loops(config, routes));
        checks
    }

    /// Whether the device's name and addresses are free.
    fn device(&self, host: &HostPlanConfig) -> Check {
        let id = "device";
        let device = self.named(&host.tun);
        if let Some(found) = device
            && host.tun_fd.is_none()
            && found.kind.as_deref() != Some("tun")
        {
            let kind = found.kind.as_deref().unwrap_or("an interface");
            return Check::fail(id, format!("{} is there, and is {kind}", host.tun), "choose another --tun");
        }
        let others =
            self.addresses.iter().filter(|(index, _)| Some(*index) != device.map(|device| device.index));
        for (index, net) in others {
            let Some(own) = host.addresses.iter().find(|own| overlap(own, net)) else { continue };
            let name = self.interface(*index).map_or("another interface", |interface| &interface.name);
            return Check::warn(
                id,
                format!("{own} of {} and {net} of {name} overlap", host.tun),
                "give the device a network that nobody uses: --address",
            );
        }
        match device {
            Some(_) => {
                Check::ok(id, format!("{} is there already: it is taken if nobody has it open", host.tun))
            }
            None => Check::ok(id, format!("{} and its addresses are free", host.tun)),
        }
    }

    /// Whether there is a way out at all.
    fn egress(&self, host: &HostPlanConfig) -> Check {
        let id = "egress";
        if let Some(name) = &host.interface {
            return match self.named(name) {
                None => {
                    Check::fail(id, format!("--interface: there is no {name}"), "see `ip link` for the names")
                }
                Some(found) if !found.up => Check::fail(
                    id,
                    format!("--interface: {name} is down"),
                    format!("`ip link set {name} up`"),
                ),
                Some(_) => Check::ok(id, format!("ztun's own connections leave by {name}")),
            };
        }
        let own = |interface: &&Interface| interface.name == host.tun;
        let defaults = self.defaults(MAIN_TABLE);
        let names: Vec<&str> = defaults
            .iter()
            .filter(|interface| !own(interface))
            .map(|interface| interface.name.as_str())
            .collect();
        match names.as_slice() {
            [] => Check::warn(
                id,
                "the main table has no default route: only what is near, or on this machine, is reached",
                "connect this machine to a network; with routes in other tables only, name one with --interface",
            ),
            [one] => Check::ok(id, format!("the default route leads by {one}")),
            [first, ..] => {
                Check::ok(id, format!("default routes lead by {}; {first} comes first", names.join(", ")))
            }
        }
    }

    /// Tunnels of other programs.
    fn vpn(&self, host: &HostPlanConfig) -> Check {
        let id = "vpn";
        let tunnels: Vec<&Interface> = self
            .interfaces
            .iter()
            .filter(|interface| interface.up && interface.name != host.tun)
            .filter(|interface| interface.kind.as_deref().is_some_and(|kind| TUNNELS.contains(&kind)))
            .collect();
        if tunnels.is_empty() {
            return Check::ok(id, "no other tunnel is up");
        }
        let names = |of: &[&Interface]| {
            let text = |tunnel: &&Interface| {
                format!("{} ({})", tunnel.name, tunnel.kind.as_deref().unwrap_or("tun"))
            };
            of.iter().map(text).collect::<Vec<_>>().join(", ")
        };
        let defaults = self.defaults(MAIN_TABLE);
        let leading: Vec<&Interface> =
            tunnels.iter().copied().filter(|tunnel| defaults.contains(tunnel)).collect();
        if !leading.is_empty() {
            return Check::warn(
                id,
                format!(
                    "the default route leads into {}: what ztun sends, to the proxy too, goes through it",
                    names(&leading)
                ),
                "stop that one, or name the interface by which ztun's own connections are to leave: --interface",
            );
        }
        let nets: Vec<String> = self
            .addresses
            .iter()
            .filter(|(index, net)| tunnels.iter().any(|tunnel| tunnel.index == *index) && is_local(net.addr))
            .map(|(_, net)| format!("--bypass {net}"))
            .collect();
        let remedy =
            if nets.is_empty() { "--bypass NETWORK for what is behind it".into() } else { nets.join(" ") };
        Check::warn(id, format!("{} is up, and what it leads to goes into ztun", names(&tunnels)), remedy)
    }

    /// Rules of others that are asked before the one that captures.
    fn rules(&self) -> Check {
        let id = "rules";
        let earlier = |rule: &&SeenRule| {
            !rule.own && !rule.vrf && rule.preference <= CAPTURE && rule.table != Some(LOCAL_TABLE)
        };
        let earlier: Vec<&SeenRule> = self.rules.iter().filter(earlier).collect();
        let takes_all = |rule: &&&SeenRule| {
            let leads = |table| self.routes.iter().any(|route| self.answers(route, rule, table));
            rule.all && rule.shortest == 0 && rule.table.is_none_or(leads)
        };
        if let Some(rule) = earlier.iter().find(takes_all) {
            let to = rule.table.map_or("refuses".into(), |table| format!("leads by table {table}"));
            return Check::fail(
                id,
                format!(
                    "the rule {} of another program {to} for every {} packet: ztun gets none",
                    rule.preference,
                    version(rule.family)
                ),
                "stop the program that has made it (see `ip rule`), or give it a preference above 5300",
            );
        }
        let mut found: Vec<String> = earlier.iter().map(|rule| rule.preference.to_string()).collect();
        found.dedup();
        if found.is_empty() {
            return Check::ok(id, "nobody's rule comes before ztun's");
        }
        Check::warn(
            id,
            format!(
                "rules of other programs come before ztun's ({}): what they select stays outside the tunnel",
                found.join(", ")
            ),
            "see `ip rule` and `ip -6 rule`; stop the program that has made them if that is not wanted",
        )
    }

    /// Whether `route`, in `table`, is a default route for the packets of `rule`.
    fn answers(&self, route: &SeenRoute, rule: &SeenRule, table: u32) -> bool {
        route.table == table
            && route.destination.prefix == 0
            && Family::of(&route.destination) == rule.family
            && !route.own
    }

    /// Others in ztun's table.
    fn table(&self) -> Check {
        let id = "table";
        let routes = self.routes.iter().filter(|route| route.table == TABLE && !route.own).count();
        let rules = self.rules.iter().filter(|rule| rule.table == Some(TABLE) && !rule.own).count();
        if routes + rules == 0 {
            return Check::ok(id, format!("nobody else uses the routing table {TABLE}"));
        }
        Check::fail(
            id,
            format!("another program uses the routing table {TABLE}: {routes} routes, {rules} rules"),
            format!("stop it: see `ip route show table {TABLE}` and `ip rule`"),
        )
    }

    /// Others that select ztun's mark.
    fn mark(&self, mark: u32) -> Check {
        let id = "mark";
        let clashes = |rule: &&SeenRule| {
            let selects = |(value, mask): (u32, u32)| mask != 0 && mark & mask == value & mask;
            !rule.own && rule.mark.is_some_and(selects)
        };
        let Some(rule) = self.rules.iter().find(clashes) else {
            return Check::ok(id, format!("nobody else selects the mark {mark:#x}"));
        };
        Check::warn(
            id,
            format!(
                "the rule {} of another program selects the mark {mark:#x} of ztun's own connections",
                rule.preference
            ),
            "choose another with --mark",
        )
    }

    /// Strict filters drop answers that come in by an interface that the way back does not lead by.
    fn rp_filter(&self, host: &HostPlanConfig) -> Check {
        let id = "rp-filter";
        let ways = self.defaults(MAIN_TABLE);
        let strict = |name: &str| self.strict.iter().any(|strict| strict == name);
        let egress: Vec<&str> = ways
            .iter()
            .map(|way| way.name.as_str())
            .chain(host.interface.as_deref())
            .filter(|name| strict(name))
            .collect();
        let one_way = ways.len() <= 1
            && host.interface.as_deref().is_none_or(|name| ways.iter().all(|way| way.name == name));
        match egress.as_slice() {
            [] => Check::ok(id, "not strict on the way out"),
            [first, ..] if one_way => {
                Check::ok(id, format!("strict on {first}, the only way out: answers come back by it"))
            }
            [first, ..] => Check::warn(
                id,
                format!(
                    "strict on {first}, and there are several ways out: answers to ztun's own connections may be dropped"
                ),
                format!("`sysctl net.ipv4.conf.{first}.rp_filter=2`"),
            ),
        }
    }

    fn ipv6(&self) -> Check {
        let id = "ipv6";
        match &self.ipv6_off {
            Err(_) => Check::ok(id, "the kernel has none, so nothing of it can leak"),
            Ok(true) => Check::ok(id, "switched off, so nothing of it can leak"),
            Ok(false) if self.has_ipv6() => Check::ok(id, "this machine has it, and it goes into the tunnel"),
            Ok(false) => Check::ok(id, "on, but no interface has an address beyond its link"),
        }
    }

    /// `loop`: whether what goes to a proxy would come back into a tunnel.
    fn loops(&self, config: &Config, routes: &[(SocketAddr, io::Result<SeenRoute>)]) -> Vec<Check> {
        let id = "loop";
        let judge = |(addr, route): &(SocketAddr, io::Result<SeenRoute>)| {
            let ip = addr.ip().to_canonical();
            if let Some(net) = config.host.addresses.iter().find(|net| net.contains(ip)) {
                return Check::fail(
                    id,
                    format!("the proxy's address lies in {net}, the network of the tunnel"),
                    "give the proxy by its true address (a name may have been answered with a fake one), or the device another --address",
                );
            }
            let route = match route {
                Ok(route) => route,
                Err(error) => {
                    let why = format!("this machine has no way to the proxy: {error}");
                    return Check::fail(id, why, format!("see `ip route get {ip}`"));
                }
            };
            let way = route.interface.and_then(|index| self.interface(index));
            match way {
                Some(way) if way.name == config.host.tun => Check::fail(
                    id,
                    format!("the way to the proxy leads into {}", way.name),
                    "`sudo ztun restore`, and look for routes into it that are not ztun's: `ip route show table all`",
                ),
                Some(way) if way.kind.as_deref().is_some_and(|kind| TUNNELS.contains(&kind)) => Check::warn(
                    id,
                    format!("the way to the proxy leads through the tunnel {}", way.name),
                    "well if that is wanted; a tunnel that leads to the same proxy is a loop: stop it",
                ),
                Some(way) => Check::ok(id, format!("the way to the proxy leads by {}", way.name)),
                None => Check::ok(id, "the way to the proxy leads into no tunnel"),
            }
        };
        routes.iter().map(|entry| judge(entry).of(entry.0)).collect()
    }
}

/// How ztun's own connections to each proxy leave.
pub(super) fn routes(config: &Config) -> Vec<(SocketAddr, io::Result<SeenRoute>)> {
    let way = |addr: SocketAddr| observe::route_to(addr.ip().to_canonical(), config.host.mark);
    config.engine.proxies.iter().map(|proxy| (proxy.addr, way(proxy.addr))).collect()
}

fn overlap(a: &Cidr, b: &Cidr) -> bool {
    let (wide, narrow) = if a.prefix <= b.prefix { (a, b) } else { (b, a) };
    wide.contains(narrow.addr)
}

fn version(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}
