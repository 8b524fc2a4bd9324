//! Images on this host, from the order to presence.
//!
//! [`Images`] follows the orders, the state of the disk, and the job that each image needs next, which the
//! [`Reconciler`] decides. The images stand in a [`Catalogue`]. Neither touches the disk or the swarm. Work comes out
//! of [`Images::poll`], and its result goes into a method. Each method leaves a state that may be reported.

mod catalogue;
mod effect;
mod yielding;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use proto::{Digest, Moment, Reason, image::Layout, recipe::Doubt};
use tracing::{error, info, warn};

use self::yielding::yields;
pub(super) use self::{
    catalogue::Catalogue,
    effect::{Effect, Left},
};
use super::{
    image::{Image, Life, NoRecipe, OnDisk, Ordered, Step},
    image_news::ImageNews,
    look::Seen,
    orders::Names,
    trouble::{Short, Trouble},
};
use crate::{
    reconcile::{Have, Job, Reconciler},
    store::{InstallError, Stage, recipes::NamedRecipe},
};

/// An installation that found tart's lock taken is tried again after this long. Presence may come this much late.
const BUSY_PAUSE: Duration = Duration::from_millis(500);

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Images<S = Arc<Stage>> {
    catalogue: Catalogue<S>,
    reconciler: Reconciler,
    effects: VecDeque<Effect<S>>,
}

impl<S> Default for Images<S> {
    fn default() -> Self {
        Self {
            catalogue: Catalogue::default(),
            reconciler: Reconciler::default(),
            effects: VecDeque::new(),
        }
    }
}

impl<S: OnDisk> Images<S> {
    /// The next effect, in order. After each other method, call this until it returns `None`.
    pub(super) fn poll(&mut self) -> Option<Effect<S>> {
        self.effects.pop_front()
    }

    // ---- orders -----------------------------------------------------------------------------------------------------

    /// An earlier process left an image here. An image that is installed and whole is taken up at once. Any other needs
    /// room first, or has to be read. `contradicts` is as for [`Images::begun`].
    pub(super) fn recovered(&mut self, now: Moment, left: Left<S>, contradicts: Option<Digest>) {
        let image = *left.layout.digest();
        self.reconciler.recovered(image, &left.wanted);
        let ordered = Ordered::before_any_order(left.references, left.entitled.clone());
        let mut found = Image::new(left.layout, left.manifest, ordered, now);
        // reported at once: even if there is no room to go on, these bytes are here
        found.adopt(&left.stage);
        self.catalogue.insert(found);
        // for a stage that begins anew because its files were removed
        self.effect(Effect::Entitle {
            image,
            entitled: left.entitled,
        });
        if left.stage.is_installed() && left.stage.is_complete() && !left.stage.is_doubted() {
            self.take_up(now, image, left.stage, 0, contradicts);
        }
    }

    /// The coordinator wants an image here. `manifest` is empty if the image was here when the order was made.
    pub(super) fn order(&mut self, now: Moment, digest: Digest, ordered: Ordered, manifest: &[u8]) {
        self.effect(Effect::Renew {
            image: digest,
            access: ordered.access.clone(),
        });
        if self.catalogue.find(&digest).is_some() {
            self.order_again(now, digest, ordered);
        } else if manifest.is_empty() {
            // a full report says that the image isn't here, and brings another order
            info!(image = %digest, "order without a manifest for an image that isn't here");
            self.effect(Effect::ReportAll);
        } else {
            self.order_new(now, digest, ordered, manifest);
        }
    }

    fn order_again(&mut self, now: Moment, digest: Digest, ordered: Ordered) {
        self.reconciler.order(digest, &ordered.references, now);
        self.effect(Effect::ReportSoon);
        if let Some(image) = self.catalogue.find_mut(&digest)
            && image.take_order(now, ordered)
        {
            let (layout, entitled) = (image.layout.clone(), image.ordered.entitled.clone());
            self.effects.extend([
                Effect::Entitle {
                    image: digest,
                    entitled,
                },
                Effect::Retell {
                    image: digest,
                    layout,
                },
            ]);
        }
        self.seek_recipe(now, digest);
        self.refresh(now);
    }

