//! What is asked of the gate without a cluster, and why it may not be answered.

use std::time::Duration;

use client::gate::{AtMost, GateDoneReply, GateList, GateReply};
use proto::{Digest, HostId};
use rollout::places::{Back, GroupName, MAX_GROUPS, PlaceNumber};
use tokio::sync::oneshot;

use crate::wants::StateError;

/// An ask about hosts and an image.
#[derive(Clone, Debug)]
pub(crate) struct GateAsk {
    /// A reference, or the bare digest of an image.
    pub(crate) image: String,
    /// The digest that the caller knows already.
    pub(crate) digest: Option<Digest>,
    pub(crate) hosts: Vec<HostId>,
    pub(crate) group: Option<GroupAsk>,
}

/// The group in which hosts take places.
#[derive(Clone, Debug)]
pub(crate) struct GroupAsk {
    pub(crate) name: GroupName,
    pub(crate) at_most: Option<AtMost>,
    pub(crate) lasts: Duration,
    /// The number of the caller's places.
    pub(crate) number: Option<PlaceNumber>,
}

/// A host on which the work is done.
#[derive(Clone, Debug)]
pub(crate) struct DoneAsk {
    pub(crate) host: HostId,
    /// `None`: every group.
    pub(crate) group: Option<GroupName>,
    pub(crate) back: Back,
}

/// What is asked of the gate without a cluster.
#[derive(Debug)]
pub(crate) enum PlaceAsk {
    /// Which of these hosts hold the image, and have a place?
    Open(Box<GateAsk>, oneshot::Sender<Result<GateReply, PlaceError>>),
    /// The work on a host is done.
    Done(DoneAsk, oneshot::Sender<Result<GateDoneReply, PlaceError>>),
    /// Who has a place, and who waits?
    List(oneshot::Sender<GateList>),
}

/// Why an ask for places isn't answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    /// Nobody says how many hosts of the group may have a place.
    #[error("group {0} has no cap, because nobody has a place or waits in it; say one (--at-most)")]
    NoCap(GroupName),
    /// Too many groups at one time.
    #[error(
        "{} groups have places or waits already; see `parbake gate list`, and give places back (`parbake gate done HOST`)",
        MAX_GROUPS
    )]
    TooManyGroups,
    /// The caller is of a version that names no place, and the host's place has a number.
    #[error(
        "the place of host {0} is another caller's, and stays; a later `parbake` names the place that it gives back (`parbake gate list`)"
    )]
    Numbered(HostId),
    /// The change couldn't be written to disk.
    #[error("places changed, but a restart will forget that; ask again: {0}")]
    NotKept(#[from] StateError),
}
