//! The machine's name servers, changed and put back on machines of the tests' own.
//!
//! Each test runs this program once more as the first process of new process, mount and network namespaces, with an empty `/etc` and
//! `/run` of its own: to it, they are the machine. Without root the tests fail and say so; `ZTUN_SKIP_NETNS=1` skips them, in words.

#![cfg(all(feature = "os", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a thread of a test has a namespace of its own")]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]
#![allow(clippy::print_stdout, reason = "a part that runs as a process tells the other one how far it is")]

use std::ffi::CString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use ztun::config::{HostPlanConfig, OffloadLevel};
use ztun::host::DnsCheck;
use ztun::host::{self, Applied, RunDir};
use ztun::tun::Tun;

const TUN: &str = "hostdns0";
const RESOLV_CONF: &str = "/etc/resolv.conf";
const LAN: &str = "# made by hand\nsearch lan\nnameserver 192.168.1.1";
/// Tells a process that it is on a machine of the test's own.
const INSIDE: &str = "ZTUN_TEST_MACHINE";

/// Runs `test`, which is the body of the test function `name`, on a new machine.
fn on_a_machine(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        for directory in ["/etc", "/run"] {
            mount("tmpfs", directory, "tmpfs", 0, "mode=755,size=1m");
        }
        fs::write(RESOLV_CONF, LAN).unwrap();
        return test();
    }
    if std::env::var_os("ZTUN_SKIP_NETNS").is_some_and(|value| value == "1") {
        eprintln!("skipped: ZTUN_SKIP_NETNS=1");
        return;
    }
    let output = Command::new("unshare")
        .args(["--fork", "--kill-child", "--pid", "--net", "--mount", "--mount-proc"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .env_remove("ZTUN_RUN_DIR")
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "run as root, or set ZTUN_SKIP_NETNS=1 to skip:\n{text}");
    assert!(text.contains("test result: ok. 1 passed"), "{text}");
}

fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong, options: &str) {
    let text = |text: &str| CString::new(text).unwrap();
    let (source, at, kind, options) = (text(source), text(target), text(kind), text(options));
    // SAFETY: four strings that end with NUL and outlive the call, and a number.
    let result =
        unsafe { libc::mount(source.as_ptr(), at.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast()) };
    assert_eq!(result, 0, "mount {target}: {}", std::io::Error::last_os_error());
}

/// A file mounted over resolv.conf, as a container has it.
fn mount_file(text: &str) {
    fs::create_dir_all("/run/outside").unwrap();
    fs::write("/run/outside/resolv.conf", text).unwrap();
    mount("/run/outside/resolv.conf", RESOLV_CONF, "none", libc::MS_BIND, "");
}

/// All files of `/etc`, with content, mode, owner, time and inode. A symbolic link's time is not told apart.
fn etc() -> Vec<String> {
    let mut files: Vec<String> = fs::read_dir("/etc")
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = match fs::read_link(&path) {
                Ok(target) => format!("-> {}", target.display()),
                Err(_) => format!("{:?}", fs::read(&path).unwrap()),
            };
            let (time, numbers) =
                ((meta.mtime(), meta.mtime_nsec()), (meta.mode(), meta.uid(), meta.gid(), meta.ino()));
            format!("{} {content} {time:?} {numbers:?}", path.display())
        })
        .collect();
    files.sort();
    files
}

fn resolv_conf() -> String {
    fs::read_to_string(RESOLV_CONF).unwrap()
}

fn is_ours() -> bool {
    resolv_conf().ends_with("\nsearch lan\nnameserver 198.18.0.2\nnameserver fd7a:7a74:756e::2\n")
}

fn config() -> HostPlanConfig {
    let dns = ["198.18.0.2", "fd7a:7a74:756e::2"].map(|server| server.parse().unwrap()).into();
    HostPlanConfig { tun: TUN.into(), offload: OffloadLevel::Off, dns, ..HostPlanConfig::default() }
}

/// A run: its device, and its changes. Dropped, the changes are undone first.
struct Run {
    applied: Applied,
    _tun: Tun,
}

fn start() -> Run {
    let tun = Tun::open(TUN, 1500, OffloadLevel::Off).unwrap();
    Run { applied: host::up(&config(), TUN, &[], None).unwrap(), _tun: tun }
}

