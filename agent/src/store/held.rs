//! The chunks of some contents on this host's disk, with the links that prove them and the journal that vouches for
//! them. Images ([`Stage`](super::Stage)) and blobs of the mirror are built on it. Each brings its own [`Files`], which
//! says where bytes lie.
//!
//! This module has the rules that must hold despite crashes, a failing volume and a rotting disk:
//! - **The journal never claims what the disk may not have.** [`Held::flush`] syncs the data, then appends the records.
//! - **A place isn't written again before the journal has the drop of its old chunk.** A dropped chunk is *barred*
//!   until a flush succeeded. A thread that wants to write the chunk flushes first. Otherwise a crash could bring the
//!   old link back over new bytes.
//! - **A sync that failed vouches for nothing.** The system may have thrown the data away, although the next sync
//!   succeeds. Every chunk that isn't in the journal yet is dropped then.
//! - **Chunks that an earlier process journaled are held, but *unread*** until their bytes were compared with their
//!   links once. Nothing unread leaves this host.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use proto::{
    Answer, ChunkIndex, ChunkSet, Digest, Geometry, HostId, HostKey, Link, Source, State,
    Statement,
    ledger::{Entered, RejectLinkError, Verdict},
};

use super::{
    chunks::{Chunks, Turn},
    claim::{Adopted, Claim, HeldChunk, Hosts, Look, WriteError, not_stored},
    journal::{Journal, Record},
    place::{Access, Files, is_lost, put_over},
};
use crate::{lock::lock, zero::is_zero};

/// The chunks of some contents that share a journal. Shared by threads; calls that touch bytes block on the disk.
#[derive(Debug)]
pub(crate) struct Held<F> {
    files: F,
    contents: Vec<Content>,
    index: BTreeMap<Digest, usize>,
    hosts: Arc<Hosts>,
    /// Absent if nothing more is journaled. When both are locked, the journal is locked before a content's state.
    journal: Mutex<Option<Journal>>,
    /// What happened since the last flush. Every writing thread adds to it; a flush takes all of it. When both are
    /// locked, a content's state is locked first.
    pending: Mutex<Pending>,
    gone: AtomicBool,
}

#[derive(Debug)]
struct Content {
    digest: Digest,
    geometry: Geometry,
    /// Changed by any thread that stores or drops a chunk. Locked for a comparison, never during disk I/O.
    chunks: Mutex<Chunks>,
    /// Signals that a chunk isn't being written any more.
    written: Condvar,
}

#[derive(Debug, Default)]
struct Pending {
    records: Vec<Record>,
    /// Contents that were written to.
    dirty: BTreeSet<usize>,
    /// The number of failed syncs. A chunk that was being written during one may be lost, like those written before.
    failures: u64,
}

/// A chunk that only the caller may write now.
struct Writing<'a> {
    content: &'a Content,
    at: usize,
    chunk: ChunkIndex,
    failures: u64,
}

impl<F: Files> Held<F> {
    /// The state of these contents without any chunk, and without a journal.
    pub(crate) fn new(
        files: F,
        contents: impl IntoIterator<Item = (Digest, Geometry)>,
        hosts: Arc<Hosts>,
    ) -> Self {
        let contents: Vec<_> = contents
            .into_iter()
            .map(|(digest, geometry)| Content::new(digest, geometry))
            .collect();
        let index = (0..)
            .zip(&contents)
            .map(|(at, content)| (content.digest, at))
            .collect();
        Self {
            files,
            contents,
            index,
            hosts,
            journal: Mutex::default(),
            pending: Mutex::default(),
            gone: AtomicBool::new(false),
        }
    }

    /// Sets the journal for records from now on.
    pub(crate) fn set_journal(&self, journal: Option<Journal>) {
        *lock(&self.journal) = journal;
    }

    /// Takes the records of an earlier process. Their chunks are held, but unread. Records of other contents are
    /// skipped, and chunks that the chain disproves are dropped.
    pub(crate) fn replay(&self, records: Vec<Record>) {
        for record in records {
            match record {
                Record::Held {
                    content,
                    chunk,
                    link,
                    zero,
                    sender,
                    maker,
                    statement,
                } => {
                    let Some(content) = self.find(&content).map(|at| &self.contents[at]) else {
                        continue;
                    };
                    let source = Source {
                        sender,
                        maker: maker.key(),
                    };
                    let statement = statement.map(|statement| *statement);
                    let mut chunks = lock(&content.chunks);
                    if chunks.believe(chunk, (link, source), zero, statement) {
                        self.hosts.know(&maker);
                    }
                }
                Record::Dropped { content, chunk } => {
                    if let Some(at) = self.find(&content) {
                        lock(&self.contents[at].chunks).forget(chunk);
                    }
                }
                Record::Decoded { .. } => {}
            }
        }
        for at in 0..self.contents.len() {
            self.drop_false(at);
        }
    }

