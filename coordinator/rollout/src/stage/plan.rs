//! The plan gives each event to its parts, always in the same order, and hands out the actions that follow.
//!
//! Each part owns one kind of state: `hosts`, `images`, `contents` (with `parts`, `receipts`, `tries` and `words`),
//! `leases`, `origins` (with `wishes`), `records` (how each host's leases ended), `neighbours`, and the `clock`. `view`
//! answers questions that need several parts, and changes none of them.
//!
//! Each decision takes only the parts that it needs. `grants` chooses the next leases. `leasing` follows leases until
//! they end. `trouble` handles registries that fail or recover. `witness` decides whose word about progress is
//! believed, and `recipes` whose word against a recipe is. `standings` says what follows from a host's report about an
//! image, and `orders` what hosts are told to do with one. `sequences` says in which order each
//! host is to finish its images. `audit` looks for contents that may be nowhere. `report`
//! describes where everything stands.

mod audit;
mod chance;
mod charges;
mod clock;
mod contents;
mod desk;
mod effects;
mod grants;
mod graph;
mod hosts;
mod images;
mod leases;
mod leasing;
mod neighbours;
mod orders;
mod origins;
mod parts;
mod receipts;
mod recipes;
mod records;
mod report;
mod sequences;
#[cfg(test)]
mod stand;
mod standings;
mod tries;
mod trouble;
mod view;
mod wishes;
mod witness;
mod words;

use alloc::{collections::BTreeSet, string::String, vec::Vec};
use core::time::Duration;

use proto::{ChunkRange, Digest, HostId, Moment, statement::Contradiction};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;

use self::{
    clock::Clock,
    contents::{ContentState, Contents},
    desk::Desk,
    effects::Effects,
    hosts::{Hosts, Known},
    images::{Image, Images, Order},
    leases::Leases,
    leasing::{Progress, Refuted},
    neighbours::Neighbours,
    origins::Origins,
    records::Records,
    sequences::Sequences,
    view::View,
};
use super::{
    Action, Config, Event, RecipeLoss, RevokeCause, Status,
    event::{LeaseEnd, Standing},
};

/// For this long after a start, any host may have fetched contents under a lease of an earlier coordinator. A fetch is
/// over within this time, and the host has then found out whether the registry's bytes were false.
const FORMER_HOLDERS: Duration = Duration::from_mins(10);
/// For this long after a start, hosts say again what they found against recipes under an earlier coordinator: they have
/// sessions within seconds, and the registry is asked for the images meanwhile.
const EARLIER_DOUBTS: Duration = Duration::from_mins(2);
/// The interval of looks at leases and absent hosts, while there is something to do.
const TICK: Duration = Duration::from_millis(500);

/// The coordinator's plan: which host stages which content.
#[derive(Debug)]
pub struct Plan {
    config: Config,
    seed: u64,
    rng: ChaCha8Rng,
    clock: Clock,
    tick_at: Moment,
    effects: Effects,

    hosts: Hosts,
    neighbours: Neighbours,
    images: Images,
    contents: Contents,
    leases: Leases,
    origins: Origins,
    records: Records,
    sequences: Sequences,

    /// All wanted images are known: an image that isn't among `images` isn't wanted.
    wants_known: bool,
    grants_not_before: Moment,
}

impl Plan {
    /// An empty plan: no hosts, no images.
    #[must_use]
    pub fn new(config: Config, seed: u64) -> Self {
        Self {
            neighbours: Neighbours::new(config.neighbours, config.far_neighbours),
            config,
            seed,
            rng: ChaCha8Rng::seed_from_u64(seed),
            clock: Clock::default(),
            tick_at: Moment::START,
            effects: Effects::default(),
            hosts: Hosts::default(),
            images: Images::default(),
            contents: Contents::new(),
            leases: Leases::default(),
            origins: Origins::default(),
            records: Records::default(),
            sequences: Sequences::default(),
            wants_known: false,
            grants_not_before: Moment::START,
        }
    }

    /// Applies an event. Any event is legal in any state. `now` shouldn't go back; where it does, the latest moment
    /// seen counts.
    ///
    /// A caller that comes more than a second after [`next_timeout`](Self::next_timeout) was held up, and the hosts'
    /// messages of that time are still to come. So the plan's clock leaves the time beyond that second out.
    pub fn handle(&mut self, now: Moment, event: Event) {
        let due = self.due();
        let own = self.clock.hear(now, due);
        self.note(own, event);
    }

