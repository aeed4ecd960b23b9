//! Names: who is asked instead of whom, and by which way.
//!
//! What apps send to port 53 is looked at before it takes its way. Rules come first: what they refuse stays refused, what
//! they send out of the egress interface asks whom the app addressed, and one that names the resolver's address means that address.
//! Then, unless `--dns off`:
//!
//! - the tunnel's own resolver addresses stand for the upstream, always;
//! - `--dns-server` is asked instead of all others;
//! - without it, a link-local or loopback resolver, or a private one that the machine is set to ask, means somebody else, or nobody, at the proxy: the upstream is asked through the proxy;
//! - any other is asked itself.
//!
//! The app sees the answer come from the address that it asked: a TCP flow keeps its endpoints, and of datagrams it is kept who was asked.

use super::Engine;
use super::association::Way;
use crate::config::{DNS_UPSTREAM, DnsMode, UdpMode};
use crate::dns::{Carrier, address, message};
use crate::outbound::rule::{self, Proto, Route, Rule};
use crate::time::Instant;
use crate::wire::Endpoint;
use core::net::IpAddr;

/// What becomes of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Leave {
    /// It goes to this target.
    By(Way, Endpoint),
    /// Refused with ICMP.
    Refused,
    /// Dropped in silence.
    Dropped,
}

/// From where a resolver is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reach {
    /// From the proxy.
    Proxy,
    /// From this machine.
    Direct,
    /// A rule says that it can be reached.
    Meant,
}

impl Reach {
    fn of(rule: Option<&Rule>, direct: bool) -> Reach {
        let meant = rule
            .is_some_and(|rule| rule.route == Route::Direct || rule.dst.is_some_and(|dst| dst.prefix > 0));
        match (meant, direct) {
            (true, _) => Reach::Meant,
            (false, true) => Reach::Direct,
            (false, false) => Reach::Proxy,
        }
    }
}

impl Engine {
    /// Whether what goes to `remote` is about names.
    pub(super) fn is_name(&self, remote: Endpoint) -> bool {
        remote.port == crate::dns::PORT && self.config.dns != DnsMode::Off
    }

    /// Whether `addr` is a resolver address of the tunnel's own: nobody is there but for names.
    fn is_own_resolver(&self, addr: IpAddr) -> bool {
        self.config.dns != DnsMode::Off && self.config.dns_local.contains(&addr)
    }

    /// Whether `addr` is a resolver that means something here, and nobody or somebody else at the proxy: a private one that the machine is set to ask, as
    /// DHCP gave it, or one that no proxy can have. Other private ones may be the proxy's own network's.
    fn is_of_the_machine(&self, addr: IpAddr) -> bool {
        address::is_bound(addr) || (address::is_local(addr) && self.config.dns_machine.contains(&addr))
    }

    /// Who is asked when an app asks `asked`.
    fn name_server(&self, asked: Endpoint, reach: Reach) -> Endpoint {
        let given = self.config.dns_server.map(Endpoint::from);
        let upstream = given.unwrap_or(DNS_UPSTREAM.into());
        if self.is_own_resolver(asked.addr) {
            return upstream;
        }
        match (self.is_of_the_machine(asked.addr), reach) {
            (true, Reach::Meant) => asked,
            (true, Reach::Proxy) => upstream,
            (true, Reach::Direct) | (false, _) => given.unwrap_or(asked),
        }
    }

    /// Whether datagrams from `remote` are answers about names.
    pub(super) fn is_name_server(&self, remote: Endpoint) -> bool {
        let given = self.config.dns_server.is_some_and(|server| Endpoint::from(server) == remote);
        self.config.dns != DnsMode::Off && (given || remote.port == crate::dns::PORT)
    }

