//! Many events, one change: pure.
//!
//! # Theory of operation
//!
//! A network changes in bursts: an interface goes, its addresses and routes go, another comes, an address is leased, a route is made. To act in the
//! middle of it is to act twice, and the first time on a state that does not last. So events are gathered in a [`Debounce`] until none has come
//! for [`QUIET`]; one change comes out then. A network that does not come to rest is looked at all the same, [`BOUND`] after the first
//! event: new connections are to work two seconds after there is a way for them.
//!
//! A machine that slept does not see what changed meanwhile. A [`SleepWatch`] tells by two clocks that go on while it sleeps: when one of them has
//! run ahead of the monotonic clock, which stands still, the machine has slept, or is a guest whose host has. Setting the time of day by hand
//! looks the same, and costs one needless look.

use super::Noticed;
use crate::time::{Duration, Instant};

/// A change is told when nothing has happened for so long.
pub const QUIET: Duration = Duration::from_millis(300);
/// It is told at the latest so long after the first event.
pub const BOUND: Duration = Duration::from_millis(1_500);
/// A clock that has run ahead by more than this was not merely corrected: NTP slews what is less than a second, and rarely steps more than a few.
pub const ASLEEP: Duration = Duration::from_secs(10);

/// Gathers events into changes.
#[derive(Clone, Debug)]
pub struct Debounce {
    quiet: Duration,
    bound: Duration,
    gathered: Option<Gathered>,
}

#[derive(Clone, Copy, Debug)]
struct Gathered {
    noticed: Noticed,
    first: Instant,
    last: Instant,
}

impl Default for Debounce {
    fn default() -> Debounce {
        Debounce::new(QUIET, BOUND)
    }
}

impl Debounce {
    /// One that tells a change when nothing has happened for `quiet`, and `bound` after the first event at the latest.
    pub fn new(quiet: Duration, bound: Duration) -> Debounce {
        Debounce { quiet, bound, gathered: None }
    }

    /// Something has happened. Nothing is no event.
    pub fn handle(&mut self, noticed: Noticed, now: Instant) {
        if noticed == Noticed::default() {
            return;
        }
        let gathered = self.gathered.get_or_insert(Gathered { noticed, first: now, last: now });
        gathered.noticed = gathered.noticed.and(noticed);
        gathered.last = gathered.last.max(now);
    }

    /// When [`Debounce::poll`] will have something, if nothing else happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.gathered.map(|Gathered { first, last, .. }| (last + self.quiet).min(first + self.bound))
    }

    /// What has happened, if it is time to tell.
    #[must_use]
    pub fn poll(&mut self, now: Instant) -> Option<Noticed> {
        if self.poll_timeout()? > now {
            return None;
        }
        self.gathered.take().map(|gathered| gathered.noticed)
    }
}

/// Clocks that go on while the machine sleeps, from origins of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clocks {
    /// The time of day.
    pub wall: Duration,
    /// The time since the machine was started, sleep included.
    pub boot: Duration,
}

/// Tells whether the machine has slept.
#[derive(Clone, Copy, Debug)]
pub struct SleepWatch {
    clocks: Clocks,
    at: Instant,
}

impl SleepWatch {
    /// `clocks` are what they show at `now`.
    pub fn new(clocks: Clocks, now: Instant) -> SleepWatch {
        SleepWatch { clocks, at: now }
    }

