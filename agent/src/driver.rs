//! The agent's one owner of state: it builds an [`Input`] out of whatever happens next, changes state in a synchronous
//! [`Driver::apply`], and turns the swarm's actions into jobs.
//!
//! What to ask of whom is the swarm's business; whether a chunk is true is the chain's; where it lies is the store's.
//! Here is only who gets told what. Jobs end in an [`Input`] too; one that panics ends the program.

mod contents;
mod fetches;
mod fit;
mod gauges;
mod hosts;
mod image;
mod image_state;
mod images;
mod input;
mod jobs;
mod leases;
mod look;
mod mirror;
mod orders;
mod report;
mod streams;
mod tasks;
mod transfers;
mod trouble;
mod upkeep;
mod walk;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use link::{Authorised, Endpoint};
use proto::{
    ChunkIndex, Digest, HostId, HostKey, Moment, Reason,
    image::Layout,
    message::{BlameKind, Hello, LeaseEnd, Report},
};
use swarm::{
    Action, Event, Swarm,
    action::Declined,
    event::{ContentId, Delivery, Spread, Ticket},
};
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        watch,
    },
    task::JoinSet,
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::{
    contents::{Content, Contents},
    fetches::{Fetches, Told},
    hosts::Hosts,
    images::{Images, Left, Source},
    jobs::{Jobs, Long},
    leases::{End, Leases, Progress},
    look::Seen,
    mirror::Mirrored,
    orders::{Order, ReadOrderError},
    report::{Facts, Known, Reporting},
    streams::{Offer, PeerTransfers},
    transfers::Transfer,
    trouble::Trouble,
    upkeep::{Chore, Needs, Upkeep},
    walk::Walked,
};
pub(crate) use self::{input::Input, jobs::BLOCKING_THREADS};
use crate::{
    admin::Snapshot,
    config::Config,
    fetch::{self, FetchEnd, News},
    metrics::{From, Metrics, OutcomeLabel, SourceLabel},
    mirror::{Ears, Wish},
    notary::Notary,
    peer::Brought,
    registries::Origin,
    session::Heard,
    shelf::{Shelf, Unwritable, retract},
    store::{self, InstallError, Stage, Store, Volume},
    transfer::{Cache, Receipt, Shipment, Subject},
};

/// Inputs of peers and fetches that wait for the driver. A full queue slows its senders; at 1 Gbit/s a hundred chunks
/// come in a second, so this is far more than one turn of the loop needs.
const QUEUE: usize = 256;

/// What the driver is made of.
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
    /// What the session says first, kept current.
    pub(crate) hello: watch::Sender<Hello>,
    /// What `/v1/status` shows, kept current.
    pub(crate) snapshot: watch::Sender<Arc<Snapshot>>,
    pub(crate) stop: CancellationToken,
}

pub(crate) struct Driver {
    config: Config,
    me: HostId,
    endpoint: Endpoint,
    store: Arc<Store>,
    origin: Origin,
    notary: Arc<Notary>,
    goldens: Option<Arc<crate::golden::Goldens>>,
    metrics: Metrics,
    coordinator: HostId,
    hello: watch::Sender<Hello>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    epoch: Instant,
    /// Names this life of the program to peers.
    life: u64,
    swarm: Swarm,
    cache: Arc<Cache>,
    hosts: Hosts,
    contents: Contents,
    images: Images,
    mirror: Mirrored,
    transfers: PeerTransfers,
    fetches: Fetches,
    session: Option<mpsc::Sender<Report>>,
    leases: Leases,
    reporting: Reporting,
    upkeep: Upkeep,
    jobs: Jobs,
    peer_inbox: mpsc::Sender<(HostKey, Brought)>,
    fetch_inbox: mpsc::Sender<(ContentId, News)>,
}

/// Runs the agent until `stop` is cancelled or something essential ends.
pub(crate) async fn run(parts: Parts) -> anyhow::Result<()> {
    let (peer_inbox, mut brought) = mpsc::channel(QUEUE);
    let (fetch_inbox, mut fetched) = mpsc::channel(QUEUE);
    let (mut heard, stop) = (parts.heard, parts.stop);
    let mirror = Mirrored::new(parts.mirror.as_ref());
    let mut wishes = parts.mirror.map(|ears| ears.wishes);
    let now = Instant::now();
    let store = parts.store.clone();
    let volume = tokio::task::spawn_blocking(move || store.volume()).await?;
    let swarm_config = swarm::Config::default();
    let (seed, life) = (random()?, random()?);
    let cache: Arc<Cache> = Arc::default();
    let step_back = parts.config.step_back_load_percent;
    let mut driver = Driver {
        swarm: Swarm::new(parts.me.key(), swarm_config, seed),
        config: parts.config,
        me: parts.me.clone(),
        endpoint: parts.endpoint.clone(),
        store: parts.store,
        origin: parts.origin,
        notary: parts.notary,
        goldens: parts.tart,
        metrics: parts.metrics,
        coordinator: parts.coordinator,
        hello: parts.hello,
        snapshot: parts.snapshot,
        epoch: now,
        // 0 says nothing
        life: life.max(1),
        cache: cache.clone(),
        hosts: Hosts::default(),
        contents: Contents::new(parts.me.key(), cache),
        images: Images::default(),
        mirror,
        transfers: PeerTransfers::default(),
        fetches: Fetches::default(),
        session: None,
        leases: Leases::default(),
        reporting: Reporting::new(now),
        upkeep: Upkeep::new(now, volume, step_back),
        jobs: Jobs::new(),
        peer_inbox,
        fetch_inbox,
    };
    driver.start();
    let endpoint = parts.endpoint;
    let mut accepting = JoinSet::new();
    loop {
        driver.turn();
        let wake = driver.next_wake();
        let input = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(heard) = heard.recv() => Input::Heard(heard),
            Some(ended) = driver.jobs.join_next() => match ended {
                Ok(input) => input,
                Err(error) if error.is_cancelled() => Input::Nothing,
                Err(error) => anyhow::bail!("a job of the agent died: {error}"),
            },
            Some((id, news)) = fetched.recv() => Input::Fetch { id, news },
            Some(wish) = next_wish(&mut wishes) => Input::Wished(wish),
            Some((peer, brought)) = brought.recv() => Input::Brought { peer, brought },
            incoming = endpoint.accept(), if accepting.len() < 64 => match incoming {
                Some(incoming) => {
                    accepting.spawn(async move { incoming.establish().await.map_err(|error| error.to_string()) });
                    Input::Nothing
                }
                None => anyhow::bail!("the QUIC endpoint closed"),
            },
            Some(accepted) = accepting.join_next() => match accepted {
                Ok(Ok(connection)) => Input::Connected { peer: connection.host().key(), result: Ok(connection) },
                Ok(Err(error)) => {
                    debug!(error, "refused a connection");
                    Input::Nothing
                }
                Err(error) => anyhow::bail!("a job of the agent died: {error}"),
            },
            () = sleep_until(wake.into()) => Input::Tick,
        };
        driver.apply(input);
    }
    driver.stop().await
}

