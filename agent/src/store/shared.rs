//! What a store shares with all its stages.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use proto::{Digest, HostId, Layout};
use tracing::debug;

use super::{
    blocks::pieces::Pieces,
    budget::{Budget, Taken},
    claim::Hosts,
    content_files::ContentFiles,
    news::{News, NewsBox},
    prints::Prints,
    room::Room,
    tree::ROOT,
};
use crate::{
    lock::lock,
    platform::{self, Floor, Space},
};

/// A beginning looks for blocks this long.
const MAX_SEARCH: Duration = Duration::from_mins(1);

/// The memory of all beginnings together that go by a recipe, beside the recipes: two of 140 GB. Others wait.
const MAX_BEGINNINGS_BYTES: u64 = 32 << 20;
/// A chunk in the lists of a beginning: a fingerprint with a place.
const CHUNK_NOTE_BYTES: u64 = 24;
/// The indexes of the disks that a beginning searches.
const SEARCH_BYTES: u64 = 5 << 20;

/// The store's settings.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The share of the volume that staging leaves free, in percent.
    pub floor_percent: u8,
    /// Bytes that staging leaves free beside that share.
    pub kept_bytes: u64,
    /// How long one installation waits for tart to release the lock on a registry's directory. A longer pull is waited
    /// for by installing again.
    pub lock_wait: Duration,
    /// How long an image stays guarded after its tag's link was made. tart's `gc` counts the links without a lock, and
    /// removes what had none and has no marker then (tart, Sources/tart/VMStorageOCI.swift: gc). One that counted
    /// before the link was made mustn't find the marker gone.
    pub guard: Duration,
    /// How long a stage's beginning looks for blocks on other disks here, at most. Meanwhile nothing of the image comes
    /// from elsewhere. Chunks that weren't looked for by then are fetched.
    pub search: Duration,
    /// Reads the volume's room. Tests replace it.
    pub space: fn(&Path) -> io::Result<Space>,
}

impl Options {
    fn floor(&self) -> Floor {
        Floor {
            percent: self.floor_percent,
            kept_bytes: self.kept_bytes,
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            floor_percent: 15,
            kept_bytes: 0,
            lock_wait: Duration::from_secs(30),
            guard: Duration::from_mins(1),
            search: MAX_SEARCH,
            space: platform::space,
        }
    }
}

/// What the store and its stages share.
#[derive(Debug)]
pub(crate) struct Shared {
    home: PathBuf,
    lock_wait: Duration,
    guard: Duration,
    search: Duration,
    /// Images for which nobody waits any more. Locked for a look.
    given_up: Mutex<BTreeSet<Digest>>,
    hosts: Arc<Hosts>,
    room: Room,
    news: NewsBox,
    /// Whether long operations shall end early.
    stopping: AtomicBool,
    /// Whether files on the volume can share blocks, once an attempt showed that.
    clones: OnceLock<bool>,
    /// What searches read of recipes.
    pieces: Arc<Pieces>,
    /// What images here hold, as the last beginning without a recipe found it.
    prints: Mutex<Arc<Prints>>,
    /// The memory of beginnings.
    beginnings: Budget,
    /// One index is made at a time, in 10 MB.
    indexing: Budget,
    /// Files of tart's cache that images share.
    content_files: ContentFiles,
    /// This host's id, if it was set. Links that are made here name it as their maker.
    host: OnceLock<HostId>,
}

impl Shared {
    pub(super) fn new(home: PathBuf, options: &Options) -> Self {
        Self {
            room: Room::new(home.clone(), options.floor(), options.space),
            home,
            lock_wait: options.lock_wait,
            guard: options.guard,
            search: options.search,
            given_up: Mutex::default(),
            hosts: Arc::default(),
            news: NewsBox::default(),
            stopping: AtomicBool::new(false),
            clones: OnceLock::new(),
            pieces: Arc::default(),
            prints: Mutex::default(),
            beginnings: Budget::new(MAX_BEGINNINGS_BYTES),
            indexing: Budget::new(1),
            content_files: ContentFiles::default(),
            host: OnceLock::new(),
        }
    }

    /// tart's home.
    pub(super) fn home(&self) -> &Path {
        &self.home
    }

    /// Our directory of an image.
    pub(super) fn directory(&self, image: &Digest) -> PathBuf {
        self.home.join(ROOT).join(image.hex().to_string())
    }

    /// How long an installation waits for tart's lock.
    pub(super) const fn lock_wait(&self) -> Duration {
        self.lock_wait
    }

    /// How long an image stays guarded after its tag's link was made.
    pub(super) const fn guard(&self) -> Duration {
        self.guard
    }

