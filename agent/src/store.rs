//! What this host holds of images: stages under construction and installed images, on the volume of tart's home.
//!
//! ```text
//! TART_HOME/.parbake/              locked by the one agent that works here
//!   pid                            who that is
//!   recipes/<hex>                  recipes of images, by the digest of their bytes
//!   disks/<hex>/                   notes on disks that parbake didn't build (`found`)
//!   <hex of the manifest digest>/
//!     status.json                  references, inode of the disk
//!     manifest.json                raw bytes
//!     journal                      which chunks are on disk, by which links
//!     taken                        how many bytes were written; a note that may be lost
//!     blocks.index                 where blocks lie, by the image's recipe; made again when it is of no use
//!     blobs/<hex>                  blobs of layers without a raw digest
//!     image/                       becomes cache/OCIs/<host>/<ns>/sha256:<hex>/
//!       disk.img config.json nvram.bin
//!     content/<hex>                files of a stacked image, which has no disk.img: become cache/content/sha256/<hex>
//! ```
//!
//! **The disk under construction is the store.** A chunk is written at its final offset. The same file seeds peers from
//! the first chunk on, and goes on after the rename. An installed image keeps its directory here. Its journal says what
//! lies where on its disk, so that peers and later images can be served from there.
//!
//! **What a crash leaves**, step by step:
//! - *Beginning*: a directory without `status.json`. The next start removes it.
//! - *Writing*: each [`Store::flush`] syncs the data first, then the journal. A crash loses the chunks since the last
//!   flush; they are fetched again. A torn last batch of the journal is cut off. Only chunks in the journal are
//!   believed, and the journal lists only chunks whose data are on disk. The same holds after `kill -9` without a power
//!   loss.
//! - *Dropping a chunk*, false or rotten: the journal has the drop before the chunk's place is written again (`held`).
//! - *Decoding a blob*, as soon as it is here: the journal records the decoding after the disk is synced. A restart
//!   before the installation decodes every blob again, because decoded bytes have no digest to compare them with.
//! - *Installing*, in this order. Each step can be repeated, and [`install`] repeats them all:
//!   1. The manifest and the marker are written into `image/`, and every file is synced. It is still a stage, now
//!      complete.
//!      Each file of a stacked image is proved, and gets a second name in `cache/content/sha256/` (`stacked`). tart's
//!      locks are held until step 3 is done, so that tart collects no file before a record refers to it.
//!   2. `image/` is renamed into the cache, or exchanged with what tart put there. The inode in `status.json` tells the
//!      next start that the directory is ours. The marker `.explicitly-pulled` moves along, so tart's `gc` keeps the
//!      image although nothing points to it yet. A second repository gets a twin (`twin`), whose inode is noted first.
//!   3. The tag's symlink is made under another name and renamed over the old one. The tag names the old target or the
//!      new one at every moment.
//!   4. The marker is removed a minute later if only a tag names the image (`Store::unguard`). Until then tart keeps
//!      the image longer than it has to.
//!   5. `status.json` says installed, and `content/` is removed.
//!
//!   What a crash between two of these steps left in `cache/content/` goes with the stage, if the stage is given up.
//! - *Forgetting*: directories are removed bottom up, `status.json` first, so what a crash leaves is no stage any more.

mod alike;
mod blocks;
mod budget;
pub(crate) mod chunks;
pub(crate) mod claim;
mod content_files;
mod doubt;
mod earlier;
mod files;
mod found;
pub(crate) mod held;
pub(crate) mod in_use;
mod install;
pub(crate) mod journal;
mod layers;
pub(crate) mod making;
mod names;
mod news;
mod open_file;
mod outstanding;
pub(crate) mod place;
mod presence;
mod prints;
pub(crate) mod recipes;
mod recover;
mod references;
pub(crate) mod retire;
mod reuse;
mod room;
mod root;
mod seed;
mod shared;
mod stacked;
mod stage;
mod status;
mod steps;
pub(crate) mod survey;
pub(crate) mod sync;
mod tree;
mod twin;
mod verify;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
};

use proto::{Digest, HostId, Layout};
use swarm::event::Entitled;

