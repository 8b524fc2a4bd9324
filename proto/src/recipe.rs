//! The recipe of an image: what proves each of the image's chunks before any of them arrives.
//!
//! A recipe has, for every content of an image, SHA-256's inner state after each chunk. With these states a chunk is
//! checked alone, in any order, and when it arrives. A recipe is made once (by a release's pipeline, or by a fleet
//! while it stages) and is the same for everybody: it has no dates, and its contents stand in the manifest's order.
//!
//! A recipe needs no trust. Its states begin at SHA-256's initial state and end in the content's digest, so chunks that
//! all fit their states *are* the content. A false recipe has at least one pair of states that the content's bytes
//! don't fit. Whoever reads the registry's bytes finds that pair. So a false recipe costs time, and never a false byte
//! in an image. Fingerprints and resume places are hints, as in a [`Link`](crate::Link).
//!
//! A recipe that was made of the registry's bytes also has the states of each raw layer's blob, as the registry stores
//! the blob. Mirrors need these, because their clients get blobs ([`Recipe::blob`]).

mod content;
mod error;
mod maker;

use alloc::{collections::BTreeMap, sync::Arc, vec::Vec};

use prost::Message as _;

use self::content::{blob_of, digest, inner_states};
pub use self::{
    content::{Column, ContentRecipe, Difference},
    error::{NotTheContentError, ParseRecipeError},
    maker::Maker,
};
use crate::{
    chunks::{ChunkIndex, Geometry},
    digest::{Digest, ParseDigestError},
    image::{ContentSpec, Layout},
    message,
};

/// The type of the artifact, and of its only layer, under which a recipe stands beside its image in a registry.
pub const ARTIFACT_TYPE: &str = "application/vnd.parbake.recipe.v1";

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
    /// ([`ContentRecipe::encode`]). So a program that can't hold all of a recipe at once can write one.
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

/// Takes one part of a recipe off, whose length stands before it.
fn part<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], ParseRecipeError> {
    let length = prost::decode_length_delimiter(&mut *rest).map_err(ParseRecipeError::Protobuf)?;
    let (body, later) = rest
        .split_at_checked(length)
        .ok_or(ParseRecipeError::Truncated)?;
    *rest = later;
    Ok(body)
}

/// Reads a recipe part by part, so that its blocks needn't be in memory together: the recipe of 140 GB may have 140 MB.
/// A part is a message of the file, without the length that stands before the message.
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

#[cfg(test)]
mod tests;
