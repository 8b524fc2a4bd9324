//! Where the demo's images come from: a registry of its own, in this process or in a lab, or somebody else's.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use proto::figure::Bytes;
use serde_json::{Value, json};

use super::{process::Ended, tell::say};
use crate::{
    cluster::{self, said},
    image::{GeneratedImage, ImageSpec},
    interrupt,
    registry::{self, Registry},
};

/// The repository of generated images.
const REPOSITORY: &str = "demo/macos";
/// The first release's tag.
const TAG: &str = "latest";
/// Where a lab's registry listens.
const LAB_REGISTRY: &str = "10.77.0.1:5000";
/// The end of the file name of a manifest that a lab's registry serves; the beginning is its tag.
const MANIFEST: &str = ".manifest.json";
/// What a lab's registry says of itself, in its directory.
const COUNTERS: &str = "counters.json";
/// A lab's registry looks for manifests and counts this often.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Counters that stay the same so long have counted everything: two looks at least.
const SETTLED: Duration = Duration::from_millis(500);
/// A lab's registry starts, and sees a new manifest, within this.
const SERVES_WITHIN: Duration = Duration::from_secs(20);

/// Serves a directory of blobs that `demo` made, for the lab.
#[derive(Debug, Parser)]
#[command(name = "demo registry", max_term_width = 100)]
pub struct RegistryCli {
    /// Directory of the blobs.
    dir: PathBuf,
    /// TCP address (IP:PORT) on which the registry listens.
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
}

/// Where images come from.
pub(super) struct Source {
    kind: Kind,
    /// The first release.
    reference: String,
}

enum Kind {
    Own(Box<Own>),
    /// Somebody else's registry.
    Foreign,
}

/// A registry with generated images.
struct Own {
    server: Server,
    /// Of the blobs.
    directory: PathBuf,
    first: GeneratedImage,
}

enum Server {
    Here(Registry),
    /// A process in the lab, which ends with this.
    Lab {
        _process: Ended,
        /// How a program is started in the registry's namespace.
        namespace: [String; 4],
    },
}

impl Source {
    /// An image of a real registry.
    pub(super) const fn foreign(reference: String) -> Self {
        let kind = Kind::Foreign;
        Self { kind, reference }
    }

    /// A generated image, in a registry of this process that sends so many bytes per second, or in the lab with these
    /// names.
    pub(super) async fn generated(
        spec: &ImageSpec,
        directory: &Path,
        rate: Option<u64>,
        lab: Option<&str>,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        say(&format!(
            "making an image with a disk of {}",
            Bytes(spec.disk_bytes)
        ));
        let began = Instant::now();
        let first = spec.generate(directory)?;
        say(&format!(
            "made {} of blobs (compressed) in {:.1} s",
            Bytes(first.blob_bytes()),
            began.elapsed().as_secs_f64()
        ));
        let server = match lab {
            Some(lab) => Server::lab(lab, directory)?,
            None => Server::Here(
                Registry::start(registry::Options {
                    rate_bytes_per_s: rate,
                    ..registry::Options::default()
                })
                .await?,
            ),
        };
        let own = Own {
            server,
            directory: directory.to_owned(),
            first,
        };
        let reference = own.offer(TAG, &own.first)?;
        Ok(Self {
            kind: Kind::Own(Box::new(own)),
            reference,
        })
    }

    /// The first release's reference.
    pub(super) fn reference(&self) -> &str {
        &self.reference
    }

    /// The first release, if it was generated.
    pub(super) fn first(&self) -> Option<&GeneratedImage> {
        match &self.kind {
            Kind::Own(own) => Some(&own.first),
            Kind::Foreign => None,
        }
    }

    /// Where generated images lie.
    pub(super) fn directory(&self) -> Option<&Path> {
        match &self.kind {
            Kind::Own(own) => Some(&own.directory),
            Kind::Foreign => None,
        }
    }

    /// Serves a later release under a tag; returns its reference.
    pub(super) fn offer(&self, tag: &str, image: &GeneratedImage) -> anyhow::Result<String> {
        match &self.kind {
            Kind::Own(own) => own.offer(tag, image),
            Kind::Foreign => bail!("images can't be put into somebody else's registry"),
        }
    }

    /// The body bytes that left the demo's registry so far; `None` for somebody else's.
    pub(super) fn sent(&self) -> anyhow::Result<Option<u64>> {
        let Kind::Own(own) = &self.kind else {
            return Ok(None);
        };
        match &own.server {
            Server::Here(registry) => Ok(Some(registry.counters().bytes)),
            Server::Lab { .. } => settled(&own.directory.join(COUNTERS)).map(Some),
        }
    }

