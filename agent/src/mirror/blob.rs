//! One blob on this host's disk: arriving, or whole and verified.
//!
//! A blob that arrives is a content of the swarm like any other. Chunks come with links, and the chain proves them from
//! the end. This module decides which bytes may leave before that ([`Blob::ready`]):
//! - all bytes of a whole blob;
//! - bytes that this host itself got from the registry in an unbroken run from the first byte, except the last chunk;
//! - in the same run, bytes from peers that the blob's recipe proves ([`Blob::take_recipe`]), to those who read the
//!   blob by a repository that has this recipe;
//! - other bytes from peers only after the chain is closed.
//!
//! So no client ever gets all bytes of a wrong blob, and a lying peer can't make one byte wrong. If bytes of the second
//! or third kind turn out false, the connections that got some are broken, and resuming the blob is refused for an hour
//! (`docs/decisions/0004-bytes-before-the-end.md`).

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use proto::{
    Answer, ChunkIndex, ChunkSet, ContentRecipe, Digest, Geometry, HostId, HostKey, Link, Source,
    Statement,
    ledger::{Entered, Verdict},
};
use tokio::sync::watch;
use tracing::{info, warn};

pub(crate) use super::trouble::{News, Trouble};
use super::{leaving::BlobFile, repositories::Repositories, taints::Taints};
use crate::{
    lock::lock,
    platform,
    store::{
        HeldChunk, WriteError,
        claim::{Hosts, Look},
        held::Held,
        journal::Journal,
    },
};

/// What all blobs of one cache share.
#[derive(Debug)]
pub(crate) struct Common {
    /// This host's id.
    pub(super) me: HostId,
    pub(super) hosts: Arc<Hosts>,
    pub(super) taints: Taints,
}

/// A blob. Threads share it. Calls whose docs say so block on the disk.
#[derive(Debug)]
pub(crate) struct Blob {
    digest: Digest,
    common: Arc<Common>,
    /// The path of its bytes while it arrives. A whole blob has another path (`resting`).
    arriving: PathBuf,
    file: Arc<BlobFile>,
    /// Locked for a look.
    life: Mutex<Life>,
    /// The end of the bytes that may have left before the chain proved them.
    given: AtomicU64,
    /// The registry from which the chunks came that are ours. None if they came from several registries, or the
    /// registry isn't known.
    registry: Mutex<Option<String>>,
    /// The registry's bytes, or a link that a host signed, didn't fit the blob's recipe. It takes no recipe any more.
    left_recipe: AtomicBool,
    repositories: Repositories,
    readers: AtomicUsize,
    wanted: AtomicBool,
    /// When it was last asked for or read. The least recently used blob is evicted first.
    used: Mutex<Instant>,
    news: watch::Sender<News>,
}

/// The chunks of a blob.
type BlobChunks = Held<Arc<BlobFile>>;

/// The state of a blob's life.
#[derive(Debug)]
enum Life {
    /// Chunks arrive.
    Coming(Arc<BlobChunks>),
    /// Part of it has arrived, and its files are closed. [`Blob::begin`] takes them up in a new `Blob` when it is
    /// wanted.
    Parked,
    /// Every byte is here and verified. The links are absent until somebody needs them.
    Whole(Option<Arc<BlobChunks>>),
    /// It was removed from the disk. A reader of a whole blob still has the open file.
    Gone {
        was_whole: bool,
        chunks: Option<Arc<BlobChunks>>,
    },
}

impl Life {
    const fn is_whole(&self) -> bool {
        matches!(
            self,
            Self::Whole(_)
                | Self::Gone {
                    was_whole: true,
                    ..
                }
        )
    }

    fn chunks(&self) -> Option<Arc<BlobChunks>> {
        match self {
            Self::Coming(chunks) => Some(chunks.clone()),
            Self::Whole(chunks) | Self::Gone { chunks, .. } => chunks.clone(),
            Self::Parked => None,
        }
    }

    /// Every byte is here and verified now.
    fn complete(&mut self) {
        *self = match std::mem::replace(self, Self::Parked) {
            Self::Coming(chunks) => Self::Whole(Some(chunks)),
            // the blob was removed meanwhile
            Self::Gone { chunks, .. } => Self::Gone {
                was_whole: true,
                chunks,
            },
            other => other,
        };
    }

