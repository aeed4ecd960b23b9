//! `ztun exec` and `ztun demo` as a user has them: the shipped binary, real programs, real kernels.
//!
//! Each test runs on a thread with a network and a mount namespace of its own, which stand for the machine: it has no link but loopback, with
//! addresses of the outside world on it. So the program under test finds targets, and none of its packets can leave this machine. Standard
//! output and standard error are sockets that every process of a run inherits: their end of file shows that no process is left.
//!
//! Without root the tests fail and say so; `ZTUN_SKIP_NETNS=1` skips them, in words.

#![cfg(all(feature = "os", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "each test has a thread, and with it a namespace, of its own")]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const ZTUN: &str = env!("CARGO_BIN_EXE_ztun");
/// What a bash that has a trap does until its standard input ends. A signal just before `read` waits for its end, which so must come by itself.
const WAIT: &str = "while :; do read -t 1 nothing || [ $? -gt 128 ] || exit 99; done";
/// No run may take longer.
const PATIENCE: Duration = Duration::from_secs(120);
const V4: &str = "203.0.113.10";
const V6: &str = "2001:db8::10";
/// An ordinary user, and a directory for what that user has to see.
const NOBODY: &str = "65534";
const SHARED: &str = "/mnt";

// ---- the machine ----

fn in_machine(test: impl FnOnce() + Send) {
    if std::env::var_os("ZTUN_SKIP_NETNS").is_some_and(|value| value == "1") {
        eprintln!("skipped: ZTUN_SKIP_NETNS=1");
        return;
    }
    // One at a time: a child that another test forks would hold this test's sockets until it executes its program.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let body = || {
        // SAFETY: unshare touches no memory; the thread alone changes its namespaces.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
        let why = std::io::Error::last_os_error();
        assert_eq!(result, 0, "no private namespaces: {why}; run as root, or set ZTUN_SKIP_NETNS=1 to skip");
        sh("mount --make-rprivate / && ip link set lo up");
        sh(&format!("ip addr add {V4}/32 dev lo && ip addr add {V6}/128 dev lo nodad"));
        // The kernel makes an IPv6 address usable in a work queue of its own.
        let end = Instant::now() + PATIENCE;
        while !sh("ip -6 route show table local").contains(V6) {
            assert!(Instant::now() < end, "{V6} is not there");
        }
        test();
    };
    thread::scope(|scope| scope.spawn(body).join().unwrap());
}

/// Runs a line of shell in the machine; gives what it prints.
fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Everything of the machine that a run could have changed.
fn machine() -> String {
    let network: String =
        ["rule", "-6 rule", "route show table all", "-6 route show table all", "addr", "link"]
            .map(|line| format!("== ip {line}\n{}", sh(&format!("ip {line}"))))
            .concat();
    // Named network namespaces of other programs are mounts that come and go in every mount namespace.
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let mounts: Vec<&str> = mounts.lines().filter(|line| !line.contains(" - nsfs ")).collect();
    let names = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    format!("{network}\n== mounts\n{}\n== names\n{names}", mounts.join("\n"))
}

#[track_caller]
fn assert_unchanged(before: &str) {
    let after = machine();
    let only = |these: &str, those: &str| {
        let lines: Vec<&str> =
            these.lines().filter(|line| !those.lines().any(|other| other == *line)).collect();
        lines.join("\n")
    };
    assert!(after == before, "gone:\n{}\nnew:\n{}", only(before, &after), only(&after, before));
}

/// A device node for the machine in the place of /dev/net/tun, and a copy of the program, both for everyone to see.
fn share(tun_mode: u32) -> String {
    sh(&format!("mount -t tmpfs -o mode=755 exec_demo {SHARED} && mknod {SHARED}/tun c 10 200"));
    fs::set_permissions(format!("{SHARED}/tun"), fs::Permissions::from_mode(tun_mode)).unwrap();
    sh(&format!("mount --bind {SHARED}/tun /dev/net/tun"));
    let program = format!("{SHARED}/ztun");
    fs::copy(ZTUN, &program).unwrap();
    program
}

