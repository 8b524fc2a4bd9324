//! What a leader answers about the cluster: to the API server's webhook, to runners that ask whether to leave, and to
//! operators.
//!
//! The webhook's caller isn't authenticated, so a review changes nothing that matters: facts come from the watch, and
//! an answer takes at most one place under the cap, for half a minute. Where the coordinator keeps the webhook's
//! configuration, the webhook's path ends in a key that tells the API server from other callers. Runners show their own
//! ServiceAccount's token and may ask about their own Pod. Operators show the API's token.

use std::{net::Ipv4Addr, sync::Arc};

use axum::{
    Json, Router,
    extract::{Extension, Path, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderMap, StatusCode};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use super::{
    index::ObjectKey,
    keeper::{Admission, Drain, Question},
    review::{self, Intake},
    tokens::Tokens,
};
use crate::{
    api::{bearer, unavailable},
    secret::Secret,
    serve::Remote,
    view::Problem,
};

/// The state that the handlers share.
#[derive(Clone)]
pub(crate) struct Web {
    questions: mpsc::Sender<Question>,
    token: Secret,
    tokens: Arc<Tokens>,
    intake: Intake,
    key: Secret,
    /// Whether the webhook's configuration has the key in its path.
    keyed: watch::Receiver<bool>,
}

impl Web {
    pub(crate) fn new(
        tokens: Tokens,
        questions: mpsc::Sender<Question>,
        token: Secret,
        keyed: watch::Receiver<bool>,
    ) -> Self {
        Self {
            questions,
            key: review::key(&token),
            token,
            tokens: Arc::new(tokens),
            intake: Intake::new(),
            keyed,
        }
    }
}

/// All routes.
pub(crate) fn router(web: Web) -> Router {
    let operators = Router::new()
        .route("/v1/pools", get(pools))
        .route(
            "/v1/pools/{namespace}/{name}/pause",
            post(pause).delete(resume),
        )
        .route("/v1/pods/{namespace}/{pod}", get(pod))
        .layer(middleware::from_fn_with_state(web.clone(), operator));
    Router::new()
        .merge(operators)
        .route(review::PATH, post(webhook))
        .route(review::KEYED_PATH, post(webhook))
        .route("/v1/namespaces/{namespace}/pods/{pod}/drain", get(drain))
        .with_state(web)
}

fn failure(status: StatusCode, error: impl ToString) -> Response {
    let error = error.to_string();
    (status, Json(Problem { error })).into_response()
}

fn late() -> Response {
    unavailable("the coordinator is busy or stopping; ask again in a moment")
}

async fn ask<T>(web: &Web, make: impl FnOnce(oneshot::Sender<T>) -> Question) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    let asked = async {
        web.questions.send(make(reply)).await.ok()?;
        answer.await.ok()
    };
    timeout(review::ANSWER_WITHIN, asked).await.ok()?
}

// ---- operators
// --------------------------------------------------------------------------------------------------------

async fn operator(State(web): State<Web>, request: Request, next: Next) -> Response {
    if !bearer(request.headers()).is_some_and(|given| given.matches(&web.token)) {
        return failure(StatusCode::UNAUTHORIZED, "this needs the API's token");
    }
    next.run(request).await
}

async fn pools(State(web): State<Web>) -> Response {
    match ask(&web, Question::Pools).await {
        Some(pools) => Json(pools).into_response(),
        None => late(),
    }
}

async fn pod(State(web): State<Web>, Path((namespace, pod)): Path<(String, String)>) -> Response {
    let key = ObjectKey::new(&namespace, &pod);
    match ask(&web, |reply| Question::Pod { key, reply }).await {
        Some(Some(pod)) => Json(pod).into_response(),
        Some(None) => failure(StatusCode::NOT_FOUND, "there is no such Pod"),
        None => late(),
    }
}

async fn pause(state: State<Web>, path: Path<(String, String)>) -> Response {
    set_paused(state, path, true).await
}

