//! What the Windows Filtering Platform is to refuse, as descriptions of its filters. Pure.
//!
//! # Theory of operation
//!
//! Routes on Windows are no bounds: a program that binds to an address of another interface, and the system's own resolver, which asks the name servers
//! of all interfaces at once, pass the tunnel by. So filters at the layer where connections are begun (`ALE_AUTH_CONNECT`: TCP, the first datagram
//! of a UDP socket to somebody, ICMP) refuse what must not leave. There are three [`Kind`]s, each with a sublayer of its own, so that one is put up
//! and taken down without the others. Where any sublayer refuses, it is refused (filter arbitration), and within one the filter of the greatest weight
//! decides:
//!
//! | weight | filter | for |
//! |---|---|---|
//! | 15 | permit this program | all kinds: ztun's own connections |
//! | 14 | permit loopback, the device, and what stays outside | all kinds |
//! | 13 | permit DHCP and neighbour discovery | those that refuse more than names |
//! | 0 | block what is captured | names: to port 53; IPv6 and kill switch: whatever it is |
//!
//! **How they die.** Guards for names and IPv6 belong to a dynamic session of ztun's process: however that ends, they are gone. A kill switch is added
//! outside of it, and so outlives the process; it ends with `ztun restore`, with the next start, which takes it over, and, as on Linux, when the machine is started
//! again.
//!
//! The sublayer's description is the guard's text, so the machine itself tells what is there; and a sublayer's filters have keys that count up from the
//! sublayer's. Both are changed in one transaction: there is the old guard or the new one, never neither.

use super::change::{list, parse_list, parse_luid};
use crate::config::Cidr;
use crate::host::want::Family;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Something that must not leave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Guard {
    /// What.
    pub kind: Kind,
    /// The device, through which it may; 0 in what is found of a run that died, when that does not tell.
    pub luid: u64,
    /// The networks to which it must not leave otherwise: what is captured.
    pub inside: Vec<Cidr>,
    /// The networks to which it may all the same.
    pub outside: Vec<Cidr>,
}

/// What must not leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Queries for names, to port 53: they would tell the machine's own network what is asked for.
    Names,
    /// IPv6, when all of IPv4 is captured and nothing of IPv6 (RFC 7359).
    Ipv6,
    /// Anything, also when ztun is gone.
    KillSwitch,
}

impl Kind {
    /// All of them.
    pub(super) const ALL: [Kind; 3] = [Kind::Names, Kind::Ipv6, Kind::KillSwitch];

    /// Whether it is not the process's.
    pub(super) fn outlives_process(self) -> bool {
        match self {
            Kind::Names | Kind::Ipv6 => false,
            Kind::KillSwitch => true,
        }
    }

    /// Whether a run goes on without it. One that was asked for, and one without which all of a family passes by, are not.
    pub(super) fn is_optional(self) -> bool {
        match self {
            Kind::Names => true,
            Kind::Ipv6 | Kind::KillSwitch => false,
        }
    }

    /// The key of its sublayer, and the first of those of its filters: the last 16 bits count.
    pub(super) fn key(self) -> u128 {
        match self {
            Kind::Names => 0x7a74_756e_53f1_4b0e_9d5c_2a1f_6c01_0000,
            Kind::Ipv6 => 0x7a74_756e_53f1_4b0e_9d5c_2a1f_6c02_0000,
            Kind::KillSwitch => 0x7a74_756e_53f1_4b0e_9d5c_2a1f_6c03_0000,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Names => "names",
            Kind::Ipv6 => "ipv6",
            Kind::KillSwitch => "kill-switch",
        })
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (inside, outside) = (list(&self.inside), list(&self.outside));
        write!(f, "{} luid {:#x} to {inside} outside {outside}", self.kind, self.luid)
    }
}

impl Guard {
    /// One of which nothing is known but that it is there.
    pub(super) fn unknown(kind: Kind) -> Guard {
        Guard { kind, luid: 0, inside: Vec::new(), outside: Vec::new() }
    }

    /// Whether taking this one down takes `found` down: it is the same, or nothing is known of this one.
    pub(super) fn covers(&self, found: &Guard) -> bool {
        self == found || *self == Guard::unknown(found.kind)
    }

