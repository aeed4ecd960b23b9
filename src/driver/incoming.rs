//! Datagrams on their way to the TUN: many are read in one system call, and those that look alike are written in one.
//!
//! A read takes what a socket has, up to [`MOST`] messages. The memory for them is made once and touched where something is put, so little is used
//! while little comes. How many are asked for follows what came last: who hears one datagram at a time does not pay for room for more.
//!
//! When a read was full, the socket is told to hand over trains (UDP_GRO): datagrams that came together, from a sender or a device that keeps them
//! so, as one message.
//!
//! Datagrams in a row from one sender to one app, of equal size but for the last, which may be shorter, are one [`Train`] for a device
//! that takes such.

use super::mmsg::{self, Arrival};
use super::outgoing::Udp;
use crate::stack::datagrams;
use crate::tun::MOST_PIECES;
use std::io;
use std::net::SocketAddr;

/// Messages in one read at most.
const MOST: usize = 32;
/// Messages that are asked for of a socket that had little.
const LEAST: usize = 4;
/// Octets of the largest message.
const ROOM: usize = 65_536;
/// From one message's room to the next one's: more, so that their fronts do not fall on the same lines of the cache.
const STRIDE: usize = ROOM + 64;
/// Octets of payload in a train: with the longest headers it is still a packet.
const MOST_OCTETS: usize = 65_535 - 48;

/// What was read of one socket.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    octets: Box<[u8]>,
    arrivals: Vec<Arrival>,
    /// Messages to ask for next.
    wanted: usize,
}

impl Inbox {
    /// With its memory, of which nothing is touched before it is needed.
    pub(super) fn new() -> Inbox {
        Inbox { octets: vec![0; MOST * STRIDE].into(), arrivals: Vec::with_capacity(MOST), wanted: LEAST }
    }

    /// Reads what there is; `false` when there may be more. What was read before is forgotten.
    pub(super) fn read(&mut self, udp: &mut Udp) -> io::Result<bool> {
        self.arrivals.clear();
        let wanted = self.wanted.clamp(LEAST, MOST);
        let buffers = self.octets.chunks_mut(STRIDE).take(wanted);
        mmsg::receive(&udp.socket, buffers, !udp.connected, udp.trains, &mut self.arrivals)?;
        let full = self.arrivals.len() >= wanted;
        self.wanted = 2 * self.arrivals.len();
        if full && wanted == MOST && !udp.trains {
            match mmsg::take_trains(&udp.socket) {
                Ok(()) => udp.trains = true,
                Err(error) => log::debug!("UDP_GRO: {error}"),
            }
        }
        Ok(!full)
    }

    /// Octets that were read.
    pub(super) fn len(&self) -> usize {
        self.arrivals.iter().map(|arrival| arrival.len).sum()
    }

    /// The datagrams that were read, in order, with their senders where they are not known anyway.
    pub(super) fn datagrams(&self) -> impl Iterator<Item = (Option<SocketAddr>, &[u8])> {
        self.arrivals.iter().zip(self.octets.chunks(STRIDE)).flat_map(|(arrival, room)| {
            let octets = room.get(..arrival.len).unwrap_or_default();
            datagrams(octets, arrival.segment_size).map(|datagram| (arrival.from, datagram))
        })
    }
}

/// Datagrams for the device that may leave as one packet.
#[derive(Debug)]
pub(super) struct Train<'a, E> {
    ends: Option<E>,
    pieces: [&'a [u8]; MOST_PIECES],
    count: usize,
    octets: usize,
}

