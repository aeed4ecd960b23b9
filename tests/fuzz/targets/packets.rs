//! Packets as sixteen apps might send them, and as no app would: nearly valid ones get deep, spoiled ones find what is not checked.

use super::source::Source;
use std::net::IpAddr;
use ztun::stack::Packet;
use ztun::tun::vnet;
use ztun::wire::checksum::Checksum;
use ztun::wire::icmp::{IcmpMessage, Unreachable};
use ztun::wire::ip::{Fragment, IpHeader, IpPacket, protocol};
use ztun::wire::tcp::{TcpFlags, TcpOptions, TcpSegment, Timestamps};
use ztun::wire::{SeqNumber, ip, udp};

/// An app's connection as far as it is known from what was sent to it.
#[derive(Clone, Debug)]
pub struct App {
    addr: IpAddr,
    port: u16,
    snd_nxt: SeqNumber,
    rcv_nxt: SeqNumber,
    /// It sends timestamps, as it should once it has said so.
    timestamps: bool,
    /// The last packet to it, to be quoted in errors.
    last: Vec<u8>,
}

/// All of them.
pub struct Apps {
    apps: Vec<App>,
}

fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn target(v6: bool) -> IpAddr {
    addr(if v6 { "2001:db8::5" } else { "203.0.113.5" })
}

impl Default for Apps {
    fn default() -> Apps {
        let app = |n: u16| App {
            addr: addr(if n % 2 == 1 { "fd7a:7a74:756e::1" } else { "198.18.0.1" }),
            port: 40_000 + n,
            snd_nxt: SeqNumber(0xffff_fff0),
            rcv_nxt: SeqNumber(0),
            timestamps: false,
            last: Vec::new(),
        };
        Apps { apps: (0..16).map(app).collect() }
    }
}

/// A number near `base`, or anywhere.
fn near(base: SeqNumber, source: &mut Source<'_>) -> SeqNumber {
    match source.u8() {
        0..=199 => base,
        200..=219 => base + u32::from(source.u8()),
        220..=239 => base - u32::from(source.u8()),
        240..=249 => base + u32::from(source.u16()),
        _ => SeqNumber(source.u32()),
    }
}

impl Apps {
    /// A packet was sent to an app.
    pub fn saw(&mut self, octets: &[u8]) {
        let Ok(packet) = IpPacket::parse(octets) else { return };
        if packet.protocol != protocol::TCP {
            return;
        }
        let Ok(segment) = TcpSegment::parse(packet.src, packet.dst, packet.payload, false) else { return };
        let app = self.apps.iter_mut().find(|app| (app.addr, app.port) == (packet.dst, segment.dst_port));
        let Some(app) = app else { return };
        app.last = octets.iter().take(200).copied().collect();
        if segment.flags.ack() {
            app.snd_nxt = segment.ack;
        }
        if segment.flags.syn() || segment.seq == app.rcv_nxt {
            app.rcv_nxt = segment.seq + segment.len();
        }
    }

    /// The first and the third packet of a connection that some app opens as a kernel does; the third is right when the SYN-ACK was
    /// [`Apps::saw`]n before it is made.
    pub fn syn(&mut self, source: &mut Source<'_>) -> (usize, Vec<u8>) {
        let index = usize::from(source.u8()) % self.apps.len();
        let app = &mut self.apps[index];
        app.snd_nxt = SeqNumber(source.u32());
        let kinds = source.u8();
        let options = TcpOptions {
            mss: (kinds & 1 == 0).then_some(1_460),
            window_scale: (kinds & 2 == 0).then_some(kinds >> 4),
            sack_permitted: kinds & 4 == 0,
            timestamps: (kinds & 8 != 0).then_some(Timestamps { value: 1, echo: 0 }),
            ..TcpOptions::default()
        };
        app.timestamps = options.timestamps.is_some();
        (index, plain(app, TcpFlags::SYN, options))
    }

    /// See [`Apps::syn`].
    pub fn ack(&mut self, index: usize) -> Vec<u8> {
        let app = &self.apps[index];
        let timestamps = app.timestamps.then_some(Timestamps { value: 1, echo: 0 });
        plain(app, TcpFlags::ACK, TcpOptions { timestamps, ..TcpOptions::default() })
    }

