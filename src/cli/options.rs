//! The grammar of the command line.

use super::value;
use crate::config::Cidr;
use crate::outbound::rule::Rule;
use crate::time::Duration;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  sudo ztun --socks5 127.0.0.1:1080               route this machine through a local proxy
  ztun exec --socks5 10.0.0.2:1080 -- curl URL    route one program, without root where the system allows it
  ztun demo                                       see it work, without a proxy and without changing anything

Exit status: 0 stopped as asked, 1 failed while running, 2 bad usage, 3 the machine refuses, 4 no proxy answers
(--require-proxy), 9 had to be forced.";

/// Sends everything this machine does through a SOCKS5 proxy, and leaves nothing behind.
#[derive(Parser, Debug)]
#[command(name = "ztun", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
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
    Exec(ExecOptions),
    /// See it work in ten seconds: private namespaces, the embedded proxy, real kernel sockets, figures
    Demo,
    /// The embedded SOCKS5 server: CONNECT and UDP ASSOCIATE
    Proxy(ProxyServerOptions),
    /// Undo what a run that died left behind
    Restore {
        /// The device of that run
        #[arg(long, default_value = "ztun0", value_name = "NAME", value_parser = value::device)]
        tun: String,
    },
    /// Write completions for a shell to standard output
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual page to standard output
    Man,
}

/// Logging.
#[derive(Args, Debug)]
#[command(next_help_heading = "Logging")]
pub struct LogOptions {
    /// What is logged; RUST_LOG works too [default: info]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,
    /// How it is logged, to standard error
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
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
pub enum DnsMode {
    /// What fits.
    Auto,
    /// Queries are datagrams like others.
    Udp,
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

/// On or off.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Auto {
    /// Where it works.
    Auto,
    /// Not.
    Off,
}

/// Options of everything that carries traffic through a proxy.
#[derive(Args, Debug)]
#[command(next_help_heading = "Proxy and traffic")]
pub struct WayOptions {
    /// The proxy, as in 127.0.0.1:1080 or user:password@host:port; repeat for failover in this order
    #[arg(long, value_name = "[USER:PASS@]HOST:PORT", env = "ZTUN_SOCKS5", hide_env_values = true)]
    pub socks5: Vec<String>,
    /// File whose first line is the password of every proxy given with a user only
    #[arg(long, value_name = "FILE")]
    pub socks5_password_file: Option<PathBuf>,
    /// Do not start unless a proxy answers (exit status 4)
    #[arg(long)]
    pub require_proxy: bool,
    /// Routing decision, first match wins: 'dst=10.0.0.0/8 -> direct', 'proto=udp,port=443 -> reject'
    #[arg(long, value_name = "MATCH -> OUTBOUND")]
    pub rule: Vec<Rule>,
    /// How names are resolved
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub dns: DnsMode,
    /// Send DNS queries there instead of where the apps send them
    #[arg(long, value_name = "IP[:PORT]", value_parser = value::dns_server)]
    pub dns_server: Option<SocketAddr>,
    /// How datagrams leave
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub udp: UdpChoice,
    /// How echo requests are treated
    #[arg(long, value_name = "MODE", default_value = "reply")]
    pub icmp: IcmpChoice,
    /// IPv6; off refuses it at once, so that nothing leaks or hangs
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub ipv6: Ipv6Choice,
    /// When a connection is accepted: after or before the proxy has connected
    #[arg(long, value_name = "WHEN", default_value = "late")]
    pub accept: AcceptChoice,
    /// Connections kept open to the proxy, ready for a request; 0 for none
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(0..=64))]
    pub pool: u16,
    /// TCP flows at once
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub max_tcp: u32,
    /// UDP mappings at once
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub max_udp: u32,
    /// A TCP flow without a segment for this long is forgotten
    #[arg(long, value_name = "TIME", default_value = "2h4m", value_parser = value::duration)]
    pub tcp_idle: Duration,
    /// A UDP mapping without a datagram for this long is forgotten
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = value::duration)]
    pub udp_idle: Duration,
    /// Time for connecting to the proxy and for its answer
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = value::duration)]
    pub connect_timeout: Duration,
    /// Address of the device; repeatable [default: 198.18.0.1/16, fd7a:7a74:756e::1/64]
    #[arg(long, value_name = "CIDR")]
    pub address: Vec<Cidr>,
    /// MTU of the device, octets
    #[arg(long, value_name = "N", default_value_t = 1500, value_parser = clap::value_parser!(u16).range(1280..))]
    pub mtu: u16,
    /// Kernel segmentation on the device
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub offload: Auto,
}

/// Options of the router on this machine.
#[derive(Args, Debug)]
#[command(next_help_heading = "This machine")]
pub struct RunOptions {
    /// How traffic leaves.
    #[command(flatten)]
    pub way: WayOptions,
    /// Name of the device
    #[arg(long, value_name = "NAME", default_value = "ztun0", value_parser = value::device)]
    pub tun: String,
    /// Use a device that was opened by whoever started this
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(i32).range(3..))]
    pub tun_fd: Option<i32>,
    /// What goes into the tunnel; repeatable [default: everything]
    #[arg(long, value_name = "CIDR")]
    pub route: Vec<Cidr>,
    /// What stays outside, besides the proxy, link-local and multicast; repeatable
    #[arg(long, value_name = "CIDR|HOST")]
    pub bypass: Vec<String>,
    /// Touch no routes and rules
    #[arg(long)]
    pub no_route: bool,
    /// Interface by which ztun's own connections leave [default: as routed]
    #[arg(long, value_name = "NAME", value_parser = value::device)]
    pub interface: Option<String>,
    /// Mark of ztun's own connections
    #[arg(long, value_name = "N", default_value = "0x7a74", value_parser = value::mark)]
    pub mark: u32,
    /// Keep a proxy on this machine out of its own tunnel
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub local_proxy: Auto,
    /// Print the changes to the machine, with their undo; make none
    #[arg(long)]
    pub dry_run: bool,
}

/// Options of `ztun exec`.
#[derive(Args, Debug)]
pub struct ExecOptions {
    /// How traffic leaves; the embedded proxy when none is named.
    #[command(flatten)]
    pub way: WayOptions,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Options of `ztun proxy`.
#[derive(Args, Debug)]
pub struct ProxyServerOptions {
    /// Where to listen
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:1080")]
    pub listen: SocketAddr,
    /// Let in only this user, with the password of --password-file
    #[arg(long, value_name = "NAME", requires = "password_file")]
    pub user: Option<String>,
    /// File whose first line is the password
    #[arg(long, value_name = "FILE", requires = "user")]
    pub password_file: Option<PathBuf>,
    /// Clients at once; more wait
    #[arg(long, value_name = "N", default_value_t = 4_096, value_parser = value::connections)]
    pub max_connections: usize,
    /// Time for resolving and connecting to a target
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = value::duration)]
    pub connect_timeout: Duration,
}
