//! Segments for a connection that is not synchronised: LISTEN, SYN-RECEIVED and TIME-WAIT.
//!
//! Every port listens. A SYN becomes an entry of the SYN queue and an event; [`TcpLayer::accept`] starts the SYN-ACKs, and the ACK that answers one
//! turns the entry into a block. The entries themselves, what they cost and what they say are in [`handshake`](super::handshake).

use super::handshake::{Offer, SynEntry};
use super::tcb::Tcb;
use super::{Slot, TcpLayer};
use crate::flow::{FlowId, FlowKey};
use crate::stack::control::{ControlQueue, Limit};
use crate::stack::{Closed, DropReason, Ingress, StackEvent, Stats};
use crate::time::Instant;
use crate::wire::SeqNumber;
use crate::wire::tcp::{TcpFlags, TcpOptions, TcpSegment};

/// How far behind the last sequence number of a connection in TIME-WAIT its successor starts at least: more than any unscaled window.
const BEYOND_TIME_WAIT: u32 = 1 << 17;

/// Whether there is room for a SYN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Room {
    /// There is.
    Free,
    /// The SYN queue is full of connections that are being made: the SYN is passed over, and its sender repeats it.
    Later,
    /// The table is full of connections.
    None,
}

impl TcpLayer {
    /// CLOSED and LISTEN: RFC 9293 3.10.7.1 and 3.10.7.2. Every port listens.
    pub(super) fn unknown<'p>(
        &mut self,
        key: FlowKey,
        segment: &TcpSegment<'p>,
        control: &mut ControlQueue,
        stats: &mut Stats,
        now: Instant,
    ) -> Result<Ingress<'p>, DropReason> {
        let flags = segment.flags;
        if flags.rst() {
            return Err(DropReason::NoFlow);
        }
        if flags.ack() {
            control.reset(key, segment.ack, None, Limit::Stray, stats, now);
            return Err(DropReason::NoFlow);
        }
        if !flags.syn() {
            let ack = segment.seq + segment.len();
            control.reset(key, SeqNumber(0), Some(ack), Limit::Stray, stats, now);
            return Err(DropReason::NoFlow);
        }
        if flags.fin() {
            return Err(DropReason::Unacceptable);
        }
        match self.make_room(control, now) {
            Room::Free => {}
            Room::Later => {
                stats.syn_dropped_full += 1;
                return Err(DropReason::Full);
            }
            Room::None => {
                stats.syn_refused_full += 1;
                control.reset(key, SeqNumber(0), Some(segment.seq + 1), Limit::Stray, stats, now);
                return Err(DropReason::Full);
            }
        }
        let entry = self.new_entry(key, segment, now);
        let Ok(flow) = self.table.insert(key, Slot::Syn(entry)) else { return Err(DropReason::Full) };
        self.syns += 1;
        self.timers.set(flow.index(), entry.deadline(&self.config.tcp));
        self.events.push_back(StackEvent::Syn { flow });
        Ok(Ingress::Consumed)
    }

    /// RFC 6528 3: a clock of 4 microseconds and a keyed hash of the two ends.
    fn new_entry(&self, key: FlowKey, syn: &TcpSegment<'_>, now: Instant) -> SynEntry {
        let clock = (now.as_micros() / 4) as u32;
        let iss = SeqNumber((self.isn.strong(&key) as u32).wrapping_add(clock));
        let offset = self.offsets.strong(&(key.local.addr, key.remote.addr)) as u32;
        SynEntry::new(syn, iss, offset, key.local.addr.is_ipv6(), now)
    }

    /// Makes room for another SYN. In a full SYN queue the oldest entry gives way whose SYN-ACK is overdue: the apps' kernel answers at once, a
    /// forged sender never. In a full table the oldest connection in TIME-WAIT does. Everything else is kept.
    fn make_room(&mut self, control: &mut ControlQueue, now: Instant) -> Room {
        if self.syns >= self.config.tcp.max_syn {
            let oldest = self.half_open.oldest().and_then(|index| self.table.id_at(index));
            let overdue = |flow: &FlowId| match self.table.get(*flow) {
                Some(Slot::Syn(entry)) => entry.overdue(now),
                Some(Slot::Open(_) | Slot::Resting(_) | Slot::TimeWait(_)) | None => false,
            };
            let Some(oldest) = oldest.filter(overdue) else { return Room::Later };
            self.end(oldest, Closed::TimedOut, control, now);
        }
        if self.table.is_full() {
            let Some(oldest) = self.time_wait.oldest().and_then(|index| self.table.id_at(index)) else {
                return Room::None;
            };
            self.forget(oldest);
        }
        Room::Free
    }

    /// SYN-RECEIVED, or a SYN that the caller has not answered: RFC 9293 3.10.7.4 for that state.
    pub(super) fn syn_received<'p>(
        &mut self,
        flow: FlowId,
        key: FlowKey,
        segment: &TcpSegment<'p>,
        control: &mut ControlQueue,
        stats: &mut Stats,
        now: Instant,
    ) -> Result<Ingress<'p>, DropReason> {
        let offer = Offer::new(&self.config, key.local.addr.is_ipv6());
        let Some(Slot::Syn(entry)) = self.table.get_mut(flow) else { return Err(DropReason::NoFlow) };
        let flags = segment.flags;
        let rcv_nxt = entry.irs + 1;
        let within = segment.seq.ge(rcv_nxt) && segment.seq.lt(rcv_nxt + u32::from(offer.window).max(1));
        if flags.rst() {
            if segment.seq == rcv_nxt {
                self.end(flow, Closed::Reset, control, now);
                return Ok(Ingress::Consumed);
            }
            if within {
                challenge(entry, key, offer, control, stats, now);
            }
            return Err(DropReason::Unacceptable);
        }
        if flags.syn() {
            return self.syn_again(flow, key, segment, offer, control, stats, now);
        }
        if !flags.ack() {
            return Err(DropReason::Unacceptable);
        }
        if entry.answered.is_none() || segment.ack != entry.iss + 1 {
            control.reset(key, segment.ack, None, Limit::Stray, stats, now);
            return Err(DropReason::Unacceptable);
        }
        if entry.timestamps_old(segment) {
            return Err(DropReason::Paws);
        }
        if !within {
            challenge(entry, key, offer, control, stats, now);
            return Err(DropReason::Unacceptable);
        }
        let settled = entry.settle(segment, offer, now);
        let tcb = self.blocks.open(Tcb::new(&settled, &self.config.tcp, now));
        if let Some(slot) = self.table.get_mut(flow) {
            *slot = Slot::Open(tcb);
        }
        self.syns -= 1;
        self.half_open.remove(flow.index());
        self.timers.cancel(flow.index());
        stats.established += 1;
        self.events.push_back(StackEvent::Established { flow });
        self.open(flow, segment, control, stats, now)
    }

    /// Another SYN for an entry of the SYN queue.
    #[allow(clippy::too_many_arguments, reason = "the parts of the layer that a segment may touch")]
    fn syn_again<'p>(
        &mut self,
        flow: FlowId,
        key: FlowKey,
        segment: &TcpSegment<'p>,
        offer: Offer,
        control: &mut ControlQueue,
        stats: &mut Stats,
        now: Instant,
    ) -> Result<Ingress<'p>, DropReason> {
        let fresh = self.new_entry(key, segment, now);
        let Some(Slot::Syn(entry)) = self.table.get_mut(flow) else { return Err(DropReason::NoFlow) };
        if segment.flags.ack() || segment.flags.fin() {
            return Err(DropReason::Unacceptable);
        }
        match (entry.answered, segment.seq == entry.irs) {
            // Sent again while the outbound is being opened: nothing to say yet.
            (None, true) => {}
            // The app has given up and tries anew from the same port.
            (None, false) => {
                let arrived = entry.arrived;
                *entry = fresh;
                entry.arrived = arrived;
            }
            (Some(_), true) => control.segment(key, &entry.syn_ack(key, offer, now)),
            (Some(_), false) => {
                challenge(entry, key, offer, control, stats, now);
                return Err(DropReason::Unacceptable);
            }
        }
        Ok(Ingress::Consumed)
    }

    /// TIME-WAIT: RFC 9293 3.10.7.4 and 3.6.1; RST is ignored (RFC 1337).
    pub(super) fn time_waiting<'p>(
        &mut self,
        flow: FlowId,
        key: FlowKey,
        segment: &TcpSegment<'p>,
        control: &mut ControlQueue,
        stats: &mut Stats,
        now: Instant,
    ) -> Result<Ingress<'p>, DropReason> {
        let until = now + self.config.tcp.time_wait;
        let Some(Slot::TimeWait(entry)) = self.table.get_mut(flow) else { return Err(DropReason::NoFlow) };
        let flags = segment.flags;
        if flags.rst() {
            return Err(DropReason::Unacceptable);
        }
        if flags.syn() && !flags.ack() && !flags.fin() && entry.superseded_by(segment) {
            let least = entry.snd_nxt + BEYOND_TIME_WAIT;
            self.forget(flow);
            let taken = self.unknown(key, segment, control, stats, now);
            // A fast connection outruns the clock of the ISN (RFC 9293 3.6.1).
            if let Some(Slot::Syn(entry)) = self.table.find(&key).and_then(|flow| self.table.get_mut(flow)) {
                entry.iss = entry.iss.max(least);
            }
            return taken;
        }
        if flags.fin() {
            entry.until = until;
        }
        if !segment.is_empty()
            && let Some(answer) = entry.answer(key, now)
        {
            control.segment(key, &answer);
        }
        Err(DropReason::Unacceptable)
    }

    pub(super) fn accept(&mut self, flow: FlowId, control: &mut ControlQueue, now: Instant) {
        let Some(key) = self.table.key(flow).copied() else { return };
        if matches!(self.table.get(flow), Some(Slot::Syn(entry)) if entry.answered.is_none()) {
            self.send_syn_ack(flow, key, control, now);
            self.half_open.touch(flow.index());
        }
    }

    pub(super) fn send_syn_ack(
        &mut self,
        flow: FlowId,
        key: FlowKey,
        control: &mut ControlQueue,
        now: Instant,
    ) {
        let offer = Offer::new(&self.config, key.local.addr.is_ipv6());
        if let Some(Slot::Syn(entry)) = self.table.get_mut(flow) {
            let next = entry.sent(&self.config.tcp, now);
            control.segment(key, &entry.syn_ack(key, offer, now));
            self.timers.set(flow.index(), next);
        }
    }
}

/// A challenge ACK for a connection that is not synchronised, at most one a second.
fn challenge(
    entry: &mut SynEntry,
    key: FlowKey,
    offer: Offer,
    control: &mut ControlQueue,
    stats: &mut Stats,
    now: Instant,
) {
    if entry.answered.is_none() || now.since(entry.challenged) < crate::time::Duration::from_secs(1) {
        return;
    }
    entry.challenged = now;
    stats.challenge_acks += 1;
    let mut ack = entry.syn_ack(key, offer, now);
    ack.flags = TcpFlags::ACK;
    ack.seq = entry.iss + 1;
    ack.options = TcpOptions { timestamps: ack.options.timestamps, ..TcpOptions::default() };
    control.segment(key, &ack);
}
