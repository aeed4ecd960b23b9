//! Every item of the hostile SOCKS5 server list (conformance.md section 4, fault F10): only the flow in question
//! fails, promptly, and for the right reason.
//!
//! First the client's state machine over real connections, then the shipped program: `ztun exec` with one hostile
//! server behind it and an app inside, which is this test program again.

#![cfg(all(feature = "os", unix))]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "tests of a real server need threads and a clock")]

mod hostile;

use hostile::{HostileServer, Message, RelayFault, Script, early_data};
use std::io::{self, BufRead as _, BufReader, Lines, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, ChildStdin, ChildStdout, Command as Process, Stdio};
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

/// `ztun exec` with an app inside that does as it is told, line by line.
struct Routed {
    ztun: Child,
    orders: ChildStdin,
    reports: Lines<BufReader<ChildStdout>>,
}

/// The connect time-out that ztun is given.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const APP: &str = "ZTUN_TEST_HOSTILE_APP";

impl Routed {
    /// `None` when the machine's owner asked to skip what needs namespaces.
    fn start(proxy: SocketAddr, pool: usize) -> Option<Routed> {
        if std::env::var_os("ZTUN_SKIP_NETNS").is_some_and(|value| value == "1") {
            eprintln!("skipped: ZTUN_SKIP_NETNS=1");
            return None;
        }
        let mut ztun = Process::new(env!("CARGO_BIN_EXE_ztun"))
            .args(["exec", "--connect-timeout", "1s", "--pool", &pool.to_string()])
            .args(["--socks5", &format!("alice:secret@{proxy}"), "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "be_an_app"])
            .env(APP, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = ztun.stdin.take().unwrap();
        let reports = BufReader::new(ztun.stdout.take().unwrap()).lines();
        let mut routed = Routed { ztun, orders, reports };
        assert_eq!(
            routed.report(),
            "here",
            "ztun exec needs root or user namespaces; ZTUN_SKIP_NETNS=1 skips this test"
        );
        Some(routed)
    }

    fn report(&mut self) -> String {
        loop {
            match self.reports.next() {
                // What is not a report is the test harness of the app.
                Some(line) => {
                    if let Some((_, report)) = line.unwrap().split_once("> ") {
                        return report.to_owned();
                    }
                }
                None => return "the app is gone".to_owned(),
            }
        }
    }

    fn order(&mut self, order: &str) -> (String, Duration) {
        let start = Instant::now();
        writeln!(self.orders, "{order}").unwrap();
        (self.report(), start.elapsed())
    }

    /// Resident octets and CPU ticks of the program and what it forked, the app left out.
    fn usage(&self) -> (usize, u64) {
        let mut usage = (0, 0);
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
            let Some((head, tail)) = stat.rsplit_once(") ") else { continue };
            let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
            let (pid, name) = head.split_once(" (").unwrap();
            let own = [pid, fields[1]].contains(&self.ztun.id().to_string().as_str());
            if own && name == "ztun" {
                usage.0 += fields[21].parse::<usize>().unwrap() * 4_096;
                usage.1 += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
            }
        }
        usage
    }

    /// The app ends, and ztun with it.
    fn finish(mut self) {
        drop(self.orders);
        assert!(self.ztun.wait().unwrap().success(), "ztun exec ends as its command does");
    }
}

#[test]
#[ignore = "not a test: the app of Routed"]
fn be_an_app() {
    assert!(std::env::var_os(APP).is_some(), "only Routed starts this");
    let report = |text: &str| {
        let mut stdout = io::stdout();
        writeln!(stdout, "> {text}").unwrap();
        stdout.flush().unwrap();
    };
    report("here");
    for order in io::stdin().lines() {
        let order = order.unwrap();
        let done = match order.split_once(' ') {
            Some(("tcp", early)) => tcp_app(early.parse().unwrap()),
            Some(("udp", exchanges)) => Ok(udp_app(exchanges.parse().unwrap())),
            _ => panic!("no such order: {order}"),
        };
        report(&done.unwrap_or_else(|error| format!("failed: {:?}", error.kind())));
    }
}

/// Connects, reads `early` octets of data that come unasked, and has four octets echoed.
fn tcp_app(early: usize) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&target().into(), Duration::from_secs(20))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut data = vec![0; early];
    stream.read_exact(&mut data)?;
    if data != early_data(early) {
        return Ok("the early data is wrong".into());
    }
    stream.write_all(b"ping")?;
    let mut echo = [0; 4];
    stream.read_exact(&mut echo)?;
    Ok(if &echo == b"ping" { "echoed".into() } else { format!("echoed {echo:?}") })
}

/// Has datagrams echoed, each tried a few times as DNS clients do; tells how many were, and what else came.
fn udp_app(exchanges: u8) -> String {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let target = SocketAddr::from(target());
    let (mut good, mut foreign, mut wrong) = (0, 0, 0);
    let mut buffer = vec![0; 65_536];
    'exchange: for number in 0..exchanges {
        for _ in 0..4 {
            socket.send_to(&[b'd', number], target).unwrap();
            while let Ok((octets, from)) = socket.recv_from(&mut buffer) {
                match &buffer[..octets] {
                    _ if from != target => foreign += 1,
                    [b'd', echoed] if *echoed == number => {
                        good += 1;
                        continue 'exchange;
                    }
                    // Of a try before.
                    [b'd', echoed] if *echoed < number => {}
                    _ => wrong += 1,
                }
            }
        }
        break;
    }
    format!("good {good} foreign {foreign} wrong {wrong}")
}

