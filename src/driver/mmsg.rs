//! Many datagrams in one system call: `sendmmsg`, `recvmmsg`, and trains of them as one message (UDP_SEGMENT, UDP_GRO).
//!
//! Nothing is allocated: what the kernel is told lies on the stack for the length of a call, and only as much of it is written as is told.

use super::outgoing::Message;
use mio::net::UdpSocket;
use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

/// Messages in one call at most.
pub(super) const MOST: usize = 64;
/// Octets of a control message with one number, aligned as the kernel wants it.
const CONTROL: usize = 3;
const _: () = {
    // SAFETY: the macro calculates with numbers only.
    let space = unsafe { libc::CMSG_SPACE(size_of::<libc::c_int>() as u32) } as usize;
    assert!(space <= CONTROL * size_of::<u64>());
};

/// A message that has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    /// Octets.
    pub(super) len: usize,
    /// Who sent it, if that was asked for.
    pub(super) from: Option<SocketAddr>,
    /// A train: octets of each datagram but the last; 0: it is one datagram.
    pub(super) segment_size: u16,
}

/// The address of a message.
union Name {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Name {
    fn new(addr: SocketAddr) -> (Name, usize) {
        match addr {
            SocketAddr::V4(addr) => {
                let name = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: addr.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: addr.ip().to_bits().to_be() },
                    sin_zero: [0; 8],
                };
                (Name { v4: name }, size_of::<libc::sockaddr_in>())
            }
            SocketAddr::V6(addr) => {
                let name = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: addr.port().to_be(),
                    sin6_flowinfo: addr.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: addr.ip().octets() },
                    sin6_scope_id: addr.scope_id(),
                };
                (Name { v6: name }, size_of::<libc::sockaddr_in6>())
            }
        }
    }

    /// What the kernel has written into `name`, all of which was written before, in `len` octets.
    fn addr(name: &Name, len: usize) -> Option<SocketAddr> {
        // SAFETY: every octet of the union was written; each of its members takes any octets, and starts with the family.
        let family = libc::c_int::from(unsafe { name.v4.sin_family });
        if family == libc::AF_INET && len >= size_of::<libc::sockaddr_in>() {
            // SAFETY: as above.
            let v4 = unsafe { name.v4 };
            let ip = Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr));
            Some((ip, u16::from_be(v4.sin_port)).into())
        } else if family == libc::AF_INET6 && len >= size_of::<libc::sockaddr_in6>() {
            // SAFETY: as above.
            let v6 = unsafe { name.v6 };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), 0, v6.sin6_scope_id).into())
        } else {
            None
        }
    }
}

fn empty_header() -> libc::mmsghdr {
    // SAFETY: the header is numbers and pointers, and zero is a value of each.
    unsafe { std::mem::zeroed() }
}

