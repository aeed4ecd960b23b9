//! Names: who is asked instead of whom, by which way, and that the app hears it from the address that it asked.

use crate::world::{self, World};
use crate::{addr, config, open_association};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use std::net::SocketAddr;
use ztun::config::{DnsMode, EngineConfig, UdpMode};
use ztun::dns::Carrier;
use ztun::engine::SocketId;
use ztun::time::Duration;

const ROUTER: &str = "192.168.1.1:53";
const TUNNEL: &str = "198.18.0.2:53";
const PUBLIC: &str = "9.9.9.9:53";
const UPSTREAM: &str = "1.1.1.1:53";

fn names(dns: DnsMode) -> EngineConfig {
    EngineConfig { dns, dns_local: vec![addr(TUNNEL).ip(), addr("[fd7a:7a74:756e::2]:53").ip()], ..config() }
}

/// A question for `a.` under an id.
fn question(id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1]
}

fn answer(id: u16) -> Vec<u8> {
    let mut octets = question(id);
    octets[2..4].copy_from_slice(&[0x81, 0x80]);
    octets
}

fn ask(world: &mut World, app: SocketHandle, server: &str, message: &[u8]) {
    world.udp_app(app).send_slice(message, world::endpoint(addr(server))).expect("send");
    world.settle();
}

/// What the app has got, and from whom.
fn heard(world: &mut World, app: SocketHandle) -> Option<(Vec<u8>, String)> {
    let (octets, meta) = world.udp_app(app).recv().ok()?;
    Some((octets.to_vec(), SocketAddr::new(meta.endpoint.addr.into(), meta.endpoint.port).to_string()))
}

fn rules(config: EngineConfig, rules: &[&str]) -> EngineConfig {
    EngineConfig { rules: rules.iter().map(|rule| rule.parse().expect("rule")).collect(), ..config }
}

/// Whom the engine asks by a datagram when the app asks `server`: through the relay, or directly.
fn asked_for(config: &EngineConfig, server: &str) -> Option<(bool, SocketAddr)> {
    let mut world = World::new(config.clone(), false);
    let app = world.bind_udp();
    ask(&mut world, app, server, &question(7));
    if world.dialled.is_empty() {
        let socket = *world.udp.first()?;
        return world.fake(socket).datagrams.first().map(|(to, _)| (false, to.expect("a target")));
    }
    let (_, relay) = open_association(&mut world);
    let octets = &world.fake(relay).datagrams.first()?.1;
    let ip: [u8; 4] = octets.get(4..8)?.try_into().ok()?;
    Some((true, SocketAddr::from((ip, u16::from_be_bytes([octets[8], octets[9]])))))
}

/// Where the engine wants to go when the app opens a TCP connection: through the proxy, or directly.
fn connected_to(config: &EngineConfig, server: &str) -> Option<(bool, SocketAddr)> {
    let mut world = World::new(config.clone(), false);
    world.connect(addr(server));
    world.settle();
    let (_, to) = *world.dialled.front()?;
    if to != config.proxies[0].addr {
        return Some((false, to));
    }
    let socket = world.accept_dialled();
    world.take_written(socket);
    world.push(socket, &[5, 0]);
    let request = world.take_written(socket);
    let ip: [u8; 4] = request.get(4..8)?.try_into().ok()?;
    Some((true, SocketAddr::from((ip, u16::from_be_bytes([request[8], request[9]])))))
}

/// Z7, peers pain 4: the resolver that the DHCP server gave means nobody at the proxy; a public one means itself.
#[test]
fn a_resolver_that_only_this_network_has_is_replaced_by_the_upstream() {
    let proxy = |to| Some((true, addr(to)));
    let given = EngineConfig { dns_server: Some(addr("8.8.8.8:53")), ..names(DnsMode::Udp) };
    for of in [asked_for, connected_to] {
        for dns in [DnsMode::Auto, DnsMode::Udp] {
            let config = names(dns);
            for server in [TUNNEL, ROUTER, "10.0.0.1:53", "100.64.0.1:53"] {
                assert_eq!(of(&config, server), proxy(UPSTREAM), "{server}");
            }
            assert_eq!(of(&config, PUBLIC), proxy(PUBLIC));
            assert_eq!(of(&config, "192.168.1.1:5353"), proxy("192.168.1.1:5353"), "another port");
        }
        for server in [TUNNEL, ROUTER, PUBLIC] {
            assert_eq!(of(&given, server), proxy("8.8.8.8:53"), "{server}");
        }
    }
}

/// Z8: rules come first; one that names the address means that address.
#[test]
fn rules_decide_before_names_do() {
    for of in [asked_for, connected_to] {
        let ruled = |rule: &str, server: &str| of(&rules(names(DnsMode::Auto), &[rule]), server);
        assert_eq!(ruled("dst=192.168.0.0/16 -> direct", ROUTER), Some((false, addr(ROUTER))));
        assert_eq!(ruled("dst=192.168.0.0/16 -> proxy", ROUTER), Some((true, addr(ROUTER))));
        assert_eq!(ruled("port=53 -> direct", ROUTER), Some((false, addr(ROUTER))));
        assert_eq!(ruled("port=53 -> direct", TUNNEL), Some((false, addr(UPSTREAM))));
        assert_eq!(ruled("any -> proxy", ROUTER), Some((true, addr(UPSTREAM))));
        assert_eq!(ruled("dst=0.0.0.0/0 -> proxy", ROUTER), Some((true, addr(UPSTREAM))));
        assert_eq!(ruled("port=53 -> reject", ROUTER), None);
        assert_eq!(ruled("port=53 -> drop", TUNNEL), None);
    }
}

