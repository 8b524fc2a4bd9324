//! What upstream registries say, and to which clients: manifests, sizes of blobs, and whose credentials they accepted.
//!
//! This host gives a client a manifest or a blob's bytes only under two conditions. First, the upstream accepted the
//! client's own credentials for the repository within the last minute. Second, the upstream itself said that the blob
//! or manifest is in the repository. A manifest that names a blob isn't enough, because anybody may push one that lists
//! another repository's blobs, or a wrong size. While the upstream can't be reached, credentials that it accepted
//! within the last hour count.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::{HeaderMap, header::HeaderValue};
use origin::{Manifest, OriginError, Secret};
use proto::{Digest, Version};
use tracing::warn;

use super::request::Repository;
use crate::{
    lock::lock,
    registries::{Access, Origin},
};

/// How long an accepted request speaks for further requests of the same client to the same repository.
const VERDICT: Duration = Duration::from_secs(60);
/// How long it does so while the upstream can't be reached.
const VERDICT_STALE: Duration = Duration::from_hours(1);
/// The number of entries that each map keeps. A full map is emptied, and the upstream is asked again.
const MAX_FACTS: usize = 1 << 16;
/// The number of parts of one manifest that are kept. No image comes near it.
const MAX_PARTS: usize = 1 << 12;
/// Bytes of manifests that are kept in memory.
const MAX_KEPT_BYTES: usize = 32 << 20;

/// A client, known by its credentials. Its verdicts are found by them.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) access: Access,
    /// A hash of the credentials, because maps don't keep the credentials themselves.
    key: [u8; 32],
}

impl Client {
    pub(crate) fn new(authorization: Option<&Secret>, lend: bool) -> Self {
        let text = authorization.map_or("", |header| header.expose());
        Self {
            access: Access::of_client(authorization, lend),
            key: *blake3::hash(text.as_bytes()).as_bytes(),
        }
    }
}

/// What the upstreams said.
#[derive(Debug)]
pub(crate) struct Upstreams {
    origin: Origin,
    /// Written by connections. Locked for look-ups.
    facts: Mutex<Facts>,
}

#[derive(Debug, Default)]
struct Facts {
    verdicts: BTreeMap<(String, [u8; 32]), Instant>,
    /// Blobs and manifests that repositories have, as their registry itself said, with the sizes of blobs.
    members: BTreeMap<(String, Digest), Option<u64>>,
    /// Blobs that manifests claim to be in their repositories, with sizes.
    claims: BTreeMap<(String, Digest), u64>,
    /// Blobs that registries have shown that they have.
    shown: BTreeSet<(String, Digest)>,
    tags: BTreeMap<(String, String), Tag>,
    manifests: BTreeMap<Digest, Manifest>,
    manifest_bytes: usize,
}

/// The manifest that a tag named when the upstream was last asked.
#[derive(Clone, Copy, Debug)]
struct Tag {
    digest: Digest,
    at: Instant,
    /// Whether a log line said that clients get this answer while the upstream is away.
    logged: bool,
}

/// A manifest for a client.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) manifest: Manifest,
    /// How long ago the tag was known to name this manifest, if the upstream can't be asked now.
    pub(crate) stale: Option<Duration>,
}

impl From<Manifest> for Found {
    fn from(manifest: Manifest) -> Self {
        Self {
            manifest,
            stale: None,
        }
    }
}

/// Whether the upstream couldn't be reached or is in trouble. It hasn't refused then.
pub(crate) const fn is_away(error: &OriginError) -> bool {
    error.is_retryable()
        || matches!(
            error,
            OriginError::Tls { .. } | OriginError::Proxy { .. } | OriginError::Status { .. }
        )
}

/// Whether the registry itself refused: it has no such thing, or not for these credentials.
pub(crate) const fn is_refusal(error: &OriginError) -> bool {
    matches!(
        error,
        OriginError::Unauthorised { .. }
            | OriginError::Forbidden { .. }
            | OriginError::NotFound { .. }
    )
}

impl Upstreams {
    pub(crate) fn new(origin: Origin) -> Self {
        Self {
            origin,
            facts: Mutex::default(),
        }
    }

    /// A client for the upstream's repository. An error means that this host's settings don't allow one.
    pub(super) fn handle(
        &self,
        repository: &Repository,
        client: &Client,
    ) -> Result<origin::Repository, OriginError> {
        let reference = repository.reference();
        let made = self.origin.repository(&reference, &client.access);
        made.map_err(|error| OriginError::Reference {
            what: reference,
            cause: proto::causes(&error),
        })
    }

