//! Whether a connection still gets through, as the kernel knows it; and the interface that it is to leave by.
//!
//! Nobody can tell by looking whether what is sent on a connection still arrives. So a connection in doubt is put to the question
//! ([`Scene::question`]). A living one answers and notices nothing, however slow it is and however small its window:
//!
//! - While nothing waits for an acknowledgement the kernel probes it (SO_KEEPALIVE, RFC 9293 3.8.4), a second apart, and ends it itself when nothing
//!   at all has come for [`PROBES`] of them.
//! - While something does it is sent again and again, further apart each time (RFC 6298 5.5): [`Scene::is_stuck`] tells when that has been in
//!   vain too often.
//!
//! The way there may be cut and the way back not. Then the peer, which sees no acknowledgement of ours, sends again what has long come, and the kernel
//! takes that for a sign of life. But the peer's pauses double too, so that one of them is long enough for the probes within [`QUESTION`].

use super::{Io, Scene, options};
use crate::engine::SocketId;
use crate::time::Duration;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::num::NonZeroU32;

/// The pause before a probe.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Probes without an answer after which the kernel ends a connection.
const PROBES: u32 = 8;
/// Times that the same octets were sent again in vain: 6 s of silence where the round trip is short, a minute where it takes two seconds.
const STUCK: u8 = 5;
/// How long a question takes at most: the peer's pause that begins before 15 s is long enough for the probes, and over before this.
pub const QUESTION: Duration = Duration::from_secs(30);

impl<D> Scene<'_, D> {
    /// Asks whether a TCP connection still gets through. One that does not fails by itself, as connections do, or is stuck ([`Scene::is_stuck`]).
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn question(&self, socket: SocketId) -> io::Result<()> {
        let Some(stream) = self.stream(socket) else { return Ok(()) };
        let keepalive = TcpKeepalive::new().with_time(PROBE_EVERY).with_interval(PROBE_EVERY);
        stream.set_tcp_keepalive(&keepalive.with_retries(PROBES))
    }

    /// Ends the question.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn acquit(&self, socket: SocketId) -> io::Result<()> {
        self.stream(socket).map_or(Ok(()), |stream| stream.set_keepalive(false))
    }

    /// Whether what was sent on a TCP connection is sent again and again in vain.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn is_stuck(&self, socket: SocketId) -> io::Result<bool> {
        self.stream(socket).map_or(Ok(false), |stream| options::is_stuck(&stream, STUCK))
    }

    /// Has a connected socket leave by this interface only, or by the one that the routes say.
    ///
    /// # Errors
    ///
    /// The system's; EPERM without CAP_NET_RAW when it is bound to another already.
    pub fn pin(&self, socket: SocketId, interface: Option<NonZeroU32>) -> io::Result<()> {
        let Some(os_socket) = self.os_socket(socket) else { return Ok(()) };
        let (borrowed, v6) = match &os_socket.io {
            Io::Tcp { stream, .. } => (SockRef::from(stream), stream.local_addr()?.is_ipv6()),
            Io::Udp(udp) => (SockRef::from(&udp.socket), udp.socket.local_addr()?.is_ipv6()),
        };
        options::bind_to(&borrowed, interface, v6)
    }

    fn os_socket(&self, id: SocketId) -> Option<&super::OsSocket> {
        self.sockets.get(id)
    }

    fn stream(&self, id: SocketId) -> Option<SockRef<'_>> {
        match &self.os_socket(id)?.io {
            Io::Tcp { stream, .. } => Some(SockRef::from(stream)),
            Io::Udp(_) => None,
        }
    }
}