    /// Has the recipe brought by which an image's stage is to begin. The stage waits for it, for a while.
    fn seek_recipe(&mut self, now: Moment, digest: Digest) {
        if let Some(image) = self.catalogue.find_mut(&digest) {
            let (left, need) = image.seek_recipe(now);
            self.effects.extend(Effect::of_recipes(digest, left, need));
        }
    }

    /// An image's recipe was read, or can't be had.
    pub(super) fn recipe_read(
        &mut self,
        now: Moment,
        digest: Digest,
        result: Result<Arc<NamedRecipe>, NoRecipe>,
    ) {
        let Some(image) = self.catalogue.find_mut(&digest) else {
            return;
        };
        let (left, waited) = image.found_recipe(result);
        self.effects.extend(Effect::of_recipes(digest, left, None));
        if waited {
            self.reconciler.wait(digest, now, Duration::ZERO);
        }
    }

    /// A recipe isn't used for a content any more: the registry's bytes came otherwise somewhere. Returns whether the
    /// image has this recipe.
    pub(super) fn doubt_recipe(&mut self, doubt: &Doubt) -> bool {
        let image = self.catalogue.find_mut(&doubt.image);
        image.is_some_and(|image| image.doubt_recipe(doubt))
    }

    fn order_new(&mut self, now: Moment, digest: Digest, ordered: Ordered, manifest: &[u8]) {
        self.effect(Effect::ReportSoon);
        let layout = match Layout::parse(manifest, &digest) {
            Ok(layout) => Arc::new(layout),
            Err(error) => {
                warn!(image = %digest, %error, "declining to stage");
                let message = error.to_string();
                return self.catalogue.decline(digest, ordered.references, message);
            }
        };
        info!(image = %digest, references = ?ordered.references, bytes = layout.content_bytes(), "staging");
        self.reconciler.order(digest, &ordered.references, now);
        self.effect(Effect::Entitle {
            image: digest,
            entitled: ordered.entitled.clone(),
        });
        let image = Image::new(layout, manifest.into(), ordered, now);
        self.catalogue.insert(image);
        self.seek_recipe(now, digest);
        // names that other images had may now be this image's
        self.refresh(now);
    }

    /// Takes an order about names: which image each reference shall name here.
    pub(super) fn order_names(&mut self, now: Moment, order: Names) {
        for image in self
            .reconciler
            .name(order.number, order.whole, order.names, now)
        {
            self.give_up(image);
        }
        self.refresh(now);
    }

    /// Takes the order in which images are to be finished here.
    pub(super) fn take_sequence(&mut self, sequence: Vec<Digest>) {
        let moved = self.reconciler.take_sequence(sequence);
        let moved = moved.iter();
        let layouts = moved.filter_map(|image| self.catalogue.layout(image));
        self.effects.extend(layouts.cloned().map(Effect::Reorder));
    }

    /// The image isn't wanted here any more, under any name.
    pub(super) fn cancel(&mut self, now: Moment, digest: Digest) {
        self.catalogue.forget_declined(&digest);
        self.reconciler.cancel(digest);
        self.give_up(digest);
        self.refresh(now);
    }

    /// Staging stops, and the files stay on the disk: the image is ordered again later, or cancelled.
    pub(super) fn pause(&mut self, digest: Digest) {
        self.catalogue.forget_declined(&digest);
        self.reconciler.pause(digest);
        self.forget_order(digest);
        let Some(image) = self.catalogue.find(&digest) else {
            return;
        };
        if image.is_at(Step::Present) || image.is_at(Step::Installing) {
            return;
        }
        info!(image = %digest, held_bytes = image.counts.held, "staging is paused; what is here is kept");
        self.put_down(digest, Life::Queued);
        self.catalogue.remove(&digest);
        // others may have the room that was kept for the rest of it
        self.effects
            .extend([Effect::GiveUp(digest), Effect::SetAside(digest)]);
    }

    /// A session with the coordinator began, and has its own numbers of orders.
    pub(super) fn session_began(&mut self) {
        self.reconciler.session();
    }

