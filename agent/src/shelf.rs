//! Where a content's bytes lie on this host: in an image's stage, or in the mirror's blob cache.

use std::{io, sync::Arc};

use proto::{
    ChunkIndex, ChunkSet, Digest, HostId, HostKey, Link, Source,
    chain::{Entered, Verdict},
};

use crate::{
    mirror::blob::Blob,
    store::{HeldChunk, Stage, WriteError, held::Look},
};

/// A place of a content's bytes. Calls block on the disk, as those of what stands behind it.
#[derive(Clone, Debug)]
pub(crate) enum Shelf {
    /// An image that is staged or installed.
    Stage(Arc<Stage>),
    /// A blob of the mirror.
    Blob(Arc<Blob>),
}

impl Shelf {
    pub(crate) fn write(
        &self,
        content: Digest,
        chunk: ChunkIndex,
        bytes: &[u8],
        link: Link,
        source: Source,
        maker: &HostId,
    ) -> Result<Entered, WriteError> {
        match self {
            Self::Stage(stage) => stage.write(content, chunk, bytes, link, source, maker),
            Self::Blob(blob) => blob.write(chunk, bytes, link, source, maker),
        }
    }

    pub(crate) fn read(&self, content: Digest, chunk: ChunkIndex) -> io::Result<Option<HeldChunk>> {
        match self {
            Self::Stage(stage) => stage.read(content, chunk),
            Self::Blob(blob) => blob.read(chunk),
        }
    }

    pub(crate) fn link(&self, content: Digest, chunk: ChunkIndex) -> Option<(Link, Source)> {
        match self {
            Self::Stage(stage) => stage.link(content, chunk),
            Self::Blob(blob) => blob.link(chunk),
        }
    }

    pub(crate) fn held(&self, content: Digest) -> ChunkSet {
        match self {
            Self::Stage(stage) => stage.held(content),
            Self::Blob(blob) => blob.held(),
        }
    }

    pub(crate) fn is_closed(&self, content: Digest) -> bool {
        match self {
            Self::Stage(stage) => stage.is_closed(content),
            Self::Blob(blob) => blob.is_closed(),
        }
    }

    pub(crate) fn walk(&self, content: Digest) -> io::Result<Vec<Verdict>> {
        match self {
            Self::Stage(stage) => stage.walk(content),
            Self::Blob(blob) => blob.walk(),
        }
    }

    pub(crate) fn forget_chunk(&self, content: Digest, chunk: ChunkIndex) -> io::Result<()> {
        match self {
            Self::Stage(stage) => stage.forget_chunk(content, chunk),
            Self::Blob(blob) => blob.forget_chunk(chunk),
        }
    }

    pub(crate) fn retract(
        &self,
        content: Digest,
        maker: HostKey,
        from: ChunkIndex,
    ) -> io::Result<Vec<ChunkIndex>> {
        match self {
            Self::Stage(stage) => stage.retract(content, maker, from),
            Self::Blob(blob) => blob.retract(maker, from),
        }
    }

    pub(crate) fn scrub(&self, content: Digest, chunk: ChunkIndex) -> io::Result<bool> {
        match self {
            // a removed image isn't a damaged one
            Self::Stage(stage) => Ok(stage.scrub(content, chunk)? || stage.is_gone()),
            Self::Blob(blob) => Ok(matches!(blob.look(chunk)?, Look::Sound(_))),
        }
    }
}
