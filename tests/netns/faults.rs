//! What goes wrong while it runs.

use crate::world::*;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Writes until the connection takes no more, or ends.
fn write_until_error(stream: &mut std::net::TcpStream) -> std::io::Error {
    loop {
        if let Err(error) = stream.write_all(&[1; 4_096]) {
            return error;
        }
    }
}

/// F4, F5, conformance 40: the proxy dies: its connections end at once, new ones are refused at once; it comes back: they work again.
#[test]
fn a_proxy_that_dies_and_comes_back() {
    let Some(world) = world() else { return };
    world.echo(&format!("{TARGET}:7"));
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    for _ in 0..3 {
        let proxy = world.microsocks(&world.server, PROXY);
        let mut apps: Vec<_> =
            (0..20).map(|_| world.client.connect(&format!("{TARGET}:7")).unwrap()).collect();
        apps.iter_mut().for_each(|app| talk(app).unwrap());
        drop(proxy);
        for app in &mut apps {
            // The end of the connection, or a reset: no silence.
            let end = app.read(&mut [0]);
            assert!(matches!(&end, Ok(0)) || end.as_ref().is_err_and(|error| !is_silence(error)), "{end:?}");
        }
        let start = Instant::now();
        let error = world.client.connect(&format!("{TARGET}:7")).unwrap_err();
        assert!(!is_silence(&error), "{error}");
        assert!(start.elapsed() < Duration::from_secs(1), "{error} after {:?}", start.elapsed());
    }
    assert_eq!(ztun.stop(), Some(0));
}

/// conformance 40, F5: the proxy is killed while an app sends: the app gets a reset, not silence and not success.
#[test]
fn a_proxy_that_is_killed_in_an_upload_resets_the_app() {
    let Some(world) = world() else { return };
    let proxy = world.microsocks(&world.server, PROXY);
    let listener = world.server.listen(&format!("{TARGET}:90"));
    let _ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let mut app = world.client.connect(&format!("{TARGET}:90")).unwrap();
    // Nobody reads at the target: everything on the way is full.
    let (_target, _) = accept(&listener);
    app.set_nonblocking(true).unwrap();
    let before = world.server.ok("ss -Htn state established 'sport = :1080'");
    until("the proxy holds data", || {
        assert_eq!(write_until_error(&mut app).kind(), ErrorKind::WouldBlock);
        world.server.ok("ss -Htn state established 'sport = :1080'") != before
    });
    drop(proxy);
    app.set_nonblocking(false).unwrap();
    let error = write_until_error(&mut app);
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
}

/// F4: the next proxy takes over from one that dies while it runs, and the first is used again when it is back.
#[test]
fn the_second_proxy_takes_over_while_it_runs() {
    let Some(world) = world() else { return };
    world.echo(&format!("{TARGET}:7"));
    let first = world.microsocks(&world.server, PROXY);
    let second = world.microsocks(&world.server, "10.77.0.2:1081");
    let _ztun = world.ztun(&format!("--socks5 {PROXY} --socks5 10.77.0.2:1081"));
    let works = || world.client.connect(&format!("{TARGET}:7")).and_then(|mut app| talk(&mut app));
    for _ in 0..5 {
        works().unwrap();
    }
    drop(first);
    for _ in 0..20 {
        works().unwrap();
    }
    let _first = world.microsocks(&world.server, PROXY);
    drop(second);
    until("the first is used again", || works().is_ok());
}

/// F8: an app that is killed with data in flight: its target hears of it at once.
#[test]
fn an_app_that_is_killed_resets_its_target() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    let ztun = world.ztun(&format!("--socks5 {PROXY} --pool 0"));
    let idle = ztun.descriptors();
    let listener = world.server.listen(&format!("{TARGET}:90"));
    let app = world.client.connect(&format!("{TARGET}:90")).unwrap();
    let (mut target, _) = accept(&listener);
    target.write_all(&vec![1; 1 << 20]).unwrap();
    until("data has come that the app will not read", || app.peek(&mut [0]).is_ok());
    let start = Instant::now();
    // The kernel resets a connection that is closed with data unread.
    drop(app);
    let error = write_until_error(&mut target);
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
    assert!(start.elapsed() < Duration::from_secs(1), "after {:?}", start.elapsed());
    until("the flow is gone", || ztun.descriptors() == idle);
}