    /// A manifest, if this client may read it.
    pub(crate) async fn manifest(
        &self,
        repository: &Repository,
        version: &Version,
        accept: Option<&HeaderValue>,
        client: &Client,
    ) -> Result<Found, OriginError> {
        let reference = repository.reference();
        let handle = self.handle(repository, client)?;
        let digest = match version {
            Version::Digest(digest) => {
                let known = self.facts().may_read(&reference, client, digest, VERDICT);
                if known && let Some(manifest) = self.kept(digest, accept) {
                    return Ok(manifest.into());
                }
                Some(*digest)
            }
            Version::Tag(tag) => {
                let key = (reference.clone(), tag.to_string());
                let before = self.facts().tags.get(&key).map(|tag| tag.digest);
                // the tag has most likely not moved since it was asked for, and asking for its digest costs less
                if let Some(before) = before
                    && let Some(manifest) = self.kept(&before, accept)
                {
                    match handle.resolve(version).await {
                        Ok(now) if now == before => {
                            let mut facts = self.facts();
                            facts.accept(&reference, client);
                            facts.names(key, before);
                            return Ok(manifest.into());
                        }
                        Err(error) if !is_away(&error) => return Err(error),
                        _ => {}
                    }
                }
                before
            }
        };
        // a client that accepts anything gets one of the types that are known here; if it names a type, the registry
        // chooses
        let accept = accept.filter(|accept| !names_none(accept));
        let error = match handle.manifest_as(version, accept).await {
            Ok(manifest) => {
                self.learn(&reference, version, client, &manifest);
                return Ok(manifest.into());
            }
            Err(error) => error,
        };
        if is_away(&error)
            && let Some(digest) = digest
            && self
                .facts()
                .may_read(&reference, client, &digest, VERDICT_STALE)
            && let Some(manifest) = self.kept(&digest, accept)
        {
            let stale = self.stale(&reference, version, &error);
            return Ok(Found { manifest, stale });
        }
        Err(error)
    }

    /// The size of a blob that this client may read. Asks the upstream only if the size isn't known. If the client
    /// wants no bytes (`head`), a size from a manifest is enough.
    pub(crate) async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        client: &Client,
        head: bool,
    ) -> Result<u64, OriginError> {
        let reference = repository.reference();
        let known = |life| self.facts().size(&reference, client, digest, life);
        if let Some(size) = known(VERDICT) {
            return Ok(size);
        }
        if head && let Some(size) = self.facts().claim(&reference, client, digest) {
            return Ok(size);
        }
        let handle = self.handle(repository, client)?;
        match handle.blob_size(digest).await {
            Ok(size) => {
                let mut facts = self.facts();
                facts.accept(&reference, client);
                facts.belongs(&reference, *digest, Some(size));
                Ok(size)
            }
            Err(error) if is_away(&error) => known(VERDICT_STALE).ok_or(error),
            Err(error) => Err(error),
        }
    }

    /// Gets a part of a blob from the upstream. The part is given as its offset, its length, and the size of the whole
    /// blob.
    pub(crate) async fn part(
        &self,
        repository: &Repository,
        digest: &Digest,
        client: &Client,
        (start, length, size): (u64, usize, u64),
    ) -> Result<Bytes, OriginError> {
        let handle = self.handle(repository, client)?;
        handle.part(digest, start, length, size).await
    }

    /// Notes that a registry showed that it has a blob.
    pub(crate) fn shows(&self, registry: &str, digest: Digest) {
        let mut facts = self.facts();
        if facts.shown.len() >= MAX_FACTS {
            facts.shown.clear();
        }
        facts.shown.insert((registry.to_owned(), digest));
    }

    pub(crate) fn has_shown(&self, registry: &str, digest: &Digest) -> bool {
        let facts = self.facts();
        facts.shown.contains(&(registry.to_owned(), *digest))
    }

    /// The list of tags with its headers, as the upstream gives them.
    pub(crate) async fn tags(
        &self,
        repository: &Repository,
        query: &str,
        client: &Client,
    ) -> Result<(Bytes, HeaderMap), OriginError> {
        let handle = self.handle(repository, client)?;
        handle.tags(query).await
    }

    /// The list of manifests that refer to a manifest, with its headers, as the upstream gives them.
    pub(crate) async fn referrers(
        &self,
        repository: &Repository,
        (digest, query): (&Digest, &str),
        client: &Client,
    ) -> Result<(Bytes, HeaderMap), OriginError> {
        let handle = self.handle(repository, client)?;
        handle.referrers(digest, query).await
    }

    /// The list of the registry's repositories with its headers, as the upstream gives them.
    pub(crate) async fn catalog(
        &self,
        repository: &Repository,
        query: &str,
        client: &Client,
    ) -> Result<(Bytes, HeaderMap), OriginError> {
        let handle = self.handle(repository, client)?;
        handle.catalog(query).await
    }

    /// The challenge that the upstream sends to a client without credentials that reads `path`.
    pub(crate) async fn challenge(
        &self,
        repository: &Repository,
        path: &str,
    ) -> Option<HeaderValue> {
        let nobody = Client::new(None, false);
        let handle = self.handle(repository, &nobody).ok()?;
        handle.challenge(path).await.ok()?
    }

    /// How long ago the upstream said what a tag names. Logs it once for each time that the upstream is away.
    fn stale(&self, reference: &str, version: &Version, error: &OriginError) -> Option<Duration> {
        let Version::Tag(tag) = version else {
            return None;
        };
        let mut facts = self.facts();
        let known = facts
            .tags
            .get_mut(&(reference.to_owned(), tag.to_string()))?;
        let age = known.at.elapsed();
        if !std::mem::replace(&mut known.logged, true) {
            warn!(
                repository = reference,
                tag = tag.to_string(),
                age_s = age.as_secs(),
                %error,
                "a tag is answered as it was before its registry went away"
            );
        }
        Some(age)
    }

    fn kept(&self, digest: &Digest, accept: Option<&HeaderValue>) -> Option<Manifest> {
        let facts = self.facts();
        let manifest = facts.manifests.get(digest)?;
        accept
            .is_none_or(|accept| accepts_all(accept) || names(accept, &manifest.media_type))
            .then(|| manifest.clone())
    }

    fn learn(&self, reference: &str, version: &Version, client: &Client, manifest: &Manifest) {
        let parts = parts(&manifest.bytes);
        let mut facts = self.facts();
        facts.accept(reference, client);
        facts.belongs(reference, manifest.digest, None);
        if facts.claims.len() >= MAX_FACTS {
            facts.claims.clear();
        }
        for (digest, size) in parts.into_iter().take(MAX_PARTS) {
            facts.claims.insert((reference.to_owned(), digest), size);
        }
        if let Version::Tag(tag) = version {
            facts.names((reference.to_owned(), tag.to_string()), manifest.digest);
        }
        if facts.manifest_bytes + manifest.bytes.len() > MAX_KEPT_BYTES {
            facts.manifests.clear();
            facts.manifest_bytes = 0;
        }
        if facts
            .manifests
            .insert(manifest.digest, manifest.clone())
            .is_none()
        {
            facts.manifest_bytes += manifest.bytes.len();
        }
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        lock(&self.facts)
    }
}

