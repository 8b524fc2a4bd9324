//! Slots: room under the caps that is taken although no Pod shows it. A slot belongs to a Pod that was let go a moment
//! ago, or to a Pod that left and isn't replaced yet. [`Gate`](super::Gate) has the rule by which slots are taken and
//! freed. This module doesn't look at Pods.

use alloc::collections::BTreeMap;

use proto::Moment;

use super::{PodId, PrePullId};

/// The slots of all pre-pulls, each by the Pod that it is about.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots {
    by_pod: BTreeMap<PodId, Slot>,
}

#[derive(Clone, Debug)]
struct Slot {
    prepull: PrePullId,
    occupant: Occupant,
}

/// The reason for which a slot is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occupant {
    /// The gate let the Pod go. The slot ends at `until` unless the Pod shows the effect by then.
    Admitted {
        /// When the slot ends.
        until: Moment,
        /// Whether the Pod had the slot of a [`Successor`](Self::Successor) before.
        successor: bool,
    },
    /// The Pod succeeds one that the gate took, and hasn't been warm yet.
    Successor,
    /// The Pod left and has no successor yet.
    Departed {
        /// When the Pod left.
        since: Moment,
        /// What the Pod's leaving counts for.
        left: Left,
    },
}

/// Which kind of departure a slot stands for. A new Pod is matched to departures in this order, so a doubtful match
/// never ends the slot of a Pod that the gate took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Left {
    /// The Pod ended by itself. It takes no room. But its successor isn't taken for the successor of another Pod.
    ByItself {
        /// When the slot is forgotten.
        until: Moment,
    },
    /// The Pod left while it was in flight by itself, because it wasn't warm.
    InFlight {
        /// When the slot is forgotten.
        until: Moment,
    },
    /// The gate took the Pod. Only a successor ends this slot, or a pre-pull that wants none.
    Taken,
}

impl Occupant {
    /// Whether the slot's Pod still exists.
    pub(super) const fn is_alive(self) -> bool {
        !matches!(self, Self::Departed { .. })
    }

    /// The occupant at this moment; `None` once time has ended the slot.
    fn at(self, now: Moment) -> Option<Self> {
        match self {
            // an admission without effect leaves the slot that the Pod had before
            Self::Admitted { until, successor } if until <= now => {
                successor.then_some(Self::Successor)
            }
            Self::Departed {
                left: Left::ByItself { until } | Left::InFlight { until },
                ..
            } if until <= now => None,
            occupant => Some(occupant),
        }
    }
}

impl Slots {
    /// The reason for which this Pod has a slot, if it has one now.
    pub(super) fn of(&self, now: Moment, pod: &PodId) -> Option<Occupant> {
        self.by_pod.get(pod)?.occupant.at(now)
    }

    /// A pre-pull's slots that are taken now.
    pub(super) fn in_prepull(
        &self,
        now: Moment,
        prepull: &PrePullId,
    ) -> impl Iterator<Item = (&PodId, Occupant)> {
        self.by_pod
            .iter()
            .filter(move |(_, slot)| slot.prepull == *prepull)
            .filter_map(move |(pod, slot)| Some((pod, slot.occupant.at(now)?)))
    }

    /// Whether there are no slots, so that time can't free one.
    pub(super) fn is_empty(&self) -> bool {
        self.by_pod.is_empty()
    }

    /// Takes a slot for a Pod that the gate lets go.
    pub(super) fn admit(&mut self, now: Moment, pod: &PodId, prepull: &PrePullId, until: Moment) {
        let successor = matches!(
            self.of(now, pod),
            Some(
                Occupant::Successor
                    | Occupant::Admitted {
                        successor: true,
                        ..
                    }
            )
        );
        self.insert(pod, prepull, Occupant::Admitted { until, successor });
    }

    /// The write for an admission was done, or may have been. The slot's time counts from now.
    pub(super) fn prolong(&mut self, pod: &PodId, to: Moment) {
        if let Some(Slot {
            occupant: Occupant::Admitted { until, .. },
            ..
        }) = self.by_pod.get_mut(pod)
        {
            *until = to;
        }
    }

    /// The write for an admission certainly wasn't done. The Pod gets back the slot that it had before, if any.
    pub(super) fn refuse(&mut self, now: Moment, pod: &PodId) {
        if let Some(Slot {
            occupant: Occupant::Admitted { until, .. },
            ..
        }) = self.by_pod.get_mut(pod)
        {
            *until = now;
        }
    }

    /// This Pod is warm, so the Pod that it succeeds is replaced.
    pub(super) fn warm(&mut self, pod: &PodId) {
        match self.by_pod.get_mut(pod).map(|slot| &mut slot.occupant) {
            Some(Occupant::Admitted { successor, .. }) => *successor = false,
            Some(Occupant::Successor) => drop(self.by_pod.remove(pod)),
            Some(Occupant::Departed { .. }) | None => {}
        }
    }

    /// Keeps a slot for the successor of a Pod that left.
    pub(super) fn depart(&mut self, pod: &PodId, prepull: &PrePullId, occupant: Occupant) {
        self.insert(pod, prepull, occupant);
    }

    /// This Pod left and still exists: its finalizer holds it. A RunnerPool's successor comes at once (tuist/tuist of
    /// autumn 2026, infra/runners-controller/controllers/runnerpool_controller.go: Reconcile, isAlive). A StatefulSet's
    /// comes when the Pod is gone (Kubernetes, "StatefulSets": no two Pods with one identity), so the slot's time
    /// counts from then.
    pub(super) fn hold(&mut self, pod: &PodId, now: Moment, to: Moment) {
        if let Some(Slot {
            occupant: Occupant::Departed { since, left },
            ..
        }) = self.by_pod.get_mut(pod)
        {
            *since = now;
            if let Left::ByItself { until } | Left::InFlight { until } = left {
                *until = to;
            }
        }
    }

