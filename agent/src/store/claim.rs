//! A chunk as this host holds it: its bytes, its link, the link's maker, and the host that answers for the link.

use std::{collections::BTreeMap, io, sync::Mutex};

use proto::{
    Answer, ChunkIndex, Digest, Geometry, HostId, HostKey, Link, Source, ledger::RejectLinkError,
};

use crate::lock::lock;
use crate::zero::is_zero;

/// The ids of hosts that made links, by the keys under which ledgers know them. Shared by everything on one volume.
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
    /// The link can't be true: its sender lies. The bytes are thrown away.
    #[error(transparent)]
    Rejected(#[from] RejectLinkError),
    /// The image has no such content.
    #[error("image has no content {0}")]
    UnknownContent(Digest),
    /// The number of bytes isn't what the geometry says: the caller hasn't checked the link.
    #[error("chunk {chunk} of {content} has {bytes} bytes")]
    Length {
        /// The content.
        content: Digest,
        /// The chunk.
        chunk: ChunkIndex,
        /// The number of bytes that the caller gave.
        bytes: usize,
    },
    /// The image was abandoned or removed meanwhile.
    #[error("image is gone from this host")]
    Gone,
    /// The volume is full. Held chunks stay. Writing can go on when there is room.
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
    /// Its link, which fits the bytes.
    pub link: Link,
    /// The host that sent the link here, and the host that made it.
    pub source: Source,
    /// The maker's id.
    pub maker: HostId,
    /// The host that answers for the link, if one does.
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
    /// Only the word of an earlier process says that the chunk is held.
    pub(super) unread: bool,
}

impl Claim {
    /// A chunk that this host found by a recipe, which gives its link.
    pub(super) fn by_recipe(link: Link, me: &HostId) -> Self {
        Self {
            link,
            source: Source {
                sender: me.key(),
                maker: me.key(),
            },
            maker: me.clone(),
            answer: Answer::Recipe,
            zero: false,
            unread: true,
        }
    }

    /// Whether these bytes are the claimed ones.
    pub(crate) fn fits(&self, geometry: Geometry, chunk: ChunkIndex, bytes: &[u8]) -> bool {
        // A check when the chunk came showed that the link fits zeros. To look for other bytes is ten times as fast as
        // to hash.
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

/// What became of a chunk whose bytes should already lie at some of its places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Adopted {
    /// The chunk was held before.
    Held,
    /// The chunk is held now. `differed`: some place lacked its bytes, and has them now.
    New { differed: bool },
    /// No place had its bytes. Nothing was changed.
    Differs,
}

/// The result of a look at a chunk's bytes on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// The bytes fit the link, at every place.
    Sound(Box<HeldChunk>),
    /// The bytes don't fit, or can't be read. The chunk isn't held any more.
    Rotten,
    /// The chunk isn't held.
    Missing,
}

/// The error for a volume that failed or is full.
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
