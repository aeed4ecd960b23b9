//! A listener and its clients, as a service of the loop: what the control socket and the metrics have in common.
//!
//! # Bounds
//!
//! The loop carries packets; whatever clients do here must cost it next to nothing. So there are at most [`CLIENTS`] at once, and one more takes the
//! place of the one that has done nothing for the longest time. In one call at most [`ACCEPTS`] clients are let in and [`ANSWERS`] requests
//! answered, in turn; the rest is carried over to the next turn of the loop. What is held for a client is what its [`Talk`] holds. One that does
//! not take its answer, or asks nothing, is dropped after the time that its [`Trade`] allows; octets that make no request do not prolong that.
//!
//! # Readiness
//!
//! mio is edge-triggered: a client stays in `ready` until reading it has found nothing more, and one whose answer did not fit waits for the event
//! that it can be written again.

use super::talk::Talk;
use crate::driver::{Scene, Service, Tokens};
use crate::time::{Duration, Instant};
use mio::event::{Event, Source};
use mio::{Interest, Registry};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};

/// Clients at once.
pub(super) const CLIENTS: usize = 32;
/// Clients let in during one call.
const ACCEPTS: usize = 16;
/// Requests answered during one call.
const ANSWERS: usize = 4;
/// Octets read from a client at once.
const PIECE: usize = 4 << 10;
/// When a machine without descriptors is asked for a client again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What is done at a desk.
pub(super) trait Trade<D> {
    /// A client's socket.
    type Stream: Read + Write + Source;
    /// A client's dialogue.
    type Talk: Talk;

    /// The listening socket.
    fn listener(&mut self) -> &mut dyn Source;

    /// The next client; `None` for one that is not served. No more clients is [`ErrorKind::WouldBlock`].
    fn accept(&mut self) -> io::Result<Option<Self::Stream>>;

    /// Answers the next request; whether there was one.
    fn answer(&mut self, talk: &mut Self::Talk, scene: &mut Scene<'_, D>, now: Instant) -> bool;

    /// How long a client may ask nothing, and how long it may take nothing of its answer.
    fn patience(&self) -> (Duration, Duration);
}

struct Client<S, T> {
    stream: S,
    talk: T,
    /// When it was last answered, or took something of an answer.
    active: Instant,
    readable: bool,
    /// Stands in `ready`.
    queued: bool,
}

/// A listener and its clients.
pub(super) struct Desk<D, T: Trade<D>> {
    trade: T,
    tokens: Option<Tokens>,
    clients: Vec<Option<Client<T::Stream, T::Talk>>>,
    ready: VecDeque<usize>,
    /// When to look for clients whom no event announces any more.
    accept_at: Option<Instant>,
}

impl<D, T: Trade<D>> Desk<D, T> {
    pub(super) fn new(trade: T) -> Desk<D, T> {
        let clients = (0..CLIENTS).map(|_| None).collect();
        Desk { trade, tokens: None, clients, ready: VecDeque::new(), accept_at: None }
    }

    /// Lets in who waits, up to the budget.
    fn accept(&mut self, registry: &Registry, now: Instant) {
        self.accept_at = None;
        for _ in 0..ACCEPTS {
            match self.trade.accept() {
                Ok(Some(stream)) => self.admit(stream, registry, now),
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    log::debug!("cannot take a client of the control socket or of metrics: {error}");
                    self.accept_at = Some(now + RETRY_AFTER);
                    return;
                }
            }
        }
        self.accept_at = Some(now);
    }

