//! What was leased of one content in ranges: which of them holders say that they fetched, and which is next.
//!
//! A holder's word that it fetched its range keeps others from the range, and counts for nothing else. If the content
//! then isn't whole anywhere for a while, it is leased whole again: see `leasing`.

use alloc::{collections::BTreeSet, vec::Vec};

use proto::{ChunkRange, HostId, Moment};

/// No ranges are leased any more when so many hosts gave one back: one host's word changes nothing for others.
const GIVEN_BACK: usize = 2;

/// A range that its holder says that it fetched.
#[derive(Debug)]
struct Fetched {
    range: ChunkRange,
    by: HostId,
    /// Whether other hosts got something of the content while the holder had the lease.
    brought: bool,
}

/// What was leased of one content in ranges.
#[derive(Debug)]
pub(super) struct Parts {
    /// The chunks of a range, once one was leased.
    size: Option<u32>,
    /// The ranges that holders say that they fetched, in order.
    fetched: Vec<Fetched>,
    /// The hosts that gave a range back. They get no other.
    given_back: BTreeSet<HostId>,
    /// When a range was last leased or fetched.
    moved_at: Moment,
    /// Whether the ranges were leased by an earlier coordinator.
    taken_over: bool,
    /// No ranges are leased any more.
    given_up: bool,
}

impl Parts {
    pub(super) const fn new(now: Moment) -> Self {
        Self {
            size: None,
            fetched: Vec::new(),
            given_back: BTreeSet::new(),
            moved_at: now,
            taken_over: false,
            given_up: false,
        }
    }

    /// Whether ranges were leased.
    pub(super) const fn are_begun(&self) -> bool {
        self.size.is_some()
    }

    /// Whether the ranges that run were leased by an earlier coordinator.
    pub(super) const fn are_taken_over(&self) -> bool {
        self.taken_over
    }

    /// Whether no ranges are leased any more.
    pub(super) const fn are_given_up(&self) -> bool {
        self.given_up
    }

    /// When a range was last leased or fetched.
    pub(super) const fn moved_at(&self) -> Moment {
        self.moved_at
    }

    /// A range is leased; `taken_over`: its holder says so, and this coordinator didn't grant it. Such a range may be
    /// the last one, which is shorter than the others, or none that was ever granted.
    pub(super) fn lease(&mut self, now: Moment, range: ChunkRange, taken_over: bool) {
        self.moved_at = now;
        self.taken_over = taken_over;
        let size = self.size.get_or_insert(range.count());
        if taken_over {
            *size = range.count().max(*size);
        }
    }

    /// The holder says that it fetched its range. `brought`: other hosts got something of the content meanwhile.
    pub(super) fn fetched(&mut self, now: Moment, range: ChunkRange, id: &HostId, brought: bool) {
        if self.are_begun() && self.lacks(range) {
            self.moved_at = now;
            let at = self.fetched.partition_point(|of| of.range < range);
            let by = id.clone();
            self.fetched.insert(at, Fetched { range, by, brought });
        }
    }

    /// The hosts that say that they fetched a range, and whether other hosts got something of the content meanwhile.
    pub(super) fn fetchers(&self) -> impl Iterator<Item = (&HostId, bool)> {
        self.fetched.iter().map(|of| (&of.by, of.brought))
    }

    /// The host gave its range back. Returns whether no ranges are leased any more for that.
    pub(super) fn give_back(&mut self, id: &HostId) -> bool {
        self.given_back.insert(id.clone());
        let enough = self.given_back.len() >= GIVEN_BACK;
        if enough {
            self.give_up();
        }
        enough
    }

    /// Whether the host gave a range back.
    pub(super) fn has_given_back(&self, id: &HostId) -> bool {
        self.given_back.contains(id)
    }

    /// Whether no holder says that it fetched something of this range.
    pub(super) fn lacks(&self, range: ChunkRange) -> bool {
        !self.fetched.iter().any(|of| of.range.overlaps(range))
    }

    /// The next range to lease of a content with this many chunks, beside those that are `taken`; `None` where there is
    /// none. It has `least` chunks, unless fewer are left there.
    pub(super) fn next(
        &self,
        (chunks, least): (u32, u32),
        taken: &[ChunkRange],
    ) -> Option<ChunkRange> {
        let fetched = self.fetched.iter().map(|of| of.range);
        let mut others: Vec<ChunkRange> = fetched.chain(taken.iter().copied()).collect();
        others.sort_unstable();
        // the first range is taken before it is leased
        let size = self.size.or_else(|| taken.first().map(|of| of.count()));
        let end = |from: u32| from.saturating_add(size.unwrap_or(u32::MAX).max(least));
        let mut from = 0;
        for other in others {
            if from < other.from() {
                let until = end(from).min(other.from());
                return ChunkRange::new(from, until);
            }
            from = from.max(other.until());
        }
        ChunkRange::new(from, end(from).min(chunks))
    }

