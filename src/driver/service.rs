//! What the loop drives besides packets and sockets: the network monitor, the control socket, metrics, the keeper of the device.
//!
//! # Theory of operation
//!
//! A [`Service`] has sources and deadlines of its own. The loop registers the sources under tokens of the service's, tells it when one of them is
//! ready or a deadline has passed, and lends it the [`Scene`] for the time of the call: the engine, how sockets leave the machine, the
//! sockets themselves, the device. A service never blocks, and what it does in one call is bounded, so that no packet waits for it.
//!
//! A device that is gone leaves an empty place in the scene. Where a service fills it ([`Service::renews_device`]), the loop goes on without one
//! meanwhile: sockets are served, packets wait in the engine. Where none does, the loop ends.

use super::queue::Turn;
use super::{Driver, EgressBinding, Io};
use crate::engine::{Engine, SocketId};
use crate::time::Instant;
use crate::tun::Device;
use mio::event::Event;
use mio::{Registry, Token};
use std::io;
use std::net::SocketAddr;

/// Tokens whose upper half is all ones are no sockets': those of the loop itself have the highest numbers, the services' start here.
const FIRST: u64 = (u32::MAX as u64) << 32;
/// Sources that one service may have.
const EACH: u64 = 1 << 16;

/// The tokens of one service, numbered from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tokens(u64);

impl Tokens {
    pub(super) fn of(service: usize) -> Tokens {
        Tokens(FIRST + EACH * service as u64)
    }

    /// The token with this number.
    pub fn token(self, number: u16) -> Token {
        Token((self.0 + u64::from(number)) as usize)
    }

    /// Service and number of a token; `None` when it is a socket's.
    pub(super) fn split(token: Token) -> Option<(usize, u16)> {
        let offset = (token.0 as u64).checked_sub(FIRST)?;
        Some(((offset / EACH) as usize, (offset % EACH) as u16))
    }
}

/// A part of a run that the loop drives.
pub trait Service<D> {
    /// Registers what it listens to. Its tokens are its own for as long as the loop lives.
    ///
    /// # Errors
    ///
    /// The system's; the loop is not built then.
    fn register(&mut self, registry: &Registry, tokens: Tokens) -> io::Result<()>;

    /// The source with this number is ready; edge-triggered, as all of mio's are.
    fn handle_event(&mut self, number: u16, event: &Event, scene: &mut Scene<'_, D>, now: Instant);

    /// When [`Service::handle_timeout`] is wanted next.
    fn poll_timeout(&self) -> Option<Instant>;

    /// The deadline has passed, or the device is gone.
    fn handle_timeout(&mut self, scene: &mut Scene<'_, D>, now: Instant);

    /// The loop was asked to stop: nobody new is listened to from here on. Called before any flow is closed.
    fn handle_stop(&mut self, scene: &mut Scene<'_, D>) {
        let _nothing_listens = scene;
    }

    /// Whether it puts a new device where one is gone.
    fn renews_device(&self) -> bool {
        false
    }
}

/// What a service sees and may change, for the time of one call.
pub struct Scene<'a, D> {
    /// For sources that come and go.
    pub registry: &'a Registry,
    /// The engine; what it wants done is done after the call.
    pub engine: &'a mut Engine,
    /// How sockets that are opened from here on leave the machine.
    pub binding: &'a mut EgressBinding,
    /// The device; empty when it is gone. One that is put here is registered after the call.
    pub device: &'a mut Option<D>,
    /// Whether a device that is gone is made anew.
    pub(super) renewed: bool,
    pub(super) sockets: &'a super::sockets::OsSockets,
    pub(super) stop: &'a mut bool,
}

impl<D> std::fmt::Debug for Scene<'_, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scene").field("binding", &self.binding).finish_non_exhaustive()
    }
}

/// One of the loop's sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketView {
    /// The engine's name of it.
    pub id: SocketId,
    /// Whether it is a TCP connection.
    pub tcp: bool,
    /// The end on this machine; `None` when the system cannot tell.
    pub local: Option<SocketAddr>,
    /// The other end; `None` for a socket that is not connected.
    pub peer: Option<SocketAddr>,
}

