//! The one task that owns the gate and everything that is known of the cluster.
//!
//! `run` receives an [`Input`]. `apply` lets the parts take the input in without waiting, tells the gate, and turns
//! what the parts want into jobs. Each part owns its state. The parts' methods take the time and what they need of
//! other parts, and return what is to be done. What the objects say is derived anew from the [`Index`] whenever the
//! index changes: nothing here remembers what the cluster can say again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kube::Client;
use rollout::gate;
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    clock::{Clock, Now},
    crd::GateMode,
    index::{Change, Index, Kind, ObjectKey, PrePullFacts, Source},
    metrics::Metrics,
    review,
    watch::{follow, follow_workload},
    write::{MayWrite, PodWritten},
};
use crate::{
    driver::{self, Ask, PresenceView, View},
    resolve::Registries,
};
use accounts::Accounts;
use ask::Paused;
use conditions::{Trouble, UnresolvedReason};
use gating::{Gating, Order, Step, Told};
use hosts::Hosts;
use input::Input;
use jobs::Jobs;
use labels::NodeLabels;
use notes::Notes;
use owners::Owners;
use placing::Placing;
use resolving::Resolving;
use runner_pools::{Life, RunnerPools};
use secrets::Secrets;
use status::Stands;
use statuses::Statuses;
use users::Used;
use watches::Watches;
use workloads::Workloads;

mod accounts;
mod ask;
mod conditions;
mod gating;
mod guard;
mod hosts;
mod input;
mod jobs;
mod labels;
mod notes;
mod once;
mod owners;
mod placing;
mod resolving;
mod runner_pools;
mod secrets;
mod show;
mod starts;
mod status;
mod statuses;
#[cfg(test)]
mod tests;
mod users;
mod watches;
mod workloads;
mod writes;

pub(crate) use ask::{Admission, Question};
pub(crate) use gating::Drain;
pub(crate) use guard::Guarded;

/// The most questions that wait for the keeper: a fleet's runners may poll together.
pub(crate) const QUESTIONS: usize = 1_024;
/// The most reports of watches that wait for the keeper: a list of every Pod of a large cluster comes in pages of 500.
const INBOX: usize = 1_024;
/// Labels, statuses and gauges are brought up to date this often.
const TICK: Duration = Duration::from_secs(1);

/// The settings of the Kubernetes side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// Namespaces to watch. An empty list means all.
    pub(crate) namespaces: Vec<String>,
    /// The gate mode of a RunnerPool that doesn't name one.
    pub(crate) default_gate: GateMode,
    /// The author of Events: this Pod's name.
    pub(crate) instance: String,
}

/// The settings and connections of a new keeper.
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) client: Client,
    pub(crate) may_write: MayWrite,
    pub(crate) driver: mpsc::Sender<driver::Input>,
    pub(crate) registries: Arc<Registries>,
    pub(crate) guarded: watch::Receiver<Guarded>,
    pub(crate) metrics: Metrics,
}

/// The parts, what is known of the cluster, and the channels to the outside.
pub(crate) struct Keeper {
    clock: Clock,
    index: Index,
    watches: Watches,
    workloads: Workloads,
    hosts: Hosts,
    guarded: watch::Receiver<Guarded>,

    gating: Gating,
    owners: Owners,
    images: Resolving,
    placing: Placing,
    statuses: Statuses,
    runner_pools: RunnerPools,
    labels: NodeLabels,
    notes: Notes,
    accounts: Accounts,
    secrets: Secrets,
    used: Used,

    jobs: Jobs,
    driver: mpsc::Sender<driver::Input>,
    metrics: Metrics,
    /// The gate is to be told all ImagePrePulls anew.
    gates_due: bool,
    /// When everything is next brought up to date.
    due: Instant,
}

