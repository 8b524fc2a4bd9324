//! A shelf: one place of a content's bytes on this host, either an image's stage or a blob in the mirror's cache.

use std::{collections::BTreeSet, io, ops::Range, sync::Arc};

use proto::{
    Answer, ChunkIndex, ChunkSet, Digest, HostId, HostKey, Link, Source, Statement,
    ledger::{Entered, RejectLinkError, Verdict},
};

use crate::{
    mirror::blob::Blob,
    store::{ChunkPart, DecodeLayerError, HeldChunk, Look, Stage, WriteError},
};

/// A chunk that arrived. Its bytes were found to fit its link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival<'a> {
    pub(crate) content: Digest,
    pub(crate) chunk: ChunkIndex,
    pub(crate) bytes: &'a [u8],
    pub(crate) link: Link,
    pub(crate) source: Source,
    pub(crate) maker: &'a HostId,
    /// Says which host answers for the link.
    pub(crate) statement: Option<&'a Statement>,
}

/// An image whose files can't be written, with the error. Other shelves with the same content go on without it.
pub(crate) type Unwritable = (Digest, String);

/// Stores a chunk on every shelf. Skips an image that is gone meanwhile, one whose files can't be written, and one
/// whose recipe gives the chunk another link: the recipe may be false, and images that share the content may go by
/// others. Returns images whose files can't be written, if another shelf took the chunk.
///
/// # Errors
/// The first reason why no shelf took the chunk: that files can't be written, else a recipe, else that images are gone.
/// At once, where the link can't be true whatever a recipe says.
pub(crate) fn write_all(
    shelves: &[Shelf],
    arrival: Arrival<'_>,
) -> Result<Vec<Unwritable>, WriteError> {
    let mut stored = false;
    let (mut unwritable, mut failed) = (Vec::new(), None);
    let (mut against, mut gone) = (None, None);
    for shelf in shelves {
        match (shelf.write(arrival), shelf) {
            (Ok(_), _) => stored = true,
            (Err(error @ WriteError::Io { .. }), Shelf::Stage(stage)) => {
                unwritable.push((*stage.layout().digest(), error.to_string()));
                failed.get_or_insert(error);
            }
            (Err(error @ WriteError::Rejected(RejectLinkError::AgainstRecipe(_))), _) => {
                against.get_or_insert(error);
            }
            (Err(error @ WriteError::Gone), _) => {
                gone.get_or_insert(error);
            }
            (Err(error), _) => return Err(error),
        }
    }
    match failed.or(against).or(gone) {
        Some(error) if !stored => Err(error),
        _ => Ok(unwritable),
    }
}

/// Copies to each shelf the chunks that only other shelves hold. An image may share a content of which another image
/// has chunks already, and a chunk that rotted in one image may be sound in another. Each chunk is compared with its
/// link first. Blocks.
///
/// A shelf whose chain is closed has the content to its digest. So where its link isn't that of another shelf's recipe,
/// the recipe is false, and that shelf goes on without.
///
/// Returns images whose files can't be written. An error means that the volume failed.
pub(crate) fn level(shelves: &[Shelf], content: Digest) -> Result<Vec<Unwritable>, String> {
    let held: Vec<ChunkSet> = shelves.iter().map(|shelf| shelf.held(content)).collect();
    let mut holders: Vec<(&Shelf, &ChunkSet)> = shelves.iter().zip(&held).collect();
    holders.sort_by_key(|(shelf, _)| !shelf.is_closed(content));
    let mut unwritable = Vec::new();
    'shelves: for (to, has) in shelves.iter().zip(&held) {
        if has.is_full() {
            continue;
        }
        for chunk in (0..has.chunks()).map(ChunkIndex) {
            if has.contains(chunk) {
                continue;
            }
            let holders = holders.iter().filter(|(_, set)| set.contains(chunk));
            // a chunk that is gone or rotten on one shelf is taken from the next, or asked for again
            let found = holders
                .filter_map(|(from, _)| match from.look(content, chunk) {
                    Ok(Look::Sound(found)) => Some((from, found)),
                    Ok(Look::Rotten | Look::Missing) | Err(_) => None,
                })
                .next();
            let Some((from, found)) = found else { continue };
            let arrival = Arrival {
                content,
                chunk,
                bytes: &found.bytes,
                link: found.link,
                source: found.source,
                maker: &found.maker,
                statement: found.answer.statement(),
            };
            let written = match to.write(arrival) {
                Err(WriteError::Rejected(RejectLinkError::AgainstRecipe(_)))
                    if from.is_closed(content) && to.leave_recipe(content).is_some() =>
                {
                    to.write(arrival)
                }
                written => written,
            };
            match (written, to) {
                (Ok(_) | Err(WriteError::Rejected(_)), _) => {}
                (Err(WriteError::Gone), _) => continue 'shelves,
                (Err(error @ WriteError::Io { .. }), Shelf::Stage(stage)) => {
                    unwritable.push((*stage.layout().digest(), error.to_string()));
                    continue 'shelves;
                }
                (Err(error), _) => return Err(error.to_string()),
            }
        }
    }
    Ok(unwritable)
}

