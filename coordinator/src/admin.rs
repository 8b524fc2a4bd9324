//! Health and metrics over plain HTTP, on a separate address: loopback, unless an operator sets another one.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{StatusCode, header};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::metrics;

/// What this server shows.
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    pub(crate) registry: Arc<Registry>,
    /// Whether hosts and operators are served.
    pub(crate) ready: watch::Receiver<bool>,
}

/// The routes. `/healthz`: the program runs. `/readyz`: the program serves hosts and operators. `/metrics`: the metrics
/// as `OpenMetrics` text.
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

async fn scrape(State(admin): State<Admin>) -> Response {
    match metrics::encode(&admin.registry) {
        Ok(body) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], body).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
