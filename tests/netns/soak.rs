//! Churn for as long as one likes: descriptors, memory and tables stay flat.
//!
//! `benches/soak.sh` runs this for a day, `.ci/run` for three minutes. The first half of the time is for what has to fill first: TIME-WAIT lasts two
//! maximum segment lifetimes, pools and tables grow to what the load needs.

use crate::world::*;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Connections a second.
const RATE: u32 = 50;
/// Samples of one run.
const SAMPLES: usize = 60;
/// What resident memory may grow by from the second quarter of the samples to the last, KiB, for what an allocator keeps.
const SLACK: u64 = 1_024;

/// What one sample shows.
#[derive(Clone, Debug)]
struct Sample {
    descriptors: usize,
    memory: u64,
    /// Of the router's tables, by name.
    tables: Vec<(&'static str, u64)>,
}

fn sample(ztun: &Running, socket: &std::path::Path) -> Sample {
    let status = ask(socket, r#"{"v":1,"request":"status"}"#);
    let flows = &status["ok"]["flows"];
    let tables = ["tcp", "udp", "pooled", "sockets", "dns"]
        .map(|name| (name, flows[name].as_u64().unwrap_or_else(|| panic!("{name} in {status}"))));
    Sample { descriptors: ztun.descriptors(), memory: ztun.memory(), tables: tables.to_vec() }
}

/// One line to the control socket, and the one that answers.
fn ask(socket: &std::path::Path, request: &str) -> serde_json::Value {
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    writeln!(stream, "{request}").unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stream), &mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

/// One connection of a churn: each kind in turn.
fn visit(number: u64, target: SocketAddr) -> std::io::Result<()> {
    let mut stream = patient(TcpStream::connect_timeout(&target, PATIENCE)?);
    let payload = vec![number as u8; 1_000 + (number as usize * 7919) % 60_000];
    std::thread::scope(|scope| {
        let mut writer = stream.try_clone()?;
        let sent = payload.clone();
        scope.spawn(move || writer.write_all(&sent));
        let mut back = vec![0; payload.len()];
        stream.read_exact(&mut back)?;
        assert_eq!(back, payload);
        Ok::<(), std::io::Error>(())
    })?;
    match number % 4 {
        // An app that is killed.
        0 => socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)),
        // An app that half-closes.
        1 => stream.shutdown(std::net::Shutdown::Write).and_then(|()| stream.read(&mut [0]).map(drop)),
        _ => Ok(()),
    }
}

/// Starts connections at [`RATE`] and datagrams from new sockets at a fifth of it, until `end`; counts what failed.
fn churn(end: &Arc<AtomicBool>, done: &Arc<AtomicU64>, failed: &Arc<AtomicU64>) {
    let target: SocketAddr = format!("{TARGET}:7").parse().unwrap();
    let begun = Instant::now();
    let mut visits = Vec::new();
    for number in 0.. {
        if end.load(Ordering::Relaxed) {
            break;
        }
        // The pace is the load itself; nothing is waited for with it.
        let due = begun + Duration::from_secs(1) * u32::try_from(number).unwrap() / RATE;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let (done, failed) = (Arc::clone(done), Arc::clone(failed));
        visits.push(std::thread::spawn(move || {
            done.fetch_add(1, Ordering::Relaxed);
            if visit(number, target).is_err() {
                failed.fetch_add(1, Ordering::Relaxed);
            }
        }));
        if number % 5 == 0 {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(b"datagram", target).unwrap();
        }
        visits.retain(|visit| !visit.is_finished());
    }
    for visit in visits {
        visit.join().unwrap();
    }
}

/// Issue 3: flat under churn; F6, F12 over time. `ZTUN_SOAK_SECONDS` says for how long.
#[test]
#[ignore = "lasts as long as it is asked to: benches/soak.sh, and .ci/run for three minutes"]
fn descriptors_memory_and_tables_stay_flat_under_churn() {
    let seconds: u64 = std::env::var("ZTUN_SOAK_SECONDS").map_or(180, |text| text.parse().unwrap());
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    world.answer(&format!("{TARGET}:7"), <[u8]>::to_vec);
    let before = world.client.state();
    let socket = world.dir.path().join("soak.sock");
    let mut ztun = world.ztun(&format!("--socks5 {PROXY} --udp-idle 10s --control {}", socket.display()));
    let (end, done, failed) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let shared = (Arc::clone(&end), Arc::clone(&done), Arc::clone(&failed));
    let load = world.client.spawn(move || churn(&shared.0, &shared.1, &shared.2));
    let mut samples = Vec::new();
    let begun = Instant::now();
    for number in 1..=SAMPLES {
        let due = begun + Duration::from_secs(seconds) * u32::try_from(number).unwrap() / SAMPLES as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let sample = sample(&ztun, &socket);
        eprintln!("{:>6} s {sample:?}", begun.elapsed().as_secs());
        samples.push(sample);
    }
    end.store(true, Ordering::Relaxed);
    load.join().unwrap();
    let (done, failed) = (done.load(Ordering::Relaxed), failed.load(Ordering::Relaxed));
    eprintln!("{done} connections, {failed} failed");
    assert!(done > seconds * u64::from(RATE) / 2, "the load itself did not keep its pace: {done}");
    assert_eq!(failed, 0);
    let quarter = |from: usize| &samples[from * SAMPLES / 4..(from + 1) * SAMPLES / 4];
    let (early, late) = (quarter(2), quarter(3));
    let most = |samples: &[Sample], of: &dyn Fn(&Sample) -> u64| samples.iter().map(of).max().unwrap();
    // What is open at the moment of a sample goes up and down with the load.
    let moving = u64::from(RATE);
    assert!(most(late, &|s| s.descriptors as u64) <= most(early, &|s| s.descriptors as u64) + moving);
    assert!(most(late, &|s| s.memory) <= most(early, &|s| s.memory) + SLACK, "memory grows");
    for (index, (name, _)) in samples[0].tables.iter().enumerate() {
        let of = |sample: &Sample| sample.tables[index].1;
        assert!(most(late, &of) <= most(early, &of) + moving, "{name} grows");
    }
    // With the load gone everything drains.
    until("the tables are empty", || {
        let tables = sample(&ztun, &socket).tables;
        tables.iter().all(|(name, number)| *name == "pooled" || *name == "sockets" || *number == 0)
    });
    assert_eq!(ztun.stop(), Some(0));
    assert!(ztun.log().contains("err=0 ") && ztun.log().contains("fds_leaked=0 "), "{}", ztun.log());
    assert_eq!(world.client.state(), before);
}
