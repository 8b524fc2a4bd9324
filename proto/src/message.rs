//! The messages on the wire, generated from `proto/parbake.proto`, and checks that turn their raw fields into this
//! crate's types.

#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::use_self,
    clippy::cast_possible_truncation,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the schema file documents each message"
)]

use alloc::{string::ToString as _, vec::Vec};

use crate::{
    chain::{Resume, State},
    digest::{Digest, ParseDigestError},
    fingerprint::Fingerprint,
    host::{HostId, ParseHostIdError},
};

include!(concat!(env!("OUT_DIR"), "/parbake.rs"));

/// A field of a message that doesn't hold what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// A required field is missing.
    #[error("message lacks `{0}`")]
    Missing(&'static str),
    /// A digest field isn't 32 bytes.
    #[error("digest field isn't 32 bytes")]
    Digest(#[from] ParseDigestError),
    /// A chain state isn't 32 bytes, or a fingerprint isn't 16.
    #[error("link field has a wrong length")]
    Link,
    /// A link has no statement of a maker. The sender runs an older version.
    #[error("link isn't signed")]
    Unsigned,
    /// A statement, or its ticket or base, is malformed.
    #[error("link's statement is malformed")]
    Statement,
    /// A host field isn't a host id.
    #[error(transparent)]
    Host(#[from] ParseHostIdError),
}

impl Link {
    /// The link as a message, with the host that made it.
    #[must_use]
    pub fn new(link: &crate::chain::Link, maker: &HostId) -> Self {
        Self {
            before: link.before.to_bytes().to_vec(),
            after: link.after.to_bytes().to_vec(),
            fingerprint: link.fingerprint.0.to_vec(),
            resume_offset: link.resume.map_or(0, |resume| resume.blob_offset + 1),
            resume_skip: link.resume.map_or(0, |resume| resume.skip_bytes),
            maker: maker.to_string(),
            statement: None,
            recipe: Vec::new(),
        }
    }

    /// The link and the host that made it.
    ///
    /// # Errors
    /// When a field has a wrong length, or the maker isn't a host id.
    pub fn parse(&self) -> Result<(crate::chain::Link, HostId), FieldError> {
        let state = |bytes: &[u8]| {
            bytes
                .try_into()
                .map(State::from_bytes)
                .map_err(|_| FieldError::Link)
        };
        let link = crate::chain::Link {
            before: state(&self.before)?,
            after: state(&self.after)?,
            fingerprint: self
                .fingerprint
                .as_slice()
                .try_into()
                .map(Fingerprint)
                .map_err(|_| FieldError::Link)?,
            resume: self.resume_offset.checked_sub(1).map(|blob_offset| Resume {
                blob_offset,
                skip_bytes: self.resume_skip,
            }),
        };
        Ok((link, self.maker.parse()?))
    }
}

/// Reads a digest field.
///
/// # Errors
/// When the field isn't 32 bytes.
pub fn digest(bytes: &[u8]) -> Result<Digest, FieldError> {
    Ok(Digest::try_from(bytes)?)
}
