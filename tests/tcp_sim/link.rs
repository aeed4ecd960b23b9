//! A link in virtual time that loses, doubles, delays, reorders and corrupts packets, all by its seed; and what an offloading device
//! does between the stack and such a link.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use ztun::rng::Rng;
use ztun::stack::{Offload, Transmit};
use ztun::time::{Duration, Instant};
use ztun::wire::checksum::Checksum;
use ztun::wire::ip::{IpHeader, IpPacket, protocol};
use ztun::wire::tcp::{SackBlocks, TcpFlags, TcpSegment};
use ztun::wire::{SeqNumber, ip};

/// What a link does to packets: chances in 1,000, delays in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub loss: u32,
    pub duplicate: u32,
    pub corrupt: u32,
    /// Packets that are overtaken, and by how much time at most.
    pub reorder: u32,
    pub late: u64,
    pub delay: u64,
    pub jitter: u64,
}

/// One direction.
pub struct Link {
    faults: Faults,
    rng: Rng,
    /// By the time of delivery, and then by the order of sending.
    queue: BTreeMap<(Instant, u64), Vec<u8>>,
    sent: u64,
    trace: DefaultHasher,
    /// Faults happen only while this is set.
    pub faulty: bool,
}

impl Link {
    pub fn new(faults: Faults, seed: u64) -> Link {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        Link {
            faults,
            rng: Rng::new(key),
            queue: BTreeMap::new(),
            sent: 0,
            trace: DefaultHasher::new(),
            faulty: true,
        }
    }

    fn chance(&mut self, in_thousand: u32) -> bool {
        self.rng.next_u32() % 1_000 < in_thousand && self.faulty
    }

    fn up_to(&mut self, micros: u64) -> u64 {
        if micros == 0 { 0 } else { self.rng.next_u64() % micros }
    }

    /// A packet enters the link.
    pub fn send(&mut self, packet: Vec<u8>, now: Instant) {
        (now, &packet).hash(&mut self.trace);
        if self.chance(self.faults.loss) {
            return;
        }
        let copies = if self.chance(self.faults.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            let mut packet = packet.clone();
            if self.chance(self.faults.corrupt) {
                // A single bit: no checksum misses it.
                let bit = self.rng.next_u64() as usize % (packet.len() * 8);
                packet[bit / 8] ^= 1 << (bit % 8);
            }
            let mut delay = 1 + self.faults.delay + self.up_to(self.faults.jitter);
            if self.chance(self.faults.reorder) {
                delay += self.up_to(self.faults.late);
            }
            self.sent += 1;
            self.queue.insert((now + Duration::from_micros(delay), self.sent), packet);
        }
    }

    /// The packets that have arrived by `now`.
    pub fn receive(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let later = self.queue.split_off(&(now + Duration::from_micros(1), 0));
        let due = std::mem::replace(&mut self.queue, later);
        due.into_values().inspect(|packet| (now, packet).hash(&mut self.trace)).collect()
    }

    /// When the next packet arrives.
    pub fn next(&self) -> Option<Instant> {
        self.queue.keys().next().map(|(due, _)| *due)
    }

    /// A digest of everything that went in and came out, with its time.
    pub fn trace(&self) -> u64 {
        self.trace.finish()
    }
}

/// Where the TCP header of a packet starts.
fn tcp_start(octets: &[u8]) -> usize {
    if octets[0] >> 4 == 4 { usize::from(octets[0] & 15) * 4 } else { 40 }
}

