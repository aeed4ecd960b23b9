//! The plain relay: what one thread can do between two sockets with `read` and `write` of 64 KB, and nothing else.
//!
//! Each socket gets one read a turn, so no stream starves another. It listens at the ports of [`target`](crate::target) and connects each connection to the same port of the target.

use crate::target::{ECHO, SINK, SOURCE, listen};
use crate::{Res, parsed};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

const CHUNK: usize = 64 << 10;
const PORTS: [u16; 3] = [SINK, SOURCE, ECHO];

/// One direction: read from one socket, write to the other.
#[derive(Default)]
struct Direction {
    /// Octets read that the other side has not taken yet.
    rest: Vec<u8>,
    /// The reader's end of file has been passed on.
    ended: bool,
}

struct Pair {
    /// The app's and the target's.
    streams: [TcpStream; 2],
    /// From the app, from the target.
    directions: [Direction; 2],
}

/// Relays until killed.
pub(crate) fn run(args: &[String]) -> Res<()> {
    let target: Ipv4Addr = parsed(args, "--target")?.ok_or("--target is missing")?;
    let mut poll = Poll::new()?;
    let mut listeners = Vec::new();
    for (index, port) in PORTS.into_iter().enumerate() {
        let listener = listen(port)?;
        listener.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(listener);
        poll.registry().register(&mut listener, Token(index), Interest::READABLE)?;
        listeners.push((listener, port));
    }
    println!("ready");
    let mut pairs: slab::Slab<Pair> = slab::Slab::new();
    let mut buffer = vec![0; CHUNK];
    let mut events = Events::with_capacity(1024);
    // Pairs that may have more to move: events come once, when something changes.
    let mut ready: Vec<usize> = Vec::new();
    loop {
        let timeout = (!ready.is_empty()).then_some(Duration::ZERO);
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        }
        let mut turn = std::mem::take(&mut ready);
        for event in &events {
            let token = event.token().0;
            if let Some((listener, port)) = listeners.get(token) {
                accept(&poll, listener, SocketAddr::new(target.into(), *port), &mut pairs);
                continue;
            }
            turn.push((token - PORTS.len()) / 2);
        }
        turn.sort_unstable();
        turn.dedup();
        for key in turn {
            let Some(pair) = pairs.get_mut(key) else { continue };
            match serve(pair, &mut buffer) {
                Ok(Serve::Again) => ready.push(key),
                Ok(Serve::Wait) => {}
                Ok(Serve::Done) | Err(_) => {
                    pairs.remove(key);
                }
            }
        }
    }
}

fn accept(poll: &Poll, listener: &TcpListener, target: SocketAddr, pairs: &mut slab::Slab<Pair>) {
    while let Ok((app, _)) = listener.accept() {
        let Ok(out) = TcpStream::connect(target) else { continue };
        let entry = pairs.vacant_entry();
        let mut streams = [app, out];
        let registered = streams.iter_mut().enumerate().all(|(side, stream)| {
            stream.set_nodelay(true).ok();
            let token = Token(PORTS.len() + entry.key() * 2 + side);
            poll.registry().register(stream, token, Interest::READABLE | Interest::WRITABLE).is_ok()
        });
        if registered {
            entry.insert(Pair { streams, directions: [Direction::default(), Direction::default()] });
        }
    }
}

/// What a pair wants next.
enum Serve {
    /// There may be more to read now.
    Again,
    /// An event.
    Wait,
    /// Nothing: both directions have ended.
    Done,
}

/// One read of each side.
fn serve(pair: &mut Pair, buffer: &mut [u8]) -> io::Result<Serve> {
    let [app, out] = &mut pair.streams;
    let [up, down] = &mut pair.directions;
    let again = pump(app, out, up, buffer)? | pump(out, app, down, buffer)?;
    Ok(match (again, up.ended && down.ended) {
        (_, true) => Serve::Done,
        (true, false) => Serve::Again,
        (false, false) => Serve::Wait,
    })
}

/// Whether it is worth trying again without an event.
fn pump(
    from: &mut TcpStream,
    to: &mut TcpStream,
    direction: &mut Direction,
    buffer: &mut [u8],
) -> io::Result<bool> {
    if direction.ended {
        return Ok(false);
    }
    if !direction.rest.is_empty() {
        let taken = write(to, &direction.rest)?;
        direction.rest.drain(..taken);
        if !direction.rest.is_empty() {
            return Ok(false);
        }
    }
    let len = match from.read(buffer) {
        Ok(len) => len,
        Err(error) if waits(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    if len == 0 {
        direction.ended = true;
        to.shutdown(std::net::Shutdown::Write)?;
        return Ok(false);
    }
    let taken = write(to, &buffer[..len])?;
    direction.rest.extend_from_slice(&buffer[taken..len]);
    Ok(taken == len)
}

/// Octets taken; 0 when there is no room, or no connection yet.
fn write(to: &mut TcpStream, octets: &[u8]) -> io::Result<usize> {
    match to.write(octets) {
        Err(error) if waits(&error) => Ok(0),
        result => result,
    }
}

fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}