    /// Reads what [`fmt::Display`] writes, split at spaces.
    pub(super) fn parse(words: &[&str]) -> Option<Guard> {
        let [kind, "luid", luid, "to", inside, "outside", outside] = *words else { return None };
        let kind = Kind::ALL.into_iter().find(|known| known.to_string() == kind)?;
        let (inside, outside) = (parse_list(inside)?, parse_list(outside)?);
        Some(Guard { kind, luid: parse_luid(luid)?, inside, outside })
    }

    /// Its filters, the first of [`Kind::key`] first.
    pub(super) fn filters(&self) -> Vec<Filter> {
        let families = [Family::V4, Family::V6].into_iter();
        let involved = families.filter(|family| self.inside.iter().any(|net| Family::of(net) == *family));
        involved.flat_map(|family| self.filters_of(family)).collect()
    }

    fn filters_of(&self, layer: Family) -> Vec<Filter> {
        let mut filters = Vec::new();
        let mut add = |weight, verdict, conditions: &[Condition]| {
            filters.push(Filter { layer, weight, verdict, conditions: conditions.to_vec() });
        };
        add(15, Verdict::Permit, &[Condition::OwnProgram]);
        add(14, Verdict::Permit, &[Condition::Loopback]);
        if self.luid != 0 {
            add(14, Verdict::Permit, &[Condition::Interface(self.luid)]);
        }
        for net in self.outside.iter().filter(|net| Family::of(net) == layer) {
            add(14, Verdict::Permit, &[Condition::To(*net)]);
        }
        let everything = match self.kind {
            Kind::Names => false,
            Kind::Ipv6 | Kind::KillSwitch => true,
        };
        match layer {
            _ if !everything => {}
            Family::V4 => {
                add(
                    13,
                    Verdict::Permit,
                    &[Condition::Protocol(UDP), Condition::From(68), Condition::ToPort(67)],
                );
            }
            Family::V6 => {
                add(
                    13,
                    Verdict::Permit,
                    &[Condition::Protocol(UDP), Condition::From(546), Condition::ToPort(547)],
                );
                // Neighbour discovery (RFC 4861 section 4): router solicitation to neighbour advertisement. The type stands where ports do.
                for kind in 133..=136 {
                    add(13, Verdict::Permit, &[Condition::Protocol(ICMPV6), Condition::From(kind)]);
                }
            }
        }
        for net in self.inside.iter().filter(|net| Family::of(net) == layer) {
            let mut conditions = Vec::new();
            if !everything {
                // Two conditions on one field: either.
                let names = [Condition::Protocol(UDP), Condition::Protocol(TCP), Condition::ToPort(DNS)];
                conditions.extend(names);
            }
            if net.prefix != 0 {
                conditions.push(Condition::To(*net));
            }
            add(0, Verdict::Block, &conditions);
        }
        filters
    }
}

/// What has no meaning beyond its link: it stays outside, as on other systems.
pub(super) fn local_networks() -> Vec<Cidr> {
    let v4 = |a, b, prefix| Cidr { addr: Ipv4Addr::new(a, b, 0, 0).into(), prefix };
    let v6 = |a, prefix| Cidr { addr: Ipv6Addr::new(a, 0, 0, 0, 0, 0, 0, 0).into(), prefix };
    vec![
        v4(169, 254, 16),
        v4(224, 0, 4),
        Cidr::host(Ipv4Addr::BROADCAST.into()),
        v6(0xfe80, 10),
        v6(0xff00, 8),
    ]
}

/// Protocol numbers of IP.
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// The port of DNS (RFC 1035 section 4.2).
const DNS: u16 = 53;

/// One filter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Filter {
    /// `FWPM_LAYER_ALE_AUTH_CONNECT` of this family.
    pub(super) layer: Family,
    /// The greatest of those that apply decides: 0 to 15.
    pub(super) weight: u8,
    /// What it does.
    pub(super) verdict: Verdict,
    /// When: all of them, but any of those on one field.
    pub(super) conditions: Vec<Condition>,
}

/// What a filter does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Lets it through, as far as this sublayer is concerned.
    Permit,
    /// Refuses it.
    Block,
}

