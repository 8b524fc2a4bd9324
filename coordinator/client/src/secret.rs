//! Bearer secrets: compared without a timing channel, never logged.

use std::fmt;

use proto::Digest;

/// What a request shows to be let in. `Debug` shows nothing of it.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// One that was read from a file or a request. White space around it is cut.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// The text, to be handed to whoever may know it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What is kept of it at rest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }

    /// Whether `other` is the same. Digests are compared: what the time of that tells says nothing about the secret.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.digest() == other.digest()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_nothing_and_matches_only_itself() {
        let secret = Secret::from_text("words");
        assert!(!format!("{secret:?}").contains(secret.expose()));
        assert!(secret.matches(&Secret::from_text(" words\n")));
        assert!(!secret.matches(&Secret::from_text("other words")));
    }
}
