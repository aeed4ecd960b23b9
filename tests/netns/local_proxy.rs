//! The headline use: a proxy on this very machine, whose own connections must not come back into the tunnel.

use crate::world::*;
use std::time::{Duration, Instant};

const LOCAL: &str = "127.0.0.1:1080";
/// Connections that [`use_it`] makes to the echo target.
const CONNECTIONS: u64 = 500;

/// A hundred megabytes down and 500 connections, half of them open at once; what leaves the machine is counted. `passes`: how many times
/// each connection is seen in the tunnel: as the app's, and as the proxy's, unless a routing rule keeps that
/// outside: for its user, or (dante) because it binds its sockets to the machine's own address.
fn use_it(world: &World, passes: u64) {
    world.client.ok("nft -f - <<'END'
table inet count {
 counter wire { }
 counter tunnel { }
 chain out {
  type filter hook output priority 0
  tcp dport 7 tcp flags & (syn|ack) == syn oifname eth0 counter name wire
  tcp dport 7 tcp flags & (syn|ack) == syn oifname ztun0 counter name tunnel
 }
}
END");
    let got = world.client.ok(&format!("set -o pipefail; curl -sSf http://{TARGET}/file | sha256sum"));
    assert!(got.starts_with(&sha256_of(&world.file(100))));
    world.client.inside(|| {
        let connect = || std::net::TcpStream::connect((TARGET, 7)).unwrap();
        let check = |stream: &mut std::net::TcpStream| {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            talk(stream).unwrap();
        };
        for _ in 0..CONNECTIONS / 2 {
            check(&mut connect());
        }
        let mut streams: Vec<_> = (0..CONNECTIONS / 2).map(|_| connect()).collect();
        streams.iter_mut().for_each(check);
    });
    // Each connection leaves by the wire once: no loop. A few SYNs may be sent again.
    let counted = |name: &str| {
        let line = world.client.ok(&format!("nft list counter inet count {name} | grep packets"));
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let (wire, tunnel) = (counted("wire"), counted("tunnel"));
    world.client.ok("nft delete table inet count");
    assert!((CONNECTIONS..CONNECTIONS + 50).contains(&wire), "{wire} connections left by the wire");
    let expected = passes * CONNECTIONS;
    assert!((expected..expected + 50).contains(&tunnel), "{tunnel} connections went into the tunnel");
    let start = Instant::now();
    let refused = world.client.sh(&format!("curl -sS --max-time 10 http://{TARGET}:81/"));
    assert_eq!(refused.status.code(), Some(7));
    assert!(start.elapsed() < Duration::from_secs(1), "refused after {:?}", start.elapsed());
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
    type Start<'a> = &'a dyn Fn() -> Running;
    let proxies: [(&str, Start<'_>, &str, u64); 4] = [
        ("microsocks", &|| world.microsocks(client, LOCAL), "flow by flow", 2),
        ("microsocks of a system user", &system_user, "by its user", 1),
        ("dante", &|| world.dante(client, LOCAL, "nobody"), "flow by flow", 1),
        ("embedded", &|| world.embedded(client, LOCAL), "flow by flow", 2),
    ];
    for (name, start, how, passes) in proxies {
        let proxy = start();
        let mut ztun = world.ztun(&format!("--socks5 {LOCAL}"));
        assert!(ztun.log().contains(how), "{name}: {}", ztun.log());
        use_it(&world, passes);
        assert!(!ztun.log().contains("loop"), "{name}: {}", ztun.log());
        assert_eq!(ztun.stop(), Some(0), "{name}");
        drop(proxy);
    }
}

/// F21: the same over IPv6, with the proxy on ::1.
#[test]
fn a_local_proxy_on_the_ipv6_loopback_does_not_loop() {
    let Some(world) = world() else { return };
    targets(&world);
    world.echo(&format!("[{TARGET6}]:7"));
    let _proxy = world.embedded(&world.client, "[::1]:1080");
    let mut ztun = world.ztun("--socks5 [::1]:1080");
    use_it(&world, 2);
    for _ in 0..20 {
        talk(&mut world.client.connect(&format!("[{TARGET6}]:7")).unwrap()).unwrap();
    }
    assert_eq!(ztun.stop(), Some(0), "{}", ztun.log());
}

/// F21: the proxy is started after ztun, and started again while ztun runs.
#[test]
fn a_local_proxy_may_come_later_and_come_again() {
    let Some(world) = world() else { return };
    targets(&world);
    let mut ztun = world.ztun(&format!("--socks5 {LOCAL}"));
    assert!(ztun.log().contains("nobody listens"), "{}", ztun.log());
    let refused = world.client.sh(&format!("curl -sS --max-time 10 http://{TARGET}/file"));
    assert_eq!(refused.status.code(), Some(7));
    for round in 0..3 {
        let (_proxy, passes) = match round {
            0 => (world.microsocks(&world.client, LOCAL), 2),
            1 => (world.dante(&world.client, LOCAL, "nobody"), 1),
            _ => (world.embedded(&world.client, LOCAL), 2),
        };
        use_it(&world, passes);
    }
    assert!(!ztun.log().contains("loop"), "{}", ztun.log());
    assert_eq!(ztun.stop(), Some(0));
}

/// F21: a loop that happens all the same is said in one message, and ends; it does not fill any table, and does not spin afterwards.
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
    until("the flows of the loop are over", || ztun.descriptors() < 50);
    assert_eq!(ztun.stop(), Some(0));
}

/// F21: datagrams that loop, each round by a socket of its own, are bounded and said as well; what does not loop goes on.
#[test]
fn a_loop_of_datagrams_is_detected_and_said() {
    let Some(world) = world() else { return };
    world.echo(&format!("{TARGET}:7"));
    let proxies: [(&str, &dyn Fn() -> Running); 2] = [
        ("dante", &|| world.dante(&world.client, LOCAL, "nobody")),
        ("embedded", &|| world.embedded(&world.client, LOCAL)),
    ];
    for (name, start) in proxies {
        let _proxy = start();
        // What does not loop is what the proxy need not be asked for.
        let mut command = world.client.command(ZTUN);
        command.args(["--socks5", LOCAL, "--local-proxy", "off", "--rule", "proto=tcp -> direct"]);
        let mut ztun = world.ready(command);
        let socket = world.client.datagrams("0.0.0.0:0");
        socket.send_to(b"round and round", (TARGET, 7)).unwrap();
        if name == "embedded" {
            until("the loop is said", || ztun.log().contains("loop"));
            assert_eq!(ztun.log().matches("loop").count(), 1, "{}", ztun.log());
        }
        let descriptors = ztun.descriptors();
        for _ in 0..10 {
            talk(&mut world.client.connect(&format!("{TARGET}:7")).unwrap()).unwrap();
        }
        assert!(descriptors < 1_500, "{name}: {descriptors}");
        assert_eq!(ztun.stop(), Some(0), "{name}: {}", ztun.log());
    }
}

/// F21: the rules that keep ztun's own connections outside are deleted by another program: the loop that follows is bounded and said.
#[test]
fn lost_rules_do_not_fill_the_tables() {
    let Some(world) = world() else { return };
    targets(&world);
    let mut command = world.client.command(ZTUN);
    command.args(["--socks5", "10.77.0.2:1", "--rule", "any -> direct", "--connect-timeout", "2s"]);
    let mut ztun = world.ready(command);
    talk(&mut world.client.connect(&format!("{TARGET}:7")).unwrap()).unwrap();
    world.client.ok("for pref in 5200 5201; do ip rule del pref $pref; ip -6 rule del pref $pref; done");
    let output = world.client.sh(&format!("curl -sS --max-time 30 http://{TARGET}/file"));
    assert!(!output.status.success());
    until("the loop is said", || ztun.log().contains("loop"));
    assert!(ztun.descriptors() < 2_000, "{}", ztun.descriptors());
    until("the flows of the loop are over", || ztun.descriptors() < 50);
    // The rules that are missing are not ztun's to delete any more: that is no failure.
    assert_eq!(ztun.stop(), Some(0), "{}", ztun.log());
}

/// F21: the proxy's connections leave by the wire, with the machine's own address; the app's go into the tunnel.
#[test]
fn what_the_proxy_sends_leaves_by_the_wire() {
    let Some(world) = world() else { return };
    let _proxy = world.microsocks(&world.client, LOCAL);
    let _ztun = world.ztun(&format!("--socks5 {LOCAL}"));
    // What arrives at the server comes from the machine's own address, so from outside the tunnel.
    let listener = world.server.listen(&format!("{TARGET}:99"));
    let _app = world.client.connect(&format!("{TARGET}:99")).unwrap();
    let (_target, from) = accept(&listener);
    assert_eq!(from.ip().to_string(), "10.77.0.1");
    // And the app's own socket is the tunnel's.
    let sockets = world.client.ok("ss -Htn");
    let leads =
        |from: &str| sockets.lines().any(|line| line.contains(from) && line.contains("203.0.113.10:99"));
    assert!(leads("198.18.0.1:") && leads("10.77.0.1:"), "{sockets}");
}
