//! Chunks of an image that lie on other disks here, at any offset that both disks cut alike.
//!
//! The image's recipe gives the fingerprint of each of its chunks. The fingerprints of other images' chunks are in
//! their journals, and those of found disks in the notes on these disks. So nothing is read to find what is alike. What
//! is found is compared with the recipe: a wrong fingerprint costs a read, and never a wrong byte.

use std::{collections::BTreeSet, convert::Infallible, ops::Range};

use proto::{
    CHUNK_BYTES, ChunkIndex, Digest, Fingerprint, Layout, Link, Source, image::Place,
    ledger::Entered, recipe::Recipe,
};

use super::{
    claim::{Adopted, Claim, Look, WriteError},
    files::Where,
    found::FoundDisk,
    place::ZEROS,
    recipes::NamedRecipe,
    stage::Stage,
};

/// A chunk of a stage: the content's number there, and the chunk's.
type At = (usize, ChunkIndex);

/// How much room and work a copy saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Copied {
    /// Raw bytes that needn't come from elsewhere.
    pub(super) bytes: u64,
    /// Those of them that lay in their place already, because the disk began as a clone.
    pub(super) in_place: u64,
}

impl Copied {
    pub(super) const fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.in_place += other.in_place;
    }
}

/// Chunks that a stage lacks, by their fingerprints: 24 bytes for each.
pub(super) struct Lacking {
    /// Sorted. A chunk that isn't lacking any more has the content [`SETTLED`], and so have all of its fingerprint.
    chunks: Vec<(Fingerprint, u32, ChunkIndex)>,
    /// Those that are lacking.
    left: usize,
}

/// No content's number.
const SETTLED: u32 = u32::MAX;

impl Lacking {
    /// The chunks that the stage lacks, of contents with a recipe.
    pub(super) fn of(stage: &Stage) -> Self {
        let held = stage.chunks();
        let all = (0..held.len()).map(|at| held.geometry(at).chunks() as usize);
        let mut chunks = Vec::with_capacity(all.sum());
        for (at, number) in (0..held.len()).zip(0..) {
            let has = held.held(at);
            for chunk in (0..has.chunks()).map(ChunkIndex) {
                if !has.contains(chunk)
                    && let Some(link) = held.chunks(at).recipe_link(chunk)
                {
                    chunks.push((link.fingerprint, number, chunk));
                }
            }
        }
        chunks.sort_unstable();
        Self {
            left: chunks.len(),
            chunks,
        }
    }

    /// Where the chunks with this fingerprint stand, if they are lacking.
    fn range(&self, print: &Fingerprint) -> Range<usize> {
        let from = self.chunks.partition_point(|(of, ..)| of < print);
        let behind = self.chunks[from..].partition_point(|(of, ..)| of == print);
        match self.chunks.get(from) {
            Some((_, number, _)) if *number != SETTLED => from..from + behind,
            _ => from..from,
        }
    }

    /// The chunks with this fingerprint.
    fn wanted(&self, print: &Fingerprint) -> impl Iterator<Item = At> {
        let wanted = self.chunks[self.range(print)].iter();
        wanted.map(|(_, number, chunk)| (*number as usize, *chunk))
    }

    fn has(&self, print: &Fingerprint) -> bool {
        !self.range(print).is_empty()
    }

    /// Forgets the chunks with this fingerprint.
    fn forget(&mut self, print: &Fingerprint) {
        let range = self.range(print);
        self.left -= range.len();
        for (_, number, _) in &mut self.chunks[range] {
            *number = SETTLED;
        }
    }

    /// Forgets the chunks with this fingerprint, if the stage holds all of them now.
    fn settle(&mut self, stage: &Stage, print: &Fingerprint) {
        let held = |at: At| stage.chunks().is_held(at.0, at.1);
        if self.wanted(print).all(held) {
            self.forget(print);
        }
    }

    /// Whether the stage lacks nothing that another disk could have.
    pub(super) const fn is_empty(&self) -> bool {
        self.left == 0
    }
}

