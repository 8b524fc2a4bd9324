//! HTTP/1.1 servers for a router: over TLS with the fleet's own certificate, or plain on loopback.

use std::{
    convert::Infallible,
    fmt, io,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use axum::{Router, extract::Request, response::Response};
use hyper::{server::conn::http1, service::Service as _};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use link::utc;
use rustls::{
    AlertDescription, ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::{authority::Identity, driver::Refused};

/// A client is through the TLS handshake, and sends its request's head, within this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at one time: 64 operators who follow progress, and a fleet that enrols.
const CONNECTIONS: usize = 512;
/// Requests may finish for so long after the coordinator was told to stop.
const DRAIN: Duration = Duration::from_secs(2);
/// After an accept that failed (no file handle left), the next one waits.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The coordinator's certificate as it is now; replaced before it expires.
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

/// TLS 1.3 with that certificate. No client certificates: who may ask shows a token.
pub(crate) fn tls(certificate: Arc<Certificate>) -> Result<TlsAcceptor, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config).into())
}

/// Routes each request as the latest router says: what is served changes with who leads, the port doesn't.
pub(crate) fn latest(routes: watch::Receiver<Router>) -> Router {
    Router::new().fallback(move |request: Request| {
        // No guard lives across the await: writers must not wait for a slow request.
        let current = routes.borrow().clone();
        async move {
            let response: Result<Response, Infallible> =
                TowerToHyperService::new(current).call(request).await;
            response.unwrap_or_else(|never| match never {})
        }
    })
}

/// TLS, and who is told of clients that don't take its certificate.
#[derive(Clone)]
pub(crate) struct Guarded {
    pub(crate) tls: TlsAcceptor,
    pub(crate) refusals: mpsc::Sender<Refused>,
}

impl Guarded {
    /// A handshake failed. A client whose clock is wrong is worth a word: it may be a host, which can't say so itself.
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
            reason: "expired",
            message: format!(
                "by its clock the certificate of this coordinator's API isn't good, and by the clock here it is {}; \
                 set the clock that is wrong",
                utc(SystemTime::now())
            ),
        };
        // one of many: the next attempt tells it again
        drop(self.refusals.try_send(refused));
    }
}

/// Serves until `shutdown`, and then lets requests finish for a moment.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<Guarded>,
    router: Router,
    shutdown: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
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
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            debug!(%remote, "HTTP connection turned away: too many");
            continue;
        };
        let (tls, router, shutdown) = (tls.clone(), router.clone(), shutdown.clone());
        connections.spawn(async move {
            one(stream, remote, tls, router, shutdown).await;
            drop(slot);
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
    shutdown: CancellationToken,
) {
    // Progress lines are small and wanted at once.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "TCP_NODELAY can't be set");
    }
    match tls {
        None => speak(stream, router, shutdown).await,
        Some(guarded) => match timeout(HEAD_TIMEOUT, guarded.tls.accept(stream)).await {
            Ok(Ok(stream)) => speak(stream, router, shutdown).await,
            Ok(Err(error)) => guarded.failed(remote, &error),
            Err(_) => debug!("TLS handshake took too long"),
        },
    }
}

async fn speak<S>(stream: S, router: Router, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
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
