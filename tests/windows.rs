//! The Windows back end on Windows itself: Wintun, the machine's network, the control socket.
//!
//! It needs administrators' rights and a wintun.dll, which is looked for beside the test program and, first, where `ZTUN_WINTUN_DLL` says. Without either it fails: what cannot run here is
//! not passed over. The crate `wintun` brings the signed library along (`wintun/bin/amd64/wintun.dll` in its sources), from where the pipeline takes it.
#![cfg(windows)]

use mio::{Events, Poll, Token};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Once;
use std::time::Duration;
use ztun::config::OffloadLevel;
use ztun::monitor::debounce::SleepWatch;
use ztun::monitor::{IfIndex, Monitor, Own, Path, Question, SystemMonitor};
use ztun::stack::Transmit;
use ztun::time::Instant;
use ztun::tun::{Device, LoopWaker, Tun};

const LIMIT: Option<Duration> = Some(Duration::from_secs(30));

/// Puts wintun.dll beside this program, where it is looked for.
fn with_wintun() {
    static ONCE: Once = Once::new();
    ONCE.call_once(put_wintun);
}

fn put_wintun() {
    let beside = std::env::current_exe().expect("this program").with_file_name("wintun.dll");
    if let Some(from) = std::env::var_os("ZTUN_WINTUN_DLL") {
        std::fs::copy(PathBuf::from(from), &beside).expect("copy wintun.dll");
    }
    assert!(beside.exists(), "no {}: set ZTUN_WINTUN_DLL", beside.display());
}

fn open(name: &str) -> Tun {
    with_wintun();
    Tun::open(name, 1_400, OffloadLevel::Off).unwrap_or_else(|error| panic!("{error}"))
}

/// Gives the device an address, by Windows's own program.
fn address(name: &str, addr: Ipv4Addr) {
    let name = format!("name={name}");
    let set = ["interface", "ipv4", "set", "address", &name, "static", &addr.to_string(), "255.255.255.0"];
    let status = Command::new("netsh").args(set).status().expect("netsh");
    assert!(status.success(), "netsh: {status}");
}

fn monitor(device: &str) -> SystemMonitor {
    SystemMonitor::new(Own { device: device.into(), protocol: 0 }).expect("a monitor")
}

