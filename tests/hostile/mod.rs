//! A SOCKS5 server on loopback that misbehaves as told: one item of the hostile list each.
//!
//! It dials nobody. What it grants it plays itself: a granted CONNECT is an echo, a granted UDP ASSOCIATE a
//! relay whose every target echoes. A [`HostileServer`] serves any number of clients by its script until it
//! is dropped, which closes them all; [`HostileServer::set_script`] changes what clients find that come later.

#![allow(unreachable_pub, reason = "a module of a test has nobody outside")]
#![allow(clippy::wildcard_enum_match_arm, reason = "a script departs from the ordinary in one place")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a server of blocking sockets needs threads and a clock")]

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What a relay does with a datagram, besides echoing it properly afterwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RelayFault {
    /// Nothing but the echo.
    None,
    /// First an echo with this FRAG.
    Frag(u8),
    /// First an echo with RSV other than 0.
    Reserved,
    /// First an echo whose source is a domain name.
    DomainSource,
    /// First three octets.
    Short,
    /// First a datagram of 65,507 octets, the longest there is, from the right source.
    Largest,
    /// First an echo from another port of the proxy.
    ForeignPort,
    /// First an echo from another address of the proxy.
    ForeignAddress,
    /// First an echo in the name of another remote end.
    OtherRemote,
    /// BND.PORT is 0.
    PortZero,
    /// BND.ADDR is this; the relay is where the proxy is.
    Bound(IpAddr),
    /// The control connection is closed at the first datagram, which is echoed before.
    ControlClosed,
}

/// How the server behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Script {
    /// As it should.
    Healthy,
    /// Correct, but each octet by itself with this pause in between.
    Dribble(Duration),
    /// Chooses this method.
    Method(u8),
    /// VER of the method selection.
    Version(u8),
    /// VER of the reply.
    ReplyVersion(u8),
    /// Ends the connection after this many octets of a correct handshake (of 12).
    CloseAfter(usize),
    /// Resets it there.
    ResetAfter(usize),
    /// Refuses the request with this REP and closes.
    Rep(u8),
    /// Refuses the request with this REP, says no more and keeps the connection open.
    ShortRep(u8),
    /// Refuses the request with this REP and never stops talking.
    EndlessRep(u8),
    /// Grants with an address type that does not exist.
    Atyp(u8),
    /// Grants with a domain name of this many octets as BND.ADDR.
    Domain(u8),
    /// Grants, with this many octets of data in the same write.
    EarlyData(usize),
    /// Sends data where the reply should be.
    DataBeforeReply,
    /// Says nothing after the connection, the greeting, the request.
    SilentAfter(Message),
    /// Answers the request this much later.
    Late(Duration),
    /// Grants, and then reads one octet at a time through the smallest window there is.
    SlowReader,
    /// Demands user and password, and answers with this status.
    AuthStatus(u8),
    /// Demands user and password, and answers with this version and success.
    AuthVersion(u8),
    /// Grants an association with this fault.
    Relay(RelayFault),
}

/// A message of the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Message {
    /// Not even that.
    None,
    /// The greeting.
    Greeting,
    /// The request.
    Request,
}

impl Script {
    /// The TCP part of the list with `pause` for what is slow and `late` for what is late.
    pub(crate) fn tcp(pause: Duration, late: Duration) -> Vec<Script> {
        let mut scripts = vec![
            Script::Dribble(pause),
            Script::Method(0x80),
            Script::Method(0xff),
            Script::Version(4),
            Script::Version(0),
            Script::ReplyVersion(4),
            Script::ReplyVersion(0),
            Script::Atyp(9),
            Script::Atyp(0),
            Script::Domain(0),
            Script::Domain(1),
            Script::Domain(255),
            Script::EarlyData(64 * 1024),
            Script::DataBeforeReply,
            Script::SilentAfter(Message::None),
            Script::SilentAfter(Message::Greeting),
            Script::SilentAfter(Message::Request),
            Script::Late(late),
            Script::SlowReader,
            Script::AuthStatus(1),
            Script::AuthStatus(0xff),
            Script::AuthVersion(0),
            Script::AuthVersion(2),
        ];
        scripts.extend((0..12).flat_map(|octets| [Script::CloseAfter(octets), Script::ResetAfter(octets)]));
        scripts.extend((1..=9).chain([0x80, 0xff]).map(Script::Rep));
        scripts.extend([1, 5].map(Script::ShortRep));
        scripts.extend([1, 5].map(Script::EndlessRep));
        scripts
    }

