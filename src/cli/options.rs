//! The grammar of the command line.

use super::value;
use crate::config::{self, Cidr};
use crate::outbound::rule::Rule;
use crate::time::Duration;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What the help and the manual page show at their end.
pub(super) const EXAMPLES: &str =
    "  sudo ztun --socks5 127.0.0.1:1080               route this machine through a local proxy
  ztun exec --socks5 10.0.0.2:1080 -- curl URL    route one program, without root where the system allows it
  sudo ztun doctor --socks5 127.0.0.1:1080        check the machine and the proxy first; nothing is changed
  ztun demo                                       see it work, without a proxy and without changing anything";

/// What each exit status means.
pub(super) const EXIT_STATUS: &str =
    "  0 stopped as asked   1 failed while running    2 bad usage   3 the machine refuses
  4 no proxy answers (--require-proxy)           9 had to be forced";

const CONFIGURATION: &str = "Configuration";
const PROXY: &str = "Proxy";
const TRAFFIC: &str = "Traffic";
const LIMITS: &str = "Limits";
const DEVICE: &str = "Device";
const MACHINE: &str = "This machine";
const LOGGING: &str = "Logging";

/// Sends everything this machine does through a SOCKS5 proxy, and leaves nothing behind.
#[derive(Parser, Debug)]
#[command(
    name = "ztun",
    version,
    after_help = format!("Examples:\n{EXAMPLES}\n\nExit status:\n{EXIT_STATUS}"),
    override_usage = "ztun --socks5 [USER:PASS@]HOST:PORT [OPTIONS]\n       ztun COMMAND [OPTIONS]",
)]
pub struct Cli {
    /// What to do; without one, the router runs.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of the router.
    #[command(flatten)]
    pub run: RunOptions,
    /// Logging.
    #[command(flatten)]
    pub log: LogOptions,
}

/// Everything besides the router.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run a command in a private network namespace whose only way out is the tunnel; the machine is left alone
    #[command(override_usage = "ztun exec [OPTIONS] -- CMD [ARGS]...")]
    Exec(ExecOptions),
    /// See it work in ten seconds: private namespaces, the embedded proxy, real kernel sockets, figures
    Demo,
    /// The embedded SOCKS5 server: CONNECT and UDP ASSOCIATE
    Proxy(ProxyServerOptions),
    /// Prove the set-up without changing anything: what is wrong, why, and what to do
    #[command(override_usage = "ztun doctor [--socks5 [USER:PASS@]HOST:PORT] [OPTIONS]")]
    Doctor(Box<DoctorOptions>),
    /// Undo what a run that died left behind
    Restore {
        /// The device of that run
        #[arg(long, default_value = config::DEVICE, value_name = "NAME", value_parser = value::device)]
        tun: String,
    },
    /// Run the router as a service, from the start of the machine on
    #[cfg(windows)]
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Ask a running ztun how it is
    Status(AskOptions),
    /// List the flows of a running ztun
    Flows(AskOptions),
    /// Watch a running ztun and its busiest flows; q ends it
    Top(WhereOptions),
    /// Write completions for a shell to standard output
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual page to standard output
    Man,
}

impl Command {
    /// Whether it is what the system starts, and no person.
    #[cfg(windows)]
    pub(super) fn is_for_the_system(&self) -> bool {
        matches!(self, Command::Service(ServiceCommand::Run { .. }))
    }

    /// Whether it is what the system starts, and no person: there is no such command here.
    #[cfg(not(windows))]
    pub(super) fn is_for_the_system(&self) -> bool {
        false
    }
}

/// What is done with the service.
#[cfg(windows)]
#[derive(Subcommand, Debug)]
pub enum ServiceCommand {
    /// Install it with the router's options, and start it
    #[command(override_usage = "ztun service install -- --socks5 [USER@]HOST:PORT [OPTIONS]")]
    Install {
        /// The router's options
        #[arg(last = true)]
        options: Vec<OsString>,
    },
    /// Stop and remove it
    Remove,
    /// What Windows starts
    #[command(hide = true)]
    Run {
        /// Where the options were typed
        #[arg(long)]
        directory: PathBuf,
        /// The router's options
        #[arg(last = true)]
        options: Vec<OsString>,
    },
}

