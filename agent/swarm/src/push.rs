//! What is passed on: an upload, what it is for, and whose wish it is.

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
    /// It takes far too long: what it was for goes on without it, and it holds up no other.
    pub(crate) slow: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Purpose {
    Handover(Handover),
    Spread {
        job: u64,
        tries: u8,
    },
    /// Nothing depends on how it ends.
    Answer,
}

/// A chunk to be handed to one host, which is to pass it on.
#[derive(Clone, Debug)]
pub(crate) struct Handover {
    pub(crate) id: ContentId,
    pub(crate) chunk: ChunkIndex,
    /// Among whom it is to be spread; `None`: everyone.
    pub(crate) part: Option<Vec<HostKey>>,
    /// The chosen host.
    pub(crate) peer: PeerIndex,
    /// Push work that this gives it.
    pub(crate) work_bytes: u64,
    pub(crate) tries: u8,
    pub(crate) origin: Origin,
}

/// Whose wish it is that a chunk is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// We fetched it from the registry, and it hasn't left us once: fetching is paced by it.
    Ours,
    /// This peer's; the chunk came from it, or was here already.
    Peer(PeerIndex),
    /// Nobody's any more: it has left us once, or who wished it is forgotten.
    Nobody,
}

impl Origin {
    pub(crate) fn is_ours(self) -> bool {
        self == Self::Ours
    }
}
