//! Random numbers, and hashes that take their place where a choice must repeat.

use proto::Digest;
use rand_chacha::ChaCha8Rng;
use rand_core::Rng as _;

/// A random number from 0 to `bound - 1`. `bound` isn't 0.
pub(super) fn below(rng: &mut ChaCha8Rng, bound: usize) -> usize {
    let wide = u64::from(rng.next_u32()) * u64::try_from(bound).unwrap_or(1);
    usize::try_from(wide >> 32).unwrap_or(0)
}

/// The first eight bytes of a digest, as a big-endian number.
pub(super) fn prefix(digest: Digest) -> u64 {
    digest
        .as_bytes()
        .iter()
        .take(8)
        .fold(0, |all, byte| all << 8 | u64::from(*byte))
}