    /// Whether holders say that they fetched all of a content with this many chunks.
    pub(super) fn cover(&self, chunks: u32) -> bool {
        self.are_begun() && self.next((chunks, 1), &[]).is_none()
    }

    /// The host lost chunks: what it fetched counts no more.
    pub(super) fn lose(&mut self, id: &HostId) {
        self.fetched.retain(|of| of.by != *id);
    }

    /// The host left the fleet or is shunned: its word counts no more.
    pub(super) fn forget_host(&mut self, id: &HostId) {
        self.lose(id);
        self.given_back.remove(id);
    }

    /// The content is leased whole from now on.
    pub(super) fn give_up(&mut self) {
        self.clear();
        self.given_up = true;
    }

    /// The content is whole on so many hosts that nothing of this matters any more.
    pub(super) fn clear(&mut self) {
        self.size = None;
        self.fetched.clear();
        self.given_back.clear();
        self.taken_over = false;
        self.given_up = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(number: u32) -> HostId {
        alloc::format!("host-{number}").parse().unwrap()
    }

    fn range(from: u32, until: u32) -> ChunkRange {
        ChunkRange::new(from, until).unwrap()
    }

    fn begun() -> Parts {
        let mut parts = Parts::new(Moment::START);
        parts.lease(Moment::START, range(0, 40), false);
        parts
    }

    #[test]
    fn ranges_follow_each_other_and_the_last_is_shorter() {
        let mut parts = begun();
        let mut taken = alloc::vec![range(0, 40)];
        for next in [range(40, 80), range(80, 100)] {
            assert_eq!(parts.next((100, 16), &taken), Some(next));
            taken.push(next);
        }
        assert_eq!(parts.next((100, 16), &taken), None);
        assert!(!parts.cover(100));
        for range in taken {
            parts.fetched(Moment(1), range, &host(1), true);
        }
        assert!(parts.cover(100));
    }

    #[test]
    fn a_range_that_nobody_fetches_any_more_is_next_and_only_that() {
        let mut parts = begun();
        parts.fetched(Moment(1), range(0, 40), &host(1), true);
        assert_eq!(
            parts.next((100, 16), &[range(80, 100)]),
            Some(range(40, 80))
        );
        parts.fetched(Moment(1), range(80, 100), &host(2), true);
        assert_eq!(parts.next((100, 16), &[range(40, 80)]), None);
        // a host that lost what it had has fetched nothing
        parts.forget_host(&host(1));
        assert_eq!(parts.next((100, 16), &[range(40, 80)]), Some(range(0, 40)));
        assert!(parts.lacks(range(0, 80)) && !parts.lacks(range(79, 81)));
    }

    #[test]
    fn a_word_about_a_range_counts_once_and_while_ranges_are_leased() {
        let mut parts = begun();
        parts.fetched(Moment(1), range(0, 40), &host(1), true);
        parts.fetched(Moment(2), range(0, 40), &host(2), true);
        assert_eq!(parts.moved_at(), Moment(1));
        parts.give_up();
        assert!(parts.are_given_up() && !parts.are_begun() && !parts.cover(100));
        parts.fetched(Moment(3), range(0, 40), &host(1), true);
        assert!(parts.lacks(range(0, 40)));
        parts.clear();
        assert!(!parts.are_given_up());
    }

    #[test]
    fn a_range_that_an_earlier_coordinator_leased_does_not_say_how_long_the_others_are() {
        let mut parts = Parts::new(Moment::START);
        parts.lease(Moment::START, range(10, 11), true);
        let mut taken = alloc::vec![range(10, 11)];
        for next in [range(0, 10), range(11, 36), range(36, 61)] {
            assert_eq!(parts.next((100, 25), &taken), Some(next));
            parts.lease(Moment::START, next, false);
            taken.push(next);
        }
    }

    #[test]
    fn one_host_gives_its_range_back_and_two_end_all_ranges() {
        let mut parts = begun();
        assert!(!parts.give_back(&host(1)) && !parts.give_back(&host(1)));
        assert!(parts.has_given_back(&host(1)) && parts.are_begun());
        // what it lost since changes nothing of that
        parts.lose(&host(1));
        assert!(parts.has_given_back(&host(1)));
        parts.forget_host(&host(1));
        assert!(!parts.give_back(&host(2)));
        assert!(parts.give_back(&host(3)) && parts.are_given_up());
    }
}
