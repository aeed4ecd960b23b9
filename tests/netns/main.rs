//! The shipped program with real parties: kernel TCP, curl, ping, dig, microsocks, dante, in network namespaces of the tests' own.
//!
//! The tests need root; without it they fail and say so. `ZTUN_SKIP_NETNS=1` leaves them out, in words.

#![cfg(all(feature = "os", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "the other ends of the wire are threads that block")]
#![allow(clippy::print_stderr, reason = "a test that is skipped, or fails, says why")]
#![allow(unreachable_pub, reason = "a module of a test has nobody outside")]

mod control;
mod datagrams;
mod fairness;
mod faults;
mod floods;
mod killed;
mod lifecycle;
mod local_proxy;
mod names;
mod network;
mod pipeline;
mod policy;
mod private;
mod privileges;
mod scale;
mod session;
mod soak;
mod transfers;
mod world;
