//! What the cluster holds, as it was watched last: Pods, Nodes, ImagePrePulls and RunnerPools, trimmed to what the gate
//! and staging go by. Everything is derived from it anew, so a lost or repeated event changes nothing for good.
//!
//! What can't be read is passed over and named once; a field that is missing has the meaning that its writers give it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Instant, SystemTime},
};

use k8s_openapi::{
    api::core::v1::{Node, Pod},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
    jiff::Timestamp,
};
use kube::core::{DynamicObject, Selector, SelectorExt as _};
use proto::HostId;
use rollout::gate;

use super::crd::{
    CompletionPolicy, GATE_ANNOTATION, Gate, GateMode, ImagePrePull, ImagePrePullSpec,
    ImagePrePullStatus, ObjectName, OnDeadline, RETRY_ANNOTATION, RunnerPool, RunnerPoolSpec,
};

/// The label by which a RunnerPool's Pods name it.
const POOL_LABEL: &str = "tuist.dev/runner-pool";
/// The label of a Pod that works for somebody; empty or absent when it doesn't.
const BUSY_LABEL: &str = "tuist.dev/runner-pool-owner";
/// What a runner says of itself: absent, `polling`, or something else.
const HEARTBEAT_STATE: &str = "tuist.dev/runner-heartbeat-state";
/// When it said so (RFC 3339).
const HEARTBEAT_AT: &str = "tuist.dev/runner-heartbeat-at";
/// The prefix of our Node labels; then the first twelve hex digits of the image's digest.
pub(crate) const IMAGE_LABEL: &str = "parbake.dev/image-";

/// A namespaced object's name. A Node's namespace is empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectKey {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl ObjectKey {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    fn of(meta: &ObjectMeta) -> Self {
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }

    /// The gate's pool of an ImagePrePull.
    pub(crate) fn pool(&self) -> gate::PoolId {
        gate::PoolId(self.to_string())
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Pods,
    Nodes,
    PrePulls,
    RunnerPools,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Pods, Self::Nodes, Self::PrePulls, Self::RunnerPools];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Nodes => "nodes",
            Self::PrePulls => "imageprepulls",
            Self::RunnerPools => "runnerpools",
        }
    }
}

/// One watch: a kind, in one namespace or in all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Scope {
    pub(crate) kind: Kind,
    pub(crate) namespace: Option<String>,
}

/// A Pod, trimmed.
#[derive(Clone, Debug)]
pub(crate) struct PodFacts {
    pub(crate) uid: String,
    pub(crate) resource_version: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) heartbeat: Option<(String, Option<SystemTime>)>,
    pub(crate) image: String,
    pub(crate) node: Option<String>,
    pub(crate) phase: gate::Phase,
    pub(crate) deleting: bool,
    pub(crate) created_unix_s: i64,
    pub(crate) created: Option<SystemTime>,
    /// Who made it: its controller, or the first of its owners where none is called that.
    pub(crate) owner: Option<Owner>,
    /// When this coordinator saw it first.
    pub(crate) seen: Instant,
}

/// Who made an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Owner {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl Owner {
    /// The owner of an object that counts as its maker.
    pub(crate) fn of(meta: &ObjectMeta) -> Option<Self> {
        let owners = || meta.owner_references.iter().flatten();
        let owner = owners()
            .find(|owner| owner.controller == Some(true))
            .or_else(|| owners().next())?;
        Some(Self {
            api_version: owner.api_version.clone(),
            kind: owner.kind.clone(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
        })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// A Node, trimmed.
#[derive(Clone, Debug)]
pub(crate) struct NodeFacts {
    pub(crate) uid: String,
    resource_version: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) ready: bool,
    pub(crate) schedulable: bool,
}

/// An ImagePrePull.
#[derive(Clone, Debug)]
pub(crate) struct PrePullFacts {
    pub(crate) uid: String,
    pub(crate) generation: i64,
    /// What stands in the annotation by which somebody asks for the image anew.
    pub(crate) retry: Option<String>,
    pub(crate) created_unix_s: i64,
    pub(crate) deleting: bool,
    pub(crate) spec: ImagePrePullSpec,
    pub(crate) status: ImagePrePullStatus,
    /// The RunnerPool that owns it: name and uid.
    pub(crate) owner: Option<(String, String)>,
    /// It can't be read as it is now: it stands still, and its Pods are held.
    pub(crate) unread: bool,
}

/// A RunnerPool.
#[derive(Clone, Debug)]
pub(crate) struct RunnerPoolFacts {
    pub(crate) uid: String,
    pub(crate) spec: RunnerPoolSpec,
    pub(crate) mode: Option<GateMode>,
    /// The image that its controller has heard of, where that says so.
    pub(crate) observed: Option<String>,
}

/// How one ImagePrePull gates Pods.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) key: ObjectKey,
    selector: Selector,
    pub(crate) drain_label: String,
    pub(crate) mode: GateMode,
    /// The image that Pods shall run, as written.
    pub(crate) image: String,
    pub(crate) percent: i32,
    pub(crate) replicas: i32,
    /// Its RunnerPool can't be read: nothing is admitted.
    held: bool,
}

