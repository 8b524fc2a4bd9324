//! What the cluster holds, as the watches saw it last: Pods, Nodes, ImagePrePulls and RunnerPools, trimmed to what the
//! gate and staging go by. Everything else is derived from the index anew, so a lost or repeated event changes nothing
//! for good.
//!
//! The index passes over an object that it can't read, and the keeper names the object once. A field that is missing
//! has the meaning that the field's writers give its absence.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use k8s_openapi::{
    api::core::v1::{Node, Pod},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::core::{DynamicObject, Selector, SelectorExt as _};

use super::crd::{ImagePrePull, ImagePrePullSpec};
use facts::{guessed, node_facts, parse, pod_facts, prepull_facts, runner_pool_facts};
use workloads::image_of;

mod facts;
mod workloads;

pub(crate) use facts::{
    NodeFacts, ObjectKey, Owner, PodFacts, PrePullFacts, RunnerPoolFacts, Source, is_labelled,
};
pub(crate) use workloads::{Workload, WorkloadKey};

/// The prefix of our Node labels. The first twelve hex digits of the image's digest follow. The node agent of known
/// fleets takes labels under `tuist.dev/` off its Node that it didn't put there (tuist/tuist of autumn 2026,
/// infra/tart-kubelet/internal/nodeagent/node.go: configureNode), so ours stand under a domain of our own.
pub(crate) const IMAGE_LABEL: &str = "parbake.dev/image-";

/// The label of a Node whose value pools name as their `fleetSelector` (tuist/tuist of autumn 2026,
/// infra/runners-controller/internal/podtemplate/podtemplate.go: schedulingFor).
pub(crate) const FLEET_LABEL: &str = "tuist.dev/fleet";

/// The kinds of objects that are watched.
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

impl Scope {
    /// All objects of a kind.
    pub(crate) const fn everywhere(kind: Kind) -> Self {
        let namespace = None;
        Self { kind, namespace }
    }
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
    /// RunnerPools that exist and can't be read. Nobody knows what they mean, so the Pods that they gate are blocked.
    pub(crate) unreadable_runner_pools: BTreeSet<ObjectKey>,
    /// The workloads that ImagePrePulls follow, as far as they were seen.
    workloads: BTreeMap<WorkloadKey, Workload>,
    /// The objects that a running relist has shown so far.
    listed: BTreeMap<Scope, BTreeSet<ObjectKey>>,
}

/// An object that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Pod(ObjectKey),
    Node(String),
    PrePull(ObjectKey),
    RunnerPool(ObjectKey),
}

impl Index {
    /// Shows an object that can be read, as a watch of everything would now.
    #[cfg(test)]
    pub(crate) fn show(&mut self, kind: Kind, object: serde_json::Value) {
        let object = serde_json::from_value(object).unwrap();
        let scope = Scope::everywhere(kind);
        self.apply(&scope, object, Instant::now()).unwrap();
    }

    /// A list of all objects in this scope begins.
    pub(crate) fn begin(&mut self, scope: Scope) {
        self.listed.insert(scope, BTreeSet::new());
    }

    /// The list is whole. Objects that the list didn't show are gone.
    pub(crate) fn finish(&mut self, scope: &Scope) -> Vec<Change> {
        let Some(listed) = self.listed.remove(scope) else {
            return Vec::new();
        };
        let inside = |key: &ObjectKey| {
            let mut namespace = scope.namespace.iter();
            namespace.all(|namespace| key.namespace == *namespace)
        };
        let gone = |key: &ObjectKey| inside(key) && !listed.contains(key);
        let gone: Vec<ObjectKey> = self.keys(scope.kind).into_iter().filter(gone).collect();
        gone.into_iter()
            .filter_map(|key| self.remove(scope.kind, &key, None))
            .collect()
    }

    /// The names of all objects of a kind.
    fn keys(&self, kind: Kind) -> Vec<ObjectKey> {
        match kind {
            Kind::Pods => self.pods.keys().cloned().collect(),
            Kind::Nodes => {
                let names = self.nodes.keys();
                names.map(|name| ObjectKey::new("", name)).collect()
            }
            Kind::PrePulls => self.prepulls.keys().cloned().collect(),
            Kind::RunnerPools => {
                let known = self.runner_pools.keys();
                known
                    .chain(&self.unreadable_runner_pools)
                    .cloned()
                    .collect()
            }
        }
    }

    /// An object is as shown at `now`. `None` when the index knew this state, or a newer one.
    ///
    /// # Errors
    /// The object can't be read. Where the object is an ImagePrePull or a RunnerPool, its Pods are blocked.
    pub(crate) fn apply(
        &mut self,
        scope: &Scope,
        object: DynamicObject,
        now: Instant,
    ) -> Result<Option<Change>, Unreadable> {
        let key = ObjectKey::of(&object.metadata);
        if let Some(listed) = self.listed.get_mut(scope) {
            listed.insert(key.clone());
        }
        let read = match scope.kind {
            Kind::Pods => parse(object).map(|pod| self.apply_pod(&pod, now)),
            Kind::Nodes => parse(object).map(|node| {
                self.apply_node(&node)
                    .then(|| Change::Node(key.name.clone()))
            }),
            Kind::PrePulls => self.apply_prepull(&key, object).map(Some),
            Kind::RunnerPools => self.apply_runner_pool(&key, object).map(Some),
        };
        read.map_err(|reason| Unreadable {
            kind: scope.kind,
            key,
            reason,
        })
    }

