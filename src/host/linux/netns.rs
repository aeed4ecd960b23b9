//! A private network namespace whose only way out is a device, for a program or for a part of this one.
//!
//! # Theory of operation
//!
//! ```text
//!  this process                       the child
//!  ------------                       ---------
//!  fork ───────────────────────────▶  unshare: user (only where needed), network, mount
//!                                     loopback up; device opened, addressed, default routes; names
//!  device, or what failed and why ◀─  the device's descriptor
//!  builds the loop
//!  go ─────────────────────────────▶  becomes the program
//!  runs the loop until it ends        its packets come out of the device
//! ```
//!
//! The loop and its sockets stay in this process's namespace, so nothing can loop; the namespaces are the child's alone and go with it, so nothing
//! has to be restored.
//!
//! Root in this machine's first user namespace needs no other one. Everyone else gets one in which they are who they are outside, with the rights
//! over the new namespaces that go when the program is executed.

use super::change::{Address, Change, Family, MAIN_TABLE, Route};
use super::kernel::{self, apply};
use super::process::{Child, fork};
use crate::config::Cidr;
use crate::host::HostError;
use crate::netlink::Netlink;
use std::ffi::{CString, OsString};
use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Exit status of a program that there is not, as shells have it.
const NOT_FOUND: u8 = 127;
/// Exit status of a program that cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// Exit status of a child that was told to give up.
const GIVEN_UP: u8 = 1;

/// Where systemd-resolved's sockets and stub file are: programs reach it past any network namespace.
const RESOLVED: &str = "/run/systemd/resolve";
/// The same for nscd.
const NSCD: &str = "/run/nscd";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What the namespace is like.
#[derive(Clone, Debug)]
pub struct Inside {
    /// Name of the device.
    pub device: String,
    /// Its addresses.
    pub addresses: Vec<Cidr>,
    /// Its MTU, octets.
    pub mtu: u16,
    /// Who resolves names. With nobody, names are left as they are.
    pub nameservers: Vec<IpAddr>,
}

/// A child in its namespace, waiting for [`Waiting::go`].
#[derive(Debug)]
pub struct Waiting {
    child: Child,
    /// The device.
    pub device: OwnedFd,
    line: UnixStream,
}

impl Waiting {
    /// Lets the child go on.
    pub fn go(self) -> io::Result<Child> {
        (&self.line).write_all(&[1])?;
        Ok(self.child)
    }
}

/// Makes the namespace; `open` opens its device in it, and `body` goes on in it.
///
/// # Errors
///
/// What the system refused, in the child or here.
pub fn enter<D: Into<OwnedFd>>(
    inside: &Inside,
    open: impl FnOnce() -> Result<D, HostError>,
    body: impl FnOnce() -> u8,
) -> Result<Waiting, HostError> {
    let failed = |source| HostError {
        what: "cannot start a process for the namespace".into(),
        source,
        remedy: "raise the limits on processes and open files (`ulimit -u`, `ulimit -n`)".into(),
    };
    let (line, theirs) = UnixStream::pair().map_err(failed)?;
    // Whatever goes wrong from here on, the child is killed with `child`.
    let child = fork(move || live(inside, open, body, &theirs)).map_err(failed)?;
    let device = receive(&line)?;
    Ok(Waiting { child, device, line })
}

/// The child's life: the namespace, the device, the go, the body.
fn live<D: Into<OwnedFd>>(
    inside: &Inside,
    open: impl FnOnce() -> Result<D, HostError>,
    body: impl FnOnce() -> u8,
    line: &UnixStream,
) -> u8 {
    let device: OwnedFd = match set_up(inside, open) {
        Ok(device) => device.into(),
        Err(error) => {
            // When even this fails, the other end sees the line end.
            let _ = report(line, &error);
            return GIVEN_UP;
        }
    };
    if send(line, device).is_err() {
        return GIVEN_UP;
    }
    let mut go = [0];
    match (&*line).read_exact(&mut go) {
        Ok(()) => body(),
        Err(_) => GIVEN_UP,
    }
}

