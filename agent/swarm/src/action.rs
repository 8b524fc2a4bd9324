//! The actions that the swarm asks of the shell.

use proto::{ChunkIndex, ChunkRange, ChunkSet, HostKey};

use crate::event::{ContentId, Spread, Ticket};

/// Why a request or a push is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Declined {
    /// We are over our bounds. The peer may ask again later, or ask another host.
    Busy,
    /// We don't hold the chunk.
    Missing,
    /// We hold the chunk, or are receiving it (pushes).
    Already,
    /// We don't want this content (pushes).
    Unwanted,
    /// We don't talk to this peer for now.
    Quarantined,
    /// The coordinator doesn't name the peer among the hosts that may have the content.
    NotEntitled,
}

/// What the shell shall do. The shell reports by an event how each action ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect to this peer. Ends in `Connected` or `Disconnected`.
    Dial(HostKey),
    /// Close the connections to this peer.
    HangUp(HostKey),
    /// Ask this peer for a chunk. Ends in `Arrived` or `NotArrived`.
    Request {
        /// The peer.
        peer: HostKey,
        /// The content.
        id: ContentId,
        /// The chunk.
        chunk: ChunkIndex,
    },
    /// Give up a request or an accepted push. Ends in `NotArrived` with `Cancelled`, or in `Arrived` if the chunk was
    /// quicker.
    Cancel {
        /// The peer.
        peer: HostKey,
        /// The content.
        id: ContentId,
        /// The chunk.
        chunk: ChunkIndex,
    },
    /// Send this peer a chunk that the peer didn't ask for. Ends in `Sent`.
    Push {
        /// The peer.
        peer: HostKey,
        /// The content.
        id: ContentId,
        /// The chunk.
        chunk: ChunkIndex,
        /// The hosts to which the peer shall pass the chunk on; `None`: nobody.
        spread: Option<Spread>,
    },
    /// Take an offered push. Ends in `Arrived` or `NotArrived`.
    Accept(Ticket),
    /// Turn an offered push away.
    Decline(Ticket, Declined),
    /// Answer a request with the chunk. Ends in `Sent`.
    Serve(Ticket),
    /// Turn a request away.
    Refuse(Ticket, Declined),
    /// Tell this peer which chunks we hold: more chunks, or all of them where `reset`.
    Announce {
        /// The peer.
        peer: HostKey,
        /// The content.
        id: ContentId,
        /// The chunks.
        chunks: ChunkSet,
        /// Whether this replaces our earlier announcements of the content.
        reset: bool,
    },
    /// Tell this peer our load.
    AnnounceLoad {
        /// The peer.
        peer: HostKey,
        /// Push work that is assigned to us and isn't done.
        backlog_bytes: u64,
        /// Our upload rate.
        upload_bytes_per_second: u64,
    },
    /// Fetch the content from the registry, up to and without chunk `until`. This begins the fetch, or goes on where
    /// the fetch paused. `until` only rises. The shell doesn't report chunks that are held already.
    Fetch {
        /// The content.
        id: ContentId,
        /// The chunks that the fetch is for; `None`: all of them. It stays the same until the fetch stops or ends.
        range: Option<ChunkRange>,
        /// Where to pause.
        until: ChunkIndex,
    },
    /// Stop fetching. No more `OriginChunk` or `OriginEnded` comes for the content.
    StopFetch(ContentId),
    /// Tell the coordinator that the lease of a range is done: what this host was to fetch of it is here.
    RangeDone(ContentId),
    /// Tell the coordinator that we don't need this lease: the content is complete, or we can't fetch it.
    ReleaseLease(ContentId),
    /// Tell the coordinator that this peer was quarantined.
    Report {
        /// The peer.
        peer: HostKey,
        /// Failures counted against it.
        strikes: u32,
    },
}