    /// The next packet, of any kind.
    pub fn packet(&mut self, source: &mut Source<'_>) -> Vec<u8> {
        let index = usize::from(source.u8()) % self.apps.len();
        let app = &mut self.apps[index];
        let mut octets = match source.u8() % 16 {
            0..=8 => segment(app, source),
            9 | 10 => datagram(app, source),
            11 => icmp(app, source),
            12 | 13 => fragment(app, source),
            14 => extensions(app, source),
            _ => {
                let len = usize::from(source.u8());
                source.take(len).to_vec()
            }
        };
        spoil(&mut octets, source);
        octets
    }
}

fn header(app: &App, protocol: u8, fragment: Option<Fragment>) -> IpHeader {
    let id = fragment.map_or(0, |fragment| fragment.id as u16);
    IpHeader {
        src: app.addr,
        dst: target(app.addr.is_ipv6()),
        protocol,
        hop_limit: 64,
        id,
        dont_fragment: fragment.is_none(),
        fragment,
    }
}

fn whole(header: &IpHeader, upper: &[u8]) -> Vec<u8> {
    let mut octets = vec![0; header.header_len()];
    header.emit(&mut octets, upper.len());
    octets.extend_from_slice(upper);
    octets
}

/// A segment without text at the right place.
fn plain(app: &App, flags: TcpFlags, options: TcpOptions) -> Vec<u8> {
    let segment = TcpSegment {
        src_port: app.port,
        dst_port: 80,
        seq: app.snd_nxt,
        ack: app.rcv_nxt,
        flags,
        window: u16::MAX,
        urgent: 0,
        options,
        payload: &[],
    };
    let mut tcp = vec![0; segment.header_len()];
    segment.emit_header(&mut tcp);
    let mut octets = whole(&header(app, protocol::TCP, None), &tcp);
    write_checksum(&mut octets);
    octets
}

fn segment(app: &mut App, source: &mut Source<'_>) -> Vec<u8> {
    use TcpFlags as F;
    let flags = match source.u8() {
        0..=99 => F::ACK,
        100..=129 => F::SYN,
        130..=159 => F::ACK | F::PSH,
        160..=189 => F::ACK | F::FIN,
        190..=199 => F::RST,
        200..=209 => F::RST | F::ACK,
        210..=219 => F::SYN | F::ACK,
        220..=229 => F::ACK | F::URG,
        _ => TcpFlags(source.u8()),
    };
    let len = match source.u8() {
        0..=99 => 0,
        100..=199 => usize::from(source.u8()),
        _ => usize::from(source.u16()) % 9_000,
    };
    let mut options = TcpOptions::default();
    let kinds = source.u8();
    if app.timestamps ^ (kinds & 7 == 7) {
        options.timestamps =
            Some(Timestamps { value: 1 + u32::from(source.u8() / 4), echo: source.u16().into() });
    }
    if flags.syn() || kinds & 2 != 0 {
        options.mss = (kinds & 4 != 0).then(|| source.u16());
        options.window_scale = (kinds & 8 != 0).then(|| source.u8());
        options.sack_permitted = kinds & 16 != 0;
    }
    if kinds & 32 != 0 && options.mss.is_none() {
        for _ in 0..source.u8() % 5 {
            let left = near(app.rcv_nxt, source);
            options.sack.push(left, left + u32::from(source.u16()));
        }
    }
    let raw: Vec<u8> = if kinds & 64 != 0 && options == TcpOptions::default() {
        let words = usize::from(source.u8() % 11);
        let mut raw = source.take(words * 4).to_vec();
        raw.resize(words * 4, 0);
        raw
    } else {
        Vec::new()
    };
    let seq = near(app.snd_nxt, source);
    let segment = TcpSegment {
        src_port: app.port,
        dst_port: 80,
        seq,
        ack: near(app.rcv_nxt, source),
        flags,
        window: if kinds & 128 != 0 { source.u16() } else { u16::MAX },
        urgent: if flags.contains(F::URG) { source.u16() } else { 0 },
        options,
        payload: &[],
    };
    let mut tcp = vec![0; segment.header_len()];
    segment.emit_header(&mut tcp);
    tcp.extend_from_slice(&raw);
    tcp[12] = ((tcp.len() / 4) << 4) as u8;
    tcp.extend((0..len).map(|n| n as u8));
    let mut octets = whole(&header(app, protocol::TCP, None), &tcp);
    write_checksum(&mut octets);
    octets
}

