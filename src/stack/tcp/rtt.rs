//! Round-trip time and retransmission time-out (RFC 6298).

use crate::time::Duration;

/// Clock granularity G (RFC 6298 2): timers are kept in milliseconds.
const GRANULARITY: Duration = Duration::from_millis(1);

/// SRTT, RTTVAR, RTO and its back-off.
#[derive(Debug)]
pub(super) struct Rtt {
    smoothed: Option<Smoothed>,
    min_rtt: Duration,
    rto: Duration,
    min: Duration,
    max: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Smoothed {
    srtt: Duration,
    rttvar: Duration,
}

impl Rtt {
    pub(super) fn new(initial: Duration, min: Duration, max: Duration) -> Rtt {
        Rtt { smoothed: None, min_rtt: Duration::MAX, rto: initial, min, max }
    }

    /// A measurement of a segment that was sent once (Karn, RFC 6298 3).
    pub(super) fn sample(&mut self, rtt: Duration) {
        self.min_rtt = self.min_rtt.min(rtt);
        let smoothed = match self.smoothed {
            // RFC 6298 2.2
            None => Smoothed { srtt: rtt, rttvar: rtt / 2 },
            // RFC 6298 2.3, alpha = 1/8, beta = 1/4
            Some(Smoothed { srtt, rttvar }) => {
                Smoothed { rttvar: rttvar * 3 / 4 + srtt.abs_diff(rtt) / 4, srtt: srtt * 7 / 8 + rtt / 8 }
            }
        };
        self.smoothed = Some(smoothed);
        self.rto = (smoothed.srtt + GRANULARITY.max(smoothed.rttvar * 4)).clamp(self.min, self.max);
    }

    /// RTO, doubled `backoffs` times, at most the largest (RFC 6298 5.5).
    pub(super) fn rto(&self, backoffs: u32) -> Duration {
        self.rto.saturating_mul(1 << backoffs.min(16)).min(self.max)
    }

    /// SRTT, once measured.
    pub(super) fn srtt(&self) -> Option<Duration> {
        self.smoothed.map(|smoothed| smoothed.srtt)
    }

    /// The smallest measurement; zero before the first.
    pub(super) fn min_rtt(&self) -> Duration {
        if self.smoothed.is_some() { self.min_rtt } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rtt() -> Rtt {
        Rtt::new(Duration::from_secs(1), Duration::from_millis(200), Duration::from_secs(60))
    }

    /// conformance 32
    #[test]
    fn the_first_rto_is_a_second_and_doubles_up_to_the_largest() {
        let rtt = rtt();
        assert_eq!(rtt.rto(0), Duration::from_secs(1));
        assert_eq!(rtt.rto(3), Duration::from_secs(8));
        assert_eq!(rtt.rto(40), Duration::from_secs(60));
    }

    #[test]
    fn measurements_are_smoothed_as_the_rfc_says() {
        let mut rtt = rtt();
        rtt.sample(Duration::from_millis(400));
        assert_eq!(rtt.rto(0), Duration::from_millis(1_200));
        rtt.sample(Duration::from_millis(400));
        assert_eq!(rtt.rto(0), Duration::from_millis(1_000));
        rtt.sample(Duration::from_millis(800));
        assert_eq!(rtt.srtt(), Some(Duration::from_millis(450)));
        assert_eq!(rtt.min_rtt(), Duration::from_millis(400));
    }

    #[test]
    fn the_smallest_rto_holds_on_a_fast_link() {
        let mut rtt = rtt();
        for _ in 0..100 {
            rtt.sample(Duration::from_micros(50));
        }
        assert_eq!(rtt.rto(0), Duration::from_millis(200));
    }
}
