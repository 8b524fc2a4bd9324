//! The neighbour graph: random, of even degree, with the same zone preferred. It changes little when hosts come and go.
//!
//! The graph knows nothing of sessions, images and trust. A host that shall have neighbours joins it, and a host that
//! shall have none leaves it. Hosts are numbers here, so that a join looks at every host once and only compares
//! numbers.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::cmp::Reverse;

use proto::{Digest, HostId};
use rand_chacha::ChaCha8Rng;

use super::chance::{below, prefix};

/// A host's index in the graph. It is reused once the host has left.
type Number = usize;

/// The hosts and their neighbours.
#[derive(Debug)]
pub(super) struct Graph {
    /// The most neighbours of a host.
    most: usize,
    /// How many neighbours lie in other zones, where there are other zones.
    far: usize,
    nodes: Vec<Option<Node>>,
    free: Vec<Number>,
    numbers: BTreeMap<HostId, Number>,
    /// Hosts whose neighbours changed since the host was last told.
    changed: BTreeSet<Number>,
}

#[derive(Debug)]
struct Node {
    id: HostId,
    /// A hash of the zone's name.
    zone: u64,
    neighbours: BTreeSet<Number>,
    /// The number of neighbours in other zones.
    far: usize,
}

impl Graph {
    pub(super) const fn new(most: usize, far: usize) -> Self {
        Self {
            most,
            far,
            nodes: Vec::new(),
            free: Vec::new(),
            numbers: BTreeMap::new(),
            changed: BTreeSet::new(),
        }
    }

    /// The neighbours of a host, sorted.
    pub(super) fn neighbours(&self, id: &HostId) -> Vec<HostId> {
        let number = self.numbers.get(id);
        let node = number.and_then(|number| self.node(*number));
        let mut neighbours: Vec<HostId> = node
            .into_iter()
            .flat_map(|node| &node.neighbours)
            .filter_map(|other| Some(self.node(*other)?.id.clone()))
            .collect();
        neighbours.sort_unstable();
        neighbours
    }

    /// Whether the neighbours of some host changed and that host wasn't told yet.
    pub(super) fn is_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The hosts whose neighbours changed, in no particular order. From now on they count as told.
    pub(super) fn take_changed(&mut self) -> Vec<HostId> {
        let changed = core::mem::take(&mut self.changed);
        let nodes = changed.into_iter().filter_map(|number| self.node(number));
        nodes.map(|node| node.id.clone()).collect()
    }

    /// Counts this host as told.
    pub(super) fn told(&mut self, id: &HostId) {
        if let Some(number) = self.numbers.get(id) {
            self.changed.remove(number);
        }
    }

    /// Adds a host and gives it neighbours. Where all others have enough neighbours, an edge between two others is
    /// opened and the host put in between. So a join changes the lists of as many hosts as it has neighbours, by one
    /// entry each.
    pub(super) fn join(&mut self, id: &HostId, zone: &str, rng: &mut ChaCha8Rng) {
        if self.numbers.contains_key(id) {
            return;
        }
        let zone = prefix(Digest::of(zone.as_bytes()));
        let (mut near, mut far) = (Vec::new(), Vec::new());
        for (number, node) in self.nodes.iter().enumerate() {
            match node {
                Some(node) if node.zone == zone => near.push(number),
                Some(_) => far.push(number),
                None => {}
            }
        }
        let number = self.enter(Node {
            id: id.clone(),
            zone,
            neighbours: BTreeSet::new(),
            far: 0,
        });
        let wanted = self.most.min(near.len() + far.len());
        let far_wanted = self
            .far
            .max(wanted.saturating_sub(near.len()))
            .min(far.len())
            .min(wanted);
        self.link_some(number, near, wanted - far_wanted, rng);
        self.link_some(number, far, far_wanted, rng);
    }

