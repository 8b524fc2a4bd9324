//! The speeds of this host: its byte budgets, its measured upload rate, and how long transfers take.

use core::time::Duration;

use proto::Moment;

use crate::{Config, bucket::Bucket};

/// A transfer is slow when it takes this many times as long as other transfers do, and at least this long.
const SLOW: (u32, Duration) = (8, Duration::from_millis(500));
/// The time with a full uplink is measured in parts of this length, in microseconds. It's long enough for a few uploads
/// at 100 Mbit/s.
const SAMPLE_US: u64 = 1_000_000;

/// The speeds of this host.
#[derive(Debug)]
pub(crate) struct Pace {
    up: Bucket,
    down: Bucket,
    /// The upload rate in bytes per second: assumed at first, later measured.
    rate: u64,
    measured: bool,
    /// The upload rate that was assumed.
    assumed_rate: u64,
    /// The moment since which the uplink has been as good as full.
    busy_since: Option<Moment>,
    /// Since the last sample: how long the uplink was full, in microseconds, and the bytes that it sent meanwhile.
    busy_us: u64,
    busy_bytes: u64,
    /// How long uploads take until they are received.
    sent: Mean,
    /// How long accepted pushes take.
    pushed: Mean,
    /// How long answers take, over all peers.
    answered: Mean,
    /// How long a transfer is assumed to take before one was measured.
    assumed: Duration,
}

/// A running mean of microseconds over about eight samples; 0 before the first sample. The first sample counts whole.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mean(u64);

impl Mean {
    pub(crate) fn add(&mut self, sample: u64) {
        self.0 = match self.0 {
            0 => sample.max(1),
            mean => (mean * 7 + sample) / 8,
        };
    }

    /// In microseconds; 0 before the first sample.
    pub(crate) const fn us(self) -> u64 {
        self.0
    }

    fn get(self) -> Option<Duration> {
        (self.0 > 0).then(|| Duration::from_micros(self.0))
    }

    /// The time after which a transfer is slow, if other transfers take as long as this mean.
    fn slow_after(self, assumed: Duration) -> Duration {
        self.get()
            .map_or(assumed * 2, |mean| (mean * SLOW.0).max(SLOW.1))
    }
}

impl Pace {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            up: Bucket::unlimited(),
            down: Bucket::unlimited(),
            rate: config.assumed_rate_bytes_per_second.max(1),
            measured: false,
            assumed_rate: config.assumed_rate_bytes_per_second.max(1),
            busy_since: None,
            busy_us: 0,
            busy_bytes: 0,
            sent: Mean::default(),
            pushed: Mean::default(),
            answered: Mean::default(),
            assumed: config.push_assumed,
        }
    }

    /// Byte budgets per second; 0 is no limit.
    pub(crate) fn set_budgets(&mut self, now: Moment, up: u64, down: u64) {
        self.up.set_rate(now, up);
        self.down.set_rate(now, down);
    }

    // ---- sending --------------------------------------------------------------------------------------------------

    /// The upload rate as far as it is known, in bytes per second; never 0.
    pub(crate) const fn rate(&self) -> u64 {
        self.rate
    }

    /// The upload rate, if it was measured.
    pub(crate) fn measured_rate(&self) -> Option<u64> {
        self.measured.then_some(self.rate)
    }

    pub(crate) fn may_send(&mut self, now: Moment) -> bool {
        self.up.allows(now)
    }

    /// When the upload budget allows something again, if it doesn't now.
    pub(crate) fn may_send_at(&self) -> Option<Moment> {
        self.up.due()
    }

    /// An upload of this many bytes begins.
    pub(crate) fn charge(&mut self, bytes: u64) {
        self.up.spend(bytes);
    }

    /// An upload took this many bytes less than it was charged with.
    pub(crate) fn refund(&mut self, bytes: u64) {
        self.up.refund(bytes);
    }

    /// The microseconds for which so many bytes would hold our uplink, at the rate that is assumed or at a higher one
    /// that was measured. Who takes little makes the measured rate fall.
    pub(crate) fn worth_us(&self, bytes: u64) -> u64 {
        micros(bytes, self.rate.max(self.assumed_rate))
    }

    /// Notes whether the uplink is as good as full from now on. Only time with a full uplink says something about its
    /// rate.
    pub(crate) fn is_full(&mut self, now: Moment, full: bool) {
        match (full, self.busy_since) {
            (true, None) => self.busy_since = Some(now),
            (false, Some(since)) => {
                self.busy_us += now.0 - since.0;
                self.busy_since = None;
            }
            _ => {}
        }
    }

    /// Notes that this many bytes were sent and received.
    pub(crate) fn sent_bytes(&mut self, now: Moment, bytes: u64) {
        let Some(since) = self.busy_since else {
            return;
        };
        self.busy_us += now.0 - since.0;
        self.busy_since = Some(now);
        self.busy_bytes += bytes;
        if self.busy_us >= SAMPLE_US && self.busy_bytes > 0 {
            let sample =
                (u128::from(self.busy_bytes) * 1_000_000 / u128::from(self.busy_us)).max(1);
            let sample = u64::try_from(sample).unwrap_or(u64::MAX);
            // receivers that are slow for a while don't make the uplink slower: its rate rises at once, and falls
            // slowly
            self.rate = if !self.measured || sample > self.rate {
                sample
            } else {
                (self.rate * 15 + sample) / 16
            };
            self.measured = true;
            self.busy_us = 0;
            self.busy_bytes = 0;
        }
    }

    /// An upload was received after this many microseconds.
    pub(crate) fn sent_took(&mut self, us: u64) {
        self.sent.add(us);
    }

    /// The time after which an upload is slow.
    pub(crate) fn slow_upload(&self) -> Duration {
        self.sent.slow_after(self.assumed)
    }

    // ---- receiving ------------------------------------------------------------------------------------------------

    pub(crate) fn may_receive(&mut self, now: Moment) -> bool {
        self.down.allows(now)
    }

    pub(crate) fn received(&mut self, bytes: u64) {
        self.down.spend(bytes);
    }

    /// The download budget, to plan with.
    pub(crate) const fn budget(&self) -> Bucket {
        self.down
    }

    /// An accepted push took this many microseconds.
    pub(crate) fn push_took(&mut self, us: u64) {
        self.pushed.add(us);
    }

    /// How long a push is expected to take.
    pub(crate) fn push_takes(&self) -> Duration {
        self.pushed.get().unwrap_or(self.assumed)
    }

    /// The time after which a push is slow.
    pub(crate) fn slow_push(&self) -> Duration {
        self.pushed.slow_after(self.assumed)
    }

    /// An answer took this many microseconds.
    pub(crate) fn answer_took(&mut self, us: u64) {
        self.answered.add(us);
    }

    /// How long an answer is expected to take, in microseconds; 0 before the first one.
    pub(crate) const fn answer_us(&self) -> u64 {
        self.answered.us()
    }

    /// How long an answer of a peer is expected to take. `own_us`: how long that peer's answers took, in microseconds;
    /// 0 before its first.
    pub(crate) fn answer_takes(&self, own_us: u64) -> Duration {
        match (own_us, self.answered.us()) {
            (0, 0) => self.assumed,
            (0, all) => Duration::from_micros(all),
            (own, _) => Duration::from_micros(own),
        }
    }
}

