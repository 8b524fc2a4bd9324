//! The driver: the only owner of the agent's state. It makes an [`Input`] of whatever happens next, changes state in a
//! synchronous [`Driver::apply`], and turns the swarm's actions into jobs.
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
mod streams;
mod supply;
mod transfers;
mod trouble;
mod upkeep;
mod walk;
mod wants;

use std::{sync::Arc, time::Instant};

use proto::{
    ChunkIndex, Digest, HostId,
    message::{Hello, OldImages, Report},
};
use swarm::{Event, Swarm};
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
    disk::Disk,
    exchange::Exchange,
    jobs::{Jobs, Work},
    leases::Granted,
    look::Seen,
    mirror::Mirror,
    orders::{Order, ReadOrderError},
    report::{Facts, Known, Reporting},
    streams::Streams,
    supply::{Effect, Supply},
    upkeep::{Chore, Needs, Upkeep},
};
pub(crate) use self::{input::Input, jobs::BLOCKING_THREADS};
use crate::{
    admin::Snapshot,
    config::Config,
    metrics::Metrics,
    mirror::{Ears, Wish},
    notary::Notary,
    registries::Origin,
    retention::{Question, Retention},
    session::Heard,
    store::{Store, Volume, in_use, survey::Surveyed},
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

pub(crate) struct Driver {
    config: Config,
    me: HostId,
    endpoint: Endpoint,
    disk: Disk,
    streams: Streams,
    notary: Arc<Notary>,
    metrics: Metrics,
    coordinator: HostId,
    hello: watch::Sender<Hello>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    supply: Supply,
    session: Option<mpsc::Sender<Report>>,
    reporting: Reporting,
    upkeep: Upkeep,
    /// What is known of disks that parbake didn't build.
    found: Surveyed,
    /// By whose rule old images go.
    retention: Retention,
    jobs: Jobs,
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
    let step_back = parts.config.step_back_load_percent;
    let retention = Retention::new(parts.config.retention, proto::Moment::START, in_use);
    let (me, cache, metrics) = (
        parts.me.clone(),
        streams.cache.clone(),
        parts.metrics.clone(),
    );
    let exchange = Exchange::new(me, swarm, now, cache, metrics);
    let mut driver = Driver {
        supply: Supply::new(exchange, mirror, disk.clone(), parts.metrics.clone(), now),
        config: parts.config,
        me: parts.me,
        endpoint: parts.endpoint.clone(),
        disk,
        streams,
        notary: parts.notary,
        metrics: parts.metrics,
        coordinator: parts.coordinator,
        hello: parts.hello,
        snapshot: parts.snapshot,
        session: None,
        reporting: Reporting::new(now),
        upkeep: Upkeep::new(now, volume, step_back),
        found: Surveyed::default(),
        retention,
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
    /// The latest moment at which the driver has something to do next.
    fn next_wake(&self) -> Instant {
        let moments = [
            self.supply.next_due(),
            self.upkeep.next_due(self.needs()),
            self.reporting.next_due(),
        ];
        let soonest = moments.into_iter().flatten().min();
        soonest.unwrap_or_else(|| Instant::now() + upkeep::LOOK_EVERY)
    }

    fn needs(&self) -> Needs {
        let images = self.supply.images();
        Needs {
            filling: images.catalogue().is_filling(),
            beginning: images.reconciler().is_beginning(),
            look: images.reconciler().look_due(),
        }
    }

    fn tell(&mut self, event: Event) {
        self.supply.exchange_mut().tell(event);
    }

    /// Carries out what the parts want, and the chores that are due.
    fn turn(&mut self) {
        let now = Instant::now();
        self.supply.set_now(now);
        self.supply.look_at_wants();
        self.follow();
        self.supply.begin_jobs();
        // the swarm may ask peers at once for what images need
        self.follow();
        self.supply.exchange_mut().flush_updates();
        let needs = self.needs();
        // what is being read ends early, too
        self.disk.let_survey(self.upkeep.may_survey(needs));
        for chore in self.upkeep.begin_due(now, needs) {
            self.attend(chore);
        }
        if self.reporting.is_due(now) {
            self.make_report();
        }
    }

    fn attend(&mut self, chore: Chore) {
        let work = match chore {
            Chore::Flush => self.disk.flush(),
            Chore::Look => {
                self.supply.images_mut().look_begins();
                self.disk.heed(self.retention.in_force(self.supply.now()));
                let work = self.disk.retire();
                work.into_iter().for_each(|work| self.jobs.start(work));
                self.disk.look()
            }
            Chore::Measure => self.disk.measure(),
            Chore::Survey => self.disk.survey(),
        };
        self.jobs.start(work);
    }

    fn follow(&mut self) {
        while let Some(effect) = self.supply.poll() {
            self.act(effect);
        }
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Run(work) => self.jobs.start(work),
            Effect::Errand(errand) => self.jobs.start(self.streams.work(errand)),
            Effect::Hear(input) => self.apply(input),
            Effect::Blame {
                host,
                content,
                chunk,
                kind,
            } => self.reporting.blame(&host, content, chunk, kind),
            Effect::Convict(links) => self.reporting.show(&links),
            Effect::TakeBack { content, from } => self.reporting.taken_back(content, from),
            Effect::Doubt(doubt) => self.reporting.doubt(doubt),
            Effect::Look { content, chunk } => self.look_at(&content, chunk),
            Effect::ForgetTicket(content) => self.notary.forget_lease(&content),
            Effect::Stored => {
                self.upkeep.chunk_stored();
                self.reporting.soon();
            }
            Effect::ReportSoon => self.reporting.soon(),
            Effect::ReportNow => self.reporting.at_once(),
            Effect::ReportAll => self.reporting.in_full(),
        }
    }

    fn apply(&mut self, input: Input) {
        self.supply.set_now(Instant::now());
        // findings of a job on the disk come before the job's end
        self.supply.hear_store();
        let supply = &mut self.supply;
        match input {
            Input::Connected { peer, result } => supply.exchange_mut().connected(peer, result),
            Input::ConnectionEnded {
                peer,
                serial,
                reason,
            } => supply
                .exchange_mut()
                .connection_ended(peer, serial, &reason),
            Input::Brought { peer, brought } => supply.exchange_mut().brought(peer, brought),
            Input::Heard(heard) => self.heard(heard),
            Input::Received {
                transfer,
                number,
                receipt,
            } => supply.exchange_mut().received(transfer, number, receipt),
            Input::Sent {
                transfer,
                ticket,
                shipment,
            } => supply.exchange_mut().sent(transfer, ticket, shipment),
            Input::Fetch { id, news } => supply.exchange_mut().fetch_news(id, news),
            Input::Retracted { id, from, result } => {
                supply.exchange_mut().retracted(id, from, result)
            }
            Input::Dropped { id, result } => supply.exchange_mut().dropped(id, result),
            Input::FetchEnded { id, number, end } => {
                supply.exchange_mut().fetch_ended(id, number, end)
            }
            Input::Begun { image, result } => supply.begun(image, result),
            Input::RecipeOpened { image, result } => supply.recipe_opened(image, result),
            Input::RecipeRead { image, result } => supply.recipe_read(image, result),
            Input::RecipeMade { image, result } => supply.recipe_made(image, result),
            Input::Walked { id, walked } => supply.exchange_mut().walked(id, walked),
            Input::Recorded { image, result } => {
                let now = supply.now();
                supply.images_mut().recorded(now, image, result);
            }
            Input::Installed {
                image,
                stage,
                placed,
                result,
            } => supply.installed(image, &stage, placed, result),
            Input::ReadAgain {
                image,
                stage,
                result,
            } => {
                let now = supply.now();
                supply.images_mut().was_read(now, image, &stage, result);
            }
            Input::Golden {
                image,
                stage,
                result,
                installed,
            } => supply.golden_made(image, &stage, installed, result),
            Input::Abandoned(image) => {
                let now = supply.now();
                supply.images_mut().abandoned(now, image);
            }
            Input::Presence { seen, load_percent } => self.looked(&seen, load_percent),
            Input::Measured(volume) => self.measured(volume),
            Input::Surveyed(result) => self.surveyed(result),
            Input::OldImages(answer) => self.answer_old_images(*answer),
            Input::Scrubbed => self.upkeep.scrubbed(),
            Input::Looked {
                content,
                chunk,
                rotten,
            } => self.looked_at(content, chunk, rotten),
            Input::Flushed { images, blobs } => {
                self.upkeep.flushed();
                self.supply.flushed(images, blobs);
            }
            Input::Wished(wish) => supply.wish(wish),
            Input::Seeds(seeds) => supply.seeds(seeds),
            Input::Copied(digest) => supply.mirror_mut().copied(&digest),
            Input::BlobsScrubbed { next, bad } => supply.blobs_scrubbed(next, bad),
            Input::Nothing => {}
            Input::Tick => self.tell(Event::Tick),
        }
        self.supply.follow_images();
    }

    fn start(&mut self) {
        let event = Event::Bandwidth {
            upload_bytes_per_second: self.config.upload_bytes_per_second,
            download_bytes_per_second: self.config.download_bytes_per_second,
        };
        self.tell(event);
        self.tell(Event::Coordinator(false));
        self.supply.recover();
        self.reporting.in_full();
    }

    // ---- reports ----------------------------------------------------------------------------------------------------

    /// Reports the state of everything to the coordinator, the status page and the metrics.
    fn make_report(&mut self) {
        let now = Instant::now();
        let status = self.supply.exchange().status();
        let images = self.supply.image_states(&status);
        let up = self.session.is_some();
        let snapshot = Snapshot::new(&self.me, up, &images, &status, self.found);
        self.snapshot.send_replace(Arc::new(snapshot));
        let (all, desired) = (
            self.supply.images(),
            self.supply.images().reconciler().desired(),
        );
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
                .config
                .advertise
                .map(|address| address.to_string())
                .unwrap_or_default(),
            takes_names: true,
            makes_recipes: true,
            takes_ranges: true,
            stages_stacked: true,
            takes_retention: true,
            roster_epoch: Some(self.supply.exchange().hosts().epoch()),
            link_key: self.notary.key().to_vec(),
        });
        gauges::show(
            &self.metrics,
            &status,
            &self.supply.images().catalogue().count_states(),
        );
        let leases = self.supply.exchange_mut().lease_states(&status);
        let wants = self.supply.mirror_mut().report(self.reporting.is_full());
        let contents = self.supply.exchange().contents();
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
            wants,
            names_confirmed: self.supply.images().reconciler().confirmed(),
        };
        let (report, ends) = self.reporting.make(now, facts);
        self.supply.exchange_mut().lease_states_unsent(ends);
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
                self.supply.mirror_mut().unsent();
            }
            let ends = self.reporting.unsent(report);
            self.supply.exchange_mut().lease_states_unsent(ends);
        }
    }

    fn volume(&self) -> proto::message::Volume {
        let measured = self.upkeep.volume();
        proto::message::Volume {
            total_bytes: measured.total_bytes,
            free_bytes: measured.free_bytes,
            floor_bytes: measured.floor_bytes,
            path: self.config.tart_home.display().to_string(),
            clones: Some(measured.clones),
        }
    }

    // ---- the coordinator --------------------------------------------------------------------------------------------

    fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Up(reports) => {
                self.session = Some(reports);
                self.notary.set_connected(true);
                self.supply.images_mut().session_began();
                self.reporting.session_began();
                self.tell(Event::Coordinator(true));
            }
            Heard::Down(taken_in) => {
                self.session = None;
                self.disk
                    .heed(self.retention.session_ended(self.supply.now()));
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
        let now = self.supply.now();
        let supply = &mut self.supply;
        match order {
            Order::Roster(roster) => {
                supply
                    .exchange_mut()
                    .roster(roster.epoch, &roster.hosts, &roster.neighbours);
                self.roster();
            }
            Order::RosterChange(change) => {
                if supply.exchange_mut().change_roster(&change) {
                    self.roster();
                } else {
                    debug!(epoch = change.epoch, "change of a roster that isn't here");
                    self.reporting.want_roster();
                }
            }
            Order::Neighbours(hosts) => supply.exchange_mut().follow(hosts),
            Order::Stage {
                image,
                ordered,
                manifest,
            } => {
                let recipe = ordered.recipe.map(|file| file.digest);
                self.reporting.ordered(&image, recipe, &ordered.in_doubt);
                supply.images_mut().order(now, image, ordered, &manifest);
            }
            Order::Pause(image) => supply.images_mut().pause(image),
            Order::Cancel(image) => supply.images_mut().cancel(now, image),
            Order::Names(names) => supply.images_mut().order_names(now, names),
            Order::Sequence(images) => supply.images_mut().take_sequence(images),
            Order::Lease {
                content,
                image,
                range,
                ticket,
            } => {
                let lease = Granted { image, range };
                match self.notary.lease(content, ticket.as_ref()) {
                    Ok(()) => supply.exchange_mut().leased(content, lease),
                    Err(error) => supply
                        .exchange_mut()
                        .give_lease_back((content, range), &error.to_string()),
                }
            }
            Order::Stand(ticket) => match self.notary.stand(Some(&ticket)) {
                Ok(()) => {
                    let notary = self.notary.clone();
                    self.jobs.start(Work::blocking(move || {
                        notary.keep();
                        Input::Nothing
                    }));
                }
                Err(error) => warn!(%error, "ticket of the coordinator isn't taken"),
            },
            Order::Revoke(content) => supply.exchange_mut().lease_lost(&content),
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
            } => supply.exchange_mut().drop_made(&content, maker.key(), from),
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
            Order::Queue(queue) => supply.are_coming(&queue),
            Order::Doubt(doubt) => {
                supply.images_mut().doubt_recipe(&doubt);
            }
            Order::MakeRecipe(image) => supply.make_recipe(image),
            Order::Retention(order) => self.disk.heed(self.retention.ordered(now, order)),
            Order::OldImagesAsked(asked) => {
                let question = self.retention.ask(now, asked);
                self.look_at_old_images(question);
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
        let hosts = self.supply.exchange().hosts();
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

    /// Looks which old images would go, if a question asks for it.
    fn look_at_old_images(&mut self, question: Option<Question>) {
        if let Some(Question { terms, answer }) = question {
            self.jobs.start(self.disk.preview(terms, answer));
        }
    }

    /// Answers the coordinator's question which old images would go. Where there is no room for the answer, the
    /// coordinator says that this host gave none.
    fn answer_old_images(&mut self, answer: OldImages) {
        let report = Report {
            old_images: Some(answer),
            names: self.supply.images().reconciler().confirmed(),
            ..Report::default()
        };
        let session = self.session.as_ref();
        if session.is_none_or(|session| session.try_send(report).is_err()) {
            debug!("an answer about old images couldn't be sent");
        }
        let next = self.retention.answered(self.supply.now());
        self.look_at_old_images(next);
    }

    // ---- chores -----------------------------------------------------------------------------------------------------

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
        self.supply.looked(seen);
        self.scrub();
    }

    fn measured(&mut self, volume: Volume) {
        gauges::show_volume(&self.metrics, volume);
        if let Some(trouble) = self.upkeep.measured(volume) {
            self.supply.stop_filling(&trouble);
        }
    }

    fn surveyed(&mut self, result: Result<Surveyed, String>) {
        let surveyed = result.unwrap_or_else(|error| {
            warn!(
                error,
                "disks that parbake didn't build aren't read; it is tried again"
            );
            Surveyed::default()
        });
        self.upkeep.surveyed(surveyed.more);
        gauges::show_found(&self.metrics, surveyed);
        if self.found != surveyed {
            self.found = surveyed;
            self.reporting.soon();
        }
    }

    /// Reads a few verified chunks again while nothing is being staged, since disks forget. Nothing relies on this:
    /// whatever is served, copied or installed was compared before.
    fn scrub(&mut self) {
        if self.supply.images().catalogue().is_staging() {
            return;
        }
        let contents = self.supply.exchange().contents();
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
        let work = disk::scrub(digest, shelves, scrub.chunks, scrub.last);
        self.jobs.start(work);
    }

    /// A peer says that a chunk from this host doesn't fit its link. Either the peer's memory or this host's disk may
    /// be broken.
    fn look_at(&mut self, digest: &Digest, chunk: ChunkIndex) {
        let Some(content) = self.supply.exchange().contents().by_digest(digest) else {
            return;
        };
        if !content.geometry().contains(chunk) || !self.upkeep.suspect(*digest, chunk) {
            return;
        }
        let (digest, shelves) = (*digest, content.shelves());
        warn!(content = %digest, %chunk, "looking at a chunk for which a peer blames this host");
        // the packed copy may be the wrong one
        self.supply.exchange().forget_packed(digest, chunk);
        self.jobs.start(disk::look_at(digest, shelves, chunk));
    }

    fn looked_at(&mut self, digest: Digest, chunk: ChunkIndex, rotten: bool) {
        self.upkeep.cleared(digest, chunk);
        if !rotten {
            info!(content = %digest, %chunk, "a chunk for which a peer blamed this host is what its link says");
            return;
        }
        let content = self.supply.exchange().contents().by_digest(&digest);
        if content.is_some_and(Content::is_mirrored) {
            // a rotten blob of the mirror is dropped as a whole
            self.supply.keep_cache();
        }
    }

    /// Stops taking work, seals the journals, leaves.
    async fn stop(mut self) -> anyhow::Result<()> {
        info!("stopping");
        self.endpoint.close("agent stops");
        self.supply.exchange_mut().stop();
        self.jobs.abort_all();
        self.disk.store().stop();
        tokio::task::spawn_blocking(move || self.disk.seal()).await??;
        Ok(())
    }
}
