//! `ztun doctor`: every check is seen well and is seen broken, and nothing on the machine changes by it.
//!
//! What is the machine's is broken in network namespaces of the tests' own (root; `ZTUN_SKIP_NETNS=1` skips them, in words); what is the proxy's
//! by the hostile server of the other tests, which dials nobody.

#![cfg(all(feature = "os", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    clippy::disallowed_methods,
    reason = "servers of the tests have threads, and a test a namespace and a clock"
)]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

// Shared with the tests that need all of it.
#[allow(dead_code, reason = "the other tests need all of it")]
mod hostile;

use hostile::{HostileServer, Message, RelayFault, Script};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const ZTUN: &str = env!("CARGO_BIN_EXE_ztun");
const TUN: &str = "doctor-tun0";
const DNS: &str = "127.0.0.1:5353";

/// What `ztun doctor --json` says.
struct Report {
    json: Value,
    code: i32,
}

impl Report {
    fn of(command: &mut Command) -> Report {
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        let json: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{words}"));
        let code = output.status.code().unwrap();
        let fails = json["checks"].as_array().unwrap().iter().any(|check| check["status"] == "fail");
        assert_eq!(code, i32::from(fails), "{json:#}");
        assert_eq!(json["ok"], !fails);
        Report { json, code }
    }

    fn checks(&self) -> &[Value] {
        self.json["checks"].as_array().unwrap()
    }

    fn check(&self, id: &str) -> &Value {
        self.checks()
            .iter()
            .find(|check| check["id"] == id)
            .unwrap_or_else(|| panic!("{id}: {:#}", self.json))
    }

    fn status(&self, id: &str) -> &str {
        self.check(id)["status"].as_str().unwrap()
    }

    /// Why, and what to do.
    fn words(&self, id: &str) -> String {
        let check = self.check(id);
        let remedy = check["remedy"].as_str().unwrap_or_default();
        format!("{} {remedy}", check["why"].as_str().unwrap())
    }
}