    /// A Pod came into a pre-pull, and takes the slot of one that left. Returns whether that Pod was taken by the gate:
    /// then a slot is to be kept until the new Pod is warm.
    pub(super) fn succeed(&mut self, now: Moment, prepull: &PrePullId) -> bool {
        let first = self
            .in_prepull(now, prepull)
            .filter_map(|(pod, occupant)| match occupant {
                Occupant::Departed { since, left } => Some((left, since, pod)),
                Occupant::Admitted { .. } | Occupant::Successor => None,
            })
            .min()
            .map(|(_, _, pod)| pod.clone());
        let Some(first) = first else {
            return false;
        };
        let slot = self.by_pod.remove(&first);
        slot.is_some_and(|slot| {
            matches!(
                slot.occupant,
                Occupant::Departed {
                    left: Left::Taken,
                    ..
                }
            )
        })
    }

    /// Takes a slot for a Pod that succeeds one that the gate took.
    pub(super) fn await_warm(&mut self, pod: &PodId, prepull: &PrePullId) {
        self.insert(pod, prepull, Occupant::Successor);
    }

    /// Frees the slots of Pods that left a pre-pull, because the pre-pull has all Pods that it shall have.
    pub(super) fn forgive(&mut self, prepull: &PrePullId) {
        self.by_pod
            .retain(|_, slot| slot.prepull != *prepull || slot.occupant.is_alive());
    }

    /// Frees all slots of a pre-pull that is gone.
    pub(super) fn drop_prepull(&mut self, prepull: &PrePullId) {
        self.by_pod.retain(|_, slot| slot.prepull != *prepull);
    }

    /// Frees the slots that time has ended.
    pub(super) fn tick(&mut self, now: Moment) {
        self.by_pod.retain(|_, slot| match slot.occupant.at(now) {
            Some(occupant) => {
                slot.occupant = occupant;
                true
            }
            None => false,
        });
    }

    fn insert(&mut self, pod: &PodId, prepull: &PrePullId, occupant: Occupant) {
        let prepull = prepull.clone();
        self.by_pod.insert(pod.clone(), Slot { prepull, occupant });
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;

    const START: Moment = Moment(1_000_000_000);
    const MINUTE: Duration = Duration::from_mins(1);
    const MOMENT: Duration = Duration::from_micros(1);

    fn prepull() -> PrePullId {
        PrePullId("prepull".into())
    }

    fn pod(name: &str) -> PodId {
        PodId(name.into())
    }

    fn left(left: Left) -> Occupant {
        Occupant::Departed { since: START, left }
    }

    #[test]
    fn an_admission_that_nothing_came_of_leaves_what_the_pod_had_before() {
        let (mut slots, until) = (Slots::default(), START + MINUTE);
        slots.admit(START, &pod("new"), &prepull(), until);
        slots.await_warm(&pod("successor"), &prepull());
        slots.admit(START, &pod("successor"), &prepull(), until);
        let of = |slots: &Slots, now, name| slots.of(now, &pod(name));
        assert!(of(&slots, until - MOMENT, "new").is_some());
        assert_eq!(of(&slots, until, "new"), None);
        assert_eq!(of(&slots, until, "successor"), Some(Occupant::Successor));
        // the slot of a write that was done, or may have been, counts from the answer
        slots.prolong(&pod("new"), until + MINUTE);
        assert!(of(&slots, until, "new").is_some());
        slots.refuse(until, &pod("new"));
        slots.tick(until);
        assert_eq!(of(&slots, START, "new"), None, "it is gone");
        slots.warm(&pod("successor"));
        assert_eq!(of(&slots, until, "successor"), None);
        assert!(slots.is_empty());
    }

    #[test]
    fn who_comes_succeeds_first_whom_the_gate_did_not_take() {
        let (mut slots, until) = (Slots::default(), START + MINUTE);
        slots.depart(&pod("a"), &prepull(), left(Left::Taken));
        slots.depart(&pod("b"), &prepull(), left(Left::InFlight { until }));
        slots.depart(&pod("c"), &prepull(), left(Left::ByItself { until }));
        let other = PrePullId("other".into());
        assert!(!slots.succeed(START, &other), "that is another prepull");
        assert!(!slots.succeed(START, &prepull()));
        assert_eq!(slots.of(START, &pod("c")), None);
        assert!(!slots.succeed(START, &prepull()));
        assert_eq!(slots.of(START, &pod("b")), None);
        assert!(slots.succeed(START, &prepull()), "the gate took it");
        assert!(!slots.succeed(START, &prepull()), "nobody is missing");
    }

    #[test]
    fn whom_the_gate_took_is_awaited_until_the_prepull_is_whole_and_others_for_a_time() {
        let (mut slots, until) = (Slots::default(), START + MINUTE);
        slots.depart(&pod("a"), &prepull(), left(Left::Taken));
        slots.depart(&pod("b"), &prepull(), left(Left::InFlight { until }));
        slots.await_warm(&pod("c"), &prepull());
        assert_eq!(slots.in_prepull(until - MOMENT, &prepull()).count(), 3);
        assert_eq!(slots.in_prepull(until, &prepull()).count(), 2);
        slots.forgive(&prepull());
        let left: alloc::vec::Vec<_> = slots.in_prepull(START, &prepull()).collect();
        assert_eq!(left, [(&pod("c"), Occupant::Successor)]);
        slots.drop_prepull(&prepull());
        assert!(slots.is_empty());
    }
}
