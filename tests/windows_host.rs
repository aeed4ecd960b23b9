//! What a run changes on Windows, on Windows itself: routes, name servers, guards of the filtering platform, and their end.
//!
//! It needs administrators' rights and a wintun.dll, as `tests/windows.rs` does. What is captured is a network for documents (RFC 5737), but for one moment in which it is everything.
#![cfg(windows)]

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use ztun::config::{HostPlanConfig, OffloadLevel};
use ztun::host::{self, RunDir};
use ztun::tun::Tun;

const DEVICE: &str = "ztun-host";
const CAPTURED: &str = "198.51.100.0/24";

/// One run at a time: the machine's routes are one.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open() -> Tun {
    let beside = std::env::current_exe().expect("this program").with_file_name("wintun.dll");
    if let Some(from) = std::env::var_os("ZTUN_WINTUN_DLL") {
        std::fs::copy(PathBuf::from(from), &beside).expect("copy wintun.dll");
    }
    assert!(beside.exists(), "no {}: set ZTUN_WINTUN_DLL", beside.display());
    Tun::open(DEVICE, 1_400, OffloadLevel::Off).unwrap_or_else(|error| panic!("{error}"))
}

fn files() -> (tempfile::TempDir, RunDir) {
    let temporary = tempfile::tempdir().expect("a directory");
    let dir = RunDir::at(temporary.path().join("run"));
    (temporary, dir)
}

fn config() -> HostPlanConfig {
    HostPlanConfig {
        tun: DEVICE.into(),
        routes: vec![CAPTURED.parse().expect("a network")],
        bypass: vec!["198.51.100.7".parse().expect("a network")],
        ..HostPlanConfig::default()
    }
}

fn left() -> Vec<String> {
    host::left_behind().expect("what is left").iter().map(ToString::to_string).collect()
}

#[test]
fn what_a_run_changes_is_there_while_it_lasts_and_then_is_not() {
    let _turn = turn();
    let (_temporary, dir) = files();
    let device = open();
    for routes in [vec![CAPTURED], vec!["0.0.0.0/0"], vec!["0.0.0.0/0", "::/0"]] {
        let routes: Vec<_> = routes.iter().map(|net| net.parse().expect("a network")).collect();
        let dns = vec!["198.18.0.2".parse().expect("an address")];
        let config = HostPlanConfig { routes, dns, ..config() };
        let mut applied =
            host::up_in(&dir, &config, DEVICE, &[], None).unwrap_or_else(|error| panic!("{error}"));
        let changes: Vec<String> = applied.changes().iter().map(ToString::to_string).collect();
        assert_eq!(applied.verify().expect("a look"), [], "{changes:?}");
        assert!(changes.iter().any(|change| change.starts_with("route add 198.51.100.7/32 ")), "{changes:?}");
        let report = applied.down();
        assert!(report.is_ok(), "{report}");
        assert_eq!(left(), [""; 0]);
    }
    drop(device);
}

#[test]
fn a_kill_switch_outlives_its_run_and_refuses_at_once_until_it_is_taken_away() {
    let _turn = turn();
    let (_temporary, dir) = files();
    let device = open();
    let config = HostPlanConfig { kill_switch: true, ..config() };
    let applied = host::up_in(&dir, &config, DEVICE, &[], None).unwrap_or_else(|error| panic!("{error}"));
    drop(applied);
    drop(device);
    // This program may pass, since it began the run: so another one asks. 7 is a connection that fails at once, 28 one that nobody answers.
    let asked = Command::new("curl").args(["--silent", "--max-time", "5", "http://198.51.100.9/"]).status();
    assert_eq!(asked.expect("curl").code(), Some(7));
    assert!(left().iter().any(|undo| undo.starts_with("guard del kill-switch ")), "{:?}", left());
    let report = host::restore_in(&dir, DEVICE).unwrap_or_else(|error| panic!("{error}"));
    assert!(report.is_ok(), "{report}");
    assert_eq!(left(), [""; 0]);
}
