//! What is special about port 53: which resolvers a proxy cannot reach, and the transactions in flight.
//!
//! Messages are relayed bit for bit (RFC 5625 4). [`table::DnsTable`] watches those that travel as datagrams: it
//! matches answers to queries, notices queries that are never answered, and counts. [`address`] tells which resolvers mean something on the app's
//! own network only.

pub mod address;
pub mod message;
pub mod streams;
pub mod table;

pub use streams::Streams;
pub use table::{Answered, Carrier, CarrierStats, Course, DnsStats, DnsTable};

/// The port of DNS.
pub const PORT: u16 = 53;