pub use self::{
    blocks::{ChunkPart, FillError},
    claim::{HeldChunk, WriteError},
    install::{InstallError, install, install_as},
    layers::DecodeLayerError,
    news::News,
    presence::{Presence, Recovered},
    references::ReferenceError,
    room::{NoRoomError, Volume},
    root::OpenStoreError,
    shared::Options,
    stacked::FileError,
    stage::Stage,
    verify::{Verified, VerifyError, doubt, verify},
};
pub(crate) use self::{
    claim::Look,
    room::{GiveWay, Later, give_way},
};
use self::{
    content_files::remove_unreferred,
    recipes::NamedRecipe,
    recover::{Loaded, left_files, load},
    references::parse_references,
    room::Builder as _,
    root::Root,
    seed::{Base, Beginning, SeedError, Seeds},
    shared::Shared,
    status::Status,
    steps::{going_on, step},
    tree::{ROOT, remove},
};
use crate::{lock::lock, platform, tart::Reference};

/// Everything that this host holds of images. There is one store per tart home, in one process.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    /// Read and changed by the driver's blocking jobs; locked for look-ups only.
    stages: Mutex<BTreeMap<Digest, Arc<Stage>>>,
    /// Our directory. [`Store::begin`] makes it again if it was removed.
    root: Root,
    /// Locked by one beginning, abandoning or presence check at a time. Each looks at directories and then changes
    /// them.
    changing: Mutex<()>,
    /// The hosts that may have what each image holds, by the latest order. Locked for a look only.
    entitled: Mutex<BTreeMap<Digest, Entitled>>,
}

