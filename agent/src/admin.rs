//! Health, metrics and status over HTTP, on loopback unless configured otherwise. Read only; shows no secrets.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::registry::Registry;
use proto::{Digest, HostId, figure::standing_still, message::ImageState};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{driver::state_name, metrics};

/// What the running agent holds and does, as `parbake-agent status` shows it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Snapshot {
    /// This host.
    pub host: String,
    /// Whether the coordinator's session is up.
    pub coordinator: bool,
    /// Whether leases are self-assigned for want of a coordinator.
    pub headless: bool,
    /// Hosts of the roster.
    pub peers: usize,
    /// Those connected now.
    pub connected: usize,
    /// Keys of those that are quarantined.
    pub quarantined: Vec<String>,
    /// Push work assigned to this host and not done, in bytes.
    pub backlog_bytes: u64,
    /// Measured upload rate.
    pub upload_bytes_per_second: u64,
    /// Its images.
    pub images: Vec<ImageStatus>,
}

/// One image in a [`Snapshot`].
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ImageStatus {
    /// Manifest digest.
    pub digest: String,
    /// The reference under which it was ordered first.
    pub reference: String,
    /// `queued`, `staging`, `installing`, `present`, `failed` or `gone`.
    pub state: String,
    /// References under which it was there at the last look, with their goldens where those are made.
    #[serde(default)]
    pub ready_references: Vec<String>,
    /// Why it doesn't move or failed.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub reason: String,
    /// The same for people.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub message: String,
    /// Raw bytes to hold.
    pub total_bytes: u64,
    /// Raw bytes verified.
    pub held_bytes: u64,
    /// Bytes from the registry (compressed).
    pub origin_bytes: u64,
    /// Bytes from peers (on the wire).
    pub peer_bytes: u64,
    /// Bytes that were already here (raw).
    pub local_bytes: u64,
    /// Bytes sent to peers.
    pub upload_bytes: u64,
}

impl Snapshot {
    pub(crate) fn new(
        me: &HostId,
        coordinator: bool,
        images: &[ImageState],
        status: &swarm::Status,
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
        }
    }
}

#[derive(Clone)]
struct Served {
    registry: Arc<Registry>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
}

/// Binds the listener, so that a taken port is an error at the start.
pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address} for health and metrics (--admin)"))
}

/// Serves until `stop` is cancelled.
pub(crate) async fn serve(
    listener: TcpListener,
    registry: Registry,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let served = Served {
        registry: Arc::new(registry),
        snapshot,
    };
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .route("/v1/status", get(status))
        .with_state(served);
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await
        .context("serving health and metrics")
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
