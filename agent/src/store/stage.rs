//! One image on this host's disk. It is under construction, or installed and still read for peers.

use std::{
    collections::BTreeSet,
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::SystemTime,
};

use proto::{
    Answer, ChunkIndex, ChunkSet, Digest, Fingerprint, HostId, HostKey, Layout, Link, Source,
    Statement,
    image::{Blob, Format},
    ledger::{Entered, Verdict},
};
use swarm::event::Entitled;

use super::{
    blocks::{Blocks, ChunkPart},
    chunks::Chunks,
    claim::{HeldChunk, Look, WriteError},
    doubt::Doubt,
    earlier::{self, LostLinks},
    files::{Body, ImageFiles, installed_paths},
    held::Held,
    journal::{Journal, Record},
    layers::{self, DecodeLayerError, Decoded},
    names::Names,
    open_file::OpenFile,
    outstanding::{self, Outstanding, Promise},
    prints::Lender,
    recipes::{self, NamedRecipe, ReadRecipeError},
    room::{Builder, NoRoomError},
    shared::Shared,
    status::Status,
    steps::step,
    tree::{CONTENT, IMAGE, JOURNAL, TWIN, begun_at, io_at, remove_any, write_new},
};
use crate::{
    lock::lock,
    platform,
    tart::{Reference, cache},
};

/// An image on this host's disk. Threads share it. Calls that read or write bytes, or look at files, block on the disk.
///
/// It stays readable after its installation, so that the host goes on seeding.
#[derive(Debug)]
pub struct Stage {
    shared: Arc<Shared>,
    layout: Layout,
    manifest: Vec<u8>,
    /// `.parbake/<hex>`.
    directory: PathBuf,
    files: Arc<ImageFiles>,
    held: Held<Arc<ImageFiles>>,
    /// Contents whose blobs this process decoded onto the disk.
    decoded: Decoded,
    /// Links that the journal lost.
    lost_links: LostLinks,
    /// The doubt under which the image is read again.
    doubt: Doubt,
    names: Names,
    standing: recipes::Standing,
    /// What other disks here have of chunks that are lacking.
    blocks: Blocks,
    /// Locked during an installation, so that one runs at a time.
    installing: Mutex<Installing>,
    /// What the stage may still take from the volume.
    outstanding: Outstanding,
}

/// What one installation leaves for the next one.
#[derive(Debug, Default)]
pub(super) struct Installing {
    /// The installation did everything up to tart's lock, and didn't get the lock.
    pub(super) waits_for_tart: bool,
}

/// The parts of a stage: its directory, and what lies there.
pub(super) struct Parts {
    pub(super) directory: PathBuf,
    pub(super) status: Status,
    /// The bodies that the status names, in the same order.
    pub(super) bodies: Vec<Body>,
    pub(super) journal: Journal,
}

impl Builder for Stage {
    fn outstanding_bytes(&self) -> u64 {
        if self.names.is_installed() {
            return self.outstanding.copying();
        }
        let lacking = outstanding::lacking(&self.layout, &self.held, &self.decoded);
        self.outstanding.of(lacking)
    }

    fn taken_bytes(&self) -> u64 {
        if self.is_installed() || self.is_complete() {
            return 0;
        }
        // what a clone shares with other images was never written, and frees nothing; what was written twice frees its
        // bytes once
        outstanding::held(&self.held).min(self.files.taken_bytes())
    }
}

impl Lender for Stage {
    fn image(&self) -> &Digest {
        self.layout.digest()
    }

    fn since(&self) -> Option<SystemTime> {
        self.begun_at()
    }

    fn has_left(&self) -> bool {
        self.is_gone()
    }

    fn chunks_held(&self) -> Vec<ChunkSet> {
        let contents = 0..self.held.len();
        contents.map(|at| self.held.held(at)).collect()
    }

    fn print(&self, at: usize, chunk: ChunkIndex) -> Option<Fingerprint> {
        let (link, _) = self.held.link(at, chunk)?;
        Some(link.fingerprint)
    }

