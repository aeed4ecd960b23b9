//! A run's changes to this machine, from the locks to the last undo.

use super::journal::FileJournal;
use super::lock::{self, Holder, Lock, LockError, RunDir};
use super::remedy::failed;
use super::{Host, Run};
use crate::config::HostPlanConfig;
use crate::host::reversible::Reversible;
use crate::host::system::{self, Machine, Upkeep};
use crate::host::want::Want;
use crate::host::{Change, DnsCheck, HostError, LocalProxy, Refreshed, Report};
use std::io;
use std::net::IpAddr;

/// The changes of a run. Dropped without [`Applied::down`], they are undone all the same; but with the kill switch that is the end of a run that went
/// wrong, and what keeps packets from leaving stays, for [`restore`] or the next start.
#[derive(Debug)]
pub struct Applied {
    run: Run<Machine, FileJournal>,
    kill_switch: bool,
    /// Keeps the machine's name servers.
    dns: Option<Upkeep>,
    /// Released after everything else, in this order.
    _locks: (Option<Lock>, Lock),
}

impl Applied {
    /// What was changed and has not been undone.
    pub fn changes(&self) -> &[Change] {
        self.run.changes()
    }

    /// Undoes everything, the latest first, then searches the kernel's tables for anything of ours. What fails is logged, is in the report, and
    /// stays in the journal for [`restore`]. Calling it again tries again what has failed, and does nothing if nothing has.
    pub fn down(&mut self) -> Report {
        self.dns = None;
        self.run.down()
    }

    /// Makes the difference between what there is and what is wanted by now, journalled like the first changes: after the network has changed, after
    /// another program has undone something, and after `device` was deleted and made anew under the same name. Does nothing, for the price of a
    /// few questions to the kernel, when nothing differs.
    ///
    /// # Errors
    ///
    /// The device is not there, or the kernel refuses a change. What was made until then stays, and the next call goes on from there.
    pub fn refresh(&mut self, device: &str) -> Result<Refreshed, HostError> {
        let refreshed = self.run.refresh(device)?;
        if refreshed.made.iter().any(Reversible::is_made_once) {
            self.dns = system::upkeep(self.run.changes());
        }
        Ok(refreshed)
    }

    /// Looks whether the machine still uses the name servers that it was given, and sees to it that it does. To be called when
    /// `/etc/resolv.conf` or the network has changed, and every 30 s; again in a second when it says so.
    pub fn dns_check(&mut self) -> DnsCheck {
        self.dns.as_mut().map_or(DnsCheck::Kept, Upkeep::check)
    }

    /// Makes `device`, which exists and dies with this process, take the place of the first while that one is gone.
    ///
    /// # Errors
    ///
    /// The kernel's; what there is of it then does no harm.
    pub fn stand_in(&self, device: &str) -> io::Result<()> {
        system::stand_in(device, self.run.changes())
    }

    /// Whether `device`, which was given to [`Applied::stand_in`], still takes the place of the first.
    ///
    /// # Errors
    ///
    /// The kernel cannot be asked.
    pub fn is_stood_in(&self, device: &str) -> io::Result<bool> {
        system::is_stood_in(device, self.run.changes())
    }

    /// The changes of this run that are not in the kernel, because another program undid them.
    ///
    /// # Errors
    ///
    /// The kernel cannot be asked.
    pub fn verify(&mut self) -> io::Result<Vec<Change>> {
        self.run.verify()
    }

    /// Other proxies stay outside from the next [`Applied::refresh`] on. The user that was kept outside stays so.
    pub fn follow_proxies(&mut self, proxies: &[IpAddr]) {
        self.run.want_mut().proxies = proxies.to_vec();
    }

    /// Other proxies stay outside from the next [`Applied::refresh`] on, and so does the user of `local_proxy` when that user runs nothing else.
    pub fn set_proxies(&mut self, proxies: &[IpAddr], local_proxy: Option<&LocalProxy>) {
        let want = self.run.want_mut();
        want.proxies = proxies.to_vec();
        want.local_uid = local_proxy.and_then(LocalProxy::exclusive_uid);
    }
}

impl Drop for Applied {
    fn drop(&mut self) {
        if !self.run.is_dirty() {
            return;
        }
        if self.kill_switch {
            log::warn!("kill switch: nothing leaves until ztun is started again, or `sudo ztun restore`");
        } else {
            self.run.down();
        }
    }
}

/// Makes the machine send what `config` says into `device`, which exists and has been opened by this process. `proxies` stay outside, and so
/// does the user of `local_proxy` when that user runs nothing else.
///
/// What a run that died left behind is undone first; with the kill switch, what kept packets from leaving goes over to this run without a gap. On an
/// error everything that was changed has been undone, but for a kill switch that had been left behind.
pub fn up(
    config: &HostPlanConfig,
    device: &str,
    proxies: &[IpAddr],
    local_proxy: Option<&LocalProxy>,
) -> Result<Applied, HostError> {
    up_in(&RunDir::standard(), config, device, proxies, local_proxy)
}

