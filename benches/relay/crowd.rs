//! Fairness: one upload and one download as fast as they go, and many slow flows that say a few octets now and then: how long these wait for the echo.

use crate::Res;
use crate::load::{Load, open_many};
use crate::socks::connect;
use crate::target::{CHUNK, SINK, SOURCE};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often each slow flow speaks.
const PERIOD: Duration = Duration::from_millis(500);

/// What one of them says.
const MESSAGE: [u8; 16] = [7; 16];

/// The streams need this long to get up to speed.
const WARM_UP: Duration = Duration::from_millis(300);

/// Runs `load.count` slow flows for `load.time`.
pub(crate) fn run(load: &Load) -> Res<()> {
    let (flows, failed) = open_many(load);
    if flows.len() * 100 < load.count * 99 {
        return Err(format!("only {} of {} slow flows could be opened", flows.len(), load.count).into());
    }
    let stop = AtomicBool::new(false);
    let (up, down) = (AtomicU64::new(0), AtomicU64::new(0));
    let start = Instant::now();
    let mut micros = thread::scope(|scope| {
        let uploading = scope.spawn(|| upload(load, &stop, &up));
        let downloading = scope.spawn(|| download(load, &stop, &down));
        let result = echo(flows, start + WARM_UP, load.time);
        stop.store(true, Ordering::Relaxed);
        for stream in [uploading, downloading] {
            stream.join().map_err(|_| "a stream panicked")??;
        }
        result
    })?;
    let gbps = |octets: AtomicU64| octets.into_inner() as f64 * 8e-9 / start.elapsed().as_secs_f64();
    micros.sort_by(f64::total_cmp);
    let at = |part: f64| micros[((micros.len() - 1) as f64 * part) as usize];
    print!("p50={:.1} p99={:.1} n={} failed={failed}", at(0.5), at(0.99), micros.len());
    print!(" up={:.4} down={:.4}", gbps(up), gbps(down));
    Ok(())
}

fn upload(load: &Load, stop: &AtomicBool, octets: &AtomicU64) -> Res<()> {
    let mut stream = connect(load.way, load.target(SINK))?;
    let chunk = vec![0x5a; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&chunk)?;
        octets.fetch_add(chunk.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

fn download(load: &Load, stop: &AtomicBool, octets: &AtomicU64) -> Res<()> {
    let mut stream = connect(load.way, load.target(SOURCE))?;
    let mut chunk = vec![0; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        octets.fetch_add(stream.read(&mut chunk)? as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// A slow flow.
struct Flow {
    stream: TcpStream,
    /// When its message was sent, and how much of the echo is missing.
    waits: Option<(Instant, usize)>,
}

/// Each flow in its turn says its message; micro-seconds until each echo, from `begin` on.
fn echo(streams: Vec<std::net::TcpStream>, begin: Instant, time: Duration) -> Res<Vec<f64>> {
    let mut poll = Poll::new()?;
    let mut flows = Vec::with_capacity(streams.len());
    for (key, stream) in streams.into_iter().enumerate() {
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(key), Interest::READABLE)?;
        flows.push(Flow { stream, waits: None });
    }
    let mut events = Events::with_capacity(1024);
    let mut micros = Vec::new();
    let gap = PERIOD / u32::try_from(flows.len())?;
    let mut due = Instant::now();
    let mut turn = 0;
    while begin.elapsed() < time {
        while due <= Instant::now() {
            let flow = &mut flows[turn];
            // One whose echo is still under way waits for its next turn.
            if flow.waits.is_none() {
                flow.stream.write_all(&MESSAGE)?;
                flow.waits = Some((Instant::now(), MESSAGE.len()));
            }
            turn = (turn + 1) % flows.len();
            due += gap;
        }
        match poll.poll(&mut events, Some(due.saturating_duration_since(Instant::now()))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        }
        for event in &events {
            let flow = &mut flows[event.token().0];
            let Some((sent, missing)) = flow.waits else { continue };
            let got = match flow.stream.read(&mut [0; MESSAGE.len()]) {
                Ok(0) => return Err("a slow flow was ended".into()),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            };
            flow.waits = (got < missing).then(|| (sent, missing - got));
            if flow.waits.is_none() && sent >= begin {
                micros.push(sent.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
    // Those that still wait count with what they have waited.
    let waiting = flows.iter().filter_map(|flow| flow.waits).filter(|(sent, _)| *sent >= begin);
    micros.extend(waiting.map(|(sent, _)| sent.elapsed().as_secs_f64() * 1e6));
    if micros.is_empty() { Err("no slow flow said anything".into()) } else { Ok(micros) }
}
