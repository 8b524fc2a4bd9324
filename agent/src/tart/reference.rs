//! Image references as tart reads them, checked so that no part of one leads out of the cache.

use std::{fmt, str::FromStr};

use proto::Digest;

/// The longest reference: the sum of what the distribution specification allows its parts, rounded up.
const MAX_BYTES: usize = 512;

/// A reference by tag or by digest, whose first part is the registry: what is written in a Pod and given to tart.
///
/// Every path component is one that the distribution specification allows, so none is empty, `.`, `..`, or contains
/// a slash, a colon or a control character.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    text: String,
    host: String,
    namespace: Vec<String>,
    version: Version,
}

/// What a reference names in its repository.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// A tag, which may move.
    Tag(String),
    /// A manifest's digest.
    Digest(Digest),
}

/// Why a text isn't a reference that tart's cache can hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseReferenceError {
    /// Longer than any registry takes.
    #[error("reference of {0} bytes is longer than {MAX_BYTES}")]
    TooLong(usize),
    /// The first part isn't a host with an optional port. There is no default registry, as with tart.
    #[error("reference has no registry host, as in ghcr.io/org/image:tag")]
    Host,
    /// A part of the repository's name is empty or has characters that no registry takes.
    #[error("reference has a malformed repository name part {0:?}")]
    Component(String),
    /// The tag is malformed.
    #[error("reference has a malformed tag {0:?}")]
    Tag(String),
    /// The digest is malformed, or a tag stands beside it, which tart doesn't take.
    #[error("reference has a malformed digest")]
    Digest,
}

impl Reference {
    /// The reference as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The registry, with its port where one was written.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository's name, part by part.
    #[must_use]
    pub fn namespace(&self) -> &[String] {
        &self.namespace
    }

    /// The tag or digest. Without either it is the tag `latest`.
    #[must_use]
    pub const fn version(&self) -> &Version {
        &self.version
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, ParseReferenceError> {
        if text.len() > MAX_BYTES {
            return Err(ParseReferenceError::TooLong(text.len()));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        let (host, path) = name.split_once('/').ok_or(ParseReferenceError::Host)?;
        if !is_host(host) {
            return Err(ParseReferenceError::Host);
        }
        let (path, tag) = match path.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (path, None),
        };
        let namespace = path
            .split('/')
            .map(|part| {
                if is_component(part) {
                    Ok(part.to_owned())
                } else {
                    Err(ParseReferenceError::Component(shorten(part)))
                }
            })
            .collect::<Result<Vec<_>, _>>()?;
        let version = match (tag, digest) {
            (None, Some(digest)) => {
                Version::Digest(digest.parse().map_err(|_| ParseReferenceError::Digest)?)
            }
            (Some(_), Some(_)) => return Err(ParseReferenceError::Digest),
            (Some(tag), None) if !is_tag(tag) => {
                return Err(ParseReferenceError::Tag(shorten(tag)));
            }
            (Some(tag), None) => Version::Tag(tag.to_owned()),
            (None, None) => Version::Tag("latest".to_owned()),
        };
        Ok(Self {
            text: text.to_owned(),
            host: host.to_owned(),
            namespace,
            version,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A DNS name or IPv4 address, with an optional port.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    let label = |label: &str| {
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = label.as_bytes();
        edge(bytes.first())
            && edge(bytes.last())
            && bytes
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
    };
    name.split('.').all(label)
        && port.is_none_or(|port| {
            port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
        })
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` (OCI distribution specification 1.1, "Pulling manifests"). A little wider: runs
/// of separators are taken, except `..`.
fn is_component(part: &str) -> bool {
    let edge = |byte: Option<&u8>| {
        byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let bytes = part.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && !part.contains("..")
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(byte))
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}` (the same section).
fn is_tag(tag: &str) -> bool {
    let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let bytes = tag.as_bytes();
    (1..=128).contains(&bytes.len())
        && bytes.first().is_some_and(word)
        && bytes.iter().all(|byte| word(byte) || b".-".contains(byte))
}

fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tags_and_digests_are_told_apart() {
        let hex = "a".repeat(64);
        let by_digest: Reference = format!("ghcr.io/org/sub/image@sha256:{hex}")
            .parse()
            .unwrap();
        assert_eq!(by_digest.host(), "ghcr.io");
        assert_eq!(by_digest.namespace(), ["org", "sub", "image"]);
        assert!(
            matches!(by_digest.version(), Version::Digest(digest) if digest.hex().to_string() == hex)
        );
        let by_tag: Reference = "127.0.0.1:5000/image:Tag_1.2-x".parse().unwrap();
        assert_eq!(by_tag.host(), "127.0.0.1:5000");
        assert_eq!(by_tag.version(), &Version::Tag("Tag_1.2-x".to_owned()));
        let bare: Reference = "localhost/image".parse().unwrap();
        assert_eq!(bare.version(), &Version::Tag("latest".to_owned()));
    }

    #[test]
    fn hostile_references_are_refused() {
        let hex = "a".repeat(64);
        let long = format!("ghcr.io/{}", "a".repeat(600));
        for bad in [
            "",
            "image",
            "/etc/passwd:x",
            "../x/y:z",
            "..:5000/x",
            "ghcr.io/../../etc:x",
            "ghcr.io/a/./b:x",
            "ghcr.io/a//b:x",
            "ghcr.io/a/:x",
            "ghcr.io/a/..:x",
            "ghcr.io/a/b:..",
            "ghcr.io/a/b:../c",
            "ghcr.io/a/b:c/../d",
            "ghcr.io/a/b:",
            "ghcr.io/a/b:\0",
            "ghcr.io/a\n/b:x",
            "ghcr.io/a\\b:x",
            "ghcr.io/A/b:x",
            "ghcr.io/a/sha256:b:c",
            "ghcr.io/a/b@sha256:../../x",
            "ghcr.io/a/b@md5:00",
            "ghcr.io/%2e%2e/b:x",
            "ghcr.io:99999/b:x",
            "ghcr.io:/b:x",
            "-x/b:y",
            "ghcr.io/~/b:x",
            "ghcr.io/.b:x",
            "ghcr.io/é:x",
            long.as_str(),
            &format!("ghcr.io/a:t@sha256:{hex}"),
            &format!("ghcr.io/a@sha256:{hex}0"),
            &format!("ghcr.io/a@sha256:{}", hex.to_uppercase()),
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_reference_leads_out_of_the_cache(text in "[a-c./:@%~\\\\\\x00\\n-]{0,30}|ghcr\\.io/[a-c./:@_-]{0,20}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let mut parts = reference.namespace().to_vec();
                parts.push(reference.host().to_owned());
                if let Version::Tag(tag) = reference.version() { parts.push(tag.clone()); }
                for part in parts {
                    prop_assert!(!part.is_empty() && part != "." && part != ".." && !part.contains(['/', '\0', '\n']));
                }
            }
        }
    }
}
