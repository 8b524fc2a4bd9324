//! The custom resources: `ImagePrePull`, which is ours, and `RunnerPool`, which we only read ([`runner_pool`]).
//!
//! [`definition`] is what `parbake-coordinator crd` prints and `deploy/crd.yaml` holds. Its schema refuses everything
//! that can be judged without asking a registry. The schema is structural and uses no CEL, so that Kubernetes 1.20
//! takes it too.
//!
//! The doc comments of the types with a schema are the descriptions in `deploy/crd.yaml`; `kubectl explain` shows them.
//! Each of their sentences begins a line, because `kubectl` keeps line breaks. A change of one changes that file:
//! `parbake-coordinator crd > deploy/crd.yaml`.

use std::{fmt, str::FromStr, time::Duration};

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
    },
    apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time},
};
use kube::{CustomResource, CustomResourceExt as _};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::json;

pub mod image_from;
pub mod runner_pool;

pub use image_from::{ImageFrom, WorkloadKind};
pub use runner_pool::{DEFAULT_PERCENT, RunnerPool, RunnerPoolRollout, RunnerPoolSpec};

/// The label that lets a Pod drain, unless `spec.gate.drainLabel` says otherwise. Its value is `true` (tuist/tuist of
/// autumn 2026, infra/runners-controller/controllers/runnerpool_controller.go: drainEligibleLabel, markDrainEligible).
pub const DRAIN_LABEL: &str = "tuist.dev/drain-eligible";
/// The most hosts that `status.failing` names.
pub const MAX_FAILING: usize = 10;
/// The annotation of an `ImagePrePull` by which somebody asks for its image anew. When the value changes, everything
/// that failed is tried again at once.
pub const RETRY_ANNOTATION: &str = "parbake.dev/retry-at";
/// The annotation by which a `RunnerPool` opts in: `own`, `guard` or `none`.
pub const GATE_ANNOTATION: &str = "parbake.dev/gate";

/// A reference with its registry, as tart takes it. The whole grammar is checked when the reference is resolved.
const REFERENCE: &str = concat!(
    r"^(localhost|[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+|[A-Za-z0-9.-]+:[0-9]{1,5})(:[0-9]{1,5})?",
    r"(/[a-z0-9]+([._-]+[a-z0-9]+)*)+",
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}|@sha256:[0-9a-f]{64})?$"
);
/// A label key as Kubernetes defines it: `prefix/name`. The prefix has at most 253 characters, the name at most 63.
const LABEL_KEY: &str = concat!(
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?",
    r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
);
/// Hours, minutes and seconds, each with at most six digits, so that no sum of them overflows.
const SPAN: &str = r"^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$";
/// Bytes per second. At most nine digits, so that no value overflows even with the largest suffix.
const RATE: &str = r"^[1-9][0-9]{0,8}(k|M|G|Ki|Mi|Gi)?$";

