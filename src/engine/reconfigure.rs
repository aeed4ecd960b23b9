//! What may be changed while the engine runs: the proxies, and whether one of them is on this machine.
//!
//! Flows that octets go through keep their connection, whatever becomes of the proxy in the list: it is asked for nothing more.
//! What is still being opened through a proxy that has left the list is asked of the new ones. Warm connections are kept for proxies that stay.

use super::Engine;
use super::socket::{Purpose, Stage, Via};
use crate::config::Proxy;
use crate::time::Instant;

/// The place of a proxy that is not in the list.
const GONE: usize = usize::MAX;

impl Engine {
    /// Asks from here on whose socket each new flow comes from: a proxy runs on this machine.
    pub fn identify_flows(&mut self) {
        self.identify = true;
    }

    /// Uses `proxies`, in this order of preference, from here on; two that are the same count once. An empty list changes nothing. Cost: all
    /// sockets and flows once.
    pub fn set_proxies(&mut self, proxies: Vec<Proxy>, now: Instant) {
        let mut wanted: Vec<Proxy> = Vec::new();
        for proxy in proxies {
            if !wanted.contains(&proxy) {
                wanted.push(proxy);
            }
        }
        if wanted.is_empty() || wanted == self.config.proxies {
            return;
        }
        let place = |old: &Proxy| wanted.iter().position(|proxy| proxy == old);
        let places: Vec<Option<usize>> = self.config.proxies.iter().map(place).collect();
        let orphans = self.pool.rearrange(wanted.len(), &places);
        self.config.proxies = wanted;
        let mut unanswered = Vec::new();
        for socket in self.sockets.ids() {
            let Some(tcp) = self.sockets.tcp_mut(socket) else { continue };
            let Via::Proxy(old) = tcp.via else { continue };
            let place = places.get(old).copied().flatten();
            tcp.via = Via::Proxy(place.unwrap_or(GONE));
            match tcp.stage {
                Stage::Dialling | Stage::Held | Stage::Handshake { .. } if place.is_none() => {
                    unanswered.push((socket, tcp.purpose));
                }
                Stage::Dialling | Stage::Held | Stage::Handshake { .. } => {}
                Stage::Warm { .. } | Stage::Relay { .. } | Stage::Control | Stage::Names => {}
            }
        }
        self.move_accepted(&places);
        for socket in orphans {
            self.close_socket(socket, false);
        }
        for (socket, purpose) in unanswered {
            self.close_socket(socket, true);
            match (purpose, self.pool.choose(0, now)) {
                (Purpose::Flow(_) | Purpose::Association(_) | Purpose::Names(_), Some(proxy)) => {
                    self.redial(purpose, proxy, now);
                }
                (Purpose::Flow(_) | Purpose::Association(_) | Purpose::Names(_), None)
                | (Purpose::Pool | Purpose::Trial, _) => {}
            }
        }
    }
}
