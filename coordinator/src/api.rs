//! The HTTP API: what operators and enrolling hosts ask. Words are in [`crate::view`].
//!
//! Every route but `/v1/enrol`, `/v1/renew` and `/healthz` wants the API's bearer token. Reads come from the driver's published view;
//! changes are questions to the driver, answered when they are written down.

mod tries;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Extension, MatchedPath, Path, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, StatusCode, header};
use proto::{Digest, HostId};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    authority::Authority,
    cluster::state::Saver,
    driver::{Ask, CONFIRMING, CancelError, Input, StageError, View},
    enrolment::{Enrolment, MintError, RedeemError, unix},
    fleet::{Membership, Reread},
    metrics::{Metrics, RequestLabel},
    renewal,
    resolve::{Registries, ResolveError},
    secret::Secret,
    serve::Remote,
    view::{
        BandwidthRequest, EnrolReply, EnrolRequest, HostProgress, HostState, ImageState, ImageView,
        Problem, RenewRequest, RevokeRequest, StageRequest, TokenReply, TokenRequest,
    },
};

pub(crate) use self::tries::Tries;

/// The largest request body: a selection of every host of the largest fleet.
const MAX_BODY_BYTES: usize = 1 << 20;
/// The largest enrolment or late renewal: a token or a certificate, and a certificate request, from who isn't known yet.
const MAX_ENROL_BYTES: usize = 32 << 10;
/// A request is answered within this time; longer than a registry may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
/// An answer waits so long for hosts that look whether they still hold an image: looks take milliseconds.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);
/// Followers of progress at one time.
const FOLLOWERS: usize = 64;
/// Lines of progress are at least this far apart.
const LINE_PAUSE: Duration = Duration::from_millis(250);
/// A line comes at least this often, so that both ends see that the other lives.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// What the API is made of.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) inbox: mpsc::Sender<Input>,
    pub(crate) view: watch::Receiver<Arc<View>>,
    pub(crate) membership: watch::Receiver<Arc<Membership>>,
    pub(crate) reload: mpsc::Sender<Reread>,
    pub(crate) token: Secret,
    pub(crate) authority: Arc<Authority>,
    pub(crate) enrolment: Enrolment,
    /// What is told waits for it, where records change.
    pub(crate) saver: Saver,
    pub(crate) registries: Arc<Registries>,
    pub(crate) metrics: Metrics,
    pub(crate) certificate_lifetime: Duration,
    pub(crate) renewal_grace: Duration,
    pub(crate) token_lifetime: Duration,
    /// `host:port`, or `:port` for the host that was asked.
    pub(crate) quic: String,
    pub(crate) followers: Arc<Semaphore>,
    pub(crate) tries: Arc<Tries>,
}

impl Api {
    pub(crate) fn follow_slots() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(FOLLOWERS))
    }

    /// What a host is told that got this certificate.
    fn reply(
        &self,
        host: &HostId,
        chain: &[CertificateDer<'static>],
        now: SystemTime,
    ) -> EnrolReply {
        EnrolReply {
            host: host.to_string(),
            chain: chain.iter().map(|certificate| pem(certificate)).collect(),
            authority: self.authority.pem().to_owned(),
            address: self.quic.clone(),
            expires_at: unix(now + self.certificate_lifetime),
        }
    }
}

/// All routes, and `more` beside them: each request is answered in time, has a bounded body, and is counted.
pub(crate) fn router(api: Api, more: Router) -> Router {
    let operators = Router::new()
        .route("/v1/images", post(stage).get(images))
        .route("/v1/images/{image}", get(image))
        .route("/v1/images/{image}", delete(cancel))
        .route("/v1/images/{image}/events", get(events))
        .route("/v1/hosts", get(hosts))
        .route("/v1/hosts/{host}", get(host))
        .route("/v1/hosts/{host}/revoke", post(revoke).delete(readmit))
        .route("/v1/plan", post(plan))
        .route("/v1/tokens", post(token))
        .route("/v1/bandwidth", put(bandwidth))
        .layer(middleware::from_fn_with_state(api.clone(), authenticate));
    Router::new()
        .merge(operators)
        .merge(more.with_state(()))
        .route(
            "/v1/enrol",
            post(enrol).layer(DefaultBodyLimit::max(MAX_ENROL_BYTES)),
        )
        .route(
            "/v1/renew",
            post(renew).layer(DefaultBodyLimit::max(MAX_ENROL_BYTES)),
        )
        .route("/healthz", get(|| async { "ok\n" }))
        .fallback(nowhere)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(api.clone(), count))
        .with_state(api)
}

