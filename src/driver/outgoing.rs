//! Datagrams on their way to the sockets: those of one turn leave together.
//!
//! What a turn's packets hold for sockets is copied into one piece of memory, which is made once, and leaves when the packets of the turn are taken, or
//! when it is full: the datagrams of one socket by one `sendmmsg`, and within it those of equal size to one receiver, the last of which may be
//! shorter, as one message that the kernel cuts (UDP_SEGMENT): it goes through the machine once. The order within a socket is that of
//! the packets.
//!
//! The first datagram of a turn does not wait for others: who sends one at a time is not slowed down by any of this.
//!
//! A kernel, or a way out, that does not cut is told apart by the error of the send, which has sent nothing: from then on the socket does
//! without, or without for that size, and the same datagrams leave one by one.

use super::{errors, mmsg};
use crate::engine::SocketId;
use mio::net::UdpSocket;
use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;

/// Datagrams that wait at most.
pub(super) const MOST: usize = mmsg::MOST;
/// Their octets at most.
const OCTETS: usize = 128 << 10;
/// Datagrams larger than this are not copied.
pub(super) const LARGE: usize = 4 << 10;
/// Datagrams in one message (`UDP_MAX_SEGMENTS` of all kernels).
const MOST_SEGMENTS: usize = 64;
/// Octets in one message: those of the largest datagram over IPv4.
const MOST_OCTETS: usize = 65_507;
/// A datagram of this size fits every path: when even such are not cut, none are.
const FITS: u16 = 1_200;

/// What is handed to the kernel as one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    /// Destination; `None` for a connected socket.
    pub(super) to: Option<SocketAddr>,
    /// The octets.
    pub(super) slices: &'a [IoSlice<'a>],
    /// Octets of each datagram but the last; 0: it is one.
    pub(super) segment_size: u16,
}

/// A UDP socket.
#[derive(Debug)]
pub(super) struct Udp {
    pub(super) socket: UdpSocket,
    /// Whether it is connected: who sends to it is known.
    pub(super) connected: bool,
    /// Whether it takes trains (UDP_GRO).
    pub(super) trains: bool,
    /// The largest datagrams, octets, that the kernel cuts from a message.
    cuts: u16,
}

impl Udp {
    pub(super) fn new(socket: UdpSocket, connected: bool) -> Udp {
        let cuts = if mmsg::cuts(&socket) { u16::MAX } else { 0 };
        Udp { socket, connected, trains: false, cuts }
    }

    /// The kernel has refused to cut a message into datagrams of `size` octets.
    fn refused(&mut self, size: u16, error: &io::Error) {
        let of_size = errors::is_of_the_size(error) && size > FITS;
        self.cuts = if of_size { size - 1 } else { 0 };
        log::debug!("datagrams of {size} octets are not cut from one message: {error}");
    }
}

/// A datagram in two pieces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Datagram<'a> {
    pub(super) to: Option<SocketAddr>,
    pub(super) header: &'a [u8],
    pub(super) payload: &'a [u8],
}

impl Datagram<'_> {
    const NONE: Datagram<'static> = Datagram { to: None, header: &[], payload: &[] };

    fn len(&self) -> usize {
        self.header.len() + self.payload.len()
    }
}