    /// How long a beginning looks for blocks.
    pub(super) const fn search(&self) -> Duration {
        self.search
    }

    /// Notes whether anybody waits for an image. Where nobody does, its beginning ends early.
    pub(super) fn set_given_up(&self, image: Digest, given_up: bool) {
        let mut images = lock(&self.given_up);
        match given_up {
            true => images.insert(image),
            false => images.remove(&image),
        };
    }

    /// Whether nobody waits for an image any more.
    pub(super) fn is_given_up(&self, image: &Digest) -> bool {
        lock(&self.given_up).contains(image)
    }

    /// What searches read of recipes.
    pub(super) const fn pieces(&self) -> &Arc<Pieces> {
        &self.pieces
    }

    /// What images here hold, for stages without a recipe.
    pub(super) fn prints(&self) -> Arc<Prints> {
        lock(&self.prints).clone()
    }

    /// Stages without a recipe look there from now on.
    pub(super) fn set_prints(&self, prints: Prints) {
        *lock(&self.prints) = Arc::new(prints);
    }

    /// Waits until there is memory for the beginning of an image by a recipe, and takes it. An image that needs more
    /// than all begins when no other one does.
    ///
    /// # Errors
    /// When the program stops while this waits, or nobody waits for the image any more.
    pub(super) fn take_memory(&self, layout: &Layout) -> io::Result<Taken<'_>> {
        let contents = layout.contents();
        let places = contents
            .iter()
            .map(|spec| u64::from(spec.geometry.chunks()) * (1 + spec.places.len() as u64));
        let bytes = SEARCH_BYTES + places.sum::<u64>() * CHUNK_NOTE_BYTES;
        self.beginnings.take(bytes, &|| {
            self.go_on()?;
            match self.is_given_up(layout.digest()) {
                true => Err(io::Error::new(
                    io::ErrorKind::Interrupted,
                    "nobody waits for the image any more",
                )),
                false => Ok(()),
            }
        })
    }

    /// Waits until no other thread makes an index, and keeps others from it until what is returned is dropped.
    ///
    /// # Errors
    /// Those of `go_on`.
    pub(super) fn indexing(&self, go_on: &dyn Fn() -> io::Result<()>) -> io::Result<Taken<'_>> {
        self.indexing.take(1, go_on)
    }

    pub(super) const fn hosts(&self) -> &Arc<Hosts> {
        &self.hosts
    }

    /// The files of tart's cache that images of ours installed, and share.
    pub(super) const fn content_files(&self) -> &ContentFiles {
        &self.content_files
    }

    pub(super) const fn room(&self) -> &Room {
        &self.room
    }

    /// Whether files on the volume can share blocks. Calls try it until an attempt shows it; false until then. Blocks.
    pub(super) fn clones(&self) -> bool {
        if let Some(clones) = self.clones.get() {
            return *clones;
        }
        match platform::can_clone(&self.home.join(ROOT)) {
            Ok(clones) => *self.clones.get_or_init(|| clones),
            Err(error) => {
                debug!(%error, "whether the volume can clone files can't be tried now; it is tried again");
                false
            }
        }
    }

    pub(super) fn tell(&self, news: News) {
        self.news.put(news);
    }

    pub(super) fn take_news(&self) -> Vec<News> {
        self.news.take()
    }

    pub(super) fn set_host(&self, host: HostId) {
        // the first call counts, because the program is one host
        drop(self.host.set(host));
    }

    /// The host that links made here name as their maker.
    pub(super) fn host(&self) -> HostId {
        let unnamed = || "this-host".parse().expect("a host id");
        self.host.get().cloned().unwrap_or_else(unnamed)
    }

    /// Makes long operations end with an error from now on.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Returns an error if the program stops.
    pub(super) fn go_on(&self) -> io::Result<()> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(io::Error::new(
                io::ErrorKind::Interrupted,
                "the agent stops",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::platform::cloning::PRETENDED;

    #[test]
    fn an_attempt_to_clone_that_says_nothing_of_the_volume_decides_nothing() {
        let home = tempfile::tempdir().unwrap();
        PRETENDED.set(true);
        let shared = Shared::new(home.path().into(), &Options::default());
        assert!(!shared.clones(), "there is no directory to try it in");
        let root = home.path().join(ROOT);
        // a directory stands in the way
        fs::create_dir_all(root.join(".clone-to.tmp")).unwrap();
        assert!(!shared.clones());
        fs::remove_dir(root.join(".clone-to.tmp")).unwrap();
        assert!(shared.clones());
        // what was found out stays
        fs::remove_dir(root).unwrap();
        assert!(shared.clones());
    }
}
