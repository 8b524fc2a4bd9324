//! The chunks of a content, and sets of chunks.

use alloc::{vec, vec::Vec};
use core::fmt;

/// The bytes of every chunk but the last: 1 MiB. The chain needs a multiple of SHA-256's 64-byte block.
pub const CHUNK_BYTES: u64 = 1 << 20;

/// The most chunks of a content: 256 GiB, eight times the largest blob that tart writes today. This limits the memory
/// that a manifest or a peer can make a program allocate.
pub const MAX_CHUNKS: u32 = 1 << 18;

/// A chunk's number within its content, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u32);

impl fmt::Display for ChunkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Chunks of a content that follow each other. There is at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChunkRange {
    from: u32,
    until: u32,
}

impl ChunkRange {
    /// The chunks from `from` up to and without `until`; `None` where that is no chunk.
    #[must_use]
    pub const fn new(from: u32, until: u32) -> Option<Self> {
        if from < until {
            Some(Self { from, until })
        } else {
            None
        }
    }

    /// The first chunk.
    #[must_use]
    pub const fn from(self) -> u32 {
        self.from
    }

    /// The chunk behind the last one.
    #[must_use]
    pub const fn until(self) -> u32 {
        self.until
    }

    /// The number of chunks, which is never 0.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.until - self.from
    }

    /// The chunks, in order.
    pub fn chunks(self) -> impl Iterator<Item = ChunkIndex> {
        (self.from..self.until).map(ChunkIndex)
    }

    /// Whether the range has this chunk.
    #[must_use]
    pub const fn contains(self, chunk: ChunkIndex) -> bool {
        self.from <= chunk.0 && chunk.0 < self.until
    }

    /// Whether a content of this many chunks has all of them.
    #[must_use]
    pub const fn is_within(self, chunks: u32) -> bool {
        self.until <= chunks
    }

    /// Whether both ranges have a chunk in common.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.from < other.until && other.from < self.until
    }
}

/// The shape of a content: its size, and the chunks that follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    size: u64,
}

/// A content that is larger than [`MAX_CHUNKS`] chunks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("content of {size} bytes is larger than {} bytes", u64::from(MAX_CHUNKS) * CHUNK_BYTES)]
pub struct TooLargeError {
    /// The size that was claimed.
    pub size: u64,
}

impl Geometry {
    /// The geometry of a content of `size` bytes.
    ///
    /// # Errors
    /// When it has more than [`MAX_CHUNKS`] chunks.
    pub const fn new(size: u64) -> Result<Self, TooLargeError> {
        if size.div_ceil(CHUNK_BYTES) > MAX_CHUNKS as u64 {
            return Err(TooLargeError { size });
        }
        Ok(Self { size })
    }

    /// The bytes of the content.
    #[must_use]
    pub const fn size(self) -> u64 {
        self.size
    }

    /// The chunks of the content; zero for an empty one.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "`new` bounds it by MAX_CHUNKS"
    )]
    pub const fn chunks(self) -> u32 {
        self.size.div_ceil(CHUNK_BYTES) as u32
    }

    /// The offset of the chunk in the content, in bytes.
    #[must_use]
    pub const fn offset(self, chunk: ChunkIndex) -> u64 {
        chunk.0 as u64 * CHUNK_BYTES
    }

    /// The bytes of this chunk; zero past the content's end.
    #[must_use]
    pub fn len(self, chunk: ChunkIndex) -> u32 {
        self.size
            .saturating_sub(self.offset(chunk))
            .min(CHUNK_BYTES) as u32
    }

    /// Whether the content has no bytes.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.size == 0
    }

    /// Whether the content has this chunk.
    #[must_use]
    pub const fn contains(self, chunk: ChunkIndex) -> bool {
        chunk.0 < self.chunks()
    }

    /// Whether this is the content's last chunk.
    #[must_use]
    pub const fn is_last(self, chunk: ChunkIndex) -> bool {
        chunk.0 + 1 == self.chunks()
    }
}

