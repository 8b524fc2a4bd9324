//! Whom the fleet shuns, and who is leased nothing for a while.
//!
//! Links are signed, so who made a false one is known, and two that contradict each other convict by themselves. What is left
//! for the word of hosts is what only two of them saw (bytes that didn't fit their link), and that a signed link is false,
//! which takes a verified copy to know. Any of them may lie: it takes a third of those who can know, two at least, and
//! whoever is shunned has no word; accusations grow old. A few false friends can do nothing, and a liar that few have met is
//! shunned by those few: each agent keeps its own quarantine. The word of whoever is accused but not shunned counts in
//! full, or liars would silence the honest by accusing them.
//!
//! A false link that a lease holder made may be the registry's fault. It costs its maker the preference for leases for an
//! hour, and nothing else: whoever is alone with a registry that errs is leased its contents all the same.

use proto::statement::Contradiction;

use super::*;

/// Contents of which a host may take back what it made, an hour. A registry that errs errs seldom.
const RETRACTIONS: u32 = 16;
/// Accusations of false links that are kept against one host. Beyond this they prove no more.
const MOST_CHARGES: usize = 4096;

/// What others say against a host.
#[derive(Debug, Default)]
pub(super) struct Charges {
    /// Who says that it sent something false, or vouched for it, and when last. Of what says nothing more: hosts are counted.
    direct: BTreeMap<HostId, Moment>,
    /// Who says that it made a false link of this content, and when last.
    false_links: BTreeMap<(HostId, Digest), Moment>,
    /// Contents of which it took back what it made, and since when they are counted.
    retractions: (u32, Moment),
    /// Others are preferred for leases until then.
    last_for_leases_until: Option<Moment>,
}

impl Charges {
    pub(super) fn clear(&mut self) {
        self.direct.clear();
        self.false_links.clear();
    }

    pub(super) fn forget_host(&mut self, id: &HostId) {
        self.direct.remove(id);
        self.false_links.retain(|(by, _), _| by != id);
    }

    /// Whether one more content counts of which the host takes back what it made; `within` is how long they are counted.
    pub(super) fn may_retract(&self, now: Moment, within: Duration) -> bool {
        let (count, since) = self.retractions;
        count < RETRACTIONS || now.since(since) >= within
    }

    /// Whether leases go to others first.
    pub(super) fn is_last_for_leases(&self, now: Moment) -> bool {
        self.last_for_leases_until.is_some_and(|until| now < until)
    }
}

impl Plan {
    /// Different hosts whose word it takes, where so many can know.
    fn enough(&self, of: usize) -> usize {
        self.share(of).max(self.config.accusers)
    }

    pub(super) fn blamed(&mut self, by: &HostId, id: &HostId) {
        if !self.is_trusted(by) || by == id {
            return;
        }
        let now = self.now;
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        host.charges.direct.insert(by.clone(), now);
        let connected = self.hosts.values().filter(|host| host.connected).count();
        let accusers = self.hosts.get(id).map(|host| {
            let by = host.charges.direct.keys();
            by.filter(|by| self.is_trusted(by)).count()
        });
        if accusers >= Some(self.enough(connected)) {
            self.quarantine(id);
        }
    }

    /// Whoever says so has verified the content; who made the link is certain.
    pub(super) fn found_false(
        &mut self,
        by: &HostId,
        maker: &HostId,
        digest: Digest,
        vouched: bool,
    ) {
        if vouched {
            return self.blamed(by, maker);
        }
        if !self.is_trusted(by) || by == maker || !self.contents.contains_key(&digest) {
            return;
        }
        let now = self.now;
        let Some(host) = self.hosts.get_mut(maker) else {
            return;
        };
        if host.charges.false_links.len() < MOST_CHARGES {
            let charge = (by.clone(), digest);
            host.charges.false_links.insert(charge, now);
        }
        let Some(host) = self.hosts.get(maker) else {
            return;
        };
        let charges = host.charges.false_links.keys();
        let of_it = charges.filter(|(by, of)| *of == digest && self.is_trusted(by));
        let accusers: BTreeSet<&HostId> = of_it.map(|(by, _)| by).collect();
        // whoever stages it finds that out when its copy is whole: few can't say so first and have all leases
        let with_it = self.images.iter();
        let with_it = with_it.filter(|image| image.contents.contains(&digest));
        let can_know: BTreeSet<HostId> = with_it
            .flat_map(|image| self.selected(image))
            .filter(|id| id != maker && self.is_trusted(id) && self.is_connected(id))
            .collect();
        if accusers.len() >= self.enough(can_know.len()) {
            self.put_last(maker);
        }
    }

    /// Its own signatures say so: no witness is needed.
    pub(super) fn contradicted(&mut self, maker: &HostId, says: Contradiction) {
        match says {
            Contradiction::Lie => self.quarantine(maker),
            Contradiction::False => self.put_last(maker),
        }
    }

    /// A host says itself that what it made of a content is false from this chunk on: all drop it at once. That is no amnesty:
    /// what it signed stays signed.
    pub(super) fn retracted(&mut self, id: &HostId, digest: Digest, from: u32) {
        let (now, again) = (self.now, self.config.quarantine);
        if !self.takes_retraction(now, id, &digest) {
            return;
        }
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        let (count, since) = &mut host.charges.retractions;
        if now.since(*since) >= again {
            (*count, *since) = (0, now);
        }
        *count += 1;
        self.actions.push_back(Action::Retract {
            maker: id.clone(),
            content: digest,
            from,
        });
    }

    fn put_last(&mut self, maker: &HostId) {
        let until = self.now + self.config.quarantine;
        if let Some(host) = self.hosts.get_mut(maker) {
            host.charges.last_for_leases_until = Some(until);
        }
    }

    fn is_connected(&self, id: &HostId) -> bool {
        self.hosts.get(id).is_some_and(|host| host.connected)
    }

    fn is_trusted(&self, id: &HostId) -> bool {
        self.hosts
            .get(id)
            .is_some_and(|host| host.quarantined_until.is_none())
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
            let charges = &mut host.charges;
            charges.direct.retain(|_, at| now.since(*at) < most);
            charges.false_links.retain(|_, at| now.since(*at) < most);
        }
    }
}
