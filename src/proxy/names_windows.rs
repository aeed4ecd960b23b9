//! Where Windows keeps the addresses of its name servers, and names of its own: with its adapters, and in a file.

use super::resolve::Files;
use ipconfig::{Adapter, OperStatus};
use std::path::PathBuf;

/// Reads them. A missing file is an empty one, and adapters that nobody tells of have no name servers.
pub(super) fn read() -> Files {
    let mut servers = String::new();
    let adapters = ipconfig::get_adapters().unwrap_or_else(|error| {
        log::debug!("the adapters cannot be read: {error}");
        Vec::new()
    });
    let up = |adapter: &&Adapter| adapter.oper_status() == OperStatus::IfOperStatusUp;
    for server in adapters.iter().filter(up).flat_map(Adapter::dns_servers) {
        servers.push_str(&format!("nameserver {server}\n"));
    }
    let root = std::env::var_os("SystemRoot").map_or_else(|| PathBuf::from("C:\\Windows"), PathBuf::from);
    let hosts = std::fs::read_to_string(root.join("System32").join("drivers").join("etc").join("hosts"));
    Files::parse(&servers, &hosts.unwrap_or_default())
}
