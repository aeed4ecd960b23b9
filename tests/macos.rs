//! ztun on a real Mac: a real utun, the real table of routes and the real name servers. Needs root: `sudo -E cargo test --locked --test macos`.
//!
//! Nothing outside of this machine is needed but by the one test that says so: what is captured is asked for at addresses that nobody has (RFC 5737), and
//! a proxy of the test's own answers for them. The tests share the machine's routes, so they run one after the other.

#![cfg(target_os = "macos")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "what ztun said is seen where a test fails")]
#![allow(clippy::disallowed_methods, reason = "tests of a real program need threads and a clock")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;
use ztun::host::LocalProxy;
use ztun::outbound::rule::Proto;

const ZTUN: &str = env!("CARGO_BIN_EXE_ztun");
const DEVICE: &str = "utun122";
const RUN_DIR: &str = "/var/run/ztun";
const ENTRY: &str = "State:/Network/Service/ztun/DNS";
/// Nothing in these tests takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

static MACHINE: Mutex<()> = Mutex::new(());

/// The machine, for this test alone, with nothing of an earlier one on it.
fn machine() -> MutexGuard<'static, ()> {
    let machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    run("/usr/bin/id", &["-u"], "").strip_suffix('\n').filter(|user| *user == "0").expect("run as root");
    restore();
    machine
}

fn output(program: &str, args: &[&str], input: &str) -> Output {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// What a program that must not fail says.
fn run(program: &str, args: &[&str], input: &str) -> String {
    let Output { status, stdout, stderr } = output(program, args, input);
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{program} {args:?}: {status}: {stderr}");
    String::from_utf8(stdout).unwrap()
}

fn restore() -> String {
    run(ZTUN, &["restore"], "")
}

/// All routes but those that the kernel makes and forgets for single neighbours: destination, gateway, flags, interface.
fn routes() -> Vec<String> {
    let mut routes = Vec::new();
    for family in ["inet", "inet6"] {
        let table = run("/usr/sbin/netstat", &["-rn", "-f", family], "");
        for line in table.lines().skip_while(|line| !line.starts_with("Destination")).skip(1) {
            let columns: Vec<&str> = line.split_whitespace().take(4).collect();
            let [_, _, flags, _] = columns[..] else { continue };
            if !flags.contains(['W', 'L']) {
                routes.push(columns.join(" "));
            }
        }
    }
    routes.sort();
    routes
}

/// Everything that a run changes.
#[derive(PartialEq, Eq, Debug)]
struct Seen {
    routes: Vec<String>,
    interfaces: String,
    /// What configd knows under ztun's key, and what the machine asks.
    names: (String, String),
    files: bool,
}

fn look() -> Seen {
    let show = |key: &str| run("/usr/sbin/scutil", &[], &format!("show {key}\nquit\n"));
    Seen {
        routes: routes(),
        interfaces: run("/sbin/ifconfig", &["-l"], ""),
        names: (show(ENTRY), show("State:/Network/Global/DNS")),
        files: std::fs::exists(RUN_DIR).unwrap(),
    }
}

/// Looks until the machine is as it was: configd and the kernel take their time.
fn is_again(before: &Seen) {
    for _ in 0..60 {
        if look() == *before {
            return;
        }
        // Not synchronisation: a pause between looks at what other programs do.
        thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(look(), *before);
}

/// A ztun; killed when dropped.
struct Ztun {
    child: Child,
    said: mpsc::Receiver<String>,
}

impl Ztun {
    /// Starts it, until it says `ready`.
    fn start(args: &[&str], ready: &str) -> Ztun {
        let mut child =
            Command::new(ZTUN).args(args).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (say, said) = mpsc::channel();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                eprintln!("ztun: {line}");
                // Nobody has to listen to the end.
                let _ = say.send(line);
            }
        });
        let ztun = Ztun { child, said };
        ztun.wait_for(ready);
        ztun
    }

    fn wait_for(&self, text: &str) -> String {
        loop {
            let line = self.said.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{text}: {error}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    fn terminate(mut self) {
        run("/bin/kill", &["-TERM", &self.child.id().to_string()], "");
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Ztun {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A SOCKS5 server that answers each request for a connection itself: with a page that says what was asked for.
fn oracle() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || answer(stream));
        }
    });
    at
}

