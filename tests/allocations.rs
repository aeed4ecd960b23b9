//! No allocation per packet in the steady state: counted by an allocator of the test's own.
//!
//! A connection is brought up and used for a while, so that every ring, list and table has the size it needs; then the same again is counted.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "the proxy of a test runs beside it")]

#[allow(dead_code, reason = "shared with other tests")]
mod counting;

#[allow(dead_code, reason = "shared with the conformance tests")]
#[allow(unreachable_pub, reason = "a module of a test has nobody outside")]
#[path = "tcp_conformance/dsl.rs"]
mod dsl;

use counting::{allocations, so_far};
use dsl::{Family, Peer, both, ms};
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use std::cell::Cell;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::rc::Rc;
use ztun::config::{EngineConfig, Proxy};
use ztun::driver::{Clock, Driver, EgressBinding, Parts, Signals};
use ztun::engine::Engine;
use ztun::stack::{Ingress, Offload, OffloadLevel, Packet, Transmit};
use ztun::tun::{Device, LoopWaker, Received};
use ztun::wire::ip::{IpHeader, protocol};
use ztun::wire::udp;

const ROUNDS: usize = 2_000;

/// Takes what the stack sends; the octets of text in it.
fn taken(peer: &mut Peer) -> usize {
    let mut octets = 0;
    while let Some(packet) = peer.stack.poll_transmit(peer.now) {
        octets += packet.payload[0].len() + packet.payload[1].len();
    }
    octets
}

fn give(peer: &mut Peer, octets: &[u8]) {
    if let Ok(Ingress::Stream { flow, payload }) = peer.stack.handle_packet(Packet::new(octets), peer.now) {
        peer.stack.tcp(flow).unwrap().keep(payload, payload.len(), peer.now);
    }
    while peer.stack.poll_event().is_some() {}
}

/// Segments of text from the app, handed over at once, and their acknowledgements.
#[test]
fn an_upload_allocates_nothing() {
    both(|family| {
        let mut peer = Peer::new(family).like_a_kernel().open();
        let mut segments = Vec::new();
        for _ in 0..2 * ROUNDS {
            segments.push(peer.seg().data(&[7; 1_000]).octets());
            peer.snd_nxt += 1_000;
        }
        let (first, second) = segments.split_at(ROUNDS);
        let mut act = |segments: &[Vec<u8>]| {
            for segment in segments {
                give(&mut peer, segment);
                peer.now = peer.now + ms(1);
                peer.stack.handle_timeout(peer.now);
                taken(&mut peer);
            }
        };
        act(first);
        assert_eq!(allocations(|| act(second)), 0, "{family:?}");
    });
}

/// Text to the app, and the app's acknowledgements.
#[test]
fn a_download_allocates_nothing() {
    both(|family: Family| {
        let mut peer = Peer::new(family).open();
        let size = 1_000;
        let mut acks = Vec::new();
        for _ in 0..2 * ROUNDS {
            peer.rcv_nxt += size;
            acks.push(peer.seg().octets());
        }
        let (first, second) = acks.split_at(ROUNDS);
        let text = vec![9; size as usize];
        let mut act = |acks: &[Vec<u8>]| {
            for ack in acks {
                assert_eq!(peer.write(&text), text.len());
                assert_eq!(taken(&mut peer), text.len());
                peer.now = peer.now + ms(1);
                give(&mut peer, ack);
                peer.stack.handle_timeout(peer.now);
            }
        };
        act(first);
        assert_eq!(allocations(|| act(second)), 0, "{family:?}");
    });
}

/// Datagrams in one burst, and their octets of payload.
const BURST: usize = 40;
const SIZE: usize = 64;
/// Bursts until everything has its size, and those that are counted.
const FIRST: usize = 100;
const COUNTED: usize = 500;

/// A device with an app behind it, which sends a burst of datagrams whenever it has the answers to the one before. After the last it is gone.
struct App {
    /// Wakes the loop: what is written into the one is an event of the other.
    wake: UnixStream,
    waker: UnixStream,
    packet: Vec<u8>,
    /// Datagrams of the burst that were not taken yet, and answers that have not come yet.
    left: usize,
    missing: usize,
    bursts: usize,
    /// Packets with answers: fewer than answers when they come in trains.
    packets: usize,
    /// The counter at the first burst that is counted, and at the end.
    counts: Rc<Cell<(u64, u64)>>,
}

