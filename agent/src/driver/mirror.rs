//! The mirror's blobs as contents of the swarm: what clients of this host want, and what the coordinator and the swarm are
//! told of it.
//!
//! A blob that a client wants is reported to the coordinator, which leases it to one of the hosts that want it; the others
//! get its chunks from peers. Where nothing comes for a while and the coordinator doesn't say that something will, the swarm
//! fetches the blob without a lease.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use proto::{
    ChunkIndex, Digest,
    message::{LeaseEnd, MirrorQueue, MirrorWant, MirrorWants},
};
use swarm::{Event, event::ContentId};
use tracing::{error, info, warn};

use super::{Driver, Input, contents::Content, leases::End};
use crate::{
    fetch::{Failure, FetchEnd},
    mirror::{
        Ears, Wish,
        blob::{Blob, Trouble},
        blobs::Blobs,
        is_away, is_refusal,
    },
    registries::Access,
    shelf::Shelf,
    store::{Look, Stage},
};

/// Blobs that clients want at one time; wishes beyond are turned away. 256 connections can't want more.
const MAX_WANTS: usize = 256;
/// Wants that the coordinator is told of; those beyond are fetched without a lease when nothing comes of them.
const MAX_REPORTED: usize = 64;
/// Whole blobs that are served to peers, those used last.
const MAX_SEEDS: usize = 512;
/// How often wants are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Chunks that are read again at a time, every 5 s, as of images.
const SCRUB_CHUNKS: u32 = 8;

/// The mirror, as the driver has it. Without a mirror all of it stays empty.
#[derive(Debug, Default)]
pub(super) struct Mirrored {
    blobs: Option<Arc<Blobs>>,
    stall: Duration,
    grace: Duration,
    wants: BTreeMap<Digest, Wanted>,
    /// Wants so far.
    wanted: u64,
    /// Whole blobs that peers may ask for, oldest first.
    seeds: VecDeque<Digest>,
    /// The wants that the coordinator should know changed since the last report.
    changed: bool,
    last_look: Option<Instant>,
    scrub_at: (Option<Digest>, u32),
}

/// A blob that clients want.
#[derive(Debug)]
struct Wanted {
    blob: Arc<Blob>,
    reference: String,
    access: Access,
    /// A client came with other credentials since the fetch began.
    renewed: bool,
    /// Tells it from a want of the same blob before.
    number: u64,
    /// Since when every byte is here and true, and the blob isn't in its place.
    closed_at: Option<Instant>,
    /// It is a content of an image here: copied from its stage once that is verified.
    follows: bool,
    copying: bool,
}

impl Mirrored {
    pub(super) fn new(ears: Option<&Ears>) -> Self {
        ears.map_or_else(Self::default, |ears| Self {
            blobs: Some(ears.blobs.clone()),
            stall: ears.stall,
            grace: ears.grace,
            ..Self::default()
        })
    }

    /// How to fetch a blob that a client wants. The fetch begins with it.
    pub(super) fn access(&mut self, digest: &Digest) -> Option<(String, Access)> {
        let wanted = self.wants.get_mut(digest)?;
        wanted.renewed = false;
        Some((wanted.reference.clone(), wanted.access.clone()))
    }

    /// How long a client of this blob waits until the blob is fetched without a lease; `None` for what no client wants.
    pub(super) fn alone_after(&self, digest: &Digest) -> Option<Duration> {
        self.wants.contains_key(digest).then_some(self.stall)
    }

    /// When wants are looked at next.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let last = self.last_look?;
        (!self.wants.is_empty()).then_some(last + LOOK)
    }

    /// What the coordinator is told: all that is wanted, where it changed or `full`.
    pub(super) fn wants(&mut self, full: bool) -> Option<MirrorWants> {
        if !std::mem::take(&mut self.changed) && !full {
            return None;
        }
        self.blobs.as_ref()?;
        let shared = self.wants.values().filter(|wanted| !wanted.follows);
        Some(MirrorWants {
            wants: shared
                .take(MAX_REPORTED)
                .map(|wanted| MirrorWant {
                    content: wanted.blob.digest().as_bytes().to_vec(),
                    size: wanted.blob.size(),
                    number: wanted.number,
                })
                .collect(),
        })
    }

    /// A report that carried the wants couldn't be sent.
    pub(super) const fn unsent(&mut self) {
        self.changed = true;
    }

    pub(super) fn blobs(&self) -> Option<&Arc<Blobs>> {
        self.blobs.as_ref()
    }
}