/// Drops a maker's unproved chunks of a content on every shelf, from a chunk on, and returns them. Blocks.
pub(crate) fn retract(
    shelves: &[Shelf],
    content: Digest,
    maker: HostKey,
    from: ChunkIndex,
) -> Result<Vec<ChunkIndex>, String> {
    let mut lost = BTreeSet::new();
    for shelf in shelves {
        let chunks = shelf
            .retract(content, maker, from)
            .map_err(|error| error.to_string())?;
        lost.extend(chunks);
    }
    Ok(lost.into_iter().collect())
}

/// A place of a content's bytes. Calls block on the disk, like those of the stage or blob behind it.
#[derive(Clone, Debug)]
pub(crate) enum Shelf {
    /// An image that is staged or installed.
    Stage(Arc<Stage>),
    /// A blob of the mirror.
    Blob(Arc<Blob>),
}

impl Shelf {
    pub(crate) fn write(&self, arrival: Arrival<'_>) -> Result<Entered, WriteError> {
        let Arrival {
            content,
            chunk,
            bytes,
            link,
            source,
            maker,
            statement,
        } = arrival;
        let maker = (maker, statement);
        match self {
            Self::Stage(stage) => stage.write(content, chunk, bytes, link, source, maker),
            Self::Blob(blob) => blob.write(chunk, bytes, link, source, maker),
        }
    }

    /// Replaces the statement of a held link that this host made again: this host answers for the link under its new
    /// run.
    pub(crate) fn restate(
        &self,
        content: Digest,
        chunk: ChunkIndex,
        link: Link,
        statement: Statement,
    ) {
        match self {
            Self::Stage(stage) => stage.restate(content, chunk, link, statement),
            Self::Blob(blob) => blob.restate(chunk, link, statement),
        }
    }

    pub(crate) fn answer(&self, content: Digest, chunk: ChunkIndex) -> Answer {
        match self {
            Self::Stage(stage) => stage.answer(content, chunk),
            Self::Blob(blob) => blob.answer(chunk),
        }
    }

    pub(crate) fn read(&self, content: Digest, chunk: ChunkIndex) -> io::Result<Option<HeldChunk>> {
        match self {
            Self::Stage(stage) => stage.read(content, chunk),
            Self::Blob(blob) => blob.read(chunk),
        }
    }

    pub(crate) fn link(&self, content: Digest, chunk: ChunkIndex) -> Option<(Link, Source)> {
        match self {
            Self::Stage(stage) => stage.link(content, chunk),
            Self::Blob(blob) => blob.link(chunk),
        }
    }

    /// The ranges of a chunk that the host lacks, where the disks of other images here have the rest.
    pub(crate) fn lacking_ranges(
        &self,
        content: Digest,
        chunk: ChunkIndex,
    ) -> Option<Vec<Range<u32>>> {
        match self {
            Self::Stage(stage) => stage.lacking_ranges(content, chunk),
            Self::Blob(_) => None,
        }
    }

    /// Reads the part of a chunk that lies on the disks of other images here. Blocks.
    pub(crate) fn part(&self, content: Digest, chunk: ChunkIndex) -> Option<ChunkPart> {
        match self {
            Self::Stage(stage) => stage.part(content, chunk),
            Self::Blob(_) => None,
        }
    }

    /// Whether another image here may hold a chunk with this link, of a content without a recipe.
    pub(crate) fn may_be_here(&self, content: Digest, link: &Link) -> bool {
        match self {
            Self::Stage(stage) => stage.may_be_here(content, link),
            Self::Blob(_) => false,
        }
    }

