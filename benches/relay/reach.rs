//! What is to be reached, and whether it is: every figure is computed from the medians of the run.

use crate::programs::Program::{self, Direct, Hev, None as NoTunnel, Relay, Tun2proxy, Ztun};
use crate::report::Values;
use std::fmt::Write;

/// How a figure comes out of the medians.
enum Figure {
    /// As measured.
    Own(&'static str),
    /// One contestant's over another's.
    Ratio(&'static str, Program, Program),
    /// ztun's over the best of the other tunnels'; more is better.
    OverBest(&'static str),
    /// What ztun adds to no tunnel.
    Added(&'static str),
}

/// One line.
struct Goal {
    what: &'static str,
    figure: Figure,
    unit: &'static str,
    /// What has to be reached, and what is aimed for.
    bar: f64,
    aim: Option<f64>,
    more: bool,
}

const fn least(what: &'static str, figure: Figure, bar: f64, aim: f64) -> Goal {
    Goal { what, figure, unit: "", bar, aim: Some(aim), more: true }
}

const fn most(what: &'static str, figure: Figure, unit: &'static str, bar: f64, aim: f64) -> Goal {
    Goal { what, figure, unit, bar, aim: Some(aim), more: false }
}

const GOALS: [Goal; 24] = [
    least("upload, 1 stream: direct ÷ plain relay", Figure::Ratio("up1", Direct, Relay), 0.8, 1.0),
    least("upload, 10 streams: direct ÷ plain relay", Figure::Ratio("up10", Direct, Relay), 0.8, 1.0),
    least("download, 1 stream: direct ÷ plain relay", Figure::Ratio("down1", Direct, Relay), 0.8, 1.0),
    least("download, 10 streams: direct ÷ plain relay", Figure::Ratio("down10", Direct, Relay), 0.8, 1.0),
    most(
        "CPU of all processes per GB, upload, 1 stream ÷ no tunnel",
        Figure::Ratio("up1.total", Ztun, NoTunnel),
        "",
        2.0,
        1.6,
    ),
    most(
        "CPU of all processes per GB, upload, 10 streams ÷ no tunnel",
        Figure::Ratio("up10.total", Ztun, NoTunnel),
        "",
        2.0,
        1.6,
    ),
    most(
        "CPU of all processes per GB, download, 1 stream ÷ no tunnel",
        Figure::Ratio("down1.total", Ztun, NoTunnel),
        "",
        2.0,
        1.6,
    ),
    most(
        "CPU of all processes per GB, download, 10 streams ÷ no tunnel",
        Figure::Ratio("down10.total", Ztun, NoTunnel),
        "",
        2.0,
        1.6,
    ),
    most("its own CPU, upload, 1 stream", Figure::Own("up1.cpu"), "s/GB", 0.45, 0.33),
    most("its own CPU, upload, 10 streams", Figure::Own("up10.cpu"), "s/GB", 0.45, 0.33),
    most("its own CPU, download, 1 stream", Figure::Own("down1.cpu"), "s/GB", 0.45, 0.33),
    most("its own CPU, download, 10 streams", Figure::Own("down10.cpu"), "s/GB", 0.45, 0.33),
    most("echo p50 over no tunnel", Figure::Added("echo.p50"), "µs", 15.0, 8.0),
    most("echo p99 beside a download as fast as it goes", Figure::Own("loaded.p99"), "µs", 500.0, 250.0),
    least("new connections/s ÷ no tunnel", Figure::Ratio("conn", Ztun, NoTunnel), 0.8, 0.95),
    most("CPU per new connection", Figure::Own("conn.cpu"), "µs", 80.0, 50.0),
    most("resident per idle flow, at 10,000", Figure::Own("idle.flow.10k"), "KB", 1.0, 0.4),
    most("resident per idle flow, at {most}", Figure::Own("idle.flow.most"), "KB", 1.0, 0.4),
    least("UDP echo, packets/s ÷ best other", Figure::OverBest("udp"), 1.5, 2.0),
    least("DNS, dnsperf, queries/s ÷ best other", Figure::OverBest("dns"), 1.5, 2.0),
    least("DNS, new sockets, queries/s ÷ best other", Figure::OverBest("names"), 1.5, 2.0),
    most("CPU with 10,000 idle flows", Figure::Own("idle.cpu"), "% of a core", 0.5, 0.0),
    Goal {
        what: "upload, most over least of 10 streams",
        figure: Figure::Own("up10.spread"),
        unit: "",
        bar: 2.0,
        aim: None,
        more: false,
    },
    Goal {
        what: "download, most over least of 10 streams",
        figure: Figure::Own("down10.spread"),
        unit: "",
        bar: 2.0,
        aim: None,
        more: false,
    },
];

impl Figure {
    fn of(&self, values: &Values) -> Option<f64> {
        match *self {
            Figure::Own(key) => values.median(key, Ztun),
            Figure::Ratio(key, over, under) => ratio(values.median(key, over)?, values.median(key, under)?),
            Figure::OverBest(key) => {
                let others = [Hev, Tun2proxy].into_iter().filter_map(|other| values.median(key, other));
                ratio(values.median(key, Ztun)?, others.max_by(f64::total_cmp)?)
            }
            Figure::Added(key) => Some(values.median(key, Ztun)? - values.median(key, NoTunnel)?),
        }
    }
}

fn ratio(over: f64, under: f64) -> Option<f64> {
    (under > 0.0).then(|| over / under)
}

/// Bars and aims beside what was measured.
pub(crate) fn table(values: &Values) -> String {
    let mut text = "| | measured | bar | aim | |\n|---|--:|--:|--:|---|\n".to_owned();
    for goal in &GOALS {
        let sign = if goal.more { "≥" } else { "≤" };
        let with_unit = |number: String| format!("{number} {}", goal.unit).trim_end().to_owned();
        let figure = goal.figure.of(values);
        let reaches = |limit: f64, figure: f64| if goal.more { figure >= limit } else { figure <= limit };
        let verdict = match (figure, goal.aim) {
            (None, _) => "not measured",
            (Some(figure), Some(aim)) if reaches(aim, figure) => "aim met",
            (Some(figure), _) if reaches(goal.bar, figure) => "met",
            (Some(_), _) => "**missed**",
        };
        let measured = figure.map_or("-".into(), |figure| {
            with_unit(format!("{figure:.*}", if figure < 10.0 { 3 } else { 1 }))
        });
        let aim = goal.aim.map_or("-".into(), |aim| format!("{sign} {aim}"));
        let what = goal.what.replace("{most}", &values.most.to_string());
        writeln!(text, "| {what} | {measured} | {sign} {} | {aim} | {verdict} |", goal.bar).ok();
    }
    text
}
