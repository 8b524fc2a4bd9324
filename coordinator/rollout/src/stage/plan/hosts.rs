//! The hosts of the fleet: their sessions, which of them the fleet shuns, and which contents they find no source of.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};
use core::time::Duration;

use proto::{Digest, HostId, Moment};

use super::charges::Charges;
use crate::stage::Config;

/// One host.
#[derive(Debug)]
pub(super) struct Host {
    zone: String,
    connected: bool,
    /// When the host's session last came up or was lost.
    since: Moment,
    /// Contents of which the host lacks chunks that none of its peers has, and since when it says so.
    without_source: BTreeMap<Digest, Moment>,
    /// Whether the host says how many chunks it holds of each content.
    counts: bool,
    /// Whether the host has said so in this session.
    counted: bool,
    /// Whether the host takes leases of ranges, in this session.
    takes_ranges: bool,
    quarantined_until: Option<Moment>,
    charges: Charges,
}

impl Host {
    /// The host's zone; empty for none.
    pub(super) fn zone(&self) -> &str {
        &self.zone
    }

    /// When the host's session last came up or was lost.
    pub(super) const fn since(&self) -> Moment {
        self.since
    }

    pub(super) const fn is_connected(&self) -> bool {
        self.connected
    }

    /// Whether the fleet doesn't shun the host.
    pub(super) const fn is_trusted(&self) -> bool {
        self.quarantined_until.is_none()
    }

    fn is_expected(&self, now: Moment, config: &Config) -> bool {
        self.is_trusted() && (self.connected || now.since(self.since) < config.absent_after)
    }

    /// Whether the host says how many chunks it holds of each content.
    pub(super) const fn counts(&self) -> bool {
        self.counts
    }

    /// Whether the host takes leases of ranges.
    pub(super) const fn takes_ranges(&self) -> bool {
        self.takes_ranges
    }

    /// Whether leases go to other hosts first.
    pub(super) fn is_last_for_leases(&self, now: Moment) -> bool {
        self.charges.is_last_for_leases(now)
    }
}

/// What `know` changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Nothing.
    Before,
    /// The host's zone.
    Moved,
    /// The host was added.
    New,
}

/// The hosts of the fleet, by id.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    by_id: BTreeMap<HostId, Host>,
}

impl Hosts {
    pub(super) fn get(&self, id: &HostId) -> Option<&Host> {
        self.by_id.get(id)
    }