fn doctor(run_dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(ZTUN);
    command.args(["doctor", "--json", "--tun", TUN, "--connect-timeout", "1s"]).args(args);
    command
        .env("ZTUN_RUN_DIR", run_dir)
        .env_remove("ZTUN_SOCKS5")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

fn skipped() -> bool {
    let skipped = std::env::var_os("ZTUN_SKIP_NETNS").is_some_and(|value| value == "1");
    if skipped {
        eprintln!("skipped: ZTUN_SKIP_NETNS=1");
    }
    skipped
}

/// Runs a test in a network namespace with a machine's usual set-up, and the directory for runs in it.
fn in_namespace(test: impl FnOnce(&Path) + Send) {
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let body = || {
        // SAFETY: unshare touches no memory; the thread alone changes its namespace.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        let why = std::io::Error::last_os_error();
        assert_eq!(result, 0, "no network namespace: {why}; run as root, or set ZTUN_SKIP_NETNS=1 to skip");
        for line in [
            "link set lo up",
            "link add doctor-eth0 type veth peer name doctor-eth1",
            "link set doctor-eth1 addrgenmode none",
            "link set doctor-eth0 addrgenmode none",
            "link set doctor-eth1 up",
            "link set doctor-eth0 up",
            "addr add 192.0.2.5/24 dev doctor-eth0",
            "addr add 2001:db8::5/64 dev doctor-eth0 nodad",
            "route add default via 192.0.2.1",
            "route add default via 2001:db8::1",
            // Whom the check of IPv6 asks for.
            "addr add 2606:4700:4700::1111/128 dev lo nodad",
        ] {
            ip(line);
        }
        test(&dir.path().join("run"));
    };
    thread::scope(|scope| scope.spawn(body).join().unwrap());
}

fn ip(line: &str) -> String {
    let output = Command::new("ip").args(line.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Everything that could be changed, as iproute2 prints it.
/// What `ip` shows of the machine, but for the carriers of its links: the kernel tells of those some time after they have changed.
fn machine() -> String {
    let shown = ["rule", "-6 rule", "route show table all", "-6 route show table all", "addr", "link"]
        .map(ip)
        .concat();
    let mut text = shown.replace(" linkdown", "").replace(",LOWER_UP", "").replace("NO-CARRIER,", "");
    for state in ["UP", "DOWN", "LOWERLAYERDOWN", "UNKNOWN"] {
        text = text.replace(&format!(" state {state} "), " ");
    }
    text
}

/// A program that is killed, and waited for, at the end.
struct Program(Child);

impl Program {
    /// Starts `command` and waits until it says `ready`.
    fn ready(mut command: Command) -> Program {
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        while !said.contains("ready") {
            assert!(lines.read_line(&mut said).unwrap() > 0, "it has ended: {said}");
        }
        // What it says later must not fill the pipe, nor end it.
        thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Program(child)
    }

    fn proxy(listen: &str) -> Program {
        let mut command = Command::new(ZTUN);
        command.args(["proxy", "--listen", listen]);
        Program::ready(command)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A resolver for which every name is 127.0.0.1, by UDP and TCP at [`DNS`], for as long as the test's process lives.
fn resolver() {
    fn answer(query: &[u8]) -> Vec<u8> {
        let mut answer = query.to_vec();
        (answer[2], answer[7]) = (0x81, 1);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
        answer
    }
    let (udp, tcp) = (UdpSocket::bind(DNS).unwrap(), TcpListener::bind(DNS).unwrap());
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((octets, from)) = udp.recv_from(&mut buffer) {
            udp.send_to(&answer(&buffer[..octets]), from).unwrap();
        }
    });
    thread::spawn(move || {
        for mut client in tcp.incoming().flatten() {
            let mut head = [0; 2];
            if client.read_exact(&mut head).is_err() {
                continue;
            }
            let mut query = vec![0; u16::from_be_bytes(head).into()];
            client.read_exact(&mut query).unwrap();
            let answer = answer(&query);
            let head = u16::try_from(answer.len()).unwrap().to_be_bytes();
            client.write_all(&[&head[..], &answer].concat()).unwrap();
        }
    });
}

/// Options with which a namespace's machine has nothing to complain about.
const WELL: [&str; 6] = ["--max-tcp", "100", "--max-udp", "100", "--dns-server", DNS];

fn with<'a>(args: &[&'a str]) -> Vec<&'a str> {
    WELL.iter().copied().chain(args.iter().copied()).collect()
}

#[test]
fn a_set_up_without_fault_passes_every_check_and_nothing_is_changed() {
    in_namespace(|run| {
        resolver();
        let target = TcpListener::bind("127.0.0.1:8080").unwrap();
        let v6 = TcpListener::bind("[2606:4700:4700::1111]:53").unwrap();
        let _proxy = Program::proxy("127.0.0.1:1080");
        let before = machine();
        let report = Report::of(&mut doctor(
            run,
            &with(&["--socks5", "127.0.0.1:1080", "--target", "localhost:8080"]),
        ));
        for check in report.checks() {
            assert_eq!(check["status"], "ok", "{check}");
            assert!(check["remedy"].is_null(), "{check}");
        }
        assert_eq!((report.code, report.checks().len()), (0, 30), "{:#}", report.json);
        assert_eq!(machine(), before);
        assert!(!run.exists(), "no file is made");
        drop((target, v6));
    });
}

/// One way in which a machine is not as it should be: commands that break it and mend it, options, and the check that sees it.
struct Case {
    broken: &'static [&'static str],
    mended: &'static [&'static str],
    args: &'static [&'static str],
    id: &'static str,
    status: &'static str,
    word: &'static str,
}

