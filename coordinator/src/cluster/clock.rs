//! The three clocks that the keeper uses. They are read together, once for each input.
//!
//! Waits go by [`Instant`], which nobody can set. Objects of the cluster carry times of the wall clock. The gate counts
//! [`Moment`]s. One [`Now`] holds all three, so that everything that follows from one input sees one time.

use std::time::{Duration, Instant, SystemTime};

use proto::Moment;

/// The gate's clock starts this far from zero, so that it can express times before this program's start.
const BEFORE: Duration = Duration::from_hours(24);

/// The clocks of a keeper, which started together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Instant,
}

impl Clock {
    /// Clocks that start now.
    pub(crate) fn start() -> Self {
        Self {
            started: Instant::now(),
        }
    }

    /// Reads all clocks.
    pub(crate) fn now(&self) -> Now {
        let instant = Instant::now();
        Now {
            instant,
            time: SystemTime::now(),
            up: instant.duration_since(self.started),
        }
    }

    /// As if the keeper had started this much earlier: the gate's clock advances, the others stay.
    #[cfg(test)]
    pub(crate) fn skip(&mut self, time: Duration) {
        self.started -= time;
    }
}

/// One reading of all clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// The monotonic clock.
    pub(crate) instant: Instant,
    /// The wall clock.
    pub(crate) time: SystemTime,
    /// How long the keeper has run.
    pub(crate) up: Duration,
}

impl Now {
    /// The gate's time.
    pub(crate) fn moment(self) -> Moment {
        Moment::START + BEFORE + self.up
    }

    /// The gate's time of an instant. An instant before the first moment becomes the first moment.
    pub(crate) fn moment_at(self, instant: Instant) -> Moment {
        match instant.checked_duration_since(self.instant) {
            Some(ahead) => self.moment() + ahead,
            None => self.moment() - self.since(instant),
        }
    }

    /// The gate's time of a time of the wall clock, by its distance from now. So a jump of the wall clock affects only
    /// what is read after the jump.
    pub(crate) fn moment_of(self, time: SystemTime) -> Moment {
        match self.time.duration_since(time) {
            Ok(age) => self.moment() - age,
            Err(ahead) => self.moment() + ahead.duration(),
        }
    }

    /// The instant of a moment. A moment in the past becomes now.
    pub(crate) fn instant_of(self, moment: Moment) -> Instant {
        self.instant + moment.since(self.moment())
    }

    /// How long ago an instant was. Zero for an instant in the future.
    pub(crate) fn since(self, instant: Instant) -> Duration {
        self.instant.saturating_duration_since(instant)
    }

    /// All clocks of a keeper that starts now, for tests.
    #[cfg(test)]
    pub(crate) fn start() -> Self {
        Self {
            instant: Instant::now() + BEFORE,
            time: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            up: Duration::ZERO,
        }
    }

    /// The same clocks this much later, for tests.
    #[cfg(test)]
    pub(crate) fn after(self, time: Duration) -> Self {
        Self {
            instant: self.instant + time,
            time: self.time + time,
            up: self.up + time,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_each_clock_is_the_same_moment_of_the_gate() {
        let hour = Duration::from_hours(1);
        let (start, now) = (Now::start(), Now::start().after(hour));
        assert_eq!(now.moment().since(start.moment()), hour);
        let now = start.after(hour);
        assert_eq!(now.moment_at(start.instant), start.moment());
        assert_eq!(now.moment_of(start.time), start.moment());
        // a later time is later by every clock
        let later = now.after(hour);
        assert_eq!(now.moment_at(later.instant), later.moment());
        assert_eq!(now.moment_of(later.time), later.moment());
        assert_eq!(now.instant_of(later.moment()), later.instant);
        // a moment in the past is due now
        assert_eq!(now.instant_of(start.moment()), now.instant);
    }

    #[test]
    fn what_happened_before_all_moments_happened_at_the_first() {
        let now = Now::start();
        let day = BEFORE;
        assert_eq!(now.moment_of(now.time - day), Moment::START);
        assert_eq!(
            now.moment_of(now.time - day - Duration::from_secs(1)),
            Moment::START
        );
        assert!(now.moment_of(now.time - day + Duration::from_secs(1)) > Moment::START);
    }
}
