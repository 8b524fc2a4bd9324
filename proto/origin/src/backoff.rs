//! When to try again. Without I/O: the seed and the registry's answer are arguments, and the caller sleeps.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::{Duration, SystemTime},
};

use proto::pause::doubled;

/// The longest `Retry-After` that counts: an hour. A longer one would be a fault of the registry or of a clock.
pub(crate) const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Delays that double from a first to a longest one. Each is shortened at random by up to a half, so that hosts that
/// failed together don't come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
    random: u64,
}

impl Backoff {
    /// Delays between half of `first` and `longest`. Different hosts should use different seeds.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration, seed: u64) -> Self {
        Self {
            first,
            longest,
            failures: 0,
            random: seed,
        }
    }

    /// Like [`new`](Self::new), with a seed from the system's randomness. For delays that needn't repeat.
    #[must_use]
    pub fn seeded(first: Duration, longest: Duration) -> Self {
        // the keys of a hash map are random for each process, and differ between maps
        let seed = RandomState::new().hash_one(0_u8);
        Self::new(first, longest, seed)
    }

    /// How long to wait after one more failure; at least as long as the registry asked for.
    pub fn delay(&mut self, retry_after: Option<Duration>) -> Duration {
        let whole = doubled(self.first, self.longest, self.failures);
        self.failures = self.failures.saturating_add(1);
        let half = whole / 2;
        let span = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        let jitter = Duration::from_nanos(match span {
            0 => 0,
            span => self.draw() % span,
        });
        (half + jitter).max(retry_after.unwrap_or_default())
    }

    /// The failures since the start or the last success.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Notes a success: the delays start from the first again.
    pub const fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// SplitMix64 (Steele et al., 2014). It is good enough for jitter, and needs no dependency.
    const fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Reads a `Retry-After` header (RFC 9110 §10.2.3). It has seconds, or a date that is compared with `now`. The result
/// is an hour at most.
pub(crate) fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let delay = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs)
    } else {
        let date = httpdate::parse_http_date(text).ok()?;
        date.duration_since(now).unwrap_or_default()
    };
    Some(delay.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(30);

    #[test]
    fn delays_double_within_their_jitter_up_to_the_longest() {
        let mut backoff = Backoff::new(FIRST, LONGEST, 7);
        for failure in 0..40 {
            let whole = FIRST.saturating_mul(1 << failure.min(20)).min(LONGEST);
            let delay = backoff.delay(None);
            assert!(delay >= whole / 2 && delay <= whole, "{failure}: {delay:?}");
        }
        assert_eq!(backoff.failures(), 40);
    }

    #[test]
    fn a_success_starts_over() {
        let mut backoff = Backoff::new(FIRST, LONGEST, 7);
        for _ in 0..8 {
            backoff.delay(None);
        }
        backoff.succeeded();
        assert!(backoff.delay(None) <= FIRST);
    }

    #[test]
    fn seeds_spread_hosts() {
        let delays: std::collections::BTreeSet<_> = (0..100)
            .map(|seed| Backoff::new(LONGEST, LONGEST, seed).delay(None))
            .collect();
        assert!(delays.len() > 95);
    }

    #[test]
    fn seeds_of_the_system_spread_what_one_process_does() {
        let delays: std::collections::BTreeSet<_> = (0..100)
            .map(|_| Backoff::seeded(LONGEST, LONGEST).delay(None))
            .collect();
        assert!(delays.len() > 95);
    }

    #[test]
    fn the_registrys_wish_is_a_minimum() {
        let mut backoff = Backoff::new(FIRST, LONGEST, 7);
        let asked = Duration::from_secs(120);
        assert_eq!(backoff.delay(Some(asked)), asked);
        assert!(backoff.delay(Some(Duration::ZERO)) >= FIRST);
    }

    #[test]
    fn nothing_to_wait_for_is_no_wait() {
        let mut backoff = Backoff::new(Duration::ZERO, Duration::ZERO, 1);
        assert_eq!(backoff.delay(None), Duration::ZERO);
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let read = |text| parse_retry_after(text, now);
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read(" 0 "), Some(Duration::ZERO));
        assert_eq!(
            read("Sun, 06 Nov 1994 08:50:07 GMT"),
            Some(Duration::from_secs(30))
        );
        assert_eq!(
            read("Sun, 06 Nov 1994 08:49:00 GMT"),
            Some(Duration::ZERO),
            "a date in the past is now"
        );
        assert_eq!(read("99999999999999999999999"), Some(MAX_RETRY_AFTER));
        assert_eq!(read("Fri, 01 Jan 2100 00:00:00 GMT"), Some(MAX_RETRY_AFTER));
        assert_eq!(read("soon"), None);
        assert_eq!(read("-5"), None);
        assert_eq!(read(""), None);
    }
}
