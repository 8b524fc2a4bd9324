//! Blocks: pieces of a content, finer than chunks, by which a host finds bytes that moved.
//!
//! A content is cut at pages of 4 KiB only, because file systems put files there, and by what a page holds. So bytes
//! that moved by whole pages are cut alike, but for a block at each end. A block ends
//! - behind a page whose hash is small: a quarter of all pages;
//! - behind a page that ends in zeros: a file's last page is filled with zeros, and the next file often begins there;
//! - before a page of zeros: those are no part of any block;
//! - after 15 pages.
//!
//! Blocks don't end at chunks' ends. They end with their content.
//!
//! [`Blocks`] is the column of a recipe that names all blocks of a content. It is a hint: what a host finds by it is
//! compared with the recipe's states.

use alloc::vec::Vec;
use core::fmt;

use twox_hash::XxHash3_64;

use crate::{chunks::Geometry, digest::Hex};

/// The unit in which contents are cut.
pub const PAGE_BYTES: usize = 4096;
/// The most pages of a block.
pub const MAX_BLOCK_PAGES: u8 = 15;
/// The most bytes of the column for each chunk. With the other columns, a recipe stays below 0.1 % of its image.
pub const MAX_BYTES_PER_CHUNK: u64 = 960;

/// A page ends a block when its hash isn't larger: random bytes have blocks of 16 KiB on average.
const ENDS_BELOW: u64 = u64::MAX / 4;
/// So many zeros at its end make a page the last one of a file.
const END_ZEROS: usize = 16;
/// Bits of a run's length in each half byte but the flag that more follow.
const RUN_BITS: u32 = 3;

/// What a content consists of, in the order of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A block.
    Block(Block),
    /// Pages of zeros.
    Zeros {
        /// The number of pages.
        pages: u32,
    },
}

/// A block without its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// 1 to [`MAX_BLOCK_PAGES`]. The last page of a content may be shorter than others.
    pub pages: u8,
    /// The hash by which the block is found.
    pub print: BlockPrint,
}

impl Piece {
    /// The pages of the piece.
    #[must_use]
    pub const fn pages(&self) -> u32 {
        match self {
            Self::Block(block) => block.pages as u32,
            Self::Zeros { pages } => *pages,
        }
    }
}

/// A short hash of a block, by which a host finds the block's bytes on its disks.
///
/// 40 bits. Of an index with 13 million blocks (140 GB), one look-up in 84,000 finds a block by accident. If that block
/// is as long, its bytes pass for the block's: the chunk's states tell, when the rest of the chunk has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BlockPrint(u64);

impl BlockPrint {
    /// Bytes of a print.
    pub const BYTES: usize = 5;
    /// Bits of a print.
    pub const BITS: u32 = 40;

    /// The print of a block with these bytes.
    #[must_use]
    pub fn of(block: &[u8]) -> Self {
        let mut hashes = Vec::with_capacity(MAX_BLOCK_PAGES as usize);
        hashes.extend(block.chunks(PAGE_BYTES).map(XxHash3_64::oneshot));
        Self::of_pages(&hashes)
    }

    /// Each page was hashed already to see whether a block ends there, so a block's print is made of these hashes.
    fn of_pages(hashes: &[u64]) -> Self {
        let mut bytes = [0; 8 * MAX_BLOCK_PAGES as usize];
        let mut length = 0;
        for (to, hash) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(hashes) {
            *to = hash.to_le_bytes();
            length += to.len();
        }
        Self::truncate(XxHash3_64::oneshot(&bytes[..length]))
    }

    /// The highest bits of a hash.
    const fn truncate(hash: u64) -> Self {
        Self(hash >> (u64::BITS - Self::BITS))
    }

    /// The print as a number below 2^40. Prints are as random as their hash, so they are spread evenly.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The print's bytes, the highest first: in their order, prints are sorted.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; Self::BYTES] {
        let [_, _, _, a, b, c, d, e] = self.0.to_be_bytes();
        [a, b, c, d, e]
    }

    /// The print with these bytes.
    #[must_use]
    pub const fn from_bytes([a, b, c, d, e]: [u8; Self::BYTES]) -> Self {
        Self(u64::from_be_bytes([0, 0, 0, a, b, c, d, e]))
    }
}

