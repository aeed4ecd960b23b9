//! The embedded SOCKS5 server against real sockets on loopback.
//!
//! The server runs on a thread of its own, or in a child process where a test needs limits or
//! signals; clients and targets are ordinary blocking sockets with time-outs.

#![cfg(all(feature = "os", unix))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "tests of a real server need threads and a clock")]

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command as Process, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use ztun::config::Credentials;
use ztun::outbound::socks5::{Client, Failure, Progress, associate};
use ztun::proxy::{ProxyConfig, Server, Stop};
use ztun::wire::Endpoint;
use ztun::wire::socks5::{Command, Reply};

/// Nothing in these tests takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server on a thread; ends with the value.
struct Running {
    addr: SocketAddr,
    stop: Stop,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Running {
    fn start(config: ProxyConfig) -> Running {
        let mut server = Server::bind(config).unwrap();
        let (addr, stop) = (server.local_addr().unwrap(), server.stop_handle());
        Running { addr, stop, thread: Some(thread::spawn(move || server.serve())) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.stop().unwrap();
        let served = self.thread.take().unwrap().join();
        if !thread::panicking() {
            served.unwrap().unwrap();
        }
    }
}

fn config() -> ProxyConfig {
    ProxyConfig { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), ..ProxyConfig::default() }
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A dialogue by the sans-IO client, reading at most `piece` octets at once.
fn dialogue(
    stream: &mut TcpStream,
    credentials: Option<&Credentials>,
    command: Command,
    target: SocketAddr,
    piece: usize,
) -> Result<Option<Endpoint>, Failure> {
    let mut client = Client::new(credentials);
    client.request(command, target.into());
    let mut buffer = vec![0; piece];
    loop {
        while !client.output().is_empty() {
            let len = client.output().len().min(piece);
            stream.write_all(&client.output()[..len]).unwrap();
            client.wrote(len);
        }
        let octets = stream.read(&mut buffer).unwrap();
        assert_ne!(octets, 0, "closed in mid-dialogue");
        if let Progress::Granted { bound, consumed } = client.handle_input(&buffer[..octets])? {
            assert_eq!(consumed, octets, "nothing follows a reply unasked");
            return Ok(bound);
        }
    }
}

fn connect_through(proxy: SocketAddr, target: SocketAddr) -> Result<TcpStream, Failure> {
    let mut stream = connect(proxy);
    // Octet by octet: a target that speaks at once is not to be read along with the reply.
    dialogue(&mut stream, None, Command::Connect, target, 1).map(|_| stream)
}

/// Octets that tell their position.
fn pattern(at: usize, len: usize) -> Vec<u8> {
    (at..at + len).map(|at| (at.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

const BLOCK: usize = 60_000;

fn send_pattern(stream: &mut TcpStream, total: usize) {
    for at in (0..total).step_by(BLOCK) {
        stream.write_all(&pattern(at, BLOCK.min(total - at))).unwrap();
    }
}

/// Reads to the end; every octet must be where it belongs.
fn expect_pattern(stream: &mut TcpStream, total: usize) {
    let mut at = 0;
    let mut buffer = vec![0; BLOCK];
    loop {
        let octets = stream.read(&mut buffer).unwrap();
        if octets == 0 {
            break;
        }
        assert_eq!(buffer[..octets], pattern(at, octets), "between {at} and {}", at + octets);
        at += octets;
    }
    assert_eq!(at, total);
}

fn is_at_end(stream: &mut TcpStream) -> bool {
    matches!(stream.read(&mut [0; 1]), Ok(0))
}

fn alice() -> Credentials {
    Credentials { user: "alice".into(), password: "secret".into() }
}

/// Z1, Z4: both directions at once, whole and in order.
#[test]
fn bulk_data_crosses_both_ways_unaltered() {
    const TOTAL: usize = 32 << 20;
    let proxy = Running::start(config());
    let (listener, target) = listener();
    let far = thread::spawn(move || {
        let mut stream = accept(&listener);
        let mut sender = stream.try_clone().unwrap();
        let sending = thread::spawn(move || {
            send_pattern(&mut sender, TOTAL);
            sender.shutdown(Shutdown::Write).unwrap();
        });
        expect_pattern(&mut stream, TOTAL);
        sending.join().unwrap();
    });
    let mut near = connect_through(proxy.addr, target).unwrap();
    let mut sender = near.try_clone().unwrap();
    let sending = thread::spawn(move || {
        send_pattern(&mut sender, TOTAL);
        sender.shutdown(Shutdown::Write).unwrap();
    });
    expect_pattern(&mut near, TOTAL);
    sending.join().unwrap();
    far.join().unwrap();
}

/// Z4: the end of one direction leaves the other alone.
#[test]
fn either_side_may_end_first_and_still_receive() {
    const TOTAL: usize = 3 << 20;
    let proxy = Running::start(config());
    let (listener, target) = listener();
    let mut near = connect_through(proxy.addr, target).unwrap();
    let mut far = accept(&listener);
    near.write_all(b"request").unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    let mut request = Vec::new();
    far.read_to_end(&mut request).unwrap();
    assert_eq!(request, b"request");
    let answering = thread::spawn(move || send_pattern(&mut far, TOTAL));
    expect_pattern(&mut near, TOTAL);
    answering.join().unwrap();

    let mut near = connect_through(proxy.addr, target).unwrap();
    let mut far = accept(&listener);
    far.shutdown(Shutdown::Write).unwrap();
    assert!(is_at_end(&mut near));
    let sending = thread::spawn(move || send_pattern(&mut near, TOTAL));
    expect_pattern(&mut far, TOTAL);
    sending.join().unwrap();
}

/// Conformance 40: what was lost shows.
#[test]
fn a_reset_of_one_side_resets_the_other() {
    let proxy = Running::start(config());
    let (listener, target) = listener();
    let mut near = connect_through(proxy.addr, target).unwrap();
    let far = accept(&listener);
    socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
    drop(far);
    assert_eq!(near.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);

    let near = connect_through(proxy.addr, target).unwrap();
    let mut far = accept(&listener);
    socket2::SockRef::from(&near).set_linger(Some(Duration::ZERO)).unwrap();
    drop(near);
    assert_eq!(far.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

/// A sender that nobody reads is stopped by its window, and one that resets meanwhile is noticed.
#[test]
fn a_receiver_that_stalls_stops_the_sender_and_loses_nothing() {
    const TOTAL: usize = 24 << 20;
    let proxy = Running::start(config());
    let (listener, target) = listener();
    let mut near = connect_through(proxy.addr, target).unwrap();
    let mut far = accept(&listener);
    near.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut sent = 0;
    let block = loop {
        let block = pattern(sent, BLOCK);
        match near.write(&block) {
            Ok(octets) => sent += octets,
            Err(error) => break error.kind(),
        }
        assert!(sent < 512 << 20, "nobody reads, and the sender goes on");
    };
    assert!(matches!(block, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{block:?}");
    near.set_write_timeout(Some(PATIENCE)).unwrap();
    let total = sent.max(TOTAL);
    let sending = thread::spawn(move || near.write_all(&pattern(sent, total - sent)).unwrap());
    expect_pattern(&mut far, total);
    sending.join().unwrap();

    let mut near = connect_through(proxy.addr, target).unwrap();
    let far = accept(&listener);
    near.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    while near.write(&[0; BLOCK]).is_ok() {}
    socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
    drop(far);
    let error = near.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

/// Z2: octet by octet, and all at once with data behind it.
#[test]
fn a_dialogue_may_come_in_any_portions() {
    let proxy = Running::start(ProxyConfig { credentials: Some(alice()), ..config() });
    let (listener, target) = listener();
    let mut near = connect(proxy.addr);
    dialogue(&mut near, Some(&alice()), Command::Connect, target, 1).unwrap();
    near.write_all(b"hello").unwrap();
    let mut greeting = [0; 5];
    accept(&listener).read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"hello");

    let mut near = connect(proxy.addr);
    let mut all = b"\x05\x01\x02\x01\x05alice\x06secret\x05\x01\x00\x01\x7f\x00\x00\x01".to_vec();
    all.extend(target.port().to_be_bytes());
    all.extend(b"early");
    near.write_all(&all).unwrap();
    let mut far = accept(&listener);
    far.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"early");
    far.write_all(b"late").unwrap();
    let mut answer = [0; 2 + 2 + 10 + 4];
    near.read_exact(&mut answer).unwrap();
    assert_eq!(&answer[..8], b"\x05\x02\x01\x00\x05\x00\x00\x01");
    assert_eq!(&answer[14..], b"late");
}

/// Z1
#[test]
fn only_who_shows_the_credentials_gets_in() {
    let proxy = Running::start(ProxyConfig { credentials: Some(alice()), ..config() });
    let (_listener, target) = listener();
    let with = |credentials: Option<&Credentials>| {
        let mut stream = connect(proxy.addr);
        let end = dialogue(&mut stream, credentials, Command::Connect, target, 64);
        if end.is_err() {
            assert!(is_at_end(&mut stream), "who is turned away is closed, not reset");
        }
        end
    };
    assert!(with(Some(&alice())).is_ok());
    assert_eq!(with(Some(&Credentials { password: "guess".into(), ..alice() })), Err(Failure::Denied));
    assert_eq!(with(None), Err(Failure::NoMethod));
}

#[test]
fn what_cannot_be_reached_is_said_with_its_reason() {
    let proxy = Running::start(ProxyConfig { connect_timeout: Duration::from_millis(400), ..config() });
    let refused = |target: &str| connect_through(proxy.addr, target.parse().unwrap()).map(drop);
    let (closed, addr) = listener();
    drop(closed);
    assert_eq!(refused(&addr.to_string()), Err(Failure::Refused(Reply::ConnectionRefused)));

    // A listen queue that is full answers no SYN: the nearest thing to a black hole on loopback.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    full.listen(0).unwrap();
    let addr = full.local_addr().unwrap().as_socket().unwrap();
    let _filling: Vec<_> =
        (0..4).map(|_| TcpStream::connect_timeout(&addr, Duration::from_millis(100))).collect();
    let start = Instant::now();
    assert_eq!(refused(&addr.to_string()), Err(Failure::Refused(Reply::TtlExpired)));
    assert!(start.elapsed() < Duration::from_secs(5));

    let mut bind = connect(proxy.addr);
    let end = dialogue(&mut bind, None, Command::Bind, "127.0.0.1:1".parse().unwrap(), 64);
    assert_eq!(end, Err(Failure::Refused(Reply::CommandNotSupported)));
}

/// The names of the hosts file, and the second address when the first does not answer.
#[test]
fn a_name_is_resolved_and_its_addresses_are_tried_in_turn() {
    let proxy = Running::start(config());
    let by_name = |name: &str, port: u16| {
        let mut stream = connect(proxy.addr);
        let mut request = vec![5, 1, 0, 5, 1, 0, 3, name.len() as u8];
        request.extend(name.bytes());
        request.extend(port.to_be_bytes());
        stream.write_all(&request).unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        answer[3]
    };
    let (v4, addr) = listener();
    assert_eq!(by_name("localhost", addr.port()), 0);
    accept(&v4);
    let v6 = TcpListener::bind("[::1]:0").unwrap();
    assert_eq!(
        by_name("ztun.localhost", v6.local_addr().unwrap().port()),
        0,
        "127.0.0.1 refuses, ::1 takes it"
    );
    assert_eq!(by_name("127.0.0.1", addr.port()), 0);
    assert_eq!(by_name("no..name", 80), 4);
}

/// Z5: both families through one association, sources told truly, foreign and malformed datagrams unheard.
#[test]
fn datagrams_go_out_and_come_back_and_the_relay_dies_with_its_connection() {
    let proxy = Running::start(config());
    let mut control = connect(proxy.addr);
    let bound = dialogue(&mut control, None, Command::UdpAssociate, "0.0.0.0:0".parse().unwrap(), 64);
    let relay = associate::relay_address(bound.unwrap(), proxy.addr).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = vec![0; 65_536];
    for target in ["127.0.0.1:0", "[::1]:0"] {
        let far = UdpSocket::bind(target).unwrap();
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        let addr = far.local_addr().unwrap();
        for size in [0, 1, 1_400, 9_000, 65_000] {
            let data = pattern(size, size);
            let mut datagram = vec![0; associate::MAX_HEADER];
            let len = associate::encapsulate(addr.into(), &mut datagram);
            datagram.truncate(len);
            datagram.extend(&data);
            // None of these may reach the target before the good one.
            for (at, octet) in [(0, 1), (2, 1), (2, 0x80), (3, 9)] {
                let mut bad = datagram.clone();
                // Short: what cannot arrive needs no room in the socket's queue, which the good one needs.
                bad.truncate(len + 64);
                bad[at] = octet;
                client.send_to(&bad, relay).unwrap();
            }
            client.send_to(&datagram[..3], relay).unwrap();
            client.send_to(&datagram, relay).unwrap();
            let (octets, from) = far.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..octets], data);
            far.send_to(&buffer[..octets], from).unwrap();
            let (octets, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!(from, relay);
            assert_eq!(associate::decapsulate(&buffer[..octets]), Ok((addr.into(), &data[..])));
        }
    }
    // A name, and somebody else on the client's own machine.
    let far = UdpSocket::bind("127.0.0.1:0").unwrap();
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut named = b"\x00\x00\x00\x03\x09localhost".to_vec();
    named.extend(far.local_addr().unwrap().port().to_be_bytes());
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut foreign = named.clone();
    foreign.extend(b"foreign");
    stranger.send_to(&foreign, relay).unwrap();
    named.extend(b"named");
    client.send_to(&named, relay).unwrap();
    let (octets, _) = far.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..octets], b"named");

    drop(control);
    // The socket is closed when its port can be bound again.
    let start = Instant::now();
    while UdpSocket::bind(relay).is_err() {
        assert!(start.elapsed() < PATIENCE, "the relay outlives its connection");
        thread::yield_now();
    }
}

/// A client may end as soon as it has sent: what is in the relay's queue by then is passed on.
#[test]
fn datagrams_that_a_client_sent_before_it_ended_are_passed_on() {
    const BURST: u8 = 200;
    let proxy = Running::start(config());
    let far = UdpSocket::bind("127.0.0.1:0").unwrap();
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut datagram = vec![0; 10];
    associate::encapsulate(far.local_addr().unwrap().into(), &mut datagram);
    datagram.push(0);
    for round in 0..50 {
        let mut control = connect(proxy.addr);
        let bound = dialogue(&mut control, None, Command::UdpAssociate, "0.0.0.0:0".parse().unwrap(), 64);
        let relay: SocketAddr = bound.unwrap().unwrap().into();
        for number in 0..BURST {
            datagram[10] = number;
            client.send_to(&datagram, relay).unwrap();
        }
        drop(control);
        for number in 0..BURST {
            let mut buffer = [0; 16];
            let (octets, _) = far.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..octets], [number], "round {round}");
        }
    }
}

/// An association is for the machine that asked for it.
#[test]
fn a_relay_hears_only_the_address_of_its_client() {
    let proxy = Running::start(config());
    let mut control = connect(proxy.addr);
    let bound = dialogue(&mut control, None, Command::UdpAssociate, "0.0.0.0:0".parse().unwrap(), 64);
    let relay: SocketAddr = bound.unwrap().unwrap().into();
    let far = UdpSocket::bind("127.0.0.1:0").unwrap();
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    let send = |source: &str, data: &[u8]| {
        let client = UdpSocket::bind(source).unwrap();
        let mut datagram = vec![0; 10];
        associate::encapsulate(far.local_addr().unwrap().into(), &mut datagram);
        datagram.extend(data);
        client.send_to(&datagram, relay).unwrap();
    };
    send("127.0.0.2:0", b"stranger");
    send("127.0.0.1:0", b"client");
    let mut buffer = [0; 16];
    let (octets, _) = far.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..octets], b"client");
}

#[test]
fn five_hundred_clients_are_served_at_once() {
    const CLIENTS: usize = 500;
    let proxy = Running::start(config());
    let (listener, target) = listener();
    let mut pairs: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let near = connect_through(proxy.addr, target).unwrap();
            (near, accept(&listener))
        })
        .collect();
    for (number, (near, _)) in pairs.iter_mut().enumerate() {
        near.write_all(&pattern(number, 1_000)).unwrap();
        near.shutdown(Shutdown::Write).unwrap();
    }
    for (number, (near, far)) in pairs.iter_mut().enumerate().rev() {
        let mut received = Vec::new();
        far.read_to_end(&mut received).unwrap();
        assert_eq!(received, pattern(number, 1_000));
        far.write_all(&pattern(number + 1, 1_000)).unwrap();
        far.shutdown(Shutdown::Write).unwrap();
        received.clear();
        near.read_to_end(&mut received).unwrap();
        assert_eq!(received, pattern(number + 1, 1_000));
    }
}

