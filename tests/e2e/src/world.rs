//! A fleet under a real API server: coordinator and agents as processes, runners played, every Pod event checked.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    api_server::{self, ApiServer},
    cluster::{Cluster, Options, free_tcp},
    image::{GeneratedImage, ImageSpec},
    registry::{self, Registry},
    runners::{self, Checker, Manners, Rule, Runners},
    site, tart_home, tart_script,
};

/// Longer than any wait takes on a busy machine; a wait ends as soon as its condition holds.
pub const PATIENCE: Duration = Duration::from_secs(150);
/// The fleet of every Node.
pub const FLEET: &str = "minis";
/// The pool that [`World::begin`] makes.
const POOL: &str = "xcode";
/// The coordinator's namespace where the chart's roles bind it; else `default`.
const CHART_NAMESPACE: &str = "parbake";
/// Between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The multi-call binary.
    pub binary: &'static str,
    /// Agents.
    pub hosts: usize,
    /// Further arguments of the coordinator's `run`.
    pub arguments: Vec<String>,
    /// Until another coordinator takes over.
    pub lease: Duration,
    /// Further flags of kube-apiserver.
    pub flags: Vec<String>,
    /// The coordinator has no more rights than the chart gives it in this mode.
    pub chart: Option<&'static str>,
    /// Whether there are RunnerPools from the start.
    pub pools: bool,
    /// Whether agents make goldens, by a program that stands in for tart.
    pub goldens: bool,
}

impl Setup {
    /// A plain one.
    #[must_use]
    pub const fn new(binary: &'static str, hosts: usize) -> Self {
        Self {
            binary,
            hosts,
            arguments: Vec::new(),
            lease: Duration::from_secs(3),
            flags: Vec::new(),
            chart: None,
            pools: true,
            goldens: false,
        }
    }
}

/// A fleet under a real API server.
pub struct World {
    stop: CancellationToken,
    tasks: JoinSet<()>,
    /// Sees every Pod event.
    pub checker: Checker,
    /// Who may do everything.
    pub client: Client,
    /// The processes.
    pub cluster: Cluster,
    /// What images come from.
    pub registry: Registry,
    /// The API server.
    pub api: ApiServer,
    /// How the runners behave.
    pub manners: Arc<Manners>,
    /// What the chart renders, where it was asked.
    pub chart: Vec<DynamicObject>,
    setup: Setup,
    kubeconfig: PathBuf,
    dir: TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
        self.tasks.abort_all();
    }
}

impl World {
    /// Starts everything.
    ///
    /// # Errors
    /// There is no API server to run, or a part doesn't come up.
    pub async fn start(setup: Setup) -> anyhow::Result<Self> {
        let assets = api_server::assets()?;
        let api = ApiServer::start_with(&assets, &setup.flags).await?;
        let client = api.client().await?;
        runners::install_prepulls(&client).await?;
        if setup.pools {
            runners::install_pools(&client).await?;
        }
        let dir = tempfile::tempdir()?;
        let registry = Registry::start(registry::Options::default()).await?;
        let mut kubeconfig = api.kubeconfig();
        let mut chart = Vec::new();
        let mut namespace = "default";
        if let Some(mode) = setup.chart {
            namespace = CHART_NAMESPACE;
            chart = rendered(mode)?;
            kubeconfig = dir.path().join("coordinator.kubeconfig");
            let token = bind(&client, &chart).await?;
            api.kubeconfig_for(&token, &kubeconfig)?;
        }
        let agent_settings = match setup.goldens {
            true => format!(
                "golden_prefix = 'golden-'\ntart_binary = '{}'\n",
                tart_script::write(dir.path())?.display()
            ),
            false => String::new(),
        };
        let options = Options {
            agent_settings,
            kubeconfig: Some(kubeconfig.clone()),
            run_arguments: run_arguments(namespace, "one", &setup),
            ..Options::on_loopback(setup.binary, dir.path(), setup.hosts, registry.addr())
        };
        let cluster = tokio::task::spawn_blocking(move || site::start(options));
        let cluster = cluster.await??;
        for agent in cluster.agents() {
            runners::add_node(&client, &agent.host, FLEET).await?;
        }
        let homes = cluster
            .agents()
            .iter()
            .map(|agent| (agent.host.clone(), agent.tart_home()))
            .collect();
        let checker = Checker::new(homes);
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(checker.clone().watch(client.clone(), stop.clone()));
        Ok(Self {
            stop,
            tasks,
            checker,
            client,
            cluster,
            registry,
            api,
            manners: Arc::default(),
            chart,
            setup,
            kubeconfig,
            dir,
        })
    }

