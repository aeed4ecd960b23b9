//! The token of a session: cancelling it ends all of its work, whatever that is waiting for.
//!
//! A token is a flag and a pipe. The loop polls the pipe's other end beside its packets, where signals arrive as well, so that a signal and
//! [`CancelToken::cancel`] take the same way; whatever waits elsewhere looks at the flag, or waits on
//! the pipe ([`Waiter`](crate::driver::Waiter)).

use crate::driver::{Signals, Waker};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Cancels one session. Clones cancel the same one.
#[derive(Clone, Debug)]
pub struct CancelToken {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cancelled: AtomicBool,
    wake: Waker,
}

impl CancelToken {
    /// The token of the session whose loop polls `signals`.
    ///
    /// # Errors
    ///
    /// The process is out of descriptors.
    pub fn new(signals: &Signals) -> io::Result<CancelToken> {
        Ok(CancelToken {
            inner: Arc::new(Inner { cancelled: AtomicBool::new(false), wake: signals.waker()? }),
        })
    }

    /// Has the session stop, as one signal does. Again, it is forced, as by a second one.
    pub fn cancel(&self) {
        self.inner.cancelled.store(true, Ordering::Release);
        // A pipe that is full has woken the loop already; one whose loop is gone needs no waking.
        if let Err(error) = self.inner.wake.wake() {
            log::debug!("cancel: {error}");
        }
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.inner.cancelled.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Duration;

    /// L-4
    #[test]
    fn a_token_wakes_whoever_waits_and_counts_as_a_signal() {
        let mut signals = Signals::none().unwrap();
        let token = CancelToken::new(&signals).unwrap();
        let waiter = signals.waiter().unwrap();
        assert!(!waiter.wait(Duration::from_millis(1)).unwrap());
        token.clone().cancel();
        assert!(token.is_cancelled());
        // For an hour, if it did not wake.
        assert!(waiter.wait(Duration::from_secs(3600)).unwrap());
        assert_eq!(signals.drain(), 1);
        token.cancel();
        assert_eq!(signals.drain(), 1);
    }

    #[test]
    fn a_token_outlives_its_loop() {
        let token = CancelToken::new(&Signals::none().unwrap()).unwrap();
        token.cancel();
        assert!(token.is_cancelled());
    }
}
