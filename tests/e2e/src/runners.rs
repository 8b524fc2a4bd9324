//! What runs beside parbake in a cluster of Mac runners, played against a real API server: the pools' controller that
//! replaces Pods, the kubelet that starts and ends them, the dispatcher that sends idle stale Pods home — and a checker
//! that sees every Pod event as the API server orders them.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use futures_util::StreamExt as _;
use k8s_openapi::{
    api::{
        apps::v1::ReplicaSet,
        core::v1::{Pod, ServiceAccount},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    core::DynamicObject,
    runtime::watcher,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

mod books;
mod objects;
mod pod;

pub use self::{
    books::Rule,
    objects::{
        NAMESPACE, add_node, add_pool, add_set, any_prepulls, change_pool, change_set, cordon,
        install_pools, install_prepulls, pods, pools, prepulls, set_busy, set_ready, sets,
    },
    pod::{BUSY_LABEL, DRAIN_LABEL, POOL_LABEL, image, is_busy, is_labelled, label, node, phase},
};
use self::{
    books::{Books, uid},
    pod::is_alive,
};

const HEARTBEAT_STATE: &str = "tuist.dev/runner-heartbeat-state";
const HEARTBEAT_AT: &str = "tuist.dev/runner-heartbeat-at";
/// How often controller, kubelet and dispatcher look.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A VM's start, shortened.
const BOOT: Duration = Duration::from_millis(300);

/// A pool, or a ReplicaSet, as its controller reads it.
#[derive(Clone, Debug)]
struct PoolFacts {
    /// What its Pods say of their owner.
    kind: (&'static str, &'static str),
    name: String,
    uid: String,
    image: String,
    replicas: usize,
}

/// How the three behave, and what they met. Shared with whoever turns it.
#[derive(Debug)]
pub struct Manners {
    /// Whether the other controller labels stale Pods by itself, all of them at once.
    pub greedy: AtomicBool,
    /// Whether the dispatcher sends stale labelled Pods home.
    pub dispatches: AtomicBool,
    /// Whether kubelets start Pods.
    pub boots: AtomicBool,
    /// Labels that were refused to the other controller, by what it was told.
    pub refused: Mutex<BTreeMap<String, usize>>,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            greedy: AtomicBool::new(false),
            dispatches: AtomicBool::new(true),
            boots: AtomicBool::new(true),
            refused: Mutex::default(),
        }
    }
}