fn end(mut run: Run) {
    let report = run.applied.down();
    assert!(report.is_ok(), "{report}");
}

fn restore() {
    let report = host::restore(TUN).unwrap();
    assert!(report.is_ok(), "{report}");
    assert!(!Path::new("/run/ztun").exists());
}

/// Z12
#[test]
fn the_file_is_the_same_after_a_run() {
    on_a_machine("the_file_is_the_same_after_a_run", || {
        fs::set_permissions(RESOLV_CONF, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(RESOLV_CONF, Some(7), Some(8)).unwrap();
        let before = etc();
        let run = start();
        assert!(is_ours(), "{}", resolv_conf());
        let meta = fs::metadata(RESOLV_CONF).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o640, 7, 8));
        end(run);
        assert_eq!(etc(), before);
    });
}

#[test]
fn a_link_or_nothing_is_the_same_after_a_run() {
    on_a_machine("a_link_or_nothing_is_the_same_after_a_run", || {
        fs::remove_file(RESOLV_CONF).unwrap();
        end(start());
        assert_eq!(etc(), [""; 0]);
        fs::create_dir("/run/manager").unwrap();
        for target in ["../run/manager/resolv.conf", "/nowhere"] {
            fs::write("/run/manager/resolv.conf", LAN).unwrap();
            std::os::unix::fs::symlink(target, RESOLV_CONF).unwrap();
            let before = etc();
            let run = start();
            assert_eq!(is_ours(), target != "/nowhere", "{}", resolv_conf());
            assert!(resolv_conf().contains("nameserver 198.18.0.2\n"));
            assert_eq!(fs::read_to_string("/run/manager/resolv.conf").unwrap(), LAN);
            end(run);
            assert_eq!(etc(), before);
            fs::remove_file(RESOLV_CONF).unwrap();
        }
    });
}

#[test]
fn a_file_that_is_mounted_is_written_into_and_back() {
    on_a_machine("a_file_that_is_mounted_is_written_into_and_back", || {
        mount_file(LAN);
        let before = etc();
        let run = start();
        assert!(is_ours(), "{}", resolv_conf());
        end(run);
        assert_eq!(etc(), before);
        // A directory that cannot be written to, but the file can: a container with a root file system of that kind.
        mount("/etc", "/etc", "none", libc::MS_BIND, "");
        mount("/run/outside/resolv.conf", RESOLV_CONF, "none", libc::MS_BIND, "");
        mount("none", "/etc", "none", libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY, "");
        fs::write("/etc/other", "").unwrap_err();
        let run = start();
        assert!(is_ours(), "{}", resolv_conf());
        end(run);
        assert_eq!(etc(), before);
    });
}

/// F22
#[test]
fn what_cannot_be_changed_is_left_and_the_run_goes_on() {
    on_a_machine("what_cannot_be_changed_is_left_and_the_run_goes_on", || {
        let before = etc();
        let unchanged = |why: &str| {
            let run = start();
            assert_eq!(etc(), before, "{why}");
            assert!(run.applied.changes().len() > 10);
            end(run);
            assert_eq!(etc(), before, "{why}");
        };
        mount("none", "/etc", "none", libc::MS_REMOUNT | libc::MS_RDONLY, "");
        unchanged("read-only");
        mount("none", "/etc", "none", libc::MS_REMOUNT, "");
        // As another program leaves it behind: the file mounted over itself, read-only.
        mount(RESOLV_CONF, RESOLV_CONF, "none", libc::MS_BIND, "");
        mount("none", RESOLV_CONF, "none", libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY, "");
        unchanged("mounted, read-only");
        let name = CString::new(RESOLV_CONF).unwrap();
        // SAFETY: the name is a string that ends with NUL and outlives the call.
        assert_eq!(unsafe { libc::umount2(name.as_ptr(), 0) }, 0);
        let chattr = |flag: &str| Command::new("chattr").args([flag, RESOLV_CONF]).status().unwrap();
        assert!(chattr("+i").success());
        unchanged("immutable");
        assert!(chattr("-i").success());
        let run = start();
        assert!(is_ours());
        end(run);
        assert_eq!(etc(), before);
    });
}

