//! Rows of the IP Helper's tables (netioapi.h): routes, addresses of interfaces, and their settings. Pure.
//!
//! What a request leaves open has the value that the system's own initialisers (`InitializeIpForwardEntry`, `InitializeUnicastIpAddressEntry`) give it.
//! Interfaces are named by their LUID, which no other has as long as the machine runs; by index 0, which is none, where the LUID decides.

use super::octets::{Row, array, rows, u16_at, u32_at, u64_at};
use crate::config::Cidr;
use crate::host::want::Family;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

/// AF_INET and AF_INET6 of Windows.
const AF_INET: u16 = 2;
const AF_INET6: u16 = 23;

/// What never ends, among lifetimes in seconds.
const INFINITE: u32 = u32::MAX;

/// MIB_IPPROTO_NETMGMT: a route that a program has set.
const SET_BY_PROGRAM: u32 = 3;

/// IpPrefixOriginUnchanged and IpSuffixOriginUnchanged.
const ORIGIN_UNCHANGED: u32 = 16;

/// IpDadStatePreferred: the address is used at once; nobody else is behind the device who could have it.
const PREFERRED: u32 = 4;

/// MIB_IPFORWARD_ROW2.
pub(super) type RouteRow = Row<104>;
/// MIB_UNICASTIPADDRESS_ROW.
pub(super) type AddressRow = Row<80>;
/// MIB_IPINTERFACE_ROW.
pub(super) type InterfaceRow = Row<168>;

/// Octets of a MIB_..._TABLE2 before its first row.
const HEADER: usize = 8;

/// Offsets in MIB_IPFORWARD_ROW2.
mod route {
    pub(super) const DESTINATION: usize = 12;
    pub(super) const PREFIX: usize = 40;
    pub(super) const NEXT_HOP: usize = 44;
    pub(super) const VALID: usize = 76;
    pub(super) const PREFERRED: usize = 80;
    pub(super) const METRIC: usize = 84;
    pub(super) const PROTOCOL: usize = 88;
    /// Loopback, AutoconfigureAddress, Publish and Immortal, an octet each.
    pub(super) const FLAGS: usize = 92;
}

/// Offsets in MIB_UNICASTIPADDRESS_ROW.
mod address {
    pub(super) const LUID: usize = 32;
    pub(super) const PREFIX_ORIGIN: usize = 44;
    pub(super) const SUFFIX_ORIGIN: usize = 48;
    pub(super) const VALID: usize = 52;
    pub(super) const PREFERRED: usize = 56;
    pub(super) const PREFIX: usize = 60;
    pub(super) const DAD_STATE: usize = 64;
}

/// Offsets in MIB_IPINTERFACE_ROW.
mod interface {
    pub(super) const LUID: usize = 8;
    pub(super) const AUTOMATIC_METRIC: usize = 44;
    pub(super) const SITE_PREFIX: usize = 144;
    pub(super) const METRIC: usize = 148;
    pub(super) const MTU: usize = 152;
}

/// A SOCKADDR_INET of 28 octets.
pub(super) fn socket_address(addr: IpAddr) -> [u8; 28] {
    let mut octets = [0; 28];
    let mut put = |at: usize, from: &[u8]| {
        for (place, octet) in octets.iter_mut().skip(at).zip(from) {
            *place = *octet;
        }
    };
    match addr {
        IpAddr::V4(addr) => {
            put(0, &AF_INET.to_le_bytes());
            put(4, &addr.octets());
        }
        IpAddr::V6(addr) => {
            put(0, &AF_INET6.to_le_bytes());
            put(8, &addr.octets());
        }
    }
    octets
}

/// The address in a SOCKADDR_INET, if it is one.
fn address_in(octets: &[u8], at: usize) -> Option<IpAddr> {
    match u16_at(octets, at)? {
        AF_INET => Some(Ipv4Addr::from(array::<4>(octets, at + 4)?).into()),
        AF_INET6 => Some(Ipv6Addr::from(array::<16>(octets, at + 8)?).into()),
        _ => None,
    }
}