const CASES: [Case; 17] = [
    Case {
        broken: &[
            "tuntap add mode tun name doctor-vpn0",
            "link set doctor-vpn0 up",
            "addr add 10.8.0.2/24 dev doctor-vpn0",
        ],
        mended: &["link del doctor-vpn0"],
        args: &[],
        id: "vpn",
        status: "warn",
        word: "--bypass 10.8.0.2/24",
    },
    Case {
        broken: &[
            "tuntap add mode tun name doctor-vpn0",
            "link set doctor-vpn0 up",
            "route add 0.0.0.0/1 dev doctor-vpn0",
        ],
        mended: &["link del doctor-vpn0"],
        args: &[],
        id: "vpn",
        status: "warn",
        word: "default route leads into doctor-vpn0",
    },
    Case {
        broken: &["rule add pref 100 lookup 99", "route add default dev doctor-eth0 table 99"],
        mended: &["rule del pref 100", "route del default table 99"],
        args: &[],
        id: "rules",
        status: "fail",
        word: "the rule 100",
    },
    Case {
        broken: &["-6 rule add pref 101 unreachable"],
        mended: &["-6 rule del pref 101"],
        args: &[],
        id: "rules",
        status: "fail",
        word: "IPv6",
    },
    Case {
        broken: &["rule add pref 5100 fwmark 0x1 lookup 99"],
        mended: &["rule del pref 5100"],
        args: &[],
        id: "rules",
        status: "warn",
        word: "5100",
    },
    Case {
        broken: &["route add 10.9.0.0/16 dev doctor-eth0 table 31348"],
        mended: &["route del 10.9.0.0/16 table 31348"],
        args: &[],
        id: "table",
        status: "fail",
        word: "1 routes",
    },
    Case {
        broken: &["rule add pref 6000 fwmark 0x7a74 lookup main"],
        mended: &["rule del pref 6000"],
        args: &[],
        id: "mark",
        status: "warn",
        word: "6000",
    },
    Case {
        broken: &["link add doctor-tun0 type veth peer name doctor-peer0"],
        mended: &["link del doctor-tun0"],
        args: &[],
        id: "device",
        status: "fail",
        word: "veth",
    },
    Case {
        broken: &["addr add 198.18.7.7/24 dev doctor-eth1"],
        mended: &["addr del 198.18.7.7/24 dev doctor-eth1"],
        args: &[],
        id: "device",
        status: "warn",
        word: "doctor-eth1",
    },
    Case {
        broken: &["route del default via 192.0.2.1", "-6 route del default via 2001:db8::1"],
        mended: &["route add default via 192.0.2.1", "-6 route add default via 2001:db8::1"],
        args: &[],
        id: "egress",
        status: "warn",
        word: "no default route",
    },
    Case {
        broken: &[],
        mended: &[],
        args: &["--interface", "doctor-none"],
        id: "egress",
        status: "fail",
        word: "there is no",
    },
    Case {
        broken: &["link set doctor-eth1 down"],
        mended: &["link set doctor-eth1 up"],
        args: &["--interface", "doctor-eth1"],
        id: "egress",
        status: "fail",
        word: "is down",
    },
    Case {
        broken: &[],
        mended: &[],
        args: &["--socks5", "198.18.5.5:1080"],
        id: "loop",
        status: "fail",
        word: "network of the tunnel",
    },
    Case {
        broken: &["route add unreachable 203.0.113.9"],
        mended: &["route del unreachable 203.0.113.9"],
        args: &["--socks5", "203.0.113.9:1080"],
        id: "loop",
        status: "fail",
        word: "no way to the proxy",
    },
    Case {
        broken: &[
            "tuntap add mode tun name doctor-vpn0",
            "link set doctor-vpn0 up",
            "route add 203.0.113.0/24 dev doctor-vpn0",
        ],
        mended: &["link del doctor-vpn0"],
        args: &["--socks5", "203.0.113.9:1080"],
        id: "loop",
        status: "warn",
        word: "doctor-vpn0",
    },
    Case {
        broken: &[
            "tuntap add mode tun name doctor-tun0",
            "link set doctor-tun0 up",
            "route add 203.0.113.0/24 dev doctor-tun0",
        ],
        mended: &["link del doctor-tun0"],
        args: &["--socks5", "203.0.113.9:1080"],
        id: "loop",
        status: "fail",
        word: "leads into doctor-tun0",
    },
    Case {
        broken: &["route add default via 192.0.2.2 metric 9"],
        mended: &["route del default via 192.0.2.2"],
        args: &["--no-route"],
        id: "rules",
        status: "skipped",
        word: "--no-route",
    },
];

