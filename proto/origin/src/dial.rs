//! Connections to registries, directly or through a proxy.
//!
//! A registry with TLS is reached through a tunnel, for which the client asks the proxy with CONNECT (RFC 9110
//! §9.3.6). The proxy then sees the registry's name and port, but no content. A registry without TLS is reached by
//! requests that the proxy forwards (RFC 9112 §3.2.2), because many proxies open tunnels only to ports of TLS.
//!
//! hyper-util's own tunnel isn't used, because its errors lack the status with which the proxy refused.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Request, StatusCode, Uri,
    header::{HOST, PROXY_AUTHORIZATION, USER_AGENT},
};
use http_body_util::Empty;
use hyper::{
    client::conn::http1,
    rt::{Read, ReadBufCursor, Write},
};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector},
    rt::TokioIo,
};
use tokio::{net::TcpStream, time::timeout};
use tower_service::Service;

use crate::{
    error::{BoxError, ProxyFault, chain, find},
    location::authority,
    proxy::{Proxies, Proxy},
};

/// The most header fields in an answer. hyper limits their bytes by its read buffer.
pub(crate) const MAX_HEADERS: usize = 100;
/// The read buffer of a connection. This is also the most bytes of an answer's headers.
pub(crate) const READ_BUFFER_BYTES: usize = 256 << 10;

/// Makes connections. Another layer adds TLS for registries that speak it.
#[derive(Clone)]
pub(crate) struct Dialler {
    pub(crate) tcp: HttpConnector,
    /// TCP or TLS, according to the proxy's address.
    pub(crate) to_proxy: HttpsConnector<HttpConnector>,
    pub(crate) proxies: Proxies,
    /// How long a proxy may take to make a connection through it.
    pub(crate) patience: Duration,
    pub(crate) user_agent: HeaderValue,
}

/// The fault of a proxy that answered with an error status.
pub(crate) fn refused(proxy: &Proxy, request: &str, to: &Uri, status: StatusCode) -> ProxyFault {
    let next = if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
        "; set the user and the password that it asks for"
    } else {
        ""
    };
    fault(
        proxy,
        format!("refused {request} to {}: {status}{next}", target(to)),
        status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS,
    )
}

/// The host and port that a tunnel leads to.
fn target(uri: &Uri) -> String {
    if uri.port().is_some() {
        return authority(uri);
    }
    let port = if uri.scheme_str() == Some("http") {
        80
    } else {
        443
    };
    format!("{}:{port}", authority(uri))
}

type Dialling = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

impl Service<Uri> for Dialler {
    type Response = Stream;
    type Error = BoxError;
    type Future = Dialling;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        std::task::ready!(self.tcp.poll_ready(cx))?;
        self.to_proxy.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Some(proxy) = self.proxies.of(&uri) else {
            let dialling = self.tcp.call(uri);
            return Box::pin(async move {
                Ok(Stream {
                    io: MaybeHttpsStream::Http(dialling.await?),
                    forwards: false,
                })
            });
        };
        let dialling = self.to_proxy.call(proxy.uri().clone());
        let user_agent = self.user_agent.clone();
        let patience = self.patience;
        Box::pin(async move {
            let through = async {
                let io = dialling
                    .await
                    .map_err(|error| unreachable(&proxy, error.as_ref()))?;
                if uri.scheme_str() == Some("http") {
                    return Ok(Stream { io, forwards: true });
                }
                let io = tunnel(io, &proxy, &uri, user_agent).await?;
                Ok(Stream {
                    io,
                    forwards: false,
                })
            };
            let late = |_| {
                let cause = format!("gave no connection to {} within {patience:?}", target(&uri));
                Err(fault(&proxy, cause, true))
            };
            Ok(timeout(patience, through).await.unwrap_or_else(late)?)
        })
    }
}

fn fault(proxy: &Proxy, cause: String, is_retryable: bool) -> ProxyFault {
    ProxyFault {
        proxy: proxy.name(),
        cause,
        is_retryable,
    }
}

fn unreachable(proxy: &Proxy, error: &(dyn std::error::Error + 'static)) -> ProxyFault {
    // Waiting doesn't make an untrusted certificate trusted.
    let untrusted = find::<rustls::Error>(error).is_some();
    fault(
        proxy,
        format!("can't be reached: {}", chain(error)),
        !untrusted,
    )
}

/// Asks a proxy for a tunnel over its connection. Afterwards, the connection is the tunnel.
async fn tunnel(
    io: MaybeHttpsStream<TokioIo<TcpStream>>,
    proxy: &Proxy,
    uri: &Uri,
    user_agent: HeaderValue,
) -> Result<MaybeHttpsStream<TokioIo<TcpStream>>, ProxyFault> {
    let broke = |error: hyper::Error| {
        let cause = format!("broke off CONNECT to {}: {}", target(uri), chain(&error));
        fault(proxy, cause, !error.is_parse())
    };
    let nameless = |_| fault(proxy, format!("can't be asked for {}", target(uri)), false);
    let mut request = Request::connect(target(uri))
        .header(HOST, target(uri))
        .header(USER_AGENT, user_agent)
        .body(Empty::<Bytes>::new())
        .map_err(nameless)?;
    if let Some(authorization) = proxy.authorization() {
        let headers = request.headers_mut();
        headers.insert(PROXY_AUTHORIZATION, authorization.clone());
    }
    let (mut sender, connection) = http1::Builder::new()
        .max_headers(MAX_HEADERS)
        .max_buf_size(READ_BUFFER_BYTES)
        .handshake(io)
        .await
        .map_err(broke)?;
    let mut connection = pin!(connection.without_shutdown());
    let mut asking = pin!(sender.send_request(request));
    let mut ended = None;
    let status = loop {
        tokio::select! {
            answer = &mut asking => break answer.map_err(broke)?.status(),
            parts = &mut connection, if ended.is_none() => ended = Some(parts),
        }
    };
    // hyper hands over the connection after any success, as RFC 9110 requires.
    if !status.is_success() {
        return Err(refused(proxy, "CONNECT", uri, status));
    }
    let parts = match ended {
        Some(parts) => parts,
        None => connection.await,
    };
    let parts = parts.map_err(broke)?;
    if !parts.read_buf.is_empty() {
        // In TLS, the client speaks first. So these bytes are the proxy's own.
        let cause = format!("sent bytes of its own in the tunnel to {}", target(uri));
        return Err(fault(proxy, cause, false));
    }
    Ok(parts.io)
}

/// A connection to a registry, or to a proxy before it.
pub(crate) struct Stream {
    io: MaybeHttpsStream<TokioIo<TcpStream>>,
    /// Whether the other end is a proxy that forwards requests, which must be told each request's host.
    forwards: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.forwards)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
