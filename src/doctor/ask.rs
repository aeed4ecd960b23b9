//! Questions to proxies: many at once, on a loop of their own, each over a connection of its own, within a time.
//!
//! A question goes as far as its [`Ask`] says: the negotiation, a CONNECT, or a DNS query behind a CONNECT or through the relay of a UDP
//! ASSOCIATE. What came of it says at which [`Stage`] it ended, so that a proxy that refuses is told from one that is silent, and both from
//! a target that cannot be reached.

use super::query::{Query, Resolved};
use crate::config::Proxy;
use crate::driver::{Clock, EgressBinding};
use crate::engine::Egress;
use crate::host::observe;
use crate::outbound::socks5::associate::{
    MAX_HEADER, associate_target, decapsulate, encapsulate, relay_address,
};
use crate::outbound::socks5::client::{Client, Failure};
use crate::time::{Duration, Instant};
use crate::wire::Endpoint;
use crate::wire::socks5::{Address, Reply, VERSION, parse_reply};
use mio::net::{TcpStream, UdpSocket};
use mio::{Events, Interest, Poll, Registry, Token};
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;

/// A datagram that nobody answers is sent again after this.
const RESEND: Duration = Duration::from_secs(1);
/// More than the longest answer to one query (RFC 1035 4.2), with its header.
const LONGEST: usize = 64 * 1024 + MAX_HEADER;
/// CMD of RFC 1928 4.
const CONNECT: u8 = 1;
const UDP_ASSOCIATE: u8 = 3;

/// What a CONNECT is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Target {
    /// A name, which the proxy resolves, and a port.
    Name(String, u16),
    /// An address.
    Ip(SocketAddr),
}

/// How far a question goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Ask {
    /// Method, user and password.
    Negotiate,
    /// A connection through the proxy.
    Connect(Target),
    /// A connection to this resolver, and a query over it.
    ByTcp(SocketAddr, Query),
    /// An association, and a query to this resolver through its relay.
    ByUdp(SocketAddr, Query),
}

/// A question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Question<'a> {
    pub(super) proxy: &'a Proxy,
    pub(super) ask: Ask,
}

/// How far a dialogue has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Stage {
    /// Until the connection is there.
    Connecting,
    /// Until method, user and password are settled.
    Negotiating,
    /// Until the reply to the request.
    Requesting,
    /// Until the answer to the query.
    Resolving,
}

/// Why a question was not answered well.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The system cannot connect, or loses the connection.
    System(io::Error),
    /// The time is over.
    Silent,
    /// The proxy closed the connection.
    Closed,
    /// The proxy refuses, or does not speak SOCKS5.
    Refused(Failure),
    /// The association was granted without a place to send to.
    NoRelay,
}

/// What was found out.
#[derive(Debug)]
pub(super) struct Answer {
    /// Where it ended.
    pub(super) stage: Stage,
    /// How long connecting took.
    pub(super) connected: Option<Duration>,
    /// MTU of the path to the proxy, octets.
    pub(super) path_mtu: Option<u32>,
    /// BND of the reply, if it is an address.
    pub(super) bound: Option<Endpoint>,
    /// Where datagrams went.
    pub(super) relay: Option<SocketAddr>,
    /// What came of it; with addresses when names were asked for.
    pub(super) result: Result<Option<Resolved>, Trouble>,
}

/// Asks all of `questions` at once; what has no answer after `limit` has none. The answers stand in the order of the questions.
///
/// # Errors
///
/// The system has no descriptor for the loop itself.
pub(super) fn all(
    questions: &[Question<'_>],
    binding: &EgressBinding,
    limit: Duration,
) -> io::Result<Vec<Answer>> {
    let clock = Clock::new();
    let deadline = clock.now() + limit;
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(64);
    let mut talks: Vec<Talk<'_>> = Vec::new();
    for (index, question) in questions.iter().enumerate() {
        let mut talk = Talk::new(question, binding, index, clock.now());
        talk.start(poll.registry());
        talks.push(talk);
    }
    loop {
        let now = clock.now();
        for talk in talks.iter_mut().filter(|talk| talk.over.is_none()) {
            talk.proceed(poll.registry(), now);
        }
        let waiting = talks.iter().filter(|talk| talk.over.is_none());
        let Some(next) = waiting.map(|talk| talk.resend.unwrap_or(deadline).min(deadline)).min() else {
            break;
        };
        let now = clock.now();
        if now >= deadline {
            break;
        }
        match poll.poll(&mut events, Some(next.since(now))) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(talks.into_iter().map(Talk::answer).collect())
}

/// One dialogue.
struct Talk<'a> {
    question: &'a Question<'a>,
    binding: &'a EgressBinding,
    /// Its tokens are twice its index, for the connection, and one more, for the datagrams.
    index: usize,
    started: Instant,
    stream: Option<TcpStream>,
    datagrams: Option<UdpSocket>,
    client: Client,
    /// What is to be written after the negotiation.
    output: Vec<u8>,
    input: Vec<u8>,
    resend: Option<Instant>,
    stage: Stage,
    connected: Option<Duration>,
    path_mtu: Option<u32>,
    bound: Option<Endpoint>,
    relay: Option<SocketAddr>,
    over: Option<Result<Option<Resolved>, Trouble>>,
}

/// A step that has to wait is no trouble.
type Step = Result<(), Trouble>;

fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected | ErrorKind::Interrupted)
}

