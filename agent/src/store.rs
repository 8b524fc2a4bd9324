//! What this host holds of images: stages under construction and installed images, on tart's own volume.
//!
//! ```text
//! TART_HOME/.parbake/              locked by the one agent that works here
//!   pid                            who that is
//!   <hex of the manifest digest>/
//!     status.json                  references, inode of the disk
//!     manifest.json                raw bytes
//!     journal                      which chunks are on disk, by which links
//!     blobs/<hex>                  blobs of layers without a raw digest
//!     image/                       becomes cache/OCIs/<host>/<ns>/sha256:<hex>/
//!       disk.img config.json nvram.bin
//! ```
//!
//! **The disk under construction is the store.** A chunk is written at its final offset; the same file seeds peers from
//! the first chunk on, and after the rename too. An installed image keeps its directory here: the journal is the index
//! of what lies where on its disk, for serving and for the images that come after it.
//!
//! **What a crash leaves**, step by step:
//! - *Beginning*: a directory without `status.json`. The next start removes it.
//! - *Writing*: data are synced first, then the journal, at each [`Store::flush`]. Chunks since the last flush are lost
//!   (fetched again); a torn last batch is cut off; no chunk is believed that the journal doesn't vouch for, and the
//!   journal vouches for nothing that isn't on disk. After `kill -9` alone (no power loss) the same holds.
//! - *Dropping a chunk*, false or rotten: the drop is in the journal before its place is written again (`held`).
//! - *Decoding a blob*: not journaled until the disk is synced; it is decoded again.
//! - *Installing*, in this order; each step can be repeated, and [`install`] repeats them all:
//!   1. manifest and marker written into `image/`, every file synced: still a stage, complete.
//!   2. `image/` renamed into the cache (or exchanged with what tart put there): the inode in `status.json` tells the
//!      next start that this is ours. The marker `.explicitly-pulled` came along, so tart's `gc` leaves it alone
//!      although nothing points to it yet. Into a second repository goes a twin (`twin`), whose inode is noted first.
//!   3. the tag's symlink made under another name and renamed over: the old target or the new, never none.
//!   4. the marker removed, when only a tag names the image: until then tart keeps it a little too well.
//!   5. `status.json` says installed.
//! - *Forgetting*: directories are removed bottom up, `status.json` first, so a rest is no stage any more.

pub(crate) mod chunks;
pub(crate) mod claim;
mod doubt;
mod files;
pub(crate) mod held;
mod install;
pub(crate) mod journal;
mod layers;
mod names;
mod news;
pub(crate) mod place;
mod recover;
mod references;
mod room;
mod shared;
mod stage;
mod status;
mod steps;
pub(crate) mod sync;
mod tree;
mod twin;
mod verify;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use proto::{Digest, HostId, Layout};
use swarm::event::Entitled;

pub(crate) use self::claim::Look;
pub use self::{
    claim::{HeldChunk, WriteError},
    install::{InstallError, install, install_as},
    layers::DecodeLayerError,
    news::News,
    references::ReferenceError,
    room::{NoRoomError, Volume},
    shared::Options,
    stage::Stage,
    verify::{Verified, VerifyError, doubt, verify},
};
use self::{
    files::needed_bytes,
    recover::{Loaded, load},
    references::parse_references,
    room::Builder as _,
    shared::Shared,
    status::Status,
    tree::{ROOT, io_at, remove},
};
use crate::{
    lock::lock,
    platform::{self, DirectoryLock, LockError},
    tart::Reference,
};

/// Chunks that are copied from other images are journaled this often, once a content is through.
const FLUSH_EVERY: Duration = Duration::from_millis(500);

/// Everything that this host holds. One per tart home, in one process.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    /// Read and changed by the driver's blocking jobs; locked for look-ups only.
    stages: Mutex<BTreeMap<Digest, Arc<Stage>>>,
    /// On our directory, for as long as that is the one that was locked.
    lock: Mutex<DirectoryLock>,
    /// One beginning, abandoning or presence check at a time: they look at directories and then change them.
    changing: Mutex<()>,
    /// Who may have what images hold, as it was ordered last. Locked for a look.
    entitled: Mutex<BTreeMap<Digest, Entitled>>,
}

/// An image that a process before this one left here.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The image.
    pub layout: Layout,
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// The references that shall name it. None where it was cancelled and is still in tart's cache.
    pub references: Vec<String>,
    /// What is held of it.
    pub stage: Arc<Stage>,
    /// Installed, and there under every reference.
    pub present: bool,
}

