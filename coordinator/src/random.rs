//! Random bytes from the operating system, for keys, tokens and seeds.

use rustls::crypto::ring;

/// Fills `bytes` with random bytes.
///
/// # Panics
/// When the operating system gives no random bytes. Nothing secure can be done without them.
pub(crate) fn fill(bytes: &mut [u8]) {
    ring::default_provider()
        .secure_random
        .fill(bytes)
        .expect("the operating system gives random bytes");
}