impl Keeper {
    /// A keeper that knows nothing of the cluster yet.
    pub(crate) fn new(parts: Parts) -> Self {
        let Config {
            namespaces,
            default_gate,
            instance,
        } = parts.config;
        Self {
            clock: Clock::start(),
            index: Index::default(),
            watches: Watches::new(&namespaces),
            workloads: Workloads::default(),
            hosts: Hosts::default(),
            guarded: parts.guarded,
            gating: Gating::default(),
            owners: Owners::default(),
            images: Resolving::default(),
            placing: Placing::default(),
            statuses: Statuses::new(),
            runner_pools: RunnerPools::new(default_gate),
            labels: NodeLabels::new(),
            notes: Notes::default(),
            accounts: Accounts::default(),
            secrets: Secrets::default(),
            used: Used::default(),
            jobs: Jobs::new(parts.client, parts.may_write, parts.registries, instance),
            driver: parts.driver,
            metrics: parts.metrics,
            gates_due: false,
            due: Instant::now(),
        }
    }

    /// Runs until `shutdown`, and then until all writes that were begun have ended. Returns early when a job or a watch
    /// dies.
    pub(crate) async fn run(
        mut self,
        mut questions: mpsc::Receiver<Question>,
        mut view: watch::Receiver<Arc<View>>,
        mut presence: watch::Receiver<Arc<PresenceView>>,
        shutdown: CancellationToken,
    ) {
        let (seen, mut sights) = mpsc::channel(INBOX);
        let mut watches = JoinSet::new();
        for scope in self.watches.scopes() {
            let (client, scope) = (self.jobs.client(), scope.clone());
            watches.spawn(follow(client, scope, seen.clone(), shutdown.clone()));
        }
        drop(seen);
        let (seen, mut workloads) = mpsc::channel(INBOX);
        let mut following = JoinSet::new();
        self.apply(Input::View(view.borrow_and_update().clone()));
        self.apply(Input::Presence(presence.borrow_and_update().clone()));
        loop {
            for (workload, stop) in self.workloads.take_begun() {
                let (client, seen) = (self.jobs.client(), seen.clone());
                let follow = follow_workload(client, workload, seen, stop);
                following.spawn(shutdown.clone().run_until_cancelled_owned(follow));
            }
            let due = self.next();
            let input = tokio::select! {
                () = shutdown.cancelled() => break,
                Some((scope, sight)) = sights.recv() => Input::Seen(scope, sight),
                Some((workload, sight)) = workloads.recv() => Input::Workload(workload, sight),
                Some(ended) = following.join_next() => {
                    if let Err(error) = ended {
                        error!(%error, "a watch died; this is a defect");
                        return;
                    }
                    continue;
                }
                Some(question) = questions.recv() => Input::Asked(question),
                Ok(()) = presence.changed() => Input::Presence(presence.borrow_and_update().clone()),
                Ok(()) = view.changed() => Input::View(view.borrow_and_update().clone()),
                Some(job) = self.jobs.next() => match job {
                    Ok(input) => input,
                    // whoever waits for this job's answer would wait for ever, and a restart asks anew
                    Err(error) => {
                        error!(%error, "a job of the keeper died; the coordinator ends");
                        return;
                    }
                },
                Some(ended) = watches.join_next() => {
                    if !shutdown.is_cancelled() {
                        error!(?ended, "a watch ended unasked; this is a defect");
                        return;
                    }
                    continue;
                }
                () = tokio::time::sleep_until(due.into()) => Input::Tick,
            };
            self.apply(input);
        }
        // jobs that were begun end by their own time-outs
        while self.jobs.next().await.is_some() {}
        while watches.join_next().await.is_some() {}
        while following.join_next().await.is_some() {}
    }

    /// When something is next due, if nothing happens before.
    fn next(&self) -> Instant {
        let gate = self.gating.next_timeout();
        let gate = gate.map(|moment| self.clock.now().instant_of(moment));
        gate.map_or(self.due, |gate| gate.min(self.due))
    }

    /// Lets the parts take in one input, and starts what follows from it.
    fn apply(&mut self, input: Input) {
        let now = self.clock.now();
        // the gate's decisions on this input mustn't rest on watches that have been blind for too long
        self.sync(now);
        self.take_in(now, input);
        if std::mem::take(&mut self.gates_due) {
            self.tell_gates(now);
        }
        self.sync(now);
        self.act(now);
        if self.due <= now.instant {
            self.due = now.instant + TICK;
            self.keep_up(now);
        }
    }

