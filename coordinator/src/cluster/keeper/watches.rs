//! The state of the watches: whether the whole cluster is known, and whether the watches still see.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tracing::{error, info, warn};

use super::once::Once;
use crate::cluster::{
    index::{Change, Index, Kind, ObjectKey, Scope, Unreadable},
    watch::Seen,
};

/// When a watch has seen nothing for this long, its facts are too old to act on.
const BLIND: Duration = Duration::from_secs(30);
/// The most unreadable objects that are named in the log, once each.
const MAX_COMPLAINTS: usize = 1_000;

/// The state of one watch.
#[derive(Debug, Default)]
struct Watch {
    listed: bool,
    blind_since: Option<Instant>,
    absent: bool,
}

/// All watches.
#[derive(Debug)]
pub(super) struct Watches {
    all: BTreeMap<Scope, Watch>,
    synced: bool,
    unreadable: Once,
}

impl Watches {
    /// Watches of every kind in these namespaces. An empty list means all namespaces. No watch has seen anything yet.
    pub(super) fn new(namespaces: &[String]) -> Self {
        let scopes = scopes(namespaces).into_iter();
        Self {
            all: scopes.map(|scope| (scope, Watch::default())).collect(),
            synced: false,
            unreadable: Once::new(MAX_COMPLAINTS),
        }
    }

    /// The scopes that are watched.
    pub(super) fn scopes(&self) -> impl Iterator<Item = &Scope> {
        self.all.keys()
    }

    /// Takes in what a watch sees, and updates the index. Returns the changes.
    pub(super) fn see(
        &mut self,
        now: Instant,
        index: &mut Index,
        scope: &Scope,
        seen: Seen,
    ) -> Vec<Change> {
        let Some(watch) = self.all.get_mut(scope) else {
            return Vec::new();
        };
        match seen {
            Seen::Listing => {
                index.begin(scope.clone());
                Vec::new()
            }
            Seen::Applied(object) => match index.apply(scope, *object, now) {
                Ok(change) => change.into_iter().collect(),
                Err(unreadable) => {
                    self.complain(&unreadable);
                    changed_by(&unreadable)
                }
            },
            Seen::Gone(object) => {
                let key = ObjectKey::of(&object.metadata);
                let uid = object.metadata.uid.as_deref();
                let change = index.remove(scope.kind, &key, uid);
                change.into_iter().collect()
            }
            Seen::Listed => {
                // recovery counts only when the list is whole: until then, missed changes stay missed
                if std::mem::take(&mut watch.absent) | watch.blind_since.take().is_some() {
                    info!(kind = scope.kind.as_str(), "watch sees again");
                }
                watch.listed = true;
                index.finish(scope)
            }
            Seen::Blind { absent: true, .. } if scope.kind == Kind::RunnerPools => {
                // the cluster has no RunnerPools, so there is nothing to follow and nothing is wrong
                (watch.absent, watch.listed, watch.blind_since) = (true, true, None);
                index.begin(scope.clone());
                index.finish(scope)
            }
            Seen::Blind { error, .. } => {
                if watch.blind_since.is_none() {
                    watch.blind_since = Some(now);
                    let kind = scope.kind.as_str();
                    warn!(kind, error, "watch sees nothing; it is tried again");
                }
                Vec::new()
            }
        }
    }

    /// The result of the last [`Self::look`]: whether everything was known, and no watch had been blind for too long.
    pub(super) const fn synced(&self) -> bool {
        self.synced
    }

    /// Checks whether everything is known now, and no watch has been blind for too long. Returns the result where it
    /// changed.
    pub(super) fn look(&mut self, now: Instant, index: &Index) -> Option<bool> {
        let synced = self.all.values().all(|watch| {
            watch.listed
                && watch
                    .blind_since
                    .is_none_or(|since| now.saturating_duration_since(since) < BLIND)
        });
        if synced == self.synced {
            return None;
        }
        self.synced = synced;
        if synced {
            info!(
                pods = index.pods.len(),
                nodes = index.nodes.len(),
                prepulls = index.prepulls.len(),
                pools = index.runner_pools.len(),
                "the cluster is known"
            );
        } else {
            error!("the cluster can't be watched; the gate is shut until it can");
        }
        Some(synced)
    }

    /// Whether the cluster lacks some kind. If so, a missing object of that kind may only be unseen.
    pub(super) fn is_kind_absent(&self) -> bool {
        self.all.values().any(|watch| watch.absent)
    }

    fn complain(&mut self, unreadable: &Unreadable) {
        let object = unreadable.to_string();
        if self.unreadable.is_new(&object) {
            warn!(
                object,
                "object can't be read; it is passed over until it changes"
            );
        }
    }

    /// As if this watch had seen nothing for so long that it counts as blind.
    #[cfg(test)]
    pub(super) fn blind(&mut self, now: Instant, scope: &Scope) {
        self.all.get_mut(scope).unwrap().blind_since = Some(now - BLIND);
    }

    /// As if nobody had been told that everything is known.
    #[cfg(test)]
    pub(super) const fn forget_sync(&mut self) {
        self.synced = false;
    }

    /// As if this watch had never shown a whole list.
    #[cfg(test)]
    pub(super) fn unlist(&mut self, scope: &Scope) {
        self.all.get_mut(scope).unwrap().listed = false;
    }
}

