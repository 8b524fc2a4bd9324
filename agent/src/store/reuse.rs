//! Puts chunks together, when a stage begins, from blocks that lie on other disks here.
//!
//! `alike` has found the whole chunks that lie there at multiples of a MiB. This module finds bytes that moved by less,
//! and the unchanged parts of chunks that changed. Chunks of which some blocks are found nowhere are left to be
//! fetched, with a note of the rest ([`Stage::lacking_ranges`]).

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use proto::{
    BlockPrint, ChunkIndex, Digest, Layout,
    blocks::{PAGE_BYTES, Piece},
    image::{Format, Place},
};

use super::{
    alike,
    blocks::{Disk, EachBlock, Index, Key, MAX_DISKS, Search, first_pages},
    claim::WriteError,
    found::FoundDisk,
    recipes::{self, Columns},
    shared::Shared,
    stage::Stage,
    tree::INDEX,
};

/// The bytes of a block on average.
const BLOCK_BYTES: u64 = 16 << 10;
/// About so many blocks are looked for to see how much of a disk lies in place: a tenth of a second for each disk, and
/// off by 1 % of the disk.
const MAX_SAMPLES: u64 = 4096;

/// How long a beginning looks for blocks, indexes that are made for that included, and only while somebody waits for
/// the image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Term<'a> {
    shared: &'a Shared,
    image: &'a Digest,
    began: Instant,
    /// What the beginning took for this before.
    spent: Duration,
}

impl<'a> Term<'a> {
    /// The time for this image, of which so much is spent.
    pub(super) fn begin(shared: &'a Shared, image: &'a Digest, spent: Duration) -> Self {
        Self {
            shared,
            image,
            began: Instant::now(),
            spent,
        }
    }

    /// How much is spent by now.
    pub(super) fn spent(&self) -> Duration {
        self.spent.saturating_add(self.began.elapsed())
    }

    fn is_over(&self) -> bool {
        self.shared.is_given_up(self.image) || self.spent() >= self.shared.search()
    }

    /// # Errors
    /// When the time is over, or the program stops.
    fn go_on(&self) -> io::Result<()> {
        self.shared.go_on()?;
        match self.is_over() {
            true => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the search for blocks ends early",
            )),
            false => Ok(()),
        }
    }
}

/// Copies to a stage the chunks that it lacks and whose blocks other images here have, or disks that were found.
/// Returns the bytes of these chunks. `go_on` is asked before each chunk. Ends early when the time is over, of which
/// `spent` was spent before, or nobody waits for the image.
///
/// # Errors
/// When the stage can't be written, or `go_on` returns an error. What can't be read on other disks is left to be
/// fetched.
pub(super) fn copy<E: From<WriteError>>(
    stage: &Stage,
    others: &[Arc<Stage>],
    found: &[FoundDisk],
    spent: Duration,
    go_on: &mut dyn FnMut() -> Result<(), E>,
) -> Result<u64, E> {
    stage.blocks().end();
    let held = stage.chunks();
    let lacking = |at: &usize| !held.held(*at).is_full();
    let contents: Vec<usize> = (0..held.len()).filter(lacking).collect();
    let Some(columns) = columns(stage).filter(|_| !contents.is_empty()) else {
        return Ok(0);
    };
    let image = stage.layout().digest();
    let term = Term::begin(stage.shared(), image, spent);
    let mut disks = Vec::new();
    for other in others {
        go_on()?;
        // an index that is lacking takes a while to make
        if disks.len() < MAX_DISKS && !term.is_over() {
            disks.extend(disk(other, &term));
        }
    }
    for found in found {
        go_on()?;
        if disks.len() < MAX_DISKS {
            match Disk::found(found) {
                Ok(disk) => disks.extend(disk),
                Err(error) => {
                    tracing::debug!(disk = %found.path().display(), %error, "the blocks of a disk aren't found");
                }
            }
        }
    }
    if disks.is_empty() {
        return Ok(0);
    }
    let pieces = stage.shared().pieces().clone();
    let search = Arc::new(Search::new(columns, disks, pieces));
    stage.blocks().begin(search.clone());
    let _open = search.hold_open();
    let mut copied = 0;
    for at in contents {
        let geometry = held.geometry(at);
        let has = held.held(at);
        let lacks = (0..geometry.chunks()).map(ChunkIndex);
        for chunk in lacks.filter(|chunk| !has.contains(*chunk)) {
            go_on()?;
            if term.is_over() {
                tracing::info!(%image, bytes = copied, "the search for blocks ends early; the rest of the image is fetched if it is wanted");
                return Ok(copied);
            }
            if held.chunks(at).recipe_link(chunk).is_none() {
                // the content goes on without the recipe
                break;
            }
            let part = match search.part(at, geometry, chunk) {
                Ok(part) => part,
                Err(error) => {
                    tracing::warn!(content = %held.digest(at), %error, "a recipe's blocks can't be read; nothing is looked for by them");
                    break;
                }
            };
            match part.map(|part| part.whole()) {
                Some(Ok(bytes)) => {
                    if alike::write(stage, (at, chunk), &bytes)? {
                        copied += bytes.len() as u64;
                    } else if !held.is_held(at, chunk) && !stage.blocks().was_false() {
                        return Ok(copied);
                    }
                }
                Some(Err(part)) => stage.blocks().note(at, chunk, &part),
                None => {}
            }
        }
    }
    Ok(copied)
}

/// Blocks of a new image, evenly chosen: enough to say how much of its disk another one has in place.
pub(super) struct Samples {
    /// Print, offset on the image's disk, and bytes.
    blocks: Vec<(BlockPrint, u64, u64)>,
    /// Each stands for so many.
    step: u64,
}

