//! A repository of a registry, and requests that read from it.

use std::{ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri,
    header::{ACCEPT, ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RANGE, WWW_AUTHENTICATE},
};
use proto::{Digest, RegistryReference, Version, image::MAX_MANIFEST_BYTES};

use crate::{
    auth::{Authenticator, Credentials, Grant},
    blob::BlobStream,
    error::{OriginError, shorten, unexpected},
    location::{authority, same_server},
    transport::{Answer, Authorization, Transport},
};

/// The types of manifests that are asked for. tart writes the first. The others are asked for so that a refusal can
/// name their type.
const MANIFEST_TYPES: HeaderValue = HeaderValue::from_static(
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json",
);
/// A single type, for registries that refuse the list.
const OCI_MANIFEST: HeaderValue =
    HeaderValue::from_static("application/vnd.oci.image.manifest.v1+json");
const DOCKER_MANIFEST: HeaderValue =
    HeaderValue::from_static("application/vnd.docker.distribution.manifest.v2+json");
const ANYTHING: HeaderValue = HeaderValue::from_static("*/*");
const DIGEST_HEADER: HeaderName = HeaderName::from_static("docker-content-digest");

/// A manifest as the registry stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The bytes, which have the digest `digest`.
    pub bytes: Bytes,
    /// The type, by the registry's word.
    pub media_type: String,
    /// The digest of the bytes.
    pub digest: Digest,
}

/// A repository, with the credentials for it. Clones share their tokens.
#[derive(Clone, Debug)]
pub struct Repository(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    transport: Transport,
    auth: Authenticator,
    /// `https://host:port`
    base: String,
    /// `host/name`, for people.
    name: String,
    /// `name` in the paths of the API.
    path: String,
    version: Version,
}

impl Repository {
    pub(crate) fn new(
        transport: Transport,
        reference: &RegistryReference,
        credentials: Credentials,
    ) -> Result<Self, OriginError> {
        let host = reference.server();
        let scheme = if transport.plain_http().allows(host) {
            "http"
        } else {
            "https"
        };
        let base = format!("{scheme}://{host}");
        // what both grammars call a host is the same, and no other server is asked should they ever differ
        let same = |uri: Uri| uri.authority().is_some_and(|asked| asked.as_str() == host);
        if !base.parse::<Uri>().is_ok_and(same) {
            return Err(OriginError::Reference {
                what: shorten(&reference.to_string()),
                cause: format!("its registry {host:?} isn't a host"),
            });
        }
        let path = reference.repository().to_owned();
        Ok(Self(Arc::new(Inner {
            auth: Authenticator::new(credentials, host, &path),
            name: format!("{}/{path}", reference.registry()),
            transport,
            base,
            path,
            version: reference.version().clone(),
        })))
    }

    /// The version that the reference names.
    #[must_use]
    pub fn version(&self) -> &Version {
        &self.0.version
    }

    /// The registry and the name, without a version.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Fetches a manifest. Its bytes were compared with the digest by which it was asked for, and with the digest that
    /// the registry announces, if any.
    ///
    /// # Errors
    /// See [`OriginError`].
    pub async fn manifest(&self, version: &Version) -> Result<Manifest, OriginError> {
        self.manifest_as(version, None).await
    }