    /// Lets controller, kubelets and dispatcher play until the end, as [`manners`](Self::manners) say.
    pub fn play(&mut self) {
        let mut runners = Runners::new(self.client.clone(), self.nodes());
        runners.manners = self.manners.clone();
        let stop = self.stop.clone();
        self.tasks
            .spawn(async move { drop(runners.play(stop).await) });
    }

    /// Starts another coordinator beside the first: same hosts' address, own API.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn replica(&self, name: &str) -> anyhow::Result<Replica> {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir)?;
        let log = dir.join("log");
        let loopback = Ipv4Addr::LOCALHOST.into();
        let child = Command::new(self.setup.binary)
            .args(["coordinator", "--config"])
            .arg(self.dir.path().join("coordinator/fleet.toml"))
            .args(["--log-format", "json", "--state-dir"])
            .arg(dir.join("state"))
            .arg("run")
            .args(run_arguments("default", name, &self.setup))
            .args(["--kubernetes", "--api", &free_tcp(loopback)?.to_string()])
            .args(["--admin", &free_tcp(loopback)?.to_string()])
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        Ok(Replica { child, log })
    }

    /// An image of some MiB in the registry, under this tag.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn image(&self, tag: &str, seed: u64) -> anyhow::Result<Image> {
        let spec = ImageSpec {
            seed,
            nvram_bytes: 64 << 10,
            ..ImageSpec::plain(8, 4)
        };
        self.image_of(tag, &spec)
    }

    /// An image of this make in the registry, under this tag.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn image_of(&self, tag: &str, spec: &ImageSpec) -> anyhow::Result<Image> {
        let blobs = self.dir.path().join(format!("blobs-{tag}"));
        std::fs::create_dir_all(&blobs)?;
        let image = spec.generate(&blobs)?;
        let reference = self.registry.hold("fleet/macos", tag, &image);
        let (name, _) = reference.rsplit_once(':').context("it has a tag")?;
        let cached = format!("{name}@{}", image.digest);
        let cached = tart_home::directory(Path::new(""), &cached);
        Ok(Image {
            image,
            reference,
            cached,
        })
    }

    /// The checker's rule for a pool that shall run this image.
    pub fn rule(&self, pool: &str, image: &Image, cap: usize) {
        let disk = Some(image.cached.join("disk.img"));
        let image = image.reference.clone();
        self.checker.rule(pool, Rule { image, cap, disk });
    }

    /// Lets the runners play, makes a pool `xcode` that runs a first image with a Pod on each host, and waits until
    /// that runs and is staged everywhere. At most `percent` of the Pods may be in flight, which are `cap`.
    ///
    /// # Errors
    /// When it doesn't come to that.
    pub async fn begin(&mut self, gate: &str, percent: u32, cap: usize) -> anyhow::Result<Image> {
        let (image, hosts) = (self.image("1", 1)?, self.setup.hosts);
        self.rule(POOL, &image, cap);
        self.play();
        let spec = pool_spec(&image.reference, hosts, percent);
        runners::add_pool(&self.client, POOL, gate, spec).await?;
        self.until_all_run(&image, hosts).await?;
        self.until_staged(POOL, &image, hosts).await?;
        Ok(image)
    }

    /// Lets the pool `xcode` run another image.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn roll(&self, image: &Image, cap: usize) -> anyhow::Result<()> {
        self.rule(POOL, image, cap);
        runners::change_pool(&self.client, POOL, json!({ "image": image.reference })).await
    }

    /// The hosts' names.
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        let agents = self.cluster.agents().iter();
        agents.map(|agent| agent.host.clone()).collect()
    }

    /// All Pods; none while the API server can't be asked.
    pub async fn pods(&self) -> Vec<Pod> {
        let pods = runners::pods(&self.client);
        pods.list(&ListParams::default())
            .await
            .map(|list| list.items)
            .unwrap_or_default()
    }

    /// Waits until something holds.
    ///
    /// # Errors
    /// When it doesn't within [`PATIENCE`]; the error ends with what the coordinator said last.
    pub async fn until<T, F: Future<Output = Option<T>>>(
        &self,
        what: &str,
        mut found: impl FnMut() -> F,
    ) -> anyhow::Result<T> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = found().await {
                return Ok(found);
            }
            if Instant::now() >= end {
                let pods: Vec<_> = self.pods().await.iter().map(summary).collect();
                bail!(
                    "not within {PATIENCE:?}: {what}\n{}\n{}",
                    pods.join("\n"),
                    self.story()
                );
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until the Pods are as wanted.
    ///
    /// # Errors
    /// As for [`until`](Self::until).
    pub async fn until_pods(
        &self,
        what: &str,
        holds: impl Fn(&[Pod]) -> bool,
    ) -> anyhow::Result<()> {
        self.until(what, || async { holds(&self.pods().await).then_some(()) })
            .await
    }

    /// Waits until this many Pods run this image, and there are no others.
    ///
    /// # Errors
    /// As for [`until`](Self::until).
    pub async fn until_all_run(&self, image: &Image, replicas: usize) -> anyhow::Result<()> {
        self.until_pods("all run it", |pods| {
            pods.len() == replicas && pods.iter().all(|pod| image.runs(pod))
        })
        .await
    }

    /// Waits until the ImagePrePull says that this many hosts hold this image.
    ///
    /// # Errors
    /// As for [`until`](Self::until).
    pub async fn until_staged(
        &self,
        name: &str,
        image: &Image,
        hosts: usize,
    ) -> anyhow::Result<()> {
        let digest = image.image.digest.to_string();
        let prepulls = runners::prepulls(&self.client);
        self.until("it is staged", || async {
            let status = prepulls.get_opt(name).await.ok()??.status?;
            let staged = usize::try_from(status.hosts.staged).ok()?;
            (status.digest.as_ref() == Some(&digest) && staged == hosts).then_some(())
        })
        .await
    }

    /// Waits until the checker saw something.
    ///
    /// # Errors
    /// As for [`until`](Self::until).
    pub async fn until_found(
        &self,
        what: &str,
        holds: impl Fn(&runners::Findings) -> bool,
    ) -> anyhow::Result<()> {
        self.until(what, || async {
            holds(&self.checker.found()).then_some(())
        })
        .await
    }

    /// Waits until the coordinator's log has such a line.
    ///
    /// # Errors
    /// As for [`until`](Self::until).
    pub async fn until_said(
        &self,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<()> {
        self.until(what, || async {
            let log = self.cluster.coordinator_log();
            log.iter().any(&wanted).then_some(())
        })
        .await
    }

    /// What the coordinator said last.
    #[must_use]
    pub fn story(&self) -> String {
        let log = self.cluster.coordinator_log();
        let lines: Vec<String> = log.iter().rev().take(40).map(ToString::to_string).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// That nothing happened that must not.
    ///
    /// # Errors
    /// What did.
    pub fn check(&self) -> anyhow::Result<()> {
        let violations = self.checker.found().violations;
        ensure!(
            violations.is_empty(),
            "{}\n{}",
            violations.join("\n"),
            self.story()
        );
        Ok(())
    }

    /// The coordinator's metrics.
    ///
    /// # Errors
    /// When it doesn't answer.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        let fleet = std::fs::read_to_string(self.dir.path().join("coordinator/fleet.toml"))?;
        let admin: SocketAddr = fleet
            .lines()
            .find_map(|line| line.strip_prefix("admin = "))
            .context("the fleet file names it")?
            .trim_matches('\'')
            .parse()?;
        let mut stream = TcpStream::connect(admin).await?;
        let (_, body) = exchange(&mut stream, "/metrics", None).await?;
        Ok(body)
    }

    /// Asks the coordinator's API as whoever has this token: status and body.
    ///
    /// # Errors
    /// When it doesn't answer.
    pub async fn ask(&self, path: &str, token: Option<&str>) -> anyhow::Result<(u16, String)> {
        let authority = self.dir.path().join("coordinator/state/authority/ca.pem");
        let mut roots = rustls::RootCertStore::empty();
        let pem = std::fs::read(authority)?;
        for certificate in
            <rustls_pki_types::CertificateDer<'_> as rustls_pki_types::pem::PemObject>::pem_slice_iter(
                &pem,
            )
        {
            roots.add(certificate?)?;
        }
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::ring::default_provider(),
        ))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
        let stream = TcpStream::connect(self.cluster.api()).await?;
        let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect("localhost".try_into()?, stream)
            .await?;
        exchange(&mut stream, path, token).await
    }

    /// Runs an operator's command to its end: exit code, and what it printed.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn parbake(&self, arguments: &[&str]) -> anyhow::Result<(i32, String)> {
        let output = tokio::task::block_in_place(|| self.cluster.parbake(arguments))?;
        let text = [output.stdout, output.stderr].concat();
        let code = output.status.code().context("it ended by itself")?;
        Ok((code, String::from_utf8_lossy(&text).into_owned()))
    }

    /// The API's own token.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn token(&self) -> anyhow::Result<String> {
        let path = self.dir.path().join("coordinator/state/api.token");
        Ok(std::fs::read_to_string(path)?.trim().to_owned())
    }

    /// Turns one of the [`manners`](Self::manners).
    pub fn set(&self, manner: impl Fn(&Manners) -> &std::sync::atomic::AtomicBool, value: bool) {
        manner(&self.manners).store(value, Ordering::Relaxed);
    }
}

