//! The metrics of the Kubernetes side. The series of an ImagePrePull, and of the pool of Pods that it gates, are
//! removed when the ImagePrePull goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use rollout::gate::{Outcome, PoolStatus, Reason, Verdict};

use super::{crd::HostCounts, index::ObjectKey, prepull_gate::PrePullGate, write::PodWrite};
use crate::lock::lock;

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabel {
    namespace: String,
    pool: String,
}

/// A pool, and a reason why Pods of it are blocked, or were.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    namespace: String,
    pool: String,
    reason: &'static str,
}

/// An ImagePrePull, and a state of its hosts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PrePullLabel {
    namespace: String,
    prepull: String,
    state: &'static str,
}

/// An ImagePrePull.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LateLabel {
    namespace: String,
    prepull: String,
}

/// Whether the image was staged when a Pod started.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StagedLabel {
    staged: &'static str,
}

/// A kind of write on Pods, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabel {
    write: &'static str,
    outcome: &'static str,
}

const HOST_STATES: [&str; 5] = ["selected", "staged", "staging", "failed", "excluded"];

/// All metrics of the Kubernetes side. Clones share the metrics.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    rolling: Family<PoolLabel, Gauge>,
    stale: Family<PoolLabel, Gauge>,
    cap: Family<PoolLabel, Gauge>,
    warm: Family<PoolLabel, Gauge>,
    replicas: Family<PoolLabel, Gauge>,
    oldest_pending: Family<PoolLabel, Gauge>,
    blocked: Family<ReasonLabel, Gauge>,
    denials: Family<ReasonLabel, Counter>,
    late: Family<LateLabel, Gauge>,
    hosts: Family<PrePullLabel, Gauge>,
    provision: Family<StagedLabel, Histogram, fn() -> Histogram>,
    writes: Family<WriteLabel, Counter>,
    /// 1 while the whole cluster is known.
    pub(crate) synced: Gauge,
    /// 1 while this coordinator leads.
    pub(crate) leader: Gauge,
    /// The reasons for which each pool has series, so that the series can be removed. Locked for a moment only.
    denied: Arc<Mutex<BTreeSet<(ObjectKey, &'static str)>>>,
}

/// Buckets from 1 s to 68 min: a clone takes 9 s, a pull of 60 GB takes half an hour.
fn provision_buckets() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 13))
}