/// Sends the first [`MOST`] of `messages`, each whole or not at all; gives how many went, at least one. An error is that of the first.
pub(super) fn send(socket: &UdpSocket, messages: &[Message<'_>]) -> io::Result<usize> {
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; MOST];
    let mut names = [const { MaybeUninit::<Name>::uninit() }; MOST];
    let mut controls = [const { MaybeUninit::<[u64; CONTROL]>::uninit() }; MOST];
    let count = messages.len().min(MOST);
    for (((message, header), name), control) in
        messages.iter().zip(&mut headers).zip(&mut names).zip(&mut controls)
    {
        let header = &mut header.write(empty_header()).msg_hdr;
        // An `IoSlice` is an `iovec` on Unix, which the standard library guarantees; sending writes none.
        header.msg_iov = message.slices.as_ptr().cast_mut().cast();
        header.msg_iovlen = message.slices.len() as _;
        if let Some(to) = message.to {
            let (to, len) = Name::new(to);
            header.msg_name = std::ptr::from_mut(name.write(to)).cast();
            header.msg_namelen = len as libc::socklen_t;
        }
        if message.segment_size > 0 {
            header.msg_control = control.write([0; CONTROL]).as_mut_ptr().cast();
            // SAFETY: the macros calculate with numbers only; the buffer, which is aligned for a header, has room for one message with a u16.
            unsafe {
                header.msg_controllen = libc::CMSG_SPACE(size_of::<u16>() as u32) as _;
                let first = libc::CMSG_FIRSTHDR(&raw const *header);
                (*first).cmsg_level = libc::SOL_UDP;
                (*first).cmsg_type = libc::UDP_SEGMENT;
                (*first).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as _;
                libc::CMSG_DATA(first).cast::<u16>().write_unaligned(message.segment_size);
            }
        }
    }
    // SAFETY: `count` headers were written; what they point to are slices of the caller's and locals of this function, all of which outlive
    // the call.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr().cast(),
            count as libc::c_uint,
            libc::MSG_NOSIGNAL as _,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Reads messages into `buffers`, one into each, until there are no more; what has come is added to `arrivals`. `named`: who sent each is asked for.
/// `trains`: the socket [takes](take_trains) such.
pub(super) fn receive<'b>(
    socket: &UdpSocket,
    buffers: impl Iterator<Item = &'b mut [u8]>,
    named: bool,
    trains: bool,
    arrivals: &mut Vec<Arrival>,
) -> io::Result<()> {
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; MOST];
    let mut slices = [const { MaybeUninit::<libc::iovec>::uninit() }; MOST];
    let mut names = [const { MaybeUninit::<libc::sockaddr_in6>::uninit() }; MOST];
    let mut controls = [const { MaybeUninit::<[u64; CONTROL]>::uninit() }; MOST];
    let mut count = 0;
    for ((((buffer, header), slice), name), control) in
        buffers.zip(&mut headers).zip(&mut slices).zip(&mut names).zip(&mut controls)
    {
        let header = &mut header.write(empty_header()).msg_hdr;
        let iovec = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        header.msg_iov = slice.write(iovec);
        header.msg_iovlen = 1;
        if named {
            // SAFETY: the address is numbers, and zero is a value of each.
            header.msg_name = std::ptr::from_mut(name.write(unsafe { std::mem::zeroed() })).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
        }
        if trains {
            header.msg_control = control.write([0; CONTROL]).as_mut_ptr().cast();
            header.msg_controllen = size_of::<[u64; CONTROL]>() as _;
        }
        count += 1;
    }
    // SAFETY: `count` headers were written; what they point to are the caller's buffers, each of which is borrowed for good by its item, and locals of
    // this function, all of which outlive the call and are as long as is told.
    let received = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr().cast(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT as _,
            std::ptr::null_mut(),
        )
    };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    for (header, name) in headers.iter().zip(&names).take(received.min(count)) {
        // SAFETY: the first `count` headers were written, by this function or the kernel.
        let header = unsafe { header.assume_init_ref() };
        let from = named.then(|| {
            // SAFETY: with `named` the first `count` names were written; the union has no octet that this member lacks.
            let name = Name { v6: unsafe { name.assume_init() } };
            Name::addr(&name, header.msg_hdr.msg_namelen as usize)
        });
        let segment_size = if trains { segment_size(&header.msg_hdr) } else { 0 };
        arrivals.push(Arrival { len: header.msg_len as usize, from: from.flatten(), segment_size });
    }
    Ok(())
}

/// What the kernel says of a train; 0: it is one datagram.
fn segment_size(header: &libc::msghdr) -> u16 {
    // SAFETY: the header and its control buffer are as the kernel left them; the macro stays within `msg_controllen`.
    let control = unsafe { libc::CMSG_FIRSTHDR(&raw const *header) };
    if control.is_null() {
        return 0;
    }
    // SAFETY: the macro gives a header that lies within the buffer whole.
    let (level, kind, len) =
        unsafe { ((*control).cmsg_level, (*control).cmsg_type, (*control).cmsg_len as usize) };
    // SAFETY: the macro calculates with numbers only.
    let whole = unsafe { libc::CMSG_LEN(size_of::<libc::c_int>() as u32) } as usize;
    if level != libc::SOL_UDP || kind != libc::UDP_GRO || len < whole {
        return 0;
    }
    // SAFETY: the message holds an int, as its length says.
    let size = unsafe { libc::CMSG_DATA(control).cast::<libc::c_int>().read_unaligned() };
    u16::try_from(size).unwrap_or(0)
}

/// Whether the kernel cuts messages into datagrams. One that does not know UDP_SEGMENT (before Linux 4.18) passes over it in a message without a
/// word, and sends all of it as one datagram; so the first socket asks.
pub(super) fn cuts(socket: &UdpSocket) -> bool {
    static CUTS: OnceLock<bool> = OnceLock::new();
    *CUTS.get_or_init(|| {
        let mut size: libc::c_int = 0;
        let mut len = size_of_val(&size) as libc::socklen_t;
        // SAFETY: the descriptor is open; the option's value is one int, and both it and its length outlive the call.
        let result = unsafe {
            let (fd, value) = (socket.as_raw_fd(), (&raw mut size).cast());
            libc::getsockopt(fd, libc::SOL_UDP, libc::UDP_SEGMENT, value, &raw mut len)
        };
        result == 0
    })
}

