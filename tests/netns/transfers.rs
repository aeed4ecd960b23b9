//! Octets through the tunnel: whole, both ways, both families, through each proxy; refusals at once.

use crate::world::*;
use std::io::{ErrorKind, Read, Write};
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

/// A gigabyte each way over IPv4, and a part of it over IPv6, by the proxy.
fn carry_a_gigabyte(world: &World, proxy: &str) {
    world.http(&format!("{TARGET}:80"), &world.file(1_024));
    world.http(&format!("[{TARGET6}]:80"), &world.file(256));
    let mut ztun = world.ztun(&format!("--socks5 {proxy}"));
    carry(world, &format!("http://{TARGET}"), 1_024);
    carry(world, &format!("http://[{TARGET6}]"), 256);
    assert_eq!(ztun.stop(), Some(0));
}

/// Z1, Z4: 1 GB each way, IPv4 and IPv6, sums equal; and with plain packets.
#[test]
fn a_gigabyte_each_way_through_the_embedded_proxy() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    carry_a_gigabyte(&world, PROXY);
    let mut plain = world.ztun(&format!("--socks5 {PROXY} --offload off"));
    carry(&world, &format!("http://[{TARGET6}]"), 256);
    assert_eq!(plain.stop(), Some(0));
}

/// Z1: whatever the kernel does of segmenting and summing, the octets are the same.
#[test]
fn octets_are_the_same_at_each_level_of_offload() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    for target in [TARGET, "[2001:db8::10]"] {
        world.http(&format!("{target}:80"), &world.file(64));
    }
    for level in ["auto", "tcp", "checksum", "off"] {
        let mut ztun = world.ztun(&format!("--socks5 {PROXY} --offload {level}"));
        for target in [TARGET, "[2001:db8::10]"] {
            carry(&world, &format!("http://{target}"), 64);
        }
        assert_eq!(ztun.stop(), Some(0), "{level}");
    }
}

/// Z4: the same through a program that everybody has.
#[test]
fn a_gigabyte_each_way_through_microsocks() {
    let Some(world) = world() else { return };
    let _proxy = world.microsocks(&world.server, PROXY);
    carry_a_gigabyte(&world, PROXY);
}

/// Z4: the same through a program that everybody has.
#[test]
fn a_gigabyte_each_way_through_dante() {
    let Some(world) = world() else { return };
    let _proxy = world.dante(&world.server, PROXY, "nobody");
    carry_a_gigabyte(&world, PROXY);
}

/// Z4: many transfers at once, both ways, each whole.
#[test]
fn transfers_at_once_do_not_mix() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    let file = world.file(32);
    world.http(&format!("{TARGET}:80"), &file);
    let _ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let dir = world.dir.path().display();
    let down =
        format!("curl -sSf --parallel --parallel-max 8 -o '{dir}/down-#1' 'http://{TARGET}/file?[1-8]'");
    let up = format!(
        "for n in 1 2 3 4; do curl -sSf -T {} http://{TARGET}/up >{dir}/up-$n & done; wait",
        file.display()
    );
    world.client.ok(&format!("{{ {down}; }} & {up}; wait"));
    let sum = sha256_of(&file);
    for number in 1..=8 {
        assert_eq!(sha256_of(&world.dir.path().join(format!("down-{number}"))), sum, "down {number}");
    }
    for number in 1..=4 {
        let up = std::fs::read_to_string(world.dir.path().join(format!("up-{number}"))).unwrap();
        assert_eq!(up, sum, "up {number}");
    }
}

