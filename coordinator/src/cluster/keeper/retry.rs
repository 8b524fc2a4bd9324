//! When a write that failed is tried again: what fails for many objects at once doesn't become a storm.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use origin::Backoff;

/// The first pause after a write that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Writes that failed, by what they were about.
#[derive(Debug)]
pub(super) struct Retries<K> {
    longest: Duration,
    failed: BTreeMap<K, Failed>,
}

#[derive(Debug)]
struct Failed {
    backoff: Backoff,
    until: Instant,
    error: String,
}

impl<K: Ord> Retries<K> {
    /// Pauses grow up to this one.
    pub(super) const fn new(longest: Duration) -> Self {
        Self {
            longest,
            failed: BTreeMap::new(),
        }
    }

    /// Whether a write may be tried.
    pub(super) fn may(&self, key: &K, now: Instant) -> bool {
        self.failed
            .get(key)
            .is_none_or(|failed| failed.until <= now)
    }

    /// A write failed. Whether that is worth a line in the log: the same failure is, once.
    pub(super) fn failed(&mut self, key: K, error: &str, now: Instant) -> bool {
        let failed = self.failed.entry(key).or_insert_with(|| Failed {
            backoff: Backoff::seeded(PAUSE, self.longest),
            until: now,
            error: String::new(),
        });
        failed.until = now + failed.backoff.delay(None);
        let news = failed.error != error;
        error.clone_into(&mut failed.error);
        news
    }

    /// A write went through, or there is nothing to write any more.
    pub(super) fn over(&mut self, key: &K) {
        self.failed.remove(key);
    }

    /// Forgets what isn't there any more.
    pub(super) fn keep(&mut self, is_there: impl Fn(&K) -> bool) {
        self.failed.retain(|key, _| is_there(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_keeps_failing_is_tried_ever_more_rarely_and_told_once() {
        let (mut retries, mut now) = (Retries::new(Duration::from_mins(5)), Instant::now());
        let (mut tries, mut told, end) = (0, 0, now + Duration::from_hours(1));
        while now < end {
            if retries.may(&"node", now) {
                tries += 1;
                told += u32::from(retries.failed("node", "no", now));
            }
            now += Duration::from_secs(1);
        }
        // once a second it was 3,600 before
        assert!((15..40).contains(&tries), "{tries}");
        assert_eq!(told, 1);
        assert!(retries.failed("node", "another", now));
        retries.over(&"node");
        assert!(retries.may(&"node", now));
        retries.failed("node", "no", now);
        assert!(!retries.may(&"node", now) && retries.may(&"other", now));
        retries.keep(|key| *key != "node");
        assert!(retries.may(&"node", now));
    }
}
