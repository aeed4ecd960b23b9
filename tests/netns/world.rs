//! Two machines of the test's own, joined by a wire, with real programs on them.
//!
//! ```text
//!  client namespace                         server namespace
//!  10.77.0.1  fd77::1  eth0 ──────── eth0  10.77.0.2  fd77::2
//!  ztun, apps, local proxies                proxies; on lo the targets 203.0.113.10, 2001:db8::10,
//!                                           and 203.0.113.66, where TCP is swallowed
//! ```
//!
//! Everything that is started is killed by its process id when its guard is dropped, also when a test fails, and by the kernel when the
//! test program itself is killed; the namespaces go with the world, and those of a killed test program with the next world.
//! Nothing waits for a time: [`until`] polls for a condition. Nothing waits without end: programs, threads and sockets have a time limit, and
//! a test that waits too long fails.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub const ZTUN: &str = env!("CARGO_BIN_EXE_ztun");
pub const TARGET: &str = "203.0.113.10";
pub const TARGET6: &str = "2001:db8::10";
/// SYNs to it get no answer.
pub const SILENT: &str = "203.0.113.66";
pub const PROXY: &str = "10.77.0.2:1080";

/// How long a test waits for anything before it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long a shell line or a thread may take: a gigabyte on a busy machine.
pub const LONGEST: Duration = Duration::from_secs(180);
/// Names of namespaces are this, the test program's process id, a number and a role.
const PREFIX: &str = "ztun-test-";

/// A network namespace; deleted when dropped.
pub struct Namespace(String);

