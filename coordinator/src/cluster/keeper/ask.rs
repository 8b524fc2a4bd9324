//! What the keeper is asked: by the API server before a label is written, by runners, and by operators.

use proto::Moment;
use rollout::gate;
use serde_json::json;
use tokio::sync::oneshot;
use tracing::{debug, info};

use super::{Input, Keeper};
use crate::{
    cluster::{
        crd::GateMode,
        index::{ObjectKey, is_labelled},
        keeper::show::reason_text,
        review::Change,
        write::{self, Own},
    },
    view::{PodView, PoolView},
};

/// What is asked.
#[derive(Debug)]
pub(crate) enum Question {
    /// May this Pod get these labels?
    Admit {
        change: Change,
        reply: oneshot::Sender<Admission>,
    },
    /// Shall this Pod leave?
    Drain {
        key: ObjectKey,
        reply: oneshot::Sender<Drain>,
    },
    /// Where do all pools stand?
    Pools(oneshot::Sender<Vec<PoolView>>),
    /// Why is this Pod held, or what may it do?
    Pod {
        key: ObjectKey,
        reply: oneshot::Sender<Option<PodView>>,
    },
    /// Hold this ImagePrePull, or let it go on.
    Pause {
        key: ObjectKey,
        paused: bool,
        reply: oneshot::Sender<Result<bool, String>>,
    },
}

/// Whether a Pod shall leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drain {
    /// It is stale and labelled.
    Leave,
    /// It isn't.
    Stay,
    /// There is no such Pod.
    NoSuchPod,
    /// The cluster isn't known yet.
    Unknown,
}

/// The answer to a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It may be written.
    Allowed,
    /// It may not, and why.
    Refused(String),
}

impl Keeper {
    pub(super) fn answer(&mut self, now: Moment, question: Question) {
        // whoever asked may have gone: there is nobody to tell
        match question {
            Question::Admit { change, reply } => drop(reply.send(self.admit(now, &change))),
            Question::Drain { key, reply } => drop(reply.send(self.drain(&key))),
            Question::Pools(reply) => drop(reply.send(self.pool_views())),
            Question::Pod { key, reply } => drop(reply.send(self.pod_view(&key))),
            Question::Pause { key, paused, reply } => self.pause(key, paused, reply),
        }
    }

    fn admit(&mut self, now: Moment, change: &Change) -> Admission {
        let (key, dry_run) = (&change.pod, change.dry_run);
        let newly = |label: &str| change.adds.contains(label);
        if !self.synced {
            // which Pods are gated, and by which label, isn't known
            return Admission::Refused(reason_text(gate::Reason::NotSynced, None));
        }
        // who asks isn't authenticated: what the Pod is like is taken from the watch, and the question only says which
        let Some(facts) = self.index.pods.get(key) else {
            let behind = reason_text(gate::Reason::NotSynced, None);
            // it may be one of ours that the watch hasn't shown yet
            let guarded = self.order.iter().any(|rule| {
                rule.key.namespace == key.namespace
                    && rule.mode == GateMode::Guard
                    && newly(&rule.drain_label)
            });
            return match guarded {
                true => Admission::Refused(behind),
                false => Admission::Allowed,
            };
        };
        let Some(rule) = self.order.iter().find(|rule| rule.selects(key, facts)) else {
            return Admission::Allowed;
        };
        if change.uid != facts.uid {
            return Admission::Refused(reason_text(gate::Reason::NotSynced, None));
        }
        if !newly(&rule.drain_label) || rule.mode != GateMode::Guard {
            return Admission::Allowed;
        }
        let (pool, node) = (rule.key.clone(), facts.node.clone());
        let id = gate::PodId(facts.uid.clone());
        let verdict = if dry_run {
            match self.gate.explain(&id) {
                gate::Verdict::Open(_) => Ok(()),
                gate::Verdict::Blocked(reason) => Err(reason),
            }
        } else {
            self.gate.admit(now, &id).map(drop)
        };
        match verdict {
            Ok(()) => {
                info!(pod = %key, %pool, dry_run, "label is admitted");
                Admission::Allowed
            }
            Err(reason) => {
                self.metrics.denied(&pool, reason);
                self.notes.wait(key.clone(), reason);
                // a greedy controller asks all the time; the counter has it
                debug!(pod = %key, %pool, dry_run, reason = reason.as_str(), "label is refused");
                Admission::Refused(reason_text(reason, node.as_deref()))
            }
        }
    }

    fn drain(&self, key: &ObjectKey) -> Drain {
        // a runner that is told that it isn't there may take that for the end
        if !self.synced {
            return Drain::Unknown;
        }
        let Some(facts) = self.index.pods.get(key) else {
            return Drain::NoSuchPod;
        };
        // not one of ours: it stays
        let rule = self.order.iter().find(|rule| rule.selects(key, facts));
        let leaves = rule.is_some_and(|rule| {
            facts.image != rule.image && is_labelled(&facts.labels, &rule.drain_label)
        });
        match leaves {
            true => Drain::Leave,
            false => Drain::Stay,
        }
    }

    fn pause(
        &mut self,
        key: ObjectKey,
        paused: bool,
        reply: oneshot::Sender<Result<bool, String>>,
    ) {
        let Some(facts) = self.index.prepulls.get(&key) else {
            drop(reply.send(Ok(false)));
            return;
        };
        let patch = json!({ "metadata": { "uid": facts.uid }, "spec": { "paused": paused } });
        info!(prepull = %key, paused, "operator changes a roll");
        let work = write::prepull(self.writer.clone(), key, Own::Change(patch));
        self.spawn_write(work, move |result| {
            let answer = match result {
                Some(Ok(())) => Ok(true),
                Some(Err(error)) => Err(error.to_string()),
                None => Err("this coordinator doesn't lead any more; ask again".to_owned()),
            };
            drop(reply.send(answer));
            Input::Tick
        });
    }
}
