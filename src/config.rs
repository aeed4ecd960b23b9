//! What a run is to do: validated once, immutable, no I/O.
//!
//! `cli` makes a [`Config`] out of what was typed; everything behind it trusts the values.

use crate::outbound::rule::Rule;
pub use crate::stack::OffloadLevel;
use crate::stack::{EchoMode, StackConfig};
use crate::time::Duration;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::str::FromStr;

/// A network: address and prefix length, host bits as given.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Cidr {
    /// The address.
    pub addr: IpAddr,
    /// Prefix length: at most 32 or 128.
    pub prefix: u8,
}

impl Cidr {
    /// The network `addr`/`prefix`; `None` when the prefix is longer than the address.
    pub fn new(addr: IpAddr, prefix: u8) -> Option<Cidr> {
        let longest = if addr.is_ipv4() { 32 } else { 128 };
        (prefix <= longest).then_some(Cidr { addr, prefix })
    }

    /// The network of one address.
    pub fn host(addr: IpAddr) -> Cidr {
        Cidr { addr, prefix: if addr.is_ipv4() { 32 } else { 128 } }
    }

    /// Whether `addr` lies in the network. Families never match each other.
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self.addr, addr) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                same_prefix(a.to_bits().into(), b.to_bits().into(), 32, self.prefix)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => same_prefix(a.to_bits(), b.to_bits(), 128, self.prefix),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

fn same_prefix(a: u128, b: u128, width: u32, prefix: u8) -> bool {
    (a ^ b).checked_shr(width.saturating_sub(u32::from(prefix))).unwrap_or(0) == 0
}

/// What is wrong with the text of a network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CidrError {
    /// What stands before the slash is no address.
    Address(String),
    /// What follows the slash is no prefix length for the address.
    Prefix {
        /// What follows the slash.
        text: String,
        /// The longest prefix of the address's family.
        longest: u8,
    },
}

impl fmt::Display for CidrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CidrError::Address(text) => {
                write!(
                    f,
                    "'{text}' is no IPv4 or IPv6 address; a network is ADDRESS or ADDRESS/PREFIX, as in 10.0.0.0/8"
                )
            }
            CidrError::Prefix { text, longest } => {
                write!(f, "'{text}' is no prefix length; for this address it is 0 to {longest}")
            }
        }
    }
}

impl std::error::Error for CidrError {}

impl FromStr for Cidr {
    type Err = CidrError;

    /// Reads `ADDRESS/PREFIX`, or `ADDRESS` for the network of that one address. Host bits are kept as
    /// given and do not matter to [`Cidr::contains`].
    fn from_str(text: &str) -> Result<Cidr, CidrError> {
        let (addr, prefix) = match text.split_once('/') {
            Some((addr, prefix)) => (addr, Some(prefix)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| CidrError::Address(addr.into()))?;
        let host = Cidr::host(addr);
        let Some(prefix) = prefix else { return Ok(host) };
        // The standard parser takes a plus sign.
        let digits = prefix.bytes().all(|octet| octet.is_ascii_digit());
        prefix
            .parse()
            .ok()
            .filter(|_| digits)
            .and_then(|prefix| Cidr::new(addr, prefix))
            .ok_or_else(|| CidrError::Prefix { text: prefix.into(), longest: host.prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

/// User and password (RFC 1929), each 1 to 255 octets. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub user: String,
    /// Password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// A SOCKS5 server, its name resolved once, outside the tunnel, and pinned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proxy {
    /// Where it listens.
    pub addr: SocketAddr,
    /// What it wants to hear.
    pub credentials: Option<Credentials>,
}

/// When the SYN-ACK is sent (`--accept`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Accept {
    /// After the outbound has connected: a refused port stays refused.
    #[default]
    Late,
    /// At once; the outbound is dialled when the handshake is complete.
    Early,
}

/// Whether the messages of a SOCKS5 dialogue wait for the answers to those before (`--pipeline`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pipeline {
    /// They do until the proxy has been found to understand them together.
    #[default]
    Auto,
    /// They never do.
    On,
    /// They always do.
    Off,
}

/// How datagrams leave (`--udp`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum UdpMode {
    /// Through the proxy; refused with ICMP when it cannot.
    #[default]
    Auto,
    /// Through the proxy.
    Socks5,
    /// Through the egress interface.
    Direct,
    /// Refused with ICMP.
    Reject,
}

/// How names are resolved (`--dns`): what becomes of TCP and UDP port 53.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum DnsMode {
    /// By datagrams while the proxy carries datagrams, else over TCP.
    #[default]
    Auto,
    /// By datagrams, like any others.
    Udp,
    /// Over TCP through the proxy (RFC 7766), also what apps ask by datagrams.
    Tcp,
    /// Out of the egress interface, to whom the app asks.
    Direct,
    /// Port 53 is a port like others.
    Off,
}