impl Driver {
    /// Whole blobs of before are served to peers again.
    pub(super) fn recover_blobs(&mut self) {
        let Some(blobs) = self.mirror.blobs.clone() else {
            return;
        };
        self.spawn_blocking(move || {
            let whole = blobs.whole().into_iter().take(MAX_SEEDS);
            // the oldest first, so that it is the first to go
            let mut seeds: Vec<_> = whole
                .filter(|blob| blob.load_links().unwrap_or(false))
                .collect();
            seeds.reverse();
            Input::Seeds(seeds)
        });
    }

    fn add_blob(&mut self, blob: &Arc<Blob>) -> ContentId {
        let what = (blob.digest(), blob.geometry());
        let shelf = Shelf::Blob(blob.clone());
        self.contents
            .add_mirrored(what, shelf, blob.held(), blob.is_whole())
    }

    pub(super) fn seeds(&mut self, seeds: Vec<Arc<Blob>>) {
        for blob in seeds {
            if self.contents.by_digest(&blob.digest()).is_none() {
                let id = self.add_blob(&blob);
                self.introduce(id, u32::MAX);
                self.seed(blob.digest());
            }
        }
    }

    /// A whole blob is kept in the swarm for peers; the oldest goes where there are too many.
    fn seed(&mut self, digest: Digest) {
        if !self.mirror.seeds.contains(&digest) {
            self.mirror.seeds.push_back(digest);
        }
        while self.mirror.seeds.len() > MAX_SEEDS {
            if let Some(oldest) = self.mirror.seeds.pop_front() {
                self.drop_content(&oldest);
            }
        }
    }

    /// A client wants a blob that isn't here.
    pub(super) fn wish(&mut self, wish: Wish) {
        // until it is dropped at the end the client doesn't look at the blob's trouble
        let Wish {
            blob,
            reference,
            access,
            heard: _heard,
        } = wish;
        let digest = blob.digest();
        if blob.is_whole() || blob.is_gone() {
            return;
        }
        let now = Instant::now();
        let refused = matches!(blob.trouble(), Some(Trouble::Refused(_)));
        blob.set_trouble(None);
        self.leave_gone(&blob);
        if let Some(wanted) = self.mirror.wants.get_mut(&digest) {
            if (&wanted.reference, &wanted.access) != (&reference, &access) {
                (wanted.reference, wanted.access) = (reference, access);
                wanted.renewed = true;
            }
            // the upstream refused the credentials of before, and has just accepted these
            if refused {
                self.tell_wanted(&digest, true);
            }
            return;
        }
        if self.mirror.wants.len() >= MAX_WANTS {
            blob.set_trouble(Some(Trouble::Stalled("too many blobs are wanted".into())));
            return;
        }
        blob.set_wanted(true);
        self.mirror.wanted += 1;
        let follows = self
            .contents
            .by_digest(&digest)
            .is_some_and(|content| !content.is_mirrored());
        let wanted = Wanted {
            blob: blob.clone(),
            reference,
            access,
            renewed: false,
            number: self.mirror.wanted,
            closed_at: None,
            follows,
            copying: false,
        };
        self.mirror.wants.insert(digest, wanted);
        self.mirror.last_look.get_or_insert(now);
        if follows {
            self.tell_wanted(&digest, false);
            self.copy_from_image(&digest);
        } else {
            info!(content = %digest, bytes = blob.size(), "a client of the mirror wants a blob");
            let id = self.add_blob(&blob);
            self.introduce(id, 0);
            if blob.is_unread() {
                self.spawn_blocking(move || Input::Dropped {
                    id,
                    result: blob.read_again().map_err(|error| error.to_string()),
                });
            }
            self.walk_if_whole(id);
            self.mirror.changed = true;
            self.reporting.at_once();
        }
        if refused {
            self.tell_wanted(&digest, true);
        }
    }

