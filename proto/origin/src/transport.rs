//! One HTTP request and its answer: connections, TLS, timeouts and redirects.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, LOCATION, PROXY_AUTHORIZATION, RETRY_AFTER, USER_AGENT},
};
use http_body_util::{BodyExt as _, Empty, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::RootCertStore;
use tokio::time::{Instant, timeout};

use crate::{
    backoff::parse_retry_after,
    config::Config,
    dial::{self, Dialler, MAX_HEADERS, READ_BUFFER_BYTES},
    error::{BoxError, ConfigError, OriginError, at_proxy, broken, from_status, said},
    location::{PlainHttp, authority, resolve, same_server},
    proxy::{Proxies, Proxy},
};

/// The most redirects that are followed. Registries need one.
const MAX_REDIRECTS: usize = 5;
/// The most bytes that are read of an error's body.
const MAX_ERROR_BYTES: usize = 8 << 10;
/// The least average speed of a body that is read as a whole, once the idle timeout is over. Half of the slowest line
/// over which images are staged.
const SLOWEST_BODY_BYTES_PER_S: usize = 32 << 10;
/// How long an unused connection is kept. Common servers close theirs after a minute, so this is less.
const KEPT: Duration = Duration::from_secs(30);

pub(crate) type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// Speaks HTTP/1.1 to registries, and keeps connections. Clones share the connections.
#[derive(Clone)]
pub(crate) struct Transport {
    inner: Arc<Inner>,
    plain_http: Arc<PlainHttp>,
}

struct Inner {
    http: legacy::Client<HttpsConnector<Dialler>, RequestBody>,
    proxies: Proxies,
    connect_timeout: Duration,
    idle_timeout: Duration,
    user_agent: HeaderValue,
}

/// A header that is sent to the registry only.
pub(crate) struct Authorization(pub(crate) HeaderValue);

/// An answer, and the address that it came from after redirects.
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    pub(crate) from: Uri,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("idle_timeout", &self.inner.idle_timeout)
            .field("proxies", &self.inner.proxies)
            .field("plain_http", &self.plain_http)
            .finish_non_exhaustive()
    }
}

impl Transport {
    /// A transport without connections.
    pub(crate) fn new(config: Config) -> Result<Self, ConfigError> {
        let mut roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        for root in config.extra_roots {
            roots.add(root).map_err(ConfigError::Root)?;
        }
        roots.add_parsable_certificates(config.system_roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(ConfigError::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(config.connect_timeout));
        let user_agent = HeaderValue::from_str(&config.user_agent)
            .map_err(|_| ConfigError::UserAgent(config.user_agent))?;
        let dialler = Dialler {
            to_proxy: with_tls(tls.clone(), tcp.clone()),
            tcp,
            proxies: config.proxies.clone(),
            patience: config.connect_timeout,
            user_agent: user_agent.clone(),
        };
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEPT)
            .http1_max_headers(MAX_HEADERS)
            .http1_max_buf_size(READ_BUFFER_BYTES)
            .build(with_tls(tls, dialler));
        Ok(Self {
            inner: Arc::new(Inner {
                http,
                proxies: config.proxies,
                connect_timeout: config.connect_timeout,
                idle_timeout: config.idle_timeout,
                user_agent,
            }),
            plain_http: Arc::new(config.plain_http),
        })
    }

