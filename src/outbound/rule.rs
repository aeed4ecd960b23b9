//! Routing decisions (`--rule 'MATCH -> OUTBOUND'`): first match wins.
//!
//! A rule is a conjunction of conditions, each of which may be left out, and the way out for what meets
//! them. The text form is `any` or comma-separated `KEY=VALUE`, an arrow, and the name of the way out; every
//! error names the piece that is wrong and what is allowed in its place.

use crate::config::{Cidr, CidrError};
use crate::wire::Endpoint;
use core::fmt;
use core::str::FromStr;

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
            && self
                .ports
                .is_none_or(|(low, high)| proto != Proto::Icmp && (low..=high).contains(&remote.port))
    }
}

/// The first rule that matches a flow.
pub fn first(rules: &[Rule], proto: Proto, remote: Endpoint) -> Option<&Rule> {
    rules.iter().find(|rule| rule.matches(proto, remote))
}

/// The decision for a flow: the first rule that matches, else the proxy.
pub fn decide(rules: &[Rule], proto: Proto, remote: Endpoint) -> Route {
    first(rules, proto, remote).map_or(Route::Proxy, |rule| rule.route)
}

/// What is wrong with the text of a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RuleError {
    /// There is no `->`.
    Arrow(String),
    /// What follows the arrow is no way out.
    Route(String),
    /// A condition that is not `KEY=VALUE`, an empty one, or `any` beside others.
    Condition(String),
    /// A key that there is not.
    Key(String),
    /// A key that is given twice.
    Twice(&'static str),
    /// The value of `dst=`.
    Dst(CidrError),
    /// The value of `port=`.
    Port(String),
    /// The value of `proto=`.
    Proto(String),
    /// `port=` together with `proto=icmp`.
    PortOfIcmp,
    /// A word that is reserved and that this version does not understand.
    NotBuilt(&'static str),
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RuleError::Arrow(text) => {
                write!(
                    f,
                    "'{text}' has no '->'; a rule is 'MATCH -> OUTBOUND', as in 'proto=udp,port=443 -> reject'"
                )
            }
            RuleError::Route(text) => {
                write!(f, "'{text}' is no outbound; it is one of proxy, direct, reject, drop")
            }
            RuleError::Condition(text) => {
                write!(f, "'{text}' is no condition; MATCH is 'any' alone, or KEY=VALUE separated by commas")
            }
            RuleError::Key(key) => write!(f, "there is no condition '{key}='; there are dst=, port=, proto="),
            RuleError::Twice(key) => write!(f, "'{key}=' is given twice; use one rule for each value"),
            RuleError::Dst(error) => write!(f, "dst=: {error}"),
            RuleError::Port(text) => {
                write!(
                    f,
                    "port=: '{text}' is neither a port nor a range N-M with N not above M, of 1 to 65535"
                )
            }
            RuleError::Proto(text) => write!(f, "proto=: '{text}' is none of tcp, udp, icmp"),
            RuleError::PortOfIcmp => f.write_str(
                "'port=' and 'proto=icmp' exclude each other: ICMP has no ports, so the rule matches nothing",
            ),
            RuleError::NotBuilt(word) => {
                write!(f, "'{word}' is not built yet; it is reserved for a later version")
            }
        }
    }
}

impl std::error::Error for RuleError {}

impl FromStr for Rule {
    type Err = RuleError;

    /// Reads `MATCH -> OUTBOUND`. White space around the pieces is allowed.
    fn from_str(text: &str) -> Result<Rule, RuleError> {
        let (conditions, route) =
            text.split_once("->").ok_or_else(|| RuleError::Arrow(text.trim().into()))?;
        let mut rule = Rule { dst: None, ports: None, proto: None, route: route.parse()? };
        if conditions.trim() == "any" {
            return Ok(rule);
        }
        for condition in conditions.split(',') {
            rule.add_condition(condition.trim())?;
        }
        if rule.ports.is_some() && rule.proto == Some(Proto::Icmp) {
            return Err(RuleError::PortOfIcmp);
        }
        Ok(rule)
    }
}

