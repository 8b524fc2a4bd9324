//! The keeper with a fake API server, whose answers a test scripts. Each write can be cut off between decision and
//! answer.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Mutex,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    response::{IntoResponse as _, Response},
};
use http::{Method, StatusCode};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::core::DynamicObject;
use proto::Digest;
use rollout::{gate::Outcome, presence::Held};
use serde_json::{Value, json};

use super::*;
use crate::{
    cluster::{
        crd::ImagePrePullStatus,
        index::Scope,
        watch::Seen,
        write::{self, PodWrite, Target, Writer},
    },
    config::Origin,
    view::PodView,
    wants::Want,
};
use conditions::{Unresolved, UnresolvedReason};
use resolving::Resolved;

mod accounts;
mod owners;
mod staging;
mod told;
mod watching;
mod writes;

/// How the fake API server answers one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// The write is done and answered.
    Done,
    /// The write is done, and its answer is lost.
    DoneUnheard,
    /// The write isn't done, and its answer is lost.
    Unheard,
    /// The write isn't done, and is answered with this status.
    Status(u16),
    /// The write is done, and is answered with this status nevertheless.
    DoneStatus(u16),
    /// The write isn't done, and its answer never comes.
    Silence,
}

/// The fake API server's state: one Pod, and the answers to writes on it. After the last scripted answer, all writes
/// are done.
#[derive(Debug)]
struct Fake {
    pod: Option<Value>,
    /// The content of the pull Secret, or the status that a read of it is answered with.
    secret: Option<Result<String, u16>>,
    /// The ServiceAccounts, as metadata.
    accounts: Vec<Value>,
    answers: VecDeque<Answer>,
    writes: Vec<String>,
    /// Objects by path, or the status that a read of the path is answered with.
    objects: BTreeMap<String, Result<Value, u16>>,
    /// How often a status was written.
    statuses: usize,
    /// Events that were written: reason and note.
    events: Vec<(String, String)>,
    /// Whether writes of Events and Node labels are never answered.
    slow: bool,
    /// How each writing request identifies itself: its query, and its User-Agent.
    writers: BTreeSet<String>,
    agents: BTreeSet<String>,
}

type Shared = Arc<Mutex<Fake>>;

impl Fake {
    fn on_accounts(&mut self, method: &Method, path: &str) -> Response {
        let name = path.rsplit('/').next().unwrap_or_default();
        if name == "serviceaccounts" {
            let items = self.accounts.iter().map(|meta| json!({ "metadata": meta }));
            return axum::Json(json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": {},
                "items": items.collect::<Vec<_>>(),
            }))
            .into_response();
        }
        let Some(at) = self.accounts.iter().position(|meta| meta["name"] == name) else {
            return failure(404);
        };
        let meta = self.accounts[at].clone();
        if method == Method::DELETE {
            let answer = self.answers.pop_front().unwrap_or(Answer::Done);
            self.writes.push(format!("DELETE {name} {answer:?}"));
            if let Answer::Status(code) = answer {
                return failure(code);
            }
            self.accounts.remove(at);
        }
        axum::Json(json!({ "kind": "ServiceAccount", "apiVersion": "v1", "metadata": meta }))
            .into_response()
    }
}

fn router(shared: Shared) -> Router {
    Router::new().fallback(move |request: Request| {
        let shared = shared.clone();
        async move { respond(&shared, request).await }
    })
}

fn fake(shared: &Shared) -> Client {
    Client::new(router(shared.clone()), "default")
}

/// The same server behind a TCP port, with the real program's client.
async fn served(shared: &Shared, stop: &CancellationToken) -> (Client, JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = JoinSet::new();
    let routes = router(shared.clone());
    server.spawn(crate::serve::serve(listener, None, routes, stop.clone()));
    let config = kube::Config::new(format!("http://{address}").parse().unwrap());
    let client = crate::cluster::access::client(config).unwrap();
    (client, server)
}

