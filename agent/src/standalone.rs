//! The commands that need no coordinator: `status`, `verify`, and `stage` straight from the registry.

use std::{
    io::{self, Write as _},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use proto::{
    HostId, causes,
    figure::{Bytes, percent},
    image::Layout,
};
use serde_json::json;
use swarm::event::ContentId;
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
    task::JoinSet,
    time::sleep,
};
use tracing::{info, warn};

use crate::{
    admin::Snapshot,
    config::Config,
    fetch::{self, Access, FetchEnd, News, Origin},
    golden::Goldens,
    metrics::Metrics,
    program,
    shelf::Shelf,
    store::{Options, Stage, Store, VerifyError},
    transfer::Cache,
};

/// Layers fetched at once, as tart does.
const STREAMS: usize = 4;

/// Verified chunks are journaled this often: what a kill may cost, as under the agent.
const FLUSH_EVERY: Duration = Duration::from_millis(500);

/// The most bytes of a status answer: some hundred images.
const MAX_STATUS_BYTES: usize = 4 << 20;

/// Shows what the running agent holds; `false` when it isn't running.
pub(crate) async fn status(config: &Config, json: bool) -> anyhow::Result<bool> {
    let snapshot = match ask(config).await {
        Ok(snapshot) => snapshot,
        Err(error) => bail!(
            "no agent answers on {} (is it running? --admin): {}",
            config.admin,
            causes(&*error)
        ),
    };
    if json {
        return print(&serde_json::to_string(&snapshot)?);
    }
    print(text(&snapshot).trim_end())
}

/// A snapshot as people read it.
fn text(snapshot: &Snapshot) -> String {
    let session = if snapshot.coordinator { "up" } else { "down" };
    let mut text = format!(
        "host {}  coordinator {session}  peers {}/{} connected\n",
        snapshot.host, snapshot.connected, snapshot.peers
    );
    for image in &snapshot.images {
        text += &format!(
            "{:<10} {:>3} %  {}  {} of {} verified",
            image.state,
            percent(image.held_bytes, image.total_bytes),
            image.reference,
            Bytes(image.held_bytes),
            Bytes(image.total_bytes),
        );
        let (origin, peers) = (image.origin_bytes, image.peer_bytes);
        // what came before the agent's start isn't counted
        if origin + peers > 0 {
            text += &format!(
                "; received since the agent's start {} (registry {}, peers {})",
                Bytes(origin + peers),
                Bytes(origin),
                Bytes(peers)
            );
        }
        if image.local_bytes > 0 {
            text += &format!("; {} were here already", Bytes(image.local_bytes));
        }
        for words in [&image.reason, &image.message] {
            if !words.is_empty() {
                text += &format!("; {words}");
            }
        }
        text.push('\n');
    }
    text
}

async fn ask(config: &Config) -> anyhow::Result<Snapshot> {
    let exchange = async {
        let stream = TcpStream::connect(config.admin).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::get("/v1/status")
            .header(header::HOST, config.admin.to_string())
            .body(Empty::<bytes::Bytes>::new())?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let body = Limited::new(response.into_body(), MAX_STATUS_BYTES)
                .collect()
                .await;
            let body = body
                .map_err(|error| anyhow::anyhow!("reading the answer: {error}"))?
                .to_bytes();
            anyhow::Ok(serde_json::from_slice(&body)?)
        };
        tokio::select! {
            answer = answer => answer,
            Err(error) = connection => Err(error.into()),
        }
    };
    tokio::time::timeout(Duration::from_secs(5), exchange)
        .await
        .context("no answer within 5 s")?
}

#[expect(clippy::print_stdout, reason = "stdout is the answer")]
fn print(text: &str) -> anyhow::Result<bool> {
    println!("{text}");
    io::stdout().flush().context("writing to stdout")?;
    Ok(true)
}

