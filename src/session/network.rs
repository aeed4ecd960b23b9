//! Follows the machine's network while the router runs.
//!
//! # Theory of operation
//!
//! The `monitor` tells that something has changed, its debouncer when it is time to look. Then everything is read again, and in this order:
//!
//! 1. `--interface` is a name: an interface that was made anew under it has another number, which sockets are bound to from here on. Without it
//!    the machine's main table decides, for each packet, by the rule of our mark; where there are no marks, the default route (`egress`).
//! 2. The machine's name servers are kept, and the rules of ours follow ([`Applied::refresh`]): they name the machine's addresses. What somebody has deleted is made again.
//! 3. Is there a way out: does a route lead to one of the proxies, by an interface that carries? If not the engine is paused, and what lives is
//!    left alone, for it may live on when the way comes back. If there is one again, it resumes.
//! 4. Every socket is judged ([`judge`]). The dead are handed to the engine.
//!
//! # Who is dead
//!
//! What a connection cannot survive is the loss of its address: the kernel keeps on sending from it as long as it has it, by whatever way
//! the routes say, and fails for good without. So a connection whose address is gone is dead, and its app hears so at once. Any other is not, whatever
//! has become of the default route:
//!
//! - The routes still lead out by the interface that has its address: it lives.
//! - They lead out by another. Packets with the old address leave there, and whether they and their answers get through depends on
//!   routers that we know nothing of. If there still is a route by its own interface, the connection is pinned to that, and
//!   goes on as if nothing had happened: a second network with a better metric does not hurt it. If there is none it is put to the question:
//!   the kernel probes it, and what gives no answer is dead.
//! - There is no route at all: there may be one again.
//!
//! After a sleep every connection is put to the question: a router on the way may have forgotten it. What stays on the machine lives always.

use super::egress::Egress;
use crate::driver::{QUESTION, Scene, Service, Signals, SocketView, Tokens};
use crate::engine::{Engine, SocketId};
use crate::host::DnsCheck;
use crate::host::{self, Applied};
use crate::monitor::debounce::{Debounce, SleepWatch};
use crate::monitor::{
    DefaultRoute, IfIndex, Monitor, NetworkState, Noticed, Own, Path, Question, SystemMonitor,
};
use crate::time::{Duration, Instant};
use crate::tun::Device;
use mio::event::Event;
use mio::{Interest, Registry};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::rc::Rc;

/// How often it is looked at those who were put to the question, and for a way out while there is none.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// When name servers that another program may be replacing are looked at again.
const NAMES_AGAIN: Duration = Duration::from_secs(1);

/// The service. See the module's theory of operation.
pub(super) struct NetworkService<M> {
    monitor: M,
    /// By which the program that ztun is a library of says that the network is another.
    word: Option<Signals>,
    /// What was changed on the machine, if anything.
    applied: Option<Rc<RefCell<Applied>>>,
    /// What decides by which interface sockets leave.
    egress: Egress,
    debounce: Debounce,
    sleep: SleepWatch,
    state: NetworkState,
    /// When to look again at name servers that another program may be replacing.
    names: Option<Instant>,
    /// Since when there is no way out, and when it is looked again: another proxy may have been chosen meanwhile, of which no event tells.
    gone: Option<(Instant, Instant)>,
    /// Connections that leave by the interface of their address, although the routes say another.
    pinned: BTreeMap<u64, IfIndex>,
    /// Connections that are put to the question.
    questioned: Vec<SocketId>,
    /// When they were asked, and when it is looked at next; `None` while there is no way out, when silence says nothing.
    hearing: Option<Hearing>,
}