/// Which image the selected Nodes shall hold, how it gets there, and which Pods wait for it.
/// All fields may be changed at any time.
#[derive(Clone, CustomResource, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "parbake.dev",
    version = "v1alpha1",
    kind = "ImagePrePull",
    plural = "imageprepulls",
    namespaced,
    shortname = "ipp",
    status = "ImagePrePullStatus",
    derive = "PartialEq",
    doc = "Stages a tart VM image on the selected Nodes before Pods need it, and gates the roll of Pods to it.",
    printcolumn = r#"{"name":"Image","type":"string","jsonPath":".status.image"}"#,
    printcolumn = r#"{"name":"Staged","type":"integer","jsonPath":".status.hosts.staged"}"#,
    printcolumn = r#"{"name":"Selected","type":"integer","jsonPath":".status.hosts.selected"}"#,
    printcolumn = r#"{"name":"Excluded","type":"integer","jsonPath":".status.hosts.excluded"}"#,
    printcolumn = r#"{"name":"Failed","type":"integer","jsonPath":".status.hosts.failed"}"#,
    printcolumn = r#"{"name":"State","type":"string","jsonPath":".status.state"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.reason"}"#,
    printcolumn = r#"{"name":"Gate","type":"string","jsonPath":".spec.gate.mode","priority":1}"#,
    printcolumn = r#"{"name":"Digest","type":"string","jsonPath":".status.digest","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ImagePrePullSpec {
    /// The image, with its registry, by tag or by digest: `ghcr.io/org/image:tag`.
    /// Write it exactly as the Pods do, because the gate compares the two texts.
    /// A tag is resolved to a digest once. If the tag moves in the registry later, this object doesn't follow it.
    /// Either this field or `imageFrom` is needed, and not both.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(min = 3, max = 512), regex(pattern = REFERENCE))]
    pub image: String,
    /// The workload, in this namespace, whose template names the image. The object follows the template by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_from: Option<ImageFrom>,
    /// Labels of the Nodes that shall hold the image.
    /// The selector can't be empty, because an empty one selects every Node, also those that aren't Macs.
    /// Nodes that aren't Ready, are cordoned or have no enrolled agent of the same name don't count.
    pub node_selector: LabelSelector,
    /// How urgent the image is beside others that the same Nodes shall hold: hosts finish images of higher priority
    /// first. What a Pod on the Node waits for comes before all others.
    /// Of equally urgent images, the one asked for first comes first.
    /// The priority may be changed while images are being staged.
    #[serde(default)]
    pub priority: i32,
    /// The most downloads from registries that run at one time in the whole fleet, while this object is being staged.
    /// One download fetches one layer for all hosts.
    /// Where several objects set a limit, the lowest counts.
    /// Without this field, the coordinator's own setting counts (`origin_streams`, 4 by default).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256))]
    pub origin_streams: Option<i32>,
    /// The most bytes per second that each host moves, while this object is being staged.
    /// The limit counts for all images together. Where several objects set a limit, the lowest counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// The Secret of type `kubernetes.io/dockerconfigjson`, in this namespace, whose credentials read this image.
    /// Without this field, the coordinator's own credentials are used, or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_secret_ref: Option<ObjectName>,
    /// Whether staging and the gate are paused.
    /// While they are, hosts fetch no more of the image, and no more Pods get the drain label.
    /// Pods that have the label keep it.
    #[serde(default)]
    pub paused: bool,
    /// How long staging may take, such as `2h30m`, from `status.startedAt` on.
    /// `onDeadline` says what happens then.
    /// Without this field there is no deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Span>,
    /// What the gate does when the deadline has passed and some hosts still lack the image.
    /// `Hold`: Pods of these hosts still may not drain, and the condition `Degraded` says so.
    /// `Proceed`: Pods of these hosts may drain, under the cap, and the hosts pull the image themselves.
    #[serde(default)]
    pub on_deadline: OnDeadline,
    /// How long after `status.stagedAt` this object is deleted, such as `24h`. It isn't deleted while Pods still roll.
    /// Without this field, and for an object that belongs to a RunnerPool, it isn't deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_after_staged: Option<Span>,
    /// When staging is over.
    /// `Once`: when all selected hosts hold the image for the first time.
    /// Nodes that join later don't get the image, unless gated Pods still roll.
    /// `Always`: never. Nodes that join later and hosts that lose the image get it.
    #[serde(default)]
    pub completion_policy: CompletionPolicy,
    /// Which Pods may drain only when their Node holds the image, and how many at one time.
    /// Without this field, no Pod is gated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
}

/// The most that each host may move.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    /// Bytes per second to other hosts, such as `100M` or `1Gi`.
    /// Without this field, the host's own setting counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<Rate>,
    /// Bytes per second from other hosts and the registry together, such as `100M` or `1Gi`.
    /// Without this field, the host's own setting counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<Rate>,
}

/// The name of an object in the same namespace.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub struct ObjectName {
    /// Name of the object, in this namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What a passed deadline means for hosts that lack the image.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum OnDeadline {
    /// Their Pods may not drain, and `Degraded` says so.
    #[default]
    Hold,
    /// Their Pods may drain, under the cap, and the hosts pull the image themselves.
    Proceed,
}

/// When staging is over.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum CompletionPolicy {
    /// When all selected hosts hold the image for the first time.
    #[default]
    Once,
    /// Never.
    Always,
}

