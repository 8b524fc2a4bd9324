//! SHA-256 digests as OCI writes them.

use core::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256};

/// A SHA-256 digest: the name of a content, a blob or a manifest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Why a string isn't a `sha256:` digest of 64 lower-case hex digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    /// Another algorithm, or none: parbake proves contents by SHA-256 only.
    #[error("digest doesn't start with `sha256:`")]
    Algorithm,
    /// The hex part hasn't 64 characters, or has an upper-case or non-hex character.
    #[error("digest isn't 64 lower-case hex digits")]
    Hex,
}

impl Digest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// A digest from its 32 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The digest's 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hex digits without the algorithm. They are safe as a file name.
    #[must_use]
    pub fn hex(&self) -> Hex<'_> {
        Hex(&self.0)
    }
}

/// Displays bytes as lower-case hex.
#[derive(Clone, Copy, Debug)]
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, ParseDigestError> {
        let hex = text
            .strip_prefix("sha256:")
            .ok_or(ParseDigestError::Algorithm)?;
        let digits = hex.as_bytes();
        if digits.len() != 64 {
            return Err(ParseDigestError::Hex);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

const fn nibble(digit: u8) -> Result<u8, ParseDigestError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(ParseDigestError::Hex),
    }
}

impl TryFrom<&[u8]> for Digest {
    type Error = ParseDigestError;

    fn try_from(bytes: &[u8]) -> Result<Self, ParseDigestError> {
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| ParseDigestError::Hex)
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn a_digest_is_written_as_it_is_read() {
        let digest = Digest::of(b"abc");
        let text = digest.to_string();
        assert_eq!(
            text,
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(text.parse(), Ok(digest));
    }

    #[test]
    fn other_forms_are_refused() {
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex.parse::<Digest>(), Err(ParseDigestError::Algorithm));
        assert_eq!(
            std::format!("sha256:{}", hex.to_uppercase()).parse::<Digest>(),
            Err(ParseDigestError::Hex)
        );
        assert_eq!(
            std::format!("sha256:{}", &hex[1..]).parse::<Digest>(),
            Err(ParseDigestError::Hex)
        );
        assert_eq!(
            std::format!("sha256:{hex}0").parse::<Digest>(),
            Err(ParseDigestError::Hex)
        );
        assert_eq!(
            "sha256:../../etc".parse::<Digest>(),
            Err(ParseDigestError::Hex)
        );
    }
}