/// Copies to a stage the chunks of a content that another image of this host holds. Each is compared with its link,
/// like any other chunk. Returns the number of copied bytes.
///
/// `cloned` says that the stage's disk began as a clone of the other one, so that bytes at the same offset are there
/// already. Those are compared where they are. `go_on` is asked before each chunk.
///
/// # Errors
/// When the stage can't be written, or `go_on` returns an error. Chunks that can't be read on the other side are left
/// to be fetched.
pub(super) fn copy_content<E: From<WriteError>>(
    stage: &Stage,
    other: &Stage,
    content: Digest,
    cloned: bool,
    go_on: &mut dyn FnMut() -> Result<(), E>,
) -> Result<u64, E> {
    let (our, their) = (stage.chunks(), other.chunks());
    let (Some(ours), Some(theirs)) = (our.find(&content), their.find(&content)) else {
        return Ok(0);
    };
    let geometry = our.geometry(ours);
    let their_places = other.files().places(theirs);
    // a place's number is its index here, because a new stage has one body
    let in_body = stage.files().places(ours).iter();
    let there: Vec<bool> = in_body
        .filter(|place| **place != Where::Blob)
        .map(|place| cloned && is_cloned(stage, other, *place) && their_places.contains(place))
        .collect();
    let mut copied = 0;
    for chunk in (0..geometry.chunks()).map(ChunkIndex) {
        if stage.is_given_up() {
            break;
        }
        if our.is_held(ours, chunk) {
            continue;
        }
        go_on()?;
        let Some(claim) = their.claim(theirs, chunk) else {
            continue;
        };
        if there.contains(&true) {
            let is_there = |place: usize| there.get(place).copied().unwrap_or(false);
            match our.adopt(ours, chunk, &claim, &is_there)? {
                Adopted::Held => continue,
                Adopted::New { differed } => {
                    copied += u64::from(geometry.len(chunk));
                    if !differed {
                        continue;
                    }
                }
                Adopted::Differs => {}
            }
        }
        // a chunk that is damaged in the other image is dropped there, and reported
        let Ok(Look::Sound(held)) = their.look(theirs, chunk) else {
            continue;
        };
        let entered = our.write(
            ours,
            chunk,
            &held.bytes,
            held.link,
            held.source,
            (&held.maker, held.answer.statement()),
        )?;
        if entered == Entered::New {
            copied += u64::from(geometry.len(chunk));
        }
    }
    for stage in [stage, other] {
        if let Err(error) = stage.walk(content).and_then(|_| stage.flush()) {
            tracing::warn!(%content, image = %stage.layout().digest(), %error, "journaling after a copy failed; it is tried again with the next flush");
        }
    }
    Ok(copied)
}

/// Whether a place is in the file of the disk that may begin as a clone of the other disk's: the first of both.
fn is_cloned(stage: &Stage, other: &Stage, place: Where) -> bool {
    let within = stage.layout().base_bytes().min(other.layout().base_bytes());
    matches!(place, Where::Disk(offset) if offset < within)
}

/// Bytes of raw layers that both images have at the same offset of their disks, and that `other` holds whole.
pub(super) fn common_layers(layout: &Layout, other: &Stage) -> u64 {
    let held = other.chunks();
    // only the first file of a disk begins as a clone
    let within = layout.base_bytes().min(other.layout().base_bytes());
    let layers = layout.layers().iter().filter(|layer| layer.offset < within);
    let layers = layers.filter(|layer| {
        layer.raw.is_some_and(|raw| {
            held.find(&raw).is_some_and(|at| {
                let places = other.files().places(at);
                places.contains(&Where::Disk(layer.offset)) && held.is_closed(at)
            })
        })
    });
    layers.map(|layer| layer.raw_bytes).sum()
}

/// The chunks of an image by their offsets on its disk, and apart from them zeros, which take no room. A clone of
/// another disk has those in place that it has at the same offsets.
pub(super) struct Offsets {
    /// Sorted.
    chunks: Vec<(u64, Fingerprint)>,
    /// Bytes of zeros.
    zeros: u64,
}