    /// The way of a TCP flow, and where it leads.
    pub(super) fn flow_route(&self, remote: Endpoint) -> (Route, Endpoint) {
        let rule = rule::first(&self.config.rules, Proto::Tcp, remote);
        let route = rule.map_or(Route::Proxy, |rule| rule.route);
        if !self.is_name(remote) {
            let nobody = self.is_own_resolver(remote.addr) && route != Route::Drop;
            return (if nobody { Route::Reject } else { route }, remote);
        }
        let route = match (route, self.config.dns) {
            (Route::Proxy, DnsMode::Direct) => Route::Direct,
            (route, _) => route,
        };
        (route, self.name_server(remote, Reach::of(rule, route == Route::Direct)))
    }

    /// Where a flow of the local proxy itself leads.
    pub(super) fn outside_target(&self, remote: Endpoint) -> Endpoint {
        if self.is_name(remote) { self.name_server(remote, Reach::Direct) } else { remote }
    }

    /// Whether a datagram to `asked` may go over TCP: it is a query, and is not to go by datagrams alone.
    pub(super) fn may_stream(&self, asked: Endpoint, payload: &[u8]) -> bool {
        let mode = match self.config.dns {
            DnsMode::Auto | DnsMode::Tcp => true,
            DnsMode::Udp | DnsMode::Direct | DnsMode::Off => false,
        };
        mode && self.is_name(asked) && message::is_query(payload)
    }

    /// Names go over TCP from here on, since the proxy does not do something.
    pub(super) fn names_fall_back(&mut self, what: &str, now: Instant) {
        if self.config.dns == DnsMode::Auto && self.pool.names_fall_back(now) {
            self.dns.stats_mut().fallbacks += 1;
            log::info!("the proxy {what}: names are asked over TCP, and by datagrams again in some minutes");
        }
    }

    /// Runs the timers of queries that went by datagrams; when none of the last ones was answered, names go over TCP.
    pub(super) fn names_timeout(&mut self, now: Instant) {
        let before = self.dns.stats().udp.timeouts;
        self.dns.handle_timeout(now);
        let silent = u32::try_from(self.dns.stats().udp.timeouts - before).unwrap_or(u32::MAX);
        if silent > 0 && self.pool.names_silent(silent) {
            self.names_fall_back("answers no datagrams about names", now);
        }
    }

    /// The way of a datagram.
    pub(super) fn datagram_route(&self, remote: Endpoint, payload: &[u8], now: Instant) -> Leave {
        let streams = self.may_stream(remote, payload);
        let by_datagram = self.config.dns == DnsMode::Auto && self.pool.names_by_datagram(now);
        let rule = rule::first(&self.config.rules, Proto::Udp, remote);
        let way = match (rule.map_or(Route::Proxy, |rule| rule.route), self.config.udp) {
            (Route::Drop, _) => return Leave::Dropped,
            (Route::Reject, _) => return Leave::Refused,
            (Route::Direct, _) => Way::Direct,
            (Route::Proxy, _) if streams && self.config.dns == DnsMode::Tcp => Way::Names,
            (Route::Proxy, UdpMode::Direct) => Way::Direct,
            (Route::Proxy, _) if self.is_name(remote) && self.config.dns == DnsMode::Direct => Way::Direct,
            (Route::Proxy, UdpMode::Reject) if streams => Way::Names,
            (Route::Proxy, UdpMode::Reject) => return Leave::Refused,
            (Route::Proxy, UdpMode::Auto | UdpMode::Socks5) if streams && !by_datagram => Way::Names,
            (Route::Proxy, UdpMode::Auto | UdpMode::Socks5) => Way::Proxy,
        };
        if !self.is_name(remote) {
            return if self.is_own_resolver(remote.addr) { Leave::Refused } else { Leave::By(way, remote) };
        }
        Leave::By(way, self.name_server(remote, Reach::of(rule, way == Way::Direct)))
    }
}

impl Way {
    /// By what a query goes that takes this way.
    pub(super) fn carrier(self) -> Carrier {
        match self {
            Way::Proxy => Carrier::Udp,
            Way::Direct => Carrier::Direct,
            Way::Names => Carrier::Tcp,
        }
    }
}