/// An object that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("{} {key}: {reason}", .kind.as_str())]
pub(crate) struct Unreadable {
    pub(crate) kind: Kind,
    pub(crate) key: ObjectKey,
    pub(crate) reason: String,
}

/// Everything that was watched.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) pods: BTreeMap<ObjectKey, PodFacts>,
    pub(crate) nodes: BTreeMap<String, NodeFacts>,
    pub(crate) prepulls: BTreeMap<ObjectKey, PrePullFacts>,
    pub(crate) runner_pools: BTreeMap<ObjectKey, RunnerPoolFacts>,
    /// RunnerPools that are there and can't be read: what they gate is held, for nobody knows what they mean.
    pub(crate) unreadable_pools: BTreeSet<ObjectKey>,
    /// What a relist that runs has shown so far.
    listed: BTreeMap<Scope, BTreeSet<ObjectKey>>,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Pod(ObjectKey),
    Node(String),
    PrePull(ObjectKey),
    RunnerPool(ObjectKey),
}

impl Index {
    /// A list of everything begins.
    pub(crate) fn begin(&mut self, scope: Scope) {
        self.listed.insert(scope, BTreeSet::new());
    }

    /// The list is whole: what it didn't show is gone.
    pub(crate) fn finish(&mut self, scope: &Scope) -> Vec<Change> {
        let Some(listed) = self.listed.remove(scope) else {
            return Vec::new();
        };
        let inside = |key: &ObjectKey| {
            scope
                .namespace
                .as_ref()
                .is_none_or(|namespace| key.namespace == *namespace)
                && !listed.contains(key)
        };
        let gone: Vec<ObjectKey> = match scope.kind {
            Kind::Pods => self
                .pods
                .keys()
                .filter(|key| inside(key))
                .cloned()
                .collect(),
            Kind::PrePulls => self
                .prepulls
                .keys()
                .filter(|key| inside(key))
                .cloned()
                .collect(),
            Kind::RunnerPools => self
                .runner_pools
                .keys()
                .chain(&self.unreadable_pools)
                .filter(|key| inside(key))
                .cloned()
                .collect(),
            Kind::Nodes => self
                .nodes
                .keys()
                .map(|name| ObjectKey::new("", name))
                .filter(|key| inside(key))
                .collect(),
        };
        gone.into_iter()
            .filter_map(|key| self.remove(scope.kind, &key, None))
            .collect()
    }

