//! Registries that misbehave, with the real programs: how staging ends, what it says, and what it costs. Each test has one
//! registry and one fleet for a table of cases.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    path::PathBuf,
    process::Output,
    time::{Duration, Instant},
};

use e2e::{
    cluster::{Cluster, Options, Place, wait_until},
    image::{GeneratedImage, ImageSpec},
    registry::{self, Fault, Misbehaviour, Registry, Target},
    rig::PATIENCE,
};
use proto::Digest;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

/// A registry, and a fleet that stages from it.
struct World {
    cluster: Cluster,
    registry: Registry,
    dir: TempDir,
    _runtime: Runtime,
}

/// An image of the registry.
struct Image {
    generated: GeneratedImage,
    reference: String,
}

impl Image {
    /// The blob of its first layer.
    fn layer(&self) -> Digest {
        self.generated.layout().unwrap().layers()[0].blob.digest
    }

    fn digest(&self) -> String {
        self.generated.digest.to_string()
    }
}

impl World {
    fn new(hosts: usize, options: registry::Options, agent: &str, coordinator: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let registry = runtime.block_on(Registry::start(options)).unwrap();
        let cluster = Cluster::start(Options {
            hosts: vec![Place::default(); hosts],
            agent_settings: agent.into(),
            coordinator_settings: coordinator.into(),
            ..Options::on_loopback(DEMO, dir.path(), 0, registry.addr())
        })
        .unwrap();
        cluster.wait_sessions(PATIENCE).unwrap();
        Self {
            cluster,
            registry,
            dir,
            _runtime: runtime,
        }
    }

    /// An image of two layers that nothing else shares, in a repository of its own.
    fn image(&self, name: &str, mebibytes: u64) -> Image {
        let blobs = self.dir.path().join("blobs").join(name);
        std::fs::create_dir_all(&blobs).unwrap();
        let seed = u64::from_be_bytes(
            *Digest::of(name.as_bytes())
                .as_bytes()
                .first_chunk()
                .unwrap(),
        );
        let bytes = mebibytes << 20;
        let spec = ImageSpec::incompressible(bytes, bytes / 2, seed);
        let generated = spec.generate(&blobs).unwrap();
        let reference = self.registry.hold(&format!("odd/{name}"), "1", &generated);
        Image {
            generated,
            reference,
        }
    }

    fn stage(&self, image: &Image, more: &[&str]) -> Output {
        let mut arguments = vec!["stage", image.reference.as_str(), "--wait"];
        arguments.extend(more);
        self.cluster.parbake(&arguments).unwrap()
    }

    /// Stages it, and compares every host's disk with the source.
    fn stages(&self, image: &Image, within: Duration, case: &str) {
        let began = Instant::now();
        let staged = self.stage(image, &["--timeout", "100"]);
        let said = said(&staged);
        assert!(
            staged.status.success(),
            "{case}: {said}\n{}",
            self.status(image)
        );
        assert!(began.elapsed() <= within, "{case}: {:?}", began.elapsed());
        for agent in self.cluster.agents() {
            let disk = disk(&agent.tart_home(), &image.reference);
            let difference = image.generated.compare(&disk).unwrap();
            assert_eq!(difference, None, "{case}");
        }
    }

    fn status(&self, image: &Image) -> Value {
        let shown = self
            .cluster
            .parbake(&["status", &image.digest(), "--json"])
            .unwrap();
        serde_json::from_slice(&shown.stdout).unwrap_or_default()
    }

    fn requests(&self, blob: &Digest) -> u64 {
        let counters = self.registry.counters();
        counters.blobs.get(blob).map_or(0, |blob| blob.requests)
    }
}

