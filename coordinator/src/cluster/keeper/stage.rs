//! ImagePrePulls: what each wants staged, how far that is, and the ones that RunnerPools own.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference, Time};
use kube::api::ObjectMeta;
use proto::{Digest, HostId};
use rollout::presence;
use serde_json::{Value, json};
use tracing::{info, warn};

use super::{Input, Keeper, secrets};
use crate::{
    cluster::{
        crd::{
            CompletionPolicy, Gate, GateMode, ImagePrePull, ImagePrePullSpec, ImagePrePullStatus,
            ObjectName, OnDeadline, Rate,
        },
        index::{ObjectKey, PrePullFacts, RunnerPoolFacts},
        write::{self, Own, WriteError},
    },
    driver::{self, Ask, Limits, stricter},
    resolve::{ResolveError, by_digest},
    wants::Want,
};

/// The first wait after a reference couldn't be resolved; doubles.
const RETRY: Duration = Duration::from_secs(5);
/// The longest wait.
const RETRY_MOST: Duration = Duration::from_mins(5);
/// A host that isn't selected any more keeps what it has for this long: a Node that was made anew, or a label that was
/// lost in an edit, doesn't cost the bytes twice.
pub(super) const KEPT_FOR: Duration = Duration::from_mins(10);

/// What an ImagePrePull wants, as far as it is known.
#[derive(Debug)]
pub(in crate::cluster) struct Stage {
    pub(super) image: String,
    pub(super) state: State,
    /// What the image was resolved to, by this coordinator or one before. It stays: a tag that moves is another image
    /// only when somebody says so.
    pub(super) digest: Option<Digest>,
    /// What it wanted before its image changed, until the new one is resolved: most often that is the same by another
    /// name, or shares most of its bytes.
    previous: Option<Box<Want>>,
    /// What it was last asked for by: another of either asks anew.
    asked: AskedBy,
    pub(super) started_at: SystemTime,
    pub(super) staged_at: Option<SystemTime>,
    /// Its deadline passed before it was everywhere.
    pub(super) late: bool,
    /// The status that was written last.
    pub(super) written: Option<ImagePrePullStatus>,
    pub(super) written_at: Option<Instant>,
    /// What was told about it in Events, also by a coordinator before: state names.
    pub(super) told: Option<&'static str>,
}

/// Those parts of an ImagePrePull by which somebody asks for its image.
#[derive(Debug, PartialEq)]
struct AskedBy {
    /// All of it but the gate: a pool that grows says nothing of the image.
    spec: ImagePrePullSpec,
    /// What stands in the annotation that asks for another try.
    retry: Option<String>,
}

impl AskedBy {
    fn of(facts: &PrePullFacts) -> Self {
        Self {
            spec: ImagePrePullSpec {
                gate: None,
                ..facts.spec.clone()
            },
            retry: facts.retry.clone(),
        }
    }
}

#[derive(Debug)]
pub(super) enum State {
    Asking {
        tries: u32,
        /// How the last try ended: it stands until this one has.
        last: Option<Unresolved>,
    },
    Known(Box<Want>),
    Failed {
        why: Unresolved,
        tries: u32,
        retry_at: Instant,
    },
}

impl State {
    /// Why the image isn't known, as far as the registry was heard.
    pub(super) const fn trouble(&self) -> Option<&Unresolved> {
        match self {
            Self::Asking { last, .. } => last.as_ref(),
            Self::Known(_) => None,
            Self::Failed { why, .. } => Some(why),
        }
    }

    /// Whether hosts may be staging an image for it that isn't known here yet: after a start the registry has to be asked again, and
    /// may be away.
    fn may_be_staging(&self, facts: &PrePullFacts) -> bool {
        match self {
            Self::Asking { .. } => true,
            Self::Known(_) => false,
            Self::Failed { .. } => {
                facts.status.digest.is_some()
                    && facts.status.observed_generation == Some(facts.generation)
            }
        }
    }
}

/// A reference was resolved, or wasn't.
#[derive(Debug)]
pub(crate) struct Resolved {
    key: ObjectKey,
    image: String,
    result: Result<Want, Unresolved>,
}

#[cfg(test)]
impl Resolved {
    pub(super) fn of(key: ObjectKey, image: &str, result: Result<Want, &'static str>) -> Self {
        Self {
            key,
            image: image.to_owned(),
            result: result.map_err(|reason| Unresolved {
                reason: reason.into(),
                message: reason.to_owned(),
            }),
        }
    }
}