/// A number that nobody can guess, from the system.
fn random() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
    Ok(u64::from_be_bytes(bytes))
}

/// The mirror's next wish; never, without a mirror.
async fn next_wish(wishes: &mut Option<mpsc::Receiver<Wish>>) -> Option<Wish> {
    match wishes {
        Some(wishes) => wishes.recv().await,
        None => std::future::pending().await,
    }
}

impl Driver {
    fn now(&self) -> Moment {
        Moment(u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// When the driver has something to do next, whatever else happens.
    fn next_wake(&self) -> Instant {
        let swarm = self.swarm.next_timeout();
        let moments = [swarm, self.images.next_due()].into_iter().flatten();
        let moments = moments.map(|at| self.epoch + at.since(Moment::START));
        let others = [
            self.upkeep.next_due(self.needs()),
            self.reporting.next_due(),
            self.mirror.next_look(),
        ];
        let soonest = moments.chain(others.into_iter().flatten()).min();
        soonest.unwrap_or_else(|| Instant::now() + upkeep::LOOK_EVERY)
    }

    fn needs(&self) -> Needs {
        Needs {
            filling: self.images.is_filling(),
            look: self.images.look_due(),
        }
    }

    fn tell(&mut self, event: Event) {
        let now = self.now();
        self.swarm.handle(now, event);
    }

    /// Carries out what the swarm wants, and what is due.
    fn turn(&mut self) {
        while let Some(action) = self.swarm.poll() {
            self.act(action);
        }
        self.images.begin_jobs(self.now());
        self.follow_images();
        self.hosts.flush_updates();
        let leases = i64::try_from(self.leases.count()).unwrap_or(i64::MAX);
        self.metrics.leases.set(leases);
        let now = Instant::now();
        for chore in self.upkeep.begin_due(now, self.needs()) {
            self.attend(chore);
        }
        if self.mirror.next_look().is_some_and(|look| now >= look) {
            self.look_at_wants();
        }
        if self.reporting.is_due(now) {
            self.make_report();
        }
    }

    fn attend(&mut self, chore: Chore) {
        let store = self.store.clone();
        match chore {
            Chore::Flush => {
                let blobs = self.mirror.blobs().cloned();
                self.spawn_blocking(move || tasks::flush(&store, blobs.as_deref()));
            }
            Chore::Look => {
                self.images.look_begins();
                let goldens = self.goldens.clone();
                self.spawn_blocking(move || tasks::look(&store, goldens.as_deref()));
            }
            Chore::Measure => self.spawn_blocking(move || Input::Measured(store.volume())),
        }
    }

    fn apply(&mut self, input: Input) {
        // what a job found on the disk goes before what it ended in
        self.hear_store();
        match input {
            Input::Connected { peer, result } => match result {
                Ok(connection) => {
                    let effects = self.hosts.connected(peer, connection);
                    self.follow_hosts(effects);
                }
                Err(error) => {
                    let effect = self.hosts.not_connected(peer, &error);
                    self.follow_hosts(effect);
                }
            },
            Input::ConnectionEnded {
                peer,
                serial,
                reason,
            } => {
                let effects = self.hosts.ended(peer, serial, &reason);
                self.follow_hosts(effects);
            }
            Input::Brought { peer, brought } => self.brought(peer, brought),
            Input::Heard(heard) => self.heard(heard),
            Input::Received {
                transfer,
                number,
                receipt,
            } => self.received(transfer, number, receipt),
            Input::Sent {
                transfer,
                ticket,
                shipment,
            } => self.sent(transfer, ticket, shipment),
            Input::Fetch { id, news } => self.fetch_news(id, news),
            Input::Retracted { id, from, result } => {
                let effects = self.contents.retracted(Instant::now(), id, from, result);
                self.follow_contents(effects);
            }
            Input::Dropped { id, result } => {
                let effects = self.contents.dropped(id, result);
                self.follow_contents(effects);
            }
            Input::FetchEnded { id, number, end } => self.fetch_ended(id, number, end),
            Input::Begun { image, result } => self.begun(image, result),
            Input::Walked { id, walked } => self.walked(id, walked),
            Input::Recorded { image, result } => {
                self.images.recorded(self.now(), image, result);
            }
            Input::Installed {
                image,
                stage,
                placed,
                result,
            } => self.installed(image, stage, placed, result),
            Input::ReadAgain {
                image,
                stage,
                result,
            } => self.images.was_read(self.now(), image, &stage, result),
            Input::Golden {
                image,
                stage,
                result,
                installed,
            } => self.golden_made(image, &stage, installed, result),
            Input::Abandoned(image) => self.images.abandoned(image),
            Input::Presence { seen, load_percent } => self.looked(&seen, load_percent),
            Input::Measured(volume) => self.measured(volume),
            Input::Scrubbed => self.upkeep.scrubbed(),
            Input::Looked {
                content,
                chunk,
                rotten,
            } => self.looked_at(content, chunk, rotten),
            Input::Flushed { images, blobs } => {
                self.upkeep.flushed();
                if let Err(error) = images {
                    self.images.storage_failed(self.now(), &error);
                }
                if let Err(error) = blobs {
                    self.mirror_storage_failed(&error);
                }
            }
            Input::Wished(wish) => self.wish(wish),
            Input::Seeds(seeds) => self.seeds(seeds),
            Input::Copied(digest) => self.copied(&digest),
            Input::BlobsScrubbed { next, bad } => self.blobs_scrubbed(next, bad),
            Input::Nothing => {}
            Input::Tick => self.tell(Event::Tick),
        }
        self.follow_images();
    }

    fn start(&mut self) {
        let event = Event::Bandwidth {
            upload_bytes_per_second: self.config.upload_bytes_per_second,
            download_bytes_per_second: self.config.download_bytes_per_second,
        };
        self.tell(event);
        self.tell(Event::Coordinator(false));
        self.recover();
        // before anything else happens: what is here is known from the first report on
        self.images.look_begins();
        let seen = Seen::look(&self.store, self.goldens.as_deref());
        // what it found goes before what follows from it
        self.hear_store();
        self.see(&seen);
        self.recover_blobs();
        self.reporting.in_full();
    }

    // ---- reports --------------------------------------------------------------------------------------------------------

    /// Says where everything stands, to the coordinator, the status page and the metrics.
    fn make_report(&mut self) {
        let now = Instant::now();
        let status = self.swarm.status(self.now());
        let contents = &self.contents;
        let id_of = |content: &Digest| contents.by_digest(content).map(Content::id);
        let images = self.images.states(self.now(), &status, id_of);
        let up = self.session.is_some();
        let snapshot = Snapshot::new(&self.me, up, &images, &status);
        self.snapshot.send_replace(Arc::new(snapshot));
        let (all, desired) = (&self.images, self.images.desired());
        let images = self
            .reporting
            .fit(images, |image| all.is_wanted(image), desired);
        let volume = self.volume();
        self.hello.send_replace(Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            peer_port: self
                .endpoint
                .local_addr()
                .map_or(0, |address| address.port().into()),
            zone: self.config.zone.clone(),
            volume: Some(volume.clone()),
            images: images.clone(),
            peer_address: self
                .address()
                .map(|address| address.to_string())
                .unwrap_or_default(),
            takes_names: true,
            roster_epoch: Some(self.hosts.epoch()),
            link_key: self.notary.key().to_vec(),
        });
        gauges::show(&self.metrics, &status, &self.images.count_states());
        let progress = |id| {
            let content = status.content(id);
            Some(Progress {
                content: contents.find(id)?.digest(),
                bytes: self.fetches.moved_bytes(id),
                paced: content.is_some_and(|content| content.paced),
                silent: content.and_then(|content| content.silent),
            })
        };
        let leases = self.leases.report(now, progress);
        let known = |id| {
            let content = contents.find(id)?;
            Some(Known {
                digest: content.digest(),
                verified: content.is_closed(),
            })
        };
        let facts = Facts {
            status: &status,
            known: &known,
            images,
            leases,
            volume,
            wants: self.mirror.wants(self.reporting.is_full()),
            names_confirmed: self.images.names_confirmed(),
        };
        let (report, ends) = self.reporting.make(now, facts);
        self.leases.unsent(ends);
        let unsent = match &self.session {
            None => Some(report),
            Some(session) => match session.try_send(report) {
                Ok(()) => None,
                Err(TrySendError::Full(report)) => {
                    self.reporting.soon();
                    Some(report)
                }
                Err(TrySendError::Closed(report)) => Some(report),
            },
        };
        if let Some(report) = unsent {
            if report.mirror.is_some() {
                self.mirror.unsent();
            }
            let ends = self.reporting.unsent(report);
            self.leases.unsent(ends);
        }
    }

    fn volume(&self) -> proto::message::Volume {
        let measured = self.upkeep.volume();
        proto::message::Volume {
            total_bytes: measured.total_bytes,
            free_bytes: measured.free_bytes,
            floor_bytes: measured.floor_bytes,
            path: self.config.tart_home.display().to_string(),
        }
    }

    /// A peer sent something that only the two of us saw.
    fn blame(&mut self, host: &HostId, id: Option<ContentId>, chunk: ChunkIndex, kind: BlameKind) {
        let content = id.and_then(|id| self.contents.find(id));
        let content = content.map(Content::digest);
        self.reporting.blame(host, content, chunk, kind);
    }

    fn measured(&mut self, volume: Volume) {
        gauges::show_volume(&self.metrics, volume);
        if let Some(trouble) = self.upkeep.measured(volume) {
            self.images.stop_filling(self.now(), &trouble);
        }
    }

    // ---- the coordinator ------------------------------------------------------------------------------------------------

    fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Up(reports) => {
                self.session = Some(reports);
                self.notary.set_connected(true);
                self.images.session_began();
                self.reporting.session_began();
                self.tell(Event::Coordinator(true));
            }
            Heard::Down(taken_in) => {
                self.session = None;
                self.notary.set_connected(false);
                self.tell(Event::Coordinator(false));
                // the next session begins with what is so after all orders of this one
                self.make_report();
                _ = taken_in.send(());
            }
            Heard::Order(order) => match orders::read(*order) {
                Ok(order) => self.order(order),
                Err(error @ ReadOrderError::Unknown) => debug!(%error, "an order isn't followed"),
                Err(error) => warn!(%error, "an order isn't followed"),
            },
        }
    }

    fn order(&mut self, order: Order) {
        let now = self.now();
        match order {
            Order::Roster(roster) => {
                let effects =
                    self.hosts
                        .replace(&self.me, roster.epoch, &roster.hosts, &roster.neighbours);
                self.roster(effects);
            }
            Order::RosterChange(change) => match self.hosts.change(&self.me, &change) {
                Some(effects) => self.roster(effects),
                None => {
                    debug!(epoch = change.epoch, "change of a roster that isn't here");
                    self.reporting.want_roster();
                }
            },
            Order::Neighbours(hosts) => {
                let effects = self.hosts.follow(hosts);
                self.follow_hosts(effects);
            }
            Order::Stage(order) => self.images.order(now, order),
            Order::Pause(image) => self.images.pause(image),
            Order::Cancel(image) => self.images.cancel(now, image),
            Order::Names(names) => self.images.order_names(now, &names),
            Order::Lease {
                content,
                image,
                ticket,
            } => match self.notary.lease(content, ticket.as_ref()) {
                Ok(()) => self.leased(content, image),
                Err(error) => self.give_lease_back(content, &error.to_string()),
            },
            Order::Stand(ticket) => match self.notary.stand(Some(&ticket)) {
                Ok(()) => {
                    let notary = self.notary.clone();
                    self.spawn_blocking(move || {
                        notary.keep();
                        Input::Nothing
                    });
                }
                Err(error) => warn!(%error, "ticket of the coordinator isn't taken"),
            },
            Order::Revoke(content) => self.lease_lost(&content),
            Order::Quarantine(hosts) => {
                for host in hosts {
                    warn!(%host, "the fleet quarantined a host");
                    self.tell(Event::Blamed(host.key()));
                }
            }
            Order::Retraction {
                content,
                maker,
                from,
            } => self.drop_made(&content, maker.key(), from),
            Order::Bandwidth(bandwidth) => {
                info!(
                    upload_bytes_per_second = bandwidth.upload_bytes_per_second,
                    download_bytes_per_second = bandwidth.download_bytes_per_second,
                    "bandwidth is set"
                );
                self.tell(Event::Bandwidth {
                    upload_bytes_per_second: bandwidth.upload_bytes_per_second,
                    download_bytes_per_second: bandwidth.download_bytes_per_second,
                });
            }
            Order::Queue(queue) => self.wants_are_coming(&queue),
            Order::Recheck(chunks) => {
                for (content, chunk) in chunks {
                    self.look_at(&content, chunk);
                }
            }
        }
    }

    /// The roster changed.
    fn roster(&mut self, effects: Vec<hosts::Effect>) {
        let epoch = self.hosts.epoch();
        debug!(hosts = self.hosts.ids().count(), epoch, "roster");
        // what the next session says first
        self.hello
            .send_modify(|hello| hello.roster_epoch = Some(epoch));
        let coordinator = self.coordinator.clone();
        let hosts = self.hosts.ids().cloned().chain([coordinator]);
        self.endpoint.authorise(Authorised::Only(hosts.collect()));
        self.endpoint.supersede(self.hosts.enrolled());
        self.endpoint.expect(self.hosts.addresses());
        self.follow_hosts(effects);
    }

    // ---- images ---------------------------------------------------------------------------------------------------------

    /// Carries out what images need.
    fn follow_images(&mut self) {
        while let Some(effect) = self.images.poll() {
            self.act_for_image(effect);
        }
    }

    fn act_for_image(&mut self, effect: images::Effect<Arc<Stage>>) {
        let store = self.store.clone();
        match effect {
            images::Effect::Begin {
                image,
                layout,
                manifest,
                names,
            } => {
                let blobs = self.mirror.blobs().cloned();
                let home = self.config.tart_home.clone();
                self.spawn_long(Long::Read, move || {
                    let room = tasks::Room::new(&store, blobs.as_deref(), &home);
                    let result = room.begin(&layout, &manifest, &names);
                    Input::Begun { image, result }
                });
            }
            images::Effect::Record { image, names } => {
                self.spawn_blocking(move || tasks::record(&store, image, &names));
            }
            images::Effect::Install {
                image,
                stage,
                names,
            } => self
                .jobs
                .spawn_long(Long::Install, move || tasks::install(image, stage, &names)),
            images::Effect::Abandon(image) => {
                self.spawn_blocking(move || tasks::abandon(&store, image));
            }
            images::Effect::ReadAgain { image, stage } => {
                self.spawn_long(Long::Read, move || tasks::read_again(image, stage));
            }
            images::Effect::TakeUp {
                image,
                layout,
                stage,
                local_bytes,
            } => self.take_up(image, &layout, &stage, local_bytes),
            images::Effect::Withdraw { image, layout } => self.withdraw(image, &layout),
            images::Effect::Entitle { image, entitled } => self.store.entitle(image, entitled),
            images::Effect::Retell { image, layout } => {
                self.retell(&layout);
                self.spawn_blocking(move || tasks::keep_entitled(&store, image));
            }
            images::Effect::Renew { image, access } => self.fetches.renew(&image, &access),
            images::Effect::Present {
                staged_in,
                installed_in,
            } => {
                let seconds = installed_in.as_secs_f64();
                self.metrics.install_seconds.observe(seconds);
                self.observe_staging("present", staged_in);
            }
            images::Effect::Failed { after } => self.observe_staging("failed", after),
            images::Effect::ReportSoon => self.reporting.soon(),
            images::Effect::ReportNow => self.reporting.at_once(),
            images::Effect::ReportAll => self.reporting.in_full(),
        }
    }

    fn observe_staging(&self, outcome: &'static str, time: Duration) {
        self.metrics
            .stage_seconds
            .get_or_create(&OutcomeLabel { outcome })
            .observe(time.as_secs_f64());
    }

    /// Takes over what the store knows from before.
    fn recover(&mut self) {
        for found in self.store.recovered() {
            let image = *found.layout.digest();
            info!(%image, references = ?found.references, present = found.present, "found an image of this host");
            let contradicts = self.contents.contradiction(&found.layout);
            let references = match found.references.is_empty() {
                true => found.stage.references(),
                false => found.references.clone(),
            };
            let left = Left {
                layout: found.layout.into(),
                manifest: found.manifest.into(),
                wanted: found.references,
                references,
                entitled: found.stage.entitled(),
                stage: found.stage,
            };
            self.images.recovered(self.now(), left, contradicts);
            self.follow_images();
        }
    }

    fn begun(&mut self, image: Digest, result: Result<(Arc<Stage>, u64), Trouble>) {
        let layout = self.images.layout(&image);
        let contradicts = layout.and_then(|layout| self.contents.contradiction(layout));
        self.images.begun(self.now(), image, result, contradicts);
    }

    /// Makes what a stage holds and lacks known to the swarm.
    fn take_up(&mut self, image: Digest, layout: &Layout, stage: &Arc<Stage>, local_bytes: u64) {
        self.count_source(From::Local, local_bytes);
        let mut known = Vec::new();
        for (order, spec) in (0u32..).zip(&layout.contents()) {
            self.yield_to_image(&spec.digest);
            let (held, closed) = (stage.held(spec.digest), stage.is_closed(spec.digest));
            let shelf = (image, Shelf::Stage(stage.clone()));
            let (id, new) = self.contents.add(spec, shelf, held, closed);
            known.push((id, new, order));
        }
        for (id, new, order) in known {
            if new {
                self.introduce(id, order);
            }
            self.walk_if_whole(id);
        }
        // who may have what it shares with other images
        self.retell(layout);
        for (content, image) in self.leases.take_early() {
            self.leased(content, image);
        }
    }

    /// Takes the image's contents out of the swarm; what is on disk stays.
    fn withdraw(&mut self, image: Digest, layout: &Layout) {
        for (id, content) in self.contents.remove_image(&image) {
            self.fetches.stop(id);
            // told with the image's new state, in the next report: who gives a lease back while it stages is thought to
            // hold the content
            self.close_lease(id, content, End::plain(LeaseEnd::Released));
            self.tell(Event::Dropped(id));
        }
        // what other images have of it is for their hosts alone
        self.retell(layout);
    }

    /// Names were linked. Where goldens are made, that is next.
    fn installed(
        &mut self,
        image: Digest,
        stage: Arc<Stage>,
        placed: Vec<String>,
        installed: Result<(), InstallError>,
    ) {
        match self.goldens.clone().filter(|_| !placed.is_empty()) {
            Some(goldens) => {
                self.spawn(tasks::make_goldens(
                    goldens, image, stage, placed, installed,
                ));
            }
            None => self
                .images
                .linked(self.now(), image, &stage, installed, Ok(())),
        }
    }

    fn golden_made(
        &mut self,
        image: Digest,
        stage: &Arc<Stage>,
        installed: Result<(), InstallError>,
        made: Result<(), String>,
    ) {
        self.images.goldens_made(image, made.is_ok());
        let made = made.map_err(|message| Trouble {
            reason: Reason::GoldenFailed,
            message,
        });
        self.images
            .linked(self.now(), image, stage, installed, made);
    }

    /// The files of these images can't be written. They leave the swarm before anything else is made of what was written.
    fn unwritable(&mut self, images: Vec<Unwritable>) {
        for (image, error) in images {
            self.images.unwritable(self.now(), image, error);
        }
        self.follow_images();
    }

    /// What the store found on the disk by itself.
    fn hear_store(&mut self) {
        let mut rotted: BTreeMap<(Digest, Digest), Vec<ChunkIndex>> = BTreeMap::new();
        for news in self.store.take_news() {
            match news {
                store::News::Rotted {
                    image,
                    content,
                    chunk,
                } => rotted.entry((image, content)).or_default().push(chunk),
                store::News::Doubted { image } => self.images.doubted(self.now(), image),
                store::News::Removed { image } => self.images.removed(self.now(), image),
            }
            self.follow_images();
        }
        for ((image, content), chunks) in rotted {
            let effects = self.contents.rotted(image, content, &chunks);
            self.follow_contents(effects);
        }
    }

    /// A look at the disk ended.
    fn looked(&mut self, seen: &Seen, load_percent: Option<u32>) {
        if let Some(back) = self.upkeep.weigh(load_percent) {
            info!(
                load_percent,
                stepped_back = back,
                "the host's load decides how much it moves for others"
            );
            self.tell(Event::StepBack(back));
        }
        self.upkeep.looked();
        self.see(seen);
        self.keep_cache();
        self.scrub();
    }

    fn see(&mut self, seen: &Seen) {
        let began = seen.began.saturating_duration_since(self.epoch);
        let began = Moment::START + began;
        self.images
            .looked(self.now(), &seen.look, &seen.there, began);
        self.follow_images();
    }

    // ---- reading again --------------------------------------------------------------------------------------------------

    /// Reads a few verified chunks again, while nothing is being staged: disks forget. Nothing rests on it: what is served,
    /// copied or installed was compared before.
    fn scrub(&mut self) {
        if self.images.is_staging() {
            return;
        }
        let contents = &self.contents;
        let from = |at| {
            let content = contents.closed_from(at)?;
            Some((content.id(), content.geometry().chunks()))
        };
        let Some(scrub) = self.upkeep.begin_scrub(from) else {
            return;
        };
        let Some(content) = contents.find(scrub.content) else {
            return self.upkeep.scrubbed();
        };
        let (digest, shelves) = (content.digest(), content.shelves());
        self.spawn_blocking(move || tasks::scrub(digest, &shelves, scrub.chunks, scrub.last));
    }

    /// A peer says that a chunk which it had from us doesn't fit its link: its own memory may be broken, or our disk.
    fn look_at(&mut self, digest: &Digest, chunk: ChunkIndex) {
        let Some(content) = self.contents.by_digest(digest) else {
            return;
        };
        if !content.geometry().contains(chunk) || !self.upkeep.suspect(*digest, chunk) {
            return;
        }
        let (digest, shelves) = (*digest, content.shelves());
        warn!(content = %digest, %chunk, "looking at a chunk for which a peer blames this host");
        // what was packed before may be what is wrong
        self.cache.forget(digest, chunk);
        self.spawn_blocking(move || tasks::look_at(digest, &shelves, chunk));
    }

    fn looked_at(&mut self, digest: Digest, chunk: ChunkIndex, rotten: bool) {
        self.upkeep.cleared(digest, chunk);
        if !rotten {
            info!(content = %digest, %chunk, "a chunk for which a peer blamed this host is what its link says");
            return;
        }
        let content = self.contents.by_digest(&digest);
        if content.is_some_and(Content::is_mirrored) {
            // a rotten blob of the mirror is dropped as a whole
            self.keep_cache();
        }
    }

    /// Stops taking work, seals the journals, leaves.
    async fn stop(mut self) -> anyhow::Result<()> {
        info!("stopping");
        self.endpoint.close("agent stops");
        self.fetches.stop_all();
        self.jobs.abort_all();
        self.store.stop();
        let (store, blobs) = (self.store.clone(), self.mirror.blobs().cloned());
        tokio::task::spawn_blocking(move || {
            let images = store.flush();
            blobs.map_or(Ok(()), |blobs| blobs.flush()).and(images)
        })
        .await??;
        Ok(())
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Dial(peer) => {
                let effect = self.hosts.dial(peer);
                self.follow_hosts([effect]);
            }
            Action::HangUp(peer) => {
                let effects = self.hosts.hang_up(peer);
                self.follow_hosts(effects);
            }
            Action::Request { peer, id, chunk } => self.request(Transfer { peer, id, chunk }),
            Action::Cancel { peer, id, chunk } => {
                self.transfers.cancel(&Transfer { peer, id, chunk });
            }
            Action::Push {
                peer,
                id,
                chunk,
                spread,
            } => self.push(Transfer { peer, id, chunk }, spread),
            Action::Accept(ticket) => self.accept(ticket),
            Action::Decline(ticket, why) => {
                if let Some((_, offer)) = self.transfers.take_offer(ticket) {
                    self.spawn(streams::decline(offer.sender, offer.receiver, why));
                }
            }
            Action::Serve(ticket) => self.serve(ticket),
            Action::Refuse(ticket, why) => {
                if let Some((_, sender)) = self.transfers.take_request(ticket) {
                    self.spawn(streams::refuse(sender, why));
                }
            }
            Action::Announce {
                peer,
                id,
                chunks,
                reset,
            } => {
                if let Some(content) = self.contents.find(id) {
                    let content = content.digest();
                    self.hosts.announce(peer, content, chunks, reset);
                }
            }
            Action::AnnounceLoad {
                peer,
                backlog_bytes,
                upload_bytes_per_second,
            } => {
                self.hosts
                    .announce_load(peer, backlog_bytes, upload_bytes_per_second);
            }
            Action::Fetch { id, until } => self.fetch(id, until),
            Action::StopFetch(id) => {
                if self.fetches.stop(id) {
                    self.retract_doubted(id);
                }
            }
            Action::ReleaseLease(id) => self.release_lease(id),
            Action::Report { peer, strikes } => {
                if let Some(host) = self.hosts.id(peer).cloned() {
                    warn!(peer = %host, strikes, "peer is quarantined");
                    self.blame(&host, None, ChunkIndex(0), BlameKind::Silence);
                }
            }
        }
    }

    fn spawn(&mut self, job: impl Future<Output = Input> + Send + 'static) {
        self.jobs.spawn(job);
    }

    fn spawn_blocking(&mut self, job: impl FnOnce() -> Input + Send + 'static) {
        self.jobs.spawn_blocking(job);
    }

    /// For what may take minutes.
    fn spawn_long(&mut self, what: Long, job: impl FnOnce() -> Input + Send + 'static) {
        self.jobs.spawn_long(what, job);
    }

    // ---- hosts ----------------------------------------------------------------------------------------------------

    fn follow_hosts(&mut self, effects: impl IntoIterator<Item = hosts::Effect>) {
        for effect in effects {
            match effect {
                hosts::Effect::Tell(event) => self.tell(event),
                hosts::Effect::Dial {
                    peer,
                    host,
                    address,
                } => {
                    self.spawn(streams::dial(self.endpoint.clone(), peer, host, address));
                }
                hosts::Effect::Listen {
                    peer,
                    serial,
                    connection,
                } => {
                    let inbox = self.peer_inbox.clone();
                    self.spawn(streams::listen(peer, serial, connection, inbox));
                }
                hosts::Effect::Announce {
                    connection,
                    updates,
                } => self.spawn(streams::announce(connection, self.life, updates)),
                hosts::Effect::Close {
                    connection,
                    code,
                    reason,
                } => connection.close(code, reason),
                hosts::Effect::Cancel(peer) => self.transfers.cancel_peer(peer),
                hosts::Effect::Blame(host) => {
                    self.blame(&host, None, ChunkIndex(0), BlameKind::Protocol);
                }
            }
        }
    }

    fn brought(&mut self, peer: HostKey, brought: Brought) {
        match brought {
            Brought::Request { request, sender } => {
                match self.contents.locate(&request.content, request.index) {
                    Some((id, chunk)) => {
                        let transfer = Transfer { peer, id, chunk };
                        let event = self.transfers.requested(transfer, sender);
                        self.tell(event);
                    }
                    None => self.spawn(streams::refuse(sender, Declined::Missing)),
                }
            }
            Brought::Push {
                push,
                sender,
                receiver,
            } => match (self.contents.locate(&push.content, push.index), push.header) {
                (Some((id, chunk)), Some(header)) => {
                    let transfer = Transfer { peer, id, chunk };
                    let offer = Offer {
                        header: Box::new(header),
                        sender,
                        receiver,
                    };
                    let spread = push.spread.map(streams::spread);
                    let event = self.transfers.offered(transfer, spread, offer);
                    self.tell(event);
                }
                _ => self.spawn(streams::decline(sender, receiver, Declined::Unwanted)),
            },
            Brought::Introduced { serial, life } => {
                let effects = self.hosts.introduced(peer, serial, life);
                self.follow_hosts(effects);
            }
            Brought::Update(update) => {
                let known = |content: &Digest, runs: &[u32]| self.contents.announced(content, runs);
                let effects = self.hosts.updated(peer, update, known);
                self.follow_hosts(effects);
            }
            Brought::Nonsense(error) => {
                let effects = self.hosts.nonsense(peer, &error);
                self.follow_hosts(effects);
            }
        }
    }

    // ---- transfers ------------------------------------------------------------------------------------------------

    fn subject(&self, id: ContentId, chunk: ChunkIndex) -> Option<Subject> {
        let content = self.contents.find(id)?;
        let dropped_lately = content.dropped_lately(Instant::now());
        Some(Subject {
            content: content.digest(),
            geometry: content.geometry(),
            chunk,
            shelves: content.shelves(),
            cache: self.cache.clone(),
            notary: self.notary.clone(),
            retracted: dropped_lately.then(|| self.me.key()),
            suspects: content.suspects(),
        })
    }

    fn request(&mut self, transfer: Transfer) {
        let subject = self.subject(transfer.id, transfer.chunk);
        match (self.hosts.connection(transfer.peer), subject) {
            (Some(connection), Some(subject)) => {
                let receiving = self.transfers.receive(transfer);
                self.spawn(streams::request(transfer, receiving, connection, subject));
            }
            _ => self.tell(transfer.broken()),
        }
    }

    fn accept(&mut self, ticket: Ticket) {
        let Some((transfer, offer)) = self.transfers.take_offer(ticket) else {
            return;
        };
        match self.subject(transfer.id, transfer.chunk) {
            Some(subject) => {
                let receiving = self.transfers.receive(transfer);
                self.spawn(streams::accept(transfer, receiving, offer, subject));
            }
            None => self.tell(transfer.broken()),
        }
    }

    fn push(&mut self, transfer: Transfer, spread: Option<Spread>) {
        let subject = self.subject(transfer.id, transfer.chunk);
        match (self.hosts.connection(transfer.peer), subject) {
            (Some(connection), Some(subject)) => {
                self.spawn(streams::push(transfer, connection, subject, spread));
            }
            _ => self.tell(transfer.not_sent(None)),
        }
    }

    fn serve(&mut self, ticket: Ticket) {
        let Some((transfer, sender)) = self.transfers.take_request(ticket) else {
            return;
        };
        match self.subject(transfer.id, transfer.chunk) {
            Some(subject) => self.spawn(streams::serve(transfer, ticket, sender, subject)),
            None => self.tell(transfer.not_sent(Some(ticket))),
        }
    }

    fn sent(&mut self, transfer: Transfer, ticket: Option<Ticket>, shipment: Shipment) {
        let Shipment {
            delivery,
            wire_bytes,
        } = shipment;
        let Transfer { peer, id, chunk } = transfer;
        self.metrics.sent_bytes.inc_by(wire_bytes);
        if let Some(content) = self.contents.find(id) {
            self.images.uploaded(&content.images(), wire_bytes);
        }
        if delivery == Delivery::Bad
            && let Some(content) = self.contents.find(id)
        {
            let digest = content.digest();
            self.look_at(&digest, chunk);
        }
        self.tell(Event::Sent {
            peer,
            id,
            chunk,
            ticket,
            delivery,
            wire_bytes,
        });
    }

    fn received(&mut self, transfer: Transfer, number: u64, mut receipt: Receipt) {
        if !self.transfers.received(&transfer, number) && receipt.is_lost() {
            // it went over a connection that is gone, and is asked for again over the next
            return;
        }
        self.count_source(From::Peers, receipt.wire_bytes);
        if let Some(content) = self.contents.find(transfer.id) {
            let images = content.images();
            self.images.came_from_peers(&images, receipt.wire_bytes);
        }
        self.unwritable(std::mem::take(&mut receipt.unwritable));
        let effects = match receipt.result {
            Ok(()) => self.contents.arrived(transfer, receipt.wire_bytes),
            Err(failure) => self.contents.not_arrived(transfer, failure, receipt),
        };
        self.follow_contents(effects);
    }

    fn count_source(&self, source: From, bytes: u64) {
        let received = &self.metrics.received_bytes;
        received
            .get_or_create(&SourceLabel { source })
            .inc_by(bytes);
    }

    // ---- contents -------------------------------------------------------------------------------------------------

    fn follow_contents(&mut self, effects: impl IntoIterator<Item = contents::Effect>) {
        for effect in effects {
            match effect {
                contents::Effect::Tell(event) => self.tell(event),
                contents::Effect::Recall {
                    id,
                    content,
                    chunks,
                } => {
                    let effects = self.hosts.recall(id, &content, chunks);
                    self.follow_hosts(effects);
                }
                contents::Effect::Walk {
                    id,
                    content,
                    chunks,
                    shelves,
                } => self.spawn_blocking(move || Input::Walked {
                    id,
                    walked: walk::walk(&shelves, content, chunks),
                }),
                contents::Effect::Retract {
                    id,
                    content,
                    shelves,
                } => {
                    let (me, from) = (self.me.key(), ChunkIndex(0));
                    self.spawn_blocking(move || Input::Retracted {
                        id,
                        from,
                        result: retract(&shelves, content, me, from),
                    });
                }
                contents::Effect::Drop {
                    from,
                    content,
                    shelves,
                } => {
                    // what its maker is sending was made before that
                    self.transfers.cancel_from(from);
                    self.spawn_blocking(move || Input::Dropped {
                        id: from.id,
                        result: retract(&shelves, content, from.peer, from.chunk),
                    });
                }
                contents::Effect::Gained { images, bytes } => {
                    self.upkeep.chunk_stored();
                    self.images.gained(&images, bytes);
                }
                contents::Effect::Lost { images, bytes } => self.images.lost(&images, bytes),
                contents::Effect::CameFromOrigin { images, bytes } => {
                    self.images.came_from_origin(&images, bytes);
                }
                contents::Effect::ClearOriginTrouble(images) => self.images.origin_is_well(&images),
                contents::Effect::Closed { image, content } => {
                    self.copy_from_image(&content);
                    self.images.content_closed(self.now(), image, &content);
                }
                contents::Effect::Opened { image, content } => {
                    self.images.content_opened(self.now(), image, content);
                }
                contents::Effect::NotStored { mirrored, error } => match mirrored {
                    true => self.mirror_storage_failed(&error),
                    false => self.images.storage_failed(self.now(), &error),
                },
                contents::Effect::CountFalse { source, chunks } => {
                    let failures = &self.metrics.verify_failures;
                    failures
                        .get_or_create(&SourceLabel { source })
                        .inc_by(u64::try_from(chunks).unwrap_or(u64::MAX));
                }
                contents::Effect::Convict(links) => self.reporting.show(&links),
                contents::Effect::BlameBytes(Transfer { peer, id, chunk }) => {
                    if let Some(host) = self.hosts.id(peer).cloned() {
                        warn!(peer = %host, chunk = chunk.0, "peer sent a chunk that doesn't fit its link");
                        self.blame(&host, Some(id), chunk, BlameKind::Bytes);
                    }
                }
                contents::Effect::TakeBack { content, from } => {
                    self.reporting.taken_back(content, from);
                }
                contents::Effect::Report => self.reporting.soon(),
            }
        }
        self.follow_images();
    }

    /// Makes a content known to the swarm.
    fn introduce(&mut self, id: ContentId, order: u32) {
        let images = &self.images;
        let of_image = |image: &Digest| images.entitled(image);
        let effects = self.contents.introduce(id, order, of_image);
        self.follow_contents(effects);
        if let Some(digest) = self.contents.find(id).map(Content::digest) {
            self.tell_wanted(&digest, false);
        }
    }

    /// Tells the swarm anew of an image's contents: who may have them may have changed.
    fn retell(&mut self, layout: &Layout) {
        for spec in layout.contents() {
            let content = self.contents.by_digest(&spec.digest);
            if let Some((id, order)) = content.map(|content| (content.id(), content.order())) {
                self.introduce(id, order);
            }
        }
    }

    fn walk_if_whole(&mut self, id: ContentId) {
        let effect = self.contents.walk_if_whole(id);
        self.follow_contents(effect);
    }

    fn walked(&mut self, id: ContentId, mut walked: Walked) {
        self.unwritable(std::mem::take(&mut walked.unwritable));
        let effects = self.contents.walked(id, walked);
        self.follow_contents(effects);
    }

    fn drop_made(&mut self, content: &Digest, maker: HostKey, from: ChunkIndex) {
        let effect = self.contents.drop_made(content, maker, from);
        self.follow_contents(effect);
    }

    fn retract_doubted(&mut self, id: ContentId) {
        let effect = self.contents.retract_doubted(id);
        self.follow_contents(effect);
    }

    // ---- the registry ---------------------------------------------------------------------------------------------

    fn fetch(&mut self, id: ContentId, until: ChunkIndex) {
        if self.fetches.go_on(id, until) {
            return;
        }
        let Some(content) = self.contents.find(id) else {
            return;
        };
        let source = self.images.source(self.leases.image(id), &content.images());
        let (by, asked) = match source {
            Some(Source {
                image,
                reference,
                access,
            }) => (Some(image), Some((reference, access))),
            None => (None, self.mirror.access(&content.digest())),
        };
        let Some((reference, access)) = asked else {
            return;
        };
        let reins = self.fetches.begin(id, by, access, until);
        let mut job = fetch::Job {
            id,
            content: content.digest(),
            geometry: content.geometry(),
            kind: content.kind(),
            shelves: content.shelves(),
            reference,
            access: reins.access,
            doubted: false,
            me: self.me.clone(),
            notary: Some(self.notary.clone()),
            cache: self.cache.clone(),
            until: reins.until,
            moved: reins.moved,
            inbox: self.fetch_inbox.clone(),
        };
        let registry = job.reference.split_once('/').map(|(registry, _)| registry);
        for shelf in &job.shelves {
            if let Shelf::Blob(blob) = shelf {
                blob.comes_from(registry);
            }
        }
        if !self.leases.holds(id) && self.mirror.alone_after(&job.content).is_some() {
            info!(content = %job.content, "nothing comes of a blob that a client wants; fetching it without a lease");
        }
        info!(content = %job.content, image = job.reference, "fetching from the registry");
        let (origin, number, token) = (self.origin.clone(), reins.number, reins.token);
        self.spawn(async move {
            tokio::select! {
                biased;
                () = token.cancelled() => Input::Nothing,
                end = fetch::run(&origin, &mut job) => Input::FetchEnded { id, number, end },
            }
        });
    }

    fn fetch_news(&mut self, id: ContentId, news: News) {
        match news {
            News::Chunk {
                chunk,
                origin_bytes,
                conflict,
            } => {
                self.count_source(From::Origin, origin_bytes);
                self.leases.chunk_came(id);
                let effects = self.contents.fetched(id, chunk, origin_bytes, conflict);
                self.follow_contents(effects);
            }
            News::Refused { error } => {
                // told at once: the coordinator fetches another token
                if self.leases.refused(id, error) {
                    self.reporting.at_once();
                }
            }
            News::Broke { after_bytes, error } => {
                // no trouble, but worth a word where it is the rule
                debug!(
                    id = id.0,
                    after_bytes, error, "a connection to the registry broke; going on"
                );
                self.leases.broke(id, after_bytes);
            }
            News::Trouble {
                error,
                retry_after,
                wait,
            } => self.fetch_trouble(id, error, retry_after, wait),
            News::Doubted => {
                let effects = self.contents.fetch_doubted(id);
                self.follow_contents(effects);
                // the fetch's end was heard before this
                if !self.fetches.is_running(id) {
                    self.retract_doubted(id);
                }
            }
            News::Retracted { from, chunks } => {
                let now = Instant::now();
                let effects = self.contents.retracted(now, id, from, Ok(chunks));
                self.follow_contents(effects);
            }
            News::Unwritable(images) => self.unwritable(images),
        }
    }

    fn fetch_trouble(
        &mut self,
        id: ContentId,
        error: String,
        retry_after: Option<Duration>,
        wait: Duration,
    ) {
        // a fetch that was stopped a moment ago has nothing to say any more
        if !self.fetches.is_running(id) {
            return;
        }
        let Some(content) = self.contents.find(id) else {
            return;
        };
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        warn!(content = %content.digest(), error, wait_ms, "fetching from the registry has trouble; trying again");
        let message = format!("{error} (next attempt in {wait_ms} ms)");
        let images = content.images();
        let reason = Reason::OriginTrouble;
        let trouble = Trouble { reason, message };
        self.images.origin_troubles(&images, &trouble);
        let retry_at = retry_after.map(|pause| Instant::now() + pause);
        self.leases.failed(id, error, retry_at);
        // at once: as long as the coordinator doesn't know, it sends others to a registry that wants to be left alone
        self.reporting.at_once();
    }

    fn fetch_ended(&mut self, id: ContentId, number: u64, end: FetchEnd) {
        let asked = self.fetches.image(id);
        if !self.fetches.ended(id, number) {
            // it was stopped, and that was told
            return;
        }
        match &end {
            FetchEnd::Done => self.contents.fetch_done(id),
            FetchEnd::Bad(_) => self.contents.fetch_bad(id),
            FetchEnd::Failed(_) | FetchEnd::Disk(_) | FetchEnd::Unwanted => {}
        }
        self.retract_doubted(id);
        let told = match fetches::told(&end) {
            Ok(told) => told,
            // this host's own trouble: the lease passes on without a word about the registry
            Err(error) => {
                let mut effects = Vec::new();
                self.contents.not_stored(id, error, &mut effects);
                return self.follow_contents(effects);
            }
        };
        let Told {
            swarm,
            lease,
            reason,
        } = told;
        if let (Some(content), Some(reason)) = (self.contents.find(id), reason) {
            error!(content = %content.digest(), reason = reason.as_str(), error = lease.message, "fetching from the registry failed");
            // what one image's repository refuses says nothing of the others
            let images = match asked {
                Some(image) if matches!(end, FetchEnd::Failed(_)) => vec![image],
                _ => content.images(),
            };
            let message = lease.message.clone();
            let trouble = Trouble { reason, message };
            self.images.origin_troubles(&images, &trouble);
        }
        self.tell(Event::OriginEnded { id, end: swarm });
        self.end_lease(id, lease);
        self.mirror_fetch_ended(id, end);
    }

    // ---- leases ---------------------------------------------------------------------------------------------------

    /// The coordinator leased this host a content, to be fetched under this image's name.
    fn leased(&mut self, digest: Digest, image: Option<Digest>) {
        match self.contents.by_digest(&digest).map(Content::id) {
            Some(id) => {
                self.leases.grant(id, image);
                self.tell(Event::Leased(id));
            }
            // the stage isn't ready yet; the lease runs meanwhile
            None => self.leases.grant_early(digest, image),
        }
    }

    fn lease_lost(&mut self, digest: &Digest) {
        self.notary.forget_lease(digest);
        self.leases.lose_early(digest);
        let Some(content) = self.contents.by_digest(digest) else {
            return;
        };
        let (id, images) = (content.id(), content.images());
        self.leases.lose(id);
        self.images.origin_is_well(&images);
        self.reporting.soon();
        self.tell(Event::LeaseLost(id));
    }

    /// Ends a lease and says so at once.
    fn end_lease(&mut self, id: ContentId, how: End) {
        if !self.leases.holds(id) {
            return;
        }
        if let Some(content) = self.contents.find(id).map(Content::digest) {
            self.close_lease(id, content, how);
        }
        self.reporting.at_once();
    }

    /// Ends a lease, which the next report says.
    fn close_lease(&mut self, id: ContentId, content: Digest, how: End) {
        if self.leases.end(id, content, how) {
            self.notary.forget_lease(&content);
        }
    }

    fn release_lease(&mut self, id: ContentId) {
        let content = self.contents.find(id);
        let end = match content.is_some_and(|content| content.held().is_full()) {
            true => LeaseEnd::Done,
            false => LeaseEnd::Released,
        };
        self.end_lease(id, End::plain(end));
    }

    /// A lease that can't be used: nobody would take what was made of it.
    fn give_lease_back(&mut self, content: Digest, error: &str) {
        warn!(%content, error, "a lease is given back");
        self.leases.give_back(content, error);
        self.reporting.soon();
    }

    fn address(&self) -> Option<SocketAddr> {
        self.config.advertise
    }
}
