//! Staging's report about itself.

use alloc::vec::Vec;
use core::time::Duration;

use proto::{ChunkRange, Digest, HostId, Reason};

use super::event::{Fault, Standing};

/// Why an image isn't on every host on which it is wanted. A closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageReason {
    /// Chunks move, or are about to.
    Moving,
    /// No selected host is in the fleet.
    NoHosts,
    /// No host is selected for now. Some hosts keep what they have of the image.
    Held,
    /// No selected host is connected.
    NoHostConnected,
    /// Every selected, connected host that isn't shunned has the image. The hosts that lack it are away or shunned.
    HostsAway,
    /// Contents of images that were wanted earlier are fetched first.
    AwaitingTurn,
    /// The registry failed; the next try waits.
    OriginDown,
    /// The registry asked to be left alone for a while.
    OriginThrottled,
    /// Several hosts say that this content can't be had from the image's registry, so the image failed. The content is
    /// tried again slowly.
    ContentFaulty(Digest, Fault),
    /// Another wanted image gives this content another size. One of the two manifests is wrong.
    Contradicts(Digest),
    /// Every host that could be served was served. The others can't stage the image for now, and say why.
    HostsFailed,
}

impl ImageReason {
    /// The reason as it is shown.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Moving => Reason::Moving,
            Self::NoHosts => Reason::NoHosts,
            Self::Held => Reason::Held,
            Self::NoHostConnected => Reason::NoHostConnected,
            Self::HostsAway => Reason::HostsAway,
            Self::AwaitingTurn => Reason::AwaitingTurn,
            Self::OriginDown => Reason::OriginDown,
            Self::OriginThrottled => Reason::OriginThrottled,
            Self::ContentFaulty(_, Fault::Bad) => Reason::ContentBad,
            Self::ContentFaulty(_, Fault::Missing) => Reason::ContentMissing,
            Self::ContentFaulty(_, Fault::Refused) => Reason::ContentRefused,
            Self::ContentFaulty(_, Fault::Unusable | Fault::CutShort) => Reason::ContentUnusable,
            Self::ContentFaulty(_, Fault::Unavailable) => Reason::ContentUnavailable,
            Self::Contradicts(_) => Reason::Contradicts,
            Self::HostsFailed => Reason::HostsFailed,
        }
    }
}

/// Why a host doesn't hold an image. A closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostReason {
    /// The host isn't selected.
    NotSelected,
    /// The host has no session.
    Disconnected,
    /// The fleet shuns the host.
    Quarantined,
    /// The host hasn't reported on the image yet.
    AwaitingReport,
    /// The image waits on the host for disk space or for its turn.
    Queued,
    /// Chunks move.
    Staging,
    /// The host is putting the image into tart's cache.
    Installing,
    /// The host can't stage the image for now, and says why.
    Failed,
    /// The host held the image and lost it.
    Gone,
    /// The image failed.
    ImageFailed,
}

impl HostReason {
    /// The reason as it is shown.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::NotSelected => Reason::NotSelected,
            Self::Disconnected => Reason::Disconnected,
            Self::Quarantined => Reason::Quarantined,
            Self::AwaitingReport => Reason::AwaitingReport,
            Self::Queued => Reason::Queued,
            Self::Staging => Reason::Staging,
            Self::Installing => Reason::Installing,
            Self::Failed => Reason::Failed,
            Self::Gone => Reason::Gone,
            Self::ImageFailed => Reason::ImageFailed,
        }
    }
}

/// The state of an image on one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostStatus {
    /// The host.
    pub host: HostId,
    /// The state that the host reported last, if any.
    pub standing: Option<Standing>,
    /// The raw bytes of the image that the host holds.
    pub held_bytes: u64,
    /// Why the image isn't present on the host; `None` when it is.
    pub reason: Option<HostReason>,
}

/// The state of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageStatus {
    /// The image's manifest digest.
    pub image: Digest,
    /// The selected hosts, by id.
    pub hosts: Vec<HostStatus>,
    /// The number of contents that are complete on some host.
    pub contents_done: usize,
    /// The number of all contents.
    pub contents: usize,
    /// Why the image isn't on every host; `None` when it is.
    pub reason: Option<ImageReason>,
    /// The time until the registry is asked again, where the registry failed or wants to be left alone, and contents
    /// are missing.
    pub origin_retry_in: Option<Duration>,
}

/// A running lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseStatus {
    /// The content.
    pub content: Digest,
    /// The chunks that the holder fetches; `None`: all of them.
    pub range: Option<ChunkRange>,
    /// The holder.
    pub host: HostId,
    /// The number of chunks fetched.
    pub chunks: u32,
    /// The average bytes of the blob per second that the holder gets from the registry; 0 while unknown.
    pub bytes_per_s: u64,
    /// The time since the last progress.
    pub idle: Duration,
}

/// The state of staging.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The images, in the order in which they were wanted.
    pub images: Vec<ImageStatus>,
    /// The leases, by content.
    pub leases: Vec<LeaseStatus>,
    /// Hosts that the fleet shuns.
    pub quarantined: Vec<HostId>,
}
