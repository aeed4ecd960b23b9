//! `ztun status`, `ztun flows`: asks a running router over its control socket.

use super::options::{AskOptions, WhereOptions};
use super::{Error, print};
use crate::config;
use crate::control::client::{AskError, Client};
use crate::control::protocol::{Flow, Flows, ProxyStatus, RunState, Status};
use crate::host::RunDir;
use crate::time::Duration;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// `ztun status`.
pub(super) fn status(options: &AskOptions) -> Result<u8, Error> {
    let (mut client, path) = connect(&options.place)?;
    let status = client.status().map_err(|error| failed(&path, &error))?;
    if options.json {
        return print_json(&status);
    }
    print(|out| out.write_all(status_text(&status).as_bytes()))
}

/// `ztun flows`.
pub(super) fn flows(options: &AskOptions) -> Result<u8, Error> {
    let (mut client, path) = connect(&options.place)?;
    let mut all = Vec::new();
    if options.json {
        client
            .flows(|flows| {
                all.extend(flows);
                true
            })
            .map_err(|error| failed(&path, &error))?;
        return print_json(&Flows { flows: all, next: None });
    }
    // A page at a time: a reader that goes away (`ztun flows | head`) ends it.
    let mut written = Ok(());
    let mut first = true;
    client
        .flows(|flows| {
            let mut text = if core::mem::take(&mut first) { format!("{FLOW_HEAD}\n") } else { String::new() };
            for flow in &flows {
                text.push_str(&flow_line(flow));
                text.push('\n');
            }
            written = io::stdout().lock().write_all(text.as_bytes());
            written.is_ok()
        })
        .map_err(|error| failed(&path, &error))?;
    print(|_| written)
}

fn print_json(value: &impl serde::Serialize) -> Result<u8, Error> {
    print(|out| {
        serde_json::to_writer(&mut *out, value).map_err(io::Error::from)?;
        out.write_all(b"\n")
    })
}

/// Connects to the router that is meant.
pub(super) fn connect(place: &WhereOptions) -> Result<(Client, PathBuf), Error> {
    let path = match (&place.control, &place.tun) {
        (Some(path), _) => path.clone(),
        (None, Some(tun)) => socket_of(tun),
        (None, None) => found()?,
    };
    let client = Client::connect(&path).map_err(|error| refused(&path, &error))?;
    Ok((client, path))
}

/// The only router's socket, or that of the device that one has by default.
fn found() -> Result<PathBuf, Error> {
    let default = socket_of(config::DEVICE);
    if default.exists() {
        return Ok(default);
    }
    let mut others = sockets();
    match others.len() {
        0 => Ok(default),
        1 => Ok(others.swap_remove(0)),
        _ => {
            let names: Vec<String> = others.iter().map(|path| path.display().to_string()).collect();
            Err(Error {
                code: 1,
                what: "more than one ztun is running".into(),
                remedy: Some(format!("--control with one of {}", names.join(", "))),
            })
        }
    }
}

fn socket_of(tun: &str) -> PathBuf {
    RunDir::standard().control_socket(tun)
}

/// All control sockets of this network namespace, in the order of their names.
fn sockets() -> Vec<PathBuf> {
    RunDir::standard().control_sockets()
}

/// Nobody can be asked.
fn refused(path: &Path, error: &io::Error) -> Error {
    let kind = error.kind();
    let remedy = if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
        "no ztun runs there: start one, or name the one that does with --tun NAME or --control PATH"
    } else if kind == io::ErrorKind::PermissionDenied {
        "ask as the user that ztun runs as, or as root (`sudo ztun status`; on Windows as administrator)"
    } else {
        "look whether a ztun runs (`ps -C ztun`)"
    };
    Error::system(1, &format!("cannot ask ztun at {}", path.display()), error, remedy)
}

/// The one that listens does not answer.
pub(super) fn failed(path: &Path, error: &AskError) -> Error {
    let remedy = match error {
        AskError::Io(error) if error.kind() == io::ErrorKind::WouldBlock => {
            "it may be stopping, or stopped by a debugger: look at its log"
        }
        // Another user's connection is closed without a word.
        AskError::Io(_) => "ask as the user that ztun runs as, or as root; if you do, it has just ended",
        AskError::Refused(_) => "see docs/CONTROL.md for what can be asked",
        AskError::Answer(_) => "ask with the ztun of the version that runs",
    };
    Error { code: 1, what: format!("{}: {error}", path.display()), remedy: Some(remedy.into()) }
}

