//! The OCI distribution API, with a token endpoint.

use std::{future::pending, io, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, Method, Request, Response, StatusCode, Uri,
    header::{
        ACCEPT_RANGES, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LINK, LOCATION,
        RANGE, RETRY_AFTER, WWW_AUTHENTICATE,
    },
};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use proto::Digest;

use super::{
    body::{Ending, Plan, frames},
    lock::lock,
    script::{Misbehaviour, Subject},
    shared::{Auth, Shared},
    tokens::Scope,
};

/// The largest manifest that is taken.
const MAX_MANIFEST_BYTES: usize = 16 << 20;
const FILTERS_HEADER: HeaderName = HeaderName::from_static("oci-filters-applied");
const DIGEST_HEADER: HeaderName = HeaderName::from_static("docker-content-digest");

type Body = UnsyncBoxBody<Bytes, io::Error>;
type Answer = Response<Body>;

/// Which door a request came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The registry's own.
    Registry,
    /// The host that redirects lead to, which must never see credentials.
    Elsewhere,
}

/// What a path means.
enum Route<'a> {
    Ping,
    Token,
    Catalog,
    Tags(&'a str),
    Referrers(&'a str, &'a str),
    Manifest(&'a str, &'a str),
    Blob(&'a str, &'a str),
    Uploads(&'a str),
    Upload(&'a str, &'a str),
}

impl<'a> Route<'a> {
    fn parse(path: &'a str) -> Option<Self> {
        if path == "/token" {
            return Some(Self::Token);
        }
        let rest = path.strip_prefix("/v2/")?;
        if rest.is_empty() {
            return Some(Self::Ping);
        }
        if rest == "_catalog" {
            return Some(Self::Catalog);
        }
        if let Some((name, digest)) = rest.rsplit_once("/referrers/") {
            return Some(Self::Referrers(name, digest));
        }
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Some(Self::Tags(name));
        }
        if let Some((name, id)) = rest.rsplit_once("/blobs/uploads/") {
            return Some(if id.is_empty() {
                Self::Uploads(name)
            } else {
                Self::Upload(name, id)
            });
        }
        if let Some(name) = rest.strip_suffix("/blobs/uploads") {
            return Some(Self::Uploads(name));
        }
        if let Some((name, digest)) = rest.rsplit_once("/blobs/") {
            return Some(Self::Blob(name, digest));
        }
        let (name, version) = rest.rsplit_once("/manifests/")?;
        Some(Self::Manifest(name, version))
    }

    const fn name(&self) -> Option<&'a str> {
        match self {
            Self::Ping | Self::Token | Self::Catalog => None,
            Self::Tags(name)
            | Self::Referrers(name, _)
            | Self::Manifest(name, _)
            | Self::Blob(name, _)
            | Self::Uploads(name)
            | Self::Upload(name, _) => Some(name),
        }
    }
}

