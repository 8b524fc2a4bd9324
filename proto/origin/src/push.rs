//! Puts blobs and manifests into a registry: for tests, generators and the demo. The programs only read.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::Stream;
use http::{
    HeaderMap, HeaderValue, Method, Request, StatusCode, Uri,
    header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION},
};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use proto::Digest;
use tokio::time::timeout;

use crate::{
    auth::Access,
    client::{Authorization, RequestBody},
    error::OriginError,
    location::{authority, escape, resolve, same_server},
    repository::{Repository, Version},
};

impl Repository {
    /// Whether the repository has this blob.
    ///
    /// # Errors
    /// See [`OriginError`]. A blob that isn't there is an answer, not an error.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, OriginError> {
        let what = self.what_blob(digest);
        let path = format!("blobs/{digest}");
        let headers = HeaderMap::new();
        // Asked for with the right to push, since it is asked before a push.
        let answer = self
            .ask(&what, Access::Push, Method::HEAD, &path, &headers)
            .await;
        match answer {
            Ok(_) => Ok(true),
            Err(OriginError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Pushes a blob of `size` bytes from a stream, in one piece.
    ///
    /// # Errors
    /// See [`OriginError`]. The registry checks the digest; a stream that fails or has another length is
    /// [`OriginError::Body`].
    pub async fn push_blob<S>(
        &self,
        digest: &Digest,
        size: u64,
        bytes: S,
    ) -> Result<(), OriginError>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let what = self.what_blob(digest);
        let upload = self.start_upload(&what).await?;
        let joint = if upload.query().is_some() { "&" } else { "?" };
        let text = format!("{upload}{joint}digest={}", escape(&digest.to_string()));
        let uri: Uri = text.parse().map_err(|_| OriginError::Malformed {
            what: what.clone(),
            host: authority(&upload),
            cause: "the upload's address can't be extended".to_owned(),
        })?;
        let moved = Arc::new(AtomicU64::new(0));
        let failure = Failure::default();
        let body = Counted {
            bytes: Box::pin(bytes),
            left: size,
            moved: Arc::clone(&moved),
            failure: failure.clone(),
        };
        let body = StreamBody::new(body).boxed_unsync();
        let mut headers = HeaderMap::new();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
        let sent = self.put(&what, &uri, headers, body, &moved).await;
        match failure.take() {
            Some(cause) => Err(OriginError::Body { what, cause }),
            None => sent,
        }
    }

    /// Pushes a manifest under a tag or its digest, and returns the digest.
    ///
    /// # Errors
    /// See [`OriginError`].
    pub async fn push_manifest(
        &self,
        version: &Version,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, OriginError> {
        let what = self.what_manifest(version);
        let digest = Digest::of(&bytes);
        let uri = self.uri(&what, &format!("manifests/{version}"))?;
        let mut headers = HeaderMap::new();
        let media_type = HeaderValue::from_str(media_type).map_err(|_| OriginError::Body {
            what: what.clone(),
            cause: "its type can't be sent in a header".to_owned(),
        })?;
        headers.insert(CONTENT_TYPE, media_type);
        // Learns what the registry demands, since the PUT itself can't be repeated in general.
        let path = format!("manifests/{version}");
        let none = HeaderMap::new();
        match self
            .ask(&what, Access::Push, Method::HEAD, &path, &none)
            .await
        {
            Ok(_) | Err(OriginError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let body = Full::new(bytes)
            .map_err(|never| match never {})
            .boxed_unsync();
        self.put(&what, &uri, headers, body, &AtomicU64::new(0))
            .await?;
        Ok(digest)
    }

    /// Where the registry wants a blob's bytes.
    async fn start_upload(&self, what: &str) -> Result<Uri, OriginError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
        let answer = self
            .ask(what, Access::Push, Method::POST, "blobs/uploads/", &headers)
            .await?;
        answer
            .response
            .headers()
            .get(LOCATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|location| resolve(&answer.from, location))
            .ok_or_else(|| OriginError::Malformed {
                what: what.to_owned(),
                host: authority(&answer.from),
                cause: "an upload without a place to go".to_owned(),
            })
    }

    /// One PUT. The body can't be sent twice, so a 401 is final: what comes before a PUT has fetched a token.
    async fn put(
        &self,
        what: &str,
        uri: &Uri,
        headers: HeaderMap,
        body: RequestBody,
        moved: &AtomicU64,
    ) -> Result<(), OriginError> {
        let client = self.client();
        let host = authority(uri);
        if uri.scheme_str() == Some("http") && !client.plain_http().allows(&host) {
            return Err(OriginError::Redirect {
                what: what.to_owned(),
                host,
                cause: "it leads to a place without TLS".to_owned(),
            });
        }
        let registry = self.uri(what, "")?;
        let authorization: Option<Authorization> = if same_server(&registry, uri) {
            self.authorization(Access::Push).await?
        } else {
            None
        };
        let (parts, _) = client
            .request(&Method::PUT, uri, &headers, authorization.as_ref())
            .into_parts();
        let mut sending = Box::pin(client.send(what, Request::from_parts(parts, body)));
        // An answer comes after the body; what is waited for until then is that the body moves.
        let mut before = moved.load(Ordering::Relaxed);
        let response = loop {
            let waited = client.answer_timeout();
            if let Ok(result) = timeout(waited, &mut sending).await {
                break result?;
            }
            let now = moved.load(Ordering::Relaxed);
            if now == before {
                return Err(OriginError::Timeout {
                    what: what.to_owned(),
                    host,
                    waited,
                });
            }
            before = now;
        };
        match response.status() {
            StatusCode::CREATED | StatusCode::OK | StatusCode::NO_CONTENT => Ok(()),
            _ => Err(client.refusal(what, uri, response).await),
        }
    }
}

/// Why a body failed, where hyper only says that it did.
#[derive(Clone, Debug, Default)]
struct Failure(Arc<std::sync::Mutex<Option<String>>>);

impl Failure {
    fn set(&self, cause: String) {
        if let Ok(mut slot) = self.0.lock() {
            slot.get_or_insert(cause);
        }
    }

    fn take(&self) -> Option<String> {
        self.0.lock().ok()?.take()
    }
}

/// A stream whose bytes are counted, and which has to have as many as announced.
struct Counted {
    bytes: Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>,
    left: u64,
    moved: Arc<AtomicU64>,
    failure: Failure,
}

impl Stream for Counted {
    type Item = Result<Frame<Bytes>, crate::client::BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let cause = match std::task::ready!(self.bytes.as_mut().poll_next(cx)) {
            None if self.left == 0 => return Poll::Ready(None),
            None => format!("the source ended {} bytes early", self.left),
            Some(Err(error)) => error.to_string(),
            Some(Ok(bytes)) => match self.left.checked_sub(bytes.len() as u64) {
                Some(left) => {
                    self.left = left;
                    self.moved.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                None => "the source has more bytes than announced".to_owned(),
            },
        };
        self.failure.set(cause.clone());
        Poll::Ready(Some(Err(cause.into())))
    }
}
