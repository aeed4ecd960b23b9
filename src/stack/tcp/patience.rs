//! Acknowledgements that wait for more packets of the device.
//!
//! An acknowledgement is a packet, and a visit of the app's kernel. While the device has more packets than one turn takes, those of streams
//! that could go on for long without one wait for the next turns: one then stands for all. RFC 9293 3.8.6.3 asks for one for every second full
//! segment and none later than half a second; a queue that is never empty makes them wait for [`PATIENCE`] at most.

use super::TcpLayer;
use super::tcb::{Ack, Fin, Forced, Tcb};
use crate::flow::FlowId;
use crate::stack::Stack;
use crate::time::{Duration, Instant};
use std::collections::VecDeque;

/// A few turns of the loop.
const PATIENCE: Duration = Duration::from_millis(1);

/// Flows that owe nothing but an acknowledgement, for which there is time.
#[derive(Debug, Default)]
pub(super) struct Patient {
    flows: VecDeque<FlowId>,
    /// Since when, if more packets are to come.
    since: Option<Instant>,
}

impl Patient {
    /// Whether the flow waits; it stays counted as queued.
    pub(super) fn takes(&mut self, flow: FlowId, tcb: &Tcb) -> bool {
        let takes = self.since.is_some() && tcb.can_wait();
        if takes {
            self.flows.push_back(flow);
        }
        takes
    }
}

impl Stack {
    /// Tells that a batch of packets was handled; to be called before [`Stack::poll_transmit`] by a caller that takes packets in batches, and
    /// by no other. `more`: the device has others, and the next batch follows at once. Acknowledgements of bulk data may wait for it.
    pub fn end_of_batch(&mut self, more: bool, now: Instant) {
        self.tcp.end_of_batch(more, now);
    }
}

impl TcpLayer {
    fn end_of_batch(&mut self, more: bool, now: Instant) {
        self.ready.append(&mut self.patient.flows);
        self.patient.since = match self.patient.since {
            Some(since) if more && now.since(since) < PATIENCE => Some(since),
            // Those that have waited go now; the next wait is from the next turn on.
            Some(_) => None,
            None => more.then_some(now),
        };
    }
}

impl Tcb {
    /// Whether all that is due is an acknowledgement that the app can do without for a while: the stream is in order, and a small part of
    /// the window is not acknowledged.
    fn can_wait(&self) -> bool {
        let nothing_else = self.forced == Forced::No
            && !self.flight.has_lost()
            && self.unsent() == 0
            && self.fin != Fin::Queued
            && !self.receive.has_gap()
            && !self.receive.fin_in_order();
        let bulk = self.unacknowledged >= 2 * self.mss && self.unacknowledged <= self.receive.window() / 4;
        nothing_else && bulk && matches!(self.ack, Ack::Now(1))
    }
}
