//! The parts of an answer: bodies, headers, and refusals in the distribution specification's form.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    header::{
        ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName, HeaderValue,
        LINK,
    },
};
use proto::Digest;
use wire::Work;

use super::{
    browser,
    request::{Refused, Repository},
    stream::{Body, Stream},
};

const DIGEST_HEADER: HeaderName = HeaderName::from_static("docker-content-digest");
const FILTERS_HEADER: HeaderName = HeaderName::from_static("oci-filters-applied");
/// What an answer carries: bytes at hand, or a blob that comes.
pub(super) enum Payload {
    /// These bytes.
    Bytes(Bytes),
    /// A blob, or a part of it.
    Blob(Box<Stream>),
}

impl Payload {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Blob(stream) => stream.len(),
        }
    }

    /// Makes hyper's body of it. Until a blob has left, the mirror works for its client.
    pub(super) fn into_body(self, work: Work) -> Body {
        match self {
            Self::Bytes(bytes) => Full::new(bytes)
                .map_err(|never: Infallible| match never {})
                .boxed_unsync(),
            Self::Blob(stream) => stream.body(work),
        }
    }
}

/// A refusal in the distribution specification's error form.
pub(super) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
        }
    }
}

impl From<Refusal> for Response<Payload> {
    fn from(refusal: Refusal) -> Self {
        let body =
            serde_json::json!({"errors": [{"code": refusal.code, "message": refusal.message}]});
        let mut response = Self::new(whole(body.to_string()));
        *response.status_mut() = refusal.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// A body of these bytes.
pub(super) fn whole(bytes: impl Into<Bytes>) -> Payload {
    Payload::Bytes(bytes.into())
}

/// Adds the headers that name the answer's digest.
pub(super) fn name(headers: &mut HeaderMap, digest: &Digest) {
    let text = digest.to_string();
    if let Ok(value) = HeaderValue::from_str(&text) {
        headers.insert(DIGEST_HEADER, value);
    }
    if let Ok(value) = HeaderValue::from_str(&format!("\"{text}\"")) {
        headers.insert(ETAG, value);
    }
}

/// The answer with a part of a blob of `size` bytes, or with all of it, before its body is there.
pub(super) fn blob_part(
    digest: &Digest,
    size: u64,
    (start, end): (u64, u64),
    status: StatusCode,
) -> Response<Payload> {
    let mut response = Response::new(whole(Bytes::new()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, (end - start).into());
    headers.insert(CONTENT_TYPE, browser::BYTES);
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    name(headers, digest);
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(value) = HeaderValue::from_str(&format!("bytes {start}-{}/{size}", end - 1))
    {
        headers.insert(CONTENT_RANGE, value);
    }
    response
}

/// The answer to a range that a blob of this size can't give.
pub(super) fn unsatisfiable(size: u64, message: &str) -> Response<Payload> {
    let refusal = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID", message);
    let mut response = Response::from(refusal);
    if let Ok(value) = HeaderValue::from_str(&format!("bytes */{size}")) {
        response.headers_mut().insert(CONTENT_RANGE, value);
    }
    response
}

/// The refusal of a path that can't be answered.
pub(super) fn refusal_of(refused: Refused) -> Refusal {
    let (status, code, message) = match refused {
        Refused::NoRoute => (
            StatusCode::NOT_FOUND,
            "UNSUPPORTED",
            "the mirror serves manifests, blobs, referrers, and lists of tags and repositories",
        ),
        Refused::Name => (
            StatusCode::BAD_REQUEST,
            "NAME_INVALID",
            "the repository's name or registry isn't one",
        ),
        Refused::NoRegistry => (
            StatusCode::NOT_FOUND,
            "NAME_UNKNOWN",
            "the path names no registry: write /v2/<registry>/<name>/…, add ?ns=<registry>, or set mirror.upstream",
        ),
        Refused::Version => (
            StatusCode::BAD_REQUEST,
            "TAG_INVALID",
            "the tag or digest isn't one",
        ),
        Refused::Digest => (
            StatusCode::BAD_REQUEST,
            "DIGEST_INVALID",
            "the digest isn't a SHA-256",
        ),
    };
    Refusal::new(status, code, message)
}

/// The refusal of a request by a page in a browser. `None` for other clients.
pub(super) fn pages<B>(request: &Request<B>) -> Option<Refusal> {
    browser::is_page(request.headers()).then(|| {
        let message = "the mirror answers clients of registries, and no page in a browser";
        Refusal::new(StatusCode::FORBIDDEN, "DENIED", message)
    })
}

/// A list as the upstream gives it: tags, referrers or repositories.
pub(super) fn list(
    repository: &Repository,
    path: &str,
    (bytes, given): (Bytes, HeaderMap),
) -> Response<Payload> {
    let mut response = Response::new(whole(bytes));
    let headers = response.headers_mut();
    let media_type = match given.get(CONTENT_TYPE) {
        Some(given) => browser::media_type(given.to_str().unwrap_or_default()),
        None => HeaderValue::from_static("application/json"),
    };
    headers.insert(CONTENT_TYPE, media_type);
    if let Some(applied) = given.get(FILTERS_HEADER) {
        headers.insert(FILTERS_HEADER, applied.clone());
    }
    // the upstream's link has its own path; our path has the registry before the name, or in the query
    let link = given
        .get(LINK)
        .and_then(|link| relocated(link, repository, path));
    if let Some(link) = link {
        headers.insert(LINK, link);
    }
    response
}

/// A `Link` to the next page of a list, with our path.
fn relocated(link: &HeaderValue, repository: &Repository, path: &str) -> Option<HeaderValue> {
    let text = link.to_str().ok()?;
    let query = text.split_once('?')?.1.split_once('>')?.0;
    let registry = &repository.registry;
    let name = match (path, repository.by_namespace) {
        ("_catalog", true) => String::new(),
        ("_catalog", false) => format!("{registry}/"),
        (_, true) => format!("{}/", repository.name),
        (_, false) => format!("{}/", repository.reference()),
    };
    let namespace = match repository.by_namespace {
        true => format!("&ns={registry}"),
        false => String::new(),
    };
    HeaderValue::from_str(&format!(
        "</v2/{name}{path}?{query}{namespace}>; rel=\"next\""
    ))
    .ok()
}
