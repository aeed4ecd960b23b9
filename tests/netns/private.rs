//! `ztun exec` and `ztun demo`: programs in namespaces of their own, the machine left alone.

use crate::world::*;

/// exec: the command's way out is the tunnel, its output and status are its own, and the machine is left alone.
#[test]
fn exec_routes_one_command_and_leaves_the_machine_alone() {
    let Some(world) = world() else { return };
    let _proxy = world.microsocks(&world.server, PROXY);
    world.http(&format!("{TARGET}:80"), &world.file(16));
    let before = world.client.state();
    let exec = |command: &str| world.client.sh(&format!("{ZTUN} exec --socks5 {PROXY} -- {command}"));
    let curl = exec(&format!("sh -c 'curl -sSf http://{TARGET}/file | sha256sum'"));
    assert!(String::from_utf8_lossy(&curl.stdout).starts_with(&sha256_of(&world.file(16))), "{curl:?}");
    assert!(curl.stderr.is_empty(), "{}", String::from_utf8_lossy(&curl.stderr));
    assert_eq!(exec("sh -c 'exit 7'").status.code(), Some(7));
    assert_eq!(exec("sh -c 'kill -9 $$'").status.code(), Some(137));
    assert_eq!(exec("/nonexistent").status.code(), Some(127));
    assert_eq!(exec("/etc/passwd").status.code(), Some(126));
    let links = exec("ls /sys/class/net /proc/self/ns");
    assert!(links.status.success());
    assert!(exec("ping -c 1 -W 5 192.0.2.1").status.success());
    assert_eq!(world.client.state(), before);
}

/// exec: asked to stop, it ends the command first; nobody is left.
#[test]
fn exec_ends_with_its_command_and_the_command_with_it() {
    let Some(world) = world() else { return };
    let mut command = world.client.command(ZTUN);
    command.args(["exec", "--log-level", "info", "--", "sleep", "1000"]);
    let mut exec = world.start(command);
    until("the command runs", || exec.log().contains("ready"));
    let children = format!("/proc/{0}/task/{0}/children", exec.pid());
    let pids: Vec<u32> = std::fs::read_to_string(&children)
        .unwrap()
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect();
    assert_eq!(pids.len(), 2, "the embedded proxy and the command");
    assert_eq!(exec.stop(), Some(128 + libc::SIGTERM));
    for pid in pids {
        until("its children are gone", || !std::fs::exists(format!("/proc/{pid}")).unwrap());
    }
}

/// exec: without root where the device may be opened, and with a clear word where it may not.
#[test]
fn exec_works_without_root() {
    let Some(world) = world() else { return };
    let nobody = |line: &str| {
        let drop = "setpriv --reuid 65534 --regid 65534 --clear-groups";
        // A device node that everyone may open, as most distributions have it, in a mount namespace of the test's own.
        world
            .client
            .command("unshare")
            .args(["-m", "sh", "-c", &line.replace("NOBODY", drop)])
            .output()
            .unwrap()
    };
    let binary = world.dir.path().join("ztun");
    std::fs::copy(ZTUN, &binary).unwrap();
    let binary = binary.display();
    let open = format!(
        "chmod 755 {0} && mount -t tmpfs none /mnt && mknod -m 666 /mnt/tun c 10 200 && mount --bind /mnt/tun /dev/net/tun",
        world.dir.path().display()
    );
    let worked =
        nobody(&format!("{open} && NOBODY {binary} exec -- sh -c 'id -u; ping -c 1 -W 5 192.0.2.1'"));
    let (said, errors) = (String::from_utf8_lossy(&worked.stdout), String::from_utf8_lossy(&worked.stderr));
    assert!(worked.status.success(), "{said} {errors}");
    assert!(said.starts_with("65534\n") && said.contains(" 0% packet loss"), "{said} {errors}");
    let closed = nobody(&format!("{open} && chmod 600 /mnt/tun && NOBODY {binary} exec -- true"));
    let errors = String::from_utf8_lossy(&closed.stderr);
    assert_eq!(closed.status.code(), Some(3), "{errors}");
    assert!(errors.contains("/dev/net/tun") && errors.contains("  try: "), "{errors}");
}

/// demo: everything that the demo shows works, and the machine is left alone.
#[test]
fn the_demo_shows_everything_at_work() {
    let Some(world) = world() else { return };
    let before = world.client.state();
    let output = world.client.sh(&format!("{ZTUN} demo"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert_eq!(text.matches("  ok   ").count(), 10, "{text}");
    assert_eq!(world.client.state(), before);
}
