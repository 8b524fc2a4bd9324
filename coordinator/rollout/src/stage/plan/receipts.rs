//! What the hosts that receive a content say of it: how many chunks each holds, which hosts got more, and which say
//! that they hold all of it. `witness` decides by this who is believed.

use alloc::collections::{BTreeMap, BTreeSet};

use proto::{HostId, Moment};

use crate::stage::event::Content;

/// The most lease holders in a row without a receiver that count towards [`patience`](Receipts::patience). After two
/// such holders the patience with the next one doubles, and again after each further one, because hosts may be cut off
/// from each other.
const DISBELIEVED_MOST: u32 = 6;

/// The hosts' reports about one content.
#[derive(Debug)]
pub(super) struct Receipts {
    /// The chunks that each host holds, of hosts that hold some and not all.
    counts: BTreeMap<HostId, u32>,
    /// Hosts that hold more than when enough hosts were last seen to get more.
    grew: BTreeSet<HostId>,
    /// The number of hosts that lack some of the content, stage it, and say what they hold; as of the last look.
    receivers: usize,
    /// When enough hosts were last seen to get more.
    seen_at: Moment,
    /// Since when some host says that it holds all of the content.
    claimed_at: Option<Moment>,
    /// The host that last said that it fetched all under a lease, and whether the lease was for clients of a mirror.
    finished_by: Option<(HostId, bool)>,
    /// The number of lease holders in a row that nobody got anything from.
    disbelieved: u32,
    /// When the last of them was counted.
    disbelieved_at: Moment,
    /// The blob's bytes for each chunk, on average.
    bytes_per_chunk: u64,
}

impl Receipts {
    pub(super) fn new(now: Moment, content: &Content) -> Self {
        Self {
            counts: BTreeMap::new(),
            grew: BTreeSet::new(),
            receivers: 0,
            seen_at: now,
            claimed_at: None,
            finished_by: None,
            disbelieved: 0,
            disbelieved_at: Moment::START,
            bytes_per_chunk: content.origin_bytes / u64::from(content.chunks.max(1)),
        }
    }

    pub(super) fn forget_host(&mut self, id: &HostId) {
        self.counts.remove(id);
        self.grew.remove(id);
    }

    /// A host holds this many chunks, and not all. Returns how many it held before, by its last report of some and not
    /// all.
    pub(super) fn count(&mut self, id: &HostId, chunks: u32) -> u32 {
        let before = self.counts.remove(id).unwrap_or(0);
        if chunks > 0 {
            self.counts.insert(id.clone(), chunks);
        }
        before
    }

    /// The chunks that this host says that it holds, if it holds some and not all; else 0.
    pub(super) fn of(&self, id: &HostId) -> u32 {
        self.counts.get(id).copied().unwrap_or(0)
    }

    /// Notes that a host holds more than before. The caller leaves out the lease's holder.
    pub(super) fn grow(&mut self, id: &HostId) {
        self.grew.insert(id.clone());
    }

    /// Hosts that hold more than when enough hosts were last seen to get more.
    pub(super) const fn grew(&self) -> &BTreeSet<HostId> {
        &self.grew
    }

    /// Sets the number of receivers at this look, and keeps only trusted hosts among those that got more.
    pub(super) fn look(&mut self, receivers: usize, trusted: impl Fn(&HostId) -> bool) {
        self.receivers = receivers;
        self.grew.retain(trusted);
    }

    /// The number of hosts that lack some of the content, stage it, and say what they hold; as of the last look.
    pub(super) const fn receivers(&self) -> usize {
        self.receivers
    }

    /// Whether a holder's own word counts, because there is no receiver that could say otherwise.
    pub(super) const fn own_word(&self) -> bool {
        self.receivers == 0
    }

    /// Notes that enough hosts got more of the content.
    pub(super) fn seen(&mut self, now: Moment) {
        self.grew.clear();
        self.seen_at = now;
    }

    /// Notes that some host says that it holds all of the content.
    pub(super) fn claimed(&mut self, now: Moment) {
        self.claimed_at.get_or_insert(now);
    }

    /// The later of two moments: when some host first said that it holds all, and when enough hosts last got more.
    pub(super) fn claimed_or_seen_at(&self) -> Option<Moment> {
        self.claimed_at.max(Some(self.seen_at))
    }

    /// Notes that the holder of the lease says that it fetched all.
    pub(super) fn finished(&mut self, id: &HostId, mirror: bool, now: Moment) {
        self.claimed_at = Some(now);
        self.finished_by = Some((id.clone(), mirror));
    }

