//! The ImagePrePulls that the keeper itself creates, changes and deletes: those that RunnerPools own, and those whose
//! time to live after staging is over.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};
use kube::api::ObjectMeta;
use serde_json::{Value, json};
use tracing::{info, warn};

use super::{once::Once, writes::Writes};
use crate::cluster::{
    clock::Now,
    crd::{
        CompletionPolicy, Gate, GateMode, ImagePrePull, ImagePrePullSpec, ImagePrePullStatus,
        ObjectName, OnDeadline,
    },
    index::{FLEET_LABEL, Index, ObjectKey, PrePullFacts, RunnerPoolFacts},
    write::{Own, WriteError},
};

/// The longest pause before a failed write of an ImagePrePull is tried again.
const RETRY: Duration = Duration::from_mins(1);
/// The most RunnerPools that are named in the log because they can't be followed, once each.
const MAX_COMPLAINTS: usize = 1_000;

/// Follows RunnerPools by writes of their ImagePrePulls.
#[derive(Debug)]
pub(super) struct RunnerPools {
    /// The gate mode of a RunnerPool that doesn't name one.
    default_gate: GateMode,
    writes: Writes<ObjectKey>,
    not_followed: Once,
}

/// What happens to an ImagePrePull whose time to live may be over.
#[derive(Debug)]
pub(super) enum Life {
    /// The ImagePrePull stays.
    Stays,
    /// The time is over, and the deletion was begun or waits for another try.
    Ends,
    /// The ImagePrePull is to be deleted now.
    End(Own),
}

impl RunnerPools {
    pub(super) const fn new(default_gate: GateMode) -> Self {
        Self {
            default_gate,
            writes: Writes::new(RETRY),
            not_followed: Once::new(MAX_COMPLAINTS),
        }
    }

    /// The writes that create, update and delete the ImagePrePulls of RunnerPools. Each returned write counts as begun.
    /// With `absent`, some kind is missing in the cluster: a RunnerPool that isn't there may only be unseen, so nothing
    /// is deleted.
    pub(super) fn due(
        &mut self,
        now: Instant,
        index: &Index,
        absent: bool,
    ) -> Vec<(ObjectKey, Own)> {
        let mut wanted = self.followed(index);
        if !absent {
            wanted.extend(self.orphans(index));
        }
        let keys: BTreeSet<&ObjectKey> = wanted.iter().map(|(key, _)| key).collect();
        // an ImagePrePull with a time to live belongs to no RunnerPool
        let ends = |key: &ObjectKey| {
            let facts = index.prepulls.get(key);
            facts.is_some_and(|facts| facts.spec.ttl_after_staged.is_some())
        };
        self.writes.keep(|key| keys.contains(key) || ends(key));
        wanted.retain(|(key, _)| self.writes.begin(now, key));
        wanted
    }

    /// The writes that create and update the ImagePrePulls of RunnerPools.
    fn followed(&mut self, index: &Index) -> Vec<(ObjectKey, Own)> {
        let mut writes = Vec::new();
        for (key, pool) in &index.runner_pools {
            let Some(mode) = self.mode(pool).filter(|_| !pool.spec.image.is_empty()) else {
                continue;
            };
            match index.prepulls.get(key) {
                // a coordinator that can't read an ImagePrePull mustn't change it
                Some(facts) if facts.unread => {}
                None => writes.push((key.clone(), Own::Create(Box::new(owned(key, pool, mode))))),
                Some(facts) if is_owned(facts, pool) => {
                    if let Some(patch) = follow(facts, pool, mode) {
                        writes.push((key.clone(), Own::Change(patch)));
                    }
                }
                Some(_) => {
                    let object =
                        format!("imageprepulls {key} isn't owned by the RunnerPool of its name");
                    if self.not_followed.is_new(&object) {
                        warn!(
                            object,
                            "RunnerPool isn't followed; delete or rename the ImagePrePull"
                        );
                    }
                }
            }
        }
        writes
    }

    /// The deletions of ImagePrePulls whose RunnerPool is gone, or isn't followed any more.
    fn orphans(&self, index: &Index) -> Vec<(ObjectKey, Own)> {
        let mut writes = Vec::new();
        for (key, facts) in &index.prepulls {
            let Some((name, uid)) = &facts.owner else {
                continue;
            };
            let pool_key = ObjectKey::new(&key.namespace, name);
            // the RunnerPool exists, whatever it means: its ImagePrePull stays, and the Pods are blocked
            if index.unreadable_runner_pools.contains(&pool_key) {
                continue;
            }
            let pool = index.runner_pools.get(&pool_key);
            let wanted = pool.is_some_and(|pool| pool.uid == *uid && self.mode(pool).is_some());
            if !wanted && !facts.deleting {
                writes.push((key.clone(), Own::Delete(facts.uid.clone())));
            }
        }
        writes
    }

