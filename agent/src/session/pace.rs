//! The pauses between attempts to reach the coordinator, and how long the coordinator may be silent.

use std::time::Duration;

use origin::Backoff;

/// First and longest pause between attempts to reach the coordinator. Each pause is shortened at random by up to a
/// half, so that hosts that lost the coordinator together don't come back together. The longest pause bounds how late a
/// host hears of a coordinator that came back.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// The time between two looks whether anything came from the coordinator, which says something every 750 ms.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The first and largest number of looks at which nothing had come, before the session is given up. That is 3 s at
/// first. The number doubles after each session that ended like this, and falls back once a session lasted for
/// [`CALM`]. So hosts leave a killed coordinator quickly. A coordinator that gets no processor, or whose network is
/// full, isn't made busier by hosts that all come back again and again.
const SILENT_LOOKS: (u32, u32) = (6, 20);

/// After a session that lasted this long, the pauses begin anew. A coordinator that ends sessions at once isn't tried
/// more often than one that takes none.
const SOUND: Duration = Duration::from_secs(10);

/// If a session lasted this long, the coordinator isn't in trouble.
const CALM: Duration = Duration::from_mins(2);

/// The pauses between attempts to reach the coordinator.
#[derive(Debug)]
pub(super) struct Pauses(Backoff);

impl Pauses {
    pub(super) fn new() -> Self {
        Self::between(RETRY.0, RETRY.1)
    }

    /// Pauses that grow from `first` to `longest`.
    pub(super) fn between(first: Duration, longest: Duration) -> Self {
        Self(Backoff::seeded(first, longest))
    }

    /// The pause after a session that lasted this long; `None` if no session came about.
    pub(super) fn next(&mut self, lasted: Option<Duration>) -> Duration {
        if lasted.is_some_and(|lasted| lasted >= SOUND) {
            self.0.succeeded();
        }
        self.0.delay(None)
    }
}

/// How long a coordinator may be silent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Patience {
    looks: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            looks: SILENT_LOOKS.0,
        }
    }
}

impl Patience {
    /// The number of looks ([`LOOK_EVERY`]) at which nothing may have come.
    pub(super) const fn looks(&self) -> u32 {
        self.looks
    }

    /// Notes how long a session lasted, and whether it ended because nothing came.
    pub(super) fn ended(&mut self, lasted: Duration, silent: bool) {
        if lasted >= CALM {
            *self = Self::default();
        }
        if silent {
            self.looks = (self.looks * 2).min(SILENT_LOOKS.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinator_that_is_silent_again_and_again_is_waited_for_longer() {
        let mut patience = Patience::default();
        let waits = |patience: &Patience| LOOK_EVERY * patience.looks;
        assert_eq!(waits(&patience), Duration::from_secs(3));
        patience.ended(Duration::from_secs(20), true);
        assert_eq!(waits(&patience), Duration::from_secs(6));
        patience.ended(Duration::from_secs(20), false);
        assert_eq!(waits(&patience), Duration::from_secs(6));
        for _ in 0..3 {
            patience.ended(Duration::from_secs(20), true);
        }
        assert_eq!(waits(&patience), Duration::from_secs(10));
        patience.ended(CALM, true);
        assert_eq!(waits(&patience), Duration::from_secs(6));
        patience.ended(CALM, false);
        assert_eq!(patience, Patience::default());
    }

    #[test]
    fn hosts_that_lost_the_coordinator_together_come_back_apart_and_ever_more_rarely() {
        let mut hosts: Vec<_> = (0..1_000).map(|_| Pauses::new()).collect();
        let first = hosts.iter_mut().map(|host| host.next(Some(CALM)));
        let mut first: Vec<_> = first.collect();
        first.sort_unstable();
        assert!(first[0] >= RETRY.0 / 2 && first[999] <= RETRY.0);
        assert!(first[900] - first[100] > RETRY.0 / 4, "they are spread");
        // sessions that are taken and ended at once, as by a coordinator in trouble
        let host = &mut hosts[0];
        let pauses: Vec<_> = (0..10).map(|_| host.next(Some(SOUND / 2))).collect();
        assert!(pauses[9] >= RETRY.1 / 2 && pauses[9] <= RETRY.1);
        assert!(host.next(None) >= RETRY.1 / 2);
        assert!(host.next(Some(SOUND)) <= RETRY.0);
    }
}
