//! What the owners of gated Pods make. If an owner's template disagrees with a roll, the owner brings stale Pods back
//! for ever. So the gate is told what the template says before it lets any Pod go.
//!
//! RunnerPools are watched. Other owners that replace Pods (ReplicaSets and the Deployments above them, StatefulSets,
//! DaemonSets, ReplicationControllers) are read every few seconds while Pods roll. Owners of other kinds, such as a
//! Job, make one Pod and no successor. Their templates say nothing about successors, so the gate judges by the Pods
//! that come.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use rollout::gate::{Phase, Template};
use tracing::{info, warn};

use super::once::Once;
use crate::cluster::{
    clock::Now,
    index::{Index, ObjectKey, Owner, PodFacts},
    prepull_gate::PrePullGate,
};

pub(super) mod read;

/// An owner is read again after this long while its Pods roll.
const READ_EVERY: Duration = Duration::from_secs(5);
/// The result of a read counts for this long.
const FRESH: Duration = Duration::from_secs(15);
/// An owner whose read was denied, or that is gone, is tried again after this long.
const DENIED_FOR: Duration = Duration::from_mins(1);
/// After this many failures in a row, an owner counts as unreadable.
const FAILURES: u32 = 4;
/// The most owners that are read at one time, and kept. One roll's gated Pods have fewer owners.
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

/// The Pods that an owner makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Makes {
    /// The object with the template: the owner, or the Deployment above it.
    pub(super) by: String,
    /// The image of the Pods that the owner makes.
    pub(super) image: String,
}

/// Why an owner couldn't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnerError {
    /// The API server refuses. Give the coordinator's role `get` on that kind.
    #[error("{owner} can't be read ({error}); what it makes shows only by its Pods")]
    Denied {
        /// The owner.
        owner: Owner,
        /// The API server's answer.
        error: String,
    },
    /// The owner doesn't exist, or another object has its name.
    #[error("{0} is gone")]
    Gone(Owner),
    /// The owner's template names no image, or the owner can't be read for now.
    #[error("{owner}: {error}")]
    Failed {
        /// The owner.
        owner: Owner,
        /// The cause.
        error: String,
    },
}

/// The known facts about an owner.
#[derive(Debug)]
struct Known {
    makes: Option<Makes>,
    /// When the template was read. `None` while it is being read for the first time, or anew.
    read_at: Option<Instant>,
    due: Instant,
    reading: bool,
    failures: u32,
}

/// The owners of the Pods that each ImagePrePull gates, and what the owners of rolling Pods make.
#[derive(Debug)]
pub(super) struct Owners {
    of: BTreeMap<ObjectKey, BTreeSet<OwnerKey>>,
    known: BTreeMap<OwnerKey, Known>,
    denied: Once,
}

impl Default for Owners {
    fn default() -> Self {
        Self {
            of: BTreeMap::new(),
            known: BTreeMap::new(),
            denied: Once::new(MOST),
        }
    }
}

