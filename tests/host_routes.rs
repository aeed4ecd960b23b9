//! Routes, rules and addresses, made and undone in network namespaces of the tests' own.
//!
//! Each test runs on a thread that has left for a new network namespace: what the thread and its children see is that namespace's. Without
//! root the tests fail and say so; `ZTUN_SKIP_NETNS=1` skips them, in words.

#![cfg(all(feature = "os", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "each test has a thread, and with it a namespace, of its own")]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]
#![allow(clippy::print_stdout, reason = "a part that runs as a process tells the other one how far it is")]

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use ztun::config::{HostPlanConfig, OffloadLevel};
use ztun::host::{self, RunDir};
use ztun::tun::Tun;

const TUN: &str = "host-tun0";

/// Runs a test in a new network namespace with a machine's usual set-up: an egress link with addresses and default routes.
fn in_namespace(test: impl FnOnce(&RunDir) + Send) {
    if std::env::var_os("ZTUN_SKIP_NETNS").is_some_and(|value| value == "1") {
        eprintln!("skipped: ZTUN_SKIP_NETNS=1");
        return;
    }
    // One at a time: a child that another test forks would hold this test's device until it executes its program.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let run_dir = RunDir::at(dir.path().join("run"));
    let body = || {
        // SAFETY: unshare touches no memory; the thread alone changes its namespace.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        let why = std::io::Error::last_os_error();
        assert_eq!(result, 0, "no network namespace: {why}; run as root, or set ZTUN_SKIP_NETNS=1 to skip");
        for line in [
            "link set lo up",
            "link add host-eth0 type veth peer name host-eth1",
            "link set host-eth1 addrgenmode none",
            "link set host-eth0 addrgenmode none",
            "link set host-eth1 up",
            "link set host-eth0 up",
            "addr add 192.0.2.5/24 dev host-eth0",
            "addr add 2001:db8::5/64 dev host-eth0 nodad",
            "route add default via 192.0.2.1",
            "route add default via 2001:db8::1",
            "rule add pref 5999 fwmark 0x77 lookup 99",
        ] {
            ip(line);
        }
        // The kernel adds these later, from a queue of its own.
        for route in ["local 2001:db8::5 dev host-eth0", "ff00::/8 dev host-eth0", "ff00::/8 dev host-eth1"] {
            until_routed(route);
        }
        test(&RunDir::at(dir.path().join("run")));
    };
    thread::scope(|scope| scope.spawn(body).join().unwrap());
    assert!(!dir.path().join("run").exists(), "files are left in {run_dir:?}");
}

