//! What the owners of gated Pods make: a roll that an owner's template doesn't go along with would bring stale Pods back
//! for ever, so the gate is told what the template says before it lets anything go.
//!
//! A RunnerPool is watched. What else replaces Pods (ReplicaSets and the Deployments above them, StatefulSets,
//! DaemonSets, ReplicationControllers) is read while a pool rolls, every few seconds. Other owners, such as a Job, make
//! one Pod and never another: what they say means nothing for successors, and the gate goes by the Pods that come.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
    core::v1::{PodTemplateSpec, ReplicationController},
};
use kube::{Api, Client};
use rollout::gate::{self, Template};
use tokio::time::timeout;
use tracing::{info, warn};

use super::{Input, Keeper};
use crate::cluster::{
    index::{ObjectKey, Owner, PodFacts},
    trouble,
};

/// An owner is read again after this long, while its pool rolls.
const READ_EVERY: Duration = Duration::from_secs(5);
/// What was read counts for this long.
const FRESH: Duration = Duration::from_secs(15);
/// An owner that may not be read is tried again after this long.
const DENIED_FOR: Duration = Duration::from_mins(1);
/// Failures in a row after which an owner counts as one that can't be read.
const FAILURES: u32 = 4;
/// The API server answers for one within this time.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Owners read at one time, and kept: more than a pool has that anybody rolls.
const MOST: usize = 256;

/// An owner in its namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OwnerKey {
    namespace: String,
    owner: Owner,
}

impl OwnerKey {
    fn of(key: &ObjectKey, pod: &PodFacts) -> Option<Self> {
        Some(Self {
            namespace: key.namespace.clone(),
            owner: pod.owner.clone()?,
        })
    }
}

/// What an owner makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Makes {
    /// Who says so: the owner, or who makes it.
    by: String,
    /// Pods of this image.
    image: String,
}

/// Why an owner isn't read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnerError {
    /// The API server refuses. Give the coordinator's role `get` on that kind.
    #[error("{owner} can't be read ({error}); what it makes shows only by its Pods")]
    Denied {
        /// The owner.
        owner: Owner,
        /// What the API server said.
        error: String,
    },
    /// It isn't there, or is another of that name.
    #[error("{0} is gone")]
    Gone(Owner),
    /// It makes nothing that can be told, or can't be asked for now.
    #[error("{owner}: {error}")]
    Failed {
        /// The owner.
        owner: Owner,
        /// The cause.
        error: String,
    },
}

/// How an owner is known.
#[derive(Debug)]
struct Known {
    makes: Option<Makes>,
    /// When that was read; `None`: it is being read for the first time, or anew.
    read_at: Option<Instant>,
    due: Instant,
    reading: bool,
    failures: u32,
}

/// Whose Pods pools have, and what those that roll make.
#[derive(Debug, Default)]
pub(super) struct Owners {
    of: BTreeMap<gate::PoolId, BTreeSet<OwnerKey>>,
    known: BTreeMap<OwnerKey, Known>,
    warned: BTreeSet<String>,
}

impl Keeper {
    /// What the owners of a pool's Pods make. Of several, one that makes another image than the pool's counts.
    pub(super) fn template_of(&self, pool: &gate::PoolId, image: &str) -> Template {
        let mut template = None;
        for key in self.owners.of.get(pool).into_iter().flatten() {
            let this = self.makes(key);
            let differs = matches!(&this, Template::Image(made) if made != image);
            template = match (template, this) {
                (_, this) if differs => return this,
                (None, this) => Some(this),
                (Some(Template::Unread), _) | (_, Template::Unread) => Some(Template::Unread),
                (Some(Template::Unknown), _) | (_, Template::Unknown) => Some(Template::Unknown),
                (same, _) => same,
            };
        }
        template.unwrap_or(Template::Unknown)
    }

    /// Who says that a pool's Pods are made from another image, and from which.
    pub(super) fn lagging_owner(
        &self,
        pool: &gate::PoolId,
        image: &str,
    ) -> Option<(String, String)> {
        let mut owners = self.owners.of.get(pool).into_iter().flatten();
        owners.find_map(|key| {
            let (by, made) = match self.runner_pool(key) {
                Some(made) => (key.owner.to_string(), made),
                None => {
                    let makes = self.owners.known.get(key)?.makes.clone()?;
                    (makes.by, makes.image)
                }
            };
            (made != image).then_some((by, made))
        })
    }

