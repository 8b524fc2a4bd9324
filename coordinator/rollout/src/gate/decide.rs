//! The gate: its parts, its events, and the one rule by which Pods drain.
//!
//! `hosts` knows which hosts take Pods and hold which images. `prepull` knows how many Pods a pre-pull is taken to
//! want. `slots` keeps the room under caps that no Pod shows. `writes` keeps the writes that were asked for or refused.

use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    vec::Vec,
};
use core::time::Duration;

use proto::{HostId, Moment};

use super::{
    Action, Admission, Config, Event, Mode, Outcome, Phase, Place, Pod, PodId, PodStatus,
    PoolStatus, PrePull, PrePullId, Reason, Template, Verdict, Withdrawal,
    budget::{Budget, FleetUsed, Used, cap},
    hosts::Hosts,
    prepull::PrePullState,
    slots::{Left, Occupant, Slots},
    writes::{Write, Writes},
};
use crate::presence::Held;

/// The interval of looks at ages and slots while a pre-pull rolls.
const TICK: Duration = Duration::from_secs(1);

/// Decides which Pods may drain.
#[derive(Clone, Debug)]
pub struct Gate {
    config: Config,
    now: Moment,
    /// Since when everything in the cluster is known; `None` while it isn't.
    synced: Option<Moment>,
    hosts: Hosts,
    prepulls: BTreeMap<PrePullId, PrePullState>,
    pods: BTreeMap<PodId, Pod>,
    slots: Slots,
    writes: Writes,
    told: BTreeMap<PodId, proto::Reason>,
    dirty: BTreeSet<PrePullId>,
    actions: VecDeque<Action>,
    tick_at: Moment,
}

