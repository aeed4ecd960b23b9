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