/// Z3, F15: out of descriptors: new connections are refused, old ones live, nothing spins, and it works again afterwards.
#[test]
fn out_of_descriptors_refuses_the_new_and_keeps_the_old() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    let mut command = world.client.command("prlimit");
    command.args(["--nofile=100:100", ZTUN, "--socks5", PROXY]);
    let mut ztun = world.ready(command);
    let (mut kept, refused) = world.client.inside(|| {
        let mut kept = Vec::new();
        let mut refused = 0;
        for _ in 0..500 {
            match std::net::TcpStream::connect((TARGET, 7)) {
                Ok(stream) => kept.push(stream),
                Err(_) => refused += 1,
            }
        }
        (kept, refused)
    });
    assert!(refused > 300 && kept.len() > 50, "{} kept, {refused} refused", kept.len());
    for stream in &mut kept {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        talk(stream).unwrap();
    }
    // What the machine does meanwhile is followed all the same: there are descriptors that flows do not get.
    world.client.ok("ip route add 203.0.113.0/24 via 10.77.0.2");
    world.client.ok("ip link del ztun0");
    until("the device is made anew", || ztun.log().contains("was made anew"));
    kept.iter_mut().for_each(|stream| talk(stream).unwrap());
    // A full table costs nothing while nothing happens: the same moment passes for a loop that does turn.
    let before = ztun.ticks();
    Command::new("sh").args(["-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"]).status().unwrap();
    assert!(ztun.ticks() - before < 20, "{} ticks while idle", ztun.ticks() - before);
    assert!(ztun.log().lines().count() < 100, "a line for each refusal: {}", ztun.log());
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

/// F16: the device is taken down and up again by another program: connections that are still there go on, and nothing is left at the end.
#[test]
fn a_device_that_goes_down_and_up_again() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    let before = world.client.state();
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    talk(&mut world.client.connect(&format!("{TARGET}:7")).unwrap()).unwrap();
    world.client.ok("ip link set ztun0 down");
    let ticks = ztun.ticks();
    world.client.ok("ping -c 20 -i 0.05 10.77.0.2");
    assert!(ztun.ticks() - ticks < 30, "{} ticks while the device is down", ztun.ticks() - ticks);
    assert_eq!(ztun.stop(), Some(0), "{}", ztun.log());
    assert_eq!(world.client.state(), before, "{}", ztun.log());
}

/// Z4, F7, conformance 26: a slow reader stops its sender and nobody else, and costs bounded memory.
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
    let grown = ztun.memory().saturating_sub(before);
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

/// F1, Z4: packets are lost between the apps and ztun, in both directions: everything arrives whole.
#[test]
fn losses_on_the_device_are_made_good() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    let file = world.file(32);
    let sum = sha256_of(&file);
    world.http(&format!("{TARGET}:80"), &file);
    world.http(&format!("[{TARGET6}]:80"), &file);
    for (options, target) in [("--offload off", TARGET), ("--offload off", "[2001:db8::10]"), ("", TARGET)] {
        let mut ztun = world.ztun(&format!("--socks5 {PROXY} {options}"));
        // To ztun what leaves by the device, to the apps what comes in by it: every 50th, as a counter has it.
        world.client.ok("nft -f - <<'END'
table netdev loss {
 counter up { }
 counter down { }
 chain egress { type filter hook egress device ztun0 priority 0; numgen inc mod 50 == 7 counter name up drop; }
 chain ingress { type filter hook ingress device ztun0 priority 0; numgen inc mod 50 == 7 counter name down drop; }
}
END");
        let got = world.client.ok(&format!("set -o pipefail; curl -gsSf http://{target}/file | sha256sum"));
        assert!(got.starts_with(&sum), "{options} {target} down");
        let answer = world.client.ok(&format!("curl -gsSf -T {} http://{target}/up", file.display()));
        assert_eq!(answer, sum, "{options} {target} up");
        let counters = world.client.ok("nft list counters netdev; nft delete table netdev loss");
        assert!(!counters.contains("packets 0 "), "nothing was lost: {counters}");
        assert_eq!(ztun.stop(), Some(0));
    }
}

/// F25: whoever reads the log goes away: it keeps running, and cleans up in order.
#[test]
fn a_log_that_nobody_reads_does_not_end_it() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    let before = world.client.state();
    let mut command = world.client.command(ZTUN);
    command.args(["--socks5", PROXY, "--log-level", "debug"]);
    let mut ztun = world.start_to(command, Stdio::null(), Stdio::piped());
    let mut log = BufReader::new(ztun.child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("ready") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "ztun ended");
    }
    drop(log);
    for _ in 0..20 {
        talk(&mut world.client.connect(&format!("{TARGET}:7")).unwrap()).unwrap();
    }
    assert_eq!(ztun.stop(), Some(0));
    assert_eq!(world.client.state(), before);
}
