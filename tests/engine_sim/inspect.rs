//! What reports are made of, and what may be changed while the engine runs.

use super::{PROXY, TARGET, addr, config, connected, open_association};
use crate::world::{self, World};
use smoltcp::socket::tcp;
use ztun::config::{Accept, EngineConfig, Proxy};
use ztun::engine::{FlowInfo, FlowPhase, Outbound, ProxyTrouble, SocketError};
use ztun::outbound::rule::Proto;
use ztun::outbound::socks5::Failure;
use ztun::stack::TcpState;
use ztun::time::Duration;

const OTHER: &str = "192.0.2.77:1080";

fn proxy(text: &str) -> Proxy {
    Proxy { addr: addr(text), credentials: None }
}

/// All flows, by pages of `most`.
fn flows(world: &World, most: usize) -> Vec<FlowInfo> {
    let (mut flows, mut cursor) = (Vec::new(), 0);
    loop {
        let page = world.engine.flows(cursor, most);
        assert!(page.flows.len() <= most);
        flows.extend(page.flows);
        match page.next {
            Some(next) => assert!(std::mem::replace(&mut cursor, next) < next, "a cursor only moves on"),
            None => return flows,
        }
    }
}

#[test]
fn a_flow_is_told_with_its_ends_its_way_and_its_octets() {
    let (mut world, app, socket) = connected(config());
    world.tcp(app).send_slice(b"hello").expect("send");
    assert_eq!(world.take_written(socket), b"hello");
    world.push(socket, b"wonderful");
    assert_eq!(world.read(app), b"wonderful");
    world.advance(Duration::from_secs(2));
    let [flow] = &flows(&world, 10)[..] else { panic!("one flow") };
    assert_eq!((flow.proto, flow.remote), (Proto::Tcp, addr(TARGET).into()));
    assert_eq!(flow.local.addr, world::APP.parse::<std::net::IpAddr>().unwrap());
    assert_eq!(flow.outbound, Outbound::Proxy(addr(PROXY)));
    assert_eq!((flow.phase, flow.tcp), (FlowPhase::Relaying, Some(TcpState::Established)));
    assert_eq!((flow.upload_octets, flow.download_octets), (5, 9));
    assert!(world.now.since(flow.opened) >= Duration::from_secs(2));
    world.push_eof(socket);
    assert_eq!(flows(&world, 10)[0].tcp, Some(TcpState::FinWait2));
    world.tcp(app).close();
    world.settle();
    assert_eq!(flows(&world, 10), [], "one in TIME-WAIT is over");
    assert_eq!(world.engine.snapshot().tcp.time_wait, 1);
}

/// What waits for a socket that is full comes behind what waits already, and is counted all the same.
#[test]
fn octets_that_had_to_wait_for_a_socket_are_counted_once() {
    let (mut world, app, socket) = connected(config());
    world.fake(socket).room = Some(2);
    for text in [&b"one"[..], b"three", b"eleven"] {
        world.tcp(app).send_slice(text).expect("send");
        world.settle();
    }
    assert_eq!(world.engine.stats().upload_octets, 2);
    assert_eq!(flows(&world, 10)[0].upload_octets, 14);
    for room in [Some(5), None] {
        world.fake(socket).room = room;
        world.settle();
    }
    assert_eq!(world.take_written(socket), b"onethreeeleven");
    assert_eq!(world.engine.stats().upload_octets, 14);
}

#[test]
fn an_association_is_told_with_whom_it_addressed_last() {
    let mut world = World::new(config(), false);
    let app = world.bind_udp();
    world.udp_app(app).send_slice(b"one", world::endpoint(addr("203.0.113.5:5000"))).expect("send");
    let (_, relay) = open_association(&mut world);
    world.udp_app(app).send_slice(b"three", world::endpoint(addr("203.0.113.6:6000"))).expect("send");
    world.settle();
    world.push_datagram(relay, None, &[&[0, 0, 0, 1, 198, 51, 100, 9, 0, 9][..], b"hi"].concat());
    let [flow] = &flows(&world, 10)[..] else { panic!("one association") };
    assert_eq!((flow.proto, flow.remote), (Proto::Udp, addr("203.0.113.6:6000").into()));
    assert_eq!((flow.upload_octets, flow.download_octets), (8, 2));
    assert_eq!((flow.outbound, flow.phase), (Outbound::Proxy(addr(PROXY)), FlowPhase::Relaying));
}

#[test]
fn pages_of_any_size_hold_every_flow_once() {
    let mut world = World::new(config(), false);
    for port in 0..30 {
        world.connect(addr(&format!("203.0.113.5:{}", 1000 + port)));
    }
    for _ in 0..4 {
        let app = world.bind_udp();
        world.udp_app(app).send_slice(b"x", world::endpoint(addr("203.0.113.5:5000"))).expect("send");
    }
    world.settle();
    let all = flows(&world, usize::MAX);
    assert_eq!(all.len(), 34);
    for most in [1, 7, 34] {
        assert_eq!(flows(&world, most), all);
    }
    assert_eq!(all.iter().filter(|flow| flow.tcp == Some(TcpState::SynReceived)).count(), 30);
    assert_eq!(world.engine.snapshot().tcp.syn, 30);
    for cursor in [29, 30, 31, u64::from(u32::MAX), 1 << 32, (1 << 33) - 1, 1 << 33, u64::MAX] {
        let page = world.engine.flows(cursor, 100);
        assert!(page.flows.len() < 34 && page.next.is_none(), "{cursor}");
    }
    assert_eq!(world.engine.flows(0, 0).flows, [], "an empty page is none without end");
}