/// A network, if the prefix is one of the address's family.
fn network_in(octets: &[u8], at: usize, prefix: usize) -> Option<Cidr> {
    Cidr::new(address_in(octets, at)?, *octets.get(prefix)?)
}

fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// The request for a route out of the interface `luid`, by `next_hop` or, with none, straight to who is on the link.
pub(super) fn route_row(luid: u64, destination: &Cidr, next_hop: Option<IpAddr>, metric: u32) -> RouteRow {
    let next_hop = next_hop.unwrap_or_else(|| unspecified(Family::of(destination)));
    Row::zeroed()
        .with(0, &luid.to_le_bytes())
        .with(route::DESTINATION, &socket_address(destination.addr))
        .with(route::PREFIX, &[destination.prefix])
        .with(route::NEXT_HOP, &socket_address(next_hop))
        .with(route::VALID, &INFINITE.to_le_bytes())
        .with(route::PREFERRED, &INFINITE.to_le_bytes())
        .with(route::METRIC, &metric.to_le_bytes())
        .with(route::PROTOCOL, &SET_BY_PROGRAM.to_le_bytes())
        .with(route::FLAGS, &[1, 1, 1, 1])
}

/// The request for an address of the interface `luid`.
pub(super) fn address_row(luid: u64, addr: &Cidr) -> AddressRow {
    Row::zeroed()
        .with(0, &socket_address(addr.addr))
        .with(address::LUID, &luid.to_le_bytes())
        .with(address::PREFIX_ORIGIN, &ORIGIN_UNCHANGED.to_le_bytes())
        .with(address::SUFFIX_ORIGIN, &ORIGIN_UNCHANGED.to_le_bytes())
        .with(address::VALID, &INFINITE.to_le_bytes())
        .with(address::PREFERRED, &INFINITE.to_le_bytes())
        .with(address::PREFIX, &[addr.prefix])
        .with(address::DAD_STATE, &PREFERRED.to_le_bytes())
}

/// What asks for the settings of an interface in one family.
pub(super) fn interface_query(luid: u64, family: Family) -> InterfaceRow {
    let family = match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    };
    Row::zeroed().with(0, &family.to_le_bytes()).with(interface::LUID, &luid.to_le_bytes())
}

/// The request that sets what `settings` say, and nothing else: `row` is what the system has answered.
pub(super) fn interface_set(row: InterfaceRow, settings: Settings) -> InterfaceRow {
    // A prefix length that the system itself has answered is refused for IPv4 when it is set.
    let is_v4 = u16_at(row.octets(), 0) == Some(AF_INET);
    let row = if is_v4 { row.with(interface::SITE_PREFIX, &[0; 4]) } else { row };
    let row = row
        .with(interface::AUTOMATIC_METRIC, &[u8::from(settings.metric.is_none())])
        .with(interface::MTU, &settings.mtu.to_le_bytes());
    match settings.metric {
        Some(metric) => row.with(interface::METRIC, &metric.to_le_bytes()),
        None => row,
    }
}

/// What is set of an interface in one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// MTU, octets.
    pub mtu: u32,
    /// What is added to the metric of each of its routes; chosen by the system with none.
    pub metric: Option<u32>,
}

/// An interface in one family, as the system shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SeenInterface {
    pub(super) family: Family,
    pub(super) luid: u64,
    pub(super) settings: Settings,
    /// The metric that counts, chosen or not.
    pub(super) metric: u32,
}

/// An address of an interface, as the system shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SeenAddress {
    pub(super) luid: u64,
    pub(super) address: Cidr,
}

/// A route, as the system shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SeenRoute {
    pub(super) luid: u64,
    pub(super) destination: Cidr,
    /// `None` for who is on the link.
    pub(super) next_hop: Option<IpAddr>,
    /// What is added to the interface's metric.
    pub(super) metric: u32,
}

/// The rows of a MIB_IPINTERFACE_TABLE.
pub(super) fn interfaces(table: &[u8]) -> Vec<SeenInterface> {
    rows(table, HEADER, size_of::<InterfaceRow>()).filter_map(interface).collect()
}

