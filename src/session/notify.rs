//! Tells the service manager how far the run is: sd_notify(3), datagrams to the socket named in `NOTIFY_SOCKET`.
//!
//! `READY=1` when traffic flows, `STOPPING=1` when the run is being wound up. While it lasts a [`service`] of the loop says `WATCHDOG=1` twice in the time
//! that the manager allows (`WATCHDOG_USEC`, sd_watchdog_enabled(3)), so that a loop that hangs is noticed, and in `STATUS=` what `systemctl status` shows.

use crate::driver::{Scene, Service, Tokens};
use crate::time::{Duration, Instant};
use mio::Registry;
use mio::event::Event;
use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;

/// How often the status is told.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// More often than this the manager is told nothing, whatever it allows.
const SHORTEST: Duration = Duration::from_millis(50);

/// Traffic flows.
pub(crate) fn ready() {
    report("READY=1");
}

/// The run is being wound up.
pub(crate) fn stopping() {
    report("STOPPING=1");
}

fn manager() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty())
}

fn report(state: &str) {
    let Some(path) = manager() else { return };
    if let Err(error) = send(&path, state) {
        log::warn!("cannot tell the service manager {state}: {error}");
    }
}

/// What tells the manager that the loop turns; `None` when there is no manager.
pub(super) fn service<D>(now: Instant) -> Option<Box<dyn Service<D>>> {
    let path = manager()?;
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let pid = number("WATCHDOG_PID");
    let meant = pid.is_none_or(|pid: u64| pid == u64::from(std::process::id()));
    let allowed = number("WATCHDOG_USEC").filter(|_| meant).filter(|micros| *micros > 0);
    Some(Box::new(Heartbeat::new(path, allowed.map(Duration::from_micros), now)))
}

/// Says that the loop turns.
struct Heartbeat {
    path: OsString,
    /// Between two signs of life; `None` when the manager wants none.
    beat: Option<Duration>,
    next_beat: Option<Instant>,
    next_status: Instant,
    said: String,
}

impl Heartbeat {
    fn new(path: OsString, allowed: Option<Duration>, now: Instant) -> Heartbeat {
        // sd_watchdog_enabled(3) recommends half of the time.
        let beat = allowed.map(|allowed| (allowed / 2).max(SHORTEST));
        Heartbeat { path, beat, next_beat: beat.map(|_| now), next_status: now, said: String::new() }
    }

    /// What is due to be said, with `status` as the state of the run.
    fn due(&mut self, status: String, now: Instant) -> Option<String> {
        let mut lines = Vec::new();
        if let (Some(beat), Some(next)) = (self.beat, self.next_beat)
            && now >= next
        {
            lines.push("WATCHDOG=1".to_owned());
            self.next_beat = Some(now + beat);
        }
        if now >= self.next_status {
            self.next_status = now + STATUS_EVERY;
            if status != self.said {
                lines.push(format!("STATUS={status}"));
                self.said = status;
            }
        }
        (!lines.is_empty()).then(|| lines.join("\n"))
    }
}

impl<D> Service<D> for Heartbeat {
    fn register(&mut self, _: &Registry, _: Tokens) -> io::Result<()> {
        Ok(())
    }

    fn handle_event(&mut self, _: u16, _: &Event, _: &mut Scene<'_, D>, _: Instant) {}

    fn poll_timeout(&self) -> Option<Instant> {
        Some(self.next_beat.map_or(self.next_status, |beat| beat.min(self.next_status)))
    }

    fn handle_timeout(&mut self, scene: &mut Scene<'_, D>, now: Instant) {
        let snapshot = scene.engine.snapshot();
        let reached = snapshot.proxies.iter().any(|proxy| proxy.reachable != Some(false));
        let status = format!(
            "{} TCP flows, {} UDP associations{}",
            snapshot.tcp.open + snapshot.tcp.syn,
            snapshot.associations,
            if reached { "" } else { ", no proxy can be reached" }
        );
        if let Some(text) = self.due(status, now)
            && let Err(error) = send(&self.path, &text)
        {
            log::debug!("cannot tell the service manager {text}: {error}");
        }
    }
}

fn send(path: &std::ffi::OsStr, state: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    // A leading @ stands for the NUL of an abstract name.
    if let Some(name) = path.as_bytes().strip_prefix(b"@") {
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
        return socket.send_to_addr(state.as_bytes(), &address).map(drop);
    }
    socket.send_to(state.as_bytes(), path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_reaches_a_socket_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), "READY=1").unwrap();
        let mut buffer = [0; 32];
        let octets = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..octets], b"READY=1");
        let name = format!("ztun-notify-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        send(format!("@{name}").as_ref(), "STOPPING=1").unwrap();
        let octets = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..octets], b"STOPPING=1");
        assert!(send(dir.path().join("nobody").as_os_str(), "READY=1").is_err());
    }

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    #[test]
    fn life_is_shown_twice_in_the_time_allowed_and_the_status_when_it_changes() {
        let mut heartbeat = Heartbeat::new("x".into(), Some(Duration::from_secs(4)), at(0));
        let next = |heartbeat: &Heartbeat| <Heartbeat as Service<()>>::poll_timeout(heartbeat);
        assert_eq!(next(&heartbeat), Some(at(0)));
        assert_eq!(heartbeat.due("a".into(), at(0)).unwrap(), "WATCHDOG=1\nSTATUS=a");
        assert_eq!(next(&heartbeat), Some(at(2_000)));
        assert_eq!(heartbeat.due("b".into(), at(1_000)), None);
        for beat in [2_000, 4_000, 6_000, 8_000] {
            assert_eq!(heartbeat.due("a".into(), at(beat)).unwrap(), "WATCHDOG=1");
        }
        assert_eq!(heartbeat.due("b".into(), at(10_000)).unwrap(), "WATCHDOG=1\nSTATUS=b");
        assert_eq!(heartbeat.due("b".into(), at(20_000)).unwrap(), "WATCHDOG=1");
    }

    #[test]
    fn without_a_watchdog_only_the_status_is_told_and_a_tiny_one_is_no_storm() {
        let mut heartbeat = Heartbeat::new("x".into(), None, at(0));
        assert_eq!(heartbeat.due("a".into(), at(0)).unwrap(), "STATUS=a");
        assert_eq!(heartbeat.due("a".into(), at(10_000)), None);
        let tiny = Heartbeat::new("x".into(), Some(Duration::from_micros(1)), at(0));
        assert_eq!(tiny.beat, Some(SHORTEST));
    }
}
