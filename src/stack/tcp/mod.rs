//! TCP (RFC 9293) as the remote end of every connection that apps open through the TUN.
//!
//! # Theory of operation
//!
//! One table holds every connection by its two ends: small entries in the SYN queue, in TIME-WAIT and for established connections at
//! rest, and a boxed [`tcb::Tcb`] for those with anything under way. A segment is looked up once and handled by the state it meets:
//!
//! ```text
//! none ─SYN─▶ Syn ─accept, ACK─▶ Open ─both FINs─▶ TimeWait ─2 MSL─▶ none
//!              └─refuse, RST─▶ none │▲ └─RST, abort, time-out─▶ none
//!                nothing under way ─▼│─ anything
//!                                 Resting
//! ```
//!
//! What a segment or a call changes may give the connection something to send: it is then put into `ready`, once, and
//! [`TcpLayer::poll_transmit`] serves that queue round robin, one segment at a time. Acknowledgements are made there too, so that all
//! segments handled in one turn are covered by one ([`patience`] lets them wait for more). Segments that belong to no block (SYN-ACK, RST, answers of TIME-WAIT) go to the
//! [`ControlQueue`].
//!
//! Each connection has one deadline in the timer wheel: the earliest of its own. It is only moved when it becomes earlier; one that comes
//! too early is looked at and set again, which is cheaper than moving it with every segment. A connection that then has nothing under way rests,
//! and one that is awake is looked at soon enough.
//!
//! # Files
//!
//! `listen` segments before and after a connection is synchronised, `handshake` the entries for them; `tcb` the block; `input` arriving segments; `output` leaving ones and the timers; `patience` acknowledgements that wait; `flight` SACK
//! scoreboard and RACK; `rtt`, `cubic`; `recv` and `ring` the buffers; `rest` connections at rest; `handle` what the caller holds;
//! `inspect` what reports are made of.

mod cubic;
mod flight;
mod handle;
mod handshake;
mod input;
pub(super) mod inspect;
mod listen;
mod output;
mod patience;
mod recv;
mod rest;
mod ring;
mod rtt;
mod tcb;

pub use handle::Tcp;

use super::control::{ControlQueue, Limit};
use super::egress::ip_header;
use super::{Closed, DropReason, Ingress, Offload, StackConfig, StackEvent, Stats, TcpConfig, Transmit};
use crate::flow::{FlowId, FlowKey, FlowTable, LruList, TimerWheel};
use crate::rng::{KeyedHash, Rng};
use crate::time::{Duration, Instant};
use crate::wire::checksum::Checksum;
use crate::wire::ip::{IpPacket, protocol};
use crate::wire::tcp::{SackBlocks, TcpFlags, TcpOptions, TcpSegment};
use crate::wire::{Endpoint, SeqNumber, WireError};
use handshake::{SynEntry, TimeWait};
use input::Context;
use output::Segment;
use patience::Patient;
use rest::{Blocks, Resting};
use ring::Pool;
use std::collections::VecDeque;
use tcb::{State, Tcb};

/// IP and TCP headers with all options.
const MAX_HEADERS: usize = 40 + 60;

/// One connection in the table.
#[derive(Debug)]
pub(super) enum Slot {
    /// In the SYN queue.
    Syn(SynEntry),
    /// Synchronised, with something under way.
    Open(Box<Tcb>),
    /// Synchronised, with nothing under way.
    Resting(Resting),
    /// Over, but remembered.
    TimeWait(TimeWait),
}

/// What a connection costs here that is idle, in the SYN queue or in TIME-WAIT: this, and its place in the tables.
const _: () = assert!(size_of::<Slot>() <= 160);
/// What one costs in addition while anything is under way.
const _: () = assert!(size_of::<Tcb>() <= 640);

/// How long a connection that was woken stays awake at least, unless a timer of its own runs out: one that is in use does not
/// change its form with each segment.
const AWAKE: Duration = Duration::from_millis(50);

/// What an ICMP error says about a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum IcmpError {
    /// Unreachable, time exceeded: never a reason to abort (RFC 9293 3.9.2.2, MUST-56).
    Soft,
    /// Packet too big, with the next-hop MTU.
    PacketTooBig(u32),
}