    /// Removes a host. Its neighbours are linked with each other where that is possible.
    pub(super) fn leave(&mut self, id: &HostId) {
        let Some(number) = self.numbers.remove(id) else {
            return;
        };
        let node = self.nodes.get_mut(number).and_then(Option::take);
        self.changed.remove(&number);
        self.free.push(number);
        let Some(node) = node else { return };
        let orphans: Vec<Number> = node.neighbours.into_iter().collect();
        for other in &orphans {
            if let Some(orphan) = self.node_mut(*other) {
                orphan.neighbours.remove(&number);
                orphan.far -= usize::from(orphan.zone != node.zone);
                self.changed.insert(*other);
            }
        }
        for (at, one) in orphans.iter().enumerate() {
            for other in &orphans[at + 1..] {
                if self.degree(*one) >= self.most {
                    break;
                }
                if self.degree(*other) < self.most && self.link(*one, *other) {
                    break;
                }
            }
        }
    }

    fn enter(&mut self, node: Node) -> Number {
        let id = node.id.clone();
        let number = if let Some(number) = self.free.pop() {
            self.nodes[number] = Some(node);
            number
        } else {
            self.nodes.push(Some(node));
            self.nodes.len() - 1
        };
        self.numbers.insert(id, number);
        self.changed.insert(number);
        number
    }

    /// Links a host with `count` of these others. Either all or none of the others are of the host's zone.
    fn link_some(
        &mut self,
        number: Number,
        mut among: Vec<Number>,
        count: usize,
        rng: &mut ChaCha8Rng,
    ) {
        let mut left = count;
        // first the hosts with the fewest neighbours, in a random order
        let mut roomy: Vec<Number> = among
            .iter()
            .copied()
            .filter(|other| self.degree(*other) < self.most)
            .collect();
        for at in 0..roomy.len() {
            draw(&mut roomy, at, rng);
        }
        roomy.sort_by_key(|other| self.degree(*other));
        for other in roomy {
            if left == 0 {
                return;
            }
            left -= usize::from(self.link(number, other));
        }
        // A host that joined while there were few near hosts has more far neighbours than it should. It gives up one of
        // these; hosts with the most far neighbours come first.
        let mut spare: Vec<Number> = among
            .iter()
            .copied()
            .filter(|other| self.node(*other).is_some_and(|node| node.far > self.far))
            .collect();
        for at in 0..spare.len() {
            draw(&mut spare, at, rng);
        }
        spare.sort_by_key(|other| Reverse(self.node(*other).map_or(0, |node| node.far)));
        for other in spare {
            if left == 0 {
                return;
            }
            if let Some(third) = self.spare_far(number, other) {
                self.unlink(other, third);
                left -= usize::from(self.link(number, other));
            }
        }
        for at in 0..among.len() {
            if left < 2 {
                return;
            }
            let other = draw(&mut among, at, rng);
            if let Some(third) = self.edge_to_open(number, other) {
                self.unlink(other, third);
                self.link(number, other);
                self.link(number, third);
                left -= 2;
            }
        }
    }

    /// A far neighbour that `other` can do without, so that `other` can be linked with `number` of its own zone.
    fn spare_far(&self, number: Number, other: Number) -> Option<Number> {
        let (joins, host) = (self.node(number)?, self.node(other)?);
        if host.neighbours.contains(&number) || joins.zone != host.zone || host.far <= self.far {
            return None;
        }
        let mut thirds = host.neighbours.iter().copied();
        thirds.find(|third| {
            self.node(*third)
                .is_some_and(|third| third.zone != host.zone && third.far > self.far)
        })
    }

    /// A neighbour of `other` such that `number` can be put between the two. It has as many neighbours as a host may
    /// have. Both are of the zone of `number`, or neither is.
    fn edge_to_open(&self, number: Number, other: Number) -> Option<Number> {
        let (joins, host) = (self.node(number)?, self.node(other)?);
        if host.neighbours.contains(&number) {
            return None;
        }
        let near = joins.zone == host.zone;
        let mut thirds = host.neighbours.iter().copied();
        thirds.find(|third| {
            self.node(*third).is_some_and(|node| {
                *third != number
                    && !node.neighbours.contains(&number)
                    && node.neighbours.len() >= self.most
                    && (node.zone == joins.zone) == near
            })
        })
    }

    fn node(&self, number: Number) -> Option<&Node> {
        self.nodes.get(number)?.as_ref()
    }

