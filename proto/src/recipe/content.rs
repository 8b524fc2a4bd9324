//! The recipe of one content: columns with an entry for each chunk. It says how the columns are read, and where two
//! recipes of one content differ. Who makes the entries is in `maker`.

use alloc::vec::Vec;

use prost::Message as _;

use super::error::ParseRecipeError;
use crate::{
    blocks::{Blocks, PAGE_BYTES},
    chain::{Link, Resume, State, step},
    chunks::{CHUNK_BYTES, ChunkIndex, Geometry},
    digest::Digest,
    fingerprint::Fingerprint,
    image::{ContentKind, ContentSpec},
    message,
};

const STATE_BYTES: usize = 32;
const FINGERPRINT_BYTES: usize = 16;
const RESUME_BYTES: usize = 12;

/// The recipe of one content.
#[derive(Clone, PartialEq, Eq)]
pub struct ContentRecipe {
    pub(super) digest: Digest,
    pub(super) geometry: Geometry,
    pub(super) states: Vec<u8>,
    pub(super) fingerprints: Vec<u8>,
    pub(super) resumes: Vec<u8>,
    pub(super) blocks: Blocks,
    /// The states of the blob that the content is decoded from.
    pub(super) blob_states: Vec<u8>,
}

/// A column of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// SHA-256's inner states: the proof.
    States,
    /// The fingerprints of chunks: a hint.
    Fingerprints,
    /// The places in the blob to go on from: a hint.
    Resumes,
    /// The content's blocks: a hint.
    Blocks,
    /// SHA-256's inner states of the blob that the content is decoded from: the blob's proof. The chunks are the
    /// blob's.
    BlobStates,
}

/// A place where two recipes of one image differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The content.
    pub content: Digest,
    /// The first chunk whose entry differs.
    pub chunk: ChunkIndex,
    /// The column in which it differs.
    pub column: Column,
}

impl core::fmt::Display for Difference {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let what = match self.column {
            Column::States => "state after",
            Column::Fingerprints => "fingerprint of",
            Column::Resumes => "place to go on from after",
            Column::Blocks => "blocks of",
            Column::BlobStates => "state of the blob after",
        };
        let Self { content, chunk, .. } = self;
        write!(f, "the {what} chunk {chunk} of content {content}")
    }
}

impl ContentRecipe {
    /// Reads the part of a recipe that is about one content. It isn't compared with the manifest;
    /// [`Recipe::new`](super::Recipe::new) does that.
    ///
    /// # Errors
    /// When it is no such part, or its blocks don't fit its size.
    pub fn parse(part: &[u8]) -> Result<Self, ParseRecipeError> {
        let content = message::RecipeContent::decode(part).map_err(ParseRecipeError::Protobuf)?;
        let digest = digest(&content.digest)?;
        // a size that is too large fits no content of a layout either
        let geometry = Geometry::new(content.size).map_err(|error| ParseRecipeError::Size {
            content: digest,
            says: error.size,
            is: 0,
        })?;
        let blocks = Blocks::parse(content.block_lengths, content.block_prints, geometry);
        let blocks = blocks.map_err(|error| ParseRecipeError::Blocks {
            content: digest,
            error,
        })?;
        Ok(Self {
            digest,
            geometry,
            states: content.states,
            fingerprints: content.fingerprints,
            resumes: content.resumes,
            blocks,
            blob_states: content.blob_states,
        })
    }

    /// The recipe of the blob of this content, as [`Recipe::blob`](super::Recipe::blob) has it, without the rest.
    /// `None` if the recipe's maker didn't read the blob.
    ///
    /// # Errors
    /// When the recipe doesn't fit the content.
    pub fn into_blob(self, spec: &ContentSpec) -> Result<Option<Self>, ParseRecipeError> {
        if self.digest != spec.digest {
            return Err(ParseRecipeError::Unexpected(self.digest));
        }
        self.fits(spec)?;
        let ContentKind::RawLayer { .. } = spec.kind else {
            let mut recipe = Self::bare(self.digest, self.geometry);
            recipe.states = self.states;
            return Ok(Some(recipe));
        };
        let Some((digest, geometry)) = blob_of(spec) else {
            return Ok(None);
        };
        let mut recipe = Self::bare(digest, geometry);
        recipe.states = self.blob_states;
        Ok((recipe.states.len() == inner_states(geometry)).then_some(recipe))
    }