/// Puts `text` in the place of the machine's /etc/resolv.conf.
fn names(text: &str) {
    sh(&format!("mount -t tmpfs exec_demo {SHARED}"));
    fs::write(format!("{SHARED}/resolv.conf"), text).unwrap();
    sh(&format!("mount --bind {SHARED}/resolv.conf /etc/resolv.conf"));
}

// ---- a run ----

struct Run {
    child: Child,
    out: UnixStream,
    err: UnixStream,
}

struct Ended {
    code: Option<i32>,
    signal: Option<i32>,
    out: Vec<u8>,
    err: String,
}

impl Ended {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    /// Status and output as expected, nothing on standard error.
    #[track_caller]
    fn assert_clean(&self, code: i32, out: &str) {
        assert_eq!((self.code, self.text(), self.err.as_str()), (Some(code), out, ""));
    }
}

/// Reads up to the end of a line.
fn line_of(output: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut octet = [0];
        output.read_exact(&mut octet).unwrap();
        line.extend(octet);
    }
    String::from_utf8(line).unwrap().trim_end().to_owned()
}

impl Run {
    /// Starts a program in a session of its own, so without a terminal.
    fn start(program: &str, args: &[&str]) -> Run {
        let mut command = Command::new(program);
        command.args(args);
        // SAFETY: setsid is async-signal-safe and touches no memory.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                Ok(())
            })
        };
        Run::spawn(command)
    }

    fn spawn(mut command: Command) -> Run {
        let socket = || {
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_read_timeout(Some(PATIENCE)).unwrap();
            (ours, theirs)
        };
        let ((out, their_out), (err, their_err)) = (socket(), socket());
        // Nothing comes on standard input, and it ends when the test does.
        let input = Stdio::from(OwnedFd::from(their_out.try_clone().unwrap()));
        command.stdin(input).stdout(OwnedFd::from(their_out)).stderr(OwnedFd::from(their_err));
        command.env_remove("ZTUN_SOCKS5").env_remove("RUST_LOG");
        // A shell that runs the tests in the background has them ignore Ctrl-C, and all that they start (POSIX, asynchronous lists).
        // SAFETY: signal is async-signal-safe, and SIG_DFL is no function of ours.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGINT, libc::SIG_DFL);
                Ok(())
            })
        };
        Run { child: command.spawn().unwrap(), out, err }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: kill takes numbers; the child has not been waited for, so its number is its own.
        assert_eq!(unsafe { libc::kill(self.child.id().cast_signed(), signal) }, 0);
    }

    fn line(&mut self) -> String {
        line_of(&mut self.out)
    }

    /// Waits for the end of every process of the run.
    fn end(mut self) -> Ended {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut standard_error = self.err;
        let reader = thread::spawn(move || {
            standard_error.read_to_end(&mut err).expect("a process holds standard error");
            err
        });
        self.out.read_to_end(&mut out).expect("a process holds standard output");
        let err = String::from_utf8(reader.join().unwrap()).unwrap();
        let status = self.child.wait().unwrap();
        Ended { code: status.code(), signal: status.signal(), out, err }
    }
}

fn ztun(args: &[&str]) -> Ended {
    Run::start(ZTUN, args).end()
}

/// `ztun exec -- sh -c LINE`.
fn exec(line: &str) -> Ended {
    ztun(&["exec", "--", "sh", "-c", line])
}

fn as_nobody(program: &str, args: &[&str]) -> Ended {
    let (user, group) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
    let mut line = vec![user.as_str(), group.as_str(), "--clear-groups", program];
    line.extend(args);
    Run::start("setpriv", &line).end()
}

// ---- targets: threads of the test, in its namespace ----

