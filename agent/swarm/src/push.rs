//! The parts of passing chunks on: an upload, its purpose, and who wishes it.

use alloc::vec::Vec;

use proto::{ChunkIndex, HostKey, Moment};

use crate::{
    event::{ContentId, Ticket},
    peer::PeerIndex,
};

/// An upload under way.
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    pub(crate) peer: PeerIndex,
    pub(crate) id: ContentId,
    pub(crate) chunk: ChunkIndex,
    pub(crate) ticket: Option<Ticket>,
    pub(crate) purpose: Purpose,
    pub(crate) since: Moment,
    /// The upload takes far too long: what depended on it goes on without it, and it holds up no other upload.
    pub(crate) slow: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Purpose {
    Handover(Handover),
    Spread {
        job: u64,
        tries: u8,
    },
    /// Nothing depends on how the upload ends.
    Answer,
}

/// A chunk to be handed to one host, which is to pass it on.
#[derive(Clone, Debug)]
pub(crate) struct Handover {
    pub(crate) id: ContentId,
    pub(crate) chunk: ChunkIndex,
    /// The hosts among which the chunk is to be spread; `None`: everyone.
    pub(crate) part: Option<Vec<HostKey>>,
    /// The chosen host.
    pub(crate) peer: PeerIndex,
    /// Push work that the handover gives the chosen host.
    pub(crate) work_bytes: u64,
    pub(crate) tries: u8,
    pub(crate) wisher: Wisher,
}

/// The host that wishes a chunk to be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wisher {
    /// We fetched the chunk from the registry, and the chunk hasn't left us once. Further fetching waits for such
    /// chunks.
    Ours,
    /// This peer wishes it, and sent us the chunk.
    Peer(PeerIndex),
    /// This peer wishes it of a chunk that was here already. Most hosts may have the chunk, so what is left to do is no
    /// work: whoever has us spread everything once more keeps us from no other chunk.
    Again(PeerIndex),
    /// Nobody wishes it any more: the chunk has left us once, or the peer is forgotten.
    Nobody,
}

impl Wisher {
    pub(crate) fn is_ours(self) -> bool {
        self == Self::Ours
    }

    /// The peer that wishes it, if any.
    pub(crate) const fn peer(self) -> Option<PeerIndex> {
        match self {
            Self::Peer(peer) | Self::Again(peer) => Some(peer),
            Self::Ours | Self::Nobody => None,
        }
    }

    /// Whether what is still to be sent counts as work.
    pub(crate) const fn makes_work(self) -> bool {
        !matches!(self, Self::Again(_))
    }
}
