//! References of images, by the one grammar that coordinator and agents share: those that both tart and registries
//! accept.
//!
//! tart's grammar (tart of August 2026, Sources/tart/OCI/Reference/Reference.g4; RemoteName.swift: init) is narrower
//! than that of the distribution specification in one place and wider in another. A reference that only one of them
//! accepts can't be staged: the registry doesn't have it, or tart doesn't find it. A [`Reference`] fits both, and no
//! part of it leads out of tart's cache. What registries alone accept is a [`RegistryReference`]; each reference has
//! one.

mod registry;

use alloc::{borrow::ToOwned as _, format, string::String, vec::Vec};
use core::{fmt, str::FromStr};

use self::registry::Parts;
pub use self::registry::{
    MAX_REPOSITORY_BYTES, MAX_TAG_BYTES, ParseRegistryReferenceError, ParseTagError,
    RegistryReference, Tag, Version, is_registry, is_repository,
};
use crate::digest::Digest;

/// The longest reference: the lengths that the distribution specification allows the parts, added and rounded up.
pub const MAX_REFERENCE_BYTES: usize = 512;
/// The most characters of a malformed part that an error repeats.
const MAX_QUOTE: usize = 80;

/// A reference by tag or by digest. Its first part is the registry. This is the text that stands in a Pod and is given
/// to tart.
///
/// No part is empty, is `.` or `..`, or contains a slash, a colon or a control character.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    text: String,
    host: String,
    namespace: Vec<String>,
    asked: RegistryReference,
}

/// Why a text isn't a reference. Each variant is one rule, and its message states the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseReferenceError {
    /// The text is longer than any registry accepts.
    #[error("it has {0} bytes, and no reference has more than {MAX_REFERENCE_BYTES}")]
    TooLong(usize),
    /// The first part isn't a registry. There is no default registry, as there is none in tart.
    #[error("write the registry too, as in ghcr.io/org/image:tag")]
    NoRegistry,
    /// The registry is an IPv6 address.
    #[error("tart can't name a registry by its IPv6 address; give it a name, or use IPv4")]
    Ipv6,
    /// The registry isn't a host with an optional port.
    #[error(
        "tart can't name the registry {0:?}: a host is letters and digits, with one `.` or `-` as separator between them \
         and no underscore, and a port is a number from 1 to 65535"
    )]
    Host(String),
    /// The repository's name is longer than any registry accepts.
    #[error(
        "its repository's name has {0} bytes, and no registry has one with more than {MAX_REPOSITORY_BYTES}"
    )]
    LongName(usize),
    /// A part of the repository's name is one that tart or registries don't accept.
    #[error(
        "tart or registries can't name the repository part {0:?}: it is lower-case letters and digits, with one `.`, `-` \
         or `_` as separator between them"
    )]
    Component(String),
    /// The tag is one that tart or registries don't accept.
    #[error(
        "tart or registries can't name the tag {0:?}: it is letters and digits, with one `.`, `-` or `_` as separator \
         between them, {MAX_TAG_BYTES} at most"
    )]
    Tag(String),
    /// The digest isn't a SHA-256 digest.
    #[error("its digest isn't `sha256:` and 64 lower-case hex digits")]
    Digest,
    /// The reference has both a tag and a digest.
    #[error("tart takes a tag or a digest, and it has both")]
    TagAndDigest,
}

impl Reference {
    /// The reference exactly as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The registry, with its port if one was written.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The parts of the repository's name.
    #[must_use]
    pub fn namespace(&self) -> &[String] {
        &self.namespace
    }