fn tcp_target(addr: &str, serve: impl Fn(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind((addr.parse::<IpAddr>().unwrap(), 0)).unwrap();
    // Not much of what was sent is to be in the target's own buffer; a window below loopback's segments would make the kernel wait for timers.
    socket2::SockRef::from(&listener).set_recv_buffer_size(256 << 10).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || listener.incoming().flatten().for_each(serve));
    port
}

fn udp_target(addr: SocketAddr, answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> u16 {
    let socket = UdpSocket::bind(addr).unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((octets, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&answer(&buffer[..octets]), from).unwrap();
        }
    });
    port
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 2048];
    while let Ok(octets @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..octets]).is_err() {
            return;
        }
    }
}

/// Answers every question with the address of the targets.
fn name_server() {
    udp_target(SocketAddr::new(V4.parse().unwrap(), 53), |query| {
        // Header, the question (its name ends with a zero, then type and class), one answer that points to the name.
        let name = query[12..].iter().position(|octet| *octet == 0).unwrap() + 1;
        let mut answer = query[..12 + name + 4].to_vec();
        answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        answer.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xcb\0\x71\x0a");
        answer
    });
}

/// A target that takes its time; tells how many octets came before each end of file, or how the connection failed.
fn slow_sink() -> (u16, Receiver<Result<usize, String>>) {
    let (sender, receiver) = mpsc::channel();
    let port = tcp_target(V4, move |mut stream| {
        let (mut octets, mut buffer) = (0, [0; 16_384]);
        let result = loop {
            match stream.read(&mut buffer) {
                Ok(0) => break Ok(octets),
                Ok(read) => octets += read,
                Err(error) => break Err(format!("{error} after {octets} octets")),
            }
            // Not to wait for anything: this is what makes it slow.
            thread::sleep(Duration::from_millis(3));
        };
        sender.send(result).unwrap();
    });
    (port, receiver)
}

/// Debian's microsocks in the machine, killed with the value.
struct Microsocks(Child, SocketAddr);

impl Microsocks {
    fn start() -> Microsocks {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let port = free.port().to_string();
        let child = Command::new("microsocks")
            .args(["-i", "127.0.0.1", "-p", &port, "-u", "alice", "-P", "secret"])
            .stderr(Stdio::null())
            .spawn()
            .expect("microsocks is missing: `./build-all.sh deps` installs it");
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect(free).is_err() {
            assert!(Instant::now() < end, "microsocks does not listen");
            thread::yield_now();
        }
        Microsocks(child, free)
    }

    fn url(&self, password: &str) -> String {
        format!("--socks5=alice:{password}@{}", self.1)
    }
}