async fn respond(shared: &Shared, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let mut fake = shared.lock().unwrap();
    if let Some(agent) = parts.headers.get(http::header::USER_AGENT) {
        fake.agents.insert(agent.to_str().unwrap().to_owned());
    }
    if path.contains("/secrets/") {
        return match &fake.secret {
            None => failure(404),
            Some(Err(code)) => failure(*code),
            Some(Ok(text)) => axum::Json(json!({
                "kind": "Secret",
                "apiVersion": "v1",
                "metadata": { "name": "pull", "namespace": "ns" },
                "data": { ".dockerconfigjson": k8s_openapi::ByteString(text.as_bytes().to_vec()) },
            }))
            .into_response(),
        };
    }
    if path.contains("/serviceaccounts") {
        return fake.on_accounts(&parts.method, &path);
    }
    if parts.method == Method::GET {
        return match fake.objects.get(&path) {
            Some(Ok(object)) => axum::Json(object.clone()).into_response(),
            Some(Err(code)) => failure(*code),
            None => failure(404),
        };
    }
    let query = parts.uri.query().unwrap_or_default();
    fake.writers.insert(query.to_owned());
    if fake.slow && !path.contains("/pods/") {
        let never = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
        return Response::new(Body::from_stream(never));
    }
    if path.ends_with("/events") {
        let event: Value = serde_json::from_slice(&body).unwrap();
        let text = |field: &str| event[field].as_str().unwrap().to_owned();
        fake.events.push((text("reason"), text("note")));
        return axum::Json(event).into_response();
    }
    if path.ends_with("/imageprepulls/pool/status") {
        // the answer is that of a definition which doesn't know the status's fields
        fake.statuses += 1;
        return axum::Json(the_prepull()).into_response();
    }
    if !path.contains("/pods/") {
        return failure(404);
    }
    let answer = fake.answers.pop_front().unwrap_or(Answer::Done);
    fake.writes.push(format!("{} {answer:?}", parts.method));
    if matches!(
        answer,
        Answer::Done | Answer::DoneUnheard | Answer::DoneStatus(_)
    ) {
        let Some(pod) = &mut fake.pod else {
            return failure(404);
        };
        if parts.method == Method::DELETE {
            fake.pod = None;
        } else {
            let patch: Value = serde_json::from_slice(&body).unwrap();
            let version = &pod["metadata"]["resourceVersion"];
            assert_eq!(patch["metadata"]["uid"], pod["metadata"]["uid"]);
            if patch["metadata"]["resourceVersion"] != *version {
                return failure(409);
            }
            let next = version.as_str().unwrap().parse::<u64>().unwrap() + 1;
            pod["metadata"]["resourceVersion"] = next.to_string().into();
            for (label, value) in patch["metadata"]["labels"].as_object().unwrap() {
                match value {
                    Value::Null => drop(
                        pod["metadata"]["labels"]
                            .as_object_mut()
                            .unwrap()
                            .remove(label),
                    ),
                    value => pod["metadata"]["labels"][label] = value.clone(),
                }
            }
        }
    }
    match answer {
        Answer::Status(code) | Answer::DoneStatus(code) => failure(code),
        Answer::Done => match &fake.pod {
            Some(pod) => axum::Json(pod.clone()).into_response(),
            None => axum::Json(json!({ "kind": "Status", "status": "Success" })).into_response(),
        },
        Answer::Silence => {
            let never = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
            Response::new(Body::from_stream(never))
        }
        Answer::Unheard | Answer::DoneUnheard => {
            let cut: Result<Bytes, _> = Err(std::io::Error::other("cut"));
            Response::new(Body::from_stream(futures_util::stream::iter([cut])))
        }
    }
}

fn failure(code: u16) -> Response {
    let status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": if code == 404 { "NotFound" } else { "Test" },
        "message": "as told",
        "code": code,
    });
    // a client that obeyed this header would try again at once
    let again = [(http::header::RETRY_AFTER, "0")];
    let code = StatusCode::from_u16(code).unwrap();
    (code, again, axum::Json(status)).into_response()
}

fn the_pod(phase: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "p",
            "namespace": "ns",
            "uid": "uid",
            "resourceVersion": "10",
            "labels": { "app": "x" },
        },
        "spec": { "nodeName": "mac-0", "containers": [{ "name": "runner", "image": "r.test/i:1" }] },
        "status": { "phase": phase },
    })
}

fn the_node() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": "mac-0", "uid": "n", "resourceVersion": "1", "labels": { "a": "b" } },
        "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
    })
}

fn the_prepull() -> Value {
    json!({
        "apiVersion": "parbake.dev/v1alpha1",
        "kind": "ImagePrePull",
        "metadata": { "name": "pool", "namespace": "ns", "uid": "pool" },
        "spec": {
            "image": "r.test/i:2",
            "nodeSelector": { "matchLabels": { "a": "b" } },
            "gate": {
                "mode": "Own",
                "podSelector": { "matchLabels": { "app": "x" } },
                "replicas": 1,
            },
        },
    })
}

fn shared(phase: &str, answers: &[Answer]) -> Shared {
    Arc::new(Mutex::new(Fake {
        pod: Some(the_pod(phase)),
        secret: None,
        accounts: Vec::new(),
        answers: answers.iter().copied().collect(),
        writes: Vec::new(),
        objects: BTreeMap::new(),
        statuses: 0,
        events: Vec::new(),
        slow: false,
        writers: BTreeSet::new(),
        agents: BTreeSet::new(),
    }))
}

