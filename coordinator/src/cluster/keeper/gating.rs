//! The gate, and what it was told of the cluster: which ImagePrePulls gate, in which order they have a say, and which
//! Pods stand under each.

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

/// The gate and what it was told.
pub(super) struct Gating {
    gate: Gate,
    /// The gates of ImagePrePulls, in the order in which they have a say.
    gates: Vec<PrePullGate>,
    /// Pods as the gate was told, both ways.
    told: BTreeMap<ObjectKey, gate::PodId>,
    keys: BTreeMap<gate::PodId, ObjectKey>,
    starts: Starts,
}

/// What follows from what the gate was told.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// ImagePrePulls that gate nothing any more.
    pub(super) gone: Vec<ObjectKey>,
    /// Pods that came to run.
    pub(super) started: Vec<Start>,
    /// A Pod brought an owner that nobody has asked: the gate is to be told the ImagePrePulls anew.
    pub(super) owner_came: bool,
    /// What an owner makes is to be read at once.
    pub(super) unread: bool,
}

/// What the gate wants done.
#[derive(Debug)]
pub(super) enum Step {
    /// A write on a Pod.
    Write(Order),
    /// A write on a Pod that is gone by now.
    Gone(gate::PodId),
    /// Nothing but to tell why a Pod is blocked.
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
    /// Why a label is taken back.
    pub(super) why: Option<gate::Withdrawal>,
}

/// Why a label isn't admitted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: gate::Reason,
    /// The Pod's node.
    pub(super) node: Option<String>,
    /// The ImagePrePull whose gate refused; `None` where the gate wasn't asked.
    pub(super) prepull: Option<ObjectKey>,
}

