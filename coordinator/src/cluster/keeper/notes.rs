//! Events on the objects that people look at. They are a courtesy: one that can't be written is dropped, and the same
//! thing isn't said again within minutes.

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
/// An Event is given up after this.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest note: the API server takes 1 kB.
const MAX_NOTE: usize = 900;

/// Who writes Events, and what was said lately.
pub(super) struct Notes {
    recorder: Recorder,
    said: BTreeMap<(String, &'static str), Instant>,
    pending: usize,
}

impl Notes {
    pub(super) fn new(client: Client, instance: &str) -> Self {
        let reporter = Reporter {
            controller: "parbake-coordinator".into(),
            instance: Some(instance.to_owned()),
        };
        Self {
            recorder: Recorder::new(client, reporter),
            said: BTreeMap::new(),
            pending: 0,
        }
    }

    fn may_say(&mut self, object: String, reason: &'static str) -> bool {
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
        let key = (object, reason);
        if self.said.get(&key).is_some_and(|at| at.elapsed() < QUIET) {
            return false;
        }
        self.said.insert(key, now);
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
        let (reason, note) = match write {
            PodWrite::Label(_) => (
                "DrainEligible",
                format!("may drain: {node} holds the pool's image"),
            ),
            PodWrite::Unlabel(_) => (
                "DrainWithdrawn",
                match why {
                    Some(gate::Withdrawal::Current) => {
                        "may not drain any more: it runs the pool's image again".to_owned()
                    }
                    _ => format!("may not drain any more: {node} doesn't hold the pool's image"),
                },
            ),
            PodWrite::Reap => (
                "DrainEligible",
                "was Pending with another image than its pool's, and is replaced".to_owned(),
            ),
        };
        tracing::info!(pod = %key, reason, note, "gate");
        // each of these happened once
        self.notes.said.remove(&(format!("Pod {key}"), reason));
        self.note_pod(key, reason, EventType::Normal, note);
    }

    /// Why a Pod is held, where that is more than its turn.
    pub(super) fn note_held(&mut self, key: &ObjectKey, reason: gate::Reason) {
        let node = self.index.pods.get(key).and_then(|pod| pod.node.clone());
        let note = reason_text(reason, node.as_deref());
        self.note_pod(key, "GateHeld", EventType::Normal, note);
    }

    fn note_pod(&mut self, key: &ObjectKey, reason: &'static str, type_: EventType, note: String) {
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
        self.note(reference, format!("Pod {key}"), reason, type_, note);
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
            let note = format!("{} can't be staged: {why}", facts_image(status));
            self.note(
                node,
                format!("Node {host}"),
                "StageFailed",
                EventType::Warning,
                note,
            );
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
        self.note(
            reference,
            format!("ImagePrePull {key} {state}"),
            reason,
            type_,
            note,
        );
    }

    fn note(
        &mut self,
        reference: ObjectReference,
        object: String,
        reason: &'static str,
        type_: EventType,
        note: String,
    ) {
        if !self.notes.may_say(object, reason) {
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
        let recorder = self.notes.recorder.clone();
        let work = async move {
            match timeout(TIMEOUT, recorder.publish(&event, &reference)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(reason = event.reason, %error, "Event isn't written"),
                Err(_) => debug!(reason = event.reason, "Event isn't written: no answer"),
            }
        };
        self.spawn_write(work, |_| Input::Noted);
    }

    pub(super) fn noted(&mut self) {
        self.notes.pending = self.notes.pending.saturating_sub(1);
    }
}

fn facts_image(status: &ImagePrePullStatus) -> &str {
    status.digest.as_deref().unwrap_or("the image")
}
