//! What the engine knows of each TCP flow: from the SYN to the relay, and which socket carries it.

use super::SocketId;
use super::socket::Via;
use crate::flow::{FlowId, Paged};
use crate::wire::Endpoint;

/// How far a flow has come whose octets do not flow yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// The driver is looking for the owner of the app's socket.
    Identifying,
    /// Accepted early: the app's ACK is awaited.
    Accepted(Via),
    /// Too many attempts to this destination are unanswered.
    Parked,
    /// A connection is being opened.
    Opening(SocketId),
}

/// A flow whose way out is being opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Opening {
    pub(super) remote: Endpoint,
    pub(super) phase: Phase,
}

/// What the engine knows of a TCP flow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Link {
    /// Its way out is being opened.
    Opening(Box<Opening>),
    /// Octets flow through this socket.
    Relaying(SocketId),
}

/// What a flow costs here whose octets flow.
const _: () = assert!(size_of::<Option<(FlowId, Link)>>() <= 24);

/// TCP flows by the stack's flow index.
#[derive(Debug)]
pub(super) struct Links {
    entries: Paged<Option<(FlowId, Link)>>,
}

impl Default for Links {
    fn default() -> Links {
        Links { entries: Paged::new(|| None) }
    }
}

impl Links {
    pub(super) fn get(&self, flow: FlowId) -> Option<&Link> {
        self.entries.get(flow.index())?.as_ref().filter(|(id, _)| *id == flow).map(|(_, link)| link)
    }

    /// A flow whose way out is being opened.
    pub(super) fn opening(&self, flow: FlowId) -> Option<&Opening> {
        match self.get(flow)? {
            Link::Opening(opening) => Some(opening),
            Link::Relaying(_) => None,
        }
    }

    pub(super) fn set(&mut self, flow: FlowId, link: Link) {
        match self.entries.get_mut(flow.index()) {
            Some(entry @ Some(_)) => *entry = Some((flow, link)),
            Some(None) | None => *self.entries.claim(flow.index()) = Some((flow, link)),
        }
    }

    /// A flow whose way out is being opened has come further.
    pub(super) fn set_phase(&mut self, flow: FlowId, phase: Phase) {
        if let Some(Some((id, Link::Opening(opening)))) = self.entries.get_mut(flow.index())
            && *id == flow
        {
            opening.phase = phase;
        }
    }

    pub(super) fn remove(&mut self, flow: FlowId) -> Option<Link> {
        self.get(flow)?;
        self.entries.release(flow.index()).map(|(_, link)| link)
    }

    /// All flows whose way out is being opened. Cost: the whole table.
    pub(super) fn all_opening(&mut self) -> impl Iterator<Item = &mut Opening> {
        self.entries.iter_mut().filter_map(|entry| match entry {
            Some((_, Link::Opening(opening))) => Some(&mut **opening),
            Some((_, Link::Relaying(_))) | None => None,
        })
    }

    /// Octets of the table.
    pub(super) fn octets(&self) -> usize {
        self.entries.octets()
    }
}