    /// Takes the host that last said that it fetched all under a lease, and whether for clients of a mirror.
    pub(super) const fn take_finished_by(&mut self) -> Option<(HostId, bool)> {
        self.finished_by.take()
    }

    /// Notes that so many hosts hold all of the content that nobody doubts it.
    pub(super) fn verified(&mut self) {
        self.disbelieved = 0;
        self.finished_by = None;
    }

    /// Counts one more lease holder that nobody got anything from. Holders of several ranges at one time aren't holders
    /// in a row: one counts whose lease was granted when the one before had lost its own.
    pub(super) fn disbelieve(&mut self, now: Moment, granted_at: Moment) {
        if granted_at >= self.disbelieved_at {
            self.disbelieved = (self.disbelieved + 1).min(DISBELIEVED_MOST);
            self.disbelieved_at = now;
        }
    }

    /// The factor by which the next holder is believed longer than the first, while nobody gets anything from it.
    pub(super) const fn patience(&self) -> u32 {
        1 << self.disbelieved.saturating_sub(1)
    }

    /// The blob's bytes for each chunk, on average.
    pub(super) const fn bytes_per_chunk(&self) -> u64 {
        self.bytes_per_chunk
    }
}

#[cfg(test)]
mod tests {
    use proto::Digest;

    use super::*;

    fn host(number: u32) -> HostId {
        alloc::format!("host-{number}").parse().unwrap()
    }

    fn receipts() -> Receipts {
        let content = Content {
            digest: Digest::of(b"content"),
            chunks: 4,
            size: 4 << 20,
            origin_bytes: 1_000,
        };
        Receipts::new(Moment::START, &content)
    }

    #[test]
    fn a_holders_own_word_counts_while_nobody_could_say_otherwise() {
        let mut receipts = receipts();
        assert!(receipts.own_word());
        receipts.look(1, |_| true);
        assert!(!receipts.own_word());
        receipts.look(0, |_| true);
        assert!(receipts.own_word());
    }

    #[test]
    fn the_third_holder_that_nobody_got_anything_from_has_twice_the_time_and_no_more_than_32_times()
    {
        let mut receipts = receipts();
        let mut patience = alloc::vec![receipts.patience()];
        for at in 1..=8 {
            receipts.disbelieve(Moment(10 * at), Moment(10 * at - 9));
            // of another range, at the same time
            receipts.disbelieve(Moment(10 * at + 1), Moment(10 * at - 5));
            patience.push(receipts.patience());
        }
        assert_eq!(patience, [1, 1, 2, 4, 8, 16, 32, 32, 32]);
        receipts.verified();
        assert_eq!(receipts.patience(), 1);
    }

    #[test]
    fn what_a_host_held_last_is_told_when_it_says_what_it_holds_now() {
        let mut receipts = receipts();
        assert_eq!(receipts.count(&host(1), 2), 0);
        assert_eq!(receipts.count(&host(1), 3), 2);
        assert_eq!(receipts.count(&host(1), 0), 3);
        assert_eq!(receipts.count(&host(1), 1), 0);
        receipts.forget_host(&host(1));
        assert_eq!(receipts.count(&host(1), 1), 0);
    }

    #[test]
    fn hosts_that_are_shunned_have_received_nothing() {
        let mut receipts = receipts();
        receipts.grow(&host(1));
        receipts.grow(&host(2));
        receipts.look(3, |id| *id != host(1));
        assert_eq!(*receipts.grew(), BTreeSet::from([host(2)]));
        receipts.seen(Moment::START);
        assert!(receipts.grew().is_empty());
    }

    #[test]
    fn the_first_claim_counts_until_a_holder_says_that_it_fetched_all() {
        let mut receipts = receipts();
        assert_eq!(receipts.claimed_or_seen_at(), Some(Moment::START));
        receipts.claimed(Moment(5));
        receipts.claimed(Moment(9));
        assert_eq!(receipts.claimed_or_seen_at(), Some(Moment(5)));
        receipts.finished(&host(1), true, Moment(9));
        assert_eq!(receipts.claimed_or_seen_at(), Some(Moment(9)));
        receipts.seen(Moment(12));
        assert_eq!(receipts.claimed_or_seen_at(), Some(Moment(12)));
        assert_eq!(receipts.take_finished_by(), Some((host(1), true)));
        assert_eq!(receipts.take_finished_by(), None);
    }
}
