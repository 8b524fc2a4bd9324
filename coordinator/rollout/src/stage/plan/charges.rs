//! The accusations against one host.
//!
//! Links are signed, so the maker of a false link is known. Two links that contradict each other convict their maker
//! without a witness. Only two kinds of accusation rest on the word of hosts. The first is an event that only two hosts
//! saw: bytes that didn't fit their link. The second is that a signed link is false, which only a host with a verified
//! copy knows.
//!
//! Any host may lie. So an accusation needs a third of the hosts that can know, and at least two. A shunned host has no
//! word. Accusations expire. So a few lying hosts can do nothing. A liar that only few hosts have met is shunned by
//! those few, because each agent keeps its own quarantine. A host that is accused but not shunned still counts in full
//! as an accuser: otherwise liars could silence honest hosts by accusing them.
//!
//! A false link that a lease holder made may be the registry's fault. For an hour, its maker gets leases only after
//! other hosts; nothing else follows. A host that is alone with a faulty registry still gets leases.

use alloc::collections::{BTreeMap, BTreeSet};
use core::time::Duration;

use proto::{Digest, HostId, Moment};

/// The number of contents that a host may take back within an hour. Faulty registries are rare.
const RETRACTIONS: u32 = 16;
/// The most accusations of false links that are kept against one host. More would prove nothing more.
const MOST_CHARGES: usize = 4096;

/// The accusations against one host.
#[derive(Debug, Default)]
pub(super) struct Charges {
    /// Hosts that say that this host sent something false or vouched for it, and when each said so last. Hosts are
    /// counted, not their words.
    direct: BTreeMap<HostId, Moment>,
    /// Hosts that say that this host made a false link of this content, and when each said so last.
    false_links: BTreeMap<(HostId, Digest), Moment>,
    /// The number of contents of which the host took back what it made, and when counting began.
    retractions: (u32, Moment),
    /// Until then, other hosts are preferred for leases.
    last_for_leases_until: Option<Moment>,
}

impl Charges {
    /// Another host says that this one sent something false or vouched for it.
    pub(super) fn blame(&mut self, now: Moment, by: &HostId) {
        self.direct.insert(by.clone(), now);
    }

    /// The hosts that say that this one sent something false or vouched for it.
    pub(super) fn accusers(&self) -> impl Iterator<Item = &HostId> {
        self.direct.keys()
    }

    /// Another host says that this one made a false link of this content.
    pub(super) fn find_false(&mut self, now: Moment, by: &HostId, content: Digest) {
        if self.false_links.len() < MOST_CHARGES {
            self.false_links.insert((by.clone(), content), now);
        }
    }

    /// The hosts that say that this one made a false link of the content.
    pub(super) fn finders(&self, content: Digest) -> BTreeSet<&HostId> {
        let all = self.false_links.keys();
        let of_it = all.filter(|(_, of)| *of == content);
        of_it.map(|(by, _)| by).collect()
    }

    /// Drops all accusations.
    pub(super) fn clear(&mut self) {
        self.direct.clear();
        self.false_links.clear();
    }

    /// Drops accusations that are older than `most`. Old ones mustn't add up with new ones: a host whose memory fails
    /// once a month isn't a liar.
    pub(super) fn forget_old(&mut self, now: Moment, most: Duration) {
        self.direct.retain(|_, at| now.since(*at) < most);
        self.false_links.retain(|_, at| now.since(*at) < most);
    }

    /// Drops the accusations that this host made.
    pub(super) fn forget_host(&mut self, id: &HostId) {
        self.direct.remove(id);
        self.false_links.retain(|(by, _), _| by != id);
    }

    /// Whether the host may take back what it made of one more content. `within` is the time over which retractions are
    /// counted.
    pub(super) fn may_retract(&self, now: Moment, within: Duration) -> bool {
        let (count, since) = self.retractions;
        count < RETRACTIONS || now.since(since) >= within
    }

    /// The host takes back what it made of one more content.
    pub(super) fn retract(&mut self, now: Moment, within: Duration) {
        let (count, since) = &mut self.retractions;
        if now.since(*since) >= within {
            (*count, *since) = (0, now);
        }
        *count += 1;
    }

    /// Until then, leases go to other hosts first.
    pub(super) const fn put_last(&mut self, until: Moment) {
        self.last_for_leases_until = Some(until);
    }

    /// Whether leases go to other hosts first.
    pub(super) fn is_last_for_leases(&self, now: Moment) -> bool {
        self.last_for_leases_until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn host(number: u32) -> HostId {
        format!("host-{number}").parse().unwrap()
    }

    #[test]
    fn an_accuser_counts_once_until_an_hour_after_it_last_said_so() {
        let mut charges = Charges::default();
        let said = Moment::START + HOUR;
        charges.blame(Moment::START, &host(1));
        charges.blame(said, &host(1));
        charges.blame(Moment::START, &host(2));
        assert_eq!(charges.accusers().count(), 2);
        charges.forget_old(said, HOUR);
        assert_eq!(
            charges.accusers().collect::<alloc::vec::Vec<_>>(),
            [&host(1)]
        );
        charges.forget_old(said + HOUR - Duration::from_micros(1), HOUR);
        assert_eq!(charges.accusers().count(), 1);
        charges.forget_old(said + HOUR, HOUR);
        assert_eq!(charges.accusers().count(), 0);
    }

    #[test]
    fn finders_are_counted_by_content_and_end_with_their_host() {
        let mut charges = Charges::default();
        let [one, other] = [Digest::of(b"one"), Digest::of(b"other")];
        charges.find_false(Moment::START, &host(1), one);
        charges.find_false(Moment::START, &host(2), one);
        charges.find_false(Moment::START, &host(1), other);
        assert_eq!(charges.finders(one).len(), 2);
        charges.forget_host(&host(1));
        assert_eq!(charges.finders(one), BTreeSet::from([&host(2)]));
        assert!(charges.finders(other).is_empty());
    }

    #[test]
    fn sixteen_contents_an_hour_may_be_taken_back() {
        let mut charges = Charges::default();
        let start = Moment::START + HOUR;
        for _ in 0..RETRACTIONS {
            assert!(charges.may_retract(start, HOUR));
            charges.retract(start, HOUR);
        }
        assert!(!charges.may_retract(start + HOUR - Duration::from_micros(1), HOUR));
        assert!(charges.may_retract(start + HOUR, HOUR));
        charges.retract(start + HOUR, HOUR);
        assert!(charges.may_retract(start + HOUR, HOUR));
    }

    #[test]
    fn who_is_put_last_is_so_until_the_time_is_over() {
        let mut charges = Charges::default();
        let until = Moment::START + HOUR;
        assert!(!charges.is_last_for_leases(Moment::START));
        charges.put_last(until);
        assert!(charges.is_last_for_leases(until - Duration::from_micros(1)));
        assert!(!charges.is_last_for_leases(until));
    }
}
