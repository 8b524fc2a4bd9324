//! Answers requests: which client may have what, where it comes from, and what a client gets when it can't be had.
//!
//! tart gives up a pull at the first status but 200, or 206 where it resumes, and tries again when a connection breaks
//! (tart of August 2026, Sources/tart/OCI/Registry.swift: pullBlob; OCI/Layerizer/DiskV2.swift: pull, which asks for a
//! layer up to five times). containerd asks the registry itself at the first 404. So the mirror never answers with a
//! 5xx. Before the headers, a client waits until its connection is broken, is redirected or gets a 404 (as configured).
//! After the headers, its connection is broken.

use std::{
    convert::Infallible,
    fs::File,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    header::{
        ACCEPT, AGE, ALLOW, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName,
        HeaderValue, IF_RANGE, LOCATION, RANGE, WARNING, WWW_AUTHENTICATE,
    },
};
use origin::{Backoff, OriginError, Secret};
use proto::{Digest, RegistryReference, Version};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tracing::{debug, warn};
use wire::LocalNames;

use super::{
    answer::{Payload, Refusal, blob_part, list, name, pages, refusal_of, unsatisfiable, whole},
    blob::{Reading, Trouble},
    blobs::{BeginError, Blobs},
    browser,
    proof::Proof,
    range::{self, Wanted},
    request::{self, Asked, Refused, Repository},
    seek::Passing,
    share::Clients,
    stream::{Pulse, Stream, Terms, count, sample},
    token::carries,
    upstream::{Client, Found, Upstreams, is_away},
    wish::Wish,
};
use crate::{
    config::{MirrorSettings, OnTrouble},
    metrics::Metrics,
};

const API_HEADER: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// The connection has to be broken without an answer, so that the client tries again.
#[derive(Debug, thiserror::Error)]
#[error("the connection is broken, because every answer would make the client give up")]
pub(super) struct Broken;

/// Answers requests. All connections share it.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) settings: MirrorSettings,
    /// The names that a request on loopback may have in its `Host`. None beyond loopback, where any name will do,
    /// because the token says which clients may ask.
    pub(super) names: Option<LocalNames>,
    pub(super) upstreams: Arc<Upstreams>,
    pub(super) blobs: Arc<Blobs>,
    pub(super) wishes: mpsc::Sender<Wish>,
    pub(super) passing: Passing,
    pub(super) clients: Clients,
    pub(super) metrics: Metrics,
    /// The token that a client has to send, if other machines may connect.
    pub(super) token: Option<Secret>,
}

impl Service {
    /// Answers a request, and counts its result.
    pub(super) async fn answer<B>(
        &self,
        request: &Request<B>,
        pulse: &Arc<Pulse>,
    ) -> Result<Response<Payload>, Broken> {
        pulse.beat();
        let began = Instant::now();
        let head = request.method() == Method::HEAD;
        let asked = request::parse(
            request.uri().path(),
            request.uri().query(),
            self.settings.upstream.as_deref(),
        );
        let what = match &asked {
            Ok(Asked::Base) => "base",
            Ok(Asked::Manifest(..)) => "manifest",
            Ok(Asked::Blob(..)) => "blob",
            Ok(Asked::Tags(..)) => "tags",
            Ok(Asked::Referrers(..)) => "referrers",
            Ok(Asked::Catalog(..)) => "catalog",
            Err(_) => "other",
        };
        let (method, headers) = (request.method(), request.headers());
        let answered = match self.misnamed(request).or_else(|| pages(request)) {
            Some(refusal) => Ok(refusal.into()),
            None => self.route(method, headers, asked, began, pulse).await,
        };
        pulse.beat();
        let result = match &answered {
            Err(Broken) => Some("broken"),
            // a blob's result is counted when its stream ends
            Ok(response) if matches!(response.body(), Payload::Blob(_)) => None,
            Ok(response) => Some(match response.status().as_u16() {
                200 => "ok",
                206 => "partial",
                307 => "redirected",
                401 | 403 => "denied",
                404 => "not_found",
                _ => "refused",
            }),
        };
        if let Some(result) = result {
            count(&self.metrics, what, result);
        }
        let mut response = answered?;
        browser::fence(response.headers_mut());
        response
            .headers_mut()
            .insert(API_HEADER, HeaderValue::from_static("registry/2.0"));
        // a HEAD gets the length that a GET would get
        let length = response.body().len();
        response
            .headers_mut()
            .entry(CONTENT_LENGTH)
            .or_insert_with(|| length.into());
        if head {
            *response.body_mut() = whole(Bytes::new());
        }
        Ok(response)
    }

