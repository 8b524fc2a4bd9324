//! The registry mirror: a read-only OCI distribution API for this host's own clients (`tart pull --insecure`,
//! containerd, skopeo …).
//!
//! A blob that isn't here becomes a content of the swarm: hosts that ask for the same one share one copy from the
//! registry. `request` says what is asked for, `upstream` who may have it, `serve` answers, `blobs` and `blob`
//! keep the bytes; what is fetched from whom is the driver's and the swarm's business (`driver/mirror`). Nothing is
//! pushed here, and nothing is served to other machines unless TLS and a token are configured.

pub(crate) mod blob;
pub(crate) mod blobs;
mod browser;
mod proof;
mod range;
mod request;
mod serve;
mod upstream;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use link::{Crowd, LocalNames, Place};
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
    serve::{Pulse, Service},
    upstream::Upstreams,
};
pub(crate) use self::{
    request::registry,
    serve::Wish,
    upstream::{is_away, is_refusal},
};
use crate::{fetch::Origin, metrics::Metrics, platform};

/// Clients at one time. tart opens four, a busy containerd a dozen. Over it one that asks for nothing gives way; where each
/// of them is answered or has just come, the next one waits.
const CONNECTIONS: usize = 256;
/// A client that asks for nothing for so long gives way to others.
const GRACE: Duration = Duration::from_secs(1);
/// How often a client that waits looks for a place.
const WAIT: Duration = Duration::from_millis(50);
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
    /// Names by which it may be asked for on loopback, beyond `localhost` and addresses.
    pub names: BTreeSet<String>,
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
        self.upstreams.is_empty() || self.names(registry)
    }

    /// Whether the settings name this registry, so that its word for what it has is believed.
    fn names(&self, registry: &str) -> bool {
        self.upstreams.contains(registry) || self.upstream.as_deref() == Some(registry)
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
    let local = listener.local_addr()?.ip().is_loopback();
    let names = settings.names.iter().cloned();
    let service = Service {
        names: local.then(|| LocalNames::new(names)),
        settings,
        upstreams: Arc::new(Upstreams::new(origin)),
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
        let crowd = Crowd::new(CONNECTIONS, 0, GRACE);
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
                accepted = self.listener.accept() => {
                    let (stream, remote) = match accepted {
                        Ok(accepted) => accepted,
                        // out of files, or the client is gone already
                        Err(error) => {
                            debug!(%error, "a client couldn't be accepted");
                            sleep(Duration::from_millis(50)).await;
                            continue;
                        }
                    };
                    // answers are written whole; a small one mustn't wait for an acknowledgement
                    drop(stream.set_nodelay(true));
                    let place = tokio::select! {
                        place = place(&crowd, remote.ip()) => Arc::new(place),
                        () = stop.cancelled() => return Ok(()),
                    };
                    let (service, acceptor) = (self.service.clone(), self.acceptor.clone());
                    connections.spawn(async move {
                        tokio::select! {
                            () = meet(service, acceptor, stream, &place) => {}
                            () = place.lost() => debug!(%remote, "a client gave way to another"),
                        }
                    });
                }
            }
        }
    }
}

/// A place for who comes from this address. There is always one soon: a client that asks for nothing gives way, and an answer
/// ends, if only because its client takes nothing.
async fn place(crowd: &Crowd, address: IpAddr) -> Place {
    loop {
        if let Some(place) = crowd.enter(address, Instant::now()) {
            return place;
        }
        sleep(WAIT).await;
    }
}

/// Speaks with one client.
async fn meet(
    service: Arc<Service>,
    acceptor: Option<TlsAcceptor>,
    stream: TcpStream,
    place: &Arc<Place>,
) {
    let Some(acceptor) = acceptor else {
        return talk(service, stream, place).await;
    };
    let hello = tokio::time::timeout(HEAD_TIMEOUT, acceptor.accept(stream));
    if let Ok(Ok(stream)) = hello.await {
        talk(service, stream, place).await;
    }
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
async fn talk(
    service: Arc<Service>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    place: &Arc<Place>,
) {
    let pulse = Arc::new(Pulse::new());
    let watch = pulse.clone();
    let place = place.clone();
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(move |request: hyper::Request<Incoming>| {
                let (service, pulse, work) = (service.clone(), pulse.clone(), place.work());
                async move {
                    let answered = service.answer(&request, &pulse).await;
                    answered.map(|response| response.map(|content| content.into_body(work)))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::config::OriginConfig;

    fn settings(directory: PathBuf) -> Settings {
        Settings {
            listen: Some(([127, 0, 0, 1], 0).into()),
            names: ["mini.lan".to_owned()].into(),
            required: true,
            directory,
            cache_bytes: 1 << 20,
            upstream: None,
            upstreams: BTreeSet::new(),
            lend_credentials: false,
            on_trouble: OnTrouble::Auto,
            stall: Duration::from_secs(10),
            break_after: Duration::from_secs(45),
            grace: Duration::from_secs(15),
            tls: None,
            token_file: None,
            plain_http: BTreeSet::new(),
        }
    }

    async fn ask(address: SocketAddr, host: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let text = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read =
            tokio::time::timeout(Duration::from_secs(20), stream.read_to_string(&mut answer));
        read.await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn silent_clients_keep_nobody_out_and_a_rebound_name_reads_nothing() {
        let home = tempfile::tempdir().unwrap();
        let origin = OriginConfig {
            ca_file: None,
            plain_http: Vec::new(),
            idle_timeout: Duration::from_secs(10),
            proxy: Default::default(),
            system_roots: false,
            credentials: BTreeMap::new(),
        };
        let me = "mini-1".parse().unwrap();
        let stop = CancellationToken::new();
        let (ready, at) = tokio::sync::oneshot::channel();
        let settings = settings(home.path().join("mirror"));
        let serving = {
            let stop = stop.clone();
            async move { serve_cached(settings, &me, &origin, stop, ready).await }
        };
        let mut server = JoinSet::new();
        server.spawn(serving);
        let address = at.await.unwrap();
        let mut silent = Vec::new();
        for number in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            if number % 2 == 0 {
                stream
                    .write_all(b"GET /v2/ HTTP/1.1\r\nhost")
                    .await
                    .unwrap();
            }
            silent.push(stream);
        }
        let began = Instant::now();
        // the first waits until the silent ones have had their time of grace
        for (host, path, status) in [
            ("localhost", "/v2/", "200"),
            ("mini.lan:7474", "/v2/", "200"),
            ("[::1]:7474", "/v2/", "200"),
            ("evil.example", "/v2/", "403"),
            (
                "evil.example",
                "/v2/registry.example/a/blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                "403",
            ),
        ] {
            let answer = ask(address, host, path).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{host} {path}: {answer}"
            );
        }
        assert!(began.elapsed() < HEAD_TIMEOUT / 3, "{:?}", began.elapsed());
        stop.cancel();
        server.join_next().await.unwrap().unwrap().unwrap();
    }
}
