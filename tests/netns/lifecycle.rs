//! Start and end: whatever happens, the machine's network is as it was.

use crate::world::*;
use std::io::Write;
use std::time::{Duration, Instant};

/// Opens `number` connections to the echo target; each works and stays open.
fn live(world: &World, number: usize) -> Vec<std::net::TcpStream> {
    let connect = move || {
        let connect = |_| std::net::TcpStream::connect((TARGET, 7)).unwrap();
        (0..number).map(connect).collect::<Vec<_>>()
    };
    let mut apps = world.client.inside(connect);
    for app in &mut apps {
        app.set_read_timeout(Some(PATIENCE)).unwrap();
        talk(app).unwrap();
    }
    apps
}

/// Z12, L-6, F18: each signal ends it in order with status 0 within 3 s, also with 500 connections and datagrams under way, and nothing is left.
#[test]
fn every_signal_ends_it_and_nothing_is_left() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    world.answer(&format!("{TARGET}:7"), <[u8]>::to_vec);
    let before = world.client.state();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
        assert_ne!(world.client.state(), before);
        let _apps = live(&world, 500);
        let udp = world.client.datagrams("0.0.0.0:0");
        udp.send_to(b"x", (TARGET, 7)).unwrap();
        udp.recv(&mut [0; 8]).unwrap();
        let start = Instant::now();
        ztun.signal(signal);
        assert_eq!(ztun.end(), Some(0), "{signal}");
        assert!(start.elapsed() < Duration::from_secs(3), "{signal}: {:?}", start.elapsed());
        assert_eq!(world.client.state(), before, "{signal}");
    }
}

/// Z12, conformance 39: asked to stop, it ends its connections on both sides: whoever is at the other end does not wait for ever.
#[test]
fn asked_to_stop_it_tells_both_sides() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    let listener = world.server.listen(&format!("{TARGET}:90"));
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let mut app = world.client.connect(&format!("{TARGET}:90")).unwrap();
    let (mut target, _) = accept(&listener);
    target.write_all(b"last words").unwrap();
    let mut got = [0; 10];
    std::io::Read::read_exact(&mut app, &mut got).unwrap();
    assert_eq!(ztun.stop(), Some(0));
    for stream in [&mut app, &mut target] {
        let end = std::io::Read::read(stream, &mut [0]);
        assert!(matches!(&end, Ok(0)) || end.as_ref().is_err_and(|error| !is_silence(error)), "{end:?}");
    }
}

/// L-6, F18: two signals do not wait for connections; the machine is restored all the same.
#[test]
fn two_signals_force_it_and_nothing_is_left() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    let before = world.client.state();
    for signals in [[libc::SIGTERM, libc::SIGINT], [libc::SIGINT, libc::SIGHUP]] {
        let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
        // Apps that never close their ends keep the orderly end waiting.
        let _apps = live(&world, 10);
        ztun.signal(libc::SIGSTOP);
        for signal in signals {
            ztun.signal(signal);
        }
        ztun.signal(libc::SIGCONT);
        assert_eq!(ztun.end(), Some(9));
        assert_eq!(world.client.state(), before);
    }
}

/// L-7, Z12: a hundred runs in a row, a signal as early as during the set-up among them.
#[test]
fn a_hundred_runs_in_a_row() {
    let Some(world) = world() else { return };
    let before = world.client.state();
    for number in 0..100 {
        let mut command = world.client.command(ZTUN);
        command.args(["--socks5", PROXY]);
        let mut ztun = world.start(command);
        if number % 2 == 0 {
            until("ztun is ready", || ztun.log().contains("ready"));
            assert_eq!(ztun.stop(), Some(0), "{}", ztun.log());
        } else {
            // The moment is another one each time: when the device is there, or somewhere in between.
            until("ztun has begun", || {
                number % 4 == 1 || world.client.sh("ip link show ztun0").status.success()
            });
            ztun.signal(libc::SIGTERM);
            let status = ztun.end();
            // None: it came before the signals were taken over, and before anything was changed.
            assert!(matches!(status, Some(0) | None), "{status:?} {}", ztun.log());
        }
        assert_eq!(world.client.state(), before, "run {number}");
    }
}

/// What `ztun restore` says in the client namespace.
fn restore(world: &World) -> String {
    world.client.ok(&format!("ZTUN_RUN_DIR={} {ZTUN} restore", world.dir.path().join("run").display()))
}