/// An image that is in tart's cache, verified, as far as the last look at the disk tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// The image.
    pub digest: Digest,
    /// The references under which tart finds it now. Those that are gone aren't among them. None while the image is
    /// doubted.
    pub references: Vec<String>,
    /// Its references by tags that another image has taken over, and which tart finds there, whole. Nobody means this
    /// image by them any more: to link them again would take them back.
    pub moved: Vec<String>,
}

/// Why the store isn't open.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// tart's home doesn't exist: tart never ran here, or the setting is wrong.
    #[error("tart's home {path} doesn't exist; run tart once, or set TART_HOME")]
    NoHome {
        /// The directory.
        path: PathBuf,
    },
    /// The volume is mounted read-only.
    #[error("the volume of {path} is read-only; nothing can be staged there")]
    ReadOnly {
        /// Our directory.
        path: PathBuf,
    },
    /// Another agent works here. It has to be stopped first.
    #[error("another agent ({owner}) works in {path}")]
    InUse {
        /// Our directory.
        path: PathBuf,
        /// What it says of itself.
        owner: String,
    },
    /// Anything else about our directory.
    #[error("{action} {path}: {error}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
}

/// Why an image isn't begun.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// A reference is no good.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The volume has no room for the whole image above its floor. Old images have to go first.
    #[error(transparent)]
    NoRoom(#[from] NoRoomError),
    /// Copying what other images of this host hold failed on our side.
    #[error("copying what is already here: {0}")]
    Copy(#[from] WriteError),
    /// The volume failed.
    #[error("preparing a stage: {0}")]
    Io(#[from] io::Error),
}

impl Store {
    /// Opens the store in tart's home, takes it for this process, and loads what is there.
    ///
    /// Leftovers without a status, and images that tart has removed meanwhile, are pruned; what can't be read is logged
    /// and left alone.
    ///
    /// # Errors
    /// When the home isn't usable or another agent works there.
    pub fn open(home: &Path, options: Options) -> Result<Self, OpenStoreError> {
        if !home.is_dir() {
            return Err(OpenStoreError::NoHome { path: home.into() });
        }
        let root = home.join(ROOT);
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| match error.kind() {
                io::ErrorKind::ReadOnlyFilesystem => OpenStoreError::ReadOnly { path },
                _ => OpenStoreError::Io {
                    action,
                    path,
                    error,
                },
            }
        };
        // The cache's symlinks need absolute targets.
        let home = fs::canonicalize(home).map_err(failed("resolving", home))?;
        match fs::create_dir(&root) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(failed("creating", &root))?,
        }
        let pid = root.join("pid");
        let locked = match platform::lock_directory(&root, Duration::ZERO) {
            Ok(lock) => lock,
            Err(LockError::Busy { path, .. }) => {
                let owner = fs::read_to_string(&pid).unwrap_or_default();
                let owner = match owner.trim() {
                    "" => "process unknown".to_owned(),
                    pid => format!("process {pid}"),
                };
                return Err(OpenStoreError::InUse { path, owner });
            }
            Err(LockError::Io { path, error }) => return Err(failed("locking", &path)(error)),
        };
        fs::write(&pid, std::process::id().to_string()).map_err(failed("writing", &pid))?;
        let this = Self {
            shared: Arc::new(Shared::new(home, &options)),
            stages: Mutex::default(),
            lock: Mutex::new(locked),
            changing: Mutex::default(),
            entitled: Mutex::default(),
        };
        for entry in fs::read_dir(&root).map_err(failed("reading", &root))? {
            let path = entry.map_err(failed("reading", &root))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(image) = name.and_then(|name| format!("sha256:{name}").parse().ok()) else {
                continue;
            };
            if let Err(error) = durable::sweep(&path) {
                tracing::warn!(%image, %error, "what a crash left of a write can't be removed");
            }
            match load(&this.shared, &path, image) {
                Ok(Loaded::Stage(stage)) => this.keep(Arc::new(*stage)),
                Ok(unusable) => {
                    unusable.log(&image);
                    remove(&path).map_err(failed("removing", &path))?;
                }
                Err(error) => {
                    tracing::warn!(%image, %error, "a stage can't be read; leaving it alone");
                }
            }
        }
        Ok(this)
    }

    /// [`open`](Self::open), on a thread that may block.
    ///
    /// # Errors
    /// As `open`.
    pub(crate) async fn open_in_background(
        home: PathBuf,
        options: Options,
    ) -> Result<Arc<Self>, OpenStoreError> {
        let opened = tokio::task::spawn_blocking(move || Self::open(&home, options)).await;
        let opened = opened.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic()));
        opened.map(Arc::new)
    }

    /// The images that are here, as far as they are: for the driver's start.
    ///
    /// An installed image that nothing names and nothing is to name isn't among them: nobody asks for it any more. What
    /// it holds is still built upon.
    #[must_use]
    pub fn recovered(&self) -> Vec<Recovered> {
        let recover = |stage: Arc<Stage>| {
            let named = stage.names().present();
            let wanted = stage.names().wanted();
            let references: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            let present = stage.is_installed()
                && stage.is_complete()
                && !stage.is_doubted()
                && references.iter().all(|reference| named.contains(reference));
            let known = !references.is_empty() || present && !named.is_empty();
            known.then(|| Recovered {
                layout: stage.layout().clone(),
                manifest: stage.manifest().to_vec(),
                references,
                present,
                stage,
            })
        };
        self.all().into_iter().filter_map(recover).collect()
    }

    /// Begins to stage an image, or goes on with it: reserves room, makes or takes up its directory, and copies what
    /// other images of this host hold of it. Returns the stage and how many bytes were copied.
    ///
    /// An image that is installed already comes back complete; [`install`] then only adds references.
    ///
    /// Blocks for as long as the copying takes, about a second per GB.
    ///
    /// # Errors
    /// When a reference is no good, or the volume has no room or fails. Nothing is half-begun then.
    pub fn begin(
        &self,
        layout: &Layout,
        manifest: &[u8],
        references: &[String],
    ) -> Result<(Arc<Stage>, u64), BeginError> {
        let references = parse_references(layout.digest(), references)?;
        let changing = lock(&self.changing);
        self.keep_root()?;
        self.take_names(layout.digest(), &references)?;
        let (stage, base) = match self.stage(layout.digest()) {
            Some(stage) if stage.names().is_there() => {
                let room = self.shared.room();
                room.admit(stage.outstanding_bytes(), layout.digest())?;
                stage.names().add(&references)?;
                (stage, None)
            }
            found => {
                if found.is_some() {
                    self.drop_stage(layout.digest())?;
                }
                let room = self.shared.room();
                room.admit(needed_bytes(layout), layout.digest())?;
                let base = self.most_similar(layout);
                let (stage, cloned) = self.create(layout, manifest, references, base.as_deref())?;
                let stage = Arc::new(stage);
                self.keep(stage.clone());
                (stage, base.filter(|_| cloned))
            }
        };
        drop(changing);
        if stage.is_installed() && !stage.is_complete() {
            stage.link_again()?;
        }
        let copied = self.copy_what_is_here(&stage, base.as_deref());
        // what was copied is kept, also where the rest couldn't be
        stage.flush()?;
        Ok((stage, copied?))
    }

    /// Makes our directory again where it was removed, with tart's home: tart would make that again, too. What it lies
    /// in has to be there, or a volume that isn't mounted would be filled beside its mount point.
    fn keep_root(&self) -> io::Result<()> {
        let home = self.shared.home();
        let root = home.join(ROOT);
        let mut locked = lock(&self.lock);
        if locked.is_on(&root) {
            return Ok(());
        }
        for directory in [home, &root] {
            match fs::create_dir(directory) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.map_err(|error| io_at("creating", directory, error))?,
            }
        }
        *locked = platform::lock_directory(&root, Duration::ZERO).map_err(io::Error::other)?;
        let pid = root.join("pid");
        fs::write(&pid, std::process::id().to_string())
            .map_err(|error| io_at("writing", &pid, error))?;
        tracing::warn!(directory = %root.display(), "our directory in tart's home was removed; it is made again");
        Ok(())
    }

    /// Copies what other images of this host hold. A clone of `base` has its bytes already.
    fn copy_what_is_here(&self, stage: &Stage, base: Option<&Stage>) -> Result<u64, BeginError> {
        let layout = stage.layout();
        let mut copied = 0;
        let mut flushed_at = Instant::now();
        for other in self.all() {
            if other.layout().digest() == layout.digest() {
                continue;
            }
            let cloned = base.is_some_and(|base| base.layout().digest() == other.layout().digest());
            for content in layout.contents() {
                if stage.is_closed(content.digest) || !other.is_closed(content.digest) {
                    continue;
                }
                self.shared.go_on()?;
                copied += stage.copy_from(&other, content.digest, cloned)?;
                // a large image takes minutes: a restart doesn't begin them anew
                if flushed_at.elapsed() >= FLUSH_EVERY {
                    stage.flush()?;
                    flushed_at = Instant::now();
                }
            }
        }
        Ok(copied)
    }

    /// [`begin`](Self::begin), and where there is no room, once more if `make_room` makes so many bytes free.
    ///
    /// # Errors
    /// As `begin`.
    pub fn begin_making_room(
        &self,
        layout: &Layout,
        manifest: &[u8],
        references: &[String],
        make_room: impl FnOnce(u64) -> bool,
    ) -> Result<(Arc<Stage>, u64), BeginError> {
        match self.begin(layout, manifest, references) {
            Err(BeginError::NoRoom(short))
                if make_room(
                    short
                        .need_bytes
                        .saturating_add(short.reserved_bytes)
                        .saturating_add(short.floor_bytes)
                        .saturating_sub(short.free_bytes),
                ) =>
            {
                self.begin(layout, manifest, references)
            }
            begun => begun,
        }
    }

    /// What the images under construction will still take of the room that looks free.
    #[must_use]
    pub fn outstanding_bytes(&self) -> u64 {
        self.shared.room().outstanding_bytes()
    }

    /// Writes down under which references an image is wanted from now on: exactly these, and no other image under them.
    /// Nothing is linked or unlinked.
    ///
    /// # Errors
    /// When a reference is no good, or the volume fails.
    pub fn want(&self, image: &Digest, references: &[String]) -> Result<(), BeginError> {
        let references = parse_references(image, references)?;
        let _changing = lock(&self.changing);
        self.take_names(image, &references)?;
        if let Some(stage) = self.stage(image) {
            stage.want(&references)?;
        }
        Ok(())
    }

    /// These hosts may have what an image holds. A stage that begins later has it in its notes; for one that is there,
    /// [`keep_entitled`](Self::keep_entitled) writes it down. Doesn't block.
    pub fn entitle(&self, image: Digest, entitled: Entitled) {
        lock(&self.entitled).insert(image, entitled);
    }

    /// Writes down who may have what an image holds, as it was said last.
    ///
    /// # Errors
    /// When the volume fails.
    pub fn keep_entitled(&self, image: &Digest) -> io::Result<()> {
        let _changing = lock(&self.changing);
        match (self.stage(image), self.entitled_to(image)) {
            (Some(stage), Some(entitled)) => stage.names().entitle(entitled),
            _ => Ok(()),
        }
    }

    /// What was said of that in this life.
    fn entitled_to(&self, image: &Digest) -> Option<Entitled> {
        lock(&self.entitled).get(image).cloned()
    }

    /// A reference names one image: others aren't wanted under these any more.
    fn take_names(&self, image: &Digest, references: &[Reference]) -> io::Result<()> {
        for other in self.all() {
            let wanted = other.names().wanted();
            if other.layout().digest() == image
                || !wanted.iter().any(|name| references.contains(name))
            {
                continue;
            }
            let left: Vec<Reference> = wanted
                .into_iter()
                .filter(|name| !references.contains(name))
                .collect();
            other.want(&left)?;
        }
        Ok(())
    }

    fn create(
        &self,
        layout: &Layout,
        manifest: &[u8],
        references: Vec<Reference>,
        base: Option<&Stage>,
    ) -> io::Result<(Stage, bool)> {
        let directory = self.shared.directory(layout.digest());
        // What a crash during another beginning left.
        remove(&directory)?;
        let status = Status {
            wanted: Some(references.clone()),
            references,
            entitled: self.entitled_to(layout.digest()).flatten(),
            ..Status::default()
        };
        let base = base.and_then(|base| base.names().disk_path());
        let shared = self.shared.clone();
        let created = Stage::create(
            shared,
            layout.clone(),
            manifest,
            status,
            directory.clone(),
            base.as_deref(),
        )
        .and_then(|(stage, cloned)| {
            platform::sync_directory(&self.shared.home().join(ROOT))?;
            Ok((stage, cloned))
        });
        if created.is_err()
            && let Err(error) = remove(&directory)
        {
            tracing::warn!(%error, "removing a stage that couldn't begin failed; the next start removes it");
        }
        created
    }

    /// The image whose disk has most in common with this one at the same places: what a clone of saves copying.
    fn most_similar(&self, layout: &Layout) -> Option<Arc<Stage>> {
        let common = |stage: &Arc<Stage>| Stage::common_bytes(layout, stage);
        let best = self
            .all()
            .into_iter()
            .filter(|stage| stage.is_installed())
            .max_by_key(common)?;
        (common(&best) > 0).then_some(best)
    }

    /// The room on tart's volume. Zeros when it can't be read, so that nothing is begun.
    #[must_use]
    pub fn volume(&self) -> Volume {
        self.shared.room().volume()
    }

    /// The system says that the volume would take so many bytes if it purged what it can: from now on, for a few
    /// minutes, the difference to what is free now counts as free. Less than what is free says nothing.
    pub fn set_capacity(&self, capacity_bytes: u64) {
        self.shared.room().set_capacity(capacity_bytes);
    }

    /// Flushes every stage ([`Stage::flush`]). One whose files were removed while it was built is gone then: what was
    /// written would be lost with them.
    ///
    /// # Errors
    /// When one fails; the others are flushed all the same.
    pub fn flush(&self) -> io::Result<()> {
        let mut result = Ok(());
        // somebody who makes or removes directories sees by himself what is there
        let changing = self.changing.try_lock();
        for stage in self.all() {
            let look = changing.is_ok() && !stage.is_installed();
            if !look || !self.is_removed(&stage) {
                result = stage.flush().and(result);
            }
        }
        result
    }

    /// Says which host this is: the links that are made here have it as their maker.
    pub fn set_host(&self, host: HostId) {
        self.shared.set_host(host);
    }

    /// Ends what takes long, early: the program stops.
    pub fn stop(&self) {
        self.shared.stop();
    }

    /// Whether somebody removed the stage's files; it is dropped then, and told. Under `changing`.
    fn is_removed(&self, stage: &Stage) -> bool {
        // an installation moves them
        let Some(_installing) = stage.try_installing() else {
            return false;
        };
        if stage.is_gone() || stage.names().is_there() {
            return false;
        }
        stage.set_gone();
        let image = *stage.layout().digest();
        let kept = self.stage(&image);
        if kept.is_some_and(|kept| std::ptr::eq(&*kept, stage)) {
            self.let_go(&image);
            if let Err(error) = remove(&self.shared.directory(&image)) {
                tracing::warn!(%image, %error, "removing what is left of an image failed; the next start does it");
            }
        }
        self.shared.tell(News::Removed { image });
        true
    }

    /// What was found out since the last call, in order. Costs nothing where there is none.
    #[must_use]
    pub fn take_news(&self) -> Vec<News> {
        self.shared.take_news()
    }

    /// What is held of this image.
    #[must_use]
    pub fn stage(&self, image: &Digest) -> Option<Arc<Stage>> {
        lock(&self.stages).get(image).cloned()
    }

    /// Looks at the disk: which installed images tart finds, and under which references. A few system calls for each,
    /// so that every 5 s is nothing. An image whose disk tart or somebody else removed or replaced is forgotten, and
    /// told; so is a stage. An image that somebody found damaged is among them, and told.
    #[must_use]
    pub fn presence(&self) -> Vec<Presence> {
        let _changing = lock(&self.changing);
        let mut presence = Vec::new();
        for stage in self.all() {
            if self.is_removed(&stage) || !stage.is_installed() {
                continue;
            }
            stage.files().drop_removed_bodies();
            if stage.notice_doubt() {
                self.shared.tell(News::Doubted {
                    image: *stage.layout().digest(),
                });
            }
            presence.push(Presence {
                digest: *stage.layout().digest(),
                references: match stage.is_doubted() {
                    true => Vec::new(),
                    false => stage.names().present(),
                },
                moved: stage
                    .names()
                    .lost()
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
            });
        }
        presence
    }

    /// Gives up an image that isn't installed, and its bytes. An installed one stays as it is.
    ///
    /// # Errors
    /// When its directory can't be removed; the next start tries again.
    pub fn abandon(&self, image: Digest) -> io::Result<()> {
        let _changing = lock(&self.changing);
        let Some(stage) = self.stage(&image) else {
            return Ok(());
        };
        // An installation under way is waited for, and then stays.
        drop(stage.installing());
        if stage.is_installed() {
            return Ok(());
        }
        self.drop_stage(&image)
    }

    fn drop_stage(&self, image: &Digest) -> io::Result<()> {
        if let Some(stage) = self.let_go(image) {
            // Not while it is being installed: what is renamed then is found and kept by the next beginning.
            let _installing = stage.installing();
            stage.set_gone();
        }
        remove(&self.shared.directory(image))
    }

    fn all(&self) -> Vec<Arc<Stage>> {
        lock(&self.stages).values().cloned().collect()
    }

    /// The stage is one of this store from now on.
    fn keep(&self, stage: Arc<Stage>) {
        let image = *stage.layout().digest();
        let builder = Arc::downgrade(&stage);
        self.shared.room().enter(image, builder);
        lock(&self.stages).insert(image, stage);
    }

    /// The stage isn't one of this store any more.
    fn let_go(&self, image: &Digest) -> Option<Arc<Stage>> {
        self.shared.room().leave(image);
        lock(&self.stages).remove(image)
    }
}

#[cfg(test)]
pub(crate) mod tests;