/// Why an image couldn't be resolved.
#[derive(Clone, Debug)]
pub(super) struct Unresolved {
    pub(super) reason: Cow<'static, str>,
    pub(super) message: String,
}

/// What the driver was told to stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    digest: Digest,
    /// With the time of the ask, in Unix milliseconds.
    references: BTreeMap<String, u64>,
    secrets: BTreeMap<String, String>,
    hosts: BTreeSet<HostId>,
    held: BTreeSet<HostId>,
}

/// What becomes of an image whose hosts aren't to go on for now.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Hosts that were wanted and aren't any more, since when.
    hosts: BTreeMap<HostId, Instant>,
}

#[cfg(test)]
impl Left {
    /// As if they had been left so much earlier.
    pub(super) fn age(&mut self, by: Duration) {
        for since in self.hosts.values_mut() {
            *since -= by;
        }
    }
}

impl Stage {
    /// As if the wait after a reference that couldn't be resolved were over.
    #[cfg(test)]
    pub(super) fn retry_now(&mut self) {
        if let State::Failed { retry_at, .. } = &mut self.state {
            *retry_at = Instant::now();
        }
    }

    /// Whether the object was changed or annotated since its image was last asked for.
    fn is_asked_anew(&self, facts: &PrePullFacts) -> bool {
        self.asked != AskedBy::of(facts)
    }

    /// What is wanted, and whether hosts go on with it.
    fn want(&self) -> Option<(&Want, bool)> {
        match &self.state {
            State::Known(want) => Some((want, true)),
            State::Asking { .. } | State::Failed { .. } => {
                self.previous.as_deref().map(|want| (want, false))
            }
        }
    }
}

impl Keeper {
    pub(super) fn stage_due(&mut self) {
        self.due = Instant::now();
    }

    /// The digest that this ImagePrePull's image was resolved to, if it is this image.
    pub(super) fn digest_of(&self, key: &ObjectKey, image: &str) -> Option<Digest> {
        let stage = self.stages.get(key)?;
        stage.digest.filter(|_| stage.image == image)
    }

    pub(super) fn deadline_of(&self, key: &ObjectKey, facts: &PrePullFacts) -> Option<SystemTime> {
        let stage = self.stages.get(key)?;
        stage.started_at.checked_add(facts.spec.deadline?.0)
    }

    /// Brings what is resolved, and what the driver stages, up to what the objects say.
    pub(super) fn stage(&mut self) {
        if !self.synced {
            return;
        }
        let gone: Vec<ObjectKey> = self
            .stages
            .keys()
            .filter(|key| !self.index.prepulls.contains_key(*key))
            .cloned()
            .collect();
        for key in gone {
            self.stages.remove(&key);
            self.metrics.forget_prepull(&key);
        }
        let mut ask = Vec::new();
        for (key, facts) in &self.index.prepulls {
            // nothing new is made of one that can't be read; what is known of it from before stands
            if facts.unread {
                continue;
            }
            let fresh = self
                .stages
                .get(key)
                .is_none_or(|stage| stage.image != facts.spec.image);
            if fresh {
                // a coordinator that was restarted goes on with what was resolved before
                let same = facts.status.observed_generation == Some(facts.generation)
                    && !self.stages.contains_key(key);
                let status = same.then_some(&facts.status);
                let time = |time: Option<&Time>| time.map(|time| SystemTime::from(time.0));
                let previous = self.stages.remove(key).and_then(|stage| match stage.state {
                    State::Known(want) => Some(want),
                    State::Asking { .. } | State::Failed { .. } => stage.previous,
                });
                let digest =
                    status.and_then(|status| status.digest.as_ref()?.parse::<Digest>().ok());
                self.stages.insert(
                    key.clone(),
                    Stage {
                        image: facts.spec.image.clone(),
                        state: State::Asking {
                            tries: 0,
                            last: status.and_then(unresolved_before),
                        },
                        digest,
                        previous,
                        asked: AskedBy::of(facts),
                        started_at: status
                            .and_then(|status| time(status.started_at.as_ref()))
                            .unwrap_or_else(SystemTime::now),
                        staged_at: status.and_then(|status| time(status.staged_at.as_ref())),
                        late: false,
                        written: None,
                        written_at: None,
                        told: status.and_then(told_before),
                    },
                );
                // hosts that hold it say so whether or not the registry can be asked
                self.rules_due |= digest.is_some();
                ask.push((key.clone(), facts.clone(), digest));
            } else if let Some(stage) = self.stages.get_mut(key)
                && let State::Failed {
                    why,
                    tries,
                    retry_at,
                } = &stage.state
                && (*retry_at <= Instant::now() || stage.is_asked_anew(facts))
            {
                stage.state = State::Asking {
                    tries: *tries,
                    last: Some(why.clone()),
                };
                stage.asked = AskedBy::of(facts);
                ask.push((key.clone(), facts.clone(), stage.digest));
            }
        }
        for (key, facts, digest) in ask {
            self.resolve(key, &facts, digest);
        }
        self.place();
        self.urge();
    }