fn answer(mut stream: TcpStream) -> Option<()> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).ok()?;
    stream.read_exact(&mut vec![0; head[1].into()]).ok()?;
    stream.write_all(&[5, 0]).ok()?;
    let mut request = [0; 4];
    stream.read_exact(&mut request).ok()?;
    let to: IpAddr = match request[3] {
        1 => {
            let mut octets = [0; 4];
            stream.read_exact(&mut octets).ok()?;
            octets.into()
        }
        4 => {
            let mut octets = [0; 16];
            stream.read_exact(&mut octets).ok()?;
            octets.into()
        }
        _ => return None,
    };
    stream.read_exact(&mut head).ok()?;
    if request[1] != 1 {
        return stream.write_all(&[5, 7, 0, 1, 0, 0, 0, 0, 0, 0]).ok();
    }
    stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).ok()?;
    let page = format!("{to} port {}", u16::from_be_bytes(head));
    stream.read_exact(&mut [0]).ok()?;
    let header = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", page.len());
    stream.write_all((header + &page).as_bytes()).ok()
}

fn curl(url: &str) -> Output {
    output("/usr/bin/curl", &["-sS", "-g", "--noproxy", "*", "--max-time", "30", url], "")
}

fn page(url: &str) -> String {
    let Output { status, stdout, stderr } = curl(url);
    assert!(status.success(), "{url}: {status}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// A run through the proxy of this process. That makes no connections of its own, and what this process starts, curl among it, is not to be taken for
/// a part of it.
fn start(proxy: SocketAddr, more: &[&str]) -> Ztun {
    let proxy = proxy.to_string();
    Ztun::start(&[&["--socks5", &proxy, "--local-proxy", "off"], more].concat(), "ready")
}

/// The routes that lead to `to`, as netstat shows them.
fn leads(seen: &Seen, to: &str, by: &str) -> bool {
    seen.routes.iter().any(|route| route.starts_with(&format!("{to} ")) && route.ends_with(by))
}

#[test]
fn a_run_captures_everything_and_leaves_the_machine_as_it_was() {
    let _machine = machine();
    let before = look();
    let ztun = start(oracle(), &[]);
    let during = look();
    let device = run("/sbin/ifconfig", &[DEVICE], "");
    assert!(device.contains("UP") && device.contains("mtu 1500"), "{device}");
    assert!(device.contains("inet 198.18.0.1") && device.contains("inet6 fd7a:7a74:756e::1"), "{device}");
    for to in ["1", "2/7", "4/6", "8/5", "16/4", "32/3", "64/2", "128.0/1"] {
        assert!(leads(&during, to, DEVICE), "{to}: {during:#?}");
    }
    for to in ["2000::/3", "8000::/1"] {
        assert!(leads(&during, to, DEVICE), "{to}: {during:#?}");
    }
    let kept = before.routes.iter().all(|route| during.routes.contains(route));
    assert!(kept, "nobody else's route is touched: {before:#?} {during:#?}");
    assert!(during.names.0.contains("198.18.0.2"), "{during:#?}");
    assert_eq!(page("http://192.0.2.1/"), "192.0.2.1 port 80");
    assert_eq!(page("http://192.0.2.1:8080/"), "192.0.2.1 port 8080");
    assert_eq!(page("http://[2001:db8::1]/"), "2001:db8::1 port 80");
    let status = run(ZTUN, &["status"], "");
    assert!(status.contains(DEVICE), "{status}");
    ztun.terminate();
    is_again(&before);
}

#[test]
fn what_a_killed_run_leaves_is_undone_with_its_journal_and_without() {
    let _machine = machine();
    let before = look();
    for journal in [true, false] {
        // Outside of the tunnel are a proxy that is elsewhere, too, and what is bypassed.
        let ztun = start(oracle(), &["--bypass", "203.0.113.0/24"]);
        assert!(look().routes.iter().any(|route| route.starts_with("203.0.113")));
        ztun.kill();
        let left = look();
        assert!(!left.interfaces.split_whitespace().any(|name| name == DEVICE), "{left:#?}");
        assert_ne!(left, before);
        if !journal {
            std::fs::remove_dir_all(RUN_DIR).unwrap();
        }
        let said = restore();
        assert!(said.contains("203.0.113.0/24"), "{said}");
        is_again(&before);
    }
}

#[test]
fn the_next_run_undoes_what_a_killed_one_has_left() {
    let _machine = machine();
    let before = look();
    start(oracle(), &["--bypass", "203.0.113.0/24"]).kill();
    let ztun = start(oracle(), &[]);
    assert!(!look().routes.iter().any(|route| route.starts_with("203.0.113")));
    assert_eq!(page("http://192.0.2.1/"), "192.0.2.1 port 80");
    ztun.terminate();
    is_again(&before);
}

#[test]
fn with_the_kill_switch_what_was_captured_is_refused_when_ztun_is_gone() {
    let _machine = machine();
    let before = look();
    let ztun = start(oracle(), &["--kill-switch"]);
    assert_eq!(page("http://192.0.2.1/"), "192.0.2.1 port 80");
    ztun.kill();
    let refused = curl("http://192.0.2.1/");
    assert_eq!(refused.status.code(), Some(7), "{}", String::from_utf8_lossy(&refused.stderr));
    let ztun = start(oracle(), &["--kill-switch"]);
    assert_eq!(page("http://192.0.2.1/"), "192.0.2.1 port 80");
    ztun.terminate();
    is_again(&before);
}

/// Needs the internet: the proxy runs on this machine, and its own connections must not come back through the tunnel.
#[test]
fn a_proxy_on_this_machine_is_kept_out_of_its_own_tunnel() {
    let _machine = machine();
    let host = "github.com";
    let addr = (host, 443).to_socket_addrs().unwrap().find(SocketAddr::is_ipv4).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    drop(listener);
    let proxy = Ztun::start(&["proxy", "--listen", &at.to_string()], &at.to_string());
    let ztun = Ztun::start(&["--socks5", &at.to_string()], "ready");
    let resolve = format!("{host}:443:{}", addr.ip());
    let url = format!("https://{host}/");
    let args =
        ["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "60", "--resolve", &resolve, &url];
    assert_eq!(run("/usr/bin/curl", &args, ""), "200");
    ztun.terminate();
    proxy.kill();
}

#[test]
fn libproc_tells_whose_a_connection_is() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = listener.local_addr().unwrap();
    let mut proxy = LocalProxy::find(listen).unwrap().unwrap();
    assert!(proxy.is_running() && proxy.pids().any(|pid| pid == std::process::id()));
    let stream = TcpStream::connect(listen).unwrap();
    let local = stream.local_addr().unwrap();
    assert!(proxy.owns(Proto::Tcp, local, listen));
    assert!(!proxy.owns(Proto::Udp, local, listen));
    assert!(!proxy.owns(Proto::Tcp, SocketAddr::new(local.ip(), 9), listen));
    assert!(LocalProxy::find("192.0.2.1:1080".parse().unwrap()).unwrap().is_none());
}

#[test]
fn a_dry_run_tells_the_plan_and_changes_nothing() {
    let _machine = machine();
    let before = look();
    let plan = run(ZTUN, &["--socks5", "127.0.0.1:9", "--dry-run"], "");
    assert!(plan.starts_with(&format!("device add {DEVICE}\n")), "{plan}");
    assert!(plan.contains(&format!("route add 128.0.0.0/1 dev {DEVICE}\n    undo: route del")), "{plan}");
    assert!(plan.contains("dns set 198.18.0.2,fd7a:7a74:756e::2\n"), "{plan}");
    assert!(!plan.contains("route add 0.0.0.0"), "{plan}");
    assert_eq!(look(), before);
}

#[test]
fn what_a_mac_does_not_have_is_said() {
    let _machine = machine();
    let refused = |args: &[&str]| {
        let Output { status, stderr, .. } = output(ZTUN, args, "");
        assert!(!status.success(), "{args:?}");
        String::from_utf8(stderr).unwrap()
    };
    let named = refused(&["--socks5", "127.0.0.1:9", "--tun", "ztun0"]);
    assert!(named.contains("utun and a number"), "{named}");
    let proxy = oracle().to_string();
    let reset = refused(&["--socks5", &proxy, "--reset-existing"]);
    assert!(reset.contains("macOS lets no program close"), "{reset}");
    assert!(refused(&["exec", "--socks5", &proxy, "--", "true"]).contains("Linux"));
}
