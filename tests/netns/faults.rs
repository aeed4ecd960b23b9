//! What goes wrong while it runs.

use crate::world::*;
use std::io::{Read, Write};
use std::process::Command;

fn talk(stream: &mut std::net::TcpStream) -> std::io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// F4, F5: the proxy dies: its connections end, new ones are refused at once; it comes back: they work again.
#[test]
fn a_proxy_that_dies_and_comes_back() {
    let Some(world) = world() else { return };
    world.echo(&format!("{TARGET}:7"));
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    for _ in 0..3 {
        let proxy = world.microsocks(&world.server, PROXY);
        let mut app = world.client.connect(&format!("{TARGET}:7")).unwrap();
        talk(&mut app).unwrap();
        drop(proxy);
        // The end of the connection, or a reset: no silence.
        assert!(matches!(app.read(&mut [0]), Ok(0) | Err(_)));
        let error =
            world.client.connect(&format!("{TARGET}:7")).and_then(|mut app| talk(&mut app)).unwrap_err();
        assert_ne!(error.kind(), std::io::ErrorKind::TimedOut);
    }
    assert_eq!(ztun.stop(), Some(0));
}

/// Z3, F15: out of descriptors: new connections are refused, old ones live, nothing spins, and it works again afterwards.
#[test]
fn out_of_descriptors_refuses_the_new_and_keeps_the_old() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    let mut command = world.client.command("prlimit");
    command.args(["--nofile=100:100", ZTUN, "--socks5", PROXY]);
    let mut ztun = world.start(command);
    until("ztun is ready", || ztun.log().contains("ready"));
    let apps = world.client.inside(|| {
        let mut kept = Vec::new();
        let mut refused = 0;
        for _ in 0..300 {
            match std::net::TcpStream::connect((TARGET, 7)) {
                Ok(stream) => kept.push(stream),
                Err(_) => refused += 1,
            }
        }
        (kept, refused)
    });
    let (mut kept, refused) = apps.join().unwrap();
    assert!(refused > 100 && kept.len() > 50, "{} kept, {refused} refused", kept.len());
    for stream in &mut kept {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        talk(stream).unwrap();
    }
    // A full table costs nothing while nothing happens: the same moment passes for a loop that does turn.
    let before = ztun.ticks();
    Command::new("sh").args(["-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"]).status().unwrap();
    assert!(ztun.ticks() - before < 20, "{} ticks while idle", ztun.ticks() - before);
    drop(kept);
    until("there is room again", || {
        world.client.connect(&format!("{TARGET}:7")).is_ok_and(|mut stream| talk(&mut stream).is_ok())
    });
    assert_eq!(ztun.stop(), Some(0));
}

/// Z11, F20: the machine's default route is replaced while a transfer runs through a remote proxy: it goes on.
#[test]
fn a_replaced_default_route_does_not_disturb() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.http(&format!("{TARGET}:80"), &world.file(512));
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let mut curl = world.client.command("curl");
    curl.args(["-sSf", "-o", "/dev/null", &format!("http://{TARGET}/file")]);
    let mut curl = world.start(curl);
    world.client.ok("ip route replace default via 10.77.0.2 src 10.77.0.1 && ip route del default && ip route add default via 10.77.0.2");
    assert_eq!(curl.end(), Some(0), "{}", curl.log());
    assert_eq!(ztun.stop(), Some(0));
}

/// Z4, F7, conformance 26: a full socket of a slow reader stops the sender, and costs bounded memory.
#[test]
fn a_slow_reader_stops_the_sender_and_nobody_else() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.http(&format!("{TARGET}:80"), &world.file(512));
    world.echo(&format!("{TARGET}:7"));
    let ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let before = ztun.memory();
    let mut slow: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = world.client.connect(&format!("{TARGET}:80")).unwrap();
            stream.write_all(b"GET /file HTTP/1.1\r\n\r\n").unwrap();
            stream.read_exact(&mut [0; 1_000]).unwrap();
            stream
        })
        .collect();
    for _ in 0..20 {
        talk(&mut world.client.connect(&format!("{TARGET}:7")).unwrap()).unwrap();
    }
    let grown = ztun.memory() - before;
    assert!(grown < 8 * 3 * 1_024, "{grown} KiB for eight flows");
    let mut rest = 0;
    let mut chunk = vec![0; 1 << 20];
    loop {
        match slow[0].read(&mut chunk).unwrap() {
            0 => break,
            octets => rest += octets,
        }
    }
    assert!(rest > 511 << 20, "{rest}");
}

