//! The engine between any apps and any sockets: no panic, no socket that is forgotten or named after its end, tables within their
//! limits, and one connection on the direct way out that nothing disturbs.

use super::packets::{Apps, offloaded, write_checksum};
use super::source::Source;
use super::stack::{self, checked};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use ztun::config::{Accept, Cidr, Credentials, DnsMode, EngineConfig, Proxy};
use ztun::engine::{Command, Engine, Output, SocketError, SocketId};
use ztun::outbound::rule::{Route, Rule};
use ztun::stack::{OffloadLevel, Packet};
use ztun::time::{Duration, Instant};
use ztun::wire::SeqNumber;
use ztun::wire::ip::{IpHeader, IpPacket, protocol};
use ztun::wire::tcp::{TcpFlags, TcpOptions, TcpSegment};

const MAX_UDP: usize = 5;

pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let mut harness = Harness::new(&mut source);
    while !source.is_empty() {
        harness.step(&mut source);
    }
    harness.finish();
}

fn addr(text: &str) -> IpAddr {
    text.parse().expect("address")
}

const GOOD_APP: &str = "198.18.7.7";
const GOOD_TARGET: &str = "203.0.113.77";
const GOOD_PORT: u16 = 60_000;

struct Harness {
    engine: Engine,
    now: Instant,
    apps: Apps,
    /// Sockets that are open, by their bits; the flag tells datagrams.
    sockets: BTreeMap<u64, (SocketId, bool)>,
    good: Option<SocketId>,
    snd_nxt: SeqNumber,
    rcv_nxt: SeqNumber,
    stopped: bool,
}

impl Harness {
    fn new(source: &mut Source<'_>) -> Harness {
        let kind = source.u8();
        let proxy = |addr: &str| Proxy {
            addr: addr.parse().expect("address"),
            credentials: (kind & 1 != 0).then(|| Credentials { user: "u".into(), password: "p".into() }),
        };
        let rule =
            Rule { dst: Some(Cidr::host(addr(GOOD_TARGET))), ports: None, proto: None, route: Route::Direct };
        let config = EngineConfig {
            stack: stack::config(if kind & 2 != 0 { OffloadLevel::Full } else { OffloadLevel::Off }),
            proxies: vec![proxy("192.0.2.10:1080"), proxy("[2001:db8:1::1]:1080")],
            rules: vec![rule],
            accept: if kind & 4 != 0 { Accept::Early } else { Accept::Late },
            dns: if kind & 32 != 0 { DnsMode::Tcp } else { DnsMode::Auto },
            dns_local: vec![addr("198.18.0.2")],
            dns_server: (kind & 8 != 0).then(|| "192.0.2.53:53".parse().expect("address")),
            max_udp: MAX_UDP,
            pool: usize::from(kind >> 6),
            max_dns: 4,
            ..EngineConfig::default()
        };
        let mut harness = Harness {
            engine: Engine::new(config, kind & 16 != 0, [6; 16]),
            now: Instant::from_millis(1_000),
            apps: Apps::default(),
            sockets: BTreeMap::new(),
            good: None,
            snd_nxt: SeqNumber(0xffff_ff00),
            rcv_nxt: SeqNumber(0),
            stopped: false,
        };
        harness.connect();
        harness
    }

    fn step(&mut self, source: &mut Source<'_>) {
        match source.u8() {
            0..=119 => {
                let octets = self.apps.packet(source);
                let ours = ztun::wire::ip::ends(&octets).is_some_and(|(src, _)| src == addr(GOOD_APP));
                if let Some(packet) = offloaded(&octets, source).filter(|_| !ours) {
                    self.packet(packet, source.u8());
                }
            }
            120..=139 => self.open(source),
            140..=219 => self.socket(source),
            220..=247 => self.wait(source),
            _ => self.exchange(),
        }
        self.settle();
        assert!(self.engine.associations() <= MAX_UDP);
        assert_eq!(self.engine.sockets(), self.sockets.len(), "sockets of both agree");
    }

    fn packet(&mut self, packet: Packet<'_>, taste: u8) {
        match self.engine.handle_packet(packet, self.now) {
            Output::None => {}
            Output::Reassembled(octets) => self.packet(Packet::new(&octets), taste),
            Output::Stream { socket, flow, payload } => {
                assert!(self.sockets.contains_key(&socket.to_bits()), "octets for a socket that is open");
                let taken = if Some(socket) == self.good {
                    payload.len()
                } else {
                    payload.len() * usize::from(taste) / 255
                };
                self.engine.stream_written(flow, payload, taken, self.now);
            }
            Output::Datagram { socket, header, .. } => {
                assert!(self.sockets.contains_key(&socket.to_bits()), "a datagram for a socket that is open");
                assert!(header.as_slice().len() <= 22);
            }
        }
    }

