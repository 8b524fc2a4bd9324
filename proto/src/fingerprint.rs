//! Short hashes by which a host finds chunks that it already has. They are hints: nothing is trusted because of one.

use core::fmt;

/// The first 16 bytes of a chunk's BLAKE3 hash.
///
/// Security rests on the chain (SHA-256) alone. A fingerprint only says where to look.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Fingerprint(pub [u8; 16]);

impl Fingerprint {
    /// The fingerprint of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let hash = blake3::hash(bytes);
        let mut first = [0; 16];
        first.copy_from_slice(&hash.as_bytes()[..16]);
        Self(first)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::digest::Hex(&self.0).fmt(f)
    }
}
