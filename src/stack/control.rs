//! Whole small packets that wait to be sent: RST, SYN-ACK, answers without a connection, echo replies, ICMP errors.
//!
//! The queue is bounded in packets and octets; what does not fit is not sent, and the other side asks again, as after any loss. Buffers
//! are used again. What anyone can provoke without being part of a connection (stray RSTs, ICMP errors) is limited in rate, so that
//! the stack is no amplifier.

use super::Stats;
use super::egress::ip_header;
use super::limit::RateLimit;
use crate::flow::FlowKey;
use crate::time::Instant;
use crate::wire::checksum::Checksum;
use crate::wire::icmp::{self, IcmpMessage, Unreachable};
use crate::wire::ip::{IpPacket, protocol};
use crate::wire::tcp::{TcpFlags, TcpOptions, TcpSegment};
use crate::wire::{SeqNumber, ip};
use core::net::IpAddr;
use std::collections::VecDeque;

/// Packets that may wait.
const MAX_PACKETS: usize = 4_096;
/// Octets that may wait.
const MAX_OCTETS: usize = 4 << 20;
/// Buffers kept for reuse, and the largest worth keeping.
const KEPT: usize = 256;
const KEPT_SIZE: usize = 2_048;
/// An ICMP error is at most this long (RFC 1812 4.3.2.3, RFC 4443 2.4 c).
const MAX_ERROR_V4: usize = 576;
const MAX_ERROR_V6: usize = 1_280;

/// Whether a packet counts against the rate limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Limit {
    /// Provoked by a packet that belongs to nothing.
    Stray,
    /// The end of a connection that exists: never withheld.
    Flow,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct ControlQueue {
    packets: VecDeque<Vec<u8>>,
    octets: usize,
    spare: Vec<Vec<u8>>,
    /// The packet that was given out last: lent to the caller until he asks for the next.
    current: Vec<u8>,
    strays: RateLimit,
    errors: RateLimit,
}

impl ControlQueue {
    /// A queue that sends `rate` strays, and as many ICMP errors, a second.
    pub(crate) fn new(rate: u32) -> ControlQueue {
        ControlQueue {
            packets: VecDeque::new(),
            octets: 0,
            spare: Vec::new(),
            current: Vec::new(),
            strays: RateLimit::new(rate),
            errors: RateLimit::new(rate),
        }
    }

    /// Queues a packet of `len` octets that `write` fills; nothing when the queue is full.
    pub(crate) fn packet(&mut self, len: usize, write: impl FnOnce(&mut [u8])) {
        if self.packets.len() >= MAX_PACKETS || self.octets + len > MAX_OCTETS {
            log::trace!("control queue full: a packet of {len} octets is not sent");
            return;
        }
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.resize(len, 0);
        write(&mut buffer);
        self.octets += len;
        self.packets.push_back(buffer);
    }

    /// The next packet.
    pub(crate) fn pop(&mut self) -> Option<&[u8]> {
        let packet = self.packets.pop_front()?;
        self.octets -= packet.len();
        let last = core::mem::replace(&mut self.current, packet);
        if last.capacity() > 0 && last.capacity() <= KEPT_SIZE && self.spare.len() < KEPT {
            self.spare.push(last);
        }
        Some(&self.current)
    }

    /// Queues a segment without text towards the app.
    pub(crate) fn segment(&mut self, key: FlowKey, segment: &TcpSegment<'_>) {
        let ip = ip_header(key.remote.addr, key.local.addr, protocol::TCP);
        let (ip_len, tcp_len) = (ip.header_len(), segment.header_len());
        self.packet(ip_len + tcp_len, |buffer| {
            ip.emit(buffer, tcp_len);
            let tcp = &mut buffer[ip_len..];
            segment.emit_header(tcp);
            let sum = Checksum::pseudo_header(key.remote.addr, key.local.addr, protocol::TCP, tcp_len as u32)
                .with(tcp)
                .finish();
            tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        });
    }

