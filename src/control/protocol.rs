//! What is said over the control socket: one JSON object a line each way, described in `docs/CONTROL.md`.
//!
//! A request has the version `v`, what is wanted as `request`, and what belongs to that; an `id` comes back with the answer. An answer has either
//! `ok` or `error`. Fields that a reader does not know are to be passed over, so that new ones do no harm: the version changes only when what is
//! there changes its meaning.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

/// The version that this program speaks.
pub const VERSION: u32 = 1;
/// Flows in one answer at most.
pub const MOST_FLOWS: usize = 256;
/// Proxies in one request at most.
pub const MOST_PROXIES: usize = 64;

/// What a request is known by to whoever asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Id {
    /// A number.
    Number(u64),
    /// A text.
    Text(String),
}

/// A line to the router.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Line {
    /// [`VERSION`].
    pub v: u32,
    /// Comes back with the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// What is wanted.
    #[serde(flatten)]
    pub request: Request,
}

/// What is wanted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Whether anybody is there.
    Ping,
    /// A [`Status`].
    Status,
    /// Some [`Flows`].
    Flows {
        /// Where to go on: `next` of the last answer; 0 begins.
        #[serde(default)]
        cursor: u64,
        /// How many at most; no more than [`MOST_FLOWS`] come.
        #[serde(default = "most_flows")]
        limit: usize,
    },
    /// Log at this level from here on.
    LogLevel {
        /// The level.
        level: Level,
    },
    /// Use these proxies from here on.
    Proxy {
        /// In order of preference.
        proxies: Vec<ProxyLine>,
    },
    /// Stop as by SIGTERM.
    Stop,
}

fn most_flows() -> usize {
    MOST_FLOWS
}

/// Levels of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing.
    Off,
    /// What is broken.
    Error,
    /// What needs a person.
    Warn,
    /// What a run does.
    Info,
    /// Names, addresses and flows.
    Debug,
    /// Packets.
    Trace,
}

impl From<Level> for log::LevelFilter {
    fn from(level: Level) -> log::LevelFilter {
        match level {
            Level::Off => log::LevelFilter::Off,
            Level::Error => log::LevelFilter::Error,
            Level::Warn => log::LevelFilter::Warn,
            Level::Info => log::LevelFilter::Info,
            Level::Debug => log::LevelFilter::Debug,
            Level::Trace => log::LevelFilter::Trace,
        }
    }
}

/// A proxy: an address and a port as text, or an object that has user and password too. The loop asks no resolver, so names are none.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ProxyLine {
    /// `"127.0.0.1:1080"`.
    Address(SocketAddr),
    /// `{"addr": "127.0.0.1:1080", "user": "u", "password": "p"}`.
    WithUser {
        /// Where it listens.
        addr: SocketAddr,
        /// User name, 1 to 255 octets.
        user: String,
        /// Password, 1 to 255 octets.
        password: String,
    },
}

impl fmt::Debug for ProxyLine {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProxyLine::Address(addr) => write!(f, "{addr}"),
            ProxyLine::WithUser { addr, .. } => write!(f, "(..)@{addr}"),
        }
    }
}

/// A line from the router: `ok` or `error`, never both.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Answer<T> {
    /// [`VERSION`].
    pub v: u32,
    /// The request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// What was asked for.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub ok: Option<T>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Refused>,
}

fn none<T>() -> Option<T> {
    None
}

/// Why a request was not granted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refused {
    /// For programs.
    pub code: Code,
    /// For people: what is wrong, and what would be right.
    pub what: String,
}

/// Kinds of refusals.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The line is no JSON object, or not one of these.
    BadRequest,
    /// The version is not spoken here.
    Version,
    /// The line is too long. The connection ends.
    TooLong,
    /// A value cannot be used.
    BadValue,
    /// The router is being wound up.
    Stopping,
    /// A code that this reader does not know.
    #[serde(other)]
    Other,
}

/// The answer to everything that has nothing to tell but that it was done.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Done {
    /// What whoever asked should know of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The run at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Time since the loop was started.
    pub uptime_ms: u64,
    /// Whether it carries traffic.
    pub state: RunState,
    /// The device; none while it is gone.
    pub device: Option<DeviceStatus>,
    /// In order of preference.
    pub proxies: Vec<ProxyStatus>,
    /// How many of what there are.
    pub flows: FlowCounts,
    /// Memory of tables and buffers.
    pub memory: MemoryStatus,
    /// The level of the log.
    pub log_level: String,
    /// What was counted since the start, by name.
    pub counters: BTreeMap<String, u64>,
    /// Packets from the device that were not acted on, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Datagrams of proxies that were thrown away, by reason.
    pub rejections: BTreeMap<String, u64>,
}

