//! The links that a host holds of one content, and how far back from the digest they are proved.
//!
//! [`Ledger::walk`] does what [`crate::chain`] describes: it starts at the digest, and goes back from link to link. A
//! ledger holds links, not bytes. The caller that stores a chunk first checks its bytes against its link.
//!
//! A ledger with a recipe ([`Ledger::take_recipe`]) takes only the recipe's links. If the recipe is true, each chunk is
//! proved when it arrives. If the recipe is false, no bytes fit some of its links, and the chain is never closed by it:
//! the ledger then goes on without the recipe ([`Ledger::leave_recipe`]).

use alloc::{sync::Arc, vec, vec::Vec};

use crate::{
    chain::{Link, State},
    chunks::{ChunkIndex, ChunkSet, Geometry},
    digest::Digest,
    host::HostKey,
    recipe::ContentRecipe,
    statement::Statement,
};

/// The two hosts that a link came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// The authenticated host that sent the link to this host; this host itself, where it made the link.
    pub sender: HostKey,
    /// The host that made the link from the registry's bytes, or vouched for it. It signed the link.
    pub maker: HostKey,
}

/// Which host answers for the link of a chunk that is passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The host that holds the chunk: its link is known to be true.
    Holder,
    /// The link's maker, by its statement.
    Maker(Statement),
    /// The content's recipe, which nobody answers for. The chunk is passed on to hosts with the same recipe.
    Recipe,
    /// Nobody: the chunk isn't held, or nobody signed its link. The chunk isn't passed on.
    Nobody,
}

impl Answer {
    /// The maker's statement, unless the link is known to be true.
    #[must_use]
    pub const fn statement(&self) -> Option<&Statement> {
        match self {
            Self::Maker(statement) => Some(statement),
            Self::Holder | Self::Recipe | Self::Nobody => None,
        }
    }
}

/// The links of one content that a host holds the bytes for, and how far back from the digest they are proved.
///
/// The caller checks each link against its bytes ([`Link::holds`]) before it enters the link.
#[derive(Clone, Debug)]
pub struct Ledger {
    digest: Digest,
    geometry: Geometry,
    entries: Vec<Option<Entry>>,
    held: ChunkSet,
    /// Every chunk from this number on is held and proved. Falls as the walk proves more; rises only when a proved
    /// chunk is forgotten.
    proved_from: u32,
    /// Whether the walk reached the first chunk, and its link starts from the initial state.
    closed: bool,
    /// What each link has to be, as long as the recipe isn't in doubt.
    recipe: Option<Arc<ContentRecipe>>,
}

#[derive(Clone, Debug)]
struct Entry {
    link: Link,
    source: Source,
    /// Kept until the chain is closed. From then on, this host vouches by itself.
    statement: Option<Statement>,
    /// The chain was closed since the link was entered. The link is true, whatever other chunks are lost.
    sure: bool,
}

impl Entry {
    /// Whether both links fall together. They do when one host made both under one ticket, or vouched for both, or when
    /// one source sent both without a signature. Runs don't matter: a host that invents links may give each one its own
    /// run.
    fn is_of_one_with(&self, other: &Self) -> bool {
        match (&self.statement, &other.statement) {
            (Some(one), Some(other)) => one.run.shares_ticket(&other.run),
            (None, None) => self.source == other.source,
            _ => false,
        }
    }
}

/// Why a link can't enter a ledger.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RejectLinkError {
    /// The content has no such chunk.
    #[error("content has no chunk {0}")]
    NoSuchChunk(ChunkIndex),
    /// The first chunk must start from SHA-256's initial state. The sender lies.
    #[error("first link doesn't start from the initial state")]
    FalseStart,
    /// The last chunk must end in the content's digest. The sender lies.
    #[error("last link doesn't end in the content's digest")]
    FalseEnd,
    /// The chunk after this one is proved, and this link doesn't end where that chunk's link starts. The sender lies.
    #[error("link of chunk {0} doesn't end where the proved link after it starts")]
    Disproved(ChunkIndex),
    /// The link doesn't join that of this chunk, although the same host made both in one run or vouched for both. The
    /// maker lies.
    #[error("link contradicts that of chunk {0}, which the same host signed")]
    Contradicts(ChunkIndex),
    /// The content's recipe gives the chunk another link. The recipe is false, or the link.
    #[error("link of chunk {0} isn't the recipe's")]
    AgainstRecipe(ChunkIndex),
}

/// What became of a link that was entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// The chunk wasn't held before.
    New,
    /// The chunk was held already; the held link stays.
    Held,
}

/// A link that the walk dropped, with its chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The dropped chunk.
    pub chunk: ChunkIndex,
    /// The chunk's link. Of the links that one walk drops, only that of the highest chunk is surely false. The others
    /// may be true.
    pub link: Link,
    /// The hosts that sent and made the link.
    pub source: Source,
    /// The maker's statement, if the link was signed.
    pub statement: Option<Statement>,
}

/// What a link proves.
const fn states(link: Link) -> (State, State) {
    (link.before, link.after)
}

/// The digest of an empty content: the hash of SHA-256's padding alone.
fn empty() -> Digest {
    Digest::of(&[])
}

