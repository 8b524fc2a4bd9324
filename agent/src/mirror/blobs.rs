//! The mirror's blob cache: every blob of this host, within a budget of bytes.
//!
//! ```text
//! DIRECTORY/                       locked by the one agent that works here
//!   whole/<hex> <hex>.links        verified from the first byte to the digest; the place says so
//!   arriving/<hex> <hex>.links     under way; the journal says which chunks are there
//!   tainted                        blobs that nobody may resume for a while
//! ```
//!
//! A start lists `whole/` and trusts that list: files get there by a rename after data and journal are synced, and the
//! scrub reads them again over time. What a crash leaves in `arriving/` goes on when the blob is asked for. When the
//! budget is reached, the least recently used blobs are evicted, but never one that is read, fetched or pinned.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use proto::{ContentRecipe, Digest, Geometry, HostId, Layout, Recipe, figure::Bytes};
use tracing::{info, warn};

use super::{
    blob::{Blob, Common, Paths, Reading},
    recipes::{self, Recipes},
    taints::Taints,
};
use crate::{
    lock::lock,
    platform::{self, DirectoryLock, Floor, LockError, Space},
};

const WHOLE: &str = "whole";
const ARRIVING: &str = "arriving";
const TAINTS: &str = "tainted";

/// Every blob of this host.
#[derive(Debug)]
pub(crate) struct Blobs {
    root: PathBuf,
    common: Arc<Common>,
    budget_bytes: u64,
    floor: Floor,
    space: fn(&Path) -> io::Result<Space>,
    _lock: DirectoryLock,
    /// Changed by connections and by the driver's jobs. Locked for look-ups, and while a blob's files are made or
    /// removed.
    inner: Mutex<Inner>,
    /// Learnt by connections and by the driver. Locked for look-ups.
    recipes: Mutex<Recipes>,
    /// Free bytes of the volume that images under construction will take.
    spoken_for_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    blobs: BTreeMap<Digest, Arc<Blob>>,
    /// Bytes that all blobs take at most: the sum of their sizes.
    bytes: u64,
    pinned: BTreeSet<Digest>,
}

/// The limits of the cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes that all blobs may take together.
    pub(crate) budget_bytes: u64,
    /// What stays free of the volume.
    pub(crate) floor: Floor,
    /// Reads the volume's room. Tests replace it.
    pub(crate) space: fn(&Path) -> io::Result<Space>,
}

/// Why a blob can't be kept in the cache.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BeginError {
    /// Evicting every idle blob wouldn't make enough room in the budget or on the volume.
    #[error(
        "the blob cache has no room for {}: its budget is {}, and {} are free on its volume; raise mirror.cache_bytes or make room",
        Bytes(*need_bytes), Bytes(*budget_bytes), Bytes(*free_bytes)
    )]
    NoRoom {
        need_bytes: u64,
        budget_bytes: u64,
        free_bytes: u64,
    },
    /// The size is larger than any blob can be.
    #[error("the blob has {}, more than any blob may have", Bytes(*.0))]
    TooLarge(u64),
    /// The same digest is known with another size, so one of the two sizes is wrong.
    #[error("the blob has {held} bytes here, and {asked} were announced")]
    Size { held: u64, asked: u64 },
    /// The volume failed.
    #[error("blob cache: {0}")]
    Io(#[from] io::Error),
}

/// Why the cache can't be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Another agent uses the directory.
    #[error("another agent uses the blob cache {0}; stop it, or set mirror.directory")]
    InUse(PathBuf),
    /// The directory can't be made, read or locked.
    #[error("blob cache {path}: {error}")]
    Io { path: PathBuf, error: io::Error },
}

impl Blobs {
    /// Opens the cache, and locks it for this process. Blocks while it looks at each file, without reading whole blobs.
    pub(crate) fn open(root: &Path, me: &HostId, limits: Limits) -> Result<Self, OpenError> {
        let at = |error: io::Error| OpenError::Io {
            path: root.into(),
            error,
        };
        for directory in [WHOLE, ARRIVING] {
            fs::create_dir_all(root.join(directory)).map_err(at)?;
        }
        let locked = match platform::lock_directory(root, Duration::ZERO) {
            Ok(lock) => lock,
            Err(LockError::Busy { .. }) => return Err(OpenError::InUse(root.into())),
            Err(LockError::Io { error, .. }) => return Err(at(error)),
        };
        let common = Common {
            me: me.clone(),
            hosts: Arc::default(),
            taints: Taints::open(root.join(TAINTS)).map_err(at)?,
        };
        let this = Self {
            root: root.into(),
            common: Arc::new(common),
            budget_bytes: limits.budget_bytes,
            floor: limits.floor,
            space: limits.space,
            _lock: locked,
            inner: Mutex::default(),
            recipes: Mutex::default(),
            spoken_for_bytes: AtomicU64::new(0),
        };
        this.load().map_err(at)?;
        Ok(this)
    }

