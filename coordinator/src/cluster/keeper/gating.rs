//! The gate, and the facts of the cluster that the gate was told: which ImagePrePulls gate, in which order, and which
//! Pods each one gates. The gate itself decides; this file passes facts in and decisions out.

use std::collections::BTreeMap;

use proto::HostId;
use rollout::{
    gate::{self, Gate},
    presence,
};

use super::{
    owners::Owners,
    resolving::Resolving,
    starts::{Start, Starts},
};
use crate::cluster::{
    clock::Now,
    crd::{DRAIN_LABEL, GateMode},
    index::{Index, ObjectKey, is_labelled},
    prepull_gate::{PrePullGate, gates},
    review::Change,
    write::{PodWrite, Target},
};

/// The gate, and the facts that it was told.
pub(super) struct Gating {
    gate: Gate,
    /// The gates of ImagePrePulls. Where several gates select a Pod, the first counts.
    gates: Vec<PrePullGate>,
    /// The Pods that the gate was told of, by key and by id.
    told: BTreeMap<ObjectKey, gate::PodId>,
    keys: BTreeMap<gate::PodId, ObjectKey>,
    starts: Starts,
}

/// The consequences of an event that the gate was told.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// ImagePrePulls that don't gate any more.
    pub(super) gone: Vec<ObjectKey>,
    /// Pods that came to run.
    pub(super) started: Vec<Start>,
    /// A Pod has an owner that nobody has asked yet. The gate is to be told the ImagePrePulls anew.
    pub(super) owner_came: bool,
    /// An owner's template is to be read at once.
    pub(super) unread: bool,
}

/// A step that the gate wants carried out.
#[derive(Debug)]
pub(super) enum Step {
    /// A write on a Pod.
    Write(Order),
    /// The gate wants a write on a Pod that is gone by now.
    Gone(gate::PodId),
    /// Nothing is written: the gate only reports why a Pod is blocked.
    Blocked {
        pod: ObjectKey,
        prepull: ObjectKey,
        reason: gate::Reason,
    },
}

/// A write on a Pod that the gate decided.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) id: gate::PodId,
    pub(super) target: Target,
    pub(super) write: PodWrite,
    /// The reason for taking a label back.
    pub(super) why: Option<gate::Withdrawal>,
}

/// Why a label is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: gate::Reason,
    /// The Pod's node.
    pub(super) node: Option<String>,
    /// The ImagePrePull whose gate refused. `None` where no gate was asked.
    pub(super) prepull: Option<ObjectKey>,
}

/// The answer to whether a Pod shall leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drain {
    /// The Pod is stale and carries the drain label.
    Leave,
    /// The Pod isn't stale, or doesn't carry the drain label.
    Stay,
    /// There is no such Pod.
    NoSuchPod,
    /// The cluster isn't known yet.
    Unknown,
}

impl Default for Gating {
    fn default() -> Self {
        Self {
            gate: Gate::new(gate::Config::default()),
            gates: Vec::new(),
            told: BTreeMap::new(),
            keys: BTreeMap::new(),
            starts: Starts::default(),
        }
    }
}

impl Gating {
    // ---- telling the gate ----------------------------------------------------------------------------------------

    /// Passes an event to the gate. The event is about no single Pod and no single ImagePrePull, or reports the end of
    /// a write.
    pub(super) fn tell(&mut self, now: Now, event: gate::Event) {
        self.gate.handle(now.moment(), event);
    }

    /// Tells the gate that a Node changed or is gone.
    pub(super) fn tell_node(&mut self, now: Now, index: &Index, name: &str) {
        let Ok(host) = name.parse::<HostId>() else {
            return;
        };
        let event = match index.nodes.get(name) {
            Some(node) => gate::Event::Node {
                host,
                ready: node.ready,
                takes: node.takes(),
            },
            None => gate::Event::NodeGone(host),
        };
        self.tell(now, event);
    }

