//! A proxy on this machine, and which flows are its own.
//!
//! # Theory of operation
//!
//! A proxy on this machine sends what it is asked for through the machine's default route, which leads into the tunnel: a loop, unless its own
//! connections stay outside. Whose a connection is, is known exactly in two ways:
//!
//! - **By user**, in the kernel: when the proxy's user is a system account that runs nothing else, one routing rule keeps all of its sockets outside
//!   ([`LocalProxy::exclusive_uid`]).
//! - **By socket**, flow by flow: the kernel names the socket that has the flow's addresses and ports (sock_diag), and the socket
//!   belongs to the proxy when one of the proxy's processes holds its inode ([`LocalProxy::owns`]).
//!
//! The proxy's processes are those that hold the listening socket, and their descendants: dante and others fork workers. A
//! process is held by a descriptor of its directory in /proc, which dies with it, so a reused process id is never taken for it. New
//! processes are looked for only when the kernel has given out process ids since the last look, and only among those. A proxy that is
//! restarted is found again by its listening address.

use super::kernel::is_own_address;
use crate::netlink::Netlink;
use crate::outbound::rule::Proto;
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

/// Users up to this number are system accounts on every common distribution; people start above.
const LAST_SYSTEM_USER: u32 = 999;

/// More new process ids than this since the last look are looked for among all processes instead.
const MOST_NEW: u32 = 4096;

/// The processes that serve a listening address of this machine.
#[derive(Debug)]
pub struct LocalProxy {
    listen: SocketAddr,
    netlink: Netlink,
    /// Inodes of the listening sockets at the last search, sorted.
    listening: Vec<u32>,
    /// By process id.
    processes: BTreeMap<u32, Process>,
    /// The last process id that the kernel had given out at the last look.
    last_pid: u32,
}

/// A process that is alive for as long as its directory can be read.
#[derive(Debug)]
struct Process {
    directory: File,
}

/// What the kernel says of a process.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Status {
    /// The process that it is a thread of; its own id when it is a process.
    tgid: u32,
    parent: u32,
    /// Real, effective, saved and file system user.
    users: Vec<u32>,
}

impl LocalProxy {
    /// Finds who serves `listen`; `None` when that is no address of this machine. Nobody may serve it yet ([`LocalProxy::is_running`]): who does
    /// later is found then.
    ///
    /// # Errors
    ///
    /// The kernel cannot be asked (no sock_diag), or /proc cannot be read.
    pub fn find(listen: SocketAddr) -> io::Result<Option<LocalProxy>> {
        if !is_own_address(&mut Netlink::route()?, listen.ip())? {
            return Ok(None);
        }
        let netlink = Netlink::sock_diag()?;
        let processes = BTreeMap::new();
        let mut proxy = LocalProxy { listen, netlink, listening: Vec::new(), processes, last_pid: 0 };
        proxy.search()?;
        Ok(Some(proxy))
    }

    /// The address that they are the processes of.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Whether anybody serves the address whose processes can be seen.
    pub fn is_running(&self) -> bool {
        !self.processes.is_empty()
    }

