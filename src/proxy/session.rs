//! The server's side of one SOCKS5 dialogue, without I/O.
//!
//! The caller feeds what it reads to [`Session::handle_input`] and writes [`Session::output`]. Octets
//! may come in any portions, one at a time or the whole dialogue at once: a message is collected
//! until it is complete, and what follows the request is not consumed, because it is data for the target.
//! A dialogue that failed may still have output (the refusal), after which the connection is closed.

use crate::config::Credentials;
use crate::wire::Endpoint;
use crate::wire::socks5::{Address, Reply};
use core::fmt;
use core::net::{IpAddr, Ipv4Addr};

/// VER of RFC 1928.
const VERSION: u8 = 0x05;
/// VER of RFC 1929, and the two values of STATUS.
const AUTH_VERSION: u8 = 0x01;
const AUTH_SUCCESS: u8 = 0x00;
const AUTH_FAILURE: u8 = 0x01;
/// RFC 1928 3.
const METHOD_NONE: u8 = 0x00;
const METHOD_PASSWORD: u8 = 0x02;
const METHOD_NONE_ACCEPTABLE: u8 = 0xff;
/// The longest message of a client: user and password of 255 octets each.
const MAX_MESSAGE: usize = 1 + 1 + 255 + 1 + 255;
/// Method selection, authentication status, and a reply with an IPv6 address.
const MAX_OUTPUT: usize = 2 + 2 + 22;

/// Who the client wants to reach.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// An address.
    Ip(Endpoint),
    /// A name and a port. The name is not an address in disguise.
    Name(Box<str>, u16),
}

impl Target {
    /// The target of an address field. A name that spells an address is that address; `None` when the name is not
    /// even text.
    pub fn new(address: Address<'_>) -> Option<Target> {
        match address {
            Address::Ip(endpoint) => {
                Some(Target::Ip(Endpoint::new(endpoint.addr.to_canonical(), endpoint.port)))
            }
            Address::Domain(name, port) => {
                let name = core::str::from_utf8(name).ok()?;
                let literal = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
                Some(match literal.parse::<IpAddr>() {
                    Ok(addr) => Target::Ip(Endpoint::new(addr.to_canonical(), port)),
                    Err(_) => Target::Name(name.into(), port),
                })
            }
        }
    }
}

/// What the client wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// A TCP connection to the target.
    Connect(Target),
    /// A UDP relay. The source address that the client announces is not used: most do not know theirs.
    Associate,
}

/// What input has brought about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    /// More input is needed; all input was consumed. There may be new output.
    Pending,
    /// The client made its request; the answer is [`Session::reply`].
    Request {
        /// What it wants.
        request: Request,
        /// Octets of the input that belonged to the dialogue; the rest is for the target.
        consumed: usize,
    },
}

/// The dialogue failed: write the output, if any, then close.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// Not SOCKS5, or malformed.
    Protocol,
    /// No method in common.
    NoMethod,
    /// User or password wrong.
    Denied,
    /// The request cannot be served.
    Unsupported(Reply),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Greeting,
    Authenticating,
    Request,
    /// The request is with the caller, or the dialogue is over.
    Over,
}

/// The state machine.
pub struct Session {
    state: State,
    /// The message that is coming in.
    message: [u8; MAX_MESSAGE],
    received: usize,
    /// Output not yet written is `output[written..end]`.
    output: [u8; MAX_OUTPUT],
    written: usize,
    end: usize,
}

impl Default for Session {
    fn default() -> Session {
        Session::new()
    }
}

impl Session {
    /// A dialogue that awaits the greeting.
    pub fn new() -> Session {
        Session {
            state: State::Greeting,
            message: [0; MAX_MESSAGE],
            received: 0,
            output: [0; MAX_OUTPUT],
            written: 0,
            end: 0,
        }
    }

    /// Octets to be written now; the caller reports with [`Session::wrote`].
    pub fn output(&self) -> &[u8] {
        self.output.get(self.written..self.end).unwrap_or_default()
    }

    /// The first `octets` of [`Session::output`] were written.
    pub fn wrote(&mut self, octets: usize) {
        self.written = self.written.saturating_add(octets).min(self.end);
    }

    /// Feeds octets read from the client. With `credentials` a client must show them, without it needs none.
    pub fn handle_input(
        &mut self,
        input: &[u8],
        credentials: Option<&Credentials>,
    ) -> Result<Progress, Failure> {
        let progress = self.advance(input, credentials);
        if progress.is_err() {
            self.state = State::Over;
        }
        progress
    }

