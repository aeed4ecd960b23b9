//! Whether a proxy is told everything at once, or step by step (`--pipeline`).
//!
//! Greeting, credentials and request in one write save a round trip. Most servers take them so; some read the greeting and throw away
//! what came with it, or end the connection. A flow must not be what finds that out: a request that was thrown away looks like
//! a target that is slow to answer, and to ask again could open a second connection to it. So with `auto` a proxy is spoken to step by step until it has granted
//! [`TRIAL_AFTER`] requests and is worth a trial: one connection that no app waits for, on which everything is said at once, with a request that
//! concerns nobody but the proxy (UDP ASSOCIATE, RFC 1928 7) and that is given up when it is answered.
//!
//! ```text
//! Untried ──so many granted──▶ Trying ──understood──▶ Copes
//!    ▲                           │ └─not answered, or not understood──▶ Refuses
//!    └──not dialled──────────────┘
//!    ▲                                                   │
//!    └──a dialogue ended as no stepwise one should───────┘     (at the RELAPSES-th time: Refuses)
//! ```
//!
//! A server may be replaced by another that does not cope. A dialogue that ends before the method was chosen is made again, step by
//! step and unseen by the app: nothing was asked for before that. One that ends later is not, since the request may have been heard; it is the last
//! one that is pipelined before another trial.

use super::network::Network;
use super::pool::State;
use super::socket::{Purpose, Stage, TcpSocket, Via};
use super::{Engine, SocketId};
use crate::config::Pipeline;
use crate::outbound::socks5::{Client, Failure};
use crate::time::Instant;
use crate::wire::socks5::Reply;

/// Requests that a proxy grants, step by step, before it is worth a trial.
const TRIAL_AFTER: u32 = 32;
/// Times that a proxy may fail after it was found to cope.
const RELAPSES: u8 = 3;

/// What is known of a proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// Nothing; so many requests were granted step by step.
    Untried { granted: u32 },
    /// A trial is under way.
    Trying,
    /// It understands what is said at once.
    Copes,
    /// It does not.
    Refuses,
}

/// How one proxy takes what is said at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Manners {
    verdict: Verdict,
    /// It wanted user and password when it had the choice.
    password: bool,
    relapses: u8,
}

impl Default for Manners {
    fn default() -> Manners {
        Manners { verdict: Verdict::Untried { granted: 0 }, password: false, relapses: 0 }
    }
}

impl Manners {
    /// A request was granted. Whether a trial is due; it counts as begun.
    fn granted(&mut self, password: bool) -> bool {
        self.password = password;
        let Verdict::Untried { granted } = &mut self.verdict else { return false };
        *granted = granted.saturating_add(1);
        let due = *granted >= TRIAL_AFTER;
        if due {
            self.verdict = Verdict::Trying;
        }
        due
    }

    /// A trial is over; `None`: it has shown nothing.
    fn tried(&mut self, understood: Option<bool>) {
        if self.verdict == Verdict::Trying {
            self.verdict = match understood {
                Some(true) => Verdict::Copes,
                Some(false) => Verdict::Refuses,
                None => Verdict::Untried { granted: 0 },
            };
        }
    }

    /// A pipelined dialogue has ended as no stepwise one should.
    fn relapsed(&mut self) {
        if self.verdict == Verdict::Copes {
            self.relapses = self.relapses.saturating_add(1);
            self.verdict =
                if self.relapses < RELAPSES { Verdict::Untried { granted: 0 } } else { Verdict::Refuses };
        }
    }

    /// A pipelined dialogue brought no reply: as a slow target's does, or one with a proxy that no longer copes.
    fn doubted(&mut self) {
        if self.verdict == Verdict::Copes {
            self.verdict = Verdict::Untried { granted: 0 };
        }
    }
}

/// What the end of a dialogue says of how the proxy takes what is said at once.
pub(super) fn understood(failure: &Failure) -> bool {
    match failure {
        // Only a request that was read can be refused so. Other numbers may stand for a request that never came.
        Failure::Refused(Reply::CommandNotSupported | Reply::NotAllowed) => true,
        Failure::Refused(
            Reply::Succeeded
            | Reply::GeneralFailure
            | Reply::NetworkUnreachable
            | Reply::HostUnreachable
            | Reply::ConnectionRefused
            | Reply::TtlExpired
            | Reply::AddressTypeNotSupported
            | Reply::Other(_),
        )
        | Failure::NoMethod
        | Failure::WrongMethod(_)
        | Failure::Denied
        | Failure::Protocol => false,
    }
}

impl Engine {
    fn manners(&mut self, proxy: usize) -> Option<&mut Manners> {
        self.pool.state(proxy).map(|state| &mut state.manners)
    }

