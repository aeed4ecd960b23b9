//! The machine's network changes while the router runs.
//!
//! ```text
//!  client namespace                                     server namespace
//!  10.77.0.1  eth0 ───────────────────────────── eth0  10.77.0.2
//!  10.78.0.1  eth1 ───────────────────────────── eth1  10.78.0.2
//!                                                       on lo the proxy 192.0.2.20, and the targets
//! ```
//!
//! Both ways lead to the same proxy, by a gateway each. `eth1` is there, and up, but nothing leads to it before the test says so.

use crate::world::*;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The proxy behind both gateways.
const REMOTE: &str = "192.0.2.20:1080";

/// Makes the second way, and the address of the proxy.
fn second_way(world: &World) {
    let (client, server) = (world.client.name(), world.server.name());
    world.client.ok(&format!(
        "ip link add eth1 netns {client} type veth peer name eth1 netns {server} && ip link set eth1 up && ip addr add 10.78.0.1/24 dev eth1"
    ));
    world
        .server
        .ok("ip link set eth1 up && ip addr add 10.78.0.2/24 dev eth1 && ip addr add 192.0.2.20/32 dev lo");
    // As a machine with two networks has it.
    world.client.ok("sysctl -qw net.ipv4.conf.all.rp_filter=2");
}

fn target() -> String {
    format!("{TARGET}:7")
}

fn echo(world: &World) -> TcpStream {
    let mut app = world.client.connect(&target()).unwrap();
    talk(&mut app).unwrap();
    app
}

/// Whether the connection was reset, and not only silent.
fn is_reset(app: &mut TcpStream) -> bool {
    match app.read(&mut [0]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
    }
}

/// What the log says of flows that were given up: nothing.
fn assert_no_flow_lost(ztun: &Running) {
    let log = ztun.log();
    let lost =
        |line: &str| line.contains("lost with the old network") && !line.contains(": 0 TCP flows, 0 UDP");
    assert!(!log.lines().any(lost) && !log.contains("do not get through"), "{log}");
}

/// How long a new connection may take when there is a way again: two seconds, and more for a machine that does other things as well.
const SOON: Duration = Duration::from_secs(10);

/// A new connection works.
fn works_soon(world: &World) {
    let mut app =
        world.client.inside(|| TcpStream::connect_timeout(&target().parse().unwrap(), SOON).unwrap());
    app.set_read_timeout(Some(SOON)).unwrap();
    talk(&mut app).unwrap();
}

/// A download that goes on slowly, without coming to its end, until `free`; then to its end. Whether it is `whole`.
fn download(mut stream: TcpStream, whole: &[u8], free: &AtomicBool) -> bool {
    let mut got = Vec::new();
    let mut chunk = vec![0; 16 << 10];
    loop {
        if !free.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
            if got.len() > whole.len() / 2 {
                continue;
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) => return got.ends_with(whole),
            Ok(octets) => got.extend_from_slice(&chunk[..octets]),
            Err(error) => panic!("{error} after {} octets", got.len()),
        }
    }
}

/// Z11, F20: the default route moves to another gateway, on another interface, while 100 downloads run through a remote proxy: all of them can live, since
/// both ways lead there, and do; new ones work at once.
#[test]
fn a_hundred_downloads_outlive_a_change_of_the_default_route() {
    let Some(world) = world() else { return };
    second_way(&world);
    let _proxy = world.embedded(&world.server, REMOTE);
    world.echo(&target());
    let file = world.file(12);
    world.http(&format!("{TARGET}:80"), &file);
    let whole: Arc<[u8]> = std::fs::read(&file).unwrap().into();
    let free = Arc::new(AtomicBool::new(false));
    let mut ztun = world.ztun(&format!("--socks5 {REMOTE}"));
    let downloads: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = world.client.connect(&format!("{TARGET}:80")).unwrap();
            stream.write_all(b"GET /file HTTP/1.1\r\n\r\n").unwrap();
            stream.read_exact(&mut [0; 8]).unwrap();
            let (whole, free) = (Arc::clone(&whole), Arc::clone(&free));
            std::thread::spawn(move || download(stream, &whole, &free))
        })
        .collect();
    world.client.ok("ip route replace default via 10.78.0.2 dev eth1");
    works_soon(&world);
    until("it is noticed", || ztun.log().contains("default route by eth1 via 10.78.0.2"));
    works_soon(&world);
    let leaves = world.client.ok("ss -Htn state established dst 192.0.2.20");
    assert!(leaves.contains("10.78.0.1"), "new connections leave by the new way: {leaves}");
    free.store(true, Ordering::Relaxed);
    until_within(LONGEST, "the downloads end", || downloads.iter().all(|download| download.is_finished()));
    for download in downloads {
        assert!(download.join().unwrap(), "octets are missing");
    }
    assert_no_flow_lost(&ztun);
    assert_eq!(ztun.stop(), Some(0));
}

