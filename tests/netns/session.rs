//! The router as a library's session: start, stop and restart on real devices.

use crate::world::*;
use std::sync::{Arc, mpsc};
use ztun::config::{Config, EngineConfig, HostPlanConfig, Proxy};
use ztun::driver::Clock;
use ztun::session::{RESTART_LIMIT, Router, STOP_LIMIT, Session, StartError, State};

fn router() -> Router {
    let proxies = vec![Proxy { addr: PROXY.parse().unwrap(), credentials: None }];
    let engine = EngineConfig { proxies, ..EngineConfig::default() };
    Router::new(Config::new(engine, HostPlanConfig::default()), Clock::new())
}

fn descriptors() -> Vec<std::path::PathBuf> {
    let mut open: Vec<_> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|target| !target.ends_with("fd"))
        .collect();
    open.sort();
    open
}

/// L-7, L-9, L-10, L9: a hundred starts and stops of one session, with the descriptors and the machine as before each time.
#[test]
fn a_session_starts_and_stops_a_hundred_times() {
    let Some(world) = world() else { return };
    let before = world.client.state();
    let session = Arc::new(Session::new());
    let open = descriptors();
    for round in 0..100 {
        let started = Arc::clone(&session);
        world.client.inside(move || started.start(router()).unwrap());
        assert_eq!(session.state(), State::Running);
        if round == 50 {
            assert_ne!(world.client.state(), before);
        }
        let report = session.stop(STOP_LIMIT);
        assert!(report.is_ok() && report.items.len() > 10, "{report}");
        assert_eq!(
            (session.state(), report.fds_leaked, report.ports_leaked),
            (State::Stopped, 0, 0),
            "{report}"
        );
    }
    assert_eq!(world.client.state(), before);
    assert_eq!(descriptors(), open);
}

/// L-10, L6: a start while it runs is refused and changes nothing at all.
#[test]
fn a_start_while_it_runs_changes_nothing() {
    let Some(world) = world() else { return };
    let session = Arc::new(Session::new());
    let started = Arc::clone(&session);
    world.client.inside(move || started.start(router()).unwrap());
    let (during, open) = (world.client.state(), descriptors());
    let again = Arc::clone(&session);
    let refused = world.client.inside(move || again.start(router()).unwrap_err());
    assert!(matches!(refused, StartError::AlreadyRunning(State::Running)), "{refused:?}");
    assert_eq!((world.client.state(), descriptors()), (during, open));
    session.stop(STOP_LIMIT);
}

/// L-1, L-2, L-12: a restart under load ends one run, in order and with nothing left, before the next begins.
#[test]
fn a_restart_under_load_ends_one_run_before_the_next() {
    let Some(world) = world() else { return };
    let _proxy = world.embedded(&world.server, PROXY);
    world.echo(&format!("{TARGET}:7"));
    let before = world.client.state();
    let session = Arc::new(Session::new());
    let started = Arc::clone(&session);
    world.client.inside(move || started.start(router()).unwrap());
    for _ in 0..5 {
        let mut apps: Vec<_> =
            (0..100).map(|_| world.client.connect(&format!("{TARGET}:7")).unwrap()).collect();
        apps.iter_mut().for_each(|app| talk(app).unwrap());
        let restarted = Arc::clone(&session);
        let report = world.client.inside(move || restarted.restart(router()).unwrap());
        assert!(report.is_ok(), "{report}");
        assert!(u128::from(report.total_ms) <= RESTART_LIMIT.as_millis(), "{report}");
        let kinds: Vec<&str> = report.items.iter().map(|item| item.kind).collect();
        let place = |kind| {
            kinds.iter().position(|found| *found == kind).unwrap_or_else(|| panic!("{kind}: {report}"))
        };
        let order = ["udp", "tcp", "proxy", "control", "rule", "route", "device"].map(place);
        assert!(order.is_sorted(), "{kinds:?}");
        // The flows of the run before are over, and the apps know.
        for mut app in apps {
            assert!(talk(&mut app).is_err());
        }
    }
    session.stop(STOP_LIMIT);
    assert_eq!(world.client.state(), before);
}

/// L-10, L-11: threads that race to start and stop a real session leave it stopped and the machine as it was.
#[test]
fn racing_threads_leave_the_machine_as_it_was() {
    let Some(world) = world() else { return };
    let before = world.client.state();
    let session = Arc::new(Session::new());
    let (sender, receiver) = mpsc::channel();
    let racing = Arc::clone(&session);
    world.client.inside(move || {
        let threads: Vec<_> = (0..8)
            .map(|number| {
                let (session, sender) = (Arc::clone(&racing), sender.clone());
                std::thread::spawn(move || {
                    for round in 0..10 {
                        if (number + round) % 2 == 0 {
                            match session.start(router()) {
                                Ok(()) | Err(StartError::AlreadyRunning(_) | StartError::Failed(Ok(_))) => {}
                                Err(error) => sender.send(format!("{error:?}")).unwrap(),
                            }
                        } else {
                            let report = session.stop(STOP_LIMIT);
                            if !report.is_ok() {
                                sender.send(report.to_string()).unwrap();
                            }
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        drop(sender);
    });
    assert_eq!(receiver.iter().collect::<Vec<_>>(), Vec::<String>::new());
    session.stop(STOP_LIMIT);
    assert_eq!((session.state(), world.client.state()), (State::Stopped, before));
}