/// What is told to people.
pub(super) fn status_text(status: &Status) -> String {
    let mut text = String::new();
    for (name, value) in status_lines(status) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<9}{value}");
    }
    text
}

fn status_lines(status: &Status) -> Vec<(&'static str, String)> {
    let state = match status.state {
        RunState::Running => "running",
        RunState::NoDevice => "without its device, which is being made anew",
        RunState::Stopping => "stopping",
    };
    let up = duration(status.uptime_ms);
    let mut lines = vec![(
        "ztun",
        format!(
            "{} (process {}), {state}, up {up}, log level {}",
            status.version, status.pid, status.log_level
        ),
    )];
    if let Some(device) = &status.device {
        let offload = if device.offload { "with offload" } else { "without offload" };
        lines.push(("device", format!("{}, MTU {}, {offload}", device.name, device.mtu)));
    }
    lines.extend(status.proxies.iter().map(|proxy| ("proxy", proxy_text(proxy))));
    let flows = &status.flows;
    let count = |name: &str| status.counters.get(name).copied().unwrap_or(0);
    lines.push((
        "flows",
        format!(
            "{} TCP of {} ({} being opened), {} UDP of {}, {} names being asked",
            flows.tcp, flows.tcp_limit, flows.tcp_opening, flows.udp, flows.udp_limit, flows.dns
        ),
    ));
    lines.push((
        "traffic",
        format!(
            "{} up, {} down; {} datagrams out, {} in",
            octets(count("upload_bytes")),
            octets(count("download_bytes")),
            count("datagrams_sent"),
            count("datagrams_received")
        ),
    ));
    lines.push((
        "names",
        format!(
            "{} asked, {} answered, {} not in time",
            count("dns_queries"),
            count("dns_answers"),
            count("dns_timeouts")
        ),
    ));
    lines.push((
        "refused",
        format!("{} flows, {} dials failed", count("flows_refused"), count("dials_failed")),
    ));
    let memory = &status.memory;
    lines.push((
        "memory",
        format!(
            "{} in buffers of at most {}, {} in the table of flows",
            octets(memory.buffers as u64),
            octets(memory.buffer_limit as u64),
            octets(memory.tcp_table as u64)
        ),
    ));
    let drops: Vec<String> =
        status.drops.iter().filter(|(_, n)| **n > 0).map(|(why, n)| format!("{n} {why}")).collect();
    if !drops.is_empty() {
        lines.push(("dropped", drops.join(", ")));
    }
    lines
}

fn proxy_text(proxy: &ProxyStatus) -> String {
    let reach = match (proxy.reachable, proxy.down_ms) {
        (None, _) => "not tried yet".into(),
        (Some(true), _) => "can be reached".into(),
        (Some(false), Some(ms)) => format!("cannot be reached for {}", duration(ms)),
        (Some(false), None) => "cannot be reached".into(),
    };
    let error = proxy.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    format!("{} {reach}{error}; {} connections ready", proxy.addr, proxy.pooled)
}

/// The columns of [`flow_line`].
pub(super) const FLOW_HEAD: &str = "PROTO APP                     TO                      WAY                     STATE               UP      DOWN    AGE   IDLE";

/// One flow in a line.
pub(super) fn flow_line(flow: &Flow) -> String {
    let state = match (flow.phase.as_str(), &flow.tcp) {
        ("relaying" | "finishing", Some(tcp)) => tcp.clone(),
        (phase, _) => phase.to_owned(),
    };
    format!(
        "{:<5} {:<23} {:<23} {:<23} {state:<13} {:>8}  {:>8} {:>6} {:>6}",
        flow.proto,
        flow.app.to_string(),
        flow.to.to_string(),
        flow.outbound,
        octets(flow.up),
        octets(flow.down),
        duration(flow.age_ms),
        duration(flow.idle_ms)
    )
}

/// Octets in at most seven characters: `999 B`, `1.5 KiB`, `12.3 GiB`.
pub(super) fn octets(octets: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if octets < 1_024 {
        return format!("{octets} B");
    }
    let mut value = octets as f64 / 1_024.0;
    let mut unit = 0;
    // What would be rounded up to 1024 is one of the next unit.
    while value >= 1_023.95 && unit + 1 < UNITS.len() {
        value /= 1_024.0;
        unit += 1;
    }
    let digits = usize::from(value < 99.95);
    format!("{value:.digits$} {}", UNITS[unit])
}

