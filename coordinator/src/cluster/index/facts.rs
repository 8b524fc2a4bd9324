//! What the index keeps of the cluster's objects: the fields that the gate and staging use.
//!
//! A field that is missing has the meaning that its writers give it.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt,
    time::{Instant, SystemTime},
};

use k8s_openapi::{
    api::core::v1::{Node, Pod},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::core::DynamicObject;
use rollout::gate;
use serde::de::DeserializeOwned;

use crate::cluster::crd::{
    CompletionPolicy, GATE_ANNOTATION, Gate, GateMode, ImagePrePull, ImagePrePullSpec,
    ImagePrePullStatus, ObjectName, OnDeadline, RETRY_ANNOTATION, RunnerPool, RunnerPoolSpec,
};

/// What a runner reports of itself: absent or empty, `polling`, or something else (tuist/tuist of autumn 2026,
/// infra/runners-controller/controllers/runnerpool_controller.go: guestHeartbeatStateAnnotation, guestPolling).
const HEARTBEAT_STATE: &str = "tuist.dev/runner-heartbeat-state";
/// When the runner reported its state, by RFC 3339 (the same file: guestHeartbeatAtAnnotation).
const HEARTBEAT_AT: &str = "tuist.dev/runner-heartbeat-at";
/// The taint by which the runners' controllers reserve a Node for one pool. They look at the key alone, whatever the
/// effect. Its value is the pool's name or, where that is too long for a taint, `pool-` and a hash of the name
/// (tuist/tuist of autumn 2026, infra/runners-controller/controllers/reservation.go: isReserved, reservedNode).
const RESERVED_TAINT: &str = "tuist.dev/reserved-for";

/// The conditions of a Node that keep new Pods away (Kubernetes, "Node Status"; tuist/tuist of autumn 2026,
/// infra/runners-controller/controllers/helpers.go: nodeFilterReason).
const PRESSURES: [&str; 3] = ["MemoryPressure", "DiskPressure", "PIDPressure"];

/// The name of an object in its namespace. A Node's namespace is empty.
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

    /// The name of an object with this metadata.
    pub(crate) fn of(meta: &ObjectMeta) -> Self {
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }

    /// The id under which the gate knows the ImagePrePull of this name.
    pub(crate) fn prepull_id(&self) -> gate::PrePullId {
        gate::PrePullId(self.to_string())
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The fields of a Pod that are kept.
#[derive(Clone, Debug)]
pub(crate) struct PodFacts {
    pub(crate) uid: String,
    pub(crate) resource_version: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) heartbeat: Option<(String, Option<SystemTime>)>,
    /// The image of the first container, as written: by it the runners' controllers tell a stale Pod (tuist/tuist of
    /// autumn 2026, infra/runners-controller/controllers/runnerpool_controller.go: isStaleImage).
    pub(crate) image: String,
    /// The images of further containers, and of those that run first.
    pub(crate) further_images: Vec<String>,
    pub(crate) node: Option<String>,
    pub(crate) phase: gate::Phase,
    pub(crate) deleting: bool,
    pub(crate) created_unix_s: i64,
    pub(crate) created: Option<SystemTime>,
    /// The Pod's maker: its controller. Where no owner is marked as the controller, the first owner counts.
    pub(crate) owner: Option<Owner>,
    /// When this coordinator saw the Pod first.
    pub(crate) seen: Instant,
}

/// The maker of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Owner {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl Owner {
    /// The owner that counts as the object's maker.
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

/// The fields of a Node that are kept.
#[derive(Clone, Debug)]
pub(crate) struct NodeFacts {
    pub(crate) uid: String,
    pub(super) resource_version: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) ready: bool,
    pub(crate) schedulable: bool,
    /// The Node lacks memory, disk or process ids.
    pub(crate) pressed: bool,
    /// The value of the taint that reserves the Node for a pool.
    pub(crate) reserved_for: Option<String>,
}

impl NodeFacts {
    /// Whether Pods may come to the Node.
    pub(crate) const fn takes(&self) -> gate::Takes {
        match (self.schedulable, self.pressed) {
            (false, _) => gate::Takes::NoneWhileCordoned,
            (true, true) => gate::Takes::NoneUnderPressure,
            (true, false) => gate::Takes::Pods,
        }
    }
}

