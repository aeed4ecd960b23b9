//! Queries each from a socket of its own, as resolvers send them: a number of them under way at all times.

use crate::Res;
use crate::load::Load;
use crate::socks::{ASSOCIATE, GREETING, Way, reachable, request};
use crate::target::DNS;
use mio::net::{TcpStream, UdpSocket};
use mio::{Events, Interest, Poll, Token};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

/// An answer that takes longer is lost.
const LOST: Duration = Duration::from_secs(1);

/// What is waited for.
enum Stage {
    /// The SOCKS5 server's part, where the app speaks to it itself.
    Connect(TcpStream),
    Method(TcpStream),
    Reply(TcpStream),
    /// The association lives as long as its connection.
    Answer {
        socket: UdpSocket,
        header: usize,
        _association: Option<TcpStream>,
    },
}

struct Query {
    stage: Stage,
    id: u16,
    since: Instant,
}

struct Names<'a> {
    load: &'a Load,
    poll: Poll,
    queries: Vec<Option<Query>>,
    next: u16,
}

/// Asks with `load.count` queries at once for `load.time`.
pub(crate) fn run(load: &Load) -> Res<()> {
    let queries = (0..load.count).map(|_| None).collect();
    let mut names = Names { load, poll: Poll::new()?, queries, next: 0 };
    let mut events = Events::with_capacity(2 * load.count);
    let (mut answered, mut lost) = (0u64, 0u64);
    let start = Instant::now();
    let mut swept = start;
    for key in 0..load.count {
        names.ask(key)?;
    }
    while start.elapsed() < load.time {
        match names.poll.poll(&mut events, Some(Duration::from_millis(20))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        }
        for event in &events {
            let key = event.token().0 / 2;
            match names.step(key) {
                Ok(false) => continue,
                Ok(true) => answered += 1,
                Err(_) => lost += 1,
            }
            names.queries[key] = None;
            if names.ask(key).is_err() {
                lost += 1;
            }
        }
        if swept.elapsed() > Duration::from_millis(50) {
            swept = Instant::now();
            for key in 0..load.count {
                let late = names.queries[key].as_ref().is_some_and(|query| query.since.elapsed() > LOST);
                if late || names.queries[key].is_none() {
                    lost += u64::from(late);
                    names.queries[key] = None;
                    names.ask(key).ok();
                }
            }
        }
    }
    let rate = answered as f64 / start.elapsed().as_secs_f64();
    print!("answered={answered} lost={lost} rate={rate:.1}");
    Ok(())
}

impl Names<'_> {
    /// A new query, on a new socket.
    fn ask(&mut self, key: usize) -> io::Result<()> {
        self.next = self.next.wrapping_add(1);
        let id = self.next;
        let stage = match self.load.way {
            Way::Kernel => self.send(key, self.load.target(DNS), &[], id, None)?,
            Way::Socks(server) => {
                let mut stream = TcpStream::connect(server.into())?;
                let both = Interest::READABLE | Interest::WRITABLE;
                self.poll.registry().register(&mut stream, Token(2 * key), both)?;
                Stage::Connect(stream)
            }
        };
        self.queries[key] = Some(Query { stage, id, since: Instant::now() });
        Ok(())
    }

    /// Sends the query `id` behind `header` to `peer`.
    fn send(
        &self,
        key: usize,
        peer: SocketAddrV4,
        header: &[u8],
        id: u16,
        association: Option<TcpStream>,
    ) -> io::Result<Stage> {
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        let mut socket = UdpSocket::bind(any.into())?;
        socket.connect(peer.into())?;
        self.poll.registry().register(&mut socket, Token(2 * key + 1), Interest::READABLE)?;
        socket.send(&[header, &query(id)].concat())?;
        Ok(Stage::Answer { socket, header: header.len(), _association: association })
    }

    /// Goes on as far as the socket lets it; whether the answer has come.
    fn step(&mut self, key: usize) -> io::Result<bool> {
        loop {
            let Some(Query { stage, id, since }) = self.queries[key].take() else { return Ok(false) };
            let waits = |stage| Some(Query { stage, id, since });
            let next = match stage {
                Stage::Connect(mut stream) => {
                    if let Some(error) = stream.take_error()? {
                        return Err(error);
                    }
                    if stream.peer_addr().is_err() {
                        self.queries[key] = waits(Stage::Connect(stream));
                        return Ok(false);
                    }
                    stream.set_nodelay(true)?;
                    stream.write_all(&GREETING)?;
                    Stage::Method(stream)
                }
                Stage::Method(mut stream) => {
                    let mut method = [0; 2];
                    if !whole(stream.read(&mut method), 2)? {
                        self.queries[key] = waits(Stage::Method(stream));
                        return Ok(false);
                    }
                    stream.write_all(&request(ASSOCIATE, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)))?;
                    Stage::Reply(stream)
                }
                Stage::Reply(mut stream) => {
                    let mut reply = [0; 10];
                    if !whole(stream.read(&mut reply), 10)? {
                        self.queries[key] = waits(Stage::Reply(stream));
                        return Ok(false);
                    }
                    let addr = Ipv4Addr::new(reply[4], reply[5], reply[6], reply[7]);
                    let relay = SocketAddrV4::new(addr, u16::from_be_bytes([reply[8], reply[9]]));
                    let relay = match self.load.way {
                        Way::Kernel => relay,
                        Way::Socks(server) => reachable(relay, server),
                    };
                    let header = [&[0, 0, 0][..], &request(ASSOCIATE, self.load.target(DNS))[3..]].concat();
                    self.send(key, relay, &header, id, Some(stream))?
                }
                Stage::Answer { socket, header, _association } => {
                    let mut answer = [0; 512];
                    match socket.recv(&mut answer) {
                        Ok(len) => {
                            let answer = answer.get(header..len).unwrap_or_default();
                            let is_ours = answer.get(..2) == Some(&id.to_be_bytes());
                            let has_answer = answer.get(6..8) == Some(&[0, 1]);
                            return if is_ours && has_answer {
                                Ok(true)
                            } else {
                                Err(io::ErrorKind::InvalidData.into())
                            };
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            self.queries[key] = waits(Stage::Answer { socket, header, _association });
                            return Ok(false);
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            self.queries[key] = Some(Query { stage: next, id, since });
        }
    }
}

/// Whether a message of `len` octets was read; a peer that then waits does not send it in pieces.
fn whole(read: io::Result<usize>, len: usize) -> io::Result<bool> {
    match read {
        Ok(got) if got == len => Ok(true),
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// A question for an address record (RFC 1035 4.1).
fn query(id: u16) -> Vec<u8> {
    let mut octets = id.to_be_bytes().to_vec();
    octets.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in [format!("host{id}").as_str(), "example"] {
        octets.push(label.len() as u8);
        octets.extend_from_slice(label.as_bytes());
    }
    octets.extend_from_slice(&[0, 0, 1, 0, 1]);
    octets
}