fn write_checksum(octets: &mut [u8], start: usize) {
    let (src, dst) = ip::ends(octets).expect("an IP header");
    octets[start + 16..start + 18].fill(0);
    let tcp = &octets[start..];
    let sum = Checksum::pseudo_header(src, dst, protocol::TCP, tcp.len() as u32).with(tcp).finish();
    octets[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
}

/// What the device makes of a packet of the stack: super-segments are cut and checksums written, as the host's kernel does.
pub fn transmit(packet: &Transmit<'_>) -> Vec<Vec<u8>> {
    let octets = [packet.header, packet.payload[0], packet.payload[1]].concat();
    match packet.offload {
        None => vec![octets],
        Some(offload) => cut(&octets, offload),
    }
}

fn cut(octets: &[u8], offload: Offload) -> Vec<Vec<u8>> {
    let start = usize::from(offload.checksum_start);
    let header = start + usize::from(octets[start + 12] >> 4) * 4;
    let (front, text) = octets.split_at(header);
    let size = match offload.segment_size {
        0 => text.len().max(1),
        size => usize::from(size),
    };
    let seq = u32::from_be_bytes(front[start + 4..start + 8].try_into().expect("four octets"));
    let count = text.len().div_ceil(size).max(1);
    (0..count)
        .map(|n| {
            let piece = &text[n * size..text.len().min((n + 1) * size)];
            let mut packet = emit_ip(front, piece.len() + header - start);
            let mut tcp = front[start..].to_vec();
            tcp[4..8].copy_from_slice(&seq.wrapping_add((n * size) as u32).to_be_bytes());
            if n + 1 < count {
                tcp[13] &= !(TcpFlags::FIN.0 | TcpFlags::PSH.0);
            }
            packet.extend(tcp);
            packet.extend_from_slice(piece);
            write_checksum(&mut packet, start);
            packet
        })
        .collect()
}

/// The IP header of `like` for another length of the upper layer.
fn emit_ip(like: &[u8], upper: usize) -> Vec<u8> {
    let (src, dst) = ip::ends(like).expect("an IP header");
    let header = IpHeader {
        src,
        dst,
        protocol: protocol::TCP,
        hop_limit: 64,
        id: 0,
        dont_fragment: true,
        fragment: None,
    };
    let mut octets = vec![0; header.header_len()];
    header.emit(&mut octets, upper);
    octets
}

/// A packet for the stack, and whether the device vouches for its checksum.
pub struct Arrival {
    pub octets: Vec<u8>,
    pub vouched: bool,
}

/// What the device makes of packets of the app that came at one time: segments that continue each other become one.
pub fn coalesce(packets: Vec<Vec<u8>>) -> Vec<Arrival> {
    let mut arrivals: Vec<Arrival> = Vec::new();
    for packet in packets {
        if let Some(last) = arrivals.last_mut()
            && let Some(whole) = join(&last.octets, last.vouched, &packet)
        {
            *last = Arrival { octets: whole, vouched: true };
        } else {
            arrivals.push(Arrival { octets: packet, vouched: false });
        }
    }
    arrivals
}

fn join(first: &[u8], vouched: bool, second: &[u8]) -> Option<Vec<u8>> {
    let (a, a_ends) = parse(first, !vouched)?;
    let (b, b_ends) = parse(second, true)?;
    let plain = |flags: TcpFlags| flags == TcpFlags::ACK || flags == TcpFlags::ACK | TcpFlags::PSH;
    let continues = a_ends == b_ends
        && (a.src_port, a.dst_port, a.ack, a.window) == (b.src_port, b.dst_port, b.ack, b.window)
        && a.options == b.options
        && a.options.sack.is_empty()
        && !a.payload.is_empty()
        && !b.payload.is_empty()
        && b.seq == a.seq + a.len()
        && a.flags == TcpFlags::ACK
        && plain(b.flags)
        && first.len() + b.payload.len() <= 65_000;
    if !continues {
        return None;
    }
    let start = tcp_start(first);
    let mut whole = emit_ip(first, first.len() - start + b.payload.len());
    whole.extend_from_slice(&first[start..]);
    whole.extend_from_slice(b.payload);
    whole[start + 13] = b.flags.0;
    Some(whole)
}

fn parse(octets: &[u8], verify: bool) -> Option<(TcpSegment<'_>, (IpAddr, IpAddr))> {
    let packet = IpPacket::parse(octets).ok()?;
    let whole = packet.header.len() + packet.payload.len() == octets.len();
    if packet.protocol != protocol::TCP || packet.fragment.is_some() || !whole {
        return None;
    }
    let segment = TcpSegment::parse(packet.src, packet.dst, packet.payload, verify).ok()?;
    Some((segment, (packet.src, packet.dst)))
}

/// Moves the app's sequence space, as a middlebox does that makes initial sequence numbers random: so the app's ISN can be chosen.
#[derive(Default)]
pub struct Shift {
    /// By the app's port: what is added to its sequence numbers.
    offsets: BTreeMap<u16, u32>,
}

impl Shift {
    /// A packet of the app; `isn` is what the sequence number of its SYN is to become.
    pub fn upload(&mut self, octets: &mut [u8], isn: SeqNumber) {
        let Some((port, seq, syn)) =
            parse(octets, true).map(|(segment, _)| (segment.src_port, segment.seq, segment.flags.syn()))
        else {
            return;
        };
        if syn {
            self.offsets.entry(port).or_insert_with(|| isn.distance_from(seq));
        }
        let offset = self.offsets.get(&port).copied().unwrap_or(0);
        let start = tcp_start(octets);
        octets[start + 4..start + 8].copy_from_slice(&(seq + offset).0.to_be_bytes());
        write_checksum(octets, start);
    }

    /// A packet of the stack. One that is corrupted stays so.
    pub fn download(&mut self, octets: &mut [u8]) {
        let Some((segment, _)) = parse(octets, true) else { return };
        let offset = self.offsets.get(&segment.dst_port).copied().unwrap_or(0);
        let mut moved = segment;
        // A RST without ACK has no such field, but what stands there is not looked at.
        moved.ack = segment.ack - offset;
        moved.options.sack = SackBlocks::default();
        for (left, right) in segment.options.sack.as_slice() {
            moved.options.sack.push(*left - offset, *right - offset);
        }
        let start = tcp_start(octets);
        let header = segment.header_len();
        let mut front = vec![0; header];
        moved.emit_header(&mut front);
        let same_length = usize::from(octets[start + 12] >> 4) * 4 == header;
        assert!(same_length, "the stack's options are those of the wire layer");
        octets[start..start + header].copy_from_slice(&front);
        write_checksum(octets, start);
    }
}
