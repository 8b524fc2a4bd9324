//! The custom resources: `ImagePrePull`, which is ours, and `RunnerPool`, which we only read.
//!
//! [`definition`] is what `parbake-coordinator crd` prints and `deploy/crd.yaml` holds. Its schema refuses everything
//! that can be judged without asking a registry. The schema is structural and uses no CEL, so that Kubernetes 1.20
//! takes it too.
//!
//! The doc comments of the types with a schema are the descriptions in `deploy/crd.yaml`. A change of one changes that
//! file.

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

/// The label that lets a Pod drain, unless `spec.gate.drainLabel` says otherwise. Its value is `true`.
pub const DRAIN_LABEL: &str = "tuist.dev/drain-eligible";
/// The share of a pool's replicas that may be in flight, in per cent, unless the gate or the pool says otherwise.
pub const DEFAULT_PERCENT: i32 = 5;
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

/// What to stage, where, and how the roll that follows is gated. May be edited while it runs.
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
    doc = "Stages a tart VM image on the hosts that a selector names, and gates the roll to it.",
    printcolumn = r#"{"name":"Image","type":"string","jsonPath":".spec.image"}"#,
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
    /// The image with its registry, by tag or digest, as Pods and tart have it: `ghcr.io/org/image:tag`. A tag is
    /// resolved once for each generation of this object.
    #[schemars(length(min = 3, max = 512), regex(pattern = REFERENCE))]
    pub image: String,
    /// The Nodes that shall hold the image. It can't be empty: that would be every Node, also those that aren't Macs.
    pub node_selector: LabelSelector,
    /// How many hosts may read from the registry at one time. The coordinator's setting without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256))]
    pub origin_streams: Option<i32>,
    /// The most that each host may move for this image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// A Secret of type `kubernetes.io/dockerconfigjson` in this namespace, to read the registry with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_secret_ref: Option<ObjectName>,
    /// Whether staging and the gate hold. Pods that may drain already keep their label.
    #[serde(default)]
    pub paused: bool,
    /// How long staging may take, from the moment when this image was first asked for: `2h30m`. No limit without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Span>,
    /// What happens when the deadline passes with hosts left over.
    #[serde(default)]
    pub on_deadline: OnDeadline,
    /// This object is deleted so long after everything was staged. It stays without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_after_staged: Option<Span>,
    /// Whether Nodes that join later are staged too.
    #[serde(default)]
    pub completion_policy: CompletionPolicy,
    /// How the roll to this image is gated. Not at all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
}

/// The most that a host may move for one image.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    /// Bytes a second to other hosts, as a quantity: `100M`, `1Gi`. The host's own setting without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<Rate>,
    /// Bytes a second from other hosts and the registry together, as a quantity. The host's own setting without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<Rate>,
}

/// The name of an object in the same namespace.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub struct ObjectName {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What a passed deadline does to hosts that aren't staged.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum OnDeadline {
    /// Their Pods stay; `Degraded` says so.
    #[default]
    Hold,
    /// Their Pods may drain, at the usual pace, and pull the image themselves.
    Proceed,
}

/// Which Nodes are staged.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum CompletionPolicy {
    /// Those that were selected when everything was staged first.
    #[default]
    Once,
    /// Those that are selected, whenever they joined.
    Always,
}

/// Who gives Pods the drain label.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum GateMode {
    /// The coordinator.
    Own,
    /// Another controller; a webhook refuses what the gate wouldn't give.
    Guard,
    /// Nobody: the image is staged and that is all.
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

/// How a roll is gated.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gate {
    /// Who gives Pods the drain label.
    #[serde(default)]
    pub mode: GateMode,
    /// The Pods of the roll, in this namespace. Needed unless `poolRef` names a RunnerPool, whose Pods they are then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// The label that lets a Pod drain; its value is `true`.
    #[serde(default = "drain_label")]
    #[schemars(length(min = 1, max = 317), regex(pattern = LABEL_KEY))]
    pub drain_label: String,
    /// The share of the replicas that may be in flight; at least one Pod always may.
    #[serde(default = "percent")]
    #[schemars(range(min = 1, max = 100))]
    pub max_concurrent_percent: i32,
    /// How many Pods there are meant to be. Needed unless `poolRef` names a RunnerPool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub replicas: Option<i32>,
    /// The RunnerPool in this namespace that says how many Pods there are meant to be, and which they are.
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

