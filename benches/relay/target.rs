//! The far end: what the contestants' connections lead to, and a SOCKS5 server that is its own target.

use crate::Res;
use crate::batch::{Batch, Slot};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Socket, Type};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::thread;

/// Takes all until an octet [`LAST`] ends what was read, and then says how much it was: 8 octets, the highest first. (An end of file would do, but for
/// tunnels that know no half-closed connection.)
pub(crate) const SINK: u16 = 7001;
/// Sends until it is cut off.
pub(crate) const SOURCE: u16 = 7002;
/// Sends back what comes.
pub(crate) const ECHO: u16 = 7003;
/// Sends datagrams back.
pub(crate) const UDP_ECHO: u16 = 7004;
/// Answers every question with one address.
pub(crate) const DNS: u16 = 53;
/// A SOCKS5 server that is its own target: every CONNECT leads to an echo, every association to [`RELAY`].
pub(crate) const TERMINATOR: u16 = 1081;
/// Its relay of datagrams, which answers them itself.
const RELAY: u16 = 7005;

/// Ends what is sent to [`SINK`]; nothing before it has this value.
pub(crate) const LAST: u8 = 0xee;

/// One read or write of a bulk stream.
pub(crate) const CHUNK: usize = 256 << 10;

/// Listens on every address of this namespace, with room for a burst of connections.
pub(crate) fn listen(port: u16) -> Res<std::net::TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Serves until killed.
pub(crate) fn run(_args: &[String]) -> Res<()> {
    serve(SINK, sink)?;
    serve(SOURCE, source)?;
    let udp = datagram_socket(UDP_ECHO)?;
    thread::spawn(move || answer(&udp, |_| {}));
    let relays = datagram_socket(RELAY)?;
    thread::spawn(move || answer(&relays, relay));
    let dns = datagram_socket(DNS)?;
    thread::spawn(move || answer(&dns, resolve));
    let echoes = Echoes::new()?;
    println!("ready");
    echoes.run()
}

/// Gives each connection to `port` a thread: a bulk stream is a blocking copy.
fn serve(port: u16, each: fn(std::net::TcpStream) -> io::Result<()>) -> Res<()> {
    let listener = listen(port)?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A stream that was cut off is how each of them ends.
            thread::spawn(move || each(stream).ok());
        }
    });
    Ok(())
}

fn sink(mut stream: std::net::TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut taken = 0u64;
    loop {
        let len = stream.read(&mut buffer)?;
        taken += len as u64;
        match buffer[..len].last() {
            None => return Ok(()),
            Some(&LAST) => stream.write_all(&taken.to_be_bytes())?,
            Some(_) => {}
        }
    }
}

fn source(mut stream: std::net::TcpStream) -> io::Result<()> {
    let buffer = vec![0x5a; CHUNK];
    loop {
        stream.write_all(&buffer)?;
    }
}

fn datagram_socket(port: u16) -> Res<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_recv_buffer_size(4 << 20)?;
    socket.set_send_buffer_size(4 << 20)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
    Ok(socket.into())
}

/// Sends each datagram back as `make` leaves it.
fn answer(socket: &UdpSocket, make: fn(&mut Slot)) {
    let mut batch = Batch::new();
    loop {
        let Ok(slots) = batch.recv(socket) else { continue };
        let count = slots.len();
        slots.iter_mut().for_each(make);
        batch.send(socket, count, true);
    }
}

/// Makes a query an answer with one address record (RFC 1035 4.1).
fn resolve(slot: &mut Slot) {
    resolve_behind(0, slot);
}

/// What a relay's client sends comes back as from whom it was sent to; names are resolved.
fn relay(slot: &mut Slot) {
    /// Header of a datagram to an IPv4 address (RFC 1928 7), and where its port is.
    const HEADER: usize = 10;
    if slot.len >= HEADER && slot.octets[3] == 1 && slot.octets[8..HEADER] == DNS.to_be_bytes() {
        resolve_behind(HEADER, slot);
    }
}

/// Answers the query that begins at `start`.
fn resolve_behind(start: usize, slot: &mut Slot) {
    const ANSWER: [u8; 16] = [0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1];
    // Additional records (EDNS) are cut off; the question has to end before them.
    let mut end = start + 12;
    while let Some(&label) = slot.octets[..slot.len].get(end) {
        end += 1 + usize::from(label);
        if label == 0 {
            break;
        }
    }
    // Type and class.
    end += 4;
    if end > slot.len || end + ANSWER.len() > slot.octets.len() {
        return;
    }
    let message = &mut slot.octets[start..];
    message[2] |= 0x80;
    message[3] = 0x80;
    message[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
    slot.octets[end..end + ANSWER.len()].copy_from_slice(&ANSWER);
    slot.len = end + ANSWER.len();
}

/// What an echoing connection has still to say before it echoes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Greeting,
    Request,
    Echo,
}