impl Offsets {
    /// The chunks of this image, by its recipe.
    pub(super) fn of(layout: &Layout, recipe: &Recipe) -> Self {
        let zeros = Fingerprint::of(&ZEROS);
        let contents = layout.contents();
        let all = contents
            .iter()
            .map(|spec| spec.geometry.chunks() as usize * spec.places.len());
        let mut offsets = Self {
            chunks: Vec::with_capacity(all.sum()),
            zeros: 0,
        };
        for spec in contents {
            let Some(content) = recipe.content(&spec.digest) else {
                continue;
            };
            let chunks = (0..spec.geometry.chunks()).map(ChunkIndex);
            let links = chunks.filter_map(|chunk| Some((chunk, content.link(chunk)?)));
            for (chunk, link) in links {
                for place in &spec.places {
                    let Place::Disk { offset } = *place else {
                        continue;
                    };
                    let length = u64::from(spec.geometry.len(chunk));
                    if link.fingerprint == zeros && length == CHUNK_BYTES {
                        offsets.zeros += length;
                    } else if offset < layout.base_bytes() {
                        // only the first file of a disk begins as a clone
                        let offset = offset + spec.geometry.offset(chunk);
                        offsets.chunks.push((offset, link.fingerprint));
                    }
                }
            }
        }
        offsets.chunks.sort_unstable();
        offsets
    }

    /// Bytes of chunks of zeros, which become holes.
    pub(super) const fn zeros(&self) -> u64 {
        self.zeros
    }

    fn has(&self, offset: u64, print: Fingerprint) -> bool {
        let found = self.chunks.binary_search_by_key(&offset, |(of, _)| *of);
        found.is_ok_and(|at| self.chunks[at].1 == print)
    }

    /// Bytes that another image's disk has in common with this one at the same offsets.
    pub(super) fn in_image(&self, other: &Stage) -> u64 {
        let held = other.chunks();
        let mut common = 0;
        for at in 0..held.len() {
            let geometry = held.geometry(at);
            for chunk in held.held(at).iter() {
                let Some((link, _)) = held.link(at, chunk) else {
                    continue;
                };
                for place in other.files().places(at) {
                    if let Where::Disk(offset) = place
                        && *offset < other.layout().base_bytes()
                        && self.has(offset + geometry.offset(chunk), link.fingerprint)
                    {
                        common += u64::from(geometry.len(chunk));
                    }
                }
            }
        }
        common
    }

    /// Bytes that a disk that was found has in common with this one at the same offsets. 0 if the notes on it can't be
    /// read.
    pub(super) fn in_found(&self, disk: &FoundDisk) -> u64 {
        let mut common = 0;
        let read = disk.each_print(&mut |print, offset, length| {
            if self.has(offset, print) {
                common += u64::from(length);
            }
            Ok::<_, Infallible>(())
        });
        match read {
            Ok(Ok(())) => common,
            Ok(Err(_)) | Err(_) => 0,
        }
    }
}

/// Bytes of chunks that a stage lacks, and that are zeros by this recipe: they become holes. At each of their places on
/// the disk; not of contents in doubt.
pub(super) fn lacking_zeros(
    stage: &Stage,
    (by, in_doubt): (&NamedRecipe, &BTreeSet<Digest>),
) -> u64 {
    let (held, zeros) = (stage.chunks(), Fingerprint::of(&ZEROS));
    let mut bytes = 0;
    for at in 0..held.len() {
        let content = held.digest(at);
        let Some(of) = by.recipe.content(&content) else {
            continue;
        };
        if in_doubt.contains(&content) {
            continue;
        }
        let (geometry, has) = (held.geometry(at), held.held(at));
        let is_zeros = |chunk: &ChunkIndex| {
            let link = of.link(*chunk);
            let is_whole = u64::from(geometry.len(*chunk)) == CHUNK_BYTES;
            let is_lacking = is_whole && !has.contains(*chunk);
            is_lacking && link.is_some_and(|link| link.fingerprint == zeros)
        };
        let lacking = (0..has.chunks()).map(ChunkIndex).filter(is_zeros).count() as u64;
        let places = stage.files().places(at).iter();
        let on_disk = places
            .filter(|place| matches!(place, Where::Disk(_)))
            .count() as u64;
        bytes += lacking * on_disk * CHUNK_BYTES;
    }
    bytes
}