    /// Answers the request: REP and BND (RFC 1928 6).
    pub fn reply(&mut self, reply: Reply, bound: Endpoint) {
        let rep = match reply {
            Reply::Succeeded => 0,
            Reply::GeneralFailure => 1,
            Reply::NotAllowed => 2,
            Reply::NetworkUnreachable => 3,
            Reply::HostUnreachable => 4,
            Reply::ConnectionRefused => 5,
            Reply::TtlExpired => 6,
            Reply::CommandNotSupported => 7,
            Reply::AddressTypeNotSupported => 8,
            Reply::Other(number) => number,
        };
        let mut message = [0; 22];
        message[..3].copy_from_slice(&[VERSION, rep, 0]);
        let len = 3 + Address::Ip(bound).emit(&mut message[3..]);
        self.say(&message[..len]);
    }

    /// Answers the request with a failure, whose BND means nothing.
    pub fn refuse(&mut self, reply: Reply) {
        self.reply(reply, Endpoint::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0));
    }

    fn advance(&mut self, mut input: &[u8], credentials: Option<&Credentials>) -> Result<Progress, Failure> {
        let mut consumed = 0usize;
        while !input.is_empty() {
            if self.state == State::Over {
                // One request to a dialogue: the caller takes what follows as data, not as dialogue.
                return Err(Failure::Protocol);
            }
            let before = self.received;
            let space = &mut self.message[before..];
            let taken = space.len().min(input.len());
            space[..taken].copy_from_slice(&input[..taken]);
            let total = before.saturating_add(taken);
            let Some(used) = message_len(self.state, &self.message[..total])? else {
                // The longest message is as long as the storage.
                self.received = total;
                return Ok(Progress::Pending);
            };
            // The message was not complete without this input, so it ends within it.
            let of_input = used.saturating_sub(before);
            input = input.get(of_input..).unwrap_or_default();
            consumed = consumed.saturating_add(of_input);
            self.received = 0;
            if let Some(request) = self.handle_message(used, credentials)? {
                return Ok(Progress::Request { request, consumed });
            }
        }
        Ok(Progress::Pending)
    }

    /// Acts on the complete message in `self.message[..len]`.
    fn handle_message(
        &mut self,
        len: usize,
        credentials: Option<&Credentials>,
    ) -> Result<Option<Request>, Failure> {
        let message = self.message;
        let message = &message[..len];
        match self.state {
            State::Greeting => {
                let wanted = if credentials.is_some() { METHOD_PASSWORD } else { METHOD_NONE };
                if !message[2..].contains(&wanted) {
                    self.say(&[VERSION, METHOD_NONE_ACCEPTABLE]);
                    return Err(Failure::NoMethod);
                }
                self.say(&[VERSION, wanted]);
                self.state = if credentials.is_some() { State::Authenticating } else { State::Request };
                Ok(None)
            }
            State::Authenticating => {
                let (user, password) = split_auth(message).ok_or(Failure::Protocol)?;
                let admitted = credentials.is_none_or(|wanted| {
                    // Both are compared, whole, so that the time taken does not tell which was wrong.
                    same(user, wanted.user.as_bytes()) & same(password, wanted.password.as_bytes())
                });
                if !admitted {
                    self.say(&[AUTH_VERSION, AUTH_FAILURE]);
                    return Err(Failure::Denied);
                }
                self.say(&[AUTH_VERSION, AUTH_SUCCESS]);
                self.state = State::Request;
                Ok(None)
            }
            State::Request => {
                self.state = State::Over;
                let address = match Address::parse(&message[3..]) {
                    Ok(Some((address, _))) => address,
                    Ok(None) | Err(_) => return self.unsupported(Reply::AddressTypeNotSupported),
                };
                match (message[1], Target::new(address)) {
                    (1, Some(target)) => Ok(Some(Request::Connect(target))),
                    (1, None) => self.unsupported(Reply::HostUnreachable),
                    (3, _) => Ok(Some(Request::Associate)),
                    _ => self.unsupported(Reply::CommandNotSupported),
                }
            }
            State::Over => Err(Failure::Protocol),
        }
    }

    fn unsupported(&mut self, reply: Reply) -> Result<Option<Request>, Failure> {
        self.refuse(reply);
        Err(Failure::Unsupported(reply))
    }

    /// Puts a message behind what is to be written.
    fn say(&mut self, message: &[u8]) {
        if let Some(space) = self.output.get_mut(self.end..self.end.saturating_add(message.len())) {
            space.copy_from_slice(message);
            self.end = self.end.saturating_add(message.len());
        }
    }
}

