//! Makes utun interfaces, by the socket of a kernel control: on macOS, for root.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The kernel control that makes interfaces.
const CONTROL: &[u8] = b"com.apple.net.utun_control";

// The numbers that hold for both systems are those of this one's headers.
const _: () = {
    assert!(super::SYSPROTO_CONTROL == libc::SYSPROTO_CONTROL);
    assert!(super::UTUN_OPT_IFNAME == libc::UTUN_OPT_IFNAME);
};

/// A socket whose interface, named utun and a number, was just made.
pub(super) fn create(name: &str) -> io::Result<OwnedFd> {
    let unit = unit(name).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: the call takes numbers.
    let raw = unsafe { libc::socket(libc::PF_SYSTEM, libc::SOCK_DGRAM, libc::SYSPROTO_CONTROL) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    connect(&fd, unit)?;
    Ok(fd)
}

/// `sc_unit` for an interface of this name: its number and one. The kernel has no other names.
fn unit(name: &str) -> Option<u32> {
    let number = name.strip_prefix("utun")?.parse::<u32>().ok()?;
    // The number as it is written, so that the interface has the name that was asked for.
    (format!("utun{number}") == name).then(|| number.checked_add(1)).flatten()
}

/// Connects the socket to the control: that makes the interface.
fn connect(fd: &OwnedFd, unit: u32) -> io::Result<()> {
    // SAFETY: the structure is numbers and octets, and zero is a value of each.
    let mut info: libc::ctl_info = unsafe { std::mem::zeroed() };
    for (place, octet) in info.ctl_name.iter_mut().zip(CONTROL) {
        *place = octet.cast_signed();
    }
    // SAFETY: the descriptor is open, and CTLIOCGINFO reads and writes one `ctl_info`.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::CTLIOCGINFO, &raw mut info) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let address = libc::sockaddr_ctl {
        sc_len: size_of::<libc::sockaddr_ctl>() as libc::c_uchar,
        sc_family: libc::AF_SYSTEM as libc::c_uchar,
        ss_sysaddr: libc::AF_SYS_CONTROL as u16,
        sc_id: info.ctl_id,
        sc_unit: unit,
        sc_reserved: [0; 5],
    };
    let len = size_of::<libc::sockaddr_ctl>() as libc::socklen_t;
    // SAFETY: the address outlives the call and is as long as is told.
    if unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