/// A UDP datagram as an upper layer.
fn udp_layer(app: &App, source: &mut Source<'_>) -> Vec<u8> {
    let len = if source.u8() > 200 { usize::from(source.u16()) % 5_000 } else { usize::from(source.u8()) };
    let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
    let port = source.pick(&[53, 443, 9, 0]);
    let mut upper = vec![0; udp::HEADER];
    udp::emit_header(&mut upper, (app.addr, app.port), (target(app.addr.is_ipv6()), port), &payload);
    upper.extend(payload);
    upper
}

fn datagram(app: &App, source: &mut Source<'_>) -> Vec<u8> {
    whole(&header(app, protocol::UDP, None), &udp_layer(app, source))
}

fn icmp(app: &App, source: &mut Source<'_>) -> Vec<u8> {
    let mut quoted = app.last.clone();
    if source.u8() > 200 {
        spoil(&mut quoted, source);
    }
    let data = [1, 2, 3, 4, 5];
    let message = match source.u8() % 6 {
        0 => IcmpMessage::EchoRequest { id: source.u16(), seq: source.u16(), data: &data },
        1 => IcmpMessage::EchoReply { id: source.u16(), seq: source.u16(), data: &data },
        2 => IcmpMessage::PacketTooBig { mtu: source.u16().into(), quoted: &quoted },
        3 => IcmpMessage::TimeExceeded { reassembly: source.u8() > 127, quoted: &quoted },
        4 => IcmpMessage::Unreachable { why: Some(Unreachable::Port), quoted: &quoted },
        _ => IcmpMessage::Other { kind: source.u8(), code: source.u8() },
    };
    let proto = if app.addr.is_ipv6() { protocol::ICMPV6 } else { protocol::ICMP };
    let header = header(app, proto, None);
    let mut upper = vec![0; message.buffer_len()];
    message.emit(header.src, header.dst, &mut upper);
    whole(&header, &upper)
}

/// A piece of a datagram, mostly one that fits the others with its identification.
fn fragment(app: &App, source: &mut Source<'_>) -> Vec<u8> {
    let id = u32::from(source.u8() % 8);
    // Each identification stands for one datagram, so that pieces can meet.
    let upper: Vec<u8> = (0..200u32 + id * 100).map(|n| (n * (id + 1)) as u8).collect();
    let at = usize::from(source.u8()) * 8 % upper.len();
    let len = (usize::from(source.u8()) * 8).min(upper.len() - at);
    let end = at + len;
    let more = if source.u8() > 230 { source.u8() > 127 } else { end < upper.len() };
    let offset = if source.u8() > 230 { u32::from(source.u16() & !7) } else { at as u32 };
    let proto = source.pick(&[protocol::UDP, protocol::TCP, protocol::ICMP, protocol::ICMPV6]);
    whole(&header(app, proto, Some(Fragment { id, offset, more })), &upper[at..end])
}

/// An IPv6 packet with a chain of extension headers, or an IPv4 packet with options.
fn extensions(app: &App, source: &mut Source<'_>) -> Vec<u8> {
    let upper = udp_layer(app, source);
    let mut front = Vec::new();
    if !app.addr.is_ipv6() {
        let words = usize::from(source.u8() % 11);
        let mut octets = whole(&header(app, protocol::UDP, None), &upper);
        front.extend_from_slice(source.take(words * 4));
        front.resize(words * 4, 1);
        octets.splice(20..20, front);
        octets[0] = 0x45 + words as u8;
        let total = u16::try_from(octets.len()).unwrap_or(u16::MAX);
        octets[2..4].copy_from_slice(&total.to_be_bytes());
        write_ip_checksum(&mut octets);
        return octets;
    }
    let kinds: Vec<u8> = (0..source.u8() % 12).map(|_| source.pick(&[0, 43, 44, 60, 60, 135, 51])).collect();
    for (n, kind) in kinds.iter().enumerate() {
        let next = kinds.get(n + 1).copied().unwrap_or(protocol::UDP);
        let words = if *kind == 44 { 0 } else { source.u8() % 4 };
        let mut extension = vec![next, words, 0, 0];
        extension.extend_from_slice(source.take(4));
        extension.resize(8 + usize::from(words) * 8, 1);
        front.extend(extension);
    }
    front.extend(upper);
    let mut octets = whole(&header(app, protocol::UDP, None), &front);
    octets[6] = kinds.first().copied().unwrap_or(protocol::UDP);
    octets
}

