//! What is on its way between this host, its peers and the registries.

use std::sync::{Arc, atomic::AtomicU64};

use proto::{ChunkIndex, Digest, HostKey, message::ChunkHeader};
use swarm::event::ContentId;
use tokio::{sync::watch, task::AbortHandle};
use tokio_util::sync::CancellationToken;

use crate::fetch::Access;

/// A question of a peer that waits for the swarm's answer.
#[derive(Debug)]
pub(super) enum Waiting {
    Request {
        peer: HostKey,
        id: ContentId,
        chunk: ChunkIndex,
        sender: link::Sender,
    },
    Push {
        peer: HostKey,
        id: ContentId,
        chunk: ChunkIndex,
        header: Box<ChunkHeader>,
        sender: link::Sender,
        receiver: link::Receiver,
    },
}

/// A chunk that is being received.
#[derive(Debug)]
pub(super) struct Transfer {
    /// Tells it from another one of the same chunk from the same peer, over a connection that is dead.
    pub(super) number: u64,
    pub(super) token: CancellationToken,
}

/// A fetch under way.
#[derive(Debug)]
pub(super) struct Fetch {
    /// The image by whose order it asks the registry; none for a blob of the mirror.
    pub(super) image: Option<Digest>,
    pub(super) until: watch::Sender<u32>,
    pub(super) access: watch::Sender<Access>,
    /// Bytes of the blob that came and were new, so far.
    pub(super) moved: Arc<AtomicU64>,
    pub(super) abort: AbortHandle,
}