impl Manners {
    /// What the other controller was told so far, and how often.
    #[must_use]
    pub fn refused(&self) -> BTreeMap<String, usize> {
        self.refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Controller, kubelet and dispatcher in one: they look at the same Pods. Hosts take one Pod each.
pub struct Runners {
    client: Client,
    nodes: Vec<String>,
    made: usize,
    seen: BTreeMap<String, Instant>,
    /// How they behave.
    pub manners: Arc<Manners>,
}

impl Runners {
    /// Those of these Nodes.
    #[must_use]
    pub fn new(client: Client, nodes: Vec<String>) -> Self {
        Self {
            client,
            nodes,
            made: 0,
            seen: BTreeMap::new(),
            manners: Arc::default(),
        }
    }

    /// Plays until `stop`. What the API server refuses for now (it restarts, somebody was faster) is done at the next
    /// look.
    pub async fn play(mut self, stop: CancellationToken) -> Self {
        while !stop.is_cancelled() {
            _ = self.look().await;
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
        self
    }

    /// Looks until `holds`, at most for `patience`.
    ///
    /// # Errors
    /// When it doesn't hold by then.
    pub async fn until(
        &mut self,
        patience: Duration,
        mut holds: impl FnMut(&[Pod]) -> bool,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + patience;
        loop {
            if let Ok(pods) = self.look().await
                && holds(&pods)
            {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < end, "it doesn't hold after {patience:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// One look: what each of the three does about what it sees.
    async fn look(&mut self) -> anyhow::Result<Vec<Pod>> {
        let list = pools(&self.client).list(&ListParams::default()).await?;
        let sets = sets(&self.client).list(&ListParams::default()).await?;
        let of_sets = sets.items.iter().filter_map(facts_of_set);
        let pools: Vec<PoolFacts> = list.items.iter().filter_map(facts).chain(of_sets).collect();
        let api = pods(&self.client);
        let all = api.list(&ListParams::default()).await?.items;
        let grace = DeleteParams::default().grace_period(0);
        for pod in &all {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let ended = matches!(phase(pod), "Succeeded" | "Failed");
            if pod.metadata.deletion_timestamp.is_some() || ended {
                api.delete(&name, &grace).await?;
                if ended {
                    _ = self
                        .accounts()
                        .delete(&name, &DeleteParams::default())
                        .await;
                }
                continue;
            }
            let pool = pools
                .iter()
                .find(|pool_| label(pod, POOL_LABEL) == Some(&pool_.name));
            let since = *self.seen.entry(name.clone()).or_insert_with(Instant::now);
            let placed = pod
                .spec
                .as_ref()
                .is_some_and(|spec| spec.node_name.is_some());
            let boots = self.manners.boots.load(Ordering::Relaxed);
            if phase(pod) == "Pending" && placed && boots && since.elapsed() >= BOOT {
                self.start(&name).await?;
            }
            let stale = pool.is_some_and(|pool| image(pod) != pool.image);
            if phase(pod) == "Running" && stale {
                if label(pod, DRAIN_LABEL) == Some("true") {
                    // its poll gets 410, and it exits; one that works doesn't poll
                    if is_busy(pod) || !self.manners.dispatches.load(Ordering::Relaxed) {
                        continue;
                    }
                    let patch = json!({ "status": { "phase": "Succeeded" } });
                    let params = PatchParams::default();
                    api.patch_status(&name, &params, &Patch::Merge(&patch))
                        .await?;
                } else if self.manners.greedy.load(Ordering::Relaxed) {
                    let patch = json!({ "metadata": { "labels": { DRAIN_LABEL: "true" } } });
                    let params = PatchParams::default();
                    if let Err(kube::Error::Api(status)) =
                        api.patch(&name, &params, &Patch::Merge(&patch)).await
                    {
                        let mut refused = self
                            .manners
                            .refused
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner);
                        *refused.entry(status.message.clone()).or_default() += 1;
                    }
                }
            }
        }
        let mut taken: BTreeMap<String, usize> = BTreeMap::new();
        for pod in all.iter().filter(|pod| is_alive(pod)) {
            *taken
                .entry(node(pod).unwrap_or_default().to_owned())
                .or_default() += 1;
        }
        for pool in &pools {
            let alive = |pod: &&Pod| {
                label(pod, POOL_LABEL) == Some(&pool.name)
                    && pod.metadata.deletion_timestamp.is_none()
                    && !matches!(phase(pod), "Succeeded" | "Failed")
            };
            for _ in all.iter().filter(alive).count()..pool.replicas {
                self.make(pool, &mut taken).await?;
            }
        }
        Ok(all)
    }

    async fn make(
        &mut self,
        pool: &PoolFacts,
        taken: &mut BTreeMap<String, usize>,
    ) -> anyhow::Result<()> {
        self.made += 1;
        let name = format!("{}-{}", pool.name, self.made);
        let owner = json!([{
            "apiVersion": pool.kind.0,
            "kind": pool.kind.1,
            "name": pool.name,
            "uid": pool.uid,
        }]);
        // the emptiest, as a scheduler would
        let many = |node: &String| taken.get(node).copied().unwrap_or(0);
        let node = self.nodes.iter().min_by_key(|node| many(node)).cloned();
        if let Some(node) = &node {
            *taken.entry(node.clone()).or_default() += 1;
        }
        let account = serde_json::from_value(json!({
            "metadata": { "name": name, "ownerReferences": owner },
        }))?;
        self.accounts()
            .create(&PostParams::default(), &account)
            .await?;
        let pod = serde_json::from_value(json!({
            "metadata": {
                "name": name,
                "labels": { POOL_LABEL: pool.name, "tuist.dev/runner": "true" },
                "ownerReferences": owner,
            },
            "spec": {
                "serviceAccountName": name,
                "nodeName": node,
                "containers": [{ "name": "runner", "image": pool.image }],
            },
        }))?;
        pods(&self.client)
            .create(&PostParams::default(), &pod)
            .await?;
        Ok(())
    }

    async fn start(&self, name: &str) -> anyhow::Result<()> {
        let params = PatchParams::default();
        let beat = json!({ "metadata": { "annotations": {
            HEARTBEAT_STATE: "polling",
            HEARTBEAT_AT: Timestamp::now().to_string(),
        } } });
        let api = pods(&self.client);
        api.patch(name, &params, &Patch::Merge(&beat)).await?;
        let running = json!({ "status": { "phase": "Running" } });
        api.patch_status(name, &params, &Patch::Merge(&running))
            .await?;
        Ok(())
    }

    fn accounts(&self) -> Api<ServiceAccount> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }
}

fn facts(pool: &DynamicObject) -> Option<PoolFacts> {
    let spec = &pool.data["spec"];
    Some(PoolFacts {
        kind: ("tuist.dev/v1alpha1", "RunnerPool"),
        name: pool.metadata.name.clone()?,
        uid: pool.metadata.uid.clone()?,
        image: spec["image"].as_str()?.to_owned(),
        replicas: usize::try_from(spec["replicas"].as_u64()?).ok()?,
    })
}

fn facts_of_set(set: &ReplicaSet) -> Option<PoolFacts> {
    let spec = set.spec.as_ref()?;
    let template = spec.template.as_ref()?.spec.as_ref()?;
    Some(PoolFacts {
        kind: ("apps/v1", "ReplicaSet"),
        name: set.metadata.name.clone()?,
        uid: set.metadata.uid.clone()?,
        image: template.containers.first()?.image.clone()?,
        replicas: usize::try_from(spec.replicas?).ok()?,
    })
}

/// A Pod that got the label.
#[derive(Clone, Debug)]
pub struct Labelled {
    /// Its name.
    pub pod: String,
    /// Where it runs.
    pub node: String,
    /// When the checker saw it.
    pub at: SystemTime,
}

/// What the checker saw.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// What must not happen.
    pub violations: Vec<String>,
    /// Pods that got the label, in order.
    pub labelled: Vec<Labelled>,
    /// Pods that lost it again.
    pub withdrawn: Vec<String>,
    /// Stale Pods that were deleted before they had started.
    pub reaped: Vec<String>,
    /// The most Pods in flight at one time.
    pub most_in_flight: usize,
    /// The most Pods at one time that may drain, or left, or came for those that left, without a warm one in their
    /// place.
    pub most_taken: usize,
    /// Pod events.
    pub events: usize,
}

/// Sees every Pod event in the order of the API server, and checks each against the rule of its pool.
#[derive(Clone, Debug)]
pub struct Checker {
    /// By pool.
    pub rules: Arc<Mutex<BTreeMap<String, Rule>>>,
    /// What was found so far.
    pub findings: Arc<Mutex<Findings>>,
    /// Who left and came, by pool.
    books: Arc<Mutex<BTreeMap<String, Books>>>,
    /// Tart homes, by Node.
    homes: Arc<BTreeMap<String, PathBuf>>,
}

impl Checker {
    /// One that looks into these tart homes.
    #[must_use]
    pub fn new(homes: BTreeMap<String, PathBuf>) -> Self {
        Self {
            rules: Arc::default(),
            findings: Arc::default(),
            books: Arc::default(),
            homes: Arc::new(homes),
        }
    }

    /// The rule of a pool from now on.
    pub fn rule(&self, pool: &str, rule: Rule) {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        rules.insert(pool.to_owned(), rule);
    }

    /// What was found so far.
    #[must_use]
    pub fn found(&self) -> Findings {
        self.findings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Watches until `stop`.
    pub async fn watch(self, client: Client, stop: CancellationToken) {
        let events = watcher(pods(&client), watcher::Config::default());
        let mut events = std::pin::pin!(events);
        let mut known: BTreeMap<String, Pod> = BTreeMap::new();
        let mut listed: BTreeMap<String, Pod> = BTreeMap::new();
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                None => return,
                Some(Ok(watcher::Event::Apply(pod))) => {
                    self.check(&known, &pod);
                    known.insert(pod.metadata.name.clone().unwrap_or_default(), pod);
                }
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(pod))) => {
                    listed.insert(pod.metadata.name.clone().unwrap_or_default(), pod);
                }
                Some(Ok(watcher::Event::InitDone)) => {
                    // what went while nothing was seen
                    let gone = known
                        .iter()
                        .filter(|(name, pod)| listed.get(*name).map(uid) != Some(uid(pod)));
                    let gone: Vec<String> = gone.map(|(name, _)| name.clone()).collect();
                    for pod in gone.into_iter().filter_map(|name| known.remove(&name)) {
                        self.left(&pod);
                    }
                    for (name, pod) in std::mem::take(&mut listed) {
                        self.check(&known, &pod);
                        known.insert(name, pod);
                    }
                }
                Some(Ok(watcher::Event::Delete(pod))) => {
                    let name = pod.metadata.name.clone().unwrap_or_default();
                    if let Some(before) = known.remove(&name)
                        && before.metadata.uid == pod.metadata.uid
                    {
                        self.check_gone(&known, &before);
                    }
                }
                // an API server that restarts
                Some(Err(_)) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    fn check(&self, known: &BTreeMap<String, Pod>, pod: &Pod) {
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        findings.events += 1;
        let name = pod.metadata.name.clone().unwrap_or_default();
        let Some((pool, rule)) = label(pod, POOL_LABEL).and_then(|pool| rules.get_key_value(pool))
        else {
            return;
        };
        let before = known
            .get(&name)
            .filter(|before| before.metadata.uid == pod.metadata.uid);
        let had = before.is_some_and(is_labelled);
        let has = is_labelled(pod);
        if had && !has {
            findings.withdrawn.push(name.clone());
        }
        let mut now: BTreeMap<&String, &Pod> = known.iter().collect();
        now.insert(&name, pod);
        let in_flight = in_flight(now.values().copied(), pool, rule);
        findings.most_in_flight = findings.most_in_flight.max(in_flight);
        if has && !had && image(pod) != rule.image {
            findings.labelled.push(Labelled {
                pod: name.clone(),
                node: node(pod).unwrap_or_default().to_owned(),
                at: SystemTime::now(),
            });
            if is_busy(pod) {
                findings
                    .violations
                    .push(format!("{name} was labelled while it works"));
            }
            self.check_budget(&mut findings, rule, pod, "labelled", in_flight);
        }
        if let Some(before) = before.filter(|before| is_alive(before))
            && pod.metadata.deletion_timestamp.is_some()
        {
            self.check_reaped(&mut findings, rule, before, in_flight + 1);
        }
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        let books = books.entry(pool.clone()).or_default();
        let taken = books.taken(known.values(), pool, rule);
        match (before.is_some_and(is_alive), is_alive(pod)) {
            (false, true) => {
                let mine = |pod: &&&Pod| is_alive(pod) && label(pod, POOL_LABEL) == Some(pool);
                books.came(pod, now.values().filter(mine).count());
            }
            (true, false) => books.left(pod, rule),
            _ => {}
        }
        if phase(pod) == "Running" {
            books.cold.remove(&uid(pod));
        }
        let now = books.taken(now.values().copied(), pool, rule);
        findings.most_taken = findings.most_taken.max(now);
        if now > rule.cap && now > taken {
            findings.violations.push(format!(
                "{name}: {now} Pods are taken and not replaced by warm ones, cap {}",
                rule.cap
            ));
        }
    }

    /// A Pod is gone of which nothing was seen in between.
    fn left(&self, pod: &Pod) {
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let rule = label(pod, POOL_LABEL).and_then(|pool| rules.get_key_value(pool));
        if let Some((pool, rule)) = rule.filter(|_| is_alive(pod)) {
            let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
            books.entry(pool.clone()).or_default().left(pod, rule);
        }
    }

    /// A Pod that went without being seen on its way out was deleted at once.
    fn check_gone(&self, known: &BTreeMap<String, Pod>, before: &Pod) {
        self.left(before);
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        findings.events += 1;
        let Some((pool, rule)) =
            label(before, POOL_LABEL).and_then(|pool| rules.get_key_value(pool))
        else {
            return;
        };
        if is_alive(before) {
            let in_flight = in_flight(known.values(), pool, rule) + 1;
            self.check_reaped(&mut findings, rule, before, in_flight);
        }
    }

    fn check_reaped(&self, findings: &mut Findings, rule: &Rule, pod: &Pod, in_flight: usize) {
        if image(pod) == rule.image {
            return;
        }
        if phase(pod) == "Pending" {
            let name = pod.metadata.name.clone().unwrap_or_default();
            findings.reaped.push(name);
            self.check_budget(findings, rule, pod, "reaped", in_flight);
        }
    }

    fn check_budget(
        &self,
        findings: &mut Findings,
        rule: &Rule,
        pod: &Pod,
        what: &str,
        in_flight: usize,
    ) {
        let name = pod.metadata.name.clone().unwrap_or_default();
        if in_flight > rule.cap {
            findings.violations.push(format!(
                "{name} was {what} with {in_flight} in flight, cap {}",
                rule.cap
            ));
        }
        let Some(disk) = &rule.disk else {
            return;
        };
        let node = node(pod);
        let held = node
            .and_then(|node| self.homes.get(node))
            .is_some_and(|home| home.join(disk).exists());
        if !held {
            findings.violations.push(format!(
                "{name} was {what} on {node:?}, which doesn't hold {}",
                disk.display()
            ));
        }
    }
}

/// Stale ones that may drain and, while any stale one lives, idle current ones that don't run.
fn in_flight<'a>(pods: impl Iterator<Item = &'a Pod>, pool: &str, rule: &Rule) -> usize {
    let (mut stale, mut labelled, mut cold) = (0, 0, 0);
    for pod in pods.filter(|pod| is_alive(pod) && label(pod, POOL_LABEL) == Some(pool)) {
        if image(pod) == rule.image {
            cold += usize::from(phase(pod) != "Running" && !is_busy(pod));
        } else {
            stale += 1;
            labelled += usize::from(is_labelled(pod));
        }
    }
    labelled + if stale > 0 { cold } else { 0 }
}
