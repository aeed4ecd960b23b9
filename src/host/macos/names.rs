//! The machine's DNS while a run lasts: names are asked for in the tunnel, and nothing of anybody else's is changed.
//!
//! # Theory of operation
//!
//! A Mac's name servers are what configd makes of the entries of its dynamic store, one for each network service. [`KEY`] is one more, of a service that
//! is ours alone: name servers for a match domain that is empty, so for all names, in front of those of the other services
//! (SupplementalMatchDomains and SupplementalMatchOrders, SCSchemaDefinitions.h; `get_dns_changes` of configd's IPMonitor keeps them without addresses of the service's own). So there is no original to save:
//! taken away, what was before is what is left. The store is memory of configd's; nothing of it is on disk.
//!
//! A resolver in the local network, often the router, is not asked then. That its address has a route more specific than the tunnel's does no harm: no
//! program that asks the system comes to it. A route of its own into the tunnel would take the default route's gateway away with it.
//!
//! scutil(8) writes and reads the store; what it is told, and what it answers, is text that is built and read here.

use core::fmt;
use core::net::IpAddr;

/// Our entry of the dynamic store, by which it is found without a journal.
const KEY: &str = "State:/Network/Service/ztun/DNS";

/// What configd has made of all entries that are for all names.
const MACHINE_KEY: &str = "State:/Network/Global/DNS";

/// The order of our name servers: in front of all others.
const ORDER: u32 = 1;

/// Name servers for the machine, reached through the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Names {
    /// The name servers; empty in what is, or may be, left of a run that died, when nothing tells which they are.
    pub servers: Vec<IpAddr>,
}

/// Stands for what is not known.
const UNKNOWN: &str = "?";

impl Names {
    /// Reads what [`fmt::Display`] writes, split at spaces.
    pub(super) fn parse(words: &[&str]) -> Option<Names> {
        let [servers] = *words else { return None };
        let servers: Option<Vec<IpAddr>> = match servers {
            UNKNOWN => Some(Vec::new()),
            _ => servers.split(',').map(|server| server.parse().ok()).collect(),
        };
        Some(Names { servers: servers? })
    }

    /// What scutil is told to make them the machine's.
    pub(super) fn set(&self) -> String {
        let mut text = String::from("d.init\nd.add ServerAddresses *");
        for server in &self.servers {
            text.push_str(&format!(" {server}"));
        }
        // An empty domain in quotes is every name. It is no search domain.
        text.push_str(&format!(
            "\nd.add SupplementalMatchDomains * \"\"\nd.add SupplementalMatchOrders * # {ORDER}\n"
        ));
        text.push_str(&format!("d.add SupplementalMatchDomainsNoSearch # 1\nset {KEY}\nquit\n"));
        text
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.servers.is_empty() {
            return f.write_str(UNKNOWN);
        }
        let servers: Vec<String> = self.servers.iter().map(IpAddr::to_string).collect();
        f.write_str(&servers.join(","))
    }
}

/// What scutil is told to take ours away.
pub(super) fn remove() -> String {
    format!("remove {KEY}\nquit\n")
}

/// What scutil is told to show ours.
pub(super) fn show() -> String {
    format!("show {KEY}\nquit\n")
}

/// What scutil is told to show the machine's.
pub(super) fn show_machine() -> String {
    format!("show {MACHINE_KEY}\nquit\n")
}

/// What scutil shows of an entry: its name servers; `None` when there is no such entry.
///
/// ```text
/// <dictionary> {
///   ServerAddresses : <array> {
///     0 : 192.168.1.1
///   }
/// }
/// ```
pub(super) fn shown(text: &str) -> Option<Names> {
    let mut lines = text.lines().map(str::trim);
    lines.by_ref().find(|line| line.starts_with("<dictionary> {"))?;
    let servers = lines
        .skip_while(|line| *line != "ServerAddresses : <array> {")
        .skip(1)
        .take_while(|line| *line != "}")
        .filter_map(|line| line.split_once(" : "))
        // A link-local one has the name of its interface behind it.
        .filter_map(|(_, server)| server.split('%').next()?.parse().ok())
        .collect();
    Some(Names { servers })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(servers: &[&str]) -> Names {
        Names { servers: servers.iter().map(|server| server.parse().unwrap()).collect() }
    }

    #[test]
    fn scutil_is_told_of_name_servers_for_every_name() {
        let text = "\
d.init
d.add ServerAddresses * 198.18.0.2 fd7a:7a74:756e::2
d.add SupplementalMatchDomains * \"\"
d.add SupplementalMatchOrders * # 1
d.add SupplementalMatchDomainsNoSearch # 1
set State:/Network/Service/ztun/DNS
quit
";
        assert_eq!(names(&["198.18.0.2", "fd7a:7a74:756e::2"]).set(), text);
    }

    #[test]
    fn one_entry_is_taken_away_and_shown() {
        assert_eq!(remove(), "remove State:/Network/Service/ztun/DNS\nquit\n");
        assert_eq!(show(), "show State:/Network/Service/ztun/DNS\nquit\n");
        assert_eq!(show_machine(), "show State:/Network/Global/DNS\nquit\n");
    }

    #[test]
    fn what_scutil_shows_is_read() {
        let text = "\
<dictionary> {
  ServerAddresses : <array> {
    0 : 198.18.0.2
    1 : fe80::1%en0
  }
  SupplementalMatchDomains : <array> {
    0 :
  }
  SupplementalMatchDomainsNoSearch : 1
  SupplementalMatchOrders : <array> {
    0 : 1
  }
}
";
        assert_eq!(shown(text), Some(names(&["198.18.0.2", "fe80::1"])));
        assert_eq!(shown("  No such key\n"), None);
        assert_eq!(shown(""), None);
        assert_eq!(shown("<dictionary> {\n  DomainName : lan\n}\n"), Some(names(&[])));
        assert_eq!(shown("<dictionary> {\n  ServerAddresses : <array> {\n    0 : 1.1"), Some(names(&[])));
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(text: String) {
            drop(shown(&format!("<dictionary> {{\nServerAddresses : <array> {{\n{text}")));
            drop(shown(&text));
        }
    }
}