/// Whether traffic flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// It does.
    Running,
    /// The device is gone, and is being made anew.
    NoDevice,
    /// It is being wound up.
    Stopping,
}

/// The device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// Octets.
    pub mtu: u16,
    /// Whether the kernel segments and sums.
    pub offload: bool,
}

/// A proxy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Whether user and password are offered to it.
    pub credentials: bool,
    /// `null`: nobody has tried yet.
    pub reachable: Option<bool>,
    /// For how long it has not been reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_ms: Option<u64>,
    /// What went wrong last, until something goes right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Connections that wait for a request.
    pub pooled: usize,
}

/// How many of what there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FlowCounts {
    /// TCP flows, those being opened included.
    pub tcp: usize,
    /// Of these, those being opened.
    pub tcp_opening: usize,
    /// Connections in TIME-WAIT.
    pub tcp_time_wait: usize,
    /// Entries for TCP at most, TIME-WAIT included.
    pub tcp_limit: usize,
    /// UDP associations.
    pub udp: usize,
    /// UDP associations at most.
    pub udp_limit: usize,
    /// Connections to proxies that wait for a request.
    pub pooled: usize,
    /// Sockets that are open for flows.
    pub sockets: usize,
    /// DNS queries without an answer yet.
    pub dns: usize,
}

/// Memory, in octets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// Buffers of TCP flows in use.
    pub buffers: usize,
    /// Buffers of TCP flows at most.
    pub buffer_limit: usize,
    /// The table of TCP flows.
    pub tcp_table: usize,
    /// Datagrams that wait for their association.
    pub queued_datagrams: usize,
}

/// Some of the flows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Flows {
    /// These.
    pub flows: Vec<Flow>,
    /// Where to go on; none when these were the last. A list may be empty although others follow.
    pub next: Option<u64>,
}

/// A TCP flow or a UDP association.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Flow {
    /// `tcp` or `udp`.
    pub proto: String,
    /// The app's end.
    pub app: SocketAddr,
    /// The other end; of an association the one that the app addressed last.
    pub to: SocketAddr,
    /// `proxy ADDR`, `direct`, `former proxy`, or `?` while it is not decided or not known any more.
    pub outbound: String,
    /// `identifying`, `parked`, `opening`, `relaying`, `finishing`.
    pub phase: String,
    /// State of the connection with the app (RFC 9293 3.3.2), for TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<String>,
    /// Octets from the app.
    pub up: u64,
    /// Octets to the app.
    pub down: u64,
    /// Time since it began.
    pub age_ms: u64,
    /// Time since anything came or went.
    pub idle_ms: u64,
}

/// A request that was read, with what its answer has to carry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// The request's.
    pub id: Option<Id>,
    /// What is wanted, or what is wrong with the line.
    pub request: Result<Request, Refused>,
}

/// Only what tells whether the rest can be understood.
#[derive(Deserialize)]
struct Head {
    v: Option<u32>,
    id: Option<Id>,
}

/// Reads one line, without its end.
pub fn parse(line: &[u8]) -> Asked {
    let bad = |id, code, what: String| Asked { id, request: Err(Refused { code, what }) };
    let head: Head = match serde_json::from_slice(line) {
        Ok(head) => head,
        Err(error) => return bad(None, Code::BadRequest, told(&error)),
    };
    if head.v != Some(VERSION) {
        return bad(head.id, Code::Version, format!("\"v\" must be {VERSION}"));
    }
    match serde_json::from_slice::<Line>(line) {
        Ok(line) => Asked { id: line.id, request: Ok(line.request) },
        Err(error) => bad(head.id, Code::BadRequest, told(&error)),
    }
}

/// What is wrong with a line. Values are not repeated when one may hold a password.
fn told(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if text.contains('@') || text.contains("password") {
        "a value is not what it should be".into()
    } else {
        text
    }
}

