//! Darwin's routing socket tells that something has happened; sysctl(3) dumps what there is.
//!
//! Interfaces, addresses and routes are told of on one socket (PF_ROUTE), without being asked. What is lost is lost without a word, and so a dump is
//! made on each change, as everywhere. The name servers and the clock are told of by notify(3), through descriptors of their own; a machine that has
//! none of those to give is watched without them. That it has slept is seen when it wakes, since the network is set up anew then: each piece of news is a
//! reason to compare the clocks.
//!
//! A machine has one default route that counts, and one more of each interface for sockets that are bound to it (RTF_IFSCOPE).

use super::debounce::Clocks;
use super::system::{clock, owned};
use super::{DefaultRoute, IfIndex, Interface, Monitor, NetworkState, Noticed, Own, Path, Question};
use crate::route_socket::system::{self, LONGEST, Table, dump};
use crate::route_socket::{Gateway, Kind, Message, Request, RouteMessage, messages};
use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use std::ffi::CStr;
use std::fs::File;
use std::hash::Hasher;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Where a machine's name servers are named, for programs that read files.
const RESOLVER_FILE: &str = "/etc/resolv.conf";
/// More of it than any resolver reads.
const RESOLVER_OCTETS: u64 = 64 << 10;
/// What configd posts when name servers have changed, and the kernel when the clock was set (notify_keys.h, dnsinfo.h).
const RESOLVER_CHANGED: &CStr = c"com.apple.system.SystemConfiguration.dns_configuration";
const CLOCK_SET: &CStr = c"com.apple.system.clock_set";

/// The network of this machine.
#[derive(Debug)]
pub struct SystemMonitor {
    own: Own,
    /// Where the device is, while there is one.
    own_index: Option<u16>,
    news: File,
    /// For questions, so that their answers do not stand among the news.
    questions: File,
    sequence: i32,
    resolver: Option<File>,
    clock: Option<File>,
}

impl SystemMonitor {
    /// Watches this machine's network, in which `own` are ztun's own things.
    ///
    /// # Errors
    ///
    /// The system's, when it has no more descriptors to give.
    pub fn new(own: Own) -> io::Result<SystemMonitor> {
        let watched = |what: &CStr| {
            let told = notifications(what);
            told.map_err(|error| log::debug!("{} is not watched: {error}", what.to_string_lossy())).ok()
        };
        let mut monitor = SystemMonitor {
            own,
            own_index: None,
            // Before anything is read, so that what changes meanwhile is told.
            news: system::open()?,
            questions: system::open()?,
            sequence: 0,
            resolver: watched(RESOLVER_CHANGED),
            clock: watched(CLOCK_SET),
        };
        monitor.links()?;
        Ok(monitor)
    }

    fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let watched = [Some(&self.news), self.resolver.as_ref(), self.clock.as_ref()];
        watched.into_iter().flatten().map(AsRawFd::as_raw_fd).collect::<Vec<_>>().into_iter()
    }

    /// All interfaces but the device, which is looked for, and their addresses.
    fn links(&mut self) -> io::Result<NetworkState> {
        let NetworkState { mut interfaces, mut addresses, .. } = NetworkState::default();
        self.own_index = None;
        for message in messages(&dump(Table::Interfaces)?) {
            match message {
                Message::Interface(link) if link.name == self.own.device => self.own_index = Some(link.index),
                Message::Interface(link) => {
                    let index = IfIndex(link.index.into());
                    interfaces.push(Interface { index, name: link.name, running: link.running });
                }
                Message::Address { gone: false, index, addr: Some(addr), .. }
                    if Some(index) != self.own_index =>
                {
                    addresses.push((IfIndex(index.into()), addr));
                }
                Message::Address { .. } | Message::Route(_) | Message::Other => {}
            }
        }
        interfaces.sort_unstable_by_key(|interface| interface.index);
        addresses.sort_unstable();
        Ok(NetworkState { interfaces, addresses, ..NetworkState::default() })
    }

    fn defaults(&self) -> io::Result<Vec<DefaultRoute>> {
        let mut defaults = Vec::new();
        for message in messages(&dump(Table::Routes)?) {
            if let Message::Route(message) = message
                && Some(message.index) != self.own_index
            {
                defaults.extend(default_route(&message));
            }
        }
        defaults.sort_by_key(|route: &DefaultRoute| (route.v6, route.metric));
        Ok(defaults)
    }
}

/// The route to everywhere that it is. The one that is no interface's own is preferred.
fn default_route(message: &RouteMessage) -> Option<DefaultRoute> {
    let route = message.route.as_ref().filter(|route| {
        message.up && route.to.prefix == 0 && route.to.addr.is_unspecified() && !route.refuses
    })?;
    let gateway = match route.gateway {
        Gateway::Addr(gateway) => Some(gateway),
        Gateway::LinkLocal(gateway, _) => Some(gateway.into()),
        Gateway::Link(_) => None,
    };
    Some(DefaultRoute {
        v6: route.to.addr.is_ipv6(),
        interface: IfIndex(message.index.into()),
        gateway,
        source: message.source,
        metric: u32::from(route.scope.is_some()),
    })
}

impl Source for SystemMonitor {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.descriptors().try_for_each(|fd| registry.register(&mut SourceFd(&fd), token, interests))
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.descriptors().try_for_each(|fd| registry.reregister(&mut SourceFd(&fd), token, interests))
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.descriptors().try_for_each(|fd| registry.deregister(&mut SourceFd(&fd)))
    }
}

