//! The driver's view of this host's mirror: the wants of its clients, and the cache that it keeps.
//!
//! This part joins the wants and the cache with the contents. It returns [`Effect`]s, which the driver carries out.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Instant};

use proto::{
    Digest, Layout, RegistryReference,
    message::{MirrorQueue, MirrorWants},
};
use swarm::{Event, event::ContentId};
use tracing::error;

use super::{
    blob_cache::{self, BlobCache},
    contents::Contents,
    input::Input,
    wants::{self, Known, Wants},
};
use crate::{
    fetch::FetchEnd,
    mirror::{Ears, Wish, blob::Blob, blobs::Blobs},
    registries::Access,
    shelf::Shelf,
    store::{Store, recipes::NamedRecipe},
};

/// Work for the driver, after this part heard something.
pub(super) enum Effect {
    /// Tell the swarm of this content, if the swarm knows it.
    Tell(Digest, Box<dyn FnOnce(ContentId) -> Event>),
    /// Make this blob a content of the swarm, with this order among contents. Then check whether the blob is whole.
    Join { blob: Arc<Blob>, order: u32 },
    /// Take a blob out of the swarm. A content of an image stays.
    Leave(Digest),
    /// Run this beside the driver. It blocks.
    RunBlocking(Box<dyn FnOnce() -> Input + Send>),
    /// Something changed that belongs into the next report.
    ReportSoon,
    /// Something changed that the coordinator waits for.
    ReportNow,
}

/// The mirror's wants and cache. Without a mirror both stay empty.
#[derive(Debug)]
pub(super) struct Mirror {
    wants: Wants,
    cache: BlobCache,
}

impl Mirror {
    pub(super) fn new(ears: Option<&Ears>) -> Self {
        let (stall, grace) = ears.map_or_else(Default::default, |ears| (ears.stall, ears.grace));
        Self {
            wants: Wants::new(stall, grace),
            cache: BlobCache::new(ears.map(|ears| ears.blobs.clone())),
        }
    }

    pub(super) const fn blobs(&self) -> Option<&Arc<Blobs>> {
        self.cache.blobs()
    }

    // ---- wants ----------------------------------------------------------------------------------------------------

    /// A client wants a blob that isn't here.
    pub(super) fn wish(&mut self, now: Instant, contents: &Contents, wish: Wish) -> Vec<Effect> {
        // until `_heard` is dropped at the end, the client doesn't look at the blob's trouble
        let Wish {
            blob,
            reference,
            access,
            heard: _heard,
        } = wish;
        let known = known(contents, &blob.digest(), |held| !Arc::ptr_eq(held, &blob));
        let wish = wants::Wish {
            blob,
            reference,
            access,
        };
        let effects = self.wants.wish(now, wish, known);
        self.follow(contents, effects)
    }

    /// How to fetch a blob that a client wants. The fetch begins with this call.
    pub(super) fn access(&mut self, content: &Digest) -> Option<(String, Access)> {
        self.wants.access(content)
    }

    /// The event for a content that the swarm comes to know, if a client wants the content.
    pub(super) fn wanted(&self, id: ContentId, content: &Digest) -> Option<Event> {
        let alone_after = self.wants.alone_after(content)?;
        Some(Event::Wanted {
            id,
            alone_after,
            admitted: false,
        })
    }

    /// Whether a client wants this content.
    pub(super) fn wants(&self, content: &Digest) -> bool {
        self.wants.alone_after(content).is_some()
    }

    pub(super) fn next_look(&self) -> Option<Instant> {
        self.wants.next_look()
    }

    /// Looks at all wants.
    pub(super) fn look(&mut self, now: Instant, contents: &Contents) -> Vec<Effect> {
        let effects = self.wants.look(now);
        self.follow(contents, effects)
    }

    /// The coordinator says which wanted blobs are coming, or have their place in the queue.
    pub(super) fn are_coming(&mut self, contents: &Contents, queue: &MirrorQueue) -> Vec<Effect> {
        let effects = self.wants.are_coming(queue);
        self.follow(contents, effects)
    }

    /// A fetch of a content ended.
    pub(super) fn fetch_ended(
        &mut self,
        contents: &Contents,
        content: &Digest,
        end: FetchEnd,
    ) -> Vec<Effect> {
        let effects = self.wants.fetch_ended(content, end);
        self.follow(contents, effects)
    }

    /// The volume failed while blobs arrived.
    pub(super) fn storage_failed(&mut self, contents: &Contents, message: &str) -> Vec<Effect> {
        let effects = self.wants.storage_failed(message);
        self.follow(contents, effects)
    }

    /// The wants for a report: all of them, if they changed or the report is `full`.
    pub(super) fn report(&mut self, full: bool) -> Option<MirrorWants> {
        self.blobs()?;
        self.wants.report(full)
    }

    /// A report with the wants couldn't be sent.
    pub(super) const fn unsent(&mut self) {
        self.wants.unsent();
    }

