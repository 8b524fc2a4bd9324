//! The one task that owns the plan and everything that the coordinator knows of the fleet.
//!
//! `run` selects the next [`Input`]. `apply` changes the state without waiting, and turns the plan's actions into
//! orders, which go into each session's bounded queue. The state is divided into parts, each in a file of its own. A
//! part takes the time as an argument, and returns what follows from a change: events for the plan, and orders to
//! hosts. The loop in this file hands each part what the part needs of the others, and carries out what parts return.
//!
//! The driver publishes what it shows as a [`View`]: at once after an ask that changes something, else at most four
//! times a second, and once a second where nothing is news. One writer writes the files, in the order in which the
//! driver asks for the writes. Waits for the network are jobs of one set.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use proto::{Digest, HostId, Moment, message};
use rollout::stage::{Action, Event, Plan};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::{
    blames::Blames,
    effect::{Effect, Effects},
    hosts::Known,
    images::Images,
    limits::Limited,
    members::Members,
    mirror::Mirrored,
    order::{Addressed, bandwidth},
    places::{Clocks, Places},
    presence::Presence,
    preview::Preview,
    reporting::Reporting,
    retention::Retention,
    selection::selected,
    show::{Facts, Views},
    staging::Staging,
    tickets::Tickets,
    took::unix_ms,
    writer::Answer,
};
use crate::{
    config::Config,
    fleet::Membership,
    metrics::Metrics,
    resolve::Registries,
    view::{ImageState, ShortOfRoom, StageReply},
    wants::Want,
};

mod ask;
mod blames;
mod effect;
mod fleet_recipes;
#[cfg(test)]
mod histories;
mod hosts;
mod images;
mod input;
mod leases;
mod limits;
mod lines;
mod members;
mod mirror;
mod order;
mod paces;
mod parts;
mod place_ask;
mod places;
mod presence;
mod preview;
mod pull_tokens;
mod recipe_words;
mod refusals;
mod reporting;
mod restages;
mod retention;
mod roster;
mod rosters;
mod selection;
mod sessions;
mod show;
mod stage_orders;
mod staging;
#[cfg(test)]
mod tests;
mod tickets;
mod took;
mod words;
mod writer;

pub(crate) use self::{
    ask::{Ask, CancelError, Limits, OldImagesError, Placed, StageError, Users},
    input::{INBOX, Input, Opened},
    limits::stricter,
    order::ORDERS,
    parts::Parts,
    place_ask::{DoneAsk, GateAsk, GroupAsk, PlaceAsk, PlaceError},
    presence::{HostPresence, PresenceView},
    refusals::{Cause, Refused},
    show::View,
    writer::{WRITES, Write, write},
};

/// The parts of the state, and the channels through which the driver reaches the rest of the program.
#[derive(Debug)]
pub(crate) struct Driver {
    started: Instant,
    config: Config,
    /// Decides what is staged on which host, and from which source.
    plan: Plan,
    members: Members,
    staging: Staging,
    /// Blobs that clients of mirrors wait for.
    mirror: Mirrored,
    blames: Blames,
    limited: Limited,
    /// Which hosts may be worked on, without a cluster.
    places: Places,
    views: Views,
    writer: mpsc::Sender<Write>,
    registries: Arc<Registries>,
    metrics: Metrics,
    jobs: JoinSet<Input>,
    /// In tests, the time instead of the clock's.
    #[cfg(test)]
    frozen: Option<Moment>,
}

