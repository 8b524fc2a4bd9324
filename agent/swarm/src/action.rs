//! What the swarm wants done.

use proto::{ChunkIndex, ChunkSet, HostKey};

use crate::event::{ContentId, Spread, Ticket};

/// Why a request or a push is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Declined {
    /// Over our bounds; ask again later or elsewhere.
    Busy,
    /// We don't hold it.
    Missing,
    /// We hold it or are receiving it already (pushes).
    Already,
    /// We don't want this content (pushes).
    Unwanted,
    /// We don't talk to this peer for now.
    Quarantined,
    /// The coordinator doesn't name the peer among the hosts that may have it.
    NotEntitled,
}

/// What the shell shall do. It reports how each ended by an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect to this peer; ends in `Connected` or `Disconnected`.
    Dial(HostKey),
    /// Close the connections to this peer.
    HangUp(HostKey),
    /// Ask this peer for a chunk; ends in `Arrived` or `NotArrived`.
    Request {
        /// The peer.
        peer: HostKey,
        /// The content.
        id: ContentId,
        /// The chunk.
        chunk: ChunkIndex,
    },
    /// Give up a request or an accepted push; ends in `NotArrived` with `Cancelled` (or in `Arrived`, if it was
    /// quicker).
    Cancel {
        /// The peer.
        peer: HostKey,
        /// The content.
        id: ContentId,
        /// The chunk.
        chunk: ChunkIndex,
    },
    /// Send this peer a chunk that it didn't ask for; ends in `Sent`.
    Push {
        /// The peer.
        peer: HostKey,
        /// The content.
        id: ContentId,
        /// The chunk.
        chunk: ChunkIndex,
        /// To whom it shall pass it on.
        spread: Option<Spread>,
    },
    /// Take an offered push; ends in `Arrived` or `NotArrived`.
    Accept(Ticket),
    /// Turn an offered push away.
    Decline(Ticket, Declined),
    /// Answer a request with the chunk; ends in `Sent`.
    Serve(Ticket),
    /// Turn a request away.
    Refuse(Ticket, Declined),
    /// Tell this peer what we hold: more of it, or all of it where `reset`.
    Announce {
        /// The peer.
        peer: HostKey,
        /// The content.
        id: ContentId,
        /// The chunks.
        chunks: ChunkSet,
        /// Whether this replaces what we announced before.
        reset: bool,
    },
    /// Tell this peer our load.
    AnnounceLoad {
        /// The peer.
        peer: HostKey,
        /// Push work assigned to us and not done.
        backlog_bytes: u64,
        /// Our upload rate.
        upload_bytes_per_second: u64,
    },
    /// Fetch the content from the registry, up to and without chunk `until`: begin, or go on where it paused. `until`
    /// only rises. Chunks that are held already aren't reported again.
    Fetch {
        /// The content.
        id: ContentId,
        /// Where to pause.
        until: ChunkIndex,
    },
    /// Stop fetching; no more `OriginChunk` or `OriginEnded` for it.
    StopFetch(ContentId),
    /// Tell the coordinator that we don't need this lease: the content is complete, or we can't.
    ReleaseLease(ContentId),
    /// Tell the coordinator that this peer was quarantined.
    Report {
        /// The peer.
        peer: HostKey,
        /// Failures counted against it.
        strikes: u32,
    },
}
