//! The contents that clients of this host wait for, and when this host fetches them from the registry without a lease.
//!
//! A client gives up after about a minute. So this host doesn't wait for other hosts without end. If neither a chunk
//! nor word of a wanted content comes for a while, this host goes to the registry by itself. Hosts do so one after the
//! other.

use alloc::{collections::BTreeMap, vec::Vec};
use core::time::Duration;

use proto::Moment;

use crate::event::ContentId;

/// The wait for a content that nothing was heard of, while there is no coordinator that could lease it to a host.
const UNLED: Duration = Duration::from_millis(500);

/// The contents that clients want.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wants(BTreeMap<ContentId, Want>);

#[derive(Clone, Debug)]
struct Want {
    since: Moment,
    /// The wait for a content that a host may be fetching. Each host that goes to the registry before this one adds the
    /// same time again.
    alone_after: Duration,
    /// The latest of three moments: the want began, a chunk or word of the content came, or this host tried by itself.
    heard_at: Moment,
    /// A host is or was fetching the content, or this host tried.
    heard: bool,
    /// The registry refused the content to this host's credentials.
    refused: bool,
    /// The registry has let a client in since it refused.
    admitted: bool,
}

impl Want {
    /// When this host fetches the content without a lease if nothing is heard until then. `turn`: the number of hosts
    /// that go first.
    fn due(&self, coordinator: bool, turn: u32) -> Option<Moment> {
        if self.admitted {
            return Some(self.heard_at);
        }
        if self.refused {
            return None;
        }
        // a fetch that was heard of may go on without the coordinator
        let first = if coordinator || self.heard {
            self.alone_after
        } else {
            self.alone_after.min(UNLED)
        };
        Some(self.heard_at + first.saturating_add(self.alone_after.saturating_mul(turn)))
    }
}

impl Wants {
    /// A client wants a content. `admitted`: the registry had refused the content to this host, and has now let this
    /// client in.
    pub(crate) fn begin(
        &mut self,
        now: Moment,
        id: ContentId,
        alone_after: Duration,
        admitted: bool,
    ) {
        let want = self.0.entry(id).or_insert(Want {
            since: now,
            alone_after,
            heard_at: now,
            heard: false,
            refused: false,
            admitted: false,
        });
        want.alone_after = alone_after;
        want.admitted |= admitted;
    }

