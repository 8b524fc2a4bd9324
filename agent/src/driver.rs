//! The driver: the only owner of the agent's state. It makes an [`Input`] of whatever happens next, changes the
//! [`State`] by it in a synchronous [`State::apply`], and carries out the effects that come of it.
//!
//! The swarm decides which chunk to ask of which peer. The chain of links says whether a chunk is true. The store says
//! where a chunk lies. The driver only passes on what one part has to tell another. Each job ends in an [`Input`] too;
//! a job that panics ends the program.

mod blob_cache;
mod contents;
mod disk;
mod exchange;
mod fetches;
mod fit;
mod gauges;
mod handles;
mod hosts;
mod image;
mod image_news;
mod image_state;
mod images;
mod input;
mod jobs;
mod leases;
mod look;
mod making;
mod mirror;
mod old_images;
mod orders;
mod origins;
mod patience;
mod recipe_asks;
mod recipe_files;
mod report;
mod state;
mod streams;
mod supply;
mod transfers;
mod trouble;
mod upkeep;
mod walk;
mod wants;

use std::{sync::Arc, time::Instant};

use proto::{HostId, message::Hello};
use swarm::Swarm;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};
use wire::{Authorised, Endpoint};

use self::{
    disk::Disk,
    exchange::Exchange,
    jobs::Jobs,
    mirror::Mirror,
    state::{Effect, Given, State},
    streams::Streams,
    supply::Supply,
};
pub(crate) use self::{input::Input, jobs::BLOCKING_THREADS};
use crate::{
    admin::Snapshot,
    config::Config,
    metrics::Metrics,
    mirror::{Ears, Wish},
    notary::Notary,
    registries::Origin,
    session::Heard,
    store::{Store, in_use},
    tart::Fitness,
};

/// Inputs of peers and fetches that wait for the driver. A full queue slows its senders. At 1 Gbit/s a hundred chunks
/// come in a second, so one turn of the loop needs far fewer places.
const QUEUE: usize = 256;

/// The parts that the driver is made of.
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) me: HostId,
    pub(crate) endpoint: Endpoint,
    pub(crate) store: Arc<Store>,
    pub(crate) origin: Origin,
    pub(crate) notary: Arc<Notary>,
    pub(crate) tart: Option<Arc<crate::golden::Goldens>>,
    pub(crate) metrics: Metrics,
    /// The mirror's wishes and cache, where there is one.
    pub(crate) mirror: Option<Ears>,
    pub(crate) coordinator: HostId,
    /// Messages of the coordinator's session.
    pub(crate) heard: mpsc::Receiver<Heard>,
    /// The first message of the next session, kept current.
    pub(crate) hello: watch::Sender<Hello>,
    /// The answer to `/v1/status`, kept current.
    pub(crate) snapshot: watch::Sender<Arc<Snapshot>>,
    pub(crate) stop: CancellationToken,
}