    /// The refusal of a request for a name that isn't this server's: it may come from a page in a browser whose name
    /// points here.
    fn misnamed<B>(&self, request: &Request<B>) -> Option<Refusal> {
        let names = self.names.as_ref()?;
        let target = request
            .uri()
            .authority()
            .map(|authority| authority.as_str());
        let headers = request.headers().get_all(HOST).iter();
        let mut hosts = headers
            .map(|host| host.to_str().unwrap_or_default())
            .chain(target);
        let refused = !hosts.all(|host| names.admits(host));
        refused.then(|| {
            let message =
                "the mirror is asked by an address or as localhost; mirror.names adds names";
            Refusal::new(StatusCode::FORBIDDEN, "DENIED", message)
        })
    }

    async fn route(
        &self,
        method: &Method,
        headers: &HeaderMap,
        asked: Result<Asked, Refused>,
        began: Instant,
        pulse: &Arc<Pulse>,
    ) -> Result<Response<Payload>, Broken> {
        let authorization = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .filter(|text| !text.is_empty())
            .map(Secret::from);
        let client = match &self.token {
            // with a token, the header is for the mirror, so the client has no credentials upstream
            Some(token) => {
                if !authorization
                    .as_ref()
                    .is_some_and(|header| carries(header, token))
                {
                    return Ok(self.unauthorised(
                        "the mirror wants its token, as a password or a bearer token",
                        Some(HeaderValue::from_static("Basic realm=\"parbake mirror\"")),
                    ));
                }
                Client::new(None, self.settings.lend_credentials)
            }
            None => Client::new(authorization.as_ref(), self.settings.lend_credentials),
        };
        if method != Method::GET && method != Method::HEAD {
            let refusal = Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "UNSUPPORTED",
                "the mirror is read-only: push to the registry itself",
            );
            let mut response = Response::from(refusal);
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Ok(response);
        }
        let asked = match asked {
            Ok(asked) => asked,
            Err(refused) => return Ok(refusal_of(refused).into()),
        };
        if let Asked::Manifest(repository, _)
        | Asked::Blob(repository, _)
        | Asked::Tags(repository, _)
        | Asked::Referrers(repository, ..)
        | Asked::Catalog(repository, _) = &asked
            && !self.settings.serves(&repository.registry)
        {
            let message = format!(
                "registry {} isn't among the mirror's upstreams",
                repository.registry
            );
            return Ok(Refusal::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", message).into());
        }
        match asked {
            Asked::Base => self.base(authorization.is_some()).await,
            Asked::Manifest(repository, version) => {
                self.manifest(&repository, &version, headers, &client).await
            }
            Asked::Tags(repository, query) => {
                let ask = || self.upstreams.tags(&repository, &query, &client);
                let listed = self.persist(&repository, "tags/list", ask).await?;
                Ok(listed.map_or_else(
                    |refused| refused,
                    |found| list(&repository, "tags/list", found),
                ))
            }
            Asked::Referrers(repository, digest, query) => {
                let path = format!("referrers/{digest}");
                let asked = (&digest, query.as_str());
                let ask = || self.upstreams.referrers(&repository, asked, &client);
                let listed = self.persist(&repository, &path, ask).await?;
                Ok(listed.map_or_else(|refused| refused, |found| list(&repository, &path, found)))
            }
            Asked::Catalog(repository, query) => {
                let ask = || self.upstreams.catalog(&repository, &query, &client);
                let listed = self.persist(&repository, "_catalog", ask).await?;
                Ok(listed.map_or_else(
                    |refused| refused,
                    |found| list(&repository, "_catalog", found),
                ))
            }
            Asked::Blob(repository, digest) => {
                let head = method == Method::HEAD;
                self.blob(&repository, digest, headers, &client, head, began, pulse)
                    .await
            }
        }
    }

    /// Answers `/v2/`, which names no upstream. If there is a default upstream, passes on its demand for credentials,
    /// because some clients (skopeo, podman) learn only here how to authenticate.
    async fn base(&self, authorised: bool) -> Result<Response<Payload>, Broken> {
        if let (Some(registry), false, None) = (&self.settings.upstream, authorised, &self.token)
            && !self.settings.lend_credentials
        {
            let any = Repository {
                registry: registry.clone(),
                name: request::ANY.into(),
                by_namespace: false,
            };
            if let Some(challenge) = self.upstreams.challenge(&any, "tags/list").await
                // an anonymous token is fetched by the mirror itself, without the client
                && challenge.as_bytes().to_ascii_lowercase().starts_with(b"basic")
            {
                return Ok(self.unauthorised("the upstream wants credentials", Some(challenge)));
            }
        }
        let mut response = Response::new(whole(Bytes::from_static(b"{}")));
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }

    fn unauthorised(&self, message: &str, challenge: Option<HeaderValue>) -> Response<Payload> {
        let refusal = Refusal::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message);
        let mut response = Response::from(refusal);
        if let Some(challenge) = challenge {
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }

    async fn manifest(
        &self,
        repository: &Repository,
        version: &Version,
        headers: &HeaderMap,
        client: &Client,
    ) -> Result<Response<Payload>, Broken> {
        // several header fields are one list
        let accept: Vec<_> = headers
            .get_all(ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        let accept = HeaderValue::from_str(&accept.join(", ")).ok();
        let accept = accept.filter(|accept| !accept.is_empty());
        let path = format!("manifests/{version}");
        let ask = || {
            self.upstreams
                .manifest(repository, version, accept.as_ref(), client)
        };
        let Found { manifest, stale } = match self.persist(repository, &path, ask).await? {
            Ok(found) => found,
            Err(response) => return Ok(response),
        };
        // others' recipes are of no use: their clients get nothing from elsewhere before the end
        if !self.settings.names(&repository.registry) {
            self.passing.pass_unnamed(&repository.registry);
        } else if stale.is_none() {
            self.passing.pass(repository, client, &manifest);
        }
        let mut response = Response::new(whole(manifest.bytes.clone()));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, browser::media_type(&manifest.media_type));
        name(headers, &manifest.digest);
        if let Some(age) = stale {
            // `Age` is from RFC 9111, section 5.1; `Warning` from the RFC before it
            headers.insert(AGE, age.as_secs().into());
            let warning =
                "110 parbake \"the registry is away: the tag is as it was when it was asked last\"";
            headers.insert(WARNING, HeaderValue::from_static(warning));
        }
        Ok(response)
    }

    #[expect(clippy::too_many_arguments, reason = "a request's own parts")]
    async fn blob(
        &self,
        repository: &Repository,
        digest: Digest,
        headers: &HeaderMap,
        client: &Client,
        head: bool,
        began: Instant,
        pulse: &Arc<Pulse>,
    ) -> Result<Response<Payload>, Broken> {
        let path = format!("blobs/{digest}");
        let ask = || self.upstreams.blob(repository, &digest, client, head);
        let size = match self.persist(repository, &path, ask).await? {
            Ok(size) => size,
            Err(response) => return Ok(response),
        };
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let tag = format!("\"{digest}\"");
        let range = text(RANGE).filter(|_| text(IF_RANGE).is_none_or(|wanted| wanted == tag));
        let (start, end, status) = match range::parse(range, size) {
            Wanted::Whole => (0, size, StatusCode::OK),
            Wanted::Part(start, end) => (start, end, StatusCode::PARTIAL_CONTENT),
            Wanted::Nothing => return Ok(unsatisfiable(size, "the blob ends before that range")),
        };
        if start > 0 && !self.blobs.may_resume(&digest) {
            // a client that appended to the bytes it has would end with a complete wrong blob
            return Ok(unsatisfiable(
                size,
                "earlier bytes of this blob turned out false: fetch it from its first byte",
            ));
        }
        let mut response = blob_part(&digest, size, (start, end), status);
        if head {
            return Ok(response);
        }
        let (blobs, by) = (self.blobs.clone(), repository.reference());
        let begun = tokio::task::spawn_blocking(move || {
            let reading = blobs.begin_by(&by, digest, size)?;
            let file = reading.blob.file()?;
            Ok::<_, BeginError>((reading, file))
        });
        let (mut reading, file) = match begun.await.map_err(|_| Broken)? {
            Ok(begun) => begun,
            Err(error) => {
                warn!(content = %digest, error = %error, "a blob can't be kept here; sending its client to the registry");
                return Ok(self.redirect(repository, &path));
            }
        };
        let hit = reading.blob.is_whole();
        self.metrics.mirror.count_hit(hit);
        let proof = Proof {
            upstreams: self.upstreams.clone(),
            repository: repository.clone(),
            client: client.clone(),
            digest,
            size,
        };
        let proof = Some(proof)
            .filter(|proof| !self.settings.names(&repository.registry) && !proof.is_given());
        reading.limit(proof.as_ref().map(|_| repository.registry.clone()));
        if !hit {
            let heard = self.wish(repository, client, &reading).await?;
            if let Some(response) = self
                .first(repository, &path, &mut reading, heard, start, end)
                .await?
            {
                return Ok(response);
            }
        }
        if let Some(proof) = &proof
            && reading.is_held_back(start)
        {
            if let Some(response) = self.prove(&path, proof, &reading, &file).await? {
                return Ok(response);
            }
            reading.limit(None);
        }
        self.metrics
            .mirror
            .first_byte_seconds
            .observe(began.elapsed().as_secs_f64());
        let terms = Terms {
            result: if status == StatusCode::OK {
                "ok"
            } else {
                "partial"
            },
            hit,
            proof,
            patience: self.settings.break_after,
        };
        let watched = (self.metrics.clone(), pulse.clone());
        let share = self.clients.enter();
        let stream = Stream::new((reading, file), (start, end), terms, watched, share);
        *response.body_mut() = Payload::Blob(Box::new(stream));
        Ok(response)
    }

