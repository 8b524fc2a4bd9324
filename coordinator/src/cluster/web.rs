//! What a leader answers about the cluster: the API server's webhook, runners that ask whether to leave, and operators.
//!
//! The API server can't be told apart from others, so its question changes nothing that matters: facts come from the
//! watch, and an answer takes at most a place under the cap, for half a minute. Runners show their own ServiceAccount's
//! token and may ask about their own Pod; operators show the API's token.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderMap, StatusCode};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    core::v1::Pod,
};
use kube::{Api, Client, api::PostParams};
use proto::Digest;
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};
use tracing::warn;

use super::{
    index::ObjectKey,
    keeper::{Admission, Drain, Question},
};
use crate::{
    api::{bearer, unavailable},
    secret::Secret,
    view::Problem,
};

/// The largest admission review: two Pods of 1.5 MB.
const MAX_REVIEW_BYTES: usize = 4 << 20;
/// The keeper answers within this time; the API server waits 2 s for a webhook.
const ANSWER: Duration = Duration::from_millis(1_500);
/// The API server answers for a token within this time.
const REVIEW: Duration = Duration::from_secs(5);
/// A token that was found good counts for so long, and one that wasn't for as long as a runner's poll.
const GOOD_FOR: Duration = Duration::from_secs(60);
const BAD_FOR: Duration = Duration::from_secs(10);
/// Tokens that are remembered: a fleet's runners twice over.
const REMEMBERED: usize = 4_096;
/// Reviews under way at one time.
const REVIEWS: usize = 16;

/// What answers are made of.
#[derive(Clone)]
pub(crate) struct Web {
    questions: mpsc::Sender<Question>,
    token: Secret,
    reviews: Arc<Reviews>,
}

/// Who holds which token, as the API server said lately.
struct Reviews {
    client: Client,
    slots: Semaphore,
    /// By the token's digest. For a moment only, never across an await.
    known: Mutex<BTreeMap<Digest, (Option<Caller>, Instant)>>,
}

/// A ServiceAccount that asks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Caller {
    namespace: String,
    account: String,
    /// The Pod that the token is bound to, where it is.
    pod: Option<String>,
}

