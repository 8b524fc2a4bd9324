//! A slice of an image's disk, and how errors name the slices of a manifest.

use alloc::string::{String, ToString as _};
use core::fmt;

use crate::digest::Digest;

/// Annotation of a manifest: the bytes of the whole disk, decimal. For a stacked image, those of the disk that the
/// guest sees, which aren't the sum of its files.
pub const DISK_SIZE_ANNOTATION: &str = "org.cirruslabs.tart.uncompressed-disk-size";

/// Bytes as the registry stores them, by digest and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blob {
    /// The digest of the bytes.
    pub digest: Digest,
    /// The number of bytes, never 0.
    pub size: u64,
}

/// A slice of the disk, with the compressed blob from which it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLayer {
    /// The layer's position among all layers of the manifest, from 0. Errors name it.
    pub position: usize,
    /// The compressed layer in the registry.
    pub blob: Blob,
    /// The digest of the raw bytes, if the manifest gives it. A layer without one travels as a blob.
    pub raw: Option<Digest>,
    /// The number of raw bytes, never 0.
    pub raw_bytes: u64,
    /// The offset of the raw bytes on the disk, whose files lie end to end ([`DiskFile`](super::DiskFile)).
    pub offset: u64,
}

impl DiskLayer {
    /// The layer's name in an error.
    #[must_use]
    pub fn name(&self) -> LayerName {
        LayerName {
            position: self.position,
            digest: self.blob.digest.to_string(),
        }
    }
}

/// The name of a manifest's layer in an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerName {
    /// The layer's position among all layers, from 0.
    pub position: usize,
    /// The layer's digest as the manifest gives it, cut after 80 characters, without control characters.
    pub digest: String,
}

impl fmt::Display for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {} ({})", self.position, self.digest)
    }
}

/// At most `max` characters of a text from outside. Control characters become `?`.
pub(super) fn shorten(text: &str, max: usize) -> String {
    text.chars()
        .take(max)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// A decimal number without a sign. `parse` alone would accept a leading `+`.
pub(super) fn decimal(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}
