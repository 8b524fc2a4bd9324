//! What the swarm is told.

use alloc::{collections::BTreeSet, sync::Arc, vec::Vec};
use core::time::Duration;

use proto::{ChunkIndex, ChunkSet, HostKey};

/// A content's number on this host, chosen by the shell, never reused while the swarm lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentId(pub u32);

/// A question that waits for an answer, numbered by the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A host of the fleet's roster, other than this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its key.
    pub key: HostKey,
    /// Its zone, as a number that only equals itself; 0 is the zone of those that have none.
    pub zone: u32,
    /// Whether the coordinator chose it as our neighbour: we ask for its announcements and ask it for chunks.
    pub neighbour: bool,
}

/// The hosts that may have a content, by the coordinator's word; `None`: every host of the roster.
pub type Entitled = Option<Arc<BTreeSet<HostKey>>>;

/// To whom a chunk is to be passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spread {
    /// To every host of the roster that isn't known to hold it.
    Everyone,
    /// To these, sorted.
    To(Vec<HostKey>),
}

/// Why a chunk that was asked for or offered didn't come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// The bytes don't fit the link that they came with, or the link can't be true: the sender lies or is broken.
    Bad,
    /// The link can't be true, or another one of its maker's couldn't. The sender may believe it, and may vouch for the
    /// chunk when it has verified its copy.
    Disproved,
    /// The peer is over its bound of uploads.
    Busy,
    /// The peer doesn't hold the chunk (any more).
    Missing,
    /// The peer refused for another reason, or broke the protocol.
    Refused,
    /// Nothing moved for the time that the swarm set, or the connection broke.
    Broken,
    /// This host couldn't store it (disk full, I/O error).
    NotStored,
    /// The swarm cancelled it.
    Cancelled,
}

/// How a chunk that we sent was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Delivery {
    /// Verified and stored there.
    Stored,
    /// The receiver held it already, or was receiving it from another host.
    Already,
    /// The receiver takes no more now.
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
    /// The registry is down, throttles for long, or this host can't ask it.
    Failed,
    /// The registry says no: it has no such content, or none for the credentials that this host brought.
    Refused,
    /// The registry's bytes don't match the manifest.
    Bad,
}

/// What happened, as the shell saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The fleet's roster, replacing the one before: every host that we may talk to, without ourselves.
    Roster(Vec<Peer>),
    /// The coordinator's session is up (`true`) or lost.
    Coordinator(bool),
    /// A connection to a peer is ready, whoever opened it.
    Connected(HostKey),
    /// The last connection to a peer is gone, or dialling it failed.
    Disconnected(HostKey),
    /// This host wants a content, or only serves it where `held` is full. Repeating it changes `order` and `entitled`
    /// alone.
    Content {
        /// The content.
        id: ContentId,
        /// The same content's key for tie-breaking on every host: the first eight bytes of its digest, big-endian.
        key: u64,
        /// Bytes in the content; the last chunk is shorter than the others.
        size: u64,
        /// What is held and verified already.
        held: ChunkSet,
        /// Contents of lower order are wanted first.
        order: u32,
        /// Other hosts neither hear of the content nor get any of it from this one.
        entitled: Entitled,
    },
    /// The content isn't wanted or held any more.
    Dropped(ContentId),
    /// A client of this host waits for a content that was told by `Content`, and not for ever. Where neither a chunk of
    /// it nor word of one comes for long enough, this host fetches it without a lease. The want lasts until `Unwanted`
    /// or `Dropped`; repeating it changes `alone_after`, and doesn't begin the wait anew.
    Wanted {
        /// The content.
        id: ContentId,
        /// How long somebody who may be fetching the content is waited for. Each host that goes to the registry before
        /// this one is waited for as long again.
        alone_after: Duration,
        /// The registry refused the content to this host before, and has let this client in: nothing is waited for.
        admitted: bool,
    },
    /// No client of this host waits for the content any more.
    Unwanted(ContentId),
    /// The coordinator says that chunks of a content come to some host, or that the content has its place in the queue:
    /// who wants it goes on waiting.
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
        /// Its chunks: more of them, or all of them where `reset`.
        chunks: ChunkSet,
        /// Whether this replaces what it announced before.
        reset: bool,
    },
    /// A peer announced its load.
    Load {
        /// The peer.
        peer: HostKey,
        /// Push work assigned to it and not done.
        backlog_bytes: u64,
        /// Its upload rate, as it says: believed within bounds.
        upload_bytes_per_second: u64,
    },
    /// The coordinator leased us a content: we may fetch it from the registry.
    Leased(ContentId),
    /// The lease is over (revoked or expired).
    LeaseLost(ContentId),
    /// A chunk came from the registry; it is verified against its neighbours as far as that goes, and stored.
    OriginChunk {
        /// The content.
        id: ContentId,
        /// The chunk.
        chunk: ChunkIndex,
        /// Bytes that came from the registry for it.
        wire_bytes: u64,
    },
    /// Fetching ended.
    OriginEnded {
        /// The content.
        id: ContentId,
        /// How.
        end: OriginEnd,
    },
    /// A peer wants to push a chunk to us. Answered by [`Action::Accept`](crate::Action::Accept) or
    /// [`Action::Decline`](crate::Action::Decline) at once.
    Offered {
        /// The question.
        ticket: Ticket,
        /// The peer.
        peer: HostKey,
        /// The content, which the shell knows.
        id: ContentId,
        /// The chunk.
        chunk: ChunkIndex,
        /// To whom we shall pass it on; `None`: nobody.
        spread: Option<Spread>,
    },
    /// A chunk that was requested or accepted is verified and stored.
    Arrived {
        /// Who sent it.
        peer: HostKey,
        /// The content.
        id: ContentId,
        /// The chunk.
        chunk: ChunkIndex,
        /// Bytes that it took on the wire.
        wire_bytes: u64,
    },
    /// A chunk that was requested or accepted won't come.
    NotArrived {
        /// Who should have sent it.
        peer: HostKey,
        /// The content.
        id: ContentId,
        /// The chunk.
        chunk: ChunkIndex,
        /// Why.
        failure: Failure,
    },
    /// A peer requests a chunk from us. Answered by [`Action::Serve`](crate::Action::Serve) or
    /// [`Action::Refuse`](crate::Action::Refuse), perhaps later: also when the peer's connection ends before.
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
    /// A request that wasn't answered yet was withdrawn by the peer.
    Withdrawn(Ticket),
    /// An upload ended: a push, or (with its ticket) an answer to a request.
    Sent {
        /// The receiver.
        peer: HostKey,
        /// The content.
        id: ContentId,
        /// The chunk.
        chunk: ChunkIndex,
        /// The request that it answered; `None` for a push.
        ticket: Option<Ticket>,
        /// How it was received.
        delivery: Delivery,
        /// Bytes that went out.
        wire_bytes: u64,
    },
    /// This peer signed what it can't have verified, or two links that contradict each other.
    Blamed(HostKey),
    /// Byte budgets of this host, per second; 0 is no limit.
    Bandwidth {
        /// Up.
        upload_bytes_per_second: u64,
        /// Down.
        download_bytes_per_second: u64,
    },
    /// The host asks us to step back (`true`: running guests, busy disk) or no longer does.
    StepBack(bool),
    /// Time passed; only `now` matters.
    Tick,
}
