//! A second directory of an installed image, for another repository of tart's cache. It is a clone if the volume can
//! clone files, otherwise a copy. It shares no inode with the first directory, because an edit of one must not edit the
//! other. The files of a stacked image's disk have no second copy, because tart shares them, too: the record of such an
//! image has a configuration, firmware variables and a manifest, and no disk (tart of August 2026,
//! Sources/tart/VMDirectory.swift: layout; ContentStore.swift: contentURL).
//!
//! A clone is compared with the links after it was made. The chunks of a copy are compared before they are written. So
//! a byte that rotted in the first directory never reaches the second: the chunk is dropped and reported as
//! [`News::Rotted`](super::News), and the twin isn't made until the chunk is held again.

use std::{fs, io, os::unix::fs::FileExt as _, path::PathBuf};

use proto::{ChunkIndex, Digest, image::Format};

use super::{
    claim::Look,
    files::{Body, Where},
    layers::{DecodeLayerError, decode_into},
    place::{Files as _, put_over},
    room::NoRoomError,
    stage::Stage,
    steps::step,
    tree::{GUARD, TWIN, io_at, remove_any, write_new},
};
use crate::{
    platform::{self, CloneError},
    tart::cache,
    zero::is_zero,
};

/// Why the twin couldn't be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum TwinError {
    /// The first directory isn't there any more.
    #[error("the image's files were removed")]
    Removed,
    /// A chunk of this content has rotted.
    #[error("content {0} isn't complete")]
    Incomplete(Digest),
    /// A layer that travels as a blob is bad.
    #[error(transparent)]
    Layer(#[from] DecodeLayerError),
    /// The volume has no room for a copy.
    #[error(transparent)]
    NoRoom(#[from] NoRoomError),
    /// The volume failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Makes the whole twin and syncs it. If an earlier twin waits to be moved, returns that one.
///
/// # Errors
/// [`TwinError::Incomplete`] if a chunk has rotted.
pub(super) fn make(stage: &Stage) -> Result<PathBuf, TwinError> {
    let twin = stage.directory().join(TWIN);
    if stage.names().is_ours(&twin) {
        return Ok(twin);
    }
    let from = stage
        .names()
        .installed_directory()
        .ok_or(TwinError::Removed)?;
    remove_any(&twin)?;
    fs::create_dir(&twin).map_err(|error| io_at("creating", &twin, error))?;
    let clone = |part: &str| platform::clone_file(&from.join(part), &twin.join(part));
    let stacked = stage.layout().format() == Format::Stacked;
    let parts = match stacked {
        true => &[cache::CONFIG, cache::NVRAM][..],
        false => &cache::PARTS,
    };
    let cloned = match parts.iter().try_for_each(|part| clone(part)) {
        Ok(()) => true,
        Err(CloneError::Unsupported) => false,
        Err(CloneError::Io(error)) => return Err(io_at("cloning into", &twin, error).into()),
    };
    // a copy takes as much as the image does
    let promise = match cloned {
        true => None,
        false => Some(stage.promise_room()?),
    };
    let body = match stage.files().bodies().first().filter(|_| stacked) {
        Some(first) => first.beside(&twin, stage.layout())?,
        None => Body::create(&twin, stage.layout())?,
    };
    fill(stage, &body, cloned)?;
    body.sync()?;
    drop(promise);
    write_new(&twin.join(cache::MANIFEST), stage.manifest())?;
    write_new(&twin.join(cache::MARKER), GUARD)?;
    platform::sync_directory(&twin)?;
    stage.names().adopt(body)?;
    step("twinned")?;
    Ok(twin)
}

/// Writes the chunks that the twin lacks, and compares those that it has.
fn fill(stage: &Stage, body: &Body, cloned: bool) -> Result<(), TwinError> {
    let stacked = stage.layout().format() == Format::Stacked;
    for at in 0..stage.chunks().len() {
        let geometry = stage.chunks().geometry(at);
        let content = stage.chunks().digest(at);
        for chunk in (0..geometry.chunks()).map(ChunkIndex) {
            let places = stage.chunks().files().places(at);
            let lies_elsewhere = |place: &Where| match place {
                Where::Blob => true,
                // the files of a stacked image's disk are the first directory's
                Where::Disk(_) => stacked,
                Where::Config | Where::Nvram => false,
            };
            if places.iter().all(lies_elsewhere) {
                continue;
            }
            if cloned && is_in(stage, body, at, chunk)? {
                continue;
            }
            let Look::Sound(held) = stage.chunks().look(at, chunk)? else {
                stage.flush()?;
                return Err(TwinError::Incomplete(content));
            };
            let zero = is_zero(&held.bytes);
            for place in places {
                let Some((file, base)) = body.place(*place) else {
                    continue;
                };
                let offset = base + geometry.offset(chunk);
                let written = put_over(file, offset, (&held.bytes, zero), false)
                    .map_err(|error| io_at("writing", &stage.directory().join(TWIN), error))?;
                stage.chunks().files().wrote(written);
            }
        }
    }
    decode_into(stage.chunks(), stage.layout(), body)?;
    Ok(())
}

/// Whether the clone has the chunk's bytes at each of the chunk's places.
fn is_in(stage: &Stage, body: &Body, at: usize, chunk: ChunkIndex) -> io::Result<bool> {
    let Some(claim) = stage.chunks().claim(at, chunk) else {
        return Ok(false);
    };
    let geometry = stage.chunks().geometry(at);
    let mut first: Option<Vec<u8>> = None;
    for place in stage.chunks().files().places(at) {
        let Some((file, base)) = body.place(*place) else {
            continue;
        };
        let mut bytes = vec![0; geometry.len(chunk) as usize];
        file.read_exact_at(&mut bytes, base + geometry.offset(chunk))?;
        let sound = match &first {
            None => claim.fits(geometry, chunk, &bytes),
            Some(first) => *first == bytes,
        };
        if !sound {
            return Ok(false);
        }
        first.get_or_insert(bytes);
    }
    Ok(true)
}
