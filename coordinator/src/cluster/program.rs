//! A coordinator in a cluster: one of several replicas, of which one leads.
//!
//! Every replica shares the state of [`shared_secret`], serves health, and answers on the API's port. A replica that
//! doesn't lead answers 503 there, with the leader's name. The leader runs a [`Coordinator`], as a coordinator without
//! a cluster does, and the [`keeper`](super) beside it.
//!
//! A replica leads at most once. When it loses the lease, its writers find their term over, all its parts stop, and the
//! process ends with an error, so that Kubernetes starts it anew. So no state of one term is left in the next.

use std::sync::Arc;

use k8s_openapi::api::{coordination::v1::Lease, core::v1::Secret};
use kube::Api;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::{
    access::{Access, AccessError},
    follower::{self, Forward},
    keeper::{self, Guarded, Keeper, Question},
    leader_label,
    lease::{self, Leadership, LostError},
    review,
    shared_secret::{self, SharedSecret, SharedStateError},
    term::Term,
    tokens::Tokens,
    web::{self, Web},
    webhook::{self, Webhook},
};
use crate::{
    authority::Authority,
    cli::{Run, Shared},
    config::{Cluster, Config},
    program::{Base, Coordinator, Doors, RunError},
    saver::Saver,
    state_dir,
};

/// Why a coordinator in a cluster doesn't run, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The API server can't be reached.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The shared state can't be had.
    #[error(transparent)]
    State(#[from] SharedStateError),
    /// The coordinator doesn't run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The lease was lost. Another replica leads, and this one has to be started anew.
    #[error(transparent)]
    Lost(#[from] LostError),
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
    let lock = state_dir::lock(&config.state_dir).map_err(RunError::from)?;
    let access = Access::find(&settings).await?;
    let secrets: Api<Secret> = Api::namespaced(access.client.clone(), &access.namespace);
    let shared = SharedSecret::open(secrets, config.state_dir.clone()).await?;
    let (leadership, led) = watch::channel(Leadership::Following(None));
    // The replica's own parts stop after the leader's parts, so nobody writes any more when the lease is given back.
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
    let label = leader_label::keep(
        access.clone(),
        settings.pod_name.clone(),
        led.clone(),
        stop.clone(),
    );
    beside.spawn(async move {
        label.await;
        "leader's label"
    });

    let mut waiting = led.clone();
    let term = tokio::select! {
        () = shutdown.cancelled() => None,
        ended = election.join_next() => return Err(lost(ended)),
        part = unasked(&mut beside, &stop) => return Err(RunError::Ended(part).into()),
        part = base.ended() => return Err(RunError::Ended(part).into()),
        term = leads(&mut waiting) => Some(term),
    };
    let outcome = match term {
        None => Ok(()),
        Some(term) => {
            let leading = Leading {
                access,
                settings,
                shared,
                term,
                stop: stop.clone(),
            };
            let work = lead(leading, base, config, source, shutdown);
            tokio::select! {
                ended = election.join_next() => Err(lost(ended)),
                part = unasked(&mut beside, &stop) => Err(RunError::Ended(part).into()),
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

/// The name of a part that ended before `stop`. Never returns after `stop`, because the parts are meant to end then.
async fn unasked(beside: &mut JoinSet<&'static str>, stop: &CancellationToken) -> &'static str {
    let ended = beside.join_next().await;
    if stop.is_cancelled() {
        return std::future::pending().await;
    }
    ended
        .and_then(Result::ok)
        .unwrap_or("a part beside the leader")
}

/// The term, as soon as this process leads.
async fn leads(led: &mut watch::Receiver<Leadership>) -> Term {
    let found = led
        .wait_for(|leadership| matches!(leadership, Leadership::Leading(_)))
        .await;
    match found.as_deref() {
        Ok(Leadership::Leading(term)) => term.clone(),
        // The election has ended. The caller's select on the election's task reports that.
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

/// The state and settings that a leader starts with.
struct Leading {
    access: Access,
    settings: Cluster,
    shared: SharedSecret,
    term: Term,
    /// Stops everything, including the API's port.
    stop: CancellationToken,
}

/// Leads until `shutdown`, and returns when nothing writes any more. A dropped future stops at once.
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
        mut shared,
        term,
        stop,
    } = leading;
    let pin = base.authority.pin();
    shared.claim(&term).await?;
    let dir = config.state_dir.join("authority");
    let authority = tokio::task::spawn_blocking(move || Authority::open(&dir)).await;
    let authority = match authority {
        Ok(opened) => opened.map_err(RunError::from)?,
        Err(_) => return Err(RunError::Ended("opening the authority").into()),
    };
    if authority.pin() != pin {
        // The port still shows a certificate of the earlier authority. A restart reads port and authority together.
        let problem = "its authority was replaced while this coordinator ran";
        return Err(SharedStateError::Damaged(problem.into()).into());
    }
    let mut tasks = JoinSet::new();
    let (saver, asks) = Saver::new();
    // Stops last, so that changes by the API's last requests are saved.
    let keep = shared_secret::keep(shared, term.clone(), asks, stop.clone());
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

/// The state and settings that a leader needs to watch the cluster.
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_part_beside_the_leader_that_panics_is_told_and_one_that_was_stopped_is_not() {
        let stop = CancellationToken::new();
        let mut beside = JoinSet::new();
        beside.spawn(async { panic!("injected") });
        assert_eq!(
            unasked(&mut beside, &stop).await,
            "a part beside the leader"
        );
        beside.spawn(async { "label" });
        assert_eq!(unasked(&mut beside, &stop).await, "label");
        stop.cancel();
        beside.spawn(async { "label" });
        let told = timeout(Duration::from_millis(100), unasked(&mut beside, &stop)).await;
        assert!(told.is_err());
    }
}