    /// Tells the swarm that a client waits for a blob. `admitted`: its registry refused it before, and has let a client in.
    pub(super) fn tell_wanted(&mut self, digest: &Digest, admitted: bool) {
        let id = self.contents.by_digest(digest).map(Content::id);
        let alone_after = self.mirror.alone_after(digest);
        if let (Some(id), Some(alone_after)) = (id, alone_after) {
            self.tell(Event::Wanted {
                id,
                alone_after,
                admitted,
            });
        }
    }

    /// A blob that was evicted and is asked for again is another one: what is known of the one before leads nowhere.
    fn leave_gone(&mut self, blob: &Arc<Blob>) {
        let digest = blob.digest();
        let wanted = self.mirror.wants.get(&digest);
        if wanted.is_some_and(|wanted| !Arc::ptr_eq(&wanted.blob, blob)) {
            self.stop_wanting(&digest);
        }
        let other = |shelf: &Shelf| matches!(shelf, Shelf::Blob(held) if !Arc::ptr_eq(held, blob));
        let content = self.contents.by_digest(&digest);
        if content.is_some_and(|content| content.shelves().iter().any(other)) {
            self.mirror.seeds.retain(|seed| *seed != digest);
            self.drop_content(&digest);
        }
    }

    /// Looks at what is wanted: done, abandoned, or here and not in its place.
    pub(super) fn look_at_wants(&mut self) {
        let now = Instant::now();
        self.mirror.last_look = Some(now);
        let stall = self.mirror.stall;
        let mut done = Vec::new();
        let mut abandoned = Vec::new();
        let mut misplaced = Vec::new();
        for (digest, wanted) in &mut self.mirror.wants {
            let (readers, last) = wanted.blob.readers();
            let whole = wanted.blob.is_whole();
            let left = readers == 0 && last.elapsed() > self.mirror.grace;
            if wanted.blob.is_gone() || !whole && left {
                abandoned.push(*digest);
            } else if whole {
                done.push(*digest);
            } else if wanted.blob.is_closed() {
                let since = *wanted.closed_at.get_or_insert(now);
                if now.duration_since(since) > stall {
                    wanted.closed_at = Some(now);
                    misplaced.push(wanted.blob.clone());
                }
            } else {
                wanted.closed_at = None;
            }
        }
        for digest in done {
            let follows = self.mirror.wants.get(&digest).is_some_and(|w| w.follows);
            self.stop_wanting(&digest);
            if !follows {
                self.seed(digest);
            }
        }
        for digest in abandoned {
            info!(content = %digest, "nobody reads a blob any more; its fetch ends");
            self.stop_wanting(&digest);
            self.drop_content(&digest);
        }
        for blob in misplaced {
            self.put_in_place(blob);
        }
    }

    /// Every byte of a blob is here and true, but the volume failed when the blob was to be put where whole ones lie.
    fn put_in_place(&mut self, blob: Arc<Blob>) {
        self.spawn_blocking(move || {
            if let Err(error) = blob.walk() {
                warn!(content = %blob.digest(), %error, "a verified blob can't be put in its place");
                blob.set_trouble(Some(Trouble::Disk(error.to_string())));
            }
            Input::Nothing
        });
    }

    /// The coordinator says which of our wants come or have their place in the queue.
    pub(super) fn wants_are_coming(&mut self, queue: &MirrorQueue) {
        for content in &queue.contents {
            let Ok(digest) = Digest::try_from(content.as_slice()) else {
                continue;
            };
            if let Some(wanted) = self.mirror.wants.get(&digest) {
                wanted.blob.promise();
                if let Some(id) = self.contents.by_digest(&digest).map(Content::id) {
                    self.tell(Event::Coming(id));
                }
            }
        }
    }

    fn stop_wanting(&mut self, digest: &Digest) {
        if let Some(wanted) = self.mirror.wants.remove(digest) {
            wanted.blob.set_wanted(false);
            self.mirror.changed = true;
            self.reporting.soon();
            if let Some(id) = self.contents.by_digest(digest).map(Content::id) {
                self.tell(Event::Unwanted(id));
            }
        }
    }

