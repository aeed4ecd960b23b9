//! The event loop: the only code that blocks, reads the clock or owns a socket.
//!
//! # One turn
//!
//! ```text
//! poll     until an event, the engine's next deadline, or at once when work was carried over
//! take     signals, TUN packets, sockets: each up to a budget, the rest is carried over
//! time     engine.handle_timeout
//! give     engine.poll_command -> sockets, engine.poll_transmit -> TUN, until both are empty
//! ```
//!
//! mio is edge-triggered: a source that was left readable gives no second event. So each socket remembers whether it is
//! readable and writable, and those with work left are queued ([`queue`]), which makes the next poll return at once.
//!
//! # How long a turn is
//!
//! What is done in a turn is bounded in octets, since these are time: so many from the TUN, so many from all sockets together, so many to the
//! TUN. So whoever has a word to say waits for one turn at most, however many others have a lot to say, and however much. Sockets are served as fair queueing
//! with new flows first does it (RFC 8290 4.1, 4.2): those of which an event has just told, and then in a circle those that have
//! used up their share of an earlier turn; one of these has its share in every turn.
//!
//! A TUN that takes no packet keeps the one that it refused; nothing more is asked of the engine until it is writable again.

mod backlog;
pub mod clock;
mod datagram;
#[cfg_attr(windows, path = "errors_windows.rs")]
mod errors;
mod health;
mod incoming;
pub mod limits;
mod memory;
#[cfg_attr(not(target_os = "linux"), path = "mmsg_plain.rs")]
mod mmsg;
#[cfg_attr(target_os = "macos", path = "options_macos.rs")]
#[cfg_attr(windows, path = "options_windows.rs")]
#[cfg_attr(not(any(target_os = "linux", target_os = "macos", windows)), path = "options_plain.rs")]
mod options;
mod outgoing;
#[cfg(unix)]
pub mod peer;
#[cfg(windows)]
pub mod pipe;
mod queue;
mod service;
#[cfg_attr(windows, path = "signals_windows.rs")]
pub mod signals;
pub mod socket;
mod sockets;
mod stop;
mod stream;
#[cfg_attr(windows, path = "terminal_windows.rs")]
pub mod terminal;
#[cfg(any(windows, test))]
mod unicast_if;
mod wakeup;
#[cfg_attr(not(target_os = "linux"), path = "watch_plain.rs")]
mod watch;
#[cfg(not(target_os = "linux"))]
mod without;

pub use clock::Clock;
pub use health::QUESTION;
pub use service::{Scene, Service, SocketView, Tokens};
pub use signals::{Signals, Waiter, Waker, Woken};
pub use socket::{EgressBinding, MARKS, Protect};
pub use stop::{Closed, DRAIN_PATIENCE, STOP_PATIENCE};
pub use watch::Watch;

use crate::engine::{Command, Engine, Output, SocketId};
use crate::outbound::rule::Proto;
use crate::stack::{Packet, Transmit};
use crate::time::{Duration, Instant};
use crate::tun::{Device, LoopWaker};
use backlog::Backlog;
use incoming::Inbox;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use outgoing::{Outgoing, Udp};
use queue::Queue;
use sockets::{OsSocket, OsSockets};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use stop::Stopping;
use wakeup::Wakeup;

/// Packets taken from the TUN in one turn.
const TUN_BUDGET: usize = 256;
/// Octets taken from the TUN in one turn: a bulk upload's super-segments must not keep others waiting.
const TUN_OCTETS: usize = 1 << 20;
/// Octets given to the TUN in one turn.
const GIVE_OCTETS: usize = 2 << 20;
/// Datagrams taken from one UDP socket before another is served.
const DATAGRAM_BUDGET: usize = 64;
/// The largest packet or datagram.
const BUFFER: usize = 65_536 + 64;
/// Being out of descriptors is said at most once in this time, not for every flow.
const EXHAUSTED_SAID_EVERY: Duration = Duration::from_secs(60);

const TUN: Token = Token(usize::MAX);
const SIGNALS: Token = Token(usize::MAX - 1);
const WATCH: Token = Token(usize::MAX - 2);

/// Tells whose a socket on this machine is.
pub trait Owner {
    /// Whether the socket bound to `local` (and connected to `remote`) belongs to the local proxy.
    fn owns(&mut self, proto: Proto, local: SocketAddr, remote: SocketAddr) -> bool;
}