    pub(crate) const fn files(&self) -> &F {
        &self.files
    }

    pub(crate) fn len(&self) -> usize {
        self.contents.len()
    }

    /// The number of a content, in the order of [`new`](Self::new)'s list.
    pub(crate) fn find(&self, content: &Digest) -> Option<usize> {
        self.index.get(content).copied()
    }

    pub(crate) fn digest(&self, at: usize) -> Digest {
        self.contents[at].digest
    }

    pub(crate) fn geometry(&self, at: usize) -> Geometry {
        self.contents[at].geometry
    }

    /// The chunks that are on disk and fit their links.
    pub(crate) fn held(&self, at: usize) -> ChunkSet {
        self.chunks(at).held().clone()
    }

    pub(crate) fn is_held(&self, at: usize, chunk: ChunkIndex) -> bool {
        self.chunks(at).held().contains(chunk)
    }

    /// Whether the content is complete and its chain closed.
    pub(crate) fn is_closed(&self, at: usize) -> bool {
        self.chunks(at).is_closed()
    }

    pub(crate) fn link(&self, at: usize, chunk: ChunkIndex) -> Option<(Link, Source)> {
        self.chunks(at).link(chunk)
    }

    /// Replaces the statement of a held link that this host made again: this host answers for the link under its new
    /// run. The journal doesn't record it, so after a restart this host answers under the earlier run.
    pub(crate) fn restate(&self, at: usize, chunk: ChunkIndex, link: Link, statement: Statement) {
        self.chunks(at).restate(chunk, link, statement);
    }

    /// The host that answers for a chunk's link, if one does.
    pub(crate) fn answer(&self, at: usize, chunk: ChunkIndex) -> Answer {
        self.chunks(at).answer(chunk)
    }

    /// The chunks that are held only by the word of an earlier process.
    pub(crate) fn unread(&self, at: usize) -> ChunkSet {
        self.chunks(at).unread().clone()
    }

