//! Tests the whole coordinator in this process, with real sockets on loopback. The tests have hosts that enrol and
//! report as agents do, and a registry that serves manifests.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Mutex, time::Duration};

use axum::{
    Router,
    extract::Path as Segments,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use client::{Client, Target};
use http::{HeaderMap, Method};
use proto::{
    Digest, HostId,
    image::Blob,
    message::{self, CoordinatorOpen, Hello, Order, Report, coordinator_open, order::Kind},
};
use rcgen::KeyPair;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use wire::{Credentials, Endpoint, Receiver, Sender, Settings};

use super::*;
use crate::{
    authority::COORDINATOR,
    cli::LogFormat,
    config::Origin,
    resolve::Registries,
    secret::Secret,
    serve,
    state_dir::StateDirError,
    view::{EnrolReply, HostView, ImageState, ImageView, StageReply, TokenReply},
    wants::tests::manifest,
};

mod enrol;
mod registry;
mod words;

/// How long a test waits: far longer than anything here takes, and far shorter than the time limit of a test run.
const PATIENCE: Duration = Duration::from_secs(20);

/// A registry of manifests: `tag → bytes`, and by digest. Where the counter of tokens is set, the registry needs a
/// bearer token.
#[derive(Clone, Debug, Default)]
struct Registry(
    Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    Option<Arc<std::sync::atomic::AtomicU32>>,
);

impl Registry {
    fn put(&self, tag: &str, manifest: &[u8]) -> Digest {
        let digest = Digest::of(manifest);
        let mut held = self.0.lock().unwrap();
        held.insert(tag.to_owned(), manifest.to_vec());
        held.insert(digest.to_string(), manifest.to_vec());
        digest
    }

    /// Puts a recipe beside an image, under the tag by which registries without a list of artifacts find them.
    fn put_recipe(&self, image: &Digest, recipe: Blob) {
        let kind = proto::recipe::ARTIFACT_TYPE;
        let artifact = json!({
            "schemaVersion": 2,
            "mediaType": proto::image::MANIFEST_TYPE,
            "artifactType": kind,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}").to_string(), "size": 2},
            "layers": [{"mediaType": kind, "digest": recipe.digest.to_string(), "size": recipe.size}],
            "subject": {"mediaType": proto::image::MANIFEST_TYPE, "digest": image.to_string(), "size": 1},
        })
        .to_string();
        let digest = self.put("artifact", artifact.as_bytes());
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": proto::image::MANIFEST_TYPE,
                "artifactType": kind,
                "digest": digest.to_string(),
                "size": artifact.len(),
            }],
        });
        let tag = format!("sha256-{}", image.hex());
        self.put(&tag, index.to_string().as_bytes());
    }

    async fn serve(self, shutdown: CancellationToken) -> (SocketAddr, impl Future<Output = ()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/v2/", get(Self::base))
            .route("/token", get(Self::token))
            .route("/v2/image/manifests/{version}", get(Self::manifest))
            .with_state(self);
        (address, serve::serve(listener, None, router, shutdown))
    }

    async fn manifest(
        State(this): State<Self>,
        Segments(version): Segments<String>,
        headers: HeaderMap,
    ) -> Response {
        if let Some(refusal) = this.refusal(&headers) {
            return refusal;
        }
        let found = this.0.lock().unwrap().get(&version).cloned();
        found.map_or_else(
            || StatusCode::NOT_FOUND.into_response(),
            |bytes| {
                let digest = Digest::of(&bytes).to_string();
                let kind = proto::image::MANIFEST_TYPE.to_owned();
                let headers = [("content-type", kind), ("docker-content-digest", digest)];
                (headers, bytes).into_response()
            },
        )
    }

    async fn base(State(this): State<Self>, headers: HeaderMap) -> Response {
        this.refusal(&headers)
            .unwrap_or_else(|| "{}".into_response())
    }

    fn refusal(&self, headers: &HeaderMap) -> Option<Response> {
        self.1.as_ref()?;
        let host = headers.get("host")?.to_str().ok()?;
        let given = headers
            .get("authorization")
            .and_then(|value| value.to_str().ok());
        if given.is_some_and(|value| value.starts_with("Bearer pull-")) {
            return None;
        }
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"test\"");
        Some((StatusCode::UNAUTHORIZED, [("www-authenticate", challenge)]).into_response())
    }

    /// Gives a token that lives for two seconds to `robot` with the password `secret`.
    async fn token(State(this): State<Self>, headers: HeaderMap) -> Response {
        let right = headers
            .get("authorization")
            .is_some_and(|value| value == "Basic cm9ib3Q6c2VjcmV0");
        match this.1 {
            Some(count) if right => {
                let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                axum::Json(json!({"token": format!("pull-{number}"), "expires_in": 2}))
                    .into_response()
            }
            _ => StatusCode::UNAUTHORIZED.into_response(),
        }
    }
}

