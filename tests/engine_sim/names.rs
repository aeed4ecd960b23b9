//! Names: who is asked instead of whom, by which way, and that the app hears it from the address that it asked.

use crate::world::{self, World};
use crate::{addr, config, open_association};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use std::net::SocketAddr;
use ztun::config::{DnsMode, EngineConfig, UdpMode};
use ztun::dns::Carrier;
use ztun::engine::{SocketError, SocketId};
use ztun::time::Duration;

const ROUTER: &str = "192.168.1.1:53";
const TUNNEL: &str = "198.18.0.2:53";
const PUBLIC: &str = "9.9.9.9:53";
const UPSTREAM: &str = "1.1.1.1:53";

fn names(dns: DnsMode) -> EngineConfig {
    let dns_local = vec![addr(TUNNEL).ip(), addr("[fd7a:7a74:756e::2]:53").ip()];
    EngineConfig { dns, dns_local, dns_machine: vec![addr(ROUTER).ip()], ..config() }
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
            for server in [TUNNEL, ROUTER] {
                assert_eq!(of(&config, server), proxy(UPSTREAM), "{server}");
            }
            for server in ["10.0.0.1:53", "100.64.0.1:53"] {
                assert_eq!(of(&config, server), proxy(server), "it may be the proxy's network's");
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

// ---- over TCP ----

/// A name server at the far end of a connection through the proxy.
struct Server {
    socket: SocketId,
    to: SocketAddr,
}

impl Server {
    /// Lets the connection that the engine is dialling come about.
    fn accept(world: &mut World) -> Server {
        let socket = world.accept_dialled();
        assert_eq!(world.take_written(socket), [5, 1, 0]);
        world.push(socket, &[5, 0]);
        let request = world.take_written(socket);
        let ip: [u8; 4] = request[4..8].try_into().expect("IPv4");
        world.push(socket, &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        Server { socket, to: SocketAddr::from((ip, u16::from_be_bytes([request[8], request[9]]))) }
    }

    /// The queries that have come since the last call.
    fn queries(&self, world: &mut World) -> Vec<Vec<u8>> {
        let written = world.take_written(self.socket);
        let mut rest = &written[..];
        let mut queries = Vec::new();
        while let [length0, length1, more @ ..] = rest {
            let (query, more) = more.split_at(usize::from(u16::from_be_bytes([*length0, *length1])));
            queries.push(query.to_vec());
            rest = more;
        }
        queries
    }

    fn say(&self, world: &mut World, message: &[u8]) {
        let length = u16::try_from(message.len()).expect("short").to_be_bytes();
        world.push(self.socket, &[&length[..], message].concat());
    }
}

/// The answer to a query, of so many octets behind the question.
fn answer_to(query: &[u8], more: usize) -> Vec<u8> {
    let mut octets = query.to_vec();
    octets[2..4].copy_from_slice(&[0x81, 0x80]);
    octets.resize(octets.len() + more, 7);
    octets
}

/// A question for a name of the number's own.
fn numbered(id: u16, number: u16) -> Vec<u8> {
    let text = format!("{number:05}");
    let mut octets = question(id)[..12].to_vec();
    octets.push(5);
    octets.extend(text.as_bytes());
    octets.extend([0, 0, 1, 0, 1]);
    octets
}

fn rcode(message: &[u8]) -> u8 {
    message[3] & 15
}

/// Z7, RFC 7766: two apps use the same id for different questions; answers come in the other order, and each has its own.
#[test]
fn queries_share_a_connection_and_answers_come_in_any_order() {
    let mut world = World::new(names(DnsMode::Tcp), false);
    let apps = [world.bind_udp(), world.bind_udp()];
    ask(&mut world, apps[0], TUNNEL, &numbered(7, 1));
    let server = Server::accept(&mut world);
    assert_eq!(server.to, addr(UPSTREAM));
    ask(&mut world, apps[1], ROUTER, &numbered(7, 2));
    let queries = server.queries(&mut world);
    assert_eq!(queries.len(), 2);
    assert_ne!(queries[0][..2], queries[1][..2], "ids are unique on a connection");
    // The right id with another's question is no answer, and neither is a query.
    let mut crossed = answer_to(&queries[0], 0);
    crossed[..2].copy_from_slice(&queries[1][..2]);
    server.say(&mut world, &crossed);
    server.say(&mut world, &queries[1]);
    for n in [1, 0] {
        assert_eq!(heard(&mut world, apps[n]), None);
        server.say(&mut world, &answer_to(&queries[n], 4));
        let (octets, from) = heard(&mut world, apps[n]).expect("answered");
        assert_eq!(octets, answer_to(&numbered(7, n as u16 + 1), 4), "with the id of the app");
        assert_eq!(from, [TUNNEL, ROUTER][n]);
    }
    assert!(world.dialled.is_empty(), "one connection");
    let stats = *world.engine.dns().stats();
    assert_eq!((stats.queries, stats.answers, stats.unmatched), (2, 2, 2));
    assert_eq!((stats.tcp.queries, stats.tcp.answers), (2, 2));
    // It is used again while it is young, and given back after.
    world.advance(Duration::from_secs(8));
    ask(&mut world, apps[0], TUNNEL, &numbered(8, 3));
    let queries = server.queries(&mut world);
    server.say(&mut world, &answer_to(&queries[0], 0));
    assert!(heard(&mut world, apps[0]).is_some());
    world.advance(Duration::from_millis(9_900));
    assert!(world.is_open(server.socket));
    world.advance(Duration::from_millis(200));
    assert!(!world.is_open(server.socket));
    assert_eq!((world.engine.sockets(), world.engine.associations()), (0, 0));
}

/// The proxy says "command not supported": the query in hand and all later ones go over TCP; what is not about names is refused as ever.
#[test]
fn a_proxy_without_udp_gets_names_over_tcp() {
    for refusal in [1, 2, 7] {
        let mut world = World::new(names(DnsMode::Auto), false);
        let app = world.bind_udp();
        ask(&mut world, app, ROUTER, &question(7));
        ask(&mut world, app, "203.0.113.5:443", b"quic");
        let control = world.accept_dialled();
        world.take_written(control);
        world.push(control, &[5, 0]);
        world.take_written(control);
        world.push(control, &[5, refusal, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(world.engine.stack().stats().icmp_errors_sent, 1, "the other datagram");
        let server = Server::accept(&mut world);
        let queries = server.queries(&mut world);
        assert_eq!(queries.len(), 1);
        server.say(&mut world, &answer_to(&queries[0], 0));
        assert_eq!(heard(&mut world, app), Some((answer(7), ROUTER.into())));
        // The next one asks for no association.
        let app = world.bind_udp();
        ask(&mut world, app, PUBLIC, &question(8));
        let server = Server::accept(&mut world);
        assert_eq!(server.to, addr(PUBLIC));
        assert_eq!(server.queries(&mut world).len(), 1);
        let stats = *world.engine.dns().stats();
        assert_eq!((stats.queries, stats.udp.queries, stats.tcp.queries, stats.fallbacks), (2, 0, 2, 1));
        // After some minutes datagrams are tried again, and stay when they work.
        world.advance(Duration::from_secs(301));
        let app = world.bind_udp();
        ask(&mut world, app, PUBLIC, &question(9));
        let (_, relay) = open_association(&mut world);
        world.push_datagram(relay, None, &[&[0, 0, 0, 1, 9, 9, 9, 9, 0, 53][..], &answer(9)].concat());
        assert_eq!(heard(&mut world, app), Some((answer(9), PUBLIC.into())));
        assert_eq!(world.engine.dns().stats().udp.answers, 1);
    }
}

/// A proxy that does not answer UDP ASSOCIATE at all: the query goes over TCP when its time is over.
#[test]
fn an_association_that_times_out_moves_names_to_tcp() {
    let mut world = World::new(names(DnsMode::Auto), false);
    let app = world.bind_udp();
    ask(&mut world, app, ROUTER, &question(7));
    let control = world.accept_dialled();
    world.take_written(control);
    world.push(control, &[5, 0]);
    world.take_written(control);
    world.advance(Duration::from_millis(10_100));
    let server = Server::accept(&mut world);
    let queries = server.queries(&mut world);
    server.say(&mut world, &answer_to(&queries[0], 0));
    assert_eq!(heard(&mut world, app), Some((answer(7), ROUTER.into())));
}

/// A proxy that grants associations whose datagrams nobody ever answers: a firewall, or a relay that cannot be reached.
#[test]
fn datagrams_that_bring_no_answers_move_names_to_tcp() {
    let mut world = World::new(names(DnsMode::Auto), false);
    let app = world.bind_udp();
    for id in 1..=3 {
        ask(&mut world, app, PUBLIC, &question(id));
        if id == 1 {
            open_association(&mut world);
        }
        assert!(world.dialled.is_empty(), "{id}");
        world.advance(Duration::from_millis(5_100));
    }
    ask(&mut world, app, PUBLIC, &question(4));
    let server = Server::accept(&mut world);
    assert_eq!(server.queries(&mut world).len(), 1);
    assert_eq!(world.engine.dns().stats().fallbacks, 1);
}

/// `--udp reject` is about datagrams: names have a way of their own. `--dns udp` is about them.
#[test]
fn modes_keep_their_word() {
    let reject = |dns| EngineConfig { udp: UdpMode::Reject, ..names(dns) };
    let by_stream = |config: EngineConfig| {
        let mut world = World::new(config, false);
        let app = world.bind_udp();
        ask(&mut world, app, PUBLIC, &question(7));
        if world.dialled.is_empty() {
            return None;
        }
        let server = Server::accept(&mut world);
        Some(server.queries(&mut world).len())
    };
    assert_eq!(by_stream(reject(DnsMode::Auto)), Some(1));
    assert_eq!(by_stream(reject(DnsMode::Tcp)), Some(1));
    assert_eq!(by_stream(reject(DnsMode::Udp)), None);
    assert_eq!(by_stream(reject(DnsMode::Off)), None);
    assert_eq!(by_stream(EngineConfig { udp: UdpMode::Direct, ..names(DnsMode::Tcp) }), Some(1));
    assert_eq!(by_stream(EngineConfig { udp: UdpMode::Direct, ..names(DnsMode::Auto) }), None);
    assert_eq!(by_stream(rules(names(DnsMode::Tcp), &["port=53 -> direct"])), None);
}

/// The server closes while a query is in flight: it is asked again, once, and then the app is told.
#[test]
fn a_query_whose_connection_ends_is_asked_again_once() {
    let mut world = World::new(names(DnsMode::Tcp), false);
    let app = world.bind_udp();
    ask(&mut world, app, TUNNEL, &question(7));
    let first = Server::accept(&mut world);
    assert_eq!(first.queries(&mut world).len(), 1);
    world.push_eof(first.socket);
    assert!(!world.is_open(first.socket));
    let second = Server::accept(&mut world);
    let queries = second.queries(&mut world);
    assert_eq!(queries.len(), 1);
    assert_eq!(heard(&mut world, app), None);
    world.fail(second.socket, SocketError::Reset);
    let (octets, from) = heard(&mut world, app).expect("told");
    assert_eq!((rcode(&octets), &octets[..2], from.as_str()), (2, &[0, 7][..], TUNNEL));
    assert_eq!(octets[12..], question(7)[12..]);
    assert!(world.dialled.is_empty());
    assert_eq!(world.engine.sockets(), 0);
    assert_eq!(world.engine.dns().stats().servfails, 1);
    // The next query begins anew.
    ask(&mut world, app, TUNNEL, &question(8));
    let third = Server::accept(&mut world);
    let queries = third.queries(&mut world);
    third.say(&mut world, &answer_to(&queries[0], 0));
    assert_eq!(heard(&mut world, app), Some((answer(8), TUNNEL.into())));
}

/// A server that cannot be connected to, or a proxy that is down: SERVFAIL after two attempts, not silence.
#[test]
fn a_server_that_cannot_be_reached_is_servfail() {
    for refused in [true, false] {
        let mut world = World::new(names(DnsMode::Tcp), false);
        let apps = [world.bind_udp(), world.bind_udp()];
        ask(&mut world, apps[0], PUBLIC, &numbered(1, 1));
        ask(&mut world, apps[1], PUBLIC, &numbered(2, 2));
        for _ in 0..2 {
            world.settle();
            let (socket, _) = world.dialled.pop_front().expect("dialled");
            assert!(world.dialled.is_empty(), "one attempt for both");
            if refused {
                world.accept(socket);
                world.take_written(socket);
                world.push(socket, &[5, 0]);
                world.take_written(socket);
                world.push(socket, &[5, 5, 0, 1, 0, 0, 0, 0, 0, 0]);
            } else {
                world.fail(socket, SocketError::Refused);
            }
        }
        for app in apps {
            assert_eq!(heard(&mut world, app).map(|(octets, _)| rcode(&octets)), Some(2));
        }
        assert!(world.dialled.is_empty());
        assert_eq!(world.engine.sockets(), 0);
    }
}

/// Time-outs: a server that is silent is left after four seconds, and the query is over after ten.
#[test]
fn a_silent_server_ends_in_servfail_and_nothing_is_left() {
    let mut world = World::new(names(DnsMode::Tcp), false);
    let app = world.bind_udp();
    ask(&mut world, app, TUNNEL, &question(7));
    let first = Server::accept(&mut world);
    world.advance(Duration::from_millis(3_900));
    // The app asks again, with the same id: TCP loses nothing, it is under way.
    ask(&mut world, app, TUNNEL, &question(7));
    assert_eq!(first.queries(&mut world).len(), 1);
    assert_eq!(world.engine.dns().stats().repeated, 1);
    world.advance(Duration::from_millis(200));
    assert!(!world.is_open(first.socket));
    let second = Server::accept(&mut world);
    assert_eq!(second.queries(&mut world).len(), 1);
    world.advance(Duration::from_millis(4_100));
    assert_eq!(heard(&mut world, app).map(|(octets, _)| rcode(&octets)), Some(2));
    assert_eq!(heard(&mut world, app), None, "once");
    world.advance(Duration::from_secs(30));
    assert_eq!((world.engine.sockets(), world.engine.snapshot().dns_in_flight), (0, 0));
}

/// One that answers others and forgets this: the query's own time ends it, and the connection lives.
#[test]
fn a_query_that_a_busy_server_forgets_times_out() {
    let mut world = World::new(names(DnsMode::Tcp), false);
    let (lost, other) = (world.bind_udp(), world.bind_udp());
    ask(&mut world, lost, TUNNEL, &numbered(1, 1));
    let server = Server::accept(&mut world);
    server.queries(&mut world);
    for n in 0..6 {
        world.advance(Duration::from_millis(1_900));
        ask(&mut world, other, TUNNEL, &numbered(2, 10 + n));
        let queries = server.queries(&mut world);
        assert_eq!(queries.len(), 1);
        server.say(&mut world, &answer_to(&queries[0], 0));
        assert!(heard(&mut world, other).is_some(), "{n}");
    }
    assert_eq!(heard(&mut world, lost).map(|(octets, _)| rcode(&octets)), Some(2));
    let stats = *world.engine.dns().stats();
    assert_eq!((stats.tcp.timeouts, stats.servfails, stats.tcp.answers), (1, 1, 6));
    assert!(world.is_open(server.socket));
}

/// A server that closes after each answer: every query is answered, by a connection each.
#[test]
fn a_server_that_takes_one_query_a_connection_answers_all() {
    let mut world = World::new(names(DnsMode::Tcp), false);
    let app = world.bind_udp();
    for n in 0..20 {
        ask(&mut world, app, TUNNEL, &numbered(n, n));
    }
    let mut answers = Vec::new();
    for round in 0.. {
        assert!(round < 40, "{answers:?}");
        world.settle();
        if world.dialled.is_empty() {
            break;
        }
        let server = Server::accept(&mut world);
        let queries = server.queries(&mut world);
        server.say(&mut world, &answer_to(&queries[0], 0));
        if world.is_open(server.socket) {
            world.push_eof(server.socket);
        }
        while let Some((octets, _)) = heard(&mut world, app) {
            assert_eq!(rcode(&octets), 0);
            answers.push(octets);
        }
    }
    assert_eq!(answers.len(), 20);
    assert_eq!(world.engine.sockets(), 0);
}

/// RFC 6891, RFC 2181 9: an answer that the app's datagrams cannot hold is cut, and TC says so; over TCP the app gets it all.
#[test]
fn a_large_answer_is_truncated_to_what_the_app_takes() {
    let mut world = World::new(names(DnsMode::Tcp), false);
    let app = world.bind_udp();
    let with_opt = |payload: u16| {
        let mut octets = question(1);
        octets[11] = 1;
        octets.extend([0, 0, 41]);
        octets.extend(payload.to_be_bytes());
        octets.extend([0, 0, 0, 0, 0, 0]);
        octets
    };
    let cases = [
        (question(1), 493, false),
        (question(1), 494, true),
        (with_opt(1_232), 1_202, false),
        (with_opt(1_232), 1_203, true),
        (with_opt(4_096), 4_000, false),
        (with_opt(100), 482, false),
        (with_opt(65_535), 60_000, false),
    ];
    ask(&mut world, app, TUNNEL, &numbered(99, 0));
    let server = Server::accept(&mut world);
    server.queries(&mut world);
    for (query, more, cut) in cases {
        ask(&mut world, app, TUNNEL, &query);
        let queries = server.queries(&mut world);
        let whole = answer_to(&queries[0], more);
        server.say(&mut world, &whole);
        if whole.len() > 2_000 {
            // smoltcp puts nothing of that size together: it has left in fragments.
            continue;
        }
        let (octets, _) = heard(&mut world, app).expect("answered");
        assert_eq!(octets[2] & 2 != 0, cut, "{} octets", whole.len());
        if cut {
            assert_eq!(octets.len(), query.len(), "header, question, OPT");
        } else {
            assert_eq!(octets.len(), whole.len());
        }
    }
    assert_eq!(world.engine.dns().stats().truncated, 2);
}

/// Z3: the table is bounded: what does not fit is answered at once, with SERVFAIL, and counted.
#[test]
fn a_full_table_answers_servfail() {
    let mut world = World::new(EngineConfig { max_dns: 3, ..names(DnsMode::Tcp) }, false);
    let app = world.bind_udp();
    for n in 0..5 {
        ask(&mut world, app, TUNNEL, &numbered(n, n));
    }
    for n in [3, 4] {
        let (octets, _) = heard(&mut world, app).expect("told at once");
        assert_eq!((octets[1], rcode(&octets)), (n, 2));
    }
    assert_eq!(world.engine.dns().stats().evicted, 2);
    let server = Server::accept(&mut world);
    let queries = server.queries(&mut world);
    assert_eq!(queries.len(), 3);
    for query in queries {
        server.say(&mut world, &answer_to(&query, 0));
        assert_eq!(heard(&mut world, app).map(|(octets, _)| rcode(&octets)), Some(0));
    }
}

/// Z7: ten thousand queries of many clients with the same few ids, some connections lost on the way: every one is answered, once.
#[test]
fn ten_thousand_queries_have_ten_thousand_answers() {
    let mut world = World::new(names(DnsMode::Tcp), false);
    let apps: Vec<_> = (0..50).map(|_| world.bind_udp()).collect();
    let mut servers: Vec<Server> = Vec::new();
    let mut answered = 0;
    for round in 0..200u16 {
        for (n, app) in (0u16..).zip(&apps) {
            let message = numbered(n % 3, round * 50 + n);
            world.udp_app(*app).send_slice(&message, world::endpoint(addr(TUNNEL))).expect("send");
        }
        world.settle();
        while !world.dialled.is_empty() {
            servers.push(Server::accept(&mut world));
        }
        if round % 37 == 36 {
            let lost = servers.remove(0);
            world.push_eof(lost.socket);
            while !world.dialled.is_empty() {
                servers.push(Server::accept(&mut world));
            }
        }
        for server in &servers {
            let mut queries = server.queries(&mut world);
            queries.reverse();
            for query in queries {
                server.say(&mut world, &answer_to(&query, 0));
            }
        }
        for (n, app) in (0u16..).zip(&apps) {
            let (octets, from) = heard(&mut world, *app).expect("answered");
            assert_eq!((octets, from.as_str()), (answer_to(&numbered(n % 3, round * 50 + n), 0), TUNNEL));
            assert_eq!(heard(&mut world, *app), None);
            answered += 1;
        }
    }
    assert_eq!(answered, 10_000);
    let stats = *world.engine.dns().stats();
    assert_eq!((stats.tcp.queries, stats.tcp.answers, stats.servfails), (10_000, 10_000, 0));
    assert!(servers.len() <= 4, "{}", servers.len());
    assert_eq!(world.engine.snapshot().memory.queued_datagrams, 0);
}

/// What is no query is a datagram like any other, also where names go over TCP.
#[test]
fn what_is_no_query_goes_its_own_way() {
    let mut world = World::new(names(DnsMode::Tcp), false);
    let app = world.bind_udp();
    ask(&mut world, app, PUBLIC, b"x");
    let (_, relay) = open_association(&mut world);
    assert_eq!(world.fake(relay).datagrams.len(), 1);
}

/// peers pain 1: the local proxy's own names are not asked through itself.
#[test]
fn over_tcp_too_the_local_proxy_asks_outside() {
    let mut world = World::new(names(DnsMode::Tcp), true);
    world.local_proxy = true;
    let app = world.bind_udp();
    for id in [1, 2] {
        ask(&mut world, app, ROUTER, &question(id));
    }
    let socket = world.udp[0];
    assert_eq!(world.fake(socket).datagrams.len(), 2);
    assert_eq!(world.fake(socket).datagrams[0].0, Some(addr(ROUTER)));
    assert!(world.dialled.is_empty());
    // An app's are: the first is looked at, the next ones follow it.
    let mut world = World::new(names(DnsMode::Tcp), true);
    let app = world.bind_udp();
    ask(&mut world, app, ROUTER, &numbered(1, 1));
    let server = Server::accept(&mut world);
    ask(&mut world, app, ROUTER, &numbered(2, 2));
    for query in server.queries(&mut world) {
        server.say(&mut world, &answer_to(&query, 0));
    }
    assert_eq!(heard(&mut world, app), Some((answer_to(&numbered(1, 1), 0), ROUTER.into())));
    assert_eq!(heard(&mut world, app), Some((answer_to(&numbered(2, 2), 0), ROUTER.into())));
    world.advance(Duration::from_secs(16));
    assert_eq!((world.engine.associations(), world.engine.sockets()), (0, 0));
}

/// A TUN that takes no packets stops the server from being read; nothing grows without bound.
#[test]
fn answers_that_the_tun_does_not_take_stop_the_server() {
    let mut world = World::new(names(DnsMode::Tcp), false);
    let app = world.bind_udp();
    let mut big = question(0);
    big[11] = 1;
    big.extend([0, 0, 41, 0x05, 0xdc, 0, 0, 0, 0, 0, 0]);
    let mut server = None;
    world.tun_blocked = true;
    for id in 0..255u16 {
        big[..2].copy_from_slice(&id.to_be_bytes());
        ask(&mut world, app, TUNNEL, &big);
        if server.is_none() {
            server = Some(Server::accept(&mut world));
        }
    }
    let server = server.expect("connected");
    let queries = server.queries(&mut world);
    assert_eq!(queries.len(), 255);
    for query in &queries {
        server.say(&mut world, &answer_to(query, 1_300));
    }
    let left = world.fake(server.socket).inbound.len();
    assert!(left > 20_000, "the server is not read without bound: {left}");
    world.tun_blocked = false;
    let mut heard_of = 0;
    world.settle();
    while world.udp_app(app).recv().is_ok() {
        heard_of += 1;
    }
    assert_eq!(world.fake(server.socket).inbound.len(), 0, "it is read again");
    assert!(heard_of > 0);
    assert_eq!(world.engine.dns().stats().tcp.answers, 255);
}

/// Z12: nothing of it outlives the engine's end.
#[test]
fn shutdown_closes_connections_to_name_servers() {
    let mut world = World::new(names(DnsMode::Tcp), false);
    let app = world.bind_udp();
    ask(&mut world, app, TUNNEL, &question(7));
    let server = Server::accept(&mut world);
    ask(&mut world, app, PUBLIC, &question(8));
    world.engine.shutdown(world.now);
    world.settle();
    assert!(!world.is_open(server.socket));
    assert_eq!(world.engine.sockets(), 0);
    world.advance(Duration::from_secs(30));
    assert_eq!(heard(&mut world, app), None);
}