    /// The UDP part of the list; `routed` is an address that a tunnel would take.
    pub(crate) fn udp(routed: IpAddr) -> Vec<RelayFault> {
        vec![
            RelayFault::None,
            RelayFault::Frag(1),
            RelayFault::Frag(0x80),
            RelayFault::Reserved,
            RelayFault::DomainSource,
            RelayFault::Short,
            RelayFault::Largest,
            RelayFault::ForeignPort,
            RelayFault::ForeignAddress,
            RelayFault::OtherRemote,
            RelayFault::PortZero,
            RelayFault::Bound(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            RelayFault::Bound(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 1))),
            RelayFault::Bound(IpAddr::V4(Ipv4Addr::new(10, 11, 12, 13))),
            RelayFault::Bound(routed),
            RelayFault::ControlClosed,
        ]
    }

    fn method(self) -> u8 {
        match self {
            Script::Method(method) => method,
            Script::AuthStatus(_) | Script::AuthVersion(_) => 2,
            _ => 0,
        }
    }
}

/// What server and clients have in common.
struct State {
    script: Mutex<Script>,
    ending: AtomicBool,
    served: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
}

/// The running server.
pub(crate) struct HostileServer {
    addr: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl HostileServer {
    /// Starts one on a free port of 127.0.0.1.
    pub(crate) fn start(script: Script) -> HostileServer {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        socket.listen(256).unwrap();
        let listener = TcpListener::from(socket);
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State {
            script: Mutex::new(script),
            ending: AtomicBool::new(false),
            served: AtomicUsize::new(0),
            open: Mutex::new(Vec::new()),
        });
        let shared = Arc::clone(&state);
        let thread = thread::spawn(move || {
            let mut clients = Vec::new();
            for stream in listener.incoming().flatten() {
                if shared.ending.load(Ordering::SeqCst) {
                    break;
                }
                shared.served.fetch_add(1, Ordering::SeqCst);
                shared.open.lock().unwrap().push(stream.try_clone().unwrap());
                let (shared, script) = (Arc::clone(&shared), *shared.script.lock().unwrap());
                clients.push(thread::spawn(move || {
                    // A client that leaves in the middle is an error here and no concern of a test.
                    if let Err(error) = serve(stream, script, &shared) {
                        log::trace!("{script:?}: {error}");
                    }
                }));
            }
            clients.into_iter().for_each(|client| client.join().unwrap());
        });
        HostileServer { addr, state, thread: Some(thread) }
    }

    /// What the clients that come from here on find.
    pub(crate) fn set_script(&self, script: Script) {
        *self.state.script.lock().unwrap() = script;
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many clients have come.
    pub(crate) fn served(&self) -> usize {
        self.state.served.load(Ordering::SeqCst)
    }
}

impl Drop for HostileServer {
    fn drop(&mut self) {
        self.state.ending.store(true, Ordering::SeqCst);
        // Wakes the one that accepts; those that serve wake when their connection ends under them.
        drop(TcpStream::connect(self.addr));
        for stream in self.state.open.lock().unwrap().drain(..) {
            match stream.shutdown(Shutdown::Both) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                Err(error) => log::debug!("a client was gone: {error}"),
            }
        }
        let ended = self.thread.take().unwrap().join();
        if !thread::panicking() {
            ended.unwrap();
        }
    }
}

/// The server's side of one connection, which may end after a number of octets.
struct Voice<'a> {
    stream: TcpStream,
    script: Script,
    said: usize,
    state: &'a State,
}

