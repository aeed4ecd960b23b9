//! The system's resolver (the service Dnscache): the name servers of an interface, the rule for all names, and telling it that either has changed.

use super::helper::{check, guid_of};
use super::nrpt;
use super::octets::wide;
use super::registry::{self, Life};
use crate::host::Outcome;
use core::ffi::{CStr, c_void};
use core::net::IpAddr;
use std::io;
use windows_sys::Win32::Foundation::WIN32_ERROR;
use windows_sys::Win32::NetworkManagement::IpHelper::{
    DNS_INTERFACE_SETTINGS, DNS_INTERFACE_SETTINGS_VERSION1, DNS_SETTING_IPV6, DNS_SETTING_NAMESERVER,
};
use windows_sys::Win32::System::LibraryLoader::{
    GetProcAddress, LOAD_LIBRARY_SEARCH_SYSTEM32, LoadLibraryExW,
};
use windows_sys::Win32::System::Registry::HKEY_LOCAL_MACHINE;
use windows_sys::Win32::System::Services::{
    CloseServiceHandle, ControlService, OpenSCManagerW, OpenServiceW, SC_HANDLE, SC_MANAGER_CONNECT,
    SERVICE_CONTROL_PARAMCHANGE, SERVICE_PAUSE_CONTINUE, SERVICE_STATUS,
};
use windows_sys::core::{BOOL, GUID};

/// `SetInterfaceDnsSettings`, which Windows has since 10 2004.
type SetSettings = unsafe extern "system" fn(GUID, *const DNS_INTERFACE_SETTINGS) -> WIN32_ERROR;
/// `DnsFlushResolverCache`, which no header declares.
type FlushCache = unsafe extern "system" fn() -> BOOL;

/// A function of a library of the system that may lack it.
fn function(library: &str, name: &CStr) -> io::Result<unsafe extern "system" fn() -> isize> {
    let library = wide(library);
    // SAFETY: a text that ends with 0, and no file; the library is looked for where the system's are, and stays loaded.
    let module = unsafe {
        LoadLibraryExW(library.as_ptr(), core::ptr::null_mut::<c_void>(), LOAD_LIBRARY_SEARCH_SYSTEM32)
    };
    if module.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a library that is loaded, and a text that ends with 0.
    let found = unsafe { GetProcAddress(module, name.as_ptr().cast()) };
    found.ok_or_else(|| {
        io::Error::new(io::ErrorKind::Unsupported, "this version of Windows is too old for it")
    })
}

/// Gives an interface these name servers, or none, in the families that `servers` are of.
pub(super) fn set_servers(luid: u64, servers: &[IpAddr], on: bool) -> io::Result<()> {
    let set = function("iphlpapi.dll", c"SetInterfaceDnsSettings")?;
    // SAFETY: netioapi.h declares the function of this name so.
    let set = unsafe { core::mem::transmute::<unsafe extern "system" fn() -> isize, SetSettings>(set) };
    let guid = guid_of(luid)?;
    for v6 in [false, true] {
        let names = nrpt::interface_servers(servers, v6);
        if names.is_empty() {
            continue;
        }
        let mut names = wide(if on { &names } else { "" });
        let family = if v6 { DNS_SETTING_IPV6 } else { 0 };
        let settings = DNS_INTERFACE_SETTINGS {
            Version: DNS_INTERFACE_SETTINGS_VERSION1,
            Flags: u64::from(DNS_SETTING_NAMESERVER | family),
            NameServer: names.as_mut_ptr(),
            ..DNS_INTERFACE_SETTINGS::default()
        };
        // SAFETY: settings of the version that they say; their text ends with 0 and lives until the call returns.
        check(unsafe { set(guid, &raw const settings) })?;
    }
    Ok(())
}

/// Has these asked for all names.
pub(super) fn add_rule(servers: &[IpAddr]) -> io::Result<()> {
    // What others write into the table has to stay.
    registry::write(HKEY_LOCAL_MACHINE, nrpt::TABLE, Life::Kept, &[])?;
    registry::write(HKEY_LOCAL_MACHINE, nrpt::RULE, Life::Volatile, &nrpt::rule(servers))?;
    if registry::is_there(HKEY_LOCAL_MACHINE, nrpt::GROUP_POLICY)? {
        log::warn!(
            "a group policy says who is asked for names, and Windows does not look at the rule of ztun beside it: names that it keeps from the tunnel are not found"
        );
    }
    reload();
    Ok(())
}

/// Ends that.
pub(super) fn delete_rule() -> io::Result<Outcome> {
    if !registry::delete(HKEY_LOCAL_MACHINE, nrpt::RULE)? {
        return Ok(Outcome::Already);
    }
    reload();
    Ok(Outcome::Done)
}

/// The servers of our rule; `None` when there is no such rule.
pub(super) fn rule() -> io::Result<Option<Vec<IpAddr>>> {
    if !registry::is_there(HKEY_LOCAL_MACHINE, nrpt::RULE)? {
        return Ok(None);
    }
    let data = registry::read(HKEY_LOCAL_MACHINE, nrpt::RULE, nrpt::SERVERS)?;
    Ok(Some(data.map(|data| nrpt::servers_in(&data)).unwrap_or_default()))
}

/// Has the resolver read its settings anew, and forget what it was told before. Without it, it does so in a while.
fn reload() {
    if let Err(error) = tell_service() {
        log::debug!("the service Dnscache is not told: {error}");
    }
    match function("dnsapi.dll", c"DnsFlushResolverCache") {
        Ok(flush) => {
            // SAFETY: the function of this name takes nothing and gives a BOOL.
            let flush =
                unsafe { core::mem::transmute::<unsafe extern "system" fn() -> isize, FlushCache>(flush) };
            // SAFETY: as above.
            if unsafe { flush() } == 0 {
                log::debug!("DnsFlushResolverCache: {}", io::Error::last_os_error());
            }
        }
        Err(error) => log::debug!("DnsFlushResolverCache: {error}"),
    }
}

/// A service, or the manager of them.
struct Service(SC_HANDLE);

impl Service {
    fn new(handle: SC_HANDLE) -> io::Result<Service> {
        if handle.is_null() { Err(io::Error::last_os_error()) } else { Ok(Service(handle)) }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and nobody else has it.
        if unsafe { CloseServiceHandle(self.0) } == 0 {
            log::debug!("CloseServiceHandle: {}", io::Error::last_os_error());
        }
    }
}

fn tell_service() -> io::Result<()> {
    let null = core::ptr::null();
    // SAFETY: the nulls stand for this machine and its one data base.
    let manager = Service::new(unsafe { OpenSCManagerW(null, null, SC_MANAGER_CONNECT) })?;
    let name = wide("Dnscache");
    // SAFETY: an open manager, and a text that ends with 0.
    let service = Service::new(unsafe { OpenServiceW(manager.0, name.as_ptr(), SERVICE_PAUSE_CONTINUE) })?;
    let mut status = SERVICE_STATUS::default();
    // SAFETY: an open service, and a status to write to.
    if unsafe { ControlService(service.0, SERVICE_CONTROL_PARAMCHANGE, &raw mut status) } == 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_that_a_library_lacks_is_unsupported() {
        assert!(function("kernel32.dll", c"GetCurrentProcessId").is_ok());
        let error = function("kernel32.dll", c"NoSuchFunctionOfTheSystem").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert!(function("no such library.dll", c"x").is_err());
    }
}
