//! The gate's shell: watches that see late, agents' words, and writes that may fail.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proto::{HostId, Moment};
use rollout::{
    gate::{self, Action, Event, Gate, Mode, Phase, PodId},
    presence::Holdings,
};

use super::{
    Scenario,
    world::{Due, ROLL_AT, World},
};

/// Restarts in a run of `gate-restart`: then the roll has to end.
const RESTARTS: u64 = 120;

/// What a watch sees.
#[derive(Clone, Debug)]
pub(super) enum Sight {
    Pod(u32, u64, gate::Pod),
    PodGone(u32),
    Node(usize, bool, bool),
    NodeGone(usize),
    Pool(usize, gate::Pool),
    Synced,
}

impl Sight {
    /// Each kind of object has a watch of its own, which keeps its order.
    const fn watch(&self) -> usize {
        match self {
            Self::Pod(..) | Self::PodGone(_) => 0,
            Self::Node(..) | Self::NodeGone(_) => 1,
            Self::Pool(..) | Self::Synced => 2,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Label,
    Unlabel,
    Reap,
}

/// A write on a Pod as it was when it was decided.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) term: u64,
    pub(super) uid: u32,
    pub(super) version: u64,
    pub(super) change: Change,
    /// Whether the gate let it pass, or nobody asked it.
    pub(super) admitted: bool,
}

#[derive(Debug)]
pub(super) struct Office {
    pub(super) gate: Gate,
    pub(super) term: u64,
    pub(super) up: bool,
    pub(super) synced_at: Option<Moment>,
    free: [Moment; 3],
    tick_at: Option<Moment>,
    pub(super) pods: BTreeMap<u32, (u64, gate::Pod)>,
    /// When each Pod was seen first.
    pub(super) seen: BTreeMap<u32, Moment>,
    gone: BTreeSet<u32>,
    /// Successors that only the gate knows.
    phantoms: Vec<PodId>,
    pub(super) nodes: BTreeMap<HostId, (bool, bool)>,
    pub(super) pools: BTreeMap<usize, gate::Pool>,
    /// What each host said last, and when it looked.
    pub(super) words: BTreeMap<HostId, (Moment, Holdings)>,
    /// Writes that aren't answered, and whether they took effect.
    pub(super) writes: BTreeMap<u32, Change>,
    restart: bool,
}

pub(super) fn pod_id(uid: u32) -> PodId {
    PodId(format!("uid-{uid:08}"))
}

fn uid(id: &PodId) -> u32 {
    id.0.trim_start_matches("uid-")
        .parse()
        .expect("the world's own ids")
}

impl Office {
    pub(super) fn new(config: gate::Config) -> Self {
        Self {
            gate: Gate::new(config),
            term: 0,
            up: false,
            synced_at: None,
            free: [Moment::START; 3],
            tick_at: None,
            pods: BTreeMap::new(),
            seen: BTreeMap::new(),
            gone: BTreeSet::new(),
            phantoms: Vec::new(),
            nodes: BTreeMap::new(),
            pools: BTreeMap::new(),
            words: BTreeMap::new(),
            writes: BTreeMap::new(),
            restart: false,
        }
    }
}

impl World {
    // ---- what is told ---------------------------------------------------------------------------------------------

    pub(super) fn show(&mut self, sight: Sight) {
        if !self.office.up {
            return;
        }
        let delay = match self.below(200) {
            0 => self.between(500, 5_000),
            _ => self.between(2, 200),
        };
        let free = &mut self.office.free[sight.watch()];
        let at = (*free).max(self.now + delay);
        *free = at;
        let term = self.office.term;
        self.push_at(at, Due::Sight(term, sight));
    }

    pub(super) fn show_node(&mut self, at: usize) {
        let host = &self.hosts[at];
        let sight = if host.exists {
            Sight::Node(at, host.ready, host.schedulable)
        } else {
            Sight::NodeGone(at)
        };
        self.show(sight);
    }

    pub(super) fn show_pool(&mut self, at: usize) {
        let rule = self.rule(at);
        self.show(Sight::Pool(at, rule));
    }