    /// Has the driver try again what failed of images whose objects were changed, or annotated anew.
    fn urge(&mut self) {
        for (key, facts) in &self.index.prepulls {
            let Some(stage) = self.stages.get_mut(key) else {
                continue;
            };
            let State::Known(want) = &stage.state else {
                continue;
            };
            if !stage.is_asked_anew(facts) {
                continue;
            }
            // full: told at the next look
            let ask = driver::Input::Asked(Ask::Urge(want.digest()));
            if self.driver.try_send(ask).is_ok() {
                stage.asked = AskedBy::of(facts);
            }
        }
    }

    fn resolve(&mut self, key: ObjectKey, facts: &PrePullFacts, digest: Option<Digest>) {
        let (client, registries) = (self.client.clone(), self.registries.clone());
        let image = facts.spec.image.clone();
        let secret = facts.secret(&key);
        let reference = digest.map_or_else(|| image.clone(), |digest| by_digest(&image, &digest));
        self.jobs.spawn(async move {
            if let Some(secret) = &secret
                && let Err(error) = secrets::learn(client, secret, &registries).await
            {
                let result = Err(Unresolved {
                    reason: "PullSecret".into(),
                    message: error.to_string(),
                });
                return Input::Resolved(Box::new(Resolved { key, image, result }));
            }
            let result = registries
                .resolve(
                    &reference,
                    Some(BTreeSet::new()),
                    secret.map(|secret| secret.to_string()).as_ref(),
                )
                .await
                .map(|want| Want {
                    references: [image.clone()].into(),
                    ..want
                })
                .map_err(|error| Unresolved {
                    reason: unresolved(&error).into(),
                    message: error.to_string(),
                });
            Input::Resolved(Box::new(Resolved { key, image, result }))
        });
    }

    pub(super) fn resolved(&mut self, resolved: Resolved) {
        let Resolved { key, image, result } = resolved;
        let Some(stage) = self
            .stages
            .get_mut(&key)
            .filter(|stage| stage.image == image)
        else {
            return;
        };
        let tries = match stage.state {
            State::Asking { tries, .. } | State::Failed { tries, .. } => tries,
            State::Known(_) => 0,
        };
        match result {
            Ok(want) => {
                info!(prepull = %key, image, digest = %want.digest(), "image is resolved");
                stage.digest = Some(want.digest());
                stage.state = State::Known(Box::new(want));
                stage.previous = None;
            }
            Err(why) => {
                let (reason, error) = (&why.reason, &why.message);
                warn!(prepull = %key, image, %reason, error, "image can't be resolved; it is tried again");
                let wait = (RETRY * (1 << tries.min(10))).min(RETRY_MOST);
                stage.state = State::Failed {
                    why,
                    tries: tries + 1,
                    retry_at: Instant::now() + wait,
                };
            }
        }
        self.rules_due = true;
        self.stage_due();
    }

