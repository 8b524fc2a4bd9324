//! The registry mirror: a read-only OCI distribution API for this host's own clients (`tart pull --insecure`,
//! containerd, skopeo …).
//!
//! A blob that isn't here becomes a content of the swarm: hosts that ask for the same one share one copy from the
//! registry. `request` says what is asked for, `upstream` who may have it, `serve` answers, `blobs` and `blob`
//! keep the bytes; what is fetched from whom is the driver's and the swarm's business (`driver/mirror`). Nothing is
//! pushed here, and nothing is served to other machines unless TLS and a token are configured.

pub(crate) mod blob;
pub(crate) mod blobs;
mod range;
mod request;
#[cfg(target_os = "linux")]
mod sendfile;
mod serve;
mod upstream;

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use origin::Secret;
use proto::HostId;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::sleep,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use self::{
    blobs::{Blobs, Limits},
    serve::{Content, Pulse, Service},
    upstream::Upstreams,
};
pub(crate) use self::{
    request::registry,
    serve::Wish,
    upstream::{is_away, is_refusal},
};
use crate::{fetch::Origin, metrics::Metrics, platform};

/// Clients at one time; more wait to be accepted. tart opens four, a busy containerd a dozen.
const CONNECTIONS: usize = 256;
/// Wishes that wait for the driver; more wait in their connections.
const WISHES: usize = 64;
/// A request's head has to come within this time, also the first of a new connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The most that a request's head may take.
const HEAD_BYTES: usize = 64 << 10;
/// A client that takes nothing for so long is let go: it holds a connection and keeps a blob from being evicted.
const IDLE: Duration = Duration::from_mins(5);

/// What a client gets before the headers when something can't be had for now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnTrouble {
    /// `not-found` for clients that name their upstream by `ns=` (containerd falls back by itself), `wait` for others.
    #[default]
    Auto,
    /// It waits; at last its connection is broken, so that it tries again.
    Wait,
    /// It is redirected to the registry.
    Redirect,
    /// It gets a 404.
    NotFound,
}

/// The mirror's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it listens; `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// Whether the address was set rather than defaulted to: then it has to be free.
    pub required: bool,
    /// Where blobs are kept.
    pub directory: PathBuf,
    /// Bytes that blobs may take.
    pub cache_bytes: u64,
    /// The registry of names that name none.
    pub upstream: Option<String>,
    /// The registries that are served; empty for any.
    pub upstreams: BTreeSet<String>,
    /// Whether clients without credentials are served by this host's own.
    pub lend_credentials: bool,
    /// What happens before the headers.
    pub on_trouble: OnTrouble,
    /// After so long without progress another source is tried.
    pub stall: Duration,
    /// After so long without progress a client's connection is broken. Less than tart's 60 s.
    pub break_after: Duration,
    /// A fetch goes on for so long after its last reader left.
    pub grace: Duration,
    /// Certificate chain and key (PEM), for listening beyond loopback.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// File with the token that clients beyond loopback have to know.
    pub token_file: Option<PathBuf>,
    /// Registries that speak plain HTTP, for redirects.
    pub plain_http: BTreeSet<String>,
}

impl Settings {
    fn serves(&self, registry: &str) -> bool {
        self.upstreams.is_empty()
            || self.upstreams.contains(registry)
            || self.upstream.as_deref() == Some(registry)
    }
}

/// What the driver has of the mirror.
#[derive(Debug)]
pub(crate) struct Ears {
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) wishes: mpsc::Receiver<Wish>,
    pub(crate) stall: Duration,
    pub(crate) grace: Duration,
}

/// A mirror that listens and doesn't serve yet.
pub(crate) struct Mirror {
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    service: Arc<Service>,
}

/// Opens the cache and the listener. `None` where the mirror is switched off, its default port is taken, or its cache
/// can't be used.
pub(crate) async fn open(
    settings: Settings,
    me: &HostId,
    floor_percent: u8,
    origin: Origin,
    metrics: Metrics,
) -> anyhow::Result<Option<(Mirror, Ears)>> {
    let Some(address) = settings.listen else {
        return Ok(None);
    };
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        // staging must not stop because something else has a port that nobody chose
        Err(error) if !settings.required => {
            tracing::error!(listen = %address, %error, "the mirror's port is taken; running without a mirror: set mirror.listen");
            return Ok(None);
        }
        Err(error) => {
            return Err(error)
                .with_context(|| format!("listening on {address} for the mirror (mirror.listen)"));
        }
    };
    let token = settings
        .token_file
        .as_deref()
        .map(|path| {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("reading the mirror's token from {}", path.display()))?;
            let token = text.trim();
            anyhow::ensure!(
                !token.is_empty(),
                "the mirror's token file {} is empty",
                path.display()
            );
            Ok(Secret::from(token))
        })
        .transpose()?;
    let acceptor = settings
        .tls
        .as_ref()
        .map(|(chain, key)| acceptor(chain, key))
        .transpose()?;
    let (directory, host) = (settings.directory.clone(), me.clone());
    let limits = Limits {
        budget_bytes: settings.cache_bytes,
        floor_percent,
        space: platform::space,
    };
    let opened = tokio::task::spawn_blocking(move || Blobs::open(&directory, &host, limits));
    let blobs = match opened.await.context("opening the blob cache")? {
        Ok(blobs) => Arc::new(blobs),
        // nor because of a cache of what is only convenient to have
        Err(error) => {
            tracing::error!(error = %error, "the mirror's cache can't be used; running without a mirror: look at mirror.directory");
            return Ok(None);
        }
    };
    let (wishes, heard) = mpsc::channel(WISHES);
    let ears = Ears {
        blobs: blobs.clone(),
        wishes: heard,
        stall: settings.stall,
        grace: settings.grace,
    };
    let service = Service {
        settings,
        upstreams: Upstreams::new(origin),
        blobs,
        wishes,
        metrics,
        token,
    };
    let mirror = Mirror {
        listener,
        acceptor,
        service: Arc::new(service),
    };
    Ok(Some((mirror, ears)))
}