    /// Tells the gate that a Pod changed or is gone.
    pub(super) fn tell_pod(
        &mut self,
        now: Now,
        index: &Index,
        key: &ObjectKey,
        owners: &mut Owners,
        told: &mut Told,
    ) {
        let gated = self.gate_of(index, key);
        let gated = gated.and_then(|gate| Some((gate, index.pods.get(key)?)));
        let gated = gated.map(|(gate, facts)| (gate.key.clone(), facts, gate.pod(key, facts, now)));
        let before = self.told.get(key).cloned();
        let id = gated.as_ref().map(|(_, _, (id, _))| id);
        if let Some(before) = before.filter(|before| Some(before) != id) {
            self.told.remove(key);
            self.keys.remove(&before);
            self.starts.forget(&before.0);
            self.tell(now, gate::Event::PodGone(before));
        }
        let Some((prepull, facts, (id, pod))) = gated else {
            return;
        };
        let staged = match &pod.place {
            gate::Place::On(host) => {
                Some(self.gate.presence(&pod.prepull, host) == Some(presence::Held::Fresh))
            }
            gate::Place::Unscheduled | gate::Place::Elsewhere => None,
        };
        let started = self
            .starts
            .see(now.time, &id.0, pod.phase, facts.created, staged);
        told.started.extend(started);
        if !self.told.contains_key(key) {
            told.owner_came |= owners.came(&prepull, key, facts);
        }
        self.told.insert(key.clone(), id.clone());
        self.keys.insert(id.clone(), key.clone());
        self.tell(now, gate::Event::Pod(id, pod));
    }

    /// Tells the gate all ImagePrePulls. They, their digests, or their owners' templates may have changed.
    pub(super) fn tell_prepulls(
        &mut self,
        now: Now,
        index: &Index,
        images: &Resolving,
        owners: &mut Owners,
        told: &mut Told,
    ) {
        let before = std::mem::replace(&mut self.gates, gates(index));
        for gone in &before {
            if !self.gates.iter().any(|gate| gate.key == gone.key) {
                told.gone.push(gone.key.clone());
                self.tell(now, gate::Event::PrePullGone(gone.key.prepull_id()));
                owners.forget(&gone.key);
            }
        }
        let same = before.len() == self.gates.len()
            && before
                .iter()
                .zip(&self.gates)
                .all(|(a, b)| a.selects_like(b));
        // Pods come before their gates: a gate that knew half of its Pods would take that half for all
        if !same {
            for key in index.pods.keys() {
                self.tell_pod(now, index, key, owners, told);
            }
        }
        for gate in self.gates.clone() {
            let before = before.iter().find(|before| before.key == gate.key);
            self.tell_prepull(now, index, images, owners, (&gate, before), told);
        }
    }

    fn tell_prepull(
        &mut self,
        now: Now,
        index: &Index,
        images: &Resolving,
        owners: &mut Owners,
        (prepull, before): (&PrePullGate, Option<&PrePullGate>),
        told: &mut Told,
    ) {
        owners.find(index, prepull);
        if before.is_some_and(|before| before.image != prepull.image) {
            owners.ask_anew(now.instant, &prepull.key);
            told.unread = true;
        }
        let Some(facts) = index.prepulls.get(&prepull.key) else {
            return;
        };
        let selected = index.selected(&facts.spec).into_iter();
        let hosts = selected.filter_map(|(name, _)| name.parse().ok()).collect();
        let mut shown = prepull.for_gate(index, facts, hosts);
        shown.digest = images.digest_of(&prepull.key, &prepull.image);
        let deadline = images
            .get(&prepull.key)
            .and_then(|image| image.deadline(facts));
        shown.deadline = deadline.map(|at| now.moment_of(at));
        shown.template = owners.template(now, index, prepull);
        told.unread |= shown.template == gate::Template::Unread;
        let id = prepull.key.prepull_id();
        self.tell(now, gate::Event::PrePull(id.clone(), shown));
        if let Some(memory) = facts.status.gate.filter(|_| before.is_none()) {
            let before = gate::Before {
                awaited: memory.awaited.try_into().unwrap_or(0),
                lags: memory.owner_lags,
            };
            self.tell(now, gate::Event::Before(id, before));
        }
    }

