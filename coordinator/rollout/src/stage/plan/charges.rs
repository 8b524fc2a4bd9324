//! What hosts say against one host.
//!
//! Links are signed, so the maker of a false link is known, and two links that contradict each other convict their
//! maker without a witness. Only two things rest on the word of hosts. One is what only two hosts saw: bytes that
//! didn't fit their link. The other is that a signed link is false: only a host with a verified copy knows that.
//!
//! Any host may lie. So it takes the word of a third of the hosts that can know, and of two at least. A shunned host
//! has no word. Accusations grow old. A few false friends can do nothing. A liar that few hosts have met is shunned
//! by those few, because each agent keeps its own quarantine. The word of a host that is accused and not shunned
//! counts in full: else liars would silence honest hosts by accusing them.
//!
//! A false link that a lease holder made may be the registry's fault. It costs its maker the preference for leases
//! for an hour, and nothing else: a host that is alone with a registry that errs is leased its contents all the same.

use alloc::collections::{BTreeMap, BTreeSet};
use core::time::Duration;

use proto::{Digest, HostId, Moment};

/// Contents of which a host may take back what it made, an hour. A registry that errs errs seldom.
const RETRACTIONS: u32 = 16;
/// Accusations of false links that are kept against one host. Beyond this they prove no more.
const MOST_CHARGES: usize = 4096;

/// What others say against a host.
#[derive(Debug, Default)]
pub(super) struct Charges {
    /// Hosts that say that it sent something false, or vouched for it, and when they said so last. How often one host
    /// says so doesn't matter: hosts are counted.
    direct: BTreeMap<HostId, Moment>,
    /// Hosts that say that it made a false link of this content, and when they said so last.
    false_links: BTreeMap<(HostId, Digest), Moment>,
    /// Contents of which it took back what it made, and since when they are counted.
    retractions: (u32, Moment),
    /// Others are preferred for leases until then.
    last_for_leases_until: Option<Moment>,
}

impl Charges {
    /// Another host says that this one sent something false, or vouched for it.
    pub(super) fn blame(&mut self, now: Moment, by: &HostId) {
        self.direct.insert(by.clone(), now);
    }

    /// The hosts that say that it sent something false, or vouched for it.
    pub(super) fn accusers(&self) -> impl Iterator<Item = &HostId> {
        self.direct.keys()
    }

    /// Another host says that this one made a false link of this content.
    pub(super) fn find_false(&mut self, now: Moment, by: &HostId, content: Digest) {
        if self.false_links.len() < MOST_CHARGES {
            self.false_links.insert((by.clone(), content), now);
        }
    }

    /// The hosts that say that it made a false link of this content.
    pub(super) fn finders(&self, content: Digest) -> BTreeSet<&HostId> {
        let all = self.false_links.keys();
        let of_it = all.filter(|(_, of)| *of == content);
        of_it.map(|(by, _)| by).collect()
    }

    /// Nobody says anything against it any more.
    pub(super) fn clear(&mut self) {
        self.direct.clear();
        self.false_links.clear();
    }

    /// What was said so long ago doesn't add up with what is said now: memory that fails once a month isn't a liar.
    pub(super) fn forget_old(&mut self, now: Moment, most: Duration) {
        self.direct.retain(|_, at| now.since(*at) < most);
        self.false_links.retain(|_, at| now.since(*at) < most);
    }

    /// What this host says doesn't count any more.
    pub(super) fn forget_host(&mut self, id: &HostId) {
        self.direct.remove(id);
        self.false_links.retain(|(by, _), _| by != id);
    }

    /// Whether one more content counts of which the host takes back what it made. `within` is how long they are
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

    /// Leases go to others first until then.
    pub(super) const fn put_last(&mut self, until: Moment) {
        self.last_for_leases_until = Some(until);
    }

    /// Whether leases go to others first.
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