#[test]
fn what_is_wrong_with_the_network_is_seen_and_what_is_mended_is_well_again() {
    in_namespace(|run| {
        for case in &CASES {
            case.broken.iter().for_each(|line| drop(ip(line)));
            let before = machine();
            let report = Report::of(&mut doctor(run, &with(case.args)));
            let words = report.words(case.id);
            assert_eq!(report.status(case.id), case.status, "{}: {words}", case.id);
            assert!(words.contains(case.word), "{}: {words}", case.id);
            assert_eq!(machine(), before);
            case.mended.iter().for_each(|line| drop(ip(line)));
        }
        let report = Report::of(&mut doctor(run, &with(&[])));
        for id in ["vpn", "rules", "table", "mark", "device", "egress", "rp-filter", "ipv6"] {
            assert_eq!(report.status(id), "ok", "{}", report.words(id));
        }
        assert_eq!(report.status("loop"), "skipped");
        assert_eq!(report.status("proxy"), "skipped");
        assert!(report.words("proxy").contains("no --socks5"));
    });
}

#[test]
fn filters_and_ipv6_are_read_from_the_kernels_settings() {
    in_namespace(|run| {
        let set = |path: &str, value: &str| {
            std::fs::write(format!("/proc/thread-self/net/../../sys/net/{path}"), value)
        };
        let set = |path: &str, value: &str| {
            set(path, value).or_else(|_| std::fs::write(format!("/proc/sys/net/{path}"), value)).unwrap();
        };
        set("ipv4/conf/doctor-eth0/rp_filter", "1");
        let one_way = Report::of(&mut doctor(run, &with(&[])));
        assert_eq!(one_way.status("rp-filter"), "ok");
        assert!(one_way.words("rp-filter").contains("strict"));
        ip("addr add 198.51.100.5/24 dev doctor-eth1");
        ip("route add default via 198.51.100.1 metric 9");
        let two_ways = Report::of(&mut doctor(run, &with(&[])));
        assert_eq!(two_ways.status("rp-filter"), "warn", "{}", two_ways.words("rp-filter"));
        set("ipv6/conf/all/disable_ipv6", "1");
        let off = Report::of(&mut doctor(run, &with(&[])));
        assert!(off.words("ipv6").contains("switched off"), "{}", off.words("ipv6"));
    });
}

/// Z11, L-14: what runs, and what a dead run has left.
#[test]
fn a_live_run_is_named_and_what_a_dead_one_left_is_found() {
    in_namespace(|run| {
        let mut command = Command::new(ZTUN);
        // The resolv.conf is the machine's, whatever the network namespace: it is left alone.
        command.args(["--tun", TUN, "--socks5", "127.0.0.1:1", "--dns", "off"]).env("ZTUN_RUN_DIR", run);
        let router = Program::ready(command);
        let before = machine();
        let live = Report::of(&mut doctor(run, &with(&[])));
        assert_eq!(live.status("running"), "warn");
        assert!(
            live.words("running").contains(&format!("process {}", router.pid())),
            "{}",
            live.words("running")
        );
        assert_eq!(live.status("leftovers"), "ok", "{}", live.words("leftovers"));
        // What is ztun's own is nobody else's.
        for id in ["rules", "table", "mark", "vpn", "device", "egress"] {
            assert_eq!(live.status(id), "ok", "{}", live.words(id));
        }
        assert_eq!(machine(), before);
        // SIGKILL.
        drop(router);
        let dead = Report::of(&mut doctor(run, &with(&[])));
        assert_eq!(dead.status("running"), "ok", "{}", dead.words("running"));
        assert_eq!(dead.status("leftovers"), "warn");
        assert!(dead.words("leftovers").contains("ztun restore"));
        let restored =
            Command::new(ZTUN).args(["restore", "--tun", TUN]).env("ZTUN_RUN_DIR", run).status().unwrap();
        assert!(restored.success());
        assert_eq!(Report::of(&mut doctor(run, &with(&[]))).status("leftovers"), "ok");
    });
}

