//! New bearer secrets.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
pub use proto::Secret;

use crate::random;

/// A new secret: 32 random bytes from the operating system, as base64url without padding.
#[must_use]
pub fn random() -> Secret {
    let mut bytes = [0; 32];
    random::fill(&mut bytes);
    Secret::from_text(&URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_secret_is_another_one() {
        let secret = random();
        assert_eq!(secret.expose().len(), 43);
        assert!(!secret.matches(&random()));
    }
}
