//! ServiceAccounts that stayed when their Pods went.
//!
//! A Pod is reaped before its ServiceAccount: the other way round, a Pod whose deletion is refused, because it came to run
//! meanwhile, would be left without one. So a cut between the two, or an answer that is lost, leaves an account behind,
//! and nothing else looks for it. Every few minutes this does: an account goes when its owner is one whose Pods this
//! coordinator reaps, no Pod of its name is there at two looks in a row, and it isn't young. Whoever makes a runner makes
//! its account first.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant, SystemTime},
};

use kube::api::ObjectMeta;
use tracing::{debug, info, warn};

use super::{Input, Keeper};
use crate::cluster::{
    crd::GateMode,
    index::{ObjectKey, Rule},
    write::{self, WriteError},
};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_mins(5);
/// An account that is younger may belong to a Pod that is about to be made.
const YOUNG: Duration = Duration::from_mins(10);

/// What is known of accounts that nobody has a use for.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    pub(super) due: Option<Instant>,
    /// Without a Pod at the last look.
    alone: BTreeSet<String>,
}

impl Keeper {
    /// Looks for accounts, when it is time.
    pub(super) fn sweep_accounts(&mut self) {
        let due = self.accounts.due.is_none_or(|due| due <= Instant::now());
        if !self.synced || !due {
            return;
        }
        let rules = self.order.iter().filter(|rule| rule.mode == GateMode::Own);
        let namespaces: BTreeSet<String> = rules.map(|rule| rule.key.namespace.clone()).collect();
        // the right to list them comes with mode own
        if namespaces.is_empty() {
            return;
        }
        self.accounts.due = Some(Instant::now() + LOOK_EVERY);
        let work = write::accounts(self.writer.clone(), namespaces);
        self.spawn_write(work, |result| {
            Input::Accounts(result.unwrap_or(Ok(Vec::new())))
        });
    }

    pub(super) fn accounts_listed(&mut self, listed: Result<Vec<ObjectMeta>, WriteError>) {
        let listed = match listed {
            Ok(listed) => listed,
            Err(error) => {
                debug!(%error, "ServiceAccounts can't be listed; it is tried again later");
                return;
            }
        };
        // a Pod that isn't seen may be there
        if !self.synced {
            return;
        }
        let owners = self.reaped_owners();
        let before = std::mem::take(&mut self.accounts.alone);
        for account in listed {
            let key = ObjectKey::new(
                account.namespace.as_deref().unwrap_or_default(),
                account.name.as_deref().unwrap_or_default(),
            );
            let owned = account.owner_references.iter().flatten();
            let ours = owned.into_iter().any(|owner| owners.contains(&owner.uid));
            let age = account
                .creation_timestamp
                .as_ref()
                .and_then(|at| SystemTime::now().duration_since(at.0.into()).ok());
            if !ours
                || age.is_none_or(|age| age < YOUNG)
                || account.deletion_timestamp.is_some()
                || self.index.pods.contains_key(&key)
            {
                continue;
            }
            let Some(uid) = account.uid.clone() else {
                continue;
            };
            if !before.contains(&uid) {
                self.accounts.alone.insert(uid);
                continue;
            }
            info!(account = %key, "ServiceAccount of a Pod that is gone is deleted");
            let work = write::account(self.writer.clone(), key.clone(), account);
            self.spawn_write(work, move |result| {
                if let Some(Err(error)) = result {
                    warn!(account = %key, %error, "ServiceAccount can't be deleted; it is tried again later");
                }
                Input::Tick
            });
        }
    }

    /// Owners of Pods that this coordinator reaps.
    fn reaped_owners(&self) -> BTreeSet<String> {
        let own = |rule: &&Rule| rule.mode == GateMode::Own;
        let pools = self.order.iter().filter(own).filter_map(|rule| {
            let gate = self.index.prepulls.get(&rule.key)?.spec.gate.as_ref()?;
            let pool = ObjectKey::new(&rule.key.namespace, &gate.pool_ref.as_ref()?.name);
            Some(self.index.runner_pools.get(&pool)?.uid.clone())
        });
        let pods = self.index.pods.iter().filter_map(|(key, pod)| {
            let rule = self.order.iter().find(|rule| rule.selects(key, pod))?;
            let owner = pod.owner.as_ref().filter(|_| rule.mode == GateMode::Own)?;
            Some(owner.uid.clone())
        });
        pools.chain(pods).collect()
    }
}