/// What a device that offloads gives for a packet: mostly what is true of it, else whatever its header says, as far as the device believes it.
pub fn offloaded<'p>(octets: &'p [u8], source: &mut Source<'_>) -> Option<Packet<'p>> {
    let kind = source.u8();
    if kind < 224 {
        return Some(Packet::new(octets));
    }
    if kind < 228 {
        return Some(Packet { verify_checksum: false, segment_size: source.u16(), ..Packet::new(octets) });
    }
    let mut header = [0; vnet::HEADER];
    header[0] = source.u8() % 4;
    header[1] = source.pick(&[0, 1, 4, 5, 1, 4, 5, 3, 0x81, 0x85, 0xff]);
    let fields = [
        source.u16(),
        source.pick(&[0, 1, 7, 100, 536, 1_448, 9_000, u16::MAX]),
        source.pick(&[20, 40, 20, 40, 20, 40, 0, 21, 48, 60, u16::MAX]),
        source.pick(&[16, 6, 16, 6, 0, 17, u16::MAX]),
    ];
    for (field, value) in header[2..].chunks_exact_mut(2).zip(fields) {
        field.copy_from_slice(&value.to_ne_bytes());
    }
    match vnet::parse(&header, octets) {
        Ok(vnet::Meta { verify_checksum, segment_size }) => {
            Some(Packet { octets, verify_checksum, segment_size })
        }
        Err(_) => None,
    }
}

/// Damage, most of the time none.
fn spoil(octets: &mut Vec<u8>, source: &mut Source<'_>) {
    let damage = source.u8();
    if octets.is_empty() || damage < 176 {
        return;
    }
    let at = usize::from(source.u16()) % octets.len();
    match damage % 8 {
        0 | 1 => octets[at] ^= 1 << (source.u8() % 8),
        2 | 3 => octets[at] = source.u8(),
        4 => octets.truncate(at),
        5 => octets.extend_from_slice(source.take(at)),
        6 => {
            // A lie about the length.
            let lie = source.u16().to_be_bytes();
            let field = if octets[0] >> 4 == 4 { 2..4 } else { 4..6 };
            if let Some(field) = octets.get_mut(field) {
                field.copy_from_slice(&lie);
            }
        }
        _ => {
            octets.drain(..at);
        }
    }
    if damage >= 216 {
        // With checksums that hold, what lies behind them is reached.
        write_ip_checksum(octets);
        write_checksum(octets);
    }
}

fn write_ip_checksum(octets: &mut [u8]) {
    let Some(len) = octets.first().filter(|first| *first >> 4 == 4).map(|first| usize::from(first & 15) * 4)
    else {
        return;
    };
    if len >= 20 && octets.len() >= len {
        octets[10..12].fill(0);
        let sum = Checksum::new().with(&octets[..len]).finish();
        octets[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

/// The checksum of a TCP header behind an IP header, where there is room for one.
pub fn write_checksum(octets: &mut [u8]) {
    let Some((src, dst)) = ip::ends(octets) else { return };
    let (start, proto) = match src {
        IpAddr::V4(_) => (usize::from(octets[0] & 15) * 4, octets.get(9).copied()),
        IpAddr::V6(_) => (40, octets.get(6).copied()),
    };
    if proto == Some(protocol::TCP) && octets.len() >= start + 18 && start >= 20 {
        octets[start + 16..start + 18].fill(0);
        let tcp = &octets[start..];
        let sum = Checksum::pseudo_header(src, dst, protocol::TCP, tcp.len() as u32).with(tcp).finish();
        octets[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
    }
}
