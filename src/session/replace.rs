//! Another ztun on the same device: named, or with `--replace` ended first.

use super::{RESTART_LIMIT, RunError};
use crate::host::process::Other;
use crate::host::{self, Holder};
use crate::time::Duration;
use std::io;

/// What a process that was killed has until the kernel has taken it down, L-2.
const KILL_LIMIT: Duration = Duration::from_millis(500);

/// Makes sure that no other ztun has `device`: one that has is ended, when `replace` says so, or is an error. `false` when a signal came meanwhile.
///
/// What one that had to be killed has left is undone by the start that follows. With `kill_switch` it is killed at once: one that ends in order lifts its own
/// kill switch, and what one leaves behind that is killed goes over to the next without a gap.
pub(super) fn clear(device: &str, replace: bool, kill_switch: bool) -> Result<bool, RunError> {
    let Some(holder) = host::holder(device) else { return Ok(true) };
    if !replace {
        return Err(RunError::Machine {
            what: format!("another ztun, process {}, has the device {device}", holder.pid),
            source: io::ErrorKind::ResourceBusy.into(),
            remedy: "stop it, take over from it with --replace, or choose another --tun".into(),
        });
    }
    let failed = |source| RunError::Machine {
        what: format!("cannot end the ztun that has the device {device}, process {}", holder.pid),
        source,
        remedy: format!("end it yourself: `sudo kill -9 {0}`, then `sudo ztun restore`", holder.pid),
    };
    match end(holder, !kill_switch) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

/// Ends a process in order, or by force: when that does not end it in [`RESTART_LIMIT`], or is not wanted.
fn end(holder: Holder, in_order: bool) -> io::Result<()> {
    // None: it has ended by itself.
    let Some(other) = Other::open(holder.pid)? else { return Ok(()) };
    // What the descriptor leads to is looked at once more: the number may have been another process's by then.
    if !holder.is_alive() {
        return Ok(());
    }
    log::info!("taking over from process {}", holder.pid);
    if in_order {
        other.terminate()?;
        if other.wait(RESTART_LIMIT)? {
            return Ok(());
        }
        log::warn!("process {} does not end: it is killed, and what it leaves behind is undone", holder.pid);
    }
    other.kill()?;
    if other.wait(KILL_LIMIT)? {
        return Ok(());
    }
    Err(io::ErrorKind::TimedOut.into())
}
