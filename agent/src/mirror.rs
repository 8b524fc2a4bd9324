//! The registry mirror: a read-only OCI distribution API for this host's own clients (`tart pull --insecure`,
//! containerd, skopeo …).
//!
//! A blob that isn't here becomes a content of the swarm, so that hosts that ask for the same blob share one copy from
//! the registry. `request` reads what is asked for, `upstream` knows which client may have it, `serve` answers, and
//! `blobs` and `blob` keep the bytes. The driver and the swarm decide what is fetched from where. Nothing is pushed
//! through the mirror. Other machines aren't served unless TLS and a token are configured.

mod answer;
pub(crate) mod blob;
pub(crate) mod blobs;
mod browser;
mod leaving;
mod listen;
pub(crate) mod outside;
mod proof;
mod range;
mod recipes;
mod repositories;
mod request;
mod seek;
mod serve;
mod share;
mod stream;
mod taints;
mod token;
mod trouble;
mod upstream;
mod wish;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use origin::{ConfigError, Secret};
use proto::HostId;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _};
use tokio::{net::TcpListener, sync::mpsc, task::JoinError};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use wire::LocalNames;

use self::{
    blobs::{Blobs, Limits},
    seek::{LOOKS, Passing, Seeker},
    serve::Service,
    share::Clients,
    upstream::Upstreams,
};
pub(crate) use self::{
    listen::Mirror,
    upstream::{is_away, is_refusal},
    wish::Wish,
};
use crate::{
    config::{MirrorSettings, OriginConfig},
    metrics::Metrics,
    platform::{self, Floor},
    registries::Origin,
};

/// The number of wishes that wait for the driver. More wishes wait in their connections.
const WISHES: usize = 64;
/// What the driver gets of the mirror.
#[derive(Debug)]
pub(crate) struct Ears {
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) wishes: mpsc::Receiver<Wish>,
    pub(crate) stall: Duration,
    pub(crate) grace: Duration,
}

/// Why the mirror can't be opened, although the settings ask for one.
#[derive(Debug, thiserror::Error)]
pub enum OpenMirrorError {
    /// The address is in use, or isn't one of this host's.
    #[error("listening on {address} for the mirror (mirror.listen): {error}")]
    Listen {
        /// The address to listen on.
        address: SocketAddr,
        /// The cause.
        error: io::Error,
    },
    /// The token for clients beyond loopback can't be read.
    #[error("reading the mirror's token from {}: {error}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// The token's file is empty.
    #[error("the mirror's token file {} is empty", path.display())]
    NoToken {
        /// The file.
        path: PathBuf,
    },
    /// The certificate or its key can't be read.
    #[error("reading the mirror's {what} {}: {error}", path.display())]
    Pem {
        /// `certificate` or `key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        error: pem::Error,
    },
    /// The certificate and the key don't belong together.
    #[error("the mirror's certificate and key: {0}")]
    Tls(#[from] rustls::Error),
    /// The registry client can't be made.
    #[error(transparent)]
    Origin(#[from] ConfigError),
    /// The settings switch the mirror off.
    #[error("the mirror is switched off")]
    Off,
    /// The task that opened the cache died.
    #[error("opening the blob cache: {0}")]
    Died(#[from] JoinError),
}

/// Opens the cache and the listener. `None` if the mirror is switched off, its default port is in use, or its cache
/// can't be used.
pub(crate) async fn open(
    settings: MirrorSettings,
    me: &HostId,
    floor: Floor,
    origin: Origin,
    metrics: Metrics,
) -> Result<Option<(Mirror, Ears)>, OpenMirrorError> {
    let Some(address) = settings.listen else {
        return Ok(None);
    };
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        // staging must not stop because another program has a port that nobody chose
        Err(error) if !settings.required => {
            tracing::error!(listen = %address, %error, "the mirror's port is taken; running without a mirror: set mirror.listen");
            return Ok(None);
        }
        Err(error) => return Err(OpenMirrorError::Listen { address, error }),
    };
    let token = settings.token_file.as_deref().map(read_token).transpose()?;
    let acceptor = settings
        .tls
        .as_ref()
        .map(|(chain, key)| acceptor(chain, key))
        .transpose()?;
    let (directory, host) = (settings.directory.clone(), me.clone());
    let limits = Limits {
        budget_bytes: settings.cache_bytes,
        floor,
        space: platform::space,
    };
    let opened = tokio::task::spawn_blocking(move || Blobs::open(&directory, &host, limits));
    let blobs = match opened.await? {
        Ok(blobs) => Arc::new(blobs),
        // staging must not stop because of a cache either, since the mirror is optional
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
    let bound = listener.local_addr();
    let bound = bound.map_err(|error| OpenMirrorError::Listen { address, error })?;
    let local = bound.ip().is_loopback();
    let names = settings.names.iter().cloned();
    let (passing, looks) = mpsc::channel(LOOKS);
    let seeker = Seeker {
        reads: Arc::default(),
        upstreams: Arc::new(Upstreams::new(origin)),
        blobs: blobs.clone(),
        wishes: wishes.clone(),
        metrics: metrics.clone(),
    };
    let service = Service {
        names: local.then(|| LocalNames::new(names)),
        settings,
        upstreams: seeker.upstreams.clone(),
        blobs,
        wishes,
        passing: Passing::new(passing),
        clients: Clients::default(),
        metrics,
        token,
    };
    let mirror = Mirror {
        listener,
        acceptor,
        service: Arc::new(service),
        seeker,
        looks,
    };
    Ok(Some((mirror, ears)))
}

/// Runs a mirror without an agent around it, for measurements. It serves what its cache holds to clients that the
/// upstream accepts, and fetches no blob. Runs until `stop` is cancelled. `ready` gets the address on which it listens.
///
/// # Errors
/// When it can't listen, its cache can't be opened, or the files that `origin` names can't be read.
pub async fn serve_cached(
    settings: MirrorSettings,
    me: &HostId,
    origin: &OriginConfig,
    stop: CancellationToken,
    ready: tokio::sync::oneshot::Sender<SocketAddr>,
) -> Result<(), OpenMirrorError> {
    let (metrics, _) = Metrics::new();
    let opened = open(
        settings,
        me,
        Floor::default(),
        Origin::new(origin)?,
        metrics,
    )
    .await?;
    let (mirror, ears) = opened.ok_or(OpenMirrorError::Off)?;
    if let Some(address) = mirror.address() {
        // a caller that dropped the receiver doesn't need the address
        ready.send(address).ok();
    }
    mirror.serve(stop).await;
    drop(ears);
    Ok(())
}

fn read_token(path: &Path) -> Result<Secret, OpenMirrorError> {
    let text = std::fs::read_to_string(path).map_err(|error| OpenMirrorError::Token {
        path: path.into(),
        error,
    })?;
    match text.trim() {
        "" => Err(OpenMirrorError::NoToken { path: path.into() }),
        token => Ok(Secret::from(token)),
    }
}

fn acceptor(chain: &Path, key: &Path) -> Result<TlsAcceptor, OpenMirrorError> {
    let unread = |what, path: &Path| {
        let path = path.to_owned();
        move |error| OpenMirrorError::Pem { what, path, error }
    };
    let certificates = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(unread("certificate", chain))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(unread("key", key))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        time::Instant,
    };

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        task::JoinSet,
    };

    use super::{
        listen::{CONNECTIONS, HEAD_TIMEOUT},
        *,
    };
    use crate::config::OnTrouble;

    fn settings(directory: PathBuf) -> MirrorSettings {
        MirrorSettings {
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
