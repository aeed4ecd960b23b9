//! Names: resolvers that only this network has, the tunnel's own, and proxies that carry no datagrams.

use crate::world::*;
use std::io::{Read, Write};

/// The router's resolver, as DHCP gives it: nobody answers there but by the wire, which must not happen.
const ROUTER: &str = "192.168.1.1";
/// The tunnel's own.
const TUNNEL: &str = "198.18.0.2";
const TUNNEL6: &str = "fd7a:7a74:756e::2";
/// Who is asked instead of both.
const UPSTREAM: &str = "1.1.1.1";

/// An answer to a question: 192.0.2.53, and for a name that begins with `big` a text of 3,000 octets.
fn answer(question: &[u8]) -> Vec<u8> {
    let end = 12 + question[12..].iter().position(|octet| *octet == 0).unwrap() + 5;
    let mut answer = question[..end].to_vec();
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
    answer.extend([0xc0, 0x0c]);
    if question[13..].starts_with(b"big") {
        answer.extend([0, 16, 0, 1, 0, 0, 0, 60, 0x0b, 0xf4]);
        for _ in 0..12 {
            answer.push(254);
            answer.extend([b'x'; 254]);
        }
    } else {
        answer.extend([0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 53]);
    }
    answer
}

/// A name server at `at`, port 53, over TCP, and with `datagrams` by those too.
fn name_server(world: &World, at: &str, datagrams: bool) {
    let at = format!("{at}:53");
    if datagrams {
        world.answer(&at, answer);
    }
    world.serve(&at, |mut stream| {
        loop {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut question)?;
            let answer = answer(&question);
            let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
            stream.write_all(&[&length[..], &answer].concat())?;
        }
    });
}

/// A server namespace that has the upstream, answers for nobody else, and counts what comes for port 53 by the wire.
fn watched() -> Option<World> {
    let world = world()?;
    world.server.ok(&format!(
        "ip addr add {UPSTREAM}/32 dev lo && ip addr add {ROUTER}/32 dev lo && ip addr add {BEHIND}/32 dev lo && \
         nft 'add table inet leak; add chain inet leak in {{ type filter hook prerouting priority 0; }}; \
              add rule inet leak in iifname eth0 meta l4proto {{ tcp, udp }} th dport 53 counter'"
    ));
    Some(world)
}

/// Packets to port 53 that came by the wire.
fn leaked(world: &World) -> u64 {
    let rules = world.server.ok("nft list chain inet leak in");
    let count = rules.split("packets ").nth(1).unwrap().split_whitespace().next().unwrap();
    count.parse().unwrap()
}

/// A resolver with a private address that the proxy's network has, and this machine knows nothing of.
const BEHIND: &str = "10.88.0.53";

/// A resolv.conf of the client's own, deleted when dropped.
struct Resolvers(std::path::PathBuf);

impl Resolvers {
    fn of(world: &World, servers: &[&str]) -> Resolvers {
        let folder = std::path::Path::new("/etc/netns").join(world.client.name());
        std::fs::create_dir_all(&folder).unwrap();
        let lines: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        std::fs::write(folder.join("resolv.conf"), lines).unwrap();
        Resolvers(folder)
    }
}

impl Drop for Resolvers {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
        // The last one takes the folder of all along, if it was not there before.
        drop(std::fs::remove_dir("/etc/netns"));
    }
}

fn dig(world: &World, arguments: &str) -> String {
    world.client.ok(&format!("dig +short +tries=1 +time=10 {arguments}")).trim().to_owned()
}

/// Z7, peers pain 4, 7: through a proxy without UDP names resolve, whichever resolver the machine has, and none is asked by the wire.
#[test]
fn names_resolve_through_a_proxy_without_udp_and_never_by_the_wire() {
    let Some(world) = watched() else { return };
    let _resolvers = Resolvers::of(&world, &[ROUTER, "10.77.0.3"]);
    let _proxy = world.microsocks(&world.server, PROXY);
    name_server(&world, UPSTREAM, false);
    name_server(&world, TARGET, false);
    name_server(&world, BEHIND, false);
    for mode in ["auto", "tcp"] {
        let mut ztun = world.ztun(&format!("--socks5 {PROXY} --dns {mode}"));
        for server in [ROUTER, TUNNEL, TUNNEL6, TARGET, "10.77.0.3", BEHIND] {
            assert_eq!(dig(&world, &format!("name.test @{server}")), "192.0.2.53", "{mode} {server}");
            assert_eq!(
                dig(&world, &format!("+tcp name.test @{server}")),
                "192.0.2.53",
                "{mode} {server} TCP"
            );
        }
        let cut =
            world.client.ok(&format!("dig +tries=1 +time=10 +ignore +bufsize=1232 big.test TXT @{TUNNEL}"));
        assert!(cut.contains("flags: qr tc rd ra;") && cut.contains("ANSWER: 0"), "{cut}");
        assert_eq!(
            dig(&world, &format!("+bufsize=1232 big.test TXT @{TUNNEL}")).matches('x').count(),
            12 * 254
        );
        assert_eq!(ztun.stop(), Some(0));
        assert_eq!(ztun.log().contains("names are asked over TCP"), mode == "auto", "{}", ztun.log());
    }
    assert_eq!(leaked(&world), 0, "queries left the machine outside the tunnel");
    // The counter counts.
    let direct = world.client.sh(&format!("dig +tries=1 +time=1 name.test @{ROUTER}"));
    assert!(!direct.status.success() || leaked(&world) > 0);
    assert!(leaked(&world) > 0);
}