fn ip(line: &str) -> String {
    let output = Command::new("ip").args(line.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn nft(line: &str) -> String {
    let output = Command::new("nft").arg(line).output().unwrap();
    assert!(output.status.success(), "nft {line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Waits for a line in the local table of IPv6.
fn until_routed(route: &str) {
    let start = Instant::now();
    while !ip("-6 route show table local").contains(route) {
        assert!(start.elapsed() < Duration::from_secs(20), "no {route}");
        thread::yield_now();
    }
}

/// Everything that a run could leave changed, as iproute2 prints it.
fn machine() -> String {
    let lines = ["rule", "-6 rule", "route show table all", "-6 route show table all", "addr", "link"];
    lines.map(|line| format!("== {line}\n{}", ip(line))).concat() + &nft("list ruleset")
}

fn config() -> HostPlanConfig {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    HostPlanConfig {
        tun: TUN.into(),
        tun_fd: None,
        addresses: nets(&["198.18.0.1/16", "fd7a:7a74:756e::1/64"]),
        mtu: 1400,
        routes: nets(&["0.0.0.0/0", "::/0"]),
        bypass: nets(&["198.51.100.0/24"]),
        no_route: false,
        interface: None,
        mark: 0x7a74,
        local_proxy: true,
        offload: OffloadLevel::Off,
        kill_switch: false,
        dns: Vec::new(),
    }
}

fn kill_switch() -> HostPlanConfig {
    HostPlanConfig { kill_switch: true, ..config() }
}

fn proxies() -> [IpAddr; 2] {
    ["203.0.113.9".parse().unwrap(), "127.0.0.1".parse().unwrap()]
}

fn route_device(line: &str) -> String {
    let answer = ip(&format!("route get {line}"));
    let mut words = answer.split_whitespace().skip_while(|&word| word != "dev");
    words.nth(1).unwrap().to_owned()
}

/// Z12, F18
#[test]
fn everything_is_as_before_when_a_run_ends() {
    in_namespace(|dir| {
        let before = machine();
        let tun = Tun::open(TUN, 1400, OffloadLevel::Off).unwrap();
        let with_device = machine();
        let mut applied = host::up_in(dir, &config(), TUN, &proxies(), None).unwrap();
        assert_ne!(machine(), with_device);
        let report = applied.down();
        assert!(report.is_ok() && report.undone() > 10, "{report}");
        assert!(applied.down().steps.is_empty());
        // The kernel gives a device that has been up a few multicast routes and a new random link-local address: compared without the device.
        drop((applied, tun));
        assert_eq!(machine(), before);
    });
}

#[test]
fn packets_are_captured_and_what_must_stay_outside_does() {
    in_namespace(|dir| {
        let _tun = Tun::open(TUN, 1400, OffloadLevel::Off).unwrap();
        let mut applied = host::up_in(dir, &config(), TUN, &proxies(), None).unwrap();
        for captured in ["8.8.8.8", "192.0.2.77", "2606:4700::1111", "198.18.3.4"] {
            assert_eq!(route_device(captured), TUN, "{captured}");
        }
        for outside in [
            "8.8.8.8 mark 0x7a74",
            "2606:4700::1111 mark 0x7a74",
            "8.8.8.8 from 192.0.2.5",
            "2606:4700::1111 from 2001:db8::5",
            "203.0.113.9",
            "198.51.100.7",
            "224.0.0.251",
        ] {
            assert_eq!(route_device(outside), "host-eth0", "{outside}");
        }
        let source = UdpSocket::bind("0.0.0.0:0").unwrap();
        source.connect("8.8.8.8:53").unwrap();
        assert_eq!(source.local_addr().unwrap().ip(), "198.18.0.1".parse::<IpAddr>().unwrap());
        let source = UdpSocket::bind("[::]:0").unwrap();
        source.connect("[2606:4700::1111]:53").unwrap();
        assert_eq!(source.local_addr().unwrap().ip(), "fd7a:7a74:756e::1".parse::<IpAddr>().unwrap());
        applied.down();
    });
}

/// How `ip route get` ends for packets that have no way.
fn refusal(line: &str) -> String {
    let output = Command::new("ip").args(["route", "get"]).args(line.split(' ')).output().unwrap();
    assert!(!output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

/// Issue 3 item 4: names asked at a resolver of the local network go into the tunnel, whoever let that network out.
#[test]
fn names_are_captured_also_where_the_network_is_bypassed() {
    in_namespace(|dir| {
        let _tun = Tun::open(TUN, 1400, OffloadLevel::Off).unwrap();
        let bypass = ["192.0.2.0/24", "198.51.100.0/24", "192.0.2.9", "2001:db8::/64"];
        let bypass = bypass.iter().map(|net| net.parse().unwrap()).collect();
        let config = HostPlanConfig { bypass, ..config() };
        let mut applied = host::up_in(dir, &config, TUN, &proxies(), None).unwrap();
        for (line, device) in [
            ("192.0.2.1 ipproto udp dport 53", TUN),
            ("192.0.2.1 ipproto tcp dport 53", TUN),
            ("198.51.100.7 ipproto udp dport 53", TUN),
            ("2001:db8::1 ipproto udp dport 53", TUN),
            ("192.0.2.1 from 192.0.2.5 ipproto udp dport 53", TUN),
            ("192.0.2.1 ipproto udp dport 54", "host-eth0"),
            ("192.0.2.1", "host-eth0"),
            ("192.0.2.9 ipproto udp dport 53", "host-eth0"),
            ("203.0.113.9 ipproto udp dport 53", "host-eth0"),
            ("192.0.2.1 mark 0x7a74 ipproto udp dport 53", "host-eth0"),
        ] {
            assert_eq!(route_device(line), device, "{line}");
        }
        applied.down();
    });
}

/// What the peer of the machine's link sees of it, from now on.
struct Wire(OwnedFd);

impl Wire {
    fn watch() -> Wire {
        let index = host::interface_index("host-eth1").unwrap();
        // SAFETY: a structure of numbers may be all zeros.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET.try_into().unwrap();
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index.try_into().unwrap();
        let len = size_of_val(&address).try_into().unwrap();
        // SAFETY: numbers only.
        let fd = unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
        };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the descriptor was just made, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: the pointer is to a live structure of that length.
        let bound = unsafe { libc::bind(fd, (&raw const address).cast(), len) };
        assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
        Wire(socket)
    }

    /// Every frame since the last call, but for IPv6's talk with its neighbours (ICMPv6 130 to 143), which no program sends.
    fn frames(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        loop {
            let mut buffer = [0_u8; 2048];
            // SAFETY: the buffer is live and as long as said.
            let got = unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            let Ok(got) = usize::try_from(got) else { return frames };
            let frame = &buffer[..got];
            let talk = frame.len() > 62
                && frame[12..14] == [0x86, 0xdd]
                && ((frame[20] == 58 && (130..144).contains(&frame[54]))
                    || (frame[20] == 0 && frame[54] == 58 && (130..144).contains(&frame[62])));
            if !talk {
                frames.push(frame.to_vec());
            }
        }
    }

    fn send(&self, frame: &[u8]) {
        // SAFETY: the buffer is live and as long as said.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(usize::try_from(sent), Ok(frame.len()), "{}", std::io::Error::last_os_error());
    }
}

fn link_address(device: &str) -> [u8; 6] {
    let text = ip(&format!("-o link show {device}"));
    let address = text.split_whitespace().skip_while(|&word| word != "link/ether").nth(1).unwrap();
    let octets: Vec<u8> = address.split(':').map(|octet| u8::from_str_radix(octet, 16).unwrap()).collect();
    octets.try_into().unwrap()
}

/// CVE-2019-14899: a neighbour tries out whether the machine has the tunnel's address: by ARP, by a ping, and by a SYN ACK to a port.
#[test]
fn the_devices_addresses_are_not_answered_for_on_the_local_network() {
    in_namespace(|dir| {
        let _tun = Tun::open(TUN, 1400, OffloadLevel::Off).unwrap();
        let mut applied = host::up_in(dir, &config(), TUN, &proxies(), None).unwrap();
        assert!(applied.verify().unwrap().is_empty());
        let (mac, peer) = (link_address("host-eth0"), link_address("host-eth1"));
        // The neighbour is known, so an answer needs no question first.
        ip(&format!(
            "neigh replace 192.0.2.7 lladdr {} dev host-eth0",
            peer.map(|octet| format!("{octet:02x}")).join(":")
        ));
        let arp = |target: [u8; 4]| {
            let mut frame =
                [[0xff; 6].as_slice(), &peer, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &peer, &[192, 0, 2, 7]]
                    .concat();
            frame.extend([[0; 6].as_slice(), &target].concat());
            frame
        };
        let ping = |target: [u8; 4]| {
            let mut header = [&[0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 192, 0, 2, 7][..], &target].concat();
            let sum = !checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            [mac.as_slice(), &peer, &[8, 0], &header, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]].concat()
        };
        let answers = |frame: Vec<u8>| {
            let wire = Wire::watch();
            wire.send(&frame);
            // The kernel has worked on what came before when it answers for its own address.
            wire.send(&ping([192, 0, 2, 5]));
            let mut answers = Vec::new();
            let start = Instant::now();
            while !answers.iter().any(|frame: &Vec<u8>| frame.get(26..30) == Some(&[192, 0, 2, 5])) {
                assert!(start.elapsed() < Duration::from_secs(20), "the machine does not answer at all");
                answers.extend(wire.frames().into_iter().filter(|frame| frame[6..12] == mac));
            }
            answers.len() - 1
        };
        assert_eq!([answers(arp([198, 18, 0, 1])), answers(ping([198, 18, 0, 1]))], [0, 0]);
        assert_eq!(answers(arp([192, 0, 2, 5])), 1, "the test asks as a neighbour does");
        // The machine itself reaches them.
        let own = UdpSocket::bind("198.18.0.1:0").unwrap();
        UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"own", own.local_addr().unwrap()).unwrap();
        own.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(own.recv(&mut [0; 8]).unwrap(), 3);
        assert!(applied.down().is_ok());
        assert_eq!([answers(arp([198, 18, 0, 1]))], [0], "the address is gone");
    });
}

/// The sum of RFC 1071.
fn checksum(octets: &[u8]) -> u16 {
    let sum: u32 = octets.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
}

/// A table of this name that no process owns is of a run before Linux 5.12 that died.
#[test]
fn filters_survive_a_flush_and_an_ownerless_one_is_found_by_its_name() {
    in_namespace(|dir| {
        let _tun = Tun::open(TUN, 1400, OffloadLevel::Off).unwrap();
        nft("add table inet ztun; add table arp ztun; add table inet other");
        let mut applied = host::up_in(dir, &config(), TUN, &proxies(), None).unwrap();
        nft("flush ruleset");
        assert!(applied.verify().unwrap().is_empty());
        let rules = nft("list table inet ztun");
        assert!(
            rules.contains(&format!("iifname != \"{TUN}\" iifname != \"lo\" ip daddr 198.18.0.1 drop")),
            "{rules}"
        );
        assert!(rules.contains("ip6 daddr fd7a:7a74:756e::1 drop"), "{rules}");
        assert!(nft("list table arp ztun").contains("arp daddr ip 198.18.0.1"));
        assert!(applied.down().is_ok());
        drop(applied);
        nft("add table inet ztun; add table arp ztun");
        assert_eq!(host::restore_in(dir, TUN).unwrap().undone(), 2);
        assert_eq!(nft("list ruleset"), "");
    });
}

/// RFC 7359; F23
#[test]
fn ipv6_that_is_not_asked_for_is_refused_and_does_not_pass_by() {
    in_namespace(|dir| {
        let before = machine();
        let tun = Tun::open(TUN, 1400, OffloadLevel::Off).unwrap();
        let config = HostPlanConfig { routes: vec!["0.0.0.0/0".parse().unwrap()], ..config() };
        let mut applied = host::up_in(dir, &config, TUN, &proxies(), None).unwrap();
        assert_eq!(route_device("8.8.8.8"), TUN);
        refusal("2606:4700::1111");
        // The neighbour is known, so that what leaks does not end in its silence.
        let hardware = link_address("host-eth1").map(|octet| format!("{octet:02x}")).join(":");
        ip(&format!("neigh replace 2001:db8::1 lladdr {hardware} dev host-eth0 nud permanent"));
        let to = "[2606:4700::1111]:443".parse().unwrap();
        let error = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(libc::EHOSTUNREACH | libc::ENETUNREACH)), "{error}");
        assert_eq!(route_device("2606:4700::1111 mark 0x7a74"), "host-eth0");
        let answer = "2606:4700::1111 from 2001:db8::5 ipproto tcp sport 22 dport 50000";
        assert_eq!(route_device(answer), "host-eth0");
        assert!(applied.down().is_ok());
        drop((applied, tun));
        ip("neigh flush dev host-eth0 nud permanent");
        assert_eq!(machine(), before);
    });
}

/// Issue 3 item 5: while the device lives, its own routes win over those that refuse.
#[test]
fn the_kill_switch_changes_nothing_while_the_run_lasts_and_goes_with_it() {
    in_namespace(|dir| {
        let before = machine();
        let tun = Tun::open(TUN, 1400, OffloadLevel::Off).unwrap();
        let mut applied = host::up_in(dir, &kill_switch(), TUN, &proxies(), None).unwrap();
        for captured in ["8.8.8.8", "192.0.2.77", "2606:4700::1111", "198.18.3.4"] {
            assert_eq!(route_device(captured), TUN, "{captured}");
        }
        // Whoever binds to another device finds no router there. (Linux then takes any IPv4 address to be on that link, and asks for it in vain.)
        refusal("2606:4700::1111 oif host-eth0");
        let bound = ip("route get 8.8.8.8 oif host-eth0");
        assert!(!bound.contains("via"), "{bound}");
        assert!(applied.down().is_ok());
        drop((applied, tun));
        assert_eq!(machine(), before);
    });
}

/// F21
#[test]
fn a_marked_packet_without_a_route_never_falls_into_the_tunnel() {
    in_namespace(|dir| {
        let _tun = Tun::open(TUN, 1400, OffloadLevel::Off).unwrap();
        let mut applied = host::up_in(dir, &config(), TUN, &proxies(), None).unwrap();
        for family in ["", "-6 "] {
            ip(&format!("{family}route del default"));
        }
        for line in ["8.8.8.8 mark 0x7a74", "2606:4700::1111 mark 0x7a74", "198.18.3.4 mark 0x7a74"] {
            let output = Command::new("ip").args(["route", "get"]).args(line.split(' ')).output().unwrap();
            assert!(!output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stdout));
        }
        assert_eq!(route_device("8.8.8.8"), TUN);
        applied.down();
    });
}