/// Makes holes of the chunks that are all zeros by the recipe, until one proves the recipe false. `go_on` is asked
/// before each chunk. Returns their bytes.
///
/// # Errors
/// When the stage can't be written, or `go_on` returns an error.
pub(super) fn punch<E: From<WriteError>>(
    stage: &Stage,
    lacking: &mut Lacking,
    go_on: &mut dyn FnMut() -> Result<(), E>,
) -> Result<u64, E> {
    let zeros = Fingerprint::of(&ZEROS);
    let wanted: Vec<At> = lacking.wanted(&zeros).collect();
    lacking.forget(&zeros);
    let (punched, _) = store(stage, &wanted, &ZEROS, go_on)?;
    Ok(punched)
}

/// Copies to a stage the chunks that it lacks and another image of this host holds. `cloned`: the stage's disk began as
/// a clone of the other one, so that bytes at the same offset are compared where they lie. `go_on` is asked before each
/// chunk.
///
/// # Errors
/// When the stage can't be written, or `go_on` returns an error.
pub(super) fn copy<E: From<WriteError>>(
    stage: &Stage,
    lacking: &mut Lacking,
    other: &Stage,
    cloned: bool,
    go_on: &mut dyn FnMut() -> Result<(), E>,
) -> Result<Copied, E> {
    let mut copied = Copied::default();
    let theirs = other.chunks();
    for at in 0..theirs.len() {
        let geometry = theirs.geometry(at);
        for chunk in theirs.held(at).iter() {
            let Some((link, _)) = theirs.link(at, chunk) else {
                continue;
            };
            if !lacking.has(&link.fingerprint) {
                continue;
            }
            if stage.is_given_up() {
                return Ok(copied);
            }
            let places = other.files().places(at).iter();
            let offsets: Vec<u64> = places
                .filter_map(|place| match place {
                    Where::Disk(offset) if cloned => Some(offset + geometry.offset(chunk)),
                    _ => None,
                })
                .collect();
            // what can't be read there comes from elsewhere
            let mut read = || theirs.read(at, chunk).ok().flatten().map(|held| held.bytes);
            let print = link.fingerprint;
            copied.add(take(stage, lacking, print, &offsets, &mut read, go_on)?);
        }
    }
    Ok(copied)
}

/// Copies to a stage the chunks that it lacks and a disk that was found has. `cloned` and `go_on` as in [`copy`].
///
/// # Errors
/// When the stage can't be written, or `go_on` returns an error. A disk that changed, or notes that can't be read, give
/// nothing.
pub(super) fn copy_found<E: From<WriteError>>(
    stage: &Stage,
    lacking: &mut Lacking,
    disk: &FoundDisk,
    cloned: bool,
    go_on: &mut dyn FnMut() -> Result<(), E>,
) -> Result<Copied, E> {
    let mut copied = Copied::default();
    let Ok(open) = disk.key().and_then(|key| disk.open_as(key)) else {
        return Ok(copied);
    };
    let read = disk.each_print::<E>(&mut |print, offset, length| {
        if !lacking.has(&print) {
            return Ok(());
        }
        let in_place: &[u64] = if cloned { &[offset] } else { &[] };
        let mut read = || {
            let mut bytes = vec![0; length as usize];
            let read = open.read_at(offset, &mut bytes).ok().flatten();
            read.map(|()| bytes)
        };
        copied.add(take(stage, lacking, print, in_place, &mut read, go_on)?);
        Ok(())
    })?;
    if let Err(error) = read {
        tracing::debug!(disk = %disk.path().display(), %error, "notes on a disk can't be read");
    }
    Ok(copied)
}

