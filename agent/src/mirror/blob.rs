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
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use origin::OriginError;
use proto::{
    ChunkIndex, ChunkSet, Digest, Geometry, HostId, HostKey, Ledger, Link, Source, State,
    chain::{Entered, Verdict},
};
use tokio::sync::watch;
use tracing::warn;

use crate::{
    platform,
    store::{
        HeldChunk, WriteError,
        journal::{Journal, Record},
    },
};

/// How long resuming a blob is refused after bytes of it that had left turned out false. Longer than any client goes on
/// trying; a new attempt from the first byte is served meanwhile.
const TAINT: Duration = Duration::from_hours(1);

/// Blobs whose earlier bytes were false, and until when resuming them is refused. Shared by all blobs, because a blob's
/// file may be dropped while clients still hold its bytes, and kept in a file, because they do over a restart too: a line
/// of digest and Unix seconds for each.
#[derive(Debug)]
pub(crate) struct Taints {
    path: PathBuf,
    until: Mutex<BTreeMap<Digest, Instant>>,
}

impl Taints {
    /// What is known from before. Lines that can't be read are passed over. Blocks.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let (now, clock) = (Instant::now(), SystemTime::now());
        let until = String::from_utf8_lossy(&text)
            .lines()
            .filter_map(|line| {
                let (digest, seconds) = line.split_once(' ')?;
                let until = UNIX_EPOCH.checked_add(Duration::from_secs(seconds.parse().ok()?))?;
                // a clock that was set mustn't refuse for ever
                let left = until.duration_since(clock).ok()?.min(TAINT);
                Some((digest.parse().ok()?, now + left))
            })
            .collect();
        Ok(Self {
            path,
            until: Mutex::new(until),
        })
    }

    /// Blocks: after a crash it still holds.
    fn add(&self, digest: Digest) {
        let mut taints = hold(&self.until);
        let (now, clock) = (Instant::now(), SystemTime::now());
        taints.retain(|_, until| *until > now);
        taints.insert(digest, now + TAINT);
        let mut text = String::new();
        for (digest, until) in &*taints {
            let until = clock + until.saturating_duration_since(now);
            let seconds = until
                .duration_since(UNIX_EPOCH)
                .map_or(0, |at| at.as_secs());
            text += &format!("{digest} {seconds}\n");
        }
        if let Err(error) = self.write(&text) {
            // as long as this process lives it is refused all the same
            warn!(content = %digest, %error, "that a blob's earlier bytes were false can't be written down");
        }
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        platform::sync_full(&file)?;
        fs::rename(&new, &self.path)?;
        let directory = self.path.parent().unwrap_or(&self.path);
        platform::sync_directory(directory)
    }

    pub(super) fn covers(&self, digest: &Digest) -> bool {
        hold(&self.until)
            .get(digest)
            .is_some_and(|until| *until > Instant::now())
    }
}

/// Why nothing comes of a blob, for those who wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The registry refuses it, to this client or to anybody.
    Refused(OriginError),
    /// The registry's bytes don't have the blob's digest.
    Bad(String),
    /// The volume failed or is full.
    Disk(String),
    /// No source gave anything for too long.
    Stalled(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => error.fmt(f),
            Self::Bad(message) | Self::Disk(message) | Self::Stalled(message) => {
                f.write_str(message)
            }
        }
    }
}

/// What readers wait for a change of.
#[derive(Clone, Debug, Default)]
pub(crate) struct News {
    /// Rises with every chunk, and with every promise of some.
    pub(crate) revision: u64,
    /// Rises when bytes that may have left turned out false: whoever began before has to end.
    pub(crate) epoch: u64,
    /// Why nothing comes; taken back when something does.
    pub(crate) trouble: Option<Trouble>,
}

/// A blob. Shared by threads; calls that say so block on the disk.
#[derive(Debug)]
pub(crate) struct Blob {
    digest: Digest,
    geometry: Geometry,
    me: HostKey,
    /// Where its bytes are while it arrives, and when it is whole.
    arriving: PathBuf,
    resting: PathBuf,
    whole: AtomicBool,
    gone: AtomicBool,
    parked: AtomicBool,
    state: Mutex<Inner>,
    written: Condvar,
    /// Filled by every writing thread, emptied by whoever flushes. Locked after `state` where both are.
    pending: Mutex<Vec<Record>>,
    journal: Mutex<Option<Journal>>,
    /// End of the bytes that left without being proved to the end.
    given: AtomicU64,
    readers: AtomicUsize,
    wanted: AtomicBool,
    /// When it was last asked for or read, for the order in which blobs go.
    pub(super) used: Mutex<Instant>,
    news: watch::Sender<News>,
    taints: Arc<Taints>,
}

