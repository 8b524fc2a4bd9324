//! Stacked images: overlays on a base, and what a manifest says of their files.

use std::io;

use proto::{
    Digest,
    image::{BLOCK_SIZE_ANNOTATION, CHUNK_COUNT_ANNOTATION, FILE_DIGEST_ANNOTATION, OVERLAY_TYPE},
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::disk::{COMPARE_BYTES, Disk};
use crate::interrupt;

/// Bytes of a block of the disk that the guest sees.
const BLOCK_BYTES: u64 = 4096;
/// How much larger than its base the guest's disk is, at least: tart's disks are mostly empty.
const FREE_BYTES: u64 = 1 << 30;

/// An overlay of a stacked image. Its file is a function of the seed, as a base's is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Bytes of its file, from 1.
    pub bytes: u64,
    /// Makes overlays differ.
    pub seed: u64,
}

/// Marks the layers of one file as a stack has them. `overlay`: its layers are those of an overlay.
pub(super) fn mark(layers: &mut [Value], file: &Digest, overlay: bool) {
    let count = layers.len();
    if overlay {
        for layer in &mut *layers {
            layer["mediaType"] = OVERLAY_TYPE.into();
        }
    }
    let first = &mut layers[0]["annotations"];
    first[FILE_DIGEST_ANNOTATION] = file.to_string().into();
    if overlay {
        first[CHUNK_COUNT_ANNOTATION] = count.to_string().into();
    }
}

/// Marks a manifest as that of a stacked image, and returns the bytes of the disk that the guest sees.
pub(super) fn guest_disk(annotations: &mut Value, base_bytes: u64) -> u64 {
    annotations[BLOCK_SIZE_ANNOTATION] = BLOCK_BYTES.to_string().into();
    base_bytes.next_multiple_of(BLOCK_BYTES) + FREE_BYTES
}

/// The digest of a whole file.
///
/// # Errors
/// When the program is interrupted.
pub(super) fn file_digest(disk: &Disk) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; COMPARE_BYTES];
    let mut offset = 0;
    while offset < disk.size() {
        interrupt::check()?;
        let length = usize::try_from(disk.size() - offset)
            .map_or(COMPARE_BYTES, |left| left.min(COMPARE_BYTES));
        disk.read(offset, &mut buffer[..length]);
        hash.update(&buffer[..length]);
        offset += length as u64;
    }
    Ok(Digest::from_bytes(hash.finalize().into()))
}