impl Voice<'_> {
    fn say(&mut self, octets: &[u8]) -> io::Result<()> {
        let (limit, pause) = match self.script {
            Script::CloseAfter(limit) | Script::ResetAfter(limit) => (limit, None),
            Script::Dribble(pause) => (usize::MAX, Some(pause)),
            _ => (usize::MAX, None),
        };
        let piece = if pause.is_some() { 1 } else { octets.len().max(1) };
        for piece in octets[..octets.len().min(limit - self.said)].chunks(piece) {
            if let Some(pause) = pause {
                self.pause(pause)?;
            }
            self.stream.write_all(piece)?;
            self.said += piece.len();
        }
        if self.said == limit {
            if matches!(self.script, Script::ResetAfter(_)) {
                socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))?;
            }
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    /// Waits, at most until the server is dropped.
    fn pause(&mut self, mut time: Duration) -> io::Result<()> {
        while !time.is_zero() {
            let step = time.min(Duration::from_millis(50));
            thread::sleep(step); // The slowness is what the script is about.
            time -= step;
            if self.state.ending.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
        Ok(())
    }

    /// Reads and forgets until the client ends.
    fn outlast(&mut self) -> io::Result<()> {
        while self.stream.read(&mut [0; 4_096])? > 0 {}
        Ok(())
    }

    fn read<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut octets = [0; N];
        self.stream.read_exact(&mut octets)?;
        Ok(octets)
    }

    fn read_vec(&mut self, len: u8) -> io::Result<Vec<u8>> {
        let mut octets = vec![0; len.into()];
        self.stream.read_exact(&mut octets)?;
        Ok(octets)
    }
}

impl Drop for Voice<'_> {
    /// The clone that the server keeps must not hold the connection open.
    fn drop(&mut self) {
        let this = self.stream.peer_addr().ok();
        self.state.open.lock().unwrap().retain(|other| other.peer_addr().ok() != this);
    }
}

fn serve(stream: TcpStream, script: Script, state: &State) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if script == Script::SlowReader {
        // The kernel makes it its minimum.
        socket2::SockRef::from(&stream).set_recv_buffer_size(1)?;
    }
    let mut voice = Voice { stream, script, said: 0, state };
    if script == Script::SilentAfter(Message::None) {
        return voice.outlast();
    }
    let [_, methods] = voice.read()?;
    voice.read_vec(methods)?;
    // "After 0 octets" too is after the greeting: closing before would be a proxy that is not there.
    voice.say(&[])?;
    match script {
        Script::SilentAfter(Message::Greeting) => return voice.outlast(),
        Script::Version(version) => voice.say(&[version, 0])?,
        _ => voice.say(&[5, script.method()])?,
    }
    if script.method() == 2 {
        let [_, user] = voice.read()?;
        voice.read_vec(user)?;
        let [password] = voice.read()?;
        voice.read_vec(password)?;
        match script {
            Script::AuthStatus(status) => voice.say(&[1, status])?,
            Script::AuthVersion(version) => voice.say(&[version, 0])?,
            _ => voice.say(&[1, 0])?,
        }
    }
    if script == Script::DataBeforeReply {
        voice.say(b"HTTP/1.1 200 OK\r\n\r\n")?;
        return voice.outlast();
    }
    let [_, command, _, atyp] = voice.read()?;
    let address_len = match atyp {
        1 => 4,
        4 => 16,
        _ => voice.read::<1>()?[0],
    };
    voice.read_vec(address_len)?;
    voice.read::<2>()?;
    if command == 3 {
        let fault = if let Script::Relay(fault) = script { fault } else { RelayFault::None };
        return associate(voice, fault);
    }
    answer(&mut voice)?;
    echo(&mut voice)
}