    fn load(&self) -> io::Result<()> {
        durable::sweep(&self.root)?;
        let mut inner = lock(&self.inner);
        let now = (Instant::now(), SystemTime::now());
        for (directory, whole) in [(WHOLE, true), (ARRIVING, false)] {
            for entry in fs::read_dir(self.root.join(directory))? {
                let entry = entry?;
                let name = entry.file_name();
                let name = name.to_str().unwrap_or_default();
                if let Some(of) = name.strip_suffix(".links") {
                    // links without their blob, which a crash between two removals or renames leaves
                    let blob = entry.path().with_file_name(of);
                    if !blob.exists() {
                        fs::remove_file(entry.path())?;
                    }
                    continue;
                }
                let Ok(digest) = format!("sha256:{name}").parse::<Digest>() else {
                    continue;
                };
                let found = entry.metadata()?;
                let Ok(geometry) = Geometry::new(found.len()) else {
                    continue;
                };
                let paths = self.paths(&digest);
                let blob = if whole {
                    Blob::resting(digest, geometry, paths, &self.common)
                } else {
                    match Blob::begin(digest, geometry, paths, &self.common) {
                        Ok(blob) => {
                            blob.park();
                            blob
                        }
                        Err(error) => {
                            warn!(content = %digest, %error, "a blob that was arriving can't be read; dropping it");
                            drop(fs::remove_file(entry.path()));
                            continue;
                        }
                    }
                };
                // the time of the last use isn't kept; after a restart the file's time is near enough
                let age = found
                    .modified()
                    .ok()
                    .and_then(|at| now.1.duration_since(at).ok())
                    .unwrap_or_default();
                if let Some(used) = now.0.checked_sub(age) {
                    blob.was_used(used);
                }
                inner.bytes += found.len();
                inner.blobs.insert(digest, Arc::new(blob));
            }
        }
        Ok(())
    }

    pub(crate) fn find(&self, digest: &Digest) -> Option<Arc<Blob>> {
        lock(&self.inner).blobs.get(digest).cloned()
    }

    /// Whether a client that holds a part of this blob may go on from there.
    pub(crate) fn may_resume(&self, digest: &Digest) -> bool {
        !self.common.taints.covers(digest)
    }

    /// Learns the recipe of an image of this repository, whose digest is `name`. From now on it proves the image's
    /// blobs to those who read them by this repository: blobs that arrive, and those that begin later.
    pub(crate) fn learn(&self, repository: &str, layout: &Layout, (name, of): (Digest, &Recipe)) {
        self.learn_parts(repository, name, recipes::parts(layout, of));
    }

    /// As [`learn`](Self::learn), with the parts of a recipe that prove blobs.
    pub(super) fn learn_parts(
        &self,
        repository: &str,
        name: Digest,
        parts: Vec<Arc<ContentRecipe>>,
    ) {
        let learnt = lock(&self.recipes).learn(repository, name, parts);
        for digest in learnt {
            if let Some(blob) = self.find(&digest)
                && blob.is_read_by(repository)
            {
                self.prove(&blob, repository);
            }
        }
    }

    fn prove(&self, blob: &Blob, repository: &str) {
        let known = lock(&self.recipes).of(repository, &blob.digest());
        if let Some((name, recipe)) = known {
            blob.take_recipe(repository, name, &recipe);
        }
    }

    /// As [`begin`](Self::begin), for a client to which this repository gives the blob, as its registry said. If the
    /// repository has a recipe of the blob, the recipe proves it to this client.
    pub(crate) fn begin_by(
        &self,
        repository: &str,
        digest: Digest,
        size: u64,
    ) -> Result<Reading, BeginError> {
        let reading = self.begin(digest, size)?;
        Ok(self.read_by(repository, reading))
    }

