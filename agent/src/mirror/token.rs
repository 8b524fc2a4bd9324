//! The token that clients beyond loopback have to send.

use base64::Engine as _;

/// Whether an `Authorization` header has the mirror's token, as a bearer token or as a password.
pub(super) fn carries(header: &str, token: &str) -> bool {
    let Some((scheme, text)) = header.split_once(' ') else {
        return false;
    };
    let text = text.trim();
    // hashes of equal length are compared, so that the time tells nothing about the token
    let same = |given: &str| blake3::hash(given.as_bytes()) == blake3::hash(token.as_bytes());
    if scheme.eq_ignore_ascii_case("bearer") {
        return same(text);
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(text);
    scheme.eq_ignore_ascii_case("basic")
        && decoded
            .ok()
            .and_then(|pair| String::from_utf8(pair).ok())
            .and_then(|pair| pair.split_once(':').map(|(_, password)| same(password)))
            .unwrap_or(false)
}
