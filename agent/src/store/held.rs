//! The chunks of some contents on this host's disk, with the links that prove them and the journal that vouches for
//! them. Images ([`Stage`](super::Stage)) and blobs of the mirror stand on it; each brings its own [`Files`].
//!
//! The rules that a crash, a failing volume and a rotting disk must not break are here, once:
//! - **The journal never claims what the disk may not have.** [`Held::flush`] syncs the data, then appends the records.
//! - **A place isn't written again before the journal has the drop of what stood there.** A dropped chunk is *barred*
//!   until a flush succeeded; who wants to write it flushes first. Otherwise a crash could bring the old link back over
//!   new bytes.
//! - **A sync that failed vouches for nothing.** The system may have thrown the data away, and the next sync succeeds
//!   all the same. Every chunk that no journal vouches for yet is dropped then.
//! - **What an earlier process journaled is believed, but not trusted**: those chunks are *unread* until their bytes
//!   were compared with their links once. Nothing unread leaves this host.

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
    place::{Access, Files, is_lost, is_zero, put},
};
use crate::lock::lock;

/// The chunks of some contents that share a journal. Shared by threads; calls that touch bytes block on the disk.
#[derive(Debug)]
pub(crate) struct Held<F> {
    files: F,
    contents: Vec<Content>,
    index: BTreeMap<Digest, usize>,
    hosts: Arc<Hosts>,
    /// Absent where nothing more is written. Locked before a content's state where both are.
    journal: Mutex<Option<Journal>>,
    /// What happened since the last flush. Filled by every writing thread, emptied by whoever flushes; locked after a
    /// content's state where both are.
    pending: Mutex<Pending>,
    gone: AtomicBool,
}

#[derive(Debug)]
struct Content {
    digest: Digest,
    geometry: Geometry,
    /// Changed by whichever thread stores or drops a chunk; held for a comparison, never while the disk works.
    chunks: Mutex<Chunks>,
    /// A chunk left `Chunks::writing`.
    written: Condvar,
}

#[derive(Debug, Default)]
struct Pending {
    records: Vec<Record>,
    /// Contents that were written to.
    dirty: BTreeSet<usize>,
    /// Syncs that failed so far: what was being written meanwhile may be lost with what was written before.
    failures: u64,
}

/// A chunk that is the caller's to write.
struct Writing<'a> {
    content: &'a Content,
    at: usize,
    chunk: ChunkIndex,
    failures: u64,
}

impl<F: Files> Held<F> {
    /// Nothing of these contents yet, and nothing that vouches.
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

    /// Journals into this one from now on.
    pub(crate) fn set_journal(&self, journal: Option<Journal>) {
        *lock(&self.journal) = journal;
    }

    /// Believes the records of an earlier process; what they say is held is unread. What isn't of these contents is
    /// passed over, and what the chain disproves is dropped.
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

    /// The number of a content.
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

    pub(crate) fn is_proved(&self, at: usize, chunk: ChunkIndex) -> bool {
        self.chunks(at).is_proved(chunk)
    }

    pub(crate) fn link(&self, at: usize, chunk: ChunkIndex) -> Option<(Link, Source)> {
        self.chunks(at).link(chunk)
    }

    /// This host made a held link once more, and answers for it under its new run. No journal has that: after a restart
    /// it answers under the run before.
    pub(crate) fn restate(&self, at: usize, chunk: ChunkIndex, link: Link, statement: Statement) {
        self.chunks(at).restate(chunk, link, statement);
    }

    /// Who answers for the link of a chunk.
    pub(crate) fn answer(&self, at: usize, chunk: ChunkIndex) -> Answer {
        self.chunks(at).answer(chunk)
    }

    /// The chunks that are held by the word of an earlier process alone.
    pub(crate) fn unread(&self, at: usize) -> ChunkSet {
        self.chunks(at).unread().clone()
    }