/// [`up`] with its files in `dir`.
pub fn up_in(
    dir: &RunDir,
    config: &HostPlanConfig,
    device: &str,
    proxies: &[IpAddr],
    local_proxy: Option<&LocalProxy>,
) -> Result<Applied, HostError> {
    let locks = locks(dir, device, !config.no_route)?;
    let want = Want::new(config, device, proxies, local_proxy.and_then(LocalProxy::exclusive_uid));
    let routed = !config.no_route;
    let run = Run::start(open_machine()?, FileJournal::new(dir, device), want, routed)?;
    let dns = system::upkeep(run.changes());
    Ok(Applied { run, kill_switch: config.kill_switch && routed, dns, _locks: locks })
}

/// Undoes what a run on `device` that died left behind; also without its journal, or with a spoilt one. A run that lives is an error.
pub fn restore(device: &str) -> Result<Report, HostError> {
    restore_in(&RunDir::standard(), device)
}

/// [`restore`] with its files in `dir`.
pub fn restore_in(dir: &RunDir, device: &str) -> Result<Report, HostError> {
    let _locks = locks(dir, device, true)?;
    let report = super::restore_from(&mut open_machine()?, &mut FileJournal::new(dir, device), device, true);
    // Nobody answers there: whoever did had the lock.
    let socket = dir.control_socket(device);
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::warn!("{} stays: {error}", socket.display());
        }
        Ok(()) | Err(_) => {}
    }
    Ok(report)
}

/// What a run of this process on `device` has changed is undone without its help: that run hangs, and has the lock. Without the lock it has changed nothing, and
/// what there is may be another's.
pub fn restore_own(device: &str, no_route: bool) -> Result<Report, HostError> {
    if holder(device).is_none_or(|holder| holder.pid != std::process::id()) {
        return Ok(Report::default());
    }
    let mut journal = FileJournal::new(&RunDir::standard(), device);
    Ok(super::restore_from(&mut open_machine()?, &mut journal, device, !no_route))
}

/// What the machine shows of ours: the undo of each, most of all after a clean-up, when there must be none.
pub fn left_behind() -> io::Result<Vec<Change>> {
    Machine::open()?.leftovers()
}

/// What [`up`] would change, each change with its undo; nothing is changed, and no privilege is needed.
pub fn dry_run(
    config: &HostPlanConfig,
    device: &str,
    proxies: &[IpAddr],
    local_proxy: Option<&LocalProxy>,
) -> Result<String, HostError> {
    let mut machine = open_machine()?;
    let have = super::look(&mut machine, device)?.have;
    let want = Want::new(config, device, proxies, local_proxy.and_then(LocalProxy::exclusive_uid));
    let names = (!want.dns.is_empty()).then(|| machine.names());
    let mut text = String::new();
    for change in Machine::plan(have, names, &want) {
        text.push_str(&format!("{change}\n    undo: {}\n", change.undo()));
    }
    Ok(text)
}

/// The resolvers that this machine is set to ask, or was before a run changed it; none where the setting is also that of another network.
pub fn name_servers() -> Vec<IpAddr> {
    system::name_servers()
}

/// The live ztun that has `device`, for whoever wants to take over from it.
pub fn holder(device: &str) -> Option<Holder> {
    lock::holder_in(&RunDir::standard(), device)
}

fn locks(dir: &RunDir, device: &str, routes: bool) -> Result<(Option<Lock>, Lock), HostError> {
    let lock = Lock::device(dir, device).map_err(|error| {
        locked(dir, error, &format!("the device {device}"), "stop it, or choose another --tun")
    })?;
    let routes = routes.then(|| Lock::routes(dir)).transpose().map_err(|error| {
        locked(dir, error, "this machine's routes", "stop it, or leave the routes alone with --no-route")
    })?;
    Ok((routes, lock))
}

fn locked(dir: &RunDir, error: LockError, what: &str, remedy: &str) -> HostError {
    match error {
        LockError::Held { holder } => {
            let pid = holder.map_or("unknown".into(), |holder| holder.pid.to_string());
            HostError {
                what: format!("another ztun, process {pid}, has {what}"),
                source: io::ErrorKind::ResourceBusy.into(),
                remedy: remedy.into(),
            }
        }
        LockError::Io(source) => {
            let what = format!("cannot take the lock in {}", dir.path().display());
            if matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound) {
                let remedy = system::LOCK_REMEDY.into();
                return HostError { what, source, remedy };
            }
            failed(&what, source)
        }
    }
}

fn open_machine() -> Result<Machine, HostError> {
    Machine::open().map_err(|source| failed("cannot talk to the system about its network", source))
}
