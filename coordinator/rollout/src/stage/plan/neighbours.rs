//! Which hosts follow which, and which of them are to be told.
//!
//! Hosts hear of their neighbours at once when their session comes up. While others come and go they hear of changes
//! a few times a second at most, so that a fleet that starts costs little.

use alloc::vec::Vec;
use core::time::Duration;

use proto::{HostId, Moment};
use rand_chacha::ChaCha8Rng;

use super::graph::Graph;

/// The shortest time between two rounds in which hosts hear of their neighbours.
const EVERY: Duration = Duration::from_millis(200);

/// Who follows whom, and when hosts whose neighbours changed are told.
#[derive(Debug)]
pub(super) struct Neighbours {
    graph: Graph,
    due: Option<Moment>,
}

impl Neighbours {
    /// Nobody's neighbours yet. A host has so many at most, and so many of those in other zones.
    pub(super) const fn new(most: usize, far: usize) -> Self {
        Self {
            graph: Graph::new(most, far),
            due: None,
        }
    }

    /// Gives a host its neighbours.
    pub(super) fn join(&mut self, now: Moment, id: &HostId, zone: &str, rng: &mut ChaCha8Rng) {
        self.graph.join(id, zone, rng);
        self.note_changes(now);
    }

    /// Takes a host's neighbours.
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

    /// This host is told now.
    pub(super) fn told(&mut self, id: &HostId) {
        self.graph.told(id);
    }

    /// When hosts are to be told.
    pub(super) const fn due(&self) -> Option<Moment> {
        self.due
    }

    /// The hosts that are to be told now.
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
        // who is told meanwhile isn't told again
        neighbours.leave(start, &host(2));
        neighbours.told(&host(1));
        assert!(neighbours.take_due(start + EVERY).is_empty());
    }
}
