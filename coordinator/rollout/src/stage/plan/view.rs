//! Answers questions that need several of the plan's parts: whether some host has a content, whether an image fails,
//! and whether a registry may be asked. Nothing is changed here.

use alloc::{collections::BTreeMap, vec::Vec};
use core::time::Duration;

use proto::{Digest, HostId, Moment};

use super::{
    contents::{ContentState, Contents},
    hosts::{Host, Hosts},
    images::{Image, Images},
    leases::{Lease, Leases},
    origins::{Origin, Origins},
    records::Records,
    sequences,
};
use crate::stage::{
    Config,
    event::{Fault, Standing},
};

/// The plan's parts at one moment, read only.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) now: Moment,
    /// Breaks ties.
    pub(super) seed: u64,
    pub(super) config: &'a Config,
    pub(super) hosts: &'a Hosts,
    pub(super) images: &'a Images,
    pub(super) contents: &'a Contents,
    pub(super) leases: &'a Leases,
    pub(super) origins: &'a Origins,
    pub(super) records: &'a Records,
}

/// How long something isn't asked for, and whether the registry asked for that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    pub(super) left: Duration,
    pub(super) asked: bool,
}

impl<'a> View<'a> {
    // ---- contents ---------------------------------------------------------------------------------------------------

    /// Whether a host that is believed, and is connected or expected back, holds all of the content.
    pub(super) fn is_done(self, content: &ContentState) -> bool {
        content.believed().any(|id| self.is_expected(id))
    }

    /// Whether peers can get what this host holds: the host is connected or expected back, and isn't shunned.
    pub(super) fn is_expected(self, id: &HostId) -> bool {
        self.hosts.is_expected(id, self.now, self.config)
    }

