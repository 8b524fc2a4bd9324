//! The plan's own clock: the caller's clock without the time in which the caller was held up.
//!
//! A caller that comes long after a due tick was held up, and the hosts' messages of that time are still to come. So
//! the time beyond isn't counted. Otherwise a coordinator that stood still for some seconds would take back every
//! running lease, because each holder would seem to have been silent.

use core::time::Duration;

use proto::Moment;

/// A caller that comes later than this after a due tick was held up.
const LATE: Duration = Duration::from_secs(1);

/// The plan's own clock.
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

    /// The first moment; `None` before the first event.
    pub(super) const fn started(&self) -> Option<Moment> {
        self.started
    }

    /// Takes the time by the caller's clock. `due` is when a tick was due, by this clock. Returns the time by this
    /// clock.
    pub(super) fn hear(&mut self, now: Moment, due: Option<Moment>) -> Moment {
        if let Some(due) = due {
            self.missed += (now - self.missed).since(due).saturating_sub(LATE);
        }
        now - self.missed
    }

    /// Sets the time by this clock. Time never goes back.
    pub(super) fn pass(&mut self, now: Moment) {
        self.now = self.now.max(now);
        self.started.get_or_insert(self.now);
    }

    /// The moment by this clock that is `now` by the caller's clock; never before the latest moment.
    pub(super) fn at(&self, now: Moment) -> Moment {
        (now - self.missed).max(self.now)
    }

    /// The moment by the caller's clock that is `due` by this clock.
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
        // from then on, time passes as before
        let due = START + LATE;
        assert_eq!(clock.hear(START + 32 * SECOND, Some(due)), due + SECOND);
        // where no tick is due, all time counts
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