    /// Queues a RST towards the app. `ack`: with an acknowledgement field (RFC 9293 3.5.2 tells which form is due).
    pub(crate) fn reset(
        &mut self,
        key: FlowKey,
        seq: SeqNumber,
        ack: Option<SeqNumber>,
        limit: Limit,
        stats: &mut Stats,
        now: Instant,
    ) {
        if limit == Limit::Stray && !self.strays.allow(now) {
            return;
        }
        stats.resets_sent += 1;
        let flags = if ack.is_some() { TcpFlags::RST | TcpFlags::ACK } else { TcpFlags::RST };
        let segment = TcpSegment {
            src_port: key.remote.port,
            dst_port: key.local.port,
            seq,
            ack: ack.unwrap_or_default(),
            flags,
            window: 0,
            urgent: 0,
            options: TcpOptions::default(),
            payload: &[],
        };
        self.segment(key, &segment);
    }

    /// Queues "destination unreachable" about `original`, a whole IP packet as the app sent it (or the front of one).
    pub(crate) fn unreachable(&mut self, original: &[u8], why: Unreachable, stats: &mut Stats, now: Instant) {
        self.error(original, stats, |quoted| IcmpMessage::Unreachable { why: Some(why), quoted }, now);
    }

    /// Queues "reassembly time exceeded" about the first fragment of a datagram.
    pub(crate) fn reassembly_exceeded(&mut self, original: &[u8], stats: &mut Stats, now: Instant) {
        self.error(original, stats, |quoted| IcmpMessage::TimeExceeded { reassembly: true, quoted }, now);
    }

    /// Queues an error about `original`, unless the rules forbid it (RFC 1812 4.3.2.7, RFC 4443 2.4 e): never about an ICMP error, about
    /// anything but a first fragment, or about a packet whose ends are not single hosts. Its source is the address that was
    /// addressed.
    fn error<'o>(
        &mut self,
        original: &'o [u8],
        stats: &mut Stats,
        message: impl FnOnce(&'o [u8]) -> IcmpMessage<'o>,
        now: Instant,
    ) {
        // The front of a packet has a total length beyond itself; the fixed header tells what matters.
        let Some(ends) = Ends::of(original) else { return };
        if !ends.may_be_told() {
            return;
        }
        if !self.errors.allow(now) {
            stats.icmp_errors_limited += 1;
            return;
        }
        stats.icmp_errors_sent += 1;
        let v6 = ends.src.is_ipv6();
        let (proto, most) =
            if v6 { (protocol::ICMPV6, MAX_ERROR_V6) } else { (protocol::ICMP, MAX_ERROR_V4) };
        let ip = ip_header(ends.dst, ends.src, proto);
        let header = ip.header_len();
        let quoted = &original[..original.len().min(most - header - 8)];
        let message = message(quoted);
        let len = message.buffer_len();
        self.packet(header + len, |buffer| {
            ip.emit(buffer, len);
            message.emit(ends.dst, ends.src, &mut buffer[header..]);
        });
    }
}

/// What the rules for ICMP errors ask of the packet in question.
struct Ends {
    src: IpAddr,
    dst: IpAddr,
    later_fragment: bool,
    about_error: bool,
}

impl Ends {
    fn of(original: &[u8]) -> Option<Ends> {
        if let Ok(packet) = IpPacket::parse(original) {
            let v6 = packet.src.is_ipv6();
            let icmp = packet.protocol == if v6 { protocol::ICMPV6 } else { protocol::ICMP };
            return Some(Ends {
                src: packet.src,
                dst: packet.dst,
                later_fragment: packet.fragment.is_some_and(|fragment| fragment.offset != 0),
                about_error: icmp && packet.payload.first().is_none_or(|kind| icmp::is_error(v6, *kind)),
            });
        }
        // Only the front of a packet: headers written by ourselves, to be quoted.
        let (src, dst) = ip::ends(original)?;
        Some(Ends { src, dst, later_fragment: false, about_error: false })
    }