impl<D> Scene<'_, D> {
    /// Every socket. Cost: two system calls for each.
    pub fn sockets(&self) -> impl Iterator<Item = SocketView> {
        self.sockets.iter().map(|socket| {
            let (tcp, local, peer) = match &socket.io {
                Io::Tcp { stream, .. } => (true, stream.local_addr(), stream.peer_addr()),
                Io::Udp(udp) => (false, udp.socket.local_addr(), udp.socket.peer_addr()),
            };
            SocketView { id: socket.id, tcp, local: local.ok(), peer: peer.ok() }
        })
    }

    /// Lets go of a device that is not what it was; it is renewed as one that is gone. Where nobody does that it is kept.
    pub fn drop_device(&mut self)
    where
        D: Device,
    {
        if self.renewed
            && let Some(mut device) = self.device.take()
            && let Err(error) = device.ignore(self.registry)
        {
            log::debug!("deregister: {error}");
        }
    }

    /// Has the loop end as one signal does.
    pub fn ask_to_stop(&mut self) {
        *self.stop = true;
    }
}

impl<D: Device> Driver<D> {
    pub(super) fn register_services(&mut self) -> io::Result<()> {
        for (index, service) in self.services.iter_mut().enumerate() {
            service.register(self.poll.registry(), Tokens::of(index))?;
        }
        Ok(())
    }

    pub(super) fn service_event(&mut self, index: usize, number: u16, event: &Event, now: Instant) {
        self.with_service(index, |service, scene| service.handle_event(number, event, scene, now));
    }

    /// When a service wants its time.
    pub(super) fn services_timeout(&self) -> Option<Instant> {
        self.services.iter().filter_map(|service| service.poll_timeout()).min()
    }

    pub(super) fn serve_services(&mut self, now: Instant) {
        for index in 0..self.services.len() {
            if self.services[index].poll_timeout().is_some_and(|at| at <= now) {
                self.with_service(index, |service, scene| service.handle_timeout(scene, now));
            }
        }
        // One of them may have let go of the device just now.
        for index in 0..self.services.len() {
            if self.device.is_none() && self.services[index].renews_device() {
                self.with_service(index, |service, scene| service.handle_timeout(scene, now));
            }
        }
    }

    pub(super) fn with_service(
        &mut self,
        index: usize,
        call: impl FnOnce(&mut dyn Service<D>, &mut Scene<'_, D>),
    ) {
        let renewed = self.services.iter().any(|service| service.renews_device());
        let Some(service) = self.services.get_mut(index) else { return };
        let had_device = self.device.is_some();
        let mut scene = Scene {
            registry: self.poll.registry(),
            engine: &mut self.engine,
            binding: &mut self.binding,
            device: &mut self.device,
            renewed,
            sockets: &self.sockets,
            stop: &mut self.stop_asked,
        };
        call(service.as_mut(), &mut scene);
        if !had_device {
            self.adopt_device();
        } else if self.device.is_none() {
            self.forget_device();
        }
    }

    /// There is no device: what it had refused is lost, as packets are, and nothing is read of it.
    fn forget_device(&mut self) {
        self.tun_pending.clear();
        self.tun_readable = false;
    }

    /// Registers the device that a service has put in the empty place.
    fn adopt_device(&mut self) {
        let Some(device) = &mut self.device else { return };
        match device.listen(self.poll.registry(), super::TUN, &mut self.waker) {
            Ok(()) => {
                self.tun_readable = true;
                for id in core::mem::take(&mut self.held) {
                    self.enqueue(id, Turn::First);
                }
            }
            Err(error) => {
                log::error!("cannot watch the new device: {error}");
                self.device = None;
            }
        }
    }

    /// The device has failed with `error`: the end of the loop, unless a service renews it.
    pub(super) fn lose_device(&mut self, error: io::Error) -> io::Result<()> {
        if !self.services.iter().any(|service| service.renews_device()) {
            return Err(error);
        }
        let Some(mut device) = self.device.take() else { return Ok(()) };
        log::warn!("the device {} is gone: {error}; flows wait for a new one", device.name());
        if let Err(error) = device.ignore(self.poll.registry()) {
            log::debug!("deregister: {error}");
        }
        self.forget_device();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_services_are_told_apart_and_from_sockets() {
        for (service, number) in [(0, 0), (0, u16::MAX), (1, 0), (7, 12)] {
            assert_eq!(Tokens::split(Tokens::of(service).token(number)), Some((service, number)));
        }
        let socket = (u64::from(u32::MAX - 1) << 32) | u64::from(u32::MAX);
        assert_eq!(Tokens::split(Token(socket as usize)), None);
    }
}
