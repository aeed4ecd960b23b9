//! Rounds of rows of contestants: what runs when.

use crate::net::{Net, Site};
use crate::process::Running;
use crate::programs::{Files, Program, Server, TERMINATOR_PORT};
use crate::report::{self, Values};
use crate::rows::Rows;
use crate::{Res, option, parsed, reach};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Groups of rows.
const GROUPS: [&str; 6] = ["bulk", "latency", "connections", "idle", "udp", "dns"];

/// Measures a row for the contestant with this index.
type Measure = fn(&mut Rows, usize) -> Res<()>;

/// Group, name and measure of the rows behind the SOCKS5 server.
const STREAMS: [(&str, &str, Measure); 9] = [
    ("bulk", "up1", |rows, index| rows.bulk(index, "up1", "upload", "1")),
    ("bulk", "up10", |rows, index| rows.bulk(index, "up10", "upload", "10")),
    ("bulk", "down1", |rows, index| rows.bulk(index, "down1", "download", "1")),
    ("bulk", "down10", |rows, index| rows.bulk(index, "down10", "download", "10")),
    ("latency", "echo", |rows, index| rows.latency(index, "echo", &[])),
    ("latency", "paced", |rows, index| rows.latency(index, "paced", &["--bulk", "0.5"])),
    ("latency", "loaded", |rows, index| rows.latency(index, "loaded", &["--bulk", "1000"])),
    ("latency", "crowd", Rows::crowd),
    ("connections", "conn", Rows::connections),
];

/// Those behind the server that is its own target.
const ENDS: [(&str, &str, Measure); 4] = [
    ("idle", "idle", Rows::idle),
    ("udp", "udp", Rows::udp),
    ("dns", "dns", Rows::dns),
    ("dns", "names", Rows::names),
];

/// What was asked for.
#[derive(Debug)]
struct Plan {
    rounds: usize,
    seconds: f64,
    server: Server,
    groups: Vec<&'static str>,
    programs: Vec<Program>,
    /// Where the tables go.
    document: Option<PathBuf>,
    /// How it was asked for.
    command: String,
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
        let given = args.iter().map(|arg| Path::new(arg).file_name().unwrap_or_default().to_string_lossy());
        Ok(Plan {
            rounds: parsed(args, "--rounds")?.unwrap_or(if quick { 1 } else { 5 }).max(1),
            seconds: parsed(args, "--seconds")?.unwrap_or(if quick { 0.4 } else { 1.5 }),
            server: Server::ALL
                .into_iter()
                .find(|known| known.name() == server)
                .ok_or_else(|| format!("--server: no '{server}'"))?,
            groups: chosen("--only", &GROUPS)?,
            programs: Program::ALL.into_iter().filter(|program| programs.contains(&program.name())).collect(),
            document: (!quick && !flag("--print")).then_some(document),
            command: ["./build-all.sh bench".into()].into_iter().chain(given).collect::<Vec<_>>().join(" "),
        })
    }
}

/// One contestant.
pub(crate) struct Contestant {
    pub(crate) program: Program,
    pub(crate) site: Site,
    pub(crate) running: Option<Running>,
}

/// Runs what `args` ask for.
pub(crate) fn run(args: &[String]) -> Res<()> {
    let start = Instant::now();
    let mut plan = Plan::read(args)?;
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return Err("namespaces and devices are made here: run it as root".into());
    }
    let limit = ztun::driver::limits::raise_open_files(0)?;
    let ztun = option(args, "--ztun").unwrap_or(env!("CARGO_BIN_EXE_ztun")).into();
    let files = Files::find(ztun, limit)?;
    let mut values = Values::default();
    plan.programs.retain(|program| match files.missing(*program) {
        Some(why) => {
            eprintln!("{}: left out: {why}", program.name());
            values.note(format!("{}: {why}", program.name()));
            false
        }
        None => true,
    });
    let mut net = Net::new()?;
    let mut contestants = Vec::new();
    for program in &plan.programs {
        let site = net.site(program.name(), program.has_inner_namespace())?;
        contestants.push(Contestant { program: *program, site, running: None });
    }
    let target = files.start_target(net.server())?;
    let mut rows = Rows {
        contestants,
        server: None,
        target,
        net,
        files,
        values,
        seconds: plan.seconds,
        limit,
        port: Server::PORT,
        start,
    };
    for round in 1..=plan.rounds {
        rows.say(&format!("round {round} of {}", plan.rounds));
        measure(&mut rows, &plan)?;
    }
    let text = document(&rows, &plan);
    match &plan.document {
        Some(document) => {
            report::write(document, &text)?;
            rows.say(&format!("written to {}", document.display()));
        }
        None => println!("{text}"),
    }
    Ok(())
}