#[test]
fn a_machine_without_ipv6_is_left_without_it() {
    in_namespace(|dir| {
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let before = machine();
        let tun = Tun::open(TUN, 1400, OffloadLevel::Off).unwrap();
        let mut applied = host::up_in(dir, &config(), TUN, &proxies(), None).unwrap();
        assert!(applied.changes().iter().all(|change| !change.to_string().contains("::")));
        assert!(applied.down().is_ok());
        drop((applied, tun));
        assert_eq!(machine(), before);
    });
}

#[test]
fn a_new_device_gets_ipv6_where_only_the_default_for_new_ones_is_off() {
    in_namespace(|dir| {
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let before = machine();
        let tun = Tun::open(TUN, 1400, OffloadLevel::Off).unwrap();
        let mut applied = host::up_in(dir, &config(), TUN, &proxies(), None).unwrap();
        assert_eq!(route_device("2606:4700::1111"), TUN);
        assert!(applied.down().is_ok());
        drop((applied, tun));
        assert_eq!(machine(), before);
    });
}

#[test]
fn a_hundred_runs_in_a_row_leave_nothing() {
    in_namespace(|dir| {
        let before = machine();
        for _ in 0..100 {
            let _tun = Tun::open(TUN, 1400, OffloadLevel::Off).unwrap();
            let mut applied = host::up_in(dir, &config(), TUN, &proxies(), None).unwrap();
            let report = applied.down();
            assert!(report.is_ok(), "{report}");
        }
        assert_eq!(machine(), before);
    });
}