/// F1, Z4: loss between the apps' kernel and ztun is made good, both ways: sums are equal.
#[test]
fn losses_on_the_device_are_made_good() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    let file = world.file(32);
    world.http(&format!("{TARGET}:80"), &file);
    let _ztun = world.ztun(&format!("--socks5 {PROXY} --offload off"));
    // Not in the OUTPUT hook: there the sender would be told.
    world.client.ok(
        "nft 'add table inet loss; add chain inet loss in { type filter hook prerouting priority -300; }; \
              add rule inet loss in iifname ztun0 numgen random mod 100 < 2 drop; \
              add table netdev loss; add chain netdev loss out { type filter hook egress device ztun0 priority 0; }; \
              add rule netdev loss out numgen random mod 100 < 2 drop'",
    );
    let sum = sha256_of(&file);
    let got = world.client.ok(&format!("set -o pipefail; curl -sSf http://{TARGET}/file | sha256sum"));
    assert!(got.starts_with(&sum), "down");
    let up = world.client.ok(&format!("curl -sSf -H Expect: -T {} http://{TARGET}/up", file.display()));
    assert_eq!(up, sum, "up");
}

/// F11: SYNs from everywhere that nobody answers for: memory stays bounded, and a connection is made right after.
#[test]
fn a_syn_flood_is_bounded() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    let ztun = world.ztun(&format!("--socks5 {PROXY} --connect-timeout 2s"));
    let mut old = world.client.connect(&format!("{TARGET}:7")).unwrap();
    talk(&mut old).unwrap();
    let before = ztun.memory();
    let flood = world.client.inside(|| {
        let raw = socket2::Type::from(libc::SOCK_RAW);
        let protocol = socket2::Protocol::from(libc::IPPROTO_RAW);
        let socket = socket2::Socket::new(socket2::Domain::IPV4, raw, Some(protocol)).unwrap();
        let to: std::net::SocketAddr = "203.0.113.66:0".parse().unwrap();
        for number in 0..100_000_u32 {
            // The kernel fills in the checksum of the IP header, and lengths.
            let mut packet = [0; 40];
            packet[0] = 0x45;
            packet[8..10].copy_from_slice(&[64, 6]);
            packet[12..16].copy_from_slice(&[198, 18, (number >> 8) as u8, (number | 2) as u8]);
            packet[16..20].copy_from_slice(&[203, 0, 113, 66]);
            packet[20..24].copy_from_slice(&[(number >> 10) as u8 | 4, number as u8, 0, 80]);
            packet[24..28].copy_from_slice(&number.to_be_bytes());
            packet[32..36].copy_from_slice(&[0x50, 2, 0xff, 0xff]);
            let sum = checksum(&packet[12..20], &packet[20..40]);
            packet[36..38].copy_from_slice(&sum.to_be_bytes());
            // A full queue of the device drops, as queues do.
            let _ = socket.send_to(&packet, &to.into());
        }
    });
    flood.join().unwrap();
    let grown = ztun.memory().saturating_sub(before);
    assert!(grown < 32 << 10, "{grown} KiB");
    talk(&mut old).unwrap();
    let mut new = world.client.connect(&format!("{TARGET}:7")).unwrap();
    talk(&mut new).unwrap();
}

/// TCP's checksum over the pseudo-header and the segment (RFC 9293 3.1).
fn checksum(addresses: &[u8], segment: &[u8]) -> u16 {
    let words = |octets: &[u8]| -> u32 {
        octets.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum()
    };
    let mut sum = words(addresses) + words(segment) + 6 + segment.len() as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// F12: datagrams from many ports: old mappings make room, memory stays bounded, names are still resolved.
#[test]
fn a_spray_of_datagrams_is_bounded() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    let ztun = world.ztun(&format!("--socks5 {PROXY} --max-udp 200"));
    let before = ztun.memory();
    let spray = world.client.inside(|| {
        for _ in 0..5_000 {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            // Refused for an earlier one, perhaps: that is an answer too.
            let _ = socket.send_to(b"spray", (TARGET, 9));
        }
    });
    spray.join().unwrap();
    let grown = ztun.memory().saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB");
    until("old mappings are gone", || ztun.descriptors() < 2 * 200 + 64);
    let server = world.server.inside(|| std::net::UdpSocket::bind((TARGET, 53)).unwrap()).join().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        let (octets, from) = server.recv_from(&mut buffer).unwrap();
        buffer[2] |= 0x80;
        server.send_to(&buffer[..octets], from).unwrap();
    });
    let answer = world.client.ok(&format!("dig +tries=1 +time=10 +noedns name.test @{TARGET}"));
    assert!(answer.contains("NOERROR"), "{answer}");
}