/// F4, conformance 52, 60: a refused port is refused, within a second, in both families; with `--accept early` it is a reset.
#[test]
fn a_closed_port_is_refused_at_once() {
    let Some(world) = world() else { return };
    for proxy in ["microsocks", "dante", "embedded"] {
        let _proxy = match proxy {
            "microsocks" => world.microsocks(&world.server, PROXY),
            "dante" => world.dante(&world.server, PROXY, "nobody"),
            _ => world.embedded(&world.server, PROXY),
        };
        let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
        for target in [TARGET, "[2001:db8::10]"] {
            let start = Instant::now();
            // 7: curl could not connect. The time-out is what would hide a packet without an answer.
            let output = world.client.sh(&format!("curl -gsS --max-time 5 http://{target}:81/"));
            assert_eq!(output.status.code(), Some(7), "{proxy} {target}");
            assert!(start.elapsed() < Duration::from_secs(1), "{proxy} {target}: {:?}", start.elapsed());
        }
        assert_eq!(ztun.stop(), Some(0));
    }
    let _proxy = world.microsocks(&world.server, PROXY);
    let _early = world.ztun(&format!("--socks5 {PROXY} --accept early"));
    let mut stream = world.client.connect(&format!("{TARGET}:81")).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// F4: no proxy at all, refusing or silent: the app hears within a second, or within the time that was asked for.
#[test]
fn without_a_proxy_connections_fail_at_once() {
    let Some(world) = world() else { return };
    let mut refusing = world.ztun("--socks5 10.77.0.2:1");
    let start = Instant::now();
    let error = world.client.connect(&format!("{TARGET}:80")).unwrap_err();
    assert!(!is_silence(&error), "{error}");
    assert!(start.elapsed() < Duration::from_secs(1), "{error} after {:?}", start.elapsed());
    assert_eq!(refusing.stop(), Some(0));
    let _silent = world.ztun(&format!("--socks5 {SILENT}:1080 --connect-timeout 1s"));
    let start = Instant::now();
    let error = world.client.connect(&format!("{TARGET}:80")).unwrap_err();
    assert!(!is_silence(&error), "{error}");
    assert!(start.elapsed() < Duration::from_secs(3), "{error} after {:?}", start.elapsed());
}

/// conformance 52: a target that does not answer fails after the time that was asked for: neither earlier nor by hanging.
#[test]
fn a_silent_target_times_out_as_configured() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    for seconds in [1, 2] {
        let mut ztun = world.ztun(&format!("--socks5 {PROXY} --connect-timeout {seconds}s"));
        let start = Instant::now();
        let error = world.client.connect(&format!("{SILENT}:80")).unwrap_err();
        let elapsed = start.elapsed();
        assert!(!is_silence(&error) || error.raw_os_error() == Some(libc::ETIMEDOUT), "{error}");
        let wanted = Duration::from_secs(seconds);
        assert!(
            elapsed > wanted.mul_f32(0.9) && elapsed < wanted + Duration::from_secs(2),
            "{error} after {elapsed:?}"
        );
        assert_eq!(ztun.stop(), Some(0));
    }
}

/// Z4, F9, conformance 39: either side may finish first; the other goes on.
#[test]
fn half_closed_connections_carry_the_other_way() {
    let Some(world) = world() else { return };
    // Not microsocks, which ends a connection with its first half.
    let _proxy = world.embedded(&world.server, PROXY);
    let size = 10 << 20;
    for target in [format!("{TARGET}:90"), format!("[{TARGET6}]:90")] {
        let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
        let listener = world.server.listen(&target);
        // The app finishes first.
        let mut app = world.client.connect(&target).unwrap();
        let (mut remote, _) = accept(&listener);
        app.write_all(b"question").unwrap();
        app.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        remote.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"question");
        let answer = vec![7; size];
        let writer = std::thread::spawn(move || remote.write_all(&answer).map(|()| drop(remote)));
        got.clear();
        app.read_to_end(&mut got).unwrap();
        assert_eq!(got, vec![7; size]);
        writer.join().unwrap().unwrap();
        // The target finishes first.
        let mut app = world.client.connect(&target).unwrap();
        let (mut remote, _) = accept(&listener);
        remote.shutdown(Shutdown::Write).unwrap();
        assert_eq!(app.read(&mut [0]).unwrap(), 0);
        let writer = std::thread::spawn(move || app.write_all(&vec![9; size]).map(|()| drop(app)));
        got.clear();
        remote.read_to_end(&mut got).unwrap();
        assert_eq!(got, vec![9; size]);
        writer.join().unwrap().unwrap();
        assert_eq!(ztun.stop(), Some(0));
    }
}

/// Z3: 2,000 connections at once, with a bulk transfer beside them; nothing is left of them.
#[test]
fn two_thousand_connections_at_once() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    world.http(&format!("{TARGET}:80"), &world.file(512));
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let before = ztun.descriptors();
    let mut bulk = world.start({
        let mut curl = world.client.command("curl");
        curl.args(["-sSf", "-o", "/dev/null", &format!("http://{TARGET}/file")]);
        curl
    });
    let answered = world.client.inside(|| {
        // All ask before any is answered.
        let to: std::net::SocketAddr = format!("{TARGET}:7").parse().unwrap();
        let mut streams: Vec<std::net::TcpStream> = (0..2_000)
            .map(|_| {
                let socket =
                    socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                let error = socket.connect(&to.into()).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "{error}");
                socket.into()
            })
            .collect();
        for stream in &streams {
            until("a connection is established", || {
                assert!(stream.take_error().unwrap().is_none());
                stream.peer_addr().is_ok()
            });
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        for (number, stream) in (0_u32..).zip(&mut streams) {
            stream.write_all(&number.to_le_bytes()).unwrap();
        }
        for (number, stream) in (0_u32..).zip(&mut streams) {
            let mut got = [0; 4];
            stream.read_exact(&mut got).unwrap();
            assert_eq!(u32::from_le_bytes(got), number);
        }
        streams.len()
    });
    assert_eq!(answered, 2_000);
    assert_eq!(bulk.end(), Some(0), "{}", bulk.log());
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
        world.client.inside(move || {
            for _ in 0..connections {
                let mut stream = std::net::TcpStream::connect((TARGET, 7)).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                talk(&mut stream).unwrap();
            }
        });
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