/// Has the kernel hand over datagrams that came together as trains (UDP_GRO).
pub(super) fn take_trains(socket: &UdpSocket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let len = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the descriptor is open, and the option's value is one int that outlives the call.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_GRO, (&raw const on).cast(), len)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::IoSlice;

    /// Two sockets, the second connected to the first.
    fn pair(v6: bool) -> (UdpSocket, UdpSocket) {
        let any: SocketAddr = if v6 { "[::1]:0" } else { "127.0.0.1:0" }.parse().expect("address");
        let (a, b) = (UdpSocket::bind(any).expect("bind"), UdpSocket::bind(any).expect("bind"));
        b.connect(a.local_addr().expect("address")).expect("connect");
        (a, b)
    }

    fn received(socket: &UdpSocket, named: bool, trains: bool) -> Vec<(Arrival, Vec<u8>)> {
        let mut buffers = vec![vec![0; 65_536]; 8];
        let mut arrivals = Vec::new();
        receive(socket, buffers.iter_mut().map(Vec::as_mut_slice), named, trains, &mut arrivals)
            .expect("receive");
        arrivals
            .into_iter()
            .zip(buffers)
            .map(|(arrival, buffer)| (arrival, buffer[..arrival.len].to_vec()))
            .collect()
    }

    #[test]
    fn messages_arrive_in_order_with_their_senders() {
        for v6 in [false, true] {
            let (a, b) = pair(v6);
            let slices = [IoSlice::new(b"one "), IoSlice::new(b"two"), IoSlice::new(b"")];
            let message = |slices, to| Message { to, slices, segment_size: 0 };
            let messages =
                [message(&slices[..2], None), message(&slices[2..], None), message(&slices[1..2], None)];
            assert_eq!(send(&b, &messages).expect("send"), 3);
            let there = received(&a, true, false);
            let octets: Vec<&[u8]> = there.iter().map(|(_, octets)| &octets[..]).collect();
            assert_eq!(octets, [&b"one two"[..], b"", b"two"]);
            let from = b.local_addr().expect("address");
            assert!(there.iter().all(|(arrival, _)| arrival.from == Some(from) && arrival.segment_size == 0));
            // And back, to an address.
            assert_eq!(send(&a, &[message(&slices[..1], Some(from))]).expect("send"), 1);
            assert!(received(&b, false, false)[0].0.from.is_none());
            let nothing = receive(&a, std::iter::once(&mut [0; 8][..]), false, false, &mut Vec::new());
            assert_eq!(nothing.expect_err("nothing").kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn a_train_arrives_as_one_or_as_its_datagrams() {
        for v6 in [false, true] {
            let (a, b) = pair(v6);
            let slices = [IoSlice::new(b"one"), IoSlice::new(b"two"), IoSlice::new(b"3")];
            let train = [Message { to: None, slices: &slices, segment_size: 3 }];
            assert_eq!(send(&b, &train).expect("send"), 1);
            let apart: Vec<Vec<u8>> =
                received(&a, false, false).into_iter().map(|(_, octets)| octets).collect();
            assert_eq!(apart, [&b"one"[..], b"two", b"3"]);
            take_trains(&a).expect("UDP_GRO");
            assert_eq!(send(&b, &train).expect("send"), 1);
            let whole = received(&a, true, true);
            assert_eq!((whole.len(), whole[0].0.segment_size, &whole[0].1[..]), (1, 3, &b"onetwo3"[..]));
            assert_eq!(whole[0].0.from, b.local_addr().ok());
        }
    }

    #[test]
    fn the_first_message_that_cannot_go_is_the_error() {
        let (_a, b) = pair(false);
        let large = vec![0; 65_508];
        let slices = [IoSlice::new(b"small"), IoSlice::new(&large)];
        let [small, large] = [0, 1].map(|at| Message { to: None, slices: &slices[at..=at], segment_size: 0 });
        assert_eq!(send(&b, &[small, large]).expect("the first goes"), 1);
        let error = send(&b, &[large, small]).expect_err("too large");
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    }
}
