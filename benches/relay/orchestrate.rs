//! Rounds of rows of contestants.

use crate::net::{Net, Site, TARGET, within};
use crate::programs::{self, Files, Program, Running, Server};
use crate::report::{self, Values};
use crate::target::CHUNK;
use crate::{Res, option, parsed};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Groups of rows.
const GROUPS: [&str; 6] = ["bulk", "latency", "connections", "idle", "udp", "dns"];

/// Connections in a row of idle ones: one descriptor each in every process, and some to spare.
const IDLE: [(u64, &str, &str); 2] = [(1_000, "rss.1k", "flow.1k"), (10_000, "rss.10k", "flow.10k")];

/// What was asked for.
#[derive(Debug)]
struct Plan {
    rounds: usize,
    seconds: f64,
    server: Server,
    groups: Vec<&'static str>,
    programs: Vec<Program>,
    /// Where the table goes.
    document: Option<PathBuf>,
}

impl Plan {
    fn read(args: &[String]) -> Res<Plan> {
        const KNOWN: [&str; 8] =
            ["--quick", "--print", "--rounds", "--seconds", "--server", "--only", "--programs", "--ztun"];
        if let Some(arg) = args.iter().find(|arg| arg.starts_with('-') && !KNOWN.contains(&arg.as_str())) {
            return Err(format!("{arg}: no such option; --help names them").into());
        }
        let flag = |name: &str| args.iter().any(|arg| arg == name);
        let quick = flag("--quick");
        let chosen = |name: &str, all: &[&'static str]| -> Res<Vec<&'static str>> {
            let Some(list) = option(args, name) else { return Ok(all.to_vec()) };
            let find = |word: &str| all.iter().find(|known| **known == word).copied();
            list.split(',')
                .map(|word| find(word).ok_or_else(|| format!("{name}: no '{word}'").into()))
                .collect()
        };
        let server = option(args, "--server").unwrap_or(Server::Embedded.name());
        let names = Program::ALL.map(Program::name);
        let programs = chosen("--programs", &names)?;
        let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/benchmarks.md");
        Ok(Plan {
            rounds: parsed(args, "--rounds")?.unwrap_or(if quick { 1 } else { 5 }).max(1),
            seconds: parsed(args, "--seconds")?.unwrap_or(if quick { 0.4 } else { 2.0 }),
            server: Server::ALL
                .into_iter()
                .find(|known| known.name() == server)
                .ok_or_else(|| format!("--server: no '{server}'"))?,
            groups: chosen("--only", &GROUPS)?,
            programs: Program::ALL.into_iter().filter(|program| programs.contains(&program.name())).collect(),
            document: (!quick && !flag("--print")).then_some(document),
        })
    }

    fn wants(&self, group: &str) -> bool {
        self.groups.contains(&group)
    }
}

/// One contestant while it runs.
struct Contestant {
    program: Program,
    site: Site,
    running: Option<Running>,
}

/// The whole set-up.
struct Bench {
    plan: Plan,
    // Processes end before their namespaces go.
    contestants: Vec<Contestant>,
    server: Option<Running>,
    target: Running,
    net: Net,
    files: Files,
    values: Values,
}

/// Runs what `args` ask for.
pub(crate) fn run(args: &[String]) -> Res<()> {
    let plan = Plan::read(args)?;
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return Err("namespaces and devices are made here: run it as root".into());
    }
    let limit = ztun::driver::limits::raise_open_files()?;
    let files = Files {
        dir: tempfile::tempdir()?,
        ztun: option(args, "--ztun").unwrap_or(env!("CARGO_BIN_EXE_ztun")).into(),
        tun2proxy: tun2proxy()?,
        own: std::env::current_exe()?,
    };
    let mut net = Net::new()?;
    let mut contestants = Vec::new();
    for program in &plan.programs {
        contestants.push(Contestant { program: *program, site: net.site(program.name())?, running: None });
    }
    let target = files.start_target(net.server())?;
    let mut bench = Bench { plan, contestants, server: None, target, net, files, values: Values::default() };
    let start = Instant::now();
    for round in 1..=bench.plan.rounds {
        eprintln!("round {round} of {}, {:.0} s", bench.plan.rounds, start.elapsed().as_secs_f64());
        if bench.plan.wants("idle") {
            bench.idle_rows(limit);
        }
        if bench.plan.groups.iter().any(|group| *group != "idle") {
            bench.speed_rows()?;
        }
    }
    let text = bench.report();
    match &bench.plan.document {
        Some(document) => {
            report::write(document, &text)?;
            eprintln!("written to {}", document.display());
        }
        None => println!("{text}"),
    }
    Ok(())
}

