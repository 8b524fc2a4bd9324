//! The events that the shell tells the swarm.

use alloc::{collections::BTreeSet, sync::Arc, vec::Vec};
use core::time::Duration;

use proto::{ChunkIndex, ChunkRange, ChunkSet, HostKey};

/// The order of a content: [`Event::Content`] has it. `rank` is the place of the content's image among the images of
/// this host, and `place` the content's place in its image; places from 65,535 on are one place. What clients of this
/// host wait for has rank 0.
#[must_use]
pub const fn order_of(rank: u16, place: u32) -> u32 {
    let place = if place < PLACES { place } else { PLACES - 1 };
    rank as u32 * PLACES + place
}

/// The rank of a content of this order.
pub(crate) const fn rank_of(order: u32) -> u32 {
    order / PLACES
}

/// The place of a content of this order.
pub(crate) const fn place_of(order: u32) -> u32 {
    order % PLACES
}

/// The number of places in one rank.
const PLACES: u32 = 1 << 16;

/// A content's number on this host. The shell chooses the number, and never reuses it while the swarm lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentId(pub u32);

/// A question that waits for an answer. The shell numbers the questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A host of the fleet's roster, other than this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The host's key.
    pub key: HostKey,
    /// The host's zone, as a number that only serves to compare zones. 0 is the zone of hosts that have none.
    pub zone: u32,
    /// Whether the coordinator chose the host as our neighbour. We ask neighbours for their announcements and for
    /// chunks.
    pub neighbour: bool,
}

/// The hosts that may have a content, as the coordinator says. `None`: every host of the roster.
pub type Entitled = Option<Arc<BTreeSet<HostKey>>>;

/// The hosts to which a chunk is to be passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Every host of the roster that isn't known to hold the chunk.
    Everyone,
    /// These hosts, sorted by key.
    To(Vec<HostKey>),
}

/// Why a chunk didn't come that was asked for or offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// The bytes don't fit the link that came with them, or the link can't be true. The sender lies or is broken.
    Bad,
    /// The link can't be true, or another link of the same maker can't. The sender may believe the link. Once the
    /// sender has verified its copy, it may vouch for the chunk itself.
    Disproved,
    /// A part came, and with what this host has it isn't the chunk: the peer's bytes are false, or this host's. The
    /// chunk tells which, when it comes.
    Unfit,
    /// The peer has too many uploads under way.
    Busy,
    /// The peer doesn't hold the chunk, or no longer does.
    Missing,
    /// The peer refused for another reason, or broke the protocol.
    Refused,
    /// Nothing moved for the time that the swarm had set, or the connection broke.
    Broken,
    /// This host couldn't store the chunk (disk full, I/O error).
    NotStored,
    /// The swarm cancelled the transfer.
    Cancelled,
}

/// What the receiver made of a chunk that we sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Delivery {
    /// The receiver verified and stored the chunk.
    Stored,
    /// The receiver held the chunk already, or was receiving it from another host.
    Already,
    /// The receiver takes no more chunks now.
    Busy,
    /// The receiver doesn't want this content.
    Unwanted,
    /// The receiver says that our bytes are bad.
    Bad,
    /// The connection broke, or the receiver failed.
    Broken,
}

/// How fetching a content from the registry ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OriginEnd {
    /// Every chunk came.
    Done,
    /// The registry is down, throttles for long, or can't be asked by this host.
    Failed,
    /// The registry refuses: it doesn't have the content, or doesn't give it to the credentials that this host brought.
    Refused,
    /// The registry's bytes don't match the manifest.
    Bad,
}

