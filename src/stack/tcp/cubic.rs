//! CUBIC congestion control (RFC 9438), in octets.
//!
//! Between losses the window follows `W(t) = C (t - K)^3 + W_max`, or what Reno would have if that is more. A loss multiplies it by
//! beta; a time-out sets it to one segment.

use crate::time::{Duration, Instant};

/// RFC 9438 5: aggressiveness in segments per second cubed.
const C: f64 = 0.4;
/// RFC 9438 4.6: multiplicative decrease.
const BETA: f64 = 0.7;
/// RFC 6928: initial window in segments.
const INITIAL: u32 = 10;
/// The window never grows beyond what any buffer here can hold.
const LARGEST: u32 = 64 << 20;

/// CWND, SSTHRESH and the cubic epoch.
#[derive(Debug)]
pub(super) struct Cubic {
    cwnd: u32,
    ssthresh: u32,
    w_max: f64,
    /// Most connections never lose anything and have none.
    epoch: Option<Box<Epoch>>,
}

#[derive(Clone, Copy, Debug)]
struct Epoch {
    start: Instant,
    k: f64,
    w_est: f64,
}

impl Cubic {
    pub(super) fn new(mss: u32) -> Cubic {
        Cubic { cwnd: INITIAL * mss, ssthresh: u32::MAX, w_max: 0.0, epoch: None }
    }

    /// Takes everything out of a connection that changes its form.
    pub(super) fn take(&mut self) -> Cubic {
        Cubic { cwnd: self.cwnd, ssthresh: self.ssthresh, w_max: self.w_max, epoch: self.epoch.take() }
    }

    /// CWND, octets.
    pub(super) fn window(&self) -> u32 {
        self.cwnd
    }

    /// `acked` octets were newly acknowledged while the window was the limit.
    pub(super) fn acked(&mut self, acked: u32, mss: u32, srtt: Duration, now: Instant) {
        if self.cwnd < self.ssthresh {
            // RFC 5681 3.1, with the appropriate byte counting of RFC 3465 (L = 2 segments per ACK is lifted: ACKs cover many).
            self.cwnd = self.cwnd.saturating_add(acked).min(LARGEST);
            return;
        }
        let segment = f64::from(mss.max(1));
        let cwnd = f64::from(self.cwnd) / segment;
        let w_max = self.w_max.max(cwnd);
        let epoch = self.epoch.get_or_insert_with(|| {
            Box::new(Epoch { start: now, k: ((w_max - cwnd) / C).cbrt(), w_est: cwnd })
        });
        let t = now.since(epoch.start).as_secs_f64() + srtt.as_secs_f64() - epoch.k;
        let target = (C * t * t * t + w_max).clamp(cwnd, cwnd * 1.5);
        // RFC 9438 4.3: the window that Reno would have.
        let alpha = 3.0 * (1.0 - BETA) / (1.0 + BETA);
        epoch.w_est += alpha * f64::from(acked) / f64::from(self.cwnd.max(1));
        let by_cubic = (target - cwnd) / cwnd * f64::from(acked) / segment;
        let next = if epoch.w_est > target { epoch.w_est.max(cwnd) } else { cwnd + by_cubic };
        self.cwnd = ((next * segment) as u32).clamp(mss, LARGEST);
    }

    /// A loss was detected with `flight` octets outstanding (RFC 9438 4.6).
    pub(super) fn lost(&mut self, flight: u32, mss: u32) {
        let segment = f64::from(mss.max(1));
        let cwnd = f64::from(self.cwnd) / segment;
        // Fast convergence (RFC 9438 4.7).
        self.w_max = if cwnd < self.w_max { cwnd * (1.0 + BETA) / 2.0 } else { cwnd };
        self.ssthresh = ((f64::from(flight.min(self.cwnd)) * BETA) as u32).max(2 * mss);
        self.cwnd = self.ssthresh;
        self.epoch = None;
    }

    /// The retransmission timer has run out (RFC 5681 3.1: at most one segment). `first`: not a repetition for the same segment.
    pub(super) fn timed_out(&mut self, flight: u32, mss: u32, first: bool) {
        if first {
            self.lost(flight, mss);
        }
        self.cwnd = mss;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: u32 = 1_000;

    #[test]
    fn slow_start_doubles_the_window_in_a_round() {
        let mut cubic = Cubic::new(MSS);
        cubic.acked(10 * MSS, MSS, Duration::from_millis(10), Instant::ZERO);
        assert_eq!(cubic.window(), 20 * MSS);
    }

    /// conformance 36
    #[test]
    fn a_time_out_leaves_one_segment() {
        let mut cubic = Cubic::new(MSS);
        cubic.timed_out(10 * MSS, MSS, true);
        assert_eq!(cubic.window(), MSS);
        // Slow start up to half of what was in flight, and no faster afterwards.
        for _ in 0..6 {
            cubic.acked(MSS, MSS, Duration::from_millis(10), Instant::ZERO);
        }
        assert_eq!(cubic.window(), 7 * MSS);
    }

    #[test]
    fn after_a_loss_the_window_returns_to_where_it_was_and_beyond() {
        let mut cubic = Cubic::new(MSS);
        cubic.acked(90 * MSS, MSS, Duration::from_millis(10), Instant::ZERO);
        cubic.lost(100 * MSS, MSS);
        assert_eq!(cubic.window(), 70 * MSS);
        let mut now = Instant::ZERO;
        let mut rounds = 0;
        while cubic.window() < 110 * MSS {
            cubic.acked(cubic.window(), MSS, Duration::from_millis(10), now);
            now = now + Duration::from_millis(10);
            rounds += 1;
            assert!(rounds < 2_000, "the window does not grow");
        }
    }

    #[test]
    fn the_window_stays_within_bounds_whatever_is_acknowledged() {
        let mut cubic = Cubic::new(1);
        for _ in 0..100 {
            cubic.acked(u32::MAX, 1, Duration::ZERO, Instant::ZERO);
        }
        assert_eq!(cubic.window(), LARGEST);
        cubic.lost(0, 1);
        assert!(cubic.window() >= 1);
    }
}
