//! What goes where: rules, routes, bypass.

use crate::world::*;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Where the connection that the app at the client makes to `to` comes from, seen by the target.
fn seen_from(world: &World, to: &str) -> std::io::Result<IpAddr> {
    let listener = world.server.listen(to);
    world.client.connect(to).map(|_app| accept(&listener).1.ip())
}

/// Z8: what matches a rule goes its way; the first match counts.
#[test]
fn rules_send_flows_their_way() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    let mut command = world.client.command(ZTUN);
    for rule in ["port=91 -> direct", "port=92 -> reject", "port=93 -> drop", "proto=udp -> reject"] {
        command.args(["--rule", rule]);
    }
    command.args(["--socks5", PROXY]);
    let _ztun = world.ready(command);
    let own: IpAddr = "10.77.0.1".parse().unwrap();
    assert_ne!(seen_from(&world, "203.0.113.10:90").unwrap(), own, "by the proxy, which is on the server");
    assert_eq!(seen_from(&world, "203.0.113.10:91").unwrap(), own, "direct");
    let refused = seen_from(&world, "203.0.113.10:92").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let dropped = world.client.sh("curl -s --connect-timeout 1 http://203.0.113.10:93/");
    assert_eq!(dropped.status.code(), Some(28), "no answer at all");
    let udp = world.client.datagrams("0.0.0.0:0");
    let kind = world.client.inside(move || {
        udp.connect("203.0.113.10:7").unwrap();
        udp.send(b"x").unwrap();
        udp.recv(&mut [0]).unwrap_err().kind()
    });
    assert_eq!(kind, std::io::ErrorKind::ConnectionRefused);
}

/// Z8: `--bypass` and `--route` decide what is captured; the rest never sees the tunnel.
#[test]
fn bypass_and_route_decide_what_is_captured() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    let own: IpAddr = "10.77.0.1".parse().unwrap();
    let cases = [
        ("--bypass 203.0.113.0/24", own),
        ("--route 198.51.100.0/24", own),
        ("--route 203.0.113.0/24", "203.0.113.10".parse().unwrap()),
        ("--no-route", own),
    ];
    for (options, from) in cases {
        let mut ztun = world.ztun(&format!("--socks5 {PROXY} {options}"));
        assert_eq!(seen_from(&world, "203.0.113.10:90").unwrap(), from, "{options}");
        assert_eq!(ztun.stop(), Some(0));
    }
}

/// F23: IPv6 that is switched off is refused at once: it neither hangs nor leaks.
#[test]
fn ipv6_off_is_refused_and_does_not_leak() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    let _ztun = world.ztun(&format!("--socks5 {PROXY} --ipv6 off"));
    let listener = world.server.listen("[2001:db8::10]:90");
    listener.set_nonblocking(true).unwrap();
    let refused = world.client.connect("[2001:db8::10]:90").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(listener.accept().is_err(), "nothing came by the wire");
    assert!(seen_from(&world, "203.0.113.10:90").is_ok());
}

/// F23, RFC 7359: the proxy has IPv4 only and the machine both: IPv6 fails at once, by the proxy's own answer, and nothing of it takes the wire.
#[test]
fn a_proxy_without_ipv6_fails_at_once_and_nothing_leaks() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.server.ok("nft 'add table inet leak; add counter inet leak c; \
         add chain inet leak in { type filter hook prerouting priority -300; }; \
         add rule inet leak in iifname eth0 ip6 daddr 2001:db8:1::/48 counter name c'");
    let nothing = || world.server.ok("nft list counter inet leak c").contains("packets 0 ");
    // Without the tunnel it would take the wire.
    let target: std::net::SocketAddr = "[2001:db8:1::1]:90".parse().unwrap();
    world.client.datagrams("[::]:0").send_to(b"x", target).unwrap();
    until("the counter counts", || !nothing());
    world.server.ok("nft reset counter inet leak c");
    let _ztun = world.ztun(&format!("--socks5 {PROXY}"));
    for _ in 0..5 {
        let refused = world.client.connect("[2001:db8:1::1]:90").unwrap_err();
        assert_ne!(refused.kind(), std::io::ErrorKind::TimedOut, "{refused}");
    }
    world.client.datagrams("[::]:0").send_to(b"x", target).unwrap();
    assert!(seen_from(&world, "203.0.113.10:90").is_ok());
    assert!(nothing(), "nothing came by the wire");
}

