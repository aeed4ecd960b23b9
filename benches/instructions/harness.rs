//! An engine with a proxy behind it that grants everything, as far as it takes to bring a flow to where a case begins.

use crate::common::{APP, REMOTE, segment, tcp_packet};
use std::collections::BTreeMap;
use std::net::IpAddr;
use ztun::config::{EngineConfig, Proxy};
use ztun::engine::{Command, Engine, Output, SocketId};
use ztun::stack::{OffloadLevel, Packet, StackConfig};
use ztun::time::Instant;
use ztun::wire::tcp::{TcpFlags, TcpOptions, TcpSegment};

/// The engine and the time.
pub(crate) struct World {
    pub(crate) engine: Engine,
    micros: u64,
    /// Octets that each socket of the engine has said to the proxy, and answers it was given.
    said: BTreeMap<u64, (usize, usize)>,
}

/// An established connection of the app.
pub(crate) struct Connection {
    pub(crate) port: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) socket: SocketId,
}

/// Greeting and request of SOCKS5, without authentication.
const SAID: [usize; 2] = [3, 3 + 10];
const ANSWERS: [&[u8]; 2] = [&[5, 0], &[5, 0, 0, 1, 10, 0, 0, 1, 0x1f, 0x90]];

impl World {
    pub(crate) fn new() -> World {
        World::with(EngineConfig {
            stack: StackConfig { offload: OffloadLevel::Full, ..StackConfig::default() },
            ..EngineConfig::default()
        })
    }

    /// With other bounds, and a proxy without a pool.
    pub(crate) fn with(config: EngineConfig) -> World {
        let proxy = Proxy { addr: ([10, 0, 0, 1], 1080).into(), credentials: None };
        let config = EngineConfig { proxies: vec![proxy], pool: 0, ..config };
        World { engine: Engine::new(config, false, [7; 16]), micros: 1_000_000, said: BTreeMap::new() }
    }

    /// Each look is 50 µs after the last.
    pub(crate) fn now(&mut self) -> Instant {
        self.micros += 50;
        Instant::from_micros(self.micros)
    }

    /// Time passes in which nothing happens.
    #[allow(dead_code, reason = "for tests/scale.rs")]
    pub(crate) fn skip(&mut self, time: std::time::Duration) {
        self.micros += time.as_micros() as u64;
    }

    /// Commands are carried out until there are none; the proxy answers. The sockets that it was told to open.
    pub(crate) fn settle(&mut self, now: Instant) -> Vec<SocketId> {
        let mut opened = Vec::new();
        while let Some(command) = self.engine.poll_command(now) {
            match command {
                Command::Dial { socket, .. } => {
                    opened.push(socket);
                    self.said.insert(socket.to_bits(), (0, 0));
                    self.engine.handle_connected(socket, now);
                    self.answer(socket, now);
                }
                Command::OpenUdp { socket, .. } => {
                    opened.push(socket);
                    self.engine.handle_udp_open(socket, now);
                }
                Command::Write { socket } | Command::Read { socket } => self.answer(socket, now),
                Command::Identify { .. }
                | Command::SendDatagram { .. }
                | Command::Shutdown { .. }
                | Command::Close { .. } => {}
            }
        }
        opened
    }

    /// The proxy hears what is said to it, and answers.
    fn answer(&mut self, socket: SocketId, now: Instant) {
        let Some((mut said, mut answered)) = self.said.get(&socket.to_bits()).copied() else { return };
        loop {
            while let Some((front, back)) = self.engine.write_slices(socket) {
                let octets = front.len() + back.len();
                if octets == 0 {
                    break;
                }
                said += octets;
                self.engine.write_done(socket, octets, now);
            }
            match SAID.get(answered) {
                Some(&whole) if said >= whole => {
                    let answer = ANSWERS[answered];
                    let (front, _) = self.engine.read_space(socket).expect("an answer is waited for");
                    front[..answer.len()].copy_from_slice(answer);
                    self.engine.read_done(socket, answer.len(), now);
                    answered += 1;
                }
                _ => break,
            }
        }
        // Behind its last answer a connection carries what others say.
        if answered == ANSWERS.len() {
            self.said.remove(&socket.to_bits());
        } else {
            self.said.insert(socket.to_bits(), (said, answered));
        }
    }

    /// A packet of which nothing is to be carried.
    pub(crate) fn give(&mut self, packet: &[u8], now: Instant) {
        let output = self.engine.handle_packet(Packet { verify_checksum: false, ..Packet::new(packet) }, now);
        assert!(matches!(output, Output::None), "it gives {output:?}");
    }

    /// The headers of the packets that wait, and the octets behind them.
    pub(crate) fn drain(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        while let Some(packet) = self.engine.poll_transmit(now) {
            packets.push([packet.header, packet.payload[0], packet.payload[1]].concat());
        }
        packets
    }

    /// A connection through the proxy.
    pub(crate) fn connect(&mut self, port: u16) -> Connection {
        let now = self.now();
        self.give(&syn(APP, port), now);
        let sockets = self.settle(now);
        let [socket] = sockets[..] else { panic!("a SYN dials {sockets:?}") };
        let packets = self.drain(now);
        let [answer] = &packets[..] else { panic!("a grant gives {} packets", packets.len()) };
        let answer = ztun::wire::ip::IpPacket::parse(answer).expect("a packet");
        let answer = TcpSegment::parse(answer.src, answer.dst, answer.payload, false).expect("a segment");
        let ack = answer.seq.0.wrapping_add(1);
        self.give(&tcp_packet((APP, REMOTE), &segment(port, ISN + 1, ack, TcpFlags::ACK, &[])), now);
        self.settle(now);
        assert!(self.drain(now).is_empty(), "all is said");
        Connection { port, seq: ISN + 1, ack, socket }
    }
}

/// The app's first sequence number.
pub(crate) const ISN: u32 = 99;

/// A SYN of `app` with the options that kernels send.
pub(crate) fn syn(app: IpAddr, port: u16) -> Vec<u8> {
    let mut syn = segment(port, ISN, 0, TcpFlags::SYN, &[]);
    syn.options = TcpOptions {
        mss: Some(1_460),
        window_scale: Some(10),
        sack_permitted: true,
        ..TcpOptions::default()
    };
    tcp_packet((app, REMOTE), &syn)
}
