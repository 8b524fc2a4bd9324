//! HTTP/1.1 servers for a router: over TLS with the fleet's own certificate, or plain on loopback.
//!
//! Anybody who reaches a server's port can connect. So this file bounds, for every client: how many connections there
//! are at one time, which of them gives way ([`wire::Crowd`]), and how long a request's head and body may take. The
//! cost of a request itself is bounded where the request is answered.

use std::{
    convert::Infallible,
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant, SystemTime},
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use http::{HeaderValue, StatusCode, header};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::{
    AlertDescription, ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};
use wire::{Crowd, LocalNames, Place};

use self::exchange::{Arriving, Exchange, Leaving};
use crate::{
    authority::Identity,
    driver::{Cause, Refused},
};

mod exchange;

/// The time within which a client has to finish the TLS handshake, and the time within which it has to send its
/// request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The time within which a request's body has to arrive after its head. The largest body has 1 MiB.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The most connections at one time: 64 operators who follow progress, and a fleet that enrols. Beyond it, the
/// connection that has waited longest gives way.
const CONNECTIONS: usize = 512;
/// A connection that has sent no whole request for this long gives way to another one from its own address. A handshake
/// and a small request take a few round trips.
const GRACE: Duration = Duration::from_secs(1);
/// How long requests may go on after the coordinator was told to stop.
const DRAIN: Duration = Duration::from_secs(2);
/// The pause after a failed accept, for example when no file handle is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The coordinator's current certificate, which is replaced before it expires.
pub(crate) struct Certificate(RwLock<Arc<CertifiedKey>>);

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificate")
    }
}

impl Certificate {
    pub(crate) fn new(identity: &Identity) -> Result<Self, rustls::Error> {
        Ok(Self(RwLock::new(certified(identity)?)))
    }

    pub(crate) fn replace(&self, identity: &Identity) -> Result<(), rustls::Error> {
        let fresh = certified(identity)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }
}

fn certified(identity: &Identity) -> Result<Arc<CertifiedKey>, rustls::Error> {
    let provider = rustls::crypto::ring::default_provider();
    let key = identity.key.clone_key().into();
    let certified = CertifiedKey::from_der(identity.chain.clone(), key, &provider)?;
    Ok(Arc::new(certified))
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(
            self.0
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        )
    }
}

/// TLS 1.3 with this certificate. There are no client certificates: callers show a token.
pub(crate) fn tls(certificate: Arc<Certificate>) -> Result<TlsAcceptor, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config).into())
}

/// A router that hands each request to the latest router. The routes change with the leader, and the port doesn't.
pub(crate) fn latest(routes: watch::Receiver<Router>) -> Router {
    Router::new().fallback(move |request: Request| {
        // The guard isn't held across the await, so that a slow request doesn't block writers.
        let current = routes.borrow().clone();
        async move {
            let response: Result<Response, Infallible> =
                TowerToHyperService::new(current).call(request).await;
            response.unwrap_or_else(|never| match never {})
        }
    })
}

/// TLS, and the channel for reports about clients that don't take its certificate.
#[derive(Clone)]
pub(crate) struct Guarded {
    pub(crate) tls: TlsAcceptor,
    pub(crate) refusals: mpsc::Sender<Refused>,
}

impl Guarded {
    /// A handshake failed. It is reported when the client says that the certificate has expired: the client may be a
    /// host with a wrong clock, which can't say so itself.
    fn failed(&self, remote: SocketAddr, error: &io::Error) {
        debug!(%remote, %error, "TLS handshake failed");
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref());
        if !matches!(
            tls,
            Some(rustls::Error::AlertReceived(
                AlertDescription::CertificateExpired
            ))
        ) {
            return;
        }
        let refused = Refused {
            host: None,
            address: SocketAddr::new(remote.ip().to_canonical(), remote.port()),
            cause: Cause::Clock(SystemTime::now()),
        };
        // the channel may be full; the client's next attempt is reported again
        drop(self.refusals.try_send(refused));
    }
}

/// The IP address of a request's connection. Each request has it as an extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remote(pub(crate) IpAddr);

