//! The client's side of SOCKS5 (RFC 1928, RFC 1929) without I/O.

pub mod client;

pub use client::{Client, Failure, Progress};
