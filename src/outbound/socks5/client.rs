//! One connection to a SOCKS5 server, from greeting to reply.
//!
//! The caller writes [`Client::output`] to the connection and feeds what it reads to
//! [`Client::handle_input`]. Octets may come in any portions; what follows the reply is not
//! consumed: it is the first data of the target.
//!
//! ```text
//! Greeting ──method none──────────────▶ Idle ──request──▶ Requesting ──reply──▶ Over
//!    └─────method password──▶ Authenticating ─┘
//! ```
//!
//! # Step by step, or pipelined
//!
//! Step by step each message goes out when the answer to the one before has been understood: servers exist that drop what comes
//! early. A pipelined dialogue says everything it knows at once, a round trip, a segment and two system calls less. Since there is only one way to go on,
//! only one method is offered: a server that wants another refuses, and has seen no more than that a request was meant. Credentials leave
//! before the server has asked for them, so a pipelined client that has some offers nothing but them, and one that has none
//! nothing but "none". Octets of the app are never part of it.
//!
//! A failure is known as soon as its first telling octet is there (a wrong version, a REP other than 0), however the rest may dawdle,
//! and it is final.
//!
//! Storage is one array, used twice. On the way out it holds the greeting, the authentication message and the request; step by step
//! the authentication message waits at a fixed place behind the longest greeting. A reply is collected from
//! the front when all of that is written. A reply that comes before its request was written answers
//! nothing and is refused, so a granted client never has output left.

use crate::config::Credentials;
use crate::wire::Endpoint;
use crate::wire::socks5::{Address, Command, Reply, parse_reply};
use core::fmt;

/// VER of RFC 1928.
const VERSION: u8 = 0x05;
/// VER of the sub-negotiation of RFC 1929.
const AUTH_VERSION: u8 = 0x01;
/// RFC 1928 3: the methods.
const METHOD_NONE: u8 = 0x00;
const METHOD_PASSWORD: u8 = 0x02;
const METHOD_NONE_ACCEPTABLE: u8 = 0xff;

/// VER NMETHODS and two methods.
const MAX_GREETING: usize = 4;
/// VER ULEN UNAME PLEN PASSWD (RFC 1929 2).
const MAX_AUTH: usize = 1 + 1 + 255 + 1 + 255;
/// VER CMD RSV ATYP and an IPv6 endpoint: targets are addresses here.
const MAX_REQUEST: usize = 4 + 16 + 2;
/// VER REP RSV ATYP, a domain of 255 octets with its length, port.
const MAX_REPLY: usize = 4 + 1 + 255 + 2;
const STORAGE: usize = MAX_GREETING + MAX_AUTH + MAX_REQUEST;

const _: () = assert!(MAX_REPLY <= STORAGE, "a reply is collected in the space of what was written");
const _: () = assert!(size_of::<Client>() <= 600, "one of these exists per connection that is being opened");

/// What input has brought about. `consumed` counts octets of the input that belonged to the handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// More input is needed; all input was consumed. There may be new output.
    Pending,
    /// The method negotiation (and authentication) is over and no request has been made: a pooled connection is warm.
    /// All input was consumed.
    Negotiated,
    /// The request was granted. The rest of the input is the target's data.
    Granted {
        /// BND.ADDR and BND.PORT; `None` when the server gave a domain name.
        bound: Option<Endpoint>,
        /// Octets of the input that were the handshake's.
        consumed: usize,
    },
}

/// Why the handshake failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// No method in common (0xff).
    NoMethod,
    /// A method that was not offered.
    WrongMethod(u8),
    /// User or password refused.
    Denied,
    /// The server refused the request.
    Refused(Reply),
    /// Not SOCKS5, or malformed.
    Protocol,
}

/// What is to be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Request {
    /// Nothing yet.
    None,
    /// This, after the negotiation.
    Waiting(Command, Endpoint),
    /// It is behind the other messages already.
    Pipelined,
}

/// Where the dialogue stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// The method selection is awaited; `version` tells that its first octet has come.
    Greeting { version: bool, request: Request },
    /// The status of RFC 1929 is awaited.
    Authenticating { version: bool, request: Request },
    /// Negotiated, nothing asked for yet.
    Idle,
    /// The reply is awaited; its first `received` octets are in the storage.
    Requesting { received: usize },
    /// Granted.
    Over,
    /// Failed for good.
    Failed(Failure),
}