    fn may_be_told(&self) -> bool {
        let single = |addr: IpAddr| {
            !addr.is_multicast()
                && !addr.is_unspecified()
                && !addr.is_loopback()
                && !super::ingress::is_broadcast(addr)
        };
        !self.later_fragment && !self.about_error && single(self.src) && single(self.dst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Endpoint, udp};

    fn key() -> FlowKey {
        FlowKey {
            local: Endpoint::new("198.18.0.1".parse().expect("address"), 40_000),
            remote: Endpoint::new("203.0.113.5".parse().expect("address"), 80),
        }
    }

    fn datagram(payload: &[u8]) -> Vec<u8> {
        let key = key();
        let ip = ip_header(key.local.addr, key.remote.addr, protocol::UDP);
        let mut octets = vec![0; 28];
        ip.emit(&mut octets, 8 + payload.len());
        udp::emit_header(&mut octets[20..], (key.local.addr, 40_000), (key.remote.addr, 53), payload);
        octets.extend_from_slice(payload);
        octets
    }

    fn at() -> Instant {
        Instant::from_millis(1_000)
    }

    /// conformance 48
    #[test]
    fn an_error_quotes_what_fits_in_576_octets_and_comes_from_the_address_addressed() {
        let mut queue = ControlQueue::new(10);
        let original = datagram(&[7; 1_000]);
        queue.unreachable(&original, Unreachable::Port, &mut Stats::default(), at());
        let packet = IpPacket::parse(queue.pop().expect("an error")).expect("valid");
        assert_eq!((packet.src, packet.dst), (key().remote.addr, key().local.addr));
        assert_eq!(packet.header.len() + packet.payload.len(), 576);
        let message = IcmpMessage::parse(packet.src, packet.dst, packet.payload).expect("valid");
        assert!(
            matches!(message, IcmpMessage::Unreachable { why: Some(Unreachable::Port), quoted } if original.starts_with(quoted))
        );
    }

    /// conformance 47
    #[test]
    fn no_error_is_sent_about_an_error_a_later_fragment_or_a_group() {
        let mut queue = ControlQueue::new(10);
        let mut stats = Stats::default();
        queue.unreachable(&datagram(b"x"), Unreachable::Port, &mut stats, at());
        let error = queue.pop().expect("an error").to_vec();
        queue.unreachable(&error, Unreachable::Host, &mut stats, at());
        let fix = |octets: &mut Vec<u8>| {
            octets[10..12].fill(0);
            let sum = Checksum::new().with(&octets[..20]).finish();
            octets[10..12].copy_from_slice(&sum.to_be_bytes());
        };
        let mut fragment = datagram(&[1; 16]);
        fragment[7] = 1;
        fix(&mut fragment);
        queue.unreachable(&fragment, Unreachable::Host, &mut stats, at());
        let mut group = datagram(b"x");
        group[16..20].copy_from_slice(&[224, 0, 0, 1]);
        fix(&mut group);
        queue.unreachable(&group, Unreachable::Host, &mut stats, at());
        assert!(queue.pop().is_none());
        assert_eq!(stats.icmp_errors_sent, 1);
    }

    #[test]
    fn errors_and_strays_are_limited_and_the_ends_of_flows_are_not() {
        let mut queue = ControlQueue::new(5);
        let mut stats = Stats::default();
        for _ in 0..20 {
            queue.unreachable(&datagram(b"x"), Unreachable::Port, &mut stats, at());
            queue.reset(key(), SeqNumber(1), None, Limit::Stray, &mut stats, at());
            queue.reset(key(), SeqNumber(1), None, Limit::Flow, &mut stats, at());
        }
        assert_eq!((stats.icmp_errors_sent, stats.icmp_errors_limited), (5, 15));
        assert_eq!(stats.resets_sent, 25);
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut queue = ControlQueue::new(1);
        for _ in 0..MAX_PACKETS + 100 {
            queue.packet(40, |_| {});
        }
        let mut count = 0;
        while queue.pop().is_some() {
            count += 1;
        }
        assert_eq!(count, MAX_PACKETS);
        assert_eq!(queue.octets, 0);
    }
}
