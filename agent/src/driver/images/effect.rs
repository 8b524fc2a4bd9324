//! The values that [`Images`](super::Images) takes and returns.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use proto::{
    Digest,
    image::{Blob, Layout},
};
use swarm::event::Entitled;

use super::super::image::{Image, OnDisk, Step};
use crate::{registries::Access, store::recipes::NamedRecipe};

/// Work that is to be done for images.
#[derive(Debug)]
pub(in crate::driver) enum Effect<S> {
    /// Reserve room for an image, and take up its files on the disk. Ends in [`Images::begun`](super::Images::begun).
    Begin {
        layout: Arc<Layout>,
        manifest: Arc<[u8]>,
        names: Vec<String>,
        /// The recipe by which the image is staged, if one came in time.
        recipe: Option<Arc<NamedRecipe>>,
        /// The contents for which the recipe isn't used.
        in_doubt: BTreeSet<Digest>,
    },
    /// Make known to the swarm the bytes of an image's recipe. A failure goes to
    /// [`Images::recipe_read`](super::Images::recipe_read).
    OpenRecipe { image: Digest, file: Blob },
    /// Take an image's recipe out of the swarm: the image doesn't use it.
    LeaveRecipe(Digest, Digest),
    /// Read an image's recipe, all of which is here. If the image has a stage, compare the recipe with the stage, and
    /// note it there. Ends in [`Images::recipe_read`](super::Images::recipe_read).
    ReadRecipe(Arc<Layout>, Blob, Option<S>),
    /// Write down which names are wanted for an image. Ends in [`Images::recorded`](super::Images::recorded).
    Record { image: Digest, names: Vec<String> },
    /// Decode the layers that travelled as this blob onto the disk, while the image's other contents come. A failure
    /// is found by the installation, which decodes what isn't decoded.
    Decode { stage: S, content: Digest },
    /// Make tart find an image under these names. Ends in [`Images::linked`](super::Images::linked).
    Install {
        image: Digest,
        stage: S,
        names: Vec<String>,
    },
    /// Nobody waits for an image any more: its beginning ends early, if it is under way. Report everything at once.
    GiveUp(Digest),
    /// Remove an image's files from the disk. Ends in [`Images::abandoned`](super::Images::abandoned).
    Abandon(Digest),
    /// Read the bytes that an earlier process left in a stage. Ends in [`Images::was_read`](super::Images::was_read).
    ReadAgain { image: Digest, stage: S },
    /// Make known to the swarm which chunks a stage holds and lacks.
    TakeUp {
        image: Digest,
        layout: Arc<Layout>,
        stage: S,
        /// Bytes that were here already.
        local_bytes: u64,
    },
    /// Take an image's contents out of the swarm. The files on disk stay.
    Withdraw { image: Digest, layout: Arc<Layout> },
    /// Tell the store which hosts may have an image's contents.
    Entitle { image: Digest, entitled: Entitled },
    /// The hosts that may have these contents have changed: tell the swarm, and write it down.
    Retell { image: Digest, layout: Arc<Layout> },
    /// The image has another place among those that are to be finished here.
    Reorder(Arc<Layout>),
    /// No room is kept for the image until it is begun again.
    SetAside(Digest),
    /// The coordinator handed down new access to the registry: running fetches use it too.
    Renew { image: Digest, access: Access },
    /// An image is present.
    Present {
        /// The time since the image was ordered, or lost.
        staged_in: Duration,
        /// The time since the image's last chunk came.
        installed_in: Duration,
    },
    /// A try failed, this long after the order.
    Failed { after: Duration },
    /// Report the change with the next report.
    ReportSoon,
    /// Report at once: others rely on the change.
    ReportNow,
    /// Report everything at once: the coordinator believes something that isn't so.
    ReportAll,
}

impl<S: OnDisk> Effect<S> {
    /// What follows when a content is verified and others of the image still come: layers that travelled as this blob
    /// are decoded.
    pub(super) fn of_closed(image: &Image<S>, content: Digest) -> Option<Self> {
        let stage = image.stage().filter(|_| image.is_at(Step::Filling))?;
        let stage = image.layout.has_encoded(&content).then(|| stage.clone())?;
        Some(Self::Decode { stage, content })
    }

    /// What follows when an image leaves a recipe and needs another one.
    pub(super) fn of_recipes(
        image: Digest,
        left: Option<Digest>,
        needed: Option<Blob>,
    ) -> impl Iterator<Item = Self> {
        let left = left.map(|recipe| Self::LeaveRecipe(image, recipe));
        let needed = needed.map(|file| Self::OpenRecipe { image, file });
        left.into_iter().chain(needed)
    }
}

/// An image that an earlier process left on this host.
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
    /// The image by whose order the registry is asked.
    pub(in crate::driver) image: Digest,
    pub(in crate::driver) reference: String,
    pub(in crate::driver) access: Access,
}
