//! Whom the fleet shuns: what hosts say against each other, and how much of it counts.
//!
//! Any of them may lie. So it takes a third of the fleet, and two at least, to shun a host; whoever is shunned has no word;
//! accusations grow old. A few false friends can do nothing, and a liar that few have met is shunned by those few: each
//! agent keeps its own quarantine. The word of whoever is accused but not shunned counts in full, or liars would silence
//! the honest by accusing them.

use super::*;

/// Accusations of other makers' lies that are kept against one host. Beyond this they prove no more.
const MOST_PASSED: usize = 4096;
/// Of one that accuses every maker whose lies it passed on, this many that nobody else accuses are no accident.
const LONE_WORD: usize = 3;
/// Who holds no whole copy can't find out yet: so many times as long until it must have known all the same.
const INCOMPLETE: u32 = 4;
/// Retractions that one host is believed in the time of a quarantine: a registry's bad day, not a habit.
const RETRACTIONS: u32 = 16;

/// What others say against a host.
#[derive(Debug, Default)]
pub(super) struct Charges {
    /// Who says that it sent something false of this content that it made itself, and when last.
    direct: BTreeMap<(HostId, Option<Digest>), Moment>,
    /// Who says that it passed on something false of another maker, of which content, and since when.
    passed: BTreeMap<(HostId, HostId, Option<Digest>), Moment>,
    /// Retractions believed lately, and since when they are counted.
    retractions: (u32, Moment),
}

impl Charges {
    pub(super) fn clear(&mut self) {
        self.direct.clear();
        self.passed.clear();
    }

    pub(super) fn forget_host(&mut self, id: &HostId) {
        self.direct.retain(|(by, _), _| by != id);
        self.passed
            .retain(|(by, maker, _), _| by != id && maker != id);
    }

    fn is_empty(&self) -> bool {
        self.direct.is_empty() && self.passed.is_empty()
    }

    fn len(&self) -> usize {
        self.direct.len() + self.passed.len()
    }

    fn accusers(&self) -> BTreeSet<&HostId> {
        self.direct.keys().map(|(by, _)| by).collect()
    }
}

impl Plan {
    /// Different hosts whose word it takes to shun one.
    fn enough(&self) -> usize {
        let connected = self.hosts.values().filter(|host| host.connected).count();
        let share = (connected * self.config.accusers_percent).div_ceil(100);
        share.max(self.config.accusers).max(1)
    }

    pub(super) fn blamed(
        &mut self,
        by: &HostId,
        id: &HostId,
        maker: &HostId,
        content: Option<Digest>,
    ) {
        if !self.is_trusted(by) || by == id {
            return;
        }
        let content = content.filter(|digest| self.contents.contains_key(digest));
        let maker = if self.hosts.contains_key(maker) {
            maker
        } else {
            id
        };
        let retracted = content
            .and_then(|digest| self.contents.get(&digest))
            .is_some_and(|content| content.retracted.contains(maker));
        let now = self.now;
        let Some(host) = self.hosts.get_mut(id).filter(|_| !retracted) else {
            return;
        };
        if maker == id {
            host.charges.direct.insert((by.clone(), content), now);
            if self.is_guilty(id) {
                self.quarantine(id);
            }
        } else if host.charges.passed.len() < MOST_PASSED {
            // whoever passes a lie on may have believed it: time will tell
            let entry = (by.clone(), maker.clone(), content);
            host.charges.passed.entry(entry).or_insert(now);
        }
    }

    /// The registry's bytes were false, not the host: what it made of them from this chunk on is dropped everywhere, and
    /// isn't held against it.
    pub(super) fn retracted(&mut self, id: &HostId, digest: Digest, from: u32) {
        let (now, again) = (self.now, self.config.quarantine);
        let Some(content) = self.contents.get_mut(&digest) else {
            return;
        };
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        let (count, since) = &mut host.charges.retractions;
        if now.since(*since) >= again {
            (*count, *since) = (0, now);
        }
        if *count >= RETRACTIONS {
            return;
        }
        *count += 1;
        content.retracted.insert(id.clone());
        self.actions.push_back(Action::Retract {
            maker: id.clone(),
            content: digest,
            from,
        });
        let mut cleared = Vec::new();
        for (other, host) in &mut self.hosts {
            let charges = &mut host.charges;
            let before = charges.len();
            if other == id {
                charges
                    .direct
                    .retain(|(_, content), _| *content != Some(digest));
            } else {
                charges
                    .passed
                    .retain(|(_, maker, content), _| maker != id || *content != Some(digest));
            }
            if charges.len() < before && host.quarantined_until.is_some() {
                cleared.push(other.clone());
            }
        }
        // others may have been quicker to accuse than the maker was to find out
        for id in cleared {
            if !self.is_guilty(&id) {
                self.release(&id);
            }
        }
    }

