//! Octets through the tunnel: whole, both ways, both families, through each proxy; refusals at once.

use crate::world::*;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

/// Downloads and uploads `megabytes` by curl and compares the sums.
fn carry(world: &World, url: &str, megabytes: u64) {
    let file = world.file(megabytes);
    let sum = sha256_of(&file);
    let got = world.client.ok(&format!("set -o pipefail; curl -gsSf {url}/file | sha256sum"));
    assert!(got.starts_with(&sum), "{url}: {megabytes} MB down");
    let answer = world.client.ok(&format!("curl -gsSf -H Expect: -T {} {url}/up", file.display()));
    assert_eq!(answer, sum, "{url}: {megabytes} MB up");
}

/// Z1, Z4: 1 GB each way, IPv4 and IPv6, sums equal; and with plain packets.
#[test]
fn a_gigabyte_each_way_through_the_embedded_proxy() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.http(&format!("{TARGET}:80"), &world.file(1024));
    world.http(&format!("[{TARGET6}]:80"), &world.file(256));
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    carry(&world, &format!("http://{TARGET}"), 1024);
    carry(&world, &format!("http://[{TARGET6}]"), 256);
    assert_eq!(ztun.stop(), Some(0));
    let mut plain = world.ztun(&format!("--socks5 {PROXY} --offload off"));
    carry(&world, &format!("http://[{TARGET6}]"), 256);
    assert_eq!(plain.stop(), Some(0));
}

#[test]
fn microsocks_and_dante_carry_the_same() {
    let Some(world) = world() else { return };
    let _microsocks = world.microsocks(&world.server, PROXY);
    let _dante = world.dante(&world.server, "10.77.0.2:1081", "nobody");
    world.http(&format!("{TARGET}:80"), &world.file(128));
    world.http(&format!("[{TARGET6}]:80"), &world.file(128));
    for (proxy, targets) in [(PROXY, &[TARGET, "[2001:db8::10]"][..]), ("10.77.0.2:1081", &[TARGET])] {
        let mut ztun = world.ztun(&format!("--socks5 {proxy}"));
        for target in targets {
            carry(&world, &format!("http://{target}"), 128);
        }
        assert_eq!(ztun.stop(), Some(0));
    }
}

/// F4, conformance 52, 60: a refused port is refused, at once, in both families; with `--accept early` it is a reset.
#[test]
fn a_closed_port_is_refused_at_once() {
    let Some(world) = world() else { return };
    let _proxy = world.microsocks(&world.server, PROXY);
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    for target in [TARGET, "[2001:db8::10]"] {
        // 7: curl could not connect. The time-out is what would hide a packet without an answer.
        let output = world.client.sh(&format!("curl -gsS --max-time 5 http://{target}:81/"));
        assert_eq!(output.status.code(), Some(7), "{target}");
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(words.contains("after") && !words.contains("timed out"), "{words}");
    }
    ztun.stop();
    let _early = world.ztun(&format!("--socks5 {PROXY} --accept early"));
    let mut stream = world.client.connect(&format!("{TARGET}:81")).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

/// conformance 52: a target that does not answer fails after the time that was asked for, and not by hanging.
#[test]
fn a_silent_target_times_out_as_configured() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    let _ztun = world.ztun(&format!("--socks5 {PROXY} --connect-timeout 1s"));
    let start = Instant::now();
    let error = world.client.connect(&format!("{SILENT}:80")).unwrap_err();
    assert!(start.elapsed() >= Duration::from_millis(900), "{error} too early");
    assert!(error.kind() != std::io::ErrorKind::TimedOut || start.elapsed() < PATIENCE, "{error}");
}

/// Z4, F9, conformance 39: either side may finish first; the other goes on.
#[test]
fn half_closed_connections_carry_the_other_way() {
    let Some(world) = world() else { return };
    // Not microsocks, which ends a connection with its first half.
    let _proxy = world.embedded(&world.server, PROXY);
    let _ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let listener = world.server.listen(&format!("{TARGET}:90"));
    let size = 5 << 20;
    // The app finishes first.
    let mut app = world.client.connect(&format!("{TARGET}:90")).unwrap();
    let (mut target, _) = listener.accept().unwrap();
    app.write_all(b"question").unwrap();
    app.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    target.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"question");
    let answer = vec![7; size];
    let writer = std::thread::spawn(move || target.write_all(&answer).map(|()| drop(target)));
    got.clear();
    app.read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), size);
    writer.join().unwrap().unwrap();
    // The target finishes first.
    let mut app = world.client.connect(&format!("{TARGET}:90")).unwrap();
    let (mut target, _) = listener.accept().unwrap();
    target.shutdown(Shutdown::Write).unwrap();
    assert_eq!(app.read(&mut [0]).unwrap(), 0);
    let writer = std::thread::spawn(move || app.write_all(&vec![9; size]).map(|()| drop(app)));
    got.clear();
    target.read_to_end(&mut got).unwrap();
    assert_eq!(got, vec![9; size]);
    writer.join().unwrap().unwrap();
}

/// Z3: 2,000 connections at once, with a bulk transfer beside them; nothing is left of them.
#[test]
fn two_thousand_connections_at_once() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    world.http(&format!("{TARGET}:80"), &world.file(128));
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let before = ztun.descriptors();
    let mut bulk = world.start({
        let mut curl = world.client.command("curl");
        curl.args(["-sSf", "-o", "/dev/null", &format!("http://{TARGET}/file")]);
        curl
    });
    let apps = world.client.inside(|| {
        let mut streams = Vec::new();
        for number in 0..2_000_u32 {
            let mut stream = std::net::TcpStream::connect((TARGET, 7)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&number.to_le_bytes()).unwrap();
            streams.push(stream);
        }
        for (number, stream) in streams.iter_mut().enumerate() {
            let mut got = [0; 4];
            stream.read_exact(&mut got).unwrap();
            assert_eq!(u32::from_le_bytes(got) as usize, number);
        }
        streams.len()
    });
    assert_eq!(apps.join().unwrap(), 2_000);
    assert_eq!(bulk.end(), Some(0));
    until("the connections are closed", || ztun.descriptors() <= before + 8);
    assert_eq!(ztun.stop(), Some(0));
}

/// Z3: memory and descriptors are where they were after many short connections.
#[test]
fn many_short_connections_leave_no_trace() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    let ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let round = |connections: u32| {
        let apps = world.client.inside(move || {
            for _ in 0..connections {
                let mut stream = std::net::TcpStream::connect((TARGET, 7)).unwrap();
                stream.write_all(b"x").unwrap();
                stream.read_exact(&mut [0]).unwrap();
            }
        });
        apps.join().unwrap();
    };
    round(1_000);
    until("sockets are closed", || ztun.descriptors() < 40);
    let before = ztun.memory();
    round(5_000);
    until("sockets are closed", || ztun.descriptors() < 40);
    let after = ztun.memory();
    // TIME-WAIT holds some state for a while: far less than a connection's.
    assert!(after < before + 4_096, "{before} KiB before, {after} KiB after");
}
