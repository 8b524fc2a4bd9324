//! The running agent: wires its parts together, and ends when one of them does.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use client::COORDINATOR;
use proto::{HostId, message::Hello};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wire::{Credentials, Endpoint, LocalNames, Settings};

use crate::{
    admin::{self, Snapshot},
    config::Config,
    driver::{self, Parts},
    golden::Goldens,
    identity::{self, Identity},
    metrics::Metrics,
    mirror::{self, Mirror},
    notary::Notary,
    purgeable,
    registries::Origin,
    session::{self, Heard},
    store::{self, Store},
    tart::Tart,
};

/// Runs the agent until it is told to stop, or something essential ends.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let identity = Identity::load(&config.state_dir)?;
    let credentials = identity.credentials()?;
    let me = credentials.host().clone();
    let notary = Arc::new(Notary::open(&credentials, &config.state_dir));
    let coordinator: HostId = COORDINATOR.parse().context("naming the coordinator")?;
    let (metrics, registry) = Metrics::new();
    let listener = admin::bind(config.admin).await.with_context(|| {
        let address = config.admin;
        format!("listening on {address} for health and metrics (--admin)")
    })?;
    let endpoint = bind(&config, credentials, &coordinator)?;
    let store = open_store(&config, &me).await?;
    let origin = Origin::new(&config.origin)?;
    let (mirror, ears) = mirror::open(
        config.mirror.clone(),
        &me,
        config.floor,
        origin.clone(),
        metrics.clone(),
    )
    .await?
    .unzip();
    let stop = CancellationToken::new();
    let (hello, hello_now) = watch::channel(Hello::default());
    let (snapshot, snapshot_now) = watch::channel(Arc::new(Snapshot::default()));
    // a short queue will do, since orders come seldom: a roster, some stages, a lease every few seconds
    let (inbox, heard) = mpsc::channel(64);
    info!(
        host = %me,
        listen = %endpoint.local_addr().map_or(config.listen, |address| address),
        admin = %config.admin,
        mirror = mirror.as_ref().and_then(Mirror::address).map(tracing::field::display),
        tart_home = %config.tart_home.display(),
        coordinator = identity.coordinator(),
        "parbake-agent {} starts", env!("CARGO_PKG_VERSION")
    );
    for warning in config.beside_node_agent() {
        warn!("{warning}");
    }
    let mut tasks = JoinSet::new();
    if config.count_purgeable {
        let following = purgeable::follow(store.clone(), config.tart_home.clone(), stop.clone());
        tasks.spawn(unfailing(following));
    }
    let names = LocalNames::new(config.admin_names.iter().cloned());
    let serving = admin::serve(listener, registry, snapshot_now, names, stop.clone());
    tasks.spawn(async move {
        serving
            .await
            .context("serving health and metrics (--admin)")
    });
    if let Some(mirror) = mirror {
        tasks.spawn(unfailing(mirror.serve(stop.clone())));
    }
    let settings = session::Settings {
        coordinator: coordinator.clone(),
        address: identity.coordinator().to_owned(),
        state_dir: config.state_dir.clone(),
    };
    let session = keep_session(endpoint.clone(), settings, identity, hello_now, inbox);
    tasks.spawn(unfailing(stop.clone().run_until_cancelled_owned(session)));
    let parts = Parts {
        origin,
        notary,
        tart: goldens(&config, &metrics),
        config,
        me,
        endpoint,
        store,
        metrics,
        mirror: ears,
        coordinator,
        heard,
        hello,
        snapshot,
        stop: stop.clone(),
    };
    tasks.spawn(Box::pin(driver::run(parts)));
    watch_over(tasks, stop).await
}

/// The endpoint for peers and the coordinator. Only the coordinator may connect until it names the other hosts.
fn bind(
    config: &Config,
    credentials: Credentials,
    coordinator: &HostId,
) -> anyhow::Result<Endpoint> {
    let settings = Settings {
        reset_secret: Some(identity::reset_secret(&config.state_dir)),
        ..Settings::default()
    };
    let endpoint = Endpoint::bind(config.listen, credentials, &settings)
        .with_context(|| format!("listening on UDP {} for peers (--listen)", config.listen))?;
    endpoint.authorise(wire::Authorised::Only([coordinator.clone()].into()));
    Ok(endpoint)
}

async fn open_store(config: &Config, me: &HostId) -> anyhow::Result<Arc<Store>> {
    // an installation that finds tart's lock taken frees its thread, and is tried again
    let options = store::Options {
        floor_percent: config.floor.percent,
        kept_bytes: config.floor.kept_bytes,
        lock_wait: Duration::ZERO,
        ..store::Options::default()
    };
    let store = Store::open_in_background(config.tart_home.clone(), options).await?;
    store.set_host(me.clone());
    Ok(store)
}

/// Makes goldens, if they are wanted on this host.
fn goldens(config: &Config, metrics: &Metrics) -> Option<Arc<Goldens>> {
    let prefix = config.golden_prefix.clone()?;
    let tart = Tart::new(config.tart_binary.clone(), config.tart_home.clone());
    let home = config.tart_home.clone();
    let goldens = Goldens::new(prefix, home, tart, metrics.clone());
    goldens.sweep();
    Some(Arc::new(goldens))
}

/// Keeps a session with the coordinator, once the driver has made the hello: what this host holds, and where its peers
/// find it.
async fn keep_session(
    endpoint: Endpoint,
    settings: session::Settings,
    identity: Identity,
    mut hello: watch::Receiver<Hello>,
    inbox: mpsc::Sender<Heard>,
) {
    let made = hello
        .wait_for(|hello| !hello.version.is_empty())
        .await
        .is_ok();
    if made {
        let say_hello = move || hello.borrow().clone();
        session::keep(endpoint, settings, identity, say_hello, inbox).await;
    }
}

async fn unfailing<T>(task: impl Future<Output = T>) -> anyhow::Result<()> {
    task.await;
    Ok(())
}

/// Waits until the program is told to stop, or until a task ends. Then stops the tasks, and waits a while for them.
async fn watch_over(
    mut tasks: JoinSet<anyhow::Result<()>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = tasks.join_next() => essential(ended),
    };
    stop.cancel();
    let rest = tokio::time::timeout(Duration::from_secs(10), async {
        while let Some(ended) = tasks.join_next().await {
            ended.context(
                "a task of the agent panicked; this is a defect: please report it with the log",
            )??;
        }
        anyhow::Ok(())
    });
    result.and(rest.await.unwrap_or(Ok(())))
}

/// A part that ends unasked ends the program.
fn essential(
    ended: Option<Result<anyhow::Result<()>, tokio::task::JoinError>>,
) -> anyhow::Result<()> {
    match ended {
        Some(Ok(Ok(()))) | None => anyhow::bail!(
            "a task of the agent ended unasked; this is a defect: please report it with the log"
        ),
        Some(Ok(Err(error))) => Err(error),
        Some(Err(error)) => Err(error).context(
            "a task of the agent panicked; this is a defect: please report it with the log",
        ),
    }
}