impl Monitor for SystemMonitor {
    fn drain(&mut self) -> io::Result<Noticed> {
        let mut noticed = Noticed::NOTHING;
        let mut buffer = [0; LONGEST];
        loop {
            let len = match self.news.read(&mut buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    noticed = noticed.and(Noticed::ANYTHING);
                    continue;
                }
                Err(error) => return Err(error),
            };
            for message in messages(buffer.get(..len).unwrap_or_default()) {
                noticed = noticed.and(classify(&self.own, &mut self.own_index, &message));
            }
        }
        noticed.resolver |= self.resolver.as_mut().is_some_and(was_posted);
        let set = self.clock.as_mut().is_some_and(was_posted);
        noticed.woke = set || noticed != Noticed::NOTHING;
        Ok(noticed)
    }

    fn state(&mut self) -> io::Result<NetworkState> {
        let links = self.links()?;
        Ok(NetworkState { defaults: self.defaults()?, resolver: fingerprint(), ..links })
    }

    fn path(&mut self, question: Question) -> io::Result<Option<Path>> {
        self.sequence = self.sequence.wrapping_add(1);
        let scope = question.interface.map(|index| u16::try_from(index.0)).transpose();
        let Ok(scope) = scope else { return Ok(None) };
        let question_of = Request::Get { to: question.to, scope };
        match system::ask(&mut self.questions, question_of, self.sequence) {
            Ok(answer) => Ok(path_of(&answer, question)),
            Err(error) => match error.raw_os_error() {
                // Without a route, or by an interface that is not there.
                Some(libc::ESRCH | libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::ENXIO) => {
                    Ok(None)
                }
                Some(_) | None => Err(error),
            },
        }
    }

    fn clocks(&self) -> Clocks {
        // The second goes on while the machine sleeps (clock_gettime(3)), unlike the loop's.
        Clocks { wall: clock(libc::CLOCK_REALTIME), boot: clock(libc::CLOCK_MONOTONIC) }
    }
}

/// The way that the kernel has answered with.
fn path_of(answer: &RouteMessage, question: Question) -> Option<Path> {
    let usable = answer.errno == 0 && answer.up && answer.route.as_ref().is_none_or(|route| !route.refuses);
    let index = IfIndex(answer.index.into());
    if !usable {
        return None;
    }
    if answer.local || question.to.is_loopback() {
        return Some(Path::Local);
    }
    question.interface.is_none_or(|wanted| wanted == index).then_some(Path::Leaves(index))
}

/// What a piece of news means.
fn classify(own: &Own, own_index: &mut Option<u16>, message: &Message) -> Noticed {
    let state = Noticed { state: true, ..Noticed::NOTHING };
    let routes = Noticed { routes: true, ..Noticed::NOTHING };
    let gone = Noticed { own: true, ..Noticed::NOTHING };
    match message {
        Message::Interface(link) if link.name == own.device || Some(link.index) == *own_index => {
            *own_index = Some(link.index);
            if link.running { Noticed::NOTHING } else { gone }
        }
        Message::Interface(_) => state,
        Message::Address { gone: lost, index, .. } if Some(*index) == *own_index => {
            if *lost {
                gone
            } else {
                Noticed::NOTHING
            }
        }
        Message::Address { .. } => state,
        // What ztun itself has asked for, and entries that follow others.
        Message::Route(route) if route.pid == std::process::id().cast_signed() || route.follows => {
            Noticed::NOTHING
        }
        Message::Route(route) if Some(route.index) == *own_index => match route.kind {
            Kind::Deleted => gone,
            Kind::Added | Kind::Changed | Kind::Got => Noticed::NOTHING,
        },
        Message::Route(route) => match route.kind {
            Kind::Added | Kind::Deleted | Kind::Changed => routes,
            // An answer to somebody's question.
            Kind::Got => Noticed::NOTHING,
        },
        Message::Other => Noticed::NOTHING,
    }
}

// ---- the system ----

/// A descriptor that does not block and that no child gets.
fn quiet(fd: OwnedFd) -> io::Result<File> {
    let raw = fd.as_raw_fd();
    // SAFETY: the calls take integers and touch no memory of ours.
    let done = unsafe {
        libc::fcntl(raw, libc::F_SETFL, libc::O_NONBLOCK) >= 0
            && libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC) >= 0
    };
    if done { Ok(fd.into()) } else { Err(io::Error::last_os_error()) }
}

unsafe extern "C" {
    /// notify(3), part of the C library.
    fn notify_register_file_descriptor(
        name: *const libc::c_char,
        fd: *mut libc::c_int,
        flags: libc::c_int,
        token: *mut libc::c_int,
    ) -> u32;
}

/// A descriptor with four octets to read for each time that `what` was posted.
fn notifications(what: &CStr) -> io::Result<File> {
    let (mut fd, mut token) = (-1, 0);
    // SAFETY: the name ends with NUL, and both numbers are live and writable.
    let status = unsafe { notify_register_file_descriptor(what.as_ptr(), &raw mut fd, 0, &raw mut token) };
    if status != 0 {
        return Err(io::Error::other(format!("notify(3) refuses with {status}")));
    }
    quiet(owned(fd)?)
}

/// Reads what was posted; whether anything was.
fn was_posted(file: &mut File) -> bool {
    let mut any = false;
    let mut tokens = [0; 64];
    loop {
        match file.read(&mut tokens) {
            Ok(0) => return any,
            Ok(_) => any = true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return any,
        }
    }
}

/// A fingerprint of what the file of the name servers says; `None` when it cannot be read.
fn fingerprint() -> Option<u64> {
    let mut octets = Vec::new();
    File::open(RESOLVER_FILE).ok()?.take(RESOLVER_OCTETS).read_to_end(&mut octets).ok()?;
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(&octets);
    Some(hasher.finish())
}
