//! Talks to the kernel over netlink: one question, its acknowledgement or its whole answer, in bounded time; and what the kernel tells unasked.
//!
//! A request carries a sequence number, and what answers another one (late, after a time-out) is passed over. A dump that the kernel marks as
//! interrupted by a change is asked for again, a few times. A message that the codec cannot read is passed over too: a newer kernel may say
//! more than it knows.
//!
//! [`Notices`] are what the kernel tells unasked. There nothing is passed over: a notice that cannot be read is still one, and so is the news
//! that some were lost.

#![allow(clippy::wildcard_enum_match_arm, reason = "the attributes are the kernel's, and it adds to them")]

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// Time for one receive. The kernel answers within the call that sends; only a lost answer takes this long.
const RECEIVE_SECONDS: u8 = 2;

/// Receive buffer: more than the kernel puts into one message of a dump.
const BUFFER: usize = 64 * 1024;

/// Rounds for a dump that the kernel's tables change under.
const DUMP_ROUNDS: usize = 10;

/// Octets of `struct nlmsghdr`.
const HEADER: usize = 16;

/// A netlink socket and its buffers.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    request: Vec<u8>,
    answer: Box<[u8]>,
}

impl core::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Netlink").field("socket", &self.socket.as_raw_fd()).finish_non_exhaustive()
    }
}

/// One message of an answer.
struct Answer<M> {
    /// What it says; `None` when it ends the answer.
    message: Option<M>,
    /// Whether the kernel's table changed while it was being read.
    interrupted: bool,
}

impl Netlink {
    /// A socket for routes, rules, links and addresses, in the calling thread's network namespace.
    pub(crate) fn route() -> io::Result<Netlink> {
        Netlink::open(netlink_sys::protocols::NETLINK_ROUTE)
    }

    /// A socket that tells about sockets.
    pub(crate) fn sock_diag() -> io::Result<Netlink> {
        Netlink::open(netlink_sys::protocols::NETLINK_SOCK_DIAG)
    }

    fn open(protocol: isize) -> io::Result<Netlink> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let limit = libc::timeval { tv_sec: RECEIVE_SECONDS.into(), tv_usec: 0 };
        for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
            let len = libc::socklen_t::try_from(size_of_val(&limit)).expect("a timeval is a few octets");
            // SAFETY: the descriptor is open, and the option's value is one `timeval` that outlives the call.
            let result = unsafe {
                libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const limit).cast(), len)
            };
            if result < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Netlink { socket, sequence: 0, request: Vec::new(), answer: vec![0; BUFFER].into() })
    }

    /// Makes a request (`flags` besides REQUEST and ACK) and waits for the kernel's word.
    pub(crate) fn acknowledged<M>(&mut self, message: M, flags: u16) -> io::Result<()>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.send(message, NLM_F_ACK | flags)?;
        self.collect::<M>(|_| {}).map(drop)
    }

    /// Asks for one thing; `None` when the kernel answers with nothing.
    pub(crate) fn one<M>(&mut self, message: M) -> io::Result<Option<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.send(message, 0)?;
        self.receive_first()
    }

    /// Asks for all things of a kind.
    pub(crate) fn dump<M>(&mut self, message: M) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Clone,
    {
        for _ in 0..DUMP_ROUNDS {
            self.send(message.clone(), NLM_F_DUMP)?;
            let mut all = Vec::new();
            if self.collect(|message| all.push(message))? {
                return Ok(all);
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "the kernel's table keeps changing while it is read"))
    }

    fn send<M: NetlinkSerializable>(&mut self, message: M, flags: u16) -> io::Result<()> {
        let mut packet = NetlinkMessage::new(Default::default(), NetlinkPayload::InnerMessage(message));
        self.sequence = self.sequence.wrapping_add(1);
        packet.header.sequence_number = self.sequence;
        packet.header.flags = NLM_F_REQUEST | flags;
        packet.finalize();
        // Zeroed each time: the codec leaves padding and the end of strings as they are.
        self.request.clear();
        self.request.resize(packet.buffer_len(), 0);
        packet.serialize(&mut self.request);
        loop {
            match self.socket.send(&self.request, 0) {
                Ok(sent) if sent == self.request.len() => return Ok(()),
                Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes messages to the end of the answer; false when a dump was interrupted by a change.
    fn collect<M: NetlinkDeserializable>(&mut self, mut take: impl FnMut(M)) -> io::Result<bool> {
        let mut whole = true;
        loop {
            let len = self.receive()?;
            let sequence = self.sequence;
            for answer in answers(self.answer.get(..len).unwrap_or_default(), sequence) {
                let answer = answer?;
                whole &= !answer.interrupted;
                match answer.message {
                    Some(message) => take(message),
                    None => return Ok(whole),
                }
            }
        }
    }

    fn receive_first<M: NetlinkDeserializable>(&mut self) -> io::Result<Option<M>> {
        loop {
            let len = self.receive()?;
            let sequence = self.sequence;
            if let Some(answer) = answers(self.answer.get(..len).unwrap_or_default(), sequence).next() {
                return Ok(answer?.message);
            }
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        receive(&self.socket, &mut self.answer, 0).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                io::Error::new(io::ErrorKind::TimedOut, "the kernel does not answer over netlink")
            }
            _ => error,
        })
    }
}