    /// Tells the driver what the cluster wants, where that changed.
    fn place(&mut self) {
        let mut limits = Limits::default();
        let mut wants: BTreeMap<Digest, driver::Placed> = BTreeMap::new();
        for (key, facts) in &self.index.prepulls {
            let Some(stage) = self.stages.get(key).filter(|_| !facts.deleting) else {
                continue;
            };
            let Some((want, resolved)) = stage.want() else {
                continue;
            };
            let moves = resolved && !facts.spec.paused;
            let done = self.is_done(key, facts);
            let digest = want.digest();
            if moves && stage.staged_at.is_none() {
                limit(&mut limits, &facts.spec);
            }
            let hosts: BTreeSet<HostId> = self
                .index
                .selected(&facts.spec)
                .into_iter()
                .filter_map(|(name, _)| name.parse().ok())
                .filter(|host| self.view.hosts.get(host).is_some_and(|host| !host.revoked))
                .filter(|host| !done || self.holds(host, &digest, &facts.spec.image))
                .collect();
            let placed = wants.entry(digest).or_insert_with(|| driver::Placed {
                want: Want {
                    hosts: Some(BTreeSet::new()),
                    references: BTreeSet::new(),
                    asked_ms: BTreeMap::new(),
                    secrets: BTreeMap::new(),
                    ..want.clone()
                },
                held: BTreeSet::new(),
            });
            let asked_ms = unix_ms(stage.started_at);
            for reference in &want.references {
                placed.want.references.insert(reference.clone());
                let asked = placed.want.asked_ms.entry(reference.clone());
                let asked = asked.or_default();
                *asked = asked_ms.max(*asked);
            }
            if let Some(secret) = facts.secret(key) {
                let secrets = &mut placed.want.secrets;
                secrets
                    .entry(stage.image.clone())
                    .or_insert(secret.to_string());
            }
            match moves {
                true => placed.want.hosts.get_or_insert_default().extend(hosts),
                false => placed.held.extend(hosts),
            }
        }
        self.keep_what_left(&mut wants);
        let placed: Vec<Placed> = wants
            .values()
            .map(|placed| Placed {
                digest: placed.want.digest(),
                references: placed.want.asked_ms.clone(),
                secrets: placed.want.secrets.clone(),
                hosts: placed.want.hosts.clone().unwrap_or_default(),
                held: placed.held.clone(),
            })
            .collect();
        // before the driver has shown its hosts, nothing is wanted on any
        let whole = !self.view.hosts.is_empty()
            && self.index.prepulls.iter().all(|(key, facts)| {
                let stage = self.stages.get(key);
                stage.is_some_and(|stage| !stage.state.may_be_staging(facts))
            });
        let told = (&self.placed, self.limits, self.placed_whole);
        if (&placed, limits, whole) == told {
            return;
        }
        let wants = wants.into_values().collect();
        let ask = driver::Input::Asked(Ask::Place {
            wants,
            limits,
            whole,
        });
        // full: told at the next look
        if self.driver.try_send(ask).is_ok() {
            (self.placed, self.limits, self.placed_whole) = (placed, limits, whole);
        }
    }

    /// Whether what was staged once is enough. Not while Pods roll to it: one whose Node came later, or lost the image,
    /// would be held for ever.
    fn is_done(&self, key: &ObjectKey, facts: &PrePullFacts) -> bool {
        facts.is_done() && !self.gate.rolls(&key.pool())
    }

    /// Hosts that aren't selected any more keep what they have for a while, where the image is still wanted at all.
    fn keep_what_left(&mut self, wants: &mut BTreeMap<Digest, driver::Placed>) {
        self.left.retain(|image, _| wants.contains_key(image));
        for before in &self.placed {
            if wants.contains_key(&before.digest) {
                let left = self.left.entry(before.digest).or_default();
                for host in before.hosts.union(&before.held) {
                    left.hosts.entry(host.clone()).or_insert_with(Instant::now);
                }
            }
        }
        for (image, left) in &mut self.left {
            let Some(placed) = wants.get_mut(image) else {
                continue;
            };
            let selected = placed.want.hosts.get_or_insert_default();
            left.hosts
                .retain(|host, _| !selected.contains(host) && !placed.held.contains(host));
            let kept = left
                .hosts
                .iter()
                .filter(|(_, since)| since.elapsed() < KEPT_FOR)
                .filter(|(host, _)| self.view.hosts.get(*host).is_some_and(|host| !host.revoked))
                .map(|(host, _)| host.clone());
            placed.held.extend(kept);
        }
    }

    /// Whether a host holds this image under this name, by a fresh word.
    pub(super) fn holds(&self, host: &HostId, digest: &Digest, image: &str) -> bool {
        self.presence.get(host).is_some_and(|word| {
            word.checked_at.elapsed() <= presence::MAX_AGE
                && word
                    .holdings
                    .get(digest)
                    .is_some_and(|references| references.contains(image))
        })
    }

