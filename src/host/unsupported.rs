//! Systems whose routes are not managed yet: type-checks, changes nothing.

use super::{DnsCheck, HostError, Refreshed, Report, Reversible};
use crate::config::HostPlanConfig;
use crate::outbound::rule::Proto;
use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::str::FromStr;
use std::io;
use std::path::PathBuf;

/// What there is on a system whose routes and device nobody manages.
const REMEDY: &str = "a Linux machine; here there is `ztun proxy` so far";

fn unsupported<T>(what: &str) -> Result<T, HostError> {
    let what = format!("{what}: this version has no routes on this system");
    Err(HostError { what, source: io::ErrorKind::Unsupported.into(), remedy: REMEDY.into() })
}

/// A change, of which there are none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {}

impl fmt::Display for Change {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

impl FromStr for Change {
    type Err = ();

    fn from_str(_line: &str) -> Result<Change, ()> {
        Err(())
    }
}

impl Reversible for Change {
    fn undo(&self) -> Change {
        match *self {}
    }

    fn device(&self) -> Option<&str> {
        match *self {}
    }

    fn outlives_device(&self) -> bool {
        match *self {}
    }

    fn is_optional(&self) -> bool {
        match *self {}
    }

    fn is_made_once(&self) -> bool {
        match *self {}
    }

    fn is_replaced_by(&self, _other: &Change) -> bool {
        match *self {}
    }

    fn kind(&self) -> &'static str {
        match *self {}
    }

    fn remedy(&self, _error: &io::Error) -> Option<&'static str> {
        match *self {}
    }
}

/// What a run changed, which is nothing.
#[derive(Debug)]
pub enum Applied {}

impl Applied {
    /// Undoes it.
    pub fn down(&mut self) -> Report {
        match *self {}
    }

    /// Makes the difference.
    pub fn refresh(&mut self, _device: &str) -> Result<Refreshed, HostError> {
        match *self {}
    }

    /// A second device.
    pub fn stand_in(&self, _device: &str) -> io::Result<()> {
        match *self {}
    }

    /// Whether it still takes the first one's place.
    pub fn is_stood_in(&self, _device: &str) -> io::Result<bool> {
        match *self {}
    }

    /// What is missing.
    pub fn verify(&mut self) -> io::Result<Vec<Change>> {
        match *self {}
    }

    /// The name servers.
    pub fn dns_check(&mut self) -> DnsCheck {
        match *self {}
    }

    /// Other proxies.
    pub fn follow_proxies(&mut self, _proxies: &[IpAddr]) {
        match *self {}
    }

    /// Other proxies.
    pub fn set_proxies(&mut self, _proxies: &[IpAddr], _local_proxy: Option<&LocalProxy>) {
        match *self {}
    }
}

/// A process that has a lock, which cannot be found here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// When it was started.
    pub started: u64,
}

impl Holder {
    /// Nobody is.
    pub fn is_alive(&self) -> bool {
        false
    }
}

/// Where the control sockets of runs are looked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// The directory of this machine: what the environment variable `ZTUN_RUN_DIR` says, else `/var/run/ztun`.
    pub fn standard() -> RunDir {
        let path = std::env::var_os("ZTUN_RUN_DIR").filter(|value| !value.is_empty());
        RunDir(path.unwrap_or("/var/run/ztun".into()).into())
    }

    /// The control socket of the run on `device`.
    pub fn control_socket(&self, device: &str) -> PathBuf {
        self.0.join(format!("{device}.sock"))
    }

    /// There are none.
    pub fn control_sockets(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}

/// Nobody has the device.
pub fn holder(_device: &str) -> Option<Holder> {
    None
}

/// The owner of a proxy's listening socket, which cannot be found here.
#[derive(Debug)]
pub struct LocalProxy(());

impl LocalProxy {
    /// Nobody is.
    pub fn is_running(&self) -> bool {
        false
    }

    /// Nobody has one.
    pub fn exclusive_uid(&self) -> Option<u32> {
        None
    }

    /// Nobody owns anything.
    pub fn owns(&mut self, _proto: Proto, _local: SocketAddr, _remote: SocketAddr) -> bool {
        false
    }

    /// Nobody listens.
    pub fn listen(&self) -> SocketAddr {
        SocketAddr::from(([0, 0, 0, 0], 0))
    }

    /// Nobody is.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        core::iter::empty()
    }

    /// Finds nobody.
    pub fn find(_listen: SocketAddr) -> io::Result<Option<LocalProxy>> {
        Ok(None)
    }
}

/// Fails: this system is not supported.
pub fn interface_index(_name: &str) -> io::Result<u32> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Fails: this system is not supported.
pub fn find_interface(_name: &str) -> io::Result<Option<u32>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Fails: this system is not supported.
pub fn up(
    _config: &HostPlanConfig,
    device: &str,
    _proxies: &[IpAddr],
    _local_proxy: Option<&LocalProxy>,
) -> Result<Applied, HostError> {
    unsupported(&format!("cannot set up routes into {device}"))
}

/// Fails: this system is not supported.
pub fn restore(device: &str) -> Result<Report, HostError> {
    unsupported(&format!("cannot restore what a run on {device} left"))
}

/// Fails: this system is not supported.
pub fn dry_run(
    _config: &HostPlanConfig,
    device: &str,
    _proxies: &[IpAddr],
    _local_proxy: Option<&LocalProxy>,
) -> Result<String, HostError> {
    unsupported(&format!("cannot plan routes into {device}"))
}

/// Fails: this system is not supported.
pub fn restore_own(device: &str, _no_route: bool) -> Result<Report, HostError> {
    unsupported(&format!("cannot restore what a run on {device} left"))
}

/// Nothing is.
pub fn left_behind() -> io::Result<Vec<Change>> {
    Ok(Vec::new())
}

/// Fails: this system is not supported.
pub fn reset_existing(_device: &str, _keep: &dyn Fn(SocketAddr, SocketAddr) -> bool) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// There is none.
pub fn stand_in_name(_device: &str) -> Option<String> {
    None
}

/// Nobody knows.
pub fn name_servers() -> Vec<IpAddr> {
    Vec::new()
}