struct Stand {
    keeper: Keeper,
    shared: Shared,
    leads: Arc<std::sync::atomic::AtomicBool>,
    driver: mpsc::Receiver<driver::Input>,
}

impl Stand {
    /// A keeper that knows one stale Pod on a host that holds the image, with scripted answers to its writes.
    fn new(phase: &str, answers: &[Answer]) -> Self {
        let shared = shared(phase, answers);
        let client = fake(&shared);
        Self::with(phase, shared, client, Duration::from_mins(1))
    }

    /// A keeper whose term lasts for `left` at each write.
    fn with(phase: &str, shared: Shared, client: Client, left: Duration) -> Self {
        let leads = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let may = leads.clone();
        let (driver, inbox) = mpsc::channel(64);
        let keeper = Keeper::new(Parts {
            config: Config {
                namespaces: Vec::new(),
                default_gate: GateMode::None,
                instance: "test".into(),
            },
            client,
            may_write: Arc::new(move || {
                may.load(std::sync::atomic::Ordering::Relaxed)
                    .then_some(left)
            }),
            driver,
            registries: Arc::new(Registries::new(Origin::default()).unwrap()),
            guarded: watch::channel(Guarded::default()).1,
            metrics: Metrics::new(&mut prometheus_client::registry::Registry::default()),
        });
        let node = the_node();
        let prepull = the_prepull();
        let mut this = Self {
            keeper,
            shared,
            leads,
            driver: inbox,
        };
        for (kind, objects) in [
            (Kind::Nodes, vec![node]),
            (Kind::PrePulls, vec![prepull]),
            (Kind::Pods, vec![the_pod(phase)]),
            (Kind::RunnerPools, Vec::new()),
        ] {
            this.see(kind, Seen::Listing);
            for object in objects {
                this.see(kind, Seen::Applied(Box::new(dynamic(&object))));
            }
            this.see(kind, Seen::Listed);
        }
        this.hold();
        this.resolve(digest());
        this
    }

    fn now(&self) -> Now {
        self.keeper.clock.now()
    }

    /// Tells the gate something that isn't about an object.
    fn tell(&mut self, event: gate::Event) {
        let now = self.now();
        self.keeper.gating.tell(now, event);
    }

    fn act(&mut self) {
        let now = self.now();
        self.keeper.act(now);
    }

    /// Runs the work of every second.
    fn keep_up(&mut self) {
        let now = self.now();
        self.keeper.keep_up(now);
    }

    /// Forgets what this coordinator learned, as if another one took over.
    fn forget(&mut self) {
        self.keeper.images = Resolving::default();
        self.keeper.statuses = Statuses::new();
        self.keeper.notes = Notes::default();
    }

    /// Tells the gate that the host looked and holds the image.
    fn hold(&mut self) {
        let holdings = [(digest(), ["r.test/i:2".to_owned()].into())].into();
        self.tell(gate::Event::Holds(
            "mac-0".parse().unwrap(),
            holdings,
            Duration::ZERO,
        ));
    }

    /// Resolves the image, as if the registry had answered.
    fn resolve(&mut self, digest: Digest) {
        let key = ObjectKey::new("ns", "pool");
        let gate = self.keeper.gating.gate(&key).unwrap();
        let facts = &self.keeper.index.prepulls[&key];
        let hosts = ["mac-0".parse().unwrap()].into();
        let mut shown = gate.for_gate(&self.keeper.index, facts, hosts);
        shown.digest = Some(digest);
        self.tell(gate::Event::PrePull(key.prepull_id(), shown));
        let host = "mac-0".parse().unwrap();
        assert_eq!(self.keeper.gating.presence(&key, &host), Some(Held::Fresh));
        self.act();
    }

    /// The status that would be written now.
    fn status(&mut self) -> ImagePrePullStatus {
        let (key, now) = (ObjectKey::new("ns", "pool"), self.now());
        let stands = self
            .keeper
            .stands(now, &key, &self.keeper.index.prepulls[&key]);
        stands.unwrap().status
    }

    /// The Pod as operators see it.
    fn pod(&self) -> PodView {
        let shown = self.keeper.shown(self.now());
        show::pod(shown, &ObjectKey::new("ns", "p")).unwrap()
    }

    fn see(&mut self, kind: Kind, seen: Seen) {
        let scope = Scope {
            kind,
            namespace: None,
        };
        self.keeper.due = Instant::now() + Duration::from_hours(1);
        self.keeper.apply(Input::Seen(scope, seen));
    }