/// Follows the network of this machine, on which `own` are ztun's own things; nobody does where that cannot be done, which is said.
pub(super) fn follow(
    own: Own,
    word: Option<Signals>,
    applied: Option<Rc<RefCell<Applied>>>,
    egress: Egress,
    engine: &mut Engine,
    now: Instant,
) -> Option<NetworkService<SystemMonitor>> {
    let service =
        SystemMonitor::new(own).and_then(|monitor| NetworkService::new(monitor, word, applied, egress, now));
    match service {
        Ok(service) => {
            engine.watch_network();
            Some(service)
        }
        Err(error) => {
            log::warn!("changes of the network are not followed: {error}");
            None
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Hearing {
    look: Instant,
    end: Instant,
}

/// What becomes of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Lives,
    Dead,
    /// It lives if it leaves by this interface.
    Pin(IfIndex),
    /// Time will tell.
    Doubtful,
}

impl<M: Monitor> NetworkService<M> {
    /// Follows what `monitor` sees, and looks when `word` comes. `egress` decides what sockets are bound to; `applied` is made to follow.
    ///
    /// # Errors
    ///
    /// The system's, when the network cannot be read.
    pub(super) fn new(
        mut monitor: M,
        word: Option<Signals>,
        applied: Option<Rc<RefCell<Applied>>>,
        egress: Egress,
        now: Instant,
    ) -> io::Result<NetworkService<M>> {
        let state = monitor.state()?;
        let sleep = SleepWatch::new(monitor.clocks(), now);
        let mut debounce = Debounce::default();
        // The first look is at what has changed since the machine was set up, and whether there is a way out at all.
        debounce.handle(Noticed { routes: true, ..Noticed::NOTHING }, now);
        Ok(NetworkService {
            monitor,
            word,
            applied,
            egress,
            debounce,
            sleep,
            state,
            names: None,
            gone: None,
            pinned: BTreeMap::new(),
            questioned: Vec::new(),
            hearing: None,
        })
    }

    /// Takes what was told.
    fn take_news(&mut self, now: Instant) {
        match self.monitor.drain() {
            Ok(mut noticed) => {
                noticed.woke = noticed.woke && self.sleep.slept(self.monitor.clocks(), now);
                self.debounce.handle(noticed, now);
            }
            Err(error) => log::error!("the network is not watched any more: {error}"),
        }
    }

    /// Takes the program's word that the network is another.
    fn take_word(&mut self, now: Instant) {
        if self.word.as_mut().is_some_and(|word| word.drain() > 0) {
            log::debug!("the program says that the network has changed");
            let woke = self.sleep.slept(self.monitor.clocks(), now);
            self.debounce.handle(Noticed { woke, ..Noticed::ANYTHING }, now);
        }
    }

    /// It is time to look.
    fn look<D: Device>(&mut self, noticed: Noticed, scene: &mut Scene<'_, D>, now: Instant) {
        let state = match self.monitor.state() {
            Ok(state) => state,
            Err(error) => {
                log::warn!("cannot read the machine's network: {error}");
                return self.debounce.handle(noticed, now);
            }
        };
        let before = core::mem::replace(&mut self.state, state);
        let differs = before != self.state;
        if differs || noticed.resolver {
            self.check_names(now);
        }
        if !(differs || noticed.routes || noticed.own || noticed.woke) {
            return;
        }
        log::debug!("the network has changed: {noticed:?}, {:?}", self.state);
        if noticed.woke {
            log::info!("the machine has slept: connections that were forgotten meanwhile end");
        }
        if before.defaults != self.state.defaults {
            log::info!("the network has changed: {}", self.ways());
        }
        let rebound = self.rebind(scene);
        self.refresh(scene);
        self.find_ways(scene);
        let way_out = self.way_out(scene);
        self.pause_or_resume(way_out, scene, now);
        if way_out {
            let moved = before.defaults != self.state.defaults || before.addresses != self.state.addresses;
            self.weed(noticed.woke, rebound, moved, scene, now);
        }
    }

    /// Looks whether another program has replaced the machine's name servers, and again soon when it may be at it.
    fn check_names(&mut self, now: Instant) {
        let check = self.applied.as_ref().map(|applied| applied.borrow_mut().dns_check());
        self.names = (check == Some(DnsCheck::Unsettled)).then_some(now + NAMES_AGAIN);
    }

    /// The default routes, for people.
    fn ways(&self) -> String {
        let name = |index: IfIndex| {
            let interface = self.state.interfaces.iter().find(|interface| interface.index == index);
            interface.map_or_else(|| format!("interface {}", index.0), |interface| interface.name.clone())
        };
        let way = |route: &DefaultRoute| match route.gateway {
            Some(gateway) => format!("by {} via {gateway}", name(route.interface)),
            None => format!("by {}", name(route.interface)),
        };
        let ways: Vec<String> = self.state.defaults.iter().map(way).collect();
        if ways.is_empty() { "no default route".into() } else { format!("default route {}", ways.join(", ")) }
    }

    /// Has sockets leave by the interface that is right by now; whether those that there are cannot go on by theirs.
    fn rebind<D>(&self, scene: &mut Scene<'_, D>) -> bool {
        let index = self.egress.interface(&self.state);
        if index.is_none() || index == scene.binding.interface {
            return false;
        }
        scene.binding.interface = index;
        match &self.egress {
            Egress::Named(name) => {
                log::info!("the interface {name} was made anew: connections leave by it from here on");
                true
            }
            Egress::Routed | Egress::Followed => {
                log::info!("new connections leave by interface {}", index.map_or(0, NonZeroU32::get));
                self.take_along(index, scene);
                false
            }
        }
    }

    /// Has sockets that have no address of their own, and so nothing that ties them to an interface, leave by this one.
    fn take_along<D>(&self, index: Option<NonZeroU32>, scene: &Scene<'_, D>) {
        let free = |socket: &SocketView| socket.local.is_some_and(|local| local.ip().is_unspecified());
        for socket in scene.sockets().filter(free) {
            if let Err(error) = scene.pin(socket.id, index) {
                log::debug!("cannot bind a socket to {index:?}: {error}");
            }
        }
    }

    /// Has proxies reached by the interfaces that lead to them by now.
    fn find_ways<D>(&mut self, scene: &mut Scene<'_, D>) {
        let proxies = scene.engine.snapshot().proxies;
        let addrs: Vec<IpAddr> = proxies.iter().map(|proxy| proxy.addr.ip().to_canonical()).collect();
        scene.binding.ways = self.egress.ways(&addrs, &self.state, &mut self.monitor);
    }

    /// Has the machine's rules follow.
    fn refresh<D: Device>(&self, scene: &mut Scene<'_, D>) {
        // While there is no device whoever makes it anew sees to the rest.
        let (Some(applied), Some(device)) = (&self.applied, scene.device.as_ref()) else { return };
        if let Err(error) = applied.borrow_mut().refresh(device.name()) {
            if matches!(host::find_interface(device.name()), Ok(None)) {
                // Or has another name now, which its reads do not tell.
                log::debug!("the device has gone meanwhile: {error}");
                scene.drop_device();
            } else {
                log::warn!("what leads into the tunnel cannot follow the network: {error}");
            }
        }
    }

    /// Whether a proxy can be reached, as far as the routes tell; without proxies, whether anything can.
    fn way_out<D>(&mut self, scene: &Scene<'_, D>) -> bool {
        let proxies = scene.engine.snapshot().proxies;
        if proxies.is_empty() {
            return self.state.defaults.iter().any(|route| self.state.is_running(route.interface));
        }
        proxies.iter().any(|proxy| {
            let to = proxy.addr.ip().to_canonical();
            let interface = scene.binding.interface_to(to).map(|index| IfIndex(index.get()));
            let question = Question { to, from: None, interface, mark: scene.binding.mark };
            match self.monitor.path(question) {
                Ok(Some(Path::Local)) => true,
                Ok(Some(Path::Leaves(index))) => self.state.is_running(index),
                Ok(None) => false,
                // Who cannot be asked is no reason to stop.
                Err(_) => true,
            }
        })
    }

    /// Judges every socket, and hands the dead to the engine.
    fn weed<D>(&mut self, woke: bool, rebound: bool, moved: bool, scene: &mut Scene<'_, D>, now: Instant) {
        let bound = scene.binding.interface.map(|index| IfIndex(index.get()));
        let mark = scene.binding.mark;
        let mut judged: BTreeMap<(IpAddr, Option<IpAddr>), Verdict> = BTreeMap::new();
        let (mut dead, mut doubtful) = (Vec::new(), Vec::new());
        let mut pinned = BTreeMap::new();
        let sockets: Vec<SocketView> = scene.sockets().collect();
        for SocketView { id, tcp, local, peer } in sockets {
            let Some(local) = local.map(|local| local.ip().to_canonical()) else { continue };
            if local.is_loopback() {
                continue;
            }
            let peer = peer.map(|peer: SocketAddr| peer.ip().to_canonical());
            let verdict = *judged.entry((local, peer)).or_insert_with(|| {
                let bound = self.egress.of_socket(local, bound, &self.state);
                judge(local, peer, bound, &self.state, |to, from, interface| {
                    self.monitor.path(Question { to, from: Some(from), interface, mark })
                })
            });
            // One that may be dead and that nobody would miss is not worth a question.
            let in_doubt = woke || verdict == Verdict::Doubtful || (moved && tcp && peer.is_none());
            let replaced = in_doubt && scene.engine.is_replaceable(id);
            let verdict = if rebound || replaced { Verdict::Dead } else { verdict };
            let pin = match verdict {
                Verdict::Dead => {
                    dead.push(id);
                    continue;
                }
                Verdict::Pin(index) => Some(index),
                Verdict::Lives | Verdict::Doubtful => None,
            };
            let was = self.pinned.get(&id.to_bits()).copied();
            if pin != was && bound.is_none() {
                match scene.pin(id, pin.and_then(|index| NonZeroU32::new(index.0))) {
                    Ok(()) => log::debug!("{local} to {peer:?} leaves by {pin:?}"),
                    Err(error) => log::debug!("cannot bind a connection to {pin:?}: {error}"),
                }
            }
            if let Some(index) = pin {
                pinned.insert(id.to_bits(), index);
            }
            if tcp && peer.is_some() && (woke || verdict == Verdict::Doubtful) {
                doubtful.push(id);
            }
        }
        self.pinned = pinned;
        let loss = scene.engine.handle_network_change(&dead, now);
        if !dead.is_empty() {
            log::info!(
                "lost with the old network: {} TCP flows, {} UDP associations, {} pooled connections; {} connections are made again",
                loss.flows,
                loss.associations,
                loss.pooled,
                loss.redialled
            );
        }
        self.put_to_the_question(doubtful, scene, now);
    }

    /// Puts these to the question, and those whose question was adjourned.
    fn put_to_the_question<D>(&mut self, doubtful: Vec<SocketId>, scene: &Scene<'_, D>, now: Instant) {
        let mut asked = doubtful;
        if self.hearing.is_none() {
            asked.append(&mut self.questioned);
        }
        if asked.is_empty() {
            return;
        }
        log::debug!("{} connections are put to the question", asked.len());
        for socket in &asked {
            if let Err(error) = scene.question(*socket) {
                log::debug!("a connection cannot be put to the question: {error}");
            }
        }
        self.questioned.append(&mut asked);
        self.questioned.sort_unstable_by_key(|socket| socket.to_bits());
        self.questioned.dedup();
        let look = self.hearing.map_or(now + LOOK_EVERY, |hearing| hearing.look);
        self.hearing = Some(Hearing { look, end: now + QUESTION });
    }

    /// Nobody is probed while there is no way out.
    fn adjourn<D>(&mut self, scene: &Scene<'_, D>) {
        self.hearing = None;
        for socket in &self.questioned {
            if let Err(error) = scene.acquit(*socket) {
                log::debug!("SO_KEEPALIVE: {error}");
            }
        }
    }

    /// Looks at those who were put to the question.
    fn hear<D>(&mut self, scene: &mut Scene<'_, D>, now: Instant) {
        let Some(Hearing { look, end }) = self.hearing.filter(|hearing| hearing.look <= now) else { return };
        let stuck = |socket: &SocketId| scene.is_stuck(*socket).unwrap_or(false);
        let dead: Vec<SocketId> = self.questioned.iter().copied().filter(stuck).collect();
        self.questioned.retain(|socket| !dead.contains(socket));
        if end <= now {
            self.adjourn(scene);
            self.questioned.clear();
        } else {
            self.hearing = Some(Hearing { look: look + LOOK_EVERY, end });
        }
        if !dead.is_empty() {
            let loss = scene.engine.handle_network_change(&dead, now);
            log::info!("{} TCP flows do not get through on the new network and are reset", loss.flows);
        }
    }

    fn pause_or_resume<D>(&mut self, way_out: bool, scene: &mut Scene<'_, D>, now: Instant) {
        match (way_out, self.gone) {
            (false, None) => {
                self.gone = Some((now, now + LOOK_EVERY));
                scene.engine.pause();
                self.adjourn(scene);
                log::warn!("the network is gone: new connections wait for it, those that there are stay");
            }
            (true, Some((since, _))) => {
                self.gone = None;
                let waiting = scene.engine.resume(now);
                let seconds = now.since(since).as_secs();
                log::info!("the network is back after {seconds} s: {waiting} connections waited for it");
            }
            (true, None) | (false, Some(_)) => {}
        }
    }
}

/// Judges a socket from `local` to `peer` (`None` while it is not connected), which is bound to `bound` if that is said. `path` asks the system for
/// the way to an address from another, by an interface if one is given.
fn judge(
    local: IpAddr,
    peer: Option<IpAddr>,
    bound: Option<IfIndex>,
    state: &NetworkState,
    mut path: impl FnMut(IpAddr, IpAddr, Option<IfIndex>) -> io::Result<Option<Path>>,
) -> Verdict {
    // A socket that is not bound to an address takes one that there is for each datagram.
    if local.is_unspecified() || local.is_loopback() {
        return Verdict::Lives;
    }
    if !state.has_address(local) {
        return Verdict::Dead;
    }
    let Some(peer) = peer else { return Verdict::Lives };
    let leaves = match path(peer, local, bound) {
        Ok(Some(Path::Leaves(index))) => index,
        // To an address of this machine; or nowhere at present; or nobody knows.
        Ok(Some(Path::Local) | None) | Err(_) => return Verdict::Lives,
    };
    if bound.is_some() || state.addresses.contains(&(leaves, local)) {
        return Verdict::Lives;
    }
    match state.interface_of(local).filter(|home| state.is_running(*home)) {
        Some(home) if matches!(path(peer, local, Some(home)), Ok(Some(Path::Leaves(index))) if index == home) => {
            Verdict::Pin(home)
        }
        Some(_) | None => Verdict::Doubtful,
    }
}

impl<M: Monitor, D: Device> Service<D> for NetworkService<M> {
    fn register(&mut self, registry: &Registry, tokens: Tokens) -> io::Result<()> {
        registry.register(&mut self.monitor, tokens.token(0), Interest::READABLE)?;
        self.word
            .iter_mut()
            .try_for_each(|word| registry.register(word.source(), tokens.token(1), Interest::READABLE))
    }

    fn handle_event(&mut self, _number: u16, _event: &Event, _scene: &mut Scene<'_, D>, now: Instant) {
        self.take_news(now);
        self.take_word(now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let look = self.hearing.map(|hearing| hearing.look);
        let again = self.gone.map(|(_, again)| again);
        [self.debounce.poll_timeout(), look, again, self.names].into_iter().flatten().min()
    }

    fn handle_timeout(&mut self, scene: &mut Scene<'_, D>, now: Instant) {
        // What was told before a state is read is in it.
        self.take_news(now);
        if let Some(noticed) = self.debounce.poll(now) {
            self.look(noticed, scene, now);
        }
        if self.names.is_some_and(|at| at <= now) {
            self.check_names(now);
        }
        if let Some((since, again)) = self.gone
            && again <= now
        {
            self.gone = Some((since, now + LOOK_EVERY));
            if self.way_out(scene) {
                self.look(Noticed { routes: true, ..Noticed::NOTHING }, scene, now);
            }
        }
        self.hear(scene, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Interface;

    const WIFI: IfIndex = IfIndex(2);
    const CABLE: IfIndex = IfIndex(3);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Wi-Fi has 192.168.1.5, the cable 10.0.0.5; whether Wi-Fi carries.
    fn state(wifi: bool) -> NetworkState {
        let interface = |index, name: &str, running| Interface { index, name: name.into(), running };
        NetworkState {
            interfaces: vec![interface(WIFI, "wlan0", wifi), interface(CABLE, "eth0", true)],
            addresses: vec![(WIFI, ip("192.168.1.5")), (CABLE, ip("10.0.0.5"))],
            ..NetworkState::default()
        }
    }

    /// Judges a connection from the address of Wi-Fi, where the routes lead by `first`, and by an interface that is said as `by` says.
    fn from_wifi(state: &NetworkState, first: Option<Path>, by: impl Fn(IfIndex) -> Option<Path>) -> Verdict {
        judge(ip("192.168.1.5"), Some(ip("203.0.113.1")), None, state, |to, from, interface| {
            assert_eq!((to, from), (ip("203.0.113.1"), ip("192.168.1.5")));
            Ok(interface.map_or(first, &by))
        })
    }

    fn nowhere(_: IpAddr, _: IpAddr, _: Option<IfIndex>) -> io::Result<Option<Path>> {
        Ok(None)
    }

    #[test]
    fn who_has_lost_its_address_is_dead_whatever_the_routes_say() {
        assert_eq!(
            judge(ip("192.168.1.9"), Some(ip("203.0.113.1")), None, &state(true), nowhere),
            Verdict::Dead
        );
        assert_eq!(judge(ip("2001:db8::9"), None, None, &state(true), nowhere), Verdict::Dead);
    }

    #[test]
    fn what_stays_on_the_machine_or_has_no_address_of_its_own_lives() {
        for local in ["127.0.0.1", "::1", "0.0.0.0", "::"] {
            assert_eq!(judge(ip(local), Some(ip("127.0.0.1")), None, &state(false), nowhere), Verdict::Lives);
        }
        assert_eq!(from_wifi(&state(true), Some(Path::Local), |_| None), Verdict::Lives);
    }

    #[test]
    fn who_leaves_by_the_interface_of_its_address_lives() {
        assert_eq!(from_wifi(&state(true), Some(Path::Leaves(WIFI)), |_| None), Verdict::Lives);
    }

    #[test]
    fn without_a_route_there_may_be_one_again() {
        assert_eq!(from_wifi(&state(true), None, |_| None), Verdict::Lives);
        let unknown = |_, _, _| Err(io::ErrorKind::TimedOut.into());
        let verdict = judge(ip("192.168.1.5"), Some(ip("203.0.113.1")), None, &state(true), unknown);
        assert_eq!(verdict, Verdict::Lives, "who cannot be asked accuses nobody");
    }

    #[test]
    fn a_second_network_leaves_connections_on_their_own_if_that_still_leads_there() {
        let cable = Some(Path::Leaves(CABLE));
        assert_eq!(from_wifi(&state(true), cable, |by| Some(Path::Leaves(by))), Verdict::Pin(WIFI));
        assert_eq!(from_wifi(&state(true), cable, |_| None), Verdict::Doubtful, "no route by its own");
        assert_eq!(
            from_wifi(&state(false), cable, |by| Some(Path::Leaves(by))),
            Verdict::Doubtful,
            "its own carries nothing"
        );
    }

    #[test]
    fn who_is_bound_to_an_interface_is_judged_by_its_routes_only() {
        let verdict = judge(
            ip("192.168.1.5"),
            Some(ip("203.0.113.1")),
            Some(CABLE),
            &state(true),
            |_, _, interface| {
                assert_eq!(interface, Some(CABLE));
                Ok(Some(Path::Leaves(CABLE)))
            },
        );
        assert_eq!(verdict, Verdict::Lives);
    }
}
