//! What is known of one content's chunks, without their bytes.

use std::collections::BTreeSet;

use proto::{
    Answer, ChunkIndex, ChunkSet, Digest, Geometry, HostKey, Ledger, Link, Source, Statement,
    ledger::{Entered, RejectLinkError, Verdict},
};

/// What is known of a content's chunks.
///
/// A chunk is *barred* after it was dropped, until the journal says so: nobody writes its place before.
#[derive(Debug)]
pub(crate) struct Chunks {
    ledger: Ledger,
    zero: ChunkSet,
    /// Held by the word of an earlier process; their bytes weren't compared since.
    unread: ChunkSet,
    /// Their bytes on disk are changing: nobody else writes them, and they aren't held.
    writing: BTreeSet<ChunkIndex>,
    barred: BTreeSet<ChunkIndex>,
    /// Counts drops, so that a reader notices one that came between looking and reading.
    drops: u64,
}

/// Whether a chunk may be written by who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Yes: it is being written from now on.
    Yours,
    /// It is held already.
    Held,
    /// Somebody else writes it.
    Another,
    /// The journal has to say first that it was dropped.
    Barred,
}

impl Chunks {
    pub(super) fn new(digest: Digest, geometry: Geometry) -> Self {
        let none = ChunkSet::empty(geometry.chunks());
        Self {
            ledger: Ledger::new(digest, geometry),
            zero: none.clone(),
            unread: none,
            writing: BTreeSet::new(),
            barred: BTreeSet::new(),
            drops: 0,
        }
    }

    /// What an earlier process journaled as held. A record that can't be true is left out: its chunk is fetched again.
    pub(super) fn believe(
        &mut self,
        chunk: ChunkIndex,
        (link, source): (Link, Source),
        zero: bool,
        statement: Option<Statement>,
    ) -> bool {
        let entered = self.ledger.enter_stated(chunk, link, source, statement);
        let new = matches!(entered, Ok(Entered::New));
        if new {
            self.unread.insert(chunk);
            if zero {
                self.zero.insert(chunk);
            }
        }
        new
    }

    /// The chunks that are on disk and fit their links.
    pub(super) const fn held(&self) -> &ChunkSet {
        self.ledger.held()
    }

    /// Held chunks whose bytes weren't compared in this process.
    pub(super) const fn unread(&self) -> &ChunkSet {
        &self.unread
    }

    pub(super) fn is_closed(&self) -> bool {
        self.ledger.is_closed()
    }

    pub(super) fn is_proved(&self, chunk: ChunkIndex) -> bool {
        self.ledger.is_proved(chunk)
    }

    pub(super) fn is_zero(&self, chunk: ChunkIndex) -> bool {
        self.zero.contains(chunk)
    }

    pub(super) fn link(&self, chunk: ChunkIndex) -> Option<(Link, Source)> {
        self.ledger.link(chunk)
    }

    /// The link of a chunk that is held and whose bytes were compared with it in this process.
    pub(crate) fn read_link(&self, chunk: ChunkIndex) -> Option<(Link, Source)> {
        self.ledger
            .link(chunk)
            .filter(|_| !self.unread.contains(chunk))
    }

    pub(super) fn answer(&self, chunk: ChunkIndex) -> Answer {
        self.ledger.answer(chunk)
    }

    pub(super) fn restate(&mut self, chunk: ChunkIndex, link: Link, statement: Statement) {
        self.ledger.restate(chunk, link, statement);
    }

    /// Believes nothing that isn't read again.
    pub(super) fn doubt(&mut self) {
        self.unread = self.ledger.held().clone();
    }

    /// How many drops there were.
    pub(super) const fn drops(&self) -> u64 {
        self.drops
    }

    /// The bytes of a held chunk were compared with its link. Whether that is news.
    pub(super) fn was_read(&mut self, chunk: ChunkIndex) -> bool {
        self.unread.remove(chunk)
    }

    // ---- writing --------------------------------------------------------------------------------------------------

    pub(super) fn take_turn(&mut self, chunk: ChunkIndex) -> Turn {
        if self.writing.contains(&chunk) {
            Turn::Another
        } else if self.ledger.held().contains(chunk) {
            Turn::Held
        } else if self.barred.contains(&chunk) {
            Turn::Barred
        } else {
            self.writing.insert(chunk);
            Turn::Yours
        }
    }

    /// The chunk isn't being written any more.
    pub(super) fn end_turn(&mut self, chunk: ChunkIndex) {
        self.writing.remove(&chunk);
    }

    /// The chunk is on the disk, by a link that fits it.
    ///
    /// # Errors
    /// When the chain disproves the link.
    pub(super) fn enter(
        &mut self,
        chunk: ChunkIndex,
        (link, source): (Link, Source),
        zero: bool,
        statement: Option<Statement>,
    ) -> Result<Entered, RejectLinkError> {
        let entered = self.ledger.enter_stated(chunk, link, source, statement)?;
        if zero {
            self.zero.insert(chunk);
        }
        Ok(entered)
    }

    // ---- dropping -------------------------------------------------------------------------------------------------

    /// Walks back from the content's digest: what this proves false ([`Ledger::walk`]), and isn't dropped by that.
    pub(super) fn walk(&mut self) -> Vec<Verdict> {
        self.ledger.walk()
    }

    /// The unproved chunks from `from` on that this host made.
    pub(super) fn doubtful(&self, maker: HostKey, from: ChunkIndex) -> Vec<ChunkIndex> {
        self.ledger.doubtful(maker, from)
    }

    /// The chunk isn't held any more, as the journal says already.
    pub(super) fn forget(&mut self, chunk: ChunkIndex) {
        self.ledger.forget(chunk);
        self.zero.remove(chunk);
        self.unread.remove(chunk);
        self.drops += 1;
    }

    /// The chunk isn't held any more, and its place isn't written before the journal says so.
    pub(super) fn bar(&mut self, chunk: ChunkIndex) {
        self.forget(chunk);
        self.barred.insert(chunk);
    }

    /// The journal says that it was dropped.
    pub(super) fn unbar(&mut self, chunk: ChunkIndex) {
        self.barred.remove(&chunk);
    }
}