/// A condition of a filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Condition {
    /// The program is this one.
    OwnProgram,
    /// It stays on the machine.
    Loopback,
    /// It leaves by this interface.
    Interface(u64),
    /// It is of this protocol.
    Protocol(u8),
    /// From this port; of ICMP, of this type.
    From(u16),
    /// To this port.
    ToPort(u16),
    /// To this network.
    To(Cidr),
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Permit => "permit",
            Verdict::Block => "block",
        };
        write!(f, "connect {} weight {} {verdict}", self.layer, self.weight)?;
        self.conditions.iter().try_for_each(|condition| write!(f, " {condition}"))
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Condition::OwnProgram => f.write_str("own-program"),
            Condition::Loopback => f.write_str("loopback"),
            Condition::Interface(luid) => write!(f, "luid {luid:#x}"),
            Condition::Protocol(number) => write!(f, "proto {number}"),
            Condition::From(port) => write!(f, "sport {port}"),
            Condition::ToPort(port) => write!(f, "dport {port}"),
            Condition::To(net) => write!(f, "to {net}"),
        }
    }
}

/// A condition as the system wants it (FWPM_FILTER_CONDITION0): which field, how it is compared, and with what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Compared {
    /// The key of the field.
    pub(super) field: u128,
    /// How: a FWP_MATCH_TYPE.
    pub(super) how: i32,
    /// With what.
    pub(super) value: Value,
}

/// A value as the system wants it, by its FWP_DATA_TYPE.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Value {
    /// FWP_UINT8.
    U8(u8),
    /// FWP_UINT16.
    U16(u16),
    /// FWP_UINT32.
    U32(u32),
    /// FWP_UINT64.
    U64(u64),
    /// FWP_BYTE_BLOB_TYPE.
    Blob(Vec<u8>),
    /// FWP_V4_ADDR_MASK: both with the first octet as the highest.
    V4 {
        /// The address.
        addr: u32,
        /// The bits that are compared.
        mask: u32,
    },
    /// FWP_V6_ADDR_MASK.
    V6 {
        /// The address.
        addr: [u8; 16],
        /// How many bits are compared.
        prefix: u8,
    },
}

/// FWP_MATCH_EQUAL and FWP_MATCH_FLAGS_ALL_SET.
const EQUAL: i32 = 0;
const ALL_SET: i32 = 6;

/// FWP_CONDITION_FLAG_IS_LOOPBACK.
const IS_LOOPBACK: u32 = 1;

/// The keys of the fields (fwpmu.h).
mod field {
    pub(super) const ALE_APP_ID: u128 = 0xd78e_1e87_8644_4ea5_9437_d809_ecef_c971;
    pub(super) const FLAGS: u128 = 0x632c_e23b_5167_435c_86d7_e903_684a_a80c;
    pub(super) const IP_LOCAL_INTERFACE: u128 = 0x4cd6_2a49_59c3_4969_b7f3_bda5_d328_90a4;
    pub(super) const IP_PROTOCOL: u128 = 0x3971_ef2b_623e_4f9a_8cb1_6e79_b806_b9a7;
    pub(super) const IP_LOCAL_PORT: u128 = 0x0c1b_a1af_5765_453f_af22_a8f7_91ac_775b;
    pub(super) const IP_REMOTE_PORT: u128 = 0xc35a_604d_d22b_4e1a_91b4_68f6_74ee_674b;
    pub(super) const IP_REMOTE_ADDRESS: u128 = 0xb235_ae9a_1d64_49b8_a44c_5ff3_d909_5045;
}

/// The keys of the layers.
pub(super) fn layer_key(family: Family) -> u128 {
    match family {
        Family::V4 => 0xc38d_57d1_05a7_4c33_904f_7fbc_eee6_0e82,
        Family::V6 => 0x4a72_393b_319f_44bc_84c3_ba54_dcb3_b6b4,
    }
}

impl Condition {
    /// As the system wants it; `program` is this program as the system knows it.
    pub(super) fn compared(&self, program: &[u8]) -> Compared {
        let (field, how, value) = match *self {
            Condition::OwnProgram => (field::ALE_APP_ID, EQUAL, Value::Blob(program.to_vec())),
            Condition::Loopback => (field::FLAGS, ALL_SET, Value::U32(IS_LOOPBACK)),
            Condition::Interface(luid) => (field::IP_LOCAL_INTERFACE, EQUAL, Value::U64(luid)),
            Condition::Protocol(number) => (field::IP_PROTOCOL, EQUAL, Value::U8(number)),
            Condition::From(port) => (field::IP_LOCAL_PORT, EQUAL, Value::U16(port)),
            Condition::ToPort(port) => (field::IP_REMOTE_PORT, EQUAL, Value::U16(port)),
            Condition::To(net) => (field::IP_REMOTE_ADDRESS, EQUAL, network_value(&net)),
        };
        Compared { field, how, value }
    }
}

