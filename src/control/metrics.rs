//! Metrics in the text format of OpenMetrics 1.0, which Prometheus reads; names, units and meanings are in `docs/CONTROL.md`.
//!
//! Nothing is kept for them: each scrape is made of the engine's own counters at that moment.

use super::counters::{Counter, counters, drops, rejections};
use super::protocol::{RunState, Status};
use crate::engine::Engine;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;

/// The content type of the text.
pub(super) const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Labels of one sample.
type Labels = Vec<(&'static str, String)>;

/// One metric with all its samples.
#[derive(Debug)]
struct Metric {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
    samples: Vec<(Labels, Value)>,
}

#[derive(Debug)]
enum Value {
    Count(u64),
    Level(f64),
}

/// The text for `engine`, whose `status` was taken at the same moment.
pub(super) fn metrics(engine: &Engine, status: &Status) -> String {
    let mut registry = Registry::with_prefix("ztun");
    registry.register_collector(Box::new(Scrape(all(engine, status))));
    let mut text = String::new();
    // Writing to a String cannot fail; what a collector writes is written by the crate.
    match text::encode(&mut text, &registry) {
        Ok(()) => text,
        Err(error) => {
            log::error!("metrics cannot be written: {error}");
            "# EOF\n".into()
        }
    }
}

/// Whether traffic can flow, and if not, why.
pub(super) fn readiness(status: &Status) -> Result<(), &'static str> {
    match status.state {
        RunState::Stopping => return Err("it is being wound up"),
        RunState::NoDevice => return Err("the device is gone"),
        RunState::Running => {}
    }
    // One that nobody has tried may do.
    if status.proxies.iter().all(|proxy| proxy.reachable == Some(false)) {
        return Err("no proxy can be reached");
    }
    Ok(())
}

#[derive(Debug)]
struct Scrape(Vec<Metric>);