/// L-14, F19: what is left after kill -9 is undone by `ztun restore`, or by the next start; in between the machine is online without the tunnel.
#[test]
fn after_kill_9_restore_and_the_next_start_heal() {
    let Some(world) = world() else { return };
    world.echo(&format!("{TARGET}:7"));
    let before = world.client.state();
    let kill = || {
        let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
        ztun.signal(libc::SIGKILL);
        ztun.end();
    };
    kill();
    assert_ne!(world.client.state(), before, "rules stay behind");
    talk(&mut world.client.connect(&format!("{TARGET}:7")).unwrap()).unwrap();
    let said = restore(&world);
    assert!(said.contains("result=ok"), "{said}");
    assert_eq!(world.client.state(), before);
    assert_eq!(restore(&world).trim(), "nothing was left behind");
    kill();
    let mut next = world.ztun(&format!("--socks5 {PROXY}"));
    assert_eq!(next.stop(), Some(0));
    assert_eq!(world.client.state(), before);
}

/// L-14, F19: who was killed is not waited for by whoever calls `ztun restore`, or starts the next one, in the same breath.
#[test]
fn right_after_kill_9_restore_and_the_next_start_wait_for_the_end() {
    let Some(world) = world() else { return };
    let before = world.client.state();
    for _ in 0..5 {
        let ztun = world.ztun(&format!("--socks5 {PROXY}"));
        ztun.signal(libc::SIGKILL);
        restore(&world);
        assert_eq!(world.client.state(), before);
        let ztun = world.ztun(&format!("--socks5 {PROXY}"));
        ztun.signal(libc::SIGKILL);
        let mut next = world.ztun(&format!("--socks5 {PROXY}"));
        assert_eq!(next.stop(), Some(0), "{}", next.log());
        assert_eq!(world.client.state(), before);
    }
}

/// L-1, F22: a second one is refused with the first one's process id, and changes nothing.
#[test]
fn a_second_one_is_refused() {
    let Some(world) = world() else { return };
    let ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let during = world.client.state();
    for device in ["ztun0", "ztun1"] {
        let mut command = world.client.command(ZTUN);
        command.args(["--socks5", PROXY, "--tun", device]);
        let mut second = world.start(command);
        assert_eq!(second.end(), Some(3));
        assert!(second.log().contains(&format!("process {}", ztun.pid())), "{}", second.log());
        assert!(second.log().contains("  try: "), "{}", second.log());
        assert_eq!(world.client.state(), during);
    }
}

/// L-1, L-2: `--replace` ends the one that runs, in order, and takes its place; also one that does not react any more.
#[test]
fn a_new_one_takes_over_when_it_is_asked_to() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    let before = world.client.state();
    let mut first = world.ztun(&format!("--socks5 {PROXY}"));
    let mut second = world.ztun(&format!("--socks5 {PROXY} --replace"));
    assert_eq!(first.end(), Some(0), "{}", first.log());
    talk(&mut world.client.connect(&format!("{TARGET}:7")).unwrap()).unwrap();
    // One that hangs, its watchdog too.
    second.signal(libc::SIGSTOP);
    let mut third = world.ztun(&format!("--socks5 {PROXY} --replace"));
    assert_eq!(second.end(), None, "it was killed");
    assert!(third.log().contains("does not end: it is killed"), "{}", third.log());
    talk(&mut world.client.connect(&format!("{TARGET}:7")).unwrap()).unwrap();
    assert_eq!(third.stop(), Some(0));
    assert_eq!(world.client.state(), before);
    // One that may do less than the one that it replaces.
    let mut routed = world.ztun(&format!("--socks5 {PROXY}"));
    let mut alone = world.ztun(&format!("--socks5 {PROXY} --replace --no-route"));
    assert_eq!(routed.end(), Some(0), "{}", routed.log());
    assert_eq!(alone.stop(), Some(0));
    // With nobody to take over from it is a start like others.
    let mut alone = world.ztun(&format!("--socks5 {PROXY} --replace"));
    assert_eq!(alone.stop(), Some(0));
}