/// F25
#[test]
fn a_full_disk_leaves_the_file_as_it_is_and_does_not_keep_it_from_coming_back() {
    on_a_machine("a_full_disk_leaves_the_file_as_it_is_and_does_not_keep_it_from_coming_back", || {
        let before = etc();
        let fill = || {
            let mut file = fs::File::create("/etc/ballast").unwrap();
            while file.write_all(&[1; 4096]).is_ok() {}
        };
        fill();
        let run = start();
        fs::remove_file("/etc/ballast").unwrap();
        assert_eq!(etc(), before);
        end(run);
        let run = start();
        assert!(is_ours());
        fill();
        end(run);
        fs::remove_file("/etc/ballast").unwrap();
        assert_eq!(etc(), before);
        // The same for a file that is written into: its blocks are reserved before.
        fs::remove_file(RESOLV_CONF).unwrap();
        fs::create_dir("/etc/small").unwrap();
        mount("tmpfs", "/etc/small", "tmpfs", 0, "size=8k");
        fs::write("/etc/small/resolv.conf", "options rotate\n".repeat(250)).unwrap();
        fs::write(RESOLV_CONF, "").unwrap();
        mount("/etc/small/resolv.conf", RESOLV_CONF, "none", libc::MS_BIND, "");
        let small = resolv_conf();
        while fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open("/etc/small/ballast")
            .unwrap()
            .write_all(&[1])
            .is_ok()
        {}
        let run = start();
        assert_eq!(resolv_conf(), small);
        end(run);
        assert_eq!(resolv_conf(), small);
    });
}

/// F20
#[test]
fn what_others_write_meanwhile_stands_afterwards_and_ours_until_then() {
    on_a_machine("what_others_write_meanwhile_stands_afterwards_and_ours_until_then", || {
        let mut run = start();
        assert_eq!(run.applied.dns_check(), DnsCheck::Kept);
        fs::write("/etc/resolv.conf.new", "# a DHCP client's\nsearch lan\nnameserver 172.16.0.1\n").unwrap();
        let inode = fs::metadata("/etc/resolv.conf.new").unwrap().ino();
        fs::rename("/etc/resolv.conf.new", RESOLV_CONF).unwrap();
        assert_eq!(run.applied.dns_check(), DnsCheck::PutBack);
        assert!(is_ours(), "{}", resolv_conf());
        assert_eq!(run.applied.dns_check(), DnsCheck::Kept);
        end(run);
        assert_eq!(resolv_conf(), "# a DHCP client's\nsearch lan\nnameserver 172.16.0.1\n");
        assert_eq!((fs::metadata(RESOLV_CONF).unwrap().ino(), etc().len()), (inode, 1));
        // And without a look in between.
        let run = start();
        fs::write(RESOLV_CONF, LAN).unwrap();
        end(run);
        assert_eq!((resolv_conf().as_str(), etc().len()), (LAN, 1));
    });
}

/// Runs on this machine until it is killed, and says when each one is up and when it has ended.
#[test]
#[ignore = "a part of the kill -9 tests, which start it as a process of its own"]
fn runs_without_end() {
    assert!(std::env::var_os(INSIDE).is_some(), "started by the kill -9 tests only");
    loop {
        let run = start();
        say("up");
        end(run);
        say("down");
    }
}

fn say(word: &str) {
    // Whoever is killed has nobody to tell.
    let _ = writeln!(std::io::stdout(), "{word}").and_then(|()| std::io::stdout().flush());
}

/// Kills a process that runs again and again, as soon as it has said `lines` lines.
fn kill_after(lines: usize) {
    let mut child: Child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "runs_without_end", "--ignored", "--nocapture", "--test-threads=1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let heard =
        said.by_ref().filter(|line| line.ends_with("up") || line.ends_with("down")).take(lines).count();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(heard, lines);
}

/// As when the machine is started again. The one that was killed may have ended its run before.
fn lose_journal() {
    match fs::remove_dir_all("/run/ztun") {
        Ok(()) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
    }
}

/// F19
#[test]
fn after_kill_9_restore_puts_the_file_back() {
    on_a_machine("after_kill_9_restore_puts_the_file_back", || {
        let before = etc();
        for lines in 1..20 {
            kill_after(lines);
            restore();
            assert_eq!(etc(), before, "killed after {lines} lines");
        }
        // Without the journal: the machine was started again.
        kill_after(1);
        let during = etc();
        lose_journal();
        assert!(during == before || is_ours(), "{}", resolv_conf());
        restore();
        assert_eq!(etc(), before);
        assert_eq!(host::restore(TUN).unwrap().to_string(), "nothing was left behind");
    });
}

