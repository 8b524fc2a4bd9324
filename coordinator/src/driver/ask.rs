//! What operators and the cluster ask of the driver, and why it may be refused.

use std::collections::{BTreeMap, BTreeSet};

use proto::{Digest, HostId, retention::Rule};
use rollout::names::NotAsked;
use tokio::sync::oneshot;

use super::place_ask::PlaceAsk;
use crate::{
    view::{BandwidthRequest, CancelReply, OldImagesReply, PlanReply, ShortOfRoom, StageReply},
    wants::{StateError, Want},
};

/// The most images that are wanted at one time. Each costs a few hundred kilobytes of manifest in memory and on every
/// host.
pub(crate) const MAX_WANTS: usize = 64;
/// The most references of one image.
pub(super) const MAX_REFERENCES: usize = 32;
/// The most bytes of the references of all wanted images together: a host's report of at most 256 KiB has to hold them.
pub(super) const MAX_NAME_BYTES: usize = 96 << 10;

/// The limits of the cluster's objects: the strictest of the objects that stage now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The limits of every host, in bytes per second; 0 means no limit.
    pub(crate) bandwidth: BandwidthRequest,
    /// The most contents that are leased at one time; `None` means the number in the coordinator's settings.
    pub(crate) origin_streams: Option<usize>,
}

/// An image that the cluster wants.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) want: Want,
    /// Hosts that don't go on for now, and keep what they have.
    pub(crate) paused: BTreeSet<HostId>,
    /// Hosts on which a Pod waits for the image.
    pub(crate) awaited: BTreeSet<HostId>,
}

/// The references of the images that Pods on each host, and pools whose Pods may come there, have in their specs.
pub(crate) type Users = BTreeMap<HostId, BTreeSet<String>>;

/// What operators and the cluster ask.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Stage this image. `references` holds the reference that the operator asked for.
    Stage {
        want: Box<Want>,
        reply: oneshot::Sender<Result<StageReply, StageError>>,
    },
    /// Operators don't want this any more. `name` is a reference, or the bare digest of an image; the digest means the
    /// image under all its references.
    Cancel {
        name: String,
        reply: oneshot::Sender<Result<CancelReply, CancelError>>,
    },
    /// Limit every host.
    Bandwidth {
        limits: BandwidthRequest,
        reply: oneshot::Sender<Result<(), StateError>>,
    },
    /// The cluster wants exactly these images, whatever it wanted before, and sets these limits. What operators want
    /// stays.
    Place {
        wants: Vec<Placed>,
        limits: Limits,
        /// Whether `wants` is complete: after a start, an image that the cluster still has to resolve again may be
        /// missing.
        whole: bool,
    },
    /// An object of the cluster asks for this image again: what failed of the image is tried at once.
    Urge(Digest),
    /// Something about places in racks without a cluster.
    Places(PlaceAsk),
    /// The cluster's Pods and pools refer to these images on hosts; `None`: that isn't known now.
    Used(Option<Users>),
    /// Say which old images would go from these hosts, `None` for all, by this rule, or by the rule of each host.
    OldImages {
        hosts: Option<BTreeSet<HostId>>,
        rule: Option<Rule>,
        reply: oneshot::Sender<Result<OldImagesReply, OldImagesError>>,
    },
    /// Say what staging this image would move.
    Preview {
        want: Box<Want>,
        reply: oneshot::Sender<Result<PlanReply, StageError>>,
    },
}

/// Why an image isn't staged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StageError {
    /// A host that was named isn't part of the fleet.
    #[error("host {0} isn't part of the fleet; see `parbake hosts`")]
    UnknownHost(HostId),
    /// A host that was named is revoked.
    #[error("host {host} can't be chosen: {what}")]
    Revoked {
        /// The host.
        host: HostId,
        /// Since when and why, and what takes that back.
        what: String,
    },
    /// The selection is empty: there is no host to stage the image on.
    #[error(
        "the fleet has no hosts; add [[hosts]] to the fleet file, or set `open = true` and enrol some"
    )]
    NoHosts,
    /// Too many images at once.
    #[error("{MAX_WANTS} images are wanted already; cancel some (`parbake cancel IMAGE`)")]
    TooManyImages,
    /// Too many names of one image.
    #[error(
        "the image has {MAX_REFERENCES} references already; cancel some (`parbake cancel IMAGE`)"
    )]
    TooManyReferences,
    /// The names together are too long for a host's report.
    #[error(
        "the references of all images that are wanted would have more than {} kB, which hosts can't report; cancel some \
         (`parbake cancel IMAGE`)",
        MAX_NAME_BYTES >> 10
    )]
    TooManyNames,
    /// The image can't fit on any selected host, not even on an empty volume.
    #[error("image needs {needed_bytes} bytes, more than the volume of any selected host can give: {}", listed(.hosts))]
    NowhereFits {
        /// What the image needs on disk.
        needed_bytes: u64,
        /// The hosts with their figures.
        hosts: Vec<ShortOfRoom>,
    },
    /// The image is wanted now, but the want couldn't be written to disk.
    #[error("image is being staged, but a restart will forget it: {0}")]
    NotKept(#[from] StateError),
}

/// Why it isn't said which old images would go.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OldImagesError {
    /// The hosts that were named can't be asked.
    #[error(transparent)]
    Hosts(#[from] StageError),
    /// One question is answered at a time.
    #[error("hosts are being asked about old images just now; ask again in a few seconds")]
    Busy,
}

/// Why something isn't cancelled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CancelError {
    /// Nobody wants an image under this name.
    #[error("image `{name}` isn't wanted{}; see `parbake status`", but(.others))]
    Unwanted {
        /// What was typed.
        name: String,
        /// The references under which the digest in the name is wanted, if there are any.
        others: Vec<String>,
    },
    /// Only the cluster wants the image. Operators can't cancel what they didn't ask for.
    #[error(
        "image `{0}` is wanted by ImagePrePulls alone; change or delete those (`kubectl get ipp -A`)"
    )]
    ByCluster(String),
    /// The image is cancelled now, but the change couldn't be written to disk.
    #[error("image is cancelled, but a restart will forget that: {0}")]
    NotKept(#[from] StateError),
}

fn but(others: &[String]) -> String {
    match others {
        [] => String::new(),
        others => format!(" under that name, but as {}", others.join(", ")),
    }
}

impl CancelError {
    pub(super) fn new(name: &str, why: NotAsked, others: Vec<String>) -> Self {
        let name = crate::progress::clean(name);
        match why {
            NotAsked::Unwanted => Self::Unwanted { name, others },
            NotAsked::ByCluster => Self::ByCluster(name),
        }
    }
}

fn listed(hosts: &[ShortOfRoom]) -> String {
    let one = |host: &ShortOfRoom| {
        format!(
            "{} ({} bytes free, floor {})",
            host.host, host.free_bytes, host.floor_bytes
        )
    };
    let mut text: Vec<String> = hosts.iter().take(5).map(one).collect();
    if hosts.len() > 5 {
        text.push(format!("and {} more", hosts.len() - 5));
    }
    text.join(", ")
}