/// A MIB_IPINTERFACE_ROW.
pub(super) fn interface(row: &[u8]) -> Option<SeenInterface> {
    let family = match u16_at(row, 0)? {
        AF_INET => Family::V4,
        AF_INET6 => Family::V6,
        _ => return None,
    };
    let metric = u32_at(row, interface::METRIC)?;
    let automatic = *row.get(interface::AUTOMATIC_METRIC)? != 0;
    let settings = Settings { mtu: u32_at(row, interface::MTU)?, metric: (!automatic).then_some(metric) };
    Some(SeenInterface { family, luid: u64_at(row, interface::LUID)?, settings, metric })
}

/// The rows of a MIB_UNICASTIPADDRESS_TABLE.
pub(super) fn addresses(table: &[u8]) -> Vec<SeenAddress> {
    let seen = |row| {
        let address = network_in(row, 0, address::PREFIX)?;
        Some(SeenAddress { luid: u64_at(row, address::LUID)?, address })
    };
    rows(table, HEADER, size_of::<AddressRow>()).filter_map(seen).collect()
}

/// The rows of a MIB_IPFORWARD_TABLE2.
pub(super) fn routes(table: &[u8]) -> Vec<SeenRoute> {
    rows(table, HEADER, size_of::<RouteRow>()).filter_map(route).collect()
}

/// A MIB_IPFORWARD_ROW2.
pub(super) fn route(row: &[u8]) -> Option<SeenRoute> {
    Some(SeenRoute {
        luid: u64_at(row, 0)?,
        destination: network_in(row, route::DESTINATION, route::PREFIX)?,
        next_hop: address_in(row, route::NEXT_HOP).filter(|addr| !addr.is_unspecified()),
        metric: u32_at(row, route::METRIC)?,
    })
}

/// A TCP or UDP socket, as the system shows it (iphlpapi.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SeenSocket {
    pub(super) local: SocketAddr,
    /// Unspecified for UDP, and for a socket that listens.
    pub(super) remote: SocketAddr,
    /// Of TCP.
    pub(super) listens: bool,
    /// The process.
    pub(super) pid: u32,
}

/// MIB_TCP_STATE_LISTEN.
const LISTEN: u32 = 2;

/// MIB_TCP_STATE_DELETE_TCB: closes a connection whose state is set to it.
const DELETE: u32 = 12;

/// MIB_TCPROW_LH.
pub(super) type ConnectionRow = Row<20>;

/// The request that closes a connection; there is none for IPv6.
pub(super) fn closing_row(local: SocketAddrV4, remote: SocketAddrV4) -> ConnectionRow {
    Row::zeroed()
        .with(0, &DELETE.to_le_bytes())
        .with(4, &local.ip().octets())
        .with(8, &local.port().to_be_bytes())
        .with(12, &remote.ip().octets())
        .with(16, &remote.port().to_be_bytes())
}

/// Octets of a table of sockets before its first row.
const COUNT: usize = 4;

/// A port in the low half of 32 bits, in the order of the wire.
fn port(row: &[u8], at: usize) -> Option<u16> {
    array(row, at).map(u16::from_be_bytes)
}

fn v4_end(row: &[u8], at: usize, port_at: usize) -> Option<SocketAddr> {
    Some((Ipv4Addr::from(array::<4>(row, at)?), port(row, port_at)?).into())
}

fn v6_end(row: &[u8], at: usize, port_at: usize) -> Option<SocketAddr> {
    Some((Ipv6Addr::from(array::<16>(row, at)?), port(row, port_at)?).into())
}

/// The rows of a MIB_TCPTABLE_OWNER_PID or MIB_TCP6TABLE_OWNER_PID.
pub(super) fn tcp_sockets(family: Family, table: &[u8]) -> Vec<SeenSocket> {
    let v4 = |row: &[u8]| {
        let (local, remote) = (v4_end(row, 4, 8)?, v4_end(row, 12, 16)?);
        Some(SeenSocket { local, remote, listens: u32_at(row, 0)? == LISTEN, pid: u32_at(row, 20)? })
    };
    let v6 = |row: &[u8]| {
        let (local, remote) = (v6_end(row, 0, 20)?, v6_end(row, 24, 44)?);
        Some(SeenSocket { local, remote, listens: u32_at(row, 48)? == LISTEN, pid: u32_at(row, 52)? })
    };
    match family {
        Family::V4 => rows(table, COUNT, 24).filter_map(v4).collect(),
        Family::V6 => rows(table, COUNT, 56).filter_map(v6).collect(),
    }
}