    /// Gives an image up, unless it is installed: tart's user may need an installed image.
    fn give_up(&mut self, digest: Digest) {
        self.forget_order(digest);
        if self.reconciler.is_installed(&digest) || self.catalogue.find(&digest).is_none() {
            return;
        }
        info!(image = %digest, "staging is cancelled");
        self.put_down(digest, Life::Queued);
        self.catalogue.remove(&digest);
        self.effect(Effect::GiveUp(digest));
    }

    /// The order to stage the image isn't valid any more. If the image is wanted again, it has to be ordered again.
    fn forget_order(&mut self, digest: Digest) {
        if let Some(image) = self.catalogue.find_mut(&digest) {
            image.ordered.number = 0;
        }
    }

    // ---- jobs -------------------------------------------------------------------------------------------------------

    /// Begins the jobs that images need next.
    pub(super) fn begin_jobs(&mut self, now: Moment) {
        for (image, wait) in self.catalogue.recipe_waits(now) {
            self.reconciler.wait(image, now, wait);
        }
        while let Some((image, job)) = self.reconciler.next(now) {
            match job {
                Job::Begin(names) => self.begin(image, names),
                Job::Record(names) => self.effect(Effect::Record { image, names }),
                Job::Install(names) => self.install(now, image, names),
                Job::Abandon => {
                    self.withdraw(image, Life::Queued);
                    self.catalogue.remove(&image);
                    self.effect(Effect::Abandon(image));
                }
            }
        }
    }

    fn begin(&mut self, digest: Digest, names: Vec<String>) {
        // an earlier stage of the image is of no use any more; the recipe by which the next one begins is for peers too
        let image = self.catalogue.find(&digest);
        if image.is_none_or(|image| image.stage().is_some() || !image.is_by_recipe()) {
            self.withdraw(digest, Life::Queued);
        }
        let Some(image) = self.catalogue.find_mut(&digest) else {
            // the image isn't known any more
            self.reconciler.cancel(digest);
            self.reconciler.begun(digest);
            return;
        };
        image.life = Life::Queued;
        let (layout, manifest) = (image.layout.clone(), image.manifest.clone());
        let (recipe, in_doubt) = (image.take_recipe(), image.ordered.in_doubt.clone());
        self.effect(Effect::Begin {
            layout,
            manifest,
            names,
            recipe,
            in_doubt,
        });
    }

    /// Making a stage ready ended: with the stage and the number of bytes that were here already, or with a failure.
    /// `contradicts` is a content to which an image that is taken up gives another size. Returns whether the
    /// image was neither cancelled nor paused meanwhile.
    pub(super) fn begun(
        &mut self,
        now: Moment,
        digest: Digest,
        result: Result<(S, u64), Trouble>,
        contradicts: Option<Digest>,
    ) -> bool {
        let goes_on = self.reconciler.begun(digest);
        match result {
            Ok((stage, local)) if goes_on => self.take_up(now, digest, stage, local, contradicts),
            Err(trouble) if goes_on => self.fail(now, digest, trouble),
            Ok(_) | Err(_) => {}
        }
        goes_on
    }

    /// A beginning found no room. Unfinished images that come after this one give way, if that helps.
    pub(super) fn short_of_room(&mut self, now: Moment, digest: Digest, short: &Short) {
        let way = yields(&self.catalogue, &self.reconciler, &digest, &short.figures);
        let (first, images) = (self.catalogue.name(&digest), &self.catalogue);
        let trouble = Trouble::no_room(short, |image| images.name(image));
        self.catalogue.trouble(&digest, trouble);
        for (image, remove) in &way {
            self.put_down(*image, Life::Queued);
            self.fail(now, *image, Trouble::gives_way(&first, *remove));
            self.effect(Effect::SetAside(*image));
            if *remove {
                self.reconciler.abandon(*image);
                self.effect(Effect::Abandon(*image));
            }
        }
        self.reconciler.room_is_made(digest, &way, now);
    }