    /// A connection as it is opened every day, through the proxy.
    fn open(&mut self, source: &mut Source<'_>) {
        let (index, syn) = self.apps.syn(source);
        let taste = source.u8();
        self.packet(Packet::new(&syn), taste);
        self.settle();
        if let Some((socket, false)) = self.sockets.values().next_back().copied() {
            self.engine.handle_connected(socket, self.now);
            self.settle();
            for answer in [&[5, 0][..], &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0, b'h', b'i']] {
                self.written(socket, usize::MAX);
                self.read(socket, answer);
                self.settle();
            }
        }
        let ack = self.apps.ack(index);
        self.packet(Packet::new(&ack), taste);
    }

    /// Something happens to a socket.
    fn socket(&mut self, source: &mut Source<'_>) {
        let kind = source.u8();
        let others: Vec<(SocketId, bool)> =
            self.sockets.values().copied().filter(|(socket, _)| Some(*socket) != self.good).collect();
        if others.is_empty() {
            return;
        }
        let (socket, udp) = others[usize::from(source.u8()) % others.len()];
        let now = self.now;
        if udp {
            let from: Option<SocketAddr> =
                Some(SocketAddr::new(addr("203.0.113.5"), 53)).filter(|_| kind & 1 == 0);
            let mut octets =
                source.pick(&[&[0, 0, 0, 1, 203, 0, 113, 5, 0, 53][..], &[], &[0, 0, 1]]).to_vec();
            let len = usize::from(source.u8());
            octets.extend_from_slice(source.take(len));
            let mut packets = Vec::new();
            if let Some(mut datagram) = self.engine.handle_datagram(socket, from, &octets, now) {
                while let Some(packet) = datagram.next_packet() {
                    packets.push(checked(&packet, OffloadLevel::Full));
                }
            }
            if kind > 240 {
                self.engine.handle_socket_error(socket, SocketError::Refused, now);
            }
            return;
        }
        match kind % 20 {
            0..=2 => self.engine.handle_connected(socket, now),
            3 => {
                let errors = [
                    SocketError::Refused,
                    SocketError::Reset,
                    SocketError::Network,
                    SocketError::Host,
                    SocketError::TimedOut,
                    SocketError::Exhausted,
                    SocketError::Prohibited,
                    SocketError::Other,
                ];
                self.engine.handle_socket_error(socket, source.pick(&errors), now);
            }
            4 => self.engine.read_eof(socket, now),
            5 => self.engine.handle_write_error(socket, SocketError::Reset, now),
            6..=8 => self.written(socket, usize::from(source.u16())),
            16 => {
                let _ = self.engine.handle_network_change(&[socket], now);
            }
            17 => self.engine.pause(),
            18 => {
                let _ = self.engine.resume(now);
            }
            19 => self.engine.watch_network(),
            kind => {
                let octets: Vec<u8> = match kind {
                    9 | 10 => vec![5, 0],
                    11 => vec![5, 2, 1, 0],
                    12 | 13 => vec![5, 0, 0, 1, 203, 0, 113, 5, 0, 80, b'!', b'!'],
                    14 => vec![5, source.u8(), 0, 1, 0, 0, 0, 0, 0, 0],
                    _ => {
                        let len = usize::from(source.u8());
                        source.take(len).to_vec()
                    }
                };
                self.read(socket, &octets);
            }
        }
    }

    /// Octets have come to a socket.
    fn read(&mut self, socket: SocketId, mut octets: &[u8]) {
        while !octets.is_empty() {
            let Some((first, _)) = self.engine.read_space(socket) else { return };
            let len = first.len().min(octets.len());
            if len == 0 {
                return;
            }
            first[..len].copy_from_slice(&octets[..len]);
            self.engine.read_done(socket, len, self.now);
            octets = &octets[len..];
        }
    }

    /// A socket takes at most `most` octets.
    fn written(&mut self, socket: SocketId, most: usize) {
        if let Some((first, second)) = self.engine.write_slices(socket) {
            let len = most.min(first.len() + second.len());
            self.engine.write_done(socket, len, self.now);
        }
    }

    fn wait(&mut self, source: &mut Source<'_>) {
        self.exchange();
        let step = Duration::from_micros(u64::from(source.u16())) * source.pick(&[1, 100, 1_000, 20_000]);
        let end = self.now + step;
        if source.u8().is_multiple_of(2) {
            for _ in 0..200 {
                let Some(next) = self.engine.poll_timeout().filter(|next| *next < end) else { break };
                self.now = self.now.max(next);
                self.engine.handle_timeout(self.now);
                self.settle();
            }
        }
        self.now = end;
        self.engine.handle_timeout(self.now);
        self.settle();
    }

    fn settle(&mut self) {
        loop {
            let mut moved = 0;
            while let Some(command) = self.engine.poll_command(self.now) {
                moved += 1;
                assert!(moved < 10_000, "the engine comes to rest");
                self.obey(command);
            }
            let mut packets = Vec::new();
            while let Some(transmit) = self.engine.poll_transmit(self.now) {
                packets.push(checked(&transmit, OffloadLevel::Full));
                assert!(packets.len() < 20_000, "the engine comes to rest");
            }
            if packets.is_empty() && moved == 0 {
                return;
            }
            for packet in packets {
                self.apps.saw(&packet);
                self.good_saw(&packet);
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let open = |sockets: &BTreeMap<u64, (SocketId, bool)>, socket: SocketId| {
            assert!(sockets.contains_key(&socket.to_bits()), "a command for a socket that is open");
        };
        match command {
            Command::Identify { asker, local, .. } => {
                let local_proxy = local.port.is_multiple_of(3);
                self.engine.handle_owner(asker, local_proxy, self.now);
            }
            Command::Dial { socket, to, .. } => {
                assert!(self.sockets.insert(socket.to_bits(), (socket, false)).is_none(), "a new name");
                if to.ip() == addr(GOOD_TARGET) {
                    self.good = Some(socket);
                    self.engine.handle_connected(socket, self.now);
                }
            }
            Command::OpenUdp { socket, .. } => {
                assert!(self.sockets.insert(socket.to_bits(), (socket, true)).is_none(), "a new name");
                self.engine.handle_udp_open(socket, self.now);
            }
            Command::SendDatagram { socket, .. } | Command::Read { socket } | Command::Write { socket } => {
                open(&self.sockets, socket);
            }
            Command::Shutdown { socket } => {
                open(&self.sockets, socket);
                assert!(self.stopped || Some(socket) != self.good);
            }
            Command::Close { socket, .. } => {
                assert!(self.sockets.remove(&socket.to_bits()).is_some(), "closed once");
                assert!(self.stopped || Some(socket) != self.good, "the good connection was closed");
            }
        }
    }

    fn good_saw(&mut self, octets: &[u8]) {
        let packet = IpPacket::parse(octets).expect("checked");
        if packet.dst != addr(GOOD_APP) || packet.protocol != protocol::TCP {
            return;
        }
        let segment = TcpSegment::parse(packet.src, packet.dst, packet.payload, false).expect("checked");
        assert!(self.stopped || !segment.flags.rst(), "the good connection was reset");
        if segment.flags.syn() {
            self.rcv_nxt = segment.seq;
        }
        if segment.seq == self.rcv_nxt {
            self.rcv_nxt = segment.seq + segment.len();
        }
    }

    fn good_segment(&mut self, flags: TcpFlags, data: &[u8]) {
        let segment = TcpSegment {
            src_port: GOOD_PORT,
            dst_port: 80,
            seq: self.snd_nxt,
            ack: self.rcv_nxt,
            flags,
            window: u16::MAX,
            urgent: 0,
            options: TcpOptions::default(),
            payload: &[],
        };
        let header = IpHeader {
            src: addr(GOOD_APP),
            dst: addr(GOOD_TARGET),
            protocol: protocol::TCP,
            hop_limit: 64,
            id: 0,
            dont_fragment: true,
            fragment: None,
        };
        let mut octets = vec![0; 40];
        header.emit(&mut octets, 20 + data.len());
        segment.emit_header(&mut octets[20..]);
        octets.extend_from_slice(data);
        write_checksum(&mut octets);
        self.snd_nxt += segment.len() + data.len() as u32;
        self.packet(Packet::new(&octets), 255);
        self.settle();
    }

    fn connect(&mut self) {
        self.good_segment(TcpFlags::SYN, &[]);
        self.good_segment(TcpFlags::ACK, &[]);
        assert!(self.good.is_some(), "the direct way out was dialled");
        self.exchange();
    }

    /// Octets both ways over the good connection.
    fn exchange(&mut self) {
        let text = b"the good connection";
        let before = self.engine.stats().upload_octets;
        self.good_segment(TcpFlags::ACK, text);
        assert_eq!(self.engine.stats().upload_octets, before + text.len() as u64);
        let socket = self.good.expect("connected");
        let before = self.rcv_nxt;
        // The memory of all connections may be spent by the others.
        let room = self.engine.read_space(socket).map_or(0, |(first, _)| first.len().min(text.len()));
        self.read(socket, &text[..room]);
        self.settle();
        assert_eq!(self.rcv_nxt, before + room as u32, "the octets came at once");
        self.good_segment(TcpFlags::ACK, &[]);
    }

    /// An orderly end, and then the other one: nothing is left.
    fn finish(mut self) {
        self.exchange();
        self.stopped = true;
        self.engine.shutdown(self.now);
        self.settle();
        self.now = self.now + Duration::from_secs(3);
        self.engine.handle_timeout(self.now);
        self.settle();
        self.engine.abort(self.now);
        self.settle();
        assert_eq!((self.engine.tcp_flows(), self.engine.associations()), (0, 0));
        assert_eq!((self.engine.sockets(), self.sockets.len()), (0, 0), "every socket was closed");
    }
}