/// Becomes the program; gives the status of a shell when that fails.
pub fn become_program(command: &[OsString]) -> u8 {
    let Some((program, arguments)) = command.split_first() else { return NOT_FOUND };
    // The proxy's password is none of the command's business.
    let error = Command::new(program).args(arguments).env_remove("ZTUN_SOCKS5").exec();
    // There is no other place to say it: the log is the router's.
    let _ = writeln!(io::stderr(), "ztun: cannot run {}: {error}", program.to_string_lossy());
    if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE }
}

fn set_up<D>(inside: &Inside, open: impl FnOnce() -> Result<D, HostError>) -> Result<D, HostError> {
    isolate()?;
    let step = |what: &'static str| {
        move |source| HostError {
            what: format!("cannot {what} in the private namespace"),
            source,
            remedy: "run with --log-level debug; a container may lack the rights".into(),
        }
    };
    let mut netlink = Netlink::route().map_err(step("talk to the kernel"))?;
    apply(&mut netlink, &Change::LinkUp { device: "lo".into() }).map_err(step("bring loopback up"))?;
    let device = open()?;
    let have = kernel::snapshot(&mut netlink, &inside.device).map_err(step("look at the device"))?;
    for change in changes(inside, &have) {
        log::debug!("private namespace: {change}");
        apply(&mut netlink, &change).map_err(step("set the device up"))?;
    }
    allow_ping();
    names(&inside.nameservers).map_err(step("set the nameservers"))?;
    Ok(device)
}

/// Leaves for a new namespace that has nothing but these addresses, on loopback.
///
/// # Errors
///
/// What the system refused; this process may be in a new namespace already.
pub fn alone(addresses: &[Cidr]) -> Result<(), HostError> {
    isolate()?;
    let lo = || "lo".to_owned();
    let mut changes = vec![Change::LinkUp { device: lo() }];
    changes.extend(
        addresses
            .iter()
            .map(|&address| Change::AddressAdd(Address { device: lo(), address, prefix_route: true })),
    );
    Netlink::route()
        .and_then(|mut netlink| changes.iter().try_for_each(|change| apply(&mut netlink, change).map(drop)))
        .map_err(|source| HostError {
            what: "cannot give the private namespace its addresses".into(),
            source,
            remedy: "the kernel needs IPv4 and IPv6".into(),
        })
}

/// Address, MTU and default routes of the device.
fn changes(inside: &Inside, have: &super::plan::Have) -> Vec<Change> {
    use super::plan::Ipv6;
    let device = || inside.device.clone();
    let mut changes = Vec::new();
    if have.ipv6 == Ipv6::OffOnDevice {
        changes.push(Change::Ipv6On { device: device() });
    }
    if have.mtu != u32::from(inside.mtu) {
        changes.push(Change::MtuSet { device: device(), mtu: inside.mtu.into(), was: have.mtu });
    }
    let usable = |net: &&Cidr| have.ipv6 != Ipv6::Absent || Family::of(net) == Family::V4;
    for &address in inside.addresses.iter().filter(usable) {
        changes.push(Change::AddressAdd(Address { device: device(), address, prefix_route: true }));
    }
    changes.push(Change::LinkUp { device: device() });
    let everything =
        [Cidr::host([0; 4].into()), Cidr::host([0; 16].into())].map(|net| Cidr { prefix: 0, ..net });
    for destination in everything.iter().filter(usable).copied() {
        if inside.addresses.iter().any(|net| Family::of(net) == Family::of(&destination)) {
            changes.push(Change::RouteAdd(Route { destination, device: device(), table: MAIN_TABLE }));
        }
    }
    changes
}

