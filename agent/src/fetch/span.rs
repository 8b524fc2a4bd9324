//! The end of a connection's part: with a recipe, a connection reads the chunks that are wanted, and not what lies
//! between them.
//!
//! The recipe names the compressed block that has the last byte of each chunk. So the end of that block is known to
//! within one block, and the registry is asked for no byte behind. The recipe may be false: a part that turns out too
//! short is followed by one without an end ([`Ends::missed`]).

use std::ops::Range;

use apple_lz4::MAX_BLOCK_BYTES;
use proto::{ChunkIndex, Geometry, Resume, image::ContentKind};

use super::job::Job;

/// Wanted chunks that lie closer to each other in the blob than this are read on one connection.
///
/// Another request costs a round trip in which nothing comes. A line of 100 Mbit/s carries this much in 10 ms, about
/// the round trip to a registry near by. A larger bound would read most single chunks that are here already: half a
/// MiB each, where they pack well.
pub(super) const NEAR_BYTES: u64 = 128 << 10;

/// Bytes that a connection may still bring behind the last wanted chunk, at most: the end is known to within a block.
/// Reading on costs less than going elsewhere.
pub(super) const SLACK_BYTES: u64 = NEAR_BYTES + MAX_BLOCK_BYTES as u64;

/// The part of a blob that one connection reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// The byte of the blob behind the part.
    pub(super) end: u64,
    /// The last chunk that the part has whole, if the recipe is true.
    pub(super) last: u32,
}

/// The ends of one fetch's parts.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// A part ended before its last chunk: the recipe's places are false.
    are_false: bool,
}

impl Ends {
    /// The part to read from byte `at` of the blob on, where chunk `next` is made next. It goes to the blob's end where
    /// no recipe proves the content, or the recipe gives no end that can be true.
    pub(super) fn span(&self, job: &Job, next: u32, at: u64) -> Span {
        let (_, size) = job.blob();
        let whole = Span {
            end: size,
            last: job.geometry.chunks().saturating_sub(1),
        };
        if self.are_false || !job.is_by_recipe() {
            return whole;
        }
        let Some(shelf) = job.shelves.first() else {
            return whole;
        };
        let held: Vec<_> = job.shelves.iter().map(|at| at.held(job.content)).collect();
        let lacks = |chunk| {
            let chunk = ChunkIndex(chunk);
            job.has(chunk) && held.iter().any(|set| !set.contains(chunk))
        };
        let places = Places {
            kind: job.kind,
            geometry: job.geometry,
            size,
            resume: |chunk| shelf.recipe_link(job.content, chunk)?.resume,
        };
        let span = places.span(next, lacks);
        // a place that can't be true isn't followed
        let plausible = |span: &Span| at < span.end && span.end <= size;
        span.filter(plausible).unwrap_or(whole)
    }

    /// A part ended before its last chunk. Later parts go to the blob's end.
    pub(super) const fn missed(&mut self) {
        self.are_false = true;
    }
}

/// Where the chunks of a content lie in its blob, by a recipe.
struct Places<F> {
    kind: ContentKind,
    geometry: Geometry,
    /// Bytes of the blob.
    size: u64,
    /// The place to go on from behind a chunk.
    resume: F,
}

impl<F: Fn(ChunkIndex) -> Option<Resume>> Places<F> {
    /// The chunk's end in the blob. What follows the chunk can be read from the range's start on, and the chunk ends at
    /// the range's end, or before.
    fn behind(&self, chunk: u32) -> Option<Range<u64>> {
        let next = ChunkIndex(chunk + 1);
        if next.0 >= self.geometry.chunks() {
            return Some(self.size..self.size);
        }
        if self.kind == ContentKind::Blob {
            let end = self.geometry.offset(next);
            return Some(end..end);
        }
        let start = (self.resume)(ChunkIndex(chunk))?.blob_offset;
        if start >= self.size {
            return None;
        }
        let most = start.saturating_add(MAX_BLOCK_BYTES as u64);
        // the block of the next chunk's end begins behind this block
        let following = (self.resume)(next).map(|place| place.blob_offset);
        let following = following.filter(|offset| *offset > start);
        let end = following.unwrap_or(self.size).min(self.size).min(most);
        Some(start..end)
    }

