//! What was leased of one content in ranges: which of them holders say that they fetched, and which is next.
//!
//! A holder's word that it fetched its range keeps others from the range, and counts for nothing else. If the content
//! then isn't whole anywhere for a while, it is leased whole again: see `leasing`.

use alloc::vec::Vec;

use proto::{ChunkRange, HostId, Moment};

/// What was leased of one content in ranges.
#[derive(Debug)]
pub(super) struct Parts {
    /// The chunks of a range, once one was leased.
    size: Option<u32>,
    /// The ranges that holders say that they fetched, in order, with the holders.
    fetched: Vec<(ChunkRange, HostId)>,
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

    /// A range is leased; `taken_over`: its holder says so, and this coordinator didn't grant it.
    pub(super) fn lease(&mut self, now: Moment, range: ChunkRange, taken_over: bool) {
        self.moved_at = now;
        self.taken_over = taken_over;
        self.size.get_or_insert(range.count());
    }

    /// The holder says that it fetched its range.
    pub(super) fn fetched(&mut self, now: Moment, range: ChunkRange, id: &HostId) {
        if self.are_begun() && self.lacks(range) {
            self.moved_at = now;
            let at = self.fetched.partition_point(|(of, _)| *of < range);
            self.fetched.insert(at, (range, id.clone()));
        }
    }

    /// Whether no holder says that it fetched something of this range.
    pub(super) fn lacks(&self, range: ChunkRange) -> bool {
        !self.fetched.iter().any(|(of, _)| of.overlaps(range))
    }

    /// The next range to lease of a content with this many chunks, beside those that are `taken`; `None` where there is
    /// none.
    pub(super) fn next(&self, chunks: u32, taken: &[ChunkRange]) -> Option<ChunkRange> {
        let fetched = self.fetched.iter().map(|(range, _)| *range);
        let mut others: Vec<ChunkRange> = fetched.chain(taken.iter().copied()).collect();
        others.sort_unstable();
        // the first range is taken before it is leased
        let size = self.size.or_else(|| taken.first().map(|of| of.count()));
        let end = |from: u32| from.saturating_add(size.unwrap_or(u32::MAX));
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
        self.are_begun() && self.next(chunks, &[]).is_none()
    }

    /// The host left the fleet, is shunned, or lost chunks: its word counts no more.
    pub(super) fn forget_host(&mut self, id: &HostId) {
        self.fetched.retain(|(_, by)| by != id);
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
            assert_eq!(parts.next(100, &taken), Some(next));
            taken.push(next);
        }
        assert_eq!(parts.next(100, &taken), None);
        assert!(!parts.cover(100));
        for range in taken {
            parts.fetched(Moment(1), range, &host(1));
        }
        assert!(parts.cover(100));
    }

    #[test]
    fn a_range_that_nobody_fetches_any_more_is_next_and_only_that() {
        let mut parts = begun();
        parts.fetched(Moment(1), range(0, 40), &host(1));
        assert_eq!(parts.next(100, &[range(80, 100)]), Some(range(40, 80)));
        parts.fetched(Moment(1), range(80, 100), &host(2));
        assert_eq!(parts.next(100, &[range(40, 80)]), None);
        // a host that lost what it had has fetched nothing
        parts.forget_host(&host(1));
        assert_eq!(parts.next(100, &[range(40, 80)]), Some(range(0, 40)));
        assert!(parts.lacks(range(0, 80)) && !parts.lacks(range(79, 81)));
    }

    #[test]
    fn a_word_about_a_range_counts_once_and_while_ranges_are_leased() {
        let mut parts = begun();
        parts.fetched(Moment(1), range(0, 40), &host(1));
        parts.fetched(Moment(2), range(0, 40), &host(2));
        assert_eq!(parts.moved_at(), Moment(1));
        parts.give_up();
        assert!(parts.are_given_up() && !parts.are_begun() && !parts.cover(100));
        parts.fetched(Moment(3), range(0, 40), &host(1));
        assert!(parts.lacks(range(0, 40)));
        parts.clear();
        assert!(!parts.are_given_up());
    }
}
