//! Made-up disks with known shares of old and new bytes.

use std::io::Write as _;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use tempfile::NamedTempFile;

/// Bytes that a seed says.
pub(crate) fn random(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// A disk of these parts, one after the other.
pub(crate) fn disk(parts: &[&[u8]]) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a temporary file");
    for part in parts {
        file.write_all(part).expect("a temporary file takes bytes");
    }
    file
}