impl Driver {
    pub(crate) fn new(parts: Parts) -> Self {
        let presence = Presence::new(parts.presence);
        let signatures = parts.authority.signatures();
        let tickets = Tickets::new(parts.authority, parts.config.certificate_lifetime);
        // without a cluster, no wants of a cluster can be missing
        let images = Images::new(unix_ms(), parts.config.cluster.is_none());
        let (registries, metrics) = (parts.registries, parts.metrics);
        let mut this = Self {
            started: Instant::now(),
            plan: Plan::new(parts.config.plan.clone(), parts.seed),
            staging: Staging::new(images, registries.clone(), metrics.clone(), &parts.config),
            members: Members::new(presence, tickets, Retention::of(&parts.config)),
            config: parts.config,
            mirror: Mirrored::default(),
            blames: Blames::new(signatures, metrics.clone()),
            limited: Limited::new(parts.kept.bandwidth),
            places: Places::default(),
            views: Views::new(parts.publish),
            writer: parts.writer,
            registries,
            metrics,
            jobs: JoinSet::new(),
            #[cfg(test)]
            frozen: None,
        };
        let now = this.now();
        this.places = Places::kept(now, parts.kept.places);
        // Hosts are known in their last zones at first. A host that then says the same zone in its hello moves nowhere
        // in the graph.
        for (host, place) in &parts.kept.roster {
            if parts.membership.admits(host) {
                this.know(now, host, &place.zone);
            }
        }
        this.join(now, parts.membership);
        for (host, place) in parts.kept.roster {
            this.members.hosts_mut().was_at(&host, place);
        }
        this.members.refresh_roster();
        for want in parts.kept.wants {
            this.enter(now, want);
        }
        this.act(now);
        // Publish what was kept before the first question arrives.
        this.show(now);
        this
    }

    // ---- the loop --------------------------------------------------------------------------------------------------