    /// Deletes an ImagePrePull whose time after staging is over, unless its Pods still roll.
    pub(super) fn ended(
        &mut self,
        key: &ObjectKey,
        facts: &PrePullFacts,
        status: &ImagePrePullStatus,
    ) -> bool {
        let Some(ttl) = facts.spec.ttl_after_staged else {
            return false;
        };
        let over = status
            .staged_at
            .as_ref()
            .and_then(|at| SystemTime::from(at.0).checked_add(ttl.0))
            .is_some_and(|end| end <= SystemTime::now());
        let rolling = self
            .gate
            .status(&key.pool())
            .is_some_and(|pool| pool.is_rolling());
        if !over || rolling || facts.deleting || facts.owner.is_some() {
            return false;
        }
        if self.prepull_writes.contains(key) {
            return true;
        }
        info!(prepull = %key, "everything was staged long enough ago; the ImagePrePull is deleted, as it asks");
        let uid = facts.uid.clone();
        self.write_prepull(key.clone(), Own::Delete(uid));
        true
    }

    // ---- RunnerPools --------------------------------------------------------------------------------------------

    /// Makes, follows and takes back the ImagePrePulls that RunnerPools own.
    pub(super) fn follow_pools(&mut self) {
        if !self.synced {
            return;
        }
        let mut writes = Vec::new();
        for (key, pool) in &self.index.runner_pools {
            let mode = pool.mode.unwrap_or(self.config.default_gate);
            if mode == GateMode::None || pool.spec.os != "darwin" || pool.spec.image.is_empty() {
                continue;
            }
            match self.index.prepulls.get(key) {
                // it isn't to be changed by who can't read it
                Some(facts) if facts.unread => {}
                None => writes.push((key.clone(), Own::Create(Box::new(owned(key, pool, mode))))),
                Some(facts)
                    if facts
                        .owner
                        .as_ref()
                        .is_some_and(|(_, uid)| *uid == pool.uid) =>
                {
                    if let Some(patch) = follow(facts, pool, mode) {
                        writes.push((key.clone(), Own::Change(patch)));
                    }
                }
                Some(_) => {
                    let text =
                        format!("imageprepulls {key} isn't owned by the RunnerPool of its name");
                    if self.complaints.len() < super::MAX_COMPLAINTS
                        && self.complaints.insert(text.clone())
                    {
                        warn!(
                            object = text,
                            "RunnerPool isn't followed; delete or rename the ImagePrePull"
                        );
                    }
                }
            }
        }
        let absent = self.watches.values().any(|watch| watch.absent);
        for (key, facts) in &self.index.prepulls {
            let Some((name, uid)) = &facts.owner else {
                continue;
            };
            let pool_key = ObjectKey::new(&key.namespace, name);
            // it is there, whatever it means: what was made for it stays, and is held
            if self.index.unreadable_pools.contains(&pool_key) {
                continue;
            }
            let pool = self.index.runner_pools.get(&pool_key);
            let wanted = pool.is_some_and(|pool| {
                pool.uid == *uid
                    && pool.spec.os == "darwin"
                    && pool.mode.unwrap_or(self.config.default_gate) != GateMode::None
            });
            if !wanted && !absent && !facts.deleting {
                writes.push((key.clone(), Own::Delete(facts.uid.clone())));
            }
        }
        let wanted: BTreeSet<&ObjectKey> = writes.iter().map(|(key, _)| key).collect();
        self.prepull_retries.keep(|key| wanted.contains(key));
        for (key, own) in writes {
            self.write_prepull(key, own);
        }
    }

    fn write_prepull(&mut self, key: ObjectKey, own: Own) {
        let may = self.prepull_retries.may(&key, Instant::now());
        if !may || !self.prepull_writes.insert(key.clone()) {
            return;
        }
        let work = write::prepull(self.writer.clone(), key.clone(), own);
        self.spawn_write(work, move |result| Input::PrePullWritten {
            key,
            result: result.unwrap_or(Ok(())),
        });
    }

    pub(super) fn prepull_written(&mut self, key: &ObjectKey, result: Result<(), WriteError>) {
        self.prepull_writes.remove(key);
        let Err(error) = result else {
            return self.prepull_retries.over(key);
        };
        let error = error.to_string();
        if self
            .prepull_retries
            .failed(key.clone(), &error, Instant::now())
        {
            warn!(prepull = %key, error, "ImagePrePull couldn't be written; it is tried again, after growing pauses");
        }
    }
}