/// What happened, as the shell saw it. Any event is legal in any state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The fleet's roster: every host that we may talk to, without ourselves. It replaces the earlier roster.
    Roster(Vec<Peer>),
    /// The coordinator's session is up (`true`) or lost.
    Coordinator(bool),
    /// A connection to a peer is ready, whichever side opened it.
    Connected(HostKey),
    /// The last connection to a peer is gone, or dialling it failed.
    Disconnected(HostKey),
    /// This host wants a content, or only serves it (where `held` is full). Repeating the event changes only `order`
    /// and `entitled`.
    Content {
        /// The content.
        id: ContentId,
        /// A key for tie-breaking that is the same on every host: the first eight bytes of the content's digest,
        /// big-endian.
        key: u64,
        /// Bytes in the content. The last chunk may be shorter than the others.
        size: u64,
        /// The chunks that are held and verified already.
        held: ChunkSet,
        /// Contents of lower order are wanted first: see [`order_of`]. Those of a higher rank come only where nothing
        /// of the lower ones can be asked for.
        order: u32,
        /// The hosts that may have the content. Other hosts neither hear of the content nor get any of it from this
        /// host.
        entitled: Entitled,
    },
    /// The content isn't wanted or held any more.
    Dropped(ContentId),
    /// A client of this host waits for a content that an earlier `Content` named. The client doesn't wait for ever: if
    /// neither a chunk nor word of the content comes for long enough, this host fetches it without a lease. The want
    /// lasts until `Unwanted` or `Dropped`. Repeating the event changes `alone_after`, and doesn't begin the wait anew.
    Wanted {
        /// The content.
        id: ContentId,
        /// How long to wait for a host that may be fetching the content. Each host that goes to the registry before
        /// this one adds the same time again.
        alone_after: Duration,
        /// The registry had refused the content to this host, and has now let this client in: the fetch begins without
        /// a wait.
        admitted: bool,
    },
    /// No client of this host waits for the content any more.
    Unwanted(ContentId),
    /// The coordinator says that chunks of a content are coming to some host, or that the content has its place in the
    /// queue. A host that wants the content goes on waiting.
    Coming(ContentId),
    /// A held chunk was proved false or lost from disk.
    ChunkLost {
        /// The content.
        id: ContentId,
        /// The chunk.
        chunk: ChunkIndex,
    },
    /// A peer announced chunks.
    Announced {
        /// The peer.
        peer: HostKey,
        /// The content.
        id: ContentId,
        /// The chunks: more of them, or all of them where `reset`.
        chunks: ChunkSet,
        /// Whether this replaces the peer's earlier announcements of the content.
        reset: bool,
    },
    /// A peer announced its load.
    Load {
        /// The peer.
        peer: HostKey,
        /// Push work that is assigned to the peer and isn't done.
        backlog_bytes: u64,
        /// The upload rate that the peer claims. The swarm believes it within bounds.
        upload_bytes_per_second: u64,
    },
    /// The coordinator leased us a content: we may fetch the content from the registry.
    Leased(ContentId),
    /// The coordinator leased us a range of a content: we may fetch its chunks from the registry, and other hosts fetch
    /// the others. It takes the place of an earlier lease of the content.
    RangeLeased(ContentId, ChunkRange),
    /// The lease is over (revoked or expired).
    LeaseLost(ContentId),
    /// A chunk came from the registry. The chunk is verified against its neighbours where they are there, and stored.
    OriginChunk {
        /// The content.
        id: ContentId,
        /// The chunk.
        chunk: ChunkIndex,
        /// Bytes that came from the registry for the chunk.
        wire_bytes: u64,
    },
    /// Fetching ended.
    OriginEnded {
        /// The content.
        id: ContentId,
        /// How the fetch ended.
        end: OriginEnd,
    },
    /// A peer wants to push a chunk to us. The swarm answers at once, by [`Action::Accept`](crate::Action::Accept) or
    /// [`Action::Decline`](crate::Action::Decline).
    Offered {
        /// The question.
        ticket: Ticket,
        /// The peer.
        peer: HostKey,
        /// The content, which the shell knows.
        id: ContentId,
        /// The chunk.
        chunk: ChunkIndex,
        /// The hosts to which we shall pass the chunk on; `None`: nobody.
        spread: Option<Spread>,
    },
    /// A chunk that was requested or accepted is verified and stored.
    Arrived {
        /// The sender.
        peer: HostKey,
        /// The content.
        id: ContentId,
        /// The chunk.
        chunk: ChunkIndex,
        /// Bytes that the chunk took on the wire.
        wire_bytes: u64,
    },
    /// A chunk that was requested or accepted won't come.
    NotArrived {
        /// The host that should have sent the chunk.
        peer: HostKey,
        /// The content.
        id: ContentId,
        /// The chunk.
        chunk: ChunkIndex,
        /// Why.
        failure: Failure,
    },
    /// A peer requests a chunk from us. The swarm answers by [`Action::Serve`](crate::Action::Serve) or
    /// [`Action::Refuse`](crate::Action::Refuse), perhaps later, and also if the peer's connection ends before.
    Requested {
        /// The question.
        ticket: Ticket,
        /// The peer.
        peer: HostKey,
        /// The content.
        id: ContentId,
        /// The chunk.
        chunk: ChunkIndex,
    },
    /// The peer withdrew a request that wasn't answered yet.
    Withdrawn(Ticket),
    /// An upload ended: a push, or an answer to a request (with the request's ticket).
    Sent {
        /// The receiver.
        peer: HostKey,
        /// The content.
        id: ContentId,
        /// The chunk.
        chunk: ChunkIndex,
        /// The request that the upload answered; `None` for a push.
        ticket: Option<Ticket>,
        /// What the receiver made of the chunk.
        delivery: Delivery,
        /// Bytes that went out.
        wire_bytes: u64,
        /// Bytes whose sending is as much work as the upload was: no fewer than went out.
        work_bytes: u64,
    },
    /// This peer signed something that it can't have verified, or two links that contradict each other.
    Blamed(HostKey),
    /// Byte budgets of this host, in bytes per second; 0 is no limit.
    Bandwidth {
        /// The budget for uploads.
        upload_bytes_per_second: u64,
        /// The budget for downloads.
        download_bytes_per_second: u64,
    },
    /// The host asks us to step back (`true`: guests are running, or the disk is busy), or no longer does.
    StepBack(bool),
    /// Time passed. Only `now` matters.
    Tick,
}