/// Answers only requests for an address, for `localhost` or for one of these names; see [`LocalNames`].
pub(crate) fn local_only(router: Router, names: LocalNames) -> Router {
    let check = move |request: Request, next: Next| {
        let foreign = hosts(&request).find(|host| !names.admits(host));
        let refusal = foreign.map(|host| {
            let host: String = host.chars().take(100).collect();
            let words = format!(
                "this server is asked by an address or as localhost, not as {host:?}; coordinator.admin_names adds names\n"
            );
            (StatusCode::FORBIDDEN, words).into_response()
        });
        async move {
            match refusal {
                Some(refusal) => refusal,
                None => next.run(request).await,
            }
        }
    };
    router.layer(middleware::from_fn(check))
}

/// The hosts that a request names, in its target and in its header. A host that isn't text counts as an empty name.
fn hosts(request: &Request) -> impl Iterator<Item = &str> {
    let target = request
        .uri()
        .authority()
        .map(|authority| authority.as_str());
    let named = request.headers().get_all(header::HOST).iter();
    target
        .into_iter()
        .chain(named.map(|host| host.to_str().unwrap_or_default()))
}

/// Serves until `shutdown`. Then requests have [`DRAIN`] to finish.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<Guarded>,
    router: Router,
    shutdown: CancellationToken,
) {
    let crowd = Crowd::new(CONNECTIONS, 0, GRACE);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    let error: tokio::task::JoinError = error;
                    error!(%error, "an HTTP connection was cut short");
                }
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "HTTP connection couldn't be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = crowd.enter(remote.ip(), Instant::now()) else {
            debug!(%remote, "HTTP connection turned away: too many");
            continue;
        };
        let (tls, router, shutdown) = (tls.clone(), router.clone(), shutdown.clone());
        let place = Arc::new(place);
        connections.spawn(async move {
            tokio::select! {
                () = one(stream, remote, tls, router, &place, shutdown) => {}
                () = place.lost() => debug!(%remote, "HTTP connection gave way to another"),
            }
        });
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if timeout(DRAIN, drained).await.is_err() {
        debug!("HTTP connections were cut off at the end");
    }
}

async fn one(
    stream: TcpStream,
    remote: SocketAddr,
    tls: Option<Guarded>,
    router: Router,
    place: &Arc<Place>,
    shutdown: CancellationToken,
) {
    let service = Served {
        router,
        remote: Remote(remote.ip().to_canonical()),
        place: place.clone(),
    };
    // Progress lines are small, and have to be sent at once.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "TCP_NODELAY can't be set");
    }
    match tls {
        None => speak(stream, service, shutdown).await,
        Some(guarded) => match timeout(HEAD_TIMEOUT, guarded.tls.accept(stream)).await {
            Ok(Ok(stream)) => speak(stream, service, shutdown).await,
            Ok(Err(error)) => guarded.failed(remote, &error),
            Err(_) => debug!("TLS handshake took too long"),
        },
    }
}

/// The service that answers the requests of one connection.
struct Served {
    router: Router,
    remote: Remote,
    place: Arc<Place>,
}

impl Served {
    /// Answers a request. When the body takes too long, the answer is 408, whatever the router made of the request.
    fn answer(&self, request: hyper::Request<Incoming>) -> impl Future<Output = Answered> + use<> {
        let exchange = Exchange::new(self.place.clone());
        let mut request = request.map(|body| {
            let arriving = Arriving::new(body, exchange.clone(), BODY_TIMEOUT);
            Body::new(arriving)
        });
        request.extensions_mut().insert(self.remote);
        let router = TowerToHyperService::new(self.router.clone());
        async move {
            let response: Result<Response, Infallible> = router.call(request).await;
            let mut response = response.unwrap_or_else(|never| match never {});
            if exchange.is_late() {
                let words = format!("no whole body within {} s\n", BODY_TIMEOUT.as_secs());
                response = (StatusCode::REQUEST_TIMEOUT, words).into_response();
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            Ok(response.map(|body| Leaving::new(body, exchange)))
        }
    }
}

type Answered = Result<Response<Leaving>, Infallible>;

async fn speak<S>(stream: S, service: Served, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(64 << 10)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(move |request| service.answer(request)),
        );
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "HTTP connection ended early");
    }
}

#[cfg(test)]
mod tests;
