//! The chain: SHA-256's own inner state after each chunk, so that every chunk can be proved on arrival, in any order,
//! against the digest that the registry gave.
//!
//! For a content of *n* chunks, `S0` is SHA-256's initial state and `Si+1` is the state after chunk *i*; the last one,
//! `Sn`, is taken after the padding, so it *is* the digest. A [`Link`] holds the states before and after one chunk. It
//! travels with the chunk, and whoever receives both checks that compressing the bytes from `before` gives `after`.
//!
//! A link that holds proves nothing alone: a liar can invent a state and bytes that fit it. Trust comes from the end.
//! The digest is known to be true, so a last chunk whose link holds and ends in it is true, and so is the state
//! before it (to find other bytes or another state that lead to the same digest is to find a second preimage of
//! SHA-256's compression function); that state in turn proves the chunk before.
//! [`Ledger::walk`](crate::ledger::Ledger::walk) goes back like this. The first link that doesn't end in the state
//! proved after it names the host that sent it.

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

/// The state after `bytes`, which are chunk `chunk` of a content of this geometry, from the state before it.
///
/// After the last chunk this is the state after the padding: the digest, if all before was true.
///
/// # Panics
/// When `bytes` hasn't the length that the geometry gives this chunk: the caller has checked it.
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

/// SHA-256's padding of the last, partial block of a message of `size` bytes: one or two blocks (FIPS 180-4, 5.1.1).
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

/// What proves one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The state before the chunk.
    pub before: State,
    /// The state after it; for the last chunk, the digest.
    pub after: State,
    /// Where to look for the chunk at home; a hint.
    pub fingerprint: Fingerprint,
    /// Where decoding of the registry's blob can start again for what follows this chunk; a hint.
    pub resume: Option<Resume>,
}

/// Where a compressed layer can be entered so as to decode what follows a chunk: the block that the chunk's last byte
/// lies in.
///
/// Whoever decoded the layer knows this place and passes it on with the link, so that the next lease holder goes on
/// by Range and fetches one block again. The decoder also needs the 64 KiB of raw bytes before the block. The place
/// is a hint: the block has to decode to the end of the chunk, which is held. Where it doesn't, the fetch starts
/// again at the blob's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The block's offset in the compressed blob, in bytes.
    pub blob_offset: u64,
    /// Raw bytes of the block up to the chunk's end: from 1 to 64 KiB.
    pub skip_bytes: u32,
}

impl Link {
    /// The link that these bytes make from this state.
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

    /// Whether these bytes lead from `before` to `after`. Bytes of a wrong length don't.
    #[must_use]
    pub fn holds(&self, geometry: Geometry, chunk: ChunkIndex, bytes: &[u8]) -> bool {
        geometry.contains(chunk)
            && bytes.len() == geometry.len(chunk) as usize
            && step(geometry, chunk, self.before, bytes) == self.after
    }
}
