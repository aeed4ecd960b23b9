//! How the loop ends.
//!
//! ```text
//! a signal ─────────────────────────────────▶ Closing ─▶ over     FIN to all flows, then RST to what is left
//! a signal, with a process watched ─▶ Asked ─┐                    SIGTERM to the process
//! the watched process has ended ─────────────┴▶ Draining ─▶ Closing
//! ```
//!
//! Any kernel goes on sending what a process wrote before it ended, and here what leaves that kernel still has to pass the loop. So the loop goes
//! on until sockets have taken all of it, or none of them takes any more. Nothing says that the kernel has no more of it; but a window
//! that is open is filled at once, so that a moment without octets does.

use super::{Driver, Exit};
use crate::time::{Duration, Instant};
use crate::tun::Device;

/// How long flows may take to finish after they were sent FIN, before they are reset.
const FIN_GRACE: Duration = Duration::from_millis(250);
/// How often it is looked at what a process that has ended left to be sent. Much longer than the kernel needs to fill a window that opens.
const DRAIN_STEP: Duration = Duration::from_millis(100);
/// How long no socket may take any of it before it is given up: about as long as the kernel tries for a process that is gone
/// (`tcp_orphan_retries`). A socket takes more only when a good part of its buffer is free, so a slow target needs some patience.
pub const DRAIN_PATIENCE: Duration = Duration::from_secs(100);
/// How long all of it may take once somebody has asked to stop.
pub const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// What the loop had when it was asked to stop, and how it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Closed {
    /// TCP flows that were sent FIN.
    pub tcp_flows: usize,
    /// Of these, those that were reset in the end.
    pub reset: usize,
    /// UDP associations that were closed.
    pub associations: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Stopping {
    /// The watched process was asked to end; the loop goes on until it has.
    Asked,
    /// The watched process has ended. The kernel goes on sending what it wrote before, and so does the loop.
    Draining { exit: Exit, progress: Progress, moved: Instant, look: Instant },
    /// Flows were sent FIN.
    Closing { exit: Exit, deadline: Instant, aborted: bool },
}

impl Stopping {
    /// When it goes on whatever happens.
    pub(super) fn deadline(self) -> Option<Instant> {
        match self {
            Stopping::Asked => None,
            Stopping::Draining { look, .. } => Some(look),
            Stopping::Closing { deadline, .. } => Some(deadline),
        }
    }
}

/// How far the upload has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Progress {
    /// Octets and datagrams that came from apps so far.
    seen: u64,
    /// Of these, what no socket has taken yet.
    waiting: usize,
}

impl<D: Device> Driver<D> {
    pub(super) fn signalled(&mut self, now: Instant) -> Option<Exit> {
        let signals = self.signals.drain();
        self.asked(signals, now)
    }

    /// A service that asks to stop counts as a signal.
    pub(super) fn stop_for_service(&mut self, now: Instant) -> Option<Exit> {
        let asked = core::mem::take(&mut self.stop_asked);
        self.asked(asked.into(), now)
    }

    fn asked(&mut self, signals: usize, now: Instant) -> Option<Exit> {
        if signals == 0 {
            return None;
        }
        match self.stopping {
            None if signals == 1 => {}
            Some(Stopping::Draining { .. }) => {
                log::warn!(
                    "asked to stop: {} octets that the command had sent are given up",
                    self.engine.upload_waiting()
                );
                self.stop(Exit::Stopped, now);
                return None;
            }
            // The command's status counts; nothing of it is left to wait for.
            Some(Stopping::Closing { exit: Exit::Watched, .. }) => return Some(Exit::Watched),
            None | Some(Stopping::Asked | Stopping::Closing { exit: Exit::Stopped | Exit::Forced, .. }) => {
                log::warn!("asked to stop twice: stopping at once");
                return Some(Exit::Forced);
            }
        }
        match &self.watch {
            Some(watch) => {
                log::info!("asked to stop: passing it on to the command");
                watch.terminate();
                // The loop goes on until the command has ended; a second signal does not wait for it.
                self.stopping = Some(Stopping::Asked);
            }
            None => {
                log::info!(
                    "asked to stop: closing {} TCP flows and {} UDP associations",
                    self.engine.tcp_flows(),
                    self.engine.associations()
                );
                self.stop(Exit::Stopped, now);
            }
        }
        None
    }

