//! Contestants and SOCKS5 servers: who they are, and how each is started.

use crate::net::{DEVICE, Site, TARGET, ip, run, within};
use crate::process::Running;
use crate::{Res, target};
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Who is measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Program {
    /// ztun to the SOCKS5 server.
    Ztun,
    /// hev-socks5-tunnel to the same.
    Hev,
    /// tun2proxy to the same.
    Tun2proxy,
    /// The app itself speaks SOCKS5 to it.
    None,
    /// The three tunnels with a device of MTU 8500.
    ZtunJumbo,
    HevJumbo,
    Tun2proxyJumbo,
    /// ztun with `any -> direct`.
    Direct,
    /// The plain relay in its place.
    Relay,
    /// pasta in its place.
    Pasta,
}

/// The program behind a contestant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Ztun,
    Hev,
    Tun2proxy,
    None,
    Relay,
    Pasta,
}

impl Program {
    pub(crate) const ALL: [Program; 10] = [
        Program::Ztun,
        Program::Hev,
        Program::Tun2proxy,
        Program::None,
        Program::ZtunJumbo,
        Program::HevJumbo,
        Program::Tun2proxyJumbo,
        Program::Direct,
        Program::Relay,
        Program::Pasta,
    ];

    /// What the options and messages call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Program::Ztun => "ztun",
            Program::Hev => "hev",
            Program::Tun2proxy => "tun2proxy",
            Program::None => "none",
            Program::ZtunJumbo => "ztun-8500",
            Program::HevJumbo => "hev-8500",
            Program::Tun2proxyJumbo => "tun2proxy-8500",
            Program::Direct => "direct",
            Program::Relay => "relay",
            Program::Pasta => "pasta",
        }
    }

    /// What the tables call it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Program::None => "no tunnel",
            Program::Direct => "ztun direct",
            Program::Relay => "plain relay",
            Program::Ztun
            | Program::Hev
            | Program::Tun2proxy
            | Program::ZtunJumbo
            | Program::HevJumbo
            | Program::Tun2proxyJumbo
            | Program::Pasta => self.name(),
        }
    }

    fn kind(self) -> Kind {
        match self {
            Program::Ztun | Program::ZtunJumbo | Program::Direct => Kind::Ztun,
            Program::Hev | Program::HevJumbo => Kind::Hev,
            Program::Tun2proxy | Program::Tun2proxyJumbo => Kind::Tun2proxy,
            Program::None => Kind::None,
            Program::Relay => Kind::Relay,
            Program::Pasta => Kind::Pasta,
        }
    }

    fn mtu(self) -> u16 {
        match self {
            Program::ZtunJumbo | Program::HevJumbo | Program::Tun2proxyJumbo => 8500,
            Program::Ztun
            | Program::Hev
            | Program::Tun2proxy
            | Program::None
            | Program::Direct
            | Program::Relay
            | Program::Pasta => 1500,
        }
    }

    /// Whether it is ztun: what it fails in is tried again in every round.
    pub(crate) fn is_ours(self) -> bool {
        self.kind() == Kind::Ztun
    }

    /// Whether it is measured in a group of rows.
    pub(crate) fn takes_part(self, group: &str) -> bool {
        match self {
            Program::Ztun | Program::Hev | Program::Tun2proxy => true,
            Program::None => group != "idle",
            Program::ZtunJumbo | Program::HevJumbo | Program::Tun2proxyJumbo => group == "bulk",
            Program::Direct | Program::Relay | Program::Pasta => {
                ["bulk", "latency", "connections"].contains(&group)
            }
        }
    }

    /// Whether its app runs in a namespace of its own, which the program joins to that of [`Site::name`].
    pub(crate) fn has_inner_namespace(self) -> bool {
        self == Program::Pasta
    }

    /// Where the app finds the targets.
    pub(crate) fn target(self) -> Ipv4Addr {
        if self == Program::Relay { Ipv4Addr::LOCALHOST } else { TARGET }
    }
}