/// An ImagePrePull.
#[derive(Clone, Debug)]
pub(crate) struct PrePullFacts {
    pub(crate) uid: String,
    pub(crate) generation: i64,
    /// The value of the annotation by which somebody asks for the image anew.
    pub(crate) retry: Option<String>,
    pub(crate) created_unix_s: i64,
    pub(crate) deleting: bool,
    /// The object's spec, but for `image`: that is the image that is wanted, also where the object follows a workload.
    /// Where the image isn't known, the last one that was known counts.
    pub(crate) spec: ImagePrePullSpec,
    /// `spec.image` as the object says it.
    pub(crate) said: String,
    /// Where the image comes from.
    pub(crate) source: Source,
    pub(crate) status: ImagePrePullStatus,
    /// The RunnerPool that owns the ImagePrePull: name and uid.
    pub(crate) owner: Option<(String, String)>,
    /// The ImagePrePull can't be read as it is now. It is paused, and its Pods are blocked.
    pub(crate) unread: bool,
}

/// Where an ImagePrePull's image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The image is known: the object names it, or the workload that the object follows.
    Known,
    /// The workload that the object follows is being looked for.
    Awaited,
    /// Nobody can say which image is wanted: why, and what to do.
    Unknown(String),
}

/// A RunnerPool.
#[derive(Clone, Debug)]
pub(crate) struct RunnerPoolFacts {
    pub(crate) uid: String,
    pub(crate) spec: RunnerPoolSpec,
    pub(crate) mode: Option<GateMode>,
    /// The image that the pool's own controller reports as observed. `None` where it reports nothing.
    pub(crate) observed: Option<String>,
    /// The pool is being deleted. Its own controller drains it, and holds it by a finalizer meanwhile.
    pub(crate) deleting: bool,
}

impl RunnerPoolFacts {
    /// Whether the pool's Pods are gated: they run on Macs, and the pool isn't on its way out. Its own controller
    /// deletes a leaving pool's idle Pods at once, and lets busy ones end (tuist/tuist of autumn 2026,
    /// infra/runners-controller/controllers/runnerpool_controller.go: runnerPoolFinalizer, reconcileDelete).
    pub(crate) fn is_gated(&self) -> bool {
        self.spec.os == "darwin" && !self.deleting
    }
}

impl PrePullFacts {
    /// The pull Secret that the ImagePrePull names. The Secret is in the ImagePrePull's own namespace.
    pub(crate) fn secret(&self, key: &ObjectKey) -> Option<ObjectKey> {
        let secret = self.spec.pull_secret_ref.as_ref()?;
        Some(ObjectKey::new(&key.namespace, &secret.name))
    }

    /// Whether staging is over: every selected host was staged once, and the completion policy asks for no more.
    pub(crate) fn is_done(&self) -> bool {
        let status = self.standing_status();
        self.spec.completion_policy == CompletionPolicy::Once
            && status.is_some_and(|status| status.staged_at.is_some())
    }

    /// The status, if it describes the object's present generation.
    pub(crate) fn standing_status(&self) -> Option<&ImagePrePullStatus> {
        let same = self.status.observed_generation == Some(self.generation);
        // a workload's image changes without the object
        let follows = self.spec.image_from.is_some();
        let of_it = !follows || self.status.image.as_ref() == Some(&self.spec.image);
        (same && of_it).then_some(&self.status)
    }
}

/// Whether this label lets a Pod drain: its value is `true`.
pub(crate) fn is_labelled(labels: &BTreeMap<String, String>, label: &str) -> bool {
    labels.get(label).is_some_and(|value| value == "true")
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

fn unix_s(time: Option<&Time>) -> i64 {
    time.map_or(0, |time| time.0.as_second())
}

/// The facts of a Pod. `now` counts as the time when the Pod was first seen.
pub(super) fn pod_facts(pod: &Pod, now: Instant) -> PodFacts {
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
        heartbeat: annotation(HEARTBEAT_STATE)
            .filter(|state| !state.is_empty())
            .map(|state| (state.clone(), heartbeat_at)),
        image: spec
            .and_then(|spec| spec.containers.first())
            .and_then(|container| container.image.clone())
            .unwrap_or_default(),
        further_images: further_images(pod),
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
        seen: now,
    }
}

