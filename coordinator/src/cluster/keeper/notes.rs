//! Events on the objects that people look at. They are a courtesy: one that can't be written is dropped, and the same
//! thing isn't said again within minutes.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use proto::Reason;
use rollout::gate;
use tokio::{sync::Semaphore, time::timeout};
use tracing::debug;

use super::{Input, Keeper};
use crate::cluster::{
    crd::ImagePrePullStatus, index::ObjectKey, keeper::show::reason_text, write::PodWrite,
};

/// The same Event isn't written again within this time.
const QUIET: Duration = Duration::from_mins(5);
/// Different Events that are remembered; above it the oldest are forgotten.
const REMEMBERED: usize = 4_096;
/// Events under way at one time; more are dropped.
const PENDING: usize = 64;
/// Events that are being written at one time. They have places of their own: nothing else waits for them.
const WRITERS: usize = 4;
/// An Event is given up after this.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest note: the API server takes 1 kB.
const MAX_NOTE: usize = 900;

/// A Pod that is held is told after it was held for the same reason for this long. What passes by itself (an image that is
/// being resolved, a host that is about to speak) isn't worth an Event, and would keep the true reason from being said.
const HELD_FOR: Duration = Duration::from_secs(5);

/// Who writes Events, and what was said lately.
pub(super) struct Notes {
    client: Client,
    reporter: Reporter,
    said: BTreeMap<String, Instant>,
    /// Pods that are held, why, and since when.
    waiting: BTreeMap<ObjectKey, (Reason, Instant)>,
    pending: usize,
    writers: Arc<Semaphore>,
}

impl Notes {
    pub(super) fn new(client: Client, instance: &str) -> Self {
        let reporter = Reporter {
            controller: "parbake-coordinator".into(),
            instance: Some(instance.to_owned()),
        };
        Self {
            client,
            reporter,
            said: BTreeMap::new(),
            waiting: BTreeMap::new(),
            pending: 0,
            writers: Arc::new(Semaphore::new(WRITERS)),
        }
    }

    /// This Pod is held; it is told if that lasts, and is more than its turn.
    pub(super) fn wait(&mut self, pod: ObjectKey, reason: gate::Reason) {
        if reason.is_turn() {
            self.waiting.remove(&pod);
            return;
        }
        let reason = reason.shown();
        let known = self.waiting.get(&pod).map(|(known, _)| *known);
        if known != Some(reason) && (known.is_some() || self.waiting.len() < REMEMBERED) {
            self.waiting.insert(pod, (reason, Instant::now()));
        }
    }

    #[cfg(test)]
    pub(super) fn waiting_mut(&mut self) -> impl Iterator<Item = &mut (Reason, Instant)> {
        self.waiting.values_mut()
    }

    fn may_say(&mut self, what: String) -> bool {
        if self.pending >= PENDING {
            return false;
        }
        let now = Instant::now();
        if self.said.len() >= REMEMBERED {
            self.said.retain(|_, at| at.elapsed() < QUIET);
            if self.said.len() >= REMEMBERED {
                return false;
            }
        }
        if self.said.get(&what).is_some_and(|at| at.elapsed() < QUIET) {
            return false;
        }
        self.said.insert(what, now);
        true
    }
}

impl Keeper {
    /// What was written on a Pod.
    pub(super) fn note_written(
        &mut self,
        key: &ObjectKey,
        write: &PodWrite,
        why: Option<gate::Withdrawal>,
    ) {
        let node = self.index.pods.get(key).and_then(|pod| pod.node.clone());
        let node = node.unwrap_or_else(|| "no node".into());
        let image = self.image_of(key);
        let (reason, note) = match write {
            PodWrite::Label(_) => ("DrainEligible", format!("may drain: {node} holds {image}")),
            PodWrite::Unlabel(_) => (
                "DrainWithdrawn",
                match why {
                    Some(gate::Withdrawal::Current) => {
                        format!("may not drain any more: it runs {image}, its pool's image again")
                    }
                    _ => format!("may not drain any more: {node} doesn't hold {image}"),
                },
            ),
            PodWrite::Reap => (
                "DrainEligible",
                format!("was Pending with another image than {image}, and is replaced"),
            ),
        };
        tracing::info!(pod = %key, reason, note, "gate");
        self.notes.waiting.remove(key);
        // each of these happened once: none is a repetition
        self.note_pod(key, reason, None, note);
    }

    /// What a Pod's pool shall run.
    fn image_of(&self, key: &ObjectKey) -> String {
        let rule = self.rule_of(key);
        let rule = rule.and_then(|rule| self.rules.get(&rule.pool()));
        rule.map_or_else(|| "its pool's image".to_owned(), |rule| rule.image.clone())
    }

