//! What goes where: rules, routes, bypass.

use crate::world::*;
use std::io::Read;
use std::net::IpAddr;

/// Where the connection that the app at the client makes to `to` comes from, seen by the target.
fn seen_from(world: &World, to: &str) -> std::io::Result<IpAddr> {
    let listener = world.server.listen(to);
    world.client.connect(to).map(|_app| listener.accept().unwrap().1.ip())
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
    let ztun = world.start(command);
    until("ztun is ready", || ztun.log().contains("ready"));
    let own: IpAddr = "10.77.0.1".parse().unwrap();
    assert_ne!(seen_from(&world, "203.0.113.10:90").unwrap(), own, "by the proxy, which is on the server");
    assert_eq!(seen_from(&world, "203.0.113.10:91").unwrap(), own, "direct");
    let refused = seen_from(&world, "203.0.113.10:92").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let dropped = world.client.sh("curl -s --connect-timeout 1 http://203.0.113.10:93/");
    assert_eq!(dropped.status.code(), Some(28), "no answer at all");
    let udp = world.client.inside(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect("203.0.113.10:7").unwrap();
        socket.send(b"x").unwrap();
        socket.recv(&mut [0]).unwrap_err().kind()
    });
    assert_eq!(udp.join().unwrap(), std::io::ErrorKind::ConnectionRefused);
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

/// F4: a proxy that cannot be reached is passed over for the next one.
#[test]
fn the_next_proxy_takes_over() {
    let Some(world) = world() else { return };
    world.echo(&format!("{TARGET}:7"));
    let _proxy = world.microsocks(&world.server, "10.77.0.2:1082");
    let _ztun = world.ztun("--socks5 10.77.0.2:1081 --socks5 10.77.0.2:1082");
    for _ in 0..5 {
        let mut stream = world.client.connect(&format!("{TARGET}:7")).unwrap();
        std::io::Write::write_all(&mut stream, b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
}