    /// Takes a blob out of the swarm, unless it is an image's content too.
    fn drop_content(&mut self, digest: &Digest) {
        let Some(id) = self.contents.by_digest(digest).map(Content::id) else {
            return;
        };
        if self
            .contents
            .find(id)
            .is_none_or(|content| !content.is_mirrored())
        {
            return;
        }
        self.end_lease(id, End::plain(LeaseEnd::Released));
        self.fetches.stop(id);
        self.contents.remove_mirrored(digest);
        self.tell(Event::Dropped(id));
    }

    /// Fetching a blob that clients want ended; the swarm was told so.
    pub(super) fn mirror_fetch_ended(&mut self, id: ContentId, end: FetchEnd) {
        let Some(digest) = self.contents.find(id).map(Content::digest) else {
            return;
        };
        let Some(wanted) = self.mirror.wants.get_mut(&digest) else {
            return;
        };
        match end {
            // a volume that failed is told of apart from here
            FetchEnd::Done | FetchEnd::Disk(_) | FetchEnd::Unwanted => {}
            FetchEnd::Failed(failure) => {
                let trouble = match failure {
                    Failure::Origin(error) if is_refusal(&error) => {
                        // who came since then may be let in
                        if wanted.renewed {
                            self.tell_wanted(&digest, true);
                            return;
                        }
                        Trouble::Refused(error)
                    }
                    // it goes on when the registry is back; clients wait for that as long as they may
                    Failure::Origin(error) if is_away(&error) => return,
                    Failure::Origin(error) | Failure::CutShort(error) => {
                        Trouble::Stalled(error.to_string())
                    }
                    Failure::Settings(error) => Trouble::Stalled(error),
                };
                wanted.blob.set_trouble(Some(trouble));
            }
            FetchEnd::Bad(message) => {
                let blob = wanted.blob.clone();
                // what is held ends in no digest: nothing of it is kept, and nobody may go on from it
                self.stop_wanting(&digest);
                self.drop_content(&digest);
                self.spawn_blocking(move || {
                    if let Err(error) = blob.forget_all() {
                        warn!(content = %blob.digest(), %error, "dropping false bytes isn't journaled");
                    }
                    blob.set_trouble(Some(Trouble::Bad(message)));
                    Input::Nothing
                });
            }
        }
    }

    /// The volume failed while blobs arrived.
    pub(super) fn mirror_storage_failed(&mut self, message: &str) {
        let wants: Vec<_> = self.mirror.wants.keys().copied().collect();
        for digest in wants {
            if let Some(wanted) = self.mirror.wants.get(&digest)
                && !wanted.follows
            {
                wanted.blob.set_trouble(Some(Trouble::Disk(message.into())));
                self.stop_wanting(&digest);
                self.drop_content(&digest);
            }
        }
    }

    // ---- blobs that are contents of images too --------------------------------------------------------------------

    /// An image that is staged here has this content: the mirror's copy leaves the swarm, and follows the image's.
    pub(super) fn yield_to_image(&mut self, digest: &Digest) {
        let ours = self
            .contents
            .by_digest(digest)
            .is_some_and(Content::is_mirrored);
        if !ours {
            return;
        }
        self.drop_content(digest);
        self.mirror.seeds.retain(|seed| seed != digest);
        if let Some(wanted) = self.mirror.wants.get_mut(digest) {
            wanted.follows = true;
            self.mirror.changed = true;
        }
    }

    /// Copies a blob from a stage, where it is verified there.
    pub(super) fn copy_from_image(&mut self, digest: &Digest) {
        let Some(content) = self.contents.by_digest(digest) else {
            return;
        };
        let stage = content.shelves().iter().find_map(|shelf| match shelf {
            Shelf::Stage(stage) if stage.is_closed(*digest) => Some(stage.clone()),
            _ => None,
        });
        let (Some(stage), Some(wanted)) = (stage, self.mirror.wants.get_mut(digest)) else {
            return;
        };
        if wanted.copying {
            return;
        }
        wanted.copying = true;
        // of whatever registry the image is
        wanted.blob.comes_from(None);
        let (blob, digest) = (wanted.blob.clone(), *digest);
        self.spawn_blocking(move || {
            if let Err(error) = copy(&stage, &blob) {
                warn!(content = %digest, error, "copying a blob from an image failed");
                blob.set_trouble(Some(Trouble::Disk(error)));
            }
            Input::Copied(digest)
        });
    }