/// The messages in one datagram that answer the request `sequence`.
fn answers<M: NetlinkDeserializable>(
    octets: &[u8],
    sequence: u32,
) -> impl Iterator<Item = io::Result<Answer<M>>> {
    messages::<M>(octets).filter_map(move |message| {
        let message = match message {
            Ok(message) => message,
            Err(error) => {
                log::debug!("netlink message passed over: {error}");
                return None;
            }
        };
        if message.header.sequence_number != sequence {
            return None;
        }
        let interrupted = message.header.flags & NLM_F_DUMP_INTR != 0;
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => Some(Ok(Answer { message: Some(inner), interrupted })),
            NetlinkPayload::Error(error) if error.code.is_some() => Some(Err(error.to_io())),
            NetlinkPayload::Done(done) if done.code < 0 => {
                Some(Err(io::Error::from_raw_os_error(done.code.saturating_neg())))
            }
            NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => {
                Some(Ok(Answer { message: None, interrupted }))
            }
            NetlinkPayload::Overrun(_) => {
                Some(Err(io::Error::new(io::ErrorKind::OutOfMemory, "netlink overrun")))
            }
            _ => None,
        }
    })
}

/// The messages in one datagram; an error for one that the codec cannot read.
fn messages<M: NetlinkDeserializable>(
    mut octets: &[u8],
) -> impl Iterator<Item = Result<NetlinkMessage<M>, DecodeError>> {
    core::iter::from_fn(move || {
        let (header, _) = octets.split_at_checked(HEADER)?;
        let len = usize::try_from(u32::from_ne_bytes(header[..4].try_into().ok()?)).ok()?;
        if len < HEADER {
            return None;
        }
        let (message, _) = octets.split_at_checked(len)?;
        octets = octets.get(len.checked_next_multiple_of(4)?..).unwrap_or_default();
        Some(NetlinkMessage::<M>::deserialize(message))
    })
}

/// One piece of news.
#[derive(Debug)]
pub(crate) enum Notice<M> {
    /// What it says.
    Message(M),
    /// It cannot be read, or some were lost because they came faster than they were taken (ENOBUFS): anything may have changed.
    Unknown,
}

/// What the kernel tells unasked: a socket that belongs to multicast groups of routing netlink. Never blocks.
pub(crate) struct Notices {
    socket: Socket,
    buffer: Box<[u8]>,
}

impl core::fmt::Debug for Notices {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Notices").field("socket", &self.socket.as_raw_fd()).finish_non_exhaustive()
    }
}

impl AsRawFd for Notices {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Notices {
    /// Joins `groups` (RTNLGRP_*) in the calling thread's network namespace.
    pub(crate) fn join(groups: &[u32]) -> io::Result<Notices> {
        let mut socket = Socket::new(netlink_sys::protocols::NETLINK_ROUTE)?;
        socket.bind_auto()?;
        for &group in groups {
            socket.add_membership(group)?;
        }
        Ok(Notices { socket, buffer: vec![0; BUFFER].into() })
    }

    /// Hands over everything that has come.
    pub(crate) fn drain<M: NetlinkDeserializable>(
        &mut self,
        mut take: impl FnMut(Notice<M>),
    ) -> io::Result<()> {
        loop {
            let len = match receive(&self.socket, &mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    take(Notice::Unknown);
                    continue;
                }
                Err(error) => return Err(error),
            };
            for message in messages::<M>(self.buffer.get(..len).unwrap_or_default()) {
                match message.map(|message| message.payload) {
                    Ok(NetlinkPayload::InnerMessage(inner)) => take(Notice::Message(inner)),
                    Ok(NetlinkPayload::Noop | NetlinkPayload::Done(_)) => {}
                    Ok(_) | Err(_) => take(Notice::Unknown),
                }
            }
        }
    }
}

/// One datagram of the kernel's.
fn receive(socket: &Socket, buffer: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    loop {
        // SAFETY: the descriptor is open and the buffer is as many octets as are said, which nothing else uses meanwhile.
        let got = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) };
        if let Ok(got) = usize::try_from(got) {
            return Ok(got);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::link::LinkMessage;
    use proptest::prelude::*;

    #[test]
    fn links_are_listed_and_one_that_is_not_there_is_an_error() {
        let mut netlink = Netlink::route().unwrap();
        let links = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).unwrap();
        assert!(!links.is_empty());
        let mut missing = LinkMessage::default();
        missing.header.index = 1 << 30;
        let error = netlink.one(RouteNetlinkMessage::GetLink(missing)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn an_answer_to_an_earlier_request_is_passed_over() {
        let mut netlink = Netlink::route().unwrap();
        netlink.send(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP).unwrap();
        let mut missing = LinkMessage::default();
        missing.header.index = 1 << 30;
        // The dump may still be under way: then the second request waits for it, and what arrives first is the dump's.
        let error = netlink.one(RouteNetlinkMessage::GetLink(missing)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }

    proptest! {
        #[test]
        fn no_octets_make_the_reader_panic(octets in proptest::collection::vec(any::<u8>(), 0..256)) {
            for answer in answers::<RouteNetlinkMessage>(&octets, 0) {
                drop(answer.map(|_| ()));
            }
            assert!(messages::<RouteNetlinkMessage>(&octets).count() <= octets.len() / HEADER);
        }
    }
}
