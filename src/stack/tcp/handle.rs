//! A handle on one TCP flow: what a socket is to a process.

use super::super::control::{ControlQueue, Limit};
use super::super::{DropReason, Refusal, Stats};
use super::tcb::{Fin, State};
use super::{Slot, TcpLayer};
use crate::flow::{FlowId, FlowKey};
use crate::time::Instant;
use crate::wire::icmp::Unreachable;
use crate::wire::tcp::{TcpFlags, TcpOptions, TcpSegment};

/// One TCP flow that is alive, from the SYN queue to the last acknowledgement.
#[derive(Debug)]
pub struct Tcp<'a> {
    pub(super) layer: &'a mut TcpLayer,
    pub(super) flow: FlowId,
    pub(super) key: FlowKey,
    pub(super) control: &'a mut ControlQueue,
    pub(super) stats: &'a mut Stats,
}

impl<'a> Tcp<'a> {
    /// The two ends.
    pub fn key(&self) -> FlowKey {
        self.key
    }

    /// Sends the SYN-ACK for a SYN that waits in the SYN queue; nothing when it was accepted before.
    pub fn accept(&mut self, now: Instant) {
        self.layer.accept(self.flow, self.control, now);
    }

    /// Refuses a SYN that waits in the SYN queue: the flow is gone and no event follows. A flow that is past that is aborted.
    pub fn refuse(self, why: Refusal, now: Instant) {
        let Some(Slot::Syn(syn)) = self.layer.table.get(self.flow) else { return self.abort(now) };
        if syn.answered.is_some() {
            return self.abort(now);
        }
        match why {
            // RFC 9293 3.10.7.1: the SYN has no ACK, so the reset has sequence number zero and acknowledges the SYN.
            Refusal::Reset => {
                let ack = Some(syn.irs + 1);
                self.control.reset(self.key, crate::wire::SeqNumber(0), ack, Limit::Flow, self.stats, now);
            }
            Refusal::Icmp(why) => {
                let segment = syn_of(self.key, syn.irs);
                unreachable(self.control, self.key, &segment, why, self.stats, now);
            }
            Refusal::Silent => {}
        }
        self.layer.forget(self.flow);
    }

    /// Ends an offer of [`crate::stack::Ingress::Stream`]: the socket took the first `taken` octets of `payload`, the others are buffered.
    /// When there is no memory for them they are forgotten unacknowledged, and the app's kernel sends them again.
    pub fn keep(&mut self, payload: &[u8], taken: usize, now: Instant) {
        if !self.layer.keep(self.flow, payload.get(taken..).unwrap_or_default(), self.control, now) {
            self.stats.drops[DropReason::Full as usize] += 1;
        }
    }

    /// In-order octets that are buffered, in two slices.
    pub fn recv(&self) -> (&[u8], &[u8]) {
        match self.layer.table.get(self.flow) {
            Some(Slot::Open(tcb)) => tcb.receive.readable(),
            Some(Slot::Syn(_) | Slot::Resting(_) | Slot::TimeWait(_)) | None => (&[], &[]),
        }
    }

    /// [`Tcp::recv`] for as long as the stack is borrowed.
    pub fn into_recv(self) -> (&'a [u8], &'a [u8]) {
        match self.layer.table.get(self.flow) {
            Some(Slot::Open(tcb)) => tcb.receive.readable(),
            Some(Slot::Syn(_) | Slot::Resting(_) | Slot::TimeWait(_)) | None => (&[], &[]),
        }
    }

    /// Frees the first `octets` of [`Tcp::recv`]; opens the window.
    pub fn consume(&mut self, octets: usize, now: Instant) {
        self.layer.consume(self.flow, octets, self.control, now);
    }

    /// Whether the app has sent FIN and everything before it was consumed.
    pub fn recv_finished(&self) -> bool {
        matches!(self.layer.table.get(self.flow), Some(Slot::Open(tcb)) if tcb.receive.finished())
    }

    /// Free space to be filled for the app, in two slices; both empty when there is none (full, not established, shut down,
    /// or the memory of all flows is spent). An event `Writable` follows when there is space again.
    pub fn send_buf(&mut self) -> (&mut [u8], &mut [u8]) {
        self.layer.send_buf(self.flow)
    }

    /// [`Tcp::send_buf`] for as long as the stack is borrowed.
    pub fn into_send_buf(self) -> (&'a mut [u8], &'a mut [u8]) {
        self.layer.send_buf(self.flow)
    }

    /// The first `octets` of [`Tcp::send_buf`] have been filled and are to be sent.
    pub fn commit(&mut self, octets: usize, now: Instant) {
        if let Some(Slot::Open(tcb)) = self.layer.table.get_mut(self.flow) {
            tcb.send.commit(octets);
        }
        self.layer.schedule(self.flow, now);
    }

    /// Octets committed and not yet acknowledged by the app's kernel.
    pub fn send_queue(&self) -> usize {
        match self.layer.table.get(self.flow) {
            Some(Slot::Open(tcb)) => tcb.send.len(),
            Some(Slot::Syn(_) | Slot::Resting(_) | Slot::TimeWait(_)) | None => 0,
        }
    }

    /// Sends FIN after everything committed. The other direction goes on. Calling it again does nothing.
    pub fn shutdown(&mut self, now: Instant) {
        if let Some(tcb) = self.layer.awake(self.flow)
            && tcb.fin == Fin::None
        {
            tcb.fin = Fin::Queued;
        }
        self.layer.schedule(self.flow, now);
    }

    /// Sends RST and forgets the flow; no event follows.
    pub fn abort(self, now: Instant) {
        self.layer.reset(self.flow, self.key, self.control, self.stats, now);
        self.layer.forget(self.flow);
    }

    /// Whether the three-way handshake is complete and neither side has closed.
    pub fn is_established(&self) -> bool {
        match self.layer.table.get(self.flow) {
            Some(Slot::Open(tcb)) => tcb.state() == State::Established,
            Some(Slot::Resting(_)) => true,
            Some(Slot::Syn(_) | Slot::TimeWait(_)) | None => false,
        }
    }
}

/// The SYN that was received, as far as an ICMP error quotes it.
fn syn_of(key: FlowKey, irs: crate::wire::SeqNumber) -> TcpSegment<'static> {
    TcpSegment {
        src_port: key.local.port,
        dst_port: key.remote.port,
        seq: irs,
        ack: crate::wire::SeqNumber(0),
        flags: TcpFlags::SYN,
        window: 0,
        urgent: 0,
        options: TcpOptions::default(),
        payload: &[],
    }
}

/// An ICMP error about a segment from the app, whose headers are written again to be quoted.
fn unreachable(
    control: &mut ControlQueue,
    key: FlowKey,
    segment: &TcpSegment<'_>,
    why: Unreachable,
    stats: &mut Stats,
    now: Instant,
) {
    let mut quoted = [0; 80];
    let header =
        super::super::egress::ip_header(key.local.addr, key.remote.addr, crate::wire::ip::protocol::TCP);
    let len = header.emit(&mut quoted, segment.header_len());
    let len = len + segment.emit_header(&mut quoted[len..]);
    control.unreachable(&quoted[..len], why, stats, now);
}