async fn resume(state: State<Web>, path: Path<(String, String)>) -> Response {
    set_paused(state, path, false).await
}

async fn set_paused(
    State(web): State<Web>,
    Path((namespace, name)): Path<(String, String)>,
    paused: bool,
) -> Response {
    let key = ObjectKey::new(&namespace, &name);
    let (reply, answer) = oneshot::channel();
    let question = Question::Pause { key, paused, reply };
    if web.questions.send(question).await.is_err() {
        return late();
    }
    match answer.await {
        Ok(Ok(true)) => StatusCode::NO_CONTENT.into_response(),
        Ok(Ok(false)) => failure(
            StatusCode::NOT_FOUND,
            format!("there is no ImagePrePull {namespace}/{name}"),
        ),
        Ok(Err(error)) => failure(StatusCode::BAD_GATEWAY, error),
        Err(_) => late(),
    }
}

// ---- the webhook
// ------------------------------------------------------------------------------------------------------

/// Answers an admission review. A review that adds no label with the value `true` is allowed: the webhook guards drain
/// labels and nothing else.
async fn webhook(State(web): State<Web>, request: Request) -> Response {
    let (review, key) = match web.intake.read(request).await {
        Ok(read) => read,
        Err(unread) => return unread.into_response(),
    };
    let Some(change) = review.change() else {
        return Json(review.answer(None)).into_response();
    };
    // a caller without the key may be anybody, so it takes no place under the cap
    let known = key.is_some_and(|key| key.matches(&web.key));
    if !known && *web.keyed.borrow() {
        let reason = "this isn't asked by the webhook's path as the coordinator keeps it; ask again in some seconds";
        return Json(review.answer(Some(reason))).into_response();
    }
    let admission = ask(&web, |reply| Question::Admit { change, reply }).await;
    let admission = admission.unwrap_or_else(|| {
        Admission::Refused("the coordinator is busy; the label is asked for again later".into())
    });
    let refused = match &admission {
        Admission::Allowed => None,
        Admission::Refused(reason) => Some(reason.as_str()),
    };
    Json(review.answer(refused)).into_response()
}

// ---- runners
// ----------------------------------------------------------------------------------------------------------

