//! How long to wait after something failed again.

use core::time::Duration;

/// `first`, doubled `times` times, at most `most`. Nothing overflows, however often something failed.
#[must_use]
pub fn doubled(first: Duration, most: Duration, times: u32) -> Duration {
    first
        .checked_mul(1 << times.min(31))
        .unwrap_or(most)
        .min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_stay_there() {
        let (first, most) = (Duration::from_secs(2), Duration::from_secs(15));
        let pauses = [0, 1, 2, 3, 31, 32, u32::MAX].map(|times| doubled(first, most, times));
        assert_eq!(
            pauses.map(|pause| pause.as_secs()),
            [2, 4, 8, 15, 15, 15, 15]
        );
        assert_eq!(doubled(most, first, 0), first, "the longest counts");
        assert_eq!(doubled(Duration::MAX, Duration::MAX, 1), Duration::MAX);
        assert_eq!(doubled(Duration::ZERO, most, u32::MAX), Duration::ZERO);
    }
}