    /// As [`begin_by`](Self::begin_by), where no client asked: a blob that is here with another size stays.
    pub(super) fn begin_aside(
        &self,
        repository: &str,
        digest: Digest,
        size: u64,
    ) -> Result<Reading, BeginError> {
        let reading = self.begin_sized(digest, size, false)?;
        Ok(self.read_by(repository, reading))
    }

    fn read_by(&self, repository: &str, mut reading: Reading) -> Reading {
        // noted first: a recipe that is learnt meanwhile sees the note, or is seen here
        reading.by(repository);
        self.prove(&reading.blob, repository);
        reading
    }

    /// Begins to read a blob, and makes it if it isn't here. No recipe proves it to this reader. Evicts other blobs if
    /// it needs their room. Blocks.
    pub(crate) fn begin(&self, digest: Digest, size: u64) -> Result<Reading, BeginError> {
        self.begin_sized(digest, size, true)
    }

    /// Begins to read a blob. `replaces`: in the place of one of another size that nobody reads.
    fn begin_sized(
        &self,
        digest: Digest,
        size: u64,
        replaces: bool,
    ) -> Result<Reading, BeginError> {
        let geometry = Geometry::new(size).map_err(|_| BeginError::TooLarge(size))?;
        let mut inner = lock(&self.inner);
        if let Some(blob) = inner.blobs.get(&digest) {
            if blob.size() == size {
                if !blob.is_parked() {
                    return Ok(blob.read_on());
                }
                let paths = self.paths(&digest);
                let blob = Arc::new(Blob::begin(digest, geometry, paths, &self.common)?);
                let reading = blob.read_on();
                inner.blobs.insert(digest, blob);
                return Ok(reading);
            }
            if !replaces || blob.is_whole() || !blob.is_idle() {
                return Err(BeginError::Size {
                    held: blob.size(),
                    asked: size,
                });
            }
            // an earlier client named another size, and nobody reads that blob any more
            self.drop_blob(&mut inner, &digest)?;
        }
        self.make_room(&mut inner, size)?;
        let paths = self.paths(&digest);
        let blob = Arc::new(Blob::begin(digest, geometry, paths, &self.common)?);
        if geometry.is_empty() {
            // no chunk will arrive, so nothing else would close its chain
            blob.walk()?;
        }
        inner.bytes += size;
        let reading = blob.read_on();
        inner.blobs.insert(digest, blob);
        Ok(reading)
    }

    /// Evicts blobs until `need` more bytes fit. Evicts none if all idle ones together wouldn't make enough room,
    /// because `need` is only what some registry says.
    fn make_room(&self, inner: &mut Inner, need: u64) -> Result<(), BeginError> {
        let mut idle: u64 = inner.idle().map(|blob| blob.size()).sum();
        loop {
            let space = (self.space)(&self.root)?;
            let floor = self.floor.bytes(space.total_bytes);
            let floor = floor.saturating_add(self.spoken_for_bytes.load(Ordering::Relaxed));
            let fits = inner.bytes.saturating_add(need) <= self.budget_bytes;
            if fits && space.free_bytes >= need.saturating_add(floor) {
                return Ok(());
            }
            let could = (inner.bytes - idle.min(inner.bytes)).saturating_add(need)
                <= self.budget_bytes
                && space.free_bytes.saturating_add(idle) >= need.saturating_add(floor);
            let oldest = self.next_to_go(inner).filter(|_| could);
            let Some(oldest) = oldest else {
                return Err(BeginError::NoRoom {
                    need_bytes: need,
                    budget_bytes: self.budget_bytes,
                    free_bytes: space.free_bytes,
                });
            };
            info!(content = %oldest, "a blob leaves the cache to make room");
            let before = inner.bytes;
            self.drop_blob(inner, &oldest)?;
            idle = idle.saturating_sub(before - inner.bytes);
        }
    }

    /// Evicts idle blobs to free this many bytes for an image on this volume: the image is wanted, while the blobs are
    /// kept only in case that somebody wants them. Evicts none if all of them together wouldn't do. Returns whether the
    /// bytes are free now. Blocks.
    pub(crate) fn give_way(&self, volume: &Path, bytes: u64) -> bool {
        if !self.lies_on(volume) {
            return false;
        }
        let mut inner = lock(&self.inner);
        let idle: u64 = inner.idle().map(|blob| blob.size()).sum();
        if idle < bytes {
            return false;
        }
        let before = inner.bytes;
        while before - inner.bytes < bytes {
            let Some(oldest) = self.next_to_go(&inner) else {
                return false;
            };
            info!(content = %oldest, "a blob leaves the cache to make room for an image");
            if let Err(error) = self.drop_blob(&mut inner, &oldest) {
                warn!(content = %oldest, %error, "a blob can't be removed");
                return false;
            }
        }
        true
    }