/// The SOCKS5 server that all streams go through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Server {
    /// `ztun proxy`.
    Embedded,
    /// Dante.
    Danted,
    /// microsocks: copies 1 KB at a time.
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
}

/// Paths that all starts need.
#[derive(Debug)]
pub(crate) struct Files {
    /// For logs and configuration files.
    pub(crate) dir: tempfile::TempDir,
    pub(crate) ztun: PathBuf,
    hev: Option<PathBuf>,
    tun2proxy: Option<PathBuf>,
    pasta: Option<PathBuf>,
    /// This program.
    own: PathBuf,
    /// The limit on open files.
    limit: u64,
}

impl Files {
    pub(crate) fn find(ztun: PathBuf, limit: u64) -> Res<Files> {
        let own = std::env::current_exe()?;
        // TARGET/release/deps/relay-1234: `./build-all.sh bench` builds hev beside it.
        let hev = own.ancestors().nth(3).map(|target| target.join("hev/release/hev"));
        Ok(Files {
            dir: tempfile::tempdir()?,
            ztun,
            hev: hev.filter(|path| path.exists()),
            tun2proxy: on_path("tun2proxy-bin"),
            pasta: on_path("pasta"),
            own,
            limit,
        })
    }

    /// Why a contestant cannot be measured here.
    pub(crate) fn missing(&self, program: Program) -> Option<&'static str> {
        match program.kind() {
            Kind::Hev if self.hev.is_none() => {
                Some("hev-socks5-tunnel is not built: ./build-all.sh bench does it")
            }
            Kind::Tun2proxy if self.tun2proxy.is_none() => {
                Some("no tun2proxy-bin: cargo install tun2proxy --locked")
            }
            Kind::Pasta if self.pasta.is_none() => Some("no pasta: Debian's package passt"),
            Kind::Ztun | Kind::Hev | Kind::Tun2proxy | Kind::None | Kind::Relay | Kind::Pasta => None,
        }
    }

    /// Versions of all that are there, in one line.
    pub(crate) fn versions(&self) -> String {
        let said = |path: &Path| crate::report::said(Command::new(path).arg("--version"));
        let mut versions = vec![said(&self.ztun)];
        // The crate that it is built from carries it.
        versions.extend(self.hev.as_ref().map(|_| "hev-socks5-tunnel 2.19.3 (pipelining)".into()));
        // Without its time of compilation.
        let name = |path: &PathBuf| said(path).split(" (").next().unwrap_or_default().to_owned();
        versions.extend(self.tun2proxy.as_ref().map(name));
        let package = || crate::report::said(Command::new("dpkg-query").args(["-Wf", "${Version}", "passt"]));
        versions.extend(self.pasta.as_ref().map(|_| format!("pasta {}", package())));
        versions.join(", ")
    }

    /// This program in another role.
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
        let proxy = SocketAddrV4::new(site.server, port);
        let path = |path: &Option<PathBuf>| {
            path.as_ref().map_or_else(String::new, |path| path.display().to_string())
        };
        let mut command = match program.kind() {
            Kind::None => return Ok(None),
            Kind::Ztun => self.ztun(program, site, proxy),
            Kind::Hev => {
                let mut command = within(&site.name, &path(&self.hev));
                command.arg(self.configure_hev(program, proxy)?);
                command
            }
            Kind::Tun2proxy => {
                let mut command = within(&site.name, &path(&self.tun2proxy));
                command.args(["--tun", DEVICE, "--proxy", &format!("socks5://{proxy}")]);
                command.args(["--max-sessions", "65000", "-v", "error", "--mtu", &program.mtu().to_string()]);
                // Without an MSS its uploads come in segments of 536 octets.
                command.args(["--tcp-mss", &(program.mtu() - 40).to_string()]);
                // It asks a public resolver instead of a private one, unless told whom.
                command.args(["--dns-addr", &TARGET.to_string()]);
                command
            }
            Kind::Pasta => {
                // Its own MTU, 65520: with 1500 it is several times slower.
                let mut command = within(&site.name, &path(&self.pasta));
                command.args([
                    "-f",
                    "-q",
                    "--config-net",
                    "-t",
                    "none",
                    "-u",
                    "none",
                    "-T",
                    "none",
                    "-U",
                    "none",
                ]);
                command.args(["--runas", "0", "--netns-only", "--netns"]);
                command.arg(Path::new("/run/netns").join(&site.app));
                command
            }
            Kind::Relay => {
                let target = TARGET.to_string();
                let mut command = self.own(&site.name, &["role-relay", "--target", &target]);
                return Ok(Some(Running::start(&mut command, self.dir.path(), program.name())?.started()?));
            }
        };
        let running = Running::start(command.stdout(Stdio::null()), self.dir.path(), program.name())?;
        if matches!(program.kind(), Kind::Hev | Kind::Tun2proxy) {
            route_by_hand(&site.name, program.mtu())?;
        }
        self.wait_until_it_carries(program, site, running).map(Some)
    }

    fn ztun(&self, program: Program, site: &Site, proxy: SocketAddrV4) -> Command {
        let mut command = within(&site.name, &self.ztun.to_string_lossy());
        command.args(["--tun", DEVICE, "--socks5", &format!("socks5://{proxy}")]);
        command.args(["--mtu", &program.mtu().to_string()]);
        command.env("ZTUN_RUN_DIR", self.dir.path().join(program.name()));
        if program == Program::Direct {
            command.args(["--rule", "any -> direct"]);
        }
        command
    }

    /// Its defaults, but for device, server, MTU and the limit on open files; and pipelining, without which each of its greetings waits
    /// 200 ms in the kernel (MSG_MORE, and nothing follows).
    fn configure_hev(&self, program: Program, proxy: SocketAddrV4) -> Res<PathBuf> {
        let file = self.dir.path().join(format!("{}.yml", program.name()));
        let text = format!(
            "tunnel:\n  name: {DEVICE}\n  mtu: {}\n  ipv4: 198.18.0.1\nsocks5:\n  address: {}\n  port: {}\n  udp: 'udp'\n  pipeline: true\n\
             misc:\n  log-file: stderr\n  log-level: error\n  limit-nofile: {}\n",
            program.mtu(),
            proxy.ip(),
            proxy.port(),
            self.limit
        );
        fs::write(&file, text)?;
        Ok(file)
    }

    fn wait_until_it_carries(&self, program: Program, site: &Site, mut running: Running) -> Res<Running> {
        let start = Instant::now();
        loop {
            let target = program.target().to_string();
            let probe = run(&mut self.own(&site.app, &["role-load", "probe", "--target", &target]));
            // The targets can be reached before a device is there: then it is the device that is waited for.
            let routed = program.kind() != Kind::Ztun || running.has_said("ready");
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

/// On the path or where cargo puts programs.
fn on_path(name: &str) -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let mut places: Vec<PathBuf> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    places.extend(home.map(|home| home.join("bin")));
    places.into_iter().map(|place| place.join(name)).find(|path| path.exists())
}

/// What ztun does by itself: the device comes up, and the targets are behind it.
fn route_by_hand(namespace: &str, mtu: u16) -> Res<()> {
    let start = Instant::now();
    while let Err(error) = ip(&["-n", namespace, "link", "set", DEVICE, "up", "mtu", &mtu.to_string()]) {
        if start.elapsed() > Duration::from_secs(5) {
            return Err(error);
        }
        thread::sleep(Duration::from_millis(20));
    }
    ip(&["-n", namespace, "addr", "replace", "198.18.0.1/16", "dev", DEVICE])?;
    ip(&["-n", namespace, "route", "replace", &format!("{TARGET}/32"), "dev", DEVICE])
}

/// The port of the SOCKS5 server that is its own target.
pub(crate) const TERMINATOR_PORT: u16 = target::TERMINATOR;
