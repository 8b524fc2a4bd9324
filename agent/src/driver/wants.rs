//! The blobs that clients of this host's mirror want, and the whole blobs that peers may ask for.
//!
//! A blob that a client wants is reported to the coordinator, which leases it to one of the hosts that want it. The
//! others get its chunks from peers. If nothing comes for a while and the coordinator doesn't say that something will,
//! the swarm fetches the blob without a lease.
//!
//! This part touches neither swarm nor disk. It returns [`Effect`]s, which the driver carries out.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use proto::{
    Digest,
    limits::MAX_MIRROR_WANTS,
    message::{MirrorQueue, MirrorWant, MirrorWants},
};
use tracing::info;

use crate::{
    fetch::{Failure, FetchEnd},
    mirror::{
        blob::{Blob, Trouble},
        is_away, is_refusal,
    },
    registries::Access,
};

/// The most blobs that clients want at one time; more are turned away. 256 connections can't want more.
const MAX_WANTS: usize = 256;
/// The most whole blobs that are served to peers: those that were used last.
pub(super) const MAX_SEEDS: usize = 512;
/// The time between two looks at the wants.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The questions that this part asks a blob. It is a trait so that tests can make up blobs.
pub(super) trait Wantable: Clone {
    fn digest(&self) -> Digest;
    fn size(&self) -> u64;
    /// Whether both are the same blob, and not two blobs of the same digest: a blob that was evicted is gone for good.
    fn is_same(&self, other: &Self) -> bool;
    /// Whether the blob lies where whole blobs lie.
    fn is_whole(&self) -> bool;
    /// Whether the blob was evicted.
    fn is_gone(&self) -> bool;
    /// Whether every byte of the blob is here and true.
    fn is_closed(&self) -> bool;
    /// How many clients read the blob, and when the last one did.
    fn readers(&self) -> (usize, Instant);
    fn trouble(&self) -> Option<Trouble>;
    fn set_trouble(&self, trouble: Option<Trouble>);
    fn set_wanted(&self, wanted: bool);
    /// The coordinator says that the blob is coming: clients go on waiting.
    fn promise(&self);
}

impl Wantable for Arc<Blob> {
    fn digest(&self) -> Digest {
        Blob::digest(self)
    }

    fn size(&self) -> u64 {
        Blob::size(self)
    }

    fn is_same(&self, other: &Self) -> bool {
        Self::ptr_eq(self, other)
    }

    fn is_whole(&self) -> bool {
        Blob::is_whole(self)
    }

    fn is_gone(&self) -> bool {
        Blob::is_gone(self)
    }

    fn is_closed(&self) -> bool {
        Blob::is_closed(self)
    }

    fn readers(&self) -> (usize, Instant) {
        Blob::readers(self)
    }

    fn trouble(&self) -> Option<Trouble> {
        Blob::trouble(self)
    }

    fn set_trouble(&self, trouble: Option<Trouble>) {
        Blob::set_trouble(self, trouble);
    }

    fn set_wanted(&self, wanted: bool) {
        Blob::set_wanted(self, wanted);
    }

    fn promise(&self) {
        Blob::promise(self);
    }
}

/// Work for the driver, after this part heard something.
#[derive(Debug)]
pub(super) enum Effect<B = Arc<Blob>> {
    /// Make this blob a content of the swarm, with this order among contents. If a client wants the blob, the swarm
    /// hears that too, as for each content that it comes to know.
    Join { blob: B, order: u32 },
    /// Take a blob out of the swarm. A content of an image stays.
    Leave(Digest),
    /// Tell the swarm that a client waits for a blob. `admitted`: the registry had refused the blob, and has now let a
    /// client in.
    Wanted { content: Digest, admitted: bool },
    /// Tell the swarm that no client waits for a blob any more.
    Unwanted(Digest),
    /// Tell the swarm that, as the coordinator says, a blob is coming.
    Coming(Digest),
    /// Copy a blob from a stage, if it is verified there: [`Wants::copy`] gives the blob to write.
    CopyFromImage(Digest),
    /// Put a blob where whole blobs lie: every byte is here and true, but the volume failed earlier.
    PutInPlace(B),
    /// Forget all bytes of a blob, since they are false, and tell its clients why.
    ForgetAll { blob: B, message: String },
    /// Tell the coordinator the wants at once.
    ReportNow,
    /// Something changed that belongs into the next report.
    ReportSoon,
}