/// Why the loop has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// A signal asked for it and everything was closed in order.
    Stopped,
    /// A second signal forced it.
    Forced,
    /// The watched process has ended.
    Watched,
}

/// What the loop is built from.
pub struct Parts<D> {
    /// The TUN.
    pub device: D,
    /// The engine.
    pub engine: Engine,
    /// How sockets leave the machine.
    pub binding: EgressBinding,
    /// Who tells a flow of the local proxy.
    pub owner: Option<Box<dyn Owner>>,
    /// A process with whose end the loop ends; signals are passed on to it.
    pub watch: Option<Watch>,
    /// What else the loop drives.
    pub services: Vec<Box<dyn Service<D>>>,
}

impl<D> std::fmt::Debug for Parts<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("engine", &self.engine).finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum Io {
    Tcp { stream: TcpStream, connected: bool },
    Udp(Udp),
}

/// The loop.
pub struct Driver<D> {
    /// Empty while a device that is gone has not been renewed.
    device: Option<D>,
    /// For devices that are told of by a thread.
    waker: LoopWaker,
    engine: Engine,
    binding: EgressBinding,
    owner: Option<Box<dyn Owner>>,
    watch: Option<Watch>,
    clock: Clock,
    poll: Poll,
    signals: Signals,
    sockets: OsSockets,
    peak: memory::Peak,
    queue: Queue,
    tun_readable: bool,
    /// More packets are ready than were given to the TUN.
    more_to_give: bool,
    /// The packet that the TUN refused, to be offered again, and those that were under way behind it.
    tun_pending: VecDeque<Refused>,
    /// UDP sockets whose datagrams wait until the TUN takes packets again.
    held: Vec<SocketId>,
    /// Connections of which the kernel may be keeping octets back, and when to look: the earliest first.
    looks: VecDeque<(Instant, SocketId)>,
    buffer: Box<[u8]>,
    /// Datagrams that wait for the end of the turn's packets.
    outgoing: Outgoing,
    /// Datagrams that were read.
    inbox: Inbox,
    stopping: Option<Stopping>,
    services: Vec<Box<dyn Service<D>>>,
    /// A service has asked to stop.
    stop_asked: bool,
    closed: Closed,
    exhausted_said: Option<Instant>,
}

#[derive(Debug)]
struct Refused {
    octets: Vec<u8>,
    offload: Option<crate::stack::Offload>,
}

impl<D> std::fmt::Debug for Driver<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver")
            .field("engine", &self.engine)
            .field("stopping", &self.stopping)
            .finish_non_exhaustive()
    }
}

impl<D: Device> Driver<D> {
    /// Registers TUN and signals. Fails when the system refuses a poll or a pipe.
    pub fn new(parts: Parts<D>, signals: Signals, clock: Clock) -> io::Result<Driver<D>> {
        let Parts { mut device, engine, binding, owner, watch, services } = parts;
        let mut signals = signals;
        let poll = Poll::new()?;
        let registry = poll.registry();
        let mut waker = LoopWaker::default();
        device.listen(registry, TUN, &mut waker)?;
        registry.register(signals.source(), SIGNALS, Interest::READABLE)?;
        if let Some(watch) = &watch {
            watch.register(registry, WATCH)?;
        }
        let mut driver = Driver {
            device: Some(device),
            waker,
            engine,
            binding,
            owner,
            watch,
            clock,
            poll,
            signals,
            sockets: OsSockets::new(),
            peak: memory::Peak::default(),
            queue: Queue::default(),
            tun_readable: true,
            more_to_give: false,
            tun_pending: VecDeque::new(),
            held: Vec::new(),
            looks: VecDeque::new(),
            buffer: vec![0; BUFFER].into_boxed_slice(),
            outgoing: Outgoing::new(),
            inbox: Inbox::new(),
            stopping: None,
            services,
            stop_asked: false,
            closed: Closed::default(),
            exhausted_said: None,
        };
        driver.register_services()?;
        Ok(driver)
    }

    /// The engine, for its counters.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What was closed since it was asked to stop.
    pub fn closed(&self) -> Closed {
        self.closed
    }

    /// Closes every socket, and gives back the services and the device, if there is one: what leads into it can be undone before it goes.
    pub fn into_parts(self) -> (Vec<Box<dyn Service<D>>>, Option<D>) {
        (self.services, self.device)
    }

    /// Runs until a signal, the end of the watched process, or an error of the TUN or the poll.
    pub fn run(&mut self) -> io::Result<Exit> {
        let mut events = Events::with_capacity(1024);
        loop {
            if let Some(exit) = self.turn(&mut events)? {
                return Ok(exit);
            }
        }
    }