    /// Counts every held chunk as unread.
    pub(crate) fn doubt(&self) {
        for content in &self.contents {
            lock(&content.chunks).doubt();
        }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Marks everything as gone: nothing is read or written from now on.
    pub(crate) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// What is known of a held chunk without its bytes.
    pub(crate) fn claim(&self, at: usize, chunk: ChunkIndex) -> Option<Claim> {
        let chunks = self.chunks(at);
        self.claim_of(&chunks, chunk)
    }

    fn claim_of(&self, chunks: &Chunks, chunk: ChunkIndex) -> Option<Claim> {
        let (link, source) = chunks.link(chunk)?;
        Some(Claim {
            link,
            source,
            maker: self.hosts.find(source.maker)?,
            answer: chunks.answer(chunk),
            zero: chunks.is_zero(chunk),
            unread: chunks.unread().contains(chunk),
        })
    }

    // ---- storing --------------------------------------------------------------------------------------------------

    /// Stores a chunk at every place. The caller has found that the link fits the bytes. Zeros become holes. A chunk
    /// that is held already stays as it is. If another thread stores the same chunk, waits for that thread.
    ///
    /// The chunk counts as held at once. It survives a crash from the next [`flush`](Self::flush) on.
    ///
    /// # Errors
    /// When the link is rejected, or the volume fails. The chunk isn't held then.
    pub(crate) fn write(
        &self,
        at: usize,
        chunk: ChunkIndex,
        bytes: &[u8],
        link: Link,
        source: Source,
        (maker, statement): (&HostId, Option<&Statement>),
    ) -> Result<Entered, WriteError> {
        let content = &self.contents[at];
        let geometry = content.geometry;
        if !geometry.contains(chunk) {
            return Err(RejectLinkError::NoSuchChunk(chunk).into());
        }
        if bytes.len() != geometry.len(chunk) as usize {
            return Err(WriteError::Length {
                content: content.digest,
                chunk,
                bytes: bytes.len(),
            });
        }
        let Some(turn) = self.take_turn(at, chunk)? else {
            return Ok(Entered::Held);
        };
        let zero = is_zero(bytes);
        let offset = geometry.offset(chunk);
        let compares = self.compares(&turn);
        let put =
            &mut |_, file: &File, base| self.put(file, base + offset, (bytes, zero), compares);
        let written = self.files.each(at, Access::Write, put);
        let claim = Claim {
            link,
            source,
            maker: maker.clone(),
            answer: statement.cloned().map_or(Answer::Nobody, Answer::Maker),
            zero,
            unread: false,
        };
        self.end_turn(&turn, written, &claim)
    }

    /// Whether bytes that lie in a chunk's place are compared, so that pages that are there aren't written. Not after a
    /// sync that failed: what is read then needn't be on the disk, and the next sync may not bring it there.
    fn compares(&self, turn: &Writing<'_>) -> bool {
        self.files.began_as_clone() && turn.failures == 0
    }

    fn put(&self, file: &File, at: u64, bytes: (&[u8], bool), compares: bool) -> io::Result<()> {
        self.files.wrote(put_over(file, at, bytes, compares)?);
        Ok(())
    }

    /// Takes a chunk whose bytes should already lie at the places for which `there` is true. Compares those bytes with
    /// the claim, and copies them to the other places.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub(crate) fn adopt(
        &self,
        at: usize,
        chunk: ChunkIndex,
        claim: &Claim,
        there: &dyn Fn(usize) -> bool,
    ) -> Result<Adopted, WriteError> {
        let geometry = self.contents[at].geometry;
        let Some(turn) = self.take_turn(at, chunk)? else {
            return Ok(Adopted::Held);
        };
        let compares = self.compares(&turn);
        let offset = geometry.offset(chunk);
        let mut bytes = vec![0; geometry.len(chunk) as usize];
        let mut other = Vec::new();
        let (mut found, mut differed) = (None, false);
        let looked = self.files.each(at, Access::Read, &mut |place, file, base| {
            if found.is_none() && there(place) {
                file.read_exact_at(&mut bytes, base + offset)?;
                if claim.fits(geometry, chunk, &bytes) {
                    found = Some(place);
                } else {
                    differed = true;
                }
            }
            Ok(())
        });
        if looked.is_err() || found.is_none() {
            self.leave_turn(&turn);
            return Ok(Adopted::Differs);
        }
        let written = self
            .files
            .each(at, Access::Write, &mut |place, file, base| {
                if found == Some(place) {
                    return Ok(());
                }
                if there(place) {
                    other.resize(bytes.len(), 0);
                    file.read_exact_at(&mut other, base + offset)?;
                    if other == bytes {
                        return Ok(());
                    }
                    differed = true;
                }
                self.put(file, base + offset, (&bytes, claim.zero), compares)
            });
        Ok(match self.end_turn(&turn, written, claim)? {
            Entered::Held => Adopted::Held,
            Entered::New => Adopted::New { differed },
        })
    }