/// All connections.
#[derive(Debug)]
pub(crate) struct TcpLayer {
    config: StackConfig,
    pub(super) table: FlowTable<FlowKey, Slot>,
    timers: TimerWheel,
    ready: VecDeque<FlowId>,
    patient: Patient,
    events: VecDeque<StackEvent>,
    pool: Pool,
    blocks: Blocks,
    /// Flows that found the memory of all flows spent.
    starved: VecDeque<FlowId>,
    isn: KeyedHash,
    offsets: KeyedHash,
    syns: usize,
    /// Entries of the SYN queue whose SYN-ACK waits for its ACK, oldest first: they give way when the queue is full.
    half_open: LruList,
    /// Connections in TIME-WAIT, oldest first: they give way when the table is full.
    time_wait: LruList,
    header: [u8; MAX_HEADERS],
}

impl TcpLayer {
    pub(crate) fn new(config: &StackConfig, rng: &mut Rng) -> TcpLayer {
        TcpLayer {
            table: FlowTable::new(config.tcp.max_flows, rng.keyed_hash()),
            timers: TimerWheel::new(),
            ready: VecDeque::new(),
            patient: Patient::default(),
            events: VecDeque::new(),
            pool: Pool::new(config.tcp.buffer_budget),
            blocks: Blocks::default(),
            starved: VecDeque::new(),
            isn: rng.keyed_hash(),
            offsets: rng.keyed_hash(),
            syns: 0,
            half_open: LruList::new(),
            time_wait: LruList::new(),
            header: [0; MAX_HEADERS],
            config: config.clone(),
        }
    }