    /// An object is as shown. `None` when it was known to be so, or newer.
    pub(crate) fn apply(
        &mut self,
        scope: &Scope,
        object: &DynamicObject,
    ) -> Result<Option<Change>, Unreadable> {
        let key = ObjectKey::of(&object.metadata);
        if let Some(listed) = self.listed.get_mut(scope) {
            listed.insert(key.clone());
        }
        let unreadable = |reason: String| Unreadable {
            kind: scope.kind,
            key: key.clone(),
            reason,
        };
        let parse = |error: kube::core::dynamic::ParseDynamicObjectError| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            unreadable(source.unwrap_or_else(|| error.to_string()))
        };
        match scope.kind {
            Kind::Pods => {
                let pod: Pod = object.clone().try_parse().map_err(parse)?;
                Ok(self.apply_pod(&pod))
            }
            Kind::Nodes => {
                let node: Node = object.clone().try_parse().map_err(parse)?;
                Ok(self.apply_node(&node).then_some(Change::Node(key.name)))
            }
            Kind::PrePulls => {
                // one that can't be read stands still: its Pods are gated as far as that can be told, and held
                let parsed: Result<ImagePrePull, _> = object.clone().try_parse();
                match parsed {
                    Ok(prepull) => {
                        self.prepulls.insert(key.clone(), prepull_facts(prepull));
                        Ok(Some(Change::PrePull(key)))
                    }
                    Err(error) => {
                        match self.prepulls.get_mut(&key) {
                            Some(facts) => {
                                facts.spec.paused = true;
                                facts.unread = true;
                            }
                            None => {
                                self.prepulls.insert(key.clone(), guessed(object));
                            }
                        }
                        Err(parse(error))
                    }
                }
            }
            Kind::RunnerPools => {
                let parsed: Result<RunnerPool, _> = object.clone().try_parse();
                let read = parsed.map_err(parse).and_then(|pool| {
                    Ok(RunnerPoolFacts {
                        uid: pool.metadata.uid.clone().unwrap_or_default(),
                        mode: mode_of(&pool.metadata).map_err(unreadable)?,
                        spec: pool.spec,
                        observed: object.data["status"]["observedImage"]
                            .as_str()
                            .filter(|image| !image.is_empty())
                            .map(str::to_owned),
                    })
                });
                match read {
                    Ok(facts) => {
                        self.unreadable_pools.remove(&key);
                        self.runner_pools.insert(key.clone(), facts);
                        Ok(Some(Change::RunnerPool(key)))
                    }
                    Err(error) => {
                        self.runner_pools.remove(&key);
                        self.unreadable_pools.insert(key);
                        Err(error)
                    }
                }
            }
        }
    }

    /// A Pod is as shown, by a watch or as the answer to a write. A watch may be behind such an answer.
    pub(crate) fn apply_pod(&mut self, pod: &Pod) -> Option<Change> {
        let key = ObjectKey::of(&pod.metadata);
        let mut facts = pod_facts(pod);
        if let Some(known) = self.pods.get(&key)
            && known.uid == facts.uid
        {
            if is_older(&facts.resource_version, &known.resource_version) {
                return None;
            }
            facts.seen = known.seen;
        }
        self.pods.insert(key.clone(), facts);
        Some(Change::Pod(key))
    }

    /// A Node is as shown; `false` when a newer one is known, or nothing changed that anybody goes by: kubelets write
    /// their Nodes all the time.
    pub(crate) fn apply_node(&mut self, node: &Node) -> bool {
        let name = node.metadata.name.clone().unwrap_or_default();
        let facts = node_facts(node);
        if let Some(known) = self.nodes.get(&name)
            && known.uid == facts.uid
            && is_older(&facts.resource_version, &known.resource_version)
        {
            return false;
        }
        let same = self.nodes.get(&name).is_some_and(|known| {
            (&known.uid, &known.labels, known.ready, known.schedulable)
                == (&facts.uid, &facts.labels, facts.ready, facts.schedulable)
        });
        self.nodes.insert(name, facts);
        !same
    }

    /// An object is gone; with `uid`, only if it is that one.
    pub(crate) fn remove(
        &mut self,
        kind: Kind,
        key: &ObjectKey,
        uid: Option<&str>,
    ) -> Option<Change> {
        match kind {
            Kind::Pods => {
                let known = self.pods.get(key)?;
                if uid.is_some_and(|uid| uid != known.uid) {
                    return None;
                }
                self.pods.remove(key);
                Some(Change::Pod(key.clone()))
            }
            Kind::Nodes => {
                self.nodes.remove(&key.name)?;
                Some(Change::Node(key.name.clone()))
            }
            Kind::PrePulls => {
                self.prepulls.remove(key)?;
                Some(Change::PrePull(key.clone()))
            }
            Kind::RunnerPools => {
                let unread = self.unreadable_pools.remove(key);
                if self.runner_pools.remove(key).is_none() && !unread {
                    return None;
                }
                Some(Change::RunnerPool(key.clone()))
            }
        }
    }

    /// The gates, in the order in which they have a say: older ones first.
    pub(crate) fn rules(&self) -> Vec<Rule> {
        let mut order: Vec<_> = self.prepulls.iter().collect();
        order.sort_by_key(|(key, facts)| (facts.created_unix_s, (*key).clone()));
        order
            .into_iter()
            .filter_map(|(key, facts)| self.rule(key, facts))
            .collect()
    }

    fn rule(&self, key: &ObjectKey, facts: &PrePullFacts) -> Option<Rule> {
        let gate = facts.spec.gate.as_ref()?;
        if facts.deleting || gate.mode == GateMode::None {
            return None;
        }
        let pool_name = gate.pool_ref.as_ref().map(|pool| &pool.name);
        let pool_key = pool_name.map(|name| ObjectKey::new(&key.namespace, name));
        let pool = pool_key
            .as_ref()
            .and_then(|pool| self.runner_pools.get(pool));
        let held = pool_key
            .as_ref()
            .is_some_and(|pool| self.unreadable_pools.contains(pool));
        // a pool that isn't there has no Pods
        if pool_key.is_some() && pool.is_none() && !held {
            return None;
        }
        let selector = match (&gate.pod_selector, pool_name) {
            (Some(selector), _) => Selector::try_from(selector.clone()).ok()?,
            (None, Some(name)) => [(POOL_LABEL.to_owned(), name.clone())]
                .into_iter()
                .collect(),
            (None, None) => return None,
        };
        // a selector without a term selects everything: the schema refuses it, and so does this
        if selector.selects_all() {
            return None;
        }
        Some(Rule {
            key: key.clone(),
            selector,
            drain_label: gate.drain_label.clone(),
            mode: gate.mode,
            image: pool
                .map_or(&facts.spec.image, |pool| &pool.spec.image)
                .clone(),
            percent: pool.map_or(gate.max_concurrent_percent, |pool| {
                pool.spec.rollout.max_concurrent_percent
            }),
            replicas: pool.map_or(gate.replicas.unwrap_or(0), |pool| pool.spec.replicas),
            held,
        })
    }

    /// The Nodes that an ImagePrePull selects.
    pub(crate) fn selected(&self, spec: &ImagePrePullSpec) -> Vec<(&String, &NodeFacts)> {
        let Some(selector) = selector(&spec.node_selector) else {
            return Vec::new();
        };
        self.nodes
            .iter()
            .filter(|(_, node)| selector.matches(&node.labels))
            .collect()
    }

    /// The gate's view of a Pod under the first rule that selects it.
    pub(crate) fn gate_pod(
        &self,
        key: &ObjectKey,
        rules: &[Rule],
        moment: impl Fn(SystemTime) -> proto::Moment,
        seen: impl Fn(Instant) -> proto::Moment,
    ) -> Option<(gate::PodId, gate::Pod)> {
        let pod = self.pods.get(key)?;
        let rule = rules.iter().find(|rule| rule.selects(key, pod))?;
        let heartbeat = match &pod.heartbeat {
            None => gate::Heartbeat::Absent,
            Some((state, Some(at))) if state == "polling" => gate::Heartbeat::Polling(moment(*at)),
            Some(_) => gate::Heartbeat::Other,
        };
        let place = match &pod.node {
            None => gate::Place::Unscheduled,
            Some(node) => node
                .parse::<HostId>()
                .map_or(gate::Place::Elsewhere, gate::Place::On),
        };
        Some((
            gate::PodId(pod.uid.clone()),
            gate::Pod {
                pool: rule.key.pool(),
                name: gate::PodName {
                    namespace: key.namespace.clone(),
                    name: key.name.clone(),
                },
                image: pod.image.clone(),
                place,
                phase: pod.phase,
                deleting: pod.deleting,
                labelled: is_labelled(&pod.labels, &rule.drain_label),
                busy: pod
                    .labels
                    .get(BUSY_LABEL)
                    .is_some_and(|owner| !owner.is_empty()),
                heartbeat,
                created_unix_s: pod.created_unix_s,
                seen: seen(pod.seen),
            },
        ))
    }
}

