//! The images that this host knows of: those that the coordinator ordered, those that an earlier process left, and
//! those that this version can't stage.
//!
//! [`Catalogue`] finds an image by its digest, counts the bytes that come and go for images, and answers what others
//! ask of all of them. It decides nothing about the next step of an image.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proto::{Digest, Moment, Reason, image::Layout, message::ImageState};
use swarm::event::{ContentId, Entitled};

use super::effect::Source;
use crate::{
    driver::{
        image::{Counts, Image, Life, OnDisk, Step},
        image_news::ImageNews,
        image_state,
        trouble::Trouble,
    },
    reconcile::Reconciler,
};

/// An image that this version can't stage, and the reason.
#[derive(Debug)]
struct Declined {
    references: Vec<String>,
    message: String,
}

/// See the [module](self).
#[derive(Debug)]
pub(in crate::driver) struct Catalogue<S> {
    images: BTreeMap<Digest, Image<S>>,
    declined: BTreeMap<Digest, Declined>,
}

impl<S> Default for Catalogue<S> {
    fn default() -> Self {
        Self {
            images: BTreeMap::new(),
            declined: BTreeMap::new(),
        }
    }
}

impl<S: OnDisk> Catalogue<S> {
    pub(super) fn find(&self, image: &Digest) -> Option<&Image<S>> {
        self.images.get(image)
    }

    /// Whether hosts made this recipe of an image; `None` if the image is forgotten, or doesn't use the recipe.
    pub(in crate::driver) fn takes_recipe(&self, image: &Digest, recipe: &Digest) -> Option<bool> {
        self.find(image)?.takes_recipe(recipe)
    }

    /// The stage of an image that is installed, and whose bytes have proved no recipe yet.
    pub(in crate::driver) fn may_make_recipe(&self, image: &Digest) -> Option<&S> {
        let of = self.find(image).filter(|of| of.is_installed());
        let stage = of.and_then(Image::stage);
        stage.filter(|stage| stage.proved_recipe().is_none())
    }