/// F4: a proxy that cannot be reached is passed over for the next one.
#[test]
fn the_next_proxy_takes_over() {
    let Some(world) = world() else { return };
    world.echo(&format!("{TARGET}:7"));
    let _proxy = world.microsocks(&world.server, "10.77.0.2:1082");
    let _ztun = world.ztun("--socks5 10.77.0.2:1081 --socks5 10.77.0.2:1082");
    for _ in 0..5 {
        talk(&mut world.client.connect(&format!("{TARGET}:7")).unwrap()).unwrap();
    }
}

/// The contract of the command line: `--no-route` opens the device and leaves rules, routes and the way of every packet alone.
#[test]
fn no_route_leaves_the_routes_alone() {
    let Some(world) = world() else { return };
    let routing = || {
        world
            .client
            .ok("ip rule; ip -6 rule; ip route show table all | grep -v ztun0; ip route get 203.0.113.10")
    };
    let before = routing();
    let mut ztun = world.ztun(&format!("--socks5 {PROXY} --no-route"));
    assert_eq!(routing(), before);
    assert!(world.client.ok("ip addr show ztun0").contains("198.18.0.1"));
    assert_eq!(ztun.stop(), Some(0));
}

/// F20: a more specific route that someone pushes into the machine's table does not lead around the tunnel.
#[test]
fn a_more_specific_route_does_not_leak() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    let _ztun = world.ztun(&format!("--socks5 {PROXY}"));
    world.client.ok("ip route add 203.0.113.0/24 via 10.77.0.2 && ip -6 route add 2001:db8::/64 via fd77::2");
    let own = ["10.77.0.1", "fd77::1"].map(|addr| addr.parse::<IpAddr>().unwrap());
    for target in ["203.0.113.10:90", "[2001:db8::10]:90"] {
        assert!(!own.contains(&seen_from(&world, target).unwrap()), "{target}");
    }
}

/// The contract of the command line: `--interface` is where ztun's own connections leave, whatever the routes say.
#[test]
fn an_interface_that_is_asked_for_is_used() {
    let Some(world) = world() else { return };
    // A second wire to the server, which has the address of the proxy as well, and which no route prefers.
    let pair = format!(
        "ip link add eth1 type veth peer name eth1x && ip link set eth1x netns {} && ip link set eth1 addrgenmode none && \
         ip addr add 10.78.0.1/24 dev eth1 && ip link set eth1 up && ip route add default via 10.78.0.2 dev eth1 metric 500",
        world.server.name()
    );
    world.client.ok(&pair);
    world.server.ok("ip addr add 10.78.0.2/24 dev eth1x && ip link set eth1x up");
    let _proxy = world.embedded(&world.server, "0.0.0.0:1080");
    for (options, own) in [("", "10.77.0.1"), ("--interface eth1", "10.78.0.1")] {
        let mut command = world.client.command(ZTUN);
        command.args(["--socks5", PROXY, "--rule", "port=91 -> direct"]).args(options.split_whitespace());
        let mut ztun = world.ready(command);
        assert_eq!(seen_from(&world, "203.0.113.10:91").unwrap().to_string(), own, "{options}");
        assert!(seen_from(&world, "203.0.113.10:90").is_ok(), "{options}");
        let sockets = world.server.ok("ss -Htn 'sport = :1080'");
        assert!(sockets.contains(&format!("{own}:")), "{options}: {sockets}");
        assert_eq!(ztun.stop(), Some(0));
    }
}

/// F23, conformance 52: what the proxy has no way to fails at once with its reason; it neither hangs nor leaks.
#[test]
fn what_the_proxy_cannot_reach_fails_at_once() {
    let Some(world) = world() else { return };
    for proxy in ["embedded", "microsocks"] {
        let _proxy = match proxy {
            "embedded" => world.embedded(&world.server, PROXY),
            _ => world.microsocks(&world.server, PROXY),
        };
        let _ztun = world.ztun(&format!("--socks5 {PROXY}"));
        // The server has no route to either.
        for target in ["192.0.2.99:80", "[2001:db8:9::1]:80"] {
            let start = Instant::now();
            let error = world.client.connect(target).unwrap_err();
            assert!(!is_silence(&error), "{proxy} {target}: {error}");
            assert!(
                start.elapsed() < Duration::from_secs(1),
                "{proxy} {target}: {error} after {:?}",
                start.elapsed()
            );
        }
    }
}