/// Microseconds that this many bytes take at this rate.
pub(crate) fn micros(bytes: u64, bytes_per_second: u64) -> u64 {
    bytes
        .saturating_mul(1_000_000)
        .checked_div(bytes_per_second)
        .unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        Pace::new(&Config {
            assumed_rate_bytes_per_second: 1_000,
            push_assumed: Duration::from_secs(2),
            ..Config::default()
        })
    }

    fn at(millis: u64) -> Moment {
        Moment(millis * 1_000)
    }

    #[test]
    fn only_a_second_of_a_full_uplink_says_how_fast_it_is() {
        let mut pace = pace();
        pace.sent_bytes(at(0), 1 << 30);
        assert_eq!((pace.rate(), pace.measured_rate()), (1_000, None));
        pace.is_full(at(0), true);
        pace.sent_bytes(at(999), 2_000_000);
        assert_eq!(pace.measured_rate(), None);
        pace.sent_bytes(at(1_000), 2_000_000);
        assert_eq!(pace.measured_rate(), Some(4_000_000));
    }

    #[test]
    fn time_in_which_the_uplink_had_room_counts_for_nothing() {
        let mut pace = pace();
        pace.is_full(at(0), true);
        pace.sent_bytes(at(500), 1_000_000);
        pace.is_full(at(500), false);
        pace.is_full(at(60_000), true);
        pace.sent_bytes(at(60_500), 1_000_000);
        assert_eq!(pace.measured_rate(), Some(2_000_000));
    }

    #[test]
    fn a_rate_rises_at_once_and_falls_slowly() {
        let mut pace = pace();
        pace.is_full(at(0), true);
        pace.sent_bytes(at(1_000), 1_600);
        pace.sent_bytes(at(2_000), 3_200);
        assert_eq!(pace.rate(), 3_200);
        pace.sent_bytes(at(3_000), 1_600);
        assert_eq!(pace.rate(), 3_100);
    }

    #[test]
    fn what_takes_eight_times_as_long_as_others_is_slow_and_nothing_below_half_a_second() {
        let mut pace = pace();
        assert_eq!(
            pace.slow_push(),
            Duration::from_secs(4),
            "twice what is assumed"
        );
        pace.push_took(100_000);
        assert_eq!(pace.slow_push(), Duration::from_millis(800));
        pace.sent_took(10_000);
        assert_eq!(pace.slow_upload(), Duration::from_millis(500));
    }

    #[test]
    fn a_peer_is_expected_to_answer_as_before_or_else_as_others_do() {
        let mut pace = pace();
        assert_eq!(pace.answer_takes(0), Duration::from_secs(2));
        pace.answer_took(800);
        assert_eq!(pace.answer_takes(0), Duration::from_micros(800));
        assert_eq!(pace.answer_takes(50), Duration::from_micros(50));
        pace.answer_took(1_600);
        assert_eq!(pace.answer_us(), 900);
    }
}
