//! The keeper with an API server that answers as it is told: every write is cut between decision and answer.

use std::{collections::VecDeque, sync::Mutex};

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
use rollout::presence::Held;
use serde_json::{Value, json};

use super::*;
use crate::config::Origin;

mod owners;
mod told;

/// How one write is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// It is done.
    Done,
    /// It is done, but nobody hears of it.
    DoneUnheard,
    /// It isn't done, and nobody hears of it.
    Unheard,
    /// It isn't done, with this status.
    Status(u16),
    /// It is done, with this status all the same.
    DoneStatus(u16),
    /// It isn't done, and the answer never comes.
    Silence,
}

/// One Pod, and how writes on it are answered; after the last answer all are done.
#[derive(Debug)]
struct Fake {
    pod: Option<Value>,
    /// What the pull Secret holds, or the status that is answered instead.
    secret: Option<Result<String, u16>>,
    /// ServiceAccounts, as metadata.
    accounts: Vec<Value>,
    answers: VecDeque<Answer>,
    writes: Vec<String>,
    /// Objects that are read by path, or the status that is answered instead.
    objects: BTreeMap<String, Result<Value, u16>>,
    /// How often a status was written.
    statuses: usize,
    /// Events that were written: reason and note.
    events: Vec<(String, String)>,
    /// Events and labels of Nodes are never answered.
    slow: bool,
    /// Who wrote, by what each request says of itself: its query, and its User-Agent.
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

/// The same behind a port, reached as the program reaches an API server.
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
        // as a definition that knows nothing of it
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
    // who obeyed it would try again at once
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
    /// A keeper that knows one stale Pod on a host that holds the image, and answers for its writes.
    fn new(phase: &str, answers: &[Answer]) -> Self {
        let shared = shared(phase, answers);
        let client = fake(&shared);
        Self::with(phase, shared, client, Duration::from_mins(1))
    }

    /// As much of the term is left at each write.
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

    /// The host looked, and holds the image.
    fn hold(&mut self) {
        let holdings = [(digest(), ["r.test/i:2".to_owned()].into())].into();
        let event = gate::Event::Holds("mac-0".parse().unwrap(), holdings, Duration::ZERO);
        let now = self.keeper.clock.now();
        self.keeper.gate.handle(now, event);
    }

    /// As if the registry had answered.
    fn resolve(&mut self, digest: Digest) {
        let key = ObjectKey::new("ns", "pool");
        let rule = self.keeper.rules[&key.pool()].clone();
        let facts = &self.keeper.index.prepulls[&key];
        let mut pool = rule.pool(facts, ["mac-0".parse().unwrap()].into());
        pool.digest = Some(digest);
        let now = self.keeper.clock.now();
        self.keeper
            .gate
            .handle(now, gate::Event::Pool(key.pool(), pool));
        let host = "mac-0".parse().unwrap();
        assert_eq!(
            self.keeper.gate.presence(&key.pool(), &host),
            Some(Held::Fresh)
        );
        self.keeper.act();
    }

    fn see(&mut self, kind: Kind, seen: Seen) {
        let scope = Scope {
            kind,
            namespace: None,
        };
        self.keeper.due = Instant::now() + Duration::from_hours(1);
        self.keeper.apply(Input::Seen(scope, seen));
    }

    /// What the watch would show now.
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

    /// Ends every job that is under way.
    async fn settle(&mut self) {
        while let Some(job) = self.keeper.jobs.join_next().await {
            self.keeper.due = Instant::now() + Duration::from_hours(1);
            self.keeper.apply(job.unwrap());
        }
    }

    /// The gate's clock goes on, in steps that are shorter than a host's word counts.
    async fn pass(&mut self, mut time: Duration) {
        while !time.is_zero() {
            let step = time.min(Duration::from_secs(10));
            time -= step;
            self.keeper.clock.started -= step;
            self.keeper.due = Instant::now() + Duration::from_hours(1);
            self.keeper.apply(Input::Tick);
            self.hold();
            self.keeper.act();
            self.settle().await;
        }
    }

    /// Time passes for the keeper too: what it does every second is done, and what follows from it.
    async fn tick(&mut self, time: Duration) {
        self.keeper.clock.started -= time;
        for (_, since) in self.keeper.notes.waiting_mut() {
            *since -= time;
        }
        self.keeper.keep_up();
        self.keeper.act();
        self.settle().await;
    }