/// The reply to a CONNECT; an error when there is nothing to follow it.
fn answer(voice: &mut Voice<'_>) -> io::Result<()> {
    const GRANTED: [u8; 10] = [5, 0, 0, 1, 127, 0, 0, 1, 0x1f, 0x90];
    match voice.script {
        Script::SilentAfter(Message::Request) => voice.outlast()?,
        Script::ReplyVersion(version) => voice.say(&[version, 0, 0, 1, 127, 0, 0, 1, 0x1f, 0x90])?,
        Script::Rep(rep) => {
            voice.say(&[5, rep, 0, 1, 0, 0, 0, 0, 0, 0])?;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Script::ShortRep(rep) => {
            voice.say(&[5, rep])?;
            voice.outlast()?;
        }
        Script::EndlessRep(rep) => {
            voice.say(&[5, rep])?;
            loop {
                voice.say(&[0; 4_096])?;
            }
        }
        Script::Atyp(atyp) => {
            voice.say(&[5, 0, 0, atyp])?;
            voice.outlast()?;
        }
        Script::Domain(len) => {
            let mut reply = vec![5, 0, 0, 3, len];
            reply.extend(vec![b'x'; len.into()]);
            reply.extend([0x1f, 0x90]);
            voice.say(&reply)?;
        }
        Script::EarlyData(len) => {
            let mut reply = GRANTED.to_vec();
            reply.extend(early_data(len));
            voice.say(&reply)?;
        }
        Script::Late(late) => {
            voice.pause(late)?;
            voice.say(&GRANTED)?;
        }
        _ => voice.say(&GRANTED)?,
    }
    Ok(())
}

/// The data of [`Script::EarlyData`].
pub(crate) fn early_data(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// A target that gives back what it gets, then its end.
fn echo(voice: &mut Voice<'_>) -> io::Result<()> {
    let slow = voice.script == Script::SlowReader;
    let mut buffer = vec![0; if slow { 1 } else { 65_536 }];
    loop {
        let octets = voice.stream.read(&mut buffer)?;
        if octets == 0 {
            return voice.stream.shutdown(Shutdown::Write);
        }
        if slow {
            voice.pause(Duration::from_millis(20))?;
        }
        voice.stream.write_all(&buffer[..octets])?;
    }
}

/// A granted UDP ASSOCIATE: echoes until its connection ends.
fn associate(mut voice: Voice<'_>, fault: RelayFault) -> io::Result<()> {
    let relay = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let stranger = match fault {
        RelayFault::ForeignAddress => UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), 0))?,
        _ => UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?,
    };
    let port = relay.local_addr()?.port();
    let (addr, port) = match fault {
        RelayFault::PortZero => (IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
        RelayFault::Bound(addr) => (addr, port),
        _ => (IpAddr::V4(Ipv4Addr::LOCALHOST), port),
    };
    let mut reply = vec![5, 0, 0];
    match addr {
        IpAddr::V4(addr) => {
            reply.push(1);
            reply.extend(addr.octets());
        }
        IpAddr::V6(addr) => {
            reply.push(4);
            reply.extend(addr.octets());
        }
    }
    reply.extend(port.to_be_bytes());
    voice.say(&reply)?;

    // The relay lives as long as the control connection, which another thread watches.
    let control = voice.stream.try_clone()?;
    let waker = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let (wake, relay_addr) = (waker.local_addr()?, relay.local_addr()?);
    let watching = thread::spawn(move || {
        let mut control = control;
        while control.read(&mut [0; 64]).is_ok_and(|octets| octets > 0) {}
        waker.send_to(b"", relay_addr).unwrap();
    });
    let mut buffer = vec![0; 65_536];
    loop {
        let (octets, from) = relay.recv_from(&mut buffer)?;
        if from == wake {
            break;
        }
        misbehave(&relay, &stranger, &buffer[..octets], from, fault)?;
        relay.send_to(&buffer[..octets], from)?;
        if fault == RelayFault::ControlClosed {
            voice.stream.shutdown(Shutdown::Both)?;
            break;
        }
    }
    watching.join().unwrap();
    Ok(())
}

fn misbehave(
    relay: &UdpSocket,
    stranger: &UdpSocket,
    datagram: &[u8],
    client: SocketAddr,
    fault: RelayFault,
) -> io::Result<()> {
    let mut bad = datagram.to_vec();
    let mut socket = relay;
    match fault {
        RelayFault::Frag(frag) => bad[2] = frag,
        RelayFault::Reserved => bad[0] = 1,
        RelayFault::DomainSource => bad = b"\x00\x00\x00\x03\x09localhost\x00\x35bad".to_vec(),
        RelayFault::Short => bad.truncate(3),
        RelayFault::Largest => bad.resize(65_507, 0xbb),
        RelayFault::ForeignPort | RelayFault::ForeignAddress => socket = stranger,
        // The first octet of the address, whatever its family.
        RelayFault::OtherRemote => bad[4] ^= 1,
        RelayFault::None | RelayFault::PortZero | RelayFault::Bound(_) | RelayFault::ControlClosed => {
            return Ok(());
        }
    }
    if fault != RelayFault::Largest && fault != RelayFault::Short {
        // So that it cannot be taken for the good one.
        if let Some(last) = bad.last_mut() {
            *last = !*last;
        }
    }
    socket.send_to(&bad, client).map(|_| ())
}
