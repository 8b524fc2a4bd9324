//! Tracks writes of one kind: which are under way, and when a failed write is tried again. The pauses grow, so that a
//! failure for many objects at once doesn't become a storm.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use origin::Backoff;

/// The first pause after a write that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Writes by the object that they change. At most one write of each object is under way.
#[derive(Debug)]
pub(super) struct Writes<K> {
    longest: Duration,
    under_way: BTreeSet<K>,
    failed: BTreeMap<K, Failed>,
}

#[derive(Debug)]
struct Failed {
    backoff: Backoff,
    until: Instant,
    error: String,
}

impl<K: Ord + Clone> Writes<K> {
    /// No write has begun yet. Pauses after failures grow up to `longest`.
    pub(super) const fn new(longest: Duration) -> Self {
        Self {
            longest,
            under_way: BTreeSet::new(),
            failed: BTreeMap::new(),
        }
    }

    /// Whether a write of this object may begin: none is under way, and no pause is running.
    pub(super) fn may_begin(&self, now: Instant, key: &K) -> bool {
        let pauses = self
            .failed
            .get(key)
            .is_some_and(|failed| now < failed.until);
        !pauses && !self.under_way.contains(key)
    }

    /// Begins a write of this object, if one may begin. Returns whether it began.
    pub(super) fn begin(&mut self, now: Instant, key: &K) -> bool {
        self.may_begin(now, key) && self.under_way.insert(key.clone())
    }

    /// The write succeeded, or nothing is left to write. Earlier failures are forgotten.
    pub(super) fn done(&mut self, key: &K) {
        self.under_way.remove(key);
        self.failed.remove(key);
    }

    /// The write ended without success and without a failure that counts, for example because its object is gone.
    pub(super) fn ended(&mut self, key: &K) {
        self.under_way.remove(key);
    }

    /// The write failed and waits before it is tried again. Returns whether to log the error: repetitions of the same
    /// error aren't logged.
    pub(super) fn failed(&mut self, now: Instant, key: &K, error: &str) -> bool {
        self.under_way.remove(key);
        let longest = self.longest;
        let failed = self.failed.entry(key.clone()).or_insert_with(|| Failed {
            backoff: Backoff::seeded(PAUSE, longest),
            until: now,
            error: String::new(),
        });
        failed.until = now + failed.backoff.delay(None);
        let news = failed.error != error;
        error.clone_into(&mut failed.error);
        news
    }

    /// Forgets failures of objects that are gone. Writes that are under way are still answered.
    pub(super) fn keep(&mut self, is_there: impl Fn(&K) -> bool) {
        self.failed.retain(|key, _| is_there(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_keeps_failing_is_tried_ever_more_rarely_and_told_once() {
        let (mut writes, mut now) = (Writes::new(Duration::from_mins(5)), Instant::now());
        let (mut tries, mut told, end) = (0, 0, now + Duration::from_hours(1));
        while now < end {
            if writes.begin(now, &"node") {
                tries += 1;
                told += u32::from(writes.failed(now, &"node", "no"));
            }
            now += Duration::from_secs(1);
        }
        // without pauses there would be 3,600 tries
        assert!((15..40).contains(&tries), "{tries}");
        assert_eq!(told, 1);
        assert!(writes.failed(now, &"node", "another"));
        writes.done(&"node");
        assert!(writes.may_begin(now, &"node"));
        writes.failed(now, &"node", "no");
        assert!(!writes.may_begin(now, &"node") && writes.may_begin(now, &"other"));
        writes.keep(|key| *key != "node");
        assert!(writes.may_begin(now, &"node"));
    }

    #[test]
    fn one_write_of_an_object_is_under_way_at_one_time() {
        let (mut writes, now) = (Writes::new(Duration::from_mins(1)), Instant::now());
        assert!(writes.begin(now, &1));
        assert!(!writes.begin(now, &1) && writes.begin(now, &2));
        // an object that is gone is forgotten, and its write is answered nevertheless
        writes.keep(|_| false);
        assert!(!writes.begin(now, &1));
        writes.ended(&1);
        assert!(writes.begin(now, &1));
    }

    #[test]
    fn a_pause_stands_while_a_write_ends_without_an_answer_and_is_over_when_one_goes_through() {
        let (mut writes, now) = (Writes::new(Duration::from_mins(1)), Instant::now());
        writes.begin(now, &1);
        writes.failed(now, &1, "no");
        writes.ended(&1);
        assert!(!writes.may_begin(now, &1));
        assert!(writes.may_begin(now + PAUSE, &1), "the first pause is over");
        writes.done(&1);
        assert!(writes.may_begin(now, &1));
    }
}