impl<'a> Talk<'a> {
    fn new(question: &'a Question<'a>, binding: &'a EgressBinding, index: usize, now: Instant) -> Talk<'a> {
        Talk {
            question,
            binding,
            index,
            started: now,
            stream: None,
            datagrams: None,
            client: Client::new(question.proxy.credentials.as_ref()),
            output: Vec::new(),
            input: Vec::new(),
            resend: None,
            stage: Stage::Connecting,
            connected: None,
            path_mtu: None,
            bound: None,
            relay: None,
            over: None,
        }
    }

    fn token(&self, datagrams: bool) -> Token {
        Token(self.index.saturating_mul(2).saturating_add(usize::from(datagrams)))
    }

    fn answer(self) -> Answer {
        Answer {
            stage: self.stage,
            connected: self.connected,
            path_mtu: self.path_mtu,
            bound: self.bound,
            relay: self.relay,
            result: self.over.unwrap_or(Err(Trouble::Silent)),
        }
    }

    fn start(&mut self, registry: &Registry) {
        let token = self.token(false);
        let opened = self.binding.dial(self.question.proxy.addr, Egress::Proxy).and_then(|mut stream| {
            registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
            Ok(stream)
        });
        match opened {
            Ok(stream) => self.stream = Some(stream),
            Err(error) => self.over = Some(Err(Trouble::System(error))),
        }
    }

    /// Does what can be done without waiting.
    fn proceed(&mut self, registry: &Registry, now: Instant) {
        let step = self
            .connect(now)
            .and_then(|()| self.read(registry, now))
            .and_then(|()| self.write())
            .and_then(|()| self.exchange_datagrams(now));
        if let Err(trouble) = step
            && self.over.is_none()
        {
            self.over = Some(Err(trouble));
        }
    }

    fn connect(&mut self, now: Instant) -> Step {
        let Some(stream) = self.stream.as_ref().filter(|_| self.stage == Stage::Connecting) else {
            return Ok(());
        };
        if let Some(error) = stream.take_error().map_err(Trouble::System)? {
            return Err(Trouble::System(error));
        }
        if stream.peer_addr().is_ok() {
            self.stage = Stage::Negotiating;
            self.connected = Some(now.since(self.started));
            let mtu = observe::path_mtu(stream, self.question.proxy.addr.ip());
            self.path_mtu = mtu.inspect_err(|error| log::debug!("IP_MTU: {error}")).ok();
        }
        Ok(())
    }

    fn write(&mut self) -> Step {
        let Some(stream) = self.stream.as_mut().filter(|_| self.stage != Stage::Connecting) else {
            return Ok(());
        };
        loop {
            let negotiating = self.stage == Stage::Negotiating;
            let octets = if negotiating { self.client.output() } else { &self.output };
            if octets.is_empty() {
                return Ok(());
            }
            match stream.write(octets) {
                Ok(written) if negotiating => self.client.wrote(written),
                Ok(written) => drop(self.output.drain(..written.min(self.output.len()))),
                Err(error) if waits(&error) => return Ok(()),
                Err(error) => return Err(Trouble::System(error)),
            }
        }
    }

    fn read(&mut self, registry: &Registry, now: Instant) -> Step {
        let mut buffer = [0; 4096];
        while self.over.is_none() {
            // What was said has to be on its way before its answer is looked for.
            self.write()?;
            let Some(stream) = self.stream.as_mut().filter(|_| self.stage != Stage::Connecting) else {
                return Ok(());
            };
            match stream.read(&mut buffer) {
                Ok(0) => return Err(Trouble::Closed),
                Ok(octets) => self.take(buffer.get(..octets).unwrap_or_default(), registry, now)?,
                Err(error) if waits(&error) => return Ok(()),
                Err(error) => return Err(Trouble::System(error)),
            }
        }
        Ok(())
    }

    fn take(&mut self, octets: &[u8], registry: &Registry, now: Instant) -> Step {
        match self.stage {
            Stage::Connecting => {}
            Stage::Negotiating => {
                self.client.handle_input(octets).map_err(Trouble::Refused)?;
                if self.client.is_negotiated() {
                    self.request();
                }
            }
            Stage::Requesting => {
                self.input.extend_from_slice(octets);
                self.reply(registry, now)?;
            }
            Stage::Resolving => {
                self.input.extend_from_slice(octets);
                self.resolved_by_tcp();
            }
        }
        if self.input.len() > LONGEST {
            return Err(Trouble::Refused(Failure::Protocol));
        }
        Ok(())
    }

    /// The request, once the proxy has taken us in.
    fn request(&mut self) {
        let (command, address) = match &self.question.ask {
            Ask::Negotiate => {
                self.over = Some(Ok(None));
                return;
            }
            Ask::Connect(Target::Name(name, port)) => (CONNECT, Address::Domain(name.as_bytes(), *port)),
            Ask::Connect(Target::Ip(addr)) | Ask::ByTcp(addr, _) => (CONNECT, Address::Ip((*addr).into())),
            Ask::ByUdp(..) => (UDP_ASSOCIATE, Address::Ip(associate_target(self.question.proxy.addr))),
        };
        self.output = vec![VERSION, command, 0];
        let head = self.output.len();
        self.output.resize(head + address.buffer_len(), 0);
        address.emit(&mut self.output[head..]);
        self.stage = Stage::Requesting;
    }

    fn reply(&mut self, registry: &Registry, now: Instant) -> Step {
        let parsed = parse_reply(&self.input).map_err(|_| Trouble::Refused(Failure::Protocol))?;
        let Some(((reply, address), used)) = parsed else { return Ok(()) };
        if reply != Reply::Succeeded {
            return Err(Trouble::Refused(Failure::Refused(reply)));
        }
        self.bound = match address {
            Address::Ip(endpoint) => Some(endpoint),
            Address::Domain(..) => None,
        };
        self.input.drain(..used.min(self.input.len()));
        match &self.question.ask {
            Ask::Negotiate | Ask::Connect(_) => self.over = Some(Ok(None)),
            Ask::ByTcp(_, query) => {
                self.stage = Stage::Resolving;
                let octets = query.octets();
                // RFC 1035 4.2.2: two octets of length. A query is far shorter than they can say.
                self.output.extend(u16::try_from(octets.len()).unwrap_or(u16::MAX).to_be_bytes());
                self.output.extend_from_slice(octets);
                self.resolved_by_tcp();
            }
            Ask::ByUdp(..) => {
                self.stage = Stage::Resolving;
                self.relay =
                    Some(relay_address(self.bound, self.question.proxy.addr).ok_or(Trouble::NoRelay)?);
                let mut socket =
                    self.binding.open_udp(self.relay, false, Egress::Proxy).map_err(Trouble::System)?;
                registry
                    .register(&mut socket, self.token(true), Interest::READABLE)
                    .map_err(Trouble::System)?;
                self.datagrams = Some(socket);
                self.resend = Some(now);
            }
        }
        Ok(())
    }

    fn resolved_by_tcp(&mut self) {
        let Ask::ByTcp(_, query) = &self.question.ask else { return };
        let Some((len, rest)) = self.input.split_first_chunk::<2>() else { return };
        let message = rest.get(..u16::from_be_bytes(*len).into());
        if let Some(resolved) = message.and_then(|message| query.answer(message)) {
            self.over = Some(Ok(Some(resolved)));
        }
    }

    fn exchange_datagrams(&mut self, now: Instant) -> Step {
        let (Ask::ByUdp(server, query), Some(socket)) = (&self.question.ask, &self.datagrams) else {
            return Ok(());
        };
        let mut buffer = [0; 4096];
        loop {
            match socket.recv(&mut buffer) {
                Ok(octets) => {
                    // What is not the answer may be anything that the relay passes on.
                    let datagram = buffer.get(..octets).unwrap_or_default();
                    if let Ok((_, message)) = decapsulate(datagram)
                        && let Some(resolved) = query.answer(message)
                    {
                        self.over = Some(Ok(Some(resolved)));
                        return Ok(());
                    }
                }
                Err(error) if waits(&error) => break,
                Err(error) => return Err(Trouble::System(error)),
            }
        }
        if self.resend.is_some_and(|at| at <= now) {
            self.resend = Some(now + RESEND);
            let mut datagram = [0; MAX_HEADER].to_vec();
            let header = encapsulate((*server).into(), &mut datagram);
            datagram.truncate(header);
            datagram.extend_from_slice(query.octets());
            match socket.send(&datagram) {
                Ok(_) => {}
                Err(error) if waits(&error) => {}
                Err(error) => return Err(Trouble::System(error)),
            }
        }
        Ok(())
    }
}
