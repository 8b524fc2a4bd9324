//! The base of a replica of the coordinator, which serves whether the replica leads or not.

use std::{fs::File, io, net::SocketAddr, sync::Arc};

use axum::Router;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{certificates::Shown, error::RunError};
use crate::{
    admin::{self, Admin},
    authority::Authority,
    config::Config,
    driver,
    metrics::Metrics,
    secret::Secret,
    serve::{self, Certificate},
    state_dir::api_token,
};

/// The most refused API clients that wait to be reported to the driver; further ones are dropped. Such a client doesn't
/// take the API's certificate.
const REFUSALS: usize = 16;

/// What a replica has open whether it leads or not: state, TLS, the API's port, health and metrics.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) authority: Arc<Authority>,
    pub(crate) metrics: Metrics,
    /// What `/readyz` answers.
    pub(crate) ready: watch::Sender<bool>,
    /// The routes that the API's port answers now.
    pub(crate) routes: watch::Sender<Router>,
    pub(crate) token: Secret,
    pub(super) api: SocketAddr,
    pub(super) admin: SocketAddr,
    /// The clients that didn't take the API's certificate.
    pub(super) refused: mpsc::Receiver<driver::Refused>,
    pub(super) tasks: JoinSet<&'static str>,
    pub(super) lock: File,
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
        let renewal = shown.keep(shutdown.clone());
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
            let names = wire::LocalNames::new(config.admin_names.iter().cloned());
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

    /// Waits for the next part that ends, and returns its name. Unless the shutdown was requested, the part ended
    /// unasked.
    pub(crate) async fn ended(&mut self) -> &'static str {
        match self.tasks.join_next().await {
            Some(Ok(part)) => part,
            _ => "a part of the coordinator",
        }
    }
}

/// The address on which a socket listens, or the error that says why there is none.
pub(super) fn local(
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

async fn listen(address: SocketAddr, purpose: &'static str) -> Result<TcpListener, RunError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| RunError::Listen {
            address,
            purpose,
            error,
        })
}

/// Runs a part of the coordinator, and returns its name when it ends.
pub(super) async fn part(name: &'static str, work: impl Future<Output = ()>) -> &'static str {
    work.await;
    name
}
