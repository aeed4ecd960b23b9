//! What the kernel tells of the process that has a lock (proc_pid_stat(5)), and whose files are whose.

use super::process::in_first_network;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

/// What tells the files of a run in a network namespace of its own from others': empty in the machine's own, `@NUMBER` in others.
pub(in crate::host) fn files_suffix() -> String {
    match fs::metadata("/proc/thread-self/ns/net") {
        Ok(own) if !in_first_network() => format!("@{}", own.ino()),
        Ok(_) | Err(_) => String::new(),
    }
}

/// When a process was started: field 22 of `/proc/PID/stat`, in clock ticks since boot.
pub(in crate::host) fn start_time(pid: u32) -> Option<u64> {
    stat(pid, 22)
}

/// Whether a process was killed or is on its way out: signals that wait for it, and PF_EXITING of linux/sched.h among its flags.
pub(in crate::host) fn is_ending(pid: u32) -> bool {
    const EXITING: u64 = 0x4;
    let killed = stat(pid, 31).is_some_and(|signals| signals & 1 << (libc::SIGKILL - 1) != 0);
    killed || stat(pid, 9).is_some_and(|flags| flags & EXITING != 0)
}

/// A field of proc_pid_stat(5), by its number there; the first that can be asked for is the fourth.
fn stat(pid: u32, field: usize) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets, which may contain anything; the third field follows its last bracket.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(field.checked_sub(3)?)?.parse().ok()
}

/// Whether a process runs a program of the name ztun, or this very program.
pub(in crate::host) fn is_ztun(pid: u32) -> bool {
    let program = match fs::read_link(format!("/proc/{}/exe", pid)) {
        Ok(program) => program,
        // It may do more than we may: then it tells its name only.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let name = fs::read_to_string(format!("/proc/{}/comm", pid));
            return name.is_ok_and(|name| name.starts_with("ztun"));
        }
        Err(_) => return false,
    };
    let named = program.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ztun"));
    named || fs::read_link("/proc/self/exe").is_ok_and(|own| own == program)
}