    /// Does what [`handle`](Self::handle) does. `now` is by the plan's own clock.
    fn note(&mut self, now: Moment, event: Event) {
        self.clock.pass(now);
        let now = self.clock.now();
        let tick = self.tick_at <= now;
        if tick {
            self.hosts.forget_old_charges(now, &self.config);
        }
        self.apply(event);
        for host in self.neighbours.take_due(now) {
            self.tell_neighbours(&host);
        }
        if tick {
            self.tick_at = now + TICK;
            self.look();
        }
        self.drop_recipes();
        self.tell_sequences();
        if self.effects.take_ask_for_grants() && now >= self.grants_not_before {
            leasing::grant(&mut self.desk());
        }
    }

    /// The next action for the shell. Call this until it returns `None`, after every [`handle`](Self::handle).
    pub fn poll(&mut self) -> Option<Action> {
        self.effects.next()
    }

    /// When [`Event::Tick`] is due, by the caller's clock, if no other event comes before.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Moment> {
        Some(self.clock.callers(self.due()?))
    }

    fn due(&self) -> Option<Moment> {
        let busy = !self.images.is_empty() || self.hosts.quarantined().next().is_some();
        let tick = busy.then_some(self.tick_at);
        match (tick, self.neighbours.due()) {
            (Some(tick), Some(neighbours)) => Some(tick.min(neighbours)),
            (tick, neighbours) => tick.or(neighbours),
        }
    }

    // ---- questions --------------------------------------------------------------------------------------------------

    /// Where everything stands.
    #[must_use]
    pub fn status(&self, now: Moment) -> Status {
        let now = self.clock.at(now);
        report::status(View { now, ..self.view() })
    }

    /// Whether a content is part of a wanted image.
    #[must_use]
    pub fn knows(&self, content: &Digest) -> bool {
        self.contents.contains(content)
    }

    /// The raw bytes of a content that is part of a wanted image.
    #[must_use]
    pub fn size_of(&self, content: &Digest) -> Option<u64> {
        self.contents.get(content).map(|content| content.size())
    }

    /// Whether this host has the lease of a content now. Only the lease's holder is heard about how the fetch goes.
    #[must_use]
    pub fn holds_lease(&self, host: &HostId, content: &Digest) -> bool {
        self.leases.holds(content, host)
    }

    /// Whether this host has the lease of these chunks of a content now; `None`: of all chunks. Words about another
    /// range than the one that the host has say nothing.
    #[must_use]
    pub fn has_lease(&self, host: &HostId, content: &Digest, range: Option<ChunkRange>) -> bool {
        let lease = self.leases.of(content, host);
        lease.is_some_and(|lease| lease.range() == range)
    }

    /// Whether a host whose client waits for this content should go on waiting. It should while chunks of the content
    /// reach any host, or while the content is queued and chunks of other contents come. Otherwise the host does better
    /// to fetch the content by itself.
    #[must_use]
    pub fn is_coming(&self, host: &HostId, content: &Digest) -> bool {
        self.view().is_coming(host, content)
    }

    /// Whether [`Event::Retracted`] has an effect now: the host may have made links of this content, and hasn't taken
    /// back too much lately.
    #[must_use]
    pub fn takes_retraction(&self, now: Moment, host: &HostId, content: &Digest) -> bool {
        self.contents.contains(content)
            && self.may_have_made(host, content)
            && self.hosts.may_retract(now, host, &self.config)
    }

    /// Whether [`Event::RecipeDoubted`] has an effect also from a host that doesn't have the content's lease. The host
    /// may have had the lease under an earlier coordinator, which knew of the doubt.
    #[must_use]
    pub fn hears_of_earlier_doubts(&self) -> bool {
        let now = self.clock.now();
        let recent = |started| now.since(started) < EARLIER_DOUBTS;
        self.clock.started().is_none_or(recent)
    }

    /// Whether a host may have made links of a content, because it had a lease of the content, perhaps from an earlier
    /// coordinator.
    fn may_have_made(&self, id: &HostId, digest: &Digest) -> bool {
        let content = self.contents.get(digest);
        let leased = content.is_some_and(|content| content.tries().was_leased_to(id));
        let now = self.clock.now();
        let recent = |started| now.since(started) < FORMER_HOLDERS;
        leased || self.clock.started().is_none_or(recent)
    }

    const fn view(&self) -> View<'_> {
        View {
            now: self.clock.now(),
            config: &self.config,
            seed: self.seed,
            hosts: &self.hosts,
            images: &self.images,
            contents: &self.contents,
            leases: &self.leases,
            origins: &self.origins,
            records: &self.records,
        }
    }

    const fn desk(&mut self) -> Desk<'_> {
        Desk {
            now: self.clock.now(),
            config: &self.config,
            seed: self.seed,
            hosts: &self.hosts,
            images: &self.images,
            contents: &mut self.contents,
            leases: &mut self.leases,
            origins: &mut self.origins,
            records: &mut self.records,
            rng: &mut self.rng,
            effects: &mut self.effects,
        }
    }

    // ---- events -----------------------------------------------------------------------------------------------------

    fn apply(&mut self, event: Event) {
        match event {
            Event::HostKnown { host, zone } => self.know(&host, zone),
            Event::HostForgotten(host) => self.forget(&host),
            Event::HostConnected(host) => self.connected(&host),
            Event::TakesRanges(host) => self.hosts.take_ranges(&host),
            Event::HostDisconnected(host) => self.hosts.disconnect(self.clock.now(), &host),
            Event::Wanted {
                image,
                references,
                contents,
                recipe,
                hosts,
                paused,
                purpose,
            } => self.want(Order::new(
                image,
                references,
                (contents, recipe),
                (hosts, paused),
                purpose,
            )),
            Event::Ranked {
                image,
                priority,
                asked_ms,
                awaited,
            } => self.rank(&image, (priority, asked_ms), awaited),
            Event::Cancelled(image) => self.cancel(&image),
            Event::Urged(image) => self.urge(&image),
            Event::WantsKnown => self.know_wants(),
            Event::Reported {
                host,
                image,
                standing,
                held_bytes,
            } => self.reported(&host, image, standing, held_bytes),
            Event::LeaseProgress {
                host,
                content,
                range,
                chunks,
                bytes,
                paced,
                trouble,
            } => {
                let said = Progress {
                    range,
                    chunks,
                    bytes,
                    paced,
                    trouble,
                };
                leasing::progress(&mut self.desk(), &host, content, said);
            }
            Event::LeaseEnded {
                host,
                content,
                range,
                end,
            } => self.lease_ended(&host, (content, range), end),
            Event::LeasesClaimed { host, leases } => {
                leasing::drop_lost(&mut self.desk(), &host, &leases);
            }
            Event::WithoutSource { host, contents } => self.lacks_source(&host, contents),
            Event::Holds { host, contents } => self.holds(&host, &contents),
            Event::Blamed { by, host } => self.blamed(&by, &host),
            Event::FalseLink {
                by,
                maker,
                vouched: true,
                ..
            } => self.blamed(&by, &maker),
            Event::FalseLink {
                by, maker, content, ..
            } => self.found_false(&by, &maker, content),
            Event::Contradicted { maker, says } => self.contradicted(&maker, says),
            Event::Retracted {
                host,
                content,
                from,
            } => self.retracted(host, content, from),
            Event::RecipeDoubted {
                host,
                image,
                content,
                chunk,
            } => {
                let told_again = self.hears_of_earlier_doubts();
                let desk = &mut self.desk();
                recipes::doubted(desk, (&host, told_again), image, content, chunk);
            }
            Event::OtherRecipe(image) => self.forget_words(&image),
            Event::Limited { origin_streams } => self.limit(origin_streams),
            Event::Tick => {}
        }
    }

    fn lease_ended(&mut self, holder: &HostId, of: (Digest, Option<ChunkRange>), end: LeaseEnd) {
        if let Some(refuted) = leasing::ended(&mut self.desk(), holder, of, end) {
            self.refuted(refuted);
        }
    }

    fn limit(&mut self, origin_streams: usize) {
        self.config.origin_streams = origin_streams.max(1);
        self.effects.ask_for_grants();
    }

    /// Does what is due because time has passed.
    fn look(&mut self) {
        let now = self.clock.now();
        for id in self.hosts.release(now) {
            self.join(&id);
        }
        let desk = &mut self.desk();
        witness::weigh(desk);
        trouble::judge_all(desk);
        leasing::expire(desk);
        witness::expire_unseen(desk);
        leasing::give_ranges_up(desk);
        self.audit();
        self.effects.ask_for_grants();
    }

    /// Leases contents again that may be nowhere.
    fn audit(&mut self) {
        let now = self.clock.now();
        if audit::is_still(self.view()) {
            let lacking = audit::lacking(self.view());
            self.contents.moved(now);
            let lacking = Vec::from_iter(lacking);
            self.contents.each(lacking, |content| content.doubt(now));
        }
        let doubtful = audit::without_source(self.view());
        self.contents.each(doubtful, |content| content.doubt(now));
    }

    // ---- hosts ------------------------------------------------------------------------------------------------------

    fn know(&mut self, id: &HostId, zone: String) {
        let now = self.clock.now();
        match self.hosts.know(now, id, zone) {
            Known::Before => {}
            Known::Moved => {
                self.neighbours.leave(now, id);
                self.join(id);
            }
            Known::New => self.join(id),
        }
    }

    /// Gives a host neighbours, unless the fleet shuns the host.
    fn join(&mut self, id: &HostId) {
        if let Some(host) = self.hosts.get(id).filter(|host| host.is_trusted()) {
            let now = self.clock.now();
            self.neighbours.join(now, id, host.zone(), &mut self.rng);
        }
    }

    fn forget(&mut self, id: &HostId) {
        if !self.hosts.contains(id) {
            return;
        }
        leasing::drop_all_of(&mut self.desk(), id, false);
        self.neighbours.leave(self.clock.now(), id);
        self.hosts.forget(id);
        self.images.forget_host(id);
        self.contents.forget_host(id);
        self.records.forget(id);
        self.sequences.forget(id);
    }

    fn connected(&mut self, id: &HostId) {
        let now = self.clock.now();
        if !self.hosts.contains(id) {
            self.know(id, String::new());
        }
        if !self.hosts.connect(now, id) {
            return;
        }
        self.effects.ask_for_grants();
        self.neighbours.told(id);
        self.tell_neighbours(id);
        orders::greet(&mut self.desk(), id);
        self.sequences.connected(id);
    }

    /// Tells hosts in which order to finish their images, where that has changed.
    fn tell_sequences(&mut self) {
        // an order that lacks images would have them give way to those that it names
        if !self.wants_known {
            return;
        }
        for (host, images) in self.sequences.take_due(&self.images, &self.hosts) {
            self.effects.push(Action::Sequence { host, images });
        }
    }

    fn tell_neighbours(&mut self, id: &HostId) {
        if self.hosts.is_connected(id) {
            self.effects.push(Action::Neighbours {
                host: id.clone(),
                neighbours: self.neighbours.of(id),
            });
        }
    }

    // ---- trust ------------------------------------------------------------------------------------------------------

    fn blamed(&mut self, by: &HostId, id: &HostId) {
        let now = self.clock.now();
        if self.hosts.blame(now, by, id, &self.config) {
            self.quarantine(id);
        }
    }

    fn found_false(&mut self, by: &HostId, maker: &HostId, content: Digest) {
        if !self.contents.contains(&content) {
            return;
        }
        let images = &self.images;
        // Every host that stages the content finds a false link once its copy is whole. Counting those hosts keeps a
        // few of them from accusing the others first and getting all leases.
        let can_know = |hosts: &Hosts| {
            let with_it = images.iter().filter(|image| image.has(&content));
            let on = with_it.flat_map(|image| image.selected(hosts));
            let others = on.filter(|id| id != maker && hosts.is_here(id));
            others.collect::<BTreeSet<HostId>>().len()
        };
        let now = self.clock.now();
        self.hosts
            .find_false(now, (by, maker), content, can_know, &self.config);
    }

    /// A host says that what it made of a content is false from this chunk on, so all hosts drop those chunks at once.
    /// This is no amnesty: the host's signatures still count against it.
    fn retracted(&mut self, maker: HostId, content: Digest, from: u32) {
        let now = self.clock.now();
        if self.takes_retraction(now, &maker, &content) {
            self.hosts.retract(now, &maker, &self.config);
            self.effects.push(Action::Retract {
                maker,
                content,
                from,
            });
        }
    }

    /// Signed proof against a maker. Links that are only false may be the registry's fault.
    fn contradicted(&mut self, maker: &HostId, says: Contradiction) {
        match says {
            Contradiction::Lie => self.quarantine(maker),
            Contradiction::False => {
                let now = self.clock.now();
                self.hosts.put_last(now, maker, &self.config);
            }
        }
    }

    fn quarantine(&mut self, id: &HostId) {
        let now = self.clock.now();
        if !self.hosts.quarantine(now, id, &self.config) {
            return;
        }
        self.effects.push(Action::Quarantine(id.clone()));
        leasing::drop_all_of(&mut self.desk(), id, true);
        self.neighbours.leave(now, id);
        self.tell_neighbours(id);
        self.contents.forget_host(id);
    }

    // ---- images -----------------------------------------------------------------------------------------------------

    fn want(&mut self, order: Order) {
        let (now, digest) = (self.clock.now(), order.image);
        let change = self.images.order(now, order, &self.hosts);
        if change.is_new {
            if let Some(image) = self.images.get(&digest) {
                self.contents.want(now, image.specs());
            }
            self.settle();
        }
        self.recipe_ordered(&digest, change.old_recipe);
        if change.moved {
            self.urge(&digest);
        }
        self.contents.moved(now);
        self.effects.ask_for_grants();
        self.tick_at = self.tick_at.min(now + TICK);
        orders::change(&mut self.desk(), digest, change);
        self.sequences.changed();
        self.desk().revoke_pointless();
    }

    fn rank(&mut self, image: &Digest, urgency: (i32, u64), awaited: Vec<HostId>) {
        let awaited = awaited.into_iter().collect();
        if self.images.rank(image, urgency, awaited) {
            self.sequences.changed();
            self.effects.ask_for_grants();
        }
    }

    fn know_wants(&mut self) {
        self.wants_known = true;
        self.sequences.changed();
    }

    /// An order names an image's recipe; `old` is the recipe before, where it is another.
    fn recipe_ordered(&mut self, digest: &Digest, old: Option<Digest>) {
        if let Some(old) = old {
            self.forget_recipe(digest, &old);
        }
        let recipe = self.images.get(digest).and_then(Image::recipe);
        if let Some(recipe) = recipe {
            self.contents.want_recipe(self.clock.now(), &recipe);
        }
        // any image may need a content that is the recipe of another
        let unfit = self.images.iter().filter_map(|image| {
            let recipe = image.recipe()?;
            let known = self.contents.get(&recipe.digest);
            let fits = known.is_some_and(|known| known.size() == recipe.size);
            (!fits).then(|| (image.digest(), recipe.digest, RecipeLoss::Size))
        });
        for lost in Vec::from_iter(unfit) {
            self.effects.lose_recipe(lost);
        }
    }

    /// Goes on without the recipes that can't be had.
    fn drop_recipes(&mut self) {
        for (image, recipe, cause) in self.effects.take_lost_recipes() {
            if self.images.drop_recipe(&image, &recipe) {
                self.forget_recipe(&image, &recipe);
                self.effects.push(Action::DropRecipe {
                    image,
                    recipe,
                    cause,
                });
            }
        }
    }

    /// Forgets what was this image's recipe, and ends its lease, unless another image has the same content.
    fn forget_recipe(&mut self, image: &Digest, recipe: &Digest) {
        self.forget_words(image);
        let used = self.images.iter().any(|image| image.has(recipe));
        self.desk().revoke_pointless();
        self.contents.forget_recipe(recipe, used, image);
    }

    /// Forgets what hosts said against this image's recipe.
    fn forget_words(&mut self, image: &Digest) {
        if let Some(of) = self.images.get(image) {
            let contents = of.contents().iter().copied();
            let forget = |content: &mut ContentState| content.words_mut().forget_image(image);
            self.contents.each(contents, forget);
        }
    }

    fn cancel(&mut self, digest: &Digest) {
        let Some(image) = self.images.cancel(digest) else {
            return;
        };
        for host in image.selected(&self.hosts).iter().chain(image.keepers()) {
            orders::cancel(&mut self.desk(), host.clone(), *digest);
        }
        self.desk().revoke_pointless();
        self.contents.keep(&self.images.contents(), digest);
        self.leases.forget_image(digest);
        self.settle();
        self.sequences.changed();
        self.forget_origins();
    }

    /// Forgets what was found wrong with an image's contents, because asking for the image anew has a reason.
    fn urge(&mut self, digest: &Digest) {
        let Some(image) = self.images.get(digest) else {
            return;
        };
        self.contents
            .each(image.fetched(), |content| content.tries_mut().urge(digest));
        self.records.all_able(image.registry());
        self.effects.ask_for_grants();
    }

    /// The registry's bytes don't match what an image says of a content. Where another image gives that content another
    /// size, that size is tried next.
    fn refuted(&mut self, refuted: Refuted) {
        if self.images.disprove(refuted.content, &refuted.image) {
            self.settle();
        }
        self.desk().revoke_pointless();
    }

    /// Recomputes which images contradict earlier ones, and goes on with images that no longer do.
    fn settle(&mut self) {
        let now = self.clock.now();
        let settled = self.images.settle();
        // a host has one size of a content at a time
        for digest in settled.stopped {
            let image = self.images.get(&digest);
            for host in image.map_or_else(Vec::new, |image| image.selected(&self.hosts)) {
                orders::cancel(&mut self.desk(), host, digest);
            }
        }
        let followed = self.images.iter().filter(|of| of.contradicts().is_none());
        let specs = followed.flat_map(|image| image.specs().iter().copied());
        let sized = specs.filter(|of| {
            let known = self.contents.get(&of.digest);
            known.is_none_or(|known| known.size() != of.size)
        });
        for content in Vec::from_iter(sized) {
            self.desk().revoke_all(content.digest, RevokeCause::Ended);
            self.contents.replace(now, &content);
        }
        for image in settled.freed {
            orders::stage(&mut self.desk(), image);
            self.effects.ask_for_grants();
        }
    }

    /// Forgets registries and repositories that no image uses, once nothing about them needs to be remembered.
    fn forget_origins(&mut self) {
        let now = self.clock.now();
        let images = self.images.iter();
        let mut used: BTreeSet<&str> = images
            .flat_map(|image| [image.registry(), image.repository()])
            .collect();
        self.records.keep_registries(&used);
        used.extend(self.leases.iter().map(|(_, lease)| lease.repository()));
        let contents = &self.contents;
        self.origins
            .forget(now, &used, |content| contents.contains(content));
    }

    // ---- reports ----------------------------------------------------------------------------------------------------

    fn lacks_source(&mut self, id: &HostId, contents: Vec<Digest>) {
        let known = &self.contents;
        let contents = contents.into_iter().filter(|of| known.contains(of));
        self.hosts.lack_source(self.clock.now(), id, contents);
    }

    fn holds(&mut self, id: &HostId, contents: &[(Digest, u32)]) {
        if let Some(fresh) = self.hosts.counted(id) {
            witness::count(&mut self.desk(), id, fresh, contents);
        }
    }

    fn reported(&mut self, id: &HostId, digest: Digest, standing: Standing, held_bytes: u64) {
        if !self.hosts.contains(id) {
            return;
        }
        let now = self.clock.now();
        let known = self.wants_known;
        standings::clear_leftover(&mut self.desk(), id, digest, standing, known);
        let news = self.images.report(now, (id, &digest), standing, held_bytes);
        let Some(news) = news else { return };
        // hosts that count chunks show by their counts what other hosts get
        if news.before != Some((standing, held_bytes)) && !self.hosts.counts(id) {
            self.contents.moved(now);
        }
        if news.is_change(standing) {
            self.effects.ask_for_grants();
        }
        standings::learn(&mut self.desk(), id, digest, standing, (&news, held_bytes));
        // A host that comes with parts of the image was in the fleet before. Let the other hosts connect and announce
        // what they hold before the registry is asked.
        if news.before.is_none()
            && held_bytes > 0
            && let Some(started) = self.clock.started()
        {
            let settled = started + self.config.settle;
            if now < settled {
                self.grants_not_before = settled;
            }
        }
    }
}

#[cfg(test)]
mod tests;