    /// Makes the image use this stage from now on.
    fn take_up(
        &mut self,
        now: Moment,
        digest: Digest,
        stage: S,
        local_bytes: u64,
        contradicts: Option<Digest>,
    ) {
        let Some(image) = self.catalogue.find_mut(&digest) else {
            return;
        };
        image.trouble = None;
        image.take_up(stage.clone());
        image.counts.local += local_bytes;
        let layout = image.layout.clone();
        // one of the two sizes is wrong, and nothing here tells which: nobody is blamed, and the files stay
        if let Some(content) = contradicts {
            image.life = Life::Queued;
            self.reconciler.have(digest, Have::Kept);
            return self.fail(now, digest, Trouble::contradicts(&content));
        }
        let file = stage.recipe();
        self.effect(Effect::TakeUp {
            image: digest,
            layout,
            stage,
            local_bytes,
        });
        // peers may lack it
        self.effects.extend(Effect::of_recipes(digest, None, file));
        self.read_again(digest);
        self.effect(Effect::ReportSoon);
        self.advance(now, digest);
    }

    /// Has the bytes that an earlier process left of an image read, while chunks come. The image isn't installed before
    /// that has ended.
    fn read_again(&mut self, digest: Digest) {
        let image = self.catalogue.find_mut(&digest);
        let Some(stage) = image.and_then(Image::begin_reading) else {
            return;
        };
        self.effect(Effect::ReadAgain {
            image: digest,
            stage,
        });
    }

    /// A stage was read, or couldn't be.
    pub(super) fn was_read(
        &mut self,
        now: Moment,
        digest: Digest,
        stage: &S,
        result: Result<(), String>,
    ) {
        let Some(image) = self.catalogue.find_mut(&digest) else {
            return;
        };
        image.reading = false;
        // another stage has taken this one's place, and is read by itself
        if !image.goes_by(stage) {
            self.read_again(digest);
            self.advance(now, digest);
            return;
        }
        image.clear_trouble_of(&[Reason::Checking]);
        match result {
            Ok(()) => self.advance(now, digest),
            // the image is begun, and read, again
            Err(error) => self.not_stored(now, digest, format!("reading what is here: {error}")),
        }
    }

    /// The names that are wanted for an image were written down, or weren't.
    pub(super) fn recorded(&mut self, now: Moment, digest: Digest, result: Result<(), Trouble>) {
        self.reconciler.recorded(digest, result.is_ok(), now);
        if let Err(trouble) = result {
            warn!(image = %digest, error = trouble.message, "writing down what names are wanted failed; trying again later");
            self.catalogue.trouble(&digest, trouble);
        }
    }

    /// The files of an image were removed from the disk.
    pub(super) fn abandoned(&mut self, now: Moment, image: Digest) {
        self.reconciler.abandoned(image);
        self.catalogue.emptied(&image);
        let short = self.catalogue.short_of_room();
        self.reconciler.hurry_before(&image, short, now);
    }

    fn install(&mut self, now: Moment, digest: Digest, names: Vec<String>) {
        let image = self.catalogue.find_mut(&digest);
        let Some((image, stage)) = image.and_then(|image| {
            let stage = image.stage().cloned()?;
            Some((image, stage))
        }) else {
            // an image without a stage can't be linked: it is begun again
            self.reconciler.installed(digest, false);
            self.reconciler.have(digest, Have::Kept);
            return;
        };
        image.go_to(Step::Installing);
        image.note_whole(now);
        self.effect(Effect::ReportSoon);
        self.effect(Effect::Install {
            image: digest,
            stage,
            names,
        });
    }

    /// The goldens of linked names were made, or weren't.
    pub(super) fn goldens_made(&mut self, digest: Digest, made: bool) {
        if let Some(image) = self.catalogue.find_mut(&digest) {
            image.seen.golden |= made;
        }
    }