impl Gate {
    /// A gate that knows nothing and admits nothing.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            now: Moment::START,
            synced: None,
            hosts: Hosts::default(),
            prepulls: BTreeMap::new(),
            pods: BTreeMap::new(),
            slots: Slots::default(),
            writes: Writes::default(),
            told: BTreeMap::new(),
            dirty: BTreeSet::new(),
            actions: VecDeque::new(),
            tick_at: Moment::START,
        }
    }

    /// Applies an event. Any event is legal in any state. `now` shouldn't go back; where it does, the latest moment
    /// seen counts.
    pub fn handle(&mut self, now: Moment, event: Event) {
        self.now = self.now.max(now);
        match event {
            Event::Synced(true) => {
                if self.synced.is_none() {
                    self.synced = Some(self.now);
                    let prepulls: Vec<PrePullId> = self.prepulls.keys().cloned().collect();
                    for id in prepulls {
                        self.keep_slots_of_before(&id);
                    }
                    self.all_dirty();
                }
            }
            Event::Synced(false) => self.synced = None,
            Event::PrePull(id, prepull) => self.set_prepull(id, prepull),
            Event::Before(id, before) => {
                if let Some(state) = self.prepulls.get_mut(&id) {
                    state.remember(self.now, before);
                }
                if self.synced.is_some() {
                    self.keep_slots_of_before(&id);
                }
            }
            Event::PrePullGone(id) => self.drop_prepull(&id),
            Event::Pod(id, pod) => self.set_pod(id, pod),
            Event::PodGone(id) => self.drop_pod(&id),
            Event::Node { host, ready, takes } => {
                self.hosts.set_node(self.now, host, ready, takes);
                self.all_dirty();
            }
            Event::NodeGone(host) => {
                self.hosts.drop_node(&host);
                self.all_dirty();
            }
            Event::Holds(host, holdings, age) => {
                self.hosts.report(self.now - age, host, holdings);
                self.all_dirty();
            }
            Event::Seen(host, age) => {
                let age = self.hosts.seen(self.now - age, &host);
                if age.is_some_and(|age| age > self.config.presence_max_age) {
                    self.all_dirty();
                }
            }
            Event::Written(pod, outcome) => self.written(&pod, outcome),
            Event::Tick => {}
        }
        if self.tick_at <= self.now {
            self.tick_at = self.now + TICK;
            let now = self.now;
            let held = now + self.config.replacement;
            for (pod, _) in self.pods.iter().filter(|(_, pod)| pod.is_terminating()) {
                self.slots.hold(pod, now, held);
            }
            self.slots.tick(now);
            let prepulls: Vec<PrePullId> = self.prepulls.keys().cloned().collect();
            for id in prepulls {
                self.settle(&id);
            }
            self.writes.tick(now, &self.config);
            self.all_dirty();
        }
        self.dirty_fleets();
        for id in core::mem::take(&mut self.dirty) {
            self.act(&id);
        }
    }

    /// The next action for the shell. Call this until it returns `None`, after every [`handle`](Self::handle).
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Event::Tick`] is due, if no other event comes before.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Moment> {
        let waits = !self.slots.is_empty()
            || self.writes.any_refused()
            || self.pods.values().any(|pod| {
                pod.is_alive()
                    && self
                        .prepulls
                        .get(&pod.prepull)
                        .is_some_and(|state| pod.labelled || pod.is_stale(state.prepull()))
            });
        waits.then_some(self.tick_at)
    }

    /// Decides whether this Pod may drain now. If so, takes a slot under the cap until the label shows, or for
    /// [`Config::slot`].
    ///
    /// # Errors
    /// The reason why the Pod may not drain.
    pub fn admit(&mut self, now: Moment, pod: &PodId) -> Result<Admission, Reason> {
        self.now = self.now.max(now);
        let admission = self.check(pod, None)?;
        self.take_slot(pod);
        Ok(admission)
    }

    /// The answer that [`admit`](Self::admit) would give at the last handled moment. Takes no slot.
    #[must_use]
    pub fn explain(&self, pod: &PodId) -> Verdict {
        match self.check(pod, None) {
            Ok(admission) => Verdict::Open(admission),
            Err(reason) => Verdict::Blocked(reason),
        }
    }

    /// The state of a pre-pull; `None` for an unknown pre-pull.
    #[must_use]
    pub fn status(&self, id: &PrePullId) -> Option<PoolStatus> {
        let state = self.prepulls.get(id)?;
        let prepull = state.prepull();
        let used = self.used(id);
        let mut status = PoolStatus {
            alive: 0,
            stale: 0,
            labelled: 0,
            warm: 0,
            in_flight: used.letter,
            reserved: used.reserved,
            awaited: used.awaited,
            missing: used.missing,
            away: used.away,
            giving_way: used.giving_way,
            lag: state.lag(self.now),
            cap: used.cap,
            hosts_usable: 0,
            hosts_ready: 0,
            oldest_pending_unix_s: None,
            pods: Vec::new(),
        };
        let ready = self.hosts.ready(self.now, prepull, &self.config);
        (status.hosts_ready, status.hosts_usable) = (ready.have, ready.usable);
        let rolling = self.budget().is_rolling(state);
        for (id, pod) in self.budget().oldest_first(state) {
            if !pod.is_alive() {
                continue;
            }
            let stale = pod.is_stale(prepull);
            status.alive += 1;
            status.stale += u32::from(stale);
            status.labelled += u32::from(pod.labelled);
            status.warm += u32::from(pod.serves(self.now, self.config.heartbeat_max_age));
            if pod.phase == Phase::Pending && status.oldest_pending_unix_s.is_none() {
                status.oldest_pending_unix_s = Some(pod.created_unix_s);
            }
            let verdict = match self.check(id, Some(used)) {
                Ok(admission) => Verdict::Open(admission),
                Err(reason) => Verdict::Blocked(reason),
            };
            status.pods.push(PodStatus {
                pod: id.clone(),
                host: match &pod.place {
                    Place::On(host) => Some(host.clone()),
                    Place::Unscheduled | Place::Elsewhere => None,
                },
                stale,
                in_flight: self.budget().is_in_flight(pod, prepull, rolling),
                verdict,
            });
        }
        Some(status)
    }

    /// Whether a pre-pull has stale Pods that are alive.
    #[must_use]
    pub fn rolls(&self, id: &PrePullId) -> bool {
        self.prepulls
            .get(id)
            .is_some_and(|state| self.budget().is_rolling(state))
    }

    /// What is known of a pre-pull's image on a host.
    #[must_use]
    pub fn presence(&self, prepull: &PrePullId, host: &HostId) -> Option<Held> {
        let state = self.prepulls.get(prepull)?;
        self.hosts
            .presence(self.now, state.prepull(), host, &self.config)
    }

    // ---- what is known ------------------------------------------------------------------------------------------

    fn all_dirty(&mut self) {
        self.dirty.extend(self.prepulls.keys().cloned());
    }

    /// Where a pre-pull changed, the others of its fleet may have got room.
    fn dirty_fleets(&mut self) {
        let fleet = |state: &PrePullState| Some(state.prepull().fleet.as_ref()?.name.clone());
        let of = |id: &PrePullId| fleet(self.prepulls.get(id)?);
        let fleets: BTreeSet<_> = self.dirty.iter().filter_map(of).collect();
        if fleets.is_empty() {
            return;
        }
        let mine = self.prepulls.iter().filter(|(_, state)| {
            let fleet = state.prepull().fleet.as_ref();
            fleet.is_some_and(|fleet| fleets.contains(&fleet.name))
        });
        self.dirty.extend(mine.map(|(id, _)| id.clone()));
    }

    fn set_prepull(&mut self, id: PrePullId, prepull: PrePull) {
        let now = self.now;
        self.dirty.insert(id.clone());
        if let Some(state) = self.prepulls.get_mut(&id) {
            state.set(now, prepull);
            self.settle(&id);
            return;
        }
        // the pre-pull's Pods may have been told before the pre-pull
        let of_it = || self.pods.iter().filter(|(_, pod)| pod.prepull == id);
        let pods = of_it().map(|(pod, _)| pod.clone()).collect();
        let alive = of_it().filter(|(_, pod)| pod.is_alive()).count();
        let state = PrePullState::new(now, prepull, pods, alive);
        self.prepulls.insert(id.clone(), state);
        if self.synced.is_some() {
            self.keep_slots_of_before(&id);
        }
    }

    fn drop_prepull(&mut self, id: &PrePullId) {
        if let Some(state) = self.prepulls.remove(id) {
            for pod in state.pods() {
                self.told.remove(pod);
                self.writes.forget_refusals(pod);
            }
        }
        self.slots.drop_prepull(id);
    }

    fn set_pod(&mut self, id: PodId, pod: Pod) {
        if self
            .pods
            .get(&id)
            .is_some_and(|before| before.prepull != pod.prepull)
        {
            self.drop_pod(&id);
        }
        let leaves = self.leaves(&id, pod.is_terminating());
        let known = self.pods.contains_key(&id);
        let (alive, prepull) = (pod.is_alive(), pod.prepull.clone());
        let serves = pod.serves(self.now, self.config.heartbeat_max_age);
        let came = pod.clone();
        self.pods.insert(id.clone(), pod);
        if let Some(state) = self.prepulls.get_mut(&prepull) {
            state.add_pod(id.clone());
        }
        if alive && !known {
            self.came(&id, &came, serves);
        }
        if alive && serves {
            self.slots.warm(&id);
        }
        if !alive && let Some(occupant) = leaves {
            self.slots.depart(&id, &prepull, occupant);
        }
        if !known && came.is_terminating() {
            // the Pod was deleted before the gate knew of it
            let left = Left::InFlight {
                until: self.now + self.config.replacement,
            };
            let since = self.now;
            self.slots
                .depart(&id, &prepull, Occupant::Departed { since, left });
        }
        self.settle(&prepull);
        self.dirty.insert(prepull);
    }

    /// Handles a Pod that wasn't known before.
    fn came(&mut self, id: &PodId, pod: &Pod, serves: bool) {
        if self.slots.succeed(self.now, &pod.prepull) && !serves {
            self.slots.await_warm(id, &pod.prepull);
        }
        let alive = self.alive(&pod.prepull);
        if let Some(state) = self.prepulls.get_mut(&pod.prepull) {
            state.grew(alive);
            state.came(self.now, self.synced, &self.config, id, pod);
        }
    }

    fn drop_pod(&mut self, id: &PodId) {
        let leaves = self.leaves(id, false);
        let Some(pod) = self.pods.remove(id) else {
            return;
        };
        if let Some(state) = self.prepulls.get_mut(&pod.prepull) {
            state.drop_pod(id);
        }
        self.told.remove(id);
        self.writes.forget_refusals(id);
        if let Some(occupant) = leaves {
            self.slots.depart(id, &pod.prepull, occupant);
        }
        self.settle(&pod.prepull);
        self.dirty.insert(pod.prepull);
    }

    /// The slot that this Pod leaves if it goes now: its successor will take its room, but isn't there yet. `deleted`
    /// says that somebody deletes the Pod before it has ended, outside of our cap.
    fn leaves(&self, id: &PodId, deleted: bool) -> Option<Occupant> {
        let pod = self.pods.get(id)?;
        let state = self.prepulls.get(&pod.prepull)?;
        let taken = self.slots.of(self.now, id).is_some_and(Occupant::is_alive)
            || (pod.is_alive() && pod.labelled && pod.is_stale(state.prepull()));
        let until = self.now + self.config.replacement;
        let left = match () {
            () if taken => Left::Taken,
            () if !pod.is_alive() => return None,
            () if deleted
                || self.budget().is_in_flight(
                    pod,
                    state.prepull(),
                    self.budget().is_rolling(state),
                ) =>
            {
                Left::InFlight { until }
            }
            () if self.budget().gives_way(pod, state) => Left::InFlight { until },
            () => Left::ByItself { until },
        };
        Some(Occupant::Departed {
            since: self.now,
            left,
        })
    }

    /// Frees the slots of Pods that left, once a pre-pull has all Pods that it shall have.
    fn settle(&mut self, id: &PrePullId) {
        let alive = self.alive(id);
        if let Some(state) = self.prepulls.get_mut(id)
            && state.is_whole(self.now, alive)
        {
            self.slots.forgive(id);
        }
    }

    /// Keeps slots for Pods that left before the gate knew everything. Nobody knows how many of those were in flight.
    /// Where a pre-pull rolls and lacks Pods, their successors may be on their way, so as many slots are kept for a
    /// while. Slots that an earlier coordinator recorded are kept until the successors are there.
    fn keep_slots_of_before(&mut self, id: &PrePullId) {
        let Some(state) = self.prepulls.get_mut(id) else {
            return;
        };
        let before = state.take_before();
        let Some(state) = self
            .prepulls
            .get(id)
            .filter(|state| self.budget().is_rolling(state))
        else {
            return;
        };
        let as_usize = |many: u32| usize::try_from(many).unwrap_or(usize::MAX);
        let lacking = state.wanted(self.now).saturating_sub(self.alive(id));
        let known = as_usize(before.awaited).min(lacking);
        let cap = as_usize(cap(state.prepull().percent, state.prepull().replicas));
        // The other recorded successors are there and were made from another image than the pre-pull's. Those made from
        // the pre-pull's image count as in flight anyway.
        let mut cold: Vec<(i64, PodId)> = self
            .budget()
            .members(state)
            .filter(|(_, pod)| {
                pod.is_alive()
                    && pod.is_stale(state.prepull())
                    && !pod.labelled
                    && !pod.serves(self.now, self.config.heartbeat_max_age)
            })
            .map(|(id, pod)| (pod.created_unix_s, id.clone()))
            .collect();
        cold.sort_unstable_by(|a, b| b.cmp(a));
        for at in 0..known.max(lacking.min(cap)) {
            // no Pod's uid looks like this
            let left = PodId(alloc::format!("left before {}: {at}", id.0));
            let occupant = Occupant::Departed {
                since: self.now,
                left: match at < known {
                    true => Left::Taken,
                    false => Left::InFlight {
                        until: self.now + self.config.replacement,
                    },
                },
            };
            self.slots.depart(&left, id, occupant);
        }
        for (_, pod) in cold.iter().take(as_usize(before.awaited) - known) {
            self.slots.await_warm(pod, id);
        }
    }

    fn written(&mut self, id: &PodId, outcome: Outcome) {
        // the answer to a withdrawal doesn't free the label's slot: the Pod may be leaving
        let withdrawal = self.writes.answered(id, outcome) == Some(Write::Withdrawal);
        match outcome {
            _ if withdrawal => {}
            Outcome::Refused => self.slots.refuse(self.now, id),
            // a write without an answer may have been done; the Pod's state will show that before the slot ends
            Outcome::Done | Outcome::Unknown => {
                self.slots.prolong(id, self.now + self.config.slot);
            }
        }
        if outcome != Outcome::Done && self.pods.contains_key(id) {
            self.writes.refused(self.now, id, &self.config);
        }
        if let Some(pod) = self.pods.get(id) {
            self.dirty.insert(pod.prepull.clone());
        }
    }

    // ---- the budget ---------------------------------------------------------------------------------------------

    const fn budget(&self) -> Budget<'_> {
        Budget {
            now: self.now,
            config: &self.config,
            hosts: &self.hosts,
            prepulls: &self.prepulls,
            pods: &self.pods,
            slots: &self.slots,
        }
    }

    fn alive(&self, id: &PrePullId) -> usize {
        self.budget().alive(id)
    }

    fn used(&self, id: &PrePullId) -> Used {
        self.budget().used(id)
    }

    fn take_slot(&mut self, id: &PodId) {
        if let Some(pod) = self.pods.get(id) {
            let until = self.now + self.config.slot;
            self.slots.admit(self.now, id, &pod.prepull, until);
        }
    }

    // ---- the rule -----------------------------------------------------------------------------------------------

    /// The one rule. `used` is how much of the pre-pull's cap is used, where the caller knows that.
    fn check(&self, id: &PodId, used: Option<Used>) -> Result<Admission, Reason> {
        let pod = self.pods.get(id).ok_or(Reason::NotGated)?;
        let state = self.prepulls.get(&pod.prepull).ok_or(Reason::NotGated)?;
        let prepull = state.prepull();
        if prepull.mode == Mode::Off {
            return Err(Reason::NotGated);
        }
        if self.synced.is_none() {
            return Err(Reason::NotSynced);
        }
        if !pod.is_alive() {
            return Err(Reason::NotAlive);
        }
        if !pod.is_stale(prepull) {
            return Err(Reason::Current);
        }
        if pod.busy {
            return Err(Reason::Busy);
        }
        if pod.labelled {
            return Err(Reason::AlreadyLabelled);
        }
        if pod.operator_drain {
            return Err(Reason::OperatorDrain);
        }
        let slot = self
            .slots
            .of(self.now, id)
            .filter(|occupant| occupant.is_alive());
        let admitted = matches!(slot, Some(Occupant::Admitted { .. }));
        // a caller that asks again about an admitted Pod lost the answer, or another write came first
        if self.writes.is_asked(id) || (admitted && prepull.mode == Mode::Own) {
            return Err(Reason::Admitted);
        }
        let admission = match (pod.phase, prepull.mode) {
            (Phase::Running, _) => Admission::Label,
            (Phase::Pending, Mode::Own) => Admission::Reap,
            _ => return Err(Reason::NotRunning),
        };
        if prepull.paused {
            return Err(Reason::Paused);
        }
        if prepull.template == Template::Unread {
            return Err(Reason::OwnerUnread);
        }
        if state.lags(self.now) {
            return Err(Reason::OwnerLags);
        }
        if self.writes.waits(self.now, id) {
            return Err(Reason::RetryWaits);
        }
        self.hosts.check(self.now, pod, prepull, &self.config)?;
        let used = used.unwrap_or_else(|| self.used(&pod.prepull));
        let cap = used.cap;
        let others = used.letter + used.reserved + used.away + used.giving_way;
        // the Pod's own slot doesn't count against it
        let own = u32::from(slot.is_some());
        let in_flight = others - own.min(others);
        if in_flight >= cap {
            let missing = used.missing;
            return Err(
                match missing > 0 && in_flight.saturating_sub(missing) < cap {
                    true => Reason::NoSuccessor { missing, cap },
                    false => Reason::CapReached {
                        in_flight,
                        away: used.away,
                        giving_way: used.giving_way,
                        cap,
                    },
                },
            );
        }
        // where the Pod counts for its fleet itself, its successor takes that place, and no further one
        let counts = slot.is_some() || self.budget().is_cold(pod);
        if let Some(FleetUsed { in_flight, cap }) = used.fleet
            && in_flight >= cap
            && !counts
        {
            return Err(Reason::FleetCapReached { in_flight, cap });
        }
        Ok(admission)
    }

    /// The reason why this labelled Pod of an owned pre-pull must lose its label, if there is one.
    fn withdrawal(&self, pod: &Pod, state: &PrePullState) -> Option<Withdrawal> {
        let prepull = state.prepull();
        if !pod.is_stale(prepull) {
            return Some(Withdrawal::Current);
        }
        if prepull.proceeds(self.now) {
            return None;
        }
        // the image may be known on a host only later, after a start or a change of the image: that is no loss yet
        let since = self.synced?.max(state.changed_at());
        let waited = self.now.since(since) > self.config.presence_max_age;
        let lost = match &pod.place {
            Place::On(host) => match self.hosts.presence(self.now, prepull, host, &self.config) {
                Some(Held::Fresh) => false,
                Some(Held::Missing | Held::Old(_)) => true,
                Some(Held::Unheard) | None => waited,
            },
            Place::Unscheduled | Place::Elsewhere => waited,
        };
        lost.then_some(Withdrawal::PresenceLost)
    }

    // ---- the owner's work ---------------------------------------------------------------------------------------

    fn act(&mut self, id: &PrePullId) {
        if self.synced.is_none() {
            return;
        }
        let Some(state) = self.prepulls.get(id) else {
            return;
        };
        let mode = state.prepull().mode;
        if mode == Mode::Off {
            return;
        }
        let mut actions = Vec::new();
        if mode == Mode::Own {
            for (pod, facts) in self.budget().members(state) {
                if facts.labelled
                    && facts.is_alive()
                    && !facts.busy
                    && !self.writes.is_asked(pod)
                    && !self.writes.waits(self.now, pod)
                    && let Some(why) = self.withdrawal(facts, state)
                {
                    actions.push(Action::Unlabel(pod.clone(), why));
                }
            }
        }
        // Pending Pods first, because they serve nobody (tuist/tuist of autumn 2026,
        // infra/runners-controller/controllers/runnerpool_controller.go: Reconcile)
        let mut order: Vec<(bool, PodId)> = self
            .budget()
            .oldest_first(state)
            .into_iter()
            .filter(|(_, pod)| pod.is_stale(state.prepull()))
            .map(|(id, pod)| (pod.phase != Phase::Pending, id.clone()))
            .collect();
        order.sort_by_key(|(later, _)| *later);
        for action in actions {
            if let Action::Unlabel(pod, _) = &action {
                self.writes.ask(pod, Write::Withdrawal);
            }
            self.actions.push_back(action);
        }
        let mut used = self.used(id);
        for (_, pod) in order {
            match self.check(&pod, Some(used)) {
                Ok(admission) if mode == Mode::Own => {
                    self.take_slot(&pod);
                    used = self.used(id);
                    self.writes.ask(&pod, Write::Admission);
                    self.told.remove(&pod);
                    self.actions.push_back(match admission {
                        Admission::Label => Action::Label(pod),
                        Admission::Reap => Action::Reap(pod),
                    });
                }
                Ok(_)
                | Err(
                    Reason::Admitted
                    | Reason::AlreadyLabelled
                    | Reason::OperatorDrain
                    | Reason::Busy
                    | Reason::NotAlive,
                ) => {
                    self.told.remove(&pod);
                }
                Err(reason) => {
                    if self.told.insert(pod.clone(), reason.shown()) != Some(reason.shown()) {
                        self.actions.push_back(Action::Blocked(pod, reason));
                    }
                }
            }
        }
    }
}