impl Namespace {
    fn new(role: &str) -> Namespace {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{role}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]));
        Namespace(name)
    }

    /// Its name, for `ip`.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// A command in the namespace; it does not outlive the thread that starts it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]).env_remove("ZTUN_SOCKS5").env_remove("RUST_LOG");
        // SAFETY: prctl with numbers only: allowed between fork and exec.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            })
        };
        command
    }

    /// Runs a shell line to its end; gives what it wrote. One that takes too long is killed: status 137.
    pub fn sh(&self, line: &str) -> Output {
        let limit = LONGEST.as_secs().to_string();
        self.command("timeout").args(["-s", "KILL", &limit, "bash", "-c", line]).output().unwrap()
    }

    /// The output of a shell line that succeeds.
    pub fn ok(&self, line: &str) -> String {
        let output = self.sh(line);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {}: {errors}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `act` on a thread that has entered the namespace: sockets that it opens stay there.
    pub fn inside<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = self.spawn(act);
        until_within(LONGEST, "a thread in the namespace ends", || thread.is_finished());
        thread.join().unwrap()
    }

    /// Starts `act` on a thread that has entered the namespace, and does not wait for it.
    pub fn spawn<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let namespace = File::open(format!("/run/netns/{}", self.0)).unwrap();
        thread::spawn(move || {
            // SAFETY: setns touches no memory; the thread alone changes its namespace.
            let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "setns: {}", std::io::Error::last_os_error());
            act()
        })
    }

    pub fn connect(&self, to: &str) -> std::io::Result<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        self.inside(move || TcpStream::connect_timeout(&to, PATIENCE)).map(patient)
    }

    pub fn listen(&self, at: &str) -> TcpListener {
        let at = at.to_owned();
        let listener = self.inside(move || TcpListener::bind(at).unwrap());
        // The library's own backlog is short for thousands of connections at once.
        socket2::SockRef::from(&listener).listen(4_096).unwrap();
        listener
    }

    /// A datagram socket at `at`.
    pub fn datagrams(&self, at: &str) -> UdpSocket {
        let at = at.to_owned();
        let socket = self.inside(move || UdpSocket::bind(at).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Everything of its network that ztun could leave something in.
    pub fn state(&self) -> String {
        self.ok("ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; ip addr show; \
                 cat /proc/sys/net/ipv6/conf/*/disable_ipv6; cat /etc/resolv.conf; nft list ruleset")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// A program that is running; killed when dropped.
pub struct Running {
    pub child: Child,
    log: PathBuf,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    pub fn signal(&self, signal: i32) {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: kill takes numbers; the child is ours and has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Its exit status, when it ends by itself.
    pub fn end(&mut self) -> Option<i32> {
        let mut status = None;
        until("the program ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }

    /// Asks it to stop.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal(libc::SIGTERM);
        self.end()
    }

    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Processor time so far, in hundredths of a second.
    pub fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// Resident memory, KiB.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
        if thread::panicking() {
            eprintln!("---- {}:\n{}", self.log.display(), self.log());
        }
    }
}

pub struct World {
    pub client: Namespace,
    pub server: Namespace,
    pub dir: tempfile::TempDir,
    logs: AtomicU32,
    /// Sockets of the targets, to end their threads.
    targets: Mutex<Vec<OwnedFd>>,
    _turn: MutexGuard<'static, ()>,
}

/// The world, or nothing when namespaces are to be left out, which is said.
pub fn world() -> Option<World> {
    if std::env::var_os("ZTUN_SKIP_NETNS").is_some_and(|value| value == "1") {
        eprintln!("skipped: ZTUN_SKIP_NETNS=1");
        return None;
    }
    // SAFETY: geteuid has no arguments and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    assert!(
        root,
        "network namespaces need root: run as root, or set ZTUN_SKIP_NETNS=1 to leave these tests out"
    );
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    sweep();
    let (client, server) = (Namespace::new("c"), Namespace::new("s"));
    let pair = [
        "link", "add", "eth0", "netns", &client.0, "type", "veth", "peer", "name", "eth0", "netns", &server.0,
    ];
    run(Command::new("ip").args(pair));
    for (namespace, host) in [(&client, 1), (&server, 2)] {
        namespace.ok(&format!(
            "ip link set lo up && ip link set eth0 addrgenmode none && ip link set eth0 up && \
             ip addr add 10.77.0.{host}/24 dev eth0 && ip addr add fd77::{host}/64 dev eth0 nodad"
        ));
    }
    client.ok("ip route add default via 10.77.0.2 && ip -6 route add default via fd77::2");
    server.ok("ip addr add 203.0.113.10/32 dev lo && ip addr add 203.0.113.66/32 dev lo && \
               ip -6 addr add 2001:db8::10/128 dev lo && \
               nft 'add table inet t; add chain inet t in { type filter hook input priority 0; }; \
                    add rule inet t in ip daddr 203.0.113.66 meta l4proto tcp drop'");
    let dir = tempfile::tempdir().unwrap();
    Some(World { client, server, dir, logs: AtomicU32::new(0), targets: Mutex::default(), _turn: turn })
}

/// Deletes the namespaces of test programs that were killed.
fn sweep() {
    let Ok(names) = fs::read_dir("/run/netns") else { return };
    for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            drop(Namespace(name));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for socket in self.targets.get_mut().unwrap_or_else(PoisonError::into_inner) {
            // SAFETY: shutdown takes numbers; the descriptor is ours. A thread that waits on it comes back with an error.
            unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
        }
    }
}

impl World {
    /// Starts a program whose output goes into a file.
    pub fn start(&self, command: Command) -> Running {
        let log = self.dir.path().join(format!("{}.log", self.logs.fetch_add(1, Ordering::Relaxed)));
        let out = File::create(&log).unwrap();
        let mut running = self.start_to(command, out.try_clone().unwrap().into(), out.into());
        running.log = log;
        running
    }

    /// Starts a program whose output goes elsewhere; its log is empty.
    pub fn start_to(&self, mut command: Command, stdout: Stdio, stderr: Stdio) -> Running {
        command.env("ZTUN_RUN_DIR", self.dir.path().join("run"));
        let child = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn().unwrap();
        Running { child, log: "/dev/null".into() }
    }

    /// Starts ztun in the client namespace; it is ready.
    pub fn ztun(&self, arguments: &str) -> Running {
        let mut command = self.client.command(ZTUN);
        command.args(arguments.split_whitespace());
        self.ready(command)
    }

    /// Starts a router; it is ready.
    pub fn ready(&self, command: Command) -> Running {
        let mut ztun = self.start(command);
        until("ztun is ready", || {
            let ended = ztun.child.try_wait().unwrap();
            assert!(ended.is_none(), "ztun ended: {}", ztun.log());
            ztun.log().contains("ready")
        });
        ztun
    }

    pub fn microsocks(&self, namespace: &Namespace, at: &str) -> Running {
        let (ip, port) = at.rsplit_once(':').unwrap();
        let mut command = namespace.command("microsocks");
        command.args(["-i", ip, "-p", port]);
        self.listening(namespace, command, at)
    }

    /// Dante at `at`, with `eth0` as its way out.
    pub fn dante(&self, namespace: &Namespace, at: &str, user: &str) -> Running {
        let (ip, port) = at.rsplit_once(':').unwrap();
        let path = self.dir.path().join(format!("danted-{port}.conf"));
        let text = format!(
            "logoutput: stderr\ninternal: {ip} port = {port}\nexternal: eth0\nclientmethod: none\nsocksmethod: none\n\
             user.privileged: root\nuser.unprivileged: {user}\n\
             client pass {{ from: 0/0 to: 0/0 }}\nsocks pass {{ from: 0/0 to: 0/0 }}\n"
        );
        fs::write(&path, text).unwrap();
        let mut command = namespace.command("danted");
        command
            .args(["-f", path.to_str().unwrap(), "-p"])
            .arg(self.dir.path().join(format!("danted-{port}.pid")));
        self.listening(namespace, command, at)
    }

    /// The embedded proxy.
    pub fn embedded(&self, namespace: &Namespace, at: &str) -> Running {
        let mut command = namespace.command(ZTUN);
        command.args(["proxy", "--listen", at]);
        self.listening(namespace, command, at)
    }

    /// Starts a program that listens at `at`, and waits until it does.
    pub fn listening(&self, namespace: &Namespace, command: Command, at: &str) -> Running {
        let mut running = self.start(command);
        until("the server listens", || {
            assert!(running.child.try_wait().unwrap().is_none(), "{}", running.log());
            namespace.ok("ss -Hltn").contains(at)
        });
        running
    }

    /// Serves each connection to `at` on a thread of its own.
    pub fn serve(&self, at: &str, serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) {
        let listener = self.server.listen(at);
        self.targets.lock().unwrap().push(listener.try_clone().unwrap().into());
        let serve = Arc::new(serve);
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let serve = Arc::clone(&serve);
                // A client that goes away early is its own test's business.
                thread::spawn(move || drop(serve(patient(stream))));
            }
        });
    }

    /// An HTTP server on the targets: GET /file gives `file`, PUT answers with the SHA-256 of what it got.
    pub fn http(&self, at: &str, file: &Path) {
        let file = file.to_owned();
        self.serve(at, move |stream| serve_http(stream, &file));
    }

    /// A server that gives back what it gets, to any number of clients.
    pub fn echo(&self, at: &str) {
        self.serve(at, |stream| std::io::copy(&mut &stream, &mut &stream).map(drop));
    }

    /// A target for datagrams: `answer` makes an answer of each.
    pub fn answer(&self, at: &str, answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) {
        let socket = self.server.datagrams(at);
        // Its end is the end of the world.
        socket.set_read_timeout(None).unwrap();
        self.targets.lock().unwrap().push(socket.try_clone().unwrap().into());
        thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok((octets, from)) = socket.recv_from(&mut buffer) {
                // The way back may be gone with its test.
                drop(socket.send_to(&answer(&buffer[..octets]), from));
            }
        });
    }

    /// A file of random octets.
    pub fn file(&self, megabytes: u64) -> PathBuf {
        let path = self.dir.path().join(format!("{megabytes}mb"));
        if !path.exists() {
            let mut random = File::open("/dev/urandom").unwrap().take(megabytes << 20);
            std::io::copy(&mut random, &mut File::create(&path).unwrap()).unwrap();
        }
        path
    }
}