    /// Runs until `shutdown`, until every sender of `inbox` is gone, or until a job dies.
    pub(crate) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Input>,
        mut membership: watch::Receiver<Arc<Membership>>,
        shutdown: CancellationToken,
    ) {
        loop {
            self.flush();
            let due = self.started + Duration::from_micros(self.due().0);
            let next = tokio::select! {
                () = shutdown.cancelled() => return,
                input = inbox.recv() => input,
                Some(job) = self.jobs.join_next() => Input::finished(job),
                Ok(()) = membership.changed() => {
                    let fresh = membership.borrow_and_update().clone();
                    let now = self.now();
                    self.join(now, fresh);
                    self.act(now);
                    continue;
                }
                () = tokio::time::sleep_until(due.into()) => Some(Input::Tick),
            };
            // No input: every sender is gone, or a job died. The program ends then.
            let Some(input) = next else { return };
            // an input is answered by the newest membership
            if membership.has_changed().unwrap_or(false) {
                let fresh = membership.borrow_and_update().clone();
                let now = self.now();
                self.join(now, fresh);
            }
            self.apply(input);
        }
    }

    fn now(&self) -> Moment {
        #[cfg(test)]
        if let Some(now) = self.frozen {
            return now;
        }
        Moment::START + self.started.elapsed()
    }

    /// The time at which something is due next, if no input arrives before.
    fn due(&self) -> Moment {
        let parts = [
            self.plan.next_timeout(),
            self.members.rosters().due(),
            self.members.hosts().due(),
            self.staging.due(),
            self.places.due(),
            self.members.retention().due(),
        ];
        let views = self.views.due();
        parts.into_iter().flatten().fold(views, Moment::min)
    }

    /// Changes the state by one input, and carries out what the plan decides after that.
    pub(crate) fn apply(&mut self, input: Input) {
        let now = self.now();
        let began = Instant::now();
        let mut news = self.members.is_news(&input);
        let mut waits = None;
        match input {
            Input::Opened(opened) => self.open(now, *opened),
            Input::Reported {
                host,
                session,
                report,
                handled,
            } => {
                if self.members.sessions().is_current(&host, session) {
                    let present = self.members.present_of(&host, &report);
                    let effects = self.reporting(now, &host).take(&report);
                    self.carry(now, effects);
                    news |= present != self.members.present_of(&host, &report);
                }
                waits = Some(handled);
            }
            Input::Closed { host, session } => self.close(now, &host, session),
            Input::Refused(refused) => self.members.refused(now, refused),
            Input::Asked(ask) => self.answer(now, ask),
            Input::Recalled => {
                self.staging.recalled();
                self.wants_may_be_known(now);
            }
            Input::Token { image, granted } => {
                let hosts = self.members.hosts();
                let effects = self.staging.take_token(now, hosts, image, granted);
                self.carry(now, effects);
            }
            Input::Tick => {
                let queues = self.mirror.tidy(now, &mut self.plan);
                self.send(now, queues);
                self.plan.handle(now, Event::Tick);
            }
        }
        let effects = self.staging.place_waiting(self.members.at(now));
        if !effects.is_empty() {
            self.carry(now, effects);
            self.predict();
        }
        news |= self.act(now);
        self.tell_names(now);
        news |= self.members.presence_mut().show(now);
        self.views.outdate_if(news);
        if let Some(handled) = waits {
            // the session may have ended meanwhile; nobody waits then
            handled.send(began.elapsed()).ok();
        }
    }

    /// Does everything that is due by time: rosters, files, images to order again, tokens, tickets, and the view.
    pub(crate) fn flush(&mut self) {
        let now = self.now();
        if let Some(orders) = self.members.tell_roster(now) {
            self.send(now, orders);
            self.act(now);
        }
        if let Some(places) = self.members.hosts_mut().take_places_due(now) {
            self.write(Write::Places(places));
        }
        let over = self.places.expire(now);
        self.carry(now, over);
        self.members.retention_mut().tidy(now);
        let effects = self.staging.restage(now, self.members.hosts());
        self.carry(now, effects);
        self.ask_for_tokens(now);
        let effects = self.members.tell_tickets(now, SystemTime::now());
        self.carry(now, effects);
        self.views.outdate_if(self.members.rosters().owed() > 0);
        if self.views.take_due(now) {
            let suspects = self.blames.take_suspects();
            self.send(now, suspects);
            let owed = self.members.rosters_mut().tell_owed(now);
            self.send(now, owed);
            self.show(now);
        }
    }

    /// Carries out the effects that a part returned.
    fn carry(&mut self, now: Moment, effects: Effects) {
        for effect in effects {
            match effect {
                Effect::Tell(event) => self.plan.handle(now, event),
                Effect::Order(host, order) => self.send_to(now, &host, &order),
                Effect::Write(write) => self.write(write),
                Effect::NamesChanged => self.members.presence_mut().names_changed(),
            }
        }
    }

    /// Carries out the plan's actions, until the plan has no more. Returns whether there was anything to do.
    fn act(&mut self, now: Moment) -> bool {
        let mut acted = false;
        loop {
            while let Some(action) = self.plan.poll() {
                self.carry_out(now, action);
                acted = true;
            }
            let effects = self.staging.tell_news(self.members.hosts());
            if effects.is_empty() {
                break;
            }
            self.carry(now, effects);
            acted = true;
        }
        self.mirror.carried_out();
        acted
    }

    fn carry_out(&mut self, now: Moment, action: Action) {
        match action {
            Action::Neighbours { host, neighbours } => {
                let orders = self.members.rosters_mut().follow(now, &host, neighbours);
                self.send(now, orders);
            }
            // In the plan, an image stands for each blob of a mirror. Hosts don't know these images.
            Action::Cancel { image, .. }
            | Action::Pause { image, .. }
            | Action::Stage { image, .. }
                if self.mirror.is_blob(&image) => {}
            Action::Stage { host, image } => {
                let hosts = self.members.hosts_mut();
                let effects = self.staging.begin(now, hosts, &host, image);
                self.carry(now, effects);
            }
            Action::Cancel { host, image } => {
                let stop = self.staging.stop(&host, image, false);
                self.order(now, &host, stop);
            }
            Action::Pause { host, image } => {
                let stop = self.staging.stop(&host, image, true);
                self.order(now, &host, stop);
            }
            Action::Sequence { host, images } => self.order(now, &host, order::sequence(&images)),
            Action::Grant {
                host,
                content,
                range,
                image,
            } => {
                self.staging.leases().granted();
                let content = self.mirror.digest(content);
                debug!(%host, %content, ?range, %image, "lease granted");
                let tickets = self.members.tickets_mut();
                let ticket = tickets.ticket(SystemTime::now(), &host, Some(content));
                self.order(now, &host, order::grant(content, range, image, ticket));
            }
            Action::Revoke {
                host,
                content,
                cause,
            } => {
                self.staging.leases().revoked(cause);
                let content = self.mirror.digest(content);
                debug!(%host, %content, ?cause, "lease revoked");
                self.order(now, &host, order::revoke(content));
            }
            Action::DropRecipe {
                image,
                recipe,
                cause,
            } => {
                let effects = self.staging.lose_recipe(now, (image, recipe), cause);
                self.carry(now, effects);
            }
            Action::LeaveRecipe(left) => {
                let effects = self.staging.leave_recipe(now, left);
                self.carry(now, effects);
            }
            Action::Retract {
                maker,
                content,
                from,
            } => {
                let content = self.mirror.digest(content);
                let order = order::retraction(&maker, content, from);
                self.send(now, self.members.to_all(order));
            }
            Action::Quarantine(host) => {
                error!(%host, "host is quarantined: its own signatures, or several others, say that it sent false data; look at its disk and memory");
            }
        }
    }

    // ---- orders ----------------------------------------------------------------------------------------------------

    fn order(&mut self, now: Moment, host: &HostId, order: message::Order) {
        self.send_to(now, host, &Arc::new(order));
    }

    fn send(&mut self, now: Moment, orders: Vec<Addressed>) {
        for (host, order) in orders {
            self.send_to(now, &host, &order);
        }
    }

    fn send_to(&mut self, now: Moment, host: &HostId, order: &Arc<message::Order>) {
        // Dropping the queue ends the session. The `Closed` input that follows then changes nothing.
        if self.members.send(now, host, order) {
            self.disconnected(now, host);
        }
    }

    /// Tells hosts the names of their images, where those changed. Orders to stage the named images are sent before.
    fn tell_names(&mut self, now: Moment) {
        let due = self.members.presence_mut().take_names_due();
        if due.is_empty() {
            return;
        }
        let number = self.staging.next_number();
        let whole = self.staging.images().are_known();
        for host in due {
            let names = self.staging.images().names_on(&host);
            if whole {
                let named = |image: &Digest| names.values().any(|(named, _)| named == image);
                self.staging.named(&host, named);
            }
            let presence = self.members.presence_mut();
            if let Some(order) = presence.tell(now, &host, (number, whole), &names) {
                self.order(now, &host, order);
            }
        }
    }

    // ---- hosts -----------------------------------------------------------------------------------------------------

    /// Makes this the membership: unknown hosts become known, and hosts that aren't members any more leave.
    fn join(&mut self, now: Moment, membership: Arc<Membership>) {
        for host in self.members.strangers(&membership) {
            self.leave(now, &host);
        }
        for (host, entry) in membership.members() {
            self.know(now, host, entry.map_or("", |entry| &entry.zone));
        }
        self.members.belong(now, membership);
        self.views.outdate_if(true);
    }

    /// Makes a host known, and returns whether the host is known now.
    fn know(&mut self, now: Moment, host: &HostId, zone: &str) -> bool {
        let known = self.members.know(host, zone);
        if known == Known::New || known == Known::Moved {
            let (host, zone) = (host.clone(), zone.to_owned());
            self.plan.handle(now, Event::HostKnown { host, zone });
        }
        if known == Known::New {
            let effects = self.staging.fleet_changed(self.members.at(now));
            self.carry(now, effects);
        }
        known != Known::Refused
    }

    /// The host isn't part of the fleet any more.
    fn leave(&mut self, now: Moment, host: &HostId) {
        info!(%host, "host left the fleet");
        self.mirror.disconnected(now, host, &mut self.plan);
        self.members.left(now, host);
        self.staging.left(host);
        self.blames.left(host);
        self.plan.handle(now, Event::HostForgotten(host.clone()));
    }

    /// A session is up.
    fn open(&mut self, now: Moment, opened: Opened) {
        let Opened {
            host,
            session,
            remote,
            hello,
            orders,
        } = opened;
        let Some(zone) = self.members.admit(&host, &hello) else {
            return;
        };
        if !self.know(now, &host, &zone) {
            return;
        }
        self.staging.connected(&host, &hello);
        let effects = self.members.open(
            (now, SystemTime::now()),
            &host,
            (session, orders),
            (&hello, remote),
            &self.config.peer_networks,
        );
        self.carry(now, effects);
        self.reporting(now, &host).images((&hello.images, true), 0);
        if let Some(limits) = self.limited.bandwidth() {
            self.order(now, &host, bandwidth(limits));
        }
        if let Some(limits) = self.members.rosters().shunned() {
            self.order(now, &host, limits);
        }
    }

    /// A session ended. A session that was replaced ends late: its end says nothing about the host's current session.
    fn close(&mut self, now: Moment, host: &HostId, session: u64) {
        if self.members.close(now, host, session) {
            self.disconnected(now, host);
        }
    }

    /// The host has no session any more.
    fn disconnected(&mut self, now: Moment, host: &HostId) {
        self.staging.disconnected(host);
        self.mirror.disconnected(now, host, &mut self.plan);
        self.plan.handle(now, Event::HostDisconnected(host.clone()));
    }

    /// The parts that a host's report concerns.
    const fn reporting<'a>(&'a mut self, now: Moment, host: &'a HostId) -> Reporting<'a> {
        Reporting {
            now,
            host,
            plan: &mut self.plan,
            members: &mut self.members,
            staging: &mut self.staging,
            mirror: &mut self.mirror,
            blames: &mut self.blames,
        }
    }

    // ---- wants -----------------------------------------------------------------------------------------------------

    fn answer(&mut self, now: Moment, ask: Ask) {
        match ask {
            Ask::Stage { want, reply } => match self.stage(now, *want) {
                Ok((image, short_of_room)) => {
                    self.act(now);
                    self.tell_names(now);
                    let status = self.plan.status(now);
                    let Some(view) = self.facts(now).image_by(&image, &status) else {
                        return;
                    };
                    self.show(now);
                    let staged = StageReply {
                        image: view,
                        short_of_room,
                    };
                    let want = self.staging.images().asked(&image);
                    if let Some(want) = want {
                        self.write(Write::Want(Box::new(want), Answer::new(reply, staged)));
                    }
                }
                Err(error) => drop(reply.send(Err(error))),
            },
            Ask::Cancel { name, reply } => match self.staging.cancel(self.members.at(now), &name) {
                Ok((image, cancelled, effects)) => {
                    self.carry(now, effects);
                    self.act(now);
                    self.tell_names(now);
                    self.show(now);
                    let answer = Answer::new(reply, cancelled);
                    self.write(match self.staging.images().asked(&image) {
                        Some(want) => Write::Less(Box::new(want), answer),
                        None => Write::Drop(image, answer),
                    });
                }
                Err(error) => drop(reply.send(Err(error))),
            },
            Ask::Bandwidth { limits, reply } => {
                self.limited.ask(limits);
                self.order_bandwidth(now);
                self.write(Write::Bandwidth(limits, Answer::new(reply, ())));
            }
            Ask::Place {
                wants,
                limits,
                whole,
            } => {
                self.limit(now, limits);
                let effects = self.staging.place(self.members.at(now), wants);
                self.carry(now, effects);
                self.predict();
                if whole {
                    self.staging.placed();
                }
                self.wants_may_be_known(now);
                self.act(now);
                self.show(now);
            }
            Ask::Urge(image) => {
                info!(%image, "the cluster asks for an image anew");
                self.urge(now, image);
                self.act(now);
                self.show(now);
            }
            Ask::Used(users) => {
                let orders = self.members.retention_mut().used(users);
                self.send(now, orders);
            }
            Ask::OldImages { hosts, rule, reply } => {
                let orders = self
                    .members
                    .ask_old_images(now, hosts.as_ref(), rule, reply);
                self.send(now, orders);
            }
            Ask::Preview { want, reply } => {
                drop(reply.send(self.preview().of(&want)));
            }
            Ask::Places(ask) => {
                let known = places::Known::new(&self.members, self.staging.images());
                let effects = self.places.answer(Clocks::at(now), known, ask);
                self.carry(now, effects);
            }
        }
    }

    fn preview(&self) -> Preview<'_> {
        let limits = self.limited.bandwidth().unwrap_or_default();
        Preview::new(&self.members, &self.staging, self.config.rates, limits)
    }

    /// Keeps with each want whose staging has just begun what it is predicted to move.
    fn predict(&mut self) {
        for (image, predicted) in self.preview().of_new() {
            self.staging.predicted(&image, predicted);
        }
    }

    fn stage(&mut self, now: Moment, want: Want) -> Result<(Digest, Vec<ShortOfRoom>), StageError> {
        let image = want.digest();
        let (hosts, membership) = (self.members.hosts(), self.members.membership());
        let selected = selected(hosts, membership, want.hosts.as_ref())?;
        self.staging.images().admit(&want)?;
        let short = self.preview().short_of_room(&want, &selected)?;
        for host in &short {
            warn!(
                host = host.host,
                %image,
                needed_bytes = host.needed_bytes,
                before_bytes = host.before_bytes,
                free_bytes = host.free_bytes,
                floor_bytes = host.floor_bytes,
                "host lacks room by the coordinator's figures"
            );
        }
        let reference = want.references.first().map_or("", String::as_str);
        info!(%image, reference, hosts = selected.len(), "image is wanted");
        self.enter(now, want);
        self.predict();
        self.urge(now, image);
        Ok((image, short))
    }

    /// Operators want this image, under each reference on the hosts that the want names for that reference.
    fn enter(&mut self, now: Moment, want: Want) {
        let effects = self.staging.enter(self.members.at(now), want);
        self.carry(now, effects);
    }

    /// Somebody asks for an image again.
    fn urge(&mut self, now: Moment, image: Digest) {
        let hosts = self.members.hosts_mut();
        let effects = self.staging.urge(now, hosts, image);
        self.carry(now, effects);
    }

    /// Tells the plan once all that was wanted before this start is known.
    fn wants_may_be_known(&mut self, now: Moment) {
        if self.staging.images().are_known() {
            self.plan.handle(now, Event::WantsKnown);
            self.members.presence_mut().names_changed();
        }
    }

    /// Takes the limits of the cluster's objects: bandwidth, and how many contents may be leased at one time.
    fn limit(&mut self, now: Moment, limits: Limits) {
        let change = self.limited.place(limits);
        if let Some(streams) = change.origin_streams {
            let origin_streams = streams.unwrap_or(self.config.plan.origin_streams);
            info!(
                origin_streams,
                "cluster changes how many read from the registry"
            );
            self.plan.handle(now, Event::Limited { origin_streams });
        }
        if change.bandwidth {
            self.order_bandwidth(now);
        }
    }

    /// Tells every host its bandwidth limits.
    fn order_bandwidth(&mut self, now: Moment) {
        let limits = self.limited.bandwidth().unwrap_or_default();
        self.send(now, self.members.to_all(bandwidth(limits)));
    }

    fn ask_for_tokens(&mut self, now: Moment) {
        for ask in self.staging.tokens_due(now) {
            self.jobs.spawn(ask.answered(self.registries.clone()));
        }
    }

    // ---- what is shown and kept ------------------------------------------------------------------------------------

    /// Publishes a fresh view and sets the gauges.
    fn show(&mut self, now: Moment) {
        let status = self.plan.status(now);
        let quarantined = status.quarantined.iter().cloned().collect();
        let orders = self.members.shun(now, quarantined);
        self.send(now, orders);
        let mut view = self.facts(now).view(&status);
        self.note_staged(now, &mut view);
        let effects = self.staging.look(now, &self.members);
        self.carry(now, effects);
        self.facts(now).measure(&self.metrics, &view, &status);
        self.views.publish(view);
    }

    fn facts(&self, now: Moment) -> Facts<'_> {
        Facts {
            now,
            membership: self.members.membership(),
            hosts: self.members.hosts(),
            sessions: self.members.sessions(),
            presence: self.members.presence(),
            images: self.staging.images(),
            leases: self.staging.leases(),
            rosters: self.members.rosters(),
            blames: &self.blames,
            refusals: self.members.refusals(),
        }
    }

    /// Notes the first time that an image is on every selected host: in the metrics, in the log and on disk. After a
    /// restart the time is still known, and isn't counted again.
    fn note_staged(&mut self, now: Moment, view: &mut View) {
        for (image, shown) in &mut view.images {
            if shown.state != ImageState::Present {
                continue;
            }
            let Some(took) = self.staging.everywhere(now, image) else {
                continue;
            };
            self.metrics.stage_seconds.observe(took.as_secs_f64());
            let reference = shown.references.first().map_or("", String::as_str);
            info!(%image, reference, hosts = shown.hosts_present, elapsed_ms = proto::millis(took), "image is staged everywhere");
            Arc::make_mut(shown).staged_seconds = Some(took.as_secs_f64());
            if let Some(want) = self.staging.images().asked(image) {
                self.write(Write::Want(Box::new(want), Answer::none()));
            }
        }
    }

    fn write(&self, write: Write) {
        if let Err(error) = self.writer.try_send(write) {
            // The answer in `write` is dropped too. The asker learns of the failure by that.
            error!(%error, "state couldn't be queued for writing; a restart may forget the last changes");
        }
    }
}
