//! Every item of the hostile SOCKS5 server list (conformance.md section 4, fault F10): only the flow in question
//! fails, promptly, and for the right reason.
//!
//! First the client's state machine over real connections.

#![cfg(all(feature = "os", unix))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "tests of a real server need threads and a clock")]

mod hostile;

use hostile::{HostileServer, Message, RelayFault, Script, early_data};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};
use ztun::config::Credentials;
use ztun::outbound::socks5::associate::{self, Rejected, Rejections};
use ztun::outbound::socks5::{Client, Failure, Progress};
use ztun::wire::Endpoint;
use ztun::wire::socks5::{Command, Reply};

/// What is prompt: loopback, with room for a machine that is busy with other tests.
const PROMPT: Duration = Duration::from_secs(2);
/// The time that a client gives a server.
const PATIENCE: Duration = Duration::from_millis(1_000);

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// Granted; the octets that came behind the reply.
    Granted(Option<Endpoint>, Vec<u8>),
    Failed(Failure),
    /// The connection ended in mid-dialogue.
    Closed,
    /// [`PATIENCE`] was over.
    TimedOut,
}

fn dialogue(stream: &mut TcpStream, command: Command, target: Endpoint) -> Outcome {
    let start = Instant::now();
    let credentials = Credentials { user: "alice".into(), password: "secret".into() };
    let mut client = Client::new(Some(&credentials));
    client.request(command, target);
    let mut buffer = vec![0; 128 * 1024];
    loop {
        while !client.output().is_empty() {
            match stream.write(client.output()) {
                Ok(octets) => client.wrote(octets),
                Err(_) => return Outcome::Closed,
            }
        }
        let Some(left) = PATIENCE.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) else {
            return Outcome::TimedOut;
        };
        stream.set_read_timeout(Some(left)).unwrap();
        let octets = match stream.read(&mut buffer) {
            Ok(0) => return Outcome::Closed,
            Ok(octets) => octets,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Outcome::TimedOut;
            }
            Err(_) => return Outcome::Closed,
        };
        match client.handle_input(&buffer[..octets]) {
            Ok(Progress::Pending | Progress::Negotiated) => {}
            Ok(Progress::Granted { bound, consumed }) => {
                return Outcome::Granted(bound, buffer[consumed..octets].to_vec());
            }
            Err(failure) => return Outcome::Failed(failure),
        }
    }
}

fn target() -> Endpoint {
    Endpoint::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 80)
}

/// What each script must come to.
fn expected(script: Script) -> Outcome {
    let bound = Some(Endpoint::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8_080));
    match script {
        Script::Healthy | Script::SlowReader | Script::Dribble(_) => Outcome::Granted(bound, vec![]),
        // How much of the data comes with the reply is the network's affair.
        Script::EarlyData(_) => Outcome::Granted(bound, vec![]),
        Script::Domain(0) => Outcome::Failed(Failure::Protocol),
        Script::Domain(_) => Outcome::Granted(None, vec![]),
        Script::Late(late) if late < PATIENCE => Outcome::Granted(bound, vec![]),
        Script::Late(_) | Script::SilentAfter(_) => Outcome::TimedOut,
        Script::Method(0xff) => Outcome::Failed(Failure::NoMethod),
        Script::Method(method) => Outcome::Failed(Failure::WrongMethod(method)),
        Script::Version(_)
        | Script::ReplyVersion(_)
        | Script::Atyp(_)
        | Script::DataBeforeReply
        | Script::AuthVersion(_) => Outcome::Failed(Failure::Protocol),
        Script::AuthStatus(_) => Outcome::Failed(Failure::Denied),
        Script::CloseAfter(_) | Script::ResetAfter(_) => Outcome::Closed,
        Script::Rep(rep) | Script::ShortRep(rep) | Script::EndlessRep(rep) => {
            Outcome::Failed(Failure::Refused(Reply::from(rep)))
        }
        Script::Relay(_) => unreachable!("not a script for CONNECT"),
    }
}

/// F10, conformance 58 and 60
#[test]
fn every_tcp_script_comes_to_its_end_promptly() {
    let mut scripts = Script::tcp(Duration::from_millis(10), Duration::from_millis(200));
    scripts.extend([Script::Healthy, Script::Late(Duration::from_secs(60))]);
    for script in scripts {
        let server = HostileServer::start(script);
        let mut stream = TcpStream::connect(server.addr()).unwrap();
        let start = Instant::now();
        let outcome = dialogue(&mut stream, Command::Connect, target());
        let took = start.elapsed();
        match (outcome, expected(script)) {
            (Outcome::Granted(bound, mut early), Outcome::Granted(wanted, _)) => {
                assert_eq!(bound, wanted, "{script:?}");
                if let Script::EarlyData(len) = script {
                    let got = early.len();
                    early.resize(len, 0);
                    stream.set_read_timeout(Some(PROMPT)).unwrap();
                    stream.read_exact(&mut early[got..]).unwrap();
                    assert!(early == early_data(len), "early data is the target's, all of it");
                } else {
                    assert!(early.is_empty(), "{script:?}");
                    stream.set_read_timeout(Some(PROMPT)).unwrap();
                    stream.write_all(b"ping").unwrap();
                    let mut echo = [0; 4];
                    stream.read_exact(&mut echo).unwrap();
                    assert_eq!(&echo, b"ping", "{script:?}");
                }
            }
            (outcome, expected) => assert_eq!(outcome, expected, "{script:?}"),
        }
        assert!(took < PROMPT, "{script:?} took {took:?}");
    }
}