impl Rule {
    pub(crate) fn selects(&self, key: &ObjectKey, pod: &PodFacts) -> bool {
        key.namespace == self.key.namespace && self.selector.matches(&pod.labels)
    }

    /// Whether it selects the same Pods by the same label.
    pub(crate) fn selects_like(&self, other: &Self) -> bool {
        self.key == other.key
            && self.drain_label == other.drain_label
            && self.selector.to_string() == other.selector.to_string()
    }

    /// The gate's pool, but for what the index doesn't know: the digest, what owners make, the deadline.
    pub(crate) fn pool(&self, facts: &PrePullFacts, hosts: BTreeSet<HostId>) -> gate::Pool {
        gate::Pool {
            image: self.image.clone(),
            digest: None,
            mode: match self.mode {
                GateMode::Own => gate::Mode::Own,
                GateMode::Guard => gate::Mode::Guard,
                GateMode::None => gate::Mode::Off,
            },
            percent: self.percent,
            replicas: self.replicas,
            template: gate::Template::Unknown,
            hosts,
            paused: facts.spec.paused || self.held,
            deadline: None,
            on_deadline: match facts.spec.on_deadline {
                OnDeadline::Hold => gate::OnDeadline::Hold,
                OnDeadline::Proceed => gate::OnDeadline::Proceed,
            },
        }
    }
}