/// Leaves for new namespaces.
fn isolate() -> Result<(), HostError> {
    let plain = libc::CLONE_NEWNET | libc::CLONE_NEWNS;
    match unshare(plain) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            // SAFETY: both calls have no arguments and cannot fail.
            let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
            unshare(plain | libc::CLONE_NEWUSER).and_then(|()| map_ids(user, group)).map_err(refused)?;
        }
        Err(error) => return Err(refused(error)),
    }
    // What is mounted here stays here.
    mount(None, "/", None, libc::MS_REC | libc::MS_PRIVATE).map_err(refused)
}

fn refused(source: io::Error) -> HostError {
    HostError {
        what: "cannot make a private namespace".into(),
        source,
        remedy:
            "allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone=1, \
                 kernel.apparmor_restrict_unprivileged_userns=0), or run as root"
                .into(),
    }
}

fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: the call takes a number; this process has one thread.
    if unsafe { libc::unshare(flags) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Inside, one is who one is outside.
fn map_ids(user: u32, group: u32) -> io::Result<()> {
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

/// Lets ordinary users of the namespace open ICMP sockets, as ping does without privilege.
fn allow_ping() {
    // SAFETY: the call has no arguments and cannot fail.
    let group = unsafe { libc::getegid() };
    // With all groups where they are known; in a user namespace only the one that is mapped.
    for range in ["0 2147483647".to_owned(), format!("{group} {group}")] {
        match fs::write("/proc/sys/net/ipv4/ping_group_range", &range) {
            Ok(()) => return,
            Err(error) => log::debug!("ping_group_range {range}: {error}"),
        }
    }
}

/// Makes names be asked for at `servers`, by way of the device.
fn names(servers: &[IpAddr]) -> io::Result<()> {
    if servers.is_empty() {
        return Ok(());
    }
    let text = match fs::read_to_string(RESOLV_CONF) {
        Ok(found) => resolv_conf(&found, servers),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            log::debug!("no {RESOLV_CONF}: names are left as they are");
            return Ok(());
        }
        // Whatever is there, nobody could use it as it is.
        Err(_) => resolv_conf("", servers),
    };
    // The sockets of resolvers of the machine are files: no network namespace keeps programs from them.
    for directory in [RESOLVED, NSCD] {
        if fs::metadata(directory).is_ok_and(|found| found.is_dir()) {
            mount(Some("tmpfs"), directory, Some("tmpfs"), libc::MS_NOSUID | libc::MS_NODEV)?;
            if directory == RESOLVED {
                // /etc/resolv.conf may be a link to one of them.
                for name in ["stub-resolv.conf", "resolv.conf"] {
                    write_for_all(&format!("{RESOLVED}/{name}"), &text)?;
                }
            }
        }
    }
    match fs::read_to_string(RESOLV_CONF) {
        Ok(found) if found == text => Ok(()),
        Ok(_) | Err(_) => over_resolv_conf(&text),
    }
}

/// The text of a resolv.conf(5) like `found`, with `servers` for its nameservers.
pub(super) fn resolv_conf(found: &str, servers: &[IpAddr]) -> String {
    if all_nameservers(found).eq(servers.iter().copied()) {
        return found.to_owned();
    }
    let mut text = String::new();
    for line in found.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some(word @ ("search" | "domain" | "sortlist")) => push_line(&mut text, word, words),
            // `trust-ad` is a promise about the way to the machine's own nameservers.
            Some("options") => push_line(&mut text, "options", words.filter(|option| *option != "trust-ad")),
            Some(_) | None => {}
        }
    }
    for server in servers {
        push_line(&mut text, "nameserver", [server.to_string().as_str()].into_iter());
    }
    text
}

fn push_line<'w>(text: &mut String, keyword: &str, words: impl Iterator<Item = &'w str>) {
    text.push_str(keyword);
    for word in words {
        text.push(' ');
        text.push_str(word);
    }
    text.push('\n');
}

