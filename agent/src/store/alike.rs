//! Chunks of an image that lie on the disks of other images here, at any offset that both disks cut alike.
//!
//! The image's recipe gives the fingerprint of each of its chunks, and the other images' journals give those of theirs.
//! So nothing is read to find what is alike. What is found is compared with the recipe: a wrong fingerprint costs a
//! read, and never a wrong byte.

use std::collections::BTreeMap;

use proto::{
    CHUNK_BYTES, ChunkIndex, Digest, Fingerprint, Layout, Link, Source, image::Place,
    ledger::Entered, recipe::Recipe,
};

use super::{
    claim::{Adopted, Claim, Look, WriteError},
    files::Where,
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

/// Chunks that a stage lacks, by their fingerprints.
pub(super) struct Lacking(BTreeMap<Fingerprint, Vec<At>>);

impl Lacking {
    /// The chunks that the stage lacks, of contents with a recipe.
    pub(super) fn of(stage: &Stage) -> Self {
        let mut lacking: BTreeMap<Fingerprint, Vec<At>> = BTreeMap::new();
        let held = stage.chunks();
        for at in 0..held.len() {
            let has = held.held(at);
            for chunk in (0..has.chunks()).map(ChunkIndex) {
                if !has.contains(chunk)
                    && let Some(link) = held.chunks(at).recipe_link(chunk)
                {
                    let of = lacking.entry(link.fingerprint).or_default();
                    of.push((at, chunk));
                }
            }
        }
        Self(lacking)
    }

    /// Whether the stage lacks nothing that another disk could have.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Copies to a stage the chunks of a content that another image of this host holds. Each is compared with its link,
/// like any other chunk. Returns the number of copied bytes.
///
/// `cloned` says that the stage's disk began as a clone of the other one, so that bytes at the same offset are there
/// already. Those are compared where they are.
///
/// # Errors
/// When the stage can't be written. Chunks that can't be read on the other side are left to be fetched.
pub(super) fn copy_content(
    stage: &Stage,
    other: &Stage,
    content: Digest,
    cloned: bool,
) -> Result<u64, WriteError> {
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
        .map(|place| cloned && matches!(place, Where::Disk(_)) && their_places.contains(place))
        .collect();
    let mut copied = 0;
    for chunk in (0..geometry.chunks()).map(ChunkIndex) {
        if stage.is_given_up() {
            break;
        }
        if our.is_held(ours, chunk) {
            continue;
        }
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

/// Bytes of raw layers that both images have at the same offset of their disks, and that `other` holds whole.
pub(super) fn common_layers(layout: &Layout, other: &Stage) -> u64 {
    let held = other.chunks();
    let layers = layout.layers().iter().filter(|layer| {
        layer.raw.is_some_and(|raw| {
            held.find(&raw).is_some_and(|at| {
                let places = other.files().places(at);
                places.contains(&Where::Disk(layer.offset)) && held.is_closed(at)
            })
        })
    });
    layers.map(|layer| layer.raw_bytes).sum()
}

/// Bytes of chunks that both disks have at the same offset, by their fingerprints. A clone of `other`'s disk has them
/// in place.
pub(super) fn common_bytes(layout: &Layout, recipe: &Recipe, other: &Stage) -> u64 {
    let mut ours: BTreeMap<u64, Fingerprint> = BTreeMap::new();
    for spec in layout.contents() {
        let Some(content) = recipe.content(&spec.digest) else {
            continue;
        };
        let chunks = (0..spec.geometry.chunks()).map(ChunkIndex);
        for (chunk, link) in chunks.filter_map(|chunk| Some((chunk, content.link(chunk)?))) {
            for place in &spec.places {
                if let Place::Disk { offset } = place {
                    ours.insert(offset + spec.geometry.offset(chunk), link.fingerprint);
                }
            }
        }
    }
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
                    && ours.get(&(offset + geometry.offset(chunk))) == Some(&link.fingerprint)
                {
                    common += u64::from(geometry.len(chunk));
                }
            }
        }
    }
    common
}

/// Makes holes of the chunks that are all zeros by the recipe. Returns their bytes.
///
/// # Errors
/// When the stage can't be written.
pub(super) fn punch(stage: &Stage, lacking: &mut Lacking) -> Result<u64, WriteError> {
    let zeros = vec![0; 1 << 20];
    debug_assert_eq!(zeros.len() as u64, CHUNK_BYTES);
    let mut punched = 0;
    let Some(of) = lacking.0.remove(&Fingerprint::of(&zeros)) else {
        return Ok(0);
    };
    for at in of {
        if write(stage, at, &zeros)? {
            punched += CHUNK_BYTES;
        }
    }
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
            let Some(wanted) = lacking.0.get(&link.fingerprint) else {
                continue;
            };
            go_on()?;
            if stage.is_given_up() {
                return Ok(copied);
            }
            let mut left = wanted.clone();
            if cloned {
                let places = other.files().places(at).iter();
                let offsets: Vec<u64> = places
                    .filter_map(|place| match place {
                        Where::Disk(offset) => Some(offset + geometry.offset(chunk)),
                        _ => None,
                    })
                    .collect();
                let mut differs = Vec::new();
                for at in left {
                    match adopt(stage, at, &offsets)? {
                        Some(bytes) => {
                            copied.bytes += bytes;
                            copied.in_place += bytes;
                        }
                        None => differs.push(at),
                    }
                }
                left = differs;
            }
            if !left.is_empty()
                // what can't be read there comes from elsewhere
                && let Ok(Some(held)) = theirs.read(at, chunk)
            {
                for at in left.clone() {
                    if write(stage, at, &held.bytes)? {
                        copied.bytes += held.bytes.len() as u64;
                    }
                }
            }
            let held = |at: &At| stage.chunks().is_held(at.0, at.1);
            if wanted.iter().all(held) {
                lacking.0.remove(&link.fingerprint);
            }
        }
    }
    Ok(copied)
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