/// How many of the first of `datagrams`, which there are, go as one message, and the size that it is cut to.
fn run(datagrams: &[Datagram<'_>], cuts: u16) -> (usize, u16) {
    let (first, rest) = datagrams.split_first().unwrap_or((&Datagram::NONE, &[]));
    let size = first.len();
    let Some(segment_size) = u16::try_from(size).ok().filter(|size| (1..=cuts).contains(size)) else {
        return (1, 0);
    };
    let most = MOST_SEGMENTS.min(MOST_OCTETS / size);
    let mut count = 1;
    for next in rest {
        let fits = count < most && next.to == first.to && (1..=size).contains(&next.len());
        if !fits {
            break;
        }
        count += 1;
        if next.len() < size {
            break;
        }
    }
    (count, if count > 1 { segment_size } else { 0 })
}

/// Sends `datagrams`, at most [`MOST`], in order. One that cannot be sent is lost, as datagrams are, and no other with it.
pub(super) fn send(udp: &mut Udp, mut datagrams: &[Datagram<'_>]) {
    // An ICMP error for an earlier datagram is reported by the next send: that one is tried once more.
    let mut tried = false;
    while !datagrams.is_empty() {
        let mut slices = [IoSlice::new(&[]); 2 * MOST];
        let filled = fill(&mut slices, datagrams);
        let mut messages = [Message { to: None, slices: &[], segment_size: 0 }; MOST];
        let mut counts = [0; MOST];
        let (mut at, mut slice, mut number) = (0, 0, 0);
        while at < filled {
            let (count, segment_size) = run(&datagrams[at..filled], udp.cuts);
            let pieces = &slices[slice..slice + 2 * count];
            // A header of nothing is no piece of a datagram that stands alone.
            let pieces = if count == 1 && pieces[0].is_empty() { &pieces[1..] } else { pieces };
            messages[number] = Message { to: datagrams[at].to, slices: pieces, segment_size };
            counts[number] = count;
            (at, slice, number) = (at + count, slice + 2 * count, number + 1);
        }
        let error = match mmsg::send(&udp.socket, &messages[..number]) {
            Ok(sent) => {
                let gone: usize = counts.iter().take(sent).sum();
                datagrams = datagrams.get(gone.max(1)..).unwrap_or_default();
                tried = false;
                continue;
            }
            Err(error) => error,
        };
        let kind = error.kind();
        if kind == ErrorKind::WouldBlock {
            return log::debug!("{} datagrams lost: {error}", datagrams.len());
        } else if errors::is_of_the_way(&error) && !tried {
            tried = true;
        } else if kind == ErrorKind::Interrupted {
            continue;
        } else if messages[0].segment_size > 0 && !errors::is_of_the_way(&error) {
            udp.refused(messages[0].segment_size, &error);
        } else {
            log::debug!("{} datagrams lost: {error}", counts[0]);
            datagrams = datagrams.get(counts[0].max(1)..).unwrap_or_default();
            tried = false;
        }
    }
}

/// Writes the pieces of `datagrams` as far as there is room; of how many.
fn fill<'a>(slices: &mut [IoSlice<'a>], datagrams: &[Datagram<'a>]) -> usize {
    let (pairs, _) = slices.as_chunks_mut::<2>();
    let count = pairs.len().min(datagrams.len());
    for (pair, datagram) in pairs.iter_mut().zip(datagrams) {
        *pair = [IoSlice::new(datagram.header), IoSlice::new(datagram.payload)];
    }
    count
}

/// A datagram that waits.
#[derive(Clone, Copy, Debug)]
struct Entry {
    socket: SocketId,
    /// Its place among all that wait.
    number: u32,
    start: usize,
    len: usize,
    to: Option<SocketAddr>,
}

/// Datagrams that wait for the end of the turn's packets.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    octets: Box<[u8]>,
    used: usize,
    entries: Vec<Entry>,
    /// One has left in this turn already.
    begun: bool,
}

impl Outgoing {
    /// With its memory, of which nothing is touched before it is needed.
    pub(super) fn new() -> Outgoing {
        Outgoing { octets: vec![0; OCTETS].into(), entries: Vec::with_capacity(MOST), ..Outgoing::default() }
    }

    /// Whether a datagram is the first of the turn.
    pub(super) fn is_first(&mut self) -> bool {
        !core::mem::replace(&mut self.begun, true)
    }

