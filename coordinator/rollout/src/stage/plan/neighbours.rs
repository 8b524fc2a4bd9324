//! Which hosts follow which, and which hosts must be told of a change.
//!
//! A host is told of its neighbours as soon as its session is up. Later changes are sent a few times a second at most,
//! so that a fleet that starts causes few messages.

use alloc::vec::Vec;
use core::time::Duration;

use proto::{HostId, Moment};
use rand_chacha::ChaCha8Rng;

use super::graph::Graph;

/// The shortest time between two rounds of telling hosts about their neighbours.
const EVERY: Duration = Duration::from_millis(200);

/// The neighbour graph, and when hosts with changed neighbours are told.
#[derive(Debug)]
pub(super) struct Neighbours {
    graph: Graph,
    due: Option<Moment>,
}

impl Neighbours {
    /// Starts without neighbours. A host has `most` neighbours at most, `far` of them in other zones.
    pub(super) const fn new(most: usize, far: usize) -> Self {
        Self {
            graph: Graph::new(most, far),
            due: None,
        }
    }

    /// Adds a host, and gives it neighbours.
    pub(super) fn join(&mut self, now: Moment, id: &HostId, zone: &str, rng: &mut ChaCha8Rng) {
        self.graph.join(id, zone, rng);
        self.note_changes(now);
    }

    /// Removes a host and its edges.
    pub(super) fn leave(&mut self, now: Moment, id: &HostId) {
        self.graph.leave(id);
        self.note_changes(now);
    }

    fn note_changes(&mut self, now: Moment) {
        if self.graph.is_changed() {
            self.due.get_or_insert(now + EVERY);
        }
    }

    /// The neighbours of a host, sorted.
    pub(super) fn of(&self, id: &HostId) -> Vec<HostId> {
        self.graph.neighbours(id)
    }

    /// Notes that this host is being told now.
    pub(super) fn told(&mut self, id: &HostId) {
        self.graph.told(id);
    }

    /// When hosts with changed neighbours are to be told; `None` while none changed.
    pub(super) const fn due(&self) -> Option<Moment> {
        self.due
    }

    /// The hosts to tell, if it is time to.
    pub(super) fn take_due(&mut self, now: Moment) -> Vec<HostId> {
        match self.due.take_if(|at| *at <= now) {
            Some(_) => self.graph.take_changed(),
            None => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand_core::SeedableRng as _;

    use super::*;

    fn host(number: u32) -> HostId {
        alloc::format!("host-{number}").parse().unwrap()
    }

    #[test]
    fn changes_are_told_a_fifth_of_a_second_after_the_first_of_them() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut neighbours = Neighbours::new(24, 4);
        let start = Moment(1_000_000);
        neighbours.join(start, &host(1), "", &mut rng);
        neighbours.join(start + EVERY / 2, &host(2), "", &mut rng);
        assert_eq!(neighbours.due(), Some(start + EVERY));
        let before = start + EVERY - Duration::from_micros(1);
        assert!(neighbours.take_due(before).is_empty());
        assert_eq!(neighbours.take_due(start + EVERY).len(), 2);
        assert_eq!(neighbours.due(), None);
        assert_eq!(neighbours.of(&host(1)), [host(2)]);
        // a host that is told meanwhile isn't told again
        neighbours.leave(start, &host(2));
        neighbours.told(&host(1));
        assert!(neighbours.take_due(start + EVERY).is_empty());
    }
}
