//! The app: connections of one kind, for a time, and what came of them as `key=value` words on standard output.

use crate::batch::{self, Batch};
use crate::socks::{Datagrams, PATIENCE, Way, connect};
use crate::target::{CHUNK, ECHO, LAST, SINK, SOURCE, UDP_ECHO};
use crate::{Res, parsed};
use crate::{connections, crowd, names};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What is asked of a load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) way: Way,
    target: Ipv4Addr,
    pub(crate) time: Duration,
    pub(crate) count: usize,
}

impl Load {
    pub(crate) fn target(&self, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.target, port)
    }
}

/// Runs one load.
pub(crate) fn run(args: &[String]) -> Res<()> {
    let way = match parsed(args, "--socks")? {
        Some(server) => Way::Socks(server),
        None => Way::Kernel,
    };
    let load = Load {
        way,
        target: parsed(args, "--target")?.ok_or("--target is missing")?,
        time: Duration::from_secs_f64(parsed(args, "--seconds")?.unwrap_or(1.0)),
        count: parsed(args, "--count")?.unwrap_or(1),
    };
    match args.first().map(String::as_str) {
        Some("probe") => probe(&load)?,
        Some("upload") => bulk(&load, upload, SINK)?,
        Some("download") => bulk(&load, download, SOURCE)?,
        Some("latency") => latency(&load, parsed(args, "--bulk")?)?,
        Some("connections") => connections::run(&load)?,
        Some("idle") => idle(&load)?,
        Some("crowd") => crowd::run(&load)?,
        Some("names") => names::run(&load)?,
        Some("udp") => udp(&load, parsed(args, "--rate")?.ok_or("--rate is missing")?)?,
        _ => return Err(format!("no such load: {:?}", args.first()).into()),
    }
    println!(" cpu={:.6}", own_cpu());
    Ok(())
}

/// CPU seconds of this process.
fn own_cpu() -> f64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a whole rusage; all-zero octets are one, should the call fail.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// One octet there and back.
fn echo_once(stream: &mut TcpStream) -> Res<()> {
    stream.write_all(&[1])?;
    Ok(stream.read_exact(&mut [0])?)
}

fn probe(load: &Load) -> Res<()> {
    echo_once(&mut connect(load.way, load.target(ECHO))?)?;
    print!("ok=1");
    Ok(())
}

/// `count` streams at once; each gives the octets that arrived.
fn bulk(load: &Load, stream: fn(&mut TcpStream, Instant) -> io::Result<u64>, port: u16) -> Res<()> {
    let barrier = Barrier::new(load.count);
    // The measured time ends when the last octet has arrived.
    let one = || -> Res<(u64, f64)> {
        let connection = connect(load.way, load.target(port));
        barrier.wait();
        let start = Instant::now();
        let octets = stream(&mut connection?, start + load.time).map_err(stalled)?;
        Ok((octets, start.elapsed().as_secs_f64()))
    };
    let results = thread::scope(|scope| {
        let handles: Vec<_> = (0..load.count).map(|_| scope.spawn(one)).collect();
        handles
            .into_iter()
            .map(|handle| handle.join().unwrap_or_else(|_| Err("a stream panicked".into())))
            .collect::<Res<Vec<_>>>()
    })?;
    let octets: u64 = results.iter().map(|(octets, _)| octets).sum();
    let seconds = results.iter().map(|(_, seconds)| *seconds).fold(0.0, f64::max);
    let least = results.iter().map(|(octets, _)| *octets).min().unwrap_or(0);
    let most = results.iter().map(|(octets, _)| *octets).max().unwrap_or(0);
    print!(
        "octets={octets} gbps={:.4} spread={:.2}",
        octets as f64 * 8.0 / 1e9 / seconds,
        most as f64 / least.max(1) as f64
    );
    Ok(())
}

/// A time-out of a socket reads as if nothing had been tried.
fn stalled(error: io::Error) -> io::Error {
    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
        return io::Error::other(format!("nothing moved for {} s", PATIENCE.as_secs()));
    }
    error
}

fn upload(stream: &mut TcpStream, end: Instant) -> io::Result<u64> {
    let chunk = vec![0x5a; CHUNK];
    while Instant::now() < end {
        stream.write_all(&chunk)?;
    }
    stream.write_all(&[LAST])?;
    let mut taken = [0; 8];
    stream.read_exact(&mut taken)?;
    Ok(u64::from_be_bytes(taken))
}

fn download(stream: &mut TcpStream, end: Instant) -> io::Result<u64> {
    let mut chunk = vec![0; CHUNK];
    let mut taken = 0;
    while Instant::now() < end {
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            len => taken += len as u64,
        }
    }
    Ok(taken)
}