    /// Believes nothing that isn't read again.
    pub(crate) fn doubt(&self) {
        for content in &self.contents {
            lock(&content.chunks).doubt();
        }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Nothing is read or written any more.
    pub(crate) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// What is known of a held chunk.
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

    /// Stores a chunk whose link was found to hold, at every place. Zeros become holes. A chunk that is held already
    /// stays as it is; one that another thread is storing is waited for.
    ///
    /// The chunk counts as held at once, and survives a crash from the next [`flush`](Self::flush) on.
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
        let put = &mut |_, file: &File, base| put(file, base + offset, bytes, zero);
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

    /// Takes a chunk whose bytes lie at some of its places already: those where `there`. They are compared with the
    /// claim where they lie, and other places get a copy of them.
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
                put(file, base + offset, &bytes, claim.zero)
            });
        Ok(match self.end_turn(&turn, written, claim)? {
            Entered::Held => Adopted::Held,
            Entered::New => Adopted::New { differed },
        })
    }

    /// Waits until the chunk may be written by the caller; `None` where it is held.
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
        // a sync that fails from here on sees the chunk among those that it has to drop
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

    /// A held chunk; `None` when it isn't held, was dropped while it was read, or all is gone. Unread bytes are
    /// compared with their link first.
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

    /// Reads a held chunk at each of its places and compares it with its link. One that isn't what the link says is
    /// dropped; the caller flushes.
    ///
    /// # Errors
    /// When the volume fails: that says nothing of the chunk.
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
                // perhaps of this chunk, which has been written again since
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

    /// Compares every held chunk of a content with its link, and drops what rotted. What was dropped is journaled.
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

    /// The chunk's bytes, where every place has those that the claim says.
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

    /// Makes the content's links from its bytes, whatever is known of it. Whether they end in its digest: then every
    /// chunk is held that has the same bytes at each of its places. Otherwise nothing changes.
    ///
    /// # Errors
    /// When the volume fails, or `go_on` says so.
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

    /// Walks back from the content's digest and drops what this proves false ([`Ledger::walk`]). The caller flushes.
    pub(crate) fn drop_false(&self, at: usize) -> Vec<Verdict> {
        let mut chunks = self.chunks(at);
        let verdicts = chunks.walk();
        for verdict in &verdicts {
            self.lose(at, &mut chunks, verdict.chunk);
        }
        verdicts
    }

    /// Drops a chunk whose bytes turned out not to be the registry's, so that the true ones can take its place. Whether
    /// it was held. The caller flushes.
    pub(crate) fn forget(&self, at: usize, chunk: ChunkIndex) -> bool {
        let mut chunks = self.chunks(at);
        let held = chunks.held().contains(chunk);
        if held {
            self.lose(at, &mut chunks, chunk);
        }
        held
    }

    /// Drops the unproved chunks from `from` on that this host made: it took them back. The caller flushes.
    pub(crate) fn retract(&self, at: usize, maker: HostKey, from: ChunkIndex) -> Vec<ChunkIndex> {
        let mut chunks = self.chunks(at);
        let doubtful = chunks.doubtful(maker, from);
        for chunk in &doubtful {
            self.lose(at, &mut chunks, *chunk);
        }
        doubtful
    }

    /// The chunk isn't held any more, and its place isn't written before the journal says so.
    fn lose(&self, at: usize, chunks: &mut Chunks, chunk: ChunkIndex) {
        chunks.bar(chunk);
        lock(&self.pending).records.push(Record::Dropped {
            content: self.contents[at].digest,
            chunk,
        });
        self.files.changed(at, chunks, Some(chunk));
    }

    // ---- the journal ----------------------------------------------------------------------------------------------

    /// Bytes of a content changed otherwise than by chunks.
    pub(crate) fn touch(&self, at: usize) {
        lock(&self.pending).dirty.insert(at);
    }

    /// A fact that isn't about a chunk, and whose data are synced already.
    pub(crate) fn note(&self, record: Record) {
        lock(&self.pending).records.push(record);
    }

    pub(crate) fn is_flushed(&self) -> bool {
        let pending = lock(&self.pending);
        pending.records.is_empty() && pending.dirty.is_empty()
    }

    /// Makes everything written so far survive a crash: data first, then the journal that vouches for them. Cheap when
    /// nothing happened.
    ///
    /// # Errors
    /// When the volume fails. If the data weren't synced, every chunk that the journal doesn't vouch for yet isn't held
    /// any more. If only the journal wasn't, the next call tries again.
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
        // without a journal nothing is vouched for, and nothing has to be taken back
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

    /// Drops what a failed sync covered: these records' chunks, and those that came while it ran. Drops stay to be
    /// journaled.
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
                    // one that was dropped since has its own record
                    if chunks.link(chunk).is_some_and(|(held, _)| {
                        (held.before, held.after) == (link.before, link.after)
                    }) {
                        self.lose(at, &mut chunks, chunk);
                    }
                }
                Record::Dropped { .. } => lock(&self.pending).records.push(record),
                // it is decoded again
                Record::Decoded { .. } => {}
            }
        }
    }

    fn chunks(&self, at: usize) -> MutexGuard<'_, Chunks> {
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
