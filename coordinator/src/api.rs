//! The HTTP API: what operators and enrolling hosts ask. Words are in [`crate::view`].
//!
//! Every route but `/v1/enrol`, `/v1/renew` and `/healthz` wants the API's bearer token. Reads come from the driver's
//! published view. Changes are questions to the driver, which answers when the change is written down.

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
mod hosts;
mod images;
mod layers;
mod state;
mod tries;

pub(crate) use self::{answer::unavailable, layers::bearer, state::Api, tries::Tries};

/// The largest request body: a selection of every host of the largest fleet.
const MAX_BODY_BYTES: usize = 1 << 20;
/// The largest enrolment or late renewal: a token or a certificate, and a certificate request, from a host that isn't
/// known yet.
const MAX_ENROL_BYTES: usize = 32 << 10;

/// All routes, and `more` beside them: each request is answered in time, has a bounded body, and is counted.
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

/// Answers before a coordinator serves: it will soon.
pub(crate) fn starting() -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .fallback(|| async { unavailable("the coordinator is starting; ask again in a second") })
}

/// A request without the API's token isn't told which routes there are.
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
