//! Layers around the API's handlers: the check of the API's token, for operators' routes, and the time limit and the
//! count, for every request.

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use client::patience::ANSWER_WITHIN;
use http::{HeaderMap, StatusCode, header};
use tokio::time::timeout;

use super::{answer::Failure, state::Api};
use crate::{metrics::RequestLabel, secret::Secret};

/// Passes on only requests that show the API's token.
pub(super) async fn authenticate(State(api): State<Api>, request: Request, next: Next) -> Response {
    match denied(&api, request.headers()) {
        Some(denied) => denied,
        None => next.run(request).await,
    }
}

/// The answer to a request without the API's token; `None` when the request shows the right token.
pub(super) fn denied(api: &Api, headers: &HeaderMap) -> Option<Response> {
    if bearer(headers).is_some_and(|given| given.matches(&api.token)) {
        return None;
    }
    let failure = Failure::new(
        StatusCode::UNAUTHORIZED,
        "this needs the API's token: `Authorization: Bearer` with what is in api.token of the state directory",
    );
    let mut response = failure.into_response();
    let bearer = http::HeaderValue::from_static("Bearer");
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, bearer);
    Some(response)
}

/// The token that a request shows.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<Secret> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| Secret::from_text(token))
}

/// Answers within the time limit, and counts the answer by route and result.
pub(super) async fn count(State(api): State<Api>, request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map(|path| path.as_str().to_owned());
    let response = match timeout(ANSWER_WITHIN, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Failure::new(
            StatusCode::GATEWAY_TIMEOUT,
            format!("no answer within {} s", ANSWER_WITHIN.as_secs()),
        )
        .into_response(),
    };
    let result = match response.status().as_u16() {
        200..=299 => "ok",
        401 | 403 => "denied",
        400..=499 => "refused",
        _ => "failed",
    };
    let route = route_label(route.as_deref());
    api.metrics
        .requests
        .get_or_create(&RequestLabel { route, result })
        .inc();
    response
}

/// The label of a route. Labels are a closed set: the requested path is never a label itself.
fn route_label(route: Option<&str>) -> &'static str {
    match route {
        Some("/v1/images") => "images",
        Some("/v1/images/{image}") => "image",
        Some("/v1/images/{image}/events") => "events",
        Some("/v1/hosts") => "hosts",
        Some("/v1/hosts/{host}") => "host",
        Some("/v1/hosts/{host}/revoke") => "revoke",
        Some("/v1/plan") => "plan",
        Some("/v1/tokens") => "tokens",
        Some("/v1/bandwidth") => "bandwidth",
        Some("/v1/enrol") => "enrol",
        Some("/v1/renew") => "renew",
        Some("/healthz") => "healthz",
        Some("/v1/pools" | "/v1/pools/{namespace}/{name}/pause") => "pools",
        Some("/v1/pods/{namespace}/{pod}") => "pods",
        Some("/v1/namespaces/{namespace}/pods/{pod}/drain") => "drain",
        Some("/v1/webhook/pods" | "/v1/webhook/pods/{key}") => "webhook",
        _ => "other",
    }
}
