//! Events on the objects that people look at. Events are a courtesy: an Event that can't be written is dropped, and the
//! same Event isn't repeated within some minutes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use rollout::gate;
use tokio::time::timeout;
use tracing::debug;

use super::{
    conditions::{StagingPhase, Type},
    hosts::all_had_time,
    show::reason_text,
};
use crate::cluster::{
    clock::Now,
    crd::ImagePrePullStatus,
    index::{Index, ObjectKey, PodFacts, PrePullFacts},
    write::PodWrite,
};

/// The same Event isn't written again within this time.
const QUIET: Duration = Duration::from_mins(5);
/// The most different Events that are remembered. Above that, expired ones are forgotten, and new ones are dropped
/// while there is no room.
const REMEMBERED: usize = 4_096;
/// The most Events under way at one time. Further Events are dropped.
const PENDING: usize = 64;
/// The write of an Event is given up after this time.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest text of an Event, in characters. The API server takes 1 kB.
const MAX_TEXT: usize = 900;
/// A blocked Pod gets an Event after it was blocked for the same reason for this long. Short blocks (an image is being
/// resolved, a host is about to report) aren't worth an Event. Such an Event would also keep the true reason from being
/// published.
const BLOCKED_FOR: Duration = Duration::from_secs(5);

/// The Events of the last minutes, and the blocks that become Events if they last.
#[derive(Debug, Default)]
pub(super) struct Notes {
    said: BTreeMap<String, Instant>,
    /// Blocked Pods, with the reason and the time when it began.
    waiting: BTreeMap<ObjectKey, (gate::Reason, Instant)>,
    /// The phase of staging that was last published for each ImagePrePull, with its image.
    staging: BTreeMap<ObjectKey, (String, Option<StagingPhase>)>,
    pending: usize,
}

/// An Event to be written.
#[derive(Debug)]
pub(super) struct Note {
    about: ObjectReference,
    reason: NoteReason,
    text: String,
}

/// An Event's reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoteReason {
    DrainEligible,
    DrainWithdrawn,
    GateHeld,
    Staging,
    Staged,
    StageFailed,
}

impl NoteReason {
    const fn as_str(self) -> &'static str {
        match self {
            Self::DrainEligible => "DrainEligible",
            Self::DrainWithdrawn => "DrainWithdrawn",
            Self::GateHeld => "GateHeld",
            Self::Staging => "Staging",
            Self::Staged => "Staged",
            Self::StageFailed => "StageFailed",
        }
    }

    const fn action(self) -> &'static str {
        match self {
            Self::DrainEligible | Self::DrainWithdrawn | Self::GateHeld => "Gate",
            Self::Staging | Self::Staged | Self::StageFailed => "Stage",
        }
    }

    const fn type_(self) -> EventType {
        match self {
            Self::StageFailed => EventType::Warning,
            _ => EventType::Normal,
        }
    }
}

impl Notes {
    /// A Pod is blocked. An Event follows if the block lasts, unless the Pod only waits for its turn.
    pub(super) fn wait(&mut self, now: Instant, pod: ObjectKey, reason: gate::Reason) {
        if reason.is_turn() {
            self.waiting.remove(&pod);
            return;
        }
        match self.waiting.get(&pod) {
            Some((known, _)) if known.shown() == reason.shown() => return,
            None if self.waiting.len() >= REMEMBERED => return,
            _ => {}
        }
        self.waiting.insert(pod, (reason, now));
    }

    /// A write on a Pod succeeded. `image` is what the Pod shall run. `pod` is `None` where the Pod is gone by now.
    pub(super) fn written(
        &mut self,
        key: &ObjectKey,
        pod: Option<&PodFacts>,
        image: &str,
        write: &PodWrite,
        why: Option<gate::Withdrawal>,
    ) -> Option<Note> {
        let node = pod.and_then(|pod| pod.node.as_deref());
        let node = node.unwrap_or("no node");
        let (reason, text) = match (write, why) {
            (PodWrite::Label(_), _) => (
                NoteReason::DrainEligible,
                format!("may drain: {node} holds {image}"),
            ),
            (PodWrite::Unlabel(_), Some(gate::Withdrawal::Current)) => (
                NoteReason::DrainWithdrawn,
                format!("may not drain any more: it runs {image}, its pool's image again"),
            ),
            (PodWrite::Unlabel(_), _) => (
                NoteReason::DrainWithdrawn,
                format!("may not drain any more: {node} doesn't hold {image}"),
            ),
            (PodWrite::Reap, _) => (
                NoteReason::DrainEligible,
                format!("was Pending with another image than {image}, and is replaced"),
            ),
        };
        tracing::info!(pod = %key, reason = reason.as_str(), note = text, "gate");
        self.waiting.remove(key);
        // each of these writes happened once, so no Event is a repetition
        let about = about_pod(key, pod?);
        self.begin(Note {
            about,
            reason,
            text,
        })
    }