fn serve_http(mut stream: TcpStream, file: &Path) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut octet = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut octet)?;
        head.push(octet[0]);
    }
    let head = String::from_utf8(head).unwrap();
    if head.starts_with("PUT") {
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        let sum = sha256(Stdio::piped(), |input| {
            std::io::copy(&mut (&stream).take(length.parse().unwrap()), input).unwrap();
        });
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{sum}", sum.len())
    } else {
        let mut file = File::open(file)?;
        let length = file.metadata()?.len();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
        std::io::copy(&mut file, &mut stream).map(drop)
    }
}

fn sha256(input: Stdio, feed: impl FnOnce(&mut dyn Write)) -> String {
    let mut child = Command::new("sha256sum").stdin(input).stdout(Stdio::piped()).spawn().unwrap();
    if let Some(mut stdin) = child.stdin.take() {
        feed(&mut stdin);
    }
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

pub fn sha256_of(file: &Path) -> String {
    sha256(File::open(file).unwrap().into(), |_| {})
}

/// A connection on which nothing waits without end.
pub fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The next connection to `listener`.
pub fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    listener.set_nonblocking(true).unwrap();
    let mut accepted = None;
    until("a connection comes", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (stream, from) = accepted.unwrap();
    stream.set_nonblocking(false).unwrap();
    (patient(stream), from)
}

/// Says one octet and hears one.
pub fn talk(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// Whether an error says that a time limit of the test's own has passed: silence instead of an answer.
pub fn is_silence(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

/// Waits for a condition; the test fails when it does not come.
pub fn until(what: &str, condition: impl FnMut() -> bool) {
    until_within(PATIENCE, what, condition);
}

/// Waits `limit` for a condition; the test fails when it does not come.
pub fn until_within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
