//! The one task that owns the gate and what is known of the cluster.
//!
//! `run` selects an [`Input`]; `apply` changes state without waiting, feeds the gate and turns what it wants into jobs
//! of one set. Every job asks whether this coordinator still leads before it writes. What the objects say is derived
//! anew from the [`Index`] whenever it changes; nothing here remembers what the cluster can say again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use kube::Client;
use proto::{HostId, Moment};
use rollout::gate::{self, Gate};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    crd::GateMode,
    index::{Change, Index, Kind, ObjectKey, PodFacts, Rule, Scope, Unreadable},
    metrics::Metrics,
    watch::{Seen, follow},
    write::{self, MayWrite, PodWrite, PodWritten, Target, WriteError, Writer},
};
use crate::{
    driver::{self, PresenceView, View},
    resolve::Registries,
};
use retry::Retries;

mod accounts;
mod ask;
mod guard;
mod labels;
mod notes;
mod owners;
mod retry;
mod secrets;
mod show;
mod stage;
mod status;
#[cfg(test)]
mod tests;

pub(crate) use ask::{Admission, Drain, Question};
pub(crate) use guard::Guarded;

/// Questions that wait for the keeper: a fleet's runners that poll together.
pub(crate) const QUESTIONS: usize = 1_024;
/// Sights that wait for the keeper: a list of every Pod of a large cluster comes in pages of 500.
const INBOX: usize = 1_024;
/// Writes on Pods under way at one time: gentle to an API server that others need too. Whatever else is written waits for
/// places of its own, so that no drain label waits for what the API server takes slowly.
const POD_WRITERS: usize = 16;
/// Other writes under way at one time: labels of Nodes, statuses, objects, ServiceAccounts.
const WRITERS: usize = 8;
/// The longest pause before a write that failed is tried again: of a Node's labels, which a webhook may refuse for a thousand
/// Nodes at once; of a pool's object; and of a status, by which who takes over knows what is awaited.
const NODE_RETRY: Duration = Duration::from_mins(5);
const PREPULL_RETRY: Duration = Duration::from_mins(1);
const STATUS_RETRY: Duration = Duration::from_secs(10);
/// A watch that sees nothing for this long makes what is known too old to act on.
const BLIND: Duration = Duration::from_secs(30);
/// Labels, statuses and gauges are brought up to date this often.
const TICK: Duration = Duration::from_secs(1);
/// The gate's clock starts this far from zero, so that times before this program's start can be told.
const BEFORE: Duration = Duration::from_hours(24);
/// Objects that can't be read are named once each, up to so many.
const MAX_COMPLAINTS: usize = 1_000;

/// What was meant: the settings of the Kubernetes side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// Namespaces to watch; none: all.
    pub(crate) namespaces: Vec<String>,
    /// The gate of a RunnerPool that says nothing.
    pub(crate) default_gate: GateMode,
    /// Who writes Events: this Pod's name.
    pub(crate) instance: String,
}

/// What the keeper is made of.
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) client: Client,
    pub(crate) may_write: MayWrite,
    pub(crate) driver: mpsc::Sender<driver::Input>,
    pub(crate) registries: Arc<Registries>,
    pub(crate) guarded: watch::Receiver<Guarded>,
    pub(crate) metrics: Metrics,
}

/// What the keeper is told.
#[derive(Debug)]
pub(crate) enum Input {
    /// A watch sees something.
    Seen(Scope, Seen),
    /// Hosts hold something else, or looked again.
    Presence(Arc<PresenceView>),
    /// Staging went on.
    View(Arc<View>),
    /// A write on a Pod ended.
    PodWritten {
        id: gate::PodId,
        key: ObjectKey,
        write: PodWrite,
        why: Option<gate::Withdrawal>,
        written: PodWritten,
    },
    /// A reference was resolved, or wasn't.
    Resolved(Box<stage::Resolved>),
    /// A Node's labels were written.
    NodeWritten {
        name: String,
        result: Result<Option<Box<k8s_openapi::api::core::v1::Node>>, WriteError>,
    },
    /// A status was written.
    StatusWritten {
        key: ObjectKey,
        result: Result<(), WriteError>,
    },
    /// An ImagePrePull was made, changed or deleted.
    PrePullWritten {
        key: ObjectKey,
        result: Result<(), WriteError>,
    },
    /// ServiceAccounts were listed.
    Accounts(Result<Vec<kube::api::ObjectMeta>, WriteError>),
    /// A pull Secret was read, or not.
    Secret {
        key: ObjectKey,
        result: Result<(), secrets::SecretError>,
    },
    /// An owner of gated Pods was read, or not.
    Owner {
        key: owners::OwnerKey,
        asked: Instant,
        result: Result<owners::Makes, owners::OwnerError>,
    },
    /// An Event was written, or not: it isn't tried again.
    Noted,
    /// Somebody asks.
    Asked(Question),
    /// Time passed.
    Tick,
}

