//! What a registry can be asked for, by the grammar of the distribution specification.

use alloc::{borrow::ToOwned as _, format, string::String};
use core::{fmt, str::FromStr};

use crate::digest::Digest;

/// The longest tag (OCI distribution specification 1.1, "Pulling manifests").
pub const MAX_TAG_BYTES: usize = 128;
/// The longest name of a repository (OCI distribution specification 1.1, "Pulling manifests").
pub const MAX_REPOSITORY_BYTES: usize = 255;
/// The longest name of a registry: a host's name, a colon and a port.
const MAX_REGISTRY_BYTES: usize = 255 + 6;
/// The longest part between two dots of a host's name (RFC 1035).
const MAX_LABEL_BYTES: usize = 63;
/// Docker Hub in references.
const DOCKER_HUB: &str = "docker.io";
/// Docker Hub's API. References may say this, too.
const DOCKER_HUB_API: &str = "index.docker.io";
/// The first part of the name of Docker Hub's own images, which references may leave out.
const DOCKER_HUB_OWN: &str = "library";

/// A registry, a repository there, and a version. Registries have repositories that tart can't name, so clients of a
/// mirror may ask for more than a [`Reference`](super::Reference) can say.
///
/// The first part is always the registry. Only `docker.io` has another name and another server than what is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistryReference {
    registry: String,
    repository: String,
    version: Version,
}

/// The version of an image that a reference names in its repository.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// A tag, which may move.
    Tag(Tag),
    /// A manifest's digest.
    Digest(Digest),
}

/// A tag: a name for a version of an image, which may move. It has letters, digits, `_`, `.` and `-`, [`MAX_TAG_BYTES`]
/// at most.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

/// The text isn't a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a tag has 1 to {MAX_TAG_BYTES} letters, digits, `_`, `.` and `-`, and starts with none of the last two"
)]
pub struct ParseTagError;

/// Why a text names nothing that a registry can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseRegistryReferenceError {
    /// The first part is no registry.
    #[error(
        "it doesn't begin with a registry: a host's name or an IPv4 address, and perhaps a port"
    )]
    Registry,
    /// The rest names no repository.
    #[error(
        "it names no repository: lower-case letters and digits in parts with a slash between them, \
         {MAX_REPOSITORY_BYTES} bytes at most"
    )]
    Repository,
    /// It names no tag.
    #[error(transparent)]
    Tag(#[from] ParseTagError),
    /// The digest isn't a SHA-256 digest.
    #[error("its digest isn't `sha256:` and 64 lower-case hex digits")]
    Digest,
}

/// The parts of a reference as they are written, unchecked.
pub(super) struct Parts<'a> {
    pub(super) registry: &'a str,
    pub(super) repository: &'a str,
    pub(super) tag: Option<&'a str>,
    pub(super) digest: Option<&'a str>,
}

impl RegistryReference {
    /// Makes one of parts that were checked.
    pub(super) fn of(registry: &str, repository: &str, version: Version) -> Self {
        let registry = match registry {
            DOCKER_HUB_API => DOCKER_HUB,
            other => other,
        };
        let repository = if registry == DOCKER_HUB && !repository.contains('/') {
            format!("{DOCKER_HUB_OWN}/{repository}")
        } else {
            repository.to_owned()
        };
        Self {
            registry: registry.to_owned(),
            repository,
            version,
        }
    }

    /// The registry's name, with its port if one was written. It has one name, however it was written: credentials are
    /// filed under it.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The host that answers for the registry, with its port.
    #[must_use]
    pub fn server(&self) -> &str {
        match self.registry.as_str() {
            DOCKER_HUB => DOCKER_HUB_API,
            registry => registry,
        }
    }

    /// The repository's name in its registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag or digest; the digest where both were written, and the tag `latest` where neither was.
    #[must_use]
    pub const fn version(&self) -> &Version {
        &self.version
    }
}

impl FromStr for RegistryReference {
    type Err = ParseRegistryReferenceError;