    /// Names were linked and their goldens made, or not. The next look at the disk says which names are there.
    pub(super) fn linked(
        &mut self,
        now: Moment,
        digest: Digest,
        stage: &S,
        installed: Result<(), InstallError>,
        golden: Result<(), Trouble>,
    ) {
        let done = installed.is_ok() && golden.is_ok();
        self.reconciler.installed(digest, done);
        let image = self.catalogue.find(&digest);
        // an earlier stage is of no interest any more
        let Some(image) = image.filter(|image| image.goes_by(stage)) else {
            return;
        };
        let all_closed = image.has_all();
        match installed {
            Err(InstallError::Removed) => return self.restage(now, digest),
            Err(InstallError::Incomplete(content)) => {
                if all_closed {
                    // the bytes here are looked at anew, and missing ones are fetched
                    warn!(image = %digest, %content, "an image that was whole isn't any more; staging goes on");
                    self.put_down(digest, Life::Queued);
                }
                return;
            }
            _ => self.advance(now, digest),
        }
        match installed {
            Ok(()) => {
                if let Err(trouble) = golden {
                    self.fail(now, digest, trouble);
                }
            }
            Err(error @ InstallError::Busy(_)) => {
                self.wait_for_tart(now, digest, Trouble::from(&error));
            }
            Err(error) => self.fail(now, digest, Trouble::from(&error)),
        }
    }

    /// tart has its lock, and gives the lock back some day, so this isn't a failure. The image's linked names stay
    /// good.
    fn wait_for_tart(&mut self, now: Moment, digest: Digest, trouble: Trouble) {
        self.reconciler.wait(digest, now, BUSY_PAUSE);
        if let Some(image) = self.catalogue.find_mut(&digest) {
            image.wait_for_tart(trouble);
            self.effect(Effect::ReportNow);
        }
    }

    // ---- what becomes of chunks -------------------------------------------------------------------------------------

    /// News of a content came, for the images that it is part of.
    pub(super) fn hear(&mut self, now: Moment, images: &[Digest], news: ImageNews) {
        let each = images.iter().copied();
        match news {
            ImageNews::Closed(content) => {
                each.for_each(|image| self.content_closed(now, image, &content));
            }
            ImageNews::Opened(content) => {
                each.for_each(|image| self.content_opened(now, image, content));
            }
            ImageNews::Unwritable(error) => {
                each.for_each(|image| self.unwritable(now, image, error.clone()));
            }
            counted => self.catalogue.count(now, images, counted),
        }
    }

    /// A content of this image is verified.
    fn content_closed(&mut self, now: Moment, digest: Digest, content: &Digest) {
        let Some(image) = self.catalogue.find_mut(&digest) else {
            return;
        };
        if let Some(file) = image.awaits(content) {
            let (layout, stage) = (image.layout.clone(), image.stage().cloned());
            self.effect(Effect::ReadRecipe(layout, file, stage));
        } else if image.close(content) {
            self.advance(now, digest);
        } else {
            self.effects.extend(Effect::of_closed(image, *content));
        }
    }

    /// A content of this image isn't what was verified: the image isn't present until it is verified again.
    fn content_opened(&mut self, now: Moment, digest: Digest, content: Digest) {
        // the news may be older than the image's way back into the queue: a later beginning reads what is here
        let image = self.catalogue.find_mut(&digest);
        let Some(image) = image.filter(|image| image.stage().is_some()) else {
            return;
        };
        image.open(content);
        let left = image.leave_presence(now);
        self.reconciler.have(digest, Have::Filling);
        if left {
            self.effect(Effect::ReportNow);
        }
    }

    /// The files of one image can't be written, while other images take the same chunks: this image waits alone.
    fn unwritable(&mut self, now: Moment, digest: Digest, message: String) {
        let image = self.catalogue.find(&digest);
        if image.is_some_and(|image| image.is_at(Step::Filling)) {
            self.not_stored(now, digest, message);
        }
    }

    /// Stops taking chunks of any image, until a later beginning finds room for the rest.
    pub(super) fn stop_filling(&mut self, now: Moment, trouble: &Trouble) {
        let filling = self.catalogue.iter().filter(|image| image.is_filling());
        for digest in filling.map(Image::digest).collect::<Vec<_>>() {
            self.put_down(digest, Life::Queued);
            self.effect(Effect::SetAside(digest));
            self.fail(now, digest, trouble.clone());
        }
    }

