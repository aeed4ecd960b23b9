//! Contestants and servers: how each is started, and what it uses of the machine.

use crate::net::{DEVICE, Site, TARGET, ip, run, within};
use crate::{Res, target};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Who is measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Program {
    /// ztun to the SOCKS5 server.
    Ztun,
    /// tun2proxy to the same.
    Tun2proxy,
    /// The app itself speaks SOCKS5 to it.
    None,
    /// ztun with `any -> direct`.
    Direct,
    /// The plain relay in its place.
    Relay,
}

impl Program {
    pub(crate) const ALL: [Program; 5] =
        [Program::Ztun, Program::Tun2proxy, Program::None, Program::Direct, Program::Relay];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Program::Ztun => "ztun",
            Program::Tun2proxy => "tun2proxy",
            Program::None => "none",
            Program::Direct => "direct",
            Program::Relay => "relay",
        }
    }

    /// Whether there is a tunnel and a SOCKS5 server behind it.
    pub(crate) fn is_tunnel(self) -> bool {
        matches!(self, Program::Ztun | Program::Tun2proxy)
    }

    /// Whether the app's connections go to where they are meant to without the app knowing of a proxy.
    pub(crate) fn is_direct(self) -> bool {
        matches!(self, Program::Direct | Program::Relay)
    }

    /// Where the app finds the targets.
    pub(crate) fn target(self) -> Ipv4Addr {
        match self {
            Program::Relay => Ipv4Addr::LOCALHOST,
            Program::Ztun | Program::Tun2proxy | Program::None | Program::Direct => TARGET,
        }
    }
}

/// The SOCKS5 server that all go through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Server {
    /// `ztun proxy`.
    Embedded,
    /// Dante.
    Danted,
    /// microsocks: TCP only, copies 1 KB at a time.
    Microsocks,
}

impl Server {
    pub(crate) const ALL: [Server; 3] = [Server::Embedded, Server::Danted, Server::Microsocks];
    pub(crate) const PORT: u16 = 1080;

    pub(crate) fn name(self) -> &'static str {
        match self {
            Server::Embedded => "embedded",
            Server::Danted => "danted",
            Server::Microsocks => "microsocks",
        }
    }

    pub(crate) fn carries_datagrams(self) -> bool {
        self != Server::Microsocks
    }
}

/// A process that ends with this value.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(command: &mut Command, dir: &Path, name: &str) -> Res<Running> {
        let log = dir.join(format!("{name}.log"));
        command.stderr(File::create(&log)?);
        Ok(Running { child: command.spawn()?, log })
    }

    /// Waits for the line `ready` on its standard output.
    fn started(mut self) -> Res<Running> {
        let output = self.child.stdout.take().ok_or("standard output is not piped")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        if line.trim() == "ready" { Ok(self) } else { Err(self.log_tail().into()) }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn has_said(&self, word: &str) -> bool {
        fs::read_to_string(&self.log).is_ok_and(|text| text.contains(word))
    }

    /// The end of what it wrote to standard error.
    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("{}: {}", self.log.display(), lines[lines.len().saturating_sub(5)..].join(" | "))
    }
}

