//! The recipe of an image: what proves each of the image's chunks before any of them arrives.
//!
//! A recipe has, for every content of an image, SHA-256's inner state after each chunk. With these states a chunk is
//! checked alone, in any order, and when it arrives. A recipe is made once (by a release's pipeline, or by a fleet
//! while it stages) and is the same for everybody: it has no dates, and its contents stand in the manifest's order.
//!
//! A recipe needs no trust. Its states begin at SHA-256's initial state and end in the content's digest, so chunks that
//! all fit their states *are* the content. A false recipe has at least one pair of states that the content's bytes
//! don't fit. Whoever reads the registry's bytes finds that pair. So a false recipe costs time, and never a false byte
//! in an image. Fingerprints and resume places are hints, as in a [`Link`].

use alloc::{collections::BTreeMap, sync::Arc, vec::Vec};

use prost::Message as _;

use crate::{
    blocks::{Blocks, BlocksError, Cutter, PAGE_BYTES},
    chain::{Link, Resume, State, step},
    chunks::{CHUNK_BYTES, ChunkIndex, Geometry},
    digest::{Digest, ParseDigestError},
    fingerprint::Fingerprint,
    image::{ContentKind, ContentSpec, Layout},
    message,
};

/// The type of the artifact, and of its only layer, under which a recipe stands beside its image in a registry.
pub const ARTIFACT_TYPE: &str = "application/vnd.parbake.recipe.v1";

const STATE_BYTES: usize = 32;
const FINGERPRINT_BYTES: usize = 16;
const RESUME_BYTES: usize = 12;

/// Bytes of a recipe that each chunk may take: 0.1 % of the chunk. 60 prove and find the chunk, and up to
/// [`blocks::MAX_BYTES_PER_CHUNK`](crate::blocks::MAX_BYTES_PER_CHUNK) name its blocks.
const MAX_BYTES_PER_CHUNK: u64 = 1 << 10;
/// Bytes that each content may take beside those of its chunks.
const MAX_BYTES_PER_CONTENT: u64 = 256;

/// The recipe of an image. It is whole: it has each content of the image's [`Layout`], in the layout's sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    image: Digest,
    contents: BTreeMap<Digest, Arc<ContentRecipe>>,
    order: Vec<Digest>,
}

/// The recipe of one content.
#[derive(Clone, PartialEq, Eq)]
pub struct ContentRecipe {
    digest: Digest,
    geometry: Geometry,
    states: Vec<u8>,
    fingerprints: Vec<u8>,
    resumes: Vec<u8>,
    blocks: Blocks,
}

/// Why bytes aren't the recipe of an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseRecipeError {
    /// It has more bytes than any recipe of this image.
    #[error("recipe has {bytes} bytes; a recipe of this image has {most} at most")]
    TooLarge {
        /// The recipe's bytes.
        bytes: u64,
        /// The most that are read.
        most: u64,
    },
    /// It isn't a sequence of messages of these types.
    #[error("recipe doesn't decode: {0}")]
    Protobuf(prost::DecodeError),
    /// It was cut off.
    #[error("recipe is cut off")]
    Truncated,
    /// It is the recipe of another image.
    #[error("recipe is of image {found}, not of {wanted}")]
    OtherImage {
        /// The image whose recipe is read.
        wanted: Digest,
        /// The image that the recipe names.
        found: Digest,
    },
    /// A digest isn't 32 bytes.
    #[error("recipe has a digest of {0} bytes")]
    Digest(usize),
    /// It has more contents than the image.
    #[error("recipe has more than the {0} contents of the image")]
    TooMany(usize),
    /// It has a content that the image doesn't have, or has one twice.
    #[error("recipe has content {0}, which the image doesn't have there")]
    Unexpected(Digest),
    /// It lacks a content.
    #[error("recipe lacks content {0}")]
    Lacks(Digest),
    /// It gives a content another size than the manifest.
    #[error("recipe says that content {content} has {says} bytes; the manifest says {is}")]
    Size {
        /// The content.
        content: Digest,
        /// The size in the recipe.
        says: u64,
        /// The size in the manifest.
        is: u64,
    },
    /// A column has another number of entries than the content has chunks.
    #[error("recipe has {bytes} bytes of {column} for content {content}, not {wanted}")]
    Column {
        /// The content.
        content: Digest,
        /// The column's name.
        column: &'static str,
        /// The column's bytes.
        bytes: usize,
        /// The bytes that the content's chunks need.
        wanted: usize,
    },
    /// Its blocks aren't those of the content. Like every column it is refused although it is a hint, so that a maker
    /// that writes nonsense is found when the recipe is verified, and not by what hosts fetch in vain.
    #[error("recipe has blocks for content {content} that don't fit: {error}")]
    Blocks {
        /// The content.
        content: Digest,
        /// What is wrong with them.
        error: BlocksError,
    },
}

