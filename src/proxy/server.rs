//! The loop: one thread, one poll; accepts, hands readiness and time to the connections.
//!
//! The poll is edge-triggered, so a connection that used up its budget is kept in a queue of those
//! that can go on, and gets its next turn after all others. Each connection has one entry in the
//! timer set; activity does not touch it: when it comes due and the connection's deadline has moved
//! meanwhile, it is set again.

use super::ProxyConfig;
use super::connection::{Connection, Port, Shared, Step};
use super::dial::is_exhaustion;
use super::relay::Side;
use crate::rng::{Rng, SEED_LEN};
use crate::time::{Duration, Instant};
use core::net::{IpAddr, SocketAddr};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;
use std::collections::{BTreeSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::sync::Arc;

const LISTENER: Token = Token(0);
const STOP: Token = Token(1);
/// Connections accepted before those that exist get their turn.
const ACCEPT_BUDGET: usize = 64;
/// The listen queue, in which clients wait while the server is full.
const BACKLOG: i32 = 1_024;
/// When to try again to accept after the process ran out of descriptors, which others may hold.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Events taken from the poll at once.
const EVENTS: usize = 1_024;

/// Ends [`Server::run`] from another thread.
#[derive(Clone, Debug)]
pub struct Stop(Arc<Waker>);

impl Stop {
    /// Asks the server to end.
    pub fn stop(&self) -> io::Result<()> {
        self.0.wake()
    }
}

#[derive(Debug)]
struct Entry {
    connection: Connection,
    /// The connection's entry in the timer set; `None` while it is due.
    timer: Option<Instant>,
    /// It is in the ready queue.
    ready: bool,
}

/// The embedded SOCKS5 server.
#[derive(Debug)]
pub struct Server {
    poll: Poll,
    listener: TcpListener,
    waker: Arc<Waker>,
    origin: std::time::Instant,
    shared: Shared,
    connections: Slab<Entry>,
    ready: VecDeque<usize>,
    timers: BTreeSet<(Instant, usize)>,
    /// There may be clients to accept.
    acceptable: bool,
    /// Accepting failed for want of descriptors; it is tried again then, or when a connection ends.
    accept_retry: Option<Instant>,
    /// When [`Server::finish`] gives up.
    give_up: Option<Instant>,
}

impl Server {
    /// Opens the listening socket. Port 0 takes a free one, see [`Server::local_addr`]; `[::]` takes both families.
    pub fn bind(config: ProxyConfig) -> io::Result<Server> {
        let poll = Poll::new()?;
        let mut listener = listen(config.listen)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Arc::new(Waker::new(poll.registry(), STOP)?);
        let shared = Shared::new(poll.registry().try_clone()?, config, Rng::new(seed()));
        Ok(Server {
            poll,
            listener,
            waker,
            origin: clock(),
            shared,
            connections: Slab::new(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            acceptable: true,
            accept_retry: None,
            give_up: None,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// A handle that ends [`Server::run`] or [`Server::serve`].
    pub fn stop_handle(&self) -> Stop {
        Stop(Arc::clone(&self.waker))
    }

    /// Serves until SIGINT, SIGTERM or [`Stop::stop`]. Connections that are open then are closed with the server.
    /// `ready` is called when the signals are caught: who hears of it may send one.
    pub fn run(&mut self, ready: impl FnOnce()) -> io::Result<()> {
        #[cfg(unix)]
        let mut signals = signals::Signals::register(self.poll.registry(), STOP)?;
        ready();
        let served = self.serve();
        #[cfg(unix)]
        signals.unregister(self.poll.registry());
        served
    }

    /// Serves until [`Stop::stop`], and leaves the signals of the process alone.
    pub fn serve(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        while self.turn(&mut events)? {}
        log::debug!(
            "proxy stops: {} clients, {} datagrams dropped",
            self.connections.len(),
            self.shared.dropped
        );
        Ok(())
    }

    /// Goes on for clients that are gone, after [`Server::run`] or [`Server::serve`]: until everything that they sent is written to its
    /// target, or until the targets have taken none of it for `patience`.
    pub fn finish(&mut self, patience: Duration) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            let sending = self.connections.iter().filter_map(|(_, entry)| entry.connection.sending());
            let Some(moved) = sending.max() else { return Ok(()) };
            let deadline = moved + patience;
            if self.now() >= deadline {
                log::debug!("proxy stops: its targets take nothing any more");
                return Ok(());
            }
            self.give_up = Some(deadline);
            self.turn(&mut events)?;
        }
    }

    /// One turn of the loop; false when asked to stop.
    fn turn(&mut self, events: &mut Events) -> io::Result<bool> {
        match self.poll.poll(events, self.timeout()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(error) => return Err(error),
        }
        let now = self.now();
        for event in events.iter() {
            match event.token() {
                LISTENER => self.acceptable = true,
                STOP => return Ok(false),
                token => self.notice(token, event),
            }
        }
        self.accept(now);
        while let Some(&(due, key)) = self.timers.first()
            && due <= now
        {
            self.timers.pop_first();
            if let Some(entry) = self.connections.get_mut(key) {
                entry.timer = None;
            }
            self.make_ready(key);
        }
        for _ in 0..self.ready.len() {
            let Some(key) = self.ready.pop_front() else { break };
            self.advance(key, now);
        }
        Ok(true)
    }

    /// How long the poll may wait; `None` for ever.
    fn timeout(&self) -> Option<Duration> {
        if !self.ready.is_empty() || self.may_accept(self.accept_retry) {
            return Some(Duration::ZERO);
        }
        let retry = self.accept_retry.filter(|_| self.acceptable && !self.is_full());
        let due = self.timers.first().map(|&(due, _)| due);
        let next = [due, retry, self.give_up].into_iter().flatten().min()?;
        // The poll counts milliseconds: rounded up, or it would spin through the last one.
        Some(next.since(self.now()) + Duration::from_millis(1))
    }

    fn is_full(&self) -> bool {
        self.connections.len() >= self.shared.config.max_connections
    }

    fn may_accept(&self, retry: Option<Instant>) -> bool {
        self.acceptable && retry.is_none() && !self.is_full()
    }

    fn notice(&mut self, token: Token, event: &mio::event::Event) {
        let Some((key, port)) = Port::from_token(token) else { return };
        if let Some(entry) = self.connections.get_mut(key) {
            entry.connection.notice(port, event);
            self.make_ready(key);
        }
    }

    fn make_ready(&mut self, key: usize) {
        if let Some(entry) = self.connections.get_mut(key)
            && !entry.ready
        {
            entry.ready = true;
            self.ready.push_back(key);
        }
    }

    fn accept(&mut self, now: Instant) {
        if self.accept_retry.is_some_and(|due| due <= now) {
            self.accept_retry = None;
        }
        for _ in 0..ACCEPT_BUDGET {
            if !self.may_accept(self.accept_retry) {
                return;
            }
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.acceptable = false,
                Err(error) if is_exhaustion(&error) => {
                    log::debug!("cannot accept: {error}");
                    self.accept_retry = Some(now + ACCEPT_RETRY);
                }
                // A client that is gone already (ECONNABORTED), an interrupted call: the next one.
                Err(error) => log::trace!("accept: {error}"),
            }
        }
    }

    fn admit(&mut self, mut stream: TcpStream, now: Instant) {
        let slot = self.connections.vacant_entry();
        let key = slot.key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut stream, Port::Client.token(key), interest) {
            log::debug!("cannot poll a client: {error}");
            return;
        }
        for result in [stream.set_nodelay(true), socket2::SockRef::from(&stream).set_keepalive(true)] {
            if let Err(error) = result {
                log::debug!("option refused for a client: {error}");
            }
        }
        let connection = Connection::new(key, Side::new(stream), &self.shared.config, now);
        slot.insert(Entry { connection, timer: None, ready: false });
        self.set_timer(key);
    }

    fn advance(&mut self, key: usize, now: Instant) {
        let Some(entry) = self.connections.get_mut(key) else { return };
        entry.ready = false;
        match entry.connection.advance(&mut self.shared, now) {
            Step::Close => {
                if let Some(timer) = entry.timer {
                    self.timers.remove(&(timer, key));
                }
                self.connections.remove(key);
                // What it held is free for a client that waits.
                self.accept_retry = None;
                return;
            }
            Step::Again => self.make_ready(key),
            Step::Wait => {}
        }
        self.set_timer(key);
    }

    /// Sees to it that the connection's timer is no later than its deadline.
    fn set_timer(&mut self, key: usize) {
        let Some(entry) = self.connections.get_mut(key) else { return };
        let deadline = entry.connection.deadline(&self.shared.config);
        if entry.timer.is_none_or(|timer| deadline < timer) {
            if let Some(timer) = entry.timer.replace(deadline) {
                self.timers.remove(&(timer, key));
            }
            self.timers.insert((deadline, key));
        }
    }

    fn now(&self) -> Instant {
        Instant::ZERO + clock().duration_since(self.origin)
    }
}

/// The only clock of the proxy.
#[allow(clippy::disallowed_methods, reason = "the loop is a driver: it reads the clock and hands time down")]
fn clock() -> std::time::Instant {
    std::time::Instant::now()
}

/// Octets that nobody can foretell, from the keys that the standard library draws from the OS for its hash tables.
fn seed() -> [u8; SEED_LEN] {
    let mut seed = [0; SEED_LEN];
    for (number, octets) in seed.chunks_exact_mut(8).enumerate() {
        octets.copy_from_slice(&RandomState::new().hash_one(number).to_ne_bytes());
    }
    seed
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // On Windows the option means something else: that others may take the port.
    #[cfg(not(windows))]
    socket.set_reuse_address(true)?;
    if addr.ip() == IpAddr::V6(core::net::Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}

#[cfg(unix)]
mod signals {
    //! SIGINT and SIGTERM as readiness: the handler writes one octet into a socket pair.

    use mio::{Interest, Registry, Token};
    use signal_hook::SigId;
    use signal_hook::consts::{SIGINT, SIGTERM};
    use std::io;
    use std::os::unix::net::UnixStream;

    #[derive(Debug)]
    pub(super) struct Signals {
        receiver: mio::net::UnixStream,
        ids: Vec<SigId>,
    }

    impl Signals {
        pub(super) fn register(registry: &Registry, token: Token) -> io::Result<Signals> {
            let (receiver, sender) = UnixStream::pair()?;
            receiver.set_nonblocking(true)?;
            sender.set_nonblocking(true)?;
            let mut signals = Signals { receiver: mio::net::UnixStream::from_std(receiver), ids: Vec::new() };
            registry.register(&mut signals.receiver, token, Interest::READABLE)?;
            for signal in [SIGINT, SIGTERM] {
                signals.ids.push(signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?);
            }
            Ok(signals)
        }

        pub(super) fn unregister(&mut self, registry: &Registry) {
            if let Err(error) = registry.deregister(&mut self.receiver) {
                log::debug!("signals stay in the poll: {error}");
            }
            self.forget();
        }

        fn forget(&mut self) {
            for id in self.ids.drain(..) {
                signal_hook::low_level::unregister(id);
            }
        }
    }

    impl Drop for Signals {
        /// Also after a registration that failed half-way.
        fn drop(&mut self) {
            self.forget();
        }
    }
}