    fn take_in(&mut self, now: Now, input: Input) {
        match input {
            Input::Seen(scope, seen) => {
                let watches = &mut self.watches;
                for change in watches.see(now.instant, &mut self.index, &scope, seen) {
                    self.take(now, change);
                }
            }
            Input::Workload(workload, seen) => {
                for change in self.workloads.see(&mut self.index, &workload, seen) {
                    self.take(now, change);
                }
            }
            Input::Presence(presence) => {
                for event in self.hosts.hear(now, presence) {
                    if matches!(event, gate::Event::Holds(..)) {
                        self.due = now.instant;
                    }
                    self.gating.tell(now, event);
                }
            }
            Input::View(view) => {
                self.hosts.show(view);
                self.due = now.instant;
            }
            Input::PodWritten(order, written) => self.pod_written(now, &order, written),
            Input::Resolved(resolved) => {
                if self.images.answered(now.instant, *resolved) {
                    self.gates_due = true;
                    self.due = now.instant;
                }
            }
            Input::NodeWritten { node, result } => {
                let written = self.labels.written(now.instant, &node, result);
                // the watch may lag behind the answer, and without this the same labels would be written again
                if let Some(written) = written.filter(|_| self.index.nodes.contains_key(&node)) {
                    self.index.apply_node(&written);
                    self.take(now, Change::Node(node));
                }
            }
            Input::StatusWritten { key, result } => {
                self.statuses.written(now.instant, &key, result);
            }
            Input::PrePullWritten { key, result } => {
                self.runner_pools.written(now.instant, &key, result);
            }
            Input::Accounts(Ok(listed)) => {
                // while the cluster isn't known, a Pod that wasn't seen may still exist
                if self.watches.synced() {
                    let gates = self.gating.gates();
                    let accounts = &mut self.accounts;
                    for (key, seen) in accounts.listed(now.time, listed, &self.index, gates) {
                        self.jobs.delete_account(key, seen);
                    }
                }
            }
            Input::Accounts(Err(error)) => {
                debug!(%error, "ServiceAccounts can't be listed; it is tried again later");
            }
            Input::Secret { key, result } => self.secrets.read(key, result),
            Input::Owner { key, asked, result } => {
                self.gates_due |= self.owners.read(now.instant, &key, asked, result);
            }
            Input::Noted => self.notes.ended(),
            Input::Asked(question) => self.answer(now, question),
            Input::Tick => self.gating.tell(now, gate::Event::Tick),
        }
    }

    /// Brings up to date everything that is checked every second.
    fn keep_up(&mut self, now: Now) {
        let synced = self.watches.synced();
        if synced {
            for change in self.workloads.look(&mut self.index) {
                self.take(now, change);
            }
            let absent = self.watches.is_kind_absent();
            for (key, own) in self.runner_pools.due(now.instant, &self.index, absent) {
                self.jobs.write_prepull(key, own);
            }
            self.stage(now);
        }
        // if the driver has no room now, it is told at the next look
        if let Some(users) = self.used.due(synced, &self.index, &self.hosts)
            && self.tell_driver(Ask::Used(users.clone()))
        {
            self.used.told(users);
        }
        if std::mem::take(&mut self.gates_due) {
            self.tell_gates(now);
            self.act(now);
        }
        if synced {
            for write in self.labels.due(now, &self.index, &self.hosts) {
                self.jobs.label_node(write);
            }
            self.write_statuses(now);
            self.sweep_accounts(now);
            self.read_secrets(now);
        }
        self.read_owners(now);
        self.tell_waits(now);
        self.measure(now);
    }

    // ---- the gate ------------------------------------------------------------------------------------------------

    /// Checks whether everything is known and no watch has been blind for too long, and tells the gate when that
    /// changed.
    fn sync(&mut self, now: Now) {
        if let Some(synced) = self.watches.look(now.instant, &self.index) {
            self.metrics.synced.set(i64::from(synced));
            self.gating.tell(now, gate::Event::Synced(synced));
        }
    }