/// The state machine.
pub struct Client {
    state: State,
    /// Output not yet written is `storage[written..end]`.
    written: usize,
    end: usize,
    /// Length of the authentication message; 0 when passwords were not offered. It stands at `storage[MAX_GREETING..]` until it is its turn, or
    /// behind the greeting when pipelined.
    auth: usize,
    pipelined: bool,
    /// The method that the server chose.
    method: Option<u8>,
    storage: [u8; STORAGE],
}

impl Client {
    /// A client that negotiates the method and then waits for [`Client::request`].
    ///
    /// User/password is offered besides "none" when there are credentials. A user or password of more than
    /// 255 octets cannot be sent (RFC 1929 2) and counts as no credentials.
    pub fn new(credentials: Option<&Credentials>) -> Client {
        let mut client = Client::blank(false);
        if let Some(credentials) = credentials {
            client.auth = emit_auth(credentials, &mut client.storage[MAX_GREETING..]);
        }
        if client.auth == 0 {
            client.append(&[VERSION, 1, METHOD_NONE]);
        } else {
            client.append(&[VERSION, 2, METHOD_NONE, METHOD_PASSWORD]);
        }
        client
    }

    /// A client that waits for no answer before it goes on. User/password alone is offered when there are credentials (that can be sent), else
    /// "none" alone.
    pub fn pipelined(credentials: Option<&Credentials>) -> Client {
        const GREETING: usize = 3;
        let mut client = Client::blank(true);
        if let Some(credentials) = credentials {
            client.auth = emit_auth(credentials, &mut client.storage[GREETING..]);
        }
        client.append(&[VERSION, 1, if client.auth == 0 { METHOD_NONE } else { METHOD_PASSWORD }]);
        client.end = client.end.saturating_add(client.auth);
        client
    }

    fn blank(pipelined: bool) -> Client {
        Client {
            state: State::Greeting { version: false, request: Request::None },
            written: 0,
            end: 0,
            auth: 0,
            pipelined,
            method: None,
            storage: [0; STORAGE],
        }
    }

    /// Sets the request. It may be set at once, during the negotiation, or when negotiated; only the first counts.
    pub fn request(&mut self, command: Command, target: Endpoint) {
        let pipelined = self.pipelined;
        match &mut self.state {
            State::Greeting { request, .. } | State::Authenticating { request, .. } => {
                if *request != Request::None {
                    return;
                }
                *request = if pipelined { Request::Pipelined } else { Request::Waiting(command, target) };
            }
            State::Idle => {
                self.pipelined = false;
                self.state = State::Requesting { received: 0 };
            }
            State::Requesting { .. } | State::Over | State::Failed(_) => return,
        }
        if pipelined || self.state == (State::Requesting { received: 0 }) {
            self.append_request(command, target);
        }
    }

    /// Whether what it says goes out without waiting for answers; it does not where the request came after the negotiation.
    pub fn is_pipelined(&self) -> bool {
        self.pipelined
    }

    /// Whether the server has asked for user and password; `None` before it has chosen a method.
    pub fn wants_password(&self) -> Option<bool> {
        self.method.map(|method| method == METHOD_PASSWORD)
    }

    /// Octets to be written now; the caller reports with [`Client::wrote`].
    pub fn output(&self) -> &[u8] {
        self.storage.get(self.written..self.end).unwrap_or_default()
    }

    /// The first `octets` of [`Client::output`] were written.
    pub fn wrote(&mut self, octets: usize) {
        self.written = self.written.saturating_add(octets).min(self.end);
    }

    /// Whether the method negotiation is over.
    pub fn is_negotiated(&self) -> bool {
        match self.state {
            State::Idle | State::Requesting { .. } | State::Over => true,
            State::Greeting { .. } | State::Authenticating { .. } | State::Failed(_) => false,
        }
    }

    /// Feeds octets read from the connection. A failure is final and is told again on every later call;
    /// so are octets fed after the grant, which are not the handshake's ([`Failure::Protocol`]).
    pub fn handle_input(&mut self, input: &[u8]) -> Result<Progress, Failure> {
        let progress = self.advance(input);
        if let Err(failure) = progress {
            self.state = State::Failed(failure);
            self.written = self.end;
        }
        progress
    }