impl Samples {
    /// Samples of this image by its recipe. `None` if the recipe has no blocks, or can't be read in time.
    pub(super) fn of(home: &Path, name: &Digest, layout: &Layout, term: &Term<'_>) -> Option<Self> {
        let columns = Columns::open(home, name, layout).ok()?;
        let step = (layout.disk_bytes() / BLOCK_BYTES / MAX_SAMPLES).max(1);
        let (mut samples, mut number) = (Vec::new(), 0_u64);
        for (at, spec) in layout.contents().iter().enumerate() {
            term.go_on().ok()?;
            for (page, piece) in columns.blocks(at).ok()?.pieces() {
                let (page, pages) = (u64::from(page), u64::from(piece.pages()));
                let within = page * PAGE_BYTES as u64;
                let Piece::Block(block) = piece else {
                    continue;
                };
                number += 1;
                for place in spec.places.iter().filter(|_| number.is_multiple_of(step)) {
                    if let Place::Disk { offset } = place {
                        let bytes = pages * PAGE_BYTES as u64;
                        samples.push((block.print, offset + within, bytes));
                    }
                }
            }
        }
        Some(Self {
            blocks: samples,
            step,
        })
        .filter(|samples| !samples.blocks.is_empty())
    }

    /// About how many bytes of the image's disk another one has at the same offsets, by its index.
    pub(super) fn in_place(&self, disk: &Disk) -> u64 {
        let common = self
            .blocks
            .iter()
            .filter(|(print, offset, bytes)| disk.has_at(*print, (*offset, *bytes)));
        common.map(|(_, _, bytes)| bytes * self.step).sum()
    }
}

/// The blocks of a stage's recipe, if it has one with blocks.
fn columns(stage: &Stage) -> Option<Columns> {
    let name = stage.recipe()?.digest;
    match Columns::open(stage.shared().home(), &name, stage.layout()) {
        Ok(columns) => Some(columns).filter(|columns| !columns.is_empty()),
        Err(error) => {
            tracing::warn!(image = %stage.layout().digest(), %error, "nothing is looked for by the blocks of a recipe");
            None
        }
    }
}

/// Another image's disk, with the index of its blocks, which is made where it is lacking or isn't of the disk any more.
/// `None` too when the time for it is over, and for an image under construction: its index would name what isn't there
/// yet, and would have to be made again after each chunk that comes.
pub(super) fn disk(other: &Arc<Stage>, term: &Term<'_>) -> Option<Disk> {
    let is_whole = other.is_installed() || other.is_complete();
    let file = other.recipe().filter(|_| is_whole && !other.is_gone())?;
    // an index is of one file; what a stacked image has is found as whole chunks
    if other.layout().format() != Format::Flat {
        return None;
    }
    match index(other, file.digest, term) {
        Ok(index) => {
            let held = other.chunks();
            let contents = (0..held.len()).map(|at| (held.geometry(at), held.held(at)));
            let path = other.directory().join(INDEX);
            Some(Disk::new(other.files(), contents.collect(), index?, path))
        }
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            tracing::info!(image = %term.image, other = %other.layout().digest(), %error, "the blocks of an image here aren't indexed now");
            None
        }
        Err(error) => {
            tracing::warn!(image = %other.layout().digest(), %error, "the blocks of an image here can't be indexed; they aren't found");
            None
        }
    }
}

/// Whether the blocks of an image here are found by its recipe: the index of them is there, or it can be made.
pub(super) fn lends_blocks(other: &Stage) -> bool {
    let (Some(file), Some(body)) = (other.recipe(), other.files().bodies().into_iter().next())
    else {
        return false;
    };
    if other.layout().format() != Format::Flat {
        return false;
    }
    let path = other.directory().join(INDEX);
    let index = Key::new(file.digest, body.disk_at(0).0).and_then(|key| Index::open(&path, &key));
    let is_there = index.is_ok_and(|index| index.is_some());
    let stamp = recipes::Stamp::of(other.shared().home(), &file.digest);
    let has_columns = |stamp| {
        let blocks = other.blocks();
        blocks.has_columns((file.digest, stamp), || columns(other).is_some())
    };
    is_there || stamp.is_some_and(has_columns)
}

fn index(other: &Stage, name: Digest, term: &Term<'_>) -> io::Result<Option<Index>> {
    let bodies = other.files().bodies();
    let Some(body) = bodies.first() else {
        return Ok(None);
    };
    let key = Key::new(name, body.disk_at(0).0)?;
    let path = other.directory().join(INDEX);
    if let Some(index) = Index::open(&path, &key)? {
        return Ok(Some(index));
    }
    // of stages that begin at the same time one makes it, and the others find it
    let _indexing = other.shared().indexing(&|| term.go_on())?;
    if let Some(index) = Index::open(&path, &key)? {
        return Ok(Some(index));
    }
    term.go_on()?;
    let Some(columns) = columns(other) else {
        return Ok(None);
    };
    let room = other.shared().room();
    room.admit(
        Index::max_bytes(columns.max_blocks()),
        other.layout().digest(),
    )
    .map_err(|error| io::Error::new(io::ErrorKind::StorageFull, error))?;
    let held = other.chunks();
    let first_pages = first_pages((0..held.len()).map(|at| held.geometry(at)));
    let each: EachBlock<'_> = &mut |take| {
        for (at, first) in first_pages.iter().enumerate() {
            term.go_on()?;
            for (page, piece) in columns.blocks(at)?.pieces() {
                if let Piece::Block(block) = piece
                    // 16 TiB of pages have a number
                    && let Ok(page) = u32::try_from(first + u64::from(page))
                {
                    take(block.print, page);
                }
            }
        }
        Ok(())
    };
    Index::make(&path, &key, each).map(Some)
}
