//! One run: apps on smoltcp on one side of a faulty link, the stack with a simple service behind it on the other.
//!
//! Each instant is worked off in the order deliver, poll, app, poll, collect; then time advances to whatever is due next, and nothing
//! that is due may be left undelivered.

use crate::link::{self, Arrival, Faults, Link, Shift};
use smoltcp::iface::{Config as IfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};
use std::cell::Cell;
use std::collections::VecDeque;
use std::net::IpAddr;
use ztun::flow::FlowId;
use ztun::stack::{Closed, Ingress, OffloadLevel, Packet, Stack, StackConfig, StackEvent, TcpConfig};
use ztun::time::{Duration, Instant};
use ztun::wire::SeqNumber;

/// Who sends FIN before everything was received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closing {
    /// The app, as soon as it has sent everything.
    AppFirst,
    /// The service.
    ServiceFirst,
    /// Each as soon as it has sent everything.
    Both,
}

/// A reader that stops after so many octets for so long: its window closes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stall {
    pub after: usize,
    pub pause: Duration,
}

/// What a seed stands for.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    pub v6: bool,
    pub connections: usize,
    pub upload: usize,
    pub download: usize,
    pub mtu: u16,
    pub offload: OffloadLevel,
    pub timestamps: bool,
    pub nagle: bool,
    pub app_buffer: usize,
    pub stack_buffer: usize,
    pub closing: Closing,
    pub app_stall: Option<Stall>,
    pub service_stall: Option<Stall>,
    /// The first octets of the app and of the stack.
    pub app_isn: SeqNumber,
    pub stack_isn: SeqNumber,
    pub up: Faults,
    pub down: Faults,
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// A digest of every packet and its time.
    pub trace: u64,
    pub ended: Instant,
    pub retransmits: u64,
    pub timeouts: u64,
    pub drops: u64,
    pub packets: u64,
}

thread_local! {
    /// smoltcp asks a plain function for its timestamps.
    static CLOCK: Cell<u32> = const { Cell::new(0) };
}

fn clock() -> u32 {
    CLOCK.get()
}

#[derive(Default)]
struct Device {
    rx: VecDeque<Vec<u8>>,
    tx: VecDeque<Vec<u8>>,
    mtu: usize,
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        // Exactly `len` octets: smoltcp takes the length of the pseudo-header from the buffer.
        let mut buffer = vec![0; len];
        let result = f(&mut buffer);
        self.0.push_back(buffer);
        result
    }
}

impl smoltcp::phy::Device for Device {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Rx, Tx<'_>)> {
        let packet = self.rx.pop_front()?;
        Some((Rx(packet), Tx(&mut self.tx)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum.tcp = Checksum::Both;
        capabilities
    }
}

/// The octet at a place of a stream; streams of different connections and directions differ.
fn octet(connection: usize, up: bool, at: usize) -> u8 {
    let mixed = (at as u32).wrapping_mul(0x9e37_79b1) ^ (connection as u32) << 7 ^ u32::from(up) << 11;
    (mixed >> 13) as u8
}

/// One end of a connection as its application sees it.
#[derive(Debug)]
struct End {
    connection: usize,
    up: bool,
    to_send: usize,
    sent: usize,
    received: usize,
    expected: usize,
    finished: bool,
    shut: bool,
    stall: Option<Stall>,
    stalled_until: Option<Instant>,
}

impl End {
    /// Octets that may be read now.
    fn appetite(&mut self, now: Instant) -> usize {
        if self.stalled_until.is_some_and(|until| now < until) {
            return 0;
        }
        match self.stall {
            Some(stall) if self.received >= stall.after => {
                self.stall = None;
                self.stalled_until = Some(now + stall.pause);
                0
            }
            Some(stall) => stall.after - self.received,
            None => usize::MAX,
        }
    }

    fn read(&mut self, octets: &[u8]) {
        for (n, got) in octets.iter().enumerate() {
            let want = octet(self.connection, !self.up, self.received + n);
            assert_eq!(*got, want, "octet {} of connection {}", self.received + n, self.connection);
        }
        self.received += octets.len();
        assert!(self.received <= self.expected, "more than was sent");
    }