impl Rule {
    fn add_condition(&mut self, condition: &str) -> Result<(), RuleError> {
        let (key, value) = condition.split_once('=').ok_or_else(|| RuleError::Condition(condition.into()))?;
        let value = value.trim();
        match key.trim() {
            "dst" => set(&mut self.dst, "dst", value.parse().map_err(RuleError::Dst)?),
            "port" => {
                let ports = parse_ports(value).ok_or_else(|| RuleError::Port(value.into()))?;
                set(&mut self.ports, "port", ports)
            }
            "proto" => set(&mut self.proto, "proto", value.parse()?),
            "domain" => Err(RuleError::NotBuilt("domain=")),
            "process" => Err(RuleError::NotBuilt("process=")),
            "uid" => Err(RuleError::NotBuilt("uid=")),
            other => Err(RuleError::Key(other.into())),
        }
    }
}

fn set<T>(field: &mut Option<T>, key: &'static str, value: T) -> Result<(), RuleError> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(RuleError::Twice(key)),
    }
}

fn parse_ports(text: &str) -> Option<(u16, u16)> {
    let (low, high) = match text.split_once('-') {
        Some((low, high)) => (parse_port(low)?, parse_port(high)?),
        None => {
            let port = parse_port(text)?;
            (port, port)
        }
    };
    (low <= high).then_some((low, high))
}

fn parse_port(text: &str) -> Option<u16> {
    let text = text.trim();
    // The standard parser takes a plus sign.
    let digits = text.bytes().all(|octet| octet.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

impl FromStr for Route {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Route, RuleError> {
        match text.trim() {
            "proxy" => Ok(Route::Proxy),
            "direct" => Ok(Route::Direct),
            "reject" => Ok(Route::Reject),
            "drop" => Ok(Route::Drop),
            "split" => Err(RuleError::NotBuilt("split")),
            other => Err(RuleError::Route(other.into())),
        }
    }
}

impl FromStr for Proto {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Proto, RuleError> {
        match text {
            "tcp" => Ok(Proto::Tcp),
            "udp" => Ok(Proto::Udp),
            "icmp" => Ok(Proto::Icmp),
            other => Err(RuleError::Proto(other.into())),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Route::Proxy => "proxy",
            Route::Direct => "direct",
            Route::Reject => "reject",
            Route::Drop => "drop",
        })
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
            Proto::Icmp => "icmp",
        })
    }
}

