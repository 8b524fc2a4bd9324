//! One fetch: what is wanted, where it is stored, and what its driver hears of it while it runs.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use origin::OriginError;
use proto::{ChunkIndex, Digest, Geometry, HostId, image::ContentKind};
use swarm::event::ContentId;
use tokio::sync::{mpsc, watch};

use crate::{
    notary::Notary,
    registries::Access,
    shelf::{Shelf, Unwritable},
    transfer::Cache,
};

/// One fetch.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: ContentId,
    pub(crate) content: Digest,
    pub(crate) geometry: Geometry,
    pub(crate) kind: ContentKind,
    pub(crate) shelves: Vec<Shelf>,
    pub(crate) reference: String,
    /// As it was ordered; a newer token comes while the fetch runs.
    pub(crate) access: watch::Receiver<Access>,
    pub(crate) me: HostId,
    /// Signs the links that are made; without it they stay on this host.
    pub(crate) notary: Option<Arc<Notary>>,
    pub(crate) cache: Arc<Cache>,
    /// The chunk to pause before; only rises.
    pub(crate) until: watch::Receiver<u32>,
    /// Bytes of the blob that came and were new, so far.
    pub(crate) moved: Arc<AtomicU64>,
    /// Set once the registry's bytes, or what they were chained to, turned out false: what we made of them is taken
    /// back from the first chunk on that comes otherwise the second time.
    pub(crate) doubted: bool,
    /// Where the fetch says how it goes. A full inbox slows the fetch down; a closed one ends it.
    pub(crate) inbox: mpsc::Sender<(ContentId, News)>,
}

/// What a fetch says while it runs.
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
    /// The second download differs from the first from this chunk on. This host dropped what it had made of the content
    /// behind that chunk: `chunks` were held, and aren't any more.
    Retracted {
        from: ChunkIndex,
        chunks: Vec<ChunkIndex>,
    },
    /// Images whose files couldn't take a chunk, although others could.
    Unwritable(Vec<Unwritable>),
}

/// Why an attempt ended before the content was whole.
#[derive(Debug)]
pub(super) enum Broke {
    Origin(OriginError),
    /// This host's settings for the registry don't do.
    Settings(String),
    /// No part is given, and to read the whole has cost enough.
    CutShort(OriginError),
    /// The bytes don't decode, or don't end in the digest.
    False(String),
    Disk(String),
    /// Peers have brought what comes next: it is worth another request to go on behind that.
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
    /// The first chunk that some shelf lacks.
    pub(super) fn first_missing(&self) -> u32 {
        let missing = |shelf: &Shelf| shelf.held(self.content).first_missing();
        let missing = self.shelves.iter().filter_map(missing).min();
        missing.map_or(self.geometry.chunks(), |chunk| chunk.0)
    }

    /// Tells the driver. An error where nobody listens any more.
    pub(super) async fn tell(&self, news: News) -> Result<(), Broke> {
        let sent = self.inbox.send((self.id, news)).await;
        sent.map_err(|_| Broke::Unwanted)
    }

    /// What travels: the digest and the size of the blob.
    pub(super) fn blob(&self) -> (Digest, u64) {
        match self.kind {
            ContentKind::RawLayer { blob } => (blob.digest, blob.size),
            ContentKind::Blob => (self.content, self.geometry.size()),
        }
    }
}