    /// Fetches a manifest like [`manifest`](Self::manifest), of one of the types in `accept`, which is the text of an
    /// `Accept` header. `None` means the types of images and indexes that are known here.
    ///
    /// # Errors
    /// See [`OriginError`].
    pub async fn manifest_as(
        &self,
        version: &Version,
        accept: Option<&HeaderValue>,
    ) -> Result<Manifest, OriginError> {
        let what = self.what_manifest(version);
        let path = format!("manifests/{version}");
        let mut wishes = core::iter::once(accept.cloned())
            .chain(accept.is_none().then_some(Some(OCI_MANIFEST)))
            .chain(accept.is_none().then_some(Some(DOCKER_MANIFEST)))
            .chain(accept.is_none().then_some(Some(ANYTHING)));
        let mut wish = wishes.next().flatten();
        let answer = loop {
            let headers = manifest_headers(wish.as_ref());
            let asked = self.ask(&what, Method::GET, &path, &headers);
            match asked.await {
                // some registries accept only one type at a time
                Err(OriginError::Status { status: 406, .. }) if accept.is_none() => {
                    let Some(next) = wishes.next() else {
                        return Err(OriginError::Malformed {
                            what,
                            host: self.0.base.clone(),
                            cause:
                                "it gives the manifest in no type that is known here (status 406)"
                                    .to_owned(),
                        });
                    };
                    wish = next;
                }
                answer => break answer?,
            }
        };
        let host = authority(&answer.from);
        let (parts, body) = answer.response.into_parts();
        if parts.status != StatusCode::OK {
            return Err(unexpected(&what, &host, parts.status));
        }
        let announced = announced(&parts.headers);
        let media_type = parts
            .headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.split(';').next())
            .map(|text| shorten(text.trim()))
            .unwrap_or_default();
        let bytes = self
            .0
            .transport
            .whole(&what, &host, body, MAX_MANIFEST_BYTES)
            .await?;
        let digest = Digest::of(&bytes);
        let asked = match version {
            Version::Digest(digest) => Some(*digest),
            Version::Tag(_) => None,
        };
        for wanted in [asked, announced].into_iter().flatten() {
            if wanted != digest {
                return Err(OriginError::DigestMismatch {
                    what,
                    wanted,
                    found: digest,
                });
            }
        }
        Ok(Manifest {
            bytes,
            media_type,
            digest,
        })
    }

    /// The digest that a version has now. Fetches the manifest only where the registry doesn't answer without.
    ///
    /// # Errors
    /// See [`OriginError`].
    pub async fn resolve(&self, version: &Version) -> Result<Digest, OriginError> {
        let what = self.what_manifest(version);
        let answer = self
            .ask(
                &what,
                Method::HEAD,
                &format!("manifests/{version}"),
                &manifest_headers(None),
            )
            .await;
        let found = match answer {
            Ok(answer) => announced(answer.response.headers()),
            // some registries refuse HEAD, in several ways: the answer to GET counts
            Err(error) if error.is_retryable() => return Err(error),
            Err(_) => None,
        };
        match (found, version) {
            (Some(found), Version::Digest(wanted)) if found != *wanted => {
                Err(OriginError::DigestMismatch {
                    what,
                    wanted: *wanted,
                    found,
                })
            }
            (Some(found), _) => Ok(found),
            (None, _) => Ok(self.manifest(version).await?.digest),
        }
    }

    /// Streams a blob from byte `start` to its end: [`Self::blob_part`] with an end that is the blob's.
    ///
    /// # Errors
    /// See [`OriginError`].
    pub async fn blob(
        &self,
        digest: &Digest,
        start: u64,
        size: u64,
    ) -> Result<BlobStream, OriginError> {
        self.blob_part(digest, start..size.max(start), size).await
    }

    /// Streams a part of a blob. `size` is the whole blob's size by its manifest. The stream never gives more bytes,
    /// and ends with an error when the registry has another size or breaks off.
    ///
    /// A registry that doesn't give a part with an end is asked for all bytes from the part's start on. A registry that
    /// gives no part is asked for the whole blob. Bytes before the part are skipped; [`BlobStream::end`] says how far
    /// the stream goes.
    ///
    /// # Errors
    /// See [`OriginError`]. A part that isn't within the blob is an [`OriginError::Range`].
    pub async fn blob_part(
        &self,
        digest: &Digest,
        part: Range<u64>,
        size: u64,
    ) -> Result<BlobStream, OriginError> {
        let what = self.what_blob(digest);
        let idle = self.0.transport.idle_timeout();
        if part.start > part.end || part.end > size {
            return Err(OriginError::Range {
                what,
                start: part.start,
                cause: format!("it has only {size} bytes"),
            });
        }
        if part.is_empty() {
            return Ok(BlobStream::empty(what, (part.start, size), idle));
        }
        let mut asked = self.ask_part(digest, &part, &part, size).await;
        let without_end = (part.end < size).then_some(part.start);
        let whole = (part.start > 0).then_some(0);
        for first in [without_end, whole].into_iter().flatten() {
            match asked {
                Err(error) if error.may_be_about_range() => {
                    let start = part.start;
                    tracing::debug!(%error, start, "a part of a blob isn't given; asking for more of it");
                    let rest = start..size;
                    asked = self.ask_part(digest, &(first..size), &rest, size).await;
                }
                asked => return asked,
            }
        }
        asked
    }

    /// Reads a small part of a blob: `length` bytes from `start` on. `size` is the whole blob's size. Where the
    /// registry gives no parts, the bytes before are read too.
    ///
    /// # Errors
    /// See [`OriginError`]. A range that isn't within the blob is an [`OriginError::Range`].
    pub async fn part(
        &self,
        digest: &Digest,
        start: u64,
        length: usize,
        size: u64,
    ) -> Result<Bytes, OriginError> {
        let end = start.checked_add(length as u64).filter(|end| *end <= size);
        let end = end.ok_or_else(|| OriginError::Range {
            what: self.what_blob(digest),
            start,
            cause: format!("it has only {size} bytes"),
        })?;
        let mut stream = self.blob_part(digest, start..end, size).await?;
        let mut bytes = BytesMut::with_capacity(length);
        while bytes.len() < length {
            let Some(piece) = stream.piece().await? else {
                break;
            };
            let wanted = piece.len().min(length - bytes.len());
            bytes.extend_from_slice(&piece[..wanted]);
        }
        Ok(bytes.freeze())
    }

    /// Asks for these bytes of a blob, to get those of `wanted`.
    async fn ask_part(
        &self,
        digest: &Digest,
        asked: &Range<u64>,
        wanted: &Range<u64>,
        size: u64,
    ) -> Result<BlobStream, OriginError> {
        let what = self.what_blob(digest);
        let mut headers = HeaderMap::new();
        // A compressed answer would have other sizes and ranges.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(range) = range(asked, size) {
            headers.insert(RANGE, range);
        }
        let path = format!("blobs/{digest}");
        let Answer { response, from } = self.ask(&what, Method::GET, &path, &headers).await?;
        let idle = self.0.transport.idle_timeout();
        let part = (asked.start, wanted, size);
        BlobStream::of(what, authority(&from), response, part, idle)
    }

    /// The size of a blob, by the registry's word. Success also shows that these credentials may read the blob.
    ///
    /// # Errors
    /// See [`OriginError`]. The answer is malformed where the registry gives no size.
    pub async fn blob_size(&self, digest: &Digest) -> Result<u64, OriginError> {
        let what = self.what_blob(digest);
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let path = format!("blobs/{digest}");
        let asked = |method| self.ask(&what, method, &path, &headers);
        let size = |answer: &Answer| {
            let length = answer.response.headers().get(CONTENT_LENGTH);
            length.and_then(|value| value.to_str().ok()?.parse().ok())
        };
        match asked(Method::HEAD).await {
            Ok(answer) if let Some(size) = size(&answer) => return Ok(size),
            Err(error) if error.is_retryable() && !matches!(error, OriginError::Status { .. }) => {
                return Err(error);
            }
            // as for an address that is signed for GET alone; the answer to GET counts, and its body isn't read
            Ok(_) | Err(_) => {}
        }
        let answer = asked(Method::GET).await?;
        size(&answer).ok_or_else(|| OriginError::Malformed {
            what,
            host: authority(&answer.from),
            cause: "it names no size".to_owned(),
        })
    }

    /// The list of tags as the registry gives it, and its headers, such as a `Link` to more. `query` is
    /// `n=…&last=…` or empty.
    ///
    /// # Errors
    /// See [`OriginError`].
    pub async fn tags(&self, query: &str) -> Result<(Bytes, HeaderMap), OriginError> {
        let what = format!("tags of {}", self.0.name);
        let uri = self.uri(&what, &with("tags/list", query))?;
        self.list(&what, uri).await
    }

    /// The manifests that refer to a manifest, such as signatures or bills of materials: an index, and its headers.
    /// `query` is `artifactType=…` or empty.
    ///
    /// # Errors
    /// See [`OriginError`].
    pub async fn referrers(
        &self,
        digest: &Digest,
        query: &str,
    ) -> Result<(Bytes, HeaderMap), OriginError> {
        let what = format!("referrers of {digest} in {}", self.0.name);
        let uri = self.uri(&what, &with(&format!("referrers/{digest}"), query))?;
        self.list(&what, uri).await
    }

    /// The names of the registry's repositories, and the headers. `query` is as for [`tags`](Self::tags).
    ///
    /// # Errors
    /// See [`OriginError`].
    pub async fn catalog(&self, query: &str) -> Result<(Bytes, HeaderMap), OriginError> {
        let what = format!("list of repositories of {}", self.0.name);
        let path = with("_catalog", query);
        let uri = self.uri_at(&what, &format!("{}/v2/{path}", self.0.base))?;
        self.list(&what, uri).await
    }

    async fn list(&self, what: &str, uri: Uri) -> Result<(Bytes, HeaderMap), OriginError> {
        let answer = self
            .ask_at(what, Method::GET, uri, &HeaderMap::new())
            .await?;
        let host = authority(&answer.from);
        let (parts, body) = answer.response.into_parts();
        let transport = &self.0.transport;
        let bytes = transport
            .whole(what, &host, body, MAX_MANIFEST_BYTES)
            .await?;
        Ok((bytes, parts.headers))
    }

    /// The registry's demand to a client without credentials that reads this path of the repository (`blobs/…`,
    /// `manifests/…`): the text of its `WWW-Authenticate`. `None` when it demands nothing.
    ///
    /// # Errors
    /// See [`OriginError`].
    pub async fn challenge(&self, path: &str) -> Result<Option<HeaderValue>, OriginError> {
        let what = format!("access to {}", self.0.name);
        let uri = self.uri(&what, path)?;
        let transport = &self.0.transport;
        let answer = transport
            .follow(&what, Method::HEAD, &uri, &manifest_headers(None), None)
            .await?;
        let asked = answer.response.status() == StatusCode::UNAUTHORIZED;
        let header = answer.response.headers().get(WWW_AUTHENTICATE);
        Ok(header.filter(|_| asked).cloned())
    }

    /// A header to give to another program, with which that program can ask the registry for this repository itself. It
    /// has the shortest life and the fewest rights that the registry offers. Each call fetches a new token, so keep it
    /// while it lives.
    ///
    /// # Errors
    /// See [`OriginError`].
    pub async fn authorization_for(&self) -> Result<Grant, OriginError> {
        let inner = &self.0;
        let what = format!("access to {}", inner.name);
        let uri = self.uri_at(&what, &format!("{}/v2/", inner.base))?;
        let none = HeaderMap::new();
        let answer = inner
            .transport
            .follow(&what, Method::GET, &uri, &none, None)
            .await?;
        let response = answer.response;
        match response.status() {
            StatusCode::UNAUTHORIZED => {
                inner.auth.grant(&inner.transport, response.headers()).await
            }
            status if status.is_success() => Ok(Grant::Open),
            _ => Err(inner.transport.refusal(&what, &answer.from, response).await),
        }
    }

    /// Sends a request to the repository with the credentials that the registry demands, and follows redirects. Any
    /// status but success is an error.
    pub(crate) async fn ask(
        &self,
        what: &str,
        method: Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Answer, OriginError> {
        let uri = self.uri(what, path)?;
        self.ask_at(what, method, uri, headers).await
    }

    async fn ask_at(
        &self,
        what: &str,
        method: Method,
        uri: Uri,
        headers: &HeaderMap,
    ) -> Result<Answer, OriginError> {
        let inner = &self.0;
        let mut authorization = inner.auth.ready(&inner.transport).await?;
        let mut tries = 0;
        loop {
            tries += 1;
            let carried = authorization.clone().map(Authorization);
            let answer = inner
                .transport
                .follow(what, method.clone(), &uri, headers, carried.as_ref())
                .await?;
            let status = answer.response.status();
            if status.is_success() {
                return Ok(answer);
            }
            let ours = same_server(&uri, &answer.from);
            if status == StatusCode::UNAUTHORIZED
                && !ours
                && answer.response.headers().contains_key(WWW_AUTHENTICATE)
            {
                return Err(OriginError::Unauthorised {
                    what: what.to_owned(),
                    cause: format!(
                        "the registry redirects to {}, which wants credentials of its own; it was given none, because these are \
                         for the registry alone: reference the image there",
                        authority(&answer.from)
                    ),
                });
            }
            let headers = answer.response.headers();
            let own_scope = tries == 2 && ours && inner.auth.wants_another_scope(headers);
            if status != StatusCode::UNAUTHORIZED || !ours || (tries >= 2 && !own_scope) {
                let Answer { response, from } = answer;
                return Err(inner.transport.refusal(what, &from, response).await);
            }
            if own_scope {
                let answered = inner.auth.answer_in_own_scope(&inner.transport, headers);
                authorization = Some(answered.await?);
                continue;
            }
            let answered = inner
                .auth
                .answer(&inner.transport, headers, authorization.as_ref())
                .await?;
            authorization = Some(answered);
        }
    }

    fn uri(&self, what: &str, path: &str) -> Result<Uri, OriginError> {
        self.uri_at(what, &format!("{}/v2/{}/{path}", self.0.base, self.0.path))
    }

    fn uri_at(&self, what: &str, text: &str) -> Result<Uri, OriginError> {
        text.parse().map_err(|_| OriginError::Reference {
            what: what.to_owned(),
            cause: format!("{:?} isn't an address", shorten(text)),
        })
    }

    /// The name of a blob of this repository in errors.
    #[must_use]
    pub fn what_blob(&self, digest: &Digest) -> String {
        format!("blob {digest} of {}", self.0.name)
    }

    fn what_manifest(&self, version: &Version) -> String {
        match version {
            Version::Tag(tag) => format!("image {}:{tag}", self.0.name),
            Version::Digest(digest) => format!("image {}@{digest}", self.0.name),
        }
    }
}