/// A mirror without an agent round it, for measuring: it serves what its cache holds, to whom the upstream accepts, and
/// fetches nothing. Runs until `stop` is cancelled; `ready` is told where it listens.
///
/// # Errors
/// When it can't listen, its cache can't be opened, or `origin`'s files can't be read.
pub async fn serve_cached(
    settings: Settings,
    me: &HostId,
    origin: &crate::config::OriginConfig,
    stop: CancellationToken,
    ready: tokio::sync::oneshot::Sender<SocketAddr>,
) -> anyhow::Result<()> {
    let (metrics, _) = Metrics::new();
    let opened = open(settings, me, 0, Origin::new(origin)?, metrics).await?;
    let (mirror, ears) = opened.context("the mirror is switched off")?;
    if let Some(address) = mirror.address() {
        // who doesn't wait for it doesn't want to know
        ready.send(address).ok();
    }
    let served = mirror.serve(stop).await;
    drop(ears);
    served
}

fn acceptor(chain: &std::path::Path, key: &std::path::Path) -> anyhow::Result<TlsAcceptor> {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
    let certificates = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("reading the mirror's certificate {}", chain.display()))?;
    let key = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("reading the mirror's key {}", key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .context("the mirror's certificate and key")?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl Mirror {
    /// Where it listens.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Serves until `stop` is cancelled.
    pub(crate) async fn serve(self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        debug!(%error, "a client's connection was cut short");
                    }
                }
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS => {
                    let stream = match accepted {
                        Ok((stream, _)) => stream,
                        // out of files, or the client is gone already
                        Err(error) => {
                            debug!(%error, "a client couldn't be accepted");
                            sleep(Duration::from_millis(50)).await;
                            continue;
                        }
                    };
                    // answers are written whole; a small one mustn't wait for an acknowledgement
                    drop(stream.set_nodelay(true));
                    let (service, acceptor) = (self.service.clone(), self.acceptor.clone());
                    connections.spawn(async move {
                        match acceptor {
                            None => talk_plainly(service, stream).await,
                            Some(acceptor) => {
                                let hello = tokio::time::timeout(HEAD_TIMEOUT, acceptor.accept(stream));
                                if let Ok(Ok(stream)) = hello.await {
                                    talk(service, stream).await;
                                }
                            }
                        }
                    });
                }
            }
        }
    }
}

/// Speaks with one client without TLS: blobs leave by `sendfile` as long as it asks for nothing else.
#[cfg(target_os = "linux")]
async fn talk_plainly(service: Arc<Service>, stream: TcpStream) {
    use tokio::io::AsyncReadExt as _;

    let pulse = Arc::new(Pulse::new());
    let rest = tokio::select! {
        rest = sendfile::talk(&service, stream, &pulse) => rest,
        () = silent(&pulse) => {
            debug!("a client took nothing for too long");
            None
        }
    };
    if let Some((stream, read)) = rest {
        let (reader, writer) = stream.into_split();
        let reader = std::io::Cursor::new(read).chain(reader);
        talk(service, tokio::io::join(reader, writer)).await;
    }
}

/// Speaks with one client without TLS.
#[cfg(not(target_os = "linux"))]
async fn talk_plainly(service: Arc<Service>, stream: TcpStream) {
    talk(service, stream).await;
}

/// Returns when nothing moved for too long.
async fn silent(pulse: &Pulse) {
    loop {
        let silence = pulse.silence();
        if silence >= IDLE {
            return;
        }
        sleep(IDLE.saturating_sub(silence)).await;
    }
}

/// Speaks with one client until either ends.
async fn talk(service: Arc<Service>, stream: impl AsyncRead + AsyncWrite + Unpin + Send) {
    let pulse = Arc::new(Pulse::new());
    let watch = pulse.clone();
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(move |request: hyper::Request<Incoming>| {
                let (service, pulse) = (service.clone(), pulse.clone());
                async move {
                    let answered = service.answer(&request, &pulse).await;
                    answered.map(|response| response.map(Content::into_body))
                }
            }),
        );
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                debug!(%error, "a client's connection ended");
            }
        }
        () = silent(&watch) => debug!("a client took nothing for too long"),
    }
}