#[test]
fn a_proxy_on_this_machine_is_found_and_told_how_it_is_kept_outside() {
    in_namespace(|run| {
        let at = ["--socks5", "127.0.0.1:1080"];
        let nobody = Report::of(&mut doctor(run, &with(&at)));
        assert_eq!(nobody.status("local-proxy"), "warn");
        assert_eq!(nobody.status("proxy"), "fail");
        assert!(nobody.words("proxy").contains("refused"), "{}", nobody.words("proxy"));
        assert_eq!(nobody.status("method"), "skipped");
        let proxy = Program::proxy("127.0.0.1:1080");
        let by_flow = Report::of(&mut doctor(run, &with(&at)));
        assert_eq!(by_flow.status("local-proxy"), "ok");
        let words = by_flow.words("local-proxy");
        assert!(words.contains(&format!("({})", proxy.pid())) && words.contains("flow by flow"), "{words}");
        let off =
            Report::of(&mut doctor(run, &with(&["--socks5", "127.0.0.1:1080", "--local-proxy", "off"])));
        assert_eq!(off.status("local-proxy"), "warn");
        drop(proxy);
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid",
            "787",
            "--regid",
            "787",
            "--clear-groups",
            ZTUN,
            "proxy",
            "--listen",
            "127.0.0.1:1080",
        ]);
        let _proxy = Program::ready(command);
        let by_user = Report::of(&mut doctor(run, &with(&at)));
        assert!(by_user.words("local-proxy").contains("787"), "{}", by_user.words("local-proxy"));
    });
}

/// What a program of another user, in another namespace, or with other limits finds.
#[test]
fn privilege_limits_devices_and_namespaces_are_this_process_own() {
    in_namespace(|run| {
        let within = |wrapper: &[&str], args: &[&str]| {
            let plain = doctor(run, args);
            let mut command = Command::new(wrapper[0]);
            command
                .args(&wrapper[1..])
                .arg(plain.get_program())
                .args(plain.get_args())
                .env("ZTUN_RUN_DIR", run);
            Report::of(&mut command)
        };
        let poor = within(&["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"], &WELL);
        assert_eq!(poor.status("privilege"), "fail");
        assert!(poor.words("privilege").contains("sudo"));
        let few = within(&["prlimit", "--nofile=300:300"], &WELL);
        assert_eq!(few.status("limits"), "fail");
        let fewer = within(&["prlimit", "--nofile=1000:1000"], &["--max-tcp", "5000"]);
        assert_eq!(fewer.status("limits"), "warn", "{}", fewer.words("limits"));
        let shell = |script: &'static str| ["unshare", "--mount", "sh", "-ec", script, "sh"];
        let no_device = within(&shell("mount --bind /dev/null /dev/net/tun; exec \"$@\""), &WELL);
        assert_eq!(no_device.status("tun"), "fail");
        assert!(no_device.words("tun").contains("10:200"), "{}", no_device.words("tun"));
        assert_eq!(no_device.status("offload"), "skipped");
        let names = "mount --bind /dev/null /etc/resolv.conf; exec \"$@\"";
        let nobody = Report::of(
            Command::new("unshare")
                .args(["--mount", "sh", "-ec", names, "sh", ZTUN, "doctor", "--json"])
                .env("ZTUN_RUN_DIR", run),
        );
        assert_eq!(nobody.status("resolvers"), "warn");
        let none = "echo 0 > /proc/sys/user/max_net_namespaces; exec \"$@\"";
        let no_namespaces = within(&["unshare", "--user", "--map-root-user", "sh", "-ec", none, "sh"], &WELL);
        assert_eq!(no_namespaces.status("namespaces"), "warn", "{}", no_namespaces.words("namespaces"));
        let well = Report::of(&mut doctor(run, &with(&[])));
        for id in [
            "privilege",
            "limits",
            "tun",
            "offload",
            "policy-routing",
            "sock-diag",
            "namespaces",
            "resolvers",
        ] {
            assert_eq!(well.status(id), "ok", "{}", well.words(id));
        }
    });
}

