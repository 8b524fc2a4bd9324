//! What staging wants done.

use alloc::vec::Vec;

use proto::{Digest, HostId};

/// Why a lease is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RevokeCause {
    /// The registry failed its holder, or asked to be left alone.
    OriginFailed,
    /// It made no progress, or what it was for isn't wanted there any more.
    Ended,
    /// The host speaks of a lease that it doesn't hold: nothing ends by this.
    NotHeld,
}

/// What the shell shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tell this host whom it follows: when its session came up, and when that changed.
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
    Hold {
        /// The host.
        host: HostId,
        /// The image.
        image: Digest,
    },
    /// Lease a content to this host.
    Grant {
        /// The host.
        host: HostId,
        /// The content.
        content: Digest,
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
    /// Tell every host to drop what it has of this maker, of a content from a chunk on: its own word took it back.
    Retract {
        /// Who made it.
        maker: HostId,
        /// The content.
        content: Digest,
        /// The first chunk.
        from: u32,
    },
    /// This host lies, by its own signatures or by what too many say: no host may talk to it for a time.
    Quarantine(HostId),
}
