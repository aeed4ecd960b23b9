//! New connections: a number of them under way at all times, each with one octet echoed, then closed. One poll loop, since a thread for each
//! would measure the scheduler.

use crate::Res;
use crate::load::Load;
use crate::socks::{GREETING, Way, connect_request};
use crate::target::ECHO;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use std::io::{self, Read, Write};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

/// A connection that has not got its octet after this long has failed.
const STALLED: Duration = Duration::from_secs(3);

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connect,
    Method,
    Reply,
    Echo,
}

struct Slot {
    stream: TcpStream,
    stage: Stage,
    since: Instant,
}

/// Runs `load.count` at once for `load.time`.
pub(crate) fn run(load: &Load) -> Res<()> {
    let target = load.target(ECHO);
    let mut poll = Poll::new()?;
    let mut slots: Vec<Option<Slot>> = (0..load.count).map(|_| None).collect();
    let mut events = Events::with_capacity(load.count);
    let (mut made, mut failed) = (0u64, 0u64);
    let start = Instant::now();
    for (key, slot) in slots.iter_mut().enumerate() {
        *slot = Some(open(&poll, load.way, target, key)?);
    }
    let mut swept = start;
    while start.elapsed() < load.time {
        match poll.poll(&mut events, Some(Duration::from_millis(20))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        }
        for event in &events {
            let key = event.token().0;
            let Some(slot) = slots[key].as_mut() else { continue };
            match step(slot, load.way, target) {
                Ok(false) => continue,
                Ok(true) => made += 1,
                Err(_) => failed += 1,
            }
            slots[key] = open(&poll, load.way, target, key).map_err(|_| failed += 1).ok();
        }
        // One pass a while for those that nothing is heard of.
        if swept.elapsed() > Duration::from_millis(100) {
            swept = Instant::now();
            for (key, slot) in slots.iter_mut().enumerate() {
                let stalled = slot.as_ref().is_some_and(|slot| slot.since.elapsed() > STALLED);
                if stalled || slot.is_none() {
                    failed += u64::from(stalled);
                    *slot = open(&poll, load.way, target, key).ok();
                }
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let open = slots.iter().flatten().filter(|slot| slot.since.elapsed() > Duration::from_secs(1)).count();
    print!(
        "made={made} failed={} seconds={seconds:.6} rate={:.1}",
        failed + open as u64,
        made as f64 / seconds
    );
    Ok(())
}

fn open(poll: &Poll, way: Way, target: SocketAddrV4, key: usize) -> io::Result<Slot> {
    let to = match way {
        Way::Kernel => target,
        Way::Socks(server) => server,
    };
    let mut stream = TcpStream::connect(to.into())?;
    poll.registry().register(&mut stream, Token(key), Interest::READABLE | Interest::WRITABLE)?;
    Ok(Slot { stream, stage: Stage::Connect, since: Instant::now() })
}

/// Goes on as far as the socket lets it; whether the octet has come back.
fn step(slot: &mut Slot, way: Way, target: SocketAddrV4) -> io::Result<bool> {
    if slot.stage == Stage::Connect {
        if let Some(error) = slot.stream.take_error()? {
            return Err(error);
        }
        match slot.stream.peer_addr() {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(false),
            result => result?,
        };
        slot.stream.set_nodelay(true)?;
        slot.stage = match way {
            Way::Kernel => {
                slot.stream.write_all(&[1])?;
                Stage::Echo
            }
            Way::Socks(_) => {
                slot.stream.write_all(&GREETING)?;
                Stage::Method
            }
        };
    }
    let mut answer = [0; 16];
    loop {
        // Each answer is one small message of a peer that then waits: it is not read in pieces here.
        let len = match slot.stream.read(&mut answer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        match (slot.stage, len) {
            (Stage::Method, 2) if answer[1] == 0 => {
                slot.stream.write_all(&connect_request(target))?;
                slot.stage = Stage::Reply;
            }
            (Stage::Reply, 10) if answer[1] == 0 => {
                slot.stream.write_all(&[1])?;
                slot.stage = Stage::Echo;
            }
            (Stage::Echo, 1) => return Ok(true),
            (Stage::Connect | Stage::Method | Stage::Reply | Stage::Echo, _) => {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
    }
}