impl PrePullFacts {
    /// The pull Secret that it names, in its own namespace.
    pub(crate) fn secret(&self, key: &ObjectKey) -> Option<ObjectKey> {
        let secret = self.spec.pull_secret_ref.as_ref()?;
        Some(ObjectKey::new(&key.namespace, &secret.name))
    }

    /// Whether what was staged once is enough.
    pub(crate) fn is_done(&self) -> bool {
        self.spec.completion_policy == CompletionPolicy::Once
            && self.status.staged_at.is_some()
            && self.status.observed_generation == Some(self.generation)
    }
}

/// A label's value that lets a Pod drain.
pub(crate) fn is_labelled(labels: &BTreeMap<String, String>, label: &str) -> bool {
    labels.get(label).is_some_and(|value| value == "true")
}

/// A selector that selects something but not everything.
fn selector(selector: &LabelSelector) -> Option<Selector> {
    let selector = Selector::try_from(selector.clone()).ok()?;
    (!selector.selects_all()).then_some(selector)
}

/// Resource versions are numbers wherever the API server keeps its objects in etcd. Where they aren't, nothing is older.
fn is_older(version: &str, known: &str) -> bool {
    match (version.parse::<u64>(), known.parse::<u64>()) {
        (Ok(version), Ok(known)) => version < known,
        _ => false,
    }
}

fn mode_of(meta: &ObjectMeta) -> Result<Option<GateMode>, String> {
    let value = meta
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(GATE_ANNOTATION));
    match value.map(String::as_str) {
        None => Ok(None),
        Some("own") => Ok(Some(GateMode::Own)),
        Some("guard") => Ok(Some(GateMode::Guard)),
        Some("none") => Ok(Some(GateMode::None)),
        Some(other) => Err(format!(
            "annotation {GATE_ANNOTATION} is `{}`; it can be own, guard or none",
            crate::progress::clean(other)
        )),
    }
}

fn unix_s(time: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>) -> i64 {
    time.map_or(0, |time| time.0.as_second())
}