    pub(super) fn contains(&self, id: &HostId) -> bool {
        self.by_id.contains_key(id)
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// All hosts, by id.
    pub(super) fn ids(&self) -> impl Iterator<Item = &HostId> {
        self.by_id.keys()
    }

    /// How many hosts have a session.
    pub(super) fn connected(&self) -> usize {
        let all = self.by_id.values();
        all.filter(|host| host.connected).count()
    }

    pub(super) fn is_connected(&self, id: &HostId) -> bool {
        self.get(id).is_some_and(Host::is_connected)
    }

    /// Whether the host is in the fleet, and the fleet doesn't shun it.
    pub(super) fn is_trusted(&self, id: &HostId) -> bool {
        self.get(id).is_some_and(Host::is_trusted)
    }

    /// Whether the host is connected, and the fleet doesn't shun it.
    pub(super) fn is_here(&self, id: &HostId) -> bool {
        self.get(id)
            .is_some_and(|host| host.connected && host.is_trusted())
    }

    /// Whether peers can get what this host holds: the host is connected or expected back, and isn't shunned.
    pub(super) fn is_expected(&self, id: &HostId, now: Moment, config: &Config) -> bool {
        self.get(id)
            .is_some_and(|host| host.is_expected(now, config))
    }

    /// The hosts from which peers can get what these hosts hold, by id.
    pub(super) fn expected(&self, now: Moment, config: &Config) -> impl Iterator<Item = &HostId> {
        let all = self.by_id.iter();
        all.filter(move |(_, host)| host.is_expected(now, config))
            .map(|(id, _)| id)
    }

    /// Whether the host says how many chunks it holds of each content.
    pub(super) fn counts(&self, id: &HostId) -> bool {
        self.get(id).is_some_and(Host::counts)
    }

    /// The hosts that the fleet shuns.
    pub(super) fn quarantined(&self) -> impl Iterator<Item = &HostId> {
        let all = self.by_id.iter();
        all.filter(|(_, host)| !host.is_trusted()).map(|(id, _)| id)
    }

    // ---- sessions ---------------------------------------------------------------------------------------------------

    /// Adds a host of the fleet, or sets its zone.
    pub(super) fn know(&mut self, now: Moment, id: &HostId, zone: String) -> Known {
        if let Some(host) = self.by_id.get_mut(id) {
            if host.zone == zone {
                return Known::Before;
            }
            host.zone = zone;
            return Known::Moved;
        }
        let host = Host {
            zone,
            connected: false,
            since: now,
            without_source: BTreeMap::new(),
            counts: false,
            counted: false,
            takes_ranges: false,
            quarantined_until: None,
            charges: Charges::default(),
        };
        self.by_id.insert(id.clone(), host);
        Known::New
    }

    /// Removes a host from the fleet. Its accusations no longer count.
    pub(super) fn forget(&mut self, id: &HostId) {
        self.by_id.remove(id);
        for host in self.by_id.values_mut() {
            host.charges.forget_host(id);
        }
    }

    /// Notes that a host's session is up. Returns whether the session wasn't up before.
    pub(super) fn connect(&mut self, now: Moment, id: &HostId) -> bool {
        let Some(host) = self.by_id.get_mut(id).filter(|host| !host.connected) else {
            return false;
        };
        host.connected = true;
        host.since = now;
        host.takes_ranges = false;
        true
    }

    /// Notes that a connected host takes leases of ranges.
    pub(super) fn take_ranges(&mut self, id: &HostId) {
        if let Some(host) = self.by_id.get_mut(id).filter(|host| host.connected) {
            host.takes_ranges = true;
        }
    }

    /// Notes that a host's session is lost. The host's leases go on, because the host may still fetch and spread;
    /// without news they expire.
    pub(super) fn disconnect(&mut self, now: Moment, id: &HostId) {
        if let Some(host) = self.by_id.get_mut(id).filter(|host| host.connected) {
            host.connected = false;
            host.since = now;
            host.counted = false;
            host.without_source.clear();
        }
    }

    /// A connected host says how many chunks it holds of contents. Returns whether this is its first such report in the
    /// session, which tells nothing new; `None` where the host isn't connected.
    pub(super) fn counted(&mut self, id: &HostId) -> Option<bool> {
        let host = self.by_id.get_mut(id).filter(|host| host.connected)?;
        host.counts = true;
        Some(!core::mem::replace(&mut host.counted, true))
    }

    /// A connected host lacks chunks of these contents that none of its peers has. Replaces what the host said before.
    pub(super) fn lack_source(
        &mut self,
        now: Moment,
        id: &HostId,
        contents: impl Iterator<Item = Digest>,
    ) {
        let Some(host) = self.by_id.get_mut(id).filter(|host| host.connected) else {
            return;
        };
        host.without_source = contents
            .map(|content| {
                let since = host.without_source.get(&content).copied();
                (content, since.unwrap_or(now))
            })
            .collect();
    }

    /// Contents that trusted hosts have found no source of for at least `patience`, with those hosts.
    pub(super) fn without_source(
        &self,
        now: Moment,
        patience: Duration,
    ) -> BTreeMap<Digest, BTreeSet<&HostId>> {
        let mut found: BTreeMap<Digest, BTreeSet<&HostId>> = BTreeMap::new();
        for (id, host) in self.by_id.iter().filter(|(_, host)| host.is_trusted()) {
            for (content, since) in &host.without_source {
                if now.since(*since) >= patience {
                    found.entry(*content).or_default().insert(id);
                }
            }
        }
        found
    }

    // ---- trust ------------------------------------------------------------------------------------------------------

    /// A host blames another for something that only the two of them saw. Returns whether so many trusted hosts now
    /// blame the other host that the fleet shall shun it.
    pub(super) fn blame(&mut self, now: Moment, by: &HostId, id: &HostId, config: &Config) -> bool {
        if !self.is_trusted(by) || by == id {
            return false;
        }
        let Some(host) = self.by_id.get_mut(id) else {
            return false;
        };
        host.charges.blame(now, by);
        let accusers = self.get(id).map_or(0, |host| {
            let by = host.charges.accusers();
            by.filter(|by| self.is_trusted(by)).count()
        });
        accusers >= config.enough_accusers(self.connected())
    }

    /// A host that has verified a content says that another host made a false link of it. Where enough of the
    /// `can_know` hosts say so, leases go to other hosts first.
    pub(super) fn find_false(
        &mut self,
        now: Moment,
        (by, maker): (&HostId, &HostId),
        content: Digest,
        can_know: impl FnOnce(&Self) -> usize,
        config: &Config,
    ) {
        if !self.is_trusted(by) || by == maker {
            return;
        }
        let Some(host) = self.by_id.get_mut(maker) else {
            return;
        };
        host.charges.find_false(now, by, content);
        let Some(host) = self.get(maker) else { return };
        let finders = host.charges.finders(content);
        let finders = finders.iter().filter(|by| self.is_trusted(by)).count();
        if finders >= config.enough_accusers(can_know(self)) {
            self.put_last(now, maker, config);
        }
    }

    /// For a while, leases go to other hosts first.
    pub(super) fn put_last(&mut self, now: Moment, id: &HostId, config: &Config) {
        if let Some(host) = self.by_id.get_mut(id) {
            host.charges.put_last(now + config.quarantine);
        }
    }

    /// Whether the host may take back what it made of one more content.
    pub(super) fn may_retract(&self, now: Moment, id: &HostId, config: &Config) -> bool {
        self.get(id)
            .is_some_and(|host| host.charges.may_retract(now, config.quarantine))
    }

    /// Counts that a host takes back what it made of one more content.
    pub(super) fn retract(&mut self, now: Moment, id: &HostId, config: &Config) {
        if let Some(host) = self.by_id.get_mut(id) {
            host.charges.retract(now, config.quarantine);
        }
    }

    /// Makes the fleet shun a host. Returns whether the fleet didn't shun the host before.
    pub(super) fn quarantine(&mut self, now: Moment, id: &HostId, config: &Config) -> bool {
        let Some(host) = self.by_id.get_mut(id).filter(|host| host.is_trusted()) else {
            return false;
        };
        host.quarantined_until = Some(now + config.quarantine);
        true
    }

    /// Ends the quarantines whose time is over. Returns the hosts that are released.
    pub(super) fn release(&mut self, now: Moment) -> Vec<HostId> {
        let mut released = Vec::new();
        for (id, host) in &mut self.by_id {
            if host.quarantined_until.is_some_and(|until| until <= now) {
                host.quarantined_until = None;
                host.charges.clear();
                released.push(id.clone());
            }
        }
        released
    }

    /// Drops old accusations.
    pub(super) fn forget_old_charges(&mut self, now: Moment, config: &Config) {
        for host in self.by_id.values_mut() {
            host.charges.forget_old(now, config.quarantine);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Moment(10_000_000_000);
    const MOMENT: Duration = Duration::from_micros(1);

    fn host(number: u32) -> HostId {
        alloc::format!("host-{number}").parse().unwrap()
    }

    fn content(number: u32) -> Digest {
        Digest::of(&number.to_be_bytes())
    }

    /// Hosts 1 to `count`, connected.
    fn fleet(count: u32) -> Hosts {
        let mut hosts = Hosts::default();
        for number in 1..=count {
            hosts.know(START, &host(number), String::new());
            hosts.connect(START, &host(number));
        }
        hosts
    }

    #[test]
    fn a_host_is_new_once_and_moves_when_its_zone_changes() {
        let mut hosts = Hosts::default();
        assert_eq!(hosts.know(START, &host(1), "a".into()), Known::New);
        assert_eq!(hosts.know(START, &host(1), "a".into()), Known::Before);
        assert_eq!(hosts.know(START, &host(1), "b".into()), Known::Moved);
        assert_eq!(hosts.get(&host(1)).map(Host::zone), Some("b"));
        assert!(!hosts.connect(START, &host(2)), "nobody knows it");
        assert!(hosts.connect(START, &host(1)));
        assert!(!hosts.connect(START, &host(1)), "it was connected before");
    }

    #[test]
    fn a_host_that_is_away_is_expected_back_for_a_while_unless_it_is_shunned() {
        let (mut hosts, config) = (fleet(2), Config::default());
        hosts.disconnect(START, &host(1));
        let over = START + config.absent_after;
        assert!(hosts.is_expected(&host(1), over - MOMENT, &config));
        assert!(!hosts.is_expected(&host(1), over, &config));
        assert!(hosts.is_expected(&host(2), over, &config));
        hosts.quarantine(START, &host(2), &config);
        assert!(!hosts.is_expected(&host(2), START, &config));
    }

    #[test]
    fn what_a_host_holds_at_the_start_of_a_session_is_no_news() {
        let mut hosts = fleet(1);
        assert!(!hosts.counts(&host(1)));
        assert_eq!(hosts.counted(&host(1)), Some(true));
        assert_eq!(hosts.counted(&host(1)), Some(false));
        hosts.disconnect(START, &host(1));
        assert_eq!(hosts.counted(&host(1)), None);
        assert!(hosts.counts(&host(1)), "it is of a version that counts");
        hosts.connect(START, &host(1));
        assert_eq!(hosts.counted(&host(1)), Some(true));
    }

    #[test]
    fn a_content_without_source_counts_from_when_a_host_said_so_first() {
        let (mut hosts, patience) = (fleet(3), Duration::from_secs(5));
        let lacks = |hosts: &mut Hosts, now, number, contents: &[Digest]| {
            hosts.lack_source(now, &host(number), contents.iter().copied());
        };
        lacks(&mut hosts, START, 1, &[content(1), content(2)]);
        lacks(&mut hosts, START + MOMENT, 1, &[content(1)]);
        lacks(&mut hosts, START + MOMENT, 2, &[content(1)]);
        let late = START + patience;
        assert!(hosts.without_source(late - MOMENT, patience).is_empty());
        let found = hosts.without_source(late, patience);
        assert_eq!(found[&content(1)], BTreeSet::from([&host(1)]));
        assert!(!found.contains_key(&content(2)), "it has found one");
        let found = hosts.without_source(late + MOMENT, patience);
        assert_eq!(found[&content(1)].len(), 2);
        // a host that is shunned or away has no word
        hosts.quarantine(late, &host(1), &Config::default());
        hosts.disconnect(late, &host(2));
        assert!(hosts.without_source(late + MOMENT, patience).is_empty());
    }

    #[test]
    fn a_third_of_the_connected_hosts_and_two_at_least_shun_a_host() {
        let config = Config::default();
        for (count, needed) in [(3, 2), (5, 2), (6, 3), (8, 3), (9, 4)] {
            let mut hosts = fleet(count);
            let liar = host(count);
            let mut blames = |by| hosts.blame(START, &host(by), &liar, &config);
            let shuns: Vec<bool> = (1..count).map(&mut blames).collect();
            let first = shuns.iter().position(|shun| *shun);
            assert_eq!(first, Some(needed - 1), "{count}");
        }
    }

    #[test]
    fn nobody_blames_itself_and_shunned_hosts_blame_nobody() {
        let (mut hosts, config) = (fleet(3), Config::default());
        assert!(!hosts.blame(START, &host(1), &host(1), &config));
        hosts.quarantine(START, &host(2), &config);
        assert!(!hosts.blame(START, &host(2), &host(1), &config));
        assert!(!hosts.blame(START, &host(3), &host(1), &config));
        // a host that is no longer shunned has a word again
        let over = START + config.quarantine;
        assert!(hosts.release(over - MOMENT).is_empty());
        assert_eq!(hosts.release(over), [host(2)]);
        assert!(hosts.blame(over, &host(2), &host(1), &config));
    }

    #[test]
    fn whose_links_enough_hosts_found_false_goes_last_for_an_hour() {
        let (mut hosts, config) = (fleet(9), Config::default());
        let mut found = |by, content, can_know| {
            let of = (&host(by), &host(9));
            hosts.find_false(START, of, content, |_| can_know, &config);
            hosts.get(&host(9)).unwrap().is_last_for_leases(START)
        };
        assert!(!found(1, content(1), 5));
        assert!(!found(2, content(2), 5), "that is another content");
        assert!(!found(2, content(1), 6), "two of six are too few");
        assert!(found(3, content(1), 6));
        let over = START + config.quarantine;
        let is_last = |now| hosts.get(&host(9)).unwrap().is_last_for_leases(now);
        assert!(is_last(over - MOMENT) && !is_last(over));
    }

    #[test]
    fn a_host_that_is_forgotten_accused_nobody() {
        let (mut hosts, config) = (fleet(4), Config::default());
        assert!(!hosts.blame(START, &host(1), &host(4), &config));
        hosts.forget(&host(1));
        hosts.know(START, &host(1), String::new());
        assert!(!hosts.blame(START, &host(2), &host(4), &config));
        assert!(hosts.blame(START, &host(1), &host(4), &config));
    }
}