    /// An object changed.
    fn take(&mut self, now: Now, change: Change) {
        match change {
            Change::Pod(key) => {
                let mut told = Told::default();
                self.gating
                    .tell_pod(now, &self.index, &key, &mut self.owners, &mut told);
                self.follow(now, told);
            }
            Change::Node(name) => {
                self.gating.tell_node(now, &self.index, &name);
                self.gates_due = true;
            }
            Change::PrePull(_) | Change::RunnerPool(_) => {
                self.gates_due = true;
                self.due = now.instant;
            }
        }
    }

    /// Tells the gate the ImagePrePulls anew.
    fn tell_gates(&mut self, now: Now) {
        let mut told = Told::default();
        self.gating
            .tell_prepulls(now, &self.index, &self.images, &mut self.owners, &mut told);
        self.follow(now, told);
    }

    /// Carries out what follows from what the gate was told.
    fn follow(&mut self, now: Now, told: Told) {
        for prepull in told.gone {
            self.metrics.forget_pool(&prepull);
        }
        for start in told.started {
            self.metrics.provisioned(start.staged, start.took);
        }
        self.gates_due |= told.owner_came;
        if told.unread {
            self.due = now.instant;
        }
    }

    /// Carries out what the gate wants.
    fn act(&mut self, now: Now) {
        while let Some(step) = self.gating.poll(&self.index) {
            match step {
                Step::Write(order) => self.jobs.write_pod(order),
                Step::Gone(id) => {
                    debug!(pod = id.0, "the Pod is gone; nothing is written on it");
                    let refused = gate::Event::Written(id, gate::Outcome::Refused);
                    self.gating.tell(now, refused);
                }
                Step::Blocked {
                    pod,
                    prepull,
                    reason,
                } => {
                    self.metrics.denied(&prepull, reason);
                    debug!(%pod, %prepull, reason = reason.as_str(), "Pod is blocked");
                    self.notes.wait(now.instant, pod, reason);
                }
            }
        }
    }

    /// A write on a Pod ended.
    fn pod_written(&mut self, now: Now, order: &Order, written: PodWritten) {
        let Order {
            id,
            target,
            write,
            why,
        } = order;
        // the gate hears first what the answer shows, because later decisions depend on it
        let change = match written.pod {
            Some(pod) => self.index.apply_pod(&pod, now.instant),
            None if written.gone => self.index.remove(Kind::Pods, &target.key, Some(&id.0)),
            None => None,
        };
        if let Some(change) = change {
            self.take(now, change);
        }
        self.metrics.wrote(write, written.outcome);
        match (written.outcome, &written.error) {
            (gate::Outcome::Done, _) => {
                let image = image_of(&self.gating, &self.index, &target.key);
                let pod = self.index.pods.get(&target.key);
                let note = self.notes.written(&target.key, pod, &image, write, *why);
                note.into_iter().for_each(|note| self.jobs.publish(note));
            }
            (outcome, Some(error)) => {
                warn!(pod = %target.key, ?write, ?outcome, error, "write on a Pod didn't go through; it is decided anew");
            }
            _ => {}
        }
        let event = gate::Event::Written(id.clone(), written.outcome);
        self.gating.tell(now, event);
    }

    // ---- staging -------------------------------------------------------------------------------------------------

    /// Resolves what the objects ask for, and tells the driver what to stage.
    fn stage(&mut self, now: Now) {
        let looked = self.images.look(now, &self.index);
        for gone in &looked.gone {
            self.metrics.forget_prepull(gone);
        }
        self.gates_due |= looked.known;
        for ask in looked.ask {
            self.jobs.resolve(ask);
        }
        let facts = placing::Facts {
            now,
            index: &self.index,
            images: &self.images,
            hosts: &self.hosts,
        };
        let placement = self.placing.due(facts, |key| self.gating.rolls(key));
        // if the driver has no room now, it is told at the next look
        if let Some(placement) = placement
            && self.tell_driver(placement.ask())
        {
            self.placing.told(placement);
        }
        for (key, digest) in self.images.urged(&self.index) {
            if self.tell_driver(Ask::Urge(digest))
                && let Some(facts) = self.index.prepulls.get(&key)
            {
                self.images.heeded(&key, facts);
            }
        }
    }