    /// Tells the driver what is wanted, and with whose credentials. The returned receiver ends when the driver has
    /// heard it.
    async fn wish(
        &self,
        repository: &Repository,
        client: &Client,
        reading: &Reading,
    ) -> Result<oneshot::Receiver<Infallible>, Broken> {
        let (heard, hears) = oneshot::channel();
        let wish = Wish {
            blob: reading.blob.clone(),
            reference: repository.reference(),
            access: client.access.clone(),
            heard,
        };
        // the driver is gone only when the program ends
        self.wishes.send(wish).await.map_err(|_| Broken)?;
        Ok(hears)
    }

    /// Waits for the first byte of a part. Returns an answer instead if no byte comes and the client is better off
    /// elsewhere.
    async fn first(
        &self,
        repository: &Repository,
        path: &str,
        reading: &mut Reading,
        heard: oneshot::Receiver<Infallible>,
        start: u64,
        end: u64,
    ) -> Result<Option<Response<Payload>>, Broken> {
        let patience = self.patience(repository);
        // an earlier refusal, for another client or by a registry that changed its mind, doesn't answer this wish
        if timeout(patience, heard).await.is_err() {
            return self.trouble(repository, path).map(Some);
        }
        let goes_elsewhere = self.way_out(repository) != OnTrouble::Wait;
        let mut until = Instant::now() + patience;
        let mut revision = None;
        loop {
            let news = reading.news.borrow_and_update().clone();
            let waits = reading.ready(start) == start && !reading.is_held_back(start);
            if reading.is_misled() || start == end || !waits {
                return Ok(None);
            }
            match news.trouble {
                Some(Trouble::Refused(error)) => {
                    return Ok(Some(self.refused(repository, path, &error).await));
                }
                Some(Trouble::Bad(message)) => {
                    let refusal = Refusal::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", message);
                    return Ok(Some(refusal.into()));
                }
                Some(trouble @ (Trouble::Disk(_) | Trouble::Stalled(_))) => {
                    debug!(error = %trouble, "nothing comes of a blob");
                    return self.trouble(repository, path).map(Some);
                }
                None => {}
            }
            // Chunks come, but none that may leave yet: without a recipe, chunks from peers leave when the whole blob
            // is here. Each new chunk extends the wait of a client that can go elsewhere. Any other client has a
            // timeout of its own, which the wait must not exceed.
            if goes_elsewhere && revision.replace(news.revision) != Some(news.revision) {
                until = Instant::now() + patience;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return self.trouble(repository, path).map(Some);
            }
            // after a change or a timeout, the loop looks again
            drop(timeout(left, reading.news.changed()).await);
        }
    }

    /// Makes a registry that the settings don't name show that it has the blob. Returns an answer instead if it
    /// doesn't.
    async fn prove(
        &self,
        path: &str,
        proof: &Proof,
        reading: &Reading,
        file: &Arc<File>,
    ) -> Result<Option<Response<Payload>>, Broken> {
        let sample = sample(file, proof.size).await.map_err(|error| {
            warn!(content = %proof.digest, %error, "a verified blob can't be read");
            Broken
        })?;
        let repository = &proof.repository;
        match self
            .persist(repository, path, || proof.ask(&sample))
            .await?
        {
            Ok(true) => Ok(None),
            // the blob was dropped meanwhile
            Ok(false) if reading.blob.is_gone() => Err(Broken),
            Ok(false) => {
                warn!(content = %proof.digest, repository = repository.reference(), "a registry says that it has a blob, and has other bytes: its clients don't get those that are here");
                let message = "the registry's bytes don't match the blob's digest";
                Ok(Some(
                    Refusal::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", message).into(),
                ))
            }
            Err(response) => Ok(Some(response)),
        }
    }