/// One line, with its end.
pub(super) fn line<T: Serialize>(answer: &Answer<T>) -> Vec<u8> {
    // Maps with keys that are no texts, and nothing else, cannot be written; there are none.
    let mut octets = serde_json::to_vec(answer).unwrap_or_default();
    octets.push(b'\n');
    octets
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(text: &str) -> Request {
        parse(text.as_bytes()).request.expect(text)
    }

    fn refused(text: &str) -> Refused {
        parse(text.as_bytes()).request.expect_err(text)
    }

    #[test]
    fn every_request_is_read() {
        assert_eq!(request(r#"{"v":1,"request":"ping"}"#), Request::Ping);
        assert_eq!(request(r#"{"request":"status","v":1,"later":[{}]}"#), Request::Status);
        assert_eq!(request(r#"{"v":1,"request":"flows"}"#), Request::Flows { cursor: 0, limit: MOST_FLOWS });
        assert_eq!(
            request(r#"{"v":1,"request":"flows","cursor":7,"limit":2}"#),
            Request::Flows { cursor: 7, limit: 2 }
        );
        assert_eq!(
            request(r#"{"v":1,"request":"log-level","level":"debug"}"#),
            Request::LogLevel { level: Level::Debug }
        );
        assert_eq!(request(r#"{"v":1,"request":"stop"}"#), Request::Stop);
        let addr = "127.0.0.1:1080".parse().unwrap();
        let with_user =
            ProxyLine::WithUser { addr: "[::1]:1".parse().unwrap(), user: "u".into(), password: "p".into() };
        assert_eq!(
            request(
                r#"{"v":1,"request":"proxy","proxies":["127.0.0.1:1080",{"addr":"[::1]:1","user":"u","password":"p"}]}"#
            ),
            Request::Proxy { proxies: vec![ProxyLine::Address(addr), with_user] }
        );
    }

    #[test]
    fn an_id_comes_back_also_from_a_line_that_is_refused() {
        let asked = parse(br#"{"v":1,"id":7,"request":"what"}"#);
        assert_eq!(asked.id, Some(Id::Number(7)));
        assert_eq!(asked.request.unwrap_err().code, Code::BadRequest);
        assert_eq!(parse(br#"{"v":2,"id":"x","request":"ping"}"#).id, Some(Id::Text("x".into())));
    }

    #[test]
    fn what_is_no_request_is_refused_by_what_is_wrong() {
        for (text, code) in [
            ("", Code::BadRequest),
            ("null", Code::BadRequest),
            ("[]", Code::BadRequest),
            ("status", Code::BadRequest),
            ("{}", Code::Version),
            (r#"{"v":2,"request":"status"}"#, Code::Version),
            (r#"{"v":1}"#, Code::BadRequest),
            (r#"{"v":1,"request":"flows","cursor":-1}"#, Code::BadRequest),
            (r#"{"v":1,"request":"log-level","level":"loud"}"#, Code::BadRequest),
            (r#"{"v":1,"request":"proxy","proxies":["example.com:1080"]}"#, Code::BadRequest),
        ] {
            assert_eq!(refused(text).code, code, "{text}");
        }
        assert_eq!(parse(&b"{\"v\":1,".repeat(1_000)).request.unwrap_err().code, Code::BadRequest);
        assert_eq!(parse(&b"[".repeat(100_000)).request.unwrap_err().code, Code::BadRequest);
    }

    #[test]
    fn a_password_is_neither_printed_nor_repeated() {
        let line =
            r#"{"v":1,"request":"proxy","proxies":[{"addr":"1.1.1.1:1","user":"u","password":"hunter2"}]}"#;
        assert!(!format!("{:?}", request(line)).contains("hunter2"));
        for text in [
            r#"{"v":1,"request":"proxy","proxies":"u:hunter2@1.1.1.1:1"}"#,
            r#"{"v":1,"request":"u:hunter2@1.1.1.1:1"}"#,
            r#"{"v":1,"request":"proxy","proxies":[{"addr":"x","user":"u","password":"hunter2"}]}"#,
        ] {
            assert!(!refused(text).what.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn an_answer_is_one_line_whatever_it_holds() {
        let what = "a\nb\u{1b}".to_owned();
        let error = Some(Refused { code: Code::BadValue, what });
        let octets = line(&Answer::<Done> { v: VERSION, id: Some(Id::Text("\n".into())), ok: None, error });
        assert_eq!(octets.iter().filter(|octet| **octet == b'\n').count(), 1);
        assert!(octets.iter().all(|octet| *octet >= b' ' || *octet == b'\n'));
        let read: Answer<Done> = serde_json::from_slice(&octets).unwrap();
        assert_eq!(read.error.unwrap().code, Code::BadValue);
    }

    proptest! {
        #[test]
        fn no_line_makes_the_reader_panic(octets in prop::collection::vec(any::<u8>(), 0..200)) {
            parse(&octets);
        }

        #[test]
        fn no_json_makes_the_reader_panic(
            head in prop::sample::select(vec!["{\"v\":1,", "{\"v\":1,\"request\":\"proxy\",", "{\"v\":1,\"request\":\"flows\",", "{"]),
            rest in "[\\[\\]{}\",:0-9a-zv-]{0,60}",
        ) {
            parse(format!("{head}{rest}").as_bytes());
        }

        #[test]
        fn what_is_written_is_read_back(id in prop::option::of(any::<u64>()), cursor in any::<u64>(), limit in any::<usize>()) {
            let line = Line { v: VERSION, id: id.map(Id::Number), request: Request::Flows { cursor, limit } };
            let asked = parse(&serde_json::to_vec(&line).unwrap());
            prop_assert_eq!(asked, Asked { id: line.id, request: Ok(line.request) });
        }
    }
}