/// Mounts a file with `text` over the system's. The file is on a file system of its own, so that none of the machine's is written to.
fn over_resolv_conf(text: &str) -> io::Result<()> {
    // For this moment only, and in this mount namespace only. No resolv.conf is a link to there, and nothing here needs it meanwhile.
    const DIRECTORY: &str = "/proc";
    const FILE: &str = "/proc/resolv.conf";
    mount(Some("tmpfs"), DIRECTORY, Some("tmpfs"), libc::MS_NOSUID | libc::MS_NODEV)?;
    let mounted =
        write_for_all(FILE, text).and_then(|()| mount(Some(FILE), RESOLV_CONF, None, libc::MS_BIND));
    // SAFETY: the name is a string that ends with NUL and lives for ever.
    let unmounted = unsafe { libc::umount2(c"/proc".as_ptr(), libc::MNT_DETACH) };
    mounted?;
    if unmounted == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Writes a file that every user may read, whatever the umask.
fn write_for_all(path: &str, text: &str) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

fn mount(source: Option<&str>, target: &str, kind: Option<&str>, flags: libc::c_ulong) -> io::Result<()> {
    let text = |text: &str| CString::new(text).map_err(io::Error::from);
    let (source, target, kind) =
        (text(source.unwrap_or("none"))?, text(target)?, text(kind.unwrap_or("none"))?);
    // SAFETY: three strings that end with NUL and outlive the call, a number, and no data.
    let result =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The nameservers for the namespace: those of the machine that can be reached through the tunnel, which one on
/// loopback cannot; `fallback` when there is none.
pub fn nameservers(fallback: &[IpAddr]) -> Vec<IpAddr> {
    let text = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    let found = parse_nameservers(&text);
    if found.is_empty() { fallback.to_vec() } else { found }
}

fn parse_nameservers(text: &str) -> Vec<IpAddr> {
    all_nameservers(text).filter(|addr| !addr.is_loopback() && !addr.is_unspecified()).collect()
}

pub(super) fn all_nameservers(text: &str) -> impl Iterator<Item = IpAddr> + '_ {
    text.lines()
        .filter_map(|line| line.trim_start().strip_prefix("nameserver"))
        .filter(|rest| rest.starts_with([' ', '\t']))
        .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
}

// ---- the line between the two ----

/// Marks of what is said on the line.
const DEVICE: u8 = b'D';
const ERROR: u8 = b'E';

/// The longest report of an error, octets.
const REPORT: usize = 1024;

/// An error as one message: mark, number of the system's error, what and remedy behind NULs.
fn report(line: &UnixStream, error: &HostError) -> io::Result<()> {
    let number = error.source.raw_os_error().unwrap_or(0);
    let words = if number == 0 { error.source.to_string() } else { String::new() };
    let mut message = vec![ERROR];
    message.extend(number.to_ne_bytes());
    message.extend(format!("{}\0{}\0{words}", error.what, error.remedy).bytes());
    message.truncate(REPORT);
    (&*line).write_all(&message)
}

fn send(line: &UnixStream, device: OwnedFd) -> io::Result<()> {
    let fd = device.as_raw_fd();
    let mut control = [0_u64; 4];
    let mark = [IoSlice::new(&[DEVICE])];
    let size = size_of::<libc::c_int>() as libc::c_uint;
    // SAFETY: all-zero octets are a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = mark.as_ptr().cast_mut().cast();
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: the macro computes a length.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(size) } as _;
    // SAFETY: the control buffer is aligned, and larger than the one header with one descriptor that is written into it.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size) as _;
        libc::CMSG_DATA(header).cast::<libc::c_int>().write_unaligned(fd);
    }
    // SAFETY: the message's pointers are to buffers that outlive the call.
    match unsafe { libc::sendmsg(line.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) } {
        1 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The device, or what the child says that failed.
fn receive(line: &UnixStream) -> Result<OwnedFd, HostError> {
    let failed = |source| HostError {
        what: "the process for the namespace ended early".into(),
        source,
        remedy: "run with --log-level debug".into(),
    };
    let mut text = [0; REPORT];
    let mut control = [MaybeUninit::<u64>::uninit(); 4];
    let mut slices = [IoSliceMut::new(&mut text)];
    // SAFETY: all-zero octets are a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = slices.as_mut_ptr().cast();
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let len = loop {
        // SAFETY: the message's pointers are to buffers of the lengths that it states, which outlive the call.
        let len = unsafe { libc::recvmsg(line.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match usize::try_from(len) {
            Ok(len) => break len,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(failed(error));
                }
            }
        }
    };
    // SAFETY: the kernel has filled the control buffer and set its length; the header is looked at only if there is one.
    let passed = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        let descriptor = !header.is_null()
            && (*header).cmsg_level == libc::SOL_SOCKET
            && (*header).cmsg_type == libc::SCM_RIGHTS;
        descriptor
            .then(|| OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned()))
    };
    match (text.get(..len).and_then(<[u8]>::split_first), passed) {
        (Some((&DEVICE, _)), Some(device)) => Ok(device),
        (Some((&ERROR, rest)), None) => Err(parse_report(rest)),
        (Some(_) | None, Some(_) | None) => Err(failed(io::ErrorKind::UnexpectedEof.into())),
    }
}