/// Two clocks that started together.
#[derive(Clone, Copy, Debug)]
struct Clock {
    started: Instant,
}

impl Clock {
    fn now(self) -> Moment {
        Moment::START + BEFORE + self.started.elapsed()
    }

    /// The moment of an instant; what lies before all moments is the first.
    fn at(self, instant: Instant) -> Moment {
        let epoch = Moment::START + BEFORE;
        match instant.checked_duration_since(self.started) {
            Some(since) => epoch + since,
            None => epoch - self.started.duration_since(instant),
        }
    }

    fn instant(self, moment: Moment) -> Instant {
        let since = moment.since(Moment::START + BEFORE);
        self.started + since
    }

    /// A time of the wall clock, by its distance from now: a jump of that clock moves only what is read after it.
    fn moment(self, time: SystemTime) -> Moment {
        let now = self.now();
        match SystemTime::now().duration_since(time) {
            Ok(age) => now - age,
            Err(ahead) => now + ahead.duration(),
        }
    }
}

/// How one watch fares.
#[derive(Debug, Default)]
struct Watch {
    listed: bool,
    blind_since: Option<Instant>,
    absent: bool,
}

/// State and its ways out.
pub(crate) struct Keeper {
    config: Config,
    client: Client,
    writer: Writer,
    driver: mpsc::Sender<driver::Input>,
    registries: Arc<Registries>,
    guarded: watch::Receiver<Guarded>,
    metrics: Metrics,
    clock: Clock,
    gate: Gate,
    index: Index,
    watches: BTreeMap<Scope, Watch>,
    synced: bool,
    rules: BTreeMap<gate::PoolId, Rule>,
    /// Rules in the order in which they have a say.
    order: Vec<Rule>,
    /// Pools and Pods as the gate was told.
    pods_told: BTreeMap<ObjectKey, gate::PodId>,
    pod_keys: BTreeMap<gate::PodId, ObjectKey>,
    rules_due: bool,
    view: Arc<View>,
    presence: Arc<PresenceView>,
    stages: BTreeMap<ObjectKey, stage::Stage>,
    placed: Vec<stage::Placed>,
    placed_whole: bool,
    left: BTreeMap<proto::Digest, stage::Left>,
    limits: driver::Limits,
    owned_due: bool,
    prepull_writes: BTreeSet<ObjectKey>,
    prepull_retries: Retries<ObjectKey>,
    status_writes: BTreeSet<ObjectKey>,
    status_retries: Retries<ObjectKey>,
    node_writes: BTreeSet<String>,
    node_retries: Retries<String>,
    notes: notes::Notes,
    accounts: accounts::Accounts,
    owners: owners::Owners,
    secrets: secrets::Secrets,
    /// Pods seen Pending, whose start is to be timed; and whether their Node held the image when it was seen that they
    /// are there.
    starting: BTreeMap<String, Option<bool>>,
    complaints: BTreeSet<String>,
    pod_writers: Arc<Semaphore>,
    writers: Arc<Semaphore>,
    jobs: JoinSet<Input>,
    due: Instant,
}

