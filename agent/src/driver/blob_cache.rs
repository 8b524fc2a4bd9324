//! The mirror's blob cache, as the driver keeps it: whole blobs are found again, pinned, evicted, and read again in
//! turn.

use std::{path::Path, sync::Arc};

use proto::{ChunkIndex, Digest};
use swarm::event::ContentId;
use tracing::warn;

use super::{input::Input, wants::MAX_SEEDS};
use crate::{
    mirror::{
        blob::{Blob, Trouble},
        blobs::Blobs,
    },
    store::{Look, Stage, Store},
};

/// Chunks that are read again at a time, every 5 s, as of images.
const SCRUB_CHUNKS: u32 = 8;

/// Work that blocks.
type Job = Box<dyn FnOnce() -> Input + Send>;

/// The cache, and where its scrub goes on. Without a mirror there is none.
#[derive(Debug)]
pub(super) struct BlobCache {
    blobs: Option<Arc<Blobs>>,
    scrub_at: (Option<Digest>, u32),
}

impl BlobCache {
    pub(super) const fn new(blobs: Option<Arc<Blobs>>) -> Self {
        Self {
            blobs,
            scrub_at: (None, 0),
        }
    }

    pub(super) const fn blobs(&self) -> Option<&Arc<Blobs>> {
        self.blobs.as_ref()
    }

    /// Finds the whole blobs of an earlier process, and ends in [`Input::Seeds`].
    pub(super) fn recover(&self) -> Option<Job> {
        let blobs = self.blobs.clone()?;
        Some(Box::new(move || {
            let whole = blobs.whole().into_iter().take(MAX_SEEDS);
            // the oldest first, so that it is the first to go
            let mut seeds: Vec<_> = whole
                .filter(|blob| blob.load_links().unwrap_or(false))
                .collect();
            seeds.reverse();
            Input::Seeds(seeds)
        }))
    }

    /// Gives way to images that are being staged on this volume, and reads a few chunks again. It ends in
    /// [`Input::BlobsScrubbed`].
    pub(super) fn scrub(&self, store: Arc<Store>, home: &Path) -> Option<Job> {
        let blobs = self.blobs.clone()?;
        let (at, chunk) = self.scrub_at;
        let home = home.to_owned();
        Some(Box::new(move || {
            blobs.leave(&home, store.outstanding_bytes());
            scrub(&blobs, at, chunk)
        }))
    }

    /// Some of the cache was read again: the next time goes on here.
    pub(super) const fn scrubbed(&mut self, next: (Option<Digest>, u32)) {
        self.scrub_at = next;
    }
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

/// Copies a blob from a stage, chunk by chunk, each against its link.
pub(super) fn copy(stage: &Stage, blob: &Blob) -> Input {
    let digest = blob.digest();
    if let Err(error) = copy_chunks(stage, blob) {
        warn!(content = %digest, error, "copying a blob from an image failed");
        blob.set_trouble(Some(Trouble::Disk(error)));
    }
    Input::Copied(digest)
}

fn copy_chunks(stage: &Stage, blob: &Blob) -> Result<(), String> {
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

/// Reads what an earlier process left of a blob: what it lacks is asked for again.
pub(super) fn read_again(id: ContentId, blob: &Blob) -> Input {
    Input::Dropped {
        id,
        result: blob.read_again().map_err(|error| error.to_string()),
    }
}

/// Puts a verified blob where whole blobs lie.
pub(super) fn put_in_place(blob: &Blob) -> Input {
    if let Err(error) = blob.walk() {
        warn!(content = %blob.digest(), %error, "a verified blob can't be put in its place");
        blob.set_trouble(Some(Trouble::Disk(error.to_string())));
    }
    Input::Nothing
}

/// Forgets all bytes of a blob, which are false, and tells its clients why.
pub(super) fn forget_all(blob: &Blob, message: String) -> Input {
    if let Err(error) = blob.forget_all() {
        warn!(content = %blob.digest(), %error, "dropping false bytes isn't journaled");
    }
    blob.set_trouble(Some(Trouble::Bad(message)));
    Input::Nothing
}
