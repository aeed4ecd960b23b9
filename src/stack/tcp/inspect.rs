//! What the table of connections holds, for reports: nothing here changes anything.
//!
//! A connection is looked at by its slab index, so that a report over many of them can be made in pieces: a walk that goes on
//! where it stopped sees every connection that lasts all the while, exactly once. What is counted per connection is counted where the
//! sequence numbers move, in 64 bits, since those wrap.

use super::tcb::{State, Tcb};
use super::{Slot, TcpLayer};
use crate::flow::{FlowId, FlowKey};
use crate::time::Instant;

/// Connection states of RFC 9293 3.3.2, of this end: the one that plays the app's remote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TcpState {
    /// A SYN has come and waits for its answer, or for the ACK of that.
    SynReceived,
    /// Open both ways.
    Established,
    /// We have sent FIN.
    FinWait1,
    /// Our FIN was acknowledged; the app may go on sending.
    FinWait2,
    /// The app has sent FIN; we may go on sending.
    CloseWait,
    /// Both have sent FIN at the same time.
    Closing,
    /// Our FIN, behind the app's, awaits its acknowledgement.
    LastAck,
    /// Over, and remembered.
    TimeWait,
    /// Over.
    Closed,
}

impl TcpState {
    /// The RFC's name.
    pub const fn name(self) -> &'static str {
        match self {
            TcpState::SynReceived => "SYN-RECEIVED",
            TcpState::Established => "ESTABLISHED",
            TcpState::FinWait1 => "FIN-WAIT-1",
            TcpState::FinWait2 => "FIN-WAIT-2",
            TcpState::CloseWait => "CLOSE-WAIT",
            TcpState::Closing => "CLOSING",
            TcpState::LastAck => "LAST-ACK",
            TcpState::TimeWait => "TIME-WAIT",
            TcpState::Closed => "CLOSED",
        }
    }
}

impl From<State> for TcpState {
    fn from(state: State) -> TcpState {
        match state {
            State::Established => TcpState::Established,
            State::FinWait1 => TcpState::FinWait1,
            State::FinWait2 => TcpState::FinWait2,
            State::CloseWait => TcpState::CloseWait,
            State::Closing => TcpState::Closing,
            State::LastAck => TcpState::LastAck,
            State::TimeWait => TcpState::TimeWait,
            State::Closed => TcpState::Closed,
        }
    }
}

/// One connection as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpInfo {
    /// Its name.
    pub flow: FlowId,
    /// Its ends.
    pub key: FlowKey,
    /// Its state.
    pub state: TcpState,
    /// Octets of text that the app has sent, in order.
    pub upload_octets: u64,
    /// Octets of text that the app's kernel has acknowledged.
    pub download_octets: u64,
    /// When it was opened: the SYN's arrival while that waits, else the end of the handshake.
    pub opened: Instant,
    /// When anything last came or went.
    pub last_active: Instant,
}

/// How many connections there are, and what they cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpCounts {
    /// In the SYN queue.
    pub syn: usize,
    /// Synchronised and not over.
    pub open: usize,
    /// In TIME-WAIT.
    pub time_wait: usize,
    /// Connections at most, all of these together.
    pub capacity: usize,
    /// Octets of buffers in use.
    pub buffer_octets: usize,
    /// Octets of buffers at most.
    pub buffer_budget: usize,
    /// Octets of the table and its blocks, buffers not counted.
    pub table_octets: usize,
}

impl TcpLayer {
    /// Counts. Cost: a look at each page of the tables.
    pub(crate) fn counts(&self) -> TcpCounts {
        let (syn, time_wait) = (self.syns, self.time_wait.len());
        let open = self.table.len().saturating_sub(syn + time_wait);
        TcpCounts {
            syn,
            open,
            time_wait,
            capacity: self.table.capacity(),
            buffer_octets: self.pool.used(),
            buffer_budget: self.config.tcp.buffer_budget,
            table_octets: self.table.octets()
                + self.timers.octets()
                + self.half_open.octets()
                + self.time_wait.octets()
                + self.blocks.used() * size_of::<Tcb>(),
        }
    }

    /// The connection at a slab index; constant time. One in TIME-WAIT is none: it has no counters any more.
    pub(crate) fn info(&self, index: u32) -> Option<TcpInfo> {
        let flow = self.table.id_at(index)?;
        let key = *self.table.key(flow)?;
        Some(match self.table.get(flow)? {
            Slot::Syn(entry) => TcpInfo {
                flow,
                key,
                state: TcpState::SynReceived,
                upload_octets: 0,
                download_octets: 0,
                opened: entry.arrived,
                last_active: entry.arrived,
            },
            Slot::Open(tcb) => TcpInfo {
                flow,
                key,
                state: tcb.state().into(),
                upload_octets: tcb.receive.octets,
                download_octets: tcb.delivered,
                opened: tcb.opened,
                last_active: tcb.last_active,
            },
            Slot::Resting(resting) => TcpInfo {
                flow,
                key,
                state: TcpState::Established,
                upload_octets: resting.receive.octets,
                download_octets: resting.delivered,
                opened: resting.opened,
                last_active: resting.last_active,
            },
            Slot::TimeWait(_) => return None,
        })
    }
}