    fn bytes(&self, at: usize, chunk: ChunkIndex) -> Option<Vec<u8>> {
        let held = self.held.read(at, chunk).ok().flatten()?;
        Some(held.bytes)
    }
}

impl Stage {
    /// Makes a new stage without chunks in `directory`, which is ours and doesn't exist yet. If `base` is given and the
    /// volume can clone, the disk begins as a clone of `base`. The second value says whether it does.
    pub(super) fn create(
        shared: Arc<Shared>,
        layout: Layout,
        manifest: &[u8],
        status: Status,
        directory: PathBuf,
        base: Option<&Path>,
    ) -> io::Result<(Self, bool)> {
        let image = directory.join(IMAGE);
        fs::create_dir_all(&image).map_err(|error| io_at("creating", &image, error))?;
        ImageFiles::create_blobs(&directory)?;
        let (body, cloned) = Body::begin(&image, &layout, base)?;
        step("a disk begins")?;
        let journal = Journal::create(&directory.join(JOURNAL), layout.digest())?;
        // synced before the status names the stage: a stage without its manifest is pruned with all that it holds
        write_new(&directory.join(cache::MANIFEST), manifest)?;
        let status = Status {
            disk_inode: body.inode,
            file_inodes: match layout.format() {
                Format::Flat => Vec::new(),
                Format::Stacked => body.disk_inodes(),
            },
            ..status
        };
        if layout.format() == Format::Stacked {
            platform::sync_directory(&directory.join(CONTENT))?;
        }
        platform::sync_directory(&image)?;
        step("the manifest is written")?;
        let parts = Parts {
            directory,
            status,
            bodies: vec![body],
            journal,
        };
        let stage = Self::assemble(shared, layout, manifest, parts);
        if cloned {
            stage.files.set_cloned();
        }
        stage.names.write()?;
        step("the status is written")?;
        Ok((stage, cloned))
    }

    /// Takes up what an earlier process left, with the records of its journal. `damaged`: the journal lost links.
    pub(super) fn recover(
        shared: Arc<Shared>,
        layout: Layout,
        manifest: &[u8],
        parts: Parts,
        (records, damaged): (Vec<Record>, bool),
    ) -> Self {
        let stage = Self::assemble(shared, layout, manifest, parts);
        stage.held.replay(records);
        // the notes name the recipe, if there is one
        if let Some(file) = stage.names.recipe() {
            recipes::go_on_with(&stage.held, file, stage.shared.home(), &stage.layout);
        }
        stage.lost_links.note(damaged);
        stage.notice_doubt();
        stage
    }

    fn assemble(shared: Arc<Shared>, layout: Layout, manifest: &[u8], parts: Parts) -> Self {
        let Parts {
            directory,
            status,
            bodies,
            journal,
        } = parts;
        let files = ImageFiles::new(shared.clone(), &layout, &directory, bodies);
        let files = Arc::new(files);
        let contents = layout.contents();
        let contents = contents.iter().map(|spec| (spec.digest, spec.geometry));
        let held = Held::new(files.clone(), contents, shared.hosts().clone());
        held.set_journal(Some(journal));
        let image = *layout.digest();
        Self {
            doubt: Doubt::new(&directory),
            names: Names::new(shared.home(), image, &directory, files.clone(), status),
            shared,
            manifest: manifest.to_vec(),
            directory,
            files,
            held,
            standing: recipes::Standing::default(),
            blocks: Blocks::default(),
            decoded: Decoded::default(),
            lost_links: LostLinks::default(),
            installing: Mutex::default(),
            outstanding: Outstanding::default(),
            layout,
        }
    }

    /// The image.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The manifest's bytes.
    #[must_use]
    pub fn manifest(&self) -> &[u8] {
        &self.manifest
    }

    /// The image's recipe, if one was given.
    pub(crate) fn recipe(&self) -> Option<Blob> {
        self.names.recipe()
    }

