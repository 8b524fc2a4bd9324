//! References by which tart is to find an image.

use proto::Digest;

use crate::tart::{ParseReferenceError, Reference, Version};

/// Why a reference can't name this image here.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// The reference doesn't have a form that tart's cache can hold.
    #[error("reference {reference:?}: {error}")]
    Malformed {
        /// The reference, cut after 120 characters.
        reference: String,
        /// The cause.
        error: ParseReferenceError,
    },
    /// The reference names another image by digest.
    #[error("reference {reference} names another image than {image}")]
    OtherImage {
        /// The reference.
        reference: String,
        /// The image.
        image: Digest,
    },
}

/// Parses the references and checks that each can name this image.
pub(super) fn parse_references(
    image: &Digest,
    references: &[String],
) -> Result<Vec<Reference>, ReferenceError> {
    let parse = |text: &String| {
        let reference: Reference = text.parse().map_err(|error| ReferenceError::Malformed {
            reference: text.chars().take(120).collect(),
            error,
        })?;
        match reference.version() {
            Version::Digest(digest) if digest != image => Err(ReferenceError::OtherImage {
                reference: reference.to_string(),
                image: *image,
            }),
            _ => Ok(reference),
        }
    };
    references.iter().map(parse).collect()
}
