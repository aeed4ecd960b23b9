//! What there is on the machine, for those who only look: nothing here changes anything.
//!
//! Interfaces, routes and rules come out of netlink dumps, which need no privilege; whether a thing is ztun's own is told by its protocol
//! number, as everywhere in `host`. A namespace is tried in a child process that ends at once, and takes it along.

#![allow(clippy::wildcard_enum_match_arm, reason = "the attributes are the kernel's, and it adds to them")]

use super::change::{Family, PROTOCOL};
use super::kernel;
use super::nft::Nft;
use super::process::fork;
use crate::config::Cidr;
use crate::host::{Reversible, RunDir};
use crate::netlink::Netlink;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_packet_sock_diag::SockDiagMessage;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

/// A network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// The kernel's index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is loopback.
    pub loopback: bool,
    /// Its MTU, octets.
    pub mtu: u32,
    /// What made it (`tun`, `wireguard`, `veth`); `None` for hardware.
    pub kind: Option<String>,
}

/// A route of any table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeenRoute {
    /// Where it leads to.
    pub destination: Cidr,
    /// Its table.
    pub table: u32,
    /// Its interface; `None` for one that leads nowhere.
    pub interface: Option<u32>,
    /// Whether packets get anywhere by it (type unicast).
    pub leads: bool,
    /// Whether it carries ztun's protocol number.
    pub own: bool,
    /// MTU that it sets or that was learnt for it, octets.
    pub mtu: Option<u32>,
}

/// A policy rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeenRule {
    /// The IP version that it is for.
    pub family: Family,
    /// Its preference: the lowest comes first.
    pub preference: u32,
    /// The table that it looks into; `None` for other actions.
    pub table: Option<u32>,
    /// Mark and mask that it selects.
    pub mark: Option<(u32, u32)>,
    /// Whether every packet that the machine sends matches.
    pub all: bool,
    /// The shortest prefix that its answer may have, by `suppress_prefixlength`; 0 for any.
    pub shortest: u32,
    /// Whether it is the one for interfaces in a VRF, which concerns no others.
    pub vrf: bool,
    /// Whether it carries ztun's protocol number.
    pub own: bool,
}

/// What runs of ztun there are, and what dead ones have left.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Remains {
    /// The device of each live run, with its process.
    pub live: Vec<(String, Option<u32>)>,
    /// Journals that no live run has.
    pub journals: Vec<String>,
    /// Whether a live run has the table and the rules; then those of ours are its own.
    pub routed: bool,
    /// Rules and routes of ours in the kernel's tables, as text.
    pub changes: Vec<String>,
}

/// What the TUN driver can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TunDriver {
    /// It takes and gives segments of TCP that the kernel has not cut (IFF_VNET_HDR).
    pub vnet: bool,
}

/// Every interface.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let messages = Netlink::route()?.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(messages.into_iter().filter_map(interface).collect())
}

fn interface(message: RouteNetlinkMessage) -> Option<Interface> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let (mut name, mut mtu, mut kind) = (None, 0, None);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(given) => name = Some(given),
            LinkAttribute::Mtu(given) => mtu = given,
            LinkAttribute::LinkInfo(infos) => {
                kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let flags = message.header.flags;
    Some(Interface {
        index: message.header.index,
        name: name?,
        up: flags.contains(LinkFlags::Up),
        loopback: flags.contains(LinkFlags::Loopback),
        mtu,
        kind,
    })
}

/// The addresses of all interfaces but loopback, with their interface's index; those that are valid on their link only are left out.
pub fn addresses() -> io::Result<Vec<(u32, Cidr)>> {
    let all = kernel::all_addresses(&mut Netlink::route()?)?;
    let wide = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => !addr.is_loopback() && !addr.is_link_local(),
        IpAddr::V6(addr) => !addr.is_loopback() && !addr.is_unicast_link_local(),
    };
    Ok(all.into_iter().filter(|(_, _, net)| wide(net.addr)).map(|(index, _, net)| (index, net)).collect())
}

/// Every route of every table.
pub fn routes() -> io::Result<Vec<SeenRoute>> {
    let messages = Netlink::route()?.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
    let seen = |message| match message {
        RouteNetlinkMessage::NewRoute(message) => route(&message),
        _ => None,
    };
    Ok(messages.into_iter().filter_map(seen).collect())
}

