//! Who follows whom: a random graph of even degree, the same zone first, that changes little when hosts come and go.

use super::*;

impl Plan {
    /// Gives a host its neighbours. Where everybody has enough, an edge of two others is opened and the host put in
    /// between, so that a join changes the lists of as many hosts as it has neighbours, by one entry each.
    pub(super) fn join_graph(&mut self, id: &HostId) {
        let Some(host) = self.hosts.get(id) else {
            return;
        };
        if host.quarantined_until.is_some() {
            return;
        }
        let zone = host.zone.clone();
        let (near, far): (Vec<HostId>, Vec<HostId>) = self
            .hosts
            .iter()
            .filter(|(other, host)| *other != id && host.quarantined_until.is_none())
            .map(|(other, host)| (other.clone(), host.zone == zone))
            .fold(
                (Vec::new(), Vec::new()),
                |(mut near, mut far), (other, same)| {
                    if same {
                        near.push(other);
                    } else {
                        far.push(other);
                    }
                    (near, far)
                },
            );
        let wanted = self.config.neighbours.min(near.len() + far.len());
        let far_wanted = self
            .config
            .far_neighbours
            .max(wanted.saturating_sub(near.len()))
            .min(far.len())
            .min(wanted);
        self.link_some(id, near, wanted - far_wanted);
        self.link_some(id, far, far_wanted);
    }

    fn link_some(&mut self, id: &HostId, mut among: Vec<HostId>, count: usize) {
        let mut left = count;
        // a random order, then those with the fewest neighbours first
        for at in (1..among.len()).rev() {
            let other = self.random(at + 1);
            among.swap(at, other);
        }
        among.sort_by_key(|other| self.degree(other));
        for other in &among {
            if left == 0 {
                return;
            }
            if self.degree(other) < self.config.neighbours && self.link(id, other) {
                left -= 1;
            }
        }
        // hosts that joined while there were few near ones have more far ones than they should: one gives way
        for other in &among {
            if left == 0 {
                return;
            }
            if let Some(third) = self.spare_far(id, other) {
                self.unlink(other, &third);
                if self.link(id, other) {
                    left -= 1;
                }
            }
        }
        for other in &among {
            if left < 2 {
                return;
            }
            // open an edge between `other` and one of its neighbours among the same hosts
            let Some(host) = self.hosts.get(other) else {
                continue;
            };
            if host.neighbours.contains(id) {
                continue;
            }
            let third = host
                .neighbours
                .iter()
                .find(|third| {
                    *third != id
                        && self.hosts.get(*third).is_some_and(|host| {
                            !host.neighbours.contains(id)
                                && host.neighbours.len() >= self.config.neighbours
                        })
                        && among.contains(third)
                })
                .cloned();
            if let Some(third) = third {
                self.unlink(other, &third);
                self.link(id, other);
                self.link(id, &third);
                left -= 2;
            }
        }
    }

    /// A far neighbour of `other` that it can do without, for `id`, which is near.
    fn spare_far(&self, id: &HostId, other: &HostId) -> Option<HostId> {
        let host = self.hosts.get(other)?;
        if host.neighbours.contains(id) || self.hosts.get(id)?.zone != host.zone {
            return None;
        }
        let far = |of: &Host| {
            of.neighbours
                .iter()
                .filter(|third| {
                    self.hosts
                        .get(*third)
                        .is_some_and(|third| third.zone != of.zone)
                })
                .count()
        };
        if far(host) <= self.config.far_neighbours {
            return None;
        }
        host.neighbours
            .iter()
            .find(|third| {
                self.hosts.get(*third).is_some_and(|third| {
                    third.zone != host.zone && far(third) > self.config.far_neighbours
                })
            })
            .cloned()
    }

    /// Takes a host out; its neighbours are paired among each other where that is possible.
    pub(super) fn leave_graph(&mut self, id: &HostId) {
        let Some(host) = self.hosts.get_mut(id) else {
            return;
        };
        let orphans: Vec<HostId> = core::mem::take(&mut host.neighbours).into_iter().collect();
        for other in &orphans {
            if let Some(host) = self.hosts.get_mut(other) {
                host.neighbours.remove(id);
            }
        }
        let mut at = 0;
        while at < orphans.len() {
            for other in &orphans[at + 1..] {
                if self.degree(&orphans[at]) >= self.config.neighbours {
                    break;
                }
                if self.degree(other) < self.config.neighbours && self.link(&orphans[at], other) {
                    break;
                }
            }
            at += 1;
        }
    }

    fn degree(&self, id: &HostId) -> usize {
        self.hosts.get(id).map_or(0, |host| host.neighbours.len())
    }

    fn link(&mut self, a: &HostId, b: &HostId) -> bool {
        if a == b || !self.hosts.contains_key(a) || !self.hosts.contains_key(b) {
            return false;
        }
        let mut new = false;
        for (one, other) in [(a, b), (b, a)] {
            if let Some(host) = self.hosts.get_mut(one) {
                new |= host.neighbours.insert(other.clone());
            }
        }
        new
    }

    fn unlink(&mut self, a: &HostId, b: &HostId) {
        for (one, other) in [(a, b), (b, a)] {
            if let Some(host) = self.hosts.get_mut(one) {
                host.neighbours.remove(other);
            }
        }
    }
}
