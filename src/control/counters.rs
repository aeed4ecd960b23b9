//! What is counted, by name: the one list that status and metrics are made of.
//!
//! Structs of counters are taken apart field by field, so that a counter that is new to the engine does not compile before it has a name here.

use crate::dns::DnsStats;
use crate::engine::{Engine, EngineStats};
use crate::outbound::socks5::associate::Rejected;
use crate::stack::{DropReason, Stats};

/// Something that is only counted up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Counter {
    /// As in `"counters"` of a status, and with `ztun_` before and `_total` behind it the name of the metric.
    pub(super) name: &'static str,
    /// Octets, by Prometheus' name for them.
    pub(super) bytes: bool,
    /// What it counts.
    pub(super) help: &'static str,
    pub(super) value: u64,
}

fn count(name: &'static str, value: u64, help: &'static str) -> Counter {
    Counter { name, bytes: false, help, value }
}

/// Octets; the name gets the unit's.
fn bytes(name: &'static str, value: u64, help: &'static str) -> Counter {
    Counter { name, bytes: true, help, value }
}

/// All counters that have no label.
pub(super) fn counters(engine: &Engine) -> Vec<Counter> {
    let mut all = engine_counters(engine.stats());
    all.extend(stack_counters(engine.stack().stats()));
    all.extend(dns_counters(engine.dns().stats()));
    all
}

fn engine_counters(stats: &EngineStats) -> Vec<Counter> {
    let EngineStats {
        dials,
        dials_failed,
        pool_hits,
        pool_stale,
        pipeline_fallbacks,
        refused,
        kept_outside,
        loops,
        upload_octets,
        download_octets,
        datagrams_out,
        datagrams_in,
        datagrams_dropped,
        associations_evicted,
    } = stats.clone();
    vec![
        bytes("upload_bytes", upload_octets, "Octets of TCP flows from apps."),
        bytes("download_bytes", download_octets, "Octets of TCP flows to apps."),
        count("datagrams_sent", datagrams_out, "Datagrams from apps."),
        count("datagrams_received", datagrams_in, "Datagrams to apps."),
        count("datagrams_dropped", datagrams_dropped, "Datagrams with nowhere to go, or malformed."),
        count("dials", dials, "Connections dialled."),
        count("dials_failed", dials_failed, "Connections that were not made, or requests that were refused."),
        count("pool_hits", pool_hits, "Requests made on a connection out of the pool."),
        count("pool_stale", pool_stale, "Pooled connections that turned out to be dead."),
        count(
            "pipeline_fallbacks",
            pipeline_fallbacks,
            "Pipelined dialogues that were made again step by step.",
        ),
        count("flows_refused", refused, "Flows refused to the app."),
        count(
            "flows_kept_outside",
            kept_outside,
            "Flows of the local proxy that were kept outside the tunnel.",
        ),
        count("loops_detected", loops, "Routing loops detected."),
        count("associations_evicted", associations_evicted, "UDP associations that gave way to others."),
    ]
}

fn stack_counters(stats: &Stats) -> Vec<Counter> {
    let Stats {
        packets_in,
        packets_out,
        // By reason: see `drops`.
        drops: _,
        retransmits,
        timeouts,
        challenge_acks,
        resets_sent,
        icmp_errors_sent,
        icmp_errors_limited,
        echoes,
        syn_refused_full,
        syn_dropped_full,
        established,
    } = stats.clone();
    vec![
        count("packets_received", packets_in, "Packets from the device."),
        count("packets_sent", packets_out, "Packets to the device."),
        count("tcp_established", established, "TCP flows accepted."),
        count("tcp_retransmits", retransmits, "TCP segments sent again."),
        count("tcp_timeouts", timeouts, "TCP retransmission time-outs."),
        count("tcp_challenge_acks", challenge_acks, "TCP challenge ACKs sent."),
        count("tcp_resets_sent", resets_sent, "TCP resets sent."),
        count("tcp_syn_refused_full", syn_refused_full, "SYNs refused because the table was full."),
        count("tcp_syn_dropped_full", syn_dropped_full, "SYNs passed over because the SYN queue was full."),
        count("icmp_errors_sent", icmp_errors_sent, "ICMP errors sent."),
        count("icmp_errors_withheld", icmp_errors_limited, "ICMP errors withheld by the rate limit."),
        count("echoes_answered", echoes, "Echo requests answered."),
    ]
}

