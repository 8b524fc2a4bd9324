//! The supply of contents on this host: images and clients of the mirror want contents, and the exchange gets them.
//!
//! [`Supply`] joins [`Images`], [`Mirror`] and [`Exchange`]. A change of one may concern the two others: an image that
//! is taken up brings contents into the exchange, a content that is verified moves images on and goes to the mirror's
//! clients, a fetch needs somebody's way to reach the registry. This part carries out what each of the three wants of
//! the others. Work for the loop (jobs, reports) comes out of [`Supply::poll`].

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use proto::{
    ChunkIndex, ChunkSet, Digest, Geometry, HostId, Moment, Reason, Signed,
    image::Layout,
    message::{BlameKind, ImageState, MirrorQueue},
    recipe::Doubt,
};
use swarm::event::ContentId;
use tracing::{debug, info};

use super::{
    blob_cache,
    contents::{Content, Terms},
    disk::{self, Disk},
    exchange::{self, Errand, Exchange},
    handles::Real,
    image::NoRecipe,
    image_news::ImageNews,
    images::{self, Images, Left},
    input::Input,
    jobs::Work,
    look::Seen,
    mirror::{self, Mirror},
    origins::FetchWanted,
    recipe_asks::RecipeAsks,
    trouble::{Trouble, Unbegun},
};
use crate::{
    metrics::{Metrics, OutcomeLabel},
    mirror::{Wish, blob::Blob},
    shelf::Shelf,
    store::{self, InstallError, Stage, recipes::NamedRecipe},
};

/// Work for the loop, after this part heard something.
pub(super) enum Effect {
    /// Run this beside the loop.
    Run(Work),
    /// Do this beside the loop.
    Errand(Errand),
    /// Apply this input, after the effects before it.
    Hear(Input),
    /// Tell the coordinator that a host sent something false. Only the two hosts saw it.
    Blame {
        host: HostId,
        content: Option<Digest>,
        chunk: ChunkIndex,
        kind: BlameKind,
    },
    /// Show the coordinator these links. Their signers lied.
    Convict(Vec<Signed>),
    /// Tell the coordinator that this host takes back the links that it made of a content, from a chunk on.
    TakeBack { content: Digest, from: ChunkIndex },
    /// Tell the coordinator that the registry's bytes don't fit a recipe.
    Doubt(Doubt),
    /// A peer says that this chunk, which this host sent, is false.
    Look { content: Digest, chunk: ChunkIndex },
    /// The ticket of this content's lease is of no use any more.
    ForgetTicket(Digest),
    /// A chunk was stored, and no journal vouches for it yet. It belongs into the next report.
    Stored,
    /// Something changed that belongs into the next report.
    ReportSoon,
    /// Something changed that others wait for.
    ReportNow,
    /// Report everything at once: the coordinator believes something that isn't so.
    ReportAll,
}

/// See the [module](self).
pub(super) struct Supply {
    exchange: Exchange,
    images: Images,
    mirror: Mirror,
    disk: Disk,
    metrics: Metrics,
    /// The recipes that this host was asked to make.
    asks: RecipeAsks,
    epoch: Instant,
    /// The time of everything that is heard now.
    now: Instant,
    effects: VecDeque<Effect>,
}

impl Supply {
    pub(super) fn new(
        exchange: Exchange,
        mirror: Mirror,
        disk: Disk,
        metrics: Metrics,
        epoch: Instant,
    ) -> Self {
        Self {
            exchange,
            images: Images::default(),
            mirror,
            disk,
            metrics,
            asks: RecipeAsks::default(),
            epoch,
            now: epoch,
            effects: VecDeque::new(),
        }
    }

    // ---- the loop ---------------------------------------------------------------------------------------------------

    /// Sets the time of everything that is heard from now on.
    pub(super) const fn set_now(&mut self, now: Instant) {
        self.now = now;
        self.exchange.set_now(now);
    }

    pub(super) fn now(&self) -> Moment {
        self.moment(self.now)
    }

