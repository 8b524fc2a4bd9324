//! The roster: the list of hosts to which a host may talk. Every host gets the roster, whole or as a change of an
//! earlier one.
//!
//! A roster has an epoch, which is computed from its entries. The same hosts at the same addresses have the same epoch,
//! also after a restart of the coordinator and in another replica. So a host that comes back names the epoch that it
//! has, and gets what changed since then, which mostly is nothing.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use proto::{Digest, HostId, Moment, message};

use super::order::order;
use crate::wants::Place;

/// The most changes that are remembered, counted in changed hosts: some rounds of every host of a large fleet, at about
/// a hundred bytes each. A host that was away for longer gets a whole roster.
const REMEMBERED: usize = 16_384;

/// The most entries of whole rosters that a host gets at once, and the time until it may get one more. An entry has
/// about 80 bytes. So a host in a fleet of a thousand gets four rosters of 80 kB, and then one every 5 s.
const ENTRIES: u32 = 4_000;
const ENTRY_EVERY: Duration = Duration::from_millis(5);
/// A whole roster counts as at least and at most so many entries: a small one still costs an order, and a host of a
/// large fleet waits no longer than 5 s for the next one.
const WHOLE: (u32, u32) = (16, 1_000);

/// The allowance of whole rosters of one host, in entries. A host whose agent is killed again and again needs a whole
/// roster each time, and can't reach any peer without one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wholes {
    left: u32,
    /// The moment up to which new entries have been added to `left`.
    at: Moment,
}

impl Wholes {
    pub(super) const fn new() -> Self {
        Self {
            left: ENTRIES,
            at: Moment::START,
        }
    }

    /// Takes a roster of so many hosts off the allowance. Returns false, and takes nothing, when too few entries are
    /// left.
    pub(super) fn take(&mut self, now: Moment, hosts: usize) -> bool {
        let came = now.since(self.at).as_micros() / ENTRY_EVERY.as_micros();
        let came = u32::try_from(came).unwrap_or(u32::MAX).min(ENTRIES);
        self.left = self.left.saturating_add(came).min(ENTRIES);
        self.at = match self.left {
            ENTRIES => now,
            _ => self.at + ENTRY_EVERY * came,
        };
        let cost = u32::try_from(hosts).unwrap_or(u32::MAX);
        let left = self.left.checked_sub(cost.clamp(WHOLE.0, WHOLE.1));
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }
}

/// What a roster says of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) place: Place,
    /// Unix seconds; 0 where it isn't known.
    pub(super) enrolled_at: u64,
}

/// The roster.
#[derive(Debug)]
pub(super) struct Roster {
    entries: BTreeMap<HostId, Entry>,
    epoch: u64,
    /// Earlier epochs, oldest first, each with the hosts in which the next roster differs.
    before: VecDeque<(u64, BTreeSet<HostId>)>,
    remembered: usize,
    /// The orders that were made since the roster changed last, by the epoch from which they start.
    made: BTreeMap<u64, Arc<message::Order>>,
}

impl Roster {
    /// An empty roster.
    pub(super) fn new() -> Self {
        let entries = BTreeMap::new();
        Self {
            epoch: epoch(&entries),
            entries,
            before: VecDeque::new(),
            remembered: 0,
            made: BTreeMap::new(),
        }
    }

    pub(super) fn hosts(&self) -> usize {
        self.entries.len()
    }

    /// The current roster's epoch; never 0.
    pub(super) const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Makes these entries the roster. Returns whether anything changed.
    pub(super) fn set(&mut self, entries: BTreeMap<HostId, Entry>) -> bool {
        let mut changed: BTreeSet<HostId> = BTreeSet::new();
        for (host, entry) in &entries {
            if self.entries.get(host) != Some(entry) {
                changed.insert(host.clone());
            }
        }
        let gone = self.entries.keys();
        changed.extend(gone.filter(|host| !entries.contains_key(*host)).cloned());
        if changed.is_empty() {
            return false;
        }
        self.remembered += changed.len();
        self.before.push_back((self.epoch, changed));
        while self.remembered > REMEMBERED
            && let Some((_, forgotten)) = self.before.pop_front()
        {
            self.remembered -= forgotten.len();
        }
        self.epoch = epoch(&entries);
        self.entries = entries;
        self.made.clear();
        true
    }