/// Logging.
#[derive(Args, Debug)]
pub struct LogOptions {
    /// off, error, warn, info, debug or trace; RUST_LOG works too [default: info]
    #[arg(long, global = true, help_heading = LOGGING, value_name = "LEVEL", hide_possible_values = true)]
    pub log_level: Option<LogLevel>,
    /// How it is logged, to standard error
    #[arg(long, global = true, help_heading = LOGGING, value_name = "text|json", hide_possible_values = true, default_value = "text")]
    pub log_format: LogFormat,
}

/// Levels of the log.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// Something is broken.
    Error,
    /// Something needs a person.
    Warn,
    /// What a run does.
    Info,
    /// Names, addresses and flows.
    Debug,
    /// Packets.
    Trace,
}

/// Forms of the log.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line: ts, level, target, msg.
    Json,
}

/// `--dns`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum DnsChoice {
    /// What fits.
    Auto,
    /// Queries are datagrams like others.
    Udp,
    /// Queries go over TCP through the proxy.
    Tcp,
    /// Straight to the resolver that is asked.
    Direct,
    /// Port 53 is a port like others.
    Off,
}

/// `--udp`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum UdpChoice {
    /// Through the proxy; refused with ICMP when it cannot.
    Auto,
    /// Through the proxy.
    Socks5,
    /// Out of the egress interface.
    Direct,
    /// Refused with ICMP.
    Reject,
}

/// `--icmp`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum IcmpChoice {
    /// Echo requests are answered here.
    Reply,
    /// They are dropped.
    Drop,
}

/// `--ipv6`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ipv6Choice {
    /// What the proxy can reach.
    Auto,
    /// Like auto.
    On,
    /// Refused at once, and never leaked.
    Off,
}

/// `--accept`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum AcceptChoice {
    /// After the proxy has connected: a refused port stays refused.
    Late,
    /// Before.
    Early,
}

/// `--pipeline`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum PipelineChoice {
    /// With a proxy that was seen to understand it.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// What the kernel does on the device; each choice without what the one before has more.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum OffloadChoice {
    /// Everything that it can.
    Auto,
    /// No trains of datagrams.
    Tcp,
    /// Checksums only.
    Checksum,
    /// Nothing.
    Off,
}

/// On or off.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Auto {
    /// Where it works.
    Auto,
    /// Not.
    Off,
}

/// Text that may hold a password: never printed, and never judged by clap, which repeats what it refuses.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub(super) String);