fn pod_facts(pod: &Pod) -> PodFacts {
    let meta = &pod.metadata;
    let annotation = |name| {
        meta.annotations
            .as_ref()
            .and_then(|annotations| annotations.get(name))
    };
    let heartbeat_at = annotation(HEARTBEAT_AT)
        .and_then(|text| text.parse::<Timestamp>().ok())
        .map(SystemTime::from);
    let spec = pod.spec.as_ref();
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    PodFacts {
        uid: meta.uid.clone().unwrap_or_default(),
        resource_version: meta.resource_version.clone().unwrap_or_default(),
        labels: meta.labels.clone().unwrap_or_default(),
        heartbeat: annotation(HEARTBEAT_STATE).map(|state| (state.clone(), heartbeat_at)),
        image: spec
            .and_then(|spec| spec.containers.first())
            .and_then(|container| container.image.clone())
            .unwrap_or_default(),
        node: spec
            .and_then(|spec| spec.node_name.clone())
            .filter(|node| !node.is_empty()),
        phase: match phase {
            Some("Running") => gate::Phase::Running,
            Some("Succeeded" | "Failed") => gate::Phase::Ended,
            Some("Pending") | None => gate::Phase::Pending,
            Some(_) => gate::Phase::Unknown,
        },
        deleting: meta.deletion_timestamp.is_some(),
        created_unix_s: unix_s(meta.creation_timestamp.as_ref()),
        created: meta
            .creation_timestamp
            .as_ref()
            .map(|time| SystemTime::from(time.0)),
        owner: Owner::of(meta),
        seen: Instant::now(),
    }
}

fn node_facts(node: &Node) -> NodeFacts {
    let ready = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let spec = node.spec.as_ref();
    NodeFacts {
        uid: node.metadata.uid.clone().unwrap_or_default(),
        resource_version: node.metadata.resource_version.clone().unwrap_or_default(),
        labels: node.metadata.labels.clone().unwrap_or_default(),
        ready: ready && node.metadata.deletion_timestamp.is_none(),
        schedulable: !spec.and_then(|spec| spec.unschedulable).unwrap_or(false),
    }
}

/// What an ImagePrePull gates that was never read: a coordinator that starts while one can't be read, as after a step
/// back to an older version, mustn't let its Pods pass. What of the gate can be told counts; of two meanings, the one
/// that holds.
fn guessed(object: &DynamicObject) -> PrePullFacts {
    let spec = &object.data["spec"];
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let owner = pool_owner(&object.metadata);
    let gate = &spec["gate"];
    let guessed = Gate {
        mode: match gate["mode"].as_str() {
            Some("Own") => GateMode::Own,
            Some("None") => GateMode::None,
            None if gate.is_null() && owner.is_none() => GateMode::None,
            _ => GateMode::Guard,
        },
        pod_selector: serde_json::from_value(gate["podSelector"].clone())
            .ok()
            .flatten(),
        pool_ref: text(&gate["poolRef"]["name"])
            .or_else(|| owner.as_ref().map(|(name, _)| name.clone()))
            .map(|name| ObjectName { name }),
        drain_label: text(&gate["drainLabel"]).unwrap_or_else(|| Gate::default().drain_label),
        ..Gate::default()
    };
    let prepull = ImagePrePull {
        metadata: object.metadata.clone(),
        spec: ImagePrePullSpec {
            image: text(&spec["image"]).unwrap_or_default(),
            node_selector: LabelSelector::default(),
            origin_streams: None,
            bandwidth: None,
            pull_secret_ref: None,
            paused: true,
            deadline: None,
            on_deadline: OnDeadline::Hold,
            ttl_after_staged: None,
            completion_policy: CompletionPolicy::Always,
            gate: Some(guessed),
        },
        status: None,
    };
    PrePullFacts {
        unread: true,
        ..prepull_facts(prepull)
    }
}

/// The RunnerPool that owns an object: name and uid.
fn pool_owner(meta: &ObjectMeta) -> Option<(String, String)> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|owner| owner.kind == "RunnerPool" && owner.api_version.starts_with("tuist.dev/"))
        .map(|owner| (owner.name.clone(), owner.uid.clone()))
}

fn prepull_facts(prepull: ImagePrePull) -> PrePullFacts {
    let meta = prepull.metadata;
    let owner = pool_owner(&meta);
    PrePullFacts {
        uid: meta.uid.unwrap_or_default(),
        generation: meta.generation.unwrap_or(0),
        retry: meta
            .annotations
            .and_then(|mut annotations| annotations.remove(RETRY_ANNOTATION)),
        created_unix_s: unix_s(meta.creation_timestamp.as_ref()),
        deleting: meta.deletion_timestamp.is_some(),
        spec: prepull.spec,
        status: prepull.status.unwrap_or_default(),
        owner,
        unread: false,
    }
}

#[cfg(test)]
mod tests;