    /// The watched process has ended.
    pub(super) fn drain(&mut self, now: Instant) {
        if let Some(watch) = self.watch.take()
            && let Err(error) = watch.deregister(self.poll.registry())
        {
            log::debug!("deregister: {error}");
        }
        if let Err(error) = self.signals.add_interrupt() {
            log::debug!("SIGINT is not taken over: {error}");
        }
        let asked = matches!(self.stopping, Some(Stopping::Asked));
        let exit = if asked { Exit::Stopped } else { Exit::Watched };
        let progress = self.progress();
        log::info!("the command has ended: {} octets that it sent wait for sockets", progress.waiting);
        self.stopping = Some(Stopping::Draining { exit, progress, moved: now, look: now + DRAIN_STEP });
    }

    fn progress(&mut self) -> Progress {
        let stats = self.engine.stats();
        let seen = stats.upload_octets.wrapping_add(stats.datagrams_out);
        Progress { seen, waiting: self.engine.upload_waiting() }
    }

    /// Looks whether what the process left has been sent, or will never be.
    fn drained(&mut self, exit: Exit, before: Progress, moved: Instant, now: Instant) {
        let progress = self.progress();
        let (patience, moved) = match exit {
            // From the end of the command on, whether octets move or not.
            Exit::Stopped | Exit::Forced => (STOP_PATIENCE, moved),
            Exit::Watched => (DRAIN_PATIENCE, if progress == before { moved } else { now }),
        };
        if progress.waiting == 0 && progress.seen == before.seen {
            self.stop(exit, now);
        } else if now.since(moved) >= patience {
            log::warn!(
                "{} octets that the command had sent are lost: they were not taken in {} s",
                progress.waiting,
                patience.as_secs()
            );
            self.stop(exit, now);
        } else {
            self.stopping = Some(Stopping::Draining { exit, progress, moved, look: now + DRAIN_STEP });
        }
    }

    fn stop(&mut self, exit: Exit, now: Instant) {
        for index in 0..self.services.len() {
            self.with_service(index, |service, scene| service.handle_stop(scene));
        }
        self.closed.tcp_flows = self.engine.tcp_flows();
        self.closed.associations = self.engine.associations();
        self.engine.shutdown(now);
        self.stopping = Some(Stopping::Closing { exit, deadline: now + FIN_GRACE, aborted: false });
    }

    pub(super) fn finished(&mut self, now: Instant) -> Option<Exit> {
        if let Some(Stopping::Draining { exit, progress, moved, look }) = self.stopping {
            let stats = self.engine.stats();
            // A datagram to a proxy may be overtaken by the end of its association, which throws it away; an answer shows that it was not.
            let answered = self.engine.associations() == 0 || stats.datagrams_in >= stats.datagrams_out;
            let idle = answered
                && self.engine.tcp_flows() == 0
                && !self.tun_readable
                && self.engine.upload_waiting() == 0;
            if idle {
                self.stop(exit, now);
            } else if now >= look {
                self.drained(exit, progress, moved, now);
            }
        }
        let Some(Stopping::Closing { exit, deadline, aborted }) = self.stopping else { return None };
        if self.engine.tcp_flows() == 0 || aborted {
            self.engine.abort(now);
            self.give(now);
            return Some(exit);
        }
        if now >= deadline {
            self.closed.reset = self.engine.tcp_flows();
            log::debug!("{} flows did not finish in time and are reset", self.closed.reset);
            self.engine.abort(now);
            self.give(now);
            self.stopping = Some(Stopping::Closing { exit, deadline, aborted: true });
        }
        None
    }
}