/// An IPv4 datagram with its checksums.
fn datagram(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let sum = |pieces: &[&[u8]]| {
        let mut sum: u32 = 0;
        for piece in pieces {
            for pair in piece.chunks(2) {
                sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            }
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    };
    let udp_len = 8 + payload.len() as u16;
    let mut ip = [0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    ip[2..4].copy_from_slice(&(20 + udp_len).to_be_bytes());
    ip[12..16].copy_from_slice(&from.0.octets());
    ip[16..20].copy_from_slice(&to.0.octets());
    let own = sum(&[&ip]);
    ip[10..12].copy_from_slice(&own);
    let mut udp = Vec::new();
    for number in [from.1, to.1, udp_len, 0] {
        udp.extend(number.to_be_bytes());
    }
    udp.extend_from_slice(payload);
    let pseudo = [&ip[12..20], &[0, 17], &udp_len.to_be_bytes()].concat();
    let own = sum(&[&pseudo, &udp]);
    udp[6..8].copy_from_slice(&own);
    [&ip[..], &udp].concat()
}

/// Reads the device until a UDP datagram to this port comes: who sent it, and what it says.
fn udp_to(tun: &mut Tun, poll: &mut Poll, port: u16) -> (SocketAddr, Vec<u8>) {
    let (mut events, mut buffer) = (Events::with_capacity(8), vec![0; 65_536]);
    loop {
        match tun.recv(&mut buffer) {
            Ok(received) => {
                let packet = &buffer[..received.len];
                let header = usize::from(packet[0] & 15) * 4;
                let is_udp = packet[0] >> 4 == 4 && packet[9] == 17;
                if is_udp && packet[header + 2..header + 4] == port.to_be_bytes() {
                    let from = Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]);
                    let number = u16::from_be_bytes([packet[header], packet[header + 1]]);
                    return ((from, number).into(), packet[header + 8..].to_vec());
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                poll.poll(&mut events, LIMIT).expect("poll");
                assert!(!events.is_empty(), "nobody wakes the loop");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn datagrams_pass_the_device_both_ways() {
    let (own, other) = (Ipv4Addr::new(10, 201, 77, 1), Ipv4Addr::new(10, 201, 77, 2));
    let mut tun = open("ztun-test-io");
    address(tun.name(), own);
    let mut poll = Poll::new().unwrap();
    let mut waker = LoopWaker::default();
    tun.listen(poll.registry(), Token(0), &mut waker).unwrap();
    // An address is tried out first; before it can be bound there is no network.
    let app = (0..600).find_map(|_| {
        let bound = UdpSocket::bind((own, 0)).ok();
        if bound.is_none() {
            poll.poll(&mut Events::with_capacity(8), Some(Duration::from_millis(50))).unwrap();
        }
        bound
    });
    let app = app.expect("the address can be bound");
    app.set_read_timeout(LIMIT).unwrap();
    for number in 0..1_000_u32 {
        app.send_to(&number.to_be_bytes(), (other, 4_000)).unwrap();
        let (from, said) = udp_to(&mut tun, &mut poll, 4_000);
        assert_eq!((from, said), (app.local_addr().unwrap(), number.to_be_bytes().to_vec()));
        let port = app.local_addr().unwrap().port();
        let answer = datagram((other, 4_000), (own, port), &number.to_le_bytes());
        let (header, payload) = answer.split_at(28);
        tun.send(&Transmit { header, payload: [payload, &[]], offload: None }).unwrap();
        let mut heard = [0; 16];
        let (len, from) = app.recv_from(&mut heard).unwrap();
        assert_eq!((&heard[..len], from), (&number.to_le_bytes()[..], (other, 4_000).into()));
    }
    tun.ignore(poll.registry()).unwrap();
    // The next device of the same loop.
    tun.listen(poll.registry(), Token(0), &mut waker).unwrap();
}

#[test]
fn a_device_goes_with_its_program_and_can_be_made_again_at_once() {
    let index = || {
        let state = monitor("another").state().unwrap();
        state.index_of("ztun-test-again")
    };
    for _ in 0..3 {
        let tun = open("ztun-test-again");
        assert_eq!(tun.name(), "ztun-test-again");
        assert!(index().is_some());
        drop(tun);
        assert_eq!(index(), None);
    }
}

#[test]
fn the_network_is_read_and_its_own_device_is_not_among_it() {
    let tun = open("ztun-test-own");
    let mut watch = monitor(tun.name());
    let state = watch.state().unwrap();
    assert_eq!(state.index_of(tun.name()), None);
    assert!(state.has_address(Ipv4Addr::LOCALHOST.into()));
    let home = state.interface_of(Ipv4Addr::LOCALHOST.into()).unwrap();
    let ask = |watch: &mut SystemMonitor, to: Ipv4Addr, interface| {
        watch.path(Question { to: to.into(), from: None, interface, mark: None }).unwrap()
    };
    assert_eq!(ask(&mut watch, Ipv4Addr::LOCALHOST, None), Some(Path::Local));
    if let Some(route) = state.defaults.iter().find(|route| !route.v6) {
        let out = Ipv4Addr::new(203, 0, 113, 1);
        assert_eq!(ask(&mut watch, out, Some(route.interface)), Some(Path::Leaves(route.interface)));
    }
    assert_eq!(ask(&mut watch, Ipv4Addr::new(203, 0, 113, 1), Some(IfIndex(0x00ff_fff0))), None);
    assert!(state.is_running(home));
    let clocks = watch.clocks();
    let mut sleep = SleepWatch::new(clocks, Instant::ZERO);
    assert!(!sleep.slept(watch.clocks(), Instant::ZERO));
}

#[test]
fn a_change_of_the_network_is_told() {
    let mut poll = Poll::new().unwrap();
    let mut watch = monitor("none");
    poll.registry().register(&mut watch, Token(0), mio::Interest::READABLE).unwrap();
    let _before = watch.drain().unwrap();
    // A new interface with an address.
    let tun = open("ztun-test-news");
    address(tun.name(), Ipv4Addr::new(10, 201, 78, 1));
    let mut events = Events::with_capacity(8);
    let mut state = false;
    while !state {
        poll.poll(&mut events, LIMIT).unwrap();
        assert!(!events.is_empty(), "nothing is told");
        let noticed = watch.drain().unwrap();
        state = noticed.state;
        assert!(noticed.woke, "each piece of news is a reason to look at the clocks");
    }
}
