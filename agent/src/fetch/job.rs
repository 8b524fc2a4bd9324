//! One fetch: the content, the shelves where it is stored, and the news for its driver.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use origin::OriginError;
use proto::{ChunkIndex, ChunkRange, Digest, Geometry, HostId, HostKey, image::ContentKind};
use swarm::event::ContentId;
use tokio::sync::{mpsc, watch};

use crate::{
    notary::Notary,
    registries::Access,
    shelf::{Shelf, Unwritable},
    transfer::{Cache, Unfit},
};

/// One fetch.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: ContentId,
    pub(crate) content: Digest,
    pub(crate) geometry: Geometry,
    pub(crate) kind: ContentKind,
    /// The chunks to fetch; `None`: all of them. A range needs a recipe. It begins at the content's beginning or behind
    /// a chunk that is held.
    pub(crate) range: Option<ChunkRange>,
    pub(crate) shelves: Vec<Shelf>,
    pub(crate) reference: String,
    /// The access as it was ordered; a newer token may come while the fetch runs.
    pub(crate) access: watch::Receiver<Access>,
    pub(crate) me: HostId,
    /// Signs the links that are made. Without a notary the links stay on this host.
    pub(crate) notary: Option<Arc<Notary>>,
    pub(crate) cache: Arc<Cache>,
    /// Parts of chunks that peers sent and that didn't fit: the registry's bytes judge them.
    pub(crate) unfit: Arc<Unfit>,
    /// The chunk to pause before. It only rises.
    pub(crate) until: watch::Receiver<u32>,
    /// Bytes of the blob that came and were new, so far.
    pub(crate) moved: Arc<AtomicU64>,
    /// Set once the registry's bytes, or an earlier link, turned out false. The second download then shows the first
    /// chunk that differs. From this chunk on, the links that we made are taken back.
    pub(crate) doubted: bool,
    /// The channel for the fetch's progress. A full inbox slows the fetch down; a closed inbox ends it.
    pub(crate) inbox: mpsc::Sender<(ContentId, News)>,
}

/// The news that a fetch reports while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// A chunk came from the registry and is stored.
    Chunk {
        chunk: ChunkIndex,
        /// Bytes of the blob that came for this chunk.
        origin_bytes: u64,
        /// The chunk took the place of another one that was held.
        conflict: bool,
    },
    /// The registry refuses the token that the coordinator handed down. The fetch waits for a newer one.
    Refused { error: String },
    /// A connection broke after it had brought something. The fetch goes on at once.
    Broke { after_bytes: u64, error: String },
    /// An attempt failed. The fetch tries again.
    Trouble {
        error: String,
        /// The pause that the registry asked for.
        retry_after: Option<Duration>,
        /// The pause until the next attempt.
        wait: Duration,
    },
    /// The bytes that came don't end in the digest. The fetch starts again at the blob's beginning.
    Doubted,
    /// The second download differs from the first from this chunk on. This host dropped the links that it had made
    /// behind that chunk: `chunks` were held, and aren't any more.
    Retracted {
        from: ChunkIndex,
        chunks: Vec<ChunkIndex>,
    },
    /// The registry's bytes don't fit what this recipe says of a chunk. The content goes on without the recipe.
    AgainstRecipe { recipe: Digest, chunk: ChunkIndex },
    /// These peers sent a part of the chunk that isn't the registry's.
    Liars {
        chunk: ChunkIndex,
        peers: Vec<HostKey>,
    },
    /// Images whose files couldn't take a chunk, although others could.
    Unwritable(Vec<Unwritable>),
}

/// Why an attempt ended before the content was whole.
#[derive(Debug)]
pub(super) enum Broke {
    Origin(OriginError),
    /// This host's settings for the registry are unusable.
    Settings(String),
    /// The registry gives no parts, and reading the whole blob has cost enough.
    CutShort(OriginError),
    /// The bytes don't decode, or don't end in the digest.
    False(String),
    Disk(String),
    /// The next chunks are here: going on behind them is worth another request. Or the part that was asked for is over.
    Passed,
    /// The image or the driver is gone.
    Unwanted,
}

impl From<OriginError> for Broke {
    fn from(error: OriginError) -> Self {
        Self::Origin(error)
    }
}

impl Job {
    /// The first chunk to fetch that some shelf lacks; the one behind the last chunk to fetch, where none does.
    pub(super) fn first_missing(&self) -> u32 {
        let missing = |shelf: &Shelf| {
            let held = shelf.held(self.content);
            match self.range {
                Some(range) => range.chunks().find(|chunk| !held.contains(*chunk)),
                None => held.first_missing(),
            }
        };
        let missing = self.shelves.iter().filter_map(missing).min();
        missing.map_or(self.end(), |chunk| chunk.0)
    }

    /// The chunk behind the last one to fetch.
    pub(super) fn end(&self) -> u32 {
        let chunks = self.geometry.chunks();
        self.range.map_or(chunks, |range| range.until().min(chunks))
    }

    /// Whether a chunk is to be fetched.
    pub(super) fn has(&self, chunk: ChunkIndex) -> bool {
        self.range.is_none_or(|range| range.contains(chunk))
    }

    /// Whether a recipe proves each chunk that is held. Without a recipe all of the blob is read: what peers brought of
    /// it may be false.
    pub(super) fn is_by_recipe(&self) -> bool {
        let by_recipe = |shelf: &Shelf| shelf.recipe(self.content).is_some();
        self.shelves.iter().all(by_recipe)
    }

    /// Whether no shelf lacks a chunk to fetch, and a recipe proves all of them.
    pub(super) fn has_all_by_recipe(&self) -> bool {
        self.first_missing() == self.end() && self.is_by_recipe()
    }

    /// Tells the driver. The error means that the driver doesn't listen any more.
    pub(super) async fn tell(&self, news: News) -> Result<(), Broke> {
        let sent = self.inbox.send((self.id, news)).await;
        sent.map_err(|_| Broke::Unwanted)
    }

    /// The digest and the size of the blob, as it travels.
    pub(super) fn blob(&self) -> (Digest, u64) {
        match self.kind {
            ContentKind::RawLayer { blob } => (blob.digest, blob.size),
            ContentKind::Blob => (self.content, self.geometry.size()),
        }
    }
}