/// Who is asked instead of a resolver that the proxy cannot reach, when `--dns-server` names nobody.
pub const DNS_UPSTREAM: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)), 53);

/// The tunnel's own resolver addresses: the one behind each address of the device, or before it where there is none behind.
///
/// The machine is told to ask there; the engine sends those queries to the upstream.
pub fn resolver_addresses(device: &[Cidr]) -> Vec<IpAddr> {
    device.iter().filter_map(|address| neighbour(*address)).collect()
}

/// Another host's address in the network of `own`.
fn neighbour(own: Cidr) -> Option<IpAddr> {
    let usable = |addr: IpAddr| {
        // First and last address of an IPv4 network are no host's, but where there are only two (RFC 3021).
        let last = match addr {
            IpAddr::V4(v4) if own.prefix < 31 => {
                let host = u32::MAX.checked_shr(own.prefix.into()).unwrap_or(0);
                v4.to_bits() & host == host || v4.to_bits() & host == 0
            }
            IpAddr::V4(_) | IpAddr::V6(_) => false,
        };
        own.contains(addr) && !last
    };
    let step = |up: bool| match own.addr {
        IpAddr::V4(v4) => {
            let bits = if up { v4.to_bits().checked_add(1) } else { v4.to_bits().checked_sub(1) };
            bits.map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)))
        }
        IpAddr::V6(v6) => {
            let bits = if up { v6.to_bits().checked_add(1) } else { v6.to_bits().checked_sub(1) };
            bits.map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)))
        }
    };
    [true, false].into_iter().filter_map(step).find(|addr| usable(*addr))
}

/// Limits and policy of the sans-IO engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The stack's own limits.
    pub stack: StackConfig,
    /// Proxies in order of preference; the next is tried when one cannot be reached.
    pub proxies: Vec<Proxy>,
    /// Routing decisions, first match wins; what matches none goes to the proxy.
    pub rules: Vec<Rule>,
    /// When the SYN-ACK is sent.
    pub accept: Accept,
    /// How datagrams leave.
    pub udp: UdpMode,
    /// How names are resolved.
    pub dns: DnsMode,
    /// Whom queries go to instead of whom the app asks (`--dns-server`).
    pub dns_server: Option<SocketAddr>,
    /// The tunnel's own resolver addresses, see [`resolver_addresses`]: queries to them go to `dns_server`, else to
    /// [`DNS_UPSTREAM`], and nothing else is there.
    pub dns_local: Vec<IpAddr>,
    /// The resolvers that this machine is set to ask: private ones mean its own network, and nobody at the proxy.
    pub dns_machine: Vec<IpAddr>,
    /// UDP mappings at once (`--max-udp`).
    pub max_udp: usize,
    /// Idle time of a UDP mapping (`--udp-idle`).
    pub udp_idle: Duration,
    /// Time for dialling plus handshake (`--connect-timeout`).
    pub connect_timeout: Duration,
    /// Connections to the proxy that are kept past the method negotiation (`--pool`).
    pub pool: usize,
    /// How proxies are spoken to (`--pipeline`).
    pub pipeline: Pipeline,
    /// DNS transactions tracked at once.
    pub max_dns: usize,
}