impl Ledger {
    /// An empty ledger of this content. An empty content is closed at once, if its digest is that of no bytes.
    #[must_use]
    pub fn new(digest: Digest, geometry: Geometry) -> Self {
        Self {
            digest,
            geometry,
            entries: vec![None; geometry.chunks() as usize],
            held: ChunkSet::empty(geometry.chunks()),
            proved_from: geometry.chunks(),
            closed: geometry.is_empty() && digest == empty(),
            recipe: None,
        }
    }

    /// Takes only this recipe's links from now on.
    ///
    /// # Errors
    /// When a held link isn't the recipe's. One of the two is false, and nothing tells which: the ledger goes on
    /// without the recipe.
    ///
    /// # Panics
    /// When the recipe is another content's.
    pub fn take_recipe(&mut self, recipe: Arc<ContentRecipe>) -> Result<(), RejectLinkError> {
        let of = (*recipe.digest(), recipe.geometry());
        assert_eq!(
            of,
            (self.digest, self.geometry),
            "recipe of another content"
        );
        for chunk in self.held.iter() {
            let held = self.link(chunk).map(|(link, _)| states(link));
            if held != recipe.link(chunk).map(states) {
                return Err(RejectLinkError::AgainstRecipe(chunk));
            }
        }
        self.recipe = Some(recipe);
        Ok(())
    }

    /// Whether each link has to be the recipe's.
    #[must_use]
    pub const fn has_recipe(&self) -> bool {
        self.recipe.is_some()
    }

    /// The link that the recipe gives a chunk; `None` without a recipe.
    #[must_use]
    pub fn recipe_link(&self, chunk: ChunkIndex) -> Option<Link> {
        self.recipe.as_ref()?.link(chunk)
    }

    /// Goes on without the recipe, which may be false. Held chunks stay, and only the chain proves them from now on.
    /// Returns whether there was a recipe. A closed chain has proved its recipe, and keeps it.
    pub fn leave_recipe(&mut self) -> bool {
        !self.closed && self.recipe.take().is_some()
    }

    /// The content's digest.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// The content's geometry.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The chunks whose bytes are held and fit their links.
    #[must_use]
    pub const fn held(&self) -> &ChunkSet {
        &self.held
    }

    /// The link of a held chunk, and where the link came from.
    #[must_use]
    pub fn link(&self, chunk: ChunkIndex) -> Option<(Link, Source)> {
        let entry = self.entries.get(chunk.0 as usize)?.as_ref()?;
        Some((entry.link, entry.source))
    }

    /// Which host answers for the link of a chunk.
    #[must_use]
    pub fn answer(&self, chunk: ChunkIndex) -> Answer {
        match self.entries.get(chunk.0 as usize).and_then(Option::as_ref) {
            Some(entry) if entry.sure || self.is_proved(chunk) => Answer::Holder,
            Some(Entry {
                statement: Some(statement),
                ..
            }) => Answer::Maker(statement.clone()),
            Some(_) if self.recipe.is_some() => Answer::Recipe,
            _ => Answer::Nobody,
        }
    }

    /// Whether every chunk is held and the chain runs from the initial state to the digest. Then the content is
    /// verified.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether the chain after this chunk proves it, all the way to the digest.
    #[must_use]
    pub const fn is_proved(&self, chunk: ChunkIndex) -> bool {
        chunk.0 >= self.proved_from && chunk.0 < self.geometry.chunks()
    }

    /// The state that the chunk must end in, where the chain after it proves that.
    #[must_use]
    pub(crate) fn proved_end(&self, chunk: ChunkIndex) -> Option<State> {
        if self.geometry.is_last(chunk) {
            return Some(self.digest.into());
        }
        if chunk.0 + 1 == self.proved_from || self.is_proved(chunk) {
            return self
                .entries
                .get(chunk.0 as usize + 1)?
                .as_ref()
                .map(|entry| entry.link.before);
        }
        None
    }

    /// Enters an unsigned link of a chunk. The caller has found that the chunk's bytes fit the link.
    ///
    /// # Errors
    /// As [`enter_stated`](Self::enter_stated).
    pub fn enter(
        &mut self,
        chunk: ChunkIndex,
        link: Link,
        source: Source,
    ) -> Result<Entered, RejectLinkError> {
        self.enter_stated(chunk, link, source, None)
    }

    /// Enters the link of a chunk, with the maker's statement. The caller has found that the chunk's bytes fit the
    /// link.
    ///
    /// # Errors
    /// When the link can't be true, whoever made it. The caller then drops the bytes.
    pub fn enter_stated(
        &mut self,
        chunk: ChunkIndex,
        link: Link,
        source: Source,
        statement: Option<Statement>,
    ) -> Result<Entered, RejectLinkError> {
        if !self.geometry.contains(chunk) {
            return Err(RejectLinkError::NoSuchChunk(chunk));
        }
        if chunk.0 == 0 && link.before != State::INITIAL {
            return Err(RejectLinkError::FalseStart);
        }
        if self.geometry.is_last(chunk) && link.after != self.digest.into() {
            return Err(RejectLinkError::FalseEnd);
        }
        if self.proved_end(chunk).is_some_and(|end| end != link.after) {
            return Err(RejectLinkError::Disproved(chunk));
        }
        if (self.recipe_link(chunk)).is_some_and(|given| states(given) != states(link)) {
            return Err(RejectLinkError::AgainstRecipe(chunk));
        }
        if let Some(statement) = &statement
            && let Some(other) = self.contradicted(chunk, link, statement)
        {
            return Err(RejectLinkError::Contradicts(other));
        }
        if !self.held.insert(chunk) {
            return Ok(Entered::Held);
        }
        self.entries[chunk.0 as usize] = Some(Entry {
            link,
            source,
            statement,
            sure: false,
        });
        Ok(Entered::New)
    }