impl Keeper {
    pub(crate) fn new(parts: Parts) -> Self {
        let notes = notes::Notes::new(parts.client.clone(), &parts.config.instance);
        let watches = scopes(&parts.config)
            .into_iter()
            .map(|scope| (scope, Watch::default()))
            .collect();
        Self {
            config: parts.config,
            writer: Writer::new(parts.client.clone(), parts.may_write),
            client: parts.client,
            driver: parts.driver,
            registries: parts.registries,
            guarded: parts.guarded,
            metrics: parts.metrics,
            clock: Clock {
                started: Instant::now(),
            },
            gate: Gate::new(gate::Config::default()),
            index: Index::default(),
            watches,
            synced: false,
            rules: BTreeMap::new(),
            order: Vec::new(),
            pods_told: BTreeMap::new(),
            pod_keys: BTreeMap::new(),
            rules_due: false,
            view: Arc::default(),
            presence: Arc::default(),
            stages: BTreeMap::new(),
            placed: Vec::new(),
            placed_whole: false,
            left: BTreeMap::new(),
            limits: driver::Limits::default(),
            owned_due: false,
            prepull_writes: BTreeSet::new(),
            prepull_retries: Retries::new(PREPULL_RETRY),
            status_writes: BTreeSet::new(),
            status_retries: Retries::new(STATUS_RETRY),
            node_writes: BTreeSet::new(),
            node_retries: Retries::new(NODE_RETRY),
            notes,
            accounts: accounts::Accounts::default(),
            owners: owners::Owners::default(),
            secrets: secrets::Secrets::default(),
            starting: BTreeMap::new(),
            complaints: BTreeSet::new(),
            pod_writers: Arc::new(Semaphore::new(POD_WRITERS)),
            writers: Arc::new(Semaphore::new(WRITERS)),
            jobs: JoinSet::new(),
            due: Instant::now(),
        }
    }

