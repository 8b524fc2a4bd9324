//! The status of an ImagePrePull, as a function of the known facts. Nothing here has state of its own.
//!
//! A coordinator that takes over retracts nothing: the earlier coordinator's status stays until the hosts have had time
//! to report their images. A number that isn't known yet isn't shown as zero.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use proto::{Digest, HostId};
use rollout::gate::{PoolStatus, Reason, Verdict};

use super::{
    conditions::{
        Conditions, RollingReason, StagedReason, StagingPhase, Standing, Trouble, Type,
        whole_seconds,
    },
    hosts::{Hosts, all_had_time},
    resolving::Image,
};
use crate::{
    cluster::{
        clock::Now,
        crd::{
            ByteCounts, CompletionPolicy, FailingHost, GateMemory, ImagePrePullStatus, MAX_FAILING,
            OnDeadline, PredictionStatus, RecipeStatus,
        },
        index::{NodeFacts, PrePullFacts},
    },
    view::{HostState, ImageView, RecipeView, StagingBytes},
};

/// An owner's lag becomes a trouble after this long. A template that is patched a moment after the object is no
/// trouble.
const LAG_SHOWN: Duration = Duration::from_secs(3);

/// The known facts about an ImagePrePull.
pub(super) struct Facts<'a> {
    pub(super) now: Now,
    pub(super) prepull: &'a PrePullFacts,
    pub(super) image: &'a Image,
    /// The Nodes that the ImagePrePull selects.
    pub(super) nodes: Vec<(&'a String, &'a NodeFacts)>,
    pub(super) hosts: &'a Hosts,
    /// The state of the roll. `None` where the ImagePrePull gates nothing.
    pub(super) roll: Option<Roll>,
    /// Troubles that other parts found: with the pull Secret, the webhook, or the gate.
    pub(super) troubles: Vec<(Trouble, String)>,
}

/// The state of a roll.
pub(super) struct Roll {
    pub(super) status: PoolStatus,
    /// A text for people about an owner that makes another image. Empty while no owner lags.
    pub(super) lag: String,
    /// An owner's template is being read.
    pub(super) is_owner_unread: bool,
}

/// The result: the status and what follows from it.
#[derive(Debug)]
pub(super) struct Stands {
    pub(super) status: ImagePrePullStatus,
    /// The phase of staging, as Events report it.
    pub(super) phase: StagingPhase,
    /// Every usable host holds the image.
    pub(super) everywhere: bool,
    /// The deadline passed before the image was staged.
    pub(super) late: bool,
}

/// The status that follows from these facts.
pub(super) fn of(facts: &Facts<'_>) -> Stands {
    let Facts {
        now,
        prepull,
        image,
        ..
    } = facts;
    let mut status = measured(facts);
    let mut conditions = Conditions::new(
        &prepull.status,
        prepull.generation,
        Timestamp::try_from(now.time).unwrap_or_default(),
    );
    let mut troubles = Vec::new();
    resolved(&mut conditions, &mut troubles, image);
    let (staged, text) = staged(facts, &status);
    let everywhere = staged == StagedReason::AllHosts;
    let staged_at = image.staged_at().or(everywhere.then_some(now.time));
    status.staged_at = staged_at.and_then(time);
    conditions.add(
        Type::Staged,
        Some(staged.is_staged()),
        staged.as_str(),
        text,
    );
    let deadline = image.deadline(prepull);
    let late = deadline.is_some_and(|at| at <= now.time) && !staged.is_staged();
    if let Some(digest) = image.digest() {
        staging_troubles(&mut troubles, facts, digest, &status, late);
    }
    if let Some(roll) = &facts.roll {
        status.gate = memory(&roll.status);
        gate_troubles(&mut troubles, facts, roll);
    }
    let pool = facts.roll.as_ref().map(|roll| &roll.status);
    let rolling = rolling(&mut conditions, prepull.spec.paused, pool);
    troubles.extend(facts.troubles.iter().cloned());
    let trouble = troubles.into_iter().next();
    match &trouble {
        None => {
            let text = "nothing is amiss".to_owned();
            conditions.add(Type::Degraded, Some(false), "AsExpected", text);
        }
        Some((reason, message)) => {
            let reason = reason.as_str();
            conditions.add(Type::Degraded, Some(true), reason, message.clone());
        }
    }
    status.conditions = conditions.into_list();
    let standing = standing(image, prepull.spec.paused, &staged, rolling, pool);
    status.state = Some(standing.as_str().to_owned());
    status.reason = match &trouble {
        Some((reason, _)) => Some(reason.as_str().to_owned()),
        None => standing_reason(standing, &staged, rolling, pool),
    };
    Stands {
        status,
        phase: StagingPhase::from(&staged),
        everywhere,
        late,
    }
}

