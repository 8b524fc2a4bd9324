//! Health, metrics and status over HTTP, on loopback unless configured otherwise. It is read-only and shows no secrets.
//! On loopback it only answers requests that name an address, `localhost` or a configured name, because a web page in a
//! browser on this machine can have its own name point here.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use prometheus_client::registry::Registry;
use proto::{Digest, HostId, figure::standing_still, message::ImageState, message::StageState};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;
use wire::{Crowd, LocalNames};

use crate::{metrics, store::survey::Surveyed};

/// The most connections at one time: a scraper, probes and `parbake-agent status`. Beyond, the connection that waits
/// longest gives way.
const CONNECTIONS: usize = 64;
/// A connection that waits for its client for this long gives way to another one from the same address.
const GRACE: Duration = Duration::from_secs(1);
/// The time within which a request's head has to come.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after an accept that failed, for example because no file handle is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The state of the running agent, as `parbake-agent status` shows it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Snapshot {
    /// This host.
    pub(crate) host: String,
    /// Whether the coordinator's session is up.
    pub(crate) coordinator: bool,
    /// Whether hosts assign leases to themselves, for want of a coordinator.
    pub(crate) headless: bool,
    /// Hosts of the roster.
    pub(crate) peers: usize,
    /// Hosts that are connected now.
    pub(crate) connected: usize,
    /// Keys of quarantined hosts.
    pub(crate) quarantined: Vec<String>,
    /// Push work that is assigned to this host and isn't done, in bytes.
    pub(crate) backlog_bytes: u64,
    /// The measured upload rate, in bytes per second; 0 before it was measured.
    pub(crate) upload_bytes_per_second: u64,
    /// The host's images.
    pub(crate) images: Vec<ImageStatus>,
    /// Disks in tart's home that parbake didn't build, and that were read: new images find their bytes there.
    #[serde(default)]
    pub(crate) found_disks: usize,
    /// Bytes of these disks, with holes.
    #[serde(default)]
    pub(crate) found_bytes: u64,
    /// Bytes of such a disk that is being read now and that are left.
    #[serde(default)]
    pub(crate) found_left_bytes: u64,
}

/// One image in a [`Snapshot`].
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct ImageStatus {
    /// Manifest digest.
    pub(crate) digest: String,
    /// The reference under which it was ordered first.
    pub(crate) reference: String,
    /// `queued`, `staging`, `installing`, `present`, `failed` or `gone`.
    pub(crate) state: String,
    /// References under which the last look found the image, with their goldens if those are made.
    #[serde(default)]
    pub(crate) ready_references: Vec<String>,
    /// Why the image stands still or failed.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub(crate) reason: String,
    /// The same for people.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub(crate) message: String,
    /// Raw bytes to hold.
    pub(crate) total_bytes: u64,
    /// Raw bytes verified.
    pub(crate) held_bytes: u64,
    /// Bytes from the registry (compressed).
    pub(crate) origin_bytes: u64,
    /// Bytes from peers (on the wire).
    pub(crate) peer_bytes: u64,
    /// Bytes that were already here (raw).
    pub(crate) local_bytes: u64,
    /// Bytes sent to peers.
    pub(crate) upload_bytes: u64,
}

impl Snapshot {
    pub(crate) fn new(
        me: &HostId,
        coordinator: bool,
        images: &[ImageState],
        status: &swarm::Status,
        found: Surveyed,
    ) -> Self {
        let images = images.iter().map(|image| ImageStatus {
            digest: Digest::try_from(image.manifest.as_slice())
                .map(|digest| digest.to_string())
                .unwrap_or_default(),
            reference: image.reference.clone(),
            state: state_name(image.state()).into(),
            ready_references: image.ready_references.clone(),
            reason: image.reason.clone(),
            message: match image.still_ms {
                0 => image.message.clone(),
                still => standing_still(&image.message, Duration::from_millis(still)),
            },
            total_bytes: image.total_bytes,
            held_bytes: image.held_bytes,
            origin_bytes: image.origin_bytes,
            peer_bytes: image.peer_bytes,
            local_bytes: image.local_bytes,
            upload_bytes: image.upload_bytes,
        });
        Self {
            host: me.to_string(),
            coordinator,
            headless: status.headless,
            peers: status.peers,
            connected: status.connected,
            quarantined: status.quarantined.iter().map(ToString::to_string).collect(),
            backlog_bytes: status.backlog_bytes,
            upload_bytes_per_second: status.upload_bytes_per_second.unwrap_or(0),
            images: images.collect(),
            found_disks: found.disks,
            found_bytes: found.disk_bytes,
            found_left_bytes: found.left_bytes,
        }
    }
}

