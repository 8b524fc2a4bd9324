//! What this host knows of one content's chunks, without their bytes. `held` does the reading and writing.

use std::{collections::BTreeSet, sync::Arc};

use proto::{
    Answer, ChunkIndex, ChunkSet, Digest, Geometry, HostKey, Ledger, Link, Source, Statement,
    ledger::{Entered, RejectLinkError, Verdict},
    recipe::ContentRecipe,
};

/// What this host knows of a content's chunks.
///
/// A dropped chunk is *barred* until the journal has the drop. A barred chunk's place isn't written.
#[derive(Debug)]
pub(crate) struct Chunks {
    ledger: Ledger,
    /// The digest of the recipe that gives the links, as long as there is one.
    recipe: Option<Digest>,
    zero: ChunkSet,
    /// Chunks that an earlier process journaled as held, and whose bytes this process hasn't compared yet.
    unread: ChunkSet,
    /// Chunks whose bytes on disk are changing. They aren't held, and no second thread writes them.
    writing: BTreeSet<ChunkIndex>,
    barred: BTreeSet<ChunkIndex>,
    /// Counts drops, so that a reader notices a drop between its look and its read.
    drops: u64,
}

/// Whether the caller may write a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Yes. The caller writes the chunk from now on.
    Yours,
    /// No, because the chunk is held already.
    Held,
    /// Not now, because another thread writes the chunk.
    Another,
    /// Not yet: the journal has to record the chunk's drop first.
    Barred,
}

impl Chunks {
    pub(super) fn new(digest: Digest, geometry: Geometry) -> Self {
        let none = ChunkSet::empty(geometry.chunks());
        Self {
            ledger: Ledger::new(digest, geometry),
            recipe: None,
            zero: none.clone(),
            unread: none,
            writing: BTreeSet::new(),
            barred: BTreeSet::new(),
            drops: 0,
        }
    }

    /// Takes only the links of this recipe from now on, which is part of the recipe with the digest `name`.
    ///
    /// # Errors
    /// When a held link contradicts the recipe, which isn't taken then.
    pub(crate) fn take_recipe(
        &mut self,
        name: Digest,
        recipe: Arc<ContentRecipe>,
    ) -> Result<(), RejectLinkError> {
        self.ledger.take_recipe(recipe)?;
        self.recipe = Some(name);
        Ok(())
    }

    /// Goes on without the recipe, which may be false. Returns whether there was one.
    pub(crate) fn leave_recipe(&mut self) -> bool {
        let left = self.ledger.leave_recipe();
        if left {
            self.recipe = None;
        }
        left
    }

    /// The digest of the recipe that gives the links, as long as there is one.
    pub(crate) const fn recipe(&self) -> Option<Digest> {
        self.recipe
    }

    /// The link that the recipe gives a chunk.
    pub(crate) fn recipe_link(&self, chunk: ChunkIndex) -> Option<Link> {
        self.ledger.recipe_link(chunk)
    }

    /// Takes a chunk that an earlier process journaled as held. Leaves out a record that can't be true, so that its
    /// chunk is fetched again. Returns whether the chunk is new.
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

    /// Counts every held chunk as unread.
    pub(super) fn doubt(&mut self) {
        self.unread = self.ledger.held().clone();
    }

    /// The number of drops so far.
    pub(super) const fn drops(&self) -> u64 {
        self.drops
    }

    /// The bytes of a held chunk were compared with its link. Returns whether the chunk was unread.
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

    /// The chunk is on the disk, and the link fits its bytes.
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

    /// Walks back from the content's digest and returns what this proves false ([`Ledger::walk`]). Drops nothing.
    pub(super) fn walk(&mut self) -> Vec<Verdict> {
        self.ledger.walk()
    }

    /// The unproved chunks from `from` on whose links this maker made.
    pub(super) fn doubtful(&self, maker: HostKey, from: ChunkIndex) -> Vec<ChunkIndex> {
        self.ledger.doubtful(maker, from)
    }

    /// The chunk isn't held any more. The caller's journal has the drop already, or [`bar`](Self::bar) sees to it.
    pub(super) fn forget(&mut self, chunk: ChunkIndex) {
        self.ledger.forget(chunk);
        self.zero.remove(chunk);
        self.unread.remove(chunk);
        self.drops += 1;
    }

    /// The chunk isn't held any more. Its place isn't written before the journal has the drop.
    pub(super) fn bar(&mut self, chunk: ChunkIndex) {
        self.forget(chunk);
        self.barred.insert(chunk);
    }

    /// The journal has the chunk's drop.
    pub(super) fn unbar(&mut self, chunk: ChunkIndex) {
        self.barred.remove(&chunk);
    }
}
