//! How much of each cap is used. A pre-pull's cap is about its own Pods. A fleet's cap is about the Pods of all
//! pre-pulls that share the fleet's hosts; the stricter of the two holds.

use alloc::{collections::BTreeMap, vec::Vec};

use proto::Moment;

use super::{
    Config, Phase, Pod, PodId, PrePull, PrePullId,
    hosts::Hosts,
    prepull::PrePullState,
    slots::{Left, Occupant, Slots},
};

/// The most Pods of a pre-pull that may be in flight: `percent` of `replicas`, rounded down, and at least one
/// (tuist/tuist of autumn 2026, infra/runners-controller/controllers/runnerpool_controller.go: rollConcurrencyCap).
#[must_use]
pub const fn cap(percent: i32, replicas: i32) -> u32 {
    if percent <= 0 || replicas <= 0 {
        return 1;
    }
    let share = percent.unsigned_abs() as u64 * replicas.unsigned_abs() as u64 / 100;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "bounded by u32::MAX in the same expression"
    )]
    let share = if share > u32::MAX as u64 {
        u32::MAX
    } else {
        share as u32
    };
    if share == 0 { 1 } else { share }
}

/// How much of a pre-pull's cap is used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    /// Pods in flight by the rule of the runners' own controller.
    pub(super) letter: u32,
    /// Slots beyond the Pods in flight.
    pub(super) reserved: u32,
    /// As for [`PoolStatus::awaited`](super::PoolStatus::awaited).
    pub(super) awaited: u32,
    /// As for [`PoolStatus::missing`](super::PoolStatus::missing).
    pub(super) missing: u32,
    /// As for [`PoolStatus::away`](super::PoolStatus::away).
    pub(super) away: u32,
    /// As for [`PoolStatus::giving_way`](super::PoolStatus::giving_way).
    pub(super) giving_way: u32,
    /// The cap. For a pre-pull that lacks Pods, it is a share of the Pods that are there or on their way.
    pub(super) cap: u32,
    /// How much of the fleet's cap is used, where the fleet has one.
    pub(super) fleet: Option<FleetUsed>,
}

/// How much of a fleet's cap is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct FleetUsed {
    /// Pods of all pre-pulls of the fleet that are in flight or being started, stale ones as well, or that others are
    /// about to delete, with slots taken for others.
    pub(super) in_flight: u32,
    /// The cap.
    pub(super) cap: u32,
}

/// The gate's state, to count in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget<'a> {
    pub(super) now: Moment,
    pub(super) config: &'a Config,
    pub(super) hosts: &'a Hosts,
    pub(super) prepulls: &'a BTreeMap<PrePullId, PrePullState>,
    pub(super) pods: &'a BTreeMap<PodId, Pod>,
    pub(super) slots: &'a Slots,
}

impl<'a> Budget<'a> {
    /// A pre-pull's Pods.
    pub(super) fn members(
        self,
        state: &'a PrePullState,
    ) -> impl Iterator<Item = (&'a PodId, &'a Pod)> {
        let ids = state.pods().iter();
        ids.filter_map(move |id| Some((id, self.pods.get(id)?)))
    }

    /// A pre-pull's Pods, the oldest first.
    pub(super) fn oldest_first(self, state: &'a PrePullState) -> Vec<(&'a PodId, &'a Pod)> {
        let mut pods: Vec<_> = self.members(state).collect();
        pods.sort_by(|(_, a), (_, b)| {
            (a.created_unix_s, &a.name).cmp(&(b.created_unix_s, &b.name))
        });
        pods
    }

    /// The number of a pre-pull's Pods that are alive.
    pub(super) fn alive(self, id: &PrePullId) -> usize {
        self.prepulls.get(id).map_or(0, |state| {
            let members = self.members(state);
            members.filter(|(_, pod)| pod.is_alive()).count()
        })
    }

    /// Whether a pre-pull has stale Pods that are alive.
    pub(super) fn is_rolling(self, state: &PrePullState) -> bool {
        self.members(state)
            .any(|(_, pod)| pod.is_alive() && pod.is_stale(state.prepull()))
    }

    /// Whether a Pod counts as in flight, by the rule of the runners' own controller. It does if it is stale and
    /// labelled; or, while the pre-pull rolls, if it is current and idle but not warm (tuist/tuist of autumn 2026,
    /// infra/runners-controller/controllers/runnerpool_controller.go: Reconcile, isWarmCapacity). A current Pod that an
    /// operator drains doesn't: it is on its way out, and its successor counts.
    pub(super) fn is_in_flight(self, pod: &Pod, prepull: &PrePull, rolling: bool) -> bool {
        pod.is_alive()
            && if pod.is_stale(prepull) {
                pod.labelled
            } else {
                rolling && self.is_cold(pod)
            }
    }

    /// Whether another controller is about to delete this Pod.
    pub(super) fn gives_way(self, pod: &Pod, state: &PrePullState) -> bool {
        self.hosts.gives_way(self.now, pod, state, self.config)
    }

    /// Whether a living Pod is being started: it is idle and not warm, and nobody drains it.
    pub(super) fn is_cold(self, pod: &Pod) -> bool {
        let max_age = self.config.heartbeat_max_age;
        !pod.busy && !pod.operator_drain && !pod.is_warm(self.now, max_age)
    }

