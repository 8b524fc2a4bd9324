//! The HTTP API, for operators and enrolling hosts. The types of requests and answers are in [`crate::view`].
//!
//! Every route of this API needs the API's bearer token, except `/v1/enrol`, `/v1/renew` and `/healthz`. Routes that a
//! cluster adds check their own callers. Reads come from the driver's published view. Changes are questions to the
//! driver, which answers once the change is on disk.

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    middleware,
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
};
use http::StatusCode;

use self::{
    answer::Failure,
    layers::{authenticate, count, denied},
};

mod answer;
mod enrol;
mod follow;
mod gate;
mod hosts;
mod images;
mod layers;
mod state;
mod tries;

pub(crate) use self::{answer::unavailable, layers::bearer, state::Api, tries::Tries};

/// The largest request body, in bytes: a selection of every host of the largest fleet.
const MAX_BODY_BYTES: usize = 1 << 20;
/// The largest body of an enrolment or a late renewal, in bytes. It holds a token or a certificate, and a certificate
/// request. The sender may be anybody.
const MAX_ENROL_BYTES: usize = 32 << 10;

/// All routes, and those of `more`. Each request is answered within a time limit, has a bounded body, and is counted.
pub(crate) fn router(api: Api, more: Router) -> Router {
    let operators = Router::new()
        .route("/v1/images", post(images::stage).get(images::images))
        .route("/v1/images/{image}", get(images::image))
        .route("/v1/images/{image}", delete(images::cancel))
        .route("/v1/images/{image}/events", get(follow::events))
        .route("/v1/hosts", get(hosts::hosts))
        .route("/v1/hosts/{host}", get(hosts::host))
        .route(
            "/v1/hosts/{host}/revoke",
            post(hosts::revoke).delete(hosts::readmit),
        )
        .route("/v1/plan", post(images::plan))
        .route("/v1/gate", post(gate::open).get(gate::list))
        .route("/v1/gate/done", post(gate::done))
        .route("/v1/old-images", post(hosts::old_images))
        .route("/v1/tokens", post(enrol::token))
        .route("/v1/bandwidth", put(hosts::bandwidth))
        .layer(middleware::from_fn_with_state(api.clone(), authenticate));
    Router::new()
        .merge(operators)
        .merge(more.with_state(()))
        .route(
            "/v1/enrol",
            post(enrol::enrol).layer(DefaultBodyLimit::max(MAX_ENROL_BYTES)),
        )
        .route(
            "/v1/renew",
            post(enrol::renew).layer(DefaultBodyLimit::max(MAX_ENROL_BYTES)),
        )
        .route("/healthz", get(|| async { "ok\n" }))
        .fallback(nowhere)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(api.clone(), count))
        .with_state(api)
}

/// The routes while a coordinator starts. They answer that it will serve soon.
pub(crate) fn starting() -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .fallback(|| async { unavailable("the coordinator is starting; ask again in a second") })
}

/// The answer for an unknown route. A request without the API's token doesn't learn which routes there are.
async fn nowhere(State(api): State<Api>, request: Request) -> Response {
    if let Some(denied) = denied(&api, request.headers()) {
        return denied;
    }
    let path = request.uri().path();
    let error = match path.starts_with("/v1/pools") || path.starts_with("/v1/pods") {
        true => {
            "this coordinator watches no cluster, so it gates no pool and no Pod; `run --kubernetes` does"
        }
        false => "no such route; see docs/OPERATING.md",
    };
    Failure::new(StatusCode::NOT_FOUND, error).into_response()
}

async fn no_such_method(State(api): State<Api>, request: Request) -> Response {
    denied(&api, request.headers()).unwrap_or_else(|| {
        let error = "this route has no such method; see docs/OPERATING.md";
        Failure::new(StatusCode::METHOD_NOT_ALLOWED, error).into_response()
    })
}
