//! Options of sockets on Windows.

use super::unicast_if;
pub(super) use super::without::{MARKS, STREAM, is_stuck, keep_ahead, mark, socket, speak_first, wake_at};
use socket2::Socket;
use std::io;
use std::num::NonZeroU32;
use std::os::windows::io::AsRawSocket;
use windows_sys::Win32::Networking::WinSock::{
    IP_UNICAST_IF, IPPROTO_IP, IPPROTO_IPV6, IPV6_UNICAST_IF, SIO_UDP_CONNRESET, SOCKET, SOCKET_ERROR,
    WSAIoctl, setsockopt,
};

/// Has a socket leave by this interface only, or by the one that the routes say (IP_UNICAST_IF, IPV6_UNICAST_IF).
pub(super) fn bind_to(socket: &Socket, interface: Option<NonZeroU32>, v6: bool) -> io::Result<()> {
    let (level, name) = match v6 {
        true => (IPPROTO_IPV6, IPV6_UNICAST_IF),
        false => (IPPROTO_IP, IP_UNICAST_IF),
    };
    let value = unicast_if::value(interface, v6);
    // SAFETY: the socket is open, and the option's value is four octets that outlive the call.
    let result = unsafe { setsockopt(number(socket), level, name, value.as_ptr(), value.len() as i32) };
    if result == SOCKET_ERROR { Err(last_error()) } else { Ok(()) }
}

/// Has a socket with many receivers not fail for all of them because one has refused a datagram (SIO_UDP_CONNRESET).
pub(super) fn keep_errors_apart(socket: &Socket) -> io::Result<()> {
    let off: u32 = 0;
    let mut written = 0;
    // SAFETY: the socket is open; the value goes in as four octets and nothing comes out; there is no overlapped structure, so the call is over when it returns.
    let result = unsafe {
        WSAIoctl(
            number(socket),
            SIO_UDP_CONNRESET,
            (&raw const off).cast(),
            size_of::<u32>() as u32,
            std::ptr::null_mut(),
            0,
            &raw mut written,
            std::ptr::null_mut(),
            None,
        )
    };
    if result == SOCKET_ERROR { Err(last_error()) } else { Ok(()) }
}

fn number(socket: &Socket) -> SOCKET {
    // The same number under two names.
    socket.as_raw_socket() as SOCKET
}

/// What WSAGetLastError says, which is the thread's last error.
fn last_error() -> io::Error {
    io::Error::last_os_error()
}

/// A port whose last connections are in TIME-WAIT is free anyway; SO_REUSEADDR would let others take it here.
pub(super) fn share_time_wait(_socket: &Socket) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Protocol, Type};

    /// Wine 8.0 does not know the options.
    #[test]
    fn on_windows_sockets_of_both_families_can_be_bound_to_an_interface_and_freed_again() {
        // The loopback interface has number 1 on every Windows.
        for (domain, v6) in [(Domain::IPV4, false), (Domain::IPV6, true)] {
            let socket = socket(domain, Type::DGRAM, Protocol::UDP).unwrap();
            bind_to(&socket, NonZeroU32::new(1), v6).unwrap();
            bind_to(&socket, None, v6).unwrap();
        }
    }

    #[test]
    fn a_receiver_that_refuses_is_no_error_of_the_socket() {
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let gone = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let there = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = Socket::from(sender);
        keep_errors_apart(&sender).unwrap();
        let sender = std::net::UdpSocket::from(sender);
        sender.send_to(b"to nobody", gone).unwrap();
        there.send_to(b"hello", sender.local_addr().unwrap()).unwrap();
        assert_eq!(sender.recv_from(&mut [0; 16]).unwrap().0, 5);
    }
}