    fn events(&self) -> Vec<(String, String)> {
        self.shared.lock().unwrap().events.clone()
    }

    /// The condition of this type as it would be written now: status, reason, message.
    fn condition(&mut self, type_: &str) -> (String, String, String) {
        let key = ObjectKey::new("ns", "pool");
        let status = self.keeper.status_of(&key).unwrap().0;
        let found = status.conditions.iter().find(|c| c.type_ == type_).unwrap();
        (
            found.status.clone(),
            found.reason.clone(),
            found.message.clone(),
        )
    }

    /// What the driver was told last to stage: hosts that go on, and hosts that keep what they have.
    fn placed(&mut self) -> Option<(usize, usize)> {
        let mut last = None;
        while let Ok(input) = self.driver.try_recv() {
            if let driver::Input::Asked(driver::Ask::Place { wants, .. }) = input {
                let count = |wants: &[driver::Placed]| {
                    let hosts = wants.iter().flat_map(|placed| &placed.want.hosts);
                    let held = wants.iter().map(|placed| placed.held.len());
                    (hosts.map(BTreeSet::len).sum(), held.sum())
                };
                last = Some(count(&wants));
            }
        }
        last
    }

    /// The host enrolled.
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

    /// The ImagePrePull with this in its spec.
    fn edit(&mut self, spec: &Value, generation: i64) {
        let mut prepull = the_prepull();
        for (field, value) in spec.as_object().unwrap() {
            prepull["spec"][field] = value.clone();
        }
        prepull["metadata"]["generation"] = generation.into();
        self.see(Kind::PrePulls, Seen::Applied(Box::new(dynamic(&prepull))));
        self.keeper.keep_up();
    }