impl Drop for Microsocks {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

// ---- exec ----

#[test]
fn a_command_has_tcp_udp_names_and_ping_and_the_machine_stays_as_it_is() {
    in_machine(|| {
        let before = machine();
        let body: Vec<u8> =
            (0..20_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let sent = body.clone();
        let http = tcp_target(V4, move |mut stream| {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut octet = [0];
                stream.read_exact(&mut octet).unwrap();
                request.extend(octet);
            }
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", sent.len()).unwrap();
            stream.write_all(&sent).unwrap();
        });
        let got = ztun(&["exec", "--", "curl", "-sS", &format!("http://{V4}:{http}/")]);
        assert_eq!((got.code, got.err.as_str()), (Some(0), ""));
        assert!(got.out == body, "{} of {} octets, or wrong ones", got.out.len(), body.len());

        for addr in [V4, V6] {
            let tcp = tcp_target(addr, echo);
            exec(&format!("echo hello | nc -N -w 5 {addr} {tcp}")).assert_clean(0, "hello\n");
            let any = SocketAddr::new(addr.parse().unwrap(), 0);
            let udp = udp_target(any, |datagram| datagram.to_vec());
            exec(&format!("echo -n hello | nc -u -W 1 -w 5 {addr} {udp}")).assert_clean(0, "hello");
            let ping = exec(&format!("ping -c 3 -i 0.01 {addr}"));
            assert!(ping.code == Some(0) && ping.text().contains(" 0% packet loss"), "{}", ping.text());
        }

        name_server();
        let dns = ["exec", "--dns-server", V4, "--", "dig", "+short", "+tries=1", "anything.example", "A"];
        ztun(&dns).assert_clean(0, &format!("{V4}\n"));
        assert_unchanged(&before);
    });
}

#[test]
fn a_refused_port_is_refused_at_once() {
    in_machine(|| {
        let start = Instant::now();
        let ended = exec(&format!("nc -v -w 30 {V4} 9"));
        assert_eq!(ended.code, Some(1));
        assert!(ended.err.contains("refused"), "{}", ended.err);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    });
}

#[test]
fn a_proxy_that_is_named_is_the_one_that_is_used() {
    in_machine(|| {
        let proxy = Microsocks::start();
        let port = tcp_target(V4, echo);
        // microsocks ends a connection of which one half was closed.
        let line =
            format!("exec 3<>/dev/tcp/{V4}/{port} && echo hello >&3 && read -r answer <&3 && echo $answer");
        let via = |password: &str| ztun(&["exec", &proxy.url(password), "--", "bash", "-c", &line]);
        via("secret").assert_clean(0, "hello\n");
        // It does not let this one in, and there is no other way.
        let ended = via("wrong");
        assert_eq!((ended.code, ended.text()), (Some(1), ""));
    });
}

#[test]
fn the_status_is_the_commands_as_a_shell_gives_it() {
    in_machine(|| {
        for (line, code) in [("exit 0", 0), ("exit 37", 37), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
            exec(line).assert_clean(code, "");
        }
        for (program, code) in [("/nonexistent/program", 127), ("no-such-program", 127), ("/etc/passwd", 126)]
        {
            let ended = ztun(&["exec", "--", program]);
            assert_eq!((ended.code, ended.text()), (Some(code), ""));
            assert!(ended.err.contains(program), "{}", ended.err);
        }
        assert_eq!(ztun(&["exec"]).code, Some(2));
    });
}

#[test]
fn a_command_is_who_it_was_and_has_the_limits_that_it_had() {
    in_machine(|| {
        exec("id -u; id -G").assert_clean(0, &sh("id -u; id -G"));
        let line = format!("ulimit -S -n 512; exec {ZTUN} exec -- sh -c 'ulimit -S -n'");
        Run::start("sh", &["-c", &line]).end().assert_clean(0, "512\n");
    });
}

/// What a process wrote before it ended is delivered by any kernel, and so it is here.
#[test]
fn what_a_command_sent_before_it_ended_arrives_whole() {
    const OCTETS: usize = 8_000_000;
    in_machine(|| {
        let proxy = Microsocks::start();
        for way in [&[][..], &[proxy.url("secret").as_str()]] {
            let (port, sink) = slow_sink();
            let line = format!("exec 3<>/dev/tcp/{V4}/{port}; head -c {OCTETS} /dev/zero >&3");
            let args = [&["exec"], way, &["--", "bash", "-c", &line]].concat();
            ztun(&args).assert_clean(0, "");
            assert_eq!(sink.recv_timeout(PATIENCE).unwrap(), Ok(OCTETS), "{way:?}");
        }
        // A datagram needs an association first, which takes longer than the command lives.
        let target = UdpSocket::bind((V4, 0)).unwrap();
        target.set_read_timeout(Some(PATIENCE)).unwrap();
        let port = target.local_addr().unwrap().port();
        let line = format!("printf hello >/dev/udp/{V4}/{port}");
        ztun(&["exec", "--", "bash", "-c", &line]).assert_clean(0, "");
        let mut buffer = [0; 16];
        let (octets, _) = target.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..octets], b"hello");
    });
}