/// Who gives Pods the drain label.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum GateMode {
    /// The coordinator.
    Own,
    /// Another controller; a webhook refuses labels that the gate wouldn't give.
    Guard,
    /// The coordinator doesn't look at Pods.
    #[default]
    None,
}

impl From<crate::cli::DefaultGate> for GateMode {
    fn from(gate: crate::cli::DefaultGate) -> Self {
        match gate {
            crate::cli::DefaultGate::Own => Self::Own,
            crate::cli::DefaultGate::Guard => Self::Guard,
            crate::cli::DefaultGate::None => Self::None,
        }
    }
}

/// Which Pods are kept from draining, and how many may drain at one time.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gate {
    /// Who gives Pods the drain label.
    /// `Own`: the coordinator, when the Pod's Node holds the image and fewer Pods than the cap are in flight.
    /// `Guard`: another controller. A webhook refuses the label where `Own` wouldn't give it.
    /// `None`: the coordinator doesn't look at Pods.
    #[serde(default)]
    pub mode: GateMode,
    /// Labels of the Pods that are gated, in this namespace.
    /// The field is needed without `poolRef`. With `poolRef`, it defaults to the Pods of the RunnerPool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// Key of the label that lets a Pod drain. Its value is `true`.
    #[serde(default = "drain_label")]
    #[schemars(length(min = 1, max = 317), regex(pattern = LABEL_KEY))]
    pub drain_label: String,
    /// The cap: the most Pods that may be in flight at one time, in percent. One Pod always may be.
    /// 100 percent are the `replicas`, or the Pods that there are where these are fewer.
    /// With `poolRef`, the RunnerPool's own value counts instead.
    #[serde(default = "percent")]
    #[schemars(range(min = 1, max = 100))]
    pub max_concurrent_percent: i32,
    /// How many Pods there shall be.
    /// The field is needed without `poolRef`. With `poolRef`, the RunnerPool's own value counts instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub replicas: Option<i32>,
    /// The RunnerPool, in this namespace, whose Pods are gated.
    /// It says which image they shall run and how many there shall be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_ref: Option<ObjectName>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            mode: GateMode::default(),
            pod_selector: None,
            drain_label: drain_label(),
            max_concurrent_percent: percent(),
            replicas: None,
            pool_ref: None,
        }
    }
}

fn drain_label() -> String {
    DRAIN_LABEL.to_owned()
}

const fn percent() -> i32 {
    DEFAULT_PERCENT
}

/// How far staging and the roll are. The coordinator writes it.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImagePrePullStatus {
    /// The generation of this object that the status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where the object stands, in one word.
    /// It is `Resolving`, `Unresolved`, `Paused`, `Waiting`, `Staging`, `Failed`, `Staged`, `Rolling` or `Held`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Why the object stands there, in one word. If the condition `Degraded` is true, this is its reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The image that is wanted: `spec.image`, or what the template of `spec.imageFrom` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Digest of the manifest to which the image was resolved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Size of the image in the registry, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    /// Size of the image's disk after the installation, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<i64>,
    /// The image's recipe, which proves each MiB of the image. The field is absent when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe: Option<RecipeStatus>,
    /// Number of hosts in each state.
    pub hosts: HostCounts,
    /// Bytes of the image that all hosts received, by source. For one digest, the numbers never fall.
    pub bytes: ByteCounts,
    /// What staging the image was predicted to move when it began, and what it moved since.
    /// It counts every host that shall hold the image, also those that other objects select.
    /// The field is absent when nobody knows when the staging began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction: Option<PredictionStatus>,
    /// Seconds until the last host will be staged, as predicted. The field is absent when nothing can be predicted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<i64>,
    /// What the gate keeps here for the next leader of the coordinator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateMemory>,
    /// Hosts that failed to stage the image, ten at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub failing: Vec<FailingHost>,
    /// When this image was first wanted. `deadline` counts from this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When all selected hosts held the image for the first time. `ttlAfterStaged` counts from this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staged_at: Option<Time>,
    /// The conditions `Resolved`, `Staged`, `Rolling` and `Degraded`, each with a reason and a message.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// The recipe of an image.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RecipeStatus {
    // an API server refuses an empty text as a default
    /// Digest of the recipe.
    pub digest: String,
    /// Size of the recipe, in bytes.
    #[serde(default)]
    pub size: i64,
    /// Whether hosts made the recipe, because the registry has none.
    #[serde(default)]
    pub made_by_fleet: bool,
    /// Number of contents that are staged without the recipe, because the registry's bytes don't fit it.
    #[serde(default)]
    pub doubted_contents: i32,
}

