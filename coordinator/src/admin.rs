//! Health and metrics over plain HTTP, on an address of their own: loopback unless an operator says otherwise.

use std::sync::Arc;

use axum::{Router, extract::State, response::IntoResponse, routing::get};
use http::{StatusCode, header};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::metrics;

/// What it shows.
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    pub(crate) registry: Arc<Registry>,
    /// Whether hosts and operators are served.
    pub(crate) ready: watch::Receiver<bool>,
}

/// `/healthz`: the program answers. `/readyz`: it serves hosts and operators. `/metrics`: `OpenMetrics` text.
pub(crate) fn router(admin: Admin) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .with_state(admin)
}

async fn ready(State(admin): State<Admin>) -> impl IntoResponse {
    if *admin.ready.borrow() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not serving\n")
    }
}

async fn scrape(State(admin): State<Admin>) -> impl IntoResponse {
    (
        [(
            header::CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        metrics::encode(&admin.registry),
    )
}