#[test]
fn a_change_that_is_refused_rolls_the_others_back() {
    in_namespace(|dir| {
        let tun = Tun::open(TUN, 1400, OffloadLevel::Off).unwrap();
        ip(&format!("link set {TUN} up"));
        ip("route add default dev host-eth0 table 31348");
        ip(&format!("link set {TUN} mtu 1300"));
        for route in ["local fe80:", "ff00::/8 dev host-tun0"] {
            until_routed(route);
        }
        let before = machine();
        let error = host::up_in(dir, &config(), TUN, &proxies(), None).unwrap_err();
        assert!(error.to_string().contains("31348"), "{error}");
        assert_eq!(machine(), before);
        drop(tun);
    });
}

/// L1; F22
#[test]
fn a_second_run_is_refused_with_the_first_ones_process_id() {
    in_namespace(|dir| {
        let _tun = Tun::open(TUN, 1400, OffloadLevel::Off).unwrap();
        let mut applied = host::up_in(dir, &config(), TUN, &proxies(), None).unwrap();
        let during = machine();
        let own = std::process::id().to_string();
        let same_device = host::up_in(dir, &config(), TUN, &proxies(), None).unwrap_err();
        assert!(same_device.what.contains(&own) && same_device.what.contains(TUN), "{same_device}");
        let same_routes = host::up_in(dir, &config(), "host-tun1", &proxies(), None).unwrap_err();
        assert!(same_routes.what.contains(&own) && same_routes.what.contains("routes"), "{same_routes}");
        let alive = host::restore_in(dir, TUN).unwrap_err();
        assert!(alive.what.contains(&own), "{alive}");
        assert_eq!(machine(), during);
        applied.down();
    });
}

