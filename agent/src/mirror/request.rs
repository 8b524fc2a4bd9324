//! Reads what a request's path and query ask for, and of which registry.
//!
//! containerd writes `/v2/<name>/…?ns=<registry>`, and every other client `/v2/<registry>/<name>/…`.
//! A registry's port is written `host:port`, or `host_port` if a client's references can't hold a colon there.
//! Everything that this module returns was checked against the distribution specification's grammar. Nothing else
//! reaches an upstream, a path or a log.

use std::str::FromStr as _;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use proto::{
    Digest, Version,
    reference::{Tag, is_repository},
};

use crate::config::mirror::registry;

/// The name that stands for a repository in requests about a whole registry.
pub(crate) const ANY: &str = "any";

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// `/v2/`: whether this is a registry.
    Base,
    /// A manifest.
    Manifest(Repository, Version),
    /// A blob.
    Blob(Repository, Digest),
    /// The list of tags, with `n` and `last` from the query.
    Tags(Repository, String),
    /// The manifests that refer to a manifest, with `artifactType` from the query.
    Referrers(Repository, Digest, String),
    /// The registry's repositories, with `n` and `last` from the query. The repository's name is [`ANY`].
    Catalog(Repository, String),
}

/// A repository of an upstream registry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Repository {
    /// `host` or `host:port`.
    pub(crate) registry: String,
    pub(crate) name: String,
    /// Whether the request named the registry by `ns=`. Then the client is containerd, which falls back to the registry
    /// by itself.
    pub(crate) by_namespace: bool,
}

impl Repository {
    /// `registry/name`.
    pub(crate) fn reference(&self) -> String {
        format!("{}/{}", self.registry, self.name)
    }
}

/// Why a path can't be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The path isn't one of the API, or isn't served here.
    NoRoute,
    /// The name of the repository or its registry isn't valid.
    Name,
    /// The path names no registry, and no default is configured.
    NoRegistry,
    /// The tag or digest of a manifest isn't valid.
    Version,
    /// The digest of a blob isn't a SHA-256.
    Digest,
}

/// Reads a path and its query. `default` is the registry for names that name none.
pub(crate) fn parse(
    path: &str,
    query: Option<&str>,
    default: Option<&str>,
) -> Result<Asked, Refused> {
    let rest = path.strip_prefix("/v2").ok_or(Refused::NoRoute)?;
    if rest.is_empty() || rest == "/" {
        return Ok(Asked::Base);
    }
    let rest = decode(rest.strip_prefix('/').ok_or(Refused::NoRoute)?).ok_or(Refused::Name)?;
    if let Some(name) = rest.strip_suffix("_catalog") {
        let repository = repository(&format!("{name}{ANY}"), query, default)?;
        // a name that merely ends in `_catalog` is a repository's
        return if repository.name == ANY {
            let query = query.unwrap_or_default();
            Ok(Asked::Catalog(repository, page(query, is_repository)))
        } else {
            Err(Refused::NoRoute)
        };
    }
    let (rest, last) = rest.rsplit_once('/').ok_or(Refused::NoRoute)?;
    let (name, kind) = rest.rsplit_once('/').ok_or(Refused::NoRoute)?;
    match kind {
        "manifests" => {
            let version = if last.contains(':') {
                Version::Digest(Digest::from_str(last).map_err(|_| Refused::Version)?)
            } else {
                Version::Tag(Tag::from_str(last).map_err(|_| Refused::Version)?)
            };
            Ok(Asked::Manifest(repository(name, query, default)?, version))
        }
        "blobs" => {
            let digest = Digest::from_str(last).map_err(|_| Refused::Digest)?;
            Ok(Asked::Blob(repository(name, query, default)?, digest))
        }
        "tags" if last == "list" => Ok(Asked::Tags(
            repository(name, query, default)?,
            page(query.unwrap_or_default(), |last| {
                last.parse::<Tag>().is_ok()
            }),
        )),
        "referrers" => {
            let digest = Digest::from_str(last).map_err(|_| Refused::Digest)?;
            let wanted = kind_wanted(query.unwrap_or_default());
            Ok(Asked::Referrers(
                repository(name, query, default)?,
                digest,
                wanted,
            ))
        }
        _ => Err(Refused::NoRoute),
    }
}

