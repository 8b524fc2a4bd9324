//! How long a command that waits pauses before it asks the coordinator again. The pauses grow while nothing is new, and
//! begin anew with news. Where the coordinator sends lines of progress, nothing is asked for, and nothing pauses.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

/// The first pause.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause before an unreachable coordinator is asked again. A restart takes a few seconds; after a long
/// absence, hundreds of waiting commands don't come back within the same second.
const UNREACHABLE_MOST: Duration = Duration::from_secs(10);
/// The longest pause between two looks at what stands still. An operator sees an end within this time.
const LOOK_MOST: Duration = Duration::from_secs(5);

/// Pauses that double up to a longest one. Each pause is shortened by a random part of up to half of it, so that
/// commands that lost the coordinator at one moment don't ask at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Pauses {
    next: Duration,
    most: Duration,
    random: u64,
}

impl Pauses {
    /// The pauses before an unreachable coordinator is asked again.
    pub(crate) fn unreachable() -> Self {
        Self::new(UNREACHABLE_MOST, RandomState::new().hash_one(FIRST))
    }

    /// The pauses between two looks, where the coordinator doesn't say by itself when something changes.
    pub(crate) fn between_looks() -> Self {
        Self::new(LOOK_MOST, RandomState::new().hash_one(FIRST))
    }

    const fn new(most: Duration, seed: u64) -> Self {
        Self {
            next: FIRST,
            most,
            // xorshift stays at 0
            random: seed | 1,
        }
    }

    /// The next pause.
    pub(crate) fn next(&mut self) -> Duration {
        let whole = self.next;
        self.next = (2 * whole).min(self.most);
        // xorshift64 (Marsaglia, 2003)
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let thousandths = u32::try_from(self.random % 501).unwrap_or(0);
        whole - whole * thousandths / 1_000
    }

    /// Something is new: the next pause is the first one again.
    pub(crate) const fn begin_anew(&mut self) {
        self.next = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_with_news() {
        for seed in 0..100 {
            let mut pauses = Pauses::new(LOOK_MOST, seed);
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
            .map(|seed: u64| {
                let mut pauses =
                    Pauses::new(UNREACHABLE_MOST, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                (0..5).map(|_| pauses.next()).sum::<Duration>().as_millis() / 100
            })
            .collect();
        firsts.sort_unstable();
        let most = firsts.chunk_by(|a, b| a == b).map(<[_]>::len).max();
        // 200 commands come back over ten seconds
        assert!(most < Some(20), "{most:?} in a tenth of a second");
    }
}
