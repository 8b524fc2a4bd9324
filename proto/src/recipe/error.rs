//! Why bytes are no recipe, or aren't the content whose recipe was to be made.

use crate::{blocks::BlocksError, digest::Digest};

/// Why bytes aren't the recipe of an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseRecipeError {
    /// The recipe has more bytes than any of this image.
    #[error("recipe has {bytes} bytes; a recipe of this image has {most} at most")]
    TooLarge {
        /// The recipe's bytes.
        bytes: u64,
        /// The most that are read.
        most: u64,
    },
    /// The bytes aren't a sequence of a recipe's messages.
    #[error("recipe doesn't decode: {0}")]
    Protobuf(prost::DecodeError),
    /// The recipe was cut off.
    #[error("recipe is cut off")]
    Truncated,
    /// The recipe is of another image.
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
    /// The recipe has more contents than the image.
    #[error("recipe has more than the {0} contents of the image")]
    TooMany(usize),
    /// The recipe has a content that the image doesn't have, or has one twice.
    #[error("recipe has content {0}, which the image doesn't have there")]
    Unexpected(Digest),
    /// The recipe lacks a content.
    #[error("recipe lacks content {0}")]
    Lacks(Digest),
    /// The recipe gives a content another size than the manifest does.
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
    /// The recipe's blocks aren't those of the content. A column of blocks that doesn't fit is refused although it is a
    /// hint, so that a maker that writes nonsense is found when the recipe is verified, and not by what hosts fetch in
    /// vain.
    #[error("recipe has blocks for content {content} that don't fit: {error}")]
    Blocks {
        /// The content.
        content: Digest,
        /// What is wrong with the blocks.
        error: BlocksError,
    },
}

/// Bytes that aren't the content whose recipe was to be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTheContentError {
    /// The bytes are fewer or more than the content's.
    #[error("content {content} has {came} bytes instead of {size}")]
    Size {
        /// The content.
        content: Digest,
        /// The bytes that the manifest gives the content.
        size: u64,
        /// The bytes that came. One too many stands for all that would have followed.
        came: u64,
    },
    /// The bytes have another digest.
    #[error("content {content} isn't what its digest says: its bytes have the digest {found}")]
    Digest {
        /// The content.
        content: Digest,
        /// The digest of the bytes.
        found: Digest,
    },
}