    /// Replaces the statement of a held link: its maker made the link once more. Returns whether both links have the
    /// same states; otherwise nothing changes.
    pub fn restate(&mut self, chunk: ChunkIndex, link: Link, statement: Statement) -> bool {
        let entry = self.entries.get_mut(chunk.0 as usize);
        let Some(entry) = entry.and_then(Option::as_mut) else {
            return false;
        };
        let same = (entry.link.before, entry.link.after) == (link.before, link.after);
        if same {
            // the maker signed this very link with its hints
            (entry.link, entry.statement) = (link, Some(statement));
        }
        same
    }

    /// The chunk of a held link of the same host and run (or also vouched for) that this link contradicts: the same
    /// chunk with other states, or a neighbour that this link doesn't join.
    fn contradicted(
        &self,
        chunk: ChunkIndex,
        link: Link,
        statement: &Statement,
    ) -> Option<ChunkIndex> {
        let near = |at: u32, joins: &dyn Fn(&Link) -> bool| {
            let entry = self.entries.get(at as usize)?.as_ref()?;
            let other = entry.statement.as_ref()?;
            let same = other.run.is_same(&statement.run);
            (same && !joins(&entry.link)).then_some(ChunkIndex(at))
        };
        let same = |held: &Link| (held.before, held.after) == (link.before, link.after);
        let before = chunk.0.checked_sub(1);
        near(chunk.0, &same)
            .or_else(|| near(before?, &|other| other.after == link.before))
            .or_else(|| near(chunk.0.checked_add(1)?, &|other| link.after == other.before))
    }

    /// Forgets a chunk, because its bytes are gone or were found changed. Links that it proved are no longer proved.
    pub fn forget(&mut self, chunk: ChunkIndex) {
        if self.held.remove(chunk) {
            self.entries[chunk.0 as usize] = None;
            if chunk.0 >= self.proved_from {
                self.proved_from = chunk.0 + 1;
            }
            self.closed = false;
        }
    }

    /// The unproved chunks from `from` on whose links `maker` made, by the senders' word. `maker` may take these back.
    /// None with a recipe, which gives the same links whoever made them.
    #[must_use]
    pub fn doubtful(&self, maker: HostKey, from: ChunkIndex) -> Vec<ChunkIndex> {
        if self.recipe.is_some() {
            return Vec::new();
        }
        (from.0..self.proved_from)
            .map(ChunkIndex)
            .filter(|chunk| {
                let entry = self.entries[chunk.0 as usize].as_ref();
                entry.is_some_and(|entry| entry.source.maker == maker)
            })
            .collect()
    }

    /// Walks back from the digest as far as the held links go, and drops the links that this proves false. When a link
    /// doesn't end where the proved link after it starts, the walk drops that link. It also drops every unproved link
    /// that the same host made under the same ticket, or vouched for too. If nobody signed the link, it drops every
    /// unproved link of the same source instead.
    ///
    /// Returns the dropped links, the highest chunk first; empty when none was found false. Everything after a dropped
    /// link stays held and proved. Costs one comparison for each newly proved chunk. Doesn't read the bytes.
    pub fn walk(&mut self) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        while let Some(chunk) = self.proved_from.checked_sub(1).map(ChunkIndex) {
            let (Some(entry), Some(end)) =
                (&self.entries[chunk.0 as usize], self.proved_end(chunk))
            else {
                break;
            };
            let false_start = chunk.0 == 0 && entry.link.before != State::INITIAL;
            if entry.link.after == end && !false_start {
                self.proved_from = chunk.0;
                continue;
            }
            let entry = entry.clone();
            for earlier in (0..=chunk.0).map(ChunkIndex) {
                let place = &mut self.entries[earlier.0 as usize];
                let same = |other: &mut Entry| other.is_of_one_with(&entry);
                if let Some(dropped) = place.take_if(same) {
                    self.held.remove(earlier);
                    verdicts.push(Verdict {
                        chunk: earlier,
                        link: dropped.link,
                        source: dropped.source,
                        statement: dropped.statement,
                    });
                }
            }
            break;
        }
        verdicts.reverse();
        self.closed =
            self.proved_from == 0 && (!self.geometry.is_empty() || self.digest == empty());
        if self.closed {
            for entry in self.entries.iter_mut().flatten() {
                (entry.statement, entry.sure) = (None, true);
            }
        }
        verdicts
    }
}

#[cfg(test)]
mod tests;
