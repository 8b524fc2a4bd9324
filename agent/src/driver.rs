//! The driver: the only owner of the agent's state. It makes an [`Input`] of whatever happens next, changes state in a
//! synchronous [`Driver::apply`], and turns the swarm's actions into jobs.
//!
//! The swarm decides which chunk to ask of which peer. The chain of links says whether a chunk is true. The store says
//! where a chunk lies. The driver only passes on what one part has to tell another. Each job ends in an [`Input`] too;
//! a job that panics ends the program.

mod blob_cache;
mod contents;
mod exchange;
mod fetches;
mod fit;
mod gauges;
mod hosts;
mod image;
mod image_news;
mod image_state;
mod images;
mod input;
mod jobs;
mod leases;
mod look;
mod mirror;
mod orders;
mod origins;
mod report;
mod streams;
mod tasks;
mod transfers;
mod trouble;
mod upkeep;
mod walk;
mod wants;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use proto::{
    ChunkIndex, Digest, HostId, Moment, Reason,
    image::Layout,
    message::{Hello, Report},
};
use swarm::{Event, Swarm, event::ContentId};
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        watch,
    },
    task::JoinSet,
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use wire::{Authorised, Endpoint};

use self::{
    contents::Content,
    exchange::Exchange,
    image_news::ImageNews,
    images::{Images, Left},
    jobs::{Jobs, Long},
    look::Seen,
    mirror::Mirror,
    orders::{Order, ReadOrderError},
    report::{Facts, Known, Reporting},
    streams::Streams,
    trouble::Trouble,
    upkeep::{Chore, Needs, Upkeep},
};
pub(crate) use self::{input::Input, jobs::BLOCKING_THREADS};
use crate::{
    admin::Snapshot,
    config::Config,
    metrics::{Metrics, OutcomeLabel},
    mirror::{Ears, Wish},
    notary::Notary,
    registries::Origin,
    session::Heard,
    store::{self, InstallError, Stage, Store, Volume},
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

pub(crate) struct Driver {
    config: Config,
    me: HostId,
    endpoint: Endpoint,
    store: Arc<Store>,
    notary: Arc<Notary>,
    goldens: Option<Arc<crate::golden::Goldens>>,
    metrics: Metrics,
    coordinator: HostId,
    hello: watch::Sender<Hello>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    epoch: Instant,
    exchange: Exchange,
    images: Images,
    mirror: Mirror,
    session: Option<mpsc::Sender<Report>>,
    reporting: Reporting,
    upkeep: Upkeep,
    jobs: Jobs,
}

/// Runs the agent until `stop` is cancelled or something essential ends.
pub(crate) async fn run(parts: Parts) -> anyhow::Result<()> {
    let (peer_inbox, mut brought) = mpsc::channel(QUEUE);
    let (fetch_inbox, mut fetched) = mpsc::channel(QUEUE);
    let (mut heard, stop) = (parts.heard, parts.stop);
    let mirror = Mirror::new(parts.mirror.as_ref());
    let mut wishes = parts.mirror.map(|ears| ears.wishes);
    let now = Instant::now();
    let store = parts.store.clone();
    let volume = tokio::task::spawn_blocking(move || store.volume()).await?;
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
        peer_inbox,
        fetch_inbox,
    };
    let swarm = Swarm::new(parts.me.key(), swarm_config, seed);
    let step_back = parts.config.step_back_load_percent;
    let mut driver = Driver {
        exchange: Exchange::new(swarm, now, streams, parts.metrics.clone()),
        config: parts.config,
        me: parts.me,
        endpoint: parts.endpoint.clone(),
        store: parts.store,
        notary: parts.notary,
        goldens: parts.tart,
        metrics: parts.metrics,
        coordinator: parts.coordinator,
        hello: parts.hello,
        snapshot: parts.snapshot,
        epoch: now,
        images: Images::default(),
        mirror,
        session: None,
        reporting: Reporting::new(now),
        upkeep: Upkeep::new(now, volume, step_back),
        jobs: Jobs::new(),
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

impl Driver {
    fn now(&self) -> Moment {
        Moment(u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// The latest moment at which the driver has something to do next.
    fn next_wake(&self) -> Instant {
        let images = self.images.next_due();
        let images = images.map(|at| self.epoch + at.since(Moment::START));
        let moments = [
            self.exchange.next_timeout(),
            images,
            self.upkeep.next_due(self.needs()),
            self.reporting.next_due(),
            self.mirror.next_look(),
        ];
        let soonest = moments.into_iter().flatten().min();
        soonest.unwrap_or_else(|| Instant::now() + upkeep::LOOK_EVERY)
    }

    fn needs(&self) -> Needs {
        Needs {
            filling: self.images.is_filling(),
            look: self.images.look_due(),
        }
    }

    fn tell(&mut self, event: Event) {
        self.exchange.tell(event);
    }

    /// Carries out the swarm's actions, and the chores that are due.
    fn turn(&mut self) {
        let now = Instant::now();
        self.exchange.set_now(now);
        if self.mirror.next_look().is_some_and(|look| now >= look) {
            let effects = self.mirror.look(now, self.exchange.contents());
            self.act_for_mirror(effects);
        }
        self.follow_exchange();
        self.images.begin_jobs(self.now());
        self.follow_images();
        // the swarm may ask peers at once for what images need
        self.follow_exchange();
        self.exchange.flush_updates();
        for chore in self.upkeep.begin_due(now, self.needs()) {
            self.attend(chore);
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
        self.exchange.set_now(Instant::now());
        // findings of a job on the disk come before the job's end
        self.hear_store();
        match input {
            Input::Connected { peer, result } => self.exchange.connected(peer, result),
            Input::ConnectionEnded {
                peer,
                serial,
                reason,
            } => self.exchange.connection_ended(peer, serial, &reason),
            Input::Brought { peer, brought } => self.exchange.brought(peer, brought),
            Input::Heard(heard) => self.heard(heard),
            Input::Received {
                transfer,
                number,
                receipt,
            } => self.exchange.received(transfer, number, receipt),
            Input::Sent {
                transfer,
                ticket,
                shipment,
            } => self.exchange.sent(transfer, ticket, shipment),
            Input::Fetch { id, news } => self.exchange.fetch_news(id, news),
            Input::Retracted { id, from, result } => self.exchange.retracted(id, from, result),
            Input::Dropped { id, result } => self.exchange.dropped(id, result),
            Input::FetchEnded { id, number, end } => self.exchange.fetch_ended(id, number, end),
            Input::Begun { image, result } => self.begun(image, result),
            Input::Walked { id, walked } => self.exchange.walked(id, walked),
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
                    self.blobs_not_stored(&error);
                }
            }
            Input::Wished(wish) => {
                let contents = self.exchange.contents();
                let effects = self.mirror.wish(Instant::now(), contents, wish);
                self.act_for_mirror(effects);
            }
            Input::Seeds(seeds) => {
                let effects = self.mirror.seeds(self.exchange.contents(), seeds);
                self.act_for_mirror(effects);
            }
            Input::Copied(digest) => self.mirror.copied(&digest),
            Input::BlobsScrubbed { next, bad } => {
                let contents = self.exchange.contents();
                let effects = self.mirror.scrubbed(contents, next, bad);
                self.act_for_mirror(effects);
            }
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
        // the first look comes before anything else, so that the first report already says which images are here
        self.images.look_begins();
        let seen = Seen::look(&self.store, self.goldens.as_deref());
        // the findings come before what follows from them
        self.hear_store();
        self.see(&seen);
        let recovered = self.mirror.recover();
        self.act_for_mirror(recovered);
        self.reporting.in_full();
    }

    // ---- reports ----------------------------------------------------------------------------------------------------

    /// Reports the state of everything to the coordinator, the status page and the metrics.
    fn make_report(&mut self) {
        let now = Instant::now();
        let status = self.exchange.status();
        let contents = self.exchange.contents();
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
            roster_epoch: Some(self.exchange.hosts().epoch()),
            link_key: self.notary.key().to_vec(),
        });
        gauges::show(&self.metrics, &status, &self.images.count_states());
        let leases = self.exchange.lease_states(&status);
        let contents = self.exchange.contents();
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
            wants: self.mirror.report(self.reporting.is_full()),
            names_confirmed: self.images.names_confirmed(),
        };
        let (report, ends) = self.reporting.make(now, facts);
        self.exchange.lease_states_unsent(ends);
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
            self.exchange.lease_states_unsent(ends);
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

    fn measured(&mut self, volume: Volume) {
        gauges::show_volume(&self.metrics, volume);
        if let Some(trouble) = self.upkeep.measured(volume) {
            self.images.stop_filling(self.now(), &trouble);
        }
    }

    // ---- the coordinator --------------------------------------------------------------------------------------------

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
                // the next session begins with the state after all orders of this one
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
                self.exchange
                    .roster(roster.epoch, &roster.hosts, &roster.neighbours);
                self.roster();
            }
            Order::RosterChange(change) => {
                if self.exchange.change_roster(&change) {
                    self.roster();
                } else {
                    debug!(epoch = change.epoch, "change of a roster that isn't here");
                    self.reporting.want_roster();
                }
            }
            Order::Neighbours(hosts) => self.exchange.follow(hosts),
            Order::Stage(order) => self.images.order(now, order),
            Order::Pause(image) => self.images.pause(image),
            Order::Cancel(image) => self.images.cancel(now, image),
            Order::Names(names) => self.images.order_names(now, &names),
            Order::Lease {
                content,
                image,
                ticket,
            } => match self.notary.lease(content, ticket.as_ref()) {
                Ok(()) => self.exchange.leased(content, image),
                Err(error) => self.exchange.give_lease_back(content, &error.to_string()),
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
            Order::Revoke(content) => self.exchange.lease_lost(&content),
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
            } => self.exchange.drop_made(&content, maker.key(), from),
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
            Order::Queue(queue) => {
                let contents = self.exchange.contents();
                let effects = self.mirror.are_coming(contents, &queue);
                self.act_for_mirror(effects);
            }
            Order::Recheck(chunks) => {
                for (content, chunk) in chunks {
                    self.look_at(&content, chunk);
                }
            }
        }
    }

    /// The roster changed.
    fn roster(&mut self) {
        let hosts = self.exchange.hosts();
        let epoch = hosts.epoch();
        debug!(hosts = hosts.ids().count(), epoch, "roster");
        // the next session's first message
        self.hello
            .send_modify(|hello| hello.roster_epoch = Some(epoch));
        let all = hosts.ids().cloned().chain([self.coordinator.clone()]);
        self.endpoint.authorise(Authorised::Only(all.collect()));
        self.endpoint.supersede(hosts.enrolled());
        self.endpoint.expect(hosts.addresses());
    }

    // ---- images -----------------------------------------------------------------------------------------------------

    /// Carries out the effects of images.
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
                self.jobs.spawn_long(Long::Read, move || {
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
                self.jobs
                    .spawn_long(Long::Read, move || tasks::read_again(image, stage));
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
            images::Effect::Renew { image, access } => self.exchange.renew_access(&image, &access),
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

    /// Takes over the images that an earlier process left in the store.
    fn recover(&mut self) {
        for found in self.store.recovered() {
            let image = *found.layout.digest();
            info!(%image, references = ?found.references, present = found.present, "found an image of this host");
            let contradicts = self.exchange.contents().contradiction(&found.layout);
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
        let contents = self.exchange.contents();
        let contradicts = layout.and_then(|layout| contents.contradiction(layout));
        self.images.begun(self.now(), image, result, contradicts);
    }

    /// Makes known to the swarm which chunks a stage holds and lacks.
    fn take_up(&mut self, image: Digest, layout: &Layout, stage: &Arc<Stage>, local_bytes: u64) {
        self.exchange.count_local(local_bytes);
        let mut known = Vec::new();
        for (order, spec) in (0u32..).zip(&layout.contents()) {
            let contents = self.exchange.contents();
            let effects = self.mirror.follow_image(contents, &spec.digest);
            self.act_for_mirror(effects);
            let (id, new) = self.exchange.add(spec, image, stage);
            known.push((id, new, order));
        }
        for (id, new, order) in known {
            if new {
                self.introduce(id, order);
            }
            self.exchange.walk_if_whole(id);
        }
        // the entitled hosts of contents that the image shares with others may have changed
        self.retell(layout);
        self.exchange.take_early_leases();
    }

    /// Takes the image's contents out of the swarm. The files on disk stay.
    fn withdraw(&mut self, image: Digest, layout: &Layout) {
        self.exchange.withdraw(&image);
        // contents that other images share are now only for those images' hosts
        self.retell(layout);
    }

    /// Names were linked. If goldens are made on this host, they are next.
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

    /// Takes note of what the store found on the disk by itself.
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
            self.exchange.rotted(image, content, &chunks);
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

    // ---- reading again ----------------------------------------------------------------------------------------------

    /// Reads a few verified chunks again while nothing is being staged, since disks forget. Nothing relies on this:
    /// whatever is served, copied or installed was compared before.
    fn scrub(&mut self) {
        if self.images.is_staging() {
            return;
        }
        let contents = self.exchange.contents();
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

    /// A peer says that a chunk from this host doesn't fit its link. Either the peer's memory or this host's disk may
    /// be broken.
    fn look_at(&mut self, digest: &Digest, chunk: ChunkIndex) {
        let Some(content) = self.exchange.contents().by_digest(digest) else {
            return;
        };
        if !content.geometry().contains(chunk) || !self.upkeep.suspect(*digest, chunk) {
            return;
        }
        let (digest, shelves) = (*digest, content.shelves());
        warn!(content = %digest, %chunk, "looking at a chunk for which a peer blames this host");
        // the packed copy may be the wrong one
        self.exchange.forget_packed(digest, chunk);
        self.spawn_blocking(move || tasks::look_at(digest, &shelves, chunk));
    }

    fn looked_at(&mut self, digest: Digest, chunk: ChunkIndex, rotten: bool) {
        self.upkeep.cleared(digest, chunk);
        if !rotten {
            info!(content = %digest, %chunk, "a chunk for which a peer blamed this host is what its link says");
            return;
        }
        let content = self.exchange.contents().by_digest(&digest);
        if content.is_some_and(Content::is_mirrored) {
            // a rotten blob of the mirror is dropped as a whole
            self.keep_cache();
        }
    }

    /// Stops taking work, seals the journals, leaves.
    async fn stop(mut self) -> anyhow::Result<()> {
        info!("stopping");
        self.endpoint.close("agent stops");
        self.exchange.stop();
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

    fn spawn(&mut self, job: impl Future<Output = Input> + Send + 'static) {
        self.jobs.spawn(job);
    }

    fn spawn_blocking(&mut self, job: impl FnOnce() -> Input + Send + 'static) {
        self.jobs.spawn_blocking(job);
    }

    // ---- the exchange -----------------------------------------------------------------------------------------------

    /// Carries out the swarm's actions, and what follows from what the exchange heard.
    fn follow_exchange(&mut self) {
        while let Some(effect) = self.exchange.poll() {
            self.act_for_exchange(effect);
        }
    }

    fn act_for_exchange(&mut self, effect: exchange::Effect) {
        match effect {
            exchange::Effect::Run(job) => self.jobs.spawn(job),
            exchange::Effect::RunBlocking(job) => self.jobs.spawn_blocking(job),
            exchange::Effect::Hear(input) => self.apply(input),
            exchange::Effect::Images { images, news } => self.tell_images(&images, news),
            exchange::Effect::NotStored { mirrored, error } => {
                match mirrored {
                    true => self.blobs_not_stored(&error),
                    false => self.images.storage_failed(self.now(), &error),
                }
                self.follow_images();
            }
            exchange::Effect::Fetch(wanted) => {
                let (by, origin) = match self.images.source(None, &wanted.images) {
                    Some(source) => (Some(source.image), Some((source.reference, source.access))),
                    None => (None, self.mirror.access(&wanted.content)),
                };
                if let Some(origin) = origin {
                    if !self.exchange.is_leased(wanted.id) && self.mirror.wants(&wanted.content) {
                        info!(content = %wanted.content, "nothing comes of a blob that a client wants; fetching it without a lease");
                    }
                    self.exchange.fetch(&wanted, by, origin);
                }
            }
            exchange::Effect::FetchEnded { content, end } => {
                let contents = self.exchange.contents();
                let effects = self.mirror.fetch_ended(contents, &content, end);
                self.act_for_mirror(effects);
            }
            exchange::Effect::Blame {
                host,
                content,
                chunk,
                kind,
            } => self.reporting.blame(&host, content, chunk, kind),
            exchange::Effect::Convict(links) => self.reporting.show(&links),
            exchange::Effect::TakeBack { content, from } => {
                self.reporting.taken_back(content, from);
            }
            exchange::Effect::Look { content, chunk } => self.look_at(&content, chunk),
            exchange::Effect::Stored => {
                self.upkeep.chunk_stored();
                self.reporting.soon();
            }
            exchange::Effect::ReportSoon => self.reporting.soon(),
            exchange::Effect::ReportNow => self.reporting.at_once(),
        }
    }

    fn tell_images(&mut self, images: &[Digest], news: ImageNews) {
        let now = self.now();
        match news {
            ImageNews::Gained(bytes) => self.images.gained(images, bytes),
            ImageNews::Lost(bytes) => self.images.lost(images, bytes),
            ImageNews::FromOrigin(bytes) => self.images.came_from_origin(images, bytes),
            ImageNews::FromPeers(bytes) => self.images.came_from_peers(images, bytes),
            ImageNews::Uploaded(bytes) => self.images.uploaded(images, bytes),
            ImageNews::OriginTrouble(trouble) => self.images.origin_troubles(images, &trouble),
            ImageNews::OriginIsFine => self.images.origin_is_well(images),
            ImageNews::Closed(content) => {
                let contents = self.exchange.contents();
                let copy = self.mirror.copy_from_image(contents, &content);
                self.act_for_mirror(copy);
                for image in images {
                    self.images.content_closed(now, *image, &content);
                }
            }
            ImageNews::Opened(content) => {
                for image in images {
                    self.images.content_opened(now, *image, content);
                }
            }
            ImageNews::Unwritable(error) => {
                for image in images {
                    self.images.unwritable(now, *image, error.clone());
                }
            }
        }
        self.follow_images();
    }

    /// Makes a content known to the swarm. If a client of the mirror wants the content, the swarm hears that too.
    fn introduce(&mut self, id: ContentId, order: u32) {
        let images = &self.images;
        let of_image = |image: &Digest| images.entitled(image);
        self.exchange.introduce(id, order, of_image);
        let content = self.exchange.contents().find(id).map(Content::digest);
        let wanted = content.and_then(|content| self.mirror.wanted(id, &content));
        if let Some(wanted) = wanted {
            self.tell(wanted);
        }
    }

    /// Tells the swarm anew of an image's contents: the hosts that may have them may have changed.
    fn retell(&mut self, layout: &Layout) {
        let images = &self.images;
        let of_image = |image: &Digest| images.entitled(image);
        self.exchange.retell(layout, of_image);
    }

    // ---- the mirror -------------------------------------------------------------------------------------------------

    fn act_for_mirror(&mut self, effects: impl IntoIterator<Item = mirror::Effect>) {
        for effect in effects {
            match effect {
                mirror::Effect::Tell(content, event) => {
                    let content = self.exchange.contents().by_digest(&content);
                    if let Some(id) = content.map(Content::id) {
                        self.tell(event(id));
                    }
                }
                mirror::Effect::Join { blob, order } => {
                    let id = self.exchange.add_blob(&blob);
                    self.introduce(id, order);
                    if blob.is_unread() {
                        self.spawn_blocking(move || blob_cache::read_again(id, &blob));
                    }
                    self.exchange.walk_if_whole(id);
                }
                mirror::Effect::Leave(content) => self.exchange.drop_blob(&content),
                mirror::Effect::RunBlocking(job) => self.jobs.spawn_blocking(job),
                mirror::Effect::ReportSoon => self.reporting.soon(),
                mirror::Effect::ReportNow => self.reporting.at_once(),
            }
        }
    }

    /// The volume failed while blobs of the mirror arrived.
    fn blobs_not_stored(&mut self, error: &str) {
        let contents = self.exchange.contents();
        let effects = self.mirror.storage_failed(contents, error);
        self.act_for_mirror(effects);
    }

    /// Called every few seconds: pins the blobs of images that are being staged, and checks what lies in the cache.
    fn keep_cache(&mut self) {
        let pinned = self.images.blobs_in_use();
        let place = (self.store.clone(), &*self.config.tart_home);
        let contents = self.exchange.contents();
        let (bytes, effects) = self.mirror.keep(contents, pinned, place);
        if let Some(bytes) = bytes {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            self.metrics.mirror.cache_bytes.set(bytes);
        }
        self.act_for_mirror(effects);
    }

    fn address(&self) -> Option<SocketAddr> {
        self.config.advertise
    }
}