fn repository(
    name: &str,
    query: Option<&str>,
    default: Option<&str>,
) -> Result<Repository, Refused> {
    let made = |registry: String, name: &str, by_namespace| {
        if !is_repository(name) {
            return Err(Refused::Name);
        }
        Ok(Repository {
            registry,
            name: name.to_owned(),
            by_namespace,
        })
    };
    if let Some(namespace) = value(query.unwrap_or_default(), "ns") {
        let registry = registry(&decode(namespace).ok_or(Refused::Name)?).ok_or(Refused::Name)?;
        return made(registry, name, true);
    }
    if let Some((first, rest)) = name.split_once('/')
        && let Some(registry) = registry(first)
        && is_registry(&registry)
    {
        return made(registry, rest, false);
    }
    let default = default.ok_or(Refused::NoRegistry)?;
    made(default.to_owned(), name, false)
}

/// Whether the first part of a path is a registry's host, not a part of a name (the rule of Docker references).
fn is_registry(host: &str) -> bool {
    host.contains(['.', ':']) || host == "localhost"
}

/// The query's `n` and `last`, if valid, as they may be passed on. `last` is a tag in a list of tags, a name in a list
/// of repositories.
fn page(query: &str, is_last: impl Fn(&str) -> bool) -> String {
    let mut page = Vec::new();
    if let Some(n) = value(query, "n").and_then(|n| n.parse::<u32>().ok()) {
        page.push(format!("n={n}"));
    }
    if let Some(last) = value(query, "last")
        && let Some(last) = decode(last)
        && is_last(&last)
    {
        page.push(format!("last={last}"));
    }
    page.join("&")
}

/// Characters that a media type may have, and that mean something else in a query.
const MEANINGFUL: &AsciiSet = &CONTROLS.add(b'+').add(b'&').add(b'#').add(b'^');

/// The query's `artifactType`, if it is a media type (RFC 6838), as it may be passed on.
fn kind_wanted(query: &str) -> String {
    let wanted = value(query, "artifactType").and_then(decode);
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"/!#$&-^_.+".contains(&byte);
    match wanted.filter(|wanted| !wanted.is_empty() && wanted.len() <= 255) {
        Some(wanted) if wanted.bytes().all(fits) => {
            format!("artifactType={}", utf8_percent_encode(&wanted, MEANINGFUL))
        }
        _ => String::new(),
    }
}

fn value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