/// Z5, conformance 59: what a relay does wrong costs the datagram in question and no other.
#[test]
fn every_relay_fault_is_survived_and_counted() {
    let routed = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
    for fault in Script::udp(routed) {
        let server = HostileServer::start(Script::Relay(fault));
        let mut control = TcpStream::connect(server.addr()).unwrap();
        let outcome =
            dialogue(&mut control, Command::UdpAssociate, associate::associate_target(server.addr()));
        let Outcome::Granted(bound, _) = outcome else { panic!("{fault:?}: {outcome:?}") };
        let relay = associate::relay_address(bound, server.addr());
        if fault == RelayFault::PortZero {
            assert_eq!(relay, None);
            continue;
        }
        let relay = relay.unwrap();
        if fault == RelayFault::Bound(routed) {
            assert_eq!(relay.ip(), routed, "a public address is believed; the socket to it is kept outside");
            continue;
        }
        assert_eq!(relay.ip(), server.addr().ip(), "{fault:?}");
        assert_eq!(exchange(relay, 3), expected_exchange(fault), "{fault:?}");
        if fault == RelayFault::ControlClosed {
            control.set_read_timeout(Some(PROMPT)).unwrap();
            assert_eq!(control.read(&mut [0; 1]).unwrap(), 0, "the association is over");
        }
    }
}

/// What came back of some datagrams.
#[derive(Debug, PartialEq, Eq, Default)]
struct Exchanged {
    good: usize,
    /// From a remote end that nothing was sent to: to be delivered under its own name, or not at all.
    other_remote: usize,
    oversized: usize,
    rejections: Rejections,
}

/// Sends `count` datagrams one after the other through the relay, as an association does: on a connected
/// socket, so that nobody else is heard.
fn exchange(relay: SocketAddr, count: usize) -> Exchanged {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.connect(relay).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut exchanged = Exchanged::default();
    let mut buffer = vec![0; 65_536];
    for number in 0..count {
        let data = [b'd', number as u8];
        let mut datagram = vec![0; associate::MAX_HEADER];
        let len = associate::encapsulate(target(), &mut datagram);
        datagram.truncate(len);
        datagram.extend(data);
        socket.send(&datagram).unwrap();
        loop {
            // A relay that is gone is told by ICMP or by silence.
            let Ok(octets) = socket.recv(&mut buffer) else { return exchanged };
            match associate::decapsulate(&buffer[..octets]) {
                Err(rejected) => exchanged.rejections.count(rejected),
                Ok((remote, _)) if remote != target() => exchanged.other_remote += 1,
                Ok((_, received)) if received.len() > data.len() => exchanged.oversized += 1,
                Ok((_, received)) => {
                    assert_eq!(received, data);
                    exchanged.good += 1;
                    break;
                }
            }
        }
    }
    exchanged
}

fn expected_exchange(fault: RelayFault) -> Exchanged {
    let mut expected = Exchanged { good: 3, ..Exchanged::default() };
    let mut reject = |rejected| (0..3).for_each(|_| expected.rejections.count(rejected));
    match fault {
        RelayFault::Frag(_) => reject(Rejected::Fragment),
        RelayFault::Reserved => reject(Rejected::Reserved),
        RelayFault::DomainSource => reject(Rejected::Domain),
        RelayFault::Short => reject(Rejected::Truncated),
        RelayFault::Largest => expected.oversized = 3,
        RelayFault::OtherRemote => expected.other_remote = 3,
        RelayFault::ControlClosed => expected.good = 1,
        RelayFault::None
        | RelayFault::ForeignPort
        | RelayFault::ForeignAddress
        | RelayFault::PortZero
        | RelayFault::Bound(_) => {}
    }
    expected
}

/// A server that stays silent keeps nothing and nobody else waiting.
#[test]
fn a_hostile_server_does_not_touch_the_dialogue_with_a_healthy_one() {
    let silent = HostileServer::start(Script::SilentAfter(Message::Greeting));
    let healthy = HostileServer::start(Script::Healthy);
    let stuck: Vec<_> = (0..8).map(|_| TcpStream::connect(silent.addr()).unwrap()).collect();
    let start = Instant::now();
    let mut stream = TcpStream::connect(healthy.addr()).unwrap();
    assert!(matches!(dialogue(&mut stream, Command::Connect, target()), Outcome::Granted(..)));
    assert!(start.elapsed() < PROMPT);
    assert_eq!(healthy.served(), 1);
    drop(stuck);
}