    /// The blob is removed from the disk.
    fn end(&mut self) {
        let (was_whole, chunks) = (self.is_whole(), self.chunks());
        *self = Self::Gone { was_whole, chunks };
    }
}

/// A client's reading of a blob. While it lives, the blob isn't evicted and its fetch goes on.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) blob: Arc<Blob>,
    pub(crate) news: watch::Receiver<News>,
    epoch: u64,
    /// If set, the reader may have only bytes that came from this registry. Bytes from elsewhere aren't known to be in
    /// this registry, too.
    limited_to: Option<String>,
    /// The repository that gives the reader the blob. Another repository's recipe proves nothing to this reader.
    repository: Option<String>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        *lock(&self.blob.used) = Instant::now();
        self.blob.readers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Reading {
    /// Whether bytes that this reader may have got turned out false.
    pub(crate) fn is_misled(&self) -> bool {
        self.news.borrow().epoch != self.epoch
    }

    /// Limits this reader to bytes that came from this registry. `None` lifts the limit.
    pub(super) fn limit(&mut self, registry: Option<String>) {
        self.limited_to = registry;
    }

    /// Says which repository gives the reader the blob.
    pub(super) fn by(&mut self, repository: &str) {
        self.blob.repositories.read(repository);
        self.repository = Some(repository.to_owned());
    }

    /// As [`Blob::ready`], for this reader.
    pub(crate) fn ready(&self, offset: u64) -> u64 {
        let ready = match &self.limited_to {
            None => self.blob.ready(offset),
            Some(registry) => self.blob.ready_of(registry, offset),
        };
        let proved = |repository: &String| self.blob.repositories.is_proved_by(repository);
        if self.blob.is_whole() || self.repository.as_ref().is_some_and(proved) {
            return ready;
        }
        ready.min(self.blob.file.ours().max(offset))
    }

    /// Whether the whole blob is here, but this reader's limit keeps the next bytes from it.
    pub(super) fn is_held_back(&self, offset: u64) -> bool {
        self.blob.is_whole() && offset < self.blob.size() && self.ready(offset) == offset
    }
}

pub(super) struct Paths {
    pub(super) arriving: PathBuf,
    pub(super) resting: PathBuf,
}

impl Blob {
    /// A blob of which nothing is here, or of which an earlier process left a part. Blocks.
    pub(super) fn begin(
        digest: Digest,
        geometry: Geometry,
        paths: Paths,
        common: &Arc<Common>,
    ) -> io::Result<Self> {
        let blob = Self::new(digest, geometry, paths, common, Life::Parked);
        let journal_path = links(&blob.arriving);
        let opened = if blob.arriving.exists() {
            Journal::open(&journal_path, &digest)?
        } else {
            None
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(opened.is_none())
            .open(&blob.arriving)?;
        file.set_len(geometry.size())?;
        blob.file.set_open(Some(Arc::new(file)));
        let (journal, records) = match opened {
            Some(opened) => {
                if let Some(reason) = &opened.damage {
                    warn!(content = %digest, file = %journal_path.display(), reason, "a blob's journal is damaged; the chunks that it doesn't vouch for are fetched again");
                }
                (opened.journal, opened.records)
            }
            None => (Journal::create(&journal_path, &digest)?, Vec::new()),
        };
        if !records.is_empty() {
            // clients of the earlier process may have any byte of it
            blob.given.store(geometry.size(), Ordering::Release);
        }
        let held = blob.new_chunks();
        held.set_journal(Some(journal));
        held.replay(records);
        *lock(&blob.life) = Life::Coming(Arc::new(held));
        Ok(blob)
    }

    /// A blob that an earlier process verified, as its path says.
    pub(super) fn resting(
        digest: Digest,
        geometry: Geometry,
        paths: Paths,
        common: &Arc<Common>,
    ) -> Self {
        Self::new(digest, geometry, paths, common, Life::Whole(None))
    }

    fn new(
        digest: Digest,
        geometry: Geometry,
        paths: Paths,
        common: &Arc<Common>,
        life: Life,
    ) -> Self {
        let file = BlobFile::new(geometry, common.me.key(), paths.resting);
        Self {
            digest,
            common: common.clone(),
            arriving: paths.arriving,
            file: Arc::new(file),
            life: Mutex::new(life),
            given: AtomicU64::new(0),
            registry: Mutex::default(),
            left_recipe: AtomicBool::new(false),
            repositories: Repositories::default(),
            readers: AtomicUsize::new(0),
            wanted: AtomicBool::new(false),
            used: Mutex::new(Instant::now()),
            news: watch::Sender::new(News::default()),
        }
    }

    fn new_chunks(&self) -> BlobChunks {
        let content = [(self.digest, self.geometry())];
        Held::new(self.file.clone(), content, self.common.hosts.clone())
    }

    fn chunks(&self) -> Option<Arc<BlobChunks>> {
        lock(&self.life).chunks()
    }

    pub(crate) const fn digest(&self) -> Digest {
        self.digest
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.file.geometry
    }

    pub(crate) fn size(&self) -> u64 {
        self.geometry().size()
    }

    /// Whether every byte is here and verified.
    pub(crate) fn is_whole(&self) -> bool {
        lock(&self.life).is_whole()
    }

    pub(crate) fn is_gone(&self) -> bool {
        matches!(*lock(&self.life), Life::Gone { .. })
    }

    /// The number of readers, and when the last reader left or the blob was last asked for.
    pub(crate) fn readers(&self) -> (usize, Instant) {
        (self.readers.load(Ordering::Acquire), *lock(&self.used))
    }

    /// Sets when an earlier process last used the blob.
    pub(super) fn was_used(&self, at: Instant) {
        *lock(&self.used) = at;
    }

    /// Whether nobody reads it and nothing of it is fetched. A whole blob isn't fetched, even if the driver hasn't
    /// noticed yet that the last byte came.
    pub(super) fn is_idle(&self) -> bool {
        self.readers().0 == 0 && (self.is_whole() || !self.wanted.load(Ordering::Acquire))
    }

    /// Sets whether the driver fetches it.
    pub(crate) fn set_wanted(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::Release);
    }