impl Facts {
    fn accept(&mut self, reference: &str, client: &Client) {
        if self.verdicts.len() >= MAX_FACTS {
            self.verdicts.clear();
        }
        self.verdicts
            .insert((reference.to_owned(), client.key), Instant::now());
    }

    fn belongs(&mut self, reference: &str, digest: Digest, size: Option<u64>) {
        if self.members.len() >= MAX_FACTS {
            self.members.clear();
        }
        self.members.insert((reference.to_owned(), digest), size);
    }

    /// The upstream said which manifest a tag names.
    fn names(&mut self, key: (String, String), digest: Digest) {
        if self.tags.len() >= MAX_FACTS {
            self.tags.clear();
        }
        let tag = Tag {
            digest,
            at: Instant::now(),
            logged: false,
        };
        self.tags.insert(key, tag);
    }

    fn accepts(&self, reference: &str, client: &Client, life: Duration) -> bool {
        self.verdicts
            .get(&(reference.to_owned(), client.key))
            .is_some_and(|accepted| accepted.elapsed() < life)
    }

    fn may_read(&self, reference: &str, client: &Client, digest: &Digest, life: Duration) -> bool {
        self.accepts(reference, client, life)
            && self.members.contains_key(&(reference.to_owned(), *digest))
    }

    fn size(
        &self,
        reference: &str,
        client: &Client,
        digest: &Digest,
        life: Duration,
    ) -> Option<u64> {
        let size = *self.members.get(&(reference.to_owned(), *digest))?;
        size.filter(|_| self.accepts(reference, client, life))
    }

    fn claim(&self, reference: &str, client: &Client, digest: &Digest) -> Option<u64> {
        let size = *self.claims.get(&(reference.to_owned(), *digest))?;
        self.accepts(reference, client, VERDICT).then_some(size)
    }
}