/// L-14; F19
#[test]
fn after_kill_9_the_next_run_starts_from_the_file_of_before() {
    on_a_machine("after_kill_9_the_next_run_starts_from_the_file_of_before", || {
        for mounted in [false, true] {
            if mounted {
                mount_file(LAN);
            }
            let before = etc();
            for lines in 1..6 {
                kill_after(lines);
                if lines == 5 {
                    lose_journal();
                }
                let run = start();
                assert!(is_ours(), "{}", resolv_conf());
                end(run);
                assert_eq!(etc(), before, "killed after {lines} lines");
            }
        }
    });
}

/// Runs `body` in another network namespace of this machine; with `file`, with that file mounted over resolv.conf, as `ip netns exec` does.
fn elsewhere(file: Option<&str>, body: impl FnOnce() + Send) {
    let inside = || {
        // SAFETY: unshare touches no memory; the thread alone changes its namespaces.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        mount("none", "/", "none", libc::MS_REC | libc::MS_PRIVATE, "");
        if let Some(file) = file {
            mount(file, RESOLV_CONF, "none", libc::MS_BIND, "");
        }
        body();
    };
    thread::scope(|scope| scope.spawn(inside).join().unwrap());
}

#[test]
fn in_another_network_namespace_the_machines_file_is_never_touched() {
    on_a_machine("in_another_network_namespace_the_machines_file_is_never_touched", || {
        fs::create_dir_all("/etc/netns").unwrap();
        fs::write("/run/mine", LAN).unwrap();
        fs::remove_dir("/etc/netns").unwrap();
        let links: [Option<&str>; 3] = [None, Some("../run/manager"), Some("/run/manager")];
        fs::write("/run/manager", "nameserver 10.1.1.1\n").unwrap();
        for link in links {
            if let Some(target) = link {
                fs::remove_file(RESOLV_CONF).unwrap();
                std::os::unix::fs::symlink(target, RESOLV_CONF).unwrap();
            }
            let before = etc();
            let run = start();
            let during = etc();
            assert_ne!(during, before);
            // A run on the machine has its file; one elsewhere neither takes it for a leftover nor changes it.
            elsewhere(None, || {
                let inner = start();
                assert_eq!(etc(), during);
                end(inner);
                host::restore(TUN).unwrap();
                assert_eq!(etc(), during);
            });
            end(run);
            assert_eq!(etc(), before);
            elsewhere(None, || {
                end(start());
                assert_eq!(etc(), before);
            });
            let meta = fs::metadata("/run/mine").unwrap();
            elsewhere(Some("/run/mine"), || {
                let names = || fs::read_dir("/etc").unwrap().count();
                let inner = start();
                assert!(is_ours() && names() == 1, "{}", resolv_conf());
                end(inner);
                assert_eq!((resolv_conf().as_str(), names()), (LAN, 1));
            });
            let after = fs::metadata("/run/mine").unwrap();
            assert_eq!((after.mtime_nsec(), after.ino()), (meta.mtime_nsec(), meta.ino()));
            assert_eq!(etc(), before);
        }
    });
}

#[test]
fn a_container_with_an_etc_of_its_own_has_its_own_file() {
    on_a_machine("a_container_with_an_etc_of_its_own_has_its_own_file", || {
        let machines = etc();
        elsewhere(None, || {
            mount("tmpfs", "/etc", "tmpfs", 0, "mode=755");
            fs::write(RESOLV_CONF, LAN).unwrap();
            let before = etc();
            let run = start();
            assert!(is_ours());
            end(run);
            assert_eq!(etc(), before);
        });
        assert_eq!(etc(), machines);
    });
}

#[test]
fn systemd_resolved_is_told_and_the_file_stays() {
    on_a_machine("systemd_resolved_is_told_and_the_file_stays", || {
        fs::write(RESOLV_CONF, "nameserver 127.0.0.53\n").unwrap();
        let before = etc();
        // Where NixOS has its programs.
        fs::create_dir_all("/run/current-system/sw/bin").unwrap();
        let program = "/run/current-system/sw/bin/resolvectl";
        fs::write(program, "#!/bin/sh\necho \"$@\" >> /run/log\n").unwrap();
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
        let run = start();
        assert_eq!(etc(), before);
        end(run);
        assert_eq!(etc(), before);
        let log = fs::read_to_string("/run/log").unwrap();
        let golden = format!(
            "dns\ndns {TUN} 198.18.0.2 fd7a:7a74:756e::2\ndomain {TUN} ~.\ndefault-route {TUN} true\n\
             dnsovertls {TUN} no\nrevert {TUN}\n"
        );
        assert_eq!(log, golden);
    });
}