    /// Begins to read. This doesn't begin a fetch.
    pub(crate) fn read_on(self: &Arc<Self>) -> Reading {
        self.readers.fetch_add(1, Ordering::AcqRel);
        *lock(&self.used) = Instant::now();
        let news = self.news.subscribe();
        let epoch = news.borrow().epoch;
        Reading {
            blob: self.clone(),
            news,
            epoch,
            limited_to: None,
            repository: None,
        }
    }

    /// This host fetches the blob from this registry from now on (`None`: from elsewhere). If the run already has
    /// chunks from another source, the run's registry becomes unknown.
    pub(crate) fn comes_from(&self, registry: Option<&str>) {
        let mut source = lock(&self.registry);
        let begun = self.file.ours() > 0;
        if !begun || source.as_deref() != registry {
            *source = registry.filter(|_| !begun).map(str::to_owned);
        }
    }

    /// As [`ready`](Self::ready), but only bytes that this host got from this registry.
    fn ready_of(&self, registry: &str, offset: u64) -> u64 {
        if lock(&self.registry).as_deref() != Some(registry) {
            return offset;
        }
        self.ready(offset).min(self.file.ours().max(offset))
    }

    /// The end of the bytes from `offset` on that may leave now. `offset` itself if no byte may.
    pub(crate) fn ready(&self, offset: u64) -> u64 {
        let size = self.size();
        if self.is_whole() {
            return size;
        }
        self.file.may_leave().max(offset).min(size)
    }

    /// Whether this part may leave now. Notes that unproved bytes leave. The caller asks [`Reading::is_misled`] before
    /// it goes on to the next part.
    pub(crate) fn offer(&self, offset: u64, end: u64) -> bool {
        if self.is_whole() {
            return true;
        }
        // note first, then look: if a chunk is dropped meanwhile, either the look sees that the chunk isn't ready, or
        // the thread that drops it sees the note
        self.given.fetch_max(end, Ordering::AcqRel);
        self.ready(offset) >= end
    }