/// Runs the agent until `stop` is cancelled or something essential ends.
pub(crate) async fn run(parts: Parts) -> anyhow::Result<()> {
    let (peer_inbox, mut brought) = mpsc::channel(QUEUE);
    let (fetch_inbox, mut fetched) = mpsc::channel(QUEUE);
    let (mut heard, stop) = (parts.heard, parts.stop);
    let mirror = Mirror::new(parts.mirror.as_ref());
    let disk = Disk::new(
        parts.store.clone(),
        mirror.blobs().cloned(),
        parts.tart,
        Arc::new(Fitness::new(parts.config.tart_binary.clone())),
        parts.config.tart_home.clone(),
    );
    let mut wishes = parts.mirror.map(|ears| ears.wishes);
    let now = Instant::now();
    let home = parts.config.tart_home.clone();
    let read = move || (parts.store.volume(), in_use::kept(&home));
    let (volume, in_use) = tokio::task::spawn_blocking(read).await?;
    let swarm_config = swarm::Config::default();
    let (seed, life) = (random()?, random()?);
    let streams = Streams {
        me: parts.me.clone(),
        // 0 would name no life
        life: life.max(1),
        endpoint: parts.endpoint.clone(),
        origin: parts.origin,
        notary: parts.notary.clone(),
        cache: Arc::default(),
        unfit: Arc::default(),
        peer_inbox,
        fetch_inbox,
    };
    let swarm = Swarm::new(parts.me.key(), swarm_config, seed);
    let (me, cache, metrics) = (
        parts.me.clone(),
        streams.cache.clone(),
        parts.metrics.clone(),
    );
    let exchange = Exchange::new(me, swarm, now, cache, metrics);
    let endpoint = parts.endpoint;
    let supply = Supply::new(exchange, mirror, disk.clone(), parts.metrics.clone(), now);
    let given = Given {
        config: parts.config,
        me: parts.me,
        peer_port: endpoint.local_addr().map_or(0, |address| address.port()),
        disk: disk.clone(),
        in_use,
        notary: parts.notary,
        metrics: parts.metrics,
        coordinator: parts.coordinator,
        hello: parts.hello,
        snapshot: parts.snapshot,
    };
    let mut state = State::new(given, supply, volume, now);
    let mut jobs = Jobs::new();
    state.start();
    let mut accepting = JoinSet::new();
    loop {
        state.turn(Instant::now());
        carry_out(&mut state, (&mut jobs, &streams, &endpoint));
        let wake = state.next_wake(Instant::now());
        let input = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(heard) = heard.recv() => Input::Heard(heard),
            Some(ended) = jobs.join_next() => match ended {
                Ok(input) => input,
                Err(error) if error.is_cancelled() => Input::Nothing,
                Err(error) => anyhow::bail!("a job of the agent panicked: {error}; this is a defect: please report it with the log"),
            },
            Some((id, news)) = fetched.recv() => Input::Fetch { id, news },
            Some(wish) = next_wish(&mut wishes) => Input::Wished(wish),
            Some((peer, brought)) = brought.recv() => Input::Brought { peer, brought },
            incoming = endpoint.accept(), if accepting.len() < 64 => match incoming {
                Some(incoming) => {
                    accepting.spawn(async move { incoming.establish().await.map_err(|error| error.to_string()) });
                    Input::Nothing
                }
                None => anyhow::bail!("the QUIC endpoint, by which other hosts are reached, closed unasked"),
            },
            Some(accepted) = accepting.join_next() => match accepted {
                Ok(Ok(connection)) => Input::Connected { peer: connection.host().key(), result: Ok(connection) },
                Ok(Err(error)) => {
                    debug!(error, "refused a connection");
                    Input::Nothing
                }
                Err(error) => anyhow::bail!("a job of the agent panicked: {error}; this is a defect: please report it with the log"),
            },
            () = sleep_until(wake.into()) => Input::Tick,
        };
        state.apply(Instant::now(), input);
        carry_out(&mut state, (&mut jobs, &streams, &endpoint));
    }
    info!("stopping");
    endpoint.close("agent stops");
    state.stop();
    jobs.abort_all();
    disk.store().stop();
    tokio::task::spawn_blocking(move || disk.seal()).await??;
    Ok(())
}

/// Carries out what the state wants, in order.
fn carry_out(state: &mut State, (jobs, streams, endpoint): (&mut Jobs, &Streams, &Endpoint)) {
    while let Some(effect) = state.poll() {
        match effect {
            Effect::Run(work) => jobs.start(work),
            Effect::Errand(errand) => jobs.start(streams.work(errand)),
            Effect::Admit {
                hosts,
                enrolled,
                addresses,
            } => {
                endpoint.authorise(Authorised::Only(hosts));
                endpoint.supersede(enrolled);
                endpoint.expect(addresses);
            }
        }
    }
}

/// A number that nobody can guess, from the system.
fn random() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("the operating system gives no random bytes"))?;
    Ok(u64::from_be_bytes(bytes))
}

/// The mirror's next wish. Without a mirror, this never returns.
async fn next_wish(wishes: &mut Option<mpsc::Receiver<Wish>>) -> Option<Wish> {
    match wishes {
        Some(wishes) => wishes.recv().await,
        None => std::future::pending().await,
    }
}
