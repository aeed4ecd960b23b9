//! The headline use: a proxy on this very machine, whose own connections must not come back into the tunnel.

use crate::world::*;
use std::io::{Read, Write};

const LOCAL: &str = "127.0.0.1:1080";

/// A hundred megabytes down and 300 connections, half of them at once.
fn use_it(world: &World) {
    let got = world.client.ok(&format!("set -o pipefail; curl -sSf http://{TARGET}/file | sha256sum"));
    assert!(got.starts_with(&sha256_of(&world.file(100))));
    let apps = world.client.inside(|| {
        let connect = || std::net::TcpStream::connect((TARGET, 7)).unwrap();
        let check = |stream: &mut std::net::TcpStream| {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
        };
        for _ in 0..150 {
            check(&mut connect());
        }
        let mut streams: Vec<_> = (0..150).map(|_| connect()).collect();
        streams.iter_mut().for_each(check);
    });
    apps.join().unwrap();
    let refused = world.client.sh(&format!("curl -sS --max-time 10 http://{TARGET}:81/"));
    assert_eq!(refused.status.code(), Some(7));
}

fn targets(world: &World) {
    world.http(&format!("{TARGET}:80"), &world.file(100));
    world.echo(&format!("{TARGET}:7"));
}

/// F21: an ordinary local proxy, as root and as a user of its own, forking or with threads, and the embedded one.
#[test]
fn a_local_proxy_does_not_loop() {
    let Some(world) = world() else { return };
    targets(&world);
    let client = &world.client;
    let system_user = || {
        let mut command = client.command("setpriv");
        command.args(["--reuid", "777", "--regid", "777", "--clear-groups", "microsocks", "-i", "127.0.0.1"]);
        world.listening(client, command, LOCAL)
    };
    let proxies: [(&str, &dyn Fn() -> Running, &str); 4] = [
        ("microsocks", &|| world.microsocks(client, LOCAL), "flow by flow"),
        ("microsocks of a system user", &system_user, "by its user"),
        ("dante", &|| world.dante(client, LOCAL, "nobody"), "flow by flow"),
        ("embedded", &|| world.embedded(client, LOCAL), "flow by flow"),
    ];
    for (name, start, how) in proxies {
        let proxy = start();
        let mut ztun = world.ztun(&format!("--socks5 {LOCAL}"));
        assert!(ztun.log().contains(how), "{name}: {}", ztun.log());
        use_it(&world);
        assert!(!ztun.log().contains("loop"), "{name}: {}", ztun.log());
        assert_eq!(ztun.stop(), Some(0), "{name}");
        drop(proxy);
    }
}

/// F21: the proxy is started after ztun, and started again while ztun runs.
#[test]
fn a_local_proxy_may_come_later_and_come_again() {
    let Some(world) = world() else { return };
    targets(&world);
    let mut ztun = world.ztun(&format!("--socks5 {LOCAL}"));
    assert!(ztun.log().contains("nobody listens"), "{}", ztun.log());
    let refused = world.client.sh(&format!("curl -sS --max-time 10 http://{TARGET}/file"));
    assert!(matches!(refused.status.code(), Some(7 | 56)), "{:?}", refused.status);
    for _ in 0..2 {
        let _proxy = world.microsocks(&world.client, LOCAL);
        use_it(&world);
    }
    assert!(!ztun.log().contains("loop"), "{}", ztun.log());
    assert_eq!(ztun.stop(), Some(0));
}

/// F21: a loop that happens all the same is said in one message, and ends; it does not fill any table.
#[test]
fn a_loop_is_detected_and_said() {
    let Some(world) = world() else { return };
    targets(&world);
    let _proxy = world.microsocks(&world.client, LOCAL);
    let mut ztun = world.ztun(&format!("--socks5 {LOCAL} --local-proxy off --connect-timeout 3s"));
    let output = world.client.sh(&format!("curl -sS --max-time 30 http://{TARGET}/file"));
    assert!(!output.status.success());
    until("the loop is said", || ztun.log().contains("loop"));
    // Bounded: nowhere near the descriptors or the flows that there are.
    assert!(ztun.descriptors() < 2_000, "{}", ztun.descriptors());
    assert!(ztun.log().matches("loop").count() < 20, "{}", ztun.log());
    assert_eq!(ztun.stop(), Some(0));
}

/// F21: the proxy's connections leave by the wire, with the machine's own address; the app's go into the tunnel.
#[test]
fn what_the_proxy_sends_leaves_by_the_wire() {
    let Some(world) = world() else { return };
    targets(&world);
    let _proxy = world.microsocks(&world.client, LOCAL);
    let _ztun = world.ztun(&format!("--socks5 {LOCAL}"));
    // What arrives at the server comes from the machine's own address, so from outside the tunnel.
    let listener = world.server.listen(&format!("{TARGET}:99"));
    let _app = world.client.connect(&format!("{TARGET}:99")).unwrap();
    let (_target, from) = listener.accept().unwrap();
    assert_eq!(from.ip().to_string(), "10.77.0.1");
    // And the app's own socket is the tunnel's.
    let sockets = world.client.ok("ss -Htn");
    let leads =
        |from: &str| sockets.lines().any(|line| line.contains(from) && line.contains("203.0.113.10:99"));
    assert!(leads("198.18.0.1:") && leads("10.77.0.1:"), "{sockets}");
}