/// Takes the chunk with this fingerprint for all places of it that a stage lacks: as it lies at one of these offsets of
/// the stage's own disk, else as `read` gives it. Bytes that have the fingerprint, and aren't the chunk, prove the
/// recipe false: the fingerprint is forgotten. `go_on` is asked before each place.
fn take<E: From<WriteError>>(
    stage: &Stage,
    lacking: &mut Lacking,
    print: Fingerprint,
    offsets: &[u64],
    read: &mut dyn FnMut() -> Option<Vec<u8>>,
    go_on: &mut dyn FnMut() -> Result<(), E>,
) -> Result<Copied, E> {
    let mut copied = Copied::default();
    let mut left = Vec::new();
    for at in lacking.wanted(&print) {
        go_on()?;
        if stage.is_given_up() {
            return Ok(copied);
        }
        match adopt(stage, at, offsets)? {
            Some(bytes) => {
                copied.bytes += bytes;
                copied.in_place += bytes;
            }
            None => left.push(at),
        }
    }
    if !left.is_empty()
        && let Some(bytes) = read()
    {
        let (stored, all_fit) = store(stage, &left, &bytes, go_on)?;
        copied.bytes += stored;
        if !all_fit && Fingerprint::of(&bytes) == print {
            tracing::debug!(image = %stage.layout().digest(), "a fingerprint of the recipe is false; nothing more is looked for by it");
            lacking.forget(&print);
        }
    }
    lacking.settle(stage, &print);
    Ok(copied)
}

/// Stores these bytes as each of these chunks, up to the first one that they aren't by the recipe. Returns the bytes of
/// the chunks that are new, and whether there was no such one. `go_on` is asked before each chunk.
fn store<E: From<WriteError>>(
    stage: &Stage,
    wanted: &[At],
    bytes: &[u8],
    go_on: &mut dyn FnMut() -> Result<(), E>,
) -> Result<(u64, bool), E> {
    let (held, mut stored) = (stage.chunks(), 0);
    for at in wanted {
        go_on()?;
        if stage.is_given_up() {
            break;
        }
        if write(stage, *at, bytes)? {
            stored += bytes.len() as u64;
        } else if !held.is_held(at.0, at.1) && held.chunks(at.0).recipe_link(at.1).is_some() {
            return Ok((stored, false));
        }
    }
    Ok((stored, true))
}

/// Takes a chunk that should lie in its place already, at one of these offsets of the disk. Returns its bytes; `None`
/// when it doesn't lie there.
fn adopt(stage: &Stage, (at, chunk): At, offsets: &[u64]) -> Result<Option<u64>, WriteError> {
    let held = stage.chunks();
    let geometry = held.geometry(at);
    let places = stage.files().places(at).iter();
    let there: Vec<bool> = places
        .filter(|place| **place != Where::Blob)
        .map(|place| match place {
            Where::Disk(offset) => offsets.contains(&(offset + geometry.offset(chunk))),
            _ => false,
        })
        .collect();
    let link = held.chunks(at).recipe_link(chunk);
    let Some(link) = link.filter(|_| there.contains(&true)) else {
        return Ok(None);
    };
    let is_there = |place: usize| there.get(place).copied().unwrap_or(false);
    let claim = Claim::by_recipe(link, &stage.shared().host());
    Ok(match held.adopt(at, chunk, &claim, &is_there)? {
        Adopted::Held => Some(0),
        Adopted::New { .. } => Some(u64::from(geometry.len(chunk))),
        Adopted::Differs => None,
    })
}

/// Stores these bytes as a chunk, if the recipe says that they are. Returns whether the chunk is new.
pub(super) fn write(stage: &Stage, (at, chunk): At, bytes: &[u8]) -> Result<bool, WriteError> {
    let held = stage.chunks();
    let link: Option<Link> = held.chunks(at).recipe_link(chunk);
    let Some(link) = link.filter(|link| link.holds(held.geometry(at), chunk, bytes)) else {
        return Ok(false);
    };
    let me = stage.shared().host();
    let source = Source {
        sender: me.key(),
        maker: me.key(),
    };
    let entered = held.write(at, chunk, bytes, link, source, (&me, None))?;
    Ok(entered == Entered::New)
}
