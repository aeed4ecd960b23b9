//! A world in virtual time around the engine: an app (smoltcp as its kernel) on one side, sockets and a SOCKS5 server in memory on
//! the other.
//!
//! The world obeys every [`Command`] at once, moves octets between the engine and in-memory sockets, and advances time only when
//! nothing is left to deliver.

#![allow(unreachable_pub, reason = "a module of a test has nobody outside")]

use smoltcp::iface::{Config as IfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use ztun::config::EngineConfig;
use ztun::engine::{Asker, Command, Engine, Output, SocketError, SocketId};
use ztun::stack::{Packet, datagrams};
use ztun::time::{Duration, Instant};

/// The app's address.
pub const APP: &str = "198.18.0.1";
/// Its address of the other family.
pub const APP6: &str = "fd7a:7a74:756e::1";

#[derive(Default)]
struct Wire {
    to_app: VecDeque<Vec<u8>>,
    to_engine: VecDeque<Vec<u8>>,
}

pub struct Rx(Vec<u8>);
pub struct Tx<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut buffer = vec![0; len];
        let result = f(&mut buffer);
        self.0.push_back(buffer);
        result
    }
}

impl smoltcp::phy::Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Rx, Tx<'_>)> {
        let packet = self.to_app.pop_front()?;
        Some((Rx(packet), Tx(&mut self.to_engine)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.to_engine))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities.checksum.tcp = Checksum::Both;
        capabilities
    }
}

/// One socket of the engine, and what its far end does.
#[derive(Default, Debug)]
pub struct FakeSocket {
    pub to: Option<SocketAddr>,
    pub udp: bool,
    /// Of the IPv6 family, when it is not connected.
    pub v6: bool,
    /// Octets the engine has written.
    pub written: Vec<u8>,
    /// Octets for the engine to read.
    pub inbound: VecDeque<u8>,
    /// After `inbound`: end of file.
    pub eof: bool,
    /// The engine has shut its writing half down.
    pub shut: bool,
    /// Octets that the socket takes before it blocks; `None` is no limit.
    pub room: Option<usize>,
    /// Datagrams sent: destination and octets.
    pub datagrams: Vec<(Option<SocketAddr>, Vec<u8>)>,
}

pub struct World {
    pub engine: Engine,
    pub now: Instant,
    pub sockets: BTreeMap<u64, FakeSocket>,
    ids: BTreeMap<u64, SocketId>,
    /// How the engine's sockets were closed: id and whether with RST.
    pub closed: Vec<(SocketId, bool)>,
    /// Sockets dialled and not yet answered.
    pub dialled: VecDeque<(SocketId, SocketAddr)>,
    /// UDP sockets opened.
    pub udp: Vec<SocketId>,
    /// Answers to `Identify`.
    pub local_proxy: bool,
    /// The TUN takes no packets.
    pub tun_blocked: bool,
    wire: Wire,
    interface: Interface,
    pub app: SocketSet<'static>,
    next_port: u16,
}

impl World {
    pub fn new(config: EngineConfig, identify: bool) -> World {
        let mut wire = Wire::default();
        let mut iface_config = IfaceConfig::new(HardwareAddress::Ip);
        iface_config.random_seed = 7;
        let mut interface = Interface::new(iface_config, &mut wire, smoltcp::time::Instant::ZERO);
        let app: IpAddress = APP.parse().expect("address");
        let app6: IpAddress = APP6.parse().expect("address");
        interface.update_ip_addrs(|addrs| {
            addrs.push(IpCidr::new(app, 16)).expect("room for one address");
            addrs.push(IpCidr::new(app6, 64)).expect("room for two addresses");
        });
        let gateway = "198.18.0.2".parse().expect("address");
        interface.routes_mut().add_default_ipv4_route(gateway).expect("room for one route");
        World {
            engine: Engine::new(config, identify, [3; 16]),
            now: Instant::from_millis(1_000),
            sockets: BTreeMap::new(),
            ids: BTreeMap::new(),
            closed: Vec::new(),
            dialled: VecDeque::new(),
            udp: Vec::new(),
            local_proxy: false,
            tun_blocked: false,
            wire,
            interface,
            app: SocketSet::new(Vec::new()),
            next_port: 40_000,
        }
    }

