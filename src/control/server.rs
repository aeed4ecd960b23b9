//! The control socket: `/run/ztun/NAME.sock`, for the user that the router runs as and for root.
//!
//! The socket is made with mode 0600 in a directory that only its owner can write to, and the kernel is asked who has connected: another
//! user is not even answered. A socket that nobody listens on was left by a process that died, and is replaced; one that somebody
//! listens on is another router's, and is left alone. At the end it is deleted, if it is still the one that was made.

use super::conversation::Conversation;
use super::desk::{Desk, Trade};
use super::protocol::{Asked, Code, DeviceStatus, Done, MOST_PROXIES, ProxyLine, Refused, Request};
use super::report;
use crate::config::{Credentials, OffloadLevel, Proxy};
use crate::driver::{Scene, Service, peer};
use crate::engine::Engine;
use crate::time::{Duration, Instant};
use crate::tun::Device;
use mio::event::Source;
use mio::net::{UnixListener, UnixStream};
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

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
    listener: Listener,
    surroundings: Box<dyn Surroundings>,
    now: Instant,
) -> Box<dyn Service<D>> {
    Box::new(Desk::new(Control { listener, surroundings, started: now }))
}

struct Control {
    listener: Listener,
    surroundings: Box<dyn Surroundings>,
    started: Instant,
}

impl<D: Device> Trade<D> for Control {
    type Stream = UnixStream;
    type Talk = Conversation;

    fn listener(&mut self) -> &mut dyn Source {
        &mut self.listener.socket
    }

    fn accept(&mut self) -> io::Result<Option<UnixStream>> {
        let (stream, _) = self.listener.socket.accept()?;
        let user = peer::peer_user(&stream)?;
        let welcome = user == 0 || user == peer::own_user();
        if !welcome {
            log::warn!("user {user} has connected to the control socket and is refused");
        }
        Ok(welcome.then_some(stream))
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

/// A listening socket with a name in the file system, which goes with it.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the name.
    made: (u64, u64),
}

impl Listener {
    /// Listens at `path`.
    ///
    /// # Errors
    ///
    /// The system's; [`ErrorKind::AddrInUse`] when somebody listens there already, [`ErrorKind::AlreadyExists`] when there is something else.
    pub fn bind(path: &Path) -> io::Result<Listener> {
        make_room(path)?;
        let socket = UnixListener::bind(path)?;
        // Whoever connects before this is asked for all the same.
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        let found = fs::symlink_metadata(path)?;
        Ok(Listener { socket, path: path.to_owned(), made: (found.dev(), found.ino()) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = |found: &fs::Metadata| (found.dev(), found.ino()) == self.made;
        if fs::symlink_metadata(&self.path).is_ok_and(|found| ours(&found))
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::debug!("control socket {} stays: {error}", self.path.display());
        }
    }
}

/// Removes a socket that nobody listens on.
fn make_room(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "there is something that is no socket"));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        // One whose queue is full (EAGAIN) lives too.
        Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, "another ztun listens there")),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            Err(io::Error::new(ErrorKind::AddrInUse, "another ztun listens there"))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_nobody_listens_on_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ztun0.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves it behind, as a process that dies does");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Listener::bind(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ztun0.sock");
        fs::write(&path, "text").unwrap();
        assert_eq!(Listener::bind(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"text");
        assert_eq!(Listener::bind(&dir.path().join("no/where")).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_successors_socket_is_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ztun0.sock");
        let first = Listener::bind(&path).unwrap();
        fs::rename(&path, dir.path().join("aside")).unwrap();
        let _second = Listener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }

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