    /// The proxy's processes, by their ids.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.processes.keys().copied()
    }

    /// The proxy's user, when it is a system account that runs nothing but the proxy.
    pub fn exclusive_uid(&self) -> Option<u32> {
        let mut uid = None;
        for (pid, status) in all_processes().ok()? {
            if self.processes.contains_key(&pid) {
                if status.users.iter().any(|user| *uid.get_or_insert(*user) != *user) {
                    return None;
                }
            } else if status.users.iter().any(|user| self.is_user(*user)) {
                return None;
            }
        }
        uid.filter(|uid| (1..=LAST_SYSTEM_USER).contains(uid))
    }

    fn is_user(&self, user: u32) -> bool {
        self.processes.values().filter_map(Process::status).any(|status| status.users.contains(&user))
    }

    /// Whether the socket bound to `local` that sends to `remote` belongs to the proxy. When the kernel cannot tell, it does not.
    pub fn owns(&mut self, proto: Proto, local: SocketAddr, remote: SocketAddr) -> bool {
        let socket = match self.socket(proto, local, remote) {
            Ok(Some(socket)) => socket,
            Ok(None) => return false,
            Err(error) => {
                log::debug!("cannot ask whose a socket is: {error}");
                return false;
            }
        };
        if let Err(error) = self.look_for_new() {
            log::debug!("cannot look for new processes of the local proxy: {error}");
        }
        let name = format!("socket:[{}]", socket.inode);
        self.processes.values().any(|process| process.holds(&name))
    }

    /// The kernel's record of the socket with these ends.
    fn socket(
        &mut self,
        proto: Proto,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> io::Result<Option<InetResponseHeader>> {
        let request = match proto {
            Proto::Tcp => request(IPPROTO_TCP, local, remote),
            // For UDP the kernel looks the socket up as for a datagram that arrives: from the remote end to the local one.
            Proto::Udp => request(IPPROTO_UDP, remote, local),
            Proto::Icmp => return Ok(None),
        };
        match self.netlink.one(SockDiagMessage::InetRequest(request)) {
            Ok(Some(SockDiagMessage::InetResponse(response))) => Ok(Some(response.header)),
            Ok(_) => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Finds all of the proxy's processes anew.
    fn search(&mut self) -> io::Result<()> {
        self.last_pid = last_pid()?;
        self.processes.clear();
        self.listening = self.listeners()?;
        let names: Vec<String> = self.listening.iter().map(|inode| format!("socket:[{inode}]")).collect();
        if names.is_empty() {
            return Ok(());
        }
        let all = all_processes()?;
        for &(pid, _) in &all {
            if let Some(process) = Process::open(pid)
                && names.iter().any(|name| process.holds(name))
            {
                self.processes.insert(pid, process);
            }
        }
        // Children of children too: a parent may have a higher number than its child once the numbers have wrapped.
        loop {
            let before = self.processes.len();
            for (pid, status) in &all {
                self.adopt(*pid, status);
            }
            if self.processes.len() == before {
                return Ok(());
            }
        }
    }

    /// Takes a process in whose parent is one of the proxy's. Process 1 is everybody's ancestor: when it holds the socket, for a service that it
    /// starts on demand, its descendants are not the proxy's for that.
    fn adopt(&mut self, pid: u32, status: &Status) {
        if status.tgid == pid
            && status.parent != 1
            && self.processes.contains_key(&status.parent)
            && !self.processes.contains_key(&pid)
        {
            self.processes.extend(Process::open(pid).map(|process| (pid, process)));
        }
    }

    fn look_for_new(&mut self) -> io::Result<()> {
        let known = self.processes.len();
        self.processes.retain(|_, process| process.status().is_some());
        if self.processes.is_empty() {
            return self.search();
        }
        let last = last_pid()?;
        // Another one may serve the address by now, while a child of the first one lives on.
        let changed = last != self.last_pid || self.processes.len() != known;
        if changed && self.listeners()? != self.listening {
            return self.search();
        }
        let before = core::mem::replace(&mut self.last_pid, last);
        match last.checked_sub(before) {
            Some(0) => {}
            Some(1..=MOST_NEW) => {
                for pid in before + 1..=last {
                    if let Some(status) = Process::open(pid).and_then(|process| process.status()) {
                        self.adopt(pid, &status);
                    }
                }
            }
            Some(_) | None => return self.search(),
        }
        Ok(())
    }

    /// Inodes of the sockets that take what is sent to the listening address, sorted.
    fn listeners(&mut self) -> io::Result<Vec<u32>> {
        let mut inodes = Vec::new();
        for any in
            [SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))]
        {
            let mut request = request(IPPROTO_TCP, any, any);
            request.states = StateFlags::LISTEN;
            let answers = match self.netlink.dump(SockDiagMessage::InetRequest(request)) {
                Ok(answers) => answers,
                // A kernel without IPv6 has none of these.
                Err(error) if any.is_ipv6() && error.raw_os_error() == Some(libc::ENOENT) => continue,
                Err(error) => return Err(error),
            };
            for answer in answers {
                let SockDiagMessage::InetResponse(answer) = answer else { continue };
                let socket = &answer.header.socket_id;
                if socket.source_port == self.listen.port() && serves(socket.source_address, self.listen.ip())
                {
                    inodes.push(answer.header.inode);
                }
            }
        }
        inodes.sort_unstable();
        Ok(inodes)
    }
}