/// Neither while the command runs, nor when it has ended and only its octets are left.
#[test]
fn a_target_that_takes_nothing_does_not_hold_a_run_that_is_asked_to_stop() {
    in_machine(|| {
        let proxy = Microsocks::start();
        for way in [&[][..], &[proxy.url("secret").as_str()]] {
            for ended in [false, true] {
                let (accepted, wait) = mpsc::channel();
                let port = tcp_target(V4, move |stream| accepted.send(stream).unwrap());
                // More than all buffers on the way hold. Who sends it lives on when the command ends.
                let last = if ended { "exit 3" } else { "exec cat" };
                let line =
                    format!("exec 3<>/dev/tcp/{V4}/{port}; head -c 40000000 /dev/zero >&3 & echo up; {last}");
                let args = [&["exec", "--log-level", "info"], way, &["--", "bash", "-c", &line]].concat();
                let mut run = Run::start(ZTUN, &args);
                assert_eq!(run.line(), "up");
                let _held = wait.recv_timeout(PATIENCE).unwrap();
                if ended {
                    while !line_of(&mut run.err).contains("the command has ended") {}
                }
                let start = Instant::now();
                run.signal(libc::SIGTERM);
                let status = run.child.wait().unwrap();
                let expected = if ended { 3 } else { 128 + libc::SIGTERM };
                assert_eq!(status.code(), Some(expected), "{way:?} {ended}");
                assert!(start.elapsed() < Duration::from_secs(10), "{way:?} {ended}: {:?}", start.elapsed());
            }
        }
    });
}

/// Z12
#[test]
fn a_signal_to_ztun_ends_the_command_and_then_ztun() {
    in_machine(|| {
        let before = machine();
        for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT] {
            let mut run = Run::start(ZTUN, &["exec", "--", "sh", "-c", "echo up; exec cat"]);
            assert_eq!(run.line(), "up");
            run.signal(signal);
            run.end().assert_clean(128 + libc::SIGTERM, "");
        }
        // A command that wants to end in order does, and its status counts.
        let line = format!("trap 'echo bye; exit 5' TERM; echo up; {WAIT}");
        let mut run = Run::start(ZTUN, &["exec", "--", "bash", "-c", &line]);
        assert_eq!(run.line(), "up");
        run.signal(libc::SIGTERM);
        run.end().assert_clean(5, "bye\n");
        assert_unchanged(&before);
    });
}

#[test]
fn a_second_signal_does_not_wait_for_the_command() {
    in_machine(|| {
        let line = format!("trap 'echo no' TERM; echo up; {WAIT}");
        let mut run = Run::start(ZTUN, &["exec", "--", "bash", "-c", &line]);
        assert_eq!(run.line(), "up");
        run.signal(libc::SIGTERM);
        assert_eq!(run.line(), "no");
        run.signal(libc::SIGTERM);
        assert_eq!(run.end().code, Some(9));
    });
}

#[test]
fn the_command_ends_with_a_ztun_that_is_killed() {
    in_machine(|| {
        let before = machine();
        let program = share(0o666);
        for user in [false, true] {
            let args = ["exec", "--", "sh", "-c", "echo up; exec cat"];
            let mut run = if user {
                let user = format!("--reuid={NOBODY}");
                Run::start("setpriv", &[&[user.as_str(), "--clear-groups", &program], &args[..]].concat())
            } else {
                Run::start(&program, &args)
            };
            assert_eq!(run.line(), "up");
            run.signal(libc::SIGKILL);
            // Its end shows that the command and the proxy are gone too.
            assert_eq!(run.end().signal, Some(libc::SIGKILL), "user: {user}");
        }
        sh(&format!("umount /dev/net/tun {SHARED}"));
        assert_unchanged(&before);
    });
}