    /// Finds the owners of a pool's Pods. Whether they are others than before.
    pub(super) fn find_owners(&mut self, pool: &gate::PoolId) -> bool {
        let Some(rule) = self.rules.get(pool) else {
            return self.owners.of.remove(pool).is_some();
        };
        let mine = self.index.pods.iter().filter(|(key, pod)| {
            !pod.deleting && pod.phase != gate::Phase::Ended && rule.selects(key, pod)
        });
        let found: BTreeSet<OwnerKey> = mine
            .filter_map(|(key, pod)| OwnerKey::of(key, pod))
            .collect();
        let before = self.owners.of.insert(pool.clone(), found);
        before.as_ref() != self.owners.of.get(pool)
    }

    /// A Pod came into a pool: it may have brought an owner that nobody has asked.
    pub(super) fn owner_came(&mut self, pool: &gate::PoolId, key: &ObjectKey) {
        let owner = self
            .index
            .pods
            .get(key)
            .and_then(|pod| OwnerKey::of(key, pod));
        if let (Some(owner), Some(known)) = (owner, self.owners.of.get_mut(pool)) {
            self.rules_due |= known.insert(owner);
        }
    }

    fn makes(&self, key: &OwnerKey) -> Template {
        if let Some(image) = self.runner_pool(key) {
            return Template::Image(image);
        }
        if !replaces(&key.owner) {
            return Template::Unknown;
        }
        match self.owners.known.get(key) {
            Some(Known {
                makes: Some(makes),
                read_at: Some(at),
                ..
            }) if at.elapsed() < FRESH => Template::Image(makes.image.clone()),
            Some(known) if known.makes.is_none() && known.read_at.is_some() => Template::Unknown,
            Some(known) if known.failures >= FAILURES => Template::Unknown,
            _ => Template::Unread,
        }
    }

    /// What a RunnerPool's controller makes: what it has heard of, where it says so.
    fn runner_pool(&self, key: &OwnerKey) -> Option<String> {
        let pool = ObjectKey::new(&key.namespace, &key.owner.name);
        let pool = self.index.runner_pools.get(&pool)?;
        let is = key.owner.kind == "RunnerPool" && key.owner.uid == pool.uid;
        is.then(|| {
            let heard = pool.observed.as_ref();
            heard.unwrap_or(&pool.spec.image).clone()
        })
    }

    /// A pool's image was said anew: what its owners said before that isn't their answer.
    pub(super) fn ask_owners_anew(&mut self, pool: &gate::PoolId) {
        for key in self.owners.of.get(pool).into_iter().flatten() {
            if let Some(known) = self.owners.known.get_mut(key) {
                (known.read_at, known.due) = (None, Instant::now());
            }
        }
        self.due = Instant::now();
    }

    /// Reads the owners that are due, and forgets those of pools that don't roll.
    pub(super) fn read_owners(&mut self) {
        let rolling: Vec<gate::PoolId> = self
            .rules
            .keys()
            .filter(|pool| self.gate.rolls(pool))
            .cloned()
            .collect();
        for pool in &rolling {
            self.rules_due |= self.find_owners(pool);
        }
        let wanted: BTreeSet<OwnerKey> = rolling
            .iter()
            .filter_map(|pool| self.owners.of.get(pool))
            .flatten()
            .filter(|key| replaces(&key.owner))
            .take(MOST)
            .cloned()
            .collect();
        self.owners
            .known
            .retain(|key, known| known.reading || wanted.contains(key));
        for key in wanted {
            let known = self
                .owners
                .known
                .entry(key.clone())
                .or_insert_with(|| Known {
                    makes: None,
                    read_at: None,
                    due: Instant::now(),
                    reading: false,
                    failures: 0,
                });
            if known.reading || known.due > Instant::now() {
                continue;
            }
            known.reading = true;
            let client = self.client.clone();
            self.jobs.spawn(async move {
                let asked = Instant::now();
                let result = timeout(TIMEOUT, read(client, &key)).await;
                let result = result.unwrap_or_else(|_| {
                    Err(OwnerError::Failed {
                        owner: key.owner.clone(),
                        error: "the API server doesn't answer in time".into(),
                    })
                });
                Input::Owner { key, asked, result }
            });
        }
    }