    /// Whether a host that has the roster with this epoch needs the whole roster, because the changes since that epoch
    /// aren't remembered.
    pub(super) fn is_whole_since(&self, from: u64) -> bool {
        from != self.epoch && self.before.iter().all(|(epoch, _)| *epoch != from)
    }

    /// The order that brings a host from the roster with that epoch to the current one. `None` where both are the same.
    /// The order holds the whole roster where that epoch isn't remembered.
    pub(super) fn since(&mut self, from: u64) -> Option<Arc<message::Order>> {
        if from == self.epoch {
            return None;
        }
        // the same roster may have been current several times; the latest counts
        let known = self.before.iter().rposition(|(epoch, _)| *epoch == from);
        let from = if known.is_some() { from } else { 0 };
        if let Some(made) = self.made.get(&from) {
            return Some(made.clone());
        }
        let mut change = message::RosterChange {
            from_epoch: from,
            epoch: self.epoch,
            ..message::RosterChange::default()
        };
        if let Some(known) = known {
            let rounds = self.before.iter().skip(known);
            let hosts: BTreeSet<&HostId> = rounds.flat_map(|(_, changed)| changed).collect();
            for host in hosts {
                match self.entries.get(host) {
                    Some(known) => change.hosts.push(entry(host, known)),
                    None => change.gone.push(host.to_string()),
                }
            }
        } else {
            change.hosts = self.list();
        }
        let made = Arc::new(order(message::order::Kind::RosterChange(change)));
        self.made.insert(from, made.clone());
        Some(made)
    }

    /// The order with the whole roster, for a host of the version before, which doesn't know changes.
    pub(super) fn whole(&self, neighbours: &[HostId]) -> message::Order {
        order(message::order::Kind::Roster(message::Roster {
            epoch: self.epoch,
            hosts: self.list(),
            neighbours: names(neighbours),
        }))
    }

    fn list(&self) -> Vec<message::RosterEntry> {
        let entries = self.entries.iter();
        entries.map(|(host, known)| entry(host, known)).collect()
    }
}

/// The order that tells a host which peers it follows.
pub(super) fn neighbours(hosts: &[HostId]) -> message::Order {
    let hosts = names(hosts);
    order(message::order::Kind::Neighbours(message::Neighbours {
        hosts,
    }))
}

fn names(hosts: &[HostId]) -> Vec<String> {
    hosts.iter().map(ToString::to_string).collect()
}

fn entry(host: &HostId, known: &Entry) -> message::RosterEntry {
    message::RosterEntry {
        host: host.to_string(),
        address: known.place.address.to_string(),
        zone: known.place.zone.clone(),
        enrolled_at: known.enrolled_at,
    }
}

/// The epoch of these entries: the first eight bytes of a SHA-256. The hashed text is unambiguous, because host ids and
/// addresses have no blank, and zones have no line break.
fn epoch(entries: &BTreeMap<HostId, Entry>) -> u64 {
    let mut text = String::new();
    for (host, Entry { place, enrolled_at }) in entries {
        text.push_str(&format!(
            "{host} {} {enrolled_at} {}\n",
            place.address, place.zone
        ));
    }
    let digest = Digest::of(text.as_bytes());
    let first = digest.as_bytes().first_chunk();
    first.map_or(1, |bytes| u64::from_be_bytes(*bytes).max(1))
}

#[cfg(test)]
mod tests {
    use message::{RosterChange, order::Kind};
    use proptest::prelude::*;

    use super::*;

    fn entries(hosts: &[(u8, u16)]) -> BTreeMap<HostId, Entry> {
        let entry = |(host, port): &(u8, u16)| {
            let place = Place {
                address: ([10, 0, 0, *host], *port).into(),
                zone: "rack 1".into(),
            };
            let known = Entry {
                place,
                enrolled_at: 7,
            };
            (format!("h{host}").parse().unwrap(), known)
        };
        hosts.iter().map(entry).collect()
    }