/// The source of a wanted blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// Peers or the registry.
    Swarm,
    /// An image here has the blob as a content. The blob is copied from the image's stage once it is verified there.
    Image,
    /// The blob is being copied from a stage.
    Copying,
}

/// A blob that clients want.
#[derive(Debug)]
struct Want<B> {
    blob: B,
    reference: String,
    access: Access,
    /// A client with other credentials came since the fetch began.
    renewed: bool,
    /// Tells this want from an earlier want of the same blob.
    number: u64,
    /// The moment since which every byte is here and true although the blob isn't in its place.
    closed_at: Option<Instant>,
    source: Source,
}

/// A client's wish for a blob.
#[derive(Debug)]
pub(super) struct Wish<B = Arc<Blob>> {
    pub(super) blob: B,
    /// The repository that has the blob.
    pub(super) reference: String,
    /// The client's credentials that the registry accepted.
    pub(super) access: Access,
}

/// How the swarm knows a blob now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// The swarm doesn't know the blob.
    No,
    /// As a blob of the mirror.
    Mirrored,
    /// As a blob of the mirror that was evicted since: the swarm's knowledge is of no use.
    Gone,
    /// As a content of an image.
    OfImage,
}

/// All wants and seeds.
#[derive(Debug)]
pub(super) struct Wants<B = Arc<Blob>> {
    /// A client waits this long before its blob is fetched without a lease.
    stall: Duration,
    /// A blob that no client reads stays wanted for this long.
    grace: Duration,
    wants: BTreeMap<Digest, Want<B>>,
    last_number: u64,
    /// Whole blobs that peers may ask for, oldest first.
    seeds: VecDeque<Digest>,
    /// The wants changed since the last report.
    changed: bool,
    last_look: Option<Instant>,
}

impl<B: Wantable> Wants<B> {
    pub(super) const fn new(stall: Duration, grace: Duration) -> Self {
        Self {
            stall,
            grace,
            wants: BTreeMap::new(),
            last_number: 0,
            seeds: VecDeque::new(),
            changed: false,
            last_look: None,
        }
    }

    // ---- clients --------------------------------------------------------------------------------------------------

    /// A client wants a blob that isn't here.
    pub(super) fn wish(&mut self, now: Instant, wish: Wish<B>, known: Known) -> Vec<Effect<B>> {
        let Wish {
            blob,
            reference,
            access,
        } = wish;
        let content = blob.digest();
        let mut out = Vec::new();
        if blob.is_whole() || blob.is_gone() {
            return out;
        }
        let refused = matches!(blob.trouble(), Some(Trouble::Refused(_)));
        blob.set_trouble(None);
        // a blob that was evicted and is asked for again is a new one
        let before = self.wants.get(&content);
        if before.is_some_and(|want| !want.blob.is_same(&blob)) {
            self.stop(&content, &mut out);
        }
        if known == Known::Gone {
            self.seeds.retain(|seed| *seed != content);
            out.push(Effect::Leave(content));
        }
        if let Some(want) = self.wants.get_mut(&content) {
            if (&want.reference, &want.access) != (&reference, &access) {
                (want.reference, want.access) = (reference, access);
                want.renewed = true;
            }
            // the registry refused the earlier credentials, and has just accepted these
            if refused {
                out.push(Effect::Wanted {
                    content,
                    admitted: true,
                });
            }
            return out;
        }
        if self.wants.len() >= MAX_WANTS {
            blob.set_trouble(Some(Trouble::Stalled("too many blobs are wanted".into())));
            return out;
        }
        blob.set_wanted(true);
        self.last_number += 1;
        let source = match known {
            Known::OfImage => Source::Image,
            Known::No | Known::Mirrored | Known::Gone => Source::Swarm,
        };
        let want = Want {
            blob: blob.clone(),
            reference,
            access,
            renewed: false,
            number: self.last_number,
            closed_at: None,
            source,
        };
        self.wants.insert(content, want);
        self.last_look.get_or_insert(now);
        match source {
            Source::Image | Source::Copying => {
                out.push(Effect::Wanted {
                    content,
                    admitted: refused,
                });
                out.push(Effect::CopyFromImage(content));
            }
            Source::Swarm => {
                info!(%content, bytes = blob.size(), "a client of the mirror wants a blob");
                out.push(Effect::Join { blob, order: 0 });
                if refused {
                    out.push(Effect::Wanted {
                        content,
                        admitted: true,
                    });
                }
                self.changed = true;
                out.push(Effect::ReportNow);
            }
        }
        out
    }

