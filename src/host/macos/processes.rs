//! What libproc tells of processes: asked for here, read in [`sockets`](super::sockets).

use super::sockets::{self, FD, PROCESS, Process, SOCKET, Socket};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// PROC_ALL_PIDS and PROC_PPID_ONLY.
const ALL: u32 = 1;
const CHILDREN: u32 = 6;
/// PROC_PIDFDSOCKETINFO.
const SOCKET_INFO: libc::c_int = 3;
/// The number of a process.
const PID: usize = 4;

/// The numbers of all processes.
pub(super) fn all() -> io::Result<Vec<u32>> {
    list(ALL, 0)
}

/// The numbers of the children of a process.
pub(super) fn children(pid: u32) -> io::Result<Vec<u32>> {
    list(CHILDREN, pid)
}

fn list(what: u32, of: u32) -> io::Result<Vec<u32>> {
    // SAFETY: without a buffer only the room for all is told.
    let room = unsafe { libc::proc_listpids(what, of, core::ptr::null_mut(), 0) };
    let room = usize::try_from(room).map_err(|_| io::Error::last_os_error())?;
    // More may come before they are listed.
    let octets = fill(room + 64 * PID, |buffer, len| {
        // SAFETY: the buffer is as long as is told, and nothing else uses it meanwhile.
        unsafe { libc::proc_listpids(what, of, buffer, len) }
    })?;
    let numbers = octets.chunks_exact(PID).filter_map(|octets| octets.try_into().ok());
    Ok(numbers.map(u32::from_le_bytes).filter(|pid| *pid != 0).collect())
}

/// What a call writes into a buffer of `room` octets.
fn fill(
    room: usize,
    call: impl FnOnce(*mut libc::c_void, libc::c_int) -> libc::c_int,
) -> io::Result<Vec<u8>> {
    let mut octets = vec![0; room];
    let len = libc::c_int::try_from(room).unwrap_or(libc::c_int::MAX);
    let written = call(octets.as_mut_ptr().cast(), len);
    if written <= 0 {
        return Err(io::Error::last_os_error());
    }
    octets.truncate(usize::try_from(written).unwrap_or(0));
    Ok(octets)
}

fn info(pid: u32, what: libc::c_int, room: usize) -> io::Result<Vec<u8>> {
    fill(room, |buffer, len| {
        // SAFETY: the buffer is as long as is told, and nothing else uses it meanwhile.
        unsafe { libc::proc_pidinfo(pid.cast_signed(), what, 0, buffer, len) }
    })
}

/// A process; `None` when there is none of this number.
pub(super) fn process(pid: u32) -> Option<Process> {
    sockets::process(&info(pid, libc::PROC_PIDTBSDINFO, PROCESS).ok()?)
}

/// The sockets of TCP and UDP that a process holds, the one with the highest descriptor first. None of one that has ended.
pub(super) fn sockets(pid: u32) -> impl Iterator<Item = Socket> {
    // SAFETY: without a buffer only the room for all is told.
    let room =
        unsafe { libc::proc_pidinfo(pid.cast_signed(), libc::PROC_PIDLISTFDS, 0, core::ptr::null_mut(), 0) };
    let room = usize::try_from(room).unwrap_or(0);
    let descriptors = match room {
        0 => Vec::new(),
        _ => info(pid, libc::PROC_PIDLISTFDS, room + 64 * FD).unwrap_or_default(),
    };
    let mut numbers: Vec<i32> = sockets::socket_numbers(&descriptors).collect();
    numbers.sort_unstable();
    numbers.into_iter().rev().filter_map(move |fd| {
        let octets = fill(SOCKET, |buffer, len| {
            // SAFETY: the buffer is as long as is told, and nothing else uses it meanwhile.
            unsafe { libc::proc_pidfdinfo(pid.cast_signed(), fd, SOCKET_INFO, buffer, len) }
        });
        sockets::socket(&octets.ok()?)
    })
}

/// The program that a process runs.
fn program(pid: u32) -> Option<PathBuf> {
    let octets = fill(libc::PROC_PIDPATHINFO_MAXSIZE as usize, |buffer, len| {
        // SAFETY: the buffer is as long as is told, and nothing else uses it meanwhile.
        unsafe { libc::proc_pidpath(pid.cast_signed(), buffer, len.cast_unsigned()) }
    });
    Some(PathBuf::from(OsString::from(OsStr::from_bytes(&octets.ok()?))))
}

/// There is nothing that would tell the files of a run from those of another but the device.
pub(in crate::host) fn files_suffix() -> String {
    String::new()
}

/// When a process was started: microseconds since 1970.
pub(in crate::host) fn start_time(pid: u32) -> Option<u64> {
    process(pid).map(|process| process.started)
}

/// Whether a process is on its way out.
pub(in crate::host) fn is_ending(pid: u32) -> bool {
    process(pid).is_none_or(|process| process.ended)
}

/// Whether a process runs a program of the name ztun, or this very program.
pub(in crate::host) fn is_ztun(pid: u32) -> bool {
    let Some(found) = program(pid) else { return false };
    let named = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ztun"));
    named(&found) || program(std::process::id()).is_some_and(|own| own == found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbound::rule::Proto;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    /// The offsets are right: libproc tells of this process's sockets what the sockets themselves tell.
    #[test]
    fn libproc_tells_of_real_sockets() {
        let own = std::process::id();
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(at).unwrap();
            let to = listener.local_addr().unwrap();
            let stream = TcpStream::connect(to).unwrap();
            let from = stream.local_addr().unwrap();
            assert_eq!(sockets(own).filter(|socket| socket.serves(to)).count(), 1);
            assert_eq!(sockets(own).filter(|socket| socket.sends(Proto::Tcp, from, to)).count(), 1);
            let datagrams = UdpSocket::bind(at).unwrap();
            let from = datagrams.local_addr().unwrap();
            assert_eq!(sockets(own).filter(|socket| socket.sends(Proto::Udp, from, to)).count(), 1);
        }
    }

    #[test]
    fn this_process_is_among_all_and_among_its_parents_children() {
        let own = std::process::id();
        let parent = process(own).unwrap().parent;
        assert!(all().unwrap().contains(&own) && children(parent).unwrap().contains(&own));
        assert!(!is_ending(own) && is_ending(u32::MAX >> 1));
        assert!(is_ztun(own) && !is_ztun(1));
        assert_eq!(start_time(own), start_time(own));
    }
}