/// What is answered before a coordinator serves: that it will.
pub(crate) fn starting() -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .fallback(|| async { unavailable("the coordinator is starting; ask again in a second") })
}

/// Who asks may try again at once: a leader is being chosen, or the coordinator starts or stops.
pub(crate) fn unavailable(error: impl ToString) -> Response {
    Failure::new(StatusCode::SERVICE_UNAVAILABLE, error).into_response()
}

/// Who has no token isn't told what there is.
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

/// A request that failed: status and [`Problem`].
#[derive(Debug)]
struct Failure(StatusCode, String);

impl Failure {
    fn new(status: StatusCode, error: impl ToString) -> Self {
        Self(status, error.to_string())
    }

    fn internal(error: impl ToString) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error)
    }

    fn stopping() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "coordinator is stopping; ask again in a moment",
        )
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = (self.0, Json(Problem { error: self.1 })).into_response();
        if self.0 == StatusCode::SERVICE_UNAVAILABLE {
            let second = http::HeaderValue::from_static("1");
            response.headers_mut().insert(header::RETRY_AFTER, second);
        }
        response
    }
}

impl From<ResolveError> for Failure {
    fn from(error: ResolveError) -> Self {
        let status = match &error {
            ResolveError::Reference { .. } => StatusCode::BAD_REQUEST,
            ResolveError::NotFound { .. } => StatusCode::NOT_FOUND,
            ResolveError::Image { .. } | ResolveError::NoManifest { .. } => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            ResolveError::Password { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            ResolveError::Registry { .. } => StatusCode::BAD_GATEWAY,
            ResolveError::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
        };
        Self::new(status, error)
    }
}

impl From<StageError> for Failure {
    fn from(error: StageError) -> Self {
        let status = match &error {
            StageError::UnknownHost(_) => StatusCode::NOT_FOUND,
            StageError::Revoked { .. } => StatusCode::CONFLICT,
            StageError::NotKept(_) => StatusCode::INTERNAL_SERVER_ERROR,
            StageError::NoHosts
            | StageError::TooManyImages
            | StageError::TooManyReferences
            | StageError::TooManyNames
            | StageError::NowhereFits { .. } => StatusCode::CONFLICT,
        };
        Self::new(status, error)
    }
}

impl From<CancelError> for Failure {
    fn from(error: CancelError) -> Self {
        let status = match &error {
            CancelError::Unwanted { .. } => StatusCode::NOT_FOUND,
            CancelError::ByCluster(_) => StatusCode::CONFLICT,
            CancelError::NotKept(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error)
    }
}

type Answer<T> = Result<T, Failure>;

// ---- layers -----------------------------------------------------------------------------------------------------------

async fn authenticate(State(api): State<Api>, request: Request, next: Next) -> Response {
    match denied(&api, request.headers()) {
        Some(denied) => denied,
        None => next.run(request).await,
    }
}

/// The answer to who doesn't show the API's token.
fn denied(api: &Api, headers: &HeaderMap) -> Option<Response> {
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

pub(crate) fn bearer(headers: &HeaderMap) -> Option<Secret> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| Secret::from_text(token))
}

async fn count(State(api): State<Api>, request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map(|path| path.as_str().to_owned());
    let response = match timeout(ANSWER_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Failure::new(
            StatusCode::GATEWAY_TIMEOUT,
            format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
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

/// A closed set: what was asked for isn't a label.
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

/// Reads a body. The content type doesn't matter: there is only JSON.
fn read<T: DeserializeOwned>(body: &Bytes) -> Answer<T> {
    serde_json::from_slice(body)
        .map_err(|error| Failure::new(StatusCode::BAD_REQUEST, format!("request body: {error}")))
}

async fn ask<T>(api: &Api, make: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Answer<T> {
    let (reply, answer) = oneshot::channel();
    api.inbox
        .send(Input::Asked(make(reply)))
        .await
        .map_err(|_| Failure::stopping())?;
    answer.await.map_err(|_| {
        Failure::internal("the coordinator couldn't write its state; see its log, and ask again")
    })
}

/// Runs what touches the disk away from the reactor.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Answer<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(Failure::internal)
}

// ---- images -----------------------------------------------------------------------------------------------------------

fn selection(hosts: Option<Vec<String>>) -> Answer<Option<BTreeSet<HostId>>> {
    let Some(hosts) = hosts else { return Ok(None) };
    if hosts.is_empty() {
        let error = "`hosts` is empty; leave it out to stage on all hosts";
        return Err(Failure::new(StatusCode::BAD_REQUEST, error));
    }
    let parse = |host: String| {
        host.parse::<HostId>().map_err(|error| {
            Failure::new(
                StatusCode::BAD_REQUEST,
                format!("host `{}`: {error}", crate::progress::clean(&host)),
            )
        })
    };
    hosts
        .into_iter()
        .map(parse)
        .collect::<Answer<_>>()
        .map(Some)
}

async fn stage(State(api): State<Api>, body: Bytes) -> Answer<Response> {
    let request: StageRequest = read(&body)?;
    let hosts = selection(request.hosts)?;
    let want = api
        .registries
        .resolve(&request.reference, hosts, None)
        .await?;
    take_in_records(&api).await;
    let reply = ask(&api, |reply| Ask::Stage {
        want: Box::new(want),
        reply,
    });
    let mut reply = reply.await??;
    if let Some(image) = confirmed(&api, &reply.image).await {
        reply.image = image;
    }
    let status = if reply.image.state == ImageState::Present {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    Ok((status, Json(reply)).into_response())
}

/// Hosts that hold an image look again when it is asked for again. That takes a moment, which is waited for: the image as
/// it stands then. `None` when it isn't that alone which keeps it from being present.
async fn confirmed(api: &Api, image: &ImageView) -> Option<ImageView> {
    let is_confirming = |image: &ImageView| {
        let confirming = |host: &&HostProgress| host.reason.as_deref() == Some(CONFIRMING);
        let hosts = || {
            let hosts = image.hosts.iter();
            hosts.filter(|host| host.state != HostState::Present)
        };
        hosts().next().is_some() && hosts().all(|host| confirming(&host))
    };
    let digest: Digest = image.digest.parse().ok()?;
    if !is_confirming(image) {
        return None;
    }
    let mut view = api.view.clone();
    let settled = view.wait_for(|view| {
        let image = view.images.get(&digest);
        image.is_none_or(|image| !is_confirming(image))
    });
    let view = timeout(CONFIRM_TIMEOUT, settled).await.ok()?.ok()?;
    view.images.get(&digest).map(|image| image.as_ref().clone())
}

async fn plan(State(api): State<Api>, body: Bytes) -> Answer<Response> {
    let request: StageRequest = read(&body)?;
    let hosts = selection(request.hosts)?;
    let want = api
        .registries
        .resolve(&request.reference, hosts, None)
        .await?;
    take_in_records(&api).await;
    let reply = ask(&api, |reply| Ask::Preview {
        want: Box::new(want),
        reply,
    });
    Ok(Json(reply.await??).into_response())
}

async fn images(State(api): State<Api>) -> Response {
    let view = api.view.borrow().clone();
    let images: Vec<&ImageView> = view.images.values().map(AsRef::as_ref).collect();
    Json(images).into_response()
}

/// The image that a path names: by digest, or by one of its references (percent-encoded).
fn find(view: &View, name: &str) -> Answer<Digest> {
    if let Ok(digest) = name.parse::<Digest>()
        && view.images.contains_key(&digest)
    {
        return Ok(digest);
    }
    view.images
        .iter()
        .find(|(_, image)| image.references.iter().any(|reference| reference == name))
        .map(|(digest, _)| *digest)
        .ok_or_else(|| {
            let name = crate::progress::clean(name);
            // after a start not everything is wanted again that was: who waits for an image isn't told that nobody wants it
            if !view.whole {
                let error = format!(
                    "image `{name}` isn't among what the coordinator knows to be wanted since it started; it is still finding out: ask again"
                );
                return Failure::new(StatusCode::SERVICE_UNAVAILABLE, error);
            }
            Failure::new(
                StatusCode::NOT_FOUND,
                format!("image `{name}` isn't wanted; see `parbake status`"),
            )
        })
}

async fn image(State(api): State<Api>, Path(name): Path<String>) -> Answer<Response> {
    let view = api.view.borrow().clone();
    let digest = find(&view, &name)?;
    Ok(Json(view.images[&digest].as_ref()).into_response())
}

async fn cancel(State(api): State<Api>, Path(name): Path<String>) -> Answer<Response> {
    let reply = ask(&api, |reply| Ask::Cancel { name, reply });
    Ok(Json(reply.await??).into_response())
}

/// Progress of one image: an [`ImageView`] a line. Ends with a line whose state is `cancelled` when it isn't wanted any more.
async fn events(State(api): State<Api>, Path(name): Path<String>) -> Answer<Response> {
    let digest = find(&api.view.borrow().clone(), &name)?;
    let Ok(slot) = api.followers.clone().try_acquire_owned() else {
        let error = format!(
            "{FOLLOWERS} followers are served already; ask `GET /v1/images/{digest}` now and then"
        );
        return Err(Failure::new(StatusCode::TOO_MANY_REQUESTS, error));
    };
    let follow = Follow {
        view: api.view.clone(),
        digest,
        last: None,
        sent_at: None,
        ended: false,
        _slot: slot,
    };
    let lines = futures_util::stream::unfold(follow, |mut follow| async move {
        let line = follow.next().await?;
        Some((Ok::<_, std::convert::Infallible>(line), follow))
    });
    Ok((
        [
            (header::CONTENT_TYPE, "application/x-ndjson"),
            (header::CACHE_CONTROL, "no-store"),
        ],
        Body::from_stream(lines),
    )
        .into_response())
}

/// A follower of one image: always the newest view, never a queue.
struct Follow {
    view: watch::Receiver<Arc<View>>,
    digest: Digest,
    /// What was sent last; and the same without ages, which aren't news.
    last: Option<(Arc<ImageView>, ImageView)>,
    sent_at: Option<Instant>,
    ended: bool,
    _slot: OwnedSemaphorePermit,
}

impl Follow {
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if let Some(sent_at) = self.sent_at {
            sleep_until(sent_at + LINE_PAUSE).await;
        }
        loop {
            let now = self
                .view
                .borrow_and_update()
                .images
                .get(&self.digest)
                .cloned();
            match (&now, &self.last) {
                // Cancelled, or superseded: what was shown last, and that it is over.
                (None, last) => {
                    let mut over = last.as_ref()?.0.as_ref().clone();
                    over.state = ImageState::Cancelled;
                    self.ended = true;
                    return line(&over);
                }
                (Some(now), Some((_, last))) if now.without_ages() == *last => {
                    let quiet_until = self.sent_at.unwrap_or_else(Instant::now) + LINE_EVERY;
                    tokio::select! {
                        changed = self.view.changed() => {
                            // The coordinator is stopping.
                            changed.ok()?;
                            continue;
                        }
                        () = sleep_until(quiet_until) => {}
                    }
                }
                (Some(_), _) => {}
            }
            let now = now?;
            let line = line(&now);
            let ageless = now.without_ages();
            self.last = Some((now, ageless));
            self.sent_at = Some(Instant::now());
            return line;
        }
    }
}

fn line(image: &ImageView) -> Option<Bytes> {
    let mut text = serde_json::to_vec(image).ok()?;
    text.push(b'\n');
    Some(text.into())
}

// ---- hosts ------------------------------------------------------------------------------------------------------------

async fn hosts(State(api): State<Api>) -> Response {
    let view = api.view.borrow().clone();
    let hosts: Vec<_> = view.hosts.values().map(AsRef::as_ref).collect();
    Json(hosts).into_response()
}

fn host_id(name: &str) -> Answer<HostId> {
    name.parse().map_err(|error| {
        let name = crate::progress::clean(name);
        Failure::new(StatusCode::BAD_REQUEST, format!("host `{name}`: {error}"))
    })
}

async fn host(State(api): State<Api>, Path(name): Path<String>) -> Answer<Response> {
    let host = host_id(&name)?;
    let view = api.view.borrow().clone();
    match view.hosts.get(&host) {
        Some(host) => Ok(Json(host.as_ref()).into_response()),
        None => {
            let error = format!(
                "host {host} isn't part of the fleet; add it to the fleet file and enrol it"
            );
            Err(Failure::new(StatusCode::NOT_FOUND, error))
        }
    }
}

async fn revoke(State(api): State<Api>, Path(name): Path<String>, body: Bytes) -> Answer<Response> {
    let host = host_id(&name)?;
    let request: RevokeRequest = if body.is_empty() {
        RevokeRequest::default()
    } else {
        read(&body)?
    };
    let named = api.membership.borrow().fleet.hosts.contains_key(&host);
    let (enrolment, id) = (api.enrolment.clone(), host.clone());
    let known = blocking(move || enrolment.knows(&id)).await?;
    if !named && !request.force && !known.map_err(Failure::internal)? {
        let error = format!(
            "host {host} isn't in the fleet file and never enrolled; see `parbake hosts`. `\"force\": true` revokes it all the same"
        );
        return Err(Failure::new(StatusCode::NOT_FOUND, error));
    }
    let (enrolment, id) = (api.enrolment.clone(), host.clone());
    let revoked = blocking(move || enrolment.revoke(&id, &request.reason, SystemTime::now()));
    revoked.await?.map_err(Failure::internal)?;
    saved(&api).await?;
    warn!(%host, "host is revoked");
    reread(&api, &host, true).await;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn readmit(State(api): State<Api>, Path(name): Path<String>) -> Answer<Response> {
    let host = host_id(&name)?;
    let (enrolment, id) = (api.enrolment.clone(), host.clone());
    let readmitted = blocking(move || enrolment.readmit(&id, SystemTime::now()));
    if !readmitted.await?.map_err(Failure::internal)? {
        return Err(Failure::new(
            StatusCode::NOT_FOUND,
            format!("host {host} isn't revoked"),
        ));
    }
    saved(&api).await?;
    warn!(%host, "host is readmitted");
    reread(&api, &host, false).await;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Has the records read again before hosts are chosen: who readmits a host by the command line and stages next means that host too.
async fn take_in_records(api: &Api) {
    let (answer, read) = oneshot::channel();
    let taken_in = async {
        if api.reload.send(Reread::Answer(answer)).await.is_ok() {
            _ = read.await;
        }
    };
    if timeout(Duration::from_secs(2), taken_in).await.is_err() {
        warn!("enrolment records take long to read; hosts are chosen by what was known before");
    }
}

/// Has the records read again now, and waits until the driver has acted on it.
async fn reread(api: &Api, host: &HostId, revoked: bool) {
    // Full: a look is due anyway.
    _ = api.reload.try_send(Reread::Records);
    let mut view = api.view.clone();
    let seen =
        view.wait_for(|view| view.hosts.get(host).is_some_and(|host| host.revoked) == revoked);
    if !matches!(timeout(Duration::from_secs(5), seen).await, Ok(Ok(_))) {
        debug!("changed enrolment records aren't in force yet");
    }
}

async fn bandwidth(State(api): State<Api>, body: Bytes) -> Answer<Response> {
    let limits: BandwidthRequest = read(&body)?;
    let kept = ask(&api, |reply| Ask::Bandwidth { limits, reply });
    kept.await?.map_err(Failure::internal)?;
    Ok(Json(limits).into_response())
}

// ---- enrolment --------------------------------------------------------------------------------------------------------

async fn token(State(api): State<Api>, body: Bytes) -> Answer<Response> {
    let request: TokenRequest = read(&body)?;
    let host = host_id(&request.host)?;
    if !api.membership.borrow().fleet.admits(&host) {
        let error = format!("host {host} isn't in the fleet file; add it, or set `open = true`");
        return Err(Failure::new(StatusCode::CONFLICT, error));
    }
    let lifetime = request
        .lifetime_seconds
        .map_or(api.token_lifetime, Duration::from_secs);
    if lifetime.is_zero() || lifetime > Duration::from_hours(30 * 24) {
        let error = "`lifetime_seconds` has to be from 1 to 2592000";
        return Err(Failure::new(StatusCode::BAD_REQUEST, error));
    }
    let (enrolment, id) = (api.enrolment.clone(), host.clone());
    let now = SystemTime::now();
    let minted = blocking(move || enrolment.mint(&id, lifetime, now)).await?;
    let token = minted.map_err(|error| {
        let status = match &error {
            MintError::Record(_) => StatusCode::INTERNAL_SERVER_ERROR,
            MintError::Reserved | MintError::Revoked(_) | MintError::TooMany => {
                StatusCode::CONFLICT
            }
        };
        Failure::new(status, error)
    })?;
    saved(&api).await?;
    Metrics::count(&api.metrics.tokens, "made");
    info!(%host, lifetime_s = lifetime.as_secs(), "enrolment token made");
    let reply = TokenReply {
        host: host.to_string(),
        token: token.expose().to_owned(),
        expires_at: unix(now + lifetime),
        ca_pin: api.authority.pin().hex().to_string(),
    };
    Ok((StatusCode::CREATED, Json(reply)).into_response())
}

fn too_many() -> Failure {
    let error = "too many hosts want certificates at this moment; try again in a second";
    Failure::new(StatusCode::TOO_MANY_REQUESTS, error)
}

/// Where a request comes from; a server that doesn't say so has one address for all.
fn address(remote: Option<Extension<Remote>>) -> IpAddr {
    remote.map_or(Ipv4Addr::UNSPECIFIED.into(), |remote| remote.0.0)
}

async fn enrol(
    State(api): State<Api>,
    remote: Option<Extension<Remote>>,
    body: Bytes,
) -> Answer<Response> {
    let request: EnrolRequest = read(&body)?;
    let csr = der::<CertificateSigningRequestDer<'static>>("csr", &request.csr)?;
    let token = Secret::from_text(&request.token);
    let work = api.clone();
    let place = api.tries.begin().await.ok_or_else(too_many)?;
    let answer = match blocking(move || enrol_now(&work, &token, &csr)).await? {
        // Until the token is used up where the next leader looks, the certificate stays here.
        Ok(done) => saved(&api).await.map(|()| done),
        Err(failure) => Err(failure),
    };
    drop(place);
    match answer {
        Ok((reply, from)) => {
            Metrics::count(&api.metrics.tokens, "used");
            Metrics::count(&api.metrics.certificates, "issued");
            info!(host = reply.host, "host enrolled");
            // So that an open fleet knows it at once, and an earlier key is nobody's when this one arrives.
            _ = api.reload.try_send(Reread::Records);
            let mut members = api.membership.clone();
            let known = members.wait_for(|members| {
                let since = members.enrolled.iter();
                let mut since = since.filter(|(host, _)| host.as_str() == reply.host);
                since.any(|(_, at)| *at >= from)
            });
            if !matches!(timeout(Duration::from_secs(5), known).await, Ok(Ok(_))) {
                debug!("the new enrolment isn't in force yet");
            }
            Ok(Json(reply).into_response())
        }
        Err(failure) => {
            Metrics::count(&api.metrics.tokens, "refused");
            let from = address(remote);
            api.tries.refused(from, "enrolment", &failure.1).await;
            Err(failure)
        }
    }
}

/// Waits until changed records are kept where the next leader finds them.
async fn saved(api: &Api) -> Answer<()> {
    let saved = api.saver.saved().await;
    saved.map_err(|error| Failure::new(StatusCode::SERVICE_UNAVAILABLE, error))
}

/// Signs to try the request, uses the token up, and signs what leaves: a bad request doesn't cost the token, and the
/// certificate is younger than the enrolment. With since when the host counts as enrolled.
fn enrol_now(api: &Api, token: &Secret, csr: &[u8]) -> Answer<(EnrolReply, u64)> {
    let denied = |error: RedeemError| {
        let status = match &error {
            RedeemError::Record(_) => StatusCode::INTERNAL_SERVER_ERROR,
            RedeemError::Unknown | RedeemError::Expired | RedeemError::Revoked(_) => {
                StatusCode::FORBIDDEN
            }
        };
        Failure::new(status, error)
    };
    let now = SystemTime::now();
    let host = api.enrolment.peek(token, now).map_err(denied)?;
    if !api.membership.borrow().admits(&host) {
        let error =
            format!("host {host} isn't part of the fleet any more; add it to the fleet file");
        return Err(Failure::new(StatusCode::FORBIDDEN, error));
    }
    let lifetime = api.certificate_lifetime;
    let bad = |error| Failure::new(StatusCode::BAD_REQUEST, error);
    drop(api.authority.issue(&host, csr, lifetime).map_err(bad)?);
    let (redeemed, from) = api.enrolment.redeem(token, now).map_err(denied)?;
    debug_assert_eq!(redeemed, host, "a token's host doesn't change");
    let chain = api.authority.issue_from(&host, csr, from, lifetime);
    Ok((api.reply(&host, &chain.map_err(bad)?, now), unix(from)))
}

/// A host whose certificate expired while it or the coordinator was away: that certificate and its key say who it is.
async fn renew(
    State(api): State<Api>,
    remote: Option<Extension<Remote>>,
    body: Bytes,
) -> Answer<Response> {
    let request: RenewRequest = read(&body)?;
    let certificate = der::<CertificateDer<'static>>("certificate", &request.certificate)?;
    let csr = der::<CertificateSigningRequestDer<'static>>("csr", &request.csr)?;
    let work = api.clone();
    let place = api.tries.begin().await.ok_or_else(too_many)?;
    let renewed = blocking(move || renew_now(&work, &certificate.into(), &csr)).await?;
    drop(place);
    match renewed {
        Ok(reply) => {
            Metrics::count(&api.metrics.certificates, "renewed");
            info!(host = reply.host, "expired certificate renewed");
            Ok(Json(reply).into_response())
        }
        Err(failure) => {
            Metrics::count(&api.metrics.certificates, "refused");
            let from = address(remote);
            api.tries.refused(from, "renewal", &failure.1).await;
            Err(failure)
        }
    }
}

fn renew_now(api: &Api, certificate: &CertificateDer<'_>, csr: &[u8]) -> Answer<EnrolReply> {
    let denied = |error: &dyn std::fmt::Display| Failure::new(StatusCode::FORBIDDEN, error);
    let now = SystemTime::now();
    let before = api
        .authority
        .recognise(certificate)
        .map_err(|error| denied(&error))?;
    let host = &before.host;
    let revoked = api.enrolment.is_revoked(host);
    let members = api.membership.borrow().clone();
    if revoked.map_err(Failure::internal)? || !members.admits(host) {
        return Err(denied(&members.refusal(host)));
    }
    let chain = api
        .authority
        .reissue(&before, csr, api.certificate_lifetime)
        .map_err(|error| Failure::new(StatusCode::BAD_REQUEST, error))?;
    // after signing: see `Enrolment::enrol`
    let enrolled_at = api.enrolment.enrolled_at(host);
    let enrolled_at = enrolled_at.map_err(Failure::internal)?;
    renewal::permit(host, before.validity, enrolled_at, api.renewal_grace, now)
        .map_err(|error| denied(&error))?;
    Ok(api.reply(host, &chain, now))
}

/// What PEM of this kind, or DER as base64, holds.
fn der<T: PemObject + AsRef<[u8]>>(field: &str, text: &str) -> Answer<Vec<u8>> {
    let bad =
        |reason: String| Failure::new(StatusCode::BAD_REQUEST, format!("`{field}`: {reason}"));
    if text.contains("-----BEGIN") {
        T::from_pem_slice(text.as_bytes())
            .map(|der| der.as_ref().to_vec())
            .map_err(|error| bad(error.to_string()))
    } else {
        STANDARD
            .decode(text.trim())
            .map_err(|error| bad(format!("neither PEM nor DER as base64: {error}")))
    }
}

/// A certificate as PEM (RFC 7468): base64 in lines of 64.
fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}
