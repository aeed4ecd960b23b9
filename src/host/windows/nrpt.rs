//! The rule of the name resolution policy table (NRPT) that makes the system's resolver ask our name servers for every name, as values of the registry. Pure.
//!
//! The table is the keys below [`TABLE`]; a rule's key is called by any GUID, ours by one of its own ([`RULE`]), so it is found without a journal. The
//! values are those that `Add-DnsClientNrptRule` writes. A rule for `.` is for all names, and with it the resolver asks the servers of the rule
//! alone, instead of those of all interfaces at once. It is volatile, so that a machine that loses its power starts again with names.
//!
//! Where a group policy has a table of its own ([`GROUP_POLICY`]), Windows reads that and not this one. Then the guard for names is all there is.

use super::octets::wide;
use core::net::IpAddr;

/// The key of the table, below `HKEY_LOCAL_MACHINE`.
pub(super) const TABLE: &str = r"SYSTEM\CurrentControlSet\Services\Dnscache\Parameters\DnsPolicyConfig";

/// The key of our rule.
pub(super) const RULE: &str = r"SYSTEM\CurrentControlSet\Services\Dnscache\Parameters\DnsPolicyConfig\{7a74756e-4e52-4f54-9d5c-2a1f6c040000}";

/// The table that a group policy puts in the place of the machine's own.
pub(super) const GROUP_POLICY: &str = r"SOFTWARE\Policies\Microsoft\Windows NT\DNSClient\DnsPolicyConfig";

/// The value that lists the servers.
pub(super) const SERVERS: &str = "GenericDNSServers";

/// A value of a key in the registry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Value {
    /// Its name.
    pub(super) name: &'static str,
    /// Its type: `REG_SZ`, `REG_DWORD` or `REG_MULTI_SZ`.
    pub(super) kind: u32,
    /// Its octets.
    pub(super) data: Vec<u8>,
}

/// Types of values (winnt.h).
const REG_SZ: u32 = 1;
const REG_DWORD: u32 = 4;
const REG_MULTI_SZ: u32 = 7;

/// Of `ConfigOptions`: [`SERVERS`] are who is asked.
const GENERIC_SERVERS: u32 = 8;

fn octets(text: &[u16]) -> Vec<u8> {
    text.iter().flat_map(|unit| unit.to_le_bytes()).collect()
}

fn text(name: &'static str, text: &str) -> Value {
    Value { name, kind: REG_SZ, data: octets(&wide(text)) }
}

fn number(name: &'static str, number: u32) -> Value {
    Value { name, kind: REG_DWORD, data: number.to_le_bytes().to_vec() }
}

/// A list of texts: each ends with a 0, and the list with another.
fn texts(name: &'static str, texts: &[&str]) -> Value {
    let mut units: Vec<u16> = texts.iter().flat_map(|text| wide(text)).collect();
    units.push(0);
    Value { name, kind: REG_MULTI_SZ, data: octets(&units) }
}

/// The rule that has `servers` asked for all names.
pub(super) fn rule(servers: &[IpAddr]) -> Vec<Value> {
    let servers: Vec<String> = servers.iter().map(IpAddr::to_string).collect();
    vec![
        texts("Name", &["."]),
        text(SERVERS, &servers.join(";")),
        number("ConfigOptions", GENERIC_SERVERS),
        number("Version", 2),
        text("Comment", "all names go through the tunnel of ztun"),
        text("DisplayName", "ztun"),
        text("IPSECCARestriction", ""),
    ]
}

/// The servers in the octets of [`SERVERS`]; none when they are not what [`rule`] writes.
pub(super) fn servers_in(data: &[u8]) -> Vec<IpAddr> {
    let units: Vec<u16> = data.as_chunks().0.iter().copied().map(u16::from_le_bytes).collect();
    let text = String::from_utf16_lossy(&units);
    let servers = text.trim_end_matches('\0').split(';').map(|word| word.trim().parse().ok());
    servers.collect::<Option<Vec<IpAddr>>>().unwrap_or_default()
}

/// What the resolver is to ask on an interface, as `SetInterfaceDnsSettings` takes it: the servers of one family, with commas.
pub(super) fn interface_servers(servers: &[IpAddr], v6: bool) -> String {
    let servers: Vec<String> =
        servers.iter().filter(|server| server.is_ipv6() == v6).map(IpAddr::to_string).collect();
    servers.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn servers() -> Vec<IpAddr> {
        ["198.18.0.2", "fd7a::2"].map(|server| server.parse().unwrap()).into()
    }

    #[test]
    fn the_rule_lies_in_the_table() {
        let name = RULE.strip_prefix(TABLE).unwrap();
        assert!(name.starts_with(r"\{") && name.ends_with('}') && name.len() == 39, "{name}");
    }

    #[test]
    fn the_rule_to_the_octet() {
        let rule = rule(&servers());
        let value = |name: &str| rule.iter().find(|value| value.name == name).unwrap();
        assert_eq!((value("Name").kind, &value("Name").data[..]), (7, &[0x2e, 0, 0, 0, 0, 0][..]));
        assert_eq!((value("ConfigOptions").kind, &value("ConfigOptions").data[..]), (4, &[8, 0, 0, 0][..]));
        assert_eq!((value("Version").kind, &value("Version").data[..]), (4, &[2, 0, 0, 0][..]));
        let golden: Vec<u8> = b"198.18.0.2;fd7a::2\0".iter().flat_map(|octet| [*octet, 0]).collect();
        assert_eq!((value(SERVERS).kind, &value(SERVERS).data), (1, &golden));
        assert_eq!(
            (value("IPSECCARestriction").kind, &value("IPSECCARestriction").data[..]),
            (1, &[0, 0][..])
        );
        assert_eq!(rule.len(), 7);
    }

    #[test]
    fn what_is_no_list_of_servers_is_none() {
        assert_eq!(servers_in(b"x\0"), [] as [IpAddr; 0]);
        assert_eq!(servers_in(&[]), [] as [IpAddr; 0]);
        assert_eq!(servers_in(&octets(&wide("198.18.0.2;x"))), [] as [IpAddr; 0]);
    }

    #[test]
    fn an_interface_has_servers_of_each_family() {
        assert_eq!(interface_servers(&servers(), false), "198.18.0.2");
        assert_eq!(interface_servers(&servers(), true), "fd7a::2");
        assert_eq!(interface_servers(&[], true), "");
    }

    proptest! {
        #[test]
        fn the_servers_of_a_rule_are_read_back(v4: Vec<[u8; 4]>, v6 in proptest::collection::vec(any::<[u8; 16]>(), 0..3)) {
            let servers: Vec<IpAddr> =
                v4.into_iter().map(IpAddr::from).chain(v6.into_iter().map(IpAddr::from)).collect();
            let rule = rule(&servers);
            let value = rule.iter().find(|value| value.name == SERVERS).unwrap();
            prop_assert_eq!(servers_in(&value.data), servers);
        }

        #[test]
        fn any_octets_are_read_without_a_panic(octets: Vec<u8>) {
            let _ = servers_in(&octets);
        }
    }
}