#[derive(Debug)]
struct Inner {
    /// Absent for a whole blob whose links nobody needed yet.
    ledger: Option<Ledger>,
    file: Option<Arc<File>>,
    makers: BTreeMap<HostKey, HostId>,
    writing: BTreeSet<ChunkIndex>,
    drops: u64,
    /// Chunks from the first on that we had from the registry, each ending where the next starts.
    run: u32,
}

/// Somebody reads a blob; it isn't evicted meanwhile, and its fetch goes on.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) blob: Arc<Blob>,
    pub(crate) news: watch::Receiver<News>,
    epoch: u64,
}

impl Drop for Reading {
    fn drop(&mut self) {
        *hold(&self.blob.used) = Instant::now();
        self.blob.readers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Reading {
    /// Whether bytes that this reader may have passed on turned out false.
    pub(crate) fn is_misled(&self) -> bool {
        self.news.borrow().epoch != self.epoch
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
        me: &HostId,
        paths: Paths,
        taints: Arc<Taints>,
    ) -> io::Result<Self> {
        let blob = Self::new(digest, geometry, me, paths, taints, false);
        let journal_path = links(&blob.arriving);
        let found = blob.arriving.exists();
        let opened = if found {
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
        let (journal, records) = match opened {
            Some(opened) => opened,
            None => (Journal::create(&journal_path, &digest)?, Vec::new()),
        };
        let resumed = !records.is_empty();
        {
            let mut inner = hold(&blob.state);
            inner.file = Some(Arc::new(file));
            inner.ledger = Some(replay(digest, geometry, records, &mut inner.makers));
            inner.grow_run(blob.me, geometry);
        }
        if resumed {
            // clients of the process before may hold any of it
            blob.given.store(geometry.size(), Ordering::Release);
        }
        *hold(&blob.journal) = Some(journal);
        Ok(blob)
    }

    /// A blob that was verified by a process before this one: its place says so.
    pub(super) fn resting(
        digest: Digest,
        geometry: Geometry,
        me: &HostId,
        paths: Paths,
        taints: Arc<Taints>,
    ) -> Self {
        Self::new(digest, geometry, me, paths, taints, true)
    }

    fn new(
        digest: Digest,
        geometry: Geometry,
        me: &HostId,
        paths: Paths,
        taints: Arc<Taints>,
        whole: bool,
    ) -> Self {
        Self {
            digest,
            geometry,
            me: me.key(),
            arriving: paths.arriving,
            resting: paths.resting,
            whole: AtomicBool::new(whole),
            gone: AtomicBool::new(false),
            parked: AtomicBool::new(false),
            state: Mutex::new(Inner {
                ledger: None,
                file: None,
                makers: BTreeMap::from([(me.key(), me.clone())]),
                writing: BTreeSet::new(),
                drops: 0,
                run: 0,
            }),
            written: Condvar::new(),
            pending: Mutex::default(),
            journal: Mutex::new(None),
            given: AtomicU64::new(0),
            readers: AtomicUsize::new(0),
            wanted: AtomicBool::new(false),
            used: Mutex::new(Instant::now()),
            news: watch::Sender::new(News::default()),
            taints,
        }
    }

    pub(crate) const fn digest(&self) -> Digest {
        self.digest
    }

    pub(crate) const fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(crate) const fn size(&self) -> u64 {
        self.geometry.size()
    }

    /// Whether every byte is here and verified.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Those who read it now, and when the last of them left or the blob was last asked for.
    pub(crate) fn readers(&self) -> (usize, Instant) {
        (self.readers.load(Ordering::Acquire), *hold(&self.used))
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
        *hold(&self.used) = Instant::now();
        let news = self.news.subscribe();
        let epoch = news.borrow().epoch;
        Reading {
            blob: self.clone(),
            news,
            epoch,
        }
    }

    /// The end of the bytes from `offset` on that may leave now; `offset` itself where none may.
    pub(crate) fn ready(&self, offset: u64) -> u64 {
        let size = self.size();
        if self.is_whole() {
            return size;
        }
        let inner = hold(&self.state);
        // the last chunk is held back: with it a client would have a complete blob before anybody knows that it is true
        let last = self.geometry.chunks().saturating_sub(1);
        let end = u64::from(inner.run.min(last)) * proto::CHUNK_BYTES;
        end.max(offset).min(size)
    }

    /// Whether this part may leave now; remembers that unproved bytes do. The caller asks [`Reading::is_misled`] before it
    /// goes on to the next part.
    pub(crate) fn offer(&self, offset: u64, end: u64) -> bool {
        if self.is_whole() {
            return true;
        }
        // marked first, then looked again: a chunk that is dropped meanwhile either isn't ready any more, or whoever drops
        // it sees the mark
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
        let mut inner = hold(&self.state);
        if let Some(file) = &inner.file {
            return Ok(file.clone());
        }
        if self.is_gone() {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        let file = Arc::new(File::open(&self.resting)?);
        inner.file = Some(file.clone());
        Ok(file)
    }

    /// Closes the file of a whole blob that nobody reads: a process may have few files open on macOS.
    pub(super) fn rest(&self) {
        if self.is_whole() && self.readers.load(Ordering::Acquire) == 0 {
            hold(&self.state).file = None;
        }
    }

    /// Closes the files of a blob that has arrived in part, and that nobody else knows of. It is of no use from then on: who
    /// wants it begins it anew.
    pub(super) fn park(&self) {
        // what isn't flushed yet is before the next time
        if self.is_whole() || !hold(&self.pending).is_empty() {
            return;
        }
        hold(&self.state).file = None;
        *hold(&self.journal) = None;
        self.parked.store(true, Ordering::Release);
    }

    pub(super) fn is_parked(&self) -> bool {
        self.parked.load(Ordering::Acquire)
    }

    /// Tells those who wait that nothing comes, or (`None`) that it is tried again. Of a blob that is gone nothing comes.
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

    /// How many news there were, and whether nothing comes.
    pub(crate) fn progress(&self) -> (u64, Option<Trouble>) {
        let news = self.news.borrow();
        (news.revision, news.trouble.clone())
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
        let mut inner = hold(&self.state);
        if inner.ledger.is_some() {
            return Ok(true);
        }
        let Some((_, records)) = Journal::open(&links(&self.resting), &self.digest)? else {
            return Ok(false);
        };
        let ledger = replay(self.digest, self.geometry, records, &mut inner.makers);
        let closed = ledger.is_closed();
        if closed {
            inner.ledger = Some(ledger);
        }
        Ok(closed)
    }

    pub(crate) fn held(&self) -> ChunkSet {
        hold(&self.state).ledger.as_ref().map_or_else(
            || ChunkSet::empty(self.geometry.chunks()),
            |ledger| ledger.held().clone(),
        )
    }

    pub(crate) fn link(&self, chunk: ChunkIndex) -> Option<(Link, Source)> {
        hold(&self.state).ledger.as_ref()?.link(chunk)
    }

    /// Whether the chunk with this byte came from the registry to this host, rather than from a peer.
    pub(super) fn is_ours(&self, offset: u64) -> bool {
        let chunk = u32::try_from(offset / proto::CHUNK_BYTES).map(ChunkIndex);
        chunk
            .ok()
            .and_then(|chunk| self.link(chunk))
            .is_some_and(|(_, source)| source.sender == self.me)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_whole()
            || hold(&self.state)
                .ledger
                .as_ref()
                .is_some_and(Ledger::is_closed)
    }

    /// Stores a chunk whose link was found to hold. As [`Stage::write`](crate::store::Stage::write). Blocks.
    pub(crate) fn write(
        &self,
        chunk: ChunkIndex,
        bytes: &[u8],
        link: Link,
        source: Source,
        maker: &HostId,
    ) -> Result<Entered, WriteError> {
        let content = self.digest;
        let failed = |error: io::Error| {
            if error.kind() == io::ErrorKind::StorageFull {
                WriteError::NoRoom { content, chunk }
            } else {
                WriteError::Io {
                    content,
                    chunk,
                    error,
                }
            }
        };
        if !self.geometry.contains(chunk) || bytes.len() != self.geometry.len(chunk) as usize {
            return Err(WriteError::Length {
                content,
                chunk,
                bytes: bytes.len(),
            });
        }
        let mut inner = hold(&self.state);
        while inner.writing.contains(&chunk) {
            inner = self
                .written
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if self.is_gone() {
            return Err(WriteError::Gone);
        }
        let held = |inner: &Inner| {
            inner
                .ledger
                .as_ref()
                .is_none_or(|ledger| ledger.held().contains(chunk))
        };
        if held(&inner) {
            return Ok(Entered::Held);
        }
        let Some(file) = inner.file.clone() else {
            return Err(WriteError::Gone);
        };
        inner.writing.insert(chunk);
        drop(inner);
        let result = file.write_all_at(bytes, self.geometry.offset(chunk));
        let mut inner = hold(&self.state);
        inner.writing.remove(&chunk);
        self.written.notify_all();
        result.map_err(failed)?;
        let Some(ledger) = &mut inner.ledger else {
            return Err(WriteError::Gone);
        };
        let entered = ledger.enter(chunk, link, source)?;
        inner.makers.insert(maker.key(), maker.clone());
        inner.grow_run(self.me, self.geometry);
        hold(&self.pending).push(Record::Held {
            content,
            chunk,
            link,
            zero: false,
            sender: source.sender,
            maker: maker.clone(),
        });
        drop(inner);
        self.news.send_modify(|news| {
            news.revision += 1;
            news.trouble = None;
        });
        Ok(entered)
    }

    /// A held chunk. Blocks.
    pub(crate) fn read(&self, chunk: ChunkIndex) -> io::Result<Option<HeldChunk>> {
        let (link, source, drops, maker) = {
            let inner = hold(&self.state);
            let Some((link, source)) = inner.ledger.as_ref().and_then(|ledger| ledger.link(chunk))
            else {
                return Ok(None);
            };
            let maker = inner.makers.get(&source.maker).cloned();
            (link, source, inner.drops, maker)
        };
        let mut bytes = vec![0; self.geometry.len(chunk) as usize];
        self.file()?
            .read_exact_at(&mut bytes, self.geometry.offset(chunk))?;
        if hold(&self.state).drops != drops || self.is_gone() {
            return Ok(None);
        }
        Ok(maker.map(|maker| HeldChunk {
            bytes,
            link,
            source,
            maker,
        }))
    }

    /// Walks back from the digest, drops what this proves false, and where the chain is closed makes the blob whole.
    /// Blocks.
    pub(crate) fn walk(&self) -> io::Result<Vec<Verdict>> {
        let verdicts = {
            let mut inner = hold(&self.state);
            let Some(ledger) = &mut inner.ledger else {
                return Ok(Vec::new());
            };
            let verdicts = ledger.walk();
            let closed = ledger.is_closed();
            if let Some(first) = verdicts.first() {
                inner.lose(first.chunk);
                for verdict in &verdicts {
                    hold(&self.pending).push(Record::Dropped {
                        content: self.digest,
                        chunk: verdict.chunk,
                    });
                }
            } else if !closed {
                return Ok(verdicts);
            }
            verdicts
        };
        if let Some(first) = verdicts.first() {
            self.mislead(first.chunk);
            self.flush()?;
        }
        if self.is_closed() {
            self.finish()?;
        }
        Ok(verdicts)
    }

    /// Drops a chunk whose bytes turned out not to be the registry's. Blocks.
    pub(crate) fn forget_chunk(&self, chunk: ChunkIndex) -> io::Result<()> {
        {
            let mut inner = hold(&self.state);
            if let Some(ledger) = &mut inner.ledger {
                ledger.forget(chunk);
            }
            inner.lose(chunk);
            hold(&self.pending).push(Record::Dropped {
                content: self.digest,
                chunk,
            });
        }
        self.mislead(chunk);
        self.flush()
    }

    /// Drops the unproved chunks from `from` on that this host made: it took them back. Blocks.
    pub(crate) fn retract(&self, maker: HostKey, from: ChunkIndex) -> io::Result<Vec<ChunkIndex>> {
        let chunks = {
            let mut inner = hold(&self.state);
            let chunks = inner
                .ledger
                .as_ref()
                .map_or_else(Vec::new, |ledger| ledger.doubtful(maker, from));
            for chunk in &chunks {
                if let Some(ledger) = &mut inner.ledger {
                    ledger.forget(*chunk);
                }
                inner.lose(*chunk);
                hold(&self.pending).push(Record::Dropped {
                    content: self.digest,
                    chunk: *chunk,
                });
            }
            chunks
        };
        if let Some(first) = chunks.first() {
            self.mislead(*first);
            self.flush()?;
        }
        Ok(chunks)
    }

    /// Drops everything: the registry's bytes don't end in the digest. Blocks.
    pub(crate) fn forget_all(&self) -> io::Result<()> {
        for chunk in self.held().iter() {
            let mut inner = hold(&self.state);
            if let Some(ledger) = &mut inner.ledger {
                ledger.forget(chunk);
            }
            inner.lose(chunk);
            hold(&self.pending).push(Record::Dropped {
                content: self.digest,
                chunk,
            });
        }
        self.mislead(ChunkIndex(0));
        self.flush()
    }

    /// Reads a chunk of a whole blob again; whether it still fits its link. Blocks.
    pub(crate) fn scrub(&self, chunk: ChunkIndex) -> io::Result<bool> {
        let Some(held) = self.read(chunk)? else {
            return Ok(false);
        };
        Ok(held.link.holds(self.geometry, chunk, &held.bytes))
    }

    /// Bytes that may have left from this chunk on are false. Whoever got them is ended by the epoch; those who begin now
    /// have nothing from here on.
    fn mislead(&self, chunk: ChunkIndex) {
        let offset = self.geometry.offset(chunk);
        if offset < self.given.fetch_min(offset, Ordering::AcqRel) {
            self.taints.add(self.digest);
            self.news.send_modify(|news| news.epoch += 1);
        }
    }

    /// Makes what was written survive a crash: data first, then the journal that vouches for them. Blocks.
    pub(crate) fn flush(&self) -> io::Result<()> {
        if self.is_gone() {
            return Ok(());
        }
        let mut journal = hold(&self.journal);
        let Some(open) = journal.as_mut() else {
            return Ok(());
        };
        let records = std::mem::take(&mut *hold(&self.pending));
        if records.is_empty() {
            return Ok(());
        }
        let result = self
            .file()
            .and_then(|file| platform::sync_data(&file))
            .and_then(|()| open.append(&records));
        if result.is_err() {
            let mut pending = hold(&self.pending);
            let later = std::mem::replace(&mut *pending, records);
            pending.extend(later);
        }
        result
    }

    /// The chain is closed: after data and journal are synced, the files move to where only whole blobs lie. A crash
    /// between the two renames leaves the data among those that arrive, without a journal: it is fetched again.
    fn finish(&self) -> io::Result<()> {
        if self.is_whole() || self.is_gone() {
            return Ok(());
        }
        self.flush()?;
        platform::sync_full(&*self.file()?)?;
        fs::rename(links(&self.arriving), links(&self.resting))?;
        fs::rename(&self.arriving, &self.resting)?;
        if let Some(directory) = self.resting.parent() {
            platform::sync_directory(directory)?;
        }
        *hold(&self.journal) = None;
        self.whole.store(true, Ordering::Release);
        self.news.send_modify(|news| {
            news.revision += 1;
            news.trouble = None;
        });
        Ok(())
    }

    /// It rotted on disk: bytes that left lately may have been false.
    pub(super) fn condemn(&self) {
        self.taints.add(self.digest);
        self.news.send_modify(|news| news.epoch += 1);
    }

    /// Removes it from the disk. Clients that hold a part of it that wasn't proved can't go on. Blocks.
    pub(super) fn remove(&self) -> io::Result<()> {
        self.gone.store(true, Ordering::Release);
        if !self.is_whole() && self.given.load(Ordering::Acquire) > 0 {
            self.taints.add(self.digest);
        }
        // readers of an arriving blob would wait for nothing
        self.set_trouble(Some(Trouble::Stalled(
            "it was removed from the cache".into(),
        )));
        for path in [&self.arriving, &self.resting] {
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

impl Inner {
    /// Bytes from this chunk on can't be relied on any more.
    fn lose(&mut self, chunk: ChunkIndex) {
        self.run = self.run.min(chunk.0);
        self.drops += 1;
    }

    fn grow_run(&mut self, me: HostKey, geometry: Geometry) {
        let Some(ledger) = &self.ledger else { return };
        let mut before = match self.run.checked_sub(1) {
            None => State::INITIAL,
            Some(last) => match ledger.link(ChunkIndex(last)) {
                Some((link, _)) => link.after,
                None => return,
            },
        };
        while self.run < geometry.chunks() {
            match ledger.link(ChunkIndex(self.run)) {
                Some((link, source)) if source.sender == me && link.before == before => {
                    before = link.after;
                    self.run += 1;
                }
                _ => return,
            }
        }
    }
}

/// The ledger that these records make.
fn replay(
    digest: Digest,
    geometry: Geometry,
    records: Vec<Record>,
    makers: &mut BTreeMap<HostKey, HostId>,
) -> Ledger {
    let mut ledger = Ledger::new(digest, geometry);
    for record in records {
        match record {
            Record::Held {
                chunk,
                link,
                sender,
                maker,
                ..
            } => {
                let source = Source {
                    sender,
                    maker: maker.key(),
                };
                // a record that can't be true is left out: its chunk is fetched again
                if ledger.enter(chunk, link, source).is_ok() {
                    makers.insert(maker.key(), maker);
                }
            }
            Record::Dropped { chunk, .. } => ledger.forget(chunk),
            Record::Decoded { .. } => {}
        }
    }
    ledger.walk();
    ledger
}

/// Where the links of the blob at this path lie.
fn links(path: &std::path::Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".links");
    name.into()
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