    /// The Events about Pods that have been blocked for long enough. `image` names the image that a Pod shall run, and
    /// `explain` the gate's present verdict.
    pub(super) fn waiting(
        &mut self,
        now: Now,
        index: &Index,
        image: impl Fn(&ObjectKey) -> String,
        explain: impl Fn(&gate::PodId) -> gate::Verdict,
    ) -> Vec<Note> {
        let due: Vec<(ObjectKey, gate::Reason)> = self
            .waiting
            .iter()
            .filter(|(_, (reason, since))| {
                // an agent that hasn't reported yet may be about to
                let settled = !matches!(reason, gate::Reason::HostUnheard) || all_had_time(now.up);
                settled && now.since(*since) >= BLOCKED_FOR
            })
            .map(|(key, (reason, _))| (key.clone(), *reason))
            .collect();
        let mut notes = Vec::new();
        for (key, waited) in due {
            self.waiting.remove(&key);
            let Some(pod) = index.pods.get(&key) else {
                continue;
            };
            let gate::Verdict::Blocked(reason) = explain(&gate::PodId(pod.uid.clone())) else {
                continue;
            };
            if reason.shown() != waited.shown() {
                continue;
            }
            let image = image(&key);
            let why = reason_text(reason, pod.node.as_deref());
            let note = Note {
                about: about_pod(&key, pod),
                reason: NoteReason::GateHeld,
                text: format!("held on its way to {image}: {why}"),
            };
            let quiet = format!("Pod {key} {} {image}", reason.as_str());
            notes.extend(self.begin_new(now.instant, quiet, note));
        }
        notes
    }

    /// The Events about the staging of an ImagePrePull: one where its phase changed, and one on each failing Node.
    pub(super) fn staging(
        &mut self,
        now: Instant,
        index: &Index,
        (key, facts): (&ObjectKey, &PrePullFacts),
        status: &ImagePrePullStatus,
        phase: StagingPhase,
    ) -> Vec<Note> {
        let image = &facts.spec.image;
        // by digest where it is known, because a tag that was pushed anew is another image
        let what = status.digest.as_ref().unwrap_or(image);
        let mut notes = Vec::new();
        for failing in &status.failing {
            let note = Note {
                about: ObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Node".into()),
                    name: Some(failing.host.clone()),
                    uid: index.nodes.get(&failing.host).map(|node| node.uid.clone()),
                    ..ObjectReference::default()
                },
                reason: NoteReason::StageFailed,
                text: format!("{image} can't be staged: {}", failing.message),
            };
            let quiet = format!("Node {} {what}", failing.host);
            notes.extend(self.begin_new(now, quiet, note));
        }
        if !self.is_news(key, facts, phase) {
            return notes;
        }
        let (reason, type_) = match phase {
            StagingPhase::Staging => (NoteReason::Staging, Type::Staged),
            StagingPhase::Staged => (NoteReason::Staged, Type::Staged),
            StagingPhase::Failed => (NoteReason::StageFailed, Type::Staged),
            StagingPhase::Unresolved => (NoteReason::StageFailed, Type::Resolved),
            StagingPhase::Resolving | StagingPhase::Waiting => return notes,
        };
        let message = type_.of(status).map_or("", |found| found.message.as_str());
        let note = Note {
            about: about_prepull(key, facts),
            reason,
            text: format!("{image}: {message}"),
        };
        let quiet = format!("ImagePrePull {key} {phase} {what}");
        notes.extend(self.begin_new(now, quiet, note));
        notes
    }

    /// The write of an Event ended, with or without success.
    pub(super) const fn ended(&mut self) {
        self.pending = self.pending.saturating_sub(1);
    }

    /// Forgets ImagePrePulls that are gone.
    pub(super) fn keep(&mut self, is_there: impl Fn(&ObjectKey) -> bool) {
        self.staging.retain(|key, _| is_there(key));
    }

    /// Whether this phase differs from the last one that this coordinator or an earlier one published for the image.
    fn is_news(&mut self, key: &ObjectKey, facts: &PrePullFacts, phase: StagingPhase) -> bool {
        let image = &facts.spec.image;
        let before = match self.staging.remove(key) {
            Some((known, told)) => told.filter(|_| known == *image),
            None => facts.standing_status().and_then(StagingPhase::told_by),
        };
        self.staging
            .insert(key.clone(), (image.clone(), Some(phase)));
        before != Some(phase)
    }

    fn begin(&mut self, note: Note) -> Option<Note> {
        if self.pending >= PENDING {
            return None;
        }
        self.pending += 1;
        Some(note)
    }

    /// Begins an Event, unless one with the same `quiet` key was begun within [`QUIET`].
    fn begin_new(&mut self, now: Instant, quiet: String, note: Note) -> Option<Note> {
        if self.pending >= PENDING {
            return None;
        }
        let lately = |at: &Instant| now.saturating_duration_since(*at) < QUIET;
        if self.said.len() >= REMEMBERED {
            self.said.retain(|_, at| lately(at));
            if self.said.len() >= REMEMBERED {
                return None;
            }
        }
        if self.said.get(&quiet).is_some_and(lately) {
            return None;
        }
        self.said.insert(quiet, now);
        self.begin(note)
    }

    /// As if Pods had been blocked this much earlier.
    #[cfg(test)]
    pub(super) fn age(&mut self, time: Duration) {
        for (_, since) in self.waiting.values_mut() {
            *since -= time;
        }
    }
}