/// The terminal sends SIGINT to both; it is the command that says what comes of it.
#[test]
fn control_c_is_the_commands() {
    in_machine(|| {
        let (mut master, mut slave) = (0, 0);
        let (name, modes, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
        // SAFETY: two live ints to be written, and null for what is not wanted, as the call allows.
        let opened = unsafe { libc::openpty(&raw mut master, &raw mut slave, name, modes, size) };
        assert_eq!(opened, 0);
        // SAFETY: both were just opened, and nobody else has them.
        let (mut master, slave) =
            unsafe { (fs::File::from(OwnedFd::from_raw_fd(master)), OwnedFd::from_raw_fd(slave)) };
        let terminal = slave.as_raw_fd();
        // The proxy is in the terminal's foreground too, and must go on for a command that does.
        let port = tcp_target(V4, echo);
        let ask = format!("exec 3<>/dev/tcp/{V4}/{port} && echo interrupted >&3 && read -r answer <&3");
        let line = format!("trap '{ask} && echo $answer; exit 6' INT; echo up; {WAIT}");
        let mut command = Command::new(ZTUN);
        command.args(["exec", "--", "bash", "-c", &line]);
        // SAFETY: both calls are async-signal-safe and touch no memory.
        unsafe {
            command.pre_exec(move || {
                libc::setsid();
                libc::ioctl(terminal, libc::TIOCSCTTY, 0);
                Ok(())
            })
        };
        let mut run = Run::spawn(command);
        assert_eq!(run.line(), "up");
        master.write_all(b"\x03").unwrap();
        run.end().assert_clean(6, "interrupted\n");
        drop(slave);
    });
}

#[test]
fn nameservers_that_the_command_can_reach_are_kept_and_others_replaced() {
    in_machine(|| {
        let kept = "# by hand\nsearch corp.example\nnameserver 192.0.2.53\nnameserver 2001:db8::53\noptions ndots:2\n";
        names(kept);
        exec("cat /etc/resolv.conf").assert_clean(0, kept);
        let args = ["exec", "--dns-server", "203.0.113.53", "--", "cat", "/etc/resolv.conf"];
        let asked = "search corp.example\noptions ndots:2\nnameserver 203.0.113.53\n";
        ztun(&args).assert_clean(0, asked);
        sh(&format!("umount /etc/resolv.conf {SHARED}"));
        let stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch corp.example\n";
        names(stub);
        let before = machine();
        let ended = exec("cat /etc/resolv.conf; umount /etc/resolv.conf 2>/dev/null; true");
        let text = ended.text();
        assert!(text.starts_with("options edns0\nsearch corp.example\nnameserver "), "{text}");
        assert!(!text.contains("127.0.0.53"), "{text}");
        assert_unchanged(&before);
    });
}

/// Others on the machine must not get out as this user.
#[test]
fn the_embedded_proxy_lets_nobody_else_in() {
    in_machine(|| {
        let mut run =
            Run::start(ZTUN, &["exec", "--log-level", "info", "--", "sh", "-c", "echo up; exec cat"]);
        assert_eq!(run.line(), "up");
        let listening = sh("ss -Hltn src 127.0.0.1");
        let addr: SocketAddr = listening.split_whitespace().nth(3).unwrap().parse().unwrap();
        for methods in [&b"\x05\x01\x00"[..], b"\x05\x02\x00\x01"] {
            let mut stream = TcpStream::connect(addr).unwrap();
            stream.write_all(methods).unwrap();
            let mut answer = [0; 2];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer, [5, 0xff]);
        }
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.write_all(b"\x05\x01\x02\x01\x04ztun\x05guess").unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert!(answer[..2] == [5, 2] && answer[3] != 0, "{answer:?}");
        run.signal(libc::SIGTERM);
        let ended = run.end();
        assert!(ended.err.contains("ready"), "{}", ended.err);
    });
}

// ---- without root ----