/// A set of chunks of one content, as a bitmap.
///
/// Chunks past `chunks` are never in the set. Chunk `i` is bit `i % 64` of word `i / 64`, counted from the lowest bit.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ChunkSet {
    words: Vec<u64>,
    chunks: u32,
    count: u32,
}

/// Runs that don't describe chunks of the content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseRunsError {
    /// The number of values is odd. They must be pairs of gap and length.
    #[error("the set of chunks is malformed: a run lacks its length")]
    Odd,
    /// A run goes past the content's last chunk.
    #[error("the set of chunks is malformed: a run goes past the content's end")]
    PastEnd,
}

impl ChunkSet {
    /// An empty set, for a content of `chunks` chunks.
    #[must_use]
    pub fn empty(chunks: u32) -> Self {
        Self {
            words: vec![0; chunks.div_ceil(64) as usize],
            chunks,
            count: 0,
        }
    }

    /// A full set, for a content of `chunks` chunks.
    #[must_use]
    pub fn full(chunks: u32) -> Self {
        let mut words = vec![u64::MAX; chunks.div_ceil(64) as usize];
        if !chunks.is_multiple_of(64)
            && let Some(last) = words.last_mut()
        {
            *last = (1 << (chunks % 64)) - 1;
        }
        Self {
            words,
            chunks,
            count: chunks,
        }
    }

    /// The number of chunks in the content.
    #[must_use]
    pub const fn chunks(&self) -> u32 {
        self.chunks
    }

