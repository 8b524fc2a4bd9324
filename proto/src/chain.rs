//! The chain: SHA-256's inner state after each chunk. By these states, every chunk can be proved on arrival, in any
//! order, against the digest that the registry gave.
//!
//! For a content of *n* chunks, `S0` is SHA-256's initial state, and `Si+1` is the state after chunk *i*. The last
//! state, `Sn`, is taken after the padding, so it is the digest. A [`Link`] holds the states before and after one
//! chunk, and travels with the chunk. A host that receives both checks that compressing the bytes from `before` gives
//! `after`.
//!
//! A link that fits its bytes proves nothing alone: a liar can invent a state and bytes that fit it. Proof comes from
//! the end. The digest is known to be true. So a last chunk is true if its link fits its bytes and ends in the digest.
//! The state before that chunk is then true too: other bytes or another state that lead to the same digest would be a
//! second preimage of SHA-256's compression function. That state in turn proves the chunk before.
//! [`Ledger::walk`](crate::ledger::Ledger::walk) goes back like this. A link that doesn't end in the state that is
//! proved after it is false.

use sha2::block_api::compress256;

use crate::{
    chunks::{ChunkIndex, Geometry},
    digest::{Digest, Hex},
    fingerprint::Fingerprint,
};

/// SHA-256's inner state: eight big-endian 32-bit words.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State([u32; 8]);

impl State {
    /// The state before the first byte (FIPS 180-4, section 5.3.3).
    pub const INITIAL: Self = Self([
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ]);

    /// A state from its 32 bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        let mut words = [0; 8];
        let (quads, _) = bytes.as_chunks::<4>();
        for (word, quad) in words.iter_mut().zip(quads) {
            *word = u32::from_be_bytes(*quad);
        }
        Self(words)
    }

    /// The 32 bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let (quads, _) = bytes.as_chunks_mut::<4>();
        for (quad, word) in quads.iter_mut().zip(self.0) {
            *quad = word.to_be_bytes();
        }
        bytes
    }
}

impl From<Digest> for State {
    fn from(digest: Digest) -> Self {
        Self::from_bytes(digest.as_bytes())
    }
}

impl core::fmt::Debug for State {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&Hex(&self.to_bytes()), f)
    }
}

/// The state after a chunk: `bytes` are chunk `chunk` of a content of this geometry, and `before` is the state before
/// them.
///
/// The state after the last chunk is the state after the padding. It is the content's digest if everything before was
/// true.
///
/// # Panics
/// When the length of `bytes` isn't the one that the geometry gives this chunk. The caller checks the length first.
#[must_use]
pub fn step(geometry: Geometry, chunk: ChunkIndex, before: State, bytes: &[u8]) -> State {
    assert_eq!(
        bytes.len(),
        geometry.len(chunk) as usize,
        "chunk {chunk} of {} bytes",
        geometry.size()
    );
    let mut state = before.0;
    let (blocks, rest) = bytes.as_chunks::<64>();
    compress256(&mut state, blocks);
    if geometry.is_last(chunk) {
        compress256(&mut state, padding(rest, geometry.size()).as_slice());
    }
    State(state)
}

/// The last, partial block of a message of `size` bytes with SHA-256's padding: one or two blocks (FIPS 180-4, 5.1.1).
fn padding(rest: &[u8], size: u64) -> Padding {
    let mut bytes = [0u8; 128];
    bytes[..rest.len()].copy_from_slice(rest);
    bytes[rest.len()] = 0x80;
    let blocks = if rest.len() < 56 { 1 } else { 2 };
    bytes[blocks * 64 - 8..blocks * 64].copy_from_slice(&(size * 8).to_be_bytes());
    Padding { bytes, blocks }
}

struct Padding {
    bytes: [u8; 128],
    blocks: usize,
}

impl Padding {
    fn as_slice(&self) -> &[[u8; 64]] {
        let (blocks, _) = self.bytes.as_chunks::<64>();
        &blocks[..self.blocks]
    }
}

/// The proof of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The state before the chunk.
    pub before: State,
    /// The state after the chunk; for the last chunk, the digest.
    pub after: State,
    /// The chunk's fingerprint, by which the host may find the chunk on its own disk. A hint.
    pub fingerprint: Fingerprint,
    /// The place in the registry's blob from which decoding can continue after this chunk. A hint.
    pub resume: Option<Resume>,
}

/// A place in a compressed layer from which the bytes after a chunk can be decoded: the block with the chunk's last
/// byte.
///
/// A host that decoded the layer knows this place and passes it on with the link. The next lease holder can then
/// continue by an HTTP Range request and fetches only one block twice. The decoder also needs the 64 KiB of raw bytes
/// before the block. The place is a hint: the block must decode to the end of the chunk, which the host holds. If it
/// doesn't, the fetch starts again at the blob's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The block's offset in the compressed blob, in bytes.
    pub blob_offset: u64,
    /// The raw bytes of the block up to the chunk's end: from 1 to 64 KiB.
    pub skip_bytes: u32,
}

impl Link {
    /// The link of these bytes, from this state.
    ///
    /// # Panics
    /// As [`step`].
    #[must_use]
    pub fn forge(geometry: Geometry, chunk: ChunkIndex, before: State, bytes: &[u8]) -> Self {
        Self {
            before,
            after: step(geometry, chunk, before, bytes),
            fingerprint: Fingerprint::of(bytes),
            resume: None,
        }
    }

    /// Whether both links have the same states, whatever their hints say.
    #[must_use]
    pub fn is_alike(&self, other: &Self) -> bool {
        (self.before, self.after) == (other.before, other.after)
    }

    /// Whether these bytes lead from `before` to `after`. Bytes of a wrong length never do.
    #[must_use]
    pub fn holds(&self, geometry: Geometry, chunk: ChunkIndex, bytes: &[u8]) -> bool {
        geometry.contains(chunk)
            && bytes.len() == geometry.len(chunk) as usize
            && step(geometry, chunk, self.before, bytes) == self.after
    }
}
