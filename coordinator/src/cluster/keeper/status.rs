//! Where an ImagePrePull stands, as its status says it.
//!
//! A coordinator that takes over unsays nothing: what the one before wrote stands until the hosts have had time to say
//! what they hold. What isn't known yet isn't zero.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use proto::{Digest, HostId};
use rollout::{
    gate::{PoolStatus, Verdict},
    presence,
};
use serde_json::Value;
use tracing::warn;

use super::{
    Input, Keeper,
    stage::{Stage, State},
};
use crate::{
    cluster::{
        crd::{
            ByteCounts, CompletionPolicy, FailingHost, GateMemory, ImagePrePullStatus, MAX_FAILING,
            OnDeadline,
        },
        index::{NodeFacts, ObjectKey, PrePullFacts},
        write::{self, WriteError},
    },
    view::{HostState, ImageView},
};

/// Where only bytes and the prediction changed, a status is written this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// A status that was written and isn't shown is written again this often: somebody else wrote, or the definition in the
/// cluster is older than this coordinator and drops what it doesn't know.
const AGAIN_EVERY: Duration = Duration::from_secs(10);
/// An owner whose template is patched a moment after the object is no trouble: it is named when it lags for longer.
const LAG_SHOWN: Duration = Duration::from_secs(3);

/// What is amiss: a reason and a sentence. The first counts.
type Troubles = Vec<(Cow<'static, str>, String)>;

impl Keeper {
    /// Writes the statuses that changed, and tells metrics and Events.
    pub(super) fn write_statuses(&mut self) {
        if !self.synced {
            return;
        }
        let keys: Vec<ObjectKey> = self.index.prepulls.keys().cloned().collect();
        self.status_retries
            .keep(|key| self.index.prepulls.contains_key(key));
        for key in keys {
            let Some((status, state)) = self.status_of(&key) else {
                continue;
            };
            let late = self.stages.get(&key).is_some_and(|stage| stage.late);
            self.metrics.prepull(&key, &status.hosts, late);
            self.note_stage(&key, &status, state);
            let Some(facts) = self.index.prepulls.get(&key).cloned() else {
                continue;
            };
            if self.ended(&key, &facts, &status) {
                continue;
            }
            let may = self.status_retries.may(&key, Instant::now());
            let due = self
                .stages
                .get(&key)
                .is_none_or(|stage| is_due(stage, &status, &facts.status));
            let due = due && may;
            if status == facts.status || !due || self.status_writes.contains(&key) {
                continue;
            }
            let value = patch_of(&status);
            self.status_writes.insert(key.clone());
            if let Some(stage) = self.stages.get_mut(&key) {
                stage.written_at = Some(Instant::now());
                stage.written = Some(status);
            }
            let work = write::status(self.writer.clone(), key.clone(), facts.uid.clone(), value);
            self.spawn_write(work, move |result| Input::StatusWritten {
                key,
                result: result.unwrap_or(Ok(())),
            });
        }
    }

    pub(super) fn status_written(&mut self, key: &ObjectKey, result: Result<(), WriteError>) {
        self.status_writes.remove(key);
        if let Err(error) = result {
            if error.code() != Some(404) {
                let error = error.to_string();
                if self
                    .status_retries
                    .failed(key.clone(), &error, Instant::now())
                {
                    warn!(prepull = %key, error, "status couldn't be written; it is tried again, after growing pauses");
                }
            }
            if let Some(stage) = self.stages.get_mut(key) {
                stage.written = None;
            }
        } else {
            self.status_retries.over(key);
        }
    }

    /// Where an ImagePrePull stands, and how staging does in one word.
    pub(super) fn status_of(
        &mut self,
        key: &ObjectKey,
    ) -> Option<(ImagePrePullStatus, &'static str)> {
        let facts = self.index.prepulls.get(key)?;
        let stage = self.stages.get(key)?;
        let before = &facts.status;
        let mut status = ImagePrePullStatus {
            observed_generation: Some(facts.generation),
            started_at: time(stage.started_at),
            staged_at: stage.staged_at.and_then(time),
            digest: stage.digest.as_ref().map(ToString::to_string),
            ..ImagePrePullStatus::default()
        };
        let mut conditions = Conditions {
            before: &before.conditions,
            generation: facts.generation,
            now: Timestamp::now(),
            list: Vec::new(),
        };
        let selected = self.index.selected(&facts.spec);
        let usable: Vec<&String> = selected
            .iter()
            .filter(|(name, node)| self.is_usable(name, node))
            .map(|(name, _)| *name)
            .collect();
        status.hosts.selected = count(selected.len());
        status.hosts.excluded = count(selected.len() - usable.len());
        if let Some(digest) = &stage.digest {
            self.measure_staging(&mut status, facts, digest, &usable);
        }
        if let State::Known(want) = &stage.state {
            status.size_bytes = i64::try_from(want.layout.blob_bytes()).ok();
            status.disk_bytes = i64::try_from(want.layout.disk_bytes()).ok();
        }
        let mut troubles = Troubles::new();
        resolved(&mut conditions, &mut troubles, stage);
        let (staged, state) = self.staged(key, facts, stage, &status, usable.len());
        let everywhere = staged.reason == "AllHosts";
        let is_staged = staged.is;
        conditions.add("Staged", Some(staged.is), staged.reason, staged.text);
        let late = self
            .deadline_of(key, facts)
            .is_some_and(|at| at <= SystemTime::now());
        if stage.digest.is_some() {
            self.staging_troubles(&mut troubles, facts, stage, &status, late && !is_staged);
        }
        let pool = self.gate.status(&key.pool());
        if let Some(pool) = &pool {
            status.gate = memory(pool);
            self.gate_troubles(&mut troubles, key, pool);
        }
        rolling(&mut conditions, facts, pool.as_ref());
        self.other_troubles(&mut troubles, key, facts);
        match troubles.into_iter().next() {
            None => {
                let text = "nothing is amiss".to_owned();
                conditions.add("Degraded", Some(false), "AsExpected", text);
            }
            Some((reason, message)) => conditions.add("Degraded", Some(true), &reason, message),
        }
        status.conditions = conditions.list;
        let (word, reason) = summary(&status.conditions, facts.spec.paused, pool.as_ref());
        (status.state, status.reason) = (Some(word.to_owned()), reason);
        if let Some(stage) = self.stages.get_mut(key) {
            stage.late = late && !is_staged;
            if everywhere && stage.staged_at.is_none() {
                stage.staged_at = Some(SystemTime::now());
                status.staged_at = stage.staged_at.and_then(time);
            }
        }
        Some((status, state))
    }

    // ---- staging ------------------------------------------------------------------------------------------------

    /// How many hosts hold the image, and what moved; what was known before, where hosts haven't been heard yet.
    fn measure_staging(
        &self,
        status: &mut ImagePrePullStatus,
        facts: &PrePullFacts,
        digest: &Digest,
        usable: &[&String],
    ) {
        let image = self.view.images.get(digest).map(AsRef::as_ref);
        let unheard = self.count_hosts(status, usable, image, digest, &facts.spec.image);
        let before = &facts.status;
        if before.digest != status.digest {
            return;
        }
        status.bytes = larger(status.bytes, before.bytes);
        (status.size_bytes, status.disk_bytes) = (before.size_bytes, before.disk_bytes);
        let same = before.observed_generation == Some(facts.generation);
        if unheard && same {
            let most = count(usable.len());
            status.hosts.staged = status.hosts.staged.max(before.hosts.staged).min(most);
            let rest = most - status.hosts.staged;
            status.hosts.failed = before.hosts.failed.min(rest);
            status.hosts.staging = before.hosts.staging.min(rest - status.hosts.failed);
            status.failing.clone_from(&before.failing);
            status.eta_seconds = before.eta_seconds;
        }
    }

    /// Whether a Node counts: Ready, open to Pods, and with an agent that enrolled.
    fn is_usable(&self, name: &str, node: &NodeFacts) -> bool {
        node.ready
            && node.schedulable
            && name
                .parse::<HostId>()
                .ok()
                .and_then(|host| self.view.hosts.get(&host))
                .is_some_and(|host| !host.revoked)
    }

    /// Counts the hosts by state. Whether some of them haven't been heard since this coordinator started, and may yet be.
    fn count_hosts(
        &self,
        status: &mut ImagePrePullStatus,
        usable: &[&String],
        image: Option<&ImageView>,
        digest: &Digest,
        reference: &str,
    ) -> bool {
        let progress: BTreeMap<&str, _> = image
            .iter()
            .flat_map(|image| &image.hosts)
            .map(|host| (host.host.as_str(), host))
            .collect();
        let add = |sum: &mut i64, value: u64| {
            *sum = sum.saturating_add(i64::try_from(value).unwrap_or(i64::MAX));
        };
        let mut unheard = false;
        for name in usable {
            let held = name
                .parse::<HostId>()
                .is_ok_and(|host| self.holds(&host, digest, reference));
            let host = progress.get(name.as_str());
            if let Some(host) = host {
                add(&mut status.bytes.origin, host.bytes.origin);
                add(&mut status.bytes.peers, host.bytes.peers);
                add(&mut status.bytes.local, host.bytes.local);
            }
            if held {
                status.hosts.staged += 1;
                continue;
            }
            match host.map(|host| (host.state, host)) {
                Some((HostState::Failed, host)) => {
                    status.hosts.failed += 1;
                    if status.failing.len() < MAX_FAILING {
                        status.failing.push(FailingHost {
                            host: host.host.clone(),
                            reason: host.reason.as_deref().unwrap_or_default().to_owned(),
                            message: host.message.clone(),
                        });
                    }
                }
                // present by the driver's book, not yet by name or golden
                Some((
                    HostState::Queued
                    | HostState::Staging
                    | HostState::Installing
                    | HostState::Present,
                    host,
                )) => {
                    status.hosts.staging += 1;
                    let eta = host
                        .eta_seconds
                        .map(|eta| i64::try_from(eta).unwrap_or(i64::MAX));
                    status.eta_seconds = status.eta_seconds.max(eta);
                }
                Some((HostState::Waiting | HostState::Gone, _)) | None => unheard = true,
            }
        }
        unheard && self.clock.started.elapsed() <= presence::MAX_AGE
    }

    /// The condition `Staged`, and the same in a word for Events.
    fn staged(
        &self,
        key: &ObjectKey,
        facts: &PrePullFacts,
        stage: &Stage,
        status: &ImagePrePullStatus,
        usable: usize,
    ) -> (Staged, &'static str) {
        if stage.digest.is_none() {
            let (reason, state, text) = match stage.state.trouble() {
                None => (
                    "Resolving",
                    "resolving",
                    "the registry is asked which image it is".to_owned(),
                ),
                Some(why) => (
                    "Unresolved",
                    "unresolved",
                    format!("the image can't be resolved: {}", why.message),
                ),
            };
            let is = false;
            return (Staged { is, reason, text }, state);
        }
        let hosts = &status.hosts;
        let everywhere = usable > 0 && hosts.staged == count(usable);
        let text = format!(
            "{} of {usable} hosts hold it; {} are excluded",
            hosts.staged, hosts.excluded
        );
        let once = facts.spec.completion_policy == CompletionPolicy::Once
            && stage.staged_at.is_some()
            && !self.gate.rolls(&key.pool());
        let (is, reason) = match () {
            () if everywhere => (true, "AllHosts"),
            () if once => (true, "Once"),
            () if facts.spec.paused => (false, "Paused"),
            () if usable == 0 => (false, "NoHosts"),
            () if hosts.failed > 0
                && hosts.staging == 0
                && hosts.staged + hosts.failed == count(usable) =>
            {
                (false, "HostsFailed")
            }
            () => (false, "Staging"),
        };
        let state = match reason {
            "AllHosts" | "Once" => "staged",
            "HostsFailed" => "failed",
            "Staging" => "staging",
            _ => "waiting",
        };
        (Staged { is, reason, text }, state)
    }

    fn staging_troubles(
        &self,
        troubles: &mut Troubles,
        facts: &PrePullFacts,
        stage: &Stage,
        status: &ImagePrePullStatus,
        late: bool,
    ) {
        if stage
            .digest
            .is_some_and(|digest| self.view.waiting.contains(&digest))
        {
            troubles.push((
                "TooManyImages".into(),
                "as many images, or as long names of them, as may be are wanted already: it waits until some aren't".into(),
            ));
        }
        let overruled = stage
            .digest
            .and_then(|digest| self.view.overruled.get(&digest));
        for (_, by) in overruled
            .into_iter()
            .flatten()
            .filter(|(name, _)| *name == stage.image)
        {
            let text = format!(
                "{} was asked for later as {by}, on hosts of this one too: a tag names one image there",
                stage.image
            );
            troubles.push(("TagTaken".into(), text));
        }
        if status.hosts.failed > 0 {
            let hosts: Vec<&str> = status
                .failing
                .iter()
                .map(|host| host.host.as_str())
                .collect();
            let text = format!("hosts can't stage it: {}", hosts.join(", "));
            troubles.push(("HostsFailed".into(), text));
        }
        if late {
            let what = match facts.spec.on_deadline {
                OnDeadline::Hold => "the gate stays shut where the image isn't",
                OnDeadline::Proceed => "Pods may drain where the image isn't",
            };
            troubles.push(("DeadlinePassed".into(), what.into()));
        }
    }

    // ---- the gate -----------------------------------------------------------------------------------------------

    /// What the gate holds a pool for, beside the image.
    fn gate_troubles(&self, troubles: &mut Troubles, key: &ObjectKey, pool: &PoolStatus) {
        let facts = self.index.prepulls.get(key);
        let told = |reason: &str| {
            facts.and_then(|facts| {
                let conditions = &facts.status.conditions;
                let of = conditions.iter().find(|c| c.type_ == "Degraded")?;
                (of.status == "True" && of.reason == reason).then(|| of.message.clone())
            })
        };
        match &pool.lag {
            Some(lag) => {
                let lasts = self.clock.now().since(lag.since) >= LAG_SHOWN;
                if lasts || told("OwnerLags").is_some() {
                    let text = self.lag_text(&key.pool(), pool);
                    troubles.push(("OwnerLags".into(), text));
                }
            }
            // until the owner was read again, what the coordinator before knew stands
            None if pool.is_rolling() && self.is_owner_unread(&key.pool()) => {
                if let Some(text) = told("OwnerLags") {
                    troubles.push(("OwnerLags".into(), text));
                }
            }
            None => {}
        }
        if pool.missing > 0 {
            troubles.push((
                "NoSuccessor".into(),
                format!(
                    "{} Pods that were let go have had no successor for more than a minute, and keep their places under \
                     the cap of {}: the owner of its Pods makes none. If there shall be fewer Pods, lower the replicas",
                    pool.missing, pool.cap
                ),
            ));
        }
    }

    fn other_troubles(&self, troubles: &mut Troubles, key: &ObjectKey, facts: &PrePullFacts) {
        if self.is_overlapped(key) {
            troubles.push((
                "OverlappingGate".into(),
                "an older ImagePrePull gates its Pods".into(),
            ));
        }
        let secret = facts.secret(key);
        if let Some(message) = secret.and_then(|secret| self.secrets.trouble(&secret)) {
            troubles.push(("PullSecret".into(), message));
        }
        let gate = facts.spec.gate.as_ref();
        if let Some(message) = gate.and_then(|gate| self.guarded.borrow().misses(gate)) {
            troubles.push(("NotGuarded".into(), message));
        }
    }

    fn is_overlapped(&self, key: &ObjectKey) -> bool {
        let Some(rule) = self.rules.get(&key.pool()) else {
            return false;
        };
        self.index.pods.iter().any(|(pod, facts)| {
            rule.selects(pod, facts) && self.rule_of(pod).is_some_and(|first| first != *key)
        })
    }
}

/// What the condition `Staged` says.
struct Staged {
    is: bool,
    reason: &'static str,
    text: String,
}

/// The condition `Resolved`. A digest that is known stays known while the registry is away.
fn resolved(conditions: &mut Conditions<'_>, troubles: &mut Troubles, stage: &Stage) {
    let trouble = stage.state.trouble();
    match (&stage.digest, trouble) {
        (Some(digest), _) => {
            conditions.add("Resolved", Some(true), "Resolved", digest.to_string());
        }
        (None, None) => {
            let text = "the registry is asked which image it is".to_owned();
            conditions.add("Resolved", None, "Asking", text);
        }
        (None, Some(why)) => {
            conditions.add("Resolved", Some(false), &why.reason, why.message.clone());
        }
    }
    if let Some(why) = trouble {
        troubles.push((why.reason.clone(), why.message.clone()));
    }
}

/// The condition `Rolling`.
fn rolling(conditions: &mut Conditions<'_>, facts: &PrePullFacts, pool: Option<&PoolStatus>) {
    let Some(pool) = pool else {
        let text = "no gate: Pods roll without asking whether the image is there".to_owned();
        return conditions.add("Rolling", Some(false), "NotGated", text);
    };
    let reason = match () {
        () if !pool.is_rolling() => "Done",
        () if facts.spec.paused => "Paused",
        () if pool.lag.is_some() => "OwnerLags",
        () if pool.missing > 0 => "NoSuccessor",
        () if pool.in_flight + pool.reserved + pool.away >= pool.cap => "AtCap",
        () => "Held",
    };
    let mut text = format!(
        "{} stale, {} in flight, cap {}",
        pool.stale, pool.in_flight, pool.cap
    );
    // who came after the last stale Pod went takes no place
    if pool.reserved > 0 && pool.is_rolling() {
        text = format!(
            "{text}, {} places kept for successors and labels on their way",
            pool.reserved
        );
    }
    if pool.away > 0 {
        text = format!("{text}, {} on Nodes that aren't Ready", pool.away);
    }
    let held: Vec<String> = holds(pool)
        .into_iter()
        .map(|(reason, many)| format!("{many} {reason}"))
        .collect();
    if !held.is_empty() {
        text = format!("{text}; held: {}", held.join(", "));
    }
    conditions.add("Rolling", Some(pool.is_rolling()), reason, text);
}

/// What keeps stale Pods that don't only wait for their turn, most often first.
fn holds(pool: &PoolStatus) -> Vec<(&'static str, usize)> {
    let mut many: BTreeMap<&'static str, usize> = BTreeMap::new();
    for pod in pool.pods.iter().filter(|pod| pod.stale) {
        if let Verdict::Blocked(reason) = pod.verdict
            && reason.is_block()
        {
            *many.entry(reason.as_str()).or_default() += 1;
        }
    }
    let mut many: Vec<_> = many.into_iter().collect();
    many.sort_by_key(|(_, many)| std::cmp::Reverse(*many));
    many
}

/// What the next gate can't see; nothing is kept of a pool that has nothing to remember.
fn memory(pool: &PoolStatus) -> Option<GateMemory> {
    let memory = GateMemory {
        awaited: i32::try_from(pool.awaited).unwrap_or(i32::MAX),
        owner_lags: pool.lag.as_ref().is_some_and(|lag| !lag.said),
    };
    (memory != GateMemory::default()).then_some(memory)
}

/// Where it stands, and what for, in a word each.
fn summary(
    conditions: &[Condition],
    paused: bool,
    pool: Option<&PoolStatus>,
) -> (&'static str, Option<String>) {
    let of = |type_: &str| {
        let found = conditions.iter().find(|c| c.type_ == type_);
        found.map_or(("", ""), |c| (c.status.as_str(), c.reason.as_str()))
    };
    let (staged, why_staged) = of("Staged");
    let (rolls, why_rolling) = of("Rolling");
    let word = match (of("Resolved").0, staged, why_staged) {
        ("False", ..) => "Unresolved",
        ("Unknown", ..) => "Resolving",
        _ if paused => "Paused",
        (_, "True", _) if rolls == "True" => match why_rolling {
            "AtCap" => "Rolling",
            _ => "Held",
        },
        (_, "True", _) => "Staged",
        (_, _, "HostsFailed") => "Failed",
        (_, _, "NoHosts") => "Waiting",
        _ => "Staging",
    };
    let (degraded, why_degraded) = of("Degraded");
    let held = pool.and_then(|pool| holds(pool).first().map(|(reason, _)| *reason));
    let reason = match word {
        _ if degraded == "True" => Some(why_degraded.to_owned()),
        "Held" if why_rolling == "Held" => held.map(camel),
        "Held" | "Rolling" => Some(why_rolling.to_owned()),
        "Staged" | "Waiting" => Some(why_staged.to_owned()),
        _ => None,
    };
    (word, reason)
}

/// `node_cordoned` as reasons of conditions are written: `NodeCordoned`.
fn camel(name: &str) -> String {
    let words = name.split('_').map(|word| {
        let (first, rest) = word.split_at(usize::from(!word.is_empty()));
        format!("{}{rest}", first.to_uppercase())
    });
    words.collect()
}

/// The status's conditions, with the time of the last change of each.
struct Conditions<'a> {
    before: &'a [Condition],
    generation: i64,
    now: Timestamp,
    list: Vec<Condition>,
}

