//! The driver's care for the mirror's blob cache: finding whole blobs again, pinning, evicting, and reading blobs again
//! in turn.

use std::{path::Path, sync::Arc};

use proto::{ChunkIndex, Digest, ledger::RejectLinkError};
use swarm::event::ContentId;
use tracing::warn;

use super::{input::Input, wants::MAX_SEEDS};
use crate::{
    mirror::{
        blob::{Blob, Trouble},
        blobs::Blobs,
    },
    shelf::Shelf,
    store::{Look, Store, WriteError},
};

/// Chunks that are read again at a time, every 5 s. Images have the same number.
const SCRUB_CHUNKS: u32 = 8;

/// Work that blocks.
type Job = Box<dyn FnOnce() -> Input + Send>;

/// The cache, and the place where its scrub goes on. Without a mirror there is none.
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

    /// Finds the whole blobs of an earlier process. The job ends in [`Input::Seeds`].
    pub(super) fn recover(&self) -> Option<Job> {
        let blobs = self.blobs.clone()?;
        Some(Box::new(move || {
            let whole = blobs.whole().into_iter().take(MAX_SEEDS);
            // the oldest comes first, so that it is evicted first
            let mut seeds: Vec<_> = whole
                .filter(|blob| blob.load_links().unwrap_or(false))
                .collect();
            seeds.reverse();
            Input::Seeds(seeds)
        }))
    }

    /// Makes room for images that are being staged on this volume, and reads a few chunks again. The job ends in
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

    /// Some of the cache was read again. The next scrub goes on at `next`.
    pub(super) const fn scrubbed(&mut self, next: (Option<Digest>, u32)) {
        self.scrub_at = next;
    }
}

/// Reads a few chunks again. Says where the next scrub goes on, and which blob was found rotten.
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
    // a blob that can't be read counts as good: the volume is failing, which shows by other means
    let good = blob.load_links().unwrap_or(true)
        && !blob.is_rotten()
        && (first..end)
            .map(ChunkIndex)
            .all(|chunk| !matches!(blob.look(chunk), Ok(Look::Rotten | Look::Missing)));
    // a blob that was evicted meanwhile isn't rotten
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

/// Copies a blob from where an image has it, chunk by chunk. Each chunk is compared with its link.
pub(super) fn copy(from: &Shelf, blob: &Blob) -> Input {
    let digest = blob.digest();
    if let Err(error) = copy_chunks(from, blob) {
        warn!(content = %digest, error, "copying a blob from an image failed");
        blob.set_trouble(Some(Trouble::Disk(error)));
    }
    Input::Copied(digest)
}

fn copy_chunks(from: &Shelf, blob: &Blob) -> Result<(), String> {
    let digest = blob.digest();
    for chunk in (0..blob.geometry().chunks()).map(ChunkIndex) {
        let held = match from.look(digest, chunk) {
            Ok(Look::Sound(held)) => held,
            Ok(Look::Rotten) => return Err("a chunk changed on disk".into()),
            Ok(Look::Missing) => return Err("the image is gone".into()),
            Err(error) => return Err(error.to_string()),
        };
        let maker = (&held.maker, None);
        let write = || blob.write(chunk, &held.bytes, held.link, held.source, maker);
        let written = match write() {
            // the image's chain is closed, so the recipe is false
            Err(WriteError::Rejected(RejectLinkError::AgainstRecipe(_))) => {
                blob.leave_recipe();
                write()
            }
            other => other,
        };
        written.map_err(|error| error.to_string())?;
    }
    blob.walk().map_err(|error| error.to_string())?;
    Ok(())
}

/// Reads the bytes that an earlier process left of a blob. Chunks that the blob lacks are asked for again.
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

#[cfg(test)]
mod tests;
