//! How long this host waits for the push of a chunk that a peer has announced, before it asks for the chunk.

use core::time::Duration;

use proto::Moment;

use crate::Config;

/// One push in this many may come too late before the grace grows.
const LATE_ONE_IN: u32 = 200;

/// The grace: how long this host waits for a push before it asks. It adapts to how late pushes come.
#[derive(Debug)]
pub(crate) struct Grace {
    time: Duration,
    most: Duration,
    /// When announced chunks next come a step nearer to being asked for.
    turn_at: Moment,
    /// Pushes since the last turn, and how many pushes came for chunks that were due already.
    pushes: u32,
    late: u32,
}

impl Grace {
    pub(crate) const fn new(config: &Config) -> Self {
        Self {
            time: config.grace,
            most: config.grace_most,
            turn_at: Moment::START,
            pushes: 0,
            late: 0,
        }
    }

    pub(crate) const fn time(&self) -> Duration {
        self.time
    }

    /// Notes how long a spread takes. The grace becomes at least three times that.
    pub(crate) fn spread_takes(&mut self, time: Duration) {
        self.time = self.time.max(time * 3).min(self.most);
    }

    /// A push brought its chunk.
    pub(crate) const fn pushed(&mut self) {
        self.pushes += 1;
    }

    /// A push came after its chunk was due.
    pub(crate) const fn late(&mut self) {
        self.late += 1;
    }

    /// Whether pushes came since the last turn.
    pub(crate) const fn sees_pushes(&self) -> bool {
        self.pushes > 0 || self.late > 0
    }

    /// Whether a turn is due. At a turn the grace approaches the time that pushes really take after the first
    /// announcement, and stays at or above `least`.
    pub(crate) fn turn(&mut self, now: Moment, least: Duration) -> bool {
        if now < self.turn_at {
            return false;
        }
        if self.late.saturating_mul(LATE_ONE_IN) > self.pushes {
            self.time = (self.time * 3 / 2).min(self.most);
        } else if self.pushes > 0 && self.late == 0 {
            self.time = (self.time * 15 / 16).max(least.min(self.most));
        }
        self.pushes = 0;
        self.late = 0;
        self.turn_at = now + self.time;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_millis(500);

    fn grace() -> Grace {
        Grace::new(&Config {
            grace: Duration::from_millis(1_600),
            grace_most: Duration::from_secs(2),
            ..Config::default()
        })
    }

    fn at(millis: u64) -> Moment {
        Moment(millis * 1_000)
    }

    #[test]
    fn a_turn_comes_once_in_a_grace() {
        let mut grace = grace();
        assert!(grace.turn(at(0), LEAST));
        assert!(!grace.turn(at(1_599), LEAST));
        assert!(grace.turn(at(1_600), LEAST));
    }

    #[test]
    fn more_than_one_late_push_in_two_hundred_makes_the_grace_longer() {
        for (pushes, expected) in [(200, 1_600), (199, 2_000)] {
            let mut grace = grace();
            (0..pushes).for_each(|_| grace.pushed());
            grace.late();
            grace.turn(at(0), LEAST);
            assert_eq!(grace.time(), Duration::from_millis(expected), "{pushes}");
        }
    }

    #[test]
    fn without_late_pushes_the_grace_falls_to_its_least() {
        let mut grace = grace();
        for turn in 0..100 {
            grace.pushed();
            grace.turn(at(turn * 2_000), LEAST);
        }
        assert_eq!(grace.time(), LEAST);
        grace.turn(at(400_000), LEAST);
        assert_eq!(grace.time(), LEAST, "without pushes it stays");
    }

    #[test]
    fn a_spread_that_takes_long_is_waited_for_within_the_bound() {
        let mut grace = grace();
        grace.spread_takes(Duration::from_millis(600));
        assert_eq!(grace.time(), Duration::from_millis(1_800));
        grace.spread_takes(Duration::from_secs(60));
        assert_eq!(grace.time(), Duration::from_secs(2));
    }
}