    pub(super) fn find_mut(&mut self, image: &Digest) -> Option<&mut Image<S>> {
        self.images.get_mut(image)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Image<S>> {
        self.images.values()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Image<S>> {
        self.images.values_mut()
    }

    /// Takes an image in. If it was declined before, it isn't any more.
    pub(super) fn insert(&mut self, image: Image<S>) {
        let digest = image.digest();
        self.declined.remove(&digest);
        self.images.insert(digest, image);
    }

    pub(super) fn remove(&mut self, image: &Digest) {
        self.images.remove(image);
    }

    /// This version can't stage the image.
    pub(super) fn decline(&mut self, image: Digest, references: Vec<String>, message: String) {
        let declined = Declined {
            references,
            message,
        };
        self.declined.insert(image, declined);
    }

    /// Nobody waits any more for news of an image that this version can't stage.
    pub(super) fn forget_declined(&mut self, image: &Digest) {
        self.declined.remove(image);
    }

    pub(super) fn is_declined(&self, image: &Digest) -> bool {
        self.declined.contains_key(image)
    }

    // ---- bytes and registries ---------------------------------------------------------------------------------------

    /// Counts bytes that came or went, or notes how the registry is. Other news aren't about that.
    pub(super) fn count(&mut self, now: Moment, images: &[Digest], news: ImageNews) {
        match news {
            ImageNews::Gained(bytes) => self.gained(images, bytes),
            ImageNews::Lost(bytes) => self.lost(images, bytes),
            ImageNews::FromOrigin(bytes) => self.came_from_origin(images, bytes),
            ImageNews::FromPeers(bytes) => self.came_from_peers(images, bytes),
            ImageNews::FromHere(bytes) => self.was_here(images, bytes),
            ImageNews::OfRecipe(bytes) => self.recipe_comes(now, bytes),
            ImageNews::Uploaded(bytes) => self.uploaded(images, bytes),
            ImageNews::OriginTrouble(trouble) => self.origin_troubles(images, &trouble),
            ImageNews::OriginIsFine => self.origin_is_well(images),
            ImageNews::Closed(_) | ImageNews::Opened(_) | ImageNews::Unwritable(_) => {}
        }
    }

    /// This many bytes of a recipe came. Images that wait for theirs wait on: few recipes come at one time.
    fn recipe_comes(&mut self, now: Moment, bytes: u64) {
        for image in self.images.values_mut() {
            image.recipe_comes(now, bytes);
        }
    }

    /// How much longer stages wait for their images' recipes.
    pub(super) fn recipe_waits(&self, now: Moment) -> Vec<(Digest, Duration)> {
        let images = self.images.values();
        let waits = |image: &Image<S>| Some((image.digest(), image.waits_for_recipe(now)?));
        images.filter_map(waits).collect()
    }

    /// This many bytes of these images were verified and are here.
    fn gained(&mut self, images: &[Digest], bytes: u64) {
        self.add(images, |counts| counts.held += bytes);
    }

    /// This many bytes of these images aren't here any more.
    fn lost(&mut self, images: &[Digest], bytes: u64) {
        self.add(images, |counts| {
            counts.held = counts.held.saturating_sub(bytes);
        });
    }

    /// This many bytes came from the registry for these images: the registry isn't their trouble any more.
    fn came_from_origin(&mut self, images: &[Digest], bytes: u64) {
        self.add(images, |counts| counts.origin += bytes);
        self.each(images, |image| image.trouble = None);
    }

    /// This many bytes came from peers. They count for the first of these images.
    fn came_from_peers(&mut self, images: &[Digest], bytes: u64) {
        self.add(first(images), |counts| counts.peers += bytes);
    }

    /// This many bytes of chunks were here, whose rest came from peers. They count for the first of these images.
    fn was_here(&mut self, images: &[Digest], bytes: u64) {
        self.add(first(images), |counts| counts.local += bytes);
    }

    /// This many bytes went to peers. They count for the first of these images.
    fn uploaded(&mut self, images: &[Digest], bytes: u64) {
        self.add(first(images), |counts| counts.uploaded += bytes);
    }

    fn add(&mut self, images: &[Digest], add: impl Fn(&mut Counts)) {
        self.each(images, |image| add(&mut image.counts));
    }

    /// The registry troubles these images.
    fn origin_troubles(&mut self, images: &[Digest], trouble: &Trouble) {
        self.each(images, |image| image.trouble = Some(trouble.clone()));
    }

    /// The registry's trouble is over: it is taken off these images.
    fn origin_is_well(&mut self, images: &[Digest]) {
        let reasons = [
            Reason::OriginTrouble,
            Reason::OriginFailed,
            Reason::OriginSettings,
        ];
        self.each(images, |image| image.clear_trouble_of(&reasons));
    }

    fn each(&mut self, images: &[Digest], mut change: impl FnMut(&mut Image<S>)) {
        for image in images {
            if let Some(image) = self.images.get_mut(image) {
                change(image);
            }
        }
    }

    // ---- what others ask --------------------------------------------------------------------------------------------

    /// The contents of an image that is known.
    pub(in crate::driver) fn layout(&self, image: &Digest) -> Option<&Arc<Layout>> {
        self.images.get(image).map(|image| &image.layout)
    }

    /// The layout of an image, and the reference by which the registry is asked for it.
    pub(in crate::driver) fn layout_and_reference(
        &self,
        image: &Digest,
    ) -> Option<(&Arc<Layout>, &str)> {
        let image = self.images.get(image)?;
        Some((&image.layout, image.reference()))
    }

    /// The name of an image for people: its first reference, or else its digest.
    pub(super) fn name(&self, image: &Digest) -> String {
        let known = self.images.get(image).map(Image::reference);
        let known = known.filter(|reference| !reference.is_empty());
        known.map_or_else(|| image.to_string(), str::to_owned)
    }

    /// Says why an image isn't present.
    pub(super) fn trouble(&mut self, image: &Digest, trouble: Trouble) {
        self.each(&[*image], |image| image.trouble = Some(trouble.clone()));
    }

    /// The files of an image were removed.
    pub(super) fn emptied(&mut self, image: &Digest) {
        self.each(&[*image], |image| image.counts.held = 0);
    }

    /// Images that wait for room.
    pub(super) fn short_of_room(&self) -> Vec<Digest> {
        let short = |image: &&Image<S>| {
            let trouble = image.trouble.as_ref();
            trouble.is_some_and(|trouble| trouble.reason == Reason::NoRoom)
        };
        let short = self.images.values().filter(short);
        short.map(Image::digest).collect()
    }

    /// Whether any image takes chunks.
    pub(in crate::driver) fn is_filling(&self) -> bool {
        self.images.values().any(Image::is_filling)
    }

    /// Whether any image is between its beginning and its last chunk.
    pub(in crate::driver) fn is_staging(&self) -> bool {
        let mut images = self.images.values();
        images.any(|image| image.is_at(Step::Filling))
    }

    /// The hosts that may have an image's contents; `None` for a forgotten image, whose contents no host may have.
    pub(in crate::driver) fn entitled(&self, image: &Digest) -> Option<Entitled> {
        Some(self.images.get(image)?.ordered.entitled.clone())
    }

    /// How to ask the registry for a content of these images. `leased` is the image for which the lease was granted:
    /// another image may name a repository that refuses this content.
    pub(in crate::driver) fn source(
        &self,
        leased: Option<Digest>,
        images: &[Digest],
    ) -> Option<Source> {
        let leased = leased.filter(|image| images.contains(image));
        let image = leased.iter().chain(images);
        let image = image.filter_map(|image| self.images.get(image)).next()?;
        Some(Source {
            image: image.digest(),
            reference: image.reference().to_owned(),
            access: image.ordered.access.clone(),
        })
    }

    /// The blobs of images that are on their way: the mirror's cache keeps them.
    pub(in crate::driver) fn blobs_in_use(&self) -> BTreeSet<Digest> {
        let under_way = |image: &&Image<S>| {
            let taken = image.is_at(Step::Filling) || image.is_at(Step::Installing);
            taken || matches!(image.life, Life::Queued)
        };
        let images = self.images.values().filter(under_way);
        let blobs = images.flat_map(|image| {
            let layers = image.layout.layers().iter().map(|layer| layer.blob.digest);
            layers.chain([image.layout.config().digest, image.layout.nvram().digest])
        });
        blobs.collect()
    }

    /// The state of each image for the coordinator. `id_of` gives the swarm's number of a content. `apart`: why this
    /// host reaches no peer, if its own system keeps it from all.
    pub(in crate::driver) fn states(
        &self,
        now: Moment,
        reconciler: &Reconciler,
        status: &swarm::Status,
        id_of: impl Fn(&Digest) -> Option<ContentId>,
        apart: Option<&Trouble>,
    ) -> Vec<ImageState> {
        let declined = self.declined.iter().map(|(digest, declined)| {
            image_state::declined(digest, &declined.references, &declined.message)
        });
        let images = self.images.values().map(|image| {
            let still = match image.is_at(Step::Filling) {
                true => {
                    let contents = image.layout.contents();
                    let ids = contents.iter().filter_map(|spec| id_of(&spec.digest));
                    status.standstill(&ids.collect::<Vec<_>>())
                }
                false => None,
            };
            let unnamed = match image.trouble.is_none() && image.is_at(Step::Installing) {
                true => image_state::unnamed(now, image, reconciler),
                false => None,
            };
            image_state::of(now, image, still, unnamed.as_ref(), apart)
        });
        declined.chain(images).collect()
    }

    /// The number of images in each state, for metrics. Declined images aren't counted.
    pub(in crate::driver) fn count_states(&self) -> BTreeMap<&'static str, usize> {
        let mut counts: BTreeMap<_, _> = image_state::NAMES.map(|name| (name, 0)).into();
        for image in self.images.values() {
            *counts.entry(image_state::name(image)).or_default() += 1;
        }
        counts
    }
}

fn first(images: &[Digest]) -> &[Digest] {
    images.get(..1).unwrap_or_default()
}