/// Undoes percent-encoding. `None` if the result isn't UTF-8, or an escape is cut off or has no hex digits.
/// `percent_encoding` would pass such a text through, and the registry might read it differently.
fn decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
        decoded.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn repository(registry: &str, name: &str, by_namespace: bool) -> Repository {
        Repository {
            registry: registry.into(),
            name: name.into(),
            by_namespace,
        }
    }

    #[test]
    fn both_forms_name_registry_and_repository() {
        let tag = |text: &str| Version::Tag(text.parse().unwrap());
        let cases = [
            (
                "/v2/ghcr.io/org/image/manifests/1.2",
                None,
                "ghcr.io",
                "org/image",
                false,
            ),
            (
                "/v2/org/image/manifests/1.2",
                Some("ns=ghcr.io"),
                "ghcr.io",
                "org/image",
                true,
            ),
            (
                "/v2/localhost/image/manifests/1.2",
                None,
                "localhost",
                "image",
                false,
            ),
            (
                "/v2/127.0.0.1:5000/a/b/c/manifests/1.2",
                None,
                "127.0.0.1:5000",
                "a/b/c",
                false,
            ),
            (
                "/v2/127.0.0.1_5000/a/manifests/1.2",
                None,
                "127.0.0.1:5000",
                "a",
                false,
            ),
            (
                "/v2/127.0.0.1%3A5000/a/manifests/1.2",
                None,
                "127.0.0.1:5000",
                "a",
                false,
            ),
            (
                "/v2/a/manifests/1.2",
                Some("x=y&ns=127.0.0.1%3A5000"),
                "127.0.0.1:5000",
                "a",
                true,
            ),
            (
                "/v2/manifests/blobs/manifests/1.2",
                Some("ns=GHCR.io"),
                "ghcr.io",
                "manifests/blobs",
                true,
            ),
            (
                "/v2/org/image/manifests/1.2",
                None,
                "default.example",
                "org/image",
                false,
            ),
        ];
        for (path, query, registry, name, by_namespace) in cases {
            assert_eq!(
                parse(path, query, Some("default.example")),
                Ok(Asked::Manifest(
                    repository(registry, name, by_namespace),
                    tag("1.2")
                )),
                "{path} {query:?}"
            );
        }
        let digest = Digest::of(b"");
        assert_eq!(
            parse(&format!("/v2/ghcr.io/a/blobs/{digest}"), None, None),
            Ok(Asked::Blob(repository("ghcr.io", "a", false), digest))
        );
        assert_eq!(
            parse("/v2/ghcr.io/a/tags/list", Some("n=5&last=x&evil=1"), None),
            Ok(Asked::Tags(
                repository("ghcr.io", "a", false),
                "n=5&last=x".into()
            ))
        );
        let query = Some("artifactType=application%2Fx%2Bjson&evil=1");
        let referrers = "artifactType=application/x%2Bjson";
        for (path, query, asked) in [
            (
                format!("/v2/ghcr.io/a/referrers/{digest}"),
                query,
                Asked::Referrers(repository("ghcr.io", "a", false), digest, referrers.into()),
            ),
            (
                format!("/v2/ghcr.io/a/referrers/{digest}"),
                Some("artifactType=a%20b"),
                Asked::Referrers(repository("ghcr.io", "a", false), digest, String::new()),
            ),
            (
                "/v2/ghcr.io/_catalog".into(),
                Some("n=5&evil=1&last=a/b"),
                Asked::Catalog(repository("ghcr.io", ANY, false), "n=5&last=a/b".into()),
            ),
            (
                "/v2/_catalog".into(),
                Some("ns=ghcr.io"),
                Asked::Catalog(repository("ghcr.io", ANY, true), String::new()),
            ),
        ] {
            assert_eq!(parse(&path, query, None), Ok(asked), "{path}");
        }
        for base in ["/v2", "/v2/"] {
            assert_eq!(parse(base, None, None), Ok(Asked::Base));
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        let digest = Digest::of(b"");
        let cases = [
            ("/".to_owned(), Refused::NoRoute),
            ("/v1/x".into(), Refused::NoRoute),
            ("/v2x".into(), Refused::NoRoute),
            ("/v2/ghcr.io/a/referrers/x".into(), Refused::Digest),
            ("/v2/_catalog".into(), Refused::NoRegistry),
            ("/v2/ghcr.io/a/_catalog".into(), Refused::NoRoute),
            ("/v2/ghcr.io_catalog".into(), Refused::NoRegistry),
            ("/v2/ghcr.io/A/manifests/1".into(), Refused::Name),
            ("/v2/ghcr.io/../manifests/1".into(), Refused::Name),
            ("/v2/ghcr.io/a%2F..%2Fb/manifests/1".into(), Refused::Name),
            ("/v2/ghcr.io/a//b/manifests/1".into(), Refused::Name),
            ("/v2/ghcr.io/a%zz/manifests/1".into(), Refused::Name),
            (
                format!("/v2/ghcr.io/{}/manifests/1", "a".repeat(256)),
                Refused::Name,
            ),
            ("/v2/image/manifests/1".into(), Refused::NoRegistry),
            ("/v2/ghcr.io/a/manifests/-x".into(), Refused::Version),
            ("/v2/ghcr.io/a/manifests/sha512:00".into(), Refused::Version),
            ("/v2/ghcr.io/a/blobs/latest".into(), Refused::Digest),
            (format!("/v2/ghcr.io/a/blobs/{digest}0"), Refused::Digest),
        ];
        for (path, refused) in cases {
            assert_eq!(parse(&path, None, None), Err(refused), "{path}");
        }
        for bad in [
            "ns=",
            "ns=-x",
            "ns=a..b",
            "ns=a:0",
            "ns=a:65536",
            "ns=a:+1",
            "ns=u@h",
            "ns=h%2Fx",
            "ns=%",
        ] {
            let asked = parse("/v2/a/manifests/1", Some(bad), Some("d.example"));
            assert_eq!(asked, Err(Refused::Name), "{bad}");
        }
    }

    proptest! {
        /// Whatever is asked, what goes upstream can't leave its place in the URL.
        #[test]
        fn any_path_is_refused_or_harmless(path in "(/v2/)?([a-zA-Z0-9._%:/-]{0,40}|.{0,30})(/manifests/|/blobs/|/tags/list)?.{0,20}", query in prop::option::of("(ns=)?.{0,30}")) {
            if let Ok(asked) = parse(&path, query.as_deref(), Some("d.example")) {
                let at = match &asked {
                    Asked::Base => return Ok(()),
                    Asked::Manifest(at, _) | Asked::Blob(at, _) | Asked::Tags(at, _) => at,
                    Asked::Referrers(at, ..) | Asked::Catalog(at, _) => at,
                };
                prop_assert!(at.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-/".contains(&byte)));
                prop_assert!(!at.name.contains("..") && !at.name.contains("//") && !at.name.is_empty());
                prop_assert!(at.registry.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:".contains(&byte)));
                let whole = format!("http://{}/v2/{}/x", at.registry, at.name);
                let uri: hyper::Uri = whole.parse().unwrap();
                prop_assert_eq!(uri.authority().unwrap().as_str(), at.registry.as_str());
            }
        }
    }
}