    /// The same transport, with the same connections, but with other registries without TLS.
    pub(crate) fn with_plain_http(&self, plain_http: PlainHttp) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            plain_http: Arc::new(plain_http),
        }
    }

    pub(crate) fn plain_http(&self) -> &PlainHttp {
        &self.plain_http
    }

    pub(crate) fn idle_timeout(&self) -> Duration {
        self.inner.idle_timeout
    }

    /// How long an answer's headers may take. This includes connecting and TLS.
    pub(crate) fn answer_timeout(&self) -> Duration {
        self.inner.connect_timeout + self.inner.idle_timeout
    }

    /// Sends a GET or HEAD and follows redirects. The authorization is sent while the server stays the same.
    ///
    /// An answer with any final status is returned.
    pub(crate) async fn follow(
        &self,
        what: &str,
        method: Method,
        uri: &Uri,
        headers: &HeaderMap,
        authorization: Option<&Authorization>,
    ) -> Result<Answer, OriginError> {
        let mut at = uri.clone();
        for _ in 0..=MAX_REDIRECTS {
            let carried = authorization.filter(|_| same_server(uri, &at));
            let request = self.request(&method, &at, headers, carried);
            let response = self.hop(what, request).await?;
            if !is_redirect(response.status()) {
                return Ok(Answer { response, from: at });
            }
            at = self.redirected(what, &at, &response)?;
        }
        Err(OriginError::Redirect {
            what: what.to_owned(),
            host: authority(&at),
            cause: format!("it is more than the {MAX_REDIRECTS}th in a row"),
        })
    }

    /// Sends a request to one server and doesn't follow redirects. Any status but success is an error.
    pub(crate) async fn once(
        &self,
        what: &str,
        method: Method,
        uri: &Uri,
        headers: &HeaderMap,
        authorization: Option<Authorization>,
    ) -> Result<Response<Incoming>, OriginError> {
        let request = self.request(&method, uri, headers, authorization.as_ref());
        let response = self.hop(what, request).await?;
        if is_redirect(response.status()) {
            return Err(OriginError::Redirect {
                what: what.to_owned(),
                host: authority(uri),
                cause: "credentials aren't taken elsewhere".to_owned(),
            });
        }
        if !response.status().is_success() {
            return Err(self.refusal(what, uri, response).await);
        }
        Ok(response)
    }

    /// Sends one request and returns one answer with any status.
    pub(crate) async fn hop(
        &self,
        what: &str,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, OriginError> {
        let uri = request.uri().clone();
        let waited = self.answer_timeout();
        match timeout(waited, self.send(what, request)).await {
            Ok(result) => result,
            Err(_) => Err(OriginError::Timeout {
                what: what.to_owned(),
                host: authority(&uri),
                waited,
            }),
        }
    }

    /// Sends one request without a timeout: the caller must have one.
    pub(crate) async fn send(
        &self,
        what: &str,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, OriginError> {
        let uri = request.uri().clone();
        // A proxy that forwards reads the request itself. A proxy that tunnels was given the credentials before.
        let forwards = (uri.scheme_str() == Some("http")).then(|| self.inner.proxies.of(&uri));
        let forwards = forwards.flatten();
        if let Some(authorization) = forwards.as_ref().and_then(Proxy::authorization) {
            let headers = request.headers_mut();
            headers.insert(PROXY_AUTHORIZATION, authorization.clone());
        }
        let sent = self.inner.http.request(request).await;
        let answer = sent.map_err(|error| broken(what, &authority(&uri), &error))?;
        match forwards {
            Some(proxy) if answer.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                let fault = dial::refused(&proxy, "a request", &uri, answer.status());
                Err(at_proxy(what, &fault))
            }
            _ => Ok(answer),
        }
    }

    pub(crate) fn request(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        authorization: Option<&Authorization>,
    ) -> Request<RequestBody> {
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let mut request = Request::new(body);
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = headers.clone();
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, self.inner.user_agent.clone());
        if let Some(Authorization(value)) = authorization {
            headers.insert(AUTHORIZATION, value.clone());
        }
        request
    }

    /// The address that a redirect leads to, if it may be followed.
    fn redirected(
        &self,
        what: &str,
        at: &Uri,
        response: &Response<Incoming>,
    ) -> Result<Uri, OriginError> {
        let refuse = |cause: String| OriginError::Redirect {
            what: what.to_owned(),
            host: authority(at),
            cause,
        };
        let next = response
            .headers()
            .get(LOCATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|location| resolve(at, location))
            .ok_or_else(|| refuse("it leads to no HTTP address".to_owned()))?;
        let host = authority(&next);
        if next.scheme_str() == Some("http") && !self.plain_http().allows(&host) {
            return Err(refuse(format!("it leads to {host} without TLS")));
        }
        Ok(next)
    }

    /// The error for an answer that isn't a success. Reads a little of the body for its text.
    pub(crate) async fn refusal(
        &self,
        what: &str,
        from: &Uri,
        response: Response<Incoming>,
    ) -> OriginError {
        let host = authority(from);
        let (parts, body) = response.into_parts();
        let retry_after = parts
            .headers
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|text| parse_retry_after(text, SystemTime::now()));
        // The text is optional: an answer that breaks off or is too long gives only its status.
        let text = self
            .whole(what, &host, body, MAX_ERROR_BYTES)
            .await
            .unwrap_or_default();
        from_status(
            what.to_owned(),
            host,
            parts.status,
            retry_after,
            said(&text),
        )
    }

    /// Reads a whole body of at most `limit` bytes. It may take the idle timeout, and time in proportion to the bytes
    /// that came. So a body whose bytes arrive one by one ends within a minute or two, whatever its size.
    pub(crate) async fn whole(
        &self,
        what: &str,
        host: &str,
        mut body: Incoming,
        limit: usize,
    ) -> Result<Bytes, OriginError> {
        let idle = self.inner.idle_timeout;
        let began = Instant::now();
        let mut whole = BytesMut::new();
        loop {
            let came = Duration::from_secs((whole.len() / SLOWEST_BODY_BYTES_PER_S) as u64);
            let left = (idle + came).saturating_sub(began.elapsed());
            let frame = match timeout(left.min(idle), body.frame()).await {
                Ok(frame) => frame,
                Err(_) if whole.is_empty() => {
                    return Err(OriginError::Timeout {
                        what: what.to_owned(),
                        host: host.to_owned(),
                        waited: idle,
                    });
                }
                Err(_) => {
                    return Err(OriginError::Connection {
                        what: what.to_owned(),
                        host: host.to_owned(),
                        cause: format!(
                            "{} bytes of the answer came in {} s",
                            whole.len(),
                            began.elapsed().as_secs()
                        ),
                    });
                }
            };
            match frame {
                None => return Ok(whole.freeze()),
                Some(Err(error)) => return Err(broken(what, host, &error)),
                Some(Ok(frame)) => {
                    let Some(data) = frame.data_ref() else {
                        continue;
                    };
                    let found = whole.len() + data.len();
                    if found > limit {
                        return Err(OriginError::TooLarge {
                            what: what.to_owned(),
                            limit: limit as u64,
                            found: found as u64,
                        });
                    }
                    whole.extend_from_slice(data);
                }
            }
        }
    }
}

const fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn with_tls<T>(tls: rustls::ClientConfig, connector: T) -> HttpsConnector<T> {
    HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector)
}
