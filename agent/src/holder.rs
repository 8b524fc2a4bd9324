//! Where chunks are: a stage under construction, or an installed image that goes on seeding.

use std::{fmt, io};

use proto::{ChunkIndex, Digest, HostId, Link, Source, chain::RejectLinkError};

/// Something that holds chunks of contents. All calls block on the disk.
pub(crate) trait Holder: fmt::Debug + Send + Sync {
    /// The chunk's bytes, its link, and the host that made the link; `None` when it isn't held.
    fn read(&self, content: Digest, chunk: ChunkIndex) -> io::Result<Option<(Vec<u8>, Link, HostId)>>;

    /// Stores a chunk whose link was found to hold. A chunk that is held already stays as it is.
    fn write(
        &self,
        content: Digest,
        chunk: ChunkIndex,
        bytes: &[u8],
        link: Link,
        source: Source,
        maker: &HostId,
    ) -> Result<(), HoldError>;
}

/// Why a chunk can't be stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HoldError {
    /// The link can't be true: its sender lies.
    #[error(transparent)]
    Rejected(#[from] RejectLinkError),
    /// The volume refused: full, read-only, gone.
    #[error("storing a chunk: {0}")]
    Io(#[from] io::Error),
    /// This holder doesn't hold the content (any more).
    #[error("content isn't part of this image any more")]
    Gone,
}