/// The route that a packet of this machine to `to` takes, with the mark `mark`. An error is the kernel's: ENETUNREACH when there is none.
pub fn route_to(to: IpAddr, mark: u32) -> io::Result<SeenRoute> {
    let mut message = RouteMessage::default();
    let (family, whole) = if to.is_ipv4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
    message.header.address_family = family;
    message.header.destination_prefix_length = whole;
    message.header.flags = RouteFlags::LookupTable;
    message.attributes.extend([RouteAttribute::Destination(to.into()), RouteAttribute::Mark(mark)]);
    match Netlink::route()?.one(RouteNetlinkMessage::GetRoute(message))? {
        Some(RouteNetlinkMessage::NewRoute(message)) => route(&message)
            .ok_or_else(|| io::Error::other("the kernel answers with a route of another family")),
        _ => Err(io::Error::other("the kernel answers with no route")),
    }
}

fn route(message: &RouteMessage) -> Option<SeenRoute> {
    let unspecified = unspecified(message.header.address_family)?;
    let (mut destination, mut table) = (unspecified, u32::from(message.header.table));
    let (mut interface, mut mtu) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(addr)) => destination = IpAddr::V4(*addr),
            RouteAttribute::Destination(RouteAddress::Inet6(addr)) => destination = IpAddr::V6(*addr),
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::MultiPath(hops) => {
                interface = interface.or(hops.first().map(|hop: &RouteNextHop| hop.interface_index));
            }
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(SeenRoute {
        destination: Cidr::new(destination, message.header.destination_prefix_length)?,
        table,
        interface,
        leads: message.header.kind == RouteType::Unicast,
        own: u8::from(message.header.protocol) == PROTOCOL,
        mtu,
    })
}

fn unspecified(family: AddressFamily) -> Option<IpAddr> {
    match family {
        AddressFamily::Inet => Some(Ipv4Addr::UNSPECIFIED.into()),
        AddressFamily::Inet6 => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    }
}

/// Every policy rule of `family`, the first first. EOPNOTSUPP or EAFNOSUPPORT when the kernel has none.
pub fn rules(family: Family) -> io::Result<Vec<SeenRule>> {
    let mut request = RuleMessage::default();
    request.header.family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    let messages = Netlink::route()?.dump(RouteNetlinkMessage::GetRule(request))?;
    let mut rules: Vec<SeenRule> = messages
        .iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewRule(message) => Some(rule(family, message)),
            _ => None,
        })
        .collect();
    rules.sort_by_key(|rule| rule.preference);
    Ok(rules)
}

fn rule(family: Family, message: &RuleMessage) -> SeenRule {
    let header = &message.header;
    let (mut preference, mut table, mut own) = (0, u32::from(header.table), false);
    let (mut mark, mut mask, mut shortest, mut vrf) = (None, u32::MAX, 0, false);
    let mut all = header.src_len == 0
        && header.dst_len == 0
        && header.tos == 0
        && !header.flags.contains(RuleFlags::Invert);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(value) => preference = *value,
            RuleAttribute::Table(value) => table = *value,
            RuleAttribute::Protocol(value) => own = u8::from(*value) == PROTOCOL,
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(value) => mask = *value,
            // The kernel gives -1 for none.
            RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            RuleAttribute::SuppressPrefixLen(value) => shortest = value.saturating_add(1),
            RuleAttribute::L3MDev(_) => vrf = true,
            RuleAttribute::Iifname(_)
            | RuleAttribute::Oifname(_)
            | RuleAttribute::UidRange(_)
            | RuleAttribute::IpProtocol(_)
            | RuleAttribute::SourcePortRange(_)
            | RuleAttribute::DestinationPortRange(_)
            | RuleAttribute::TunId(_) => all = false,
            _ => {}
        }
    }
    SeenRule {
        family,
        preference,
        table: (header.action == RuleAction::ToTable).then_some(table),
        mark: mark.map(|mark| (mark, mask)),
        all: all && !vrf && mark.is_none_or(|_| mask == 0),
        shortest,
        vrf,
        own,
    }
}