    /// Asks an upstream until it answers, for as long as the client may wait. A refusal is an answer, too.
    async fn persist<T, F>(
        &self,
        repository: &Repository,
        path: &str,
        ask: impl Fn() -> F,
    ) -> Result<Result<T, Response<Payload>>, Broken>
    where
        F: Future<Output = Result<T, OriginError>>,
    {
        let until = Instant::now() + self.patience(repository);
        let mut backoff = Backoff::seeded(Duration::from_millis(250), Duration::from_secs(5));
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // a registry may send a byte now and then, and never the whole answer
            let error = match timeout(left, ask()).await {
                Ok(Ok(found)) => return Ok(Ok(found)),
                Ok(Err(error)) => error,
                Err(_) => {
                    debug!(
                        repository = repository.reference(),
                        path, "the upstream gives no whole answer"
                    );
                    return self.trouble(repository, path).map(Err);
                }
            };
            if !is_away(&error) {
                return Ok(Err(self.refused(repository, path, &error).await));
            }
            let left = until.saturating_duration_since(Instant::now());
            let wait = backoff.delay(error.retry_after());
            if wait < left {
                sleep(wait).await;
                continue;
            }
            debug!(error = %error, "the upstream is away");
            // A client that retries by itself does so at once, and only a few times, so it is kept as long as possible.
            // A client that can go elsewhere is let go.
            if self.way_out(repository) == OnTrouble::Wait {
                sleep(left).await;
            }
            return self.trouble(repository, path).map(Err);
        }
    }

    /// The answer for the client when the upstream refused.
    async fn refused(
        &self,
        repository: &Repository,
        path: &str,
        error: &OriginError,
    ) -> Response<Payload> {
        let unknown = if path.starts_with("blobs/") {
            "BLOB_UNKNOWN"
        } else if path.starts_with("manifests/") {
            "MANIFEST_UNKNOWN"
        } else {
            "NAME_UNKNOWN"
        };
        match error {
            OriginError::Unauthorised { .. } => {
                let challenge = if self.token.is_some() {
                    // the mirror's token was right; missing upstream credentials are the agent's matter
                    None
                } else {
                    self.upstreams.challenge(repository, path).await
                };
                if challenge.is_none() {
                    let message = error.to_string();
                    return Refusal::new(StatusCode::FORBIDDEN, "DENIED", message).into();
                }
                self.unauthorised(&error.to_string(), challenge)
            }
            OriginError::Forbidden { .. } => {
                Refusal::new(StatusCode::FORBIDDEN, "DENIED", error.to_string()).into()
            }
            _ => {
                if !matches!(error, OriginError::NotFound { .. }) {
                    warn!(repository = repository.reference(), error = %error, "the upstream's answer can't be used");
                }
                Refusal::new(StatusCode::NOT_FOUND, unknown, error.to_string()).into()
            }
        }
    }

    fn way_out(&self, repository: &Repository) -> OnTrouble {
        match self.settings.on_trouble {
            OnTrouble::Auto if repository.by_namespace => OnTrouble::NotFound,
            OnTrouble::Auto => OnTrouble::Wait,
            set => set,
        }
    }

    /// How long a client waits for its headers.
    fn patience(&self, repository: &Repository) -> Duration {
        match self.way_out(repository) {
            OnTrouble::Wait | OnTrouble::Auto => self.settings.break_after,
            OnTrouble::Redirect | OnTrouble::NotFound => self.settings.stall,
        }
    }

    /// What a client gets instead of something that can't be had now.
    fn trouble(&self, repository: &Repository, path: &str) -> Result<Response<Payload>, Broken> {
        match self.way_out(repository) {
            OnTrouble::Wait | OnTrouble::Auto => Err(Broken),
            OnTrouble::Redirect => Ok(self.redirect(repository, path)),
            OnTrouble::NotFound => Ok(Refusal::new(
                StatusCode::NOT_FOUND,
                "UNAVAILABLE",
                "the mirror can't get it now: ask the registry itself",
            )
            .into()),
        }
    }

    fn redirect(&self, repository: &Repository, path: &str) -> Response<Payload> {
        let plain = self.settings.plain_http.contains(&repository.registry);
        let scheme = if plain { "http" } else { "https" };
        // The location is the one that the agent itself would ask: Docker Hub's API has another host than its name, and
        // the names of its own images get a first part.
        let parsed = repository.reference().parse::<RegistryReference>();
        let (host, name) = match &parsed {
            Ok(parsed) => (parsed.server(), parsed.repository()),
            Err(_) => (repository.registry.as_str(), repository.name.as_str()),
        };
        let location = format!("{scheme}://{host}/v2/{name}/{path}");
        let mut response = Response::new(whole(Bytes::new()));
        *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
        if let Ok(location) = HeaderValue::from_str(&location) {
            response.headers_mut().insert(LOCATION, location);
        }
        response
    }
}