    /// The image's recipe, unless a content was left by it, or contradicts it. If the image is whole, its bytes have
    /// proved the recipe.
    pub(crate) fn proved_recipe(&self) -> Option<Blob> {
        let recipe = self.names.recipe();
        recipe.filter(|file| self.standing.holds(&file.digest, &self.held))
    }

    /// Whether the recipe is worth no more than one host's word, and how that changes.
    pub(crate) const fn standing(&self) -> &recipes::Standing {
        &self.standing
    }

    /// Takes the image's recipe: from now on, only its links are taken. Contents in doubt go on without it, and those
    /// with a held link that contradicts it.
    pub(super) fn take_recipe(&self, of: &NamedRecipe, in_doubt: &BTreeSet<Digest>) {
        recipes::take(&self.held, of.file.digest, &of.recipe, in_doubt);
    }

    /// Compares a recipe that another host made: it has to say of each chunk that is here what the chunk's link says.
    /// So nothing of it is believed, and an image that is whole has proved it.
    ///
    /// # Errors
    /// When a link is another one.
    pub(crate) fn compare_recipe(
        &self,
        name: &Digest,
        recipe: &proto::recipe::Recipe,
    ) -> Result<(), ReadRecipeError> {
        recipes::compare(&self.held, name, recipe)?;
        if self.is_complete() {
            self.standing.prove(*name);
        }
        Ok(())
    }

