//! A chunk of which this host has a part: which bytes are lacking, and how they are put in. Pure.

use std::ops::Range;

use proto::blocks::PAGE_BYTES;

/// The pages of the largest chunk.
const MAX_PAGES: usize = 256;
const PAGE: u32 = 4096;

/// A set of a chunk's pages: 32 bytes for each chunk of which a part is here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pages([u64; MAX_PAGES / 64]);

impl Pages {
    /// Adds the pages of a range.
    pub(super) fn add(&mut self, pages: Range<u32>) {
        for page in pages {
            if let Some(word) = self.0.get_mut(page as usize / 64) {
                *word |= 1 << (page % 64);
            }
        }
    }

    fn has(&self, page: u32) -> bool {
        let word = self.0.get(page as usize / 64);
        word.is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// Whether it is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The byte ranges of a chunk with this many bytes whose pages aren't in the set: in order, and none touches the
    /// next.
    pub(super) fn lacking(&self, chunk_bytes: u32) -> Vec<Range<u32>> {
        let mut ranges: Vec<Range<u32>> = Vec::new();
        for page in (0..chunk_bytes.div_ceil(PAGE)).filter(|page| !self.has(*page)) {
            let (start, end) = (page * PAGE, chunk_bytes.min((page + 1) * PAGE));
            match ranges.last_mut().filter(|last| last.end == start) {
                Some(last) => last.end = end,
                None => ranges.push(start..end),
            }
        }
        ranges
    }
}

/// A chunk of which this host has a part, in memory.
///
/// The bytes that are here were found by short hashes, so they are a guess, like the fingerprints that they were found
/// by. When all are together, the chunk's link says whether they are the chunk. If they aren't, the whole chunk has to
/// be asked for.
#[derive(Clone, Debug)]
pub struct ChunkPart {
    bytes: Vec<u8>,
    pages: Pages,
}

/// Bytes that can't be put into a chunk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FillError {
    /// They end behind the chunk.
    #[error("bytes {start} to {end} lie behind the {chunk_bytes} bytes of a chunk")]
    Beyond {
        /// Where the bytes start in the chunk.
        start: u32,
        /// Where they end.
        end: u64,
        /// The bytes of the chunk.
        chunk_bytes: usize,
    },
    /// They don't start, or don't end, where a page does.
    #[error("bytes {start} to {end} of a chunk aren't whole pages")]
    Pages {
        /// Where the bytes start in the chunk.
        start: u32,
        /// Where they end.
        end: u64,
    },
}

impl ChunkPart {
    /// A chunk of this many bytes, of which nothing is here.
    pub(super) fn new(chunk_bytes: u32) -> Self {
        Self {
            bytes: vec![0; chunk_bytes as usize],
            pages: Pages::default(),
        }
    }

    /// The byte ranges of the chunk that are lacking: in order, and none touches the next. They start and end where
    /// pages of 4 KiB do, or with the chunk.
    #[must_use]
    pub fn lacking(&self) -> Vec<Range<u32>> {
        self.pages.lacking(self.len())
    }

    /// The number of bytes that are lacking.
    #[must_use]
    pub fn lacking_bytes(&self) -> u64 {
        let lacking = self.lacking();
        let lengths = lacking.iter().map(|range| range.end - range.start);
        lengths.map(u64::from).sum()
    }

    /// Puts in bytes that came from elsewhere. They take the place of bytes that were here.
    ///
    /// # Errors
    /// When they aren't whole pages of the chunk. Nothing is changed then.
    pub fn fill(&mut self, start: u32, bytes: &[u8]) -> Result<(), FillError> {
        let end = u64::from(start) + bytes.len() as u64;
        let chunk_bytes = self.bytes.len();
        let whole = usize::try_from(end).ok().filter(|end| *end <= chunk_bytes);
        let Some(whole) = whole else {
            return Err(FillError::Beyond {
                start,
                end,
                chunk_bytes,
            });
        };
        let ends = whole == chunk_bytes || whole.is_multiple_of(PAGE_BYTES);
        if !start.is_multiple_of(PAGE) || !ends {
            return Err(FillError::Pages { start, end });
        }
        self.bytes[start as usize..whole].copy_from_slice(bytes);
        let last = u32::try_from(whole.div_ceil(PAGE_BYTES)).unwrap_or(u32::MAX);
        self.pages.add(start / PAGE..last);
        Ok(())
    }

    /// The chunk's bytes, when none is lacking. The caller compares them with the chunk's link.
    ///
    /// # Errors
    /// The part itself, when bytes are lacking.
    pub fn whole(self) -> Result<Vec<u8>, Self> {
        match self.lacking().is_empty() {
            true => Ok(self.bytes),
            false => Err(self),
        }
    }

    /// The pages that are here.
    pub(super) const fn pages(&self) -> &Pages {
        &self.pages
    }

    /// These pages are zeros, as they are in memory already.
    pub(super) fn zeros(&mut self, pages: Range<u32>) {
        self.pages.add(pages);
    }

    fn len(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u32 = 1 << 20;

    proptest! {
        #[test]
        fn what_lacks_is_what_was_not_filled(
            chunk_bytes in 1..=MIB,
            fills in prop::collection::vec((0..256_u32, 1..40_u32), 0..12),
        ) {
            let mut part = ChunkPart::new(chunk_bytes);
            let mut model = vec![false; chunk_bytes as usize];
            for (page, pages) in fills {
                let (start, end) = (page * PAGE, chunk_bytes.min((page + pages) * PAGE));
                if start < end {
                    part.fill(start, &vec![7; (end - start) as usize]).unwrap();
                    model[start as usize..end as usize].fill(true);
                }
            }
            let mut lacks = vec![true; chunk_bytes as usize];
            let mut last_end = None;
            for range in part.lacking() {
                prop_assert!(range.start < range.end && last_end != Some(range.start));
                last_end = Some(range.end);
                lacks[range.start as usize..range.end as usize].fill(false);
            }
            prop_assert_eq!(&lacks, &model);
            let there = model.iter().filter(|there| **there).count() as u64;
            prop_assert_eq!(part.lacking_bytes(), u64::from(chunk_bytes) - there);
            match part.whole() {
                Ok(bytes) => prop_assert!(bytes.iter().all(|byte| *byte == 7)),
                Err(part) => prop_assert!(!part.lacking().is_empty()),
            }
        }
    }

    #[test]
    fn only_whole_pages_of_the_chunk_are_put_in() {
        let mut part = ChunkPart::new(2 * PAGE + 5);
        let pages = |start, end| Err(FillError::Pages { start, end });
        assert_eq!(part.fill(1, &[0; 4095]), pages(1, 4096));
        assert_eq!(part.fill(0, &[0; 4095]), pages(0, 4095));
        assert_eq!(part.fill(8192, &[0; 4]), pages(8192, 8196));
        let beyond = part.fill(8192, &[0; 6]).unwrap_err();
        assert!(matches!(beyond, FillError::Beyond { .. }), "{beyond}");
        assert!(part.fill(u32::MAX, &[0; 6]).is_err());
        assert_eq!(part.lacking(), std::slice::from_ref(&(0..2 * PAGE + 5)));
        part.fill(8192, &[1; 5]).unwrap();
        part.fill(0, &[2; 4096]).unwrap();
        assert_eq!(part.lacking(), std::slice::from_ref(&(PAGE..2 * PAGE)));
        let mut part = part.whole().unwrap_err();
        part.zeros(1..2);
        let whole = part.whole().unwrap();
        assert_eq!((whole[0], whole[4096], whole[8192]), (2, 0, 1));
    }
}