/// The rows of a MIB_UDPTABLE_OWNER_PID or MIB_UDP6TABLE_OWNER_PID.
pub(super) fn udp_sockets(family: Family, table: &[u8]) -> Vec<SeenSocket> {
    let remote = SocketAddr::from((unspecified(family), 0));
    let v4 = |row: &[u8]| {
        Some(SeenSocket { local: v4_end(row, 0, 4)?, remote, listens: false, pid: u32_at(row, 8)? })
    };
    let v6 = |row: &[u8]| {
        Some(SeenSocket { local: v6_end(row, 0, 20)?, remote, listens: false, pid: u32_at(row, 24)? })
    };
    match family {
        Family::V4 => rows(table, COUNT, 12).filter_map(v4).collect(),
        Family::V6 => rows(table, COUNT, 28).filter_map(v6).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LUID: u64 = 0x0035_0000_0100_0000;

    fn net(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn table(header: usize, rows: &[&[u8]]) -> Vec<u8> {
        let mut octets = vec![0; header];
        octets[0] = u8::try_from(rows.len()).unwrap();
        rows.iter().for_each(|row| octets.extend_from_slice(row));
        octets
    }

    #[test]
    fn a_route_over_a_next_hop_to_the_octet() {
        let row = route_row(LUID, &net("203.0.113.9/32"), Some("192.168.1.1".parse().unwrap()), 7674);
        let mut golden = Vec::new();
        golden.extend([0, 0, 0, 1, 0, 0, 0x35, 0]); // InterfaceLuid
        golden.extend([0; 4]); // InterfaceIndex
        golden.extend([2, 0, 0, 0, 203, 0, 113, 9]); // DestinationPrefix.Prefix
        golden.extend([0; 20]);
        golden.extend([32, 0, 0, 0]); // DestinationPrefix.PrefixLength
        golden.extend([2, 0, 0, 0, 192, 168, 1, 1]); // NextHop
        golden.extend([0; 20]);
        golden.extend([0, 0, 0, 0]); // SitePrefixLength
        golden.extend([0xff; 4]); // ValidLifetime
        golden.extend([0xff; 4]); // PreferredLifetime
        golden.extend([0xfa, 0x1d, 0, 0]); // Metric
        golden.extend([3, 0, 0, 0]); // Protocol
        golden.extend([1, 1, 1, 1]); // Loopback, AutoconfigureAddress, Publish, Immortal
        golden.extend([0; 8]); // Age, Origin
        assert_eq!(row.octets(), golden);
    }

    #[test]
    fn a_route_onto_the_link_has_the_unspecified_next_hop_of_its_family() {
        let row = route_row(LUID, &net("8000::/1"), None, 0);
        assert_eq!(row.octets()[12..24], [23, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0]);
        assert_eq!(row.octets()[40], 1);
        assert_eq!(row.octets()[44..72], socket_address(Ipv6Addr::UNSPECIFIED.into()));
        assert_eq!(row.octets()[44], 23);
    }

    #[test]
    fn an_address_to_the_octet() {
        let row = address_row(LUID, &net("fd7a:7a74:756e::1/64"));
        let mut golden = vec![23, 0, 0, 0, 0, 0, 0, 0]; // Address: family, port, flow
        golden.extend([0xfd, 0x7a, 0x7a, 0x74, 0x75, 0x6e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        golden.extend([0; 4]); // scope
        golden.extend([0; 4]); // padding
        golden.extend([0, 0, 0, 1, 0, 0, 0x35, 0]); // InterfaceLuid
        golden.extend([0; 4]); // InterfaceIndex
        golden.extend([16, 0, 0, 0]); // PrefixOrigin
        golden.extend([16, 0, 0, 0]); // SuffixOrigin
        golden.extend([0xff; 8]); // ValidLifetime, PreferredLifetime
        golden.extend([64, 0, 0, 0]); // OnLinkPrefixLength, SkipAsSource
        golden.extend([4, 0, 0, 0]); // DadState
        golden.extend([0; 12]); // ScopeId, CreationTimeStamp
        assert_eq!(row.octets(), golden);
    }

    #[test]
    fn setting_an_interface_leaves_the_rest_of_its_row_alone() {
        let seen = Row::<168>::zeroed().with(0, &[0xaa; 168]).with(0, &[2, 0]);
        let set = interface_set(seen, Settings { mtu: 1500, metric: Some(0) });
        let mut golden = seen.octets().to_vec();
        golden[44] = 0;
        golden[144..156].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0xdc, 5, 0, 0]);
        assert_eq!(set.octets(), golden);
        let v6 = interface_set(seen.with(0, &[23, 0]), Settings { mtu: 1500, metric: Some(0) });
        assert_eq!(v6.octets()[144..148], [0xaa; 4]);
        let automatic = interface_set(seen, Settings { mtu: 0xaaaa_aaaa, metric: None });
        assert_eq!(automatic.octets()[44], 1);
        assert_eq!(automatic.octets()[148..152], [0xaa; 4]);
    }

    #[test]
    fn what_is_asked_of_an_interface_is_its_family_and_luid() {
        let row = interface_query(LUID, Family::V6);
        assert_eq!(row.octets()[..16], [23, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0x35, 0]);
        assert!(row.octets()[16..].iter().all(|octet| *octet == 0));
    }

    #[test]
    fn an_interface_is_read_with_its_metric_chosen_or_set() {
        let row = interface_set(interface_query(LUID, Family::V4), Settings { mtu: 1400, metric: Some(7) });
        let automatic = row.with(44, &[1]);
        let seen = interfaces(&table(8, &[row.octets(), automatic.octets()]));
        let one = SeenInterface {
            family: Family::V4,
            luid: LUID,
            settings: Settings { mtu: 1400, metric: Some(7) },
            metric: 7,
        };
        let other = SeenInterface { settings: Settings { mtu: 1400, metric: None }, ..one };
        assert_eq!(seen, [one, other]);
    }

    #[test]
    fn tcp_sockets_are_read_with_ports_in_the_order_of_the_wire() {
        let row = [
            5, 0, 0, 0, 192, 168, 1, 5, 0xc0, 0x01, 0, 0, 203, 0, 113, 9, 0x01, 0xbb, 0, 0, 0x39, 0x30, 0, 0,
        ];
        let listening = [2, 0, 0, 0, 127, 0, 0, 1, 0x04, 0x38, 9, 9, 0, 0, 0, 0, 9, 9, 0, 0, 1, 0, 0, 0];
        let seen = tcp_sockets(Family::V4, &table(4, &[&row, &listening]));
        let connected = SeenSocket {
            local: "192.168.1.5:49153".parse().unwrap(),
            remote: "203.0.113.9:443".parse().unwrap(),
            listens: false,
            pid: 12345,
        };
        assert_eq!(seen[0], connected);
        assert_eq!((seen[1].local, seen[1].listens), ("127.0.0.1:1080".parse().unwrap(), true));
        let mut row = [0; 56];
        row[15] = 1;
        row[20..22].copy_from_slice(&[0x04, 0x38]);
        row[24..28].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
        row[44..46].copy_from_slice(&[0x01, 0xbb]);
        row[48] = 5;
        row[52] = 7;
        let seen = tcp_sockets(Family::V6, &table(4, &[&row]));
        let golden = SeenSocket {
            local: "[::1]:1080".parse().unwrap(),
            remote: "[2001:db8::]:443".parse().unwrap(),
            listens: false,
            pid: 7,
        };
        assert_eq!(seen, [golden]);
    }

    #[test]
    fn udp_sockets_have_no_other_end() {
        let row = [0, 0, 0, 0, 0x14, 0xe9, 0, 0, 0x0a, 0, 0, 0];
        let seen = udp_sockets(Family::V4, &table(4, &[&row]));
        let golden = SeenSocket {
            local: "0.0.0.0:5353".parse().unwrap(),
            remote: "0.0.0.0:0".parse().unwrap(),
            listens: false,
            pid: 10,
        };
        assert_eq!(seen, [golden]);
        let mut row = [0; 28];
        row[15] = 1;
        row[20..22].copy_from_slice(&[0x14, 0xe9]);
        row[24] = 11;
        let seen = udp_sockets(Family::V6, &table(4, &[&row]));
        assert_eq!((seen[0].local, seen[0].pid), ("[::1]:5353".parse().unwrap(), 11));
    }

    #[test]
    fn closing_a_connection_names_both_its_ends() {
        let row = closing_row("192.168.1.5:49153".parse().unwrap(), "203.0.113.9:443".parse().unwrap());
        let golden = [12, 0, 0, 0, 192, 168, 1, 5, 0xc0, 1, 0, 0, 203, 0, 113, 9, 1, 0xbb, 0, 0];
        assert_eq!(row.octets()[..20], golden);
    }

    fn cidr() -> impl Strategy<Value = Cidr> {
        let v4 = (any::<[u8; 4]>(), 0..=32_u8)
            .prop_map(|(addr, prefix)| Cidr { addr: IpAddr::from(addr), prefix });
        let v6 = (any::<[u8; 16]>(), 0..=128_u8)
            .prop_map(|(addr, prefix)| Cidr { addr: IpAddr::from(addr), prefix });
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn what_is_asked_for_is_what_is_shown(luid: u64, net in cidr(), hop: [u8; 4], metric: u32) {
            let hop = Some(IpAddr::from(hop)).filter(|addr| !addr.is_unspecified());
            let row = route_row(luid, &net, hop, metric);
            let seen = SeenRoute { luid, destination: net, next_hop: hop, metric };
            prop_assert_eq!(routes(&table(8, &[row.octets()])), [seen]);
            let row = address_row(luid, &net);
            prop_assert_eq!(addresses(&table(8, &[row.octets()])), [SeenAddress { luid, address: net }]);
        }

        #[test]
        fn any_octets_are_read_without_a_panic(octets: Vec<u8>) {
            let _ = (routes(&octets), addresses(&octets), interfaces(&octets));
            for family in [Family::V4, Family::V6] {
                let _ = (tcp_sockets(family, &octets), udp_sockets(family, &octets));
            }
        }
    }

    /// The offsets are those of the structs as the system's headers have them, and what is left open is what the system itself would put there.
    #[cfg(windows)]
    mod system {
        use super::*;
        use core::mem::offset_of;
        use windows_sys::Win32::NetworkManagement::IpHelper::{
            IP_ADDRESS_PREFIX, InitializeIpForwardEntry, InitializeUnicastIpAddressEntry, MIB_IPFORWARD_ROW2,
            MIB_IPFORWARD_TABLE2, MIB_IPINTERFACE_ROW, MIB_TCP6ROW_OWNER_PID, MIB_TCPROW_OWNER_PID,
            MIB_UDP6ROW_OWNER_PID, MIB_UDPROW_OWNER_PID, MIB_UNICASTIPADDRESS_ROW,
        };
        use windows_sys::Win32::Networking::WinSock::SOCKADDR_INET;

        #[test]
        fn the_offsets_are_those_of_the_structs() {
            assert_eq!(size_of::<SOCKADDR_INET>(), 28);
            assert_eq!(size_of::<MIB_IPFORWARD_ROW2>(), size_of::<RouteRow>());
            assert_eq!(size_of::<MIB_UNICASTIPADDRESS_ROW>(), size_of::<AddressRow>());
            assert_eq!(size_of::<MIB_IPINTERFACE_ROW>(), size_of::<InterfaceRow>());
            assert_eq!(offset_of!(MIB_IPFORWARD_TABLE2, Table), HEADER);
            assert_eq!(offset_of!(MIB_IPFORWARD_ROW2, DestinationPrefix), route::DESTINATION);
            assert_eq!(route::DESTINATION + offset_of!(IP_ADDRESS_PREFIX, PrefixLength), route::PREFIX);
            assert_eq!(offset_of!(MIB_IPFORWARD_ROW2, NextHop), route::NEXT_HOP);
            assert_eq!(offset_of!(MIB_IPFORWARD_ROW2, ValidLifetime), route::VALID);
            assert_eq!(offset_of!(MIB_IPFORWARD_ROW2, PreferredLifetime), route::PREFERRED);
            assert_eq!(offset_of!(MIB_IPFORWARD_ROW2, Metric), route::METRIC);
            assert_eq!(offset_of!(MIB_IPFORWARD_ROW2, Protocol), route::PROTOCOL);
            assert_eq!(offset_of!(MIB_IPFORWARD_ROW2, Loopback), route::FLAGS);
            assert_eq!(offset_of!(MIB_IPFORWARD_ROW2, Immortal), route::FLAGS + 3);
            assert_eq!(offset_of!(MIB_UNICASTIPADDRESS_ROW, InterfaceLuid), address::LUID);
            assert_eq!(offset_of!(MIB_UNICASTIPADDRESS_ROW, PrefixOrigin), address::PREFIX_ORIGIN);
            assert_eq!(offset_of!(MIB_UNICASTIPADDRESS_ROW, SuffixOrigin), address::SUFFIX_ORIGIN);
            assert_eq!(offset_of!(MIB_UNICASTIPADDRESS_ROW, ValidLifetime), address::VALID);
            assert_eq!(offset_of!(MIB_UNICASTIPADDRESS_ROW, PreferredLifetime), address::PREFERRED);
            assert_eq!(offset_of!(MIB_UNICASTIPADDRESS_ROW, OnLinkPrefixLength), address::PREFIX);
            assert_eq!(offset_of!(MIB_UNICASTIPADDRESS_ROW, DadState), address::DAD_STATE);
            assert_eq!(offset_of!(MIB_IPINTERFACE_ROW, InterfaceLuid), interface::LUID);
            assert_eq!(offset_of!(MIB_IPINTERFACE_ROW, UseAutomaticMetric), interface::AUTOMATIC_METRIC);
            assert_eq!(offset_of!(MIB_IPINTERFACE_ROW, SitePrefixLength), interface::SITE_PREFIX);
            assert_eq!(offset_of!(MIB_IPINTERFACE_ROW, Metric), interface::METRIC);
            assert_eq!(offset_of!(MIB_IPINTERFACE_ROW, NlMtu), interface::MTU);
            assert_eq!((size_of::<MIB_TCPROW_OWNER_PID>(), size_of::<MIB_TCP6ROW_OWNER_PID>()), (24, 56));
            assert_eq!((size_of::<MIB_UDPROW_OWNER_PID>(), size_of::<MIB_UDP6ROW_OWNER_PID>()), (12, 28));
        }

        #[test]
        fn on_windows_what_a_route_leaves_open_is_as_the_system_initialises_it() {
            let mut row = RouteRow::zeroed();
            // SAFETY: the pointer is to as many octets as the struct has, aligned for it.
            unsafe { InitializeIpForwardEntry(row.as_mut_ptr()) };
            let own = route_row(LUID, &net("0.0.0.0/1"), None, 0);
            assert_eq!(row.octets()[route::VALID..route::METRIC], own.octets()[route::VALID..route::METRIC]);
            assert_eq!(row.octets()[route::FLAGS..], own.octets()[route::FLAGS..]);
        }

        #[test]
        fn on_windows_what_an_address_leaves_open_is_as_the_system_initialises_it() {
            let mut row = AddressRow::zeroed();
            // SAFETY: the pointer is to as many octets as the struct has, aligned for it.
            unsafe { InitializeUnicastIpAddressEntry(row.as_mut_ptr()) };
            let own = address_row(LUID, &net("198.18.0.1/16"));
            let open = address::PREFIX_ORIGIN..address::PREFIX;
            assert_eq!(row.octets()[open.clone()], own.octets()[open]);
        }
    }
}