impl fmt::Debug for BlockPrint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.to_bytes()).fmt(f)
    }
}

/// Cuts a content whose bytes come piece by piece. Holds a page at most.
#[derive(Clone, Debug, Default)]
pub struct Cutter {
    /// The beginning of a page whose end hasn't come.
    page: Vec<u8>,
    /// Hashes of the pages of a block that hasn't ended.
    open: Vec<u64>,
    /// Pages of zeros whose end hasn't come.
    zeros: u32,
}

impl Cutter {
    /// Takes the next bytes. Hands over each piece that has ended.
    pub fn take(&mut self, mut bytes: &[u8], piece: &mut dyn FnMut(Piece)) {
        if !self.page.is_empty() {
            let wanted = PAGE_BYTES - self.page.len();
            let (now, later) = bytes.split_at(wanted.min(bytes.len()));
            self.page.extend_from_slice(now);
            bytes = later;
            if self.page.len() < PAGE_BYTES {
                return;
            }
            let page = core::mem::take(&mut self.page);
            self.page(&page, piece);
            self.page = page;
            self.page.clear();
        }
        let (pages, rest) = bytes.as_chunks::<PAGE_BYTES>();
        for page in pages {
            self.page(page, piece);
        }
        self.page.extend_from_slice(rest);
    }

    /// The content has no more bytes: hands over the last piece.
    pub fn finish(mut self, piece: &mut dyn FnMut(Piece)) {
        let page = core::mem::take(&mut self.page);
        if !page.is_empty() {
            self.page(&page, piece);
        }
        self.end_block(piece);
        self.end_zeros(piece);
    }

    fn page(&mut self, page: &[u8], piece: &mut dyn FnMut(Piece)) {
        if is_zero(page) {
            self.end_block(piece);
            self.zeros += 1;
            return;
        }
        self.end_zeros(piece);
        let hash = XxHash3_64::oneshot(page);
        self.open.push(hash);
        let ends = page.len() == PAGE_BYTES && is_zero(&page[PAGE_BYTES - END_ZEROS..]);
        if hash <= ENDS_BELOW || ends || self.open.len() == MAX_BLOCK_PAGES as usize {
            self.end_block(piece);
        }
    }

    fn end_block(&mut self, piece: &mut dyn FnMut(Piece)) {
        let Some(pages) = u8::try_from(self.open.len())
            .ok()
            .filter(|pages| *pages > 0)
        else {
            return;
        };
        let print = BlockPrint::of_pages(&self.open);
        self.open.clear();
        piece(Piece::Block(Block { pages, print }));
    }

    fn end_zeros(&mut self, piece: &mut dyn FnMut(Piece)) {
        let pages = core::mem::take(&mut self.zeros);
        if pages > 0 {
            piece(Piece::Zeros { pages });
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // the ends first: most pages of data are found out there
    bytes.first().is_none_or(|byte| *byte == 0) && bytes.iter().all(|byte| *byte == 0)
}

/// All blocks of a content, as a column of its recipe. Empty: nothing is known of the content's blocks.
///
/// - `lengths`: a half byte for each piece, the lower half of a byte first. 1 to 15: a block of so many pages. 0: a run
///   of zeros, whose pages follow in half bytes with 3 bits each, the lowest first; the highest bit of each says that
///   another one follows. An odd number of half bytes ends in one more 0.
/// - `prints`: 5 bytes for each block, the highest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    lengths: Vec<u8>,
    /// Whether the higher half of the last byte of `lengths` is free.
    half: bool,
    prints: Vec<u8>,
}

/// A place between two pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Half bytes of lengths before it.
    half: u32,
    /// Blocks before it.
    block: u32,
    /// Pages before it.
    page: u32,
}

