//! Rolls on a real API server: the real coordinator and agents as processes, the runners' own controller, kubelet and
//! dispatcher played by the test, and every Pod event checked in the API server's order.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and print what they measure"
)]

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use e2e::{
    api_server::{self, ApiServer},
    cluster::{Cluster, Options, Place},
    image::{GeneratedImage, ImageSpec},
    registry::{self, Registry},
    runners::{self, Checker, Rule, Runners},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Client,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Longer than any of these takes on a busy machine; a wait ends as soon as its condition holds.
const PATIENCE: Duration = Duration::from_secs(30);
const FLEET: &str = "minis";

/// A fleet under a real API server.
struct World {
    stop: CancellationToken,
    tasks: JoinSet<()>,
    checker: Checker,
    client: Client,
    cluster: Cluster,
    registry: Registry,
    api: ApiServer,
    dir: TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
        self.tasks.abort_all();
    }
}

impl World {
    async fn start(suite: &str, hosts: usize, arguments: &[&str]) -> Option<Self> {
        let assets = api_server::assets(suite)?;
        let api = ApiServer::start(&assets).await.unwrap();
        let client = api.client().await.unwrap();
        runners::install(&client).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::start(registry::Options::default()).await.unwrap();
        let defaults = [
            "--namespace",
            "default",
            "--pod-name",
            "one",
            "--lease-seconds",
            "3",
        ];
        let options = Options {
            binary: PathBuf::from(env!("CARGO_BIN_EXE_demo")),
            dir: dir.path().to_owned(),
            hosts: vec![Place::default(); hosts],
            coordinator: Place::default(),
            registry: registry.addr().to_string(),
            agent_settings: String::new(),
            coordinator_settings: String::new(),
            log: "info".into(),
            kubeconfig: Some(api.kubeconfig()),
            run_arguments: defaults
                .iter()
                .chain(arguments)
                .map(ToString::to_string)
                .collect(),
        };
        let cluster = tokio::task::spawn_blocking(move || {
            let cluster = Cluster::start(options).unwrap();
            cluster.wait_sessions(PATIENCE).unwrap();
            cluster
        });
        let cluster = cluster.await.unwrap();
        for agent in cluster.agents() {
            runners::add_node(&client, &agent.host, FLEET)
                .await
                .unwrap();
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
        Some(Self {
            stop,
            tasks,
            checker,
            client,
            cluster,
            registry,
            api,
            dir,
        })
    }

    /// An image of some MiB in the registry, under this tag.
    fn image(&self, tag: &str, seed: u64) -> (GeneratedImage, String) {
        let mut spec = ImageSpec {
            seed,
            disk_bytes: 8 << 20,
            layer_bytes: 4 << 20,
            nvram_bytes: 64 << 10,
            ..ImageSpec::default()
        };
        (spec.repeated_layers, spec.layers_without_digest) = (0, 0);
        let blobs = self.dir.path().join(format!("blobs-{tag}"));
        std::fs::create_dir_all(&blobs).unwrap();
        let image = spec.generate(&blobs).unwrap();
        let reference = self.registry.hold("fleet/macos", tag, &image);
        (image, reference)
    }

    /// The checker's rule for a pool that shall run this image.
    fn rule(&self, pool: &str, image: &GeneratedImage, reference: &str, cap: usize) {
        let name = reference.rsplit_once(':').unwrap().0;
        let (registry, path) = name.split_once('/').unwrap();
        let disk = PathBuf::from("cache/OCIs")
            .join(registry.replace(':', "%3A"))
            .join(path)
            .join(image.digest.to_string())
            .join("disk.img");
        let image = reference.to_owned();
        self.checker.rule(pool, Rule { image, cap, disk });
    }

    fn nodes(&self) -> Vec<String> {
        self.cluster
            .agents()
            .iter()
            .map(|agent| agent.host.clone())
            .collect()
    }

    fn parbake(&self, arguments: &[&str]) -> String {
        let output = self.cluster.parbake(arguments).unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            !text.is_empty(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    /// What the coordinator said last.
    fn story(&self) -> String {
        let log = self.cluster.coordinator_log();
        let lines: Vec<String> = log.iter().rev().take(40).map(ToString::to_string).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn assert_clean(&self) {
        let found = self.checker.found();
        assert_eq!(found.violations, Vec::<String>::new());
    }
}

fn all_run(pods: &[Pod], image: &str, replicas: usize) -> bool {
    pods.len() == replicas
        && pods
            .iter()
            .all(|pod| runners::image(pod) == image && runners::phase(pod) == "Running")
}

fn spec(image: &str, replicas: usize, percent: u32) -> Value {
    json!({
        "image": image,
        "replicas": replicas,
        "fleetSelector": FLEET,
        "os": "darwin",
        "rollout": { "maxConcurrentPercent": percent },
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

#[test]
fn a_whole_fleet_rolls_under_the_cap_and_only_where_the_image_is() {
    runtime().block_on(async {
        const HOSTS: usize = 20;
        let Some(world) = World::start("kube_roll", HOSTS, &[]).await else {
            return;
        };
        let (old, old_reference) = world.image("1", 1);
        world.rule("xcode", &old, &old_reference, 2);
        runners::add_pool(&world.client, "xcode", "own", spec(&old_reference, HOSTS, 10))
            .await
            .unwrap();
        let mut play = Runners::new(world.client.clone(), world.nodes());
        play.until(PATIENCE, |pods| all_run(pods, &old_reference, HOSTS))
            .await
            .unwrap();
        // the pool's own ImagePrePull stages what the pool runs
        staged(&world, "xcode", &old, HOSTS).await;

        let (new, new_reference) = world.image("2", 2);
        world.rule("xcode", &new, &new_reference, 2);
        let begun = Instant::now();
        runners::change_pool(&world.client, "xcode", json!({ "image": new_reference }))
            .await
            .unwrap();
        play.until(PATIENCE, |pods| all_run(pods, &new_reference, HOSTS))
            .await
            .unwrap();
        let found = world.checker.found();
        println!(
            "{HOSTS} Pods rolled in {:?}, {} events, at most {} in flight; first label {:?} after the change",
            begun.elapsed(),
            found.events,
            found.most_in_flight,
            found.labelled[0].1 - begun,
        );
        world.assert_clean();
        assert_eq!(found.labelled.len(), HOSTS);
        assert!(found.withdrawn.is_empty(), "{:?}", found.withdrawn);
        staged(&world, "xcode", &new, HOSTS).await;
        // Nodes say what they hold
        let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(world.client.clone());
        let label = format!("parbake.dev/image-{}", &new.digest.hex().to_string()[..12]);
        let listed = nodes
            .list(&ListParams::default().labels(&format!("{label}=ready")))
            .await
            .unwrap();
        assert_eq!(listed.items.len(), HOSTS);
    });
}

/// Waits until the ImagePrePull says that every host holds this image.
async fn staged(world: &World, name: &str, image: &GeneratedImage, hosts: usize) {
    let end = Instant::now() + PATIENCE;
    let digest = image.digest.to_string();
    loop {
        let prepull = runners::prepulls(&world.client)
            .get_opt(name)
            .await
            .unwrap();
        let status = prepull
            .and_then(|prepull| prepull.status)
            .unwrap_or_default();
        if status.digest.as_ref() == Some(&digest)
            && usize::try_from(status.hosts.staged).unwrap() == hosts
        {
            return;
        }
        assert!(Instant::now() < end, "{status:?}\n{}", world.story());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