/// On the path or where cargo puts programs.
fn tun2proxy() -> Res<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let mut places: Vec<PathBuf> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    places.extend(home.map(|home| home.join("bin")));
    let found = places.into_iter().map(|place| place.join("tun2proxy-bin")).find(|path| path.exists());
    found.ok_or_else(|| "tun2proxy-bin is missing: cargo install tun2proxy --locked".into())
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

impl Bench {
    fn idle_rows(&mut self, limit: u64) {
        for index in 0..self.contestants.len() {
            let (program, site) = (self.contestants[index].program, self.contestants[index].site.clone());
            if !program.is_tunnel() {
                continue;
            }
            eprintln!("  idle {}", program.name());
            if let Err(error) = self.idle(program, &site, limit) {
                self.values.fail(format!("{}: idle connections: {error}", program.name()));
            }
        }
    }

    /// Memory of a fresh process without, with some, and with many connections; then the CPU that they take.
    fn idle(&mut self, program: Program, site: &Site, limit: u64) -> Res<()> {
        let running = self.files.start(program, site, programs::IDLE_PORT)?.ok_or("there is no process")?;
        let empty = programs::resident_kb(running.pid())?;
        self.values.add("rss.0", program, empty);
        let mut loads = Vec::new();
        let mut open = 0;
        for (want, rss, per_flow) in IDLE {
            if want + 500 > limit {
                self.values.fail(format!("{want} idle connections: the limit on open files is {limit}"));
                break;
            }
            let (load, opened) = self.hold(program, site, want - open)?;
            loads.push(load);
            open += opened;
            // What was set up has to come to rest.
            thread::sleep(Duration::from_millis(500));
            let resident = programs::resident_kb(running.pid())?;
            if open * 100 < want * 99 {
                return Err(format!("only {open} of {want} could be opened; {}", running.log_tail()).into());
            }
            self.values.add(rss, program, resident);
            self.values.add(per_flow, program, (resident - empty) / open as f64);
        }
        let before = (Instant::now(), programs::cpu_of_tree(running.pid()));
        thread::sleep(Duration::from_secs_f64(self.plan.seconds));
        let used = programs::cpu_of_tree(running.pid()) - before.1;
        self.values.add("idle.cpu", program, used / before.0.elapsed().as_secs_f64() * 100.0);
        for mut load in loads {
            load.kill()?;
            load.wait()?;
        }
        Ok(())
    }