/// The path with its query, if there is one.
fn with(path: &str, query: &str) -> String {
    let joint = if query.is_empty() { "" } else { "?" };
    format!("{path}{joint}{query}")
}

fn manifest_headers(accept: Option<&HeaderValue>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, accept.cloned().unwrap_or(MANIFEST_TYPES));
    headers
}

/// The `Range` header that asks for these bytes; `None` for the whole blob.
fn range(part: &Range<u64>, size: u64) -> Option<HeaderValue> {
    let Range { start, end } = part;
    let text = match (*start, *end) {
        (0, end) if end == size => return None,
        (start, end) if end == size => format!("bytes={start}-"),
        (start, end) => format!("bytes={start}-{last}", last = end.saturating_sub(1)),
    };
    Some(HeaderValue::from_str(&text).expect("digits are valid in a header"))
}

fn announced(headers: &HeaderMap) -> Option<Digest> {
    headers
        .get(DIGEST_HEADER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Client, Config, PlainHttp};

    fn repository(reference: &str, plain_http: PlainHttp) -> Result<Repository, OriginError> {
        let config = Config {
            plain_http,
            ..Config::default()
        };
        let reference = reference.parse().unwrap();
        Client::new(config)
            .unwrap()
            .repository(&reference, Credentials::Anonymous)
    }

    #[test]
    fn addresses_follow_the_reference() {
        let https = repository("ghcr.io/org/image:1.2", PlainHttp::Nowhere).unwrap();
        assert_eq!(
            https.uri("", "manifests/1.2").unwrap().to_string(),
            "https://ghcr.io/v2/org/image/manifests/1.2"
        );
        assert_eq!(https.version().to_string(), "1.2");
        let http = repository("127.0.0.1:5000/image", PlainHttp::Everywhere).unwrap();
        assert_eq!(
            http.uri("", "blobs/x").unwrap().to_string(),
            "http://127.0.0.1:5000/v2/image/blobs/x"
        );
        assert_eq!(http.version().to_string(), "latest");
        assert_eq!(http.name(), "127.0.0.1:5000/image");
    }

    #[test]
    fn docker_hub_is_asked_at_its_own_host() {
        let hub = repository("docker.io/image:1", PlainHttp::Nowhere).unwrap();
        assert_eq!(
            hub.uri("", "manifests/1").unwrap().to_string(),
            "https://index.docker.io/v2/library/image/manifests/1"
        );
        assert_eq!(hub.name(), "docker.io/library/image");
    }
}