    /// The number of chunks in the set.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Whether no chunk is in the set.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether every chunk is in the set.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.count == self.chunks
    }

    /// Whether this chunk is in the set.
    #[must_use]
    pub fn contains(&self, chunk: ChunkIndex) -> bool {
        chunk.0 < self.chunks && self.words[chunk.0 as usize / 64] >> (chunk.0 % 64) & 1 == 1
    }

    /// Adds a chunk. Returns whether it is new. Ignores a chunk past the content's end.
    pub fn insert(&mut self, chunk: ChunkIndex) -> bool {
        if chunk.0 >= self.chunks {
            return false;
        }
        let word = &mut self.words[chunk.0 as usize / 64];
        let bit = 1 << (chunk.0 % 64);
        let new = *word & bit == 0;
        *word |= bit;
        self.count += u32::from(new);
        new
    }

    /// Removes a chunk. Returns whether it was in the set.
    pub fn remove(&mut self, chunk: ChunkIndex) -> bool {
        if !self.contains(chunk) {
            return false;
        }
        self.words[chunk.0 as usize / 64] &= !(1 << (chunk.0 % 64));
        self.count -= 1;
        true
    }

    /// Adds every chunk of `other`, a set of the same content. Ignores words past this set's end.
    pub fn union_with(&mut self, other: &Self) {
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            self.count += (*more & !*word).count_ones();
            *word |= more;
        }
        self.trim();
    }

    /// Removes every chunk of `other`.
    pub fn subtract(&mut self, other: &Self) {
        for (word, less) in self.words.iter_mut().zip(&other.words) {
            self.count -= (*word & less).count_ones();
            *word &= !less;
        }
    }

    /// The bitmap's words.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// The set's chunks in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = ChunkIndex> + '_ {
        (0u32..).zip(&self.words).flat_map(|(at, word)| {
            let mut rest = *word;
            core::iter::from_fn(move || {
                if rest == 0 {
                    return None;
                }
                let bit = rest.trailing_zeros();
                rest &= rest - 1;
                Some(ChunkIndex(at * 64 + bit))
            })
        })
    }

    /// The first chunk that isn't in the set.
    #[must_use]
    pub fn first_missing(&self) -> Option<ChunkIndex> {
        (0u32..)
            .zip(&self.words)
            .find(|(_, word)| **word != u64::MAX)
            .map(|(at, word)| ChunkIndex(at * 64 + word.trailing_ones()))
            .filter(|chunk| chunk.0 < self.chunks)
    }

    /// The set as alternating gaps and lengths of runs, for the wire: at most `chunks + 1` values.
    #[must_use]
    pub fn to_runs(&self) -> Vec<u32> {
        let mut runs = Vec::new();
        let mut end = 0;
        let mut open: Option<(u32, u32)> = None;
        for ChunkIndex(chunk) in self.iter() {
            match &mut open {
                Some((_, next)) if *next == chunk => *next += 1,
                _ => {
                    if let Some((start, next)) = open.replace((chunk, chunk + 1)) {
                        runs.extend([start - end, next - start]);
                        end = next;
                    }
                }
            }
        }
        if let Some((start, next)) = open {
            runs.extend([start - end, next - start]);
        }
        runs
    }

    /// Reads the values of [`to_runs`](Self::to_runs).
    ///
    /// # Errors
    /// When the values don't describe chunks of a content of `chunks` chunks.
    pub fn from_runs(chunks: u32, runs: &[u32]) -> Result<Self, ParseRunsError> {
        let mut set = Self::empty(chunks);
        let mut at = 0u32;
        let (pairs, []) = runs.as_chunks::<2>() else {
            return Err(ParseRunsError::Odd);
        };
        for [gap, length] in pairs {
            let start = at.checked_add(*gap).ok_or(ParseRunsError::PastEnd)?;
            let end = start.checked_add(*length).ok_or(ParseRunsError::PastEnd)?;
            if end > chunks {
                return Err(ParseRunsError::PastEnd);
            }
            set.insert_range(start, end);
            at = end;
        }
        Ok(set)
    }

    /// The union of two sets in the form of [`to_runs`](Self::to_runs), for a content whose number of chunks isn't
    /// known yet. It has at most as many values as both together.
    ///
    /// # Errors
    /// When the values can't describe chunks of any content.
    pub fn merge_runs(a: &[u32], b: &[u32]) -> Result<Vec<u32>, ParseRunsError> {
        let mut ranges = ranges(a)?;
        ranges.extend(self::ranges(b)?);
        ranges.sort_unstable();
        let mut runs = Vec::new();
        let (mut end, mut open) = (0, None);
        for (start, next) in ranges {
            open = match open {
                Some((first, last)) if start <= last => Some((first, next.max(last))),
                Some((first, last)) => {
                    runs.extend([first - end, last - first]);
                    end = last;
                    Some((start, next))
                }
                None => Some((start, next)),
            };
        }
        if let Some((first, last)) = open {
            runs.extend([first - end, last - first]);
        }
        Ok(runs)
    }

    fn insert_range(&mut self, start: u32, end: u32) {
        let mut at = start;
        while at < end {
            let bit = at % 64;
            let width = (64 - bit).min(end - at);
            let mask = if width == 64 {
                u64::MAX
            } else {
                ((1 << width) - 1) << bit
            };
            let word = &mut self.words[at as usize / 64];
            self.count += (mask & !*word).count_ones();
            *word |= mask;
            at += width;
        }
    }

    fn trim(&mut self) {
        if !self.chunks.is_multiple_of(64)
            && let Some(last) = self.words.last_mut()
        {
            let past = *last & !((1 << (self.chunks % 64)) - 1);
            self.count -= past.count_ones();
            *last &= !past;
        }
    }
}

/// The first chunk and the end of each run. Leaves empty runs out.
fn ranges(runs: &[u32]) -> Result<Vec<(u32, u32)>, ParseRunsError> {
    let (pairs, []) = runs.as_chunks::<2>() else {
        return Err(ParseRunsError::Odd);
    };
    let mut at = 0u32;
    let mut ranges = Vec::with_capacity(pairs.len());
    for [gap, length] in pairs {
        let start = at.checked_add(*gap).ok_or(ParseRunsError::PastEnd)?;
        at = start.checked_add(*length).ok_or(ParseRunsError::PastEnd)?;
        if at > start {
            ranges.push((start, at));
        }
    }
    Ok(ranges)
}