/// What the gate can't see again after a change of leader.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GateMemory {
    /// Number of Pods that drained and whose successors aren't warm yet, without those that are seen to be in flight.
    pub awaited: i32,
    /// Whether new Pods have shown that their owner makes another image than this object's.
    pub owner_lags: bool,
}

/// Number of hosts in each state.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostCounts {
    /// Nodes that `nodeSelector` selects.
    pub selected: i32,
    /// Hosts that hold the image, verified and ready for `tart clone`.
    pub staged: i32,
    /// Hosts where the image is queued, arrives or is being installed.
    pub staging: i32,
    /// Hosts that failed to stage the image. `failing` names them.
    pub failed: i32,
    /// Selected Nodes that don't count now: not Ready, cordoned, or without an enrolled agent of the same name.
    pub excluded: i32,
}

/// Bytes, by the place where they came from.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ByteCounts {
    /// Bytes from the registry.
    pub origin: i64,
    /// Bytes from other hosts.
    pub peers: i64,
    /// Bytes that the hosts had on their own disks.
    pub local: i64,
    /// Bytes that the hosts wrote, which is also the space that the image took.
    pub written: i64,
}

/// What a staging was predicted to move, and what it moved.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PredictionStatus {
    /// Predicted bytes. Hosts find more on their disks than the coordinator knows of.
    /// So `local` is predicted at least, and the others at most.
    pub bytes: ByteCounts,
    /// Bytes that were moved since the prediction.
    pub measured: ByteCounts,
    // absent values are sent as null, so that a merge patch removes earlier ones
    /// Predicted seconds, at least. The field is absent when no rate is known, or nothing has to move.
    pub seconds: Option<i64>,
    /// What limits these seconds: `registry`, `link`, `uploads` or `disk`.
    pub bound_by: Option<String>,
    /// Seconds that the staging took. The field is absent until all hosts hold the image.
    pub took_seconds: Option<i64>,
}

/// A host that failed to stage the image.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailingHost {
    /// Name of the Node.
    pub host: String,
    /// Why it failed, in one word.
    pub reason: String,
    /// What the host's agent said about it.
    pub message: String,
}

/// A length of time, written as `2h30m15s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A text that is neither a length of time nor a rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text isn't hours, minutes and seconds in this order.
    #[error("`{0}` isn't a length of time: write hours, minutes and seconds, such as 2h30m")]
    Span(String),
    /// The text isn't a positive number with a known suffix.
    #[error(
        "`{0}` isn't a number of bytes per second: write a positive number, with k, M, G, Ki, Mi or Gi where \
         needed, such as 100M"
    )]
    Rate(String),
}

impl FromStr for Span {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let refuse = || QuantityError::Span(text.chars().take(40).collect());
        let mut seconds = 0;
        let mut rest = text;
        for (unit, factor) in [('h', 3_600), ('m', 60), ('s', 1)] {
            if let Some((number, after)) = rest.split_once(unit) {
                if number.len() > 6 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(refuse());
                }
                seconds += number.parse::<u64>().map_err(|_| refuse())? * factor;
                rest = after;
            }
        }
        if text.is_empty() || !rest.is_empty() {
            return Err(refuse());
        }
        Ok(Self(Duration::from_secs(seconds)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
        for (number, unit) in [(hours, 'h'), (minutes, 'm')] {
            if number > 0 {
                write!(f, "{number}{unit}")?;
            }
        }
        if seconds > 0 || (hours, minutes) == (0, 0) {
            write!(f, "{seconds}s")?;
        }
        Ok(())
    }
}