struct Echo {
    stream: TcpStream,
    stage: Stage,
    /// Octets of an unfinished greeting or request.
    pending: Vec<u8>,
}

/// All echoing connections, on one poll loop: ten thousand of them wait at a time.
struct Echoes {
    poll: Poll,
    listeners: [(TcpListener, Stage); 2],
    connections: slab::Slab<Echo>,
    buffer: Vec<u8>,
}

const FIRST_CONNECTION: usize = 2;

impl Echoes {
    fn new() -> Res<Echoes> {
        let poll = Poll::new()?;
        let open = |port, token, stage| -> Res<(TcpListener, Stage)> {
            let listener = listen(port)?;
            listener.set_nonblocking(true)?;
            let mut listener = TcpListener::from_std(listener);
            poll.registry().register(&mut listener, Token(token), Interest::READABLE)?;
            Ok((listener, stage))
        };
        let listeners = [open(ECHO, 0, Stage::Echo)?, open(TERMINATOR, 1, Stage::Greeting)?];
        Ok(Echoes { poll, listeners, connections: slab::Slab::new(), buffer: vec![0; 64 << 10] })
    }

    fn run(mut self) -> Res<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            }
            for event in &events {
                match event.token().0.checked_sub(FIRST_CONNECTION) {
                    None => self.accept(event.token().0),
                    Some(key) => {
                        let Some(connection) = self.connections.get_mut(key) else { continue };
                        if !matches!(serve_echo(connection, &mut self.buffer), Ok(true)) {
                            self.connections.remove(key);
                        }
                    }
                }
            }
        }
    }

    fn accept(&mut self, index: usize) {
        let (listener, stage) = &self.listeners[index];
        // Any error, EMFILE too, leaves the rest in the backlog until the next event.
        while let Ok((mut stream, _)) = listener.accept() {
            stream.set_nodelay(true).ok();
            let entry = self.connections.vacant_entry();
            let token = Token(entry.key() + FIRST_CONNECTION);
            if self.poll.registry().register(&mut stream, token, Interest::READABLE).is_ok() {
                entry.insert(Echo { stream, stage: *stage, pending: Vec::new() });
            }
        }
    }
}

/// Whether the connection goes on. What it says is short and waits for an answer, so a full send buffer is an error.
fn serve_echo(connection: &mut Echo, buffer: &mut [u8]) -> io::Result<bool> {
    loop {
        let len = match connection.stream.read(buffer) {
            Ok(0) => return Ok(false),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        };
        if connection.stage == Stage::Echo {
            connection.stream.write_all(&buffer[..len])?;
        } else {
            connection.pending.extend_from_slice(&buffer[..len]);
            negotiate(connection)?;
        }
        if len < buffer.len() {
            return Ok(true);
        }
    }
}

/// Answers what is whole of greeting and request; echoes what stands behind them.
fn negotiate(connection: &mut Echo) -> io::Result<()> {
    loop {
        let pending = &connection.pending;
        let (len, answer) = match (connection.stage, pending.len()) {
            (Stage::Greeting, 2..) => (2 + usize::from(pending[1]), vec![5, 0]),
            (Stage::Request, 4..) => {
                (if pending[3] == 1 { 10 } else { 22 }, grant(connection.stream.local_addr()?))
            }
            (Stage::Echo, 1..) => (pending.len(), pending.clone()),
            (Stage::Greeting | Stage::Request | Stage::Echo, _) => return Ok(()),
        };
        if pending.len() < len {
            return Ok(());
        }
        connection.stream.write_all(&answer)?;
        connection.pending.drain(..len);
        connection.stage = match connection.stage {
            Stage::Greeting => Stage::Request,
            Stage::Request | Stage::Echo => Stage::Echo,
        };
        if connection.pending.is_empty() {
            // An idle connection holds nothing here.
            connection.pending = Vec::new();
        }
    }
}

/// The reply to a request: the relay, which means something to ASSOCIATE only.
fn grant(local: SocketAddr) -> Vec<u8> {
    let mut reply = vec![5, 0, 0, 1];
    match local {
        SocketAddr::V4(local) => reply.extend_from_slice(&local.ip().octets()),
        SocketAddr::V6(_) => reply.extend_from_slice(&[0; 4]),
    }
    reply.extend_from_slice(&RELAY.to_be_bytes());
    reply
}
