//! Writes that the gate asked for: which of them aren't answered yet, and which Pods wait after a refusal.

use alloc::collections::BTreeMap;

use proto::{Moment, pause::doubled};

use super::{Config, Outcome, PodId};

/// The purpose of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// The Pod is let go: it gets the label, or is deleted.
    Admission,
    /// The Pod's label is taken back.
    Withdrawal,
}

#[derive(Clone, Debug)]
struct Refusals {
    count: u32,
    retry_at: Moment,
}

/// The writes of all Pods.
#[derive(Clone, Debug, Default)]
pub(super) struct Writes {
    /// Writes that were asked for and aren't answered yet.
    asked: BTreeMap<PodId, Write>,
    refusals: BTreeMap<PodId, Refusals>,
}

impl Writes {
    /// Notes that a write is asked for.
    pub(super) fn ask(&mut self, pod: &PodId, write: Write) {
        self.asked.insert(pod.clone(), write);
    }

    /// Whether a write of this Pod isn't answered yet.
    pub(super) fn is_asked(&self, pod: &PodId) -> bool {
        self.asked.contains_key(pod)
    }

    /// Notes an answer. Returns the write's purpose, if the write was asked for.
    pub(super) fn answered(&mut self, pod: &PodId, outcome: Outcome) -> Option<Write> {
        if outcome == Outcome::Done {
            self.refusals.remove(pod);
        }
        self.asked.remove(pod)
    }

    /// A write of this Pod wasn't done, or may not have been. The next one waits, each time twice as long.
    pub(super) fn refused(&mut self, now: Moment, pod: &PodId, config: &Config) {
        let refusals = self.refusals.entry(pod.clone()).or_insert(Refusals {
            count: 0,
            retry_at: now,
        });
        let wait = doubled(config.retry, config.retry_most, refusals.count);
        refusals.count = refusals.count.saturating_add(1);
        refusals.retry_at = now + wait;
    }

    /// Whether the next write of this Pod has to wait.
    pub(super) fn waits(&self, now: Moment, pod: &PodId) -> bool {
        self.refusals
            .get(pod)
            .is_some_and(|refusals| refusals.retry_at > now)
    }

    /// Whether any write was refused lately.
    pub(super) fn any_refused(&self) -> bool {
        !self.refusals.is_empty()
    }

    /// Lets the next write come at once: the Pod is gone.
    pub(super) fn forget_refusals(&mut self, pod: &PodId) {
        self.refusals.remove(pod);
    }

    /// Forgets old refusals, so that the wait starts from the shortest again.
    pub(super) fn tick(&mut self, now: Moment, config: &Config) {
        self.refusals
            .retain(|_, refusals| refusals.retry_at + config.retry_most > now);
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;

    const START: Moment = Moment(1_000_000_000);
    const MOMENT: Duration = Duration::from_micros(1);

    fn pod() -> PodId {
        PodId("a".into())
    }

    #[test]
    fn the_next_write_waits_twice_as_long_after_each_refusal_up_to_a_bound() {
        let (mut writes, config) = (Writes::default(), Config::default());
        let mut wait = config.retry;
        for _ in 0..20 {
            writes.refused(START, &pod(), &config);
            let until = START + wait.min(config.retry_most);
            assert!(writes.waits(until - MOMENT, &pod()));
            assert!(!writes.waits(until, &pod()));
            wait = (wait * 2).min(config.retry_most);
        }
        // long after the last refusal, the shortest wait applies again
        let forgotten = START + config.retry_most * 2;
        writes.tick(forgotten - MOMENT, &config);
        assert!(writes.any_refused());
        writes.tick(forgotten, &config);
        assert!(!writes.any_refused());
    }

    #[test]
    fn an_answer_says_what_its_write_was_for_and_a_done_one_ends_the_wait() {
        let (mut writes, config) = (Writes::default(), Config::default());
        writes.ask(&pod(), Write::Withdrawal);
        assert!(writes.is_asked(&pod()));
        writes.refused(START, &pod(), &config);
        assert_eq!(
            writes.answered(&pod(), Outcome::Refused),
            Some(Write::Withdrawal)
        );
        assert!(!writes.is_asked(&pod()) && writes.waits(START, &pod()));
        writes.ask(&pod(), Write::Admission);
        assert_eq!(
            writes.answered(&pod(), Outcome::Done),
            Some(Write::Admission)
        );
        assert!(!writes.waits(START, &pod()));
        assert_eq!(writes.answered(&pod(), Outcome::Done), None);
    }
}
