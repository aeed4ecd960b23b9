//! What to try when the machine refuses.

use crate::host::reversible::Reversible;
use crate::host::{HostError, system};
use std::io;

/// An error of a request that belongs to no single change.
pub(super) fn failed(what: &str, source: io::Error) -> HostError {
    let kind = source.kind();
    let remedy = if kind == io::ErrorKind::PermissionDenied {
        system::PRIVILEGE
    } else if matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        "make room, or set ZTUN_RUN_DIR to a directory that has some"
    } else if kind == io::ErrorKind::ReadOnlyFilesystem {
        "set ZTUN_RUN_DIR to a directory that can be written to"
    } else {
        system::remedy(&source).unwrap_or("run with --log-level debug for the step before it")
    };
    HostError { what: what.into(), source, remedy: remedy.into() }
}

/// The journal cannot be written, so nothing may be changed.
pub(super) fn journal(source: io::Error) -> HostError {
    failed("cannot write the journal, without which nothing is changed", source)
}

/// The device is not there.
pub(super) fn no_device(device: &str) -> HostError {
    HostError {
        what: format!("cannot find the device {device}"),
        source: system::no_device(),
        remedy: system::NO_DEVICE.into(),
    }
}

/// The system refuses a change.
pub(super) fn refused<C: Reversible>(change: &C, source: io::Error) -> HostError {
    let what = format!("the system refuses `{change}`");
    match change.remedy(&source) {
        Some(remedy) => HostError { what, source, remedy: remedy.into() },
        None => failed(&what, source),
    }
}

/// The system has said that these changes are made, twice, and has them not.
pub(super) fn not_kept<C: Reversible>(missing: &[C]) -> HostError {
    let missing: Vec<String> = missing.iter().map(|change| format!("`{change}`")).collect();
    HostError {
        what: format!("changes do not last: {}", missing.join(", ")),
        source: io::Error::other("they were made, and are not there"),
        remedy: system::NOT_KEPT.into(),
    }
}