    /// The part that has the first chunks from `next` on that this host lacks, and those that lie near them.
    fn span(&self, next: u32, lacks: impl Fn(u32) -> bool) -> Option<Span> {
        let chunks = self.geometry.chunks();
        let first = |from: u32| (from..chunks).find(|chunk| lacks(*chunk));
        let last = |from: u32| (from..chunks).take_while(|chunk| lacks(*chunk)).last();
        let mut span: Option<Span> = None;
        while let Some(begin) = first(span.map_or(next, |span| span.last + 1)) {
            if let Some(span) = span {
                let again = self.behind(begin - 1)?.start;
                if again > span.end.saturating_add(NEAR_BYTES) {
                    break;
                }
            }
            let last = last(begin)?;
            let end = self.behind(last)?.end;
            span = Some(Span { end, last });
        }
        span
    }
}

#[cfg(test)]
mod tests {
    use proto::{Digest, image::Blob};

    use super::*;

    type Resumes = Box<dyn Fn(ChunkIndex) -> Option<Resume>>;

    const BLOCK: u64 = MAX_BLOCK_BYTES as u64;

    /// Places of eight chunks and a bit, each of which has `packed` bytes in the blob.
    fn places(packed: u64) -> Places<Resumes> {
        let blob = Blob {
            digest: Digest::of(b"blob"),
            size: 9 * packed,
        };
        Places {
            kind: ContentKind::RawLayer { blob },
            geometry: Geometry::new(8 * proto::CHUNK_BYTES + 5).unwrap(),
            size: blob.size,
            resume: Box::new(move |chunk: ChunkIndex| {
                (chunk.0 < 8).then_some(Resume {
                    blob_offset: u64::from(chunk.0 + 1) * packed - packed / 16,
                    skip_bytes: 64 << 10,
                })
            }),
        }
    }

    fn span(packed: u64, next: u32, lacking: &[u32]) -> Option<(u64, u32)> {
        let span = places(packed).span(next, |chunk| lacking.contains(&chunk));
        span.map(|span| (span.end, span.last))
    }

    #[test]
    fn a_part_ends_one_block_behind_where_the_last_block_of_its_last_chunk_begins() {
        let packed = 1 << 20;
        let behind = |chunk: u64| (chunk + 1) * packed - packed / 16 + BLOCK;
        assert_eq!(span(packed, 0, &[1]), Some((behind(1), 1)));
        assert_eq!(span(packed, 1, &[1, 2, 3, 6]), Some((behind(3), 3)));
        assert_eq!(span(packed, 4, &[1, 2, 3, 6]), Some((behind(6), 6)));
        // the last chunk ends with the blob
        assert_eq!(span(packed, 7, &[7, 8]), Some((9 * packed, 8)));
        assert_eq!(span(packed, 0, &[]), None);
    }

    #[test]
    fn no_part_reaches_behind_the_next_place_or_the_blob() {
        // chunks that pack to less than a block
        assert_eq!(span(1_600, 0, &[0]), Some((3_100, 0)));
        assert_eq!(span(1_600, 7, &[7]), Some((9 * 1_600, 7)));
    }

    #[test]
    fn wanted_chunks_that_lie_near_are_one_part() {
        // one chunk that is here between two that aren't
        let between = |packed: u64| {
            let places = places(packed);
            places.behind(1).unwrap().start - places.behind(0).unwrap().end
        };
        let near = (NEAR_BYTES + BLOCK) / 16 * 16;
        assert!(between(near) <= NEAR_BYTES && between(near + 16) > NEAR_BYTES);
        assert_eq!(span(near, 0, &[0, 2]).unwrap().1, 2);
        assert_eq!(span(near + 16, 0, &[0, 2]).unwrap().1, 0);
    }

    #[test]
    fn a_blob_that_travels_as_it_is_needs_no_places() {
        let plain = Places {
            kind: ContentKind::Blob,
            resume: Box::new(|_: ChunkIndex| None) as Resumes,
            ..places(1 << 20)
        };
        let span = |lacking: &[u32]| plain.span(0, |chunk| lacking.contains(&chunk));
        let end = 2 * proto::CHUNK_BYTES;
        assert_eq!(span(&[1]), Some(Span { end, last: 1 }));
        let end = plain.size;
        assert_eq!(span(&[8]), Some(Span { end, last: 8 }));
    }

    #[test]
    fn without_places_there_is_no_end() {
        let bare = Places {
            resume: Box::new(|_: ChunkIndex| None) as Resumes,
            ..places(1 << 20)
        };
        assert_eq!(bare.span(0, |chunk| chunk == 1), None);
    }
}