impl fmt::Debug for Session {
    /// Leaves the message out: it may hold the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("state", &self.state).finish_non_exhaustive()
    }
}

/// The length of the message at the front of `octets`, once enough of it is there to tell that it is complete.
fn message_len(state: State, octets: &[u8]) -> Result<Option<usize>, Failure> {
    let version = if state == State::Authenticating { AUTH_VERSION } else { VERSION };
    if octets.first().is_some_and(|&octet| octet != version) {
        return Err(Failure::Protocol);
    }
    let octet = |at: usize| octets.get(at).map(|&octet| usize::from(octet));
    let len = match state {
        State::Greeting => octet(1).map(|methods| 2 + methods),
        State::Authenticating => {
            octet(1).and_then(|user| octet(2 + user).map(|password| 3 + user + password))
        }
        State::Request => match octet(3) {
            None => None,
            Some(1) => Some(4 + 4 + 2),
            Some(4) => Some(4 + 16 + 2),
            Some(3) => octet(4).map(|name| 4 + 1 + name + 2),
            // Of unknown length: what is there is all that will be looked at.
            Some(_) => Some(4),
        },
        State::Over => None,
    };
    Ok(len.filter(|&len| len <= octets.len()))
}

/// User and password of a complete message of RFC 1929.
fn split_auth(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&user_len, rest) = message.get(1..)?.split_first()?;
    let (user, rest) = rest.split_at_checked(usize::from(user_len))?;
    let (&password_len, rest) = rest.split_first()?;
    Some((user, rest.get(..usize::from(password_len))?))
}

