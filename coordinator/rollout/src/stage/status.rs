//! What staging says about itself.

use alloc::vec::Vec;
use core::time::Duration;

use proto::{Digest, HostId, Reason};

use super::event::{Fault, Standing};

/// Why an image isn't on every host that it is wanted on. A closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageReason {
    /// Chunks move.
    Moving,
    /// No selected host is in the fleet.
    NoHosts,
    /// No host is selected for now; some keep what they have of it.
    Held,
    /// No selected host is connected.
    NoHostConnected,
    /// Every selected host that is connected has it; those that lack it are away or shunned.
    HostsAway,
    /// Contents of images that were wanted earlier are fetched first.
    AwaitingTurn,
    /// The registry failed; the next try waits.
    OriginDown,
    /// The registry asked to be left alone for a while.
    OriginThrottled,
    /// This content can't be had from the image's registry, say several hosts: the image failed. It is tried again
    /// slowly.
    ContentFaulty(Digest, Fault),
    /// Another image that is wanted gives this content another size: one of the two manifests is wrong.
    Contradicts(Digest),
    /// Every host that could be was served; the others can't stage it for now, and say why.
    HostsFailed,
}

impl ImageReason {
    /// The reason that it is shown as.
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
    /// It isn't selected.
    NotSelected,
    /// It has no session.
    Disconnected,
    /// The fleet shuns it.
    Quarantined,
    /// It hasn't said anything about the image yet.
    AwaitingReport,
    /// It waits for room or its turn.
    Queued,
    /// Chunks move.
    Staging,
    /// It is putting the image into tart's cache.
    Installing,
    /// It can't for now; it says why itself.
    Failed,
    /// It held the image and lost it.
    Gone,
    /// The image failed.
    ImageFailed,
}

impl HostReason {
    /// The reason that it is shown as.
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

/// Where an image stands on one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostStatus {
    /// The host.
    pub host: HostId,
    /// What it reported last, if anything.
    pub standing: Option<Standing>,
    /// Raw bytes held there.
    pub held_bytes: u64,
    /// Why the image isn't present; `None` when it is.
    pub reason: Option<HostReason>,
}

/// Where an image stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageStatus {
    /// Its manifest digest.
    pub image: Digest,
    /// Selected hosts, by id.
    pub hosts: Vec<HostStatus>,
    /// Contents that are complete somewhere.
    pub contents_done: usize,
    /// All its contents.
    pub contents: usize,
    /// Why it isn't everywhere; `None` when it is.
    pub reason: Option<ImageReason>,
    /// How long until its registry is asked again, where that failed or wants to be left alone, and contents are open.
    pub origin_retry_in: Option<Duration>,
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseStatus {
    /// The content.
    pub content: Digest,
    /// Its holder.
    pub host: HostId,
    /// Chunks fetched.
    pub chunks: u32,
    /// Bytes of the blob a second that its holder gets from the registry, on average; 0 while that isn't known.
    pub bytes_per_s: u64,
    /// Since the last progress.
    pub idle: Duration,
}

/// Where staging stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Images, in the order in which they were wanted.
    pub images: Vec<ImageStatus>,
    /// Leases, by content.
    pub leases: Vec<LeaseStatus>,
    /// Hosts that the fleet shuns.
    pub quarantined: Vec<HostId>,
}