#[test]
fn what_is_planned_is_said_and_not_done() {
    on_a_machine("what_is_planned_is_said_and_not_done", || {
        let before = etc();
        let text = host::dry_run(&config(), TUN, &[], None).unwrap();
        let line = format!(
            "dns set 198.18.0.2,fd7a:7a74:756e::2 by file dev {TUN}\n    undo: dns restore 198.18.0.2"
        );
        assert!(text.contains(&line), "{text}");
        let public = ["nameserver 9.9.9.9\n", "nameserver 2620:fe::fe\nnameserver 1.1.1.1\n"];
        for text in public {
            fs::write(RESOLV_CONF, text).unwrap();
            let plan = host::dry_run(&config(), TUN, &[], None).unwrap();
            assert!(!plan.contains("dns set"), "{plan}");
        }
        fs::write(RESOLV_CONF, LAN).unwrap();
        let off = HostPlanConfig { dns: Vec::new(), ..config() };
        assert!(!host::dry_run(&off, TUN, &[], None).unwrap().contains("dns set"));
        assert_eq!(etc().len(), before.len());
        assert!(!RunDir::standard().path().exists());
    });
}

/// The program itself.
struct Program {
    child: Child,
    log: Box<dyn Iterator<Item = String>>,
}

impl Program {
    /// Started, until it says that it is ready.
    fn start(arguments: &[&str]) -> Program {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ztun"))
            .args(["--socks5", "127.0.0.1:1080", "--tun", TUN])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut program = Program { child, log: Box::new(lines) };
        program.wait_for("ready");
        program
    }

    /// Until it says `words`.
    fn wait_for(&mut self, words: &str) {
        assert!(self.log.any(|line| line.contains(words)), "{:?}", self.child.wait());
    }

    /// Asks it to stop.
    fn stop(mut self) {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: the call takes numbers; the child has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
        assert!(self.child.wait().unwrap().success());
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Z12, F18, F19
#[test]
fn the_program_sets_and_puts_back_and_restore_does_for_one_that_was_killed() {
    let name = "the_program_sets_and_puts_back_and_restore_does_for_one_that_was_killed";
    on_a_machine(name, || {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let before = etc();
        let program = Program::start(&[]);
        assert!(is_ours(), "{}", resolv_conf());
        program.stop();
        assert_eq!(etc(), before);
        let program = Program::start(&[]);
        assert!(is_ours(), "{}", resolv_conf());
        program.kill();
        assert!(is_ours());
        let restored =
            Command::new(env!("CARGO_BIN_EXE_ztun")).args(["restore", "--tun", TUN]).output().unwrap();
        assert!(restored.status.success(), "{restored:?}");
        assert_eq!(etc(), before);
        for arguments in [["--dns", "off"], ["--dns", "direct"], ["--route", "10.0.0.0/8"]] {
            let program = Program::start(&arguments);
            assert_eq!(etc(), before, "{arguments:?}");
            program.stop();
        }
    });
}

/// F20
#[test]
fn the_program_sees_at_once_what_another_one_writes() {
    on_a_machine("the_program_sees_at_once_what_another_one_writes", || {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        for mounted in [false, true] {
            if mounted {
                mount_file(LAN);
            }
            let mut program = Program::start(&[]);
            for number in 1..4 {
                let theirs = format!("search lan\nnameserver 172.16.0.{number}\n");
                if mounted {
                    fs::write("/run/outside/resolv.conf", &theirs).unwrap();
                } else {
                    fs::write("/etc/resolv.conf.theirs", &theirs).unwrap();
                    fs::rename("/etc/resolv.conf.theirs", RESOLV_CONF).unwrap();
                }
                program.wait_for("another program has replaced");
                assert!(is_ours(), "{}", resolv_conf());
            }
            program.stop();
            assert_eq!(resolv_conf(), "search lan\nnameserver 172.16.0.3\n");
        }
    });
}