/// Z7: thousands of questions at once through a proxy without UDP are answered, each; dnsperf counts.
#[test]
fn no_question_is_lost_over_tcp() {
    let Some(world) = watched() else { return };
    let _proxy = world.microsocks(&world.server, PROXY);
    name_server(&world, UPSTREAM, false);
    let ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let load = format!(
        "yes 'name.test A' | head -1000 >{0}/q && dnsperf -s {TUNNEL} -d {0}/q -n 10 -q 100 -c 10 -t 10",
        world.dir.path().display()
    );
    let report = world.client.ok(&load);
    assert!(report.contains("Queries completed:    10000 (100.00%)"), "{report}");
    assert!(report.contains("NOERROR 10000 (100.00%)"), "{report}");
    // Once the connection is idle for its time it goes.
    until("the connection to the name server is closed", || {
        world.server.ok("ss -Htn state established '( sport = :53 )'").is_empty()
    });
    drop(ztun);
    assert_eq!(leaked(&world), 0);
}

/// Through a proxy with UDP the same resolvers are asked by datagrams; `--dns direct` and a rule ask the resolver itself, by the wire.
#[test]
fn who_is_asked_depends_on_the_mode_and_the_rules() {
    let Some(world) = watched() else { return };
    let _resolvers = Resolvers::of(&world, &[ROUTER]);
    let _proxy = world.embedded(&world.server, PROXY);
    name_server(&world, UPSTREAM, true);
    let mut ztun = world.ztun(&format!("--socks5 {PROXY} --dns udp"));
    for server in [ROUTER, TUNNEL, TUNNEL6] {
        assert_eq!(dig(&world, &format!("name.test @{server}")), "192.0.2.53", "{server}");
    }
    assert_eq!(ztun.stop(), Some(0));
    assert_eq!(leaked(&world), 0);
    name_server(&world, ROUTER, true);
    let rule = format!("dst={ROUTER} -> direct");
    for arguments in [&["--dns", "direct"][..], &["--rule", &rule]] {
        let before = leaked(&world);
        let mut command = world.client.command(ZTUN);
        command.args(["--socks5", PROXY]).args(arguments);
        let mut ztun = world.ready(command);
        assert_eq!(dig(&world, &format!("name.test @{ROUTER}")), "192.0.2.53", "{arguments:?}");
        assert!(leaked(&world) > before, "{arguments:?}: the router itself was asked");
        assert_eq!(dig(&world, &format!("+tcp name.test @{ROUTER}")), "192.0.2.53", "{arguments:?}");
        assert_eq!(ztun.stop(), Some(0));
    }
}

/// A name server that cannot be reached by the proxy: the app is told at once and does not wait.
#[test]
fn a_name_server_that_refuses_is_servfail_at_once() {
    let Some(world) = watched() else { return };
    let _proxy = world.microsocks(&world.server, PROXY);
    let _ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let start = std::time::Instant::now();
    let told = world.client.ok(&format!("dig +tries=1 +time=20 name.test @{TUNNEL}"));
    assert!(told.contains("status: SERVFAIL"), "{told}");
    assert!(start.elapsed() < std::time::Duration::from_secs(9), "{:?}", start.elapsed());
}

/// peers pain 1, 7: a proxy on this machine that carries no datagrams, as `ssh -D` is: what it asks for itself is not led back into it.
#[test]
fn names_resolve_through_a_proxy_without_udp_on_this_machine() {
    let Some(world) = watched() else { return };
    let _resolvers = Resolvers::of(&world, &[ROUTER]);
    let _proxy = world.microsocks(&world.client, "127.0.0.1:1080");
    name_server(&world, UPSTREAM, false);
    let mut ztun = world.ztun("--socks5 127.0.0.1:1080");
    for server in [ROUTER, TUNNEL, TUNNEL6] {
        assert_eq!(dig(&world, &format!("name.test @{server}")), "192.0.2.53", "{server}");
        assert_eq!(dig(&world, &format!("+tcp name.test @{server}")), "192.0.2.53", "{server} TCP");
    }
    assert!(!ztun.log().contains("loop"), "{}", ztun.log());
    assert_eq!(ztun.stop(), Some(0));
}