#[test]
fn direct_asks_the_resolver_that_the_app_asks_and_off_changes_nothing() {
    for of in [asked_for, connected_to] {
        let direct = names(DnsMode::Direct);
        assert_eq!(of(&direct, ROUTER), Some((false, addr(ROUTER))));
        assert_eq!(of(&direct, PUBLIC), Some((false, addr(PUBLIC))));
        assert_eq!(of(&direct, TUNNEL), Some((false, addr(UPSTREAM))));
        assert_eq!(of(&direct, "203.0.113.5:80"), Some((true, addr("203.0.113.5:80"))));
        let off = names(DnsMode::Off);
        for server in [ROUTER, PUBLIC, TUNNEL] {
            assert_eq!(of(&off, server), Some((true, addr(server))), "{server}");
        }
    }
}

/// Nothing but names is at the tunnel's own resolver: an attempt at DNS over TLS must not wait for a time-out.
#[test]
fn other_ports_of_the_tunnels_resolver_are_closed() {
    let mut world = World::new(names(DnsMode::Auto), false);
    let app = world.connect(addr("198.18.0.2:853"));
    world.settle();
    assert_eq!(world.tcp(app).state(), tcp::State::Closed);
    let app = world.bind_udp();
    ask(&mut world, app, "198.18.0.2:443", b"quic");
    assert_eq!(world.engine.stack().stats().icmp_errors_sent, 1);
    assert!(world.dialled.is_empty());
}

/// The app that asked two resolvers hears each answer from the one that it asked, also where one server gave both.
#[test]
fn each_answer_comes_from_the_address_that_was_asked() {
    let mut world = World::new(EngineConfig { udp: UdpMode::Direct, ..names(DnsMode::Auto) }, false);
    let app = world.bind_udp();
    ask(&mut world, app, TUNNEL, &question(1));
    ask(&mut world, app, UPSTREAM, &question(2));
    let socket = world.udp[0];
    assert_eq!(world.udp.len(), 1);
    let upstream = Some(addr(UPSTREAM));
    for (id, from) in [(2, UPSTREAM), (1, TUNNEL)] {
        world.push_datagram(socket, upstream, &answer(id));
        assert_eq!(heard(&mut world, app), Some((answer(id), from.into())));
    }
    let stats = world.engine.dns().stats();
    assert_eq!((stats.redirected, stats.carrier(Carrier::Direct).answers), (1, 2));
}

/// The other family's resolver address: the socket is of the family of the server that is asked.
#[test]
fn an_app_of_one_family_is_answered_by_a_server_of_the_other() {
    for udp in [UdpMode::Direct, UdpMode::Auto] {
        let mut world = World::new(EngineConfig { udp, ..names(DnsMode::Auto) }, false);
        let app = world.bind_udp();
        let asked = "[fd7a:7a74:756e::2]:53";
        ask(&mut world, app, asked, &question(9));
        let relayed = udp == UdpMode::Auto;
        let socket = if relayed { open_association(&mut world).1 } else { world.udp[0] };
        assert!(!world.fake(socket).v6);
        let header: &[u8] = if relayed { &[0, 0, 0, 1, 1, 1, 1, 1, 0, 53] } else { &[] };
        world.push_datagram(socket, Some(addr(UPSTREAM)), &[header, &answer(9)].concat());
        assert_eq!(heard(&mut world, app), Some((answer(9), asked.into())), "{udp:?}");
    }
}

/// peers pain 1: what the local proxy itself asks goes to whom it asks, or to the upstream in place of the tunnel, but not into the tunnel.
#[test]
fn names_of_the_local_proxy_are_asked_outside() {
    for (server, target) in [(ROUTER, ROUTER), (TUNNEL, UPSTREAM), (PUBLIC, PUBLIC)] {
        let mut world = World::new(names(DnsMode::Auto), true);
        world.local_proxy = true;
        let app = world.bind_udp();
        for id in [3, 4] {
            ask(&mut world, app, server, &question(id));
            let socket: SocketId = world.udp[0];
            world.push_datagram(socket, Some(addr(target)), &answer(id));
            assert_eq!(heard(&mut world, app), Some((answer(id), server.into())));
        }
        let socket = world.udp[0];
        let sent: Vec<_> = world.fake(socket).datagrams.iter().map(|(to, _)| *to).collect();
        assert_eq!(sent, [Some(addr(target)); 2]);
        assert!(world.dialled.is_empty());
        assert_eq!(world.engine.dns().stats().carrier(Carrier::Direct).answers, 2);
        world.connect(addr(server));
        world.settle();
        assert_eq!(world.dialled.front().expect("dialled").1, addr(target));
        world.advance(Duration::from_secs(61));
        assert_eq!(world.engine.associations(), 0);
    }
}