    /// The turn's packets are taken.
    pub(super) fn end_turn(&mut self) {
        self.begun = false;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Copies a datagram; `false` when there is no room.
    pub(super) fn push(
        &mut self,
        socket: SocketId,
        to: Option<SocketAddr>,
        header: &[u8],
        payload: &[u8],
    ) -> bool {
        let (start, len) = (self.used, header.len() + payload.len());
        let Some(room) = self.octets.get_mut(start..start + len).filter(|_| self.entries.len() < MOST) else {
            return false;
        };
        let (front, back) = room.split_at_mut(header.len());
        front.copy_from_slice(header);
        back.copy_from_slice(payload);
        self.used += len;
        self.entries.push(Entry { socket, number: self.entries.len() as u32, start, len, to });
        true
    }

    /// Hands the datagrams of one socket after the other to `send`, in order; none is left.
    pub(super) fn drain(&mut self, mut send: impl FnMut(SocketId, &[Datagram<'_>])) {
        self.entries.sort_unstable_by_key(|entry| (entry.socket.to_bits(), entry.number));
        for group in self.entries.chunk_by(|a, b| a.socket == b.socket) {
            let mut datagrams = [Datagram::NONE; MOST];
            for (datagram, Entry { start, len, to, .. }) in datagrams.iter_mut().zip(group) {
                let octets = self.octets.get(*start..*start + *len).unwrap_or_default();
                *datagram = Datagram { to: *to, header: &[], payload: octets };
            }
            let (Some(first), Some(datagrams)) = (group.first(), datagrams.get(..group.len())) else {
                continue;
            };
            send(first.socket, datagrams);
        }
        self.entries.clear();
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn socket(number: u64) -> SocketId {
        SocketId::from_bits(number)
    }

    fn to(port: u16) -> Option<SocketAddr> {
        Some(([192, 0, 2, 1], port).into())
    }

    fn datagrams(sizes: &[usize]) -> Vec<Datagram<'static>> {
        static OCTETS: [u8; 65_536] = [7; 65_536];
        let datagram = |size: &usize| {
            let header = &OCTETS[..10.min(*size)];
            Datagram { to: None, header, payload: &OCTETS[..size - header.len()] }
        };
        sizes.iter().map(datagram).collect()
    }

    #[test]
    fn equal_datagrams_go_together_and_the_last_may_be_shorter() {
        let run_of = |sizes: &[usize]| run(&datagrams(sizes), u16::MAX);
        assert_eq!(run_of(&[74]), (1, 0));
        assert_eq!(run_of(&[74, 74, 74]), (3, 74));
        assert_eq!(run_of(&[74, 74, 20, 74]), (3, 74));
        assert_eq!(run_of(&[74, 75]), (1, 0));
        assert_eq!(run_of(&[74, 0, 74]), (1, 0));
        assert_eq!(run_of(&[0, 0]), (1, 0));
        assert_eq!(run_of(&[1; 65]), (64, 1));
        assert_eq!(run_of(&[1_482; 64]), (44, 1_482));
        assert_eq!(run_of(&[65_507, 65_507]), (1, 0));
        assert_eq!(run_of(&[65_536; 2]), (1, 0));
        assert_eq!(run(&datagrams(&[1_482, 1_482]), 1_481), (1, 0));
        let others = [Datagram { to: to(1), ..Datagram::NONE }, Datagram { to: to(2), ..Datagram::NONE }];
        let others = others.map(|datagram| Datagram { payload: b"x", ..datagram });
        assert_eq!(run(&others, u16::MAX), (1, 0));
    }

    #[cfg(unix)]
    #[test]
    fn what_is_refused_is_not_asked_for_again() {
        let udp = || {
            let socket = UdpSocket::bind("127.0.0.1:0".parse().expect("address")).expect("bind");
            Udp::new(socket, false)
        };
        let after = |size, code| {
            let mut udp = udp();
            udp.refused(size, &io::Error::from_raw_os_error(code));
            udp.cuts
        };
        assert_eq!(after(1_482, libc::EMSGSIZE), 1_481);
        assert_eq!(after(1_482, libc::EINVAL), 1_481);
        assert_eq!(after(1_200, libc::EINVAL), 0);
        assert_eq!(after(1_482, libc::EIO), 0);
        assert_eq!(after(1_482, libc::EOPNOTSUPP), 0);
    }

    /// The order of all datagrams as `drain` gives them.
    fn drained(outgoing: &mut Outgoing) -> Vec<(u64, Vec<u8>)> {
        let mut order = Vec::new();
        outgoing.drain(|socket, datagrams| {
            order.extend(datagrams.iter().map(|datagram| (socket.to_bits(), datagram.payload.to_vec())));
        });
        order
    }

    #[test]
    fn datagrams_wait_until_there_is_no_room() {
        let mut outgoing = Outgoing::new();
        for n in 0..MOST {
            assert!(outgoing.push(socket(1), None, b"head", &[n as u8; 3]));
        }
        assert!(!outgoing.push(socket(1), None, b"head", b"more"));
        assert_eq!(drained(&mut outgoing).len(), MOST);
        let large = OCTETS / LARGE;
        for _ in 0..large {
            assert!(outgoing.push(socket(1), None, &[], &[7; LARGE]));
        }
        assert!(!outgoing.push(socket(1), None, &[], b"x"));
        assert_eq!(drained(&mut outgoing).len(), large);
        assert!(outgoing.is_empty() && drained(&mut outgoing).is_empty());
    }

    #[test]
    fn the_first_of_a_turn_is_told() {
        let mut outgoing = Outgoing::default();
        assert_eq!([outgoing.is_first(), outgoing.is_first()], [true, false]);
        outgoing.end_turn();
        assert!(outgoing.is_first());
    }

    /// A receiver, and a socket connected to it.
    fn pair() -> (std::net::UdpSocket, Udp) {
        let receiver = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        receiver.set_read_timeout(Some(std::time::Duration::from_secs(10))).expect("time-out");
        socket2::SockRef::from(&receiver).set_recv_buffer_size(1 << 20).expect("SO_RCVBUF");
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        sender.connect(receiver.local_addr().expect("address")).expect("connect");
        sender.set_nonblocking(true).expect("non-blocking");
        (receiver, Udp::new(UdpSocket::from_std(sender), true))
    }

    /// Sends datagrams of these sizes and compares what arrives, one by one.
    fn carry(udp: &mut Udp, receiver: &std::net::UdpSocket, sizes: &[usize]) {
        let octets: Vec<Vec<u8>> =
            sizes.iter().enumerate().map(|(n, size)| (0..*size).map(|at| (at + n) as u8).collect()).collect();
        let datagrams: Vec<Datagram<'_>> = octets
            .iter()
            .map(|octets| {
                let (header, payload) = octets.split_at(octets.len().min(10));
                Datagram { to: None, header, payload }
            })
            .collect();
        for some in datagrams.chunks(MOST) {
            send(udp, some);
        }
        let mut buffer = vec![0; 65_536];
        for expected in octets {
            let len = receiver.recv(&mut buffer).expect("a datagram");
            assert!(buffer[..len] == expected, "{} octets for {}", len, expected.len());
        }
    }

    #[test]
    fn every_datagram_arrives_once_and_in_order_with_and_without_cutting() {
        let sizes = [64, 64, 64, 10, 64, 0, 64, 1_400, 1_400, 9_000, 9_000, 100, 1, 1, 1, 0, 0, 20_000, 64];
        for cuts in [u16::MAX, 1_000, 0] {
            let (receiver, mut udp) = pair();
            udp.cuts = cuts;
            carry(&mut udp, &receiver, &sizes);
            for _ in 0..2 {
                carry(&mut udp, &receiver, &[700; 65]);
            }
        }
    }

    /// A kernel that refuses to cut: nothing is lost, nothing comes twice, and it is not asked again.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_refusal_to_cut_costs_nothing_but_itself() {
        let (receiver, mut udp) = pair();
        // Without checksums there is nothing to cut with: EIO.
        let off = socket2::SockRef::from(&udp.socket);
        no_checksums(&off);
        carry(&mut udp, &receiver, &[64, 64, 64, 10, 700, 700, 64]);
        assert_eq!(udp.cuts, 0);
        carry(&mut udp, &receiver, &[64; 70]);
    }

    #[cfg(target_os = "linux")]
    fn no_checksums(socket: &socket2::Socket) {
        use std::os::fd::AsRawFd;
        let on: libc::c_int = 1;
        // SAFETY: the descriptor is open, and the option's value is one int that outlives the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_NO_CHECK,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        assert_eq!(result, 0);
    }

    #[test]
    fn an_error_that_was_waiting_loses_no_datagram() {
        let (receiver, mut udp) = pair();
        let at = receiver.local_addr().expect("address");
        drop(receiver);
        // Nobody is there: the error waits for the next send.
        send(&mut udp, &datagrams(&[5]));
        let receiver = std::net::UdpSocket::bind(at).expect("bind");
        receiver.set_read_timeout(Some(std::time::Duration::from_secs(10))).expect("time-out");
        carry(&mut udp, &receiver, &[5, 5, 5]);
    }

    #[test]
    fn one_that_is_too_large_takes_no_other_along() {
        let (receiver, mut udp) = pair();
        let sizes = [5, 65_536, 6];
        send(&mut udp, &datagrams(&sizes));
        let mut buffer = [0; 16];
        assert_eq!(receiver.recv(&mut buffer).expect("the first"), 5);
        assert_eq!(receiver.recv(&mut buffer).expect("the last"), 6);
    }

    proptest! {
        #[test]
        fn the_order_within_a_socket_is_kept(sent in proptest::collection::vec((0u64..4, 0usize..3), 0..200)) {
            let mut outgoing = Outgoing::new();
            let mut order = Vec::new();
            for (n, (number, len)) in sent.iter().enumerate() {
                let payload = &[n as u8; 3][..*len];
                if !outgoing.push(socket(*number), to(*number as u16), &[n as u8], payload) {
                    order.extend(drained(&mut outgoing));
                    prop_assert!(outgoing.push(socket(*number), to(*number as u16), &[n as u8], payload));
                }
            }
            order.extend(drained(&mut outgoing));
            prop_assert_eq!(order.len(), sent.len());
            for number in 0..4 {
                let of_one: Vec<u8> = order.iter().filter(|(socket, _)| *socket == number).map(|(_, octets)| octets[0]).collect();
                let expected: Vec<u8> = sent.iter().enumerate().filter(|(_, (socket, _))| *socket == number).map(|(n, _)| n as u8).collect();
                prop_assert_eq!(of_one, expected);
            }
        }

        #[test]
        fn a_run_is_what_the_kernel_cuts_it_back_to(sizes in proptest::collection::vec(prop_oneof![Just(0usize), Just(64usize), 0usize..2_000, 60_000usize..65_536], 1..100), cuts: u16) {
            let all = datagrams(&sizes);
            let mut at = 0;
            while at < all.len() {
                let (count, size) = run(&all[at..], cuts);
                prop_assert!((1..=MOST_SEGMENTS).contains(&count));
                if count > 1 {
                    let sizes: Vec<usize> = all[at..at + count].iter().map(Datagram::len).collect();
                    let (last, whole) = sizes.split_last().expect("some");
                    prop_assert!(whole.iter().all(|len| *len == usize::from(size)));
                    prop_assert!((1..=usize::from(size)).contains(last) && size <= cuts);
                    prop_assert!(sizes.iter().sum::<usize>() <= MOST_OCTETS);
                } else {
                    prop_assert_eq!(size, 0);
                }
                at += count;
            }
        }
    }
}