impl Default for EngineConfig {
    fn default() -> EngineConfig {
        EngineConfig {
            stack: StackConfig { echo: EchoMode::Reply, ..StackConfig::default() },
            proxies: Vec::new(),
            rules: Vec::new(),
            accept: Accept::Late,
            udp: UdpMode::Auto,
            dns: DnsMode::Auto,
            dns_server: None,
            dns_local: Vec::new(),
            dns_machine: Vec::new(),
            max_udp: 16_384,
            udp_idle: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(10),
            pool: 4,
            pipeline: Pipeline::Auto,
            max_dns: 4_096,
        }
    }
}

/// The device's name where nobody says another: macOS names its own by number.
pub const DEVICE: &str = if cfg!(target_os = "macos") { "utun122" } else { "ztun0" };

/// What a run does to the machine around the engine.
#[derive(Clone, Debug)]
pub struct HostPlanConfig {
    /// Device name (`--tun`).
    pub tun: String,
    /// A device that someone else opened (`--tun-fd`).
    pub tun_fd: Option<i32>,
    /// Addresses of the device.
    pub addresses: Vec<Cidr>,
    /// MTU of the device.
    pub mtu: u16,
    /// What goes into the tunnel; `0.0.0.0/0` and `::/0` for everything.
    pub routes: Vec<Cidr>,
    /// What stays outside besides the proxies, link-local and multicast.
    pub bypass: Vec<Cidr>,
    /// Touch no routes and rules (`--no-route`).
    pub no_route: bool,
    /// Egress interface (`--interface`); chosen by the kernel when `None`.
    pub interface: Option<String>,
    /// Mark of ztun's own sockets (`--mark`).
    pub mark: u32,
    /// Keep a proxy on this machine out of its own tunnel (`--local-proxy`).
    pub local_proxy: bool,
    /// What the kernel is to do of segmenting and summing on the device, where it can (`--offload`).
    pub offload: OffloadLevel,
    /// What is captured stays captured when ztun is gone abnormally: it fails instead of leaking (`--kill-switch`).
    pub kill_switch: bool,
    /// Name servers behind the device that the machine is to use while everything goes there; with none, its DNS is left alone (`--dns`).
    pub dns: Vec<IpAddr>,
}

impl Default for HostPlanConfig {
    /// What the command line documents.
    fn default() -> HostPlanConfig {
        let net = |addr: IpAddr, prefix| Cidr { addr, prefix };
        let v6 = Ipv6Addr::new(0xfd7a, 0x7a74, 0x756e, 0, 0, 0, 0, 1);
        HostPlanConfig {
            tun: DEVICE.into(),
            tun_fd: None,
            addresses: vec![net(Ipv4Addr::new(198, 18, 0, 1).into(), 16), net(v6.into(), 64)],
            mtu: 1500,
            routes: vec![net(Ipv4Addr::UNSPECIFIED.into(), 0), net(Ipv6Addr::UNSPECIFIED.into(), 0)],
            bypass: Vec::new(),
            no_route: false,
            interface: None,
            mark: 0x7a74,
            local_proxy: true,
            offload: OffloadLevel::Full,
            kill_switch: false,
            dns: Vec::new(),
        }
    }
}

/// A whole run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The pure part.
    pub engine: EngineConfig,
    /// The machine's part.
    pub host: HostPlanConfig,
    /// Start only when a proxy answers (`--require-proxy`).
    pub require_proxy: bool,
    /// Take over from a running ztun on the same device (`--replace`).
    pub replace: bool,
    /// Close the connections that were opened before, so that they are made again through the tunnel (`--reset-existing`).
    pub reset_existing: bool,
    /// Where the control socket is (`--control`); `None` for the default of the device.
    pub control: Option<String>,
    /// Where metrics are served (`--metrics`).
    pub metrics: Option<SocketAddr>,
}