fn network_value(net: &Cidr) -> Value {
    match net.addr {
        IpAddr::V4(addr) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(net.prefix.into())).unwrap_or(0);
            Value::V4 { addr: addr.to_bits() & mask, mask }
        }
        IpAddr::V6(addr) => Value::V6 { addr: addr.octets(), prefix: net.prefix },
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::host::windows::change::tests::net;
    use proptest::prelude::*;

    pub(in crate::host::windows) fn guard() -> impl Strategy<Value = Guard> {
        let kind = proptest::sample::select(&Kind::ALL[..]);
        let nets = || proptest::collection::vec(net(), 0..3);
        (kind, any::<u64>(), nets(), nets()).prop_map(|(kind, luid, inside, outside)| Guard {
            kind,
            luid,
            inside,
            outside,
        })
    }

    fn text(guard: &str) -> String {
        let words: Vec<&str> = guard.split(' ').collect();
        let filters = Guard::parse(&words).unwrap().filters();
        filters.iter().map(|filter| format!("{filter}\n")).collect()
    }

    #[test]
    fn queries_for_names_leave_by_the_device_alone() {
        let golden = "\
connect v4 weight 15 permit own-program
connect v4 weight 14 permit loopback
connect v4 weight 14 permit luid 0x35000001000000
connect v4 weight 14 permit to 192.168.1.1/32
connect v4 weight 0 block proto 17 proto 6 dport 53
connect v6 weight 15 permit own-program
connect v6 weight 14 permit loopback
connect v6 weight 14 permit luid 0x35000001000000
connect v6 weight 0 block proto 17 proto 6 dport 53
";
        assert_eq!(text("names luid 0x35000001000000 to 0.0.0.0/0,::/0 outside 192.168.1.1/32"), golden);
    }

    #[test]
    fn a_kill_switch_leaves_what_a_link_needs_to_be_one() {
        let golden = "\
connect v4 weight 15 permit own-program
connect v4 weight 14 permit loopback
connect v4 weight 14 permit luid 0x1
connect v4 weight 14 permit to 169.254.0.0/16
connect v4 weight 14 permit to 10.0.0.0/8
connect v4 weight 13 permit proto 17 sport 68 dport 67
connect v4 weight 0 block
connect v6 weight 15 permit own-program
connect v6 weight 14 permit loopback
connect v6 weight 14 permit luid 0x1
connect v6 weight 14 permit to fe80::/10
connect v6 weight 13 permit proto 17 sport 546 dport 547
connect v6 weight 13 permit proto 58 sport 133
connect v6 weight 13 permit proto 58 sport 134
connect v6 weight 13 permit proto 58 sport 135
connect v6 weight 13 permit proto 58 sport 136
connect v6 weight 0 block
";
        assert_eq!(
            text("kill-switch luid 0x1 to 0.0.0.0/0,::/0 outside 169.254.0.0/16,fe80::/10,10.0.0.0/8"),
            golden
        );
    }

    #[test]
    fn ipv6_is_refused_without_a_word_about_ipv4() {
        let text = text("ipv6 luid 0x1 to ::/0 outside 192.168.0.0/16,fe80::/10");
        assert!(text.lines().all(|line| line.starts_with("connect v6")), "{text}");
        assert!(text.ends_with("connect v6 weight 0 block\n"), "{text}");
        assert!(text.contains("permit to fe80::/10"), "{text}");
    }

    #[test]
    fn only_what_is_captured_is_refused() {
        let golden = "\
connect v4 weight 15 permit own-program
connect v4 weight 14 permit loopback
connect v4 weight 14 permit luid 0x1
connect v4 weight 13 permit proto 17 sport 68 dport 67
connect v4 weight 0 block to 10.0.0.0/8
connect v4 weight 0 block to 172.16.0.0/12
";
        assert_eq!(text("kill-switch luid 0x1 to 10.0.0.0/8,172.16.0.0/12 outside -"), golden);
    }

    #[test]
    fn a_condition_to_the_octet() {
        let compared = |condition: Condition| condition.compared(b"app");
        let net = |text: &str| Condition::To(text.parse().unwrap());
        assert_eq!(compared(Condition::OwnProgram).value, Value::Blob(b"app".to_vec()));
        let loopback = Compared { field: field::FLAGS, how: ALL_SET, value: Value::U32(1) };
        assert_eq!(compared(Condition::Loopback), loopback);
        assert_eq!(compared(net("10.1.2.3/8")).value, Value::V4 { addr: 0x0a00_0000, mask: 0xff00_0000 });
        assert_eq!(compared(net("0.0.0.0/0")).value, Value::V4 { addr: 0, mask: 0 });
        assert_eq!(compared(net("1.2.3.4/32")).value, Value::V4 { addr: 0x0102_0304, mask: u32::MAX });
        let addr = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(compared(net("fe80::/10")).value, Value::V6 { addr, prefix: 10 });
        assert_eq!(compared(Condition::ToPort(53)).value, Value::U16(53));
        assert_eq!(compared(Condition::Interface(7)).value, Value::U64(7));
    }

    #[test]
    fn a_guard_of_which_nothing_is_known_covers_any_of_its_kind_and_another_only_itself() {
        let guard = |text: &str| Guard::parse(&text.split(' ').collect::<Vec<_>>()).unwrap();
        let found = guard("kill-switch luid 0x1 to 0.0.0.0/0 outside 10.0.0.0/8");
        assert!(found.covers(&found));
        assert!(Guard::unknown(Kind::KillSwitch).covers(&found));
        assert!(!Guard::unknown(Kind::Names).covers(&found));
        assert!(!guard("kill-switch luid 0x2 to 0.0.0.0/0 outside 10.0.0.0/8").covers(&found));
    }

    proptest! {
        /// Keys count up in their last 16 bits, and the first is the sublayer's own.
        #[test]
        fn every_filter_has_a_key_of_its_own(guard in guard()) {
            prop_assert!(guard.filters().len() < 0xffff);
            let keys = Kind::ALL.map(|kind| kind.key() & 0xffff);
            prop_assert_eq!(keys, [0; 3]);
        }

        #[test]
        fn what_blocks_has_the_least_weight(guard in guard()) {
            for filter in guard.filters() {
                prop_assert_eq!(filter.weight == 0, filter.verdict == Verdict::Block);
            }
        }
    }

    #[cfg(windows)]
    #[test]
    fn the_keys_are_those_of_the_system() {
        use windows_sys::Win32::NetworkManagement::WindowsFilteringPlatform::{
            FWP_CONDITION_FLAG_IS_LOOPBACK, FWP_MATCH_EQUAL, FWP_MATCH_FLAGS_ALL_SET,
            FWPM_CONDITION_ALE_APP_ID, FWPM_CONDITION_FLAGS, FWPM_CONDITION_IP_LOCAL_INTERFACE,
            FWPM_CONDITION_IP_LOCAL_PORT, FWPM_CONDITION_IP_PROTOCOL, FWPM_CONDITION_IP_REMOTE_ADDRESS,
            FWPM_CONDITION_IP_REMOTE_PORT, FWPM_LAYER_ALE_AUTH_CONNECT_V4, FWPM_LAYER_ALE_AUTH_CONNECT_V6,
        };
        use windows_sys::core::GUID;
        let same = |own: u128, system: GUID| {
            let own = GUID::from_u128(own);
            assert_eq!(
                (own.data1, own.data2, own.data3, own.data4),
                (system.data1, system.data2, system.data3, system.data4)
            );
        };
        same(field::ALE_APP_ID, FWPM_CONDITION_ALE_APP_ID);
        same(field::FLAGS, FWPM_CONDITION_FLAGS);
        same(field::IP_LOCAL_INTERFACE, FWPM_CONDITION_IP_LOCAL_INTERFACE);
        same(field::IP_PROTOCOL, FWPM_CONDITION_IP_PROTOCOL);
        same(field::IP_LOCAL_PORT, FWPM_CONDITION_IP_LOCAL_PORT);
        same(field::IP_REMOTE_PORT, FWPM_CONDITION_IP_REMOTE_PORT);
        same(field::IP_REMOTE_ADDRESS, FWPM_CONDITION_IP_REMOTE_ADDRESS);
        same(layer_key(Family::V4), FWPM_LAYER_ALE_AUTH_CONNECT_V4);
        same(layer_key(Family::V6), FWPM_LAYER_ALE_AUTH_CONNECT_V6);
        assert_eq!((EQUAL, ALL_SET), (FWP_MATCH_EQUAL, FWP_MATCH_FLAGS_ALL_SET));
        assert_eq!(IS_LOOPBACK, FWP_CONDITION_FLAG_IS_LOOPBACK);
    }
}