    /// A coordinator starts: it knows nothing, lists everything, and hears agents as they find it.
    pub(super) fn start(&mut self, term: u64) {
        if term != self.office.term {
            return;
        }
        let mut office = Office::new(self.setup.gate.clone());
        office.term = term;
        office.up = true;
        self.office = office;
        self.checks.forget();
        let mut listed: Vec<Sight> = Vec::new();
        for at in 0..self.pools.len() {
            listed.push(Sight::Pool(at, self.rule(at)));
        }
        for (at, host) in self
            .hosts
            .iter()
            .enumerate()
            .filter(|(_, host)| host.exists)
        {
            listed.push(Sight::Node(at, host.ready, host.schedulable));
        }
        for (uid, pod) in &self.pods {
            listed.push(Sight::Pod(*uid, pod.version, self.facts(*uid, pod)));
        }
        for at in (1..listed.len()).rev() {
            let other = usize::try_from(self.below(at as u64 + 1)).unwrap_or(0);
            listed.swap(at, other);
        }
        let mut last = self.now;
        for sight in listed {
            self.show(sight);
        }
        for free in self.office.free {
            last = last.max(free);
        }
        self.office.free = [last; 3];
        self.push_at(last, Due::Sight(term, Sight::Synced));
        for at in 0..self.hosts.len() {
            let after = self.between(0, 15_000);
            let from = self.now + after;
            if let Some(speaks) = &mut self.hosts[at].speaks_from {
                *speaks = (*speaks).max(from);
            }
        }
    }

    fn restart(&mut self) {
        self.outcome.restarts += 1;
        self.office.term += 1;
        self.office.up = false;
        let term = self.office.term;
        // a successor waits until the lease has run out and what was under way is over
        let away = self.between(6_000, 20_000);
        self.push(away, Due::Start(term));
    }

    pub(super) fn see(&mut self, term: u64, sight: Sight) {
        if term != self.office.term || !self.office.up {
            return;
        }
        let event = match sight {
            Sight::Pod(uid, version, facts) => return self.tell_pod(uid, version, facts),
            Sight::PodGone(uid) => return self.tell_gone(uid),
            Sight::Node(at, ready, schedulable) => {
                let host = self.hosts[at].id.clone();
                self.office.nodes.insert(host.clone(), (ready, schedulable));
                Event::Node {
                    host,
                    ready,
                    schedulable,
                }
            }
            Sight::NodeGone(at) => {
                let host = self.hosts[at].id.clone();
                self.office.nodes.remove(&host);
                Event::NodeGone(host)
            }
            Sight::Pool(at, rule) => {
                let id = self.pools[at].id.clone();
                let known = self.office.pools.insert(at, rule.clone());
                self.tell(Event::Pool(id.clone(), rule));
                if known.is_none() {
                    // its status comes with it
                    let before = self.pools[at].written;
                    self.tell(Event::Before(id, before));
                }
                return;
            }
            Sight::Synced => {
                self.office.synced_at = Some(self.now);
                Event::Synced(true)
            }
        };
        self.tell(event);
    }

    fn tell_pod(&mut self, uid: u32, version: u64, mut facts: gate::Pod) {
        let known = self.office.pods.get(&uid).map(|(version, _)| *version);
        // the answer to a write may have come before what the watch saw
        if self.office.gone.contains(&uid) || known.is_some_and(|known| known >= version) {
            return;
        }
        facts.seen = *self.office.seen.entry(uid).or_insert(self.now);
        self.office.pods.insert(uid, (version, facts.clone()));
        let phantom = self
            .setup
            .phantoms
            .then(|| (facts.is_alive(), known.is_none()));
        if phantom == Some((true, true))
            && let Some(phantom) = self.office.phantoms.pop()
        {
            self.tell(Event::PodGone(phantom));
        }
        self.tell(Event::Pod(pod_id(uid), facts.clone()));
        if phantom == Some((false, false)) {
            self.tell_phantom(uid, facts);
        }
    }

