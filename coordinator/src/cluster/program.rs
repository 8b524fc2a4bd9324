//! A coordinator in a cluster: one of several replicas, of which one leads.
//!
//! Every replica shares the state of [`state`], serves health, and answers on the API's port; who doesn't lead answers
//! 503 there with the leader's name. The leader is a [`Coordinator`] as everywhere else, and the [`keeper`](super)
//! beside it. A replica leads at most once: when it loses the lease, its writers find their term over, everything stops,
//! and the process ends with an error for Kubernetes to start it anew. That way nothing of one term is left in the next.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, header::USER_AGENT};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Pod, Secret},
};
use kube::{
    Api, Client,
    api::{ListParams, Patch},
};
use origin::Backoff;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    follower::{self, Forward},
    keeper::{self, Guarded, Keeper, Question},
    lease::{self, Leadership, LostError, Term},
    review,
    state::{self, Mirror, Saver, SharedStateError},
    tokens::Tokens,
    trouble,
    web::{self, Web},
    webhook::{self, Webhook},
    write::patch_params,
};
use crate::{
    authority::Authority,
    cli::{Run, Shared},
    config::{Cluster, Config},
    program::{self, Base, Coordinator, Doors, RunError},
};

/// The label of the Pod that leads: what the Services for hosts and for the API select.
const ROLE_LABEL: &str = "parbake.dev/role";
/// A request about a label or a webhook is given up after this long.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection to the API server is made within this time, or given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that a request was sent on and that says nothing for this long is broken. Watches are ended sooner by
/// the API server, as they ask for.
const READ_TIMEOUT: Duration = Duration::from_secs(40);
/// The first and the longest wait after one that failed.
pub(super) const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// How often the leader looks whether labels and the webhook's caBundle are as they have to be: somebody else may have
/// changed them.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Why a coordinator in a cluster doesn't run, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No API server is known. Set KUBECONFIG, or run with a service account.
    #[error("finding the cluster: {0}")]
    Find(#[from] Box<kube::config::InferConfigError>),
    /// The client can't be made.
    #[error("setting up the cluster's client: {}", trouble::plain(.0))]
    Client(#[from] kube::Error),
    /// The shared state can't be had.
    #[error(transparent)]
    State(#[from] SharedStateError),
    /// The coordinator doesn't run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The lease was lost. Another replica leads; this one has to be started anew.
    #[error(transparent)]
    Lost(#[from] LostError),
}

/// How to reach the cluster.
#[derive(Clone)]
pub(crate) struct Access {
    pub(crate) client: Client,
    /// Namespace of the Lease, the Secret and the own Pod.
    pub(crate) namespace: String,
}

impl Access {
    /// Finds the cluster by KUBECONFIG, the user's kubeconfig or the service account.
    async fn find(settings: &Cluster) -> Result<Self, ClusterError> {
        // kube takes the process's provider. There is one; naming it keeps it so when another dependency brings a
        // second. Fails when it was named before, which is as good.
        _ = rustls::crypto::ring::default_provider().install_default();
        let config = kube::Config::infer().await.map_err(Box::new)?;
        let namespace = settings.namespace.clone();
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        info!(server = %config.cluster_url, namespace, "cluster found");
        Ok(Self {
            client: client(config)?,
            namespace,
        })
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

/// Who asks, as the API server's audit log has it. What writes without naming itself as a field manager is managed by the
/// part before the slash.
pub(crate) const AGENT: &str = concat!(
    "parbake/",
    env!("CARGO_PKG_VERSION"),
    " (parbake-coordinator)"
);

/// A client that says who it is, sends each request once, and doesn't wait for ever.
///
/// By itself kube sends a request that is answered 429, 503 or 504 up to fifteen times, and waits as long as the server
/// says. A label that was put on and answered 504 would be sent again with a version that is old by then, and a refusal
/// be heard of a write that was done; a lease might have been lost in between; and a watch that fails would look like one
/// that sees. Whoever asks here tries again by itself, by what it knows then.
pub(crate) fn client(mut config: kube::Config) -> kube::Result<Client> {
    config
        .headers
        .push((USER_AGENT, HeaderValue::from_static(AGENT)));
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    // counted from the request, not from the last answer on a connection that was kept
    config.reset_reader_on_write = true;
    Client::try_from(config)
}

/// Runs one replica until `shutdown`.
///
/// # Errors
/// When it can't start, a part of it ended unasked, or it lost the lease.
pub async fn run(
    config: Config,
    settings: Cluster,
    source: (Shared, Run),
    shutdown: CancellationToken,
) -> Result<(), ClusterError> {
    let lock = program::lock(&config.state_dir)?;
    let access = Access::find(&settings).await?;
    let secrets: Api<Secret> = Api::namespaced(access.client.clone(), &access.namespace);
    let mirror = Mirror::open(secrets, config.state_dir.clone()).await?;
    let (leadership, led) = watch::channel(Leadership::Following(None));
    // The replica's own parts end after the leader's: nobody writes when the lease is given back.
    let stop = CancellationToken::new();
    let routes = follower::router(led.clone(), None);
    let mut base = Base::open(&config, lock, routes, stop.clone()).await?;
    let forward = Forward::new(
        access.client.clone(),
        access.namespace.clone(),
        config.api.port(),
        base.authority.pin(),
        base.token.clone(),
    );
    drop(
        base.routes
            .send_replace(follower::router(led.clone(), Some(forward))),
    );
    base.ready.send_replace(true);

    let release = CancellationToken::new();
    let mut election = JoinSet::new();
    let leases: Api<Lease> = Api::namespaced(access.client.clone(), &access.namespace);
    let secrets: Api<Secret> = Api::namespaced(access.client.clone(), &access.namespace);
    let candidate = lease::Settings {
        identity: settings.pod_name.clone(),
        duration: settings.lease,
    };
    election.spawn(lease::hold(
        (leases, secrets),
        candidate,
        leadership,
        release.clone(),
    ));
    let mut beside = JoinSet::new();
    let label = label(
        access.clone(),
        settings.pod_name.clone(),
        led.clone(),
        stop.clone(),
    );
    beside.spawn(label);

    let mut waiting = led.clone();
    let term = tokio::select! {
        () = shutdown.cancelled() => None,
        ended = election.join_next() => return Err(lost(ended)),
        part = base.ended() => return Err(RunError::Ended(part).into()),
        term = leads(&mut waiting) => Some(term),
    };
    let outcome = match term {
        None => Ok(()),
        Some(term) => {
            let leading = Leading {
                access,
                settings,
                mirror,
                term,
                stop: stop.clone(),
            };
            let work = lead(leading, base, config, source, shutdown);
            tokio::select! {
                ended = election.join_next() => Err(lost(ended)),
                done = work => done,
            }
        }
    };
    stop.cancel();
    while beside.join_next().await.is_some() {}
    release.cancel();
    while election.join_next().await.is_some() {}
    outcome
}

/// The term, as soon as this process leads.
async fn leads(led: &mut watch::Receiver<Leadership>) -> Term {
    let found = led
        .wait_for(|leadership| matches!(leadership, Leadership::Leading(_)))
        .await;
    match found.as_deref() {
        Ok(Leadership::Leading(term)) => term.clone(),
        // The election has ended, which its own end tells.
        _ => std::future::pending().await,
    }
}

fn lost(ended: Option<Result<Result<(), LostError>, tokio::task::JoinError>>) -> ClusterError {
    match ended {
        Some(Ok(Err(lost))) => {
            error!(error = %lost, "this coordinator stops; it is to be started again");
            lost.into()
        }
        _ => RunError::Ended("election").into(),
    }
}

/// What a leader starts with.
struct Leading {
    access: Access,
    settings: Cluster,
    mirror: Mirror,
    term: Term,
    /// Ends everything, the API's port too.
    stop: CancellationToken,
}

/// Leads until `shutdown`. Returns when nothing writes any more; dropped, it stops at once.
async fn lead(
    leading: Leading,
    base: Base,
    config: Config,
    source: (Shared, Run),
    shutdown: CancellationToken,
) -> Result<(), ClusterError> {
    let Leading {
        access,
        settings,
        mut mirror,
        term,
        stop,
    } = leading;
    let pin = base.authority.pin();
    mirror.claim(&term).await?;
    let dir = config.state_dir.join("authority");
    let authority = tokio::task::spawn_blocking(move || Authority::open(&dir)).await;
    let authority = match authority {
        Ok(opened) => opened.map_err(RunError::from)?,
        Err(_) => return Err(RunError::Ended("opening the authority").into()),
    };
    if authority.pin() != pin {
        // The port shows a certificate of the one before. A new start reads both together.
        let problem = "its authority was replaced while this coordinator ran";
        return Err(SharedStateError::Damaged(problem.into()).into());
    }
    let mut tasks = JoinSet::new();
    let (saver, asks) = Saver::new();
    // The last to stop: what the API still does is kept.
    let keep = state::keep(mirror, term.clone(), asks, stop.clone());
    tasks.spawn(async move {
        keep.await;
        "shared state"
    });
    let (questions, asked) = mpsc::channel(keeper::QUESTIONS);
    let (keyed, keyed_seen) = watch::channel(false);
    let key = review::key(&base.token);
    let tokens = Tokens::new(access.client.clone(), settings.token_audiences.clone());
    let web = Web::new(tokens, questions, base.token.clone(), keyed_seen);
    let more = web::router(web);
    let begun =
        Coordinator::start_on(base, config, Some(source), saver, more, stop.clone()).await?;
    let (coordinator, doors) = begun;
    let (guard, guarded) = watch::channel(match settings.webhook {
        None => Guarded::None,
        Some(_) => Guarded::Unknown,
    });
    if let Some(name) = settings.webhook.clone() {
        let webhook = Webhook {
            api: Api::all(access.client.clone()),
            name,
            pem: authority.pem().to_owned(),
            key,
            guard,
            keyed,
        };
        let current = webhook::keep(webhook, term.clone(), stop.clone());
        tasks.spawn(async move {
            current.await;
            "webhook's configuration"
        });
    }
    let attending = Attending {
        access,
        settings,
        doors,
        asked,
        guarded,
        term,
    };
    tasks.spawn(attend(attending, stop.clone()));

    let mut coordinator = std::pin::pin!(coordinator.wait());
    let outcome = tokio::select! {
        () = shutdown.cancelled() => {
            stop.cancel();
            coordinator.as_mut().await.map_err(Into::into)
        }
        ended = coordinator.as_mut() => ended.map_err(Into::into),
        Some(ended) = tasks.join_next() => {
            stop.cancel();
            drop(coordinator.as_mut().await);
            let part = ended.unwrap_or("a part of the leader");
            Err(RunError::Ended(part).into())
        }
    };
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    outcome
}

/// What a leader attends to its cluster with.
struct Attending {
    access: Access,
    settings: Cluster,
    doors: Doors,
    asked: mpsc::Receiver<Question>,
    guarded: watch::Receiver<Guarded>,
    term: Term,
}

/// Watches the cluster and writes to it while this process leads.
async fn attend(attending: Attending, stop: CancellationToken) -> &'static str {
    let Attending {
        access,
        settings,
        doors,
        asked,
        guarded,
        term,
    } = attending;
    let Doors {
        inbox,
        view,
        presence,
        registries,
        metrics,
    } = doors;
    let leader = metrics.cluster.leader.clone();
    leader.set(1);
    let keeper = Keeper::new(keeper::Parts {
        config: keeper::Config {
            namespaces: settings.watch_namespaces.into_iter().collect(),
            default_gate: settings.default_gate.into(),
            instance: settings.pod_name,
        },
        client: access.client,
        may_write: Arc::new(move || term.left()),
        driver: inbox,
        registries,
        guarded,
        metrics: metrics.cluster,
    });
    keeper.run(asked, view, presence, stop).await;
    leader.set(0);
    "keeper"
}

// ---- the leader's marks ------------------------------------------------------------------------------------------------

/// Keeps the leader's label on the own Pod while it leads, and off it while it doesn't.
async fn label(
    access: Access,
    pod: String,
    mut led: watch::Receiver<Leadership>,
    stop: CancellationToken,
) {
    let mut failing = trouble::Failing::default();
    let mut backoff = Backoff::seeded(RETRY.0, RETRY.1);
    loop {
        let term = match &*led.borrow_and_update() {
            Leadership::Leading(term) => Some(term.clone()),
            Leadership::Following(_) => None,
        };
        let stopping = stop.is_cancelled();
        let left = term.and_then(|term| term.left()).filter(|_| !stopping);
        let limit = left.map_or(REQUEST_TIMEOUT, |left| left.min(REQUEST_TIMEOUT));
        let marked = timeout(limit, mark(&access, &pod, left.is_some())).await;
        let pause = match marked {
            Ok(Ok(())) => {
                failing.over();
                backoff.succeeded();
                LOOK_EVERY
            }
            failed => {
                if let Some(error) = failing.failed(failed.ok().and_then(Result::err).as_ref()) {
                    warn!(
                        pod,
                        error, "leader's label can't be put or taken off; trying again"
                    );
                }
                backoff.delay(None)
            }
        };
        if stopping {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            Ok(()) = led.changed() => {}
            () = sleep(pause) => {}
        }
    }
}

/// Puts the label on one Pod and takes it off all others, or takes it off this one.
async fn mark(access: &Access, pod: &str, leads: bool) -> kube::Result<()> {
    let pods = access.pods();
    let marked = pods
        .list_metadata(&ListParams::default().labels(&format!("{ROLE_LABEL}=leader")))
        .await?;
    let marked = marked.items.into_iter().filter_map(|pod| pod.metadata.name);
    let (own, others): (Vec<_>, Vec<_>) = marked.partition(|name| name == pod);
    let set = |value: Value| {
        let labels = json!({ "metadata": { "labels": { ROLE_LABEL: value } } });
        Patch::Merge(labels)
    };
    // A Pod that isn't there has no label to lose; outside of a Pod there is none to put it on.
    let absent =
        |error: &kube::Error| matches!(error, kube::Error::Api(status) if status.code == 404);
    if leads {
        // First the old one's: a Service with two leaders would send hosts to the wrong one.
        for other in others {
            match pods
                .patch_metadata(&other, &patch_params(), &set(Value::Null))
                .await
            {
                Err(error) if !absent(&error) => return Err(error),
                _ => info!(pod = other, "leader's label taken off"),
            }
        }
    }
    if leads != own.is_empty() {
        return Ok(());
    }
    let value = if leads { json!("leader") } else { Value::Null };
    match pods.patch_metadata(pod, &patch_params(), &set(value)).await {
        Err(error) if absent(&error) => {
            debug!(pod, "own Pod isn't known to the cluster; it gets no label");
            Ok(())
        }
        done => done.map(drop),
    }
}