impl<'a, E: Copy + PartialEq> Train<'a, E> {
    pub(super) fn new() -> Train<'a, E> {
        Train { ends: None, pieces: [&[]; MOST_PIECES], count: 0, octets: 0 }
    }

    /// Adds a datagram between `ends`; `false` when it does not go together with what there is.
    pub(super) fn push(&mut self, ends: E, payload: &'a [u8]) -> bool {
        let size = self.pieces[0].len();
        let fits = match self.count {
            0 => true,
            count => {
                let last = self.pieces[count - 1].len();
                self.ends == Some(ends)
                    && last == size
                    && (1..=size).contains(&payload.len())
                    && self.octets + payload.len() <= MOST_OCTETS
            }
        };
        let Some(place) = self.pieces.get_mut(self.count).filter(|_| fits) else { return false };
        *place = payload;
        self.ends = Some(ends);
        self.count += 1;
        self.octets += payload.len();
        true
    }

    /// Between whom, and what; the train is empty again. `None` when it was.
    pub(super) fn take(&mut self) -> Option<(E, &[&'a [u8]])> {
        let ends = self.ends.take()?;
        let pieces = self.pieces.get(..core::mem::take(&mut self.count))?;
        self.octets = 0;
        Some((ends, pieces))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(target_os = "linux")]
    use mio::net::UdpSocket;

    /// What becomes of datagrams of these sizes from one sender: the sizes of each train.
    fn trains(sizes: &[usize]) -> Vec<Vec<usize>> {
        static OCTETS: [u8; 65_536] = [7; 65_536];
        let mut train = Train::new();
        let mut all = Vec::new();
        let mut taken = |train: &mut Train<'static, u8>| {
            if let Some((ends, pieces)) = train.take() {
                assert_eq!(ends, 1);
                all.push(pieces.iter().map(|piece| piece.len()).collect());
            }
        };
        for size in sizes {
            if !train.push(1, &OCTETS[..*size]) {
                taken(&mut train);
                assert!(train.push(1, &OCTETS[..*size]));
            }
        }
        taken(&mut train);
        taken(&mut train);
        all
    }

    #[test]
    fn datagrams_that_look_alike_are_a_train() {
        assert_eq!(trains(&[]), [] as [Vec<usize>; 0]);
        assert_eq!(trains(&[64, 64, 10, 64]), [vec![64, 64, 10], vec![64]]);
        assert_eq!(trains(&[64, 65]), [vec![64], vec![65]]);
        assert_eq!(trains(&[0, 0, 5]), [vec![0], vec![0], vec![5]]);
        assert_eq!(trains(&[5, 0, 5]), [vec![5], vec![0], vec![5]]);
        assert_eq!(trains(&[9; MOST_PIECES + 2]), [vec![9; MOST_PIECES], vec![9; 2]]);
        assert_eq!(trains(&[30_000; 3]), [vec![30_000; 2], vec![30_000]]);
    }

    #[test]
    fn datagrams_of_others_are_none_of_a_train() {
        let mut train = Train::new();
        assert!(train.push(1, b"one"));
        assert!(!train.push(3, b"two"));
        assert_eq!(train.take().map(|(_, pieces)| pieces.len()), Some(1));
        assert!(train.push(3, b"longer"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_burst_is_read_whole_and_in_order_and_then_as_trains() {
        let any = "127.0.0.1:0".parse().expect("address");
        let socket = UdpSocket::bind(any).expect("bind");
        let at = socket.local_addr().expect("address");
        let mut udp = Udp::new(socket, false);
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let from = sender.local_addr().ok();
        let mut inbox = Inbox::new();
        for _ in 0..2 {
            for n in 0..100u8 {
                sender.send_to(&[n; 3][..usize::from(n) % 4], at).expect("send");
            }
            let mut read = Vec::new();
            loop {
                let drained = inbox.read(&mut udp).expect("read");
                read.extend(inbox.datagrams().map(|(from, octets)| (from, octets.to_vec())));
                assert_eq!(inbox.len(), inbox.datagrams().map(|(_, octets)| octets.len()).sum::<usize>());
                if drained {
                    break;
                }
            }
            let expected: Vec<_> = (0..100u8).map(|n| (from, vec![n; usize::from(n) % 4])).collect();
            assert_eq!(read, expected);
            assert_eq!(udp.trains, cfg!(target_os = "linux"), "a full read is enough to ask for trains");
        }
        assert_eq!(inbox.read(&mut udp).expect_err("nothing").kind(), io::ErrorKind::WouldBlock);
    }
}
