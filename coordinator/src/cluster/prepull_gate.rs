//! The gates of ImagePrePulls: which Pods each one selects, which image those Pods shall run, and under which cap.
//! Gates are derived anew from the [`Index`] whenever the index changes. Nothing here decides about a Pod.

use std::collections::BTreeSet;

use kube::core::{Selector, SelectorExt as _};
use proto::HostId;
use rollout::gate;

use super::{
    clock::Now,
    crd::{GateMode, OnDeadline},
    index::{Index, ObjectKey, PodFacts, PrePullFacts, is_labelled},
};

/// The label by which a RunnerPool's Pods name it.
const POOL_LABEL: &str = "tuist.dev/runner-pool";
/// The label that names whom a runner works for. The label is empty or absent while the runner is idle.
const BUSY_LABEL: &str = "tuist.dev/runner-pool-owner";
/// How one ImagePrePull gates Pods.
#[derive(Clone, Debug)]
pub(crate) struct PrePullGate {
    pub(crate) key: ObjectKey,
    selector: Selector,
    pub(crate) drain_label: String,
    pub(crate) mode: GateMode,
    /// The image that Pods shall run, as written.
    pub(crate) image: String,
    pub(crate) percent: i32,
    pub(crate) replicas: i32,
    /// The gate's RunnerPool can't be read, so the gate admits nothing.
    shut: bool,
}

/// The gates of all ImagePrePulls. Older ImagePrePulls come first: where several gates select a Pod, the first counts.
pub(crate) fn gates(index: &Index) -> Vec<PrePullGate> {
    let mut order: Vec<_> = index.prepulls.iter().collect();
    order.sort_by_key(|(key, facts)| (facts.created_unix_s, (*key).clone()));
    order
        .into_iter()
        .filter_map(|(key, facts)| PrePullGate::of(index, key, facts))
        .collect()
}

impl PrePullGate {
    /// The gate of an ImagePrePull. `None` where the ImagePrePull gates nothing.
    fn of(index: &Index, key: &ObjectKey, facts: &PrePullFacts) -> Option<Self> {
        let gate = facts.spec.gate.as_ref()?;
        if facts.deleting || gate.mode == GateMode::None {
            return None;
        }
        let pool_ref = gate.pool_ref.as_ref().map(|pool_ref| &pool_ref.name);
        let runner_pool_key = pool_ref.map(|name| ObjectKey::new(&key.namespace, name));
        let runner_pool = runner_pool_key
            .as_ref()
            .and_then(|key| index.runner_pools.get(key));
        let shut = runner_pool_key
            .as_ref()
            .is_some_and(|key| index.unreadable_runner_pools.contains(key));
        // a RunnerPool that doesn't exist has no Pods
        if runner_pool_key.is_some() && runner_pool.is_none() && !shut {
            return None;
        }
        let selector = match (&gate.pod_selector, pool_ref) {
            (Some(selector), _) => Selector::try_from(selector.clone()).ok()?,
            (None, Some(name)) => [(POOL_LABEL.to_owned(), name.clone())]
                .into_iter()
                .collect(),
            (None, None) => return None,
        };
        // a selector without a term selects everything: the schema refuses such a selector, and so does this function
        if selector.selects_all() {
            return None;
        }
        Some(Self {
            key: key.clone(),
            selector,
            drain_label: gate.drain_label.clone(),
            mode: gate.mode,
            image: runner_pool
                .map_or(&facts.spec.image, |runner_pool| &runner_pool.spec.image)
                .clone(),
            percent: runner_pool.map_or(gate.max_concurrent_percent, |runner_pool| {
                runner_pool.spec.rollout.max_concurrent_percent
            }),
            replicas: runner_pool.map_or(gate.replicas.unwrap_or(0), |runner_pool| {
                runner_pool.spec.replicas
            }),
            shut,
        })
    }

    /// Whether this gate selects a Pod. Where several gates select a Pod, the first counts.
    pub(crate) fn selects(&self, key: &ObjectKey, pod: &PodFacts) -> bool {
        key.namespace == self.key.namespace && self.selector.matches(&pod.labels)
    }

    /// Whether this gate selects the same Pods as another, by the same label.
    pub(crate) fn selects_like(&self, other: &Self) -> bool {
        self.key == other.key
            && self.drain_label == other.drain_label
            && self.selector.to_string() == other.selector.to_string()
    }

    /// How the gate sees the ImagePrePull, except for what the index doesn't know: the digest, what owners make, and
    /// the deadline.
    pub(crate) fn for_gate(&self, facts: &PrePullFacts, hosts: BTreeSet<HostId>) -> gate::PrePull {
        gate::PrePull {
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
            paused: facts.spec.paused || self.shut,
            deadline: None,
            on_deadline: match facts.spec.on_deadline {
                OnDeadline::Hold => gate::OnDeadline::Hold,
                OnDeadline::Proceed => gate::OnDeadline::Proceed,
            },
        }
    }

    /// How the gate sees a Pod that this gate selects.
    pub(crate) fn pod(
        &self,
        key: &ObjectKey,
        pod: &PodFacts,
        now: Now,
    ) -> (gate::PodId, gate::Pod) {
        let heartbeat = match &pod.heartbeat {
            None => gate::Heartbeat::Absent,
            Some((state, Some(at))) if state == "polling" => {
                gate::Heartbeat::Polling(now.moment_of(*at))
            }
            Some(_) => gate::Heartbeat::Other,
        };
        let place = match &pod.node {
            None => gate::Place::Unscheduled,
            Some(node) => node
                .parse::<HostId>()
                .map_or(gate::Place::Elsewhere, gate::Place::On),
        };
        let busy = pod.labels.get(BUSY_LABEL);
        let told = gate::Pod {
            prepull: self.key.prepull_id(),
            name: gate::PodName {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
            },
            image: pod.image.clone(),
            place,
            phase: pod.phase,
            deleting: pod.deleting,
            labelled: is_labelled(&pod.labels, &self.drain_label),
            busy: busy.is_some_and(|owner| !owner.is_empty()),
            heartbeat,
            created_unix_s: pod.created_unix_s,
            seen: now.moment_at(pod.seen),
        };
        (gate::PodId(pod.uid.clone()), told)
    }
}
