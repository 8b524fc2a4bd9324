//! Chunks packed for the wire, and a cache of those that came or went lately.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
};

use bytes::Bytes;
use proto::{ChunkIndex, Digest, HostId, Link, Signed, Statement, message::Encoding};

use crate::{lock::lock, zero::is_zero};

/// Bytes of packed chunks that are kept to be sent again: a spreader sends each chunk to every host, soon after the
/// chunk came.
const CACHE_BYTES: usize = 32 << 20;

/// A packed chunk is used if it saves at least this part, a sixteenth. Below that the receiver's time is worth more.
const WORTH_PACKING: usize = 16;

/// zstd's fastest ordinary level. It packs 0.5 GB/s on a core, well above what a 1 GbE link moves.
const ZSTD_LEVEL: i32 = 1;

/// A chunk as it travels.
#[derive(Clone, Debug)]
pub(crate) struct Packed {
    pub(crate) link: Link,
    /// The host that made the link.
    pub(crate) maker: HostId,
    /// The statement of the host that answers for the link. Without one, the link is of use only to hosts with a
    /// recipe.
    pub(crate) statement: Option<Statement>,
    pub(crate) encoding: Encoding,
    pub(crate) bytes: Bytes,
}

impl Packed {
    /// The link with the statement of the host that answers for it, if one does.
    pub(super) fn signed(&self, content: Digest, chunk: ChunkIndex) -> Option<Signed> {
        Some(Signed {
            content,
            chunk,
            link: self.link,
            statement: self.statement.clone()?,
        })
    }
}

/// Packs a chunk: as nothing for zeros, by zstd where that helps, and else unchanged.
pub(crate) fn pack(bytes: Vec<u8>) -> (Encoding, Bytes) {
    if is_zero(&bytes) {
        return (Encoding::Zero, Bytes::new());
    }
    match zstd::bulk::compress(&bytes, ZSTD_LEVEL) {
        Ok(packed) if packed.len() + bytes.len() / WORTH_PACKING <= bytes.len() => {
            (Encoding::Zstd, packed.into())
        }
        _ => (Encoding::Raw, bytes.into()),
    }
}

/// Unpacks a chunk of exactly `length` bytes; `None` when these bytes aren't one.
pub(super) fn unpack(encoding: Encoding, packed: Bytes, length: usize) -> Option<Bytes> {
    match encoding {
        Encoding::Zero => packed.is_empty().then(|| vec![0; length].into()),
        Encoding::Raw => (packed.len() == length).then_some(packed),
        Encoding::Zstd => zstd::bulk::decompress(&packed, length)
            .ok()
            .filter(|bytes| bytes.len() == length)
            .map(Bytes::from),
    }
}

/// Packed chunks that came or went lately. Bounded by [`CACHE_BYTES`]. The oldest leave first.
///
/// The transfer jobs share it under a lock. The lock is only held for one operation on a map.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    inner: Mutex<CacheInner>,
}

#[derive(Debug, Default)]
struct CacheInner {
    chunks: BTreeMap<(Digest, ChunkIndex), Packed>,
    order: VecDeque<(Digest, ChunkIndex)>,
    bytes: usize,
}

impl Cache {
    pub(crate) fn find(&self, content: Digest, chunk: ChunkIndex) -> Option<Packed> {
        lock(&self.inner).chunks.get(&(content, chunk)).cloned()
    }

    pub(crate) fn keep(&self, content: Digest, chunk: ChunkIndex, packed: Packed) {
        let mut inner = lock(&self.inner);
        let added = packed.bytes.len();
        if let Some(before) = inner.chunks.insert((content, chunk), packed) {
            inner.bytes -= before.bytes.len();
        } else {
            inner.order.push_back((content, chunk));
        }
        inner.bytes += added;
        while inner.bytes > CACHE_BYTES || inner.order.len() > 4 * (CACHE_BYTES >> 20) {
            let Some(oldest) = inner.order.pop_front() else {
                break;
            };
            if let Some(gone) = inner.chunks.remove(&oldest) {
                inner.bytes -= gone.bytes.len();
            }
        }
    }

    pub(crate) fn forget(&self, content: Digest, chunk: ChunkIndex) {
        let mut inner = lock(&self.inner);
        if let Some(gone) = inner.chunks.remove(&(content, chunk)) {
            inner.bytes -= gone.bytes.len();
            inner.order.retain(|kept| *kept != (content, chunk));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zeros_travel_as_nothing_and_noise_as_it_is() {
        assert_eq!(pack(vec![0; 1 << 20]), (Encoding::Zero, Bytes::new()));
        assert_eq!(pack(vec![7; 1 << 20]).0, Encoding::Zstd);
        let noise: Vec<u8> = (0u32..4096)
            .flat_map(|at| Digest::of(&at.to_le_bytes()).as_bytes().to_vec())
            .collect();
        assert_eq!(pack(noise.clone()), (Encoding::Raw, noise.into()));
    }

    proptest! {
        #[test]
        fn what_was_packed_is_unpacked(bytes in prop::collection::vec(0u8..4, 1..5000)) {
            let length = bytes.len();
            let (encoding, packed) = pack(bytes.clone());
            prop_assert_eq!(unpack(encoding, packed.clone(), length), Some(bytes.into()));
            prop_assert_eq!(unpack(encoding, packed, length + 1).filter(|_| encoding != Encoding::Zero), None);
        }

        #[test]
        fn hostile_packed_bytes_never_unpack_to_another_length(bytes in prop::collection::vec(any::<u8>(), 0..400), length in 0usize..5000) {
            for encoding in [Encoding::Raw, Encoding::Zstd, Encoding::Zero] {
                if let Some(raw) = unpack(encoding, bytes.clone().into(), length) {
                    prop_assert_eq!(raw.len(), length);
                }
            }
        }
    }
}
