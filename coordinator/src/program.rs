//! The running coordinator: everything opened, every task started, and their ends looked at.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::Router;
use link::{Credentials, Endpoint, LocalNames, Settings, Validity};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    admin::{self, Admin},
    api::{self, Api, Tries},
    authority::{Authority, IssueError, OpenAuthorityError},
    cli::{Run, Shared},
    cluster::state::Saver,
    config::Config,
    driver::{self, Driver},
    durable,
    enrolment::{Enrolment, RecordError},
    fleet::{self, Membership, Reread},
    metrics::Metrics,
    random,
    resolve::{self, Registries, RegistriesError, ResolveError},
    secret::Secret,
    serve::{self, Certificate},
    session::{self, Sessions},
    view::Addresses,
    wants::{Asked, Files, StateError, Want},
};

/// Clients of the API that wait to be told of because they don't take its certificate; more are dropped.
const REFUSALS: usize = 16;
/// After a failed attempt at what was asked for before a change of leader.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// What makes a state directory usable again.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "its volume is full: make room there, a few megabytes will do, and start the coordinator again"
        }
        io::ErrorKind::ReadOnlyFilesystem => "its volume is mounted read-only: mount it writable",
        _ => "give the coordinator's user a directory that it may write (--state-dir)",
    }
}

/// Why the coordinator doesn't run, or ended unasked.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file or directory of the state can't be used.
    #[error("state directory {path}: {error}; {}", remedy(.error))]
    State {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// Another coordinator runs on this state.
    #[error("another coordinator runs on {0}; stop it first, or choose another --state-dir")]
    Locked(PathBuf),
    /// The authority can't be used.
    #[error(transparent)]
    Authority(#[from] OpenAuthorityError),
    /// Enrolment records can't be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// State files can't be used.
    #[error(transparent)]
    Kept(#[from] StateError),
    /// The coordinator's own certificate can't be made.
    #[error("making the coordinator's own certificate: {0}")]
    Certificate(#[from] IssueError),
    /// Its TLS can't be set up.
    #[error("setting up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// Its own credentials can't be used for the link.
    #[error("setting up the link: {0}")]
    Credentials(#[from] link::CredentialsError),
    /// An address can't be had.
    #[error("listening for hosts on UDP: {0}")]
    Link(#[from] link::BindError),
    /// An address can't be had.
    #[error("listening on TCP {address} ({purpose}): {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What for.
        purpose: &'static str,
        /// The cause.
        error: io::Error,
    },
    /// The registry client can't be made.
    #[error(transparent)]
    Registries(#[from] RegistriesError),
    /// A part of the program ended by itself: a defect.
    #[error("{0} ended unasked; this is a defect: please report it with the log")]
    Ended(&'static str),
}

/// What a coordinator serves from, whether it leads or not: state, TLS, the API's port, health and metrics.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) authority: Arc<Authority>,
    pub(crate) metrics: Metrics,
    /// Whether `/readyz` says so.
    pub(crate) ready: watch::Sender<bool>,
    /// What the API's port answers now.
    pub(crate) routes: watch::Sender<Router>,
    pub(crate) token: Secret,
    api: SocketAddr,
    admin: SocketAddr,
    /// Clients that don't take the API's certificate.
    refused: mpsc::Receiver<driver::Refused>,
    tasks: JoinSet<&'static str>,
    lock: File,
}

impl Base {
    /// Opens state and TCP sockets, and serves `routes` over TLS until `shutdown`.
    pub(crate) async fn open(
        config: &Config,
        lock: File,
        routes: Router,
        shutdown: CancellationToken,
    ) -> Result<Self, RunError> {
        let dir = config.state_dir.clone();
        let authority = Arc::new(Authority::open(&dir.join("authority"))?);
        let token = api_token(&dir)?;
        let names = config.cluster.as_ref();
        let names = names.map_or_else(Vec::new, |cluster| cluster.service_names.clone());
        let identity = authority.issue_own_for(&names, config.certificate_lifetime)?;
        let certificate = Arc::new(Certificate::new(&identity)?);
        let tls = serve::tls(certificate.clone())?;
        let api_listener = listen(config.api, "API").await?;
        let admin_listener = listen(config.admin, "health and metrics").await?;
        let api = local(config.api, "API", api_listener.local_addr())?;
        let admin = local(
            config.admin,
            "health and metrics",
            admin_listener.local_addr(),
        )?;
        let (metrics, registry) = Metrics::new();
        let (ready, ready_seen) = watch::channel(false);
        let (routes, routes_seen) = watch::channel(routes);

        let mut tasks = JoinSet::new();
        let shown = Shown {
            authority: authority.clone(),
            names,
            lifetime: config.certificate_lifetime,
            certificate,
        };
        let lifetime = config.certificate_lifetime;
        let renewal = renew(lifetime, "API", move || shown.renew(), shutdown.clone());
        tasks.spawn(part("renewal of the API's certificate", renewal));
        let router = serve::latest(routes_seen);
        let (refusals, refused) = mpsc::channel(REFUSALS);
        let guarded = serve::Guarded { tls, refusals };
        let serving = serve::serve(api_listener, Some(guarded), router, shutdown.clone());
        tasks.spawn(part("API", serving));
        let mut router = admin::router(Admin {
            registry: Arc::new(registry),
            ready: ready_seen,
        });
        if admin.ip().is_loopback() {
            let names = LocalNames::new(config.admin_names.iter().cloned());
            router = serve::local_only(router, names);
        }
        let serving = serve::serve(admin_listener, None, router, shutdown);
        tasks.spawn(part("admin", serving));
        Ok(Self {
            authority,
            metrics,
            ready,
            routes,
            token,
            api,
            admin,
            refused,
            tasks,
            lock,
        })
    }

    /// The next part that ended. It wasn't asked to unless the shutdown was.
    pub(crate) async fn ended(&mut self) -> &'static str {
        match self.tasks.join_next().await {
            Some(Ok(part)) => part,
            _ => "a part of the coordinator",
        }
    }
}

/// What a coordinator in a cluster hands to those who write there.
#[derive(Debug)]
pub(crate) struct Doors {
    /// The driver's inbox.
    pub(crate) inbox: mpsc::Sender<driver::Input>,
    /// What the driver publishes.
    pub(crate) view: watch::Receiver<Arc<driver::View>>,
    /// What hosts hold.
    pub(crate) presence: watch::Receiver<Arc<driver::PresenceView>>,
    /// The registries, as the driver reaches them.
    pub(crate) registries: Arc<Registries>,
    /// The program's metrics.
    pub(crate) metrics: Metrics,
}

/// A coordinator that listens.
#[derive(Debug)]
pub struct Coordinator {
    addresses: Addresses,
    authority: Arc<Authority>,
    token: Secret,
    reload: mpsc::Sender<Reread>,
    shutdown: CancellationToken,
    tasks: JoinSet<&'static str>,
    ready: watch::Sender<bool>,
    _lock: File,
}

impl Coordinator {
    /// Opens state and sockets and starts every task. `source` is what the settings came from, to be read again when the
    /// fleet file changes.
    ///
    /// # Errors
    /// When state or addresses can't be had; nothing runs then.
    pub async fn start(
        config: Config,
        source: Option<(Shared, Run)>,
        shutdown: CancellationToken,
    ) -> Result<Self, RunError> {
        let lock = lock(&config.state_dir)?;
        let base = Base::open(&config, lock, api::starting(), shutdown.clone()).await?;
        let (this, _doors) = Self::start_on(
            base,
            config,
            source,
            Saver::default(),
            Router::new(),
            shutdown,
        )
        .await?;
        Ok(this)
    }

    /// Starts what a leader does, on what serves already; `more` is answered beside the API's own routes.
    pub(crate) async fn start_on(
        base: Base,
        config: Config,
        source: Option<(Shared, Run)>,
        saver: Saver,
        more: Router,
        shutdown: CancellationToken,
    ) -> Result<(Self, Doors), RunError> {
        let Base {
            authority,
            metrics,
            ready,
            routes,
            token,
            api: api_address,
            admin: admin_address,
            refused,
            mut tasks,
            lock,
        } = base;
        let dir = config.state_dir.clone();
        let enrolment = Enrolment::open(&dir)?;
        enrolment.sweep(SystemTime::now())?;
        let files = Files::open(&dir)?;
        let kept = files.load()?;
        let registries = Arc::new(Registries::new(config.origin.clone())?);
        registries.remember(&kept.wants);
        let asked = files.asked(&kept.wants)?;
        let membership = Arc::new(Membership::read(config.fleet.clone(), &enrolment)?);

        let places = kept.roster.values().map(|place| place.address.ip());
        let places: Vec<_> = places.collect();

        let (inbox, inputs) = mpsc::channel(driver::INBOX);
        let (publish, view) = watch::channel(Arc::default());
        let (presence, presence_seen) = watch::channel(Arc::default());
        let (members, membership_seen) = watch::channel(membership.clone());
        let (reload, reloads) = mpsc::channel(1);
        let (keeper, kept_queue) = mpsc::channel(driver::KEEPER_QUEUE);
        let mut seed = [0; 8];
        random::fill(&mut seed);
        let driver = Driver::new(driver::Parts {
            config: config.clone(),
            authority: authority.clone(),
            kept,
            membership,
            publish,
            presence,
            keeper,
            registries: registries.clone(),
            metrics: metrics.clone(),
            seed: u64::from_be_bytes(seed),
        });
        // hosts knock from here on, and a thousand of them leave no time to get ready
        let identity = authority.issue_own(config.certificate_lifetime)?;
        let credentials = Credentials::new(
            identity.chain,
            identity.key,
            vec![authority.certificate().clone()],
        )?;
        let settings = Settings {
            reset_secret: Some(authority.reset_secret()),
            ..link_settings()
        };
        let endpoint = Endpoint::bind(config.listen, credentials, &settings)?;
        endpoint.expect(places);
        let addresses = Addresses {
            quic: local(config.listen, "hosts", endpoint.local_addr())?,
            api: api_address,
            admin: admin_address,
        };
        let path = dir.join("addresses.json");
        let mut text = serde_json::to_vec(&addresses).unwrap_or_default();
        text.push(b'\n');
        durable::write(&path, &text, durable::PUBLIC).map_err(state(&path))?;

        let doors = Doors {
            inbox: inbox.clone(),
            view: view.clone(),
            presence: presence_seen,
            registries: registries.clone(),
            metrics: metrics.clone(),
        };
        let again = ask_again(asked, registries.clone(), inbox.clone(), shutdown.clone());
        tasks.spawn(part("what was asked before", again));
        let told = tell_refusals(refused, inbox.clone(), shutdown.clone());
        tasks.spawn(part("refusals", told));
        let api = Api {
            inbox: inbox.clone(),
            view,
            membership: membership_seen.clone(),
            reload: reload.clone(),
            token: token.clone(),
            authority: authority.clone(),
            enrolment: enrolment.clone(),
            saver,
            registries,
            metrics: metrics.clone(),
            certificate_lifetime: config.certificate_lifetime,
            renewal_grace: config.renewal_grace,
            token_lifetime: config.token_lifetime,
            quic: config
                .advertise
                .clone()
                .unwrap_or_else(|| format!(":{}", addresses.quic.port())),
            followers: Api::follow_slots(),
            tries: Arc::new(Tries::new()),
        };
        let sessions = Sessions::new(
            (authority.clone(), enrolment.clone()),
            (config.certificate_lifetime, config.plan.origin_streams),
            membership_seen.clone(),
            inbox,
            metrics,
        );

        tasks.spawn(part("keeper", driver::keep(files, kept_queue)));
        let stop = shutdown.clone();
        tasks.spawn(part("driver", driver.run(inputs, membership_seen, stop)));
        let own = Own {
            authority: authority.clone(),
            lifetime: config.certificate_lifetime,
            endpoint: endpoint.clone(),
        };
        let lifetime = config.certificate_lifetime;
        let renewal = renew(lifetime, "link", move || own.renew(), shutdown.clone());
        tasks.spawn(part("renewal", renewal));
        let stop = shutdown.clone();
        tasks.spawn(part("sessions", session::accept(endpoint, sessions, stop)));
        let stop = shutdown.clone();
        let follow = fleet::follow(config, source, enrolment, members, reloads, stop);
        tasks.spawn(part("fleet", follow));
        drop(routes.send_replace(api::router(api, more)));
        ready.send_replace(true);
        info!(
            quic = %addresses.quic,
            api = %addresses.api,
            admin = %addresses.admin,
            pin = %authority.pin().hex(),
            state_dir = %dir.display(),
            "coordinator serves"
        );
        let this = Self {
            addresses,
            authority,
            token,
            reload,
            shutdown,
            tasks,
            ready,
            _lock: lock,
        };
        Ok((this, doors))
    }

    /// Where it listens, with the ports that were chosen.
    #[must_use]
    pub const fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The fleet's authority.
    #[must_use]
    pub const fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// The API's bearer token.
    #[must_use]
    pub const fn token(&self) -> &Secret {
        &self.token
    }

    /// What asks for the fleet file and the records to be read again.
    #[must_use]
    pub fn reload(&self) -> Reload {
        Reload(self.reload.clone())
    }

    /// Runs until the shutdown that it was started with, and then until every task has left.
    ///
    /// # Errors
    /// When a task ended unasked; the others are stopped then.
    pub async fn wait(mut self) -> Result<(), RunError> {
        let mut outcome = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            let part = match ended {
                Ok(part) => part,
                Err(error) => {
                    error!(%error, "a part of the coordinator failed");
                    "a part of the coordinator"
                }
            };
            self.ready.send_replace(false);
            if !self.shutdown.is_cancelled() {
                outcome = Err(RunError::Ended(part));
                self.shutdown.cancel();
            }
        }
        info!("coordinator has stopped");
        outcome
    }
}

/// Asks a running coordinator to read its fleet file and records again.
#[derive(Clone, Debug)]
pub struct Reload(mpsc::Sender<Reread>);

impl Reload {
    /// Asks. The outcome stands in the log.
    pub fn ask(&self) {
        // Full: it is being read again anyway.
        _ = self.0.try_send(Reread::Everything);
    }
}

/// Runs a coordinator with these settings until `shutdown`.
///
/// # Errors
/// When it can't start, or a part of it ended unasked.
pub async fn run(
    config: Config,
    source: Option<(Shared, Run)>,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    Coordinator::start(config, source, shutdown)
        .await?
        .wait()
        .await
}

fn state(path: &Path) -> impl FnOnce(io::Error) -> RunError {
    let path = path.to_path_buf();
    move |error| RunError::State { path, error }
}

fn local(
    address: SocketAddr,
    purpose: &'static str,
    found: io::Result<SocketAddr>,
) -> Result<SocketAddr, RunError> {
    found.map_err(|error| RunError::Listen {
        address,
        purpose,
        error,
    })
}

/// The lock that keeps a second coordinator off this state, for as long as it is held.
pub(crate) fn lock(dir: &Path) -> Result<File, RunError> {
    durable::make_dir(dir).map_err(state(dir))?;
    let path = dir.join("lock");
    let file = File::create(&path).map_err(state(&path))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(RunError::Locked(dir.to_path_buf())),
        Err(error) => Err(state(&path)(error.into())),
    }
}

/// The API's token: made at the first start, readable by the coordinator's user alone.
pub(crate) fn api_token(dir: &Path) -> Result<Secret, RunError> {
    let path = dir.join("api.token");
    match std::fs::read_to_string(&path) {
        Ok(text) if is_token(&text) => return Ok(Secret::from_text(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // a torn file, or bytes that are no text: as good as lost
        Ok(_) => set_aside(&path)?,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => set_aside(&path)?,
        Err(error) => return Err(state(&path)(error)),
    }
    let token = crate::secret::random();
    let text = format!("{}\n", token.expose());
    durable::write(&path, text.as_bytes(), durable::SECRET).map_err(state(&path))?;
    Ok(token)
}

/// One line of printable characters, long enough not to be guessed: what an HTTP header can carry.
fn is_token(text: &str) -> bool {
    let token = text.trim();
    token.len() >= 32 && token.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A token that can't be used is kept beside, and another one is made: whoever has the old one is refused by name.
fn set_aside(path: &Path) -> Result<(), RunError> {
    let aside = path.with_extension("token.damaged");
    error!(
        file = %path.display(),
        aside = %aside.display(),
        "the API's token is damaged; it is set aside and a new one is made: give it to operators and pipelines"
    );
    std::fs::rename(path, &aside).map_err(state(path))
}

async fn listen(address: SocketAddr, purpose: &'static str) -> Result<TcpListener, RunError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| RunError::Listen {
            address,
            purpose,
            error,
        })
}

/// Connections that carry messages and no chunks, from every host of the fleet.
fn link_settings() -> Settings {
    Settings {
        // A host that is gone is noticed after this time. It is long, because a coordinator that gets no processor for a
        // while would lose every session at once. Hosts notice a coordinator that was restarted at its reset, and one
        // that is gone by their own look, after 3 s.
        idle_timeout: Duration::from_secs(10),
        keep_alive: Duration::from_millis(750),
        // A large fleet comes at one moment, and half is for hosts that were here before: 10 KiB each.
        max_handshakes: 2_048,
        // The largest message from a host has 256 KiB, the largest to one 4 MiB; there may be thousands of hosts.
        stream_window: 1 << 20,
        connection_window: 2 << 20,
        send_window: 4 << 20,
        max_streams: 16,
        ..Settings::default()
    }
}

/// Hands on who didn't take the API's certificate, until `shutdown`.
async fn tell_refusals(
    mut refused: mpsc::Receiver<driver::Refused>,
    inbox: mpsc::Sender<driver::Input>,
    shutdown: CancellationToken,
) {
    loop {
        let next = tokio::select! {
            () = shutdown.cancelled() => return,
            next = refused.recv() => next,
        };
        let Some(refused) = next else {
            return shutdown.cancelled().await;
        };
        drop(inbox.send(driver::Input::Refused(refused)).await);
    }
}

/// Asks the registry, by digest, for what another replica was asked for, and has it staged again.
async fn ask_again(
    asked: Vec<Asked>,
    registries: Arc<Registries>,
    inbox: mpsc::Sender<driver::Input>,
    shutdown: CancellationToken,
) {
    let work = async {
        for asked in asked {
            let Some(reference) = asked.references.first() else {
                continue;
            };
            let reference = resolve::by_digest(reference, &asked.digest);
            let want = loop {
                match registries
                    .resolve(&reference, asked.hosts.clone(), None)
                    .await
                {
                    Ok(want) => break Some(want),
                    // no later attempt is better, and what was asked for after it must not wait
                    Err(error @ ResolveError::Reference { .. }) => {
                        error!(%error, "an image that was asked for before isn't staged: cancel it, and stage it under another name");
                        break None;
                    }
                    Err(error) => {
                        warn!(%error, "an image that was asked for before can't be resolved; it is tried again");
                        sleep(error.retry_after().unwrap_or_default().max(ASK_AGAIN)).await;
                    }
                }
            };
            let Some(want) = want else { continue };
            let want = Box::new(Want {
                references: asked.references,
                narrowed: asked.narrowed,
                asked_ms: asked.asked_ms,
                wanted_at: asked.wanted_at,
                timing: asked.timing,
                ..want
            });
            // nobody waits for the answer
            let (reply, _) = oneshot::channel();
            drop(
                inbox
                    .send(driver::Input::Asked(driver::Ask::Stage { want, reply }))
                    .await,
            );
        }
        drop(inbox.send(driver::Input::Recalled).await);
    };
    tokio::select! {
        () = shutdown.cancelled() => return,
        () = work => {}
    }
    shutdown.cancelled().await;
}

/// A task that says which one it was when it ends.
async fn part(name: &'static str, work: impl Future<Output = ()>) -> &'static str {
    work.await;
    name
}

/// The certificate that the API shows.
struct Shown {
    authority: Arc<Authority>,
    names: Vec<String>,
    lifetime: Duration,
    certificate: Arc<Certificate>,
}

impl Shown {
    fn renew(&self) -> anyhow::Result<()> {
        let identity = self.authority.issue_own_for(&self.names, self.lifetime)?;
        Ok(self.certificate.replace(&identity)?)
    }
}

/// The certificate that hosts see.
struct Own {
    authority: Arc<Authority>,
    lifetime: Duration,
    endpoint: Endpoint,
}

impl Own {
    fn renew(&self) -> anyhow::Result<()> {
        let identity = self.authority.issue_own(self.lifetime)?;
        let roots = vec![self.authority.certificate().clone()];
        let credentials = Credentials::new(identity.chain, identity.key, roots)?;
        Ok(self.endpoint.renew(credentials)?)
    }
}

/// Keeps one of the coordinator's own certificates fresh: renewed after two thirds of its life, as hosts do it.
async fn renew(
    lifetime: Duration,
    place: &'static str,
    issue: impl Fn() -> anyhow::Result<()>,
    shutdown: CancellationToken,
) {
    let from_now = || {
        let issued = SystemTime::now();
        Validity {
            issued,
            expires: issued + lifetime,
        }
    };
    let mut own = from_now();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = sleep(own.look_every()) => {}
        }
        if !own.renewal_due(SystemTime::now()) {
            continue;
        }
        match issue() {
            Ok(()) => {
                info!(place, "own certificate renewed");
                own = from_now();
            }
            Err(error) => {
                error!(%error, place, "own certificate can't be renewed; trying again");
            }
        }
    }
}

#[cfg(test)]
mod tests;