    /// An ImagePrePull is as shown. If it can't be read, it is paused: its Pods are gated as far as its gate can be
    /// read, and they are blocked.
    fn apply_prepull(&mut self, key: &ObjectKey, object: DynamicObject) -> Result<Change, String> {
        match parse::<ImagePrePull>(object.clone()) {
            Ok(prepull) => {
                let facts = prepull_facts(prepull);
                let known = self.prepulls.insert(key.clone(), facts);
                self.find_image(key, known.as_ref());
                Ok(Change::PrePull(key.clone()))
            }
            Err(error) => {
                let facts = self
                    .prepulls
                    .entry(key.clone())
                    .or_insert_with(|| guessed(&object));
                facts.spec.paused = true;
                facts.unread = true;
                Err(error)
            }
        }
    }

    /// Finds the image that an ImagePrePull wants. `known` is the object as it was known before. Returns whether the
    /// image, or what is known of it, changed.
    fn find_image(&mut self, key: &ObjectKey, known: Option<&PrePullFacts>) -> bool {
        let Some(facts) = self.prepulls.get_mut(key).filter(|facts| !facts.unread) else {
            return false;
        };
        let workload = WorkloadKey::of(key, facts).and_then(|key| self.workloads.get(&key));
        let (image, source) = match image_of(facts, workload) {
            Ok(image) => (image, Source::Known),
            // the last image counts: of this coordinator, or of an earlier one
            Err(source) => {
                let known = known.filter(|known| known.uid == facts.uid);
                let known = known.map(|known| known.spec.image.clone());
                let known = known.or_else(|| facts.status.image.clone());
                (known.unwrap_or_default(), source)
            }
        };
        let changed = (&facts.spec.image, &facts.source) != (&image, &source);
        (facts.spec.image, facts.source) = (image, source);
        changed
    }

    /// The workloads that ImagePrePulls follow.
    pub(crate) fn followed(&self) -> BTreeSet<WorkloadKey> {
        let prepulls = self.prepulls.iter().filter(|(_, facts)| !facts.deleting);
        prepulls
            .filter_map(|(key, facts)| WorkloadKey::of(key, facts))
            .collect()
    }

    /// Whether the containers of a workload's template are known.
    pub(crate) fn is_workload_known(&self, key: &WorkloadKey) -> bool {
        matches!(self.workloads.get(key), Some(Workload::Containers(_)))
    }

    /// A workload is as shown; `None`: it isn't watched any more. Returns the ImagePrePulls that follow it and changed.
    pub(crate) fn apply_workload(
        &mut self,
        key: &WorkloadKey,
        workload: Option<Workload>,
    ) -> Vec<Change> {
        match workload {
            Some(workload) => drop(self.workloads.insert(key.clone(), workload)),
            None => drop(self.workloads.remove(key)),
        }
        let mine = self
            .prepulls
            .iter()
            .filter(|(prepull, facts)| WorkloadKey::of(prepull, facts).as_ref() == Some(key));
        let mine: Vec<_> = mine
            .map(|(key, facts)| (key.clone(), facts.clone()))
            .collect();
        let changed = mine
            .into_iter()
            .filter(|(key, before)| self.find_image(key, Some(before)));
        changed.map(|(key, _)| Change::PrePull(key)).collect()
    }

    /// A RunnerPool is as shown. If it can't be read, nobody knows what it means.
    fn apply_runner_pool(
        &mut self,
        key: &ObjectKey,
        object: DynamicObject,
    ) -> Result<Change, String> {
        match runner_pool_facts(object) {
            Ok(facts) => {
                self.unreadable_runner_pools.remove(key);
                self.runner_pools.insert(key.clone(), facts);
                Ok(Change::RunnerPool(key.clone()))
            }
            Err(error) => {
                self.runner_pools.remove(key);
                self.unreadable_runner_pools.insert(key.clone());
                Err(error)
            }
        }
    }

    /// A Pod is as shown at `now`, by a watch or by the answer to a write. A watch may lag behind such an answer.
    pub(crate) fn apply_pod(&mut self, pod: &Pod, now: Instant) -> Option<Change> {
        let key = ObjectKey::of(&pod.metadata);
        let mut facts = pod_facts(pod, now);
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

    /// A Node is as shown. Returns `false` when a newer state is known, or when nothing relevant changed: kubelets
    /// write their Nodes all the time.
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
            (&known.uid, &known.labels, known.ready, known.takes())
                == (&facts.uid, &facts.labels, facts.ready, facts.takes())
                && known.reserved_for == facts.reserved_for
        });
        self.nodes.insert(name, facts);
        !same
    }

    /// An object is gone. With `uid`, a Pod is removed only if it has that uid.
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
                let unread = self.unreadable_runner_pools.remove(key);
                if self.runner_pools.remove(key).is_none() && !unread {
                    return None;
                }
                Some(Change::RunnerPool(key.clone()))
            }
        }
    }

    /// The Nodes that are reserved for a pool, each with the value of the taint that says so.
    pub(crate) fn reserved(&self) -> impl Iterator<Item = (&String, &str)> {
        let nodes = self.nodes.iter();
        nodes.filter_map(|(name, node)| Some((name, node.reserved_for.as_deref()?)))
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
}

/// A parsed selector. `None` for a selector that selects everything or can't be parsed.
fn selector(selector: &LabelSelector) -> Option<Selector> {
    let selector = Selector::try_from(selector.clone()).ok()?;
    (!selector.selects_all()).then_some(selector)
}

/// Resource versions are numbers wherever the API server keeps its objects in etcd. Where they aren't, nothing is
/// older.
fn is_older(version: &str, known: &str) -> bool {
    match (version.parse::<u64>(), known.parse::<u64>()) {
        (Ok(version), Ok(known)) => version < known,
        _ => false,
    }
}

#[cfg(test)]
pub(crate) mod made_up;
#[cfg(test)]
mod tests;