/// Live runs, and what dead ones left, in `dir` and in the kernel's tables. No lock is taken, not even for a moment: a run that starts meanwhile
/// would find it held.
///
/// # Errors
///
/// The directory cannot be read (it is its user's alone), or the kernel cannot be asked.
pub fn remains(dir: &RunDir) -> io::Result<Remains> {
    let mut remains = Remains::default();
    let entries = match fs::read_dir(dir.path()) {
        Ok(entries) => Some(entries),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let locked = locked_inodes()?;
    let mut journals = Vec::new();
    for entry in entries.into_iter().flatten() {
        let entry = entry?;
        let name = entry.file_name();
        let Some((stem, extension)) = name.to_str().and_then(|name| name.rsplit_once('.')) else { continue };
        let Some(stem) = stem.strip_suffix(dir.suffix()).filter(|stem| !stem.contains('@')) else { continue };
        match extension {
            "lock" if locked.contains(&entry.metadata()?.ino()) => {
                let pid = fs::read_to_string(entry.path())
                    .ok()
                    .and_then(|text| text.split_whitespace().next()?.parse().ok());
                if stem == ".routes" {
                    remains.routed = true;
                } else {
                    remains.live.push((stem.to_owned(), pid));
                }
            }
            "journal" => journals.push(stem.to_owned()),
            _ => {}
        }
    }
    remains.live.sort_unstable();
    journals.sort_unstable();
    journals.retain(|stem| !remains.live.iter().any(|(device, _)| device == stem));
    remains.journals = journals;
    let changes = crate::host::left_behind()?;
    // What is left is undone by a deletion; what is there is the deletion's undo.
    remains.changes = changes.iter().map(|change| change.undo().to_string()).collect();
    Ok(remains)
}

/// The inodes that somebody holds a lock of flock(2) on (proc(5), /proc/locks).
fn locked_inodes() -> io::Result<Vec<u64>> {
    let text = fs::read_to_string("/proc/locks")?;
    Ok(text.lines().filter(|line| line.contains("FLOCK")).filter_map(locked_inode).collect())
}

/// `1: FLOCK  ADVISORY  WRITE 2463 00:19:1172 0 EOF`: the inode is the last number of the sixth field.
fn locked_inode(line: &str) -> Option<u64> {
    line.split_whitespace().nth(5)?.rsplit(':').next()?.parse().ok()
}

/// Opens the TUN driver, without making a device, and asks what it can do.
///
/// # Errors
///
/// There is no `/dev/net/tun`, it is something else, or it cannot be opened.
pub fn tun_driver() -> io::Result<TunDriver> {
    const PATH: &str = "/dev/net/tun";
    let found = fs::metadata(PATH)?;
    let (major, minor) = (libc::major(found.rdev()), libc::minor(found.rdev()));
    if !found.file_type().is_char_device() || (major, minor) != (10, 200) {
        let text = format!("{PATH} is not the character device 10:200");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let file = fs::OpenOptions::new().read(true).write(true).open(PATH)?;
    let mut features: libc::c_uint = 0;
    // SAFETY: the descriptor is open, and TUNGETFEATURES writes one unsigned int.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETFEATURES, &raw mut features) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(TunDriver { vnet: features & libc::IFF_VNET_HDR.cast_unsigned() != 0 })
}

/// Whether the kernel tells about sockets (sock_diag), by which flows of a proxy on this machine are known.
pub fn sock_diag() -> io::Result<()> {
    let any = std::net::SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let mut request = super::owner::request(netlink_packet_sock_diag::constants::IPPROTO_TCP, any, any);
    request.states = netlink_packet_sock_diag::inet::StateFlags::LISTEN;
    Netlink::sock_diag()?.dump(SockDiagMessage::InetRequest(request)).map(drop)
}

/// Whether the kernel takes filters of nf_tables, which keep the local network from finding out the tunnel's addresses.
///
/// # Errors
///
/// EPERM for whoever may not ask; another one when there are none.
pub fn nf_tables() -> io::Result<()> {
    Nft::open()?.tables().map(drop)
}

/// What a namespace of one's own, as `ztun exec` needs it, is refused with; tried in a child that ends at once.
pub fn private_namespace() -> io::Result<()> {
    let mut child = fork(|| {
        // SAFETY: geteuid has no arguments and cannot fail.
        let root = unsafe { libc::geteuid() } == 0;
        let user = if root { 0 } else { libc::CLONE_NEWUSER };
        // SAFETY: unshare takes a number; the child has one thread and ends with what it made.
        if unsafe { libc::unshare(user | libc::CLONE_NEWNET | libc::CLONE_NEWNS) } == 0 {
            return 0;
        }
        let number = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EPERM);
        u8::try_from(number).unwrap_or(u8::MAX)
    })?;
    match child.wait()?.code() {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(number.into())),
    }
}

/// The MTU of the path to the peer of a connected socket, as far as the kernel knows it, octets.
pub fn path_mtu(socket: &impl AsRawFd, peer: IpAddr) -> io::Result<u32> {
    let (level, option) =
        if peer.is_ipv4() { (libc::IPPROTO_IP, libc::IP_MTU) } else { (libc::IPPROTO_IPV6, libc::IPV6_MTU) };
    let mut mtu: libc::c_int = 0;
    let mut len = libc::socklen_t::try_from(size_of_val(&mtu)).expect("an int is a few octets");
    // SAFETY: the descriptor is open, and the option's value is one int, whose length is given, that outlives the call.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut mtu).cast(), &raw mut len) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u32::try_from(mtu).unwrap_or(0))
}