// ---- staging
// ---------------------------------------------------------------------------------------------------------

/// The status with hosts and bytes counted, without conditions.
fn measured(facts: &Facts<'_>) -> ImagePrePullStatus {
    let Facts { prepull, image, .. } = facts;
    let mut status = ImagePrePullStatus {
        observed_generation: Some(prepull.generation),
        started_at: time(image.started_at()),
        image: Some(image.reference().to_owned()).filter(|image| !image.is_empty()),
        digest: image.digest().map(ToString::to_string),
        ..ImagePrePullStatus::default()
    };
    let usable = usable(facts);
    status.hosts.selected = count(facts.nodes.len());
    status.hosts.excluded = count(facts.nodes.len() - usable.len());
    if let Some(digest) = image.digest() {
        let unheard = count_hosts(facts, &mut status, &usable, digest);
        carry_over(&mut status, prepull, unheard, usable.len());
    }
    let shown = image
        .digest()
        .and_then(|digest| facts.hosts.view().images.get(digest));
    if let Some(shown) = shown {
        status.recipe = shown.recipe.as_ref().map(recipe);
        status.prediction = prediction(shown, status.prediction.take());
    }
    if let Some(want) = image.known() {
        status.size_bytes = i64::try_from(want.layout.blob_bytes()).ok();
        status.disk_bytes = i64::try_from(want.layout.disk_bytes()).ok();
    }
    status
}

/// The selected Nodes that count for staging.
fn usable<'a>(facts: &Facts<'a>) -> Vec<&'a String> {
    let nodes = facts.nodes.iter();
    nodes
        .filter(|(name, node)| facts.hosts.is_usable(name, node))
        .map(|(name, _)| *name)
        .collect()
}

/// Takes numbers over from the earlier status of the same image. `unheard` says whether some hosts haven't reported
/// since this coordinator started, and still have time to.
fn carry_over(
    status: &mut ImagePrePullStatus,
    prepull: &PrePullFacts,
    unheard: bool,
    usable: usize,
) {
    let before = &prepull.status;
    if before.digest != status.digest {
        return;
    }
    status.bytes = larger(status.bytes, before.bytes);
    status.recipe.clone_from(&before.recipe);
    status.prediction.clone_from(&before.prediction);
    (status.size_bytes, status.disk_bytes) = (before.size_bytes, before.disk_bytes);
    if unheard && prepull.standing_status().is_some() {
        let most = count(usable);
        status.hosts.staged = status.hosts.staged.max(before.hosts.staged).min(most);
        let rest = most - status.hosts.staged;
        status.hosts.failed = before.hosts.failed.min(rest);
        status.hosts.staging = before.hosts.staging.min(rest - status.hosts.failed);
        status.failing.clone_from(&before.failing);
        status.eta_seconds = before.eta_seconds;
    }
}

