//! A token bucket: a byte budget per second.

use proto::Moment;

/// The largest saving is the budget of one second divided by this: half a second's worth. Such a burst is too short to
/// disturb guests, and longer than a tick.
const BURST_DIVISOR: u64 = 2;

/// A byte budget. Spending may put the budget into debt by one chunk. The budget then allows nothing until the debt is
/// paid.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    /// Bytes per second; 0 is no limit.
    rate: u64,
    /// Bytes that may be spent; negative is debt.
    tokens: i64,
    at: Moment,
}

impl Bucket {
    pub(crate) const fn unlimited() -> Self {
        Self {
            rate: 0,
            tokens: 0,
            at: Moment::START,
        }
    }

    pub(crate) fn set_rate(&mut self, now: Moment, rate: u64) {
        self.refill(now);
        self.rate = rate;
        self.tokens = self.tokens.min(self.burst());
    }

    pub(crate) fn allows(&mut self, now: Moment) -> bool {
        if self.rate == 0 {
            return true;
        }
        self.refill(now);
        self.tokens > 0
    }

    pub(crate) fn spend(&mut self, bytes: u64) {
        if self.rate != 0 {
            self.tokens = self
                .tokens
                .saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }

    /// Gives back bytes that were charged and not spent.
    pub(crate) fn refund(&mut self, bytes: u64) {
        if self.rate != 0 {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            self.tokens = self.tokens.saturating_add(bytes).min(self.burst());
        }
    }

    /// When the budget allows something again; `None` if it does now.
    pub(crate) fn due(&self) -> Option<Moment> {
        if self.rate == 0 || self.tokens > 0 {
            return None;
        }
        let debt = self.tokens.unsigned_abs() + 1;
        let micros = u128::from(debt) * 1_000_000 / u128::from(self.rate) + 1;
        Some(Moment(
            self.at
                .0
                .saturating_add(u64::try_from(micros).unwrap_or(u64::MAX)),
        ))
    }

    fn burst(&self) -> i64 {
        i64::try_from(self.rate / BURST_DIVISOR)
            .unwrap_or(i64::MAX)
            .max(1)
    }

    fn refill(&mut self, now: Moment) {
        let micros = now.0.saturating_sub(self.at.0);
        let more = u128::from(self.rate) * u128::from(micros) / 1_000_000;
        // a fraction of a byte isn't lost: the clock moves on only when something was added
        if more > 0 || self.rate == 0 {
            self.tokens = self
                .tokens
                .saturating_add(i64::try_from(more).unwrap_or(i64::MAX))
                .min(self.burst());
            self.at = self.at.max(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_lets_through_its_rate_and_no_more() {
        let mut bucket = Bucket::unlimited();
        bucket.set_rate(Moment(0), 1_000_000);
        let mut sent = 0u64;
        for now in (0..10_000_000u64).step_by(1_000) {
            while bucket.allows(Moment(now)) {
                bucket.spend(100_000);
                sent += 100_000;
            }
        }
        assert!((9_500_000..=10_700_000).contains(&sent), "{sent}");
    }

    #[test]
    fn no_rate_is_no_limit() {
        let mut bucket = Bucket::unlimited();
        bucket.spend(u64::MAX);
        assert!(bucket.allows(Moment(0)));
        assert_eq!(bucket.due(), None);
    }

    #[test]
    fn what_was_not_spent_comes_back_but_is_not_saved_up() {
        let mut bucket = Bucket::unlimited();
        bucket.set_rate(Moment(0), 1_000);
        bucket.spend(2_000);
        bucket.refund(1_999);
        assert!(!bucket.allows(Moment(0)));
        bucket.refund(2);
        assert!(bucket.allows(Moment(0)));
        bucket.refund(u64::MAX);
        bucket.spend(501);
        assert!(
            !bucket.allows(Moment(0)),
            "half a second is saved up at most"
        );
    }

    #[test]
    fn a_debt_is_due_when_it_is_paid() {
        let mut bucket = Bucket::unlimited();
        bucket.set_rate(Moment(0), 1_000);
        bucket.spend(2_000);
        let due = bucket.due().unwrap();
        assert!(!bucket.allows(Moment(due.0 - 2_000)));
        assert!(bucket.allows(due));
    }
}