    /// Whether FIN is due.
    fn done_sending(&self, first: bool) -> bool {
        self.sent == self.to_send && !self.shut && (first || self.finished)
    }
}

struct App {
    handle: SocketHandle,
    end: End,
}

struct Service {
    flow: FlowId,
    end: End,
    closed: Option<Closed>,
    established: bool,
}

pub struct World {
    scenario: Scenario,
    now: Instant,
    stack: Stack,
    /// In the order of their SYNs.
    services: Vec<Service>,
    interface: Interface,
    sockets: SocketSet<'static>,
    device: Device,
    apps: Vec<App>,
    up: Link,
    down: Link,
    shift: Shift,
}

fn config(scenario: &Scenario) -> StackConfig {
    StackConfig {
        mtu: scenario.mtu,
        offload: scenario.offload,
        tcp: TcpConfig {
            receive_buffer: scenario.stack_buffer,
            send_buffer: scenario.stack_buffer,
            // The readers of a run pause for longer than a connection may idle that is half closed.
            idle_transitory: Duration::from_secs(3_600),
            ..TcpConfig::default()
        },
        ..StackConfig::default()
    }
}

const SEED: [u8; 16] = [5; 16];

/// The two addresses.
fn ends(v6: bool) -> (IpAddr, IpAddr) {
    let (app, target) = if v6 { ("fd7a:7a74:756e::1", "2001:db8::5") } else { ("198.18.0.1", "203.0.113.5") };
    (app.parse().expect("address"), target.parse().expect("address"))
}

const FIRST_PORT: u16 = 40_000;

/// When a run has to start for its first connection to get the ISS that it is to have (RFC 6528: one every 4 microseconds).
fn start(scenario: &Scenario) -> Instant {
    use ztun::wire::checksum::Checksum;
    use ztun::wire::ip::{IpHeader, protocol};
    use ztun::wire::tcp::{TcpFlags, TcpOptions, TcpSegment};
    let mut stack = Stack::new(config(scenario), SEED);
    let (src, dst) = ends(scenario.v6);
    let ip = IpHeader {
        src,
        dst,
        protocol: protocol::TCP,
        hop_limit: 64,
        id: 0,
        dont_fragment: true,
        fragment: None,
    };
    let syn = TcpSegment {
        src_port: FIRST_PORT,
        dst_port: 80,
        seq: SeqNumber(0),
        ack: SeqNumber(0),
        flags: TcpFlags::SYN,
        window: 0,
        urgent: 0,
        options: TcpOptions::default(),
        payload: &[],
    };
    let mut octets = vec![0; ip.header_len() + 20];
    let at = ip.emit(&mut octets, 20);
    syn.emit_header(&mut octets[at..]);
    let sum = Checksum::pseudo_header(src, dst, protocol::TCP, 20).with(&octets[at..]).finish();
    octets[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
    stack.handle_packet(Packet::new(&octets), Instant::ZERO).expect("a SYN");
    let Some(StackEvent::Syn { flow }) = stack.poll_event() else { panic!("a SYN is told of") };
    stack.tcp(flow).expect("alive").accept(Instant::ZERO);
    let transmit = stack.poll_transmit(Instant::ZERO).expect("a SYN-ACK");
    let iss = u32::from_be_bytes(transmit.header[at + 4..at + 8].try_into().expect("four octets"));
    let link = scenario.up.delay + 1;
    let micros = u64::from(scenario.stack_isn.0.wrapping_sub(iss)) * 4;
    Instant::from_micros(micros.saturating_sub(link).max(1_000))
}

impl World {
    pub fn new(scenario: Scenario) -> World {
        let now = start(&scenario);
        CLOCK.set((now.as_micros() / 1_000) as u32);
        let mut device = Device { mtu: scenario.mtu.into(), ..Device::default() };
        let mut iface_config = IfaceConfig::new(HardwareAddress::Ip);
        iface_config.random_seed = scenario.seed;
        let mut interface = Interface::new(iface_config, &mut device, smol(now));
        let (app, target) = ends(scenario.v6);
        interface.update_ip_addrs(|addrs| {
            addrs.push(IpCidr::new(ip(app), if scenario.v6 { 64 } else { 16 })).expect("room for one");
        });
        match target {
            IpAddr::V4(gateway) => interface.routes_mut().add_default_ipv4_route(gateway),
            IpAddr::V6(gateway) => interface.routes_mut().add_default_ipv6_route(gateway),
        }
        .expect("room for one route");
        World {
            now,
            stack: Stack::new(config(&scenario), SEED),
            services: Vec::new(),
            interface,
            sockets: SocketSet::new(Vec::new()),
            device,
            apps: Vec::new(),
            up: Link::new(scenario.up, scenario.seed ^ 0x5eed_0001),
            down: Link::new(scenario.down, scenario.seed ^ 0x5eed_0002),
            shift: Shift::default(),
            scenario,
        }
    }

    fn connect(&mut self, connection: usize) {
        let scenario = &self.scenario;
        let buffer = || tcp::SocketBuffer::new(vec![0; scenario.app_buffer]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(scenario.nagle);
        if scenario.timestamps {
            socket.set_tsval_generator(Some(clock));
        }
        let (_, target) = ends(scenario.v6);
        let port = FIRST_PORT + connection as u16;
        socket.connect(self.interface.context(), IpEndpoint::new(ip(target), 80), port).expect("connect");
        let end = End {
            connection,
            up: true,
            to_send: scenario.upload,
            sent: 0,
            received: 0,
            expected: scenario.download,
            finished: false,
            shut: false,
            stall: scenario.app_stall,
            stalled_until: None,
        };
        self.apps.push(App { handle: self.sockets.add(socket), end });
    }

    /// Runs until every connection is over on both sides; panics when that takes too long or an octet is wrong.
    pub fn run(mut self) -> Report {
        for connection in 0..self.scenario.connections {
            self.connect(connection);
        }
        let limit = self.now + Duration::from_secs(3_600);
        let mut steps = 0u64;
        while !self.is_over() {
            self.instant();
            self.advance();
            steps += 1;
            assert!(self.now < limit && steps < 1_000_000, "no end: {}", self.state());
        }
        self.drain();
        let stats = self.stack.stats();
        Report {
            trace: self.up.trace() ^ self.down.trace().rotate_left(1),
            ended: self.now,
            retransmits: stats.retransmits,
            timeouts: stats.timeouts,
            drops: stats.drops.iter().sum(),
            packets: stats.packets_in + stats.packets_out,
        }
    }

    /// Everything at one instant.
    fn instant(&mut self) {
        CLOCK.set((self.now.as_micros() / 1_000) as u32);
        self.deliver();
        self.poll();
        self.act();
        self.poll();
        self.collect();
    }

    fn deliver(&mut self) {
        for mut packet in self.down.receive(self.now) {
            self.shift.download(&mut packet);
            self.device.rx.push_back(packet);
        }
        let mut packets = self.up.receive(self.now);
        for packet in &mut packets {
            self.shift.upload(packet, self.scenario.app_isn);
        }
        let arrivals = if self.scenario.offload.segments() {
            link::coalesce(packets)
        } else {
            packets.into_iter().map(|octets| Arrival { octets, vouched: false }).collect()
        };
        for arrival in arrivals {
            // The size of the segments is a hint: any value will do.
            let segment_size = (arrival.octets.len() * 31) as u16;
            let packet = Packet { octets: &arrival.octets, verify_checksum: !arrival.vouched, segment_size };
            match self.stack.handle_packet(packet, self.now) {
                Ok(Ingress::Stream { flow, payload }) => {
                    let service =
                        self.services.iter_mut().find(|service| service.flow == flow).expect("announced");
                    let taken = service.end.appetite(self.now).min(payload.len());
                    service.end.read(&payload[..taken]);
                    self.stack.tcp(flow).expect("alive").keep(payload, taken, self.now);
                }
                // A corrupted bit can make any of these out of a segment; what matters is that none disturbs a stream.
                Ok(Ingress::Consumed | Ingress::Datagram { .. } | Ingress::Reassembled(_)) | Err(_) => {}
            }
            // As the engine does between packets: a new flow has a service before its first octet comes.
            self.events();
        }
    }

    fn poll(&mut self) {
        self.interface.poll(smol(self.now), &mut self.device, &mut self.sockets);
        self.stack.handle_timeout(self.now);
        self.events();
    }

    fn service(&mut self, flow: FlowId) -> &mut Service {
        self.services.iter_mut().find(|service| service.flow == flow).expect("a flow that was announced")
    }

    fn events(&mut self) {
        while let Some(event) = self.stack.poll_event() {
            match event {
                StackEvent::Syn { flow } => {
                    let mut tcp = self.stack.tcp(flow).expect("alive");
                    tcp.accept(self.now);
                    let connection = usize::from(tcp.key().local.port - FIRST_PORT);
                    let end = End {
                        connection,
                        up: false,
                        to_send: self.scenario.download,
                        sent: 0,
                        received: 0,
                        expected: self.scenario.upload,
                        finished: false,
                        shut: false,
                        stall: self.scenario.service_stall,
                        stalled_until: None,
                    };
                    self.services.push(Service { flow, end, closed: None, established: false });
                }
                StackEvent::Established { flow } => {
                    self.service(flow).established = true;
                }
                StackEvent::Closed { flow, why } => {
                    let service = self.service(flow);
                    assert!(service.closed.is_none(), "closed twice");
                    service.closed = Some(why);
                }
                StackEvent::Readable { .. } | StackEvent::Writable { .. } => {}
            }
        }
    }

    /// Both applications read and write what they can.
    fn act(&mut self) {
        for app in &mut self.apps {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(app.handle);
            let now = self.now;
            let end = &mut app.end;
            if matches!(socket.state(), tcp::State::Closing | tcp::State::LastAck | tcp::State::TimeWait) {
                // smoltcp forgets what is unread when the connection is over; a kernel does not.
                (end.stall, end.stalled_until) = (None, None);
            }
            while socket.can_recv() {
                let appetite = end.appetite(now);
                if appetite == 0 {
                    break;
                }
                socket
                    .recv(|octets| {
                        let taken = octets.len().min(appetite);
                        end.read(&octets[..taken]);
                        (taken, ())
                    })
                    .expect("readable");
            }
            let eof = !socket.may_recv() && !socket.can_recv();
            end.finished |= eof && end.received == end.expected && socket.state() != tcp::State::SynSent;
            while socket.can_send() && end.sent < end.to_send {
                let (from, connection) = (end.sent, end.connection);
                let most = end.to_send - from;
                end.sent += socket
                    .send(|space| {
                        let len = space.len().min(most);
                        space[..len]
                            .iter_mut()
                            .enumerate()
                            .for_each(|(n, slot)| *slot = octet(connection, true, from + n));
                        (len, len)
                    })
                    .expect("writable");
            }
            let first = matches!(self.scenario.closing, Closing::AppFirst | Closing::Both);
            if socket.may_send() && end.done_sending(first) {
                socket.close();
                end.shut = true;
            }
        }
        for index in 0..self.services.len() {
            self.serve(index);
        }
    }

    fn serve(&mut self, index: usize) {
        let Some(service) = self.services.get_mut(index) else { return };
        let flow = service.flow;
        let Some(mut tcp) = self.stack.tcp(flow) else { return };
        if !service.established {
            return;
        }
        let now = self.now;
        let end = &mut service.end;
        loop {
            let appetite = end.appetite(now);
            let (first, second) = tcp.recv();
            let octets: Vec<u8> = first.iter().chain(second).copied().take(appetite).collect();
            if octets.is_empty() {
                break;
            }
            end.read(&octets);
            tcp.consume(octets.len(), now);
            // Reading the last octet may have been the end of the flow.
            match self.stack.tcp(flow) {
                Some(again) => tcp = again,
                None => return,
            }
        }
        end.finished |= tcp.recv_finished();
        assert!(!end.finished || end.received == end.expected, "the end comes after everything");
        while end.sent < end.to_send {
            let (space, _) = tcp.send_buf();
            let len = space.len().min(end.to_send - end.sent);
            if len == 0 {
                break;
            }
            for (n, slot) in space[..len].iter_mut().enumerate() {
                *slot = octet(end.connection, false, end.sent + n);
            }
            tcp.commit(len, now);
            end.sent += len;
        }
        let first = matches!(self.scenario.closing, Closing::ServiceFirst | Closing::Both);
        if end.done_sending(first) {
            tcp.shutdown(now);
            end.shut = true;
        }
    }

    fn collect(&mut self) {
        while let Some(packet) = self.device.tx.pop_front() {
            self.up.send(packet, self.now);
        }
        while let Some(packet) = self.stack.poll_transmit(self.now) {
            for packet in link::transmit(&packet) {
                assert!(packet.len() <= self.scenario.mtu.into(), "beyond the MTU: {}", packet.len());
                self.down.send(packet, self.now);
            }
        }
        self.events();
    }

    /// To whatever is due next.
    fn advance(&mut self) {
        assert!(self.device.rx.is_empty() && self.device.tx.is_empty(), "undelivered");
        assert!(self.stack.poll_event().is_none(), "an event was left");
        assert!(self.stack.poll_transmit(self.now).is_none(), "a packet was left");
        let app = self
            .interface
            .poll_delay(smol(self.now), &self.sockets)
            .map(|delay| self.now + Duration::from_micros(delay.total_micros()));
        let stalls = self
            .apps
            .iter()
            .map(|app| &app.end)
            .chain(self.services.iter().map(|service| &service.end))
            .filter_map(|end| end.stalled_until.filter(|until| *until > self.now));
        let next = [self.up.next(), self.down.next(), self.stack.poll_timeout(), app]
            .into_iter()
            .flatten()
            .chain(stalls)
            .min()
            .unwrap_or(self.now + Duration::from_secs(1));
        let link = [self.up.next(), self.down.next()].into_iter().flatten().min();
        assert!(link.is_none_or(|due| due > self.now), "a packet was due and not delivered");
        // Whoever asks to be polled at once has just been.
        self.now = next.max(self.now + Duration::from_micros(1));
    }

    fn is_over(&self) -> bool {
        let apps = self.apps.iter().all(|app| {
            let state = self.sockets.get::<tcp::Socket<'_>>(app.handle).state();
            app.end.finished && app.end.shut && matches!(state, tcp::State::Closed | tcp::State::TimeWait)
        });
        apps && self.services.iter().all(|service| service.closed.is_some())
            && self.services.len() >= self.apps.len()
    }

    /// After the end: everything was delivered, and nothing is left when the last packet and timer are gone.
    fn drain(&mut self) {
        self.up.faulty = false;
        self.down.faulty = false;
        for app in &self.apps {
            assert_eq!((app.end.sent, app.end.received), (app.end.to_send, app.end.expected));
        }
        let end = self.now + Duration::from_secs(300);
        while self.now < end {
            self.instant();
            self.advance();
        }
        assert_eq!(self.stack.tcp_flows().count(), 0);
        assert_eq!(self.stack.poll_timeout(), None, "no timer is left");
        for service in self.services.iter() {
            let Service { end, closed, .. } = service;
            // A SYN that was delayed beyond the end of its connection opens another, which the app resets.
            if end.received == 0 && end.sent == 0 && *closed == Some(Closed::Reset) {
                continue;
            }
            assert_eq!((end.sent, end.received), (end.to_send, end.expected), "{}", self.state());
            // The last acknowledgement may be lost until the app has forgotten everything.
            assert!(matches!(closed, Some(Closed::Finished | Closed::Reset)), "{closed:?}");
        }
    }

    fn state(&self) -> String {
        let apps: Vec<String> = self
            .apps
            .iter()
            .map(|app| format!("{:?} {:?}", self.sockets.get::<tcp::Socket<'_>>(app.handle).state(), app.end))
            .collect();
        let services: Vec<String> =
            self.services.iter().map(|service| format!("{:?} {:?}", service.closed, service.end)).collect();
        format!("at {:?}, apps {apps:#?}, services {services:#?}", self.now)
    }
}

fn smol(now: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(i64::try_from(now.as_micros()).expect("within an age"))
}

fn ip(addr: IpAddr) -> IpAddress {
    match addr {
        IpAddr::V4(v4) => IpAddress::Ipv4(v4),
        IpAddr::V6(v6) => IpAddress::Ipv6(v6),
    }
}
