//! A token bucket: so many a second, with a burst of as many.

use crate::time::Instant;

/// Allows `rate` events a second, and as many at once after a pause.
#[derive(Debug)]
pub(super) struct RateLimit {
    rate: u32,
    /// In millionths of an event.
    tokens: u64,
    filled_at: Instant,
}

const MICRO: u64 = 1_000_000;

impl RateLimit {
    pub(super) fn new(rate: u32) -> RateLimit {
        RateLimit { rate, tokens: u64::from(rate) * MICRO, filled_at: Instant::ZERO }
    }

    /// Takes one event out of the bucket, if there is one.
    pub(super) fn allow(&mut self, now: Instant) -> bool {
        let micros = u64::try_from(now.since(self.filled_at).as_micros()).unwrap_or(u64::MAX);
        let earned = micros.saturating_mul(self.rate.into());
        self.tokens = self.tokens.saturating_add(earned).min(u64::from(self.rate) * MICRO);
        self.filled_at = self.filled_at.max(now);
        let allowed = self.tokens >= MICRO;
        if allowed {
            self.tokens -= MICRO;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Duration;

    #[test]
    fn a_burst_is_allowed_and_then_the_rate() {
        let mut limit = RateLimit::new(10);
        let start = Instant::from_millis(5_000);
        assert_eq!((0..100).filter(|_| limit.allow(start)).count(), 10);
        let second = (0..1_000u64).filter(|ms| limit.allow(start + Duration::from_millis(*ms))).count();
        assert!((9..=10).contains(&second), "{second}");
        assert!(!RateLimit::new(0).allow(start));
    }
}