/// Takes what an ImagePrePull limits into account: the strictest word counts, for the wire is shared.
fn limit(limits: &mut Limits, spec: &ImagePrePullSpec) {
    if let Some(streams) = spec.origin_streams.and_then(|n| usize::try_from(n).ok()) {
        limits.origin_streams = Some(limits.origin_streams.map_or(streams, |n| n.min(streams)));
    }
    let Some(bandwidth) = &spec.bandwidth else {
        return;
    };
    let rate = |rate: &Option<Rate>| rate.map_or(0, |rate| rate.bytes_per_second);
    let known = &mut limits.bandwidth;
    known.upload_bytes_per_second =
        stricter(known.upload_bytes_per_second, rate(&bandwidth.upload));
    known.download_bytes_per_second =
        stricter(known.download_bytes_per_second, rate(&bandwidth.download));
}

/// In whole seconds, as a status keeps times: a start changes nothing.
fn unix_ms(time: SystemTime) -> u64 {
    let since_1970 = time.duration_since(SystemTime::UNIX_EPOCH);
    since_1970
        .unwrap_or_default()
        .as_secs()
        .saturating_mul(1000)
}

/// How a coordinator before this one couldn't resolve the image.
fn unresolved_before(status: &ImagePrePullStatus) -> Option<Unresolved> {
    let before = status.conditions.iter().find(|c| c.type_ == "Resolved")?;
    (before.status == "False").then(|| Unresolved {
        reason: before.reason.clone().into(),
        message: before.message.clone(),
    })
}

/// What a coordinator before this one told in Events.
fn told_before(status: &ImagePrePullStatus) -> Option<&'static str> {
    let of = |type_: &str| status.conditions.iter().find(|c| c.type_ == type_);
    if of("Resolved")?.status == "False" {
        return Some("unresolved");
    }
    match of("Staged")?.reason.as_str() {
        "AllHosts" | "Once" => Some("staged"),
        "HostsFailed" => Some("failed"),
        "Staging" => Some("staging"),
        _ => None,
    }
}

const fn unresolved(error: &ResolveError) -> &'static str {
    match error {
        ResolveError::Reference { .. } => "InvalidReference",
        ResolveError::NotFound { .. } => "NotFound",
        ResolveError::Image { .. } | ResolveError::NoManifest { .. } => "UnsupportedImage",
        ResolveError::Password { .. } => "Credentials",
        ResolveError::Registry { .. } => "RegistryFailed",
        ResolveError::Timeout { .. } => "RegistryTimeout",
    }
}

/// The Nodes of a RunnerPool: what its Pods' nodeSelector says.
fn nodes_of(pool: &RunnerPoolFacts) -> LabelSelector {
    LabelSelector {
        match_labels: Some(
            [
                ("kubernetes.io/os", "darwin"),
                ("tuist.dev/fleet", pool.spec.fleet_selector.as_str()),
                ("tuist.dev/runtime", "tart"),
            ]
            .into_iter()
            .map(|(label, value)| (label.to_owned(), value.to_owned()))
            .collect(),
        ),
        match_expressions: None,
    }
}

/// The schema takes 1 to 100; a pool that says something else means the nearest.
fn percent(pool: &RunnerPoolFacts) -> i32 {
    pool.spec.rollout.max_concurrent_percent.clamp(1, 100)
}

fn owned(key: &ObjectKey, pool: &RunnerPoolFacts, mode: GateMode) -> ImagePrePull {
    let spec = ImagePrePullSpec {
        image: pool.spec.image.clone(),
        node_selector: nodes_of(pool),
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

/// What has to change for an owned ImagePrePull to follow its pool. Other fields are the operator's.
fn follow(facts: &PrePullFacts, pool: &RunnerPoolFacts, mode: GateMode) -> Option<Value> {
    let nodes = nodes_of(pool);
    let gate = facts.spec.gate.as_ref();
    let same = facts.spec.image == pool.spec.image
        && facts.spec.node_selector == nodes
        && gate
            .is_some_and(|gate| gate.mode == mode && gate.max_concurrent_percent == percent(pool));
    (!same).then(|| {
        // a merge patch leaves what it doesn't name
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
