//! UDP, DNS and ping.

use crate::world::*;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

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

/// Every level of offload.
const LEVELS: [(&str, &str); 4] =
    [("auto", "Full"), ("tcp", "Tcp"), ("checksum", "Checksum"), ("off", "plain packets")];

/// Sets a number of a socket's: UDP_SEGMENT, UDP_GRO.
fn set(socket: &UdpSocket, option: libc::c_int, value: usize) {
    let value = libc::c_int::try_from(value).unwrap();
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the descriptor is open, and the option's value is one int that outlives the call.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, option, (&raw const value).cast(), len)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// `count` datagrams of `size` octets, all different, and one of `last`.
fn train(size: usize, count: usize, last: usize) -> Vec<Vec<u8>> {
    let sizes = std::iter::repeat_n(size, count).chain((last > 0).then_some(last));
    sizes.enumerate().map(|(n, size)| (0..size).map(|at| (at * 7 + n * 13 + size) as u8).collect()).collect()
}

/// An app and its target, who know each other's address.
struct Talk {
    app: UdpSocket,
    target: UdpSocket,
    to: SocketAddr,
    from: SocketAddr,
}

impl Talk {
    /// The association is open.
    fn new(world: &World, to: &str) -> Talk {
        let target = world.server.datagrams(to);
        let to: SocketAddr = to.parse().unwrap();
        let app = world.client.datagrams(if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" });
        for socket in [&app, &target] {
            socket2::SockRef::from(socket).set_recv_buffer_size(1 << 20).unwrap();
        }
        app.send_to(b"first", to).unwrap();
        let (_, from) = target.recv_from(&mut [0; 8]).unwrap();
        target.send_to(b"first", from).unwrap();
        assert_eq!(app.recv_from(&mut [0; 8]).unwrap(), (5, to));
        Talk { app, target, to, from }
    }

    /// Sends a train as its sender's kernel takes it in one call, and compares what the other end gets, datagram by datagram.
    fn carry(&self, up: bool, datagrams: &[Vec<u8>]) {
        let (sender, to, receiver) = self.way(up);
        set(sender, libc::UDP_SEGMENT, datagrams[0].len());
        sender.send_to(&datagrams.concat(), to).unwrap();
        set(sender, libc::UDP_SEGMENT, 0);
        expect(receiver, datagrams);
    }

    fn way(&self, up: bool) -> (&UdpSocket, SocketAddr, &UdpSocket) {
        match up {
            true => (&self.app, self.to, &self.target),
            false => (&self.target, self.from, &self.app),
        }
    }
}

fn expect(receiver: &UdpSocket, datagrams: &[Vec<u8>]) {
    let mut buffer = vec![0; 65_536];
    for (n, datagram) in datagrams.iter().enumerate() {
        let octets = receiver.recv(&mut buffer).unwrap();
        assert!(buffer[..octets] == **datagram, "{n}: {octets} octets for {}", datagram.len());
    }
}

/// A router at each level, on each way out; `act` with both families.
fn at_each_level(world: &World, act: impl Fn(&World, &str)) {
    let _proxy = world.embedded(&world.server, PROXY);
    for (level, name) in LEVELS {
        for way in ["auto", "direct"] {
            let options = format!("--socks5 {PROXY} --offload {level} --udp {way} --log-level debug");
            let mut ztun = world.ztun(&options);
            let said = if level == "off" {
                !ztun.log().contains("offload: ")
            } else {
                ztun.log().contains(&format!("offload: {name}"))
            };
            assert!(said, "{level}: {}", ztun.log());
            for target in ["203.0.113.10:7000", "[2001:db8::10]:7000"] {
                act(world, target);
            }
            assert_eq!(ztun.stop(), Some(0));
        }
    }
}

/// conformance 54: an app that sends with UDP_SEGMENT, and one that receives with UDP_GRO, beside those that know neither.
#[test]
fn trains_of_datagrams_arrive_as_they_were_sent_at_each_level() {
    let Some(world) = world() else { return };
    at_each_level(&world, |world, target| {
        let talk = Talk::new(world, target);
        for up in [true, false] {
            for (size, count, last) in
                [(1_200, 40, 77), (64, 63, 1), (1, 64, 0), (1_000, 2, 0), (1_432, 3, 1_431)]
            {
                talk.carry(up, &train(size, count, last));
            }
        }
        // The app's kernel may join what it gets: the octets are the same.
        set(&talk.app, libc::UDP_GRO, 1);
        for (size, count, last) in [(1_200, 40, 77), (64, 64, 0)] {
            let datagrams = train(size, count, last);
            set(&talk.target, libc::UDP_SEGMENT, size);
            talk.target.send_to(&datagrams.concat(), talk.from).unwrap();
            let (mut got, mut buffer) = (Vec::new(), vec![0; 65_536]);
            while got.len() < size * count + last {
                let octets = talk.app.recv(&mut buffer).unwrap();
                got.extend_from_slice(&buffer[..octets]);
            }
            assert!(got == datagrams.concat(), "{size} {count} {last}");
        }
    });
}

/// Sizes that do not go together, in a burst; larger than the MTU too.
#[test]
fn datagrams_of_mixed_sizes_keep_their_order_at_each_level() {
    let Some(world) = world() else { return };
    let sizes = [
        64, 64, 64, 10, 64, 0, 0, 1_200, 1_200, 1_452, 1_462, 1_472, 1_473, 4_000, 4_000, 1, 1, 9_000, 64, 64,
    ];
    let datagrams: Vec<Vec<u8>> = sizes
        .iter()
        .enumerate()
        .map(|(n, size)| data(*size).iter().map(|octet| octet ^ n as u8).collect())
        .collect();
    at_each_level(&world, |world, target| {
        let talk = Talk::new(world, target);
        for up in [true, false, true, false] {
            let (sender, to, receiver) = talk.way(up);
            for datagram in &datagrams {
                sender.send_to(datagram, to).unwrap();
            }
            expect(receiver, &datagrams);
        }
    });
}

/// An app that reads nothing for a while loses what it has no room for, and nothing else: what it gets is whole, in order, and once; the association
/// and others' go on.
#[test]
fn an_app_that_reads_late_loses_what_it_has_no_room_for_and_nothing_else() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    for level in ["auto", "off"] {
        let mut ztun = world.ztun(&format!("--socks5 {PROXY} --offload {level}"));
        let (slow, other) = (Talk::new(&world, "203.0.113.10:7000"), Talk::new(&world, "203.0.113.10:7001"));
        socket2::SockRef::from(&slow.app).set_recv_buffer_size(20_000).unwrap();
        let text = |n: u32| n.to_be_bytes().repeat(100);
        for n in 0..2_000 {
            slow.target.send_to(&text(n), slow.from).unwrap();
        }
        for (size, count) in [(1_200, 40), (64, 64)] {
            other.carry(false, &train(size, count, 9));
        }
        // A mark goes behind everything that is still under way. It may find no room either: then another follows it.
        slow.app.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let (mut next, mut marks, mut seen) = (0, 0_u32, 0);
        let mut buffer = [0; 2_000];
        while seen == 0 {
            marks += 1;
            assert!(marks < 300, "no mark has come");
            slow.target.send_to(&marks.to_be_bytes(), slow.from).unwrap();
            while seen == 0
                && let Ok(octets) = slow.app.recv(&mut buffer)
            {
                let n = u32::from_be_bytes(buffer[..4].try_into().unwrap());
                if octets == 4 {
                    seen = n;
                } else {
                    assert!(n >= next && buffer[..octets] == text(n), "{n} after {next}");
                    next = n + 1;
                }
            }
        }
        assert!(next > 0, "there was room for some");
        // Behind the first mark that has come there are only marks, so nothing is lost any more.
        slow.app.set_read_timeout(Some(PATIENCE)).unwrap();
        for mark in seen + 1..=marks {
            assert_eq!(slow.app.recv(&mut buffer).unwrap(), 4);
            assert_eq!(buffer[..4], mark.to_be_bytes());
        }
        slow.carry(false, &train(300, 10, 9));
        assert_eq!(ztun.stop(), Some(0));
    }
}

/// Datagrams for a relay whose port is closed for a while are lost; those after it are not.
#[test]
fn a_target_that_was_away_hears_everything_that_comes_after() {
    let Some(world) = world() else { return };
    for offload in ["auto", "off"] {
        let mut ztun = world.ztun(&format!("--socks5 {PROXY} --udp direct --offload {offload}"));
        let talk = Talk::new(&world, "203.0.113.10:7000");
        let Talk { app, target, to, .. } = talk;
        drop(target);
        for _ in 0..3 {
            for datagram in train(64, 30, 0) {
                app.send_to(&datagram, to).unwrap();
            }
        }
        let target = world.server.datagrams(&to.to_string());
        let mut buffer = [0; 2_000];
        // What was under way may still arrive.
        app.send_to(b"now", to).unwrap();
        while target.recv(&mut buffer).unwrap() != 3 {}
        let datagrams = train(700, 60, 5);
        for datagram in &datagrams {
            app.send_to(datagram, to).unwrap();
        }
        expect(&target, &datagrams);
        assert_eq!(ztun.stop(), Some(0));
    }
}