    /// Sets how many of this volume's free bytes images under construction will take. They don't count if the cache is
    /// on another volume.
    pub(crate) fn leave(&self, volume: &Path, bytes: u64) {
        let bytes = if self.lies_on(volume) { bytes } else { 0 };
        self.spoken_for_bytes.store(bytes, Ordering::Relaxed);
    }

    fn lies_on(&self, volume: &Path) -> bool {
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
        device(volume).is_some_and(|volume| device(&self.root) == Some(volume))
    }

    /// The least recently used blob that nobody reads, fetches or pins.
    fn next_to_go(&self, inner: &Inner) -> Option<Digest> {
        inner
            .idle()
            .min_by_key(|blob| blob.readers().1)
            .map(|blob| blob.digest())
    }

    fn drop_blob(&self, inner: &mut Inner, digest: &Digest) -> io::Result<()> {
        if let Some(blob) = inner.blobs.get(digest) {
            blob.remove()?;
            inner.bytes = inner.bytes.saturating_sub(blob.size());
            inner.blobs.remove(digest);
        }
        Ok(())
    }

    /// Drops a blob whose bytes are wrong, even while somebody reads it. Blocks.
    pub(crate) fn discard(&self, digest: &Digest) -> io::Result<()> {
        let mut inner = lock(&self.inner);
        if let Some(blob) = inner.blobs.get(digest) {
            blob.condemn();
        }
        self.drop_blob(&mut inner, digest)
    }

    /// Sets the blobs that stay although nobody reads them: those of images that are being staged.
    pub(crate) fn pin(&self, pinned: BTreeSet<Digest>) {
        lock(&self.inner).pinned = pinned;
    }

    /// The whole blobs, the most recently used first.
    pub(crate) fn whole(&self) -> Vec<Arc<Blob>> {
        let mut whole: Vec<_> = lock(&self.inner)
            .blobs
            .values()
            .filter(|blob| blob.is_whole())
            .cloned()
            .collect();
        whole.sort_by_key(|blob| std::cmp::Reverse(blob.readers().1));
        whole
    }

    /// The next whole blob after this digest, and from the start again after the last. The scrub goes through blobs in
    /// this order.
    pub(crate) fn next_whole(&self, after: Option<Digest>) -> Option<Arc<Blob>> {
        let inner = lock(&self.inner);
        let whole = |blob: &&Arc<Blob>| blob.is_whole();
        let later = inner
            .blobs
            .iter()
            .filter(|(digest, _)| after.is_none_or(|after| **digest > after))
            .map(|(_, blob)| blob);
        later.chain(inner.blobs.values()).find(whole).cloned()
    }

    /// Closes files that nobody reads. Returns the bytes of all blobs, and their number.
    pub(crate) fn tidy(&self) -> (u64, usize) {
        let inner = lock(&self.inner);
        for blob in inner.blobs.values() {
            blob.rest();
            if blob.is_idle() && Arc::strong_count(blob) == 1 {
                blob.park();
            }
        }
        (inner.bytes, inner.blobs.len())
    }

    /// Flushes every blob that is arriving. Blocks.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let arriving: Vec<_> = lock(&self.inner)
            .blobs
            .values()
            .filter(|blob| !blob.is_whole())
            .cloned()
            .collect();
        let mut result = Ok(());
        for blob in arriving {
            result = blob.flush().and(result);
        }
        result
    }

    fn paths(&self, digest: &Digest) -> Paths {
        let name = digest.hex().to_string();
        Paths {
            arriving: self.root.join(ARRIVING).join(&name),
            resting: self.root.join(WHOLE).join(&name),
        }
    }
}

impl Inner {
    /// Blobs that nobody reads, fetches or pins.
    fn idle(&self) -> impl Iterator<Item = &Arc<Blob>> {
        let idle = |blob: &&Arc<Blob>| blob.is_idle() && !self.pinned.contains(&blob.digest());
        self.blobs.values().filter(idle)
    }
}

#[cfg(test)]
mod proved;
#[cfg(test)]
pub(crate) mod tests;