impl From<String> for Secret {
    fn from(text: String) -> Secret {
        Secret(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Options of everything that carries traffic through a proxy.
#[derive(Args, Debug)]
pub struct WayOptions {
    /// Options from a TOML file, under the same names; what is typed wins
    #[arg(long, help_heading = CONFIGURATION, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The proxy, as in 127.0.0.1:1080; repeat for failover in this order
    #[arg(long, help_heading = PROXY, value_name = "[USER:PASS@]HOST:PORT", env = "ZTUN_SOCKS5", hide_env_values = true)]
    pub socks5: Vec<Secret>,
    /// File whose first line is the password of every proxy given with a user only
    #[arg(long, help_heading = PROXY, value_name = "FILE")]
    pub socks5_password_file: Option<PathBuf>,
    /// Do not start unless a proxy answers
    #[arg(long, help_heading = PROXY)]
    pub require_proxy: bool,
    /// Connections kept open to the proxy, ready for a request; 0 for none
    #[arg(long, help_heading = PROXY, value_name = "0..64", default_value = "4", value_parser = value::pool)]
    pub pool: u16,
    /// Say all to the proxy at once; auto: once it was seen to understand that
    #[arg(long, help_heading = PROXY, value_name = "auto|on|off", hide_possible_values = true, default_value = "auto")]
    pub pipeline: PipelineChoice,
    /// Time for connecting to the proxy and for its answer
    #[arg(long, help_heading = PROXY, value_name = "TIME", default_value = "10s", value_parser = value::duration)]
    pub connect_timeout: Duration,
    /// First match wins: 'dst=10.0.0.0/8 -> direct', 'proto=udp,port=443 -> reject'; repeatable
    #[arg(long, help_heading = TRAFFIC, value_name = "MATCH -> OUTBOUND")]
    pub rule: Vec<Rule>,
    /// How names are resolved: through the proxy (auto: over TCP if need be), or direct; off: like the rest
    #[arg(long, help_heading = TRAFFIC, value_name = "auto|udp|tcp|direct|off", hide_possible_values = true, default_value = "auto")]
    pub dns: DnsChoice,
    /// Send DNS queries there, not where apps do; without it a private resolver stands for 1.1.1.1
    #[arg(long, help_heading = TRAFFIC, value_name = "IP[:PORT]", value_parser = value::dns_server)]
    pub dns_server: Option<SocketAddr>,
    /// How datagrams leave; auto: through the proxy
    #[arg(long, help_heading = TRAFFIC, value_name = "auto|socks5|direct|reject", hide_possible_values = true, default_value = "auto")]
    pub udp: UdpChoice,
    /// How echo requests are treated
    #[arg(long, help_heading = TRAFFIC, value_name = "reply|drop", hide_possible_values = true, default_value = "reply")]
    pub icmp: IcmpChoice,
    /// IPv6; off refuses it at once: nothing leaks, nothing hangs
    #[arg(long, help_heading = TRAFFIC, value_name = "auto|on|off", hide_possible_values = true, default_value = "auto")]
    pub ipv6: Ipv6Choice,
    /// Accept a connection after the proxy has connected, or before
    #[arg(long, help_heading = TRAFFIC, value_name = "late|early", hide_possible_values = true, default_value = "late")]
    pub accept: AcceptChoice,
    /// TCP flows at once
    #[arg(long, help_heading = LIMITS, value_name = "N", default_value = "65536", value_parser = value::table)]
    pub max_tcp: u32,
    /// UDP mappings at once
    #[arg(long, help_heading = LIMITS, value_name = "N", default_value = "16384", value_parser = value::table)]
    pub max_udp: u32,
    /// A TCP flow without a segment for this long is forgotten
    #[arg(long, help_heading = LIMITS, value_name = "TIME", default_value = "2h4m", value_parser = value::duration)]
    pub tcp_idle: Duration,
    /// A UDP mapping without a datagram for this long is forgotten
    #[arg(long, help_heading = LIMITS, value_name = "TIME", default_value = "60s", value_parser = value::duration)]
    pub udp_idle: Duration,
    /// Its address; repeatable [default: 198.18.0.1/16, fd7a:7a74:756e::1/64]
    #[arg(long, help_heading = DEVICE, value_name = "CIDR", value_parser = value::address)]
    pub address: Vec<Cidr>,
    /// Its MTU, octets
    #[arg(long, help_heading = DEVICE, value_name = "1280..65535", default_value = "1500", value_parser = value::mtu)]
    pub mtu: u16,
    /// What the kernel cuts, joins and sums: all it can, TCP, sums only, nothing
    #[arg(long, help_heading = DEVICE, value_name = "auto|tcp|checksum|off", hide_possible_values = true, default_value = "auto")]
    pub offload: OffloadChoice,
}

/// Options of the router on this machine.
#[derive(Args, Debug)]
pub struct RunOptions {
    /// How traffic leaves.
    #[command(flatten)]
    pub way: WayOptions,
    /// Its name
    #[arg(long, help_heading = DEVICE, value_name = "NAME", default_value = config::DEVICE, value_parser = value::device)]
    pub tun: String,
    /// Use a device that whoever starts this has opened
    #[arg(long, help_heading = DEVICE, value_name = "FD", value_parser = value::descriptor)]
    pub tun_fd: Option<i32>,
    /// What goes into the tunnel; repeatable [default: everything]
    #[arg(long, help_heading = MACHINE, value_name = "CIDR")]
    pub route: Vec<Cidr>,
    /// What stays outside, besides the proxy, link-local and multicast; repeatable
    #[arg(long, help_heading = MACHINE, value_name = "CIDR|HOST")]
    pub bypass: Vec<String>,
    /// Touch no routes and rules
    #[arg(long, help_heading = MACHINE)]
    pub no_route: bool,
    /// Interface by which ztun's own connections leave [default: as routed]
    #[arg(long, help_heading = MACHINE, value_name = "NAME", value_parser = value::interface)]
    pub interface: Option<String>,
    /// Mark of ztun's own connections
    #[arg(long, help_heading = MACHINE, value_name = "N", default_value = "0x7a74", value_parser = value::mark)]
    pub mark: u32,
    /// Keep a proxy on this machine out of its own tunnel
    #[arg(long, help_heading = MACHINE, value_name = "auto|off", hide_possible_values = true, default_value = "auto")]
    pub local_proxy: Auto,
    /// Take over from a running ztun on the same device
    #[arg(long, help_heading = MACHINE)]
    pub replace: bool,
    /// While the proxy is down, or ztun is gone abnormally, captured traffic fails instead of leaking
    #[arg(long, help_heading = MACHINE)]
    pub kill_switch: bool,
    /// Close connections that were opened before, so that they are made again through the tunnel
    #[arg(long, help_heading = MACHINE)]
    pub reset_existing: bool,
    /// Control socket [default: /run/ztun/NAME.sock]
    #[arg(long, help_heading = MACHINE, value_name = "PATH")]
    pub control: Option<String>,
    /// Serve Prometheus text, /healthz and /readyz there [default: off]
    #[arg(long, help_heading = MACHINE, value_name = "ADDR:PORT", value_parser = value::listen)]
    pub metrics: Option<SocketAddr>,
    /// Print the changes to the machine, with their undo; make none
    #[arg(long, help_heading = MACHINE)]
    pub dry_run: bool,
}

/// Options of `ztun exec`.
#[derive(Args, Debug)]
pub struct ExecOptions {
    /// How traffic leaves; the embedded proxy when none is named.
    #[command(flatten)]
    pub way: WayOptions,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Which running ztun is meant.
#[derive(Args, Debug)]
pub struct WhereOptions {
    /// The device of that run [default: ztun0, or the only one there is]
    #[arg(long, value_name = "NAME", value_parser = value::device)]
    pub tun: Option<String>,
    /// Its control socket, where that run was given one
    #[arg(long, value_name = "PATH", conflicts_with = "tun")]
    pub control: Option<PathBuf>,
}

/// Options of `ztun status` and `ztun flows`.
#[derive(Args, Debug)]
pub struct AskOptions {
    /// Whom.
    #[command(flatten)]
    pub place: WhereOptions,
    /// JSON instead of text for people; fields are described in docs/CONTROL.md
    #[arg(long)]
    pub json: bool,
}

/// Options of `ztun doctor`.
#[derive(Args, Debug)]
pub struct DoctorOptions {
    /// The run that is examined.
    #[command(flatten)]
    pub run: RunOptions,
    /// One JSON object instead of a table
    #[arg(long)]
    pub json: bool,
    /// What proxies are asked to connect to
    #[arg(long, value_name = "HOST:PORT", default_value = "example.com:80", value_parser = super::doctor::target)]
    pub target: (String, u16),
}

/// Options of `ztun proxy`.
#[derive(Args, Debug)]
pub struct ProxyServerOptions {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:1080", value_parser = value::listen)]
    pub listen: SocketAddr,
    /// Let in only this user, with the password of --password-file
    #[arg(long, value_name = "NAME", requires = "password_file")]
    pub user: Option<String>,
    /// File whose first line is the password
    #[arg(long, value_name = "FILE", requires = "user")]
    pub password_file: Option<PathBuf>,
    /// Clients at once; more wait
    #[arg(long, value_name = "N", default_value = "4096", value_parser = value::table)]
    pub max_connections: u32,
    /// Time for resolving and connecting to a target
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = value::duration)]
    pub connect_timeout: Duration,
}