    /// Takes one segment of a validated packet.
    pub(crate) fn handle_segment<'p>(
        &mut self,
        ip: &IpPacket<'p>,
        verify_checksum: bool,
        control: &mut ControlQueue,
        stats: &mut Stats,
        now: Instant,
    ) -> Result<Ingress<'p>, DropReason> {
        let segment =
            TcpSegment::parse(ip.src, ip.dst, ip.payload, verify_checksum).map_err(|error| match error {
                WireError::Checksum => DropReason::BadChecksum,
                WireError::Truncated
                | WireError::Version
                | WireError::HeaderLength
                | WireError::Length
                | WireError::Extension
                | WireError::Value => DropReason::BadTcp,
            })?;
        if segment.src_port == 0 || segment.dst_port == 0 {
            return Err(DropReason::BadTcp);
        }
        let key = FlowKey {
            local: Endpoint::new(ip.src, segment.src_port),
            remote: Endpoint::new(ip.dst, segment.dst_port),
        };
        let Some(flow) = self.table.find(&key) else {
            return self.unknown(key, &segment, control, stats, now);
        };
        match self.table.get_mut(flow) {
            Some(Slot::Open(_) | Slot::Resting(_)) => self.open(flow, &segment, control, stats, now),
            Some(Slot::Syn(_)) => self.syn_received(flow, key, &segment, control, stats, now),
            Some(Slot::TimeWait(_)) => self.time_waiting(flow, key, &segment, control, stats, now),
            None => Err(DropReason::NoFlow),
        }
    }

    /// A synchronised connection.
    fn open<'p>(
        &mut self,
        flow: FlowId,
        segment: &TcpSegment<'p>,
        control: &mut ControlQueue,
        stats: &mut Stats,
        now: Instant,
    ) -> Result<Ingress<'p>, DropReason> {
        let Some(tcb) = awake(&mut self.table, &mut self.blocks, &self.config.tcp, flow) else {
            return Err(DropReason::NoFlow);
        };
        let mut cx = Context { config: &self.config.tcp, pool: &mut self.pool, stats, now };
        let outcome = tcb.handle_segment(segment, &mut cx);
        self.schedule(flow, now);
        let outcome = outcome?;
        if outcome.readable {
            self.events.push_back(StackEvent::Readable { flow });
        }
        if let Some(why) = outcome.closed {
            self.end(flow, why, control, now);
            return Ok(Ingress::Consumed);
        }
        match outcome.offered {
            Some((skip, len)) => Ok(Ingress::Stream { flow, payload: &segment.payload[skip..skip + len] }),
            None => Ok(Ingress::Consumed),
        }
    }

    /// An ICMP error that quotes a segment of ours.
    pub(crate) fn handle_icmp(
        &mut self,
        key: FlowKey,
        seq: SeqNumber,
        error: IcmpError,
        now: Instant,
    ) -> Result<(), DropReason> {
        let flow = self.table.find(&key).ok_or(DropReason::IcmpIgnored)?;
        let Some(Slot::Open(tcb)) = self.table.get_mut(flow) else { return Err(DropReason::IcmpIgnored) };
        // RFC 5927 4.1: only about octets in flight.
        let in_flight = seq.ge(tcb.snd_una) && seq.lt(tcb.snd_nxt);
        let IcmpError::PacketTooBig(mtu) = error else { return Err(DropReason::IcmpIgnored) };
        let (least, headers) = if key.local.addr.is_ipv6() { (1280, 60) } else { (68, 40) };
        let options = if tcb.timestamps.is_some() { 12 } else { 0 };
        let mss = mtu.max(least) - headers - options;
        if !in_flight || mss >= tcb.mss {
            return Err(DropReason::IcmpIgnored);
        }
        tcb.mss = mss.max(8);
        if tcb.flight.lose_first() {
            tcb.forced = tcb::Forced::Retransmit;
            tcb.restart_loss_timer(None, now);
        }
        self.schedule(flow, now);
        Ok(())
    }

    /// Runs the timers that are due.
    pub(crate) fn handle_timeout(&mut self, control: &mut ControlQueue, stats: &mut Stats, now: Instant) {
        while let Some(index) = self.timers.pop(now) {
            let Some(flow) = self.table.id_at(index) else { continue };
            let Some(key) = self.table.key(flow).copied() else { continue };
            match self.table.get_mut(flow) {
                Some(Slot::Syn(entry)) => {
                    if entry.expired(&self.config.tcp, now) {
                        self.reset(flow, key, control, stats, now);
                        self.end(flow, Closed::TimedOut, control, now);
                    } else {
                        self.send_syn_ack(flow, key, control, now);
                    }
                }
                Some(Slot::Open(_) | Slot::Resting(_)) => {
                    let config = &self.config.tcp;
                    let Some(tcb) = awake(&mut self.table, &mut self.blocks, config, flow) else { continue };
                    match tcb.handle_timeout(config, stats, now) {
                        Some(why) => {
                            self.reset(flow, key, control, stats, now);
                            self.end(flow, why, control, now);
                        }
                        None => {
                            self.schedule(flow, now);
                            self.rest(flow);
                        }
                    }
                }
                Some(Slot::TimeWait(entry)) if entry.until > now => self.timers.set(index, entry.until),
                Some(Slot::TimeWait(_)) => self.forget(flow),
                None => {}
            }
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next_deadline()
    }

    pub(crate) fn poll_event(&mut self) -> Option<StackEvent> {
        if self.events.is_empty() {
            self.feed_starved();
        }
        self.events.pop_front()
    }

    /// Memory has come back: one flow after the other may ask again.
    fn feed_starved(&mut self) {
        while let Some(&flow) = self.starved.front() {
            if self.pool.used() + ring::SMALLEST > self.config.tcp.buffer_budget {
                return;
            }
            self.starved.pop_front();
            if let Some(Slot::Open(tcb)) = self.table.get_mut(flow)
                && core::mem::take(&mut tcb.write_blocked)
            {
                self.events.push_back(StackEvent::Writable { flow });
                return;
            }
        }
    }

    /// The next segment, in turn from each flow that has one.
    pub(crate) fn poll_transmit(&mut self, stats: &mut Stats, now: Instant) -> Option<Transmit<'_>> {
        let (flow, segment) = loop {
            let flow = self.ready.pop_front()?;
            let Some(Slot::Open(tcb)) = self.table.get_mut(flow) else { continue };
            let limit = match self.config.offload.segments() {
                true => self.config.max_segment as u32,
                false => tcb.mss,
            };
            if self.patient.takes(flow, tcb) {
                continue;
            }
            match tcb.next_segment(limit, stats, now) {
                Some(segment) => {
                    self.ready.push_back(flow);
                    break (flow, segment);
                }
                None => {
                    tcb.queued = false;
                    rearm(&mut self.timers, &self.config.tcp, flow, tcb, now);
                }
            }
        };
        self.build(flow, segment, now)
    }

    /// Writes the headers of a segment; its text is borrowed from the send ring.
    fn build(&mut self, flow: FlowId, segment: Segment, now: Instant) -> Option<Transmit<'_>> {
        let key = *self.table.key(flow)?;
        let Slot::Open(tcb) = self.table.get_mut(flow)? else { return None };
        let fin = if segment.fin { TcpFlags::FIN } else { TcpFlags(0) };
        let push = if segment.push && segment.len > 0 { TcpFlags::PSH } else { TcpFlags(0) };
        let bare = segment.len == 0;
        let header = TcpSegment {
            src_port: key.remote.port,
            dst_port: key.local.port,
            seq: segment.seq,
            ack: tcb.receive.nxt,
            flags: TcpFlags::ACK | fin | push,
            window: tcb.receive.advertise(tcb.mss, self.pool.share()),
            urgent: 0,
            options: TcpOptions {
                timestamps: tcb.timestamps.map(|state| state.option(now)),
                // Blocks go on segments without text, where there is room for them (RFC 2018 4).
                sack: if bare && tcb.sack { tcb.receive.sack() } else { SackBlocks::default() },
                ..TcpOptions::default()
            },
            payload: &[],
        };
        // Blocks are owed until they were sent: only a segment that has room for them settles the debt.
        if bare || !tcb.receive.has_gap() {
            tcb.acknowledged();
        }
        let offset = if bare { 0 } else { segment.seq.distance_from(tcb.snd_una) as usize };
        let text = tcb.send.slices(offset, segment.len as usize);
        let ip = ip_header(key.remote.addr, key.local.addr, protocol::TCP);
        let (ip_len, tcp_len) = (ip.header_len(), header.header_len());
        header.emit_header(&mut self.header[ip_len..]);
        ip.emit(&mut self.header, tcp_len + segment.len as usize);
        let length = tcp_len as u32 + segment.len;
        let pseudo = Checksum::pseudo_header(key.remote.addr, key.local.addr, protocol::TCP, length);
        let at = ip_len + 16;
        let (checksum, offload) = if self.config.offload.sums() {
            let segment_size = if segment.len > tcb.mss { tcb.mss as u16 } else { 0 };
            (
                pseudo.partial(),
                Some(Offload { checksum_start: ip_len as u16, checksum_offset: 16, segment_size }),
            )
        } else {
            (pseudo.with(&self.header[ip_len..ip_len + tcp_len]).with(text.0).with(text.1).finish(), None)
        };
        self.header[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        Some(Transmit { header: &self.header[..ip_len + tcp_len], payload: [text.0, text.1], offload })
    }

    /// A handle on a connection that is alive.
    pub(crate) fn handle<'a>(
        &'a mut self,
        flow: FlowId,
        control: &'a mut ControlQueue,
        stats: &'a mut Stats,
    ) -> Option<Tcp<'a>> {
        match self.table.get(flow)? {
            Slot::TimeWait(_) => None,
            Slot::Syn(_) | Slot::Open(_) | Slot::Resting(_) => {
                let key = *self.table.key(flow)?;
                Some(Tcp { layer: self, flow, key, control, stats })
            }
        }
    }

    /// Connections that are alive. Cost: the whole table.
    pub(crate) fn flows(&self) -> impl Iterator<Item = FlowId> + '_ {
        let alive = |slot: &Slot| match slot {
            Slot::Syn(_) | Slot::Open(_) | Slot::Resting(_) => true,
            Slot::TimeWait(_) => false,
        };
        self.table.ids().filter(move |flow| self.table.get(*flow).is_some_and(alive))
    }

    // ---- for the handle ----

    /// `false` when there was no memory for the rest.
    pub(super) fn keep(
        &mut self,
        flow: FlowId,
        rest: &[u8],
        control: &mut ControlQueue,
        now: Instant,
    ) -> bool {
        let Some(Slot::Open(tcb)) = self.table.get_mut(flow) else { return true };
        let kept = tcb.receive.keep(rest, &mut self.pool, now);
        if tcb.receive.finished() {
            self.events.push_back(StackEvent::Readable { flow });
        }
        self.after_read(flow, control, now);
        kept
    }

    pub(super) fn consume(&mut self, flow: FlowId, octets: usize, control: &mut ControlQueue, now: Instant) {
        let Some(Slot::Open(tcb)) = self.table.get_mut(flow) else { return };
        tcb.receive.consume(octets, &mut self.pool, now);
        if tcb.receive.update_due(tcb.mss, self.pool.share()) {
            tcb.ack_now();
        }
        self.after_read(flow, control, now);
    }

    /// A connection whose both FINs are exchanged ends when its last octets were read.
    fn after_read(&mut self, flow: FlowId, control: &mut ControlQueue, now: Instant) {
        let Some(Slot::Open(tcb)) = self.table.get_mut(flow) else { return };
        if tcb.over().is_some() {
            self.end(flow, Closed::Finished, control, now);
        } else {
            self.schedule(flow, now);
        }
    }

    pub(super) fn send_buf(&mut self, flow: FlowId) -> (&mut [u8], &mut [u8]) {
        let Some(tcb) = awake(&mut self.table, &mut self.blocks, &self.config.tcp, flow) else {
            return (&mut [], &mut []);
        };
        let mut room = tcb.send_room(self.config.tcp.send_buffer.min(self.pool.share()));
        if room > 0 && !tcb.send.reserve(tcb.send.len() + room, &mut self.pool) {
            room = tcb.send.capacity() - tcb.send.len();
            if room == 0 && !tcb.write_blocked {
                self.starved.push_back(flow);
            }
        }
        tcb.write_blocked = room == 0;
        tcb.send.free_slices(room)
    }

    /// After anything changed: into the queue if there is something to send, timer set, memory given back, the writer told.
    pub(super) fn schedule(&mut self, flow: FlowId, now: Instant) {
        let Some(Slot::Open(tcb)) = self.table.get_mut(flow) else { return };
        if !tcb.queued && tcb.wants_to_send() {
            tcb.queued = true;
            self.ready.push_back(flow);
        }
        if tcb.write_blocked {
            // One that found the memory of all spent stands in `starved` and is told from there.
            let spent = self.pool.used() + ring::SMALLEST > self.config.tcp.buffer_budget;
            let room = tcb.send_room(self.config.tcp.send_buffer.min(self.pool.share()));
            if room > 0 && !(spent && tcb.send.capacity() == 0) {
                tcb.write_blocked = false;
                self.events.push_back(StackEvent::Writable { flow });
            }
        }
        if tcb.send.len() == 0 {
            tcb.send.release(&mut self.pool);
            tcb.flight.release_if_empty();
        }
        rearm(&mut self.timers, &self.config.tcp, flow, tcb, now);
    }

    /// Lets a connection rest that has nothing under way.
    fn rest(&mut self, flow: FlowId) {
        let Some(slot) = self.table.get_mut(flow) else { return };
        let Slot::Open(tcb) = slot else { return };
        // One that cannot rest now is not looked at again for it: whatever changes that has it scheduled.
        self.timers.set(flow.index(), tcb.deadline(&self.config.tcp));
        if let Some(resting) = tcb.rest()
            && let Slot::Open(block) = core::mem::replace(slot, Slot::Resting(resting))
        {
            self.blocks.give(block);
        }
    }

    /// The block of a synchronised connection, which is woken.
    pub(super) fn awake(&mut self, flow: FlowId) -> Option<&mut Tcb> {
        awake(&mut self.table, &mut self.blocks, &self.config.tcp, flow)
    }

    /// RST for a connection that is given up.
    pub(super) fn reset(
        &mut self,
        flow: FlowId,
        key: FlowKey,
        control: &mut ControlQueue,
        stats: &mut Stats,
        now: Instant,
    ) {
        match self.table.get(flow) {
            Some(Slot::Open(tcb)) => {
                control.reset(key, tcb.snd_nxt, Some(tcb.receive.nxt), Limit::Flow, stats, now)
            }
            Some(Slot::Resting(resting)) => {
                let ack = Some(resting.rcv_nxt());
                control.reset(key, resting.snd_nxt(), ack, Limit::Flow, stats, now);
            }
            Some(Slot::Syn(entry)) if entry.answered.is_some() => {
                control.reset(key, entry.iss + 1, Some(entry.irs + 1), Limit::Flow, stats, now);
            }
            Some(Slot::Syn(entry)) => {
                control.reset(key, SeqNumber(0), Some(entry.irs + 1), Limit::Flow, stats, now)
            }
            Some(Slot::TimeWait(_)) | None => {}
        }
    }

    /// A connection is over: the caller is told; TIME-WAIT follows when we closed first.
    fn end(&mut self, flow: FlowId, why: Closed, control: &mut ControlQueue, now: Instant) {
        self.events.push_back(StackEvent::Closed { flow, why });
        let key = self.table.key(flow).copied();
        let (Some(Slot::Open(tcb)), Some(key)) = (self.table.get_mut(flow), key) else {
            return self.forget(flow);
        };
        if why != Closed::Finished || tcb.state() != State::TimeWait {
            return self.forget(flow);
        }
        let mut entry = TimeWait {
            snd_nxt: tcb.snd_nxt,
            rcv_nxt: tcb.receive.nxt,
            timestamps: tcb.timestamps,
            until: now + self.config.tcp.time_wait,
            answered: Instant::ZERO,
        };
        // The acknowledgement of the app's FIN.
        if let Some(answer) = entry.answer(key, now) {
            control.segment(key, &answer);
        }
        if let Some(slot) = self.table.get_mut(flow)
            && let Slot::Open(block) = core::mem::replace(slot, Slot::TimeWait(entry))
        {
            self.retire(block);
        }
        self.time_wait.touch(flow.index());
        self.timers.set(flow.index(), entry.until);
    }

    /// Takes a connection out of the table with everything that belongs to it.
    pub(super) fn forget(&mut self, flow: FlowId) {
        let Some((_, slot)) = self.table.remove(flow) else { return };
        self.timers.cancel(flow.index());
        match slot {
            Slot::Syn(_) => {
                self.syns -= 1;
                self.half_open.remove(flow.index());
            }
            Slot::Open(block) => self.retire(block),
            Slot::Resting(_) => {}
            Slot::TimeWait(_) => self.time_wait.remove(flow.index()),
        }
    }

    /// Takes everything back from a block whose connection is over.
    fn retire(&mut self, mut block: Box<Tcb>) {
        block.release(&mut self.pool);
        self.blocks.give(block);
    }
}

/// Sets the timer of a connection. One that is awake is looked at before long, whether it may rest.
fn rearm(timers: &mut TimerWheel, config: &TcpConfig, flow: FlowId, tcb: &Tcb, now: Instant) {
    let deadline = tcb.deadline(config).min(now + AWAKE);
    if timers.deadline(flow.index()).is_none_or(|armed| deadline < armed) {
        timers.set(flow.index(), deadline);
    }
}

/// The block of a synchronised connection, which is woken. Beside [`TcpLayer::awake`] for callers that hold other parts of the layer.
fn awake<'t>(
    table: &'t mut FlowTable<FlowKey, Slot>,
    blocks: &mut Blocks,
    config: &TcpConfig,
    flow: FlowId,
) -> Option<&'t mut Tcb> {
    let slot = table.get_mut(flow)?;
    if let Slot::Resting(resting) = slot {
        *slot = Slot::Open(blocks.wake(resting, config));
    }
    match slot {
        Slot::Open(tcb) => Some(tcb),
        Slot::Syn(_) | Slot::Resting(_) | Slot::TimeWait(_) => None,
    }
}
