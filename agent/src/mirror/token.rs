//! The token that clients beyond loopback have to send.

use base64::Engine as _;
use proto::Secret;

/// Whether an `Authorization` header has the mirror's token, as a bearer token or as a password.
pub(super) fn carries(header: &Secret, token: &Secret) -> bool {
    let Some((scheme, text)) = header.expose().split_once(' ') else {
        return false;
    };
    let text = text.trim();
    let same = |given: &str| Secret::from(given).matches(token);
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