    /// Runs until `shutdown`, and until writes that were begun have ended.
    pub(crate) async fn run(
        mut self,
        mut questions: mpsc::Receiver<Question>,
        mut view: watch::Receiver<Arc<View>>,
        mut presence: watch::Receiver<Arc<PresenceView>>,
        shutdown: CancellationToken,
    ) {
        let (seen, mut sights) = mpsc::channel(INBOX);
        let mut watches = JoinSet::new();
        for scope in self.watches.keys() {
            let (client, scope) = (self.client.clone(), scope.clone());
            watches.spawn(follow(client, scope, seen.clone(), shutdown.clone()));
        }
        drop(seen);
        self.apply(Input::View(view.borrow_and_update().clone()));
        self.apply(Input::Presence(presence.borrow_and_update().clone()));
        loop {
            let due = self.next();
            let input = tokio::select! {
                () = shutdown.cancelled() => break,
                Some((scope, sight)) = sights.recv() => Input::Seen(scope, sight),
                Some(question) = questions.recv() => Input::Asked(question),
                Ok(()) = presence.changed() => Input::Presence(presence.borrow_and_update().clone()),
                Ok(()) = view.changed() => Input::View(view.borrow_and_update().clone()),
                Some(job) = self.jobs.join_next() => match job {
                    Ok(input) => input,
                    // what waits for its answer would wait for ever: a new start asks anew
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
        // what was begun ends by its own time-outs
        while self.jobs.join_next().await.is_some() {}
        while watches.join_next().await.is_some() {}
    }

    /// When something is due, if nothing happens before.
    fn next(&self) -> Instant {
        let gate = self
            .gate
            .next_timeout()
            .map(|moment| self.clock.instant(moment));
        gate.map_or(self.due, |gate| gate.min(self.due))
    }

    /// Changes state by one input, and starts what follows from it.
    fn apply(&mut self, input: Input) {
        let now = self.clock.now();
        // what the gate decides on this input mustn't rest on watches that were blind for too long by now
        self.sync(now);
        match input {
            Input::Seen(scope, seen) => self.seen(&scope, seen),
            Input::Presence(presence) => self.take_presence(now, presence),
            Input::View(view) => {
                self.view = view;
                self.stage_due();
            }
            Input::PodWritten {
                id,
                key,
                write,
                why,
                written,
            } => self.pod_written(now, &id, &key, &write, why, written),
            Input::Resolved(resolved) => self.resolved(*resolved),
            Input::NodeWritten { name, result } => self.node_written(&name, result),
            Input::StatusWritten { key, result } => self.status_written(&key, result),
            Input::PrePullWritten { key, result } => self.prepull_written(&key, result),
            Input::Accounts(listed) => self.accounts_listed(listed),
            Input::Secret { key, result } => self.secret_read(key, result),
            Input::Owner { key, asked, result } => self.owner_read(&key, asked, result),
            Input::Noted => self.noted(),
            Input::Asked(question) => self.answer(now, question),
            Input::Tick => self.gate.handle(now, gate::Event::Tick),
        }
        if std::mem::take(&mut self.rules_due) {
            self.tell_pools(now);
        }
        self.sync(now);
        self.act();
        if self.due <= Instant::now() {
            self.due = Instant::now() + TICK;
            self.keep_up();
        }
    }

    /// What is brought up to date every second.
    fn keep_up(&mut self) {
        self.follow_pools();
        self.stage();
        if std::mem::take(&mut self.rules_due) {
            self.tell_pools(self.clock.now());
            self.act();
        }
        if self.synced {
            self.label_nodes();
        }
        self.write_statuses();
        self.sweep_accounts();
        self.read_secrets();
        self.read_owners();
        self.note_holds();
        self.measure();
    }

    // ---- watching -----------------------------------------------------------------------------------------------

    fn seen(&mut self, scope: &Scope, seen: Seen) {
        let Some(watch) = self.watches.get_mut(scope) else {
            return;
        };
        // not before the list is whole: until then what was missed stays missed
        if matches!(seen, Seen::Listed)
            && (std::mem::take(&mut watch.absent) | watch.blind_since.take().is_some())
        {
            info!(kind = scope.kind.as_str(), "watch sees again");
        }
        let changes = match seen {
            Seen::Listing => {
                self.index.begin(scope.clone());
                Vec::new()
            }
            Seen::Applied(object) => match self.index.apply(scope, &object) {
                Ok(change) => change.into_iter().collect(),
                Err(unreadable) => {
                    let changes = self.changed_by(&unreadable);
                    self.complain(&unreadable);
                    changes
                }
            },
            Seen::Gone(object) => {
                let key = ObjectKey::new(
                    object.metadata.namespace.as_deref().unwrap_or_default(),
                    object.metadata.name.as_deref().unwrap_or_default(),
                );
                let uid = object.metadata.uid.as_deref();
                self.index
                    .remove(scope.kind, &key, uid)
                    .into_iter()
                    .collect()
            }
            Seen::Listed => {
                watch.listed = true;
                self.index.finish(scope)
            }
            Seen::Blind { error, absent } => {
                if absent && scope.kind == Kind::RunnerPools {
                    // a cluster without runner pools: nothing to follow, and nothing wrong
                    watch.absent = true;
                    watch.listed = true;
                    watch.blind_since = None;
                    self.index.begin(scope.clone());
                    self.index.finish(scope)
                } else {
                    if watch.blind_since.is_none() {
                        watch.blind_since = Some(Instant::now());
                        warn!(
                            kind = scope.kind.as_str(),
                            error, "watch sees nothing; it is tried again"
                        );
                    }
                    Vec::new()
                }
            }
        };
        for change in changes {
            self.take(change);
        }
    }

    /// What an object that can't be read any more changes: it says nothing now.
    fn changed_by(&self, unreadable: &Unreadable) -> Vec<Change> {
        match unreadable.kind {
            Kind::PrePulls => vec![Change::PrePull(unreadable.key.clone())],
            Kind::RunnerPools => vec![Change::RunnerPool(unreadable.key.clone())],
            Kind::Pods | Kind::Nodes => Vec::new(),
        }
    }

    fn complain(&mut self, unreadable: &Unreadable) {
        let text = unreadable.to_string();
        if self.complaints.len() < MAX_COMPLAINTS && self.complaints.insert(text.clone()) {
            warn!(
                object = text,
                "object can't be read; it is passed over until it changes"
            );
        }
    }

    fn take(&mut self, change: Change) {
        let now = self.clock.now();
        match change {
            Change::Pod(key) => self.tell_pod(now, &key),
            Change::Node(name) => {
                if let Ok(host) = name.parse::<HostId>() {
                    let event = match self.index.nodes.get(&name) {
                        Some(node) => gate::Event::Node {
                            host,
                            ready: node.ready,
                            schedulable: node.schedulable,
                        },
                        None => gate::Event::NodeGone(host),
                    };
                    self.gate.handle(now, event);
                }
                self.rules_due = true;
            }
            Change::PrePull(_) => {
                self.rules_due = true;
                self.stage_due();
            }
            Change::RunnerPool(_) => {
                self.rules_due = true;
                self.owned_due = true;
                self.stage_due();
            }
        }
    }

    fn tell_pod(&mut self, now: Moment, key: &ObjectKey) {
        let clock = self.clock;
        let told = self.index.gate_pod(
            key,
            &self.order,
            |time| clock.moment(time),
            |seen| clock.at(seen),
        );
        let before = self.pods_told.get(key).cloned();
        let id = told.as_ref().map(|(id, _)| id.clone());
        if let Some(before) = before.filter(|before| Some(before) != id.as_ref()) {
            self.pods_told.remove(key);
            self.pod_keys.remove(&before);
            self.starting.remove(&before.0);
            self.gate.handle(now, gate::Event::PodGone(before));
        }
        if let Some((id, pod)) = told {
            self.time_start(&id, &pod);
            if !self.pods_told.contains_key(key) {
                self.owner_came(&pod.pool, key);
            }
            self.pods_told.insert(key.clone(), id.clone());
            self.pod_keys.insert(id.clone(), key.clone());
            self.gate.handle(now, gate::Event::Pod(id, pod));
        }
    }

    /// Observes how long a Pod took from its creation to running, once and only when it got there.
    fn time_start(&mut self, id: &gate::PodId, pod: &gate::Pod) {
        let staged = match &pod.place {
            gate::Place::On(host) => {
                Some(self.gate.presence(&pod.pool, host) == Some(rollout::presence::Held::Fresh))
            }
            gate::Place::Unscheduled | gate::Place::Elsewhere => None,
        };
        match pod.phase {
            gate::Phase::Pending => {
                // a Pod that had to wait for its pull finds the image there when it runs: what it met counts
                let met = self.starting.entry(id.0.clone()).or_default();
                *met = met.or(staged);
            }
            gate::Phase::Running => {
                let Some(met) = self.starting.remove(&id.0) else {
                    return;
                };
                let key = ObjectKey::new(&pod.name.namespace, &pod.name.name);
                let created = self.index.pods.get(&key).and_then(|facts| facts.created);
                let took = created.and_then(|at| SystemTime::now().duration_since(at).ok());
                if let (Some(took), Some(staged)) = (took, met.or(staged)) {
                    self.metrics.provisioned(staged, took);
                }
            }
            gate::Phase::Ended | gate::Phase::Unknown => {
                self.starting.remove(&id.0);
            }
        }
    }

    fn tell_pools(&mut self, now: Moment) {
        let order = self.index.rules();
        let same = order.len() == self.order.len()
            && order
                .iter()
                .zip(&self.order)
                .all(|(a, b)| a.selects_like(b));
        self.order = order;
        let known = std::mem::take(&mut self.rules);
        for rule in &self.order {
            if self.index.prepulls.contains_key(&rule.key) {
                self.rules.insert(rule.key.pool(), rule.clone());
            }
        }
        for (id, rule) in &known {
            if !self.rules.contains_key(id) {
                self.metrics.forget_pool(&rule.key);
                self.gate.handle(now, gate::Event::PoolGone(id.clone()));
                self.find_owners(id);
            }
        }
        // before their pools: a gate that knew half of a pool's Pods would take that for all of them
        if !same {
            let keys: Vec<ObjectKey> = self.index.pods.keys().cloned().collect();
            for key in keys {
                self.tell_pod(now, &key);
            }
        }
        let rules: Vec<(gate::PoolId, Rule)> = self
            .rules
            .iter()
            .map(|(id, rule)| (id.clone(), rule.clone()))
            .collect();
        for (id, rule) in rules {
            self.tell_pool(now, id, &rule, &known);
        }
    }

    fn tell_pool(
        &mut self,
        now: Moment,
        id: gate::PoolId,
        rule: &Rule,
        known: &BTreeMap<gate::PoolId, Rule>,
    ) {
        self.find_owners(&id);
        let before = known.get(&id);
        if before.is_some_and(|before| before.image != rule.image) {
            self.ask_owners_anew(&id);
        }
        let Some(facts) = self.index.prepulls.get(&rule.key) else {
            return;
        };
        let hosts = self
            .index
            .selected(&facts.spec)
            .into_iter()
            .filter_map(|(name, _)| name.parse().ok())
            .collect();
        let mut pool = rule.pool(facts, hosts);
        pool.digest = self.digest_of(&rule.key, &rule.image);
        pool.deadline = self
            .deadline_of(&rule.key, facts)
            .map(|at| self.clock.moment(at));
        pool.template = self.template_of(&id, &rule.image);
        if pool.template == gate::Template::Unread {
            self.due = Instant::now();
        }
        let memory = facts.status.gate.filter(|_| before.is_none());
        self.gate.handle(now, gate::Event::Pool(id.clone(), pool));
        if let Some(memory) = memory {
            let before = gate::Before {
                awaited: memory.awaited.try_into().unwrap_or(0),
                lags: memory.owner_lags,
            };
            self.gate.handle(now, gate::Event::Before(id, before));
        }
    }

    fn take_presence(&mut self, now: Moment, presence: Arc<PresenceView>) {
        let before = std::mem::replace(&mut self.presence, presence.clone());
        for (host, word) in presence.iter() {
            let known = before.get(host);
            if known == Some(word) {
                continue;
            }
            let age = word.checked_at.elapsed();
            let same = known.is_some_and(|known| known.holdings == word.holdings);
            let event = if same {
                gate::Event::Seen(host.clone(), age)
            } else {
                gate::Event::Holds(host.clone(), (*word.holdings).clone(), age)
            };
            self.gate.handle(now, event);
            if !same {
                self.due = Instant::now();
            }
        }
    }

    /// Whether everything is known, and no watch has been blind for too long.
    fn sync(&mut self, now: Moment) {
        let synced = self.watches.values().all(|watch| {
            watch.listed
                && watch
                    .blind_since
                    .is_none_or(|since| since.elapsed() < BLIND)
        });
        if synced != self.synced {
            self.synced = synced;
            if synced {
                info!(
                    pods = self.index.pods.len(),
                    nodes = self.index.nodes.len(),
                    prepulls = self.index.prepulls.len(),
                    pools = self.index.runner_pools.len(),
                    "the cluster is known"
                );
            } else {
                error!("the cluster can't be watched; the gate is shut until it can");
            }
            self.metrics.synced.set(i64::from(synced));
            self.gate.handle(now, gate::Event::Synced(synced));
        }
    }

    // ---- acting -------------------------------------------------------------------------------------------------

    /// Carries out what the gate wants.
    fn act(&mut self) {
        while let Some(action) = self.gate.poll() {
            match action {
                gate::Action::Label(id) => self.write_pod(id, None, PodWrite::Label),
                gate::Action::Unlabel(id, why) => {
                    self.write_pod(id, Some(why), PodWrite::Unlabel);
                }
                gate::Action::Reap(id) => self.write_pod(id, None, |_| PodWrite::Reap),
                gate::Action::Blocked(id, reason) => self.held(&id, reason),
            }
        }
    }

    fn held(&mut self, id: &gate::PodId, reason: gate::Reason) {
        let Some(key) = self.pod_keys.get(id).cloned() else {
            return;
        };
        let Some(rule) = self.rule_of(&key) else {
            return;
        };
        self.metrics.denied(&rule, reason);
        debug!(pod = %key, pool = %rule, reason = reason.as_str(), "Pod is held");
        self.notes.wait(key, reason);
    }

    /// The ImagePrePull that gates a Pod.
    fn rule_of(&self, key: &ObjectKey) -> Option<ObjectKey> {
        let pod = self.index.pods.get(key)?;
        let rule = self.order.iter().find(|rule| rule.selects(key, pod))?;
        Some(rule.key.clone())
    }

    /// Carries out what the gate decided, which `write` makes of the pool's drain label.
    fn write_pod(
        &mut self,
        id: gate::PodId,
        why: Option<gate::Withdrawal>,
        write: fn(String) -> PodWrite,
    ) {
        let facts = self
            .pod_keys
            .get(&id)
            .and_then(|key| Some((key.clone(), self.index.pods.get(key)?)));
        let refused = |error: &str, key: ObjectKey, write| Input::PodWritten {
            id: id.clone(),
            key,
            write,
            why,
            written: PodWritten::refused(error),
        };
        let Some((key, facts)) = facts else {
            let key = ObjectKey::new("", "");
            let input = refused("the Pod is gone", key, PodWrite::Reap);
            self.jobs.spawn(async move { input });
            return;
        };
        let write = write(self.drain_label(&key, facts));
        let target = Target {
            key: key.clone(),
            uid: facts.uid.clone(),
            resource_version: facts.resource_version.clone(),
            owner: facts.owner.as_ref().map(|owner| owner.uid.clone()),
        };
        let (writer, writers) = (self.writer.clone(), self.pod_writers.clone());
        self.jobs.spawn(async move {
            let _permit = writers.acquire().await;
            let written = write::pod(writer, target, write.clone()).await;
            Input::PodWritten {
                id,
                key,
                write,
                why,
                written,
            }
        });
    }

    fn drain_label(&self, key: &ObjectKey, facts: &PodFacts) -> String {
        let rule = self.order.iter().find(|rule| rule.selects(key, facts));
        rule.map_or_else(
            || super::crd::DRAIN_LABEL.to_owned(),
            |rule| rule.drain_label.clone(),
        )
    }

    fn pod_written(
        &mut self,
        now: Moment,
        id: &gate::PodId,
        key: &ObjectKey,
        write: &PodWrite,
        why: Option<gate::Withdrawal>,
        written: PodWritten,
    ) {
        // what the answer shows is told first: the gate goes by it from here on
        let change = match written.pod {
            Some(pod) => self.index.apply_pod(&pod),
            None if written.gone => self.index.remove(Kind::Pods, key, Some(&id.0)),
            None => None,
        };
        if let Some(change) = change {
            self.take(change);
        }
        self.metrics.wrote(write, written.outcome);
        match (written.outcome, &written.error) {
            (gate::Outcome::Done, _) => self.note_written(key, write, why),
            (outcome, Some(error)) => {
                warn!(pod = %key, ?write, ?outcome, error, "write on a Pod didn't go through; it is decided anew");
            }
            _ => {}
        }
        self.gate
            .handle(now, gate::Event::Written(id.clone(), written.outcome));
    }

    /// Runs a write when there is room for it, unless this coordinator doesn't lead then.
    fn spawn_write<T: Send + 'static>(
        &mut self,
        work: impl Future<Output = T> + Send + 'static,
        done: impl FnOnce(Option<T>) -> Input + Send + 'static,
    ) {
        self.spawn_write_in(self.writers.clone(), work, done);
    }

    /// The same, when there is room among these.
    fn spawn_write_in<T: Send + 'static>(
        &mut self,
        writers: Arc<Semaphore>,
        work: impl Future<Output = T> + Send + 'static,
        done: impl FnOnce(Option<T>) -> Input + Send + 'static,
    ) {
        let writer = self.writer.clone();
        self.jobs.spawn(async move {
            let _permit = writers.acquire().await;
            done(if writer.leads() {
                Some(work.await)
            } else {
                None
            })
        });
    }
}

fn scopes(config: &Config) -> Vec<Scope> {
    let mut scopes = Vec::new();
    for kind in Kind::ALL {
        if config.namespaces.is_empty() || kind == Kind::Nodes {
            scopes.push(Scope {
                kind,
                namespace: None,
            });
            continue;
        }
        scopes.extend(config.namespaces.iter().map(|namespace| Scope {
            kind,
            namespace: Some(namespace.clone()),
        }));
    }
    scopes
}
