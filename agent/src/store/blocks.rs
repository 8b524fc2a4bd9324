//! Blocks of an image's lacking chunks, found on the disks of other images here.
//!
//! An image's recipe names the blocks of each content, and an [`Index`] says where blocks of other images lie. So of a
//! chunk that lies nowhere as a whole, a part may be here: its bytes moved, or some of them are new. [`Search`] looks
//! for it. [`Blocks`] is what a stage knows of such parts: 32 bytes for each chunk. Bytes that were found aren't kept;
//! they are read again when the rest has come.
//!
//! What is found is a guess. An entry of an index may be wrong, and a disk may have changed: each block is hashed after
//! it was read, and whole chunks are compared with their links before anything is stored.

pub(super) mod index;
mod part;
pub(super) mod pieces;

use std::{
    collections::BTreeMap,
    fs, io,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU32, Ordering},
    },
};

use proto::{BlockPrint, CHUNK_BYTES, ChunkIndex, ChunkSet, Digest, Geometry, blocks::Piece};

pub(super) use self::index::{EachBlock, Index, Key, first_pages};
pub use self::part::{ChunkPart, FillError};
use self::{
    part::Pages,
    pieces::{PAGES_PER_CHUNK, Pieces, SearchId},
};
use super::{
    files::{ImageFiles, Where},
    found::{FoundDisk, OpenDisk},
    held::Held,
    place::{Access, Files},
    recipes::{Columns, Stamp},
};
use crate::lock::lock;

const PAGE: u64 = 4096;
/// The most disks that are searched. Their indexes have 4 MB in memory.
pub(super) const MAX_DISKS: usize = 16;
/// The places on one disk that are looked at for a block. A print is shared by accident by one block in 84,000, and by
/// purpose by as many as somebody likes.
const MAX_CANDIDATES: usize = 4;
/// The places of a block on one disk among which one is looked for.
const MAX_SAME: usize = 64;
/// So many blocks that aren't where an index says, and its disk isn't searched any more: it has changed. By accident
/// that happens to 160 of the 13 million blocks of 140 GB.
const MAX_WRONG: u32 = 1024;

/// So many chunks that were put together of blocks and weren't the chunks, and no more are, in this stage: the recipe
/// names other bytes' blocks. Each cost up to 7/8 of a MiB. By accident that happens to a few of the chunks of 140 GB
/// for each disk that is searched: a look-up in 84,000 finds another block, and few of those have the same length.
pub(super) const MAX_FALSE_PARTS: u32 = 64;

/// Whose disk it is.
#[derive(Debug)]
enum Whose {
    /// Another image's, whose files are gone with it. For each content, its geometry and the chunks that were held.
    Image(Weak<ImageFiles>, Vec<(Geometry, ChunkSet)>),
    /// Nobody's that we know: a disk that was found, as it was when it was read.
    Found(FoundDisk, Key, Mutex<Option<Arc<OpenDisk>>>),
}

/// Holds the disks of a search open that were found, while many blocks are read.
#[derive(Debug)]
pub(super) struct HeldOpen<'a>(&'a Search);

impl Drop for HeldOpen<'_> {
    fn drop(&mut self) {
        for disk in &self.0.disks {
            if let Whose::Found(_, _, open) = &disk.whose {
                lock(open).take();
            }
        }
    }
}

/// A disk, with an index of its blocks.
#[derive(Debug)]
pub(super) struct Disk {
    whose: Whose,
    /// Where contents begin on the disk, in order, with their numbers.
    starts: Vec<(u64, usize)>,
    first_pages: Vec<u64>,
    index: Index,
    path: PathBuf,
    /// Blocks that weren't where the index says.
    wrong: AtomicU32,
}

impl Disk {
    /// The disk with these files. For each content, its geometry and the chunks that are held now.
    pub(super) fn new(
        files: &Arc<ImageFiles>,
        contents: Vec<(Geometry, ChunkSet)>,
        index: Index,
        path: PathBuf,
    ) -> Self {
        let places = |at| files.places(at).iter().map(move |place| (place, at));
        let starts = (0..contents.len()).flat_map(places);
        let starts = starts.filter_map(|(place, at)| match place {
            Where::Disk(offset) => Some((*offset, at)),
            _ => None,
        });
        let mut starts: Vec<(u64, usize)> = starts.collect();
        starts.sort_unstable();
        Self {
            starts,
            first_pages: first_pages(contents.iter().map(|(geometry, _)| *geometry)),
            whose: Whose::Image(Arc::downgrade(files), contents),
            index,
            path,
            wrong: AtomicU32::new(0),
        }
    }