/// F22: no room for the locks, none for the journal, and a file system that cannot be written to.
#[test]
fn where_nothing_can_be_recorded_nothing_is_changed_and_the_error_says_what_to_do() {
    in_namespace(|dir| {
        // SAFETY: unshare touches no memory; the thread alone changes its namespace.
        let left = unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_FS) };
        assert_eq!(left, 0, "{}", std::io::Error::last_os_error());
        run("mount", &["--make-rprivate", "/"]);
        let disk = dir.path().with_file_name("disk");
        std::fs::create_dir(&disk).unwrap();
        let place = disk.display().to_string();
        let full = RunDir::at(disk.join("run"));
        let tun = Tun::open(TUN, 1400, OffloadLevel::Off).unwrap();
        let before = machine();
        // A page for each file that has something in it: the two locks and the journal.
        for (size, what) in [("4k", "lock"), ("8k", "journal")] {
            run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "none", &place]);
            let error = host::up_in(&full, &config(), TUN, &proxies(), None).unwrap_err();
            assert_eq!(error.source.raw_os_error(), Some(libc::ENOSPC), "{error}");
            assert!(error.what.contains(what) && error.remedy.contains("ZTUN_RUN_DIR"), "{error}");
            assert_eq!(machine(), before);
            assert_eq!(std::fs::read_dir(&disk).unwrap().count(), 0, "{what}");
            run("umount", &[&place]);
        }
        run("mount", &["-t", "tmpfs", "-o", "ro", "none", &place]);
        let error = host::up_in(&full, &config(), TUN, &proxies(), None).unwrap_err();
        assert_eq!(error.source.raw_os_error(), Some(libc::EROFS), "{error}");
        assert!(error.remedy.contains("ZTUN_RUN_DIR"), "{error}");
        assert_eq!(machine(), before);
        run("umount", &[&place]);
        drop(tun);
    });
}