/// The blobs and manifests that a manifest or an index names, with their sizes. Empty if the bytes are neither.
fn parts(manifest: &[u8]) -> Vec<(Digest, u64)> {
    let Ok(manifest) = serde_json::from_slice::<serde_json::Value>(manifest) else {
        return Vec::new();
    };
    let one = |part: &serde_json::Value| {
        let digest = part.get("digest")?.as_str()?.parse().ok()?;
        Some((digest, part.get("size")?.as_u64()?))
    };
    let list = |name: &str| manifest.get(name).and_then(|list| list.as_array());
    let lists = ["layers", "manifests", "blobs"];
    manifest
        .get("config")
        .into_iter()
        .chain(lists.into_iter().filter_map(list).flatten())
        .filter_map(one)
        .collect()
}

fn accepts_all(accept: &HeaderValue) -> bool {
    names(accept, "*/*")
}

/// Whether an `Accept` has only wildcards.
fn names_none(accept: &HeaderValue) -> bool {
    accept.to_str().is_ok_and(|text| {
        text.split(',').all(|part| {
            part.split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .ends_with("/*")
        })
    })
}

/// Whether an `Accept` has this media type.
fn names(accept: &HeaderValue, media_type: &str) -> bool {
    accept.to_str().is_ok_and(|text| {
        text.split(',')
            .map(|part| part.split(';').next().unwrap_or_default().trim())
            .any(|part| part.eq_ignore_ascii_case(media_type))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_manifests_and_indexes_are_found() {
        let (one, other) = (Digest::of(b"1"), Digest::of(b"2"));
        let manifest = serde_json::json!({"config": {"digest": one.to_string(), "size": 1}, "layers": [{"digest": other.to_string(), "size": 2}, {"digest": "x"}]});
        assert_eq!(
            parts(manifest.to_string().as_bytes()),
            [(one, 1), (other, 2)]
        );
        let index = serde_json::json!({"manifests": [{"digest": one.to_string(), "size": 7}]});
        assert_eq!(parts(index.to_string().as_bytes()), [(one, 7)]);
        for nothing in ["", "[]", "{\"layers\": 5}", "{\"config\": []}"] {
            assert_eq!(parts(nothing.as_bytes()), []);
        }
    }

    #[test]
    fn a_verdict_is_for_one_client_one_repository_and_its_members() {
        let client = Client::new(Some(&"Bearer a".into()), false);
        let other = Client::new(Some(&"Bearer b".into()), false);
        let nobody = Client::new(None, false);
        let digest = Digest::of(b"blob");
        let mut facts = Facts::default();
        facts.accept("r/a", &client);
        facts.belongs("r/a", digest, Some(4));
        assert!(facts.may_read("r/a", &client, &digest, VERDICT));
        assert!(!facts.may_read("r/a", &other, &digest, VERDICT));
        assert!(!facts.may_read("r/a", &nobody, &digest, VERDICT));
        assert!(!facts.may_read("r/b", &client, &digest, VERDICT));
        assert!(!facts.may_read("r/a", &client, &Digest::of(b"other"), VERDICT));
        assert!(!facts.may_read("r/a", &client, &digest, Duration::ZERO));
        assert_eq!(facts.size("r/a", &client, &digest, VERDICT), Some(4));
        assert_eq!(facts.size("r/b", &client, &digest, VERDICT), None);
    }

    #[test]
    fn what_a_manifest_names_isnt_what_its_repository_has() {
        let client = Client::new(None, false);
        let (mine, theirs) = (Digest::of(b"mine"), Digest::of(b"theirs"));
        let mut facts = Facts::default();
        facts.accept("r/evil", &client);
        facts
            .claims
            .extend([(("r/evil".into(), mine), 1), (("r/evil".into(), theirs), 2)]);
        facts.belongs("r/evil", mine, Some(7));
        assert_eq!(facts.size("r/evil", &client, &mine, VERDICT), Some(7));
        assert_eq!(facts.size("r/evil", &client, &theirs, VERDICT), None);
        assert!(!facts.may_read("r/evil", &client, &theirs, VERDICT));
        assert_eq!(facts.claim("r/evil", &client, &theirs), Some(2));
        assert_eq!(facts.claim("r/good", &client, &theirs), None);
        let stranger = Client::new(Some(&"Bearer x".into()), false);
        assert_eq!(facts.claim("r/evil", &stranger, &theirs), None);
    }

    #[test]
    fn accepted_types_are_read_as_lists() {
        let accept = HeaderValue::from_static("application/a; q=0.5, Application/B");
        assert!(names(&accept, "application/b") && names(&accept, "application/a"));
        assert!(!names(&accept, "application/c") && !accepts_all(&accept));
        let some_and_any = HeaderValue::from_static("application/a, */*");
        assert!(accepts_all(&some_and_any) && !names_none(&some_and_any));
        assert!(names_none(&HeaderValue::from_static("*/*;q=0.8, text/*")));
    }
}
