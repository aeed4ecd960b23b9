//! The control socket, its commands and the metrics, on a router that carries traffic.

use crate::world::*;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// Where the router of the test listens.
fn socket(world: &World) -> PathBuf {
    world.dir.path().join("control.sock")
}

/// A router whose control socket is [`socket`].
fn router(world: &World, arguments: &str) -> Running {
    world.ztun(&format!("--socks5 {PROXY} --control {} {arguments}", socket(world).display()))
}

fn connect(world: &World) -> BufReader<UnixStream> {
    let stream = UnixStream::connect(socket(world)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    BufReader::new(stream)
}

/// The answer to one line.
fn asked(stream: &mut BufReader<UnixStream>, line: &str) -> serde_json::Value {
    stream.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap()
}

fn ask(world: &World, line: &str) -> serde_json::Value {
    asked(&mut connect(world), line)
}

/// `ztun COMMAND` about the router of the test.
fn cli(world: &World, command: &str) -> std::process::Output {
    world.client.sh(&format!("{ZTUN} {command} --control {}", socket(world).display()))
}

fn json(world: &World, command: &str) -> serde_json::Value {
    let output = cli(world, &format!("{command} --json"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Z7, L7: a router tells what it does while it does it, to people and to programs.
#[test]
fn a_router_tells_what_it_carries() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    let mut ztun = router(&world, "");
    assert_eq!(fs::metadata(socket(&world)).unwrap().permissions().mode() & 0o777, 0o600);
    let mut app = world.client.connect(&format!("{TARGET}:7")).unwrap();
    app.write_all(&[7; 3_000]).unwrap();
    app.read_exact(&mut [0; 3_000]).unwrap();
    let flow = |flows: &serde_json::Value| {
        let flows = flows["flows"].as_array().unwrap();
        flows.iter().find(|flow| flow["to"] == format!("{TARGET}:7")).cloned()
    };
    // What the app's kernel has acknowledged is counted: its last ACK may be under way.
    let mut told = serde_json::Value::Null;
    until("the flow is told with its octets", || {
        told = flow(&json(&world, "flows")).unwrap();
        told["down"] == 3_000
    });
    assert_eq!((&told["proto"], &told["tcp"]), (&"tcp".into(), &"ESTABLISHED".into()));
    assert_eq!((&told["up"], &told["phase"]), (&3_000.into(), &"relaying".into()));
    assert_eq!(told["outbound"], format!("proxy {PROXY}"));
    assert_eq!(told["app"], app.local_addr().unwrap().to_string());
    let status = json(&world, "status");
    assert_eq!(status["pid"].as_u64(), ztun_pid(&ztun));
    assert_eq!((&status["state"], &status["device"]["mtu"]), (&"running".into(), &1500.into()));
    assert_eq!(status["proxies"][0]["reachable"], true);
    assert_eq!(status["flows"]["tcp"], 1);
    assert!(status["counters"]["upload_bytes"].as_u64().unwrap() >= 3_000);
    let table = String::from_utf8(cli(&world, "flows").stdout).unwrap();
    assert!(
        table.lines().any(|line| line.contains(&format!("{TARGET}:7")) && line.contains("2.9 KiB")),
        "{table}"
    );
    let text = String::from_utf8(cli(&world, "status").stdout).unwrap();
    assert!(text.contains(&format!("{PROXY} can be reached")), "{text}");
    assert_eq!(ztun.stop(), Some(0));
    assert!(!socket(&world).exists(), "the socket goes with the router");
    let nobody = cli(&world, "status");
    assert_eq!(nobody.status.code(), Some(1));
    let error = String::from_utf8(nobody.stderr).unwrap();
    assert!(error.contains("cannot ask ztun at") && error.contains("try: "), "{error}");
}

/// The process that `ip netns exec` has become.
fn ztun_pid(ztun: &Running) -> Option<u64> {
    Some(ztun.pid().into())
}

/// The default socket is found by the device, and without one when there is only one router.
#[test]
fn the_socket_is_found_by_the_device() {
    let Some(world) = world() else { return };
    let _ztun = world.ztun(&format!("--socks5 {PROXY} --tun tun7"));
    let run = world.dir.path().join("run");
    let status = |arguments: &str| {
        world.client.sh(&format!("ZTUN_RUN_DIR={} {ZTUN} status --json {arguments}", run.display()))
    };
    for arguments in ["--tun tun7", ""] {
        let output = status(arguments);
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(told.contains("\"name\":\"tun7\""), "{told} {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(status("--tun tun8").status.code(), Some(1));
    assert_eq!(status("--tun tun7 --control x").status.code(), Some(2));
}

/// Another user is not answered, whatever the mode of the socket.
#[test]
fn another_user_is_refused() {
    let Some(world) = world() else { return };
    let ztun = router(&world, "");
    fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let refused = |line: &str| {
        let output = world.client.sh(&format!("setpriv --reuid 65534 --clear-groups --regid 65534 {line}"));
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    };
    // The build may lie where that user cannot read.
    let copy = world.dir.path().join("ztun");
    fs::copy(ZTUN, &copy).unwrap();
    let line = format!("{} status --control {}", copy.display(), socket(&world).display());
    assert!(refused(&line).contains("Permission denied"), "by the mode");
    fs::set_permissions(socket(&world), fs::Permissions::from_mode(0o666)).unwrap();
    assert!(refused(&line).contains("as the user that ztun runs as"), "by the kernel's word");
    until("it is in the log", || ztun.log().contains("user 65534 has connected"));
    assert!(cli(&world, "status").status.success());
}

/// Z8: new flows go to the new proxy, old ones live on; and back.
#[test]
fn the_proxy_is_changed_while_flows_live_on() {
    let Some(world) = world() else { return };
    let _first = world.embedded(&world.server, PROXY);
    let _second = world.embedded(&world.server, "10.77.0.2:1081");
    world.echo(&format!("{TARGET}:7"));
    let _ztun = router(&world, "");
    let to = format!("{TARGET}:7");
    let mut old = world.client.connect(&to).unwrap();
    talk(&mut old).unwrap();
    let answer = ask(&world, r#"{"v":1,"id":"x","request":"proxy","proxies":["10.77.0.2:1081"]}"#);
    assert_eq!(answer, serde_json::json!({"v": 1, "id": "x", "ok": {}}));
    let mut new = world.client.connect(&to).unwrap();
    talk(&mut new).unwrap();
    talk(&mut old).unwrap();
    let way = |stream: &std::net::TcpStream| {
        let app = stream.local_addr().unwrap().to_string();
        let flows = json(&world, "flows");
        let found =
            flows["flows"].as_array().unwrap().iter().find(|flow| flow["app"] == app.as_str()).cloned();
        found.unwrap()["outbound"].as_str().unwrap().to_owned()
    };
    assert_eq!(way(&old), "former proxy");
    assert_eq!(way(&new), "proxy 10.77.0.2:1081");
    // One that nobody serves is taken at its word, and told of by what flows come to.
    ask(&world, r#"{"v":1,"request":"proxy","proxies":["10.77.0.2:1999"]}"#);
    assert!(world.client.connect(&to).is_err());
    talk(&mut old).unwrap();
    talk(&mut new).unwrap();
    assert_eq!(json(&world, "status")["proxies"][0]["error"], "connection refused");
    for wrong in [r#"["10.77.0.2:0"]"#, "[]", r#"["example.com:1080"]"#] {
        let answer = ask(&world, &format!(r#"{{"v":1,"request":"proxy","proxies":{wrong}}}"#));
        assert!(answer["error"]["what"].is_string() && answer["ok"].is_null(), "{answer}");
    }
}

/// A proxy on this machine that is taken into use while a run lasts is kept out of its own tunnel.
#[test]
fn a_local_proxy_that_comes_later_stays_outside() {
    let Some(world) = world() else { return };
    let _remote = world.embedded(&world.server, PROXY);
    let _local = world.microsocks(&world.client, "127.0.0.1:1090");
    world.echo(&format!("{TARGET}:7"));
    let _ztun = router(&world, "");
    let answer = ask(&world, r#"{"v":1,"request":"proxy","proxies":["127.0.0.1:1090"]}"#);
    assert!(answer["error"].is_null(), "{answer}");
    let mut app = world.client.connect(&format!("{TARGET}:7")).unwrap();
    talk(&mut app).unwrap();
    let status = json(&world, "status");
    assert!(status["counters"]["flows_kept_outside"].as_u64().unwrap() >= 1, "{status}");
    assert_eq!(status["counters"]["loops_detected"], 0);
}

#[test]
fn the_log_level_changes_while_it_runs() {
    let Some(world) = world() else { return };
    let ztun = router(&world, "");
    let level = |level: &str| ask(&world, &format!(r#"{{"v":1,"request":"log-level","level":"{level}"}}"#));
    // TCP to a proxy that is not there: what becomes of each dial is told at debug level.
    let dial = || assert!(world.client.connect("203.0.113.10:90").is_err());
    dial();
    assert!(!ztun.log().contains(" DEBUG "), "{}", ztun.log());
    assert_eq!(level("trace")["ok"], serde_json::json!({}));
    assert_eq!(json(&world, "status")["log_level"], "trace");
    until("the log has lines of that level", || {
        dial();
        ztun.log().contains(" TRACE ")
    });
    level("info");
    let lines =
        || ztun.log().lines().filter(|line| line.contains(" TRACE ") || line.contains(" DEBUG ")).count();
    let before = lines();
    dial();
    assert_eq!(lines(), before);
    assert_eq!(level("loud")["error"]["code"], "bad-request");
}

/// `stop` is SIGTERM.
#[test]
fn a_router_stops_when_it_is_asked_to() {
    let Some(world) = world() else { return };
    let before = world.client.state();
    let mut ztun = router(&world, "");
    assert_eq!(ask(&world, r#"{"v":1,"request":"stop"}"#)["ok"], serde_json::json!({}));
    assert_eq!(ztun.end(), Some(0));
    assert_eq!(world.client.state(), before);
}

/// A socket that a killed router left is replaced; one that a living router listens on, or that is none, is not.
#[test]
fn a_socket_is_replaced_only_when_nobody_listens() {
    let Some(world) = world() else { return };
    let mut killed = router(&world, "--no-route");
    killed.signal(libc::SIGKILL);
    killed.end();
    assert!(socket(&world).exists());
    let _ztun = router(&world, "--no-route");
    assert_eq!(ask(&world, r#"{"v":1,"request":"ping"}"#)["ok"], serde_json::json!({}));
    let mut command = world.client.command(ZTUN);
    command.args(["--socks5", PROXY, "--no-route", "--tun", "tun9", "--control"]).arg(socket(&world));
    let mut second = world.start(command);
    assert_eq!(second.end(), Some(3), "{}", second.log());
    assert!(second.log().contains("another ztun listens there"), "{}", second.log());
    assert_eq!(ask(&world, r#"{"v":1,"request":"ping"}"#)["ok"], serde_json::json!({}));
}

/// H8: what curl scrapes is what Prometheus reads, and tells the same as the status.
#[test]
fn metrics_are_scraped_while_it_carries() {
    let Some(world) = world() else { return };
    let proxy = world.embedded(&world.server, PROXY);
    let file = world.file(1);
    world.http(&format!("{TARGET}:80"), &file);
    let _ztun = router(&world, "--metrics 127.0.0.1:9100");
    let get = |path: &str| {
        world.client.ok(&format!("curl -s -m 10 -w '%{{http_code}}' http://127.0.0.1:9100/{path}"))
    };
    assert_eq!(get("healthz"), "ok\n200");
    assert_eq!(get("readyz"), "ready\n200");
    assert!(get("else").ends_with("404"));
    world.client.ok(&format!("curl -s -m 60 -o /dev/null http://{TARGET}/file"));
    let text = get("metrics");
    let value = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(value("ztun_download_bytes_total") >= f64::from(1 << 20));
    assert!(value("ztun_tcp_established_total") >= 1.0);
    assert_eq!(value(&format!("ztun_proxy_up{{proxy=\"{PROXY}\"}}")), 1.0);
    let head = world.client.ok("curl -sI -m 10 http://127.0.0.1:9100/metrics");
    assert!(head.contains("application/openmetrics-text") && head.contains("Connection: close"), "{head}");
    drop(proxy);
    // A proxy that is gone is noticed by who wants it.
    assert!(world.client.connect(&format!("{TARGET}:80")).is_err());
    assert_eq!(get("readyz"), "not ready: no proxy can be reached\n503");
    // The port is in use: the reason and what to do, and nothing stays.
    let mut command = world.client.command(ZTUN);
    command.args(["--socks5", PROXY, "--no-route", "--tun", "tun9", "--metrics", "127.0.0.1:9100"]);
    let mut second = world.start(command);
    assert_eq!(second.end(), Some(3), "{}", second.log());
    assert!(second.log().contains("cannot serve metrics at 127.0.0.1:9100"), "{}", second.log());
}

/// Two hundred clients that misbehave in every way cost the traffic nothing, and whoever asks properly is answered.
#[test]
fn hostile_clients_do_not_hold_up_traffic() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    let file = world.file(64);
    world.http(&format!("{TARGET}:80"), &file);
    let ztun = router(&world, "--metrics 127.0.0.1:9100");
    let descriptors = ztun.descriptors();
    let download = world.client.command("curl");
    let mut download = {
        let mut command = download;
        let target = format!("http://{TARGET}/file");
        command.args(["-s", "-m", "120", "-o"]).arg(world.dir.path().join("got")).arg(target);
        world.start(command)
    };
    let flows = b"{\"v\":1,\"request\":\"flows\"}\n".repeat(300);
    let mut hostile = Vec::new();
    for number in 0..200 {
        let Ok(mut stream) = UnixStream::connect(socket(&world)) else { continue };
        stream.set_nonblocking(true).unwrap();
        let text: &[u8] = match number % 6 {
            // Silent; half a line; a line without end; no JSON; asks much and reads nothing; closes at once.
            0 => b"",
            1 => b"{\"v\":1,",
            2 => &[b'x'; 60_000],
            3 => b"\x00\xff\n\n\n[[[[[[[[\n",
            4 => &flows,
            _ => {
                drop(stream);
                continue;
            }
        };
        // The router takes what it will.
        let _ = stream.write(text);
        hostile.push(stream);
    }
    for _ in 0..20 {
        assert_eq!(ask(&world, r#"{"v":1,"request":"ping"}"#)["ok"], serde_json::json!({}));
        assert_eq!(world.client.ok("curl -s -m 10 http://127.0.0.1:9100/healthz"), "ok\n");
    }
    assert_eq!(download.end(), Some(0));
    assert_eq!(sha256_of(&world.dir.path().join("got")), sha256_of(&file));
    drop(hostile);
    until("their descriptors are given back", || {
        ztun.descriptors() <= descriptors + 8 && json(&world, "status")["state"] == "running"
    });
    // Nobody is left who makes it turn for nothing.
    let before = ztun.ticks();
    std::thread::sleep(Duration::from_millis(500));
    assert!(ztun.ticks() - before <= 5, "the loop turns without need");
}

/// The screen of `ztun top` is painted, and comes back as it was.
#[test]
fn top_paints_until_q() {
    let Some(world) = world() else { return };
    let _ztun = router(&world, "");
    let line = format!("{ZTUN} top --control {}", socket(&world).display());
    let output = world.client.sh(&format!("(sleep 1; printf q) | script -qec '{line}' /dev/null"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("\x1b[?1049h") && text.ends_with("\x1b[?1049l"), "{text:?}");
    assert!(text.contains("device   ztun0"), "{text:?}");
    let no_terminal = cli(&world, "top");
    assert_eq!(no_terminal.status.code(), Some(1));
}

/// sd_notify(3): ready, alive, what it does, and stopping, in this order, to whoever starts it.
#[test]
fn the_service_manager_is_told() {
    let Some(world) = world() else { return };
    let path = world.dir.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = world.client.command(ZTUN);
    command.args(["--socks5", PROXY, "--no-route"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000").env_remove("WATCHDOG_PID");
    let mut ztun = world.ready(command);
    let mut said = Vec::new();
    let mut listen = |what: &str| loop {
        let mut buffer = [0; 256];
        let octets = manager.recv(&mut buffer).unwrap();
        said.push(String::from_utf8(buffer[..octets].to_vec()).unwrap());
        if said.iter().filter(|text| text.lines().any(|line| line == what)).count()
            >= if what.starts_with('W') { 3 } else { 1 }
        {
            return;
        }
    };
    listen("READY=1");
    listen("STATUS=0 TCP flows, 0 UDP associations");
    // The loop is idle, and shows three times that it is not dead.
    listen("WATCHDOG=1");
    ztun.signal(libc::SIGTERM);
    listen("STOPPING=1");
    assert_eq!(ztun.end(), Some(0));
    assert_eq!(said[0], "READY=1");
}