fn parse_report(octets: &[u8]) -> HostError {
    let (number, text) =
        octets.split_first_chunk().map_or((0, octets), |(number, text)| (i32::from_ne_bytes(*number), text));
    let mut parts = text.split(|octet| *octet == 0).map(|part| String::from_utf8_lossy(part).into_owned());
    let mut part = || parts.next().unwrap_or_default();
    let (what, remedy, words) = (part(), part(), part());
    let source = if number == 0 { io::Error::other(words) } else { io::Error::from_raw_os_error(number) };
    HostError { what, source, remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_on_loopback_are_out_of_reach() {
        let text = "# nameserver 192.0.2.9\nnameserver 127.0.0.53\nnameserver 192.0.2.1 \n  nameserver\t2001:db8::1\nnameserver ::1\nnameservers 1.1.1.1\noptions edns0\n";
        let found: Vec<String> = parse_nameservers(text).iter().map(IpAddr::to_string).collect();
        assert_eq!(found, ["192.0.2.1", "2001:db8::1"]);
    }

    #[test]
    fn only_the_nameservers_of_resolv_conf_are_replaced() {
        let servers: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let found = "# by hand\nnameserver 127.0.0.53\noptions edns0 trust-ad ndots:2\nsearch corp.example\n";
        let written = resolv_conf(found, &servers);
        assert_eq!(
            written,
            "options edns0 ndots:2\nsearch corp.example\nnameserver 192.0.2.1\nnameserver 2001:db8::1\n"
        );
        // What is right already stays as it is, to the octet.
        let right = format!("# theirs\n{written}options trust-ad\n");
        assert_eq!(resolv_conf(&right, &servers), right);
        assert_eq!(resolv_conf("", &servers[..1]), "nameserver 192.0.2.1\n");
    }

    #[test]
    fn a_descriptor_comes_through_the_line() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        send(&theirs, far.into()).unwrap();
        let far = receive(&ours).unwrap();
        near.write_all(b"x").unwrap();
        let mut octet = [0];
        UnixStream::from(far).read_exact(&mut octet).unwrap();
        assert_eq!(octet, *b"x");
    }

    #[test]
    fn an_error_comes_through_the_line_in_its_own_words() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let sent = |source| HostError { what: "w".into(), source, remedy: "r".into() };
        report(&theirs, &sent(io::Error::from_raw_os_error(libc::EACCES))).unwrap();
        let error = receive(&ours).unwrap_err();
        assert_eq!((error.what.as_str(), error.remedy.as_str()), ("w", "r"));
        assert_eq!(error.source.raw_os_error(), Some(libc::EACCES));
        report(&theirs, &sent(io::Error::other("own words"))).unwrap();
        assert_eq!(receive(&ours).unwrap_err().source.to_string(), "own words");
        drop(theirs);
        assert!(receive(&ours).is_err());
    }
}
