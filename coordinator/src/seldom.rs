//! Rare log lines. Anybody who reaches a port can cause some log lines, so such a line is written at intervals only,
//! with the number of lines that were left out.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::lock::lock;

/// Says when a line is due.
#[derive(Debug)]
pub(crate) struct Seldom {
    every: Duration,
    /// When a line was last written, and how many lines were left out since. Locked only briefly, never across an
    /// await.
    said: Mutex<(Option<Instant>, u64)>,
}

impl Seldom {
    /// At most one line is written within `every`.
    pub(crate) const fn new(every: Duration) -> Self {
        Self {
            every,
            said: Mutex::new((None, 0)),
        }
    }

    /// Something happened that is worth a line. `Some` when a line is due, with the number of events since the last
    /// line that got none.
    pub(crate) fn due(&self, now: Instant) -> Option<u64> {
        let mut said = lock(&self.said);
        let (last, unsaid) = *said;
        if last.is_some_and(|last| now.saturating_duration_since(last) < self.every) {
            said.1 = unsaid.saturating_add(1);
            return None;
        }
        *said = (Some(now), 0);
        Some(unsaid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_at_once_are_one_line_and_the_next_counts_the_others() {
        let (seldom, now) = (Seldom::new(Duration::from_secs(1)), Instant::now());
        assert_eq!(seldom.due(now), Some(0));
        for _ in 1..1_000 {
            assert_eq!(seldom.due(now + Duration::from_millis(999)), None);
        }
        assert_eq!(seldom.due(now + Duration::from_secs(1)), Some(999));
        assert_eq!(seldom.due(now + Duration::from_secs(2)), Some(0));
    }
}