/// Answers a runner: 410 when the Pod shall leave, 204 when the Pod may stay, 404 when there is no such Pod, and 503
/// while the coordinator doesn't know. The server that runners of known fleets ask answers 410 to a stale Pod with the
/// drain label, too (tuist/tuist of autumn 2026, infra/runners-controller/controllers/runnerpool_controller.go:
/// drainEligibleLabel).
async fn drain(
    State(web): State<Web>,
    Path((namespace, pod)): Path<(String, String)>,
    remote: Option<Extension<Remote>>,
    headers: HeaderMap,
) -> Response {
    let Some(token) = bearer(&headers) else {
        return failure(
            StatusCode::UNAUTHORIZED,
            "this needs the Pod's own ServiceAccount token, or the API's",
        );
    };
    if !token.matches(&web.token) {
        let remote = remote.map_or(Ipv4Addr::UNSPECIFIED.into(), |remote| remote.0.0);
        match web.tokens.caller(&token, remote).await {
            Err(error) => return unavailable(error),
            Ok(None) => {
                return failure(
                    StatusCode::UNAUTHORIZED,
                    "the API server doesn't know this token",
                );
            }
            Ok(Some(caller)) if caller.is(&namespace, &pod) => {}
            Ok(Some(_)) => {
                return failure(StatusCode::FORBIDDEN, "a Pod may ask about itself only");
            }
        }
    }
    let key = ObjectKey::new(&namespace, &pod);
    match ask(&web, |reply| Question::Drain { key, reply }).await {
        Some(Drain::Leave) => StatusCode::GONE.into_response(),
        Some(Drain::Stay) => StatusCode::NO_CONTENT.into_response(),
        Some(Drain::NoSuchPod) => failure(StatusCode::NOT_FOUND, "there is no such Pod"),
        Some(Drain::Unknown) => failure(
            StatusCode::SERVICE_UNAVAILABLE,
            "the coordinator doesn't know the whole cluster (yet); ask again in a moment",
        ),
        None => late(),
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http};
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;
    use kube::Client;
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::{keeper::QUESTIONS, review::tests};

    struct Stand {
        router: Router,
        keyed: watch::Sender<bool>,
        questions: mpsc::Receiver<Question>,
        key: Secret,
    }

    fn stand() -> Stand {
        let (asked, questions) = mpsc::channel(QUESTIONS);
        let (keyed, seen) = watch::channel(false);
        let token = Secret::from_text("token");
        let nobody = Client::new(Router::new(), "default");
        let web = Web::new(Tokens::new(nobody, Vec::new()), asked, token.clone(), seen);
        Stand {
            router: router(web),
            keyed,
            questions,
            key: review::key(&token),
        }
    }

    impl Stand {
        async fn post(&mut self, path: &str, body: impl Into<Body>) -> (StatusCode, Value) {
            let request = http::Request::post(path).body(body.into()).unwrap();
            let response = TowerToHyperService::new(self.router.clone())
                .call(request)
                .await
                .unwrap();
            let status = response.status();
            let body = axum::body::to_bytes(response.into_body(), 1 << 20).await;
            let body = serde_json::from_slice(&body.unwrap()).unwrap_or_default();
            (status, body)
        }

        /// The answer to a review that adds a label, and whether the gate was asked.
        async fn review(&mut self, path: &str) -> (Value, bool) {
            let label = json!({ "drain": "true" });
            let review = tests::review("UPDATE", &Value::Null, &label).to_string();
            let (asked, answer) = {
                let mut questions = std::mem::replace(&mut self.questions, mpsc::channel(1).1);
                let keeper = async {
                    let Some(Question::Admit { change, reply }) = questions.recv().await else {
                        panic!("another question");
                    };
                    assert_eq!((change.uid.as_str(), change.dry_run), ("pod", false));
                    drop(reply.send(Admission::Allowed));
                };
                let outcome = tokio::select! {
                    biased;
                    answer = self.post(path, review) => (false, answer),
                    () = keeper => (true, Default::default()),
                };
                self.questions = questions;
                outcome
            };
            (answer.1["response"].clone(), asked)
        }
    }

    #[tokio::test]
    async fn who_is_not_the_api_server_takes_no_place_under_the_cap() {
        let mut stand = stand();
        let keyed = format!("{}/{}", review::PATH, stand.key.expose());
        let forged = format!("{}/{}", review::PATH, "0".repeat(32));
        // while the configuration has no key, each of these may be the API server
        for path in [review::PATH, &forged, &keyed] {
            assert!(stand.review(path).await.1, "{path}");
        }
        stand.keyed.send_replace(true);
        for path in [review::PATH, &forged] {
            let (response, asked) = stand.review(path).await;
            assert!(!asked && response["allowed"] == false, "{path}: {response}");
        }
        assert!(stand.review(&keyed).await.1);
        // a review that asks for nothing is answered for everybody
        let nothing = tests::review("UPDATE", &Value::Null, &Value::Null).to_string();
        let (status, answer) = stand.post(review::PATH, nothing).await;
        assert_eq!(
            (status, &answer["response"]["allowed"]),
            (StatusCode::OK, &json!(true))
        );
    }

    #[tokio::test]
    async fn a_review_is_small_whole_and_sound_or_refused() {
        let mut stand = stand();
        let large = vec![b' '; review::MAX_BYTES + 1];
        let (status, _) = stand.post(review::PATH, large).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        let (status, _) = stand.post(review::PATH, "{").await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        let never = futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
        let (status, _) = stand.post(review::PATH, Body::from_stream(never)).await;
        assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
    }
}