/// States of images, as metrics and people name them.
pub(crate) const fn state_name(state: StageState) -> &'static str {
    match state {
        StageState::Unspecified => "unknown",
        StageState::Queued => "queued",
        StageState::Staging => "staging",
        StageState::Installing => "installing",
        StageState::Present => "present",
        StageState::Failed => "failed",
        StageState::Gone => "gone",
    }
}

#[derive(Clone)]
struct Served {
    registry: Arc<Registry>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
}

/// Binds the listener, so that a taken port is an error at the start.
pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until `stop` is cancelled. Clients may ask by these `names` too, beyond addresses and `localhost`.
pub(crate) async fn serve(
    listener: TcpListener,
    registry: Registry,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    names: LocalNames,
    stop: CancellationToken,
) -> io::Result<()> {
    let served = Served {
        registry: Arc::new(registry),
        snapshot,
    };
    let mut router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .route("/v1/status", get(status))
        .with_state(served);
    if listener.local_addr()?.ip().is_loopback() {
        router = router.layer(middleware::from_fn(move |request, next| {
            local_only(names.clone(), request, next)
        }));
    }
    let crowd = Crowd::new(CONNECTIONS, 0, GRACE);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Some(_ended) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "a connection couldn't be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = crowd.enter(remote.ip(), Instant::now()) else {
            debug!(%remote, "a connection is turned away: too many");
            continue;
        };
        let router = router.clone();
        connections.spawn(async move {
            tokio::select! {
                () = speak(stream, router) => {}
                () = place.lost() => debug!(%remote, "a connection gave way to another"),
            }
        });
    }
}

/// Answers one client. Answers are small and made at once, so a connection may be ended at any time without asking
/// whether an answer is under way.
async fn speak(stream: TcpStream, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = connection.await {
        debug!(%error, "a connection ended early");
    }
}

async fn local_only(names: LocalNames, request: Request, next: Next) -> Response {
    let target = request
        .uri()
        .authority()
        .map(|authority| authority.as_str());
    let headers = request.headers().get_all(header::HOST).iter();
    let mut hosts = headers
        .map(|host| host.to_str().unwrap_or_default())
        .chain(target);
    if hosts.all(|host| names.admits(host)) {
        return next.run(request).await;
    }
    let words = "this server is asked by an address or as localhost; admin_names adds names\n";
    (StatusCode::FORBIDDEN, words).into_response()
}

/// Ready means that the coordinator's session is up: without it the host takes no new orders.
async fn ready(State(served): State<Served>) -> Response {
    if served.snapshot.borrow().coordinator {
        "ok\n".into_response()
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "no session with the coordinator\n",
        )
            .into_response()
    }
}

async fn scrape(State(served): State<Served>) -> Response {
    match metrics::encode(&served.registry) {
        Ok(body) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], body).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn status(State(served): State<Served>) -> Json<Snapshot> {
    let snapshot = served.snapshot.borrow().clone();
    Json(Snapshot::clone(&snapshot))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn ask(address: SocketAddr, host: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let text = format!("GET /healthz HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        let read = tokio::time::timeout(Duration::from_secs(20), read);
        read.await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn silent_clients_keep_nobody_out_and_a_rebound_name_reads_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_snapshot, seen) = watch::channel(Arc::default());
        let names = LocalNames::new(["mini.lan".to_owned()]);
        let stop = CancellationToken::new();
        let mut server = JoinSet::new();
        server.spawn(serve(
            listener,
            Registry::default(),
            seen,
            names,
            stop.clone(),
        ));
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        sleep(GRACE).await;
        let began = Instant::now();
        for (host, status) in [
            ("localhost", "200"),
            ("127.0.0.1:7472", "200"),
            ("mini.lan", "200"),
            ("evil.example:7472", "403"),
        ] {
            let answer = ask(address, host).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{answer}"
            );
        }
        assert!(began.elapsed() < HEAD_TIMEOUT / 2);
        stop.cancel();
        server.join_next().await.unwrap().unwrap().unwrap();
    }
}