/// How the app must see a script, and how soon.
fn seen_by_app(script: Script) -> (&'static [&'static str], Duration) {
    let late = CONNECT_TIMEOUT + PROMPT;
    match expected(script) {
        Outcome::Granted(..) => (&["echoed"], PROMPT),
        Outcome::TimedOut => (&["failed: HostUnreachable", "failed: ConnectionRefused"], late),
        Outcome::Failed(Failure::Refused(Reply::NetworkUnreachable)) => {
            (&["failed: NetworkUnreachable"], PROMPT)
        }
        Outcome::Failed(Failure::Refused(Reply::NotAllowed | Reply::HostUnreachable | Reply::TtlExpired)) => {
            (&["failed: HostUnreachable"], PROMPT)
        }
        Outcome::Failed(_) => (&["failed: ConnectionRefused"], PROMPT),
        Outcome::Closed => (&["failed: ConnectionRefused", "failed: HostUnreachable"], PROMPT),
    }
}

/// F10: through the shipped program, every script fails its own flow only, and leaves nothing behind.
#[test]
fn the_program_survives_every_tcp_script() {
    let server = HostileServer::start(Script::Healthy);
    let Some(mut routed) = Routed::start(server.addr(), 0) else { return };
    let scripts = Script::tcp(Duration::from_millis(5), Duration::from_millis(200));
    let mut settled = 0;
    for round in 0..3 {
        for &script in scripts.iter().chain([&Script::Late(Duration::from_secs(60))]) {
            let slow = matches!(script, Script::SilentAfter(_) | Script::Late(_));
            if slow && round > 0 {
                continue;
            }
            server.set_script(script);
            let early = if let Script::EarlyData(len) = script { len } else { 0 };
            let (seen, took) = routed.order(&format!("tcp {early}"));
            let (wanted, limit) = seen_by_app(script);
            assert!(wanted.contains(&seen.as_str()), "{script:?}: {seen}");
            assert!(took < limit, "{script:?} took {took:?}");
            server.set_script(Script::Healthy);
            let (seen, took) = routed.order("tcp 0");
            assert_eq!(seen, "echoed", "after {script:?}");
            assert!(took < PROMPT, "after {script:?}: {took:?}");
        }
        if round == 0 {
            settled = routed.usage().0;
        }
    }
    let (resident, before) = routed.usage();
    assert!(settled > 0 && resident < settled + (4 << 20), "{settled} octets resident, then {resident}");
    std::thread::sleep(Duration::from_secs(1)); // The span over which it is measured.
    let spent = routed.usage().1 - before;
    assert!(spent < 20, "{spent} ticks of 10 ms in a second with nothing to do");
    routed.finish();
}

/// `--pool` never adds a failure, whatever happened to the connections that were kept.
#[test]
fn the_program_replaces_pooled_connections_that_went_bad() {
    let server = HostileServer::start(Script::Healthy);
    let Some(mut routed) = Routed::start(server.addr(), 4) else { return };
    for script in [Script::CloseAfter(2), Script::ResetAfter(2), Script::Version(4), Script::Method(0xff)] {
        for _ in 0..6 {
            server.set_script(script);
            routed.order("tcp 0");
            server.set_script(Script::Healthy);
            let (seen, took) = routed.order("tcp 0");
            assert_eq!(seen, "echoed", "after {script:?}");
            assert!(took < PROMPT, "after {script:?}: {took:?}");
        }
    }
    routed.finish();
}

/// F10, Z5: a relay's faults cost the datagram in question, and an association that ends is made anew.
#[test]
fn the_program_survives_every_relay_fault() {
    let server = HostileServer::start(Script::Healthy);
    let Some(mut routed) = Routed::start(server.addr(), 0) else { return };
    // An address out in the world is left out: datagrams to it would leave this machine.
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    for fault in Script::udp(local) {
        server.set_script(Script::Relay(fault));
        let (seen, _) = routed.order("udp 3");
        match fault {
            RelayFault::PortZero => assert_eq!(seen, "good 0 foreign 0 wrong 0", "{fault:?}"),
            // Its length and its source are the relay's to say.
            RelayFault::Largest | RelayFault::OtherRemote => {
                assert!(seen.starts_with("good 3"), "{fault:?}: {seen}")
            }
            RelayFault::None
            | RelayFault::Frag(_)
            | RelayFault::Reserved
            | RelayFault::DomainSource
            | RelayFault::Short
            | RelayFault::ForeignPort
            | RelayFault::ForeignAddress
            | RelayFault::Bound(_)
            | RelayFault::ControlClosed => assert_eq!(seen, "good 3 foreign 0 wrong 0", "{fault:?}"),
        }
        server.set_script(Script::Healthy);
        assert_eq!(routed.order("udp 1").0, "good 1 foreign 0 wrong 0", "after {fault:?}");
    }
    routed.finish();
}