    /// An app's socket that connects to `remote`.
    pub fn connect(&mut self, remote: SocketAddr) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 65_536]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        self.next_port += 1;
        let local = self.next_port;
        socket.connect(self.interface.context(), endpoint(remote), local).expect("connect");
        self.app.add(socket)
    }

    /// An app's UDP socket.
    pub fn bind_udp(&mut self) -> SocketHandle {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 65_536]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        self.next_port += 1;
        socket.bind(self.next_port).expect("bind");
        self.app.add(socket)
    }

    pub fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.app.get_mut(handle)
    }

    pub fn udp_app(&mut self, handle: SocketHandle) -> &mut udp::Socket<'static> {
        self.app.get_mut(handle)
    }

    /// Everything the app can read at present.
    pub fn read(&mut self, handle: SocketHandle) -> Vec<u8> {
        let mut octets = Vec::new();
        let socket = self.tcp(handle);
        while socket.can_recv() {
            socket
                .recv(|data| {
                    octets.extend_from_slice(data);
                    (data.len(), ())
                })
                .expect("readable");
        }
        octets
    }

    /// A connection is established.
    pub fn accept(&mut self, socket: SocketId) {
        self.engine.handle_connected(socket, self.now);
    }

    /// The connection the engine dialled last; it is established at once.
    pub fn accept_dialled(&mut self) -> SocketId {
        self.settle();
        let (socket, _) = self.dialled.pop_front().expect("the engine has dialled");
        self.accept(socket);
        self.settle();
        socket
    }

    /// A dial fails.
    pub fn fail(&mut self, socket: SocketId, error: SocketError) {
        self.engine.handle_socket_error(socket, error, self.now);
        self.settle();
    }

    /// Octets come to a socket.
    pub fn push(&mut self, socket: SocketId, octets: &[u8]) {
        if let Some(fake) = self.sockets.get_mut(&socket.to_bits()) {
            fake.inbound.extend(octets);
        }
        self.settle();
    }

    /// The far end closes its half.
    pub fn push_eof(&mut self, socket: SocketId) {
        if let Some(fake) = self.sockets.get_mut(&socket.to_bits()) {
            fake.eof = true;
        }
        self.settle();
    }

    /// What the engine has written to a socket since the last call.
    pub fn take_written(&mut self, socket: SocketId) -> Vec<u8> {
        self.settle();
        self.sockets
            .get_mut(&socket.to_bits())
            .map(|fake| std::mem::take(&mut fake.written))
            .unwrap_or_default()
    }

    pub fn fake(&mut self, socket: SocketId) -> &mut FakeSocket {
        self.sockets.get_mut(&socket.to_bits()).expect("the socket is open")
    }

    pub fn is_open(&self, socket: SocketId) -> bool {
        self.sockets.contains_key(&socket.to_bits())
    }

    /// A whole SOCKS5 handshake without authentication: greeting, method, request, grant.
    pub fn grant(&mut self, socket: SocketId) {
        assert_eq!(self.take_written(socket), [5, 1, 0], "the greeting offers one method");
        self.push(socket, &[5, 0]);
        let request = self.take_written(socket);
        assert_eq!(request.get(..3), Some(&[5, 1, 0][..]), "a CONNECT request: {request:?}");
        self.push(socket, &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    }

    /// Delivers everything that can be delivered without time passing.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.step() {
                return;
            }
        }
        panic!("the world does not come to rest");
    }

    fn step(&mut self) -> bool {
        let mut moved = false;
        let smol_now =
            smoltcp::time::Instant::from_micros(i64::try_from(self.now.as_micros()).expect("small"));
        self.interface.poll(smol_now, &mut self.wire, &mut self.app);
        while let Some(packet) = self.wire.to_engine.pop_front() {
            moved = true;
            self.packet(&packet);
        }
        let ids: Vec<SocketId> = self.ids.values().copied().collect();
        for id in ids {
            moved |= self.pump(id);
        }
        while let Some(command) = self.engine.poll_command(self.now) {
            moved = true;
            self.obey(command);
        }
        while !self.tun_blocked
            && let Some(packet) = self.engine.poll_transmit(self.now)
        {
            moved = true;
            let octets = [packet.header, packet.payload[0], packet.payload[1]].concat();
            self.wire.to_app.push_back(octets);
        }
        moved
    }

    fn packet(&mut self, packet: &[u8]) {
        match self.engine.handle_packet(Packet::new(packet), self.now) {
            Output::None => {}
            Output::Reassembled(octets) => self.packet(&octets),
            Output::Stream { socket, flow, payload } => {
                let taken = self.write(socket, payload);
                self.engine.stream_written(flow, payload, taken, self.now);
            }
            Output::Datagram { socket, to, header, payload, segment_size } => {
                for datagram in datagrams(payload, segment_size) {
                    let octets = [header.as_slice(), datagram].concat();
                    self.fake(socket).datagrams.push((to, octets));
                }
            }
        }
    }

    fn write(&mut self, socket: SocketId, octets: &[u8]) -> usize {
        let fake = self.fake(socket);
        let taken = fake.room.map_or(octets.len(), |room| room.min(octets.len()));
        fake.room = fake.room.map(|room| room - taken);
        fake.written.extend_from_slice(&octets[..taken]);
        taken
    }

    /// Moves octets both ways between the engine and one socket.
    fn pump(&mut self, id: SocketId) -> bool {
        let mut moved = false;
        while let Some((first, second)) = self.engine.write_slices(id) {
            let octets = [first, second].concat();
            let taken = self.write(id, &octets);
            if taken == 0 {
                break;
            }
            moved = true;
            self.engine.write_done(id, taken, self.now);
        }
        loop {
            let Some(fake) = self.sockets.get_mut(&id.to_bits()) else { return moved };
            if fake.inbound.is_empty() {
                if fake.eof && !fake.udp {
                    fake.eof = false;
                    self.engine.read_eof(id, self.now);
                    return true;
                }
                return moved;
            }
            let Some((first, _)) = self.engine.read_space(id) else { return moved };
            let octets = first.len().min(fake.inbound.len());
            for (slot, octet) in first.iter_mut().zip(fake.inbound.drain(..octets)) {
                *slot = octet;
            }
            moved = true;
            self.engine.read_done(id, octets, self.now);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Identify { asker, .. } => {
                assert!(matches!(asker, Asker::Tcp(_) | Asker::Udp(_)));
                self.engine.handle_owner(asker, self.local_proxy, self.now);
            }
            Command::Dial { socket, to, .. } => {
                self.ids.insert(socket.to_bits(), socket);
                self.sockets.insert(socket.to_bits(), FakeSocket { to: Some(to), ..FakeSocket::default() });
                self.dialled.push_back((socket, to));
            }
            Command::OpenUdp { socket, peer, v6, .. } => {
                self.ids.insert(socket.to_bits(), socket);
                self.sockets.insert(
                    socket.to_bits(),
                    FakeSocket { to: peer, udp: true, v6: v6 && peer.is_none(), ..FakeSocket::default() },
                );
                self.udp.push(socket);
                self.engine.handle_udp_open(socket, self.now);
            }
            Command::SendDatagram { socket, to, octets } => self.fake(socket).datagrams.push((to, octets)),
            Command::Read { .. } | Command::Write { .. } => {}
            Command::Shutdown { socket } => self.fake(socket).shut = true,
            Command::Close { socket, abort } => {
                self.ids.remove(&socket.to_bits());
                self.sockets.remove(&socket.to_bits());
                self.dialled.retain(|(dialled, _)| *dialled != socket);
                self.closed.push((socket, abort));
            }
        }
    }

    /// A datagram comes to a UDP socket of the engine.
    pub fn push_datagram(&mut self, socket: SocketId, from: Option<SocketAddr>, octets: &[u8]) {
        let mut packets = Vec::new();
        if let Some(mut datagram) = self.engine.handle_datagram(socket, from, octets, self.now) {
            while let Some(packet) = datagram.next_packet() {
                packets.push([packet.header, packet.payload[0], packet.payload[1]].concat());
            }
        }
        self.wire.to_app.extend(packets);
        self.settle();
    }

    /// Lets time pass, timers included.
    pub fn advance(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.settle();
        while self.now < end {
            let smol_now =
                smoltcp::time::Instant::from_micros(i64::try_from(self.now.as_micros()).expect("small"));
            let app = self
                .interface
                .poll_delay(smol_now, &self.app)
                .map(|delay| self.now + Duration::from_micros(delay.total_micros().max(1)));
            let next = [self.engine.poll_timeout(), app].into_iter().flatten().min().unwrap_or(end);
            self.now = next.max(self.now + Duration::from_micros(1)).min(end);
            self.engine.handle_timeout(self.now);
            self.settle();
        }
    }
}

pub fn endpoint(addr: SocketAddr) -> IpEndpoint {
    let ip = match addr.ip() {
        IpAddr::V4(v4) => IpAddress::Ipv4(v4),
        IpAddr::V6(v6) => IpAddress::Ipv6(v6),
    };
    IpEndpoint::new(ip, addr.port())
}
