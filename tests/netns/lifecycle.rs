//! Start and end: whatever happens, the machine's network is as it was.

use crate::world::*;
use std::io::Write;

/// Z12, L-6, F18: each signal ends it in order with status 0, also with connections open, and nothing is left.
#[test]
fn every_signal_ends_it_and_nothing_is_left() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    let before = world.client.state();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
        assert_ne!(world.client.state(), before);
        let apps = world.client.inside(|| {
            let connect = |_| std::net::TcpStream::connect((TARGET, 7)).unwrap();
            (0..200).map(connect).collect::<Vec<_>>()
        });
        let mut apps = apps.join().unwrap();
        apps[0].write_all(b"x").unwrap();
        ztun.signal(signal);
        assert_eq!(ztun.end(), Some(0), "{signal}");
        assert_eq!(world.client.state(), before, "{signal}");
    }
}

/// L-6: two signals do not wait for connections; the machine is restored all the same.
#[test]
fn two_signals_force_it_and_nothing_is_left() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    let before = world.client.state();
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    // An app that never closes its end keeps the orderly end waiting.
    let _app = world.client.connect(&format!("{TARGET}:7")).unwrap();
    ztun.signal(libc::SIGSTOP);
    ztun.signal(libc::SIGTERM);
    ztun.signal(libc::SIGINT);
    ztun.signal(libc::SIGCONT);
    assert_eq!(ztun.end(), Some(9));
    assert_eq!(world.client.state(), before);
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

/// L-14: what is left after kill -9 is undone by `ztun restore`, or by the next start.
#[test]
fn after_kill_9_restore_and_the_next_start_heal() {
    let Some(world) = world() else { return };
    let before = world.client.state();
    let kill = || {
        let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
        ztun.signal(libc::SIGKILL);
        ztun.end();
    };
    kill();
    assert_ne!(world.client.state(), before, "rules stay behind");
    let run_dir = world.dir.path().join("run");
    let restore = format!("ZTUN_RUN_DIR={} {ZTUN} restore", run_dir.display());
    let said = world.client.ok(&restore);
    assert!(said.contains("result=ok"), "{said}");
    assert_eq!(world.client.state(), before);
    assert_eq!(world.client.ok(&restore).trim(), "nothing was left behind");
    kill();
    let mut next = world.ztun(&format!("--socks5 {PROXY}"));
    assert_eq!(next.stop(), Some(0));
    assert_eq!(world.client.state(), before);
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
        if device == "ztun1" {
            assert!(second.log().contains(&format!("process {}", ztun.pid())), "{}", second.log());
        }
        assert!(second.log().contains("  try: "), "{}", second.log());
        assert_eq!(world.client.state(), during);
    }
}

/// F16: the device is deleted by another program: an error, and nothing is left.
#[test]
fn a_deleted_device_ends_the_run_in_order() {
    let Some(world) = world() else { return };
    let before = world.client.state();
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    world.client.ok("ip link del ztun0");
    assert_eq!(ztun.end(), Some(1));
    assert_eq!(world.client.state(), before, "{}", ztun.log());
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