    // ---- what the gate wants -------------------------------------------------------------------------------------

    /// The next step that the gate wants carried out.
    pub(super) fn poll(&mut self, index: &Index) -> Option<Step> {
        loop {
            let (id, why, write): (_, _, fn(String) -> PodWrite) = match self.gate.poll()? {
                gate::Action::Label(id) => (id, None, PodWrite::Label),
                gate::Action::Unlabel(id, why) => (id, Some(why), PodWrite::Unlabel),
                gate::Action::Reap(id) => (id, None, |_| PodWrite::Reap),
                gate::Action::Blocked(id, reason) => match self.blocked(index, &id, reason) {
                    Some(step) => return Some(step),
                    None => continue,
                },
            };
            return Some(self.order(index, id, why, write));
        }
    }

    fn blocked(&self, index: &Index, id: &gate::PodId, reason: gate::Reason) -> Option<Step> {
        let pod = self.keys.get(id)?.clone();
        let prepull = self.gate_of(index, &pod)?.key.clone();
        Some(Step::Blocked {
            pod,
            prepull,
            reason,
        })
    }

    /// The write that the gate decided on a Pod. `write` makes it from the name of the drain label.
    fn order(
        &self,
        index: &Index,
        id: gate::PodId,
        why: Option<gate::Withdrawal>,
        write: fn(String) -> PodWrite,
    ) -> Step {
        let key = self.keys.get(&id);
        let Some((key, facts)) = key.and_then(|key| Some((key, index.pods.get(key)?))) else {
            return Step::Gone(id);
        };
        let gate = self.gate_of(index, key);
        let label = gate.map_or(DRAIN_LABEL, |gate| gate.drain_label.as_str());
        Step::Write(Order {
            id,
            target: Target {
                key: key.clone(),
                uid: facts.uid.clone(),
                resource_version: facts.resource_version.clone(),
                owner: facts.owner.as_ref().map(|owner| owner.uid.clone()),
            },
            write: write(label.to_owned()),
            why,
        })
    }

    /// When the gate next wants to be told that time has passed.
    pub(super) fn next_timeout(&self) -> Option<proto::Moment> {
        self.gate.next_timeout()
    }

    // ---- questions -----------------------------------------------------------------------------------------------

    /// The gates of all ImagePrePulls. Where several gates select a Pod, the first counts.
    pub(super) fn gates(&self) -> &[PrePullGate] {
        &self.gates
    }

    /// The gate of an ImagePrePull.
    pub(super) fn gate(&self, prepull: &ObjectKey) -> Option<&PrePullGate> {
        self.gates.iter().find(|gate| gate.key == *prepull)
    }

    /// The first gate that selects a Pod.
    pub(super) fn gate_of(&self, index: &Index, pod: &ObjectKey) -> Option<&PrePullGate> {
        let facts = index.pods.get(pod)?;
        self.gates.iter().find(|gate| gate.selects(pod, facts))
    }

    /// The Pod of this id, if a gate selects the Pod.
    pub(super) fn key(&self, id: &gate::PodId) -> Option<&ObjectKey> {
        self.keys.get(id)
    }

    /// The state of a roll.
    pub(super) fn status(&self, prepull: &ObjectKey) -> Option<gate::PoolStatus> {
        self.gate.status(&prepull.prepull_id())
    }

    /// Whether Pods roll to an ImagePrePull's image.
    pub(super) fn rolls(&self, prepull: &ObjectKey) -> bool {
        self.gate.rolls(&prepull.prepull_id())
    }