    /// How a RunnerPool is gated. `None` where the pool isn't followed: its gate mode is none, its runners aren't Macs,
    /// or it is being deleted.
    fn mode(&self, pool: &RunnerPoolFacts) -> Option<GateMode> {
        let mode = pool.mode.unwrap_or(self.default_gate);
        (mode != GateMode::None && pool.is_gated()).then_some(mode)
    }

    /// Whether an ImagePrePull's time to live after staging is over. The ImagePrePull stays while its Pods roll.
    pub(super) fn life(
        &mut self,
        now: Now,
        key: &ObjectKey,
        facts: &PrePullFacts,
        status: &ImagePrePullStatus,
        rolls: bool,
    ) -> Life {
        let staged = status.staged_at.as_ref().map(|at| SystemTime::from(at.0));
        let end = facts
            .spec
            .ttl_after_staged
            .and_then(|ttl| staged?.checked_add(ttl.0));
        let over = end.is_some_and(|end| end <= now.time);
        if !over || rolls || facts.deleting || facts.owner.is_some() {
            return Life::Stays;
        }
        if !self.writes.begin(now.instant, key) {
            return Life::Ends;
        }
        info!(prepull = %key, "everything was staged long enough ago; the ImagePrePull is deleted, as it asks");
        Life::End(Own::Delete(facts.uid.clone()))
    }

    /// A write of an ImagePrePull ended.
    pub(super) fn written(
        &mut self,
        now: Instant,
        key: &ObjectKey,
        result: Result<(), WriteError>,
    ) {
        let Err(error) = result else {
            return self.writes.done(key);
        };
        let error = error.to_string();
        if self.writes.failed(now, key, &error) {
            warn!(prepull = %key, error, "ImagePrePull couldn't be written; it is tried again, after growing pauses");
        }
    }
}

fn is_owned(facts: &PrePullFacts, pool: &RunnerPoolFacts) -> bool {
    let owner = facts.owner.as_ref();
    owner.is_some_and(|(_, uid)| *uid == pool.uid)
}

/// The Nodes of a RunnerPool: those that its Pods' nodeSelector selects (tuist/tuist of autumn 2026,
/// infra/runners-controller/internal/podtemplate/podtemplate.go: schedulingFor).
fn nodes_of(pool: &RunnerPoolFacts) -> LabelSelector {
    LabelSelector {
        match_labels: Some(
            [
                ("kubernetes.io/os", "darwin"),
                (FLEET_LABEL, pool.spec.fleet_selector.as_str()),
                ("tuist.dev/runtime", "tart"),
            ]
            .into_iter()
            .map(|(label, value)| (label.to_owned(), value.to_owned()))
            .collect(),
        ),
        match_expressions: None,
    }
}

/// The pool's percentage, moved into the schema's range from 1 to 100.
fn percent(pool: &RunnerPoolFacts) -> i32 {
    pool.spec.rollout.max_concurrent_percent.clamp(1, 100)
}

