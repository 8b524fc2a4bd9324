//! Staging's actions: what the plan tells the shell to do.

use alloc::vec::Vec;

use proto::{ChunkRange, Digest, HostId};

use super::event::Fault;

/// Why a lease is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RevokeCause {
    /// The registry failed its holder, or asked to be left alone.
    OriginFailed,
    /// The lease made no progress, or its content isn't wanted on the holder any more.
    Ended,
    /// The host speaks of a lease that it doesn't hold. No lease ends by this.
    NotHeld,
}

/// Why an image goes on without its recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecipeLoss {
    /// Several hosts say that it can't be had from the image's registry.
    Faulty(Fault),
    /// Another wanted image gives the same bytes another size.
    Size,
}

/// A content for which an image's recipe isn't used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecipeLeft {
    /// The image.
    pub image: Digest,
    /// The content.
    pub content: Digest,
    /// The first chunk that doesn't fit.
    pub chunk: u32,
}

/// An action for the shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tell this host its neighbours: after its session came up, and after the neighbours changed.
    Neighbours {
        /// The host.
        host: HostId,
        /// Its neighbours.
        neighbours: Vec<HostId>,
    },
    /// Order this host to stage an image.
    Stage {
        /// The host.
        host: HostId,
        /// The image.
        image: Digest,
    },
    /// Order this host to stop staging an image, and to drop what isn't staged whole.
    Cancel {
        /// The host.
        host: HostId,
        /// The image.
        image: Digest,
    },
    /// Order this host to stop staging an image for now, and to keep what is there.
    Pause {
        /// The host.
        host: HostId,
        /// The image.
        image: Digest,
    },
    /// Tell this host in which order it is to finish its images: at the start of a session with several images, and
    /// after the order changed.
    Sequence {
        /// The host.
        host: HostId,
        /// The images that are wanted there, the first one first. At least two.
        images: Vec<Digest>,
    },
    /// Forget an image's recipe: the image is staged without it.
    DropRecipe {
        /// The image.
        image: Digest,
        /// The recipe.
        recipe: Digest,
        /// Why.
        cause: RecipeLoss,
    },
    /// Tell every host of the image to leave the image's recipe for a content: the registry's bytes don't fit it, as
    /// enough hosts say.
    LeaveRecipe(RecipeLeft),
    /// Lease a content to this host.
    Grant {
        /// The host.
        host: HostId,
        /// The content.
        content: Digest,
        /// The chunks that the host is to fetch; `None`: all of them.
        range: Option<ChunkRange>,
        /// An image that it belongs to.
        image: Digest,
    },
    /// Take a lease back.
    Revoke {
        /// The host.
        host: HostId,
        /// The content.
        content: Digest,
        /// Why.
        cause: RevokeCause,
    },
    /// Tell every host to drop what this host made of a content, from a chunk on. The maker itself took it back.
    Retract {
        /// The maker.
        maker: HostId,
        /// The content.
        content: Digest,
        /// The first chunk.
        from: u32,
    },
    /// Tell every host not to talk to this host for a time. The host lies, by its own signatures or by what too many
    /// hosts say.
    Quarantine(HostId),
}