    /// A recipe that says nothing yet.
    pub(super) const fn bare(digest: Digest, geometry: Geometry) -> Self {
        Self {
            digest,
            geometry,
            states: Vec::new(),
            fingerprints: Vec::new(),
            resumes: Vec::new(),
            blocks: Blocks::EMPTY,
            blob_states: Vec::new(),
        }
    }

    /// The bytes of the content's part of a recipe, with their length before them.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (block_lengths, block_prints) = self.blocks.parts();
        let content = message::RecipeContent {
            digest: self.digest.as_bytes().to_vec(),
            size: self.geometry.size(),
            states: self.states.clone(),
            fingerprints: self.fingerprints.clone(),
            resumes: self.resumes.clone(),
            block_lengths: block_lengths.to_vec(),
            block_prints: block_prints.to_vec(),
            blob_states: self.blob_states.clone(),
        };
        content.encode_length_delimited_to_vec()
    }

    /// The digest of the content.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The size of the content, and its chunks.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The link of a chunk: the states before and after the chunk, and the hints. `None` past the content's end.
    #[must_use]
    pub fn link(&self, chunk: ChunkIndex) -> Option<Link> {
        self.geometry.contains(chunk).then(|| Link {
            before: self.state_before(chunk),
            after: self.state_after(chunk),
            fingerprint: self.fingerprint(chunk),
            resume: self.resume(chunk),
        })
    }

    /// Whether these are the chunk's bytes, as far as the recipe is true.
    #[must_use]
    pub fn proves(&self, chunk: ChunkIndex, bytes: &[u8]) -> bool {
        self.geometry.contains(chunk)
            && bytes.len() == self.geometry.len(chunk) as usize
            && step(self.geometry, chunk, self.state_before(chunk), bytes)
                == self.state_after(chunk)
    }

    /// The content's blocks; empty where they aren't known.
    #[must_use]
    pub const fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Takes the blocks out. They are most of a recipe's bytes, and few need them for long.
    pub fn take_blocks(&mut self) -> Blocks {
        core::mem::take(&mut self.blocks)
    }

    /// The first place where this recipe differs from `true_one`.
    pub(super) fn first_difference(&self, true_one: &Self) -> Option<Difference> {
        let has_places = !self.resumes.is_empty() && !true_one.resumes.is_empty();
        let (states, fingerprints) = (&true_one.states, &true_one.fingerprints);
        let resumes = match has_places {
            true => first_different::<RESUME_BYTES>(&self.resumes, &true_one.resumes),
            false => None,
        };
        let found = [
            (
                Column::States,
                first_different::<STATE_BYTES>(&self.states, states),
            ),
            (
                Column::Fingerprints,
                first_different::<FINGERPRINT_BYTES>(&self.fingerprints, fingerprints),
            ),
            (Column::Resumes, resumes),
            (Column::Blocks, self.first_different_block(true_one)),
        ];
        let found = found
            .into_iter()
            .filter_map(|(column, chunk)| Some((chunk?, column)));
        // of equal chunks the first is taken: the state
        let found = found.min_by_key(|(chunk, _)| *chunk);
        let has_states = !self.blob_states.is_empty() && !true_one.blob_states.is_empty();
        let of_blob = || {
            let chunk = first_different::<STATE_BYTES>(&self.blob_states, &true_one.blob_states)?;
            has_states.then_some((chunk, Column::BlobStates))
        };
        let (chunk, column) = found.or_else(of_blob)?;
        Some(Difference {
            content: self.digest,
            chunk,
            column,
        })
    }

    /// The chunk in which the first block begins that differs. None does where one of the two says nothing of blocks.
    fn first_different_block(&self, true_one: &Self) -> Option<ChunkIndex> {
        if self.blocks.is_empty() || true_one.blocks.is_empty() {
            return None;
        }
        let mut pairs = self.blocks.pieces().zip(true_one.blocks.pieces());
        // both cover the same pages, so neither goes on where the other ends
        let ((page, _), _) = pairs.find(|(one, other)| one != other)?;
        let pages_per_chunk = u32::try_from(CHUNK_BYTES / PAGE_BYTES as u64).unwrap_or(1);
        Some(ChunkIndex(page / pages_per_chunk))
    }

    fn state_before(&self, chunk: ChunkIndex) -> State {
        let before = chunk.0.checked_sub(1).map(ChunkIndex);
        before.map_or(State::INITIAL, |chunk| self.state_after(chunk))
    }

    fn state_after(&self, chunk: ChunkIndex) -> State {
        let inner = entry::<STATE_BYTES>(&self.states, chunk);
        // only the last chunk has no entry: `fits` has checked the column's length
        inner.map_or_else(|| self.digest.into(), State::from_bytes)
    }

    fn fingerprint(&self, chunk: ChunkIndex) -> Fingerprint {
        let found = entry::<FINGERPRINT_BYTES>(&self.fingerprints, chunk);
        found.copied().map(Fingerprint).unwrap_or_default()
    }

    fn resume(&self, chunk: ChunkIndex) -> Option<Resume> {
        let [o0, o1, o2, o3, o4, o5, o6, o7, s0, s1, s2, s3] =
            *entry::<RESUME_BYTES>(&self.resumes, chunk)?;
        let skip_bytes = u32::from_le_bytes([s0, s1, s2, s3]);
        (skip_bytes > 0).then(|| Resume {
            blob_offset: u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            skip_bytes,
        })
    }

    /// Appends the entry that [`resume`](Self::resume) reads.
    pub(super) fn push_resume(&mut self, place: Resume) {
        self.resumes.extend(place.blob_offset.to_le_bytes());
        self.resumes.extend(place.skip_bytes.to_le_bytes());
    }

    /// Checks the size against the manifest's, and the columns against the size.
    pub(super) fn fits(&self, spec: &ContentSpec) -> Result<(), ParseRecipeError> {
        if self.geometry != spec.geometry {
            return Err(ParseRecipeError::Size {
                content: self.digest,
                says: self.geometry.size(),
                is: spec.geometry.size(),
            });
        }
        let (lengths, _) = self.blocks.parts();
        let chunks = spec.geometry.chunks() as usize;
        let inner = chunks.saturating_sub(1);
        let blob = blob_of(spec).filter(|_| !self.blob_states.is_empty());
        let blob_states = blob.map_or(0, |(_, geometry)| inner_states(geometry));
        let raw = matches!(spec.kind, ContentKind::RawLayer { .. });
        let resumes = if raw && !self.resumes.is_empty() {
            inner * RESUME_BYTES
        } else {
            0
        };
        for (column, bytes, wanted) in [
            ("states", self.states.len(), inner * STATE_BYTES),
            (
                "fingerprints",
                self.fingerprints.len(),
                chunks * FINGERPRINT_BYTES,
            ),
            ("resumes", self.resumes.len(), resumes),
            ("block_lengths", if raw { 0 } else { lengths.len() }, 0),
            ("blob_states", self.blob_states.len(), blob_states),
        ] {
            if bytes != wanted {
                return Err(ParseRecipeError::Column {
                    content: self.digest,
                    column,
                    bytes,
                    wanted,
                });
            }
        }
        Ok(())
    }
}