/// Issue 3, item 7: connections that were opened before go on outside, or with `--reset-existing` are closed, but for those that are to stay: the local
/// proxy's own, and those to services of this machine.
#[test]
fn connections_from_before_are_closed_when_that_is_asked_for() {
    let Some(world) = world() else { return };
    let _proxy = world.microsocks(&world.client, "127.0.0.1:1080");
    world.echo(&format!("{TARGET}:7"));
    let service = world.client.listen("10.77.0.1:2222");
    let mut before = world.client.connect(&format!("{TARGET}:7")).unwrap();
    let mut user = world.server.connect("10.77.0.1:2222").unwrap();
    let (mut served, _) = accept(&service);
    let mut ztun = world.ztun("--socks5 127.0.0.1:1080");
    talk(&mut before).unwrap();
    assert_eq!(ztun.stop(), Some(0));
    let mut ztun = world.ztun("--socks5 127.0.0.1:1080 --reset-existing");
    assert!(talk(&mut before).is_err());
    assert!(ztun.log().contains("1 connections that were opened before"), "{}", ztun.log());
    user.write_all(b"still here").unwrap();
    let mut got = [0; 10];
    std::io::Read::read_exact(&mut served, &mut got).unwrap();
    talk(&mut world.client.connect(&format!("{TARGET}:7")).unwrap()).unwrap();
    assert_eq!(ztun.stop(), Some(0));
}

/// F22: without the privilege, or without a place for the journal, it says so with status 3 and has changed nothing.
#[test]
fn what_the_machine_refuses_is_said_and_nothing_is_half_done() {
    let Some(world) = world() else { return };
    let before = world.client.state();
    let dir = world.dir.path();
    // Where a user who is not root can execute it.
    std::fs::copy(ZTUN, dir.join("ztun")).unwrap();
    world.client.ok(&format!("chmod 755 {0} && touch {0}/file", dir.display()));
    let nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    for line in [
        format!("{nobody} {}/ztun --socks5 {PROXY}", dir.display()),
        format!("setpriv --bounding-set -net_admin {ZTUN} --socks5 {PROXY}"),
        format!("ZTUN_RUN_DIR={}/file/run {ZTUN} --socks5 {PROXY}", dir.display()),
        format!("{ZTUN} --socks5 {PROXY} --interface nonesuch0"),
        format!("{ZTUN} --socks5 {PROXY} --tun eth0"),
    ] {
        let output = world.client.sh(&line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{line}: {said}");
        assert!(said.contains("error: ") && said.contains("  try: "), "{line}: {said}");
        assert_eq!(world.client.state(), before, "{line}");
    }
}

/// T-8, F16: a device that another program deletes is made anew, as often as that happens; connections go on, and nothing is left in the end.
#[test]
fn a_deleted_device_is_made_anew_and_flows_go_on() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    let before = world.client.state();
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let mut apps = live(&world, 20);
    for number in 1..=3 {
        world.client.ok("ip link del ztun0");
        until("the device is there again", || ztun.log().matches("was made anew").count() == number);
        for app in &mut apps {
            talk(app).unwrap();
        }
        talk(&mut world.client.connect(&format!("{TARGET}:7")).unwrap()).unwrap();
    }
    // One that has another name now, which no read of it tells; what stands in for it is lost as well.
    world.client.ok("ip link del ztun0-gap && ip link set ztun0 down && ip link set ztun0 name other && ip link set other up");
    until_within(Duration::from_secs(10), "the device is there again", || {
        ztun.log().matches("was made anew").count() == 4
    });
    for app in &mut apps {
        talk(app).unwrap();
    }
    until("the second device is there again", || world.client.sh("ip link show ztun0-gap").status.success());
    let routes = world.client.ok("ip route show table 31348");
    assert!(routes.contains("dev ztun0-gap"), "{routes}");
    drop(apps);
    assert_eq!(ztun.stop(), Some(0), "{}", ztun.log());
    assert!(ztun.log().contains("err=0 forced="), "{}", ztun.log());
    assert_eq!(world.client.state(), before, "{}", ztun.log());
}

/// F16: while something else has the name, there is no device to be had: the run ends in order, and says why.
#[test]
fn a_device_that_cannot_be_made_anew_ends_the_run_in_order() {
    let Some(world) = world() else { return };
    let before = world.client.state();
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    // Faster than it looks: both in one message to the kernel's lock.
    ztun.signal(libc::SIGSTOP);
    world.client.ok("ip link del ztun0 && ip link add ztun0 type veth peer name other0");
    ztun.signal(libc::SIGCONT);
    assert_eq!(ztun.end(), Some(1), "{}", ztun.log());
    assert!(ztun.log().contains("cannot be made again"), "{}", ztun.log());
    world.client.ok("ip link del ztun0");
    assert_eq!(world.client.state(), before, "{}", ztun.log());
}

