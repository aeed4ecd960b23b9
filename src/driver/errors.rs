//! What the errors of the system mean here: those of Unix.

use crate::engine::SocketError;
use std::io;

/// The error of a machine that is on no network, where it is told apart.
#[cfg(target_os = "linux")]
const NO_NETWORK: Option<i32> = Some(libc::ENONET);
#[cfg(not(target_os = "linux"))]
const NO_NETWORK: Option<i32> = Some(libc::ENETDOWN);

/// What says that there is none of a flow's descriptors left.
pub(super) fn exhausted() -> io::Error {
    io::Error::from_raw_os_error(libc::EMFILE)
}

/// What says that a socket may not be used.
pub(super) fn prohibited() -> io::Error {
    io::Error::from_raw_os_error(libc::EPERM)
}

/// Whether a connection is merely under way.
pub(super) fn is_in_progress(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINPROGRESS)
}

/// Whether a message is refused for the size of its datagrams.
pub(super) fn is_of_the_size(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::EINVAL))
}

/// Whether an error is that of any datagram to that receiver.
pub(super) fn is_of_the_way(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNREFUSED
                | libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ENETDOWN
                | libc::EHOSTDOWN
                | libc::EADDRNOTAVAIL
                | libc::ENODEV
                | libc::ENOPROTOOPT
                | libc::EPERM
                | libc::EACCES
                | libc::ENOBUFS
                | libc::ENOMEM
        )
    ) || error.raw_os_error() == NO_NETWORK
}

/// The engine's name for an error of the operating system.
pub(super) fn classify(error: &io::Error) -> SocketError {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => SocketError::Refused,
        Some(libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED) => SocketError::Reset,
        // ENODEV, and ENXIO on Darwin: there is no such interface as the socket is, or is to be, bound to.
        Some(
            libc::ENETUNREACH
            | libc::ENETDOWN
            | libc::EADDRNOTAVAIL
            | libc::EAFNOSUPPORT
            | libc::ENODEV
            | libc::ENXIO,
        ) => SocketError::Network,
        Some(libc::EHOSTUNREACH | libc::EHOSTDOWN) => SocketError::Host,
        Some(libc::ETIMEDOUT) => SocketError::TimedOut,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN) => {
            SocketError::Exhausted
        }
        Some(libc::EACCES | libc::EPERM) => SocketError::Prohibited,
        _ => SocketError::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_are_told_apart() {
        let of = |code| classify(&io::Error::from_raw_os_error(code));
        assert_eq!(of(libc::ECONNREFUSED), SocketError::Refused);
        assert_eq!(of(libc::EMFILE), SocketError::Exhausted);
        assert_eq!(of(libc::EHOSTUNREACH), SocketError::Host);
        assert_eq!(of(libc::ENXIO), SocketError::Network, "bound to no interface, on Darwin");
        assert_eq!(classify(&io::Error::other("else")), SocketError::Other);
    }
}