/// One round.
fn measure(rows: &mut Rows, plan: &Plan) -> Res<()> {
    let wanted = |(group, _, _): &&(&str, &str, Measure)| plan.groups.contains(group);
    let streams: Vec<_> = STREAMS.iter().filter(wanted).collect();
    if !streams.is_empty() {
        let server = rows.files.start_server(plan.server, rows.net.server())?;
        if let Some(first) = rows.contestants.first() {
            rows.files.wait_for_server(&first.site, &server)?;
        }
        rows.server = Some(server);
        rows.port = Server::PORT;
        streams.into_iter().for_each(|row| measure_row(rows, row));
        rows.end_all();
        rows.server = None;
    }
    rows.port = TERMINATOR_PORT;
    ENDS.iter().filter(wanted).for_each(|row| measure_row(rows, row));
    rows.end_all();
    Ok(())
}

/// One row, for one contestant after the other.
fn measure_row(rows: &mut Rows, (group, name, measure): &(&str, &str, Measure)) {
    rows.say(name);
    for index in 0..rows.contestants.len() {
        let program = rows.contestants[index].program;
        let hopeless = !program.is_ours() && rows.values.is_hopeless(name, program);
        if hopeless || !program.takes_part(group) {
            continue;
        }
        let result = rows.revive(index).and_then(|()| measure(rows, index));
        if let Err(error) = result {
            eprintln!("          {}: {error}", program.name());
            rows.values.fail(name, program, &error);
            // What has failed may be in no state to be measured again.
            rows.contestants[index].running = None;
        }
    }
}

fn document(rows: &Rows, plan: &Plan) -> String {
    let Rows { values, files, .. } = rows;
    let commit = ["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "--short", "HEAD"];
    let mut text = format!(
        "{}. Commit {}; {}; SOCKS5 server of the streams: {}. Medians of {} interleaved rounds, {} s a row; `{}` took {:.0} minutes.\n",
        report::machine(),
        report::said(Command::new("git").args(commit)),
        files.versions(),
        plan.server.name(),
        plan.rounds,
        plan.seconds,
        plan.command,
        (rows.start.elapsed().as_secs_f64() / 60.0).ceil(),
    );
    let among = |all: &[Program]| -> Vec<Program> {
        all.iter().copied().filter(|program| plan.programs.contains(program)).collect()
    };
    let mut table = |title: &str, subject, others: &[Program]| {
        if plan.programs.contains(&subject) {
            write!(text, "\n{title}:\n\n{}", values.table(subject, &among(others))).ok();
        }
    };
    table("Through the SOCKS5 server", Program::Ztun, &[Program::Hev, Program::Tun2proxy, Program::None]);
    table(
        "The same with a device of MTU 8500",
        Program::ZtunJumbo,
        &[Program::HevJumbo, Program::Tun2proxyJumbo],
    );
    table("Without a SOCKS5 server (`any -> direct`)", Program::Direct, &[Program::Relay, Program::Pasta]);
    write!(text, "\nWhat is to be reached:\n\n{}", reach::table(values)).ok();
    for other in among(&[Program::Hev, Program::Tun2proxy]) {
        let behind = values.behind(Program::Ztun, other);
        let behind = if behind.is_empty() { "no row".into() } else { behind.join("; ") };
        write!(text, "\nBehind {} in: {behind}.\n", other.title()).ok();
    }
    text + &values.remarks()
}
