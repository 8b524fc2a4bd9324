//! How urgent a wanted image is beside others: what operators and the cluster's objects say of that, and what the plan
//! was told.

use std::collections::BTreeSet;

use proto::{Digest, HostId};
use rollout::stage::{Event, sequence::Urgency};

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Ranking {
    /// The priority that operators gave last; `None` where they gave none.
    asked: Option<i32>,
    /// The highest priority of the cluster's objects.
    placed: i32,
    /// The hosts on which Pods wait for the image.
    awaited: BTreeSet<HostId>,
    /// When the image was first asked for, in Unix milliseconds.
    first_ms: Option<u64>,
    /// What the plan was told last.
    told: Option<Told>,
}

/// What the plan is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Told {
    priority: i32,
    asked_ms: u64,
    awaited: BTreeSet<HostId>,
}

/// The sides that want an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sides {
    pub(super) operators: bool,
    pub(super) cluster: bool,
}

impl Ranking {
    /// Operators ask for the image. A request without a priority leaves the one before.
    pub(super) fn ask(&mut self, priority: Option<i32>) {
        self.asked = priority.or(self.asked);
    }

    /// The priority that operators gave.
    pub(super) const fn asked(&self) -> Option<i32> {
        self.asked
    }

    /// The cluster's objects want the image with this priority, and Pods wait for it on these hosts.
    pub(super) fn place(&mut self, priority: i32, awaited: BTreeSet<HostId>) {
        (self.placed, self.awaited) = (priority, awaited);
    }

    /// The plan doesn't know the image any more.
    pub(super) fn untell(&mut self) {
        self.told = None;
    }

    /// Takes note of who wants the image now, and of the earliest time in their claims, in Unix milliseconds.
    /// `wanted_at` is when the image was first wanted, in Unix seconds, as kept over restarts. Returns what the plan is
    /// to be told of the image, if that is news.
    pub(super) fn follow(
        &mut self,
        image: Digest,
        sides: Sides,
        (asked_ms, wanted_at): (u64, u64),
    ) -> Option<Event> {
        if !sides.operators {
            self.asked = None;
        }
        if !sides.cluster {
            self.place(0, BTreeSet::new());
        }
        // a request that comes again moves the claim's time, and doesn't cost the image its place
        let first_ms = match self.first_ms {
            Some(known) => known.min(asked_ms),
            None if asked_ms / 1_000 <= wanted_at => asked_ms,
            None => wanted_at.saturating_mul(1_000),
        };
        self.first_ms = Some(first_ms);
        let told = Told {
            priority: self.priority(sides),
            asked_ms: first_ms,
            awaited: self.awaited.clone(),
        };
        if self.told.as_ref() == Some(&told) {
            return None;
        }
        self.told = Some(told.clone());
        Some(Event::Ranked {
            image,
            priority: told.priority,
            asked_ms: told.asked_ms,
            awaited: told.awaited.into_iter().collect(),
        })
    }

    /// The highest priority that a side gives the image.
    fn priority(&self, sides: Sides) -> i32 {
        let asked = sides.operators.then(|| self.asked.unwrap_or(0));
        let placed = sides.cluster.then_some(self.placed);
        asked.into_iter().chain(placed).max().unwrap_or(0)
    }

    /// How urgent the image is on this host, as the plan was told. `None`: the plan doesn't know the image.
    pub(super) fn urgency(&self, host: &HostId) -> Option<Urgency> {
        let told = self.told.as_ref()?;
        Some(Urgency {
            awaited: told.awaited.contains(host),
            priority: told.priority,
            asked_ms: told.asked_ms,
        })
    }

    /// The priority that counts, as the plan was told.
    pub(super) fn counts(&self) -> i32 {
        self.told.as_ref().map_or(0, |told| told.priority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPERATORS: Sides = Sides {
        operators: true,
        cluster: false,
    };
    const BOTH: Sides = Sides {
        operators: true,
        cluster: true,
    };

    /// The priority and the time that the plan is told.
    fn follow(ranking: &mut Ranking, sides: Sides, asked_ms: u64) -> Option<(i32, u64)> {
        let event = ranking.follow(Digest::of(b"image"), sides, (asked_ms, 7))?;
        let Event::Ranked {
            priority, asked_ms, ..
        } = event
        else {
            panic!("{event:?}");
        };
        Some((priority, asked_ms))
    }

    #[test]
    fn the_higher_priority_counts_as_long_as_its_side_wants_the_image() {
        let mut ranking = Ranking::default();
        ranking.ask(Some(5));
        assert_eq!(follow(&mut ranking, OPERATORS, 7_100), Some((5, 7_100)));
        assert_eq!(follow(&mut ranking, OPERATORS, 7_100), None, "known");
        ranking.place(-3, BTreeSet::new());
        assert_eq!(follow(&mut ranking, BOTH, 7_100), None);
        let cluster = Sides {
            operators: false,
            ..BOTH
        };
        assert_eq!(follow(&mut ranking, cluster, 7_100), Some((-3, 7_100)));
        ranking.ask(None);
        assert_eq!(follow(&mut ranking, BOTH, 7_100), Some((0, 7_100)));
    }

    #[test]
    fn a_request_without_a_priority_leaves_the_one_before() {
        let mut ranking = Ranking::default();
        ranking.ask(Some(5));
        ranking.ask(None);
        assert_eq!(follow(&mut ranking, OPERATORS, 7_000), Some((5, 7_000)));
        ranking.ask(Some(0));
        assert_eq!(follow(&mut ranking, OPERATORS, 7_000), Some((0, 7_000)));
    }

    #[test]
    fn who_asks_again_doesnt_send_the_image_back() {
        let mut ranking = Ranking::default();
        assert_eq!(follow(&mut ranking, OPERATORS, 7_250), Some((0, 7_250)));
        assert_eq!(follow(&mut ranking, OPERATORS, 90_000), None);
        // after a restart only the second of the first request is known
        let mut restarted = Ranking::default();
        assert_eq!(follow(&mut restarted, OPERATORS, 90_000), Some((0, 7_000)));
    }

    #[test]
    fn pods_that_wait_are_told_until_none_waits() {
        let mut ranking = Ranking::default();
        let host: HostId = "mini-1".parse().unwrap();
        ranking.place(0, [host.clone()].into());
        let told = ranking.follow(Digest::of(b"image"), BOTH, (1, 1));
        assert!(matches!(told, Some(Event::Ranked { awaited, .. }) if awaited == [host]));
        ranking.place(0, BTreeSet::new());
        assert!(follow(&mut ranking, BOTH, 1).is_some());
        // a plan that forgot the image hears all again
        ranking.untell();
        assert!(follow(&mut ranking, BOTH, 1).is_some());
    }
}