    /// A load that holds `count` more connections, and how many it has opened.
    fn hold(&self, program: Program, site: &Site, count: u64) -> Res<(Child, u64)> {
        let (target, count) = (program.target().to_string(), count.to_string());
        let args = ["role-load", "idle", "--target", &target, "--count", &count];
        let mut load = self.files.own(&site.name, &args).stdin(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(load.stdout.take().ok_or("standard output is not piped")?).read_line(&mut line)?;
        let opened = words(&line).get("open").copied().ok_or("the load has failed")?;
        Ok((load, opened as u64))
    }

    /// All rows but those of idle connections, once for each contestant.
    fn speed_rows(&mut self) -> Res<()> {
        let server = self.files.start_server(self.plan.server, self.net.server())?;
        if let Some(first) = self.contestants.first() {
            self.files.wait_for_server(&first.site, &server)?;
        }
        self.server = Some(server);
        type Measure = fn(&mut Bench, usize) -> Res<()>;
        const ROWS: [(&str, &str, Measure); 10] = [
            ("bulk", "up1", |bench, index| bench.bulk(index, "up1", "upload", "1")),
            ("bulk", "up10", |bench, index| bench.bulk(index, "up10", "upload", "10")),
            ("bulk", "down1", |bench, index| bench.bulk(index, "down1", "download", "1")),
            ("bulk", "down10", |bench, index| bench.bulk(index, "down10", "download", "10")),
            ("latency", "echo", |bench, index| bench.latency(index, "echo", &[])),
            ("latency", "loaded", |bench, index| bench.latency(index, "loaded", &["--bulk", "1000"])),
            ("latency", "paced", |bench, index| bench.latency(index, "paced", &["--bulk", "0.5"])),
            ("udp", "udp", Bench::udp),
            ("dns", "dns", Bench::dns),
            ("connections", "conn", Bench::connections),
        ];
        for (group, row, measure) in ROWS {
            if !self.plan.wants(group) {
                continue;
            }
            eprintln!("  {row}");
            for index in 0..self.contestants.len() {
                let program = self.contestants[index].program;
                let result = self.revive(index).and_then(|()| measure(self, index));
                if let Err(error) = result {
                    eprintln!("    {}: {error}", program.name());
                    self.values.fail(format!("{}: {row}: {error}", program.name()));
                }
            }
        }
        for contestant in &mut self.contestants {
            contestant.running = None;
        }
        self.server = None;
        Ok(())
    }

    /// Starts a contestant that does not run, or no longer carries.
    fn revive(&mut self, index: usize) -> Res<()> {
        let contestant = &mut self.contestants[index];
        if contestant.running.as_mut().is_some_and(Running::is_alive) {
            return Ok(());
        }
        contestant.running = None;
        contestant.running = self.files.start(contestant.program, &contestant.site, Server::PORT)?;
        Ok(())
    }

    /// Runs `load` for one contestant.
    fn measure(&self, index: usize, load: &[&str], seconds: f64) -> Res<Measured> {
        let Contestant { program, site, running } = &self.contestants[index];
        let mut command = self.files.own(&site.name, &["role-load"]);
        command.args(load).args([
            "--target",
            &program.target().to_string(),
            "--seconds",
            &seconds.to_string(),
        ]);
        if *program == Program::None {
            command.args(["--socks", &format!("{}:{}", site.server, Server::PORT)]);
        }
        let cpu =
            |process: Option<&Running>| process.map_or(0.0, |process| programs::cpu_of_tree(process.pid()));
        let others = || cpu(self.server.as_ref()) + cpu(Some(&self.target));
        let before = (cpu(running.as_ref()), others());
        let text = crate::net::run(&mut command)?;
        let (own, others) = (cpu(running.as_ref()) - before.0, others() - before.1);
        let words = words(&text);
        let total = own + others + words.get("cpu").copied().unwrap_or(0.0);
        Ok(Measured { words, own, total })
    }

    fn bulk(&mut self, index: usize, key: &str, load: &str, streams: &str) -> Res<()> {
        let program = self.contestants[index].program;
        let measured = self.measure(index, &[load, "--count", streams], self.plan.seconds)?;
        let gigabytes = measured.get("octets")? / 1e9;
        // Less than a few chunks is no rate.
        if gigabytes * 1e9 < (8 * CHUNK) as f64 {
            return Err("next to nothing was carried".into());
        }
        self.values.add(key, program, measured.get("gbps")?);
        self.values.add(&format!("{key}.spread"), program, measured.get("spread")?);
        self.values.add(&format!("{key}.total"), program, measured.total / gigabytes);
        if program != Program::None {
            self.values.add(&format!("{key}.cpu"), program, measured.own / gigabytes);
        }
        Ok(())
    }

    fn latency(&mut self, index: usize, key: &str, more: &[&str]) -> Res<()> {
        let program = self.contestants[index].program;
        let load = [&["latency"], more].concat();
        let measured = self.measure(index, &load, self.plan.seconds)?;
        for part in ["p50", "p99"] {
            self.values.add(&format!("{key}.{part}"), program, measured.get(part)?);
        }
        Ok(())
    }

    fn connections(&mut self, index: usize) -> Res<()> {
        let program = self.contestants[index].program;
        let measured = self.measure(index, &["connections", "--count", "50"], self.plan.seconds);
        // Connections that it does not close must not fill the server for the next one.
        self.contestants[index].running = None;
        let measured = measured?;
        let (made, failed) = (measured.get("made")?, measured.get("failed")?);
        self.values.add("conn", program, measured.get("rate")?);
        self.values.add("conn.failed", program, failed / (made + failed).max(1.0) * 1e4);
        if program != Program::None {
            self.values.add("conn.cpu", program, measured.own / made.max(1.0) * 1e6);
        }
        Ok(())
    }

    /// Offers more and more until more than one datagram in a hundred is lost.
    fn udp(&mut self, index: usize) -> Res<()> {
        let program = self.contestants[index].program;
        if program.is_direct() || !self.plan.server.carries_datagrams() {
            return Ok(());
        }
        let mut best: Option<(f64, f64, f64)> = None;
        let mut rate = 10_000.0;
        let mut missed = 0;
        // A single disturbance does not end it: one step may fail if the next, higher one, succeeds.
        while missed < 2 && rate < 1e6 {
            let seconds = (self.plan.seconds / 4.0).max(0.2);
            let measured = self.measure(index, &["udp", "--rate", &rate.to_string()], seconds)?;
            let (sent, received) = (measured.get("sent")?, measured.get("received")?);
            let loss = 1.0 - received / sent.max(1.0);
            if loss < 0.01 {
                best =
                    Some((received / measured.get("seconds")?, loss * 100.0, measured.own / received * 1e6));
                missed = 0;
            } else {
                missed += 1;
            }
            rate *= 1.25;
        }
        let (packets, loss, cpu) = best.ok_or("more than 1 % is lost at the lowest rate")?;
        self.values.add("udp", program, packets);
        self.values.add("udp.loss", program, loss);
        if program != Program::None {
            self.values.add("udp.cpu", program, cpu);
        }
        Ok(())
    }

    fn dns(&mut self, index: usize) -> Res<()> {
        let Contestant { program, site, .. } = &self.contestants[index];
        let program = *program;
        if !program.is_tunnel() || !self.plan.server.carries_datagrams() {
            return Ok(());
        }
        let queries = self.files.dir.path().join("queries");
        let mut text = String::new();
        for number in 0..1_000 {
            writeln!(text, "host{number}.example A")?;
        }
        fs::write(&queries, text)?;
        let mut command = within(&site.name, "dnsperf");
        command.arg("-d").arg(&queries).args(["-s", &TARGET.to_string(), "-c", "4", "-q", "100", "-t", "1"]);
        command.args(["-l", &self.plan.seconds.ceil().to_string()]);
        let text = crate::net::run(&mut command)?;
        let number = |label: &str| -> Res<f64> {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(label));
            let word = line.and_then(|line| line.split_whitespace().next());
            word.and_then(|word| word.parse().ok()).ok_or_else(|| format!("dnsperf says no '{label}'").into())
        };
        let (sent, lost) = (number("Queries sent:")?, number("Queries lost:")?);
        self.values.add("dns", program, number("Queries per second:")?);
        self.values.add("dns.lost", program, lost / sent.max(1.0) * 100.0);
        Ok(())
    }

