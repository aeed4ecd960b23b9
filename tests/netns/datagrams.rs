//! UDP, DNS and ping.

use crate::world::*;
use std::io::ErrorKind;
use std::net::UdpSocket;

/// The largest datagram that a SOCKS5 server over IPv4 can be given: 65,507 octets less the header of RFC 1928 section 7.
const LARGEST: usize = 65_507 - 10;

/// Gives back every datagram.
fn echo(world: &World, at: &str) {
    world.answer(at, <[u8]>::to_vec);
}

/// Answers every question with 192.0.2.53.
fn dns(world: &World, at: &str) {
    world.answer(at, |question| {
        // Without the additional records of the question (EDNS), one answer behind the name.
        let end = 12 + question[12..].iter().position(|octet| *octet == 0).unwrap() + 5;
        let mut answer = question[..end].to_vec();
        answer[2..4].copy_from_slice(&[0x81, 0x80]);
        answer[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
        answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 53]);
        answer
    });
}

fn data(size: usize) -> Vec<u8> {
    (0..size).map(|octet| (octet * 7 + size) as u8).collect()
}

fn exchange(world: &World, to: &'static str, sizes: &'static [usize]) {
    let socket = world.client.datagrams(if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" });
    let mut buffer = vec![0; 65_536];
    for &size in sizes {
        socket.send_to(&data(size), to).unwrap();
        let (octets, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from, to.parse().unwrap());
        assert!(buffer[..octets] == data(size), "{size} octets");
    }
}

/// Sends a datagram to `to`; the error that comes back.
fn refusal(world: &World, to: &'static str) -> ErrorKind {
    let socket = world.client.datagrams(if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" });
    world.client.inside(move || {
        socket.connect(to).unwrap();
        socket.send(b"x").unwrap();
        socket.recv(&mut [0; 8]).unwrap_err().kind()
    })
}

/// Z5: echo and names through dante and the embedded proxy; datagrams of every size, larger than the MTU too.
#[test]
fn datagrams_and_names_through_dante_and_the_embedded_proxy() {
    let Some(world) = world() else { return };
    let _embedded = world.embedded(&world.server, PROXY);
    let _dante = world.dante(&world.server, "10.77.0.2:1081", "nobody");
    echo(&world, "203.0.113.10:7");
    echo(&world, "[2001:db8::10]:7");
    dns(&world, "203.0.113.10:53");
    for proxy in [PROXY, "10.77.0.2:1081"] {
        let mut ztun = world.ztun(&format!("--socks5 {proxy}"));
        exchange(&world, "203.0.113.10:7", &[0, 1, 512, 1_472, 1_473, 4_000, 8_000]);
        let answer = world.client.ok(&format!("dig +short +tries=1 +time=10 name.test @{TARGET}"));
        assert_eq!(answer.trim(), "192.0.2.53", "{proxy}");
        assert_eq!(ztun.stop(), Some(0));
    }
    for offload in ["auto", "off"] {
        let mut ztun = world.ztun(&format!("--socks5 {PROXY} --offload {offload}"));
        exchange(&world, "[2001:db8::10]:7", &[1, 1_452, 1_453, 30_000, 65_000]);
        exchange(&world, "203.0.113.10:7", &[30_000, 65_000, LARGEST]);
        assert_eq!(ztun.stop(), Some(0));
    }
}

/// Z5, conformance 54: a datagram that cannot be carried is lost as datagrams are; the association and its next datagrams are not.
#[test]
fn a_datagram_too_large_for_the_proxy_harms_no_other() {
    let Some(world) = world() else { return };
    let _embedded = world.embedded(&world.server, PROXY);
    echo(&world, "203.0.113.10:7");
    let _ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let socket = world.client.datagrams("0.0.0.0:0");
    let mut buffer = vec![0; 65_536];
    for size in [100, LARGEST + 1, 65_507, 200] {
        socket.send_to(&data(size), "203.0.113.10:7").unwrap();
    }
    // No network in between reorders: the answers are those of the first and the last.
    for size in [100, 200] {
        let octets = socket.recv(&mut buffer).unwrap();
        assert_eq!(octets, size);
    }
}

/// Z7: a thousand questions at once are answered, each; dnsperf counts.
#[test]
fn no_question_is_lost() {
    let Some(world) = world() else { return };
    let _embedded = world.embedded(&world.server, PROXY);
    dns(&world, "203.0.113.10:53");
    let _ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let load = format!(
        "yes 'name.test A' | head -1000 >{0}/q && dnsperf -s {TARGET} -d {0}/q -n 5 -q 20 -t 10",
        world.dir.path().display()
    );
    let report = world.client.ok(&load);
    assert!(report.contains("Queries completed:    5000 (100.00%)"), "{report}");
}

/// Z5, conformance 54: one socket of an app talks to many targets, and each answer comes from the target that was asked.
#[test]
fn one_socket_talks_to_many_targets() {
    let Some(world) = world() else { return };
    let _embedded = world.embedded(&world.server, PROXY);
    let ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let socket = world.client.datagrams("0.0.0.0:0");
    let ports = 7_000..7_020_u16;
    for port in ports.clone() {
        world.answer(&format!("{TARGET}:{port}"), move |_| port.to_be_bytes().to_vec());
    }
    socket.send_to(b"x", (TARGET, 7_000)).unwrap();
    socket.recv(&mut [0; 8]).unwrap();
    let one = ztun.descriptors();
    for port in ports.rev() {
        socket.send_to(b"x", (TARGET, port)).unwrap();
        let mut answer = [0; 8];
        let (octets, from) = socket.recv_from(&mut answer).unwrap();
        assert_eq!((from.port(), &answer[..octets]), (port, &port.to_be_bytes()[..]));
    }
    assert_eq!(ztun.descriptors(), one, "one association for all targets");
}

/// Z6: an association that is idle goes; the next datagram makes a new one.
#[test]
fn an_idle_association_goes_and_comes_again() {
    let Some(world) = world() else { return };
    let _embedded = world.embedded(&world.server, PROXY);
    echo(&world, "203.0.113.10:7");
    // Without connections kept ready, every descriptor is the association's.
    let ztun = world.ztun(&format!("--socks5 {PROXY} --udp-idle 1s --pool 0"));
    let idle = ztun.descriptors();
    let socket: UdpSocket = world.client.datagrams("0.0.0.0:0");
    for _ in 0..2 {
        socket.send_to(b"x", "203.0.113.10:7").unwrap();
        assert_eq!(socket.recv(&mut [0; 8]).unwrap(), 1);
        until("the association is gone", || ztun.descriptors() == idle);
    }
}

/// Z5, F4, conformance 52: a proxy without UDP, or no proxy at all, refuses each datagram by ICMP ("communication administratively prohibited"):
/// nobody waits.
#[test]
fn a_proxy_without_udp_refuses_at_once() {
    let Some(world) = world() else { return };
    let _proxy = world.microsocks(&world.server, PROXY);
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let targets = ["203.0.113.10:7", "[2001:db8::10]:7", "203.0.113.10:53"];
    for target in targets {
        let kind = refusal(&world, target);
        assert!(
            matches!(kind, ErrorKind::HostUnreachable | ErrorKind::PermissionDenied),
            "{target}: {kind:?}"
        );
    }
    assert_eq!(ztun.stop(), Some(0));
    let _nobody = world.ztun("--socks5 10.77.0.2:1");
    for target in targets {
        let kind = refusal(&world, target);
        assert!(
            matches!(kind, ErrorKind::HostUnreachable | ErrorKind::PermissionDenied),
            "{target}: {kind:?}"
        );
    }
}

/// Z9, conformance 51: echo requests of both families, fragmented ones too.
#[test]
fn ping_is_answered() {
    let Some(world) = world() else { return };
    let _ztun = world.ztun("--socks5 10.77.0.2:1");
    for line in [
        "ping -c 3 -i 0.2 -W 5 203.0.113.10",
        "ping -c 3 -i 0.2 -W 5 2001:db8::10",
        "ping -c 3 -i 0.2 -W 5 -s 4000 203.0.113.10",
        "ping -c 3 -i 0.2 -W 5 -s 4000 2001:db8::10",
        "ping -c 1 -W 5 -s 65507 203.0.113.10",
    ] {
        assert!(world.client.ok(line).contains(" 0% packet loss"), "{line}");
    }
}

/// Z5, F21: the datagrams of a proxy on this machine do not come back either.
#[test]
fn datagrams_through_a_proxy_on_this_machine() {
    let Some(world) = world() else { return };
    echo(&world, "203.0.113.10:7");
    dns(&world, "203.0.113.10:53");
    let dante = || world.dante(&world.client, "127.0.0.1:1080", "nobody");
    let embedded = || world.embedded(&world.client, "127.0.0.1:1080");
    let proxies: [(&str, &dyn Fn() -> Running); 2] = [("dante", &dante), ("embedded", &embedded)];
    for (name, start) in proxies {
        let _proxy = start();
        let mut ztun = world.ztun("--socks5 127.0.0.1:1080");
        exchange(&world, "203.0.113.10:7", &[1, 512, 1_472, 4_000]);
        let answer = world.client.ok(&format!("dig +short +tries=1 +time=10 name.test @{TARGET}"));
        assert_eq!(answer.trim(), "192.0.2.53", "{name}");
        assert!(!ztun.log().contains("loop"), "{name}: {}", ztun.log());
        assert_eq!(ztun.stop(), Some(0));
    }
}