impl fmt::Debug for ChunkSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} chunks", self.count, self.chunks)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_contents_last_chunk_is_the_rest() {
        let geometry = Geometry::new(2 * CHUNK_BYTES + 1).unwrap();
        assert_eq!(geometry.chunks(), 3);
        assert_eq!(geometry.len(ChunkIndex(1)), 1 << 20);
        assert_eq!(geometry.len(ChunkIndex(2)), 1);
        assert_eq!(geometry.len(ChunkIndex(3)), 0);
        assert!(geometry.is_last(ChunkIndex(2)));
        assert_eq!(Geometry::new(CHUNK_BYTES).unwrap().chunks(), 1);
        assert_eq!(Geometry::new(0).unwrap().chunks(), 0);
    }

    #[test]
    fn a_content_past_the_limit_is_refused() {
        let most = u64::from(MAX_CHUNKS) * CHUNK_BYTES;
        assert!(Geometry::new(most).is_ok());
        assert!(Geometry::new(most + 1).is_err());
        assert!(Geometry::new(u64::MAX).is_err());
    }

    proptest! {
        #[test]
        fn merged_runs_are_the_union(a in prop::collection::btree_set(0u32..300, 0..200), b in prop::collection::btree_set(0u32..300, 0..200)) {
            let set = |of: &BTreeSet<u32>| {
                let mut set = ChunkSet::empty(300);
                for chunk in of {
                    set.insert(ChunkIndex(*chunk));
                }
                set
            };
            let merged = ChunkSet::merge_runs(&set(&a).to_runs(), &set(&b).to_runs()).unwrap();
            prop_assert_eq!(merged, set(&a.union(&b).copied().collect()).to_runs());
        }

        #[test]
        fn hostile_runs_merge_to_runs_or_an_error(a in prop::collection::vec(any::<u32>(), 0..9), b in prop::collection::vec(0u32..5, 0..9)) {
            if let Ok(merged) = ChunkSet::merge_runs(&a, &b) {
                prop_assert!(merged.len() <= a.len() + b.len());
                prop_assert_eq!(ChunkSet::merge_runs(&merged, &[]), Ok(merged));
            }
        }

        #[test]
        fn a_chunk_set_is_a_set(chunks in 0u32..300, picks in prop::collection::vec((0u32..320, any::<bool>()), 0..200)) {
            let mut set = ChunkSet::empty(chunks);
            let mut model = BTreeSet::new();
            for (chunk, add) in picks {
                if add {
                    let new = chunk < chunks && model.insert(chunk);
                    prop_assert_eq!(set.insert(ChunkIndex(chunk)), new);
                } else {
                    prop_assert_eq!(set.remove(ChunkIndex(chunk)), model.remove(&chunk));
                }
            }
            prop_assert_eq!(set.count() as usize, model.len());
            prop_assert!(set.iter().map(|chunk| chunk.0).eq(model.iter().copied()));
            prop_assert_eq!(set.first_missing().map(|chunk| chunk.0), (0..chunks).find(|chunk| !model.contains(chunk)));
            let back = ChunkSet::from_runs(chunks, &set.to_runs());
            prop_assert_eq!(back, Ok(set.clone()));
            let mut full = ChunkSet::full(chunks);
            prop_assert_eq!(full.count(), chunks);
            full.subtract(&set);
            prop_assert_eq!(full.count(), chunks - set.count());
            full.union_with(&set);
            prop_assert!(full.is_full());
        }

        #[test]
        fn any_runs_are_a_set_or_an_error(chunks in 0u32..300, runs in prop::collection::vec(any::<u32>(), 0..20)) {
            if let Ok(set) = ChunkSet::from_runs(chunks, &runs) {
                prop_assert!(set.iter().all(|chunk| chunk.0 < chunks));
            }
        }
    }
}
