//! What [`Images`](super::Images) is told and asks for, as values.

use std::{sync::Arc, time::Duration};

use proto::{Digest, image::Layout};
use swarm::event::Entitled;

use crate::registries::Access;

/// What is to be done for images.
#[derive(Debug)]
pub(in crate::driver) enum Effect<S> {
    /// Reserve room for an image, and take up what is on the disk. Ends in [`Images::begun`](super::Images::begun).
    Begin {
        image: Digest,
        layout: Arc<Layout>,
        manifest: Arc<[u8]>,
        names: Vec<String>,
    },
    /// Write down which names are wanted for an image. Ends in [`Images::recorded`](super::Images::recorded).
    Record { image: Digest, names: Vec<String> },
    /// Make tart find an image under these names. Ends in [`Images::linked`](super::Images::linked).
    Install {
        image: Digest,
        stage: S,
        names: Vec<String>,
    },
    /// Remove what is on the disk of an image. Ends in [`Images::abandoned`](super::Images::abandoned).
    Abandon(Digest),
    /// Read what an earlier process left in a stage. Ends in [`Images::was_read`](super::Images::was_read).
    ReadAgain { image: Digest, stage: S },
    /// Make known to the swarm what a stage holds and lacks.
    TakeUp {
        image: Digest,
        layout: Arc<Layout>,
        stage: S,
        /// Bytes that were here already.
        local_bytes: u64,
    },
    /// Take an image's contents out of the swarm; what is on the disk stays.
    Withdraw { image: Digest, layout: Arc<Layout> },
    /// Tell the store which hosts may have what an image holds.
    Entitle { image: Digest, entitled: Entitled },
    /// Who may have these contents has changed: tell the swarm, and write it down.
    Retell { image: Digest, layout: Arc<Layout> },
    /// What was handed down for the registry is for the fetches that run, too.
    Renew { image: Digest, access: Access },
    /// An image is present.
    Present {
        /// Since it was ordered, or lost.
        staged_in: Duration,
        /// Since its last chunk came.
        installed_in: Duration,
    },
    /// A try failed, so long after the order.
    Failed { after: Duration },
    /// Say with the next report what changed.
    ReportSoon,
    /// Say it at once: others rely on it.
    ReportNow,
    /// Say everything at once: the coordinator believes something that isn't so.
    ReportAll,
}

/// An image that an earlier process left here.
#[derive(Debug)]
pub(in crate::driver) struct Left<S> {
    pub(in crate::driver) layout: Arc<Layout>,
    pub(in crate::driver) manifest: Arc<[u8]>,
    /// The names that are wanted for it.
    pub(in crate::driver) wanted: Vec<String>,
    /// All its names.
    pub(in crate::driver) references: Vec<String>,
    pub(in crate::driver) entitled: Entitled,
    pub(in crate::driver) stage: S,
}

/// How to ask the registry for a content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::driver) struct Source {
    /// The image by whose order it is asked.
    pub(in crate::driver) image: Digest,
    pub(in crate::driver) reference: String,
    pub(in crate::driver) access: Access,
}
