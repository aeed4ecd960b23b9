//! Round-trip time and retransmission time-out (RFC 6298).
//!
//! What was measured outlives every pause of a connection and is kept small: whole microseconds in 32 bits, an hour and more.

use crate::time::Duration;

/// Clock granularity G (RFC 6298 2): timers are kept in milliseconds.
const GRANULARITY: Duration = Duration::from_millis(1);

/// Whole microseconds of a round trip; more than an hour counts as the most that there is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Micros(u32);

impl From<Duration> for Micros {
    fn from(duration: Duration) -> Micros {
        Micros(u32::try_from(duration.as_micros()).unwrap_or(u32::MAX))
    }
}

impl From<Micros> for Duration {
    fn from(micros: Micros) -> Duration {
        Duration::from_micros(micros.0.into())
    }
}

/// What was measured of a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Measured {
    srtt: Micros,
    rttvar: Micros,
    min_rtt: Micros,
}

/// SRTT, RTTVAR, RTO and its back-off.
#[derive(Debug)]
pub(super) struct Rtt {
    measured: Option<Measured>,
    initial: Duration,
    min: Duration,
    max: Duration,
}

impl Rtt {
    pub(super) fn new(initial: Duration, min: Duration, max: Duration) -> Rtt {
        Rtt { measured: None, initial, min, max }
    }

    /// The measurements, for [`Rtt::resume`].
    pub(super) fn measured(&self) -> Option<Measured> {
        self.measured
    }

    /// Goes on from measurements made before.
    pub(super) fn resume(&mut self, measured: Option<Measured>) {
        self.measured = measured;
    }

    /// A measurement of a segment that was sent once (Karn, RFC 6298 3).
    pub(super) fn sample(&mut self, rtt: Duration) {
        let measured = match self.measured {
            // RFC 6298 2.2
            None => Measured { srtt: rtt.into(), rttvar: (rtt / 2).into(), min_rtt: rtt.into() },
            // RFC 6298 2.3, alpha = 1/8, beta = 1/4
            Some(Measured { srtt, rttvar, min_rtt }) => {
                let (srtt, rttvar) = (Duration::from(srtt), Duration::from(rttvar));
                Measured {
                    rttvar: (rttvar * 3 / 4 + srtt.abs_diff(rtt) / 4).into(),
                    srtt: (srtt * 7 / 8 + rtt / 8).into(),
                    min_rtt: min_rtt.min(rtt.into()),
                }
            }
        };
        self.measured = Some(measured);
    }

    /// RTO, doubled `backoffs` times, at most the largest (RFC 6298 2, 5.5).
    pub(super) fn rto(&self, backoffs: u32) -> Duration {
        let rto = match self.measured {
            None => self.initial,
            Some(Measured { srtt, rttvar, .. }) => {
                let (srtt, rttvar) = (Duration::from(srtt), Duration::from(rttvar));
                (srtt + GRANULARITY.max(rttvar * 4)).clamp(self.min, self.max)
            }
        };
        rto.saturating_mul(1 << backoffs.min(16)).min(self.max)
    }

    /// SRTT, once measured.
    pub(super) fn srtt(&self) -> Option<Duration> {
        self.measured.map(|measured| measured.srtt.into())
    }

    /// The smallest measurement; zero before the first.
    pub(super) fn min_rtt(&self) -> Duration {
        self.measured.map_or(Duration::ZERO, |measured| measured.min_rtt.into())
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
