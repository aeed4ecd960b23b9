//! The engine at one moment, in the words of the protocol.

use super::counters;
use super::protocol::{
    DeviceStatus, Flow, FlowCounts, Flows, MOST_FLOWS, MemoryStatus, ProxyStatus, RunState, Status,
};
use crate::engine::{Engine, FlowInfo, Outbound, ProxyInfo, ProxyTrouble, SocketError};
use crate::outbound::socks5::Failure;
use crate::time::{Duration, Instant};

/// A status. Cost: nothing that grows with the number of flows.
pub(super) fn status(
    engine: &Engine,
    device: Option<DeviceStatus>,
    started: Instant,
    now: Instant,
) -> Status {
    let snapshot = engine.snapshot();
    let named = |pairs: Vec<(&'static str, u64)>| {
        pairs.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
    };
    let counters = counters::counters(engine).into_iter().map(|counter| (counter.name, counter.value));
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        uptime_ms: millis(now.since(started)),
        state: match (snapshot.stopping, &device) {
            (true, _) => RunState::Stopping,
            (false, None) => RunState::NoDevice,
            (false, Some(_)) => RunState::Running,
        },
        device,
        proxies: snapshot.proxies.iter().map(|proxy| proxy_status(proxy, now)).collect(),
        flows: FlowCounts {
            tcp: snapshot.tcp.open + snapshot.tcp.syn,
            tcp_opening: snapshot.tcp.syn,
            tcp_time_wait: snapshot.tcp.time_wait,
            tcp_limit: snapshot.tcp.capacity,
            udp: snapshot.associations,
            udp_limit: snapshot.association_capacity,
            pooled: snapshot.pooled(),
            sockets: snapshot.sockets,
            dns: snapshot.dns_in_flight,
        },
        memory: MemoryStatus {
            buffers: snapshot.memory.buffers,
            buffer_limit: snapshot.memory.buffer_budget,
            tcp_table: snapshot.memory.tcp_table,
            queued_datagrams: snapshot.memory.queued_datagrams,
        },
        log_level: log::max_level().as_str().to_ascii_lowercase(),
        counters: named(counters.collect()),
        drops: named(counters::drops(engine)),
        rejections: named(counters::rejections(engine)),
    }
}

/// Some flows. Cost: bounded, see [`Engine::flows`].
pub(super) fn flows(engine: &Engine, cursor: u64, limit: usize, now: Instant) -> Flows {
    let page = engine.flows(cursor, limit.clamp(1, MOST_FLOWS));
    Flows { flows: page.flows.iter().map(|info| flow(info, now)).collect(), next: page.next }
}

fn flow(info: &FlowInfo, now: Instant) -> Flow {
    Flow {
        proto: info.proto.to_string(),
        app: info.local.into(),
        to: info.remote.into(),
        outbound: match info.outbound {
            Outbound::Unknown => "?".into(),
            Outbound::Direct => "direct".into(),
            Outbound::Proxy(addr) => format!("proxy {addr}"),
            Outbound::FormerProxy => "former proxy".into(),
        },
        phase: info.phase.name().into(),
        tcp: info.tcp.map(|state| state.name().into()),
        up: info.upload_octets,
        down: info.download_octets,
        age_ms: millis(now.since(info.opened)),
        idle_ms: millis(now.since(info.last_active)),
    }
}

fn proxy_status(proxy: &ProxyInfo, now: Instant) -> ProxyStatus {
    ProxyStatus {
        addr: proxy.addr,
        credentials: proxy.credentials,
        reachable: proxy.reachable,
        down_ms: proxy.down_since.map(|since| millis(now.since(since))),
        error: proxy.trouble.map(|trouble| trouble_text(trouble).into()),
        pooled: proxy.pooled,
    }
}

fn trouble_text(trouble: ProxyTrouble) -> &'static str {
    match trouble {
        ProxyTrouble::Connect(error) => match error {
            SocketError::Refused => "connection refused",
            SocketError::Reset => "connection reset",
            SocketError::Network => "network unreachable",
            SocketError::Host => "host unreachable",
            SocketError::TimedOut => "no answer in time",
            SocketError::Exhausted => "this machine is out of descriptors or memory",
            SocketError::Prohibited => "prohibited on this machine",
            SocketError::Other => "cannot be connected to",
        },
        ProxyTrouble::Access(failure) => match failure {
            Failure::NoMethod => {
                "it takes none of the methods offered: it wants a user and password, or none"
            }
            Failure::Denied => "it does not take the user and password",
            Failure::WrongMethod(_) | Failure::Protocol => "it does not speak SOCKS5",
            Failure::Refused(_) => "it refuses requests",
        },
    }
}

/// Whole milliseconds.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Credentials, EngineConfig, Proxy};

    fn engine() -> Engine {
        let credentials = Some(Credentials { user: "u".into(), password: "hunter2".into() });
        let proxies = vec![Proxy { addr: "127.0.0.1:1080".parse().unwrap(), credentials }];
        Engine::new(EngineConfig { proxies, ..EngineConfig::default() }, false, [1; 16])
    }

    #[test]
    fn a_status_tells_everything_but_the_password() {
        let device = DeviceStatus { name: "ztun0".into(), mtu: 1500, offload: true };
        let (started, now) = (Instant::from_millis(1_000), Instant::from_millis(3_500));
        let status = status(&engine(), Some(device), started, now);
        assert_eq!((status.uptime_ms, status.state), (2_500, RunState::Running));
        assert_eq!(status.proxies[0].reachable, None);
        assert_eq!(status.drops.len(), crate::stack::DropReason::COUNT);
        assert_eq!(status.counters["dns_queries"], 0);
        let text = serde_json::to_string(&status).unwrap();
        assert!(!text.contains("hunter2") && text.contains("\"credentials\":true"), "{text}");
        let read: Status = serde_json::from_str(&text).unwrap();
        assert_eq!(read, status);
    }

    #[test]
    fn a_device_that_is_gone_is_a_state() {
        let mut engine = engine();
        let state = |engine: &Engine| status(engine, None, Instant::ZERO, Instant::ZERO).state;
        assert_eq!(state(&engine), RunState::NoDevice);
        engine.shutdown(Instant::ZERO);
        assert_eq!(state(&engine), RunState::Stopping);
    }

    #[test]
    fn a_page_of_nothing_is_not_asked_for() {
        assert_eq!(flows(&engine(), 0, 0, Instant::ZERO), Flows { flows: Vec::new(), next: None });
    }
}