fn about_pod(key: &ObjectKey, pod: &PodFacts) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(key.namespace.clone()),
        name: Some(key.name.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    }
}

fn about_prepull(key: &ObjectKey, facts: &PrePullFacts) -> ObjectReference {
    ObjectReference {
        api_version: Some("parbake.dev/v1alpha1".into()),
        kind: Some("ImagePrePull".into()),
        namespace: Some(key.namespace.clone()),
        name: Some(key.name.clone()),
        uid: Some(facts.uid.clone()),
        ..ObjectReference::default()
    }
}

/// Writes an Event. One that can't be written is dropped.
pub(super) async fn publish(client: Client, reporter: Reporter, note: Note) {
    let reason = note.reason.as_str();
    let event = Event {
        type_: note.reason.type_(),
        reason: reason.to_owned(),
        note: Some(note.text.chars().take(MAX_TEXT).collect()),
        action: note.reason.action().to_owned(),
        secondary: None,
    };
    // Each Event gets a recorder of its own. A recorder that is used twice counts a second Event of the same reason as
    // a repetition of the first, with the first Event's text.
    let recorder = Recorder::new(client, reporter);
    match timeout(TIMEOUT, recorder.publish(&event, &note.about)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(reason, %error, "Event isn't written"),
        Err(_) => debug!(reason, "Event isn't written: no answer"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::{crd::FailingHost, index::Kind};

    const IMAGE: &str = "r/i:2";

    fn key() -> ObjectKey {
        ObjectKey::new("ns", "a")
    }

    /// A Pod and an ImagePrePull of the same name.
    fn index() -> Index {
        let mut index = Index::default();
        for (kind, object) in [
            (
                Kind::Pods,
                json!({
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": { "name": "a", "namespace": "ns", "uid": "pod" },
                    "spec": { "nodeName": "mac-0", "containers": [] },
                }),
            ),
            (
                Kind::PrePulls,
                json!({
                    "apiVersion": "parbake.dev/v1alpha1",
                    "kind": "ImagePrePull",
                    "metadata": { "name": "a", "namespace": "ns", "uid": "prepull" },
                    "spec": { "image": IMAGE, "nodeSelector": {} },
                }),
            ),
        ] {
            index.show(kind, object);
        }
        index
    }

    fn waiting(notes: &mut Notes, now: Now, reason: gate::Reason) -> Vec<Note> {
        let image = |_: &ObjectKey| IMAGE.to_owned();
        notes.waiting(now, &index(), image, |_| gate::Verdict::Blocked(reason))
    }

    #[test]
    fn a_pod_is_told_what_keeps_it_when_that_has_lasted_for_five_seconds() {
        let (mut notes, now) = (Notes::default(), Now::start());
        let reason = gate::Reason::ImageMissing;
        notes.wait(now.instant, key(), reason);
        let last = now.after(BLOCKED_FOR - Duration::from_millis(1));
        assert!(waiting(&mut notes, last, reason).is_empty());
        // the same block again doesn't restart the time
        notes.wait(last.instant, key(), reason);
        let due = now.after(BLOCKED_FOR);
        let told = waiting(&mut notes, due, reason);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].reason, NoteReason::GateHeld);
        assert!(told[0].text.contains(IMAGE) && told[0].text.contains("mac-0"));
        // the Event isn't repeated for minutes
        notes.wait(due.instant, key(), reason);
        let later = due.after(QUIET - Duration::from_millis(1));
        assert!(waiting(&mut notes, later, reason).is_empty());
        notes.wait(later.instant, key(), reason);
        let later = later.after(BLOCKED_FOR);
        assert_eq!(waiting(&mut notes, later, reason).len(), 1);
    }

    #[test]
    fn what_changed_meanwhile_or_is_only_a_turn_or_may_pass_by_itself_is_not_told() {
        let (now, missing) = (Now::start(), gate::Reason::ImageMissing);
        let due = now.after(BLOCKED_FOR);
        let mut notes = Notes::default();
        notes.wait(now.instant, key(), missing);
        assert!(waiting(&mut notes, due, gate::Reason::Paused).is_empty());
        notes.wait(now.instant, key(), missing);
        notes.wait(now.instant, key(), gate::Reason::RetryWaits);
        assert!(waiting(&mut notes, due, missing).is_empty());
        // an agent has half a minute to report
        let unheard = gate::Reason::HostUnheard;
        notes.wait(now.instant, key(), unheard);
        assert!(waiting(&mut notes, due, unheard).is_empty());
        let late = now.after(rollout::presence::MAX_AGE + Duration::from_millis(1));
        assert_eq!(waiting(&mut notes, late, unheard).len(), 1);
    }

    #[test]
    fn a_phase_of_staging_is_told_when_it_changes_and_a_change_of_leader_is_no_change() {
        let (mut notes, now, index) = (Notes::default(), Instant::now(), index());
        let mut facts = index.prepulls[&key()].clone();
        let status = ImagePrePullStatus::default();
        let tell = |notes: &mut Notes, facts: &PrePullFacts, phase| {
            let told = notes.staging(now, &index, (&key(), facts), &status, phase);
            told.into_iter().map(|note| note.reason).collect::<Vec<_>>()
        };
        assert_eq!(tell(&mut notes, &facts, StagingPhase::Resolving), []);
        assert_eq!(
            tell(&mut notes, &facts, StagingPhase::Staging),
            [NoteReason::Staging]
        );
        assert_eq!(tell(&mut notes, &facts, StagingPhase::Staging), []);
        assert_eq!(
            tell(&mut notes, &facts, StagingPhase::Failed),
            [NoteReason::StageFailed]
        );
        // the same Event about the same image isn't repeated within minutes, and one about another image is published
        assert_eq!(tell(&mut notes, &facts, StagingPhase::Staging), []);
        facts.spec.image = "r/i:3".into();
        assert_eq!(
            tell(&mut notes, &facts, StagingPhase::Staging),
            [NoteReason::Staging]
        );
        // the next leader finds the published phase in the status
        facts.status.observed_generation = Some(facts.generation);
        let mut conditions = super::super::conditions::Conditions::new(
            &status,
            facts.generation,
            k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
        );
        conditions.add(Type::Resolved, Some(true), "Resolved", String::new());
        conditions.add(Type::Staged, Some(false), "Staging", String::new());
        facts.status.conditions = conditions.into_list();
        assert_eq!(
            tell(&mut Notes::default(), &facts, StagingPhase::Staging),
            []
        );
        facts.generation += 1;
        let told = tell(&mut Notes::default(), &facts, StagingPhase::Staging);
        assert_eq!(
            told,
            [NoteReason::Staging],
            "another generation's status tells nothing"
        );
    }

    #[test]
    fn a_host_that_fails_is_told_on_its_node_once_for_each_image() {
        let (mut notes, now, index) = (Notes::default(), Instant::now(), index());
        let facts = &index.prepulls[&key()];
        let mut status = ImagePrePullStatus {
            failing: vec![FailingHost {
                host: "mac-0".into(),
                reason: "full".into(),
                message: "the disk is full".into(),
            }],
            ..ImagePrePullStatus::default()
        };
        let mut tell = |status: &ImagePrePullStatus| {
            let told = notes.staging(now, &index, (&key(), facts), status, StagingPhase::Waiting);
            told.len()
        };
        assert_eq!((tell(&status), tell(&status)), (1, 0));
        status.digest = Some("sha256:another".into());
        assert_eq!((tell(&status), tell(&status)), (1, 0));
    }

    #[test]
    fn no_more_events_are_under_way_than_there_is_room_for() {
        let (mut notes, index) = (Notes::default(), index());
        let pod = index.pods.get(&key());
        let write = PodWrite::Label("drain".into());
        let mut begun = || notes.written(&key(), pod, IMAGE, &write, None).is_some();
        assert!((0..PENDING).all(|_| begun()));
        assert!(!begun());
        notes.ended();
        let note = notes.written(&key(), pod, IMAGE, &write, None).unwrap();
        assert_eq!(note.reason, NoteReason::DrainEligible);
    }
}