    fn is_trusted(&self, id: &HostId) -> bool {
        self.hosts
            .get(id)
            .is_some_and(|host| host.quarantined_until.is_none())
    }

    /// Whether enough of the fleet says that the host lies.
    fn is_guilty(&self, id: &HostId) -> bool {
        let Some(host) = self.hosts.get(id) else {
            return false;
        };
        let accusers = host.charges.accusers();
        let direct = accusers.iter().filter(|by| self.is_trusted(by)).count();
        let enough = self.enough();
        direct >= enough || self.passed_knowingly(id, &host.charges) >= enough
    }

    pub(super) fn judge_passers(&mut self) {
        let guilty: Vec<HostId> = self
            .hosts
            .iter()
            .filter(|(id, host)| {
                host.quarantined_until.is_none()
                    && !host.charges.passed.is_empty()
                    && self.is_guilty(id)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in guilty {
            self.quarantine(&id);
        }
    }

    /// Hosts that were sent other makers' lies by this one, where it must have known. An honest host that passed a lie on
    /// finds it too, when its own copy closes, and accuses whoever it had it from. One that doesn't named an innocent
    /// maker; so did one that accuses maker after maker whom nobody else has anything against.
    fn passed_knowingly(&self, id: &HostId, charges: &Charges) -> usize {
        let ripe: Vec<(&HostId, &HostId)> = charges
            .passed
            .iter()
            .filter(|((by, maker, content), since)| {
                self.now >= self.should_know(id, content.as_ref(), **since)
                    && self.is_trusted(by)
                    && self.is_trusted(maker)
            })
            .map(|((by, maker, _), _)| (by, maker))
            .collect();
        let mut lone: BTreeSet<&HostId> = BTreeSet::new();
        let mut unaccused: BTreeSet<&HostId> = BTreeSet::new();
        for (_, maker) in &ripe {
            let Some(charges) = self.hosts.get(*maker).map(|host| &host.charges) else {
                continue;
            };
            let accusers = charges.accusers();
            let passed_by = charges.passed.keys().any(|(by, ..)| by == id);
            if !accusers.contains(id) && !passed_by {
                unaccused.insert(maker);
            } else if accusers.len() <= 1 {
                lone.insert(maker);
            }
        }
        let lone = if lone.len() >= LONE_WORD {
            lone
        } else {
            BTreeSet::new()
        };
        let by: BTreeSet<&HostId> = ripe
            .iter()
            .filter(|(_, maker)| unaccused.contains(maker) || lone.contains(maker))
            .map(|(by, _)| *by)
            .collect();
        by.len()
    }

    /// By when a host that passed a lie on at `since` has found that out, and has said so.
    fn should_know(&self, id: &HostId, content: Option<&Digest>, since: Moment) -> Moment {
        let within = self.config.passers_accuse_within;
        let Some(content) = content else {
            return since + within;
        };
        let whole = self
            .images
            .iter()
            .filter(|image| image.contents.contains(content))
            .filter_map(|image| image.whole_since.get(id).copied())
            .min();
        match whole {
            Some(whole) => whole.max(since) + within,
            None => since + within * INCOMPLETE,
        }
    }

    fn quarantine(&mut self, id: &HostId) {
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        if host.quarantined_until.is_some() {
            return;
        }
        host.quarantined_until = Some(self.now + self.config.quarantine);
        self.actions.push_back(Action::Quarantine(id.clone()));
        self.drop_leases_of(id, true);
        self.graph.leave(id);
        self.tell_neighbours(id);
        for content in self.contents.values_mut() {
            content.forget_host(id);
        }
        self.graph_changed();
    }

    pub(super) fn release_quarantined(&mut self) {
        let over: Vec<HostId> = self
            .hosts
            .iter()
            .filter(|(_, host)| {
                host.quarantined_until
                    .is_some_and(|until| until <= self.now)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in over {
            self.release(&id);
        }
    }

    fn release(&mut self, id: &HostId) {
        if let Some(host) = self.hosts.get_mut(id) {
            host.quarantined_until = None;
            host.charges.clear();
        }
        self.join_graph(id);
        self.graph_changed();
    }

    /// What was said long ago doesn't add up with what is said now: memory that fails once a month isn't a liar.
    pub(super) fn forget_old_charges(&mut self) {
        let (now, most) = (self.now, self.config.quarantine);
        for host in self.hosts.values_mut() {
            if host.quarantined_until.is_none() && !host.charges.is_empty() {
                host.charges.direct.retain(|_, at| now.since(*at) < most);
                host.charges.passed.retain(|_, at| now.since(*at) < most);
            }
        }
    }
}