/// L-6, F25: a log that nobody reads stops the loop in a system call; asked to stop, the process is gone all the same, and the machine restored.
#[test]
fn a_loop_that_hangs_is_ended_with_the_machine_restored() {
    let Some(world) = world() else { return };
    let before = world.client.state();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = world.client.command(ZTUN);
    command.args(["--socks5", PROXY, "--log-level", "trace"]);
    let mut ztun = world.start_to(command, std::process::Stdio::null(), writer.into());
    until("it captures", || world.client.ok("ip rule").contains("31348"));
    // Each packet is a line of the log, until the pipe is full.
    let flood = world.client.datagrams("0.0.0.0:0");
    until("it hangs in the log", || {
        for _ in 0..200 {
            drop(flood.send_to(b"x", (TARGET, 9)));
        }
        std::fs::read_to_string(format!("/proc/{}/wchan", ztun.pid())).unwrap().contains("pipe")
    });
    assert_eq!(ztun.stop(), Some(9));
    assert_eq!(world.client.state(), before);
    drop(reader);
}

/// L-6: one that is asked to stop while it waits for a proxy that does not answer is gone in time, and undoes nothing of the one that runs.
#[test]
fn one_that_never_started_undoes_nothing_of_another() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let during = world.client.state();
    let mut command = world.client.command(ZTUN);
    command.args(["--socks5", &format!("{SILENT}:1080"), "--require-proxy", "--connect-timeout", "60s"]);
    let mut second = world.start(command);
    until("it asks the proxy", || world.client.ok("ss -Htn state syn-sent").contains(SILENT));
    assert!(matches!(second.stop(), Some(0 | 9)), "{}", second.log());
    assert_eq!(world.client.state(), during);
    talk(&mut world.client.connect(&format!("{TARGET}:7")).unwrap()).unwrap();
    assert_eq!(ztun.stop(), Some(0));
}

/// F25: nobody listens to the log any more: it runs on, and ends in order.
#[test]
fn a_log_pipe_that_is_closed_does_not_matter() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    let before = world.client.state();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = world.client.command(ZTUN);
    command.args(["--socks5", PROXY, "--log-level", "trace"]);
    let mut ztun = world.start_to(command, std::process::Stdio::null(), writer.into());
    drop(reader);
    until("it captures", || world.client.ok("ip rule").contains("31348"));
    for _ in 0..10 {
        talk(&mut world.client.connect(&format!("{TARGET}:7")).unwrap()).unwrap();
    }
    assert_eq!(ztun.stop(), Some(0));
    assert_eq!(world.client.state(), before);
}

/// F20: what others change while it runs stays when it ends.
#[test]
fn what_others_changed_meanwhile_stays() {
    let Some(world) = world() else { return };
    let change = "ip route add 192.0.2.0/24 via 10.77.0.2; ip rule add pref 5999 fwmark 0x77 lookup 99; ip addr add 10.77.0.9/24 dev eth0";
    let undo =
        "ip route del 192.0.2.0/24 via 10.77.0.2; ip rule del pref 5999; ip addr del 10.77.0.9/24 dev eth0";
    world.client.ok(change);
    let wanted = world.client.state();
    world.client.ok(undo);
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    world.client.ok(change);
    assert_eq!(ztun.stop(), Some(0));
    assert_eq!(world.client.state(), wanted);
}

/// The contract of the command line: `--require-proxy` ends with status 4 when nobody answers, and nothing was changed.
#[test]
fn a_required_proxy_that_is_not_there_is_said() {
    let Some(world) = world() else { return };
    let before = world.client.state();
    let mut command = world.client.command(ZTUN);
    command.args(["--socks5", PROXY, "--require-proxy"]);
    let mut ztun = world.start(command);
    assert_eq!(ztun.end(), Some(4));
    assert!(ztun.log().contains("refused"), "{}", ztun.log());
    assert_eq!(world.client.state(), before);
    let _proxy = world.microsocks(&world.server, PROXY);
    let mut ztun = world.ztun(&format!("--socks5 {PROXY} --require-proxy"));
    assert_eq!(ztun.stop(), Some(0));
}

/// The contract of the command line: what `--dry-run` prints is what a run then does, and it does nothing itself.
#[test]
fn a_dry_run_changes_nothing() {
    let Some(world) = world() else { return };
    let before = world.client.state();
    let plan = world.client.ok(&format!("{ZTUN} --socks5 {PROXY} --dry-run"));
    assert!(plan.contains("rule add v4 pref 5210 all lookup 31348"), "{plan}");
    assert!(plan.contains("undo: rule del v4 pref 5210 all lookup 31348"), "{plan}");
    assert_eq!(world.client.state(), before);
}
