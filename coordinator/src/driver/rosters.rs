//! Decides what each host is told about other hosts: changes of the roster, the peers that it follows, and the hosts
//! that the fleet shuns.
//!
//! The roster itself, and the making of changes, is [`Roster`]. This file knows which roster each session has, and
//! bounds the cost of telling: a change waits a moment for others, and each host has an allowance of whole rosters.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proto::{HostId, Moment, message};

use super::{
    order::{Addressed, order},
    roster::{self, Entry, Roster, Wholes},
};

/// A change of the roster waits this long for others. It waits as many more microseconds as the square of the number of
/// hosts, at most two seconds more. So a thousand hosts that join together cost each host a few changes, not a
/// thousand.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MOST_MICROS: u64 = 2_000_000;

/// The roster, and what each host has been told of it.
#[derive(Debug)]
pub(super) struct Rosters {
    roster: Roster,
    /// Hosts that the fleet shuns.
    quarantined: BTreeSet<HostId>,
    hosts: BTreeMap<HostId, Follower>,
    /// When hosts are told what changed in the roster and among their neighbours.
    due: Option<Moment>,
    /// Hosts whose neighbours changed after the hosts were last told.
    neighbours_due: BTreeSet<HostId>,
    /// Hosts that wait for a whole roster, because their allowance was used up.
    owed: BTreeSet<HostId>,
}

/// A host of the fleet, and what it is told.
#[derive(Debug)]
struct Follower {
    neighbours: Vec<HostId>,
    wholes: Wholes,
    /// `None` when the host has no session, or its version doesn't sign links: no peer takes anything from such a host,
    /// or gives it anything.
    session: Option<Session>,
}

#[derive(Debug)]
struct Session {
    /// Whether the host was told the roster and the peers that it follows.
    greeted: bool,
    /// The epoch of the roster that the host has, 0 for none; `None` for a version that knows whole rosters only.
    epoch: Option<u64>,
}

impl Rosters {
    pub(super) fn new() -> Self {
        Self {
            roster: Roster::new(),
            quarantined: BTreeSet::new(),
            hosts: BTreeMap::new(),
            due: None,
            neighbours_due: BTreeSet::new(),
            owed: BTreeSet::new(),
        }
    }

    /// The host is part of the fleet.
    pub(super) fn joined(&mut self, host: &HostId) {
        self.hosts.entry(host.clone()).or_insert_with(|| Follower {
            neighbours: Vec::new(),
            wholes: Wholes::new(),
            session: None,
        });
    }

    /// The host isn't part of the fleet any more.
    pub(super) fn left(&mut self, host: &HostId) {
        self.hosts.remove(host);
        self.neighbours_due.remove(host);
        self.owed.remove(host);
    }

    /// A session began. Its host signs links, and has the roster with this epoch.
    pub(super) fn connected(&mut self, host: &HostId, epoch: Option<u64>) {
        if let Some(follower) = self.hosts.get_mut(host) {
            follower.session = Some(Session {
                greeted: false,
                epoch,
            });
        }
    }

    /// The host has no session any more, or its version doesn't sign links.
    pub(super) fn disconnected(&mut self, host: &HostId) {
        if let Some(follower) = self.hosts.get_mut(host) {
            follower.session = None;
        }
    }

    /// Something that the roster tells may have changed. Hosts are told after a pause.
    pub(super) fn changes(&mut self, now: Moment) {
        let hosts = u64::try_from(self.hosts.len()).unwrap_or(u64::MAX);
        let more = hosts.saturating_mul(hosts).min(PAUSE_MOST_MICROS);
        self.due
            .get_or_insert(now + PAUSE + Duration::from_micros(more));
    }

    /// When hosts are told what changed.
    pub(super) const fn due(&self) -> Option<Moment> {
        self.due
    }

