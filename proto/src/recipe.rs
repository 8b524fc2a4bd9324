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
//!
//! A recipe that was made of the registry's bytes also has the states of each raw layer's blob, as the registry stores
//! the blob. Mirrors need these, because their clients get blobs ([`Recipe::blob`]).

mod error;

use alloc::{boxed::Box, collections::BTreeMap, sync::Arc, vec::Vec};

use prost::Message as _;

pub use self::error::{NotTheContentError, ParseRecipeError};
use crate::{
    blocks::{Blocks, Cutter, PAGE_BYTES},
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
/// [`blocks::MAX_BYTES_PER_CHUNK`](crate::blocks::MAX_BYTES_PER_CHUNK) prove the blob and name the chunk's blocks.
const MAX_BYTES_PER_CHUNK: u64 = 1 << 10;
/// Bytes that each content may take beside those of its chunks.
const MAX_BYTES_PER_CONTENT: u64 = 256;

/// The recipe of an image. It is whole: it has each content of the image's [`Layout`], in the layout's sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    image: Digest,
    contents: BTreeMap<Digest, Arc<ContentRecipe>>,
    order: Vec<Digest>,
    /// The blobs of raw layers: the size of each, and the content that it decodes to.
    blobs: BTreeMap<Digest, (Geometry, Digest)>,
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
    /// The states of the blob that the content is decoded from.
    blob_states: Vec<u8>,
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
        let (mut contents, mut blobs) = (BTreeMap::new(), BTreeMap::new());
        let mut order = Vec::new();
        for spec in layout.contents() {
            let content = given.remove(&spec.digest);
            let content = content.ok_or(ParseRecipeError::Lacks(spec.digest))?;
            content.fits(&spec)?;
            if let Some((digest, geometry)) = blob_of(&spec) {
                blobs.insert(digest, (geometry, spec.digest));
            }
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
            blobs,
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
        let mut bytes = Self::encode_header(&self.image);
        for content in self.contents() {
            bytes.extend(content.encode());
        }
        bytes
    }

    /// The first bytes of a recipe of this image. The bytes of each content follow, in the manifest's order
    /// ([`ContentRecipe::encode`]): so a recipe is written by who can't hold all of it at once.
    #[must_use]
    pub fn encode_header(image: &Digest) -> Vec<u8> {
        let header = message::RecipeHeader {
            image: image.as_bytes().to_vec(),
        };
        header.encode_length_delimited_to_vec()
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

    /// The recipe of a blob of the image, as the registry stores the blob. It has no hints. `None` if the image has no
    /// such blob, or the recipe's maker didn't read it. Where several blobs decode to one content, the first has one.
    #[must_use]
    pub fn blob(&self, digest: &Digest) -> Option<Arc<ContentRecipe>> {
        if let Some(content) = self.contents.get(digest) {
            return Some(content.clone());
        }
        let (geometry, content) = self.blobs.get(digest)?;
        let states = &self.contents.get(content)?.blob_states;
        let mut recipe = ContentRecipe::bare(*digest, *geometry);
        recipe.states.clone_from(states);
        (states.len() == inner_states(*geometry)).then(|| Arc::new(recipe))
    }

    /// The recipes of all contents, in the manifest's order.
    pub fn contents(&self) -> impl Iterator<Item = &ContentRecipe> {
        let content = |digest| self.contents.get(digest).map(Arc::as_ref);
        self.order.iter().filter_map(content)
    }
}

/// The blob that a raw layer is decoded from. `None` for a content that is a blob.
fn blob_of(spec: &ContentSpec) -> Option<(Digest, Geometry)> {
    let ContentKind::RawLayer { blob } = spec.kind else {
        return None;
    };
    Some((blob.digest, Geometry::new(blob.size).ok()?))
}

/// Bytes of the states after all chunks but the last.
const fn inner_states(geometry: Geometry) -> usize {
    (geometry.chunks() as usize).saturating_sub(1) * STATE_BYTES
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
            blob_states: content.blob_states,
        })
    }

    /// The recipe of the blob of this content, as [`Recipe::blob`] has it, without the rest. `None` if the recipe's
    /// maker didn't read the blob.
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
    const fn bare(digest: Digest, geometry: Geometry) -> Self {
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

#[cfg(test)]
mod tests;