/// Answers a request. An error closes the connection without an answer.
pub(super) async fn handle(
    shared: Arc<Shared>,
    role: Role,
    request: Request<Incoming>,
) -> io::Result<Answer> {
    lock(&shared.counters).requests += 1;
    let uri = request.uri().clone();
    let Some(route) = Route::parse(uri.path()) else {
        return Ok(refuse(StatusCode::NOT_FOUND, "UNSUPPORTED"));
    };
    let method = request.method().clone();
    let reads = method == Method::GET || method == Method::HEAD;
    if role == Role::Elsewhere {
        if request.headers().contains_key(AUTHORIZATION) {
            lock(&shared.counters).leaks += 1;
        }
        return match route {
            Route::Blob(_, digest) if reads => blob(&shared, digest, &request, &[]),
            _ => Ok(refuse(StatusCode::NOT_FOUND, "UNSUPPORTED")),
        };
    }
    if matches!(route, Route::Token) {
        lock(&shared.counters).token_requests += 1;
        let happens = lock(&shared.script).strike(Subject::Token);
        return match early(&shared, &uri, &happens).await? {
            Some(answer) => Ok(answer),
            None => Ok(token(&shared, &uri, request.headers())),
        };
    }
    let action = if reads { "pull" } else { "push" };
    let wanted = route.name().map(|name| (name, action));
    if let Some(answer) = unauthorised(&shared, request.headers(), wanted) {
        lock(&shared.counters).refusals += 1;
        return Ok(answer);
    }
    match route {
        Route::Ping => Ok(plain(StatusCode::OK, "{}")),
        Route::Catalog => Ok(catalog(&shared, &uri)),
        Route::Referrers(name, digest) => {
            let happens = lock(&shared.script).strike(Subject::Referrers);
            if let Some(answer) = early(&shared, &uri, &happens).await? {
                return Ok(answer);
            }
            Ok(referrers(&shared, (name, digest), &uri, &happens))
        }
        Route::Tags(name) => {
            let tags = shared.store.tags(name);
            let body = serde_json::json!({"name": name, "tags": tags});
            Ok(plain(StatusCode::OK, &body.to_string()))
        }
        Route::Manifest(name, version) if reads => {
            lock(&shared.counters).manifest_requests += 1;
            let happens = lock(&shared.script).strike(Subject::Manifest);
            if let Some(answer) = early(&shared, &uri, &happens).await? {
                return Ok(answer);
            }
            Ok(manifest(&shared, name, version, &method, &happens))
        }
        Route::Manifest(name, version) if method == Method::PUT => {
            put_manifest(&shared, name, version, request).await
        }
        Route::Blob(_, digest) if reads => {
            let Ok(parsed) = digest.parse::<Digest>() else {
                return Ok(refuse(StatusCode::BAD_REQUEST, "DIGEST_INVALID"));
            };
            let subject = if method == Method::GET {
                let mut counters = lock(&shared.counters);
                counters.blob_requests += 1;
                counters.blobs.entry(parsed).or_default().requests += 1;
                Subject::Blob(parsed)
            } else {
                Subject::BlobHead(parsed)
            };
            let happens = lock(&shared.script).strike(subject);
            if let Some(answer) = early(&shared, &uri, &happens).await? {
                return Ok(answer);
            }
            blob(&shared, digest, &request, &happens)
        }
        Route::Uploads(name) if method == Method::POST => {
            start_upload(&shared, name, request).await
        }
        Route::Upload(name, id) if method == Method::PATCH || method == Method::PUT => {
            upload(&shared, name, id, request).await
        }
        _ => Ok(refuse(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED")),
    }
}

/// What misbehaviour makes of a request before it is looked at.
async fn early(shared: &Shared, uri: &Uri, happens: &[Misbehaviour]) -> io::Result<Option<Answer>> {
    for misbehaviour in happens {
        let location = match misbehaviour {
            Misbehaviour::Hangup => return Err(io::ErrorKind::ConnectionAborted.into()),
            Misbehaviour::Silence => {
                pending::<()>().await;
                return Ok(None);
            }
            Misbehaviour::Status {
                status,
                retry_after,
            } => {
                let status = StatusCode::from_u16(*status).map_err(io::Error::other)?;
                let mut answer = refuse(status, "SCRIPTED");
                if let Some(text) = retry_after {
                    header(&mut answer, RETRY_AFTER, text);
                }
                return Ok(Some(answer));
            }
            Misbehaviour::RedirectElsewhere => {
                format!("{}://{}{}", scheme(shared), shared.elsewhere, uri.path())
            }
            Misbehaviour::RedirectLoop => uri.path().to_owned(),
            Misbehaviour::RedirectTo(to) => to.clone(),
            _ => continue,
        };
        let mut answer = refuse(StatusCode::TEMPORARY_REDIRECT, "SCRIPTED");
        header(&mut answer, LOCATION, &location);
        return Ok(Some(answer));
    }
    Ok(None)
}

fn manifest(
    shared: &Shared,
    name: &str,
    version: &str,
    method: &Method,
    happens: &[Misbehaviour],
) -> Answer {
    let Some(manifest) = shared.store.manifest(name, version) else {
        return refuse(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN");
    };
    let mut digest = Digest::of(&manifest.bytes);
    let mut bytes = manifest.bytes.to_vec();
    for misbehaviour in happens {
        match misbehaviour {
            Misbehaviour::AnnounceDigest(other) => digest = *other,
            Misbehaviour::CorruptAt(at) => {
                if let Some(byte) = usize::try_from(*at).ok().and_then(|at| bytes.get_mut(at)) {
                    *byte ^= 1;
                }
            }
            _ => {}
        }
    }
    let length = bytes.len();
    let body = if *method == Method::HEAD {
        empty()
    } else {
        full(bytes)
    };
    let mut answer = Response::new(body);
    header(&mut answer, CONTENT_LENGTH, &length.to_string());
    header(&mut answer, CONTENT_TYPE, &manifest.media_type);
    header(&mut answer, DIGEST_HEADER, &digest.to_string());
    answer
}

/// The names of the repositories, a page of `n` after `last`.
fn catalog(shared: &Shared, uri: &Uri) -> Answer {
    let last = query(uri, "last").unwrap_or_default();
    let most = query(uri, "n").and_then(|n| n.parse().ok());
    let names = shared.store.names().into_iter();
    let mut names: Vec<String> = names.filter(|name| *name > last).collect();
    let more = most.filter(|most| names.len() > *most);
    names.truncate(more.unwrap_or(usize::MAX));
    let body = serde_json::json!({"repositories": names});
    let mut answer = plain(StatusCode::OK, &body.to_string());
    if let (Some(most), Some(last)) = (more, names.last()) {
        let link = format!("</v2/_catalog?n={most}&last={last}>; rel=\"next\"");
        header(&mut answer, LINK, &link);
    }
    answer
}

/// The manifests whose subject is this one.
fn referrers(
    shared: &Shared,
    (name, digest): (&str, &str),
    uri: &Uri,
    happens: &[Misbehaviour],
) -> Answer {
    let mut wanted = query(uri, "artifactType");
    let mut page = usize::MAX;
    for misbehaviour in happens {
        match misbehaviour {
            Misbehaviour::IgnoreFilter => wanted = None,
            Misbehaviour::Pages(most) => page = *most,
            Misbehaviour::Say(text) => return plain(StatusCode::OK, text),
            _ => {}
        }
    }
    let from = query(uri, "from").and_then(|from| from.parse().ok());
    let found = shared.store.referrers(name, digest).into_iter();
    let is_wanted = |found: &serde_json::Value| {
        let wanted = wanted.as_deref();
        wanted.is_none_or(|wanted| found["artifactType"] == wanted)
    };
    let mut found: Vec<_> = found.filter(is_wanted).skip(from.unwrap_or(0)).collect();
    let more = found.len() > page;
    found.truncate(page);
    let media_type = "application/vnd.oci.image.index.v1+json";
    let body = serde_json::json!({"schemaVersion": 2, "mediaType": media_type, "manifests": found});
    let mut answer = plain(StatusCode::OK, &body.to_string());
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, http::HeaderValue::from_static(media_type));
    if wanted.is_some() {
        header(&mut answer, FILTERS_HEADER, "artifactType");
    }
    if more {
        let next = from.unwrap_or(0) + page;
        let filter = wanted.map_or_else(String::new, |wanted| format!("&artifactType={wanted}"));
        let link = format!("</v2/{name}/referrers/{digest}?from={next}{filter}>; rel=\"next\"");
        header(&mut answer, LINK, &link);
    }
    answer
}

async fn put_manifest(
    shared: &Shared,
    name: &str,
    version: &str,
    request: Request<Incoming>,
) -> io::Result<Answer> {
    let media_type = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("application/octet-stream")
        .to_owned();
    let body = http_body_util::Limited::new(request.into_body(), MAX_MANIFEST_BYTES);
    let bytes = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let digest = Digest::of(&bytes).to_string();
    if version.contains(':') && version != digest {
        return Ok(refuse(StatusCode::BAD_REQUEST, "DIGEST_INVALID"));
    }
    for version in [version, digest.as_str()] {
        shared
            .store
            .put_manifest(name, version, &media_type, bytes.clone());
    }
    let mut answer = refuse(StatusCode::CREATED, "");
    header(
        &mut answer,
        LOCATION,
        &format!("/v2/{name}/manifests/{digest}"),
    );
    header(&mut answer, DIGEST_HEADER, &digest);
    Ok(answer)
}

fn blob(
    shared: &Arc<Shared>,
    digest: &str,
    request: &Request<Incoming>,
    happens: &[Misbehaviour],
) -> io::Result<Answer> {
    let Ok(digest) = digest.parse::<Digest>() else {
        return Ok(refuse(StatusCode::BAD_REQUEST, "DIGEST_INVALID"));
    };
    let Some(blob) = shared.store.blob(&digest)? else {
        return Ok(refuse(StatusCode::NOT_FOUND, "BLOB_UNKNOWN"));
    };
    let size = blob.size();
    let mut plan = Plan {
        digest,
        blob,
        from: 0,
        to: size,
        ending: None,
        corrupt: Vec::new(),
        overrun: 0,
    };
    let mut range = request
        .headers()
        .get(RANGE)
        .and_then(|value| parse_range(value.to_str().ok()?, size));
    let mut chunked = false;
    let mut content_range = None;
    let mut shift = 0;
    for misbehaviour in happens {
        match misbehaviour {
            Misbehaviour::IgnoreRange => range = None,
            Misbehaviour::IgnoreEnd => {
                range = range.map(|part| part.map(|(first, _)| (first, size - 1)));
            }
            Misbehaviour::ShortRange(by) => {
                let short = |(first, last): (u64, u64)| (first, last.min(first + by - 1));
                range = range.map(|part| part.map(short));
            }
            Misbehaviour::RefuseRange(status) if range.is_some() => {
                let status = StatusCode::from_u16(*status).map_err(io::Error::other)?;
                return Ok(refuse(status, "SCRIPTED"));
            }
            Misbehaviour::ContentRange(text) => content_range = Some(text.clone()),
            Misbehaviour::ShiftRange(by) => shift = *by,
            Misbehaviour::Chunked => chunked = true,
            Misbehaviour::Overrun(by) => {
                chunked = true;
                plan.overrun = *by;
            }
            Misbehaviour::CorruptAt(at) => plan.corrupt.push(*at),
            Misbehaviour::CloseAfter(after) => plan.ending = Some((*after, Ending::Close)),
            Misbehaviour::StallAfter(after) => plan.ending = Some((*after, Ending::Stall)),
            _ => {}
        }
    }
    let mut answer = Response::new(empty());
    match range {
        Some(None) => {
            let mut answer = refuse(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID");
            header(&mut answer, CONTENT_RANGE, &format!("bytes */{size}"));
            return Ok(answer);
        }
        Some(Some((first, last))) => {
            plan.from = (first + shift).min(last);
            plan.to = last + 1;
            *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
            let text = format!("bytes {}-{last}/{size}", plan.from);
            match content_range {
                None => header(&mut answer, CONTENT_RANGE, &text),
                Some(Some(other)) => header(&mut answer, CONTENT_RANGE, &other),
                Some(None) => {}
            }
        }
        None => {}
    }
    if !chunked {
        let length = plan.to - plan.from;
        header(&mut answer, CONTENT_LENGTH, &length.to_string());
    }
    header(&mut answer, ACCEPT_RANGES, "bytes");
    header(&mut answer, CONTENT_TYPE, "application/octet-stream");
    header(&mut answer, DIGEST_HEADER, &digest.to_string());
    if request.method() == Method::GET {
        *answer.body_mut() = StreamBody::new(frames(shared, plan)).boxed_unsync();
    }
    Ok(answer)
}

/// First and last byte of a range: `None` where it isn't understood, `Some(None)` where it lies outside.
fn parse_range(text: &str, size: u64) -> Option<Option<(u64, u64)>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = if first.is_empty() {
        let suffix: u64 = last.parse().ok()?;
        (size.saturating_sub(suffix), size.saturating_sub(1))
    } else if last.is_empty() {
        (first.parse().ok()?, size.saturating_sub(1))
    } else {
        let last: u64 = last.parse().ok()?;
        (first.parse().ok()?, last.min(size.saturating_sub(1)))
    };
    Some((first <= last && first < size).then_some((first, last)))
}

async fn start_upload(
    shared: &Arc<Shared>,
    name: &str,
    request: Request<Incoming>,
) -> io::Result<Answer> {
    let id = shared.store.start_upload()?.to_string();
    if query(request.uri(), "digest").is_some() {
        return upload(shared, name, &id, request).await;
    }
    let mut answer = refuse(StatusCode::ACCEPTED, "");
    let location = format!("/v2/{name}/blobs/uploads/{id}");
    header(&mut answer, LOCATION, &location);
    header(&mut answer, RANGE, "0-0");
    Ok(answer)
}

/// Bytes for an upload; with a digest, its end.
async fn upload(
    shared: &Arc<Shared>,
    name: &str,
    id: &str,
    request: Request<Incoming>,
) -> io::Result<Answer> {
    let digest = query(request.uri(), "digest");
    let ends = request.method() != Method::PATCH;
    let number = id.parse().unwrap_or(0);
    let Some(mut upload) = shared.store.take_upload(number) else {
        return Ok(refuse(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"));
    };
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame.map_err(io::Error::other)?.data_ref() {
            upload.write(data)?;
        }
    }
    if !ends {
        let mut answer = refuse(StatusCode::ACCEPTED, "");
        let location = format!("/v2/{name}/blobs/uploads/{id}");
        header(&mut answer, LOCATION, &location);
        let last = upload.size().saturating_sub(1);
        header(&mut answer, RANGE, &format!("0-{last}"));
        shared.store.put_back(number, upload);
        return Ok(answer);
    }
    let Some(digest) = digest.and_then(|text| text.parse::<Digest>().ok()) else {
        return Ok(refuse(StatusCode::BAD_REQUEST, "DIGEST_INVALID"));
    };
    if !shared.store.finish_upload(upload, digest)? {
        return Ok(refuse(StatusCode::BAD_REQUEST, "DIGEST_INVALID"));
    }
    let mut answer = refuse(StatusCode::CREATED, "");
    header(&mut answer, LOCATION, &format!("/v2/{name}/blobs/{digest}"));
    header(&mut answer, DIGEST_HEADER, &digest.to_string());
    Ok(answer)
}

fn token(shared: &Shared, uri: &Uri, headers: &HeaderMap) -> Answer {
    let Auth::Bearer {
        account,
        life,
        announced,
    } = &shared.auth
    else {
        return refuse(StatusCode::NOT_FOUND, "UNSUPPORTED");
    };
    if let Some((user, password)) = account
        && !is_basic(headers, user, password)
    {
        return refuse(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
    }
    let scopes = queries(uri, "scope")
        .filter_map(|scope| Scope::parse(&scope))
        .collect();
    let token = lock(&shared.tokens).give(scopes, *life);
    let mut body = serde_json::json!({ "token": token });
    if let Some(announced) = announced {
        body["expires_in"] = announced.as_secs().into();
    }
    plain(StatusCode::OK, &body.to_string())
}

/// The answer to a request that lacks what is asked for.
fn unauthorised(
    shared: &Shared,
    headers: &HeaderMap,
    wanted: Option<(&str, &str)>,
) -> Option<Answer> {
    let challenge = match &shared.auth {
        Auth::Open => return None,
        Auth::Basic { user, password } => {
            if is_basic(headers, user, password) {
                return None;
            }
            "Basic realm=\"registry, for tests\"".to_owned()
        }
        Auth::Bearer { .. } => {
            let given = headers
                .get(AUTHORIZATION)
                .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
            if given.is_some_and(|token| lock(&shared.tokens).permits(token, wanted)) {
                return None;
            }
            let scope = wanted.map_or_else(String::new, |(name, action)| {
                let actions = if action == "push" {
                    "pull,push"
                } else {
                    action
                };
                format!(",scope=\"repository:{name}:{actions}\"")
            });
            let happens = lock(&shared.script).strike(Subject::Demand);
            let named = happens.iter().find_map(|what| match what {
                Misbehaviour::NameScope(named) => Some(format!(",scope=\"{named}\"")),
                _ => None,
            });
            let scope = named.unwrap_or(scope);
            let host = if shared.tls {
                format!("localhost:{}", shared.addr.port())
            } else {
                shared.addr.to_string()
            };
            format!(
                "Bearer realm=\"{}://{host}/token\",service=\"e2e, for tests\"{scope}",
                scheme(shared),
            )
        }
    };
    let mut answer = refuse(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
    header(&mut answer, WWW_AUTHENTICATE, &challenge);
    Some(answer)
}

fn is_basic(headers: &HeaderMap, user: &str, password: &str) -> bool {
    let wanted = format!(
        "Basic {}",
        BASE64_STANDARD.encode(format!("{user}:{password}"))
    );
    headers
        .get(AUTHORIZATION)
        .is_some_and(|value| value.as_bytes() == wanted.as_bytes())
}

const fn scheme(shared: &Shared) -> &'static str {
    if shared.tls { "https" } else { "http" }
}

fn query(uri: &Uri, name: &str) -> Option<String> {
    queries(uri, name).next()
}

fn queries(uri: &Uri, name: &str) -> impl Iterator<Item = String> {
    uri.query()
        .unwrap_or_default()
        .split('&')
        .filter_map(move |pair| {
            let (key, value) = pair.split_once('=')?;
            (key == name).then(|| unescape(value))
        })
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = (*first == b'%')
            .then(|| after.get(..2))
            .flatten()
            .and_then(|hex| u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn header(answer: &mut Answer, name: HeaderName, value: &str) {
    // Only a script can bring a value that a header can't hold; it then isn't sent.
    if let Ok(value) = value.parse() {
        answer.headers_mut().insert(name, value);
    }
}

fn refuse(status: StatusCode, code: &str) -> Answer {
    let body = if code.is_empty() {
        String::new()
    } else {
        serde_json::json!({"errors": [{"code": code, "message": status.canonical_reason()}]})
            .to_string()
    };
    plain(status, &body)
}

fn plain(status: StatusCode, body: &str) -> Answer {
    let mut answer = Response::new(full(body.to_owned()));
    *answer.status_mut() = status;
    header(&mut answer, CONTENT_TYPE, "application/json");
    answer
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn empty() -> Body {
    full(Bytes::new())
}