    /// Waits until the caller may write the chunk. `None` if the chunk is held.
    fn take_turn(&self, at: usize, chunk: ChunkIndex) -> Result<Option<Writing<'_>>, WriteError> {
        let content = &self.contents[at];
        let mut chunks = lock(&content.chunks);
        loop {
            let turn = chunks.take_turn(chunk);
            if turn != Turn::Another && self.is_gone() {
                chunks.end_turn(chunk);
                content.written.notify_all();
                return Err(WriteError::Gone);
            }
            match turn {
                Turn::Yours => break,
                Turn::Held => return Ok(None),
                Turn::Another => {
                    let waited = content.written.wait(chunks);
                    chunks = waited.unwrap_or_else(PoisonError::into_inner);
                }
                Turn::Barred => {
                    drop(chunks);
                    self.flush()
                        .map_err(|error| not_stored(content.digest, chunk, error))?;
                    chunks = lock(&content.chunks);
                }
            }
        }
        drop(chunks);
        Ok(Some(Writing {
            content,
            at,
            chunk,
            failures: lock(&self.pending).failures,
        }))
    }

    fn leave_turn(&self, turn: &Writing<'_>) {
        lock(&turn.content.chunks).end_turn(turn.chunk);
        turn.content.written.notify_all();
    }

    fn end_turn(
        &self,
        turn: &Writing<'_>,
        written: io::Result<()>,
        claim: &Claim,
    ) -> Result<Entered, WriteError> {
        let (digest, chunk) = (turn.content.digest, turn.chunk);
        let mut chunks = lock(&turn.content.chunks);
        chunks.end_turn(chunk);
        turn.content.written.notify_all();
        written.map_err(|error| not_stored(digest, chunk, error))?;
        // under this lock, a sync that fails from now on finds the chunk among those to drop
        let mut pending = lock(&self.pending);
        if pending.failures != turn.failures {
            let lost = io::Error::other("the volume failed while it was written");
            return Err(not_stored(digest, chunk, lost));
        }
        let statement = claim.answer.statement().cloned();
        let link = (claim.link, claim.source);
        let entered = chunks.enter(chunk, link, claim.zero, statement)?;
        self.hosts.know(&claim.maker);
        pending.dirty.insert(turn.at);
        pending.records.push(Record::Held {
            content: digest,
            chunk,
            link: claim.link,
            zero: claim.zero,
            sender: claim.source.sender,
            maker: claim.maker.clone(),
            statement: claim.answer.statement().cloned().map(Box::new),
        });
        self.files.changed(turn.at, &chunks, None);
        Ok(entered)
    }

    // ---- reading --------------------------------------------------------------------------------------------------

    /// Reads a held chunk. `None` if it isn't held, was dropped during the read, or everything is gone. Unread bytes
    /// are compared with their link first.
    ///
    /// # Errors
    /// When the volume fails.
    pub(crate) fn read(&self, at: usize, chunk: ChunkIndex) -> io::Result<Option<HeldChunk>> {
        let content = &self.contents[at];
        let (claim, drops) = {
            let chunks = lock(&content.chunks);
            if chunks.unread().contains(chunk) {
                drop(chunks);
                return Ok(match self.look(at, chunk)? {
                    Look::Sound(held) => Some(*held),
                    Look::Rotten | Look::Missing => None,
                });
            }
            let Some(claim) = self.claim_of(&chunks, chunk) else {
                return Ok(None);
            };
            (claim, chunks.drops())
        };
        let offset = content.geometry.offset(chunk);
        let mut bytes = vec![0; content.geometry.len(chunk) as usize];
        if !claim.zero {
            self.files
                .each(at, Access::Read, &mut |place, file, base| match place {
                    0 => file.read_exact_at(&mut bytes, base + offset),
                    _ => Ok(()),
                })?;
        }
        if lock(&content.chunks).drops() != drops || self.is_gone() {
            return Ok(None);
        }
        Ok(Some(claim.with(bytes)))
    }

    /// Reads a held chunk at each of its places and compares it with its link. Drops a chunk that doesn't fit. The
    /// caller flushes.
    ///
    /// # Errors
    /// When the volume fails. The chunk stays held, since such an error says nothing about its bytes.
    pub(crate) fn look(&self, at: usize, chunk: ChunkIndex) -> io::Result<Look> {
        let content = &self.contents[at];
        loop {
            let (claim, drops) = {
                let chunks = lock(&content.chunks);
                let Some(claim) = self.claim_of(&chunks, chunk) else {
                    return Ok(Look::Missing);
                };
                (claim, chunks.drops())
            };
            let found = self.compare(at, chunk, &claim)?;
            if self.is_gone() {
                return Ok(Look::Missing);
            }
            let mut chunks = lock(&content.chunks);
            if chunks.drops() != drops {
                // the drop may be of this chunk, which may have been written again since
                continue;
            }
            if let Some(bytes) = found {
                if chunks.was_read(chunk) {
                    self.files.changed(at, &chunks, None);
                }
                return Ok(Look::Sound(Box::new(claim.with(bytes))));
            }
            self.lose(at, &mut chunks, chunk);
            drop(chunks);
            self.files.rotted(at, chunk);
            return Ok(Look::Rotten);
        }
    }

    /// Compares every held chunk of a content with its link, and drops those that rotted. Drops are journaled before
    /// this returns.
    ///
    /// # Errors
    /// When the volume fails.
    pub(crate) fn look_at_all(&self, at: usize) -> io::Result<()> {
        for chunk in self.held(at).iter() {
            if self.look(at, chunk)? == Look::Rotten {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// The chunk's bytes, if every place has them and they fit the claim.
    fn compare(&self, at: usize, chunk: ChunkIndex, claim: &Claim) -> io::Result<Option<Vec<u8>>> {
        let geometry = self.contents[at].geometry;
        let offset = geometry.offset(chunk);
        let mut first = vec![0; geometry.len(chunk) as usize];
        let mut other = Vec::new();
        let mut sound = true;
        let compared = self.files.each(at, Access::Read, &mut |place, file, base| {
            if place == 0 {
                file.read_exact_at(&mut first, base + offset)?;
                sound = claim.fits(geometry, chunk, &first);
            } else {
                other.resize(first.len(), 0);
                file.read_exact_at(&mut other, base + offset)?;
                sound &= other == first;
            }
            Ok(())
        });
        match compared {
            Ok(()) => Ok(sound.then_some(first)),
            Err(error) if is_lost(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the content's links from its bytes, without using the links that are known. If the new chain ends in the
    /// content's digest, every chunk is held whose bytes are the same at all of its places, and other chunks are
    /// dropped. Otherwise nothing changes. Returns whether the content is closed by that.
    ///
    /// # Errors
    /// When the volume fails, or `go_on` returns an error.
    pub(crate) fn link_again(
        &self,
        at: usize,
        me: &HostId,
        go_on: &dyn Fn() -> io::Result<()>,
    ) -> io::Result<bool> {
        let content = &self.contents[at];
        let geometry = content.geometry;
        let mut links = Vec::with_capacity(geometry.chunks() as usize);
        let mut state = State::INITIAL;
        let mut other = Vec::new();
        for chunk in (0..geometry.chunks()).map(ChunkIndex) {
            go_on()?;
            let mut bytes = vec![0; geometry.len(chunk) as usize];
            let offset = geometry.offset(chunk);
            let mut same = true;
            let read = self.files.each(at, Access::Read, &mut |place, file, base| {
                if place == 0 {
                    return file.read_exact_at(&mut bytes, base + offset);
                }
                other.resize(bytes.len(), 0);
                file.read_exact_at(&mut other, base + offset)?;
                same &= other == bytes;
                Ok(())
            });
            match read {
                Err(error) if is_lost(&error) => return Ok(false),
                read => read?,
            }
            let link = Link::forge(geometry, chunk, state, &bytes);
            state = link.after;
            links.push((chunk, link, is_zero(&bytes), same));
        }
        if state != State::from(content.digest) {
            return Ok(false);
        }
        let source = Source {
            sender: me.key(),
            maker: me.key(),
        };
        self.hosts.know(me);
        let mut chunks = self.chunks(at);
        for (chunk, link, zero, same) in links {
            let states = |link: &Link| (link.before, link.after);
            if let Some((held, _)) = chunks.link(chunk)
                && (!same || states(&held) != states(&link))
            {
                self.lose(at, &mut chunks, chunk);
            }
            if !same {
                continue;
            }
            if let Ok(Entered::New) = chunks.enter(chunk, (link, source), zero, None) {
                lock(&self.pending).records.push(Record::Held {
                    content: content.digest,
                    chunk,
                    link,
                    zero,
                    sender: source.sender,
                    maker: me.clone(),
                    statement: None,
                });
            }
            chunks.was_read(chunk);
        }
        lock(&self.pending).dirty.insert(at);
        chunks.walk();
        Ok(chunks.is_closed())
    }

    // ---- dropping -------------------------------------------------------------------------------------------------

    /// Walks back from the content's digest and drops the chunks that this proves false ([`Ledger::walk`]). The caller
    /// flushes.
    pub(crate) fn drop_false(&self, at: usize) -> Vec<Verdict> {
        let mut chunks = self.chunks(at);
        let verdicts = chunks.walk();
        for verdict in &verdicts {
            self.lose(at, &mut chunks, verdict.chunk);
        }
        verdicts
    }

    /// Drops a chunk whose bytes turned out not to be the registry's, so that the true bytes can take its place.
    /// Returns whether the chunk was held. The caller flushes.
    pub(crate) fn forget(&self, at: usize, chunk: ChunkIndex) -> bool {
        let mut chunks = self.chunks(at);
        let held = chunks.held().contains(chunk);
        if held {
            self.lose(at, &mut chunks, chunk);
        }
        held
    }

    /// Drops the unproved chunks from `from` on whose links this maker made, because the maker took them back. The
    /// caller flushes.
    pub(crate) fn retract(&self, at: usize, maker: HostKey, from: ChunkIndex) -> Vec<ChunkIndex> {
        let mut chunks = self.chunks(at);
        let doubtful = chunks.doubtful(maker, from);
        for chunk in &doubtful {
            self.lose(at, &mut chunks, *chunk);
        }
        doubtful
    }

    /// The chunk isn't held any more. Its place isn't written before the journal has the drop.
    fn lose(&self, at: usize, chunks: &mut Chunks, chunk: ChunkIndex) {
        chunks.bar(chunk);
        lock(&self.pending).records.push(Record::Dropped {
            content: self.contents[at].digest,
            chunk,
        });
        self.files.changed(at, chunks, Some(chunk));
    }

    // ---- the journal ----------------------------------------------------------------------------------------------

    /// Bytes of a content changed in another way than by a chunk's write. The next flush syncs them.
    pub(crate) fn touch(&self, at: usize) {
        lock(&self.pending).dirty.insert(at);
    }

    /// Journals a fact that isn't about a chunk. Its data are synced already.
    pub(crate) fn note(&self, record: Record) {
        lock(&self.pending).records.push(record);
    }

    pub(crate) fn is_flushed(&self) -> bool {
        let pending = lock(&self.pending);
        pending.records.is_empty() && pending.dirty.is_empty()
    }

    /// Makes everything written so far survive a crash: syncs the data first, then appends to the journal that vouches
    /// for them. Cheap when nothing happened.
    ///
    /// # Errors
    /// When the volume fails. If the sync of the data failed, every chunk that isn't in the journal yet is dropped. If
    /// only the journal failed, the next call tries again.
    pub(crate) fn flush(&self) -> io::Result<()> {
        if self.is_gone() {
            return Ok(());
        }
        let mut journal = lock(&self.journal);
        let (records, dirty) = {
            let mut pending = lock(&self.pending);
            (
                std::mem::take(&mut pending.records),
                std::mem::take(&mut pending.dirty),
            )
        };
        if records.is_empty() && dirty.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.files.sync(&dirty) {
            self.unvouch(records);
            return Err(error);
        }
        // without a journal there is no record of a chunk, so no drop has to be recorded either
        if let Some(journal) = journal.as_mut()
            && let Err(error) = journal.append(&records)
        {
            let mut pending = lock(&self.pending);
            let later = std::mem::replace(&mut pending.records, records);
            pending.records.extend(later);
            return Err(error);
        }
        for record in &records {
            if let Record::Dropped { content, chunk } = record
                && let Some(at) = self.find(content)
            {
                self.chunks(at).unbar(*chunk);
            }
        }
        Ok(())
    }

    /// Drops the chunks that a failed sync covered: those of `records`, and those that came while the sync ran. Records
    /// of drops stay pending.
    fn unvouch(&self, mut records: Vec<Record>) {
        {
            let mut pending = lock(&self.pending);
            pending.failures += 1;
            records.append(&mut pending.records);
            pending.dirty.clear();
        }
        for record in records {
            match record {
                Record::Held {
                    content,
                    chunk,
                    link,
                    ..
                } => {
                    let Some(at) = self.find(&content) else {
                        continue;
                    };
                    let mut chunks = self.chunks(at);
                    // a chunk that was dropped since has its own record of the drop
                    if chunks.link(chunk).is_some_and(|(held, _)| {
                        (held.before, held.after) == (link.before, link.after)
                    }) {
                        self.lose(at, &mut chunks, chunk);
                    }
                }
                Record::Dropped { .. } => lock(&self.pending).records.push(record),
                // the blob is decoded again anyway
                Record::Decoded { .. } => {}
            }
        }
    }

    /// Changes what is known of a content's chunks, and lets the files hear of it.
    pub(crate) fn change<T>(&self, at: usize, change: impl FnOnce(&mut Chunks) -> T) -> T {
        let mut chunks = self.chunks(at);
        let changed = change(&mut chunks);
        self.files.changed(at, &chunks, None);
        changed
    }

    /// What is known of a content's chunks. Locked for a comparison, never during disk I/O.
    pub(crate) fn chunks(&self, at: usize) -> MutexGuard<'_, Chunks> {
        lock(&self.contents[at].chunks)
    }
}

impl Content {
    fn new(digest: Digest, geometry: Geometry) -> Self {
        Self {
            digest,
            geometry,
            chunks: Mutex::new(Chunks::new(digest, geometry)),
            written: Condvar::new(),
        }
    }
}

#[cfg(test)]
mod tests;
