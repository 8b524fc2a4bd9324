//! The state of the agent, by its parts: an [`Input`] goes to the part that it concerns, and what the parts want of
//! each other is carried out.
//!
//! [`State`] opens no socket and starts no job. What is left to do comes out as [`Effect`]s, which the driver's loop
//! carries out in order.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Instant, SystemTime},
};

use proto::{
    ChunkIndex, Digest, HostId, Moment,
    message::{Hello, OldImages, Report},
};
use swarm::Event;
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    watch,
};
use tracing::{debug, info, warn};

use super::{
    contents::Content,
    disk::{self, Disk},
    exchange::Errand,
    gauges,
    input::Input,
    jobs::Work,
    leases::Granted,
    look::Seen,
    orders::{self, Order, ReadOrderError},
    report::{Facts, Known, Reporting},
    supply::{self, Supply},
    upkeep::{self, Chore, Needs, Upkeep},
};
use crate::{
    admin::Snapshot,
    config::Config,
    metrics::Metrics,
    notary::Notary,
    retention::{InUse, Question, Retention},
    session::Heard,
    store::{Volume, survey::Surveyed},
};

/// Work for the loop.
pub(super) enum Effect {
    /// Run this beside the loop.
    Run(Work),
    /// Do this beside the loop.
    Errand(Errand),
    /// These hosts may connect from now on, and no others.
    Admit {
        hosts: BTreeSet<HostId>,
        /// For each host, the time since which its certificates are accepted.
        enrolled: BTreeMap<HostId, SystemTime>,
        addresses: Vec<IpAddr>,
    },
}

/// What the state is given at its beginning.
pub(super) struct Given {
    pub(super) config: Config,
    pub(super) me: HostId,
    /// The UDP port on which this host takes connections of peers.
    pub(super) peer_port: u16,
    pub(super) disk: Disk,
    /// What Pods referred to when the process before this one ended.
    pub(super) in_use: InUse,
    pub(super) notary: Arc<Notary>,
    pub(super) metrics: Metrics,
    pub(super) coordinator: HostId,
    /// The first message of the next session, kept current.
    pub(super) hello: watch::Sender<Hello>,
    /// The answer to `/v1/status`, kept current.
    pub(super) snapshot: watch::Sender<Arc<Snapshot>>,
}

/// See the [module](self).
pub(super) struct State {
    config: Config,
    me: HostId,
    peer_port: u16,
    disk: Disk,
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
    effects: VecDeque<Effect>,
}

impl State {
    pub(super) fn new(given: Given, supply: Supply, volume: Volume, now: Instant) -> Self {
        let Given {
            config,
            me,
            peer_port,
            disk,
            in_use,
            notary,
            metrics,
            coordinator,
            hello,
            snapshot,
        } = given;
        Self {
            reporting: Reporting::new(now),
            upkeep: Upkeep::new(now, volume, config.step_back_load_percent),
            retention: Retention::new(config.retention, Moment::START, in_use),
            found: Surveyed::default(),
            session: None,
            config,
            me,
            peer_port,
            disk,
            notary,
            metrics,
            coordinator,
            hello,
            snapshot,
            supply,
            effects: VecDeque::new(),
        }
    }

    // ---- the loop ---------------------------------------------------------------------------------------------------

    /// The next effect, in order.
    pub(super) fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn run(&mut self, work: Work) {
        self.effects.push_back(Effect::Run(work));
    }

    /// The latest moment at which [`State::turn`] has something to do next.
    pub(super) fn next_wake(&self, now: Instant) -> Instant {
        let moments = [
            self.supply.next_due(),
            self.upkeep.next_due(self.needs()),
            self.reporting.next_due(),
        ];
        let soonest = moments.into_iter().flatten().min();
        soonest.unwrap_or(now + upkeep::LOOK_EVERY)
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
    pub(super) fn turn(&mut self, now: Instant) {
        self.supply.set_now(now);
        self.supply.look_at_wants();
        self.follow(now);
        self.supply.begin_jobs();
        // the swarm may ask peers at once for what images need
        self.follow(now);
        self.supply.exchange_mut().flush_updates();
        let needs = self.needs();
        // what is being read ends early, too
        self.disk.let_survey(self.upkeep.may_survey(needs));
        for chore in self.upkeep.begin_due(now, needs) {
            self.attend(chore);
        }
        if self.reporting.is_due(now) {
            self.make_report(now);
        }
    }

    fn attend(&mut self, chore: Chore) {
        let work = match chore {
            Chore::Flush => self.disk.flush(),
            Chore::Look => {
                self.supply.images_mut().look_begins();
                self.disk.heed(self.retention.in_force(self.supply.now()));
                if let Some(work) = self.disk.retire() {
                    self.run(work);
                }
                self.disk.look()
            }
            Chore::Measure => self.disk.measure(),
            Chore::Survey => self.disk.survey(),
        };
        self.run(work);
    }

    fn follow(&mut self, now: Instant) {
        while let Some(effect) = self.supply.poll() {
            self.act(now, effect);
        }
    }

    fn act(&mut self, now: Instant, effect: supply::Effect) {
        match effect {
            supply::Effect::Run(work) => self.run(work),
            supply::Effect::Errand(errand) => self.effects.push_back(Effect::Errand(errand)),
            supply::Effect::Hear(input) => self.apply(now, input),
            supply::Effect::Blame {
                host,
                content,
                chunk,
                kind,
            } => self.reporting.blame(&host, content, chunk, kind),
            supply::Effect::Convict(links) => self.reporting.show(&links),
            supply::Effect::TakeBack { content, from } => self.reporting.taken_back(content, from),
            supply::Effect::Doubt(doubt) => self.reporting.doubt(doubt),
            supply::Effect::Look { content, chunk } => self.look_at(&content, chunk),
            supply::Effect::ForgetTicket(content) => self.notary.forget_lease(&content),
            supply::Effect::Stored => {
                self.upkeep.chunk_stored();
                self.reporting.soon();
            }
            supply::Effect::ReportSoon => self.reporting.soon(),
            supply::Effect::ReportNow => self.reporting.at_once(),
            supply::Effect::ReportAll => self.reporting.in_full(),
        }
    }

    /// Changes the state by what happened.
    pub(super) fn apply(&mut self, now: Instant, input: Input) {
        self.supply.set_now(now);
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
            Input::Heard(heard) => self.heard(now, heard),
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

    /// Takes over what an earlier process left. Call this once, before anything else.
    pub(super) fn start(&mut self) {
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
    fn make_report(&mut self, now: Instant) {
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
            peer_port: self.peer_port.into(),
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

    fn heard(&mut self, now: Instant, heard: Heard) {
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
                self.make_report(now);
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
                    self.run(Work::blocking(move || {
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
        self.effects.push_back(Effect::Admit {
            hosts: all.collect(),
            enrolled: hosts.enrolled(),
            addresses: hosts.addresses().collect(),
        });
    }

    /// Looks which old images would go, if a question asks for it.
    fn look_at_old_images(&mut self, question: Option<Question>) {
        if let Some(Question { terms, answer }) = question {
            self.run(self.disk.preview(terms, answer));
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
        self.run(work);
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
        self.run(disk::look_at(digest, shelves, chunk));
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

    /// Stops every fetch: the agent stops.
    pub(super) fn stop(&mut self) {
        self.supply.exchange_mut().stop();
    }
}

#[cfg(test)]
mod tests;