    /// Tells why Pods are held, where that lasts.
    pub(super) fn note_holds(&mut self) {
        let due: Vec<(ObjectKey, Reason)> = self
            .notes
            .waiting
            .iter()
            .filter(|(_, (reason, since))| {
                // an agent that hasn't spoken yet may be about to
                let settled = *reason != Reason::HostUnheard
                    || self.clock.started.elapsed() > rollout::presence::MAX_AGE;
                settled && since.elapsed() >= HELD_FOR
            })
            .map(|(key, (reason, _))| (key.clone(), *reason))
            .collect();
        for (key, waited) in due {
            self.notes.waiting.remove(&key);
            let Some(facts) = self.index.pods.get(&key) else {
                continue;
            };
            let (id, node) = (gate::PodId(facts.uid.clone()), facts.node.clone());
            let gate::Verdict::Blocked(reason) = self.gate.explain(&id) else {
                continue;
            };
            if reason.shown() != waited {
                continue;
            }
            let image = self.image_of(&key);
            let note = format!(
                "held on its way to {image}: {}",
                reason_text(reason, node.as_deref())
            );
            let quiet = format!("Pod {key} {waited} {image}");
            self.note_pod(&key, "GateHeld", Some(quiet), note);
        }
    }

    /// Writes an Event on a Pod; with `quiet`, not again under that name for minutes.
    fn note_pod(
        &mut self,
        key: &ObjectKey,
        reason: &'static str,
        quiet: Option<String>,
        note: String,
    ) {
        let Some(pod) = self.index.pods.get(key) else {
            return;
        };
        let reference = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(key.namespace.clone()),
            name: Some(key.name.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        };
        self.note(reference, quiet, reason, EventType::Normal, note);
    }

    /// How far staging is, when that changed.
    pub(super) fn note_stage(
        &mut self,
        key: &ObjectKey,
        status: &ImagePrePullStatus,
        state: &'static str,
    ) {
        let Some(facts) = self.index.prepulls.get(key) else {
            return;
        };
        let reference = ObjectReference {
            api_version: Some("parbake.dev/v1alpha1".into()),
            kind: Some("ImagePrePull".into()),
            namespace: Some(key.namespace.clone()),
            name: Some(key.name.clone()),
            uid: Some(facts.uid.clone()),
            ..ObjectReference::default()
        };
        let image = facts.spec.image.clone();
        // by what it is where that is known: a tag that was pushed anew is another image
        let what = status.digest.clone().unwrap_or_else(|| image.clone());
        let failing: Vec<(String, Option<String>, String)> = status
            .failing
            .iter()
            .map(|host| {
                let uid = self
                    .index
                    .nodes
                    .get(&host.host)
                    .map(|node| node.uid.clone());
                (host.host.clone(), uid, host.message.clone())
            })
            .collect();
        let message = |type_: &str| {
            status
                .conditions
                .iter()
                .find(|condition| condition.type_ == type_)
                .map_or_else(String::new, |condition| condition.message.clone())
        };
        let told = self.stages.get_mut(key);
        let changed = told.is_some_and(|stage| stage.told.replace(state) != Some(state));
        for (host, uid, why) in failing {
            let node = ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Node".into()),
                name: Some(host.clone()),
                uid,
                ..ObjectReference::default()
            };
            let note = format!("{image} can't be staged: {why}");
            let quiet = format!("Node {host} {what}");
            self.note(node, Some(quiet), "StageFailed", EventType::Warning, note);
        }
        if !changed {
            return;
        }
        let (reason, type_, note) = match state {
            "staging" => ("Staging", EventType::Normal, message("Staged")),
            "staged" => ("Staged", EventType::Normal, message("Staged")),
            "failed" => ("StageFailed", EventType::Warning, message("Staged")),
            "unresolved" => ("StageFailed", EventType::Warning, message("Resolved")),
            _ => return,
        };
        let quiet = format!("ImagePrePull {key} {state} {what}");
        let note = format!("{image}: {note}");
        self.note(reference, Some(quiet), reason, type_, note);
    }

    fn note(
        &mut self,
        reference: ObjectReference,
        quiet: Option<String>,
        reason: &'static str,
        type_: EventType,
        note: String,
    ) {
        let may_say = match quiet {
            Some(what) => self.notes.may_say(what),
            None => self.notes.pending < PENDING,
        };
        if !may_say {
            return;
        }
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note.chars().take(MAX_NOTE).collect()),
            action: match reason {
                "Staging" | "Staged" | "StageFailed" => "Stage".to_owned(),
                _ => "Gate".to_owned(),
            },
            secondary: None,
        };
        self.notes.pending += 1;
        // One for each Event: a recorder that was used before counts a second Event of the same reason as a repetition
        // of the first, with the first one's text.
        let recorder = Recorder::new(self.notes.client.clone(), self.notes.reporter.clone());
        let work = async move {
            match timeout(TIMEOUT, recorder.publish(&event, &reference)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(reason = event.reason, %error, "Event isn't written"),
                Err(_) => debug!(reason = event.reason, "Event isn't written: no answer"),
            }
        };
        self.spawn_write_in(self.notes.writers.clone(), work, |_| Input::Noted);
    }

    pub(super) fn noted(&mut self) {
        self.notes.pending = self.notes.pending.saturating_sub(1);
    }
}