/// A coordinator and its registry.
struct World {
    dir: tempfile::TempDir,
    fleet: PathBuf,
    registry: Registry,
    registry_at: SocketAddr,
    running: Option<(Addresses, JoinSet<Result<(), RunError>>)>,
    pin: Digest,
    token: Secret,
    background: JoinSet<()>,
}

impl World {
    async fn new(fleet: &str) -> Self {
        Self::with(fleet, Registry::default()).await
    }

    async fn with(fleet: &str, registry: Registry) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut background = JoinSet::new();
        let (registry_at, serving) = registry.clone().serve(CancellationToken::new()).await;
        background.spawn(serving);
        let path = dir.path().join("fleet.toml");
        let password = dir.path().join("password");
        std::fs::write(&password, "secret\n").unwrap();
        let mut text = format!("{fleet}\n[origin]\nplain_http = ['{registry_at}']\n");
        if registry.1.is_some() {
            text.push_str(&format!(
                "[origin.credentials.'{registry_at}']\nusername = 'robot'\npassword_file = '{}'\n",
                password.display()
            ));
        }
        std::fs::write(&path, text).unwrap();
        let mut this = Self {
            fleet: path,
            dir,
            registry,
            registry_at,
            running: None,
            pin: Digest::of(b""),
            token: crate::secret::random(),
            background,
        };
        this.start().await;
        this
    }

    async fn start(&mut self) {
        let shared = Shared {
            config: Some(self.fleet.clone()),
            state_dir: Some(self.dir.path().join("state")),
            log_format: LogFormat::Text,
            log: String::new(),
        };
        let loopback = Some("127.0.0.1:0".parse().unwrap());
        let run = Run {
            listen: loopback,
            api: loopback,
            admin: loopback,
            ..Run::default()
        };
        let config = Config::load(&shared, &run).unwrap();
        let started = Coordinator::start(config, Some((shared, run)), CancellationToken::new())
            .await
            .unwrap();
        self.pin = started.authority().pin();
        self.token = started.token().clone();
        let addresses = started.addresses().clone();
        let mut running = JoinSet::new();
        running.spawn(started.wait());
        self.running = Some((addresses, running));
    }

    /// Ends the coordinator as a crash does: no task can finish anything.
    async fn crash(&mut self) {
        let (_, mut running) = self.running.take().unwrap();
        running.shutdown().await;
    }

    fn addresses(&self) -> &Addresses {
        &self.running.as_ref().unwrap().0
    }

    fn client(&self) -> Client {
        self.client_with(self.token.clone(), self.pin)
    }

    fn client_with(&self, token: Secret, pin: Digest) -> Client {
        Client::new(Target::new(self.addresses().api.to_string(), pin, token))
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> T {
        self.client()
            .read(Method::GET, path, None::<&()>)
            .await
            .unwrap()
    }

    async fn post<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        body: Value,
    ) -> anyhow::Result<T> {
        let client = self.client();
        Ok(client.read(Method::POST, path, Some(&body)).await?)
    }

    /// The metrics' text, as a scraper reads it.
    async fn metrics(&self) -> String {
        let stream = tokio::net::TcpStream::connect(self.addresses().admin)
            .await
            .unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
                .await
                .unwrap();
        let mut driving = JoinSet::new();
        driving.spawn(connection);
        let request = http::Request::get("/metrics")
            .header("host", "localhost")
            .body(String::new())
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let body = http_body_util::BodyExt::collect(response.into_body())
            .await
            .unwrap()
            .to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    fn reference(&self, tag: &str) -> String {
        format!("{}/image:{tag}", self.registry_at)
    }

    async fn stage(&self, tag: &str) -> anyhow::Result<StageReply> {
        self.post("/v1/images", json!({"reference": self.reference(tag)}))
            .await
    }

    /// Operators don't want the image any more.
    async fn cancel(&self, digest: &Digest) {
        let path = format!("/v1/images/{}", client::segment(&digest.to_string()));
        let cancelled = self.client().call(Method::DELETE, &path, None::<&()>).await;
        cancelled.unwrap();
    }

    async fn image(&self, digest: &Digest) -> ImageView {
        self.get(&format!("/v1/images/sha256%3A{}", digest.hex()))
            .await
    }

    async fn enrol(&self, host: &str) -> (EnrolReply, KeyPair) {
        let token: TokenReply = self
            .post("/v1/tokens", json!({"host": host}))
            .await
            .unwrap();
        let key = KeyPair::generate().unwrap();
        let body = json!({"token": token.token, "csr": csr_pem(&key)});
        (self.post("/v1/enrol", body).await.unwrap(), key)
    }

    /// Enrols and connects an agent.
    async fn agent(&self, host: &str) -> Agent {
        let (reply, key) = self.enrol(host).await;
        assert_eq!(reply.host, host);
        let credentials =
            Credentials::from_pem(&reply.chain, &key.serialize_pem(), &reply.authority).unwrap();
        assert_eq!(credentials.host().as_str(), host);
        Agent::connect(self.addresses().quic, credentials, &[]).await
    }

    async fn until<T>(&self, what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
        let wait = async {
            loop {
                if let Some(found) = check().await {
                    return found;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, wait)
            .await
            .unwrap_or_else(|_| panic!("never came: {what}"))
    }
}

fn csr_pem(key: &KeyPair) -> String {
    rcgen::CertificateParams::default()
        .serialize_request(key)
        .unwrap()
        .pem()
        .unwrap()
}

fn csr_der(key: &KeyPair) -> Vec<u8> {
    let request = rcgen::CertificateParams::default().serialize_request(key);
    request.unwrap().der().to_vec()
}

/// An agent, as far as the coordinator can tell: what it says and hears.
struct Agent {
    endpoint: Endpoint,
    connection: wire::Connection,
    sender: Sender,
    receiver: Receiver,
    credentials: Credentials,
}

impl Agent {
    async fn connect(
        coordinator: SocketAddr,
        credentials: Credentials,
        images: &[message::ImageState],
    ) -> Self {
        let endpoint = Endpoint::bind(
            "127.0.0.1:0".parse().unwrap(),
            credentials.clone(),
            &Settings::default(),
        )
        .unwrap();
        let id: HostId = COORDINATOR.parse().unwrap();
        let connection = endpoint.connect(coordinator, &id).await.unwrap();
        let (mut sender, receiver) = connection.open().await.unwrap();
        let hello = Hello {
            version: "test".into(),
            link_key: vec![1; 32],
            peer_port: u32::from(endpoint.local_addr().unwrap().port()),
            volume: Some(message::Volume {
                total_bytes: 1 << 40,
                free_bytes: 1 << 39,
                floor_bytes: 1 << 30,
                path: "/".into(),
                clones: None,
            }),
            images: images.to_vec(),
            takes_names: true,
            ..Hello::default()
        };
        let open = CoordinatorOpen {
            kind: Some(coordinator_open::Kind::Session(hello)),
        };
        sender.send(&open).await.unwrap();
        Self {
            endpoint,
            connection,
            sender,
            receiver,
            credentials,
        }
    }

    async fn report(&mut self, report: Report) {
        self.sender.send(&report).await.unwrap();
    }

    async fn image(&mut self, image: &Digest, state: message::StageState, held_bytes: u64) {
        let state = image_state(image, state, held_bytes);
        self.report(Report {
            images: vec![state],
            ..Report::default()
        })
        .await;
    }

    /// The next order about names.
    async fn names(&mut self) -> message::Names {
        self.order("names", |kind| match kind {
            Kind::Names(names) => Some(names),
            _ => None,
        })
        .await
    }

    /// Says that the image was found under all these names, after the order about them.
    async fn found(&mut self, image: &Digest, names: message::Names) {
        let mut state = image_state(image, message::StageState::Present, 6 << 20);
        let named = names.names.into_iter().map(|name| name.reference);
        state.ready_references = named.collect();
        self.report(Report {
            images: vec![state],
            names: names.number,
            ..Report::default()
        })
        .await;
    }

    /// Looks after the next order about names, and finds the image under all of them.
    async fn look(&mut self, image: &Digest) {
        let mut names = self.names().await;
        while names.names.is_empty() {
            names = self.names().await;
        }
        self.found(image, names).await;
    }

    /// Waits for the next order for which `pick` returns something; other orders are skipped.
    async fn order<T>(&mut self, what: &str, mut pick: impl FnMut(Kind) -> Option<T>) -> T {
        let wait = async {
            loop {
                let order: Order = self
                    .receiver
                    .receive()
                    .await
                    .unwrap()
                    .expect("session stands");
                if let Some(found) = order.kind.and_then(&mut pick) {
                    return found;
                }
            }
        };
        timeout(PATIENCE, wait)
            .await
            .unwrap_or_else(|_| panic!("never ordered: {what}"))
    }

    async fn stage_order(&mut self) -> message::StageOrder {
        self.order("stage", |kind| match kind {
            Kind::Stage(order) => Some(order),
            _ => None,
        })
        .await
    }

    async fn lease(&mut self) -> Digest {
        self.order("lease", |kind| match kind {
            Kind::Lease(grant) => message::digest(&grant.content).ok(),
            _ => None,
        })
        .await
    }

    /// Waits until the coordinator has ended the session.
    async fn ended(&mut self) {
        let ended = async { while let Ok(Some(_)) = self.receiver.receive::<Order>().await {} };
        timeout(PATIENCE, ended).await.expect("session ends");
    }
}

fn image_state(image: &Digest, state: message::StageState, held_bytes: u64) -> message::ImageState {
    message::ImageState {
        manifest: image.as_bytes().to_vec(),
        state: state.into(),
        held_bytes,
        origin_bytes: held_bytes / 2,
        ..message::ImageState::default()
    }
}

fn two_hosts() -> &'static str {
    "[coordinator]\nlease_timeout_seconds = 1\norigin_streams = 1\n[[hosts]]\nid = 'mini-1'\n[[hosts]]\nid = 'mini-2'\n"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_enrols_stages_reports_and_the_second_stage_is_instant() {
    let world = World::new("[coordinator]\nopen = true").await;
    let digest = world.registry.put("one", &manifest("one", 2, 3 << 20));
    let mut agent = world.agent("mini-1").await;
    world
        .until("mini-1 is connected", async || {
            let hosts: Vec<HostView> = world.get("/v1/hosts").await;
            hosts.first().filter(|host| host.connected).map(drop)
        })
        .await;

    let reply = world.stage("one").await.unwrap();
    assert_eq!(
        (reply.image.state, reply.image.hosts_selected),
        (ImageState::Staging, 1)
    );
    // knowing a digest doesn't give anybody its image: this repository doesn't have the image
    let other = format!("{}/other@{digest}", world.registry_at);
    let refused = world.post::<StageReply>("/v1/images", json!({"reference": other}));
    assert!(refused.await.is_err());
    let order = agent.stage_order().await;
    assert_eq!(Digest::of(&order.manifest), digest);
    assert_eq!(order.references, [world.reference("one")]);
    assert!(order.plain_http && order.token.is_none());
    let names = agent.names().await;
    agent.lease().await;
    agent
        .image(&digest, message::StageState::Staging, 1 << 20)
        .await;
    world
        .until("progress shows", async || {
            (world.image(&digest).await.hosts[0].held_bytes == 1 << 20).then_some(())
        })
        .await;
    agent.found(&digest, names).await;
    let image = world
        .until("it is present", async || {
            Some(world.image(&digest).await).filter(|image| image.state == ImageState::Present)
        })
        .await;
    assert!(image.staged_seconds.is_some() && image.hosts[0].presence_age_ms.is_some());

    // The same digest under another name: nothing moves, and the host gets the name.
    world.registry.put("two", &manifest("one", 2, 3 << 20));
    let (again, ()) = tokio::join!(world.stage("one"), agent.look(&digest));
    assert_eq!(again.unwrap().image.state, ImageState::Present);
    let (renamed, ()) = tokio::join!(world.stage("two"), async {
        let order = agent.stage_order().await;
        assert_eq!(order.references.len(), 2);
        agent.look(&digest).await;
    });
    assert_eq!(renamed.unwrap().image.references.len(), 2);
    world
        .until("it is present under both names", async || {
            (world.image(&digest).await.state == ImageState::Present).then_some(())
        })
        .await;

    // The image is gone, so its presence is withdrawn.
    agent.image(&digest, message::StageState::Gone, 0).await;
    world
        .until("presence is withdrawn", async || {
            (world.image(&digest).await.hosts_present == 0).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_passes_on_when_its_holder_vanishes() {
    let world = World::new(two_hosts()).await;
    world.registry.put("one", &manifest("one", 1, 3 << 20));
    let mut one = world.agent("mini-1").await;
    let mut two = world.agent("mini-2").await;
    world
        .until("both are connected", async || {
            let hosts: Vec<HostView> = world.get("/v1/hosts").await;
            hosts.iter().all(|host| host.connected).then_some(())
        })
        .await;
    world.stage("one").await.unwrap();
    // The whole fleet has one lease at a time: exactly one of the hosts holds it.
    let (content, mut other) = tokio::select! {
        content = one.lease() => { one.endpoint.close("vanishes"); (content, two) }
        content = two.lease() => { two.endpoint.close("vanishes"); (content, one) }
    };
    let passed_on = timeout(PATIENCE, async {
        loop {
            if other.lease().await == content {
                return;
            }
        }
    });
    passed_on.await.expect("the lease passes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wanted_survives_a_crash_and_presence_comes_back_with_the_hosts() {
    let mut world = World::new("[coordinator]\nopen = true").await;
    let digest = world.registry.put("one", &manifest("one", 1, 3 << 20));
    let agent = world.agent("mini-1").await;
    world
        .until("mini-1 is known", async || {
            let hosts: Vec<HostView> = world.get("/v1/hosts").await;
            hosts.first().filter(|host| host.connected).map(drop)
        })
        .await;
    world.stage("one").await.unwrap();
    let bandwidth = json!({"upload_bytes_per_second": 5, "download_bytes_per_second": 0});
    world
        .client()
        .call(Method::PUT, "/v1/bandwidth", Some(&bandwidth))
        .await
        .unwrap();
    let (pin, token) = (world.pin, world.token.clone());
    let credentials = agent.credentials.clone();
    drop(agent);

    world.crash().await;
    world.registry.0.lock().unwrap().clear();
    world.start().await;
    assert_eq!(world.pin, pin);
    assert!(world.token.matches(&token));
    let image = world.image(&digest).await;
    assert_eq!(
        (image.state, image.hosts_selected),
        (ImageState::Staging, 1)
    );
    let here = image_state(&digest, message::StageState::Present, 3 << 20);
    let mut agent = Agent::connect(world.addresses().quic, credentials, &[here]).await;
    let limit = agent
        .order("bandwidth", |kind| match kind {
            Kind::Bandwidth(limits) => Some(limits.upload_bytes_per_second),
            _ => None,
        })
        .await;
    assert_eq!(limit, 5);
    agent.look(&digest).await;
    world
        .until("presence is back", async || {
            (world.image(&digest).await.state == ImageState::Present).then_some(())
        })
        .await;

    world.cancel(&digest).await;
    agent
        .order("cancel", |kind| {
            matches!(kind, Kind::Cancel(_)).then_some(())
        })
        .await;
    world.crash().await;
    world.start().await;
    let images: Vec<ImageView> = world.get("/v1/images").await;
    assert!(images.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_a_stream_that_never_falls_and_ends_with_the_want() {
    let world = World::new("[coordinator]\nopen = true").await;
    let digest = world.registry.put("one", &manifest("one", 1, 10 << 20));
    let mut agent = world.agent("mini-1").await;
    world
        .until("it is staging", async || world.stage("one").await.ok())
        .await;
    let path = format!(
        "/v1/images/{}/events",
        client::segment(&world.reference("one"))
    );
    let mut lines = world.client().lines(&path).await.unwrap();
    let mut held = 0;
    for reported in [3u64, 5, 4, 0, 8] {
        agent
            .image(&digest, message::StageState::Staging, reported << 20)
            .await;
        let due = held.max(reported << 20);
        while held < due {
            let line: ImageView = timeout(PATIENCE, lines.next())
                .await
                .unwrap()
                .unwrap()
                .unwrap();
            assert!(line.hosts[0].held_bytes >= held);
            held = line.hosts[0].held_bytes;
        }
    }
    world.cancel(&digest).await;
    let mut last = None;
    while let Some(line) = timeout(PATIENCE, lines.next::<ImageView>())
        .await
        .unwrap()
        .unwrap()
    {
        last = Some(line.state);
    }
    assert_eq!(last, Some(ImageState::Cancelled));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_progress_is_quiet_when_nothing_but_ages_changes() {
    let world = World::new("[coordinator]\nopen = true").await;
    let digest = world.registry.put("one", &manifest("one", 1, 10 << 20));
    let mut agent = world.agent("mini-1").await;
    world
        .until("it is staging", async || world.stage("one").await.ok())
        .await;
    agent.image(&digest, message::StageState::Staging, 3).await;
    let path = format!("/v1/images/{}/events", client::segment(&digest.to_string()));
    let mut lines = world.client().lines(&path).await.unwrap();
    // the rate of the last seconds changes at first; the host's session stays, and ages grow
    let quiet = async {
        while timeout(Duration::from_secs(2), lines.next::<ImageView>())
            .await
            .is_ok()
        {}
    };
    timeout(PATIENCE, quiet).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_coordinator_on_one_state_refuses_and_metrics_are_served() {
    let world = World::new(two_hosts()).await;
    let shared = Shared {
        config: Some(world.fleet.clone()),
        state_dir: Some(world.dir.path().join("state")),
        log_format: LogFormat::Text,
        log: String::new(),
    };
    let config = Config::load(&shared, &Run::default()).unwrap();
    let second = Coordinator::start(config, None, CancellationToken::new()).await;
    assert!(matches!(
        second,
        Err(RunError::StateDir(StateDirError::Locked(_)))
    ));

    let text = world.metrics().await;
    assert!(
        text.contains("parbake_coordinator_hosts{state=\"disconnected\"} 2"),
        "{text}"
    );
    assert!(!world.background.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_dont_keep_an_operator_out() {
    let world = World::new(two_hosts()).await;
    let api = world.addresses().api;
    let mut silent = Vec::new();
    for _ in 0..512 {
        silent.push(tokio::net::TcpStream::connect(api).await.unwrap());
    }
    // connections that have been silent for a second give way to others
    sleep(Duration::from_secs(1)).await;
    let began = std::time::Instant::now();
    for _ in 0..20 {
        let hosts: Vec<HostView> = world.get("/v1/hosts").await;
        assert_eq!(hosts.len(), 2);
    }
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
}