    pub(super) fn owner_read(
        &mut self,
        key: &OwnerKey,
        asked: Instant,
        result: Result<Makes, OwnerError>,
    ) {
        let Some(known) = self.owners.known.get_mut(key) else {
            return;
        };
        known.reading = false;
        // it was asked before somebody wanted to know anew
        if known.read_at.is_none() && known.due > asked {
            return;
        }
        let before = known.makes.clone();
        match result {
            Ok(makes) => {
                known.makes = Some(makes);
                (known.read_at, known.due) = (Some(asked), asked + READ_EVERY);
                known.failures = 0;
            }
            Err(error @ (OwnerError::Denied { .. } | OwnerError::Gone(_))) => {
                known.makes = None;
                (known.read_at, known.due) = (Some(asked), asked + DENIED_FOR);
                let text = error.to_string();
                if matches!(error, OwnerError::Denied { .. })
                    && self.owners.warned.len() < MOST
                    && self.owners.warned.insert(text.clone())
                {
                    warn!(
                        namespace = key.namespace,
                        error = text,
                        "owner of gated Pods can't be read"
                    );
                }
            }
            Err(error) => {
                known.failures += 1;
                known.due = Instant::now() + READ_EVERY;
                if known.failures == FAILURES {
                    warn!(namespace = key.namespace, %error, "owner of gated Pods can't be read for now");
                }
            }
        }
        if let Some(known) = self.owners.known.get(key)
            && known.makes != before
            && let Some(makes) = &known.makes
        {
            info!(namespace = key.namespace, owner = %makes.by, image = makes.image, "owner's template is read");
        }
        self.rules_due = true;
    }
}

/// Whether an owner of this kind replaces a Pod that left by one of its template.
fn replaces(owner: &Owner) -> bool {
    let kinds = [
        ("apps/", "ReplicaSet"),
        ("apps/", "StatefulSet"),
        ("apps/", "DaemonSet"),
        ("v1", "ReplicationController"),
    ];
    kinds
        .iter()
        .any(|(group, kind)| owner.api_version.starts_with(group) && owner.kind == *kind)
}

/// Reads what an owner makes; of a ReplicaSet that a Deployment makes, what that has in mind.
async fn read(client: Client, key: &OwnerKey) -> Result<Makes, OwnerError> {
    let owner = &key.owner;
    let template = match owner.kind.as_str() {
        "ReplicaSet" => {
            let found: ReplicaSet = get(&client, &key.namespace, owner).await?;
            let above = Owner::of(&found.metadata).filter(|above| {
                above.kind == "Deployment" && above.api_version.starts_with("apps/")
            });
            if let Some(above) = above {
                let found: Deployment = get(&client, &key.namespace, &above).await?;
                let template = found.spec.map(|spec| spec.template);
                return makes(&above, template);
            }
            found.spec.and_then(|spec| spec.template)
        }
        "StatefulSet" => {
            let found: StatefulSet = get(&client, &key.namespace, owner).await?;
            found.spec.map(|spec| spec.template)
        }
        "DaemonSet" => {
            let found: DaemonSet = get(&client, &key.namespace, owner).await?;
            found.spec.map(|spec| spec.template)
        }
        _ => {
            let found: ReplicationController = get(&client, &key.namespace, owner).await?;
            found.spec.and_then(|spec| spec.template)
        }
    };
    makes(owner, template)
}

fn makes(owner: &Owner, template: Option<PodTemplateSpec>) -> Result<Makes, OwnerError> {
    let image = template
        .and_then(|template| template.spec)
        .and_then(|spec| spec.containers.into_iter().next()?.image);
    let image = image.ok_or_else(|| OwnerError::Failed {
        owner: owner.clone(),
        error: "its template names no image".into(),
    })?;
    Ok(Makes {
        by: owner.to_string(),
        image,
    })
}

async fn get<K>(client: &Client, namespace: &str, owner: &Owner) -> Result<K, OwnerError>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    match api.get_opt(&owner.name).await {
        Ok(Some(found)) if found.meta().uid.as_ref() == Some(&owner.uid) => Ok(found),
        Ok(_) => Err(OwnerError::Gone(owner.clone())),
        Err(error) => {
            let owner = owner.clone();
            let denied =
                matches!(&error, kube::Error::Api(status) if [401, 403].contains(&status.code));
            let error = trouble::plain(&error);
            Err(match denied {
                true => OwnerError::Denied { owner, error },
                false => OwnerError::Failed { owner, error },
            })
        }
    }
}

#[cfg(test)]
impl Keeper {
    /// As if what was read had been read so long ago that it is due, and nobody were reading it.
    pub(super) fn read_owners_at_once(&mut self) {
        for known in self.owners.known.values_mut() {
            (known.due, known.reading) = (Instant::now(), false);
        }
    }
}