/// An image in the registry.
#[derive(Debug)]
pub struct Image {
    /// What it is made of.
    pub image: GeneratedImage,
    /// What Pods call it.
    pub reference: String,
    /// Where it is on a host, below the tart home.
    pub cached: PathBuf,
}

impl Image {
    /// Whether a Pod runs it.
    #[must_use]
    pub fn runs(&self, pod: &Pod) -> bool {
        self.is_of(pod) && runners::phase(pod) == "Running"
    }

    /// Whether a Pod has it, running or not.
    #[must_use]
    pub fn is_of(&self, pod: &Pod) -> bool {
        runners::image(pod) == self.reference
    }
}

/// Another coordinator. It ends, by its pid, when it is dropped.
#[derive(Debug)]
pub struct Replica {
    child: Child,
    log: PathBuf,
}

impl Replica {
    /// Whether its log has this text.
    #[must_use]
    pub fn said(&self, text: &str) -> bool {
        std::fs::read_to_string(&self.log).is_ok_and(|log| log.contains(text))
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A pool's spec.
#[must_use]
pub fn pool_spec(image: &str, replicas: usize, percent: u32) -> Value {
    json!({
        "image": image,
        "replicas": replicas,
        "fleetSelector": FLEET,
        "os": "darwin",
        "rollout": { "maxConcurrentPercent": percent },
    })
}

fn summary(pod: &Pod) -> String {
    format!(
        "{} {} {} on {} labels {:?}",
        pod.metadata.name.as_deref().unwrap_or_default(),
        runners::phase(pod),
        runners::image(pod),
        runners::node(pod).unwrap_or("no node"),
        pod.metadata.labels,
    )
}

fn run_arguments(namespace: &str, name: &str, setup: &Setup) -> Vec<String> {
    let lease = setup.lease.as_secs().to_string();
    [
        ["--namespace", namespace],
        ["--pod-name", name],
        ["--lease-seconds", &lease],
        ["--service-names", "localhost"],
    ]
    .concat()
    .into_iter()
    .map(ToOwned::to_owned)
    .chain(setup.arguments.iter().cloned())
    .collect()
}

/// One HTTP exchange on a fresh connection: status and body.
async fn exchange<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    stream: &mut S,
    path: &str,
    token: Option<&str>,
) -> anyhow::Result<(u16, String)> {
    let bearer = token.map_or_else(String::new, |token| {
        format!("authorization: Bearer {token}\r\n")
    });
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{bearer}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // some servers close without a farewell
    if let Err(error) = stream.read_to_end(&mut answer).await
        && error.kind() != std::io::ErrorKind::UnexpectedEof
    {
        return Err(error.into());
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").context("it has a head")?;
    let status = head.split(' ').nth(1).context("it has a status")?;
    Ok((status.parse()?, body.to_owned()))
}

/// What the chart renders in a mode: `deploy/test --render`, which brings its own helm where it can.
fn rendered(mode: &str) -> anyhow::Result<Vec<DynamicObject>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/test");
    let output = Command::new(&script)
        .args(["--render", CHART_NAMESPACE, mode])
        .output()
        .with_context(|| format!("running {}", script.display()))?;
    ensure!(
        output.status.success(),
        "the chart isn't rendered: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout)?;
    Ok(serde_saphyr::from_multiple(&text)?)
}

/// Puts the chart's accounts and roles into the cluster; the token of its account.
async fn bind(client: &Client, chart: &[DynamicObject]) -> anyhow::Result<String> {
    let mut namespaces = vec![CHART_NAMESPACE];
    namespaces.extend(
        chart
            .iter()
            .filter_map(|object| object.metadata.namespace.as_deref()),
    );
    namespaces.sort_unstable();
    namespaces.dedup();
    for name in namespaces {
        let namespace: k8s_openapi::api::core::v1::Namespace =
            serde_json::from_value(json!({ "metadata": { "name": name } }))?;
        let made = Api::all(client.clone())
            .create(&PostParams::default(), &namespace)
            .await;
        match made {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            made => drop(made?),
        }
    }
    for object in chart {
        let kind = object
            .types
            .as_ref()
            .map_or("", |types| types.kind.as_str());
        let wanted = [
            "ServiceAccount",
            "ClusterRole",
            "ClusterRoleBinding",
            "Role",
            "RoleBinding",
        ];
        if wanted.contains(&kind) {
            create(client, object).await?;
        }
    }
    let account = chart
        .iter()
        .find(|object| {
            object
                .types
                .as_ref()
                .is_some_and(|types| types.kind == "ServiceAccount")
        })
        .and_then(|object| object.metadata.name.as_deref())
        .context("the chart makes an account")?;
    account_token(client, CHART_NAMESPACE, account, None).await
}

/// Creates any object.
///
/// # Errors
/// When the API server refuses it.
pub async fn create(client: &Client, object: &DynamicObject) -> anyhow::Result<()> {
    let types = object.types.as_ref().context("it has a kind")?;
    let kind: GroupVersionKind = types.try_into()?;
    let resource = ApiResource::from_gvk(&kind);
    let api: Api<DynamicObject> = match &object.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    api.create(&PostParams::default(), object)
        .await
        .with_context(|| format!("creating {} {:?}", types.kind, object.metadata.name))?;
    Ok(())
}

/// A token of a service account, bound to a Pod where one is named.
///
/// # Errors
/// When the API server doesn't make one.
pub async fn account_token(
    client: &Client,
    namespace: &str,
    account: &str,
    pod: Option<&Pod>,
) -> anyhow::Result<String> {
    let bound = pod.map(|pod| {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "name": pod.metadata.name,
            "uid": pod.metadata.uid,
        })
    });
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": { "audiences": [], "expirationSeconds": 3600, "boundObjectRef": bound },
    });
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
    let request = http::Request::post(path)
        .header("content-type", "application/json")
        .body(serde_json::to_vec(&body)?)?;
    let answer: Value = client.request(request).await?;
    let token = answer["status"]["token"].as_str();
    Ok(token.context("a token is answered")?.to_owned())
}
