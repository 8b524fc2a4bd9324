//! The pieces of contents, as recipes name them. A search wants the pieces of one chunk at a time.
//!
//! All searches of a store share the pieces that were read, so that a store's memory doesn't grow with the number of
//! searches. Nor does it grow by what searches remember of parts of chunks: that is counted here, too.

use std::{
    io,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use proto::{
    ChunkIndex,
    blocks::{Blocks, Mark, Piece},
};

use crate::lock::lock;

pub(super) const PAGES_PER_CHUNK: u32 = 256;
/// The most pieces of a content that are looked for, blocks and runs of zeros, in 6 MB of memory: those of 10 GB and
/// more. tart's layers have half a GB.
const MAX_PIECES: usize = 1 << 20;
/// The most chunks of all images of which parts are remembered, in about 5 MB of memory. Others are asked for as a
/// whole.
const MAX_PARTS: usize = 1 << 16;
/// The most bytes of the columns of contents that are kept, beside those of the last content: those of 30 layers as
/// tart makes them, or of one of the largest.
const MAX_KNOWN_BYTES: usize = 8 << 20;

/// The number of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SearchId(u64);

/// See the [module](self).
#[derive(Debug, Default)]
pub(in crate::store) struct Pieces {
    /// Locked also while a content's column is read, by a search that waits for it: two would need twice the memory.
    known: Mutex<Known>,
    /// Chunks of which parts are remembered.
    parts: AtomicUsize,
}

#[derive(Debug, Default)]
struct Known {
    searches: u64,
    /// What was asked for last comes last.
    contents: Vec<Content>,
}

#[derive(Debug)]
struct Content {
    search: SearchId,
    at: usize,
    blocks: Blocks,
    /// Where chunks begin.
    marks: Vec<Mark>,
}

impl Content {
    fn bytes(&self) -> usize {
        let (lengths, prints) = self.blocks.parts();
        lengths.len() + prints.len() + self.marks.len() * size_of::<Mark>()
    }
}

impl Pieces {
    /// A search that isn't any other's.
    pub(super) fn begin(&self) -> SearchId {
        let mut known = lock(&self.known);
        known.searches += 1;
        SearchId(known.searches)
    }

    /// Forgets what was read for a search.
    pub(super) fn end(&self, search: SearchId) {
        let mut known = lock(&self.known);
        known.contents.retain(|content| content.search != search);
    }

    /// Counts a chunk of which a part is remembered. False where there are too many.
    pub(super) fn add_part(&self) -> bool {
        let more = |parts| (parts < MAX_PARTS).then_some(parts + 1);
        let added = self
            .parts
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        added.is_ok()
    }

    /// So many of them aren't remembered any more.
    pub(super) fn drop_parts(&self, parts: usize) {
        self.parts.fetch_sub(parts, Ordering::Relaxed);
    }

    /// How many there are.
    #[cfg(test)]
    pub(in crate::store) fn parts(&self) -> usize {
        self.parts.load(Ordering::Relaxed)
    }

    /// The pieces of a chunk, each with the number of its first page in the content, from the one that the chunk begins
    /// in. `read` gives those of the content with this number in its image; where there are too many, none are found.
    ///
    /// # Errors
    /// Those of `read`.
    pub(super) fn of_chunk(
        &self,
        (search, at): (SearchId, usize),
        chunk: ChunkIndex,
        read: impl FnOnce() -> io::Result<Blocks>,
    ) -> io::Result<Vec<(u32, Piece)>> {
        let known = &mut *lock(&self.known);
        let is_it = |content: &Content| content.search == search && content.at == at;
        let content = match known.contents.iter().position(is_it) {
            Some(found) => known.contents.remove(found),
            None => {
                let blocks = bounded(read()?);
                Content {
                    marks: blocks.marks(PAGES_PER_CHUNK),
                    search,
                    at,
                    blocks,
                }
            }
        };
        let first = chunk.0.saturating_mul(PAGES_PER_CHUNK);
        let mark = content.marks.get(chunk.0 as usize);
        let pieces = mark.into_iter().flat_map(|mark| {
            let behind = content.blocks.pieces_from(*mark);
            behind.take_while(|(page, _)| *page < first.saturating_add(PAGES_PER_CHUNK))
        });
        let pieces = pieces.collect();
        known.contents.push(content);
        let mut bytes: usize = known.contents.iter().map(Content::bytes).sum();
        while bytes > MAX_KNOWN_BYTES && known.contents.len() > 1 {
            bytes -= known.contents.remove(0).bytes();
        }
        Ok(pieces)
    }
}

/// The pieces of a content; none where there are too many.
fn bounded(blocks: Blocks) -> Blocks {
    let are_too_many = blocks.pieces().nth(MAX_PIECES).is_some();
    if are_too_many { Blocks::EMPTY } else { blocks }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proto::{BlockPrint, blocks::Block};

    use super::*;

    fn blocks(pieces: usize) -> Blocks {
        let mut blocks = Blocks::default();
        for at in 0..pieces {
            blocks.push(match at % 2 {
                0 => Piece::Zeros { pages: 1 },
                _ => Piece::Block(Block {
                    pages: 1,
                    print: BlockPrint::of(&at.to_le_bytes()),
                }),
            });
        }
        blocks
    }

    #[test]
    fn pieces_are_counted_and_not_only_blocks() {
        assert_eq!(bounded(blocks(MAX_PIECES)).pieces().count(), MAX_PIECES);
        assert_eq!(bounded(blocks(MAX_PIECES + 1)).pieces().count(), 0);
    }

    #[test]
    fn parts_are_counted_for_all_searches() {
        let pieces = Pieces::default();
        for _ in 0..MAX_PARTS {
            assert!(pieces.add_part());
        }
        assert!(!pieces.add_part());
        pieces.drop_parts(2);
        assert!(pieces.add_part() && pieces.add_part() && !pieces.add_part());
    }

    #[test]
    fn columns_are_read_once_and_the_memory_of_all_searches_is_bounded() {
        let pieces = Pieces::default();
        let searches = [(); 3].map(|()| pieces.begin());
        let (large, reads) = (blocks(MAX_PIECES), Cell::new(0));
        let ask = |search: usize, at: usize, chunk: u32, blocks: &Blocks| {
            let read = || {
                reads.set(reads.get() + 1);
                Ok(blocks.clone())
            };
            let found = pieces.of_chunk((searches[search], at), ChunkIndex(chunk), read);
            let first = chunk * PAGES_PER_CHUNK;
            let all = blocks.pieces().skip(first as usize).take(256);
            assert!(found.unwrap().into_iter().eq(all), "chunk {chunk}");
            let known = lock(&pieces.known);
            known.contents.iter().map(Content::bytes).sum::<usize>()
        };
        // contents that come in turns are read once each
        let small = blocks(1 << 15);
        for chunk in 0..128 {
            for at in 0..8 {
                ask(at % 2, at, chunk, &small);
            }
        }
        assert_eq!(reads.get(), 8);
        // of the largest one is kept, whoever asks
        let one = ask(2, 0, 4095, &large);
        assert!(one <= MAX_KNOWN_BYTES);
        for (search, at) in [(2, 1), (0, 0), (1, 1), (2, 0)] {
            assert!(ask(search, at, 7, &large) <= MAX_KNOWN_BYTES);
        }
        pieces.end(searches[2]);
        assert!(
            lock(&pieces.known)
                .contents
                .iter()
                .all(|of| of.search != searches[2])
        );
        // behind the last chunk there is none
        let none = pieces.of_chunk((searches[0], 9), ChunkIndex(9999), || Ok(small.clone()));
        assert_eq!(none.unwrap(), []);
    }
}
