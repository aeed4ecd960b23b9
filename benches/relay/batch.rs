//! Many datagrams with one system call, so that neither load nor target is what a row about tunnels measures.

use std::io;
use std::mem::size_of;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// Datagrams of one call.
pub(crate) const MOST: usize = 64;

/// Octets of a datagram.
const ROOM: usize = 2_048;

/// A datagram and who sent it.
#[derive(Clone)]
pub(crate) struct Slot {
    pub(crate) octets: [u8; ROOM],
    pub(crate) len: usize,
    peer: libc::sockaddr_in,
}

/// Datagrams that are received or sent at once.
pub(crate) struct Batch {
    slots: Vec<Slot>,
}

impl Batch {
    pub(crate) fn new() -> Batch {
        let peer = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: 0 },
            sin_zero: [0; 8],
        };
        Batch { slots: vec![Slot { octets: [0; ROOM], len: 0, peer }; MOST] }
    }

    /// All of the same octets.
    pub(crate) fn of(octets: &[u8]) -> Batch {
        let mut batch = Batch::new();
        for slot in &mut batch.slots {
            slot.octets[..octets.len()].copy_from_slice(octets);
            slot.len = octets.len();
        }
        batch
    }

    /// Waits for one datagram and takes those that are there as well.
    pub(crate) fn recv(&mut self, socket: &UdpSocket) -> io::Result<&mut [Slot]> {
        let mut count = 0;
        self.call(MOST, true, true, |headers| {
            // SAFETY: `headers` and all that they point to live through the call, see `call`.
            let got = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    headers.as_mut_ptr(),
                    headers.len() as libc::c_uint,
                    libc::MSG_WAITFORONE,
                    std::ptr::null_mut(),
                )
            };
            count = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
            Ok(count)
        })?;
        Ok(&mut self.slots[..count])
    }

    /// Sends the first `count`: back to where they came from with `back`, else on a connected socket. What a full queue does not take is lost.
    pub(crate) fn send(&mut self, socket: &UdpSocket, count: usize, back: bool) {
        self.call(count.min(MOST), false, back, |headers| {
            let mut sent = 0;
            while sent < headers.len() {
                let rest = &mut headers[sent..];
                // SAFETY: `rest` and all that it points to live through the call, see `call`.
                let took = unsafe {
                    libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as libc::c_uint, 0)
                };
                // One that fails is passed over.
                sent += usize::try_from(took).unwrap_or(0).max(1);
            }
            Ok(0)
        })
        .ok();
    }

    /// Lends headers of the first `count` slots to `system`; with `fill` the lengths of as many as it says are taken over.
    fn call(
        &mut self,
        count: usize,
        fill: bool,
        peers: bool,
        system: impl FnOnce(&mut [libc::mmsghdr]) -> io::Result<usize>,
    ) -> io::Result<()> {
        let slots = &mut self.slots[..count];
        let mut vectors: Vec<libc::iovec> = Vec::with_capacity(count);
        let mut headers: Vec<libc::mmsghdr> = Vec::with_capacity(count);
        for slot in slots.iter_mut() {
            let len = if fill { ROOM } else { slot.len };
            vectors.push(libc::iovec { iov_base: slot.octets.as_mut_ptr().cast(), iov_len: len });
        }
        for (slot, vector) in slots.iter_mut().zip(&mut vectors) {
            // SAFETY: all-zero octets are a message header without buffers.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            if peers {
                header.msg_hdr.msg_name = (&raw mut slot.peer).cast();
                header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            headers.push(header);
        }
        // The headers point into `slots` and `vectors`, which outlive this call and are not moved.
        let filled = system(&mut headers)?;
        let lens: Vec<usize> = headers[..filled].iter().map(|header| header.msg_len as usize).collect();
        if fill {
            for (slot, len) in slots.iter_mut().zip(lens) {
                slot.len = len;
            }
        }
        Ok(())
    }
}