/// How far staging and the roll are.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImagePrePullStatus {
    /// The generation that the rest is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where it stands, in a word: `Resolving`, `Unresolved`, `Paused`, `Waiting`, `Staging`, `Failed`, `Staged`,
    /// `Rolling` or `Held`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// What it stands there for, in a word; that of `Degraded` first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The manifest's digest that the image was resolved to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Bytes of the image in the registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    /// Bytes of the image's disk once it is installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<i64>,
    /// How many hosts are in which state.
    pub hosts: HostCounts,
    /// Where the hosts' bytes came from. Never less than before for one digest.
    pub bytes: ByteCounts,
    /// Seconds until the last host is staged, as predicted. Absent when nothing can be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<i64>,
    /// What the gate has to remember when another coordinator takes over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateMemory>,
    /// Up to ten hosts that failed, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub failing: Vec<FailingHost>,
    /// When this image was first asked for: what the deadline counts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When every selected host was staged first: what `ttlAfterStaged` counts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staged_at: Option<Time>,
    /// `Resolved`, `Staged`, `Rolling` and `Degraded`, with reasons.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// What the gate can't see again after a change of leader.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GateMemory {
    /// Pods that it let go and whose successors aren't warm yet, without those that count as in flight.
    pub awaited: i32,
    /// Whether Pods have shown that their owner makes another image than this object's.
    pub owner_lags: bool,
}

/// How many hosts are in which state.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostCounts {
    /// Nodes that the selector names.
    pub selected: i32,
    /// Those that hold the image, verified and ready.
    pub staged: i32,
    /// Those that move bytes or install.
    pub staging: i32,
    /// Those that gave up.
    pub failed: i32,
    /// Those that don't count now: not ready, cordoned, without an agent, revoked.
    pub excluded: i32,
}

/// Bytes by where they came from.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ByteCounts {
    /// From the registry.
    pub origin: i64,
    /// From other hosts.
    pub peers: i64,
    /// From what the host held already.
    pub local: i64,
}

/// A host that failed.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailingHost {
    /// The Node.
    pub host: String,
    /// One word.
    pub reason: String,
    /// What it said.
    pub message: String,
}

/// A length of time, written as `2h30m15s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A text that is neither a length of time nor a rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text isn't hours, minutes and seconds in this order.
    #[error("`{0}` isn't a length of time such as 2h30m")]
    Span(String),
    /// The text isn't a positive number with a known suffix.
    #[error("`{0}` isn't a number of bytes a second such as 100M or 1Gi")]
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

as_text!(Span, SPAN, "a length of time, as in 2h30m15s");
as_text!(
    Rate,
    RATE,
    "bytes a second as a quantity, as in 100M or 1Gi"
);

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

/// A pool of runners, as `runnerpools.tuist.dev` defines it. Only the fields that the gate uses are read, and we never
/// write them.
///
/// The definition belongs to another project and may be newer. So unknown fields are ignored, and absent fields have
/// the defaults of the pools' own controller.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[kube(
    group = "tuist.dev",
    version = "v1alpha1",
    kind = "RunnerPool",
    plural = "runnerpools",
    namespaced,
    schema = "disabled",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct RunnerPoolSpec {
    /// The image that the pool's Pods shall run. It is compared with the Pods' images as text.
    pub image: String,
    /// How many Pods there are meant to be. An autoscaler changes this number every few seconds.
    pub replicas: i32,
    /// The value of the label `tuist.dev/fleet` on the pool's Nodes.
    pub fleet_selector: String,
    /// `darwin` or `linux`. The coordinator follows only pools of `darwin`.
    #[serde(default = "darwin")]
    pub os: String,
    /// The settings of the pool's rolls.
    pub rollout: RunnerPoolRollout,
}

/// The settings of a pool's rolls.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RunnerPoolRollout {
    /// The share of the replicas that may be in flight.
    pub max_concurrent_percent: i32,
}

impl Default for RunnerPoolRollout {
    fn default() -> Self {
        Self {
            max_concurrent_percent: DEFAULT_PERCENT,
        }
    }
}

fn darwin() -> String {
    "darwin".to_owned()
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

    #[test]
    fn a_pool_from_a_newer_or_older_definition_is_read() {
        let pool: RunnerPool = serde_json::from_value(json!({
            "apiVersion": "tuist.dev/v1alpha1",
            "kind": "RunnerPool",
            "metadata": { "name": "p", "namespace": "n" },
            "spec": { "image": "i", "future": { "x": 1 }, "rollout": {} },
            "status": { "anything": true },
        }))
        .unwrap();
        assert_eq!((pool.spec.os.as_str(), pool.spec.replicas), ("darwin", 0));
        assert_eq!(pool.spec.rollout.max_concurrent_percent, DEFAULT_PERCENT);
    }
}
