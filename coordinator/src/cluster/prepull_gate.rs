//! The gates of ImagePrePulls: which Pods each one selects, which image those Pods shall run, and under which cap.
//! Gates are derived anew from the [`Index`] whenever the index changes. Nothing here decides about a Pod.

use std::collections::BTreeSet;

use kube::core::{Selector, SelectorExt as _};
use proto::{Digest, HostId};
use rollout::gate;

use super::{
    clock::Now,
    crd::{GateMode, OnDeadline, RunnerPoolSpec},
    index::{Index, ObjectKey, PodFacts, PrePullFacts, is_labelled},
};

/// The label by which a RunnerPool's Pods name it (tuist/tuist of autumn 2026,
/// infra/runners-controller/internal/podtemplate/podtemplate.go: Build).
const POOL_LABEL: &str = "tuist.dev/runner-pool";
/// The label that names whom a runner works for. The label is empty or absent while the runner is idle (tuist/tuist,
/// infra/runners-controller/controllers/runnerpool_controller.go: isIdle).
const BUSY_LABEL: &str = "tuist.dev/runner-pool-owner";
/// The label of a Pod that an operator drains: its value is `true`, and the Pod leaves before its next claim. The
/// operator may take the label off again (tuist/tuist, infra/runners-controller/AGENTS.md;
/// controllers/shadow_scheduler.go: shadowRunners, which counts no such Pod as warm).
const OPERATOR_DRAIN_LABEL: &str = "tuist.dev/runner-operator-drain";
/// The longest name of a pool that a reservation's taint has as it is, in bytes. The rule of the runners' controllers
/// also asks for the letters of a label's value, which every name of an object has (tuist/tuist of autumn 2026,
/// infra/runners-controller/internal/podtemplate/podtemplate.go: ReservationValue).
const TAINT_BYTES: usize = 63;
/// The hex digits of the SHA-256 of a longer name, which the taint has behind `pool-` (the same ReservationValue).
const HASH_DIGITS: usize = 16;

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
    /// The RunnerPool whose Pods are gated.
    pool: Option<String>,
    /// The fleet that the RunnerPool shares with others.
    fleet: Option<gate::Fleet>,
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
        if runner_pool.is_some_and(|runner_pool| !runner_pool.is_gated()) {
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
            pool: pool_ref.cloned(),
            fleet: runner_pool.and_then(|runner_pool| fleet_of(&runner_pool.spec)),
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
    pub(crate) fn for_gate(
        &self,
        index: &Index,
        facts: &PrePullFacts,
        hosts: BTreeSet<HostId>,
    ) -> gate::PrePull {
        let others = index.reserved();
        let others = others.filter(|(_, taint)| !self.is_named_by(taint));
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
            reserved: others.filter_map(|(node, _)| node.parse().ok()).collect(),
            fleet: self.fleet.clone(),
            paused: facts.spec.paused || self.shut,
            deadline: None,
            on_deadline: match facts.spec.on_deadline {
                OnDeadline::Hold => gate::OnDeadline::Hold,
                OnDeadline::Proceed => gate::OnDeadline::Proceed,
            },
        }
    }

    /// Whether the value of a reservation's taint names this gate's RunnerPool.
    pub(crate) fn is_named_by(&self, taint: &str) -> bool {
        self.pool.as_ref().is_some_and(|pool| names(taint, pool))
    }

    /// How the gate sees a Pod that this gate selects.
    pub(crate) fn pod(
        &self,
        key: &ObjectKey,
        pod: &PodFacts,
        now: Now,
    ) -> (gate::PodId, gate::Pod) {
        // a state without a time that can be read is no signal (tuist/tuist of autumn 2026,
        // infra/runners-controller/controllers/runnerpool_controller.go: guestPolling)
        let heartbeat = match &pod.heartbeat {
            Some((state, Some(at))) if state == "polling" => {
                gate::Heartbeat::Polling(now.moment_of(*at))
            }
            Some((state, None)) if state == "polling" => gate::Heartbeat::Absent,
            None => gate::Heartbeat::Absent,
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
            operator_drain: is_labelled(&pod.labels, OPERATOR_DRAIN_LABEL),
            heartbeat,
            created_unix_s: pod.created_unix_s,
            seen: now.moment_at(pod.seen),
        };
        (gate::PodId(pod.uid.clone()), told)
    }
}

/// The fleet of a RunnerPool. The runners' controllers apply the cap to pools of Linux with Kata alone (tuist/tuist of
/// autumn 2026, infra/runners-controller/controllers/provisioning.go: isLinuxKataPool, provisioningAdmission, where the
/// lowest number of the pools of a fleet holds). A pool of Macs that names one means it, so it holds here.
fn fleet_of(spec: &RunnerPoolSpec) -> Option<gate::Fleet> {
    let most = spec.provisioning.max_concurrent_per_fleet_selector;
    (!spec.fleet_selector.is_empty()).then(|| gate::Fleet {
        name: spec.fleet_selector.clone(),
        most: most.and_then(|most| u32::try_from(most).ok()),
    })
}