/// Equality in a time that depends on the lengths only.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn alice() -> Credentials {
        Credentials { user: "alice".into(), password: "secret".into() }
    }

    /// Feeds `input` in pieces; gives the end of it, all output, and what was left of the input.
    fn play(
        input: &[u8],
        piece: usize,
        credentials: Option<&Credentials>,
    ) -> (Result<Option<Request>, Failure>, Vec<u8>, usize) {
        let mut session = Session::new();
        let mut output = Vec::new();
        let mut fed = 0;
        for chunk in input.chunks(piece) {
            let progress = session.handle_input(chunk, credentials);
            output.extend_from_slice(session.output());
            session.wrote(session.output().len());
            match progress {
                Ok(Progress::Pending) => fed += chunk.len(),
                Ok(Progress::Request { request, consumed }) => {
                    return (Ok(Some(request)), output, input.len() - fed - consumed);
                }
                Err(failure) => return (Err(failure), output, 0),
            }
        }
        (Ok(None), output, 0)
    }

    fn play_all(
        input: &[u8],
        credentials: Option<&Credentials>,
    ) -> (Result<Option<Request>, Failure>, Vec<u8>, usize) {
        let whole = play(input, input.len(), credentials);
        for piece in 1..input.len() {
            assert_eq!(play(input, piece, credentials), whole, "pieces of {piece}");
        }
        whole
    }

    fn target(text: &str) -> Target {
        Target::Ip(text.parse::<std::net::SocketAddr>().unwrap().into())
    }

    #[test]
    fn a_whole_dialogue_at_once_or_octet_by_octet_leaves_the_data_alone() {
        let input = b"\x05\x02\x00\x02\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x50GET / HTTP/1.0";
        let (request, output, left) = play_all(input, None);
        assert_eq!(request, Ok(Some(Request::Connect(target("192.0.2.1:80")))));
        assert_eq!(output, [5, 0]);
        assert_eq!(left, 14);
    }

    #[test]
    fn names_and_both_families_are_understood() {
        let with = |address: &[u8]| {
            let mut input = vec![5, 1, 0, 5, 1, 0];
            input.extend_from_slice(address);
            play_all(&input, None).0
        };
        assert_eq!(
            with(b"\x03\x0bexample.com\x01\xbb"),
            Ok(Some(Request::Connect(Target::Name("example.com".into(), 443))))
        );
        assert_eq!(
            with(b"\x03\x07127.0.1\x00\x50"),
            Ok(Some(Request::Connect(Target::Name("127.0.1".into(), 80))))
        );
        assert_eq!(with(b"\x03\x09127.0.0.1\x00\x50"), Ok(Some(Request::Connect(target("127.0.0.1:80")))));
        assert_eq!(with(b"\x03\x03::1\x00\x50"), Ok(Some(Request::Connect(target("[::1]:80")))));
        assert_eq!(with(b"\x03\x05[::1]\x00\x50"), Ok(Some(Request::Connect(target("[::1]:80")))));
        let mut mapped = vec![4];
        mapped.extend("::ffff:192.0.2.1".parse::<std::net::Ipv6Addr>().unwrap().octets());
        mapped.extend([0, 80]);
        assert_eq!(with(&mapped), Ok(Some(Request::Connect(target("192.0.2.1:80")))));
    }

    #[test]
    fn credentials_are_demanded_and_checked() {
        let alice = alice();
        let request = b"\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00";
        let mut good = b"\x05\x02\x00\x02\x01\x05alice\x06secret".to_vec();
        good.extend(request);
        assert_eq!(play_all(&good, Some(&alice)), (Ok(Some(Request::Associate)), vec![5, 2, 1, 0], 0));
        for wrong in [&b"\x05alice\x06Secret"[..], b"\x05Alice\x06secret", b"\x05alice\x05secre", b"\x00\x00"]
        {
            let mut bad = b"\x05\x01\x02\x01".to_vec();
            bad.extend(wrong);
            bad.extend(request);
            assert_eq!(play_all(&bad, Some(&alice)), (Err(Failure::Denied), vec![5, 2, 1, 1], 0));
        }
        assert_eq!(play_all(b"\x05\x01\x00", Some(&alice)), (Err(Failure::NoMethod), vec![5, 0xff], 0));
        assert_eq!(play_all(b"\x05\x01\x02", None), (Err(Failure::NoMethod), vec![5, 0xff], 0));
        assert_eq!(play_all(b"\x05\x00", None), (Err(Failure::NoMethod), vec![5, 0xff], 0));
    }

    #[test]
    fn what_cannot_be_served_is_answered_with_its_code() {
        let with = |request: &[u8]| {
            let mut input = vec![5, 1, 0];
            input.extend_from_slice(request);
            let (end, output, _) = play_all(&input, None);
            assert!(end.is_err());
            (output.len(), output.get(3).copied())
        };
        assert_eq!(with(&[5, 2, 0, 1, 0, 0, 0, 0, 0, 0]), (12, Some(7)), "BIND");
        assert_eq!(with(&[5, 9, 0, 1, 0, 0, 0, 0, 0, 0]), (12, Some(7)), "no such command");
        assert_eq!(with(&[5, 1, 0, 9]), (12, Some(8)), "no such address type");
        assert_eq!(with(&[5, 1, 0, 3, 0, 0, 80]), (12, Some(8)), "a name of no octets");
        assert_eq!(with(&[5, 1, 0, 3, 1, 0xff, 0, 80]), (12, Some(4)), "a name that is not text");
    }

    #[test]
    fn other_protocols_are_left_without_a_word() {
        for input in [&b"GET / HTTP/1.0\r\n"[..], b"\x04\x01\x00\x50", b"\x05\x01\x00\x04"] {
            let (end, output, _) = play_all(input, None);
            assert_eq!(end, Err(Failure::Protocol));
            assert!(output.is_empty() || output == [5, 0]);
        }
    }

    #[test]
    fn a_reply_carries_either_family() {
        let mut session = Session::new();
        session.reply(Reply::Succeeded, Endpoint::new("192.0.2.1".parse().unwrap(), 80));
        assert_eq!(session.output(), [5, 0, 0, 1, 192, 0, 2, 1, 0, 80]);
        let mut session = Session::new();
        session.reply(Reply::Succeeded, Endpoint::new("2001:db8::1".parse().unwrap(), 80));
        assert_eq!((session.output().len(), &session.output()[..4]), (22, &[5, 0, 0, 4][..]));
    }

    proptest! {
        #[test]
        fn any_client_is_survived(
            input in proptest::collection::vec(any::<u8>(), 0..700), polite: bool, piece in 1usize..700, password: bool
        ) {
            let alice = alice();
            let mut octets = if polite { vec![5, 2, 0, 2, if password { 1 } else { 5 }] } else { vec![] };
            octets.extend(input);
            let (_, output, left) = play(&octets, piece, password.then_some(&alice));
            prop_assert!(output.len() <= MAX_OUTPUT && left <= octets.len());
        }
    }
}
