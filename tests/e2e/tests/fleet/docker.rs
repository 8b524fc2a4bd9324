//! Fleets that stage from Debian's docker-registry.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and say what they measured"
)]

use e2e::{
    cluster::{Cluster, Options, said},
    docker_registry::{Auth, DockerRegistry},
    image::{GeneratedImage, ImageSpec},
    site::{self, PATIENCE},
};
use tempfile::TempDir;

/// A registry with an image in it.
struct Docker {
    registry: DockerRegistry,
    image: GeneratedImage,
    reference: String,
    dir: TempDir,
}

impl Docker {
    fn new(auth: Auth, spec: &ImageSpec) -> Self {
        let runtime = site::runtime().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let blobs = dir.path().join("blobs");
        std::fs::create_dir(&blobs).unwrap();
        let image = spec.generate(&blobs).unwrap();
        let registry = runtime.block_on(DockerRegistry::start(auth)).unwrap();
        let reference = registry.reference("fleet/macos", "1");
        let credentials = registry.credentials();
        let pushed = image.push(&reference, &credentials);
        runtime.block_on(pushed).unwrap();
        Self {
            registry,
            image,
            reference: reference.to_string(),
            dir,
        }
    }

    /// A fleet with these lines in all its settings.
    fn fleet(&self, hosts: usize, settings: &str) -> Cluster {
        let registry = self.registry.addr();
        let options = Options::on_loopback(DEMO, self.dir.path(), hosts, registry);
        site::start(Options {
            agent_settings: settings.into(),
            coordinator_settings: settings.into(),
            ..options
        })
        .unwrap()
    }
}

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

/// One copy leaves the registry, and every host has every bit.
fn stages(auth: Auth) {
    let docker = Docker::new(auth, &ImageSpec::plain(48, 8));
    let mut settings = String::new();
    if let Some((user, password)) = docker.registry.account() {
        let file = docker.dir.path().join("password");
        std::fs::write(&file, password).unwrap();
        settings = site::login(docker.registry.addr(), user, &file);
    }
    let (image, cluster) = (&docker.image, docker.fleet(3, &settings));
    cluster.stage(&[&docker.reference, "--wait"]).unwrap();
    let present = cluster.wait_present(&image.digest.to_string(), PATIENCE);
    let origin: u64 = present
        .unwrap()
        .iter()
        .map(|present| present.bytes[0])
        .sum();
    println!("{origin} bytes of {}", image.blob_bytes());
    assert!(origin * 100 <= image.blob_bytes() * 102, "{origin}");
    let difference = site::difference(&cluster, &docker.reference, image);
    assert_eq!(difference.unwrap(), None);
}

#[test]
#[cfg_attr(
    not(docker_registry),
    ignore = "needs PARBAKE_DOCKER_REGISTRY: the program docker-registry"
)]
fn a_registry_for_everybody() {
    stages(Auth::Anonymous);
}

#[test]
#[cfg_attr(
    not(docker_registry),
    ignore = "needs PARBAKE_DOCKER_REGISTRY: the program docker-registry"
)]
fn a_registry_with_htpasswd() {
    stages(Auth::Htpasswd);
}

#[test]
#[cfg_attr(
    not(docker_registry),
    ignore = "needs PARBAKE_DOCKER_REGISTRY: the program docker-registry"
)]
fn a_registry_that_refuses_the_password_is_named() {
    let docker = Docker::new(
        Auth::Htpasswd,
        &ImageSpec::incompressible(24 << 20, 8 << 20, 1),
    );
    let (user, right) = docker.registry.account().unwrap();
    let password = docker.dir.path().join("password");
    std::fs::write(&password, "half-baked").unwrap();
    let credentials = site::login(docker.registry.addr(), user, &password);
    let cluster = docker.fleet(1, &credentials);
    let staged = cluster
        .parbake(&["stage", &docker.reference, "--wait"])
        .unwrap();
    let told = said(&staged);
    assert_eq!(staged.status.code(), Some(2), "{told}");
    for word in [docker.reference.as_str(), "credentials"] {
        assert!(told.contains(word), "{told}");
    }
    assert!(!told.contains("half-baked"), "{told}");
    // with the right one it goes on, without a restart
    std::fs::write(&password, right).unwrap();
    cluster.stage(&[&docker.reference, "--wait"]).unwrap();
    cluster
        .wait_present(&docker.image.digest.to_string(), PATIENCE)
        .unwrap();
}