    fn report(&self) -> String {
        let Bench { plan, values, files, .. } = self;
        let mut command = Command::new(&files.ztun);
        let ztun = report::said(command.arg("--version"));
        let mut command = Command::new("git");
        let commit =
            report::said(command.args(["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "--short", "HEAD"]));
        let others = report::said(Command::new(&files.tun2proxy).arg("--version"));
        // Without its time of compilation.
        let others = others.split(" (").next().unwrap_or_default();
        let mut text = format!(
            "{}. {ztun} at {commit}, {others}, SOCKS5 server {}; medians of {} interleaved rounds, {} s a row.\n\n",
            report::machine(),
            plan.server.name(),
            plan.rounds,
            plan.seconds,
        );
        let has = |program| plan.programs.contains(&program);
        if has(Program::Ztun) {
            let others = [(Program::Tun2proxy, "tun2proxy"), (Program::None, "no tunnel")];
            text.push_str("Through the SOCKS5 server:\n\n");
            text.push_str(&values.table((Program::Ztun, "ztun"), &others));
            let behind = values.behind(Program::Ztun, Program::Tun2proxy);
            if has(Program::Tun2proxy) {
                let behind = if behind.is_empty() { "no row".into() } else { behind.join("; ") };
                writeln!(text, "\nBehind tun2proxy in: {behind}.").ok();
            }
        }
        if has(Program::Direct) {
            let relay = [(Program::Relay, "plain relay")];
            text.push_str("\nWithout a SOCKS5 server (`any -> direct`):\n\n");
            text.push_str(&values.table((Program::Direct, "ztun direct"), &relay));
        }
        let failures = values.failures();
        if !failures.is_empty() {
            write!(text, "\nWhat failed:\n\n{failures}").ok();
        }
        text
    }
}