    /// Whether the driver had room for this.
    fn tell_driver(&self, ask: Ask) -> bool {
        self.driver.try_send(driver::Input::Asked(ask)).is_ok()
    }

    /// Writes the statuses that changed, and updates metrics and Events.
    fn write_statuses(&mut self, now: Now) {
        let prepulls = &self.index.prepulls;
        self.statuses.keep(|key| prepulls.contains_key(key));
        self.notes.keep(|key| prepulls.contains_key(key));
        for (key, facts) in &self.index.prepulls {
            let Some(stands) = self.stands(now, key, facts) else {
                continue;
            };
            let status = &stands.status;
            self.metrics.prepull(key, &status.hosts, stands.late);
            if stands.everywhere {
                self.images.staged(key, now.time);
            }
            let about = (key, facts);
            let notes = &mut self.notes;
            for note in notes.staging(now.instant, &self.index, about, status, stands.phase) {
                self.jobs.publish(note);
            }
            let rolls = self.gating.rolls(key);
            match self.runner_pools.life(now, key, facts, status, rolls) {
                Life::Stays => {}
                Life::Ends => continue,
                Life::End(own) => {
                    self.jobs.write_prepull(key.clone(), own);
                    continue;
                }
            }
            let patch = self.statuses.due(now.instant, key, status, &facts.status);
            if let Some(patch) = patch {
                self.jobs
                    .write_status(key.clone(), facts.uid.clone(), patch);
            }
        }
    }

    /// The state of an ImagePrePull. `None` while its image wasn't asked for yet.
    fn stands(&self, now: Now, key: &ObjectKey, prepull: &PrePullFacts) -> Option<Stands> {
        let facts = status::Facts {
            now,
            prepull,
            image: self.images.get(key)?,
            nodes: self.index.selected(&prepull.spec),
            hosts: &self.hosts,
            roll: show::roll(self.shown(now), key),
            troubles: self.troubles(key, prepull),
        };
        Some(status::of(&facts))
    }

    /// The troubles of an ImagePrePull besides those of its image and its roll.
    fn troubles(&self, key: &ObjectKey, prepull: &PrePullFacts) -> Vec<(Trouble, String)> {
        let mut troubles = Vec::new();
        if let Source::Unknown(why) = &prepull.source {
            let trouble = Trouble::Unresolved(UnresolvedReason::ImageFrom);
            troubles.push((trouble, why.clone()));
        }
        if self.gating.is_overlapped(&self.index, key) {
            let text = "an older ImagePrePull gates its Pods".to_owned();
            troubles.push((Trouble::OverlappingGate, text));
        }
        let secret = prepull.secret(key);
        if let Some(text) = secret.and_then(|secret| self.secrets.trouble(&secret)) {
            troubles.push((Trouble::PullSecret, text));
        }
        let gate = prepull.spec.gate.as_ref();
        if let Some(text) = gate.and_then(|gate| self.guarded.borrow().misses(gate)) {
            troubles.push((Trouble::NotGuarded, text));
        }
        troubles
    }

    // ---- the rest ------------------------------------------------------------------------------------------------

    /// Lists ServiceAccounts that may have outlived their Pods, when that is due.
    fn sweep_accounts(&mut self, now: Now) {
        if let Some(namespaces) = self.accounts.look(now.instant, self.gating.gates()) {
            self.jobs.list_accounts(namespaces);
        }
    }

    /// Reads the pull Secrets that are due, and forgets those that no ImagePrePull names.
    fn read_secrets(&mut self, now: Now) {
        let named = secrets::named(&self.index);
        self.jobs.keep_secrets(&named);
        for key in self.secrets.due(now.instant, named) {
            self.jobs.read_secret(key);
        }
    }

