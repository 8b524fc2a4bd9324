//! `parbake-agent stage`: an image straight from its registry, on this host alone.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use proto::{HostId, figure::Bytes, image::Layout};
use serde_json::json;
use swarm::event::ContentId;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::sleep,
};
use tracing::{info, warn};

use super::answer::print;
use crate::{
    config::Config,
    fetch::{self, FetchEnd, News},
    golden::Goldens,
    metrics::Metrics,
    registries::{Access, Origin},
    shelf::Shelf,
    store::{Options, Stage, Store, install},
    tart::Tart,
    transfer::Cache,
};

/// Layers fetched at once, as tart does.
const STREAMS: usize = 4;

/// Verified chunks are journaled this often: what a kill may cost, as under the agent.
const FLUSH_EVERY: Duration = Duration::from_millis(500);

/// Stages an image on this host alone.
pub(crate) async fn stage(config: &Config, image: &str, json: bool) -> anyhow::Result<bool> {
    let started = Instant::now();
    // before anything moves: tart has to find the image by it
    image
        .parse::<proto::Reference>()
        .with_context(|| format!("image reference {image} is refused"))?;
    let options = Options {
        floor_percent: config.floor.percent,
        kept_bytes: config.floor.kept_bytes,
        ..Options::default()
    };
    let store = Store::open_in_background(config.tart_home.clone(), options)
        .await
        .context("staging needs tart's home for itself; if the agent runs here, order the image with `parbake stage` instead")?;
    let origin = Origin::new(&config.origin)?;
    let repository = origin.repository(image, &Access::default())?;
    let manifest = repository
        .manifest(repository.version())
        .await
        .with_context(|| format!("asking the registry for {image}"))?;
    let layout = Layout::parse(&manifest.bytes, &manifest.digest)
        .with_context(|| format!("{image} can't be staged"))?;
    info!(image, digest = %manifest.digest, bytes = layout.content_bytes(), "staging from the registry alone");
    let references = vec![image.to_owned()];
    let begin = (
        store.clone(),
        layout.clone(),
        manifest.bytes.clone(),
        references.clone(),
    );
    let (stage, local_bytes) = tokio::task::spawn_blocking(move || {
        let (store, layout, manifest, references) = begin;
        store.begin(&layout, &manifest, &references)
    })
    .await??;
    let fetched = fetch_all(&origin, &store, &stage, image).await;
    // whatever came is kept, also of a fetch that failed
    let flushing = store.clone();
    tokio::task::spawn_blocking(move || flushing.flush()).await??;
    let origin_bytes = fetched?;
    let named = stage.clone();
    tokio::task::spawn_blocking(move || install(&stage, &references)).await??;
    if let Some(prefix) = config.golden_prefix.clone() {
        let tart = Tart::new(config.tart_binary.clone(), config.tart_home.clone());
        Goldens::new(prefix, config.tart_home.clone(), tart, Metrics::new().0)
            .make(image, manifest.digest, || named.is_named(image))
            .await?;
    }
    let elapsed_ms = proto::millis(started.elapsed());
    if json {
        let answer = json!({
            "image": image, "digest": manifest.digest.to_string(), "present": true,
            "bytes": {"origin": origin_bytes, "peers": 0, "local": local_bytes}, "elapsed_ms": elapsed_ms,
        });
        print(&answer.to_string())
    } else {
        print(&format!(
            "{image} is present ({}, {} from the registry, {elapsed_ms} ms)",
            manifest.digest,
            Bytes(origin_bytes)
        ))
    }
}

/// Fetches what the stage lacks. The bytes that came from the registry.
async fn fetch_all(
    origin: &Origin,
    store: &Arc<Store>,
    stage: &Arc<Stage>,
    image: &str,
) -> anyhow::Result<u64> {
    let layout = stage.layout();
    let me: HostId = "standalone".parse().context("naming this host")?;
    let (inbox, mut progress) = mpsc::channel(64);
    // nobody else is to be spared: each fetch may go to its end
    let (_everything, until) = watch::channel(u32::MAX);
    let (_own, access) = watch::channel(Access::default());
    let mut missing: Vec<_> = layout
        .contents()
        .into_iter()
        .filter(|spec| !stage.is_closed(spec.digest))
        .collect();
    missing.reverse();
    let mut fetches = JoinSet::new();
    let mut origin_bytes = 0;
    let mut flusher = JoinSet::new();
    flusher.spawn(keep_flushed(store.clone()));
    loop {
        while fetches.len() < STREAMS
            && let Some(spec) = missing.pop()
        {
            let mut job = fetch::Job {
                id: ContentId(0),
                content: spec.digest,
                geometry: spec.geometry,
                kind: spec.kind,
                range: None,
                shelves: vec![Shelf::Stage(stage.clone())],
                reference: image.to_owned(),
                access: access.clone(),
                me: me.clone(),
                notary: None,
                cache: Arc::new(Cache::default()),
                unfit: Arc::default(),
                until: until.clone(),
                moved: Arc::default(),
                doubted: false,
                inbox: inbox.clone(),
            };
            let (origin, stage, digest) = (origin.clone(), stage.clone(), spec.digest);
            fetches.spawn(async move {
                match fetch::run(&origin, &mut job).await {
                    FetchEnd::Done if stage.walk(digest).is_err() || !stage.is_closed(digest) => {
                        FetchEnd::Bad(format!("{digest}: chain doesn't close"))
                    }
                    end => end,
                }
            });
        }
        if fetches.is_empty() {
            return Ok(origin_bytes);
        }
        tokio::select! {
            Some((_, news)) = progress.recv() => match news {
                News::Chunk { origin_bytes: bytes, .. } => origin_bytes += bytes,
                News::Trouble { error, wait, .. } => {
                    warn!(error, retry_ms = proto::millis(wait), "registry has trouble; trying again");
                }
                _ => {}
            },
            Some(error) = flusher.join_next() => return Err(error?).context("noting on disk which chunks came"),
            Some(ended) = fetches.join_next() => match ended? {
                FetchEnd::Done => {}
                FetchEnd::Failed(failure) => bail!("staging {image}: {failure}"),
                FetchEnd::Bad(message) | FetchEnd::Disk(message) => bail!("staging {image}: {message}"),
                FetchEnd::Unwanted => bail!("staging {image}: its files were removed meanwhile; stage it again"),
            },
        }
    }
}

/// Journals what came, again and again, until that fails.
async fn keep_flushed(store: Arc<Store>) -> io::Error {
    loop {
        sleep(FLUSH_EVERY).await;
        let flushing = store.clone();
        let flushed = tokio::task::spawn_blocking(move || flushing.flush()).await;
        if let Err(error) = flushed.unwrap_or_else(|died| Err(io::Error::other(died))) {
            return error;
        }
    }
}
