//! The machine's network goes, comes back, and changes.

use super::{PROXY, TARGET, addr, config, connected, open_association};
use crate::world::{self, World};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use ztun::config::{Cidr, EngineConfig, Proxy};
use ztun::engine::{NetworkLoss, SocketError, SocketId};
use ztun::outbound::rule::{Route, Rule};
use ztun::time::Duration;

fn watched(config: EngineConfig) -> World {
    let mut world = World::new(config, false);
    world.engine.watch_network();
    world
}

/// A world with a flow whose dial has failed for want of a route.
fn held(config: EngineConfig) -> (World, SocketHandle) {
    let mut world = watched(config);
    let app = world.connect(addr(TARGET));
    world.settle();
    let (socket, _) = world.dialled.pop_front().expect("dialled");
    world.fail(socket, SocketError::Network);
    assert!(!world.is_open(socket));
    (world, app)
}

fn change(world: &mut World, dead: &[SocketId]) -> NetworkLoss {
    let loss = world.engine.handle_network_change(dead, world.now);
    world.settle();
    loss
}

fn resume(world: &mut World) -> usize {
    let dialled = world.engine.resume(world.now);
    world.settle();
    dialled
}

/// Z11: an app that connects while there is no network waits for it, and is served as soon as it is there.
#[test]
fn a_flow_without_a_way_out_waits_and_is_dialled_when_there_is_one() {
    let (mut world, app) = held(config());
    world.engine.pause();
    world.advance(Duration::from_secs(5));
    assert_eq!(world.tcp(app).state(), tcp::State::SynSent);
    assert!(world.dialled.is_empty(), "nothing is tried meanwhile");
    assert_eq!(resume(&mut world), 1);
    assert_eq!(world.dialled.front().expect("dialled").1, addr(PROXY));
    let socket = world.accept_dialled();
    world.grant(socket);
    assert_eq!(world.tcp(app).state(), tcp::State::Established);
}

/// Z11: not for ever: the time that a connection may take to be opened.
#[test]
fn a_flow_that_waits_too_long_for_a_way_out_is_refused() {
    let (mut world, _) = held(config());
    world.advance(Duration::from_millis(9_900));
    assert_eq!(world.engine.tcp_flows(), 1);
    world.advance(Duration::from_millis(300));
    assert_eq!((world.engine.tcp_flows(), world.engine.sockets()), (0, 0));
    assert_eq!(world.engine.stats().refused, 1);
    assert_eq!(resume(&mut world), 0);
}

/// A way may come with a change before anybody knew that it had gone.
#[test]
fn a_change_alone_dials_what_was_held() {
    let (mut world, app) = held(config());
    assert_eq!(change(&mut world, &[]), NetworkLoss::default());
    let socket = world.accept_dialled();
    world.grant(socket);
    assert_eq!(world.tcp(app).state(), tcp::State::Established);
    let (mut world, _) = held(config());
    world.engine.pause();
    change(&mut world, &[]);
    assert!(world.dialled.is_empty(), "a change on the way down brings no way out");
}

#[test]
fn where_nobody_watches_a_flow_without_a_way_out_is_refused_at_once() {
    let mut world = World::new(config(), false);
    let app = world.connect(addr(TARGET));
    world.settle();
    let (socket, _) = world.dialled.pop_front().expect("dialled");
    world.fail(socket, SocketError::Network);
    assert_eq!(world.tcp(app).state(), tcp::State::Closed);
}

#[test]
fn a_dial_into_the_void_is_made_again_when_there_is_a_way() {
    let mut world = watched(config());
    let app = world.connect(addr(TARGET));
    world.settle();
    let (lost, _) = world.dialled.pop_front().expect("dialled");
    world.engine.pause();
    assert_eq!(resume(&mut world), 1);
    assert!(!world.is_open(lost));
    let socket = world.accept_dialled();
    world.grant(socket);
    assert_eq!(world.tcp(app).state(), tcp::State::Established);
}

/// F23: a target that cannot be reached directly is refused at once, unless nothing can be reached.
#[test]
fn a_direct_flow_is_held_only_while_there_is_no_network() {
    let direct = Rule {
        dst: Cidr::new("203.0.113.0".parse().expect("address"), 24),
        ports: None,
        proto: None,
        route: Route::Direct,
    };
    for gone in [false, true] {
        let mut world = watched(EngineConfig { rules: vec![direct.clone()], ..config() });
        if gone {
            world.engine.pause();
        }
        let app = world.connect(addr(TARGET));
        world.settle();
        let (socket, _) = world.dialled.pop_front().expect("dialled");
        world.fail(socket, SocketError::Network);
        assert_eq!(world.engine.tcp_flows(), usize::from(gone));
        assert_eq!(resume(&mut world), usize::from(gone));
        if gone {
            assert_eq!(world.dialled.front().expect("dialled").1, addr(TARGET));
            world.accept_dialled();
            assert_eq!(world.tcp(app).state(), tcp::State::Established);
        }
    }
}