    /// The registry answered so.
    fn answer(&mut self, image: &str, want: crate::wants::Want) {
        let key = ObjectKey::new("ns", "pool");
        let resolved = stage::Resolved::of(key, image, Ok(want));
        self.keeper.apply(Input::Resolved(Box::new(resolved)));
        self.keeper.keep_up();
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

fn digest() -> Digest {
    format!("sha256:{}", "0".repeat(64)).parse().unwrap()
}

fn dynamic(value: &Value) -> DynamicObject {
    serde_json::from_value(value.clone()).unwrap()
}

#[tokio::test]
async fn a_label_is_written_once_and_its_answer_is_believed_before_the_watch() {
    let mut stand = Stand::new("Running", &[]);
    stand.settle().await;
    assert_eq!(stand.writes(), ["PATCH Done"]);
    assert!(stand.is_labelled());
    // the watch is behind: what it shows is older than the answer
    stand.see(
        Kind::Pods,
        Seen::Applied(Box::new(dynamic(&the_pod("Running")))),
    );
    stand.pass(Duration::from_secs(5)).await;
    stand.watch();
    stand.pass(Duration::from_secs(90)).await;
    assert_eq!(stand.writes(), ["PATCH Done"]);
}

#[tokio::test]
async fn a_label_that_is_refused_is_decided_anew_after_a_moment() {
    for code in [400, 403, 404, 409, 422, 429] {
        let mut stand = Stand::new("Running", &[Answer::Status(code)]);
        stand.settle().await;
        assert!(!stand.is_labelled());
        stand.pass(Duration::from_millis(200)).await;
        assert_eq!(stand.writes().len(), 1, "{code}: it waits");
        stand.pass(Duration::from_secs(2)).await;
        stand.settle().await;
        assert!(stand.is_labelled(), "{code}: {:?}", stand.writes());
        assert_eq!(stand.writes().len(), 2);
    }
}

#[tokio::test]
async fn a_label_whose_answer_is_lost_keeps_its_room_until_what_is_seen_tells() {
    for answer in [Answer::Unheard, Answer::Status(500), Answer::Status(504)] {
        let mut stand = Stand::new("Running", &[answer]);
        stand.settle().await;
        // it may have been done: no second Pod takes the place, and this one isn't written to again
        stand.pass(Duration::from_secs(20)).await;
        assert_eq!(stand.writes().len(), 1, "{answer:?}");
        stand.pass(Duration::from_secs(20)).await;
        assert!(stand.is_labelled(), "{answer:?}: {:?}", stand.writes());
        assert_eq!(stand.writes().len(), 2);
    }
    let mut stand = Stand::new("Running", &[Answer::DoneUnheard]);
    stand.settle().await;
    stand.watch();
    stand.pass(Duration::from_secs(90)).await;
    assert!(stand.is_labelled());
    assert_eq!(stand.writes().len(), 1);
}

#[tokio::test]
async fn a_label_that_was_put_on_and_answered_badly_is_sent_once_and_keeps_its_room() {
    for code in [503, 504] {
        let stop = CancellationToken::new();
        let shared = shared("Running", &[Answer::DoneStatus(code)]);
        let (client, mut server) = served(&shared, &stop).await;
        let mut stand = Stand::with("Running", shared, client, Duration::from_mins(1));
        stand.settle().await;
        // sent again by itself it would be refused as old, and its place given to another Pod before the label is seen
        assert_eq!(stand.writes().len(), 1, "{:?}", stand.writes());
        let pool = ObjectKey::new("ns", "pool").pool();
        let status = stand.keeper.gate.status(&pool).unwrap();
        assert_eq!((status.in_flight, status.reserved), (0, 1));
        stand.watch();
        let status = stand.keeper.gate.status(&pool).unwrap();
        assert_eq!((status.in_flight, status.reserved), (1, 0));
        stand.pass(Duration::from_secs(90)).await;
        assert_eq!(stand.writes().len(), 1);
        stop.cancel();
        server.join_next().await;
    }
}

#[tokio::test]
async fn a_watch_that_is_told_to_come_later_is_blind_until_it_sees() {
    for code in [429, 503, 504] {
        let stop = CancellationToken::new();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let busy = Router::new().fallback(move || async move { failure(code) });
        let mut tasks = JoinSet::new();
        tasks.spawn(crate::serve::serve(listener, None, busy, stop.clone()));
        let config = kube::Config::new(format!("http://{address}").parse().unwrap());
        let client = crate::cluster::access::client(config).unwrap();
        let (seen, mut sights) = mpsc::channel(8);
        let scope = Scope {
            kind: Kind::Pods,
            namespace: None,
        };
        tasks.spawn(follow(client, scope, seen, stop.clone()));
        let mut sight = async || sights.recv().await.map(|(_, sight)| sight);
        assert!(matches!(sight().await, Some(Seen::Listing)));
        assert!(
            matches!(sight().await, Some(Seen::Blind { absent: false, .. })),
            "{code}"
        );
        stop.cancel();
        while tasks.join_next().await.is_some() {}
    }
}

#[tokio::test]
async fn no_write_is_waited_for_beyond_the_term() {
    let shared = shared("Running", &[Answer::Silence]);
    let client = fake(&shared);
    let mut stand = Stand::with("Running", shared, client, Duration::from_millis(20));
    let begun = Instant::now();
    stand.settle().await;
    assert!(begun.elapsed() < Duration::from_secs(4));
    // it may have been done
    let pool = ObjectKey::new("ns", "pool").pool();
    let status = stand.keeper.gate.status(&pool).unwrap();
    assert_eq!((status.in_flight, status.reserved), (0, 1));
}

#[tokio::test]
async fn a_pod_that_is_gone_or_made_anew_under_the_write_is_let_go() {
    let mut stand = Stand::new("Running", &[Answer::Status(404)]);
    stand.settle().await;
    stand.shared.lock().unwrap().pod = None;
    stand.watch();
    stand.pass(Duration::from_secs(90)).await;
    assert_eq!(stand.writes().len(), 1);
    assert!(stand.keeper.pods_told.is_empty() && stand.keeper.pod_keys.is_empty());
}

#[tokio::test]
async fn a_pending_pod_is_reaped_whatever_becomes_of_the_answer() {
    for answer in [
        Answer::Done,
        Answer::DoneUnheard,
        Answer::Unheard,
        Answer::Status(404),
        Answer::Status(409),
        Answer::Status(429),
        Answer::Status(500),
    ] {
        let mut stand = Stand::new("Pending", &[answer]);
        stand.settle().await;
        if answer == Answer::Status(404) {
            // what was to be deleted is gone: it isn't asked for again
            assert!(stand.keeper.index.pods.is_empty());
            continue;
        }
        stand.watch();
        stand.pass(Duration::from_secs(40)).await;
        stand.watch();
        assert!(stand.shared.lock().unwrap().pod.is_none(), "{answer:?}");
        let tries = stand.writes().len();
        let once = matches!(answer, Answer::Done | Answer::DoneUnheard);
        assert_eq!(tries, if once { 1 } else { 2 }, "{answer:?}");
        stand.pass(Duration::from_secs(90)).await;
        assert_eq!(stand.writes().len(), tries);
    }
}

#[tokio::test]
async fn who_does_not_lead_any_more_writes_nothing() {
    let mut stand = Stand::new("Running", &[]);
    // the lease is lost between the decision and the write
    stand
        .leads
        .store(false, std::sync::atomic::Ordering::Relaxed);
    stand.settle().await;
    stand.pass(Duration::from_secs(90)).await;
    assert_eq!(stand.writes(), Vec::<String>::new());
    assert!(!stand.is_labelled());
}

#[tokio::test]
async fn what_was_staged_is_kept_while_it_is_paused_resolved_anew_or_unselected_for_a_while() {
    let mut stand = Stand::new("Running", &[]);
    let image = || crate::wants::tests::want("image", 1, 1 << 20);
    stand.enrol();
    stand.edit(&json!({}), 1);
    stand.answer("r.test/i:2", image());
    assert_eq!(stand.placed(), Some((1, 0)));
    stand.edit(&json!({ "paused": true }), 2);
    assert_eq!(stand.placed(), Some((0, 1)));
    stand.edit(&json!({}), 3);
    assert_eq!(stand.placed(), Some((1, 0)));

    // another name of the same image
    let renamed = json!({ "image": "r.test/i:3" });
    stand.edit(&renamed, 4);
    assert_eq!(stand.placed(), Some((0, 1)));
    stand.answer("r.test/i:3", image());
    assert_eq!(stand.placed(), Some((1, 0)));

    // the Node is made anew
    stand.see(Kind::Nodes, Seen::Gone(Box::new(dynamic(&the_node()))));
    stand.keeper.keep_up();
    assert_eq!(stand.placed(), Some((0, 1)));
    stand.see(Kind::Nodes, Seen::Applied(Box::new(dynamic(&the_node()))));
    stand.keeper.keep_up();
    assert_eq!(stand.placed(), Some((1, 0)));

    // another image takes its place: the old one is let go when that is known
    stand.edit(&json!({ "image": "r.test/i:4" }), 5);
    assert_eq!(stand.placed(), Some((0, 1)));
    stand.answer("r.test/i:4", crate::wants::tests::want("other", 1, 1 << 20));
    assert_eq!(stand.placed(), Some((1, 0)));

    // not selected for long
    stand.edit(
        &json!({ "image": "r.test/i:4", "nodeSelector": { "matchLabels": { "a": "c" } } }),
        6,
    );
    assert_eq!(stand.placed(), Some((0, 1)));
    for left in stand.keeper.left.values_mut() {
        left.age(stage::KEPT_FOR);
    }
    stand.keeper.keep_up();
    assert_eq!(stand.placed(), Some((0, 0)));
    stand.keeper.keep_up();
    assert_eq!(stand.placed(), None, "and it stays so");
}

#[tokio::test]
async fn what_is_staged_once_is_staged_again_where_a_roll_needs_it() {
    for (image, wanted) in [("r.test/i:2", 1), ("r.test/i:1", 0)] {
        let mut stand = Stand::new("Running", &[]);
        stand.enrol();
        // a Node that came later, or whose image was pruned
        let mut prepull = the_prepull();
        prepull["metadata"]["generation"] = 1.into();
        prepull["spec"]["completionPolicy"] = "Once".into();
        prepull["spec"]["image"] = image.into();
        prepull["status"] = json!({
            "observedGeneration": 1,
            "digest": crate::wants::tests::want("image", 1, 1 << 20).digest().to_string(),
            "stagedAt": "2020-01-01T00:00:00Z",
            "startedAt": "2020-01-01T00:00:00Z",
        });
        stand.keeper.stages.clear();
        stand.see(Kind::PrePulls, Seen::Applied(Box::new(dynamic(&prepull))));
        stand.keeper.keep_up();
        stand.answer(image, crate::wants::tests::want("image", 1, 1 << 20));
        let rolls = stand
            .keeper
            .gate
            .rolls(&ObjectKey::new("ns", "pool").pool());
        assert_eq!(rolls, wanted == 1);
        assert_eq!(stand.placed(), Some((wanted, 0)), "{image}");
    }
}

#[tokio::test]
async fn a_new_leader_goes_on_by_the_digest_of_the_one_before_while_the_registry_is_away() {
    let mut stand = Stand::new("Running", &[Answer::Status(429)]);
    stand.settle().await;
    stand.enrol();
    let key = ObjectKey::new("ns", "pool");
    let mut prepull = the_prepull();
    prepull["metadata"]["generation"] = 3.into();
    prepull["status"] = json!({
        "observedGeneration": 3,
        "digest": digest().to_string(),
        "sizeBytes": 7,
        "startedAt": "2020-01-01T00:00:00Z",
    });
    // what this coordinator learned itself is forgotten
    stand.keeper.stages.clear();
    stand.see(Kind::PrePulls, Seen::Applied(Box::new(dynamic(&prepull))));
    stand.keeper.keep_up();
    let facts = |stand: &Stand| stand.keeper.digest_of(&key, "r.test/i:2");
    assert_eq!(facts(&stand), Some(digest()));
    for _ in 0..3 {
        let failed = stage::Resolved::of(key.clone(), "r.test/i:2", Err("RegistryFailed"));
        stand.keeper.apply(Input::Resolved(Box::new(failed)));
        stand.keeper.keep_up();
        assert_eq!(facts(&stand), Some(digest()));
    }
    let status = stand.keeper.status_of(&key).unwrap().0;
    let text = digest().to_string();
    assert_eq!(status.digest.as_ref(), Some(&text));
    assert_eq!(status.size_bytes, Some(7));
    // hosts that hold it let their Pods go
    stand.keeper.jobs.detach_all();
    stand.pass(Duration::from_secs(40)).await;
    assert!(stand.is_labelled());
    assert_eq!(stand.writes().len(), 2);
    // another image is another digest
    stand.edit(&json!({ "image": "r.test/i:3" }), 4);
    assert_eq!(stand.keeper.digest_of(&key, "r.test/i:3"), None);
}

#[tokio::test]
async fn a_start_counts_as_staged_by_what_the_pod_met_on_its_node() {
    for (there, expected) in [(true, (1, 0)), (false, (0, 1))] {
        let mut stand = Stand::new("Running", &[]);
        let pod = |version: &str, node: Option<&str>, phase: &str| {
            let mut pod = the_pod(phase);
            pod["metadata"]["name"] = "q".into();
            pod["metadata"]["uid"] = "q".into();
            pod["metadata"]["resourceVersion"] = version.into();
            pod["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z".into();
            pod["spec"]["containers"][0]["image"] = "r.test/i:2".into();
            pod["spec"]["nodeName"] = json!(node);
            Seen::Applied(Box::new(dynamic(&pod)))
        };
        let holds = |stand: &mut Stand, there: bool| {
            let holdings = match there {
                true => [(digest(), ["r.test/i:2".to_owned()].into())].into(),
                false => BTreeMap::new(),
            };
            let event = gate::Event::Holds("mac-0".parse().unwrap(), holdings, Duration::ZERO);
            let now = stand.keeper.clock.now();
            stand.keeper.gate.handle(now, event);
        };
        holds(&mut stand, there);
        stand.see(Kind::Pods, pod("20", None, "Pending"));
        stand.see(Kind::Pods, pod("21", Some("mac-0"), "Pending"));
        // it pulls, or somebody prunes: neither changes what it met
        holds(&mut stand, !there);
        stand.see(Kind::Pods, pod("22", Some("mac-0"), "Pending"));
        stand.see(Kind::Pods, pod("23", Some("mac-0"), "Running"));
        assert_eq!(stand.keeper.metrics.provisions(), expected);
        stand.see(Kind::Pods, pod("24", Some("mac-0"), "Running"));
        assert_eq!(stand.keeper.metrics.provisions(), expected, "once");
    }
}

#[tokio::test]
async fn a_pull_secret_is_read_again_and_its_trouble_told_until_it_is_over() {
    let mut stand = Stand::new("Running", &[]);
    stand.enrol();
    let key = ObjectKey::new("ns", "pool");
    let named = "ns/pull".to_owned();
    let config = |password: &str| {
        Ok(format!(
            r#"{{"auths":{{"r.test":{{"username":"u","password":"{password}"}}}}}}"#
        ))
    };
    stand.shared.lock().unwrap().secret = Some(config("one"));
    stand.edit(&json!({ "pullSecretRef": { "name": "pull" } }), 1);
    stand.answer("r.test/i:2", crate::wants::tests::want("image", 1, 1 << 20));
    let look = async |stand: &mut Stand, secret| {
        // the registry is no part of this
        stand.keeper.jobs.detach_all();
        stand.shared.lock().unwrap().secret = secret;
        stand.keeper.secrets = secrets::Secrets::default();
        stand.keeper.read_secrets();
        stand.settle().await;
        let known = stand.keeper.registries.knows(&named);
        let status = stand.keeper.status_of(&key).unwrap().0;
        let degraded = status.conditions.iter().find(|c| c.type_ == "Degraded");
        (known, degraded.unwrap().reason == "PullSecret")
    };
    assert_eq!(look(&mut stand, Some(config("one"))).await, (true, false));
    // what can't be read for now is what it was
    assert_eq!(look(&mut stand, Some(Err(503))).await, (true, true));
    assert_eq!(look(&mut stand, Some(config("two"))).await, (true, false));
    assert_eq!(look(&mut stand, Some(Ok("{".into()))).await, (false, true));
    assert_eq!(look(&mut stand, Some(config("two"))).await, (true, false));
    assert_eq!(look(&mut stand, None).await, (false, true));
    assert_eq!(look(&mut stand, Some(config("two"))).await, (true, false));
    // nobody names it any more
    stand.edit(&json!({}), 2);
    assert!(!stand.keeper.registries.knows(&named));
}

fn the_account(name: &str, owner: &str, created: &str) -> Value {
    json!({
        "name": name,
        "namespace": "ns",
        "uid": format!("uid of {name}"),
        "resourceVersion": "3",
        "creationTimestamp": created,
        "ownerReferences": [{ "apiVersion": "x/v1", "kind": "X", "name": "x", "uid": owner }],
    })
}

fn owned_pod(phase: &str) -> Value {
    let mut pod = the_pod(phase);
    pod["metadata"]["ownerReferences"] =
        json!([{ "apiVersion": "x/v1", "kind": "X", "name": "x", "uid": "owner" }]);
    pod
}

#[tokio::test]
async fn an_account_that_a_cut_left_behind_goes_when_nobody_can_need_it() {
    const OLD: &str = "2020-01-01T00:00:00Z";
    let mut stand = Stand::new("Running", &[Answer::Status(429)]);
    stand.settle().await;
    stand.see(
        Kind::Pods,
        Seen::Applied(Box::new(dynamic(&owned_pod("Running")))),
    );
    let now = Timestamp::now().to_string();
    stand.shared.lock().unwrap().accounts = vec![
        the_account("left", "owner", OLD),
        the_account("young", "owner", &now),
        the_account("foreign", "somebody", OLD),
        // the Pod of this name is there
        the_account("p", "owner", OLD),
    ];
    let look = async |stand: &mut Stand| {
        stand.keeper.accounts.due = None;
        stand.keeper.sweep_accounts();
        stand.settle().await;
        stand.shared.lock().unwrap().accounts.len()
    };
    assert_eq!(look(&mut stand).await, 4, "its Pod may be about to be seen");
    stand.shared.lock().unwrap().answers = [Answer::Status(500)].into();
    assert_eq!(look(&mut stand).await, 4);
    assert_eq!(look(&mut stand).await, 4, "it is seen alone anew");
    assert_eq!(look(&mut stand).await, 3);
    assert_eq!(look(&mut stand).await, 3);
    assert_eq!(look(&mut stand).await, 3);
    let writes = stand.writes();
    assert_eq!(
        writes[1..],
        ["DELETE left Status(500)", "DELETE left Done"],
        "{writes:?}"
    );
}

#[tokio::test]
async fn an_account_outlives_its_pod_no_longer_than_the_term_allows() {
    // the lease is lost between the Pod's deletion and the account's
    let shared = shared("Pending", &[]);
    shared.lock().unwrap().accounts = vec![the_account("p", "owner", "2020-01-01T00:00:00Z")];
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = asked.clone();
    let may: MayWrite = Arc::new(move || {
        let before = counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        (before < 2).then_some(Duration::from_mins(1))
    });
    let target = Target {
        key: ObjectKey::new("ns", "p"),
        uid: "uid".into(),
        resource_version: "10".into(),
        owner: Some("owner".into()),
    };
    let writer = Writer::new(fake(&shared), may);
    let written = write::pod(writer, target, PodWrite::Reap).await;
    assert_eq!(written.outcome, gate::Outcome::Done);
    assert_eq!(shared.lock().unwrap().writes, ["DELETE Done"]);
    assert_eq!(shared.lock().unwrap().accounts.len(), 1);
}

#[tokio::test]
async fn a_pod_is_told_to_ask_again_while_the_cluster_is_not_known() {
    let mut stand = Stand::new("Running", &[]);
    stand.settle().await;
    stand.watch();
    let drain = |stand: &mut Stand, name: &str| {
        let (reply, mut answer) = tokio::sync::oneshot::channel();
        let key = ObjectKey::new("ns", name);
        let question = Question::Drain { key, reply };
        stand.keeper.apply(Input::Asked(question));
        answer.try_recv().unwrap()
    };
    assert_eq!(drain(&mut stand, "p"), Drain::Leave);
    assert_eq!(drain(&mut stand, "q"), Drain::NoSuchPod);
    let scope = Scope {
        kind: Kind::Pods,
        namespace: None,
    };
    // as a coordinator that has just begun to lead
    stand.keeper.watches.get_mut(&scope).unwrap().listed = false;
    for name in ["p", "q"] {
        assert_eq!(drain(&mut stand, name), Drain::Unknown, "{name}");
    }
}

#[tokio::test]
async fn a_watch_that_sees_nothing_for_long_shuts_the_gate_until_everything_is_listed_anew() {
    let mut stand = Stand::new("Running", &[Answer::Status(429)]);
    stand.settle().await;
    let blind = |error: &str| Seen::Blind {
        error: error.into(),
        absent: false,
    };
    // as a watch that is too old is told: 410 Gone
    stand.see(Kind::Pods, blind("too old resource version"));
    assert!(stand.keeper.synced, "a moment is no harm");
    let scope = Scope {
        kind: Kind::Pods,
        namespace: None,
    };
    let watch = stand.keeper.watches.get_mut(&scope).unwrap();
    watch.blind_since = Some(Instant::now() - BLIND);
    stand.pass(Duration::from_secs(5)).await;
    assert!(!stand.keeper.synced);
    assert_eq!(stand.writes().len(), 1);
    // the Pod went while nobody looked
    stand.see(Kind::Pods, Seen::Listing);
    stand.see(Kind::Pods, Seen::Listed);
    assert!(stand.keeper.synced);
    stand.pass(Duration::from_secs(5)).await;
    assert_eq!(stand.writes().len(), 1);
    assert!(stand.keeper.pods_told.is_empty());
}

#[tokio::test]
async fn a_job_that_panics_ends_the_keeper_and_nothing_waits_for_its_answer() {
    let mut stand = Stand::new("Running", &[]);
    stand.settle().await;
    let (waits, mut answer) = tokio::sync::oneshot::channel::<()>();
    stand.keeper.jobs.spawn(async move {
        let _waits = waits;
        panic!("injected");
    });
    let (_questions, asked) = mpsc::channel(1);
    let (_view, viewed) = watch::channel(Arc::default());
    let (_presence, seen) = watch::channel(Arc::default());
    let shutdown = CancellationToken::new();
    let run = stand.keeper.run(asked, viewed, seen, shutdown.clone());
    let ended = tokio::time::timeout(Duration::from_secs(10), run).await;
    assert!(ended.is_ok(), "it goes on without the answer");
    assert!(!shutdown.is_cancelled());
    assert!(answer.try_recv().is_err());
}

/// The README's sentence, by its name.
#[tokio::test]
async fn a_pod_gets_the_drain_label_only_when_its_node_holds_its_pools_image_verified_by_a_word_at_most_30_s_old_and_fewer_pods_than_the_cap_are_in_flight_and_the_label_is_taken_back_when_presence_is_lost_first()
 {
    let holds = |stand: &mut Stand, holdings: &[(Digest, &str)], age: u64| {
        let holdings = holdings
            .iter()
            .map(|(digest, image)| (*digest, [(*image).to_owned()].into()))
            .collect();
        let age = Duration::from_secs(age);
        let event = gate::Event::Holds("mac-0".parse().unwrap(), holdings, age);
        let now = stand.keeper.clock.now();
        stand.keeper.gate.handle(now, event);
        stand.keeper.act();
    };
    let other = Digest::of(b"other");
    let whole = [(digest(), "r.test/i:2")];
    // not by another digest under its name, nor under another name, nor by an old word, nor by none
    let wrong: [(&[(Digest, &str)], u64); 5] = [
        (&[(other, "r.test/i:2")], 0),
        (&[(digest(), "r.test/i:1")], 0),
        (&whole, 31),
        (&[], 0),
        (&whole, 3_600),
    ];
    for (holdings, age) in wrong {
        let mut stand = Stand::new("Pending", &[Answer::Status(429)]);
        stand.settle().await;
        holds(&mut stand, holdings, age);
        let running = the_pod("Running");
        stand.shared.lock().unwrap().pod = Some(running.clone());
        stand.see(Kind::Pods, Seen::Applied(Box::new(dynamic(&running))));
        for _ in 0..40 {
            stand.keeper.clock.started -= Duration::from_secs(2);
            holds(&mut stand, holdings, age);
            stand.settle().await;
        }
        assert_eq!(stand.writes().len(), 1, "{holdings:?} {age}");
        assert!(!stand.is_labelled());
        // and by a word that stays under 30 s while the test looks
        holds(&mut stand, &whole, 28);
        stand.settle().await;
        let view = stand.keeper.pod_view(&ObjectKey::new("ns", "p"));
        assert!(stand.is_labelled(), "{view:?} {:?}", stand.writes());
        // lost before it drained: the label is taken back
        stand.watch();
        holds(&mut stand, &[(other, "r.test/i:2")], 0);
        stand.settle().await;
        assert!(!stand.is_labelled());
        assert_eq!(
            stand
                .events()
                .iter()
                .filter(|(reason, _)| reason == "DrainWithdrawn")
                .count(),
            1
        );
    }
    // fewer than the cap: of two Pods that could go, one does
    let mut stand = Stand::new("Running", &[]);
    let mut second = the_pod("Running");
    second["metadata"]["name"] = "q".into();
    second["metadata"]["uid"] = "q".into();
    stand.see(Kind::Pods, Seen::Applied(Box::new(dynamic(&second))));
    stand.settle().await;
    stand.watch();
    stand.pass(Duration::from_secs(90)).await;
    assert_eq!(stand.writes(), ["PATCH Done"]);
    let status = stand
        .keeper
        .gate
        .status(&ObjectKey::new("ns", "pool").pool())
        .unwrap();
    assert_eq!((status.labelled, status.in_flight, status.cap), (1, 1, 1));
}

/// Events and Node labels that the API server takes slowly, more of each than may be under way at one time.
#[tokio::test]
async fn a_drain_label_waits_for_no_other_write() {
    let mut stand = Stand::new("Running", &[Answer::Done]);
    // what the gate wants on its own is out of the way
    stand.keeper.jobs.abort_all();
    while stand.keeper.jobs.join_next().await.is_some() {}
    stand.shared.lock().unwrap().slow = true;
    let key = ObjectKey::new("ns", "p");
    for _ in 0..64 {
        let write = PodWrite::Label("drain".into());
        stand.keeper.note_written(&key, &write, None);
        let work = std::future::pending::<()>();
        stand.keeper.spawn_write(work, |_| Input::Tick);
    }
    // all of them have begun as far as they may
    tokio::task::yield_now().await;
    let before = stand.shared.lock().unwrap().writes.len();
    let id = gate::PodId("uid".into());
    stand.keeper.write_pod(id, None, PodWrite::Label);
    let first = tokio::time::timeout(Duration::from_secs(2), stand.keeper.jobs.join_next());
    let first = first.await.expect("a write on a Pod went through").unwrap();
    assert!(matches!(first, Ok(Input::PodWritten { .. })), "{first:?}");
    assert_eq!(stand.shared.lock().unwrap().writes.len(), before + 1);
}