/// Why a column of blocks isn't one of its content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlocksError {
    /// The column has more bytes than a maker gives it.
    #[error("they have {bytes} bytes; {most} are the most for its size")]
    TooMany {
        /// The bytes of the column.
        bytes: u64,
        /// The most that are read.
        most: u64,
    },
    /// The lengths end before the content does, or go on behind its end.
    #[error("their lengths are those of {pages} pages or more; the content has {wanted}")]
    Lengths {
        /// The pages up to the length that doesn't fit.
        pages: u64,
        /// The pages of the content.
        wanted: u64,
    },
    /// Two runs of zeros follow each other. A maker makes one of them; many would cost a reader memory for nothing.
    #[error("a run of zeros ends at page {page}, and another one follows")]
    Runs {
        /// The page between the two runs.
        page: u64,
    },
    /// There is another number of prints than of blocks.
    #[error("there are {bytes} bytes of prints, not {wanted}")]
    Prints {
        /// The bytes of prints.
        bytes: usize,
        /// The bytes that the prints of all blocks have.
        wanted: usize,
    },
}

impl Blocks {
    /// Nothing is known.
    pub const EMPTY: Self = Self {
        lengths: Vec::new(),
        half: false,
        prints: Vec::new(),
    };

    /// The most bytes of the column of a content.
    #[must_use]
    pub fn max_bytes(geometry: Geometry) -> u64 {
        MAX_BYTES_PER_CHUNK * u64::from(geometry.chunks())
    }

    /// The pages of a content. The last one may be shorter.
    #[must_use]
    pub const fn pages(geometry: Geometry) -> u64 {
        geometry.size().div_ceil(PAGE_BYTES as u64)
    }

    /// Reads the column of a content.
    ///
    /// # Errors
    /// When the lengths don't add up to the content's size, blocks and prints aren't as many, runs of zeros follow each
    /// other, or there are too many. So there are at most one more runs of zeros than blocks.
    pub fn parse(
        lengths: Vec<u8>,
        prints: Vec<u8>,
        geometry: Geometry,
    ) -> Result<Self, BlocksError> {
        let read = Self {
            lengths,
            half: false,
            prints,
        };
        let (bytes, most) = (read.bytes(), Self::max_bytes(geometry));
        if bytes > most {
            return Err(BlocksError::TooMany { bytes, most });
        }
        if read.is_empty() {
            return Ok(Self::default());
        }
        let wanted = Self::pages(geometry);
        let (mut pages, mut blocks) = (0, 0);
        let mut after_zeros = false;
        let mut lengths = HalfBytes::new(&read.lengths);
        while pages < wanted {
            match lengths.length() {
                Some(Length::Block(length)) => {
                    pages += u64::from(length);
                    blocks += 1;
                    after_zeros = false;
                }
                Some(Length::Zeros(length)) if length > 0 => {
                    if after_zeros {
                        return Err(BlocksError::Runs { page: pages });
                    }
                    pages += u64::from(length);
                    after_zeros = true;
                }
                _ => return Err(BlocksError::Lengths { pages, wanted }),
            }
        }
        // an odd number of half bytes is filled up
        let half = lengths.left() == 1;
        if lengths.left() > 1 || half && lengths.next() != Some(0) {
            pages += 1;
        }
        if pages != wanted {
            return Err(BlocksError::Lengths { pages, wanted });
        }
        let (bytes, wanted) = (read.prints.len(), blocks * BlockPrint::BYTES);
        if bytes != wanted {
            return Err(BlocksError::Prints { bytes, wanted });
        }
        Ok(Self { half, ..read })
    }

    /// Appends a piece.
    pub fn push(&mut self, piece: Piece) {
        match piece {
            Piece::Block(block) => {
                self.half_byte(block.pages);
                self.prints.extend_from_slice(&block.print.to_bytes());
            }
            Piece::Zeros { mut pages } => {
                self.half_byte(0);
                loop {
                    let low = (pages & ((1 << RUN_BITS) - 1)) as u8;
                    pages >>= RUN_BITS;
                    let more = u8::from(pages > 0) << RUN_BITS;
                    self.half_byte(low | more);
                    if pages == 0 {
                        break;
                    }
                }
            }
        }
    }

    fn half_byte(&mut self, value: u8) {
        match self.lengths.last_mut().filter(|_| self.half) {
            Some(last) => *last |= value << 4,
            None => self.lengths.push(value),
        }
        self.half = !self.half;
    }