    fn advance(&mut self, mut input: &[u8]) -> Result<Progress, Failure> {
        let fed = input.len();
        loop {
            let Some((&octet, rest)) = input.split_first() else { return Ok(Progress::Pending) };
            match self.state {
                State::Greeting { version: false, request } => {
                    if octet != VERSION {
                        return Err(Failure::Protocol);
                    }
                    self.state = State::Greeting { version: true, request };
                }
                State::Greeting { version: true, request } => {
                    self.choose(octet, request)?;
                    self.method = Some(octet);
                }
                State::Authenticating { version: false, request } => {
                    // RFC 1929 2 has 0x01 here; servers that repeat the version of the protocol are common
                    // enough that clients in general do not look. Anything else is no SOCKS5 server.
                    if octet != AUTH_VERSION && octet != VERSION {
                        return Err(Failure::Protocol);
                    }
                    self.state = State::Authenticating { version: true, request };
                }
                State::Authenticating { version: true, request } => {
                    // "A STATUS field of X'00' indicates success" (RFC 1929 2), nothing else does.
                    if octet != 0 {
                        return Err(Failure::Denied);
                    }
                    self.negotiated(request);
                }
                State::Requesting { received } => {
                    let consumed_before = fed.saturating_sub(input.len());
                    return self.collect_reply(received, input, consumed_before);
                }
                // Octets that answer nothing.
                State::Idle | State::Over => return Err(Failure::Protocol),
                State::Failed(failure) => return Err(failure),
            }
            input = rest;
            if input.is_empty() && self.state == State::Idle {
                return Ok(Progress::Negotiated);
            }
        }
    }

    /// The server has chosen a method.
    fn choose(&mut self, method: u8, request: Request) -> Result<(), Failure> {
        match method {
            METHOD_NONE if !self.pipelined || self.auth == 0 => self.negotiated(request),
            METHOD_PASSWORD if self.auth > 0 => {
                if !self.pipelined {
                    self.end = MAX_GREETING.saturating_add(self.auth);
                }
                self.state = State::Authenticating { version: false, request };
            }
            METHOD_NONE_ACCEPTABLE => return Err(Failure::NoMethod),
            other => return Err(Failure::WrongMethod(other)),
        }
        Ok(())
    }

    /// Takes the octets of a reply from `input`, of which `consumed_before` octets of the same call belonged to
    /// earlier messages.
    fn collect_reply(
        &mut self,
        received: usize,
        input: &[u8],
        consumed_before: usize,
    ) -> Result<Progress, Failure> {
        if self.written < self.end {
            return Err(Failure::Protocol);
        }
        let Some(space) = self.storage.get_mut(received..MAX_REPLY) else { return Err(Failure::Protocol) };
        let taken = space.len().min(input.len());
        space[..taken].copy_from_slice(&input[..taken]);
        let total = received.saturating_add(taken);
        let reply = &self.storage[..total];
        if reply.first().is_some_and(|&version| version != VERSION) {
            return Err(Failure::Protocol);
        }
        match parse_reply(reply) {
            Ok(Some(((Reply::Succeeded, address), used))) => {
                let bound = match address {
                    Address::Ip(endpoint) => Some(endpoint),
                    Address::Domain(..) => None,
                };
                self.state = State::Over;
                // What was there before this call was not a whole reply, so `used` lies behind it.
                let consumed = consumed_before.saturating_add(used.saturating_sub(received));
                Ok(Progress::Granted { bound, consumed })
            }
            Ok(Some(((reply, _), _))) => Err(Failure::Refused(reply)),
            Ok(None) if total < MAX_REPLY => {
                self.state = State::Requesting { received: total };
                Ok(Progress::Pending)
            }
            Ok(None) | Err(_) => Err(Failure::Protocol),
        }
    }

    /// The method negotiation is over.
    fn negotiated(&mut self, request: Request) {
        self.state = match request {
            Request::None => State::Idle,
            Request::Waiting(..) | Request::Pipelined => State::Requesting { received: 0 },
        };
        if let Request::Waiting(command, target) = request {
            self.append_request(command, target);
        }
    }

    fn append_request(&mut self, command: Command, target: Endpoint) {
        let command = match command {
            Command::Connect => 0x01,
            Command::Bind => 0x02,
            Command::UdpAssociate => 0x03,
            Command::Other(number) => number,
        };
        let mut request = [0; MAX_REQUEST];
        request[..3].copy_from_slice(&[VERSION, command, 0]);
        let len = 3 + Address::Ip(target).emit(&mut request[3..]);
        self.append(&request[..len]);
    }