    /// How much of a pre-pull's cap is used, and of its fleet's cap.
    pub(super) fn used(self, id: &PrePullId) -> Used {
        let Some(state) = self.prepulls.get(id) else {
            return Used::default();
        };
        let fleet = state.prepull().fleet.as_ref();
        Used {
            fleet: fleet.and_then(|fleet| self.fleet_used(&fleet.name)),
            ..self.own_used(id, state)
        }
    }

    /// How much of a fleet's cap is used. `None` where no pre-pull of the fleet names a cap.
    fn fleet_used(self, name: &str) -> Option<FleetUsed> {
        let mine = || {
            self.prepulls.iter().filter_map(|(id, state)| {
                let fleet = state.prepull().fleet.as_ref()?;
                (fleet.name == name).then_some((id, state, fleet.most))
            })
        };
        let cap = mine().filter_map(|(_, _, most)| most).min()?;
        let in_flight = mine().map(|(id, state, _)| {
            let used = self.own_used(id, state);
            used.letter + used.reserved + used.giving_way + self.starting(state)
        });
        Some(FleetUsed {
            in_flight: in_flight.sum(),
            cap: cap.max(1),
        })
    }

    /// The number of Pods that are being started, beyond those that the pre-pull's own cap counts. Of one that doesn't
    /// roll, no Pod counts there, and of one that rolls, no stale one that isn't labelled.
    fn starting(self, state: &PrePullState) -> u32 {
        let rolling = self.is_rolling(state);
        let counts = |id: &PodId, pod: &Pod| {
            let goes = self.gives_way(pod, state) && !self.is_away(pod);
            let flies = self.is_in_flight(pod, state.prepull(), rolling);
            self.has_slot(id) || goes || flies
        };
        let pods = self.members(state);
        let cold = pods.filter(|(_, pod)| pod.is_alive() && self.is_cold(pod));
        count(cold.filter(|(id, pod)| !counts(id, pod)))
    }

    /// Whether a slot is taken for a Pod that is there.
    fn has_slot(self, id: &PodId) -> bool {
        self.slots.of(self.now, id).is_some_and(Occupant::is_alive)
    }

    /// Whether a Pod runs on a host that is away.
    fn is_away(self, pod: &Pod) -> bool {
        pod.is_alive() && pod.phase == Phase::Running && self.hosts.is_away(pod)
    }

    /// How much of a pre-pull's own cap is used.
    fn own_used(self, id: &PrePullId, state: &PrePullState) -> Used {
        let prepull = state.prepull();
        let rolling = self.is_rolling(state);
        let flying = |pod: &Pod| self.is_in_flight(pod, prepull, rolling);
        // a Pod that an operator drains takes no place while it is there, unless the gate let it go
        let counts_above = |id: &PodId, pod: &Pod| flying(pod) || self.has_slot(id);
        let is_away = |id: &PodId, pod: &Pod| {
            self.is_away(pod) && !pod.is_drained() && !counts_above(id, pod)
        };
        let goes = |id: &PodId, pod: &Pod| {
            let is_rest = !pod.is_drained() && !counts_above(id, pod) && !self.is_away(pod);
            is_rest && self.gives_way(pod, state)
        };
        let (mut hidden, mut successors) = (0, 0);
        let (mut departed, mut taken, mut overdue) = (0, 0, 0);
        for (pod, occupant) in self.slots.in_prepull(self.now, id) {
            match occupant {
                Occupant::Departed { since, left } => {
                    departed += usize::from(!matches!(left, Left::ByItself { .. }));
                    taken += usize::from(left == Left::Taken);
                    overdue += usize::from(
                        left == Left::Taken && self.now.since(since) >= self.config.replacement,
                    );
                }
                Occupant::Admitted { .. } | Occupant::Successor => {
                    let pod = self.pods.get(pod);
                    let is_successor = occupant == Occupant::Successor;
                    let rests = is_successor && pod.is_some_and(Pod::is_drained);
                    let hides = !rests && !pod.is_some_and(flying);
                    hidden += u32::from(hides);
                    successors += u32::from(hides && is_successor);
                }
            }
        }
        let (alive, letter) = (self.alive(id), self.members(state));
        // at most as many successors can come as the pre-pull lacks Pods
        let lacking = state.wanted(self.now).saturating_sub(alive);
        let at_most = |many: usize| u32::try_from(many.min(lacking)).unwrap_or(u32::MAX);
        Used {
            letter: count(letter.filter(|(_, pod)| flying(pod))),
            reserved: hidden + at_most(departed),
            awaited: successors + at_most(taken),
            missing: at_most(overdue),
            away: count(self.members(state).filter(|(id, pod)| is_away(id, pod))),
            giving_way: count(self.members(state).filter(|(id, pod)| goes(id, pod))),
            cap: self.cap(state, departed.min(lacking)),
            fleet: None,
        }
    }

    /// The most Pods of a pre-pull that may be in flight. `coming` successors count as there; Pods that an operator
    /// drains don't.
    fn cap(self, state: &PrePullState, coming: usize) -> u32 {
        let there = self.members(state);
        let there = there.filter(|(_, pod)| pod.is_alive() && !pod.is_drained());
        let members = i32::try_from(there.count() + coming).unwrap_or(i32::MAX);
        let prepull = state.prepull();
        cap(prepull.percent, prepull.replicas.min(members))
    }
}

fn count(pods: impl Iterator) -> u32 {
    u32::try_from(pods.count()).unwrap_or(u32::MAX)
}