    /// A disk that was found, if it was read and is as it was then.
    pub(super) fn found(disk: &FoundDisk) -> io::Result<Option<Self>> {
        let Some((index, key, path)) = disk.index()? else {
            return Ok(None);
        };
        let extents = disk.extents();
        let geometries = extents.iter().map(|extent| extent.geometry);
        let offsets = extents.iter().map(|extent| extent.offset);
        let mut starts: Vec<(u64, usize)> = offsets.zip(0..).collect();
        starts.sort_unstable();
        Ok(Some(Self {
            starts,
            first_pages: first_pages(geometries),
            whose: Whose::Found(disk.clone(), key, Mutex::default()),
            index,
            path,
            wrong: AtomicU32::new(0),
        }))
    }

    /// Whether a block with this print and these bytes lies at an offset of the disk, as the index says, in chunks that
    /// are held. The disk isn't read.
    pub(super) fn has_at(&self, print: BlockPrint, (offset, bytes): (u64, u64)) -> bool {
        let next = self.starts.partition_point(|(start, _)| *start <= offset);
        let Some((start, at)) = next.checked_sub(1).map(|last| self.starts[last]) else {
            return false;
        };
        let within = offset - start;
        let page = u32::try_from(self.first_pages[at] + within / PAGE);
        let found = self.index.find(print, MAX_SAME);
        within.is_multiple_of(PAGE)
            && self.holds(at, within..within + bytes)
            && page.is_ok_and(|page| found.is_ok_and(|found| found.contains(&page)))
    }

    /// Whether these bytes of a content lie in chunks that were held. Of a disk that was found, all are there.
    fn holds(&self, at: usize, bytes: Range<u64>) -> bool {
        let Whose::Image(_, contents) = &self.whose else {
            return true;
        };
        let mut chunks = bytes.start / CHUNK_BYTES..bytes.end.div_ceil(CHUNK_BYTES);
        let is_held = |chunk| {
            u32::try_from(chunk).is_ok_and(|chunk| contents[at].1.contains(ChunkIndex(chunk)))
        };
        chunks.all(is_held)
    }

    /// The bytes of a block with this print and length; `None` if the disk doesn't have them where the index says.
    fn find(&self, print: BlockPrint, length: usize) -> Option<Vec<u8>> {
        if self.wrong.load(Ordering::Relaxed) >= MAX_WRONG {
            return None;
        }
        let Ok(pages) = self.index.find(print, MAX_CANDIDATES) else {
            self.was_wrong();
            return None;
        };
        for page in pages {
            match self.read(u64::from(page), length) {
                Ok(Some(bytes)) if BlockPrint::of(&bytes) == print => return Some(bytes),
                // a chunk that isn't held says nothing about the index, nor a disk that changed since
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => self.was_wrong(),
            }
        }
        None
    }

    /// The bytes at a page; `None` if they aren't held any more.
    fn read(&self, page: u64, length: usize) -> io::Result<Option<Vec<u8>>> {
        let at = self.first_pages.partition_point(|first| *first <= page);
        let at = at.checked_sub(1).ok_or(io::ErrorKind::InvalidData)?;
        let start = (page - self.first_pages[at]) * PAGE;
        let end = start + length as u64;
        let geometry = match &self.whose {
            Whose::Image(_, contents) => contents[at].0,
            Whose::Found(disk, ..) => disk.extents()[at].geometry,
        };
        if end > geometry.size() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = vec![0; length];
        let files = match &self.whose {
            Whose::Image(files, _) => files.upgrade(),
            Whose::Found(disk, key, open) => {
                let offset = disk.extents()[at].offset + start;
                let held_open = lock(open).clone();
                let read = match held_open {
                    Some(open) => open.read_at(offset, &mut bytes)?,
                    None => disk.open_as(*key)?.read_at(offset, &mut bytes)?,
                };
                return Ok(read.map(|()| bytes));
            }
        };
        let Some(files) = files.filter(|_| self.holds(at, start..end)) else {
            return Ok(None);
        };
        files.each(at, Access::Read, &mut |place, file, base| match place {
            0 => file.read_exact_at(&mut bytes, base + start),
            _ => Ok(()),
        })?;
        Ok(Some(bytes))
    }

