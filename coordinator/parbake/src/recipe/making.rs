//! Makes the recipe of an image of the image's bytes. Some contents are read at a time; each has a thread that decodes
//! and hashes while the next bytes come, and no layer is ever in memory as a whole.

use anyhow::Context as _;
use apple_lz4::Decoder;
use bytes::Bytes;
use origin::{OriginError, Repository};
use proto::{
    Layout,
    image::{Blob, ContentKind, ContentSpec},
    recipe::{ContentRecipe, Maker, Recipe},
};
use tokio::{
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
    time::sleep,
};

use super::{
    patience::Patience,
    progress::{Count, Progress},
    tart::{Installed, Place},
};

/// Pieces that wait for a content's thread. hyper reads 400 KiB at a time at most, so they have 3 MiB for each content.
const WAITING_PIECES: usize = 8;
/// Bytes after which a blob has moved, so that failures are counted anew.
const MOVED_BYTES: u64 = 1 << 20;

/// Where an image's bytes come from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Registry(Repository),
    Tart(Installed),
}

impl Source {
    /// The bytes that are read for the contents.
    pub(super) fn bytes(&self, layout: &Layout) -> u64 {
        let contents = layout.contents();
        let bytes = contents.iter().map(|content| match self {
            Self::Registry(_) => blob(content).size,
            Self::Tart(_) => content.geometry.size(),
        });
        bytes.sum()
    }

    /// Where a content stands on this machine, if the image is read from tart's cache.
    fn place(&self, layout: &Layout, spec: &ContentSpec) -> Option<Place> {
        match self {
            Self::Registry(_) => None,
            Self::Tart(installed) => installed.place(layout, spec),
        }
    }

    async fn make(
        self,
        spec: ContentSpec,
        place: Option<Place>,
        count: Count,
    ) -> anyhow::Result<ContentRecipe> {
        match self {
            Self::Registry(repository) => streamed(&repository, spec, &count).await,
            Self::Tart(_) => {
                let place = place.context("a content that `has_all` has refused")?;
                spawn_blocking(move || Installed::make(&place, &spec, &count))
                    .await
                    .context("reading from tart's cache")?
            }
        }
    }
}

/// Makes the recipe, with so many contents read at a time.
pub(super) async fn make(
    source: &Source,
    layout: &Layout,
    at_a_time: usize,
    progress: &mut Progress,
) -> anyhow::Result<Recipe> {
    let mut contents = layout.contents().into_iter();
    let mut running = JoinSet::new();
    let mut made = Vec::new();
    loop {
        while running.len() < at_a_time
            && let Some(spec) = contents.next()
        {
            let place = source.place(layout, &spec);
            running.spawn(source.clone().make(spec, place, progress.count()));
        }
        tokio::select! {
            done = running.join_next() => match done {
                Some(done) => made.push(done.context("making a content's recipe")??),
                None => break,
            },
            () = progress.due() => progress.line(),
        }
    }
    progress.finish();
    Ok(Recipe::new(layout, made)?)
}

/// The blob from which a content comes.
const fn blob(spec: &ContentSpec) -> Blob {
    match spec.kind {
        ContentKind::RawLayer { blob } => blob,
        ContentKind::Blob => Blob {
            digest: spec.digest,
            size: spec.geometry.size(),
        },
    }
}

async fn streamed(
    repository: &Repository,
    spec: ContentSpec,
    count: &Count,
) -> anyhow::Result<ContentRecipe> {
    let blob = blob(&spec);
    let digest = spec.digest;
    let (pieces, coming) = mpsc::channel(WAITING_PIECES);
    let thread = spawn_blocking(move || take_all(&spec, coming));
    let fetched = fetch(repository, blob, &pieces, count).await;
    // the thread ends with the last piece
    drop(pieces);
    let made = thread.await.context("decoding and hashing")?;
    fetched?;
    made.with_context(|| {
        format!(
            "{} isn't content {digest} of the manifest; push the image again",
            repository.what_blob(&blob.digest)
        )
    })
}

/// Streams a blob to its thread. When the stream breaks off for a passing reason, it goes on at the same byte. Ends
/// early when the thread has ended, whose result says why.
async fn fetch(
    repository: &Repository,
    blob: Blob,
    pieces: &mpsc::Sender<Bytes>,
    count: &Count,
) -> Result<(), OriginError> {
    let mut patience = Patience::new();
    let (mut at, mut failed_at) = (0, 0);
    loop {
        let Err(error) = stream(repository, blob, &mut at, pieces, count).await else {
            return Ok(());
        };
        if at - failed_at >= MOVED_BYTES {
            patience.moved();
        }
        failed_at = at;
        let Some(delay) = patience.delay(&error) else {
            return Err(error);
        };
        let seconds = delay.as_secs_f64();
        count.tell(&format!("{error}; going on at byte {at} in {seconds:.1} s"));
        sleep(delay).await;
    }
}

/// Streams a blob from a byte on, once, and counts that byte up.
async fn stream(
    repository: &Repository,
    blob: Blob,
    at: &mut u64,
    pieces: &mpsc::Sender<Bytes>,
    count: &Count,
) -> Result<(), OriginError> {
    let mut stream = repository.blob(&blob.digest, *at, blob.size).await?;
    while let Some(piece) = stream.piece().await? {
        let length = piece.len();
        if pieces.send(piece).await.is_err() {
            break;
        }
        *at += length as u64;
        count.add(length);
    }
    Ok(())
}

/// Decodes and hashes what comes. Blocks until the sender is gone.
fn take_all(
    spec: &ContentSpec,
    mut coming: mpsc::Receiver<Bytes>,
) -> anyhow::Result<ContentRecipe> {
    let mut maker = Maker::of(spec);
    let mut decoder = match spec.kind {
        ContentKind::RawLayer { .. } => Some(Decoder::new(spec.geometry.size())),
        ContentKind::Blob => None,
    };
    while let Some(piece) = coming.blocking_recv() {
        let Some(decoder) = &mut decoder else {
            maker.take(&piece)?;
            continue;
        };
        maker.take_blob(&piece)?;
        let mut input = &piece[..];
        while let Some(block) = decoder.feed(&mut input)? {
            maker.take_block(block.start.blob_offset, block.raw)?;
        }
    }
    if let Some(decoder) = decoder {
        decoder.finish()?;
    }
    Ok(maker.finish()?)
}
