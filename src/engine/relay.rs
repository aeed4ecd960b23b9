//! Moves stream octets between a flow and its socket, both ways, without a queue of its own.
//!
//! Upload: in-order octets are offered out of the packet ([`Output::Stream`]); what the socket does not take waits in the flow's
//! receive buffer, whose free space is the window that the app sees. Download: the socket is read straight into the flow's
//! send buffer, which frees space as the app's kernel acknowledges.
//!
//! Each direction ends by itself: FIN from the app becomes shutdown(2) of the socket, end of file on the socket becomes FIN to the app
//! (RFC 9293 3.6). A reset on either side resets the other.

use super::socket::{Half, Purpose, Stage};
use super::{Command, Engine, Output, SocketError, SocketId};
use crate::flow::FlowId;
use crate::time::Instant;

impl Engine {
    /// In-order octets of a flow, straight out of a packet.
    pub(super) fn offer<'p>(&mut self, flow: FlowId, payload: &'p [u8], now: Instant) -> Output<'p> {
        let socket = self.link_socket(flow);
        let upload = socket.and_then(|socket| self.sockets.tcp(socket)).map(|tcp| match &tcp.stage {
            Stage::Relay { upload, .. } => Some(*upload),
            Stage::Dialling
            | Stage::Held
            | Stage::Handshake { .. }
            | Stage::Warm { .. }
            | Stage::Control
            | Stage::Names => None,
        });
        match (socket, upload) {
            (Some(socket), Some(Some(Half::Open))) => return Output::Stream { socket, flow, payload },
            // The target no longer takes octets: they are swallowed until its own end shows how it ended.
            (Some(_), Some(Some(Half::Finished | Half::Broken))) => {
                self.keep(flow, payload, payload.len(), now)
            }
            // Accepted early: the octets wait for the outbound.
            (Some(_), Some(None)) => self.keep(flow, payload, 0, now),
            (Some(_), None) | (None, _) => {
                if self.has_link(flow) {
                    self.keep(flow, payload, 0, now);
                } else {
                    // The socket is closed for good; RFC 9293 3.6.1 SHLD-3 has the loss shown by RST.
                    self.keep(flow, payload, payload.len(), now);
                    self.abort_flow(flow, now);
                }
            }
        }
        Output::None
    }

    fn keep(&mut self, flow: FlowId, payload: &[u8], taken: usize, now: Instant) {
        self.stats.upload_octets += taken.min(payload.len()) as u64;
        if let Some(mut tcp) = self.stack.tcp(flow) {
            tcp.keep(payload, taken, now);
        }
    }

    /// The answer to [`Output::Stream`]: the socket took the first `taken` octets of `payload`.
    pub fn stream_written(&mut self, flow: FlowId, payload: &[u8], taken: usize, now: Instant) {
        self.keep(flow, payload, taken, now);
    }

    /// Room for octets of a socket, in two slices; `None` while none are wanted.
    pub fn read_space(&mut self, socket: SocketId) -> Option<(&mut [u8], &mut [u8])> {
        let tcp = self.sockets.tcp(socket)?;
        match (&tcp.stage, tcp.purpose) {
            (Stage::Dialling | Stage::Held, _) => None,
            (Stage::Handshake { .. } | Stage::Warm { .. } | Stage::Control, _) => {
                Some((&mut self.scratch, &mut []))
            }
            (Stage::Relay { early, download, .. }, Purpose::Flow(flow)) => {
                if early.is_some() || *download != Half::Open {
                    return None;
                }
                let (first, second) = self.stack.tcp(flow)?.into_send_buf();
                (!first.is_empty()).then_some((first, second))
            }
            (Stage::Names, Purpose::Names(stream)) => {
                // Answers wait for the TUN, and the server for them.
                if self.outbox.is_full() { None } else { Some((self.streams.space(stream)?, &mut [])) }
            }
            (Stage::Relay { .. } | Stage::Names, _) => None,
        }
    }

    /// The first `octets` of [`Engine::read_space`] were filled; zero gives the room back.
    pub fn read_done(&mut self, socket: SocketId, octets: usize, now: Instant) {
        let Some(tcp) = self.sockets.tcp(socket) else { return };
        match (&tcp.stage, tcp.purpose) {
            (
                Stage::Dialling
                | Stage::Held
                | Stage::Handshake { .. }
                | Stage::Warm { .. }
                | Stage::Control
                | Stage::Names,
                _,
            ) if octets == 0 => {}
            (Stage::Names, Purpose::Names(stream)) => self.stream_input(stream, octets, now),
            (Stage::Relay { .. }, Purpose::Flow(flow)) => {
                self.stats.download_octets += octets as u64;
                if let Some(mut tcp) = self.stack.tcp(flow) {
                    tcp.commit(octets, now);
                }
            }
            (Stage::Handshake { .. }, _) => self.handshake_input(socket, octets, now),
            // A server that speaks without being asked is not to be trusted with a request.
            (Stage::Warm { .. }, _) => self.pool_lost(socket),
            (Stage::Dialling | Stage::Held | Stage::Control | Stage::Names | Stage::Relay { .. }, _) => {}
        }
    }

    /// The socket has reached its end of file.
    pub fn read_eof(&mut self, socket: SocketId, now: Instant) {
        let Some(tcp) = self.sockets.tcp_mut(socket) else { return };
        let purpose = tcp.purpose;
        match (&mut tcp.stage, purpose) {
            (Stage::Relay { download, upload, .. }, Purpose::Flow(flow)) => {
                if *download == Half::Open {
                    *download = Half::Finished;
                    let broken = *upload == Half::Broken;
                    let early = self.flush_early(socket, now);
                    if let (Some(mut tcp), true) = (self.stack.tcp(flow), early) {
                        tcp.shutdown(now);
                    }
                    if broken {
                        self.finish_socket(socket, flow);
                    } else {
                        let _closed = self.close_if_finished(socket, flow);
                    }
                }
            }
            (Stage::Control, Purpose::Association(association)) => {
                log::debug!("the proxy ended a UDP association");
                self.remove_association(association);
            }
            (Stage::Warm { .. }, _) => self.pool_lost(socket),
            (
                Stage::Dialling
                | Stage::Held
                | Stage::Handshake { .. }
                | Stage::Relay { .. }
                | Stage::Control
                | Stage::Names,
                _,
            ) => {
                self.tcp_socket_failed(socket, SocketError::Reset, now);
            }
        }
    }

    /// Octets to be written to a socket, in two slices; `None` when there are none.
    pub fn write_slices(&mut self, socket: SocketId) -> Option<(&[u8], &[u8])> {
        let tcp = self.sockets.tcp(socket)?;
        match (&tcp.stage, tcp.purpose) {
            (Stage::Handshake { client, .. }, _) => {
                let output = client.output();
                (!output.is_empty()).then_some((output, &[]))
            }
            (Stage::Relay { upload: Half::Open, .. }, Purpose::Flow(flow)) => {
                let (first, second) = self.stack.tcp(flow)?.into_recv();
                (!first.is_empty()).then_some((first, second))
            }
            (Stage::Names, Purpose::Names(stream)) => {
                let output = self.streams.output(stream);
                (!output.is_empty()).then_some((output, &[]))
            }
            (
                Stage::Dialling
                | Stage::Held
                | Stage::Warm { .. }
                | Stage::Relay { .. }
                | Stage::Control
                | Stage::Names,
                _,
            ) => None,
        }
    }

    /// The socket took the first `octets` of [`Engine::write_slices`].
    pub fn write_done(&mut self, socket: SocketId, octets: usize, now: Instant) {
        let Some(tcp) = self.sockets.tcp_mut(socket) else { return };
        let purpose = tcp.purpose;
        match (&mut tcp.stage, purpose) {
            (Stage::Handshake { client, .. }, _) => client.wrote(octets),
            (Stage::Relay { .. }, Purpose::Flow(flow)) => {
                self.stats.upload_octets += octets as u64;
                if let Some(mut tcp) = self.stack.tcp(flow) {
                    tcp.consume(octets, now);
                }
                self.finish_upload(socket, flow);
            }
            (Stage::Names, Purpose::Names(stream)) => self.stream_wrote(stream, octets, now),
            (
                Stage::Dialling
                | Stage::Held
                | Stage::Warm { .. }
                | Stage::Relay { .. }
                | Stage::Control
                | Stage::Names,
                _,
            ) => {}
        }
    }

    /// The flow has octets for its socket, or its FIN has come.
    pub(super) fn flow_readable(&mut self, flow: FlowId, now: Instant) {
        let Some(socket) = self.link_socket(flow) else {
            if !self.has_link(flow) {
                self.drain_unlinked(flow, now);
            }
            return;
        };
        match self.sockets.tcp(socket).map(|tcp| &tcp.stage) {
            Some(Stage::Relay { upload: Half::Open, .. }) => {
                let waiting = self.stack.tcp(flow).is_some_and(|tcp| !tcp.recv().0.is_empty());
                if waiting {
                    self.commands.push_back(Command::Write { socket });
                } else {
                    self.finish_upload(socket, flow);
                }
            }
            Some(Stage::Relay { .. }) => self.discard_received(flow, now),
            Some(
                Stage::Dialling
                | Stage::Held
                | Stage::Handshake { .. }
                | Stage::Warm { .. }
                | Stage::Control
                | Stage::Names,
            )
            | None => {}
        }
    }

    /// Octets came in, out of order, for a flow whose socket is gone: the loss is shown by RST, a mere FIN is not.
    fn drain_unlinked(&mut self, flow: FlowId, now: Instant) {
        if self.stack.tcp(flow).is_some_and(|tcp| !tcp.recv().0.is_empty()) {
            self.abort_flow(flow, now);
        }
    }

    /// Frees what was received for a target that no longer takes octets.
    pub(super) fn discard_received(&mut self, flow: FlowId, now: Instant) {
        if let Some(mut tcp) = self.stack.tcp(flow) {
            let (first, second) = tcp.recv();
            let octets = first.len() + second.len();
            tcp.consume(octets, now);
            self.stats.upload_octets += octets as u64;
        }
    }

    /// The flow has room for octets of its socket.
    pub(super) fn flow_writable(&mut self, flow: FlowId) {
        if let Some(socket) = self.link_socket(flow) {
            self.commands.push_back(Command::Read { socket });
        }
    }

    /// Passes the app's FIN on once everything before it was written.
    pub(super) fn finish_upload(&mut self, socket: SocketId, flow: FlowId) {
        let finished = self.stack.tcp(flow).is_some_and(|tcp| tcp.recv_finished());
        let Some(tcp) = self.sockets.tcp_mut(socket) else { return };
        if let (Stage::Relay { upload, .. }, true) = (&mut tcp.stage, finished)
            && *upload == Half::Open
        {
            *upload = Half::Finished;
            if !self.close_if_finished(socket, flow) {
                self.commands.push_back(Command::Shutdown { socket });
            }
        }
    }

    /// The descriptor is given back as soon as both directions are finished on it; the flow lives on in the stack until the app's kernel
    /// has acknowledged everything. Whether it was: the close says what a shutdown would have said.
    fn close_if_finished(&mut self, socket: SocketId, flow: FlowId) -> bool {
        let Some(tcp) = self.sockets.tcp(socket) else { return false };
        if let Stage::Relay { early: None, upload: Half::Finished, download: Half::Finished } = &tcp.stage {
            self.finish_socket(socket, flow);
            return true;
        }
        false
    }

    fn finish_socket(&mut self, socket: SocketId, flow: FlowId) {
        self.unlink(flow);
        self.close_socket(socket, false);
    }

    /// Moves first data that came with the SOCKS5 reply into the send buffer; true when none is left.
    pub(super) fn flush_early(&mut self, socket: SocketId, now: Instant) -> bool {
        let Some(tcp) = self.sockets.tcp_mut(socket) else { return true };
        let (Stage::Relay { early, .. }, Purpose::Flow(flow)) = (&mut tcp.stage, tcp.purpose) else {
            return true;
        };
        while let Some(waiting) = early {
            let Some(mut tcp) = self.stack.tcp(flow) else { return true };
            let (space, _) = tcp.send_buf();
            let rest = waiting.octets.get(waiting.passed..).unwrap_or_default();
            let octets = space.len().min(rest.len());
            space[..octets].copy_from_slice(&rest[..octets]);
            tcp.commit(octets, now);
            self.stats.download_octets += octets as u64;
            waiting.passed += octets;
            if waiting.passed < waiting.octets.len() {
                if octets == 0 {
                    return false;
                }
            } else {
                *early = None;
            }
        }
        true
    }

    /// A relay's socket failed. What the target sent before stays readable on the socket after a failed write, so a broken upload
    /// alone does not end the flow: the end of the download does.
    pub(super) fn relay_failed(&mut self, socket: SocketId, flow: FlowId, now: Instant) {
        self.unlink(flow);
        self.close_socket(socket, true);
        self.abort_flow(flow, now);
    }

    /// A write to the socket failed: the target takes no more octets, but may have sent some before.
    pub fn handle_write_error(&mut self, socket: SocketId, error: SocketError, now: Instant) {
        let Some(tcp) = self.sockets.tcp_mut(socket) else { return };
        if let (Stage::Relay { upload, download, .. }, Purpose::Flow(flow)) = (&mut tcp.stage, tcp.purpose)
            && *download == Half::Open
        {
            *upload = Half::Broken;
            self.discard_received(flow, now);
            self.commands.push_back(Command::Read { socket });
            return;
        }
        self.handle_socket_error(socket, error, now);
    }
}