    /// A dialogue with `proxy`, in the way that suits it.
    pub(super) fn new_client(&mut self, proxy: usize, purpose: Purpose) -> Box<Client> {
        let manners = self.manners(proxy).copied().unwrap_or_default();
        let credentials = self.config.proxies[proxy].credentials.as_ref();
        Box::new(match self.config.pipeline {
            Pipeline::On => Client::pipelined(credentials),
            Pipeline::Auto if manners.verdict == Verdict::Copes || purpose == Purpose::Trial => {
                Client::pipelined(credentials.filter(|_| manners.password))
            }
            Pipeline::Auto | Pipeline::Off => Client::new(credentials),
        })
    }

    /// A request was granted to a client that was (not) asked for its password.
    pub(super) fn note_granted(&mut self, proxy: usize, purpose: Purpose, password: bool, now: Instant) {
        if self.config.pipeline != Pipeline::Auto {
            return;
        }
        if purpose == Purpose::Trial {
            return self.tried(proxy, true);
        }
        let idle = self.stopping || self.network == Network::Gone;
        if !idle && self.manners(proxy).is_some_and(|manners| manners.granted(password)) {
            self.dial_fresh(Purpose::Trial, proxy, now);
        }
    }

    /// What a trial has shown.
    pub(super) fn tried(&mut self, proxy: usize, understood: bool) {
        log::debug!(
            "proxy {}: pipelined requests are {}understood",
            proxy + 1,
            if understood { "" } else { "not " }
        );
        if let Some(manners) = self.manners(proxy) {
            manners.tried(Some(understood));
        }
    }

    /// A trial's connection is closed: if nothing was found out, another one may.
    pub(super) fn trial_over(&mut self, proxy: usize) {
        if let Some(manners) = self.manners(proxy) {
            manners.tried(None);
        }
    }

    /// A dialogue on `socket` has ended without a reply: whether it is to be made again, step by step. That is so where it was pipelined and
    /// the server has not chosen a method: it had no request then.
    pub(super) fn falls_back(&mut self, socket: SocketId) -> bool {
        let Some(TcpSocket { purpose, via: Via::Proxy(proxy), stage: Stage::Handshake { client, .. } }) =
            self.sockets.tcp(socket)
        else {
            return false;
        };
        let (proxy, unheard) = (*proxy, client.wants_password().is_none());
        if self.config.pipeline != Pipeline::Auto || !client.is_pipelined() || *purpose == Purpose::Trial {
            return false;
        }
        let Some(manners) = self.manners(proxy) else { return false };
        if unheard {
            manners.relapsed();
            self.stats.pipeline_fallbacks += 1;
        } else {
            manners.doubted();
        }
        unheard
    }

    /// The time of a dialogue on `socket` is over. The app has waited long enough, but others may be spared.
    pub(super) fn dialogue_timed_out(&mut self, socket: SocketId) {
        if let Some(TcpSocket { via: Via::Proxy(proxy), stage: Stage::Handshake { client, .. }, .. }) =
            self.sockets.tcp(socket)
            && client.is_pipelined()
        {
            let proxy = *proxy;
            if let Some(manners) = self.manners(proxy) {
                manners.doubted();
            }
        }
    }
}

impl State {
    /// What was found out on another network counts no more.
    pub(super) fn forgive(&mut self) {
        self.down_since = None;
        self.manners = Manners::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(understood: bool) -> Manners {
        let mut manners = Manners::default();
        let due = (0..TRIAL_AFTER).filter(|_| manners.granted(true)).count();
        assert_eq!((due, manners.verdict), (1, Verdict::Trying));
        assert!(!manners.granted(true), "one trial at a time");
        manners.tried(Some(understood));
        manners
    }

    #[test]
    fn a_proxy_is_tried_once_when_it_is_worth_it() {
        assert_eq!(tried(true).verdict, Verdict::Copes);
        let mut refuses = tried(false);
        assert!((0..10 * TRIAL_AFTER).all(|_| !refuses.granted(false)), "for good");
        assert_eq!(refuses.verdict, Verdict::Refuses);
    }

    #[test]
    fn a_trial_that_shows_nothing_is_made_again_later() {
        let mut manners = Manners { verdict: Verdict::Trying, ..Manners::default() };
        manners.tried(None);
        assert_eq!(manners.verdict, Verdict::Untried { granted: 0 });
        manners.tried(Some(true));
        assert_eq!(manners.verdict, Verdict::Untried { granted: 0 }, "no trial is under way");
    }

    #[test]
    fn a_proxy_that_fails_again_and_again_is_given_up() {
        let mut manners = tried(true);
        for relapse in 1..=RELAPSES {
            manners.verdict = Verdict::Copes;
            manners.relapsed();
            assert_eq!(manners.verdict == Verdict::Refuses, relapse == RELAPSES);
            manners.relapsed();
        }
        manners.doubted();
        assert_eq!(manners.verdict, Verdict::Refuses);
    }

    #[test]
    fn only_a_refusal_that_answers_the_request_shows_that_it_was_read() {
        assert!(understood(&Failure::Refused(Reply::CommandNotSupported)));
        for failure in [Failure::Refused(Reply::GeneralFailure), Failure::NoMethod, Failure::Protocol] {
            assert!(!understood(&failure));
        }
    }
}
