//! What a router may do while it runs is what it needs, and that is enough to undo everything.

use crate::world::*;
use std::fs;
use std::path::{Path, PathBuf};

/// The capabilities that `docs/adr/0016-privileges.md` lists, as setpriv(1) calls them.
const UNIT: &str = "-all,+net_admin,+sys_ptrace,+dac_read_search,+dac_override,+chown,+fowner";

/// A resolv.conf that a namespace has for itself, another user's, mounted by `ip netns exec`.
struct Etc(PathBuf);

impl Etc {
    fn of(namespace: &Namespace) -> Etc {
        let directory = Path::new("/etc/netns").join(namespace.name());
        fs::create_dir_all(&directory).unwrap();
        let file = directory.join("resolv.conf");
        fs::write(&file, "nameserver 203.0.113.53\nsearch lan\n").unwrap();
        std::os::unix::fs::chown(&file, Some(65_534), Some(65_534)).unwrap();
        Etc(directory)
    }

    fn file(&self) -> Vec<u8> {
        fs::read(self.0.join("resolv.conf")).unwrap()
    }
}

impl Drop for Etc {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        // Others may have theirs there.
        let _ = fs::remove_dir("/etc/netns");
    }
}

/// One line of each thread's status.
fn of_threads(ztun: &Running, name: &str) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{}/task", ztun.pid())).unwrap();
    let line = |thread: std::io::Result<fs::DirEntry>| {
        let text = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().to_owned()
    };
    threads.map(line).collect()
}

fn bits(numbers: &[u32]) -> String {
    format!("{:016x}", numbers.iter().fold(0u64, |set, number| set | 1 << number))
}

/// Every thread has given up what is not needed, for itself and its children, and the run ends as it must: routes, rules and another user's
/// resolv.conf are as before.
#[test]
fn what_is_not_needed_is_given_up_and_what_is_kept_undoes_everything() {
    let Some(world) = world() else { return };
    let etc = Etc::of(&world.client);
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    let (before, file) = (world.client.state(), etc.file());
    let mut ztun = world.ztun(&format!("--socks5 {PROXY}"));
    let kept = bits(&[0, 1, 2, 3, 12, 19]);
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        for thread in of_threads(&ztun, set) {
            assert_eq!(thread, kept, "{set}");
        }
    }
    for (name, value) in [("CapInh", bits(&[])), ("CapAmb", bits(&[])), ("NoNewPrivs", "1".into())] {
        assert!(of_threads(&ztun, name).iter().all(|thread| *thread == value), "{name}");
    }
    talk(&mut world.client.connect(&format!("{TARGET}:7")).unwrap()).unwrap();
    assert_ne!(world.client.state(), before);
    assert_ne!(etc.file(), file, "names are asked in the tunnel");
    // The device is made anew with what is left.
    world.client.ok("ip link del ztun0");
    until("flows go through a new device", || {
        world.client.connect(&format!("{TARGET}:7")).is_ok_and(|mut app| talk(&mut app).is_ok())
    });
    assert_eq!(ztun.stop(), Some(0), "{}", ztun.log());
    assert_eq!(etc.file(), file);
    assert_eq!(world.client.state(), before);
}

/// Without routes nothing but the network has to be administered.
#[test]
fn a_run_without_routes_keeps_one_capability() {
    let Some(world) = world() else { return };
    let mut ztun = world.ztun(&format!("--socks5 {PROXY} --no-route"));
    assert!(of_threads(&ztun, "CapEff").iter().all(|thread| *thread == bits(&[12])));
    assert_eq!(ztun.stop(), Some(0));
}

/// L2: within the bounds of the systemd unit it runs, and `ztun restore` puts right what a killed one has left.
#[test]
fn the_bounds_of_the_unit_are_wide_enough() {
    let Some(world) = world() else { return };
    let etc = Etc::of(&world.client);
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    let unit =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/systemd/ztun.service")).unwrap();
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let spelt: Vec<String> =
        line.split(' ').map(|name| name.trim_start_matches("CAP_").to_lowercase()).collect();
    assert_eq!(UNIT, format!("-all,+{}", spelt.join(",+")), "this test and the unit are about the same set");
    let (before, file) = (world.client.state(), etc.file());
    let bounded = |arguments: &[&str]| {
        let mut command = world.client.command("setpriv");
        command.args(["--bounding-set", UNIT, "--no-new-privs", "--inh-caps=-all", ZTUN]).args(arguments);
        command
    };
    let mut ztun = world.ready(bounded(&["--socks5", PROXY]));
    talk(&mut world.client.connect(&format!("{TARGET}:7")).unwrap()).unwrap();
    ztun.signal(libc::SIGKILL);
    ztun.end();
    assert_ne!(etc.file(), file, "a killed one leaves what it had changed");
    let mut restore = world.start(bounded(&["restore"]));
    assert_eq!(restore.end(), Some(0), "{}", restore.log());
    assert_eq!(etc.file(), file);
    assert_eq!(world.client.state(), before);
}