/// Keeps the system's resolver from waiting long for servers that are dead: for programs that have to tell so soon.
///
/// # Errors
///
/// The process has more than one thread, so its environment cannot be changed.
pub fn impatient_resolver() -> io::Result<()> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a process with several threads"));
    }
    // SAFETY: this process has one thread, so nobody reads the environment meanwhile.
    unsafe { std::env::set_var("RES_OPTIONS", "timeout:1 attempts:2") };
    Ok(())
}

/// Open files: the hard limit.
pub fn open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live, writable struct of the type that the call expects.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn loopback_is_seen_with_its_route_and_the_machines_rules() {
        let interfaces = interfaces().unwrap();
        let lo = interfaces.iter().find(|interface| interface.loopback).unwrap();
        assert_eq!((lo.name.as_str(), lo.kind.as_deref()), ("lo", None));
        let route = route_to(Ipv4Addr::LOCALHOST.into(), 0).unwrap();
        assert_eq!((route.interface, route.own), (Some(lo.index), false));
        assert!(addresses().unwrap().iter().all(|(index, _)| *index != lo.index));
        let rules = rules(Family::V4).unwrap();
        assert!(rules.iter().any(|rule| rule.preference == 32_766 && rule.all && rule.table == Some(254)));
        assert!(rules.windows(2).all(|pair| pair[0].preference <= pair[1].preference));
        sock_diag().unwrap();
        // It takes root to ask.
        assert!(nf_tables().map_or_else(|error| error.raw_os_error() == Some(libc::EPERM), |()| true));
        assert!(routes().unwrap().iter().any(|route| route.destination.contains(Ipv4Addr::LOCALHOST.into())));
    }

    #[test]
    fn what_a_rule_selects_is_read_from_its_message() {
        let message = |attributes: &[RuleAttribute]| {
            let mut message = RuleMessage::default();
            message.header.action = RuleAction::ToTable;
            message.attributes.extend_from_slice(attributes);
            rule(Family::V4, &message)
        };
        let all = message(&[RuleAttribute::Priority(7), RuleAttribute::Table(9)]);
        assert_eq!((all.preference, all.table, all.all, all.shortest), (7, Some(9), true, 0));
        let marked = message(&[RuleAttribute::FwMark(1), RuleAttribute::FwMask(3)]);
        assert_eq!((marked.all, marked.mark), (false, Some((1, 3))));
        assert!(
            message(&[RuleAttribute::FwMark(0), RuleAttribute::FwMask(0)]).all,
            "that is what the kernel says of none"
        );
        assert_eq!(message(&[RuleAttribute::SuppressPrefixLen(0)]).shortest, 1);
        assert_eq!(message(&[RuleAttribute::SuppressPrefixLen(u32::MAX)]).shortest, 0);
        let vrf = message(&[RuleAttribute::L3MDev(true)]);
        assert!(vrf.vrf && !vrf.all);
        assert!(!message(&[RuleAttribute::Iifname("x".into())]).all);
        let mut inverted = RuleMessage::default();
        inverted.header.flags = RuleFlags::Invert;
        assert!(!rule(Family::V4, &inverted).all);
    }

    #[test]
    fn the_path_on_loopback_is_as_wide_as_loopback() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(path_mtu(&stream, Ipv4Addr::LOCALHOST.into()).unwrap() >= 1280);
    }

    /// L-14: a lock that a live process holds is seen without being taken, a file that nobody holds is a dead run's.
    #[test]
    fn live_runs_are_told_from_what_dead_ones_left() {
        use crate::host::run::Journal;
        use crate::host::run::journal::FileJournal;
        use crate::host::run::lock::Lock;
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::at(dir.path().join("run"));
        assert_eq!(remains(&run).unwrap().live, []);
        let lock = Lock::device(&run, "a0").unwrap();
        FileJournal::new(&run, "a0").begin(1, &[] as &[crate::host::Change]).unwrap();
        FileJournal::new(&run, "b0").begin(1, &[] as &[crate::host::Change]).unwrap();
        let found = remains(&run).unwrap();
        assert_eq!(found.live, [("a0".to_owned(), Some(std::process::id()))]);
        assert_eq!(found.journals, ["b0"]);
        assert!(!found.routed);
        let routes = Lock::routes(&run).unwrap();
        assert!(remains(&run).unwrap().routed);
        drop((lock, routes));
        assert_eq!(remains(&run).unwrap().journals, ["a0", "b0"]);
    }

    #[test]
    fn the_inode_of_a_lock_is_the_last_number_of_its_field() {
        assert_eq!(locked_inode("1: FLOCK  ADVISORY  WRITE 2463 00:19:1172 0 EOF"), Some(1172));
        assert_eq!(locked_inode("1: FLOCK  ADVISORY  WRITE 2463"), None);
    }

    proptest! {
        #[test]
        fn no_line_makes_the_reader_of_locks_panic(line in ".*") {
            let _ = locked_inode(&line);
        }
    }
}
