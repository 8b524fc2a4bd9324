//! How long a command that waits pauses before it asks the coordinator again. The pauses grow while nothing is new, and
//! begin anew with news. Where the coordinator sends lines of progress, nothing is asked for, and nothing pauses.

use std::time::Duration;

use origin::Backoff;

/// The first pause.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause before an unreachable coordinator is asked again. A restart takes a few seconds; after a long
/// absence, hundreds of waiting commands don't come back within the same second.
const UNREACHABLE_MOST: Duration = Duration::from_secs(10);
/// The longest pause between two looks at what stands still. An operator sees an end within this time.
const LOOK_MOST: Duration = Duration::from_secs(5);

/// Pauses that double up to a longest one. Each pause is shortened at random by up to half of it, so that commands that
/// lost the coordinator at one moment don't ask at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Pauses(Backoff);

impl Pauses {
    /// The pauses before an unreachable coordinator is asked again.
    pub(crate) fn unreachable() -> Self {
        Self(Backoff::seeded(FIRST, UNREACHABLE_MOST))
    }

    /// The pauses between two looks, where the coordinator doesn't say by itself when something changes.
    pub(crate) fn between_looks() -> Self {
        Self(Backoff::seeded(FIRST, LOOK_MOST))
    }

    /// The next pause.
    pub(crate) fn next(&mut self) -> Duration {
        self.0.delay(None)
    }

    /// Something is new: the next pause is the first one again.
    pub(crate) const fn begin_anew(&mut self) {
        self.0.succeeded();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_with_news() {
        for seed in 0..100 {
            let mut pauses = Pauses(Backoff::new(FIRST, LOOK_MOST, seed));
            for whole in [1, 2, 4, 5, 5].map(Duration::from_secs) {
                let pause = pauses.next();
                assert!(pause >= whole / 2 && pause <= whole, "{seed}: {pause:?}");
            }
            pauses.begin_anew();
            assert!(pauses.next() <= FIRST);
        }
    }

    #[test]
    fn commands_that_lost_the_coordinator_together_dont_come_back_together() {
        let mut firsts: Vec<_> = (0..200)
            .map(|seed| {
                let mut pauses = Pauses(Backoff::new(FIRST, UNREACHABLE_MOST, seed));
                (0..5).map(|_| pauses.next()).sum::<Duration>().as_millis() / 100
            })
            .collect();
        firsts.sort_unstable();
        let most = firsts.chunk_by(|a, b| a == b).map(<[_]>::len).max();
        // 200 commands come back over ten seconds
        assert!(most < Some(20), "{most:?} in a tenth of a second");
    }
}