/// Bytes that aren't the content whose recipe was to be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTheContentError {
    /// They are fewer or more.
    #[error("content {content} has {came} bytes instead of {size}")]
    Size {
        /// The content.
        content: Digest,
        /// The bytes that the manifest gives the content.
        size: u64,
        /// The bytes that came. One too many stands for all that would have followed.
        came: u64,
    },
    /// They have another digest.
    #[error("content {content} isn't what its digest says: its bytes have the digest {found}")]
    Digest {
        /// The content.
        content: Digest,
        /// The digest of the bytes.
        found: Digest,
    },
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
        };
        let Self { content, chunk, .. } = self;
        write!(f, "the {what} chunk {chunk} of content {content}")
    }
}

/// A chunk that a registry gives in other bytes than a recipe says. Either the recipe is false, or the registry's bytes
/// are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Doubt {
    /// The image.
    pub image: Digest,
    /// The digest of the recipe's bytes, which names the recipe.
    pub recipe: Digest,
    /// The content.
    pub content: Digest,
    /// The first chunk that doesn't fit.
    pub chunk: ChunkIndex,
}

impl Doubt {
    /// The doubt as a message.
    #[must_use]
    pub fn to_message(&self) -> message::RecipeDoubt {
        message::RecipeDoubt {
            manifest: self.image.as_bytes().to_vec(),
            recipe: self.recipe.as_bytes().to_vec(),
            content: self.content.as_bytes().to_vec(),
            chunk: self.chunk.0,
        }
    }

    /// Reads a doubt.
    ///
    /// # Errors
    /// When a digest isn't 32 bytes.
    pub fn parse(message: &message::RecipeDoubt) -> Result<Self, ParseDigestError> {
        let digest = |bytes: &[u8]| Digest::try_from(bytes);
        Ok(Self {
            image: digest(&message.manifest)?,
            recipe: digest(&message.recipe)?,
            content: digest(&message.content)?,
            chunk: ChunkIndex(message.chunk),
        })
    }
}

impl Recipe {
    /// The most bytes that a recipe of this image may have: about 0.1 % of the image.
    #[must_use]
    pub fn max_bytes(layout: &Layout) -> u64 {
        let chunks = |content: &ContentSpec| u64::from(content.geometry.chunks());
        layout.contents().iter().fold(4096, |sum, content| {
            sum + MAX_BYTES_PER_CONTENT + MAX_BYTES_PER_CHUNK * chunks(content)
        })
    }

    /// The recipe of an image, of the recipes of its contents.
    ///
    /// # Errors
    /// When a content of the image is missing, or one has another size than the manifest says.
    pub fn new(
        layout: &Layout,
        contents: impl IntoIterator<Item = ContentRecipe>,
    ) -> Result<Self, ParseRecipeError> {
        let mut given: BTreeMap<Digest, ContentRecipe> = BTreeMap::new();
        for content in contents {
            if let Some(twice) = given.insert(content.digest, content) {
                return Err(ParseRecipeError::Unexpected(twice.digest));
            }
        }
        let mut contents = BTreeMap::new();
        let mut order = Vec::new();
        for spec in layout.contents() {
            let content = given.remove(&spec.digest);
            let content = content.ok_or(ParseRecipeError::Lacks(spec.digest))?;
            content.fits(&spec)?;
            order.push(spec.digest);
            contents.insert(spec.digest, Arc::new(content));
        }
        if let Some(digest) = given.into_keys().next() {
            return Err(ParseRecipeError::Unexpected(digest));
        }
        Ok(Self {
            image: *layout.digest(),
            contents,
            order,
        })
    }