    /// Reads the owners that are due, and forgets the owners of Pods that don't roll.
    fn read_owners(&mut self, now: Now) {
        let gates = self.gating.gates().iter();
        let rolling: Vec<_> = gates.filter(|gate| self.gating.rolls(&gate.key)).collect();
        for gate in &rolling {
            self.gates_due |= self.owners.find(&self.index, gate);
        }
        for key in self.owners.due(now.instant, &rolling) {
            self.jobs.read_owner(now.instant, key);
        }
    }

    /// Publishes why Pods are blocked, where they stay blocked.
    fn tell_waits(&mut self, now: Now) {
        let (gating, index) = (&self.gating, &self.index);
        let image = |key: &ObjectKey| image_of(gating, index, key);
        let notes = self
            .notes
            .waiting(now, index, image, |id| gating.explain(id));
        for note in notes {
            self.jobs.publish(note);
        }
    }

    /// Updates the gauges of all pools.
    fn measure(&self, now: Now) {
        let since_1970 = now.time.duration_since(std::time::SystemTime::UNIX_EPOCH);
        let now_unix_s = since_1970.unwrap_or_default().as_secs();
        for gate in self.gating.gates() {
            if let Some(status) = self.gating.status(&gate.key) {
                let oldest = status.oldest_pending_unix_s.map_or(0, |created| {
                    now_unix_s.saturating_sub(u64::try_from(created).unwrap_or(0))
                });
                self.metrics.pool(gate, &status, oldest);
            }
        }
    }

    fn answer(&mut self, now: Now, question: Question) {
        // the asker may have gone, so a failed send is ignored
        match question {
            Question::Admit { change, reply } => drop(reply.send(self.admit(now, &change))),
            Question::Drain { key, reply } => drop(reply.send(self.drain(&key))),
            Question::Pools(reply) => drop(reply.send(show::pools(self.shown(now)))),
            Question::Pod { key, reply } => drop(reply.send(show::pod(self.shown(now), &key))),
            Question::Pause { key, paused, reply } => self.pause(key, paused, reply),
        }
    }

    fn admit(&mut self, now: Now, change: &review::Change) -> Admission {
        let synced = self.watches.synced();
        let (pod, dry_run) = (&change.pod, change.dry_run);
        let refusal = match self.gating.admit(now, &self.index, synced, change) {
            Ok(None) => return Admission::Allowed,
            Ok(Some(prepull)) => {
                info!(%pod, %prepull, dry_run, "label is admitted");
                return Admission::Allowed;
            }
            Err(refusal) => refusal,
        };
        let reason = refusal.reason;
        if let Some(prepull) = refusal.prepull {
            self.metrics.denied(&prepull, reason);
            self.notes.wait(now.instant, pod.clone(), reason);
            // a greedy controller asks all the time, so only the counter records each refusal
            debug!(%pod, %prepull, dry_run, reason = reason.as_str(), "label is refused");
        }
        Admission::Refused(show::reason_text(reason, refusal.node.as_deref()))
    }

    fn drain(&self, pod: &ObjectKey) -> Drain {
        let synced = self.watches.synced();
        self.gating.drain(&self.index, synced, pod)
    }

    fn pause(&mut self, key: ObjectKey, paused: bool, reply: Paused) {
        let Some(facts) = self.index.prepulls.get(&key) else {
            drop(reply.send(Ok(false)));
            return;
        };
        let patch = json!({ "metadata": { "uid": facts.uid }, "spec": { "paused": paused } });
        info!(prepull = %key, paused, "operator changes a roll");
        self.jobs.pause(key, patch, reply);
    }

    fn shown(&self, now: Now) -> show::Facts<'_> {
        show::Facts {
            now,
            index: &self.index,
            gating: &self.gating,
            owners: &self.owners,
            images: &self.images,
        }
    }
}

/// The image that a Pod shall run, for people.
fn image_of(gating: &Gating, index: &Index, pod: &ObjectKey) -> String {
    let gate = gating.gate_of(index, pod);
    gate.map_or_else(|| "its pool's image".to_owned(), |gate| gate.image.clone())
}
