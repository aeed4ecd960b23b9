//! Who is at the other end of a local socket, as the kernel says.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The user that this process acts as.
pub fn own_user() -> u32 {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

/// The user who has opened the other end of a connected unix socket.
///
/// # Errors
///
/// The system's, as for a socket that is not connected.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn peer_user(socket: &impl AsFd) -> io::Result<u32> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    // The struct has 12 octets.
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both pointers are to live, writable values of the types that the call expects, and the length is that of the struct.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(credentials.uid) } else { Err(io::Error::last_os_error()) }
}

/// The user who has opened the other end of a connected unix socket.
///
/// # Errors
///
/// The system's, as for a socket that is not connected.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn peer_user(socket: &impl AsFd) -> io::Result<u32> {
    let (mut user, mut group) = (0, 0);
    // SAFETY: both pointers are to live, writable values of the types that the call expects.
    let result = unsafe { libc::getpeereid(socket.as_fd().as_raw_fd(), &raw mut user, &raw mut group) };
    if result == 0 { Ok(user) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_other_end_of_a_pair_is_this_user() {
        let (end, _other) = UnixStream::pair().expect("pair");
        assert_eq!(peer_user(&end).expect("credentials"), own_user());
        let file = std::fs::File::open("/dev/null").expect("file");
        assert!(peer_user(&file).is_err());
    }
}