    /// Reads the recipe of this image.
    ///
    /// # Errors
    /// When the bytes are anything else: the recipe of another image, cut off, or with columns that don't fit.
    pub fn parse(bytes: &[u8], layout: &Layout) -> Result<Self, ParseRecipeError> {
        let most = Self::max_bytes(layout);
        if bytes.len() as u64 > most {
            return Err(ParseRecipeError::TooLarge {
                bytes: bytes.len() as u64,
                most,
            });
        }
        let mut rest = bytes;
        let mut reader = Reader::new(layout);
        let mut contents = Vec::new();
        contents.extend(reader.take(part(&mut rest)?)?);
        while !rest.is_empty() {
            contents.extend(reader.take(part(&mut rest)?)?);
        }
        Self::new(layout, contents)
    }

    /// The bytes of the recipe. Recipes that are equal have equal bytes, whoever made them.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let header = message::RecipeHeader {
            image: self.image.as_bytes().to_vec(),
        };
        let mut bytes = header.encode_length_delimited_to_vec();
        for content in self.contents() {
            let content = message::RecipeContent {
                digest: content.digest.as_bytes().to_vec(),
                size: content.geometry.size(),
                states: content.states.clone(),
                fingerprints: content.fingerprints.clone(),
                resumes: content.resumes.clone(),
                block_lengths: content.blocks.parts().0.to_vec(),
                block_prints: content.blocks.parts().1.to_vec(),
            };
            bytes.extend(content.encode_length_delimited_to_vec());
        }
        bytes
    }

    /// The first place where this recipe differs from `true_one`, which somebody made of the image's own bytes:
    /// contents in the manifest's order, in each the first chunk, and of a chunk's entries the state first. `None` when
    /// nothing in this recipe is false. A column of places that only one of the two has says nothing false.
    ///
    /// # Panics
    /// When the two are recipes of different images, which have no chunks in common.
    #[must_use]
    pub fn first_difference(&self, true_one: &Self) -> Option<Difference> {
        assert_eq!(self.image, true_one.image, "recipes of two images");
        let mut pairs = self.contents().zip(true_one.contents());
        pairs.find_map(|(content, true_one)| content.first_difference(true_one))
    }

    /// The digest of the image's manifest.
    #[must_use]
    pub const fn image(&self) -> &Digest {
        &self.image
    }

    /// The recipe of a content; `None` if the image doesn't have the content.
    #[must_use]
    pub fn content(&self, digest: &Digest) -> Option<&Arc<ContentRecipe>> {
        self.contents.get(digest)
    }

    /// The recipes of all contents, in the manifest's order.
    pub fn contents(&self) -> impl Iterator<Item = &ContentRecipe> {
        let content = |digest| self.contents.get(digest).map(Arc::as_ref);
        self.order.iter().filter_map(content)
    }
}

fn digest(bytes: &[u8]) -> Result<Digest, ParseRecipeError> {
    let bytes: [u8; 32] = bytes
        .try_into()
        .map_err(|_| ParseRecipeError::Digest(bytes.len()))?;
    Ok(Digest::from_bytes(bytes))
}

/// Takes one part of a recipe off, whose length stands before it.
fn part<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], ParseRecipeError> {
    let length = prost::decode_length_delimiter(&mut *rest).map_err(ParseRecipeError::Protobuf)?;
    let (body, later) = rest
        .split_at_checked(length)
        .ok_or(ParseRecipeError::Truncated)?;
    *rest = later;
    Ok(body)
}

/// Reads a recipe part by part, for who can't hold all its blocks at once: a recipe of 140 GB may have 140 MB. A part
/// is a message of the file, without the length that stands before it.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    layout: &'a Layout,
    wanted: usize,
    /// The parts that came.
    parts: usize,
}

impl<'a> Reader<'a> {
    /// Begins with the file's first byte.
    #[must_use]
    pub fn new(layout: &'a Layout) -> Self {
        Self {
            layout,
            wanted: layout.contents().len(),
            parts: 0,
        }
    }