    fn was_wrong(&self) {
        if self.wrong.fetch_add(1, Ordering::Relaxed) + 1 == MAX_WRONG {
            tracing::warn!(index = %self.path.display(), wrong = MAX_WRONG, "an index of blocks isn't of the disk that is there; it is dropped");
            // the next stage makes it again
            if let Err(error) = fs::remove_file(&self.path) {
                tracing::debug!(index = %self.path.display(), %error, "a useless index stays");
            }
        }
    }
}

/// A search for the blocks of one image on the disks of others.
#[derive(Debug)]
pub(super) struct Search {
    columns: Columns,
    disks: Vec<Disk>,
    /// Those of all searches, of which this one has a number.
    pieces: Arc<Pieces>,
    id: SearchId,
}

impl Drop for Search {
    fn drop(&mut self) {
        self.pieces.end(self.id);
    }
}

impl Search {
    /// A search by this recipe, on the first of these disks first. What is read of the recipe lies in `pieces`.
    pub(super) fn new(columns: Columns, disks: Vec<Disk>, pieces: Arc<Pieces>) -> Self {
        Self {
            columns,
            disks,
            id: pieces.begin(),
            pieces,
        }
    }

    /// Holds the disks open that were found, until what is returned is dropped. Otherwise each block opens its disk, so
    /// that one that is removed while a stage fills keeps no room.
    pub(super) fn hold_open(&self) -> HeldOpen<'_> {
        for disk in &self.disks {
            if let Whose::Found(found, key, open) = &disk.whose {
                *lock(open) = found.open_as(*key).ok().map(Arc::new);
            }
        }
        HeldOpen(self)
    }

    /// What is here of a chunk: zeros, and blocks that were found. `None` if no block was.
    ///
    /// # Errors
    /// When the recipe can't be read.
    pub(super) fn part(
        &self,
        at: usize,
        geometry: Geometry,
        chunk: ChunkIndex,
    ) -> io::Result<Option<ChunkPart>> {
        let read = || self.columns.blocks(at);
        let pieces = self.pieces.of_chunk((self.id, at), chunk, read)?;
        let first = u64::from(chunk.0) * u64::from(PAGES_PER_CHUNK);
        let chunk_bytes = geometry.len(chunk);
        let end = first + u64::from(chunk_bytes).div_ceil(PAGE);
        let behind = |(page, piece): &(u32, Piece)| u64::from(*page) + u64::from(piece.pages());
        let mut part = ChunkPart::new(chunk_bytes);
        let mut found = false;
        for piece in &pieces {
            let page = u64::from(piece.0);
            let within = page.max(first)..behind(piece).min(end);
            let in_chunk = narrow(within.start - first)..narrow(within.end - first);
            let block = match piece.1 {
                Piece::Zeros { .. } => {
                    part.zeros(in_chunk);
                    continue;
                }
                Piece::Block(block) => block,
            };
            let length = (geometry.size() - page * PAGE).min(u64::from(block.pages) * PAGE);
            let length = narrow(length) as usize;
            let mut bytes = self
                .disks
                .iter()
                .filter_map(|disk| disk.find(block.print, length));
            if let Some(bytes) = bytes.next() {
                let from = narrow((within.start - page) * PAGE) as usize;
                let to = length.min(narrow((within.end - page) * PAGE) as usize);
                // whole pages of the chunk, as blocks are
                found |= part
                    .fill(narrow(within.start * PAGE - first * PAGE), &bytes[from..to])
                    .is_ok();
            }
        }
        Ok(found.then_some(part))
    }
}

/// A number of bytes or pages of one chunk or block.
fn narrow(number: u64) -> u32 {
    u32::try_from(number).expect("a chunk or a block has no more")
}

/// What a stage knows of parts of its lacking chunks.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    found: Mutex<Option<Found>>,
    /// Whether the stage's recipe, whose file was this one, names blocks. Locked while that is found out.
    columns: Mutex<Option<((Digest, Stamp), bool)>>,
}

#[derive(Debug)]
struct Found {
    search: Arc<Search>,
    /// The pages that were found, by the content's number in the stage.
    parts: BTreeMap<(usize, ChunkIndex), Pages>,
    /// Parts that weren't their chunks'.
    wrong: u32,
}

impl Found {
    fn forget(&mut self, at: usize, chunk: ChunkIndex) {
        if self.parts.remove(&(at, chunk)).is_some() {
            self.search.pieces.drop_parts(1);
        }
    }
}