/// Z11: another network comes with a better metric, as a cable does beside Wi-Fi. What was begun on the old one goes on there, although a packet
/// with its address would not get through on the new one.
#[test]
fn connections_stay_on_their_own_interface_while_there_is_a_route_by_it() {
    let Some(world) = world() else { return };
    second_way(&world);
    let _proxy = world.embedded(&world.server, REMOTE);
    world.echo(&target());
    world
        .client
        .ok("ip route replace default via 10.77.0.2 dev eth0 metric 600 && ip route del default metric 0");
    let mut ztun = world.ztun(&format!("--socks5 {REMOTE}"));
    let mut old = echo(&world);
    // The new network's router passes on nothing that comes from elsewhere (RFC 2827).
    world.server.ok("nft 'add chain inet t bcp38 { type filter hook prerouting priority 0; }; \
              add rule inet t bcp38 iifname eth1 ip saddr != 10.78.0.0/24 counter drop'");
    world.client.ok("ip route add default via 10.78.0.2 dev eth1 metric 100");
    until("it is noticed", || {
        ztun.log().contains("default route by eth1 via 10.78.0.2, by eth0 via 10.77.0.2")
    });
    for _ in 0..10 {
        talk(&mut old).unwrap();
    }
    works_soon(&world);
    let leaves = world.client.ok("ss -Htn state established dst 192.0.2.20");
    assert!(leaves.contains("10.78.0.1"), "new connections leave by the new way: {leaves}");
    assert_eq!(ztun.stop(), Some(0));
}

/// Z11: the default route goes elsewhere and the old address gets nowhere by the new way: who gets no answer is dead, and hears so.
#[test]
fn connections_that_do_not_get_through_any_more_are_reset() {
    let Some(world) = world() else { return };
    second_way(&world);
    let _proxy = world.embedded(&world.server, REMOTE);
    world.echo(&target());
    let mut ztun = world.ztun(&format!("--socks5 {REMOTE}"));
    let (mut idle, mut sending) = (echo(&world), echo(&world));
    world.server.ok("nft 'add chain inet t bcp38 { type filter hook prerouting priority 0; }; \
              add rule inet t bcp38 iifname eth1 ip saddr != 10.78.0.0/24 counter drop'");
    world.client.ok("ip route replace default via 10.78.0.2 dev eth1");
    until("it is noticed", || ztun.log().contains("default route by eth1"));
    sending.write_all(b"x").unwrap();
    works_soon(&world);
    assert!(is_reset(&mut idle), "{}", ztun.log());
    assert!(is_reset(&mut sending), "{}", ztun.log());
    assert_eq!(ztun.stop(), Some(0));
}

/// Z11: the link goes down for a while and comes back with its address and routes: flows wait and go on, and so do connections that
/// were asked for meanwhile.
#[test]
fn a_link_that_goes_down_and_comes_back_costs_nothing() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&target());
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let mut old = echo(&world);
    world.client.ok("ip link set eth0 down");
    until("it is noticed", || ztun.log().contains("the network is gone"));
    old.write_all(b"x").unwrap();
    let mut curl = world.client.command("bash");
    curl.args(["-c", &format!("exec 3<>/dev/tcp/{TARGET}/7 && echo hello >&3 && head -n 1 <&3")]);
    let mut waiting = world.start(curl);
    until("the app has asked", || {
        world.client.ok(&format!("ss -Htn state syn-sent dst {TARGET}")).lines().count() == 1
    });
    world.client.ok("ip link set eth0 up && ip addr replace fd77::1/64 dev eth0 nodad && ip route replace default via 10.77.0.2");
    until("it is noticed", || ztun.log().contains("the network is back"));
    works_soon(&world);
    assert_eq!(waiting.end(), Some(0), "{}", ztun.log());
    assert_eq!(waiting.log(), "hello\n");
    old.read_exact(&mut [0]).unwrap();
    talk(&mut old).unwrap();
    assert_eq!(ztun.log().matches("the network is gone").count(), 1, "{}", ztun.log());
    assert_eq!(ztun.stop(), Some(0));
}

/// Z11: without a network an app is not left hanging for ever either.
#[test]
fn without_a_network_a_connection_is_refused_after_the_connect_time_out() {
    let Some(world) = world() else { return };
    let mut ztun = world.ztun(&format!("--socks5 {PROXY} --connect-timeout 2s"));
    world.client.ok("ip link set eth0 down");
    until("it is noticed", || ztun.log().contains("the network is gone"));
    let error = world.client.connect(&target()).unwrap_err();
    assert!(!is_silence(&error), "{error}");
    assert_eq!(ztun.stop(), Some(0));
}