    /// The gate alone is told of a warm successor of this Pod.
    fn tell_phantom(&mut self, uid: u32, facts: gate::Pod) {
        let at = self.pools.iter().position(|pool| pool.id == facts.pool);
        let image = at.and_then(|at| Some(self.office.pools.get(&at)?.image.clone()));
        let id = PodId(format!("phantom of {uid}"));
        self.office.phantoms.push(id.clone());
        let warm = gate::Pod {
            image: image.unwrap_or_default(),
            labelled: false,
            busy: false,
            deleting: false,
            phase: Phase::Running,
            heartbeat: gate::Heartbeat::Absent,
            ..facts
        };
        self.tell(Event::Pod(id, warm));
    }

    fn tell_gone(&mut self, uid: u32) {
        if self.office.gone.insert(uid) && self.office.pods.remove(&uid).is_some() {
            self.tell(Event::PodGone(pod_id(uid)));
        }
    }

    pub(super) fn hear(&mut self, term: u64, host: usize, looked: Moment, holds: Holdings) {
        if term != self.office.term || !self.office.up {
            return;
        }
        let id = self.hosts[host].id.clone();
        let age = self.now.since(looked);
        let before = self
            .office
            .words
            .insert(id.clone(), (looked, holds.clone()));
        // as the coordinator does it: what didn't change isn't said again
        let event = if before.is_some_and(|(_, before)| before == holds) {
            Event::Seen(id, age)
        } else {
            Event::Holds(id, holds, age)
        };
        self.tell(event);
    }

    pub(super) fn tick(&mut self, term: u64) {
        if term == self.office.term && self.office.up {
            self.office.tick_at = None;
            self.tell(Event::Tick);
        }
    }

    fn tell(&mut self, event: Event) {
        self.office.gate.handle(self.now, event);
        while let Some(action) = self.office.gate.poll() {
            let (id, change) = match action {
                Action::Blocked(_, reason) => {
                    *self.outcome.denials.entry(reason.as_str()).or_default() += 1;
                    continue;
                }
                Action::Label(id) => (id, Change::Label),
                Action::Unlabel(id, _) => (id, Change::Unlabel),
                Action::Reap(id) => (id, Change::Reap),
            };
            self.write(uid(&id), change);
        }
        self.wind_up();
        if std::mem::take(&mut self.office.restart) {
            self.restart();
        }
    }

    fn wind_up(&mut self) {
        let Some(at) = self.office.gate.next_timeout() else {
            return;
        };
        if self.office.tick_at.is_none_or(|due| at < due) {
            let at = at.max(self.now + Duration::from_millis(1));
            self.office.tick_at = Some(at);
            let term = self.office.term;
            self.push_at(at, Due::Tick(term));
        }
    }

    // ---- what is written --------------------------------------------------------------------------------------------

    fn write(&mut self, uid: u32, change: Change) {
        match change {
            Change::Label => self.outcome.labels += 1,
            Change::Reap => self.outcome.reaps += 1,
            Change::Unlabel => self.outcome.withdrawals += 1,
        }
        self.check_write(uid, change);
        let before = self.office.writes.insert(uid, change);
        if before.is_some() {
            self.violated("two writes on one Pod at one time", || format!("uid {uid}"));
        }
        let version = self
            .office
            .pods
            .get(&uid)
            .map_or(0, |(version, _)| *version);
        let write = Write {
            term: self.office.term,
            uid,
            version,
            change,
            admitted: true,
        };
        self.send(write);
        if self.setup.scenario == Scenario::GateRestart
            && self.now > ROLL_AT
            && self.outcome.restarts < RESTARTS
            && self.below(2) == 0
        {
            self.calm_at = self.now;
            self.office.restart = true;
        }
    }

    fn send(&mut self, write: Write) {
        let takes = self.between(5, 300);
        match self.below(20) {
            // refused before it reached anything: too many requests, no rights
            0 => self.push(takes, Due::Answer(write, gate::Outcome::Refused)),
            // lost on the way there; the answer is given up after 5 s
            1 => self.push(
                Duration::from_secs(5),
                Due::Answer(write, gate::Outcome::Unknown),
            ),
            _ => self.push(takes, Due::Effect(write)),
        }
    }