    /// Puts a message behind what is to be written.
    fn append(&mut self, message: &[u8]) {
        if let Some(space) = self.storage.get_mut(self.end..self.end.saturating_add(message.len())) {
            space.copy_from_slice(message);
            self.end = self.end.saturating_add(message.len());
        }
    }
}

impl fmt::Debug for Client {
    /// Leaves the storage out: it may hold the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("state", &self.state)
            .field("unwritten", &self.output().len())
            .finish_non_exhaustive()
    }
}

/// Writes the message of RFC 1929 2; gives its length, 0 when it cannot be expressed.
fn emit_auth(credentials: &Credentials, buffer: &mut [u8]) -> usize {
    let (user, password) = (credentials.user.as_bytes(), credentials.password.as_bytes());
    let (Ok(user_len), Ok(password_len)) = (u8::try_from(user.len()), u8::try_from(password.len())) else {
        return 0;
    };
    let message = [&[AUTH_VERSION, user_len], user, &[password_len], password];
    let len = message.iter().map(|part| part.len()).sum();
    let Some(space) = buffer.get_mut(..len) else { return 0 };
    for (slot, octet) in space.iter_mut().zip(message.into_iter().flatten()) {
        *slot = *octet;
    }
    len
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn credentials() -> Credentials {
        Credentials { user: "alice".into(), password: "secret".into() }
    }

    fn target() -> Endpoint {
        Endpoint::new("192.0.2.1".parse().unwrap(), 443)
    }

    fn take_output(client: &mut Client) -> Vec<u8> {
        let output = client.output().to_vec();
        client.wrote(output.len());
        output
    }

    /// What a whole dialogue came to.
    #[derive(PartialEq, Eq, Debug)]
    struct Outcome {
        result: Result<Progress, Failure>,
        /// Everything the client wrote.
        written: Vec<u8>,
        /// Octets of the last answer that were left alone.
        surplus: usize,
    }

    /// Plays a server that gives `answers[i]` after the client's message i, each cut into pieces of at most `piece`
    /// octets; the request is set at the start.
    fn play(credentials: Option<&Credentials>, answers: &[&[u8]], piece: usize) -> Outcome {
        play_with(Client::new(credentials), answers, piece)
    }

    fn play_with(mut client: Client, answers: &[&[u8]], piece: usize) -> Outcome {
        client.request(Command::Connect, target());
        let mut written = Vec::new();
        let mut result = Ok(Progress::Pending);
        for answer in answers {
            written.extend(take_output(&mut client));
            let mut fed = 0;
            for chunk in answer.chunks(piece) {
                result = client.handle_input(chunk);
                match result {
                    Ok(Progress::Pending | Progress::Negotiated) => fed += chunk.len(),
                    Ok(Progress::Granted { consumed, .. }) => {
                        assert_eq!(client.output(), b"", "a granted client has nothing left to say");
                        return Outcome { result, written, surplus: answer.len() - fed - consumed };
                    }
                    Err(_) => {
                        assert_eq!(client.output(), b"", "a failed client has nothing left to say");
                        assert_eq!(client.handle_input(b"\x05\x00"), result, "a failure is final");
                        return Outcome { result, written, surplus: 0 };
                    }
                }
            }
        }
        Outcome { result, written, surplus: 0 }
    }

    /// [`play`] at every size of piece gives the same.
    fn play_all(credentials: Option<&Credentials>, answers: &[&[u8]]) -> Result<Progress, Failure> {
        let longest = answers.iter().map(|answer| answer.len()).max().unwrap_or(1);
        let whole = play(credentials, answers, longest.max(1));
        for piece in 1..longest {
            let cut = play(credentials, answers, piece);
            match (whole.result, cut.result) {
                // `consumed` counts from the piece in which the reply ended.
                (Ok(Progress::Granted { bound: a, .. }), Ok(Progress::Granted { bound: b, .. })) => {
                    assert_eq!(a, b)
                }
                (a, b) => assert_eq!(a, b, "pieces of {piece}"),
            }
            assert_eq!((&whole.written, whole.surplus), (&cut.written, cut.surplus), "pieces of {piece}");
        }
        whole.result
    }

    /// A pipelined client says `said` at once, and comes to the same end at every cut of the server's answer.
    fn pipelined(credentials: Option<&Credentials>, said: &[u8], answer: &[u8]) -> Result<Progress, Failure> {
        let whole = play_with(Client::pipelined(credentials), &[answer], answer.len().max(1));
        assert_eq!(whole.written, said);
        for piece in 1..answer.len() {
            let cut = play_with(Client::pipelined(credentials), &[answer], piece);
            assert_eq!(
                (whole.result.map(|_| ()), &whole.written, whole.surplus),
                (cut.result.map(|_| ()), &cut.written, cut.surplus),
                "pieces of {piece}"
            );
        }
        whole.result
    }

    const GRANTED: &[u8] = &[5, 0, 0, 1, 127, 0, 0, 1, 0x1f, 0x90];

    #[test]
    fn without_credentials_only_none_is_offered_and_the_request_waits_for_the_choice() {
        let mut client = Client::new(None);
        client.request(Command::Connect, target());
        assert_eq!(take_output(&mut client), [5, 1, 0]);
        assert!(!client.is_negotiated());
        assert_eq!(client.handle_input(&[5, 0]), Ok(Progress::Pending));
        assert!(client.is_negotiated());
        assert_eq!(take_output(&mut client), [5, 1, 0, 1, 192, 0, 2, 1, 1, 0xbb]);
        assert_eq!(client.output(), b"");
        let bound = Some(Endpoint::new("127.0.0.1".parse().unwrap(), 8080));
        assert_eq!(client.handle_input(GRANTED), Ok(Progress::Granted { bound, consumed: 10 }));
    }

    #[test]
    fn with_credentials_both_are_offered_and_the_server_chooses() {
        let credentials = credentials();
        let answers: [&[u8]; 3] = [&[5, 2], &[1, 0], GRANTED];
        let outcome = play(Some(&credentials), &answers, 1);
        assert!(outcome.result.is_ok());
        let mut expected = b"\x05\x02\x00\x02\x01\x05alice\x06secret".to_vec();
        expected.extend([5, 1, 0, 1, 192, 0, 2, 1, 1, 0xbb]);
        assert_eq!(outcome.written, expected);

        let outcome = play(Some(&credentials), &[&[5, 0], GRANTED], 1);
        assert!(outcome.result.is_ok());
        assert_eq!(outcome.written, [5, 2, 0, 2, 5, 1, 0, 1, 192, 0, 2, 1, 1, 0xbb]);
    }

    #[test]
    fn the_longest_credentials_fit_and_longer_ones_are_not_offered() {
        let longest = Credentials { user: "u".repeat(255), password: "p".repeat(255) };
        let mut client = Client::new(Some(&longest));
        take_output(&mut client);
        client.handle_input(&[5, 2]).unwrap();
        client.request(Command::UdpAssociate, Endpoint::new("::".parse().unwrap(), 0));
        let auth = take_output(&mut client);
        assert_eq!((auth.len(), auth[1], auth[257]), (513, 255, 255));
        assert_eq!(client.handle_input(&[1, 0]), Ok(Progress::Pending));
        let mut request = vec![5, 3, 0, 4];
        request.extend([0; 18]);
        assert_eq!(take_output(&mut client), request);

        let too_long = Credentials { user: "u".repeat(256), password: "p".into() };
        assert_eq!(Client::new(Some(&too_long)).output(), [5, 1, 0]);
    }

    #[test]
    fn a_pooled_client_is_warm_before_it_has_a_request() {
        let mut client = Client::new(None);
        take_output(&mut client);
        assert_eq!(client.handle_input(&[5]), Ok(Progress::Pending));
        assert_eq!(client.handle_input(&[0]), Ok(Progress::Negotiated));
        assert_eq!(client.output(), b"");
        client.request(Command::Connect, Endpoint::new("2001:db8::1".parse().unwrap(), 80));
        client.request(Command::Connect, target());
        let request = take_output(&mut client);
        assert_eq!((request.len(), &request[..4]), (22, &[5, 1, 0, 4][..]));
        assert_eq!(client.output(), b"", "only the first request counts");
        assert!(matches!(client.handle_input(GRANTED), Ok(Progress::Granted { .. })));
    }

    #[test]
    fn a_warm_client_that_hears_something_unasked_fails() {
        let mut client = Client::new(None);
        take_output(&mut client);
        client.handle_input(&[5, 0]).unwrap();
        assert_eq!(client.handle_input(&[5]), Err(Failure::Protocol));
        client.request(Command::Connect, target());
        assert_eq!(client.output(), b"");
    }

    #[test]
    fn output_survives_partial_writes() {
        let mut client = Client::new(Some(&credentials()));
        client.request(Command::Connect, target());
        let mut written = Vec::new();
        let mut answers: &[&[u8]] = &[&[5, 2], &[1, 0]];
        loop {
            while let Some(&octet) = client.output().first() {
                written.push(octet);
                client.wrote(1);
            }
            let Some((answer, rest)) = answers.split_first() else { break };
            client.handle_input(answer).unwrap();
            answers = rest;
        }
        assert_eq!(written, play(Some(&credentials()), &[&[5, 2], &[1, 0], GRANTED], 99).written);
        client.wrote(usize::MAX);
        assert_eq!(client.output(), b"");
    }

    /// A server that answers before it has read all of the greeting loses nothing of what follows.
    #[test]
    fn what_is_unwritten_stays_in_front_of_the_next_message() {
        let mut client = Client::new(None);
        client.request(Command::Connect, target());
        client.wrote(1);
        assert_eq!(client.handle_input(&[5, 0]), Ok(Progress::Pending));
        assert_eq!(client.output(), [1, 0, 5, 1, 0, 1, 192, 0, 2, 1, 1, 0xbb]);
    }

    /// conformance 58: every ATYP, whatever was asked, at every split; early data is the target's.
    #[test]
    fn a_reply_is_measured_by_its_own_atyp_and_what_follows_is_left_alone() {
        let v6 = {
            let mut reply = vec![5, 0, 0, 4];
            reply.extend([0x20; 16]);
            reply.extend([0, 80]);
            reply
        };
        let name = |len: u8| {
            let mut reply = vec![5, 0, 0, 3, len];
            reply.extend(vec![b'x'; usize::from(len)]);
            reply.extend([0, 80]);
            reply
        };
        for reply in [GRANTED.to_vec(), v6, name(1), name(2), name(255)] {
            for early in [0, 1, 300] {
                let mut answer = reply.clone();
                answer.extend(vec![5; early]);
                let whole = play(None, &[&[5, 0], &answer], answer.len());
                assert!(
                    matches!(whole.result, Ok(Progress::Granted { consumed, .. }) if consumed == reply.len()),
                    "{whole:?}"
                );
                assert_eq!(whole.surplus, early);
                play_all(None, &[&[5, 0], &answer]).unwrap();
            }
        }
    }

    #[test]
    fn a_reply_with_64_kib_of_data_in_one_read_consumes_the_reply_only() {
        let mut answer = GRANTED.to_vec();
        answer.resize(GRANTED.len() + 65_536, 0xaa);
        assert_eq!(play(None, &[&[5, 0], &answer], answer.len()).surplus, 65_536);
    }

    /// conformance 60, and the hostile list of conformance.md.
    #[test]
    fn hostile_answers_fail_at_once_however_they_are_cut() {
        let alice = credentials();
        let alice = Some(&alice);
        for (credentials, answers, failure) in [
            (None, &[&[5, 0xff][..]][..], Failure::NoMethod),
            (alice, &[&[5, 0xff]], Failure::NoMethod),
            (None, &[&[5, 0x80]], Failure::WrongMethod(0x80)),
            (None, &[&[5, 2]], Failure::WrongMethod(2)),
            (alice, &[&[5, 1]], Failure::WrongMethod(1)),
            (None, &[&[4]], Failure::Protocol),
            (None, &[&[0]], Failure::Protocol),
            (None, &[b"HTTP/1.1 400"], Failure::Protocol),
            (alice, &[&[5, 2], &[1, 1]], Failure::Denied),
            (alice, &[&[5, 2], &[1, 0xff]], Failure::Denied),
            (alice, &[&[5, 2], &[0]], Failure::Protocol),
            (alice, &[&[5, 2], &[2]], Failure::Protocol),
            (None, &[&[5, 0], &[4]], Failure::Protocol),
            (None, &[&[5, 0], &[0]], Failure::Protocol),
            (None, &[&[5, 0], &[5, 1]], Failure::Refused(Reply::GeneralFailure)),
            (None, &[&[5, 0], &[5, 2]], Failure::Refused(Reply::NotAllowed)),
            (None, &[&[5, 0], &[5, 3]], Failure::Refused(Reply::NetworkUnreachable)),
            (None, &[&[5, 0], &[5, 4]], Failure::Refused(Reply::HostUnreachable)),
            (None, &[&[5, 0], &[5, 5]], Failure::Refused(Reply::ConnectionRefused)),
            (None, &[&[5, 0], &[5, 6]], Failure::Refused(Reply::TtlExpired)),
            (None, &[&[5, 0], &[5, 7]], Failure::Refused(Reply::CommandNotSupported)),
            (None, &[&[5, 0], &[5, 8]], Failure::Refused(Reply::AddressTypeNotSupported)),
            (None, &[&[5, 0], &[5, 0xfe]], Failure::Refused(Reply::Other(0xfe))),
            (None, &[&[5, 0], &[5, 5, 0, 1, 0, 0, 0, 0, 0, 0]], Failure::Refused(Reply::ConnectionRefused)),
            (None, &[&[5, 0], &[5, 0, 0, 9]], Failure::Protocol),
            (None, &[&[5, 0], &[5, 0, 0, 0]], Failure::Protocol),
            (None, &[&[5, 0], &[5, 0, 0, 3, 0]], Failure::Protocol),
            // Data before the reply, and a reply before the request.
            (None, &[&[5, 0], b"data before the reply"], Failure::Protocol),
            (None, &[&[5, 0, 5, 0, 0, 1]], Failure::Protocol),
        ] {
            assert_eq!(play_all(credentials, answers), Err(failure), "{answers:?}");
        }
    }

    /// Several servers put the protocol's version into the status message.
    #[test]
    fn an_authentication_status_with_version_5_is_understood() {
        let alice = credentials();
        assert!(play_all(Some(&alice), &[&[5, 2], &[5, 0], GRANTED]).is_ok());
        assert_eq!(play_all(Some(&alice), &[&[5, 2], &[5, 1]]), Err(Failure::Denied));
    }

    #[test]
    fn octets_after_the_grant_are_not_the_handshakes() {
        let mut client = Client::new(None);
        client.request(Command::Connect, target());
        take_output(&mut client);
        client.handle_input(&[5, 0]).unwrap();
        take_output(&mut client);
        client.handle_input(GRANTED).unwrap();
        assert_eq!(client.handle_input(b""), Ok(Progress::Pending));
        assert_eq!(client.handle_input(b"x"), Err(Failure::Protocol));
    }

    #[test]
    fn a_pipelined_client_says_all_at_once_and_offers_one_method() {
        let request = [5, 1, 0, 1, 192, 0, 2, 1, 1, 0xbb];
        let none = [&[5, 1, 0][..], &request].concat();
        let answer = [&[5, 0][..], GRANTED, b"early"].concat();
        assert!(matches!(pipelined(None, &none, &answer), Ok(Progress::Granted { consumed: 12, .. })));
        for (answer, failure) in [
            (&[5, 0xff][..], Failure::NoMethod),
            (&[5, 2], Failure::WrongMethod(2)),
            (&[4], Failure::Protocol),
            (&[5, 0, 5, 5], Failure::Refused(Reply::ConnectionRefused)),
            (&[5, 0, 4], Failure::Protocol),
        ] {
            assert_eq!(pipelined(None, &none, answer), Err(failure));
        }

        let alice = credentials();
        let password = [b"\x05\x01\x02\x01\x05alice\x06secret", &request[..]].concat();
        let answer = [&[5, 2, 1, 0][..], GRANTED].concat();
        assert!(matches!(pipelined(Some(&alice), &password, &answer), Ok(Progress::Granted { .. })));
        for (answer, failure) in [
            (&[5, 0][..], Failure::WrongMethod(0)),
            (&[5, 0xff], Failure::NoMethod),
            (&[5, 2, 1, 1], Failure::Denied),
            (&[5, 2, 1, 0, 5, 2], Failure::Refused(Reply::NotAllowed)),
        ] {
            assert_eq!(pipelined(Some(&alice), &password, answer), Err(failure), "{answer:?}");
        }
    }

    #[test]
    fn a_pipelined_client_takes_its_request_at_any_time_and_once() {
        let alice = credentials();
        let v6 = Endpoint::new("2001:db8::1".parse().unwrap(), 80);
        let answers: [&[u8]; 4] = [&[5], &[2], &[1], &[0]];
        for at in 0..=answers.len() {
            let mut client = Client::pipelined(Some(&alice));
            assert_eq!(take_output(&mut client), b"\x05\x01\x02\x01\x05alice\x06secret");
            for (index, answer) in answers.iter().enumerate() {
                if index == at {
                    client.request(Command::Connect, v6);
                }
                let progress = client.handle_input(answer).unwrap();
                let negotiated = index + 1 == answers.len() && at == answers.len();
                assert_eq!(progress, if negotiated { Progress::Negotiated } else { Progress::Pending });
            }
            client.request(Command::Connect, if at == answers.len() { v6 } else { target() });
            let request = take_output(&mut client);
            assert_eq!((request.len(), &request[..4]), (22, &[5, 1, 0, 4][..]), "only the first counts");
            assert_eq!(client.wants_password(), Some(true));
            assert_eq!(
                client.is_pipelined(),
                at < answers.len(),
                "a request after the negotiation is a step of its own"
            );
            assert!(matches!(client.handle_input(GRANTED), Ok(Progress::Granted { .. })));
        }
        let longest = Credentials { user: "u".repeat(255), password: "p".repeat(255) };
        let mut client = Client::pipelined(Some(&longest));
        client.request(Command::Connect, v6);
        assert_eq!(client.output().len(), 3 + 513 + 22);
    }

    /// Nothing was asked for that has not been written.
    #[test]
    fn a_reply_to_a_pipelined_request_that_is_not_written_is_refused() {
        let mut client = Client::pipelined(None);
        client.request(Command::Connect, target());
        client.wrote(12);
        assert_eq!(client.handle_input(&[5, 0]), Ok(Progress::Pending));
        assert_eq!(client.output(), [0xbb]);
        assert_eq!(client.handle_input(GRANTED), Err(Failure::Protocol));
    }

    #[test]
    fn the_password_is_not_printed() {
        let mut client = Client::new(Some(&credentials()));
        client.handle_input(&[5, 2]).unwrap();
        let secret = format!("{:?}", b"secret");
        assert!(!format!("{client:?}").contains(secret.trim_matches(['[', ']'])));
    }

    proptest! {
        /// Whatever a server says, in whatever portions: no panic, output only ever from the handshake, no more
        /// consumed than fed.
        #[test]
        fn any_server_is_survived(
            with_credentials: bool,
            answers in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..8),
            polite in 0usize..4,
            pipelined: bool,
        ) {
            let alice = credentials();
            let new = if pipelined { Client::pipelined } else { Client::new };
            let mut client = new(with_credentials.then_some(&alice));
            client.request(Command::Connect, target());
            let opening: [&[u8]; 4] = [&[], &[5, 0], &[5, 2, 1, 0], &[5, 0, 5, 0, 0]];
            for answer in opening[..polite.min(3) + 1].iter().copied().chain(answers.iter().map(Vec::as_slice)) {
                take_output(&mut client);
                if let Ok(Progress::Granted { consumed, .. }) = client.handle_input(answer) {
                    prop_assert!(consumed <= answer.len());
                    prop_assert!(client.output().is_empty());
                    break;
                }
            }
        }

        /// One dialogue, cut anywhere, comes to the same end.
        #[test]
        fn a_dialogue_means_the_same_at_any_cut(
            rep in prop_oneof![4 => Just(0u8), 1 => any::<u8>()],
            atyp in prop_oneof![Just(1u8), Just(3), Just(4), any::<u8>()],
            rest in proptest::collection::vec(any::<u8>(), 0..280),
            cuts in proptest::collection::vec(1usize..40, 1..20),
            pipelined: bool,
        ) {
            let mut answer = vec![5, rep, 0, atyp];
            answer.extend(rest);
            let feed = |cuts: &mut dyn Iterator<Item = usize>| {
                let mut client = if pipelined { Client::pipelined(None) } else { Client::new(None) };
                client.request(Command::Connect, target());
                take_output(&mut client);
                client.handle_input(&[5, 0]).unwrap();
                take_output(&mut client);
                let mut fed = 0;
                while fed < answer.len() {
                    let cut = cuts.next().unwrap_or(answer.len()).min(answer.len() - fed);
                    match client.handle_input(&answer[fed..fed + cut]) {
                        Ok(Progress::Granted { bound, consumed }) => return (Ok(bound), fed + consumed),
                        Ok(_) => fed += cut,
                        Err(failure) => return (Err(failure), 0),
                    }
                }
                (Ok(None), usize::MAX)
            };
            prop_assert_eq!(feed(&mut std::iter::empty()), feed(&mut cuts.into_iter()));
        }
    }
}
