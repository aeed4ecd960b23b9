//! What goes wrong while it runs.

use crate::world::*;
use std::io::{Read, Write};
use std::process::Command;

fn talk(stream: &mut std::net::TcpStream) -> std::io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// Z3: the proxy dies: its connections end, new ones are refused at once; it comes back: they work again.
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

/// Z9: out of descriptors: new connections are refused, old ones live, nothing spins, and it works again afterwards.
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

/// Z8: the machine's default route is replaced while a transfer runs through a remote proxy: it goes on.
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

/// Z2: a full socket of a slow reader stops the sender, and costs bounded memory.
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
