//! Texts that must not be printed: passwords, tokens, and headers that carry one.

use alloc::{borrow::ToOwned as _, string::String};
use core::fmt;

use zeroize::Zeroizing;

use crate::Digest;

/// A secret text. `Debug` doesn't show it. The time of a comparison doesn't depend on it. Its memory is cleared when it
/// is dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// A secret with exactly this text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// A secret that was read from a file or a request. White space around the text is cut.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        Self::from(text.trim())
    }

    /// The text itself. Callers must not log it or put it into an error.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The digest of the secret. Programs store this instead of the secret.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }

    /// Whether both secrets are the same. This compares digests, so that the time says nothing about the secrets.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.digest() == other.digest()
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other)
    }
}

impl Eq for Secret {}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::new(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use std::format;

    use super::*;

    #[test]
    fn a_secret_shows_nothing_and_matches_only_itself() {
        let secret = Secret::from_text("words");
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        assert!(secret.matches(&Secret::from_text(" words\n")));
        assert!(!secret.matches(&Secret::from_text("other words")));
        // white space belongs to a password that was typed into a setting
        assert_ne!(Secret::new("words ".into()), secret);
    }
}
