//! `ztun proxy`: the embedded SOCKS5 server (RFC 1928, RFC 1929).
//!
//! It exists so that a run needs nothing else installed (`ztun demo`, `ztun exec`), and it is built
//! like the router: what the protocol says is decided without I/O ([`session`], [`resolve`]), and
//! one thread with one `mio` poll loop ([`server`]) carries octets and time.
//!
//! ```text
//! accept ─▶ Negotiating ─▶ Resolving ─▶ Dialling ─▶ Relaying      (CONNECT)
//!               │             │            │
//!               │             └────────────┴──────▶ Refusing      (REP, then an orderly close)
//!               └────────────────────────────────▶ Associated     (UDP ASSOCIATE)
//! ```
//!
//! Limits: [`ProxyConfig::max_connections`] clients; beyond it, and when the process is out of
//! descriptors, connections wait in the listen queue. A relaying connection owns no buffer while
//! its peers keep up: octets go from one socket to the other through one shared buffer, and only
//! what the receiver does not take is held, at most [`relay::CHUNK`] octets a direction, during which
//! the sender is not read. BIND is answered with "command not supported".

mod associate;
mod connection;
mod dial;
#[cfg_attr(windows, path = "names_windows.rs")]
mod names;
pub mod relay;
pub mod resolve;
pub mod server;
pub mod session;

pub use server::{Server, Stop};

use crate::config::Credentials;
use crate::time::Duration;
use core::net::{Ipv4Addr, SocketAddr};

/// What a server is to do.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Where it listens; port 0 for any free one.
    pub listen: SocketAddr,
    /// What clients must show; `None` lets everyone in.
    pub credentials: Option<Credentials>,
    /// Clients at once; more wait in the listen queue.
    pub max_connections: usize,
    /// Time for resolving and dialling one target, and for a client to say what it wants.
    pub connect_timeout: Duration,
    /// A connection or association on which nothing moves for this long is closed.
    pub idle: Duration,
}

impl Default for ProxyConfig {
    fn default() -> ProxyConfig {
        ProxyConfig {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 1080)),
            credentials: None,
            max_connections: 4_096,
            connect_timeout: Duration::from_secs(10),
            idle: Duration::from_secs(2 * 60 * 60 + 4 * 60),
        }
    }
}