    /// Whether hosts are to be told now what changed. After `true`, the next call returns `false` until something
    /// changes.
    pub(super) fn take_due(&mut self, now: Moment) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }

    /// Makes these entries the roster. Hosts that are away stay on it: after a restart of the coordinator, hosts go on
    /// with peers that haven't connected again yet. Returns whether the roster changed.
    pub(super) fn set(&mut self, entries: BTreeMap<HostId, Entry>) -> bool {
        self.roster.set(entries)
    }

    /// The roster as hosts are told it.
    #[cfg(test)]
    pub(super) const fn roster(&self) -> &Roster {
        &self.roster
    }

    /// How many hosts wait for a whole roster.
    pub(super) fn owed(&self) -> usize {
        self.owed.len()
    }

    /// Tells hosts what is new: the changes of the roster, to every host when `changed`, and the peers that a host
    /// follows, where those changed.
    pub(super) fn tell(&mut self, now: Moment, changed: bool) -> Vec<Addressed> {
        let due = std::mem::take(&mut self.neighbours_due);
        let hosts: Vec<HostId> = match changed {
            true => self.hosts.keys().cloned().collect(),
            false => due.iter().cloned().collect(),
        };
        let mut told = Vec::new();
        for host in hosts {
            told.extend(self.tell_to(now, &host, due.contains(&host)));
        }
        told
    }

    /// Sends whole rosters to hosts that had to wait for theirs.
    pub(super) fn tell_owed(&mut self, now: Moment) -> Vec<Addressed> {
        let mut told = Vec::new();
        for host in std::mem::take(&mut self.owed) {
            told.extend(self.tell_to(now, &host, true));
        }
        told
    }

    /// A host follows these peers from now on. A host whose session just began is told at once, any other host with the
    /// next change.
    pub(super) fn follow(
        &mut self,
        now: Moment,
        host: &HostId,
        neighbours: Vec<HostId>,
    ) -> Vec<Addressed> {
        let Some(follower) = self.hosts.get_mut(host) else {
            return Vec::new();
        };
        follower.neighbours = neighbours;
        let session = follower.session.as_ref();
        if session.is_some_and(|session| !session.greeted) {
            return self.tell_to(now, host, true);
        }
        self.neighbours_due.insert(host.clone());
        self.changes(now);
        Vec::new()
    }

    /// The host lacks the roster that it was thought to have, and is sent a whole one.
    pub(super) fn lost(&mut self, now: Moment, host: &HostId) -> Vec<Addressed> {
        let follower = self.hosts.get_mut(host);
        let session = follower.and_then(|follower| follower.session.as_mut());
        if let Some(epoch) = session.and_then(|session| session.epoch.as_mut()) {
            *epoch = 0;
        }
        self.tell_to(now, host, true)
    }

    /// Tells a host what changed in the roster since the one that it has, and, with `follows`, which peers it follows.
    ///
    /// Whole rosters are large, and a host may connect or ask as often as it likes. So a host whose allowance is used
    /// up waits.
    fn tell_to(&mut self, now: Moment, host: &HostId, follows: bool) -> Vec<Addressed> {
        let Some(follower) = self.hosts.get_mut(host) else {
            return Vec::new();
        };
        let Some(session) = &mut follower.session else {
            return Vec::new();
        };
        session.greeted = true;
        let whole = session
            .epoch
            .is_none_or(|has| self.roster.is_whole_since(has));
        if whole && !follower.wholes.take(now, self.roster.hosts()) {
            self.owed.insert(host.clone());
            return Vec::new();
        }
        let Some(has) = session.epoch else {
            let whole = self.roster.whole(&follower.neighbours);
            return vec![(host.clone(), Arc::new(whole))];
        };
        session.epoch = Some(self.roster.epoch());
        let change = self.roster.since(has);
        let neighbours = follows.then(|| Arc::new(roster::neighbours(&follower.neighbours)));
        let told = change.into_iter().chain(neighbours);
        told.map(|order| (host.clone(), order)).collect()
    }

    /// The fleet shuns exactly these hosts from now on. Returns the order for all hosts, where that changed.
    pub(super) fn shun(
        &mut self,
        now: Moment,
        quarantined: BTreeSet<HostId>,
    ) -> Option<message::Order> {
        if quarantined == self.quarantined {
            return None;
        }
        self.quarantined = quarantined;
        self.changes(now);
        Some(self.limits())
    }

    /// The order that names the shunned hosts, for a host whose session just began; `None` when the fleet shuns nobody.
    pub(super) fn shunned(&self) -> Option<message::Order> {
        (!self.quarantined.is_empty()).then(|| self.limits())
    }

    pub(super) const fn quarantined(&self) -> &BTreeSet<HostId> {
        &self.quarantined
    }

    fn limits(&self) -> message::Order {
        let revoked_hosts = self.quarantined.iter().map(ToString::to_string).collect();
        order(message::order::Kind::Limits(message::Limits {
            revoked_hosts,
        }))
    }
}

#[cfg(test)]
mod tests {
    use message::order::Kind;

    use super::*;
    use crate::wants::Place;

    fn at(millis: u64) -> Moment {
        Moment::START + Duration::from_millis(millis)
    }

    fn id(number: u8) -> HostId {
        format!("h{number}").parse().unwrap()
    }

    /// The rosters of a fleet of `hosts` hosts, each with a place.
    fn fleet(hosts: u8) -> Rosters {
        let mut rosters = Rosters::new();
        for number in 0..hosts {
            rosters.joined(&id(number));
        }
        rosters.set(
            (0..hosts)
                .map(|number| (id(number), entry(number)))
                .collect(),
        );
        rosters
    }

    fn entry(number: u8) -> Entry {
        let place = Place {
            address: ([10, 0, 0, number], 7471).into(),
            zone: String::new(),
        };
        Entry {
            place,
            enrolled_at: 0,
        }
    }

