//! What the errors of the system mean here: those of Windows Sockets.

use crate::engine::SocketError;
use std::io;
use windows_sys::Win32::Networking::WinSock::{
    WSAEACCES, WSAEADDRNOTAVAIL, WSAEAFNOSUPPORT, WSAECONNABORTED, WSAECONNREFUSED, WSAECONNRESET,
    WSAEHOSTDOWN, WSAEHOSTUNREACH, WSAEINVAL, WSAEMFILE, WSAEMSGSIZE, WSAENETDOWN, WSAENETRESET,
    WSAENETUNREACH, WSAENOBUFS, WSAESHUTDOWN, WSAETIMEDOUT, WSAEWOULDBLOCK,
};

/// What says that there is none of a flow's descriptors left.
pub(super) fn exhausted() -> io::Error {
    io::Error::from_raw_os_error(WSAEMFILE)
}

/// What says that a socket may not be used.
pub(super) fn prohibited() -> io::Error {
    io::Error::from_raw_os_error(WSAEACCES)
}

/// Whether a connection is merely under way.
pub(super) fn is_in_progress(error: &io::Error) -> bool {
    error.raw_os_error() == Some(WSAEWOULDBLOCK)
}

/// Whether a message is refused for the size of its datagrams.
pub(super) fn is_of_the_size(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(WSAEMSGSIZE | WSAEINVAL))
}

/// Whether an error is that of any datagram to that receiver. An ICMP error for an earlier datagram is a reset here.
pub(super) fn is_of_the_way(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            WSAECONNREFUSED
                | WSAECONNRESET
                | WSAENETRESET
                | WSAENETUNREACH
                | WSAEHOSTUNREACH
                | WSAENETDOWN
                | WSAEHOSTDOWN
                | WSAEADDRNOTAVAIL
                | WSAEACCES
                | WSAENOBUFS
        )
    )
}

/// The engine's name for an error of the operating system.
pub(super) fn classify(error: &io::Error) -> SocketError {
    match error.raw_os_error() {
        Some(WSAECONNREFUSED) => SocketError::Refused,
        Some(WSAECONNRESET | WSAENETRESET | WSAECONNABORTED | WSAESHUTDOWN) => SocketError::Reset,
        Some(WSAENETUNREACH | WSAENETDOWN | WSAEADDRNOTAVAIL | WSAEAFNOSUPPORT) => SocketError::Network,
        Some(WSAEHOSTUNREACH | WSAEHOSTDOWN) => SocketError::Host,
        Some(WSAETIMEDOUT) => SocketError::TimedOut,
        Some(WSAEMFILE | WSAENOBUFS) => SocketError::Exhausted,
        Some(WSAEACCES) => SocketError::Prohibited,
        _ => SocketError::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_are_told_apart() {
        let of = |code| classify(&io::Error::from_raw_os_error(code));
        assert_eq!(of(WSAECONNREFUSED), SocketError::Refused);
        assert_eq!(of(WSAEMFILE), SocketError::Exhausted);
        assert_eq!(of(WSAEHOSTUNREACH), SocketError::Host);
        assert_eq!(classify(&io::Error::other("else")), SocketError::Other);
    }
}