    fn admit(&mut self, mut stream: T::Stream, registry: &Registry, now: Instant) {
        let Some(tokens) = self.tokens else { return };
        let free = self.clients.iter().position(Option::is_none);
        let Some(place) = free.or_else(|| self.idlest()) else { return };
        self.dismiss(place, registry);
        // Places are few.
        let token = tokens.token(place as u16 + 1);
        if let Err(error) = registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE) {
            log::debug!("cannot watch a client: {error}");
            return;
        }
        let talk = T::Talk::default();
        self.clients[place] = Some(Client { stream, talk, active: now, readable: true, queued: false });
        self.enqueue(place);
    }

    /// The client that has done nothing for the longest time.
    fn idlest(&self) -> Option<usize> {
        let active = |place: &usize| self.clients[*place].as_ref().map(|client| client.active);
        (0..self.clients.len()).min_by_key(active)
    }

    fn dismiss(&mut self, place: usize, registry: &Registry) {
        let Some(mut client) = self.clients.get_mut(place).and_then(Option::take) else { return };
        self.ready.retain(|other| *other != place);
        if let Err(error) = registry.deregister(&mut client.stream) {
            log::debug!("deregister: {error}");
        }
    }

    fn enqueue(&mut self, place: usize) {
        if let Some(Some(client)) = self.clients.get_mut(place)
            && !client.queued
        {
            client.queued = true;
            self.ready.push_back(place);
        }
    }

    /// Serves who is ready, in turn, up to the budget.
    fn serve(&mut self, scene: &mut Scene<'_, D>, now: Instant) {
        let mut answers = 0;
        // Nobody is served twice in one call but after all others.
        while answers < ANSWERS
            && let Some(place) = self.ready.pop_front()
        {
            let Some(Some(client)) = self.clients.get_mut(place) else { continue };
            client.queued = false;
            match client.step(&mut self.trade, scene, now) {
                Step::Answered => {
                    answers += 1;
                    self.enqueue(place);
                }
                Step::Waits => {}
                Step::Over => self.dismiss(place, scene.registry),
            }
        }
    }

    /// When the client has to be let go unless something happens.
    fn deadline(&self, client: &Client<T::Stream, T::Talk>) -> Instant {
        let (asking, taking) = self.trade.patience();
        client.active + if client.talk.output().is_empty() { asking } else { taking }
    }
}

/// What came of serving a client.
enum Step {
    /// A request was answered; there may be more.
    Answered,
    /// Nothing can be done before the next event.
    Waits,
    /// It is gone, or all is said.
    Over,
}

impl<S: Read + Write + Source, T: Talk> Client<S, T> {
    /// Writes, answers one request, reads: whatever of it can be done.
    fn step<D, U: Trade<D, Stream = S, Talk = T>>(
        &mut self,
        trade: &mut U,
        scene: &mut Scene<'_, D>,
        now: Instant,
    ) -> Step {
        loop {
            if !self.write(now) || self.talk.is_over() {
                return Step::Over;
            }
            if !self.talk.output().is_empty() {
                return Step::Waits;
            }
            if trade.answer(&mut self.talk, scene, now) {
                self.active = now;
                return if self.write(now) && !self.talk.is_over() { Step::Answered } else { Step::Over };
            }
            if self.talk.is_over() || !self.talk.output().is_empty() {
                // What cannot be had was refused by the dialogue itself.
                continue;
            }
            if !self.readable {
                return Step::Waits;
            }
            if !self.read() {
                return Step::Over;
            }
        }
    }

    /// `false` when the client is gone.
    fn write(&mut self, now: Instant) -> bool {
        while !self.talk.output().is_empty() {
            match self.stream.write(self.talk.output()) {
                Ok(0) => return false,
                Ok(octets) => {
                    self.talk.wrote(octets);
                    self.active = now;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Reads once; `false` when the client is gone.
    fn read(&mut self) -> bool {
        let mut piece = [0; PIECE];
        let room = self.talk.room().min(PIECE);
        if room == 0 {
            // It has said something that takes up all the room and is no request: nothing will come of it.
            return false;
        }
        match self.stream.read(&mut piece[..room]) {
            Ok(0) => {
                self.readable = false;
                self.talk.handle_end();
            }
            Ok(octets) => self.talk.handle_input(&piece[..octets]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
        true
    }
}

impl<D, T: Trade<D>> Service<D> for Desk<D, T> {
    fn register(&mut self, registry: &Registry, tokens: Tokens) -> io::Result<()> {
        self.tokens = Some(tokens);
        registry.register(self.trade.listener(), tokens.token(0), Interest::READABLE)
    }

    fn handle_event(&mut self, number: u16, event: &Event, scene: &mut Scene<'_, D>, now: Instant) {
        match usize::from(number).checked_sub(1) {
            None => self.accept(scene.registry, now),
            Some(place) => {
                if let Some(Some(client)) = self.clients.get_mut(place) {
                    client.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
                }
                self.enqueue(place);
            }
        }
        self.serve(scene, now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        if !self.ready.is_empty() {
            return Some(Instant::ZERO);
        }
        let clients = self.clients.iter().flatten().map(|client| self.deadline(client));
        clients.chain(self.accept_at).min()
    }

    fn handle_timeout(&mut self, scene: &mut Scene<'_, D>, now: Instant) {
        if self.accept_at.is_some_and(|at| at <= now) {
            self.accept(scene.registry, now);
        }
        for place in 0..self.clients.len() {
            let late = self.clients[place].as_ref().is_some_and(|client| self.deadline(client) <= now);
            if late {
                self.dismiss(place, scene.registry);
            }
        }
        self.serve(scene, now);
    }
}