/// Bytes a second, written as a quantity: `100M`, `1Gi`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate {
    /// The number.
    pub bytes_per_second: u64,
}

const SUFFIXES: [(&str, u64); 6] = [
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
];

impl FromStr for Rate {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let refuse = || QuantityError::Rate(text.chars().take(40).collect());
        let (number, factor) = SUFFIXES
            .iter()
            .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)))
            .unwrap_or((text, 1));
        let plain = (1..=9).contains(&number.len())
            && !number.starts_with('0')
            && number.bytes().all(|byte| byte.is_ascii_digit());
        if !plain {
            return Err(refuse());
        }
        let number: u64 = number.parse().map_err(|_| refuse())?;
        Ok(Self {
            bytes_per_second: number * factor,
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes_per_second;
        match SUFFIXES
            .iter()
            .find(|(_, factor)| bytes.is_multiple_of(*factor))
        {
            Some((suffix, factor)) if bytes > 0 => write!(f, "{}{suffix}", bytes / factor),
            _ => write!(f, "{bytes}"),
        }
    }
}

/// Reads and writes the type as text, and describes that text's pattern in the schema.
macro_rules! as_text {
    ($type:ident, $pattern:expr, $description:expr) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(D::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string",
                    "description": $description,
                    "minLength": 1,
                    "maxLength": 24,
                    "pattern": $pattern,
                })
            }
        }
    };
}

as_text!(Span, SPAN, "A length of time, such as 2h30m15s.");
as_text!(Rate, RATE, "Bytes per second, such as 100M or 1Gi.");

/// The definition of `ImagePrePull`, in the form that a cluster takes.
///
/// The derived schema describes each field. The rules between fields are added here.
#[must_use]
pub fn definition() -> CustomResourceDefinition {
    let mut definition = ImagePrePull::crd();
    for version in &mut definition.spec.versions {
        let Some(root) = version
            .schema
            .as_mut()
            .and_then(|schema| schema.open_api_v3_schema.as_mut())
        else {
            continue;
        };
        if let Some(spec) = at(root, &["spec"]) {
            // not CEL, which Kubernetes knows only since 1.25
            spec.one_of = rules(json!([
                { "required": ["image"] },
                { "required": ["imageFrom"] },
            ]));
        }
        if let Some(selector) = at(root, &["spec", "nodeSelector"]) {
            selects_something(selector);
        }
        if let Some(gate) = at(root, &["spec", "gate"]) {
            // Defaults are filled in before this is checked, so a gate without a mode counts as `None`.
            gate.any_of = rules(json!([
                { "required": ["poolRef"] },
                { "required": ["podSelector", "replicas"] },
                { "properties": { "mode": { "enum": ["None"] } } },
            ]));
            if let Some(selector) = at(gate, &["podSelector"]) {
                selects_something(selector);
            }
        }
        if let Some(conditions) = at(root, &["status", "conditions"]) {
            conditions.x_kubernetes_list_type = Some("map".into());
            conditions.x_kubernetes_list_map_keys = Some(vec!["type".into()]);
        }
    }
    definition
}

/// [`definition`] as YAML, with a first line that names the command that made it.
///
/// # Errors
/// The definition can't be written as YAML.
pub fn yaml() -> Result<String, serde_saphyr::ser::Error> {
    let text = serde_saphyr::to_string(&definition())?;
    Ok(format!(
        "# Made by `parbake-coordinator crd`.\n{}\n",
        text.trim_end()
    ))
}

/// The property at this path.
fn at<'a>(root: &'a mut JSONSchemaProps, path: &[&str]) -> Option<&'a mut JSONSchemaProps> {
    path.iter().try_fold(root, |schema, name| {
        schema.properties.as_mut()?.get_mut(*name)
    })
}