    /// Whether one of the clocks has run ahead of the monotonic one by more than [`ASLEEP`] since the last look.
    pub fn slept(&mut self, clocks: Clocks, now: Instant) -> bool {
        let awake = now.since(self.at);
        let ahead = |new: Duration, old: Duration| new.saturating_sub(old).saturating_sub(awake) > ASLEEP;
        let slept = ahead(clocks.wall, self.clocks.wall) || ahead(clocks.boot, self.clocks.boot);
        *self = SleepWatch { clocks, at: now };
        slept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROUTES: Noticed = Noticed { routes: true, ..Noticed::NOTHING };
    const LINKS: Noticed = Noticed { state: true, ..Noticed::NOTHING };

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    #[test]
    fn a_burst_is_one_change_that_comes_when_it_is_over() {
        let mut debounce = Debounce::default();
        for millis in [0, 100, 350] {
            debounce.handle(if millis == 100 { ROUTES } else { LINKS }, at(millis));
            assert_eq!(debounce.poll(at(millis)), None);
        }
        assert_eq!(debounce.poll_timeout(), Some(at(650)));
        assert_eq!(debounce.poll(at(649)), None);
        assert_eq!(debounce.poll(at(650)), Some(ROUTES.and(LINKS)));
        assert_eq!(debounce.poll(at(10_000)), None);
        assert_eq!(debounce.poll_timeout(), None);
    }

    #[test]
    fn a_network_that_does_not_come_to_rest_is_looked_at_all_the_same() {
        let mut debounce = Debounce::default();
        let mut told = Vec::new();
        for millis in (0..4_000).step_by(50) {
            debounce.handle(LINKS, at(millis));
            told.extend(debounce.poll(at(millis)).map(|_| millis));
        }
        assert_eq!(told, [1_500, 3_050]);
    }

    #[test]
    fn nothing_is_no_event() {
        let mut debounce = Debounce::default();
        debounce.handle(Noticed::NOTHING, at(1));
        assert_eq!(debounce.poll_timeout(), None);
    }

    /// F17: sleep is seen by either clock; a correction of the time of day is not sleep, nor is the time set back.
    #[test]
    fn a_clock_that_runs_ahead_tells_of_sleep() {
        let secs = Duration::from_secs;
        let start = Clocks { wall: secs(1_000_000), boot: secs(500) };
        let ran = |wall, boot, awake| {
            let clocks = Clocks { wall: secs(wall), boot: secs(boot) };
            SleepWatch::new(start, at(7_000)).slept(clocks, at(7_000) + secs(awake))
        };
        assert!(!ran(1_000_060, 560, 60), "all clocks agree");
        assert!(!ran(1_000_065, 560, 60), "the time of day was corrected");
        assert!(!ran(996_460, 560, 60), "an hour back");
        assert!(ran(1_000_660, 1_160, 60), "ten minutes asleep");
        assert!(ran(1_000_060, 1_160, 60), "asleep, with a time of day that stood still");
        assert!(ran(1_000_660, 560, 60), "a guest that was paused");
    }

    #[test]
    fn sleep_is_told_once() {
        let clocks = |seconds| Clocks { wall: Duration::from_secs(seconds), boot: Duration::ZERO };
        let mut watch = SleepWatch::new(clocks(0), at(0));
        assert!(watch.slept(clocks(3_600), at(1)));
        assert!(!watch.slept(clocks(3_600), at(2)));
    }

    proptest! {
        /// Every event is in exactly one change, which comes no later than the bound after it and no earlier than quiet or bound allow.
        #[test]
        fn every_event_is_told_once_and_in_time(
            steps in proptest::collection::vec((0..800_u64, 0..32_u8), 1..60),
            quiet in 1..500_u64,
            more in 0..2_000_u64,
        ) {
            let (quiet, bound) = (Duration::from_millis(quiet), Duration::from_millis(quiet + more));
            let mut debounce = Debounce::new(quiet, bound);
            let mut now = Instant::ZERO;
            let mut open: Vec<(Instant, Noticed)> = Vec::new();
            let check = |told: Noticed, open: &mut Vec<(Instant, Noticed)>, at: Instant| {
                let all = open.iter().fold(Noticed::NOTHING, |all, (_, noticed)| all.and(*noticed));
                prop_assert_eq!(told, all);
                let (first, last) = (open[0].0, open[open.len() - 1].0);
                prop_assert!(at.since(first) >= bound || at.since(last) >= quiet);
                open.clear();
                Ok(())
            };
            for (pause, bits) in steps {
                let next = now + Duration::from_millis(pause);
                while let Some(due) = debounce.poll_timeout().filter(|due| *due <= next) {
                    prop_assert!(due.since(open[0].0) <= bound);
                    let told = debounce.poll(due);
                    prop_assert!(told.is_some(), "a deadline that tells nothing is a busy loop");
                    check(told.unwrap(), &mut open, due)?;
                }
                now = next;
                let noticed = Noticed {
                    state: bits & 1 != 0,
                    routes: bits & 2 != 0,
                    resolver: bits & 4 != 0,
                    own: bits & 8 != 0,
                    woke: bits & 16 != 0,
                };
                debounce.handle(noticed, now);
                if noticed != Noticed::NOTHING {
                    open.push((now, noticed));
                }
            }
            if let Some(due) = debounce.poll_timeout() {
                let told = debounce.poll(due).unwrap();
                check(told, &mut open, due)?;
            }
            prop_assert!(open.is_empty());
            prop_assert_eq!(debounce.poll_timeout(), None);
        }
    }
}