    /// The content of this digest, unless some host holds all of it ([`is_done`](Self::is_done)).
    pub(super) fn open(self, digest: &Digest) -> Option<&'a ContentState> {
        let content = self.contents.get(digest)?;
        (!self.is_done(content)).then_some(content)
    }

    /// Whether a host whose client waits for this content should go on waiting. It should while chunks of the content
    /// reach any host, or while the content is queued and chunks of other contents come. Otherwise the host does better
    /// to fetch the content by itself.
    pub(super) fn is_coming(self, host: &HostId, digest: &Digest) -> bool {
        let trusted = self.hosts.is_trusted(host);
        let Some(content) = self.contents.get(digest).filter(|_| trusted) else {
            return false;
        };
        let lately = |at: Moment| self.now.since(at) < self.config.lease_timeout;
        if self.is_done(content) || content.tries().rests_for_mirrors(self.now) {
            return false;
        }
        let moves = lately(content.moved_at());
        let leases = self.leases.all_of(digest);
        match leases.iter().map(Lease::chunk_at).max() {
            // after a lease that came to nothing, the next holder first has to show that it brings chunks
            Some(chunk_at) => moves || content.tries().none_failed() && lately(chunk_at),
            None => moves || lately(self.contents.mirror_moved_at()),
        }
    }

    /// The contents that images need and that no host is thought to hold whole, up to this many.
    pub(super) fn open_contents(self, most: usize) -> usize {
        let images = self.images.iter().filter(|image| !image.is_mirrors());
        let images = images.filter(|image| image.contradicts().is_none());
        let contents = images.flat_map(|image| image.contents());
        let open = contents.filter_map(|digest| self.open(digest));
        let open = open.filter(|content| !content.parts().cover(content.chunks()));
        open.take(most).count()
    }

    /// Whether ranges of this content may be leased to several hosts under the image's name: the image's recipe proves
    /// each chunk of it when it comes, and leasing it so didn't fail.
    pub(super) fn may_have_ranges(self, image: &Image, content: &ContentState) -> bool {
        let by_recipe = image.recipe().is_some() && !content.words().are_heard(&image.digest());
        by_recipe && !image.is_mirrors() && !content.is_recipe() && !content.parts().are_given_up()
    }

    /// Whether this host takes a range of a content of the image: it knows what a range is, has the image's recipe, and
    /// holds so much of the content that it can begin amid it. A host that gave a range of it back gets no other.
    pub(super) fn takes_ranges(self, image: &Image, content: &ContentState, id: &HostId) -> bool {
        let recipe = image.recipe();
        let recipe = recipe.and_then(|recipe| self.contents.get(&recipe.digest));
        recipe.is_some_and(|recipe| recipe.is_done_on(id))
            && self.hosts.get(id).is_some_and(Host::takes_ranges)
            && content.receipts().of(id) >= content.chunks() / 2
            && !content.parts().has_given_back(id)
    }

    // ---- images -----------------------------------------------------------------------------------------------------

    /// Hosts that may fetch for this image.
    pub(super) fn candidates(self, image: &'a Image) -> Vec<&'a HostId> {
        image.candidates(self.now, self.hosts, self.config)
    }

    /// How early each of these images is to get leases. Images of which hosts hold all contents need none, so they hold
    /// up no other image.
    pub(super) fn turns(self, images: &[&Image]) -> BTreeMap<Digest, usize> {
        let is_open = |image: &&&Image| {
            let mut contents = image.contents().iter();
            contents.any(|digest| self.open(digest).is_some())
        };
        let open: Vec<&Image> = images.iter().filter(is_open).copied().collect();
        sequences::turns(&open, self.hosts)
    }

    /// The content that makes an image fail, and what is wrong with it.
    pub(super) fn failure(self, image: &Image) -> Option<(Digest, Fault)> {
        image.contents().iter().find_map(|digest| {
            let content = self.contents.get(digest)?;
            let fault = content.tries().fails(&image.digest())?;
            (!self.is_done(content)).then_some((*digest, fault))
        })
    }

    /// Whether the image's contents are to be fetched: the image neither failed nor contradicts another one.
    pub(super) fn is_live(self, image: &Image) -> bool {
        image.contradicts().is_none() && self.failure(image).is_none()
    }

    /// Whether this content is to be fetched for this image. For an image that failed, only the contents that made it
    /// fail are.
    pub(super) fn wants(self, image: &Image, digest: &Digest) -> bool {
        let tried = || {
            let content = self.contents.get(digest);
            content.is_some_and(|content| content.tries().fails(&image.digest()).is_some())
        };
        image.contradicts().is_none()
            && image.has(digest)
            && (self.failure(image).is_none() || tried())
    }

    /// Whether this image waits until the bytes show which of two sizes of a content is true.
    pub(super) fn is_undecided(self, image: &Image) -> bool {
        let contradicts = image.contradicts();
        image.disproved().is_none() && contradicts.is_some_and(|of| self.open(&of).is_some())
    }

    /// The number of hosts that may say what an image's registry has.
    pub(super) fn witnesses(self, image: &Digest) -> usize {
        let Some(image) = self.images.get(image) else {
            return 0;
        };
        let able = |id: &&HostId| {
            let whole = matches!(
                image.standing(id),
                Some(Standing::Present | Standing::Installing | Standing::Failed)
            );
            let unable = self.records.is_unable(self.now, id, image.registry());
            !whole && self.hosts.is_here(id) && !unable
        };
        image.selected(self.hosts).iter().filter(able).count()
    }

    /// Whether hosts could fetch for an image, but the settings of each of them keep it from asking the image's
    /// registry.
    pub(super) fn nobody_can_ask(self, image: &Image) -> bool {
        let candidates = image.candidates(self.now, self.hosts, self.config);
        let unable = |id: &&HostId| self.records.was_unable(id, image.registry());
        !candidates.is_empty() && candidates.iter().all(unable)
    }

    /// The number of leases of recipes that run.
    pub(super) fn recipe_leases(self) -> usize {
        let leases = self.leases.iter();
        let recipes = leases.filter(|(of, lease)| !lease.is_mirrors() && self.is_recipe(of));
        recipes.count()
    }

    /// Whether a content is a recipe that no image needs.
    pub(super) fn is_recipe(self, digest: &Digest) -> bool {
        self.contents
            .get(digest)
            .is_some_and(ContentState::is_recipe)
    }

    // ---- registries -------------------------------------------------------------------------------------------------

    fn origin(self, image: &Image) -> Option<&'a Origin> {
        self.origins.get(image.registry())
    }

    /// How long nothing is asked for in the image's repository; `None` where it may be asked.
    pub(super) fn origin_wait(self, image: &Image) -> Option<Wait> {
        let origin = self.origin(image)?;
        let (until, asked) = origin.waits_until(image.repository(), self.now)?;
        let left = until.since(self.now);
        Some(Wait { left, asked })
    }

    /// How long nothing is asked for because every content of the image that some host lacks is left alone; `None`
    /// where one may be asked for.
    pub(super) fn contents_wait(self, image: &Image) -> Option<Wait> {
        let origin = self.origin(image)?;
        let mut first = None;
        for digest in image.contents() {
            let Some(content) = self.open(digest) else {
                continue;
            };
            let asked = origin.wishes().rests_until(digest, self.now);
            let until = content.tries().away_until(self.now).max(asked)?;
            if first.is_none_or(|(before, _)| until < before) {
                first = Some((until, asked == Some(until)));
            }
        }
        first.map(|(until, asked)| Wait {
            left: until.since(self.now),
            asked,
        })
    }

    /// Whether the image's repository has given nothing since it was left alone.
    pub(super) fn origin_fails(self, image: &Image) -> bool {
        let origin = self.origin(image);
        origin.is_some_and(|origin| origin.fails(image.repository()))
    }

    /// The number of leases that the image's registry allows now beside those that run. After a failure, one lease
    /// tries first.
    pub(super) fn origin_room(self, image: &Image) -> usize {
        if self.origin_wait(image).is_some() {
            return 0;
        }
        let Some(origin) = self.origin(image) else {
            return usize::MAX;
        };
        let fails = origin.fails(image.repository());
        if !fails && !origin.is_away() {
            return usize::MAX;
        }
        // one lease asks in the repositories that fail, and one in the others
        let busy = self.leases.iter().any(|(_, lease)| {
            lease.registry() == image.registry() && origin.fails(lease.repository()) == fails
        });
        usize::from(!busy)
    }

    /// The host that was last leased something of the registry, while that fails: another host tries next.
    pub(super) fn prober(self, image: &Image) -> Option<&'a HostId> {
        let origin = self.origin(image)?;
        let fails = origin.fails(image.repository()) || origin.is_away();
        origin.prober().filter(|_| fails)
    }

    /// Whether this content isn't to be asked for yet under the image's name.
    pub(super) fn rests(self, content: &ContentState, digest: &Digest, image: &Image) -> bool {
        let origin = self.origin(image);
        let asked = origin.and_then(|origin| origin.wishes().rests_until(digest, self.now));
        asked.is_some() || content.tries().rests(&image.digest(), self.now)
    }

    /// What to ask for next in the failing repositories of a registry: an image and one of its contents. Picks the
    /// image whose last request is oldest; of its contents that no host holds, likewise the oldest. So no image and no
    /// content goes before the others for long.
    pub(super) fn probe(self, of: &Image) -> Option<(Digest, Digest)> {
        let open = |image: &Image, digest: &Digest| {
            self.open(digest).is_some_and(|content| {
                !self.leases.contains(digest)
                    && !self.rests(content, digest, image)
                    && (self.failure(image).is_none()
                        || content.tries().fails(&image.digest()).is_some())
            })
        };
        let same = |image: &&Image| {
            image.registry() == of.registry()
                && image.purpose() == of.purpose()
                && image.contradicts().is_none()
                && self.origin_fails(image)
                && self.origin_wait(image).is_none()
        };
        let all = self.images.iter().filter(same).flat_map(|image| {
            let contents = image.contents().iter();
            contents.map(move |digest| (image, *digest))
        });
        all.filter(|(image, digest)| open(image, digest))
            .min_by_key(|(image, digest)| {
                let content = self.contents.get(digest);
                let asked = content.map(|content| content.tries().asked_at());
                (self.leases.asked_at(&image.digest()), asked)
            })
            .map(|(image, digest)| (image.digest(), digest))
    }

    /// The bytes per second of one stream of a registry, as other hosts received them, or as holders say where a third
    /// of the hosts say so.
    pub(super) fn pace(self, registry: &str) -> Option<u64> {
        let enough = self.config.share(self.hosts.len());
        self.origins.get(registry)?.pace(enough)
    }
}
