//! The only reader of the clock.

use crate::time::Instant;

/// A monotonic clock whose origin is its creation.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: std::time::Instant,
}

impl Clock {
    /// A clock that starts at a microsecond count of zero.
    #[allow(clippy::disallowed_methods, reason = "the driver is where the clock is read")]
    pub fn new() -> Clock {
        Clock { origin: std::time::Instant::now() }
    }

    /// The present.
    #[allow(clippy::disallowed_methods, reason = "the driver is where the clock is read")]
    pub fn now(&self) -> Instant {
        let micros = u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX);
        Instant::from_micros(micros)
    }
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::new()
    }
}
