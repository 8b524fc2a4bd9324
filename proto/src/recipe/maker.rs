//! Makes the recipe of one content, of bytes that come in order.

use alloc::{boxed::Box, vec::Vec};

use super::{
    content::{ContentRecipe, blob_of},
    error::NotTheContentError,
};
use crate::{
    blocks::{Blocks, Cutter},
    chain::{Resume, State, step},
    chunks::{ChunkIndex, Geometry},
    digest::Digest,
    fingerprint::Fingerprint,
    image::{ContentKind, ContentSpec},
};

/// Makes the recipe of a content of the content's raw bytes, in one pass and with a chunk of memory.
#[derive(Debug)]
pub struct Maker {
    recipe: ContentRecipe,
    state: State,
    next: ChunkIndex,
    buffer: Vec<u8>,
    /// The raw offset behind the last byte that came.
    came: u64,
    /// The block of the blob that the last byte that came stands in: its offsets in the raw bytes and in the blob.
    block: Option<(u64, u64)>,
    /// Cuts the raw bytes into blocks, where those are wanted.
    cutter: Option<Cutter>,
    /// Makes the states of the blob that the content is decoded from, if its bytes come too.
    blob: Option<Box<Self>>,
    /// Whether fingerprints are made. They cost about as much as the states.
    prints: bool,
}

impl Maker {
    /// Begins with the content's first byte. A raw layer gets its blocks. Others don't: a blob's bytes are packed, and
    /// what is packed differs from the first change on.
    #[must_use]
    pub fn of(spec: &ContentSpec) -> Self {
        let raw = matches!(spec.kind, ContentKind::RawLayer { .. });
        let blob = blob_of(spec).map(|(digest, geometry)| Self {
            prints: false,
            ..Self::new(digest, geometry)
        });
        Self {
            cutter: raw.then(Cutter::default),
            blob: blob.map(Box::new),
            ..Self::new(spec.digest, spec.geometry)
        }
    }

    /// Begins with the content's first byte. The recipe says nothing of blocks.
    #[must_use]
    pub const fn new(digest: Digest, geometry: Geometry) -> Self {
        Self {
            recipe: ContentRecipe::bare(digest, geometry),
            state: State::INITIAL,
            next: ChunkIndex(0),
            buffer: Vec::new(),
            came: 0,
            block: None,
            cutter: None,
            blob: None,
            prints: true,
        }
    }

    /// Takes the next raw bytes: a block that was decoded, and that starts at this byte of the blob.
    ///
    /// # Errors
    /// When the content has fewer bytes.
    pub fn take_block(&mut self, blob_offset: u64, raw: &[u8]) -> Result<(), NotTheContentError> {
        self.block = Some((self.came, blob_offset));
        self.take(raw)
    }

    /// Takes the next bytes of the blob that a raw layer is decoded from, as the registry stores the blob. The recipe
    /// has the blob's states if all of the blob comes. Bytes of other contents' blobs are left out.
    ///
    /// # Errors
    /// When the blob has fewer bytes.
    pub fn take_blob(&mut self, packed: &[u8]) -> Result<(), NotTheContentError> {
        let blob = self.blob.as_mut();
        blob.map_or(Ok(()), |blob| blob.take(packed))
    }

    /// Takes the next raw bytes.
    ///
    /// # Errors
    /// When the content has fewer bytes.
    pub fn take(&mut self, mut raw: &[u8]) -> Result<(), NotTheContentError> {
        while !raw.is_empty() {
            let wanted = self.recipe.geometry.len(self.next) as usize;
            if wanted == 0 {
                return Err(self.size(self.came + 1));
            }
            let (now, later) = raw.split_at(raw.len().min(wanted - self.buffer.len()));
            raw = later;
            self.came += now.len() as u64;
            if let Some(cutter) = &mut self.cutter {
                cutter.take(now, &mut |piece| self.recipe.blocks.push(piece));
            }
            if now.len() == wanted {
                self.chunk(now);
                continue;
            }
            self.buffer.extend_from_slice(now);
            if self.buffer.len() == wanted {
                let bytes = core::mem::take(&mut self.buffer);
                self.chunk(&bytes);
                self.buffer = bytes;
                self.buffer.clear();
            }
        }
        Ok(())
    }

    fn chunk(&mut self, bytes: &[u8]) {
        let recipe = &mut self.recipe;
        self.state = step(recipe.geometry, self.next, self.state, bytes);
        if self.prints {
            let Fingerprint(fingerprint) = Fingerprint::of(bytes);
            recipe.fingerprints.extend_from_slice(&fingerprint);
        }
        if !recipe.geometry.is_last(self.next) {
            recipe.states.extend_from_slice(&self.state.to_bytes());
            if let Some((raw_offset, blob_offset)) = self.block {
                recipe.push_resume(Resume {
                    blob_offset,
                    skip_bytes: u32::try_from(self.came - raw_offset).unwrap_or(0),
                });
            }
        }
        self.next.0 += 1;
    }

    /// The recipe of the content, whose bytes have all come.
    ///
    /// # Errors
    /// When bytes are missing, or they aren't the content, or the blob's bytes that came aren't the blob.
    pub fn finish(mut self) -> Result<ContentRecipe, NotTheContentError> {
        let mut room = Blocks::max_bytes(self.recipe.geometry);
        if let Some(blob) = self.blob.take().filter(|blob| blob.came > 0) {
            let states = blob.finish()?.states;
            // a blob that is many times its content is no compressed layer, and mirrors do without the states
            if states.len() as u64 <= room {
                room -= states.len() as u64;
                self.recipe.blob_states = states;
            }
        }
        let blocks = &mut self.recipe.blocks;
        if let Some(cutter) = self.cutter.take() {
            cutter.finish(&mut |piece| blocks.push(piece));
        }
        // Pages that belong to files of their own, one after the other, would take 0.14 %. Such a content is found by
        // whole chunks only.
        if blocks.bytes() > room {
            *blocks = Blocks::EMPTY;
        }
        if self.came != self.recipe.geometry.size() {
            return Err(self.size(self.came));
        }
        let found = if self.recipe.geometry.is_empty() {
            Digest::of(&[])
        } else {
            Digest::from_bytes(self.state.to_bytes())
        };
        if found != self.recipe.digest {
            return Err(NotTheContentError::Digest {
                content: self.recipe.digest,
                found,
            });
        }
        Ok(self.recipe)
    }

    const fn size(&self, came: u64) -> NotTheContentError {
        NotTheContentError::Size {
            content: self.recipe.digest,
            size: self.recipe.geometry.size(),
            came,
        }
    }
}
