//! One blob on this host's disk: arriving, or whole and verified.
//!
//! While it arrives it is a content of the swarm like any other: chunks come with links, and the chain proves them from
//! the end. Which bytes may leave before that is decided here ([`Blob::ready`]):
//! - a whole blob's, all;
//! - those that this host itself had from the registry in an unbroken run from the first, except the last chunk;
//! - what peers sent, not before the chain is closed.
//!
//! So a client never holds a complete wrong blob, and a lying peer can't make one byte wrong. Where bytes of the second
//! kind turn out false, connections that got some break, and resuming is refused for an hour
//! (`docs/decisions/0004-bytes-before-the-end.md`).

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use proto::{
    Answer, ChunkIndex, ChunkSet, Digest, Geometry, HostId, HostKey, Link, Source, State,
    Statement,
    ledger::{Entered, Verdict},
};
use tokio::sync::watch;
use tracing::warn;

use super::taints::Taints;
pub(crate) use super::trouble::{News, Trouble};
use crate::{
    lock::lock,
    platform,
    store::{
        HeldChunk, WriteError,
        chunks::Chunks,
        claim::{Hosts, Look},
        held::Held,
        journal::Journal,
        place::{Access, Files},
        sync::sync_data,
    },
};

/// What all blobs of a cache share.
#[derive(Debug)]
pub(crate) struct Common {
    /// This host.
    pub(super) me: HostId,
    pub(super) hosts: Arc<Hosts>,
    pub(super) taints: Taints,
}

/// A blob. Shared by threads; calls that say so block on the disk.
#[derive(Debug)]
pub(crate) struct Blob {
    digest: Digest,
    common: Arc<Common>,
    /// Where its bytes are while it arrives. When it is whole they rest elsewhere.
    arriving: PathBuf,
    file: Arc<BlobFile>,
    /// Locked for a look.
    life: Mutex<Life>,
    /// End of the bytes that left without being proved to the end.
    given: AtomicU64,
    /// The registry that the chunks of `run` came from; absent where they are of more than one, or that isn't known.
    registry: Mutex<Option<String>>,
    readers: AtomicUsize,
    wanted: AtomicBool,
    /// When it was last asked for or read, for the order in which blobs go.
    used: Mutex<Instant>,
    news: watch::Sender<News>,
}

/// The chunks of a blob.
type BlobChunks = Held<Arc<BlobFile>>;

/// Where a blob is in its life.
#[derive(Debug)]
enum Life {
    /// Chunks arrive.
    Coming(Arc<BlobChunks>),
    /// It has arrived in part, and its files are closed. Who wants it begins it anew.
    Parked,
    /// Every byte is here and verified. Without links nobody has needed them yet.
    Whole(Option<Arc<BlobChunks>>),
    /// It was removed from the disk. Who reads a whole blob still has its file.
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

    /// All of it is here and verified now.
    fn complete(&mut self) {
        *self = match std::mem::replace(self, Self::Parked) {
            Self::Coming(chunks) => Self::Whole(Some(chunks)),
            // it was removed meanwhile
            Self::Gone { chunks, .. } => Self::Gone {
                was_whole: true,
                chunks,
            },
            other => other,
        };
    }

    /// It is removed from the disk.
    fn end(&mut self) {
        let (was_whole, chunks) = (self.is_whole(), self.chunks());
        *self = Self::Gone { was_whole, chunks };
    }
}

/// A blob's file, and how far it may leave before its chain is closed.
#[derive(Debug)]
struct BlobFile {
    geometry: Geometry,
    me: HostKey,
    resting: PathBuf,
    /// Opened when it is needed, where the blob is whole.
    file: Mutex<Option<Arc<File>>>,
    /// Chunks from the first on that we had from the registry, each ending where the next starts. Changed under the
    /// lock of the content's chunks alone.
    run: AtomicU32,
    /// A chunk isn't any more what it was when it was verified.
    rotten: AtomicBool,
}