fn further_images(pod: &Pod) -> Vec<String> {
    let specs = pod.spec.iter();
    let containers = specs.flat_map(|spec| {
        let further = spec.containers.iter().skip(1);
        further.chain(spec.init_containers.iter().flatten())
    });
    containers
        .filter_map(|container| container.image.clone())
        .collect()
}

/// The facts of a Node. One that is being deleted counts as cordoned: the runners' controllers delete the idle Pods of
/// either (tuist/tuist of autumn 2026, infra/runners-controller/controllers/node_drain.go: nodeIsDraining).
pub(super) fn node_facts(node: &Node) -> NodeFacts {
    let is = |kind: &str| {
        let status = node.status.iter();
        let mut conditions = status.flat_map(|status| status.conditions.iter().flatten());
        conditions.any(|condition| condition.type_ == kind && condition.status == "True")
    };
    let spec = node.spec.as_ref();
    let cordoned = spec.and_then(|spec| spec.unschedulable).unwrap_or(false);
    NodeFacts {
        uid: node.metadata.uid.clone().unwrap_or_default(),
        resource_version: node.metadata.resource_version.clone().unwrap_or_default(),
        labels: node.metadata.labels.clone().unwrap_or_default(),
        ready: is("Ready"),
        pressed: PRESSURES.into_iter().any(is),
        schedulable: !cordoned && node.metadata.deletion_timestamp.is_none(),
        reserved_for: spec
            .and_then(|spec| spec.taints.as_ref())
            .into_iter()
            .flatten()
            .find(|taint| taint.key == RESERVED_TAINT)
            .map(|taint| taint.value.clone().unwrap_or_default()),
    }
}

/// What an ImagePrePull gates that was never read. The coordinator may start while an ImagePrePull can't be read, for
/// example after a step back to an older version. Its Pods mustn't pass then. Every part of the gate that can be read
/// counts. A mode that can't be read counts as `Guard`.
pub(super) fn guessed(object: &DynamicObject) -> PrePullFacts {
    let spec = &object.data["spec"];
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let owner = runner_pool_of(&object.metadata);
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
            image_from: None,
            node_selector: LabelSelector::default(),
            priority: 0,
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
fn runner_pool_of(meta: &ObjectMeta) -> Option<(String, String)> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|owner| owner.kind == "RunnerPool" && owner.api_version.starts_with("tuist.dev/"))
        .map(|owner| (owner.name.clone(), owner.uid.clone()))
}

/// The facts of an ImagePrePull.
pub(super) fn prepull_facts(prepull: ImagePrePull) -> PrePullFacts {
    let meta = prepull.metadata;
    let owner = runner_pool_of(&meta);
    PrePullFacts {
        uid: meta.uid.unwrap_or_default(),
        generation: meta.generation.unwrap_or(0),
        retry: meta
            .annotations
            .and_then(|mut annotations| annotations.remove(RETRY_ANNOTATION)),
        created_unix_s: unix_s(meta.creation_timestamp.as_ref()),
        deleting: meta.deletion_timestamp.is_some(),
        said: prepull.spec.image.clone(),
        source: Source::Known,
        spec: prepull.spec,
        status: prepull.status.unwrap_or_default(),
        owner,
        unread: false,
    }
}

/// The facts of a RunnerPool, or why they can't be read.
pub(super) fn runner_pool_facts(object: DynamicObject) -> Result<RunnerPoolFacts, String> {
    let observed = object.data["status"]["observedImage"].as_str();
    let observed = observed
        .filter(|image| !image.is_empty())
        .map(str::to_owned);
    let deleting = object.metadata.deletion_timestamp.is_some();
    let pool: RunnerPool = parse(object)?;
    Ok(RunnerPoolFacts {
        deleting,
        uid: pool.metadata.uid.clone().unwrap_or_default(),
        mode: mode_of(&pool.metadata)?,
        spec: pool.spec,
        observed,
    })
}

/// Reads an object as one of the kind `K`.
pub(super) fn parse<K>(object: DynamicObject) -> Result<K, String>
where
    K: kube::Resource + DeserializeOwned,
{
    object.try_parse().map_err(|error| {
        let source = Error::source(&error).map(ToString::to_string);
        source.unwrap_or_else(|| error.to_string())
    })
}