    /// The reference of the image with this digest in the same repository.
    #[must_use]
    pub fn at(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.host, self.namespace.join("/"))
    }

    /// The reference's place on a host's disk. Two references with one place can't name two images at one time. A
    /// missing tag is `latest`. The volume of a Mac doesn't distinguish upper-case from lower-case letters.
    #[must_use]
    pub fn place(&self) -> String {
        let repository = format!("{}/{}", self.host, self.namespace.join("/"));
        match self.version() {
            Version::Tag(tag) => format!("{repository}:{tag}").to_ascii_lowercase(),
            Version::Digest(digest) => format!("{repository}@{digest}").to_ascii_lowercase(),
        }
    }

    /// The tag or digest; the tag `latest` where neither was written.
    #[must_use]
    pub const fn version(&self) -> &Version {
        self.asked.version()
    }

    /// What a registry is asked for.
    #[must_use]
    pub const fn at_registry(&self) -> &RegistryReference {
        &self.asked
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, ParseReferenceError> {
        if text.len() > MAX_REFERENCE_BYTES {
            return Err(ParseReferenceError::TooLong(text.len()));
        }
        let Parts {
            registry: host,
            repository,
            tag,
            digest,
        } = Parts::of(text).ok_or(ParseReferenceError::NoRegistry)?;
        if host.starts_with('[') {
            return Err(ParseReferenceError::Ipv6);
        }
        // Without this rule, tart would take the `org` of `org/image` for a host, and other tools would ask Docker Hub.
        if !host.contains(['.', ':']) && host != "localhost" {
            return Err(ParseReferenceError::NoRegistry);
        }
        if !is_host(host) {
            return Err(ParseReferenceError::Host(quote(host)));
        }
        if repository.len() > MAX_REPOSITORY_BYTES {
            return Err(ParseReferenceError::LongName(repository.len()));
        }
        let namespace = repository
            .split('/')
            .map(|part| {
                if is_component(part) {
                    Ok(part.to_owned())
                } else {
                    Err(ParseReferenceError::Component(quote(part)))
                }
            })
            .collect::<Result<Vec<_>, _>>()?;
        let version = match (tag, digest) {
            (None, Some(digest)) => {
                Version::Digest(digest.parse().map_err(|_| ParseReferenceError::Digest)?)
            }
            (Some(_), Some(_)) => return Err(ParseReferenceError::TagAndDigest),
            (Some(tag), None) => match tag.parse() {
                Ok(parsed) if is_tag(tag) => Version::Tag(parsed),
                _ => return Err(ParseReferenceError::Tag(quote(tag))),
            },
            (None, None) => Version::Tag(Tag::latest()),
        };
        Ok(Self {
            text: text.to_owned(),
            host: host.to_owned(),
            namespace,
            asked: RegistryReference::of(host, repository, version),
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether this is a registry that tart can name, too. tart's rule is `host_component ('.' host_component)*`, where a
/// component is `name ('-' name)*`.
fn is_host(host: &str) -> bool {
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    is_registry(host) && is_separated(name, |byte| byte.is_ascii_alphanumeric(), b".-")
}

/// Whether the part fits both the specification's `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` and tart's `(name separator?)+`.
fn is_component(part: &str) -> bool {
    is_separated(
        part,
        |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit(),
        b".-_",
    )
}

/// Whether the tag, which fits the specification's `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`, fits tart's `name (separator
/// name)*` too.
fn is_tag(tag: &str) -> bool {
    is_separated(tag, |byte| byte.is_ascii_alphanumeric(), b".-_")
}

/// Whether the text is one or more runs of letters, with one separator between each two runs.
fn is_separated(text: &str, is_letter: impl Fn(u8) -> bool, separators: &[u8]) -> bool {
    let mut after_letter = false;
    for byte in text.bytes() {
        let letter = is_letter(byte);
        let separator = after_letter && separators.contains(&byte);
        if !(letter || separator) {
            return false;
        }
        after_letter = letter;
    }
    after_letter
}

fn quote(text: &str) -> String {
    text.chars().take(MAX_QUOTE).collect()
}

#[cfg(test)]
mod tests {
    use std::string::ToString as _;

    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Reference, ParseReferenceError> {
        text.parse()
    }

    #[test]
    fn tags_and_digests_are_told_apart() {
        let hex = "a".repeat(64);
        let by_digest = parse(&format!("ghcr.io/org/sub/image@sha256:{hex}")).unwrap();
        assert_eq!(by_digest.host(), "ghcr.io");
        assert_eq!(by_digest.namespace(), ["org", "sub", "image"]);
        assert!(
            matches!(by_digest.version(), Version::Digest(digest) if digest.hex().to_string() == hex)
        );
        let by_tag = parse("127.0.0.1:5000/image:Tag_1.2-x").unwrap();
        assert_eq!(by_tag.host(), "127.0.0.1:5000");
        assert_eq!(
            by_tag.version(),
            &Version::Tag("Tag_1.2-x".parse().unwrap())
        );
        let bare = parse("localhost/image").unwrap();
        assert_eq!(bare.version(), &Version::Tag(Tag::latest()));
        let digest = Digest::of(b"x");
        assert_eq!(by_tag.at(&digest), format!("127.0.0.1:5000/image@{digest}"));
        assert_eq!(bare.at(&digest), format!("localhost/image@{digest}"));
        for good in ["my-host.test/a-b_c.d/e:1", "a:1/b", "localhost:5000/a/b/c"] {
            assert!(parse(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn what_tart_cannot_name_is_refused_by_the_rule() {
        use ParseReferenceError::{Component, Digest, Host, Ipv6, NoRegistry, Tag, TagAndDigest};
        let hex = "a".repeat(64);
        let both = format!("ghcr.io/a:t@sha256:{hex}");
        let (long_tag, longest) = ("x".repeat(129), "x".repeat(128));
        let component = |part: &str| Component(part.to_owned());
        let tag = |tag: &str| Tag(tag.to_owned());
        let host = |host: &str| Host(host.to_owned());
        for (text, rule) in [
            ("r.test/a__b:1", component("a__b")),
            ("r.test/a--b:1", component("a--b")),
            ("r.test/a-_b:1", component("a-_b")),
            ("r.test/_a:1", component("_a")),
            ("r.test/a-:1", component("a-")),
            ("r.test/A:1", component("A")),
            ("r.test/a:_1", tag("_1")),
            ("r.test/a:1__2", tag("1__2")),
            ("r.test/a:1--2", tag("1--2")),
            ("r.test/a:1.", tag("1.")),
            ("r.test/a:-1", tag("-1")),
            ("my_host.test/a:1", host("my_host.test")),
            ("my--host.test/a:1", host("my--host.test")),
            ("r.test:99999/a:1", host("r.test:99999")),
            ("r.test:0/a:1", host("r.test:0")),
            ("[::1]:5000/a:1", Ipv6),
            ("[fe80::1]/a", Ipv6),
            ("org/image:1", NoRegistry),
            ("image", NoRegistry),
            (both.as_str(), TagAndDigest),
            ("r.test/a@sha256:beef", Digest),
            ("r.test/a@md5:00000000000000000000000000000000", Digest),
        ] {
            assert_eq!(parse(text), Err(rule), "{text}");
        }
        assert!(parse(&format!("r.test/a:{longest}")).is_ok());
        assert!(parse(&format!("r.test/a:{long_tag}")).is_err());
        let long_name = format!("r.test/{}", "x".repeat(256));
        assert_eq!(parse(&long_name), Err(ParseReferenceError::LongName(256)));
    }

    #[test]
    fn hostile_references_are_refused() {
        let hex = "a".repeat(64);
        let long = format!("ghcr.io/{}", "a".repeat(600));
        for bad in [
            "",
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
            "ghcr.io/a/sha256:b:c",
            "ghcr.io/a/b@sha256:../../x",
            "ghcr.io/%2e%2e/b:x",
            "ghcr.io:/b:x",
            "-x.test/b:y",
            "ghcr.io/~/b:x",
            "ghcr.io/.b:x",
            "ghcr.io/é:x",
            long.as_str(),
            &format!("ghcr.io/a@sha256:{hex}0"),
            &format!("ghcr.io/a@sha256:{}", hex.to_uppercase()),
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_reference_leads_out_of_the_cache(text in "[a-c./:@%~\\\\\\x00\\n-]{0,30}|ghcr\\.io/[a-c./:@_-]{0,20}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.as_str(), &text);
                let mut parts = reference.namespace().to_vec();
                parts.push(reference.host().to_owned());
                if let Version::Tag(tag) = reference.version() { parts.push(tag.as_str().to_owned()); }
                for part in parts {
                    prop_assert!(!part.is_empty() && part != "." && part != ".." && !part.contains(['/', '\0', '\n']));
                }
            }
        }

        /// What tart can name, registries can be asked for.
        #[test]
        fn a_reference_is_one_of_a_registry_too(
            text in "[a-c]{1,3}(\\.[a-c-]{1,3}){0,2}(:[0-9]{1,6})?/[a-cA._/-]{1,9}(:[a-cA._-]{1,4})?(@sha256:[0-9a-f]{64})?",
        ) {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(&text.parse::<RegistryReference>(), &Ok(reference.at_registry().clone()));
            }
        }

        /// tart's rule for names, said in another way: what is left between separators is never empty.
        #[test]
        fn what_is_taken_is_letters_with_single_separators(
            host in "[a-c0-1._-]{1,8}", part in "[a-cA_.-]{1,8}", tag in "[a-cA._-]{1,8}",
        ) {
            let fine = |text: &str, separators: &[char]| {
                text.split(separators).all(|run| !run.is_empty() && run.bytes().all(|byte| byte.is_ascii_alphanumeric()))
            };
            let good = fine(&host, &['.', '-'])
                && host.contains('.')
                && fine(&part, &['.', '-', '_'])
                && !part.contains('A')
                && fine(&tag, &['.', '-', '_']);
            let text = format!("{host}/{part}:{tag}");
            prop_assert_eq!(text.parse::<Reference>().is_ok(), good, "{}", text);
        }
    }
}