    /// No client wants the content any more.
    pub(crate) fn end(&mut self, id: ContentId) {
        self.0.remove(&id);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A chunk of the content came, or word that a host fetches the content.
    pub(crate) fn heard(&mut self, now: Moment, id: ContentId) {
        if let Some(want) = self.0.get_mut(&id) {
            want.heard_at = now;
            want.heard = true;
        }
    }

    /// This host began to fetch the content, under a lease or without one.
    pub(crate) fn began(&mut self, now: Moment, id: ContentId) {
        if let Some(want) = self.0.get_mut(&id) {
            want.refused = false;
            want.admitted = false;
        }
        self.heard(now, id);
    }

    /// The registry refused the content to the credentials of all clients so far.
    pub(crate) fn refused(&mut self, id: ContentId) {
        if let Some(want) = self.0.get_mut(&id) {
            want.refused = true;
        }
    }

    /// The contents that are to be fetched without a lease now. Contents that clients have waited for longest come
    /// first. `turn` says how many hosts go before this one, and `None` for a content that needs no fetch.
    pub(crate) fn due(
        &self,
        now: Moment,
        coordinator: bool,
        turn: impl Fn(ContentId) -> Option<u32>,
    ) -> Vec<ContentId> {
        let mut due: Vec<(Moment, ContentId)> = self
            .0
            .iter()
            .filter(|(id, want)| {
                let at = turn(**id).and_then(|turn| want.due(coordinator, turn));
                at.is_some_and(|at| at <= now)
            })
            .map(|(id, want)| (want.since, *id))
            .collect();
        due.sort_unstable();
        due.into_iter().map(|(_, id)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ContentId = ContentId(3);
    const PATIENCE: Duration = Duration::from_secs(10);

    fn at(millis: u64) -> Moment {
        Moment(millis * 1_000)
    }

    /// A want of `ID` since the beginning.
    fn wanted() -> Wants {
        let mut wants = Wants::default();
        wants.begin(at(0), ID, PATIENCE, false);
        wants
    }

    fn is_due(wants: &Wants, millis: u64, coordinator: bool, turn: u32) -> bool {
        !wants
            .due(at(millis), coordinator, |_| Some(turn))
            .is_empty()
    }

    #[test]
    fn with_a_coordinator_a_client_waits_for_the_whole_patience() {
        let wants = wanted();
        assert!(!is_due(&wants, 9_999, true, 0));
        assert!(is_due(&wants, 10_000, true, 0));
    }

    #[test]
    fn without_a_coordinator_what_nothing_is_heard_of_is_waited_for_half_a_second() {
        let wants = wanted();
        assert!(!is_due(&wants, 499, false, 0));
        assert!(is_due(&wants, 500, false, 0));
    }

    #[test]
    fn a_patience_shorter_than_half_a_second_is_kept_without_a_coordinator_too() {
        let mut wants = Wants::default();
        wants.begin(at(0), ID, Duration::from_millis(200), false);
        assert!(!is_due(&wants, 199, false, 0));
        assert!(is_due(&wants, 200, false, 0));
    }

    #[test]
    fn a_fetch_that_was_heard_of_is_waited_for_although_the_coordinator_is_away() {
        let mut wants = wanted();
        wants.heard(at(400), ID);
        assert!(!is_due(&wants, 10_399, false, 0));
        assert!(is_due(&wants, 10_400, false, 0));
    }

    #[test]
    fn each_host_that_comes_before_costs_another_patience() {
        let wants = wanted();
        assert!(!is_due(&wants, 29_999, true, 2));
        assert!(is_due(&wants, 30_000, true, 2));
        assert!(!is_due(&wants, 20_499, false, 2));
        assert!(is_due(&wants, 20_500, false, 2));
    }

    #[test]
    fn who_tried_without_success_tries_again_a_patience_after_the_beginning() {
        let mut wants = wanted();
        wants.began(at(500), ID);
        assert!(!is_due(&wants, 10_499, false, 0));
        assert!(is_due(&wants, 10_500, false, 0));
    }

    #[test]
    fn what_the_registry_refused_is_fetched_again_when_it_lets_a_client_in() {
        let mut wants = wanted();
        wants.began(at(500), ID);
        wants.refused(ID);
        assert!(!is_due(&wants, 3_600_000, true, 0));
        wants.begin(at(3_600_000), ID, PATIENCE, false);
        assert!(
            !is_due(&wants, 3_600_000, true, 0),
            "another client with the same credentials"
        );
        wants.begin(at(3_600_000), ID, PATIENCE, true);
        assert!(is_due(&wants, 3_600_000, true, 7), "whoever else wants it");
        wants.began(at(3_600_000), ID);
        assert!(!is_due(&wants, 3_600_001, true, 0));
    }

    #[test]
    fn a_second_client_doesnt_make_the_first_one_wait_anew() {
        let mut wants = wanted();
        wants.begin(at(9_000), ID, PATIENCE, false);
        assert!(is_due(&wants, 10_000, true, 0));
    }

    #[test]
    fn what_nobody_wants_or_needs_isnt_fetched() {
        let mut wants = wanted();
        assert!(wants.due(at(60_000), true, |_| None).is_empty());
        wants.heard(at(1), ContentId(9));
        wants.end(ID);
        assert!(!is_due(&wants, 60_000, true, 0));
    }

    #[test]
    fn the_client_that_has_waited_longest_is_first() {
        let mut wants = Wants::default();
        wants.begin(at(2), ContentId(1), PATIENCE, false);
        wants.begin(at(1), ContentId(7), PATIENCE, false);
        wants.begin(at(1), ContentId(4), PATIENCE, false);
        let due = wants.due(at(60_000), true, |_| Some(0));
        assert_eq!(due, [ContentId(4), ContentId(7), ContentId(1)]);
    }
}