/// Hashes an installed image again; `false` when it isn't what its manifest says.
pub(crate) async fn verify(config: &Config, image: &str, json: bool) -> anyhow::Result<bool> {
    let (home, image_name) = (config.tart_home.clone(), image.to_owned());
    let started = Instant::now();
    let checked = tokio::task::spawn_blocking(move || {
        let verified = crate::store::verify(&home, &image_name, |_, _| {});
        let damaged = verified.as_ref().is_err_and(VerifyError::is_damage);
        // the agent withdraws its presence and mends it
        let told = damaged.then(|| crate::store::doubt(&home, &image_name));
        (verified, told)
    });
    let (verified, told) = checked.await?;
    let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (verified, digest, mut message) = match verified {
        Ok(verified) => (true, Some(verified.digest.to_string()), String::new()),
        // nothing is said about an image that isn't here: a typo is no damage
        Err(
            error @ (VerifyError::Reference { .. }
            | VerifyError::Io { .. }
            | VerifyError::NotThere { .. }),
        ) => {
            return Err(error).with_context(|| format!("verifying {image}"));
        }
        Err(error) => (false, None, error.to_string()),
    };
    match told {
        Some(Ok(true)) => {
            message += "; where the agent runs and the image is still wanted, it withdraws its presence and mends it within seconds; \
                        else remove it with `tart delete`, and stage it anew";
        }
        Some(Ok(false)) => {
            message += "; this host's agent didn't stage it: remove it with `tart delete`, and pull or stage it anew";
        }
        Some(Err(error)) => message += &format!("; the agent can't be told: {error}"),
        None => {}
    }
    if json {
        let answer = json!({"image": image, "verified": verified, "digest": digest, "message": message, "elapsed_ms": elapsed_ms});
        print(&answer.to_string())?;
    } else if verified {
        print(&format!(
            "{image} is what its manifest says ({elapsed_ms} ms)"
        ))?;
    } else {
        print(&format!("{image} is NOT what its manifest says: {message}"))?;
    }
    Ok(verified)
}

/// Stages an image on this host alone.
pub(crate) async fn stage(config: &Config, image: &str, json: bool) -> anyhow::Result<bool> {
    let started = Instant::now();
    // before anything moves: tart has to find the image by it
    image
        .parse::<proto::Reference>()
        .with_context(|| format!("image reference {image} is refused"))?;
    let store = program::open_store(config, Options::default().lock_wait)
        .await
        .context("is the agent running? then order the image from the coordinator")?;
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
    tokio::task::spawn_blocking(move || stage.install(&references)).await??;
    if let Some(prefix) = config.golden_prefix.clone() {
        Goldens::new(config, prefix, Metrics::new().0)
            .make(image, manifest.digest, || named.is_named(image))
            .await?;
    }
    let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
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
    let me: HostId = "standalone".parse().context("this host's name")?;
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
                shelves: vec![Shelf::Stage(stage.clone())],
                reference: image.to_owned(),
                access: access.clone(),
                me: me.clone(),
                notary: None,
                cache: Arc::new(Cache::default()),
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
                    warn!(error, retry_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX), "registry has trouble; trying again");
                }
                _ => {}
            },
            Some(error) = flusher.join_next() => return Err(error?).context("journaling what came"),
            Some(ended) = fetches.join_next() => match ended? {
                FetchEnd::Done => {}
                FetchEnd::Failed(failure) => bail!("staging {image}: {failure}"),
                FetchEnd::Bad(message) | FetchEnd::Disk(message) => bail!("staging {image}: {message}"),
                FetchEnd::Unwanted => bail!("staging {image}: it was removed meanwhile"),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::ImageStatus;

    #[test]
    fn every_figure_has_a_name_and_what_was_not_counted_is_not_shown() {
        let image = ImageStatus {
            reference: "ghcr.io/org/image:v1".into(),
            state: "staging".into(),
            reason: "throttled".into(),
            message: "no progress for 5 s".into(),
            total_bytes: 536_873_124,
            held_bytes: 231_737_508,
            origin_bytes: 85_663_537,
            peer_bytes: 163_971_816,
            local_bytes: 1_000,
            ..ImageStatus::default()
        };
        let restarted = ImageStatus {
            state: "present".into(),
            reason: String::new(),
            message: String::new(),
            held_bytes: image.total_bytes,
            origin_bytes: 0,
            peer_bytes: 0,
            local_bytes: 0,
            ..image.clone()
        };
        let snapshot = Snapshot {
            host: "mini-1".into(),
            coordinator: true,
            peers: 2,
            connected: 2,
            images: vec![image, restarted],
            ..Snapshot::default()
        };
        assert_eq!(
            text(&snapshot),
            "host mini-1  coordinator up  peers 2/2 connected\n\
             staging     43 %  ghcr.io/org/image:v1  231.7 MB of 536.8 MB verified; \
             received since the agent's start 249.6 MB (registry 85.6 MB, peers 163.9 MB); 1.0 kB were here already; \
             throttled; no progress for 5 s\n\
             present    100 %  ghcr.io/org/image:v1  536.8 MB of 536.8 MB verified\n"
        );
    }
}