/// Why an image can't be begun.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// A reference is malformed or names another image.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The volume has no room for the whole image above its floor. Old images have to be removed first.
    #[error(transparent)]
    NoRoom(#[from] NoRoomError),
    /// A write failed while chunks were copied from other images of this host.
    #[error("copying what is already here: {0}")]
    Copy(#[from] WriteError),
    /// The volume failed.
    #[error("preparing a stage: {0}")]
    Io(#[from] io::Error),
}

impl From<SeedError> for BeginError {
    fn from(error: SeedError) -> Self {
        match error {
            SeedError::Write(error) => Self::Copy(error),
            SeedError::Io(error) => Self::Io(error),
        }
    }
}

impl Store {
    /// Opens the store in tart's home, locks it for this process, and loads what is there.
    ///
    /// Directories without a status, damaged stages, and images that tart has removed are pruned. What can't be read
    /// now is logged and left alone.
    ///
    /// # Errors
    /// When the home isn't usable or another agent works there.
    pub fn open(home: &Path, options: Options) -> Result<Self, OpenStoreError> {
        let (root, home) = Root::open(home)?;
        let this = Self {
            shared: Arc::new(Shared::new(home.clone(), &options)),
            stages: Mutex::default(),
            root,
            changing: Mutex::default(),
            entitled: Mutex::default(),
        };
        let (root, failed) = (home.join(ROOT), OpenStoreError::at);
        let (mut recipes, mut dropped) = (BTreeSet::new(), Vec::new());
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
                Ok(Loaded::Stage(stage)) => {
                    recipes.extend(stage.recipe().map(|recipe| recipe.digest));
                    this.keep(Arc::new(*stage));
                }
                Ok(unusable) => {
                    unusable.log(&image);
                    dropped.push(path);
                }
                Err(error) => {
                    tracing::warn!(%image, %error, "a stage can't be read; leaving it alone");
                }
            }
        }
        for path in dropped {
            if let Some((layout, inodes)) = left_files(&path) {
                this.drop_content(&layout, inodes);
            }
            remove(&path).map_err(failed("removing", &path))?;
        }
        if let Err(error) = recipes::keep_only(this.shared.home(), &recipes) {
            tracing::warn!(%error, "recipes that no image needs any more can't be removed");
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

    /// The images that this host has, complete or not. The driver asks for them at its start.
    ///
    /// An image that no reference shall name is left out, unless it is installed, sound, and still named in tart's
    /// cache. New stages still copy its chunks.
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

    /// Begins to stage an image, or goes on with a stage. Reserves room, makes the image's directory or takes the one
    /// that is there, and copies the chunks that other images of this host hold. A stage that has less than a new clone
    /// of another disk would have is begun anew. Returns the stage and the number of copied bytes.
    ///
    /// An image that is installed already comes back complete. [`install`] then only adds references.
    ///
    /// Blocks while chunks are copied, about a second per GB.
    ///
    /// # Errors
    /// When a reference is no good, or when the volume has no room or fails. Chunks that were copied before an error
    /// stay.
    pub fn begin(
        &self,
        layout: &Layout,
        manifest: &[u8],
        references: &[String],
    ) -> Result<(Arc<Stage>, u64), BeginError> {
        self.begin_by(layout, manifest, references, None)
    }

    /// Does what [`begin`](Self::begin) does. With a recipe, chunks are also found on the disks of images that have no
    /// content in common with this one. The contents that are named beside the recipe go on without it, because they
    /// are in doubt.
    ///
    /// # Errors
    /// As `begin`.
    pub(crate) fn begin_by(
        &self,
        layout: &Layout,
        manifest: &[u8],
        references: &[String],
        recipe: Option<(&NamedRecipe, &BTreeSet<Digest>)>,
    ) -> Result<(Arc<Stage>, u64), BeginError> {
        let references = parse_references(layout.digest(), references)?;
        let others = self.all().into_iter();
        let others = others.filter(|other| other.layout().digest() != layout.digest());
        let seeds = Seeds::here(self.shared.clone(), others.collect());
        let memory = recipe.map(|_| self.shared.take_memory(layout));
        let _memory = memory.transpose()?;
        let there = self.stage(layout.digest());
        let there = there.filter(|stage| stage.names().is_there());
        // not under the lock: indexes may have to be made
        let beginning = match &there {
            Some(stage) if !stage.may_begin_anew(recipe.is_some()) => Beginning::default(),
            _ => seeds.beginning(layout, recipe.map(|(recipe, _)| recipe)),
        };
        let common = beginning.common_bytes;
        let worse = there.filter(|stage| stage.has_less_than(common, recipe.is_some()));
        let worse = worse.map_or_else(Weak::new, |stage| Arc::downgrade(&stage));
        let searched = beginning.searched;
        step("a base is chosen")?;
        let changing = lock(&self.changing);
        self.root.keep(self.shared.home())?;
        self.take_names(layout.digest(), &references)?;
        let room = self.shared.room();
        let (stage, base) = match self.stage(layout.digest()) {
            Some(stage) if stage.names().is_there() && worse.as_ptr() != Arc::as_ptr(&stage) => {
                // zeros will take none
                let zeros = recipe.map_or(0, |by| alike::lacking_zeros(&stage, by));
                stage.expect_bytes(u64::MAX);
                let need = stage.outstanding_bytes().saturating_sub(zeros);
                stage.or_aside(room.admit(need, layout.digest()))?;
                stage.names().add(&references)?;
                stage.expect_bytes(need);
                (stage, None)
            }
            found => {
                if found.is_some() {
                    tracing::info!(image = %layout.digest(), "a stage begins anew");
                    // its files take room as long as they are open
                    drop(found);
                    self.drop_stage(layout.digest())?;
                }
                let (copy, clone) = beginning.need(layout, self.shared.clones());
                room.admit(clone, layout.digest())?;
                let disk = beginning.base.as_ref().and_then(Base::path);
                let (stage, cloned) = self.create(layout, manifest, references, disk)?;
                let stage = Arc::new(stage);
                stage.expect_bytes(if cloned { clone } else { copy });
                self.keep(stage.clone());
                if !cloned && let Err(error) = room.admit(copy, layout.digest()) {
                    self.drop_stage(layout.digest())?;
                    return Err(error.into());
                }
                (stage, beginning.base.filter(|_| cloned))
            }
        };
        drop(changing);
        let copy = || -> Result<u64, BeginError> {
            if let Some((recipe, in_doubt)) = recipe {
                stage.take_recipe(recipe, in_doubt);
                step("the recipe is taken")?;
                self.keep_recipe(&stage, recipe.file)?;
                step("the recipe is noted")?;
            }
            if stage.is_installed() && !stage.is_complete() {
                stage.link_again()?;
            }
            Ok(seeds.copy(&stage, base.as_ref(), searched)?)
        };
        let copied = copy();
        // also after an error
        stage.expect_bytes(u64::MAX);
        // what was copied stays, even if the rest couldn't be copied
        if going_on() {
            stage.flush()?;
        }
        let copied = copied?;
        if recipe.is_none() && !stage.is_complete() {
            self.shared.set_prints(seeds.prints());
        }
        // less may have been here than was expected, and fewer zeros
        stage.or_aside(room.admit(stage.outstanding_bytes(), layout.digest()))?;
        Ok((stage, copied))
    }

    /// Does what [`begin`](Self::begin) does. Without room, asks `make_room` to free this many bytes; if it returns
    /// true, begins once more.
    ///
    /// # Errors
    /// As `begin`.
    pub(crate) fn begin_making_room(
        &self,
        layout: &Layout,
        manifest: &[u8],
        references: &[String],
        recipe: Option<(&NamedRecipe, &BTreeSet<Digest>)>,
        make_room: impl FnOnce(u64) -> bool,
    ) -> Result<(Arc<Stage>, u64), BeginError> {
        match self.begin_by(layout, manifest, references, recipe) {
            Err(BeginError::NoRoom(short)) if make_room(short.lacking_bytes()) => {
                self.begin_by(layout, manifest, references, recipe)
            }
            begun => begun,
        }
    }

    /// Nobody waits for an image any more: a beginning that copies what is here ends early. Doesn't block.
    pub(crate) fn give_up(&self, image: Digest) {
        self.shared.set_given_up(image, true);
    }

    /// An image is waited for (again). Doesn't block.
    pub(crate) fn take_up(&self, image: &Digest) {
        self.shared.set_given_up(*image, false);
    }

    /// Checks that the recipe of an image may take this much, beside the floor and what other images may still take.
    ///
    /// # Errors
    /// When it may not.
    pub(crate) fn admit_recipe(&self, image: &Digest, bytes: u64) -> Result<(), NoRoomError> {
        self.shared.room().admit(bytes, image)
    }

    /// Bytes that images under construction will still take from the volume's free space.
    #[must_use]
    pub(crate) fn outstanding_bytes(&self) -> u64 {
        self.shared.room().outstanding_bytes()
    }

    /// No room is kept for an unfinished image until it is begun again. Doesn't block.
    pub(crate) fn set_aside(&self, image: &Digest) {
        if let Some(stage) = self.stage(image) {
            stage.expect_bytes(0);
        }
    }

    /// Writes down the references under which an image is wanted from now on: exactly these. Other images lose these
    /// references. Nothing is linked or unlinked.
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

    /// Sets the hosts that may have what an image holds. A stage that begins later has them in its notes. For a stage
    /// that exists, [`keep_entitled`](Self::keep_entitled) writes them down. Doesn't block.
    pub(crate) fn entitle(&self, image: Digest, entitled: Entitled) {
        lock(&self.entitled).insert(image, entitled);
    }

    /// Writes down which hosts may have what an image holds, as [`entitle`](Self::entitle) set them last.
    ///
    /// # Errors
    /// When the volume fails.
    pub(crate) fn keep_entitled(&self, image: &Digest) -> io::Result<()> {
        let _changing = lock(&self.changing);
        match (self.stage(image), self.entitled_to(image)) {
            (Some(stage), Some(entitled)) => stage.names().entitle(entitled),
            _ => Ok(()),
        }
    }

    /// Does what [`keep_entitled`](Self::keep_entitled) does, for all images. Writes nothing where the notes say it.
    ///
    /// # Errors
    /// The first error. Other images' hosts are written down all the same.
    pub(crate) fn keep_all_entitled(&self) -> io::Result<()> {
        let mut kept = Ok(());
        for stage in self.all() {
            kept = kept.and(self.keep_entitled(stage.layout().digest()));
        }
        kept
    }

    /// The hosts that [`entitle`](Self::entitle) named in this process.
    fn entitled_to(&self, image: &Digest) -> Option<Entitled> {
        lock(&self.entitled).get(image).cloned()
    }

    /// A reference names one image: other images aren't wanted under these references any more.
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
        base: Option<PathBuf>,
    ) -> io::Result<(Stage, bool)> {
        let directory = self.shared.directory(layout.digest());
        // Removes what a crash during another beginning left.
        remove(&directory)?;
        let status = Status {
            wanted: Some(references.clone()),
            references,
            entitled: self.entitled_to(layout.digest()).flatten(),
            ..Status::default()
        };
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
            step("a stage is made")?;
            Ok((stage, cloned))
        });
        if created.is_err()
            && going_on()
            && let Err(error) = remove(&directory)
        {
            tracing::warn!(%error, "removing a stage that couldn't begin failed; the next start removes it");
        }
        created
    }

    /// Removes the markers of installed images that only a tag names, once nobody can overlook the tag's link any more.
    /// Blocks for a few system calls for each image.
    pub(crate) fn unguard(&self) {
        for stage in self.all().iter().filter(|stage| stage.is_installed()) {
            if let Err(error) = install::unguard(stage) {
                let image = stage.layout().digest();
                tracing::warn!(%image, %error, "an image's marker can't be removed; it is tried again");
            }
        }
    }

    /// The room on tart's volume. All zeros if it can't be read, so that nothing is begun.
    #[must_use]
    pub fn volume(&self) -> Volume {
        Volume {
            clones: self.shared.clones(),
            ..self.shared.room().volume()
        }
    }

    /// Takes the system's estimate of the bytes that the volume could hold after purging what it can. For the next 5
    /// minutes, the difference to the free bytes counts as free. An estimate below the free bytes changes nothing.
    pub(crate) fn set_capacity(&self, capacity_bytes: u64) {
        self.shared.room().set_capacity(capacity_bytes);
    }

    /// Flushes every stage ([`Stage::flush`]). A stage whose files were removed under construction is dropped instead,
    /// because chunks written to removed files are lost.
    ///
    /// # Errors
    /// When one stage fails; the others are flushed all the same.
    pub fn flush(&self) -> io::Result<()> {
        let mut result = Ok(());
        // another thread that holds the lock looks at the directories, too
        let changing = self.changing.try_lock();
        for stage in self.all() {
            let look = changing.is_ok() && !stage.is_installed();
            if !look || !self.is_removed(&stage) {
                result = stage.flush().and(result);
            }
        }
        result
    }

    /// This host's id.
    pub(crate) fn host(&self) -> HostId {
        self.shared.host()
    }

    /// Sets this host's id, which links that are made here name as their maker.
    pub(crate) fn set_host(&self, host: HostId) {
        self.shared.set_host(host);
    }

    /// Ends long operations early, because the program stops.
    pub fn stop(&self) {
        self.shared.stop();
    }

    /// Whether somebody removed the stage's files. If so, drops the stage and reports [`News::Removed`]. The caller
    /// holds `changing`.
    fn is_removed(&self, stage: &Stage) -> bool {
        // an installation moves the files
        let Some(_installing) = stage.try_installing() else {
            return false;
        };
        if stage.is_gone() || stage.names().is_there() {
            return false;
        }
        stage.set_gone();
        let image = *stage.layout().digest();
        if self.is_kept(stage) {
            self.let_go(&image);
            if stage.names().wanted().is_empty() {
                self.forget_recipe(stage);
            }
            if let Err(error) = remove(&self.shared.directory(&image)) {
                tracing::warn!(%image, %error, "removing what is left of an image failed; the next start does it");
            }
        }
        self.shared.tell(News::Removed { image });
        true
    }

    /// The news since the last call, in order. Takes no lock when there are none.
    #[must_use]
    pub fn take_news(&self) -> Vec<News> {
        self.shared.take_news()
    }

    /// The stage of this image, under construction or installed.
    #[must_use]
    pub fn stage(&self, image: &Digest) -> Option<Arc<Stage>> {
        lock(&self.stages).get(image).cloned()
    }

    /// Looks at the disk: which installed images tart finds, and under which references. Takes a few system calls per
    /// image, cheap enough for every 5 s. Forgets an image or a stage whose files were removed or replaced, and reports
    /// [`News::Removed`]. A doubted image is in the result without references. A new doubt is reported as
    /// [`News::Doubted`].
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

    /// Gives up an image that isn't installed, with its bytes. An installed image stays as it is.
    ///
    /// # Errors
    /// When its directory can't be removed; the next start tries again.
    pub fn abandon(&self, image: Digest) -> io::Result<()> {
        let _changing = lock(&self.changing);
        let Some(stage) = self.stage(&image) else {
            return Ok(());
        };
        // An installation that runs is waited for. The image then stays.
        drop(stage.installing());
        if stage.is_installed() {
            return Ok(());
        }
        self.drop_stage(&image)?;
        self.forget_recipe(&stage);
        Ok(())
    }

    /// Notes the recipe of a stage. Chunks that are proved already keep the links that they came with until the next
    /// start. The note survives a crash.
    ///
    /// # Errors
    /// When the volume fails, or the image was removed meanwhile: our directory may be that of a newer stage by now.
    pub(crate) fn keep_recipe(&self, of: &Stage, file: proto::image::Blob) -> io::Result<()> {
        let _changing = lock(&self.changing);
        match self.is_kept(of) {
            true => of.names().note_recipe(file),
            false => Err(io::Error::other("the image was removed meanwhile")),
        }
    }

    /// Whether this is the image's stage still.
    fn is_kept(&self, stage: &Stage) -> bool {
        let kept = self.stage(stage.layout().digest());
        kept.is_some_and(|kept| std::ptr::eq(&*kept, stage))
    }

    /// The recipes by which stages go.
    pub(crate) fn recipes(&self) -> BTreeSet<Digest> {
        let stages = self.all();
        let recipes = stages.iter().filter_map(|stage| stage.recipe());
        recipes.map(|file| file.digest).collect()
    }

    /// Removes the recipe of a stage that was let go, unless another stage goes by it.
    fn forget_recipe(&self, of: &Stage) {
        let recipe = of.recipe().map(|file| file.digest);
        if let Some(name) = recipe.filter(|name| !self.recipes().contains(name))
            && let Err(error) = recipes::remove(self.shared.home(), &name)
        {
            tracing::warn!(recipe = %name, %error, "a recipe that no image needs any more can't be removed; the next start does it");
        }
    }

    fn drop_stage(&self, image: &Digest) -> io::Result<()> {
        if let Some(stage) = self.let_go(image) {
            // Not during an installation. The next beginning finds and keeps a directory that an installation has
            // renamed.
            let _installing = stage.installing();
            stage.set_gone();
            let bodies = stage.files().bodies();
            let inodes = bodies.iter().flat_map(|body| body.disk_inodes());
            self.drop_content(stage.layout(), inodes.collect());
        }
        remove(&self.shared.directory(image))
    }

    /// Removes from tart's cache what an installation that ended early put there: the files, with these inodes, of a
    /// stacked image that is dropped. What something refers to, or another stage has, stays.
    fn drop_content(&self, layout: &Layout, mut inodes: BTreeSet<u64>) {
        for other in self.all() {
            for body in other.files().bodies() {
                for inode in body.disk_inodes() {
                    inodes.remove(&inode);
                }
            }
        }
        remove_unreferred(self.shared.home(), layout, &inodes);
    }

    fn all(&self) -> Vec<Arc<Stage>> {
        lock(&self.stages).values().cloned().collect()
    }

    /// The stage belongs to this store from now on.
    fn keep(&self, stage: Arc<Stage>) {
        let image = *stage.layout().digest();
        let builder = Arc::downgrade(&stage);
        self.shared.room().enter(image, builder);
        lock(&self.stages).insert(image, stage);
    }

    /// The stage no longer belongs to this store.
    fn let_go(&self, image: &Digest) -> Option<Arc<Stage>> {
        self.shared.room().leave(image);
        lock(&self.stages).remove(image)
    }
}

#[cfg(test)]
pub(crate) mod tests;