#[test]
fn what_is_wrong_with_a_proxy_is_told_until_something_goes_right() {
    let mut world = World::new(config(), false);
    assert_eq!(world.engine.snapshot().proxies[0].reachable, None);
    world.connect(addr(TARGET));
    world.settle();
    let (socket, _) = world.dialled.pop_front().expect("dialled");
    world.fail(socket, SocketError::Refused);
    let told = world.engine.snapshot().proxies.remove(0);
    assert_eq!(told.reachable, Some(false));
    assert_eq!(told.trouble, Some(ProxyTrouble::Connect(SocketError::Refused)));
    world.connect(addr("203.0.113.6:81"));
    let socket = world.accept_dialled();
    world.take_written(socket);
    world.push(socket, &[5, 0xff]);
    let told = world.engine.snapshot().proxies.remove(0);
    assert_eq!(told.reachable, Some(true));
    assert_eq!(told.trouble, Some(ProxyTrouble::Access(Failure::NoMethod)));
    world.connect(addr("203.0.113.7:82"));
    let socket = world.accept_dialled();
    world.grant(socket);
    assert_eq!(world.engine.snapshot().proxies[0].trouble, None);
}

#[test]
fn a_flow_outlives_its_proxys_place_in_the_list_and_new_ones_go_to_the_new() {
    let (mut world, app, old) = connected(EngineConfig { pool: 1, ..config() });
    let warm = world.accept_dialled();
    world.take_written(warm);
    world.push(warm, &[5, 0]);
    let waiting = world.connect(addr("203.0.113.6:81"));
    world.settle();
    // The warm connection is asked, its successor dialled.
    let successor = world.dialled.pop_front().expect("dialled").0;
    world.engine.set_proxies(vec![proxy(OTHER), proxy(OTHER)], world.now);
    world.settle();
    assert!(world.is_open(old) && !world.is_open(warm) && !world.is_open(successor));
    assert_eq!(
        world.dialled.front().map(|(_, to)| *to),
        Some(addr(OTHER)),
        "what was being opened is asked again"
    );
    let fresh = world.accept_dialled();
    world.grant(fresh);
    assert_eq!(world.tcp(waiting).state(), tcp::State::Established);
    world.push(old, b"still here");
    assert_eq!(world.read(app), b"still here");
    let ways: Vec<Outbound> = flows(&world, 10).into_iter().map(|flow| flow.outbound).collect();
    assert_eq!(ways, [Outbound::FormerProxy, Outbound::Proxy(addr(OTHER))]);
    assert_eq!(world.engine.snapshot().proxies.len(), 1);
    // And back: the flow that was there all the while is still a former one's.
    world.engine.set_proxies(vec![proxy(OTHER), proxy(PROXY)], world.now);
    world.push_eof(old);
    world.tcp(app).close();
    world.settle();
    assert!(!world.is_open(old));
}

#[test]
fn a_proxy_that_stays_keeps_its_warm_connections_at_another_place() {
    let (mut world, _, _) = connected(EngineConfig { pool: 1, ..config() });
    let warm = world.accept_dialled();
    world.take_written(warm);
    world.push(warm, &[5, 0]);
    world.engine.set_proxies(vec![proxy(OTHER), proxy(PROXY)], world.now);
    world.settle();
    let pooled: Vec<usize> = world.engine.snapshot().proxies.iter().map(|proxy| proxy.pooled).collect();
    assert_eq!(pooled, [0, 1]);
    assert!(world.is_open(warm));
    world.engine.set_proxies(Vec::new(), world.now);
    assert_eq!(world.engine.snapshot().proxies.len(), 2, "an empty list changes nothing");
    world.advance(Duration::from_secs(30));
    assert!(!world.is_open(warm), "its age limit goes with it");
}

#[test]
fn a_flow_that_was_accepted_early_is_asked_of_the_new_proxy() {
    let mut world = World::new(EngineConfig { accept: Accept::Early, ..config() }, false);
    let app = world.connect(addr(TARGET));
    world.settle();
    assert_eq!(world.dialled.pop_front().map(|(_, to)| to), Some(addr(PROXY)));
    world.engine.set_proxies(vec![proxy(OTHER)], world.now);
    world.settle();
    assert_eq!(world.dialled.front().map(|(_, to)| *to), Some(addr(OTHER)));
    let socket = world.accept_dialled();
    world.grant(socket);
    world.push(socket, b"hi");
    assert_eq!(world.read(app), b"hi");
}