    /// The bytes of a chunk with this link, if another image here holds them. Blocks.
    pub(crate) fn find_here(
        &self,
        content: Digest,
        chunk: ChunkIndex,
        link: &Link,
    ) -> Option<Vec<u8>> {
        match self {
            Self::Stage(stage) => stage.find_here(content, chunk, link),
            Self::Blob(_) => None,
        }
    }

    /// The part of a chunk that was found on the disks of other images here wasn't the chunk's.
    pub(crate) fn part_was_false(&self) {
        match self {
            Self::Stage(stage) => stage.part_was_false(),
            Self::Blob(_) => {}
        }
    }

    /// Forgets the part of a chunk: with what came, it isn't the chunk.
    pub(crate) fn forget_part(&self, content: Digest, chunk: ChunkIndex) {
        match self {
            Self::Stage(stage) => stage.forget_part(content, chunk),
            Self::Blob(_) => {}
        }
    }

    /// The digest of the recipe that gives the content's links there, as long as there is one.
    pub(crate) fn recipe(&self, content: Digest) -> Option<Digest> {
        match self {
            Self::Stage(stage) => stage.known(content)?.recipe(),
            Self::Blob(blob) => blob.recipe(),
        }
    }

    /// The link that the recipe gives a chunk.
    pub(crate) fn recipe_link(&self, content: Digest, chunk: ChunkIndex) -> Option<Link> {
        match self {
            Self::Stage(stage) => stage.known(content)?.recipe_link(chunk),
            Self::Blob(blob) => blob.recipe_link(chunk),
        }
    }

    /// Whether hosts made the recipe of the image, and no registry has it.
    pub(crate) fn is_of_hosts(&self) -> bool {
        match self {
            Self::Stage(stage) => stage.standing().is_of_hosts(),
            Self::Blob(_) => false,
        }
    }

    /// Goes on without the content's recipe. Returns the recipe's digest, if there was one.
    pub(crate) fn leave_recipe(&self, content: Digest) -> Option<Digest> {
        let stage = match self {
            Self::Stage(stage) => stage,
            Self::Blob(blob) => return blob.leave_recipe(),
        };
        let mut known = stage.known(content)?;
        let recipe = known.recipe();
        recipe.filter(|_| known.leave_recipe())
    }

    pub(crate) fn held(&self, content: Digest) -> ChunkSet {
        match self {
            Self::Stage(stage) => stage.held(content),
            Self::Blob(blob) => blob.held(),
        }
    }

    pub(crate) fn is_closed(&self, content: Digest) -> bool {
        match self {
            Self::Stage(stage) => stage.is_closed(content),
            Self::Blob(blob) => blob.is_closed(),
        }
    }

    pub(crate) fn walk(&self, content: Digest) -> io::Result<Vec<Verdict>> {
        match self {
            Self::Stage(stage) => stage.walk(content),
            Self::Blob(blob) => blob.walk(),
        }
    }

    pub(crate) fn forget_chunk(&self, content: Digest, chunk: ChunkIndex) -> io::Result<()> {
        match self {
            Self::Stage(stage) => stage.forget_chunk(content, chunk),
            Self::Blob(blob) => blob.forget_chunk(chunk),
        }
    }

    pub(crate) fn retract(
        &self,
        content: Digest,
        maker: HostKey,
        from: ChunkIndex,
    ) -> io::Result<Vec<ChunkIndex>> {
        match self {
            Self::Stage(stage) => stage.retract(content, maker, from),
            Self::Blob(blob) => blob.retract(maker, from),
        }
    }

    /// Reads a chunk from the disk and compares it with its link. Drops a chunk that doesn't fit. A rotten chunk of an
    /// image is reported as [`News`](crate::store::News), one of a blob shows in [`Blob::is_rotten`].
    pub(crate) fn look(&self, content: Digest, chunk: ChunkIndex) -> io::Result<Look> {
        match self {
            Self::Stage(stage) => stage.look(content, chunk),
            Self::Blob(blob) => blob.look(chunk),
        }
    }

    /// As [`Stage::mend_decoded`]. Does nothing for a blob, since no blob is decoded here.
    pub(crate) fn mend_decoded(&self, content: Digest) -> Result<bool, DecodeLayerError> {
        match self {
            Self::Stage(stage) => stage.mend_decoded(content),
            Self::Blob(_) => Ok(false),
        }
    }
}

#[cfg(test)]
mod model;