/// Whether a socket bound to `bound` takes what is sent to `addr`.
pub(super) fn serves(bound: IpAddr, addr: IpAddr) -> bool {
    let bound = bound.to_canonical();
    // A socket on `::` takes IPv4 too unless it was told not to.
    bound == addr || bound.is_unspecified() && (bound.is_ipv6() || addr.is_ipv4())
}

pub(super) fn request(protocol: u8, source: SocketAddr, destination: SocketAddr) -> InetRequest {
    InetRequest {
        family: if source.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: source.port(),
            destination_port: destination.port(),
            source_address: source.ip(),
            destination_address: destination.ip(),
            interface_id: 0,
            // Any: the address decides.
            cookie: [0xff; 8],
        },
    }
}

impl Process {
    fn open(pid: u32) -> Option<Process> {
        File::open(format!("/proc/{pid}")).ok().map(|directory| Process { directory })
    }

    /// Its file `name` in /proc, by way of the directory that is its own for ever.
    fn path(&self, name: &str) -> String {
        format!("/proc/self/fd/{}/{name}", self.directory.as_raw_fd())
    }

    /// `None` when it has ended.
    fn status(&self) -> Option<Status> {
        Status::parse(&fs::read_to_string(self.path("status")).ok()?)
    }

    /// Whether one of its descriptors is the socket `name`, as in `socket:[4711]`.
    fn holds(&self, name: &str) -> bool {
        let Ok(descriptors) = fs::read_dir(self.path("fd")) else { return false };
        descriptors
            .flatten()
            .any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == name))
    }
}

impl Status {
    fn parse(text: &str) -> Option<Status> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let number = |name| field(name).and_then(|value| value.trim().parse().ok());
        let users: Vec<u32> =
            field("Uid:")?.split_whitespace().filter_map(|user| user.parse().ok()).collect();
        Some(Status { tgid: number("Tgid:")?, parent: number("PPid:")?, users })
    }
}

/// All processes that can be seen.
fn all_processes() -> io::Result<Vec<(u32, Status)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that ends meanwhile is none.
        let status = Process::open(pid).and_then(|process| process.status());
        all.extend(status.map(|status| (pid, status)));
    }
    Ok(all)
}

/// The last process id that the kernel has given out: the last field of /proc/loadavg (proc(5)).
fn last_pid() -> io::Result<u32> {
    let text = fs::read_to_string("/proc/loadavg")?;
    text.split_whitespace().last().and_then(|field| field.parse().ok()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "/proc/loadavg does not end with a process id")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn a_status_is_read_by_its_names() {
        let text = "Name:\tPPid: 3\nTgid:\t12\nPid:\t13\nPPid:\t1\nUid:\t0\t1\t2\t3\nGid:\t9\t9\t9\t9\n";
        let status = Status { tgid: 12, parent: 1, users: vec![0, 1, 2, 3] };
        assert_eq!(Status::parse(text), Some(status));
        assert_eq!(Status::parse("Name: x\n"), None);
    }

    #[test]
    fn an_address_is_served_by_itself_and_by_the_unspecified_ones() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(serves(ip("127.0.0.1"), ip("127.0.0.1")));
        assert!(serves(ip("0.0.0.0"), ip("127.0.0.1")));
        assert!(serves(ip("::"), ip("127.0.0.1")));
        assert!(serves(ip("::ffff:127.0.0.1"), ip("127.0.0.1")));
        assert!(!serves(ip("0.0.0.0"), ip("::1")));
        assert!(!serves(ip("127.0.0.2"), ip("127.0.0.1")));
    }
}
