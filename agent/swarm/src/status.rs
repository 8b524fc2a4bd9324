//! What the swarm says about itself.

use alloc::vec::Vec;
use core::time::Duration;

use proto::HostKey;

use crate::event::ContentId;

/// Why a wanted content hasn't grown for a while. A closed set: names of metrics and messages are made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stall {
    /// Nobody fetches it yet: its lease hasn't been granted to anybody that we hear of.
    AwaitingLease,
    /// We hold its lease and hold back while what was fetched is being spread.
    Paced,
    /// We hold its lease and the registry sends nothing.
    OriginSilent,
    /// The registry failed us.
    OriginFailed,
    /// Contents of lower order use all room for requests.
    AwaitingTurn,
    /// No peer is connected.
    NoPeers,
    /// No connected peer announced a chunk that we lack.
    NoSource,
    /// A push of what we lack is expected.
    AwaitingPush,
    /// Requests are under way and nothing has arrived.
    PeersSlow,
    /// Every peer that holds what we lack is over its bound.
    PeersBusy,
    /// No peer is connected, and some are quarantined: what we lack may be there.
    SourcesQuarantined,
    /// The download budget is used up.
    Throttled,
    /// This host couldn't store what arrived.
    NotStored,
}

impl Stall {
    /// Every reason.
    pub const ALL: [Self; 13] = [
        Self::AwaitingLease,
        Self::Paced,
        Self::OriginSilent,
        Self::OriginFailed,
        Self::AwaitingTurn,
        Self::NoPeers,
        Self::NoSource,
        Self::AwaitingPush,
        Self::PeersSlow,
        Self::PeersBusy,
        Self::SourcesQuarantined,
        Self::Throttled,
        Self::NotStored,
    ];

    /// Its name, for metrics and machines.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AwaitingLease => "awaiting_lease",
            Self::Paced => "paced",
            Self::OriginSilent => "origin_silent",
            Self::OriginFailed => "origin_failed",
            Self::AwaitingTurn => "awaiting_turn",
            Self::NoPeers => "no_peers",
            Self::NoSource => "no_source",
            Self::AwaitingPush => "awaiting_push",
            Self::PeersSlow => "peers_slow",
            Self::PeersBusy => "peers_busy",
            Self::SourcesQuarantined => "sources_quarantined",
            Self::Throttled => "throttled",
            Self::NotStored => "not_stored",
        }
    }
}

/// Where a content stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentStatus {
    /// The content.
    pub id: ContentId,
    /// Its chunks.
    pub chunks: u32,
    /// Chunks held.
    pub held: u32,
    /// Chunks requested and pushes being received.
    pub requested: u32,
    /// Whether we fetch it from the registry.
    pub leased: bool,
    /// Whether we hold its lease and hold back on purpose while what was fetched is being spread.
    pub paced: bool,
    /// Since when nothing arrived, and why; `None` while it moves or is complete.
    pub stall: Option<(Stall, Duration)>,
}

/// Where the swarm stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Contents by id.
    pub contents: Vec<ContentStatus>,
    /// Hosts of the roster.
    pub peers: usize,
    /// Connected ones.
    pub connected: usize,
    /// Quarantined ones.
    pub quarantined: Vec<HostKey>,
    /// Push work assigned to us and not done.
    pub backlog_bytes: u64,
    /// Our upload rate, as far as it was measured.
    pub upload_bytes_per_second: Option<u64>,
    /// Uploads under way.
    pub uploads: usize,
    /// Whether leases are self-assigned for want of a coordinator.
    pub headless: bool,
}