    /// What hosts are told, in short form: the number of hosts in a change, in a whole roster, or that the host
    /// follows.
    fn told(orders: &[Addressed]) -> Vec<(String, &'static str, usize)> {
        let one = |(host, order): &Addressed| {
            let (kind, hosts) = match order.kind.as_ref().unwrap() {
                Kind::RosterChange(change) => ("change", change.hosts.len() + change.gone.len()),
                Kind::Roster(roster) => ("whole", roster.hosts.len()),
                Kind::Neighbours(neighbours) => ("follows", neighbours.hosts.len()),
                other => panic!("{other:?}"),
            };
            (host.to_string(), kind, hosts)
        };
        orders.iter().map(one).collect()
    }

    fn of(number: u8, kind: &'static str, hosts: usize) -> (String, &'static str, usize) {
        (id(number).to_string(), kind, hosts)
    }

    #[test]
    fn a_host_that_just_came_is_told_at_once_and_others_with_the_next_change() {
        let mut rosters = fleet(3);
        rosters.connected(&id(1), Some(0));
        let orders = rosters.follow(at(0), &id(1), vec![id(0), id(2)]);
        assert_eq!(told(&orders), [of(1, "change", 3), of(1, "follows", 2)]);
        assert_eq!(rosters.due(), None);
        assert!(rosters.follow(at(1), &id(1), vec![id(0)]).is_empty());
        // 20 ms and nine microseconds later
        assert_eq!(rosters.due(), Some(at(21) + Duration::from_micros(9)));
        assert!(!rosters.take_due(at(21)) && rosters.take_due(at(22)));
        assert!(!rosters.take_due(at(23)), "it is told once");
        assert_eq!(told(&rosters.tell(at(22), false)), [of(1, "follows", 1)]);
    }

    #[test]
    fn every_session_hears_what_changed_since_the_roster_that_it_has() {
        let mut rosters = fleet(2);
        for number in 0..2 {
            rosters.connected(&id(number), Some(0));
            rosters.follow(at(0), &id(number), Vec::new());
        }
        let entries = || (0..3).map(|number| (id(number), entry(number))).collect();
        assert!(rosters.set(entries()));
        let orders = rosters.tell(at(100), true);
        assert_eq!(told(&orders), [of(0, "change", 1), of(1, "change", 1)]);
        assert!(Arc::ptr_eq(&orders[0].1, &orders[1].1), "made once");
        assert!(!rosters.set(entries()));
        assert!(rosters.tell(at(200), false).is_empty());
        rosters.disconnected(&id(0));
        rosters.set(BTreeMap::new());
        assert_eq!(told(&rosters.tell(at(300), true)), [of(1, "change", 3)]);
    }

    #[test]
    fn a_host_that_lost_its_roster_gets_a_whole_one_and_waits_beyond_its_allowance() {
        let mut rosters = fleet(2);
        rosters.connected(&id(0), Some(0));
        rosters.follow(at(0), &id(0), Vec::new());
        let wholes = (0..1_000).filter(|_| !rosters.lost(at(0), &id(0)).is_empty());
        let wholes = wholes.count();
        // 4,000 entries make 250 rosters of 16 entries each, one of which the host got before
        assert_eq!(wholes, 249);
        assert_eq!(rosters.owed(), 1);
        assert!(rosters.tell_owed(at(79)).is_empty());
        let orders = rosters.tell_owed(at(80));
        assert_eq!(told(&orders), [of(0, "change", 2), of(0, "follows", 0)]);
        assert_eq!(rosters.owed(), 0);
    }

    #[test]
    fn a_version_that_names_no_epoch_gets_whole_rosters_alone() {
        let mut rosters = fleet(2);
        rosters.connected(&id(0), None);
        let orders = rosters.follow(at(0), &id(0), vec![id(1)]);
        assert_eq!(told(&orders), [of(0, "whole", 2)]);
    }

    #[test]
    fn hosts_without_a_session_that_counts_are_told_nothing() {
        let mut rosters = fleet(2);
        assert!(rosters.tell(at(0), true).is_empty());
        assert!(rosters.lost(at(0), &id(0)).is_empty());
        rosters.left(&id(0));
        rosters.connected(&id(0), Some(0));
        assert!(rosters.follow(at(0), &id(0), Vec::new()).is_empty());
    }

    #[test]
    fn whom_the_fleet_shuns_is_told_once_and_to_whoever_comes() {
        let mut rosters = fleet(2);
        assert!(rosters.shunned().is_none());
        assert!(rosters.shun(at(0), [id(1)].into()).is_some());
        assert!(rosters.due().is_some(), "it leaves the roster");
        assert!(rosters.shun(at(1), [id(1)].into()).is_none());
        let Some(Kind::Limits(limits)) = rosters.shunned().unwrap().kind else {
            panic!("no limits");
        };
        assert_eq!(limits.revoked_hosts, ["h1"]);
        assert!(rosters.shun(at(2), BTreeSet::new()).is_some());
        assert!(rosters.shunned().is_none() && rosters.quarantined().is_empty());
    }
}