    pub(super) fn copied(&mut self, digest: &Digest) {
        if let Some(wanted) = self.mirror.wants.get_mut(digest) {
            wanted.copying = false;
        }
    }

    // ---- the cache ------------------------------------------------------------------------------------------------

    /// Every few seconds: pins, gauges, and a look at what lies there.
    pub(super) fn keep_cache(&mut self) {
        let Some(blobs) = self.mirror.blobs.clone() else {
            return;
        };
        blobs.pin(self.images.blobs_in_use());
        // evicted blobs aren't served any more
        let gone: Vec<_> = self
            .mirror
            .seeds
            .iter()
            .filter(|seed| blobs.find(seed).is_none())
            .copied()
            .collect();
        for digest in gone {
            self.mirror.seeds.retain(|seed| *seed != digest);
            self.drop_content(&digest);
        }
        let (bytes, _) = blobs.tidy();
        self.metrics
            .mirror_cache_bytes
            .set(i64::try_from(bytes).unwrap_or(i64::MAX));
        let (at, chunk) = self.mirror.scrub_at;
        let (store, home) = (self.store.clone(), self.config.tart_home.clone());
        self.spawn_blocking(move || {
            blobs.leave(&home, store.outstanding_bytes());
            scrub(&blobs, at, chunk)
        });
    }

    pub(super) fn blobs_scrubbed(&mut self, next: (Option<Digest>, u32), bad: Option<Digest>) {
        self.mirror.scrub_at = next;
        let Some(digest) = bad else { return };
        error!(content = %digest, "a blob of the mirror changed on disk since it was verified; dropping it");
        self.mirror.seeds.retain(|seed| *seed != digest);
        // unless it was asked for again since, and is another one
        let gone = |shelf: &Shelf| matches!(shelf, Shelf::Blob(blob) if blob.is_gone());
        let content = self.contents.by_digest(&digest);
        if content.is_some_and(|content| content.shelves().iter().any(gone)) {
            self.stop_wanting(&digest);
            self.drop_content(&digest);
        }
    }
}

/// Copies what a stage holds of a blob, chunk by chunk, each against its link.
fn copy(stage: &Stage, blob: &Blob) -> Result<(), String> {
    let digest = blob.digest();
    for chunk in (0..blob.geometry().chunks()).map(ChunkIndex) {
        let held = match stage.look(digest, chunk) {
            Ok(Look::Sound(held)) => held,
            Ok(Look::Rotten) => return Err("a chunk changed on disk".into()),
            Ok(Look::Missing) => return Err("the image is gone".into()),
            Err(error) => return Err(error.to_string()),
        };
        blob.write(
            chunk,
            &held.bytes,
            held.link,
            held.source,
            (&held.maker, None),
        )
        .map_err(|error| error.to_string())?;
    }
    blob.walk().map_err(|error| error.to_string())?;
    Ok(())
}

/// Reads a few chunks again: where to go on, and the blob that isn't what it was.
fn scrub(blobs: &Blobs, at: Option<Digest>, chunk: u32) -> Input {
    let current = at.filter(|_| chunk > 0).and_then(|at| blobs.find(&at));
    let (blob, first) = match current {
        Some(blob) => (blob, chunk),
        None => match blobs.next_whole(at) {
            Some(blob) => (blob, 0),
            None => {
                return Input::BlobsScrubbed {
                    next: (None, 0),
                    bad: None,
                };
            }
        },
    };
    let digest = blob.digest();
    let end = first
        .saturating_add(SCRUB_CHUNKS)
        .min(blob.geometry().chunks());
    // what can't be read shows by other means: the volume is failing
    let good = blob.load_links().unwrap_or(true)
        && !blob.is_rotten()
        && (first..end)
            .map(ChunkIndex)
            .all(|chunk| !matches!(blob.look(chunk), Ok(Look::Rotten | Look::Missing)));
    // evicted meanwhile: that is no rot
    let good = good || blob.is_gone();
    if !good && let Err(error) = blobs.discard(&digest) {
        warn!(content = %digest, %error, "dropping a rotten blob failed");
    }
    let next = if good && end < blob.geometry().chunks() {
        (Some(digest), end)
    } else {
        (Some(digest), 0)
    };
    Input::BlobsScrubbed {
        next,
        bad: (!good).then_some(digest),
    }
}