    fn turn(&mut self, events: &mut Events) -> io::Result<Option<Exit>> {
        match self.poll.poll(events, self.timeout()) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let now = self.clock.now();
        for event in events.iter() {
            match event.token() {
                // Of one that is gone a waker may tell late.
                TUN if self.device.is_none() => {}
                TUN => {
                    // A device that was deleted is an error only: reading tells which.
                    self.tun_readable |= event.is_readable() || event.is_error() || event.is_read_closed();
                    if event.is_writable() || event.is_error() || self.waker.is_used() {
                        self.retry_pending();
                    }
                }
                SIGNALS => {
                    if let Some(exit) = self.signalled(now) {
                        return Ok(Some(exit));
                    }
                }
                WATCH => self.drain(now),
                token => match Tokens::split(token) {
                    Some((service, number)) => self.service_event(service, number, event, now),
                    None => self.socket_event(SocketId::from_bits(token.0 as u64), event),
                },
            }
        }
        let taken = self.take_packets(now);
        self.flush_datagrams();
        self.outgoing.end_turn();
        taken?;
        self.look_again(now);
        self.serve_ready(now);
        self.serve_services(now);
        if let Some(exit) = self.stop_for_service(now) {
            return Ok(Some(exit));
        }
        self.engine.handle_timeout(now);
        self.engine.end_of_batch(self.tun_readable, now);
        self.give(now);
        if self.peak.is_over(self.engine.sockets()) {
            memory::give_back();
        }
        Ok(self.finished(now))
    }

    fn timeout(&self) -> Option<Duration> {
        let taking = self.tun_pending.is_empty() && (self.tun_readable || self.more_to_give);
        if taking || !self.queue.is_empty() {
            return Some(Duration::ZERO);
        }
        let stop = self.stopping.and_then(Stopping::deadline);
        let look = self.looks.front().map(|(at, _)| *at);
        let deadline =
            [self.engine.poll_timeout(), stop, look, self.services_timeout()].into_iter().flatten().min()?;
        // epoll counts in milliseconds and mio rounds up, so that a deadline is never waited for in a busy loop.
        Some(deadline.since(self.clock.now()))
    }

    // ---- TUN ----

    fn take_packets(&mut self, now: Instant) -> io::Result<()> {
        if !self.tun_pending.is_empty() {
            return Ok(());
        }
        let mut octets = 0;
        for _ in 0..TUN_BUDGET {
            if !self.tun_readable || octets >= TUN_OCTETS {
                return Ok(());
            }
            // The buffer is lent to the packet while the engine works on it.
            let Some(device) = &mut self.device else { return Ok(()) };
            let mut buffer = core::mem::take(&mut self.buffer);
            let received = device.recv(&mut buffer);
            let result = match received {
                Ok(received) => {
                    octets += received.len;
                    let octets = buffer.get(..received.len).unwrap_or_default();
                    let crate::tun::Received { verify_checksum, segment_size, .. } = received;
                    self.packet(Packet { octets, verify_checksum, segment_size }, now);
                    Ok(())
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.tun_readable = false;
                    Ok(())
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
                Err(error) => self.lose_device(error),
            };
            self.buffer = buffer;
            result?;
        }
        Ok(())
    }

    fn packet(&mut self, packet: Packet<'_>, now: Instant) {
        match self.engine.handle_packet(packet, now) {
            Output::None => {}
            Output::Reassembled(octets) => self.packet(Packet::new(&octets), now),
            Output::Stream { socket, flow, payload } => {
                let written = self.write_now(socket, payload);
                let taken = *written.as_ref().unwrap_or(&0);
                self.engine.stream_written(flow, payload, taken, now);
                if let Err(error) = written {
                    self.engine.handle_write_error(socket, errors::classify(&error), now);
                }
            }
            Output::Datagram { socket, to, header, payload, segment_size } => {
                self.take_datagrams(socket, to, header.as_slice(), payload, segment_size);
            }
        }
    }

    /// Gives one packet to the TUN; `false` when it was kept for later.
    fn transmit(device: &mut D, pending: &mut VecDeque<Refused>, packet: &Transmit<'_>) -> bool {
        let sent = match pending.is_empty() {
            true => device.send(packet),
            false => Err(ErrorKind::WouldBlock.into()),
        };
        match sent {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut octets = Vec::with_capacity(packet.len());
                octets.extend_from_slice(packet.header);
                octets.extend_from_slice(packet.payload[0]);
                octets.extend_from_slice(packet.payload[1]);
                pending.push_back(Refused { octets, offload: packet.offload });
                false
            }
            Err(error) => {
                // ENOBUFS, or a link that is down: lost, as packets are.
                log::debug!("packet to the TUN lost: {error}");
                true
            }
        }
    }

