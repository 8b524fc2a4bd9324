//! Deletes ServiceAccounts that outlived their Pods.
//!
//! A Pod is reaped before its ServiceAccount. In the other order, a Pod could lose its account although its own
//! deletion is refused because it started to run meanwhile. So a crash between the two deletions, or a lost answer,
//! leaves an account behind that nothing else looks for. This part looks for such accounts every few minutes. An
//! account is deleted when its owner is one whose Pods this coordinator reaps, two looks in a row find no Pod of the
//! account's name, and the account isn't young. A young account may belong to a Pod that is about to be created,
//! because a runner's account is created first (tuist/tuist of autumn 2026,
//! infra/runners-controller/controllers/runnerpool_controller.go: createRunner).

use std::{
    collections::BTreeSet,
    time::{Duration, Instant, SystemTime},
};

use kube::api::ObjectMeta;
use tracing::info;

use crate::cluster::{
    crd::GateMode,
    index::{Index, ObjectKey},
    prepull_gate::PrePullGate,
};

/// The time between two looks.
const LOOK_EVERY: Duration = Duration::from_mins(5);
/// An account that is younger may belong to a Pod that is about to be made.
const YOUNG: Duration = Duration::from_mins(10);

/// The known facts about accounts that may be unused.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    due: Option<Instant>,
    /// Uids of accounts that had no Pod at the last look.
    alone: BTreeSet<String>,
}

impl Accounts {
    /// The namespaces whose accounts are to be listed. `None` while that isn't due, or nothing is gated in mode own.
    pub(super) fn look(&mut self, now: Instant, gates: &[PrePullGate]) -> Option<BTreeSet<String>> {
        if self.due.is_some_and(|due| now < due) {
            return None;
        }
        let own = gates.iter().filter(|gate| gate.mode == GateMode::Own);
        let namespaces: BTreeSet<String> = own.map(|gate| gate.key.namespace.clone()).collect();
        // the right to list accounts comes with mode own
        if namespaces.is_empty() {
            return None;
        }
        self.due = Some(now + LOOK_EVERY);
        Some(namespaces)
    }

    /// These accounts exist. Returns those that are to be deleted.
    pub(super) fn listed(
        &mut self,
        time: SystemTime,
        accounts: Vec<ObjectMeta>,
        index: &Index,
        gates: &[PrePullGate],
    ) -> Vec<(ObjectKey, ObjectMeta)> {
        let owners = reaped_owners(index, gates);
        let before = std::mem::take(&mut self.alone);
        let mut left = Vec::new();
        for account in accounts {
            let key = ObjectKey::of(&account);
            let mut owned = account.owner_references.iter().flatten();
            let ours = owned.any(|owner| owners.contains(&owner.uid));
            let made = account.creation_timestamp.as_ref();
            let age = made.and_then(|at| time.duration_since(at.0.into()).ok());
            if !ours
                || age.is_none_or(|age| age < YOUNG)
                || account.deletion_timestamp.is_some()
                || index.pods.contains_key(&key)
            {
                continue;
            }
            let Some(uid) = account.uid.clone() else {
                continue;
            };
            if before.contains(&uid) {
                info!(account = %key, "ServiceAccount of a Pod that is gone is deleted");
                left.push((key, account));
            } else {
                self.alone.insert(uid);
            }
        }
        left
    }

    /// As if the next look were due.
    #[cfg(test)]
    pub(super) const fn look_again(&mut self) {
        self.due = None;
    }
}

/// The owners of Pods that this coordinator reaps, by uid.
fn reaped_owners(index: &Index, gates: &[PrePullGate]) -> BTreeSet<String> {
    let own = |gate: &&PrePullGate| gate.mode == GateMode::Own;
    let pools = gates.iter().filter(own).filter_map(|gate| {
        let spec = index.prepulls.get(&gate.key)?.spec.gate.as_ref()?;
        let pool = ObjectKey::new(&gate.key.namespace, &spec.pool_ref.as_ref()?.name);
        Some(index.runner_pools.get(&pool)?.uid.clone())
    });
    let pods = index.pods.iter().filter_map(|(key, pod)| {
        let gate = gates.iter().find(|gate| gate.selects(key, pod))?;
        let owner = pod.owner.as_ref().filter(|_| own(&gate))?;
        Some(owner.uid.clone())
    });
    pools.chain(pods).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::{
        clock::Now,
        index::{Kind, made_up::prepull},
        prepull_gate::gates,
    };

    fn index(mode: &str) -> Index {
        let mut index = Index::default();
        let gate = json!({ "mode": mode, "podSelector": { "matchLabels": { "app": "x" } } });
        let more = json!({ "spec": { "gate": gate } });
        index.show(Kind::PrePulls, prepull("pool", "r/i:2", &more));
        index.show(
            Kind::Pods,
            json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": "there",
                    "namespace": "ns",
                    "uid": "there",
                    "labels": { "app": "x" },
                    "ownerReferences": [{ "apiVersion": "x/v1", "kind": "X", "name": "x", "uid": "owner" }],
                },
            }),
        );
        index
    }

    fn account(now: Now, name: &str, owner: &str, age: Duration) -> ObjectMeta {
        let created = k8s_openapi::jiff::Timestamp::try_from(now.time - age).unwrap();
        serde_json::from_value(json!({
            "name": name,
            "namespace": "ns",
            "uid": format!("uid of {name}"),
            "creationTimestamp": created,
            "ownerReferences": [{ "apiVersion": "x/v1", "kind": "X", "name": "x", "uid": owner }],
        }))
        .unwrap()
    }

    /// Whether this account is deleted at the second look.
    fn goes(now: Now, account: &ObjectMeta) -> bool {
        let (mut accounts, index) = (Accounts::default(), index("Own"));
        let gates = gates(&index);
        let mut look = || accounts.listed(now.time, vec![account.clone()], &index, &gates);
        assert!(look().is_empty(), "its Pod may be about to be seen");
        let left = look();
        // an account whose deletion failed has to be seen without a Pod twice again
        assert!(look().is_empty());
        !left.is_empty()
    }

    #[test]
    fn an_account_goes_when_it_is_old_ours_and_without_a_pod() {
        let now = Now::start();
        assert!(goes(now, &account(now, "left", "owner", YOUNG)));
        let young = YOUNG - Duration::from_secs(1);
        assert!(!goes(now, &account(now, "left", "owner", young)));
        assert!(!goes(now, &account(now, "left", "somebody", YOUNG)));
        assert!(!goes(now, &account(now, "there", "owner", YOUNG)));
        let mut nameless = account(now, "left", "owner", YOUNG);
        nameless.uid = None;
        assert!(!goes(now, &nameless));
    }

    #[test]
    fn accounts_are_looked_for_every_five_minutes_where_pods_are_reaped() {
        let (mut accounts, now) = (Accounts::default(), Instant::now());
        let guarded = gates(&index("Guard"));
        assert_eq!(accounts.look(now, &guarded), None);
        let own = gates(&index("Own"));
        assert_eq!(accounts.look(now, &own), Some(["ns".to_owned()].into()));
        let last = now + LOOK_EVERY - Duration::from_millis(1);
        assert_eq!(accounts.look(last, &own), None);
        assert!(accounts.look(now + LOOK_EVERY, &own).is_some());
    }
}