/// Z11: a lease is renewed with another address: what had the old one is reset at once, and its app can connect again.
#[test]
fn another_address_resets_what_had_the_old_one() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&target());
    world.answer(&format!("{TARGET}:9"), |octets| octets.to_vec());
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let mut apps: Vec<TcpStream> = (0..20).map(|_| echo(&world)).collect();
    let datagrams = world.client.datagrams("0.0.0.0:0");
    datagrams.connect(format!("{TARGET}:9")).unwrap();
    let ask = || {
        datagrams.send(b"who").unwrap();
        datagrams.recv(&mut [0; 8])
    };
    assert_eq!(ask().unwrap(), 3);
    world.client.ok("ip addr add 10.77.0.9/24 dev eth0 && ip addr del 10.77.0.1/24 dev eth0 && \
         ip addr add 10.77.0.9/24 dev eth0 2>/dev/null; ip route replace default via 10.77.0.2");
    for app in &mut apps {
        assert!(is_reset(app), "{}", ztun.log());
    }
    works_soon(&world);
    until("the rules follow the address", || world.client.ok("ip rule").contains("from 10.77.0.9"));
    assert!(!world.client.ok("ip rule").contains("from 10.77.0.1 "), "{}", world.client.ok("ip rule"));
    // The same socket of the app: its association is made again by the next datagram.
    datagrams.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    until("datagrams go on", || ask().is_ok_and(|octets| octets == 3));
    assert_eq!(ztun.stop(), Some(0), "{}", ztun.log());
}

/// F20, TunnelVision: a more specific route that somebody pushes into main captures nothing, and disturbs nothing.
#[test]
fn a_more_specific_route_captures_nothing() {
    let Some(world) = world() else { return };
    second_way(&world);
    let _proxy = world.embedded(&world.server, REMOTE);
    world.echo(&target());
    let mut ztun = world.ztun(&format!("--socks5 {REMOTE}"));
    let mut old = echo(&world);
    world.server.ok(
        "nft 'add counter inet t leaked; add chain inet t leak { type filter hook prerouting priority 0; }; \
              add rule inet t leak iifname != lo ip daddr 203.0.113.0/24 counter name leaked'",
    );
    world.client.ok("ip route add 203.0.113.0/24 via 10.78.0.2 dev eth1");
    for _ in 0..10 {
        works_soon(&world);
        talk(&mut old).unwrap();
    }
    let counter = world.server.ok("nft list counter inet t leaked");
    assert!(counter.contains("packets 0 "), "{counter}");
    assert_eq!(ztun.stop(), Some(0));
}

/// Z11: flows to a proxy on this machine have nothing to do with its network.
#[test]
fn flows_to_a_proxy_on_loopback_outlive_everything() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.client, "127.0.0.1:1080");
    let mut ztun = world.ztun("--socks5 127.0.0.1:1080");
    world.echo(&target());
    let mut app = echo(&world);
    for line in [
        "ip link set eth0 down",
        "ip link set eth0 up && ip route replace default via 10.77.0.2",
        "ip route del default",
        "ip route add default via 10.77.0.2",
    ] {
        world.client.ok(line);
    }
    until("the flow goes on", || talk(&mut app).is_ok());
    assert!(!ztun.log().contains("the network is gone"), "{}", ztun.log());
    assert_no_flow_lost(&ztun);
    assert_eq!(ztun.stop(), Some(0));
}

/// Z11: `--interface` is a name: one that is made anew under it is used.
#[test]
fn an_interface_made_anew_is_used() {
    let Some(world) = world() else { return };
    second_way(&world);
    let _proxy = world.embedded(&world.server, REMOTE);
    world.echo(&target());
    world.client.ok("ip route replace default via 10.78.0.2 dev eth1");
    let mut ztun = world.ztun(&format!("--socks5 {REMOTE} --interface eth1"));
    let mut app = echo(&world);
    world.client.ok("ip link del eth1");
    let (client, server) = (world.client.name(), world.server.name());
    world.client.ok(&format!(
        "ip link add eth1 netns {client} type veth peer name eth1 netns {server} && ip link set eth1 up && ip addr add 10.78.0.1/24 dev eth1"
    ));
    world.server.ok("ip link set eth1 up && ip addr add 10.78.0.2/24 dev eth1");
    world.client.ok("ip route add default via 10.78.0.2 dev eth1");
    until("it is noticed", || ztun.log().contains("the interface eth1 was made anew"));
    assert!(is_reset(&mut app));
    works_soon(&world);
    assert_eq!(ztun.stop(), Some(0), "{}", ztun.log());
}

/// F20: somebody deletes ztun's rules and routes: they are made again.
#[test]
fn rules_and_routes_that_somebody_deletes_are_made_again() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&target());
    let before = world.client.state();
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let rules = world.client.ok("ip rule");
    let into_device = || world.client.ok("ip route show table 31348 dev ztun0");
    let routes = into_device();
    assert!(!routes.is_empty());
    world.client.ok("ip rule del pref 5210 && ip rule del pref 5200 && ip route flush table 31348");
    until("they are there again", || world.client.ok("ip rule") == rules && into_device() == routes);
    echo(&world);
    assert_eq!(ztun.stop(), Some(0));
    assert_eq!(world.client.state(), before);
}

/// An idle network costs nothing: the monitor does not poll.
#[test]
fn an_idle_network_wakes_nobody() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&target());
    let ztun = world.ztun(&format!("--socks5 {PROXY}"));
    echo(&world);
    let switches = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", ztun.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    // The first look has been made, and the flow is over.
    until("it is quiet", || {
        let before = switches();
        world.client.ok("ping -c 20 -i 0.05 10.77.0.2");
        switches() == before
    });
}