impl Metrics {
    /// Registers the metrics.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let this = Self {
            rolling: Family::default(),
            stale: Family::default(),
            cap: Family::default(),
            warm: Family::default(),
            replicas: Family::default(),
            oldest_pending: Family::default(),
            blocked: Family::default(),
            denials: Family::default(),
            late: Family::default(),
            hosts: Family::default(),
            provision: Family::new_with_constructor(provision_buckets as fn() -> Histogram),
            writes: Family::default(),
            synced: Gauge::default(),
            leader: Gauge::default(),
            denied: Arc::default(),
        };
        let pool = registry.sub_registry_with_prefix("parbake_pool");
        pool.register(
            "rolling_pods",
            "Pods in flight: stale Pods that may drain and, while any stale one is left, current idle Pods that \
             aren't warm",
            this.rolling.clone(),
        );
        pool.register(
            "stale_pods",
            "Pods alive that run another image than their pool's",
            this.stale.clone(),
        );
        pool.register(
            "roll_concurrency_cap",
            "The most Pods that may be in flight at one time",
            this.cap.clone(),
        );
        pool.register(
            "warm_pods",
            "Pods alive that serve: they run, and ask for work or do some",
            this.warm.clone(),
        );
        pool.register(
            "replicas",
            "Number of Pods that the pool shall have",
            this.replicas.clone(),
        );
        pool.register_with_unit(
            "oldest_pending_pod_age",
            "Seconds since the creation of the oldest Pod alive that is Pending, or 0 without one",
            Unit::Seconds,
            this.oldest_pending.clone(),
        );
        pool.register(
            "held_pods",
            "Stale idle Pods that are kept by something else than their turn, by reason",
            this.blocked.clone(),
        );
        pool.register(
            "gate_denials",
            "Times that a Pod began to be held, and times that the webhook refused the drain label, by reason",
            this.denials.clone(),
        );
        let prepull = registry.sub_registry_with_prefix("parbake_prepull");
        prepull.register(
            "hosts",
            "Hosts of an ImagePrePull, by state, as in its status.hosts",
            this.hosts.clone(),
        );
        prepull.register(
            "deadline_passed",
            "1 while the deadline has passed and the image isn't everywhere, otherwise 0",
            this.late.clone(),
        );
        let pod = registry.sub_registry_with_prefix("parbake_pod");
        pod.register_with_unit(
            "provision_delay",
            "Seconds from a Pod's creation until it ran, by whether its Node held the image when the Pod came to it",
            Unit::Seconds,
            this.provision.clone(),
        );
        pod.register(
            "writes",
            "Writes on Pods that ended, by kind of write and outcome",
            this.writes.clone(),
        );
        let coordinator = registry.sub_registry_with_prefix("parbake_coordinator");
        coordinator.register(
            "cluster_synced",
            "1 while the whole cluster is known and watched, otherwise 0. While it is 0, the gate lets no Pod drain",
            this.synced.clone(),
        );
        coordinator.register(
            "leader",
            "1 while this replica leads, otherwise 0",
            this.leader.clone(),
        );
        for staged in ["true", "false"] {
            drop(this.provision.get_or_create(&StagedLabel { staged }));
        }
        this
    }

    pub(crate) fn pool(&self, prepull: &PrePullGate, status: &PoolStatus, oldest_pending_s: u64) {
        let key = &prepull.key;
        let label = pool_label(key);
        self.rolling
            .get_or_create(&label)
            .set(status.in_flight.into());
        self.stale.get_or_create(&label).set(status.stale.into());
        self.cap.get_or_create(&label).set(status.cap.into());
        self.warm.get_or_create(&label).set(status.warm.into());
        self.replicas
            .get_or_create(&label)
            .set(prepull.replicas.into());
        self.oldest_pending
            .get_or_create(&label)
            .set(i64::try_from(oldest_pending_s).unwrap_or(i64::MAX));
        let mut blocked: BTreeMap<&'static str, i64> = BTreeMap::new();
        for pod in status.pods.iter().filter(|pod| pod.stale) {
            if let Verdict::Blocked(reason) = pod.verdict
                && reason.is_block()
            {
                *blocked.entry(reason.as_str()).or_default() += 1;
            }
        }
        let mut denied = lock(&self.denied);
        denied.extend(blocked.keys().map(|reason| (key.clone(), *reason)));
        // a reason that blocks no Pod any more is set to 0
        for (_, reason) in denied.iter().filter(|(prepull, _)| prepull == key) {
            let many = blocked.get(reason).copied().unwrap_or(0);
            self.blocked
                .get_or_create(&reason_label(key, reason))
                .set(many);
        }
    }

    pub(crate) fn forget_pool(&self, key: &ObjectKey) {
        let label = pool_label(key);
        self.rolling.remove(&label);
        self.stale.remove(&label);
        self.cap.remove(&label);
        self.warm.remove(&label);
        self.replicas.remove(&label);
        self.oldest_pending.remove(&label);
        let mut denied = lock(&self.denied);
        denied.retain(|(prepull, reason)| {
            if prepull == key {
                self.denials.remove(&reason_label(key, reason));
                self.blocked.remove(&reason_label(key, reason));
            }
            prepull != key
        });
    }

    pub(crate) fn denied(&self, key: &ObjectKey, reason: Reason) {
        let reason = reason.as_str();
        self.denials.get_or_create(&reason_label(key, reason)).inc();
        let mut denied = lock(&self.denied);
        denied.insert((key.clone(), reason));
    }

    pub(crate) fn prepull(&self, key: &ObjectKey, hosts: &HostCounts, late: bool) {
        self.late.get_or_create(&late_label(key)).set(late.into());
        let values = [
            hosts.selected,
            hosts.staged,
            hosts.staging,
            hosts.failed,
            hosts.excluded,
        ];
        for (state, value) in HOST_STATES.into_iter().zip(values) {
            self.hosts
                .get_or_create(&prepull_label(key, state))
                .set(value.into());
        }
    }

    pub(crate) fn forget_prepull(&self, key: &ObjectKey) {
        self.late.remove(&late_label(key));
        for state in HOST_STATES {
            self.hosts.remove(&prepull_label(key, state));
        }
    }

    /// Makes a series in every family, so that a test sees all families.
    #[cfg(test)]
    pub(crate) fn touch(&self) {
        let key = ObjectKey::new("namespace", "pool");
        for family in [
            &self.rolling,
            &self.stale,
            &self.cap,
            &self.warm,
            &self.replicas,
            &self.oldest_pending,
        ] {
            drop(family.get_or_create(&pool_label(&key)));
        }
        self.denied(&key, Reason::Paused);
        drop(
            self.blocked
                .get_or_create(&reason_label(&key, Reason::Paused.as_str())),
        );
        self.prepull(&key, &HostCounts::default(), false);
        self.wrote(&PodWrite::Reap, Outcome::Done);
    }

    pub(crate) fn provisioned(&self, staged: bool, took: Duration) {
        let staged = if staged { "true" } else { "false" };
        self.provision
            .get_or_create(&StagedLabel { staged })
            .observe(took.as_secs_f64());
    }

    /// How many Pods started with the image staged, and how many without.
    #[cfg(test)]
    pub(crate) fn provisions(&self) -> (u64, u64) {
        let count = |staged| {
            let mut text = String::new();
            let mut registry = Registry::default();
            registry.register("x", "x", self.provision.clone());
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            let wanted = format!("x_count{{staged=\"{staged}\"}} ");
            let line = text.lines().find_map(|line| line.strip_prefix(&wanted));
            line.unwrap().parse().unwrap()
        };
        (count("true"), count("false"))
    }

    pub(crate) fn wrote(&self, write: &PodWrite, outcome: Outcome) {
        let write = match write {
            PodWrite::Label(_) => "label",
            PodWrite::Unlabel(_) => "unlabel",
            PodWrite::Reap => "reap",
        };
        let outcome = match outcome {
            Outcome::Done => "done",
            Outcome::Refused => "refused",
            Outcome::Unknown => "unknown",
        };
        self.writes
            .get_or_create(&WriteLabel { write, outcome })
            .inc();
    }
}

fn pool_label(key: &ObjectKey) -> PoolLabel {
    PoolLabel {
        namespace: key.namespace.clone(),
        pool: key.name.clone(),
    }
}

fn reason_label(key: &ObjectKey, reason: &'static str) -> ReasonLabel {
    ReasonLabel {
        namespace: key.namespace.clone(),
        pool: key.name.clone(),
        reason,
    }
}

fn late_label(key: &ObjectKey) -> LateLabel {
    LateLabel {
        namespace: key.namespace.clone(),
        prepull: key.name.clone(),
    }
}

fn prepull_label(key: &ObjectKey, state: &'static str) -> PrePullLabel {
    PrePullLabel {
        namespace: key.namespace.clone(),
        prepull: key.name.clone(),
        state,
    }
}