/// microsocks: no UDP, no IPv6 here, and a user if it is told one.
#[test]
fn a_real_server_without_udp_is_seen_as_one() {
    in_namespace(|run| {
        resolver();
        let target = TcpListener::bind("127.0.0.1:8080").unwrap();
        let mut command = Command::new("microsocks");
        command.args(["-i", "127.0.0.1", "-p", "1080", "-u", "alice", "-P", "secret"]);
        let _proxy = Program(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect("127.0.0.1:1080").is_err() {
            assert!(Instant::now() < deadline, "microsocks does not listen");
            thread::yield_now();
        }
        let of =
            |proxy| Report::of(&mut doctor(run, &with(&["--socks5", proxy, "--target", "localhost:8080"])));
        let report = of("alice:secret@127.0.0.1:1080");
        for id in ["proxy", "method", "connect-name", "connect-address", "dns"] {
            assert_eq!(report.status(id), "ok", "{}", report.words(id));
        }
        assert_eq!(report.status("udp"), "warn");
        assert!(report.words("udp").contains("command not supported"), "{}", report.words("udp"));
        assert_eq!(report.status("udp-relay"), "skipped");
        assert_eq!(report.code, 0);
        assert_eq!(of("127.0.0.1:1080").status("method"), "fail");
        let denied = of("alice:wrong@127.0.0.1:1080");
        assert!(
            denied.words("method").contains("refuses the user or the password"),
            "{}",
            denied.words("method")
        );
        let args = ["--socks5", "alice:secret@127.0.0.1:1080", "--udp", "socks5"];
        assert_eq!(Report::of(&mut doctor(run, &with(&args))).status("udp"), "fail", "it was demanded");
        drop(target);
    });
}

#[test]
fn a_path_that_is_too_narrow_is_a_warning() {
    in_namespace(|run| {
        let _proxy = Program::proxy("127.0.0.1:1080");
        let at = ["--socks5", "127.0.0.1:1080", "--ipv6", "off"];
        assert_eq!(Report::of(&mut doctor(run, &with(&at))).status("mtu"), "ok");
        for (mtu, word) in [("1400", "--mtu"), ("1230", "QUIC")] {
            ip(&format!("link set lo mtu {mtu}"));
            let report = Report::of(&mut doctor(run, &with(&at)));
            assert_eq!(report.status("mtu"), "warn");
            assert!(report.words("mtu").contains(word), "{}", report.words("mtu"));
        }
    });
}

#[test]
fn a_name_that_has_no_address_is_a_finding_and_the_rest_is_examined() {
    in_namespace(|run| {
        let started = Instant::now();
        let report = Report::of(&mut doctor(run, &with(&["--socks5", "proxy.invalid:1080"])));
        assert_eq!(report.status("names"), "fail");
        assert_eq!(report.status("vpn"), "ok");
        assert!(started.elapsed() < Duration::from_secs(15));
    });
}

#[test]
fn a_dead_proxy_beside_a_live_one_is_a_warning() {
    in_namespace(|run| {
        let _proxy = Program::proxy("127.0.0.1:1080");
        let report =
            Report::of(&mut doctor(run, &with(&["--socks5", "127.0.0.1:1", "--socks5", "127.0.0.1:1080"])));
        let of = |port| {
            let mut found = report.checks().iter().filter(|check| check["id"] == "proxy");
            found.find(|check| check["proxy"] == format!("127.0.0.1:{port}")).unwrap()["status"].clone()
        };
        assert_eq!((of(1), of(1080)), ("warn".into(), "ok".into()));
    });
}

/// How `ztun doctor` finds a proxy that behaves by `script`: what a check says, whether that is a fault, and a word of it.
const SCRIPTS: [(Script, &str, &str, &str); 12] = [
    (Script::Healthy, "method", "ok", ""),
    (Script::Healthy, "connect-name", "ok", "granted"),
    (Script::Healthy, "connect-address", "ok", "granted"),
    (Script::SilentAfter(Message::None), "method", "fail", "says nothing"),
    (Script::Version(4), "method", "fail", "no SOCKS5"),
    (Script::Method(0xff), "method", "fail", "--socks5 USER:PASS@HOST:PORT"),
    (Script::AuthStatus(1), "method", "fail", "wants a user"),
    (Script::CloseAfter(0), "method", "fail", "closes"),
    (Script::SilentAfter(Message::Request), "connect-name", "fail", "no answer in time"),
    (Script::Rep(8), "connect-address", "fail", "refuses addresses"),
    (Script::Rep(7), "connect-name", "fail", "no CONNECT"),
    (Script::Rep(5), "connect-address", "fail", "connection refused"),
];

#[test]
fn what_a_proxy_refuses_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let server = HostileServer::start(Script::Healthy);
    let at = server.addr().to_string();
    for (script, id, status, word) in SCRIPTS {
        server.set_script(script);
        let report = Report::of(&mut doctor(
            dir.path(),
            &["--socks5", &at, "--target", "127.0.0.1:9", "--ipv6", "off"],
        ));
        // A method other than "none" is not offered without a user.
        let found = report.words(id);
        assert_eq!(report.status(id), status, "{script:?}, {id}: {found}");
        let word = if matches!(script, Script::AuthStatus(_)) { "method" } else { word };
        assert!(found.contains(word), "{script:?}, {id}: {found}");
    }
}

