//! Sockets as the engine sees them: a name, a purpose and a stage, never a descriptor.
//!
//! The driver owns the descriptors and keeps them under the same [`SocketId`]. An id carries a
//! generation, so an event that the kernel reported for a socket already closed finds nothing.

use crate::dns::streams::StreamId;
use crate::flow::{FlowId, Slab};
use crate::outbound::socks5::Client;

/// Names one socket of the driver for as long as it lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SocketId(FlowId);

impl SocketId {
    /// Dense index, reused after the socket is gone.
    pub const fn index(self) -> u32 {
        self.0.index()
    }

    /// Index and generation in one word, for a poll token.
    pub const fn to_bits(self) -> u64 {
        self.0.to_bits()
    }

    /// The inverse of [`SocketId::to_bits`].
    pub const fn from_bits(bits: u64) -> SocketId {
        SocketId(FlowId::from_bits(bits))
    }
}

/// What a TCP connection is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// To carry a TCP flow.
    Flow(FlowId),
    /// To hold a UDP association open (RFC 1928 7).
    Association(FlowId),
    /// To carry queries to a name server.
    Names(StreamId),
    /// To wait, past the method negotiation, for one of the above.
    Pool,
    /// To find out whether the proxy understands what is said at once.
    Trial,
}

/// One direction of a relay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Half {
    /// Octets may still come.
    Open,
    /// FIN was passed on.
    Finished,
    /// The receiving side is gone; octets are thrown away.
    Broken,
}

/// How far a TCP connection has come.
#[derive(Debug)]
pub(super) enum Stage {
    /// connect(2) is under way.
    Dialling,
    /// There is no way out of the machine at present: the driver has no socket. It is dialled again when the network has changed, or
    /// given up when its time is over.
    Held,
    /// SOCKS5 is spoken. `reused`: the connection came out of the pool, so that its failure before any answer says nothing about the target.
    Handshake {
        /// The dialogue.
        client: Box<Client>,
        /// From the pool.
        reused: bool,
    },
    /// In the pool, past the method negotiation.
    Warm {
        /// The dialogue, waiting for a request.
        client: Box<Client>,
    },
    /// Octets go to and fro.
    Relay {
        /// First data of the target that came with the reply, held until the app's side is established.
        early: Option<Box<Early>>,
        /// App to socket.
        upload: Half,
        /// Socket to app.
        download: Half,
    },
    /// The control connection of an association: nothing is expected but its end.
    Control,
    /// Queries and answers of a name server go to and fro.
    Names,
}

/// First data of the target.
#[derive(Debug)]
pub(super) struct Early {
    pub(super) octets: Vec<u8>,
    /// So many of them were passed on.
    pub(super) passed: usize,
}

impl Early {
    /// `None` for none.
    pub(super) fn new(octets: Vec<u8>) -> Option<Box<Early>> {
        (!octets.is_empty()).then(|| Box::new(Early { octets, passed: 0 }))
    }
}

/// Which way a TCP connection leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Via {
    /// To the proxy with this index in the configuration.
    Proxy(usize),
    /// To the target itself.
    Direct,
}

/// A TCP connection.
#[derive(Debug)]
pub(super) struct TcpSocket {
    pub(super) purpose: Purpose,
    pub(super) via: Via,
    pub(super) stage: Stage,
}

/// Any socket.
#[derive(Debug)]
pub(super) enum Socket {
    /// TCP.
    Tcp(TcpSocket),
    /// UDP, serving the association with this id.
    Udp(FlowId),
}

/// What a socket costs here: a flow has one, a UDP mapping through the proxy two.
const _: () = assert!(size_of::<Socket>() <= 48);

/// All sockets.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    entries: Slab<Socket>,
}

impl Sockets {
    pub(super) fn insert(&mut self, socket: Socket) -> SocketId {
        let inserted = self.entries.insert(socket);
        SocketId(inserted.expect("the number of sockets is bounded by the flow tables, far below 2^32"))
    }

    pub(super) fn get(&self, id: SocketId) -> Option<&Socket> {
        self.entries.get(id.0)
    }

    pub(super) fn get_mut(&mut self, id: SocketId) -> Option<&mut Socket> {
        self.entries.get_mut(id.0)
    }

    pub(super) fn tcp_mut(&mut self, id: SocketId) -> Option<&mut TcpSocket> {
        match self.get_mut(id)? {
            Socket::Tcp(tcp) => Some(tcp),
            Socket::Udp(_) => None,
        }
    }

    pub(super) fn tcp(&self, id: SocketId) -> Option<&TcpSocket> {
        match self.get(id)? {
            Socket::Tcp(tcp) => Some(tcp),
            Socket::Udp(_) => None,
        }
    }

    /// The live id at a slab index, as a timer gives it back.
    pub(super) fn id_at(&self, index: u32) -> Option<SocketId> {
        self.entries.id_at(index).map(SocketId)
    }

    pub(super) fn remove(&mut self, id: SocketId) -> Option<Socket> {
        self.entries.remove(id.0)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn ids(&self) -> Vec<SocketId> {
        self.entries.ids().map(SocketId).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_a_socket_that_is_gone_never_names_its_successor() {
        let mut sockets = Sockets::default();
        let warm =
            || Socket::Tcp(TcpSocket { purpose: Purpose::Pool, via: Via::Direct, stage: Stage::Dialling });
        let first = sockets.insert(warm());
        assert!(sockets.remove(first).is_some());
        let second = sockets.insert(warm());
        assert_eq!(first.index(), second.index());
        assert!(sockets.get(first).is_none() && sockets.remove(first).is_none());
        assert_eq!(SocketId::from_bits(second.to_bits()), second);
        assert_eq!(sockets.id_at(second.index()), Some(second));
        assert_eq!(sockets.len(), 1);
    }
}