/// F20
#[test]
fn changes_of_others_while_a_run_lasts_are_kept() {
    in_namespace(|dir| {
        let tun = Tun::open(TUN, 1400, OffloadLevel::Off).unwrap();
        let mut applied = host::up_in(dir, &config(), TUN, &proxies(), None).unwrap();
        ip("route replace default via 192.0.2.2");
        ip("-6 route replace default via 2001:db8::2");
        assert_eq!(route_device("8.8.8.8 mark 0x7a74"), "host-eth0");
        assert_eq!(route_device("2606:4700::1111 mark 0x7a74"), "host-eth0");
        ip("addr add 192.0.2.6/24 dev host-eth0");
        ip("rule add pref 5210 lookup 31348");
        ip("rule add pref 5250 lookup 99");
        assert!(applied.down().is_ok());
        drop((applied, tun));
        assert!(ip("route").contains("default via 192.0.2.2 dev host-eth0"), "{}", machine());
        assert!(ip("-6 route").contains("default via 2001:db8::2 dev host-eth0"), "{}", machine());
        let rules = ip("rule");
        assert!(rules.contains("5250:\tfrom all lookup 99") && rules.contains("5210:"), "{rules}");
    });
}

/// A run that is killed: this test binary once more, as [`killed_run`].
fn start_killed_run(dir: &RunDir) -> std::process::Child {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed_run", "--ignored", "--nocapture", "--test-threads=1"])
        .env("ZTUN_TEST_RUN_DIR", format!("{}", dir.path().display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    child.unwrap()
}

/// The child of the kill -9 tests: makes the changes, says so, and waits for its end.
#[test]
#[ignore = "a part of the kill -9 tests, which start it as a process of its own"]
fn killed_run() {
    let dir = std::env::var_os("ZTUN_TEST_RUN_DIR").expect("started by the kill -9 tests only");
    let _tun = Tun::open(TUN, 1400, OffloadLevel::Off).unwrap();
    let _applied = host::up_in(&RunDir::at(dir.into()), &config(), TUN, &proxies(), None).unwrap();
    println!("up");
    std::io::stdout().flush().unwrap();
    // Ends with the process: nobody sends to this socket.
    let silence = UdpSocket::bind("127.0.0.1:0").unwrap();
    silence.recv(&mut [0; 1]).unwrap();
}

fn kill_when_up(dir: &RunDir) {
    let mut child = start_killed_run(dir);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("up")), "the run did not come up");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The real program with the kill switch, until traffic flows; killed and waited for when dropped.
struct Ztun(std::process::Child);

impl Ztun {
    fn start(dir: &RunDir) -> Ztun {
        let child = Command::new(env!("CARGO_BIN_EXE_ztun"))
            .args(["--socks5", "203.0.113.9:1080", "--kill-switch", "--tun", TUN])
            .env("ZTUN_RUN_DIR", dir.path())
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn();
        let mut ztun = Ztun(child.unwrap());
        let mut said = String::new();
        for line in BufReader::new(ztun.0.stderr.take().unwrap()).lines() {
            said.push_str(&line.unwrap());
            if said.contains("ready") {
                return ztun;
            }
        }
        panic!("ztun has ended: {said}");
    }
}

impl Drop for Ztun {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Tries to get packets out in every way that a program has without asking for an interface; gives the errors.
fn try_to_leave() -> Vec<Option<i32>> {
    let udp = |bind: &str, to: &str| UdpSocket::bind(bind).unwrap().send_to(b"leak", to).err();
    let tcp =
        |to: &str| std::net::TcpStream::connect_timeout(&to.parse().unwrap(), Duration::from_secs(5)).err();
    let errors = [
        udp("0.0.0.0:0", "8.8.8.8:53"),
        udp("0.0.0.0:0", "8.8.8.8:443"),
        udp("0.0.0.0:0", "192.0.2.1:53"),
        udp("[::]:0", "[2606:4700::1111]:53"),
        udp("[::]:0", "[2606:4700::1111]:443"),
        udp("[::]:0", "[2001:db8::1]:53"),
        tcp("1.1.1.1:443"),
        tcp("[2606:4700::1111]:443"),
    ];
    errors.map(|error| error.and_then(|error| error.raw_os_error())).to_vec()
}

/// F19, issue 3 item 5: killed with kill -9, started again, and killed again: nothing leaves, and it fails at once; after restore all is as before.
#[test]
fn with_the_kill_switch_no_packet_leaves_after_kill_9_nor_during_the_next_start() {
    in_namespace(|dir| {
        let hardware = link_address("host-eth1").map(|octet| format!("{octet:02x}")).join(":");
        // Whatever leaves has somebody to go to.
        for neighbour in ["192.0.2.1", "2001:db8::1"] {
            ip(&format!("neigh replace {neighbour} lladdr {hardware} dev host-eth0 nud permanent"));
        }
        let before = machine();
        let wire = Wire::watch();
        // What ztun itself sends to its proxy, and its dying connections, are no leak.
        let leaks = || {
            let frames = wire.frames().into_iter();
            frames.filter(|frame| frame.get(30..34) != Some(&[203, 0, 113, 9])).collect::<Vec<_>>()
        };
        try_to_leave();
        assert!(!leaks().is_empty(), "the test would see a leak");
        drop(Ztun::start(dir));
        leaks();
        // A program that never stops trying.
        let stop = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            let hammer = scope.spawn(|| {
                let sockets = ["0.0.0.0:0", "[::]:0"].map(|any| UdpSocket::bind(any).unwrap());
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = sockets[0].send_to(b"leak", "8.8.8.8:9");
                    let _ = sockets[1].send_to(b"leak", "[2606:4700::1111]:9");
                    thread::yield_now();
                }
            });
            for _ in 0..3 {
                drop(Ztun::start(dir));
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            hammer.join().unwrap();
        });
        let start = Instant::now();
        for error in try_to_leave() {
            assert!(matches!(error, Some(libc::EHOSTUNREACH | libc::ENETUNREACH)), "{error:?}");
        }
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert_eq!(leaks(), Vec::<Vec<u8>>::new());
        assert_eq!(route_device("8.8.8.8 mark 0x7a74"), "host-eth0");
        let report = host::restore_in(dir, TUN).unwrap();
        assert!(report.is_ok(), "{report}");
        assert_eq!(machine(), before);
        try_to_leave();
        assert!(!leaks().is_empty());
    });
}

