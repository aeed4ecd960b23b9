//! The Debian package: what is in it, and what it does to a machine.

use super::machine::{Machine, PROXY, TARGET};
use super::{ZTUN, project};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The package of the program under test, without debug information as in a release.
fn build(dir: &Path) -> PathBuf {
    let stripped = dir.join("ztun");
    let status = Command::new("strip").arg("-o").arg(&stripped).arg(ZTUN).status().unwrap();
    assert!(status.success());
    let output = Command::new(project("packaging/deb.sh"))
        .args([stripped.as_os_str(), architecture().as_ref(), stripped.as_os_str(), dir.as_os_str()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

fn architecture() -> String {
    let output = Command::new("dpkg").arg("--print-architecture").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The package, made once.
pub fn built() -> PathBuf {
    static DEB: OnceLock<PathBuf> = OnceLock::new();
    DEB.get_or_init(|| build(env!("CARGO_TARGET_TMPDIR").as_ref())).clone()
}

/// A machine, and its state before anything is installed.
fn machine() -> Option<(Machine, String, Vec<String>)> {
    let machine = Machine::boot(&built())?;
    // A first call of dpkg makes what later ones leave as it is.
    machine.ok("dpkg --list ztun-is-not-here 2>/dev/null || true");
    let (network, written) = (machine.network(), machine.written());
    Some((machine, network, written))
}

#[test]
fn the_package_has_these_files_with_these_modes_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let deb = build(dir.path());
    let listing = Command::new("dpkg-deb").arg("--contents").arg(&deb).output().unwrap();
    let listing = String::from_utf8(listing.stdout).unwrap();
    let mut files = BTreeMap::new();
    for line in listing.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[1], "root/root", "{line}");
        if words[0].starts_with('d') {
            assert_eq!(words[0], "drwxr-xr-x", "{line}");
        } else {
            files.insert(words[5], words[0]);
        }
    }
    let expected = BTreeMap::from([
        ("./etc/ztun/ztun.toml", "-rw-------"),
        ("./usr/bin/ztun", "-rwxr-xr-x"),
        ("./usr/lib/systemd/system/ztun.service", "-rw-r--r--"),
        ("./usr/share/bash-completion/completions/ztun", "-rw-r--r--"),
        ("./usr/share/doc/ztun/HOST-CHANGES.md", "-rw-r--r--"),
        ("./usr/share/doc/ztun/README.md", "-rw-r--r--"),
        ("./usr/share/doc/ztun/changelog.gz", "-rw-r--r--"),
        ("./usr/share/doc/ztun/copyright", "-rw-r--r--"),
        ("./usr/share/doc/ztun/examples/ztun.toml", "-rw-r--r--"),
        ("./usr/share/fish/vendor_completions.d/ztun.fish", "-rw-r--r--"),
        ("./usr/share/man/man1/ztun.1.gz", "-rw-r--r--"),
        ("./usr/share/zsh/vendor-completions/_ztun", "-rw-r--r--"),
    ]);
    assert_eq!(files, expected);

    let field = |name: &str| {
        let output = Command::new("dpkg-deb").arg("--field").arg(&deb).arg(name).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!((field("Version"), field("Architecture")), (env!("CARGO_PKG_VERSION").into(), architecture()));
    assert!(field("Depends").starts_with("libc6 (>= 2."), "{}", field("Depends"));
}

#[test]
fn the_same_input_makes_the_same_octets() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [one, other] = [&one, &other].map(|dir| std::fs::read(build(dir.path())).unwrap());
    assert!(one == other, "{} and {} octets", one.len(), other.len());
}

/// Installed, started, removed, purged; and nothing is started before somebody has named a proxy.
#[test]
fn it_is_installed_started_removed_and_purged_and_nothing_stays() {
    let Some((machine, network, written)) = machine() else { return };
    machine.ok("dpkg --install /test/ztun.deb");
    assert_eq!(machine.ok("dpkg --verify ztun"), "");
    assert_eq!(
        machine.ok("systemctl is-active ztun || true; systemctl is-enabled ztun || true"),
        "inactive\ndisabled\n"
    );
    assert_eq!(machine.network(), network, "by the installation");
    assert!(
        machine
            .ok("man --version >/dev/null 2>&1; zcat /usr/share/man/man1/ztun.1.gz")
            .contains("kill\\-switch")
    );
    machine.ok("bash -n /usr/share/bash-completion/completions/ztun");

    // As it is installed it names no proxy, and says so.
    machine.fails("systemctl start ztun");
    assert_eq!(machine.ok("systemctl show --value --property=ExecMainStatus ztun"), "2\n");
    assert!(machine.fails("ztun --config /etc/ztun/ztun.toml").contains("--socks5"));
    assert_eq!(machine.network(), network, "by a start without a proxy");

    machine.ok(&format!("sed -i 's/^#socks5 = .*/socks5 = [\"{PROXY}\"]/' /etc/ztun/ztun.toml"));
    machine.ok("systemctl reset-failed ztun; systemctl enable --now ztun");
    assert!(machine.ok(&format!("ip route get {TARGET}")).contains("dev ztun0"));
    assert!(
        machine
            .ok(&format!("curl --silent --show-error --max-time 30 http://{TARGET}/"))
            .contains("ztun.deb")
    );
    assert_ne!(machine.network(), network);

    machine.ok("dpkg --remove ztun");
    assert_eq!(machine.network(), network, "after the removal");
    assert_eq!(
        machine.ok("ls -A /etc/ztun; ls -d /usr/bin/ztun /run/ztun 2>/dev/null || true"),
        "ztun.toml\n"
    );
    assert_eq!(machine.ok("pgrep -a ztun | grep -v /test/ || true"), "");
    machine.ok("dpkg --purge ztun");
    let stays: Vec<String> = machine.written().into_iter().filter(|path| !written.contains(path)).collect();
    assert_eq!(stays, [""; 0], "written and not removed");
}

#[test]
fn what_a_killed_run_left_is_undone_by_the_removal() {
    let Some((machine, network, _)) = machine() else { return };
    machine.ok("dpkg --install /test/ztun.deb");
    let ready = "--quiet --property=Type=notify --property=KillSignal=SIGKILL --property=NotifyAccess=main";
    for device in ["ztun0", "other"] {
        machine.ok(&format!("systemd-run {ready} --unit={device} ztun --tun {device} --kill-switch --socks5 {PROXY}; systemctl stop {device}"));
        assert_ne!(machine.network(), network, "a run with a kill switch leaves its routes");
        machine.ok("dpkg --remove ztun");
        assert_eq!(machine.network(), network, "{device}");
        machine.ok("dpkg --install /test/ztun.deb");
    }
}

#[test]
fn a_ztun_that_runs_otherwise_stops_the_removal() {
    let Some((machine, network, _)) = machine() else { return };
    machine.ok(&format!(
        "dpkg --install /test/ztun.deb; systemd-run --quiet --property=Type=notify --unit=by-hand ztun --socks5 {PROXY}"
    ));
    let during = machine.network();
    let said = machine.fails("dpkg --remove ztun");
    assert!(said.contains("ztun is not removed"), "{said}");
    assert_eq!(machine.network(), during);
    machine.ok("dpkg --verify ztun; systemctl is-active by-hand; systemctl stop by-hand; dpkg --remove ztun");
    assert_eq!(machine.network(), network);
}

#[test]
fn an_upgrade_keeps_the_configuration_and_restarts_what_runs() {
    let Some((machine, ..)) = machine() else { return };
    machine.ok("dpkg --install /test/ztun.deb");
    machine.ok(&format!("echo 'socks5 = [\"{PROXY}\"]' >/etc/ztun/ztun.toml; systemctl enable --now ztun"));
    let pid = || machine.ok("systemctl show --value --property=MainPID ztun");
    let before = pid();
    machine.ok("dpkg --install /test/ztun.deb");
    machine.until("systemctl is-active ztun");
    assert_ne!(pid(), before);
    assert_eq!(machine.ok("cat /etc/ztun/ztun.toml"), format!("socks5 = [\"{PROXY}\"]\n"));
    assert_eq!(machine.ok("systemctl is-enabled ztun"), "enabled\n");
}
