//! How each row is measured for one contestant.

use crate::Res;
use crate::net::{Net, Site, TARGET, within};
use crate::orchestrate::Contestant;
use crate::process::{self, Running};
use crate::programs::{Files, Program};
use crate::report::Values;
use crate::target::CHUNK;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Descriptors that each process has beside its connections, and some to spare.
const SPARE: u64 = 1_000;

/// What one source address can have towards one server, by its ports.
const PORTS: u64 = 60_000;

/// What all measures share.
pub(crate) struct Rows {
    // Processes end before their namespaces go.
    pub(crate) contestants: Vec<Contestant>,
    pub(crate) server: Option<Running>,
    pub(crate) target: Running,
    pub(crate) net: Net,
    pub(crate) files: Files,
    pub(crate) values: Values,
    /// How long a row is measured.
    pub(crate) seconds: f64,
    /// Open files of a process.
    pub(crate) limit: u64,
    /// Where the contestants find their SOCKS5 server.
    pub(crate) port: u16,
    /// When it all began.
    pub(crate) start: Instant,
}

/// What a load has said, and the CPU seconds that passed meanwhile.
struct Measured {
    words: BTreeMap<String, f64>,
    /// Of the contestant.
    own: f64,
    /// Of everybody: contestant, SOCKS5 server, targets, load.
    total: f64,
}

impl Measured {
    fn get(&self, word: &str) -> Res<f64> {
        self.words.get(word).copied().ok_or_else(|| format!("the load says nothing of {word}").into())
    }
}

