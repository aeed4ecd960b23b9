//! Datagrams: out of packets, one or a train of them, and into packets.

use super::egress::{self, Datagram, TrainHeader};
use super::{DropReason, Ingress, Offload, Packet, Stack};
use crate::time::Instant;
use crate::wire::icmp::Unreachable;
use crate::wire::ip::{IpPacket, protocol};
use crate::wire::udp::{self, UdpDatagram};
use crate::wire::{Endpoint, WireError};

/// The datagrams of a train, in order; `segment_size` 0: there is one.
pub fn datagrams(payload: &[u8], segment_size: u16) -> impl ExactSizeIterator<Item = &[u8]> + Clone {
    let size = match segment_size {
        0 => payload.len(),
        size => usize::from(size),
    };
    let count = if segment_size == 0 { 1 } else { payload.len().div_ceil(size).max(1) };
    (0..count).map(move |n| {
        let start = n * size;
        payload.get(start..payload.len().min(start + size)).unwrap_or_default()
    })
}

/// What a UDP packet is to the caller.
pub(super) fn datagram<'p>(ip: &IpPacket<'p>, packet: Packet<'p>) -> Result<Ingress<'p>, DropReason> {
    let datagram = UdpDatagram::parse(ip.src, ip.dst, ip.payload, packet.verify_checksum).map_err(
        |error| match error {
            WireError::Checksum => DropReason::BadChecksum,
            WireError::Truncated
            | WireError::Version
            | WireError::HeaderLength
            | WireError::Length
            | WireError::Extension
            | WireError::Value => DropReason::BadUdp,
        },
    )?;
    // A reply to port 0 could not be sent; a datagram to it is for nobody (RFC 768).
    if datagram.src_port == 0 || datagram.dst_port == 0 {
        return Err(DropReason::BadUdp);
    }
    Ok(Ingress::Datagram {
        local: Endpoint::new(ip.src, datagram.src_port),
        remote: Endpoint::new(ip.dst, datagram.dst_port),
        payload: datagram.payload,
        segment_size: if datagram.payload.len() > usize::from(packet.segment_size) {
            packet.segment_size
        } else {
            0
        },
    })
}