impl Value {
    fn encode(&self, sample: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        match self {
            Value::Count(count) => ConstCounter::new(*count).encode(sample),
            Value::Level(level) => ConstGauge::new(*level).encode(sample),
        }
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for metric in &self.0 {
            let mut samples =
                encoder.encode_descriptor(metric.name, metric.help, metric.unit.as_ref(), metric.kind)?;
            if let [(labels, value)] = &metric.samples[..]
                && labels.is_empty()
            {
                value.encode(samples)?;
                continue;
            }
            for (labels, value) in &metric.samples {
                value.encode(samples.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

fn all(engine: &Engine, status: &Status) -> Vec<Metric> {
    let mut all: Vec<Metric> = counters(engine).into_iter().map(counter).collect();
    all.extend([
        by_reason("packets_dropped", "Packets from the device that were not acted on.", drops(engine)),
        by_reason("relay_datagrams_rejected", "Datagrams of proxies thrown away.", rejections(engine)),
    ]);
    all.extend(gauges(status));
    all
}

fn counter(counter: Counter) -> Metric {
    Metric {
        // The unit is written behind the name.
        name: counter.name.strip_suffix("_bytes").unwrap_or(counter.name),
        help: counter.help,
        unit: counter.bytes.then_some(Unit::Bytes),
        kind: MetricType::Counter,
        samples: vec![(Vec::new(), Value::Count(counter.value))],
    }
}

fn by_reason(name: &'static str, help: &'static str, counts: Vec<(&'static str, u64)>) -> Metric {
    let sample = |(reason, count): (&str, u64)| (vec![("reason", reason.to_owned())], Value::Count(count));
    let samples = counts.into_iter().map(sample).collect();
    Metric { name, help, unit: None, kind: MetricType::Counter, samples }
}

fn gauge(name: &'static str, help: &'static str, value: f64) -> Metric {
    Metric {
        name,
        help,
        unit: None,
        kind: MetricType::Gauge,
        samples: vec![(Vec::new(), Value::Level(value))],
    }
}

/// Octets; the name gets the unit's.
fn bytes(name: &'static str, help: &'static str, value: usize) -> Metric {
    Metric { unit: Some(Unit::Bytes), ..gauge(name, help, value as f64) }
}

fn gauges(status: &Status) -> Vec<Metric> {
    let (flows, memory) = (&status.flows, &status.memory);
    let states = [
        ("opening", flows.tcp_opening),
        ("open", flows.tcp.saturating_sub(flows.tcp_opening)),
        ("time_wait", flows.tcp_time_wait),
    ];
    let reached = status.proxies.iter().filter_map(|proxy| {
        let up = Value::Level(f64::from(u8::from(proxy.reachable?)));
        Some((vec![("proxy", proxy.addr.to_string())], up))
    });
    let flag = |is: bool| f64::from(u8::from(is));
    let labelled = |name, help, samples| Metric { name, help, unit: None, kind: MetricType::Gauge, samples };
    vec![
        labelled(
            "build_info",
            "Always 1; the label is the version of the program.",
            vec![(vec![("version", status.version.clone())], Value::Level(1.0))],
        ),
        Metric {
            unit: Some(Unit::Seconds),
            ..gauge("uptime", "Time since the loop was started.", status.uptime_ms as f64 / 1_000.0)
        },
        gauge("ready", "Whether traffic can flow, as /readyz says.", flag(readiness(status).is_ok())),
        gauge("device_up", "Whether there is a device.", flag(status.device.is_some())),
        labelled(
            "proxy_up",
            "Whether the proxy could be reached when it was last tried; none while nobody has.",
            reached.collect(),
        ),
        labelled(
            "tcp_flows",
            "TCP flows by state.",
            states
                .map(|(state, count)| (vec![("state", state.to_owned())], Value::Level(count as f64)))
                .into(),
        ),
        gauge("tcp_flows_limit", "TCP flows at most, all states together.", flows.tcp_limit as f64),
        gauge("udp_associations", "UDP associations.", flows.udp as f64),
        gauge("udp_associations_limit", "UDP associations at most.", flows.udp_limit as f64),
        gauge("pooled_connections", "Connections to proxies that wait for a request.", flows.pooled as f64),
        gauge("sockets", "Sockets that are open for flows.", flows.sockets as f64),
        gauge("dns_transactions", "DNS queries without an answer yet.", flows.dns as f64),
        bytes("tcp_buffers", "Octets of buffers of TCP flows in use.", memory.buffers),
        bytes("tcp_buffers_limit", "Octets of buffers of TCP flows at most.", memory.buffer_limit),
        bytes("tcp_table", "Octets of the table of TCP flows.", memory.tcp_table),
        bytes("udp_queued", "Octets of datagrams that wait for their association.", memory.queued_datagrams),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::protocol::DeviceStatus;
    use super::super::report;
    use super::*;
    use crate::config::{EngineConfig, Proxy};
    use crate::time::Instant;
    use std::collections::BTreeSet;

    fn scrape() -> (String, Status) {
        let proxies = vec![Proxy { addr: "127.0.0.1:1080".parse().unwrap(), credentials: None }];
        let engine = Engine::new(EngineConfig { proxies, ..EngineConfig::default() }, false, [1; 16]);
        let device = DeviceStatus { name: "ztun0".into(), mtu: 1500, offload: true };
        let mut status = report::status(&engine, Some(device), Instant::ZERO, Instant::from_millis(1_500));
        status.proxies[0].reachable = Some(true);
        (metrics(&engine, &status), status)
    }

    /// H8
    #[test]
    fn the_text_is_as_the_format_demands() {
        let (text, _) = scrape();
        assert!(text.ends_with("# EOF\n"));
        let (mut family, mut seen) = (String::new(), BTreeSet::new());
        for line in text.lines().filter(|line| *line != "# EOF") {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                family = rest.split(' ').next().unwrap().to_owned();
                assert!(family.starts_with("ztun_") && seen.insert(family.clone()), "{line}");
                assert!(rest.ends_with('.'), "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ").or(line.strip_prefix("# UNIT ")) {
                assert_eq!(rest.split(' ').next(), Some(family.as_str()));
            } else {
                let (name, value) = line.rsplit_once(' ').unwrap();
                let name = name.split('{').next().unwrap();
                let counter = text.contains(&format!("# TYPE {family} counter\n"));
                assert_eq!(name, if counter { format!("{family}_total") } else { family.clone() }, "{line}");
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
        for line in [
            "# TYPE ztun_upload_bytes counter",
            "# UNIT ztun_upload_bytes bytes",
            "ztun_upload_bytes_total 0",
            "ztun_packets_dropped_total{reason=\"bad_ip\"} 0",
            "ztun_proxy_up{proxy=\"127.0.0.1:1080\"} 1.0",
            "ztun_uptime_seconds 1.5",
            "ztun_tcp_flows{state=\"open\"} 0.0",
            "ztun_ready 1.0",
        ] {
            assert!(text.lines().any(|have| have == line), "no {line} in\n{text}");
        }
    }

    #[test]
    fn every_metric_is_documented() {
        let documented = include_str!("../../docs/CONTROL.md");
        let (text, status) = scrape();
        for family in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = family.split_once(' ').unwrap();
            let name = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
            assert!(documented.contains(&format!("`{name}`")), "docs/CONTROL.md does not name {name}");
        }
        for name in status.counters.keys() {
            assert!(
                text.contains(&format!("\nztun_{name}_total ")),
                "{name} is in the status and not in metrics"
            );
        }
    }

    #[test]
    fn ready_is_what_can_carry_traffic() {
        let (_, mut status) = scrape();
        assert_eq!(readiness(&status), Ok(()));
        status.proxies[0].reachable = None;
        assert_eq!(readiness(&status), Ok(()));
        status.proxies[0].reachable = Some(false);
        assert!(readiness(&status).is_err());
        status.proxies[0].reachable = Some(true);
        status.state = RunState::NoDevice;
        assert!(readiness(&status).is_err());
        status.state = RunState::Stopping;
        assert!(readiness(&status).is_err());
    }
}
