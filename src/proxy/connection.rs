//! One client from greeting to close: the stages of the module's drawing, driven by readiness and time.
//!
//! [`Connection::notice`] records what the poll says, [`Connection::advance`] goes on until
//! everything waits for the poll or for [`Connection::deadline`]. Both may be called at any time: a
//! stage finds out by itself whether there is anything to do.

use super::ProxyConfig;
use super::associate::{self, Association};
use super::dial::{Dialled, Dialling, Resolved, Resolving};
use super::names;
use super::relay::{Pumped, Relay, Scratch, Side};
use super::resolve::Files;
use super::session::{Progress, Request, Session, Target};
use crate::rng::Rng;
use crate::time::{Duration, Instant};
use crate::wire::Endpoint;
use crate::wire::socks5::Reply;
use core::net::{IpAddr, SocketAddr};
use mio::Token;
use mio::event::Event;

/// How long a client that was refused may take to close its side. Closing with unread input would send an
/// RST, which can overtake the refusal.
const LINGER: Duration = Duration::from_secs(1);
/// Octets of a dialogue read at once: more than the longest has, so that little is read ahead for the target.
const DIALOGUE: usize = 2_048;
/// How long the machine's files are believed.
const FILES_AGE: Duration = Duration::from_secs(5);

/// Which of a connection's sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Port {
    Client,
    Target,
    Resolver,
    Relay,
    OutV4,
    OutV6,
}

impl Port {
    const ALL: [Port; 6] =
        [Port::Client, Port::Target, Port::Resolver, Port::Relay, Port::OutV4, Port::OutV6];

    /// The poll's name for this socket of connection `key`. Numbers below 8 are the loop's own.
    pub(super) fn token(self, key: usize) -> Token {
        Token(key.saturating_add(1).saturating_mul(8).saturating_add(self as usize))
    }

    /// What [`Port::token`] was made from.
    pub(super) fn from_token(token: Token) -> Option<(usize, Port)> {
        Some(((token.0 / 8).checked_sub(1)?, *Port::ALL.get(token.0 % 8)?))
    }
}

/// What connections have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) registry: mio::Registry,
    pub(super) config: ProxyConfig,
    pub(super) scratch: Scratch,
    pub(super) rng: Rng,
    pub(super) files: Files,
    files_read: Option<Instant>,
    /// Datagrams that did not get through.
    pub(super) dropped: u64,
}

impl Shared {
    pub(super) fn new(registry: mio::Registry, config: ProxyConfig, rng: Rng) -> Shared {
        Shared {
            registry,
            config,
            scratch: Scratch::new(),
            rng,
            files: Files::default(),
            files_read: None,
            dropped: 0,
        }
    }

    /// The addresses of `name` that the machine's files know. Reads the files again when they are old.
    pub(super) fn local_addresses(&mut self, name: &str, now: Instant) -> Vec<IpAddr> {
        if self.files_read.is_none_or(|read| now.since(read) > FILES_AGE) {
            self.files = names::read();
            self.files_read = Some(now);
        }
        self.files.local(name)
    }
}

/// What a connection that is not open yet has: the dialogue, and the data that came with the request.
#[derive(Debug)]
struct Opening {
    session: Session,
    early: Vec<u8>,
}

/// Where the connection stands.
#[derive(Debug)]
enum Stage {
    Negotiating(Box<Opening>),
    Resolving(Box<Opening>, Box<Resolving>, u16),
    Dialling(Box<Opening>, Box<Dialling>),
    Relaying(Box<Relay>),
    Associated(Box<Session>, Box<Association>),
    /// `told`: the refusal is written and our side shut.
    Refusing {
        session: Box<Session>,
        told: bool,
    },
    Closed,
}

/// What a stage came to.
enum Turn {
    /// It waits.
    Stay(Stage),
    /// It used up its budget.
    Again(Stage),
    /// Another stage goes on at once.
    Next(Stage),
    Close,
}

/// What [`Connection::advance`] came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Nothing to do until the poll or the deadline says so.
    Wait,
    /// To be called again after the others had their turn.
    Again,
    /// Over: to be dropped.
    Close,
}

/// One client.
#[derive(Debug)]
pub(super) struct Connection {
    key: usize,
    client: Side,
    stage: Stage,
    /// When the stage ends whatever happens (before there is a relay).
    limit: Instant,
    /// When something moved last (when there is one).
    active: Instant,
    /// The client is gone in both directions.
    hung_up: bool,
}