    fn follow(&mut self, contents: &Contents, effects: Vec<wants::Effect>) -> Vec<Effect> {
        let mut out = Vec::new();
        for effect in effects {
            out.push(match effect {
                wants::Effect::Join { blob, order } => Effect::Join { blob, order },
                wants::Effect::Leave(content) => Effect::Leave(content),
                wants::Effect::Wanted { content, admitted } => {
                    let Some(alone_after) = self.wants.alone_after(&content) else {
                        continue;
                    };
                    let event = move |id| Event::Wanted {
                        id,
                        alone_after,
                        admitted,
                    };
                    Effect::Tell(content, Box::new(event))
                }
                wants::Effect::Unwanted(content) => {
                    Effect::Tell(content, Box::new(Event::Unwanted))
                }
                wants::Effect::Coming(content) => Effect::Tell(content, Box::new(Event::Coming)),
                wants::Effect::CopyFromImage(content) => {
                    match self.copy_from_image(contents, &content) {
                        Some(effect) => effect,
                        None => continue,
                    }
                }
                wants::Effect::PutInPlace(blob) => {
                    Effect::RunBlocking(Box::new(move || blob_cache::put_in_place(&blob)))
                }
                wants::Effect::ForgetAll { blob, message } => {
                    Effect::RunBlocking(Box::new(move || blob_cache::forget_all(&blob, message)))
                }
                wants::Effect::ReportNow => Effect::ReportNow,
                wants::Effect::ReportSoon => Effect::ReportSoon,
            });
        }
        out
    }

    // ---- blobs that are contents of images too --------------------------------------------------------------------

    /// An image that is staged here has this content, or this recipe. The mirror's blob leaves the swarm, and gets its
    /// bytes from the image.
    pub(super) fn follow_image(&mut self, contents: &Contents, content: &Digest) -> Vec<Effect> {
        match known(contents, content, |_| false) {
            Known::Mirrored => {
                let effect = self.wants.follow_image(content);
                self.follow(contents, vec![effect])
            }
            Known::No | Known::Gone | Known::OfImage => Vec::new(),
        }
    }

    /// Copies a blob from an image's stage, or from the file of an image's recipe, if a client wants the blob and it is
    /// verified there.
    pub(super) fn copy_from_image(
        &mut self,
        contents: &Contents,
        content: &Digest,
    ) -> Option<Effect> {
        let of_image = contents.by_digest(content)?;
        let mut shelves = of_image.shelves().into_iter();
        let from = shelves.find(|shelf| !of_image.is_mirrored() && shelf.is_closed(*content))?;
        let blob = self.wants.copy(content)?;
        // no client may have these bytes on its registry's word: the image may have come from another one
        blob.comes_from(None);
        let copy = move || blob_cache::copy(&from, &blob);
        Some(Effect::RunBlocking(Box::new(copy)))
    }

    /// Copying a blob from an image ended.
    pub(super) fn copied(&mut self, content: &Digest) {
        self.wants.copied(content);
    }

    /// An image's recipe was read. It proves the image's blobs, too, to clients of the repository that has the image.
    pub(super) fn learn(&self, reference: &str, layout: &Layout, by: &NamedRecipe) {
        if let Some(blobs) = self.blobs()
            && let Ok(of) = reference.parse::<RegistryReference>()
        {
            let repository = format!("{}/{}", of.registry(), of.repository());
            blobs.learn(&repository, layout, (by.file.digest, &by.recipe));
        }
    }

    // ---- the cache ------------------------------------------------------------------------------------------------

    /// Whole blobs of an earlier process are served to peers again.
    pub(super) fn recover(&self) -> Option<Effect> {
        self.cache.recover().map(Effect::RunBlocking)
    }

    /// Whole blobs of an earlier process were found.
    pub(super) fn seeds(&mut self, contents: &Contents, seeds: Vec<Arc<Blob>>) -> Vec<Effect> {
        let seeds = seeds.into_iter();
        let new = seeds.filter(|blob| contents.by_digest(&blob.digest()).is_none());
        let effects = self.wants.recovered(new.collect());
        self.follow(contents, effects)
    }

    /// Called every few seconds: pins the blobs of images that are being staged, evicts, and checks what lies in the
    /// cache. Returns the cache's bytes, if there is a cache.
    pub(super) fn keep(
        &mut self,
        contents: &Contents,
        pinned: BTreeSet<Digest>,
        (store, home): (Arc<Store>, &Path),
    ) -> (Option<u64>, Vec<Effect>) {
        let Some(blobs) = self.blobs().cloned() else {
            return (None, Vec::new());
        };
        blobs.pin(pinned);
        // evicted blobs aren't served any more
        let effects = self.wants.evicted(|seed| blobs.find(seed).is_some());
        let bytes = blobs.tidy().0;
        let mut out = self.follow(contents, effects);
        out.extend(self.cache.scrub(store, home).map(Effect::RunBlocking));
        (Some(bytes), out)
    }

    /// Some of the cache was read again.
    pub(super) fn scrubbed(
        &mut self,
        contents: &Contents,
        next: (Option<Digest>, u32),
        bad: Option<Digest>,
    ) -> Vec<Effect> {
        self.cache.scrubbed(next);
        let Some(content) = bad else {
            return Vec::new();
        };
        error!(%content, "a blob of the mirror changed on disk since it was verified; dropping it");
        let known = known(contents, &content, |blob| blob.is_gone());
        let effects = self.wants.rotted(&content, known);
        self.follow(contents, effects)
    }
}

/// How the swarm knows a blob now. `is_gone`: whether a blob that the swarm knows was evicted.
fn known(contents: &Contents, content: &Digest, is_gone: impl Fn(&Arc<Blob>) -> bool) -> Known {
    let Some(content) = contents.by_digest(content) else {
        return Known::No;
    };
    let gone = |shelf: &Shelf| matches!(shelf, Shelf::Blob(blob) if is_gone(blob));
    match content.is_mirrored() {
        true if content.shelves().iter().any(gone) => Known::Gone,
        true => Known::Mirrored,
        false => Known::OfImage,
    }
}

#[cfg(test)]
mod tests;