impl BlobFile {
    fn open(&self) -> io::Result<Arc<File>> {
        let mut file = lock(&self.file);
        if let Some(file) = &*file {
            return Ok(file.clone());
        }
        Ok(file.insert(Arc::new(File::open(&self.resting)?)).clone())
    }
}

impl Files for Arc<BlobFile> {
    fn each(
        &self,
        _content: usize,
        _access: Access,
        run: &mut dyn FnMut(usize, &File, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        run(0, &*self.open()?, 0)
    }

    fn sync(&self, _contents: &BTreeSet<usize>) -> io::Result<()> {
        sync_data(&*self.open()?)
    }

    fn rotted(&self, _content: usize, _chunk: ChunkIndex) {
        self.rotten.store(true, Ordering::Release);
    }

    fn changed(&self, _content: usize, chunks: &Chunks, lost: Option<ChunkIndex>) {
        let mut run = self.run.load(Ordering::Acquire);
        if let Some(lost) = lost {
            // bytes from there on can't be relied on any more
            run = run.min(lost.0);
        }
        let mut before = match run.checked_sub(1).map(ChunkIndex) {
            None => Some(State::INITIAL),
            Some(last) => chunks.read_link(last).map(|(link, _)| link.after),
        };
        while run < self.geometry.chunks()
            && let Some((link, source)) = chunks.read_link(ChunkIndex(run))
            && source.sender == self.me
            && Some(link.before) == before
        {
            before = Some(link.after);
            run += 1;
        }
        self.run.store(run, Ordering::Release);
    }
}

/// Somebody reads a blob; it isn't evicted meanwhile, and its fetch goes on.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) blob: Arc<Blob>,
    pub(crate) news: watch::Receiver<News>,
    epoch: u64,
    /// The registry whose bytes alone it may have: others' aren't known to be its own too.
    limited_to: Option<String>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        *lock(&self.blob.used) = Instant::now();
        self.blob.readers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Reading {
    /// Whether bytes that this reader may have passed on turned out false.
    pub(crate) fn is_misled(&self) -> bool {
        self.news.borrow().epoch != self.epoch
    }

    /// From now on only what came from this registry is ready for this reader; `None`: all that may leave is.
    pub(super) fn limit(&mut self, registry: Option<String>) {
        self.limited_to = registry;
    }

    /// As [`Blob::ready`], for this reader.
    pub(super) fn ready(&self, offset: u64) -> u64 {
        match &self.limited_to {
            None => self.blob.ready(offset),
            Some(registry) => self.blob.ready_of(registry, offset),
        }
    }

    /// Whether all of the blob is here, and this reader may not have what comes next.
    pub(super) fn is_held_back(&self, offset: u64) -> bool {
        self.blob.is_whole() && offset < self.blob.size() && self.ready(offset) == offset
    }
}

pub(super) struct Paths {
    pub(super) arriving: PathBuf,
    pub(super) resting: PathBuf,
}

impl Blob {
    /// A blob of which nothing is here, or what a process before this one left of it. Blocks.
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
        *lock(&blob.file.file) = Some(Arc::new(file));
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
            // clients of the process before may hold any of it
            blob.given.store(geometry.size(), Ordering::Release);
        }
        let held = blob.new_chunks();
        held.set_journal(Some(journal));
        held.replay(records);
        *lock(&blob.life) = Life::Coming(Arc::new(held));
        Ok(blob)
    }

    /// A blob that was verified by a process before this one: its place says so.
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
        let file = BlobFile {
            geometry,
            me: common.me.key(),
            resting: paths.resting,
            file: Mutex::default(),
            run: AtomicU32::new(0),
            rotten: AtomicBool::new(false),
        };
        Self {
            digest,
            common: common.clone(),
            arriving: paths.arriving,
            file: Arc::new(file),
            life: Mutex::new(life),
            given: AtomicU64::new(0),
            registry: Mutex::default(),
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

    /// Those who read it now, and when the last of them left or the blob was last asked for.
    pub(crate) fn readers(&self) -> (usize, Instant) {
        (self.readers.load(Ordering::Acquire), *lock(&self.used))
    }

    /// It was used at this time, in an earlier process.
    pub(super) fn was_used(&self, at: Instant) {
        *lock(&self.used) = at;
    }

    /// Whether nobody reads it and nothing is fetched of it: the driver notices later that the last byte came.
    pub(super) fn is_idle(&self) -> bool {
        self.readers().0 == 0 && (self.is_whole() || !self.wanted.load(Ordering::Acquire))
    }

    /// Whether the driver fetches it.
    pub(crate) fn set_wanted(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::Release);
    }

    /// Begins to read. The fetch isn't begun by this.
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
        }
    }

    /// This host fetches it from this registry from now on; `None`: it comes from elsewhere.
    pub(crate) fn comes_from(&self, registry: Option<&str>) {
        let mut source = lock(&self.registry);
        let begun = self.file.run.load(Ordering::Acquire) > 0;
        if !begun || source.as_deref() != registry {
            *source = registry.filter(|_| !begun).map(str::to_owned);
        }
    }

    /// As [`ready`](Self::ready), of what this host had from this registry alone.
    fn ready_of(&self, registry: &str, offset: u64) -> u64 {
        if lock(&self.registry).as_deref() != Some(registry) {
            return offset;
        }
        let run = u64::from(self.file.run.load(Ordering::Acquire));
        let end = run * proto::CHUNK_BYTES;
        self.ready(offset).min(end.max(offset))
    }

    /// The end of the bytes from `offset` on that may leave now; `offset` itself where none may.
    pub(crate) fn ready(&self, offset: u64) -> u64 {
        let size = self.size();
        if self.is_whole() {
            return size;
        }
        // the last chunk is held back: with it a client would have a complete blob before anybody knows that it is true
        let last = self.geometry().chunks().saturating_sub(1);
        let run = self.file.run.load(Ordering::Acquire);
        let end = u64::from(run.min(last)) * proto::CHUNK_BYTES;
        end.max(offset).min(size)
    }

    /// Whether this part may leave now; remembers that unproved bytes do. The caller asks [`Reading::is_misled`] before
    /// it goes on to the next part.
    pub(crate) fn offer(&self, offset: u64, end: u64) -> bool {
        if self.is_whole() {
            return true;
        }
        // marked first, then looked again: a chunk that is dropped meanwhile either isn't ready any more, or whoever
        // drops it sees the mark
        self.given.fetch_max(end, Ordering::AcqRel);
        self.ready(offset) >= end
    }

    /// Bytes for a client; `None` when they may not leave any more. Blocks.
    pub(crate) fn give(
        &self,
        file: &File,
        offset: u64,
        length: usize,
    ) -> io::Result<Option<Vec<u8>>> {
        if !self.offer(offset, offset + length as u64) {
            return Ok(None);
        }
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(Some(bytes))
    }

    /// The file to read from; it stays readable when the blob is evicted.
    pub(crate) fn file(&self) -> io::Result<Arc<File>> {
        if self.is_gone() && lock(&self.file.file).is_none() {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        self.file.open()
    }

    /// Closes the file of a whole blob that nobody reads: a process may have few files open on macOS.
    pub(super) fn rest(&self) {
        if self.is_whole() && self.readers.load(Ordering::Acquire) == 0 {
            *lock(&self.file.file) = None;
        }
    }

    /// Closes the files of a blob that has arrived in part, and that nobody else knows of. It is of no use from then
    /// on: who wants it begins it anew.
    pub(super) fn park(&self) {
        let mut life = lock(&self.life);
        // data that aren't flushed yet are flushed by the next tick: the blob is parked then
        if matches!(&*life, Life::Coming(chunks) if chunks.is_flushed()) {
            *life = Life::Parked;
            *lock(&self.file.file) = None;
        }
    }

    pub(super) fn is_parked(&self) -> bool {
        matches!(*lock(&self.life), Life::Parked)
    }

    /// Tells those who wait that nothing comes, or (`None`) that it is tried again. Of a blob that is gone nothing
    /// comes.
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

    /// It comes, or its turn does: those who wait may go on.
    pub(crate) fn promise(&self) {
        self.news.send_modify(|news| news.revision += 1);
    }

    pub(crate) fn trouble(&self) -> Option<Trouble> {
        self.news.borrow().trouble.clone()
    }

    // ---- as a content of the swarm --------------------------------------------------------------------------------

    /// Loads the links of a whole blob, so that it can be served to peers. Whether it has them. Blocks.
    ///
    /// # Errors
    /// When they can't be read now: that says nothing of the blob.
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

    /// Whether the chunk with this byte came from the registry to this host, rather than from a peer.
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

    /// Whether a chunk isn't any more what it was when it was verified.
    pub(crate) fn is_rotten(&self) -> bool {
        self.file.rotten.load(Ordering::Acquire)
    }

    /// Whether some of it is here by the word of an earlier process alone. Nothing of that leaves this host.
    pub(crate) fn is_unread(&self) -> bool {
        !self.is_whole()
            && self
                .chunks()
                .is_some_and(|chunks| !chunks.unread(0).is_empty())
    }

    /// Stores a chunk whose link was found to hold. As [`Stage::write`](crate::store::Stage::write). Blocks.
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

    /// A held chunk. What an earlier process left is compared with its link first. Blocks.
    pub(crate) fn read(&self, chunk: ChunkIndex) -> io::Result<Option<HeldChunk>> {
        match self.chunks() {
            Some(chunks) => chunks.read(0, chunk),
            None => Ok(None),
        }
    }

    /// A held chunk, compared with its link. Blocks.
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

    /// Compares what an earlier process left with its links. The chunks that rotted, and aren't held any more. Blocks.
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

    /// Walks back from the digest, drops what this proves false, and where the chain is closed makes the blob whole.
    /// Blocks.
    pub(crate) fn walk(&self) -> io::Result<Vec<Verdict>> {
        let Some(chunks) = self.chunks() else {
            return Ok(Vec::new());
        };
        let verdicts = chunks.drop_false(0);
        if let Some(first) = verdicts.first() {
            self.mislead(first.chunk);
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

    /// Drops the unproved chunks from `from` on that this host made: it took them back. Blocks.
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

    /// Drops everything: the registry's bytes don't end in the digest. Blocks.
    pub(crate) fn forget_all(&self) -> io::Result<()> {
        if let Some(chunks) = self.chunks() {
            for chunk in chunks.held(0).iter() {
                chunks.forget(0, chunk);
            }
        }
        self.mislead(ChunkIndex(0));
        self.flush()
    }

    /// Bytes that may have left from this chunk on are false. Whoever got them is ended by the epoch; those who begin
    /// now have nothing from here on.
    fn mislead(&self, chunk: ChunkIndex) {
        let offset = self.geometry().offset(chunk);
        if offset < self.given.fetch_min(offset, Ordering::AcqRel) {
            self.common.taints.add(self.digest);
            self.news.send_modify(|news| news.epoch += 1);
        }
    }

    /// Makes what was written survive a crash. As [`Held::flush`]. Blocks.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.chunks().map_or(Ok(()), |chunks| chunks.flush())
    }

    /// The chain is closed: after data and journal are synced, the files move to where only whole blobs lie. A crash
    /// between the two renames leaves the data among those that arrive, without a journal: it is fetched again.
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

    /// It rotted on disk: bytes that left lately may have been false.
    pub(super) fn condemn(&self) {
        self.common.taints.add(self.digest);
        self.news.send_modify(|news| news.epoch += 1);
    }

    /// Removes it from the disk. Clients that hold a part of it that wasn't proved can't go on. Blocks.
    pub(super) fn remove(&self) -> io::Result<()> {
        lock(&self.life).end();
        if let Some(chunks) = self.chunks() {
            chunks.set_gone();
        }
        if !self.is_whole() && self.given.load(Ordering::Acquire) > 0 {
            self.common.taints.add(self.digest);
        }
        // readers of an arriving blob would wait for nothing
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

/// Where the links of the blob at this path lie.
fn links(path: &std::path::Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".links");
    name.into()
}