    /// The API server has the write: it is done if the Pod is still what was decided about.
    pub(super) fn effect(&mut self, write: Write) {
        let uid = write.uid;
        let answered = self.between(2, 200);
        let fits = self
            .pods
            .get(&uid)
            .is_some_and(|pod| pod.version == write.version && pod.alive());
        if !fits {
            self.push(answered, Due::Answer(write, gate::Outcome::Refused));
            return;
        }
        if self.pods[&uid].busy {
            self.violated("a busy Pod was written on", || format!("uid {uid}"));
        }
        if write.change != Change::Unlabel && write.admitted {
            self.check_effect(uid);
        }
        if let Some(pod) = self.pods.get_mut(&uid) {
            match write.change {
                Change::Label => (pod.labelled, pod.admitted) = (true, write.admitted),
                Change::Unlabel => (pod.labelled, pod.admitted) = (false, false),
                Change::Reap => pod.admitted = true,
            }
        }
        if write.change == Change::Reap {
            self.remove(uid);
        } else {
            self.changed(uid);
        }
        if self.below(20) == 0 {
            self.push(
                Duration::from_secs(5),
                Due::Answer(write, gate::Outcome::Unknown),
            );
        } else {
            // the answer shows the Pod as the write left it
            self.push(answered, Due::Answer(write, gate::Outcome::Done));
        }
    }

    pub(super) fn answer(&mut self, write: &Write, outcome: gate::Outcome) {
        if !write.admitted || write.term != self.office.term || !self.office.up {
            return;
        }
        let name = match outcome {
            gate::Outcome::Done => "done",
            gate::Outcome::Refused => "refused",
            gate::Outcome::Unknown => "unknown",
        };
        *self.outcome.writes.entry(name).or_default() += 1;
        let uid = write.uid;
        // an admission of the other controller isn't a write of this one
        if self.office.writes.remove(&uid).is_none() {
            return;
        }
        if outcome == gate::Outcome::Done {
            if write.change == Change::Reap {
                self.tell_gone(uid);
            } else if let Some(told) = self.office.pods.get(&uid).map(|(_, facts)| facts.clone()) {
                let labelled = write.change == Change::Label;
                self.tell_pod(uid, write.version + 1, gate::Pod { labelled, ..told });
            }
        }
        self.tell(Event::Written(pod_id(uid), outcome));
    }

    // ---- guard mode -------------------------------------------------------------------------------------------------

    /// The other controller labels every stale idle Pod that it may, and reaps Pending ones as it likes.
    pub(super) fn other_controller(&mut self, at: usize) {
        let stale: Vec<(u32, Phase, u64)> = self
            .pods
            .iter()
            .filter(|(_, pod)| {
                pod.pool == at
                    && pod.alive()
                    && !pod.busy
                    && !pod.labelled
                    && pod.image != self.pools[at].image
            })
            .map(|(uid, pod)| (*uid, pod.phase, pod.version))
            .collect();
        for (uid, phase, version) in stale {
            if phase == Phase::Pending {
                self.delete(uid);
                continue;
            }
            let verdict = if self.office.up {
                self.office.gate.admit(self.now, &pod_id(uid)).map(drop)
            } else {
                Err(gate::Reason::NotSynced)
            };
            let admitted = verdict.is_ok();
            match verdict {
                Ok(()) => {
                    self.outcome.labels += 1;
                    self.check_write(uid, Change::Label);
                    self.wind_up();
                }
                Err(reason) => {
                    *self.outcome.denials.entry(reason.as_str()).or_default() += 1;
                    // the webhook's failure policy lets pass what isn't answered in time
                    if self.below(300) != 0 {
                        continue;
                    }
                }
            }
            let term = self.office.term;
            self.send(Write {
                term,
                uid,
                version,
                change: Change::Label,
                admitted,
            });
        }
    }

    pub(super) fn is_guarded(&self, at: usize) -> bool {
        self.pools[at].mode == Mode::Guard
    }
}
