//! What operators and the cluster ask of the driver, and why it may be refused.

use std::collections::BTreeSet;

use proto::{Digest, HostId};
use rollout::names::NotAsked;
use tokio::sync::oneshot;

use crate::{
    view::{BandwidthRequest, CancelReply, PlanReply, ShortOfRoom, StageReply},
    wants::{StateError, Want},
};

/// The most images wanted at one time; each costs a few hundred kilobytes of manifest in memory and on every host.
pub(crate) const MAX_WANTS: usize = 64;
/// References of one image.
pub(super) const MAX_REFERENCES: usize = 32;
/// Bytes of the references of all images that are wanted at one time: each host's report of 256 KiB has to hold them.
pub(super) const MAX_NAME_BYTES: usize = 96 << 10;

/// What the cluster's objects limit: the strictest of those that stage now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Of every host; 0 for none.
    pub(crate) bandwidth: BandwidthRequest,
    /// Contents leased at one time; the coordinator's setting without it.
    pub(crate) origin_streams: Option<usize>,
}

/// An image that the cluster wants.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) want: Want,
    /// Hosts that aren't to go on for now, and keep what they have.
    pub(crate) paused: BTreeSet<HostId>,
}

/// What operators and the cluster ask.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Stage this; `references` holds the one asked for.
    Stage {
        want: Box<Want>,
        reply: oneshot::Sender<Result<StageReply, StageError>>,
    },
    /// Operators don't want this any more: a reference, or by its bare digest an image under all its references.
    Cancel {
        name: String,
        reply: oneshot::Sender<Result<CancelReply, CancelError>>,
    },
    /// Limit every host.
    Bandwidth {
        limits: BandwidthRequest,
        reply: oneshot::Sender<Result<(), StateError>>,
    },
    /// The cluster wants exactly these, whatever it wanted before, and limits what moves. What operators want stays.
    Place {
        wants: Vec<Placed>,
        limits: Limits,
        /// Nothing is missing that only needs to be resolved again after a start.
        whole: bool,
    },
    /// Whoever looks after the cluster's objects asks for this image anew: what failed of it is tried at once.
    Urge(Digest),
    /// What staging this would move.
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
    /// Nobody to stage it on.
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
    /// Hosts couldn't report all of the names.
    #[error(
        "the references of all images that are wanted would have more than {} kB, which hosts can't report; cancel some \
         (`parbake cancel IMAGE`)",
        MAX_NAME_BYTES >> 10
    )]
    TooManyNames,
    /// It can't fit on any selected host, empty or not.
    #[error("image needs {needed_bytes} bytes, more than the volume of any selected host can give: {}", listed(.hosts))]
    NowhereFits {
        /// What it needs.
        needed_bytes: u64,
        /// The hosts with their figures.
        hosts: Vec<ShortOfRoom>,
    },
    /// It is wanted now, but that couldn't be written down.
    #[error("image is being staged, but a restart will forget it: {0}")]
    NotKept(#[from] StateError),
}

/// Why something isn't cancelled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CancelError {
    /// Nobody wants it under this name.
    #[error("image `{name}` isn't wanted{}; see `parbake status`", but(.others))]
    Unwanted {
        /// What was typed.
        name: String,
        /// References that its digest is wanted under, where there are some.
        others: Vec<String>,
    },
    /// Operators didn't ask for it: it isn't theirs to cancel.
    #[error(
        "image `{0}` is wanted by ImagePrePulls alone; change or delete those (`kubectl get ipp -A`)"
    )]
    ByCluster(String),
    /// It is cancelled now, but that couldn't be written down.
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
