//! What a run asks of every system, as far as it is short here.

use super::change::Change;
use super::helper;
use crate::host::DnsCheck;
use std::io;
use std::net::IpAddr;
use windows_sys::Win32::Foundation::ERROR_NOT_FOUND;

/// What to try where a privilege is missing.
pub(in crate::host) const PRIVILEGE: &str = "start it as administrator";

/// What to try where locks cannot be taken.
pub(in crate::host) const LOCK_REMEDY: &str = "start it as administrator; a directory that is somebody else's has to go, or ZTUN_RUN_DIR to name another";

/// What to try where there is no such device.
pub(in crate::host) const NO_DEVICE: &str =
    "another program may have deleted or renamed it: see `netsh interface show interface`";

/// What to try where changes do not last.
pub(in crate::host) const NOT_KEPT: &str = "another program undoes them at once: stop it";

/// The system's answer where there is no such device.
pub(in crate::host) fn no_device() -> io::Error {
    io::Error::from_raw_os_error(ERROR_NOT_FOUND.cast_signed())
}

/// Nothing that any request may end with has a remedy of its own.
pub(in crate::host) fn remedy(_error: &io::Error) -> Option<&'static str> {
    None
}

/// There is one network on a machine.
pub(in crate::host) fn files_suffix() -> String {
    String::new()
}

/// The index of the interface `name`.
///
/// # Errors
///
/// There is none of that name.
pub fn interface_index(name: &str) -> io::Result<u32> {
    find_interface(name)?.ok_or_else(no_device)
}

/// The index of the interface `name`, if there is one.
pub fn find_interface(name: &str) -> io::Result<Option<u32>> {
    helper::luid_of(name)?.map(helper::index_of).transpose()
}

/// No second device stands in for the first: making one takes longer than making the first anew.
pub fn stand_in_name(_device: &str) -> Option<String> {
    None
}

/// None does.
pub(in crate::host) fn stand_in(_device: &str, _changes: &[Change]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// None does.
pub(in crate::host) fn is_stood_in(_device: &str, _changes: &[Change]) -> io::Result<bool> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Keeps the machine's name servers, which here needs no keeping: the rule for all names stands beside what others write.
#[derive(Debug)]
pub(in crate::host) enum Upkeep {}

impl Upkeep {
    /// Looks after them.
    pub(in crate::host) fn check(&mut self) -> DnsCheck {
        match *self {}
    }
}

/// Nothing has to be kept.
pub(in crate::host) fn upkeep(_changes: &[Change]) -> Option<Upkeep> {
    None
}

/// The resolvers of this machine: those of all its adapters.
pub(in crate::host) fn name_servers() -> Vec<IpAddr> {
    let adapters = ipconfig::get_adapters().unwrap_or_else(|error| {
        log::debug!("the adapters cannot be read: {error}");
        Vec::new()
    });
    // Stand-ins of Windows for an interface that was given none (fec0::/10, which nobody has any more: RFC 3879).
    let real =
        |server: &&IpAddr| !matches!(server, IpAddr::V6(addr) if addr.segments()[0] & 0xffc0 == 0xfec0);
    let up = |adapter: &&ipconfig::Adapter| adapter.oper_status() == ipconfig::OperStatus::IfOperStatusUp;
    let mut servers: Vec<IpAddr> = Vec::new();
    for server in adapters.iter().filter(up).flat_map(ipconfig::Adapter::dns_servers).filter(real) {
        if !servers.contains(server) {
            servers.push(*server);
        }
    }
    servers
}