    fn not_stored(&mut self, now: Moment, digest: Digest, message: String) {
        self.put_down(digest, Life::Queued);
        self.fail(now, digest, Trouble::not_stored(message));
    }

    // ---- what was found on the disk ---------------------------------------------------------------------------------

    /// The image was found damaged: it isn't present until all of it was read and mended.
    pub(super) fn doubted(&mut self, now: Moment, digest: Digest) {
        let image = self.catalogue.find_mut(&digest);
        let Some(image) = image.filter(|image| image.stage().is_some()) else {
            return;
        };
        warn!(image = %digest, "an image was found damaged on disk; it is read again, and isn't present until it is mended");
        image.doubt(now);
        self.read_again(digest);
        self.advance(now, digest);
        self.effect(Effect::ReportNow);
    }

    /// The files of an image aren't there any more, for this reason. The news may be about an earlier stage of it.
    pub(super) fn removed(&mut self, now: Moment, digest: Digest, reason: Reason) {
        let image = self.catalogue.find(&digest);
        let Some(image) = image.filter(|image| image.stage().is_some_and(OnDisk::is_gone)) else {
            return;
        };
        let retired = reason == Reason::Retired && !self.reconciler.is_wanted(&digest);
        if retired || (reason == Reason::Removed && image.is_at(Step::Present)) {
            self.gone(digest, reason);
        } else if image.is_at(Step::Failed) {
            // the image begins anew when its pause is over
            self.put_down(digest, Life::Failed);
        } else {
            self.restage(now, digest);
        }
    }

    /// Begins an image anew whose files were removed while it was staged. The first time this happens at once. If the
    /// files are removed again before the image is present, a growing pause comes first.
    fn restage(&mut self, now: Moment, digest: Digest) {
        self.put_down(digest, Life::Queued);
        self.seek_recipe(now, digest);
        let Some(image) = self.catalogue.find_mut(&digest) else {
            return;
        };
        if image.restage() {
            return self.fail(now, digest, Trouble::removed_again());
        }
        warn!(image = %digest, "the files of an image were removed while it was staged; staging it anew");
        self.effect(Effect::ReportNow);
    }

    /// Withdraws presence.
    fn gone(&mut self, digest: Digest, reason: Reason) {
        self.withdraw(digest, Life::Gone);
        if let Some(image) = self.catalogue.find_mut(&digest) {
            image.vanish(reason);
        }
        self.reconciler.have(digest, Have::Gone);
        self.effect(Effect::ReportNow);
    }

    /// A look at the disk begins.
    pub(super) fn look_begins(&mut self) {
        self.reconciler.look_begins();
    }

    /// A look at the disk that began at `began` ended.
    pub(super) fn looked(&mut self, now: Moment, seen: &Seen, began: Moment) {
        let mut before = Vec::new();
        for image in self.catalogue.iter_mut() {
            if seen.there.contains(&image.digest()) {
                image.seen.at = Some(began);
            }
            before.push((image.digest(), image.seen.ready.clone()));
        }
        let confirmed = self.reconciler.confirmed();
        self.reconciler.looked(&seen.look, now);
        self.refresh(now);
        for (digest, before) in before {
            self.compare(digest, &before, seen.refused.get(&digest));
        }
        self.effect(match self.reconciler.confirmed() == confirmed {
            true => Effect::ReportSoon,
            // others wait for a confirmation
            false => Effect::ReportNow,
        });
    }

    /// Logs the names that an image has lost since the look before. An image that nothing names and nobody wants is let
    /// go, unless it is `refused`: then tart sees none of its names, and they are seen again when tart is another one.
    fn compare(&mut self, digest: Digest, before: &[String], refused: Option<&Trouble>) {
        let Some(image) = self.catalogue.find_mut(&digest) else {
            return;
        };
        let wanted = self.reconciler.is_wanted(&digest);
        if wanted {
            image.say_lost(before);
        }
        let busy = self.reconciler.is_running(&digest);
        if image.is_installed() && image.seen.ready.is_empty() && !wanted && !busy {
            match refused {
                Some(unfit) => image.fail(unfit.clone()),
                None => self.gone(digest, Reason::Superseded),
            }
        }
    }