fn words(text: &str) -> BTreeMap<String, f64> {
    let word = |word: &str| {
        let (name, value) = word.split_once('=')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    text.split_whitespace().filter_map(word).collect()
}

/// One rate of datagrams at which all but a few come back.
struct Carried {
    /// Datagrams that came back in a second.
    packets: f64,
    /// Per cent.
    loss: f64,
    /// CPU micro-seconds of the contestant per datagram.
    cpu: f64,
}

impl Rows {
    /// Progress, with the time since the start.
    pub(crate) fn say(&self, what: &str) {
        eprintln!("{:>6.0} s  {what}", self.start.elapsed().as_secs_f64());
    }

    /// Starts a contestant that does not run, or no longer carries.
    pub(crate) fn revive(&mut self, index: usize) -> Res<()> {
        let contestant = &mut self.contestants[index];
        if contestant.running.as_mut().is_some_and(Running::is_alive) {
            return Ok(());
        }
        contestant.running = None;
        contestant.running = self.files.start(contestant.program, &contestant.site, self.port)?;
        Ok(())
    }

    /// Ends every contestant.
    pub(crate) fn end_all(&mut self) {
        for contestant in &mut self.contestants {
            contestant.running = None;
        }
    }

    /// Runs `load` for one contestant.
    fn measure(&self, index: usize, load: &[&str], seconds: f64) -> Res<Measured> {
        let Contestant { program, site, running } = &self.contestants[index];
        let mut command = self.files.own(&site.app, &["role-load"]);
        let (target, seconds) = (program.target().to_string(), seconds.to_string());
        command.args(load).args(["--target", &target, "--seconds", &seconds]);
        if *program == Program::None {
            command.args(["--socks", &format!("{}:{}", site.server, self.port)]);
        }
        let cpu =
            |process: Option<&Running>| process.map_or(0.0, |process| process::cpu_of_tree(process.pid()));
        let others = || cpu(self.server.as_ref()) + cpu(Some(&self.target));
        let before = (cpu(running.as_ref()), others());
        let text = crate::net::run(&mut command)?;
        let (own, others) = (cpu(running.as_ref()) - before.0, others() - before.1);
        let words = words(&text);
        let total = own + others + words.get("cpu").copied().unwrap_or(0.0);
        Ok(Measured { words, own, total })
    }

    /// Streams in one direction.
    pub(crate) fn bulk(&mut self, index: usize, key: &str, load: &str, streams: &str) -> Res<()> {
        let program = self.contestants[index].program;
        let measured = self.measure(index, &[load, "--count", streams], self.seconds)?;
        let gigabytes = measured.get("octets")? / 1e9;
        // Less than a few chunks is no rate.
        if gigabytes * 1e9 < (8 * CHUNK) as f64 {
            return Err("next to nothing was carried".into());
        }
        self.values.add(key, program, measured.get("gbps")?);
        if streams != "1" {
            self.values.add(&format!("{key}.spread"), program, measured.get("spread")?);
        }
        self.values.add(&format!("{key}.total"), program, measured.total / gigabytes);
        if program != Program::None {
            self.values.add(&format!("{key}.cpu"), program, measured.own / gigabytes);
        }
        Ok(())
    }

    /// Round trips, beside what `more` says.
    pub(crate) fn latency(&mut self, index: usize, key: &str, more: &[&str]) -> Res<()> {
        let program = self.contestants[index].program;
        let load = [&["latency"], more].concat();
        let measured = self.measure(index, &load, self.seconds)?;
        for part in ["p50", "p99"] {
            self.values.add(&format!("{key}.{part}"), program, measured.get(part)?);
        }
        Ok(())
    }

    /// Round trips of many slow flows beside two fast ones.
    pub(crate) fn crowd(&mut self, index: usize) -> Res<()> {
        let program = self.contestants[index].program;
        let measured = self.measure(index, &["crowd", "--count", "1000"], self.seconds)?;
        for part in ["p50", "p99", "up", "down"] {
            self.values.add(&format!("crowd.{part}"), program, measured.get(part)?);
        }
        Ok(())
    }

    /// Connections made and ended.
    pub(crate) fn connections(&mut self, index: usize) -> Res<()> {
        let program = self.contestants[index].program;
        let measured = self.measure(index, &["connections", "--count", "50"], self.seconds);
        // Connections that it does not close must not fill the server for the next one.
        self.contestants[index].running = None;
        let measured = measured?;
        let (made, failed) = (measured.get("made")?, measured.get("failed")?);
        if made < 1.0 {
            return Err(format!("no connection was made, {failed} failed").into());
        }
        self.values.add("conn", program, measured.get("rate")?);
        self.values.add("conn.failed", program, failed / (made + failed) * 1e4);
        if program != Program::None {
            self.values.add("conn.cpu", program, measured.own / made * 1e6);
        }
        Ok(())
    }

    /// Memory of a fresh process without, with some, and with many connections; the CPU that 10,000 of them take.
    pub(crate) fn idle(&mut self, index: usize) -> Res<()> {
        let Contestant { program, site, running } = &self.contestants[index];
        let (program, site) = (*program, site.clone());
        let pid = running.as_ref().ok_or("there is no process")?.pid();
        let most = (self.limit.saturating_sub(SPARE)).min(PORTS).min(100_000);
        if most < 100_000 {
            self.values.note(format!(
                "100,000 idle connections: {} open files are allowed to a process here, and one address has {PORTS} ports towards one SOCKS5 server; {most} were measured instead",
                self.limit
            ));
        }
        self.values.most = most;
        let empty = process::resident_kb(pid)?;
        self.values.add("idle.rss.0", program, empty);
        let rows = [
            (1_000, Some("idle.rss.1k"), "idle.flow.1k"),
            (10_000, Some("idle.rss.10k"), "idle.flow.10k"),
            (most, None, "idle.flow.most"),
        ];
        let mut loads = Loads::default();
        for (want, rss, per_flow) in rows {
            if want > most || want <= loads.open {
                continue;
            }
            self.hold(program, &site, want - loads.open, &mut loads)?;
            // What was set up has to come to rest.
            thread::sleep(Duration::from_millis(500));
            let resident = process::resident_kb(pid)?;
            if loads.open * 100 < want * 99 {
                return Err(format!("only {} of {want} idle connections could be opened", loads.open).into());
            }
            if let Some(rss) = rss {
                self.values.add(rss, program, resident);
            }
            self.values.add(per_flow, program, (resident - empty) / loads.open as f64);
            if want == 10_000 {
                let before = (Instant::now(), process::cpu_of_tree(pid));
                thread::sleep(Duration::from_secs_f64(self.seconds));
                let used = process::cpu_of_tree(pid) - before.1;
                self.values.add("idle.cpu", program, used / before.0.elapsed().as_secs_f64() * 100.0);
            }
        }
        drop(loads);
        // The next row wants a fresh one.
        self.contestants[index].running = None;
        Ok(())
    }

    /// A load that holds `count` more connections.
    fn hold(&self, program: Program, site: &Site, count: u64, loads: &mut Loads) -> Res<()> {
        let (target, count) = (program.target().to_string(), count.to_string());
        let args = ["role-load", "idle", "--target", &target, "--count", &count];
        let mut child = self.files.own(&site.app, &args).stdin(Stdio::piped()).spawn()?;
        let output = child.stdout.take();
        loads.children.push(child);
        let mut line = String::new();
        BufReader::new(output.ok_or("standard output is not piped")?).read_line(&mut line)?;
        loads.open += words(&line).get("open").copied().ok_or("the load has failed")? as u64;
        Ok(())
    }

    /// The highest rate of datagrams with less than 1 % loss: upwards in steps until that is lost, then closer.
    pub(crate) fn udp(&mut self, index: usize) -> Res<()> {
        const STEP: f64 = 1.5;
        let program = self.contestants[index].program;
        let mut rate = 10_000.0;
        let mut best = self.carries(index, rate)?;
        while best.is_none() && rate > 1_000.0 {
            rate /= 2.0;
            best = self.carries(index, rate)?;
        }
        let mut best = best.ok_or_else(|| format!("more than 1 % is lost at {rate} datagrams a second"))?;
        let mut too_fast = f64::INFINITY;
        while too_fast.is_infinite() && rate < 4e6 {
            match self.carries(index, rate * STEP)? {
                Some(carried) => {
                    best = carried;
                    rate *= STEP;
                }
                None => too_fast = rate * STEP,
            }
        }
        for _ in 0..3 {
            let between = (rate * too_fast).sqrt();
            match self.carries(index, between)? {
                Some(carried) => {
                    best = carried;
                    rate = between;
                }
                None => too_fast = between,
            }
        }
        self.values.add("udp", program, best.packets);
        self.values.add("udp.loss", program, best.loss);
        if program != Program::None {
            self.values.add("udp.cpu", program, best.cpu);
        }
        Ok(())
    }

    /// Whether a rate is carried. A disturbance of the machine is no answer: it has two tries.
    fn carries(&self, index: usize, rate: f64) -> Res<Option<Carried>> {
        let seconds = (self.seconds / 4.0).max(0.2);
        let mut failed = None;
        for _ in 0..2 {
            let measured = match self.measure(index, &["udp", "--rate", &rate.to_string()], seconds) {
                Ok(measured) => measured,
                Err(error) => {
                    failed = Some(error);
                    continue;
                }
            };
            failed = None;
            let (sent, received) = (measured.get("sent")?, measured.get("received")?);
            let loss = (1.0 - received / sent.max(1.0)) * 100.0;
            if loss < 1.0 {
                let packets = received / measured.get("seconds")?;
                return Ok(Some(Carried { packets, loss, cpu: measured.own / received.max(1.0) * 1e6 }));
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(None),
        }
    }

    /// Queries from four sockets. dnsperf cannot speak SOCKS5 itself: without a tunnel it asks the name server, which shows what dnsperf can do here.
    pub(crate) fn dns(&mut self, index: usize) -> Res<()> {
        let Contestant { program, site, .. } = &self.contestants[index];
        let program = *program;
        let server = if program == Program::None { site.server } else { TARGET };
        let queries = self.files.dir.path().join("queries");
        let mut text = String::new();
        for number in 0..1_000 {
            writeln!(text, "host{number}.example A")?;
        }
        fs::write(&queries, text)?;
        let mut command = within(&site.app, "dnsperf");
        command.arg("-d").arg(&queries).args(["-s", &server.to_string(), "-c", "4", "-q", "100", "-t", "1"]);
        command.args(["-l", &self.seconds.ceil().to_string()]);
        let text = crate::net::run(&mut command)?;
        let number = |label: &str| -> Res<f64> {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(label));
            let word = line.and_then(|line| line.split_whitespace().next());
            word.and_then(|word| word.parse().ok()).ok_or_else(|| format!("dnsperf says no '{label}'").into())
        };
        let (sent, lost) = (number("Queries sent:")?, number("Queries lost:")?);
        if lost >= sent {
            return Err(format!("all of {sent} queries were lost").into());
        }
        self.values.add("dns", program, number("Queries per second:")?);
        self.values.add("dns.lost", program, lost / sent * 100.0);
        Ok(())
    }

    /// Queries each from a socket of its own.
    pub(crate) fn names(&mut self, index: usize) -> Res<()> {
        let program = self.contestants[index].program;
        let measured = self.measure(index, &["names", "--count", "50"], self.seconds)?;
        let (answered, lost) = (measured.get("answered")?, measured.get("lost")?);
        if answered < 1.0 {
            return Err(format!("no query was answered, {lost} were lost").into());
        }
        self.values.add("names", program, measured.get("rate")?);
        self.values.add("names.lost", program, lost / (answered + lost) * 100.0);
        Ok(())
    }
}

/// Loads that hold connections until this ends.
#[derive(Default)]
struct Loads {
    children: Vec<Child>,
    /// Connections of all.
    open: u64,
}

impl Drop for Loads {
    fn drop(&mut self) {
        for child in &mut self.children {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
