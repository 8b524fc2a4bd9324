//! What a runner's Pod says of itself.

use k8s_openapi::api::core::v1::Pod;

/// The label that lets a Pod drain.
pub const DRAIN_LABEL: &str = "tuist.dev/drain-eligible";
/// The label that says whose a Pod is.
pub const POOL_LABEL: &str = "tuist.dev/runner-pool";
/// The label of a Pod that works for somebody.
pub const BUSY_LABEL: &str = "tuist.dev/runner-pool-owner";

/// A Pod's phase.
#[must_use]
pub fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or("Pending")
}

/// What a Pod runs.
#[must_use]
pub fn image(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.containers.first()?.image.as_deref())
        .unwrap_or_default()
}

/// Whether a Pod works for somebody.
#[must_use]
pub fn is_busy(pod: &Pod) -> bool {
    label(pod, BUSY_LABEL).is_some_and(|owner| !owner.is_empty())
}

/// Where a Pod runs.
#[must_use]
pub fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// Whether a Pod may drain.
#[must_use]
pub fn is_labelled(pod: &Pod) -> bool {
    label(pod, DRAIN_LABEL) == Some("true")
}

/// A label of a Pod.
#[must_use]
pub fn label<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.labels.as_ref()?.get(name).map(String::as_str)
}

pub(super) fn is_alive(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase(pod), "Succeeded" | "Failed")
}