    /// Whether nothing is known of the content's blocks.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.lengths.is_empty() && self.prints.is_empty()
    }

    /// The bytes of the column.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.lengths.len() as u64 + self.prints.len() as u64
    }

    /// The number of blocks.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.prints.len() / BlockPrint::BYTES
    }

    /// The two parts of the column: the lengths, and the prints.
    #[must_use]
    pub fn parts(&self) -> (&[u8], &[u8]) {
        (&self.lengths, &self.prints)
    }

    /// For each run of so many pages of the content the place before the piece that its first page is part of. 12 bytes
    /// for each.
    ///
    /// # Panics
    /// When a run has no pages.
    #[must_use]
    pub fn marks(&self, run_pages: u32) -> Vec<Mark> {
        assert!(run_pages > 0, "a run has pages");
        let mut lengths = HalfBytes::new(&self.lengths);
        let (mut marks, mut mark) = (Vec::new(), Mark::default());
        while let Some(length) = lengths.length() {
            let (pages, blocks) = match length {
                Length::Block(pages) => (u32::from(pages), 1),
                Length::Zeros(0) => break,
                Length::Zeros(pages) => (pages, 0),
            };
            let end = mark.page.saturating_add(pages);
            let runs = mark.page.div_ceil(run_pages)..end.div_ceil(run_pages);
            marks.extend(runs.map(|_| mark));
            mark = Mark {
                half: u32::try_from(lengths.at).unwrap_or(u32::MAX),
                block: mark.block.saturating_add(blocks),
                page: end,
            };
        }
        marks
    }

    /// All pieces, each with the number of its first page in the content.
    pub fn pieces(&self) -> impl Iterator<Item = (u32, Piece)> {
        self.pieces_from(Mark::default())
    }

    /// The pieces behind a mark of [`marks`](Self::marks), as [`pieces`](Self::pieces) has them.
    pub fn pieces_from(&self, mark: Mark) -> impl Iterator<Item = (u32, Piece)> {
        let mut lengths = HalfBytes {
            at: mark.half as usize,
            ..HalfBytes::new(&self.lengths)
        };
        let prints = self.prints.as_chunks::<{ BlockPrint::BYTES }>().0;
        let mut prints = prints.iter().skip(mark.block as usize);
        let mut page = mark.page;
        core::iter::from_fn(move || {
            let piece = match lengths.length()? {
                Length::Block(pages) => {
                    let print = BlockPrint::from_bytes(*prints.next()?);
                    Piece::Block(Block { pages, print })
                }
                // what fills the last byte
                Length::Zeros(0) => return None,
                Length::Zeros(pages) => Piece::Zeros { pages },
            };
            let at = page;
            page = page.saturating_add(piece.pages());
            Some((at, piece))
        })
    }
}

enum Length {
    Block(u8),
    /// 0 pages: the half byte that fills the last byte.
    Zeros(u32),
}

/// Half bytes, the lower half of each byte first.
struct HalfBytes<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> HalfBytes<'a> {
    const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.at / 2)?;
        let half = byte >> (4 * (self.at % 2)) & 0xf;
        self.at += 1;
        Some(half)
    }

    fn length(&mut self) -> Option<Length> {
        let first = self.next()?;
        if first > 0 {
            return Some(Length::Block(first));
        }
        let (mut pages, mut shift) = (0_u32, 0);
        loop {
            let Some(half) = self.next() else {
                return Some(Length::Zeros(0));
            };
            let low = u32::from(half & ((1 << RUN_BITS) - 1));
            // a length that doesn't fit is longer than any content
            pages |= low
                .checked_shl(shift)
                .filter(|_| shift < u32::BITS - RUN_BITS)?;
            if half >> RUN_BITS == 0 {
                return Some(Length::Zeros(pages));
            }
            shift += RUN_BITS;
        }
    }

    /// The half bytes that weren't read.
    const fn left(&self) -> usize {
        2 * self.bytes.len() - self.at
    }
}

#[cfg(test)]
mod tests;
