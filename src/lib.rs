//! ztun: a TUN router that sends what a machine does through a SOCKS5 proxy.
//!
//! A **pure core** (`wire`, `flow`, `stack`, `dns`, `outbound`, `engine`) decides everything and
//! does no I/O: octets, time and randomness are handed in, octets and commands are taken out. A
//! **thin shell** (feature `os`) carries them between the core and the machine on one thread and
//! one `mio` poll loop. `docs/ARCHITECTURE.md` tells the whole; each module starts with its own
//! theory of operation.

pub mod rng;
pub mod time;

pub mod config;
pub mod flow;
pub mod stack;
pub mod wire;

pub mod dns;
pub mod outbound;

pub mod engine;

#[cfg(feature = "os")]
pub mod cli;
#[cfg(feature = "os")]
pub mod control;
#[cfg(all(feature = "os", target_os = "linux"))]
pub mod demo;
#[cfg(all(feature = "os", target_os = "linux"))]
pub mod doctor;
#[cfg(feature = "os")]
pub mod driver;
#[cfg(all(unix, any(feature = "ffi", all(test, feature = "os"))))]
pub mod ffi;
#[cfg(feature = "os")]
pub mod host;
#[cfg(feature = "os")]
pub mod monitor;
#[cfg(all(feature = "os", target_os = "linux"))]
mod netlink;
#[cfg(feature = "os")]
pub mod proxy;
#[cfg(all(feature = "os", any(target_os = "macos", test)))]
mod route_socket;
#[cfg(feature = "os")]
pub mod session;
#[cfg(feature = "os")]
pub mod tun;