#[test]
fn user_and_password_are_checked_and_never_printed() {
    let dir = tempfile::tempdir().unwrap();
    let server = HostileServer::start(Script::AuthStatus(0));
    let at = format!("alice:hush-hush@{}", server.addr());
    let args = ["--socks5", &at, "--target", "127.0.0.1:9", "--ipv6", "off"];
    for (script, status) in
        [(Script::AuthStatus(0), "ok"), (Script::AuthStatus(1), "fail"), (Script::Method(0xff), "fail")]
    {
        server.set_script(script);
        let report = Report::of(&mut doctor(dir.path(), &args));
        assert_eq!(report.status("method"), status, "{script:?}: {}", report.words("method"));
        assert!(!report.json.to_string().contains("hush"));
    }
    let table = Command::new(ZTUN).arg("doctor").args(args).env("ZTUN_RUN_DIR", dir.path()).output().unwrap();
    assert_eq!(table.status.code(), Some(1));
    let text = String::from_utf8(table.stdout).unwrap();
    assert!(text.contains("FAIL  method") && text.contains("try: ") && !text.contains("hush"), "{text}");
}

/// Z5: a relay that cannot be reached from here is replaced, one without a port is none, and one that loses everything is found out.
#[test]
fn the_relay_of_an_association_is_proved_by_a_datagram() {
    let dir = tempfile::tempdir().unwrap();
    let server = HostileServer::start(Script::Healthy);
    let at = server.addr().to_string();
    for (fault, id, status, word) in [
        (RelayFault::Bound(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), "udp", "ok", "0.0.0.0"),
        (RelayFault::Bound(IpAddr::V4(Ipv4Addr::new(10, 11, 12, 13))), "udp", "ok", "10.11.12.13"),
        (RelayFault::PortZero, "udp", "warn", "without a port"),
        (RelayFault::ControlClosed, "udp-relay", "fail", "ends the association"),
        // Its echo answers no query.
        (RelayFault::None, "udp-relay", "fail", "no datagram comes back"),
    ] {
        server.set_script(Script::Relay(fault));
        let report = Report::of(&mut doctor(
            dir.path(),
            &["--socks5", &at, "--target", "127.0.0.1:9", "--ipv6", "off"],
        ));
        let found = report.words(id);
        assert_eq!(report.status(id), status, "{fault:?}, {id}: {found}");
        assert!(found.contains(word), "{fault:?}, {id}: {found}");
    }
}

/// The whole takes less than 15 s when everything is dead.
#[test]
fn it_ends_soon_when_nothing_answers() {
    let dir = tempfile::tempdir().unwrap();
    let silent = HostileServer::start(Script::SilentAfter(Message::Request));
    let at = silent.addr().to_string();
    let started = Instant::now();
    let mut command = Command::new(ZTUN);
    let report =
        Report::of(command.args(["doctor", "--json", "--socks5", &at]).env("ZTUN_RUN_DIR", dir.path()));
    assert_eq!(report.code, 1);
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
}
