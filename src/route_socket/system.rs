//! The routing socket itself, and the dumps that sysctl(3) makes of what it tells of: for those who change routes and those who watch them.

use super::{Kind, Message, Request, RouteMessage, encode, messages};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};

/// More than any message of the routing socket.
pub(crate) const LONGEST: usize = 2_048;

/// All interfaces with their addresses, and all routes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Table {
    Interfaces,
    Routes,
}

/// A routing socket that does not block and that no child gets. What is told from here on can be read from it.
pub(crate) fn open() -> io::Result<File> {
    // SAFETY: the call takes numbers.
    let raw = unsafe { libc::socket(libc::PF_ROUTE, libc::SOCK_RAW, libc::AF_UNSPEC) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: the calls take integers and touch no memory of ours.
    let done = unsafe {
        libc::fcntl(raw, libc::F_SETFL, libc::O_NONBLOCK) >= 0
            && libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC) >= 0
    };
    if done { Ok(fd.into()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a request that changes the table. The kernel has done it, or refused it, when this returns.
pub(crate) fn change(socket: &mut File, request: Request<'_>) -> io::Result<()> {
    socket.write_all(&encode(request, 0))
}

/// Asks a question, with a number that no earlier one had; `None`: the kernel has no answer.
pub(crate) fn ask(socket: &mut File, question: Request<'_>, seq: i32) -> io::Result<Option<RouteMessage>> {
    socket.write_all(&encode(question, seq))?;
    let own = std::process::id().cast_signed();
    let mut buffer = [0; LONGEST];
    // The kernel has answered before the write returns; in between stands what others were told.
    loop {
        let len = match socket.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        let answer = messages(buffer.get(..len).unwrap_or_default()).find_map(|message| match message {
            Message::Route(route) if route.kind == Kind::Got && route.pid == own && route.seq == seq => {
                Some(route)
            }
            Message::Route(_) | Message::Interface(_) | Message::Address { .. } | Message::Other => None,
        });
        if answer.is_some() {
            return Ok(answer);
        }
    }
}

/// A table, as messages one behind the other (sysctl(3), PF_ROUTE).
pub(crate) fn dump(table: Table) -> io::Result<Vec<u8>> {
    let what = match table {
        Table::Interfaces => libc::NET_RT_IFLIST,
        Table::Routes => libc::NET_RT_DUMP,
    };
    let mut name = [libc::CTL_NET, libc::PF_ROUTE, 0, 0, what, 0];
    let count = name.len() as libc::c_uint;
    loop {
        let mut len = 0;
        // SAFETY: the name is as long as is told; without a buffer only the length is written.
        let asked = unsafe {
            libc::sysctl(
                name.as_mut_ptr(),
                count,
                core::ptr::null_mut(),
                &raw mut len,
                core::ptr::null_mut(),
                0,
            )
        };
        if asked < 0 {
            return Err(io::Error::last_os_error());
        }
        // The table may grow before it is read.
        let mut buffer = vec![0; len + len / 4 + LONGEST];
        let mut len = buffer.len();
        // SAFETY: the name and the buffer are as long as is told, and nothing else uses the buffer meanwhile.
        let read = unsafe {
            libc::sysctl(
                name.as_mut_ptr(),
                count,
                buffer.as_mut_ptr().cast(),
                &raw mut len,
                core::ptr::null_mut(),
                0,
            )
        };
        if read == 0 {
            buffer.truncate(len);
            return Ok(buffer);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ENOMEM) {
            return Err(error);
        }
    }
}