/// 64 octets there and back, again and again; with `bulk` beside a download of at most so many Gb/s.
fn latency(load: &Load, bulk: Option<f64>) -> Res<()> {
    let stop = AtomicBool::new(false);
    let mut micros = thread::scope(|scope| {
        let downloading = bulk.map(|gbps| {
            let stop = &stop;
            scope.spawn(move || download_until(load, gbps, stop))
        });
        let result = ping(load, bulk.is_some());
        stop.store(true, Ordering::Relaxed);
        if let Some(handle) = downloading {
            handle.join().map_err(|_| "the download panicked")??;
        }
        result
    })?;
    micros.sort_by(f64::total_cmp);
    let at = |part: f64| micros[((micros.len() - 1) as f64 * part) as usize];
    print!("p50={:.1} p99={:.1} n={}", at(0.5), at(0.99), micros.len());
    Ok(())
}

/// The window holds the source back where less is read than it could send.
fn download_until(load: &Load, gbps: f64, stop: &AtomicBool) -> Res<()> {
    let mut stream = connect(load.way, load.target(SOURCE))?;
    let mut chunk = vec![0; 64 << 10];
    let (start, mut taken) = (Instant::now(), 0.0);
    while !stop.load(Ordering::Relaxed) {
        if taken * 8.0 <= start.elapsed().as_secs_f64() * gbps * 1e9 {
            stream.read_exact(&mut chunk)?;
            taken += chunk.len() as f64;
        } else {
            thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

fn ping(load: &Load, bulk: bool) -> Res<Vec<f64>> {
    let mut stream = connect(load.way, load.target(ECHO))?;
    let mut message = [7; 64];
    let mut micros = Vec::new();
    // The first exchanges, and the start of the download, are not what a row is about.
    let start = Instant::now() + if bulk { Duration::from_millis(300) } else { Duration::from_millis(50) };
    while start.elapsed() < load.time {
        let sent = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        if sent >= start {
            micros.push(sent.elapsed().as_secs_f64() * 1e6);
        }
    }
    if micros.is_empty() { Err("no echo came back in time".into()) } else { Ok(micros) }
}

/// Opens `count` connections, says so, and holds them until standard input ends.
fn idle(load: &Load) -> Res<()> {
    let (connections, failed) = open_many(load);
    println!("open={} failed={failed}", connections.len());
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

/// `count` connections that have carried one octet, and how many failed.
pub(crate) fn open_many(load: &Load) -> (Vec<TcpStream>, u64) {
    const OPENERS: usize = 16;
    /// Those that are not open by then are taken for failed.
    const ENOUGH: Duration = Duration::from_secs(60);
    let failed = AtomicU64::new(0);
    let start = Instant::now();
    let open = |share: usize| {
        let mut open = Vec::with_capacity(share);
        for done in 0..share {
            if start.elapsed() > ENOUGH {
                failed.fetch_add((share - done) as u64, Ordering::Relaxed);
                break;
            }
            let opened = connect(load.way, load.target(ECHO)).and_then(|mut stream| {
                echo_once(&mut stream)?;
                Ok(stream)
            });
            match opened {
                Ok(stream) => open.push(stream),
                Err(_) => {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        open
    };
    let connections = thread::scope(|scope| {
        let handles: Vec<_> = (0..OPENERS)
            .map(|part| load.count * (part + 1) / OPENERS - load.count * part / OPENERS)
            .map(|share| scope.spawn(move || open(share)))
            .collect();
        handles.into_iter().filter_map(|handle| handle.join().ok()).flatten().collect()
    });
    (connections, failed.into_inner())
}

/// Datagrams of 64 octets at `rate` a second to an echo: how many come back.
fn udp(load: &Load, rate: f64) -> Res<()> {
    /// The last ones are waited for as long as this, after the last that came.
    const QUIET: Duration = Duration::from_millis(50);
    let out = Datagrams::open(load.way, load.target(UDP_ECHO))?;
    let socket = out.socket();
    socket.set_read_timeout(Some(QUIET))?;
    let mut batch = Batch::of(&[out.header(), &[7; 64]].concat());
    let mut answers = Batch::new();
    // The mapping is made before the clock starts.
    let deadline = Instant::now() + PATIENCE;
    loop {
        batch.send(socket, 1, false);
        if answers.recv(socket).is_ok() {
            break;
        }
        if Instant::now() > deadline {
            return Err(format!("no datagram comes back in {} s", PATIENCE.as_secs()).into());
        }
    }
    while answers.recv(socket).is_ok() {}
    let done = AtomicBool::new(false);
    let (sent, received) = thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut received = 0;
            loop {
                match answers.recv(socket) {
                    Ok(slots) => received += slots.len() as u64,
                    Err(_) if done.load(Ordering::Relaxed) => return received,
                    Err(_) => {}
                }
            }
        });
        let mut sent = 0u64;
        let start = Instant::now();
        while start.elapsed() < load.time {
            let due = (start.elapsed().as_secs_f64() * rate) as u64;
            while sent < due {
                let count = batch::MOST.min((due - sent) as usize);
                batch.send(socket, count, false);
                sent += count as u64;
            }
            thread::sleep(Duration::from_micros(200));
        }
        done.store(true, Ordering::Relaxed);
        (sent, receiver.join().unwrap_or(0))
    });
    print!("sent={sent} received={received} seconds={:.6}", load.time.as_secs_f64());
    Ok(())
}
