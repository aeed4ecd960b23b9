//! What is asked over the control socket ([`local`]), and what follows on this machine.

use super::conversation::Conversation;
use super::desk::{Desk, Trade};
use super::local;
use super::protocol::{Asked, Code, DeviceStatus, Done, MOST_PROXIES, ProxyLine, Refused, Request};
use super::report;
use crate::config::{Credentials, OffloadLevel, Proxy};
use crate::driver::{Scene, Service};
use crate::engine::Engine;
use crate::time::{Duration, Instant};
use crate::tun::Device;
use mio::event::Source;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// A client that asks nothing for this long is dropped.
const ASKING: Duration = Duration::from_secs(300);
/// A client that takes nothing of its answer for this long is dropped.
const TAKING: Duration = Duration::from_secs(10);

/// What follows on this machine when the proxies change: routes that keep them outside, processes to be looked for.
pub trait Surroundings {
    /// The proxies are these from here on: what whoever has asked should know of.
    fn proxies_changed(&mut self, proxies: &[SocketAddr], engine: &mut Engine) -> Vec<String>;
}

/// The control socket, for [`crate::driver::Parts::services`].
pub fn service<D: Device + 'static>(
    listener: local::Listener,
    surroundings: Box<dyn Surroundings>,
    now: Instant,
) -> Box<dyn Service<D>> {
    Box::new(Desk::new(Control { listener, surroundings, started: now }))
}

struct Control {
    listener: local::Listener,
    surroundings: Box<dyn Surroundings>,
    started: Instant,
}

impl<D: Device> Trade<D> for Control {
    type Stream = local::Stream;
    type Talk = Conversation;

    fn listener(&mut self) -> &mut dyn Source {
        self.listener.source()
    }

    fn accept(&mut self) -> io::Result<Option<local::Stream>> {
        self.listener.accept()
    }

    fn answer(&mut self, talk: &mut Conversation, scene: &mut Scene<'_, D>, now: Instant) -> bool {
        let Some(Asked { id, request }) = talk.poll_request() else { return false };
        match request {
            Err(refused) => talk.answer::<Done>(id, Err(refused)),
            Ok(Request::Ping) => talk.answer(id, Ok(Done::default())),
            Ok(Request::Status) => talk.answer(id, Ok(self.status(scene, now))),
            Ok(Request::Flows { cursor, limit }) => {
                talk.answer(id, Ok(report::flows(scene.engine, cursor, limit, now)));
            }
            Ok(Request::LogLevel { level }) => {
                log::set_max_level(level.into());
                log::info!("control: log level {level:?}");
                talk.answer(id, Ok(Done::default()));
            }
            Ok(Request::Proxy { proxies }) => talk.answer(id, self.set_proxies(proxies, scene, now)),
            Ok(Request::Stop) => {
                log::info!("control: asked to stop");
                scene.ask_to_stop();
                talk.answer(id, Ok(Done::default()));
            }
        }
        true
    }

    fn patience(&self) -> (Duration, Duration) {
        (ASKING, TAKING)
    }
}

impl Control {
    fn status<D: Device>(&self, scene: &Scene<'_, D>, now: Instant) -> super::protocol::Status {
        report::status(scene.engine, device(scene), self.started, now)
    }

    fn set_proxies<D: Device>(
        &mut self,
        lines: Vec<ProxyLine>,
        scene: &mut Scene<'_, D>,
        now: Instant,
    ) -> Result<Done, Refused> {
        if scene.engine.snapshot().stopping {
            let what = "the router is being wound up".into();
            return Err(Refused { code: Code::Stopping, what });
        }
        let proxies = proxies(lines)?;
        let addrs: Vec<SocketAddr> = proxies.iter().map(|proxy| proxy.addr).collect();
        scene.engine.set_proxies(proxies, now);
        let told: Vec<String> = addrs.iter().map(ToString::to_string).collect();
        log::info!("control: new flows go to socks5 {}", told.join(", "));
        Ok(Done { warnings: self.surroundings.proxies_changed(&addrs, scene.engine) })
    }
}

/// The device of a scene.
pub(super) fn device<D: Device>(scene: &Scene<'_, D>) -> Option<DeviceStatus> {
    scene.device.as_ref().map(|device| DeviceStatus {
        name: device.name().into(),
        mtu: device.mtu(),
        offload: device.offload() > OffloadLevel::Off,
    })
}

/// The proxies of a request.
fn proxies(lines: Vec<ProxyLine>) -> Result<Vec<Proxy>, Refused> {
    let refused = |what: String| Refused { code: Code::BadValue, what };
    if lines.is_empty() || lines.len() > MOST_PROXIES {
        return Err(refused(format!("1 to {MOST_PROXIES} proxies are wanted")));
    }
    let mut proxies = Vec::new();
    for line in lines {
        let proxy = match line {
            ProxyLine::Address(addr) => Proxy { addr, credentials: None },
            ProxyLine::WithUser { addr, user, password } => {
                // RFC 1929 2: lengths are one octet, and not zero.
                if [&user, &password].into_iter().any(|text| text.is_empty() || text.len() > 255) {
                    return Err(refused("user and password have 1 to 255 octets".into()));
                }
                Proxy { addr, credentials: Some(Credentials { user, password }) }
            }
        };
        let ip = proxy.addr.ip();
        let nobody = ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST);
        if nobody || proxy.addr.port() == 0 {
            return Err(refused(format!("{} is no address to connect to", proxy.addr)));
        }
        if !proxies.contains(&proxy) {
            proxies.push(proxy);
        }
    }
    Ok(proxies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_judged_like_those_of_the_command_line() {
        let line = |addr: &str| ProxyLine::Address(addr.parse().unwrap());
        let with_user = |user: &str, password: &str| ProxyLine::WithUser {
            addr: "127.0.0.1:1".parse().unwrap(),
            user: user.into(),
            password: password.into(),
        };
        assert_eq!(
            proxies(vec![line("127.0.0.1:1"), line("127.0.0.1:1"), line("[::1]:1")]).unwrap().len(),
            2
        );
        let long = "x".repeat(256);
        for lines in [
            vec![],
            vec![line("127.0.0.1:1"); MOST_PROXIES + 1],
            vec![line("0.0.0.0:1080")],
            vec![line("[ff02::1]:1080")],
            vec![line("255.255.255.255:1080")],
            vec![line("127.0.0.1:0")],
            vec![with_user("", "p")],
            vec![with_user("u", "")],
            vec![with_user("u", &long)],
        ] {
            let refused = proxies(lines).unwrap_err();
            assert_eq!(refused.code, Code::BadValue);
            assert!(!refused.what.contains(&long));
        }
        assert!(proxies(vec![with_user("u", "p")]).unwrap()[0].credentials.is_some());
    }
}