impl Stack {
    /// Prepares a datagram from `remote` to the app at `local`: one packet, or the fragments of one. `None` when the families differ or
    /// the payload is larger than UDP can carry. Nothing is queued: the caller takes the packets at once.
    pub fn send_datagram<'a>(
        &'a mut self,
        remote: Endpoint,
        local: Endpoint,
        payload: &'a [u8],
        _now: Instant,
    ) -> Option<Datagram<'a>> {
        let header = egress::ip_header(remote.addr, local.addr, protocol::UDP);
        let most =
            usize::from(u16::MAX) - udp::HEADER - if remote.addr.is_ipv4() { header.header_len() } else { 0 };
        if remote.addr.is_ipv4() != local.addr.is_ipv4() || payload.len() > most {
            return None;
        }
        let mut front = [0; udp::HEADER];
        let ends = ((remote.addr, remote.port), (local.addr, local.port));
        let mtu = usize::from(self.config.mtu);
        // Fragments are summed here: a device sums what is one packet.
        let sums = self.config.offload.sums() && header.header_len() + udp::HEADER + payload.len() <= mtu;
        let front_len = match sums {
            true => udp::emit_partial(&mut front, ends.0, ends.1, payload.len()),
            false => udp::emit_header(&mut front, ends.0, ends.1, payload),
        };
        let id = self.rng.next_u32();
        self.stats.packets_out += 1;
        let scratch = &mut self.scratch;
        Some(Datagram { scratch, header, front, front_len, payload, mtu, id, offset: 0, sums })
    }

    /// The header of one packet for datagrams from `remote` to the app at `local`, all as long as the first but the last, which may be shorter. `None`
    /// when the device takes no such packets, or they do not fit one: then each is [sent](Stack::send_datagram) by itself.
    pub fn send_train(
        &mut self,
        remote: Endpoint,
        local: Endpoint,
        pieces: &[&[u8]],
    ) -> Option<TrainHeader<'_>> {
        let header = egress::ip_header(remote.addr, local.addr, protocol::UDP);
        let len = header.header_len();
        let size = pieces.first()?.len();
        let octets: usize = pieces.iter().map(|piece| piece.len()).sum();
        let fits = len + udp::HEADER + size <= usize::from(self.config.mtu)
            && len + udp::HEADER + octets <= usize::from(u16::MAX)
            && remote.addr.is_ipv4() == local.addr.is_ipv4();
        let segment_size = u16::try_from(size).ok().filter(|size| *size > 0 && fits)?;
        if !self.config.offload.trains() {
            return None;
        }
        header.emit(&mut self.scratch, udp::HEADER + octets);
        let upper = self.scratch.get_mut(len..)?;
        udp::emit_partial(upper, (remote.addr, remote.port), (local.addr, local.port), octets);
        self.stats.packets_out += 1;
        let checksum_offset = egress::CHECKSUM_OFFSET;
        let offload = Offload { checksum_start: len as u16, checksum_offset, segment_size };
        Some(TrainHeader { header: self.scratch.get(..len + udp::HEADER)?, offload })
    }

    /// Answers a datagram that cannot be delivered with an ICMP error (quoting rules and rate limit apply). `payload` is the datagram's data.
    pub fn refuse_datagram(
        &mut self,
        local: Endpoint,
        remote: Endpoint,
        payload: &[u8],
        why: Unreachable,
        now: Instant,
    ) {
        let header = egress::ip_header(local.addr, remote.addr, protocol::UDP);
        let len = header.header_len();
        let upper = udp::HEADER + payload.len();
        if remote.addr.is_ipv4() != local.addr.is_ipv4() || len + upper > usize::from(u16::MAX) {
            return;
        }
        // The datagram as the app sent it, to be quoted.
        let mut original = vec![0; len + udp::HEADER];
        header.emit(&mut original, upper);
        udp::emit_header(&mut original[len..], (local.addr, local.port), (remote.addr, remote.port), payload);
        original.extend_from_slice(payload);
        self.control.unreachable(&original, why, &mut self.stats, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::{OffloadLevel, StackConfig};
    use crate::wire::checksum::Checksum;

    fn now() -> Instant {
        Instant::from_millis(1)
    }

    fn stack(offload: OffloadLevel) -> Stack {
        Stack::new(StackConfig { offload, ..StackConfig::default() }, [1; 16])
    }

    fn ends(v6: bool) -> (Endpoint, Endpoint) {
        let (app, target) = if v6 { ("fd7a::1", "2001:db8::5") } else { ("198.18.0.1", "203.0.113.5") };
        let end = |addr: &str, port| Endpoint::new(addr.parse().unwrap(), port);
        (end(app, 4_000), end(target, 443))
    }

    /// A packet with `payload` as the app's kernel makes it.
    fn packet(v6: bool, payload: &[u8]) -> Vec<u8> {
        let (app, target) = ends(v6);
        let ip = egress::ip_header(app.addr, target.addr, protocol::UDP);
        let mut octets = vec![0; ip.header_len() + udp::HEADER];
        ip.emit(&mut octets, udp::HEADER + payload.len());
        let upper = &mut octets[ip.header_len()..];
        udp::emit_header(upper, (app.addr, app.port), (target.addr, target.port), payload);
        octets.extend_from_slice(payload);
        octets
    }

    #[test]
    fn a_train_is_taken_apart_where_it_was_put_together() {
        let of = |len: usize, size| datagrams(&[7; 10][..len], size).map(<[u8]>::len).collect::<Vec<_>>();
        assert_eq!(of(10, 0), [10]);
        assert_eq!(of(0, 0), [0]);
        assert_eq!(of(0, 4), [0]);
        assert_eq!(of(10, 4), [4, 4, 2]);
        assert_eq!(of(10, 5), [5, 5]);
        assert_eq!(of(10, u16::MAX), [10]);
    }

    #[test]
    fn the_size_of_a_train_reaches_the_caller_and_that_of_one_datagram_is_none() {
        for v6 in [false, true] {
            let octets = packet(v6, b"onetwo3");
            let mut stack = stack(OffloadLevel::Full);
            for (given, expected) in [(0, 0), (3, 3), (6, 6), (7, 0), (u16::MAX, 0)] {
                let packet = Packet { segment_size: given, ..Packet::new(&octets) };
                let Ok(Ingress::Datagram { payload, segment_size, .. }) = stack.handle_packet(packet, now())
                else {
                    panic!("a datagram");
                };
                assert_eq!((payload, segment_size), (&b"onetwo3"[..], expected));
            }
        }
    }

    /// What the device writes into the checksum field when it is told where it is.
    fn summed(mut octets: Vec<u8>, offload: Offload) -> Vec<u8> {
        let start = usize::from(offload.checksum_start);
        let sum = Checksum::new().with(&octets[start..]).finish();
        let at = start + usize::from(offload.checksum_offset);
        octets[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        octets
    }

    #[test]
    fn a_datagram_that_the_device_sums_is_the_one_that_is_summed_here() {
        for v6 in [false, true] {
            let (app, target) = ends(v6);
            let mut sent = [OffloadLevel::Off, OffloadLevel::Checksum].map(stack);
            for payload in [&b""[..], b"x", &[7; 1_452]] {
                let [plain, left] = sent.each_mut().map(|stack| {
                    let mut datagram = stack.send_datagram(target, app, payload, now()).expect("sent");
                    let packet = datagram.next_packet().expect("a packet");
                    ([packet.header, packet.payload[0]].concat(), packet.offload)
                });
                assert_eq!(plain.1, None);
                let offload = left.1.expect("left to the device");
                assert_eq!((offload.checksum_offset, offload.segment_size), (6, 0));
                assert_eq!(summed(left.0, offload), plain.0);
            }
            // Fragments are summed here.
            let [_, stack] = &mut sent;
            let mut datagram = stack.send_datagram(target, app, &[7; 4_000], now()).expect("sent");
            while let Some(packet) = datagram.next_packet() {
                assert_eq!(packet.offload, None);
            }
        }
    }

    #[test]
    fn datagrams_are_one_packet_where_the_device_cuts_and_they_fit() {
        for v6 in [false, true] {
            let (app, target) = ends(v6);
            let len = if v6 { 48 } else { 28 };
            let octets = [7; 2_000];
            let of = |size: usize, count| vec![&octets[..size]; count];
            let mut full = stack(OffloadLevel::Full);
            let train = full.send_train(target, app, &of(100, 3)).expect("a train");
            let offload = train.offload;
            assert_eq!((train.header.len(), usize::from(offload.checksum_start)), (len, len - 8));
            assert_eq!((offload.checksum_offset, offload.segment_size), (6, 100));
            let whole = summed([train.header, &octets[..300]].concat(), offload);
            let ip = IpPacket::parse(&whole).expect("a packet");
            let read = UdpDatagram::parse(ip.src, ip.dst, ip.payload, true).expect("a datagram");
            assert_eq!((read.src_port, read.dst_port, read.payload), (443, 4_000, &octets[..300]));
            let mut fits = |pieces: Vec<&[u8]>| full.send_train(target, app, &pieces).is_some();
            assert!(fits(of(1_500 - len, 2)) && !fits(of(1_501 - len, 2)));
            assert!(fits(of(1_400, 46)) && !fits(of(1_400, 47)));
            assert!(!fits(of(0, 2)) && !fits(vec![]));
            let other = ends(!v6).0;
            assert!(full.send_train(target, other, &of(100, 3)).is_none());
            for level in [OffloadLevel::Off, OffloadLevel::Checksum, OffloadLevel::Tcp] {
                assert!(stack(level).send_train(target, app, &of(100, 3)).is_none());
            }
        }
    }
}
