//! `spec.imageFrom` of an `ImagePrePull`: a workload whose template names the image.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The workload whose Pods' image is wanted.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageFrom {
    /// Kind of the workload: `Deployment`, `ReplicaSet` or `StatefulSet`, of the group `apps`.
    pub kind: WorkloadKind,
    /// Name of the workload, in this namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Name of the container in the workload's template.
    /// Without this field, the first container counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub container: Option<String>,
}

/// The kinds of workloads that an image may be taken from.
#[derive(
    Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize,
)]
pub enum WorkloadKind {
    /// A Deployment. Its own template counts, not those of its ReplicaSets.
    Deployment,
    /// A ReplicaSet.
    ReplicaSet,
    /// A StatefulSet.
    StatefulSet,
}

impl fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deployment => "Deployment",
            Self::ReplicaSet => "ReplicaSet",
            Self::StatefulSet => "StatefulSet",
        })
    }
}