/// Time in its two largest units: `12s`, `3m05s`, `2h04m`, `9d23h`.
pub(super) fn duration(millis: u64) -> String {
    let seconds = Duration::from_millis(millis).as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::control::protocol::{DeviceStatus, FlowCounts, MemoryStatus};

    pub(in crate::cli) fn a_status() -> Status {
        let proxy = |addr: &str, reachable, error: Option<&str>| ProxyStatus {
            addr: addr.parse().unwrap(),
            credentials: false,
            reachable,
            down_ms: error.map(|_| 61_000),
            error: error.map(str::to_owned),
            pooled: 4,
        };
        Status {
            version: "0.1.0".into(),
            pid: 42,
            uptime_ms: 3_725_000,
            state: RunState::Running,
            device: Some(DeviceStatus { name: "ztun0".into(), mtu: 1500, offload: true }),
            proxies: vec![
                proxy("127.0.0.1:1080", Some(true), None),
                proxy("[2001:db8::1]:1080", Some(false), Some("connection refused")),
            ],
            flows: FlowCounts { tcp: 12, tcp_limit: 65_536, udp: 3, udp_limit: 16_384, ..Default::default() },
            memory: MemoryStatus { buffers: 1 << 20, buffer_limit: 512 << 20, ..Default::default() },
            log_level: "info".into(),
            counters: [("upload_bytes".to_owned(), 1_536), ("download_bytes".to_owned(), 5 << 30)].into(),
            drops: [("bad_ip".to_owned(), 2), ("noise".to_owned(), 0)].into(),
            rejections: Default::default(),
        }
    }

    pub(in crate::cli) fn a_flow(down: u64) -> Flow {
        Flow {
            proto: "tcp".into(),
            app: "198.18.0.1:40000".parse().unwrap(),
            to: "203.0.113.5:443".parse().unwrap(),
            outbound: "proxy 127.0.0.1:1080".into(),
            phase: "relaying".into(),
            tcp: Some("ESTABLISHED".into()),
            up: 100,
            down,
            age_ms: 1_000,
            idle_ms: 0,
        }
    }

    #[test]
    fn a_status_is_told_in_lines() {
        let text = status_text(&a_status());
        for line in [
            "ztun     0.1.0 (process 42), running, up 1h02m, log level info",
            "device   ztun0, MTU 1500, with offload",
            "proxy    127.0.0.1:1080 can be reached; 4 connections ready",
            "proxy    [2001:db8::1]:1080 cannot be reached for 1m01s: connection refused; 4 connections ready",
            "flows    12 TCP of 65536 (0 being opened), 3 UDP of 16384, 0 names being asked",
            "traffic  1.5 KiB up, 5.0 GiB down; 0 datagrams out, 0 in",
            "dropped  2 bad_ip",
        ] {
            assert!(text.lines().any(|have| have == line), "no '{line}' in\n{text}");
        }
    }

    #[test]
    fn a_flow_stands_below_its_heads() {
        let line = flow_line(&a_flow(2_048));
        let at = |head: &str| FLOW_HEAD.find(&format!(" {head}")).unwrap() + 1;
        assert!(line[at("APP")..].starts_with("198.18.0.1:40000 "));
        assert!(line[at("TO ")..].starts_with("203.0.113.5:443 "));
        assert!(line[at("WAY")..].starts_with("proxy 127.0.0.1:1080 "));
        assert!(line[at("STATE")..].starts_with("ESTABLISHED "));
        assert!(line[..at("UP") + 2].ends_with(" 100 B"), "{line}");
        assert!(line[..at("DOWN") + 4].ends_with(" 2.0 KiB"), "{line}");
        assert!(line[..at("AGE") + 3].ends_with(" 1s"), "{line}");
        assert_eq!(line.len(), FLOW_HEAD.len());
    }

    #[test]
    fn numbers_are_told_briefly() {
        for (number, text) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1.0 KiB"),
            (102_399, "100 KiB"),
            (1_048_575, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(octets(number), text);
        }
        for (millis, text) in [
            (999, "0s"),
            (59_999, "59s"),
            (60_000, "1m00s"),
            (7_440_000, "2h04m"),
            (u64::MAX, "213503982334d14h"),
        ] {
            assert_eq!(duration(millis), text);
        }
    }

    #[test]
    fn nobody_there_is_an_error_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let control = Some(dir.path().join("none.sock"));
        let error = connect(&WhereOptions { tun: None, control }).unwrap_err();
        assert_eq!(error.code, 1);
        assert!(error.what.contains("none.sock") && error.remedy.unwrap().contains("--tun"));
    }
}
