//! The plan's own time: the caller's, without the time in which the caller was held up.
//!
//! Whoever comes long after a tick was due was held up, and what hosts said meanwhile is still to come. The time
//! beyond doesn't count. Without that, a coordinator that stood still for some seconds would take back every lease
//! that goes on, because its holder seems to have been silent.

use core::time::Duration;

use proto::Moment;

/// Whoever comes later than this after a tick was due was held up.
const LATE: Duration = Duration::from_secs(1);

/// The plan's own time.
#[derive(Debug, Default)]
pub(super) struct Clock {
    now: Moment,
    missed: Duration,
    started: Option<Moment>,
}

impl Clock {
    /// The latest moment.
    pub(super) const fn now(&self) -> Moment {
        self.now
    }

    /// The first moment, if there was one.
    pub(super) const fn started(&self) -> Option<Moment> {
        self.started
    }

    /// It is this time by the caller's clock, where a tick was due then by this one. Returns the time by this one.
    pub(super) fn hear(&mut self, now: Moment, due: Option<Moment>) -> Moment {
        if let Some(due) = due {
            self.missed += (now - self.missed).since(due).saturating_sub(LATE);
        }
        now - self.missed
    }

    /// It is this time by this clock. Time never goes back.
    pub(super) fn pass(&mut self, now: Moment) {
        self.now = self.now.max(now);
        self.started.get_or_insert(self.now);
    }

    /// The moment by this clock that is `now` by the caller's, and not before the latest one.
    pub(super) fn at(&self, now: Moment) -> Moment {
        (now - self.missed).max(self.now)
    }

    /// The moment by the caller's clock that is `due` by this one.
    pub(super) fn callers(&self, due: Moment) -> Moment {
        due + self.missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Moment(1_000_000_000);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn time_beyond_a_second_after_a_tick_was_due_does_not_count() {
        let mut clock = Clock::default();
        assert_eq!(clock.hear(START + LATE, Some(START)), START + LATE);
        assert_eq!(clock.hear(START + 31 * SECOND, Some(START)), START + LATE);
        assert_eq!(clock.callers(START), START + 30 * SECOND);
        // from then on time passes as ever
        let due = START + LATE;
        assert_eq!(clock.hear(START + 32 * SECOND, Some(due)), due + SECOND);
        // and where nothing is due, all of it does
        assert_eq!(clock.hear(START + 90 * SECOND, None), START + 60 * SECOND);
    }

    #[test]
    fn time_never_goes_back() {
        let mut clock = Clock::default();
        assert_eq!(clock.started(), None);
        clock.pass(START + SECOND);
        clock.pass(START);
        assert_eq!(clock.now(), START + SECOND);
        assert_eq!(clock.started(), Some(START + SECOND));
        assert_eq!(clock.at(START), START + SECOND);
        assert_eq!(clock.at(START + 2 * SECOND), START + 2 * SECOND);
    }
}
