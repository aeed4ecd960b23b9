//! What to try when the machine refuses.

use super::HostError;
use super::change::Change;
use std::io;

/// An error of a request that belongs to no single change.
pub(super) fn failed(what: &str, source: io::Error) -> HostError {
    let remedy = match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "run as root or with CAP_NET_ADMIN",
        Some(libc::ENOSPC | libc::EDQUOT) => "make room, or set ZTUN_RUN_DIR to a directory that has some",
        Some(libc::EROFS) => "set ZTUN_RUN_DIR to a directory that can be written to",
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit on open files (`ulimit -n`)",
        _ => "run with --log-level debug for the step before it",
    };
    HostError { what: what.into(), source, remedy: remedy.into() }
}

/// The journal cannot be written, so nothing may be changed.
pub(super) fn journal(source: io::Error) -> HostError {
    failed("cannot write the journal, without which nothing is changed", source)
}

/// The device is not in this network namespace.
pub(super) fn no_device(device: &str) -> HostError {
    HostError {
        what: format!("cannot find the device {device}"),
        source: io::Error::from_raw_os_error(libc::ENODEV),
        remedy: "another program may have deleted it; a device from another network namespace is set up there: use --no-route here"
            .into(),
    }
}

/// The kernel refuses a change.
pub(super) fn refused(change: &Change, source: io::Error) -> HostError {
    let what = format!("the kernel refuses `{change}`");
    let remedy = match (change, source.raw_os_error()) {
        (Change::AddressAdd(_), Some(libc::EEXIST)) => {
            "the address is in use on this machine: choose another with --address"
        }
        (Change::RouteAdd(_) | Change::UnreachableAdd(_), Some(libc::EEXIST)) => {
            "another program uses routing table 31348: see `ip route show table 31348`"
        }
        (Change::RuleAdd(_), Some(libc::EEXIST)) => "another program has the same rule: see `ip rule`",
        (Change::RuleAdd(_), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {
            "the kernel lacks policy routing (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES)"
        }
        (_, Some(libc::ENODEV)) => "the device has gone: another program may have deleted it",
        (Change::MtuSet { .. }, Some(libc::EINVAL)) => "choose an --mtu from 1280 to 65535",
        _ => return failed(&what, source),
    };
    HostError { what, source, remedy: remedy.into() }
}

/// The kernel has said that these changes are made, twice, and has them not.
pub(super) fn not_kept(missing: &[Change]) -> HostError {
    let missing: Vec<String> = missing.iter().map(|change| format!("`{change}`")).collect();
    HostError {
        what: format!("changes do not last: {}", missing.join(", ")),
        source: io::Error::other("they were made, and are not there"),
        remedy: "another program undoes them at once: stop it, or tell it to leave the device and protocol 122 alone"
            .into(),
    }
}
