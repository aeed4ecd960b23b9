//! Transactions in flight on port 53.
//!
//! Datagrams to and from port 53 are relayed bit for bit (RFC 5625 4); this module only watches them:
//! [`table::DnsTable`] matches answers to queries, notices queries that are never answered, and counts.

pub mod table;

pub use table::{DnsStats, DnsTable};