    fn change(order: &message::Order) -> RosterChange {
        match &order.kind {
            Some(Kind::RosterChange(change)) => change.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_same_hosts_are_the_same_roster_in_every_life() {
        let mut first = Roster::new();
        assert!(first.set(entries(&[(1, 7471), (2, 7471)])));
        assert!(!first.set(entries(&[(2, 7471), (1, 7471)])));
        let mut second = Roster::new();
        second.set(entries(&[(1, 7471)]));
        assert_ne!(first.epoch(), second.epoch());
        second.set(entries(&[(1, 7471), (2, 7471)]));
        assert_eq!(first.epoch(), second.epoch());
        assert!(second.since(first.epoch()).is_none());
        second.set(entries(&[(1, 7471), (2, 7472)]));
        assert_ne!(first.epoch(), second.epoch());
    }

    #[test]
    fn a_change_names_who_came_moved_and_went_and_nobody_else() {
        let mut roster = Roster::new();
        roster.set(entries(&[(1, 7471), (2, 7471), (3, 7471)]));
        let before = roster.epoch();
        roster.set(entries(&[(1, 7471), (2, 9), (4, 7471)]));
        let made = roster.since(before).unwrap();
        let told = change(&made);
        let hosts: Vec<_> = told.hosts.iter().map(|entry| entry.host.as_str()).collect();
        assert_eq!(hosts, ["h2", "h4"]);
        assert_eq!(told.gone, ["h3"]);
        assert_eq!((told.from_epoch, told.epoch), (before, roster.epoch()));
        assert!(
            Arc::ptr_eq(&made, &roster.since(before).unwrap()),
            "made once"
        );
        // a host with an unknown epoch gets the whole roster
        let whole = change(&roster.since(17).unwrap());
        assert_eq!((whole.from_epoch, whole.hosts.len()), (0, 3));
        assert!(Arc::ptr_eq(
            &roster.since(17).unwrap(),
            &roster.since(0).unwrap()
        ));
    }

    #[test]
    fn who_is_killed_again_and_again_gets_a_small_roster_each_time_and_a_large_one_seldom() {
        let millis = |millis: u64| Moment(millis * 1_000);
        let given = |hosts: usize, every_ms: u64, times: u64| {
            let mut wholes = Wholes::new();
            let mut taken = (0..times).filter(|at| wholes.take(millis(at * every_ms), hosts));
            taken.by_ref().count()
        };
        // An agent that lives for 0.85 s at a time, in a fleet of four, gets every roster.
        assert_eq!(given(4, 850, 1_000), 1_000);
        // A host that asks as often as it can gets 250, and then 12.5 a second.
        assert_eq!(given(4, 1, 10_001), 250 + 125);
        // In a fleet of a thousand, it gets four, and then one in five seconds.
        assert_eq!(given(1_000, 1, 10_001), 4 + 2);
        assert_eq!(given(1_000, 5_000, 100), 100);
        assert_eq!(given(30_000, 1, 10_001), 4 + 2);
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let mut roster = Roster::new();
        roster.set(entries(&[(1, 1), (2, 1)]));
        let old = roster.epoch();
        for port in 2..20_000 {
            roster.set(entries(&[(1, port), (2, 1)]));
            assert!(roster.remembered <= REMEMBERED);
        }
        assert_eq!(change(&roster.since(old).unwrap()).from_epoch, 0);
    }

    proptest! {
        #[test]
        fn whoever_follows_the_changes_has_the_roster(rounds in prop::collection::vec(prop::collection::vec((0u8..12, 1u16..3), 0..12), 1..30), misses in prop::collection::vec(any::<bool>(), 30)) {
            let mut roster = Roster::new();
            let (mut has, mut at) = (BTreeMap::new(), 0);
            for (round, missed) in rounds.iter().zip(misses) {
                roster.set(entries(round));
                if missed {
                    continue;
                }
                let Some(order) = roster.since(at) else {
                    continue;
                };
                let change = change(&order);
                if change.from_epoch == 0 {
                    has.clear();
                }
                for entry in change.hosts {
                    has.insert(entry.host, entry.address);
                }
                for gone in change.gone {
                    prop_assert!(has.remove(&gone).is_some() || change.from_epoch != 0);
                }
                at = change.epoch;
                let whole: BTreeMap<String, String> = roster.list().into_iter().map(|entry| (entry.host, entry.address)).collect();
                prop_assert_eq!(&has, &whole);
            }
        }
    }
}
