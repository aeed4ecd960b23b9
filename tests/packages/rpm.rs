//! The package for rpm: what is in it, and what it does to a machine. The machine is a copy of this one, whose own packages are dpkg's: rpm has a database to
//! itself there, in which nothing else stands.

use super::machine::{Machine, PROXY, TARGET};
use super::{ZTUN, output, project};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// On a machine of Debian rpm has to be told that it is meant, and finds no packages that others could need.
const RPM: &str = "rpm --force-debian --nodeps";

/// The package of the program under test, without debug information as in a release.
fn build(dir: &Path) -> PathBuf {
    let stripped = dir.join("ztun");
    output(Command::new("strip").arg("-o").arg(&stripped).arg(ZTUN));
    let arch = std::env::consts::ARCH;
    let built = output(Command::new(project("packaging/rpm.sh")).args([
        stripped.as_os_str(),
        arch.as_ref(),
        stripped.as_os_str(),
        dir.as_os_str(),
    ]));
    PathBuf::from(built.trim())
}

#[test]
fn the_package_has_these_files_with_these_modes_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let rpm = build(dir.path());
    let asked = |format: &str| {
        output(Command::new("rpm").args(["--query", "--package", "--queryformat", format]).arg(&rpm))
    };
    let listing =
        asked("[%{FILENAMES} %{FILEMODES:perms} %{FILEUSERNAME}/%{FILEGROUPNAME} %{FILEFLAGS:fflags}\\n]");
    let files: BTreeMap<&str, &str> = listing.lines().map(|line| line.split_once(' ').unwrap()).collect();
    let expected = BTreeMap::from([
        ("/etc/ztun", "drwxr-xr-x root/root "),
        ("/etc/ztun/ztun.toml", "-rw------- root/root cn"),
        ("/usr/bin/ztun", "-rwxr-xr-x root/root "),
        ("/usr/lib/systemd/system/ztun.service", "-rw-r--r-- root/root "),
        ("/usr/share/bash-completion/completions/ztun", "-rw-r--r-- root/root "),
        ("/usr/share/doc/ztun", "drwxr-xr-x root/root "),
        ("/usr/share/doc/ztun/HOST-CHANGES.md", "-rw-r--r-- root/root d"),
        ("/usr/share/doc/ztun/README.md", "-rw-r--r-- root/root d"),
        ("/usr/share/doc/ztun/examples", "drwxr-xr-x root/root "),
        ("/usr/share/doc/ztun/examples/ztun.toml", "-rw-r--r-- root/root d"),
        ("/usr/share/fish/vendor_completions.d/ztun.fish", "-rw-r--r-- root/root "),
        ("/usr/share/licenses/ztun/LICENSE", "-rw-r--r-- root/root l"),
        ("/usr/share/man/man1/ztun.1.gz", "-rw-r--r-- root/root d"),
        ("/usr/share/zsh/site-functions/_ztun", "-rw-r--r-- root/root "),
    ]);
    assert_eq!(files, expected);
    assert_eq!(
        asked("%{VERSION} %{ARCH}"),
        format!("{} {}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH)
    );
    // What rpm has found the program to need: no newer one than this machine has, and nothing when it is static.
    let preun = asked("%{PREUN}");
    assert!(preun.contains("[ \"$1\" -eq 0 ] || exit 0") && preun.contains("ztun restore --tun"), "{preun}");
}

#[test]
fn the_same_input_makes_the_same_octets() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [one, other] = [&one, &other].map(|dir| std::fs::read(build(dir.path())).unwrap());
    assert!(one == other, "{} and {} octets", one.len(), other.len());
}

/// A machine, and its state before anything is installed.
fn machine() -> Option<(Machine, String, Vec<String>)> {
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::boot(&build(dir.path()))?;
    // rpm makes its database when it is first asked.
    machine.ok("rpm --initdb; rpm --query ztun || true");
    let (network, written) = (machine.network(), machine.written());
    Some((machine, network, written))
}

/// Installed, started, upgraded and removed; what a killed run left is undone by the removal, and one that runs otherwise stops it.
#[test]
fn it_is_installed_started_upgraded_and_removed_and_nothing_stays() {
    let Some((machine, network, written)) = machine() else { return };
    machine.ok(&format!("{RPM} --install /test/ztun.rpm; rpm --verify --nodeps ztun"));
    assert_eq!(
        machine.ok("systemctl is-active ztun || true; systemctl is-enabled ztun || true"),
        "inactive\ndisabled\n"
    );
    assert_eq!(machine.network(), network, "by the installation");

    machine.ok(&format!("echo 'socks5 = [\"{PROXY}\"]' >/etc/ztun/ztun.toml; systemctl enable --now ztun"));
    assert!(machine.ok(&format!("ip route get {TARGET}")).contains("dev ztun0"));
    let pid = || machine.ok("systemctl show --value --property=MainPID ztun");
    let before = pid();
    machine.ok(&format!("{RPM} --upgrade --replacepkgs /test/ztun.rpm"));
    machine.until("systemctl is-active ztun");
    assert_ne!(pid(), before, "it runs the new program");
    assert_eq!(machine.ok("cat /etc/ztun/ztun.toml"), format!("socks5 = [\"{PROXY}\"]\n"));
    assert_eq!(machine.ok("systemctl is-enabled ztun"), "enabled\n");

    let run = "systemd-run --quiet --property=Type=notify --property=NotifyAccess=main";
    machine.ok(&format!("systemctl stop ztun; {run} --unit=by-hand ztun --socks5 {PROXY}"));
    let said = machine.fails(&format!("{RPM} --erase ztun"));
    assert!(said.contains("ztun is not removed"), "{said}");
    machine.ok("rpm --verify --nodeps ztun || true; systemctl stop by-hand");
    machine.ok(&format!(
        "{run} --property=KillSignal=SIGKILL --unit=killed ztun --kill-switch --socks5 {PROXY}; systemctl stop killed"
    ));
    assert_ne!(machine.network(), network, "a run with a kill switch leaves its routes");

    machine.ok(&format!("{RPM} --erase ztun"));
    assert_eq!(machine.network(), network, "after the removal");
    // A configuration that somebody has written is kept, under a name that says so.
    assert_eq!(machine.ok("ls -A /etc/ztun; rm -r /etc/ztun"), "ztun.toml.rpmsave\n");
    let stays: Vec<String> = machine.written().into_iter().filter(|path| !written.contains(path)).collect();
    assert_eq!(stays, [""; 0], "written and not removed");
}