impl Connection {
    /// A client that was accepted, registered as [`Port::Client`] of `key`.
    pub(super) fn new(key: usize, client: Side, config: &ProxyConfig, now: Instant) -> Connection {
        let opening = Opening { session: Session::new(), early: Vec::new() };
        Connection {
            key,
            client,
            stage: Stage::Negotiating(Box::new(opening)),
            limit: now + config.connect_timeout,
            active: now,
            hung_up: false,
        }
    }

    /// Records what the poll says about one of the sockets.
    pub(super) fn notice(&mut self, port: Port, event: &Event) {
        match (port, &mut self.stage) {
            (Port::Client, _) => {
                self.client.notice(event);
                self.hung_up |= event.is_error() || (event.is_write_closed() && event.is_read_closed());
            }
            (Port::Target, Stage::Dialling(_, dialling)) => dialling.target.notice(event),
            (Port::Target, Stage::Relaying(relay)) => relay.target.notice(event),
            (Port::Resolver, Stage::Resolving(_, resolving, _)) => resolving.readable = true,
            (port, Stage::Associated(_, association)) => association.notice(port),
            // Said about a socket that its stage has closed meanwhile.
            (Port::Target | Port::Resolver | Port::Relay | Port::OutV4 | Port::OutV6, _) => {}
        }
    }

    /// When [`Connection::advance`] is due, whatever the poll says.
    pub(super) fn deadline(&self, config: &ProxyConfig) -> Instant {
        let idle = self.active + config.idle;
        match &self.stage {
            Stage::Negotiating(_) | Stage::Refusing { .. } | Stage::Closed => self.limit,
            Stage::Resolving(_, resolving, _) => self.limit.min(resolving.deadline()),
            Stage::Dialling(_, dialling) => self.limit.min(dialling.deadline()),
            Stage::Relaying(_) => idle,
            Stage::Associated(_, association) => association.deadline().map_or(idle, |due| idle.min(due)),
        }
    }