fn owned(key: &ObjectKey, pool: &RunnerPoolFacts, mode: GateMode) -> ImagePrePull {
    let spec = ImagePrePullSpec {
        image: pool.spec.image.clone(),
        image_from: None,
        node_selector: nodes_of(pool),
        priority: 0,
        origin_streams: None,
        bandwidth: None,
        pull_secret_ref: None,
        paused: false,
        deadline: None,
        on_deadline: OnDeadline::Hold,
        ttl_after_staged: None,
        completion_policy: CompletionPolicy::Always,
        gate: Some(Gate {
            mode,
            max_concurrent_percent: percent(pool),
            pool_ref: Some(ObjectName {
                name: key.name.clone(),
            }),
            ..Gate::default()
        }),
    };
    ImagePrePull {
        metadata: ObjectMeta {
            name: Some(key.name.clone()),
            namespace: Some(key.namespace.clone()),
            owner_references: Some(vec![OwnerReference {
                api_version: "tuist.dev/v1alpha1".into(),
                kind: "RunnerPool".into(),
                name: key.name.clone(),
                uid: pool.uid.clone(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    }
}

/// The changes by which an owned ImagePrePull follows its pool. `None` where nothing differs. Other fields belong to
/// the operator.
fn follow(facts: &PrePullFacts, pool: &RunnerPoolFacts, mode: GateMode) -> Option<Value> {
    let nodes = nodes_of(pool);
    let gate = facts.spec.gate.as_ref();
    let same = facts.spec.image == pool.spec.image
        && facts.spec.node_selector == nodes
        && gate
            .is_some_and(|gate| gate.mode == mode && gate.max_concurrent_percent == percent(pool));
    (!same).then(|| {
        // a merge patch keeps fields that it doesn't name, so old labels are removed by name
        let mut labels: BTreeMap<&str, Option<&str>> = BTreeMap::new();
        let present = facts.spec.node_selector.match_labels.iter().flatten();
        labels.extend(present.map(|(label, _)| (label.as_str(), None)));
        let wanted = nodes.match_labels.iter().flatten();
        labels.extend(wanted.map(|(label, value)| (label.as_str(), Some(value.as_str()))));
        json!({
            "spec": {
                "image": pool.spec.image,
                "nodeSelector": { "matchLabels": labels, "matchExpressions": null },
                "gate": { "mode": mode, "maxConcurrentPercent": percent(pool) },
            },
        })
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;
    use crate::cluster::index::{Kind, Scope};

    fn key() -> ObjectKey {
        ObjectKey::new("ns", "pool")
    }

    fn show(index: &mut Index, kind: Kind, object: Value) {
        let scope = Scope {
            kind,
            namespace: None,
        };
        let object = serde_json::from_value(object).unwrap();
        // an object that can't be read is an error, and the index remembers that it exists
        drop(index.apply(&scope, object, Instant::now()));
    }

    fn show_pool(index: &mut Index, os: &str, image: &str, mode: &str) {
        let object = json!({
            "apiVersion": "tuist.dev/v1alpha1",
            "kind": "RunnerPool",
            "metadata": {
                "name": "pool",
                "namespace": "ns",
                "uid": "u",
                "annotations": { "parbake.dev/gate": mode },
            },
            "spec": { "os": os, "image": image, "replicas": 2, "fleetSelector": "f" },
        });
        show(index, Kind::RunnerPools, object);
    }

    /// Shows an ImagePrePull that the keeper made, with a uid and this owner.
    fn show_prepull(index: &mut Index, object: &ImagePrePull, owner: &str) {
        let mut object = serde_json::to_value(object).unwrap();
        object["metadata"]["uid"] = "own".into();
        object["metadata"]["ownerReferences"][0]["uid"] = owner.into();
        show(index, Kind::PrePulls, object);
    }

    /// The ImagePrePull that the keeper makes for the pool in the index.
    fn made(index: &Index) -> ImagePrePull {
        let due = RunnerPools::new(GateMode::None).due(Instant::now(), index, false);
        match due.into_iter().next() {
            Some((of, Own::Create(object))) if of == key() => *object,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_image_pre_pull_is_made_changed_and_taken_back_with_its_pool() {
        let (mut index, now) = (Index::default(), Instant::now());
        let mut pools = RunnerPools::new(GateMode::None);
        show_pool(&mut index, "darwin", "r/i:1", "own");
        let object = made(&index);
        assert_eq!(object.spec.image, "r/i:1");
        assert_eq!(pools.due(now, &index, false).len(), 1);
        // the write is under way
        assert!(pools.due(now, &index, false).is_empty());
        pools.written(now, &key(), Ok(()));
        show_prepull(&mut index, &object, "u");
        assert!(pools.due(now, &index, false).is_empty());
        show_pool(&mut index, "darwin", "r/i:2", "guard");
        let due = pools.due(now, &index, false);
        let [(_, Own::Change(patch))] = &due[..] else {
            panic!("{due:?}");
        };
        assert_eq!(
            (&patch["spec"]["image"], &patch["spec"]["gate"]["mode"]),
            (&json!("r/i:2"), &json!("Guard"))
        );
        pools.written(now, &key(), Ok(()));
        show_pool(&mut index, "darwin", "r/i:2", "none");
        // while some kind is unseen, nothing is deleted
        assert!(pools.due(now, &index, true).is_empty());
        let due = pools.due(now, &index, false);
        assert!(
            matches!(&due[..], [(_, Own::Delete(uid))] if uid == "own"),
            "{due:?}"
        );
    }

    #[test]
    fn a_pool_of_another_system_or_without_an_image_or_gate_is_not_followed() {
        for (os, image, mode, made) in [
            ("darwin", "r/i:1", "own", 1),
            ("linux", "r/i:1", "own", 0),
            ("darwin", "", "own", 0),
            ("darwin", "r/i:1", "none", 0),
        ] {
            let mut index = Index::default();
            show_pool(&mut index, os, image, mode);
            let due = RunnerPools::new(GateMode::Own).due(Instant::now(), &index, false);
            assert_eq!(due.len(), made, "{os} {image} {mode}");
        }
    }

    #[test]
    fn a_pool_that_is_being_deleted_is_followed_no_more() {
        let (mut index, now) = (Index::default(), Instant::now());
        show_pool(&mut index, "darwin", "r/i:1", "own");
        let object = made(&index);
        show_prepull(&mut index, &object, "u");
        index.runner_pools.get_mut(&key()).unwrap().deleting = true;
        let due = RunnerPools::new(GateMode::None).due(now, &index, false);
        assert!(matches!(&due[..], [(_, Own::Delete(_))]), "{due:?}");
        // its controller's finalizer holds the pool for a while, and nothing is made anew
        index.prepulls.clear();
        let due = RunnerPools::new(GateMode::None).due(now, &index, false);
        assert!(due.is_empty(), "{due:?}");
    }

    #[test]
    fn what_somebody_else_made_or_what_cannot_be_read_is_left_alone() {
        let (mut index, now) = (Index::default(), Instant::now());
        show_pool(&mut index, "darwin", "r/i:1", "own");
        let object = made(&index);
        show_prepull(&mut index, &object, "another");
        show_pool(&mut index, "darwin", "r/i:2", "own");
        // an earlier pool of this name owns the ImagePrePull, which is deleted with that pool and isn't changed
        let due = RunnerPools::new(GateMode::None).due(now, &index, false);
        assert!(matches!(&due[..], [(_, Own::Delete(_))]), "{due:?}");
        let mut foreign = object.clone();
        foreign.metadata.owner_references = None;
        let mut alone = serde_json::to_value(&foreign).unwrap();
        alone["metadata"]["uid"] = "foreign".into();
        show(&mut index, Kind::PrePulls, alone);
        assert!(
            RunnerPools::new(GateMode::None)
                .due(now, &index, false)
                .is_empty()
        );
        // the ImagePrePull's pool can't be read
        show_prepull(&mut index, &object, "u");
        show_pool(&mut index, "darwin", "r/i:2", "perhaps");
        assert!(
            RunnerPools::new(GateMode::None)
                .due(now, &index, false)
                .is_empty()
        );
    }

    #[test]
    fn a_write_that_failed_waits() {
        let (mut index, now) = (Index::default(), Instant::now());
        show_pool(&mut index, "darwin", "r/i:1", "own");
        let mut pools = RunnerPools::new(GateMode::None);
        assert_eq!(pools.due(now, &index, false).len(), 1);
        pools.written(now, &key(), Err(WriteError::Timeout));
        assert!(pools.due(now, &index, false).is_empty());
        let later = now + Duration::from_secs(1);
        assert_eq!(pools.due(later, &index, false).len(), 1);
    }

    #[test]
    fn an_image_pre_pull_ends_when_its_time_after_staging_is_over_and_nothing_rolls() {
        let (mut index, now) = (Index::default(), Now::start());
        show(
            &mut index,
            Kind::PrePulls,
            json!({
                "apiVersion": "parbake.dev/v1alpha1",
                "kind": "ImagePrePull",
                "metadata": { "name": "pool", "namespace": "ns", "uid": "own" },
                "spec": { "image": "r/i:1", "nodeSelector": {}, "ttlAfterStaged": "1h" },
            }),
        );
        let hour = Duration::from_hours(1);
        let facts = index.prepulls[&key()].clone();
        let at = Timestamp::try_from(now.time).unwrap();
        let staged = ImagePrePullStatus {
            staged_at: Some(Time(at)),
            ..ImagePrePullStatus::default()
        };
        let mut pools = RunnerPools::new(GateMode::None);
        let mut life = |after, facts: &PrePullFacts, status, rolls| {
            let now = now.after(after);
            pools.life(now, &key(), facts, status, rolls)
        };
        let last = hour - Duration::from_millis(1);
        assert!(matches!(life(last, &facts, &staged, false), Life::Stays));
        assert!(matches!(life(hour, &facts, &staged, true), Life::Stays));
        let never = ImagePrePullStatus::default();
        assert!(matches!(life(hour, &facts, &never, false), Life::Stays));
        let owned = PrePullFacts {
            owner: Some(("pool".into(), "u".into())),
            ..facts.clone()
        };
        assert!(matches!(life(hour, &owned, &staged, false), Life::Stays));
        assert!(
            matches!(life(hour, &facts, &staged, false), Life::End(Own::Delete(uid)) if uid == "own")
        );
        assert!(matches!(life(hour, &facts, &staged, false), Life::Ends));
        // a failed deletion waits for its next try, although no RunnerPool wants the ImagePrePull
        let now = now.after(hour);
        pools.written(now.instant, &key(), Err(WriteError::Timeout));
        assert!(pools.due(now.instant, &index, false).is_empty());
        let again = pools.life(now, &key(), &facts, &staged, false);
        assert!(matches!(again, Life::Ends));
    }
}