impl Config {
    /// A run of `engine` on `host`, with nothing besides.
    pub fn new(engine: EngineConfig, host: HostPlanConfig) -> Config {
        Config {
            engine,
            host,
            require_proxy: false,
            replace: false,
            reset_existing: false,
            control: None,
            metrics: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_its_addresses_and_no_other_family() {
        let net = Cidr::new("10.1.0.0".parse().expect("address"), 16).expect("prefix");
        assert!(net.contains("10.1.255.255".parse().expect("address")));
        assert!(!net.contains("10.2.0.0".parse().expect("address")));
        assert!(!net.contains("::".parse().expect("address")));
        let all = Cidr::new("::".parse().expect("address"), 0).expect("prefix");
        assert!(all.contains("2001:db8::1".parse().expect("address")));
        assert!(Cidr::new("::".parse().expect("address"), 129).is_none());
    }

    #[test]
    fn a_network_is_read_with_and_without_a_prefix() {
        let net = |text: &str| text.parse::<Cidr>().expect(text);
        assert_eq!(net("10.1.2.3"), Cidr { addr: "10.1.2.3".parse().expect("address"), prefix: 32 });
        assert_eq!(net("fe80::").prefix, 128);
        assert_eq!(net("0.0.0.0/0").prefix, 0);
        // Host bits are kept, and masked where it counts.
        assert_eq!(net("10.1.2.3/8").to_string(), "10.1.2.3/8");
        assert!(net("10.1.2.3/8").contains("10.255.0.1".parse().expect("address")));
        assert!(net("2001:db8::7/32").contains("2001:db8:ffff::".parse().expect("address")));
    }

    #[test]
    fn what_is_no_network_is_refused_with_what_is_allowed() {
        for (text, word) in [
            ("10.0.0.0/33", "0 to 32"),
            ("::/129", "0 to 128"),
            ("::/1000", "'1000'"),
            ("10.0.0.0/", "''"),
            ("10.0.0.0/+8", "'+8'"),
            ("10.0.0.0/8/8", "'8/8'"),
            ("10.0.0", "'10.0.0'"),
            ("", "''"),
            ("/8", "''"),
            ("fe80::1%eth0", "'fe80::1%eth0'"),
            ("example.com", "ADDRESS/PREFIX"),
        ] {
            let error = text.parse::<Cidr>().expect_err(text).to_string();
            assert!(error.contains(word), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn the_tunnels_resolver_is_the_next_host_of_the_devices_network() {
        let of =
            |text: &str| resolver_addresses(&[text.parse().expect(text)]).first().map(ToString::to_string);
        for (device, resolver) in [
            ("198.18.0.1/16", Some("198.18.0.2")),
            ("fd7a:7a74:756e::1/64", Some("fd7a:7a74:756e::2")),
            ("10.0.0.254/24", Some("10.0.0.253")),
            ("10.0.0.0/31", Some("10.0.0.1")),
            ("10.0.0.1/31", Some("10.0.0.0")),
            ("10.0.0.2/30", Some("10.0.0.1")),
            ("255.255.255.255/0", Some("255.255.255.254")),
            ("10.0.0.1/32", None),
            ("fd00::1/128", None),
            ("fd00::ffff:ffff:ffff:ffff/64", Some("fd00::ffff:ffff:ffff:fffe")),
        ] {
            assert_eq!(of(device).as_deref(), resolver, "{device}");
        }
        assert_eq!(resolver_addresses(&HostPlanConfig::default().addresses).len(), 2);
    }

    #[test]
    fn a_password_is_never_printed() {
        let proxy = Proxy {
            addr: SocketAddr::from(([127, 0, 0, 1], 1080)),
            credentials: Some(Credentials { user: "alice".into(), password: "secret".into() }),
        };
        assert!(!format!("{proxy:?}").contains("secret"));
    }
}
