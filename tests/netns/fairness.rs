//! Who has a lot to say keeps nobody from saying a word, and nobody starves.

use crate::world::*;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const SLOW: usize = 1_000;
const ROUNDS: usize = 5;
const CHUNK: usize = 64 << 10;

/// Sends until told to stop; `moved` counts the octets.
fn pour(stream: &mut TcpStream, stop: &AtomicBool, moved: &AtomicU64) -> io::Result<()> {
    let chunk = vec![7; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        moved.fetch_add(stream.write(&chunk)? as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// Receives until told to stop, or the end; `moved` counts the octets.
fn drain(stream: &mut TcpStream, stop: &AtomicBool, moved: &AtomicU64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut chunk)? {
            0 => return Ok(()),
            octets => moved.fetch_add(octets as u64, Ordering::Relaxed),
        };
    }
    Ok(())
}

/// Two targets: one that sends for ever, one that takes everything.
fn bulk_targets(world: &World) {
    world.serve(&format!("{TARGET}:9001"), |mut stream| {
        pour(&mut stream, &AtomicBool::new(false), &AtomicU64::new(0))
    });
    world.serve(&format!("{TARGET}:9002"), |mut stream| {
        drain(&mut stream, &AtomicBool::new(false), &AtomicU64::new(0))
    });
}

/// Issue 4, item 7: beside an upload and a download as fast as they go, each of 1,000 slow flows gets each of its answers, and both go on.
#[test]
fn a_thousand_slow_flows_are_heard_beside_two_fast_ones() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    bulk_targets(&world);
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let mut slow: Vec<TcpStream> =
        (0..SLOW).map(|_| world.client.connect(&format!("{TARGET}:7")).unwrap()).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let (down, up) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut sink = world.client.connect(&format!("{TARGET}:9001")).unwrap();
    let mut source = world.client.connect(&format!("{TARGET}:9002")).unwrap();
    let bulk = [
        std::thread::spawn({
            let (stop, down) = (Arc::clone(&stop), Arc::clone(&down));
            move || drain(&mut sink, &stop, &down)
        }),
        std::thread::spawn({
            let (stop, up) = (Arc::clone(&stop), Arc::clone(&up));
            move || pour(&mut source, &stop, &up)
        }),
    ];
    let progress = || (down.load(Ordering::Relaxed), up.load(Ordering::Relaxed));
    for _ in 0..ROUNDS {
        let (down, up) = progress();
        until("both go on", || progress().0 > down + (1 << 20) && progress().1 > up + (1 << 20));
        // All say a word at once: none waits for the answer to another's.
        for stream in &mut slow {
            stream.write_all(b"x").unwrap();
        }
        for stream in &mut slow {
            stream.read_exact(&mut [0]).unwrap();
        }
    }
    stop.store(true, Ordering::Relaxed);
    bulk.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
    drop(slow);
    assert_eq!(ztun.stop(), Some(0));
}

/// Streams that are compared.
const STREAMS: usize = 10;
/// What all of them together move before they are compared: long enough for what happens at the start to weigh little.
const TOGETHER: u64 = 768 << 20;

/// Octets moved by each of [`STREAMS`] streams while all together moved [`TOGETHER`], counted from when each of them goes; `uploads` of them go up.
fn shares(world: &World, uploads: usize) -> Vec<u64> {
    let stop = Arc::new(AtomicBool::new(false));
    let moved: Arc<Vec<AtomicU64>> = Arc::new((0..STREAMS).map(|_| AtomicU64::new(0)).collect());
    let threads: Vec<_> = (0..STREAMS)
        .map(|number| {
            let up = number < uploads;
            let port = if up { 9002 } else { 9001 };
            let mut stream = world.client.connect(&format!("{TARGET}:{port}")).unwrap();
            let (stop, moved) = (Arc::clone(&stop), Arc::clone(&moved));
            std::thread::spawn(move || match up {
                true => pour(&mut stream, &stop, &moved[number]),
                false => drain(&mut stream, &stop, &moved[number]),
            })
        })
        .collect();
    let now = || -> Vec<u64> { moved.iter().map(|octets| octets.load(Ordering::Relaxed)).collect() };
    until("all go", || now().iter().all(|octets| *octets > 4 << 20));
    let before = now();
    let since = || -> Vec<u64> { now().iter().zip(&before).map(|(now, before)| now - before).collect() };
    until("enough is moved", || since().iter().sum::<u64>() > TOGETHER);
    let shares = since();
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
    shares
}

/// Issue 4, item 7: of ten equal streams none has more than twice what another has, whichever way they go.
#[test]
fn ten_equal_streams_have_equal_shares() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    bulk_targets(&world);
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    for uploads in [STREAMS, 0, STREAMS / 2] {
        let shares = shares(&world, uploads);
        for equal in [&shares[..uploads], &shares[uploads..]] {
            let (least, most) = (equal.iter().min(), equal.iter().max());
            let fair = least.zip(most).is_none_or(|(least, most)| *most <= 2 * least);
            assert!(fair, "{uploads} up: {shares:?}");
        }
    }
    assert_eq!(ztun.stop(), Some(0));
}