    fn from_str(text: &str) -> Result<Self, ParseRegistryReferenceError> {
        let parts = Parts::of(text).ok_or(ParseRegistryReferenceError::Registry)?;
        if !is_registry(parts.registry) {
            return Err(ParseRegistryReferenceError::Registry);
        }
        if !is_repository(parts.repository) {
            return Err(ParseRegistryReferenceError::Repository);
        }
        let tag = parts.tag.map_or_else(|| Ok(Tag::latest()), str::parse)?;
        let version = match parts.digest.map(str::parse) {
            None => Version::Tag(tag),
            Some(Ok(digest)) => Version::Digest(digest),
            Some(Err(_)) => return Err(ParseRegistryReferenceError::Digest),
        };
        Ok(Self::of(parts.registry, parts.repository, version))
    }
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joint = match self.version {
            Version::Tag(_) => ':',
            Version::Digest(_) => '@',
        };
        let (registry, repository) = (&self.registry, &self.repository);
        write!(f, "{registry}/{repository}{joint}{}", self.version)
    }
}

impl<'a> Parts<'a> {
    /// `registry/repository[:tag][@digest]`. `None` when the text has no slash before its digest.
    pub(super) fn of(text: &'a str) -> Option<Self> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        let (registry, path) = name.split_once('/')?;
        let (repository, tag) = match path.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (path, None),
        };
        Some(Self {
            registry,
            repository,
            tag,
            digest,
        })
    }
}

impl Tag {
    /// What a reference without a version means.
    pub(super) fn latest() -> Self {
        Self("latest".to_owned())
    }

    /// The tag.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = ParseTagError;

    fn from_str(text: &str) -> Result<Self, ParseTagError> {
        let first = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let valid = (1..=MAX_TAG_BYTES).contains(&text.len())
            && text.bytes().next().is_some_and(first)
            && text
                .bytes()
                .all(|byte| first(byte) || byte == b'.' || byte == b'-');
        valid.then(|| Self(text.to_owned())).ok_or(ParseTagError)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl From<Digest> for Version {
    fn from(digest: Digest) -> Self {
        Self::Digest(digest)
    }
}

impl From<Tag> for Version {
    fn from(tag: Tag) -> Self {
        Self::Tag(tag)
    }
}

/// Whether the text names a registry: a DNS name or an IPv4 address, and perhaps a port.
#[must_use]
pub fn is_registry(text: &str) -> bool {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let is_label = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_port = |port: &str| {
        port.bytes().all(|byte| byte.is_ascii_digit())
            && !port.starts_with('0')
            && port.parse::<u16>().is_ok()
    };
    text.len() <= MAX_REGISTRY_BYTES && host.split('.').all(is_label) && port.is_none_or(is_port)
}

/// Whether the text names a repository.
#[must_use]
pub fn is_repository(text: &str) -> bool {
    text.len() <= MAX_REPOSITORY_BYTES && text.split('/').all(is_component)
}

/// A component of a name: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_component(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().copied().is_some_and(word) && bytes.last().copied().is_some_and(word);
    let between = text
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .filter(|part| !part.is_empty())
        .all(|part| matches!(part, "." | "_" | "__") || part.bytes().all(|byte| byte == b'-'));
    ends && between
}

#[cfg(test)]
mod tests {
    use std::string::ToString as _;

    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<RegistryReference, ParseRegistryReferenceError> {
        text.parse()
    }

    #[test]
    fn a_reference_has_a_registry_a_repository_and_a_version() {
        let digest = Digest::of(b"x");
        for (text, registry, repository, version) in [
            ("ghcr.io/org/image:1.2", "ghcr.io", "org/image", "1.2"),
            ("127.0.0.1:5000/image", "127.0.0.1:5000", "image", "latest"),
            ("r.test/a__b/c---d:_1--2.", "r.test", "a__b/c---d", "_1--2."),
            ("my--host.test/a", "my--host.test", "a", "latest"),
            // a host in the fleet's own network: nothing is looked for elsewhere
            ("registry/image:1", "registry", "image", "1"),
        ] {
            let parsed = parse(text).unwrap();
            assert_eq!(parsed.registry(), registry, "{text}");
            assert_eq!(parsed.server(), registry, "{text}");
            assert_eq!(parsed.repository(), repository, "{text}");
            assert_eq!(parsed.version().to_string(), version, "{text}");
        }
        let by_digest = format!("ghcr.io/a@{digest}");
        let parsed = parse(&by_digest).unwrap();
        assert_eq!(parsed.version(), &Version::Digest(digest));
        assert_eq!(parsed.to_string(), by_digest);
        let both = parse(&format!("ghcr.io/a:tag@{digest}")).unwrap();
        assert_eq!(both, parsed, "the digest counts");
    }