/// Issue 3 items 3 and 6
#[test]
fn what_others_undo_and_new_addresses_are_put_right_by_a_refresh() {
    in_namespace(|dir| {
        let before = machine();
        let tun = Tun::open(TUN, 1400, OffloadLevel::Off).unwrap();
        let mut applied = host::up_in(dir, &kill_switch(), TUN, &proxies(), None).unwrap();
        let during = machine();
        assert!(applied.refresh(TUN).unwrap().is_unchanged());
        assert_eq!(machine(), during);
        for line in ["route flush table 31348", "rule del pref 5210", "-6 rule del pref 5201"] {
            ip(line);
        }
        ip(&format!("addr del 198.18.0.1/16 dev {TUN}"));
        let missing = applied.verify().unwrap();
        let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
        assert!(missing.contains(&"rule add v4 pref 5210 all lookup 31348".to_owned()), "{missing:?}");
        assert!(missing.contains(&format!("route add 0.0.0.0/0 dev {TUN} table 31348")), "{missing:?}");
        ip("addr add 192.0.2.6/24 dev host-eth0");
        let refreshed = applied.refresh(TUN).unwrap();
        assert!(refreshed.made.len() > missing.len() && !refreshed.renewed, "{refreshed:?}");
        assert!(applied.verify().unwrap().is_empty());
        assert_eq!(route_device("8.8.8.8"), TUN);
        assert_eq!(route_device("8.8.8.8 from 192.0.2.6"), "host-eth0");
        ip("addr del 192.0.2.6/24 dev host-eth0");
        assert_eq!(applied.refresh(TUN).unwrap().undone.len(), 1);
        assert!(applied.refresh(TUN).unwrap().is_unchanged());
        assert!(applied.down().is_ok());
        drop((applied, tun));
        assert_eq!(machine(), before);
    });
}

/// T-8: a device that someone deletes is set up again under its name, and what was made to the old one is not undone on the new one.
#[test]
fn a_device_that_was_made_anew_is_set_up_again() {
    in_namespace(|dir| {
        let before = machine();
        let tun = Tun::open(TUN, 1400, OffloadLevel::Off).unwrap();
        let config = HostPlanConfig { mtu: 1380, ..config() };
        let mut applied = host::up_in(dir, &config, TUN, &proxies(), None).unwrap();
        ip(&format!("link del {TUN}"));
        let gone = applied.refresh(TUN).unwrap_err();
        assert_eq!(gone.source.raw_os_error(), Some(libc::ENODEV), "{gone}");
        drop(tun);
        let tun = Tun::open(TUN, 1400, OffloadLevel::Off).unwrap();
        let refreshed = applied.refresh(TUN).unwrap();
        assert!(refreshed.renewed, "{refreshed:?}");
        assert!(applied.verify().unwrap().is_empty());
        assert_eq!(route_device("8.8.8.8"), TUN);
        assert_eq!(route_device("2606:4700::1111"), TUN);
        let index = host::interface_index(TUN).unwrap();
        let journal = std::fs::read_to_string(journal(dir)).unwrap();
        assert!(journal.starts_with(&format!("ztun-journal 1 index {index}\n")), "{journal}");
        assert!(applied.down().is_ok());
        drop((applied, tun));
        assert_eq!(machine(), before);
    });
}

