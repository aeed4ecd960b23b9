//! The engine as a whole, in virtual time, between an app and a SOCKS5 server.

mod inspect;
mod names;
mod network;
mod pipeline;
mod world;

use smoltcp::socket::tcp;
use std::net::SocketAddr;
use world::World;
use ztun::config::{Accept, Cidr, EngineConfig, Pipeline, Proxy, UdpMode};
use ztun::engine::{SocketError, SocketId};
use ztun::outbound::rule::{Route, Rule};
use ztun::time::Duration;

const PROXY: &str = "192.0.2.10:1080";
const TARGET: &str = "203.0.113.5:80";

fn addr(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

fn config() -> EngineConfig {
    EngineConfig {
        proxies: vec![Proxy { addr: addr(PROXY), credentials: None }],
        pool: 0,
        ..EngineConfig::default()
    }
}

/// A world with one app connected to the target through the proxy: app socket and engine socket.
fn connected(config: EngineConfig) -> (World, smoltcp::iface::SocketHandle, SocketId) {
    let mut world = World::new(config, false);
    let app = world.connect(addr(TARGET));
    let socket = world.accept_dialled();
    world.grant(socket);
    assert_eq!(world.tcp(app).state(), tcp::State::Established);
    (world, app, socket)
}

/// Z1, Z4
#[test]
fn octets_go_both_ways_through_the_proxy() {
    let (mut world, app, socket) = connected(config());
    world.tcp(app).send_slice(b"hello").expect("send");
    assert_eq!(world.take_written(socket), b"hello");
    world.push(socket, b"world");
    assert_eq!(world.read(app), b"world");
}

/// The SYN-ACK waits for the outbound: nothing looks open that is not.
#[test]
fn the_syn_ack_comes_only_after_the_proxy_has_connected() {
    let mut world = World::new(config(), false);
    let app = world.connect(addr(TARGET));
    let socket = world.accept_dialled();
    assert_eq!(world.tcp(app).state(), tcp::State::SynSent);
    world.take_written(socket);
    world.push(socket, &[5, 0]);
    assert_eq!(world.tcp(app).state(), tcp::State::SynSent);
    world.push(socket, &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(world.tcp(app).state(), tcp::State::Established);
}

/// conformance 60: REP != 0 is a RST at once.
#[test]
fn a_target_that_refuses_is_a_closed_port_to_the_app() {
    let mut world = World::new(config(), false);
    let app = world.connect(addr(TARGET));
    let socket = world.accept_dialled();
    world.take_written(socket);
    world.push(socket, &[5, 0]);
    world.push(socket, &[5, 5, 0, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(world.tcp(app).state(), tcp::State::Closed);
    assert!(!world.is_open(socket));
}

/// F4
#[test]
fn a_proxy_that_is_down_is_a_reset_to_the_app() {
    let mut world = World::new(config(), false);
    let app = world.connect(addr(TARGET));
    world.settle();
    let (socket, to) = world.dialled.pop_front().expect("dialled");
    assert_eq!(to, addr(PROXY));
    world.fail(socket, SocketError::Refused);
    assert_eq!(world.tcp(app).state(), tcp::State::Closed);
    assert_eq!(world.engine.tcp_flows(), 0);
}

#[test]
fn the_second_proxy_is_asked_when_the_first_cannot_be_reached() {
    let second = Proxy { addr: addr("192.0.2.11:1080"), credentials: None };
    let mut world =
        World::new(EngineConfig { proxies: vec![config().proxies[0].clone(), second], ..config() }, false);
    let app = world.connect(addr(TARGET));
    world.settle();
    let (socket, _) = world.dialled.pop_front().expect("dialled");
    world.fail(socket, SocketError::Refused);
    let (_, to) = *world.dialled.front().expect("dialled again");
    assert_eq!(to, addr("192.0.2.11:1080"));
    let socket = world.accept_dialled();
    world.grant(socket);
    assert_eq!(world.tcp(app).state(), tcp::State::Established);
    // The next flow goes to the second at once.
    world.connect(addr(TARGET));
    world.settle();
    assert_eq!(world.dialled.front().expect("dialled").1, addr("192.0.2.11:1080"));
}

/// A proxy that never answers costs the app no more than the connect time-out.
#[test]
fn a_silent_proxy_times_out() {
    let mut world = World::new(config(), false);
    let app = world.connect(addr(TARGET));
    world.accept_dialled();
    world.advance(Duration::from_millis(9_900));
    assert_eq!(world.tcp(app).state(), tcp::State::SynSent);
    world.advance(Duration::from_millis(300));
    // smoltcp does not act on ICMP; what matters is that the flow and its socket are gone.
    assert_eq!(world.engine.tcp_flows(), 0);
    assert_eq!(world.engine.sockets(), 0);
}

/// conformance 58: data behind the reply is the target's.
#[test]
fn data_that_comes_with_the_reply_reaches_the_app() {
    let mut world = World::new(config(), false);
    let app = world.connect(addr(TARGET));
    let socket = world.accept_dialled();
    world.take_written(socket);
    world.push(socket, &[5, 0]);
    let mut reply = vec![5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    reply.extend_from_slice(b"220 ready\r\n");
    world.push(socket, &reply);
    assert_eq!(world.read(app), b"220 ready\r\n");
}

#[test]
fn data_and_end_that_come_with_the_reply_reach_the_app() {
    let mut world = World::new(config(), false);
    let app = world.connect(addr(TARGET));
    let socket = world.accept_dialled();
    world.take_written(socket);
    world.push(socket, &[5, 0]);
    world.fake(socket).eof = true;
    let mut reply = vec![5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    reply.extend_from_slice(&[b'x'; 3_000]);
    world.push(socket, &reply);
    assert_eq!(world.read(app).len(), 3_000);
    assert_eq!(world.tcp(app).state(), tcp::State::CloseWait);
}

/// conformance 39, F9
#[test]
fn the_apps_fin_leaves_the_other_direction_open() {
    let (mut world, app, socket) = connected(config());
    world.tcp(app).send_slice(b"last words").expect("send");
    world.tcp(app).close();
    assert_eq!(world.take_written(socket), b"last words");
    assert!(world.fake(socket).shut);
    world.push(socket, b"answer");
    assert_eq!(world.read(app), b"answer");
    world.push_eof(socket);
    assert!(!world.is_open(socket), "both directions are finished");
    world.advance(Duration::from_secs(30));
    assert_eq!(world.engine.tcp_flows(), 0);
}

/// conformance 39, mirrored
#[test]
fn the_targets_end_leaves_the_other_direction_open() {
    let (mut world, app, socket) = connected(config());
    world.push(socket, b"bye");
    world.push_eof(socket);
    assert_eq!(world.read(app), b"bye");
    assert_eq!(world.tcp(app).state(), tcp::State::CloseWait);
    world.tcp(app).send_slice(b"still here").expect("send");
    assert_eq!(world.take_written(socket), b"still here");
    world.tcp(app).close();
    world.settle();
    assert!(!world.is_open(socket));
    assert!(world.closed.contains(&(socket, false)), "closed without RST");
}

/// conformance 40, F8
#[test]
fn a_reset_by_the_app_resets_the_targets_side() {
    let (mut world, app, socket) = connected(config());
    world.tcp(app).abort();
    world.settle();
    assert!(world.closed.contains(&(socket, true)), "closed with RST");
    assert_eq!(world.engine.tcp_flows(), 0);
}

/// conformance 40, F5
#[test]
fn a_reset_by_the_target_resets_the_app() {
    let (mut world, app, socket) = connected(config());
    world.fail(socket, SocketError::Reset);
    assert_eq!(world.tcp(app).state(), tcp::State::Closed);
}

/// conformance 26, F6
#[test]
fn a_target_that_does_not_read_closes_the_apps_window_and_nothing_is_lost() {
    let mut limited = config();
    limited.stack.tcp.receive_buffer = 32_768;
    let (mut world, app, socket) = connected(limited);
    world.fake(socket).room = Some(1_000);
    let sent: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    let mut offset = 0;
    for _ in 0..50 {
        if world.tcp(app).can_send() {
            offset += world.tcp(app).send_slice(&sent[offset..]).expect("send");
        }
        world.advance(Duration::from_millis(10));
    }
    assert!(offset < sent.len(), "the window must have closed: {offset}");
    let mut received = world.take_written(socket);
    assert_eq!(received.len(), 1_000);
    for _ in 0..4_000 {
        world.fake(socket).room = Some(7_777);
        if offset < sent.len() && world.tcp(app).can_send() {
            offset += world.tcp(app).send_slice(&sent[offset..]).expect("send");
        }
        world.advance(Duration::from_millis(20));
        received.extend(world.take_written(socket));
        if received.len() == sent.len() {
            break;
        }
    }
    assert_eq!(received.len(), sent.len());
    assert!(received == sent, "octets differ");
}

/// conformance 27, F7
#[test]
fn an_app_that_does_not_read_stops_the_socket_from_being_read() {
    let (mut world, app, socket) = connected(config());
    let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n % 253) as u8).collect();
    world.push(socket, &sent);
    world.advance(Duration::from_secs(5));
    let left = world.fake(socket).inbound.len();
    assert!(left > 0, "the socket must not be read without bound");
    let mut received = Vec::new();
    for _ in 0..2_000 {
        received.extend(world.read(app));
        world.advance(Duration::from_millis(50));
        if received.len() == sent.len() {
            break;
        }
    }
    assert!(received == sent, "received {} of {}", received.len(), sent.len());
}

#[test]
fn with_early_accept_octets_wait_for_the_proxy() {
    let mut world = World::new(EngineConfig { accept: Accept::Early, ..config() }, false);
    let app = world.connect(addr(TARGET));
    world.settle();
    assert_eq!(world.tcp(app).state(), tcp::State::Established);
    world.tcp(app).send_slice(b"early bird").expect("send");
    let socket = world.accept_dialled();
    world.grant(socket);
    assert_eq!(world.take_written(socket), b"early bird");
    world.push(socket, b"worm");
    assert_eq!(world.read(app), b"worm");
}

#[test]
fn a_warm_connection_is_past_the_negotiation_and_replaced_after_use() {
    let mut world = World::new(EngineConfig { pool: 1, ..config() }, false);
    world.connect(addr(TARGET));
    world.settle();
    let first = world.accept_dialled();
    let warm = world.accept_dialled();
    world.grant(first);
    assert_eq!(world.take_written(warm), [5, 1, 0]);
    world.push(warm, &[5, 0]);
    let app = world.connect(addr("203.0.113.6:81"));
    assert_eq!(world.take_written(warm), [5, 1, 0, 1, 203, 0, 113, 6, 0, 81], "the request comes at once");
    world.push(warm, &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(world.tcp(app).state(), tcp::State::Established);
    assert_eq!(world.dialled.len(), 1, "its replacement is on the way");
    assert_eq!(world.engine.stats().pool_hits, 1);
}

#[test]
fn a_stale_warm_connection_is_replaced_unseen() {
    let mut world = World::new(EngineConfig { pool: 1, ..config() }, false);
    world.connect(addr(TARGET));
    let first = world.accept_dialled();
    let warm = world.accept_dialled();
    world.grant(first);
    world.take_written(warm);
    world.push(warm, &[5, 0]);
    let app = world.connect(addr("203.0.113.6:81"));
    world.settle();
    let replacement = world.dialled.pop_front().expect("the pool is refilled").0;
    world.push_eof(warm);
    let fresh = world.accept_dialled();
    assert_ne!(fresh, replacement);
    world.grant(fresh);
    assert_eq!(world.tcp(app).state(), tcp::State::Established);
    assert_eq!(world.engine.stats().pool_stale, 1);
}

#[test]
fn an_unused_warm_connection_is_given_back() {
    let mut world = World::new(EngineConfig { pool: 1, ..config() }, false);
    world.connect(addr(TARGET));
    let first = world.accept_dialled();
    let warm = world.accept_dialled();
    world.grant(first);
    world.take_written(warm);
    world.push(warm, &[5, 0]);
    world.advance(Duration::from_secs(30));
    assert!(!world.is_open(warm));
    assert!(world.dialled.is_empty(), "an idle machine dials nothing");
}

/// Z8
#[test]
fn rules_send_flows_direct_or_refuse_them() {
    let rule = |net: &str, prefix, route| Rule {
        dst: Cidr::new(net.parse().expect("address"), prefix),
        ports: None,
        proto: None,
        route,
    };
    let rules = vec![rule("203.0.113.0", 24, Route::Direct), rule("198.51.100.0", 24, Route::Reject)];
    let mut world = World::new(EngineConfig { rules, ..config() }, false);
    let direct = world.connect(addr(TARGET));
    let rejected = world.connect(addr("198.51.100.7:80"));
    world.settle();
    assert_eq!(world.tcp(rejected).state(), tcp::State::Closed);
    let (_, to) = *world.dialled.front().expect("dialled");
    assert_eq!(to, addr(TARGET));
    let socket = world.accept_dialled();
    assert_eq!(world.tcp(direct).state(), tcp::State::Established);
    world.push(socket, b"no handshake");
    assert_eq!(world.read(direct), b"no handshake");
}

/// peers, pain 1
#[test]
fn flows_of_the_local_proxy_go_out_directly() {
    let mut world = World::new(config(), true);
    world.local_proxy = true;
    world.connect(addr(TARGET));
    world.settle();
    assert_eq!(world.dialled.front().expect("dialled").1, addr(TARGET));
    assert_eq!(world.engine.stats().kept_outside, 1);
}

/// peers, pain 1: a rule has sent one datagram of its socket outside before; it is that way that all others take.
#[test]
fn datagrams_of_the_local_proxy_go_by_the_way_that_its_socket_has() {
    let config = EngineConfig { rules: vec!["dst=192.168.0.0/16 -> direct".parse().unwrap()], ..config() };
    let mut world = World::new(config, true);
    world.local_proxy = true;
    let app = world.bind_udp();
    for (number, to) in ["192.168.1.9:7", TARGET, TARGET].into_iter().enumerate() {
        world.udp_app(app).send_slice(&[number as u8], world::endpoint(addr(to))).unwrap();
        world.settle();
        let socket = world.udp[0];
        let sent = world.fake(socket).datagrams.last().cloned();
        assert_eq!(sent, Some((Some(addr(to)), vec![number as u8])));
    }
    assert_eq!((world.udp.len(), world.engine.associations()), (1, 1));
    assert!(world.dialled.is_empty());
    assert_eq!(world.engine.snapshot().memory.queued_datagrams, 0);
    world.advance(Duration::from_secs(61));
    assert_eq!(world.engine.associations(), 0);
}

/// F21
#[test]
fn a_connection_to_the_proxy_that_comes_back_is_refused() {
    let mut world = World::new(config(), false);
    let app = world.connect(addr(PROXY));
    world.settle();
    assert_eq!(world.tcp(app).state(), tcp::State::Closed);
    assert!(world.dialled.is_empty());
    assert_eq!(world.engine.stats().loops, 1);
}

#[test]
fn a_loop_ends_in_refusals_and_not_in_a_full_table() {
    let mut world = World::new(config(), false);
    for _ in 0..400 {
        world.connect(addr(TARGET));
    }
    world.settle();
    assert_eq!(world.dialled.len(), 256, "attempts without an answer are bounded");
    while let Some((socket, _)) = world.dialled.pop_front() {
        world.accept(socket);
    }
    world.advance(Duration::from_secs(12));
    assert_eq!(world.engine.tcp_flows(), 0);
    assert_eq!(world.engine.stats().loops, 1);
    assert!(world.dialled.is_empty());
}

#[test]
fn a_busy_destination_is_not_taken_for_a_loop() {
    let mut world = World::new(EngineConfig { pipeline: Pipeline::Off, ..config() }, false);
    let apps: Vec<_> = (0..400).map(|_| world.connect(addr(TARGET))).collect();
    world.settle();
    while let Some((socket, _)) = world.dialled.pop_front() {
        world.accept(socket);
        world.grant(socket);
        world.settle();
    }
    assert!(apps.iter().all(|app| world.tcp(*app).state() == tcp::State::Established));
    assert_eq!(world.engine.stats().loops, 0);
}

fn open_association(world: &mut World) -> (SocketId, SocketId) {
    let control = world.accept_dialled();
    assert_eq!(world.take_written(control), [5, 1, 0]);
    world.push(control, &[5, 0]);
    // conformance 59: the request names no address.
    assert_eq!(world.take_written(control), [5, 3, 0, 1, 0, 0, 0, 0, 0, 0]);
    world.push(control, &[5, 0, 0, 1, 0, 0, 0, 0, 0x04, 0x38]);
    (control, *world.udp.last().expect("a UDP socket"))
}

/// Z5, Z6, conformance 54, 59
#[test]
fn one_local_port_keeps_one_association_for_all_destinations() {
    let mut world = World::new(config(), false);
    let app = world.bind_udp();
    world.udp_app(app).send_slice(b"one", world::endpoint(addr("203.0.113.5:5000"))).expect("send");
    let (_, relay) = open_association(&mut world);
    assert_eq!(
        world.fake(relay).to,
        Some(addr("192.0.2.10:1080")),
        "0.0.0.0 is replaced by the proxy's address"
    );
    world.udp_app(app).send_slice(b"two", world::endpoint(addr("203.0.113.6:6000"))).expect("send");
    world.settle();
    let sent = &world.fake(relay).datagrams;
    assert_eq!(sent[0].1, [&[0, 0, 0, 1, 203, 0, 113, 5, 0x13, 0x88][..], b"one"].concat());
    assert_eq!(sent[1].1, [&[0, 0, 0, 1, 203, 0, 113, 6, 0x17, 0x70][..], b"two"].concat());
    assert_eq!(world.engine.associations(), 1);
    // A reply from anywhere carries its true source.
    world.push_datagram(relay, None, &[&[0, 0, 0, 1, 198, 51, 100, 9, 0, 9][..], b"hi"].concat());
    let (octets, meta) = world.udp_app(app).recv().expect("received");
    assert_eq!(octets, b"hi");
    assert_eq!(meta.endpoint, world::endpoint(addr("198.51.100.9:9")));
    // Fragments are dropped and counted.
    world.push_datagram(relay, None, &[&[0, 0, 1, 1, 198, 51, 100, 9, 0, 9][..], b"no"].concat());
    assert!(world.udp_app(app).recv().is_err());
    assert_eq!(world.engine.stats().datagrams_dropped, 1);
    world.advance(Duration::from_secs(61));
    assert_eq!(world.engine.associations(), 0);
    assert_eq!(world.engine.sockets(), 0);
}

/// conformance 59: the association dies with its control connection.
#[test]
fn the_end_of_the_control_connection_ends_the_association() {
    let mut world = World::new(config(), false);
    let app = world.bind_udp();
    world.udp_app(app).send_slice(b"one", world::endpoint(addr("203.0.113.5:5000"))).expect("send");
    let (control, relay) = open_association(&mut world);
    world.push_eof(control);
    assert!(!world.is_open(relay) && !world.is_open(control));
    assert_eq!(world.engine.associations(), 0);
}

/// conformance 52: never silence. The second datagram is refused without asking the proxy again.
#[test]
fn a_proxy_without_udp_is_asked_once() {
    let mut world = World::new(config(), false);
    let app = world.bind_udp();
    world.udp_app(app).send_slice(b"one", world::endpoint(addr("203.0.113.5:5000"))).expect("send");
    let control = world.accept_dialled();
    world.take_written(control);
    world.push(control, &[5, 0]);
    world.take_written(control);
    world.push(control, &[5, 7, 0, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(world.engine.associations(), 0);
    let errors = world.engine.stack().stats().icmp_errors_sent;
    assert_eq!(errors, 1);
    world.udp_app(app).send_slice(b"two", world::endpoint(addr("203.0.113.5:5000"))).expect("send");
    world.settle();
    assert!(world.dialled.is_empty());
    assert_eq!(world.engine.stack().stats().icmp_errors_sent, 2);
}

#[test]
fn a_full_table_gives_up_the_least_recently_used_association() {
    let mut world = World::new(EngineConfig { max_udp: 2, udp: UdpMode::Direct, ..config() }, false);
    let apps = [world.bind_udp(), world.bind_udp(), world.bind_udp()];
    for (app, again) in [(0, 1), (1, 0), (2, 2)] {
        for n in [app, again.min(app)] {
            world.udp_app(apps[n]).send_slice(b"x", world::endpoint(addr("203.0.113.5:5000"))).expect("send");
            world.settle();
        }
    }
    assert_eq!(world.engine.associations(), 2);
    assert_eq!(world.engine.stats().associations_evicted, 1);
    // The first was used last before the third came, so the second is gone.
    let open: Vec<bool> = world.udp.clone().iter().map(|socket| world.is_open(*socket)).collect();
    assert_eq!(open, [true, false, true]);
}

/// Z7
#[test]
fn names_are_asked_of_the_server_that_was_given_and_answered_in_the_name_of_the_other() {
    let server = addr("9.9.9.9:53");
    let mut world =
        World::new(EngineConfig { dns_server: Some(server), udp: UdpMode::Direct, ..config() }, false);
    let app = world.bind_udp();
    let query = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1];
    world.udp_app(app).send_slice(&query, world::endpoint(addr("192.168.1.1:53"))).expect("send");
    world.settle();
    let socket = world.udp[0];
    assert_eq!(world.fake(socket).datagrams, [(Some(server), query.to_vec())]);
    let mut answer = query;
    answer[2] = 0x81;
    world.push_datagram(socket, Some(server), &answer);
    let (octets, meta) = world.udp_app(app).recv().expect("answered");
    assert_eq!(octets, answer);
    assert_eq!(meta.endpoint, world::endpoint(addr("192.168.1.1:53")));
    assert_eq!(world.engine.dns().stats().answers, 1);
    world.advance(Duration::from_secs(12));
    assert_eq!(world.engine.associations(), 0, "a mapping that only asked names goes early");
}

/// F15
#[test]
fn a_machine_out_of_descriptors_refuses_the_new_and_keeps_the_old() {
    let (mut world, old, socket) = connected(config());
    let new = world.connect(addr("203.0.113.9:80"));
    world.settle();
    let (failed, _) = world.dialled.pop_front().expect("dialled");
    world.fail(failed, SocketError::Exhausted);
    assert_eq!(world.tcp(new).state(), tcp::State::Closed);
    world.push(socket, b"alive");
    assert_eq!(world.read(old), b"alive");
}

/// Z12
#[test]
fn shutdown_finishes_flows_and_closes_everything() {
    let (mut world, app, _) = connected(config());
    let late = world.connect(addr("203.0.113.9:80"));
    world.settle();
    world.engine.shutdown(world.now);
    world.settle();
    assert_eq!(world.tcp(app).state(), tcp::State::CloseWait, "the app has FIN");
    world.engine.abort(world.now);
    world.settle();
    assert_eq!(world.tcp(app).state(), tcp::State::Closed, "and RST when it does not finish");
    assert_eq!(world.engine.sockets(), 0);
    assert_ne!(world.tcp(late).state(), tcp::State::Established);
}