    /// How to fetch a blob that a client wants. The fetch begins with this call.
    pub(super) fn access(&mut self, content: &Digest) -> Option<(String, Access)> {
        let want = self.wants.get_mut(content)?;
        want.renewed = false;
        Some((want.reference.clone(), want.access.clone()))
    }

    /// How long a client of this blob waits until the blob is fetched without a lease; `None` if no client wants it.
    pub(super) fn alone_after(&self, content: &Digest) -> Option<Duration> {
        self.wants.contains_key(content).then_some(self.stall)
    }

    fn stop(&mut self, content: &Digest, out: &mut Vec<Effect<B>>) {
        if let Some(want) = self.wants.remove(content) {
            want.blob.set_wanted(false);
            self.changed = true;
            out.push(Effect::Unwanted(*content));
            out.push(Effect::ReportSoon);
        }
    }

    /// A want ends, and its blob leaves the swarm.
    fn stop_and_leave(&mut self, content: &Digest, out: &mut Vec<Effect<B>>) {
        self.stop(content, out);
        out.push(Effect::Leave(*content));
    }

    // ---- time -----------------------------------------------------------------------------------------------------

    /// When wants are looked at next.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let last = self.last_look?;
        (!self.wants.is_empty()).then_some(last + LOOK_EVERY)
    }

    /// Looks at all wants: some are done, some are abandoned, and some are complete and not in their place.
    pub(super) fn look(&mut self, now: Instant) -> Vec<Effect<B>> {
        self.last_look = Some(now);
        let mut out = Vec::new();
        let (mut done, mut abandoned) = (Vec::new(), Vec::new());
        for (content, want) in &mut self.wants {
            let (readers, last) = want.blob.readers();
            let whole = want.blob.is_whole();
            let left = readers == 0 && now.saturating_duration_since(last) > self.grace;
            if want.blob.is_gone() || !whole && left {
                abandoned.push(*content);
            } else if whole {
                done.push((*content, want.source));
            } else if want.blob.is_closed() {
                let since = *want.closed_at.get_or_insert(now);
                if now.saturating_duration_since(since) > self.stall {
                    want.closed_at = Some(now);
                    out.push(Effect::PutInPlace(want.blob.clone()));
                }
            } else {
                want.closed_at = None;
            }
        }
        for (content, source) in done {
            self.stop(&content, &mut out);
            if source == Source::Swarm {
                self.seed(content, &mut out);
            }
        }
        for content in abandoned {
            info!(%content, "nobody reads a blob any more; its fetch ends");
            self.stop_and_leave(&content, &mut out);
        }
        out
    }

    // ---- what happens to a blob -----------------------------------------------------------------------------------

    /// The coordinator says which wanted blobs are coming, or have their place in the queue.
    pub(super) fn are_coming(&self, queue: &MirrorQueue) -> Vec<Effect<B>> {
        let digests = queue.contents.iter();
        let digests = digests.filter_map(|content| Digest::try_from(content.as_slice()).ok());
        let wanted = digests.filter(|content| {
            let want = self.wants.get(content);
            want.inspect(|want| want.blob.promise()).is_some()
        });
        wanted.map(Effect::Coming).collect()
    }

    /// A fetch of a blob ended, and the swarm was told.
    pub(super) fn fetch_ended(&mut self, content: &Digest, end: FetchEnd) -> Vec<Effect<B>> {
        let mut out = Vec::new();
        let Some(want) = self.wants.get_mut(content) else {
            return out;
        };
        let failure = match end {
            // another method handles a volume that failed
            FetchEnd::Done | FetchEnd::Disk(_) | FetchEnd::Unwanted => return out,
            FetchEnd::Bad(message) => {
                // the bytes don't end in the digest: none is kept, and no fetch may go on from them
                let blob = want.blob.clone();
                self.stop_and_leave(content, &mut out);
                out.push(Effect::ForgetAll { blob, message });
                return out;
            }
            FetchEnd::Failed(failure) => failure,
        };
        let trouble = match failure {
            // the registry may let in the client that came since the fetch began
            Failure::Origin(error) if is_refusal(&error) && want.renewed => {
                out.push(Effect::Wanted {
                    content: *content,
                    admitted: true,
                });
                return out;
            }
            Failure::Origin(error) if is_refusal(&error) => Trouble::Refused(error),
            // the fetch goes on when the registry is back; clients wait for that as long as they can
            Failure::Origin(error) if is_away(&error) => return out,
            Failure::Origin(error) | Failure::CutShort(error) => {
                Trouble::Stalled(error.to_string())
            }
            Failure::Settings(error) => Trouble::Stalled(error),
        };
        want.blob.set_trouble(Some(trouble));
        out
    }

    /// The volume failed while blobs arrived. Copies from images go on.
    pub(super) fn storage_failed(&mut self, message: &str) -> Vec<Effect<B>> {
        let arriving = self
            .wants
            .iter()
            .filter(|(_, want)| want.source == Source::Swarm);
        let arriving: Vec<_> = arriving
            .map(|(content, want)| (*content, want.blob.clone()))
            .collect();
        let mut out = Vec::new();
        for (content, blob) in arriving {
            blob.set_trouble(Some(Trouble::Disk(message.into())));
            self.stop_and_leave(&content, &mut out);
        }
        out
    }

    // ---- blobs that are contents of images too --------------------------------------------------------------------

    /// An image that is staged here has this content, which was a blob of the mirror in the swarm. The mirror's blob
    /// leaves the swarm, and gets its bytes from the image's stage.
    pub(super) fn follow_image(&mut self, content: &Digest) -> Effect<B> {
        self.seeds.retain(|seed| seed != content);
        if let Some(want) = self.wants.get_mut(content) {
            want.source = Source::Image;
            self.changed = true;
        }
        Effect::Leave(*content)
    }

    /// A stage has this content verified. Returns the blob to copy it to, if a client wants the blob and no copy runs.
    pub(super) fn copy(&mut self, content: &Digest) -> Option<B> {
        let want = self.wants.get_mut(content)?;
        if want.source == Source::Copying {
            return None;
        }
        want.source = Source::Copying;
        Some(want.blob.clone())
    }

    /// Copying a blob from an image ended.
    pub(super) fn copied(&mut self, content: &Digest) {
        if let Some(want) = self.wants.get_mut(content) {
            want.source = Source::Image;
        }
    }

    // ---- seeds ----------------------------------------------------------------------------------------------------

    /// Whole blobs of an earlier process, oldest first, that the swarm doesn't know: peers may ask for them again.
    pub(super) fn recovered(&mut self, blobs: Vec<B>) -> Vec<Effect<B>> {
        let mut out = Vec::new();
        for blob in blobs {
            let content = blob.digest();
            out.push(Effect::Join {
                blob,
                order: u32::MAX,
            });
            self.seed(content, &mut out);
        }
        out
    }

    /// Keeps a whole blob in the swarm for peers. If there are too many, the oldest leaves.
    fn seed(&mut self, content: Digest, out: &mut Vec<Effect<B>>) {
        if !self.seeds.contains(&content) {
            self.seeds.push_back(content);
        }
        while self.seeds.len() > MAX_SEEDS {
            out.extend(self.seeds.pop_front().map(Effect::Leave));
        }
    }

    /// Blobs were evicted from the cache, except those for which `is_kept` is true: evicted blobs aren't served any
    /// more.
    pub(super) fn evicted(&mut self, is_kept: impl Fn(&Digest) -> bool) -> Vec<Effect<B>> {
        let seeds = std::mem::take(&mut self.seeds).into_iter();
        let (kept, gone): (Vec<_>, Vec<_>) = seeds.partition(|seed| is_kept(seed));
        self.seeds = kept.into();
        gone.into_iter().map(Effect::Leave).collect()
    }

    /// A blob changed on disk since it was verified, and was dropped. If a client asked for it again since, that is a
    /// new blob, which stays.
    pub(super) fn rotted(&mut self, content: &Digest, known: Known) -> Vec<Effect<B>> {
        self.seeds.retain(|seed| seed != content);
        let mut out = Vec::new();
        if known == Known::Gone {
            self.stop_and_leave(content, &mut out);
        }
        out
    }

    // ---- reports --------------------------------------------------------------------------------------------------

    /// The wants for the coordinator: all of them, if they changed or the report is `full`.
    pub(super) fn report(&mut self, full: bool) -> Option<MirrorWants> {
        if !std::mem::take(&mut self.changed) && !full {
            return None;
        }
        let shared = self.wants.values();
        let shared = shared.filter(|want| want.source == Source::Swarm);
        let wants = shared.take(MAX_MIRROR_WANTS).map(|want| MirrorWant {
            content: want.blob.digest().as_bytes().to_vec(),
            size: want.blob.size(),
            number: want.number,
        });
        Some(MirrorWants {
            wants: wants.collect(),
        })
    }

    /// A report with the wants couldn't be sent.
    pub(super) const fn unsent(&mut self) {
        self.changed = true;
    }
}

#[cfg(test)]
mod tests;
