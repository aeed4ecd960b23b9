//! The routing socket itself, and the dumps that sysctl(3) makes of what it tells of: for those who change routes and those who watch them.

pub(crate) use super::answer::LONGEST;
use super::{Request, RouteMessage, answer, encode};
use std::fs::File;
use std::io::{self, Write};
use std::mem::{offset_of, size_of};
use std::os::fd::{FromRawFd, OwnedFd};

/// Room for what is told until it is read, octets. The kernel's own measure, 8192, holds some thirty messages, fewer than a run has routes, and what
/// comes when there is no room is lost without a word.
const ROOM: libc::c_int = 256 << 10;

// What the messages are built and read with, against the headers.
const _: () = {
    use libc::{if_msghdr, ifa_msghdr, rt_metrics, rt_msghdr, sockaddr_dl, sockaddr_in, sockaddr_in6};
    assert!(super::VERSION as libc::c_int == libc::RTM_VERSION);
    assert!(super::RTM_NEWADDR as libc::c_int == libc::RTM_NEWADDR);
    assert!(super::RTM_DELADDR as libc::c_int == libc::RTM_DELADDR);
    assert!(super::RTM_IFINFO as libc::c_int == libc::RTM_IFINFO);
    assert!(super::MOST_ADDRESSES as libc::c_int == libc::RTAX_MAX);
    assert!(super::RTV_HOPCOUNT as libc::c_int == libc::RTV_HOPCOUNT);

    assert!(super::RTF_UP as libc::c_int == libc::RTF_UP);
    assert!(super::RTF_GATEWAY as libc::c_int == libc::RTF_GATEWAY);
    assert!(super::RTF_HOST as libc::c_int == libc::RTF_HOST);
    assert!(super::RTF_REJECT as libc::c_int == libc::RTF_REJECT);
    assert!(super::RTF_LLINFO as libc::c_int == libc::RTF_LLINFO);
    assert!(super::RTF_STATIC as libc::c_int == libc::RTF_STATIC);
    assert!(super::RTF_BLACKHOLE as libc::c_int == libc::RTF_BLACKHOLE);
    assert!(super::RTF_PROTO1 as libc::c_int == libc::RTF_PROTO1);
    assert!(super::RTF_WASCLONED as libc::c_int == libc::RTF_WASCLONED);
    assert!(super::RTF_LOCAL as libc::c_int == libc::RTF_LOCAL);
    assert!(super::RTF_IFSCOPE as libc::c_int == libc::RTF_IFSCOPE);
    assert!(super::IFF_UP as libc::c_int == libc::IFF_UP);
    assert!(super::IFF_RUNNING as libc::c_int == libc::IFF_RUNNING);

    assert!(super::AF_INET as libc::c_int == libc::AF_INET);
    assert!(super::AF_INET6 as libc::c_int == libc::AF_INET6);
    assert!(super::AF_LINK as libc::c_int == libc::AF_LINK);
    assert!(super::SOCKADDR_IN == size_of::<sockaddr_in>() && offset_of!(sockaddr_in, sin_addr) == 4);
    assert!(super::SOCKADDR_IN6 == size_of::<sockaddr_in6>() && offset_of!(sockaddr_in6, sin6_addr) == 8);
    assert!(super::SOCKADDR_DL == size_of::<sockaddr_dl>() && offset_of!(sockaddr_dl, sdl_index) == 2);
    assert!(offset_of!(sockaddr_dl, sdl_nlen) == 5 && offset_of!(sockaddr_dl, sdl_data) == 8);

    assert!(super::RT_MSGHDR == size_of::<rt_msghdr>());
    assert!(offset_of!(rt_msghdr, rtm_version) == 2 && offset_of!(rt_msghdr, rtm_type) == 3);
    assert!(offset_of!(rt_msghdr, rtm_index) == 4 && offset_of!(rt_msghdr, rtm_flags) == 8);
    assert!(offset_of!(rt_msghdr, rtm_addrs) == 12 && offset_of!(rt_msghdr, rtm_pid) == 16);
    assert!(offset_of!(rt_msghdr, rtm_seq) == 20 && offset_of!(rt_msghdr, rtm_errno) == 24);
    assert!(super::INITS == offset_of!(rt_msghdr, rtm_inits));
    assert!(super::HOPCOUNT == offset_of!(rt_msghdr, rtm_rmx) + offset_of!(rt_metrics, rmx_hopcount));
    assert!(super::IF_MSGHDR == size_of::<if_msghdr>() && offset_of!(if_msghdr, ifm_addrs) == 4);
    assert!(offset_of!(if_msghdr, ifm_flags) == 8 && offset_of!(if_msghdr, ifm_index) == 12);
    assert!(super::IFA_MSGHDR == size_of::<ifa_msghdr>() && offset_of!(ifa_msghdr, ifam_addrs) == 4);
    assert!(offset_of!(ifa_msghdr, ifam_index) == 12);
};

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
    if !done {
        return Err(io::Error::last_os_error());
    }
    let room = ROOM;
    // Where there is to be no more room, what there is has to do.
    // SAFETY: the option is one `int`, which lives through the call.
    let _refused = unsafe {
        libc::setsockopt(
            raw,
            libc::SOL_SOCKET,
            libc::SO_RCVBUF,
            (&raw const room).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Ok(fd.into())
}

/// Makes a request that changes the table. The kernel has done it, or refused it, when this returns.
pub(crate) fn change(socket: &mut File, request: Request<'_>) -> io::Result<()> {
    socket.write_all(&encode(request, 0))
}

/// Asks a question, with a number that no earlier one had ([`answer::ask`]).
pub(crate) fn ask(socket: &mut File, question: Request<'_>, seq: i32) -> io::Result<RouteMessage> {
    answer::ask(socket, std::process::id().cast_signed(), question, seq)
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