impl App {
    fn new(counts: Rc<Cell<(u64, u64)>>) -> App {
        let (wake, waker) = UnixStream::pair().unwrap();
        let (app, target) = (IpAddr::from([198, 18, 0, 1]), IpAddr::from([203, 0, 113, 5]));
        let payload = [7; SIZE];
        let ip = IpHeader {
            src: app,
            dst: target,
            protocol: protocol::UDP,
            hop_limit: 64,
            id: 0,
            dont_fragment: true,
            fragment: None,
        };
        let mut packet = vec![0; 28];
        ip.emit(&mut packet, udp::HEADER + SIZE);
        udp::emit_header(&mut packet[20..], (app, 4_000), (target, 443), &payload);
        packet.extend(payload);
        App { wake, waker, packet, left: 1, missing: 1, bursts: 0, packets: 0, counts }
    }

    fn answered(&mut self, answers: usize) {
        self.packets += 1;
        self.missing = self.missing.checked_sub(answers).expect("an answer to each, once");
        if self.missing > 0 {
            return;
        }
        self.bursts += 1;
        (self.left, self.missing) = (BURST, BURST);
        if self.bursts == FIRST {
            self.packets = 0;
            self.counts.set((so_far(), 0));
        }
        self.waker.write_all(&[1]).unwrap();
    }
}

impl Device for App {
    fn listen(&mut self, registry: &Registry, token: Token, _: &mut LoopWaker) -> io::Result<()> {
        registry.register(&mut self.wake, token, Interest::READABLE | Interest::WRITABLE)
    }

    fn ignore(&mut self, registry: &Registry) -> io::Result<()> {
        registry.deregister(&mut self.wake)
    }

    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<Received> {
        if self.left == 0 {
            while matches!(self.wake.read(&mut [0; 8]), Ok(1..)) {}
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.bursts == FIRST + COUNTED {
            self.counts.set((self.counts.get().0, so_far()));
            assert!(self.packets < COUNTED * BURST, "{} packets: some answers come in trains", self.packets);
            return Err(io::ErrorKind::NotFound.into());
        }
        self.left -= 1;
        buffer[..self.packet.len()].copy_from_slice(&self.packet);
        Ok(Received { len: self.packet.len(), verify_checksum: true, segment_size: 0 })
    }

    fn send(&mut self, packet: &Transmit<'_>) -> io::Result<()> {
        assert_eq!(packet.len(), self.packet.len());
        self.answered(1);
        Ok(())
    }

    fn send_train(&mut self, header: &[u8], pieces: &[&[u8]], _: Offload) -> io::Result<()> {
        assert!(header.len() == 28 && pieces.iter().all(|piece| piece.len() == SIZE));
        self.answered(pieces.len());
        Ok(())
    }

    fn offload(&self) -> OffloadLevel {
        OffloadLevel::Full
    }

    fn mtu(&self) -> u16 {
        1_500
    }

    fn name(&self) -> &str {
        "app"
    }
}

/// A proxy for one association, whose relay is the target itself: it gives back every datagram, those of a burst when it has them all.
fn relay() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut control, _) = listener.accept().unwrap();
        let relay = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = relay.local_addr().unwrap().port().to_be_bytes();
        control.read_exact(&mut [0; 3]).unwrap();
        control.write_all(&[5, 0]).unwrap();
        control.read_exact(&mut [0; 10]).unwrap();
        control.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, port[0], port[1]]).unwrap();
        let mut buffer = [0; 2_000];
        for burst in std::iter::once(1).chain(std::iter::repeat(BURST)) {
            let heard: Vec<_> = (0..burst).map(|_| relay.recv_from(&mut buffer).unwrap()).collect();
            for (octets, from) in heard {
                // The router's end is the end of the test.
                drop(relay.send_to(&buffer[..octets], from));
            }
        }
    });
    proxy
}

/// The whole way of datagrams: device, engine, sockets, both ways, in bursts that leave and come in batches.
#[test]
fn datagrams_allocate_nothing_on_their_whole_way() {
    let counts = Rc::new(Cell::new((0, 0)));
    let device = App::new(Rc::clone(&counts));
    let mut config = EngineConfig {
        proxies: vec![Proxy { addr: relay(), credentials: None }],
        pool: 0,
        ..EngineConfig::default()
    };
    config.stack.offload = OffloadLevel::Full;
    let parts = Parts {
        device,
        engine: Engine::new(config, false, [3; 16]),
        binding: EgressBinding::default(),
        owner: None,
        watch: None,
        services: Vec::new(),
    };
    let mut driver = Driver::new(parts, Signals::new().unwrap(), Clock::new()).unwrap();
    assert_eq!(driver.run().unwrap_err().kind(), io::ErrorKind::NotFound);
    let (before, after) = counts.get();
    assert!(before > 0);
    assert_eq!(after - before, 0, "allocations in {COUNTED} bursts");
}