    /// Shows the keeper the Pod as the watch would show it now.
    fn watch(&mut self) {
        let pod = self.shared.lock().unwrap().pod.clone();
        match pod {
            Some(pod) => self.see(Kind::Pods, Seen::Applied(Box::new(dynamic(&pod)))),
            None => self.see(
                Kind::Pods,
                Seen::Gone(Box::new(dynamic(&the_pod("Pending")))),
            ),
        }
    }

    /// Waits until every job under way has ended.
    async fn settle(&mut self) {
        while let Some(job) = self.keeper.jobs.next().await {
            self.keeper.due = Instant::now() + Duration::from_hours(1);
            self.keeper.apply(job.unwrap());
        }
    }

    /// Moves the gate's clock forward, in steps that are shorter than the time for which a host's report counts.
    async fn pass(&mut self, mut time: Duration) {
        while !time.is_zero() {
            let step = time.min(Duration::from_secs(10));
            time -= step;
            self.keeper.clock.skip(step);
            self.keeper.due = Instant::now() + Duration::from_hours(1);
            self.keeper.apply(Input::Tick);
            self.hold();
            self.act();
            self.settle().await;
        }
    }

    /// Moves the clocks of gate and Events forward once, and runs the work of a second.
    async fn tick(&mut self, time: Duration) {
        self.keeper.clock.skip(time);
        self.keeper.notes.age(time);
        self.keep_up();
        self.act();
        self.settle().await;
    }

    fn events(&self) -> Vec<(String, String)> {
        self.shared.lock().unwrap().events.clone()
    }

    /// The condition of this type that would be written now: status, reason, message.
    fn condition(&mut self, type_: &str) -> (String, String, String) {
        let status = self.status();
        let found = status.conditions.iter().find(|c| c.type_ == type_).unwrap();
        (
            found.status.clone(),
            found.reason.clone(),
            found.message.clone(),
        )
    }

    /// The last message to the driver: the number of hosts that stage, and of hosts that keep what they have.
    fn placed(&mut self) -> Option<(usize, usize)> {
        let mut last = None;
        while let Ok(input) = self.driver.try_recv() {
            if let driver::Input::Asked(Ask::Place { wants, .. }) = input {
                let count = |wants: &[driver::Placed]| {
                    let hosts = wants.iter().flat_map(|placed| &placed.want.hosts);
                    let paused = wants.iter().map(|placed| placed.paused.len());
                    (hosts.map(BTreeSet::len).sum(), paused.sum())
                };
                last = Some(count(&wants));
            }
        }
        last
    }

    /// Makes the host a member of the fleet.
    fn enrol(&mut self) {
        let host = crate::view::HostView {
            host: "mac-0".into(),
            connected: true,
            ..crate::view::HostView::default()
        };
        let hosts = [("mac-0".parse().unwrap(), Arc::new(host))].into();
        let view = View {
            hosts,
            ..View::default()
        };
        self.keeper.apply(Input::View(Arc::new(view)));
    }

    /// Shows the ImagePrePull with these fields in its spec.
    fn edit(&mut self, spec: &Value, generation: i64) {
        let mut prepull = the_prepull();
        for (field, value) in spec.as_object().unwrap() {
            prepull["spec"][field] = value.clone();
        }
        prepull["metadata"]["generation"] = generation.into();
        self.see(Kind::PrePulls, Seen::Applied(Box::new(dynamic(&prepull))));
        self.keep_up();
    }

    /// The registry answers with this image.
    fn answer(&mut self, image: &str, want: Want) {
        self.keeper.apply(resolved(image, Ok(want)));
        self.keep_up();
    }

    fn writes(&self) -> Vec<String> {
        self.shared.lock().unwrap().writes.clone()
    }

    fn is_labelled(&self) -> bool {
        let fake = self.shared.lock().unwrap();
        let pod: Pod = serde_json::from_value(fake.pod.clone().unwrap()).unwrap();
        let labels = pod.metadata.labels.unwrap();
        labels
            .get(crate::cluster::crd::DRAIN_LABEL)
            .is_some_and(|value| value == "true")
    }
}

/// The registry's answer about this image.
fn resolved(image: &str, result: Result<Want, UnresolvedReason>) -> Input {
    let key = ObjectKey::new("ns", "pool");
    let result = result.map_err(|reason| Unresolved {
        message: reason.as_str().to_owned(),
        reason,
    });
    Input::Resolved(Box::new(Resolved {
        key,
        reference: image.to_owned(),
        result,
    }))
}

fn digest() -> Digest {
    format!("sha256:{}", "0".repeat(64)).parse().unwrap()
}

fn dynamic(value: &Value) -> DynamicObject {
    serde_json::from_value(value.clone()).unwrap()
}