impl Drop for Found {
    fn drop(&mut self) {
        self.search.pieces.drop_parts(self.parts.len());
    }
}

impl Blocks {
    /// Looks by this search from now on, and forgets what others found.
    pub(super) fn begin(&self, search: Arc<Search>) {
        *lock(&self.found) = Some(Found {
            search,
            parts: BTreeMap::new(),
            wrong: 0,
        });
    }

    /// Whether the recipe of the stage names blocks. It is read again if its file changed.
    pub(super) fn has_columns(&self, file: (Digest, Stamp), read: impl FnOnce() -> bool) -> bool {
        let mut columns = lock(&self.columns);
        match *columns {
            Some((known, has)) if known == file => has,
            _ => columns.insert((file, read())).1,
        }
    }

    /// A chunk that was put together of blocks wasn't the chunk. Returns whether blocks are looked for all the same.
    pub(super) fn was_false(&self) -> bool {
        let mut all = lock(&self.found);
        let Some(found) = &mut *all else {
            return false;
        };
        found.wrong += 1;
        if found.wrong >= MAX_FALSE_PARTS {
            tracing::warn!(
                parts = found.wrong,
                "what an image's recipe says of blocks is false; no more of them are taken from other images here"
            );
            *all = None;
        }
        all.is_some()
    }

    #[cfg(test)]
    pub(super) fn false_parts(&self) -> u32 {
        lock(&self.found).as_ref().map_or(0, |found| found.wrong)
    }

    /// Forgets everything: no chunk is lacking any more, or what is found is false.
    pub(super) fn end(&self) {
        *lock(&self.found) = None;
    }

    /// Remembers which part of a chunk was found.
    pub(super) fn note(&self, at: usize, chunk: ChunkIndex, part: &ChunkPart) {
        if let Some(found) = &mut *lock(&self.found)
            && (found.parts.contains_key(&(at, chunk)) || found.search.pieces.add_part())
        {
            found.parts.insert((at, chunk), *part.pages());
        }
    }

    /// Forgets the part of a chunk.
    pub(super) fn forget(&self, at: usize, chunk: ChunkIndex) {
        if let Some(found) = &mut *lock(&self.found) {
            found.forget(at, chunk);
        }
    }

    /// The byte ranges of a chunk that aren't here. `None` if no part of the chunk is known, or nobody needs it.
    pub(super) fn lacking<F: Files>(
        &self,
        held: &Held<F>,
        at: usize,
        chunk: ChunkIndex,
    ) -> Option<Vec<Range<u32>>> {
        if !is_wanted(held, at, chunk) {
            return None;
        }
        let found = lock(&self.found);
        let pages = found.as_ref()?.parts.get(&(at, chunk))?;
        Some(pages.lacking(held.geometry(at).len(chunk)))
    }

    /// Reads the part of a chunk that is here now. `None` if no part of the chunk was known, or none is here.
    pub(super) fn part<F: Files>(
        &self,
        held: &Held<F>,
        at: usize,
        chunk: ChunkIndex,
    ) -> Option<ChunkPart> {
        if !is_wanted(held, at, chunk) {
            return None;
        }
        let search = {
            let found = lock(&self.found);
            let found = found.as_ref()?;
            found.parts.get(&(at, chunk))?;
            found.search.clone()
        };
        let part = match search.part(at, held.geometry(at), chunk) {
            Ok(part) => part.filter(|part| !part.pages().is_empty()),
            Err(error) => {
                tracing::warn!(content = %held.digest(at), chunk = chunk.0, %error, "a recipe's blocks can't be read again; the chunk is asked for as a whole");
                None
            }
        };
        if let Some(found) = &mut *lock(&self.found) {
            match (&part, found.parts.get_mut(&(at, chunk))) {
                (Some(part), Some(pages)) => *pages = *part.pages(),
                // another thread has forgotten it
                (Some(_), None) => {}
                (None, _) => found.forget(at, chunk),
            }
        }
        part
    }
}

/// Whether a part of the chunk is of use: the chunk is lacking, and the recipe by which blocks were found is believed.
fn is_wanted<F: Files>(held: &Held<F>, at: usize, chunk: ChunkIndex) -> bool {
    let chunks = held.chunks(at);
    !chunks.held().contains(chunk) && chunks.recipe_link(chunk).is_some()
}