    #[test]
    fn docker_hub_has_one_name_and_another_server() {
        for text in [
            "docker.io/macos:1",
            "index.docker.io/macos:1",
            "docker.io/library/macos:1",
        ] {
            let parsed = parse(text).unwrap();
            assert_eq!(parsed.registry(), "docker.io", "{text}");
            assert_eq!(parsed.server(), "index.docker.io", "{text}");
            assert_eq!(parsed.repository(), "library/macos", "{text}");
            assert_eq!(parsed.to_string(), "docker.io/library/macos:1", "{text}");
        }
        let others = parse("docker.io/org/macos").unwrap();
        assert_eq!(others.repository(), "org/macos");
    }

    #[test]
    fn what_registries_cannot_be_asked_for_is_refused() {
        use ParseRegistryReferenceError::{Digest, Registry, Repository, Tag};
        let sha512 = format!("ghcr.io/a@sha512:{}", "0".repeat(128));
        let long_label = format!("{}.test/a", "a".repeat(64));
        let long_name = format!("r.test/{}", "a".repeat(256));
        for (text, rule) in [
            ("", Registry),
            ("image", Registry),
            ("image@sha256:beef", Registry),
            ("/etc/passwd", Registry),
            ("-x.test/a", Registry),
            ("a..b/c", Registry),
            ("my_host.test/a", Registry),
            ("user@host/a", Registry),
            ("[::1]:5000/a", Registry),
            ("r.test:/a", Registry),
            ("r.test:0/a", Registry),
            ("r.test:0443/a", Registry),
            ("r.test:+1/a", Registry),
            ("r.test:65536/a", Registry),
            (long_label.as_str(), Registry),
            (long_name.as_str(), Repository),
            ("r.test/", Repository),
            ("r.test/A", Repository),
            ("r.test/../a", Repository),
            ("r.test/a//b", Repository),
            ("r.test/a___b", Repository),
            ("r.test/a._b", Repository),
            ("r.test/a\n", Repository),
            ("r.test/a?x=y", Repository),
            ("r.test/a:", Tag(ParseTagError)),
            ("r.test/a:.1", Tag(ParseTagError)),
            ("r.test/a:1/b", Tag(ParseTagError)),
            ("r.test/a@sha256:beef", Digest),
            (sha512.as_str(), Digest),
        ] {
            assert_eq!(parse(text), Err(rule), "{text}");
        }
        assert!(parse(&format!("{}.test/a", "a".repeat(63))).is_ok());
        assert!(parse(&format!("r.test/{}", "a".repeat(255))).is_ok());
        assert!(is_registry("r.test:65535") && is_registry("r.test:1"));
    }

    #[test]
    fn tags_are_checked() {
        assert!("a.b-c_D1".parse::<Tag>().is_ok());
        assert!("x".repeat(128).parse::<Tag>().is_ok());
        for bad in ["", "../x", ".a", "-a", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert_eq!(bad.parse::<Tag>(), Err(ParseTagError), "{bad}");
        }
    }

    proptest! {
        /// What is asked of a registry stays in its place in an address.
        #[test]
        fn what_is_taken_has_no_part_that_means_something_else(text in "[a-c./:@%?#_-]{0,30}|r\\.test/[a-cA-C./:@_-]{0,20}") {
            if let Ok(reference) = parse(&text) {
                prop_assert_eq!(&parse(&reference.to_string()), &Ok(reference.clone()));
                for part in reference.repository().split('/') {
                    prop_assert!(!part.is_empty() && part != "." && part != "..");
                }
                let written = reference.to_string();
                prop_assert!(!written.contains(['?', '#', '%', '\\', ' ']));
                prop_assert!(!reference.server().contains(['/', '@']));
            }
        }
    }
}