/// Issue 3 item 7
#[test]
fn connections_that_pass_the_tunnel_by_are_closed_and_others_live_on() {
    in_namespace(|dir| {
        // Nobody answers: the connections stay in their handshakes.
        let hardware = link_address("host-eth1").map(|octet| format!("{octet:02x}")).join(":");
        ip(&format!("neigh replace 192.0.2.1 lladdr {hardware} dev host-eth0 nud permanent"));
        let connecting = |to: &str| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let error = socket.connect(&to.parse::<std::net::SocketAddr>().unwrap().into()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
            socket
        };
        let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let own = std::net::TcpStream::connect(("192.0.2.5", listener.local_addr().unwrap().port())).unwrap();
        // This process's own are kept, so another one has it.
        let holder = |socket: socket2::Socket| {
            Holder(Command::new("sleep").arg("600").stdin(OwnedFd::from(socket)).spawn().unwrap())
        };
        let (past, kept) = (connecting("8.8.8.8:443"), connecting("203.0.113.9:1080"));
        let _holders = [holder(past), holder(kept)];
        let mine = connecting("8.8.4.4:443");
        let _tun = Tun::open(TUN, 1400, OffloadLevel::Off).unwrap();
        let mut applied = host::up_in(dir, &config(), TUN, &proxies(), None).unwrap();
        let listed = || run("ss", &["-Htn", "state", "syn-sent"]);
        assert!(listed().contains("8.8.8.8:443"), "{}", listed());
        let keep = |_, remote: std::net::SocketAddr| host::stays_outside(&config(), &proxies(), remote.ip());
        assert_eq!(host::reset_existing(TUN, &keep).unwrap(), 1);
        let left = listed();
        assert!(!left.contains("8.8.8.8:443"), "{left}");
        assert!(left.contains("203.0.113.9:1080") && left.contains("8.8.4.4:443"), "{left}");
        assert_eq!(host::reset_existing(TUN, &keep).unwrap(), 0);
        assert!(own.take_error().unwrap().is_none() && mine.take_error().unwrap().is_none());
        applied.down();
    });
}

struct Holder(std::process::Child);

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The journal of the run in `dir`.
fn journal(dir: &RunDir) -> std::path::PathBuf {
    let entries = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    entries.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "journal")).unwrap()
}

/// L-14; F19
#[test]
fn after_kill_9_restore_leaves_the_machine_as_before() {
    in_namespace(|dir| {
        let before = machine();
        kill_when_up(dir);
        assert_ne!(machine(), before);
        assert_eq!(route_device("8.8.8.8"), "host-eth0");
        let report = host::restore_in(dir, TUN).unwrap();
        assert!(report.is_ok() && report.undone() > 10, "{report}");
        assert_eq!(machine(), before);
        let again = host::restore_in(dir, TUN).unwrap();
        assert_eq!(again.to_string(), "nothing was left behind");
    });
}

/// L-14; F19
#[test]
fn after_kill_9_the_next_run_heals_and_ends_clean() {
    in_namespace(|dir| {
        let before = machine();
        kill_when_up(dir);
        let tun = Tun::open(TUN, 1400, OffloadLevel::Off).unwrap();
        let mut applied = host::up_in(dir, &config(), TUN, &proxies(), None).unwrap();
        assert_eq!(route_device("8.8.8.8"), TUN);
        assert!(applied.down().is_ok());
        drop((applied, tun));
        assert_eq!(machine(), before);
    });
}

/// F19
#[test]
fn restore_needs_no_journal_and_survives_a_spoilt_one() {
    in_namespace(|dir| {
        let before = machine();
        for spoilt in [false, true] {
            kill_when_up(dir);
            let journal = journal(dir);
            if spoilt {
                std::fs::write(journal, b"rule del v4 pref \xff\n\0\0\0\n").unwrap();
            } else {
                std::fs::remove_file(journal).unwrap();
            }
            let report = host::restore_in(dir, TUN).unwrap();
            assert!(report.is_ok(), "{report}");
            assert_eq!(report.unreadable, if spoilt { 2 } else { 0 });
            assert_eq!(machine(), before);
        }
    });
}

#[test]
fn a_dry_run_says_what_it_would_do_and_does_nothing() {
    in_namespace(|dir| {
        let before = machine();
        let text = host::dry_run(&config(), TUN, &proxies(), None).unwrap();
        assert!(
            text.contains("rule add v4 pref 5210 all lookup 31348\n    undo: rule del v4 pref 5210"),
            "{text}"
        );
        assert!(text.contains("from 192.0.2.5/32"), "{text}");
        assert_eq!(machine(), before);
        let _unused = dir;
    });
}