#[test]
fn a_full_server_lets_clients_wait_and_serves_them_when_one_leaves() {
    let proxy = Running::start(ProxyConfig { max_connections: 1, ..config() });
    let (_listener, target) = listener();
    let first = connect_through(proxy.addr, target).unwrap();
    let mut second = connect(proxy.addr);
    second.write_all(&[5, 1, 0]).unwrap();
    second.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(second.read(&mut [0; 2]).is_err(), "the server is full");
    second.set_read_timeout(Some(PATIENCE)).unwrap();
    drop((first, _listener));
    let mut answer = [0; 2];
    second.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [5, 0]);
}

#[test]
fn who_says_nothing_or_moves_nothing_is_closed() {
    let proxy = Running::start(ProxyConfig {
        connect_timeout: Duration::from_millis(300),
        idle: Duration::from_millis(600),
        ..config()
    });
    let mut silent = connect(proxy.addr);
    silent.write_all(&[5]).unwrap();
    assert!(is_at_end(&mut silent));
    let (listener, target) = listener();
    let mut near = connect_through(proxy.addr, target).unwrap();
    let mut far = accept(&listener);
    let start = Instant::now();
    assert_eq!(near.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(far.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert!(start.elapsed() >= Duration::from_millis(500));
}

#[test]
fn a_client_that_leaves_while_its_target_is_dialled_frees_its_place() {
    let proxy = Running::start(ProxyConfig { max_connections: 1, ..config() });
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    full.listen(0).unwrap();
    let addr = full.local_addr().unwrap().as_socket().unwrap();
    let _filling: Vec<_> =
        (0..4).map(|_| TcpStream::connect_timeout(&addr, Duration::from_millis(100))).collect();
    let mut leaving = connect(proxy.addr);
    let mut request = vec![5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1];
    request.extend(addr.port().to_be_bytes());
    leaving.write_all(&request).unwrap();
    leaving.read_exact(&mut [0; 2]).unwrap();
    socket2::SockRef::from(&leaving).set_linger(Some(Duration::ZERO)).unwrap();
    drop(leaving);
    let (_listener, target) = listener();
    let start = Instant::now();
    connect_through(proxy.addr, target).unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "well before the time-out of the dial");
}

/// The server as a process, for limits and signals: this test program, told to be one.
struct ChildServer {
    child: Child,
    addr: SocketAddr,
}

const CHILD: &str = "ZTUN_TEST_PROXY_CHILD";

impl ChildServer {
    fn start(nofile: usize) -> ChildServer {
        let mut child = Process::new("sh")
            .arg("-c")
            .arg(format!("ulimit -n {nofile} && exec \"$0\" --ignored --exact --nocapture be_a_server"))
            .arg(std::env::current_exe().unwrap())
            .env(CHILD, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let addr = loop {
            let line = lines.next().unwrap().unwrap();
            if let Some((_, addr)) = line.split_once("listening on ") {
                break addr.parse().unwrap();
            }
        };
        // Whatever it says later is not waited for.
        thread::spawn(move || lines.for_each(drop));
        ChildServer { child, addr }
    }

    fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    fn signal(&self, name: &str) {
        let sent = Process::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for ChildServer {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

#[test]
#[ignore = "not a test: the server of ChildServer"]
fn be_a_server() {
    assert!(std::env::var_os(CHILD).is_some(), "only ChildServer starts this");
    let mut server = Server::bind(config()).unwrap();
    let addr = server.local_addr().unwrap();
    let ready = || {
        let mut stdout = io::stdout();
        writeln!(stdout, "listening on {addr}").unwrap();
        stdout.flush().unwrap();
    };
    server.run(ready).unwrap();
}

/// F15: out of descriptors, it keeps what it has, refuses or queues the new, and does not spin.
#[test]
fn out_of_descriptors_old_connections_go_on_and_new_ones_wait() {
    let server = ChildServer::start(40);
    let (listener, target) = listener();
    let mut near = connect_through(server.addr, target).unwrap();
    let mut far = accept(&listener);
    let crowd: Vec<_> = (0..80).map(|_| connect(server.addr)).collect();
    // With every descriptor taken there is none to dial with for a client that was let in.
    let mut first = crowd[0].try_clone().unwrap();
    let end = dialogue(&mut first, None, Command::Connect, target, 64);
    assert_eq!(end, Err(Failure::Refused(Reply::GeneralFailure)));
    let before = server.cpu_ticks();
    thread::sleep(Duration::from_millis(1_000)); // The span over which it is measured.
    let spent = server.cpu_ticks() - before;
    assert!(spent < 20, "{spent} ticks of 10 ms in a second with nothing to do");
    near.write_all(b"still here").unwrap();
    let mut received = [0; 10];
    far.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"still here");
    drop((crowd, first));
    connect_through(server.addr, target).unwrap();
}

#[test]
fn a_signal_ends_it_cleanly_also_with_clients() {
    for name in ["TERM", "INT"] {
        let mut server = ChildServer::start(256);
        let (listener, target) = listener();
        let mut near = connect_through(server.addr, target).unwrap();
        let mut far = accept(&listener);
        server.signal(name);
        assert!(server.child.wait().unwrap().success(), "SIG{name}");
        assert!(is_at_end(&mut near) && is_at_end(&mut far));
        // Its port is free at once (L5).
        let again = Server::bind(ProxyConfig { listen: server.addr, ..config() }).unwrap();
        assert_eq!(again.local_addr().unwrap(), server.addr);
    }
}

#[test]
fn a_listener_on_the_unspecified_ipv6_address_serves_both_families() {
    let proxy = Running::start(ProxyConfig { listen: "[::]:0".parse().unwrap(), ..config() });
    let port = proxy.addr.port();
    for loopback in ["127.0.0.1", "::1"] {
        let addr = SocketAddr::new(loopback.parse::<IpAddr>().unwrap(), port);
        let (_listener, target) = listener();
        connect_through(addr, target).unwrap();
        let mut control = connect(addr);
        let bound = dialogue(&mut control, None, Command::UdpAssociate, "0.0.0.0:0".parse().unwrap(), 64);
        assert_eq!(bound.unwrap().unwrap().addr.to_string(), loopback);
    }
}