    /// Makes a release's recipe and pushes it beside the release, as a pipeline does: where the registry is, so that no
    /// link of the lab carries it.
    pub(super) fn push_recipe(&self, reference: &str) -> anyhow::Result<()> {
        let namespace = match &self.kind {
            Kind::Own(own) => own.server.namespace(),
            Kind::Foreign => &[],
        };
        let program = std::env::current_exe()?;
        let mut command = match namespace {
            [first, others @ ..] => {
                let mut command = Command::new(first);
                command.args(others).arg(program);
                command
            }
            [] => Command::new(program),
        };
        let registry = reference.split('/').next().unwrap_or_default();
        let made = command
            .args(["parbake", "recipe", reference, "--push"])
            .args(["--plain-http", registry])
            .stdin(Stdio::null())
            .output()?;
        ensure!(made.status.success(), "{}", said(&made));
        Ok(())
    }
}

impl Own {
    fn offer(&self, tag: &str, image: &GeneratedImage) -> anyhow::Result<String> {
        if let Server::Here(registry) = &self.server {
            return Ok(registry.hold(REPOSITORY, tag, image));
        }
        let path = self.directory.join(format!("{tag}{MANIFEST}"));
        let new = path.with_extension("new");
        std::fs::write(&new, &image.manifest)?;
        std::fs::rename(&new, &path)?;
        let until = Instant::now() + SERVES_WITHIN;
        let counters = self.directory.join(COUNTERS);
        while !serves(&counters, tag) {
            ensure!(
                Instant::now() < until,
                "the lab's registry doesn't serve {tag} after {SERVES_WITHIN:?}: see what it printed"
            );
            interrupt::check()?;
            cluster::pause();
        }
        Ok(format!("{LAB_REGISTRY}/{REPOSITORY}:{tag}"))
    }
}

impl Server {
    fn lab(lab: &str, directory: &Path) -> anyhow::Result<Self> {
        // a run before may have left what it counted
        match std::fs::remove_file(directory.join(COUNTERS)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let namespace = ["ip", "netns", "exec"].map(str::to_owned);
        let [ip, netns, exec] = namespace;
        let namespace = [ip, netns, exec, format!("{lab}registry")];
        let [first, others @ ..] = &namespace;
        let process = Command::new(first)
            .args(others)
            .arg(std::env::current_exe()?)
            .arg("registry")
            .arg(directory)
            .args(["--listen", LAB_REGISTRY])
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Self::Lab {
            _process: Ended(process),
            namespace,
        })
    }

    fn namespace(&self) -> &[String] {
        match self {
            Self::Here(_) => &[],
            Self::Lab { namespace, .. } => namespace,
        }
    }
}

/// Serves a directory of blobs, and each manifest that is put there, until it is killed. Keeps its counters current.
pub(super) async fn serve(cli: RegistryCli) -> anyhow::Result<bool> {
    let registry = Registry::start(registry::Options {
        listen: cli.listen,
        ..registry::Options::default()
    })
    .await?;
    let mut tags = BTreeSet::new();
    loop {
        for entry in std::fs::read_dir(&cli.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(tag) = name.to_str().and_then(|name| name.strip_suffix(MANIFEST)) else {
                continue;
            };
            if tags.insert(tag.to_owned()) {
                let manifest = std::fs::read(entry.path())?;
                registry.hold_directory(REPOSITORY, tag, &cli.dir, manifest.into());
            }
        }
        let counters = json!({"bytes": registry.counters().bytes, "tags": &tags}).to_string();
        let (new, path) = (cli.dir.join("counters.new"), cli.dir.join(COUNTERS));
        std::fs::write(&new, counters)?;
        std::fs::rename(new, path)?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn read(counters: &Path) -> anyhow::Result<Value> {
    let text =
        std::fs::read(counters).with_context(|| format!("reading {}", counters.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

/// Whether the lab's registry serves this tag. One that hasn't started says nothing yet.
fn serves(counters: &Path, tag: &str) -> bool {
    let said = read(counters).unwrap_or_default();
    let mut tags = said["tags"].as_array().into_iter().flatten();
    tags.any(|served| served == tag)
}

/// The bytes that a lab's registry sent, when they don't grow any more.
fn settled(counters: &Path) -> anyhow::Result<u64> {
    let bytes = || {
        read(counters)?["bytes"]
            .as_u64()
            .context("counters without bytes")
    };
    let mut before = bytes()?;
    loop {
        let until = Instant::now() + SETTLED;
        while Instant::now() < until {
            cluster::pause();
        }
        let now = bytes()?;
        if now == before {
            return Ok(now);
        }
        before = now;
    }
}
