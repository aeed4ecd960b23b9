//! Other processes of this machine.

use std::io;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::path::PathBuf;
use std::time::Duration;
use windows_sys::Win32::Foundation::{
    ERROR_INVALID_PARAMETER, FILETIME, STILL_ACTIVE, WAIT_OBJECT_0, WAIT_TIMEOUT,
};
use windows_sys::Win32::System::Threading::{
    GetCurrentProcess, GetExitCodeProcess, GetProcessTimes, OpenProcess, PROCESS_NAME_WIN32,
    PROCESS_QUERY_LIMITED_INFORMATION, PROCESS_SYNCHRONIZE, PROCESS_TERMINATE, QueryFullProcessImageNameW,
    TerminateProcess, WaitForSingleObject,
};

/// The status of a process that was killed.
const KILLED: u32 = 137;

/// Opens a process; `None` when there is none of that number.
fn open(pid: u32, access: u32) -> io::Result<Option<OwnedHandle>> {
    // SAFETY: numbers only.
    let handle = unsafe { OpenProcess(access, 0, pid) };
    if !handle.is_null() {
        // SAFETY: the handle was just made, and nobody else has it.
        return Ok(Some(unsafe { OwnedHandle::from_raw_handle(handle) }));
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(ERROR_INVALID_PARAMETER.cast_signed()) { Ok(None) } else { Err(error) }
}

/// When a process that lives was started, in units of 100 ns since 1601; with its number, no other process has it.
pub(in crate::host) fn start_time(pid: u32) -> Option<u64> {
    let process = open(pid, PROCESS_QUERY_LIMITED_INFORMATION).ok()??;
    // Somebody may hold one that has ended.
    let mut code = 0;
    // SAFETY: an open process, and a number to write to.
    let asked = unsafe { GetExitCodeProcess(process.as_raw_handle(), &raw mut code) };
    if asked == 0 || code != STILL_ACTIVE.cast_unsigned() {
        return None;
    }
    let mut times = [FILETIME::default(); 4];
    let [created, exited, kernel, user] = &mut times;
    // SAFETY: an open process, and four times to write to.
    let asked = unsafe {
        GetProcessTimes(
            process.as_raw_handle(),
            &raw mut *created,
            &raw mut *exited,
            &raw mut *kernel,
            &raw mut *user,
        )
    };
    let [created, ..] = times;
    (asked != 0).then_some(u64::from(created.dwHighDateTime) << 32 | u64::from(created.dwLowDateTime))
}

/// Whether a process that has a start time is on its way out: here, none is.
pub(in crate::host) fn is_ending(_pid: u32) -> bool {
    false
}

/// The file that a process runs.
fn program(pid: u32) -> Option<PathBuf> {
    let process = open(pid, PROCESS_QUERY_LIMITED_INFORMATION).ok()??;
    // The longest that a path can be.
    let mut path = vec![0_u16; 32_768];
    let mut size = u32::try_from(path.len()).ok()?;
    // SAFETY: an open process, and as many units to write to as the size says.
    let asked = unsafe {
        QueryFullProcessImageNameW(
            process.as_raw_handle(),
            PROCESS_NAME_WIN32,
            path.as_mut_ptr(),
            &raw mut size,
        )
    };
    let path = path.get(..usize::try_from(size).ok()?)?;
    (asked != 0).then(|| String::from_utf16_lossy(path).into())
}

/// Whether a process runs a program of the name ztun, or this very program.
pub(in crate::host) fn is_ztun(pid: u32) -> bool {
    let Some(program) = program(pid) else { return false };
    let name = program.file_name().map(|name| name.to_string_lossy().to_lowercase());
    name.is_some_and(|name| name.starts_with("ztun")) || self::program(std::process::id()) == Some(program)
}

/// A process that is not a child of this one, held by a handle: its number is not given to another one as far as this is concerned.
#[derive(Debug)]
pub struct Other(OwnedHandle);

impl Other {
    /// The process `pid`, if there is one.
    pub fn open(pid: u32) -> io::Result<Option<Other>> {
        let access = PROCESS_TERMINATE | PROCESS_SYNCHRONIZE;
        Ok(open(pid, access)?.map(Other))
    }

    /// Ends it: there is no asking a process of another console or of none, and what it leaves behind is undone by the start that follows.
    pub fn terminate(&self) -> io::Result<()> {
        self.kill()
    }

    /// Ends it.
    pub fn kill(&self) -> io::Result<()> {
        // SAFETY: an open process.
        if unsafe { TerminateProcess(self.0.as_raw_handle(), KILLED) } != 0 || self.wait(Duration::ZERO)? {
            return Ok(());
        }
        Err(io::Error::last_os_error())
    }

    /// Waits for its end, at most for `limit`: whether it has ended.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let milliseconds = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX - 1);
        // SAFETY: an open process.
        match unsafe { WaitForSingleObject(self.0.as_raw_handle(), milliseconds) } {
            WAIT_OBJECT_0 => Ok(true),
            WAIT_TIMEOUT => Ok(false),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Ends this process at once, whatever its other threads do. (`ExitProcess` would first tell each library, and wait for locks that a thread had which it
/// has ended.)
pub fn exit_now(status: i32) -> ! {
    // SAFETY: this process's own handle, which needs no closing.
    unsafe { TerminateProcess(GetCurrentProcess(), status.cast_unsigned()) };
    // Not reached: no process is refused its own end.
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_start_time_and_a_name() {
        let pid = std::process::id();
        assert_eq!(start_time(pid), start_time(pid));
        assert!(start_time(pid).unwrap() > 0);
        assert!(is_ztun(pid));
        assert_eq!(start_time(0xffff_fffc), None);
        assert!(!is_ztun(0xffff_fffc));
    }

    #[test]
    fn another_process_is_waited_for_and_ended() {
        let mut child = std::process::Command::new("cmd")
            .args(["/c", "pause"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let other = Other::open(child.id()).unwrap().unwrap();
        assert!(!other.wait(Duration::ZERO).unwrap());
        other.kill().unwrap();
        assert!(other.wait(Duration::from_secs(30)).unwrap());
        assert_eq!(child.wait().unwrap().code(), Some(137));
        assert_eq!(start_time(child.id()), None);
    }
}
