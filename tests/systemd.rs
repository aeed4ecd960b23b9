//! The systemd unit: what systemd itself says of it, and what the program relies on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "a test that cannot ask systemd says so")]

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/systemd/ztun.service");

/// Values by section and key; a key may come more than once.
fn keys() -> BTreeMap<(String, String), Vec<String>> {
    let text = fs::read_to_string(UNIT).unwrap();
    let (mut section, mut keys) = (String::new(), BTreeMap::<_, Vec<String>>::new());
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name.to_owned();
        } else {
            let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("'{line}' is no assignment"));
            keys.entry((section.clone(), key.to_owned())).or_default().push(value.to_owned());
        }
    }
    keys
}

fn one(key: &str) -> String {
    let keys = keys();
    let values = keys.get(&("Service".into(), key.into())).unwrap_or_else(|| panic!("no {key}"));
    assert_eq!(values.len(), 1, "{key}");
    values[0].clone()
}

#[test]
fn the_unit_says_what_the_program_relies_on() {
    assert_eq!(one("Type"), "notify");
    assert!(one("ExecStart").starts_with('/') && one("ExecStopPost").ends_with("ztun restore"));
    assert_eq!(one("Restart"), "on-failure");
    // The journal outlives a crash.
    assert_eq!((one("RuntimeDirectory"), one("RuntimeDirectoryPreserve")), ("ztun".into(), "yes".into()));
    assert_eq!(one("RuntimeDirectoryMode"), "0700");
    assert_eq!(one("NoNewPrivileges"), "yes");
    let capabilities = one("CapabilityBoundingSet");
    assert!(capabilities.split(' ').any(|name| name == "CAP_NET_ADMIN"));
    for never in ["CAP_SYS_ADMIN", "CAP_SYS_MODULE", "CAP_NET_RAW", "CAP_SYS_RAWIO"] {
        assert!(!capabilities.contains(never), "{never}");
    }
    // What is written to: resolv.conf by renaming in /etc, the state of other programs in /run, and the device.
    assert_eq!(one("ProtectSystem"), "strict");
    for path in ["/etc", "/run"] {
        assert!(one("ReadWritePaths").split(' ').any(|other| other == path), "{path}");
    }
    assert_eq!(one("DeviceAllow"), "/dev/net/tun rw");
    for family in ["AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"] {
        assert!(one("RestrictAddressFamilies").split(' ').any(|other| other == family), "{family}");
    }
    // Each of these would take something away that is used: the device, settings below /proc/sys, /proc of other processes.
    for key in [
        "PrivateDevices",
        "ProtectKernelTunables",
        "ProtectProc",
        "ProcSubset",
        "PrivateNetwork",
        "PrivateUsers",
    ] {
        assert!(!keys().contains_key(&("Service".into(), key.into())), "{key}");
    }
}

/// The program in place of the one that is installed, so that systemd finds it.
fn unit_here(dir: &tempfile::TempDir) -> String {
    let text = fs::read_to_string(UNIT).unwrap().replace("/usr/local/bin/ztun", env!("CARGO_BIN_EXE_ztun"));
    let path = dir.path().join("ztun.service");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// What systemd-analyze says of the unit; `None` where there is none.
fn analyze(arguments: &[&str]) -> Option<(bool, String)> {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("systemd-analyze").args(arguments).arg(unit_here(&dir)).output();
    match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("not asked: there is no systemd-analyze");
            None
        }
        output => {
            let output = output.unwrap();
            let text = [output.stdout, output.stderr].concat();
            Some((output.status.success(), String::from_utf8(text).unwrap()))
        }
    }
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let Some((well, text)) = analyze(&["verify", "--man=no"]) else { return };
    assert!(well && text.trim().is_empty(), "{text}");
}

#[test]
fn systemd_finds_it_little_exposed() {
    // In tenths of the scale of `systemd-analyze security`, on which 10 is the worst and a unit without sandbox has 9.6.
    let Some((well, text)) = analyze(&["security", "--offline=true", "--no-pager", "--threshold=40"]) else {
        return;
    };
    assert!(well, "{text}");
}