/// The second proxy may have a way when the first has none; what was found out before a change does not count after it.
#[test]
fn all_proxies_are_tried_before_a_flow_is_held_and_the_first_again_after_a_change() {
    let second = "192.0.2.11:1080";
    let proxies = vec![config().proxies[0].clone(), Proxy { addr: addr(second), credentials: None }];
    let mut world = watched(EngineConfig { proxies, ..config() });
    world.connect(addr(TARGET));
    world.settle();
    for proxy in [PROXY, second] {
        let (socket, to) = world.dialled.pop_front().expect("dialled");
        assert_eq!(to, addr(proxy));
        world.fail(socket, SocketError::Network);
    }
    assert!(world.dialled.is_empty());
    change(&mut world, &[]);
    assert_eq!(world.dialled.front().expect("dialled").1, addr(PROXY));
}

/// Z11: reset only what is dead.
#[test]
fn a_change_resets_dead_flows_and_leaves_the_living_alone() {
    let (mut world, app, socket) = connected(EngineConfig { pool: 1, ..config() });
    let warm = world.accept_dialled();
    world.take_written(warm);
    world.push(warm, &[5, 0]);
    let other = world.connect(addr("203.0.113.6:81"));
    // It takes the warm connection, and is not answered before the change; another is on its way into the pool.
    world.settle();
    let (filling, _) = *world.dialled.front().expect("the pool is refilled");
    let living = world.connect(addr("203.0.113.7:82"));
    world.settle();
    world.dialled.rotate_left(1);
    let survivor = world.accept_dialled();
    world.grant(survivor);
    let loss = change(&mut world, &[socket, warm, filling]);
    assert_eq!(loss, NetworkLoss { flows: 1, redialled: 1, ..NetworkLoss::default() });
    assert_eq!(world.tcp(app).state(), tcp::State::Closed, "its app hears at once");
    assert_eq!(world.tcp(living).state(), tcp::State::Established);
    world.push(survivor, b"alive");
    assert_eq!(world.read(living), b"alive");
    let again = world.accept_dialled();
    world.grant(again);
    assert_eq!(world.tcp(other).state(), tcp::State::Established, "opened again, unseen");
}

#[test]
fn a_dead_connection_in_the_pool_is_not_used() {
    let mut world = watched(EngineConfig { pool: 1, ..config() });
    world.connect(addr(TARGET));
    let first = world.accept_dialled();
    let warm = world.accept_dialled();
    world.grant(first);
    world.take_written(warm);
    world.push(warm, &[5, 0]);
    assert_eq!(change(&mut world, &[warm]), NetworkLoss { pooled: 1, ..NetworkLoss::default() });
    assert!(!world.is_open(warm) && world.dialled.is_empty());
    world.connect(addr("203.0.113.6:81"));
    world.settle();
    assert_eq!(world.engine.stats().pool_hits, 0);
}

/// Z11, Z5: a dead association is opened again by the next datagram; one that was being opened keeps what waits.
#[test]
fn a_dead_association_is_opened_again_by_the_next_datagram() {
    let mut world = watched(config());
    let app = world.bind_udp();
    let remote = world::endpoint(addr("203.0.113.5:5000"));
    world.udp_app(app).send_slice(b"one", remote).expect("send");
    let (control, relay) = open_association(&mut world);
    let loss = change(&mut world, &[control, relay]);
    assert_eq!(loss, NetworkLoss { associations: 1, ..NetworkLoss::default() }, "it is one, of two sockets");
    assert_eq!((world.engine.associations(), world.engine.sockets()), (0, 0));
    world.udp_app(app).send_slice(b"two", remote).expect("send");
    world.settle();
    let (asking, _) = *world.dialled.front().expect("dialled");
    assert_eq!(change(&mut world, &[asking]), NetworkLoss { redialled: 1, ..NetworkLoss::default() });
    let (_, relay) = open_association(&mut world);
    assert!(world.fake(relay).datagrams[0].1.ends_with(b"two"), "what waited is sent");
}

/// Z11: datagrams wait for the network as connections do.
#[test]
fn an_association_without_a_way_out_waits_and_its_datagrams_are_sent() {
    let mut world = watched(config());
    let app = world.bind_udp();
    world.udp_app(app).send_slice(b"one", world::endpoint(addr("203.0.113.5:5000"))).expect("send");
    world.settle();
    let (control, _) = world.dialled.pop_front().expect("dialled");
    world.engine.pause();
    world.fail(control, SocketError::Network);
    assert_eq!(resume(&mut world), 1);
    let (_, relay) = open_association(&mut world);
    assert!(world.fake(relay).datagrams[0].1.ends_with(b"one"));
    // And not for ever.
    let other = world.bind_udp();
    world.udp_app(other).send_slice(b"x", world::endpoint(addr("203.0.113.5:5000"))).expect("send");
    world.settle();
    let (control, _) = world.dialled.pop_front().expect("dialled");
    world.fail(control, SocketError::Network);
    world.advance(Duration::from_secs(11));
    assert_eq!(world.engine.associations(), 1);
    assert_eq!(world.engine.stats().refused, 1);
}

#[test]
fn a_socket_that_is_gone_already_costs_nothing() {
    let (mut world, _, socket) = connected(config());
    world.push_eof(socket);
    world.fail(socket, SocketError::Reset);
    assert_eq!(change(&mut world, &[socket, SocketId::from_bits(u64::MAX)]), NetworkLoss::default());
}