    /// What is known of a content's chunks; `None` for a content of another image.
    pub(crate) fn known(&self, content: Digest) -> Option<MutexGuard<'_, Chunks>> {
        Some(self.held.chunks(self.held.find(&content)?))
    }

    /// The references that name the image here, or shall name it.
    #[must_use]
    pub fn references(&self) -> Vec<String> {
        let references = self.names.known();
        references.iter().map(ToString::to_string).collect()
    }

    /// Whether tart finds the image by this reference now.
    #[must_use]
    pub fn is_named(&self, reference: &str) -> bool {
        reference
            .parse()
            .is_ok_and(|reference| self.names.names(&reference))
    }

    /// The hosts that may have what the image holds.
    #[must_use]
    pub fn entitled(&self) -> Entitled {
        self.names.entitled()
    }

    /// Whether the image was installed. [`Store::presence`](super::Store::presence) says whether it is still there.
    #[must_use]
    pub fn is_installed(&self) -> bool {
        self.names.is_installed()
    }

    /// The chunks of this content that are on disk and fit their links. Empty for a content of another image.
    #[must_use]
    pub fn held(&self, content: Digest) -> ChunkSet {
        self.held
            .find(&content)
            .map_or_else(ChunkSet::default, |at| self.held.held(at))
    }

    /// Whether the content is complete and verified from its first byte to its digest.
    #[must_use]
    pub fn is_closed(&self, content: Digest) -> bool {
        self.held
            .find(&content)
            .is_some_and(|at| self.held.is_closed(at))
    }

    /// When this stage was made, also in an earlier process: the manifest was written then, in a new directory. A
    /// damaged manifest was written again later. `None` if the volume doesn't tell.
    #[must_use]
    pub(crate) fn begun_at(&self) -> Option<SystemTime> {
        begun_at(&self.directory)
    }

    /// Whether every content is closed, so that the image can be installed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.first_open().is_none()
    }

    /// The link and source of a held chunk, without reading its bytes.
    #[must_use]
    pub fn link(&self, content: Digest, chunk: ChunkIndex) -> Option<(Link, Source)> {
        self.held.link(self.held.find(&content)?, chunk)
    }

    /// Stores a chunk at every place where the image has it. The caller has found that the link fits the bytes
    /// ([`Link::holds`]). Zeros become holes. A chunk that is held already stays as it is. If another thread stores the
    /// same chunk, waits for that thread.
    ///
    /// The chunk counts as held at once. It survives a crash from the next [`flush`](Self::flush) on. The statement
    /// says which host answers for the link. Without a statement, the chunk stays on this host until its chain is
    /// closed.
    ///
    /// # Errors
    /// When the link is rejected, or the volume fails. The chunk isn't held then.
    pub fn write(
        &self,
        content: Digest,
        chunk: ChunkIndex,
        bytes: &[u8],
        link: Link,
        source: Source,
        (maker, statement): (&HostId, Option<&Statement>),
    ) -> Result<Entered, WriteError> {
        let at = self
            .held
            .find(&content)
            .ok_or(WriteError::UnknownContent(content))?;
        let maker = (maker, statement);
        self.held.write(at, chunk, bytes, link, source, maker)
    }

    pub(crate) fn restate(
        &self,
        content: Digest,
        chunk: ChunkIndex,
        link: Link,
        statement: Statement,
    ) {
        if let Some(at) = self.held.find(&content) {
            self.held.restate(at, chunk, link, statement);
        }
    }

    /// The host that answers for a chunk's link, if one does.
    #[must_use]
    pub fn answer(&self, content: Digest, chunk: ChunkIndex) -> Answer {
        let found = self.held.find(&content);
        found.map_or(Answer::Nobody, |at| self.held.answer(at, chunk))
    }

    /// Reads a held chunk. `None` if it isn't held, was dropped during the read, or the image is gone. A chunk from an
    /// earlier process is first compared with its link, and dropped if it changed.
    ///
    /// # Errors
    /// When the volume fails.
    pub fn read(&self, content: Digest, chunk: ChunkIndex) -> io::Result<Option<HeldChunk>> {
        match self.held.find(&content) {
            Some(at) => self.held.read(at, chunk),
            None => Ok(None),
        }
    }

    /// The byte ranges of a chunk that are nowhere on this host, where the disks of other images have the rest. They
    /// are in order, start and end at multiples of 4 KiB or with the chunk, and none touches the next. Reads no disk.
    ///
    /// `None`: nothing of the chunk is known to be here, or the whole chunk is held. The list says what a look at the
    /// beginning found; [`part`](Self::part) looks again.
    #[must_use]
    pub fn lacking_ranges(&self, content: Digest, chunk: ChunkIndex) -> Option<Vec<Range<u32>>> {
        self.blocks
            .lacking(&self.held, self.held.find(&content)?, chunk)
    }

    /// Reads the bytes of a chunk that lie on the disks of other images here, to be put together with those of
    /// [`lacking_ranges`](Self::lacking_ranges), which came from elsewhere. A disk may have changed since or be gone:
    /// then the part lacks more than those ranges. Nothing is stored. Blocks: up to a hundred short reads.
    ///
    /// `None`: nothing of the chunk is here any more, or the chunk is held.
    #[must_use]
    pub fn part(&self, content: Digest, chunk: ChunkIndex) -> Option<ChunkPart> {
        self.blocks
            .part(&self.held, self.held.find(&content)?, chunk)
    }

    /// Whether a chunk with this link may lie whole in another image here. Of contents with a recipe that was found out
    /// at the beginning. Reads no disk.
    pub(crate) fn may_be_here(&self, content: Digest, link: &Link) -> bool {
        let without_recipe = self.known(content).is_some_and(|of| of.recipe().is_none());
        without_recipe && self.shared.prints().has(&link.fingerprint)
    }

    /// The bytes of a lacking chunk with this link, if another image here holds them. Blocks.
    pub(crate) fn find_here(
        &self,
        content: Digest,
        chunk: ChunkIndex,
        link: &Link,
    ) -> Option<Vec<u8>> {
        let geometry = self.held.geometry(self.held.find(&content)?);
        let prints = self.shared.prints();
        prints.find(self.layout.digest(), link, (geometry, chunk))
    }

    /// Forgets that a part of a chunk is here: with what came from elsewhere, it wasn't the chunk. The whole chunk has
    /// to come then.
    pub(crate) fn forget_part(&self, content: Digest, chunk: ChunkIndex) {
        if let Some(at) = self.held.find(&content) {
            self.blocks.forget(at, chunk);
        }
    }

    /// The part of a chunk that was found on the disks of other images here wasn't the chunk's, as the whole chunk
    /// shows. After some of these no part is used any more.
    pub(crate) fn part_was_false(&self) {
        self.blocks.was_false();
    }

    /// How many of them there were.
    #[cfg(test)]
    pub(crate) fn false_parts(&self) -> u32 {
        self.blocks.false_parts()
    }

    /// Walks back from the content's digest and drops the chunks that this proves false ([`proto::Ledger::walk`]). The
    /// drops are journaled before this returns.
    ///
    /// # Errors
    /// When the journal can't be written. The false chunks are dropped all the same.
    pub fn walk(&self, content: Digest) -> io::Result<Vec<Verdict>> {
        let Some(at) = self.held.find(&content) else {
            return Ok(Vec::new());
        };
        let verdicts = self.held.drop_false(at);
        if !verdicts.is_empty() {
            self.flush()?;
        }
        Ok(verdicts)
    }

    /// Drops a chunk whose bytes turned out not to be the registry's, so that the true bytes can take its place. The
    /// drop is journaled before this returns.
    ///
    /// # Errors
    /// When the journal can't be written. The chunk is dropped all the same.
    pub(crate) fn forget_chunk(&self, content: Digest, chunk: ChunkIndex) -> io::Result<()> {
        if let Some(at) = self.held.find(&content)
            && self.held.forget(at, chunk)
        {
            self.flush()?;
        }
        Ok(())
    }

    /// Drops the unproved chunks from `from` on whose links this maker made, because the maker took them back. The
    /// drops are journaled before this returns.
    ///
    /// # Errors
    /// When the journal can't be written. The chunks are dropped all the same.
    pub fn retract(
        &self,
        content: Digest,
        maker: HostKey,
        from: ChunkIndex,
    ) -> io::Result<Vec<ChunkIndex>> {
        let Some(at) = self.held.find(&content) else {
            return Ok(Vec::new());
        };
        let chunks = self.held.retract(at, maker, from);
        if !chunks.is_empty() {
            self.flush()?;
        }
        Ok(chunks)
    }

    /// Reads a held chunk from the disk. Drops it, and journals the drop, if its bytes don't fit its link any more.
    /// Returns whether it is still held.
    ///
    /// # Errors
    /// When the volume fails.
    pub fn scrub(&self, content: Digest, chunk: ChunkIndex) -> io::Result<bool> {
        Ok(matches!(self.look(content, chunk)?, Look::Sound(_)))
    }

    pub(crate) fn look(&self, content: Digest, chunk: ChunkIndex) -> io::Result<Look> {
        let Some(at) = self.held.find(&content) else {
            return Ok(Look::Missing);
        };
        let look = self.held.look(at, chunk)?;
        if look == Look::Rotten {
            self.flush()?;
        }
        Ok(look)
    }

    /// Makes everything written so far survive a crash: syncs the data first, then appends to the journal that vouches
    /// for them. The caller does it at least every 500 ms while chunks arrive. Cheap when nothing happened.
    ///
    /// # Errors
    /// When the volume fails. Chunks that weren't synced aren't held any more. Records that only weren't journaled are
    /// tried again.
    pub fn flush(&self) -> io::Result<()> {
        self.held.flush()
    }

    /// Decodes this blob of layers without a raw digest onto the disk, unless this process has done so.
    ///
    /// # Errors
    /// [`DecodeLayerError::Rotten`] if the blob isn't here, or its bytes don't fit its digest any more.
    pub(crate) fn decode(&self, blob: Digest) -> Result<(), DecodeLayerError> {
        let Some(at) = self.held.find(&blob) else {
            return Ok(());
        };
        self.decoded.decode(&self.held, &self.layout, at)
    }

    /// Decodes the blobs of layers without a raw digest onto the disk, unless this process has done so. What an earlier
    /// process decoded is decoded again, because it has no digest to be compared with.
    ///
    /// # Errors
    /// [`DecodeLayerError::Rotten`] if a blob's bytes don't fit its digest any more.
    pub(super) fn decode_layers(&self) -> Result<(), DecodeLayerError> {
        self.decoded.decode_rest(&self.held, &self.layout)
    }

    /// Compares the disk with what a blob's layers decode to, and writes again what differs. Decoded bytes have no
    /// links of their own: only the blob has, and its bytes are no part of the disk. Returns whether something
    /// differed. Does nothing if the content isn't decoded, or the image isn't installed.
    ///
    /// # Errors
    /// When a part can't be read or written, or the blob has rotted.
    pub(crate) fn mend_decoded(&self, content: Digest) -> Result<bool, DecodeLayerError> {
        let Some(at) = self.held.find(&content) else {
            return Ok(false);
        };
        // an image under construction is decoded before it is installed
        if !self.is_installed() {
            return Ok(false);
        }
        layers::mend(&self.held, &self.layout, at)
    }

    /// Compares the chunks that an earlier process left with their links. Rotten chunks aren't held any more, and are
    /// reported as [`News`](super::News). Takes about a second per GB, less on several processors.
    ///
    /// # Errors
    /// When the volume fails.
    pub fn read_again(&self) -> io::Result<()> {
        earlier::read_again(&self.held, &self.shared)
    }

    /// Whether [`read_again`](Self::read_again) has to come before an installation: some chunk is held only by the word
    /// of an earlier process, and the image isn't installed or is doubted. The chunks of a sound installed image are
    /// compared when they are used.
    #[must_use]
    pub(crate) fn has_to_be_read(&self) -> bool {
        (!self.is_installed() || self.is_doubted()) && earlier::is_unread(&self.held)
    }

    /// Makes the links of an installed image again from its bytes, if its journal was lost. It hashes the disk, a
    /// second per GB, instead of downloading. Chunks that this doesn't prove are left to be fetched.
    ///
    /// # Errors
    /// When the volume fails.
    pub(super) fn link_again(&self) -> io::Result<()> {
        let image = self.layout.digest();
        self.lost_links.make_again(image, &self.held, &self.shared)
    }

    /// Whether nobody waits for the image any more, so that its beginning ends early.
    pub(super) fn is_given_up(&self) -> bool {
        self.shared.is_given_up(self.layout.digest())
    }

    /// Syncs every file of the image to the disk.
    pub(super) fn sync_files(&self) -> io::Result<()> {
        let bodies = self.files.bodies();
        bodies.iter().try_for_each(|body| body.sync())
    }

    /// The first content that isn't closed.
    pub(super) fn first_open(&self) -> Option<Digest> {
        (0..self.held.len())
            .find(|at| !self.held.is_closed(*at))
            .map(|at| self.held.digest(at))
    }

    // ---- for what stands on a stage ---------------------------------------------------------------------------------

    pub(super) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) const fn files(&self) -> &Arc<ImageFiles> {
        &self.files
    }

    /// The chunks of the image's contents.
    pub(super) const fn chunks(&self) -> &Held<Arc<ImageFiles>> {
        &self.held
    }

    /// What other disks here have of chunks that are lacking.
    pub(super) const fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// The references of the image: where tart finds it, and where it shall find it.
    pub(super) const fn names(&self) -> &Names {
        &self.names
    }

    /// Waits for a running installation, and keeps others from beginning while the guard lives.
    pub(super) fn installing(&self) -> MutexGuard<'_, Installing> {
        lock(&self.installing)
    }

    /// What [`installing`](Self::installing) does, without waiting. `None` if an installation runs.
    pub(super) fn try_installing(&self) -> Option<MutexGuard<'_, Installing>> {
        self.installing.try_lock().ok()
    }

    /// Whether the image may begin anew as a clone, if that has more in place than the stage holds. Nothing says what a
    /// stage with a recipe has in common with other disks, unless it goes on by one.
    pub(super) fn may_begin_anew(&self, by_recipe: bool) -> bool {
        self.shared.clones() && !self.is_installed() && (by_recipe || self.recipe().is_none())
    }

    /// Whether the stage holds less on its disk than so many bytes, which a beginning has in common with its base. By a
    /// recipe, whole chunks of zeros don't count.
    pub(super) fn has_less_than(&self, common_bytes: u64, by_recipe: bool) -> bool {
        outstanding::on_disk(&self.held, by_recipe) < common_bytes
    }

    /// No more than these bytes are expected to be taken, because the rest is here. [`u64::MAX`] ends that.
    pub(super) fn expect_bytes(&self, bytes: u64) {
        self.outstanding.expect(bytes);
    }

    /// Where a beginning found no room, none is kept for the stage until it is begun again: others may take the room.
    pub(super) fn or_aside(&self, admitted: Result<(), NoRoomError>) -> Result<(), NoRoomError> {
        if admitted.is_err() {
            self.expect_bytes(0);
        }
        admitted
    }

    /// Sets room aside for a copy of the image, until the promise is dropped.
    pub(super) fn promise_room(&self) -> Result<Promise<'_>, NoRoomError> {
        let bodies = self.files.bodies();
        let need_bytes = bodies.first().map_or(0, |body| body.copied_bytes());
        self.shared.room().admit(need_bytes, self.layout.digest())?;
        Ok(self.outstanding.promise(need_bytes))
    }

    /// Notes that exactly these references shall name the image. The note survives a crash. Does nothing if our
    /// directory was removed; the next look finds that.
    pub(super) fn want(&self, references: &[Reference]) -> io::Result<()> {
        self.names.want_if_there(references)?;
        self.drop_twin(references)
    }

    /// Removes a twin that waits to be moved, once the repository of every wanted reference has the image.
    fn drop_twin(&self, wanted: &[Reference]) -> io::Result<()> {
        let twin = self.directory.join(TWIN);
        let Some(_installing) = self.try_installing() else {
            return Ok(());
        };
        if twin.exists() && self.names.are_placed(wanted) {
            remove_any(&twin)?;
        }
        Ok(())
    }

    /// Whether the image is doubted, and so doesn't count until it is installed again.
    #[must_use]
    pub fn is_doubted(&self) -> bool {
        self.doubt.is_known()
    }

    /// Looks for a doubt that isn't known yet. If there is one, counts every chunk as unread, and opens the files
    /// again, because an editor may have replaced them. Returns whether there is one.
    pub(super) fn notice_doubt(&self) -> bool {
        if !self.is_installed() || !self.doubt.notice() {
            return false;
        }
        let directories = self.names.installed_directories();
        let bodies: Vec<Body> = directories
            .iter()
            .filter_map(|directory| {
                let disk = installed_paths(self.shared.home(), directory, &self.layout);
                Body::open(directory, &disk, true, &self.layout).ok()
            })
            .collect();
        if !bodies.is_empty() {
            self.files.replace_bodies(bodies);
        }
        self.doubt_all();
        true
    }

    /// Ends the doubt. The caller has read everything, and all of it is complete.
    pub(super) fn end_doubt(&self) -> io::Result<()> {
        self.doubt.end(|| {
            for directory in self.names.installed_directories() {
                let manifest = directory.join(cache::MANIFEST);
                if fs::read(&manifest).ok().as_ref() != Some(&self.manifest) {
                    write_new(&manifest, &self.manifest)?;
                }
            }
            Ok(())
        })
    }

    /// Uses these files of the disk instead of its own: another image put the same ones into tart's cache. What they
    /// hold is compared when it is used.
    pub(super) fn share_files(&self, files: &[(usize, Arc<OpenFile>)]) -> io::Result<()> {
        self.names.note_files(files)?;
        self.files.share(files);
        self.held.doubt();
        Ok(())
    }

    /// Counts every chunk as unread, and every blob as not decoded.
    fn doubt_all(&self) {
        self.held.doubt();
        self.decoded.forget_all();
    }

    /// Whether the image was given up, or its files removed. Nothing is read or written any more then.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.held.is_gone()
    }

    /// Marks the image as gone: nothing is read or written any more.
    pub(super) fn set_gone(&self) {
        self.held.set_gone();
    }
}