impl core::fmt::Debug for ContentRecipe {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ContentRecipe")
            .field("digest", &self.digest)
            .field("chunks", &self.geometry.chunks())
            .finish_non_exhaustive()
    }
}

fn entry<const N: usize>(column: &[u8], chunk: ChunkIndex) -> Option<&[u8; N]> {
    let (entries, _) = column.as_chunks::<N>();
    entries.get(chunk.0 as usize)
}

/// The first chunk whose entries differ in two columns of one length.
fn first_different<const N: usize>(one: &[u8], other: &[u8]) -> Option<ChunkIndex> {
    let ((one, _), (other, _)) = (one.as_chunks::<N>(), other.as_chunks::<N>());
    let at = one
        .iter()
        .zip(other)
        .position(|(one, other)| one != other)?;
    u32::try_from(at).ok().map(ChunkIndex)
}

/// The blob that a raw layer is decoded from. `None` for a content that is a blob.
pub(super) fn blob_of(spec: &ContentSpec) -> Option<(Digest, Geometry)> {
    let ContentKind::RawLayer { blob } = spec.kind else {
        return None;
    };
    Some((blob.digest, Geometry::new(blob.size).ok()?))
}

/// Bytes of the states after all chunks but the last.
pub(super) const fn inner_states(geometry: Geometry) -> usize {
    (geometry.chunks() as usize).saturating_sub(1) * STATE_BYTES
}

/// Reads a digest out of a message.
pub(super) fn digest(bytes: &[u8]) -> Result<Digest, ParseRecipeError> {
    let bytes: [u8; 32] = bytes
        .try_into()
        .map_err(|_| ParseRecipeError::Digest(bytes.len()))?;
    Ok(Digest::from_bytes(bytes))
}