impl fmt::Display for Rule {
    /// Writes the rule as [`Rule::from_str`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if let Some(dst) = self.dst {
            write!(f, "dst={dst}")?;
            separator = ",";
        }
        if let Some((low, high)) = self.ports {
            write!(f, "{separator}port={low}")?;
            if low != high {
                write!(f, "-{high}")?;
            }
            separator = ",";
        }
        if let Some(proto) = self.proto {
            write!(f, "{separator}proto={proto}")?;
            separator = ",";
        }
        if separator.is_empty() {
            f.write_str("any")?;
        }
        write!(f, " -> {}", self.route)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;
    use proptest::prelude::*;

    fn rule(text: &str) -> Rule {
        text.parse().unwrap()
    }

    fn endpoint(text: &str) -> Endpoint {
        text.parse::<std::net::SocketAddr>().unwrap().into()
    }

    #[test]
    fn the_first_rule_that_matches_decides_and_the_proxy_takes_the_rest() {
        let rules = [
            rule("dst=192.168.1.1 -> reject"),
            rule("dst=192.168.0.0/16 -> direct"),
            rule("proto=udp,port=443 -> drop"),
        ];
        let decided = |proto, remote| decide(&rules, proto, endpoint(remote));
        assert_eq!(decided(Proto::Tcp, "192.168.1.1:80"), Route::Reject);
        assert_eq!(decided(Proto::Udp, "192.168.2.1:443"), Route::Direct);
        assert_eq!(decided(Proto::Udp, "[2001:db8::1]:443"), Route::Drop);
        assert_eq!(decided(Proto::Tcp, "[2001:db8::1]:443"), Route::Proxy);
        assert_eq!(decide(&[], Proto::Icmp, endpoint("1.1.1.1:0")), Route::Proxy);
    }

    #[test]
    fn a_port_is_inside_its_range_ends_included_and_icmp_has_none() {
        let range = rule("port=1000-2000 -> direct");
        for (port, inside) in [(999, false), (1000, true), (2000, true), (2001, false)] {
            let remote = Endpoint::new(IpAddr::from([1, 1, 1, 1]), port);
            assert_eq!(range.matches(Proto::Tcp, remote), inside, "{port}");
            assert_eq!(range.matches(Proto::Udp, remote), inside, "{port}");
            // For ICMP the number is an echo identifier.
            assert!(!range.matches(Proto::Icmp, remote), "{port}");
        }
        assert!(rule("any -> drop").matches(Proto::Icmp, endpoint("1.1.1.1:1500")));
    }

    #[test]
    fn rules_are_read_with_and_without_space() {
        let plain = rule("dst=10.0.0.0/8,port=53,proto=udp -> direct");
        assert_eq!(rule(" dst = 10.0.0.0/8 , port = 53 - 53, proto = udp->direct "), plain);
        assert_eq!(plain.ports, Some((53, 53)));
        assert_eq!(rule("any->proxy"), Rule { dst: None, ports: None, proto: None, route: Route::Proxy });
    }

    #[test]
    fn errors_name_the_piece_and_what_is_allowed() {
        let cases: [(&str, &[&str]); 24] = [
            ("port=53", &["'port=53'", "MATCH -> OUTBOUND"]),
            ("", &["->"]),
            ("any -> prxy", &["'prxy'", "proxy, direct, reject, drop"]),
            ("any ->", &["''", "proxy, direct, reject, drop"]),
            ("any -> direct -> drop", &["'direct -> drop'", "proxy, direct"]),
            ("any -> split", &["'split'", "not built yet"]),
            ("domain=example.com -> direct", &["'domain='", "not built yet"]),
            ("process=curl -> direct", &["'process='", "not built yet"]),
            ("uid=0 -> direct", &["'uid='", "not built yet"]),
            ("src=10.0.0.1 -> direct", &["'src='", "dst=, port=, proto="]),
            ("-> direct", &["''", "KEY=VALUE"]),
            ("any,port=53 -> direct", &["'any'", "alone"]),
            ("port=53, -> direct", &["''", "KEY=VALUE"]),
            ("port=0 -> direct", &["'0'", "1 to 65535"]),
            ("port=65536 -> direct", &["'65536'", "1 to 65535"]),
            ("port=+53 -> direct", &["'+53'", "1 to 65535"]),
            ("port=2-1 -> direct", &["'2-1'", "N not above M"]),
            ("port=1-2-3 -> direct", &["'1-2-3'", "range"]),
            ("port= -> direct", &["port=: ''", "range"]),
            ("proto=sctp -> direct", &["'sctp'", "tcp, udp, icmp"]),
            ("port=53,port=54 -> direct", &["'port='", "twice"]),
            ("proto=icmp,port=53 -> direct", &["'proto=icmp'", "ICMP has no ports"]),
            ("dst=example.com -> direct", &["dst=", "'example.com'", "address"]),
            ("dst=10.0.0.0/33 -> direct", &["dst=", "'33'", "0 to 32"]),
        ];
        for (text, words) in cases {
            let error = text.parse::<Rule>().expect_err(text).to_string();
            for word in words {
                assert!(error.contains(word), "{text:?} gave {error:?}, which does not say {word:?}");
            }
        }
    }

    fn rules() -> impl Strategy<Value = Rule> {
        let dst =
            (any::<IpAddr>(), 0u8..=128).prop_filter_map("prefix", |(addr, prefix)| Cidr::new(addr, prefix));
        let ports = (1u16.., 1u16..).prop_map(|(a, b)| (a.min(b), a.max(b)));
        let proto = prop::sample::select(vec![Proto::Tcp, Proto::Udp, Proto::Icmp]);
        let route = prop::sample::select(vec![Route::Proxy, Route::Direct, Route::Reject, Route::Drop]);
        (prop::option::of(dst), prop::option::of(ports), prop::option::of(proto), route)
            .prop_map(|(dst, ports, proto, route)| Rule { dst, ports, proto, route })
            .prop_filter("icmp has no ports", |rule| rule.ports.is_none() || rule.proto != Some(Proto::Icmp))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(rule in rules()) {
            prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[a-z=,>/:0-9. -]{0,40}|\\PC{0,40}") {
            if let Ok(rule) = text.parse::<Rule>() {
                prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
            }
        }
    }
}
