//! A leader's term: the right to write, for a limited time. The election makes and extends terms; this file doesn't.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// The last number that a term may have: the greatest count of transitions that a Lease can hold. No term has a greater
/// number, so a greater number counts as none.
pub(crate) const LAST_TERM: u32 = i32::MAX.unsigned_abs();

/// The right to write. A writer checks its term before each write.
#[derive(Clone, Debug)]
pub(crate) struct Term {
    number: u32,
    /// The end of the term by [`clock`], in milliseconds.
    until: Arc<AtomicU64>,
}

impl Term {
    /// The term of this number, which lasts until the time `until` of [`clock`].
    pub(super) fn new(number: u32, until: Duration) -> Self {
        let term = Self {
            number,
            until: Arc::default(),
        };
        term.extend(until);
        term
    }

    /// The term's number, which counts changes of leader. A later leader has a greater number.
    pub(crate) const fn number(&self) -> u32 {
        self.number
    }

    /// Whether this process may write at this moment.
    pub(crate) fn holds(&self) -> bool {
        self.left().is_some()
    }

    /// How long this process may write from now on if the lease isn't renewed. `None` when the term is over.
    pub(crate) fn left(&self) -> Option<Duration> {
        let until = Duration::from_millis(self.until.load(Ordering::Acquire));
        until.checked_sub(clock()).filter(|left| !left.is_zero())
    }

    /// Extends the term after a renewal of the lease. The term then lasts until the time `until` of [`clock`].
    pub(super) fn extend(&self, until: Duration) {
        let until = proto::millis(until);
        self.until.store(until, Ordering::Release);
    }

    /// Ends the term: this process doesn't lead any more.
    pub(super) fn end(&self) {
        self.until.store(0, Ordering::Release);
    }
}

/// Time since some moment before this process started. This clock goes on while the machine sleeps.
pub(super) fn clock() -> Duration {
    #[cfg(target_os = "linux")]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
    // On macOS this clock goes on while the machine sleeps.
    #[cfg(not(target_os = "linux"))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
    let now = rustix::time::clock_gettime(CLOCK);
    Duration::new(
        now.tv_sec.try_into().unwrap_or_default(),
        now.tv_nsec.try_into().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_lasts_until_its_end_and_every_clone_sees_how_it_is_extended_and_ended() {
        let term = Term::new(3, clock() + Duration::from_mins(1));
        let seen = term.clone();
        assert!(seen.left().unwrap() <= Duration::from_mins(1));
        assert_eq!(seen.number(), 3);
        term.extend(clock() + Duration::from_hours(1));
        assert!(seen.left().unwrap() > Duration::from_mins(59));
        term.end();
        assert!(!seen.holds());
        assert!(!Term::new(3, clock()).holds());
    }
}
