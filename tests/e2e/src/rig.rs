//! What a test of the real programs begins with: an image in a registry of this process, clusters that stage it, and
//! the comparison of every host's disk with the source.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{
    cluster::{Cluster, Options, Place},
    image::{GeneratedImage, ImageSpec},
    registry::{self, Registry},
};

/// Longer than anything takes on a busy machine; a wait ends as soon as its condition holds.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// An image in a registry.
#[derive(Debug)]
pub struct Rig {
    /// The registry.
    pub registry: Registry,
    /// The image.
    pub image: GeneratedImage,
    /// Its reference there.
    pub reference: String,
    dir: TempDir,
    runtime: Runtime,
}

impl Rig {
    /// Makes the image and starts the registry.
    ///
    /// # Errors
    /// When the image can't be made or no port is to be had.
    pub fn new(spec: &ImageSpec, options: registry::Options) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let dir = tempfile::tempdir()?;
        let blobs = dir.path().join("blobs");
        std::fs::create_dir(&blobs)?;
        let image = spec.generate(&blobs)?;
        let registry = runtime.block_on(Registry::start(options))?;
        let reference = registry.hold("fleet/macos", "1", &image);
        Ok(Self {
            registry,
            image,
            reference,
            dir,
            runtime,
        })
    }

    /// Where everything is kept.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts a coordinator and agents, with further lines of their settings, and waits until all have a session.
    ///
    /// # Errors
    /// When a program doesn't come up.
    pub fn cluster(
        &self,
        binary: &str,
        hosts: Vec<Place>,
        agent: &str,
        coordinator: &str,
    ) -> anyhow::Result<Cluster> {
        let cluster = Cluster::start(Options {
            hosts,
            agent_settings: agent.into(),
            coordinator_settings: coordinator.into(),
            ..Options::on_loopback(binary, self.dir(), 0, self.registry.addr())
        })?;
        cluster.wait_sessions(PATIENCE)?;
        Ok(cluster)
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
        let counters = self.registry.counters();
        counters.blobs.values().map(|blob| blob.bytes).sum()
    }

    /// Where the image's disk lies in a tart home.
    ///
    /// # Panics
    /// Never: the reference was made with registry, name and tag.
    #[must_use]
    pub fn disk(&self, tart_home: &Path) -> PathBuf {
        let (name, tag) = self.reference.rsplit_once(':').expect("a tag");
        let (registry, path) = name.split_once('/').expect("a registry");
        let cache = tart_home.join("cache/OCIs");
        let repository = cache.join(registry.replace(':', "%3A")).join(path);
        repository.join(tag).join("disk.img")
    }

    /// What of the installed image isn't the source's, bit by bit, in this tart home.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn difference(&self, tart_home: &Path) -> anyhow::Result<Option<String>> {
        let disk = self.disk(tart_home);
        let compared = self.image.compare(&disk);
        if let Some(difference) = compared.with_context(|| format!("reading {}", disk.display()))? {
            return Ok(Some(format!("{}: {difference:?}", disk.display())));
        }
        for (name, source) in [
            ("config.json", &self.image.config),
            ("nvram.bin", &self.image.nvram),
            ("manifest.json", &self.image.manifest),
        ] {
            let path = disk.with_file_name(name);
            let found = std::fs::read(&path);
            if found.with_context(|| format!("reading {}", path.display()))? != *source {
                return Ok(Some(path.display().to_string()));
            }
        }
        Ok(None)
    }

    /// The same on every host.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn difference_anywhere(&self, cluster: &Cluster) -> anyhow::Result<Option<String>> {
        for agent in cluster.agents() {
            if let Some(difference) = self.difference(&agent.tart_home())? {
                return Ok(Some(difference));
            }
        }
        Ok(None)
    }
}
