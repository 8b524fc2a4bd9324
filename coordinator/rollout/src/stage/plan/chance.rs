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

/// A hash for breaking ties. Nothing rests on its strength.
pub(super) fn mix(a: u64, b: u64) -> u64 {
    let mut x = a
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(b.wrapping_mul(0xd1b5_4a32_d192_ed03));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