/// Whether the value of a reservation's taint names the pool of this name.
pub(crate) fn names(taint: &str, pool: &str) -> bool {
    if pool.len() <= TAINT_BYTES {
        return taint == pool;
    }
    let digest = Digest::of(pool.as_bytes()).hex().to_string();
    taint.strip_prefix("pool-") == digest.get(..HASH_DIGITS)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::index::{Kind, made_up::prepull};

    fn pool(more: &Value) -> Value {
        let mut object = json!({
            "apiVersion": "tuist.dev/v1alpha1",
            "kind": "RunnerPool",
            "metadata": { "name": "xcode", "namespace": "ns", "uid": "xcode" },
            "spec": { "image": "r/i:1", "replicas": 2, "fleetSelector": "m4" },
        });
        for (part, fields) in more.as_object().unwrap() {
            for (field, value) in fields.as_object().unwrap() {
                object[part][field] = value.clone();
            }
        }
        object
    }

    /// An ImagePrePull that gates the pool.
    fn index(more: &Value) -> Index {
        let mut index = Index::default();
        let gate = json!({ "mode": "Own", "poolRef": { "name": "xcode" } });
        let own = prepull("xcode", "r/i:1", &json!({ "spec": { "gate": gate } }));
        index.show(Kind::PrePulls, own);
        index.show(Kind::RunnerPools, pool(more));
        index
    }

    fn told(index: &Index) -> gate::PrePull {
        let key = ObjectKey::new("ns", "xcode");
        let gates = gates(index);
        gates[0].for_gate(index, &index.prepulls[&key], BTreeSet::new())
    }

    #[test]
    fn a_reservation_names_its_pool_in_full_or_by_a_hash() {
        let long = "x".repeat(64);
        let hash = Digest::of(long.as_bytes()).hex().to_string();
        let of_short = Digest::of(b"xcode").hex().to_string();
        let longest = "y".repeat(63);
        for (taint, pool, is_meant) in [
            ("xcode", "xcode", true),
            ("xcode-2", "xcode", false),
            ("", "xcode", false),
            (&format!("pool-{}", &hash[..16]), &long, true),
            (&longest, &longest, true),
            // the controllers make no other values
            (&format!("pool-{hash}"), &long, false),
            (&format!("pool-{}", &hash[..8]), &long, false),
            (&format!("pool-{}", &of_short[..16]), "xcode", false),
            (&long, &long, false),
            ("pool-", &long, false),
            ("pool-0123456789abcdef", &long, false),
            // a pool may be called so
            ("pool-a", "pool-a", true),
        ] {
            assert_eq!(names(taint, pool), is_meant, "{taint} {pool}");
        }
    }

    #[test]
    fn hosts_that_are_reserved_for_others_are_told_as_such() {
        let mut index = index(&json!({}));
        let node = |name: &str, taints: Value| {
            let node =
                json!({ "metadata": { "name": name, "uid": name }, "spec": { "taints": taints } });
            serde_json::from_value(node).unwrap()
        };
        let taint = |value: &str, effect: &str| {
            let taint =
                json!({ "key": "tuist.dev/reserved-for", "value": value, "effect": effect });
            json!([{ "key": "tuist.dev/macos", "value": "true", "effect": "NoSchedule" }, taint])
        };
        for (name, taints) in [
            ("mine", taint("xcode", "NoSchedule")),
            ("theirs", taint("other", "NoSchedule")),
            ("free", json!([])),
            // a taint of somebody's hand: the controllers look at its key alone
            ("odd", taint("other", "PreferNoSchedule")),
        ] {
            assert!(index.apply_node(&node(name, taints)));
        }
        let hosts = ["odd", "theirs"].map(|host| host.parse().unwrap());
        assert_eq!(told(&index).reserved, hosts.into());
        // the reservation is over
        assert!(index.apply_node(&node("theirs", json!([]))));
        assert_eq!(told(&index).reserved, ["odd".parse().unwrap()].into());
    }

    #[test]
    fn a_fleet_and_its_cap_are_those_of_the_pool() {
        assert_eq!(
            told(&index(&json!({}))).fleet,
            Some(gate::Fleet {
                name: "m4".into(),
                most: None
            })
        );
        let most = json!({ "spec": { "provisioning": { "maxConcurrentPerFleetSelector": 3 } } });
        assert_eq!(told(&index(&most)).fleet.unwrap().most, Some(3));
        let none = json!({ "spec": { "fleetSelector": "" } });
        assert_eq!(told(&index(&none)).fleet, None);
    }

    #[test]
    fn a_pool_that_is_being_deleted_or_has_no_macs_gates_nothing() {
        let finalizer = json!({ "metadata": { "finalizers": ["tuist.dev/runner-pool-drain"] } });
        assert_eq!(gates(&index(&finalizer)).len(), 1);
        for more in [
            json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }),
            json!({ "spec": { "os": "linux" } }),
        ] {
            assert!(gates(&index(&more)).is_empty(), "{more}");
        }
    }

    #[test]
    fn an_operators_drain_is_read_off_the_pods_label() {
        let mut index = index(&json!({}));
        let mut drained = |value: &str| {
            let labels = json!({ "tuist.dev/runner-pool": "xcode", OPERATOR_DRAIN_LABEL: value });
            let meta = json!({ "name": "p", "namespace": "ns", "uid": "p", "labels": labels });
            index.show(Kind::Pods, json!({ "metadata": meta }));
            let (key, facts) = index.pods.iter().next().unwrap();
            gates(&index)[0]
                .pod(key, facts, Now::start())
                .1
                .operator_drain
        };
        assert!(drained("true"));
        assert!(!drained("false"));
    }
}
