//! Random bytes from the operating system, for keys, tokens and seeds.

use rustls::crypto::ring;

/// Fills `bytes`.
///
/// # Panics
/// When the operating system has no randomness to give: nothing safe can be done without.
pub(crate) fn fill(bytes: &mut [u8]) {
    ring::default_provider()
        .secure_random
        .fill(bytes)
        .expect("the operating system gives random bytes");
}
