//! The apps of the demo: ordinary kernel sockets in a namespace whose only way out is the TUN. Each line says what was done and what came of it.

use super::TARGETS;
use super::targets::{ANSWER, CHUNK, Check, DNS, ECHO, SINK, SOURCE, fill};
use crate::driver::Clock;
use crate::time::{Duration, Instant};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};

/// Exit status when a line has failed.
pub(super) const FAILED: u8 = 100;

/// Octets of a transfer.
const TRANSFER: u64 = 1 << 30;
/// Connections one after the other.
const CONNECTIONS: u32 = 1_000;
/// Datagrams, one at a time.
const DATAGRAMS: u32 = 2_000;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// A port where nobody listens.
const CLOSED: u16 = 9;

/// Runs everything; gives the exit status.
pub(super) fn run(out: &mut impl Write) -> u8 {
    let clock = Clock::new();
    let [v4, v6] = TARGETS;
    let lines: [(&str, &dyn Fn() -> io::Result<String>); 10] = [
        ("TCP download, IPv4", &|| download(v4, &clock)),
        ("TCP upload, IPv4", &|| upload(v4, &clock)),
        ("TCP download, IPv6", &|| download(v6, &clock)),
        ("TCP upload, IPv6", &|| upload(v6, &clock)),
        ("TCP connections", &|| connections(v4, &clock)),
        ("UDP echo", &|| datagrams(v4, &clock)),
        ("DNS query", &|| query(v4, &clock)),
        ("ping, IPv4", &|| ping(v4, &clock)),
        ("ping, IPv6", &|| ping(v6, &clock)),
        ("closed port", &|| refused(v4, &clock)),
    ];
    let mut failures = 0;
    for (name, act) in lines {
        let (mark, text) = match act() {
            Ok(text) => ("ok  ", text),
            Err(error) => {
                failures += 1;
                ("FAIL", error.to_string())
            }
        };
        let written = writeln!(out, "  {mark} {name:<20} {text}").and_then(|()| out.flush());
        if written.is_err() {
            return FAILED;
        }
    }
    if failures == 0 { 0 } else { FAILED }
}

fn connect(target: IpAddr, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::new(target, port), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::other(what.into())
}

fn rate(start: Instant, clock: &Clock) -> String {
    let seconds = clock.now().since(start).as_secs_f64();
    let gigabits = TRANSFER as f64 * 8.0 / 1e9 / seconds;
    format!("1 GiB, every octet compared, {seconds:.2} s: {gigabits:.1} Gb/s")
}

fn download(target: IpAddr, clock: &Clock) -> io::Result<String> {
    let start = clock.now();
    let mut stream = connect(target, SOURCE)?;
    stream.write_all(&TRANSFER.to_le_bytes())?;
    let mut check = Check::default();
    let mut chunk = vec![0; CHUNK];
    loop {
        match stream.read(&mut chunk)? {
            0 => break,
            octets => check.add(&chunk[..octets]),
        }
    }
    if check.position != TRANSFER || !check.good {
        return Err(wrong(format!("{} octets came, right: {}", check.position, check.good)));
    }
    Ok(rate(start, clock))
}

fn upload(target: IpAddr, clock: &Clock) -> io::Result<String> {
    let start = clock.now();
    let mut stream = connect(target, SINK)?;
    let mut chunk = vec![0; CHUNK];
    let mut position = 0;
    while position < TRANSFER {
        fill(&mut chunk, position);
        stream.write_all(&chunk)?;
        position += CHUNK as u64;
    }
    // Half-closed: the verdict still comes back.
    stream.shutdown(Shutdown::Write)?;
    let (mut size, mut good) = ([0; 8], [0]);
    stream.read_exact(&mut size)?;
    stream.read_exact(&mut good)?;
    let size = u64::from_le_bytes(size);
    if size != TRANSFER || good != [1] {
        return Err(wrong(format!("{size} octets arrived, right: {}", good == [1])));
    }
    Ok(rate(start, clock))
}

fn connections(target: IpAddr, clock: &Clock) -> io::Result<String> {
    let start = clock.now();
    for number in 0..CONNECTIONS {
        let mut stream = connect(target, ECHO)?;
        let sent = number.to_le_bytes();
        stream.write_all(&sent)?;
        let mut got = [0; 4];
        stream.read_exact(&mut got)?;
        if got != sent {
            return Err(wrong(format!("connection {number} got another one's octets")));
        }
    }
    let seconds = clock.now().since(start).as_secs_f64();
    let each = f64::from(CONNECTIONS) / seconds;
    Ok(format!("{CONNECTIONS} one after the other, each with an echo: {each:.0} a second"))
}

/// Sends `request` and waits for an answer that `accept` takes.
fn ask(socket: &UdpSocket, request: &[u8], accept: impl Fn(&[u8]) -> bool) -> io::Result<()> {
    socket.send(request)?;
    let mut buffer = [0; 2048];
    loop {
        let octets = socket.recv(&mut buffer)?;
        if accept(buffer.get(..octets).unwrap_or_default()) {
            return Ok(());
        }
    }
}

fn udp(target: IpAddr, port: u16) -> io::Result<UdpSocket> {
    let any: SocketAddr = if target.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.connect((target, port))?;
    Ok(socket)
}

fn datagrams(target: IpAddr, clock: &Clock) -> io::Result<String> {
    let socket = udp(target, ECHO)?;
    let (mut times, mut lost) = (Vec::new(), 0);
    for number in 0..DATAGRAMS {
        let request = number.to_le_bytes();
        let start = clock.now();
        match ask(&socket, &request, |answer| answer == request) {
            Ok(()) => times.push(clock.now().since(start)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                lost += 1;
                if lost > 5 {
                    return Err(wrong("more than 5 datagrams were lost"));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(format!("{DATAGRAMS} there and back, {lost} lost, {}", median(times)))
}

fn median(mut times: Vec<Duration>) -> String {
    times.sort();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    format!("{} µs in the median", middle.as_micros())
}

fn query(target: IpAddr, clock: &Clock) -> io::Result<String> {
    let socket = udp(target, DNS)?;
    let question = b"\x5a\x54\x01\x00\0\x01\0\0\0\0\0\0\x04ztun\x04demo\0\0\x01\0\x01";
    let start = clock.now();
    ask(&socket, question, |answer| answer.starts_with(&question[..2]) && answer.ends_with(&ANSWER))?;
    Ok(format!("ztun.demo has an address, {} µs", clock.now().since(start).as_micros()))
}

fn ping(target: IpAddr, clock: &Clock) -> io::Result<String> {
    // Type, code, checksum (the kernel's), identifier (the kernel's), sequence number.
    let (domain, protocol, request, reply) = match target {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.connect(&SocketAddr::new(target, 0).into())?;
    let socket = UdpSocket::from(socket);
    let mut times = Vec::new();
    for sequence in 0..10 {
        let start = clock.now();
        let message = [request, 0, 0, 0, 0, 0, 0, sequence, b'z', b't', b'u', b'n'];
        ask(&socket, &message, |answer| {
            answer.first() == Some(&reply) && answer.get(6..) == message.get(6..)
        })?;
        times.push(clock.now().since(start));
    }
    Ok(format!("10 of 10 answered by ztun, {}", median(times)))
}

fn refused(target: IpAddr, clock: &Clock) -> io::Result<String> {
    let start = clock.now();
    match connect(target, CLOSED) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            Ok(format!("connection refused, {} µs", clock.now().since(start).as_micros()))
        }
        Err(error) => Err(error),
        Ok(_) => Err(wrong("a port where nobody listens took a connection")),
    }
}