impl Web {
    pub(crate) fn new(client: Client, questions: mpsc::Sender<Question>, token: Secret) -> Self {
        Self {
            questions,
            token,
            reviews: Arc::new(Reviews {
                client,
                slots: Semaphore::new(REVIEWS),
                known: Mutex::default(),
            }),
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
        .route(
            "/v1/webhook/pods",
            post(webhook).layer(DefaultBodyLimit::max(MAX_REVIEW_BYTES)),
        )
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
    timeout(ANSWER, asked).await.ok()?
}

// ---- operators --------------------------------------------------------------------------------------------------------

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

// ---- the webhook ------------------------------------------------------------------------------------------------------

/// Answers an admission review. What can't be read is let through: the webhook guards one label, nothing else.
async fn webhook(State(web): State<Web>, Json(review): Json<Value>) -> Response {
    let request = &review["request"];
    let pod = |object: &str| serde_json::from_value::<Pod>(request[object].clone()).ok();
    let (true, Some(before), Some(wanted)) = (
        request["operation"] == "UPDATE",
        pod("oldObject"),
        pod("object"),
    ) else {
        return answer(&review, Admission::Allowed);
    };
    let dry_run = request["dryRun"] == true;
    let question = |reply| Question::Admit {
        pod: Box::new(before),
        wanted: Box::new(wanted),
        dry_run,
        reply,
    };
    let admission = ask(&web, question).await.unwrap_or_else(|| {
        Admission::Refused("the coordinator is busy; the label is asked for again later".into())
    });
    answer(&review, admission)
}

fn answer(review: &Value, admission: Admission) -> Response {
    let mut response = json!({ "uid": review["request"]["uid"], "allowed": true });
    if let Admission::Refused(reason) = admission {
        response["allowed"] = false.into();
        response["status"] = json!({ "code": 403, "message": format!("parbake: {reason}") });
    }
    let review = json!({
        "apiVersion": review["apiVersion"],
        "kind": "AdmissionReview",
        "response": response,
    });
    Json(review).into_response()
}

// ---- runners ----------------------------------------------------------------------------------------------------------

/// 410 when the Pod shall leave, 204 when it may stay, 404 when there is no such Pod, 503 while that isn't known.
async fn drain(
    State(web): State<Web>,
    Path((namespace, pod)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let Some(token) = bearer(&headers) else {
        return failure(
            StatusCode::UNAUTHORIZED,
            "this needs the Pod's own ServiceAccount token, or the API's",
        );
    };
    if !token.matches(&web.token) {
        match web.reviews.caller(&token).await {
            Err(response) => return *response,
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

impl Caller {
    /// Who a reviewed token belongs to; `None` when it isn't a ServiceAccount's.
    fn of(user: &UserInfo) -> Option<Self> {
        let name = user.username.as_ref()?;
        let rest = name.strip_prefix("system:serviceaccount:")?;
        let (namespace, account) = rest.split_once(':')?;
        let pod = user
            .extra
            .as_ref()
            .and_then(|extra| extra.get("authentication.kubernetes.io/pod-name"))
            .and_then(|names| names.first().cloned());
        Some(Self {
            namespace: namespace.to_owned(),
            account: account.to_owned(),
            pod,
        })
    }

    /// A token that is bound to a Pod speaks for that Pod; another for the Pod that has its account's name.
    fn is(&self, namespace: &str, pod: &str) -> bool {
        self.namespace == namespace && self.pod.as_ref().unwrap_or(&self.account) == pod
    }
}

impl Reviews {
    async fn caller(&self, token: &Secret) -> Result<Option<Caller>, Box<Response>> {
        let digest = token.digest();
        {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((caller, until)) = known.get(&digest)
                && *until > Instant::now()
            {
                return Ok(caller.clone());
            }
        }
        let Ok(_slot) = self.slots.acquire().await else {
            return Err(Box::new(late()));
        };
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.expose().to_owned()),
                audiences: None,
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = timeout(REVIEW, api.create(&PostParams::default(), &review)).await;
        let status = match answer {
            Ok(Ok(review)) => review.status.unwrap_or_default(),
            Ok(Err(error)) => {
                warn!(%error, "a token can't be reviewed");
                return Err(Box::new(late()));
            }
            Err(_) => return Err(Box::new(late())),
        };
        let caller = match (status.authenticated, &status.user) {
            (Some(true), Some(user)) => Caller::of(user),
            _ => None,
        };
        let life = if caller.is_some() { GOOD_FOR } else { BAD_FOR };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.retain(|_, (_, until)| *until > Instant::now());
        }
        if known.len() < REMEMBERED {
            known.insert(digest, (caller.clone(), Instant::now() + life));
        }
        Ok(caller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, pod: Option<&str>) -> UserInfo {
        UserInfo {
            username: Some(name.into()),
            extra: pod.map(|pod| {
                let key = "authentication.kubernetes.io/pod-name".to_owned();
                [(key, vec![pod.to_owned()])].into()
            }),
            ..UserInfo::default()
        }
    }

    #[test]
    fn a_token_speaks_for_its_own_pod_only() {
        let of = |name, pod| Caller::of(&user(name, pod));
        let plain = of("system:serviceaccount:ns:pod-1", None).unwrap();
        assert!(plain.is("ns", "pod-1"));
        assert!(!plain.is("ns", "pod-2") && !plain.is("other", "pod-1"));
        let bound = of("system:serviceaccount:ns:shared", Some("pod-2")).unwrap();
        assert!(bound.is("ns", "pod-2"));
        assert!(!bound.is("ns", "shared"));
        assert_eq!(of("admin", None), None);
        assert_eq!(of("system:node:mini-1", Some("pod-1")), None);
    }
}
