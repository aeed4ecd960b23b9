//! Routing decisions (`--rule 'MATCH -> OUTBOUND'`): first match wins.

use crate::config::Cidr;
use crate::wire::Endpoint;

/// Where a flow goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// To the proxy.
    Proxy,
    /// Out of the egress interface.
    Direct,
    /// Refused with RST or ICMP.
    Reject,
    /// Dropped without an answer.
    Drop,
}

/// Protocols a rule can name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo.
    Icmp,
}

/// One rule: every condition that is set must hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// `dst=CIDR`.
    pub dst: Option<Cidr>,
    /// `port=N` or `port=N-M`, inclusive.
    pub ports: Option<(u16, u16)>,
    /// `proto=`.
    pub proto: Option<Proto>,
    /// What follows the arrow.
    pub route: Route,
}

impl Rule {
    /// Whether the rule is for this flow.
    pub fn matches(&self, proto: Proto, remote: Endpoint) -> bool {
        self.dst.is_none_or(|net| net.contains(remote.addr))
            && self.proto.is_none_or(|p| p == proto)
            && self.ports.is_none_or(|(low, high)| proto != Proto::Icmp && (low..=high).contains(&remote.port))
    }
}

/// The decision for a flow: the first rule that matches, else the proxy.
pub fn decide(rules: &[Rule], proto: Proto, remote: Endpoint) -> Route {
    rules.iter().find(|rule| rule.matches(proto, remote)).map_or(Route::Proxy, |rule| rule.route)
}