/// Counts the hosts by state. Returns whether some hosts haven't reported since this coordinator started, and still
/// have time to.
fn count_hosts(
    facts: &Facts<'_>,
    status: &mut ImagePrePullStatus,
    usable: &[&String],
    digest: &Digest,
) -> bool {
    let image: Option<&ImageView> = facts.hosts.view().images.get(digest).map(AsRef::as_ref);
    let progress: BTreeMap<&str, _> = image
        .iter()
        .flat_map(|image| &image.hosts)
        .map(|host| (host.host.as_str(), host))
        .collect();
    let add = |sum: &mut i64, value: u64| {
        *sum = sum.saturating_add(i64::try_from(value).unwrap_or(i64::MAX));
    };
    let reference = &facts.prepull.spec.image;
    let mut unheard = false;
    for name in usable {
        let holds = |host: HostId| facts.hosts.holds(facts.now, &host, digest, reference);
        let host = progress.get(name.as_str());
        if let Some(host) = host {
            add(&mut status.bytes.origin, host.bytes.origin);
            add(&mut status.bytes.peers, host.bytes.peers);
            add(&mut status.bytes.local, host.bytes.local);
            add(&mut status.bytes.written, host.written_bytes);
        }
        if name.parse().is_ok_and(holds) {
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
            // the driver counts the image as present, and the host's fresh report doesn't name it by this reference yet
            Some((
                HostState::Queued | HostState::Staging | HostState::Installing | HostState::Present,
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
    unheard && !all_had_time(facts.now.up)
}

/// The condition `Resolved`. A known digest stays known while the registry is unreachable.
fn resolved(conditions: &mut Conditions<'_>, troubles: &mut Vec<(Trouble, String)>, image: &Image) {
    let trouble = image.trouble();
    match (image.digest(), trouble) {
        (Some(digest), _) => {
            conditions.add(Type::Resolved, Some(true), "Resolved", digest.to_string());
        }
        (None, None) => {
            let text = "the registry is asked which image it is".to_owned();
            conditions.add(Type::Resolved, None, "Asking", text);
        }
        (None, Some(why)) => {
            let reason = why.reason.as_str();
            conditions.add(Type::Resolved, Some(false), reason, why.message.clone());
        }
    }
    if let Some(why) = trouble {
        let trouble = Trouble::Unresolved(why.reason.clone());
        troubles.push((trouble, why.message.clone()));
    }
}

/// The condition `Staged`: its reason and its text.
fn staged(facts: &Facts<'_>, status: &ImagePrePullStatus) -> (StagedReason, String) {
    let Facts { prepull, image, .. } = facts;
    if image.digest().is_none() {
        return match image.trouble() {
            None => (
                StagedReason::Resolving,
                "the registry is asked which image it is".to_owned(),
            ),
            Some(why) => (
                StagedReason::Unresolved,
                format!("the image can't be resolved: {}", why.message),
            ),
        };
    }
    let hosts = &status.hosts;
    let usable = hosts.selected - hosts.excluded;
    let text = format!(
        "{} of {usable} hosts hold it; {} are excluded",
        hosts.staged, hosts.excluded
    );
    let rolls = || {
        let roll = facts.roll.as_ref();
        roll.is_some_and(|roll| roll.status.is_rolling())
    };
    let once = prepull.spec.completion_policy == CompletionPolicy::Once
        && image.staged_at().is_some()
        && !rolls();
    let reason = match () {
        () if usable > 0 && hosts.staged == usable => StagedReason::AllHosts,
        () if once => StagedReason::Once,
        () if prepull.spec.paused => StagedReason::Paused,
        () if usable == 0 => StagedReason::NoHosts,
        () if hosts.failed > 0 && hosts.staging == 0 && hosts.staged + hosts.failed == usable => {
            StagedReason::HostsFailed
        }
        () => StagedReason::Staging,
    };
    (reason, text)
}

fn staging_troubles(
    troubles: &mut Vec<(Trouble, String)>,
    facts: &Facts<'_>,
    digest: &Digest,
    status: &ImagePrePullStatus,
    late: bool,
) {
    let view = facts.hosts.view();
    if view.waiting.contains(digest) {
        let text = "as many images, or as long names of them, as may be are wanted already: it waits until some aren't";
        troubles.push((Trouble::TooManyImages, text.into()));
    }
    let reference = facts.image.reference();
    let overruled = view.overruled.get(digest).into_iter().flatten();
    for (_, by) in overruled.filter(|(name, _)| name == reference) {
        let text = format!(
            "{reference} was asked for later as {by}, on hosts of this one too: a tag names one image there"
        );
        troubles.push((Trouble::TagTaken, text));
    }
    if status.hosts.failed > 0 {
        let failing = status.failing.iter();
        let hosts: Vec<&str> = failing.map(|host| host.host.as_str()).collect();
        let text = format!("hosts can't stage it: {}", hosts.join(", "));
        troubles.push((Trouble::HostsFailed, text));
    }
    if late {
        let what = match facts.prepull.spec.on_deadline {
            OnDeadline::Hold => "the gate stays shut where the image isn't",
            OnDeadline::Proceed => "Pods may drain where the image isn't",
        };
        troubles.push((Trouble::DeadlinePassed, what.into()));
    }
}

// ---- the gate
// --------------------------------------------------------------------------------------------------------

/// The troubles that block a roll, besides those of the image.
fn gate_troubles(troubles: &mut Vec<(Trouble, String)>, facts: &Facts<'_>, roll: &Roll) {
    let told = || Trouble::OwnerLags.told_by(&facts.prepull.status);
    match &roll.status.lag {
        Some(lag) => {
            let lasts = facts.now.moment().since(lag.since) >= LAG_SHOWN;
            if lasts || told().is_some() {
                troubles.push((Trouble::OwnerLags, roll.lag.clone()));
            }
        }
        // until the owner is read again, the earlier coordinator's finding stays
        None if roll.status.is_rolling() && roll.is_owner_unread => {
            troubles.extend(told().map(|text| (Trouble::OwnerLags, text.to_owned())));
        }
        None => {}
    }
    if roll.status.missing > 0 {
        let text = format!(
            "{} Pods that were let go have had no successor for more than a minute, and keep their places under \
             the cap of {}: the owner of its Pods makes none. If there shall be fewer Pods, lower the replicas",
            roll.status.missing, roll.status.cap
        );
        troubles.push((Trouble::NoSuccessor, text));
    }
}

/// The condition `Rolling`.
fn rolling(
    conditions: &mut Conditions<'_>,
    paused: bool,
    pool: Option<&PoolStatus>,
) -> RollingReason {
    let Some(pool) = pool else {
        let (reason, text) = (
            RollingReason::NotGated,
            "no gate: Pods roll without asking whether the image is there",
        );
        conditions.add(Type::Rolling, Some(false), reason.as_str(), text.into());
        return reason;
    };
    let reason = match () {
        () if !pool.is_rolling() => RollingReason::Done,
        () if paused => RollingReason::Paused,
        () if pool.lag.is_some() => RollingReason::OwnerLags,
        () if pool.missing > 0 => RollingReason::NoSuccessor,
        () if pool.in_flight + pool.reserved + pool.away + pool.giving_way >= pool.cap => {
            RollingReason::AtCap
        }
        () => RollingReason::Held,
    };
    let mut text = format!(
        "{} stale, {} in flight, cap {}",
        pool.stale, pool.in_flight, pool.cap
    );
    // Pods that came after the last stale Pod left take no place
    if pool.reserved > 0 && pool.is_rolling() {
        text = format!(
            "{text}, {} places kept for successors and labels on their way",
            pool.reserved
        );
    }
    if pool.away > 0 {
        text = format!("{text}, {} on Nodes that aren't Ready", pool.away);
    }
    if pool.giving_way > 0 {
        let many = pool.giving_way;
        text = format!("{text}, {many} on Nodes that are reserved for another pool or cordoned");
    }
    let reasons: Vec<String> = blocked(pool)
        .into_iter()
        .map(|(reason, many)| format!("{many} {reason}"))
        .collect();
    if !reasons.is_empty() {
        text = format!("{text}; held: {}", reasons.join(", "));
    }
    let is = pool.is_rolling();
    conditions.add(Type::Rolling, Some(is), reason.as_str(), text);
    reason
}

/// The reasons that block stale Pods, except for a mere wait for their turn, by the gate's own names. The most frequent
/// reason comes first.
fn blocked(pool: &PoolStatus) -> Vec<(&'static str, usize)> {
    let stale = pool.pods.iter().filter(|pod| pod.stale);
    let reasons = stale.filter_map(|pod| match pod.verdict {
        Verdict::Blocked(reason) if reason.is_block() => Some(Reason::as_str(reason)),
        _ => None,
    });
    let mut many: BTreeMap<&'static str, usize> = BTreeMap::new();
    for reason in reasons {
        *many.entry(reason).or_default() += 1;
    }
    let mut many: Vec<_> = many.into_iter().collect();
    many.sort_by_key(|(_, many)| std::cmp::Reverse(*many));
    many
}

/// The facts that the next leader's gate can't see by itself. `None` where there is nothing to remember.
fn memory(pool: &PoolStatus) -> Option<GateMemory> {
    let memory = GateMemory {
        awaited: i32::try_from(pool.awaited).unwrap_or(i32::MAX),
        owner_lags: pool.lag.as_ref().is_some_and(|lag| !lag.said),
    };
    (memory != GateMemory::default()).then_some(memory)
}

/// The state, in a word.
fn standing(
    image: &Image,
    paused: bool,
    staged: &StagedReason,
    rolling: RollingReason,
    pool: Option<&PoolStatus>,
) -> Standing {
    let rolls = pool.is_some_and(PoolStatus::is_rolling);
    match (image.digest(), staged) {
        (None, _) if image.trouble().is_some() => Standing::Unresolved,
        (None, _) => Standing::Resolving,
        _ if paused => Standing::Paused,
        (_, staged) if staged.is_staged() => match rolling {
            RollingReason::AtCap => Standing::Rolling,
            _ if rolls => Standing::Held,
            _ => Standing::Staged,
        },
        (_, StagedReason::HostsFailed) => Standing::Failed,
        (_, StagedReason::NoHosts) => Standing::Waiting,
        _ => Standing::Staging,
    }
}

/// The reason for the state, in a word, while nothing is amiss.
fn standing_reason(
    standing: Standing,
    staged: &StagedReason,
    rolling: RollingReason,
    pool: Option<&PoolStatus>,
) -> Option<String> {
    match standing {
        Standing::Held if rolling == RollingReason::Held => {
            let first = pool.and_then(|pool| blocked(pool).into_iter().next());
            first.map(|(reason, _)| camel(reason))
        }
        Standing::Held | Standing::Rolling => Some(rolling.as_str().to_owned()),
        Standing::Staged | Standing::Waiting => Some(staged.as_str().to_owned()),
        _ => None,
    }
}

/// A reason in the form that conditions use: `node_cordoned` becomes `NodeCordoned`.
fn camel(name: &str) -> String {
    let words = name.split('_').map(|word| {
        let (first, rest) = word.split_at(usize::from(!word.is_empty()));
        format!("{}{rest}", first.to_uppercase())
    });
    words.collect()
}

fn recipe(recipe: &RecipeView) -> RecipeStatus {
    RecipeStatus {
        digest: recipe.digest.clone(),
        size: i64::try_from(recipe.size).unwrap_or(i64::MAX),
        made_by_fleet: recipe.made_by_fleet,
        doubted_contents: count(recipe.doubted_contents.len()),
    }
}

fn time(time: SystemTime) -> Option<Time> {
    let time = Timestamp::try_from(time).ok()?;
    Some(Time(whole_seconds(time)))
}

fn count(many: usize) -> i32 {
    i32::try_from(many).unwrap_or(i32::MAX)
}

/// The prediction as the driver shows it. A coordinator that took over has none; then `before` stays.
fn prediction(shown: &ImageView, before: Option<PredictionStatus>) -> Option<PredictionStatus> {
    let Some((predicted, measured)) = shown.prediction.as_ref().zip(shown.measured) else {
        return before;
    };
    let seconds = |millis: u64| i64::try_from(millis.div_ceil(1_000)).unwrap_or(i64::MAX);
    let took = shown.staged_seconds;
    let took = took.and_then(|took| Duration::try_from_secs_f64(took).ok());
    let took = took.map(proto::millis);
    Some(PredictionStatus {
        bytes: counts(predicted.bytes),
        measured: counts(measured),
        seconds: predicted.milliseconds.map(seconds),
        bound_by: predicted.bound_by.clone(),
        took_seconds: took.map(seconds),
    })
}

fn counts(bytes: StagingBytes) -> ByteCounts {
    let count = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    ByteCounts {
        origin: count(bytes.origin),
        peers: count(bytes.peers),
        local: count(bytes.local),
        written: count(bytes.written),
    }
}

fn larger(a: ByteCounts, b: ByteCounts) -> ByteCounts {
    ByteCounts {
        origin: a.origin.max(b.origin),
        peers: a.peers.max(b.peers),
        local: a.local.max(b.local),
        written: a.written.max(b.written),
    }
}

#[cfg(test)]
mod tests;