/// Whether a Pod shall leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drain {
    /// It is stale and labelled.
    Leave,
    /// It isn't.
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

    /// Something happened that is about no Pod and no ImagePrePull, or a write on a Pod ended.
    pub(super) fn tell(&mut self, now: Now, event: gate::Event) {
        self.gate.handle(now.moment(), event);
    }

    /// A Node changed, or is gone.
    pub(super) fn tell_node(&mut self, now: Now, index: &Index, name: &str) {
        let Ok(host) = name.parse::<HostId>() else {
            return;
        };
        let event = match index.nodes.get(name) {
            Some(node) => gate::Event::Node {
                host,
                ready: node.ready,
                schedulable: node.schedulable,
            },
            None => gate::Event::NodeGone(host),
        };
        self.tell(now, event);
    }

    /// A Pod changed, or is gone.
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
                Some(self.gate.presence(&pod.pool, host) == Some(presence::Held::Fresh))
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

    /// ImagePrePulls, what they are resolved to, or what owners make may have changed.
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
                self.tell(now, gate::Event::PoolGone(gone.key.gate_pool()));
                owners.forget(&gone.key);
            }
        }
        let same = before.len() == self.gates.len()
            && before
                .iter()
                .zip(&self.gates)
                .all(|(a, b)| a.selects_like(b));
        // before their gates: a gate that knew half of its Pods would take that for all of them
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
        let mut pool = prepull.pool(facts, hosts);
        pool.digest = images.digest_of(&prepull.key, &prepull.image);
        let deadline = images
            .get(&prepull.key)
            .and_then(|image| image.deadline(facts));
        pool.deadline = deadline.map(|at| now.moment_of(at));
        pool.template = owners.template(now, index, prepull);
        told.unread |= pool.template == gate::Template::Unread;
        let id = prepull.key.gate_pool();
        self.tell(now, gate::Event::Pool(id.clone(), pool));
        if let Some(memory) = facts.status.gate.filter(|_| before.is_none()) {
            let before = gate::Before {
                awaited: memory.awaited.try_into().unwrap_or(0),
                lags: memory.owner_lags,
            };
            self.tell(now, gate::Event::Before(id, before));
        }
    }

    // ---- what the gate wants -------------------------------------------------------------------------------------

    /// The next thing that the gate wants done.
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

    /// A write on a Pod, which `write` makes of its gate's drain label.
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

    /// When the gate wants to be told that time passed.
    pub(super) fn next_timeout(&self) -> Option<proto::Moment> {
        self.gate.next_timeout()
    }

    // ---- questions -----------------------------------------------------------------------------------------------

    /// The gates of ImagePrePulls, in the order in which they have a say.
    pub(super) fn gates(&self) -> &[PrePullGate] {
        &self.gates
    }

    /// The gate of an ImagePrePull.
    pub(super) fn gate(&self, prepull: &ObjectKey) -> Option<&PrePullGate> {
        self.gates.iter().find(|gate| gate.key == *prepull)
    }

    /// The gate under which a Pod stands: the first that selects it.
    pub(super) fn gate_of(&self, index: &Index, pod: &ObjectKey) -> Option<&PrePullGate> {
        let facts = index.pods.get(pod)?;
        self.gates.iter().find(|gate| gate.selects(pod, facts))
    }

    /// The Pod of this id, if it stands under a gate.
    pub(super) fn key(&self, id: &gate::PodId) -> Option<&ObjectKey> {
        self.keys.get(id)
    }

    /// Where a roll stands.
    pub(super) fn status(&self, prepull: &ObjectKey) -> Option<gate::PoolStatus> {
        self.gate.status(&prepull.gate_pool())
    }

    /// Whether Pods roll to an ImagePrePull's image.
    pub(super) fn rolls(&self, prepull: &ObjectKey) -> bool {
        self.gate.rolls(&prepull.gate_pool())
    }

    /// What the gate would answer about a Pod.
    pub(super) fn explain(&self, id: &gate::PodId) -> gate::Verdict {
        self.gate.explain(id)
    }

    /// Whether a Pod that an ImagePrePull selects stands under another's gate.
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

    /// Whether a label may be put on a Pod. An answer takes a place under the cap, but for a dry run.
    /// Returns the ImagePrePull whose gate admitted it; `None` where no gate guards the label.
    ///
    /// Who asks isn't authenticated: what the Pod is like is taken from the watch, and the question only says which.
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
            // which Pods are gated, and by which label, isn't known
            return unknown;
        }
        let Some(facts) = index.pods.get(&change.pod) else {
            // it may be one of ours that the watch hasn't shown yet
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
        // a runner that is told that it isn't there may take that for the end
        if !synced {
            return Drain::Unknown;
        }
        let Some(facts) = index.pods.get(pod) else {
            return Drain::NoSuchPod;
        };
        // a Pod without a gate isn't one of ours: it stays
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

    /// What the gate believes that a host holds.
    #[cfg(test)]
    pub(super) fn presence(&self, prepull: &ObjectKey, host: &HostId) -> Option<presence::Held> {
        self.gate.presence(&prepull.gate_pool(), host)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proto::Digest;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        cluster::{
            index::{Kind, Scope},
            keeper::resolving::Resolved,
        },
        wants::tests::want,
    };

    /// Pods of image `r/i:1` on `mac-0`, under ImagePrePulls of image `r/i:2`.
    struct Stand {
        index: Index,
        images: Resolving,
        owners: Owners,
        gating: Gating,
        now: Now,
    }

    impl Stand {
        /// A gate that knows the whole cluster.
        fn new(mode: &str) -> Self {
            let mut this = Self {
                index: Index::default(),
                images: Resolving::default(),
                owners: Owners::default(),
                gating: Gating::default(),
                now: Now::start(),
            };
            let node = json!({
                "metadata": { "name": "mac-0", "uid": "n", "labels": { "a": "b" } },
                "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
            });
            this.index
                .apply_node(&serde_json::from_value(node).unwrap());
            this.gating.tell_node(this.now, &this.index, "mac-0");
            this.prepull("pool", &json!({ "mode": mode }));
            this.gating.tell(this.now, gate::Event::Synced(true));
            this
        }

        fn show(&mut self, kind: Kind, object: Value) {
            let scope = Scope {
                kind,
                namespace: None,
            };
            let object = serde_json::from_value(object).unwrap();
            let now = self.now.instant;
            self.index.apply(&scope, object, now).unwrap();
        }

        fn prepull(&mut self, name: &str, gate: &Value) -> Told {
            let mut whole =
                json!({ "podSelector": { "matchLabels": { "app": "x" } }, "replicas": 2 });
            for (field, value) in gate.as_object().unwrap() {
                whole[field] = value.clone();
            }
            self.show(
                Kind::PrePulls,
                json!({
                    "apiVersion": "parbake.dev/v1alpha1",
                    "kind": "ImagePrePull",
                    "metadata": { "name": name, "namespace": "ns", "uid": name },
                    "spec": {
                        "image": "r/i:2",
                        "nodeSelector": { "matchLabels": { "a": "b" } },
                        "gate": whole,
                    },
                }),
            );
            self.images.look(self.now, &self.index);
            self.tell()
        }

        fn tell(&mut self) -> Told {
            let mut told = Told::default();
            self.gating.tell_prepulls(
                self.now,
                &self.index,
                &self.images,
                &mut self.owners,
                &mut told,
            );
            told
        }

        fn pod(&mut self, name: &str, more: &Value) -> Told {
            let mut object = json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "namespace": "ns",
                    "uid": name,
                    "resourceVersion": "1",
                    "labels": { "app": "x" },
                },
                "spec": { "nodeName": "mac-0", "containers": [{ "name": "r", "image": "r/i:1" }] },
                "status": { "phase": "Running" },
            });
            for (field, value) in more.as_object().unwrap() {
                object["metadata"][field] = value.clone();
            }
            self.show(Kind::Pods, object);
            self.told(name)
        }

        fn told(&mut self, name: &str) -> Told {
            let (key, mut told) = (ObjectKey::new("ns", name), Told::default());
            self.gating
                .tell_pod(self.now, &self.index, &key, &mut self.owners, &mut told);
            told
        }

        /// The image is resolved, and the host holds it.
        fn hold(&mut self) {
            let want = want("image", 1, 1 << 20);
            let digest: Digest = want.digest();
            let resolved = Resolved {
                key: ObjectKey::new("ns", "pool"),
                reference: "r/i:2".to_owned(),
                result: Ok(want),
            };
            self.images.answered(self.now.instant, resolved);
            self.tell();
            let holdings = [(digest, ["r/i:2".to_owned()].into())].into();
            let host = "mac-0".parse().unwrap();
            let event = gate::Event::Holds(host, holdings, Duration::ZERO);
            self.gating.tell(self.now, event);
        }

        fn steps(&mut self) -> Vec<Step> {
            std::iter::from_fn(|| self.gating.poll(&self.index)).collect()
        }

        fn change(&self, pod: &str, uid: &str, label: &str) -> Change {
            Change {
                pod: ObjectKey::new("ns", pod),
                uid: uid.to_owned(),
                adds: [label.to_owned()].into(),
                dry_run: false,
            }
        }

        fn admit(&mut self, synced: bool, change: &Change) -> Result<Option<ObjectKey>, Refusal> {
            self.gating.admit(self.now, &self.index, synced, change)
        }
    }

    #[test]
    fn a_decision_names_the_pod_as_it_was_seen_and_the_label_of_its_gate() {
        let mut stand = Stand::new("Own");
        stand.prepull("pool", &json!({ "mode": "Own", "drainLabel": "leave" }));
        stand.pod("a", &json!({ "resourceVersion": "7" }));
        stand.hold();
        let steps = stand.steps();
        let order = steps.iter().find_map(|step| match step {
            Step::Write(order) => Some(order),
            _ => None,
        });
        let order = order.unwrap_or_else(|| panic!("{steps:?}"));
        assert_eq!(order.write, PodWrite::Label("leave".into()));
        assert_eq!(order.target.resource_version, "7");
    }

    #[test]
    fn a_pod_that_went_before_its_write_is_answered_as_gone() {
        let mut stand = Stand::new("Own");
        stand.pod("a", &json!({}));
        stand.hold();
        let key = ObjectKey::new("ns", "a");
        stand.index.remove(Kind::Pods, &key, None);
        let steps = stand.steps();
        assert!(
            steps
                .iter()
                .any(|step| matches!(step, Step::Gone(id) if id.0 == "a")),
            "{steps:?}"
        );
        stand.told("a");
        assert!(stand.gating.knows_no_pod());
    }

    #[test]
    fn a_pod_that_is_made_anew_under_its_name_is_another() {
        let mut stand = Stand::new("Own");
        stand.pod("a", &json!({}));
        stand.pod("a", &json!({ "uid": "b" }));
        assert_eq!(stand.gating.key(&gate::PodId("a".into())), None);
        let key = ObjectKey::new("ns", "a");
        assert_eq!(stand.gating.key(&gate::PodId("b".into())), Some(&key));
        assert_eq!(
            stand
                .gating
                .status(&ObjectKey::new("ns", "pool"))
                .unwrap()
                .alive,
            1
        );
    }

    #[test]
    fn the_older_of_two_gates_has_the_say_and_the_other_is_overlapped() {
        let mut stand = Stand::new("Own");
        let first = ObjectKey::new("ns", "another");
        // without a time of creation, the name decides
        stand.prepull("another", &json!({ "mode": "Own" }));
        stand.pod("a", &json!({}));
        let pod = ObjectKey::new("ns", "a");
        assert_eq!(stand.gating.gate_of(&stand.index, &pod).unwrap().key, first);
        let overlapped = |stand: &Stand, name: &str| {
            let key = ObjectKey::new("ns", name);
            stand.gating.is_overlapped(&stand.index, &key)
        };
        assert!(overlapped(&stand, "pool") && !overlapped(&stand, "another"));
        stand.index.remove(Kind::PrePulls, &first, None);
        assert_eq!(stand.tell().gone, [first]);
        assert!(!overlapped(&stand, "pool"));
        assert_eq!(
            stand
                .gating
                .status(&ObjectKey::new("ns", "pool"))
                .unwrap()
                .alive,
            1
        );
    }

    #[test]
    fn an_owner_that_nobody_has_asked_is_told_with_its_pod() {
        let mut stand = Stand::new("Own");
        let owner =
            json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "s", "uid": "s" }]);
        let told = stand.pod("a", &json!({ "ownerReferences": owner }));
        assert!(told.owner_came && !told.unread);
        assert!(stand.tell().unread, "its template is to be read");
        let told = stand.pod("b", &json!({ "ownerReferences": owner }));
        assert!(!told.owner_came);
    }

    #[test]
    fn a_label_is_admitted_where_the_gate_guards_it_and_the_image_is_there() {
        let mut stand = Stand::new("Guard");
        stand.pod("a", &json!({}));
        let asked = stand.change("a", "a", DRAIN_LABEL);
        let refusal = stand.admit(true, &asked).unwrap_err();
        assert_eq!(refusal.reason, gate::Reason::ImageUnresolved);
        assert_eq!(refusal.node.as_deref(), Some("mac-0"));
        assert_eq!(refusal.prepull, Some(ObjectKey::new("ns", "pool")));
        stand.hold();
        let dry = Change {
            dry_run: true,
            ..asked.clone()
        };
        // a dry run takes no place
        let pool = ObjectKey::new("ns", "pool");
        assert_eq!(stand.admit(true, &dry), Ok(Some(pool.clone())));
        assert_eq!(
            stand
                .gating
                .status(&ObjectKey::new("ns", "pool"))
                .unwrap()
                .reserved,
            0
        );
        assert_eq!(stand.admit(true, &asked), Ok(Some(pool)));
        assert_eq!(
            stand
                .gating
                .status(&ObjectKey::new("ns", "pool"))
                .unwrap()
                .reserved,
            1
        );
    }

    #[test]
    fn what_is_not_known_is_not_admitted_and_what_is_not_guarded_is() {
        let mut stand = Stand::new("Guard");
        stand.pod("a", &json!({}));
        stand.pod("foreign", &json!({ "labels": { "app": "y" } }));
        let ours = stand.change("a", "a", DRAIN_LABEL);
        let unknown = |refused: Result<_, Refusal>| {
            let refusal = refused.unwrap_err();
            assert_eq!(
                (refusal.reason, refusal.prepull),
                (gate::Reason::NotSynced, None)
            );
        };
        unknown(stand.admit(false, &ours));
        // the watch is behind
        let unseen = stand.change("b", "b", DRAIN_LABEL);
        unknown(stand.admit(true, &unseen));
        let another = stand.change("a", "another", DRAIN_LABEL);
        unknown(stand.admit(true, &another));
        for (pod, label) in [("foreign", DRAIN_LABEL), ("a", "other"), ("b", "other")] {
            let change = stand.change(pod, pod, label);
            assert_eq!(stand.admit(true, &change), Ok(None), "{pod} {label}");
        }
        let elsewhere = Change {
            pod: ObjectKey::new("elsewhere", "b"),
            ..unseen
        };
        assert_eq!(stand.admit(true, &elsewhere), Ok(None));
    }

    #[test]
    fn a_pod_leaves_when_it_is_stale_and_labelled() {
        let mut stand = Stand::new("Own");
        let labelled = json!({ "app": "x", DRAIN_LABEL: "true" });
        stand.pod("stays", &json!({}));
        stand.pod("leaves", &json!({ "labels": labelled }));
        stand.pod("foreign", &json!({ "labels": { DRAIN_LABEL: "true" } }));
        let drain = |synced, name| {
            let key = ObjectKey::new("ns", name);
            stand.gating.drain(&stand.index, synced, &key)
        };
        assert_eq!(drain(true, "stays"), Drain::Stay);
        assert_eq!(drain(true, "leaves"), Drain::Leave);
        assert_eq!(drain(true, "foreign"), Drain::Stay);
        assert_eq!(drain(true, "nobody"), Drain::NoSuchPod);
        assert_eq!(drain(false, "leaves"), Drain::Unknown);
    }

    #[test]
    fn a_deadline_counts_from_when_the_image_was_first_asked_for() {
        let stand = Stand::new("Own");
        let mut prepull = stand.index.prepulls[&ObjectKey::new("ns", "pool")].clone();
        prepull.spec.deadline = Some("1h".parse().unwrap());
        let image = stand.images.get(&ObjectKey::new("ns", "pool")).unwrap();
        let asked = stand.now;
        assert_eq!(
            image.deadline(&prepull),
            Some(asked.time + Duration::from_hours(1))
        );
    }
}