    // ---- what follows -----------------------------------------------------------------------------------------------

    /// Moves an image on after a change: a content was verified or isn't any more, a stage was taken up, or what was
    /// here was read.
    fn advance(&mut self, now: Moment, digest: Digest) {
        let image = self.catalogue.find_mut(&digest);
        let Some(image) = image.filter(|image| image.stage().is_some()) else {
            return;
        };
        if image.has_all() && image.is_at(Step::Filling) {
            image.note_whole(now);
        }
        let have = image.have();
        if have != Have::Filling && image.is_at(Step::Filling) {
            image.go_to(Step::Installing);
            self.effect(Effect::ReportSoon);
        }
        self.reconciler.have(digest, have);
        self.refresh(now);
    }

    /// Derives the states of images from looks, orders and jobs. Reports at once if something changed that others rely
    /// on.
    fn refresh(&mut self, now: Moment) {
        let mut news = false;
        let mut present = Vec::new();
        for image in self.catalogue.iter_mut().filter(|image| image.is_whole()) {
            let digest = image.digest();
            let ready = self.reconciler.ready(&digest);
            let named = self.reconciler.names(&digest).next().is_some();
            let is_present = match named {
                true => self.reconciler.is_present(&digest),
                false => !ready.is_empty(),
            };
            news |= image.seen.ready != ready;
            image.seen.ready = ready;
            if is_present && !image.is_at(Step::Present) {
                present.push(digest);
            } else if !is_present && image.is_at(Step::Present) {
                image.go_to(Step::Installing);
                news = true;
            }
        }
        news |= !present.is_empty();
        let each = present.iter();
        each.for_each(|digest| self.become_present(now, digest));
        if news {
            self.effect(Effect::ReportNow);
        }
    }

    fn become_present(&mut self, now: Moment, digest: &Digest) {
        let Some(image) = self.catalogue.find_mut(digest) else {
            return;
        };
        let (staged_in, installed_in) = image.become_present(now);
        self.seek_recipe(now, *digest);
        self.effect(Effect::Present {
            staged_in,
            installed_in,
        });
    }

    /// A try failed. Another one follows after a pause that grows.
    fn fail(&mut self, now: Moment, digest: Digest, trouble: Trouble) {
        self.reconciler.failed(digest, now);
        let Some(image) = self.catalogue.find_mut(&digest) else {
            return;
        };
        error!(image = %digest, reason = trouble.reason.as_str(), error = trouble.message, "staging failed; trying again later");
        image.fail(trouble);
        let after = now.since(image.since);
        self.effect(Effect::Failed { after });
        self.effect(Effect::ReportNow);
    }

    /// Stops using an image's stage. The files stay on the disk, to be taken up again.
    fn put_down(&mut self, digest: Digest, life: Life<S>) {
        self.withdraw(digest, life);
        self.reconciler.have(digest, Have::Kept);
    }

    /// Takes the contents of an image out of the swarm, if they are in it.
    fn withdraw(&mut self, digest: Digest, life: Life<S>) {
        let image = self.catalogue.find_mut(&digest);
        if let Some(image) = image.filter(|image| image.stage().is_some() || image.has_recipe()) {
            image.life = life;
            let layout = image.layout.clone();
            self.effect(Effect::Withdraw {
                image: digest,
                layout,
            });
        }
    }

    fn effect(&mut self, effect: Effect<S>) {
        self.effects.push_back(effect);
    }

    // ---- what others ask --------------------------------------------------------------------------------------------

    pub(super) const fn catalogue(&self) -> &Catalogue<S> {
        &self.catalogue
    }

    pub(super) const fn reconciler(&self) -> &Reconciler {
        &self.reconciler
    }

    /// Whether anybody waits for news of an image.
    pub(super) fn is_wanted(&self, image: &Digest) -> bool {
        self.reconciler.is_wanted(image) || self.catalogue.is_declined(image)
    }
}

#[cfg(test)]
pub(super) mod tests;