    /// Fills `bytes` for a client with what stands at `offset`. `false` if that may not leave any more. Blocks.
    pub(crate) fn give(&self, file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<bool> {
        if !self.offer(offset, offset + bytes.len() as u64) {
            return Ok(false);
        }
        file.read_exact_at(bytes, offset)?;
        Ok(true)
    }

    /// The file to read from. It stays readable when the blob is evicted.
    pub(crate) fn file(&self) -> io::Result<Arc<File>> {
        if self.is_gone() && !self.file.is_open() {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        self.file.open()
    }

    /// Closes the file of a whole blob that nobody reads, because a process on macOS may have few files open.
    pub(super) fn rest(&self) {
        if self.is_whole() && self.readers.load(Ordering::Acquire) == 0 {
            self.file.set_open(None);
        }
    }

    /// Closes the files of a blob that has arrived in part, and of which only the cache knows. This `Blob` is of no use
    /// from then on: when the blob is wanted, a new one takes up the files.
    pub(super) fn park(&self) {
        let mut life = lock(&self.life);
        // if data aren't flushed yet, the next tick flushes them, and parks the blob later
        if matches!(&*life, Life::Coming(chunks) if chunks.is_flushed()) {
            *life = Life::Parked;
            self.file.set_open(None);
        }
    }

    pub(super) fn is_parked(&self) -> bool {
        matches!(*lock(&self.life), Life::Parked)
    }

    /// Tells readers why nothing comes, or (`None`) that it is tried again. Nothing comes any more of a blob that is
    /// gone.
    pub(crate) fn set_trouble(&self, trouble: Option<Trouble>) {
        if trouble.is_none() && self.is_gone() {
            return;
        }
        self.news.send_if_modified(|news| {
            let changed = news.trouble != trouble;
            news.trouble = trouble;
            changed
        });
    }

    /// Tells readers that chunks will come, so they may go on waiting.
    pub(crate) fn promise(&self) {
        self.news.send_modify(|news| news.revision += 1);
    }

    pub(crate) fn trouble(&self) -> Option<Trouble> {
        self.news.borrow().trouble.clone()
    }

    // ---- as a content of the swarm --------------------------------------------------------------------------------

    /// Loads the links of a whole blob, so that it can be served to peers. Returns whether the blob has its links.
    /// Blocks.
    ///
    /// # Errors
    /// When the links can't be read now. Such an error says nothing about the blob.
    pub(crate) fn load_links(&self) -> io::Result<bool> {
        let mut life = lock(&self.life);
        let Life::Whole(loaded @ None) = &mut *life else {
            return Ok(life.chunks().is_some());
        };
        let Some(opened) = Journal::open(&links(&self.file.resting), &self.digest)? else {
            return Ok(false);
        };
        let chunks = self.new_chunks();
        chunks.replay(opened.records);
        let closed = chunks.is_closed(0);
        if closed {
            *loaded = Some(Arc::new(chunks));
        }
        Ok(closed)
    }

    pub(crate) fn held(&self) -> ChunkSet {
        self.chunks().map_or_else(
            || ChunkSet::empty(self.geometry().chunks()),
            |chunks| chunks.held(0),
        )
    }

    pub(crate) fn link(&self, chunk: ChunkIndex) -> Option<(Link, Source)> {
        self.chunks()?.link(0, chunk)
    }

    pub(crate) fn restate(&self, chunk: ChunkIndex, link: Link, statement: Statement) {
        if let Some(chunks) = self.chunks() {
            chunks.restate(0, chunk, link, statement);
        }
    }

    /// As [`Stage::answer`](crate::store::Stage::answer).
    pub(crate) fn answer(&self, chunk: ChunkIndex) -> Answer {
        let chunks = self.chunks();
        chunks.map_or(Answer::Nobody, |chunks| chunks.answer(0, chunk))
    }

    /// Whether a client read it by this repository.
    pub(super) fn is_read_by(&self, repository: &str) -> bool {
        self.repositories.is_read_by(repository)
    }

    /// Takes only the links of this recipe from now on, which is part of the recipe with the digest `name` and stands
    /// beside an image of this repository. What it proves leaves at once, to those who read the blob by this
    /// repository. Does nothing if the blob is whole, has another recipe or left one, if the recipe gives it another
    /// size, or if what is held contradicts the recipe.
    pub(crate) fn take_recipe(&self, repository: &str, name: Digest, recipe: &Arc<ContentRecipe>) {
        let of = (*recipe.digest(), recipe.geometry());
        let fits = of == (self.digest, self.geometry());
        let Some(chunks) = self.chunks().filter(|_| fits && !self.is_whole()) else {
            return;
        };
        if self.left_recipe.load(Ordering::Acquire) {
            return;
        }
        let take = || chunks.change(0, |chunks| chunks.take_recipe(name, recipe.clone()));
        match self.repositories.prove(repository, recipe, take) {
            Ok(true) => self.promise(),
            Ok(false) => {}
            Err(error) => {
                info!(content = %self.digest, recipe = %name, %error, "a recipe isn't used for a blob of the mirror");
            }
        }
    }

    /// The digest of the recipe that gives the links, as long as there is one.
    pub(crate) fn recipe(&self) -> Option<Digest> {
        self.chunks()?.chunks(0).recipe()
    }

    /// The link that the recipe gives a chunk.
    pub(crate) fn recipe_link(&self, chunk: ChunkIndex) -> Option<Link> {
        self.chunks()?.chunks(0).recipe_link(chunk)
    }

    /// Goes on without the recipe: bytes from peers leave when the chain is closed. Returns the recipe's digest, if
    /// there was one.
    pub(crate) fn leave_recipe(&self) -> Option<Digest> {
        let chunks = self.chunks()?;
        let name = chunks.change(0, |chunks| {
            let name = chunks.recipe();
            name.filter(|_| chunks.leave_recipe())
        })?;
        self.left_recipe.store(true, Ordering::Release);
        warn!(content = %self.digest, recipe = %name, "a recipe doesn't fit the registry's bytes of a blob; the mirror goes on without it");
        Some(name)
    }

    /// Whether this host got the chunk at this offset from the registry, rather than from a peer.
    pub(super) fn is_ours(&self, offset: u64) -> bool {
        let chunk = u32::try_from(offset / proto::CHUNK_BYTES).map(ChunkIndex);
        chunk
            .ok()
            .and_then(|chunk| self.link(chunk))
            .is_some_and(|(_, source)| source.sender == self.file.me)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_whole() || self.chunks().is_some_and(|chunks| chunks.is_closed(0))
    }

    /// Whether a chunk changed on disk after it was verified.
    pub(crate) fn is_rotten(&self) -> bool {
        self.file.is_rotten()
    }

    /// Whether some chunk is held only by the word of an earlier process. Such a chunk doesn't leave this host.
    pub(crate) fn is_unread(&self) -> bool {
        !self.is_whole()
            && self
                .chunks()
                .is_some_and(|chunks| !chunks.unread(0).is_empty())
    }

    /// Stores a chunk, as [`Stage::write`](crate::store::Stage::write) does. The caller has found that the link fits.
    /// Blocks.
    pub(crate) fn write(
        &self,
        chunk: ChunkIndex,
        bytes: &[u8],
        link: Link,
        source: Source,
        maker: (&HostId, Option<&Statement>),
    ) -> Result<Entered, WriteError> {
        if self.is_whole() {
            return Ok(Entered::Held);
        }
        let chunks = self.chunks().ok_or(WriteError::Gone)?;
        let entered = chunks.write(0, chunk, bytes, link, source, maker)?;
        if entered == Entered::New {
            self.news.send_modify(|news| {
                news.revision += 1;
                news.trouble = None;
            });
        }
        Ok(entered)
    }

    /// Reads a held chunk. A chunk from an earlier process is first compared with its link. Blocks.
    pub(crate) fn read(&self, chunk: ChunkIndex) -> io::Result<Option<HeldChunk>> {
        match self.chunks() {
            Some(chunks) => chunks.read(0, chunk),
            None => Ok(None),
        }
    }

    /// Reads a held chunk and compares it with its link. Blocks.
    pub(crate) fn look(&self, chunk: ChunkIndex) -> io::Result<Look> {
        let Some(chunks) = self.chunks() else {
            return Ok(Look::Missing);
        };
        let look = chunks.look(0, chunk)?;
        if look == Look::Rotten && !self.is_whole() {
            self.mislead(chunk);
            self.flush()?;
        }
        Ok(look)
    }

    /// Compares the chunks of an earlier process with their links. Returns the rotten chunks, which aren't held any
    /// more. Blocks.
    pub(crate) fn read_again(&self) -> io::Result<Vec<ChunkIndex>> {
        let unread = self.chunks().map(|chunks| chunks.unread(0));
        let mut rotten = Vec::new();
        for chunk in unread.iter().flat_map(ChunkSet::iter) {
            if self.look(chunk)? == Look::Rotten {
                rotten.push(chunk);
            }
        }
        self.promise();
        Ok(rotten)
    }

    /// Walks back from the digest and drops the chunks that this proves false. If the chain is closed, makes the blob
    /// whole. Blocks.
    pub(crate) fn walk(&self) -> io::Result<Vec<Verdict>> {
        let Some(chunks) = self.chunks() else {
            return Ok(Vec::new());
        };
        let verdicts = chunks.drop_false(0);
        // the highest chunk is surely false, and those below it that were dropped with it may be
        if let Some(lowest) = verdicts.iter().map(|verdict| verdict.chunk).min() {
            self.mislead(lowest);
            self.flush()?;
        }
        if self.is_closed() && self.is_unread() {
            self.read_again()?;
        }
        if self.is_closed() {
            self.finish()?;
        }
        Ok(verdicts)
    }

    /// Drops a chunk whose bytes turned out not to be the registry's. Blocks.
    pub(crate) fn forget_chunk(&self, chunk: ChunkIndex) -> io::Result<()> {
        if let Some(chunks) = self.chunks() {
            chunks.forget(0, chunk);
        }
        self.mislead(chunk);
        self.flush()
    }

    /// Drops the unproved chunks from `from` on whose links this maker made, because the maker took them back. Blocks.
    pub(crate) fn retract(&self, maker: HostKey, from: ChunkIndex) -> io::Result<Vec<ChunkIndex>> {
        let Some(chunks) = self.chunks() else {
            return Ok(Vec::new());
        };
        let lost = chunks.retract(0, maker, from);
        if let Some(first) = lost.first() {
            self.mislead(*first);
            self.flush()?;
        }
        Ok(lost)
    }

    /// Drops every chunk, because the registry's bytes don't end in the digest. Blocks.
    pub(crate) fn forget_all(&self) -> io::Result<()> {
        if let Some(chunks) = self.chunks() {
            for chunk in chunks.held(0).iter() {
                chunks.forget(0, chunk);
            }
        }
        self.mislead(ChunkIndex(0));
        self.flush()
    }

    /// Bytes from this chunk on are false, and some may have left. The new epoch ends the readers that may have got
    /// some. Later readers get no byte from here on until new chunks come.
    fn mislead(&self, chunk: ChunkIndex) {
        let offset = self.geometry().offset(chunk);
        if offset < self.given.fetch_min(offset, Ordering::AcqRel) {
            self.common.taints.add(self.digest);
            self.news.send_modify(|news| news.epoch += 1);
        }
    }

    /// Makes everything written so far survive a crash, as [`Held::flush`] does. Blocks.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.chunks().map_or(Ok(()), |chunks| chunks.flush())
    }

    /// Makes a closed blob whole: syncs data and journal, then moves the files to the directory of whole blobs. A crash
    /// between the two renames leaves the data among the arriving blobs without a journal, so the blob is fetched
    /// again.
    fn finish(&self) -> io::Result<()> {
        if self.is_whole() || self.is_gone() {
            return Ok(());
        }
        self.flush()?;
        platform::sync_full(&*self.file()?)?;
        let resting = &self.file.resting;
        fs::rename(links(&self.arriving), links(resting))?;
        fs::rename(&self.arriving, resting)?;
        if let Some(directory) = resting.parent() {
            platform::sync_directory(directory)?;
        }
        if let Some(chunks) = self.chunks() {
            chunks.set_journal(None);
        }
        lock(&self.life).complete();
        self.news.send_modify(|news| {
            news.revision += 1;
            news.trouble = None;
        });
        Ok(())
    }

    /// The blob rotted on disk, so bytes that left lately may have been false.
    pub(super) fn condemn(&self) {
        self.common.taints.add(self.digest);
        self.news.send_modify(|news| news.epoch += 1);
    }

    /// Removes the blob from the disk. Clients that have an unproved part of it can't resume. Blocks.
    pub(super) fn remove(&self) -> io::Result<()> {
        lock(&self.life).end();
        if let Some(chunks) = self.chunks() {
            chunks.set_gone();
        }
        if !self.is_whole() && self.given.load(Ordering::Acquire) > 0 {
            self.common.taints.add(self.digest);
        }
        // readers of an arriving blob would wait in vain
        self.set_trouble(Some(Trouble::Stalled(
            "it was removed from the cache".into(),
        )));
        for path in [&self.arriving, &self.file.resting] {
            for path in [path.clone(), links(path)] {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// The path of the links of the blob at this path.
fn links(path: &std::path::Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".links");
    name.into()
}