#[test]
fn an_ordinary_user_has_it_too_and_keeps_no_rights() {
    in_machine(|| {
        let program = share(0o666);
        let before = machine();
        let port = tcp_target(V4, echo);
        let line = format!(
            "id -u; id -g; grep CapEff /proc/self/status; echo hello | nc -N -w 5 {V4} {port}; \
             ping -c 1 {V4} >/dev/null && ping -c 1 {V6} >/dev/null && echo pinged; cat /etc/resolv.conf >/dev/null && echo read"
        );
        let expected = format!("{NOBODY}\n{NOBODY}\nCapEff:\t0000000000000000\nhello\npinged\nread\n");
        as_nobody(&program, &["exec", "--", "sh", "-c", &line]).assert_clean(0, &expected);
        assert_unchanged(&before);
    });
}

#[test]
fn a_device_that_a_user_may_not_open_is_named_with_what_to_do() {
    in_machine(|| {
        let program = share(0o600);
        for args in [&["exec", "--", "true"][..], &["demo"]] {
            let ended = as_nobody(&program, args);
            assert_eq!(ended.code, Some(3), "{}", ended.err);
            let words = ["/dev/net/tun", "Permission denied", "try:"];
            assert!(words.iter().all(|word| ended.err.contains(word)), "{}", ended.err);
            assert_eq!(ended.err.matches("error:").count(), 1, "{}", ended.err);
        }
        sh("umount /dev/net/tun && mount --bind /dev/null /dev/net/tun");
        let ended = ztun(&["exec", "--", "true"]);
        assert_eq!(ended.code, Some(3));
        assert!(ended.err.contains("/dev/net/tun is not the TUN"), "{}", ended.err);
    });
}

#[test]
fn a_system_without_user_namespaces_is_named_with_what_to_do() {
    in_machine(|| {
        let program = share(0o666);
        // The limit is that of the user namespace in which it is set: nothing outside of it changes.
        let line = format!(
            "echo 0 >/proc/sys/user/max_user_namespaces && \
             exec setpriv --bounding-set=-all --inh-caps=-all {program} exec -- true"
        );
        let ended = Run::start("unshare", &["--user", "--map-root-user", "sh", "-c", &line]).end();
        assert_eq!(ended.code, Some(3), "{}", ended.err);
        let words = ["private namespace", "max_user_namespaces", "unprivileged_userns_clone", "apparmor"];
        assert!(words.iter().all(|word| ended.err.contains(word)), "{}", ended.err);
    });
}

// ---- demo ----

#[track_caller]
fn assert_demo(ended: &Ended) {
    let text = ended.text();
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{text}");
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("  ")).collect();
    assert!(rows.len() == 10 && rows.iter().all(|row| row.starts_with("  ok ")), "{text}");
    let words =
        ["download", "upload", "Gb/s", "a second", "UDP echo", "DNS", "ping, IPv4", "ping, IPv6", "refused"];
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
    assert!(text.contains("Nothing on this machine was changed"), "{text}");
}

#[test]
fn the_demo_works_for_root_and_for_a_user_and_changes_nothing() {
    in_machine(|| {
        let program = share(0o666);
        let before = machine();
        assert_demo(&Run::start(&program, &["demo"]).end());
        assert_demo(&as_nobody(&program, &["demo"]));
        assert_unchanged(&before);
    });
}

#[test]
fn a_demo_that_is_stopped_leaves_nothing() {
    in_machine(|| {
        let before = machine();
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGKILL] {
            // One that was at its end before the signal came, on a busy machine, shows nothing.
            let stopped = (0..10).any(|_| {
                let mut run = Run::start(ZTUN, &["demo"]);
                while !run.line().contains("ok") {}
                run.signal(signal);
                let ended = run.end();
                assert!(
                    ended.code != Some(0) || ended.text().contains("Everything worked"),
                    "{}",
                    ended.text()
                );
                ended.code != Some(0)
            });
            assert!(stopped, "signal {signal} stops no demo");
        }
        assert_unchanged(&before);
    });
}