    fn node_mut(&mut self, number: Number) -> Option<&mut Node> {
        self.nodes.get_mut(number)?.as_mut()
    }

    fn degree(&self, number: Number) -> usize {
        self.node(number).map_or(0, |node| node.neighbours.len())
    }

    /// Links two hosts. Returns whether they weren't linked before.
    fn link(&mut self, one: Number, other: Number) -> bool {
        let far = self.are_far(one, other);
        let mut new = false;
        for (of, to) in [(one, other), (other, one)] {
            if let Some(node) = self.node_mut(of)
                && node.neighbours.insert(to)
            {
                node.far += usize::from(far);
                self.changed.insert(of);
                new = true;
            }
        }
        new
    }

    fn unlink(&mut self, one: Number, other: Number) {
        let far = self.are_far(one, other);
        for (of, to) in [(one, other), (other, one)] {
            if let Some(node) = self.node_mut(of)
                && node.neighbours.remove(&to)
            {
                node.far -= usize::from(far);
                self.changed.insert(of);
            }
        }
    }

    fn are_far(&self, one: Number, other: Number) -> bool {
        let zone = |number| self.node(number).map(|node| node.zone);
        zone(one) != zone(other)
    }
}

/// Draws the next element of a random order. Elements are drawn one by one, because few are needed.
fn draw(among: &mut [Number], at: usize, rng: &mut ChaCha8Rng) -> Number {
    let other = at + below(rng, among.len() - at);
    among.swap(at, other);
    among[at]
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use rand_core::SeedableRng as _;

    use super::*;

    fn host(number: usize) -> HostId {
        format!("host-{number}").parse().unwrap()
    }

    fn check(graph: &Graph) {
        for (id, number) in &graph.numbers {
            let node = graph.node(*number).unwrap();
            assert_eq!(node.id, *id);
            assert!(node.neighbours.len() <= graph.most);
            assert!(!node.neighbours.contains(number));
            let others = node.neighbours.iter();
            let others: Vec<&Node> = others.map(|other| graph.node(*other).unwrap()).collect();
            assert!(others.iter().all(|other| other.neighbours.contains(number)));
            let far = others.iter().filter(|other| other.zone != node.zone);
            assert_eq!(node.far, far.count());
        }
    }

    #[test]
    fn however_hosts_come_and_go_the_books_are_right() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut graph = Graph::new(24, 4);
        for step in 0..3_000 {
            let id = host(below(&mut rng, 200));
            if below(&mut rng, 3) == 0 {
                graph.leave(&id);
            } else {
                graph.join(&id, &format!("zone-{}", step % 7), &mut rng);
            }
            if step % 50 == 0 {
                check(&graph);
            }
        }
        check(&graph);
    }

    #[test]
    fn hosts_whose_neighbours_changed_are_told_once() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut graph = Graph::new(24, 4);
        for number in 0..200 {
            graph.join(&host(number), "", &mut rng);
        }
        assert_eq!(graph.take_changed().len(), 200);
        assert!(!graph.is_changed());
        graph.join(&host(200), "", &mut rng);
        graph.told(&host(200));
        let changed = graph.take_changed();
        assert!(!changed.contains(&host(200)));
        assert!((20..=24).contains(&changed.len()), "{}", changed.len());
        // a second join of the same host changes nothing
        graph.join(&host(200), "", &mut rng);
        assert!(!graph.is_changed());
    }

    #[test]
    fn a_join_costs_no_more_than_a_look_at_every_host() {
        // steps that a join takes beside that look: changes of neighbours, which are what hosts have to be told of
        for hosts in [500, 2_000] {
            let mut rng = ChaCha8Rng::seed_from_u64(5);
            let mut graph = Graph::new(24, 4);
            for number in 0..hosts {
                graph.join(&host(number), &format!("rack-{}", number / 24), &mut rng);
            }
            graph.take_changed();
            let mut changed = 0;
            for number in 0..50 {
                graph.join(&host(hosts + number), &format!("rack-{number}"), &mut rng);
                changed += graph.take_changed().len();
            }
            assert!(changed <= 50 * 60, "{hosts}: {changed}");
            check(&graph);
        }
    }
}
