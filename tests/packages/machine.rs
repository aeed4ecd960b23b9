//! A throw-away copy of this machine that runs systemd.
//!
//! The files are this machine's own with an overlay on top, so dpkg finds its database and every library, and what it writes stays in the overlay. Mounts,
//! network, processes and control groups are in namespaces of their own, which end with process 1, and that ends with the guard or with the test program.
//!
//! ```text
//!  the machine                     namespace `server` on it
//!  10.78.0.1  eth0 ─────── eth0  10.78.0.2: `ztun proxy` at port 1080; on lo the target 203.0.113.10
//! ```

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a test waits for anything before it fails.
const PATIENCE: Duration = Duration::from_secs(60);

pub const PROXY: &str = "10.78.0.2:1080";
pub const TARGET: &str = "203.0.113.10";

/// Deletes the control groups of machines that are gone; $1 is an empty directory.
const SWEEP: &str = r#"
mount -t cgroup2 cgroup2 "$1"
for group in "$1"/ztun-test-*; do
    [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
done
"#;

/// Puts the copy together at $1 and becomes its process 1, in the control group $2.
const BOOT: &str = r#"
set -eu
mount -t tmpfs tmpfs "$1"
mkdir "$1/groups" "$1/upper" "$1/work" "$1/root"
mount -t cgroup2 cgroup2 "$1/groups"
mkdir "$1/groups/$2"
echo $$ >"$1/groups/$2/cgroup.procs"
umount "$1/groups"
exec unshare --net --pid --cgroup --ipc --uts --fork --kill-child sh -euc '
    root=$1/root
    mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$root"
    mount -t proc proc "$root/proc"
    mount -t sysfs sysfs "$root/sys"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    for directory in dev run tmp; do mount -t tmpfs -o mode=755 tmpfs "$root/$directory"; done
    mkdir "$root/dev/net" "$root/dev/shm" "$root/dev/pts" "$root/run/lock" "$root/test"
    for device in null zero full random urandom tty net/tun; do cp -a "/dev/$device" "$root/dev/$device"; done
    cp "$2" "$root/test/ztun"
    cp "$3" "$root/test/ztun.${3##*.}"
    # dpkg would have the index of all manual pages made anew.
    rm -f "$root/etc/resolv.conf" "$root/var/lib/man-db/auto-update"
    echo "nameserver 10.78.0.2" >"$root/etc/resolv.conf"
    printf "[Unit]\nAllowIsolate=yes\n" >"$root/etc/systemd/system/test.target"
    ip link set lo up
    exec env -i container=test PATH="$PATH" chroot "$root" /lib/systemd/systemd --system --unit=test.target
' sh "$1" "$3" "$4"
"#;

/// The machine; gone when dropped.
pub struct Machine {
    unshare: Child,
    /// Process 1, as this machine sees it.
    first: u32,
    dir: tempfile::TempDir,
}

impl Machine {
    /// A machine that has the package as /test/ztun.deb or /test/ztun.rpm, or nothing when namespaces are to be left out, which is said.
    pub fn boot(package: &Path) -> Option<Machine> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if std::env::var_os("ZTUN_SKIP_NETNS").is_some_and(|value| value == "1") {
            eprintln!("skipped: ZTUN_SKIP_NETNS=1");
            return None;
        }
        // SAFETY: geteuid has no arguments and cannot fail.
        let root = unsafe { libc::geteuid() } == 0;
        assert!(
            root,
            "a machine of its own needs root: run as root, or set ZTUN_SKIP_NETNS=1 to leave this out"
        );
        let dir = tempfile::tempdir().unwrap();
        let log = fs::File::create(dir.path().with_extension("log")).unwrap();
        let mount = dir.path().join("machine");
        fs::create_dir(&mount).unwrap();
        let group = format!("ztun-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", BOOT, "sh"])
            .arg(&mount)
            .arg(group)
            .arg(super::ZTUN)
            .arg(package);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        // SAFETY: prctl with numbers only: allowed between fork and exec.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            })
        };
        let unshare = command.spawn().unwrap();
        let mut machine = Machine { unshare, first: 0, dir };
        machine.wait_for_systemd();
        machine.connect();
        Some(machine)
    }

    fn wait_for_systemd(&mut self) {
        let pid = self.unshare.id();
        let children = format!("/proc/{pid}/task/{pid}/children");
        let up = |machine: &mut Machine| {
            assert!(machine.unshare.try_wait().unwrap().is_none(), "it did not start: {}", machine.log());
            let found = fs::read_to_string(&children).unwrap_or_default();
            machine.first = found.split_whitespace().next().and_then(|pid| pid.parse().ok()).unwrap_or(0);
            let name = fs::read_to_string(format!("/proc/{}/comm", machine.first)).unwrap_or_default();
            name.trim() == "systemd"
                && machine.sh("systemctl is-system-running").stdout.starts_with(b"running")
        };
        let start = Instant::now();
        while !up(self) {
            assert!(start.elapsed() < PATIENCE, "systemd does not run: {}", self.log());
            std::thread::yield_now();
        }
    }

    /// The wire, the proxy and the target.
    fn connect(&self) {
        self.ok(&format!(
            "ip netns add server
             ip link add eth0 type veth peer name eth0 netns server
             ip link set eth0 addrgenmode none; ip -n server link set eth0 addrgenmode none
             ip address add 10.78.0.1/24 dev eth0; ip link set eth0 up; ip route add default via 10.78.0.2
             ip -n server address add 10.78.0.2/24 dev eth0; ip -n server link set eth0 up
             ip -n server link set lo up; ip -n server address add {TARGET}/32 dev lo
             server='systemd-run --quiet --property=NetworkNamespacePath=/run/netns/server'
             $server --unit=proxy /test/ztun proxy --listen {PROXY}
             $server --unit=target --working-directory=/test python3 -m http.server --bind {TARGET} 80
             for address in {} {TARGET}/80; do
                 until ip netns exec server bash -c \"exec 3<>/dev/tcp/$address\" 2>/dev/null; do :; done
             done",
            PROXY.replace(':', "/"),
        ));
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().with_extension("log")).unwrap_or_default()
    }

    /// Runs a shell script on the machine to its end.
    pub fn sh(&self, script: &str) -> Output {
        let first = self.first.to_string();
        Command::new("timeout")
            .args(["-s", "KILL", "60", "nsenter", "-t", &first, "-m", "-n", "-p", "-C", "-r", "-w"])
            .args(["bash", "-euc", script])
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// What a script that succeeds writes.
    pub fn ok(&self, script: &str) -> String {
        let output = self.sh(script);
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{script}\n{text}");
        text
    }

    /// What a script that fails writes.
    pub fn fails(&self, script: &str) -> String {
        let output = self.sh(script);
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!output.status.success(), "it works: {script}\n{text}");
        text
    }

    /// Polls until a script succeeds.
    pub fn until(&self, script: &str) {
        let start = Instant::now();
        loop {
            let output = self.sh(script);
            if output.status.success() {
                return;
            }
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(start.elapsed() < PATIENCE, "never: {script}\n{said}");
        }
    }

    /// Everything that ztun changes on a machine, in words.
    pub fn network(&self) -> String {
        self.ok("ip rule; ip -6 rule; ip -d address show scope global | grep -v valid_lft; ip route show table all; ip -6 route show table all
                 nft list ruleset; stat -c '%n %a %u %F' /etc/resolv.conf; cat /etc/resolv.conf; ls /etc/resolv.conf*")
    }

    /// Every file that was written or deleted since the machine was put together. What dpkg and systemd keep for themselves is left out.
    pub fn written(&self) -> Vec<String> {
        let upper = format!("/proc/{}/root{}/machine/upper", self.unshare.id(), self.dir.path().display());
        let found = Command::new("find").arg(&upper).args(["!", "-type", "d"]).output().unwrap();
        assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
        let found = String::from_utf8(found.stdout).unwrap();
        let mut paths: Vec<String> = found.lines().map(|path| path[upper.len()..].to_owned()).collect();
        paths.retain(|path| {
            !["/var/", "/root/", "/etc/machine-id"].iter().any(|start| path.starts_with(start))
        });
        paths.sort();
        paths
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // `unshare` ends when its child has ended, and that is the end of everything on the machine.
        match self.first {
            0 => drop(self.unshare.kill()),
            // SAFETY: a child of a child that is not waited for before, so the number is still its own.
            first => assert_eq!(unsafe { libc::kill(first as libc::pid_t, libc::SIGKILL) }, 0),
        }
        if let Err(error) = self.unshare.wait() {
            eprintln!("the machine stays: {error}");
        }
        let sweep = Command::new("unshare")
            .args(["--mount", "sh", "-euc", SWEEP, "sh"])
            .arg(self.dir.path())
            .status();
        if std::thread::panicking() {
            eprintln!("sweep: {sweep:?}\n{}", self.log());
        }
        if let Err(error) = fs::remove_file(self.dir.path().with_extension("log")) {
            eprintln!("its log stays: {error}");
        }
    }
}