/// Adds a rule that the selector has at least one term. A selector without a term selects everything, which is never
/// meant here.
fn selects_something(selector: &mut JSONSchemaProps) {
    selector.any_of = rules(json!([
        { "required": ["matchLabels"], "properties": { "matchLabels": { "minProperties": 1 } } },
        { "required": ["matchExpressions"], "properties": { "matchExpressions": { "minItems": 1 } } },
    ]));
    let Some(terms) = at(selector, &["matchExpressions"]) else {
        return;
    };
    if let Some(JSONSchemaPropsOrArray::Schema(term)) = &mut terms.items {
        term.any_of = rules(json!([
            { "properties": { "operator": { "enum": ["Exists", "DoesNotExist"] } } },
            {
                "required": ["values"],
                "properties": { "operator": { "enum": ["In", "NotIn"] }, "values": { "minItems": 1 } },
            },
        ]));
    }
}

/// Parses schemas that are literals in this file. A test covers each of them.
fn rules(rules: serde_json::Value) -> Option<Vec<JSONSchemaProps>> {
    serde_json::from_value(rules).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_definition_is_the_one_that_the_program_prints() {
        let committed = include_str!("../../../deploy/crd.yaml");
        assert!(
            yaml().unwrap() == committed,
            "write it anew: parbake-coordinator crd > deploy/crd.yaml"
        );
    }

    #[test]
    fn every_rule_between_fields_is_in_the_definition() {
        let mut definition = definition();
        let root = definition.spec.versions[0].schema.as_mut().unwrap();
        let root = root.open_api_v3_schema.as_mut().unwrap();
        for path in [
            &["spec", "nodeSelector"][..],
            &["spec", "gate"],
            &["spec", "gate", "podSelector"],
        ] {
            let found = at(root, path).unwrap();
            assert!(
                found.any_of.as_ref().is_some_and(|rules| rules.len() >= 2),
                "{path:?}"
            );
        }
        let spec = at(root, &["spec"]).unwrap();
        assert_eq!(spec.one_of.as_ref().unwrap().len(), 2);
        assert_eq!(spec.required, Some(vec!["nodeSelector".to_owned()]));
        let image = at(root, &["spec", "image"]).unwrap();
        assert_eq!(image.default, None, "an API server refuses an empty text");
        let terms = at(root, &["spec", "nodeSelector", "matchExpressions"]).unwrap();
        let Some(JSONSchemaPropsOrArray::Schema(term)) = &terms.items else {
            panic!("terms have a schema");
        };
        assert_eq!(term.any_of.as_ref().unwrap().len(), 2);
        assert!(
            at(root, &["status", "conditions"])
                .unwrap()
                .x_kubernetes_list_map_keys
                .is_some()
        );
    }

    #[test]
    fn a_length_of_time_is_read_and_written_alike() {
        for (text, seconds) in [
            ("2h30m15s", 9_015),
            ("90m", 5_400),
            ("0s", 0),
            ("999999h", 3_599_996_400),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.0.as_secs(), seconds);
            assert_eq!(span.to_string().parse::<Span>().unwrap(), span);
        }
        for bad in ["", "h", "5", "1m1h", "-1s", "1h ", "1000000h", "1.5h"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_rate_is_read_and_written_alike() {
        for (text, bytes) in [
            ("100M", 100_000_000),
            ("1Gi", 1 << 30),
            ("1", 1),
            ("64Ki", 65_536),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(rate.bytes_per_second, bytes);
            assert_eq!(rate.to_string(), text);
        }
        for bad in ["", "0", "M", "01", "1T", "-1", "1 M", "1000000000"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn defaults_are_filled_in_and_left_out_again() {
        let least = json!({
            "image": "ghcr.io/org/image:tag",
            "nodeSelector": { "matchLabels": { "a": "b" } },
            "gate": { "mode": "Own", "poolRef": { "name": "p" } },
        });
        let spec: ImagePrePullSpec = serde_json::from_value(least).unwrap();
        let gate = spec.gate.as_ref().unwrap();
        assert_eq!(
            (gate.max_concurrent_percent, gate.drain_label.as_str()),
            (5, DRAIN_LABEL)
        );
        assert_eq!(
            (spec.on_deadline, spec.completion_policy),
            (OnDeadline::Hold, CompletionPolicy::Once)
        );
        let again = serde_json::from_value(serde_json::to_value(&spec).unwrap()).unwrap();
        assert_eq!(spec, again);
    }
}