/// The changes by an object that can't be read any more: its facts are gone.
fn changed_by(unreadable: &Unreadable) -> Vec<Change> {
    match unreadable.kind {
        Kind::PrePulls => vec![Change::PrePull(unreadable.key.clone())],
        Kind::RunnerPools => vec![Change::RunnerPool(unreadable.key.clone())],
        Kind::Pods | Kind::Nodes => Vec::new(),
    }
}

fn scopes(namespaces: &[String]) -> Vec<Scope> {
    let mut scopes = Vec::new();
    for kind in Kind::ALL {
        if namespaces.is_empty() || kind == Kind::Nodes {
            scopes.push(Scope::everywhere(kind));
            continue;
        }
        scopes.extend(namespaces.iter().map(|namespace| Scope {
            kind,
            namespace: Some(namespace.clone()),
        }));
    }
    scopes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn blind(absent: bool) -> Seen {
        let error = "no".to_owned();
        Seen::Blind { error, absent }
    }

    fn list(watches: &mut Watches, now: Instant, index: &mut Index, kind: Kind) {
        watches.see(now, index, &Scope::everywhere(kind), Seen::Listing);
        watches.see(now, index, &Scope::everywhere(kind), Seen::Listed);
    }

    /// Watches that have seen everything.
    fn listed(now: Instant, index: &mut Index) -> Watches {
        let mut watches = Watches::new(&[]);
        for kind in Kind::ALL {
            assert_eq!(watches.look(now, index), None);
            list(&mut watches, now, index, kind);
        }
        assert_eq!(watches.look(now, index), Some(true));
        assert_eq!(watches.look(now, index), None);
        watches
    }

    #[test]
    fn the_cluster_is_known_when_every_kind_was_listed() {
        let watches = listed(Instant::now(), &mut Index::default());
        assert!(watches.synced() && !watches.is_kind_absent());
    }

    #[test]
    fn a_watch_that_is_blind_for_half_a_minute_shuts_the_gate_until_its_list_is_whole() {
        let (now, mut index) = (Instant::now(), Index::default());
        let mut watches = listed(now, &mut index);
        watches.see(
            now,
            &mut index,
            &Scope::everywhere(Kind::Pods),
            blind(false),
        );
        // a second failure doesn't restart the time
        let later = now + Duration::from_secs(20);
        watches.see(
            later,
            &mut index,
            &Scope::everywhere(Kind::Pods),
            blind(false),
        );
        let last = now + BLIND - Duration::from_millis(1);
        assert_eq!(watches.look(last, &index), None);
        let now = now + BLIND;
        assert_eq!(watches.look(now, &index), Some(false));
        watches.see(
            now,
            &mut index,
            &Scope::everywhere(Kind::Pods),
            Seen::Listing,
        );
        assert_eq!(watches.look(now, &index), None);
        watches.see(
            now,
            &mut index,
            &Scope::everywhere(Kind::Pods),
            Seen::Listed,
        );
        assert_eq!(watches.look(now, &index), Some(true));
    }

    #[test]
    fn a_cluster_without_runner_pools_is_known_and_one_without_prepulls_is_not() {
        let (now, mut index) = (Instant::now(), Index::default());
        let mut watches = Watches::new(&[]);
        for kind in [Kind::Pods, Kind::Nodes] {
            list(&mut watches, now, &mut index, kind);
        }
        watches.see(
            now,
            &mut index,
            &Scope::everywhere(Kind::RunnerPools),
            blind(true),
        );
        watches.see(
            now,
            &mut index,
            &Scope::everywhere(Kind::PrePulls),
            blind(true),
        );
        assert_eq!(watches.look(now, &index), None);
        list(&mut watches, now, &mut index, Kind::PrePulls);
        assert_eq!(watches.look(now, &index), Some(true));
        assert!(watches.is_kind_absent());
        // the kind's definition is installed
        list(&mut watches, now, &mut index, Kind::RunnerPools);
        assert!(!watches.is_kind_absent() && watches.synced());
    }

    #[test]
    fn each_namespace_is_watched_for_each_kind_and_nodes_once() {
        let names = ["a".to_owned(), "b".to_owned()];
        let watches = Watches::new(&names);
        assert_eq!(watches.scopes().count(), 1 + 3 * 2);
        let nodes = watches.scopes().filter(|scope| scope.kind == Kind::Nodes);
        assert!(nodes.eq([&Scope::everywhere(Kind::Nodes)]));
    }

    #[test]
    fn an_object_that_cannot_be_read_changes_what_it_gated() {
        let (now, mut index) = (Instant::now(), Index::default());
        let mut watches = listed(now, &mut index);
        let object = json!({
            "apiVersion": "parbake.dev/v1alpha1",
            "kind": "ImagePrePull",
            "metadata": { "name": "a", "namespace": "ns" },
            "spec": { "image": 3 },
        });
        let shown = Seen::Applied(Box::new(serde_json::from_value(object).unwrap()));
        let changes = watches.see(now, &mut index, &Scope::everywhere(Kind::PrePulls), shown);
        assert_eq!(changes, [Change::PrePull(ObjectKey::new("ns", "a"))]);
        let elsewhere = Scope {
            kind: Kind::PrePulls,
            namespace: Some("not watched".into()),
        };
        assert!(
            watches
                .see(now, &mut index, &elsewhere, Seen::Listed)
                .is_empty()
        );
    }
}
