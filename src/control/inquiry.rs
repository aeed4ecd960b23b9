//! The status, asked for by another thread of this process: what a program that ztun is a library of has in place of the control socket.
//!
//! Whoever asks puts a sender on a list and wakes the loop, which answers all on the list with one status. When the loop ends the list goes, and the
//! senders on it: nobody waits for what cannot come.

use super::{report, server};
use crate::driver::{Scene, Service, Signals, Tokens, Waker};
use crate::time::{Duration, Instant};
use crate::tun::Device;
use mio::event::Event;
use mio::{Interest, Registry};
use std::io;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who waits for a status; `None` once nobody answers any more.
type Waiting = Option<Vec<SyncSender<String>>>;

/// Asks one run how it is, from any thread. Clones ask the same one.
#[derive(Clone, Debug)]
pub struct Inquiry(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    waker: Waker,
    /// What the loop reads; taken by it.
    woken: Mutex<Option<Signals>>,
}

impl Inquiry {
    /// For one run, that answers as soon as its loop has the [`Inquiry::service`].
    ///
    /// # Errors
    ///
    /// The process is out of descriptors.
    pub fn new() -> io::Result<Inquiry> {
        let woken = Signals::none()?;
        let waker = woken.waker()?;
        let waiting = Mutex::new(Some(Vec::new()));
        Ok(Inquiry(Arc::new(Shared { waiting, waker, woken: Mutex::new(Some(woken)) })))
    }

    /// The run's status, as `ztun status --json` has it; `None` when the run is over, or does not answer within `limit`.
    pub fn status(&self, limit: Duration) -> Option<String> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.0.lock().as_mut()?.push(sender);
        // A pipe that is full has woken the loop already.
        if let Err(error) = self.0.waker.wake() {
            log::debug!("inquiry: {error}");
        }
        receiver.recv_timeout(limit).ok()
    }

    /// What answers, in the loop of the run; there is one.
    pub fn service<D: Device + 'static>(&self, now: Instant) -> Option<Box<dyn Service<D>>> {
        let woken = self.0.woken.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(Box::new(Answers { shared: Arc::clone(&self.0), woken, started: now }))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // A list is whole whoever panicked.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The loop's side.
struct Answers {
    shared: Arc<Shared>,
    woken: Signals,
    started: Instant,
}

impl<D: Device> Service<D> for Answers {
    fn register(&mut self, registry: &Registry, tokens: Tokens) -> io::Result<()> {
        registry.register(self.woken.source(), tokens.token(0), Interest::READABLE)
    }

    fn handle_event(&mut self, _number: u16, _event: &Event, scene: &mut Scene<'_, D>, now: Instant) {
        // Emptied before the list is taken: who comes later wakes the loop again.
        self.woken.drain();
        let waiting = self.shared.lock().as_mut().map(core::mem::take).unwrap_or_default();
        if waiting.is_empty() {
            return;
        }
        let status = report::status(scene.engine, server::device(scene), self.started, now);
        match serde_json::to_string(&status) {
            Ok(text) => {
                for sender in waiting {
                    // Room for one, and one is sent; who has waited too long is gone.
                    let _ = sender.try_send(text.clone());
                }
            }
            Err(error) => log::error!("the status cannot be put into words: {error}"),
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    fn handle_timeout(&mut self, _scene: &mut Scene<'_, D>, _now: Instant) {}
}

impl Drop for Answers {
    fn drop(&mut self) {
        *self.shared.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_a_run_that_is_over_is_told_at_once() {
        let inquiry = Inquiry::new().unwrap();
        let service = inquiry.service::<crate::tun::Tun>(Instant::ZERO).unwrap();
        drop(service);
        // For an hour, if it waited.
        assert_eq!(inquiry.status(Duration::from_secs(3600)), None);
    }

    #[test]
    fn a_loop_that_does_not_turn_is_not_waited_for_beyond_the_limit() {
        let inquiry = Inquiry::new().unwrap();
        let _service = inquiry.service::<crate::tun::Tun>(Instant::ZERO).unwrap();
        assert_eq!(inquiry.status(Duration::from_millis(1)), None);
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "somebody else has to end the run")]
    fn who_waits_is_let_go_when_the_run_ends() {
        let inquiry = Inquiry::new().unwrap();
        let service = inquiry.service::<crate::tun::Tun>(Instant::ZERO).unwrap();
        let asks = inquiry.clone();
        let asking = std::thread::spawn(move || asks.status(Duration::from_secs(3600)));
        while inquiry.0.lock().as_ref().is_some_and(Vec::is_empty) {
            std::thread::yield_now();
        }
        drop(service);
        assert_eq!(asking.join().unwrap(), None);
    }
}
