//! What a test of the real programs stands on: a registry of this process, a directory for everything, and clusters
//! that stage from that registry.

use std::{
    fmt::Display,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{
    cluster::{Cluster, Options},
    image::{GeneratedImage, ImageSpec},
    registry::{self, Registry},
    tart_home,
};

/// Longer than anything takes on a busy machine; a wait ends as soon as its condition holds.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A runtime for a registry, and for the clients that a test plays.
///
/// # Errors
/// When no thread is to be had.
pub fn runtime() -> anyhow::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let built = builder.worker_threads(2).enable_all().build();
    built.context("starting a runtime")
}

/// A registry without images yet, and where everything is kept.
#[derive(Debug)]
pub struct Site {
    /// The registry.
    pub registry: Registry,
    /// What the registry runs in.
    pub runtime: Runtime,
    images: AtomicUsize,
    dir: TempDir,
}

impl Site {
    /// Starts the registry.
    ///
    /// # Errors
    /// When no directory or no port is to be had.
    pub fn new(options: registry::Options) -> anyhow::Result<Self> {
        let runtime = runtime()?;
        let registry = runtime.block_on(Registry::start(options))?;
        Ok(Self {
            registry,
            runtime,
            images: AtomicUsize::new(0),
            dir: tempfile::tempdir()?,
        })
    }

    /// Where everything is kept.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Makes an image, in a directory of its own.
    ///
    /// # Errors
    /// When the image can't be made.
    pub fn image(&self, spec: &ImageSpec) -> anyhow::Result<GeneratedImage> {
        let number = self.images.fetch_add(1, Ordering::Relaxed);
        let blobs = self.dir().join(format!("blobs-{number}"));
        std::fs::create_dir(&blobs)?;
        Ok(spec.generate(&blobs)?)
    }

    /// What a cluster of this many hosts on loopback is made of.
    #[must_use]
    pub fn options(&self, binary: &str, hosts: usize) -> Options {
        Options::on_loopback(binary, self.dir(), hosts, self.registry.addr())
    }

    /// Starts a coordinator and agents on loopback, with further lines of their settings, and waits until all agents
    /// have a session.
    ///
    /// # Errors
    /// When a program doesn't come up.
    pub fn fleet(
        &self,
        binary: &str,
        hosts: usize,
        agent: &str,
        coordinator: &str,
    ) -> anyhow::Result<Cluster> {
        start(Options {
            agent_settings: agent.into(),
            coordinator_settings: coordinator.into(),
            ..self.options(binary, hosts)
        })
    }

    /// Keeps a password in a file, for a program that logs in to the registry: the table of its settings that says so.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn login(&self, user: &str, password: &str) -> anyhow::Result<String> {
        let file = self.dir().join("password");
        std::fs::write(&file, password)?;
        Ok(login(self.registry.addr(), user, &file))
    }

    /// Takes the registry down, with every open connection.
    pub fn down(&mut self) {
        self.runtime.block_on(self.registry.go_down());
    }

    /// Brings it back on the same port.
    pub fn up(&mut self) {
        self.runtime.block_on(self.registry.come_back());
    }

    /// Body bytes of blobs that left the registry.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.registry.counters().bytes
    }
}

/// Starts a cluster, and waits until every agent has a session with the coordinator.
///
/// # Errors
/// When a program doesn't come up.
pub fn start(options: Options) -> anyhow::Result<Cluster> {
    let cluster = Cluster::start(options)?;
    cluster.wait_sessions(PATIENCE)?;
    Ok(cluster)
}

/// The table of a settings file that names the account for a registry.
#[must_use]
pub fn login(registry: impl Display, user: &str, password_file: &Path) -> String {
    format!(
        "\n[origin.credentials.'{registry}']\nusername = '{user}'\npassword_file = '{}'\n",
        password_file.display()
    )
}

/// What of the image that is installed under this reference isn't the source's, on the first host where something
/// isn't.
///
/// # Errors
/// When a file can't be read.
pub fn difference(
    cluster: &Cluster,
    reference: &str,
    image: &GeneratedImage,
) -> anyhow::Result<Option<String>> {
    for agent in cluster.agents() {
        let found = tart_home::difference(&agent.tart_home(), reference, image)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}
