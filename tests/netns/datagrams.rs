//! UDP, DNS and ping.

use crate::world::*;
use std::net::UdpSocket;
use std::time::Duration;

/// Gives back every datagram.
fn echo(world: &World, at: &str) {
    let at = at.to_owned();
    let socket = world.server.inside(move || UdpSocket::bind(at).unwrap()).join().unwrap();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((octets, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..octets], from).unwrap();
        }
    });
}

/// Answers every question with 192.0.2.53.
fn dns(world: &World, at: &str) {
    let at = at.to_owned();
    let socket = world.server.inside(move || UdpSocket::bind(at).unwrap()).join().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2_048];
        while let Ok((octets, from)) = socket.recv_from(&mut buffer) {
            // Without the additional records of the question (EDNS), one answer behind the name.
            let end = 12 + buffer[12..octets].iter().position(|octet| *octet == 0).unwrap() + 5;
            let mut answer = buffer[..end].to_vec();
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            answer[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
            answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 53]);
            socket.send_to(&answer, from).unwrap();
        }
    });
}

fn exchange(world: &World, to: &'static str, sizes: &'static [usize]) {
    let app = world.client.inside(move || {
        let socket = UdpSocket::bind(if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" }).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut buffer = vec![0; 65_536];
        for &size in sizes {
            let data: Vec<u8> = (0..size).map(|octet| (octet * 7 + size) as u8).collect();
            socket.send_to(&data, to).unwrap();
            let (octets, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(from, to.parse().unwrap());
            assert!(buffer[..octets] == data, "{size} octets");
        }
    });
    app.join().unwrap();
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
    let _ztun = world.ztun(&format!("--socks5 {PROXY}"));
    exchange(&world, "[2001:db8::10]:7", &[1, 1_452, 1_453, 30_000, 65_000]);
    exchange(&world, "203.0.113.10:7", &[30_000, 65_000]);
    let load = format!(
        "yes 'name.test A' | head -1000 >{0}/q && dnsperf -s {TARGET} -d {0}/q -n 5 -q 20 -t 10",
        world.dir.path().display()
    );
    let report = world.client.ok(&load);
    assert!(report.contains("Queries lost:         0 "), "{report}");
}

/// Z5, F4: a proxy without UDP refuses each datagram at once, by ICMP ("communication administratively prohibited"): nobody waits.
#[test]
fn a_proxy_without_udp_refuses_at_once() {
    let Some(world) = world() else { return };
    let _proxy = world.microsocks(&world.server, PROXY);
    let _ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let app = world.client.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect((TARGET, 7)).unwrap();
        socket.send(b"x").unwrap();
        socket.recv(&mut [0; 8]).unwrap_err().kind()
    });
    assert_eq!(app.join().unwrap(), std::io::ErrorKind::HostUnreachable);
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
