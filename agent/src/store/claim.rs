//! A chunk as it is held: its bytes, its link, who made it and who answers for it.

use std::{collections::BTreeMap, io, sync::Mutex};

use proto::{
    Answer, ChunkIndex, Digest, Geometry, HostId, HostKey, Link, Source, ledger::RejectLinkError,
};

use super::place::is_zero;
use crate::lock::lock;

/// The ids of hosts that made links, by the keys under which ledgers know them. Shared by all that stand on one volume.
#[derive(Debug, Default)]
pub(crate) struct Hosts(Mutex<BTreeMap<HostKey, HostId>>);

impl Hosts {
    pub(super) fn know(&self, host: &HostId) {
        lock(&self.0)
            .entry(host.key())
            .or_insert_with(|| host.clone());
    }

    pub(super) fn find(&self, key: HostKey) -> Option<HostId> {
        lock(&self.0).get(&key).cloned()
    }
}

/// Why a chunk wasn't stored.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The link can't be true: its sender lies. The bytes are dropped.
    #[error(transparent)]
    Rejected(#[from] RejectLinkError),
    /// The image has no such content.
    #[error("image has no content {0}")]
    UnknownContent(Digest),
    /// The chunk's bytes aren't as many as its geometry says: the caller hasn't checked the link.
    #[error("chunk {chunk} of {content} has {bytes} bytes")]
    Length {
        /// The content.
        content: Digest,
        /// The chunk.
        chunk: ChunkIndex,
        /// What was given.
        bytes: usize,
    },
    /// The image was abandoned or removed meanwhile.
    #[error("image is gone from this host")]
    Gone,
    /// The volume is full. What is held stays; writing can go on when there is room.
    #[error(
        "volume is full while storing chunk {chunk} of {content}; make room, and it goes on by itself"
    )]
    NoRoom {
        /// The content.
        content: Digest,
        /// The chunk.
        chunk: ChunkIndex,
    },
    /// The volume failed.
    #[error("storing chunk {chunk} of {content}: {error}")]
    Io {
        /// The content.
        content: Digest,
        /// The chunk.
        chunk: ChunkIndex,
        /// The cause.
        error: io::Error,
    },
}

/// A chunk as it is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldChunk {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its link, which holds for them.
    pub link: Link,
    /// Who sent it here, and who made it.
    pub source: Source,
    /// The maker's id.
    pub maker: HostId,
    /// Who answers for the link.
    pub answer: Answer,
}

/// What is known of a held chunk without its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) link: Link,
    pub(crate) source: Source,
    pub(crate) maker: HostId,
    pub(crate) answer: Answer,
    /// All its bytes are zero.
    pub(crate) zero: bool,
    /// It is known by the word of an earlier process alone.
    pub(super) unread: bool,
}

impl Claim {
    /// Whether these bytes are the claimed ones.
    pub(crate) fn fits(&self, geometry: Geometry, chunk: ChunkIndex, bytes: &[u8]) -> bool {
        // that the link holds for zeros was found when they came: to look for others is ten times as fast
        if self.zero && !self.unread {
            return is_zero(bytes);
        }
        (!self.zero || is_zero(bytes)) && self.link.holds(geometry, chunk, bytes)
    }

    pub(super) fn with(self, bytes: Vec<u8>) -> HeldChunk {
        HeldChunk {
            bytes,
            link: self.link,
            source: self.source,
            maker: self.maker,
            answer: self.answer,
        }
    }
}

/// What became of a chunk whose bytes should lie at some of its places already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Adopted {
    /// It is held, and was before.
    Held,
    /// It is held now. `differed`: not every place had its bytes, and those that hadn't have them now.
    New { differed: bool },
    /// No place had its bytes. Nothing was changed.
    Differs,
}

/// What a look at a chunk's bytes on the disk found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// The bytes are those of the link, at every place.
    Sound(Box<HeldChunk>),
    /// They aren't, or can't be read. The chunk isn't held any more.
    Rotten,
    /// The chunk isn't held.
    Missing,
}

/// The volume failed, or is full.
pub(super) fn not_stored(content: Digest, chunk: ChunkIndex, error: io::Error) -> WriteError {
    if error.kind() == io::ErrorKind::StorageFull {
        WriteError::NoRoom { content, chunk }
    } else {
        WriteError::Io {
            content,
            chunk,
            error,
        }
    }
}