impl Owners {
    /// What the owners of the Pods that an ImagePrePull gates make. Where there are several owners, one that makes
    /// another image than the gate's counts.
    pub(super) fn template(&self, now: Now, index: &Index, gate: &PrePullGate) -> Template {
        let mut template = None;
        for key in self.of.get(&gate.key).into_iter().flatten() {
            let this = self.makes(now, index, key);
            let differs = matches!(&this, Template::Image(made) if *made != gate.image);
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

    /// An owner of the gated Pods that makes another image than the gate's, with that image.
    pub(super) fn lagging(&self, index: &Index, gate: &PrePullGate) -> Option<Makes> {
        let mut owners = self.of.get(&gate.key).into_iter().flatten();
        owners.find_map(|key| {
            let makes = match runner_pool(index, key) {
                Some(image) => Makes {
                    by: key.owner.to_string(),
                    image,
                },
                None => self.known.get(key)?.makes.clone()?,
            };
            (makes.image != gate.image).then_some(makes)
        })
    }

    /// Finds the owners of the Pods that an ImagePrePull gates. Returns whether the owners changed.
    pub(super) fn find(&mut self, index: &Index, gate: &PrePullGate) -> bool {
        let mine = index.pods.iter().filter(|(key, pod)| {
            !pod.deleting && pod.phase != Phase::Ended && gate.selects(key, pod)
        });
        let found: BTreeSet<OwnerKey> = mine
            .filter_map(|(key, pod)| OwnerKey::of(key, pod))
            .collect();
        let differs = self.of.get(&gate.key) != Some(&found);
        self.of.insert(gate.key.clone(), found);
        differs
    }

    /// Forgets an ImagePrePull that gates nothing any more.
    pub(super) fn forget(&mut self, prepull: &ObjectKey) {
        self.of.remove(prepull);
    }

    /// A Pod came under an ImagePrePull's gate. Returns whether its owner is new.
    pub(super) fn came(&mut self, prepull: &ObjectKey, key: &ObjectKey, pod: &PodFacts) -> bool {
        match (OwnerKey::of(key, pod), self.of.get_mut(prepull)) {
            (Some(owner), Some(known)) => known.insert(owner),
            _ => false,
        }
    }

    /// An ImagePrePull has another image now, so its owners are asked again: earlier answers don't count.
    pub(super) fn ask_anew(&mut self, now: Instant, prepull: &ObjectKey) {
        for key in self.of.get(prepull).into_iter().flatten() {
            if let Some(known) = self.known.get_mut(key) {
                (known.read_at, known.due) = (None, now);
            }
        }
    }

    /// The owners that are to be read now, because the Pods under these gates roll. Other owners are forgotten. Each
    /// returned owner counts as being read.
    pub(super) fn due(&mut self, now: Instant, rolling: &[&PrePullGate]) -> Vec<OwnerKey> {
        let wanted: BTreeSet<OwnerKey> = rolling
            .iter()
            .filter_map(|gate| self.of.get(&gate.key))
            .flatten()
            .filter(|key| replaces(&key.owner))
            .take(MOST)
            .cloned()
            .collect();
        self.known
            .retain(|key, known| known.reading || wanted.contains(key));
        let mut due = Vec::new();
        for key in wanted {
            let known = self.known.entry(key.clone()).or_insert_with(|| Known {
                makes: None,
                read_at: None,
                due: now,
                reading: false,
                failures: 0,
            });
            if !known.reading && known.due <= now {
                known.reading = true;
                due.push(key);
            }
        }
        due
    }

    /// An owner that was asked at `asked` was read, or couldn't be. Returns whether the gates are to be told anew.
    pub(super) fn read(
        &mut self,
        now: Instant,
        key: &OwnerKey,
        asked: Instant,
        result: Result<Makes, OwnerError>,
    ) -> bool {
        let Some(known) = self.known.get_mut(key) else {
            return false;
        };
        known.reading = false;
        // this answer is older than the request to ask anew
        if known.read_at.is_none() && known.due > asked {
            return false;
        }
        let namespace = &key.namespace;
        match result {
            Ok(makes) => {
                if known.makes.as_ref() != Some(&makes) {
                    let (owner, image) = (&makes.by, &makes.image);
                    info!(namespace, owner, image, "owner's template is read");
                }
                known.makes = Some(makes);
                (known.read_at, known.due) = (Some(asked), asked + READ_EVERY);
                known.failures = 0;
            }
            Err(error @ (OwnerError::Denied { .. } | OwnerError::Gone(_))) => {
                known.makes = None;
                (known.read_at, known.due) = (Some(asked), asked + DENIED_FOR);
                let denied = matches!(error, OwnerError::Denied { .. });
                let error = error.to_string();
                if denied && self.denied.is_new(&error) {
                    warn!(namespace, error, "owner of gated Pods can't be read");
                }
            }
            Err(error) => {
                known.failures += 1;
                known.due = now + READ_EVERY;
                if known.failures == FAILURES {
                    warn!(namespace, %error, "owner of gated Pods can't be read for now");
                }
            }
        }
        true
    }

    fn makes(&self, now: Now, index: &Index, key: &OwnerKey) -> Template {
        if let Some(image) = runner_pool(index, key) {
            return Template::Image(image);
        }
        if !replaces(&key.owner) {
            return Template::Unknown;
        }
        match self.known.get(key) {
            Some(Known {
                makes: Some(makes),
                read_at: Some(at),
                ..
            }) if now.since(*at) < FRESH => Template::Image(makes.image.clone()),
            Some(known) if known.makes.is_none() && known.read_at.is_some() => Template::Unknown,
            Some(known) if known.failures >= FAILURES => Template::Unknown,
            _ => Template::Unread,
        }
    }

    /// As if all reads were old enough to be due, and none were under way.
    #[cfg(test)]
    pub(super) fn read_at_once(&mut self, now: Instant) {
        for known in self.known.values_mut() {
            (known.due, known.reading) = (now, false);
        }
    }
}

/// The image that a RunnerPool's controller makes Pods of: the observed image where the status has one, else the
/// spec's.
fn runner_pool(index: &Index, key: &OwnerKey) -> Option<String> {
    let pool = ObjectKey::new(&key.namespace, &key.owner.name);
    let pool = index.runner_pools.get(&pool)?;
    let is = key.owner.kind == "RunnerPool" && key.owner.uid == pool.uid;
    is.then(|| {
        let heard = pool.observed.as_ref();
        heard.unwrap_or(&pool.spec.image).clone()
    })
}

/// Whether an owner of this kind replaces a Pod that left by a new one from its template.
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::{
        index::{Kind, made_up::prepull},
        prepull_gate::gates,
    };

    /// An ImagePrePull of image `new` whose Pods belong to these ReplicaSets.
    fn index(owners: &[&str]) -> Index {
        let mut index = Index::default();
        let gate = json!({ "mode": "Own", "podSelector": { "matchLabels": { "app": "x" } } });
        let more = json!({ "spec": { "gate": gate } });
        index.show(Kind::PrePulls, prepull("pool", "new", &more));
        for name in owners {
            let owner =
                json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": name });
            let meta = json!({
                "name": format!("pod of {name}"),
                "namespace": "ns",
                "uid": name,
                "labels": { "app": "x" },
                "ownerReferences": [owner],
            });
            let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": meta });
            index.show(Kind::Pods, pod);
        }
        index
    }

    struct Stand {
        index: Index,
        gate: PrePullGate,
        owners: Owners,
    }

    impl Stand {
        fn new(owners: &[&str]) -> Self {
            let index = index(owners);
            let gate = gates(&index).remove(0);
            let mut owners = Owners::default();
            assert!(owners.find(&index, &gate) && !owners.find(&index, &gate));
            Self {
                index,
                gate,
                owners,
            }
        }

        fn template(&self, now: Now) -> Template {
            self.owners.template(now, &self.index, &self.gate)
        }

        fn due(&mut self, now: Now) -> Vec<OwnerKey> {
            self.owners.due(now.instant, &[&self.gate])
        }

        fn say(&mut self, now: Now, key: &OwnerKey, image: &str) -> bool {
            let makes = Makes {
                by: key.owner.to_string(),
                image: image.to_owned(),
            };
            self.owners.read(now.instant, key, now.instant, Ok(makes))
        }
    }

    #[test]
    fn an_owner_is_read_every_five_seconds_and_its_word_counts_for_fifteen() {
        let (mut stand, now) = (Stand::new(&["set"]), Now::start());
        assert_eq!(stand.template(now), Template::Unread);
        let due = stand.due(now);
        assert_eq!(
            (due.len(), stand.due(now).len()),
            (1, 0),
            "it is being read"
        );
        assert!(stand.say(now, &due[0], "new"));
        let image = Template::Image("new".into());
        assert_eq!(stand.template(now), image);
        let tick = Duration::from_millis(1);
        assert_eq!(stand.due(now.after(READ_EVERY - tick)).len(), 0);
        assert_eq!(stand.due(now.after(READ_EVERY)).len(), 1);
        assert_eq!(stand.template(now.after(FRESH - tick)), image);
        assert_eq!(stand.template(now.after(FRESH)), Template::Unread);
    }

    #[test]
    fn of_several_owners_the_one_that_makes_another_image_counts() {
        let (mut stand, now) = (Stand::new(&["one", "two"]), Now::start());
        let due = stand.due(now);
        stand.say(now, &due[0], "new");
        assert_eq!(stand.template(now), Template::Unread);
        assert_eq!(stand.owners.lagging(&stand.index, &stand.gate), None);
        stand.say(now, &due[1], "old");
        assert_eq!(stand.template(now), Template::Image("old".into()));
        let lagging = stand.owners.lagging(&stand.index, &stand.gate).unwrap();
        assert_eq!(lagging.by, "ReplicaSet two");
    }

    #[test]
    fn what_was_asked_before_the_image_was_said_anew_is_no_answer() {
        let (mut stand, now) = (Stand::new(&["set"]), Now::start());
        let due = stand.due(now);
        let later = now.after(Duration::from_secs(1));
        stand.owners.ask_anew(later.instant, &stand.gate.key);
        assert!(!stand.say(now, &due[0], "new"));
        assert_eq!(stand.template(later), Template::Unread);
        let due = stand.due(later);
        assert!(stand.say(later, &due[0], "new"));
        assert_eq!(stand.template(later), Template::Image("new".into()));
    }

    #[test]
    fn an_owner_that_fails_is_waited_for_four_times_and_one_that_is_gone_is_not() {
        let (mut stand, mut now) = (Stand::new(&["set"]), Now::start());
        for failure in 1..=FAILURES {
            let due = stand.due(now);
            let error = OwnerError::Failed {
                owner: due[0].owner.clone(),
                error: "503".into(),
            };
            stand
                .owners
                .read(now.instant, &due[0], now.instant, Err(error));
            let unknown = stand.template(now) == Template::Unknown;
            assert_eq!(unknown, failure == FAILURES, "{failure}");
            now = now.after(READ_EVERY);
        }
        let (mut stand, now) = (Stand::new(&["set"]), Now::start());
        let due = stand.due(now);
        let gone = Err(OwnerError::Gone(due[0].owner.clone()));
        stand.owners.read(now.instant, &due[0], now.instant, gone);
        assert_eq!(stand.template(now), Template::Unknown);
        let tick = Duration::from_millis(1);
        assert_eq!(stand.due(now.after(DENIED_FOR - tick)).len(), 0);
        assert_eq!(stand.due(now.after(DENIED_FOR)).len(), 1);
    }

    #[test]
    fn owners_of_what_does_not_roll_are_forgotten_and_a_pod_may_bring_a_new_one() {
        let (mut stand, now) = (Stand::new(&["set"]), Now::start());
        let due = stand.due(now);
        stand.say(now, &due[0], "new");
        assert_eq!(stand.owners.due(now.instant, &[]), []);
        assert_eq!(stand.template(now), Template::Unread);
        let more = index(&["set", "another"]);
        let (came, again) = more.pods.iter().fold((0, 0), |(came, again), (key, pod)| {
            let first = stand.owners.came(&stand.gate.key, key, pod);
            let second = stand.owners.came(&stand.gate.key, key, pod);
            (came + u32::from(first), again + u32::from(second))
        });
        assert_eq!((came, again), (1, 0));
    }
}
