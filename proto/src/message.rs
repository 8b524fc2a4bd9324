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
use core::{fmt, ops::Range};

use crate::{
    chain::{Resume, State},
    chunks,
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
    /// Ranges of a chunk aren't in order, don't lie in the chunk, or cut pages.
    #[error("ranges of a chunk are malformed")]
    Ranges,
    /// A range of chunks has none, or more than any content.
    #[error("range of chunks is empty or too long")]
    ChunkRange,
    /// A host field isn't a host id.
    #[error(transparent)]
    Host(#[from] ParseHostIdError),
}

/// Doesn't show the token.
impl fmt::Debug for PullToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullToken")
            .field("expires_in_seconds", &self.expires_in_seconds)
            .finish_non_exhaustive()
    }
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

/// The most ranges of a chunk that one message names: every other page of the chunk.
pub const MAX_RANGES: usize = 128;

impl Ranges {
    /// The multiples of bytes at which ranges start and end.
    pub const PAGE_BYTES: u32 = 4096;

    /// Ranges as a message. They have to be as [`parse`](Self::parse) takes them.
    #[must_use]
    pub fn new(ranges: &[Range<u32>]) -> Self {
        let bounds = ranges.iter().flat_map(|range| [range.start, range.end]);
        Self {
            bounds: bounds.collect(),
        }
    }

    /// The ranges of a chunk with this many bytes. There is at least one.
    ///
    /// # Errors
    /// When they are none or more than [`MAX_RANGES`], one is empty, lies behind the chunk or cuts a page, or they
    /// touch or aren't in order.
    pub fn parse(&self, chunk_bytes: u32) -> Result<Vec<Range<u32>>, FieldError> {
        let (pairs, rest) = self.bounds.as_chunks::<2>();
        if pairs.is_empty() || pairs.len() > MAX_RANGES || !rest.is_empty() {
            return Err(FieldError::Ranges);
        }
        let ascending = self.bounds.windows(2).all(|pair| pair[0] < pair[1]);
        let cuts = |bound: &u32| !bound.is_multiple_of(Self::PAGE_BYTES) && *bound != chunk_bytes;
        let beyond = self.bounds.last().is_some_and(|end| *end > chunk_bytes);
        if !ascending || beyond || self.bounds.iter().any(cuts) {
            return Err(FieldError::Ranges);
        }
        Ok(pairs.iter().map(|[start, end]| *start..*end).collect())
    }
}

impl From<chunks::ChunkRange> for ChunkRange {
    fn from(range: chunks::ChunkRange) -> Self {
        Self {
            from: range.from(),
            until: range.until(),
        }
    }
}

impl ChunkRange {
    /// The range.
    ///
    /// # Errors
    /// When it has no chunk, or chunks that no content has.
    pub fn parse(&self) -> Result<chunks::ChunkRange, FieldError> {
        let range = chunks::ChunkRange::new(self.from, self.until);
        let range = range.filter(|range| range.is_within(chunks::MAX_CHUNKS));
        range.ok_or(FieldError::ChunkRange)
    }
}

/// Reads a digest field.
///
/// # Errors
/// When the field isn't 32 bytes.
pub fn digest(bytes: &[u8]) -> Result<Digest, FieldError> {
    Ok(Digest::try_from(bytes)?)
}

#[cfg(test)]
mod tests {
    use std::vec;

    use proptest::prelude::*;

    use super::*;

    fn parse(bounds: &[u32], chunk_bytes: u32) -> Result<Vec<Range<u32>>, FieldError> {
        let bounds = bounds.to_vec();
        Ranges { bounds }.parse(chunk_bytes)
    }

    #[test]
    fn what_is_printed_of_an_order_lacks_its_token() {
        let token = PullToken {
            authorization: "Bearer hunter2".into(),
            expires_in_seconds: 60,
        };
        let order = StageOrder {
            token: Some(token),
            ..StageOrder::default()
        };
        let printed = std::format!("{order:?}");
        assert!(
            printed.contains("60") && !printed.contains("hunter2"),
            "{printed}"
        );
    }

    #[test]
    fn ranges_are_pages_of_the_chunk_in_order() {
        assert_eq!(
            parse(&[0, 4096, 8192, 12_288], 1 << 20),
            Ok(vec![0..4096, 8192..12_288])
        );
        assert_eq!(
            parse(&[4096, 8192, 12_288, 12_300], 12_300),
            Ok(vec![4096..8192, 12_288..12_300])
        );
        for (bounds, chunk_bytes) in [
            (&[][..], 1 << 20),
            (&[0], 1 << 20),
            (&[0, 0], 1 << 20),
            (&[4096, 0], 1 << 20),
            (&[0, 4096, 4096, 8192], 1 << 20),
            (&[0, 8192, 4096, 12_288], 1 << 20),
            (&[1, 4096], 1 << 20),
            (&[0, 4095], 1 << 20),
            (&[0, 8192], 4096),
            (&[0, 300], 4096),
        ] {
            assert_eq!(
                parse(bounds, chunk_bytes),
                Err(FieldError::Ranges),
                "{bounds:?}"
            );
        }
    }

    #[test]
    fn every_other_page_of_a_chunk_fits_a_message_and_more_ranges_are_refused() {
        let every_other: Vec<_> = (0..128u32).map(|at| at * 8192..at * 8192 + 4096).collect();
        let message = Ranges::new(&every_other);
        assert_eq!(message.parse(1 << 20), Ok(every_other.clone()));
        let reply = PushReply {
            outcome: PushOutcome::Accepted.into(),
            lacking: Some(message),
            may_want_whole: true,
        };
        assert!(crate::codec::encode(&reply).is_ok());
        let more: Vec<_> = (0..129u32).map(|at| at * 8192..at * 8192 + 4096).collect();
        assert_eq!(Ranges::new(&more).parse(2 << 20), Err(FieldError::Ranges));
    }

    proptest! {
        #[test]
        fn hostile_ranges_lie_in_the_chunk_or_are_refused(
            bounds in prop::collection::vec(prop_oneof![0u32..1 << 21, (0u32..512).prop_map(|at| at * 4096)], 0..300),
            chunk_bytes in 1u32..=1 << 20,
        ) {
            if let Ok(ranges) = parse(&bounds, chunk_bytes) {
                let bytes: u32 = ranges.iter().map(|range| range.end - range.start).sum();
                prop_assert!(bytes > 0 && bytes <= chunk_bytes);
                prop_assert_eq!(Ranges::new(&ranges).bounds, bounds);
            }
        }
    }
}