impl Drop for Running {
    /// Asks first, so that it cleans up and takes its children along.
    fn drop(&mut self) {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap_or(0);
        if pid > 0 {
            // SAFETY: a signal to a child that has not been waited for, so its id is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_secs(5) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Paths that all starts need.
#[derive(Debug)]
pub(crate) struct Files {
    /// For logs and configuration files.
    pub(crate) dir: tempfile::TempDir,
    pub(crate) ztun: PathBuf,
    pub(crate) tun2proxy: PathBuf,
    /// This program.
    pub(crate) own: PathBuf,
}

impl Files {
    pub(crate) fn own(&self, namespace: &str, args: &[&str]) -> Command {
        let mut command = within(namespace, &self.own.to_string_lossy());
        command.args(args).stdout(Stdio::piped());
        command
    }

    pub(crate) fn start_target(&self, namespace: &str) -> Res<Running> {
        Running::start(&mut self.own(namespace, &["role-target"]), self.dir.path(), "target")?.started()
    }

    pub(crate) fn start_server(&self, server: Server, namespace: &str) -> Res<Running> {
        let port = Server::PORT.to_string();
        let mut command = match server {
            Server::Embedded => {
                let mut command = within(namespace, &self.ztun.to_string_lossy());
                command.args(["proxy", "--log-level", "warn", "--listen", &format!("0.0.0.0:{port}")]);
                // Two descriptors each, and a few.
                command.args(["--max-connections", "9000"]);
                command
            }
            Server::Danted => {
                let file = self.dir.path().join("danted.conf");
                let text = format!(
                    "logoutput: stderr\nerrorlog: stderr\ninternal: 0.0.0.0 port = {port}\nexternal: {TARGET}\nclientmethod: none\nsocksmethod: none\n\
                     user.privileged: root\nuser.unprivileged: nobody\n\
                     client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 log: error }}\nsocks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 log: error }}\n"
                );
                fs::write(&file, text)?;
                let mut command = within(namespace, "danted");
                command.arg("-f").arg(file);
                command
            }
            Server::Microsocks => {
                let mut command = within(namespace, "microsocks");
                command.args(["-p", &port]);
                command
            }
        };
        Running::start(command.stdout(Stdio::null()), self.dir.path(), server.name())
    }

    /// Starts a contestant that leads to the SOCKS5 server at `port`; there is no process where the app goes to the server itself.
    pub(crate) fn start(&self, program: Program, site: &Site, port: u16) -> Res<Option<Running>> {
        let proxy = format!("socks5://{}", SocketAddrV4::new(site.server, port));
        let mut command = match program {
            Program::None => return Ok(None),
            Program::Ztun | Program::Direct => {
                let mut command = within(&site.name, &self.ztun.to_string_lossy());
                command.args(["--tun", DEVICE, "--socks5", &proxy]);
                command.env("ZTUN_RUN_DIR", self.dir.path().join(program.name()));
                if program == Program::Direct {
                    command.args(["--rule", "any -> direct"]);
                }
                command
            }
            Program::Tun2proxy => {
                let mut command = within(&site.name, &self.tun2proxy.to_string_lossy());
                // Without an MSS its uploads come in segments of 536 octets.
                command.args([
                    "--tun",
                    DEVICE,
                    "--proxy",
                    &proxy,
                    "--max-sessions",
                    "65000",
                    "--tcp-mss",
                    "1460",
                    "-v",
                    "error",
                ]);
                command
            }
            Program::Relay => {
                let target = TARGET.to_string();
                let mut command = self.own(&site.name, &["role-relay", "--target", &target]);
                return Ok(Some(Running::start(&mut command, self.dir.path(), program.name())?.started()?));
            }
        };
        let running = Running::start(command.stdout(Stdio::null()), self.dir.path(), program.name())?;
        if program == Program::Tun2proxy {
            route_by_hand(&site.name)?;
        }
        self.wait_until_it_carries(program, site, running).map(Some)
    }

    fn wait_until_it_carries(&self, program: Program, site: &Site, mut running: Running) -> Res<Running> {
        let start = Instant::now();
        loop {
            let target = program.target().to_string();
            let probe = run(&mut self.own(&site.name, &["role-load", "probe", "--target", &target]));
            // The targets can be reached before a device is there: then it is the device that is waited for.
            let routed = match program {
                Program::Ztun | Program::Direct => running.has_said("ready"),
                Program::Tun2proxy | Program::None | Program::Relay => true,
            };
            let error = match probe {
                Ok(_) if routed => return Ok(running),
                Ok(_) => "it does not say that it is ready".into(),
                Err(error) => error,
            };
            if start.elapsed() > Duration::from_secs(20) || !running.is_alive() {
                return Err(
                    format!("{} does not carry: {error}; {}", program.name(), running.log_tail()).into()
                );
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The server accepts connections.
    pub(crate) fn wait_for_server(&self, site: &Site, server: &Running) -> Res<()> {
        let start = Instant::now();
        let socks = SocketAddrV4::new(site.server, Server::PORT).to_string();
        let target = TARGET.to_string();
        let args = ["role-load", "probe", "--target", &target, "--socks", &socks];
        while let Err(error) = run(&mut self.own(&site.name, &args)) {
            if start.elapsed() > Duration::from_secs(20) {
                return Err(
                    format!("the SOCKS5 server does not serve: {error}; {}", server.log_tail()).into()
                );
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// What ztun does by itself: the device comes up, and the targets are behind it.
fn route_by_hand(namespace: &str) -> Res<()> {
    let start = Instant::now();
    while let Err(error) = ip(&["-n", namespace, "link", "set", DEVICE, "up", "mtu", "1500"]) {
        if start.elapsed() > Duration::from_secs(5) {
            return Err(error);
        }
        thread::sleep(Duration::from_millis(20));
    }
    ip(&["-n", namespace, "addr", "replace", "198.18.0.1/16", "dev", DEVICE])?;
    ip(&["-n", namespace, "route", "replace", &format!("{TARGET}/32"), "dev", DEVICE])
}

/// The words of `/proc/PID/stat` from the third (the state) on.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// CPU seconds of a process, its descendants, and those of them that have ended and were waited for.
pub(crate) fn cpu_of_tree(root: u32) -> f64 {
    // SAFETY: sysconf has no preconditions.
    let hertz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as f64;
    // pid -> (parent, ticks). The kernel may be built without the list of a process's children.
    let mut processes = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Some(words) = stat(pid) else { continue };
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0);
        // Counted from the state: ppid, and utime, stime, cutime, cstime.
        processes.insert(pid, (number(1) as u32, number(11) + number(12) + number(13) + number(14)));
    }
    let mut pids = vec![root];
    let mut ticks = 0.0;
    while let Some(pid) = pids.pop() {
        ticks += processes.get(&pid).map_or(0.0, |(_, ticks)| *ticks);
        pids.extend(processes.iter().filter(|(_, (parent, _))| *parent == pid).map(|(child, _)| *child));
    }
    ticks / hertz
}

/// Resident KB of a process.
pub(crate) fn resident_kb(pid: u32) -> Res<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// The port of the SOCKS5 server that is its own target.
pub(crate) const IDLE_PORT: u16 = target::TERMINATOR;
