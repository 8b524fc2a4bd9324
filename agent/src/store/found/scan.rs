//! A disk that is being read: a log of what its bytes are, which grows step by step and outlives restarts.
//!
//! Nothing is trusted because of the log. So it isn't synced; a record that a crash cut off, or that doesn't fit its
//! check, and all that follow are read from the disk again.
//!
//! The log has the header of [`header`], then records. Numbers are little-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 4, 4, 4 | the extent; its first chunk; number of chunks |
//! | 4 | number of blocks |
//! | 8 | the first bytes of the BLAKE3 hash of all other bytes of the record |
//! | 16 × chunks | fingerprints |
//! | 9 × blocks | print (5), page (4, big-endian): as the entries of an index |

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read as _, Seek as _, Write as _},
    ops::Range,
    os::unix::fs::FileExt as _,
    path::Path,
};

use proto::{
    BlockPrint, CHUNK_BYTES, ChunkIndex, Fingerprint, Geometry,
    blocks::{Cutter, PAGE_BYTES, Piece},
};

use crate::{
    platform,
    store::{
        blocks::index::{Key, first_pages},
        place::ZEROS,
    },
};

const MAGIC: [u8; 8] = *b"pbscan\0\x01";
const RECORD_BYTES: usize = 24;
const PRINT_BYTES: usize = 16;
const ENTRY_BYTES: usize = 9;
const PAGES_PER_CHUNK: u32 = 256;
/// The most chunks of a record. A block that goes on behind them isn't found: one in four thousand.
const RECORD_CHUNKS: u32 = 64;

/// A run of a disk that is cut into chunks and blocks as a content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Extent {
    /// Where it begins on the disk.
    pub(in crate::store) offset: u64,
    pub(in crate::store) geometry: Geometry,
}

/// The bytes with which a file about this disk begins.
pub(in crate::store) fn header(key: &Key) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(key.to_bytes());
    bytes
}

/// A disk that is being read.
#[derive(Debug)]
pub(in crate::store) struct Scan {
    log: File,
    header_bytes: u64,
    /// Where the next record goes.
    end: u64,
    extents: Vec<Extent>,
    first_pages: Vec<u64>,
    /// What is read next: the extent, and the chunk.
    next: (usize, u32),
}

/// The first numbers of a record.
#[derive(Clone, Copy, Debug)]
struct Head {
    extent: usize,
    first: u32,
    chunks: u32,
    blocks: u32,
    check: [u8; 8],
}

impl Scan {
    /// Goes on where the log in this file ends. A log of something else is begun anew.
    pub(in crate::store) fn open(path: &Path, key: &Key, extents: &[Extent]) -> io::Result<Self> {
        let log = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let header = header(key);
        let mut scan = Self {
            header_bytes: header.len() as u64,
            end: header.len() as u64,
            first_pages: first_pages(extents.iter().map(|extent| extent.geometry)),
            extents: extents.to_vec(),
            next: (0, 0),
            log,
        };
        let mut found = vec![0; header.len()];
        let fits = scan.log.read_exact_at(&mut found, 0).is_ok() && found == header;
        if fits {
            scan.go_on()?;
        } else {
            scan.log.set_len(0)?;
            scan.log.write_all_at(&header, 0)?;
        }
        scan.log.set_len(scan.end)?;
        Ok(scan)
    }

    /// Goes over the records, up to the first one that doesn't fit.
    fn go_on(&mut self) -> io::Result<()> {
        let (mut next, mut end) = ((0, 0), self.header_bytes);
        let extents = self.extents.clone();
        self.records(&mut |head, body| {
            let follows = (head.extent, head.first) == skip(&extents, next);
            if !follows || head.check != check(&head, body) {
                return false;
            }
            end += (RECORD_BYTES + body.len()) as u64;
            next = (head.extent, head.first + head.chunks);
            true
        })?;
        (self.next, self.end) = (skip(&self.extents, next), end);
        Ok(())
    }

    /// Whether the whole disk was read.
    pub(in crate::store) fn is_done(&self) -> bool {
        self.next.0 >= self.extents.len()
    }

    /// Bytes of the disk that weren't read yet, with those that are holes.
    pub(in crate::store) fn left_bytes(&self) -> u64 {
        let (at, chunk) = self.next;
        let rest = self.extents.iter().skip(at);
        let all: u64 = rest.map(|extent| extent.geometry.size()).sum();
        all.saturating_sub(u64::from(chunk) * CHUNK_BYTES)
    }