    fn moment(&self, at: Instant) -> Moment {
        let since = at.saturating_duration_since(self.epoch);
        Moment(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    /// When something is to be done next, if nothing is heard before.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let images = self.images.reconciler().due();
        let due = [
            self.exchange.next_timeout(),
            images.map(|at| self.epoch + at.since(Moment::START)),
            self.mirror.next_look(),
        ];
        due.into_iter().flatten().min()
    }

    /// The next effect, in order. `None` once nobody here wants anything more.
    pub(super) fn poll(&mut self) -> Option<Effect> {
        while self.effects.is_empty() {
            match self.exchange.poll() {
                Some(effect) => self.act_for_exchange(effect),
                None => break,
            }
        }
        self.effects.pop_front()
    }

    /// Looks at the wants of the mirror's clients, if that is due.
    pub(super) fn look_at_wants(&mut self) {
        if self.mirror.next_look().is_some_and(|look| self.now >= look) {
            let effects = self.mirror.look(self.now, self.exchange.contents());
            self.act_for_mirror(effects);
        }
    }

    /// Begins the jobs that images need next.
    pub(super) fn begin_jobs(&mut self) {
        self.images.begin_jobs(self.now());
        self.follow_images();
    }

    pub(super) const fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    pub(super) const fn exchange_mut(&mut self) -> &mut Exchange {
        &mut self.exchange
    }

    pub(super) const fn images(&self) -> &Images {
        &self.images
    }

    /// After each change of images, call [`Supply::follow_images`].
    pub(super) const fn images_mut(&mut self) -> &mut Images {
        &mut self.images
    }

    /// The wants of the mirror's clients, for reports.
    pub(super) const fn mirror_mut(&mut self) -> &mut Mirror {
        &mut self.mirror
    }

    fn run(&mut self, work: Work) {
        self.effects.push_back(Effect::Run(work));
    }

    // ---- images -----------------------------------------------------------------------------------------------------

    /// Carries out what images want.
    pub(super) fn follow_images(&mut self) {
        while let Some(effect) = self.images.poll() {
            self.act_for_image(effect);
        }
    }

    fn act_for_image(&mut self, effect: images::Effect<Arc<Stage>>) {
        match effect {
            images::Effect::Begin {
                layout,
                manifest,
                names,
                recipe,
                in_doubt,
            } => {
                self.run(self.disk.begin(layout, manifest, names, (recipe, in_doubt)));
            }
            images::Effect::OpenRecipe { image, file } => {
                self.run(self.disk.open_recipe(image, file));
            }
            images::Effect::ReadRecipe(layout, file, stage) => {
                self.run(self.disk.read_recipe(layout, file, stage));
            }
            images::Effect::Record { image, names } => self.run(self.disk.record(image, names)),
            images::Effect::Install {
                image,
                stage,
                names,
            } => self.run(self.disk.install(image, stage, names)),
            images::Effect::Decode { stage, content } => self.run(disk::decode(stage, content)),
            images::Effect::Abandon(image) => self.run(self.disk.abandon(image)),
            images::Effect::ReadAgain { image, stage } => self.run(disk::read_again(image, stage)),
            images::Effect::TakeUp {
                image,
                layout,
                stage,
                local_bytes,
            } => self.take_up(image, &layout, &stage, local_bytes),
            images::Effect::Withdraw { image, layout } => self.withdraw(image, &layout),
            images::Effect::LeaveRecipe(image, recipe) => {
                self.exchange.withdraw(&image, Some(&recipe));
                self.run(self.disk.sweep_recipes());
            }
            images::Effect::Entitle { image, entitled } => {
                self.disk.store().take_up(&image);
                self.disk.store().entitle(image, entitled);
            }
            images::Effect::Retell { image, layout } => {
                self.retell(&layout);
                self.run(self.disk.keep_entitled(image));
            }
            images::Effect::Reorder(layout) => self.retell(&layout),
            images::Effect::SetAside(image) => self.disk.store().set_aside(&image),
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
            images::Effect::ReportSoon => self.effects.push_back(Effect::ReportSoon),
            images::Effect::ReportNow => self.effects.push_back(Effect::ReportNow),
            images::Effect::GiveUp(image) => {
                self.disk.store().give_up(image);
                self.effects.push_back(Effect::ReportAll);
            }
            images::Effect::ReportAll => self.effects.push_back(Effect::ReportAll),
        }
    }

    fn observe_staging(&self, outcome: &'static str, time: Duration) {
        let label = OutcomeLabel { outcome };
        let of_outcome = self.metrics.stage_seconds.get_or_create(&label);
        of_outcome.observe(time.as_secs_f64());
    }

    /// Takes over the images that an earlier process left in the store, and the blobs that it left in the cache. The
    /// disk is looked at before anything else, so that the first report already says which images are here.
    pub(super) fn recover(&mut self) {
        for found in self.disk.store().recovered() {
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
        self.images.look_begins();
        let seen = self.disk.see();
        self.set_now(Instant::now());
        // the findings come before what follows from them
        self.hear_store();
        self.see(&seen);
        let recovered = self.mirror.recover();
        self.act_for_mirror(recovered);
    }

    /// A stage was made ready, or can't be.
    pub(super) fn begun(&mut self, image: Digest, result: Result<(Arc<Stage>, u64), Unbegun>) {
        let layout = self.images.catalogue().layout(&image);
        let contents = self.exchange.contents();
        let contradicts = layout.and_then(|layout| contents.contradiction(layout));
        let (result, short) = match result {
            Ok(begun) => (Ok(begun), None),
            Err(Unbegun { trouble, short }) => (Err(trouble), short),
        };
        let goes_on = self.images.begun(self.now(), image, result, contradicts);
        // nothing gives way to an image that was cancelled or paused meanwhile
        if let Some(short) = short.filter(|_| goes_on) {
            self.images.short_of_room(self.now(), image, &short);
        }
    }

    /// The file of an image's recipe was opened, or can't be. Its bytes are a content like those of the image, and
    /// come first.
    pub(super) fn recipe_opened(&mut self, image: Digest, result: Result<Arc<Blob>, String>) {
        let blob = match result {
            Ok(blob) => blob,
            Err(error) => return self.recipe_read(image, Err(NoRecipe::unread(error))),
        };
        // forgotten meanwhile
        let Some(of_hosts) = self.images.catalogue().takes_recipe(&image, &blob.digest()) else {
            return;
        };
        let contents = self.exchange.contents();
        if !contents.may_be_recipe((&blob.digest(), blob.geometry()), of_hosts) {
            let error = format!(
                "{} is no recipe: something else has the name",
                blob.digest()
            );
            return self.recipe_read(image, Err(NoRecipe::unread(error)));
        }
        let effects = self.mirror.follow_image(contents, &blob.digest());
        self.act_for_mirror(effects);
        let (what, here, shelf) = of_blob(&blob);
        let (id, new) = self.exchange.add_recipe(what, (image, shelf), here);
        if new {
            self.introduce(id, 0);
        }
        if blob.is_whole() {
            return self.tell_images(&[image], ImageNews::Closed(blob.digest()));
        }
        if blob.is_unread() {
            self.run(Work::blocking(move || blob_cache::read_again(id, &blob)));
        }
        self.exchange.walk_if_whole(id);
        self.exchange.take_early_leases();
    }

    /// The coordinator wants the recipe of an image, which is present here. One is made at a time.
    pub(super) fn make_recipe(&mut self, image: Digest) {
        self.asks.ask(image);
        self.begin_making();
        self.effects.push_back(Effect::ReportNow);
    }

    /// Begins to make the recipe that is next, if none is being made.
    fn begin_making(&mut self) {
        while let Some(image) = self.asks.begin() {
            if let Some(stage) = self.images.catalogue().may_make_recipe(&image).cloned() {
                info!(%image, "making the image's recipe, because the registry has none");
                return self.run(self.disk.make_recipe(image, stage));
            }
            debug!(%image, "no recipe is made: the image has one, or isn't here");
            self.asks.ended(false);
        }
    }

    /// The recipe of an image was made, or can't be.
    pub(super) fn recipe_made(&mut self, image: Digest, result: Result<Arc<Blob>, String>) {
        self.asks.ended(result.is_ok());
        let outcome = if result.is_ok() { "made" } else { "failed" };
        let made = &self.metrics.recipes_made;
        made.get_or_create(&OutcomeLabel { outcome }).inc();
        if result.is_ok() {
            self.recipe_opened(image, result);
        }
        self.begin_making();
        self.effects.push_back(Effect::ReportNow);
    }

    /// An image's recipe was read, or can't be.
    pub(super) fn recipe_read(&mut self, image: Digest, read: Result<Arc<NamedRecipe>, NoRecipe>) {
        let of = self.images.catalogue().layout_and_reference(&image);
        if let (Some((layout, reference)), Ok(recipe)) = (of, &read) {
            self.mirror.learn(reference, layout, recipe);
        }
        self.images.recipe_read(self.now(), image, read);
        self.effects.push_back(Effect::ReportSoon);
        self.follow_images();
    }

    /// Makes known to the swarm which chunks a stage holds and lacks.
    fn take_up(&mut self, image: Digest, layout: &Layout, stage: &Arc<Stage>, local_bytes: u64) {
        self.exchange.count_local(local_bytes);
        let mut known = Vec::new();
        for (order, spec) in (0u32..).zip(&layout.contents()) {
            let contents = self.exchange.contents();
            let effects = self.mirror.follow_image(contents, &spec.digest);
            self.act_for_mirror(effects);
            let here = (stage.held(spec.digest), stage.is_closed(spec.digest));
            let of = (image, Shelf::Stage(stage.clone()));
            let (id, new) = self.exchange.add(spec, of, here);
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
        self.exchange.withdraw(&image, None);
        // contents that other images share are now only for those images' hosts
        self.retell(layout);
    }

    /// Names were linked. If goldens are made on this host, they are next.
    pub(super) fn installed(
        &mut self,
        image: Digest,
        stage: &Arc<Stage>,
        placed: Vec<String>,
        installed: Result<(), InstallError>,
    ) {
        match self.disk.make_goldens(image, stage, placed, installed) {
            Ok(work) => self.run(work),
            Err(installed) => self
                .images
                .linked(self.now(), image, stage, installed, Ok(())),
        }
    }

    /// The goldens of linked names were made, or weren't.
    pub(super) fn golden_made(
        &mut self,
        image: Digest,
        stage: &Arc<Stage>,
        installed: Result<(), InstallError>,
        made: Result<(), Trouble>,
    ) {
        self.images.goldens_made(image, made.is_ok());
        self.images
            .linked(self.now(), image, stage, installed, made);
    }

    /// The state of each image for the coordinator.
    pub(super) fn image_states(&self, status: &swarm::Status) -> Vec<ImageState> {
        let contents = self.exchange.contents();
        let id_of = |content: &Digest| contents.by_digest(content).map(Content::id);
        let apart = self.exchange.apart();
        let (catalogue, reconciler) = (self.images.catalogue(), self.images.reconciler());
        let mut states = catalogue.states(self.now(), reconciler, status, id_of, apart.as_ref());
        states.iter_mut().for_each(|state| self.asks.tell(state));
        states
    }

    // ---- the disk ---------------------------------------------------------------------------------------------------

    /// Takes note of what the store found on the disk by itself.
    pub(super) fn hear_store(&mut self) {
        let mut rotted: BTreeMap<(Digest, Digest), Vec<ChunkIndex>> = BTreeMap::new();
        for news in self.disk.store().take_news() {
            match news {
                store::News::Rotted {
                    image,
                    content,
                    chunk,
                } => rotted.entry((image, content)).or_default().push(chunk),
                store::News::Doubted { image } => self.images.doubted(self.now(), image),
                store::News::Removed { image } => {
                    self.images.removed(self.now(), image, Reason::Removed);
                }
                store::News::Retired { image } => {
                    self.images.removed(self.now(), image, Reason::Retired);
                }
            }
            self.follow_images();
        }
        for ((image, content), chunks) in rotted {
            self.exchange.rotted(image, content, &chunks);
        }
    }

    /// A look at the disk ended.
    pub(super) fn looked(&mut self, seen: &Seen) {
        self.see(seen);
        self.keep_cache();
    }

    fn see(&mut self, seen: &Seen) {
        let began = self.moment(seen.began);
        self.images.looked(self.now(), seen, began);
        self.follow_images();
    }

    /// The journals of images and of the mirror's blobs were flushed, or couldn't be.
    pub(super) fn flushed(&mut self, images: Result<(), String>, blobs: Result<(), String>) {
        if let Err(error) = images {
            self.not_stored(false, &error);
        }
        if let Err(error) = blobs {
            self.not_stored(true, &error);
        }
    }

    /// The volume failed while chunks of images arrived, or of the mirror's blobs.
    fn not_stored(&mut self, mirrored: bool, error: &str) {
        match mirrored {
            true => {
                let contents = self.exchange.contents();
                let effects = self.mirror.storage_failed(contents, error);
                self.act_for_mirror(effects);
            }
            false => self.stop_filling(&Trouble::not_stored(error.to_owned())),
        }
    }

    /// No more may be written to the volume.
    pub(super) fn stop_filling(&mut self, trouble: &Trouble) {
        self.images.stop_filling(self.now(), trouble);
    }

    /// Called every few seconds: pins the blobs of images that are being staged, and checks what lies in the cache.
    pub(super) fn keep_cache(&mut self) {
        let pinned = self.images.catalogue().blobs_in_use();
        let place = (self.disk.store().clone(), self.disk.home());
        let contents = self.exchange.contents();
        let (bytes, effects) = self.mirror.keep(contents, pinned, place);
        if let Some(bytes) = bytes {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            self.metrics.mirror.cache_bytes.set(bytes);
        }
        self.act_for_mirror(effects);
    }

    // ---- the exchange -----------------------------------------------------------------------------------------------

    fn act_for_exchange(&mut self, effect: exchange::Effect<Real>) {
        self.effects.push_back(match effect {
            exchange::Effect::Run(errand) => Effect::Errand(errand),
            exchange::Effect::Hear(input) => Effect::Hear(input),
            exchange::Effect::Images { images, news } => return self.tell_images(&images, news),
            exchange::Effect::NotStored { mirrored, error } => {
                self.not_stored(mirrored, &error);
                return self.follow_images();
            }
            exchange::Effect::Fetch(wanted) => return self.fetch(&wanted),
            exchange::Effect::FetchEnded { content, end } => {
                let contents = self.exchange.contents();
                let effects = self.mirror.fetch_ended(contents, &content, end);
                return self.act_for_mirror(effects);
            }
            exchange::Effect::Blame {
                host,
                content,
                chunk,
                kind,
            } => Effect::Blame {
                host,
                content,
                chunk,
                kind,
            },
            exchange::Effect::Convict(links) => Effect::Convict(links),
            exchange::Effect::TakeBack { content, from } => Effect::TakeBack { content, from },
            exchange::Effect::Doubt(doubt) => {
                if !self.images.doubt_recipe(&doubt) {
                    return;
                }
                Effect::Doubt(doubt)
            }
            exchange::Effect::Look { content, chunk } => Effect::Look { content, chunk },
            exchange::Effect::ForgetTicket(content) => Effect::ForgetTicket(content),
            exchange::Effect::Stored => Effect::Stored,
            exchange::Effect::ReportSoon => Effect::ReportSoon,
            exchange::Effect::ReportNow => Effect::ReportNow,
        });
    }

    /// Fetches a content by the order of an image, or else by the wish of the mirror's clients.
    fn fetch(&mut self, wanted: &FetchWanted) {
        let (by, origin) = match self.images.catalogue().source(None, &wanted.images) {
            Some(source) => (Some(source.image), Some((source.reference, source.access))),
            None => (None, self.mirror.access(&wanted.content)),
        };
        if let Some(origin) = origin {
            if !self.exchange.is_leased(wanted.id) && self.mirror.wants(&wanted.content) {
                info!(content = %wanted.content, "nothing comes of a blob that a client wants; fetching it without a lease");
            }
            self.exchange.fetch(wanted, by, origin);
        }
    }

    fn tell_images(&mut self, images: &[Digest], news: ImageNews) {
        if let ImageNews::Closed(content) = &news {
            let contents = self.exchange.contents();
            let copy = self.mirror.copy_from_image(contents, content);
            self.act_for_mirror(copy);
        }
        self.images.hear(self.now(), images, news);
        self.follow_images();
    }

    /// Makes a content known to the swarm. If a client of the mirror wants the content, the swarm hears that too.
    fn introduce(&mut self, id: ContentId, order: u32) {
        let images = &self.images;
        let of_image = |image: &Digest| terms(images, image);
        self.exchange.introduce(id, order, of_image);
        let content = self.exchange.contents().find(id).map(Content::digest);
        let wanted = content.and_then(|content| self.mirror.wanted(id, &content));
        if let Some(wanted) = wanted {
            self.exchange.tell(wanted);
        }
    }

    /// Tells the swarm anew of an image's contents: their order, or the hosts that may have them, may have changed.
    fn retell(&mut self, layout: &Layout) {
        let images = &self.images;
        let of_image = |image: &Digest| terms(images, image);
        self.exchange.retell(layout, of_image);
    }

    // ---- the mirror -------------------------------------------------------------------------------------------------

    /// A client of the mirror wants a blob that isn't here.
    pub(super) fn wish(&mut self, wish: Wish) {
        let contents = self.exchange.contents();
        let effects = self.mirror.wish(self.now, contents, wish);
        self.act_for_mirror(effects);
    }

    /// Whole blobs of an earlier process were found.
    pub(super) fn seeds(&mut self, seeds: Vec<Arc<Blob>>) {
        let effects = self.mirror.seeds(self.exchange.contents(), seeds);
        self.act_for_mirror(effects);
    }

    /// Some of the mirror's cache was read again.
    pub(super) fn blobs_scrubbed(&mut self, next: (Option<Digest>, u32), bad: Option<Digest>) {
        let contents = self.exchange.contents();
        let effects = self.mirror.scrubbed(contents, next, bad);
        self.act_for_mirror(effects);
    }

    /// The coordinator says which wanted blobs are coming, or have their place in the queue.
    pub(super) fn are_coming(&mut self, queue: &MirrorQueue) {
        let contents = self.exchange.contents();
        let effects = self.mirror.are_coming(contents, queue);
        self.act_for_mirror(effects);
    }

    fn act_for_mirror(&mut self, effects: impl IntoIterator<Item = mirror::Effect>) {
        for effect in effects {
            match effect {
                mirror::Effect::Tell(content, event) => {
                    let content = self.exchange.contents().by_digest(&content);
                    if let Some(id) = content.map(Content::id) {
                        self.exchange.tell(event(id));
                    }
                }
                mirror::Effect::Join { blob, order } => {
                    let (what, here, shelf) = of_blob(&blob);
                    let id = self.exchange.add_blob(what, shelf, here);
                    self.introduce(id, order);
                    if blob.is_unread() {
                        self.run(Work::blocking(move || blob_cache::read_again(id, &blob)));
                    }
                    self.exchange.walk_if_whole(id);
                }
                mirror::Effect::Leave(content) => self.exchange.drop_blob(&content),
                mirror::Effect::RunBlocking(job) => self.run(Work::Blocking(job)),
                mirror::Effect::ReportSoon => self.effects.push_back(Effect::ReportSoon),
                mirror::Effect::ReportNow => self.effects.push_back(Effect::ReportNow),
            }
        }
    }
}

/// What a blob is, what is here of it, and its place.
fn of_blob(blob: &Arc<Blob>) -> ((Digest, Geometry), (ChunkSet, bool), Shelf) {
    let what = (blob.digest(), blob.geometry());
    let here = (blob.held(), blob.is_whole());
    (what, here, Shelf::Blob(blob.clone()))
}

/// What the swarm is told of an image's contents; `None` for an image that is forgotten.
fn terms(images: &Images, image: &Digest) -> Option<Terms> {
    Some(Terms {
        entitled: images.catalogue().entitled(image)?,
        rank: images.reconciler().rank(image),
    })
}

#[cfg(test)]
mod tests;