impl Conditions<'_> {
    fn add(&mut self, type_: &str, status: Option<bool>, reason: &str, message: String) {
        let status = match status {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        let since = self
            .before
            .iter()
            .find(|before| before.type_ == type_ && before.status == status)
            .map_or(self.now, |before| before.last_transition_time.0);
        // an empty message is left out when it is written, and refused for that
        let message = match message.is_empty() {
            true => reason.to_owned(),
            false => message,
        };
        self.list.push(Condition {
            type_: type_.into(),
            status: status.into(),
            reason: reason.into(),
            message,
            observed_generation: Some(self.generation),
            last_transition_time: Time(seconds(since)),
        });
    }
}

/// Kubernetes writes times with whole seconds: with more, what was written would never equal what is read.
fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

pub(super) fn time(time: SystemTime) -> Option<Time> {
    Timestamp::try_from(time).ok().map(seconds).map(Time)
}

fn count(many: usize) -> i32 {
    i32::try_from(many).unwrap_or(i32::MAX)
}

fn larger(a: ByteCounts, b: ByteCounts) -> ByteCounts {
    ByteCounts {
        origin: a.origin.max(b.origin),
        peers: a.peers.max(b.peers),
        local: a.local.max(b.local),
    }
}

/// Whether a status that isn't the one that is shown is to be written now.
fn is_due(stage: &Stage, status: &ImagePrePullStatus, shown: &ImagePrePullStatus) -> bool {
    let rested = |least| stage.written_at.is_none_or(|at| at.elapsed() >= least);
    let before = stage.written.as_ref().unwrap_or(shown);
    if before == status {
        return rested(AGAIN_EVERY);
    }
    rested(PROGRESS_EVERY) || masked(status) != masked(before) || awaited(status) > awaited(before)
}

/// A status without what changes all the time.
fn masked(status: &ImagePrePullStatus) -> ImagePrePullStatus {
    let gate = status.gate.map(|gate| GateMemory { awaited: 0, ..gate });
    let mut status = ImagePrePullStatus {
        bytes: ByteCounts::default(),
        eta_seconds: None,
        gate: gate.filter(|gate| *gate != GateMemory::default()),
        ..status.clone()
    };
    for condition in &mut status.conditions {
        condition.message.clear();
    }
    status
}

/// Pods whose successors the gate awaits: to be written at once where they are more, for who takes over goes by it.
fn awaited(status: &ImagePrePullStatus) -> i32 {
    status.gate.map_or(0, |gate| gate.awaited)
}

/// A merge patch that leaves nothing of the status before.
fn patch_of(status: &ImagePrePullStatus) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    if let Value::Object(fields) = &mut value {
        for field in [
            "state",
            "reason",
            "digest",
            "gate",
            "sizeBytes",
            "diskBytes",
            "etaSeconds",
            "failing",
            "startedAt",
            "stagedAt",
        ] {
            fields.entry(field).or_insert(Value::Null);
        }
    }
    value
}