fn dns_counters(stats: &DnsStats) -> Vec<Counter> {
    let DnsStats {
        queries,
        repeated,
        answers,
        timeouts,
        unmatched,
        evicted,
        malformed,
        redirected,
        servfails,
        truncated,
        fallbacks,
        // What was counted in all, by the way it went.
        udp,
        tcp,
        direct,
    } = *stats;
    vec![
        count("dns_queries", queries, "DNS queries, repeated ones included."),
        count("dns_repeated", repeated, "DNS queries that repeated one in flight."),
        count("dns_answers", answers, "DNS answers that matched a query."),
        count("dns_timeouts", timeouts, "DNS queries without an answer in time."),
        count("dns_unmatched", unmatched, "DNS answers that matched no query."),
        count("dns_evicted", evicted, "DNS queries forgotten for lack of space."),
        count("dns_malformed", malformed, "Messages on port 53 that are no queries or answers."),
        count(
            "dns_redirected",
            redirected,
            "DNS queries that went to another server than the app addressed.",
        ),
        count("dns_servfails", servfails, "DNS queries answered with SERVFAIL here."),
        count("dns_truncated", truncated, "DNS answers too large for the app's datagrams."),
        count("dns_fallbacks", fallbacks, "Times that DNS was moved from datagrams to TCP."),
        count("dns_udp_queries", udp.queries, "DNS queries through the proxy as datagrams."),
        count("dns_udp_answers", udp.answers, "DNS answers through the proxy as datagrams."),
        count(
            "dns_udp_timeouts",
            udp.timeouts,
            "DNS queries through the proxy as datagrams, without an answer.",
        ),
        count("dns_tcp_queries", tcp.queries, "DNS queries through the proxy over TCP."),
        count("dns_tcp_answers", tcp.answers, "DNS answers through the proxy over TCP."),
        count("dns_tcp_timeouts", tcp.timeouts, "DNS queries through the proxy over TCP, without an answer."),
        count("dns_direct_queries", direct.queries, "DNS queries out of the egress interface."),
        count("dns_direct_answers", direct.answers, "DNS answers from the egress interface."),
        count(
            "dns_direct_timeouts",
            direct.timeouts,
            "DNS queries out of the egress interface, without an answer.",
        ),
    ]
}

/// Packets from the device that were not acted on, by reason.
pub(super) fn drops(engine: &Engine) -> Vec<(&'static str, u64)> {
    let counts = &engine.stack().stats().drops;
    DropReason::ALL.into_iter().zip(counts).map(|(reason, count)| (reason.name(), *count)).collect()
}

/// Datagrams of proxies that were thrown away, by reason.
pub(super) fn rejections(engine: &Engine) -> Vec<(&'static str, u64)> {
    let name = |rejected| match rejected {
        Rejected::Fragment => "fragment",
        Rejected::Reserved => "reserved",
        Rejected::Domain => "domain",
        Rejected::Truncated => "truncated",
        Rejected::Malformed => "malformed",
    };
    let rejections = engine.rejections();
    Rejected::ALL.into_iter().map(|rejected| (name(rejected), rejections.get(rejected))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EngineConfig;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_counters_have_one_name() {
        let engine = Engine::new(EngineConfig::default(), false, [1; 16]);
        let names: Vec<&str> = counters(&engine).iter().map(|counter| counter.name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        let all = [drops(&engine), rejections(&engine)];
        for labels in all {
            assert_eq!(labels.iter().map(|(name, _)| name).collect::<BTreeSet<_>>().len(), labels.len());
        }
    }
}