    /// The gate's present verdict about a Pod. Takes no slot.
    pub(super) fn explain(&self, id: &gate::PodId) -> gate::Verdict {
        self.gate.explain(id)
    }

    /// Whether an ImagePrePull selects a Pod that an earlier gate also selects.
    pub(super) fn is_overlapped(&self, index: &Index, prepull: &ObjectKey) -> bool {
        let Some(gate) = self.gate(prepull) else {
            return false;
        };
        let mut pods = index.pods.iter();
        pods.any(|(key, facts)| {
            let first = || self.gates.iter().find(|gate| gate.selects(key, facts));
            gate.selects(key, facts) && first().is_some_and(|first| first.key != *prepull)
        })
    }

    /// Whether a label may be put on a Pod. A yes takes a place under the cap, except in a dry run. Returns the
    /// ImagePrePull whose gate admitted the label. `None` where no gate guards the label.
    ///
    /// The asker isn't authenticated. So the question only names the Pod, and the Pod's facts come from the watch.
    ///
    /// # Errors
    /// The gate blocks the Pod, or the cluster isn't known.
    pub(super) fn admit(
        &mut self,
        now: Now,
        index: &Index,
        synced: bool,
        change: &Change,
    ) -> Result<Option<ObjectKey>, Refusal> {
        let unknown = Err(Refusal {
            reason: gate::Reason::NotSynced,
            node: None,
            prepull: None,
        });
        let newly = |gate: &PrePullGate| {
            gate.mode == GateMode::Guard && change.adds.contains(&gate.drain_label)
        };
        if !synced {
            // before the sync, nobody knows which Pods are gated, and by which label
            return unknown;
        }
        let Some(facts) = index.pods.get(&change.pod) else {
            // the Pod may be a gated one that the watch hasn't shown yet
            let mut gates = self.gates.iter();
            let guarded =
                gates.any(|gate| gate.key.namespace == change.pod.namespace && newly(gate));
            return if guarded { unknown } else { Ok(None) };
        };
        let Some(gate) = self.gate_of(index, &change.pod) else {
            return Ok(None);
        };
        if change.uid != facts.uid {
            return unknown;
        }
        if !newly(gate) {
            return Ok(None);
        }
        let (prepull, id) = (gate.key.clone(), gate::PodId(facts.uid.clone()));
        let verdict = if change.dry_run {
            match self.gate.explain(&id) {
                gate::Verdict::Open(_) => Ok(()),
                gate::Verdict::Blocked(reason) => Err(reason),
            }
        } else {
            self.gate.admit(now.moment(), &id).map(drop)
        };
        match verdict {
            Ok(()) => Ok(Some(prepull)),
            Err(reason) => Err(Refusal {
                reason,
                node: facts.node.clone(),
                prepull: Some(prepull),
            }),
        }
    }

    /// Whether a Pod shall leave.
    pub(super) fn drain(&self, index: &Index, synced: bool, pod: &ObjectKey) -> Drain {
        // a runner that is told that its Pod doesn't exist may take that for the end
        if !synced {
            return Drain::Unknown;
        }
        let Some(facts) = index.pods.get(pod) else {
            return Drain::NoSuchPod;
        };
        // a Pod without a gate isn't managed here, so it stays
        let leaves = self.gate_of(index, pod).is_some_and(|gate| {
            facts.image != gate.image && is_labelled(&facts.labels, &gate.drain_label)
        });
        match leaves {
            true => Drain::Leave,
            false => Drain::Stay,
        }
    }

    /// Whether the gate knows no Pod.
    #[cfg(test)]
    pub(super) fn knows_no_pod(&self) -> bool {
        self.told.is_empty() && self.keys.is_empty()
    }

    /// The gate's belief about an image on a host.
    #[cfg(test)]
    pub(super) fn presence(&self, prepull: &ObjectKey, host: &HostId) -> Option<presence::Held> {
        self.gate.presence(&prepull.prepull_id(), host)
    }
}

#[cfg(test)]
mod tests;