    // ---- what the engine asks for ----

    fn give(&mut self, now: Instant) {
        let mut octets = 0;
        self.more_to_give = false;
        loop {
            while let Some(command) = self.engine.poll_command(now) {
                self.obey(command, now);
            }
            let Some(device) = self.device.as_mut().filter(|_| self.tun_pending.is_empty()) else { return };
            let before = octets;
            while octets < GIVE_OCTETS {
                let Some(packet) = self.engine.poll_transmit(now) else { break };
                octets += packet.len();
                if !Self::transmit(device, &mut self.tun_pending, &packet) {
                    return;
                }
            }
            self.more_to_give = octets >= GIVE_OCTETS;
            if octets == before || self.more_to_give {
                return;
            }
        }
    }

    fn obey(&mut self, command: Command, now: Instant) {
        match command {
            Command::Identify { asker, proto, local, remote } => {
                let own =
                    self.owner.as_mut().is_some_and(|owner| owner.owns(proto, local.into(), remote.into()));
                self.engine.handle_owner(asker, own, now);
            }
            Command::Dial { socket, to, egress } => match self.binding.dial(to, egress) {
                Ok(stream) => {
                    self.adopt(socket, Io::Tcp { stream, connected: false }, now);
                    self.connected_at_once(socket, now);
                }
                Err(error) => self.open_failed(socket, &error, now),
            },
            Command::OpenUdp { socket, peer, v6, egress } => match self.binding.open_udp(peer, v6, egress) {
                Ok(udp) => {
                    self.adopt(socket, Io::Udp(Udp::new(udp, peer.is_some())), now);
                    self.engine.handle_udp_open(socket, now);
                }
                Err(error) => self.open_failed(socket, &error, now),
            },
            Command::SendDatagram { socket, to, octets } => self.send_datagram(socket, to, &[], &octets),
            Command::Read { socket } => self.read_stream(socket, now),
            Command::Write { socket } => self.write_stream(socket, now),
            Command::Shutdown { socket } => {
                if let Some(OsSocket { io: Io::Tcp { stream, .. }, .. }) = self.os_socket(socket)
                    && let Err(error) = stream.shutdown(std::net::Shutdown::Write)
                {
                    log::debug!("shutdown: {error}");
                }
            }
            Command::Close { socket, abort } => self.close(socket, abort),
        }
    }

    fn open_failed(&mut self, id: SocketId, error: &io::Error, now: Instant) {
        let class = errors::classify(error);
        let exhausted = class == crate::engine::SocketError::Exhausted;
        let due = self.exhausted_said.is_none_or(|said| now.since(said) >= EXHAUSTED_SAID_EVERY);
        if exhausted && due {
            self.exhausted_said = Some(now);
            log::warn!(
                "cannot open a socket: {error}; flows are refused until others end (raise the limit with ulimit -n)"
            );
        } else {
            log::debug!("cannot open a socket: {error}");
        }
        self.engine.handle_socket_error(id, class, now);
    }

    fn adopt(&mut self, id: SocketId, mut io: Io, now: Instant) {
        let token = Token(id.to_bits() as usize);
        let registered = match &mut io {
            Io::Tcp { stream, .. } => self.poll.registry().register(stream, token, options::STREAM),
            Io::Udp(udp) => self.poll.registry().register(&mut udp.socket, token, Interest::READABLE),
        };
        if let Err(error) = registered {
            return self.open_failed(id, &error, now);
        }
        self.sockets.insert(OsSocket {
            id,
            io,
            readable: false,
            writable: false,
            ending: false,
            queued: false,
            wakeup: Wakeup::default(),
            backlog: Backlog::default(),
            looked_for: false,
        });
    }

    fn close(&mut self, id: SocketId, abort: bool) {
        let Some(socket) = self.sockets.remove(id) else { return };
        // What is closed is forgotten by the poll as well (epoll(7), kqueue(2)): the descriptor has no copies.
        match socket.io {
            Io::Tcp { stream, .. } if abort => socket::abort(stream),
            Io::Tcp { .. } | Io::Udp(_) => {}
        }
    }
}
