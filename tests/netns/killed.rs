//! kill -9, at any instant: `ztun restore` and the next start make the machine what it was; with `--kill-switch` nothing leaks in between.

use crate::world::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A resolver in the local network, which is not the proxy.
const RESOLVER: &str = "10.77.0.53";

/// A small generator (splitmix64) for instants: its seed is printed.
struct Random(u64);

impl Random {
    fn new() -> Random {
        let given = std::env::var("ZTUN_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| u64::from(std::process::id()));
        eprintln!("ZTUN_SEED={seed}");
        Random(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// Lets `pause` go by: the instant of a kill is what is random here, nothing is waited for with it.
fn pass(pause: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < pause {
        std::hint::spin_loop();
    }
}

/// What `ztun restore` says in the client namespace.
fn restore(world: &World) -> String {
    world.client.ok(&format!("ZTUN_RUN_DIR={} {ZTUN} restore", world.dir.path().join("run").display()))
}

fn start(world: &World, arguments: &str) -> Running {
    let mut command = world.client.command(ZTUN);
    command.args(["--socks5", PROXY]).args(arguments.split_whitespace());
    world.start(command)
}

/// L-14, F19: 200 instants, at least 50 of them inside set-up and clean-up; restored to the last octet each time, and the next start
/// works the first time.
#[test]
fn killed_at_200_random_instants_it_is_restored_and_starts_again() {
    const INSIDE: usize = 25;
    let Some(world) = world() else { return };
    let before = world.client.state();
    let mut random = Random::new();
    let (mut in_set_up, mut in_clean_up, mut total) = (0, 0, 0);
    while total < 200 || in_set_up < INSIDE || in_clean_up < INSIDE {
        total += 1;
        assert!(total < 1_000, "{in_set_up} in set-up, {in_clean_up} in clean-up");
        let switch = if total % 2 == 0 { "--kill-switch" } else { "" };
        let mut ztun = start(&world, switch);
        if total % 3 == 0 {
            until("ztun is ready", || ztun.log().contains("ready"));
            ztun.signal(libc::SIGTERM);
            pass(Duration::from_micros(random.below(30_000)));
            in_clean_up += usize::from(ztun.child.try_wait().unwrap().is_none());
        } else {
            pass(Duration::from_micros(random.below(60_000)));
            in_set_up += usize::from(!ztun.log().contains("ready"));
        }
        // It may have ended by itself by now.
        drop(ztun.child.kill());
        ztun.end();
        restore(&world);
        assert_eq!(world.client.state(), before, "instant {total}: {}", ztun.log());
        assert_eq!(restore(&world).trim(), "nothing was left behind", "instant {total}");
        if total % 10 == 0 {
            let mut next = world.ztun(&format!("--socks5 {PROXY}"));
            assert_eq!(next.stop(), Some(0), "{}", next.log());
            assert_eq!(world.client.state(), before);
        }
    }
    eprintln!("{total} instants, {in_set_up} in set-up, {in_clean_up} in clean-up");
}

/// Counts what reaches the other end of the wire without having gone through the proxy.
fn count_leaks(world: &World) {
    world.server.ok("nft 'add table inet leak; add counter inet leak c; \
         add chain inet leak in { type filter hook prerouting priority -300; }; \
         add rule inet leak in iifname eth0 ip daddr 203.0.113.0/24 counter counter name c; \
         add rule inet leak in iifname eth0 ip saddr 198.18.0.0/16 counter counter name c; \
         add rule inet leak in iifname eth0 ip6 daddr 2001:db8::/32 counter counter name c; \
         add rule inet leak in iifname eth0 ip6 saddr fd7a:7a74:756e::/64 counter counter name c; \
         add rule inet leak in iifname eth0 udp dport 53 counter counter name c'");
}

fn leaks(world: &World) -> u64 {
    let listed = world.server.ok("nft list counter inet leak c");
    let packets = listed.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    packets.unwrap().parse().unwrap()
}

/// Ends the chatter when the test ends, however it does.
struct End(Arc<AtomicBool>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends to the targets all the time, as apps do: datagrams, names, new connections and one that is open.
fn chatter(end: &AtomicBool) {
    let udp = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let udp6 = std::net::UdpSocket::bind("[::]:0").unwrap();
    while !end.load(Ordering::Relaxed) {
        for _ in 0..20 {
            // Refused or lost: that is the point.
            drop(udp.send_to(b"x", (TARGET, 9)));
            drop(udp.send_to(b"x", (TARGET, 53)));
            drop(udp.send_to(b"x", (RESOLVER, 53)));
            drop(udp6.send_to(b"x", (TARGET6, 9)));
        }
        let fresh = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        drop(fresh.connect((TARGET, 9)).and_then(|()| fresh.send(b"x")));
        let target = format!("{TARGET}:7").parse().unwrap();
        drop(std::net::TcpStream::connect_timeout(&target, Duration::from_millis(20)));
    }
}

/// Issue 3, item 5: from the moment that it first is ready until `ztun restore`, over any number of deaths and starts, nothing leaves beside the tunnel.
#[test]
fn with_the_kill_switch_nothing_leaks_over_deaths_and_starts() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    world.answer(&format!("{TARGET}:9"), <[u8]>::to_vec);
    let before = world.client.state();
    world.server.ok(&format!("ip addr add {RESOLVER}/24 dev eth0"));
    count_leaks(&world);
    let mut random = Random::new();
    let end = Arc::new(AtomicBool::new(false));
    let mut ztun = world.ztun(&format!("--socks5 {PROXY} --kill-switch"));
    let mut app = world.client.connect(&format!("{TARGET}:7")).unwrap();
    talk(&mut app).unwrap();
    let shared = Arc::clone(&end);
    let ends = End(Arc::clone(&end));
    let chattering = world.client.spawn(move || chatter(&shared));
    for number in 0..40 {
        if number % 2 == 0 {
            until("ztun is ready", || ztun.log().contains("ready"));
        }
        pass(Duration::from_micros(random.below(80_000)));
        drop(ztun.child.kill());
        ztun.end();
        pass(Duration::from_micros(random.below(20_000)));
        assert_eq!(
            leaks(&world),
            0,
            "after death {number}: {}{}",
            ztun.log(),
            world.server.ok("nft list table inet leak")
        );
        ztun = start(&world, "--kill-switch");
    }
    until("ztun is ready", || ztun.log().contains("ready"));
    talk(&mut world.client.connect(&format!("{TARGET}:7")).unwrap()).unwrap();
    drop(ztun.child.kill());
    ztun.end();
    let refused = world.client.connect(&format!("{TARGET}:7")).unwrap_err();
    assert_ne!(refused.kind(), std::io::ErrorKind::TimedOut, "it fails at once");
    assert_eq!(leaks(&world), 0);
    drop(ends);
    chattering.join().unwrap();
    restore(&world);
    drop(app);
    assert_eq!(world.client.state(), before);
    // Now that it is restored, the counter shows that it would have counted.
    talk(&mut world.client.connect(&format!("{TARGET}:7")).unwrap()).unwrap();
    assert_ne!(leaks(&world), 0);
}

/// L-1: taking over from one to the next lets nothing out either.
#[test]
fn with_the_kill_switch_nothing_leaks_while_one_replaces_another() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    world.server.ok(&format!("ip addr add {RESOLVER}/24 dev eth0"));
    let before = world.client.state();
    let arguments = format!("--socks5 {PROXY} --kill-switch --replace");
    let mut ztun = world.ztun(&arguments);
    count_leaks(&world);
    let end = Arc::new(AtomicBool::new(false));
    let ends = End(Arc::clone(&end));
    let chattering = world.client.spawn(move || chatter(&end));
    for number in 0..5 {
        let next = world.ztun(&arguments);
        ztun.end();
        ztun = next;
        assert_eq!(leaks(&world), 0, "{number}: {}", world.server.ok("nft list table inet leak"));
    }
    talk(&mut world.client.connect(&format!("{TARGET}:7")).unwrap()).unwrap();
    drop(ends);
    chattering.join().unwrap();
    assert_eq!(leaks(&world), 0);
    assert_eq!(ztun.stop(), Some(0), "{}", ztun.log());
    assert_eq!(world.client.state(), before);
}

/// Issue 3, item 5: a device that somebody deletes lets nothing out until it is there again.
#[test]
fn nothing_leaks_while_a_deleted_device_is_made_anew() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    world.answer(&format!("{TARGET}:9"), <[u8]>::to_vec);
    world.server.ok(&format!("ip addr add {RESOLVER}/24 dev eth0"));
    let before = world.client.state();
    for switch in ["", " --kill-switch"] {
        let mut ztun = world.ztun(&format!("--socks5 {PROXY}{switch}"));
        count_leaks(&world);
        let mut app = world.client.connect(&format!("{TARGET}:7")).unwrap();
        let end = Arc::new(AtomicBool::new(false));
        let ends = End(Arc::clone(&end));
        let chattering = world.client.spawn(move || chatter(&end));
        for number in 1..=10 {
            world.client.ok("ip link del ztun0");
            until("the device is there again", || ztun.log().matches("was made anew").count() == number);
            talk(&mut app).unwrap();
            assert_eq!(
                leaks(&world),
                0,
                "{switch} {number}: {}",
                world.server.ok("nft list table inet leak")
            );
        }
        drop(ends);
        chattering.join().unwrap();
        assert_eq!(leaks(&world), 0, "{switch}: {}", world.server.ok("nft list table inet leak"));
        world.server.ok("nft delete table inet leak");
        assert_eq!(ztun.stop(), Some(0), "{}", ztun.log());
        assert_eq!(world.client.state(), before);
    }
}