    /// Reads the next chunks of the disk, without its holes: those of one record, of which so many have data at most.
    /// Returns how many have. `go_on` is asked before each chunk.
    ///
    /// # Errors
    /// When the disk can't be read, or the log not written; and those of `go_on`. The same chunks are read by the next
    /// call then.
    pub(in crate::store) fn step(
        &mut self,
        disk: &File,
        most: u32,
        go_on: &dyn Fn() -> io::Result<()>,
    ) -> io::Result<u32> {
        let (at, first) = self.next;
        let Some(extent) = self.extents.get(at).copied() else {
            return Ok(0);
        };
        let geometry = extent.geometry;
        let last = geometry.chunks().min(first + RECORD_CHUNKS);
        let mut body = Vec::new();
        let mut entries: Vec<u8> = Vec::new();
        let mut page = self.first_pages[at] + u64::from(first) * (CHUNK_BYTES / PAGE_BYTES as u64);
        let mut piece = |piece: Piece| {
            // 16 TiB of pages have a number
            if let (Piece::Block(block), Ok(page)) = (piece, u32::try_from(page)) {
                entries.extend(block.print.to_bytes());
                entries.extend(page.to_be_bytes());
            }
            page += u64::from(piece.pages());
        };
        let mut cutter = Cutter::default();
        let mut bytes = Vec::new();
        let mut hole = None;
        let (mut end, mut data) = (first, 0);
        while end < last && data < most {
            go_on()?;
            let chunk = ChunkIndex(end);
            let offset = extent.offset + geometry.offset(chunk);
            let length = u64::from(geometry.len(chunk));
            let has_data = platform::has_data(disk, offset..offset + length);
            end += 1;
            if !has_data && length == CHUNK_BYTES {
                // as zeros that are read, without the work
                let print = *hole.get_or_insert_with(|| Fingerprint::of(&ZEROS));
                body.extend(print.0);
                std::mem::take(&mut cutter).finish(&mut piece);
                piece(Piece::Zeros {
                    pages: PAGES_PER_CHUNK,
                });
                continue;
            }
            bytes.clear();
            bytes.resize(geometry.len(chunk) as usize, 0);
            if has_data {
                disk.read_exact_at(&mut bytes, offset)?;
                data += 1;
            }
            body.extend(Fingerprint::of(&bytes).0);
            cutter.take(&bytes, &mut piece);
        }
        cutter.finish(&mut piece);
        body.append(&mut entries);
        self.append(at, first..end, &body)?;
        Ok(data)
    }

    fn append(&mut self, extent: usize, chunks: Range<u32>, body: &[u8]) -> io::Result<()> {
        let count = chunks.end - chunks.start;
        let blocks = (body.len() - PRINT_BYTES * count as usize) / ENTRY_BYTES;
        let number = |number: usize| u32::try_from(number).map_err(io::Error::other);
        let mut head = Head {
            extent,
            first: chunks.start,
            chunks: count,
            blocks: number(blocks)?,
            check: [0; 8],
        };
        head.check = check(&head, body);
        let mut record = Vec::with_capacity(RECORD_BYTES + body.len());
        for number in [number(extent)?, head.first, head.chunks, head.blocks] {
            record.extend(number.to_le_bytes());
        }
        record.extend(head.check);
        record.extend(body);
        self.log.write_all_at(&record, self.end)?;
        self.end += record.len() as u64;
        self.next = skip(&self.extents, (extent, chunks.end));
        Ok(())
    }

    /// Hands over each record, as long as `take` wants more.
    fn records(&self, take: &mut dyn FnMut(Head, &[u8]) -> bool) -> io::Result<()> {
        let mut file = &self.log;
        file.seek(io::SeekFrom::Start(self.header_bytes))?;
        let mut from = BufReader::new(file);
        let (mut head, mut body) = ([0; RECORD_BYTES], Vec::new());
        loop {
            match from.read_exact(&mut head) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                read => read?,
            }
            let (numbers, check) = head.split_last_chunk::<8>().expect("a head is longer");
            let (numbers, _) = numbers.as_chunks::<4>();
            let number = |at: usize| u32::from_le_bytes(numbers[at]);
            let head = Head {
                extent: number(0) as usize,
                first: number(1),
                chunks: number(2),
                blocks: number(3),
                check: *check,
            };
            // a page has a block at most; checked before anything of this length is allocated
            if head.chunks > RECORD_CHUNKS || head.blocks > RECORD_CHUNKS * PAGES_PER_CHUNK {
                return Ok(());
            }
            body.clear();
            body.resize(head.body_bytes(), 0);
            match from.read_exact(&mut body) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                read => read?,
            }
            if !take(head, &body) {
                return Ok(());
            }
        }
    }

    /// Hands over each block that was found, with the page where it begins. `go_on` is asked before each record.
    ///
    /// # Errors
    /// When the log can't be read; and those of `go_on`.
    pub(in crate::store) fn each_block(
        &self,
        go_on: &dyn Fn() -> io::Result<()>,
        take: &mut dyn FnMut(BlockPrint, u32),
    ) -> io::Result<()> {
        let mut went_on = Ok(());
        self.records(&mut |head, body| {
            went_on = go_on();
            if went_on.is_err() {
                return false;
            }
            let (entries, _) = body[head.prints_bytes()..].as_chunks::<ENTRY_BYTES>();
            for [a, b, c, d, e, page @ ..] in entries {
                let print = BlockPrint::from_bytes([*a, *b, *c, *d, *e]);
                take(print, u32::from_be_bytes(*page));
            }
            true
        })?;
        went_on
    }

    /// Writes the fingerprints of all chunks to a file, behind the header.
    pub(in crate::store) fn write_prints(&self, path: &Path, key: &Key) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(&header(key))?;
        let mut written = Ok(());
        self.records(&mut |head, body| {
            written = file.write_all(&body[..head.prints_bytes()]);
            written.is_ok()
        })?;
        written?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(())
    }
}

impl Head {
    const fn prints_bytes(&self) -> usize {
        PRINT_BYTES * self.chunks as usize
    }

    const fn body_bytes(&self) -> usize {
        self.prints_bytes() + ENTRY_BYTES * self.blocks as usize
    }
}

fn check(head: &Head, body: &[u8]) -> [u8; 8] {
    let mut hash = blake3::Hasher::new();
    for number in [head.extent as u64, head.first.into(), head.blocks.into()] {
        hash.update(&number.to_le_bytes());
    }
    hash.update(body);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finalize().as_bytes()[..8]);
    first
}

/// The place itself, or the beginning of the next extent where the place is an extent's end.
fn skip(extents: &[Extent], (mut at, mut chunk): (usize, u32)) -> (usize, u32) {
    while extents
        .get(at)
        .is_some_and(|extent| chunk >= extent.geometry.chunks())
    {
        (at, chunk) = (at + 1, 0);
    }
    (at, chunk)
}