    /// The most bytes that any part may have.
    #[must_use]
    pub fn max_part_bytes(&self) -> u64 {
        let chunks = |content: &ContentSpec| u64::from(content.geometry.chunks());
        let most = self.layout.contents().iter().map(chunks).max();
        MAX_BYTES_PER_CONTENT + MAX_BYTES_PER_CHUNK * most.unwrap_or(0)
    }

    /// Takes the next part. The first one is the header; each other one is the recipe of a content. The content isn't
    /// compared with the layout yet; [`Recipe::new`] does that.
    ///
    /// # Errors
    /// When it is no such part, the recipe is another image's, or it has more contents than the image.
    pub fn take(&mut self, part: &[u8]) -> Result<Option<ContentRecipe>, ParseRecipeError> {
        // checked for each: a million empty contents take few bytes, and much memory
        if self.parts > self.wanted {
            return Err(ParseRecipeError::TooMany(self.wanted));
        }
        self.parts += 1;
        if self.parts > 1 {
            return ContentRecipe::parse(part).map(Some);
        }
        let header = message::RecipeHeader::decode(part).map_err(ParseRecipeError::Protobuf)?;
        let (wanted, found) = (*self.layout.digest(), digest(&header.image)?);
        if found != wanted {
            return Err(ParseRecipeError::OtherImage { wanted, found });
        }
        Ok(None)
    }
}

impl ContentRecipe {
    /// Reads the part of a recipe that is about one content. It isn't compared with the manifest; [`Recipe::new`] does
    /// that.
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
        })
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

    fn first_difference(&self, true_one: &Self) -> Option<Difference> {
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
        let (chunk, column) = found.min_by_key(|(chunk, _)| *chunk)?;
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

    /// Checks the size against the manifest's, and the columns against the size.
    fn fits(&self, spec: &ContentSpec) -> Result<(), ParseRecipeError> {
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
}

impl Maker {
    /// Begins with the content's first byte. A raw layer gets its blocks. Others don't: a blob's bytes are packed, and
    /// what is packed differs from the first change on.
    #[must_use]
    pub fn of(spec: &ContentSpec) -> Self {
        let raw = matches!(spec.kind, ContentKind::RawLayer { .. });
        Self {
            cutter: raw.then(Cutter::default),
            ..Self::new(spec.digest, spec.geometry)
        }
    }

    /// Begins with the content's first byte. The recipe says nothing of blocks.
    #[must_use]
    pub const fn new(digest: Digest, geometry: Geometry) -> Self {
        Self {
            recipe: ContentRecipe {
                digest,
                geometry,
                states: Vec::new(),
                fingerprints: Vec::new(),
                resumes: Vec::new(),
                blocks: Blocks::EMPTY,
            },
            state: State::INITIAL,
            next: ChunkIndex(0),
            buffer: Vec::new(),
            came: 0,
            block: None,
            cutter: None,
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
        let Fingerprint(fingerprint) = Fingerprint::of(bytes);
        recipe.fingerprints.extend_from_slice(&fingerprint);
        if !recipe.geometry.is_last(self.next) {
            recipe.states.extend_from_slice(&self.state.to_bytes());
            if let Some((raw_offset, blob_offset)) = self.block {
                let skip = u32::try_from(self.came - raw_offset).unwrap_or(0);
                recipe.resumes.extend_from_slice(&blob_offset.to_le_bytes());
                recipe.resumes.extend_from_slice(&skip.to_le_bytes());
            }
        }
        self.next.0 += 1;
    }

    /// The recipe of the content, whose bytes have all come.
    ///
    /// # Errors
    /// When bytes are missing, or they aren't the content.
    pub fn finish(mut self) -> Result<ContentRecipe, NotTheContentError> {
        let blocks = &mut self.recipe.blocks;
        if let Some(cutter) = self.cutter.take() {
            cutter.finish(&mut |piece| blocks.push(piece));
        }
        // Pages that belong to files of their own, one after the other, would take 0.14 %. Such a content is found by
        // whole chunks only.
        if blocks.bytes() > Blocks::max_bytes(self.recipe.geometry) {
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

#[cfg(test)]
mod tests;