    /// When something moved last, while the client's octets or its end have not all been passed on.
    pub(super) fn sending(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Relaying(relay) if relay.is_sending() => Some(self.active),
            Stage::Relaying(_)
            | Stage::Negotiating(_)
            | Stage::Resolving(..)
            | Stage::Dialling(..)
            | Stage::Associated(..)
            | Stage::Refusing { .. }
            | Stage::Closed => None,
        }
    }

    /// Does what can be done now.
    pub(super) fn advance(&mut self, shared: &mut Shared, now: Instant) -> Step {
        loop {
            let turn = match core::mem::replace(&mut self.stage, Stage::Closed) {
                Stage::Negotiating(opening) => self.negotiate(opening, shared, now),
                Stage::Resolving(opening, resolving, port) => {
                    self.resolve(opening, resolving, port, shared, now)
                }
                Stage::Dialling(opening, dialling) => self.dial(opening, dialling, shared, now),
                Stage::Relaying(relay) => self.relay(relay, shared, now),
                Stage::Associated(session, association) => self.associate(session, association, shared, now),
                Stage::Refusing { session, told } => self.refuse(session, told, shared, now),
                Stage::Closed => Turn::Close,
            };
            match turn {
                Turn::Next(stage) => self.stage = stage,
                Turn::Stay(stage) => {
                    self.stage = stage;
                    return Step::Wait;
                }
                Turn::Again(stage) => {
                    self.stage = stage;
                    return Step::Again;
                }
                Turn::Close => return Step::Close,
            }
        }
    }

    fn negotiate(&mut self, mut opening: Box<Opening>, shared: &mut Shared, now: Instant) -> Turn {
        if now >= self.limit {
            return Turn::Close;
        }
        loop {
            if !self.flush(&mut opening.session) {
                return Turn::Close;
            }
            let buffer = &mut shared.scratch.buffer[..DIALOGUE];
            let octets = match self.client.read(buffer) {
                Ok(Some(0)) | Err(_) => return Turn::Close,
                Ok(Some(octets)) => octets,
                Ok(None) => return Turn::Stay(Stage::Negotiating(opening)),
            };
            let input = buffer.get(..octets).unwrap_or_default();
            match opening.session.handle_input(input, shared.config.credentials.as_ref()) {
                Ok(Progress::Pending) => {}
                Ok(Progress::Request { request, consumed }) => {
                    opening.early = input.get(consumed..).unwrap_or_default().to_vec();
                    return self.serve(opening, request, shared, now);
                }
                Err(failure) => {
                    log::debug!("a client was turned away: {failure:?}");
                    return self.start_refusing(opening.session, shared, now);
                }
            }
        }
    }

    fn serve(&mut self, opening: Box<Opening>, request: Request, shared: &mut Shared, now: Instant) -> Turn {
        self.limit = now + shared.config.connect_timeout;
        match request {
            Request::Connect(Target::Ip(endpoint)) => {
                self.start_dialling(opening, vec![endpoint.into()], shared, now)
            }
            Request::Connect(Target::Name(name, port)) => {
                let local = shared.local_addresses(&name, now);
                if !local.is_empty() {
                    return self.start_dialling(opening, with_port(local, port), shared, now);
                }
                match Resolving::start(&name, self.key, shared, now) {
                    Ok(resolving) => Turn::Next(Stage::Resolving(opening, Box::new(resolving), port)),
                    Err(reply) => self.deny(opening, reply, shared, now),
                }
            }
            Request::Associate => {
                let association = self.client.stream.local_addr().and_then(|local| {
                    let peer = self.client.stream.peer_addr()?;
                    let association = Association::open(local.ip(), peer.ip(), self.key, shared)?;
                    Ok((association.bound()?, association))
                });
                match association {
                    Ok((bound, association)) => {
                        let Opening { mut session, .. } = *opening;
                        session.reply(Reply::Succeeded, bound);
                        self.active = now;
                        Turn::Next(Stage::Associated(Box::new(session), Box::new(association)))
                    }
                    Err(error) => self.deny(opening, associate::reply_for(&error), shared, now),
                }
            }
        }
    }

    fn resolve(
        &mut self,
        mut opening: Box<Opening>,
        mut resolving: Box<Resolving>,
        port: u16,
        shared: &mut Shared,
        now: Instant,
    ) -> Turn {
        if self.hung_up {
            return Turn::Close;
        }
        match resolving.advance(self.key, shared, now) {
            Resolved::Pending if now >= self.limit => self.deny(opening, Reply::HostUnreachable, shared, now),
            Resolved::Pending if !self.flush(&mut opening.session) => Turn::Close,
            Resolved::Pending => Turn::Stay(Stage::Resolving(opening, resolving, port)),
            Resolved::Failed(reply) => self.deny(opening, reply, shared, now),
            Resolved::Found(addresses) => {
                self.start_dialling(opening, with_port(addresses, port), shared, now)
            }
        }
    }

    fn start_dialling(
        &mut self,
        opening: Box<Opening>,
        addresses: Vec<SocketAddr>,
        shared: &mut Shared,
        now: Instant,
    ) -> Turn {
        match Dialling::start(addresses, self.limit, self.key, shared, now) {
            Ok(dialling) => Turn::Next(Stage::Dialling(opening, Box::new(dialling))),
            Err(reply) => self.deny(opening, reply, shared, now),
        }
    }

    fn dial(
        &mut self,
        mut opening: Box<Opening>,
        mut dialling: Box<Dialling>,
        shared: &mut Shared,
        now: Instant,
    ) -> Turn {
        if self.hung_up {
            return Turn::Close;
        }
        match dialling.advance(self.key, shared, now) {
            // A client that sent everything at once still hears the method before the dial is over.
            Dialled::Pending if !self.flush(&mut opening.session) => Turn::Close,
            Dialled::Pending => Turn::Stay(Stage::Dialling(opening, dialling)),
            Dialled::Failed(reply) => self.deny(opening, reply, shared, now),
            Dialled::Connected => {
                let target = dialling.target;
                let Ok(bound) = target.stream.local_addr() else {
                    return self.deny(opening, Reply::GeneralFailure, shared, now);
                };
                opening.session.reply(Reply::Succeeded, bound.into());
                let Opening { session, early } = *opening;
                self.active = now;
                Turn::Next(Stage::Relaying(Box::new(Relay::new(target, early, session.output()))))
            }
        }
    }

    fn relay(&mut self, mut relay: Box<Relay>, shared: &mut Shared, now: Instant) -> Turn {
        match relay.pump(&mut self.client, &mut shared.scratch) {
            Ok(Pumped::Ended) => Turn::Close,
            Ok(Pumped::More) => {
                self.active = now;
                Turn::Again(Stage::Relaying(relay))
            }
            Ok(Pumped::Blocked { .. }) if self.client.failed || relay.target.failed => {
                self.abort(&relay, "one side failed while the other did not take what it had sent")
            }
            Ok(Pumped::Blocked { moved: true }) => {
                self.active = now;
                Turn::Stay(Stage::Relaying(relay))
            }
            Ok(Pumped::Blocked { moved: false }) if now < self.active + shared.config.idle => {
                Turn::Stay(Stage::Relaying(relay))
            }
            Ok(Pumped::Blocked { .. }) => self.abort(&relay, "idle for too long"),
            Err(error) => self.abort(&relay, &error),
        }
    }

    /// Both ends learn by RST that octets may be missing.
    fn abort(&mut self, relay: &Relay, why: impl core::fmt::Display) -> Turn {
        log::debug!("connection {} reset: {why}", self.key);
        relay.target.abort_on_close();
        self.client.abort_on_close();
        Turn::Close
    }

    fn associate(
        &mut self,
        mut session: Box<Session>,
        mut association: Box<Association>,
        shared: &mut Shared,
        now: Instant,
    ) -> Turn {
        // "A UDP association terminates when the TCP connection that the UDP ASSOCIATE request arrived on
        // terminates" (RFC 1928 7). What else comes on it means nothing.
        let open = self.flush(&mut session) && self.skip_input(shared);
        let (moved, more) = if open {
            association.pump(self.key, shared, now)
        } else {
            association.pump_last(self.key, shared, now)
        };
        if moved {
            self.active = now;
        }
        if !open || now >= self.active + shared.config.idle {
            Turn::Close
        } else if more || self.client.readable {
            Turn::Again(Stage::Associated(session, association))
        } else {
            Turn::Stay(Stage::Associated(session, association))
        }
    }

    fn deny(&mut self, mut opening: Box<Opening>, reply: Reply, shared: &mut Shared, now: Instant) -> Turn {
        opening.session.refuse(reply);
        self.start_refusing(opening.session, shared, now)
    }

    fn start_refusing(&mut self, session: Session, shared: &Shared, now: Instant) -> Turn {
        self.limit = now + LINGER.min(shared.config.connect_timeout);
        Turn::Next(Stage::Refusing { session: Box::new(session), told: false })
    }

    fn refuse(
        &mut self,
        mut session: Box<Session>,
        mut told: bool,
        shared: &mut Shared,
        now: Instant,
    ) -> Turn {
        if now >= self.limit || !self.flush(&mut session) {
            return Turn::Close;
        }
        if !told && session.output().is_empty() {
            told = true;
            if self.client.stream.shutdown(std::net::Shutdown::Write).is_err() {
                return Turn::Close;
            }
        }
        match (self.skip_input(shared), self.client.readable) {
            (false, _) => Turn::Close,
            (true, true) => Turn::Again(Stage::Refusing { session, told }),
            (true, false) => Turn::Stay(Stage::Refusing { session, told }),
        }
    }

    /// Writes what the dialogue has to say; false when the client is gone.
    fn flush(&mut self, session: &mut Session) -> bool {
        while !session.output().is_empty() {
            match self.client.write(session.output()) {
                Ok(Some(octets)) => session.wrote(octets),
                Ok(None) => break,
                Err(_) => return false,
            }
        }
        true
    }

    /// Reads and forgets; false when the client has ended. A client that never stops gets its turn only, and is
    /// still [`Side::readable`] afterwards.
    fn skip_input(&mut self, shared: &mut Shared) -> bool {
        for _ in 0..4 {
            match self.client.read(&mut shared.scratch.buffer) {
                Ok(Some(0)) | Err(_) => return false,
                Ok(Some(_)) => {}
                Ok(None) => return true,
            }
        }
        true
    }
}

fn with_port(addresses: Vec<IpAddr>, port: u16) -> Vec<SocketAddr> {
    addresses.into_iter().map(|addr| Endpoint::new(addr, port).into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_socket_and_none_of_the_loops() {
        for key in [0, 1, 4_095] {
            for port in Port::ALL {
                assert_eq!(Port::from_token(port.token(key)), Some((key, port)));
                assert!(port.token(key).0 >= 8);
            }
        }
        assert_eq!(Port::from_token(Token(0)), None);
        assert_eq!(Port::from_token(Token(15)), None);
    }
}