fn disk(tart_home: &std::path::Path, reference: &str) -> PathBuf {
    let (name, tag) = reference.rsplit_once(':').unwrap();
    let (registry, path) = name.split_once('/').unwrap();
    let cache = tart_home.join("cache/OCIs");
    let repository = cache.join(registry.replace(':', "%3A")).join(path);
    repository.join(tag).join("disk.img")
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn status(status: u16) -> Misbehaviour {
    Misbehaviour::Status {
        status,
        retry_after: None,
    }
}

#[test]
fn a_layer_that_cannot_be_had_fails_its_image_by_name_and_holds_up_no_other() {
    let world = World::new(2, registry::Options::default(), "", "");
    let elsewhere = Misbehaviour::RedirectTo("http://elsewhere.example/blob".into());
    for (name, what, reason, words) in [
        ("missing", status(404), "content_missing", "doesn't exist"),
        ("forbidden", status(403), "content_refused", "is forbidden"),
        ("gone", status(410), "content_missing", "status 410"),
        ("nonsense", status(418), "content_unusable", "status 418"),
        ("astray", elsewhere, "content_unusable", "without TLS"),
        (
            "longer",
            Misbehaviour::Overrun(7),
            "content_bad",
            "bytes or more",
        ),
    ] {
        let image = world.image(name, 4);
        let fault = Fault::always(Target::Blob(image.layer()), what);
        let fault = world.registry.script(fault);
        let began = Instant::now();
        let failed = world.stage(&image, &["--timeout", "60"]);
        let story = said(&failed);
        assert_eq!(failed.status.code(), Some(1), "{name}: {story}");
        assert!(began.elapsed() < Duration::from_secs(20), "{name}: {story}");
        let shown = world.status(&image);
        assert_eq!(shown["state"], "failed", "{name}: {shown}");
        assert_eq!(shown["reason"], reason, "{name}: {shown}");
        for told in [shown["message"].as_str().unwrap(), &story] {
            assert!(told.contains(words), "{name}: {told}");
            assert!(told.contains(&image.layer().to_string()), "{name}: {told}");
        }
        // another image of the same registry, at once and while this one is wanted still
        let healthy = world.image(&format!("beside-{name}"), 2);
        world.stages(&healthy, Duration::from_secs(10), name);
        // two hosts asked, and perhaps once more each where a token might have been the cause
        let requests = world.requests(&image.layer());
        assert!((2..=6).contains(&requests), "{name}: {requests} requests");
        // the layer is there now: who asks anew needn't wait for the next try
        world.registry.clear(fault);
        world.stages(&image, Duration::from_secs(15), name);
    }
}

#[test]
fn a_host_that_cannot_read_its_password_holds_up_no_other_host_and_no_registry() {
    let options = registry::Options {
        auth: registry::Auth::Basic {
            user: "robot".into(),
            password: "secret".into(),
        },
        ..registry::Options::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let (good, missing) = (dir.path().join("good"), dir.path().join("missing"));
    std::fs::write(&good, "secret").unwrap();
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(Registry::start(options)).unwrap();
    let login = |path: &PathBuf| {
        format!(
            "[origin.credentials.\"{}\"]\nusername = \"robot\"\npassword_file = \"{}\"\n",
            registry.addr(),
            path.display()
        )
    };
    let mut cluster = Cluster::start(Options {
        agent_settings: login(&good),
        coordinator_settings: login(&good),
        ..Options::on_loopback(DEMO, dir.path(), 3, registry.addr())
    })
    .unwrap();
    for host in [0, 2] {
        let settings = cluster.agents()[host].dir.join("agent.toml");
        let text = std::fs::read_to_string(&settings).unwrap();
        let text = text.replace(good.to_str().unwrap(), missing.to_str().unwrap());
        cluster.kill_agent(host).unwrap();
        std::fs::write(&settings, text).unwrap();
        cluster.start_agent(host).unwrap();
    }
    cluster.wait_sessions(PATIENCE).unwrap();
    let blobs = dir.path().join("blobs");
    std::fs::create_dir(&blobs).unwrap();
    let image = ImageSpec::incompressible(8 << 20, 1 << 20, 5)
        .generate(&blobs)
        .unwrap();
    let reference = registry.hold("odd/closed", "1", &image);
    let began = Instant::now();
    let staged = cluster
        .parbake(&["stage", &reference, "--wait", "--timeout", "60"])
        .unwrap();
    assert!(staged.status.success(), "{}", said(&staged));
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    let unable = cluster.coordinator_log();
    let unable = unable.iter().filter(|line| line["reason"] == "host_unable");
    assert!(
        unable.count() >= 1,
        "nobody was leased what it can't ask for"
    );
    assert!(wait_until(PATIENCE, || {
        cluster
            .agents()
            .iter()
            .all(|agent| disk(&agent.tart_home(), &reference).exists())
    }));
}
